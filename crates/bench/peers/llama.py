"""Prefill and decoding in llama.cpp by its low-level functions: one JSON object for each line of standard input.

usage: llama.py FILE THREADS         a line: PREFILL DECODE, in tokens
"""

import ctypes
import json
import sys
import time

import llama_cpp as ll

path, threads = sys.argv[1], int(sys.argv[2])
silent = ll.llama_log_callback(lambda level, text, user: None)
ll.llama_log_set(silent, ctypes.c_void_p(0))
ll.llama_backend_init()
model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
if not model:
    sys.exit(f"llama.cpp cannot load {path}")
params = ll.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch = 1024, 512, 512
params.n_threads = params.n_threads_batch = threads
context = ll.llama_init_from_model(model, params)
vocabulary = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))


def feed(ids):
    tokens = (ll.llama_token * len(ids))(*ids)
    if ll.llama_decode(context, ll.llama_batch_get_one(tokens, len(ids))) != 0:
        sys.exit("llama_decode failed")
    return ll.llama_get_logits_ith(context, -1)


for line in sys.stdin:
    prefill, decode = map(int, line.split())
    ll.llama_memory_clear(ll.llama_get_memory(context), True)
    begun = time.perf_counter()
    feed([i * 7919 % vocabulary for i in range(prefill)])
    read = time.perf_counter()
    for i in range(decode):
        feed([(i * 104729 + 11) % vocabulary])
    made = time.perf_counter()
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    rates = {"prefill_tokens_per_s": prefill / (read - begun), "decode_tokens_per_s": decode / (made - read)}
    print(json.dumps({**rates, "peak_rss": peak}), flush=True)

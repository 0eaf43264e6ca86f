"""A MeZO step and a forward of the same batch in PyTorch: one JSON object on standard output.

As the authors' code: the noise is drawn again from its seed, weight by weight, three times for the two losses
and once for the update.

usage: mezo.py SHAPE DTYPE STEPS THREADS         SHAPE: a JSON object, see crates/bench/src/shape.rs
"""

import json
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

shape, dtype, steps, threads = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
batch, length = shape["batch"], shape["length"]
torch.set_num_threads(threads)
torch.manual_seed(1)
config = LlamaConfig(
    vocab_size=shape["vocabulary"],
    hidden_size=shape["width"],
    intermediate_size=shape["intermediate"],
    num_hidden_layers=shape["layers"],
    num_attention_heads=shape["heads"],
    num_key_value_heads=shape["kv_heads"],
    max_position_embeddings=length,
    tie_word_embeddings=False,
)
model = LlamaForCausalLM(config).to({"f32": torch.float32, "bf16": torch.bfloat16}[dtype])
model.eval()
ids = torch.randint(0, shape["vocabulary"], (batch, length))


def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def forward():
    return model(input_ids=ids, labels=ids).loss


def perturb(seed, factor):
    torch.manual_seed(seed)
    for p in model.parameters():
        p.add_(torch.normal(0.0, 1.0, p.shape, dtype=p.dtype), alpha=factor)


forwards, walks, eps, lr = [], [], 1e-3, 1e-6
with torch.no_grad():
    for _ in range(steps):
        begun = time.time()
        forward().item()
        forwards.append(time.time() - begun)
    inference = peak()
    for step in range(steps):
        begun = time.time()
        perturb(step, eps)
        above = forward().item()
        perturb(step, -2 * eps)
        below = forward().item()
        perturb(step, eps)
        perturb(step, -lr * (above - below) / (2 * eps))
        walks.append(time.time() - begun)
found = {"forward": min(forwards[1:]), "step": min(walks[1:]), "peak_forward": inference, "peak_step": peak()}
print(json.dumps(found))

"""A LoRA step in PyTorch + PEFT: one JSON object on standard output.

usage: yardstick.py SHAPE DTYPE STEPS CHECKPOINT(0|1) THREADS         SHAPE: a JSON object, see crates/bench/src/shape.rs
"""

import json
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

shape, dtype, steps, checkpoint, threads = sys.argv[1:6]
shape, steps, checkpoint = json.loads(shape), int(steps), checkpoint == "1"
batch, length = shape["batch"], shape["length"]
torch.set_num_threads(int(threads))
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
if checkpoint:
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
model.train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
ids = torch.randint(0, shape["vocabulary"], (batch, length))
seconds = []
for _ in range(steps):
    begun = time.time()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    seconds.append(time.time() - begun)
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "tokens_per_s": batch * length / min(seconds[1:]), "peak_rss": peak}))

"""A character model from scratch in PyTorch, as recipes/tasks/shakespeare-char.toml: one JSON object on standard output.

Written with plain modules and PyTorch's fused attention. Prints the seconds of the training steps alone
and, where that is wanted, the loss on the last tenth of the text.

usage: shakespeare.py TEXT SHAPE STEPS THREADS EVALUATE(0|1)         SHAPE: a JSON object, see crates/bench/src/shape.rs
"""

import json
import math
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

path, shape, steps, threads = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
torch.manual_seed(1337)
LAYERS, HEADS, WIDTH, MLP = shape["layers"], shape["heads"], shape["width"], shape["intermediate"]
CONTEXT, BATCH = shape["length"], shape["batch"]

with open(path) as file:
    text = file.read()
letters = {c: i for i, c in enumerate(sorted(set(text)))}
ids = torch.tensor([letters[c] for c in text])
cut = len(ids) * 9 // 10
train, held_out = ids[:cut], ids[cut:]

angles = torch.outer(torch.arange(CONTEXT), 10000.0 ** (-torch.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS)))
COS, SIN = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)


def rotate(x):
    a, b = x.chunk(2, -1)
    t = x.shape[-2]
    return x * COS[:t] + torch.cat([-b, a], -1) * SIN[:t]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.norm2 = nn.RMSNorm(WIDTH, 1e-5), nn.RMSNorm(WIDTH, 1e-5)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(WIDTH, MLP, bias=False) for _ in range(2))
        self.down = nn.Linear(MLP, WIDTH, bias=False)

    def forward(self, x):
        b, t, _ = x.shape
        h = self.norm(x)
        q, k, v = (f(h).view(b, t, HEADS, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).reshape(b, t, WIDTH))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(len(letters), WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, 1e-5)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embed.weight)


model = Model()
matrices = [p for p in model.parameters() if p.dim() > 1]
vectors = [p for p in model.parameters() if p.dim() == 1]
groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
warm = min(100, -(-steps // 20))
times = []
for step in range(steps):
    begun = time.time()
    rate = (step + 1) / warm if step < warm else 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 * rate
    at = torch.randint(len(train) - CONTEXT, (BATCH,)).tolist()
    x = torch.stack([train[i : i + CONTEXT] for i in at])
    y = torch.stack([train[i + 1 : i + 1 + CONTEXT] for i in at])
    loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    times.append(time.time() - begun)
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
found = {"seconds": times, "peak_rss": peak}
if sys.argv[5] == "1":
    with torch.no_grad():
        whole = (len(held_out) - 1) // CONTEXT
        x = held_out[: whole * CONTEXT].view(whole, CONTEXT)
        y = held_out[1 : whole * CONTEXT + 1].view(whole, CONTEXT)
        sums = [
            F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").item()
            for x, y in zip(x.split(64), y.split(64))
        ]
    found["loss"] = sum(sums) / (whole * CONTEXT)
print(json.dumps(found))

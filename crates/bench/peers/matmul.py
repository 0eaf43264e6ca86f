"""x·wᵀ in PyTorch: one JSON object for each line of standard input.

usage: matmul.py THREADS         a line: ROWS OUTPUTS INPUTS f32|bf16
"""

import json
import sys
import time

import torch

torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(1)
for line in sys.stdin:
    m, n, k, dtype = line.split()
    m, n, k = int(m), int(n), int(k)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    x, w = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    least, begun = float("inf"), time.perf_counter()
    with torch.no_grad():
        # As many calls as fit in a third of a second, as our side does.
        while time.perf_counter() - begun < 0.35:
            t = time.perf_counter()
            torch.nn.functional.linear(x, w)
            least = min(least, time.perf_counter() - t)
    print(json.dumps({"seconds": least}), flush=True)

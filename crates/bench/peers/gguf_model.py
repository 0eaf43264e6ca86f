"""A llama of random weights as llama.cpp reads it, in the blocks that llama-quantize would choose.

q4_0: Q4_0, but the head in Q6_K (in Q8_0 where the width is no multiple of 256); q8_0: Q8_0 throughout; norms in f32.

usage: gguf_model.py FILE SHAPE q4_0|q8_0         SHAPE: a JSON object, see crates/bench/src/shape.rs
"""

import json
import os
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

path, shape, kind = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
rng = np.random.default_rng(1)
width, vocab = shape["width"], shape["vocabulary"]
head_dim = width // shape["heads"]


def blocks(rows, columns, type):
    """Rows of random blocks whose numbers are about as large as weights: scale times a small integer."""
    size, bytes_of = gguf.GGML_QUANT_SIZES[type]
    count = columns // size
    data = rng.integers(0, 256, (rows, count, bytes_of), dtype=np.uint8)
    largest = {Type.Q4_0: 8, Type.Q8_0: 128, Type.Q6_K: 32 * 16}[type]
    scale = np.frombuffer(np.float16(0.05 / largest).tobytes(), np.uint8)
    at = bytes_of - 2 if type == Type.Q6_K else 0
    if type == Type.Q6_K:
        data[..., 192:208] = 16  # the scales of the sixteens
    data[..., at : at + 2] = scale
    return data.reshape(rows, count * bytes_of)


main = {"q4_0": Type.Q4_0, "q8_0": Type.Q8_0}[kind]
head = Type.Q6_K if kind == "q4_0" and width % 256 == 0 else Type.Q8_0
writer = gguf.GGUFWriter(path + ".part", "llama")
writer.add_context_length(2048)
writer.add_embedding_length(width)
writer.add_block_count(shape["layers"])
writer.add_feed_forward_length(shape["intermediate"])
writer.add_head_count(shape["heads"])
writer.add_head_count_kv(shape["kv_heads"])
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_dimension_count(head_dim)
writer.add_vocab_size(vocab)
writer.add_tokenizer_model("none")
writer.add_file_type({"q4_0": gguf.LlamaFileType.MOSTLY_Q4_0, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}[kind])


def linear(name, rows, columns, type=main):
    writer.add_tensor(name + ".weight", blocks(rows, columns, type), raw_dtype=type)


def norm(name):
    writer.add_tensor(name + ".weight", np.ones(width, np.float32))


linear("token_embd", vocab, width)
for i in range(shape["layers"]):
    kv = shape["kv_heads"] * head_dim
    norm(f"blk.{i}.attn_norm")
    norm(f"blk.{i}.ffn_norm")
    for name, rows, columns in [
        ("attn_q", width, width),
        ("attn_k", kv, width),
        ("attn_v", kv, width),
        ("attn_output", width, width),
        ("ffn_gate", shape["intermediate"], width),
        ("ffn_up", shape["intermediate"], width),
        ("ffn_down", width, shape["intermediate"]),
    ]:
        linear(f"blk.{i}.{name}", rows, columns)
norm("output_norm")
linear("output", vocab, width, head)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
os.replace(path + ".part", path)
print(json.dumps({"bytes": os.path.getsize(path)}))

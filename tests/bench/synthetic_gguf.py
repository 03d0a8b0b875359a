#!/usr/bin/env python3
"""Writes a GGUF with the shapes, types and vocabulary of a public model and random weights: its speed is real, its words mean nothing.

  synthetic_gguf.py SHAPE TYPE VOCAB.gguf OUT.gguf      SHAPE: 0.5b 1.5b 7b (Qwen2.5)      TYPE: q4_0 q8_0 q4_k_m

q4_k_m mixes types as llama.cpp's quantiser does: rows that are no multiple of 256 become Q5_0 and Q8_0.
"""
import os
import struct
import sys

import numpy as np

SHAPES = {  # hidden, layers, heads, KV heads, intermediate, tied head
    "0.5b": (896, 24, 14, 2, 4864, True),
    "1.5b": (1536, 28, 12, 2, 8960, True),
    "7b": (3584, 28, 28, 4, 18944, False),
}
TYPES = {  # number in GGUF, values and bytes of a block
    "f32": (0, 1, 4), "q4_0": (2, 32, 18), "q5_0": (6, 32, 22), "q8_0": (8, 32, 34), "q4_k": (12, 256, 144), "q6_k": (14, 256, 210),
}
FILE_TYPE = {"q4_0": 2, "q8_0": 7, "q4_k_m": 15}
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
U32, F32, STRING, ARRAY = 4, 6, 8, 9
ALIGNMENT = 32


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def vocabulary(path):
    """The raw key-value entries tokenizer.* of a GGUF, and how many tokens there are."""
    data, at, entries, n_tokens = open(path, "rb").read(), 24, [], 0

    def skip(kind):
        nonlocal at
        if kind == STRING:
            at += 8 + struct.unpack_from("<Q", data, at)[0]
        elif kind == ARRAY:
            of, n = struct.unpack_from("<IQ", data, at)
            at += 12
            for _ in range(n):
                skip(of)
        else:
            at += struct.calcsize(SCALARS[kind])

    for _ in range(struct.unpack_from("<Q", data, 16)[0]):
        start = at
        skip(STRING)
        name = data[start + 8 : at].decode()
        kind = struct.unpack_from("<I", data, at)[0]
        at += 4
        if name == "tokenizer.ggml.tokens":
            n_tokens = struct.unpack_from("<Q", data, at + 4)[0]
        skip(kind)
        if name.startswith("tokenizer."):
            entries.append(data[start:at])
    return entries, n_tokens


def random_blocks(rng, kind, n):
    """n values of a type as valid blocks of random codes, with a spread of about 0.02."""
    _, values, size = TYPES[kind]
    count = n // values
    blocks = rng.integers(0, 256, (count, size), np.uint8)

    def put(at, value):
        blocks[:, at : at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)

    put(208 if kind == "q6_k" else 0, {"q4_0": 4e-3, "q5_0": 2e-3, "q8_0": 2.5e-4, "q4_k": 1e-4, "q6_k": 1e-5}[kind])
    if kind == "q4_k":
        put(2, 7.5e-4)
    return blocks.tobytes()


def mixed(kind, name, layer, n_layers, n_in):
    """The type of a tensor: llama.cpp's rules for Q4_K_M."""
    if kind != "q4_k_m":
        return kind
    more = layer < n_layers // 8 or layer >= 7 * n_layers // 8 or (layer - n_layers // 8) % 3 == 2
    six = name in ("token_embd", "output") or name in ("attn_v", "ffn_down") and more
    if n_in % 256:
        return "q8_0" if six else "q5_0"
    return "q6_k" if six else "q4_k"


def tensors(shape, kind, n_vocab):
    """(name, n_in, n_out, type) of every tensor."""
    dim, layers, heads, kv_heads, hidden, tied = SHAPES[shape]
    kv = kv_heads * dim // heads
    for name in ("token_embd",) if tied else ("token_embd", "output"):
        yield name + ".weight", dim, n_vocab, mixed(kind, name, 0, layers, dim)
    yield "output_norm.weight", dim, 1, "f32"
    matrices = (("attn_q", dim, dim), ("attn_k", dim, kv), ("attn_v", dim, kv), ("attn_output", dim, dim),
                ("ffn_gate", dim, hidden), ("ffn_up", dim, hidden), ("ffn_down", hidden, dim))
    for i in range(layers):
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{i}.{name}.weight", dim, 1, "f32"
        for name, n_out in (("attn_q", dim), ("attn_k", kv), ("attn_v", kv)):
            yield f"blk.{i}.{name}.bias", n_out, 1, "f32"
        for name, n_in, n_out in matrices:
            yield f"blk.{i}.{name}.weight", n_in, n_out, mixed(kind, name, i, layers, n_in)


def main(shape, kind, vocab, out):
    dim, layers, heads, kv_heads, hidden, _ = SHAPES[shape]
    entries, n_vocab = vocabulary(vocab)
    numbers = {"block_count": layers, "context_length": 32768, "embedding_length": dim, "feed_forward_length": hidden,
               "attention.head_count": heads, "attention.head_count_kv": kv_heads}
    floats = {"rope.freq_base": 1e6, "attention.layer_norm_rms_epsilon": 1e-6}
    entries = [text("general.architecture") + struct.pack("<I", STRING) + text("qwen2"),
               text("general.name") + struct.pack("<I", STRING) + text(f"random Qwen2.5 {shape} {kind}"),
               text("general.file_type") + struct.pack("<II", U32, FILE_TYPE[kind]),
               text("general.quantization_version") + struct.pack("<II", U32, 2),
               *(text("qwen2." + k) + struct.pack("<II", U32, v) for k, v in numbers.items()),
               *(text("qwen2." + k) + struct.pack("<If", F32, v) for k, v in floats.items()), *entries]
    table, at, all_tensors = [], 0, list(tensors(shape, kind, n_vocab))
    for name, n_in, n_out, t in all_tensors:
        number, values, size = TYPES[t]
        dims = (n_in,) if t == "f32" else (n_in, n_out)
        table.append(text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, number, at))
        at += -(-n_in * n_out // values * size // ALIGNMENT) * ALIGNMENT
    rng = np.random.default_rng(1)
    with open(out + ".part", "wb") as f:
        def pad():
            f.write(bytes(-f.tell() % ALIGNMENT))
        f.write(b"GGUF" + struct.pack("<IQQ", 3, len(table), len(entries)) + b"".join(entries) + b"".join(table))
        pad()
        for name, n_in, n_out, t in all_tensors:
            if t == "f32":
                f.write((np.ones if "norm" in name else np.zeros)(n_in, np.float32).tobytes())
            else:
                f.write(random_blocks(rng, t, n_in * n_out))
            pad()
    os.rename(out + ".part", out)


if __name__ == "__main__":
    if len(sys.argv) != 5 or sys.argv[1] not in SHAPES or sys.argv[2] not in FILE_TYPE:
        sys.exit(__doc__)
    main(*sys.argv[1:])

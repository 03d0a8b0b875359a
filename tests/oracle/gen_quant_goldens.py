#!/usr/bin/env python3
"""Writes tests/fixtures/quants/TYPE.bin: random blocks of each GGUF weight format and what the `gguf` package makes of them.

Layout, little-endian: u32 bytes of blocks, u32 values, the blocks, the values as float32. Run it in a virtual environment with
`pip install gguf==0.19.0`; the files are committed, so the tests need neither Python nor the package.
"""
import pathlib
import struct

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

OUT = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "quants"
# Byte offsets of the fp16 numbers in a block; every other byte is random.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}


def finite_half(rng):
    """A finite fp16: ordinary numbers of both signs, now and then a subnormal or a large one."""
    kind = rng.integers(8)
    if kind == 0:
        return np.uint16(rng.integers(0x0400) | rng.integers(2) << 15).tobytes()
    if kind == 1:
        return np.float16(rng.uniform(-60000, 60000)).tobytes()
    return np.float16(rng.uniform(-0.1, 0.1)).tobytes()


def blocks(t, n, rng):
    size = GGML_QUANT_SIZES[t][1]
    out = bytearray(rng.integers(0, 256, n * size, dtype=np.uint8).tobytes())
    for b in range(n):
        for at in HALVES[t]:
            out[b * size + at:b * size + at + 2] = finite_half(rng)
    return bytes(out)


def main():
    rng = np.random.default_rng(20261124)
    OUT.mkdir(parents=True, exist_ok=True)
    for t in HALVES:
        values, _ = GGML_QUANT_SIZES[t]
        data = blocks(t, 6 if values == 256 else 24, rng)
        want = dequantize(np.frombuffer(data, dtype=np.uint8), t).astype("<f4")
        write(t.name, data, want)
    for t, dtype in ((T.F16, "<f2"), (T.F32, "<f4")):
        values = rng.normal(0, 1, 256).astype(dtype)
        write(t.name, values.tobytes(), values.astype("<f4"))
    data = rng.normal(0, 1, 256).astype("<f4").view("<u4") >> 16
    write("BF16", data.astype("<u2").tobytes(), dequantize(data.astype("<u2").view(np.uint8), T.BF16).astype("<f4"))


def write(name, data, want):
    head = struct.pack("<II", len(data), want.size)
    (OUT / f"{name}.bin").write_bytes(head + data + want.tobytes())


if __name__ == "__main__":
    main()

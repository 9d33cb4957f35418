#!/usr/bin/env python3
"""Golden blocks for tests/unit/backend/test_dtype.c, by the `gguf` package (and torch for the 8-bit floats).

Writes tests/golden/dtypes/<type>.bin: uint32 elements, uint32 bytes, the bytes as stored, the elements as fp32.
Block scales are drawn as sane fp16; everything else is random bytes from a fixed seed.
"""
import pathlib
import struct
import sys

import gguf
import numpy as np
import torch

OUT = pathlib.Path(__file__).parent.parent / "tests" / "golden" / "dtypes"
BLOCKS = 6
# fp16 scales inside a block
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": []}


def write(name, raw, values):
    values = np.ascontiguousarray(values, dtype="<f4").ravel()
    raw = np.ascontiguousarray(raw, dtype=np.uint8).ravel()
    (OUT / f"{name}.bin").write_bytes(struct.pack("<II", values.size, raw.size) + raw.tobytes() + values.tobytes())


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    for name, places in SCALES.items():
        kind = getattr(gguf.GGMLQuantizationType, name)
        _, size = gguf.GGML_QUANT_SIZES[kind]
        raw = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
        for place in places:
            raw[:, place:place + 2] = rng.normal(0, 0.1, BLOCKS).astype("<f2")[:, None].view(np.uint8).reshape(BLOCKS, 2)
        if name == "MXFP4":
            raw[:, 0] = [0, 1, 2, 120, 127, 200]
        write(name, raw, gguf.quants.dequantize(raw, kind))
    every = np.arange(256, dtype=np.uint8)
    for name, kind in (("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)):
        write(name, every, torch.from_numpy(every.copy()).view(kind).float().numpy())
    halves = np.arange(0, 65536, 13, dtype="<u2")
    write("F16", halves.view(np.uint8), halves.view("<f2").astype("<f4"))
    write("BF16", halves.view(np.uint8), (halves.astype("<u4") << 16).view("<f4"))
    print(f"gguf {gguf.__file__} torch {torch.__version__}", file=sys.stderr)


main()

"""Writes a checkpoint of a published model's shape with random weights, for measurements: the speed of such a model is that of
the real one, its answers are noise.

    python3 tools/make_shape.py SHAPE OUT_DIR [--quick]     SHAPE: qwen3-0.6b, qwen3-1.7b, smollm2-135m, llama-3.2-1b,
                                                            llama-3.1-8b

bf16 safetensors (magnitudes from 0.002 to 0.03), config.json, and a byte-level BPE tokenizer with as many tokens, merged at random:
it takes as long to load as a real one. Some 30 MB are in memory at a time. --quick repeats one random block instead of drawing every
weight.
"""
import argparse
import json
import math
import pathlib
import random
import shutil
import struct

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHAPES = {  # type, layers, hidden, intermediate, heads, kv heads, head dim, vocabulary, context
    "qwen3-0.6b": ("qwen3", 28, 1024, 3072, 16, 8, 128, 151936, 40960),
    "qwen3-1.7b": ("qwen3", 28, 2048, 6144, 16, 8, 128, 151936, 40960),
    "smollm2-135m": ("llama", 30, 576, 1536, 9, 3, 64, 49152, 8192),
    "llama-3.2-1b": ("llama", 16, 2048, 8192, 32, 8, 64, 128256, 131072),
    "llama-3.1-8b": ("llama", 32, 4096, 14336, 32, 8, 128, 128256, 131072),
}
BLOCK = 1 << 22  # weights drawn at once
HIGH_BYTES = bytes((0x3B, 0x3C, 0xBB, 0xBC)[i % 4] for i in range(256))  # sign and exponent of bf16
TOKEN_CHARS_MAX = 9
SPECIAL = 3  # tokens in front


def tensors(kind, layers, hidden, inner, heads, kv_heads, dim, vocabulary):
    """(name, shape, constant) in file order; constant None: random."""
    yield "model.embed_tokens.weight", (vocabulary, hidden), None
    for layer in range(layers):
        p = f"model.layers.{layer}."
        yield p + "input_layernorm.weight", (hidden,), 1.0
        for name, rows in (("q", heads * dim), ("k", kv_heads * dim), ("v", kv_heads * dim)):
            yield p + f"self_attn.{name}_proj.weight", (rows, hidden), None
        if kind == "qwen3":
            yield p + "self_attn.q_norm.weight", (dim,), 1.0
            yield p + "self_attn.k_norm.weight", (dim,), 1.0
        yield p + "self_attn.o_proj.weight", (hidden, heads * dim), None
        yield p + "post_attention_layernorm.weight", (hidden,), 1.0
        yield p + "mlp.gate_proj.weight", (inner, hidden), None
        yield p + "mlp.up_proj.weight", (inner, hidden), None
        yield p + "mlp.down_proj.weight", (hidden, inner), None
    yield "model.norm.weight", (hidden,), 1.0


def drawn(rng, n):
    out = bytearray(2 * n)
    out[0::2] = rng.randbytes(n)
    out[1::2] = rng.randbytes(n).translate(HIGH_BYTES)
    return out


def write(path, all_tensors, quick):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in all_tensors:
        n = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + n]}
        at += n
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    rng = random.Random(1)
    block = drawn(rng, BLOCK) if quick else None
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        for _, shape, constant in all_tensors:
            left = math.prod(shape)
            while left:
                n = min(left, BLOCK)
                if constant is not None:
                    f.write(struct.pack("<f", constant)[2:] * n)
                else:
                    f.write(block[:2 * n] if quick else drawn(rng, n))
                left -= n


def tokenizer(small, n_ids):
    """The small tokenizer's bytes and special tokens, and merges of random pairs up to n_ids tokens."""
    model, rng = small["model"], random.Random(1)
    vocab = {text: i for text, i in model["vocab"].items() if i < SPECIAL + 256}
    texts, merges = [t for t in vocab if len(t) == 1 and t.isascii()] + ["\u0120"], []  # as in most real tokens; the space
    while len(vocab) < n_ids:
        left, right = rng.choice(texts), rng.choice(texts)
        text = left + right
        if len(text) <= TOKEN_CHARS_MAX and text not in vocab:
            vocab[text] = len(vocab)
            texts.append(text)
            merges.append([left, right])
    model["vocab"], model["merges"] = vocab, merges
    return small


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("shape", choices=SHAPES)
    p.add_argument("out", type=pathlib.Path)
    p.add_argument("--quick", action="store_true")
    a = p.parse_args()
    kind, layers, hidden, inner, heads, kv_heads, dim, vocabulary, context = SHAPES[a.shape]
    a.out.mkdir(parents=True, exist_ok=True)
    write(a.out / "model.safetensors", list(tensors(kind, layers, hidden, inner, heads, kv_heads, dim, vocabulary)), a.quick)
    config = {"model_type": kind, "architectures": [kind.capitalize() + "ForCausalLM"], "num_hidden_layers": layers,
              "hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": heads,
              "num_key_value_heads": kv_heads, "head_dim": dim, "vocab_size": vocabulary, "max_position_embeddings": context,
              "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
              "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 2}
    (a.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    golden = ROOT / "tests/golden/models/qwen3-bf16"
    small = json.loads((golden / "tokenizer.json").read_text())
    (a.out / "tokenizer.json").write_text(json.dumps(tokenizer(small, vocabulary), ensure_ascii=False))
    shutil.copy(golden / "tokenizer_config.json", a.out / "tokenizer_config.json")


if __name__ == "__main__":
    main()

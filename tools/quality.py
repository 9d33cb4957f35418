"""What profiles cost in quality: KL divergence, perplexity and equal first choices on real text, beside bitsandbytes.

    pip install torch==2.15.* transformers==5.24.* gguf bitsandbytes
    make build/libinferd.a && python tools/quality.py models/smollm2.gguf TEXT...

The GGUF is dequantized to a checkpoint of bf16 weights, which is what "exact" means below (its log-probabilities come from
transformers in fp32). Our profiles load that checkpoint; bitsandbytes' rows are transformers with every linear layer (but
the head) computed from weights as the library holds them: nf4 dequantized by it, int8 as LLM.int8() is described (a scale
for each output and each token, columns of activations above 6 left exact). Before it the same for the GGUF as it is, its codes
kept: what activations of 16 and of 8 bits cost.
"""
import copy
import functools
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
from transformers import AutoTokenizer

from check_smollm2 import build, load_reference

WINDOW = 256
WINDOWS_A_TEXT = 6


def windows(tokenizer, paths):
    out = []
    for path in paths:
        text = open(path, encoding="utf-8", errors="replace").read()
        ids = tokenizer(text[len(text) // 3:][:WINDOW * WINDOWS_A_TEXT * 8], add_special_tokens=False)["input_ids"]
        out += [ids[i * WINDOW:(i + 1) * WINDOW] for i in range(WINDOWS_A_TEXT)]
    assert all(len(w) == WINDOW for w in out), "a text is too short"
    return out


@torch.no_grad()
def torch_logprobs(model, all_ids):
    return np.stack([torch.log_softmax(model(torch.tensor([ids])).logits[0], -1).numpy() for ids in all_ids])


def ours(program, folder, all_ids, profile):
    text = " ".join(str(i) for ids in all_ids for i in ids)
    run = subprocess.run([program, folder, profile, "f32", str(WINDOW), "2", "auto", str(WINDOW)], input=text.encode(),
                         check=True, stdout=subprocess.PIPE)
    return np.frombuffer(run.stdout, np.float32).reshape(len(all_ids), WINDOW, -1)


def row(name, have, want, all_ids):
    kl = (np.exp(want) * (want - have)).sum(-1, dtype=np.float64)
    following = np.array(all_ids)[:, 1:, None]
    loss = lambda x: -np.take_along_axis(x[:, :-1], following, -1).mean(dtype=np.float64)
    same = (have.argmax(-1) == want.argmax(-1)).mean()
    print(f"| {name} | {kl.mean():.5f} | {np.quantile(kl, 0.99):.4f} | {np.exp(loss(have)):.3f} | "
          f"{100 * (np.exp(loss(have) - loss(want)) - 1):+.2f} % | {100 * same:.2f} % |", flush=True)


def head(want):
    print(f"\n{want.shape[0] * want.shape[1]} tokens\n\n| weights | KL mean | KL 99 % | perplexity | change | same first |")
    print("|---|---|---|---|---|---|", flush=True)


def with_bitsandbytes(model, forward):
    """The same model with forward(layer, x) for its linear layers; restores them afterwards."""
    layers = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    for m in layers:
        m.forward = functools.partial(forward, m)
    yield model
    for m in layers:
        del m.forward
        m.__dict__.pop("dequantized", None)


def nf4(layer, x):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    if "dequantized" not in layer.__dict__:
        stored = quantize_4bit(layer.weight.data, blocksize=64, quant_type="nf4", compress_statistics=True)
        layer.__dict__["dequantized"] = dequantize_4bit(*stored).float()
    return torch.nn.functional.linear(x, layer.__dict__["dequantized"], layer.bias)


def rounded(x):
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return torch.round(x / scale) * scale


def int8(layer, x):
    large = (x.abs() > 6).flatten(0, -2).any(0)
    small = torch.nn.functional.linear(rounded(torch.where(large, 0, x)), rounded(layer.weight), layer.bias)
    return small + x[..., large] @ layer.weight[:, large].T


def main():
    path, texts = sys.argv[1], sys.argv[2:]
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(os.path.dirname(os.path.abspath(path)), gguf_file=os.path.basename(path))
    all_ids = windows(tokenizer, texts)
    model = load_reference(path)
    with tempfile.TemporaryDirectory() as folder:
        program = build(folder)
        want = torch_logprobs(model, all_ids)
        head(want)
        for profile in ("native", "int8"):
            row(f"the file, {profile}", ours(program, path, all_ids, profile), want, all_ids)
        for p in model.parameters():
            p.data = p.data.to(torch.bfloat16).float()
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
        want = torch_logprobs(model, all_ids)
        head(want)
        row("exact (transformers)", want, want, all_ids)
        for profile in ("fp16", "int8", "int4"):
            row(profile, ours(program, folder, all_ids, profile), want, all_ids)
        for name, fn in (("bitsandbytes int8", int8), ("bitsandbytes nf4, double quantization", nf4)):
            for changed in with_bitsandbytes(model, fn):
                row(name, torch_logprobs(changed, all_ids), want, all_ids)


if __name__ == "__main__":
    main()

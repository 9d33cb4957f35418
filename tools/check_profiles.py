"""Compares profiles int8 and int4 with bitsandbytes' int8 and nf4 on the same weights: SmolLM2-135M-Instruct from its GGUF,
dequantized to fp32.

    pip install torch==2.15.* transformers==5.23.* gguf bitsandbytes
    make build/libinferd.a && python tools/check_profiles.py models/smollm2.gguf [TEXT_FILE ...]

Each is compared with transformers in fp32 over the ids of check_smollm2's text and of the files' first 2,000 characters:
mean difference of the next ids' log-probability, KL divergence, equal arg-max, perplexity; and the root mean square error
of one matrix. bitsandbytes keeps the embedding and the output matrix in floats; here they are quantized too, as served.
Fails where a profile of ours diverges more than the rival that it stands for.
"""
import os
import subprocess
import sys
import tempfile

import bitsandbytes.functional as bnb
import numpy as np
import torch
from transformers import AutoTokenizer

import check_smollm2

OUTLIER = 6.0  # LLM.int8: inputs with a greater magnitude are multiplied in floats


def log_probabilities(model, ids):
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1).numpy()


def nf4(w):
    packed, state = bnb.quantize_4bit(w.contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4")
    return bnb.dequantize_4bit(packed, state).reshape(w.shape).float()


def int8(w):
    most = w.abs().amax(dim=1, keepdim=True)
    return torch.round(w * (127 / most)) * (most / 127)


class Int8Linear(torch.nn.Module):
    """LLM.int8 by its formula: weights and activations to 8 bits with one scale a row; columns with outliers in floats."""

    def __init__(self, inner):
        super().__init__()
        self.weight, self.codes = inner.weight, int8(inner.weight)

    def forward(self, x):
        outliers = (x.abs() > OUTLIER).flatten(0, -2).any(dim=0)
        rest = torch.where(outliers, torch.zeros_like(x), x)
        most = rest.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12)
        rest = torch.round(rest * (127 / most)) * (most / 127)
        return rest @ self.codes.T + torch.where(outliers, x, torch.zeros_like(x)) @ self.codes.T


def replaced(model, change):
    """The model with every matrix of its layers changed, as bitsandbytes does (not the embedding, not the head)."""
    kept = {}
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, inner in list(parent.named_children()):
                if isinstance(inner, torch.nn.Linear):
                    kept[parent, name] = inner
                    setattr(parent, name, change(inner))
    return kept


def with_nf4(inner):
    out = torch.nn.Linear(inner.in_features, inner.out_features, bias=False)
    out.weight = torch.nn.Parameter(nf4(inner.weight.data), requires_grad=False)
    return out


def rms(have, want):
    return float(((have - want) ** 2).mean().sqrt() / (want ** 2).mean().sqrt())


def weight_error(folder, profile, w):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    program = os.path.join(folder, "weight_error")
    if not os.path.exists(program):
        subprocess.run(["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", f"-I{root}/src", "-o", program,
                        f"{root}/tools/weight_error.c", f"{root}/build/libinferd.a", "-lm", "-lpthread"], check=True)
    run = subprocess.run([program, profile, *map(str, w.shape)], input=w.numpy().tobytes(), stdout=subprocess.PIPE, check=True)
    return [float(v) for v in run.stdout.split()]


def main():
    path, texts = sys.argv[1], sys.argv[2:]
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(os.path.dirname(os.path.abspath(path)), gguf_file=os.path.basename(path))
    text = check_smollm2.TEXT + "".join(open(name, encoding="utf-8").read()[:2000] for name in texts)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    model = check_smollm2.load_reference(path)
    want = log_probabilities(model, ids)
    following = (np.arange(len(ids) - 1), np.array(ids[1:]))
    kl = {}

    def row(name, have, error, bits):
        kl[name] = (np.exp(want) * (want - have)).sum(axis=1).mean()
        near = np.abs(have - want)[following].mean()
        same = (have.argmax(axis=1) == want.argmax(axis=1)).mean()
        print(f"| {name} | {bits} | {error} | {near:.4f} | {kl[name]:.2e} | {same:.4f} | {np.exp(-have[following].mean()):.3f} |",
              flush=True)

    print(f"{len(ids)} ids, perplexity in fp32 {np.exp(-want[following].mean()):.3f}\n")
    print("| weights | bits a weight | RMS error of a matrix | mean difference | KL | same arg-max | perplexity |")
    print("|---|---|---|---|---|---|---|")
    one = model.model.layers[10].mlp.gate_proj.weight.data.clone()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, safe_serialization=True)
        program = check_smollm2.build(folder)
        for profile in ("int8", "int4"):
            error, bits = weight_error(folder, profile, one)
            have = check_smollm2.ours(program, folder, ids, profile, "f32", "auto").astype(np.float64)
            row(f"inferd {profile}", have, f"{error:.4f}", f"{bits:.2f}")
    for name, change, dequantized, bits in (("bitsandbytes int8", Int8Linear, int8(one), "8.03"),
                                            ("bitsandbytes nf4", with_nf4, nf4(one), "4.13")):
        kept = replaced(model, change)
        row(name, log_probabilities(model, ids), f"{rms(dequantized, one):.4f}", bits)
        for (parent, child), inner in kept.items():
            setattr(parent, child, inner)
    sys.exit(0 if kl["inferd int8"] <= kl["bitsandbytes int8"] and kl["inferd int4"] <= kl["bitsandbytes nf4"] else 1)


if __name__ == "__main__":
    main()

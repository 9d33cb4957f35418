"""Compares our log-probabilities of SmolLM2-135M-Instruct with transformers' (the GGUF dequantized to fp32).

    pip install torch==2.15.* transformers==5.23.* gguf
    make build/libinferd.a && python tools/check_smollm2.py models/smollm2.gguf [ISA]

Prints a table (profile, KV type, mean and largest difference, KL divergence, equal arg-max) and fails where a bound is
passed: fp16 with KV f32 at most 3e-3 anywhere, native at most 0.02 on average.
"""
import os
import subprocess
import sys
import tempfile

import gguf
import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

FP16_MAX = 3e-3
NATIVE_MEAN = 0.02
KV_TYPES = ("f32", "int24", "int16", "int8")
TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
PARTS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
         "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
TEXT = """<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
<|im_start|>user
What is the capital of France, and why did it become so important?<|im_end|>
<|im_start|>assistant
The capital of France is Paris. It grew on an island in the river Seine, where trade routes crossed, and became the seat \
of the kings in the tenth century. By 1300 it was one of the largest cities of Europe, with some 200,000 people, a \
university and a cathedral. In 1789 the revolution began there.

def fibonacci(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a

Era una notte buia e tempestosa; la pioggia cadeva a torrenti. 1 + 1 = 2, 17 * 3 = 51. The quick brown fox jumps over \
the lazy dog while the other animals watch in the warm light of the evening, and there is nothing that they would rather \
be doing than this; then the rain comes in from the sea, and everybody runs for the house.<|im_end|>
"""


def build(folder):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    out = os.path.join(folder, "logprobs")
    subprocess.run(["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", f"-I{root}/src", "-o", out, f"{root}/tools/logprobs.c",
                    f"{root}/build/libinferd.a", "-ljansson", "-lcrypto", "-lpcre2-8", "-lutf8proc", "-lm", "-lpthread"], check=True)
    return out


def ours(program, model, ids, profile, kv, isa):
    run = subprocess.run([program, model, profile, kv, "64", "2", isa], input=" ".join(map(str, ids)).encode(), check=True,
                         stdout=subprocess.PIPE)
    return np.frombuffer(run.stdout, np.float32).reshape(len(ids), -1)


def unpermute(w, heads):
    """GGUF stores llama's q and k with the two halves of a head interleaved; back to the order of transformers."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)


def hf_name(name):
    if name in TOP:
        return TOP[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{PARTS[part]}.{kind}"


def load_reference(path):
    """transformers' LlamaForCausalLM over the file's weights, dequantized by the gguf package."""
    reader = gguf.GGUFReader(path)
    get = lambda key: reader.fields["llama." + key].contents()
    heads, kv = get("attention.head_count"), get("attention.head_count_kv")
    config = LlamaConfig(vocab_size=get("vocab_size"), hidden_size=get("embedding_length"),
                         intermediate_size=get("feed_forward_length"), num_hidden_layers=get("block_count"),
                         num_attention_heads=heads, num_key_value_heads=kv, tie_word_embeddings=True,
                         max_position_embeddings=get("context_length"), rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
                         rope_parameters={"rope_type": "default", "rope_theta": get("rope.freq_base")})
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager", dtype=torch.float32)
    weights = {}
    for t in reader.tensors:
        w = gguf.dequantize(t.data, t.tensor_type).astype(np.float32)
        w = unpermute(w, heads) if "attn_q." in t.name else unpermute(w, kv) if "attn_k." in t.name else w
        weights[hf_name(t.name)] = torch.from_numpy(np.ascontiguousarray(w))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True)
    return model.eval()


def reference(path, ids):
    with torch.no_grad():
        return torch.log_softmax(load_reference(path)(torch.tensor([ids])).logits[0].double(), dim=-1).numpy()


def main():
    model, isa = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "auto"
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(os.path.dirname(os.path.abspath(model)), gguf_file=os.path.basename(model))
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    want = reference(model, ids)
    following = (np.arange(len(ids) - 1), np.array(ids[1:]))
    failed = False
    print("| profile | KV | mean of next ids | max of next ids | max of all ids | KL | same arg-max |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        program = build(folder)
        for profile, kv in (*(("fp16", kv) for kv in KV_TYPES), *(("native", kv) for kv in KV_TYPES)):
            have = ours(program, model, ids, profile, kv, isa).astype(np.float64)
            near = np.abs(have - want)[following]
            likely = np.abs(have - want)[want > -12]
            kl = (np.exp(want) * (want - have)).sum(axis=1).mean()
            same = (have.argmax(axis=1) == want.argmax(axis=1)).mean()
            print(f"| {profile} | {kv} | {near.mean():.2e} | {near.max():.2e} | {likely.max():.2e} | {kl:.2e} | {same:.3f} |")
            failed |= (profile, kv) == ("fp16", "f32") and near.max() > FP16_MAX
            failed |= profile == "native" and near.mean() > NATIVE_MEAN
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

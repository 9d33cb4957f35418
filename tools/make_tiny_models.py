"""Makes tests/golden/models/: tiny random checkpoints with odd shapes and what transformers computes with them.

    pip install torch==2.15.* transformers==5.23.* tokenizers gguf numpy
    python tools/make_tiny_models.py [OUT_DIR [NAME ...]]

Each folder holds a model as it would be published (config.json, safetensors, tokenizer files; or one GGUF model) and
golden.json, computed in fp32 (eager attention, weights widened from the stored type) for a fixed prompt of 200 ids:

    prompt          [200] ids
    next_logprobs   [199] log-probability of prompt[i + 1] at position i
    top_ids         [200][5] ids of the five largest logits at each position, descending
    top_logprobs    [200][5] their log-probabilities
    greedy_ids      [48] greedy continuation, decoded one at a time over a KV cache, end tokens ignored
    greedy_margins  [48] logit of the best id minus that of the second

Everything follows from fixed seeds: running it twice gives the same files.
"""
import json
import math
import os
import shutil
import sys
import zlib

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
import gguf
import safetensors.torch
import transformers
from transformers import (AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, GemmaConfig, GPT2Config, GraniteConfig,
                          LlamaConfig, MistralConfig, Olmo2Config, OPTConfig, Phi3Config, PhiConfig, Qwen2Config,
                          Qwen3Config, SmolLM3Config, Starcoder2Config)

VOCAB = 288
PROMPT = 200
CONTINUE = 48
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
TEXT = ("the quick brown fox jumps over the lazy dog while the other animals watch in the warm light of the evening "
        "and there is nothing that they would rather be doing than this; then the rain comes in from the sea ") * 40

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


# ---- Hugging Face checkpoints ---------------------------------------------------------------------------------------

def base(**kw):
    return dict(dict(vocab_size=VOCAB, bos_token_id=0, eos_token_id=2, max_position_embeddings=512), **kw)


def rope_scaled(kind, positions=512, **kw):
    return base(hidden_size=48, intermediate_size=88, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
                tie_word_embeddings=True, max_position_embeddings=positions,
                rope_parameters=dict(rope_type=kind, rope_theta=10000.0, **kw))


def old_rope(key):
    """The spelling of transformers 4: rope_theta beside rope_scaling, whose kind is under `key`."""
    def edit(c):
        p = c.pop("rope_parameters")
        c["rope_theta"] = p.pop("rope_theta")
        kind = p.pop("rope_type")
        c["rope_scaling"] = None if kind == "default" else dict({key: kind}, **p)
        c["torch_dtype"] = c.pop("dtype")
    return edit


SPECS = {
    # name: (config, stored type, std of the weights, options)
    "gpt2-f32": (GPT2Config(vocab_size=VOCAB, n_positions=256, n_embd=32, n_layer=2, n_head=4, bos_token_id=0,
                            eos_token_id=0), F32, 0.25, {}),
    "gpt2-odd-f16": (GPT2Config(vocab_size=VOCAB, n_positions=256, n_embd=60, n_layer=2, n_head=3, n_inner=76,
                                bos_token_id=0, eos_token_id=0), F16, 0.2, {}),
    "opt-f32": (OPTConfig(vocab_size=VOCAB, hidden_size=32, word_embed_proj_dim=32, ffn_dim=72, num_hidden_layers=2,
                          num_attention_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=0,
                          pad_token_id=1), F32, 0.25, {}),
    "opt-postnorm-f16": (OPTConfig(vocab_size=VOCAB, hidden_size=48, word_embed_proj_dim=24, ffn_dim=96,
                                   num_hidden_layers=3, num_attention_heads=3, max_position_embeddings=256,
                                   do_layer_norm_before=False, bos_token_id=0, eos_token_id=0, pad_token_id=1),
                         F16, 0.18, {}),
    "llama-bf16": (LlamaConfig(**base(hidden_size=64, intermediate_size=120, num_hidden_layers=2, num_attention_heads=4,
                                      num_key_value_heads=1)), BF16, 0.2, {"edit": old_rope("rope_type")}),
    "llama-tied-f32": (LlamaConfig(**base(hidden_size=36, intermediate_size=52, num_hidden_layers=2,
                                          num_attention_heads=3, num_key_value_heads=3, tie_word_embeddings=True,
                                          rms_norm_eps=1e-5)), F32, 0.25, {}),
    "llama-bias-f16": (LlamaConfig(**base(hidden_size=60, intermediate_size=84, num_hidden_layers=2,
                                          num_attention_heads=6, num_key_value_heads=2, head_dim=16,
                                          attention_bias=True, mlp_bias=True)), F16, 0.2, {}),
    "llama-sharded-bf16": (LlamaConfig(**base(hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                                              num_attention_heads=8, num_key_value_heads=4)), BF16, 0.2,
                           {"shard": "40KB"}),
    "llama-rope-llama3": (LlamaConfig(**rope_scaled("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                                    original_max_position_embeddings=64)), BF16, 0.25,
                          {"edit": old_rope("rope_type")}),
    "llama-rope-linear": (LlamaConfig(**rope_scaled("linear", factor=3.0)), BF16, 0.25, {"edit": old_rope("type")}),
    "llama-rope-dynamic": (LlamaConfig(**rope_scaled("dynamic", positions=128, factor=2.0)), BF16, 0.25, {}),
    "llama-rope-yarn": (LlamaConfig(**rope_scaled("yarn", factor=8.0, original_max_position_embeddings=64)), F16, 0.25,
                        {}),
    "llama-rope-longrope": (LlamaConfig(**rope_scaled(
        "longrope", factor=4.0, original_max_position_embeddings=128,
        short_factor=[1.0 + 0.05 * i for i in range(8)], long_factor=[1.0 + 0.7 * i for i in range(8)])), F16, 0.25, {}),
    "llama-rope-longrope-short": (LlamaConfig(**rope_scaled(
        "longrope", factor=2.0, original_max_position_embeddings=256,
        short_factor=[1.0 + 0.05 * i for i in range(8)], long_factor=[1.0 + 0.7 * i for i in range(8)])), BF16, 0.25, {}),
    "mistral-window-bf16": (MistralConfig(**base(hidden_size=56, intermediate_size=76, num_hidden_layers=3,
                                                 num_attention_heads=4, num_key_value_heads=2, sliding_window=32)),
                            BF16, 0.2, {}),
    "mistral-f16": (MistralConfig(**base(hidden_size=48, intermediate_size=100, num_hidden_layers=2,
                                         num_attention_heads=4, num_key_value_heads=2, head_dim=20,
                                         sliding_window=None, tie_word_embeddings=True)), F16, 0.25, {}),
    "qwen2-bf16": (Qwen2Config(**base(hidden_size=56, intermediate_size=112, num_hidden_layers=2, num_attention_heads=7,
                                      num_key_value_heads=1, sliding_window=16, use_sliding_window=False,
                                      tie_word_embeddings=True, vocab_size=304)), BF16, 0.25, {}),
    "qwen2-window-f16": (Qwen2Config(**base(hidden_size=48, intermediate_size=72, num_hidden_layers=3,
                                            num_attention_heads=4, num_key_value_heads=4, sliding_window=24,
                                            use_sliding_window=True, max_window_layers=1)), F16, 0.25, {}),
    "qwen2-f32": (Qwen2Config(**base(hidden_size=32, intermediate_size=60, num_hidden_layers=2, num_attention_heads=2,
                                     num_key_value_heads=1)), F32, 0.25, {"edit": old_rope("rope_type")}),
    "qwen3-bf16": (Qwen3Config(**base(hidden_size=40, intermediate_size=92, num_hidden_layers=3, num_attention_heads=5,
                                      num_key_value_heads=1, head_dim=24)), BF16, 0.25, {}),
    "qwen3-tied-f32": (Qwen3Config(**base(hidden_size=36, intermediate_size=48, num_hidden_layers=2,
                                          num_attention_heads=3, num_key_value_heads=3, head_dim=16,
                                          tie_word_embeddings=True)), F32, 0.25, {}),
    "qwen3-sharded-f16": (Qwen3Config(**base(hidden_size=48, intermediate_size=80, num_hidden_layers=2,
                                             num_attention_heads=6, num_key_value_heads=3, head_dim=20,
                                             attention_bias=True)), F16, 0.2, {"shard": "50KB"}),
    "smollm3-bf16": (SmolLM3Config(**base(hidden_size=48, intermediate_size=80, num_hidden_layers=4, num_attention_heads=3,
                                          num_key_value_heads=1, no_rope_layer_interval=3, pad_token_id=None)), BF16, 0.25,
                     {}),
    "granite-f16": (GraniteConfig(**base(hidden_size=48, intermediate_size=76, num_hidden_layers=2, num_attention_heads=4,
                                         num_key_value_heads=2, embedding_multiplier=6.0, residual_multiplier=0.3,
                                         attention_multiplier=0.2, logits_scaling=4.0, tie_word_embeddings=True)), F16,
                    0.25, {}),
    "olmo2-bf16": (Olmo2Config(**base(hidden_size=56, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4,
                                      num_key_value_heads=2, pad_token_id=None)), BF16, 0.25, {}),
    "phi3-partial-bf16": (Phi3Config(**base(hidden_size=64, intermediate_size=72, num_hidden_layers=2,
                                            num_attention_heads=4, num_key_value_heads=2, pad_token_id=None,
                                            rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                                                 partial_rotary_factor=0.75))), BF16, 0.25, {}),
    "phi3-longrope-f16": (Phi3Config(**base(hidden_size=48, intermediate_size=80, num_hidden_layers=2,
                                            num_attention_heads=3, num_key_value_heads=3, pad_token_id=None,
                                            sliding_window=150, original_max_position_embeddings=128,
                                            rope_parameters=dict(rope_type="longrope", rope_theta=10000.0,
                                                                 short_factor=[1.0 + 0.05 * i for i in range(8)],
                                                                 long_factor=[1.0 + 0.7 * i for i in range(8)]))), F16, 0.25,
                          {}),
    "phi-f16": (PhiConfig(**base(hidden_size=48, intermediate_size=84, num_hidden_layers=2, num_attention_heads=3,
                                 num_key_value_heads=1, rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                                                             partial_rotary_factor=0.5))), F16, 0.2, {}),
    "starcoder2-bf16": (Starcoder2Config(**base(hidden_size=48, intermediate_size=100, num_hidden_layers=2,
                                                num_attention_heads=4, num_key_value_heads=2, sliding_window=48)), BF16, 0.2,
                        {}),
    "gemma-bf16": (GemmaConfig(**base(hidden_size=48, intermediate_size=72, num_hidden_layers=2, num_attention_heads=3,
                                      num_key_value_heads=1, head_dim=24, pad_token_id=None)), BF16, 0.2, {}),
    "gemma2-bf16": (Gemma2Config(**base(hidden_size=48, intermediate_size=72, num_hidden_layers=3, num_attention_heads=4,
                                        num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=24, sliding_window=40,
                                        attn_logit_softcapping=5.0, final_logit_softcapping=8.0, pad_token_id=None)), BF16,
                    0.2, {}),
    "gemma3-bf16": (Gemma3TextConfig(**base(hidden_size=48, intermediate_size=80, num_hidden_layers=4,
                                            num_attention_heads=4, num_key_value_heads=1, head_dim=16,
                                            query_pre_attn_scalar=16, sliding_window=32, pad_token_id=None,
                                            layer_types=["sliding_attention", "full_attention"] * 2)), BF16, 0.1, {}),
}


def make_tokenizer():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=SPECIALS, show_progress=False,
                                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    assert t.get_vocab_size() == VOCAB
    return t


def write_tokenizer(folder):
    make_tokenizer().save(os.path.join(folder, "tokenizer.json"))
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIALS[0], "eos_token": SPECIALS[2],
                   "add_bos_token": False, "chat_template": TEMPLATE}, f, indent=1)


def randomize(model, std):
    """Norms and biases too: a model whose gains are all 1 hides errors."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            r = torch.randn(p.shape)
            if name.endswith("bias"):
                p.copy_(0.1 * r)
            elif p.dim() == 1:
                p.copy_(1 + 0.2 * r)
            else:
                p.copy_(std * r)


def rounded(x):
    return [rounded(v) for v in x] if isinstance(x, list) else float(f"{x:.7g}")


@torch.no_grad()
def golden(model, about):
    model.eval()
    g = torch.Generator().manual_seed(1234)
    prompt = torch.randint(3, VOCAB, (1, PROMPT), generator=g)
    out = model(prompt, use_cache=True)
    lp = torch.log_softmax(out.logits[0].float(), dim=-1)
    top = lp.topk(5, dim=-1)
    result = dict(about, prompt=prompt[0].tolist(),
                  next_logprobs=rounded(lp[:-1].gather(1, prompt[0, 1:, None])[:, 0].tolist()),
                  top_ids=top.indices.tolist(), top_logprobs=rounded(top.values.tolist()))
    ids, margins, logits = [], [], out.logits[0, -1]
    cache = out.past_key_values
    for i in range(CONTINUE):
        best = logits.topk(2)
        ids.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        step = model(torch.tensor([[ids[-1]]]), past_key_values=cache, use_cache=True,
                     position_ids=torch.tensor([[PROMPT + i]]))
        logits, cache = step.logits[0, -1], step.past_key_values
    result.update(greedy_ids=ids, greedy_margins=rounded(margins))
    return result


def write_golden(folder, result):
    with open(os.path.join(folder, "golden.json"), "w") as f:
        f.write("{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in result.items()) + "\n}\n")
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    best = [math.exp(t[0]) for t in result["top_logprobs"]]
    print(f"{os.path.basename(folder):28} {size:8} bytes, mean top probability {sum(best) / len(best):.3f}, "
          f"least margin {min(result['greedy_margins']):.4f}, {len(set(result['greedy_ids']))} distinct ids")


def versions():
    return {"made_with": f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, fp32"}


def fresh_folder(out, name):
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    return folder


def make_checkpoint(out, name):
    config, dtype, std, options = SPECS[name]
    folder = fresh_folder(out, name)
    torch.manual_seed(zlib.crc32(name.encode()))
    model = AutoModelForCausalLM.from_config(config, dtype=F32)
    randomize(model, std)
    model.to(dtype).save_pretrained(folder, max_shard_size=options.get("shard", "1GB"))
    if "edit" in options:
        path = os.path.join(folder, "config.json")
        with open(path) as f:
            c = json.load(f)
        options["edit"](c)
        with open(path, "w") as f:
            json.dump(c, f, indent=2)
    write_tokenizer(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=F32, attn_implementation="eager")
    write_golden(folder, golden(loaded, versions()))


# ---- GGUF -----------------------------------------------------------------------------------------------------------

Q = gguf.GGMLQuantizationType

# name: (architecture, sizes, {part of a tensor's name: type}, options). The first part that matches counts.
GGUF_SPECS = {
    "gguf-llama-q8_0-split": ("llama", dict(hidden=64, heads=4, kv=2, head_dim=16, inner=96, layers=2, tied=True),
                              {"": Q.Q8_0}, {"split": 3}),
    "gguf-llama-f16-rope": ("llama", dict(hidden=64, heads=2, kv=1, head_dim=32, inner=96, layers=2, tied=False),
                            {"": Q.F16}, {"llama3": True, "align": 64}),
    "gguf-llama-q4_k_m": ("llama", dict(hidden=256, heads=4, kv=2, head_dim=64, inner=256, layers=2, tied=False),
                          {"attn_v": Q.Q6_K, "ffn_down": Q.Q6_K, "output": Q.Q6_K, "": Q.Q4_K}, {}),
    "gguf-llama-mixed": ("llama", dict(hidden=256, heads=8, kv=1, head_dim=32, inner=256, layers=2, tied=True),
                         {"attn_q": Q.Q2_K, "attn_k": Q.Q3_K, "attn_v": Q.Q5_K, "attn_output": Q.IQ4_XS,
                          "ffn_gate": Q.IQ4_NL, "ffn_up": Q.Q5_1, "ffn_down": Q.MXFP4, "token_embd": Q.Q6_K}, {}),
    "gguf-qwen2-q4_0": ("qwen2", dict(hidden=64, heads=4, kv=1, head_dim=16, inner=128, layers=2, tied=True),
                        {"token_embd": Q.Q8_0, "": Q.Q4_0}, {"linear": 2.0}),
    "gguf-qwen2-q5_0": ("qwen2", dict(hidden=96, heads=3, kv=3, head_dim=32, inner=128, layers=2, tied=False),
                        {"output.weight": Q.BF16, "ffn_down": Q.F32, "": Q.Q5_0}, {}),
    "gguf-qwen3-q4_1": ("qwen3", dict(hidden=64, heads=4, kv=2, head_dim=32, inner=96, layers=3, tied=False),
                        {"": Q.Q4_1}, {}),
}

HF_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight",
    "output_norm.weight": "model.norm.weight", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def hf_name(name):
    if name in HF_NAMES:
        return HF_NAMES[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{HF_NAMES[part]}.{kind}"


# K types: bytes of a block, where its fp16 scale lies, where its fp16 minimum lies and the mean quant that the minimum
# has to cancel. Any bytes are a valid block, so blocks are drawn at random and only the two scales are chosen.
BLOCKS = {Q.Q2_K: (84, 80, 82, 1.5), Q.Q3_K: (110, 108, None, 0), Q.Q4_K: (144, 0, 2, 7.5), Q.Q5_K: (176, 0, 2, 15.5),
          Q.Q6_K: (210, 208, None, 0), Q.IQ4_NL: (18, 0, None, 0), Q.IQ4_XS: (136, 0, None, 0)}


def random_blocks(rng, kind, shape, std):
    size, d_at, min_at, ratio = BLOCKS[kind]
    elements = gguf.GGML_QUANT_SIZES[kind][0]
    raw = rng.integers(0, 256, (shape[0], shape[1] // elements, size), dtype=np.uint8)

    def scale(d):
        raw[..., d_at:d_at + 2] = d.astype(np.float16)[..., None].view(np.uint8)
        if min_at is not None:
            raw[..., min_at:min_at + 2] = (d * ratio).astype(np.float16)[..., None].view(np.uint8)
        return gguf.dequantize(raw.reshape(shape[0], -1), kind)

    spread = rng.uniform(0.8, 1.25, raw.shape[:2])
    have = scale(2.0 ** -10 * spread).std() * 2.0 ** 10
    scale(std / have * spread)
    return raw.reshape(shape[0], -1)


def stored(rng, kind, shape, std):
    """(bytes or floats as the file stores them, what they mean in fp32)"""
    x = (std * rng.standard_normal(shape)).astype(np.float32)
    if kind == Q.F32:
        return x, x
    if kind == Q.F16:
        return x.astype(np.float16), x.astype(np.float16).astype(np.float32)
    raw = random_blocks(rng, kind, shape, std) if kind in BLOCKS else gguf.quantize(x, kind)
    return raw, gguf.dequantize(raw, kind)


def unpermute(w, heads):
    """GGUF stores llama's q and k with the two halves of a head interleaved; back to the order of transformers."""
    rows = w.shape[0] // heads
    return w.reshape(heads, rows // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def tensor_shapes(arch, s):
    q, kv = s["heads"] * s["head_dim"], s["kv"] * s["head_dim"]
    yield "token_embd.weight", (VOCAB, s["hidden"])
    for i in range(s["layers"]):
        b = f"blk.{i}."
        yield b + "attn_norm.weight", (s["hidden"],)
        for part, rows in (("q", q), ("k", kv), ("v", kv)):
            yield f"{b}attn_{part}.weight", (rows, s["hidden"])
            if arch == "qwen2":
                yield f"{b}attn_{part}.bias", (rows,)
        if arch == "qwen3":
            yield b + "attn_q_norm.weight", (s["head_dim"],)
            yield b + "attn_k_norm.weight", (s["head_dim"],)
        yield b + "attn_output.weight", (s["hidden"], q)
        yield b + "ffn_norm.weight", (s["hidden"],)
        yield b + "ffn_gate.weight", (s["inner"], s["hidden"])
        yield b + "ffn_up.weight", (s["inner"], s["hidden"])
        yield b + "ffn_down.weight", (s["hidden"], s["inner"])
    yield "output_norm.weight", (s["hidden"],)
    if not s["tied"]:
        yield "output.weight", (VOCAB, s["hidden"])


LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)


def llama3_divisors(head_dim, theta):
    """rope_freqs.weight: what each frequency is divided by (the rule of transformers' llama3 scaling)."""
    freq = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    wave = 2 * math.pi / freq
    low = LLAMA3["original_max_position_embeddings"] / LLAMA3["low_freq_factor"]
    high = LLAMA3["original_max_position_embeddings"] / LLAMA3["high_freq_factor"]
    smooth = (LLAMA3["original_max_position_embeddings"] / wave - LLAMA3["low_freq_factor"]) / (
        LLAMA3["high_freq_factor"] - LLAMA3["low_freq_factor"])
    middle = 1.0 / ((1 - smooth) / LLAMA3["factor"] + smooth)
    return np.where(wave < high, 1.0, np.where(wave > low, LLAMA3["factor"], middle)).astype(np.float32)


def write_metadata(w, name, arch, s, options):
    w.add_name(name)
    w.add_context_length(512)
    w.add_embedding_length(s["hidden"])
    w.add_block_count(s["layers"])
    w.add_feed_forward_length(s["inner"])
    w.add_head_count(s["heads"])
    w.add_head_count_kv(s["kv"])
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_vocab_size(VOCAB)
    if arch == "llama":
        w.add_rope_dimension_count(s["head_dim"])
    if s["head_dim"] * s["heads"] != s["hidden"]:
        w.add_key_length(s["head_dim"])
        w.add_value_length(s["head_dim"])
    if "linear" in options:
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(options["linear"])
    t = json.loads(make_tokenizer().to_str())
    vocab = sorted(t["model"]["vocab"], key=t["model"]["vocab"].get)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2" if arch == "llama" else "qwen2")
    w.add_token_list(vocab)
    w.add_token_types([gguf.TokenType.CONTROL if v in SPECIALS else gguf.TokenType.NORMAL for v in vocab])
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in t["model"]["merges"]])
    w.add_bos_token_id(0)
    w.add_eos_token_id(2)
    w.add_add_bos_token(False)
    w.add_chat_template(TEMPLATE)


def gguf_config(arch, s, options):
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if "linear" in options:
        rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": options["linear"]}
    if "llama3" in options:
        rope = dict(LLAMA3, rope_type="llama3", rope_theta=10000.0)
    kw = base(hidden_size=s["hidden"], intermediate_size=s["inner"], num_hidden_layers=s["layers"],
              num_attention_heads=s["heads"], num_key_value_heads=s["kv"], tie_word_embeddings=s["tied"],
              rms_norm_eps=1e-5, rope_parameters=rope)
    if arch != "qwen2":
        kw["head_dim"] = s["head_dim"]
    return {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[arch](**kw)


def make_gguf(out, name):
    arch, s, kinds, options = GGUF_SPECS[name]
    folder = fresh_folder(out, name)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    split = options.get("split", 0)
    w = gguf.GGUFWriter(os.path.join(folder, "model.gguf"), arch, split_max_tensors=-(-20 // split) if split else 0)
    write_metadata(w, name, arch, s, options)
    if "align" in options:
        w.add_custom_alignment(options["align"])
    weights = {}
    if "llama3" in options:
        w.add_tensor("rope_freqs.weight", llama3_divisors(s["head_dim"], 10000.0))
    for tensor, shape in tensor_shapes(arch, s):
        if len(shape) == 1:
            x = rng.standard_normal(shape).astype(np.float32)
            x = 0.1 * x if tensor.endswith("bias") else 1 + np.float32(0.2) * x
            raw, kind = x, Q.F32
        else:
            kind = next(kinds[k] for k in kinds if k in tensor)
            raw, x = stored(rng, kind, shape, 1.6 / math.sqrt(shape[1]))
        w.add_tensor(tensor, raw, raw_dtype=None if kind in (Q.F32, Q.F16) else kind)
        if arch == "llama" and (".attn_q." in tensor or ".attn_k." in tensor):
            x = unpermute(x, s["heads"] if ".attn_q." in tensor else s["kv"])
        weights[hf_name(tensor)] = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    model = AutoModelForCausalLM.from_config(gguf_config(arch, s, options), dtype=F32, attn_implementation="eager")
    if s["tied"]:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True)
    write_golden(folder, golden(model, versions()))


# ---- checkpoints that come quantized --------------------------------------------------------------------------------
#
# Every linear layer but the head is stored in a published format, written here by hand; check_quantized() holds what was
# written against compressed-tensors and bitsandbytes where they are installed. The golden values are those of the
# dequantized weights in fp32.

def pack_words(codes, bits, dim):
    """int32 words of 32 / bits codes along `dim`, the first in the lowest bits; a partial last word is filled with 0."""
    per = 32 // bits
    c = codes.to(torch.int64).movedim(dim, -1)
    c = torch.nn.functional.pad(c, (0, -c.shape[-1] % per)).unflatten(-1, (-1, per))
    words = (c << (bits * torch.arange(per))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32).movedim(-1, dim).contiguous()


def quantize(w, bits, group, symmetric, dtype, order=None):
    """Codes 0 .. 2^bits - 1 [out][in], scales and zero points [out][groups], and w as they give it. `order`: inputs sorted
    by group."""
    n_out, n_in = w.shape
    order = torch.arange(n_in) if order is None else order
    index = torch.empty(n_in, dtype=torch.int64)
    index[order] = torch.arange(n_in) // group
    top, scales, zeros = 2**bits - 1, [], []
    for g in range(-(-n_in // group)):
        part = w[:, index == g]
        high, low = part.amax(1).clamp(min=0), part.amin(1).clamp(max=0)
        s = (torch.maximum(high, -low) * 2 if symmetric else high - low) / top
        s = s.to(dtype).float()
        scales.append(s)
        zeros.append(torch.full_like(s, 2**(bits - 1)) if symmetric else torch.round(-low / s).clamp(1, top))
    scales, zeros = torch.stack(scales, 1), torch.stack(zeros, 1)
    codes = (torch.round(w / scales[:, index]) + zeros[:, index]).clamp(0, top)
    return codes, scales, zeros, index, scales[:, index] * (codes - zeros[:, index])


def gptq(w, o, order):
    codes, s, z, index, w = quantize(w, o["bits"], o["group"] or w.shape[1], o["sym"], F16, order)
    v1 = 0 if o.get("v2") else 1
    return {"qweight": pack_words(codes.T, o["bits"], 0), "qzeros": pack_words((z - v1).T, o["bits"], 1),
            "scales": s.T.to(F16).contiguous(), "g_idx": index.to(torch.int32)}, w


def awq(w, o, order):
    codes, s, z, _, w = quantize(w, 4, o["group"], False, F16)
    shuffle = lambda x: x.unflatten(1, (-1, 8))[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].flatten(1)
    return {"qweight": pack_words(shuffle(codes.T), 4, 1), "qzeros": pack_words(shuffle(z.T), 4, 1),
            "scales": s.T.to(F16).contiguous()}, w


def packed(w, o, order):
    codes, s, z, index, w = quantize(w, o["bits"], o["group"] or w.shape[1], o["sym"], BF16, order)
    t = {"weight_packed": pack_words(codes, o["bits"], 1), "weight_scale": s.to(BF16),
         "weight_shape": torch.tensor(w.shape)}
    if not o["sym"]:
        t["weight_zero_point"] = pack_words(z, o["bits"], 0)
    if order is not None:
        t["weight_g_idx"] = index.to(torch.int32)
    return t, w


def bytes8(w, o, order):
    codes, s, z, _, w = quantize(w, 8, w.shape[1], o["sym"], BF16)
    t = {"weight": (codes - 128).to(torch.int8), "weight_scale": s.to(BF16)}
    if not o["sym"]:
        t["weight_zero_point"] = (z - 128).to(torch.int8)
    return t, w


def float8(w, o, order):
    s = (w.abs().amax(1, keepdim=True) / 448).to(BF16)
    q = (w / s.float()).to(torch.float8_e4m3fn)
    return {"weight": q, "weight_scale": s}, q.float() * s.float()


def blocks8(w, o, order):
    high, wide = o.get("block", (128, 128))
    s = torch.zeros(-(-w.shape[0] // high), -(-w.shape[1] // wide))
    for i in range(s.shape[0]):
        for j in range(s.shape[1]):
            s[i, j] = w[high * i:high * i + high, wide * j:wide * j + wide].abs().max() / 448
    wide = s.repeat_interleave(high, 0)[:w.shape[0]].repeat_interleave(wide, 1)[:, :w.shape[1]]
    q = (w / wide).to(torch.float8_e4m3fn)
    return {"weight": q, "weight_scale_inv": s}, q.float() * wide


NF4 = torch.tensor([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                    0.7229568362236023, 1.0])


def nf4(w, o, order):
    """Double quantization: absmax in bytes by a table of 256 values, less their mean."""
    table = torch.cat([-torch.logspace(0, -6, 127, base=10.0), torch.zeros(1), torch.logspace(-6, 0, 128, base=10.0)])
    blocks = w.reshape(-1, 64)
    absmax = blocks.abs().amax(1)
    offset = float(absmax.mean())
    rest = torch.nn.functional.pad(absmax - offset, (0, -absmax.numel() % 256)).reshape(-1, 256)
    nested = rest.abs().amax(1)
    small = ((rest / nested[:, None])[:, :, None] - table).abs().argmin(-1)
    absmax = (table[small] * nested[:, None]).flatten()[:blocks.shape[0]] + torch.tensor(offset)
    codes = ((blocks / absmax[:, None])[:, :, None] - NF4).abs().argmin(-1)
    values = (NF4[codes] * absmax[:, None]).to(BF16).float().reshape(w.shape)
    flat = codes.flatten()
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(w.shape),
                        "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset})
    return {"weight": (flat[::2] * 16 + flat[1::2]).to(torch.uint8)[:, None],
            "weight.absmax": small.flatten()[:blocks.shape[0]].to(torch.uint8), "weight.quant_map": NF4.clone(),
            "weight.nested_absmax": nested, "weight.nested_quant_map": table,
            "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(state.encode()), dtype=torch.uint8)}, values


def int8_rows(w, o, order):
    scb = w.abs().amax(1)
    q = torch.round(w * 127 / scb[:, None]).to(torch.int8)
    return {"weight": q, "SCB": scb, "weight_format": torch.tensor(0, dtype=torch.uint8)}, q.float() * (scb / 127)[:, None]


def compressed_config(form, bits=8, kind="int", group=None, symmetric=True, **more):
    weights = dict(num_bits=bits, type=kind, symmetric=symmetric, group_size=group, dynamic=False, observer="minmax",
                   strategy="group" if group else "channel", **more)
    return {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None,
                                          "output_activations": None}}}


def quant_llama(**kw):
    return LlamaConfig(**dict(base(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                                   num_key_value_heads=2), **kw))


# name: (config, type of what is not quantized, function, its options, quantization_config). "reorder": which matrices share
# an order of inputs.
QUANT_SPECS = {
    "quant-gptq4": (quant_llama(), F16, gptq, dict(bits=4, group=32, sym=True),
                    dict(quant_method="gptq", bits=4, group_size=32, sym=True, desc_act=False, checkpoint_format="gptq")),
    "quant-gptq4-order": (Qwen2Config(**base(hidden_size=64, intermediate_size=80, num_hidden_layers=2,
                                             num_attention_heads=4, num_key_value_heads=1, sliding_window=None)), F16, gptq,
                          dict(bits=4, group=32, sym=False, v2=True, reorder=True),
                          dict(quant_method="gptq", bits=4, group_size=32, sym=False, desc_act=True,
                               checkpoint_format="gptq_v2")),
    "quant-gptq4-v1-asym": (quant_llama(intermediate_size=80), F16, gptq, dict(bits=4, group=64, sym=False, bias=True),
                            dict(quant_method="gptq", bits=4, group_size=64, sym=False, desc_act=False)),
    "quant-gptq8-order": (quant_llama(), BF16, gptq, dict(bits=8, group=32, sym=False, reorder=True),
                          dict(quant_method="gptq", bits=8, group_size=32, sym=False, desc_act=True)),
    "quant-gptq8-rows": (quant_llama(), F16, gptq, dict(bits=8, group=0, sym=True),
                         dict(quant_method="gptq", bits=8, group_size=-1, sym=True, desc_act=False)),
    "quant-awq": (quant_llama(), F16, awq, dict(group=32),
                  dict(quant_method="awq", bits=4, group_size=32, zero_point=True, version="gemm")),
    "quant-ct-int4-asym": (quant_llama(), BF16, packed, dict(bits=4, group=32, sym=False),
                           compressed_config("pack-quantized", 4, group=32, symmetric=False)),
    "quant-ct-int4-order": (quant_llama(), BF16, packed, dict(bits=4, group=32, sym=True, reorder=True),
                            compressed_config("pack-quantized", 4, group=32, actorder="group")),
    "quant-ct-int8": (quant_llama(), BF16, bytes8, dict(sym=True), compressed_config("int-quantized")),
    "quant-ct-fp8": (quant_llama(), BF16, float8, {}, compressed_config("float-quantized", kind="float")),
    "quant-fp8-blocks": (Qwen3Config(**base(hidden_size=144, intermediate_size=160, num_hidden_layers=1,
                                            num_attention_heads=4, num_key_value_heads=2, head_dim=32)), BF16, blocks8, {},
                         dict(quant_method="fp8", activation_scheme="dynamic", fmt="e4m3", weight_block_size=[128, 128])),
    # the scales of 64 x 64 have the shape that blocks of 32 x 32 would give
    "quant-fp8-odd-blocks": (quant_llama(num_hidden_layers=1), BF16, blocks8, dict(block=(48, 40)),
                             dict(quant_method="fp8", activation_scheme="dynamic", fmt="e4m3", weight_block_size=[48, 40])),
    "quant-bnb-nf4": (quant_llama(intermediate_size=128), BF16, nf4, {},
                      dict(quant_method="bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="nf4",
                           bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16")),
    "quant-bnb-int8": (quant_llama(), F16, int8_rows, {}, dict(quant_method="bitsandbytes", load_in_8bit=True)),
}


def order_of(name, n_in, options):
    """Matrices with the same inputs are reordered alike, but for gate and up, so that both cases are met."""
    if "reorder" not in options:
        return None
    layer, part = name.split(".")[2], name.split(".")[4]
    kind = "qkv" if part in ("q_proj", "k_proj", "v_proj") else part
    return torch.randperm(n_in, generator=torch.Generator().manual_seed(zlib.crc32(f"{layer}{kind}".encode())))


def check_quantized(method, options, w, stored, values):
    """What the official packages make of the tensors, where they are installed."""
    try:
        if method is packed and "reorder" not in options:
            from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
            codes = unpack_from_int32(stored["weight_packed"], options["bits"], torch.Size(w.shape)).float()
            zeros = 0
            if "weight_zero_point" in stored:
                s = stored["weight_scale"]
                zeros = unpack_from_int32(stored["weight_zero_point"], options["bits"], torch.Size(s.shape), packed_dim=0)
                zeros = zeros.float().repeat_interleave(options["group"], 1)
            theirs = stored["weight_scale"].float().repeat_interleave(options["group"], 1) * (codes - zeros)
        elif method is nf4:
            from bitsandbytes.functional import QuantState, dequantize_4bit
            parts = {k: v for k, v in stored.items() if k != "weight"}
            theirs = dequantize_4bit(stored["weight"], QuantState.from_dict(parts, device=torch.device("cpu"))).float()
        else:
            return 0
    except ImportError as e:
        print("not checked:", e)
        return 0
    worst = (theirs - values).abs().max().item()
    assert worst <= (values.abs().max().item() / 128 if method is nf4 else 1e-6), (method.__name__, worst)
    return 1


def make_quantized(out, name):
    config, dtype, method, options, about = QUANT_SPECS[name]
    folder = fresh_folder(out, name)
    torch.manual_seed(zlib.crc32(name.encode()))
    model = AutoModelForCausalLM.from_config(config, dtype=F32, attn_implementation="eager")
    randomize(model, 0.2)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(dtype).float())
    tensors, exact, checked = {}, {}, 0
    for key, w in model.state_dict().items():
        if key.endswith("_proj.weight"):
            stored, exact[key] = method(w, options, order_of(key, w.shape[1], options))
            checked += check_quantized(method, options, w, stored, exact[key])
            tensors.update({key[:-len("weight")] + k: v.contiguous() for k, v in stored.items()})
            if options.get("bias"):
                tensors[key[:-len("weight")] + "bias"] = torch.zeros(w.shape[0], dtype=dtype)
        else:
            tensors[key], exact[key] = w.to(dtype), w
    safetensors.torch.save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    config.quantization_config = about
    config.architectures = [type(model).__name__]
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(dict(config.to_dict(), quantization_config=about, dtype=str(dtype).split(".")[1]), f, indent=2)
    write_tokenizer(folder)
    model.load_state_dict(exact, strict=True)
    write_golden(folder, golden(model, versions()))
    if checked:
        print(f"{'':28} {checked} matrices checked with the official package")


def main():
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "tests", "golden", "models")
    only = sys.argv[2:]
    torch.set_num_threads(1)
    for name in SPECS:
        if not only or name in only:
            make_checkpoint(out, name)
    for name in GGUF_SPECS:
        if not only or name in only:
            make_gguf(out, name)
    for name in QUANT_SPECS:
        if not only or name in only:
            make_quantized(out, name)


if __name__ == "__main__":
    main()

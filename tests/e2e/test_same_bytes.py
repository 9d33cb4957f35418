"""R37 on every instruction set and in every profile: the same ids and log-probabilities alone and in a storm, with a warm and a
cold prefix cache, in small steps, with one thread."""
import concurrent.futures

import pytest

MODELS = {"llama-bf16": "fp16", "qwen3-bf16": "int8", "mistral-f16": "int4", "gguf-llama-q4_k_m": "native",
          "quant-gptq4-order": "native", "gguf-llama-mixed": "int8"}
STORM = 60
SETTINGS = [("--threads", "2"), ("--threads", "1", "--prefix-cache", "0", "--max-batch-tokens", "16", "--max-streams", "7")]


def opened(start, isa, flags):
    s = start("--isa", isa, *flags)
    for name, profile in MODELS.items():
        r = s.post(f"/models/{name}/load", {"profile": profile})
        assert r.status_code == 200, r.text
        assert s.get(f"/models/{name}").json()["profile"] == profile
    return s


def ask(server, i):
    """Prompts share beginnings of different lengths; two of three are drawn, each with its own seed."""
    prompt = [7 + i % 4] * (i % 11 * 9 + 1) + [20 + i % 13, 30 + i % 7]
    r = server.post("/v1/completions", {"model": list(MODELS)[i % len(MODELS)], "prompt": prompt, "max_tokens": 20, "seed": i,
                                        "temperature": 0 if i % 3 == 0 else 1, "logprobs": 3, "ignore_eos": True,
                                        "return_token_ids": True})
    assert r.status_code == 200, r.text
    choice = r.json()["choices"][0]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]


@pytest.mark.parametrize("isa", ["ref", "avx2", "avx512", "vnni", "amx"])
def test_storm(start, isa):
    first, second = (opened(start, isa, flags) for flags in SETTINGS)
    if f"cpu-{isa}" not in first.text():
        pytest.skip(f"this processor has no {isa}")
    alone = [ask(first, i) for i in range(STORM)]
    assert len({str(a) for a in alone}) == STORM
    for server in (first, second):
        for _ in range(2):
            with concurrent.futures.ThreadPoolExecutor(STORM) as pool:
                assert list(pool.map(lambda i: ask(server, i), range(STORM))) == alone

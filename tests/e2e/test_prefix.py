"""A prefix that many prompts begin with is computed once, also by those that arrive while it is being computed (R36)."""
import concurrent.futures
import random

MODEL = "llama-tied-f32"
PAGE, SHARED, OWN, REQUESTS = 32, 400, 20, 32


def test_shared_prefix_is_computed_once(start):
    s = start("--max-streams", "16", "--max-batch-tokens", "32", "--isa", "ref")  # the prefix takes many steps
    rng = random.Random(1)
    shared = [rng.randrange(3, 250) for _ in range(SHARED)]
    s.post("/v1/completions", {"model": MODEL, "prompt": [3], "max_tokens": 1})  # loads the model

    def ask(i):
        own = [3 + i] + [rng.randrange(3, 250) for _ in range(OWN - 1)]
        r = s.post("/v1/completions", {"model": MODEL, "prompt": shared + own, "max_tokens": 8, "ignore_eos": True}).json()
        return r["usage"]["prompt_tokens_details"]["cached_tokens"]

    with concurrent.futures.ThreadPoolExecutor(REQUESTS) as pool:
        cached = list(pool.map(ask, range(REQUESTS)))
    whole_pages = SHARED // PAGE * PAGE
    assert sorted(cached) == [0] + [whole_pages] * (REQUESTS - 1)
    assert s.metric("vllm:prefix_cache_hits_total", MODEL) == whole_pages * (REQUESTS - 1)

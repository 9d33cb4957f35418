"""--memory bounds the peak resident set, whatever is asked for (R38, C39)."""
import concurrent.futures
import json
import mmap

import pytest
import requests

from conftest import until

MODEL = "llama-tied-f32"
LIMIT = 160 << 20
MADV_POPULATE_WRITE = 23


def test_ceiling_under_load(start):
    s = start("--memory", str(LIMIT))
    s.post("/chat", {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
    descriptors = s.descriptors()
    long = "words and more words " * 2000
    bodies = [
        ("/chat", {"messages": [{"role": "user", "content": long * 20}]}),
        ("/tokenize", {"prompt": "a" * 3_000_000}),
        ("/tokenize", {"prompt": "x " * 200_000, "return_token_strs": True}),
        ("/v1/completions", {"prompt": [5] * 300, "n": 32, "max_tokens": 100, "logprobs": 20, "ignore_eos": True}),
        ("/v1/completions", {"prompt": [[5] * 100] * 60, "echo": True, "max_tokens": 0, "logprobs": 20}),
        ("/v1/completions", {"prompt": list(range(5, 200)) * 20000}),
        ("/chat", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 150, "n": 8, "logprobs": True,
                   "top_logprobs": 20, "stream": True, "ignore_eos": True}),
        ("/apply-template", {"messages": [{"role": "user", "content": "x"}] * 20000}),
    ]

    def ask(i):
        path, body = bodies[i % len(bodies)]
        r = requests.post(s.url + path, data=json.dumps({"model": MODEL, **body}), timeout=120)
        assert r.status_code in (200, 400, 413, 429, 503), r.text[:300]
        if r.status_code == 503:
            assert r.headers["Retry-After"] and str(LIMIT) in r.text or "--memory" in r.text
        return r.status_code

    raw = b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: 15000000\r\n\r\n" + b"x" * 1_000_000
    with concurrent.futures.ThreadPoolExecutor(48) as pool:
        held = [s.connect() for _ in range(30)]  # bodies that never end
        for c in held:
            c.settimeout(5)
            try:
                c.sendall(raw)
            except OSError:
                pass  # refused: there is no more room for bodies
        seen = set(pool.map(ask, range(160)))
        for c in held:
            c.close()
    assert 200 in seen and s.status("VmHWM") <= LIMIT, (seen, s.status("VmHWM") >> 20)
    assert s.post("/chat", {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}).status_code == 200
    assert until(lambda: s.descriptors() <= descriptors + 8)


def test_pages_have_memory_before_they_are_taken(start):
    """While nobody asks, the system gives memory for pages that no request has used: 35 MiB are all of this model's."""
    try:
        mmap.mmap(-1, mmap.PAGESIZE).madvise(MADV_POPULATE_WRITE)
    except OSError:
        pytest.skip("this kernel gives memory only when it is used")
    s = start()
    assert s.post("/v1/completions", {"model": MODEL, "prompt": [5, 6, 7], "max_tokens": 1}).status_code == 200
    assert until(lambda: s.status("VmRSS") > 40 << 20) and s.status("VmHWM") < 61 << 20


def test_refusals_have_numbers(start):
    s = start("--memory", "64M")
    r = s.post("/chat", {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]})
    error = r.json()["error"]
    assert r.status_code == 503 and error["code"] == "insufficient_memory"
    assert error["message"].count(f"Model '{MODEL}'") == 1
    assert str(64 << 20) in error["message"] and "needs" in error["message"] and "available" in error["message"]
    plan = s.get("/health").json()["memory_plan"]
    assert sum(plan[k] for k in ("process", "connections", "requests", "models")) <= max(64 << 20, plan["total"])

"""vLLM's metric names, so that its dashboards work (C30, R61); what /health has (C28, R60)."""
import re

from conftest import until

MODEL = "gpt2-f32"
NAMES = """num_requests_running num_requests_waiting kv_cache_usage_perc prefix_cache_queries_total prefix_cache_hits_total
num_preemptions_total prompt_tokens_total generation_tokens_total request_success_total mm_cache_queries_total
mm_cache_hits_total cache_config_info""".split()
HISTOGRAMS = """iteration_tokens_total request_prompt_tokens request_generation_tokens request_params_n
request_params_max_tokens request_max_num_generation_tokens time_to_first_token_seconds inter_token_latency_seconds
e2e_request_latency_seconds request_queue_time_seconds request_inference_time_seconds request_prefill_time_seconds
request_decode_time_seconds""".split()


def test_names_and_values(start):
    s = start()
    ask = {"model": MODEL, "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True}
    for _ in range(3):
        assert s.post("/v1/completions", ask).status_code == 200
    assert s.post("/v1/completions", {**ask, "stream": True, "n": 2, "max_tokens": 60}).status_code == 200
    assert until(lambda: s.metric("vllm:request_success_total", MODEL) == 5)  # counted beside the answer
    r = s.get("/metrics")
    text = r.text
    assert r.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    for name in NAMES:
        assert re.search(rf'^vllm:{name}{{model_name="{MODEL}"', text, re.M), name
    for name in HISTOGRAMS:
        for part in ("_bucket", "_sum", "_count"):
            assert re.search(rf'^vllm:{name}{part}{{model_name="{MODEL}"', text, re.M), name
        assert s.metric(f"vllm:{name}_count", MODEL) > 0, name
    for name in ("http_requests_total", "http_request_duration_seconds_count", "http_request_size_bytes_sum",
                 "http_response_size_bytes_sum"):
        assert re.search(rf'^{name}{{handler="/v1/completions",method="POST"', text, re.M), name
    assert s.metric("vllm:prompt_tokens_total", MODEL) == 15 and s.metric("vllm:generation_tokens_total", MODEL) == 3 * 4 + 2 * 60
    assert s.metric("vllm:request_params_n_sum", MODEL) == 5  # 1 + 1 + 1 + 2
    for line in text.splitlines():
        assert line.startswith("#") or re.match(r'^[a-z0-9_:]+({[^{}]*})? [-+0-9.e]+$', line), line
    names = [x.split()[2] for x in text.splitlines() if x.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_what_a_cache_is_goes_with_the_model(start):
    """Loaded otherwise it has other pages; the old ones are not told beside them."""
    s = start()

    def caches():
        return re.findall(r"^vllm:cache_config_info{(.*)} 1$", s.get("/metrics").text, re.M)

    seen = set()
    for profile in ("fp16", "int8"):
        assert caches() == [] and "cache_config_info" not in s.get("/metrics").text
        assert s.post(f"/models/{MODEL}/load", {"profile": profile}).status_code == 200
        assert len(caches()) == 1, caches()
        seen.update(caches())
        assert s.post(f"/models/{MODEL}/unload", {}).status_code == 200
        assert until(lambda: not s.get(f"/models/{MODEL}").json()["loaded"])
    assert len(seen) == 2, seen


def test_health(server):
    h = server.get("/health").json()
    for key in ("models_loaded", "models_cached", "cache_limit", "downloads_active", "downloads_queued"):
        assert isinstance(h[key], int), key
    assert h["status"] == "healthy" and h["uptime_seconds"] > 0 and h["cuda_available"] is False and h["engine_version"]
    assert server.get("/health/live").status_code == server.get("/health/ready").status_code == 200
    gpu = server.get("/metrics/gpu").json()
    assert gpu["gpus"] == [] and "GPU" in gpu["message"]
    assert server.get("/metrics/gpu/history?since=0").json()["samples"] == []


def test_methods(server):
    import requests
    assert server.get("/health").text and requests.head(server.url + "/health", timeout=60).text == ""
    r = requests.options(server.url + "/models", timeout=60)
    assert r.status_code == 204 and "GET" in r.headers["Allow"] and "Access-Control-Allow-Origin" not in r.headers


def test_other_origins(start):
    import requests
    s = start("--cors-origin", "https://chat.example.org", "--api-key", "k")
    r = requests.options(s.url + "/v1/chat/completions", timeout=60)
    assert r.status_code == 204 and r.headers["Access-Control-Allow-Origin"] == "https://chat.example.org"
    assert "POST" in r.headers["Access-Control-Allow-Methods"] and "Authorization" in r.headers["Access-Control-Allow-Headers"]
    r = requests.options(s.url + "/chat", headers={"Access-Control-Request-Headers": "authorization,x-stainless-os"}, timeout=60)
    assert r.headers["Access-Control-Allow-Headers"] == "authorization,x-stainless-os"
    for r, status in ((s.get("/models"), 401), (s.get("/nothing"), 404), (s.get("/chat"), 405)):  # a page may read why
        assert r.status_code == status and r.headers["Access-Control-Allow-Origin"] == "https://chat.example.org"


def test_counters_never_fall(start):
    """What a model counted goes on where it is loaded again, beside what it was or behind it."""
    s = start()
    names = ["vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "inferd:steps_total", "vllm:prompt_tokens_total",
             "vllm:iteration_tokens_total_count"]

    def ask():
        """What there was before, and the growth."""
        was = [s.metric(n, MODEL) for n in names]
        for _ in range(2):  # the second finds a page in the prefix cache
            body = {"model": MODEL, "prompt": list(range(1, 41)), "max_tokens": 4, "ignore_eos": True}
            assert s.post("/v1/completions", body).status_code == 200
        assert until(lambda: s.metric("vllm:num_requests_running", MODEL) == 0)
        return was, [s.metric(n, MODEL) - x for n, x in zip(names, was)]

    assert s.post(f"/models/{MODEL}/load", {}).status_code == 200
    start_values, first = ask()
    assert start_values == [0] * len(names) and all(x > 0 for x in first), first
    assert s.post(f"/models/{MODEL}/reload", {}).status_code == 200
    was, growth = ask()
    assert was == first and growth == first, (first, was, growth)
    assert s.post(f"/models/{MODEL}/unload", {}).status_code == 200
    assert until(lambda: not s.get(f"/models/{MODEL}").json()["loaded"])
    assert s.post(f"/models/{MODEL}/load", {}).status_code == 200
    was, growth = ask()
    assert was == [2 * x for x in first] and growth == first, (first, was, growth)

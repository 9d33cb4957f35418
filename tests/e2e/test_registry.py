"""Several models: shared loads, eviction, keep_alive, preloading, names with slashes (R16, C24, C40, C52, C62)."""
import concurrent.futures
import json
import shutil
import time

import requests

from conftest import MODELS, until

MESSAGES = [{"role": "user", "content": "hi"}]


def ask(s, model, **more):
    return s.post("/chat", {"model": model, "messages": MESSAGES, "max_tokens": 2, **more})


def loaded(s):
    return {m["name"] for m in s.get("/models").json()["models"] if m["loaded"]}


def test_one_load_for_all(start):
    s = start()
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        assert {r.status_code for r in pool.map(lambda _: ask(s, "qwen3-bf16"), range(24))} == {200}
    assert s.text().count('model_loading model="qwen3-bf16"') == 1


def test_least_recently_used_goes(start):
    s = start(env={"MAX_CACHE_MODELS": "2"})
    for name in ("gpt2-f32", "opt-f32", "gpt2-f32", "qwen2-f32"):
        assert ask(s, name).status_code == 200
    assert loaded(s) == {"gpt2-f32", "qwen2-f32"}
    health = s.get("/health").json()
    assert health["models_loaded"] == 2 and health["cache_limit"] == 2


def test_in_use_is_never_evicted(start):
    s = start("--max-cache-models", "1")
    with s.post("/chat", {"model": "gpt2-f32", "messages": MESSAGES, "max_tokens": 180, "ignore_eos": True, "stream": True},
                stream=True) as r:
        lines = r.iter_lines()
        next(lines)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            other = pool.submit(ask, s, "opt-f32")
            last = [json.loads(x[6:]) for x in lines if x.startswith(b"data: ")][-1]
            assert last["done"] and last["eval_count"] == 180
            assert other.result().status_code == 200
    assert loaded(s) == {"opt-f32"}


def test_keep_alive(start):
    s = start()
    for value in (0, "0s", "20ms", 0.02):
        assert ask(s, "gpt2-f32", keep_alive=value).status_code == 200
        assert until(lambda: not loaded(s)), value
    for value, least, most in ((-1, -1, -1), ("-1s", -1, -1), ("1h30m", 5390, 5400), (90, 80, 90), (None, 290, 300)):
        assert ask(s, "gpt2-f32", keep_alive=value).status_code == 200
        assert until(lambda: least <= s.get("/models/gpt2-f32").json()["expires_in"] <= most), value
    r = ask(s, "gpt2-f32", keep_alive="soon")
    assert r.status_code == 400 and r.json()["error"]["param"] == "keep_alive"


def test_preload(start):
    began = time.time()
    s = start(env={"PRELOAD_MODELS": "gpt2-f32, opt-f32,no/such"})
    assert s.get("/health").status_code == 200 and time.time() - began < 1
    assert until(lambda: loaded(s) == {"gpt2-f32", "opt-f32"})
    assert until(lambda: s.get("/health/ready").status_code == 200)
    assert "preload_failed" in s.text() and "no/such" in s.text()


def test_load_and_unload(start):
    s = start()
    r = requests.post(s.url + "/models/qwen2-f32/load", json={"profile": "fp16"}, timeout=20)
    assert r.status_code == 200 and r.json()["loaded"] and r.json()["profile"] == "fp16"
    for body, param in (({"profile": "fp99"}, "profile"), ({"colour": 1}, "colour")):
        r = requests.post(s.url + "/models/qwen2-f32/load", json=body, timeout=20)
        assert r.status_code == 400 and r.json()["error"]["param"] == param
    assert requests.post(s.url + "/models/qwen2-f32/unload", timeout=20).json()["status"].startswith("unload")
    assert until(lambda: not loaded(s))
    for verb in ("load", "unload"):
        r = requests.post(s.url + f"/models/nope/{verb}", timeout=20)
        assert r.status_code == 404 and r.json()["error"]["code"] == "model_not_found"


def test_unload_in_use(start):
    s = start()
    many = {"model": "gpt2-f32", "messages": MESSAGES, "max_tokens": 180, "ignore_eos": True, "n": 64}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(s.post, "/chat", many)
        assert until(lambda: s.get("/health").json()["active_requests"])
        assert requests.post(s.url + "/models/gpt2-f32/unload", timeout=20).json()["status"] == "unloading when idle"
        assert answer.result().status_code == 200
    assert until(lambda: not loaded(s))
    assert ask(s, "gpt2-f32").status_code == 200 and loaded(s) == {"gpt2-f32"}


def test_facts(server):
    for path in ("/models/", "/v1/models/"):
        for _ in range(2):  # not loaded, loaded
            m = json.loads(server.get(path + "llama-bf16").text, object_pairs_hook=no_twins)
            for key in ("max_model_len", "profile", "revision", "architecture", "parameters", "weight_bytes", "kv_token_bytes"):
                assert key in m, key
            ask(server, "llama-bf16")


def no_twins(pairs):
    assert len({k for k, _ in pairs}) == len(pairs), "a key is there twice"
    return dict(pairs)


def test_names_with_slashes(start, tmp_path):
    commit = "0" * 39 + "1"
    repository = tmp_path / "hub" / "models--acme--tiny"
    shutil.copytree(MODELS / "qwen2-f32", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    s = start(env={"HF_HUB_CACHE": str(tmp_path / "hub")})
    assert "acme/tiny" in {m["name"] for m in s.get("/models").json()["models"]}
    assert "acme/tiny" in {m["id"] for m in s.get("/v1/models").json()["data"]}
    for name in ("acme/tiny", "acme%2Ftiny", "acme%2ftiny"):
        assert s.get("/models/" + name).json()["name"] == "acme/tiny"
        assert s.get("/v1/models/" + name).json()["id"] == "acme/tiny"
        assert requests.post(s.url + f"/models/{name}/load", timeout=20).json()["name"] == "acme/tiny"
        assert requests.post(s.url + f"/models/{name}/unload", timeout=20).json()["name"] == "acme/tiny"
    assert ask(s, "acme/tiny").status_code == 200 and ask(s, "acme/tiny@" + commit).status_code == 200
    for name in ("../qwen2-f32", "acme/../tiny", "/etc/passwd", "%2e%2e/qwen2-f32", "acme/tiny@../../x", "a%00b"):
        assert s.get("/models/" + name).status_code == 404, name
        assert ask(s, name).status_code == 404, name

"""Several models: shared loads, eviction, keep_alive, preloading, names with slashes (R16, C24, C40, C52, C62)."""
import concurrent.futures
import json
import shutil
import time

import requests

from conftest import MODELS, best_of, until

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
    s = start(env={"PRELOAD_MODELS": "gpt2-f32, opt-f32,no/such"})
    assert s.get("/health").status_code == 200
    assert until(lambda: loaded(s) == {"gpt2-f32", "opt-f32"})
    assert until(lambda: s.get("/health/ready").status_code == 200)
    assert until(lambda: "preload_failed" in s.text() and "no/such" in s.text())  # the last of the names may be looked up last


def test_a_preload_is_not_waited_for(start, tmp_path):
    big(tmp_path / "models" / "big", 300_000)

    def answers_before():
        s = start("--models-dir", str(tmp_path / "models"), "--cache-bytes", "0", env={"PRELOAD_MODELS": "big"})
        assert s.get("/health").status_code == 200
        before = "model_ready" not in s.text()
        assert until(lambda: "model_ready" in s.text())
        return before

    assert best_of(5, answers_before)


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
    s = start("--isa", "ref", "--max-streams", "1")  # one choice after the other
    many = {"model": "gpt2-f32", "messages": MESSAGES, "max_tokens": 180, "ignore_eos": True, "n": 64}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(s.post, "/chat", many)
        assert until(lambda: s.get("/health").json()["active_requests"])
        assert requests.post(s.url + "/models/gpt2-f32/unload", timeout=20).json()["status"] == "unloading when idle"
        assert answer.result().status_code == 200
    assert until(lambda: not loaded(s))
    assert ask(s, "gpt2-f32").status_code == 200 and loaded(s) == {"gpt2-f32"}


def test_reload_forgets_an_unload(start):
    """Unloading when idle is of what was loaded then, not of what a reload brings."""
    s = start("--isa", "ref", "--max-streams", "1")  # one choice after the other
    many = {"model": "gpt2-f32", "messages": MESSAGES, "max_tokens": 180, "ignore_eos": True, "n": 64}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(s.post, "/chat", many)
        assert until(lambda: s.get("/health").json()["active_requests"])
        assert s.post("/models/gpt2-f32/unload", {}).json()["status"] == "unloading when idle"
        assert s.post("/models/gpt2-f32/reload", {}).status_code == 200
        assert answer.result().status_code == 200
    assert until(lambda: "why=replaced" in s.text())
    time.sleep(0.2)
    assert loaded(s) == {"gpt2-f32"} and "why=asked" not in s.text()


def test_profiles_that_disagree(start, tmp_path):
    """One load at a time, of one profile: who asked for another is told, whenever that is."""
    big(tmp_path / "models" / "big", 300_000)  # its load lasts until all have asked
    s = start("--models-dir", str(tmp_path / "models"))
    asked = [("fp16", "int8")[i % 2] for i in range(8)]

    def load(profile):
        began = time.monotonic()
        return s.post("/models/big/load", {"profile": profile}), began, time.monotonic()

    for _ in range(5):
        n_loads = s.text().count("model_loading")
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            replies, began, ended = zip(*pool.map(load, asked))
        if max(began) < min(e for r, e in zip(replies, ended) if r.status_code == 200):
            break  # else the load was over before the last had asked, which shows nothing
        s.post("/models/big/unload", {})
        assert until(lambda: not loaded(s))
    seen = set()
    for profile, r in zip(asked, replies):
        seen.add(r.status_code)
        if r.status_code == 200:
            assert r.json()["profile"] == profile
        else:
            assert r.status_code == 409 and r.json()["error"]["param"] == "profile", r.text
            assert profile in r.json()["error"]["message"] or "unload it" in r.json()["error"]["message"]
    assert seen == {200, 409}
    assert s.text().count("model_loading") == n_loads + 1
    # the same beside requests that name no profile: their load is waited for, and then told
    assert s.post("/models/big/unload", {}).status_code == 200
    assert until(lambda: not loaded(s))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda i: s.post("/models/big/load", {"profile": "int8"}) if i % 2 else ask(s, "big"), range(8)))
    assert {r.status_code for r in replies[::2]} == {200}
    for r in replies[1::2]:
        assert r.status_code == 200 and r.json()["profile"] == "int8" or r.status_code == 409, r.text
    # a ready model's explicit load says nothing of a later one
    now = s.get("/models/big").json()["profile"]
    assert s.post("/models/big/load", {"profile": now}).status_code == 200
    assert s.post("/models/big/unload", {}).status_code == 200
    assert until(lambda: not loaded(s))
    assert s.post("/models/big/load", {}).json()["profile"] == "fp16"


def big(folder, rows=100_000):
    """llama-tied-f32 with more rows in its embedding than it has tokens for: a model that takes room."""
    shutil.copytree(MODELS / "llama-tied-f32", folder)
    data = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    head, at = json.loads(data[8:8 + size]), 8 + size
    parts, n = [], 0
    for name, t in head.items():
        if name == "__metadata__":
            continue
        begin, end = t["data_offsets"]
        part = data[at + begin:at + end]
        if t["shape"][0] == json.loads((folder / "config.json").read_text())["vocab_size"]:
            part += bytes((rows - t["shape"][0]) * (len(part) // t["shape"][0]))
            t["shape"][0] = rows
        t["data_offsets"] = [n, n + len(part)]
        parts.append(part)
        n += len(part)
    text = json.dumps(head).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))


def test_health_names_the_load_under_way(start, tmp_path):
    """Not the one that was asked for last."""
    models = tmp_path / "models"
    big(models / "big", 300_000)
    shutil.copytree(MODELS / "gpt2-f32", models / "small")
    s = start("--models-dir", str(models))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, s, "big")]
        assert until(lambda: 'model_loading model="big"' in s.text())
        asked.append(pool.submit(ask, s, "small"))
        while not all(x.done() for x in asked):
            health = s.get("/health").json()
            assert health.get("loading") != "small" or 'model_ready model="big"' in s.text(), health
    assert {x.result().status_code for x in asked} == {200}


def test_a_load_that_waits_holds_up_no_other(start, tmp_path):
    """`big` has to wait for the model in use; `small` fits beside both of them, and `busy` stays loaded until it is idle."""
    models = tmp_path / "models"
    big(models / "big", 30_000)
    big(models / "busy", 20_000)
    shutil.copytree(MODELS / "gpt2-f32", models / "small")
    s = start("--models-dir", str(models), "--memory", "220M")
    room = s.get("/health").json()["memory_plan"]["models"]
    need = {m: s.get("/models/" + m).json()["needs_bytes"] for m in ("big", "busy", "small")}
    with s.post("/chat", {"model": "busy", "messages": MESSAGES, "max_tokens": 200, "ignore_eos": True, "stream": True, "n": 64,
                          "logprobs": True, "top_logprobs": 20}, stream=True) as busy:
        lines = busy.iter_lines()
        next(lines)
        health = s.get("/health").json()
        left = health["memory_limit_bytes"] - health["memory_planned_bytes"]
        assert need["small"] < left < need["big"] < room, f"another --memory must be chosen: {need}, {left}, {room}"
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waits = pool.submit(s.post, "/models/big/load", {})
            assert until(lambda: 'model_waits model="big"' in s.text())
            assert ask(s, "small").status_code == 200
            assert not waits.done() and loaded(s) == {"busy", "small"}
            assert ask(s, "small").status_code == 200 and s.text().count('model_loading model="small"') == 1  # it stayed
            last = [json.loads(x[6:]) for x in lines if x.startswith(b"data: ")][-1]
            assert last["done"] and last["eval_count"] == 64 * 200
            assert waits.result().status_code == 200
    assert "big" in loaded(s)
    assert ask(s, "busy").status_code == 200 and ask(s, "small").status_code == 200


def test_ends_while_models_come_and_go(start):
    """Engines and the loader outlive the http server by a moment: the end is clean whatever they do then."""
    for i in range(6):
        s = start()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda k: ask(s, ("gpt2-f32", "opt-f32")[k % 2], keep_alive=0), range(4)))
            s.post("/models/qwen2-f32/load", {})
            s.post("/models/qwen2-f32/unload", {})
        assert s.stop() == 0, s.text()[-2000:]


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


def test_a_loaded_model_whose_files_are_gone(start, tmp_path):
    """It answers on, it is in the lists, and it can be unloaded; then there is no such model."""
    models = tmp_path / "models"
    for name in ("kept", "lost"):
        shutil.copytree(MODELS / "qwen2-f32", models / name)
    s = start("--models-dir", str(models))
    ask = {"model": "lost", "prompt": [5, 6], "max_tokens": 1}
    assert s.post("/v1/completions", ask).status_code == 200
    shutil.rmtree(models / "lost")
    assert s.post("/v1/completions", ask).status_code == 200
    listed = {m["name"]: m for m in s.get("/models").json()["models"]}
    assert listed["lost"]["loaded"] and "gone" in listed["lost"]["status"] and not listed["kept"]["loaded"]
    assert [m["id"] for m in s.get("/v1/models").json()["data"]] == ["kept", "lost"]
    assert s.get("/models/lost").json()["architecture"] == "qwen2"
    assert requests.post(s.url + "/models/lost/unload", timeout=20).json()["status"] == "unloaded"
    assert until(lambda: s.get("/health").json()["models_loaded"] == 0)
    assert s.post("/v1/completions", ask).status_code == s.get("/models/lost").status_code == 404
    assert [m["name"] for m in s.get("/models").json()["models"]] == ["kept"]


def test_more_models_than_are_looked_at(start, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    for i in range(4100):
        (models / f"m{i}.gguf").touch()
    s = start("--models-dir", str(models))
    assert len(s.get("/models").json()["models"]) == 4096
    assert "4096 models in" in (message := s.get("/models/other").json()["error"]["message"]) and "4 more" in message

"""Weights exchanged while requests run; models removed from the disk (R17)."""
import concurrent.futures
import json
import os
import shutil
import struct
import subprocess
import threading
import time

import pytest
import requests

from conftest import BINARY, MODELS, until

MODEL, OTHER = "llama-bf16", "gpt2-f32"
PROMPTS = [f"Once upon a time {i}" for i in range(4)]
NOT_A_NUMBER = b"\xc0\x7f"  # bfloat16


def answer(s, model, i, n=24, **more):
    """The ids of a greedy answer, from a stream that must be whole."""
    body = {"model": model, "prompt": PROMPTS[i % len(PROMPTS)], "max_tokens": n, "temperature": 0, "ignore_eos": True,
            "stream": True, "return_token_ids": True, **more}
    ids, end = [], False
    with s.post("/v1/completions", body, stream=True) as r:
        assert r.status_code == 200, r.text
        for line in r.iter_lines():
            if line == b"data: [DONE]":
                end = True
            elif line.startswith(b"data: "):
                event = json.loads(line[6:])
                assert "error" not in event, event
                for choice in event["choices"]:
                    ids += choice.get("token_ids") or []
    assert end and len(ids) == n, (end, len(ids))
    return tuple(ids)


def change(data, name, how):
    """A safetensors file with other bytes in one tensor."""
    size = struct.unpack("<Q", data[:8])[0]
    begin, end = (8 + size + x for x in json.loads(data[8:8 + size])[name]["data_offsets"])
    return data[:begin] + how(data[begin:end]) + data[end:]


def put(folder, data):
    """As a careful person replaces a file."""
    (folder / "new").write_bytes(data)
    os.replace(folder / "new", folder / "model.safetensors")


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    for name in (MODEL, OTHER):
        shutil.copytree(MODELS / name, folder / name)
        (folder / name / "golden.json").unlink()  # what was computed of weights that the tests replace
    return folder


@pytest.fixture
def weights(models):
    """Two sets for MODEL that fit its configuration."""
    a = (models / MODEL / "model.safetensors").read_bytes()
    return a, change(a, "model.layers.0.mlp.down_proj.weight", lambda t: t[2:] + t[:2])


def reload(s, model=MODEL, **kw):
    return requests.post(f"{s.url}/models/{model}/reload", timeout=120, **kw)


def planned(s):
    return s.get("/health").json()["memory_planned_bytes"]


def swap_under_load(s, folder, weights, n_reloads, pause_s, n_streams):
    """Reloads between two sets of weights while streams run: each answer is wholly of one set, and of the right one."""
    right = []
    for data in weights:
        put(folder, data)
        assert reload(s).status_code == 200
        right.append([answer(s, MODEL, i) for i in range(len(PROMPTS))])
    assert all(a != b for a, b in zip(*right)), "the two sets of weights answer alike: nothing would be shown"
    other = [answer(s, OTHER, i) for i in range(len(PROMPTS))]
    assert until(lambda: "why=replaced" in s.text())
    before = planned(s)
    begun = done = 1  # reloads; set 0 and 1 were put: the last is 1
    stop = threading.Event()

    def client(i):
        count = 0
        while not stop.is_set():
            least = done
            if i % 4 == 3:
                assert answer(s, OTHER, i) == other[i % len(PROMPTS)]
            else:
                ids = answer(s, MODEL, i)
                assert ids in [right[k % 2][i % len(PROMPTS)] for k in range(least, begun + 1)], (least, begun)
            count += 1
        return count

    with concurrent.futures.ThreadPoolExecutor(n_streams) as pool:
        clients = [pool.submit(client, i) for i in range(n_streams)]
        try:
            for k in range(2, 2 + n_reloads):
                put(folder, weights[k % 2])
                begun = k
                r = reload(s)
                assert r.status_code == 200, r.text
                done = k
                time.sleep(pause_s)
        finally:
            stop.set()
        counts = [c.result() for c in clients]
    assert min(counts) > 0, counts
    assert until(lambda: planned(s) == before), (planned(s), before)
    assert s.text().count("model_reloading") >= n_reloads


def test_swap_under_streams(start, models, weights):
    s = start("--models-dir", str(models))
    swap_under_load(s, models / MODEL, weights, 6, 0.1, 8)


@pytest.mark.slow
def test_ten_reloads_under_32_streams(start, models, weights):
    s = start("--models-dir", str(models))
    swap_under_load(s, models / MODEL, weights, 10, 1, 32)


def test_damaged_files_leave_the_old(start, models, weights):
    s = start("--models-dir", str(models))
    right = answer(s, MODEL, 0)
    before, print_before = planned(s), s.get("/models/" + MODEL).json()["system_fingerprint"]
    nan = change(weights[0], "model.norm.weight", lambda t: NOT_A_NUMBER * (len(t) // 2))
    one = change(weights[0], "lm_head.weight", lambda t: NOT_A_NUMBER + t[2:])
    for data in (weights[0][:-100], b"", nan, one):
        put(models / MODEL, data)
        r = reload(s)
        assert r.status_code == 500 and r.json()["error"]["code"] == "model_damaged", r.text
        assert "goes on answering" in r.json()["error"]["message"]
        assert answer(s, MODEL, 0) == right
        assert planned(s) == before and s.get("/models/" + MODEL).json()["system_fingerprint"] == print_before
    put(models / MODEL, weights[1])
    assert reload(s).status_code == 200 and answer(s, MODEL, 0) != right
    shutil.rmtree(models / MODEL)
    assert reload(s).status_code == 404
    assert len(answer(s, MODEL, 0)) == 24


def other_value(data):
    """One finite bit of one weight."""
    return change(data, "model.layers.0.mlp.down_proj.weight", lambda t: t[:40] + bytes([t[40] ^ 1]) + t[41:])


def verify(s, models, name=MODEL):
    return subprocess.run([BINARY, "verify", name], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "INFERD_DATA_DIR": str(s.tmp), "INFERD_MODELS_DIR": str(models)})


def test_golden_file_of_other_weights(start, models, weights):
    """What another program computed of the weights is held against them before they answer anybody."""
    file = models / MODEL / "golden.json"
    shutil.copy(MODELS / MODEL / "golden.json", file)
    s = start("--models-dir", str(models))
    right = answer(s, MODEL, 0)
    assert reload(s).status_code == 200 and "golden_json=same" in s.text()
    put(models / MODEL, weights[1])
    r = reload(s)
    assert r.status_code == 500 and r.json()["error"]["code"] == "model_damaged"
    for words in ("goes on answering", str(file), "not the weights that it was made from", MODEL):
        assert words in r.json()["error"]["message"], r.text
    assert answer(s, MODEL, 0) == right and f'model_failed model="{MODEL}"' in s.text()
    golden = json.loads(file.read_text())
    for text, status in (("{", 400), (json.dumps({**golden, "greedy_margins": []}), 400)):
        file.write_text(text)
        r = reload(s)
        assert r.status_code == status and str(file) in r.json()["error"]["message"], r.text
        assert "goes on answering" in r.json()["error"]["message"] and answer(s, MODEL, 0) == right
    file.unlink()
    assert reload(s).status_code == 200 and answer(s, MODEL, 0) != right
    assert "golden_json=none" in s.text()


def test_golden_file_is_of_the_exact_profile(start, models):
    shutil.copy(MODELS / MODEL / "golden.json", models / MODEL)
    s = start("--models-dir", str(models))
    s.post(f"/models/{MODEL}/load", {"profile": "int8"})
    assert reload(s).status_code == 200 and "golden_json=of_another_profile" in s.text()


def test_kept_answer_of_other_bytes(start, models, weights):
    """Size and time of the files are the same, their answer is not: a reload says so and leaves the old."""
    s = start("--models-dir", str(models), "--cache-bytes", "0")
    right = answer(s, MODEL, 0)
    done = verify(s, models)
    assert done.returncode == 0 and "kept in" in done.stdout, done.stderr
    assert reload(s).status_code == 200 and "kept_answer=20" in s.text()
    file = models / MODEL / "model.safetensors"
    st = file.stat()
    put(models / MODEL, other_value(weights[0]))
    os.utime(file, ns=(st.st_atime_ns, st.st_mtime_ns))
    r = reload(s)
    assert r.status_code == 500 and r.json()["error"]["code"] == "model_damaged", r.text
    assert "goes on answering" in r.json()["error"]["message"] and "kept on 20" in r.json()["error"]["message"]
    assert answer(s, MODEL, 0) == right and verify(s, models).returncode == 6
    os.utime(file, (2e9, 2e9))  # of another time: somebody put it there
    assert reload(s).status_code == 200 and s.text().rstrip().count("kept_answer=none") == 1


def start_small(start, models):
    """With memory for the model, and not for it twice."""
    s = start("--models-dir", str(models), "--memory", "104M")
    need, room = s.get("/models/" + MODEL).json()["needs_bytes"], s.get("/health").json()["memory_plan"]["models"]
    assert need <= room < 2 * need, f"another --memory must be chosen: {need}, {room}"
    return s


def test_drains_where_memory_is_short(start, models, weights):
    s = start_small(start, models)
    right = [answer(s, MODEL, i) for i in range(4)]
    before, stop = planned(s), threading.Event()

    def client(i):
        while not stop.is_set():
            assert answer(s, MODEL, i) == right[i % 4]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, i) for i in range(8)]
        for _ in range(3):
            assert reload(s).status_code == 200
        stop.set()
        for c in clients:
            c.result()
    assert s.text().count("old=drained") == 3 and "old=beside" not in s.text()
    assert until(lambda: planned(s) == before)


def test_damaged_files_where_memory_is_short(start, models, weights):
    s = start_small(start, models)
    right = answer(s, MODEL, 0)
    put(models / MODEL, weights[0][:-100])  # seen before anything is drained
    r = reload(s)
    assert r.status_code == 500 and "goes on answering" in r.json()["error"]["message"]
    assert answer(s, MODEL, 0) == right
    put(models / MODEL, change(weights[0], "lm_head.weight", lambda t: NOT_A_NUMBER + t[2:]))  # seen by the check only
    r = reload(s)
    assert r.status_code == 500 and "goes on answering" not in r.json()["error"]["message"]
    assert s.get("/health").json()["models_loaded"] == 0
    put(models / MODEL, weights[0])
    assert answer(s, MODEL, 0) == right


def test_reload_of_what_is_not_loaded(start, models):
    s = start("--models-dir", str(models))
    assert reload(s, "nope").status_code == 404
    r = reload(s)
    assert r.status_code == 200 and r.json()["loaded"] and r.json()["system_fingerprint"]
    assert "old=none" in s.text()
    for body in ({"profile": "fp16"}, []):
        assert reload(s, json=body).status_code == 400
    assert reload(s, json={}).status_code == 200


def test_many_ask_for_one_reload(start, models):
    s = start("--models-dir", str(models))
    answer(s, MODEL, 0)
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        assert {r.status_code for r in pool.map(lambda _: reload(s), range(24))} == {200}
    assert 1 <= s.text().count("model_reloading") < 24


def test_profile_and_keep_alive_stay(start, models):
    s = start("--models-dir", str(models))
    requests.post(f"{s.url}/models/{MODEL}/load", json={"profile": "int8"}, timeout=20)
    answer(s, MODEL, 0, keep_alive=-1)
    assert reload(s).json()["profile"] == "int8"
    assert s.get("/models/" + MODEL).json()["expires_in"] == -1


def test_rolling(start, models, weights):
    s = start("--models-dir", str(models))
    assert requests.post(s.url + "/models/reload", timeout=20).json() == {"models": []}
    for name in (MODEL, OTHER):
        answer(s, name, 0)
    put(models / MODEL, weights[0][:-100])
    r = requests.post(s.url + "/models/reload", timeout=60)
    results = {m["name"]: m for m in r.json()["models"]}
    assert r.status_code == 200 and set(results) == {MODEL, OTHER}
    assert results[OTHER]["status"] == "ready"
    assert results[MODEL]["status"] == "failed" and "goes on answering" in results[MODEL]["error"]
    n_reloads = s.text().count("model_reloading")
    for body in ({"profile": "fp16"}, []):
        assert requests.post(s.url + "/models/reload", json=body, timeout=20).status_code == 400
    assert s.text().count("model_reloading") == n_reloads


def test_delete(start, models, tmp_path):
    commit = "0" * 39 + "1"
    repository = tmp_path / "hub" / "models--acme--tiny"
    shutil.copytree(MODELS / "qwen2-f32", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    s = start("--models-dir", str(models), env={"HF_HUB_CACHE": str(tmp_path / "hub")})
    assert s.delete("/models/nope").status_code == 404
    answer(s, MODEL, 0)
    r = s.delete("/models/" + MODEL)
    assert r.status_code == 400 and str(models) in r.json()["error"]["message"]
    assert (models / MODEL / "config.json").exists() and s.get("/models/" + MODEL).json()["loaded"]
    body = {"model": "acme/tiny", "prompt": "a", "max_tokens": 400, "n": 32, "ignore_eos": True, "stream": True,
            "logprobs": 20}  # more than sockets hold: in use until it is read
    with s.post("/v1/completions", body, stream=True) as r:
        lines = r.iter_lines()
        assert r.status_code == 200 and next(lines)
        refused = s.delete("/models/acme%2Ftiny")
        assert refused.status_code == 409 and refused.json()["error"]["param"] == "model", refused.text
        assert b"data: [DONE]" in list(lines)
    assert until(lambda: s.delete("/models/acme/tiny").status_code == 200)
    assert not repository.exists()
    assert s.get("/models/acme/tiny").status_code == 404
    assert until(lambda: s.get("/health").json()["models_loaded"] == 1)

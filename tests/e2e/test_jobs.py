"""Jobs over HTTP: POST /pull, GET and DELETE /jobs, events, what survives a restart and a kill."""
import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import time

import pytest

from conftest import BINARY, free_port, until
from hub_tools import Cache
from test_registry import big

FINAL = ("completed", "failed", "cancelled")
WEIGHTS = 3 << 20


def env(hub, folder, **more):
    return {"HF_HUB_CACHE": str(folder), "HF_ENDPOINT": hub.url, "HF_TOKEN": "", "HF_HOME": str(folder),
            "INFERD_DOWNLOAD_PART": "65536", "INFERD_DOWNLOAD_ATTEMPTS": "2", **more}


@pytest.fixture
def served(start, hub, tmp_path):
    return start(env=env(hub, tmp_path / "cache"))


def job(server, id):
    r = server.get(f"/jobs/{id}")
    assert r.status_code == 200, r.text
    return r.json()


def ended(server, id):
    return until(lambda: (j := job(server, id))["status"] in FINAL and j) or job(server, id)


def pull(server, model, **fields):
    r = server.post("/pull", {"model": model, **fields})
    assert r.status_code == 202, r.text
    return r.json()


def test_a_pull_from_first_to_last(served, hub):
    hub.rate = 2 << 20
    made = pull(served, "acme/tiny", revision="v1.0")
    assert made["job_id"] and made["status"] in ("queued", "running") and made["model"] == "acme/tiny"
    seen = []
    while not seen or seen[-1]["status"] not in FINAL:
        seen.append(job(served, made["job_id"]))
        time.sleep(0.01)
    last = seen[-1]
    assert last["status"] == "completed" and last["progress"] == 1.0 and last["revision"] == "v1.0"
    assert last["downloaded_bytes"] == last["total_bytes"] > WEIGHTS and last["error"] is None
    assert {f["name"] for f in last["files"]} >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert all(f["status"] == "done" and f["downloaded_bytes"] == f["total_bytes"] for f in last["files"])
    for key in ("progress", "downloaded_bytes", "updated_at"):
        values = [s[key] for s in seen]
        assert values == sorted(values), key
    assert any(0 < s["progress"] < 1 and s["bytes_per_second"] > 0 for s in seen)
    assert served.metric_value("inferd:job_update_seconds_count") > 2


def test_a_capped_pull_flows_evenly(start, hub, tmp_path):
    """No second without progress, and at no moment more than the cap allows."""
    cap = 1 << 20
    s = start("--download-rate", str(cap), env=env(hub, tmp_path / "cache"))
    began, seen = time.monotonic(), []
    made = pull(s, "acme/tiny")
    while not seen or seen[-1][1]["status"] not in FINAL:
        found = job(s, made["job_id"])
        seen.append((time.monotonic() - began, found))
        time.sleep(0.02)
    assert seen[-1][1]["status"] == "completed" and hub.sent("cdn") == WEIGHTS
    assert all(j["downloaded_bytes"] <= cap * (t + 0.4) for t, j in seen), seen
    still = longest = 0.0  # seconds without progress: between two looks a twentieth counts, a machine that stood still does not
    for (t, j), (t_before, before) in zip(seen[1:], seen):
        still = 0.0 if j["progress"] > before["progress"] else still + min(t - t_before, 0.05)
        longest = max(longest, still)
    assert longest < 1, [(t, j["progress"]) for t, j in seen]


def test_asked_twice_is_one_job(served, hub):
    hub.rate = 128 << 10
    first = pull(served, "acme/tiny")
    ids = {pull(served, name)["job_id"] for name in ("acme/tiny", "acme/tiny@main", "acme/tiny", "hf.co/acme/tiny")}
    assert ids == {first["job_id"]}
    assert pull(served, "acme/tiny", revision="v1.0")["job_id"] != first["job_id"]
    hub.rate = 0
    assert ended(served, first["job_id"])["status"] == "completed"
    assert hub.sent("cdn") == WEIGHTS
    after = pull(served, "acme/tiny")  # right after: the same one
    assert after["status"] == "completed" or after["job_id"] != first["job_id"]


def test_events_end_after_the_final_status(served, hub):
    hub.rate = 1 << 20
    made = pull(served, "acme/tiny")
    seen = []
    with served.get(f"/jobs/{made['job_id']}/events", stream=True) as r:
        assert r.status_code == 200 and r.headers["Content-Type"].startswith("text/event-stream")
        for line in r.iter_lines():
            if line.startswith(b"data: "):
                seen.append(json.loads(line[6:]))
            else:
                assert not line or line.startswith(b":")
    assert seen[-1]["status"] == "completed" and len(seen) > 2
    assert all(s["job_id"] == made["job_id"] and "files" in s for s in seen)
    progress = [s["progress"] for s in seen]
    assert progress == sorted(progress) and progress[-1] == 1
    with served.get(f"/jobs/{made['job_id']}/events", stream=True) as r:  # of one that is over: one event
        assert [json.loads(x[6:])["status"] for x in r.iter_lines() if x] == ["completed"]
    assert served.get("/jobs/job-none/events").status_code == 404


def test_cancel(served, hub):
    hub.rate = 100 << 10
    made = pull(served, "acme/tiny")
    assert until(lambda: job(served, made["job_id"])["downloaded_bytes"] > 0)
    with served.get(f"/jobs/{made['job_id']}/events", stream=True) as r:
        assert served.delete(f"/jobs/{made['job_id']}").status_code in (200, 202)
        assert [json.loads(x[6:]) for x in r.iter_lines() if x.startswith(b"data:")][-1]["status"] == "cancelled"
    assert job(served, made["job_id"])["status"] == "cancelled"
    assert served.delete(f"/jobs/{made['job_id']}").status_code == 200
    assert served.delete("/jobs/job-none").status_code == 404
    assert until(lambda: served.get("/health").json()["downloads_active"] == 0)
    hub.rate = 0
    again = pull(served, "acme/tiny")  # goes on from what is there
    assert again["job_id"] != made["job_id"] and ended(served, again["job_id"])["status"] == "completed"


@pytest.mark.parametrize("model, fields, words, code, exit_status", [
    ("acme/gated", {}, ["acme/gated", "gated", "token"], "insufficient_scope", 4),
    ("acme/nothing", {}, ["acme/nothing"], "model_not_found", 3),
    ("acme/tiny", {"revision": "v9"}, ["acme/tiny", "v9"], "model_not_found", 3),
    ("acme/pickle", {}, ["acme/pickle", "safetensors"], "model_unsupported", 6),
])
def test_what_cannot_be_pulled(served, hub, tmp_path, model, fields, words, code, exit_status):
    """The verb ends with the same status whether a server fetches or it does by itself."""
    last = ended(served, pull(served, model, **fields)["job_id"])
    assert last["status"] == "failed" and last["error_code"] == code
    name = model + ("@" + fields["revision"] if fields else "")
    alone = Cache(hub, tmp_path / "alone").run("pull", name)
    by_server = cli(served, "pull", name)
    assert alone.returncode == by_server.returncode == exit_status, (alone.stderr, by_server.stderr)
    assert last["error"] in by_server.stderr and last["error"] in alone.stderr
    for word in words:
        assert word in last["error"], last["error"]


@pytest.mark.parametrize("body, param", [
    ({}, "model"), ({"model": ""}, "model"), ({"model": 5}, "model"), ({"model": "a b/c"}, "model"),
    ({"model": "../../etc/passwd"}, "model"), ({"model": "acme/tiny", "revision": "../x"}, "revision"),
    ({"model": "acme/tiny@v1", "revision": "v2"}, "revision"), ({"model": "acme/tiny", "profile": "int2"}, "profile"),
    ({"model": "acme/tiny", "preload": "yes"}, "preload"), ({"model": "acme/tiny", "nonsense": 1}, "nonsense"),
])
def test_bad_pulls(served, body, param):
    r = served.post("/pull", body)
    assert r.status_code == 400 and r.json()["error"]["param"] == param, r.text


def test_lists(served, hub):
    good = [pull(served, "acme/gguf:Q8_0"), pull(served, "acme/sharded")]
    for j in good:
        assert ended(served, j["job_id"])["status"] == "completed"
    since = time.time()
    bad = pull(served, "acme/nothing")
    ended(served, bad["job_id"])

    def ids(query=""):
        r = served.get("/jobs" + query)
        assert r.status_code == 200, r.text
        return [j["job_id"] for j in r.json()["jobs"]]

    assert ids() == [bad["job_id"], good[1]["job_id"], good[0]["job_id"]]
    assert ids("?limit=2") == ids()[:2]
    assert ids("?status=failed") == [bad["job_id"]] and ids("?status=running") == []
    assert ids("?model=acme/sharded") == [good[1]["job_id"]] and ids("?model=acme%2Fgguf:Q8_0") == [good[0]["job_id"]]
    assert ids("?model=acme/none") == []
    assert ids(f"?since={since}") == [bad["job_id"]] and ids(f"?since={since + 1000}") == []
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since - 3600))
    assert len(ids(f"?since={stamp}&status=completed")) == 2
    of_now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since))
    assert ids(f"?since={of_now}.{int(since % 1 * 1e6):06}Z") == [bad["job_id"]] and ids("?since=2999-01-31T12:00:00.5Z") == []
    for query, param in (("?status=odd", "status"), ("?limit=0", "limit"), ("?limit=x", "limit"), ("?limit=1001", "limit"),
                         ("?limit=", "limit"), ("?since=yesterday", "since"), ("?since=2026-01-31T12:00:00.5e300Z", "since"),
                         ("?since=2026-01-31T12:00:00%2B-1:-1", "since"), ("?stauts=failed", "stauts")):
        r = served.get("/jobs" + query)
        assert r.status_code == 400 and r.json()["error"]["param"] == param, query
    assert served.get("/jobs/job-none").status_code == 404


def test_so_many_at_once(start, hub, tmp_path):
    s = start("--max-downloads", "1", env=env(hub, tmp_path / "cache"))
    hub.rate = 128 << 10
    made = [pull(s, "acme/tiny"), pull(s, "acme/sharded"), pull(s, "acme/gguf:Q8_0")]
    assert until(lambda: (h := s.get("/health").json())["downloads_active"] == 1 and h["downloads_queued"] == 2)
    assert sum(job(s, j["job_id"])["status"] == "running" for j in made) == 1
    running = until(lambda: next((j for j in s.get("/jobs").json()["jobs"] if j["downloaded_bytes"]), None))
    assert all(set(j) == set(running) for j in s.get("/jobs").json()["jobs"])  # one shape, whatever the status
    assert s.delete(f"/jobs/{made[2]['job_id']}").json()["status"] == "cancelled"
    hub.rate = 0
    assert [ended(s, j["job_id"])["status"] for j in made] == ["completed", "completed", "cancelled"]


def test_a_restart_and_a_kill(start_at, hub, tmp_path):
    hub.rate = 512 << 10
    s = start_at(tmp_path / "data", env=env(hub, tmp_path / "cache"))
    made = pull(s, "acme/tiny")
    assert until(lambda: job(s, made["job_id"])["downloaded_bytes"] > 200000)
    before = job(s, made["job_id"])
    assert s.stop() == 0
    s = start_at(tmp_path / "data", env=env(hub, tmp_path / "cache"))
    for _ in range(3):
        now = until(lambda: (j := job(s, made["job_id"]))["status"] == "running" and
                    j["downloaded_bytes"] > before["downloaded_bytes"] and j)
        assert now and now["progress"] >= before["progress"]
        before = job(s, made["job_id"])
        s.process.send_signal(signal.SIGKILL)
        s.process.wait()
        s = start_at(tmp_path / "data", env=env(hub, tmp_path / "cache"))
        after = job(s, made["job_id"])
        assert after["downloaded_bytes"] >= before["downloaded_bytes"] and after["progress"] >= before["progress"]
    hub.rate = 0
    last = ended(s, made["job_id"])
    assert last["status"] == "completed" and last["attempts"] >= 4
    assert hub.sent("cdn") < WEIGHTS * 1.5


def test_preload(start, hub, tmp_path):
    models = pathlib.Path(__file__).resolve().parents[1] / "golden" / "models" / "llama-tied-f32"
    hub.add("acme/real", {p.name: p for p in models.iterdir() if p.is_file()})
    s = start(env=env(hub, tmp_path / "cache"))
    assert ended(s, pull(s, "acme/real", preload=True, profile="int8")["job_id"])["status"] == "completed"
    entry = until(lambda: next((m for m in s.get("/models").json()["models"] if m["name"] == "acme/real" and m["loaded"]),
                               None))
    assert entry and entry["profile"] == "int8"
    r = s.post("/chat", {"model": "acme/real", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})
    assert r.status_code == 200


def test_preload_of_another_profile(start, hub, tmp_path):
    """What the job asked for is loaded, or the job says why not: beside a load of no given profile, idle, in use."""
    big(tmp_path / "big", 300_000)
    hub.add("acme/big", {p.name: p for p in (tmp_path / "big").iterdir() if p.name != "golden.json"})
    s = start(env=env(hub, tmp_path / "cache"))
    assert ended(s, pull(s, "acme/big")["job_id"])["status"] == "completed"

    def preload(profile):
        last = ended(s, pull(s, "acme/big", preload=True, profile=profile)["job_id"])
        assert last["status"] == "completed" and last["progress"] == 1, last
        return last["preload_error"]

    def loaded():
        return s.get("/models/acme/big").json()["profile"]

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            time.sleep(1.1)  # the same pull after a second is another job
            begun = s.text().count('model_loading model="acme/big"')
            loads = pool.submit(s.post, "/models/acme/big/load", {})
            assert until(lambda: s.text().count('model_loading model="acme/big"') > begun)
            why = preload("int8")  # while that load is under way, or just over
            assert loads.result().status_code == 200 and loads.result().json()["profile"] == "fp16"
            if why:
                assert "'fp16'" in why and "'int8'" in why and loaded() == "fp16"
            else:
                assert loaded() == "int8"
            s.post("/models/acme/big/unload", {})
            assert until(lambda: not s.get("/models/acme/big").json()["loaded"])
    for profile in ("fp16", "int8", "fp16"):
        time.sleep(1.1)
        assert preload(profile) is None and loaded() == profile
    with s.post("/chat", {"model": "acme/big", "stream": True, "max_tokens": 400, "ignore_eos": True, "n": 16,
                          "logprobs": True, "top_logprobs": 20,  # more than sockets hold: in use until it is read
                          "messages": [{"role": "user", "content": "hi"}]}, stream=True) as r:
        lines = r.iter_lines()
        next(lines)
        made = pull(s, "acme/big", preload=True, profile="int8")
        last = ended(s, made["job_id"])
        assert last["status"] == "completed"
        assert "'fp16'" in last["preload_error"] and "'int8'" in last["preload_error"] and "in use" in last["preload_error"]
        assert loaded() == "fp16"
    listed = cli(s, "jobs").stdout
    assert "not loaded: " + last["preload_error"] in listed, listed


def test_preload_of_what_is_no_model(served):
    last = ended(served, pull(served, "acme/tiny", preload=True)["job_id"])
    assert last["status"] == "completed" and last["progress"] == 1 and last["error"] is None
    assert "acme/tiny" in last["preload_error"] and "cannot be loaded" in last["preload_error"]


def test_damaged_and_locked_stores_are_told(start_fails, tmp_path):
    (tmp_path / "store.sqlite").write_bytes(b"no database" * 1000)
    text = start_fails(tmp_path)
    assert str(tmp_path / "store.sqlite") in text and "docs/operations.md" in text
    text = start_fails(tmp_path, "--store", "mysql://x")
    assert "redis://" in text


def test_nothing_in_the_cache_before_a_pull(start, tmp_path):
    s = start(env={"HF_HUB_CACHE": str(tmp_path / "cache")})
    s.get("/jobs")
    assert not (tmp_path / "cache").exists()
    assert sorted(os.listdir(s.tmp))[0:1] and "store.sqlite" in os.listdir(s.tmp)


def cli(server, *words):
    host, port = server.url[7:].split(":")
    return subprocess.run([BINARY, *words, "--host", host, "--port", port], capture_output=True, text=True, timeout=60)


def test_the_verb_outlives_the_server(start_at, hub, tmp_path):
    """It says that the server went away, waits for it, and ends with the job."""
    hub.rate = 200 << 10
    port = str(free_port())  # the next one has the same
    s = start_at(tmp_path / "data", "--port", port, env=env(hub, tmp_path / "cache"))
    host = "127.0.0.1"
    verb = subprocess.Popen([BINARY, "pull", "acme/tiny", "--host", host, "--port", port], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)
    assert until(lambda: any(j["downloaded_bytes"] > 100000 for j in s.get("/jobs").json()["jobs"]))
    s.process.kill()
    s.process.wait()
    assert "the server went away" in verb.stderr.readline()
    hub.rate = 0
    start_at(tmp_path / "data", "--port", port, env=env(hub, tmp_path / "cache"))
    out, _ = verb.communicate(timeout=60)
    assert verb.returncode == 0 and "whole and verified" in out


def test_the_verb(served, hub):
    hub.rate = 100 << 10
    made = pull(served, "acme/tiny")
    assert until(lambda: job(served, made["job_id"])["status"] == "running")
    listed = cli(served, "jobs")
    assert listed.returncode == 0 and made["job_id"] in listed.stdout and "acme/tiny" in listed.stdout
    assert made["job_id"] in cli(served, "jobs", made["job_id"]).stdout
    assert cli(served, "jobs", "cancel", made["job_id"]).returncode == 0
    assert ended(served, made["job_id"])["status"] == "cancelled"
    assert cli(served, "jobs", "cancel", "job-none").returncode == 3
    assert cli(served, "jobs", "odd", "words").returncode == 2

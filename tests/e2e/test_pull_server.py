"""inferd pull, jobs and run as clients of a running server: the same progress, the same ends."""
import json
import time

import pytest

from conftest import MODELS, until
from hub_tools import Cache


@pytest.fixture(scope="module", autouse=True)
def llama(the_hub):
    the_hub.add("acme/llama", {p.name: p for p in (MODELS / "llama-sharded-bf16").iterdir() if p.is_file()})


@pytest.fixture
def cache(hub, start, tmp_path):
    """A cache whose environment names a server that shares it."""
    cache = Cache(hub, tmp_path / "home")
    own = {k: v for k, v in cache.env().items() if k.startswith(("HF_", "INFERD_DOWNLOAD"))}
    cache.server = start(env={**own, "HF_HUB_CACHE": str(cache.dir)})
    port = cache.server.url.rsplit(":", 1)[1]
    plain = cache.env
    cache.env = lambda **more: plain(**{"INFERD_PORT": port, **more})
    return cache


def test_pull_by_the_server(hub, cache):
    out = cache.pull("acme/tiny")
    assert "done model.safetensors" in out and "whole and verified" in out
    cache.check("acme/tiny")
    assert hub.requests and all(job["status"] == "completed" for job in cache.server.get("/jobs").json()["jobs"])
    assert "acme/tiny" in cache.run("jobs").stdout and "completed" in cache.run("jobs").stdout
    for word in ("acme/gated", "gated", "token"):
        assert word in cache.refuse("acme/gated")


def test_a_terminal_at_the_end(hub, cache):
    """A whole pull has nothing left; one file is no files."""
    hub.rate = 128 << 10
    text = cache.pull_on_terminal("acme/gguf:Q8_0")
    assert "0/1 file " in text and "1/1 file 100 %" in text, text
    assert "time left" not in text.rpartition("1/1 file")[2], text
    assert cache.pull("acme/gguf:Q8_0").startswith("1 file, ")


def test_ctrl_c_stops_the_job(hub, cache):
    hub.rate = 1 << 20
    process = cache.start("pull", "acme/tiny")
    while hub.sent() < 1 << 20:
        assert process.poll() is None
        time.sleep(0.01)
    hub.rate = 64 << 10  # and the end is far
    process.send_signal(2)
    assert process.wait(60) == 130 and "what came is kept" in process.stderr.read()
    assert until(lambda: cache.server.get("/jobs").json()["jobs"][0]["status"] == "cancelled", 10)
    hub.rate = 0
    cache.pull("acme/tiny")
    cache.check("acme/tiny")
    assert hub.sent() < 1.15 * (3 << 20)


def test_jobs_cancel(hub, cache):
    hub.rate = 1 << 20
    process = cache.start("pull", "acme/tiny")
    while hub.sent() < 1 << 18:
        assert process.poll() is None
        time.sleep(0.01)
    hub.rate = 64 << 10
    job = cache.server.get("/jobs").json()["jobs"][0]["job_id"]
    assert cache.run("jobs", "cancel", job).returncode == 0
    assert process.wait(60) == 130
    assert cache.run("jobs", "cancel", "nothing").returncode == 3


def test_run_fetches_what_is_not_there(hub, cache):
    done = cache.run("run", "acme/llama", "Hello")
    assert done.returncode == 0, done.stderr
    cache.check("acme/llama")
    assert "acme/llama" in cache.run("list").stdout


def test_rm_by_the_server(cache):
    cache.pull("acme/llama")
    body = {"model": "acme/llama", "prompt": "a", "max_tokens": 400, "n": 32, "ignore_eos": True, "stream": True,
            "logprobs": 20}  # more than sockets hold: in use until it is read
    with cache.server.post("/v1/completions", body, stream=True) as r:
        lines = r.iter_lines()
        assert r.status_code == 200 and next(lines)
        busy = cache.run("rm", "acme/llama")
        assert busy.returncode != 0 and "in use" in busy.stderr and cache.folder("acme/llama").exists()
        assert b"data: [DONE]" in list(lines)
    done = until(lambda: (d := cache.run("rm", "acme/llama")).returncode == 0 and d)
    assert "acme/llama: removed, " in done.stdout and not cache.folder("acme/llama").exists()
    assert until(lambda: "model_unloaded" in cache.server.text())
    assert cache.server.get("/models/acme/llama").status_code == 404
    assert cache.run("rm", "acme/llama").returncode == 3
    own = cache.run("rm", "llama-bf16")
    assert own.returncode == 2 and "models folder" in own.stderr


def test_rm_of_what_the_server_does_not_know(hub, cache):
    """What a pull that was stopped left, and another cache than the server's."""
    hub.rate = 500000
    process = cache.start("pull", "acme/tiny", INFERD_PORT="1")
    while hub.sent() < 100000:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert cache.run("rm", "acme/tiny").returncode == 0 and not cache.folder("acme/tiny").exists()


def test_list_with_and_without_a_server(cache):
    cache.pull("acme/llama")
    there = cache.run("list")
    assert "acme/llama" in there.stdout and "llama-bf16" in there.stdout and there.stderr == ""
    alone = cache.run("list", INFERD_PORT="1", INFERD_MODELS_DIR=str(MODELS))
    assert alone.returncode == 0 and "No server answers" in alone.stderr and "On this disk" in alone.stderr
    names = {x.split()[0]: x.split()[1] for x in there.stdout.splitlines()[1:]}
    assert {x.split()[0]: x.split()[1] for x in alone.stdout.splitlines()[1:]} == names
    read = json.loads(cache.run("list", "--json", INFERD_PORT="1", INFERD_MODELS_DIR=str(MODELS)).stdout)
    assert {m["name"] for m in read["models"]} == set(names) and not any(m["loaded"] for m in read["models"])
    assert cache.run("list", INFERD_PORT="1", INFERD_MODELS_DIR=str(cache.home / "none"), HF_HOME=str(cache.home / "no")
                     ).stdout.splitlines()[1:] == []

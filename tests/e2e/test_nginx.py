"""Two instances on one Redis behind a real Nginx, configured as docs/operations.md says: nothing that a client sees depends on
which of them answers (R68)."""
import concurrent.futures
import json
import re
import shutil
import subprocess
import time
import uuid

import pytest
import requests

from conftest import ROOT, free_port, until
from redis_tools import Redis
from test_jobs import FINAL, WEIGHTS, env
from test_sessions import MODEL, kept

START = "/usr/sbin/nginx"


class Nginx:
    """With the methods of conftest's Server; each request may go to any instance."""

    def __init__(self, folder, instances):
        binary = shutil.which("nginx") or START
        if not shutil.which(binary):
            pytest.skip("there is no nginx")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        block = re.search(r"```nginx\n(.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.S).group(1)
        block = block.replace("listen 80;", f"listen 127.0.0.1:{self.port};")
        for i, s in enumerate(instances, 1):
            assert f"10.0.0.{i}:8005" in block
            block = block.replace(f"10.0.0.{i}:8005", s.url[7:])
        paths = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (folder / "nginx.conf").write_text(f"daemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nworker_processes 1;\n"
                                           f"events {{}}\nhttp {{\naccess_log off;\n{paths}{block}}}\n")
        self.log = folder / "error.log"
        self.process = subprocess.Popen([binary, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(self.log)])
        assert until(self.answers), self.log.read_text()

    def answers(self):
        try:
            return requests.get(self.url + "/health/live", timeout=60).status_code == 200
        except requests.RequestException:
            return False

    def _headers(self, more):
        return {"X-Session-Id": str(uuid.uuid4()), **(more or {})}

    def get(self, path, headers=None, **kw):
        return requests.get(self.url + path, headers=self._headers(headers), timeout=60, **kw)

    def post(self, path, body, headers=None, **kw):
        return requests.post(self.url + path, json=body, headers=self._headers(headers), timeout=120, **kw)

    def delete(self, path):
        return requests.delete(self.url + path, headers=self._headers(None), timeout=60)

    def stop(self):
        self.process.terminate()
        self.process.wait(60)


@pytest.fixture
def site(start_at, hub, tmp_path):
    """The front, and the two behind it."""
    for name in ("redis", "nginx"):
        (tmp_path / name).mkdir()
    redis = Redis(tmp_path / "redis")
    both = [start_at(tmp_path / x, "--store", redis.url, env=env(hub, tmp_path / "cache")) for x in "ab"]
    front = Nginx(tmp_path / "nginx", both)
    yield front, both
    front.stop()
    redis.kill()


def chat(server, session=None, text="x", headers=None, **fields):
    body = {"model": MODEL, "max_tokens": 4, "temperature": 0, "ignore_eos": True,
            "messages": [{"role": "user", "content": text}], **fields}
    return server.post("/chat", {**body, "session_id": session} if session else body, headers=headers)


def n_served(s, path="/chat"):
    return sum("request_received" in x and path in x for x in s.text().splitlines())


def test_sessions_and_keys(site):
    front, both = site
    for i in range(12):
        r = chat(front, "one", f"turn {i}")
        assert r.status_code == 200, r.text
    assert [c for role, c in kept(front, "one") if role == "user"] == [f"turn {i}" for i in range(12)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert {r.status_code for r in pool.map(lambda i: chat(front, "two", f"t{i}"), range(16))} == {200}
    assert min(n_served(s) for s in both) > 0, "one instance served all: nothing is shown"
    messages = kept(front, "two")
    assert [r for r, _ in messages] == ["user", "assistant"] * 16 and len({c for r, c in messages if r == "user"}) == 16
    first = chat(front, "three", headers={"Idempotency-Key": "k"})
    before = [n_served(s) for s in both]
    for _ in range(24):  # to one instance alone once in 8 million times
        again = chat(front, "three", headers={"Idempotency-Key": "k"})
        assert again.content == first.content and again.headers["Idempotency-Replayed"] == "true"
    assert all(n_served(s) > n for s, n in zip(both, before)) and len(kept(front, "three")) == 2
    assert {front.get("/sessions/three").status_code for _ in range(6)} == {200}
    assert front.delete("/sessions/three").status_code == 200
    assert {front.get("/sessions/three").status_code for _ in range(6)} == {404}


def test_a_session_stays_with_its_instance(site):
    front, both = site
    for i in range(3):
        r = chat(front, "sticky", "word " * 20 + str(i), headers={"X-Session-Id": "sticky"})
        assert r.status_code == 200 and (i == 0 or r.json()["cached_tokens"] > 0)
    assert sorted(n_served(s) for s in both) == [0, 3]


def test_jobs(site, hub):
    front, both = site
    hub.rate = 256 << 10
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ids = {r.json()["job_id"] for r in pool.map(lambda _: front.post("/pull", {"model": "acme/tiny"}), range(8))}
    assert len(ids) == 1
    id = ids.pop()
    came = []
    with front.get(f"/jobs/{id}/events", stream=True) as r:  # unbuffered: events come while it runs
        for line in r.iter_lines(chunk_size=1):
            if line.startswith(b"data: "):
                came.append(json.loads(line[6:]))
                if len(came) == 3:
                    assert front.get(f"/jobs/{id}").json()["status"] == "running"
                    hub.rate = 0
    assert came[-1]["status"] == "completed" and len(came) > 3
    assert {front.get(f"/jobs/{id}").json()["status"] for _ in range(6)} == {"completed"}
    assert hub.sent("cdn") == WEIGHTS
    hub.rate = 100 << 10
    id = front.post("/pull", {"model": "acme/sharded"}).json()["job_id"]
    assert until(lambda: front.get(f"/jobs/{id}").json()["status"] == "running")
    assert front.delete(f"/jobs/{id}").status_code in (200, 202)
    assert until(lambda: front.get(f"/jobs/{id}").json()["status"] in FINAL)
    assert {front.get(f"/jobs/{id}").json()["status"] for _ in range(6)} == {"cancelled"}


def test_streams_are_not_held_back(site):
    front, both = site
    body = {"model": MODEL, "stream": True, "max_tokens": 400, "ignore_eos": True, "n": 64, "prompt": "a"}
    with front.post("/v1/completions", {**body, "logprobs": 20}, stream=True) as r:  # more than sockets hold
        assert r.status_code == 200
        lines = r.iter_lines()
        assert next(lines).startswith(b"data: ")
        time.sleep(1)  # who takes all of it in would have all of it now
        assert not any("request_done" in x and "/v1/completions" in x for s in both for x in s.text().splitlines())
        assert b"data: [DONE]" in list(lines)
    with front.post("/v1/completions", {**body, "max_tokens": 100000 // 256, "n": 16}, stream=True) as r:
        next(r.iter_lines(chunk_size=1))
    assert until(lambda: sum(s.metric("vllm:num_requests_running", MODEL) for s in both) == 0)  # its client's end is told on


def talk(front, i, n, stop):
    """Turns of one session, each under a key of its own and sent until it is answered. What each came to."""
    done = {}
    for k in range(n):
        text, tries = f"c{i} t{k}", 0
        while True:
            tries += 1
            assert tries < 200
            try:
                r = chat(front, f"s{i}", text, headers={"Idempotency-Key": text.replace(" ", "-")})
            except requests.RequestException:
                continue
            if r.status_code == 200:
                done[text] = "answered"
                break
            if r.status_code == 409:  # begun by the one that died
                done[text] = "unknown"
                break
            assert r.status_code in (502, 503, 504), r.text
            time.sleep(0.05)
        if k == n // 3:
            stop()
    return done


def test_an_instance_is_killed_under_load(site):
    front, both = site
    chat(front, "warm")
    arrived, killed = [], []

    def one_more():
        arrived.append(1)
        if len(arrived) == 6 and not killed:
            killed.append(1)
            both[0].process.kill()

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        talks = [f.result() for f in [pool.submit(talk, front, i, 12, one_more) for i in range(12)]]
    both[0].process.wait()
    assert killed and n_served(both[0]) > 0
    for i, done in enumerate(talks):
        said = [c for role, c in kept(front, f"s{i}") if role == "user"]
        assert len(said) == len(set(said)), said  # nothing was done twice
        assert set(said) >= {t for t, how in done.items() if how == "answered"}  # nor lost
        assert said == sorted(said, key=lambda t: int(t.split("t")[1]))
    assert sum(how == "unknown" for done in talks for how in done.values()) <= 12  # at most what each had under way
    assert {chat(front).status_code for _ in range(10)} == {200}

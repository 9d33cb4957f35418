"""Several instances on one Redis: shared jobs and sessions, one download for two pulls, instances and Redis that die."""
import concurrent.futures
import json
import random
import signal
import threading
import time

import pytest
import requests

from conftest import until
from hub_tools import noise, small_files
from redis_tools import Redis
from test_jobs import FINAL, WEIGHTS, ended, env, job, pull
from test_sessions import kept, say


@pytest.fixture
def redis(tmp_path):
    (tmp_path / "redis").mkdir()
    r = Redis(tmp_path / "redis")
    yield r
    r.kill()


@pytest.fixture
def instance(start_at, redis, hub, tmp_path):
    def run(name, *flags, cache="cache"):
        return start_at(tmp_path / name, "--store", redis.url, *flags, env=env(hub, tmp_path / cache))

    return run


def test_one_download_for_two_pulls(instance, hub):
    a, b = instance("a", cache="cache-a"), instance("b", cache="cache-b")
    hub.rate = 1 << 20
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ids = {f.result()["job_id"] for f in [pool.submit(pull, s, "acme/tiny") for s in (a, b) * 4]}
    assert len(ids) == 1
    id = ids.pop()
    seen = {}

    def watch(name, s):
        with s.get(f"/jobs/{id}/events", stream=True) as r:
            seen[name] = [json.loads(x[6:]) for x in r.iter_lines() if x.startswith(b"data: ")]

    threads = [threading.Thread(target=watch, args=x) for x in (("a", a), ("b", b))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    for name in ("a", "b"):  # progress is told on both
        assert seen[name][-1]["status"] == "completed" and len({e["progress"] for e in seen[name]}) > 3
    assert hub.sent("cdn") == WEIGHTS
    assert job(a, id) == job(b, id) and job(a, id)["attempts"] == 1
    assert [j["job_id"] for j in b.get("/jobs").json()["jobs"]] == [id]


def test_cancel_on_another_instance(instance, hub):
    a, b = instance("a"), instance("b")
    hub.rate = 100 << 10
    id = pull(a, "acme/tiny")["job_id"]
    running = until(lambda: (j := job(b, id))["downloaded_bytes"] > 0 and j)
    other = b if running["instance"] == a.get("/health").json()["instance"] else a
    assert other.delete(f"/jobs/{id}").status_code == 202
    assert ended(a, id)["status"] == "cancelled"


@pytest.mark.slow
def test_an_instance_dies(instance, hub):
    a, b = instance("a"), instance("b")
    hub.rate = 400 << 10
    id = pull(a, "acme/tiny")["job_id"]
    running = until(lambda: (j := job(b, id))["downloaded_bytes"] > 300000 and j)
    first, second = (a, b) if running["instance"] == a.get("/health").json()["instance"] else (b, a)
    first.process.kill()
    before = job(second, id)
    hub.rate = 0
    last = ended(second, id)
    assert last["status"] == "completed" and last["attempts"] == 2 and last["progress"] == 1
    assert before["status"] == "running" and before["progress"] <= 1
    assert hub.sent("cdn") < WEIGHTS * 1.3  # the second one went on from what the first had on disk


def test_sessions_are_shared(instance):
    a, b = instance("a"), instance("b")
    first = say(a, "shared", "one")
    second = say(b, "shared", "two")
    assert [m[1] for m in kept(a, "shared")] == ["one", first["message"]["content"], "two", second["message"]["content"]]
    alone = instance("c")
    r = alone.post("/chat", {"model": "llama-tied-f32", "max_tokens": 4, "temperature": 0, "ignore_eos": True,
                             "messages": [{"role": r, "content": c} for r, c in kept(a, "shared")[:3]]})
    assert r.json()["message"] == second["message"]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # all at once: one after another
        for f in [pool.submit(say, (a, b)[i % 2], "shared", f"n{i}", max_tokens=12) for i in range(8)]:
            f.result()
    messages = kept(b, "shared")
    assert len(messages) == 4 + 16 and [m[0] for m in messages] == ["user", "assistant"] * 10
    assert {m[1] for m in messages if m[0] == "user"} == {"one", "two"} | {f"n{i}" for i in range(8)}
    assert a.delete("/sessions/shared").status_code == 200
    assert b.get("/sessions/shared").status_code == 404


@pytest.mark.slow
def test_an_instance_dies_with_a_session(instance):
    a, b = instance("a"), instance("b")
    say(a, "left", "one")
    began = time.monotonic()
    say(b, "right", "one")
    usual = time.monotonic() - began
    body = {"model": "llama-tied-f32", "session_id": "left", "ignore_eos": True, "stream": True,
            "messages": [{"role": "user", "content": "lost"}]}
    with a.post("/chat", body, stream=True) as r:
        lines = r.iter_lines()  # dropping it would end the connection
        next(lines)
        a.process.kill()
    began = time.monotonic()
    say(b, "left", "two")  # waits until the lease of the dead one is over
    assert time.monotonic() - began < 15 + 3 * usual
    assert [c for r, c in kept(b, "left") if r == "user"] == ["one", "two"]


def test_redis_goes_away(instance, redis, hub):
    a = instance("a")
    chat = {"model": "llama-tied-f32", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    assert until(lambda: a.get("/health").json()["status"] == "healthy")
    say(a, "s", "one")
    hub.rate = 1 << 20
    id = pull(a, "acme/tiny")["job_id"]
    assert until(lambda: job(a, id)["status"] == "running")

    def chats():
        began = time.monotonic()
        for _ in range(20):
            assert a.post("/chat", chat).status_code == 200
        return time.monotonic() - began

    usual = chats()
    redis.kill()
    health = until(lambda: (h := a.get("/health").json())["status"] == "degraded" and h)
    assert health and str(redis.port) in health["reasons"][0]
    assert chats() < 10 + 3 * usual
    for r in (a.post("/chat", {**chat, "session_id": "s"}), a.post("/pull", {"model": "acme/sharded"}), a.get("/jobs"),
              a.get("/sessions"), a.get(f"/jobs/{id}/events")):
        assert r.status_code == 503 and "Redis" in r.json()["error"]["message"], r.text
        assert int(r.headers["Retry-After"]) > 0
    hub.rate = 0
    assert until(lambda: hub.sent("cdn") >= WEIGHTS)  # what ran goes on
    redis.start()
    assert until(lambda: a.get("/health").json()["status"] == "healthy")
    assert ended(a, id)["status"] == "completed"
    say(a, "s", "two")
    assert [c for r, c in kept(a, "s") if r == "user"] == ["one", "two"]


def test_starts_without_redis(instance, redis):
    redis.kill()
    a = instance("a")
    assert a.get("/health").json()["status"] == "degraded"
    assert a.get("/jobs").status_code == 503
    redis.start()
    assert until(lambda: a.get("/jobs").status_code == 200)
    assert a.stop() == 0


@pytest.mark.parametrize("n", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_random_deaths(instance, hub, n):
    """Instances are killed and started at random while pulls are asked of all of them: every job ends, and ends once."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    dice = random.Random(seed)
    names = ["a", "b", "c"]
    alive = {x: instance(x) for x in names}
    hub.rate = 6 << 20
    for i in range(n):
        hub.add(f"run/m{i}", {**small_files(), "model.safetensors": noise(300000, 1000 + i)})
    ids = {}
    for i in range(n):
        for x in dice.sample(names, 2):
            made = pull(alive[x], f"run/m{i}")
            ids.setdefault(f"run/m{i}", set()).add(made["job_id"])
        time.sleep(dice.random() * 0.1)
        if i % 2 == 1:
            x = dice.choice(names)
            alive[x].process.kill() if dice.random() < 0.8 else alive[x].stop()
            alive[x].process.wait()
            alive[x] = instance(x)
    hub.rate = 0
    jobs = until(lambda: (all_jobs := alive["a"].get("/jobs?limit=1000").json()["jobs"]) and
                 all(j["status"] in FINAL for j in all_jobs) and all_jobs, 60 + n)
    assert jobs, alive["a"].get("/jobs").text
    assert {j["status"] for j in jobs} == {"completed"}
    assert {j["model"] for j in jobs} == set(ids)
    completed = {}
    for x in names:
        for line in (alive[x].tmp / "log").read_text().splitlines():
            if "job_ended" in line and "status=completed" in line:
                id = line.split("id=")[1].split()[0]
                completed[id] = completed.get(id, 0) + 1
    assert all(v == 1 for v in completed.values()), completed
    for i in range(n):  # the files are whole; what was cut off was not fetched over and over
        sent = sum(r.sent for r in hub.requests if r.kind == "cdn" and f"run/m{i}/" in r.path)
        assert sent <= 300000 * (1 + max(j["attempts"] for j in jobs if j["model"] == f"run/m{i}"))


LONG = {"model": "llama-tied-f32", "messages": [{"role": "user", "content": "x"}], "max_tokens": 180, "ignore_eos": True,
        "n": 64}


def with_key(s, key, **more):
    return requests.post(s.url + "/chat", json={**LONG, **more}, headers={"Idempotency-Key": key}, timeout=120)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_key_of_an_instance_that_is_gone_is_free(instance, end):
    a, b = instance("a", "--isa", "ref", "--max-streams", "1"), instance("b")  # `a` takes its time
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        lost = pool.submit(with_key, a, "of-a")
        assert until(lambda: a.get("/health").json()["active_requests"])
        began = time.monotonic()
        a.process.send_signal(signal.SIGSTOP)  # its request is not done before the other has asked
        under_way = with_key(b, "of-a")
        assert under_way.status_code == 409 and int(under_way.headers["Retry-After"]) > 0, under_way.text
        a.process.send_signal(end)
        again = until(lambda: (r := with_key(b, "of-a")).status_code != 409 and r)
        waited = time.monotonic() - began - again.elapsed.total_seconds()  # until it was taken for the first
        assert again.status_code == 200 and 3 < waited < 12, (again.status_code, waited)
        assert "Idempotency-Replayed" not in again.headers
        if end == signal.SIGSTOP:  # it only slept: its client has an answer, which is not kept over the other
            a.process.send_signal(signal.SIGCONT)
            late = lost.result()
            assert late.status_code == 200 and late.content != again.content
        else:
            with pytest.raises(requests.ConnectionError):
                lost.result()
    for s in (b, a) if end == signal.SIGSTOP else (b,):
        replayed = with_key(s, "of-a")
        assert replayed.content == again.content and replayed.headers["Idempotency-Replayed"] == "true"


@pytest.mark.slow
def test_a_key_is_held_as_long_as_its_request(instance):
    a, b = instance("a"), instance("b")
    with requests.post(a.url + "/chat", json={**LONG, "stream": True, "logprobs": True, "top_logprobs": 20},
                       headers={"Idempotency-Key": "of-a"}, stream=True) as r:
        lines = r.iter_lines()  # and nobody reads more: the stream waits
        next(lines)
        for _ in range(9):
            time.sleep(1)
            assert with_key(b, "of-a", stream=True, logprobs=True, top_logprobs=20).status_code == 409
    assert until(lambda: with_key(b, "of-a", stream=True, logprobs=True, top_logprobs=20).status_code == 200)


def test_idempotency_keys_are_shared(instance, redis):
    a, b = instance("a"), instance("b")
    body = {"model": "llama-tied-f32", "messages": [{"role": "user", "content": "x"}], "max_tokens": 8, "session_id": "once"}

    def send(s, body=body, path="/chat", key="key-1"):
        return requests.post(s.url + path, json=body, headers={"Idempotency-Key": key}, timeout=60)

    first = send(a)
    assert first.status_code == 200 and "Idempotency-Replayed" not in first.headers
    for s in (a, b):
        again = send(s)
        assert again.status_code == 200 and again.content == first.content
        assert again.headers["Idempotency-Replayed"] == "true"
    assert len(kept(b, "once")) == 2  # one turn
    for other in (send(b, {**body, "max_tokens": 9}), send(b, body, "/v1/chat/completions")):
        assert other.status_code == 400 and other.json()["error"]["param"] == "Idempotency-Key"
    assert requests.post(a.url + "/chat", json=body, headers={"Idempotency-Key": "a b"}, timeout=30).status_code == 400

    long = {**body, "session_id": "long", "max_tokens": 200, "ignore_eos": True}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = [f.result() for f in [pool.submit(send, s, long, "/chat", "key-2") for s in (a, b, a, b)]]
    codes = sorted(r.status_code for r in answers)
    assert codes[0] == 200 and set(codes) <= {200, 409}
    assert len(kept(a, "long")) == 2
    failed = send(a, {**body, "timeout": 0.001, "max_tokens": 200}, key="key-3")
    assert failed.status_code == 408
    assert until(lambda: send(a, {**body, "timeout": 0.001, "max_tokens": 200}, key="key-3").status_code == 408)
    assert send(a, {**body, "stream": True, "session_id": "s"}, key="key-4").status_code == 200
    redis.kill()
    assert until(lambda: send(a, body, key="key-5").status_code == 503)

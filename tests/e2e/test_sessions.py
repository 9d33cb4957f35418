"""Sessions of POST /chat: what is kept, for how long, in which order."""
import concurrent.futures
import contextlib
import json
import os
import re
import sqlite3
import subprocess
import threading
import time

import pytest
import requests

from conftest import ROOT, until
from test_hostile import sleeper, whole

MODEL = "llama-tied-f32"


@pytest.fixture(params=["sqlite", "memory"], scope="module")
def served(request, start_once):
    return start_once("--store", request.param)


def say(server, session, text, **fields):
    r = server.post("/chat", {"model": MODEL, "session_id": session, "max_tokens": 4, "temperature": 0, "ignore_eos": True,
                              "messages": [{"role": "user", "content": text}], **fields})
    assert r.status_code == 200, r.text
    return r.json()


def kept(server, session):
    r = server.get(f"/sessions/{session}")
    assert r.status_code == 200, r.text
    return [(m["role"], m["content"]) for m in r.json()["messages"]]


def test_a_conversation(served):
    a = say(served, "talk", "one")
    b = say(served, "talk", "two")
    assert kept(served, "talk") == [("user", "one"), ("assistant", a["message"]["content"]), ("user", "two"),
                                    ("assistant", b["message"]["content"])]
    whole = [{"role": r, "content": c} for r, c in kept(served, "talk")[:3]]
    same = served.post("/chat", {"model": MODEL, "messages": whole, "max_tokens": 4, "temperature": 0,
                                 "ignore_eos": True}).json()
    assert same["message"] == b["message"] and same["prompt_eval_count"] == b["prompt_eval_count"]


def test_the_cache_of_keys_and_values_is_used(served):
    first = say(served, "cached", "word " * 100)
    second = say(served, "cached", "and now?")
    assert first["prompt_eval_count"] > 96
    assert second["cached_tokens"] >= first["prompt_eval_count"] // 32 * 32 - 32 > 0


def test_busy_workers(start):
    """A stream ends, its turn is kept, and who waits for the next turn is answered, if only that the server is busy."""
    s = start("--max-connections", "4", "--isa", "ref", "--max-batch-tokens", "16")
    say(s, "first", "load the model")
    body = json.dumps({"model": MODEL, "prompt": "word " * 400000}).encode()
    head = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    over = threading.Event()

    def flood():
        """Work whose clients leave at once: more of it waits than there are connections."""
        while not over.is_set():
            with contextlib.suppress(OSError), s.connect() as c:
                c.sendall(head + body)
                c.settimeout(0.01)
                c.recv(1)

    def go(i, **fields):
        body = {"model": MODEL, "session_id": str(i), "ignore_eos": True, "messages": [{"role": "user", "content": "go"}]}
        return requests.post(s.url + "/chat", json={**body, **fields}, timeout=60, stream=fields.get("stream", False))

    def under_flood(i, end):
        """A stream, who waits for the turn behind it, then the flood; `end` ends the stream."""
        assert until(lambda: s.post("/tokenize", {"model": MODEL, "prompt": "x"}).status_code == 200)
        with concurrent.futures.ThreadPoolExecutor(3) as pool, go(i, max_tokens=480, max_history=0, stream=True) as r:
            lines = r.iter_lines()
            assert r.status_code == 200 and next(lines)
            behind = pool.submit(go, i, max_tokens=2)
            time.sleep(0.02)  # for it to come, and for the flood to rise: without them less is tested
            clients = [pool.submit(flood) for _ in range(2)]
            time.sleep(0.1)
            try:
                end(r, lines)
                assert behind.result().status_code in (200, 429), behind.result().text
            finally:
                over.set()
                for c in clients:
                    c.result()
                over.clear()

    def whole(r, lines):
        assert json.loads([x for x in lines if x.startswith(b"data: ")][-1][6:])["done"] is True

    for i in range(3):
        under_flood(i, whole)
        assert s.get(f"/sessions/{i}").status_code == 200
    for i in range(3):
        under_flood(f"left {i}", lambda r, lines: r.close())
    assert s.get("/health").json()["status"] == "healthy"


def test_streams_are_kept_before_they_end(served):
    text = []
    r = served.post("/chat", {"model": MODEL, "session_id": "streamed", "max_tokens": 8, "stream": True, "ignore_eos": True,
                              "messages": [{"role": "user", "content": "go"}]}, stream=True)
    for line in r.iter_lines():
        if line.startswith(b"data: "):
            event = json.loads(line[6:])
            text.append(event.get("delta", {}).get("content", ""))
            if event["done"]:
                assert event["done_reason"] == "length" and event["eval_count"] == 8
                assert kept(served, "streamed") == [("user", "go"), ("assistant", "".join(text))]
    assert event["done"]


def test_a_conversation_that_outgrew_the_context_goes_on(served):
    text = "word " * 60
    while True:
        r = served.post("/chat", {"model": MODEL, "session_id": "long", "max_tokens": 4, "messages": [{"role": "user", "content": text}]})
        if r.status_code != 200:
            break
    error = r.json()["error"]
    assert r.status_code == 400 and error["code"] == "context_length_exceeded" and "max_history" in error["message"], error
    before = len(kept(served, "long"))
    assert before >= 2
    say(served, "long", "on", max_history=2)  # with the last two of before, and these two are kept
    assert [c for _, c in kept(served, "long")][0] == "on"
    say(served, "long", "and on")
    assert len(kept(served, "long")) == 4


def test_system_and_max_history(served):
    system = {"role": "system", "content": "be brief"}
    say(served, "short", "1", messages=[system, {"role": "user", "content": "1"}])
    for i in range(2, 6):
        say(served, "short", str(i), max_history=4)
    messages = kept(served, "short")
    assert messages[0] == ("system", "be brief") and [m[0] for m in messages[1:]] == ["user", "assistant"] * 2
    assert [m[1] for m in messages if m[0] == "user"] == ["4", "5"]
    say(served, "short", "6", max_history=3)
    assert len(kept(served, "short")) == 4
    say(served, "short", "7", messages=[{"role": "system", "content": "be long"}, {"role": "user", "content": "7"}])
    assert kept(served, "short")[0] == ("system", "be long")
    assert sum(role == "system" for role, _ in kept(served, "short")) == 1
    say(served, "short", "8", max_history=0)
    assert kept(served, "short") == [("system", "be long")]


def test_lists_and_deletes(served):
    for i in range(3):
        say(served, f"list/{i} ü", "x")
    listed = served.get("/sessions").json()["sessions"]
    names = [s["session_id"] for s in listed]
    assert names[:3] == ["list/2 ü", "list/1 ü", "list/0 ü"] and listed[0]["message_count"] == 2
    assert len(served.get("/sessions?limit=2").json()["sessions"]) == 2
    assert served.get("/sessions?limit=0").status_code == 400 and served.get("/sessions?max=1").status_code == 400
    path = "/sessions/list%2F1%20%C3%BC"
    assert served.get(path).json()["session_id"] == "list/1 ü"
    assert served.delete(path).status_code == 200
    assert served.get(path).status_code == 404 and served.delete(path).status_code == 404
    assert "list/1 ü" not in [s["session_id"] for s in served.get("/sessions").json()["sessions"]]


@pytest.mark.parametrize("fields, param", [
    ({"session_id": ""}, "session_id"), ({"session_id": "a\nb"}, "session_id"), ({"session_id": "x" * 257}, "session_id"),
    ({"session_id": 5}, "session_id"), ({"n": 2}, "n"), ({"max_history": -1}, "max_history"),
    ({"max_history": "3"}, "max_history"), ({"max_history": 10001}, "max_history"),
])
def test_bad_fields(served, fields, param):
    r = served.post("/chat", {"model": MODEL, "session_id": "bad", "messages": [{"role": "user", "content": "x"}],
                              "max_tokens": 1, **fields})
    assert r.status_code == 400 and r.json()["error"]["param"] == param, r.text
    assert served.get("/sessions/bad").status_code == 404


def test_what_fails_adds_nothing(served):
    say(served, "safe", "x")
    before = kept(served, "safe")
    body = {"model": MODEL, "session_id": "safe", "messages": [{"role": "user", "content": "y"}], "ignore_eos": True}
    assert served.post("/chat", {**body, "timeout": 0.001}).status_code == 408
    assert served.post("/chat", {**body, "max_tokens": 10 ** 6}).status_code == 400
    assert served.post("/chat", {**body, "model": "none"}).status_code == 404
    holds_the_turn(served, "safe").close()
    after = say(served, "safe", "z")  # waits for those before it, and is not held up by them
    assert kept(served, "safe") == before + [("user", "z"), ("assistant", after["message"]["content"])]


def holds_the_turn(server, session, **more):
    """A turn of a session under way, and not over before its client has read it."""
    name = f"holds-{session}-{time.monotonic_ns()}"
    client = sleeper(server, name, n=1, session_id=session, **more)
    assert until(lambda: f"request_first_token id={name} " in server.text())
    return client


def test_turns_that_wait_keep_their_order(served):
    first = holds_the_turn(served, "order", max_history=0)  # and leaves nothing
    came = served.text().count("request_received")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        futures = []
        for i in range(1, 7):
            futures.append(pool.submit(say, served, "order", str(i), max_tokens=30))
            assert until(lambda: served.text().count("request_received") == came + i)
            time.sleep(0.1)  # for a worker to take it up; nobody sees that from outside
        assert whole(first)[-1]["done"]
        for f in futures:
            f.result()
    first.close()
    assert [c for r, c in kept(served, "order") if r == "user"] == [str(i) for i in range(1, 7)]


def test_a_wait_for_the_session_has_a_timeout(served):
    first = holds_the_turn(served, "slow")
    r = served.post("/chat", {"model": MODEL, "session_id": "slow", "messages": [{"role": "user", "content": "x"}],
                              "max_tokens": 1, "timeout": 0.05})
    assert r.status_code == 408, r.text
    assert whole(first)[-1]["done"]
    first.close()
    assert len(kept(served, "slow")) == 2


def test_time_to_live(start):
    for ttl in (0.6, 3, 15):  # a machine that takes longer from use to use than the session lives shows nothing: once more
        s = start("--session-ttl", str(ttl))
        used = [time.monotonic()]
        say(s, "ttl", "x")
        for _ in range(3):  # used: it lives on
            time.sleep(ttl / 2)
            say(s, "ttl", "y")
            used.append(time.monotonic())
        n_kept = len(s.get("/sessions/ttl").json().get("messages", []))
        used.append(time.monotonic())
        if max(b - a for a, b in zip(used, used[1:])) < ttl:
            break
    assert n_kept == 8
    time.sleep(1.5 * ttl)
    assert s.get("/sessions/ttl").status_code == 404 and s.get("/sessions").json()["sessions"] == []
    say(s, "ttl", "new")
    assert len(kept(s, "ttl")) == 2


def test_a_kill_forgets_nothing(start_at, tmp_path):
    s = start_at(tmp_path / "data")
    say(s, "kept", "a")
    answer = say(s, "kept", "b")["message"]["content"]
    s.process.kill()
    s.process.wait()
    s = start_at(tmp_path / "data")
    assert len(kept(s, "kept")) == 4 and kept(s, "kept")[-1] == ("assistant", answer)
    assert s.stop() == 0


def test_a_name_in_the_path_is_taken_whole(served):
    name = "n" * 256
    say(served, name, "one")
    for other, status in ((name + "n", 400), (name + "%00", 404)):
        for method in (requests.get, requests.delete):
            assert method(served.url + "/sessions/" + other, timeout=20).status_code == status
    assert len(kept(served, name)) == 2


def damage_index(path, name):
    """Overwrites the page of an index: the rows are still there."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        (page,), = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,))
        (size,), = db.execute("PRAGMA page_size")
    with open(path, "r+b") as f:
        f.seek((page - 1) * size)
        f.write(b"\xff" * 100)


def test_saves_what_is_readable_as_the_operators_book_says(start_at, tmp_path):
    s = start_at(tmp_path)
    said = [say(s, f"s{i}", "one")["message"]["content"] for i in range(8)]
    s.stop()
    damage_index(tmp_path / "store.sqlite", "sessions_changed")
    book = (ROOT / "docs/operations.md").read_text()
    command = re.search(r"^ {6}\(sqlite3 store.sqlite(.*\n)+?.*new.sqlite$", book, re.M).group()
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    for ending in ("", "-wal", "-shm"):
        (tmp_path / f"store.sqlite{ending}").unlink(missing_ok=True)
    os.replace(tmp_path / "new.sqlite", tmp_path / "store.sqlite")
    s = start_at(tmp_path)
    assert [kept(s, f"s{i}") for i in range(8)] == [[("user", "one"), ("assistant", a)] for a in said]

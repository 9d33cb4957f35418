"""10,000 jobs and 10,000 sessions in the store: lists stay quick, and chat does not notice them."""
import sqlite3
import time

import pytest
import requests

from test_sessions import MODEL

N = 10000
LIST_MS_MAX = 20


def fill(path):
    """As if the server had done it all: its own tables, filled while it is not there."""
    db, now = sqlite3.connect(path), int(time.time() * 1000)
    detail = '"downloaded_bytes":123456789,"total_bytes":123456789,"bytes_per_second":12345678.0,"eta_seconds":0'
    db.executemany(
        "INSERT INTO jobs(id, key, model, status, progress, created_ms, changed_ms, finished_ms, token, claims, request, detail)"
        " VALUES(?, ?, ?, ?, 1, ?, ?, ?, ?, 1, ?, ?)",
        ((f"job-{now - N + i:012x}-{i:08x}", f"k{i}", f"org/m{i % 50}", 2 if i % 10 else 3, now - N + i, now - N + i,
          now - N + i, i + 1, f"org/m{i % 50}\t\t0", detail) for i in range(N)))
    text = '{"messages":[' + ",".join('{"role":"user","content":"' + "t" * 300 + '"}' for _ in range(4)) + "]}"
    db.executemany("INSERT INTO sessions(owner, id, version, created_ms, changed_ms, expires_ms, n_messages, text)"
                   " VALUES('', ?, 1, ?, ?, ?, 4, ?)",
                   ((f"old-{i}", now - N + i, now - N + i, now + 3600000, text) for i in range(N)))
    db.commit()
    db.close()


@pytest.fixture(scope="module")
def full_and_empty(start_once, tmp_path_factory):
    empty, full = start_once("--store", "sqlite"), start_once("--store", "sqlite")
    folder = full.tmp
    assert full.stop() == 0
    fill(folder / "store.sqlite")
    return start_once("--store", f"sqlite:{folder}/store.sqlite"), empty


def median(ms):
    return sorted(ms)[len(ms) // 2]


def test_lists(full_and_empty):
    full, _ = full_and_empty
    now, http = time.time(), requests.Session()
    for path, n in (("/jobs?limit=100", 100), ("/jobs?status=failed&limit=100", 100), ("/jobs?model=org/m7&limit=100", 100),
                    ("/jobs?status=completed&model=org/m7&limit=50", 50), (f"/jobs?since={now - 3600:.0f}&limit=100", 100),
                    ("/jobs?status=cancelled&limit=100", 0), ("/sessions?limit=100", 100)):
        ms = []
        for _ in range(15):
            began = time.perf_counter()
            r = http.get(full.url + path)
            ms.append(1000 * (time.perf_counter() - began))
            assert r.status_code == 200 and len(next(iter(r.json().values()))) == n, (path, r.text[:200])
        print(f"{path:50} {median(ms):.2f} ms")
        assert median(ms) < LIST_MS_MAX, path


def timed(http, server, session, text):
    began = time.perf_counter()
    r = http.post(server.url + "/chat", json={"model": MODEL, "session_id": session, "max_tokens": 4, "temperature": 0,
                                              "ignore_eos": True, "max_history": 4, "messages": [{"role": "user", "content": text}]})
    assert r.status_code == 200, r.text
    return 1000 * (time.perf_counter() - began)


def test_chat_does_not_notice(full_and_empty):
    """In turn, so that whatever else this machine does meets both; each session is new, then used again."""
    took = {s: ([], []) for s in full_and_empty}
    http = {s: requests.Session() for s in full_and_empty}
    for s in full_and_empty:
        timed(http[s], s, "warm", "x")
    for i in range(150):
        for s in full_and_empty[::1 if i % 2 else -1]:
            for kind in (0, 1):
                took[s][kind].append(timed(http[s], s, f"s{i}", "hello there"))
    full, empty = ([median(ms) for ms in took[s]] for s in full_and_empty)
    print(f"p50 of a chat: new session {empty[0]:.2f} ms empty, {full[0]:.2f} ms full; known one {empty[1]:.2f}, {full[1]:.2f}")
    for a, b in zip(full, empty):
        assert a < 1.15 * b + 0.5, (full, empty)  # half a millisecond: a look into an index of 10,000

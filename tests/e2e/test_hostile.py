"""Requests that are malformed, huge, slow or abandoned: a clear answer or a closed connection, and nobody else notices."""
import concurrent.futures
import json
import re
import resource
import socket
import time

import pytest
import requests

from conftest import best_of, until

MODEL = "llama-tied-f32"
MESSAGES = [{"role": "user", "content": "Tell me something"}]


def exchange(server, data, close_writing=False):
    """All that comes back until the connection is closed."""
    with server.connect() as s:
        s.sendall(data)
        if close_writing:
            s.shutdown(socket.SHUT_WR)
        s.settimeout(60)
        out = b""
        try:
            while part := s.recv(65536):
                out += part
        except ConnectionResetError:
            pass
        return out


def post(body, head=b"", path=b"/chat"):
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n%s" % (path, len(body), head, body)


SMUGGLED = {
    "length and chunked": b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    "list of lengths": b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: 2, 2\r\n\r\n{}",
    "negative length": b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "length of 30 digits": b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999999999999999999999\r\n\r\n",
    "other encoding": b"POST /chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "bare LF": b"GET /health HTTP/1.1\nHost: x\n\n",
    "folded header": b"GET /health HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "blank before colon": b"GET /health HTTP/1.1\r\nHost : x\r\n\r\n",
    "NUL in a header": b"GET /health HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
    "no colon": b"GET /health HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
    "bad chunk size": b"POST /chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    "headers of 60 KB": b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 60000 + b"\r\n\r\n",
    "path of 100 KB": b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "2000 headers": b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"".join(b"h%d: v\r\n" % i for i in range(2000)) + b"\r\n",
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_malformed(server, name):
    out = exchange(server, SMUGGLED[name] + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
    head, _, body = out.partition(b"\r\n\r\n")
    assert re.match(rb"HTTP/1.1 (400|413|414|431|505) ", head), (name, out[:200])
    error = json.loads(body)["error"]  # exactly one answer: what follows was not taken for a request
    assert error["message"] and error["code"] and b"x-request-id" in head.lower()


def test_bodies(server):
    for body in (b"[" * 100000, b'{"a":' * 100000, b'{"model":"\xff\xfe"}', b'{"model":"\xc3\x28"}', b'{"model":"\xed\xa0\x80"}',
                 b'{"model":"\\ud800"}', b"{", b"", b"null", b'"x"', b"[]", b"\0", b"{}x", b'{"model":1e999}', b"\xef\xbb\xbf{}"):
        r = requests.post(server.url + "/chat", data=body, timeout=20)
        assert r.status_code == 400 and r.json()["error"]["code"] == "invalid_request", (body[:20], r.text)
    assert requests.post(server.url + "/chat", data=b"x" * (17 << 20), timeout=20).status_code == 413
    out = exchange(server, b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: 900000000\r\n\r\n")
    assert out.startswith(b"HTTP/1.1 413") and b"--max-body" in out  # before a byte of it was sent


def test_keeps_its_connection(server):
    good = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    out = exchange(server, good * 3 + b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n" + post(b"{") + last)
    assert re.findall(rb"HTTP/1.1 (\d+)", out) == [b"200", b"200", b"200", b"404", b"400", b"200"]
    out = exchange(server, b"GET /health/live HTTP/1.0\r\n\r\n")
    assert re.match(rb"HTTP/1\.[01] 200", out) and b"alive" in out
    assert b"HTTP/1.1 100" in exchange(server, b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: "
                                       b"100-continue\r\nConnection: close\r\n\r\n{}")
    assert b"alive" in exchange(server, good, close_writing=True)


def test_slow_requests(start):
    s = start("--request-timeout", "1")

    def told_in_time(part):
        began = time.monotonic()
        out = exchange(s, part)
        assert out.startswith(b"HTTP/1.1 408") and b'"timeout"' in out
        return time.monotonic() - began < 3

    for part in (b"GET /hea", b"GET /health HTTP/1.1\r\nHost: x\r\n", post(b"x" * 100)[:-50]):
        assert best_of(5, lambda: told_in_time(part))
    with s.connect() as c:  # a byte now and then is not enough
        c.sendall(b"GET /health HTTP/1.1\r\nA: ")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(50):  # 5 s, and more on a slow machine: of a header of 16 kB it is always a small part
                c.sendall(b"a")
                time.sleep(0.1)


def test_many_idle_connections(server):
    def health():
        times = []
        for _ in range(20):
            began = time.monotonic()
            assert server.get("/health").status_code == 200
            times.append(time.monotonic() - began)
        return sorted(times)[10]

    before, alone = server.descriptors(), health()
    idle = [server.connect() for _ in range(900)]
    assert best_of(5, lambda: health() < max(0.05, 3 * alone))
    for c in idle:
        c.close()
    assert until(lambda: server.descriptors() <= before + 8)


HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def answer(s):
    """The head of the next answer on a connection, and its body; empty: it was closed instead."""
    out = b""
    while b"\r\n\r\n" not in out and (part := s.recv(65536)):
        out += part
    head, _, body = out.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while length and len(body) < int(length[1]):
        body += s.recv(65536)
    return head


def test_idle_connections_make_place(start):
    """Where every place is taken, the connection that has been idle longest makes place for who comes; who is answered and
    who sends stays."""
    s = start("--max-connections", "5")
    streams = [sleeper(s, "busy")]
    assert until(lambda: "request_first_token id=busy" in s.text(), 20)
    sends, used, unused, last = [s.connect() for _ in range(4)]
    sends.sendall(HEALTH[:20])
    for c in (used, last):
        c.sendall(HEALTH)
        assert answer(c).startswith(b"HTTP/1.1 200")
    for closed in (unused, used, last):
        streams.append(sleeper(s, f"came-{len(streams)}"))
        assert closed.recv(1) == b""
        assert until(lambda: f"request_first_token id=came-{len(streams) - 1}" in s.text(), 20)
    assert "connections_full" not in s.text()
    waits = [s.connect() for _ in range(2)]  # nobody is idle
    for c in waits:
        c.sendall(HEALTH)
    assert until(lambda: "connections_full" in s.text())
    sends.sendall(HEALTH[20:])
    for c in (sends, *waits):  # each ends with its answer, since somebody waits
        assert answer(c).startswith(b"HTTP/1.1 200")
        if c is not waits[-1]:
            assert c.recv(1) == b""
    for c in streams:
        assert whole(c)[-1]["eval_count"] == 8 * 400


LONG = {"model": MODEL, "messages": MESSAGES, "max_tokens": 400, "ignore_eos": True, "stream": True, "n": 8, "temperature": 0,
        "logprobs": True, "top_logprobs": 20}  # some megabytes


def sleeper(server, name, **more):
    """A client that asks for a long stream and has read nothing yet."""
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = server.url[7:].split(":")
    s.connect((host, int(port)))
    s.sendall(post(json.dumps({**LONG, **more}).encode(), b"x-request-id: %s\r\nConnection: close\r\n" % name.encode()))
    return s


def whole(s):
    """The events of a chunked stream, which must have its end."""
    out = b""
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # it has begun to read, and not a packet at a time
    s.settimeout(120)
    while part := s.recv(1 << 20):
        out += part
    head, _, rest = out.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        n = int(size, 16)
        if n == 0:
            break
        body, rest = body + rest[:n], rest[n + 2:]
    return [json.loads(line[6:]) for line in body.split(b"\n\n") if line.startswith(b"data: ")]


@pytest.mark.parametrize("flags", [(), ("--memory", "160M")])
def test_slow_readers_get_all(start, flags):
    """Text waits for its reader as tokens: nothing is lost however little memory there is, and the engine is free."""
    s = start(*flags)
    right = s.post("/chat", {**LONG, "stream": False, "n": 1}).json()["message"]["content"]
    clients = [sleeper(s, f"sleeper-{i}") for i in range(12)]
    assert until(lambda: s.text().count("request_first_token id=sleeper") == 12)
    assert until(lambda: s.metric("vllm:num_requests_running", MODEL) == 0)
    assert s.text().count("request_done id=sleeper") == 0  # all is computed, little of it sent
    for c in clients:
        events = whole(c)
        assert events[-1]["done"] and events[-1]["eval_count"] == 8 * 400, events[-1]
        text = "".join(e["delta"]["content"] for e in events if e.get("delta") and e.get("index", 0) == 0)
        assert text == right
        c.close()


def test_slow_readers_take_no_place(start):
    """Neither a timeout nor a place among those who are computed is for reading."""
    s = start("--max-streams", "2", "--max-queue", "0")
    s.post("/chat", {**LONG, "stream": False, "n": 1, "max_tokens": 1})
    began = time.monotonic()
    s.post("/chat", {**LONG, "stream": False, "n": 2})
    timeout = max(4, 10 * (time.monotonic() - began))  # all is computed long before
    clients = [sleeper(s, f"sleeper-{i}", n=1, timeout=timeout) for i in range(2)]
    assert until(lambda: s.text().count("request_first_token id=sleeper") == 2)
    assert until(lambda: s.metric("vllm:num_requests_running", MODEL) == 0)
    assert until(lambda: s.get("/health").json()["active_requests"] == 0)
    assert s.text().count("request_done id=sleeper") == 0
    assert s.post("/chat", {**LONG, "stream": False, "n": 2, "max_tokens": 4}).status_code == 200
    time.sleep(timeout)
    for c in clients:
        events = whole(c)
        assert events[-1]["done"] and events[-1]["eval_count"] == 400, events[-1]
        c.close()


def test_slow_reader_is_told_of_the_end(server):
    """What ends a stream while its client does not read is the last event that it reads."""
    c = sleeper(server, "told", n=64)
    assert until(lambda: "request_first_token id=told" in server.text())
    assert server.delete("/requests/told").status_code == 200
    assert whole(c)[-1]["done_reason"] == "cancelled"
    c.close()
    for timeout in (0.4, 2, 10, 50):
        name = f"late-{timeout}"
        c = sleeper(server, name, n=64, timeout=timeout)
        assert until(lambda: f"request_done id={name} " in server.text() or f"first_token id={name} " in server.text())
        if f"first_token id={name} " in server.text():  # else its time was over before there was a stream
            break
        c.close()
    time.sleep(timeout + 0.1)
    last = whole(c)[-1]
    assert last["done"] and (last.get("error", {}).get("code") == "timeout" or last["eval_count"] == 64 * 400)
    c.close()


@pytest.mark.slow
def test_who_never_reads_is_ended(server):
    c = sleeper(server, "sleeper")
    assert until(lambda: re.search(r"request_done id=sleeper .*reason=stalled", server.text()), 120)
    assert until(lambda: server.metric("vllm:num_requests_running", MODEL) == 0)
    assert until(lambda: server.metric("vllm:kv_cache_usage_perc", MODEL) == 0)
    c.close()


def test_no_memory_for_an_answer(start):
    """Wherever in the making of an answer memory ends, the client gets an error and never a part for the whole."""
    s = start("--memory", "8G", env={"MALLOC_MMAP_THRESHOLD_": "65536"})  # large blocks come from the system, always
    url, body = "/v1/chat/completions", {**LONG, "stream": False, "n": 64, "max_tokens": 300}  # 20 MB
    s.post(url, {**body, "n": 1})
    assert until(lambda: "packed_cache" in s.text())  # and what that took is given back
    seen = set()
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    for room_mib in (0, 4, 12, 24, 40, 256):
        used = s.status("VmData")
        resource.prlimit(s.process.pid, resource.RLIMIT_DATA, (used + room_mib * (1 << 20), resource.RLIM_INFINITY))
        try:
            r = s.post(url, body)
        except requests.exceptions.ConnectionError:
            r = None  # not even for a connection
        resource.prlimit(s.process.pid, resource.RLIMIT_DATA, unlimited)
        if r is None:
            assert room_mib == 0
        elif r.status_code == 200:
            choices = r.json()["choices"]
            assert len(choices) == 64 and {len(c["logprobs"]["content"]) for c in choices} == {300}
            seen.add(200)
        else:
            assert r.status_code == 503 and r.json()["error"]["code"] == "insufficient_memory", r.text[:300]
            seen.add(503)
        assert s.get("/health").status_code == 200
    assert seen == {200, 503}


def test_abandoned_storm(server):
    """Clients that leave at any moment leave nothing behind."""
    server.post("/chat", {"model": MODEL, "messages": MESSAGES, "max_tokens": 1})
    before = server.descriptors()
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 400, "ignore_eos": True, "n": 8}

    def leave(i):
        raw = post(json.dumps({**body, "stream": bool(i % 2)}).encode())
        with server.connect() as s:
            s.sendall(raw[:len(raw) - (i % 5 == 0) * 30])
            time.sleep(i % 7 * 0.01)

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        list(pool.map(leave, range(160)))
    assert re.search(r"request_done .*status=499 reason=disconnected .*output_tokens=[1-9]", server.text())
    assert until(lambda: server.metric("vllm:num_requests_running", MODEL) + server.metric("vllm:num_requests_waiting", MODEL)
                 + server.metric("vllm:kv_cache_usage_perc", MODEL) == 0)
    assert until(lambda: server.descriptors() <= before + 8)
    assert until(lambda: server.get("/health").json()["active_requests"] == 0)

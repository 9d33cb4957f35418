"""A load generator that costs the server's machine little: one thread, raw sockets, bodies parsed after the run.

    run(url, requests) -> [Result]     every request starts at once (or when an earlier one of its lane ended: lanes=N)

A request is a dict for POST /v1/completions (or another path); it is sent with stream and include_usage set. Times are seconds
from the moment when all of a run's requests were due.
"""
import dataclasses
import json
import selectors
import socket
import time
import urllib.parse


@dataclasses.dataclass
class Result:
    start: float = 0.0           # when it was sent
    events: list = dataclasses.field(default_factory=list)  # arrival of each piece that carried events
    end: float = 0.0
    data: bytearray = dataclasses.field(default_factory=bytearray)
    status: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    text: str = ""

    @property
    def ttft(self):
        return self.events[0] - self.start

    @property
    def gaps(self):
        return [b - a for a, b in zip(self.events, self.events[1:])]


def _parse(r):
    head, _, body = bytes(r.data).partition(b"\r\n\r\n")
    r.status = int(head.split(None, 2)[1])
    if b"chunked" in head.lower():
        plain = bytearray()
        while body:
            size, _, rest = body.partition(b"\r\n")
            n = int(size, 16)
            plain += rest[:n]
            body = rest[n + 2:]
        body = bytes(plain)
    if r.status != 200:
        raise RuntimeError(f"HTTP {r.status}: {body[:300]!r}")
    for line in body.split(b"\n"):
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if event.get("error"):
            raise RuntimeError(f"error event: {line[:300]!r}")
        for choice in event.get("choices", []):
            r.text += choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        usage = event.get("usage")
        if usage:
            r.prompt_tokens, r.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]


def run(url, requests, lanes=None, path="/v1/completions", timeout=300):
    at = urllib.parse.urlsplit(url)
    results = [Result() for _ in requests]
    todo = list(range(len(requests)))
    chooser = selectors.DefaultSelector()
    began = time.perf_counter()
    active = 0

    def send(i):
        body = json.dumps({**requests[i], "stream": True, "stream_options": {"include_usage": True}}).encode()
        s = socket.create_connection((at.hostname, at.port), timeout)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        results[i].start = time.perf_counter() - began
        s.sendall(b"POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nConnection: close\r\n"
                  b"Content-Length: %d\r\n\r\n%s" % (path.encode(), at.netloc.encode(), len(body), body))
        s.setblocking(False)
        chooser.register(s, selectors.EVENT_READ, i)

    while todo or active:
        while todo and (lanes is None or active < lanes):
            send(todo.pop(0))
            active += 1
        ready = chooser.select(timeout)
        if not ready:
            raise RuntimeError(f"nothing came for {timeout} s")
        for key, _ in ready:
            r = results[key.data]
            piece = key.fileobj.recv(1 << 16)
            now = time.perf_counter() - began
            if piece:
                r.data += piece
                if b'data: {' in piece:
                    r.events.append(now)
            else:
                r.end = now
                chooser.unregister(key.fileobj)
                key.fileobj.close()
                active -= 1
    for r in results:
        _parse(r)
        r.events = r.events[:max(1, r.output_tokens)]  # the usage event may come alone
    return results


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def summary(results):
    took = max(r.end for r in results)
    gaps = [g for r in results for g in r.gaps]
    return {"output_tokens_per_s": sum(r.output_tokens for r in results) / took,
            "ttft_p50_ms": percentile([r.ttft for r in results], 0.5) * 1e3,
            "ttft_p99_ms": percentile([r.ttft for r in results], 0.99) * 1e3,
            "gap_p50_ms": percentile(gaps, 0.5) * 1e3, "gap_p99_ms": percentile(gaps, 0.99) * 1e3}

"""Everything that a server meets, for as long as asked, and what its memory and descriptors do meanwhile.

    bench/soak.py [--minutes 60] [--binary build/inferd] [--seed 1]

Starts the server on the small golden models (more of them than may stay loaded) and drives it from LANES clients at once:
plain and streamed answers, several choices, log-probabilities, sessions, cancelled and abandoned streams, slow readers,
bodies that are wrong, loads, unloads and reloads. One answer of every model is asked for again and again: it must stay the
same to the byte. Prints a line a minute; exit status 1 when an answer changed, a request failed that should not, or memory
or descriptors at the end lie above those after the first tenth of the time by more than GROWTH: both are read at rest, with the
same models loaded, since what a model holds depends on what it was asked and for how long nobody asked.
"""
import argparse
import collections
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODELS = ROOT / "tests" / "golden" / "models"
NAMES = ["llama-tied-f32", "qwen2-f32", "granite-f16", "qwen3-tied-f32"]
LANES = 8
GROWTH_BYTES = 8 << 20
GROWTH_DESCRIPTORS = 8
BUSY = {404, 409, 429, 503}  # what a server that is busy with loads and reloads may say


class Client:
    """One lane: a request of a random kind after another."""

    def __init__(self, url, seed, names, truth):
        self.url, self.random, self.names, self.truth = url, random.Random(seed), names, truth
        self.seed, self.counts, self.failures = seed, collections.Counter(), []

    def ask(self, path, body, method="POST", expect=(200,), read=None):
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as r:
                status, text = r.status, r.read() if read is None else r.read(read)
        except urllib.error.HTTPError as e:
            status, text = e.code, e.read()
        if status not in expect and status not in BUSY:
            self.failures.append(f"{method} {path}: {status} {text[:200]!r}")
        return status, text

    def body(self, **more):
        words = " ".join(self.random.choice("the of and one two sea sun red".split()) for _ in range(self.random.randint(1, 20)))
        return {"model": self.random.choice(self.names), "messages": [{"role": "user", "content": words}],
                "max_tokens": self.random.randint(1, 60), "temperature": self.random.choice([0, 0.7, 1.2]), **more}

    def plain(self):
        self.ask("/chat", self.body(n=self.random.randint(1, 3), logprobs=True, top_logprobs=3))

    def streamed(self):
        self.ask("/v1/chat/completions", self.body(stream=True))

    def abandoned(self):
        self.ask("/chat", self.body(stream=True, max_tokens=200, ignore_eos=True), read=200)

    def timed_out(self):
        self.ask("/chat", self.body(timeout=0.02, max_tokens=200, ignore_eos=True), expect=(200, 408))

    def wrong(self):
        self.ask("/chat", self.random.choice([b"{", b'{"model":5}', b'{"model":"no-such"}', b"[" * 5000]), expect=(400, 404))

    def session(self):
        self.ask("/chat", self.body(session_id=f"s{self.random.randint(0, 20)}", max_tokens=4), expect=(200, 400))
        if self.random.random() < 0.1:
            self.ask(f"/sessions/s{self.random.randint(0, 20)}", None, "DELETE", expect=(200, 404))

    def half(self):
        host, port = self.url[7:].split(":")
        with socket.create_connection((host, int(port)), timeout=20) as s:
            s.sendall(b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{\"model\":")

    def looks(self):
        self.ask(self.random.choice(["/health", "/metrics", "/models", "/v1/models", "/jobs"]), None, "GET")

    def comes_and_goes(self):
        name = self.random.choice(self.names)
        verb = self.random.choice(["load", "unload", "reload"])
        self.ask(f"/models/{name}/{verb}", {}, expect=(200, 202))

    def same(self):
        name = self.random.choice(self.names)
        status, text = self.ask("/v1/completions", {"model": name, "prompt": [5, 6, 7, 8], "max_tokens": 24, "seed": 7,
                                                    "temperature": 0.9, "ignore_eos": True, "return_token_ids": True})
        if status == 200 and self.truth.setdefault(name, (ids := json.loads(text)["choices"][0]["token_ids"])) != ids:
            self.failures.append(f"{name} answered {ids}, before {self.truth[name]}")

    def run(self, end):
        kinds = [(self.plain, 6), (self.streamed, 8), (self.abandoned, 3), (self.timed_out, 2), (self.wrong, 2),
                 (self.session, 4), (self.half, 1), (self.looks, 2), (self.comes_and_goes, 1), (self.same, 6)]
        while time.time() < end and not self.failures:
            kind = self.random.choices([k for k, _ in kinds], [w for _, w in kinds])[0]
            try:
                kind()
            except OSError as e:
                self.failures.append(f"{kind.__name__}: {e!r}")
            self.counts[kind.__name__] += 1


def resident(pid):
    return next(int(x.split()[1]) << 10 for x in open(f"/proc/{pid}/status") if x.startswith("VmRSS:"))


def at_rest(server, client):
    """Bytes and descriptors once every model was asked in turn, so that the last of them are loaded, and nothing changes."""
    for name in client.names:
        client.ask("/v1/completions", {"model": name, "prompt": [5, 6, 7], "max_tokens": 1})
    seen, end = [], time.time() + 30
    while time.time() < end and (len(seen) < 5 or len(set(seen[-5:])) > 1):
        time.sleep(0.2)
        seen.append((resident(server.pid), len(os.listdir(f"/proc/{server.pid}/fd"))))
    return seen[-1]


def storm(server, clients, seconds, say):
    """All clients for so long; a line a minute."""
    began, told = time.time(), -60
    threads = [threading.Thread(target=c.run, args=(began + seconds,)) for c in clients]
    for t in threads:
        t.start()
    while any(t.is_alive() for t in threads) and server.poll() is None:
        time.sleep(min(1.0, seconds / 60))
        now = time.time() - began
        if now - told >= 60 and server.poll() is None:
            told = now
            say(f"{now:6.0f} s  {resident(server.pid) >> 20} MiB  {sum(sum(c.counts.values()) for c in clients)} requests")
    for t in threads:
        t.join()


def soak(binary, seconds, seed, say=print):
    """(requests made, what went wrong: a list, empty when nothing did)."""
    with tempfile.TemporaryDirectory() as data:
        server = subprocess.Popen([str(binary), "serve", "--port", "0", "--models-dir", str(MODELS), "--data-dir", data,
                                   "--memory", "1G", "--max-cache-models", "3", "--log-level", "error", "--max-queue", "64"],
                                  stdout=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_CACHE": data + "/hub"})
        try:
            url = server.stdout.readline().split()[-1]
            truth, rest = {}, []
            clients = [Client(url, seed * 1000 + i, NAMES, truth) for i in range(LANES)]
            for part in (0.1, 0.9):
                storm(server, clients, part * seconds, say)
                wrong = [f for c in clients for f in c.failures]
                if server.poll() is not None:
                    wrong.append(f"the server ended with {server.returncode}")
                if wrong:
                    return sum(sum(c.counts.values()) for c in clients), wrong
                rest.append(at_rest(server, clients[0]))
            (before, open_before), (after, open_after) = rest
            if after > before + GROWTH_BYTES:
                wrong.append(f"memory grew from {before >> 20} to {after >> 20} MiB")
            if open_after > open_before + GROWTH_DESCRIPTORS:
                wrong.append(f"descriptors grew from {open_before} to {open_after}")
            say(f"at rest: {before / (1 << 20):.1f} and {after / (1 << 20):.1f} MiB; {open_before} and {open_after} descriptors")
            say(dict(sum((c.counts for c in clients), collections.Counter())))
            return sum(sum(c.counts.values()) for c in clients), wrong
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--minutes", type=float, default=60)
    p.add_argument("--binary", default=ROOT / "build" / "inferd")
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    n, wrong = soak(a.binary, a.minutes * 60, a.seed, lambda *x: print(*x, flush=True))
    print("\n".join(wrong) or f"{n} requests, nothing went wrong")
    sys.exit(bool(wrong))

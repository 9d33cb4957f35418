"""Gaps between the tokens of running streams while a long prompt arrives, and how fast /health answers meanwhile.
Usage: bench/stall.py URL MODEL [STREAMS [PROMPT_TOKENS]]   (any OpenAI-compatible server; ids, so that lengths are exact)"""
import json
import sys
import threading
import time
import urllib.request

url, model = sys.argv[1:3]
streams = int(sys.argv[3]) if len(sys.argv) > 3 else 8
n_prompt = int(sys.argv[4]) if len(sys.argv) > 4 else 6000
times = [[] for _ in range(streams)]
health = []
end = threading.Event()


def lines(body):
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as r:
        for line in r:
            if line.startswith(b"data: {"):
                yield time.monotonic()


def stream(i):
    body = {"model": model, "prompt": f"Story {i}. Once upon a time there was", "max_tokens": 6000, "temperature": 0, "stream": True,
            "ignore_eos": True}
    for at in lines(body):
        times[i].append(at)
        if end.is_set():
            return


def ask_health():
    while not end.is_set():
        start = time.monotonic()
        urllib.request.urlopen(url + "/health").read()
        health.append(time.monotonic() - start)
        time.sleep(0.02)


def tell(name, seconds):
    s = sorted(seconds)
    print(f"{name}: p50 {s[len(s) // 2] * 1e3:.1f} ms, p99 {s[len(s) * 99 // 100] * 1e3:.1f} ms, max {s[-1] * 1e3:.1f} ms "
          f"({len(s)})")


for i in range(streams):
    threading.Thread(target=stream, args=(i,), daemon=True).start()
while min(map(len, times)) < 20:
    time.sleep(0.05)
threading.Thread(target=ask_health, daemon=True).start()
time.sleep(1)
arrived = time.monotonic()
first = next(lines({"model": model, "prompt": [(k * 7919) % 40000 + 100 for k in range(n_prompt)], "max_tokens": 1,
                    "temperature": 0, "stream": True, "ignore_eos": True}))
end.set()
before = [b - a for t in times for a, b in zip(t, t[1:]) if b <= arrived]
during = [b - a for t in times for a, b in zip(t, t[1:]) if b > arrived and a < first]
print(f"{streams} streams, then a prompt of {n_prompt} tokens: its first token after {first - arrived:.2f} s")
tell("gaps before", before)
tell("gaps during", during)
tell("/health", health)

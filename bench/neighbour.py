"""Output tokens/s of a few streams, alone and while another process keeps one core busy.
Usage: bench/neighbour.py URL MODEL [STREAMS [CORE]]   (any OpenAI-compatible server on this machine)"""
import json
import os
import sys
import threading
import time
import urllib.request

url, model = sys.argv[1:3]
streams = int(sys.argv[3]) if len(sys.argv) > 3 else 4
core = int(sys.argv[4]) if len(sys.argv) > 4 else max(os.sched_getaffinity(0))
SECONDS = 6
counts = [0] * streams
end = threading.Event()


def one(i):
    while not end.is_set():
        body = {"model": model, "prompt": [100 + i, 200, 300], "max_tokens": 256, "temperature": 0, "stream": True,
                "ignore_eos": True}
        request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as r:
            for line in r:
                counts[i] += line.startswith(b"data: {")
                if end.is_set():
                    break


def rate():
    time.sleep(1)
    before, began = sum(counts), time.time()
    time.sleep(SECONDS)
    return (sum(counts) - before) / (time.time() - began)


for i in range(streams):
    threading.Thread(target=one, args=(i,), daemon=True).start()
time.sleep(1)
alone = rate()
neighbour = os.fork()
if neighbour == 0:
    os.sched_setaffinity(0, {core})
    while True:
        pass
beside = rate()
os.kill(neighbour, 9)
os.waitpid(neighbour, 0)
again = rate()
end.set()
print(f"{streams} streams: {alone:.1f} tokens/s alone, {beside:.1f} beside a busy core {core}, {again:.1f} alone again; "
      f"kept {200 * beside / (alone + again):.0f} %")

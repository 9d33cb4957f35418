"""Output tokens/s and times to first token of streams that arrive at once, over /v1/completions.
Usage: bench/serve.py URL MODEL STREAMS [PROMPT_TOKENS OUTPUT_TOKENS]   (any OpenAI-compatible server)"""
import concurrent.futures
import json
import sys
import time
import urllib.request

url, model, streams = sys.argv[1], sys.argv[2], int(sys.argv[3])
n_prompt, n_output = (int(a) for a in (sys.argv[4:6] or (100, 64)))


def one(i):
    prompt = [(i * 7919 + k * 104729) % 40000 + 100 for k in range(n_prompt)]
    body = {"model": model, "prompt": prompt, "max_tokens": n_output, "temperature": 0, "stream": True, "ignore_eos": True}
    start = time.time()
    first, n = None, 0
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as r:
        for line in r:
            if line.startswith(b"data: {"):
                first = first or time.time() - start
                n += 1
    return first, time.time() - start


one(999)
for repeat in range(3):
    began = time.time()
    with concurrent.futures.ThreadPoolExecutor(streams) as pool:
        results = list(pool.map(one, range(repeat * streams, (repeat + 1) * streams)))
    took = time.time() - began
    firsts = sorted(r[0] for r in results)
    print(f"{streams} streams: {streams * n_output / took:.1f} output tokens/s, first token p50 {firsts[len(firsts) // 2] * 1e3:.0f} ms, "
          f"last {firsts[-1] * 1e3:.0f} ms")

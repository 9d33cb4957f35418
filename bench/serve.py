"""What a running OpenAI-compatible server reaches under load.

    bench/serve.py URL MODEL [--streams 1,4,16,64] [--prompt 100] [--output 64] [--shared 0] [--repeat 3] [--json]

Streams arrive at once; prompts are token ids, no two alike but for the first --shared ones; greedy, ignore_eos. Prints the
median run of --repeat by output tokens/s.
"""
import argparse
import json
import sys

import load


def prompt(seed, shared, n):
    own = [(seed * 7919 + k * 104729 + seed * seed * 31) % 40000 + 100 for k in range(n - shared)]
    return [(k * 7907) % 40000 + 100 for k in range(shared)] + own


def measure(url, model, streams, n_prompt, n_output, shared=0, n_requests=None, seed=0):
    requests = [{"model": model, "prompt": prompt(seed * 1000 + i, shared, n_prompt), "max_tokens": n_output,
                 "temperature": 0, "ignore_eos": True} for i in range(n_requests or streams)]
    return load.summary(load.run(url, requests, lanes=streams))


def median(runs):
    return sorted(runs, key=lambda r: r["output_tokens_per_s"])[len(runs) // 2]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("url")
    p.add_argument("model")
    p.add_argument("--streams", default="1,4,16,64")
    p.add_argument("--prompt", type=int, default=100)
    p.add_argument("--output", type=int, default=64)
    p.add_argument("--shared", type=int, default=0, help="tokens that all prompts begin with")
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    measure(a.url, a.model, 1, 16, 4, seed=999)  # loads the model
    seed = 0
    for streams in map(int, a.streams.split(",")):
        runs = []
        for _ in range(a.repeat):
            seed += 1
            runs.append(measure(a.url, a.model, streams, a.prompt, a.output, a.shared, seed=seed))
        m = median(runs)
        if a.json:
            print(json.dumps({"streams": streams, **m}))
        else:
            print(f"{streams:3} streams: {m['output_tokens_per_s']:7.1f} output tok/s, first token p50 {m['ttft_p50_ms']:.0f} "
                  f"p99 {m['ttft_p99_ms']:.0f} ms, gap p50 {m['gap_p50_ms']:.1f} p99 {m['gap_p99_ms']:.1f} ms")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

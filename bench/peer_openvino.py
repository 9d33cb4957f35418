"""The serving work of bench/serve.py on OpenVINO GenAI, in one process without HTTP (which favours it).

    pip install openvino-genai==2026.4.1.0
    bench/peer_openvino.py MODEL.gguf [--streams 1,4,16,64] [--prompt 100] [--output 64] [--shared 0] [--requests 0] [--repeat 3]
"""
import argparse
import json
import time

import numpy as np
import openvino
import openvino_genai

import load
import serve


def measure(pipe, streams, n_prompt, n_output, shared, n_requests, seed, identity=[0]):
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = n_output, True, False
    began = time.perf_counter()
    todo = [serve.prompt(seed * 1000 + i, shared, n_prompt) for i in range(n_requests or streams)]
    lanes, results = {}, []
    while todo or lanes:
        while todo and len(lanes) < streams:
            identity[0] += 1
            ids = openvino.Tensor(np.array([todo.pop(0)], dtype=np.int64))
            r = load.Result(start=time.perf_counter() - began)
            lanes[identity[0]] = (pipe.add_request(identity[0], ids, config), r)
        pipe.step()
        now = time.perf_counter() - began
        for i, (handle, r) in list(lanes.items()):
            while handle.can_read():
                out = handle.read()
                n = sum(len(o.generated_ids) for o in out.values())
                if n:
                    r.events.append(now)
                    r.output_tokens += n
            if r.output_tokens >= n_output:
                r.end = now
                results.append(r)
                del lanes[i]
    return load.summary(results)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--streams", default="1,4,16,64")
    p.add_argument("--prompt", type=int, default=100)
    p.add_argument("--output", type=int, default=64)
    p.add_argument("--shared", type=int, default=0)
    p.add_argument("--requests", type=int, default=0, help="0: as many as streams")
    p.add_argument("--repeat", type=int, default=3)
    a = p.parse_args()
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    pipe = openvino_genai.ContinuousBatchingPipeline(a.model, scheduler, "CPU")
    measure(pipe, 1, 16, 4, 0, 0, 999)
    seed = 0
    for streams in map(int, a.streams.split(",")):
        runs = []
        for _ in range(a.repeat):
            seed += 1
            runs.append(measure(pipe, streams, a.prompt, a.output, a.shared, a.requests, seed))
        print(json.dumps({"streams": streams, **serve.median(runs)}), flush=True)


if __name__ == "__main__":
    main()

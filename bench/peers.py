"""inferd beside its peers: the same work, the same machine, the same run. Prints ratios; absolute figures travel badly.

    bench/peers.py [--work build/peers] [--llama DIR] [--models smollm2-q8_0,...] [--only single,serve,prefix,chat] [--repeat 3]

llama.cpp comes out of the source package of llama-cpp-python (pinned below) and is built under --work, unless --llama names a
folder with llama-server and llama-quantize. Models: SmolLM2-135M-Instruct requantized from the default model, and, where
tools/make_shape.py was used to make one, the shape of Qwen3-0.6B with random weights. Needs: cmake, g++, about 5 minutes once.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import urllib.request

import load
import serve

ROOT = pathlib.Path(__file__).resolve().parents[1]
LLAMA = "llama-cpp-python==0.3.36"
LLAMA_TARGETS = ["llama-server", "llama-quantize"]
CONTEXT_PER_SLOT = 1024


def build_llama(work):
    """Downloads and builds; returns the folder of programs."""
    programs = work / "llama" / "bin"
    if all((programs / t).exists() for t in LLAMA_TARGETS):
        return programs
    work.mkdir(parents=True, exist_ok=True)
    print(f"building llama.cpp from {LLAMA}", flush=True)
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(work), LLAMA],
                   check=True)
    archive = next(work.glob("llama_cpp_python-*.tar.gz"))
    subprocess.run(["tar", "xzf", str(archive), "-C", str(work)], check=True)
    source = next(work.glob("llama_cpp_python-*/vendor/llama.cpp"))
    # gcc 12 drops the stores to the tile configuration; without this it faults on processors with AMX
    amx = source / "ggml/src/ggml-cpu/amx/mmq.cpp"
    amx.write_text(re.sub(r"^(\s*)_tile_loadconfig\((&?\w+)\);", r'\1asm volatile("" : : "r"(\2) : "memory"); _tile_loadconfig(\2);',
                          amx.read_text(), flags=re.M))
    subprocess.run(["cmake", "-S", str(source), "-B", str(work / "llama"), "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON",
                    "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(work / "llama"), "-j2", "--target", *LLAMA_TARGETS], check=True,
                   stdout=subprocess.DEVNULL)
    return programs


def make_models(work, programs):
    """GGUF files in work/models: SmolLM2 in several types, and every model folder that is linked there by hand."""
    folder = work / "models"
    folder.mkdir(parents=True, exist_ok=True)
    source = ROOT / "models" / "smollm2.gguf"
    if not source.exists():
        subprocess.run(["sh", str(ROOT / "tools/fetch_model.sh"), str(ROOT / "models")], check=True)
    for kind in ("F16", "Q8_0", "Q4_0"):
        to = folder / f"smollm2-{kind.lower()}.gguf"
        if not to.exists():
            subprocess.run([str(programs / "llama-quantize"), "--allow-requantize", "--pure", str(source), str(to), kind],
                           check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder


class Peer:
    """A server process that is ready when its /health answers 200."""

    def __init__(self, name, command, port, model):
        self.name, self.url, self.model = name, f"http://127.0.0.1:{port}", model
        self.log = open(f"/tmp/bench-{name}.log", "w")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        end = time.time() + 120
        while True:
            try:
                if urllib.request.urlopen(self.url + "/health", timeout=2).status == 200:
                    break
            except OSError:
                pass
            if self.process.poll() is not None or time.time() > end:
                raise SystemExit(f"{name} did not start: see {self.log.name}")
            time.sleep(0.05)
        serve.measure(self.url, model, 1, 16, 4, seed=9999)  # loads, warms up

    def peak_mb(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) / 1024

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def chat_ms(peer, repeat=15):
    """Median of a short chat: about 30 tokens in, 32 out, one stream."""
    times = []
    for i in range(repeat):
        r = serve.measure(peer.url, peer.model, 1, 30, 32, seed=5000 + i)
        times.append(32 / r["output_tokens_per_s"] * 1e3)
    return sorted(times)[len(times) // 2]


WORK = {  # name -> (streams, prompt, output, shared, requests)
    "1 stream": (1, 100, 64, 0, 1), "4 streams": (4, 100, 64, 0, 4), "16 streams": (16, 100, 64, 0, 16),
    "64 streams": (64, 100, 64, 0, 64), "shared prefix of 400, 16 at once, 32 requests": (16, 420, 64, 400, 32),
    "behind 2,048 tokens": (1, 2048, 64, 0, 1), "prefill 512": (1, 512, 1, 0, 1)}


def compare(peers, works, repeat):
    seed = 0
    for name in works:
        streams, n_prompt, n_output, shared, n = WORK[name]
        runs = {p.name: [] for p in peers}
        for _ in range(repeat):
            for p in peers:  # in turn, so that a slow minute of the machine hits both
                seed += 1
                runs[p.name].append(serve.measure(p.url, p.model, streams, n_prompt, n_output, shared, n, seed=seed))
        first = None
        for p in peers:
            m = serve.median(runs[p.name])
            value = n_prompt / m["ttft_p50_ms"] * 1e3 if n_output == 1 else m["output_tokens_per_s"]
            first = first or value
            print(f"| {p.model} | {name} | {p.name} | {value:.1f} | {m['ttft_p50_ms']:.0f} / {m['ttft_p99_ms']:.0f} | "
                  f"{m['gap_p50_ms']:.1f} / {m['gap_p99_ms']:.1f} | {first / value:.2f} |", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", type=pathlib.Path, default=ROOT / "build/peers")
    p.add_argument("--llama", type=pathlib.Path, help="folder with llama-server and llama-quantize")
    p.add_argument("--models", default="smollm2-q8_0,smollm2-q4_0,smollm2-f16")
    p.add_argument("--works", default=";".join(WORK), help="names separated by ';'")
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--inferd", default="", help='more options for inferd serve, as one word: --inferd="--profile int8"')
    a = p.parse_args()
    programs = a.llama or build_llama(a.work)
    folder = make_models(a.work, programs)
    threads = str(len(os.sched_getaffinity(0)))
    print("| model | work | server | output tok/s (prefill: prompt tok/s) | first token p50 / p99 ms | gap p50 / p99 ms | inferd / this |\n"
          "|---|---|---|---|---|---|---|")
    for model in a.models.split(","):
        peers = [Peer("inferd", [str(ROOT / "build/inferd"), "serve", "--port", "8331", "--models-dir", str(folder),
                                 "--data-dir", str(a.work / "data"), "--log-level", "warn", "--threads", threads, *a.inferd.split()],
                      8331, model),
                 Peer("llama.cpp", [str(programs / "llama-server"), "-m", str(folder / f"{model}.gguf"), "--port", "8332", "-np", "16",
                                    "-c", str(16 * CONTEXT_PER_SLOT if "2,048" not in a.works else 16 * 2304), "-t", threads,
                                    "-tb", threads, "-fa", "on", "--alias", model], 8332, model)]
        try:
            compare(peers, a.works.split(";"), a.repeat)
            times = {p.name: chat_ms(p) for p in peers}
            for p in peers:
                print(f"| {model} | short chat 30 + 32 | {p.name} | {times[p.name]:.0f} ms | | | "
                      f"{times[p.name] / times['inferd']:.2f} |", flush=True)
            for p in peers:
                print(f"| {model} | peak memory | {p.name} | {p.peak_mb():.0f} MB | | | {p.peak_mb() / peers[0].peak_mb():.2f} |", flush=True)
        finally:
            for p in peers:
                p.stop()


if __name__ == "__main__":
    main()

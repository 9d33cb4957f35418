"""int8 products of oneDNN as torch carries it, in the cells of `make bench-ops ARGS="--only int8"`: GOP/s, a multiply-add is two.

    pip install torch==2.15.0
    bench/peer_onednn.py [--threads 2] [--rows 1,16,64,256,512] [--shapes 1536x576,3072x1024,4096x4096]

Weights are packed beforehand and rotate through copies that no cache holds. Activations are bytes already (inferd's figures
include making them of floats), results are fp32 with a scale for each output. Medians. ONEDNN_MAX_CPU_ISA caps the kernels.
"""
import argparse
import statistics
import time

import torch

SET_BYTES = 400 << 20
COPIES_MAX = 64
SECONDS = 0.4


def gop_per_second(rows, n_out, n_in):
    copies = min(COPIES_MAX, max(2, SET_BYTES // (n_out * n_in)))
    weights = [torch.ops.onednn.qlinear_prepack(torch.randint(-127, 127, (n_out, n_in), dtype=torch.int8), [rows, n_in])
               for _ in range(copies)]
    x = torch.randint(0, 255, (rows, n_in), dtype=torch.uint8)
    scales, zeros = torch.full((n_out,), 0.01), torch.zeros(n_out, dtype=torch.int32)
    times, end = [], None
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        torch.ops.onednn.qlinear_pointwise(x, 0.1, 128, weights[len(times) % copies], scales, zeros, None, 1.0, 0, torch.float32,
                                           "none", [], "")
        times.append(time.perf_counter() - start)
        end = end or time.perf_counter() + SECONDS  # the first one chooses kernels
    return 2e-9 * rows * n_out * n_in / statistics.median(times[1:])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rows", default="1,16,64,256,512")
    p.add_argument("--shapes", default="1536x576,3072x1024,4096x4096")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    rows = [int(r) for r in a.rows.split(",")]
    print("oneDNN int8, torch", torch.__version__, torch.backends.cpu.get_cpu_capability())
    print(f"{'rows':>12}" + "".join(f"{r:8d}" for r in rows))
    for shape in a.shapes.split(","):
        n_out, n_in = map(int, shape.split("x"))
        print(f"{shape:>12}" + "".join(f"{gop_per_second(r, n_out, n_in):8.0f}" for r in rows), flush=True)


if __name__ == "__main__":
    main()

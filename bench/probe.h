/* What this machine can do at most, measured beside every benchmark: limits drift on shared machines. */
#ifndef INFERD_BENCH_PROBE_H
#define INFERD_BENCH_PROBE_H

#include "base/pool.h"

struct probe {
    double read_gb;    /* GB/s of a plain read loop over memory that no cache holds, all threads */
    double fma_gflop;  /* fp32 multiply-adds in registers, GFLOP/s */
    double dot_gop;    /* VNNI byte dot products in registers, GOP/s; 0 where there is no VNNI */
    double tile_gop;   /* AMX byte products in registers, GOP/s; 0 where there are no tiles or the system refuses them */
    double tile_gflop; /* AMX bf16 products in registers, GFLOP/s; 0 likewise */
};

/* Takes about half a second. The caller holds the pool. */
struct probe probe_limits(struct pool *pool);
/* read_gb and fma_gflop of the moment, in some 10 ms: beside every sample of a measurement, so that a neighbour who takes
 * half of the memory for a second takes it from both sides of a ratio. */
struct probe probe_sample(struct pool *pool);

#endif

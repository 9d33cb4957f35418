/* Fork/join compute pool: one job at a time, n threads (the caller is thread 0). Inside a step the helpers spin (a
 * futex wake costs 70 us in a VM, a spin join 0.3 us); between steps (pool_rest) they sleep. A spin is bounded, then
 * yields, so a preempted partner costs a slice and no more.
 *
 * Determinism: fn(thread, n_threads) must split work so that no result depends on n_threads.
 */
#ifndef INFERD_BASE_POOL_H
#define INFERD_BASE_POOL_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

struct pool;
typedef void (*pool_fn)(void *arg, unsigned thread, unsigned n_threads);

/* n_threads 0: as many as the affinity mask and the cgroup quota allow. Threads are created sleeping. */
struct pool *pool_open(unsigned n_threads, struct err *err);
void pool_close(struct pool *p);
unsigned pool_threads(const struct pool *p);
/* CPUs that this process may use: affinity mask and cgroup v1/v2 quota. At least 1. */
unsigned pool_cpus_usable(void);
/* Exclusive use of the pool for a series of runs (an engine step): other callers wait. Wakes the helpers into spinning. */
void pool_acquire(struct pool *p);
void pool_release(struct pool *p);
/* Runs fn on all threads and returns when all are done. Caller holds the pool. */
void pool_run(struct pool *p, pool_fn fn, void *arg);
/* Splits n_items in chunks of `grain` handed out dynamically: fn gets [begin, end). Caller holds the pool. */
typedef void (*pool_range_fn)(void *arg, size_t begin, size_t end, unsigned thread);
void pool_range(struct pool *p, size_t n_items, size_t grain, pool_range_fn fn, void *arg);

#endif

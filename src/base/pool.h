/* Fork/join compute pool: one job at a time, n threads (the caller is thread 0). Between jobs the helpers spin for a
 * moment (a futex wake costs 70 us in a VM, a spin join 0.3 us), then sleep: an idle pool costs nothing.
 *
 * Chunks of a job are handed out one by one, so a thread that another process keeps from running leaves its share to the
 * others. Which thread takes which chunk is chance: no result may depend on it.
 */
#ifndef INFERD_BASE_POOL_H
#define INFERD_BASE_POOL_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

struct pool;

/* n_threads 0: as many as the affinity mask and the cgroup quota allow. Threads are created sleeping. */
struct pool *pool_open(unsigned n_threads, struct err *err);
void pool_close(struct pool *p);
unsigned pool_threads(const struct pool *p);
/* CPUs that this process may use: affinity mask and cgroup v1/v2 quota. At least 1. */
unsigned pool_cpus_usable(void);
/* Exclusive use of the pool for a series of jobs (an engine step): other callers wait. */
void pool_acquire(struct pool *p);
void pool_release(struct pool *p);
/* fn over [0, n_items), in chunks [begin, end) of `grain` items (more when there were too many); returns when all are
 * done. thread < pool_threads says whose scratch to use. Caller holds the pool. */
typedef void (*pool_range_fn)(void *arg, size_t begin, size_t end, unsigned thread);
void pool_range(struct pool *p, size_t n_items, size_t grain, pool_range_fn fn, void *arg);

#endif

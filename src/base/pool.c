/* Fork/join compute pool; see pool.h.
 *
 * A job is published by raising `generation`; helpers that finished it count themselves in `done`. While the pool is
 * held they spin on `generation` (first with pause, then with sched_yield, so that a preempted partner gets its slice);
 * between steps they sleep on a condition variable. */
#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POOL_THREADS_MAX 1024
#define SPINS_BEFORE_YIELD 2000
#define YIELDS_BEFORE_SLEEP 2000 /* a helper whose step went quiet goes to sleep after this many */

struct pool {
    unsigned n_threads;
    pthread_t *threads;
    pthread_mutex_t holder; /* held from pool_acquire to pool_release */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    _Alignas(64) _Atomic uint64_t generation;
    _Alignas(64) _Atomic unsigned done;
    _Alignas(64) _Atomic int active, closing; /* active: a step is on, do not sleep */
    _Alignas(64) _Atomic size_t next; /* pool_range's hand-out */
    pool_fn fn;
    void *arg;
};

struct helper {
    struct pool *pool;
    unsigned index;
};

static inline void relax(unsigned spins)
{
    if (spins < SPINS_BEFORE_YIELD)
        __builtin_ia32_pause();
    else
        sched_yield();
}

/* Waits for a job newer than `seen`; returns its number, or `seen` when the pool closes. */
static uint64_t wait_job(struct pool *p, uint64_t seen)
{
    for (unsigned spins = 0;; spins++) {
        uint64_t now = atomic_load_explicit(&p->generation, memory_order_acquire);
        if (now != seen)
            return now;
        bool quiet = !atomic_load_explicit(&p->active, memory_order_relaxed);
        if (!quiet && spins < SPINS_BEFORE_YIELD + YIELDS_BEFORE_SLEEP) {
            relax(spins);
            continue;
        }
        pthread_mutex_lock(&p->lock);
        while (atomic_load(&p->generation) == seen && !atomic_load(&p->closing) &&
               !(quiet && atomic_load(&p->active)))
            pthread_cond_wait(&p->wake, &p->lock);
        pthread_mutex_unlock(&p->lock);
        if (atomic_load(&p->closing))
            return seen;
        spins = 0;
    }
}

static void *helper_main(void *arg)
{
    struct helper *h = arg;
    struct pool *p = h->pool;
    unsigned index = h->index;
    free(h);
    for (uint64_t seen = 0;;) {
        uint64_t now = wait_job(p, seen);
        if (now == seen)
            return NULL;
        seen = now;
        p->fn(p->arg, index, p->n_threads);
        atomic_fetch_add_explicit(&p->done, 1, memory_order_release);
    }
}

/* cgroup v2 "max 100000" / "200000 100000"; v1 in two files. CPUs rounded up, 0 when there is no limit. */
static unsigned quota_cpus(void)
{
    long long quota = -1, period = 0;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (f) {
        if (fscanf(f, "%lld %lld", &quota, &period) != 2)
            quota = -1;
        fclose(f);
    } else if ((f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "re"))) {
        if (fscanf(f, "%lld", &quota) != 1)
            quota = -1;
        fclose(f);
        f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "re");
        if (f) {
            if (fscanf(f, "%lld", &period) != 1)
                period = 0;
            fclose(f);
        }
    }
    return quota > 0 && period > 0 ? (unsigned)((quota + period - 1) / period) : 0;
}

unsigned pool_cpus_usable(void)
{
    cpu_set_t set;
    unsigned n = sched_getaffinity(0, sizeof set, &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
    unsigned quota = quota_cpus();
    n = quota && quota < n ? quota : n;
    return n ? n : 1;
}

struct pool *pool_open(unsigned n_threads, struct err *err)
{
    n_threads = n_threads ? n_threads : pool_cpus_usable();
    if (n_threads > POOL_THREADS_MAX) {
        err_set(err, ERR_USAGE, "%u compute threads asked for; at most %d are possible.", n_threads, POOL_THREADS_MAX);
        return NULL;
    }
    struct pool *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
    if (p)
        memset(p, 0, sizeof *p);
    if (!p || !(p->threads = calloc(n_threads, sizeof *p->threads))) {
        free(p);
        err_set(err, ERR_MEMORY, "Out of memory for the compute pool.");
        return NULL;
    }
    pthread_mutex_init(&p->holder, NULL);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    p->n_threads = 1;
    unsigned started = 1;
    for (; started < n_threads; started++) {
        struct helper *h = malloc(sizeof *h);
        if (!h)
            break;
        *h = (struct helper){p, started};
        if (pthread_create(&p->threads[started], NULL, helper_main, h) != 0) {
            free(h);
            break;
        }
    }
    p->n_threads = started;
    if (started < n_threads) {
        pool_close(p);
        err_set(err, ERR_IO, "Only %u of %u compute threads could be started; give --threads %u.", started, n_threads,
                started);
        return NULL;
    }
    return p;
}

void pool_close(struct pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->closing, 1);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 1; i < p->n_threads; i++)
        pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    pthread_mutex_destroy(&p->holder);
    free(p->threads);
    free(p);
}

unsigned pool_threads(const struct pool *p)
{
    return p->n_threads;
}

static void wake_helpers(struct pool *p)
{
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

void pool_acquire(struct pool *p)
{
    pthread_mutex_lock(&p->holder);
    atomic_store(&p->active, 1);
    if (p->n_threads > 1)
        wake_helpers(p);
}

void pool_release(struct pool *p)
{
    atomic_store(&p->active, 0);
    pthread_mutex_unlock(&p->holder);
}

void pool_run(struct pool *p, pool_fn fn, void *arg)
{
    if (p->n_threads == 1) {
        fn(arg, 0, 1);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    atomic_store_explicit(&p->done, 0, memory_order_relaxed);
    atomic_fetch_add_explicit(&p->generation, 1, memory_order_acq_rel);
    fn(arg, 0, p->n_threads);
    for (unsigned spins = 0; atomic_load_explicit(&p->done, memory_order_acquire) != p->n_threads - 1; spins++) {
        relax(spins);
        if (spins == SPINS_BEFORE_YIELD)
            wake_helpers(p); /* one may have gone to sleep just before the job was published */
    }
}

struct range {
    struct pool *pool;
    size_t n_items, grain;
    pool_range_fn fn;
    void *arg;
};

static void range_part(void *arg, unsigned thread, unsigned n_threads)
{
    struct range *r = arg;
    for (;;) {
        size_t begin = atomic_fetch_add_explicit(&r->pool->next, r->grain, memory_order_relaxed);
        if (begin >= r->n_items)
            return;
        size_t end = r->n_items - begin < r->grain ? r->n_items : begin + r->grain;
        r->fn(r->arg, begin, end, thread);
    }
}

void pool_range(struct pool *p, size_t n_items, size_t grain, pool_range_fn fn, void *arg)
{
    if (n_items == 0)
        return;
    grain = grain ? grain : 1;
    if (p->n_threads == 1 || n_items <= grain) {
        fn(arg, 0, n_items, 0);
        return;
    }
    struct range r = {p, n_items, grain, fn, arg};
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    pool_run(p, range_part, &r);
}

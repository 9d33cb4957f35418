/* Fork/join compute pool; see pool.h.
 *
 * `job` is one word: a number that grows, how many chunks the job has, the next chunk to take. Taking is one atomic add;
 * what it returns says whether there was a chunk and of how many, so that a helper which slept through jobs can do no
 * harm: it takes a chunk of whatever job is on, or none. The other fields of a job stay as they are while any of its
 * chunks is not done: whoever holds a chunk may read them.
 *
 * A helper without work spins, then yields, then sleeps; so does the caller at the end of a job, waiting for chunks that
 * helpers have taken, and for nothing else: a helper that the system runs elsewhere or not at all costs its share of the
 * work only. Sleeping is what lets the system move a helper, preempted by another process, to the caller's core. */
#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POOL_THREADS_MAX 1024
#define CHUNK_BITS       20 /* a job has fewer chunks than half of this, takers overshoot by one each */
#define CHUNKS_MAX       ((size_t)1 << (CHUNK_BITS - 1))
#define SPINS            2000 /* some 100 us */
#define HELPER_YIELDS    1000 /* then asleep until the next job; longer than what lies between two steps */
#define CALLER_YIELDS    20

struct pool {
    unsigned n_threads;
    pthread_t *threads;
    pthread_mutex_t holder; /* held from pool_acquire to pool_release */
    pthread_mutex_t lock;
    pthread_cond_t wake;   /* helpers sleep here */
    pthread_cond_t joined; /* the caller sleeps here */
    _Alignas(64) _Atomic uint64_t job;
    _Alignas(64) _Atomic size_t done;       /* chunks of the job */
    _Alignas(64) _Atomic unsigned sleepers; /* helpers asleep, or about to be */
    _Atomic int caller_sleeps, closing;
    /* of the job */
    _Alignas(64) pool_range_fn fn;
    void *arg;
    size_t n_items, grain;
};

struct helper {
    struct pool *pool;
    unsigned index;
};

static inline void relax(unsigned spins)
{
    if (spins >= SPINS)
        sched_yield();
#if defined(__x86_64__)
    else
        __builtin_ia32_pause();
#elif defined(__aarch64__)
    else
        __asm__ volatile("yield");
#endif
}

static size_t n_chunks(uint64_t job)
{
    return job >> CHUNK_BITS & (((size_t)1 << CHUNK_BITS) - 1);
}

static size_t next_chunk(uint64_t job)
{
    return job & (((size_t)1 << CHUNK_BITS) - 1);
}

static bool has_chunk(const struct pool *p)
{
    uint64_t job = atomic_load(&p->job);
    return next_chunk(job) < n_chunks(job);
}

/* Takes chunks until there are none. All are of one job: it cannot end before those that were taken are counted. */
static void work(struct pool *p, unsigned thread)
{
    size_t taken = 0;
    while (has_chunk(p)) {
        uint64_t job = atomic_fetch_add(&p->job, 1);
        size_t chunk = next_chunk(job);
        if (chunk >= n_chunks(job))
            break;
        size_t begin = chunk * p->grain, end = p->n_items - begin < p->grain ? p->n_items : begin + p->grain;
        p->fn(p->arg, begin, end, thread);
        taken++;
    }
    if (taken == 0)
        return;
    atomic_fetch_add(&p->done, taken);
    if (thread && atomic_load(&p->caller_sleeps)) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_signal(&p->joined);
        pthread_mutex_unlock(&p->lock);
    }
}

static uint64_t job_number(const struct pool *p)
{
    return atomic_load(&p->job) >> (2 * CHUNK_BITS);
}

/* False when the pool closes. Whoever was woken spins again: its job may be over, but the next one is near. */
static bool wait_chunk(struct pool *p)
{
    while (!atomic_load(&p->closing)) {
        for (unsigned spins = 0; spins < SPINS + HELPER_YIELDS; spins++) {
            if (has_chunk(p))
                return true;
            relax(spins);
        }
        pthread_mutex_lock(&p->lock);
        atomic_fetch_add(&p->sleepers, 1);
        uint64_t number = job_number(p);
        while (!has_chunk(p) && job_number(p) == number && !atomic_load(&p->closing))
            pthread_cond_wait(&p->wake, &p->lock);
        atomic_fetch_sub(&p->sleepers, 1);
        pthread_mutex_unlock(&p->lock);
    }
    return false;
}

static void *helper_main(void *arg)
{
    struct helper h = *(struct helper *)arg;
    free(arg);
    while (wait_chunk(h.pool))
        work(h.pool, h.index);
    return NULL;
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
    pthread_cond_init(&p->joined, NULL);
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
        err_set(err, ERR_IO, "Only %u of %u compute threads could be started; give --threads %u.", started, n_threads, started);
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
    pthread_cond_destroy(&p->joined);
    pthread_mutex_destroy(&p->lock);
    pthread_mutex_destroy(&p->holder);
    free(p->threads);
    free(p);
}

unsigned pool_threads(const struct pool *p)
{
    return p->n_threads;
}

void pool_acquire(struct pool *p)
{
    pthread_mutex_lock(&p->holder);
}

void pool_release(struct pool *p)
{
    pthread_mutex_unlock(&p->holder);
}

static void join(struct pool *p, size_t chunks)
{
    for (unsigned spins = 0; atomic_load(&p->done) != chunks; spins++) {
        if (spins < SPINS + CALLER_YIELDS) {
            relax(spins);
            continue;
        }
        pthread_mutex_lock(&p->lock);
        atomic_store(&p->caller_sleeps, 1);
        while (atomic_load(&p->done) != chunks)
            pthread_cond_wait(&p->joined, &p->lock);
        atomic_store(&p->caller_sleeps, 0);
        pthread_mutex_unlock(&p->lock);
    }
}

void pool_range(struct pool *p, size_t n_items, size_t grain, pool_range_fn fn, void *arg)
{
    if (n_items == 0)
        return;
    grain = grain ? grain : 1;
    if (n_items / grain >= CHUNKS_MAX)
        grain = n_items / CHUNKS_MAX + 1;
    size_t chunks = n_items / grain + (n_items % grain != 0);
    if (p->n_threads == 1 || chunks == 1) {
        fn(arg, 0, n_items, 0);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    p->n_items = n_items;
    p->grain = grain;
    atomic_store(&p->done, 0);
    uint64_t number = job_number(p) + 1;
    atomic_store(&p->job, number << (2 * CHUNK_BITS) | (uint64_t)chunks << CHUNK_BITS);
    if (atomic_load(&p->sleepers)) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->lock);
    }
    work(p, 0);
    join(p, chunks);
}

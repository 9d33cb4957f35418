#include "probe.h"

#include "base/clock.h"

#include <cpuid.h>
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define READ_BYTES   ((size_t)1 << 30)
#define SAMPLE_BYTES ((size_t)128 << 20) /* two streams a whole half of READ_BYTES apart would meet in few banks */
#define LOOPS        4000000
#define SAMPLE_LOOPS 200000
#define REPEATS      3
#define AHEAD_MIN    1024 /* bytes */
#define AHEAD_MAX    4096
#define CHAINS       10

#define ARCH_REQ_XCOMP_PERM 0x1023 /* arch_prctl: allow this process an extended state */
#define XFEATURE_XTILEDATA  18
#define LEAF7_EDX_AMX       (1u << 22 | 1u << 24 | 1u << 25) /* bf16, tiles, int8 */
#define TILES               8
#define TILE_SUMS_A_LOOP    6 /* results; two more tiles are operands */
#define TILE_LOOPS          100000
#define TILE_BYTE_OPS       (2.0 * 16 * 16 * 64)
#define TILE_BF16_OPS       (2.0 * 16 * 16 * 32)

struct read_job {
    const char *data;
    size_t ahead; /* bytes to prefetch ahead; 0: none */
    size_t bytes;
    uint64_t sum;
};

struct chain_job {
    int loops;
    float sink;
};

__attribute__((target("avx2"))) static void read_part(void *arg, unsigned thread, unsigned n_threads)
{
    struct read_job *job = arg;
    size_t half = job->bytes / n_threads / 2 / 64 * 64; /* two streams a thread, line by line: faster than one */
    const char *p = job->data + thread * 2 * half;
    __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (size_t i = 0; i < half; i += 64) {
        for (int k = 0; k < 2 && job->ahead; k++)
            __builtin_prefetch(p + i + job->ahead + half * (size_t)k);
        for (int k = 0; k < 4; k++)
            sum[k] = _mm256_add_epi64(sum[k], _mm256_load_si256((const __m256i *)(p + i + 32 * (k % 2) + half * (k / 2))));
    }
    __m256i all = _mm256_add_epi64(_mm256_add_epi64(sum[0], sum[1]), _mm256_add_epi64(sum[2], sum[3]));
    __atomic_fetch_add(&job->sum, (uint64_t)_mm256_extract_epi64(all, 0), __ATOMIC_RELAXED);
}

/* Ten independent chains cover the latency of two units; the asm keeps them in registers. */
#define TEN(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9)
#define CHAIN_PART(NAME, TARGET, TYPE, ZERO, OPERATION) \
    __attribute__((target(TARGET))) static void NAME(void *arg, unsigned thread, unsigned n_threads) \
    { \
        (void)n_threads; \
        struct chain_job *job = arg; \
        TYPE a = ZERO, TEN(CHAIN_DECLARE) last = ZERO; \
        for (int n = 0; n < job->loops; n++) { \
            TEN(OPERATION) \
        } \
        __asm__ volatile("" : "+v"(last)); \
        if (thread == 0) \
            memcpy(&job->sink, &last, sizeof job->sink); \
    }
#define CHAIN_DECLARE(I) s##I = a,
#define FMA_STEP(I)      __asm__ volatile("vfmadd132ps %1, %1, %0" : "+v"(s##I) : "v"(a));
#define DOT_STEP(I)      __asm__ volatile("vpdpbusd %1, %1, %0" : "+v"(s##I) : "v"(a));

CHAIN_PART(fma_part, "avx512f", __m512, _mm512_setzero_ps(), FMA_STEP)
CHAIN_PART(fma_part_256, "avx2,fma", __m256, _mm256_setzero_ps(), FMA_STEP)
CHAIN_PART(dot_part, "avx512f,avx512vnni", __m512i, _mm512_setzero_si512(), DOT_STEP)

/* Products in registers: six results, so that no product waits for the one before it. A part may run on any thread of the
 * pool, so it sets its tiles up itself. */
struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64)));

__attribute__((target("amx-tile"))) static void tiles_begin(void)
{
    struct tile_config config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int t = 0; t < TILES; t++) {
        config.row_bytes[t] = 64;
        config.rows[t] = 16;
    }
    __asm__ volatile("" ::"r"(&config) : "memory"); /* gcc 12 takes the load for one of 8 bytes and drops the other stores */
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
}

#define TILE_PART(NAME, TARGET, PRODUCT) \
    __attribute__((target("amx-tile," TARGET))) static void NAME(void *arg, unsigned thread, unsigned n_threads) \
    { \
        (void)thread; \
        (void)n_threads; \
        const struct chain_job *job = arg; \
        tiles_begin(); \
        for (int n = 0; n < job->loops; n++) { \
            PRODUCT(0, 6, 7); \
            PRODUCT(1, 6, 7); \
            PRODUCT(2, 6, 7); \
            PRODUCT(3, 6, 7); \
            PRODUCT(4, 6, 7); \
            PRODUCT(5, 6, 7); \
        } \
        _tile_release(); \
    }
TILE_PART(tile_bytes_part, "amx-int8", _tile_dpbssd)
TILE_PART(tile_bf16_part, "amx-bf16", _tile_dpbf16ps)

/* The system must grant the tiles' state, and may refuse. Threads that run already have it too. */
static bool has_tiles(void)
{
    unsigned a, b, c, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & LEAF7_EDX_AMX) == LEAF7_EDX_AMX &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

typedef void (*part_fn)(void *arg, unsigned part, unsigned n_parts);
struct parts {
    part_fn fn;
    void *arg;
    unsigned n;
};

static void run_parts(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct parts *p = arg;
    for (size_t i = begin; i < end; i++)
        p->fn(p->arg, (unsigned)i, p->n);
}

/* Of one part a thread. */
static double seconds(struct pool *pool, part_fn fn, void *arg)
{
    struct parts parts = {fn, arg, pool_threads(pool)};
    uint64_t start = clock_mono_ns();
    pool_range(pool, parts.n, 1, run_parts, &parts);
    return (double)(clock_mono_ns() - start) * 1e-9;
}

/* Best seconds of REPEATS. */
static double best(struct pool *pool, part_fn fn, void *arg)
{
    double least = 1e9;
    for (int i = 0; i < REPEATS; i++) {
        double s = seconds(pool, fn, arg);
        least = s < least ? s : least;
    }
    return least;
}

static const char *read_memory(void)
{
    static char *memory;
    if (!memory) {
        memory = mmap(NULL, READ_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            abort();
        madvise(memory, READ_BYTES, MADV_HUGEPAGE);
        memset(memory, 1, READ_BYTES);
    }
    return memory;
}

static double fma_rate(unsigned threads, int loops, double s, bool wide)
{
    return 2.0 * (wide ? 16 : 8) * CHAINS * loops * threads / s / 1e9;
}

struct probe probe_limits(struct pool *pool)
{
    struct probe p = {0};
    unsigned threads = pool_threads(pool);
    bool wide = __builtin_cpu_supports("avx512f");
    struct chain_job chain = {.loops = LOOPS};
    /* The best way differs by processor. Nothing is read again before all else was: caches are large. */
    for (size_t ahead = 0; ahead <= AHEAD_MAX; ahead = ahead ? ahead * 2 : AHEAD_MIN)
        for (size_t at = 0; at < READ_BYTES; at += SAMPLE_BYTES) {
            struct read_job job = {.data = read_memory() + at, .bytes = SAMPLE_BYTES, .ahead = ahead};
            double gb = (double)SAMPLE_BYTES / 1e9 / seconds(pool, read_part, &job);
            p.read_gb = gb > p.read_gb ? gb : p.read_gb;
        }
    p.fma_gflop = fma_rate(threads, LOOPS, best(pool, wide ? fma_part : fma_part_256, &chain), wide);
    if (__builtin_cpu_supports("avx512vnni"))
        p.dot_gop = 2.0 * 64 * CHAINS * LOOPS * threads / best(pool, dot_part, &chain) / 1e9;
    if (has_tiles()) {
        struct chain_job tiles = {.loops = TILE_LOOPS};
        double products = (double)TILE_SUMS_A_LOOP * TILE_LOOPS * threads / 1e9;
        p.tile_gop = TILE_BYTE_OPS * products / best(pool, tile_bytes_part, &tiles);
        p.tile_gflop = TILE_BF16_OPS * products / best(pool, tile_bf16_part, &tiles);
    }
    return p;
}

struct probe probe_sample(struct pool *pool)
{
    static size_t at;
    bool wide = __builtin_cpu_supports("avx512f");
    struct read_job job = {.data = read_memory() + at, .bytes = SAMPLE_BYTES};
    struct chain_job chain = {.loops = SAMPLE_LOOPS};
    at = (at + SAMPLE_BYTES) % READ_BYTES;
    double fma = seconds(pool, wide ? fma_part : fma_part_256, &chain), read = seconds(pool, read_part, &job);
    return (struct probe){.read_gb = (double)SAMPLE_BYTES / 1e9 / read,
                          .fma_gflop = fma_rate(pool_threads(pool), SAMPLE_LOOPS, fma, wide)};
}

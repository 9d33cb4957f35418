/* The CPU backend: opening, memory, steps, scratch and how work is split. Operations: ops.c (rows), linear.c,
 * attention.c; arithmetic: kernels*.h. */
#include "backend/cpu/cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_PAGE_BYTES   ((size_t)2 << 20)
#define SPLIT_WORK_MIN    8192 /* floats below which an element-wise operation stays on one thread: a join costs 0.3 us */
#define CHUNKS_A_THREAD   4
#define PARTIALS_A_THREAD 16

struct backend *backend_open_cpu(const struct backend_options *options, struct err *err)
{
    struct backend *b = calloc(1, sizeof *b);
    if (!b) {
        err_set(err, ERR_MEMORY, "Out of memory for the CPU backend.");
        return NULL;
    }
    const struct cpu_kernels *failed = NULL;
    b->kernels = cpu_select(options->isa, &failed, err);
    b->pool = b->kernels ? pool_open(options->n_threads, err) : NULL;
    if (!b->pool) {
        free(b);
        return NULL;
    }
    snprintf(b->mode, sizeof b->mode, "cpu-%s%s%s", b->kernels->name, failed ? "-without-" : "", failed ? failed->name : "");
    return b;
}

void backend_close(struct backend *b)
{
    if (!b)
        return;
    backend_free(b, b->scratch, b->scratch_bytes);
    pool_close(b->pool);
    free(b);
}

const char *backend_mode(const struct backend *b)
{
    return b->mode;
}

unsigned backend_threads(const struct backend *b)
{
    return pool_threads(b->pool);
}

void *backend_alloc(struct backend *b, size_t bytes, struct err *err)
{
    (void)b;
    void *p = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        err_set(err, ERR_MEMORY, "The operating system refused %zu bytes (%m); free memory or choose a smaller model.", bytes);
        return NULL;
    }
    if (bytes >= HUGE_PAGE_BYTES)
        madvise(p, bytes, MADV_HUGEPAGE); /* small pages cost up to 17 % of the read rate; a refusal changes nothing else */
    return p;
}

void backend_free(struct backend *b, void *memory, size_t bytes)
{
    (void)b;
    if (memory)
        munmap(memory, bytes ? bytes : 1);
}

void backend_touch(struct backend *b, void *memory, size_t bytes)
{
    (void)b;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)memory / page * page;
    madvise((void *)begin, (uintptr_t)memory + bytes - begin, MADV_POPULATE_WRITE);
}

void backend_step_begin(struct backend *b)
{
    pool_acquire(b->pool);
}

void backend_step_end(struct backend *b)
{
    pool_release(b->pool);
}

void backend_split(struct backend *b, size_t n, size_t grain, void (*fn)(void *arg, size_t begin, size_t end, unsigned thread),
                   void *arg)
{
    if (n <= grain) {
        if (n)
            fn(arg, 0, n, 0);
        return;
    }
    pool_acquire(b->pool);
    pool_range(b->pool, n, grain, fn, arg);
    pool_release(b->pool);
}

const char *backend_weight_layout(const struct backend *b)
{
    (void)b; /* one layout for all instruction sets */
    return CPU_WEIGHT_LAYOUT;
}

const char *backend_op_name(enum backend_op op)
{
    static const char *const names[] = {[BACKEND_LINEAR] = "matrix products",
                                        [BACKEND_ATTENTION] = "attention",
                                        [BACKEND_KV_WRITE] = "write K and V",
                                        [BACKEND_NORM] = "norms",
                                        [BACKEND_ROPE] = "rotary",
                                        [BACKEND_GATED] = "activations",
                                        [BACKEND_OTHER] = "rows, sums"};
    return names[op];
}

void backend_profile_into(struct backend *b, struct backend_profile *p)
{
    b->profile = p;
}

void cpu_profile_end(struct backend *b, enum backend_op op, uint64_t begin, double bytes, double flops)
{
    if (!b->profile)
        return;
    b->profile->ops[op].calls++;
    b->profile->ops[op].ns += clock_mono_ns() - begin;
    b->profile->ops[op].bytes += bytes;
    b->profile->ops[op].flops += flops;
}

void cpu_split(struct backend *b, size_t n, size_t work, pool_range_fn fn, void *arg)
{
    size_t grain = n / ((size_t)pool_threads(b->pool) * CHUNKS_A_THREAD);
    if (work < SPLIT_WORK_MIN || n < 2)
        fn(arg, 0, n, 0);
    else
        pool_range(b->pool, n, grain ? grain : 1, fn, arg);
}

/* ---- scratch: [rows][partials][a part for each thread: attention, or one row with its inputs in order] ---- */

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

size_t cpu_rows_bytes(unsigned threads, const struct backend_sizes *sizes)
{
    size_t in = cpu_round_up(sizes->in_max, CPU_TILE_K);
    size_t bytes = in * 2 + CPU_LINE + in / CPU_GROUP_MIN * 3 * sizeof(float), floats = (in + CPU_LINE) * sizeof(float);
    size_t terms = in * CPU_BF16_TERMS * sizeof(uint16_t) + CPU_LINE;
    size_t rows = cpu_round_up(sizes->rows_max, CPU_ROWS_BLOCK);
    bytes = rows * larger(larger(bytes, floats), terms) + 4 * CPU_LINE;
    return cpu_round_up(larger(bytes, cpu_attend_plan_bytes(threads, rows)), CPU_LINE);
}

size_t cpu_thread_bytes(const struct backend_sizes *sizes)
{
    size_t dim = cpu_round_up(sizes->head_dim_max, CPU_PANEL), in = cpu_round_up(sizes->in_max, CPU_TILE_K);
    size_t attention = 2 * cpu_attend_floats(ATTEND_QUERIES, dim) + cpu_attend_work(dim);
    return cpu_round_up(larger(attention, in) * sizeof(float), CPU_LINE);
}

size_t cpu_partial_floats(unsigned threads, const struct backend_sizes *sizes)
{
    size_t dim = cpu_round_up(sizes->head_dim_max, CPU_PANEL);
    return cpu_round_up(PARTIALS_A_THREAD * threads * cpu_attend_floats(ATTEND_QUERIES, dim), CPU_LINE);
}

size_t backend_scratch_bytes(const struct backend *b, const struct backend_sizes *sizes)
{
    unsigned threads = pool_threads(b->pool);
    return cpu_rows_bytes(threads, sizes) + cpu_partial_floats(threads, sizes) * sizeof(float) +
           threads * cpu_thread_bytes(sizes);
}

bool backend_scratch_reserve(struct backend *b, const struct backend_sizes *sizes, struct err *err)
{
    pool_acquire(b->pool); /* another model may be in a step */
    unsigned threads = pool_threads(b->pool);
    size_t rows = larger(cpu_rows_bytes(threads, sizes), b->rows_bytes),
           thread = larger(cpu_thread_bytes(sizes), b->thread_bytes);
    size_t partials = larger(cpu_partial_floats(threads, sizes), b->partial_floats);
    size_t bytes = rows + partials * sizeof(float) + threads * thread;
    bool ok = true;
    if (bytes > b->scratch_bytes) {
        char *p = backend_alloc(b, bytes, err);
        ok = p != NULL;
        if (ok) {
            backend_free(b, b->scratch, b->scratch_bytes);
            b->scratch = b->rows = p;
            b->scratch_bytes = bytes;
            b->partials = (float *)(p + rows);
            b->per_thread = p + rows + partials * sizeof(float);
            b->rows_bytes = rows;
            b->partial_floats = partials;
            b->thread_bytes = thread;
        }
    }
    pool_release(b->pool);
    return ok;
}

/* Speed of attention and of the operations on rows. Usage: attend [--isa NAME] [--threads N] [--only WORD]
 *
 * Decode is bound by reading keys and values: GB/s, and the share of what a plain read loop reaches beside each sample.
 * Prefill is bound by arithmetic: GFLOP/s, share of fp32 multiply-adds in registers. Medians; caches rotate through copies
 * that no processor cache holds. */
#include "probe.h"

#include "backend/backend.h"
#include "base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SET_BYTES  ((size_t)600 << 20) /* copies together, against caches */
#define LAYERS_MAX 256
#define SAMPLES    15
#define SAMPLE_NS  1000000 /* at least, of one sample */
#define ROWS_MAX   512

static struct backend *backend;
static struct pool *pool;
static const char *only = "";

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *x)
{
    qsort(x, SAMPLES, sizeof *x, by_value);
    return x[SAMPLES / 2];
}

struct measured {
    double seconds, of_read, of_fma; /* of one call; for `bytes` and `flops` of it */
};

static struct measured measure(void (*fn)(void *arg, size_t i), void *arg, double bytes, double flops)
{
    double times[SAMPLES], read[SAMPLES], fma[SAMPLES];
    size_t call = 0;
    for (int n = -1; n < SAMPLES; n++) {
        pool_acquire(pool);
        struct probe limit = probe_sample(pool);
        pool_release(pool);
        backend_step_begin(backend);
        uint64_t start = clock_mono_ns(), took;
        size_t calls = 0;
        do {
            fn(arg, call++);
            calls++;
            took = clock_mono_ns() - start;
        } while (took < SAMPLE_NS);
        backend_step_end(backend);
        if (n < 0)
            continue;
        times[n] = (double)took * 1e-9 / (double)calls;
        read[n] = bytes / times[n] / 1e9 / limit.read_gb;
        fma[n] = flops / times[n] / 1e9 / limit.fma_gflop;
    }
    return (struct measured){median(times), median(read), median(fma)};
}

static float *random_floats(size_t n)
{
    float *x = malloc(n * sizeof *x);
    uint32_t s = 12345;
    for (size_t i = 0; x && i < n; i++) {
        s = s * 1664525u + 1013904223u;
        x[i] = (float)(int32_t)s * 0x1p-31f;
    }
    return x;
}

static void die(const char *what, const struct err *err)
{
    fprintf(stderr, "attend: %s: %s\n", what, err ? err->text : "out of memory");
    exit(1);
}

/* ---- attention ---- */

struct attend {
    struct kv_cache kv;
    struct batch batch;
    struct attention a;
    float *q, *k, *out;
};

static void run_attend(void *arg, size_t i)
{
    struct attend *t = arg;
    op_attention(backend, &t->kv, i % t->kv.n_layers, &t->batch, &t->a, t->q, t->a.n_heads * t->kv.head_dim_k, t->out);
}

static void run_write(void *arg, size_t i)
{
    struct attend *t = arg;
    op_kv_write(backend, &t->kv, i % t->kv.n_layers, &t->batch, t->k, t->k, t->kv.n_kv_heads * t->kv.head_dim_k);
}

/* n_seqs sequences, each with n_rows new rows behind `past` positions, of which `shared` lie in pages of the first one. */
static void bench_attend(enum kv_type type, size_t heads, size_t kv_heads, size_t dim, size_t n_seqs, size_t n_rows,
                         size_t past, size_t shared)
{
    struct err err;
    size_t per_seq = (past + n_rows + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS, pages = per_seq * n_seqs;
    struct attend t = {
        .kv = {.type = type, .n_layers = 1, .n_kv_heads = kv_heads, .head_dim_k = dim, .head_dim_v = dim, .n_pages = pages},
        .a = {.n_heads = heads, .scale = 0.1f}};
    size_t page_bytes = kv_cache_plan(&t.kv);
    t.kv.n_layers = SET_BYTES / (page_bytes * pages) + 1;
    t.kv.n_layers = t.kv.n_layers > LAYERS_MAX ? LAYERS_MAX : t.kv.n_layers;
    size_t bytes = kv_cache_plan(&t.kv) * pages;
    t.kv.data = backend_alloc(backend, bytes, &err);
    if (!t.kv.data)
        die("kv", &err);
    memset(t.kv.data, 0, bytes);
    int32_t *order = malloc(pages * sizeof *order);
    struct batch_seq *seqs = calloc(n_seqs, sizeof *seqs);
    for (size_t i = 0; i < pages; i++)
        order[i] = (int32_t)((i * 7919) % pages); /* 7919 is prime to any count of pages that is not its multiple */
    for (size_t s = 0; s < n_seqs; s++) {
        memcpy(order + s * per_seq, order, shared / KV_PAGE_TOKENS * sizeof *order);
        seqs[s] = (struct batch_seq){
            .pages = order + s * per_seq, .n_pages = per_seq, .row = s * n_rows, .n_rows = n_rows, .pos = past};
    }
    t.batch = (struct batch){.n_rows = n_seqs * n_rows, .seqs = seqs, .n_seqs = n_seqs};
    t.q = random_floats(n_seqs * n_rows * heads * dim);
    t.k = random_floats(n_seqs * n_rows * kv_heads * dim);
    t.out = random_floats(n_seqs * n_rows * heads * dim);
    double used = (double)page_bytes * (double)(n_seqs * (past + n_rows - shared) + shared) / KV_PAGE_TOKENS;
    double pairs = (double)(n_rows * past) + (double)(n_rows * (n_rows + 1)) / 2;
    double flops = 4.0 * pairs * (double)(dim * heads * n_seqs);
    struct measured m = measure(run_attend, &t, used, flops), w = measure(run_write, &t, 0, 0);
    printf("%-5s %2zu/%zu heads of %-3zu %3zu x %3zu rows behind %4zu, %3zu shared | %8.1f us", kv_type_name(type), heads,
           kv_heads, dim, n_seqs, n_rows, past, shared, m.seconds * 1e6);
    if (n_rows == 1 && !shared)
        printf(" | %5.1f GB/s    %3.0f %%", used / m.seconds / 1e9, 100 * m.of_read);
    else
        printf(" | %5.0f GFLOP/s %3.0f %%", flops / m.seconds / 1e9, 100 * m.of_fma);
    printf(" | write %.2f us a row\n", w.seconds * 1e6 / (double)(n_seqs * n_rows));
    backend_free(backend, t.kv.data, bytes);
    free(order);
    free(seqs);
    free(t.q);
    free(t.k);
    free(t.out);
}

/* ---- rows ---- */

struct rows {
    size_t n, width;
    float *x, *y;
    const float *weight;
    float *table;
    int32_t *positions;
};

static void run_norm(void *arg, size_t i)
{
    (void)i;
    struct rows *r = arg;
    op_rms_norm(backend, r->x, r->n, r->width, r->weight, 0, 1e-5f, r->y);
}

static void run_gated(void *arg, size_t i)
{
    (void)i;
    struct rows *r = arg;
    op_gated(backend, ACT_SILU, r->x, r->width, r->n, r->width / 2, r->y);
}

static void run_rope(void *arg, size_t i)
{
    (void)i;
    struct rows *r = arg;
    op_rope(backend, r->x, r->width, r->n, r->width / 64, 64, 32, 0, r->table, r->positions);
}

static void bench_rows(const char *name, void (*fn)(void *, size_t), size_t n, size_t width)
{
    struct rows r = {.n = n,
                     .width = width,
                     .x = random_floats(n * width),
                     .y = random_floats(n * width),
                     .weight = random_floats(width),
                     .table = random_floats(n * 64),
                     .positions = calloc(n, sizeof(int32_t))};
    struct measured m = measure(fn, &r, 0, 0);
    printf("%-10s %4zu x %-5zu | %8.1f us | %.3f ns a float\n", name, n, width, m.seconds * 1e6,
           m.seconds * 1e9 / (double)(n * width));
    free(r.x);
    free(r.y);
    free((void *)r.weight);
    free(r.table);
    free(r.positions);
}

static bool wanted(const char *section)
{
    return !*only || strstr(section, only);
}

int main(int argc, char **argv)
{
    struct backend_options options = {.isa = "auto"};
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--isa") == 0)
            options.isa = argv[i + 1];
        else if (strcmp(argv[i], "--threads") == 0)
            options.n_threads = (unsigned)atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--only") == 0)
            only = argv[i + 1];
    }
    struct err err;
    struct backend_sizes sizes = {.rows_max = ROWS_MAX, .in_max = 4096, .out_max = 4096, .heads_max = 32, .head_dim_max = 128};
    backend = backend_open_cpu(&options, &err);
    pool = backend ? pool_open(options.n_threads, &err) : NULL;
    if (!pool || !backend_scratch_reserve(backend, &sizes, &err))
        die("open", &err);
    pool_acquire(pool);
    struct probe limits = probe_limits(pool);
    pool_release(pool);
    printf("%s, %u threads. Limits: read %.1f GB/s, fp32 %.0f GFLOP/s\n", backend_mode(backend), backend_threads(backend),
           limits.read_gb, limits.fma_gflop);
    static const size_t attends[][4] = {{1, 1, 160},  {1, 1, 512},  {1, 1, 2048},      {1, 1, 4096}, {16, 1, 160},
                                        {16, 1, 512}, {64, 1, 160}, {16, 1, 420, 384}, {1, 512, 0},  {1, 256, 1792}};
    for (int type = KV_F32; type <= KV_I8; type++)
        for (size_t i = 0; wanted(kv_type_name((enum kv_type)type)) && i < sizeof attends / sizeof *attends; i++) {
            bench_attend((enum kv_type)type, 9, 3, 64, attends[i][0], attends[i][1], attends[i][2], attends[i][3]);
            bench_attend((enum kv_type)type, 16, 8, 128, attends[i][0], attends[i][1], attends[i][2], attends[i][3]);
        }
    if (wanted("rows")) {
        printf("\nrows\n");
        bench_rows("rms_norm", run_norm, 16, 1024);
        bench_rows("rms_norm", run_norm, 256, 1024);
        bench_rows("silu", run_gated, 16, 6144);
        bench_rows("silu", run_gated, 256, 6144);
        bench_rows("rope", run_rope, 256, 1024);
    }
    pool_close(pool);
    backend_close(backend);
    return 0;
}

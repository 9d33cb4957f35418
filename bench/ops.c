/* Speed of the products with weights (attention and rows: attend.c) against what the machine can do. Usage: ops [--isa NAME] [--threads N] [--only WORD]
 *
 * A product of few rows is bound by reading its weights: GB/s of packed bytes, share of a plain read loop. One of many
 * rows is bound by arithmetic: GOP/s (a multiply-add is two), share of the unit that it uses: byte dots for integer
 * weights (with activations of two terms two for each weight, so at most half), fp32 multiply-adds for the others; where the
 * products run on tiles, the tiles' bytes and bf16 (with three terms, so at most a third). Weights rotate through copies that
 * no cache holds. Medians. */
#include "probe.h"

#include "backend/backend.h"
#include "base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SET_BYTES   ((size_t)1 << 30) /* copies of a matrix together, more than large caches hold */
#define COPIES_MAX  4096
#define SAMPLES     15
#define SECONDS_MAX 0.4 /* of one measurement */
#define ROWS_MAX    512

static struct backend *backend;
static struct probe limits;
static const char *only = "";

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Median seconds of fn(arg, i). */
static double measure(void (*fn)(void *arg, size_t i), void *arg)
{
    double times[SAMPLES], total = 0;
    size_t n = 0;
    fn(arg, 0);
    while (n < SAMPLES && (n < 3 || total < SECONDS_MAX)) {
        uint64_t start = clock_mono_ns();
        fn(arg, n + 1);
        times[n] = (double)(clock_mono_ns() - start) * 1e-9;
        total += times[n++];
    }
    qsort(times, n, sizeof *times, by_value);
    return times[n / 2];
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
    fprintf(stderr, "ops: %s: %s\n", what, err ? err->text : "out of memory");
    exit(1);
}

/* ---- products ---- */

struct linear {
    struct weight copies[COPIES_MAX];
    size_t n_copies, n, repeat;
    const float *x;
    float *y;
};

static void run_linear(void *arg, size_t i)
{
    struct linear *l = arg;
    for (size_t k = 0; k < l->repeat; k++) {
        const struct weight *w = &l->copies[(i * l->repeat + k) % l->n_copies];
        op_linear(backend, w, NULL, l->x, w->n_in, l->n, 0, l->y, w->n_out);
    }
}

static void fill(struct linear *l, enum dtype t, enum weight_form form, size_t n_out, size_t n_in)
{
    struct err err;
    struct weight plan;
    if (!weight_plan(t, n_out, n_in, form, &plan, NULL, &err))
        die("plan", &err);
    size_t n = SET_BYTES / plan.bytes + 1, bytes = dtype_bytes(t, n_out * n_in);
    l->n_copies = n > COPIES_MAX ? COPIES_MAX : n;
    void *src = calloc(1, bytes); /* zeros: the speed does not depend on the values */
    for (size_t i = 0; i < l->n_copies; i++) {
        l->copies[i] = plan;
        void *memory = backend_alloc(backend, plan.bytes, &err);
        if (!memory || !src)
            die("weights", &err);
        weight_attach(&l->copies[i], memory);
        if (i)
            memcpy(memory, l->copies[0].data, plan.bytes);
        else if (!backend_weight_pack(backend, &l->copies[i], t, src, 0, n_out, &err))
            die("pack", &err);
    }
    free(src);
}

/* Of the unit that computes products of many rows. */
static double arithmetic_peak(const struct weight *w)
{
    bool tiles = strcmp(backend_mode(backend), "cpu-amx") == 0;
    if (w->group)
        return tiles ? limits.tile_gop : limits.dot_gop;
    return tiles && w->layout == WEIGHT_BF16 ? limits.tile_gflop : limits.fma_gflop;
}

static void bench_linear(const char *name, enum dtype t, enum weight_form form, size_t n_out, size_t n_in)
{
    static const size_t rows[] = {1, 4, 16, 64, 256, 512};
    static struct linear l;
    l = (struct linear){.x = random_floats(ROWS_MAX * n_in), .y = random_floats(ROWS_MAX * n_out)};
    fill(&l, t, form, n_out, n_in);
    const struct weight *w = l.copies;
    double peak = arithmetic_peak(w);
    backend_step_begin(backend);
    printf("%-6s %5zu x %-5zu", name, n_out, n_in);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        l.n = rows[i];
        l.repeat = 1 + (size_t)(64 << 20) / (w->bytes * (rows[i] + 3));
        double s = measure(run_linear, &l) / (double)l.repeat;
        double gb = (double)w->bytes / s / 1e9, gop = 2.0 * (double)n_out * (double)n_in * (double)rows[i] / s / 1e9;
        if (rows[i] <= 4)
            printf(" | %5.1f GB/s %3.0f%%", gb, 100 * gb / limits.read_gb);
        else
            printf(" | %5.0f %3.0f%%", gop, peak > 0 ? 100 * gop / peak : 0);
    }
    printf("\n");
    backend_step_end(backend);
    for (size_t i = 0; i < l.n_copies; i++)
        backend_free(backend, l.copies[i].data, l.copies[i].bytes);
    free((void *)l.x);
    free(l.y);
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
    if (!backend || !backend_scratch_reserve(backend, &sizes, &err))
        die("open", &err);
    struct pool *pool = pool_open(options.n_threads, &err);
    if (!pool)
        die("pool", &err);
    pool_acquire(pool);
    limits = probe_limits(pool);
    pool_release(pool);
    pool_close(pool);
    printf(
        "%s, %u threads. Limits: read %.1f GB/s, fp32 %.0f GFLOP/s, byte dots %.0f GOP/s, tiles %.0f GOP/s of bytes, %.0f GFLOP/s of bf16\n",
        backend_mode(backend), backend_threads(backend), limits.read_gb, limits.fma_gflop, limits.dot_gop, limits.tile_gop,
        limits.tile_gflop);
    static const struct {
        const char *name;
        enum dtype t;
        enum weight_form form;
    } types[] = {{"F32", DTYPE_F32, WEIGHT_EXACT},    {"F16", DTYPE_F16, WEIGHT_EXACT},    {"BF16", DTYPE_BF16, WEIGHT_EXACT},
                 {"int8", DTYPE_BF16, WEIGHT_INT8},   {"int4", DTYPE_BF16, WEIGHT_INT4},   {"Q8_0", DTYPE_Q8_0, WEIGHT_NATIVE},
                 {"Q4_0", DTYPE_Q4_0, WEIGHT_NATIVE}, {"Q4_1", DTYPE_Q4_1, WEIGHT_NATIVE}, {"Q4_K", DTYPE_Q4_K, WEIGHT_NATIVE},
                 {"Q6_K", DTYPE_Q6_K, WEIGHT_NATIVE}};
    static const size_t shapes[][2] = {{1536, 576}, {3072, 1024}, {4096, 4096}};
    if (wanted("linear"))
        printf("\nlinear: 1 row, 4 rows (share of reading) | 16, 64, 256, 512 rows (GOP/s, share of arithmetic)\n");
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            if ((wanted("linear") || wanted(types[t].name)) && shapes[s][1] % dtype_info(types[t].t)->block == 0)
                bench_linear(types[t].name, types[t].t, types[t].form, shapes[s][0], shapes[s][1]);
    backend_close(backend);
    return 0;
}

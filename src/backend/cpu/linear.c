/* Products with packed weights: activations prepared once (quantized, or moved to a stride that does not fill one cache
 * set), then panels of outputs split over the pool. */
#include "backend/cpu/cpu.h"

#include <stdatomic.h>
#include <string.h>

#define REGIONS_MAX      64
#define CHUNKS_A_REGION  8
#define STRIDE_BAD_BYTES 2048 /* rows this far apart fall in few sets of the first cache */
#define ALIGN_ROWS_MIN   4    /* fewer rows do not disturb each other */
#define QUANTIZE_WORK    4    /* a quantized float costs about so many plain ones */

static size_t good_stride(size_t bytes)
{
    return bytes % STRIDE_BAD_BYTES ? bytes : bytes + CPU_LINE;
}

bool cpu_prepares(const struct cpu_kernels *k, const struct weight *w)
{
    return w->group || (w->layout == WEIGHT_BF16 && k->split);
}

size_t cpu_quantized_plan(const struct cpu_kernels *k, const struct weight *w, size_t n, char *memory, struct cpu_quantized *q)
{
    bool tiles = k->split && (!w->group || n > CPU_FEW_ROWS);
    size_t padded = cpu_padded_in(w), row_bytes = padded * (w->group ? cpu_terms(w) : CPU_BF16_TERMS * sizeof(uint16_t));
    size_t groups = w->group ? padded / w->group : 0, block = n < CPU_ROWS_BLOCK ? n : CPU_ROWS_BLOCK;
    size_t blocks = (n + block - 1) / block, cells = (tiles ? blocks * block : n) * groups;
    size_t bytes = cpu_round_up(tiles ? blocks * block * row_bytes : n * good_stride(row_bytes), CPU_LINE);
    *q = (struct cpu_quantized){.stride = tiles ? block * row_bytes : good_stride(row_bytes),
                                .groups = groups,
                                .block_rows = tiles ? block : 0,
                                .codes = (int8_t *)memory};
    if (memory) {
        q->scales = (float *)(memory + bytes);
        q->sums = q->scales + cells;
        q->offsets = (int32_t *)(q->sums + cells);
    }
    if (memory && tiles && n % block) { /* rows that are not there: no product may be slow for them */
        memset(q->scales + (blocks - 1) * block * groups, 0, block * groups * sizeof(float));
        memset(q->sums + (blocks - 1) * block * groups, 0, block * groups * sizeof(float));
    }
    return bytes + cells * 3 * sizeof(float) +
           CPU_ROWS_BLOCK * sizeof(float); /* a block short of rows is read as a whole one */
}

void cpu_quantized_put(const struct cpu_kernels *k, const struct weight *w, const float *x, size_t row,
                       const struct cpu_quantized *q)
{
    size_t rows = q->block_rows ? q->block_rows : 1, width = q->block_rows ? cpu_tile_width(w) : CPU_TILE_K;
    size_t block = row / rows, in = row % rows, cell = block * q->groups * rows + in;
    int8_t *codes = q->codes + block * q->stride + in * width;
    if (!w->group) {
        k->split(x, w->n_in, cpu_padded_in(w), codes, rows * width);
        return;
    }
    struct cpu_quantized_row to = {.codes = codes,
                                   .width = width,
                                   .apart = rows * width,
                                   .cells_apart = rows,
                                   .scales = q->scales + cell,
                                   .sums = q->sums + cell,
                                   .offsets = q->offsets + cell};
    k->quantize(w, x, &to);
}

static void quantize_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    const struct cpu_linear *l = ((void **)arg)[0];
    const struct backend *b = ((void **)arg)[1];
    const struct weight *w = l->w;
    float *ordered = (float *)(b->per_thread + thread * b->thread_bytes);
    for (size_t r = begin; r < end; r++) {
        const float *x = l->x + r * l->x_stride;
        for (size_t i = 0; i < w->n_in && w->input_order; i++)
            ordered[i] = x[w->input_order[i]];
        cpu_quantized_put(b->kernels, w, w->input_order ? ordered : x, r, &l->q);
    }
}

static void quantize(struct backend *b, struct cpu_linear *l)
{
    size_t padded = cpu_padded_in(l->w);
    CHECK(cpu_quantized_plan(b->kernels, l->w, l->n, NULL, &l->q) <= b->rows_bytes);
    CHECK(padded * sizeof(float) <= b->thread_bytes);
    cpu_quantized_plan(b->kernels, l->w, l->n, b->rows, &l->q);
    void *job[2] = {l, b};
    cpu_split(b, l->n, l->n * padded * (l->w->group ? QUANTIZE_WORK : 1), quantize_part, job);
}

static void align_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct cpu_linear *l = ((void **)arg)[0];
    float *to = ((void **)arg)[1];
    size_t stride = l->w->n_in + CPU_PANEL;
    for (size_t r = begin; r < end; r++)
        memcpy(to + r * stride, l->x + r * l->x_stride, l->w->n_in * sizeof *to);
}

static void align_rows(struct backend *b, struct cpu_linear *l)
{
    size_t stride = l->w->n_in + CPU_PANEL;
    if (l->n < ALIGN_ROWS_MIN || l->x_stride * sizeof(float) % STRIDE_BAD_BYTES ||
        l->n * stride * sizeof(float) > b->rows_bytes)
        return;
    void *job[2] = {l, b->rows};
    cpu_split(b, l->n, l->n * l->w->n_in, align_part, job);
    l->x = (const float *)b->rows;
    l->x_stride = stride;
}

/* Pairs of panels, a region of them for each thread: a thread that goes on where it stopped finds the weights that it asked
 * for ahead. Who has finished its region takes chunks from the others. */
struct regions {
    const struct cpu_linear *l;
    const struct cpu_kernels *kernels;
    size_t n, each, chunks, grain;       /* regions; pairs and chunks of a region; pairs of a chunk */
    _Atomic uint32_t taken[REGIONS_MAX]; /* chunks, of each region */
};

static void linear_chunks(void *arg, size_t begin, size_t end, unsigned thread)
{
    struct regions *g = arg;
    const size_t panels = cpu_panels(g->l->w), pairs = (panels + 1) / 2;
    for (size_t left = end - begin, i = 0; left && i < g->n; i++) {
        size_t region = (thread + i) % g->n, chunk;
        while (left && (chunk = atomic_fetch_add(&g->taken[region], 1)) < g->chunks) {
            size_t from = region * g->each, limit = from + g->each < pairs ? from + g->each : pairs;
            size_t first = from + chunk * g->grain, last = first + g->grain < limit ? first + g->grain : limit;
            if (first < last)
                g->kernels->linear(g->l, 2 * first, 2 * last < panels ? 2 * last : panels);
            left--;
        }
    }
}

void op_linear(struct backend *b, const struct weight *w, const float *bias, const float *x, size_t x_stride, size_t n, int add,
               float *y, size_t y_stride)
{
    struct cpu_linear l = {
        .w = w, .bias = bias, .x = x, .x_stride = x_stride, .n = n, .add = add, .y = y, .y_stride = y_stride};
    if (n == 0)
        return;
    uint64_t begin = cpu_profile_begin(b);
    if (cpu_prepares(b->kernels, w))
        quantize(b, &l);
    else
        align_rows(b, &l);
    size_t pairs = (cpu_panels(w) + 1) / 2, threads = pool_threads(b->pool);
    struct regions g = {.l = &l, .kernels = b->kernels, .n = threads < REGIONS_MAX ? threads : REGIONS_MAX};
    g.each = (pairs + g.n - 1) / g.n;
    g.grain = (g.each + CHUNKS_A_REGION - 1) / CHUNKS_A_REGION;
    g.chunks = (g.each + g.grain - 1) / g.grain;
    pool_range(b->pool, g.n * g.chunks, 1, linear_chunks, &g);
    cpu_profile_end(b, BACKEND_LINEAR, begin, (double)w->bytes, 2.0 * (double)n * (double)w->n_out * (double)w->n_in);
}

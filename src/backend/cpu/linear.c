/* Products with packed weights: activations prepared once (quantized, or moved to a stride that does not fill one cache
 * set), then panels of outputs split over the pool. */
#include "backend/cpu/cpu.h"

#include <string.h>

#define CHUNKS_A_THREAD   8
#define STRIDE_BAD_BYTES  2048 /* rows this far apart fall in few sets of the first cache */
#define ALIGN_ROWS_MIN    4    /* fewer rows do not disturb each other */
#define QUANTIZE_WORK     4    /* a quantized float costs about so many plain ones */

static size_t good_stride(size_t bytes)
{
    return bytes % STRIDE_BAD_BYTES ? bytes : bytes + CPU_LINE;
}

static void quantize_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    const struct cpu_linear *l = ((void **)arg)[0];
    const struct backend *b = ((void **)arg)[1];
    const struct weight *w = l->w;
    const struct cpu_quantized *q = &l->q;
    for (size_t r = begin; r < end; r++) {
        const float *x = l->x + r * l->x_stride;
        if (w->input_order) {
            float *ordered = (float *)(b->per_thread + thread * b->thread_bytes);
            for (size_t i = 0; i < w->n_in; i++)
                ordered[i] = x[w->input_order[i]];
            x = ordered;
        }
        b->kernels->quantize(w, x, q->codes + r * q->stride, q->scales + r * q->groups, q->sums + r * q->groups,
                             q->offsets + r * q->groups);
    }
}

static void quantize(struct backend *b, struct cpu_linear *l)
{
    size_t padded = cpu_padded_in(l->w), groups = padded / l->w->group, stride = good_stride(padded * (size_t)l->w->terms);
    CHECK(l->n * (stride + groups * 3 * sizeof(float)) + CPU_LINE <= b->rows_bytes);
    l->q = (struct cpu_quantized){.stride = stride, .groups = groups, .codes = (int8_t *)b->rows};
    l->q.scales = (float *)(b->rows + cpu_round_up(l->n * stride, CPU_LINE));
    l->q.sums = l->q.scales + l->n * groups;
    l->q.offsets = (int32_t *)(l->q.sums + l->n * groups);
    CHECK(!l->w->input_order || l->w->n_in * sizeof(float) <= b->thread_bytes);
    void *job[2] = {l, b};
    cpu_split(b, l->n, l->n * padded * QUANTIZE_WORK, quantize_part, job);
}

static void split_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct cpu_linear *l = ((void **)arg)[0];
    const struct cpu_kernels *k = ((void **)arg)[1];
    for (size_t r = begin; r < end; r++)
        k->split(l->x + r * l->x_stride, l->w->n_in, cpu_padded_in(l->w), (uint16_t *)(l->q.codes + r * l->q.stride));
}

static void split(struct backend *b, struct cpu_linear *l)
{
    l->q = (struct cpu_quantized){.stride = good_stride(cpu_padded_in(l->w) * CPU_BF16_TERMS * sizeof(uint16_t)), .codes = (int8_t *)b->rows};
    CHECK(cpu_round_up(l->n, CPU_ROWS_BLOCK) * l->q.stride <= b->rows_bytes);
    void *job[2] = {l, (void *)b->kernels};
    cpu_split(b, l->n, l->n * l->w->n_in, split_part, job);
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

static void linear_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct cpu_linear *l = ((void **)arg)[0];
    const struct cpu_kernels *k = ((void **)arg)[1];
    size_t panels = cpu_panels(l->w);
    k->linear(l, 2 * begin, 2 * end < panels ? 2 * end : panels);
}

void op_linear(struct backend *b, const struct weight *w, const float *bias, const float *x, size_t x_stride, size_t n,
               int add, float *y, size_t y_stride)
{
    struct cpu_linear l = {.w = w, .bias = bias, .x = x, .x_stride = x_stride, .n = n, .add = add, .y = y,
                           .y_stride = y_stride};
    if (n == 0)
        return;
    uint64_t begin = cpu_profile_begin(b);
    if (w->group)
        quantize(b, &l);
    else if (w->layout == WEIGHT_BF16 && b->kernels->split)
        split(b, &l);
    else
        align_rows(b, &l);
    size_t pairs = (cpu_panels(w) + 1) / 2, grain = pairs / (pool_threads(b->pool) * CHUNKS_A_THREAD);
    void *job[2] = {&l, (void *)b->kernels};
    pool_range(b->pool, pairs, grain ? grain : 1, linear_part, job);
    cpu_profile_end(b, BACKEND_LINEAR, begin, (double)w->bytes, 2.0 * (double)n * (double)w->n_out * (double)w->n_in);
}

/* Operations on rows: embedding, norms, rotary embedding, activations, sums. Rows are independent, so however they are
 * split over the pool the result is the same. */
#include "backend/cpu/cpu.h"

#include <math.h>

#include <string.h>

struct rows {
    const struct cpu_kernels *k;
    const float *x;
    size_t stride, width;
    const float *weight, *bias;
    float scale, eps, *y;
    const int32_t *ids;
    const float *table;
    const struct weight *w;
    size_t n_heads, head_dim, n_pairs;
    int interleaved;
    enum activation act;
};

static void embed_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct rows *r = arg;
    for (size_t i = begin; i < end; i++)
        r->k->embed(r->w, (size_t)r->ids[i], r->scale, r->y + i * r->width);
}

void op_embed(struct backend *b, const struct weight *table, const int32_t *ids, size_t n, float scale, float *out)
{
    uint64_t begin = cpu_profile_begin(b);
    struct rows r = {.k = b->kernels, .w = table, .ids = ids, .width = table->n_in, .scale = scale, .y = out};
    cpu_split(b, n, n * table->n_in * 8, embed_part, &r);
    cpu_profile_end(b, BACKEND_OTHER, begin, 0, 0);
}

static void rms_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct rows *r = arg;
    for (size_t i = begin; i < end; i++)
        r->k->rms_norm(r->x + i * r->width, r->width, r->weight, r->scale, r->eps, r->y + i * r->width);
}

void op_rms_norm(struct backend *b, const float *x, size_t n, size_t width, const float *weight, float offset, float eps,
                 float *y)
{
    uint64_t begin = cpu_profile_begin(b);
    struct rows r = {.k = b->kernels, .x = x, .width = width, .weight = weight, .scale = offset, .eps = eps, .y = y};
    cpu_split(b, n, n * width, rms_part, &r);
    cpu_profile_end(b, BACKEND_NORM, begin, 0, 0);
}

static void layer_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct rows *r = arg;
    for (size_t i = begin; i < end; i++)
        r->k->layer_norm(r->x + i * r->width, r->width, r->weight, r->bias, r->eps, r->y + i * r->width);
}

void op_layer_norm(struct backend *b, const float *x, size_t n, size_t width, const float *weight, const float *bias, float eps,
                   float *y)
{
    uint64_t begin = cpu_profile_begin(b);
    struct rows r = {.k = b->kernels, .x = x, .width = width, .weight = weight, .bias = bias, .eps = eps, .y = y};
    cpu_split(b, n, n * width, layer_part, &r);
    cpu_profile_end(b, BACKEND_NORM, begin, 0, 0);
}

static void head_norm_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct rows *r = arg;
    for (size_t i = begin; i < end; i++)
        for (size_t h = 0; h < r->n_heads; h++) {
            float *x = r->y + i * r->stride + h * r->head_dim;
            r->k->rms_norm(x, r->head_dim, r->weight, 0, r->eps, x);
        }
}

void op_head_norm(struct backend *b, float *x, size_t stride, size_t n, size_t n_heads, size_t head_dim, const float *weight,
                  float eps)
{
    uint64_t begin = cpu_profile_begin(b);
    struct rows r = {
        .k = b->kernels, .y = x, .stride = stride, .n_heads = n_heads, .head_dim = head_dim, .weight = weight, .eps = eps};
    cpu_split(b, n, n * n_heads * head_dim, head_norm_part, &r);
    cpu_profile_end(b, BACKEND_NORM, begin, 0, 0);
}

static void rope_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct rows *r = arg;
    for (size_t i = begin; i < end; i++)
        r->k->rope(r->y + i * r->stride, r->n_heads, r->head_dim, r->n_pairs, r->interleaved,
                   r->table + (size_t)r->ids[i] * r->n_pairs * 2);
}

void op_rope(struct backend *b, float *x, size_t stride, size_t n, size_t n_heads, size_t head_dim, size_t n_pairs,
             int interleaved, const float *cos_sin, const int32_t *positions)
{
    uint64_t begin = cpu_profile_begin(b);
    struct rows r = {.k = b->kernels,
                     .y = x,
                     .stride = stride,
                     .n_heads = n_heads,
                     .head_dim = head_dim,
                     .n_pairs = n_pairs,
                     .interleaved = interleaved,
                     .table = cos_sin,
                     .ids = positions};
    cpu_split(b, n, n * n_heads * head_dim, rope_part, &r);
    cpu_profile_end(b, BACKEND_ROPE, begin, 0, 0);
}

static void gated_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct rows *r = arg;
    for (size_t i = begin; i < end; i++)
        r->k->gated(r->act, r->x + i * r->stride, r->x + i * r->stride + r->width, r->width, r->y + i * r->width);
}

void op_gated(struct backend *b, enum activation act, const float *gate_up, size_t stride, size_t n, size_t width, float *y)
{
    uint64_t begin = cpu_profile_begin(b);
    struct rows r = {.k = b->kernels, .x = gate_up, .stride = stride, .width = width, .act = act, .y = y};
    cpu_split(b, n, n * width * 4, gated_part, &r);
    cpu_profile_end(b, BACKEND_GATED, begin, 0, 0);
}

static void activation_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct rows *r = arg;
    for (size_t i = begin; i < end; i++)
        r->k->activate(r->act, r->y + i * r->width, r->width);
}

void op_activation(struct backend *b, enum activation act, float *x, size_t n, size_t width)
{
    uint64_t begin = cpu_profile_begin(b);
    struct rows r = {.k = b->kernels, .width = width, .act = act, .y = x};
    cpu_split(b, n, n * width * 4, activation_part, &r);
    cpu_profile_end(b, BACKEND_GATED, begin, 0, 0);
}

static void softcap_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct rows *r = arg;
    for (size_t i = begin; i < end; i++)
        r->y[i] = r->scale * tanhf(r->y[i] / r->scale);
}

void op_softcap(struct backend *b, float *x, size_t n, size_t width, float cap)
{
    struct rows r = {.y = x, .scale = cap};
    cpu_split(b, n * width, n * width * 4, softcap_part, &r);
}

static void add_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct rows *r = arg;
    r->k->add(r->x + begin * r->width, (end - begin) * r->width, r->scale, r->y + begin * r->width);
}

void op_add(struct backend *b, const float *x, size_t n, size_t width, float scale, float *y)
{
    uint64_t begin = cpu_profile_begin(b);
    struct rows r = {.k = b->kernels, .x = x, .width = width, .scale = scale, .y = y};
    cpu_split(b, n, n * width, add_part, &r);
    cpu_profile_end(b, BACKEND_OTHER, begin, 0, 0);
}

void op_gather_rows(struct backend *b, const float *x, const int32_t *rows, size_t n, size_t width, float *out)
{
    uint64_t begin = cpu_profile_begin(b);
    for (size_t i = 0; i < n; i++)
        memcpy(out + i * width, x + (size_t)rows[i] * width, width * sizeof *out);
    cpu_profile_end(b, BACKEND_OTHER, begin, 0, 0);
}

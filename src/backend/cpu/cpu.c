/* The CPU backend: opening, memory and the operations. Operations split the work over the pool; kernels.h has the
 * arithmetic. What is split never changes a sum: panels, rows, heads are independent. */
#include "backend/cpu/cpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SMALL_WORK 4096 /* floats below which an element-wise operation stays on one thread */

struct backend *backend_open_cpu(const struct backend_options *options, struct err *err)
{
    struct backend *b = calloc(1, sizeof *b);
    if (!b) {
        err_set(err, ERR_MEMORY, "Out of memory.");
        return NULL;
    }
    b->kernels = cpu_select(options->isa, err);
    b->pool = b->kernels ? pool_open(options->n_threads, err) : NULL;
    if (!b->pool) {
        free(b);
        return NULL;
    }
    snprintf(b->mode, sizeof b->mode, "cpu-%s", b->kernels->name);
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
        err_set(err, ERR_MEMORY, "The operating system refused %zu bytes: %m.", bytes);
        return NULL;
    }
    return p;
}

void backend_free(struct backend *b, void *memory, size_t bytes)
{
    (void)b;
    if (memory)
        munmap(memory, bytes ? bytes : 1);
}

void backend_step_begin(struct backend *b)
{
    pool_acquire(b->pool);
}

void backend_step_end(struct backend *b)
{
    pool_release(b->pool);
}

/* ---- scratch ---- */

#define GROUP_MIN 16 /* the finest group of a quantized activation */

static size_t padded_in_max(const struct backend_sizes *s)
{
    return (s->in_max + CPU_TILE_K - 1) / CPU_TILE_K * CPU_TILE_K;
}

size_t backend_scratch_bytes(const struct backend *b, const struct backend_sizes *sizes)
{
    (void)b;
    size_t in = padded_in_max(sizes), groups = in / GROUP_MIN;
    return sizes->rows_max * (in + groups * 3 * sizeof(float)) + 256;
}

bool backend_scratch_reserve(struct backend *b, const struct backend_sizes *sizes, struct err *err)
{
    size_t bytes = backend_scratch_bytes(b, sizes);
    pool_acquire(b->pool); /* another model may be in a step */
    bool ok = true;
    if (bytes > b->scratch_bytes) {
        void *p = backend_alloc(b, bytes, err);
        ok = p != NULL;
        if (ok) {
            backend_free(b, b->scratch, b->scratch_bytes);
            b->scratch = p;
            b->scratch_bytes = bytes;
        }
    }
    pool_release(b->pool);
    return ok;
}

/* ---- element-wise operations: a row each ---- */

struct rows {
    struct backend *b;
    const float *x;
    size_t stride, width;
    const float *weight, *bias;
    float offset, eps, *y;
    const int32_t *ids, *positions;
    const float *table;
    const struct weight *w;
    size_t n_heads, head_dim, n_pairs;
    int interleaved;
    enum activation act;
};

static void run_rows(const struct rows *r, size_t n, size_t floats_a_row, pool_range_fn fn)
{
    if (n * floats_a_row < SMALL_WORK)
        fn((void *)r, 0, n, 0);
    else
        pool_range(r->b->pool, n, 1 + SMALL_WORK / 4 / (floats_a_row + 1), fn, (void *)r);
}

static void embed_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct rows *r = arg;
    for (size_t i = begin; i < end; i++) {
        float *y = r->y + i * r->width;
        weight_row(r->w, (size_t)r->ids[i], y);
        for (size_t k = 0; k < r->width && r->offset != 1; k++)
            y[k] *= r->offset;
    }
}

void op_embed(struct backend *b, const struct weight *table, const int32_t *ids, size_t n, float scale, float *out)
{
    struct rows r = {.b = b, .w = table, .ids = ids, .width = table->n_in, .offset = scale, .y = out};
    run_rows(&r, n, table->n_in * 8, embed_part);
}

/* Sixteen partial sums, then one after the other: the same order on every thread count and for every row. */
static float dot_self(const float *x, size_t n, float mean)
{
    float lanes[16] = {0}, sum = 0;
    for (size_t i = 0; i + 16 <= n; i += 16)
        for (int k = 0; k < 16; k++)
            lanes[k] += (x[i + (size_t)k] - mean) * (x[i + (size_t)k] - mean);
    for (size_t i = n / 16 * 16; i < n; i++)
        lanes[0] += (x[i] - mean) * (x[i] - mean);
    for (int k = 0; k < 16; k++)
        sum += lanes[k];
    return sum;
}

static void rms_row(const float *x, size_t width, const float *weight, float offset, float eps, float *y)
{
    float scale = 1.0f / sqrtf(dot_self(x, width, 0) / (float)width + eps);
    for (size_t k = 0; k < width; k++)
        y[k] = x[k] * scale * (weight[k] + offset);
}

static void rms_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct rows *r = arg;
    for (size_t i = begin; i < end; i++)
        rms_row(r->x + i * r->width, r->width, r->weight, r->offset, r->eps, r->y + i * r->width);
}

void op_rms_norm(struct backend *b, const float *x, size_t n, size_t width, const float *weight, float offset, float eps,
                 float *y)
{
    struct rows r = {.b = b, .x = x, .width = width, .weight = weight, .offset = offset, .eps = eps, .y = y};
    run_rows(&r, n, width, rms_part);
}

static void layer_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct rows *r = arg;
    for (size_t i = begin; i < end; i++) {
        const float *x = r->x + i * r->width;
        float *y = r->y + i * r->width;
        double sum = 0;
        for (size_t k = 0; k < r->width; k++)
            sum += x[k];
        float mean = (float)(sum / (double)r->width);
        float scale = 1.0f / sqrtf(dot_self(x, r->width, mean) / (float)r->width + r->eps);
        for (size_t k = 0; k < r->width; k++)
            y[k] = (x[k] - mean) * scale * (r->weight ? r->weight[k] : 1) + (r->bias ? r->bias[k] : 0);
    }
}

void op_layer_norm(struct backend *b, const float *x, size_t n, size_t width, const float *weight, const float *bias,
                   float eps, float *y)
{
    struct rows r = {.b = b, .x = x, .width = width, .weight = weight, .bias = bias, .eps = eps, .y = y};
    run_rows(&r, n, width, layer_part);
}

static void head_norm_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct rows *r = arg;
    for (size_t i = begin; i < end; i++)
        for (size_t h = 0; h < r->n_heads; h++) {
            float *x = r->y + i * r->stride + h * r->head_dim;
            rms_row(x, r->head_dim, r->weight, 0, r->eps, x);
        }
}

void op_head_norm(struct backend *b, float *x, size_t stride, size_t n, size_t n_heads, size_t head_dim,
                  const float *weight, float eps)
{
    struct rows r = {.b = b, .y = x, .stride = stride, .n_heads = n_heads, .head_dim = head_dim, .weight = weight,
                     .eps = eps};
    run_rows(&r, n, n_heads * head_dim, head_norm_part);
}

static void rope_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct rows *r = arg;
    size_t step = r->interleaved ? 2 : 1, apart = r->interleaved ? 1 : r->n_pairs;
    for (size_t i = begin; i < end; i++) {
        const float *table = r->table + (size_t)r->positions[i] * r->n_pairs * 2;
        for (size_t h = 0; h < r->n_heads; h++) {
            float *x = r->y + i * r->stride + h * r->head_dim;
            for (size_t p = 0; p < r->n_pairs; p++) {
                float c = table[p * 2], s = table[p * 2 + 1], a = x[p * step], d = x[p * step + apart];
                x[p * step] = a * c - d * s;
                x[p * step + apart] = d * c + a * s;
            }
        }
    }
}

void op_rope(struct backend *b, float *x, size_t stride, size_t n, size_t n_heads, size_t head_dim, size_t n_pairs,
             int interleaved, const float *cos_sin, const int32_t *positions)
{
    struct rows r = {.b = b, .y = x, .stride = stride, .n_heads = n_heads, .head_dim = head_dim, .n_pairs = n_pairs,
                     .interleaved = interleaved, .table = cos_sin, .positions = positions};
    run_rows(&r, n, n_heads * head_dim * 2, rope_part);
}

static void gated_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct rows *r = arg;
    for (size_t i = begin; i < end; i++)
        r->b->kernels->gated(r->act, r->x + i * r->stride, r->x + i * r->stride + r->width, r->width, r->y + i * r->width);
}

void op_gated(struct backend *b, enum activation act, const float *gate_up, size_t stride, size_t n, size_t width, float *y)
{
    struct rows r = {.b = b, .x = gate_up, .stride = stride, .width = width, .act = act, .y = y};
    run_rows(&r, n, width * 4, gated_part);
}

static void activation_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct rows *r = arg;
    for (size_t i = begin; i < end; i++)
        r->b->kernels->activate(r->act, r->y + i * r->width, r->width);
}

void op_activation(struct backend *b, enum activation act, float *x, size_t n, size_t width)
{
    struct rows r = {.b = b, .width = width, .act = act, .y = x};
    run_rows(&r, n, width * 4, activation_part);
}

static void add_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct rows *r = arg;
    for (size_t i = begin * r->width; i < end * r->width; i++)
        r->y[i] += r->x[i] * r->offset;
}

void op_add(struct backend *b, const float *x, size_t n, size_t width, float scale, float *y)
{
    struct rows r = {.b = b, .x = x, .width = width, .offset = scale, .y = y};
    run_rows(&r, n, width, add_part);
}

void op_gather_rows(struct backend *b, const float *x, const int32_t *rows, size_t n, size_t width, float *out)
{
    (void)b;
    for (size_t i = 0; i < n; i++)
        memcpy(out + i * width, x + (size_t)rows[i] * width, width * sizeof *out);
}

/* ---- products ---- */

struct linear {
    struct backend *b;
    const struct weight *w;
    const float *bias, *x;
    size_t x_stride, n, y_stride;
    int add;
    float *y;
};

static void store_panel(const struct linear *l, size_t panel, size_t first, size_t n, const float *part)
{
    size_t from = panel * CPU_PANEL, width = l->w->n_out - from < CPU_PANEL ? l->w->n_out - from : CPU_PANEL;
    for (size_t r = 0; r < n; r++) {
        float *y = l->y + (first + r) * l->y_stride + from;
        for (size_t o = 0; o < width; o++) {
            float v = part[r * CPU_PANEL + o] + (l->bias ? l->bias[from + o] : 0);
            y[o] = l->add ? y[o] + v : v;
        }
    }
}

static void linear_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct linear *l = arg;
    const struct cpu_kernels *k = l->b->kernels;
    float part[CPU_ROWS_FLOAT * CPU_PANEL] __attribute__((aligned(64)));
    for (size_t panel = begin; panel < end; panel++)
        for (size_t first = 0; first < l->n; first += CPU_ROWS_FLOAT) {
            size_t n = l->n - first < CPU_ROWS_FLOAT ? l->n - first : CPU_ROWS_FLOAT;
            const float *x = l->x + first * l->x_stride;
            switch (l->w->layout) {
            case WEIGHT_F32: k->linear_f32(l->w, panel, x, l->x_stride, n, part); break;
            case WEIGHT_F16: k->linear_f16(l->w, panel, x, l->x_stride, n, part); break;
            case WEIGHT_BF16: k->linear_bf16(l->w, panel, x, l->x_stride, n, part); break;
            case WEIGHT_I8: k->linear_i8(l->w, panel, &l->b->quantized, first, n, part); break;
            case WEIGHT_I4: k->linear_i4(l->w, panel, &l->b->quantized, first, n, part); break;
            }
            store_panel(l, panel, first, n, part);
        }
}

static void quantize_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct linear *l = arg;
    const struct cpu_quantized *q = &l->b->quantized;
    size_t padded = cpu_padded_in(l->w), groups = padded / l->w->group;
    for (size_t r = begin; r < end; r++)
        l->b->kernels->quantize(l->x + r * l->x_stride, l->w->n_in, padded, l->w->group, q->codes + r * padded,
                                q->scales + r * groups, q->sums + r * groups, q->offsets + r * groups);
}

static void quantize(struct linear *l)
{
    struct backend *b = l->b;
    size_t padded = cpu_padded_in(l->w), groups = padded / l->w->group;
    CHECK(l->n * (padded + groups * 3 * sizeof(float)) <= b->scratch_bytes);
    char *p = b->scratch;
    b->quantized.codes = (int8_t *)p;
    b->quantized.scales = (float *)(p + (l->n * padded + 63) / 64 * 64);
    b->quantized.sums = b->quantized.scales + l->n * groups;
    b->quantized.offsets = (int32_t *)(b->quantized.sums + l->n * groups);
    if (l->n * padded < SMALL_WORK)
        quantize_part(l, 0, l->n, 0);
    else
        pool_range(b->pool, l->n, 1 + SMALL_WORK / 4 / padded, quantize_part, l);
}

void op_linear(struct backend *b, const struct weight *w, const float *bias, const float *x, size_t x_stride, size_t n,
               int add, float *y, size_t y_stride)
{
    struct linear l = {b, w, bias, x, x_stride, n, y_stride, add, y};
    if (n == 0)
        return;
    if (w->group)
        quantize(&l);
    size_t panels = cpu_panels(w), grain = panels / (pool_threads(b->pool) * 8);
    pool_range(b->pool, panels, grain ? grain : 1, linear_part, &l);
}

/* ---- KV pages and attention ---- */

size_t kv_cache_plan(struct kv_cache *kv)
{
    size_t size = kv->type == KV_F32 ? 4 : 2;
    kv->layer_bytes = (kv->n_kv_heads * KV_PAGE_TOKENS * (kv->head_dim_k + kv->head_dim_v) * size + 63) / 64 * 64;
    return kv->layer_bytes * kv->n_layers;
}

static void store_kv(char *base, enum kv_type type, size_t at, float v)
{
    if (type == KV_F32)
        ((float *)base)[at] = v;
    else
        ((uint16_t *)base)[at] = type == KV_F16 ? dtype_f32_to_f16(v) : dtype_f32_to_bf16(v);
}

static char *kv_layer(const struct kv_cache *kv, int32_t page, size_t layer)
{
    return (char *)kv->data + ((size_t)page * kv->n_layers + layer) * kv->layer_bytes;
}

void op_kv_write(struct backend *b, struct kv_cache *kv, size_t layer, const struct batch *batch, const float *k,
                 const float *v, size_t stride)
{
    (void)b;
    size_t dk = kv->head_dim_k, dv = kv->head_dim_v, values = kv->n_kv_heads * dk * KV_PAGE_TOKENS;
    for (size_t s = 0; s < batch->n_seqs; s++) {
        const struct batch_seq *seq = &batch->seqs[s];
        for (size_t r = 0; r < seq->n_rows; r++) {
            size_t pos = seq->pos + r, slot = pos % KV_PAGE_TOKENS;
            char *page = kv_layer(kv, seq->pages[pos / KV_PAGE_TOKENS], layer);
            const float *kr = k + (seq->row + r) * stride, *vr = v + (seq->row + r) * stride;
            for (size_t i = 0; i < kv->n_kv_heads * dk; i++)
                store_kv(page, kv->type, i * KV_PAGE_TOKENS + slot, kr[i]);
            for (size_t h = 0; h < kv->n_kv_heads; h++)
                for (size_t d = 0; d < dv; d++)
                    store_kv(page, kv->type, values + (h * KV_PAGE_TOKENS + slot) * dv + d, vr[h * dv + d]);
        }
    }
}

void op_kv_copy(struct backend *b, struct kv_cache *kv, int32_t from, int32_t to, size_t n_positions)
{
    (void)b;
    (void)n_positions; /* a whole page costs no more than its parts */
    memcpy(kv_layer(kv, to, 0), kv_layer(kv, from, 0), kv->layer_bytes * kv->n_layers);
}

struct attention_job {
    struct backend *b;
    const struct kv_cache *kv;
    size_t layer;
    const struct batch *batch;
    const struct attention *a;
    const float *q;
    size_t q_stride;
    float *out;
};

static const struct batch_seq *seq_of_row(const struct batch *batch, size_t row)
{
    size_t low = 0, high = batch->n_seqs;
    while (high - low > 1) {
        size_t mid = (low + high) / 2;
        if (batch->seqs[mid].row <= row)
            low = mid;
        else
            high = mid;
    }
    return &batch->seqs[low];
}

static void attention_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct attention_job *j = arg;
    size_t heads = j->kv->n_kv_heads, group = j->a->n_heads / heads;
    CHECK(group <= CPU_QUERIES_A_HEAD_MAX);
    for (size_t i = begin; i < end; i++) {
        size_t row = i / heads, head = i % heads;
        const struct batch_seq *seq = seq_of_row(j->batch, row);
        size_t pos = seq->pos + (row - seq->row);
        struct cpu_attend t = {.kv = j->kv, .layer = j->layer, .kv_head = head, .pages = seq->pages, .end = pos + 1,
                               .a = j->a, .head = head * group, .n_q = group,
                               .q = j->q + row * j->q_stride + head * group * j->kv->head_dim_k,
                               .out = j->out + (row * j->a->n_heads + head * group) * j->kv->head_dim_v};
        t.begin = j->a->window && pos + 1 > j->a->window ? pos + 1 - j->a->window : 0;
        j->b->kernels->attend(&t);
    }
}

void op_attention(struct backend *b, const struct kv_cache *kv, size_t layer, const struct batch *batch,
                  const struct attention *a, const float *q, size_t q_stride, float *out)
{
    struct attention_job j = {b, kv, layer, batch, a, q, q_stride, out};
    pool_range(b->pool, batch->n_rows * kv->n_kv_heads, 1, attention_part, &j);
}

/* Attention over pages. K lies [kv_head][dim][KV_PAGE_TOKENS] (positions across the lanes), V [kv_head][KV_PAGE_TOKENS]
 * [dim]: both are the right side of fma_block, so a page is read once for all queries that share it.
 * A query's sums: scores over dims ascending; a page's softmax; values over positions ascending; pages ascending. */
#ifndef INFERD_BACKEND_CPU_KERNELS_ATTEND_H
#define INFERD_BACKEND_CPU_KERNELS_ATTEND_H

#include "backend/cpu/kernels_linear.h"

struct attend_page {
    const char *k, *v;
    size_t from, to; /* positions of the page that the queries see */
};

/* Page part of one layer and KV head. */
static struct attend_page attend_page(const struct cpu_attend *t, size_t block, size_t from, size_t to)
{
    const struct kv_cache *kv = t->kv;
    size_t size = kv->type == KV_F32 ? 4 : 2;
    const char *base = (const char *)kv->data + ((size_t)t->pages[block] * kv->n_layers + t->layer) * kv->layer_bytes;
    size_t k = t->kv_head * kv->head_dim_k * KV_PAGE_TOKENS;
    size_t v = (kv->n_kv_heads * kv->head_dim_k + t->kv_head * kv->head_dim_v) * KV_PAGE_TOKENS;
    return (struct attend_page){base + k * size, base + v * size, from, to};
}

/* Scores [KV_PAGE_TOKENS] into weights of the softmax that runs; returns what the sums so far keep. */
static __attribute__((noinline)) float page_softmax(const struct attention *a, float *scores, size_t from, size_t to,
                                                    float *most, float *total)
{
    const vf none = vf_set(-INFINITY);
    vf low = vf_mul(vf_load(scores), vf_set(a->scale)), high = vf_mul(vf_load(scores + 16), vf_set(a->scale));
    if (a->softcap > 0) {
        vf_store(scores, low);
        vf_store(scores + 16, high);
        for (size_t i = from; i < to; i++)
            scores[i] = a->softcap * tanhf(scores[i] / a->softcap);
        low = vf_load(scores);
        high = vf_load(scores + 16);
    }
    if (from > 0 || to < KV_PAGE_TOKENS) {
        size_t mid = from > 16 ? from : 16;
        low = vf_lanes(low, none, from < 16 ? from : 16, to < 16 ? to : 16);
        high = vf_lanes(high, none, mid - 16, to > 16 ? to - 16 : 0);
    }
    float here = vf_most(vf_max(low, high));
    float now = here > *most ? here : *most;
    vf shift = vf_set(now);
    low = vf_exp(vf_sub(low, shift));
    high = vf_exp(vf_sub(high, shift));
    vf_store(scores, low);
    vf_store(scores + 16, high);
    float keep = 1;
    if (now != *most) {
        float t[VF_LANES];
        vf_store(t, vf_exp(vf_set(*most - now)));
        keep = t[0];
    }
    *total = fmaf(*total, keep, vf_sum(vf_add(low, high)));
    *most = now;
    return keep;
}

static void scale_row(float *x, size_t n, float by)
{
    size_t i = 0;
    for (; i + VF_LANES <= n; i += VF_LANES)
        vf_store(x + i, vf_mul(vf_load(x + i), vf_set(by)));
    if (i < n)
        vf_store_part(x + i, vf_mul(vf_load_part(x + i, n - i), vf_set(by)), n - i);
}

static float kv_value(enum fma_type type, const void *p, size_t at)
{
    if (type == FMA_F32)
        return ((const float *)p)[at];
    uint16_t h = ((const uint16_t *)p)[at];
    return type == FMA_F16 ? dtype_f16_to_f32(h) : dtype_bf16_to_f32(h);
}

/* Queries [first, first + n) of the state with one page. */
static void attend_queries(const struct cpu_attend *t, const struct attend_page *page, size_t first, size_t n)
{
    const struct kv_cache *kv = t->kv;
    size_t dk = kv->head_dim_k, dv = kv->head_dim_v, all = t->n_rows * t->n_heads, d = 0;
    enum fma_type type = kv->type == KV_F32 ? FMA_F32 : kv->type == KV_F16 ? FMA_F16 : FMA_BF16;
    size_t size = type == FMA_F32 ? 4 : 2;
    float *most = t->state, *total = most + all, *sum = total + all + first * dv;
    float *weights = t->work;
    const float *q = t->work + ATTEND_QUERIES * KV_PAGE_TOKENS + first * dk;
    memset(weights, 0, n * KV_PAGE_TOKENS * sizeof *weights);
    fma_table[type][1](page->k, KV_PAGE_TOKENS, CPU_PANEL, q, dk, dk, weights, KV_PAGE_TOKENS, n);
    for (size_t i = 0; i < n; i++) {
        float keep = page_softmax(t->a, weights + i * KV_PAGE_TOKENS, page->from, page->to, most + first + i,
                                  total + first + i);
        if (keep != 1)
            scale_row(sum + i * dv, dv, keep);
    }
    const char *v = page->v + page->from * dv * size;
    const float *x = weights + page->from;
    size_t n_k = page->to - page->from;
    for (; d + 2 * CPU_PANEL <= dv; d += 2 * CPU_PANEL)
        fma_table[type][1](v + d * size, dv, CPU_PANEL, x, KV_PAGE_TOKENS, n_k, sum + d, dv, n);
    for (; d + CPU_PANEL <= dv; d += CPU_PANEL)
        fma_table[type][0](v + d * size, dv, 0, x, KV_PAGE_TOKENS, n_k, sum + d, dv, n);
    for (; d < dv; d++)
        for (size_t i = 0; i < n; i++)
            for (size_t k = 0; k < n_k; k++)
                sum[i * dv + d] += kv_value(type, v, k * dv + d) * x[i * KV_PAGE_TOKENS + k];
}

/* First position that the row at `pos` sees. */
static size_t attend_first(const struct cpu_attend *t, size_t pos)
{
    return t->a->window && pos + 1 > t->a->window ? pos + 1 - t->a->window : 0;
}

/* Row r alone with the pages [block, end). */
static void attend_row(const struct cpu_attend *t, size_t r, size_t block, size_t end)
{
    size_t pos = t->pos + r, begin = attend_first(t, pos), last = pos + 1 < t->end ? pos + 1 : t->end;
    begin = begin > t->begin ? begin : t->begin;
    block = block > begin / KV_PAGE_TOKENS ? block : begin / KV_PAGE_TOKENS;
    for (; block < end && block * KV_PAGE_TOKENS < last; block++) {
        size_t base = block * KV_PAGE_TOKENS, from = begin > base ? begin - base : 0;
        size_t to = last - base < KV_PAGE_TOKENS ? last - base : KV_PAGE_TOKENS;
        struct attend_page page = attend_page(t, block, from, to);
        if (from < to)
            attend_queries(t, &page, r * t->n_heads, t->n_heads);
    }
}

static void attend(const struct cpu_attend *t)
{
    size_t all = t->n_rows * t->n_heads, dk = t->kv->head_dim_k;
    float *q = t->work + ATTEND_QUERIES * KV_PAGE_TOKENS;
    for (size_t i = 0; i < all; i++)
        t->state[i] = -INFINITY;
    memset(t->state + all, 0, (cpu_attend_state(all, t->kv->head_dim_v) - all) * sizeof(float));
    for (size_t r = 0; r < t->n_rows; r++)
        memcpy(q + r * t->n_heads * dk, t->q + r * t->q_stride, t->n_heads * dk * sizeof *q);
    /* Pages [low, high) are seen whole by every row: together; before and after them each row for itself. */
    size_t low = (attend_first(t, t->pos + t->n_rows - 1) + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    size_t high = (t->pos + 1) / KV_PAGE_TOKENS, split_end = (t->end + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    low = low > t->begin / KV_PAGE_TOKENS ? low : t->begin / KV_PAGE_TOKENS;
    high = high < t->end / KV_PAGE_TOKENS ? high : t->end / KV_PAGE_TOKENS;
    if (low >= high)
        low = high = split_end;
    for (size_t r = 0; r < t->n_rows; r++)
        attend_row(t, r, t->begin / KV_PAGE_TOKENS, low);
    for (size_t block = low; block < high; block++) {
        struct attend_page page = attend_page(t, block, 0, KV_PAGE_TOKENS);
        attend_queries(t, &page, 0, all);
    }
    for (size_t r = 0; r < t->n_rows; r++)
        attend_row(t, r, high, split_end);
}

static float exp_one(float x)
{
    float t[VF_LANES];
    vf_store(t, vf_exp(vf_set(x)));
    return t[0];
}

static void attend_merge(size_t queries, size_t dim, float *state, const float *next)
{
    float *most = state, *total = most + queries, *sum = total + queries;
    const float *next_total = next + queries, *next_sum = next_total + queries;
    for (size_t i = 0; i < queries; i++, sum += dim, next_sum += dim) {
        if (next[i] == -INFINITY)
            continue;
        float now = next[i] > most[i] ? next[i] : most[i], keep = exp_one(most[i] - now), part = exp_one(next[i] - now);
        total[i] = fmaf(next_total[i], part, total[i] * keep);
        most[i] = now;
        size_t d = 0;
        for (; d + VF_LANES <= dim; d += VF_LANES)
            vf_store(sum + d, vf_fma(vf_load(next_sum + d), vf_set(part), vf_mul(vf_load(sum + d), vf_set(keep))));
        if (d < dim) {
            vf kept = vf_mul(vf_load_part(sum + d, dim - d), vf_set(keep));
            vf_store_part(sum + d, vf_fma(vf_load_part(next_sum + d, dim - d), vf_set(part), kept), dim - d);
        }
    }
}

static void attend_end(const float *state, size_t queries, size_t query, size_t dim, const float *sink, float *out)
{
    float most = state[query], total = state[queries + query], by = 1;
    const float *sum = state + 2 * queries + query * dim;
    if (sink) {
        float now = *sink > most ? *sink : most;
        by = exp_one(most - now);
        total = fmaf(total, by, exp_one(*sink - now));
    }
    by /= total;
    size_t d = 0;
    for (; d + VF_LANES <= dim; d += VF_LANES)
        vf_store(out + d, vf_mul(vf_load(sum + d), vf_set(by)));
    if (d < dim)
        vf_store_part(out + d, vf_mul(vf_load_part(sum + d, dim - d), vf_set(by)), dim - d);
}

#endif

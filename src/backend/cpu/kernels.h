/* Every kernel once, in vectors of 16 floats that the compiler lowers to the instruction set of the including file.
 * Included by one .c per instruction set; holds only static code. The order of all sums is fixed by this text: for a
 * row of a product, lane = output, k ascending; for attention, positions ascending. Neither depends on how many rows
 * are computed together. */
#ifndef INFERD_BACKEND_CPU_KERNELS_H
#define INFERD_BACKEND_CPU_KERNELS_H

#include "backend/cpu/cpu.h"

#include <math.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#pragma GCC diagnostic ignored "-Wpsabi" /* everything here is inlined: no vector crosses a call */

typedef float v16 __attribute__((vector_size(64), aligned(4)));
typedef int32_t i16 __attribute__((vector_size(64), aligned(4)));

static inline v16 splat(float x)
{
    return (v16){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}

/* Lanes of a where the mask is set, else of b. */
static inline v16 pick(i16 mask, v16 a, v16 b)
{
    return (v16)((mask & (i16)a) | (~mask & (i16)b));
}

static inline v16 load_f32(const float *p)
{
    v16 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline v16 load_f16(const uint16_t *p)
{
#if defined(__AVX512F__)
    return (v16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__)
    __m256 low = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
    __m256 high = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)));
    v16 v;
    memcpy(&v, &low, 32);
    memcpy((char *)&v + 32, &high, 32);
    return v;
#else
    v16 v;
    for (int i = 0; i < 16; i++)
        v[i] = dtype_f16_to_f32(p[i]);
    return v;
#endif
}

/* 16 outputs of one k out of bf16 pairs [16][2]: which = 0 the even, 1 the odd one. */
static inline v16 load_bf16_pair(const uint16_t *p, int which)
{
    i16 v;
    memcpy(&v, p, sizeof v);
    v = which ? v & (i16){-65536, -65536, -65536, -65536, -65536, -65536, -65536, -65536, -65536, -65536, -65536, -65536,
                          -65536, -65536, -65536, -65536}
              : v << 16;
    return (v16)v;
}

/* ---- products with float weights ---- */

#define ROWS_STEP 8

/* `rows` rows (a constant) of one panel; `load` gives the weights of input k. */
#define FLOAT_PANEL(NAME, LOAD, TYPE, STRIDE)                                                                             \
    static inline __attribute__((always_inline)) void NAME##_rows(const TYPE *w, const float *x, size_t stride,          \
                                                                  size_t n_in, const int rows, float *y)                \
    {                                                                                                                    \
        v16 sum[ROWS_STEP];                                                                                              \
        for (int r = 0; r < rows; r++)                                                                                   \
            sum[r] = splat(0);                                                                                           \
        for (size_t k = 0; k < n_in; k++) {                                                                              \
            v16 weights = LOAD;                                                                                          \
            __builtin_prefetch((const char *)(w + k * STRIDE) + 1024);                                                   \
            for (int r = 0; r < rows; r++)                                                                               \
                sum[r] += weights * splat(x[(size_t)r * stride + k]);                                                    \
        }                                                                                                                \
        for (int r = 0; r < rows; r++)                                                                                   \
            memcpy(y + r * CPU_PANEL, &sum[r], sizeof sum[r]);                                                           \
    }                                                                                                                    \
    static void NAME(const struct weight *m, size_t panel, const float *x, size_t stride, size_t n, float *y)            \
    {                                                                                                                    \
        const TYPE *w = (const TYPE *)m->data + panel * cpu_padded_in(m) * CPU_PANEL;                                    \
        for (; n >= ROWS_STEP; n -= ROWS_STEP, x += ROWS_STEP * stride, y += ROWS_STEP * CPU_PANEL)                      \
            NAME##_rows(w, x, stride, m->n_in, ROWS_STEP, y);                                                            \
        for (; n >= 4; n -= 4, x += 4 * stride, y += 4 * CPU_PANEL)                                                      \
            NAME##_rows(w, x, stride, m->n_in, 4, y);                                                                    \
        for (; n; n--, x += stride, y += CPU_PANEL)                                                                      \
            NAME##_rows(w, x, stride, m->n_in, 1, y);                                                                    \
    }

FLOAT_PANEL(panel_f32, load_f32(w + k * CPU_PANEL), float, CPU_PANEL)
FLOAT_PANEL(panel_f16, load_f16(w + k * CPU_PANEL), uint16_t, CPU_PANEL)
FLOAT_PANEL(panel_bf16, load_bf16_pair(w + k / 2 * (2 * CPU_PANEL), (int)(k % 2)), uint16_t, CPU_PANEL)

/* ---- products with integer weights: exact integer sums within a group, groups ascending ---- */

/* One 64-byte tile row (16 outputs x 4 inputs, signed codes) times 4 activations, added to 16 sums. `u` selects the
 * unsigned form of the codes (code + 128), whose excess `offsets` takes back. */
static inline i16 dot_quads(i16 sum, const int8_t *w, const int8_t *x)
{
#if defined(__AVX512VNNI__)
    __m512i bytes = _mm512_xor_si512(_mm512_loadu_si512(w), _mm512_set1_epi8((char)0x80));
    int32_t quad;
    memcpy(&quad, x, 4);
    return (i16)_mm512_dpbusd_epi32((__m512i)sum, bytes, _mm512_set1_epi32(quad));
#else
    for (int o = 0; o < CPU_PANEL; o++)
        sum[o] += (w[o * 4] + 128) * x[0] + (w[o * 4 + 1] + 128) * x[1] + (w[o * 4 + 2] + 128) * x[2] +
                  (w[o * 4 + 3] + 128) * x[3];
    return sum;
#endif
}

static inline v16 to_float(i16 v)
{
    return __builtin_convertvector(v, v16);
}

struct int_panel {
    const float *scales, *mins; /* [groups][16] of this panel */
    size_t groups, group, padded;
};

static inline struct int_panel int_panel(const struct weight *m, size_t panel)
{
    size_t padded = cpu_padded_in(m), groups = padded / m->group;
    return (struct int_panel){m->scales + panel * groups * CPU_PANEL,
                              m->has_min ? m->mins + panel * groups * CPU_PANEL : NULL, groups, m->group, padded};
}

/* The end of one group for one row: scale, offset, min. */
static inline v16 group_end(v16 sum, i16 dot, const struct int_panel *p, size_t g, const struct cpu_quantized *q, size_t row)
{
    size_t at = row * p->groups + g;
    int32_t offset = q->offsets[at];
    i16 exact = dot - (i16){offset, offset, offset, offset, offset, offset, offset, offset, offset, offset, offset, offset,
                            offset, offset, offset, offset};
    sum += to_float(exact) * (load_f32(p->scales + g * CPU_PANEL) * splat(q->scales[at]));
    if (p->mins)
        sum += load_f32(p->mins + g * CPU_PANEL) * splat(q->sums[at]);
    return sum;
}

static inline __attribute__((always_inline)) void i8_rows(const int8_t *w, const struct int_panel *p,
                                                          const struct cpu_quantized *q, size_t first, const int rows,
                                                          float *y)
{
    v16 sum[ROWS_STEP];
    const int8_t *x = q->codes + first * p->padded;
    for (int r = 0; r < rows; r++)
        sum[r] = splat(0);
    for (size_t g = 0, k = 0; g < p->groups; g++) {
        i16 dot[ROWS_STEP];
        for (int r = 0; r < rows; r++)
            dot[r] = (i16){0};
        for (size_t end = k + p->group; k < end; k += 4) {
            __builtin_prefetch(w + k * CPU_PANEL + 1024);
            for (int r = 0; r < rows; r++)
                dot[r] = dot_quads(dot[r], w + k * CPU_PANEL, x + (size_t)r * p->padded + k);
        }
        for (int r = 0; r < rows; r++)
            sum[r] = group_end(sum[r], dot[r], p, g, q, first + (size_t)r);
    }
    for (int r = 0; r < rows; r++)
        memcpy(y + r * CPU_PANEL, &sum[r], sizeof sum[r]);
}

/* Half a tile (32 inputs, one group) of nibbles into signed codes: eight tile rows of 64 bytes. */
static inline void unpack_nibbles(const uint8_t *w, const int8_t *codebook, int high, int8_t *out)
{
#if defined(__AVX512BW__)
    __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)codebook));
    for (int i = 0; i < 8; i++) {
        __m512i v = _mm512_loadu_si512(w + i * 64);
        v = _mm512_and_si512(high ? _mm512_srli_epi16(v, 4) : v, _mm512_set1_epi8(15));
        _mm512_storeu_si512(out + i * 64, _mm512_shuffle_epi8(table, v));
    }
#else
    for (int i = 0; i < 512; i++)
        out[i] = codebook[high ? w[i] >> 4 : w[i] & 15];
#endif
}

static inline __attribute__((always_inline)) void i4_rows(const uint8_t *w, const struct int_panel *p,
                                                          const int8_t *codebook, const struct cpu_quantized *q,
                                                          size_t first, const int rows, float *y)
{
    v16 sum[ROWS_STEP];
    const int8_t *x = q->codes + first * p->padded;
    int8_t codes[512] __attribute__((aligned(64)));
    for (int r = 0; r < rows; r++)
        sum[r] = splat(0);
    for (size_t g = 0; g < p->groups; g++) {
        i16 dot[ROWS_STEP];
        for (int r = 0; r < rows; r++)
            dot[r] = (i16){0};
        __builtin_prefetch(w + g / 2 * 512 + 2048);
        unpack_nibbles(w + g / 2 * 512, codebook, (int)(g % 2), codes);
        for (int i = 0; i < 8; i++)
            for (int r = 0; r < rows; r++)
                dot[r] = dot_quads(dot[r], codes + i * 64, x + (size_t)r * p->padded + g * 32 + (size_t)i * 4);
        for (int r = 0; r < rows; r++)
            sum[r] = group_end(sum[r], dot[r], p, g, q, first + (size_t)r);
    }
    for (int r = 0; r < rows; r++)
        memcpy(y + r * CPU_PANEL, &sum[r], sizeof sum[r]);
}

static void panel_i8(const struct weight *m, size_t panel, const struct cpu_quantized *q, size_t first, size_t n, float *y)
{
    struct int_panel p = int_panel(m, panel);
    const int8_t *w = (const int8_t *)m->data + panel * p.padded * CPU_PANEL;
    for (; n >= ROWS_STEP; n -= ROWS_STEP, first += ROWS_STEP, y += ROWS_STEP * CPU_PANEL)
        i8_rows(w, &p, q, first, ROWS_STEP, y);
    for (; n >= 4; n -= 4, first += 4, y += 4 * CPU_PANEL)
        i8_rows(w, &p, q, first, 4, y);
    for (; n; n--, first++, y += CPU_PANEL)
        i8_rows(w, &p, q, first, 1, y);
}

static void panel_i4(const struct weight *m, size_t panel, const struct cpu_quantized *q, size_t first, size_t n, float *y)
{
    struct int_panel p = int_panel(m, panel);
    const uint8_t *w = (const uint8_t *)m->data + panel * p.padded * CPU_PANEL / 2;
    for (; n >= ROWS_STEP; n -= ROWS_STEP, first += ROWS_STEP, y += ROWS_STEP * CPU_PANEL)
        i4_rows(w, &p, m->codebook, q, first, ROWS_STEP, y);
    for (; n >= 4; n -= 4, first += 4, y += 4 * CPU_PANEL)
        i4_rows(w, &p, m->codebook, q, first, 4, y);
    for (; n; n--, first++, y += CPU_PANEL)
        i4_rows(w, &p, m->codebook, q, first, 1, y);
}

static void quantize_row(const float *x, size_t n_in, size_t padded, size_t group, int8_t *codes, float *scales,
                         float *sums, int32_t *offsets)
{
    for (size_t g = 0; g * group < padded; g++) {
        size_t from = g * group, n = from >= n_in ? 0 : n_in - from < group ? n_in - from : group;
        float most = 0;
        for (size_t k = 0; k < n; k++) {
            float a = fabsf(x[from + k]);
            most = a > most ? a : most;
        }
        float scale = most / 127, inverse = most > 0 ? 127 / most : 0;
        int32_t sum = 0;
        for (size_t k = 0; k < group; k++) {
            int code = k < n ? (int)rintf(x[from + k] * inverse) : 0;
            codes[from + k] = (int8_t)code;
            sum += code;
        }
        scales[g] = scale;
        sums[g] = scale * (float)sum;
        offsets[g] = 128 * sum;
    }
}

/* ---- exp: 2^n * polynomial, relative error below 2e-7; the same code for one value and for sixteen ---- */

static inline v16 exp16(v16 x)
{
    x = pick(x < splat(-87.0f), splat(-87.0f), x);
    x = pick(x > splat(88.0f), splat(88.0f), x);
    v16 magic = splat(0x1.8p23f);
    v16 n = x * 1.44269504f + magic;
    i16 bits = (i16)n << 23;
    n -= magic;
    v16 r = x - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f;
    v16 p = splat(1.9875691e-4f);
    p = p * r + 1.3981999e-3f;
    p = p * r + 8.3334519e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 5.0000001e-1f;
    p = p * r * r + r + 1.0f;
    return (v16)((i16)p + bits);
}

static inline float exp1(float x)
{
    return exp16(splat(x))[0];
}

/* ---- attention ---- */


/* Page of one layer: K [kv_head][dim][KV_PAGE_TOKENS], then V [kv_head][KV_PAGE_TOKENS][dim]. */
static inline const char *page_part(const struct kv_cache *kv, int32_t page, size_t layer, size_t elements)
{
    size_t size = kv->type == KV_F32 ? 4 : 2;
    return (const char *)kv->data + ((size_t)page * kv->n_layers + layer) * kv->layer_bytes + elements * size;
}

static inline v16 load_kv(const char *base, enum kv_type type, size_t at)
{
    if (type == KV_F32)
        return load_f32((const float *)base + at);
    if (type == KV_F16)
        return load_f16((const uint16_t *)base + at);
    v16 v;
    for (int i = 0; i < 16; i++)
        v[i] = dtype_bf16_to_f32(((const uint16_t *)base)[at + (size_t)i]);
    return v;
}

static inline float load_kv1(const char *base, enum kv_type type, size_t at)
{
    if (type == KV_F32)
        return ((const float *)base)[at];
    return type == KV_F16 ? dtype_f16_to_f32(((const uint16_t *)base)[at]) : dtype_bf16_to_f32(((const uint16_t *)base)[at]);
}

/* Scores of one query with the page's positions; those outside [from, to) are -inf. */
static inline __attribute__((always_inline)) float page_scores(const struct cpu_attend *t, const char *k,
                                                               enum kv_type type, const float *q, size_t from, size_t to,
                                                               float *scores)
{
    v16 low = splat(0), high = splat(0);
    for (size_t d = 0; d < t->kv->head_dim_k; d++) {
        low += load_kv(k, type, d * KV_PAGE_TOKENS) * splat(q[d]);
        high += load_kv(k, type, d * KV_PAGE_TOKENS + 16) * splat(q[d]);
    }
    low *= t->a->scale;
    high *= t->a->scale;
    memcpy(scores, &low, sizeof low);
    memcpy(scores + 16, &high, sizeof high);
    float most = -INFINITY;
    for (size_t i = 0; i < KV_PAGE_TOKENS; i++) {
        if (i < from || i >= to)
            scores[i] = -INFINITY;
        else if (t->a->softcap > 0)
            scores[i] = t->a->softcap * tanhf(scores[i] / t->a->softcap);
        most = scores[i] > most ? scores[i] : most;
    }
    return most;
}

static inline __attribute__((always_inline)) void page_values(const struct cpu_attend *t, const char *v,
                                                              enum kv_type type, const float *p, size_t from, size_t to,
                                                              float keep, float *out)
{
    size_t dim = t->kv->head_dim_v, d = 0;
    for (; d + 64 <= dim; d += 64) {
        v16 sum[4];
        for (int j = 0; j < 4; j++)
            sum[j] = load_f32(out + d + j * 16) * keep;
        for (size_t i = from; i < to; i++)
            for (int j = 0; j < 4; j++)
                sum[j] += load_kv(v, type, i * dim + d + (size_t)j * 16) * splat(p[i]);
        memcpy(out + d, sum, sizeof sum);
    }
    for (; d + 16 <= dim; d += 16) {
        v16 sum = load_f32(out + d) * keep;
        for (size_t i = from; i < to; i++)
            sum += load_kv(v, type, i * dim + d) * splat(p[i]);
        memcpy(out + d, &sum, sizeof sum);
    }
    for (; d < dim; d++) {
        float sum = out[d] * keep;
        for (size_t i = from; i < to; i++)
            sum += load_kv1(v, type, i * dim + d) * p[i];
        out[d] = sum;
    }
}

static inline __attribute__((always_inline)) void attend_type(const struct cpu_attend *t, enum kv_type type)
{
    const struct kv_cache *kv = t->kv;
    size_t k_page = kv->head_dim_k * KV_PAGE_TOKENS, v_page = kv->head_dim_v * KV_PAGE_TOKENS;
    float most[CPU_QUERIES_A_HEAD_MAX], total[CPU_QUERIES_A_HEAD_MAX];
    for (size_t h = 0; h < t->n_q; h++) {
        most[h] = t->a->sinks ? t->a->sinks[t->head + h] : -INFINITY;
        total[h] = t->a->sinks ? 1 : 0;
        memset(t->out + h * kv->head_dim_v, 0, kv->head_dim_v * sizeof(float));
    }
    for (size_t block = t->begin / KV_PAGE_TOKENS; block * KV_PAGE_TOKENS < t->end; block++) {
        size_t base = block * KV_PAGE_TOKENS, from = t->begin > base ? t->begin - base : 0;
        size_t to = t->end - base < KV_PAGE_TOKENS ? t->end - base : KV_PAGE_TOKENS;
        const char *k = page_part(kv, t->pages[block], t->layer, t->kv_head * k_page);
        const char *v = page_part(kv, t->pages[block], t->layer, kv->n_kv_heads * k_page + t->kv_head * v_page);
        for (size_t h = 0; h < t->n_q; h++) {
            float scores[KV_PAGE_TOKENS] __attribute__((aligned(64)));
            float here = page_scores(t, k, type, t->q + h * kv->head_dim_k, from, to, scores);
            float now = here > most[h] ? here : most[h], keep = most[h] == -INFINITY ? 0 : exp1(most[h] - now);
            v16 low = exp16(load_f32(scores) - now), high = exp16(load_f32(scores + 16) - now);
            memcpy(scores, &low, sizeof low);
            memcpy(scores + 16, &high, sizeof high);
            float sum = 0;
            for (size_t i = from; i < to; i++)
                sum += scores[i];
            total[h] = total[h] * keep + sum;
            most[h] = now;
            page_values(t, v, type, scores, from, to, keep, t->out + h * kv->head_dim_v);
        }
    }
    for (size_t h = 0; h < t->n_q; h++)
        for (size_t d = 0; d < kv->head_dim_v; d++)
            t->out[h * kv->head_dim_v + d] /= total[h];
}

static void attend(const struct cpu_attend *t)
{
    if (t->kv->type == KV_F32)
        attend_type(t, KV_F32);
    else if (t->kv->type == KV_F16)
        attend_type(t, KV_F16);
    else
        attend_type(t, KV_BF16);
}

/* ---- activations ---- */

static inline v16 act16(enum activation act, v16 x)
{
    switch (act) {
    case ACT_SILU:
        return x / (1.0f + exp16(-x));
    case ACT_GELU_QUICK:
        return x / (1.0f + exp16(x * -1.702f));
    case ACT_RELU:
        return pick(x > splat(0), x, splat(0));
    case ACT_GELU_TANH: { /* 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)) */
        v16 u = 0.79788456f * (x + 0.044715f * x * x * x);
        return x / (1.0f + exp16(-2.0f * u));
    }
    default:
        for (int i = 0; i < 16; i++)
            x[i] = 0.5f * x[i] * (1 + erff(x[i] * 0.70710678f));
        return x;
    }
}

static void gated_row(enum activation act, const float *gate, const float *up, size_t width, float *y)
{
    for (size_t i = 0; i < width; i += 16) {
        size_t n = width - i < 16 ? width - i : 16;
        v16 g = splat(0), u = splat(0);
        memcpy(&g, gate + i, n * sizeof(float));
        memcpy(&u, up + i, n * sizeof(float));
        g = act16(act, g) * u;
        memcpy(y + i, &g, n * sizeof(float));
    }
}

static void activate_row(enum activation act, float *x, size_t width)
{
    for (size_t i = 0; i < width; i += 16) {
        size_t n = width - i < 16 ? width - i : 16;
        v16 v = splat(0);
        memcpy(&v, x + i, n * sizeof(float));
        v = act16(act, v);
        memcpy(x + i, &v, n * sizeof(float));
    }
}

#define CPU_KERNELS(NAME)                                                                                                 \
    {                                                                                                                    \
        .name = NAME, .linear_f32 = panel_f32, .linear_f16 = panel_f16, .linear_bf16 = panel_bf16,                       \
        .linear_i8 = panel_i8, .linear_i4 = panel_i4, .quantize = quantize_row, .attend = attend, .gated = gated_row,   \
        .activate = activate_row                                                                                         \
    }

#endif

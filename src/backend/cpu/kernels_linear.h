/* Products. Two small kernels do everything, attention's scores and values too:
 *   fma_block  R rows x P panels of 16 outputs, one fma chain a lane, inputs ascending; sums live in `acc` between
 *              blocks of inputs (fp32 stored and loaded again is the same fp32, so cutting K changes nothing)
 *   dot_block  the same for signed bytes times activations of one or two signed bytes: exact int32 a group, then
 *              acc = fma(dot, scale_w * scale_x, acc)
 * R and P are constants of the inlined bodies; which R computes a row is free, for no lane sees another. */
#ifndef INFERD_BACKEND_CPU_KERNELS_LINEAR_H
#define INFERD_BACKEND_CPU_KERNELS_LINEAR_H

#include "backend/cpu/cpu.h"
#include "backend/cpu/vec.h"

#define FLOAT_K_BLOCK    64  /* two panels of fp32: 8 KB, and as much of what comes next is asked for before */
#define BYTE_K_BLOCK     512 /* two panels of bytes: 16 KB */
#define ROWS_CHUNK       96  /* rows whose sums are kept: 12 KB */
#define ACC_STRIDE       32
#define PREFETCH(P)      __builtin_prefetch(P, 0, 2) /* into the second cache */
#define LEAST_ACTIVATION 0x1p-100f

#if defined(__AVX512F__)
#define BLOCK_ROWS     12
#define DOT_BLOCK_ROWS 12
#elif defined(__AVX2__)
#define BLOCK_ROWS     6
#define DOT_BLOCK_ROWS 4
#else
#define BLOCK_ROWS     1
#define DOT_BLOCK_ROWS 1
#endif

enum fma_type { FMA_F32, FMA_F16, FMA_BF16, FMA_PAIR };

VEC_INLINE vf fma_load(const enum fma_type type, const void *w, size_t at)
{
    switch (type) {
    case FMA_F32: return vf_load((const float *)w + at);
    case FMA_F16: return vf_load_f16((const uint16_t *)w + at);
    default: return vf_load_bf16((const uint16_t *)w + at);
    }
}

/* Row r of x as an address with few registers: every third row has a base. */
#define ROW_OF(BASES, R, STRIDE) ((BASES)[(R) / 3] + (size_t)((R) % 3) * (STRIDE))

/* acc [R][as] += x [R][xs] * w, w: input k, panel p at element k * ws + p * apart (FMA_PAIR: pairs of inputs at
 * k / 2 * 2 * CPU_PANEL + p * apart; n_k counts from an even input). */
VEC_INLINE void fma_block(const enum fma_type type, const int P, const int R, const void *w, size_t ws, size_t apart,
                          const float *x, size_t xs, size_t n_k, float *acc, size_t as)
{
    vf sum[BLOCK_ROWS * 2];
    const float *base[(BLOCK_ROWS + 2) / 3];
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
        if (r % 3 == 0)
            base[r / 3] = x + (size_t)r * xs;
        for (int p = 0; p < P; p++)
            sum[r * P + p] = vf_load(acc + (size_t)r * as + p * CPU_PANEL);
    }
    if (type == FMA_PAIR) {
        const uint16_t *pairs = w;
        for (size_t k = 0; k < n_k; k++) {
            vf weight[2];
            for (int p = 0; p < P; p++) {
                const uint16_t *at = pairs + (k >> 1) * (2 * CPU_PANEL) + (size_t)p * apart;
                weight[p] = vf_load_even(at);
            }
#pragma GCC unroll 12
            for (int r = 0; r < R; r++) {
                vf one = vf_set(ROW_OF(base, r, xs)[k]);
                for (int p = 0; p < P; p++)
                    sum[r * P + p] = vf_fma(weight[p], one, sum[r * P + p]);
            }
            if (++k == n_k)
                break;
            for (int p = 0; p < P; p++)
                weight[p] = vf_load_odd(pairs + (k >> 1) * (2 * CPU_PANEL) + (size_t)p * apart);
#pragma GCC unroll 12
            for (int r = 0; r < R; r++) {
                vf one = vf_set(ROW_OF(base, r, xs)[k]);
                for (int p = 0; p < P; p++)
                    sum[r * P + p] = vf_fma(weight[p], one, sum[r * P + p]);
            }
        }
    } else {
        for (size_t k = 0; k < n_k; k++) {
            vf weight[2];
            for (int p = 0; p < P; p++)
                weight[p] = fma_load(type, w, k * ws + (size_t)p * apart);
#pragma GCC unroll 12
            for (int r = 0; r < R; r++) {
                vf one = vf_set(ROW_OF(base, r, xs)[k]);
                for (int p = 0; p < P; p++)
                    sum[r * P + p] = vf_fma(weight[p], one, sum[r * P + p]);
            }
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++)
            vf_store(acc + (size_t)r * as + p * CPU_PANEL, sum[r * P + p]);
}

#define FMA_STEP(P, R) \
    for (; n >= (R); n -= (R), x += (R)*xs, acc += (R)*as) \
    fma_block(type, P, R, w, ws, apart, x, xs, n_k, acc, as)

/* Any number of rows, one or two panels. */
VEC_INLINE void fma_rows(const enum fma_type type, const int panels, const void *w, size_t ws, size_t apart, const float *x,
                         size_t xs, size_t n_k, float *acc, size_t as, size_t n)
{
#if defined(__AVX512F__)
    FMA_STEP(panels, 12);
    FMA_STEP(panels, 8);
    FMA_STEP(panels, 4);
    FMA_STEP(panels, 2);
    FMA_STEP(panels, 1);
#elif defined(__AVX2__)
    if (panels == 2 && n > 1) {
        const char *second = (const char *)w + apart * (type == FMA_F32 ? 4 : 2);
        for (int p = 0; p < 2; p++) {
            const float *x_first = x;
            float *acc_first = acc;
            size_t n_first = n;
            FMA_STEP(1, 6);
            FMA_STEP(1, 3);
            FMA_STEP(1, 1);
            w = second;
            x = x_first;
            acc = acc_first + CPU_PANEL;
            n = n_first;
        }
        return;
    }
    if (panels == 1) {
        FMA_STEP(1, 6);
        FMA_STEP(1, 3);
    }
    FMA_STEP(panels, 1);
#else
    FMA_STEP(panels, 1); /* the reference is to be plain, not fast */
#endif
}

/* One function a type and panel count, shared by the layouts and by attention. */
#define FMA_ROWS(NAME, TYPE, PANELS) \
    static __attribute__((noinline)) void NAME(const void *w, size_t ws, size_t apart, const float *x, size_t xs, size_t n_k, \
                                               float *acc, size_t as, size_t n) \
    { \
        fma_rows(TYPE, PANELS, w, ws, apart, x, xs, n_k, acc, as, n); \
    }

typedef void (*fma_rows_fn)(const void *w, size_t ws, size_t apart, const float *x, size_t xs, size_t n_k, float *acc,
                            size_t as, size_t n);
FMA_ROWS(fma_f32_1, FMA_F32, 1)
FMA_ROWS(fma_f32_2, FMA_F32, 2)
FMA_ROWS(fma_f16_1, FMA_F16, 1)
FMA_ROWS(fma_f16_2, FMA_F16, 2)
FMA_ROWS(fma_bf16_1, FMA_BF16, 1)
FMA_ROWS(fma_bf16_2, FMA_BF16, 2)
FMA_ROWS(fma_pair_1, FMA_PAIR, 1)
FMA_ROWS(fma_pair_2, FMA_PAIR, 2)
static const fma_rows_fn fma_table[4][2] = {
    [FMA_F32] = {fma_f32_1, fma_f32_2},
    [FMA_F16] = {fma_f16_1, fma_f16_2},
    [FMA_BF16] = {fma_bf16_1, fma_bf16_2},
    [FMA_PAIR] = {fma_pair_1, fma_pair_2},
};

static void linear_float_chunk(const struct cpu_linear *l, size_t panel, size_t panels, size_t first, size_t n, float *acc)
{
    const struct weight *w = l->w;
    enum fma_type type = w->layout == WEIGHT_F32 ? FMA_F32 : w->layout == WEIGHT_F16 ? FMA_F16 : FMA_PAIR;
    size_t size = type == FMA_F32 ? 4 : 2, panel_cells = cpu_padded_in(w) * CPU_PANEL;
    const char *data = (const char *)w->data + panel * panel_cells * size;
    fma_rows_fn fn = fma_table[type][panels - 1];
    for (size_t k = 0; k < w->n_in; k += FLOAT_K_BLOCK) {
        size_t n_k = w->n_in - k < FLOAT_K_BLOCK ? w->n_in - k : FLOAT_K_BLOCK;
        const char *next = data + 2 * panel_cells * size + k * CPU_PANEL * size;
        for (size_t i = 0; i < n_k * CPU_PANEL * size; i += CPU_LINE) {
            PREFETCH(next + i);
            PREFETCH(next + i + panel_cells * size);
        }
        fn(data + k * CPU_PANEL * size, CPU_PANEL, panel_cells, l->x + first * l->x_stride + k, l->x_stride, n_k, acc,
           ACC_STRIDE, n);
    }
}

/* ---- signed bytes ---- */

/* What the dot products need of 64 weights (16 outputs x 4 inputs); one form an instruction set. dot_float joins the two
 * terms of the activations. */
#if defined(__AVX512VNNI__)
struct dot_weights {
    __m512i plus_128;
};
typedef __m512i dot_sum;
VEC_INLINE struct dot_weights dot_from_codes(__m512i v)
{
    return (struct dot_weights){_mm512_xor_si512(v, _mm512_set1_epi8((char)0x80))};
}
VEC_INLINE struct dot_weights dot_load(const int8_t *w)
{
    return dot_from_codes(_mm512_loadu_si512(w));
}
VEC_INLINE dot_sum dot_begin(int32_t offset)
{
    return _mm512_set1_epi32(offset);
}
VEC_INLINE dot_sum dot_quad(dot_sum sum, struct dot_weights w, const int8_t *x)
{
    int32_t quad;
    memcpy(&quad, x, 4);
    __m512i four = _mm512_set1_epi32(quad);
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w.plus_128), "v"(four));
    return sum;
}
VEC_INLINE vf dot_float_1(dot_sum sum)
{
    return _mm512_cvtepi32_ps(sum);
}
VEC_INLINE vf dot_float(dot_sum high, dot_sum low)
{
    __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high, CPU_TERM_BITS), low);
    return _mm512_cvtepi32_ps(sum);
}
#elif defined(__AVX512BW__)
/* |w| * (x with w's sign): pairs are at most 2 * 128 * 127, so the 16-bit sums never saturate. */
struct dot_weights {
    __m512i abs;
    __mmask64 negative;
};
typedef __m512i dot_sum;
VEC_INLINE struct dot_weights dot_from_codes(__m512i v)
{
    return (struct dot_weights){_mm512_abs_epi8(v), _mm512_movepi8_mask(v)};
}
VEC_INLINE struct dot_weights dot_load(const int8_t *w)
{
    return dot_from_codes(_mm512_loadu_si512(w));
}
VEC_INLINE dot_sum dot_begin(int32_t offset)
{
    (void)offset;
    return _mm512_setzero_si512();
}
VEC_INLINE dot_sum dot_quad(dot_sum sum, struct dot_weights w, const int8_t *x)
{
    int32_t quad;
    memcpy(&quad, x, 4);
    __m512i v = _mm512_set1_epi32(quad);
    v = _mm512_mask_sub_epi8(v, w.negative, _mm512_setzero_si512(), v);
    v = _mm512_madd_epi16(_mm512_maddubs_epi16(w.abs, v), _mm512_set1_epi16(1));
    return _mm512_add_epi32(sum, v);
}
VEC_INLINE vf dot_float_1(dot_sum sum)
{
    return _mm512_cvtepi32_ps(sum);
}
VEC_INLINE vf dot_float(dot_sum high, dot_sum low)
{
    __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high, CPU_TERM_BITS), low);
    return _mm512_cvtepi32_ps(sum);
}
#elif defined(__AVX2__)
struct dot_weights {
    __m256i a, b, abs_a, abs_b;
};
typedef vi dot_sum;
VEC_INLINE struct dot_weights dot_load(const int8_t *w)
{
    __m256i a = _mm256_loadu_si256((const __m256i *)w), b = _mm256_loadu_si256((const __m256i *)(w + 32));
    return (struct dot_weights){a, b, _mm256_abs_epi8(a), _mm256_abs_epi8(b)};
}
VEC_INLINE dot_sum dot_begin(int32_t offset)
{
    (void)offset;
    return vi_set(0);
}
VEC_INLINE dot_sum dot_quad(dot_sum sum, struct dot_weights w, const int8_t *x)
{
    int32_t quad;
    memcpy(&quad, x, 4);
    __m256i v = _mm256_set1_epi32(quad), one = _mm256_set1_epi16(1);
    __m256i a = _mm256_madd_epi16(_mm256_maddubs_epi16(w.abs_a, _mm256_sign_epi8(v, w.a)), one);
    __m256i b = _mm256_madd_epi16(_mm256_maddubs_epi16(w.abs_b, _mm256_sign_epi8(v, w.b)), one);
    return (vi){_mm256_add_epi32(sum.a, a), _mm256_add_epi32(sum.b, b)};
}
VEC_INLINE vf dot_float_1(dot_sum sum)
{
    return vi_float(sum);
}
VEC_INLINE vf dot_float(dot_sum high, dot_sum low)
{
    vi sum = {_mm256_slli_epi32(high.a, CPU_TERM_BITS), _mm256_slli_epi32(high.b, CPU_TERM_BITS)};
    return vi_float(vi_add(sum, low));
}
#else
struct dot_weights {
    const int8_t *w;
};
typedef vi dot_sum;
VEC_INLINE struct dot_weights dot_load(const int8_t *w)
{
    return (struct dot_weights){w};
}
VEC_INLINE dot_sum dot_begin(int32_t offset)
{
    (void)offset;
    return vi_set(0);
}
VEC_INLINE dot_sum dot_quad(dot_sum sum, struct dot_weights w, const int8_t *x)
{
    for (int o = 0; o < CPU_PANEL; o++)
        for (int i = 0; i < 4; i++)
            sum.v[o] += w.w[o * 4 + i] * x[i];
    return sum;
}
VEC_INLINE vf dot_float_1(dot_sum sum)
{
    return vi_float(sum);
}
VEC_INLINE vf dot_float(dot_sum high, dot_sum low)
{
    for (int o = 0; o < CPU_PANEL; o++)
        low.v[o] += high.v[o] * (1 << CPU_TERM_BITS);
    return vi_float(low);
}
#endif

/* A run of groups of one or two panels; codes as tile rows of 64 bytes. */
struct dot_panels {
    const int8_t *codes; /* whole tiles even where groups are shorter */
    size_t codes_apart;  /* from the first panel to the second */
    const char *scales, *mins;
    size_t scales_apart; /* bytes */
    int scales_f16;
    size_t quads, n_groups; /* quads of inputs in a group; groups in this run */
    const char *ahead;      /* memory to prefetch meanwhile: ahead_step bytes on at each quad, of each panel */
    size_t ahead_step, ahead_apart;
};

VEC_INLINE vf dot_scale(const char *scales, int f16, size_t group)
{
    return f16 ? vf_load_f16((const uint16_t *)scales + group * CPU_PANEL) : vf_load((const float *)scales + group * CPU_PANEL);
}

/* Asks for a group's scales and mins of the next pair of panels; fp16 ones of two groups are a line. */
VEC_INLINE void dot_scale_ahead(const struct dot_panels *w, int panel, size_t group)
{
    const char *next = w->scales + (size_t)(panel + 2) * w->scales_apart + group * CPU_PANEL * (w->scales_f16 ? 2 : 4);
    PREFETCH(next);
    if (w->mins)
        PREFETCH(next + (w->mins - w->scales));
}

/* acc [R][ACC_STRIDE] += rows [row, row + R) of q, from its group `from` on. T: terms of an activation. */
VEC_INLINE void dot_block(const int T, const int P, const int R, const struct dot_panels *w, const struct cpu_quantized *q,
                          size_t row, size_t from, float *acc)
{
    const size_t quads = w->quads, tile_quads = quads < CPU_QUADS_TILE ? quads : CPU_QUADS_TILE;
    const int8_t *codes = w->codes;
    const char *ahead = w->ahead;
    const size_t stride = q->stride, apart = w->codes_apart;
    size_t k = from * quads * 4;
    vf total[2];
    for (int p = 0; p < P && R == 1; p++)
        total[p] = vf_load(acc + p * CPU_PANEL);
    for (size_t g = 0; g < w->n_groups; g++) {
        dot_sum sum[2][DOT_BLOCK_ROWS * 2];
        const size_t at = row * q->groups + from + g;
#pragma GCC unroll 12
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int p = 0; p < P; p++) {
                if (T == 2)
                    sum[1][r * P + p] = dot_begin(0);
                sum[0][r * P + p] = dot_begin(q->offsets[at + (size_t)r * q->groups]);
            }
        for (size_t left = quads; left; left -= tile_quads, k += tile_quads * 4) {
            const int8_t *base[(DOT_BLOCK_ROWS + 2) / 3], *x0 = q->codes + row * stride;
            x0 += k / CPU_TILE_K * CPU_TILE_K * (size_t)T + k % CPU_TILE_K;
            for (int r = 0; r < R; r += 3)
                base[r / 3] = x0 + (size_t)r * stride;
#pragma GCC unroll 1
            for (size_t i = 0; i < tile_quads; i++, codes += CPU_LINE) {
                struct dot_weights weight[2];
#pragma GCC unroll 2
                for (int p = 0; p < P; p++)
                    weight[p] = dot_load(codes + (size_t)p * apart);
                if (R <= CPU_FEW_ROWS) {
                    for (int p = 0; p < P; p++)
                        PREFETCH(ahead + (size_t)p * w->ahead_apart);
                    ahead += w->ahead_step;
                }
#pragma GCC unroll 12
                for (int r = 0; r < R; r++) {
                    const int8_t *x = ROW_OF(base, r, stride) + i * 4;
#pragma GCC unroll 2
                    for (int p = 0; p < P; p++) {
                        if (T == 2) {
                            sum[1][r * P + p] = dot_quad(sum[1][r * P + p], weight[p], x);
                            sum[0][r * P + p] = dot_quad(sum[0][r * P + p], weight[p], x + CPU_TILE_K);
                        } else {
                            sum[0][r * P + p] = dot_quad(sum[0][r * P + p], weight[p], x);
                        }
                    }
                }
            }
        }
#pragma GCC unroll 2
        for (int p = 0; p < P; p++) {
            vf scale = dot_scale(w->scales + (size_t)p * w->scales_apart, w->scales_f16, g);
            vf min = w->mins ? dot_scale(w->mins + (size_t)p * w->scales_apart, w->scales_f16, g) : vf_set(0);
            if (R == 1)
                dot_scale_ahead(w, p, g);
#pragma GCC unroll 12
            for (int r = 0; r < R; r++) {
                float *to = acc + r * ACC_STRIDE + p * CPU_PANEL;
                const size_t cell = at + (size_t)r * q->groups;
                vf dot = T == 2 ? dot_float(sum[1][r * P + p], sum[0][r * P + p]) : dot_float_1(sum[0][r * P + p]);
                vf v = vf_fused(dot, vf_mul(scale, vf_set(q->scales[cell])), R == 1 ? total[p] : vf_load(to));
                if (w->mins)
                    v = vf_fused(min, vf_set(q->sums[cell]), v);
                if (R == 1)
                    total[p] = v;
                else
                    vf_store(to, v);
            }
        }
    }
    for (int p = 0; p < P && R == 1; p++)
        vf_store(acc + p * CPU_PANEL, total[p]);
}

#define DOT_STEP(T, P, R) \
    for (; n >= (R); n -= (R), row += (R), acc += (R)*ACC_STRIDE) \
    dot_block(T, P, R, w, q, row, from, acc)

/* One function for each count of terms and panels. Accumulators: T * P * R registers. */
#define DOT_ROWS(NAME, T, P) \
    static __attribute__((noinline)) void NAME(const struct dot_panels *w, const struct cpu_quantized *q, size_t row, \
                                               size_t n, size_t from, float *acc) \
    { \
        DOT_ROWS_STEPS(T, P) \
        DOT_STEP(T, P, 1); \
    }
#if defined(__AVX512F__)
#define DOT_ROWS_STEPS(T, P) \
    if ((T) == 1) { \
        DOT_STEP(1, P, 12); \
        DOT_STEP(1, P, 8); \
    } \
    DOT_STEP(T, P, 6); \
    DOT_STEP(T, P, 4); \
    DOT_STEP(T, P, 2);
#elif defined(__AVX2__)
#define DOT_ROWS_STEPS(T, P) \
    if ((P) == 1) { \
        if ((T) == 1) { \
            DOT_STEP(1, 1, 4); \
        } \
        DOT_STEP(T, 1, 2); \
    }
#else
#define DOT_ROWS_STEPS(T, P)
#endif
DOT_ROWS(dot_rows_1_1, 1, 1)
DOT_ROWS(dot_rows_1_2, 1, 2)
DOT_ROWS(dot_rows_2_1, 2, 1)
DOT_ROWS(dot_rows_2_2, 2, 2)

static void dot_panels(const struct dot_panels *w, size_t panels, int terms, const struct cpu_quantized *q, size_t row,
                       size_t n, size_t from, float *acc)
{
#if defined(__AVX2__) && !defined(__AVX512F__)
    if (panels == 2 && n > 1) { /* fewer registers: one panel at a time */
        struct dot_panels second = *w;
        dot_panels(w, 1, terms, q, row, n, from, acc);
        second.codes += w->codes_apart;
        second.scales += w->scales_apart;
        second.mins = w->mins ? w->mins + w->scales_apart : NULL;
        dot_panels(&second, 1, terms, q, row, n, from, acc + CPU_PANEL);
        return;
    }
#endif
    if (terms == 1)
        (panels == 2 ? dot_rows_1_2 : dot_rows_1_1)(w, q, row, n, from, acc);
    else
        (panels == 2 ? dot_rows_2_2 : dot_rows_2_1)(w, q, row, n, from, acc);
}

/* n tiles of 512 bytes of nibbles into tiles of 1024 bytes of codes: low nibbles are tile rows 0-7, high ones 8-15. */
static void unpack_tiles(const uint8_t *w, const int8_t *codebook, size_t n, int8_t *out)
{
#if defined(__AVX512BW__)
    const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)codebook)), low = _mm512_set1_epi8(15);
    for (; n; n--, w += 512, out += 1024)
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            __m512i v = _mm512_loadu_si512(w + i * 64);
            _mm512_store_si512(out + i * 64, _mm512_shuffle_epi8(table, _mm512_and_si512(v, low)));
            v = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
            _mm512_store_si512(out + 512 + i * 64, _mm512_shuffle_epi8(table, v));
        }
#elif defined(__AVX2__)
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)codebook));
    const __m256i low = _mm256_set1_epi8(15);
    for (; n; n--, w += 512, out += 1024)
        for (int i = 0; i < 16; i++) {
            __m256i v = _mm256_loadu_si256((const __m256i *)(w + i * 32));
            _mm256_store_si256((__m256i *)(out + i * 32), _mm256_shuffle_epi8(table, _mm256_and_si256(v, low)));
            v = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
            _mm256_store_si256((__m256i *)(out + 512 + i * 32), _mm256_shuffle_epi8(table, v));
        }
#else
    for (; n; n--, w += 512, out += 1024)
        for (int i = 0; i < 512; i++) {
            out[i] = codebook[w[i] & 15];
            out[512 + i] = codebook[w[i] >> 4];
        }
#endif
}

#if defined(__AVX512BW__)
#define NIBBLE_ROWS_MAX 2

/* dot_block for one or two rows, two panels and nibbles, which never leave the registers: for more rows it pays to unpack
 * them once into memory. N: groups in a tile (1: a group is one tile or more). w->codes: packed; whole rows. */
VEC_INLINE void nibble_block(const int T, const int R, const int N, const struct dot_panels *w, const int8_t *codebook,
                             const struct cpu_quantized *q, size_t row, float *acc)
{
    const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)codebook)), low = _mm512_set1_epi8(15);
    const size_t tiles = N == 1 ? w->quads / CPU_QUADS_TILE : 1;
    const int8_t *x = q->codes + row * q->stride, *codes = w->codes;
    vf total[NIBBLE_ROWS_MAX * 2];
    for (int i = 0; i < R * 2; i++)
        total[i] = vf_load(acc + i / 2 * ACC_STRIDE + i % 2 * CPU_PANEL);
    for (size_t g = 0; g < w->n_groups; g += (size_t)N) {
        dot_sum sum[2][4][NIBBLE_ROWS_MAX * 2];
        const size_t at = row * q->groups + g;
#pragma GCC unroll 16
        for (int i = 0; i < N * R * 2; i++) {
            const int j = i / (R * 2), r = i / 2 % R;
            sum[0][j][i % (R * 2)] = dot_begin(q->offsets[at + (size_t)r * q->groups + (size_t)j]);
            sum[1][j][i % (R * 2)] = dot_begin(0);
        }
        for (size_t t = 0; t < tiles; t++, x += CPU_TILE_K * T)
#pragma GCC unroll 8
            for (int v = 0; v < 8; v++, codes += CPU_LINE) {
                const int j0 = N == 4 ? v / 4 : 0, j1 = N == 4 ? 2 + v / 4 : N - 1;
#pragma GCC unroll 2
                for (int p = 0; p < 2; p++) {
                    const int8_t *from = codes + (size_t)p * w->codes_apart;
                    __m512i raw = _mm512_loadu_si512(from);
                    PREFETCH(from + 2 * w->codes_apart); /* of the next pair of panels */
                    struct dot_weights w0 = dot_from_codes(_mm512_shuffle_epi8(table, _mm512_and_si512(raw, low)));
                    raw = _mm512_and_si512(_mm512_srli_epi16(raw, 4), low);
                    struct dot_weights w1 = dot_from_codes(_mm512_shuffle_epi8(table, raw));
#pragma GCC unroll 2
                    for (int r = 0; r < R; r++) {
                        const int8_t *x0 = x + (size_t)r * q->stride + v * 4, *x1 = x0 + CPU_TILE_K / 2;
                        const int i = r * 2 + p;
                        if (T == 2) {
                            sum[1][j0][i] = dot_quad(sum[1][j0][i], w0, x0);
                            sum[1][j1][i] = dot_quad(sum[1][j1][i], w1, x1);
                            x0 += CPU_TILE_K;
                            x1 += CPU_TILE_K;
                        }
                        sum[0][j0][i] = dot_quad(sum[0][j0][i], w0, x0);
                        sum[0][j1][i] = dot_quad(sum[0][j1][i], w1, x1);
                    }
                }
            }
#pragma GCC unroll 4
        for (int j = 0; j < N; j++)
#pragma GCC unroll 4
            for (int i = 0; i < R * 2; i++) {
                const size_t cell = at + (size_t)j + (size_t)(i / 2) * q->groups, apart = (size_t)(i % 2) * w->scales_apart;
                vf dot = T == 2 ? dot_float(sum[1][j][i], sum[0][j][i]) : dot_float_1(sum[0][j][i]);
                vf scale = dot_scale(w->scales + apart, w->scales_f16, g + (size_t)j);
                if (i < 2 && j % 2 == 0)
                    dot_scale_ahead(w, i, g + (size_t)j);
                total[i] = vf_fused(dot, vf_mul(scale, vf_set(q->scales[cell])), total[i]);
                if (w->mins)
                    total[i] =
                        vf_fused(dot_scale(w->mins + apart, w->scales_f16, g + (size_t)j), vf_set(q->sums[cell]), total[i]);
            }
    }
    for (int i = 0; i < R * 2; i++)
        vf_store(acc + i / 2 * ACC_STRIDE + i % 2 * CPU_PANEL, total[i]);
}

/* False: not a case of these. */
static __attribute__((noinline)) bool nibble_panels(const struct cpu_linear *l, size_t panel, size_t panels, size_t row,
                                                    size_t n, float *acc)
{
    const struct weight *w = l->w;
    const struct cpu_quantized *q = &l->q;
    const int8_t *codebook = w->codebook;
    if (panels != 2 || n > NIBBLE_ROWS_MAX || w->layout != WEIGHT_I4)
        return false;
    size_t panel_bytes = cpu_padded_in(w) * CPU_PANEL / 2, scales = q->groups * CPU_PANEL * cpu_scale_size(w);
    struct dot_panels p = {.codes = (const int8_t *)w->data + panel * panel_bytes,
                           .codes_apart = panel_bytes,
                           .scales = (const char *)w->scales + panel * scales,
                           .scales_apart = scales,
                           .mins = w->has_min ? (const char *)w->mins + panel * scales : NULL,
                           .scales_f16 = w->scales_f16,
                           .quads = w->group / 4,
                           .n_groups = q->groups};
    if (w->terms == 1 && p.quads >= CPU_QUADS_TILE && n == 1)
        nibble_block(1, 1, 1, &p, codebook, q, row, acc);
    else if (w->terms == 1 && p.quads >= CPU_QUADS_TILE)
        nibble_block(1, 2, 1, &p, codebook, q, row, acc);
    else if (w->terms == 2 && p.quads >= CPU_QUADS_TILE && n == 1)
        nibble_block(2, 1, 1, &p, codebook, q, row, acc);
    else if (w->terms == 2 && p.quads >= CPU_QUADS_TILE)
        nibble_block(2, 2, 1, &p, codebook, q, row, acc);
    else if (w->terms == 2 && p.quads == 8 && n == 1)
        nibble_block(2, 1, 2, &p, codebook, q, row, acc);
    else if (w->terms == 2 && p.quads == 8)
        nibble_block(2, 2, 2, &p, codebook, q, row, acc);
    else if (w->terms == 2 && n == 1)
        nibble_block(2, 1, 4, &p, codebook, q, row, acc);
    else
        return false;
    return true;
}
#endif

/* Inputs [k, k + n_k) of the panels; nibbles are unpacked into `unpacked` [panels][BYTE_K_BLOCK * CPU_PANEL]. */
static struct dot_panels dot_panels_of(const struct weight *w, size_t panel, size_t panels, size_t k, size_t n_k,
                                       int8_t *unpacked)
{
    size_t padded = cpu_padded_in(w), groups = padded / w->group, size = cpu_scale_size(w);
    size_t panel_bytes = padded * CPU_PANEL / (w->layout == WEIGHT_I4 ? 2 : 1);
    size_t packed = w->layout == WEIGHT_I4 ? k / 2 * CPU_PANEL : k * CPU_PANEL;
    size_t scale_at = (panel * groups + k / w->group) * CPU_PANEL * size;
    const char *data = (const char *)w->data + panel * panel_bytes + packed;
    struct dot_panels p = {.scales_f16 = w->scales_f16,
                           .quads = w->group / 4,
                           .n_groups = n_k / w->group,
                           .scales_apart = groups * CPU_PANEL * size,
                           .ahead_apart = panel_bytes};
    p.scales = (const char *)w->scales + scale_at;
    p.mins = w->has_min ? (const char *)w->mins + scale_at : NULL;
    if (w->layout == WEIGHT_I4) { /* ahead: the next block's packed bytes */
        p.ahead = data + n_k / 2 * CPU_PANEL;
        p.ahead_step = CPU_LINE / 2;
        for (size_t i = 0; i < panels; i++)
            unpack_tiles((const uint8_t *)data + i * panel_bytes, w->codebook, n_k / CPU_TILE_K,
                         unpacked + i * BYTE_K_BLOCK * CPU_PANEL);
        p.codes = unpacked;
        p.codes_apart = BYTE_K_BLOCK * CPU_PANEL;
    } else {
        p.ahead = data + 2 * panel_bytes;
        p.ahead_step = CPU_LINE;
        p.codes = (const int8_t *)data;
        p.codes_apart = panel_bytes;
    }
    return p;
}

static void linear_int_chunk(const struct cpu_linear *l, size_t panel, size_t panels, size_t first, size_t n, float *acc)
{
    int8_t unpacked[2 * BYTE_K_BLOCK * CPU_PANEL] __attribute__((aligned(64)));
    const struct weight *w = l->w;
    size_t padded = cpu_padded_in(w), step = w->group < CPU_TILE_K ? CPU_TILE_K : w->group;
    size_t block = BYTE_K_BLOCK / step * step;
#if defined(__AVX512BW__)
    if (nibble_panels(l, panel, panels, first, n, acc))
        return;
#endif
    if (w->layout == WEIGHT_I8 && n <= CPU_FEW_ROWS)
        block = padded; /* nothing is read twice */
    for (size_t k = 0; k < padded; k += block) {
        struct dot_panels p = dot_panels_of(w, panel, panels, k, padded - k < block ? padded - k : block, unpacked);
        dot_panels(&p, panels, w->terms, &l->q, first, n, k / w->group, acc);
    }
}

/* ---- an operation's panels ---- */

static void store_rows(const struct cpu_linear *l, size_t panel, size_t panels, size_t first, size_t n, const float *acc)
{
    for (size_t p = 0; p < panels; p++) {
        size_t from = (panel + p) * CPU_PANEL, width = l->w->n_out - from < CPU_PANEL ? l->w->n_out - from : CPU_PANEL;
        vf bias = l->bias ? vf_load_part(l->bias + from, width) : vf_set(0);
        for (size_t r = 0; r < n; r++) {
            float *y = l->y + (first + r) * l->y_stride + from;
            vf v = vf_load(acc + r * ACC_STRIDE + p * CPU_PANEL);
            if (l->bias)
                v = vf_add(v, bias);
            if (width == CPU_PANEL) {
                vf_store(y, l->add ? vf_add(vf_load(y), v) : v);
            } else {
                vf_store_part(y, l->add ? vf_add(vf_load_part(y, width), v) : v, width);
            }
        }
    }
}

#if defined(CPU_TILES)
#include "backend/cpu/kernels_tile.h"
#endif

static void linear_panels(const struct cpu_linear *l, size_t first_panel, size_t end_panel)
{
    float acc[ROWS_CHUNK * ACC_STRIDE] __attribute__((aligned(64)));
#if defined(CPU_TILES)
    if (l->q.block_rows) {
        tile_panels(l, first_panel, end_panel);
        return;
    }
#endif
    for (size_t panel = first_panel; panel < end_panel; panel += 2) {
        size_t panels = end_panel - panel < 2 ? 1 : 2;
        for (size_t first = 0; first < l->n; first += ROWS_CHUNK) {
            size_t n = l->n - first < ROWS_CHUNK ? l->n - first : ROWS_CHUNK;
            memset(acc, 0, n * ACC_STRIDE * sizeof *acc);
            if (l->w->group)
                linear_int_chunk(l, panel, panels, first, n, acc);
            else
                linear_float_chunk(l, panel, panels, first, n, acc);
            store_rows(l, panel, panels, first, n, acc);
        }
    }
}

/* 64 floats times the Walsh-Hadamard matrix / 8: the operations of cpu_rotate in its order. */
VEC_INLINE void rotate(float *x)
{
    vf v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        v[i] = vf_butterfly(vf_butterfly(vf_butterfly(vf_butterfly(vf_load(x + i * VF_LANES), 1), 2), 4), 8);
    vf a = vf_add(v[0], v[1]), b = vf_sub(v[0], v[1]), c = vf_add(v[2], v[3]), d = vf_sub(v[2], v[3]), s = vf_set(0.125f);
    vf_store(x, vf_mul(vf_add(a, c), s));
    vf_store(x + VF_LANES, vf_mul(vf_add(b, d), s));
    vf_store(x + 2 * VF_LANES, vf_mul(vf_sub(a, c), s));
    vf_store(x + 3 * VF_LANES, vf_mul(vf_sub(b, d), s));
}

VEC_INLINE float most_of(const float *x, size_t n)
{
    vf most = vf_set(0);
    size_t i = 0;
    for (; i + VF_LANES <= n; i += VF_LANES)
        most = vf_max(most, vf_abs(vf_load(x + i)));
    if (i < n)
        most = vf_max(most, vf_abs(vf_load_part(x + i, n - i)));
    float top = vf_most(most);
    return top < LEAST_ACTIVATION ? 0 : top; /* below, its inverse would overflow */
}

/* 16 values as codes; their sum. */
VEC_INLINE vi quantize_1(vf v, vf inverse, int8_t *codes)
{
    vi code = vi_round(vf_mul(v, inverse));
    vi_store_bytes(codes, code);
    return code;
}

VEC_INLINE vi quantize_2(vf v, vf inverse, int8_t *codes)
{
    const vf radix = vf_set(1 << CPU_TERM_BITS), inverse_radix = vf_set(1.0f / (1 << CPU_TERM_BITS));
    /* low is -128 .. 127 (the quarter decides ties upwards), then -127 .. 127: AVX2 negates it */
    vf code = vi_float(vi_round(vf_mul(v, inverse)));
    vi high = vi_round(vf_mul(vf_add(code, vf_set(0.25f)), inverse_radix));
    vf rest = vf_sub(code, vf_mul(vi_float(high), radix));
    vi low = vi_round(vf_max(rest, vf_set(-127)));
    vi_store_bytes(codes, high);
    vi_store_bytes(codes + CPU_TILE_K, low);
    return vi_add(vi_round(vf_mul(vi_float(high), radix)), low);
}

/* Activations of one row: each group by its own greatest magnitude, to nearest. x [n] may be short of the padded row. */
VEC_INLINE void quantize_groups(const struct weight *w, const float *x, size_t from, size_t to, size_t n, int8_t *codes,
                                float *scales, float *sums, int32_t *offsets)
{
    const size_t terms = (size_t)w->terms;
    for (size_t at = from; at < to;) {
        size_t g = at / w->group, end = at + w->group, have = at >= n ? 0 : n - at < w->group ? n - at : w->group;
        float top = most_of(x + at, have), code_max = terms == 1 ? CPU_CODE_MAX_1 : CPU_CODE_MAX_2;
        vf inverse = vf_set(top > 0 ? code_max / top : 0);
        vi sum = vi_set(0);
        for (; at < end; at += VF_LANES) {
            vf v = at + VF_LANES <= n ? vf_load(x + at) : at < n ? vf_load_part(x + at, n - at) : vf_set(0);
            int8_t *to_codes = codes + at / CPU_TILE_K * CPU_TILE_K * terms + at % CPU_TILE_K;
            sum = vi_add(sum, terms == 1 ? quantize_1(v, inverse, to_codes) : quantize_2(v, inverse, to_codes));
        }
        int32_t total = vi_sum(sum);
        scales[g] = top / code_max;
        sums[g] = scales[g] * (float)total;
        offsets[g] = -128 * total;
    }
}

static void quantize_row(const struct weight *w, const float *x, int8_t *codes, float *scales, float *sums, int32_t *offsets)
{
    size_t padded = cpu_padded_in(w);
    if (!w->rotated) {
        quantize_groups(w, x, 0, padded, w->n_in, codes, scales, sums, offsets);
        return;
    }
    for (size_t at = 0; at < padded; at += w->group) {
        float group[CPU_ROTATED_GROUP_MAX];
        size_t have = w->n_in - at < w->group ? w->n_in - at : w->group;
        memcpy(group, x + at, have * sizeof *group);
        memset(group + have, 0, (w->group - have) * sizeof *group);
        for (size_t i = 0; i < w->group; i += CPU_TILE_K)
            rotate(group + i);
        size_t g = at / w->group;
        quantize_groups(w, group, 0, w->group, w->group, codes + at * (size_t)w->terms, scales + g, sums + g, offsets + g);
    }
}

#endif

/* Products. Two small kernels do everything, attention's scores and values too:
 *   fma_block  R rows x P panels of 16 outputs, one fma chain a lane, inputs ascending; sums live in `acc` between
 *              blocks of inputs (fp32 stored and loaded again is the same fp32, so cutting K changes nothing)
 *   dot_block  the same for integer codes times activations of one or two signed bytes: exact int32 a group, then
 *              acc = fma(dot, scale_w * scale_x, acc)
 * R and P are constants of the inlined bodies; which R computes a row is free, for no lane sees another. */
#ifndef INFERD_BACKEND_CPU_KERNELS_LINEAR_H
#define INFERD_BACKEND_CPU_KERNELS_LINEAR_H

#include "backend/cpu/cpu.h"
#include "backend/cpu/vec.h"

#define FLOAT_K_BLOCK     64 /* two panels of fp32: 8 KB; before it as much of what comes next is asked for, for few rows */
#define FLOAT_K_FEW       32 /* in smaller portions */
#define FLOAT_PANEL_SHORT (24 << 10) /* bytes; longer ones the processor reads ahead by itself, and better */
#define BYTE_K_BLOCK      512        /* two panels of bytes: 16 KB */
#define AHEAD_BYTES       8192       /* of a panel, asked for before few rows use them */
#define ROWS_CHUNK        96         /* rows whose sums are kept: 12 KB */
#define ACC_STRIDE        32
#define PREFETCH(P)       __builtin_prefetch(P, 0, 2) /* into the second cache */
#define LEAST_ACTIVATION  0x1p-100f

#if defined(__AVX512F__)
#define BLOCK_ROWS     12
#define DOT_PANELS     2
#define DOT_BLOCK_ROWS 12
#define DOT_HALF_ROWS  8 /* bytes of one term: two passes of as many rather than one of 12 and one of 4 */
#define DOT_KEEP_ROWS  6 /* of one term: their totals stay in registers beside their sums */
#define DOT_SHORT_ROWS DOT_KEEP_ROWS
#elif defined(__AVX2__)
#define BLOCK_ROWS     6
#define DOT_PANELS     1
#define DOT_BLOCK_ROWS 4
#define DOT_HALF_ROWS  4
#define DOT_KEEP_ROWS  2
#define DOT_SHORT_ROWS DOT_BLOCK_ROWS
#else
#define BLOCK_ROWS     1
#define DOT_PANELS     1
#define DOT_BLOCK_ROWS 2
#define DOT_HALF_ROWS  2
#define DOT_KEEP_ROWS  2
#define DOT_SHORT_ROWS DOT_BLOCK_ROWS
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

/* Asks memory for the results of these rows, to be written there soon. */
static void ask_results(const struct cpu_linear *l, size_t panel, size_t panels, size_t first, size_t n)
{
    const float *y = l->y + first * l->y_stride + panel * CPU_PANEL;
    for (; n; n--, y += l->y_stride)
        for (size_t p = 0; p < panels; p++)
            __builtin_prefetch(y + p * CPU_PANEL, 1, 3);
}

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

static void linear_float_chunk(const struct cpu_linear *l, size_t panel, size_t panels, size_t first, size_t n, float *acc)
{
    const struct weight *w = l->w;
    enum fma_type type = w->layout == WEIGHT_F32 ? FMA_F32 : w->layout == WEIGHT_F16 ? FMA_F16 : FMA_PAIR;
    size_t size = type == FMA_F32 ? 4 : 2, panel_cells = cpu_padded_in(w) * CPU_PANEL;
    size_t panel_bytes = panel_cells * size;
    const char *data = (const char *)w->data + panel * panel_bytes;
    fma_rows_fn fn = fma_table[type][panels - 1];
    size_t block = n <= CPU_FEW_ROWS ? FLOAT_K_FEW : FLOAT_K_BLOCK;
    for (size_t k = 0; k < w->n_in; k += block) {
        size_t n_k = w->n_in - k < block ? w->n_in - k : block;
        const char *next = data + 2 * panel_bytes + k * CPU_PANEL * size;
        for (size_t i = 0; i < n_k * CPU_PANEL * size && panel_bytes <= FLOAT_PANEL_SHORT; i += CPU_LINE) {
            PREFETCH(next + i);
            PREFETCH(next + i + panel_bytes);
        }
        const bool last = k + n_k == w->n_in;
        for (size_t r = 0, some; r < n; r += some) {
            some = last && n - r > BLOCK_ROWS ? BLOCK_ROWS : n - r;
            if (last)
                ask_results(l, panel, panels, first + r, some);
            fn(data + k * CPU_PANEL * size, CPU_PANEL, panel_cells, l->x + (first + r) * l->x_stride + k, l->x_stride, n_k,
               acc + r * ACC_STRIDE, ACC_STRIDE, some);
            if (last)
                store_rows(l, panel, panels, first + r, some, acc + r * ACC_STRIDE);
        }
    }
}

/* ---- integer codes ---- */

/* How codes and activations are held. */
enum dot_form {
    DOT_BYTES_1, /* signed bytes, activations of one term */
    DOT_BYTES_2,
    DOT_TABLE_1, /* nibbles that choose a signed byte of the codebook */
    DOT_TABLE_2,
};
#define DOT_IS_NIBBLES(FORM) ((FORM) >= DOT_TABLE_1)
#define DOT_SUMS(FORM)       ((FORM) == DOT_BYTES_2 || (FORM) == DOT_TABLE_2 ? 2 : 1)

VEC_INLINE enum dot_form dot_form_of(const struct weight *w)
{
    return w->layout == WEIGHT_I8 ? w->act_bits == 8 ? DOT_BYTES_1 : DOT_BYTES_2 : w->act_bits == 8 ? DOT_TABLE_1 : DOT_TABLE_2;
}

/* What products need of 64 weights (16 outputs x 4 inputs), one form an instruction set: bytes at p, or the low or high nibbles
 * there. dot_bytes adds their products with 4 bytes of an activation. */
#if defined(__AVX512F__)
typedef __m512i dot_table, dot_sum;
VEC_INLINE __m512i nibbles_of(const int8_t *p, const int high)
{
    __m512i raw = _mm512_loadu_si512(p);
    return _mm512_and_si512(high ? _mm512_srli_epi16(raw, 4) : raw, _mm512_set1_epi8(15));
}
VEC_INLINE __m512i quad_of(const int8_t *x)
{
    int32_t quad;
    memcpy(&quad, x, 4);
    return _mm512_set1_epi32(quad);
}
VEC_INLINE vf dot_float(const enum dot_form form, const dot_sum *sum)
{
    return _mm512_cvtepi32_ps(DOT_SUMS(form) == 1 ? sum[0]
                                                  : _mm512_add_epi32(_mm512_slli_epi32(sum[1], CPU_TERM_BITS), sum[0]));
}
#endif
#if defined(__AVX512VNNI__)
/* Unsigned: codes + 128, whose surplus the offset takes away. */
typedef __m512i dot_weights;
VEC_INLINE dot_table dot_table_of(const int8_t *codebook)
{
    __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)codebook));
    return _mm512_xor_si512(table, _mm512_set1_epi8((char)0x80));
}
VEC_INLINE dot_weights dot_load(const enum dot_form form, const int high, dot_table table, const int8_t *p)
{
    return DOT_IS_NIBBLES(form) ? _mm512_shuffle_epi8(table, nibbles_of(p, high))
                                : _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8((char)0x80));
}
VEC_INLINE dot_sum dot_begin(int32_t offset)
{
    return _mm512_set1_epi32(offset);
}
VEC_INLINE dot_sum dot_bytes(dot_sum sum, dot_weights w, const int8_t *x)
{
    __m512i four = quad_of(x);
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(four));
    return sum;
}
#elif defined(__AVX512BW__)
/* |w| * (x with w's sign): pairs are at most 2 * 128 * 127, so the 16-bit sums never saturate. */
typedef struct {
    __m512i abs;
    __mmask64 negative;
} dot_weights;
VEC_INLINE dot_table dot_table_of(const int8_t *codebook)
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)codebook));
}
VEC_INLINE dot_weights dot_load(const enum dot_form form, const int high, dot_table table, const int8_t *p)
{
    __m512i v = DOT_IS_NIBBLES(form) ? _mm512_shuffle_epi8(table, nibbles_of(p, high)) : _mm512_loadu_si512(p);
    return (dot_weights){_mm512_abs_epi8(v), _mm512_movepi8_mask(v)};
}
VEC_INLINE dot_sum dot_begin(int32_t offset)
{
    (void)offset;
    return _mm512_setzero_si512();
}
VEC_INLINE dot_sum dot_bytes(dot_sum sum, dot_weights w, const int8_t *x)
{
    __m512i v = quad_of(x);
    v = _mm512_mask_sub_epi8(v, w.negative, _mm512_setzero_si512(), v);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(w.abs, v), _mm512_set1_epi16(1)));
}
#elif defined(__AVX2__)
typedef __m256i dot_table;
typedef vi dot_sum;
typedef struct {
    __m256i v[2];
} dot_weights;
VEC_INLINE dot_table dot_table_of(const int8_t *codebook)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)codebook));
}
VEC_INLINE dot_weights dot_load(const enum dot_form form, const int high, dot_table table, const int8_t *p)
{
    dot_weights w;
    for (int i = 0; i < 2; i++) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(p + 32 * i));
        if (DOT_IS_NIBBLES(form))
            v = _mm256_shuffle_epi8(table, _mm256_and_si256(high ? _mm256_srli_epi16(v, 4) : v, _mm256_set1_epi8(15)));
        w.v[i] = v;
    }
    return w;
}
VEC_INLINE dot_sum dot_begin(int32_t offset)
{
    (void)offset;
    return vi_set(0);
}
/* As above. */
VEC_INLINE dot_sum dot_bytes(dot_sum sum, dot_weights w, const int8_t *x)
{
    int32_t quad;
    memcpy(&quad, x, 4);
    __m256i four = _mm256_set1_epi32(quad), part[2];
    for (int i = 0; i < 2; i++) {
        part[i] = _mm256_maddubs_epi16(_mm256_abs_epi8(w.v[i]), _mm256_sign_epi8(four, w.v[i]));
        part[i] = _mm256_madd_epi16(part[i], _mm256_set1_epi16(1));
    }
    return vi_add(sum, (vi){part[0], part[1]});
}
VEC_INLINE vf dot_float(const enum dot_form form, const dot_sum *sum)
{
    if (DOT_SUMS(form) == 1)
        return vi_float(sum[0]);
    vi high = {_mm256_slli_epi32(sum[1].a, CPU_TERM_BITS), _mm256_slli_epi32(sum[1].b, CPU_TERM_BITS)};
    return vi_float(vi_add(high, sum[0]));
}
#else
typedef const int8_t *dot_table;
typedef vi dot_sum;
typedef struct {
    int8_t v[CPU_PANEL * 4];
} dot_weights;
VEC_INLINE dot_table dot_table_of(const int8_t *codebook)
{
    return codebook;
}
VEC_INLINE dot_weights dot_load(const enum dot_form form, const int high, dot_table table, const int8_t *p)
{
    dot_weights w;
    for (int i = 0; i < CPU_PANEL * 4; i++)
        w.v[i] = DOT_IS_NIBBLES(form) ? table[high ? (uint8_t)p[i] >> 4 : p[i] & 15] : p[i];
    return w;
}
VEC_INLINE dot_sum dot_begin(int32_t offset)
{
    (void)offset;
    return vi_set(0);
}
VEC_INLINE dot_sum dot_bytes(dot_sum sum, dot_weights w, const int8_t *x)
{
    for (int o = 0; o < CPU_PANEL; o++)
        for (int i = 0; i < 4; i++)
            sum.v[o] += w.v[o * 4 + i] * x[i];
    return sum;
}
VEC_INLINE vf dot_float(const enum dot_form form, const dot_sum *sum)
{
    vi v = sum[0];
    for (int o = 0; o < CPU_PANEL && DOT_SUMS(form) == 2; o++)
        v.v[o] += sum[1].v[o] * (1 << CPU_TERM_BITS);
    return vi_float(v);
}
#endif

/* One quad of inputs, high terms at x, low ones behind the tile's. sum [DOT_SUMS]: low terms (or all), high ones. */
VEC_INLINE void dot_quad(const enum dot_form form, dot_sum *sum, dot_weights w, const int8_t *x)
{
    if (DOT_SUMS(form) == 2)
        sum[1] = dot_bytes(sum[1], w, x);
    sum[0] = dot_bytes(sum[0], w, DOT_SUMS(form) == 2 ? x + CPU_TILE_K : x);
}

/* Codes that come next, asked for into the second cache. Where one panel ends, at `end`, the next pair's first begins behind
 * the second. */
struct dot_ahead {
    const char *at, *end;
    size_t panel_bytes;
};

/* A run of groups of DOT_PANELS panels, from a tile on. Where there is only one panel, `apart` is 0 and its products are
 * computed twice. */
struct dot_panels {
    const int8_t *codes, *codebook;
    size_t codes_apart; /* bytes from the first panel to the second */
    const char *scales, *mins;
    size_t scales_apart, scales_ahead; /* bytes to the second panel's and to those that come next */
    int scales_f16;
    size_t quads, n_groups; /* quads of inputs in a group; groups in this run */
    struct dot_ahead ahead;
    size_t pass, passes; /* over these weights: this one, all */
};

VEC_INLINE vf dot_scale(const char *scales, int f16, size_t group)
{
    return f16 ? vf_load_f16((const uint16_t *)scales + group * CPU_PANEL) : vf_load((const float *)scales + group * CPU_PANEL);
}

/* The panels (bits) of which a pass asks for a line with each line of codes that it reads. Bytes of two panels are more than
 * memory gives in one of several passes: the first asks for the first panel, the second for the second. */
VEC_INLINE int dot_asks(const enum dot_form form, const struct dot_panels *w)
{
    if (w->passes == 1 || DOT_PANELS == 1 || DOT_IS_NIBBLES(form))
        return w->pass ? 0 : (1 << DOT_PANELS) - 1;
    return w->pass < DOT_PANELS ? 1 << w->pass : 0;
}

/* `quads` lines of codes (their low or high nibbles) times R rows of activations from x on; `ask`: dot_asks. A line of nibbles
 * is read twice: low ones go with the first panel. */
VEC_INLINE void dot_lines(const enum dot_form form, const int high, const int R, const int ask, const struct dot_panels *w,
                          struct dot_ahead *next, dot_table table, const int8_t *codes, size_t quads, const int8_t *x,
                          size_t stride, dot_sum *sum)
{
    const int S = DOT_SUMS(form);
    const int8_t *base[(DOT_BLOCK_ROWS + 2) / 3];
    for (int r = 0; r < R; r += 3)
        base[r / 3] = x + (size_t)r * stride;
    if (!high && next->at >= next->end) {
        next->at += next->panel_bytes;
        next->end += 2 * next->panel_bytes;
    }
    const char *ahead = high ? next->at - quads * CPU_LINE : next->at;
#pragma GCC unroll 1
    for (size_t i = 0; i < quads; i++) {
        dot_weights weight[DOT_PANELS];
#pragma GCC unroll 2
        for (int p = 0; p < DOT_PANELS; p++)
            weight[p] = dot_load(form, high, table, codes + i * CPU_LINE + (size_t)p * w->codes_apart);
#pragma GCC unroll 2
        for (int p = 0; p < DOT_PANELS; p++)
            if (ask >> p & 1 && (!DOT_IS_NIBBLES(form) || p == high))
                PREFETCH(ahead + (size_t)p * next->panel_bytes);
        ahead += CPU_LINE;
#pragma GCC unroll 12
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int p = 0; p < DOT_PANELS; p++)
                dot_quad(form, sum + (r * DOT_PANELS + p) * S, weight[p], ROW_OF(base, r, stride) + i * 4);
    }
    if (!high)
        next->at = ahead;
}

/* acc [R][ACC_STRIDE] += rows [row, row + R) of q, from its group `from` on. */
VEC_INLINE void dot_block(const enum dot_form form, const int R, const int ask, const struct dot_panels *w,
                          const struct cpu_quantized *q, size_t row, size_t from, float *acc)
{
    enum { P = DOT_PANELS };
    const int nibbles = DOT_IS_NIBBLES(form), S = DOT_SUMS(form), keep = R <= (S == 1 ? DOT_KEEP_ROWS : 2);
    const size_t most = nibbles ? CPU_QUADS_TILE / 2 : CPU_QUADS_TILE, quads = w->quads < most ? w->quads : most;
    const size_t scale_bytes = CPU_PANEL * (w->scales_f16 ? 2 : 4);
    const dot_table table = dot_table_of(w->codebook);
    struct dot_ahead next = w->ahead;
    const int8_t *x = q->codes + row * q->stride;
    size_t quad = 0, k = from * w->quads * 4;
    vf total[DOT_KEEP_ROWS * P];
    for (int i = 0; i < R * P && keep; i++)
        total[i] = vf_load(acc + i / P * ACC_STRIDE + i % P * CPU_PANEL);
    for (size_t g = 0; g < w->n_groups; g++) {
        dot_sum sum[DOT_BLOCK_ROWS * DOT_PANELS];
        const size_t at = row * q->groups + from + g;
#pragma GCC unroll 12
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int p = 0; p < P; p++) {
                sum[(r * P + p) * S] = dot_begin(q->offsets[at + (size_t)r * q->groups]);
                if (S == 2)
                    sum[(r * P + p) * S + 1] = dot_begin(0);
            }
        for (size_t end = quad + w->quads; quad < end; quad += quads, k += quads * 4) {
            const int8_t *from_x = x + k / CPU_TILE_K * CPU_TILE_K * (size_t)S + k % CPU_TILE_K;
            if (!nibbles)
                dot_lines(form, 0, R, ask, w, &next, table, w->codes + quad * CPU_LINE, quads, from_x, q->stride, sum);
            else if (quad % CPU_QUADS_TILE < CPU_QUADS_TILE / 2)
                dot_lines(form, 0, R, ask, w, &next, table, w->codes + (quad / CPU_QUADS_TILE * 8 + quad % 8) * CPU_LINE, quads,
                          from_x, q->stride, sum);
            else
                dot_lines(form, 1, R, ask, w, &next, table, w->codes + (quad / CPU_QUADS_TILE * 8 + quad % 8) * CPU_LINE, quads,
                          from_x, q->stride, sum);
        }
#pragma GCC unroll 2
        for (int p = 0; p < P; p++) {
            const size_t apart = (size_t)p * w->scales_apart, later = apart + w->scales_ahead + g * scale_bytes;
            vf scale = dot_scale(w->scales + apart, w->scales_f16, g);
            vf min = w->mins ? dot_scale(w->mins + apart, w->scales_f16, g) : vf_set(0);
            if (ask >> p & 1) {
                PREFETCH(w->scales + later);
                if (w->mins)
                    PREFETCH(w->mins + later);
            }
#pragma GCC unroll 12
            for (int r = 0; r < R; r++) {
                float *to = acc + r * ACC_STRIDE + p * CPU_PANEL;
                const size_t cell = at + (size_t)r * q->groups;
                vf dot = dot_float(form, sum + (r * P + p) * S);
                vf v = vf_fused(dot, vf_mul(scale, vf_set(q->scales[cell])), keep ? total[r * P + p] : vf_load(to));
                if (w->mins)
                    v = vf_fused(min, vf_set(q->sums[cell]), v);
                if (keep)
                    total[r * P + p] = v;
                else
                    vf_store(to, v);
            }
        }
    }
    for (int i = 0; i < R * P && keep; i++)
        vf_store(acc + i / P * ACC_STRIDE + i % P * CPU_PANEL, total[i]);
}

#define DOT_STEP(FORM, R) \
    for (; n >= (R); n -= (R), row += (R), acc += (R)*ACC_STRIDE, w->pass++) { \
        switch (dot_asks(FORM, w)) { \
        case 0: dot_block(FORM, R, 0, w, q, row, from, acc); break; \
        case 1: dot_block(FORM, R, 1, w, q, row, from, acc); break; \
        case 2: dot_block(FORM, R, 2, w, q, row, from, acc); break; \
        default: dot_block(FORM, R, 3, w, q, row, from, acc); \
        } \
    }

/* One function a form. Accumulators: DOT_SUMS * DOT_PANELS * R registers. */
#define DOT_ROWS(NAME, FORM) \
    static __attribute__((noinline)) void NAME(struct dot_panels *w, const struct cpu_quantized *q, size_t row, size_t n, \
                                               size_t from, float *acc) \
    { \
        DOT_STEP(FORM, DOT_BLOCK_ROWS / DOT_SUMS(FORM)); \
        DOT_FEW_ROWS(FORM) \
        DOT_STEP(FORM, 1); \
    }
#if defined(__AVX512F__)
#define DOT_FEW_ROWS(FORM) \
    if (DOT_SUMS(FORM) == 1) { \
        DOT_STEP(FORM, DOT_HALF_ROWS); \
        DOT_STEP(FORM, DOT_KEEP_ROWS); \
    } \
    DOT_STEP(FORM, 4); \
    DOT_STEP(FORM, 2);
#else
#define DOT_FEW_ROWS(FORM)
#endif
DOT_ROWS(dot_bytes_1, DOT_BYTES_1)
DOT_ROWS(dot_bytes_2, DOT_BYTES_2)
DOT_ROWS(dot_table_1, DOT_TABLE_1)
DOT_ROWS(dot_table_2, DOT_TABLE_2)

/* Inputs [k, k + n_k) of a pair of panels, or of one. */
static struct dot_panels dot_panels_of(const struct weight *w, size_t panel, size_t panels, size_t k, size_t n_k)
{
    const size_t line = w->layout == WEIGHT_I4 ? CPU_PANEL / 2 : CPU_PANEL; /* bytes of an input */
    const size_t panel_bytes = cpu_padded_in(w) * line, scale_line = CPU_PANEL * cpu_scale_size(w);
    const size_t scales = cpu_padded_in(w) / w->group * scale_line, scale_at = panel * scales + k / w->group * scale_line;
    const char *data = (const char *)w->data + panel * panel_bytes;
    return (struct dot_panels){.codes = (const int8_t *)data + k * line,
                               .codebook = w->codebook,
                               .codes_apart = panels == 2 ? panel_bytes : 0,
                               .scales = (const char *)w->scales + scale_at,
                               .mins = w->has_min ? (const char *)w->mins + scale_at : NULL,
                               .scales_apart = panels == 2 ? scales : 0,
                               .scales_ahead = 2 * scales,
                               .scales_f16 = w->scales_f16,
                               .quads = w->group / 4,
                               .n_groups = n_k / w->group,
                               .ahead = {.at = data + k * line, .end = data + panel_bytes, .panel_bytes = panel_bytes}};
}

/* Rows of a pass over weights whose groups have so many inputs, where n rows are to be computed. */
static size_t dot_pass_rows(const enum dot_form form, size_t group, size_t n)
{
    if (DOT_SUMS(form) == 2)
        return DOT_BLOCK_ROWS / 2;
    /* where groups end soon, adding their sums to totals in memory costs more than half as many products a weight */
    if (group < CPU_TILE_K)
        return DOT_SHORT_ROWS;
    return form == DOT_BYTES_1 && n > DOT_BLOCK_ROWS && n <= 2 * DOT_HALF_ROWS ? DOT_HALF_ROWS : DOT_BLOCK_ROWS;
}

static void linear_int_chunk(const struct cpu_linear *l, size_t panel, size_t panels, size_t first, size_t n, float *acc)
{
    static void (*const rows_of[])(struct dot_panels * w, const struct cpu_quantized *q, size_t row, size_t n, size_t from,
                                   float *acc) = {
        [DOT_BYTES_1] = dot_bytes_1,
        [DOT_BYTES_2] = dot_bytes_2,
        [DOT_TABLE_1] = dot_table_1,
        [DOT_TABLE_2] = dot_table_2,
    };
    const struct weight *w = l->w;
    const enum dot_form form = dot_form_of(w);
    size_t padded = cpu_padded_in(w), step = w->group < CPU_TILE_K ? CPU_TILE_K : w->group;
    size_t pass_rows = dot_pass_rows(form, w->group, n), passes = (n + pass_rows - 1) / pass_rows;
    /* one pass: all at once, nothing is read twice */
    size_t block = passes == 1 || padded < BYTE_K_BLOCK ? padded : BYTE_K_BLOCK / step * step;
    for (size_t k = 0; k < padded; k += block) {
        size_t n_k = padded - k < block ? padded - k : block;
        const bool last = k + n_k == padded;
        for (size_t p = 0; p < panels; p += DOT_PANELS) {
            const size_t together = panels - p < DOT_PANELS ? 1 : DOT_PANELS;
            struct dot_panels d = dot_panels_of(w, panel + p, together, k, n_k);
            const size_t panel_bytes = d.ahead.panel_bytes, soon = panel_bytes < AHEAD_BYTES ? panel_bytes : AHEAD_BYTES;
            d.passes = passes;
            d.ahead.at += passes > 1 ? block * panel_bytes / padded : soon;
            for (size_t r = 0, some; r < n; r += some) {
                some = n - r > pass_rows ? pass_rows : n - r;
                if (last)
                    ask_results(l, panel + p, together, first + r, some);
                rows_of[form](&d, &l->q, first + r, some, k / w->group, acc + r * ACC_STRIDE + p * CPU_PANEL);
                if (last)
                    store_rows(l, panel + p, together, first + r, some, acc + r * ACC_STRIDE + p * CPU_PANEL);
            }
        }
    }
}

/* ---- an operation's panels ---- */

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
        }
    }
}

/* 64 floats times the Walsh-Hadamard matrix / 8: the operations of cpu_rotate in its order. */
VEC_INLINE void rotate_vectors(vf *v)
{
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        v[i] = vf_butterfly(vf_butterfly(vf_butterfly(vf_butterfly(v[i], 1), 2), 4), 8);
    vf a = vf_add(v[0], v[1]), b = vf_sub(v[0], v[1]), c = vf_add(v[2], v[3]), d = vf_sub(v[2], v[3]), s = vf_set(0.125f);
    v[0] = vf_mul(vf_add(a, c), s);
    v[1] = vf_mul(vf_add(b, d), s);
    v[2] = vf_mul(vf_sub(a, c), s);
    v[3] = vf_mul(vf_sub(b, d), s);
}

VEC_INLINE void rotate(float *x)
{
    vf v[4];
    for (int i = 0; i < 4; i++)
        v[i] = vf_load(x + i * VF_LANES);
    rotate_vectors(v);
    for (int i = 0; i < 4; i++)
        vf_store(x + i * VF_LANES, v[i]);
}

/* The greatest lane as a group's magnitude: 0 where its inverse would overflow; not finite where a value was not. */
VEC_INLINE float magnitude(vf most)
{
    float top = vf_greatest(most);
    return top < LEAST_ACTIVATION ? 0 : top;
}

VEC_INLINE float most_of(const float *x, size_t n)
{
    vf most = vf_set(0);
    for (size_t i = 0; i < n; i += VF_LANES)
        most = vf_greater(most, vf_abs(vf_load_before(x, i, n)));
    return magnitude(most);
}

/* 16 values as codes of two terms; their sum. */
VEC_INLINE vi quantize_16(vf v, vf inverse, int8_t *high_codes, int8_t *low_codes)
{
    const vf radix = vf_set(1 << CPU_TERM_BITS), inverse_radix = vf_set(1.0f / (1 << CPU_TERM_BITS));
    /* low is -128 .. 127 (the quarter decides ties upwards), then -127 .. 127: AVX2 negates it */
    vf code = vi_float(vi_round(vf_mul(v, inverse)));
    vi high = vi_round(vf_mul(vf_add(code, vf_set(0.25f)), inverse_radix));
    vf rest = vf_sub(code, vf_mul(vi_float(high), radix));
    vi low = vi_round(vf_max(rest, vf_set(-127)));
    vi_store_bytes(high_codes, high);
    vi_store_bytes(low_codes, low);
    return vi_add(vi_round(vf_mul(vi_float(high), radix)), low);
}

/* Group g, inputs from k on, x [n]; `top` is their greatest magnitude: codes to nearest. */
VEC_INLINE void quantize_group(const int T, const struct weight *w, const float *x, size_t n, float top, size_t k, size_t g,
                               const struct cpu_quantized_row *to)
{
    const size_t width = w->group;
    const float code_max = cpu_code_max(w);
    const vf inverse = vf_set(top > 0 ? code_max / top : 0);
    vi sum = vi_set(0);
    for (size_t i = 0; i < width && T == 1 && width < CPU_TILE_K; i += VF_LANES) {
        vi code = vi_round(vf_mul(vf_load_before(x, i, n), inverse));
        sum = vi_add(sum, code);
        vi_store_bytes(to->codes + (k + i) / to->width * to->apart + (k + i) % to->width, code);
    }
    for (size_t i = 0; i < width && T == 1 && width >= CPU_TILE_K; i += CPU_TILE_K) {
        vi code[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            code[j] = vi_round(vf_mul(vf_load_before(x, i + j * VF_LANES, n), inverse));
            sum = vi_add(sum, code[j]);
        }
        vi_store_64(to->codes + (k + i) / CPU_TILE_K * to->apart, code);
    }
    for (size_t i = 0; i < width && T == 2; i += VF_LANES) {
        int8_t *codes = to->codes + (k + i) / to->width * 2 * to->apart + (k + i) % to->width;
        sum = vi_add(sum, quantize_16(vf_load_before(x, i, n), inverse, codes, codes + to->apart));
    }
    const int32_t total = vi_sum(sum);
    g *= to->cells_apart;
    to->scales[g] = top / code_max;
    to->sums[g] = to->scales[g] * (float)total;
    to->offsets[g] = (int32_t)(-128u * (uint32_t)total); /* wraps where x is not finite: so are the scale and the result */
}

/* A group of x is rotated in `rotated`; n of its inputs are there. Returns the greatest magnitude. */
VEC_INLINE float rotate_group(const float *x, size_t n, size_t width, float *rotated)
{
    vf most = vf_set(0);
    for (size_t i = 0; i < width; i += CPU_TILE_K) {
        vf v[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            v[j] = vf_load_before(x, i + j * VF_LANES, n);
        rotate_vectors(v);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            vf_store(rotated + i + j * VF_LANES, v[j]);
            most = vf_greater(most, vf_abs(v[j]));
        }
    }
    return magnitude(most);
}

VEC_INLINE void quantize_groups(const int T, const struct weight *w, const float *x, const struct cpu_quantized_row *to)
{
    const size_t padded = cpu_padded_in(w), width = w->group;
    for (size_t k = 0, g = 0; k < padded; k += width, g++) {
        size_t n = k >= w->n_in ? 0 : w->n_in - k < width ? w->n_in - k : width;
        if (w->rotated) {
            float rotated[CPU_ROTATED_GROUP_MAX];
            float top = rotate_group(x + k, n, width, rotated);
            quantize_group(T, w, rotated, width, top, k, g, to);
        } else {
            quantize_group(T, w, x + k, n, most_of(x + k, n), k, g, to);
        }
    }
}

static void quantize_row(const struct weight *w, const float *x, const struct cpu_quantized_row *to)
{
    if (w->act_bits == 8)
        quantize_groups(1, w, x, to);
    else
        quantize_groups(2, w, x, to);
}

#endif

/* Products on matrix tiles (tile.h); included by kernels_linear.h where CPU_TILES is defined. Activations lie in blocks
 * (cpu_quantized.block_rows), so that a tile of them is one piece of memory.
 *
 * Bytes: the exact int32 of a group is the one that dot_block finds, and the rest is done by the same operations in the same
 * order, so which of them computes a row is free. Groups shorter than a tile make a product of tiles as short.
 * bf16: kernels_tile_bf16.h.
 *
 * Order of work: a chunk of rows, a run of panels, a block of inputs; so the chunk's activations of the block stay in the
 * second cache while the panels pass by, and the sums of the chunk too. */
#ifndef INFERD_BACKEND_CPU_KERNELS_TILE_H
#define INFERD_BACKEND_CPU_KERNELS_TILE_H

#include "backend/cpu/kernels_tile_bf16.h"

#define TILE_SUMS       (TILE_ROWS * CPU_PANEL)
#define TILE_CHUNK_ROWS 256
#define BYTE_K_MOST     768 /* so many inputs are done at once: their sums are not kept in memory */
#define TILE_PANELS     16  /* panels that share the activations of a block of inputs */
#define FOUR_ROWS       (2 * TILE_ROWS)
#define FOUR_TILES_MAX  4 /* in a group */
#define FOUR_Y_ROWS     4 /* of results, asked for in a step */
#define PAIR_SUMS       (TILE_CHUNK_ROWS * ACC_STRIDE)

/* ---- signed bytes ---- */

/* n tiles of 512 bytes of nibbles into bytes of the codebook, 1024 each: low nibbles are tile rows 0-7, high ones 8-15. */
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
#else
    for (; n; n--, w += 512, out += 1024)
        for (int i = 0; i < 512; i++) {
            out[i] = codebook[w[i] & 15];
            out[512 + i] = codebook[w[i] >> 4];
        }
#endif
}

/* Adds a group's sums of 16 rows, sums [1 or 2][TILE_SUMS], high terms first, to their totals. cell: of q's arrays. */
VEC_INLINE void strip_scale(const int T, const int with_min, vf scale, vf min, const struct cpu_quantized *q, size_t cell,
                            const int32_t *sums, vf *total)
{
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) {
        dot_sum sum[2] = {vi_load(sums + r * CPU_PANEL)};
        if (T == 2) {
            sum[1] = sum[0];
            sum[0] = vi_load(sums + TILE_SUMS + r * CPU_PANEL);
        }
        vf dot = dot_float(T == 2 ? DOT_BYTES_2 : DOT_BYTES_1, sum);
        total[r] = vf_fused(dot, vf_mul(scale, vf_set(q->scales[cell + (size_t)r])), total[r]);
        if (with_min)
            total[r] = vf_fused(min, vf_set(q->sums[cell + (size_t)r]), total[r]);
    }
}

/* Products of a group into tiles H (high terms, or all) and L. */
#define STRIP_DOT(H, L) \
    do { \
        TILE_ZERO(H); \
        if (T == 2) \
            TILE_ZERO(L); \
        for (size_t t = 0; t < n_tiles; t++, b += b_bytes, a += a_bytes) { \
            TILE_LOAD(6, b, TILE_ROW_BYTES); \
            TILE_LOAD(4, a, width); \
            tile_fetch(ahead); \
            TILE_DOT_S8(H, 4, 6); \
            if (T == 2) { \
                a += a_bytes; \
                TILE_LOAD(5, a, width); \
                TILE_DOT_S8(L, 5, 6); \
            } \
        } \
    } while (0)

/* Stores the sums of group G and adds them to the totals. */
#define STRIP_END(H, L, G) \
    do { \
        TILE_STORE(H, sums, TILE_ROW_BYTES); \
        if (T == 2) \
            TILE_STORE(L, sums + TILE_SUMS, TILE_ROW_BYTES); \
        strip_scale(T, with_min, dot_scale(scales, w->scales_f16, G), \
                    with_min ? dot_scale(mins, w->scales_f16, G) : vf_set(0), q, cell + (G)*rows, sums, total); \
    } while (0)

/* A run of groups of one block of rows and panel p: acc [16][ACC_STRIDE] stays in registers. The sums of a group are stored
 * and scaled behind the products of the next one. cell: the block's first of the run; a: its codes from there. */
VEC_INLINE void tile_strip(const int T, const int with_min, const struct dot_panels *w, size_t p, const struct cpu_quantized *q,
                           size_t cell, const int8_t *a, struct tile_ahead *ahead, float *acc)
{
    int32_t sums[2 * TILE_SUMS] __attribute__((aligned(64)));
    const size_t bytes = w->quads * 4, width = bytes < TILE_ROW_BYTES ? bytes : TILE_ROW_BYTES;
    const size_t n_tiles = bytes / width, rows = q->block_rows, n = w->n_groups;
    const size_t a_bytes = rows * width, b_bytes = width / 4 * TILE_ROW_BYTES;
    const int8_t *b = w->codes + p * w->codes_apart;
    const char *scales = w->scales + p * w->scales_apart, *mins = with_min ? w->mins + p * w->scales_apart : NULL;
    vf total[TILE_ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++)
        total[r] = vf_load(acc + r * ACC_STRIDE);
    STRIP_DOT(0, 1);
    for (size_t g = 1; g < n; g += 2) {
        STRIP_DOT(2, 3);
        STRIP_END(0, 1, g - 1);
        if (g + 1 < n)
            STRIP_DOT(0, 1);
        STRIP_END(2, 3, g);
    }
    if (n % 2)
        STRIP_END(0, 1, n - 1);
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++)
        vf_store(acc + r * ACC_STRIDE, total[r]);
}

#define TILE_STRIP(NAME, T, WITH_MIN) \
    static __attribute__((noinline)) void NAME(const struct dot_panels *w, size_t p, const struct cpu_quantized *q, \
                                               size_t cell, const int8_t *a, struct tile_ahead *ahead, float *acc) \
    { \
        tile_strip(T, WITH_MIN, w, p, q, cell, a, ahead, acc); \
    }
typedef void (*tile_strip_fn)(const struct dot_panels *w, size_t p, const struct cpu_quantized *q, size_t cell, const int8_t *a,
                              struct tile_ahead *ahead, float *acc);
TILE_STRIP(tile_strip_1, 1, 0)
TILE_STRIP(tile_strip_1_min, 1, 1)
TILE_STRIP(tile_strip_2, 2, 0)
TILE_STRIP(tile_strip_2_min, 2, 1)

/* One or two blocks of rows x two panels, one term, groups of whole tiles, no mins. */
struct tile_four {
    const struct dot_panels *w;
    const int8_t *a;
    size_t rows, second; /* of a block; bytes from the first block's codes to the second's */
    const float *x[2];   /* scales of the blocks, [group][row] */
    const float *y;      /* where the results go, asked for before they are written: */
    size_t y_stride, ny; /* so many rows of them, 0: not yet */
    struct tile_ahead *ahead;
    float *acc;
};

VEC_INLINE void four_fetch(struct tile_four *f)
{
    tile_fetch(f->ahead);
    for (int i = 0; i < FOUR_Y_ROWS && f->ny; i++, f->ny--, f->y += f->y_stride) {
        __builtin_prefetch(f->y, 1, 3);
        __builtin_prefetch(f->y + CPU_PANEL, 1, 3);
    }
}

/* Rows [from, to) of 32 rows x 32 outputs: sums [4][TILE_SUMS] of a group into acc; tile r / 16 * 2 + panel has row r. */
VEC_INLINE void four_scale(const vf *scale, const float *const *x, const int32_t *sums, int from, int to, float *acc)
{
#pragma GCC unroll 32
    for (int r = from; r < to; r++) {
        const int32_t *sum = sums + r / TILE_ROWS * 2 * TILE_SUMS + r % TILE_ROWS * CPU_PANEL;
        float *at = acc + r * ACC_STRIDE;
        const vf x_scale = vf_set(x[r / TILE_ROWS][r % TILE_ROWS]);
        vf_store(at, vf_fused(vi_float(vi_load(sum)), vf_mul(scale[0], x_scale), vf_load(at)));
        at += CPU_PANEL;
        vf_store(at, vf_fused(vi_float(vi_load(sum + TILE_SUMS)), vf_mul(scale[1], x_scale), vf_load(at)));
    }
}

/* Quarter Q of what is scaled during a step. */
#define FOUR_SCALE(Q) \
    if (scaled) \
    four_scale(scale, x, sums, (t * 4 + (Q)) * R * TILE_ROWS / (4 * N), (t * 4 + (Q) + 1) * R * TILE_ROWS / (4 * N), f->acc)

/* Sums of a group of N tiles; among its products, a few rows at a time, those of the group before are scaled: a core does both
 * at once only where they lie close together. */
VEC_INLINE void four_group(const int R, const int N, const int scaled, struct tile_four *f, const int8_t *a, const int8_t *b,
                           const vf *scale, const float *const *x, int32_t *sums)
{
    TILE_ZERO(0);
    TILE_ZERO(1);
    if (R == 2) {
        TILE_ZERO(2);
        TILE_ZERO(3);
    }
#pragma GCC unroll 4
    for (int t = 0; t < N; t++, a += f->rows * TILE_ROW_BYTES, b += TILE_BYTES) {
        TILE_LOAD(6, b, TILE_ROW_BYTES);
        TILE_LOAD(4, a, TILE_ROW_BYTES);
        TILE_DOT_S8(0, 4, 6);
        FOUR_SCALE(0);
        TILE_LOAD(7, b + f->w->codes_apart, TILE_ROW_BYTES);
        TILE_DOT_S8(1, 4, 7);
        FOUR_SCALE(1);
        if (R == 2) {
            TILE_LOAD(5, a + f->second, TILE_ROW_BYTES);
            TILE_DOT_S8(2, 5, 6);
        }
        FOUR_SCALE(2);
        if (R == 2)
            TILE_DOT_S8(3, 5, 7);
        FOUR_SCALE(3);
        four_fetch(f);
    }
    TILE_STORE(0, sums, TILE_ROW_BYTES);
    TILE_STORE(1, sums + TILE_SUMS, TILE_ROW_BYTES);
    if (R == 2) {
        TILE_STORE(2, sums + 2 * TILE_SUMS, TILE_ROW_BYTES);
        TILE_STORE(3, sums + 3 * TILE_SUMS, TILE_ROW_BYTES);
    }
}

VEC_INLINE void tile_four(const int R, const int N, struct tile_four *f)
{
    int32_t sums[4 * TILE_SUMS] __attribute__((aligned(64)));
    const struct dot_panels *w = f->w;
    const float *x[2] = {f->x[0], f->x[1]};
    vf scale[2];
    four_group(R, N, 0, f, f->a, w->codes, scale, x, sums);
    for (size_t g = 1;; g++) {
        scale[0] = dot_scale(w->scales, w->scales_f16, g - 1);
        scale[1] = dot_scale(w->scales + w->scales_apart, w->scales_f16, g - 1);
        if (g == w->n_groups)
            break;
        four_group(R, N, 1, f, f->a + g * N * f->rows * TILE_ROW_BYTES, w->codes + g * N * TILE_BYTES, scale, x, sums);
        x[0] += f->rows;
        x[1] = R == 2 ? x[1] + f->rows : NULL;
    }
    four_scale(scale, x, sums, 0, R * TILE_ROWS, f->acc);
}

#define TILE_FOUR(R, N) \
    static __attribute__((noinline)) void tile_four_##R##_##N(struct tile_four *f) \
    { \
        tile_four(R, N, f); \
    }
TILE_FOUR(1, 1)
TILE_FOUR(1, 2)
TILE_FOUR(1, 3)
TILE_FOUR(1, 4)
TILE_FOUR(2, 1)
TILE_FOUR(2, 2)
TILE_FOUR(2, 3)
TILE_FOUR(2, 4)

/* Inputs [k, k + n_k) of one or two panels and rows [first, first + n), first of a block. acc: of these rows, or where all
 * inputs are done at once of one piece of work. With the last inputs results are written. */
static void tile_ints(const struct cpu_linear *l, size_t panel, size_t panels, size_t first, size_t n, size_t k, size_t n_k,
                      struct tile_ahead *ahead, float *acc)
{
    static void (*const fours[2][FOUR_TILES_MAX])(struct tile_four *) = {
        {tile_four_1_1, tile_four_1_2, tile_four_1_3, tile_four_1_4},
        {tile_four_2_1, tile_four_2_2, tile_four_2_3, tile_four_2_4},
    };
    int8_t unpacked[2 * BYTE_K_MOST * CPU_PANEL] __attribute__((aligned(64)));
    const struct cpu_quantized *q = &l->q;
    const bool one = l->w->act_bits == 8, last = k + n_k == cpu_padded_in(l->w);
    const size_t terms = cpu_terms(l->w), rows = q->block_rows, from = k / l->w->group, width = cpu_tile_width(l->w);
    struct dot_panels w = dot_panels_of(l->w, panel, panels, k, n_k);
    for (size_t p = 0; p < panels && l->w->layout == WEIGHT_I4; p++) {
        const uint8_t *packed = (const uint8_t *)w.codes + p * w.ahead.panel_bytes;
        unpack_tiles(packed, w.codebook, n_k / CPU_TILE_K, unpacked + p * BYTE_K_MOST * CPU_PANEL);
    }
    if (l->w->layout == WEIGHT_I4) {
        w.codes = unpacked;
        w.codes_apart = BYTE_K_MOST * CPU_PANEL;
    }
    static const tile_strip_fn strips[2][2] = {{tile_strip_2, tile_strip_2_min}, {tile_strip_1, tile_strip_1_min}};
    tile_strip_fn strip = strips[one][l->w->has_min];
    bool four =
        one && !l->w->has_min && panels == 2 && w.quads % CPU_QUADS_TILE == 0 && w.quads <= FOUR_TILES_MAX * CPU_QUADS_TILE;
    size_t n_blocks = (n + TILE_ROWS - 1) / TILE_ROWS, steps = n_k / width * (four ? (n_blocks + 1) / 2 : n_blocks * panels);
    ahead->lines = ((size_t)(ahead->end - ahead->at) / CPU_LINE + steps - 1) / steps;
    for (size_t i = 0, some; i < n; i += some) {
        const size_t block = (first + i) / TILE_ROWS, cell = (block * q->groups + from) * rows;
        const int8_t *a = q->codes + block * q->stride + k * terms * rows;
        float *sums = k || !last ? acc + i * ACC_STRIDE : acc;
        const bool both = four && n - i > TILE_ROWS;
        some = both ? FOUR_ROWS : TILE_ROWS;
        some = n - i < some ? n - i : some;
        if (k == 0)
            memset(sums, 0, (both ? FOUR_ROWS : TILE_ROWS) * ACC_STRIDE * sizeof *acc);
        if (four) {
            struct tile_four f = {.w = &w,
                                  .a = a,
                                  .rows = rows,
                                  .second = q->stride,
                                  .x = {q->scales + cell, both ? q->scales + cell + q->groups * rows : NULL},
                                  .y = l->y + (first + i) * l->y_stride + panel * CPU_PANEL,
                                  .y_stride = l->y_stride,
                                  .ny = last ? some : 0,
                                  .ahead = ahead,
                                  .acc = sums};
            fours[both][w.quads / CPU_QUADS_TILE - 1](&f);
        } else {
            for (size_t p = 0; p < panels; p++)
                strip(&w, p, q, cell, a, ahead, sums + p * CPU_PANEL);
        }
        if (last)
            store_rows(l, panel, panels, first + i, some, sums);
    }
}

/* ---- an operation's panels ---- */

/* Inputs [k, k + k_block) of panel and the next one before `end`. */
static struct tile_ahead tile_ahead_of(const struct weight *w, size_t panel, size_t end, size_t k, size_t k_block)
{
    size_t padded = cpu_padded_in(w), n_k = padded - k < k_block ? padded - k : k_block;
    size_t bits = w->layout == WEIGHT_I4 ? 4 : 8, apart = padded * CPU_PANEL * bits / 8;
    const char *at = (const char *)w->data + panel * apart + k * CPU_PANEL * bits / 8;
    return (struct tile_ahead){at, at + n_k * CPU_PANEL * bits / 8, end - panel < 2 ? 0 : apart, 0};
}

static void tile_panels(const struct cpu_linear *l, size_t first_panel, size_t end_panel)
{
    float acc[TILE_PANELS / 2 * PAIR_SUMS] __attribute__((aligned(64)));
    const struct weight *w = l->w;
    if (!w->group) {
        tile_bf16_panels(l, first_panel, end_panel);
        return;
    }
    const size_t padded = cpu_padded_in(w), step = w->group > CPU_TILE_K ? w->group : CPU_TILE_K;
    const size_t k_block = padded <= BYTE_K_MOST ? padded : BYTE_K_BLOCK / step * step;
    const size_t run = l->n <= TILE_ROWS || k_block == padded ? 2 : TILE_PANELS;
    tile_begin(l->q.block_rows, cpu_tile_width(w));
    for (size_t first = 0; first < l->n; first += TILE_CHUNK_ROWS) {
        size_t n = l->n - first < TILE_CHUNK_ROWS ? l->n - first : TILE_CHUNK_ROWS;
        for (size_t begin = first_panel; begin < end_panel; begin += run) {
            size_t end = end_panel - begin < run ? end_panel : begin + run;
            for (size_t k = 0; k < padded; k += k_block)
                for (size_t panel = begin; panel < end; panel += 2) {
                    struct tile_ahead ahead = {.at = w->data, .end = w->data};
                    if (end - panel > 2)
                        ahead = tile_ahead_of(w, panel + 2, end, k, k_block);
                    else if (k + k_block < padded)
                        ahead = tile_ahead_of(w, begin, end, k + k_block, k_block);
                    else if (end < end_panel)
                        ahead = tile_ahead_of(w, end, end_panel, 0, k_block);
                    tile_ints(l, panel, end - panel < 2 ? 1 : 2, first, n, k, padded - k < k_block ? padded - k : k_block,
                              &ahead, acc + (panel - begin) / 2 * PAIR_SUMS);
                }
        }
    }
    tile_end();
}

#endif

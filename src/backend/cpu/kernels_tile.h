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
#define TILE_PANELS     16 /* panels that share the activations of a block of inputs */
#define FOUR_PARTS      4
#define FOUR_PART_ROWS  8
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
TILE_STRIP(tile_strip_2, 2, 0)
TILE_STRIP(tile_strip_2_min, 2, 1)

/* Part `part` of FOUR_PARTS of 32 rows x 32 outputs: sums [4][TILE_SUMS] of group g into acc; tile r / 16 * 2 + panel has
 * row r. x_scales: of the two blocks, [group][row]. */
VEC_INLINE void four_scale(const struct dot_panels *w, const float *const *x_scales, size_t g, const int32_t *sums, size_t part,
                           float *acc)
{
    const size_t block = part / 2, row = part % 2 * FOUR_PART_ROWS;
    const float *x = x_scales[block] + g * TILE_ROWS + row;
    const vf s0 = dot_scale(w->scales, w->scales_f16, g), s1 = dot_scale(w->scales + w->scales_apart, w->scales_f16, g);
    sums += block * 2 * TILE_SUMS + row * CPU_PANEL;
    acc += part * FOUR_PART_ROWS * ACC_STRIDE;
#pragma GCC unroll 8
    for (int r = 0; r < FOUR_PART_ROWS; r++) {
        float *to = acc + r * ACC_STRIDE;
        const int32_t *sum = sums + r * CPU_PANEL;
        const vf x_scale = vf_set(x[r]);
        vf_store(to, vf_fused(vi_float(vi_load(sum)), vf_mul(s0, x_scale), vf_load(to)));
        vf_store(to + CPU_PANEL, vf_fused(vi_float(vi_load(sum + TILE_SUMS)), vf_mul(s1, x_scale), vf_load(to + CPU_PANEL)));
    }
}

/* Two blocks of 16 rows, `second` bytes apart, x two panels, one term, groups of whole tiles. The sums of a group are scaled
 * among the products of the next one. */
static __attribute__((noinline)) void tile_four(const struct dot_panels *w, const int8_t *a, size_t second,
                                                const float *const *x_scales, struct tile_ahead *ahead, float *acc)
{
    int32_t sums[2][4 * TILE_SUMS] __attribute__((aligned(64)));
    const size_t n_tiles = w->quads / CPU_QUADS_TILE;
    const int8_t *b = w->codes;
    for (size_t g = 0; g < w->n_groups; g++) {
        size_t part = g ? 0 : FOUR_PARTS;
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
        for (size_t t = 0; t < n_tiles; t++, a += TILE_BYTES, b += TILE_BYTES) {
            TILE_LOAD(6, b, TILE_ROW_BYTES);
            TILE_LOAD(4, a, TILE_ROW_BYTES);
            TILE_DOT_S8(0, 4, 6);
            TILE_LOAD(7, b + w->codes_apart, TILE_ROW_BYTES);
            TILE_DOT_S8(1, 4, 7);
            TILE_LOAD(5, a + second, TILE_ROW_BYTES);
            TILE_DOT_S8(2, 5, 6);
            TILE_DOT_S8(3, 5, 7);
            tile_fetch(ahead);
            for (size_t end = (t + 1) * FOUR_PARTS / n_tiles; part < end; part++)
                four_scale(w, x_scales, g - 1, sums[(g - 1) % 2], part, acc);
        }
        TILE_STORE(0, sums[g % 2], TILE_ROW_BYTES);
        TILE_STORE(1, sums[g % 2] + TILE_SUMS, TILE_ROW_BYTES);
        TILE_STORE(2, sums[g % 2] + 2 * TILE_SUMS, TILE_ROW_BYTES);
        TILE_STORE(3, sums[g % 2] + 3 * TILE_SUMS, TILE_ROW_BYTES);
    }
    for (size_t part = 0; part < FOUR_PARTS; part++)
        four_scale(w, x_scales, w->n_groups - 1, sums[(w->n_groups - 1) % 2], part, acc);
}

/* Inputs [k, k + n_k) of one or two panels and n_blocks blocks of rows. */
static void tile_ints(const struct cpu_linear *l, size_t panel, size_t panels, size_t first_block, size_t n_blocks, size_t k,
                      size_t n_k, struct tile_ahead *ahead, float *acc)
{
    int8_t unpacked[2 * BYTE_K_BLOCK * CPU_PANEL] __attribute__((aligned(64)));
    const struct cpu_quantized *q = &l->q;
    const bool one = l->w->act_bits == 8;
    const size_t terms = cpu_terms(l->w), rows = q->block_rows, from = k / l->w->group, width = cpu_tile_width(l->w);
    struct dot_panels w = dot_panels_of(l->w, panel, panels, k, n_k);
    for (size_t p = 0; p < panels && l->w->layout == WEIGHT_I4; p++) {
        const uint8_t *packed = (const uint8_t *)w.codes + p * w.panel_bytes;
        unpack_tiles(packed, w.codebook, n_k / CPU_TILE_K, unpacked + p * BYTE_K_BLOCK * CPU_PANEL);
    }
    if (l->w->layout == WEIGHT_I4) {
        w.codes = unpacked;
        w.codes_apart = BYTE_K_BLOCK * CPU_PANEL;
    }
    tile_strip_fn strip = one ? tile_strip_1 : l->w->has_min ? tile_strip_2_min : tile_strip_2;
    bool four = one && panels == 2 && rows == TILE_ROWS;
    size_t steps = n_k / width * (four ? (n_blocks + 1) / 2 : n_blocks * panels);
    ahead->lines = ((size_t)(ahead->end - ahead->at) / CPU_LINE + steps - 1) / steps;
    for (size_t i = 0; i < n_blocks; i++, acc += TILE_ROWS * ACC_STRIDE) {
        size_t block = first_block + i, cell = (block * q->groups + from) * rows;
        const int8_t *a = q->codes + block * q->stride + k * terms * rows;
        if (four && i + 1 < n_blocks) {
            const float *x_scales[2] = {q->scales + cell, q->scales + cell + q->groups * rows};
            tile_four(&w, a, q->stride, x_scales, ahead, acc);
            i++;
            acc += TILE_ROWS * ACC_STRIDE;
            continue;
        }
        for (size_t p = 0; p < panels; p++)
            strip(&w, p, q, cell, a, ahead, acc + p * CPU_PANEL);
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
    const size_t padded = cpu_padded_in(w);
    const size_t step = w->group > CPU_TILE_K ? w->group : CPU_TILE_K;
    const bool one_block = l->n <= TILE_ROWS; /* activations are few: weights are read straight through */
    size_t k_block = BYTE_K_BLOCK / step * step;
    size_t run = one_block ? 2 : TILE_PANELS;
    tile_begin(l->q.block_rows, cpu_tile_width(w));
    for (size_t first = 0; first < l->n; first += TILE_CHUNK_ROWS) {
        size_t n = l->n - first < TILE_CHUNK_ROWS ? l->n - first : TILE_CHUNK_ROWS, blocks = (n + TILE_ROWS - 1) / TILE_ROWS;
        for (size_t begin = first_panel; begin < end_panel; begin += run) {
            size_t end = end_panel - begin < run ? end_panel : begin + run;
            for (size_t panel = begin; panel < end; panel += 2)
                memset(acc + (panel - begin) / 2 * PAIR_SUMS, 0, blocks * TILE_ROWS * ACC_STRIDE * sizeof *acc);
            for (size_t k = 0; k < padded; k += k_block)
                for (size_t panel = begin; panel < end; panel += 2) {
                    struct tile_ahead ahead = {.at = w->data, .end = w->data};
                    if (end - panel > 2)
                        ahead = tile_ahead_of(w, panel + 2, end, k, k_block);
                    else if (k + k_block < padded)
                        ahead = tile_ahead_of(w, begin, end, k + k_block, k_block);
                    else if (end < end_panel)
                        ahead = tile_ahead_of(w, end, end_panel, 0, k_block);
                    tile_ints(l, panel, end - panel < 2 ? 1 : 2, first / TILE_ROWS, blocks, k,
                              padded - k < k_block ? padded - k : k_block, &ahead, acc + (panel - begin) / 2 * PAIR_SUMS);
                }
            for (size_t panel = begin; panel < end; panel += 2)
                store_rows(l, panel, end - panel < 2 ? 1 : 2, first, n, acc + (panel - begin) / 2 * PAIR_SUMS);
        }
    }
    tile_end();
}

#endif

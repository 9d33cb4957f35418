/* Products on matrix tiles (tile.h); included by kernels_linear.h where CPU_TILES is defined.
 *
 * Bytes: blocks of 16 rows x 32 outputs with two terms (left tiles: high and low terms), 32 x 32 or 16 x 32 with one. The
 * exact int32 of a group is the one that dot_block finds, and the rest is done by the same operations in the same order, so
 * which of them computes a row is free: rows short of a block, odd panels and groups below a tile are dot_block's.
 * bf16: activations in three bf16 terms, which hold all 24 bits of a float, for every number of rows, as the sums' order is
 * the tile's own. */
#ifndef INFERD_BACKEND_CPU_KERNELS_TILE_H
#define INFERD_BACKEND_CPU_KERNELS_TILE_H

#include "backend/cpu/tile.h"

#define TILE_SUMS      (TILE_ROWS * CPU_PANEL)
#define BF16_TILE_K    32
#define BF16_K_BLOCK   512 /* two panels: 32 KB */
#define BF16_ROW_BYTES (CPU_BF16_TERMS * TILE_ROW_BYTES) /* of an activation row for BF16_TILE_K inputs */

/* Rows [begin, end) of a block: sums [4][TILE_SUMS] of one group into acc. Tile r / 16 * 2 + panel has row r with one term;
 * tiles 0, 1 the high and 2, 3 the low sums with two. */
VEC_INLINE void tile_scale(const int T, const struct dot_panels *w, const struct cpu_quantized *q, size_t row, size_t from,
                           size_t g, const int32_t *sums, size_t begin, size_t end, float *acc)
{
#pragma GCC unroll 2
    for (size_t p = 0; p < 2; p++) {
        vf scale = dot_scale(w->scales + p * w->scales_apart, w->scales_f16, g);
        vf min = w->mins ? dot_scale(w->mins + p * w->scales_apart, w->scales_f16, g) : vf_set(0);
        for (size_t r = begin; r < end; r++) {
            const int32_t *sum = sums + (r / TILE_ROWS * 2 + p) * TILE_SUMS + r % TILE_ROWS * CPU_PANEL;
            float *to = acc + r * ACC_STRIDE + p * CPU_PANEL;
            size_t cell = (row + r) * q->groups + from + g;
            vf dot = T == 2 ? dot_float(vi_load(sum), vi_load(sum + 2 * TILE_SUMS)) : dot_float_1(vi_load(sum));
            vf v = vf_fused(dot, vf_mul(scale, vf_set(q->scales[cell])), vf_load(to));
            if (w->mins)
                v = vf_fused(min, vf_set(q->sums[cell]), v);
            vf_store(to, v);
        }
    }
}

/* 16 rows (two terms), or 16 * A rows (one term). The sums of a group are scaled while the tiles of the next one run. */
VEC_INLINE void tile_block(const int T, const int A, const struct dot_panels *w, const struct cpu_quantized *q, size_t row,
                           size_t from, float *acc)
{
    int32_t sums[2][4 * TILE_SUMS] __attribute__((aligned(64)));
    const size_t n_tiles = w->quads / CPU_QUADS_TILE, rows = T == 2 ? TILE_ROWS : (size_t)A * TILE_ROWS;
    const size_t share = (rows + n_tiles - 1) / n_tiles;
    const int8_t *a = q->codes + row * q->stride + from * w->quads * 4 * (size_t)T, *b = w->codes;
    const size_t second = T == 2 ? CPU_TILE_K : TILE_ROWS * q->stride;
    for (size_t g = 0; g < w->n_groups; g++) {
        TILE_ZERO(0);
        TILE_ZERO(1);
        if (A == 2) {
            TILE_ZERO(2);
            TILE_ZERO(3);
        }
        for (size_t t = 0; t < n_tiles; t++, a += CPU_TILE_K * T, b += TILE_BYTES) {
            TILE_LOAD(6, b, TILE_ROW_BYTES);
            TILE_LOAD(4, a, q->stride);
            TILE_DOT_S8(0, 4, 6);
            TILE_LOAD(7, b + w->codes_apart, TILE_ROW_BYTES);
            TILE_DOT_S8(1, 4, 7);
            if (A == 2) {
                TILE_LOAD(5, a + second, q->stride);
                TILE_DOT_S8(2, 5, 6);
                TILE_DOT_S8(3, 5, 7);
            }
            if (g) {
                size_t begin = t * share < rows ? t * share : rows, end = begin + share < rows ? begin + share : rows;
                tile_scale(T, w, q, row, from, g - 1, sums[(g - 1) % 2], begin, end, acc);
            }
        }
        TILE_STORE(0, sums[g % 2], TILE_ROW_BYTES);
        TILE_STORE(1, sums[g % 2] + TILE_SUMS, TILE_ROW_BYTES);
        if (A == 2) {
            TILE_STORE(2, sums[g % 2] + 2 * TILE_SUMS, TILE_ROW_BYTES);
            TILE_STORE(3, sums[g % 2] + 3 * TILE_SUMS, TILE_ROW_BYTES);
        }
    }
    tile_scale(T, w, q, row, from, w->n_groups - 1, sums[(w->n_groups - 1) % 2], 0, rows, acc);
}

/* As many of the n rows as whole blocks take; returns how many. */
static __attribute__((noinline)) size_t tile_panels(const struct dot_panels *w, size_t panels, int terms,
                                                    const struct cpu_quantized *q, size_t row, size_t n, size_t from, float *acc)
{
    size_t done = 0;
    if (panels != 2 || w->quads % CPU_QUADS_TILE)
        return 0;
    for (; terms == 2 && n - done >= TILE_ROWS; done += TILE_ROWS)
        tile_block(2, 2, w, q, row + done, from, acc + done * ACC_STRIDE);
    for (; terms == 1 && n - done >= 2 * TILE_ROWS; done += 2 * TILE_ROWS)
        tile_block(1, 2, w, q, row + done, from, acc + done * ACC_STRIDE);
    for (; terms == 1 && n - done >= TILE_ROWS; done += TILE_ROWS)
        tile_block(1, 1, w, q, row + done, from, acc + done * ACC_STRIDE);
    return done;
}

/* ---- bf16 ---- */

/* x as three bf16 terms, each cut from what the ones before leave: 8 bits of the 24 each, so their sum is x (terms under
 * 2^-126, which tiles take for 0, aside). terms: of each 32 inputs 64 bytes of first terms, 64 of second, 64 of third ones;
 * zero beyond n_in. */
static void split_row(const float *x, size_t n_in, size_t padded, uint16_t *terms)
{
    for (size_t k = 0; k < padded; k += VF_LANES) {
        vf v = k + VF_LANES <= n_in ? vf_load(x + k) : k < n_in ? vf_load_part(x + k, n_in - k) : vf_set(0);
        uint16_t *to = terms + k / BF16_TILE_K * (BF16_ROW_BYTES / 2) + k % BF16_TILE_K;
        for (int t = 0; t < CPU_BF16_TERMS; t++, to += BF16_TILE_K) {
            vf_store_cut(to, v);
            v = vf_sub(v, vf_load_bf16(to));
        }
    }
}

/* 16 * R rows x P panels, n_tiles tiles of inputs: acc += (first + second + third term) w, tile by tile, in this order. */
VEC_INLINE void tile_bf16_block(const int R, const int P, const char *w, size_t apart, const int8_t *a, size_t stride,
                                size_t n_tiles, float *acc)
{
    const size_t acc_bytes = ACC_STRIDE * sizeof(float), below = TILE_ROWS * ACC_STRIDE;
    TILE_LOAD(0, acc, acc_bytes);
    if (P == 2)
        TILE_LOAD(1, acc + CPU_PANEL, acc_bytes);
    if (R == 2) {
        TILE_LOAD(2, acc + below, acc_bytes);
        if (P == 2)
            TILE_LOAD(3, acc + below + CPU_PANEL, acc_bytes);
    }
    for (size_t t = 0; t < n_tiles; t++, a += BF16_ROW_BYTES, w += TILE_BYTES) {
        TILE_LOAD(6, w, TILE_ROW_BYTES);
        if (P == 2)
            TILE_LOAD(7, w + apart, TILE_ROW_BYTES);
#pragma GCC unroll 3
        for (int term = 0; term < CPU_BF16_TERMS; term++) {
            TILE_LOAD(4, a + term * TILE_ROW_BYTES, stride);
            TILE_DOT_BF16(0, 4, 6);
            if (P == 2)
                TILE_DOT_BF16(1, 4, 7);
            if (R == 2) {
                TILE_LOAD(5, a + TILE_ROWS * stride + term * TILE_ROW_BYTES, stride);
                TILE_DOT_BF16(2, 5, 6);
                if (P == 2)
                    TILE_DOT_BF16(3, 5, 7);
            }
        }
    }
    TILE_STORE(0, acc, acc_bytes);
    if (P == 2)
        TILE_STORE(1, acc + CPU_PANEL, acc_bytes);
    if (R == 2) {
        TILE_STORE(2, acc + below, acc_bytes);
        if (P == 2)
            TILE_STORE(3, acc + below + CPU_PANEL, acc_bytes);
    }
}

/* acc has room for whole blocks of 16 rows, q for as many rows of any content behind the last. */
static __attribute__((noinline)) void tile_bf16_chunk(const struct cpu_linear *l, size_t panel, size_t panels, size_t first,
                                                      size_t n, float *acc)
{
    size_t apart = cpu_padded_in(l->w) * CPU_PANEL * 2, stride = l->q.stride, tiles = cpu_padded_in(l->w) / BF16_TILE_K;
    const char *data = (const char *)l->w->data + panel * apart;
    for (size_t from = 0; from < tiles; from += BF16_K_BLOCK / BF16_TILE_K) {
        size_t n_tiles = tiles - from < BF16_K_BLOCK / BF16_TILE_K ? tiles - from : BF16_K_BLOCK / BF16_TILE_K;
        const char *w = data + from * TILE_BYTES;
        const int8_t *a = l->q.codes + first * stride + from * BF16_ROW_BYTES;
        for (size_t r = 0; r < n; r += 2 * TILE_ROWS) {
            const int8_t *rows = a + r * stride;
            float *to = acc + r * ACC_STRIDE;
            if (n - r > TILE_ROWS && panels == 2)
                tile_bf16_block(2, 2, w, apart, rows, stride, n_tiles, to);
            else if (n - r > TILE_ROWS)
                tile_bf16_block(2, 1, w, apart, rows, stride, n_tiles, to);
            else if (panels == 2)
                tile_bf16_block(1, 2, w, apart, rows, stride, n_tiles, to);
            else
                tile_bf16_block(1, 1, w, apart, rows, stride, n_tiles, to);
        }
    }
}

#endif

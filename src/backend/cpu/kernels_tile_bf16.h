/* Products of bf16 weights on matrix tiles (tile.h); included by kernels_tile.h. Activations in three bf16 terms, which hold
 * all 24 bits of a float, for every number of rows, as the sums' order is the tile's own. */
#ifndef INFERD_BACKEND_CPU_KERNELS_TILE_BF16_H
#define INFERD_BACKEND_CPU_KERNELS_TILE_BF16_H

#include "backend/cpu/cpu.h"
#include "backend/cpu/tile.h"

#define BF16_TILE_K  32
#define BF16_K_BLOCK 256 /* two panels: 16 KB */

/* x as three bf16 terms, each cut from what the ones before leave: 8 bits of the 24 each, so their sum is x (terms under
 * 2^-126, which tiles take for 0, aside). A tile's 32 inputs are 64 bytes of each term, `apart` bytes from term to term and
 * from the last term to the next tile's first; zero beyond n_in. */
static void split_row(const float *x, size_t n_in, size_t padded, int8_t *terms, size_t apart)
{
    for (size_t k = 0; k < padded; k += VF_LANES) {
        vf v = k + VF_LANES <= n_in ? vf_load(x + k) : k < n_in ? vf_load_part(x + k, n_in - k) : vf_set(0);
        int8_t *to = terms + k / BF16_TILE_K * CPU_BF16_TERMS * apart + k % BF16_TILE_K * sizeof(uint16_t);
        for (int t = 0; t < CPU_BF16_TERMS; t++, to += apart) {
            vf_store_cut((uint16_t *)(void *)to, v);
            v = vf_sub(v, vf_load_bf16((const uint16_t *)(const void *)to));
        }
    }
}

/* R blocks of rows, `second` bytes apart, x P panels, n_tiles tiles of inputs: acc += (first + second + third term) w, tile
 * by tile, in this order. */
VEC_INLINE void tile_bf16_block(const int R, const int P, const char *w, size_t apart, const int8_t *a, size_t second,
                                size_t a_bytes, size_t n_tiles, struct tile_ahead *ahead, float *acc)
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
    for (size_t t = 0; t < n_tiles; t++, w += TILE_BYTES) {
        TILE_LOAD(6, w, TILE_ROW_BYTES);
        if (P == 2)
            TILE_LOAD(7, w + apart, TILE_ROW_BYTES);
        tile_fetch(ahead);
#pragma GCC unroll 3
        for (int term = 0; term < CPU_BF16_TERMS; term++, a += a_bytes) {
            TILE_LOAD(4, a, TILE_ROW_BYTES);
            TILE_DOT_BF16(0, 4, 6);
            if (P == 2)
                TILE_DOT_BF16(1, 4, 7);
            if (R == 2) {
                TILE_LOAD(5, a + second, TILE_ROW_BYTES);
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

/* Inputs [k, k + n_k) of one or two panels and n_blocks blocks of rows. */
static __attribute__((noinline)) void tile_bf16(const struct cpu_linear *l, size_t panel, size_t panels, size_t first_block,
                                                size_t n_blocks, size_t k, size_t n_k, struct tile_ahead *ahead, float *acc)
{
    const size_t apart = cpu_padded_in(l->w) * CPU_PANEL * sizeof(uint16_t), second = l->q.stride;
    const size_t a_bytes = l->q.block_rows * TILE_ROW_BYTES, n_tiles = n_k / BF16_TILE_K;
    const char *w = (const char *)l->w->data + panel * apart + k / BF16_TILE_K * TILE_BYTES;
    const int8_t *a = l->q.codes + first_block * second + k / BF16_TILE_K * CPU_BF16_TERMS * a_bytes;
    const size_t steps = n_tiles * ((n_blocks + 1) / 2);
    ahead->lines = ((size_t)(ahead->end - ahead->at) / CPU_LINE + steps - 1) / steps;
    for (size_t i = 0; i < n_blocks; i += 2, a += 2 * second, acc += 2 * TILE_ROWS * ACC_STRIDE) {
        if (n_blocks - i > 1 && panels == 2)
            tile_bf16_block(2, 2, w, apart, a, second, a_bytes, n_tiles, ahead, acc);
        else if (n_blocks - i > 1)
            tile_bf16_block(2, 1, w, apart, a, second, a_bytes, n_tiles, ahead, acc);
        else if (panels == 2)
            tile_bf16_block(1, 2, w, apart, a, second, a_bytes, n_tiles, ahead, acc);
        else
            tile_bf16_block(1, 1, w, apart, a, second, a_bytes, n_tiles, ahead, acc);
    }
}

#endif

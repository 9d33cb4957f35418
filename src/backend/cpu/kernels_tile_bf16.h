/* Products of bf16 weights on matrix tiles (tile.h); included by kernels_tile.h. Activations in three bf16 terms, which hold
 * all 24 bits of a float, for every number of rows, as the sums' order is the tile's own. */
#ifndef INFERD_BACKEND_CPU_KERNELS_TILE_BF16_H
#define INFERD_BACKEND_CPU_KERNELS_TILE_BF16_H

#include "backend/cpu/cpu.h"
#include "backend/cpu/tile.h"

#define BF16_TILE_K     32
#define BF16_ROWS       32  /* that share a tile of weights */
#define BF16_CHUNK_ROWS 256 /* whose activations of a block of inputs stay in the second cache: 576 KB */
#define BF16_K_MAX      384 /* inputs of such a block */
#define BF16_K_FEW      256 /* of a block for BF16_ROWS or fewer: the next one is asked for meanwhile, 16 KB of two panels */
#define BF16_RUN        16  /* panels that share the activations of a block */

/* x as three bf16 terms, each cut from what the ones before leave: 8 bits of the 24 each, so their sum is x (terms under
 * 2^-126, which tiles take for 0, aside). A tile's 32 inputs are 64 bytes of each term, `apart` bytes from term to term and
 * from the last term to the next tile's first; zero beyond n_in. */
static void split_row(const float *x, size_t n_in, size_t padded, int8_t *terms, size_t apart)
{
    for (size_t k = 0; k < padded; k += VF_LANES) {
        vf v = vf_load_before(x, k, n_in);
        int8_t *to = terms + k / BF16_TILE_K * CPU_BF16_TERMS * apart + k % BF16_TILE_K * sizeof(uint16_t);
        for (int t = 0; t < CPU_BF16_TERMS; t++, to += apart) {
            vf_store_cut((uint16_t *)(void *)to, v);
            v = vf_sub(v, vf_load_bf16((const uint16_t *)(const void *)to));
        }
    }
}

/* R blocks of rows, `second` bytes apart, x P panels, n_tiles tiles of inputs: sums (begin: of zero) += (first + second + third
 * term) w, tile by tile, in this order. */
VEC_INLINE void tile_bf16_block(const int R, const int P, bool begin, const char *w, size_t apart, const int8_t *a,
                                size_t second, size_t a_bytes, size_t n_tiles, struct tile_ahead *ahead, float *sums)
{
    const size_t bytes = ACC_STRIDE * sizeof(float), below = TILE_ROWS * ACC_STRIDE;
    if (begin) {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
    } else {
        TILE_LOAD(0, sums, bytes);
        if (P == 2)
            TILE_LOAD(1, sums + CPU_PANEL, bytes);
        if (R == 2) {
            TILE_LOAD(2, sums + below, bytes);
            if (P == 2)
                TILE_LOAD(3, sums + below + CPU_PANEL, bytes);
        }
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
    TILE_STORE(0, sums, bytes);
    if (P == 2)
        TILE_STORE(1, sums + CPU_PANEL, bytes);
    if (R == 2) {
        TILE_STORE(2, sums + below, bytes);
        if (P == 2)
            TILE_STORE(3, sums + below + CPU_PANEL, bytes);
    }
}

#define TILE_BF16(NAME, R, P) \
    static __attribute__((noinline)) void NAME(bool begin, const char *w, size_t apart, const int8_t *a, size_t second, \
                                               size_t a_bytes, size_t n_tiles, struct tile_ahead *ahead, float *sums) \
    { \
        tile_bf16_block(R, P, begin, w, apart, a, second, a_bytes, n_tiles, ahead, sums); \
    }
TILE_BF16(tile_bf16_1_1, 1, 1)
TILE_BF16(tile_bf16_1_2, 1, 2)
TILE_BF16(tile_bf16_2_1, 2, 1)
TILE_BF16(tile_bf16_2_2, 2, 2)
typedef void (*tile_bf16_fn)(bool begin, const char *w, size_t apart, const int8_t *a, size_t second, size_t a_bytes,
                             size_t n_tiles, struct tile_ahead *ahead, float *sums);

/* Inputs [k, k + n_k) of one or two panels and rows [first, first + n), whose sums are in acc, 32 floats a row. Outputs are
 * stored as soon as their last input is there; where that is at once, few sums are kept. */
static void tile_bf16_rows(const struct cpu_linear *l, size_t panel, size_t panels, size_t first, size_t n, size_t k,
                           size_t n_k, struct tile_ahead *ahead, float *acc)
{
    static const tile_bf16_fn block_of[2][2] = {{tile_bf16_1_1, tile_bf16_1_2}, {tile_bf16_2_1, tile_bf16_2_2}};
    const size_t padded = cpu_padded_in(l->w), apart = padded * CPU_PANEL * sizeof(uint16_t), second = l->q.stride;
    const size_t a_bytes = l->q.block_rows * TILE_ROW_BYTES, n_tiles = n_k / BF16_TILE_K;
    const char *w = (const char *)l->w->data + panel * apart + k / BF16_TILE_K * TILE_BYTES;
    const int8_t *a = l->q.codes + first / TILE_ROWS * second + k / BF16_TILE_K * CPU_BF16_TERMS * a_bytes;
    const size_t steps = n_tiles * ((n + BF16_ROWS - 1) / BF16_ROWS);
    ahead->lines = ((size_t)(ahead->end - ahead->at) / CPU_LINE + steps - 1) / steps;
    for (size_t r = 0; r < n; r += BF16_ROWS, a += 2 * second) {
        const size_t rows = n - r < BF16_ROWS ? n - r : BF16_ROWS;
        float *sums = acc + (n_k == padded ? r % (2 * BF16_ROWS) : r) * ACC_STRIDE;
        block_of[rows > TILE_ROWS][panels - 1](k == 0, w, apart, a, second, a_bytes, n_tiles, ahead, sums);
        if (k + n_k == padded)
            store_rows(l, panel, panels, first + r, rows, sums);
    }
}

/* Inputs [k, k + n_k) of panel and the next one; none behind the last panel. */
static struct tile_ahead tile_bf16_ahead(const struct weight *w, size_t panel, size_t k, size_t n_k)
{
    const size_t apart = cpu_padded_in(w) * CPU_PANEL * sizeof(uint16_t), panels = cpu_panels(w);
    const char *at = (const char *)w->data + panel * apart + k * CPU_PANEL * sizeof(uint16_t);
    return (struct tile_ahead){at, panel < panels ? at + n_k * CPU_PANEL * sizeof(uint16_t) : at,
                               panels - panel < 2 ? 0 : apart, 0};
}

/* Panels [first_panel, end_panel): a chunk of rows, a run of panels, a block of inputs. What is asked for ahead goes on behind
 * the last panel: the thread's next call starts there. */
static void tile_bf16_panels(const struct cpu_linear *l, size_t first_panel, size_t end_panel)
{
    float acc[BF16_RUN / 2 * BF16_CHUNK_ROWS * ACC_STRIDE] __attribute__((aligned(64)));
    const struct weight *w = l->w;
    const size_t padded = cpu_padded_in(w);
    tile_begin(l->q.block_rows, TILE_ROW_BYTES);
    for (size_t first = 0; first < l->n; first += BF16_CHUNK_ROWS) {
        const size_t n = l->n - first < BF16_CHUNK_ROWS ? l->n - first : BF16_CHUNK_ROWS;
        const bool few = n <= BF16_ROWS; /* activations stay near: weights are read straight through */
        const size_t blocks = few ? 1 : (padded + BF16_K_MAX - 1) / BF16_K_MAX;
        const size_t k_block = few ? BF16_K_FEW : cpu_round_up((padded + blocks - 1) / blocks, BF16_TILE_K);
        const size_t run = few || k_block == padded ? 2 : BF16_RUN;
        for (size_t begin = first_panel; begin < end_panel; begin += run) {
            const size_t end = end_panel - begin < run ? end_panel : begin + run;
            for (size_t k = 0; k < padded; k += k_block)
                for (size_t panel = begin; panel < end; panel += 2) {
                    const size_t n_k = padded - k < k_block ? padded - k : k_block, next = k + k_block;
                    struct tile_ahead ahead;
                    if (panel + 2 < end)
                        ahead = tile_bf16_ahead(w, panel + 2, k, n_k);
                    else if (next < padded)
                        ahead = tile_bf16_ahead(w, begin, next, padded - next < k_block ? padded - next : k_block);
                    else
                        ahead = tile_bf16_ahead(w, end, 0, k_block < padded ? k_block : padded);
                    tile_bf16_rows(l, panel, end - panel < 2 ? 1 : 2, first, n, k, n_k, &ahead,
                                   acc + (panel - begin) / 2 * BF16_CHUNK_ROWS * ACC_STRIDE);
                }
        }
    }
    tile_end();
}

#endif

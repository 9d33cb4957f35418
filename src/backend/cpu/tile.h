/* Matrix tiles: eight registers of at most 16 rows x 64 bytes (AMX), and the same in plain C, by which every processor can
 * test what is built on them. Tiles 4 and 5 are left ones: a row holds `width` bytes of one activation row. 6 and 7 are right
 * ones: a row holds 16 outputs x 4 bytes (or 2 bf16), width / 4 rows. 0 to 3 are results: a row holds 16 sums. Numbers of
 * tiles are literals.
 *
 * Compilers know neither that a tile load reads memory nor that a store writes it: hence the barriers. */
#ifndef INFERD_BACKEND_CPU_TILE_H
#define INFERD_BACKEND_CPU_TILE_H

#include "backend/cpu/vec.h"

#define TILE_ROWS      16
#define TILE_ROW_BYTES 64
#define TILE_BYTES     1024
#define TILE_COUNT     8

#if defined(TILE_EMULATED)

static __thread uint8_t tile_of[TILE_COUNT][TILE_BYTES];
static __thread size_t tile_rows, tile_width;

static void tile_begin(size_t rows, size_t width)
{
    tile_rows = rows;
    tile_width = width;
}
static void tile_end(void) {}

/* Between tile t, in rows of 64 bytes, and memory. */
static void tile_copy(int t, uint8_t *to, size_t to_stride, const uint8_t *from, size_t from_stride)
{
    for (size_t r = 0; r < (t < 6 ? tile_rows : tile_width / 4); r++)
        memcpy(to + r * to_stride, from + r * from_stride, t == 4 || t == 5 ? tile_width : TILE_ROW_BYTES);
}

static void tile_dot_s8(uint8_t *c, const uint8_t *a, const uint8_t *b)
{
    int32_t *sums = (int32_t *)(void *)c;
    for (size_t m = 0; m < tile_rows; m++)
        for (size_t n = 0; n < 16; n++)
            for (size_t k = 0; k < tile_width; k++)
                sums[m * 16 + n] += (int8_t)a[m * 64 + k] * (int8_t)b[k / 4 * 64 + n * 4 + k % 4];
}

/* Even and odd inputs are summed apart, then both are added to the result. (What the processor does beside: denormals are
 * zeros.) */
static void tile_dot_bf16(uint8_t *c, const uint8_t *a, const uint8_t *b)
{
    float *sums = (float *)(void *)c;
    const uint16_t *left = (const uint16_t *)(const void *)a, *right = (const uint16_t *)(const void *)b;
    for (size_t m = 0; m < tile_rows; m++)
        for (size_t n = 0; n < 16; n++) {
            float part[2] = {0, 0};
            for (size_t k = 0; k < tile_width / 2; k++)
                part[k % 2] = fmaf(dtype_bf16_to_f32(left[m * 32 + k]), dtype_bf16_to_f32(right[k / 2 * 32 + n * 2 + k % 2]),
                                   part[k % 2]);
            sums[m * 16 + n] += part[0] + part[1];
        }
}

#define TILE_ZERO(T)             memset(tile_of[T], 0, TILE_BYTES)
#define TILE_LOAD(T, P, STRIDE)  tile_copy(T, tile_of[T], TILE_ROW_BYTES, (const uint8_t *)(const void *)(P), STRIDE)
#define TILE_STORE(T, P, STRIDE) tile_copy(T, (uint8_t *)(void *)(P), STRIDE, tile_of[T], TILE_ROW_BYTES)
#define TILE_DOT_S8(C, A, B)     tile_dot_s8(tile_of[C], tile_of[A], tile_of[B])
#define TILE_DOT_BF16(C, A, B)   tile_dot_bf16(tile_of[C], tile_of[A], tile_of[B])

#else
#include <immintrin.h>

#define TILE_BARRIER() __asm__ volatile("" ::: "memory")

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64)));

/* On the thread that computes, before the first tile; tile_end gives the state back, so that switches stay cheap. rows: of
 * activations, at most 16; width: 16, 32 or 64. */
static void tile_begin(size_t rows, size_t width)
{
    struct tile_config config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int t = 0; t < TILE_COUNT; t++) {
        config.row_bytes[t] = t == 4 || t == 5 ? (uint16_t)width : TILE_ROW_BYTES;
        config.rows[t] = (uint8_t)(t < 6 ? rows : width / 4);
    }
    __asm__ volatile("" ::"r"(&config) : "memory"); /* gcc 12 takes the load for one of 8 bytes and drops the other stores */
    _tile_loadconfig(&config);
}

static void tile_end(void)
{
    _tile_release();
}

#define TILE_ZERO(T) _tile_zero(T)
#define TILE_LOAD(T, P, STRIDE) \
    do { \
        TILE_BARRIER(); \
        _tile_loadd(T, (P), (STRIDE)); \
    } while (0)
#define TILE_STORE(T, P, STRIDE) \
    do { \
        _tile_stored(T, (P), (STRIDE)); \
        TILE_BARRIER(); \
    } while (0)
#define TILE_DOT_S8(C, A, B)   _tile_dpbssd(C, A, B)
#define TILE_DOT_BF16(C, A, B) _tile_dpbf16ps(C, A, B)

#endif

/* Packed weights that come next, of one or two panels, asked for into the second cache a few lines at a time: in bursts it
 * would cost more than it brings. */
struct tile_ahead {
    const char *at, *end;
    size_t apart, lines; /* from the first panel to the second; of each panel at a time */
};

VEC_INLINE void tile_fetch(struct tile_ahead *f)
{
    for (size_t i = 0; i < f->lines && f->at < f->end; i++, f->at += CPU_LINE) {
        __builtin_prefetch(f->at, 0, 2);
        __builtin_prefetch(f->at + f->apart, 0, 2);
    }
}

#endif

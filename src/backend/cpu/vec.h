/* Sixteen floats as one value, for each instruction set: a 512-bit register, two 256-bit ones, or an array.
 * Included by the kernel files of one instruction set; holds only static inline functions. Multiplications and
 * additions that must be one rounding are said as vf_fma: the reference does them in two. */
#ifndef INFERD_BACKEND_CPU_VEC_H
#define INFERD_BACKEND_CPU_VEC_H

#include "backend/dtype.h"

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define VF_LANES   16
#define VEC_INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#include <immintrin.h>

typedef __m512 vf;
typedef __m512i vi;

VEC_INLINE vf vf_set(float x)
{
    return _mm512_set1_ps(x);
}
VEC_INLINE vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
VEC_INLINE void vf_store(float *p, vf v)
{
    _mm512_storeu_ps(p, v);
}
VEC_INLINE __mmask16 vf_mask(size_t n)
{
    return (__mmask16)((1u << n) - 1);
}
VEC_INLINE vf vf_load_part(const float *p, size_t n)
{
    return _mm512_maskz_loadu_ps(vf_mask(n), p);
}
VEC_INLINE void vf_store_part(float *p, vf v, size_t n)
{
    _mm512_mask_storeu_ps(p, vf_mask(n), v);
}
VEC_INLINE vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
VEC_INLINE vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
VEC_INLINE vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
VEC_INLINE vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
VEC_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
/* The second where either is NaN. */
VEC_INLINE vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
VEC_INLINE vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
VEC_INLINE vf vf_abs(vf a)
{
    return _mm512_abs_ps(a);
}
/* Of values without sign; NaN is the greatest. */
VEC_INLINE vf vf_greater(vf a, vf b)
{
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
/* a where x < limit, else b. */
VEC_INLINE vf vf_if_less(vf x, vf limit, vf a, vf b)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), b, a);
}
/* Lanes [from, to) of a, else b. */
VEC_INLINE vf vf_lanes(vf a, vf b, size_t from, size_t to)
{
    return _mm512_mask_blend_ps((__mmask16)((1u << to) - (1u << from)), b, a);
}
VEC_INLINE vf vf_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
VEC_INLINE vf vf_load_bf16(const uint16_t *p)
{
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}
VEC_INLINE void vf_store_f16(uint16_t *p, vf v)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, 0));
}
VEC_INLINE vf vf_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
/* 16 signed numbers of three bytes, low byte first, times 256. */
VEC_INLINE vf vf_load_i24(const uint8_t *p)
{
#if defined(__AVX512VBMI__) /* one shuffle, where two keep the only unit that shuffles busy */
    const __m512i from =
        _mm512_setr_epi32(0x02010000, 0x05040300, 0x08070600, 0x0b0a0900, 0x0e0d0c00, 0x11100f00, 0x14131200, 0x17161500,
                          0x1a191800, 0x1d1c1b00, 0x201f1e00, 0x23222100, 0x26252400, 0x29282700, 0x2c2b2a00, 0x2f2e2d00);
    __m512i codes = _mm512_maskz_loadu_epi32(0x0fff, p);
    return _mm512_cvtepi32_ps(_mm512_maskz_permutexvar_epi8(0xeeeeeeeeeeeeeeee, from, codes));
#else
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 12);
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(-1, 0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11));
    __m512i v = _mm512_permutexvar_epi32(lane, _mm512_maskz_loadu_epi32(0x0fff, p));
    return _mm512_cvtepi32_ps(_mm512_shuffle_epi8(v, bytes));
#endif
}
/* Even and odd members of 16 bf16 pairs. */
VEC_INLINE vf vf_load_even(const uint16_t *p)
{
    return (vf)_mm512_slli_epi32(_mm512_loadu_si512(p), 16);
}
VEC_INLINE vf vf_load_odd(const uint16_t *p)
{
    return (vf)_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(-65536));
}
/* 16 bf16: the upper halves of the lanes, cut or rounded (ties away from zero). */
VEC_INLINE void vf_store_cut(uint16_t *p, vf v)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)v, 16)));
}
VEC_INLINE vi vi_set(int32_t x)
{
    return _mm512_set1_epi32(x);
}
VEC_INLINE vi vi_load(const int32_t *p)
{
    return _mm512_loadu_si512(p);
}
/* acc + the products of the halves of each lane, signed 16-bit numbers. */
VEC_INLINE vi vi_dot_pairs(vi acc, vi a, vi b)
{
#if defined(__AVX512VNNI__)
    return _mm512_dpwssd_epi32(acc, a, b);
#else
    return _mm512_add_epi32(acc, _mm512_madd_epi16(a, b));
#endif
}
VEC_INLINE vi vi_round(vf v)
{
    return _mm512_cvtps_epi32(v);
}
VEC_INLINE vf vi_float(vi v)
{
    return _mm512_cvtepi32_ps(v);
}
VEC_INLINE vi vi_add(vi a, vi b)
{
    return _mm512_add_epi32(a, b);
}
VEC_INLINE void vi_store_i16(int16_t *p, vi v)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(v));
}
VEC_INLINE void vi_store_i24(uint8_t *p, vi v)
{
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 3, 3, 3);
    _mm512_mask_storeu_epi32(p, 0x0fff, _mm512_permutexvar_epi32(lane, _mm512_shuffle_epi8(v, bytes)));
}
/* v * 2^n for normal results. */
VEC_INLINE vf vf_scale2(vf v, vi n)
{
    return (vf)_mm512_add_epi32((__m512i)v, _mm512_slli_epi32(n, 23));
}
/* Values within +-127 as 16 bytes. */
VEC_INLINE void vi_store_bytes(int8_t *p, vi v)
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(v));
}
/* Four of them as 64 bytes. */
VEC_INLINE void vi_store_64(int8_t *p, const vi *v)
{
    const __m512i lanes = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(lanes, bytes));
}
/* Lane i: v[i] + v[i ^ step], minus the lane itself where i has the bit; step 8, 4, 2 or 1, a constant. */
VEC_INLINE vf vf_butterfly(vf v, const int step)
{
    vf other = step == 8   ? _mm512_shuffle_f32x4(v, v, 0x4e)
               : step == 4 ? _mm512_shuffle_f32x4(v, v, 0xb1)
               : step == 2 ? _mm512_permute_ps(v, 0x4e)
                           : _mm512_permute_ps(v, 0xb1);
    const __mmask16 minus = step == 8 ? 0xff00 : step == 4 ? 0xf0f0 : step == 2 ? 0xcccc : 0xaaaa;
    return _mm512_fmadd_ps(v, _mm512_mask_blend_ps(minus, _mm512_set1_ps(1), _mm512_set1_ps(-1)), other); /* exact products */
}
/* Lane i: v[i ^ 1]. */
VEC_INLINE vf vf_swap_pairs(vf v)
{
    return _mm512_permute_ps(v, 0xb1);
}
/* at + step in lanes where v >= limit. */
VEC_INLINE vi vi_step(vi at, vf v, vf limit, int32_t step)
{
    return _mm512_mask_add_epi32(at, _mm512_cmp_ps_mask(v, limit, _CMP_GE_OQ), at, _mm512_set1_epi32(step));
}
/* Lane i: table[at[i]], at 0 .. 15. */
VEC_INLINE vf vf_pick(vf table, vi at)
{
    return _mm512_permutexvar_ps(at, table);
}
VEC_INLINE void vf_halves(vf v, __m256 *low, __m256 *high)
{
    *low = _mm512_castps512_ps256(v);
    *high = _mm512_extractf32x8_ps(v, 1);
}
VEC_INLINE void vi_halves(vi v, __m256i *low, __m256i *high)
{
    *low = _mm512_castsi512_si256(v);
    *high = _mm512_extracti64x4_epi64(v, 1);
}

#elif defined(__AVX2__)
#include <immintrin.h>

typedef struct {
    __m256 a, b;
} vf;
typedef struct {
    __m256i a, b;
} vi;

#define VF2(A, B) ((vf){A, B})

VEC_INLINE vf vf_set(float x)
{
    return VF2(_mm256_set1_ps(x), _mm256_set1_ps(x));
}
VEC_INLINE vf vf_load(const float *p)
{
    return VF2(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
}
VEC_INLINE void vf_store(float *p, vf v)
{
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}
VEC_INLINE vf vf_load_part(const float *p, size_t n)
{
    float t[16] = {0};
    memcpy(t, p, n * sizeof *t);
    return vf_load(t);
}
VEC_INLINE void vf_store_part(float *p, vf v, size_t n)
{
    float t[16];
    vf_store(t, v);
    memcpy(p, t, n * sizeof *t);
}
VEC_INLINE vf vf_add(vf x, vf y)
{
    return VF2(_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b));
}
VEC_INLINE vf vf_sub(vf x, vf y)
{
    return VF2(_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b));
}
VEC_INLINE vf vf_mul(vf x, vf y)
{
    return VF2(_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b));
}
VEC_INLINE vf vf_div(vf x, vf y)
{
    return VF2(_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b));
}
VEC_INLINE vf vf_fma(vf x, vf y, vf z)
{
    return VF2(_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b));
}
VEC_INLINE vf vf_max(vf x, vf y)
{
    return VF2(_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b));
}
VEC_INLINE vf vf_min(vf x, vf y)
{
    return VF2(_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b));
}
VEC_INLINE vf vf_abs(vf x)
{
    __m256 sign = _mm256_set1_ps(-0.0f);
    return VF2(_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b));
}
VEC_INLINE __m256 half_greater(__m256 a, __m256 b)
{
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
VEC_INLINE vf vf_greater(vf x, vf y)
{
    return VF2(half_greater(x.a, y.a), half_greater(x.b, y.b));
}
VEC_INLINE vf vf_if_less(vf x, vf limit, vf a, vf b)
{
    return VF2(_mm256_blendv_ps(b.a, a.a, _mm256_cmp_ps(x.a, limit.a, _CMP_LT_OQ)),
               _mm256_blendv_ps(b.b, a.b, _mm256_cmp_ps(x.b, limit.b, _CMP_LT_OQ)));
}
VEC_INLINE vf vf_lanes(vf a, vf b, size_t from, size_t to)
{
    float t[16], u[16];
    vf_store(t, b);
    vf_store(u, a);
    memcpy(t + from, u + from, (to - from) * sizeof *t);
    return vf_load(t);
}
VEC_INLINE vf vf_load_f16(const uint16_t *p)
{
    return VF2(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
               _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8))));
}
VEC_INLINE vf vf_load_bf16(const uint16_t *p)
{
    __m256i a = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    __m256i b = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + 8)));
    return VF2((__m256)_mm256_slli_epi32(a, 16), (__m256)_mm256_slli_epi32(b, 16));
}
VEC_INLINE void vf_store_f16(uint16_t *p, vf v)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v.a, 0));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(v.b, 0));
}
VEC_INLINE vf vf_load_i8(const int8_t *p)
{
    __m128i v = _mm_loadu_si128((const __m128i *)p);
    return VF2(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))));
}
VEC_INLINE __m256 vf_eight_i24(const uint8_t *p)
{
    const __m128i bytes = _mm_setr_epi8(-1, 0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11);
    __m128i low = _mm_loadu_si128((const __m128i *)p), high = _mm_loadu_si128((const __m128i *)(p + 8));
    low = _mm_shuffle_epi8(low, bytes);
    high = _mm_shuffle_epi8(_mm_srli_si128(high, 4), bytes); /* reads 24 bytes and no more */
    return _mm256_cvtepi32_ps(_mm256_set_m128i(high, low));
}
VEC_INLINE vf vf_load_i24(const uint8_t *p)
{
    return VF2(vf_eight_i24(p), vf_eight_i24(p + 24));
}
VEC_INLINE vf vf_load_even(const uint16_t *p)
{
    const __m256i *q = (const __m256i *)p;
    return VF2((__m256)_mm256_slli_epi32(_mm256_loadu_si256(q), 16), (__m256)_mm256_slli_epi32(_mm256_loadu_si256(q + 1), 16));
}
VEC_INLINE vf vf_load_odd(const uint16_t *p)
{
    const __m256i *q = (const __m256i *)p, high = _mm256_set1_epi32(-65536);
    return VF2((__m256)_mm256_and_si256(_mm256_loadu_si256(q), high),
               (__m256)_mm256_and_si256(_mm256_loadu_si256(q + 1), high));
}
VEC_INLINE vi vi_set(int32_t x)
{
    return (vi){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
VEC_INLINE vi vi_load(const int32_t *p)
{
    const __m256i *q = (const __m256i *)p;
    return (vi){_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
VEC_INLINE vi vi_dot_pairs(vi acc, vi x, vi y)
{
    return (vi){_mm256_add_epi32(acc.a, _mm256_madd_epi16(x.a, y.a)), _mm256_add_epi32(acc.b, _mm256_madd_epi16(x.b, y.b))};
}
VEC_INLINE vi vi_round(vf v)
{
    return (vi){_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b)};
}
VEC_INLINE vf vi_float(vi v)
{
    return VF2(_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b));
}
VEC_INLINE vi vi_add(vi x, vi y)
{
    return (vi){_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
}
VEC_INLINE vf vf_scale2(vf v, vi n)
{
    return VF2((__m256)_mm256_add_epi32((__m256i)v.a, _mm256_slli_epi32(n.a, 23)),
               (__m256)_mm256_add_epi32((__m256i)v.b, _mm256_slli_epi32(n.b, 23)));
}
VEC_INLINE __m128i vi_bytes(vi v)
{
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.a, v.b), 0xd8);
    return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
VEC_INLINE void vi_store_i16(int16_t *p, vi v)
{
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(_mm256_packs_epi32(v.a, v.b), 0xd8));
}
VEC_INLINE void vi_store_i24(uint8_t *p, vi v)
{
    const __m256i bytes = _mm256_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1, 0, 1, 2, 4, 5, 6, 8, 9, 10,
                                           12, 13, 14, -1, -1, -1, -1);
    uint8_t four[4][16];
    _mm256_storeu_si256((__m256i *)four[0], _mm256_shuffle_epi8(v.a, bytes));
    _mm256_storeu_si256((__m256i *)four[2], _mm256_shuffle_epi8(v.b, bytes));
    for (int i = 0; i < 4; i++)
        memcpy(p + i * 12, four[i], 12);
}
VEC_INLINE void vi_store_bytes(int8_t *p, vi v)
{
    _mm_storeu_si128((__m128i *)p, vi_bytes(v));
}
VEC_INLINE void vi_store_64(int8_t *p, const vi *v)
{
    for (int i = 0; i < 4; i++)
        vi_store_bytes(p + i * 16, v[i]);
}
VEC_INLINE vf vf_butterfly(vf v, const int step)
{
    if (step == 8)
        return VF2(_mm256_add_ps(v.b, v.a), _mm256_sub_ps(v.a, v.b));
    vf other = step == 4   ? VF2(_mm256_permute2f128_ps(v.a, v.a, 1), _mm256_permute2f128_ps(v.b, v.b, 1))
               : step == 2 ? VF2(_mm256_permute_ps(v.a, 0x4e), _mm256_permute_ps(v.b, 0x4e))
                           : VF2(_mm256_permute_ps(v.a, 0xb1), _mm256_permute_ps(v.b, 0xb1));
    vf sum = vf_add(other, v), difference = vf_sub(other, v);
    return step == 4   ? VF2(_mm256_blend_ps(sum.a, difference.a, 0xf0), _mm256_blend_ps(sum.b, difference.b, 0xf0))
           : step == 2 ? VF2(_mm256_blend_ps(sum.a, difference.a, 0xcc), _mm256_blend_ps(sum.b, difference.b, 0xcc))
                       : VF2(_mm256_blend_ps(sum.a, difference.a, 0xaa), _mm256_blend_ps(sum.b, difference.b, 0xaa));
}
VEC_INLINE vf vf_swap_pairs(vf v)
{
    return VF2(_mm256_permute_ps(v.a, 0xb1), _mm256_permute_ps(v.b, 0xb1));
}
VEC_INLINE __m256i vi_step_8(__m256i at, __m256 v, __m256 limit, int32_t step)
{
    __m256i hit = _mm256_castps_si256(_mm256_cmp_ps(v, limit, _CMP_GE_OQ));
    return _mm256_add_epi32(at, _mm256_and_si256(hit, _mm256_set1_epi32(step)));
}
VEC_INLINE vi vi_step(vi at, vf v, vf limit, int32_t step)
{
    return (vi){vi_step_8(at.a, v.a, limit.a, step), vi_step_8(at.b, v.b, limit.b, step)};
}
VEC_INLINE __m256 vf_pick_8(vf table, __m256i at)
{
    __m256 low = _mm256_permutevar8x32_ps(table.a, at), high = _mm256_permutevar8x32_ps(table.b, at);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(at, 28)));
}
VEC_INLINE vf vf_pick(vf table, vi at)
{
    return VF2(vf_pick_8(table, at.a), vf_pick_8(table, at.b));
}
VEC_INLINE void vf_halves(vf v, __m256 *low, __m256 *high)
{
    *low = v.a;
    *high = v.b;
}
VEC_INLINE void vi_halves(vi v, __m256i *low, __m256i *high)
{
    *low = v.a;
    *high = v.b;
}

#else

typedef struct {
    float v[16];
} vf;
typedef struct {
    int32_t v[16];
} vi;

#define VF_EACH(EXPRESSION) \
    do { \
        vf out; \
        for (int i = 0; i < 16; i++) \
            out.v[i] = (EXPRESSION); \
        return out; \
    } while (0)
#define VI_EACH(EXPRESSION) \
    do { \
        vi out; \
        for (int i = 0; i < 16; i++) \
            out.v[i] = (EXPRESSION); \
        return out; \
    } while (0)

VEC_INLINE float vf_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
VEC_INLINE vf vf_set(float x)
{
    VF_EACH(x);
}
VEC_INLINE vf vf_load(const float *p)
{
    VF_EACH(p[i]);
}
VEC_INLINE void vf_store(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}
VEC_INLINE vf vf_load_part(const float *p, size_t n)
{
    VF_EACH((size_t)i < n ? p[i] : 0);
}
VEC_INLINE void vf_store_part(float *p, vf v, size_t n)
{
    memcpy(p, &v, n * sizeof *p);
}
VEC_INLINE vf vf_add(vf x, vf y)
{
    VF_EACH(x.v[i] + y.v[i]);
}
VEC_INLINE vf vf_sub(vf x, vf y)
{
    VF_EACH(x.v[i] - y.v[i]);
}
VEC_INLINE vf vf_mul(vf x, vf y)
{
    VF_EACH(x.v[i] * y.v[i]);
}
VEC_INLINE vf vf_div(vf x, vf y)
{
    VF_EACH(x.v[i] / y.v[i]);
}
VEC_INLINE vf vf_fma(vf x, vf y, vf z)
{
    VF_EACH(x.v[i] * y.v[i] + z.v[i]);
}
VEC_INLINE vf vf_fused(vf x, vf y, vf z)
{
    VF_EACH(fmaf(x.v[i], y.v[i], z.v[i]));
}
VEC_INLINE vf vf_max(vf x, vf y)
{
    VF_EACH(x.v[i] > y.v[i] ? x.v[i] : y.v[i]);
}
VEC_INLINE vf vf_min(vf x, vf y)
{
    VF_EACH(x.v[i] < y.v[i] ? x.v[i] : y.v[i]);
}
VEC_INLINE vf vf_abs(vf x)
{
    VF_EACH(fabsf(x.v[i]));
}
VEC_INLINE vf vf_greater(vf x, vf y)
{
    VF_EACH(x.v[i] > y.v[i] || isnan(x.v[i]) ? x.v[i] : y.v[i]);
}
VEC_INLINE vf vf_if_less(vf x, vf limit, vf a, vf b)
{
    VF_EACH(x.v[i] < limit.v[i] ? a.v[i] : b.v[i]);
}
VEC_INLINE vf vf_lanes(vf a, vf b, size_t from, size_t to)
{
    VF_EACH((size_t)i >= from && (size_t)i < to ? a.v[i] : b.v[i]);
}
VEC_INLINE vf vf_load_f16(const uint16_t *p)
{
    VF_EACH(dtype_f16_to_f32(p[i]));
}
VEC_INLINE vf vf_load_bf16(const uint16_t *p)
{
    VF_EACH(vf_bits((uint32_t)p[i] << 16));
}
VEC_INLINE void vf_store_f16(uint16_t *p, vf v)
{
    for (int i = 0; i < 16; i++)
        p[i] = dtype_f32_to_f16(v.v[i]);
}
VEC_INLINE vf vf_load_i8(const int8_t *p)
{
    VF_EACH(p[i]);
}
VEC_INLINE vf vf_load_i24(const uint8_t *p)
{
    VF_EACH((float)(int32_t)((uint32_t)p[3 * i] << 8 | (uint32_t)p[3 * i + 1] << 16 | (uint32_t)p[3 * i + 2] << 24));
}
VEC_INLINE vf vf_load_even(const uint16_t *p)
{
    VF_EACH(vf_bits((uint32_t)p[2 * i] << 16));
}
VEC_INLINE vf vf_load_odd(const uint16_t *p)
{
    VF_EACH(vf_bits((uint32_t)p[2 * i + 1] << 16));
}
VEC_INLINE void vf_store_cut(uint16_t *p, vf v)
{
    for (int i = 0; i < 16; i++) {
        uint32_t bits;
        memcpy(&bits, &v.v[i], 4);
        p[i] = (uint16_t)(bits >> 16);
    }
}
VEC_INLINE vi vi_set(int32_t x)
{
    VI_EACH(x);
}
VEC_INLINE vi vi_load(const int32_t *p)
{
    VI_EACH(p[i]);
}
VEC_INLINE vi vi_dot_pairs(vi acc, vi x, vi y)
{
    VI_EACH((int32_t)((uint32_t)acc.v[i] + (uint32_t)((int16_t)x.v[i] * (int16_t)y.v[i]) +
                      (uint32_t)((x.v[i] >> 16) * (y.v[i] >> 16))));
}
VEC_INLINE vi vi_round(vf v)
{
    VI_EACH((int32_t)lrintf(v.v[i]));
}
VEC_INLINE vf vi_float(vi v)
{
    VF_EACH((float)v.v[i]);
}
VEC_INLINE vi vi_add(vi x, vi y)
{
    VI_EACH(x.v[i] + y.v[i]);
}
VEC_INLINE vf vf_scale2(vf v, vi n)
{
    vf out;
    for (int i = 0; i < 16; i++) {
        uint32_t bits;
        memcpy(&bits, &v.v[i], 4);
        out.v[i] = vf_bits(bits + ((uint32_t)n.v[i] << 23));
    }
    return out;
}
VEC_INLINE void vi_store_i16(int16_t *p, vi v)
{
    for (int i = 0; i < 16; i++)
        p[i] = (int16_t)v.v[i];
}
VEC_INLINE void vi_store_i24(uint8_t *p, vi v)
{
    for (int i = 0; i < 48; i++)
        p[i] = (uint8_t)((uint32_t)v.v[i / 3] >> (i % 3 * 8));
}
VEC_INLINE void vi_store_bytes(int8_t *p, vi v)
{
    for (int i = 0; i < 16; i++)
        p[i] = (int8_t)v.v[i];
}
VEC_INLINE void vi_store_64(int8_t *p, const vi *v)
{
    for (int i = 0; i < 4; i++)
        vi_store_bytes(p + i * 16, v[i]);
}
VEC_INLINE vi vi_step(vi at, vf v, vf limit, int32_t step)
{
    VI_EACH(at.v[i] + (v.v[i] >= limit.v[i] ? step : 0));
}
VEC_INLINE vf vf_pick(vf table, vi at)
{
    VF_EACH(table.v[at.v[i]]);
}
VEC_INLINE vf vf_butterfly(vf v, const int step)
{
    VF_EACH(v.v[i ^ step] + (i & step ? -v.v[i] : v.v[i]));
}
VEC_INLINE vf vf_swap_pairs(vf v)
{
    VF_EACH(v.v[i ^ 1]);
}

#endif

/* x [i, i + 16) of n floats, zeros behind them. */
VEC_INLINE vf vf_load_before(const float *x, size_t i, size_t n)
{
    return i + VF_LANES <= n ? vf_load(x + i) : i < n ? vf_load_part(x + i, n - i) : vf_set(0);
}

#if defined(__AVX2__)
/* One rounding in every set, the reference too: where results must be equal to the bit. */
VEC_INLINE vf vf_fused(vf x, vf y, vf z)
{
    return vf_fma(x, y, z);
}
#endif

VEC_INLINE void vf_store_bf16(uint16_t *p, vf v)
{
    float t[16];
    vf_store(t, v);
    for (int i = 0; i < 16; i++)
        p[i] = dtype_f32_to_bf16(t[i]);
}

/* ---- across the lanes, in one order: lane i with i + 8, then i + 4, i + 2, i + 1 ---- */

#if defined(__AVX2__)
VEC_INLINE float vf_sum(vf v)
{
    __m256 low, high;
    vf_halves(v, &low, &high);
    low = _mm256_add_ps(low, high);
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(low), _mm256_extractf128_ps(low, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
VEC_INLINE float vf_most(vf v)
{
    __m256 low, high;
    vf_halves(v, &low, &high);
    low = _mm256_max_ps(low, high);
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(low), _mm256_extractf128_ps(low, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
/* Of values without sign, NaN if one is. */
VEC_INLINE float vf_greatest(vf v)
{
    __m256 low, high;
    vf_halves(v, &low, &high);
    __m256i both = _mm256_max_epi32(_mm256_castps_si256(low), _mm256_castps_si256(high));
    __m128i s = _mm_max_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    s = _mm_max_epi32(s, _mm_unpackhi_epi64(s, s));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(s, _mm_shuffle_epi32(s, 1))));
}
VEC_INLINE int32_t vi_sum(vi v)
{
    __m256i low, high;
    vi_halves(v, &low, &high);
    low = _mm256_add_epi32(low, high);
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
#else
VEC_INLINE float vf_sum(vf x)
{
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; i++)
            x.v[i] += x.v[i + n];
    return x.v[0];
}
VEC_INLINE float vf_most(vf x)
{
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; i++)
            x.v[i] = x.v[i] > x.v[i + n] ? x.v[i] : x.v[i + n];
    return x.v[0];
}
VEC_INLINE float vf_greatest(vf x)
{
    float most = 0;
    for (int i = 0; i < 16; i++)
        most = x.v[i] > most || isnan(x.v[i]) ? x.v[i] : most;
    return most;
}
VEC_INLINE int32_t vi_sum(vi x)
{
    int32_t sum = 0;
    for (int i = 0; i < 16; i++)
        sum += x.v[i];
    return sum;
}
#endif

/* exp by 2^n times a polynomial, relative error below 2e-7; 0 below -87, and stops growing at 88. */
VEC_INLINE vf vf_exp(vf x)
{
    vf least = vf_set(-87.0f);
    vf c = vf_min(vf_set(88.0f), vf_max(least, x));
    vi n = vi_round(vf_mul(c, vf_set(1.44269504f)));
    vf whole = vi_float(n);
    vf r = vf_fma(whole, vf_set(-0x1.62e4p-1f), c);
    r = vf_fma(whole, vf_set(-0x1.7f7d1cp-20f), r);
    vf p = vf_set(1.9875691e-4f);
    p = vf_fma(p, r, vf_set(1.3981999e-3f));
    p = vf_fma(p, r, vf_set(8.3334519e-3f));
    p = vf_fma(p, r, vf_set(4.1665796e-2f));
    p = vf_fma(p, r, vf_set(1.6666665e-1f));
    p = vf_fma(p, r, vf_set(5.0000001e-1f));
    p = vf_fma(vf_mul(p, r), r, vf_add(r, vf_set(1)));
    return vf_if_less(x, least, vf_set(0), vf_scale2(p, n));
}

#endif

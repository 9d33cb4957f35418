/* Element types; see dtype.h. Block layouts as documented for GGUF. */
#include "backend/dtype.h"

#include <string.h>

#define QK 256 /* elements of a K-quant's super-block */

static const struct dtype_info infos[DTYPE_COUNT] = {
    [DTYPE_NONE] = {"none", 1, 0},
    [DTYPE_F32] = {"F32", 1, 4},
    [DTYPE_F16] = {"F16", 1, 2},
    [DTYPE_BF16] = {"BF16", 1, 2},
    [DTYPE_F64] = {"F64", 1, 8},
    [DTYPE_F8_E4M3] = {"F8_E4M3", 1, 1},
    [DTYPE_F8_E5M2] = {"F8_E5M2", 1, 1},
    [DTYPE_I8] = {"I8", 1, 1},
    [DTYPE_U8] = {"U8", 1, 1},
    [DTYPE_I16] = {"I16", 1, 2},
    [DTYPE_I32] = {"I32", 1, 4},
    [DTYPE_I64] = {"I64", 1, 8},
    [DTYPE_BOOL] = {"BOOL", 1, 1},
    [DTYPE_Q4_0] = {"Q4_0", 32, 18},
    [DTYPE_Q4_1] = {"Q4_1", 32, 20},
    [DTYPE_Q5_0] = {"Q5_0", 32, 22},
    [DTYPE_Q5_1] = {"Q5_1", 32, 24},
    [DTYPE_Q8_0] = {"Q8_0", 32, 34},
    [DTYPE_Q8_1] = {"Q8_1", 32, 36},
    [DTYPE_Q2_K] = {"Q2_K", QK, 84},
    [DTYPE_Q3_K] = {"Q3_K", QK, 110},
    [DTYPE_Q4_K] = {"Q4_K", QK, 144},
    [DTYPE_Q5_K] = {"Q5_K", QK, 176},
    [DTYPE_Q6_K] = {"Q6_K", QK, 210},
    [DTYPE_Q8_K] = {"Q8_K", QK, 292},
    [DTYPE_IQ4_NL] = {"IQ4_NL", 32, 18},
    [DTYPE_IQ4_XS] = {"IQ4_XS", QK, 136},
    [DTYPE_MXFP4] = {"MXFP4", 32, 17},
    [DTYPE_IQ2_XXS] = {"IQ2_XXS", QK, 66},
    [DTYPE_IQ2_XS] = {"IQ2_XS", QK, 74},
    [DTYPE_IQ2_S] = {"IQ2_S", QK, 82},
    [DTYPE_IQ3_XXS] = {"IQ3_XXS", QK, 98},
    [DTYPE_IQ3_S] = {"IQ3_S", QK, 110},
    [DTYPE_IQ1_S] = {"IQ1_S", QK, 50},
    [DTYPE_IQ1_M] = {"IQ1_M", QK, 56},
};

const struct dtype_info *dtype_info(enum dtype t)
{
    return &infos[t];
}

size_t dtype_bytes(enum dtype t, size_t n)
{
    size_t bytes;
    if (n % infos[t].block || __builtin_mul_overflow(n / infos[t].block, infos[t].bytes, &bytes))
        return SIZE_MAX;
    return bytes;
}

float dtype_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    uint32_t bits;
    float f;
    if (exponent == 31) {
        bits = sign | 0x7f800000u | mantissa << 13;
    } else if (exponent) {
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    } else {
        f = (float)mantissa * 0x1p-24f;
        memcpy(&bits, &f, 4);
        bits |= sign;
    }
    memcpy(&f, &bits, 4);
    return f;
}

uint16_t dtype_f32_to_f16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000u) /* rounds to 65536 or more */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x38800000u) { /* subnormal in fp16: the sum's rounding is the rounding we want */
        float magic = 0.5f, a;
        uint32_t m = magnitude;
        memcpy(&a, &m, 4);
        a += magic;
        memcpy(&m, &a, 4);
        return (uint16_t)(sign | (m - 0x3f000000u));
    }
    uint32_t odd = magnitude >> 13 & 1;
    return (uint16_t)(sign | (magnitude - 0x38000000u + 0xfff + odd) >> 13);
}

float dtype_bf16_to_f32(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

uint16_t dtype_f32_to_bf16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static float load_f16(const uint8_t *p)
{
    return dtype_f16_to_f32(load_u16(p));
}

static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t mxfp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* ---- blocks of 32 ---- */

static void block_32(enum dtype t, const uint8_t *p, float *y)
{
    float d = load_f16(p), m = 0;
    uint32_t high = 0;
    const uint8_t *q = p + 2;
    switch (t) {
    case DTYPE_Q8_0:
    case DTYPE_Q8_1:
        q += t == DTYPE_Q8_1 ? 2 : 0;
        for (int i = 0; i < 32; i++)
            y[i] = d * (float)(int8_t)q[i];
        return;
    case DTYPE_Q4_1:
        m = load_f16(p + 2);
        q += 2;
        break;
    case DTYPE_Q5_0:
        memcpy(&high, p + 2, 4);
        q += 4;
        break;
    case DTYPE_Q5_1:
        m = load_f16(p + 2);
        memcpy(&high, p + 4, 4);
        q += 6;
        break;
    default: break;
    }
    for (int i = 0; i < 16; i++) {
        int low = (q[i] & 15) | (int)(high >> i & 1) << 4, up = q[i] >> 4 | (int)(high >> (i + 16) & 1) << 4;
        switch (t) {
        case DTYPE_Q4_0:
            y[i] = d * (float)(low - 8);
            y[i + 16] = d * (float)(up - 8);
            break;
        case DTYPE_Q5_0:
            y[i] = d * (float)(low - 16);
            y[i + 16] = d * (float)(up - 16);
            break;
        case DTYPE_IQ4_NL:
            y[i] = d * iq4_values[low];
            y[i + 16] = d * iq4_values[up];
            break;
        default: y[i] = d * (float)low + m; y[i + 16] = d * (float)up + m;
        }
    }
}

static void block_mxfp4(const uint8_t *p, float *y)
{
    uint32_t bits = p[0] >= 2 ? (uint32_t)(p[0] - 1) << 23 : 0x00200000u << p[0];
    float d;
    memcpy(&d, &bits, 4);
    for (int i = 0; i < 16; i++) {
        y[i] = d * mxfp4_values[p[1 + i] & 15];
        y[i + 16] = d * mxfp4_values[p[1 + i] >> 4];
    }
}

/* ---- K-quants: super-blocks of 256 ---- */

static void block_q2_k(const uint8_t *p, float *y)
{
    const uint8_t *scales = p, *q = p + 16;
    float d = load_f16(p + 80), m = load_f16(p + 82);
    for (int half = 0; half < 2; half++, q += 32)
        for (int shift = 0; shift < 8; shift += 2)
            for (int part = 0; part < 2; part++, scales++) {
                float dl = d * (float)(*scales & 15), ml = m * (float)(*scales >> 4);
                for (int i = 0; i < 16; i++)
                    *y++ = dl * (float)(q[part * 16 + i] >> shift & 3) - ml;
            }
}

static void block_q3_k(const uint8_t *p, float *y)
{
    const uint8_t *high = p, *q = p + 32, *s = p + 96;
    float d = load_f16(p + 108);
    int at = 0;
    for (int half = 0; half < 2; half++, q += 32)
        for (int shift = 0; shift < 4; shift++)
            for (int part = 0; part < 2; part++, at++) {
                int low = at < 8 ? s[at] & 15 : s[at - 8] >> 4, up = s[8 + at % 4] >> at / 4 * 2 & 3;
                float dl = d * (float)((low | up << 4) - 32);
                for (int i = 0; i < 16; i++) {
                    int k = part * 16 + i;
                    *y++ = dl * (float)((q[k] >> shift * 2 & 3) - (high[k] >> (half * 4 + shift) & 1 ? 0 : 4));
                }
            }
}

/* The 6-bit scale and min number j of Q4_K and Q5_K. */
static void scale_min(const uint8_t *s, int j, int *scale, int *min)
{
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *min = s[j + 4] >> 4 | (s[j] >> 6) << 4;
    }
}

static void block_q45_k(enum dtype t, const uint8_t *p, float *y)
{
    float d = load_f16(p), m = load_f16(p + 2);
    const uint8_t *high = p + 16, *q = p + (t == DTYPE_Q5_K ? 48 : 16);
    for (int j = 0; j < 8; j++) {
        int scale, min;
        scale_min(p + 4, j, &scale, &min);
        float dl = d * (float)scale, ml = m * (float)min;
        const uint8_t *bytes = q + j / 2 * 32;
        for (int i = 0; i < 32; i++) {
            int v = j % 2 ? bytes[i] >> 4 : bytes[i] & 15;
            if (t == DTYPE_Q5_K)
                v += high[i] >> j & 1 ? 16 : 0;
            *y++ = dl * (float)v - ml;
        }
    }
}

static void block_q6_k(const uint8_t *p, float *y)
{
    const uint8_t *low = p, *high = p + 128;
    const int8_t *scales = (const int8_t *)p + 192;
    float d = load_f16(p + 208);
    for (int half = 0; half < 2; half++, y += 128, low += 64, high += 32, scales += 8)
        for (int part = 0; part < 4; part++)
            for (int i = 0; i < 32; i++) {
                uint8_t l = low[part % 2 * 32 + i];
                int v = (part < 2 ? l & 15 : l >> 4) | (high[i] >> part * 2 & 3) << 4;
                y[part * 32 + i] = d * (float)scales[part * 2 + i / 16] * (float)(v - 32);
            }
}

static void block_q8_k(const uint8_t *p, float *y)
{
    float d;
    memcpy(&d, p, 4);
    for (int i = 0; i < QK; i++)
        y[i] = d * (float)(int8_t)p[4 + i];
}

static void block_iq4_xs(const uint8_t *p, float *y)
{
    float d = load_f16(p);
    unsigned high = load_u16(p + 2);
    for (int j = 0; j < 8; j++) {
        int s = (p[4 + j / 2] >> j % 2 * 4 & 15) | (int)(high >> j * 2 & 3) << 4;
        float dl = d * (float)(s - 32);
        const uint8_t *q = p + 8 + j * 16;
        for (int i = 0; i < 16; i++) {
            y[j * 32 + i] = dl * iq4_values[q[i] & 15];
            y[j * 32 + i + 16] = dl * iq4_values[q[i] >> 4];
        }
    }
}

static float f8_value(uint8_t v, int exponent_bits)
{
    int mantissa_bits = 7 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
    int exponent = (v & 0x7f) >> mantissa_bits, mantissa = v & ((1 << mantissa_bits) - 1);
    float sign = v & 0x80 ? -1 : 1, step = 1.0f / (float)(1 << mantissa_bits);
    if (exponent_bits == 4 && (v & 0x7f) == 0x7f)
        return __builtin_nanf("");
    if (exponent_bits == 5 && exponent == 31)
        return mantissa ? __builtin_nanf("") : sign * __builtin_inff();
    if (exponent == 0)
        return sign * (float)mantissa * step * __builtin_ldexpf(1, 1 - bias);
    return sign * (1 + (float)mantissa * step) * __builtin_ldexpf(1, exponent - bias);
}

static bool scalars_to_f32(enum dtype t, const uint8_t *p, size_t n, float *dst)
{
    switch (t) {
    case DTYPE_F32: memcpy(dst, p, n * 4); return true;
    case DTYPE_F16:
        for (size_t i = 0; i < n; i++)
            dst[i] = load_f16(p + i * 2);
        return true;
    case DTYPE_BF16:
        for (size_t i = 0; i < n; i++)
            dst[i] = dtype_bf16_to_f32(load_u16(p + i * 2));
        return true;
    case DTYPE_F64:
        for (size_t i = 0; i < n; i++) {
            double v;
            memcpy(&v, p + i * 8, 8);
            dst[i] = (float)v;
        }
        return true;
    case DTYPE_F8_E4M3:
    case DTYPE_F8_E5M2:
        for (size_t i = 0; i < n; i++)
            dst[i] = f8_value(p[i], t == DTYPE_F8_E4M3 ? 4 : 5);
        return true;
    default: return false;
    }
}

bool dtype_to_f32(enum dtype t, const void *src, size_t n, float *dst)
{
    const uint8_t *p = src;
    const struct dtype_info *info = &infos[t];
    if (info->block == 1)
        return scalars_to_f32(t, p, n, dst);
    for (size_t i = 0; i < n; i += info->block, p += info->bytes, dst += info->block) {
        switch (t) {
        case DTYPE_Q4_0:
        case DTYPE_Q4_1:
        case DTYPE_Q5_0:
        case DTYPE_Q5_1:
        case DTYPE_Q8_0:
        case DTYPE_Q8_1:
        case DTYPE_IQ4_NL: block_32(t, p, dst); break;
        case DTYPE_MXFP4: block_mxfp4(p, dst); break;
        case DTYPE_Q2_K: block_q2_k(p, dst); break;
        case DTYPE_Q3_K: block_q3_k(p, dst); break;
        case DTYPE_Q4_K:
        case DTYPE_Q5_K: block_q45_k(t, p, dst); break;
        case DTYPE_Q6_K: block_q6_k(p, dst); break;
        case DTYPE_Q8_K: block_q8_k(p, dst); break;
        case DTYPE_IQ4_XS: block_iq4_xs(p, dst); break;
        default: return false;
        }
    }
    return true;
}

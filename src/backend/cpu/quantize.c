/* Floats into integer codes, for profiles that trade exactness for bytes. Groups of inputs of one output share a scale,
 * held as fp16; codes are chosen for the scale as it is held. */
#include "backend/cpu/cpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* NormalFloat4 (Dettmers et al., QLoRA, appendix E): quantiles of a normal distribution, times 127. */
const int8_t cpu_codebook_nf4[16] = {-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127};

static float most_of(const float *x, size_t n)
{
    float most = 0;
    for (size_t i = 0; i < n; i++)
        most = fmaxf(most, fabsf(x[i]));
    return most;
}

/* The least fp16 that is not below x. */
static float half_above(float x)
{
    uint16_t half = dtype_f32_to_f16(x);
    return dtype_f16_to_f32(dtype_f16_to_f32(half) < x ? (uint16_t)(half + 1) : half);
}

static void quantize_int8(const float *x, size_t n, int8_t *codes, float *scale)
{
    float s = half_above(most_of(x, n) / 127), inverse = s > 0 ? 1 / s : 0;
    for (size_t i = 0; i < n; i++)
        codes[i] = (int8_t)lrintf(fminf(fmaxf(x[i] * inverse, -127), 127));
    *scale = s;
}

/* Sum of squared errors with scale s; codes (nibbles) when not NULL. */
static float try_scale(const float *x, size_t n, float s, const struct cpu_nearest *table, int8_t *codes)
{
    float inverse = 1 / s, error = 0;
    for (size_t i = 0; i < n; i++) {
        uint8_t nibble = table->nibble[(int)lrintf(fminf(fmaxf(x[i] * inverse, -127), 127)) + 127];
        float e = x[i] - s * (float)table->codebook[nibble];
        error += e * e;
        if (codes)
            codes[i] = (int8_t)nibble;
    }
    return error;
}

/* The codebook is not symmetric and its outermost codes are rare: of a few scales of both signs, the one with the least
 * squared error. */
static void quantize_table(const float *x, size_t n, const struct cpu_nearest *table, int8_t *codes, float *scale)
{
    static const float shares[] = {1, 0.96f, 0.92f, 0.88f, 0.84f};
    float most = most_of(x, n), best = 0, least = INFINITY;
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++)
        for (float sign = -1; sign <= 1; sign += 2) {
            float s = dtype_f16_to_f32(dtype_f32_to_f16(sign * shares[i] * most / 127));
            float error = s != 0 ? try_scale(x, n, s, table, NULL) : INFINITY;
            if (error < least) {
                least = error;
                best = s;
            }
        }
    *scale = best;
    if (best != 0)
        try_scale(x, n, best, table, codes);
    else
        memset(codes, table->nibble[127], n);
}

void cpu_nearest_init(struct cpu_nearest *table, const int8_t *codebook)
{
    memcpy(table->codebook, codebook, sizeof table->codebook);
    for (int v = -127; v <= 127; v++) {
        int best = 0;
        for (int c = 1; c < 16; c++)
            if (abs(codebook[c] - v) < abs(codebook[best] - v))
                best = c;
        table->nibble[v + 127] = (uint8_t)best;
    }
}

void cpu_rotate(float *x)
{
    for (size_t step = 1; step < CPU_TILE_K; step *= 2)
        for (size_t i = 0; i < CPU_TILE_K; i++)
            if (!(i & step)) {
                float a = x[i], b = x[i + step];
                x[i] = a + b;
                x[i + step] = a - b;
            }
    for (size_t i = 0; i < CPU_TILE_K; i++)
        x[i] *= 0.125f;
}

void cpu_quantize_row(const struct weight *w, const struct cpu_nearest *table, float *x, int8_t *codes, float *scales)
{
    size_t padded = cpu_padded_in(w);
    for (size_t at = 0; at < padded && w->rotated; at += CPU_TILE_K)
        cpu_rotate(x + at);
    for (size_t at = 0, g = 0; at < padded; at += w->group, g++) {
        if (w->layout == WEIGHT_I8)
            quantize_int8(x + at, w->group, codes + at, &scales[g]);
        else
            quantize_table(x + at, w->group, table, codes + at, &scales[g]);
    }
}

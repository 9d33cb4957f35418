/* Floats into integer codes, for profiles that trade exactness for bytes. Groups of inputs of one output share a scale,
 * held as fp16; codes are chosen for the scale as it is held. Every set gives the same bytes: packed weights do not depend on
 * the machine that packed them. */
#ifndef INFERD_BACKEND_CPU_KERNELS_QUANTIZE_H
#define INFERD_BACKEND_CPU_KERNELS_QUANTIZE_H

#include "backend/cpu/kernels_linear.h"

/* The least fp16 that is not below x. */
static float half_above(float x)
{
    uint16_t half = dtype_f32_to_f16(x);
    return dtype_f16_to_f32(dtype_f16_to_f32(half) < x ? (uint16_t)(half + 1) : half);
}

static float quantize_bytes(const float *x, size_t n, int8_t *codes)
{
    float s = half_above(most_of(x, n) / 127);
    vf inverse = vf_set(s > 0 ? 1 / s : 0), least = vf_set(-127), most = vf_set(127);
    for (size_t i = 0; i < n; i += VF_LANES)
        vi_store_bytes(codes + i, vi_round(vf_min(vf_max(vf_mul(vf_load(x + i), inverse), least), most)));
    return s;
}

/* Sixteen codes, ascending, and the middles of neighbours; the last lane of `middle` is never asked for. */
struct codebook {
    vf code, middle;
};

/* How many middles are not above v: the nearest code. */
VEC_INLINE vi codebook_nearest(struct codebook b, vf v)
{
    const vi one = vi_set(1), three = vi_set(3), seven = vi_set(7);
    vi at = vi_step(vi_set(0), v, vf_pick(b.middle, seven), 8);
    at = vi_step(at, v, vf_pick(b.middle, vi_add(at, three)), 4);
    at = vi_step(at, v, vf_pick(b.middle, vi_add(at, one)), 2);
    return vi_step(at, v, vf_pick(b.middle, at), 1);
}

VEC_INLINE float codebook_error(struct codebook b, const float *x, size_t n, float s)
{
    vf inverse = vf_set(1 / s), minus = vf_set(-s), error = vf_set(0);
    for (size_t i = 0; i < n; i += VF_LANES) {
        vf v = vf_load(x + i);
        vf e = vf_fused(minus, vf_pick(b.code, codebook_nearest(b, vf_mul(v, inverse))), v);
        error = vf_fused(e, e, error);
    }
    return vf_sum(error);
}

/* The codebook is not symmetric and its outermost codes are rare: of a few scales of both signs, the one with the least
 * squared error. A scale that is not finite, as of values that are not, stays. */
static float quantize_codebook(struct codebook b, const float *x, size_t n, int8_t *codes)
{
    static const float shares[] = {1, 0.96f, 0.92f, 0.88f, 0.84f};
    float most = most_of(x, n), best = dtype_f16_to_f32(dtype_f32_to_f16(most / 127)), least = INFINITY;
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++)
        for (float sign = -1; sign <= 1; sign += 2) {
            float s = dtype_f16_to_f32(dtype_f32_to_f16(sign * shares[i] * most / 127));
            float error = s != 0 ? codebook_error(b, x, n, s) : INFINITY;
            if (error < least) {
                least = error;
                best = s;
            }
        }
    vf inverse = vf_set(best != 0 ? 1 / best : 0);
    for (size_t i = 0; i < n; i += VF_LANES)
        vi_store_bytes(codes + i, codebook_nearest(b, vf_mul(vf_load(x + i), inverse)));
    return best;
}

static void quantize_weights(const struct weight *w, float *x, int8_t *codes, float *scales)
{
    size_t padded = cpu_padded_in(w);
    float code[16], middle[16] = {0};
    for (int i = 0; i < 16; i++)
        code[i] = w->codebook[i];
    for (int i = 0; i < 15; i++)
        middle[i] = (code[i] + code[i + 1]) / 2;
    struct codebook b = {vf_load(code), vf_load(middle)};
    for (size_t at = 0; at < padded && w->rotated; at += CPU_TILE_K)
        rotate(x + at);
    for (size_t at = 0; at < padded; at += w->group)
        *scales++ = w->layout == WEIGHT_I8 ? quantize_bytes(x + at, w->group, codes + at)
                                           : quantize_codebook(b, x + at, w->group, codes + at);
}

#endif

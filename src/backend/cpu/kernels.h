/* Every kernel once, over vec.h; each instruction set's file includes this and gets its own table.
 * Here: the row operations. Products: kernels_linear.h; attention: kernels_attend.h; packing: kernels_quantize.h. */
#ifndef INFERD_BACKEND_CPU_KERNELS_H
#define INFERD_BACKEND_CPU_KERNELS_H

#include "backend/cpu/kernels_attend.h"
#include "backend/cpu/kernels_linear.h"
#include "backend/cpu/kernels_quantize.h"

/* The vector at p of which n lanes are inside the row. */
VEC_INLINE vf row_load(const float *p, size_t n)
{
    return n >= VF_LANES ? vf_load(p) : vf_load_part(p, n);
}

VEC_INLINE void row_store(float *p, vf v, size_t n)
{
    if (n >= VF_LANES)
        vf_store(p, v);
    else
        vf_store_part(p, v, n);
}

static float sum_of_squares(const float *x, size_t n)
{
    vf sum = vf_set(0);
    for (size_t i = 0; i < n; i += VF_LANES) {
        vf v = row_load(x + i, n - i);
        sum = vf_fma(v, v, sum);
    }
    return vf_sum(sum);
}

static void rms_row(const float *x, size_t width, const float *weight, float offset, float eps, float *y)
{
    vf scale = vf_set(1.0f / sqrtf(sum_of_squares(x, width) / (float)width + eps));
    for (size_t i = 0; i < width; i += VF_LANES) {
        vf w = vf_add(row_load(weight + i, width - i), vf_set(offset));
        row_store(y + i, vf_mul(vf_mul(row_load(x + i, width - i), scale), w), width - i);
    }
}

static void layer_row(const float *x, size_t width, const float *weight, const float *bias, float eps, float *y)
{
    double total = 0;
    for (size_t i = 0; i < width; i++)
        total += x[i];
    vf mean = vf_set((float)(total / (double)width)), sum = vf_set(0);
    for (size_t i = 0; i < width; i += VF_LANES) {
        vf v = vf_sub(row_load(x + i, width - i), mean);
        if (width - i < VF_LANES)
            v = vf_lanes(v, vf_set(0), 0, width - i);
        sum = vf_fma(v, v, sum);
    }
    vf scale = vf_set(1.0f / sqrtf(vf_sum(sum) / (float)width + eps));
    for (size_t i = 0; i < width; i += VF_LANES) {
        vf v = vf_mul(vf_sub(row_load(x + i, width - i), mean), scale);
        vf w = weight ? row_load(weight + i, width - i) : vf_set(1);
        row_store(y + i, vf_fma(v, w, bias ? row_load(bias + i, width - i) : vf_set(0)), width - i);
    }
}

/* (a, b) -> (a cos - b sin, b cos + a sin), 16 pairs of all heads at a time. */
static void rope_row(float *x, size_t n_heads, size_t head_dim, size_t n_pairs, int interleaved, const float *table)
{
    for (size_t p = 0; p < n_pairs; p += VF_LANES) {
        const size_t n = n_pairs - p < VF_LANES ? n_pairs - p : VF_LANES;
        float cosines[2 * VF_LANES] = {0}, sines[2 * VF_LANES] = {0}, minus[VF_LANES] = {0};
        for (size_t i = 0; i < n; i++) {
            const float c = table[(p + i) * 2], s = table[(p + i) * 2 + 1];
            if (interleaved) {
                cosines[2 * i] = cosines[2 * i + 1] = c;
                sines[2 * i] = -s;
                sines[2 * i + 1] = s;
            } else {
                cosines[i] = c;
                sines[i] = s;
                minus[i] = -s;
            }
        }
        float *head = x + (interleaved ? 2 * p : p);
        for (size_t h = 0; h < n_heads; h++, head += head_dim)
            if (interleaved) {
                for (size_t i = 0; i < 2 * n; i += VF_LANES) {
                    vf v = row_load(head + i, 2 * n - i);
                    v = vf_fused(v, vf_load(cosines + i), vf_mul(vf_swap_pairs(v), vf_load(sines + i)));
                    row_store(head + i, v, 2 * n - i);
                }
            } else {
                vf a = row_load(head, n), b = row_load(head + n_pairs, n), c = vf_load(cosines);
                row_store(head, vf_fused(a, c, vf_mul(b, vf_load(minus))), n);
                row_store(head + n_pairs, vf_fused(b, c, vf_mul(a, vf_load(sines))), n);
            }
    }
}

/* erfc(|z|) = t * polynomial(t) * exp(-z^2), t = 1 / (1 + 0.3275911 |z|): Abramowitz and Stegun 7.1.26, error 1.5e-7. */
VEC_INLINE vf gelu_erf(vf x)
{
    vf z = vf_mul(vf_abs(x), vf_set(0.70710678f)), one = vf_set(1), zero = vf_set(0);
    vf t = vf_div(one, vf_fma(z, vf_set(0.3275911f), one));
    vf p = vf_set(1.061405429f);
    p = vf_fma(p, t, vf_set(-1.453152027f));
    p = vf_fma(p, t, vf_set(1.421413741f));
    p = vf_fma(p, t, vf_set(-0.284496736f));
    p = vf_fma(p, t, vf_set(0.254829592f));
    vf half = vf_mul(vf_mul(x, vf_set(0.5f)), vf_mul(vf_mul(p, t), vf_exp(vf_mul(vf_mul(z, z), vf_set(-1)))));
    return vf_if_less(x, zero, half, vf_sub(x, half));
}

VEC_INLINE vf sigmoid_times(vf x, vf minus)
{
    return vf_div(x, vf_add(vf_set(1), vf_exp(minus)));
}

VEC_INLINE vf act_of(const enum activation act, vf x)
{
    switch (act) {
    case ACT_SILU: return sigmoid_times(x, vf_mul(x, vf_set(-1)));
    case ACT_GELU_QUICK: return sigmoid_times(x, vf_mul(x, vf_set(-1.702f)));
    case ACT_RELU: return vf_max(vf_set(0), x);
    case ACT_GELU_TANH: { /* 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)), u = 0.7978 (x + 0.044715 x^3) */
        vf cube = vf_mul(vf_mul(x, x), x);
        return sigmoid_times(x, vf_mul(vf_fma(cube, vf_set(0.044715f), x), vf_set(-1.59576912f)));
    }
    default: return gelu_erf(x);
    }
}

VEC_INLINE void gated_act(const enum activation act, const float *gate, const float *up, size_t width, float *y)
{
    for (size_t i = 0; i < width; i += VF_LANES) {
        vf g = act_of(act, row_load(gate + i, width - i));
        row_store(y + i, up ? vf_mul(g, row_load(up + i, width - i)) : g, width - i);
    }
}

/* y = act(gate) * up; without `up` only act(gate). */
static void gated_row(enum activation act, const float *gate, const float *up, size_t width, float *y)
{
    switch (act) {
    case ACT_SILU: gated_act(ACT_SILU, gate, up, width, y); break;
    case ACT_GELU_TANH: gated_act(ACT_GELU_TANH, gate, up, width, y); break;
    case ACT_GELU_ERF: gated_act(ACT_GELU_ERF, gate, up, width, y); break;
    case ACT_RELU: gated_act(ACT_RELU, gate, up, width, y); break;
    case ACT_GELU_QUICK: gated_act(ACT_GELU_QUICK, gate, up, width, y); break;
    }
}

static void activate_row(enum activation act, float *x, size_t width)
{
    gated_row(act, x, NULL, width, x);
}

static void add_row(const float *x, size_t n, float scale, float *y)
{
    for (size_t i = 0; i < n; i += VF_LANES)
        row_store(y + i, vf_fma(row_load(x + i, n - i), vf_set(scale), row_load(y + i, n - i)), n - i);
}

static void embed_row(const struct weight *w, size_t out, float scale, float *y)
{
    size_t padded = cpu_padded_in(w), lane = out % CPU_PANEL, base = out / CPU_PANEL * padded * CPU_PANEL;
    const uint16_t *halves = (const uint16_t *)w->data + base;
    if (w->layout == WEIGHT_F32)
        for (size_t k = 0; k < w->n_in; k++)
            y[k] = ((const float *)w->data + base)[k * CPU_PANEL + lane] * scale;
    else if (w->layout == WEIGHT_BF16)
        for (size_t k = 0; k < w->n_in; k++)
            y[k] = dtype_bf16_to_f32(halves[(k / 2 * CPU_PANEL + lane) * 2 + k % 2]) * scale;
    else if (w->layout == WEIGHT_F16)
        for (size_t k = 0; k < w->n_in; k += VF_LANES) {
            uint16_t row[VF_LANES] = {0};
            size_t n = w->n_in - k < VF_LANES ? w->n_in - k : VF_LANES;
            for (size_t i = 0; i < n; i++)
                row[i] = halves[(k + i) * CPU_PANEL + lane];
            row_store(y + k, vf_mul(vf_load_f16(row), vf_set(scale)), n);
        }
    else if (w->rotated)
        for (size_t k = 0; k < w->n_in; k += CPU_TILE_K) {
            float block[CPU_TILE_K];
            for (size_t i = 0; i < CPU_TILE_K; i++)
                block[i] = cpu_weight_cell(w, out, k + i);
            rotate(block);
            for (size_t i = 0; i < CPU_TILE_K && k + i < w->n_in; i++)
                y[k + i] = block[i] * scale;
        }
    else
        for (size_t k = 0; k < w->n_in; k++)
            y[k] = weight_at(w, out, k) * scale;
}

#if defined(CPU_TILES)
#define CPU_SPLIT split_row
#else
#define CPU_SPLIT NULL
#endif

#define CPU_KERNELS(NAME) \
    { \
        .name = NAME, .linear = linear_panels, .quantize = quantize_row, .split = CPU_SPLIT, .attend = attend, \
        .attend_merge = attend_merge, .attend_end = attend_end, .rms_norm = rms_row, .layer_norm = layer_row, \
        .rope = rope_row, .gated = gated_row, .activate = activate_row, .add = add_row, .embed = embed_row, \
        .narrow = kv_narrow, .narrow_query = narrow_query, .quantize_weights = quantize_weights \
    }

#endif

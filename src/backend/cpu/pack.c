/* Weights into the layouts that the kernels stream; see backend.h. */
#include "backend/cpu/cpu.h"

#include <stdlib.h>
#include <string.h>

static const int8_t codebook_nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t codebook_mx[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* How an integer type is held: what weight_plan and decode_row agree on. */
static bool integer_form(enum dtype t, struct weight *w)
{
    w->group = 32;
    w->layout = WEIGHT_I8;
    switch (t) {
    case DTYPE_Q4_0:
        w->layout = WEIGHT_I4;
        for (int i = 0; i < 16; i++)
            w->codebook[i] = (int8_t)(i - 8);
        return true;
    case DTYPE_Q4_1:
    case DTYPE_Q4_K:
        w->layout = WEIGHT_I4;
        w->has_min = 1;
        for (int i = 0; i < 16; i++)
            w->codebook[i] = (int8_t)i;
        return true;
    case DTYPE_IQ4_NL:
        w->layout = WEIGHT_I4;
        memcpy(w->codebook, codebook_nl, 16);
        return true;
    case DTYPE_MXFP4:
        w->layout = WEIGHT_I4;
        memcpy(w->codebook, codebook_mx, 16);
        return true;
    case DTYPE_Q5_1:
    case DTYPE_Q5_K:
        w->has_min = 1;
        return true;
    case DTYPE_Q5_0:
    case DTYPE_Q8_0:
        return true;
    case DTYPE_Q6_K:
        w->group = 16;
        return true;
    default:
        return false;
    }
}

static bool plan_bytes(struct weight *w, struct err *err)
{
    size_t panels = cpu_panels(w), in = cpu_padded_in(w), cells;
    bool over = __builtin_mul_overflow(panels * CPU_PANEL, in, &cells);
    size_t groups = w->group ? in / w->group : 0;
    size_t scale_bytes = panels * groups * CPU_PANEL * sizeof(float) * (w->has_min ? 2 : 1);
    size_t code_bytes = 0;
    switch (w->layout) {
    case WEIGHT_F32: over |= __builtin_mul_overflow(cells, 4, &code_bytes); break;
    case WEIGHT_F16:
    case WEIGHT_BF16: over |= __builtin_mul_overflow(cells, 2, &code_bytes); break;
    case WEIGHT_I8: code_bytes = cells; break;
    case WEIGHT_I4: code_bytes = cells / 2; break;
    }
    if (over || code_bytes > SIZE_MAX / 2)
        return err_set(err, ERR_MODEL_DAMAGED, "A matrix of %zu x %zu is larger than memory can be.", w->n_out, w->n_in);
    w->bytes = (code_bytes + 63) / 64 * 64 + scale_bytes;
    return true;
}

bool weight_plan(enum dtype t, size_t n_out, size_t n_in, int exact_activations, struct weight *w, int *lossy,
                 struct err *err)
{
    memset(w, 0, sizeof *w);
    if (lossy)
        *lossy = t == DTYPE_F64;
    if (n_out == 0 || n_in == 0 || n_out > SIZE_MAX / 64 || n_in > SIZE_MAX / 64)
        return err_set(err, ERR_MODEL_DAMAGED, "A matrix of %zu x %zu cannot be.", n_out, n_in);
    if (n_in % dtype_info(t)->block)
        return err_set(err, ERR_MODEL_DAMAGED, "Rows of %zu elements are not whole %s blocks of %zu.", n_in,
                       dtype_info(t)->name, dtype_info(t)->block);
    float probe[256];
    uint8_t zeros[512] = {0};
    if (!dtype_to_f32(t, zeros, dtype_info(t)->block, probe))
        return err_set(err, ERR_MODEL_UNSUPPORTED, "Weights of type %s are not supported.", dtype_info(t)->name);
    w->n_out = n_out;
    w->n_in = n_in;
    if (!exact_activations && integer_form(t, w))
        return plan_bytes(w, err);
    w->group = 0;
    w->has_min = 0;
    w->layout = t == DTYPE_F16 || t == DTYPE_F8_E4M3 || t == DTYPE_F8_E5M2 ? WEIGHT_F16
                : t == DTYPE_BF16                                         ? WEIGHT_BF16
                                                                          : WEIGHT_F32;
    return plan_bytes(w, err);
}

void weight_attach(struct weight *w, void *memory)
{
    size_t in = cpu_padded_in(w), cells = cpu_panels(w) * CPU_PANEL * in;
    w->data = memory;
    w->scales = w->mins = NULL;
    if (!w->group)
        return;
    size_t code_bytes = w->layout == WEIGHT_I4 ? cells / 2 : cells;
    w->scales = (float *)((char *)memory + (code_bytes + 63) / 64 * 64);
    if (w->has_min)
        w->mins = w->scales + cpu_panels(w) * (in / w->group) * CPU_PANEL;
}

/* ---- one source row ---- */

static uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

/* Codes (I8: signed bytes; I4: nibbles) of one block of 32. */
static void decode_32(enum dtype t, const uint8_t *p, int8_t *codes, float *scale, float *min)
{
    *scale = dtype_f16_to_f32(load_u16(p));
    *min = 0;
    uint32_t high = 0;
    const uint8_t *q = p + 2;
    int bias = 0;
    switch (t) {
    case DTYPE_Q8_0:
        memcpy(codes, q, 32);
        return;
    case DTYPE_Q4_1:
        *min = dtype_f16_to_f32(load_u16(p + 2));
        q += 2;
        break;
    case DTYPE_Q5_0:
        memcpy(&high, q, 4);
        q += 4;
        bias = 16;
        break;
    case DTYPE_Q5_1:
        *min = dtype_f16_to_f32(load_u16(p + 2));
        memcpy(&high, p + 4, 4);
        q += 6;
        break;
    case DTYPE_MXFP4: {
        uint32_t bits = p[0] >= 2 ? (uint32_t)(p[0] - 1) << 23 : 0x00200000u << p[0];
        memcpy(scale, &bits, 4);
        q = p + 1;
        break;
    }
    default:
        break;
    }
    for (int i = 0; i < 16; i++) {
        codes[i] = (int8_t)(((q[i] & 15) | (int)(high >> i & 1) << 4) - bias);
        codes[i + 16] = (int8_t)((q[i] >> 4 | (int)(high >> (i + 16) & 1) << 4) - bias);
    }
}

static void decode_k(enum dtype t, const uint8_t *p, int8_t *codes, float *scales, float *mins)
{
    float d = dtype_f16_to_f32(load_u16(p)), m = dtype_f16_to_f32(load_u16(p + 2));
    const uint8_t *s = p + 4, *high = p + 16, *q = p + (t == DTYPE_Q5_K ? 48 : 16);
    for (int j = 0; j < 8; j++) {
        int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        int min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
        scales[j] = d * (float)scale;
        mins[j] = -(m * (float)min);
        for (int i = 0; i < 32; i++) {
            int v = j % 2 ? q[j / 2 * 32 + i] >> 4 : q[j / 2 * 32 + i] & 15;
            if (t == DTYPE_Q5_K)
                v += high[i] >> j & 1 ? 16 : 0;
            codes[j * 32 + i] = (int8_t)v;
        }
    }
}

static void decode_q6_k(const uint8_t *p, int8_t *codes, float *scales)
{
    const int8_t *s = (const int8_t *)p + 192;
    float d = dtype_f16_to_f32(load_u16(p + 208));
    for (int i = 0; i < 16; i++)
        scales[i] = d * (float)s[i];
    for (int i = 0; i < 256; i++) {
        int half = i / 128, part = i / 32 % 4, k = i % 32;
        uint8_t low = p[half * 64 + part % 2 * 32 + k], up = p[128 + half * 32 + k];
        codes[i] = (int8_t)(((part < 2 ? low & 15 : low >> 4) | (up >> part * 2 & 3) << 4) - 32);
    }
}

static void decode_row(enum dtype t, const uint8_t *p, size_t n_in, int8_t *codes, float *scales, float *mins)
{
    const struct dtype_info *info = dtype_info(t);
    for (size_t k = 0; k < n_in; k += info->block, p += info->bytes) {
        if (t == DTYPE_Q6_K)
            decode_q6_k(p, codes + k, scales + k / 16);
        else if (info->block == 256)
            decode_k(t, p, codes + k, scales + k / 32, mins + k / 32);
        else
            decode_32(t, p, codes + k, scales + k / 32, mins + k / 32);
    }
}

/* Where the code of (out, in) lies in the integer layouts; for I4 `*high` tells which nibble. */
static size_t code_at(const struct weight *w, size_t out, size_t in, int *high)
{
    size_t panel = out / CPU_PANEL, lane = out % CPU_PANEL, tile = in / CPU_TILE_K, quad = in % CPU_TILE_K / 4;
    size_t tiles = cpu_padded_in(w) / CPU_TILE_K;
    *high = 0;
    if (w->layout == WEIGHT_I4) {
        *high = quad >= CPU_QUADS_TILE / 2;
        quad %= CPU_QUADS_TILE / 2;
        return ((panel * tiles + tile) * (CPU_QUADS_TILE / 2) + quad) * 64 + lane * 4 + in % 4;
    }
    return ((panel * tiles + tile) * CPU_QUADS_TILE + quad) * 64 + lane * 4 + in % 4;
}

struct pack {
    struct weight *w;
    enum dtype t;
    const uint8_t *src;
    size_t row_bytes, first;
    _Atomic int failed;
};

static void pack_int_row(const struct pack *p, size_t row, int8_t *codes, float *scales, float *mins)
{
    struct weight *w = p->w;
    size_t out = p->first + row, groups = cpu_padded_in(w) / w->group, used = w->n_in / w->group;
    decode_row(p->t, p->src + row * p->row_bytes, w->n_in, codes, scales, mins);
    uint8_t *data = w->data;
    for (size_t k = 0; k < w->n_in; k++) {
        int high;
        size_t at = code_at(w, out, k, &high);
        if (w->layout == WEIGHT_I8)
            data[at] = (uint8_t)codes[k];
        else
            data[at] = (uint8_t)(high ? (data[at] & 0x0f) | codes[k] << 4 : (data[at] & 0xf0) | (codes[k] & 15));
    }
    for (size_t g = 0; g < used; g++) {
        size_t at = (out / CPU_PANEL * groups + g) * CPU_PANEL + out % CPU_PANEL;
        w->scales[at] = scales[g];
        if (w->has_min)
            w->mins[at] = mins[g];
    }
}

static void pack_float_row(const struct pack *p, size_t row, float *values)
{
    struct weight *w = p->w;
    size_t out = p->first + row, in = cpu_padded_in(w), lane = out % CPU_PANEL;
    size_t base = out / CPU_PANEL * in * CPU_PANEL;
    dtype_to_f32(p->t, p->src + row * p->row_bytes, w->n_in, values);
    for (size_t k = 0; k < w->n_in; k++) {
        if (w->layout == WEIGHT_F32)
            ((float *)w->data)[base + k * CPU_PANEL + lane] = values[k];
        else if (w->layout == WEIGHT_F16)
            ((uint16_t *)w->data)[base + k * CPU_PANEL + lane] = dtype_f32_to_f16(values[k]);
        else
            ((uint16_t *)w->data)[base + (k / 2 * CPU_PANEL + lane) * 2 + k % 2] = dtype_f32_to_bf16(values[k]);
    }
}

static void pack_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    struct pack *p = arg;
    size_t in = cpu_padded_in(p->w);
    float *values = malloc(in * 3 * sizeof *values);
    int8_t *codes = malloc(in);
    if (!values || !codes)
        p->failed = 1;
    else
        for (size_t row = begin; row < end; row++) {
            if (p->w->group)
                pack_int_row(p, row, codes, values, values + in);
            else
                pack_float_row(p, row, values);
        }
    free(values);
    free(codes);
}

bool backend_weight_pack(struct backend *b, struct weight *w, enum dtype t, const void *src, size_t first,
                         size_t n_rows, struct err *err)
{
    struct pack p = {.w = w, .t = t, .src = src, .row_bytes = dtype_bytes(t, w->n_in), .first = first};
    if (p.row_bytes == SIZE_MAX || first > w->n_out || n_rows > w->n_out - first)
        return err_set(err, ERR_MODEL_DAMAGED, "Rows %zu to %zu of %s do not fit a matrix of %zu x %zu.", first,
                       first + n_rows, dtype_info(t)->name, w->n_out, w->n_in);
    struct weight form = {0};
    if (w->group && (!integer_form(t, &form) || form.layout != w->layout || form.group != w->group ||
                     form.has_min != w->has_min || memcmp(form.codebook, w->codebook, 16) != 0))
        return err_set(err, ERR_MODEL_UNSUPPORTED, "A matrix planned for another type cannot take rows of type %s.",
                       dtype_info(t)->name);
    pool_acquire(b->pool);
    pool_range(b->pool, n_rows, 16, pack_part, &p);
    pool_release(b->pool);
    return !p.failed || err_set(err, ERR_MEMORY, "Out of memory while packing.");
}

float weight_at(const struct weight *w, size_t out, size_t in)
{
    size_t padded = cpu_padded_in(w), lane = out % CPU_PANEL, base = out / CPU_PANEL * padded * CPU_PANEL;
    switch (w->layout) {
    case WEIGHT_F32:
        return ((const float *)w->data)[base + in * CPU_PANEL + lane];
    case WEIGHT_F16:
        return dtype_f16_to_f32(((const uint16_t *)w->data)[base + in * CPU_PANEL + lane]);
    case WEIGHT_BF16:
        return dtype_bf16_to_f32(((const uint16_t *)w->data)[base + (in / 2 * CPU_PANEL + lane) * 2 + in % 2]);
    default:
        break;
    }
    int high;
    uint8_t byte = ((const uint8_t *)w->data)[code_at(w, out, in, &high)];
    int code = w->layout == WEIGHT_I8 ? (int8_t)byte : w->codebook[high ? byte >> 4 : byte & 15];
    size_t at = (out / CPU_PANEL * (padded / w->group) + in / w->group) * CPU_PANEL + lane;
    float v = w->scales[at] * (float)code;
    return w->has_min ? v + w->mins[at] : v;
}

void weight_row(const struct weight *w, size_t out, float *dst)
{
    for (size_t k = 0; k < w->n_in; k++)
        dst[k] = weight_at(w, out, k);
}

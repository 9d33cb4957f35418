/* Weights into the layouts that the kernels stream; see backend.h. */
#include "backend/cpu/cpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const int8_t codebook_nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t codebook_mx[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* How an integer type is held: what weight_plan and decode_row agree on. Scales that files hold as fp16 stay fp16. */
struct form {
    enum dtype t;
    enum weight_layout layout;
    size_t group;
    int has_min, scales_f16;
    int zero; /* I4 without a table of its own: code = nibble - zero */
    const int8_t *codebook;
};

static const struct form forms[] = {
    {DTYPE_Q4_0, WEIGHT_I4, 32, 0, 1, 8, NULL},          {DTYPE_Q4_1, WEIGHT_I4, 32, 1, 1, 0, NULL},
    {DTYPE_IQ4_NL, WEIGHT_I4, 32, 0, 1, 0, codebook_nl}, {DTYPE_IQ4_XS, WEIGHT_I4, 32, 0, 0, 0, codebook_nl},
    {DTYPE_MXFP4, WEIGHT_I4, 32, 0, 0, 0, codebook_mx},  {DTYPE_Q4_K, WEIGHT_I4, 32, 1, 0, 0, NULL},
    {DTYPE_Q2_K, WEIGHT_I4, 16, 1, 0, 0, NULL},          {DTYPE_Q3_K, WEIGHT_I4, 16, 0, 0, 4, NULL},
    {DTYPE_Q5_0, WEIGHT_I8, 32, 0, 1, 0, NULL},          {DTYPE_Q5_1, WEIGHT_I8, 32, 1, 1, 0, NULL},
    {DTYPE_Q8_0, WEIGHT_I8, 32, 0, 1, 0, NULL},          {DTYPE_Q5_K, WEIGHT_I8, 32, 1, 0, 0, NULL},
    {DTYPE_Q6_K, WEIGHT_I8, 16, 0, 0, 0, NULL},          {DTYPE_Q8_K, WEIGHT_I8, 256, 0, 0, 0, NULL},
};

static int act_bits_of(enum weight_form form)
{
    return form == WEIGHT_NATIVE ? 16 : 8;
}

static bool integer_form(enum dtype t, struct weight *w)
{
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        const struct form *f = &forms[i];
        if (f->t != t)
            continue;
        w->layout = f->layout;
        w->group = f->group;
        w->has_min = f->has_min;
        w->scales_f16 = f->scales_f16;
        for (int c = 0; c < 16 && f->layout == WEIGHT_I4; c++)
            w->codebook[c] = f->codebook ? f->codebook[c] : (int8_t)(c - f->zero);
        return true;
    }
    return false;
}

static bool plan_bytes(struct weight *w, struct err *err)
{
    size_t outs = cpu_panels(w) * CPU_PANEL, in = cpu_padded_in(w), cells, bytes, scales = 0;
    bool over = __builtin_mul_overflow(outs, in, &cells) || cells > SIZE_MAX / 16;
    bytes = over ? 0 : w->layout == WEIGHT_F32 ? cells * 4 : w->group ? cells : cells * 2;
    bytes = w->layout == WEIGHT_I4 ? bytes / 2 : bytes;
    if (w->group && !over)
        scales = in / w->group * outs * cpu_scale_size(w) * (w->has_min ? 2 : 1);
    if (over)
        return err_set(err, ERR_MODEL_DAMAGED, "A matrix of %zu x %zu is larger than memory can be.", w->n_out, w->n_in);
    w->bytes = cpu_round_up(bytes, CPU_LINE) + cpu_round_up(scales, CPU_LINE);
    if (w->has_order)
        w->bytes += cpu_round_up(w->n_in * sizeof(int32_t), CPU_LINE);
    return true;
}

/* NormalFloat4 (Dettmers et al., QLoRA, appendix E): quantiles of a normal distribution, times 127. */
static const int8_t codebook_nf4[16] = {-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127};

/* Floats that are to be quantized: few large groups for bytes, so that scales cost little. */
static void quantized_form(enum weight_form form, struct weight *w)
{
    w->layout = form == WEIGHT_INT8 ? WEIGHT_I8 : WEIGHT_I4;
    w->group = CPU_TILE_K;
    w->scales_f16 = 1;
    w->act_bits = act_bits_of(form);
    w->rotated = 1;
    size_t padded = cpu_padded_in(w);
    for (size_t g = CPU_TILE_K; form == WEIGHT_INT8 && g <= CPU_ROTATED_GROUP_MAX; g += CPU_TILE_K)
        w->group = padded % g == 0 ? g : w->group;
    if (form == WEIGHT_INT4)
        memcpy(w->codebook, codebook_nf4, sizeof w->codebook);
}

static bool plan_shape(size_t n_out, size_t n_in, struct weight *w, struct err *err)
{
    memset(w, 0, sizeof *w);
    if (n_out == 0 || n_in == 0 || n_out > SIZE_MAX / 64 || n_in > SIZE_MAX / 64)
        return err_set(err, ERR_MODEL_DAMAGED, "A matrix of %zu x %zu cannot be.", n_out, n_in);
    w->n_out = n_out;
    w->n_in = n_in;
    return true;
}

bool weight_plan(enum dtype t, size_t n_out, size_t n_in, enum weight_form form, struct weight *w, int *lossy, struct err *err)
{
    if (lossy)
        *lossy = t == DTYPE_F64;
    if (!plan_shape(n_out, n_in, w, err))
        return false;
    if (n_in % dtype_info(t)->block)
        return err_set(err, ERR_MODEL_DAMAGED, "Rows of %zu elements are not whole %s blocks of %zu.", n_in,
                       dtype_info(t)->name, dtype_info(t)->block);
    float probe[256];
    uint8_t zeros[512] = {0};
    if (!dtype_to_f32(t, zeros, dtype_info(t)->block, probe))
        return err_set(
            err, ERR_MODEL_UNSUPPORTED,
            "Weights of type %s cannot be read here: take the model in another quantization, such as Q4_K_M or Q8_0.",
            dtype_info(t)->name);
    if (form != WEIGHT_EXACT && integer_form(t, w)) {
        w->act_bits = act_bits_of(form);
        return plan_bytes(w, err);
    }
    if (form == WEIGHT_INT8 || form == WEIGHT_INT4) {
        quantized_form(form, w);
        return plan_bytes(w, err);
    }
    w->layout = t == DTYPE_F16 || t == DTYPE_F8_E4M3 || t == DTYPE_F8_E5M2 ? WEIGHT_F16
                : t == DTYPE_BF16                                          ? WEIGHT_BF16
                                                                           : WEIGHT_F32;
    return plan_bytes(w, err);
}

/* The caller's groups in ours: the largest of our sizes that divides theirs and the padded row. A group of theirs is then
 * one or more of ours with the same scale. */
bool weight_plan_codes(const struct weight_codes *codes, size_t n_out, size_t n_in, enum weight_form form, struct weight *w,
                       struct err *err)
{
    static const size_t groups[] = {256, 192, 128, 64, 32, 16};
    if (!plan_shape(n_out, n_in, w, err))
        return false;
    if (codes->group == 0 || (codes->group < n_in && codes->group % CPU_GROUP_MIN))
        return err_set(err, ERR_MODEL_UNSUPPORTED,
                       "Groups of %zu inputs are not supported; a multiple of %d, or one for a whole row of %zu, is.",
                       codes->group, CPU_GROUP_MIN, n_in);
    w->layout = codes->layout;
    w->has_min = codes->has_min;
    w->scales_f16 = codes->scales_f16;
    w->has_order = codes->has_order;
    w->code_group = codes->group < n_in ? codes->group : n_in;
    if (w->layout == WEIGHT_I4)
        memcpy(w->codebook, codes->codebook, sizeof w->codebook);
    w->act_bits = act_bits_of(form);
    size_t padded = cpu_round_up(n_in, CPU_TILE_K);
    for (size_t i = 0; !w->group; i++)
        if (padded % groups[i] == 0 && (w->code_group == n_in || w->code_group % groups[i] == 0))
            w->group = groups[i];
    return plan_bytes(w, err);
}

void weight_attach(struct weight *w, void *memory)
{
    size_t in = cpu_padded_in(w), cells = cpu_panels(w) * CPU_PANEL * in;
    w->data = memory;
    w->scales = w->mins = NULL;
    w->input_order = NULL;
    if (!w->group)
        return;
    if (w->has_order)
        w->input_order = (int32_t *)((char *)memory + w->bytes - cpu_round_up(w->n_in * sizeof(int32_t), CPU_LINE));
    char *scales = (char *)memory + cpu_round_up(w->layout == WEIGHT_I4 ? cells / 2 : cells, CPU_LINE);
    w->scales = (float *)scales;
    if (w->has_min)
        w->mins = (float *)(scales + cells / w->group * cpu_scale_size(w));
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
    case DTYPE_Q8_0: memcpy(codes, q, 32); return;
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
    default: break;
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

static void decode_q2_k(const uint8_t *p, int8_t *codes, float *scales, float *mins)
{
    float d = dtype_f16_to_f32(load_u16(p + 80)), m = dtype_f16_to_f32(load_u16(p + 82));
    for (int i = 0; i < 16; i++) {
        scales[i] = d * (float)(p[i] & 15);
        mins[i] = -(m * (float)(p[i] >> 4));
    }
    for (int i = 0; i < 256; i++)
        codes[i] = (int8_t)(p[16 + i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3);
}

/* Codes as nibbles, code + 4. */
static void decode_q3_k(const uint8_t *p, int8_t *codes, float *scales)
{
    const uint8_t *high = p, *q = p + 32, *s = p + 96;
    float d = dtype_f16_to_f32(load_u16(p + 108));
    for (int i = 0; i < 16; i++) {
        int low = i < 8 ? s[i] & 15 : s[i - 8] >> 4, up = s[8 + i % 4] >> i / 4 * 2 & 3;
        scales[i] = d * (float)((low | up << 4) - 32);
    }
    for (int i = 0; i < 256; i++)
        codes[i] = (int8_t)((q[i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3) | (high[i % 32] >> i / 32 & 1) << 2);
}

static void decode_q8_k(const uint8_t *p, int8_t *codes, float *scale)
{
    memcpy(scale, p, sizeof *scale);
    memcpy(codes, p + 4, 256);
}

static void decode_iq4_xs(const uint8_t *p, int8_t *codes, float *scales)
{
    float d = dtype_f16_to_f32(load_u16(p));
    unsigned high = load_u16(p + 2);
    for (int j = 0; j < 8; j++) {
        int s = (p[4 + j / 2] >> j % 2 * 4 & 15) | (int)(high >> j * 2 & 3) << 4;
        scales[j] = d * (float)(s - 32);
        for (int i = 0; i < 16; i++) {
            codes[j * 32 + i] = (int8_t)(p[8 + j * 16 + i] & 15);
            codes[j * 32 + i + 16] = (int8_t)(p[8 + j * 16 + i] >> 4);
        }
    }
}

static void decode_row(enum dtype t, const uint8_t *p, size_t n_in, size_t group, int8_t *codes, float *scales, float *mins)
{
    const struct dtype_info *info = dtype_info(t);
    for (size_t k = 0; k < n_in; k += info->block, p += info->bytes) {
        float *s = scales + k / group, *m = mins + k / group;
        switch (t) {
        case DTYPE_Q2_K: decode_q2_k(p, codes + k, s, m); break;
        case DTYPE_Q3_K: decode_q3_k(p, codes + k, s); break;
        case DTYPE_Q4_K:
        case DTYPE_Q5_K: decode_k(t, p, codes + k, s, m); break;
        case DTYPE_Q6_K: decode_q6_k(p, codes + k, s); break;
        case DTYPE_Q8_K: decode_q8_k(p, codes + k, s); break;
        case DTYPE_IQ4_XS: decode_iq4_xs(p, codes + k, s); break;
        default: decode_32(t, p, codes + k, s, m); break;
        }
    }
}

struct pack {
    struct weight *w;
    enum dtype t;
    const uint8_t *src;
    size_t row_bytes, first;
    const struct cpu_kernels *kernels;
    int quantize; /* the source is floats, the weight integers */
    _Atomic int failed;
};

/* Where the scale of (out, group) lies. */
static size_t scale_at(const struct weight *w, size_t out, size_t group)
{
    return (out / CPU_PANEL * (cpu_padded_in(w) / w->group) + group) * CPU_PANEL + out % CPU_PANEL;
}

static void store_scale(const struct weight *w, float *scales, size_t at, float v)
{
    if (w->scales_f16)
        ((uint16_t *)scales)[at] = dtype_f32_to_f16(v);
    else
        scales[at] = v;
}

/* One output: codes [padded], zero beyond n_in, scales and mins by w's groups. Four inputs are one word of the layout. */
static void store_codes(struct weight *w, size_t out, const int8_t *codes, const float *scales, const float *mins)
{
    size_t padded = cpu_padded_in(w), quads = padded / 4;
    size_t panel_bytes = padded * CPU_PANEL / (w->layout == WEIGHT_I4 ? 2 : 1);
    uint32_t *to = (uint32_t *)((char *)w->data + out / CPU_PANEL * panel_bytes) + out % CPU_PANEL, word, high;
    if (w->layout == WEIGHT_I8)
        for (size_t i = 0; i < quads; i++, to += CPU_PANEL) {
            memcpy(&word, codes + i * 4, 4);
            *to = word;
        }
    else
        for (size_t tile = 0; tile < padded; tile += CPU_TILE_K)
            for (size_t i = 0; i < CPU_TILE_K / 2; i += 4, to += CPU_PANEL) {
                memcpy(&word, codes + tile + i, 4);
                memcpy(&high, codes + tile + CPU_TILE_K / 2 + i, 4);
                *to = (word & 0x0f0f0f0fu) | (high & 0x0f0f0f0fu) << 4;
            }
    for (size_t g = 0; g * w->group < w->n_in; g++) {
        store_scale(w, w->scales, scale_at(w, out, g), scales[g]);
        if (w->has_min)
            store_scale(w, w->mins, scale_at(w, out, g), mins[g]);
    }
}

/* codes [padded], zero beyond n_in; values, scales, mins [padded]. */
static void pack_int_row(const struct pack *p, size_t row, int8_t *codes, float *values, float *scales, float *mins)
{
    const struct weight *w = p->w;
    const uint8_t *src = p->src + row * p->row_bytes;
    if (p->quantize) {
        dtype_to_f32(p->t, src, w->n_in, values);
        memset(values + w->n_in, 0, (cpu_padded_in(w) - w->n_in) * sizeof *values);
        p->kernels->quantize_weights(w, values, codes, scales);
    } else {
        decode_row(p->t, src, w->n_in, w->group, codes, scales, mins);
    }
    store_codes(p->w, p->first + row, codes, scales, mins);
}

/* Cells k of n rows side by side, so that a line of the layout is written once. rows: n rows of n_k cells, `step` bytes
 * apart; out: the first row's lane. */
static void interleave_words(const uint8_t *rows, size_t step, size_t n, size_t n_k, uint32_t *out)
{
    for (size_t k = 0; k < n_k; k++, out += CPU_PANEL)
        for (size_t r = 0; r < n; r++)
            memcpy(out + r, rows + r * step + k * sizeof *out, sizeof *out);
}

static void interleave_halves(const uint8_t *rows, size_t step, size_t n, size_t n_k, uint16_t *out)
{
    for (size_t k = 0; k < n_k; k++, out += CPU_PANEL)
        for (size_t r = 0; r < n; r++)
            memcpy(out + r, rows + r * step + k * sizeof *out, sizeof *out);
}

/* n floats in the same memory as halves of the layout's type. */
static void narrow(enum weight_layout layout, float *values, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t half = layout == WEIGHT_F16 ? dtype_f32_to_f16(values[i]) : dtype_f32_to_bf16(values[i]);
        memcpy((char *)values + i * sizeof half, &half, sizeof half);
    }
}

/* n rows of one panel; values [n][n_in]. */
static void pack_float_rows(const struct pack *p, size_t row, size_t n, float *values)
{
    const struct weight *w = p->w;
    const enum dtype held = w->layout == WEIGHT_F16 ? DTYPE_F16 : w->layout == WEIGHT_BF16 ? DTYPE_BF16 : DTYPE_F32;
    const size_t out = p->first + row, in = w->n_in, lane = out % CPU_PANEL, step = in * dtype_info(held)->bytes;
    const size_t base = out / CPU_PANEL * CPU_PANEL * cpu_padded_in(w);
    const uint8_t *rows = p->src + row * p->row_bytes;
    uint16_t *halves = (uint16_t *)w->data + base;
    if (p->t != held) {
        dtype_to_f32(p->t, rows, n * in, values);
        if (held != DTYPE_F32)
            narrow(w->layout, values, n * in);
        rows = (const uint8_t *)values;
    }
    if (w->layout == WEIGHT_F32) {
        interleave_words(rows, step, n, in, (uint32_t *)w->data + base + lane);
    } else if (w->layout == WEIGHT_F16) {
        interleave_halves(rows, step, n, in, halves + lane);
    } else { /* in pairs */
        interleave_words(rows, step, n, in / 2, (uint32_t *)(void *)halves + lane);
        for (size_t r = 0; r < n && in % 2; r++)
            halves[(in / 2 * CPU_PANEL + lane + r) * 2] = load_u16(rows + r * step + (in - 1) * 2);
    }
}

static void pack_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    struct pack *p = arg;
    size_t in = cpu_padded_in(p->w);
    float *values = malloc(in * (p->w->group ? 3 : CPU_PANEL) * sizeof *values);
    int8_t *codes = calloc(in, 1);
    if (!values || !codes)
        p->failed = 1;
    else if (p->w->group)
        for (size_t row = begin; row < end; row++)
            pack_int_row(p, row, codes, values, values + in, values + 2 * in);
    else
        for (size_t row = begin, n; row < end; row += n) {
            n = CPU_PANEL - (p->first + row) % CPU_PANEL;
            n = n < end - row ? n : end - row;
            pack_float_rows(p, row, n, values);
        }
    free(values);
    free(codes);
}

bool backend_weight_pack(struct backend *b, struct weight *w, enum dtype t, const void *src, size_t first, size_t n_rows,
                         struct err *err)
{
    struct pack p = {.w = w, .t = t, .src = src, .row_bytes = dtype_bytes(t, w->n_in), .first = first, .kernels = b->kernels};
    if (p.row_bytes == SIZE_MAX || first > w->n_out || n_rows > w->n_out - first)
        return err_set(err, ERR_MODEL_DAMAGED, "Rows %zu to %zu of %s do not fit a matrix of %zu x %zu.", first, first + n_rows,
                       dtype_info(t)->name, w->n_out, w->n_in);
    struct weight form = {0};
    p.quantize = w->group && dtype_info(t)->block == 1 && !w->has_min;
    if (!p.quantize && w->group &&
        (!integer_form(t, &form) || form.layout != w->layout || form.group != w->group || form.has_min != w->has_min ||
         memcmp(form.codebook, w->codebook, 16) != 0))
        return err_set(err, ERR_MODEL_UNSUPPORTED, "A matrix planned for another type cannot take rows of type %s.",
                       dtype_info(t)->name);
    pool_acquire(b->pool);
    pool_range(b->pool, n_rows, 16, pack_part, &p);
    pool_release(b->pool);
    return !p.failed || err_set(err, ERR_MEMORY, "Out of memory while packing.");
}

/* ---- rows that are codes already ---- */

struct pack_codes {
    struct weight *w;
    const int8_t *codes;
    const float *scales, *mins;
    size_t first;
    _Atomic size_t bad_code, bad_scale; /* a row and one; 0: none */
    _Atomic int failed;
};

static bool codes_in_range(const struct weight *w, const int8_t *codes)
{
    int bad = 0;
    for (size_t k = 0; k < w->n_in && w->layout == WEIGHT_I4; k++)
        bad |= codes[k] & ~15;
    return !bad;
}

static bool scale_holds(const struct weight *w, float v)
{
    return isfinite(v) && (!w->scales_f16 || dtype_f16_to_f32(dtype_f32_to_f16(v)) == v);
}

static void pack_codes_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    struct pack_codes *p = arg;
    const struct weight *w = p->w;
    size_t padded = cpu_padded_in(w), groups = padded / w->group, theirs = (w->n_in + w->code_group - 1) / w->code_group;
    int8_t *codes = calloc(padded, 1);
    float *scales = calloc(groups * 2, sizeof *scales), *mins = scales + groups;
    if (!codes || !scales)
        p->failed = 1;
    for (size_t row = begin; row < end && codes && scales; row++) {
        memcpy(codes, p->codes + row * w->n_in, w->n_in);
        if (!codes_in_range(w, codes))
            p->bad_code = row + 1;
        for (size_t g = 0; g * w->group < w->n_in; g++) {
            size_t at = row * theirs + g * w->group / w->code_group;
            scales[g] = p->scales[at];
            mins[g] = w->has_min ? p->mins[at] : 0;
            if (!scale_holds(w, scales[g]) || !scale_holds(w, mins[g]))
                p->bad_scale = row + 1;
        }
        store_codes(p->w, p->first + row, codes, scales, mins);
    }
    free(codes);
    free(scales);
}

bool backend_weight_pack_codes(struct backend *b, struct weight *w, const int8_t *codes, const float *scales, const float *mins,
                               size_t first, size_t n_rows, struct err *err)
{
    struct pack_codes p = {.w = w, .codes = codes, .scales = scales, .mins = mins, .first = first};
    CHECK(w->code_group && (mins != NULL) == (w->has_min != 0));
    if (first > w->n_out || n_rows > w->n_out - first)
        return err_set(err, ERR_MODEL_DAMAGED, "Rows %zu to %zu do not fit a matrix of %zu x %zu.", first, first + n_rows,
                       w->n_out, w->n_in);
    pool_acquire(b->pool);
    pool_range(b->pool, n_rows, 16, pack_codes_part, &p);
    pool_release(b->pool);
    if (p.failed)
        return err_set(err, ERR_MEMORY, "Out of memory while packing.");
    if (p.bad_code)
        return err_set(err, ERR_MODEL_DAMAGED, "Row %zu has a code outside 0 .. 15.", first + p.bad_code - 1);
    if (p.bad_scale)
        return err_set(err, ERR_MODEL_DAMAGED, "Row %zu has a scale that is not finite%s.", first + p.bad_scale - 1,
                       w->scales_f16 ? " or that fp16 does not hold" : "");
    return true;
}

bool weight_set_order(struct weight *w, const int32_t *order, struct err *err)
{
    uint8_t *seen = calloc(w->n_in, 1);
    if (!seen)
        return err_set(err, ERR_MEMORY, "Out of memory while packing.");
    size_t k = 0;
    for (; k < w->n_in && order[k] >= 0 && (size_t)order[k] < w->n_in && !seen[order[k]]; k++) {
        seen[order[k]] = 1;
        w->input_order[k] = order[k];
    }
    free(seen);
    return k == w->n_in ||
           err_set(err, ERR_MODEL_DAMAGED,
                   "The order of %zu inputs is no permutation: its entry %zu is %d, out of range or twice there.", w->n_in, k,
                   order[k]);
}

float cpu_weight_cell(const struct weight *w, size_t out, size_t k)
{
    size_t padded = cpu_padded_in(w), lane = out % CPU_PANEL, base = out / CPU_PANEL * padded * CPU_PANEL;
    switch (w->layout) {
    case WEIGHT_F32: return ((const float *)w->data)[base + k * CPU_PANEL + lane];
    case WEIGHT_F16: return dtype_f16_to_f32(((const uint16_t *)w->data)[base + k * CPU_PANEL + lane]);
    case WEIGHT_BF16: return dtype_bf16_to_f32(((const uint16_t *)w->data)[base + (k / 2 * CPU_PANEL + lane) * 2 + k % 2]);
    default: break;
    }
    int code;
    if (w->layout == WEIGHT_I8) {
        code = ((const int8_t *)w->data)[base + k / 4 * CPU_LINE + lane * 4 + k % 4];
    } else {
        size_t half = k % CPU_TILE_K % (CPU_TILE_K / 2), tile = base / 2 + k / CPU_TILE_K * (CPU_TILE_K * CPU_PANEL / 2);
        uint8_t byte = ((const uint8_t *)w->data)[tile + half / 4 * CPU_LINE + lane * 4 + k % 4];
        code = w->codebook[k % CPU_TILE_K >= CPU_TILE_K / 2 ? byte >> 4 : byte & 15];
    }
    size_t at = scale_at(w, out, k / w->group);
    if (w->scales_f16) {
        float v = dtype_f16_to_f32(((const uint16_t *)w->scales)[at]) * (float)code;
        return w->has_min ? v + dtype_f16_to_f32(((const uint16_t *)w->mins)[at]) : v;
    }
    float v = w->scales[at] * (float)code;
    return w->has_min ? v + w->mins[at] : v;
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

float weight_at(const struct weight *w, size_t out, size_t in)
{
    float block[CPU_TILE_K];
    if (w->rotated) {
        for (size_t i = 0; i < CPU_TILE_K; i++)
            block[i] = cpu_weight_cell(w, out, in / CPU_TILE_K * CPU_TILE_K + i);
        cpu_rotate(block);
        return block[in % CPU_TILE_K];
    }
    if (w->input_order) {
        size_t k = 0;
        while ((size_t)w->input_order[k] != in)
            k++;
        in = k;
    }
    return cpu_weight_cell(w, out, in);
}

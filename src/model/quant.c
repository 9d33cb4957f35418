/* Which family a quantized checkpoint is of, and what the families share; see quant.h. */
#include "model/quant.h"

#include "model/checkpoint_impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define GROUP_STEP 16 /* packed layouts hold groups that are multiples of this */
#define BLOCK_MAX  (1 << 20)

/* ---- configuration ---- */

static size_t whole(const json_t *o, const char *key, size_t otherwise, size_t max)
{
    const json_t *v = json_object_get(o, key);
    json_int_t n = json_integer_value(v);
    return !json_is_integer(v) ? otherwise : n < 0 ? 0 : (uint64_t)n > max ? max : (size_t)n;
}

static bool has_text(const json_t *o, const char *key, const char *text)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s && strcmp(s, text) == 0;
}

static bool unsupported(struct err *err, const char *what, const json_t *value, const char *supported)
{
    char *text = value ? json_dumps(value, JSON_ENCODE_ANY) : NULL, shown[CHECKPOINT_SHOW_BYTES];
    err_set_param(err, ERR_MODEL_UNSUPPORTED, "quantization_config",
                  "config.json: quantization_config: %s %s is not supported; supported: %s", what,
                  text ? checkpoint_show(str_from(text), shown) : "(absent)", supported);
    free(text);
    return false;
}

static bool read_gptq(const json_t *json, struct quant_config *out, struct err *err)
{
    const json_t *format = json_object_get(json, "checkpoint_format");
    out->bits = (unsigned)whole(json, "bits", 0, 64);
    out->group = whole(json, "group_size", 128, (size_t)1 << 30);
    /* rules for single modules: GPTQModel's and AutoRound's names */
    out->mixed = json_object_size(json_object_get(json, "dynamic")) || json_object_size(json_object_get(json, "extra_config"));
    out->symmetric = !out->mixed && !json_is_false(json_object_get(json, "sym"));
    out->act_order = json_is_true(json_object_get(json, "desc_act"));
    out->zeros_as_is = has_text(json, "checkpoint_format", "gptq_v2");
    if (format && !out->zeros_as_is && !has_text(json, "checkpoint_format", "gptq"))
        return unsupported(err, "checkpoint_format", format, "gptq, gptq_v2");
    if (out->bits != 4 && out->bits != 8)
        return unsupported(err, "gptq with bits", json_object_get(json, "bits"), "4, 8");
    return true;
}

static bool read_awq(const json_t *json, struct quant_config *out, struct err *err)
{
    const json_t *version = json_object_get(json, "version"), *bits = json_object_get(json, "bits");
    out->bits = (unsigned)whole(json, bits ? "bits" : "w_bit", 4, 64);
    out->group = whole(json, json_object_get(json, "group_size") ? "group_size" : "q_group_size", 128, (size_t)1 << 30);
    if (version && !has_text(json, "version", "gemm") && !has_text(json, "version", "GEMM"))
        return unsupported(err, "awq with version", version, "gemm");
    if (out->bits != 4)
        return unsupported(err, "awq with bits", bits, "4");
    return true;
}

/* AutoRound (https://arxiv.org/abs/2309.05516) packs as one of the others does. */
static bool read_auto_round(const json_t *json, struct quant_config *out, struct err *err)
{
    if (has_text(json, "packing_format", "auto_round:auto_gptq")) {
        out->method = QUANT_GPTQ;
        return read_gptq(json, out, err);
    }
    if (has_text(json, "packing_format", "auto_round:auto_awq")) {
        out->method = QUANT_AWQ;
        return read_awq(json, out, err);
    }
    return unsupported(err, "auto-round with packing_format", json_object_get(json, "packing_format"),
                       "auto_round:auto_gptq, auto_round:auto_awq");
}

/* [outputs, inputs] of blocks that share a scale; null or absent: not told. */
static bool read_block(const json_t *json, const char *key, struct quant_config *out, struct err *err)
{
    const json_t *block = json_object_get(json, key);
    if (!block || json_is_null(block))
        return true;
    for (size_t i = 0; i < 2; i++) {
        json_int_t n = json_integer_value(json_array_get(block, i));
        if (json_array_size(block) != 2 || n < 1 || n > BLOCK_MAX)
            return unsupported(err, key, block, "two whole numbers, outputs and inputs that share a scale");
        out->block[i] = (size_t)n;
    }
    return true;
}

/* Blocks, where they are the same for all modules. */
static bool read_groups(const json_t *groups, struct quant_config *out, struct err *err)
{
    struct quant_config one = {0};
    const char *key;
    json_t *group;
    int differ = 0;
    json_object_foreach((json_t *)groups, key, group)
    {
        if (!read_block(json_object_get(group, "weights"), "block_structure", &one, err))
            return false;
        differ |= out->block[0] && (out->block[0] != one.block[0] || out->block[1] != one.block[1]);
        memcpy(out->block, one.block, sizeof out->block);
    }
    if (differ)
        memset(out->block, 0, sizeof out->block);
    return true;
}

static bool read_compressed(const json_t *json, struct quant_config *out, struct err *err)
{
    static const char *const FORMATS[] = {
        "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "dense", "mixed-precision", NULL};
    const char *supported = "pack-quantized, int-quantized, float-quantized, naive-quantized";
    const json_t *format = json_object_get(json, "format"), *sparsity = json_object_get(json, "sparsity_config");
    const json_t *transform = json_object_get(json, "transform_config");
    int known = format == NULL;
    for (size_t i = 0; FORMATS[i]; i++)
        known |= has_text(json, "format", FORMATS[i]);
    if (!known)
        return unsupported(err, "compressed-tensors with format", format, supported);
    if (json_object_size(sparsity) > 0 && !has_text(sparsity, "format", "dense"))
        return unsupported(err, "compressed-tensors with sparsity_config", sparsity, "format dense");
    if (json_object_size(json_object_get(transform, "config_groups")) > 0)
        return unsupported(err, "compressed-tensors with transform_config", transform, "none");
    return read_groups(json_object_get(json, "config_groups"), out, err);
}

bool quant_config_read(const json_t *json, struct quant_config *out, struct err *err)
{
    static const struct {
        const char *name;
        enum quant_method method;
    } METHODS[] = {{"gptq", QUANT_GPTQ}, {"awq", QUANT_AWQ},        {"compressed-tensors", QUANT_COMPRESSED},
                   {"fp8", QUANT_FP8},   {"fbgemm_fp8", QUANT_FP8}, {"bitsandbytes", QUANT_BITSANDBYTES}};
    *out = (struct quant_config){0};
    if (!json || json_is_null(json))
        return true;
    if (has_text(json, "quant_method", "auto-round"))
        return read_auto_round(json, out, err);
    for (size_t i = 0; i < sizeof METHODS / sizeof METHODS[0]; i++) {
        if (has_text(json, "quant_method", METHODS[i].name))
            out->method = METHODS[i].method;
    }
    /* Old files name no method but have bitsandbytes' own keys. */
    if (!json_object_get(json, "quant_method") &&
        (json_object_get(json, "load_in_4bit") || json_object_get(json, "load_in_8bit")))
        out->method = QUANT_BITSANDBYTES;
    switch (out->method) {
    case QUANT_GPTQ: return read_gptq(json, out, err);
    case QUANT_AWQ: return read_awq(json, out, err);
    case QUANT_COMPRESSED: return read_compressed(json, out, err);
    case QUANT_FP8: return read_block(json, "weight_block_size", out, err);
    case QUANT_BITSANDBYTES: return true;
    case QUANT_NONE: break;
    }
    return unsupported(err, "quant_method", json_object_get(json, "quant_method"),
                       "gptq, awq, auto-round, compressed-tensors, fp8, fbgemm_fp8, bitsandbytes");
}

/* ---- one matrix ---- */

const struct tensor *quant_part(const struct checkpoint *c, const char *base, const char *suffix)
{
    char name[QUANT_NAME_BYTES];
    snprintf(name, sizeof name, "%s%s", base, suffix);
    return checkpoint_tensor(c, str_from(name));
}

bool quant_check(const struct tensor *t, enum dtype type, enum dtype or_type, unsigned n_dims, size_t dim0, size_t dim1,
                 struct err *err)
{
    char shown[CHECKPOINT_SHOW_BYTES];
    checkpoint_show(t->name, shown);
    if (t->type != type && t->type != or_type)
        return err_set_param(err, ERR_MODEL_DAMAGED, "tensor", "%s: tensor '%s' is of type %s, expected %s", t->file, shown,
                             dtype_info(t->type)->name, dtype_info(type)->name);
    if (t->n_dims != n_dims || (n_dims > 0 && t->dims[0] != dim0) || (n_dims > 1 && t->dims[1] != dim1))
        return err_set_param(err, ERR_MODEL_DAMAGED, "tensor",
                             "%s: tensor '%s' has %u dimensions (%zu, %zu), expected %u (%zu, %zu)", t->file, shown, t->n_dims,
                             t->n_dims > 0 ? t->dims[0] : 1, t->n_dims > 1 ? t->dims[1] : 1, n_dims, n_dims > 0 ? dim0 : 1,
                             n_dims > 1 ? dim1 : 1);
    return true;
}

float quant_float(const struct tensor *t, size_t i)
{
    float v = NAN;
    size_t size = dtype_info(t->type)->bytes;
    dtype_to_f32(t->type, (const unsigned char *)t->data + i * size, 1, &v);
    return v;
}

uint32_t quant_word(const struct tensor *t, size_t i)
{
    uint32_t v;
    memcpy(&v, (const unsigned char *)t->data + 4 * i, 4);
    return v;
}

bool quant_words_are(const struct tensor *t, uint32_t value)
{
    for (size_t i = 0; i < t->bytes / 4; i++)
        if (quant_word(t, i) != value)
            return false;
    return true;
}

enum quant_found quant_missing(const struct quant_matrix *m, const char *base, const char *suffix, struct err *err)
{
    err_set_param(err, ERR_MODEL_DAMAGED, "tensor", "%s: tensor '%s%s' of a matrix stored as %s is missing", m->part[0]->file,
                  base, suffix, m->family->name);
    return QUANT_WRONG;
}

enum quant_found quant_find(const struct quant_config *q, const struct checkpoint *c, const char *base, size_t n_out,
                            size_t n_in, struct quant_matrix *m, struct err *err)
{
    static const struct quant_family *const FAMILIES[][2] = {
        [QUANT_NONE] = {NULL, NULL},      [QUANT_GPTQ] = {&quant_gptq, NULL},
        [QUANT_AWQ] = {&quant_awq, NULL}, [QUANT_COMPRESSED] = {&quant_compressed, &quant_fp8},
        [QUANT_FP8] = {&quant_fp8, NULL}, [QUANT_BITSANDBYTES] = {&quant_bnb4, &quant_bnb8},
    };
    for (size_t i = 0; i < 2 && FAMILIES[q->method][i]; i++) {
        *m = (struct quant_matrix){.family = FAMILIES[q->method][i], .n_out = n_out, .n_in = n_in};
        enum quant_found found = m->family->find(q, c, base, m, err);
        if (found != QUANT_NOT_THERE)
            return found;
    }
    return QUANT_NOT_THERE;
}

void quant_hold(struct quant_matrix *m, int has_min, int scales_f16, int has_order)
{
    static const int8_t signed_nibbles[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    static const int8_t nibbles[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    m->held = (struct weight_codes){.layout = m->bits == 4 ? WEIGHT_I4 : WEIGHT_I8,
                                    .codebook = has_min ? nibbles : signed_nibbles,
                                    .group = m->group,
                                    .has_min = has_min,
                                    .scales_f16 = scales_f16,
                                    .has_order = has_order};
    m->floats = m->group % GROUP_STEP && m->group < m->n_in ? DTYPE_F32 : DTYPE_NONE;
}

bool quant_assume(const struct quant_config *q, size_t n_out, size_t n_in, struct quant_matrix *m, struct err *err)
{
    if (q->method != QUANT_GPTQ && q->method != QUANT_AWQ)
        return err_set(err, ERR_MODEL_UNSUPPORTED,
                       "config.json alone does not tell how large these quantized weights are: "
                       "fetch the safetensors files beside it");
    *m = (struct quant_matrix){.family = q->method == QUANT_GPTQ ? &quant_gptq : &quant_awq,
                               .n_out = n_out,
                               .n_in = n_in,
                               .bits = q->bits,
                               .group = q->group == 0 || q->group > n_in ? n_in : q->group};
    int symmetric = q->method == QUANT_GPTQ && q->symmetric;
    quant_hold(m, !symmetric, symmetric, 0);
    return true;
}

size_t quant_groups(const struct quant_matrix *m)
{
    return (m->n_in + m->group - 1) / m->group;
}

static bool rows_from_codes(const struct quant_matrix *m, size_t first, size_t n, float *out, struct err *err)
{
    size_t groups = quant_groups(m);
    int8_t *codes = malloc(n * m->n_in);
    float *scales = malloc(n * groups * 2 * sizeof *scales);
    int32_t *order = malloc(m->n_in * sizeof *order);
    bool ok = (codes && scales && order) || err_set(err, ERR_MEMORY, "no memory left to decode %zu rows of %zu", n, m->n_in);
    float *mins = ok ? scales + n * groups : NULL;
    for (size_t k = 0; ok && k < m->n_in; k++)
        order[k] = (int32_t)k;
    ok = ok && m->family->codes(m, first, n, codes, scales, mins, err) &&
         (!m->held.has_order || m->family->order(m, order, err));
    for (size_t r = 0; ok && r < n; r++) {
        for (size_t k = 0; k < m->n_in; k++) {
            int code = codes[r * m->n_in + k];
            float v = scales[r * groups + k / m->group];
            v *= (float)(m->held.layout == WEIGHT_I4 ? m->held.codebook[code] : code);
            out[r * m->n_in + (size_t)order[k]] = m->held.has_min ? v + mins[r * groups + k / m->group] : v;
        }
    }
    free(codes);
    free(scales);
    free(order);
    return ok;
}

bool quant_rows(const struct quant_matrix *m, size_t first, size_t n, float *out, struct err *err)
{
    return m->family->floats ? m->family->floats(m, first, n, out, err) : rows_from_codes(m, first, n, out, err);
}

/* ---- inputs in another order ---- */

static int32_t group_of(const struct tensor *g_idx, size_t i)
{
    return (int32_t)quant_word(g_idx, i);
}

int quant_is_reordered(const struct tensor *g_idx, size_t n_in, size_t group)
{
    for (size_t i = 0; i < n_in; i++) {
        if (group_of(g_idx, i) != (int32_t)(i / group))
            return 1;
    }
    return 0;
}

bool quant_order_by_group(const struct tensor *g_idx, size_t n_in, size_t group, int32_t *order, struct err *err)
{
    size_t groups = (n_in + group - 1) / group;
    size_t *at = calloc(groups, sizeof *at);
    char shown[CHECKPOINT_SHOW_BYTES];
    if (!at)
        return err_set(err, ERR_MEMORY, "no memory left to order %zu inputs", n_in);
    bool ok = true;
    for (size_t i = 0; ok && i < n_in; i++) {
        int32_t g = group_of(g_idx, i);
        size_t room = g >= 0 && (size_t)g < groups ? (size_t)g * group + group < n_in ? group : n_in - (size_t)g * group : 0;
        if (g < 0 || (size_t)g >= groups || at[g] == room)
            ok = err_set_param(err, ERR_MODEL_DAMAGED, "tensor",
                               "%s: tensor '%s' puts input %zu into group %d; %zu groups of at most %zu inputs are expected",
                               g_idx->file, checkpoint_show(g_idx->name, shown), i, g, groups, group);
        else
            order[(size_t)g * group + at[g]++] = (int32_t)i;
    }
    free(at);
    return ok;
}

static const struct tensor *order_part(const struct quant_matrix *m)
{
    return m->held.has_order ? m->part[QUANT_PART_ORDER] : NULL;
}

bool quant_same_form(const struct quant_matrix *a, const struct quant_matrix *b)
{
    const struct tensor *x = order_part(a), *y = order_part(b);
    if (a->family != b->family || a->floats != b->floats || a->bits != b->bits || a->group != b->group ||
        a->held.layout != b->held.layout || a->held.has_min != b->held.has_min || a->held.scales_f16 != b->held.scales_f16 ||
        !x != !y)
        return false;
    return !x || (x->bytes == y->bytes && memcmp(x->data, y->data, x->bytes) == 0);
}

const char *quant_describe(const struct quant_matrix *m, char *out, size_t size)
{
    int n = snprintf(out, size, "%s, %u bits", m->family->name, m->bits);
    if (m->group < m->n_in && n > 0 && (size_t)n < size)
        n += snprintf(out + n, size - (size_t)n, ", groups of %zu", m->group);
    if (m->held.has_order && n > 0 && (size_t)n < size)
        snprintf(out + n, size - (size_t)n, ", inputs reordered");
    return out;
}

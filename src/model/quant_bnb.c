/* bitsandbytes (https://arxiv.org/abs/2305.14314, appendix of https://arxiv.org/abs/2208.07339).
 *   4 bits  weight U8 [n / 2][1]: codes of the flattened matrix, the high nibble first
 *           weight.quant_map F32 [16]; weight.absmax F32 or, with double quantization, U8 [blocks]
 *           weight.nested_absmax F32 [nested blocks], weight.nested_quant_map F32 [256]
 *           weight.quant_state.bitsandbytes__nf4 (or fp4) U8: JSON with blocksize, dtype, nested_blocksize, nested_offset
 *           w = quant_map[code] * absmax[block], rounded to dtype: what the library's dequantize_4bit gives
 *   8 bits  weight I8 [n_out][n_in], SCB F32 [n_out]: w = code * SCB / 127, held as codes */
#include "model/checkpoint_impl.h"
#include "model/quant.h"

#include <math.h>
#include <stdio.h>

#define MAP_CODES    16
#define NESTED_CODES 256
#define BLOCK_MAX    ((size_t)1 << 16)

enum { CODES, MAP, ABSMAX, STATE, NESTED_ABSMAX, NESTED_MAP };

static bool read_state(struct quant_matrix *m, struct err *err)
{
    const struct tensor *t = m->part[STATE];
    char shown[CHECKPOINT_SHOW_BYTES];
    json_t *json = json_loadb(t->data, t->bytes, 0, NULL);
    const json_t *shape = json_object_get(json, "shape");
    const char *type = json_string_value(json_object_get(json, "dtype"));
    json_int_t block = json_integer_value(json_object_get(json, "blocksize"));
    json_int_t nested = json_integer_value(json_object_get(json, "nested_blocksize"));
    json_int_t rows = json_integer_value(json_array_get(shape, 0)), columns = json_integer_value(json_array_get(shape, 1));
    m->nested_offset = json_number_value(json_object_get(json, "nested_offset"));
    m->floats = !type                           ? DTYPE_NONE
                : strcmp(type, "bfloat16") == 0 ? DTYPE_BF16
                : strcmp(type, "float16") == 0  ? DTYPE_F16
                : strcmp(type, "float32") == 0  ? DTYPE_F32
                                                : DTYPE_NONE;
    json_decref(json);
    if (m->floats == DTYPE_NONE || block < 1 || block > (json_int_t)BLOCK_MAX || !isfinite(m->nested_offset) ||
        (m->part[NESTED_ABSMAX] && (nested < 1 || nested > (json_int_t)BLOCK_MAX)))
        return err_set_param(err, ERR_MODEL_DAMAGED, "tensor",
                             "%s: tensor '%s' is no JSON with a dtype (float32, float16, bfloat16) and block sizes of 1 to "
                             "%zu",
                             t->file, checkpoint_show(t->name, shown), BLOCK_MAX);
    if ((size_t)rows != m->n_out || (size_t)columns != m->n_in)
        return err_set_param(err, ERR_MODEL_DAMAGED, "tensor",
                             "%s: tensor '%s' tells of a matrix of %lld x %lld, but the "
                             "configuration asks for %zu x %zu",
                             t->file, checkpoint_show(t->name, shown), (long long)rows, (long long)columns, m->n_out, m->n_in);
    m->group = (size_t)block;
    m->nested_block = (size_t)nested;
    return true;
}

static enum quant_found find_4(const struct quant_config *q, const struct checkpoint *c, const char *base,
                               struct quant_matrix *m, struct err *err)
{
    m->part[CODES] = quant_part(c, base, ".weight");
    m->part[MAP] = quant_part(c, base, ".weight.quant_map");
    if (!m->part[CODES] || !m->part[MAP])
        return QUANT_NOT_THERE;
    const struct tensor *nf4 = quant_part(c, base, ".weight.quant_state.bitsandbytes__nf4");
    m->part[STATE] = nf4 ? nf4 : quant_part(c, base, ".weight.quant_state.bitsandbytes__fp4");
    m->part[ABSMAX] = quant_part(c, base, ".weight.absmax");
    m->part[NESTED_ABSMAX] = quant_part(c, base, ".weight.nested_absmax");
    m->part[NESTED_MAP] = quant_part(c, base, ".weight.nested_quant_map");
    m->bits = 4;
    if (!m->part[STATE])
        return quant_missing(m, base, ".weight.quant_state.bitsandbytes__nf4", err);
    if (!m->part[ABSMAX] || !m->part[NESTED_ABSMAX] != !m->part[NESTED_MAP])
        return quant_missing(m, base, m->part[ABSMAX] ? ".weight.nested_absmax" : ".weight.absmax", err);
    if (!read_state(m, err))
        return QUANT_WRONG;
    size_t n = m->n_out * m->n_in, blocks = (n + m->group - 1) / m->group; /* sizes are limited by the configuration */
    int nested = m->part[NESTED_ABSMAX] != NULL;
    size_t nested_blocks = nested ? (blocks + m->nested_block - 1) / m->nested_block : 0;
    enum dtype absmax = nested ? DTYPE_U8 : DTYPE_F32;
    if (!quant_check(m->part[CODES], DTYPE_U8, DTYPE_I8, 2, (n + 1) / 2, 1, err) ||
        !quant_check(m->part[MAP], DTYPE_F32, DTYPE_F32, 1, MAP_CODES, 0, err) ||
        !quant_check(m->part[ABSMAX], absmax, absmax, 1, blocks, 0, err) ||
        (nested && (!quant_check(m->part[NESTED_ABSMAX], DTYPE_F32, DTYPE_F32, 1, nested_blocks, 0, err) ||
                    !quant_check(m->part[NESTED_MAP], DTYPE_F32, DTYPE_F32, 1, NESTED_CODES, 0, err))))
        return QUANT_WRONG;
    return QUANT_THERE;
}

static float absmax_of(const struct quant_matrix *m, size_t block)
{
    if (!m->part[NESTED_ABSMAX])
        return quant_float(m->part[ABSMAX], block);
    unsigned code = ((const unsigned char *)m->part[ABSMAX]->data)[block];
    float v = quant_float(m->part[NESTED_MAP], code) * quant_float(m->part[NESTED_ABSMAX], block / m->nested_block);
    return v + (float)m->nested_offset;
}

static bool floats_4(const struct quant_matrix *m, size_t first, size_t n, float *out, struct err *err)
{
    float map[MAP_CODES], absmax = 0;
    const unsigned char *codes = m->part[CODES]->data;
    size_t begin = first * m->n_in, end = (first + n) * m->n_in;
    for (size_t i = 0; i < MAP_CODES; i++)
        map[i] = quant_float(m->part[MAP], i);
    for (size_t i = begin; i < end; i++) {
        if (i == begin || i % m->group == 0)
            absmax = absmax_of(m, i / m->group);
        out[i - begin] = map[i % 2 ? codes[i / 2] & 15 : codes[i / 2] >> 4] * absmax;
    }
    return true;
}

/* ---- 8 bits ---- */

static enum quant_found find_8(const struct quant_config *q, const struct checkpoint *c, const char *base,
                               struct quant_matrix *m, struct err *err)
{
    m->part[CODES] = quant_part(c, base, ".weight");
    if (!m->part[CODES] || m->part[CODES]->type != DTYPE_I8)
        return QUANT_NOT_THERE;
    m->part[1] = quant_part(c, base, ".SCB");
    m->part[2] = quant_part(c, base, ".weight_format");
    m->bits = 8;
    m->group = m->n_in;
    if (!m->part[1])
        return quant_missing(m, base, ".SCB", err);
    if (!quant_check(m->part[CODES], DTYPE_I8, DTYPE_I8, 2, m->n_out, m->n_in, err) ||
        !quant_check(m->part[1], DTYPE_F32, DTYPE_F32, 1, m->n_out, 0, err))
        return QUANT_WRONG;
    if (m->part[2] && m->part[2]->bytes == 1 && *(const unsigned char *)m->part[2]->data != 0) {
        err_set_param(err, ERR_MODEL_UNSUPPORTED, "tensor", "%s: '%s.weight_format' is %u; only rows (0) are read",
                      m->part[2]->file, base, *(const unsigned char *)m->part[2]->data);
        return QUANT_WRONG;
    }
    quant_hold(m, 0, 0, 0);
    return QUANT_THERE;
}

static bool codes_8(const struct quant_matrix *m, size_t first, size_t n, int8_t *codes, float *scales, float *mins,
                    struct err *err)
{
    memcpy(codes, (const int8_t *)m->part[CODES]->data + first * m->n_in, n * m->n_in);
    for (size_t r = 0; r < n; r++)
        scales[r] = quant_float(m->part[1], first + r) / 127;
    return true;
}

const struct quant_family quant_bnb4 = {.name = "bitsandbytes", .find = find_4, .floats = floats_4};
const struct quant_family quant_bnb8 = {.name = "bitsandbytes", .find = find_8, .codes = codes_8};

/* compressed-tensors (https://github.com/vllm-project/compressed-tensors), integer formats:
 *   pack-quantized  weight_packed I32 [n_out][n_in * bits / 32]: codes + 2^(bits - 1), the first in the lowest bits
 *                   weight_zero_point I32 [n_out * bits / 32][groups], packed along the outputs in the same way; in early
 *                   files as int-quantized has it
 *                   weight_shape I64 or I32 [2]: n_out, n_in; weight_g_idx I32 [n_in], in files without an order all -1
 *   int-quantized   weight I8 [n_out][n_in], weight_zero_point I8 [n_out][groups], or one number
 *   both            weight_scale [n_out][groups], [n_out][1], or one number
 *   w = scale * (code - zero point). Which of them, the number of bits and the groups follow from the tensors, so that
 *   mixed checkpoints need no rules about module names. Float formats are read by quant_fp8.c. */
#include "model/checkpoint_impl.h"
#include "model/quant.h"

#include <stdlib.h>

#define WORD_BITS 32

enum { CODES, SCALES, ZEROS, ORDER = QUANT_PART_ORDER, SHAPE, INPUT_SCALE };

static bool find_scales(struct quant_matrix *m, struct err *err)
{
    const struct tensor *t = m->part[SCALES];
    char shown[CHECKPOINT_SHOW_BYTES];
    if (dtype_info(t->type)->block != 1 || (t->type != DTYPE_F32 && t->type != DTYPE_F16 && t->type != DTYPE_BF16))
        return err_set_param(err, ERR_MODEL_DAMAGED, "tensor", "%s: tensor '%s' is of type %s, expected F32, F16 or BF16",
                             t->file, checkpoint_show(t->name, shown), dtype_info(t->type)->name);
    size_t elements = 1, per_out;
    checkpoint_elements(t->dims, t->n_dims, &elements);
    per_out = elements / m->n_out;
    m->group = m->n_in;
    if (elements == 1 && m->n_out != 1)
        return true; /* one number for the whole matrix */
    if (t->n_dims < 1 || t->n_dims > 2 || t->dims[0] != m->n_out || per_out == 0 || m->n_in % per_out)
        return err_set_param(err, ERR_MODEL_DAMAGED, "tensor",
                             "%s: tensor '%s' has %zu scales for a matrix of %zu x %zu; expected a row of scales for each "
                             "output, or one number",
                             t->file, checkpoint_show(t->name, shown), elements, m->n_out, m->n_in);
    m->group = m->n_in / per_out;
    return true;
}

/* Signed, of every group, or one number. */
static bool check_byte_zeros(const struct quant_matrix *m, struct err *err)
{
    const struct tensor *z = m->part[ZEROS];
    if (z->n_dims < 2)
        return quant_check(z, DTYPE_I8, DTYPE_I8, z->n_dims, 1, 0, err);
    return quant_check(z, DTYPE_I8, DTYPE_I8, 2, m->n_out, quant_groups(m), err);
}

static bool find_packed(struct quant_matrix *m, struct err *err)
{
    const struct tensor *t = m->part[CODES], *z = m->part[ZEROS];
    char shown[CHECKPOINT_SHOW_BYTES];
    size_t groups = quant_groups(m);
    for (m->bits = 4; m->bits <= 8; m->bits += 4) {
        size_t in_a_word = WORD_BITS / m->bits, words = (m->n_in + in_a_word - 1) / in_a_word;
        if (t->n_dims != 2 || t->dims[1] != words)
            continue;
        if (!quant_check(t, DTYPE_I32, DTYPE_I32, 2, m->n_out, words, err))
            return false;
        if (z && z->type == DTYPE_I8)
            return check_byte_zeros(m, err);
        return (!z || quant_check(z, DTYPE_I32, DTYPE_I32, 2, (m->n_out + in_a_word - 1) / in_a_word, groups, err));
    }
    return err_set_param(err, ERR_MODEL_UNSUPPORTED, "tensor",
                         "%s: tensor '%s' has %zu words a row for %zu inputs: neither 4 nor 8 bits a code", t->file,
                         checkpoint_show(t->name, shown), t->n_dims == 2 ? t->dims[1] : 0, m->n_in);
}

static bool find_bytes(struct quant_matrix *m, struct err *err)
{
    m->bits = 8;
    return quant_check(m->part[CODES], DTYPE_I8, DTYPE_I8, 2, m->n_out, m->n_in, err) &&
           (!m->part[ZEROS] || check_byte_zeros(m, err));
}

/* Of the matrix before it was packed: words alone do not tell whether their last codes count. */
static bool check_shape(const struct quant_matrix *m, struct err *err)
{
    const struct tensor *t = m->part[SHAPE];
    int64_t dims[2] = {0, 0};
    char shown[CHECKPOINT_SHOW_BYTES];
    if (!quant_check(t, DTYPE_I64, DTYPE_I32, 1, 2, 0, err))
        return false;
    for (size_t i = 0; i < 2; i++) {
        if (t->type == DTYPE_I64)
            memcpy(&dims[i], (const char *)t->data + 8 * i, 8);
        else
            dims[i] = (int32_t)quant_word(t, i);
    }
    return (dims[0] == (int64_t)m->n_out && dims[1] == (int64_t)m->n_in) ||
           err_set_param(err, ERR_MODEL_DAMAGED, "tensor",
                         "%s: tensor '%s' tells of %lld x %lld codes, but the configuration asks for %zu x %zu", t->file,
                         checkpoint_show(t->name, shown), (long long)dims[0], (long long)dims[1], m->n_out, m->n_in);
}

static enum quant_found find(const struct quant_config *q, const struct checkpoint *c, const char *base, struct quant_matrix *m,
                             struct err *err)
{
    const struct tensor *packed = quant_part(c, base, ".weight_packed"), *bytes = quant_part(c, base, ".weight");
    m->part[CODES] = packed ? packed : bytes && bytes->type == DTYPE_I8 ? bytes : NULL;
    if (!m->part[CODES])
        return QUANT_NOT_THERE;
    m->part[SCALES] = quant_part(c, base, ".weight_scale");
    m->part[ZEROS] = quant_part(c, base, ".weight_zero_point");
    m->part[ORDER] = quant_part(c, base, ".weight_g_idx");
    m->part[SHAPE] = quant_part(c, base, ".weight_shape");
    m->part[INPUT_SCALE] = quant_part(c, base, ".input_scale"); /* of activations, which are not rounded to 8 bits here */
    if (!m->part[SCALES])
        return quant_missing(m, base, ".weight_scale", err);
    if (!find_scales(m, err) || !(packed ? find_packed(m, err) : find_bytes(m, err)) ||
        (m->part[SHAPE] && !check_shape(m, err)))
        return QUANT_WRONG;
    if (m->part[ORDER] && !quant_check(m->part[ORDER], DTYPE_I32, DTYPE_I32, 1, m->n_in, 0, err))
        return QUANT_WRONG;
    /* tools set all groups to -1 at first and write the order over them, where there is one */
    int reordered =
        m->part[ORDER] && !quant_words_are(m->part[ORDER], UINT32_MAX) && quant_is_reordered(m->part[ORDER], m->n_in, m->group);
    quant_hold(m, m->part[ZEROS] != NULL, m->part[SCALES]->type == DTYPE_F16 && !m->part[ZEROS], reordered);
    return QUANT_THERE;
}

static unsigned packed_at(const struct quant_matrix *m, const struct tensor *t, size_t row, size_t words, size_t k)
{
    size_t in_a_word = WORD_BITS / m->bits;
    return quant_word(t, row * words + k / in_a_word) >> k % in_a_word * m->bits & ((1u << m->bits) - 1);
}

/* In the range of codes: 0 is the middle. */
static int zero_at(const struct quant_matrix *m, size_t out, size_t group)
{
    const struct tensor *z = m->part[ZEROS];
    size_t in_a_word = WORD_BITS / m->bits, groups = quant_groups(m);
    if (z->type == DTYPE_I8)
        return ((const int8_t *)z->data)[z->n_dims == 2 ? out * groups + group : 0];
    uint32_t word = quant_word(z, out / in_a_word * groups + group);
    return (int)(word >> out % in_a_word * m->bits & ((1u << m->bits) - 1)) - (1 << (m->bits - 1));
}

static bool order_inputs(const struct quant_matrix *m, int32_t *order, struct err *err)
{
    return quant_order_by_group(m->part[ORDER], m->n_in, m->group, order, err);
}

/* Of one output: signed codes, in the order of groups. Nibbles are 0 .. 15, the middle at 8. */
static void row_codes(const struct quant_matrix *m, size_t out, const int32_t *order, int8_t *codes)
{
    const struct tensor *t = m->part[CODES];
    size_t words = t->type == DTYPE_I32 ? t->dims[1] : 0;
    for (size_t k = 0; k < m->n_in; k++) {
        size_t in = order ? (size_t)order[k] : k;
        if (t->type == DTYPE_I8)
            codes[k] = ((const int8_t *)t->data)[out * m->n_in + in];
        else
            codes[k] = (int8_t)((int)packed_at(m, t, out, words, in) - (m->bits == 8 ? 128 : 0));
    }
}

static bool codes(const struct quant_matrix *m, size_t first, size_t n, int8_t *out, float *scales, float *mins,
                  struct err *err)
{
    size_t groups = quant_groups(m), elements = 1;
    checkpoint_elements(m->part[SCALES]->dims, m->part[SCALES]->n_dims, &elements);
    int32_t *order = m->held.has_order ? malloc(m->n_in * sizeof *order) : NULL;
    if (m->held.has_order && !order)
        return err_set(err, ERR_MEMORY, "no memory left to order %zu inputs", m->n_in);
    bool ok = !order || order_inputs(m, order, err);
    for (size_t r = 0; ok && r < n; r++) {
        row_codes(m, first + r, order, out + r * m->n_in);
        for (size_t g = 0; g < groups; g++) {
            float s = quant_float(m->part[SCALES], elements == 1 ? 0 : (first + r) * groups + g);
            scales[r * groups + g] = s;
            if (m->held.has_min) /* nibbles are held as they are, from 0 */
                mins[r * groups + g] = -s * (float)(zero_at(m, first + r, g) + (m->bits == 4 ? 8 : 0));
        }
    }
    free(order);
    return ok;
}

const struct quant_family quant_compressed = {
    .name = "compressed-tensors", .find = find, .codes = codes, .order = order_inputs};

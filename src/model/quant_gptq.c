/* GPTQ (https://arxiv.org/abs/2210.17323) as AutoGPTQ and GPTQModel store it, and AWQ (https://arxiv.org/abs/2306.00978) in
 * its "gemm" form. Both keep a matrix transposed, [inputs][outputs], packed in words of 32 bits:
 *   GPTQ  qweight [n_in * bits / 32][n_out]: 32 / bits inputs of one output in a word, the first in the lowest bits
 *         qzeros [groups][n_out * bits / 32], scales [groups][n_out], g_idx [n_in]: the group of each input, or all 0
 *         zero points are stored less 1 in format v1, as they are in v2
 *   AWQ   qweight [n_in][n_out / 8], qzeros [groups][n_out / 8]: nibble i of a word is output ORDER[i] of its eight
 *         scales [groups][n_out]
 *   w = scale * (code - zero) */
#include "model/checkpoint_impl.h"
#include "model/quant.h"

#include <stdlib.h>

#define WORD_BITS 32

enum { CODES, SCALES, ZEROS, ORDER = QUANT_PART_ORDER }; /* parts */

/* What both have; bits and group as the configuration says. */
static enum quant_found find_parts(const struct quant_config *q, const struct checkpoint *c, const char *base,
                                   struct quant_matrix *m, struct err *err)
{
    m->part[CODES] = quant_part(c, base, ".qweight");
    if (!m->part[CODES])
        return QUANT_NOT_THERE;
    m->part[SCALES] = quant_part(c, base, ".scales");
    m->part[ZEROS] = quant_part(c, base, ".qzeros");
    if (!m->part[SCALES] || !m->part[ZEROS])
        return quant_missing(m, base, m->part[SCALES] ? ".qzeros" : ".scales", err);
    m->bits = q->bits;
    m->group = q->group == 0 || q->group > m->n_in ? m->n_in : q->group;
    return QUANT_THERE;
}

/* Bits and group of a matrix in a mixed checkpoint, as its tensors have them; what fits nothing is found by the checks. */
static void read_shapes(struct quant_matrix *m)
{
    const struct tensor *t = m->part[CODES], *s = m->part[SCALES];
    size_t words = t->n_dims == 2 ? t->dims[0] : 0, groups = s->n_dims == 2 ? s->dims[0] : 0;
    for (unsigned bits = 4; bits <= 8; bits += 4) {
        if (words == m->n_in * bits / WORD_BITS)
            m->bits = bits;
    }
    if (groups != quant_groups(m) && groups > 0 && m->n_in % groups == 0)
        m->group = m->n_in / groups;
}

/* Some tools write zeros in place of groups that nobody reads: those who compute without desc_act take inputs as they come.
 * With it, all inputs in one of several groups are damage. */
static int is_unset(const struct quant_config *q, const struct tensor *g_idx)
{
    return !q->act_order && quant_words_are(g_idx, 0);
}

static enum quant_found find_gptq(const struct quant_config *q, const struct checkpoint *c, const char *base,
                                  struct quant_matrix *m, struct err *err)
{
    enum quant_found found = find_parts(q, c, base, m, err);
    if (found != QUANT_THERE)
        return found;
    m->part[ORDER] = quant_part(c, base, ".g_idx");
    m->zeros_as_is = q->zeros_as_is;
    if (q->mixed)
        read_shapes(m);
    size_t in_a_word = WORD_BITS / m->bits, groups = quant_groups(m);
    if (m->n_in % in_a_word || m->n_out % in_a_word) {
        err_set_param(err, ERR_MODEL_UNSUPPORTED, "tensor",
                      "%s: tensor '%s.qweight': %zu x %zu codes of %u bits do not fill "
                      "words",
                      m->part[CODES]->file, base, m->n_out, m->n_in, m->bits);
        return QUANT_WRONG;
    }
    if (!quant_check(m->part[CODES], DTYPE_I32, DTYPE_I32, 2, m->n_in / in_a_word, m->n_out, err) ||
        !quant_check(m->part[SCALES], DTYPE_F16, m->part[SCALES]->type == DTYPE_BF16 ? DTYPE_BF16 : DTYPE_F32, 2, groups,
                     m->n_out, err) ||
        !quant_check(m->part[ZEROS], DTYPE_I32, DTYPE_I32, 2, groups, m->n_out / in_a_word, err) ||
        (m->part[ORDER] && !quant_check(m->part[ORDER], DTYPE_I32, DTYPE_I32, 1, m->n_in, 0, err)))
        return QUANT_WRONG;
    int reordered = m->part[ORDER] && !is_unset(q, m->part[ORDER]) && quant_is_reordered(m->part[ORDER], m->n_in, m->group);
    quant_hold(m, !q->symmetric, q->symmetric && m->part[SCALES]->type == DTYPE_F16, reordered);
    return QUANT_THERE;
}

/* Scales and mins of outputs [first, first + n). zero(m, group, out): the zero point. */
static bool read_scales(const struct quant_matrix *m, unsigned (*zero)(const struct quant_matrix *, size_t, size_t),
                        size_t first, size_t n, float *scales, float *mins, struct err *err)
{
    size_t groups = quant_groups(m);
    unsigned middle = 1u << (m->bits - 1);
    char shown[CHECKPOINT_SHOW_BYTES];
    for (size_t g = 0; g < groups; g++) {
        for (size_t r = 0; r < n; r++) {
            float s = quant_float(m->part[SCALES], g * m->n_out + first + r);
            unsigned z = zero(m, g, first + r);
            scales[r * groups + g] = s;
            if (m->held.has_min)
                mins[r * groups + g] = s * (float)((m->bits == 8 ? (int)middle : 0) - (int)z);
            else if (z != middle)
                return err_set_param(err, ERR_MODEL_DAMAGED, "tensor",
                                     "%s: tensor '%s' has the zero point %u for output %zu of group %zu, but the "
                                     "configuration says that the model is symmetric (zero point %u)",
                                     m->part[ZEROS]->file, checkpoint_show(m->part[ZEROS]->name, shown), z, first + r, g,
                                     middle);
        }
    }
    return true;
}

static unsigned zero_gptq(const struct quant_matrix *m, size_t group, size_t out)
{
    size_t in_a_word = WORD_BITS / m->bits;
    uint32_t word = quant_word(m->part[ZEROS], group * (m->n_out / in_a_word) + out / in_a_word);
    unsigned z = word >> out % in_a_word * m->bits & ((1u << m->bits) - 1);
    return m->zeros_as_is ? z : z + 1;
}

static bool order_gptq(const struct quant_matrix *m, int32_t *order, struct err *err)
{
    return quant_order_by_group(m->part[ORDER], m->n_in, m->group, order, err);
}

/* Codes come out with the inputs of a group side by side. */
static bool codes_gptq(const struct quant_matrix *m, size_t first, size_t n, int8_t *codes, float *scales, float *mins,
                       struct err *err)
{
    size_t in_a_word = WORD_BITS / m->bits;
    unsigned mask = (1u << m->bits) - 1, bias = m->bits == 8 ? 128 : 0;
    int32_t *order = m->held.has_order ? malloc(m->n_in * sizeof *order) : NULL;
    if (m->held.has_order && !order)
        return err_set(err, ERR_MEMORY, "no memory left to order %zu inputs", m->n_in);
    if (order && !order_gptq(m, order, err)) {
        free(order);
        return false;
    }
    for (size_t k = 0; k < m->n_in; k++) {
        size_t in = order ? (size_t)order[k] : k;
        unsigned shift = (unsigned)(in % in_a_word) * m->bits;
        size_t row = in / in_a_word * m->n_out + first;
        for (size_t r = 0; r < n; r++)
            codes[r * m->n_in + k] = (int8_t)((int)(quant_word(m->part[CODES], row + r) >> shift & mask) - (int)bias);
    }
    free(order);
    return read_scales(m, zero_gptq, first, n, scales, mins, err);
}

/* ---- AWQ ---- */

/* Where the nibble of output i (of eight) lies in its word. */
static const unsigned AWQ_NIBBLE[8] = {0, 4, 1, 5, 2, 6, 3, 7};

static enum quant_found find_awq(const struct quant_config *q, const struct checkpoint *c, const char *base,
                                 struct quant_matrix *m, struct err *err)
{
    enum quant_found found = find_parts(q, c, base, m, err);
    if (found != QUANT_THERE)
        return found;
    size_t groups = quant_groups(m);
    if (m->n_out % 8) {
        err_set_param(err, ERR_MODEL_UNSUPPORTED, "tensor", "%s: tensor '%s.qweight': %zu outputs do not fill words",
                      m->part[CODES]->file, base, m->n_out);
        return QUANT_WRONG;
    }
    if (!quant_check(m->part[CODES], DTYPE_I32, DTYPE_I32, 2, m->n_in, m->n_out / 8, err) ||
        !quant_check(m->part[SCALES], DTYPE_F16, DTYPE_BF16, 2, groups, m->n_out, err) ||
        !quant_check(m->part[ZEROS], DTYPE_I32, DTYPE_I32, 2, groups, m->n_out / 8, err))
        return QUANT_WRONG;
    quant_hold(m, 1, 0, 0);
    return QUANT_THERE;
}

static unsigned awq_nibble(const struct tensor *t, size_t row, size_t n_out, size_t out)
{
    return quant_word(t, row * (n_out / 8) + out / 8) >> AWQ_NIBBLE[out % 8] * 4 & 15;
}

static unsigned zero_awq(const struct quant_matrix *m, size_t group, size_t out)
{
    return awq_nibble(m->part[ZEROS], group, m->n_out, out);
}

static bool codes_awq(const struct quant_matrix *m, size_t first, size_t n, int8_t *codes, float *scales, float *mins,
                      struct err *err)
{
    for (size_t k = 0; k < m->n_in; k++) {
        for (size_t r = 0; r < n; r++)
            codes[r * m->n_in + k] = (int8_t)awq_nibble(m->part[CODES], k, m->n_out, first + r);
    }
    return read_scales(m, zero_awq, first, n, scales, mins, err);
}

const struct quant_family quant_gptq = {.name = "gptq", .find = find_gptq, .codes = codes_gptq, .order = order_gptq};
const struct quant_family quant_awq = {.name = "awq", .find = find_awq, .codes = codes_awq};

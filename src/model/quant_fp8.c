/* Matrices of 8-bit floats with scales: w = scale * value.
 *   weight F8_E4M3 [n_out][n_in] and one of
 *   weight_scale_inv [ceil(n_out / block)][ceil(n_in / block)]  DeepSeek's and Qwen's blocks, 128 x 128 or as the
 *                                                               configuration says; the last ones may be partial
 *   weight_scale     [n_out][1], [n_out], one number, or blocks  compressed-tensors' float-quantized, fbgemm_fp8
 * Dequantized to fp32, which holds every product exactly: a product of a 4-bit and a 24-bit significand is rounded once, as
 * in transformers. */
#include "model/checkpoint_impl.h"
#include "model/quant.h"

enum { VALUES, SCALES };

static bool wrong_scales(const struct quant_config *q, const struct quant_matrix *m, struct err *err)
{
    const struct tensor *t = m->part[SCALES];
    char shown[CHECKPOINT_SHOW_BYTES];
    return err_set_param(err, ERR_MODEL_DAMAGED, "tensor",
                         "%s: tensor '%s' has %u dimensions (%zu, %zu), which are no scales of a matrix of %zu x %zu: "
                         "expected one number, one for each output, or one for each block of %zu x %zu",
                         t->file, checkpoint_show(t->name, shown), t->n_dims, t->n_dims > 0 ? t->dims[0] : 1,
                         t->n_dims > 1 ? t->dims[1] : 1, m->n_out, m->n_in, q->block[0] ? q->block[0] : 128,
                         q->block[0] ? q->block[1] : 128);
}

static size_t blocks_of(size_t n, size_t block)
{
    return (n + block - 1) / block;
}

/* Outputs and inputs that share a scale. The shape of the scales does not tell blocks of 100 from those of 128 in a matrix
 * of 300, so where the configuration says them, no others are tried. */
static bool find_blocks(const struct quant_config *q, struct quant_matrix *m, struct err *err)
{
    const struct tensor *t = m->part[SCALES];
    static const size_t COMMON[][2] = {{128, 128}, {64, 64}, {32, 32}, {256, 256}};
    int told = q->block[0] != 0;
    const size_t(*blocks)[2] = told ? &q->block : COMMON;
    size_t elements = 1, rows = t->n_dims > 0 ? t->dims[0] : 1, columns = t->n_dims > 1 ? t->dims[1] : 1;
    checkpoint_elements(t->dims, t->n_dims, &elements);
    if (t->n_dims > 2 || elements == 0 || (t->type != DTYPE_F32 && t->type != DTYPE_BF16 && t->type != DTYPE_F16))
        return wrong_scales(q, m, err);
    m->group = m->n_in;
    m->block_out = elements == 1 ? m->n_out : 1;
    if (elements == 1 || (rows == m->n_out && columns == 1))
        return true;
    for (size_t i = 0; i < (told ? 1 : sizeof COMMON / sizeof COMMON[0]); i++) {
        m->block_out = blocks[i][0];
        m->group = blocks[i][1];
        if (rows == blocks_of(m->n_out, m->block_out) && columns == blocks_of(m->n_in, m->group))
            return true;
    }
    return wrong_scales(q, m, err);
}

static enum quant_found find(const struct quant_config *q, const struct checkpoint *c, const char *base, struct quant_matrix *m,
                             struct err *err)
{
    const struct tensor *t = quant_part(c, base, ".weight"), *inverse = quant_part(c, base, ".weight_scale_inv");
    if (!t || (t->type != DTYPE_F8_E4M3 && t->type != DTYPE_F8_E5M2))
        return QUANT_NOT_THERE;
    m->part[VALUES] = t;
    m->part[SCALES] = inverse ? inverse : quant_part(c, base, ".weight_scale");
    m->part[2] = quant_part(c, base, ".input_scale"); /* of activations, which are not quantized here */
    m->bits = 8;
    m->floats = DTYPE_F32;
    if (!m->part[SCALES])
        return quant_missing(m, base, q->method == QUANT_FP8 ? ".weight_scale_inv" : ".weight_scale", err);
    if (!quant_check(t, t->type, t->type, 2, m->n_out, m->n_in, err) || !find_blocks(q, m, err))
        return QUANT_WRONG;
    return QUANT_THERE;
}

static bool floats(const struct quant_matrix *m, size_t first, size_t n, float *out, struct err *err)
{
    size_t groups = quant_groups(m);
    dtype_to_f32(m->part[VALUES]->type, (const unsigned char *)m->part[VALUES]->data + first * m->n_in, n * m->n_in, out);
    for (size_t r = 0; r < n; r++) {
        for (size_t g = 0; g < groups; g++) {
            float s = quant_float(m->part[SCALES], (first + r) / m->block_out * groups + g);
            size_t end = (g + 1) * m->group < m->n_in ? (g + 1) * m->group : m->n_in;
            for (size_t k = g * m->group; k < end; k++)
                out[r * m->n_in + k] *= s;
        }
    }
    return true;
}

const struct quant_family quant_fp8 = {.name = "fp8", .find = find, .floats = floats};

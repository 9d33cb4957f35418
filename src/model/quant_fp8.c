/* Matrices of 8-bit floats with scales: w = scale * value.
 *   weight F8_E4M3 [n_out][n_in] and one of
 *   weight_scale_inv [ceil(n_out / block)][ceil(n_in / block)]  DeepSeek's and Qwen's blocks, 128 x 128; the last ones may
 *                                                               be partial
 *   weight_scale     [n_out][1], [n_out], one number, or blocks  compressed-tensors' float-quantized, fbgemm_fp8
 * Dequantized to fp32, which holds every product exactly: a product of a 4-bit and a 24-bit significand is rounded once, as
 * in transformers. */
#include "model/checkpoint_impl.h"
#include "model/quant.h"

enum { VALUES, SCALES };

static bool wrong_scales(const struct quant_matrix *m, struct err *err)
{
    const struct tensor *t = m->part[SCALES];
    char shown[CHECKPOINT_SHOW_BYTES];
    return err_set_param(err, ERR_MODEL_DAMAGED, "tensor",
                         "%s: tensor '%s' has %u dimensions (%zu, %zu), which are no scales of a matrix of %zu x %zu: "
                         "expected one number, one for each output, or one for each block of 128 x 128",
                         t->file, checkpoint_show(t->name, shown), t->n_dims, t->n_dims > 0 ? t->dims[0] : 1,
                         t->n_dims > 1 ? t->dims[1] : 1, m->n_out, m->n_in);
}

/* Outputs and inputs that share a scale. */
static bool find_blocks(struct quant_matrix *m, struct err *err)
{
    const struct tensor *t = m->part[SCALES];
    static const size_t BLOCKS[] = {128, 64, 32, 256};
    size_t elements = 1, rows = t->n_dims > 0 ? t->dims[0] : 1, columns = t->n_dims > 1 ? t->dims[1] : 1;
    checkpoint_elements(t->dims, t->n_dims, &elements);
    if (t->n_dims > 2 || elements == 0 || (t->type != DTYPE_F32 && t->type != DTYPE_BF16 && t->type != DTYPE_F16))
        return wrong_scales(m, err);
    m->group = m->n_in;
    m->block_out = elements == 1 ? m->n_out : 1;
    if (elements == 1 || (rows == m->n_out && columns == 1))
        return true;
    for (size_t i = 0; i < sizeof BLOCKS / sizeof BLOCKS[0]; i++) {
        m->group = m->block_out = BLOCKS[i];
        if (rows == (m->n_out + m->block_out - 1) / m->block_out && columns == (m->n_in + m->group - 1) / m->group)
            return true;
    }
    return wrong_scales(m, err);
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
    if (!quant_check(t, t->type, t->type, 2, m->n_out, m->n_in, err) || !find_blocks(m, err))
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

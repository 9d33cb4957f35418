/* Rotary embedding: frequencies of every scaling, and the cosines of a step.
 *
 * Formulas: RoPE https://arxiv.org/abs/2104.09864, YaRN https://arxiv.org/abs/2309.00071, LongRoPE
 * https://arxiv.org/abs/2402.13753, llama 3 and dynamic NTK as transformers' modeling_rope_utils has them.
 *
 * Two scalings look at a length. Its rule here: a row at position p of a sequence whose prompt has n tokens is rotated
 * for the length max(n, p + 1), which is what transformers does when it computes the prompt at once and then decodes
 * token by token; so the result depends on the sequence alone, however it is cut into steps. */
#include "model/model_impl.h"

#include <math.h>

static double default_freq(double theta, size_t i, size_t n_pairs)
{
    return pow(theta, -(double)i / (double)n_pairs);
}

static void llama3_freqs(struct rope *r, const struct rope_config *c)
{
    double old = (double)c->original_context;
    for (size_t i = 0; i < r->n_pairs; i++) {
        double wave = 2 * M_PI / r->inv_freq[i];
        double smooth = (old / wave - c->low_freq_factor) / (c->high_freq_factor - c->low_freq_factor);
        if (wave > old / c->low_freq_factor)
            r->inv_freq[i] /= c->factor;
        else if (wave >= old / c->high_freq_factor)
            r->inv_freq[i] *= (1 - smooth) / c->factor + smooth;
    }
}

static double yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static void yarn_freqs(struct rope *r, const struct rope_config *c)
{
    double dim = 2.0 * (double)r->n_pairs, ln = 2 * log(c->theta);
    double fast = c->beta_fast > 0 ? c->beta_fast : 32, slow = c->beta_slow > 0 ? c->beta_slow : 1;
    double low = dim * log((double)c->original_context / (fast * 2 * M_PI)) / ln;
    double high = dim * log((double)c->original_context / (slow * 2 * M_PI)) / ln;
    if (c->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, dim - 1);
    if (low == high)
        high += 0.001;
    for (size_t i = 0; i < r->n_pairs; i++) {
        double ramp = fmin(fmax(((double)i - low) / (high - low), 0), 1);
        r->inv_freq[i] *= (1 - ramp) + ramp / c->factor;
    }
    if (c->mscale > 0 && c->mscale_all_dim > 0)
        r->scale = yarn_mscale(c->factor, c->mscale) / yarn_mscale(c->factor, c->mscale_all_dim);
    else
        r->scale = yarn_mscale(c->factor, 1);
}

static void longrope_freqs(struct rope *r, const struct rope_config *c)
{
    for (size_t i = 0; i < r->n_pairs; i++) {
        r->long_inv_freq[i] = r->inv_freq[i] / c->long_factor[i];
        r->inv_freq[i] /= c->short_factor[i];
    }
    if (c->factor > 1)
        r->scale = sqrt(1 + log(c->factor) / log((double)c->original_context));
}

bool rope_init(struct rope *r, const struct rope_config *c, struct err *err)
{
    *r = (struct rope){.kind = c->kind,
                       .order = c->order,
                       .n_pairs = c->n_pairs,
                       .context_max = c->context_max,
                       .original_context = c->original_context,
                       .theta = c->theta,
                       .factor = c->factor,
                       .scale = 1};
    if (c->kind == ROPE_NONE)
        return true;
    if (c->n_pairs == 0 || c->n_pairs > CONFIG_ROPE_PAIRS_MAX)
        return err_set(err, ERR_MODEL_DAMAGED, "rotary embedding of %zu dimensions: expected 2 to %d", 2 * c->n_pairs,
                       CONFIG_HEAD_DIM_MAX);
    if (c->kind == ROPE_LLAMA3 && !(c->high_freq_factor > c->low_freq_factor && c->low_freq_factor > 0))
        return err_set(err, ERR_MODEL_DAMAGED,
                       "llama3 rotary scaling: high_freq_factor %g must be above low_freq_factor "
                       "%g, and that above 0",
                       c->high_freq_factor, c->low_freq_factor);
    if (c->kind == ROPE_DYNAMIC && (c->n_pairs < 2 || c->factor < 1))
        return err_set(err, ERR_MODEL_DAMAGED,
                       "dynamic rotary scaling: factor %g over %zu dimensions: expected a factor of "
                       "1 or more over 4 dimensions or more",
                       c->factor, 2 * c->n_pairs);
    if (c->kind == ROPE_LONGROPE && c->original_context < 2)
        return err_set(err, ERR_MODEL_DAMAGED, "longrope: original_max_position_embeddings is %zu, expected 2 or more",
                       c->original_context);
    for (size_t i = 0; i < r->n_pairs; i++) {
        r->inv_freq[i] = default_freq(c->theta, i, c->n_pairs);
        if (c->kind == ROPE_LINEAR)
            r->inv_freq[i] /= c->factor;
        if (c->has_divisors)
            r->inv_freq[i] /= c->short_factor[i];
    }
    if (c->kind == ROPE_LLAMA3)
        llama3_freqs(r, c);
    else if (c->kind == ROPE_YARN)
        yarn_freqs(r, c);
    else if (c->kind == ROPE_LONGROPE)
        longrope_freqs(r, c);
    if (c->attention_factor > 0)
        r->scale = c->attention_factor;
    return true;
}

uint64_t rope_class(const struct rope *r, size_t n_prompt)
{
    if (r->kind == ROPE_DYNAMIC)
        return n_prompt > r->context_max ? n_prompt : 0;
    if (r->kind == ROPE_LONGROPE)
        return n_prompt > r->original_context;
    return 0;
}

/* Frequencies for one length. `own` is filled where they are made for it. */
static const double *freqs_for(const struct rope *r, size_t length, double own[CONFIG_ROPE_PAIRS_MAX])
{
    if (r->kind == ROPE_LONGROPE)
        return length > r->original_context ? r->long_inv_freq : r->inv_freq;
    if (r->kind != ROPE_DYNAMIC || length <= r->context_max)
        return r->inv_freq;
    double dim = 2.0 * (double)r->n_pairs;
    double grown = r->factor * (double)length / (double)r->context_max - (r->factor - 1);
    double theta = r->theta * pow(grown, dim / (dim - 2));
    for (size_t i = 0; i < r->n_pairs; i++)
        own[i] = default_freq(theta, i, r->n_pairs);
    return own;
}

void rope_fill(const struct rope *r, const struct batch *batch, float *out)
{
    double own[CONFIG_ROPE_PAIRS_MAX];
    for (size_t s = 0; s < batch->n_seqs; s++) {
        const struct batch_seq *seq = &batch->seqs[s];
        const double *freq = NULL;
        size_t made_for = 0;
        for (size_t k = 0; k < seq->n_rows; k++) {
            size_t pos = seq->pos + k, length = pos + 1 > seq->n_prompt ? pos + 1 : seq->n_prompt;
            if (!freq || length != made_for)
                freq = freqs_for(r, length, own);
            made_for = length;
            float *row = out + (seq->row + k) * r->n_pairs * 2;
            for (size_t i = 0; i < r->n_pairs; i++) {
                double sine, cosine;
                sincos((double)pos * freq[i], &sine, &cosine);
                row[2 * i] = (float)(cosine * r->scale);
                row[2 * i + 1] = (float)(sine * r->scale);
            }
        }
    }
}

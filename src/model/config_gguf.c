/* GGUF metadata that all decoder architectures share: "<architecture>.<key>". What is particular to one architecture is
 * in its arch_*.c. Names of keys: the GGUF specification (https://github.com/ggml-org/ggml, docs/gguf.md). */
#include "model/checkpoint_impl.h"
#include "model/model_impl.h"

#include <math.h>
#include <stdio.h>

#define KEY_BYTES 128

struct meta_reader {
    const struct checkpoint *c;
    const char *architecture;
    struct err *err;
    bool failed;
    char key[KEY_BYTES]; /* of the last look-up */
};

static bool look(struct meta_reader *r, const char *name, struct gguf_value *v)
{
    snprintf(r->key, sizeof r->key, "%s.%s", r->architecture, name);
    return !r->failed && checkpoint_meta(r->c, r->key, v);
}

static void refuse(struct meta_reader *r, enum err_code code, const char *why)
{
    if (!r->failed)
        err_set(r->err, code, "GGUF metadata: \"%s\" %s", r->key, why);
    r->failed = true;
}

static size_t meta_size(struct meta_reader *r, const char *name, size_t otherwise, size_t min, size_t max)
{
    struct gguf_value v;
    if (!look(r, name, &v)) {
        if (otherwise == CONFIG_REQUIRED)
            refuse(r, ERR_MODEL_DAMAGED, "is missing");
        return r->failed ? min : otherwise;
    }
    if (v.kind == GGUF_ARRAY)
        refuse(r, ERR_MODEL_UNSUPPORTED, "differs from layer to layer, which is not supported");
    uint64_t u = v.kind == GGUF_UINT ? v.u : v.kind == GGUF_INT && v.i >= 0 ? (uint64_t)v.i : UINT64_MAX;
    if (u < min || u > max) {
        char why[96];
        snprintf(why, sizeof why, "is not a whole number from %zu to %zu", min, max);
        refuse(r, ERR_MODEL_DAMAGED, why);
        return min;
    }
    return (size_t)u;
}

static double meta_number(struct meta_reader *r, const char *name, double otherwise, double min, double max)
{
    struct gguf_value v;
    if (!look(r, name, &v)) {
        if (isnan(otherwise))
            refuse(r, ERR_MODEL_DAMAGED, "is missing");
        return r->failed ? min : otherwise;
    }
    double d = v.kind == GGUF_FLOAT ? v.f : v.kind == GGUF_UINT ? (double)v.u : v.kind == GGUF_INT ? (double)v.i : NAN;
    if (!(d >= min && d <= max)) {
        char why[96];
        snprintf(why, sizeof why, "is not a number from %g to %g", min, max);
        refuse(r, ERR_MODEL_DAMAGED, why);
        return min;
    }
    return d;
}

/* Divisors of the rotary frequencies that lie in a tensor. False when there is none or it is damaged. */
static bool read_divisors(struct meta_reader *r, const char *name, size_t n, double *out)
{
    const struct tensor *t = r->failed ? NULL : checkpoint_tensor(r->c, str_from(name));
    float values[CONFIG_ROPE_PAIRS_MAX];
    if (!t)
        return false;
    if (t->n_dims != 1 || t->dims[0] != n || n > CONFIG_ROPE_PAIRS_MAX || !dtype_to_f32(t->type, t->data, n, values)) {
        err_set(r->err, ERR_MODEL_DAMAGED, "%s: tensor '%s' has %zu numbers, expected [%zu] of a float type", t->file, name,
                t->dims[0], n);
        r->failed = true;
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        out[i] = (double)values[i];
        if (!(values[i] >= 1e-6f && values[i] <= 1e9f)) {
            err_set(r->err, ERR_MODEL_DAMAGED, "%s: tensor '%s'[%zu] is %g, expected 1e-6 to 1e9", t->file, name, i,
                    (double)values[i]);
            r->failed = true;
            return false;
        }
    }
    return true;
}

static enum rope_kind scaling_kind(struct meta_reader *r)
{
    struct gguf_value v;
    char shown[CHECKPOINT_SHOW_BYTES], why[2 * CHECKPOINT_SHOW_BYTES];
    if (!look(r, "rope.scaling.type", &v))
        return look(r, "rope.scale_linear", &v) ? ROPE_LINEAR : ROPE_DEFAULT;
    if (v.kind == GGUF_STRING && str_equal(v.s, STR("none")))
        return ROPE_DEFAULT;
    if (v.kind == GGUF_STRING && str_equal(v.s, STR("linear")))
        return ROPE_LINEAR;
    if (v.kind == GGUF_STRING && str_equal(v.s, STR("yarn")))
        return ROPE_YARN;
    if (v.kind == GGUF_STRING && str_equal(v.s, STR("longrope")))
        return ROPE_LONGROPE;
    snprintf(why, sizeof why, "is \"%s\"; supported are none, linear, yarn, longrope",
             checkpoint_show(v.kind == GGUF_STRING ? v.s : STR("?"), shown));
    refuse(r, ERR_MODEL_UNSUPPORTED, why);
    return ROPE_DEFAULT;
}

static void read_yarn(struct meta_reader *r, struct rope_config *rope)
{
    rope->truncate = 1;
    rope->beta_fast = meta_number(r, "rope.scaling.yarn_beta_fast", 32, 1e-3, 1e6);
    rope->beta_slow = meta_number(r, "rope.scaling.yarn_beta_slow", 1, 1e-3, 1e6);
    if (meta_number(r, "rope.scaling.yarn_ext_factor", 1, -1e9, 1e9) != 1)
        refuse(r, ERR_MODEL_UNSUPPORTED, "is not 1, which is not supported");
    if (meta_number(r, "rope.scaling.yarn_log_multiplier", 0, -1e9, 1e9) != 0)
        refuse(r, ERR_MODEL_UNSUPPORTED, "is not 0, which is not supported");
    double given = meta_number(r, "rope.scaling.attn_factor", 1, 1e-6, 1e6);
    given *= meta_number(r, "rope.scaling.yarn_attn_factor", 1, 1e-6, 1e6);
    rope->attention_factor = given * (rope->factor > 1 ? 0.1 * log(rope->factor) + 1 : 1);
}

static void read_rope(struct meta_reader *r, struct model_config *m)
{
    struct rope_config *rope = &m->rope;
    *rope = (struct rope_config){.order = ROPE_HALVES, .context_max = m->context_max, .factor = 1};
    size_t dims = meta_size(r, "rope.dimension_count", m->head_dim, 2, m->head_dim);
    if (dims % 2)
        refuse(r, ERR_MODEL_DAMAGED, "is odd, so dimensions cannot be rotated in pairs");
    rope->n_pairs = dims / 2;
    rope->theta = meta_number(r, "rope.freq_base", 10000, 1.0 + 1e-6, 1e15);
    rope->kind = scaling_kind(r);
    rope->original_context = meta_size(r, "rope.scaling.original_context_length", m->context_max, 1, CONFIG_CONTEXT_MAX);
    if (rope->kind == ROPE_LINEAR)
        rope->factor = meta_number(r, "rope.scaling.factor", meta_number(r, "rope.scale_linear", 1, 1e-3, 1e6), 1e-3, 1e6);
    if (rope->kind == ROPE_YARN) {
        rope->factor = meta_number(r, "rope.scaling.factor", NAN, 1e-3, 1e6);
        read_yarn(r, rope);
    }
    if (rope->kind == ROPE_LONGROPE || checkpoint_tensor(r->c, STR("rope_factors_long.weight"))) {
        rope->kind = ROPE_LONGROPE;
        rope->factor = (double)m->context_max / (double)rope->original_context;
        rope->attention_factor = meta_number(r, "rope.scaling.attn_factor", 0, 1e-6, 1e6);
        if (!read_divisors(r, "rope_factors_long.weight", rope->n_pairs, rope->long_factor) ||
            !read_divisors(r, "rope_factors_short.weight", rope->n_pairs, rope->short_factor)) {
            snprintf(r->key, sizeof r->key, "rope.scaling.type");
            refuse(r, ERR_MODEL_DAMAGED, "is longrope, but rope_factors_long.weight or rope_factors_short.weight is missing");
        }
        return;
    }
    rope->has_divisors = read_divisors(r, "rope_freqs.weight", rope->n_pairs, rope->short_factor);
}

static void read_special_ids(const struct checkpoint *c, struct model_config *m)
{
    static const char *const ENDS[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    uint64_t id;
    m->bos = checkpoint_meta_uint(c, "tokenizer.ggml.bos_token_id", &id) && id <= INT32_MAX ? (int32_t)id : -1;
    for (size_t i = 0; i < sizeof ENDS / sizeof ENDS[0]; i++) {
        if (!checkpoint_meta_uint(c, ENDS[i], &id) || id > INT32_MAX)
            continue;
        int known = 0;
        for (size_t k = 0; k < m->n_eos; k++)
            known |= m->eos[k] == (int32_t)id;
        if (!known)
            m->eos[m->n_eos++] = (int32_t)id;
    }
}

/* Keys of relatives whose arithmetic no forward here has: they must be absent or neutral. */
static void check_foreign_keys(struct meta_reader *r)
{
    static const struct {
        const char *key;
        double neutral;
    } KEYS[] = {{"expert_count", 0},
                {"attention.max_alibi_bias", 0},
                {"attention.clamp_kqv", 0},
                {"logit_scale", 1},
                {"embedding_scale", 1},
                {"residual_scale", 1},
                {"attention.scale", 0},
                {"attn_logit_softcapping", 0},
                {"final_logit_softcapping", 0},
                {"attention.sliding_window_pattern", 0},
                {"attention.temperature_scale", 0},
                {"use_parallel_residual", 0},
                {"attention.sliding_window", 0}};
    for (size_t i = 0; i < sizeof KEYS / sizeof KEYS[0]; i++) {
        struct gguf_value v;
        if (!look(r, KEYS[i].key, &v) || (v.kind == GGUF_BOOL && v.u == 0))
            continue;
        double d = v.kind == GGUF_FLOAT ? v.f : v.kind == GGUF_UINT ? (double)v.u : v.kind == GGUF_INT ? (double)v.i : NAN;
        if (d != 0 && d != KEYS[i].neutral)
            refuse(r, ERR_MODEL_UNSUPPORTED, "changes the model's arithmetic in a way that is not supported");
    }
    static const char *const SAME[] = {"attention.causal"};
    struct gguf_value v;
    if (look(r, SAME[0], &v) && v.kind == GGUF_BOOL && v.u == 0)
        refuse(r, ERR_MODEL_UNSUPPORTED, "is false: encoders are not supported");
}

bool model_config_read_gguf(const struct checkpoint *c, struct model_config *m, struct err *err)
{
    struct meta_reader r = {.c = c, .architecture = m->architecture, .err = err};
    check_foreign_keys(&r);
    m->n_layers = meta_size(&r, "block_count", CONFIG_REQUIRED, 1, CONFIG_LAYERS_MAX);
    m->width = m->n_embed = meta_size(&r, "embedding_length", CONFIG_REQUIRED, 1, CONFIG_WIDTH_MAX);
    m->n_inner = meta_size(&r, "feed_forward_length", CONFIG_REQUIRED, 1, CONFIG_INNER_MAX);
    m->n_heads = meta_size(&r, "attention.head_count", CONFIG_REQUIRED, 1, CONFIG_HEADS_MAX);
    m->n_kv_heads = meta_size(&r, "attention.head_count_kv", m->n_heads, 1, CONFIG_HEADS_MAX);
    m->context_max = meta_size(&r, "context_length", CONFIG_REQUIRED, 1, CONFIG_CONTEXT_MAX);
    m->norm_eps = meta_number(&r, "attention.layer_norm_rms_epsilon", NAN, 0, 1);
    m->head_dim = meta_size(&r, "attention.key_length", m->width / m->n_heads, 1, CONFIG_HEAD_DIM_MAX);
    size_t value_dim = meta_size(&r, "attention.value_length", m->head_dim, 1, CONFIG_HEAD_DIM_MAX);
    if (value_dim != m->head_dim)
        refuse(&r, ERR_MODEL_UNSUPPORTED, "differs from attention.key_length, which is not supported");
    if (m->head_dim < 2 || m->head_dim > CONFIG_HEAD_DIM_MAX)
        return r.failed ? false
                        : err_set(err, ERR_MODEL_DAMAGED,
                                  "GGUF metadata: %zu heads in a width of %zu make head_dim %zu, "
                                  "expected 2 to %d",
                                  m->n_heads, m->width, m->head_dim, CONFIG_HEAD_DIM_MAX);
    read_rope(&r, m);
    read_special_ids(c, m);
    const struct tensor *embed = checkpoint_tensor(c, STR("token_embd.weight"));
    if (r.failed)
        return false;
    if (!embed || embed->n_dims != 2 || embed->dims[0] == 0 || embed->dims[0] > CONFIG_VOCAB_MAX)
        return err_set(err, ERR_MODEL_DAMAGED, "the GGUF file has no matrix 'token_embd.weight' of at most %zu rows",
                       CONFIG_VOCAB_MAX);
    m->n_vocab = embed->dims[0];
    m->tied = checkpoint_tensor(c, STR("output.weight")) == NULL;
    return true;
}

/* GPT-2: learned positions, LayerNorm before each half, matrices stored [in][out], GELU.
 * Formulas: "Language Models are Unsupervised Multitask Learners"; names as transformers has them. */
#include "model/model_impl.h"

#include <stdio.h>

static void read(struct config_reader *r, struct model_config *m)
{
    m->n_vocab = config_size(r, "vocab_size", CONFIG_REQUIRED, 1, CONFIG_VOCAB_MAX);
    m->width = m->n_embed = config_size(r, "n_embd", CONFIG_REQUIRED, 1, CONFIG_WIDTH_MAX / 4);
    m->n_inner = config_size(r, "n_inner", 4 * m->width, 1, CONFIG_INNER_MAX);
    m->n_layers = config_size(r, "n_layer", CONFIG_REQUIRED, 1, CONFIG_LAYERS_MAX);
    m->n_heads = m->n_kv_heads = config_size(r, "n_head", CONFIG_REQUIRED, 1, CONFIG_HEADS_MAX);
    m->context_max = config_size(r, "n_positions", 1024, 1, CONFIG_CONTEXT_MAX);
    m->norm_eps = config_number(r, "layer_norm_epsilon", 1e-5, 0, 1);
    m->activation = config_activation(r, "activation_function", "gelu_new");
    m->tied = config_flag(r, "tie_word_embeddings", 1);
    m->scale_by_head_dim = config_flag(r, "scale_attn_weights", 1);
    m->scale_by_layer = config_flag(r, "scale_attn_by_inverse_layer_idx", 0);
    m->norm_affine = m->final_norm = m->qkv_bias = m->out_bias = m->mlp_bias = 1;
    m->head_dim = m->width / m->n_heads;
    if (m->width % m->n_heads != 0)
        config_refuse(r, "\"n_embd\" %zu is not a multiple of \"n_head\" %zu", m->width, m->n_heads);
}

static void bind_norm(struct binder *b, struct norm *norm, size_t width, const char *prefix, const char *name)
{
    bind_vector(b, &norm->weight, width, "%s%s.weight", prefix, name);
    bind_vector(b, &norm->bias, width, "%s%s.bias", prefix, name);
}

static void bind_product(struct binder *b, struct linear *l, const char *prefix, const char *name, size_t n_in, size_t n_out)
{
    struct bind_source weight = {.n_out = n_out}, bias = {.n_out = n_out};
    snprintf(weight.name, sizeof weight.name, "%s%s.weight", prefix, name);
    snprintf(bias.name, sizeof bias.name, "%s%s.bias", prefix, name);
    bind_linear(b, l, BIND_TRANSPOSED, n_in, &weight, 1);
    bind_bias(b, l, &bias, 1);
}

static void bind(struct binder *b, struct model *m)
{
    size_t w = m->config.width, inner = m->config.n_inner;
    const char *top = bind_has(b, "wte.weight") ? "" : "transformer.";
    char embed[TENSOR_NAME_BYTES], positions[TENSOR_NAME_BYTES], at[TENSOR_NAME_BYTES / 2];
    snprintf(embed, sizeof embed, "%swte.weight", top);
    snprintf(positions, sizeof positions, "%swpe.weight", top);
    bind_head(b, "lm_head.weight", embed);
    bind_table(b, &m->positions, m->config.context_max, w, positions);
    for (size_t l = 0; l < m->config.n_layers; l++) {
        struct layer *L = &m->layers[l];
        snprintf(at, sizeof at, "%sh.%zu.", top, l);
        bind_norm(b, &L->attention_norm, w, at, "ln_1");
        bind_product(b, &L->qkv, at, "attn.c_attn", w, 3 * w);
        bind_product(b, &L->out, at, "attn.c_proj", w, w);
        bind_norm(b, &L->mlp_norm, w, at, "ln_2");
        bind_product(b, &L->up, at, "mlp.c_fc", w, inner);
        bind_product(b, &L->down, at, "mlp.c_proj", inner, w);
        bind_ignore(b, "%sattn.bias", at); /* the causal mask */
        bind_ignore(b, "%sattn.masked_bias", at);
    }
    bind_norm(b, &m->final_norm, w, top, "ln_f");
}

static void forward(struct model *m, struct kv_cache *kv, const struct batch *batch)
{
    const struct model_config *c = &m->config;
    struct backend *b = m->backend;
    struct scratch *s = &m->s;
    size_t n = batch->n_rows, w = c->width, inner = c->n_inner;
    float eps = (float)c->norm_eps;

    op_embed(b, &m->embed, batch->ids, n, 1, s->x);
    op_embed(b, &m->positions, s->index, n, 1, s->normed);
    op_add(b, s->normed, n, w, 1, s->x);
    for (size_t l = 0; l < c->n_layers; l++) {
        const struct layer *L = &m->layers[l];
        op_layer_norm(b, s->x, n, w, L->attention_norm.weight, L->attention_norm.bias, eps, s->normed);
        linear_run(b, &L->qkv, s->normed, w, n, LINEAR_SET, s->wide, 3 * w);
        forward_attention(m, kv, l, batch);
        linear_run(b, &L->out, s->narrow, w, n, LINEAR_ADD, s->x, w);

        op_layer_norm(b, s->x, n, w, L->mlp_norm.weight, L->mlp_norm.bias, eps, s->normed);
        linear_run(b, &L->up, s->normed, w, n, LINEAR_SET, s->wide, inner);
        op_activation(b, c->activation, s->wide, n, inner);
        linear_run(b, &L->down, s->wide, inner, n, LINEAR_ADD, s->x, w);
    }
    if (batch->n_logit_rows == 0)
        return;
    op_gather_rows(b, s->x, batch->logit_rows, batch->n_logit_rows, w, s->hidden);
    op_layer_norm(b, s->hidden, batch->n_logit_rows, w, m->final_norm.weight, m->final_norm.bias, eps, s->hidden);
    forward_logits(m, s->hidden, batch->n_logit_rows);
}

static const char *const TYPES[] = {"gpt2", NULL};
static const char *const GGUF_NAMES[] = {NULL};

const struct arch arch_gpt2 = {
    .model_types = TYPES, .gguf_names = GGUF_NAMES, .up_parts = 1, .read = read, .bind = bind, .forward = forward};

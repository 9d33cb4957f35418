/* OPT: learned positions (two rows before position 0), LayerNorm before or after each half, and in opt-350m an embedding
 * narrower than the model, with a projection at both ends.
 * Formulas: https://arxiv.org/abs/2205.01068; names as transformers has them. */
#include "model/model_impl.h"

#include <stdio.h>

#define POSITION_ROWS_EXTRA 2
#define NORM_EPS            1e-5

static void read(struct config_reader *r, struct model_config *m)
{
    m->n_vocab = config_size(r, "vocab_size", CONFIG_REQUIRED, 1, CONFIG_VOCAB_MAX);
    m->width = config_size(r, "hidden_size", CONFIG_REQUIRED, 1, CONFIG_WIDTH_MAX);
    m->n_embed = config_size(r, "word_embed_proj_dim", m->width, 1, CONFIG_WIDTH_MAX);
    m->n_inner = config_size(r, "ffn_dim", CONFIG_REQUIRED, 1, CONFIG_INNER_MAX);
    m->n_layers = config_size(r, "num_hidden_layers", CONFIG_REQUIRED, 1, CONFIG_LAYERS_MAX);
    m->n_heads = m->n_kv_heads = config_size(r, "num_attention_heads", CONFIG_REQUIRED, 1, CONFIG_HEADS_MAX);
    m->context_max = config_size(r, "max_position_embeddings", 2048, 1, CONFIG_CONTEXT_MAX);
    m->activation = config_activation(r, "activation_function", "relu");
    m->tied = config_flag(r, "tie_word_embeddings", 1);
    m->qkv_bias = m->out_bias = m->mlp_bias = config_flag(r, "enable_bias", 1);
    m->norm_affine = config_flag(r, "layer_norm_elementwise_affine", 1);
    m->norm_place = config_flag(r, "do_layer_norm_before", 1) ? NORM_BEFORE : NORM_AFTER;
    m->final_norm = m->norm_place == NORM_BEFORE && !config_flag(r, "_remove_final_layer_norm", 0);
    m->norm_eps = NORM_EPS;
    m->scale_by_head_dim = 1;
    m->head_dim = m->width / m->n_heads;
    if (m->width % m->n_heads != 0)
        config_refuse(r, "\"hidden_size\" %zu is not a multiple of \"num_attention_heads\" %zu", m->width, m->n_heads);
}

static void bind_norm(struct binder *b, struct norm *norm, const char *prefix, const char *name)
{
    if (!b->m->config.norm_affine)
        return;
    bind_vector(b, &norm->weight, b->m->config.width, "%s%s.weight", prefix, name);
    bind_vector(b, &norm->bias, b->m->config.width, "%s%s.bias", prefix, name);
}

static void bind_product(struct binder *b, struct linear *l, const char *prefix, const char *const *names, size_t n_src,
                         size_t n_in, size_t n_out)
{
    struct bind_source weight[LINEAR_PARTS_MAX] = {0}, bias[LINEAR_PARTS_MAX] = {0};
    for (size_t i = 0; i < n_src; i++) {
        weight[i].n_out = bias[i].n_out = n_out;
        snprintf(weight[i].name, sizeof weight[i].name, "%s%s.weight", prefix, names[i]);
        snprintf(bias[i].name, sizeof bias[i].name, "%s%s.bias", prefix, names[i]);
    }
    bind_linear(b, l, BIND_ROWS, n_in, weight, n_src);
    if (b->m->config.mlp_bias)
        bind_bias(b, l, bias, n_src);
}

/* Projections between embedding and model have no bias. */
static void bind_projection(struct binder *b, struct linear *l, const char *top, const char *name, size_t n_in, size_t n_out)
{
    struct bind_source src = {.n_out = n_out};
    snprintf(src.name, sizeof src.name, "%s%s.weight", top, name);
    bind_linear(b, l, BIND_ROWS, n_in, &src, 1);
}

static void bind(struct binder *b, struct model *m)
{
    static const char *const QKV[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"};
    static const char *const OUT[] = {"self_attn.out_proj"}, *const UP[] = {"fc1"}, *const DOWN[] = {"fc2"};
    size_t w = m->config.width, e = m->config.n_embed, inner = m->config.n_inner;
    const char *top = bind_has(b, "decoder.embed_tokens.weight") ? "decoder." : "model.decoder.";
    char embed[TENSOR_NAME_BYTES], positions[TENSOR_NAME_BYTES], at[TENSOR_NAME_BYTES / 2];
    snprintf(embed, sizeof embed, "%sembed_tokens.weight", top);
    snprintf(positions, sizeof positions, "%sembed_positions.weight", top);
    bind_head(b, "lm_head.weight", embed);
    bind_table(b, &m->positions, m->config.context_max + POSITION_ROWS_EXTRA, w, positions);
    if (e != w) {
        bind_projection(b, &m->project_in, top, "project_in", e, w);
        bind_projection(b, &m->project_out, top, "project_out", w, e);
    }
    for (size_t l = 0; l < m->config.n_layers; l++) {
        struct layer *L = &m->layers[l];
        snprintf(at, sizeof at, "%slayers.%zu.", top, l);
        bind_norm(b, &L->attention_norm, at, "self_attn_layer_norm");
        bind_product(b, &L->qkv, at, QKV, 3, w, w);
        bind_product(b, &L->out, at, OUT, 1, w, w);
        bind_norm(b, &L->mlp_norm, at, "final_layer_norm");
        bind_product(b, &L->up, at, UP, 1, w, inner);
        bind_product(b, &L->down, at, DOWN, 1, inner, w);
    }
    if (m->config.final_norm)
        bind_norm(b, &m->final_norm, top, "final_layer_norm");
}

static void embed(struct model *m, const struct batch *batch)
{
    struct scratch *s = &m->s;
    size_t n = batch->n_rows, w = m->config.width;
    if (m->config.n_embed == w) {
        op_embed(m->backend, &m->embed, batch->ids, n, 1, s->x);
    } else {
        op_embed(m->backend, &m->embed, batch->ids, n, 1, s->normed);
        linear_run(m->backend, &m->project_in, s->normed, m->config.n_embed, n, LINEAR_SET, s->x, w);
    }
    op_embed(m->backend, &m->positions, s->index, n, 1, s->normed);
    op_add(m->backend, s->normed, n, w, 1, s->x);
}

static void norm(struct model *m, const struct norm *v, const float *x, size_t n, float *y)
{
    op_layer_norm(m->backend, x, n, m->config.width, v->weight, v->bias, (float)m->config.norm_eps, y);
}

static void forward(struct model *m, struct kv_cache *kv, const struct batch *batch)
{
    const struct model_config *c = &m->config;
    struct backend *b = m->backend;
    struct scratch *s = &m->s;
    size_t n = batch->n_rows, w = c->width, inner = c->n_inner;
    int before = c->norm_place == NORM_BEFORE;

    embed(m, batch);
    for (size_t l = 0; l < c->n_layers; l++) {
        const struct layer *L = &m->layers[l];
        if (before)
            norm(m, &L->attention_norm, s->x, n, s->normed);
        linear_run(b, &L->qkv, before ? s->normed : s->x, w, n, LINEAR_SET, s->wide, 3 * w);
        forward_attention(m, kv, l, batch);
        linear_run(b, &L->out, s->narrow, w, n, LINEAR_ADD, s->x, w);
        norm(m, before ? &L->mlp_norm : &L->attention_norm, s->x, n, before ? s->normed : s->x);

        linear_run(b, &L->up, before ? s->normed : s->x, w, n, LINEAR_SET, s->wide, inner);
        op_activation(b, c->activation, s->wide, n, inner);
        linear_run(b, &L->down, s->wide, inner, n, LINEAR_ADD, s->x, w);
        if (!before)
            norm(m, &L->mlp_norm, s->x, n, s->x);
    }
    if (batch->n_logit_rows == 0)
        return;
    op_gather_rows(b, s->x, batch->logit_rows, batch->n_logit_rows, w, s->hidden);
    if (c->final_norm)
        norm(m, &m->final_norm, s->hidden, batch->n_logit_rows, s->hidden);
    if (c->n_embed != w)
        linear_run(b, &m->project_out, s->hidden, w, batch->n_logit_rows, LINEAR_SET, s->projected, c->n_embed);
    forward_logits(m, c->n_embed != w ? s->projected : s->hidden, batch->n_logit_rows);
}

static const char *const TYPES[] = {"opt", NULL};
static const char *const GGUF_NAMES[] = {NULL};

const struct arch arch_opt = {.model_types = TYPES,
                              .gguf_names = GGUF_NAMES,
                              .position_rows_extra = POSITION_ROWS_EXTRA,
                              .up_parts = 1,
                              .read = read,
                              .bind = bind,
                              .forward = forward};

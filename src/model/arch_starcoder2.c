/* Decoders with LayerNorm, rotary embedding and a plain MLP:
 *   starcoder2  attention, then MLP; biases by use_bias; a window on all layers
 *   phi         both read the same norm and are added together; a part of each head is rotated; a bias of the logits
 * Reference: https://arxiv.org/abs/2402.19173, https://arxiv.org/abs/2309.05463 and transformers' modeling files. */
#include "model/model_impl.h"

#include <stdio.h>

static int is_phi(const struct model_config *m)
{
    return strcmp(m->architecture, "phi") == 0;
}

static void read(struct config_reader *r, struct model_config *m)
{
    int phi = is_phi(m);
    m->n_vocab = config_size(r, "vocab_size", CONFIG_REQUIRED, 1, CONFIG_VOCAB_MAX);
    m->width = m->n_embed = config_size(r, "hidden_size", CONFIG_REQUIRED, 1, CONFIG_WIDTH_MAX);
    m->n_inner = config_size(r, "intermediate_size", CONFIG_REQUIRED, 1, CONFIG_INNER_MAX);
    m->n_layers = config_size(r, "num_hidden_layers", CONFIG_REQUIRED, 1, CONFIG_LAYERS_MAX);
    m->n_heads = config_size(r, "num_attention_heads", CONFIG_REQUIRED, 1, CONFIG_HEADS_MAX);
    m->n_kv_heads = config_size(r, "num_key_value_heads", phi ? m->n_heads : 2, 1, CONFIG_HEADS_MAX);
    m->head_dim = m->width / m->n_heads;
    m->context_max = config_size(r, "max_position_embeddings", phi ? 2048 : 4096, 1, CONFIG_CONTEXT_MAX);
    m->norm_eps = config_number(r, phi ? "layer_norm_eps" : "norm_epsilon", 1e-5, 0, 1);
    m->activation = config_activation(r, "hidden_act", phi ? "gelu_new" : "gelu_pytorch_tanh");
    m->tied = config_flag(r, "tie_word_embeddings", !phi);
    m->qkv_bias = m->out_bias = m->mlp_bias = phi || config_flag(r, "use_bias", 1);
    m->norm_affine = m->final_norm = m->scale_by_head_dim = 1;
    if (m->width % m->n_heads != 0)
        config_refuse(r, "\"hidden_size\" %zu is not a multiple of \"num_attention_heads\" %zu", m->width, m->n_heads);
    if (!phi) {
        m->window = config_size(r, "sliding_window", 0, 0, CONFIG_CONTEXT_MAX);
        memset(m->windowed, m->window != 0, sizeof m->windowed);
    }
    if (!r->failed)
        config_rope(r, m);
}

static void bind_norm(struct binder *b, struct norm *norm, const char *prefix, const char *name)
{
    bind_vector(b, &norm->weight, b->m->config.width, "%s%s.weight", prefix, name);
    bind_vector(b, &norm->bias, b->m->config.width, "%s%s.bias", prefix, name);
}

static void bind_product(struct binder *b, struct linear *l, const char *prefix, const char *const *names, const size_t *n_out,
                         size_t n_src, size_t n_in)
{
    struct bind_source weight[LINEAR_PARTS_MAX] = {0}, bias[LINEAR_PARTS_MAX] = {0};
    for (size_t i = 0; i < n_src; i++) {
        weight[i].n_out = bias[i].n_out = n_out[i];
        snprintf(weight[i].name, sizeof weight[i].name, "%s%s.weight", prefix, names[i]);
        snprintf(bias[i].name, sizeof bias[i].name, "%s%s.bias", prefix, names[i]);
    }
    bind_linear(b, l, BIND_ROWS, n_in, weight, n_src);
    if (b->m->config.mlp_bias)
        bind_bias(b, l, bias, n_src);
}

static void bind(struct binder *b, struct model *m)
{
    static const char *const QKV[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"};
    const struct model_config *c = &m->config;
    int phi = is_phi(c);
    const char *out = phi ? "self_attn.dense" : "self_attn.o_proj", *up = phi ? "mlp.fc1" : "mlp.c_fc";
    const char *down = phi ? "mlp.fc2" : "mlp.c_proj";
    size_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    char at[TENSOR_NAME_BYTES / 2];
    bind_head(b, "lm_head.weight", "model.embed_tokens.weight");
    if (phi)
        bind_bias(b, &m->head, &(struct bind_source){.name = "lm_head.bias", .n_out = c->n_vocab}, 1);
    for (size_t l = 0; l < c->n_layers; l++) {
        struct layer *L = &m->layers[l];
        snprintf(at, sizeof at, "model.layers.%zu.", l);
        bind_norm(b, &L->attention_norm, at, "input_layernorm");
        bind_product(b, &L->qkv, at, QKV, (size_t[]){q, kv, kv}, 3, c->width);
        bind_product(b, &L->out, at, &out, &c->width, 1, q);
        if (!phi)
            bind_norm(b, &L->mlp_norm, at, "post_attention_layernorm");
        bind_product(b, &L->up, at, &up, &c->n_inner, 1, c->width);
        bind_product(b, &L->down, at, &down, &c->width, 1, c->n_inner);
    }
    bind_norm(b, &m->final_norm, "model.", phi ? "final_layernorm" : "norm");
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
    size_t n = batch->n_rows, w = c->width, inner = c->n_inner, heads = c->n_heads + c->n_kv_heads;
    size_t q = c->n_heads * c->head_dim, qkv = q + 2 * c->n_kv_heads * c->head_dim;
    int phi = is_phi(c);

    op_embed(b, &m->embed, batch->ids, n, 1, s->x);
    for (size_t l = 0; l < c->n_layers; l++) {
        const struct layer *L = &m->layers[l];
        norm(m, &L->attention_norm, s->x, n, s->normed);
        linear_run(b, &L->qkv, s->normed, w, n, LINEAR_SET, s->wide, qkv);
        op_rope(b, s->wide, qkv, n, heads, c->head_dim, m->rope.n_pairs, 0, s->cos_sin, s->index);
        forward_attention(m, kv, l, batch);
        linear_run(b, &L->out, s->narrow, q, n, LINEAR_ADD, s->x, w);

        if (!phi)
            norm(m, &L->mlp_norm, s->x, n, s->normed);
        linear_run(b, &L->up, s->normed, w, n, LINEAR_SET, s->wide, inner);
        op_activation(b, c->activation, s->wide, n, inner);
        linear_run(b, &L->down, s->wide, inner, n, LINEAR_ADD, s->x, w);
    }
    if (batch->n_logit_rows == 0)
        return;
    op_gather_rows(b, s->x, batch->logit_rows, batch->n_logit_rows, w, s->hidden);
    norm(m, &m->final_norm, s->hidden, batch->n_logit_rows, s->hidden);
    forward_logits(m, s->hidden, batch->n_logit_rows);
}

static const char *const TYPES[] = {"starcoder2", "phi", NULL}, *const GGUF_NAMES[] = {NULL};
static const char *const OWN[] = {"partial_rotary_factor", NULL};

const struct arch arch_starcoder2 = {.model_types = TYPES,
                                     .gguf_names = GGUF_NAMES,
                                     .own_keys = OWN,
                                     .up_parts = 1,
                                     .read = read,
                                     .bind = bind,
                                     .forward = forward};

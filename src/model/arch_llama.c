/* Llama and its dense relatives: RMS norms before each half, rotary embedding, grouped key heads, a gated MLP.
 *   llama    biases by attention_bias and mlp_bias; in GGUF q and k are stored for interleaved pairs
 *   mistral  a sliding window on all layers
 *   qwen2    biases on q, k, v; a window on some layers
 *   qwen3    RMS norm of each head of q and k
 * Formulas: https://arxiv.org/abs/2302.13971 and the model cards; names as transformers and GGUF have them. */
#include "model/model_impl.h"

#include <math.h>
#include <stdio.h>

static int is_type(const struct model_config *m, const char *type)
{
    return strcmp(m->architecture, type) == 0;
}

void llama_read(struct config_reader *r, struct model_config *m)
{
    int qwen2 = is_type(m, "qwen2"), qwen3 = is_type(m, "qwen3"), mistral = is_type(m, "mistral");
    m->n_vocab = config_size(r, "vocab_size", CONFIG_REQUIRED, 1, CONFIG_VOCAB_MAX);
    m->width = m->n_embed = config_size(r, "hidden_size", CONFIG_REQUIRED, 1, CONFIG_WIDTH_MAX);
    m->n_inner = config_size(r, "intermediate_size", CONFIG_REQUIRED, 1, CONFIG_INNER_MAX);
    m->n_layers = config_size(r, "num_hidden_layers", CONFIG_REQUIRED, 1, CONFIG_LAYERS_MAX);
    m->n_heads = config_size(r, "num_attention_heads", CONFIG_REQUIRED, 1, CONFIG_HEADS_MAX);
    size_t kv_default = mistral ? 8 : qwen2 || qwen3 ? 32 : m->n_heads;
    if (json_is_null(json_object_get(r->json, "num_key_value_heads")))
        kv_default = m->n_heads;
    m->n_kv_heads = config_size(r, "num_key_value_heads", kv_default, 1, CONFIG_HEADS_MAX);
    m->head_dim = config_size(r, "head_dim", qwen3 ? 128 : m->width / m->n_heads, 1, CONFIG_HEAD_DIM_MAX);
    m->context_max = config_size(r, "max_position_embeddings",
                                 mistral          ? 131072
                                 : qwen2 || qwen3 ? 32768
                                                  : 2048,
                                 1, CONFIG_CONTEXT_MAX);
    m->norm_eps = config_number(r, "rms_norm_eps", 1e-6, 0, 1);
    m->activation = config_activation(r, "hidden_act", "silu");
    m->tied = config_flag(r, "tie_word_embeddings", 0);
    m->norm_affine = m->final_norm = m->scale_by_head_dim = 1;
    m->head_norm = qwen3;
    m->qkv_bias = qwen2 || ((qwen3 || is_type(m, "llama")) && config_flag(r, "attention_bias", 0));
    m->out_bias = m->qkv_bias && !qwen2;
    m->mlp_bias = is_type(m, "llama") && config_flag(r, "mlp_bias", 0);
    if (mistral) {
        const json_t *given = json_object_get(r->json, "sliding_window");
        m->window = given && json_is_null(given) ? 0 : config_size(r, "sliding_window", 4096, 0, CONFIG_CONTEXT_MAX);
        memset(m->windowed, m->window != 0, sizeof m->windowed);
    }
    if (qwen2 || qwen3)
        config_windows_by_layer(r, m);
    if (!r->failed)
        config_rope(r, m);
}

static bool read_gguf(const struct checkpoint *c, struct model_config *m, struct err *err)
{
    if (!model_config_read_gguf(c, m, err))
        return false;
    m->activation = ACT_SILU;
    m->norm_affine = m->final_norm = m->scale_by_head_dim = 1;
    m->head_norm = is_type(m, "qwen3");
    m->qkv_bias = checkpoint_tensor(c, STR("blk.0.attn_q.bias")) != NULL;
    m->out_bias = checkpoint_tensor(c, STR("blk.0.attn_output.bias")) != NULL;
    m->mlp_bias = checkpoint_tensor(c, STR("blk.0.ffn_gate.bias")) != NULL;
    if (is_type(m, "llama"))
        m->rope.order = ROPE_INTERLEAVED;
    return true;
}

struct names {
    const char *embed, *head, *final_norm;
    const char *attention_norm, *mlp_norm, *q, *k, *v, *out, *q_norm, *k_norm, *gate, *up, *down;
    const char *qkv, *gate_up;                 /* fused */
    const char *attention_branch, *mlp_branch; /* norms of what is added */
    const char *layer;                         /* format with one %zu */
};

static const struct names HF = {.embed = "embed_tokens.weight",
                                .head = "lm_head.weight",
                                .final_norm = "norm.weight",
                                .layer = "layers.%zu.",
                                .attention_norm = "input_layernorm",
                                .mlp_norm = "post_attention_layernorm",
                                .q = "self_attn.q_proj",
                                .k = "self_attn.k_proj",
                                .v = "self_attn.v_proj",
                                .out = "self_attn.o_proj",
                                .q_norm = "self_attn.q_norm",
                                .k_norm = "self_attn.k_norm",
                                .gate = "mlp.gate_proj",
                                .up = "mlp.up_proj",
                                .down = "mlp.down_proj",
                                .qkv = "self_attn.qkv_proj",
                                .gate_up = "mlp.gate_up_proj",
                                .attention_branch = "post_attention_layernorm",
                                .mlp_branch = "post_feedforward_layernorm"};

static const struct names GGUF = {.embed = "token_embd.weight",
                                  .head = "output.weight",
                                  .final_norm = "output_norm.weight",
                                  .layer = "blk.%zu.",
                                  .attention_norm = "attn_norm",
                                  .mlp_norm = "ffn_norm",
                                  .q = "attn_q",
                                  .k = "attn_k",
                                  .v = "attn_v",
                                  .out = "attn_output",
                                  .q_norm = "attn_q_norm",
                                  .k_norm = "attn_k_norm",
                                  .gate = "ffn_gate",
                                  .up = "ffn_up",
                                  .down = "ffn_down"};

static void set_source(struct bind_source *s, const char *layer, const char *name, const char *kind, size_t n_out)
{
    snprintf(s->name, sizeof s->name, "%s%s.%s", layer, name, kind);
    s->n_out = n_out;
}

/* One matrix product of up to three tensors side by side, with their biases where the model has them. */
static void bind_product(struct binder *b, struct linear *l, const char *layer, const char *const *names, const size_t *n_out,
                         size_t n_src, size_t n_in, int has_bias)
{
    struct bind_source src[LINEAR_PARTS_MAX] = {0};
    for (size_t i = 0; i < n_src; i++)
        set_source(&src[i], layer, names[i], "weight", n_out[i]);
    bind_linear(b, l, BIND_ROWS, n_in, src, n_src);
    for (size_t i = 0; has_bias && i < n_src; i++)
        set_source(&src[i], layer, names[i], "bias", n_out[i]);
    if (has_bias)
        bind_bias(b, l, src, n_src);
}

static void bind_norm(struct binder *b, const float **out, size_t width, const char *layer, const char *name)
{
    char full[TENSOR_NAME_BYTES];
    snprintf(full, sizeof full, "%s%s.weight", layer, name);
    if (b->m->config.norm_plus_one)
        bind_vector_plus_one(b, out, width, full);
    else
        bind_vector(b, out, width, "%s", full);
}

static void bind_norms(struct binder *b, const struct names *n, const char *layer, struct layer *out)
{
    const struct model_config *c = &b->m->config;
    if (!c->no_input_norms) {
        bind_norm(b, &out->attention_norm.weight, c->width, layer, n->attention_norm);
        bind_norm(b, &out->mlp_norm.weight, c->width, layer, c->branch_norms ? "pre_feedforward_layernorm" : n->mlp_norm);
    }
    if (c->branch_norms) {
        bind_norm(b, &out->attention_branch_norm, c->width, layer, n->attention_branch);
        bind_norm(b, &out->mlp_branch_norm, c->width, layer, n->mlp_branch);
    }
}

static void bind_head_norms(struct binder *b, const struct names *n, const char *layer, struct layer *out)
{
    const struct model_config *c = &b->m->config;
    size_t q = c->row_norm ? c->n_heads * c->head_dim : c->head_dim, k = c->row_norm ? c->n_kv_heads * c->head_dim : q;
    if (!c->head_norm && !c->row_norm)
        return;
    bind_norm(b, &out->q_norm, q, layer, n->q_norm);
    bind_norm(b, &out->k_norm, k, layer, n->k_norm);
}

static void bind_layer(struct binder *b, struct model *m, const struct names *n, const char *layer, struct layer *out)
{
    const struct model_config *c = &m->config;
    size_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim, inner = c->n_inner;
    bind_norms(b, n, layer, out);
    if (c->fused) {
        bind_product(b, &out->qkv, layer, &n->qkv, (size_t[]){q + 2 * kv}, 1, c->width, c->qkv_bias);
        bind_product(b, &out->up, layer, &n->gate_up, (size_t[]){2 * inner}, 1, c->width, c->mlp_bias);
    } else {
        bind_product(b, &out->qkv, layer, (const char *const[]){n->q, n->k, n->v}, (size_t[]){q, kv, kv}, 3, c->width,
                     c->qkv_bias);
        bind_product(b, &out->up, layer, (const char *const[]){n->gate, n->up}, (size_t[]){inner, inner}, 2, c->width,
                     c->mlp_bias);
    }
    bind_head_norms(b, n, layer, out);
    bind_product(b, &out->out, layer, &n->out, &c->width, 1, q, c->out_bias);
    bind_product(b, &out->down, layer, &n->down, &c->width, 1, c->n_inner, c->mlp_bias);
    bind_ignore(b, "%sself_attn.rotary_emb.inv_freq", layer);
}

void llama_bind(struct binder *b, struct model *m)
{
    int gguf = checkpoint_kind(b->checkpoint) == CHECKPOINT_GGUF;
    const struct names *n = gguf ? &GGUF : &HF;
    const char *prefix = gguf || bind_has(b, "embed_tokens.weight") ? "" : "model.";
    char name[TENSOR_NAME_BYTES], layer[TENSOR_NAME_BYTES];
    snprintf(name, sizeof name, "%s%s", prefix, n->embed);
    bind_head(b, n->head, name);
    for (size_t l = 0; l < m->config.n_layers; l++) {
        snprintf(name, sizeof name, n->layer, l);
        snprintf(layer, sizeof layer, "%s%.100s", prefix, name);
        bind_layer(b, m, n, layer, &m->layers[l]);
    }
    snprintf(name, sizeof name, "%s%s", prefix, n->final_norm);
    if (m->config.norm_plus_one)
        bind_vector_plus_one(b, &m->final_norm.weight, m->config.width, name);
    else
        bind_vector(b, &m->final_norm.weight, m->config.width, "%s", name);
    bind_ignore(b, "rope_freqs.weight");
    bind_ignore(b, "rope_factors_long.weight");
    bind_ignore(b, "rope_factors_short.weight");
    bind_ignore(b, "%srotary_emb.inv_freq", prefix);
}

/* x += factor * norm(W in); without norm and factor the product adds by itself. */
static void add_branch(struct model *m, const struct linear *l, const float *in, size_t in_width, const float *norm, size_t n)
{
    const struct model_config *c = &m->config;
    float *x = m->s.x, *out = m->s.normed;
    if (!norm && c->branch_scale == 0) {
        linear_run(m->backend, l, in, in_width, n, LINEAR_ADD, x, c->width);
        return;
    }
    linear_run(m->backend, l, in, in_width, n, LINEAR_SET, out, c->width);
    if (norm)
        op_rms_norm(m->backend, out, n, c->width, norm, 0, (float)c->norm_eps, out);
    op_add(m->backend, out, n, c->width, c->branch_scale != 0 ? (float)c->branch_scale : 1, x);
}

/* What a product reads: the residual stream, normed where the architecture does so. */
static const float *branch_input(struct model *m, const float *norm, size_t n)
{
    if (!norm)
        return m->s.x;
    op_rms_norm(m->backend, m->s.x, n, m->config.width, norm, 0, (float)m->config.norm_eps, m->s.normed);
    return m->s.normed;
}

/* Norms of q and k, and rotation, in s.wide. */
static void prepare_heads(struct model *m, size_t layer, size_t n)
{
    const struct model_config *c = &m->config;
    const struct layer *L = &m->layers[layer];
    size_t q = c->n_heads * c->head_dim, k = c->n_kv_heads * c->head_dim, stride = q + 2 * k;
    int local = c->has_local_rope && c->windowed[layer];
    float eps = (float)c->norm_eps, *wide = m->s.wide;
    if (c->head_norm) {
        op_head_norm(m->backend, wide, stride, n, c->n_heads, c->head_dim, L->q_norm, eps);
        op_head_norm(m->backend, wide + q, stride, n, c->n_kv_heads, c->head_dim, L->k_norm, eps);
    }
    if (c->row_norm) {
        op_head_norm(m->backend, wide, stride, n, 1, q, L->q_norm, eps);
        op_head_norm(m->backend, wide + q, stride, n, 1, k, L->k_norm, eps);
    }
    if (!c->unrotated[layer])
        op_rope(m->backend, wide, stride, n, c->n_heads + c->n_kv_heads, c->head_dim,
                local ? m->local_rope.n_pairs : m->rope.n_pairs, m->rope.order == ROPE_INTERLEAVED,
                local ? m->s.local_cos_sin : m->s.cos_sin, m->s.index);
}

void llama_forward(struct model *m, struct kv_cache *kv, const struct batch *batch)
{
    const struct model_config *c = &m->config;
    struct backend *b = m->backend;
    struct scratch *s = &m->s;
    size_t n = batch->n_rows, w = c->width, inner = c->n_inner, q = c->n_heads * c->head_dim;

    op_embed(b, &m->embed, batch->ids, n, c->embed_scale != 0 ? (float)c->embed_scale : 1, s->x);
    for (size_t l = 0; l < c->n_layers; l++) {
        const struct layer *L = &m->layers[l];
        linear_run(b, &L->qkv, branch_input(m, L->attention_norm.weight, n), w, n, LINEAR_SET, s->wide,
                   q + 2 * c->n_kv_heads * c->head_dim);
        prepare_heads(m, l, n);
        forward_attention(m, kv, l, batch);
        add_branch(m, &L->out, s->narrow, q, L->attention_branch_norm, n);

        linear_run(b, &L->up, branch_input(m, L->mlp_norm.weight, n), w, n, LINEAR_SET, s->wide, 2 * inner);
        op_gated(b, c->activation, s->wide, 2 * inner, n, inner, s->narrow);
        add_branch(m, &L->down, s->narrow, inner, L->mlp_branch_norm, n);
    }
    if (batch->n_logit_rows == 0)
        return;
    op_gather_rows(b, s->x, batch->logit_rows, batch->n_logit_rows, w, s->hidden);
    op_rms_norm(b, s->hidden, batch->n_logit_rows, w, m->final_norm.weight, 0, (float)c->norm_eps, s->hidden);
    if (c->logit_divisor != 0) /* dividing the states divides the logits */
        op_add(b, s->hidden, batch->n_logit_rows, w, (float)(1 / c->logit_divisor - 1), s->hidden);
    forward_logits(m, s->hidden, batch->n_logit_rows);
}

static const char *const TYPES[] = {"llama", "mistral", "qwen2", "qwen3", NULL};
static const char *const GGUF_NAMES[] = {"llama", "qwen2", "qwen3", NULL};

const struct arch arch_llama = {.model_types = TYPES,
                                .gguf_names = GGUF_NAMES,
                                .up_parts = 2,
                                .read = llama_read,
                                .read_gguf = read_gguf,
                                .bind = llama_bind,
                                .forward = llama_forward};

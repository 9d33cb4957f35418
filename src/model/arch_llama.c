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

static void read(struct config_reader *r, struct model_config *m)
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
    m->context_max = config_size(r, "max_position_embeddings", mistral ? 131072 : qwen2 || qwen3 ? 32768 : 2048, 1,
                                 CONFIG_CONTEXT_MAX);
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
    const char *layer; /* format with one %zu */
};

static const struct names HF = {
    .embed = "embed_tokens.weight", .head = "lm_head.weight", .final_norm = "norm.weight", .layer = "layers.%zu.",
    .attention_norm = "input_layernorm", .mlp_norm = "post_attention_layernorm", .q = "self_attn.q_proj",
    .k = "self_attn.k_proj", .v = "self_attn.v_proj", .out = "self_attn.o_proj", .q_norm = "self_attn.q_norm",
    .k_norm = "self_attn.k_norm", .gate = "mlp.gate_proj", .up = "mlp.up_proj", .down = "mlp.down_proj"};

static const struct names GGUF = {
    .embed = "token_embd.weight", .head = "output.weight", .final_norm = "output_norm.weight", .layer = "blk.%zu.",
    .attention_norm = "attn_norm", .mlp_norm = "ffn_norm", .q = "attn_q", .k = "attn_k", .v = "attn_v",
    .out = "attn_output", .q_norm = "attn_q_norm", .k_norm = "attn_k_norm", .gate = "ffn_gate", .up = "ffn_up",
    .down = "ffn_down"};

static void set_source(struct bind_source *s, const char *layer, const char *name, const char *kind, size_t n_out)
{
    snprintf(s->name, sizeof s->name, "%s%s.%s", layer, name, kind);
    s->n_out = n_out;
}

/* One matrix product of up to three tensors side by side, with their biases where the model has them. */
static void bind_product(struct binder *b, struct linear *l, const char *layer, const char *const *names,
                         const size_t *n_out, size_t n_src, size_t n_in, int has_bias)
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

static void bind_layer(struct binder *b, struct model *m, const struct names *n, const char *layer, struct layer *out)
{
    const struct model_config *c = &m->config;
    size_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    bind_vector(b, &out->attention_norm.weight, c->width, "%s%s.weight", layer, n->attention_norm);
    bind_product(b, &out->qkv, layer, (const char *const[]){n->q, n->k, n->v}, (size_t[]){q, kv, kv}, 3, c->width,
                 c->qkv_bias);
    if (c->head_norm) {
        bind_vector(b, &out->q_norm, c->head_dim, "%s%s.weight", layer, n->q_norm);
        bind_vector(b, &out->k_norm, c->head_dim, "%s%s.weight", layer, n->k_norm);
    }
    bind_product(b, &out->out, layer, &n->out, &c->width, 1, q, c->out_bias);
    bind_vector(b, &out->mlp_norm.weight, c->width, "%s%s.weight", layer, n->mlp_norm);
    bind_product(b, &out->up, layer, (const char *const[]){n->gate, n->up}, (size_t[]){c->n_inner, c->n_inner}, 2,
                 c->width, c->mlp_bias);
    bind_product(b, &out->down, layer, &n->down, &c->width, 1, c->n_inner, c->mlp_bias);
    bind_ignore(b, "%sself_attn.rotary_emb.inv_freq", layer);
}

static void bind(struct binder *b, struct model *m)
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
    bind_vector(b, &m->final_norm.weight, m->config.width, "%s%s", prefix, n->final_norm);
    bind_ignore(b, "rope_freqs.weight");
    bind_ignore(b, "rope_factors_long.weight");
    bind_ignore(b, "rope_factors_short.weight");
    bind_ignore(b, "%srotary_emb.inv_freq", prefix);
}

static void forward(struct model *m, struct kv_cache *kv, const struct batch *batch)
{
    const struct model_config *c = &m->config;
    struct backend *b = m->backend;
    struct scratch *s = &m->s;
    size_t n = batch->n_rows, w = c->width, inner = c->n_inner;
    size_t q = c->n_heads * c->head_dim, qkv = q + 2 * c->n_kv_heads * c->head_dim;
    float eps = (float)c->norm_eps;

    op_embed(b, &m->embed, batch->ids, n, 1, s->x);
    for (size_t l = 0; l < c->n_layers; l++) {
        const struct layer *L = &m->layers[l];
        op_rms_norm(b, s->x, n, w, L->attention_norm.weight, 0, eps, s->normed);
        linear_run(b, &L->qkv, s->normed, w, n, LINEAR_SET, s->wide, qkv);
        if (c->head_norm) {
            op_head_norm(b, s->wide, qkv, n, c->n_heads, c->head_dim, L->q_norm, eps);
            op_head_norm(b, s->wide + q, qkv, n, c->n_kv_heads, c->head_dim, L->k_norm, eps);
        }
        op_rope(b, s->wide, qkv, n, c->n_heads + c->n_kv_heads, c->head_dim, m->rope.n_pairs,
                m->rope.order == ROPE_INTERLEAVED, s->cos_sin, s->index);
        forward_attention(m, kv, l, batch);
        linear_run(b, &L->out, s->narrow, q, n, LINEAR_ADD, s->x, w);

        op_rms_norm(b, s->x, n, w, L->mlp_norm.weight, 0, eps, s->normed);
        linear_run(b, &L->up, s->normed, w, n, LINEAR_SET, s->wide, 2 * inner);
        op_gated(b, c->activation, s->wide, 2 * inner, n, inner, s->narrow);
        linear_run(b, &L->down, s->narrow, inner, n, LINEAR_ADD, s->x, w);
    }
    if (batch->n_logit_rows == 0)
        return;
    op_gather_rows(b, s->x, batch->logit_rows, batch->n_logit_rows, w, s->hidden);
    op_rms_norm(b, s->hidden, batch->n_logit_rows, w, m->final_norm.weight, 0, eps, s->hidden);
    forward_logits(m, s->hidden, batch->n_logit_rows);
}

static const char *const TYPES[] = {"llama", "mistral", "qwen2", "qwen3", NULL};
static const char *const GGUF_NAMES[] = {"llama", "qwen2", "qwen3", NULL};

const struct arch arch_llama = {.model_types = TYPES, .gguf_names = GGUF_NAMES, .up_parts = 2, .read = read,
                                .read_gguf = read_gguf, .bind = bind, .forward = forward};

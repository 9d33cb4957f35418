/* Gemma, Gemma 2, Gemma 3 (text): llama with norms that multiply by 1 + weight, a scaled embedding and a GELU gate.
 *   gemma2       norms behind attention and MLP too, soft caps, every other layer with a window
 *   gemma3_text  those norms, norms of the heads of q and k, five layers with a window and a rotation of their own to one
 *                without
 * Reference: https://arxiv.org/abs/2408.00118, https://arxiv.org/abs/2503.19786 and transformers' modeling files. */
#include "model/model_impl.h"

#include <math.h>

static int all_but_every(const struct model_config *m, size_t layer, size_t every)
{
    return (layer + 1) % every != 0;
}

/* null: no cap. */
static double cap(struct config_reader *r, const char *key, double otherwise)
{
    return json_is_null(json_object_get(r->json, key)) ? 0 : config_number(r, key, otherwise, 0, 1e6);
}

static void read_local_rope(struct config_reader *r, struct model_config *m)
{
    struct config_reader types = {config_object(r, "rope_parameters"), r->err, r->failed};
    const json_t *local = config_object(&types, "sliding_attention"), *kind = json_object_get(local, "rope_type");
    struct config_reader inner = {local, r->err, types.failed};
    double theta = config_number(r, "rope_local_base_freq", 10000, 1.0 + 1e-6, 1e15);
    m->has_local_rope = 1;
    m->local_rope = (struct rope_config){.kind = ROPE_DEFAULT,
                                         .order = ROPE_HALVES,
                                         .n_pairs = m->head_dim / 2,
                                         .context_max = m->context_max,
                                         .original_context = m->context_max,
                                         .factor = 1};
    m->local_rope.theta = config_number(&inner, "rope_theta", theta, 1.0 + 1e-6, 1e15);
    r->failed |= inner.failed;
    if (kind && (!json_is_string(kind) || strcmp(json_string_value(kind), "default") != 0))
        config_unsupported(r, "\"rope_parameters\": layers with a window are rotated by \"%.40s\"; default is supported",
                           json_is_string(kind) ? json_string_value(kind) : "(no string)");
}

static void read(struct config_reader *r, struct model_config *m)
{
    int first = strcmp(m->architecture, "gemma") == 0, third = strcmp(m->architecture, "gemma3_text") == 0;
    int has_theta = json_object_get(r->json, "rope_theta") || json_object_get(r->json, "rope_parameters");
    llama_read(r, m);
    m->head_dim = config_size(r, "head_dim", 256, 1, CONFIG_HEAD_DIM_MAX);
    config_rope(r, m); /* again, for this head_dim */
    if (third && !has_theta)
        m->rope.theta = 1000000;
    m->activation = config_activation(r, first ? "hidden_act" : "hidden_activation", "gelu_pytorch_tanh");
    if (m->activation == ACT_GELU_ERF && first)
        m->activation = ACT_GELU_TANH; /* what "gelu" means in Gemma's first files */
    m->tied = config_flag(r, "tie_word_embeddings", 1);
    m->qkv_bias = m->out_bias = config_flag(r, "attention_bias", 0);
    m->mlp_bias = 0;
    m->norm_plus_one = 1;
    m->embed_scale = sqrt((double)m->width);
    if (first)
        return;
    m->branch_norms = 1;
    m->head_norm = third;
    m->attention_scale = 1 / sqrt(config_number(r, "query_pre_attn_scalar", 256, 1e-3, 1e6));
    m->attention_softcap = cap(r, "attn_logit_softcapping", third ? 0 : 50);
    m->logit_softcap = cap(r, "final_logit_softcapping", third ? 0 : 30);
    m->window = config_size(r, "sliding_window", 4096, 0, CONFIG_CONTEXT_MAX);
    config_layer_types(r, m, all_but_every, third ? config_size(r, "sliding_window_pattern", 6, 1, CONFIG_LAYERS_MAX) : 2);
    if (third)
        read_local_rope(r, m);
}

static const char *const TYPES[] = {"gemma", "gemma2", "gemma3_text", NULL}, *const GGUF_NAMES[] = {NULL};
static const char *const OWN[] = {"final_logit_softcapping", "attn_logit_softcapping", "query_pre_attn_scalar",
                                  "rope_parameters", NULL};

const struct arch arch_gemma = {.model_types = TYPES,
                                .gguf_names = GGUF_NAMES,
                                .own_keys = OWN,
                                .up_parts = 2,
                                .read = read,
                                .bind = llama_bind,
                                .forward = llama_forward};

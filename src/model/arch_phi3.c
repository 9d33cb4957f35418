/* Phi-3 and Phi-4: llama with q, k, v in one matrix, gate and up in another; Phi-4-mini rotates a part of each head.
 * Reference: https://arxiv.org/abs/2404.14219 and transformers' modeling_phi3.py. */
#include "model/model_impl.h"

static void read(struct config_reader *r, struct model_config *m)
{
    llama_read(r, m);
    m->norm_eps = config_number(r, "rms_norm_eps", 1e-5, 0, 1);
    m->qkv_bias = m->out_bias = m->mlp_bias = 0;
    m->fused = 1;
    m->window = config_size(r, "sliding_window", 0, 0, CONFIG_CONTEXT_MAX);
    memset(m->windowed, m->window != 0, sizeof m->windowed);
}

static const char *const TYPES[] = {"phi3", NULL}, *const GGUF_NAMES[] = {NULL};
static const char *const OWN[] = {"partial_rotary_factor", NULL};

const struct arch arch_phi3 = {.model_types = TYPES,
                               .gguf_names = GGUF_NAMES,
                               .own_keys = OWN,
                               .up_parts = 2,
                               .read = read,
                               .bind = llama_bind,
                               .forward = llama_forward};

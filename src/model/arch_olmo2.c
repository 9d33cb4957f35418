/* OLMo 2: llama whose norms come behind attention and MLP, with a norm of q and of k over all heads.
 * Reference: https://arxiv.org/abs/2501.00656 and transformers' modeling_olmo2.py. */
#include "model/model_impl.h"

static void read(struct config_reader *r, struct model_config *m)
{
    llama_read(r, m);
    m->norm_eps = config_number(r, "rms_norm_eps", 1e-5, 0, 1);
    m->qkv_bias = m->out_bias = config_flag(r, "attention_bias", 0);
    m->mlp_bias = 0;
    m->no_input_norms = m->branch_norms = m->row_norm = 1;
}

static const char *const TYPES[] = {"olmo2", NULL}, *const GGUF_NAMES[] = {NULL};

const struct arch arch_olmo2 = {
    .model_types = TYPES, .gguf_names = GGUF_NAMES, .up_parts = 2, .read = read, .bind = llama_bind, .forward = llama_forward};

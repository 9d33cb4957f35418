/* Granite: llama with four factors, of the embedding, of what layers add, of attention and of the logits.
 * Reference: transformers' modeling_granite.py. */
#include "model/model_impl.h"

static void read(struct config_reader *r, struct model_config *m)
{
    llama_read(r, m);
    m->qkv_bias = m->out_bias = config_flag(r, "attention_bias", 0);
    m->mlp_bias = config_flag(r, "mlp_bias", 0);
    m->embed_scale = config_number(r, "embedding_multiplier", 1, 1e-6, 1e6);
    m->branch_scale = config_number(r, "residual_multiplier", 1, 1e-6, 1e6);
    m->attention_scale = config_number(r, "attention_multiplier", 1, 1e-6, 1e6);
    m->logit_divisor = config_number(r, "logits_scaling", 1, 1e-6, 1e6);
}

static const char *const TYPES[] = {"granite", NULL}, *const GGUF_NAMES[] = {NULL};
static const char *const OWN[] = {"embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling",
                                  NULL};

const struct arch arch_granite = {.model_types = TYPES,
                                  .gguf_names = GGUF_NAMES,
                                  .own_keys = OWN,
                                  .up_parts = 2,
                                  .read = read,
                                  .bind = llama_bind,
                                  .forward = llama_forward};

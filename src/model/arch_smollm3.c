/* SmolLM3: llama with layers that are not rotated (no_rope_layers: 0 of each such layer, or every fourth).
 * Reference: transformers' modeling_smollm3.py and https://huggingface.co/blog/smollm3. */
#include "model/model_impl.h"

static int windowed(const struct model_config *m, size_t layer, size_t every)
{
    return m->window != 0 && m->unrotated[layer];
}

static void read(struct config_reader *r, struct model_config *m)
{
    llama_read(r, m);
    size_t every = config_size(r, "no_rope_layer_interval", 4, 1, CONFIG_LAYERS_MAX);
    const json_t *list = json_object_get(r->json, "no_rope_layers");
    m->tied = config_flag(r, "tie_word_embeddings", 1);
    m->qkv_bias = m->out_bias = config_flag(r, "attention_bias", 0);
    m->mlp_bias = config_flag(r, "mlp_bias", 0);
    if (json_is_array(list) && json_array_size(list) != m->n_layers)
        config_refuse(r, "\"no_rope_layers\" has %zu entries for %zu layers", json_array_size(list), m->n_layers);
    for (size_t l = 0; l < m->n_layers; l++)
        m->unrotated[l] = json_is_array(list) ? json_integer_value(json_array_get(list, l)) == 0 : (l + 1) % every == 0;
    if (config_flag(r, "use_sliding_window", 0))
        m->window = config_size(r, "sliding_window", 0, 0, CONFIG_CONTEXT_MAX);
    config_layer_types(r, m, windowed, every);
}

static const char *const TYPES[] = {"smollm3", NULL}, *const GGUF_NAMES[] = {NULL};
static const char *const OWN[] = {"no_rope_layers", "no_rope_layer_interval", NULL};

const struct arch arch_smollm3 = {.model_types = TYPES,
                                  .gguf_names = GGUF_NAMES,
                                  .own_keys = OWN,
                                  .up_parts = 2,
                                  .read = read,
                                  .bind = llama_bind,
                                  .forward = llama_forward};

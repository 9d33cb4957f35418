/* Any bytes as config.json + generation_config.json (parted by a NUL), or as a GGUF file: an error with a text, or sizes
 * within their limits and finite rotary frequencies. */
#include "base/err.h"
#include "model/checkpoint_impl.h"
#include "model/model_impl.h"

#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok, const struct model_config *m, struct err *err)
{
    struct rope r;
    if (!ok || !rope_init(&r, &m->rope, err)) {
        CHECK(err->code != ERR_NONE && err->text[0]);
        return;
    }
    CHECK(m->n_layers >= 1 && m->n_layers <= CONFIG_LAYERS_MAX && m->n_heads * m->head_dim <= CONFIG_WIDTH_MAX);
    CHECK(m->n_vocab >= 1 && m->n_vocab <= CONFIG_VOCAB_MAX && m->n_eos <= CONFIG_EOS_MAX);
    struct batch_seq seq = {.n_rows = 1, .pos = m->context_max - 1, .n_prompt = m->context_max};
    struct batch batch = {.n_rows = 1, .seqs = &seq, .n_seqs = 1};
    float cos_sin[2 * CONFIG_ROPE_PAIRS_MAX];
    if (r.kind != ROPE_NONE)
        rope_fill(&r, &batch, cos_sin);
    for (size_t i = 0; r.kind != ROPE_NONE && i < 2 * r.n_pairs; i++)
        CHECK(isfinite(cos_sin[i]));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err err = {0};
    struct model_config m;
    if (size >= 4 && memcmp(data, "GGUF", 4) == 0) {
        struct checkpoint *c = checkpoint_open_memory(CHECKPOINT_GGUF, data, size, &err);
        if (c)
            check(model_config_read(c, &m, &err), &m, &err);
        checkpoint_close(c);
        return 0;
    }
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    struct str config = {(const char *)data, nul ? (size_t)(nul - data) : size}, generation = {0};
    if (nul)
        generation = (struct str){(const char *)nul + 1, size - config.len - 1};
    check(model_config_parse(config, generation, &m, &err), &m, &err);
    return 0;
}

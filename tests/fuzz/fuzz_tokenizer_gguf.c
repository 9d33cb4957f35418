/* Any bytes as the vocabulary of a GGUF file (the file's own format is fuzz_config's): two bytes of choices, then entries
 * parted by NUL; a token is a byte of type, a byte of score and text; behind an empty entry come merges, behind another one
 * the charsmap. */
#include "tokenizer_use.h"

#define ENTRIES_MAX 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct str tokens[ENTRIES_MAX], merges[ENTRIES_MAX];
static float scores[ENTRIES_MAX];
static int32_t types[ENTRIES_MAX];

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const models[] = {"gpt2", "llama", "t5", "bert"};
    static const char *const pres[] = {"", "qwen2", "llama-bpe", "falcon", "deepseek-llm", "tekken", "starcoder", "none"};
    if (size < 2)
        return 0;
    struct tokenizer_gguf g = {.model = str_from(models[data[0] & 3]),
                               .pre = str_from(pres[data[0] >> 2 & 7]),
                               .tokens = tokens,
                               .merges = merges,
                               .scores = data[0] & 32 ? NULL : scores,
                               .token_types = data[0] & 64 ? NULL : types,
                               .bos = (data[1] & 7) - 1,
                               .eos = (data[1] >> 3 & 7) - 1,
                               .unk = (data[1] >> 6) - 1,
                               .pad = -1,
                               .add_bos = -1,
                               .add_eos = -1,
                               .add_space_prefix = data[0] & 128 ? 0 : -1,
                               .remove_extra_whitespaces = -1};
    int part = 0;
    for (size_t at = 2; at < size && part < 2;) {
        const uint8_t *nul = memchr(data + at, 0, size - at);
        struct str s = {(const char *)data + at, nul ? (size_t)(nul - data) - at : size - at};
        at += s.len + 1;
        if (!s.len) {
            if (++part == 2 && at < size)
                g.precompiled_charsmap = (struct str){(const char *)data + at, size - at};
        } else if (part == 1 && g.n_merges < ENTRIES_MAX) {
            merges[g.n_merges++] = s;
        } else if (part == 0 && g.n_tokens < ENTRIES_MAX && s.len > 2) {
            types[g.n_tokens] = s.ptr[0] & 7;
            scores[g.n_tokens] = (float)s.ptr[1];
            tokens[g.n_tokens++] = (struct str){s.ptr + 2, s.len - 2};
        }
    }
    struct err err = {0};
    struct tokenizer *t = tokenizer_from_gguf(&g, &err);
    if (t && g.n_tokens)
        use_tokenizer(t, &err);
    tokenizer_free(t);
    return 0;
}

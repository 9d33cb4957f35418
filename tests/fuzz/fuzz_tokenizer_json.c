/* Any bytes as tokenizer.json, or parted by NUL: tokenizer.json, tokenizer_config.json; vocab.json, merges.txt and
 * tokenizer_config.json when the first is empty. An error with a text, or a tokenizer that works. */
#include "tokenizer_use.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct str next_part(struct str *rest)
{
    const char *nul = rest->len ? memchr(rest->ptr, 0, rest->len) : NULL;
    struct str part = {rest->ptr, nul ? (size_t)(nul - rest->ptr) : rest->len};
    *rest = nul ? (struct str){nul + 1, rest->len - part.len - 1} : (struct str){rest->ptr, 0};
    return part;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err err = {0};
    struct str rest = {(const char *)data, size};
    struct tokenizer_files files = {.tokenizer_json = next_part(&rest), .model_type = STR("gpt2")};
    if (!files.tokenizer_json.len) {
        files.vocab_json = next_part(&rest);
        files.merges_txt = next_part(&rest);
    }
    files.tokenizer_config = next_part(&rest);
    files.special_tokens_map = next_part(&rest);
    files.added_tokens = next_part(&rest);
    struct tokenizer *t = tokenizer_from_files(&files, &err);
    use_tokenizer(t, &err);
    tokenizer_free(t);
    return 0;
}

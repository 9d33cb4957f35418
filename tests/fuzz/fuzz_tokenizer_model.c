/* Any bytes as SentencePiece's tokenizer.model: an error with a text, or a tokenizer that works. */
#include "tokenizer_use.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err err = {0};
    struct tokenizer_files files = {.tokenizer_model = {(const char *)data, size}};
    struct tokenizer *t = tokenizer_from_files(&files, &err);
    if (size)
        use_tokenizer(t, &err);
    tokenizer_free(t);
    return 0;
}

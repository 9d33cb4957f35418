/* Any ids through the streaming decoder, any text through the encoder, for small tokenizers of every kind: streamed text is
 * valid UTF-8 at every step and whole what decoding at once gives. Runs in the repository's root. */
#include "tokenizer_use.h"

#include <stdio.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const FOLDERS[] = {"byte-level", "spm-bpe",      "spm-unigram", "llama-legacy",
                                      "t5",         "bert-uncased", "bpe-suffix",  "unigram-bytes"};
#define N_FOLDERS (sizeof FOLDERS / sizeof *FOLDERS)

static void read_file(const char *folder, const char *name, struct buf *b)
{
    char path[256], part[65536];
    snprintf(path, sizeof path, "tests/golden/tokenizers/%s/%s", folder, name);
    buf_init(b, (size_t)1 << 24);
    FILE *f = fopen(path, "rb");
    size_t n;
    while (f && (n = fread(part, 1, sizeof part, f)) > 0)
        buf_append(b, part, n);
    if (f)
        fclose(f);
}

static struct tokenizer *open_one(const char *folder)
{
    struct err err;
    struct buf json, model;
    read_file(folder, "tokenizer.json", &json);
    read_file(folder, "tokenizer.model", &model);
    struct tokenizer_files files = {.tokenizer_json = buf_str(&json), .tokenizer_model = buf_str(&model)};
    struct tokenizer *t = tokenizer_from_files(&files, &err);
    CHECK(t);
    buf_release(&json);
    buf_release(&model);
    return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tokenizer *tokenizers[N_FOLDERS];
    int32_t ids[4096];
    size_t n = 0;
    if (size < 1)
        return 0;
    struct tokenizer **t = &tokenizers[data[0] % N_FOLDERS];
    if (!*t)
        *t = open_one(FOLDERS[data[0] % N_FOLDERS]);
    for (size_t i = 1; i + 1 < size && n < sizeof ids / sizeof *ids; i += 2)
        ids[n++] = (int32_t)(((size_t)data[i] << 8 | data[i + 1]) % tokenizer_vocab_size(*t));
    use_decode(*t, ids, n, data[0] & 128);
    use_text(*t, (struct str){(const char *)data + 1, size - 1}, data[0] >> 5 & 3);
    return 0;
}

/* Reading the golden files of tests/golden/tokenizers and the real tokenizers of ../shared/data. */
#ifndef INFERD_TESTS_TOKENIZERS_H
#define INFERD_TESTS_TOKENIZERS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "text/tokenizer.h"

#include <jansson.h>
#include <openssl/evp.h>

#define GOLDEN     "tests/golden/tokenizers/"
#define DATA       "../shared/data/"
#define FILE_BYTES ((size_t)64 << 20)
#define IDS_MAX    ((size_t)8 << 20)

/* Whole file; data NULL when there is none. */
static struct buf file_read(const char *format, ...) __attribute__((format(printf, 1, 2)));
static struct buf file_read(const char *format, ...)
{
    char path[512], part[65536];
    va_list args;
    va_start(args, format);
    vsnprintf(path, sizeof path, format, args);
    va_end(args);
    struct buf b;
    buf_init(&b, FILE_BYTES);
    FILE *f = fopen(path, "rb");
    size_t n;
    while (f && (n = fread(part, 1, sizeof part, f)) > 0)
        buf_append(&b, part, n);
    if (f)
        fclose(f);
    return b;
}

static inline json_t *json_read(const char *path)
{
    json_error_t at;
    json_t *root = json_load_file(path, JSON_ALLOW_NUL, &at);
    if (!root)
        print_error("%s: %s, line %d\n", path, at.text, at.line);
    assert_non_null(root);
    return root;
}

static inline struct str text_of(const json_t *v)
{
    return (struct str){json_string_value(v), json_string_length(v)};
}

/* A tokenizer out of the files of a folder; `only` NULL: all that are there. */
static inline struct tokenizer *tokenizer_open(const char *folder, const char *only, const char *model_type, struct err *err)
{
    static const char *const names[] = {"tokenizer.json",        "tokenizer.model",         "vocab.json",       "merges.txt",
                                        "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"};
    struct buf b[7];
    struct str s[7];
    for (size_t i = 0; i < 7; i++) {
        b[i] = file_read("%s/%s", folder, names[i]);
        s[i] = i < 4 && only && !strstr(only, names[i]) ? (struct str){0} : buf_str(&b[i]);
    }
    struct tokenizer_files files = {s[0], s[1], s[2], s[3], s[4], s[5], s[6], str_from(model_type)};
    struct tokenizer *t = tokenizer_from_files(&files, err);
    for (size_t i = 0; i < 7; i++)
        buf_release(&b[i]);
    return t;
}

static inline double seconds(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static inline bool ids_equal(const struct token_list *l, const json_t *wanted)
{
    if (json_is_string(wanted)) {
        unsigned char digest[EVP_MAX_MD_SIZE];
        unsigned n = 0;
        char hex[2 * EVP_MAX_MD_SIZE + 1] = "";
        assert_int_equal(
            EVP_Digest(l->ids ? (const void *)l->ids : "", l->len * sizeof *l->ids, digest, &n, EVP_sha256(), NULL), 1);
        for (unsigned i = 0; i < n; i++)
            snprintf(hex + 2 * i, 3, "%02x", digest[i]);
        return strcmp(hex, json_string_value(wanted)) == 0;
    }
    if (json_array_size(wanted) != l->len)
        return false;
    for (size_t i = 0; i < l->len; i++)
        if (json_integer_value(json_array_get(wanted, i)) != l->ids[i])
            return false;
    return true;
}

static inline void print_ids(const char *what, const struct token_list *l, const json_t *wanted)
{
    print_error("%s\n  wanted", what);
    if (json_is_string(wanted))
        print_error(" %s", json_string_value(wanted));
    for (size_t i = 0; i < json_array_size(wanted) && i < 60; i++)
        print_error(" %lld", (long long)json_integer_value(json_array_get(wanted, i)));
    print_error("\n  got   ");
    for (size_t i = 0; i < l->len && i < 60; i++)
        print_error(" %d", (int)l->ids[i]);
    print_error("\n");
}

/* The text of ids, whole; and token by token: the same, valid UTF-8 at every step. */
static inline bool decode_both(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip, struct buf *out)
{
    struct err err;
    struct buf streamed;
    bool ok = true;
    buf_init(out, FILE_BYTES);
    buf_init(&streamed, FILE_BYTES);
    assert_true(tokenizer_decode(t, ids, n, skip, out, &err));
    struct detok *d = detok_new(t, skip);
    assert_non_null(d);
    for (size_t i = 0; i < n; i++) {
        size_t before = streamed.len;
        assert_true(detok_push(d, ids[i], &streamed));
        ok &= str_utf8_valid((struct str){buf_str(&streamed).ptr + before, streamed.len - before});
    }
    assert_true(detok_finish(d, &streamed));
    detok_free(d);
    ok &= str_equal(buf_str(out), buf_str(&streamed));
    buf_release(&streamed);
    return ok;
}

#endif

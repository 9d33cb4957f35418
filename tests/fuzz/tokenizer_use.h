/* What every tokenizer must stand, however odd its files were: encode and decode texts, token by token as a whole. */
#ifndef INFERD_FUZZ_TOKENIZER_USE_H
#define INFERD_FUZZ_TOKENIZER_USE_H

#include "base/err.h"
#include "text/tokenizer.h"

#define USE_BYTES ((size_t)1 << 20)
#define USE_IDS   ((size_t)1 << 18)

/* Streamed text is valid UTF-8 at every step and whole what decoding at once gives. */
static void use_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip)
{
    struct buf whole, streamed;
    struct err err = {0};
    buf_init(&whole, USE_BYTES);
    buf_init(&streamed, USE_BYTES);
    bool ok = tokenizer_decode(t, ids, n, skip, &whole, &err);
    struct detok *d = detok_new(t, skip);
    CHECK(d);
    for (size_t i = 0; i < n && ok; i++) {
        size_t before = streamed.len;
        ok = detok_push(d, ids[i], &streamed);
        CHECK(!ok || str_utf8_valid((struct str){buf_str(&streamed).ptr + before, streamed.len - before}));
    }
    ok = ok && detok_finish(d, &streamed);
    CHECK(!ok || str_equal(buf_str(&whole), buf_str(&streamed)));
    detok_free(d);
    buf_release(&whole);
    buf_release(&streamed);
}

static void use_text(const struct tokenizer *t, struct str text, unsigned flags)
{
    struct token_list l;
    struct buf bytes;
    struct err err = {0};
    token_list_init(&l, USE_IDS);
    buf_init(&bytes, USE_BYTES);
    if (tokenizer_encode(t, text, flags, &l, &err)) {
        for (size_t i = 0; i < l.len; i++) {
            CHECK(l.ids[i] >= 0 && (size_t)l.ids[i] < tokenizer_vocab_size(t));
            tokenizer_token_bytes(t, l.ids[i], &bytes);
        }
        use_decode(t, l.ids, l.len, false);
        use_decode(t, l.ids, l.len, true);
    } else {
        CHECK(err.code != ERR_NONE && err.text[0]);
    }
    buf_release(&bytes);
    token_list_release(&l);
}

static inline void use_tokenizer(const struct tokenizer *t, const struct err *err)
{
    static const char *const texts[] = {"",
                                        " ",
                                        "a b  ab",
                                        "Gr\xc3\xbc\xc3\x9f e \xe6\xbc\xa2\xf0\x9f\x98\x80 e\xcc\x81 don't 123\r\n\t x",
                                        "<s>a</s> <unk>\xff\xfe [UNK]",
                                        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    if (!t) {
        CHECK(err->code != ERR_NONE && err->text[0]);
        return;
    }
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        use_text(t, str_from(texts[i]), (unsigned)i % 4);
    int32_t ids[64];
    for (size_t i = 0; i < 64; i++)
        ids[i] = (int32_t)(i * 2654435761u % tokenizer_vocab_size(t));
    use_decode(t, ids, 64, false);
}

#endif

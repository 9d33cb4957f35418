/* WordPiece (BERT): from the left, always the longest token that fits; one unknown token for a word that does not come out.
 * WordLevel: a word is a token or unknown. */
#include "text/tokenizer_impl.h"

static bool emit_unknown(struct encode *e, struct str w)
{
    if (e->t->unk_id < 0)
        return err_set(e->err, ERR_INVALID_REQUEST, "the tokenizer has no token for \"%.*s\" and none for unknown text",
                       (int)(w.len < 60 ? w.len : 60), w.ptr);
    return encode_emit(e, e->t->unk_id);
}

static int32_t word_id(const struct tokenizer *t, struct str w)
{
    int32_t id = w.len <= TOKENIZER_TOKEN_BYTES_MAX ? tokenizer_model_id(t, w) : -1;
    return id >= 0 && (t->flags[id] & TOKEN_HIDDEN) ? -1 : id;
}

bool wordlevel_word(struct encode *e, struct str w)
{
    int32_t id = word_id(e->t, w);
    return id >= 0 ? encode_emit(e, id) : emit_unknown(e, w);
}

/* The longest token that w[at..] begins with; its end in *end. */
static int32_t longest(const struct tokenizer *t, struct str w, size_t at, size_t *end)
{
    char text[WORDPIECE_CHARS_MAX * 4 + WORDPIECE_PREFIX_MAX];
    size_t prefix = at ? t->subword_prefix.len : 0;
    memcpy(text, t->subword_prefix.ptr ? t->subword_prefix.ptr : "", prefix);
    memcpy(text + prefix, w.ptr + at, w.len - at);
    for (*end = w.len; *end > at;) {
        int32_t id = word_id(t, (struct str){text, prefix + *end - at});
        if (id >= 0)
            return id;
        do
            --*end;
        while (*end > at && ((unsigned char)w.ptr[*end] & 0xc0) == 0x80);
    }
    return -1;
}

bool wordpiece_word(struct encode *e, struct str w)
{
    const struct tokenizer *t = e->t;
    int32_t ids[WORDPIECE_CHARS_MAX];
    size_t n_chars = 0, n = 0, end = 0;
    for (size_t i = 0; i < w.len && n_chars <= t->word_chars_max; i++)
        n_chars += ((unsigned char)w.ptr[i] & 0xc0) != 0x80;
    if (n_chars > t->word_chars_max)
        return emit_unknown(e, w);
    for (size_t at = 0; at < w.len; at = end) {
        if ((ids[n++] = longest(t, w, at, &end)) < 0)
            return emit_unknown(e, w);
    }
    for (size_t i = 0; i < n; i++)
        if (!encode_emit(e, ids[i]))
            return false;
    return true;
}

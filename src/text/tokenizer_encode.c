/* Encoding: text -> added tokens and the text between them -> normalizers -> words (tokenizer_pre.c) -> ids. */
#include "text/tokenizer_impl.h"

#include <stdlib.h>

bool encode_emit(struct encode *e, int32_t id)
{
    e->n_total++;
    if (e->out->len >= e->out->max)
        return true; /* counted, so that the message can say how many there are */
    return token_list_push(e->out, id) || err_set(e->err, ERR_MEMORY, "no memory for %zu token ids", e->out->len + 1);
}

bool encode_grow(struct encode *e, void **array, size_t *cap, size_t n, size_t size)
{
    if (n <= *cap)
        return true;
    size_t want = n < 256 ? 256 : n + n / 2;
    free(*array);
    *array = want <= SIZE_MAX / size ? malloc(want * size) : NULL;
    *cap = *array ? want : 0;
    return *array || err_set(e->err, ERR_MEMORY, "no memory to tokenize a word of %zu bytes", n);
}

/* ---- words ------------------------------------------------------------------------------------------------------- */
static bool word_model(struct encode *e, struct str w)
{
    switch (e->t->model) {
    case MODEL_BPE: return bpe_word(e, w);
    case MODEL_SPM_BPE: return spm_bpe_word(e, w);
    case MODEL_UNIGRAM: return unigram_word(e, w);
    case MODEL_WORDPIECE: return wordpiece_word(e, w);
    case MODEL_WORDLEVEL: return wordlevel_word(e, w);
    }
    return err_set(e->err, ERR_INTERNAL, "unknown tokenizer model %d", (int)e->t->model);
}

/* A text that nothing has cut (SentencePiece's) is cut in front of each "▁" that no token can join to what stands before
 * it: the same ids, found in short words. */
bool word_run(struct encode *e, struct str w)
{
    const struct tokenizer *t = e->t;
    if (!t->cuts_spaces)
        return word_model(e, w);
    size_t from = 0;
    for (size_t at = 1; at < w.len;) {
        const char *mark = memchr(w.ptr + at, 0xe2, w.len - at);
        if (!mark)
            break;
        at = (size_t)(mark - w.ptr);
        if (str_has_prefix((struct str){mark, w.len - at}, STR("\xe2\x96\x81")) && !t->joins_space[(unsigned char)mark[-1]]) {
            if (!word_model(e, (struct str){w.ptr + from, at - from}))
                return false;
            from = at;
        }
        at++;
    }
    return word_model(e, (struct str){w.ptr + from, w.len - from});
}

/* ---- added tokens ------------------------------------------------------------------------------------------------ */
static size_t char_before(struct str s, size_t at)
{
    do
        at--;
    while (at > 0 && ((unsigned char)s.ptr[at] & 0xc0) == 0x80);
    return at;
}

static bool stands_alone(struct str s, size_t start, size_t end)
{
    if (start > 0) {
        size_t at = char_before(s, start);
        if (char_is_word(utf8_get(s, &at)))
            return false;
    }
    return end == s.len || !char_is_word(utf8_get(s, &end));
}

static size_t spaces_left(struct str s, size_t start, size_t bound)
{
    while (start > bound) {
        size_t before = char_before(s, start), at = before;
        if (!char_is_space(utf8_get(s, &at)))
            break;
        start = before;
    }
    return start < bound ? bound : start;
}

static size_t spaces_right(struct str s, size_t end)
{
    while (end < s.len) {
        size_t at = end;
        if (!char_is_space(utf8_get(s, &at)))
            break;
        end = at;
    }
    return end;
}

enum parse { PARSE_TEXT, PARSE_TOKEN, PARSE_FAILED };

/* What a special token's characters at `at` are. */
static enum parse parse_special(struct encode *e, const char *at, size_t n)
{
    if (!(e->flags & TOKENIZER_PARSE_SPECIAL))
        return PARSE_TEXT;
    if (!e->own)
        return PARSE_TOKEN;
    uintptr_t from = (uintptr_t)e->text.ptr, place = (uintptr_t)at;
    if (place < from || place - from + n > e->text.len) {
        err_set_param(e->err, ERR_UNSUPPORTED, "split_special_tokens",
                      "This model's tokenizer looks for special tokens in a "
                      "text that it has normalized before; which of them came with the messages cannot be told then. Leave "
                      "'split_special_tokens' out, or take them out of the messages.");
        return PARSE_FAILED;
    }
    return text_spans_hold(e->own, place - from, place - from + n) ? PARSE_TOKEN : PARSE_TEXT;
}

typedef bool piece_fn(struct encode *e, struct piece p);

static struct piece piece_part(struct piece p, size_t from, size_t to)
{
    size_t zero = from < p.zero ? p.zero - from : 0;
    return (struct piece){{p.s.ptr + from, to - from}, zero < to - from ? zero : to - from};
}

/* Leftmost-longest matches of `tr`; what lies between goes to `rest`. */
static bool split_added(struct encode *e, const struct trie *tr, struct piece p, piece_fn *rest)
{
    const struct tokenizer *t = e->t;
    struct str s = p.s;
    size_t done = 0;
    for (size_t at = 0; at < s.len;) {
        int32_t value = -1;
        size_t n = tr->first[(unsigned char)s.ptr[at]] ? trie_longest(tr, s, at, &value) : 0;
        if (n == 0) {
            at++;
            continue;
        }
        const struct added_token *a = &t->added[value];
        size_t start = at, end = at + n;
        at = end;
        enum parse parse = a->special ? parse_special(e, s.ptr + start, n) : PARSE_TOKEN;
        if (parse == PARSE_FAILED)
            return false;
        if (parse == PARSE_TEXT) {
            at = e->own ? start + 1 : end; /* an own one may begin within it */
            continue;
        }
        if (a->single_word && !stands_alone(s, start, end))
            continue;
        if (a->lstrip)
            start = spaces_left(s, start, done < start ? done : start);
        if (a->rstrip)
            end = spaces_right(s, end);
        if (start > done && !rest(e, piece_part(p, done, start)))
            return false;
        if (!encode_emit(e, a->id))
            return false;
        done = end;
    }
    return done >= s.len || rest(e, piece_part(p, done, s.len));
}

static bool encode_normal(struct encode *e, struct piece p)
{
    if (!norm_run(e, p, &p))
        return false;
    return e->t->has_normal ? split_added(e, &e->t->normal_trie, p, pre_run) : pre_run(e, p);
}

static void encode_release(struct encode *e)
{
    buf_release(&e->clean);
    buf_release(&e->norm_a);
    buf_release(&e->norm_b);
    for (size_t i = 0; i < TOKENIZER_STEPS_MAX; i++) {
        buf_release(&e->step[i]);
        buf_release(&e->step_word[i]);
        regex_scratch_free(e->pre_scratch[i]);
        regex_scratch_free(e->norm_scratch[i]);
    }
    free(e->nodes);
    free(e->heap);
    free(e->lattice);
}

static bool encode_text(struct encode *e, struct str text)
{
    const struct tokenizer *t = e->t;
    size_t n_before = e->flags & TOKENIZER_ADD_SPECIAL ? t->n_before : 0;
    size_t n_after = e->flags & TOKENIZER_ADD_SPECIAL ? t->n_after : 0;
    for (size_t i = 0; i < n_before; i++)
        if (!encode_emit(e, t->before[i]))
            return false;
    size_t i = 0;
    struct piece p = {text, text.len ? (utf8_get(text, &i), i) : 0};
    if (text.len && !(t->has_raw ? split_added(e, &t->raw_trie, p, encode_normal) : encode_normal(e, p)))
        return false;
    for (i = 0; i < n_after; i++)
        if (!encode_emit(e, t->after[i]))
            return false;
    return true;
}

static bool encode(const struct tokenizer *t, struct str text, unsigned flags, const struct text_spans *own,
                   struct token_list *out, struct err *err)
{
    if (text.len > SIZE_MAX / 4 / TOKENIZER_EXPAND_MAX)
        return err_set(err, ERR_TOO_LARGE, "text of %zu bytes is too long to tokenize", text.len);
    struct encode e = {.t = t, .flags = flags, .own = own, .out = out, .err = err};
    size_t room = 4096 + text.len * TOKENIZER_EXPAND_MAX;
    size_t len_before = out->len;
    buf_init(&e.clean, 3 * text.len + 16);
    buf_init(&e.norm_a, room);
    buf_init(&e.norm_b, room);
    for (size_t i = 0; i < TOKENIZER_STEPS_MAX; i++) {
        buf_init(&e.step[i], room * 2);
        buf_init(&e.step_word[i], room * 2);
    }
    bool ok = true;
    if (!utf8_is_valid(text)) {
        ok = utf8_append_lossy(&e.clean, text) || err_set(err, ERR_MEMORY, "no memory for a text of %zu bytes", text.len);
        text = buf_str(&e.clean);
        e.own = NULL; /* its places are others now: nothing in it is own */
        e.flags = own ? flags & ~(unsigned)TOKENIZER_PARSE_SPECIAL : flags;
    }
    e.text = text;
    ok = ok && encode_text(&e, text);
    encode_release(&e);
    if (ok && e.n_total > out->len - len_before)
        ok = err_set(err, ERR_TOO_LARGE, "text gives %zu tokens, more than the limit of %zu", len_before + e.n_total, out->max);
    return ok;
}

bool tokenizer_encode(const struct tokenizer *t, struct str text, unsigned flags, struct token_list *out, struct err *err)
{
    return encode(t, text, flags, NULL, out, err);
}

bool tokenizer_encode_own(const struct tokenizer *t, struct str text, unsigned flags, const struct text_spans *own,
                          struct token_list *out, struct err *err)
{
    return encode(t, text, flags | TOKENIZER_PARSE_SPECIAL, own, out, err);
}

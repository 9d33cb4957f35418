/* Decoding: tokens -> text, one token at a time. tokenizer_decode runs the same machine over all ids, so that a stream
 * gives exactly the text of the whole.
 *
 * Stages: the token-wise decoder steps; a run of byte tokens (<0x..>), which is text only if all of it is valid UTF-8
 * and so waits for its end; after Fuse, Strip; last the clean-up of spaces. Byte-level tokenizers need none of that:
 * bytes are appended and whole characters leave.
 *
 * Invariant: what left is never changed by what comes. Memory: the longest run of byte tokens, bounded. */
#include "text/tokenizer_impl.h"

#include <stdlib.h>

#define DETOK_TEXT_BYTES_MAX ((size_t)1 << 20) /* what one token may become */
#define DETOK_HELD_BYTES_MAX ((size_t)1 << 30)
#define CLEANUP_HELD_MAX     4096u

struct detok {
    const struct tokenizer *t;
    int skip_special;
    size_t run_max;                           /* byte tokens that may wait */
    size_t n_tokens[TOKENIZER_STEPS_MAX + 1]; /* tokens that reached a step */
    struct buf tail;                          /* byte-level: bytes of an unfinished character */
    struct buf run;                           /* byte fallback: the run so far */
    struct buf text[TOKENIZER_STEPS_MAX];     /* what a step made of the token that is on its way */
    struct buf held;                          /* BPE decoder: the last token; Strip: trailing characters */
    int holds;
    size_t stripped[TOKENIZER_STEPS_MAX]; /* characters taken off the front of the fused text */
    struct buf clean;                     /* clean-up: text that may still change */
};

static bool detok_token(struct detok *d, size_t k, struct str s, struct buf *out);

static bool detok_init(struct detok *d, const struct tokenizer *t, int skip_special, size_t run_max)
{
    *d = (struct detok){.t = t, .skip_special = skip_special, .run_max = run_max};
    buf_init(&d->tail, DETOK_HELD_BYTES_MAX);
    buf_init(&d->run, DETOK_HELD_BYTES_MAX);
    for (size_t k = 0; k < TOKENIZER_STEPS_MAX; k++)
        buf_init(&d->text[k], DETOK_TEXT_BYTES_MAX);
    buf_init(&d->held, DETOK_HELD_BYTES_MAX);
    buf_init(&d->clean, DETOK_HELD_BYTES_MAX);
    return true;
}

static void detok_release(struct detok *d)
{
    buf_release(&d->tail);
    buf_release(&d->run);
    for (size_t k = 0; k < TOKENIZER_STEPS_MAX; k++)
        buf_release(&d->text[k]);
    buf_release(&d->held);
    buf_release(&d->clean);
}

/* ---- clean_up_tokenization_spaces -------------------------------------------------------------------------------- */
static const char *const CLEANUP[][2] = {{" .", "."},     {" ?", "?"},   {" !", "!"},   {" ,", ","},     {" ' ", "'"},
                                         {" n't", "n't"}, {" 'm", "'m"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};

static void replace_all(struct str s, struct str what, struct str with, struct buf *out)
{
    const char *hit;
    while (s.len && (hit = memmem(s.ptr, s.len, what.ptr, what.len))) {
        size_t n = (size_t)(hit - s.ptr);
        buf_append(out, s.ptr, n);
        buf_append_str(out, with);
        s = (struct str){hit + what.len, s.len - n - what.len};
    }
    buf_append_str(out, s);
}

/* Cleans `s` as a whole and appends it. */
static bool cleanup_text(struct str s, struct buf *out)
{
    struct buf x, y;
    buf_init(&x, s.len + 16);
    buf_init(&y, s.len + 16);
    buf_append_str(&x, s);
    for (size_t i = 0; i < sizeof CLEANUP / sizeof *CLEANUP; i++) {
        buf_clear(&y);
        replace_all(buf_str(&x), str_from(CLEANUP[i][0]), str_from(CLEANUP[i][1]), &y);
        struct buf swap = x;
        x = y;
        y = swap;
    }
    bool ok = !x.failed && !y.failed && buf_append_str(out, buf_str(&x));
    buf_release(&x);
    buf_release(&y);
    return ok;
}

/* Text leaves the machine. Every replacement lies within characters of " .?!,'ntmsver": behind any other character the
 * text is final. */
static bool detok_out(struct detok *d, struct str s, struct buf *out)
{
    if (!d->t->clean_up)
        return buf_append_str(out, s);
    if (!buf_append_str(&d->clean, s))
        return false;
    struct str all = buf_str(&d->clean);
    size_t n = all.len;
    while (n > 0 && memchr(" .?!,'ntmsver", all.ptr[n - 1], 13))
        n--;
    if (all.len - n > CLEANUP_HELD_MAX)
        n = all.len;
    bool ok = n == 0 || cleanup_text((struct str){all.ptr, n}, out);
    buf_consume(&d->clean, n);
    return ok;
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */
static bool starts_with_char(struct str s, struct str c)
{
    return c.len && str_has_prefix(s, c);
}

static struct str strip_token(struct str s, const struct dec_step *st)
{
    for (size_t i = 0; i < st->start && starts_with_char(s, st->content); i++)
        s = (struct str){s.ptr + st->content.len, s.len - st->content.len};
    for (size_t i = 0; i < st->stop && st->content.len && str_has_suffix(s, st->content); i++)
        s.len -= st->content.len;
    return s;
}

/* Strip behind Fuse: characters come off both ends of the whole text; trailing ones wait in `held`. */
static bool strip_fused(struct detok *d, size_t k, struct str s, struct buf *out)
{
    const struct dec_step *st = &d->t->dec[k];
    while (d->stripped[k] < st->start && s.len) {
        if (!starts_with_char(s, st->content)) {
            d->stripped[k] = st->start;
            break;
        }
        d->stripped[k]++;
        s = (struct str){s.ptr + st->content.len, s.len - st->content.len};
    }
    if (!st->stop)
        return detok_token(d, k + 1, s, out);
    if (!buf_append_str(&d->held, s))
        return false;
    struct str all = buf_str(&d->held);
    size_t keep = 0;
    while (keep < st->stop && str_has_suffix((struct str){all.ptr, all.len - keep * st->content.len}, st->content))
        keep++;
    size_t n = all.len - keep * st->content.len;
    bool ok = detok_token(d, k + 1, (struct str){all.ptr, n}, out);
    buf_consume(&d->held, n);
    return ok;
}

static bool run_flush(struct detok *d, size_t k, struct buf *out)
{
    struct str run = buf_str(&d->run);
    if (!run.len)
        return true;
    bool ok = true;
    if (utf8_is_valid(run))
        ok = detok_token(d, k + 1, run, out);
    else
        for (size_t i = 0; i < run.len && ok; i++)
            ok = detok_token(d, k + 1, STR("\xef\xbf\xbd"), out);
    buf_clear(&d->run);
    return ok;
}

/* A stream cannot hold more: what is complete leaves as if the run ended there. */
static bool run_overflow(struct detok *d, size_t k, struct buf *out)
{
    size_t n = 0, skip;
    int step = 1;
    while (n < d->run.len && (step = utf8_step((const unsigned char *)d->run.data + n, d->run.len - n, &skip)) > 0)
        n += (size_t)step;
    if (step == 0 || n == 0)
        return run_flush(d, k, out);
    bool ok = detok_token(d, k + 1, (struct str){d->run.data, n}, out);
    buf_consume(&d->run, n);
    return ok;
}

/* The same character by character: what is complete leaves, each byte that fits nowhere is U+FFFD. `last`: no more bytes
 * follow. */
static bool run_characters(struct detok *d, size_t k, bool last, struct buf *out)
{
    const unsigned char *p = (const unsigned char *)d->run.data;
    size_t at = 0;
    bool ok = true;
    while (at < d->run.len && ok) {
        size_t skip;
        int n = utf8_step(p + at, d->run.len - at, &skip);
        if (n < 0 && !last)
            break;
        ok = detok_token(d, k + 1, n > 0 ? (struct str){(const char *)p + at, (size_t)n} : STR("\xef\xbf\xbd"), out);
        at += n > 0 ? (size_t)n : 1;
    }
    buf_consume(&d->run, at);
    return ok;
}

static bool byte_fallback(struct detok *d, size_t k, struct str s, struct buf *out)
{
    int b = token_fallback_byte(s);
    if (d->t->dec[k].by_character) {
        if (b < 0)
            return run_characters(d, k, true, out) && detok_token(d, k + 1, s, out);
        return buf_append_char(&d->run, (char)b) && run_characters(d, k, false, out);
    }
    if (b < 0)
        return run_flush(d, k, out) && detok_token(d, k + 1, s, out);
    if (!buf_append_char(&d->run, (char)b))
        return false;
    return d->run.len < d->run_max || run_overflow(d, k, out);
}

/* Where step k writes. What an earlier step made stays as it is while a later one lets go a run of bytes. */
static struct buf *step_text(struct detok *d, size_t k)
{
    buf_clear(&d->text[k]);
    return &d->text[k];
}

static bool wordpiece(struct detok *d, size_t k, struct str s, size_t index, struct buf *out)
{
    const struct dec_step *st = &d->t->dec[k];
    struct buf *b = step_text(d, k);
    if (index > 0 && str_has_prefix(s, st->content))
        s = (struct str){s.ptr + st->content.len, s.len - st->content.len};
    else if (index > 0)
        buf_append_char(b, ' ');
    buf_append_str(b, s);
    if (!st->cleanup)
        return !b->failed && detok_token(d, k + 1, buf_str(b), out);
    struct buf cleaned;
    buf_init(&cleaned, DETOK_TEXT_BYTES_MAX);
    bool ok = !b->failed && cleanup_text(buf_str(b), &cleaned) && detok_token(d, k + 1, buf_str(&cleaned), out);
    buf_release(&cleaned);
    return ok;
}

/* The suffix becomes a space, at the very last token nothing: a token waits for the next one. */
static bool bpe_suffix(struct detok *d, size_t k, const struct str *next, struct buf *out)
{
    bool ok = true;
    if (d->holds) {
        struct buf *b = step_text(d, k);
        replace_all(buf_str(&d->held), d->t->dec[k].content, next ? STR(" ") : STR(""), b);
        ok = !b->failed && detok_token(d, k + 1, buf_str(b), out);
    }
    buf_clear(&d->held);
    d->holds = next != NULL;
    return ok && (!next || buf_append_str(&d->held, *next));
}

static bool fused_before(const struct tokenizer *t, size_t k)
{
    for (size_t i = 0; i < k; i++)
        if (t->dec[i].kind == DEC_FUSE)
            return true;
    return false;
}

static bool detok_token(struct detok *d, size_t k, struct str s, struct buf *out)
{
    const struct tokenizer *t = d->t;
    if (k == t->n_dec)
        return detok_out(d, s, out);
    const struct dec_step *st = &t->dec[k];
    size_t index = d->n_tokens[k]++;
    struct buf *b;
    switch (st->kind) {
    case DEC_REPLACE:
        b = step_text(d, k);
        replace_all(s, st->pattern.literal, st->content, b);
        return !b->failed && detok_token(d, k + 1, buf_str(b), out);
    case DEC_METASPACE:
        b = step_text(d, k);
        replace_all(s, st->pattern.literal, index == 0 && st->first_dropped ? STR("") : STR(" "), b);
        return !b->failed && detok_token(d, k + 1, buf_str(b), out);
    case DEC_BYTE_FALLBACK: return byte_fallback(d, k, s, out);
    case DEC_STRIP: return fused_before(t, k) ? strip_fused(d, k, s, out) : detok_token(d, k + 1, strip_token(s, st), out);
    case DEC_WORDPIECE: return wordpiece(d, k, s, index, out);
    case DEC_BPE: return bpe_suffix(d, k, &s, out);
    case DEC_FUSE:
    case DEC_BYTE_LEVEL: return detok_token(d, k + 1, s, out);
    }
    return false;
}

/* ---- byte level -------------------------------------------------------------------------------------------------- */
static bool byte_level(struct detok *d, struct str s, struct buf *out)
{
    if (d->tail.len == 0 && s.len && !(s.ptr[s.len - 1] & 0x80) && utf8_is_valid(s))
        return detok_out(d, s, out);
    if (!buf_append_str(&d->tail, s))
        return false;
    const unsigned char *p = (const unsigned char *)d->tail.data;
    size_t at = 0;
    bool ok = true;
    while (at < d->tail.len && ok) {
        size_t skip = 0;
        int n = utf8_step(p + at, d->tail.len - at, &skip);
        if (n < 0)
            break;
        ok = n > 0 ? detok_out(d, (struct str){(const char *)p + at, (size_t)n}, out) : detok_out(d, STR("\xef\xbf\xbd"), out);
        at += n > 0 ? (size_t)n : skip;
    }
    buf_consume(&d->tail, at);
    return ok;
}

static bool is_byte_level(const struct tokenizer *t)
{
    return t->n_dec > 0 && t->dec[0].kind == DEC_BYTE_LEVEL;
}

static bool push(struct detok *d, int32_t id, struct buf *out)
{
    const struct tokenizer *t = d->t;
    if (id < 0 || (size_t)id >= t->n_ids || !t->tokens[id].ptr)
        return true;
    if (d->skip_special && (t->flags[id] & TOKEN_SPECIAL))
        return true;
    if (is_byte_level(t))
        return byte_level(d, t->bytes[id], out);
    if (t->n_dec == 0 && d->n_tokens[TOKENIZER_STEPS_MAX]++ > 0 && !detok_out(d, STR(" "), out))
        return false;
    return detok_token(d, 0, t->tokens[id], out);
}

static bool finish(struct detok *d, struct buf *out)
{
    const struct tokenizer *t = d->t;
    bool ok = true;
    for (size_t k = 0; k < t->n_dec; k++) {
        if (t->dec[k].kind == DEC_BYTE_FALLBACK)
            ok = ok && (t->dec[k].by_character ? run_characters(d, k, true, out) : run_flush(d, k, out));
        if (t->dec[k].kind == DEC_BPE)
            ok = ok && bpe_suffix(d, k, NULL, out);
    }
    if (d->tail.len)
        ok = ok && detok_out(d, STR("\xef\xbf\xbd"), out);
    buf_clear(&d->tail);
    buf_clear(&d->held);
    if (t->clean_up)
        ok = ok && cleanup_text(buf_str(&d->clean), out);
    buf_clear(&d->clean);
    return ok;
}

/* ---- public ------------------------------------------------------------------------------------------------------ */
bool tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n_ids, bool skip_special, struct buf *out,
                      struct err *err)
{
    for (size_t i = 0; i < n_ids; i++)
        if (ids[i] < 0 || (size_t)ids[i] >= t->n_ids)
            return err_set(err, ERR_INVALID_REQUEST, "token id %d is not in the vocabulary (0..%zu)", (int)ids[i],
                           t->n_ids ? t->n_ids - 1 : 0);
    struct detok d;
    detok_init(&d, t, skip_special, SIZE_MAX);
    bool ok = true;
    for (size_t i = 0; i < n_ids && ok; i++)
        ok = push(&d, ids[i], out);
    ok = ok && finish(&d, out);
    detok_release(&d);
    return ok || err_set(err, ERR_TOO_LARGE, "the text of %zu tokens is longer than the limit of %zu bytes", n_ids, out->max);
}

struct detok *detok_new(const struct tokenizer *t, bool skip_special)
{
    struct detok *d = malloc(sizeof *d);
    if (d)
        detok_init(d, t, skip_special, DETOK_PENDING_MAX);
    return d;
}

void detok_free(struct detok *d)
{
    if (!d)
        return;
    detok_release(d);
    free(d);
}

bool detok_push(struct detok *d, int32_t id, struct buf *out)
{
    return push(d, id, out);
}

bool detok_finish(struct detok *d, struct buf *out)
{
    return finish(d, out);
}

bool tokenizer_token_bytes(const struct tokenizer *t, int32_t id, struct buf *out)
{
    if (id < 0 || (size_t)id >= t->n_ids || !t->tokens[id].ptr)
        return true;
    struct str s = t->tokens[id];
    if (t->flags[id] & TOKEN_SPECIAL)
        return buf_append_str(out, s);
    if (is_byte_level(t))
        return buf_append_str(out, t->bytes[id]);
    struct detok d;
    detok_init(&d, t, 0, 1);
    bool ok = true;
    for (size_t k = 0; k < t->n_dec && ok; k++) {
        const struct dec_step *st = &t->dec[k];
        if (st->kind == DEC_BYTE_FALLBACK && token_fallback_byte(s) >= 0) {
            char b = (char)token_fallback_byte(s);
            ok = buf_append_char(out, b);
            s.len = 0;
            break;
        }
        if (st->kind != DEC_REPLACE && st->kind != DEC_METASPACE)
            continue;
        struct buf *b = step_text(&d, k);
        replace_all(s, st->pattern.literal, st->kind == DEC_REPLACE ? st->content : STR(" "), b);
        ok = !b->failed;
        s = buf_str(b);
    }
    ok = ok && buf_append_str(out, s);
    detok_release(&d);
    return ok;
}

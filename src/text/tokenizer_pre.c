/* Pre-tokenizers: a chain of steps, each cutting pieces into smaller ones; what leaves the last step is a word for the
 * model. Steps work on one piece at a time, depth first, so nothing is ever listed. */
#include "text/tokenizer_impl.h"

#include <stdlib.h>

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define QWEN2 \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|" \
    "\\s+(?!\\S)|\\s+"
const struct str PATTERN_GPT2 = {GPT2, sizeof GPT2 - 1}, PATTERN_QWEN2 = {QWEN2, sizeof QWEN2 - 1};

static bool step_run(struct encode *e, size_t k, struct piece p);

static struct piece part(struct piece p, size_t from, size_t to)
{
    size_t zero = from < p.zero ? p.zero - from : 0;
    return (struct piece){{p.s.ptr + from, to - from}, zero < to - from ? zero : to - from};
}

/* ---- what a split does with its matches --------------------------------------------------------------------------- */
/* Takes spans that cover the piece from left to right, joins them as the behavior says, hands them on. */
struct splitter {
    struct encode *e;
    size_t k;
    struct piece p;
    enum split_behavior behavior;
    int invert;
    size_t from, to; /* the span that waits for its neighbour */
    int waits, waits_match;
};

static bool splitter_flush(struct splitter *s)
{
    if (!s->waits)
        return true;
    s->waits = 0;
    return s->from == s->to || step_run(s->e, s->k + 1, part(s->p, s->from, s->to));
}

static bool splitter_span(struct splitter *s, size_t from, size_t to, int match)
{
    match ^= s->invert;
    if (s->behavior == SPLIT_ISOLATED || s->behavior == SPLIT_REMOVED) {
        if (from == to || (match && s->behavior == SPLIT_REMOVED))
            return true;
        return step_run(s->e, s->k + 1, part(s->p, from, to));
    }
    int joins = s->waits && ((s->behavior == SPLIT_CONTIGUOUS && match == s->waits_match) ||
                             (s->behavior == SPLIT_MERGED_PREVIOUS && match && !s->waits_match) ||
                             (s->behavior == SPLIT_MERGED_NEXT && !match && s->waits_match));
    if (joins) {
        s->to = to;
        s->waits_match = match;
        return true;
    }
    if (!splitter_flush(s))
        return false;
    s->from = from;
    s->to = to;
    s->waits = 1;
    s->waits_match = match;
    return true;
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */
int pattern_find(const struct pattern *p, struct regex_scratch **scratch, struct str text, size_t from, size_t *start,
                 size_t *end, struct err *err)
{
    if (p->regex) {
        if (!*scratch && !(*scratch = regex_scratch_new(p->regex)))
            return err_set(err, ERR_MEMORY, "no memory for a pattern"), -1;
        return regex_find(p->regex, *scratch, text, from, start, end, err);
    }
    if (p->literal.len == 0 || from > text.len)
        return 0;
    const char *hit = memmem(text.ptr + from, text.len - from, p->literal.ptr, p->literal.len);
    if (!hit)
        return 0;
    *start = (size_t)(hit - text.ptr);
    *end = *start + p->literal.len;
    return 1;
}

static size_t char_end(struct str s, size_t at)
{
    if (at < s.len)
        utf8_get(s, &at);
    return at;
}

static bool split_pattern(struct splitter *sp, const struct pattern *pattern)
{
    struct str s = sp->p.s;
    struct regex_scratch **scratch = &sp->e->pre_scratch[sp->k];
    size_t done = 0, at = 0, start, end;
    while (at <= s.len) {
        int found = pattern_find(pattern, scratch, s, at, &start, &end, sp->e->err);
        if (found < 0)
            return false;
        if (!found)
            break;
        if (start > done && !splitter_span(sp, done, start, 0))
            return false;
        if (!splitter_span(sp, start, end, 1))
            return false;
        done = end;
        if (end > start)
            at = end;
        else if (end >= s.len)
            break;
        else
            at = char_end(s, end);
    }
    if (done < s.len && !splitter_span(sp, done, s.len, 0))
        return false;
    return splitter_flush(sp);
}

static bool split_chars(struct splitter *sp, bool (*is)(uint32_t c))
{
    struct str s = sp->p.s;
    size_t done = 0;
    for (size_t at = 0; at < s.len;) {
        size_t from = at;
        if (!is(utf8_get(s, &at)))
            continue;
        if (from > done && !splitter_span(sp, done, from, 0))
            return false;
        if (!splitter_span(sp, from, at, 1))
            return false;
        done = at;
    }
    if (done < s.len && !splitter_span(sp, done, s.len, 0))
        return false;
    return splitter_flush(sp);
}

static bool memory_short(struct encode *e, const struct buf *b)
{
    return err_set(e->err, ERR_MEMORY, "no memory to split a text (%zu bytes)", b->len);
}

/* A word in the byte alphabet, for steps or models that look at characters. */
static bool byte_level_word(struct encode *e, size_t k, struct piece p)
{
    if (k + 1 == e->t->n_pre && e->t->bytes_direct)
        return bpe_word(e, p.s);
    struct buf *b = &e->step_word[k];
    size_t zero = 0;
    buf_clear(b);
    for (size_t i = 0; i < p.s.len; i++) {
        char c[4];
        size_t n = utf8_put(byte_alphabet((unsigned char)p.s.ptr[i]), c);
        zero += i < p.zero ? n : 0;
        buf_append(b, c, n);
    }
    if (b->failed)
        return memory_short(e, b);
    return step_run(e, k + 1, (struct piece){buf_str(b), zero});
}

static bool run_byte_level(struct encode *e, size_t k, struct piece p)
{
    const struct pre_step *st = &e->t->pre[k];
    if (st->prefix_space && p.s.len && p.s.ptr[0] != ' ') {
        struct buf *b = &e->step[k];
        buf_clear(b);
        buf_append_char(b, ' ');
        if (!buf_append_str(b, p.s))
            return memory_short(e, b);
        p = (struct piece){buf_str(b), p.zero ? p.zero + 1 : 0};
    }
    if (!st->use_regex)
        return byte_level_word(e, k, p);
    size_t at = 0, start, end;
    while (at < p.s.len) {
        int found = pattern_find(&st->pattern, &e->pre_scratch[k], p.s, at, &start, &end, e->err);
        if (found < 0)
            return false;
        if (!found || end == start)
            break;
        if (start > at && !byte_level_word(e, k, part(p, at, start)))
            return false;
        if (!byte_level_word(e, k, part(p, start, end)))
            return false;
        at = end;
    }
    return at == p.s.len || byte_level_word(e, k, part(p, at, p.s.len));
}

static bool run_metaspace(struct encode *e, size_t k, struct piece p)
{
    const struct pre_step *st = &e->t->pre[k];
    struct buf *b = &e->step[k];
    size_t zero = 0;
    buf_clear(b);
    int starts = str_has_prefix(p.s, st->content) || (p.s.len && p.s.ptr[0] == ' ');
    if (!starts && (st->scheme == PREPEND_ALWAYS || (st->scheme == PREPEND_FIRST && p.zero))) {
        buf_append_str(b, st->content);
        zero = p.zero ? st->content.len : 0;
    }
    for (size_t i = 0; i < p.s.len;) {
        const char *space = memchr(p.s.ptr + i, ' ', p.s.len - i);
        size_t n = space ? (size_t)(space - (p.s.ptr + i)) : p.s.len - i;
        buf_append(b, p.s.ptr + i, n);
        if (space)
            buf_append_str(b, st->content);
        i += n + (space != NULL);
    }
    if (p.zero)
        zero += p.s.ptr[0] == ' ' ? st->content.len : p.zero;
    if (b->failed)
        return memory_short(e, b);
    struct piece all = {buf_str(b), zero};
    if (!st->split)
        return step_run(e, k + 1, all);
    struct splitter sp = {.e = e, .k = k, .p = all, .behavior = SPLIT_MERGED_NEXT};
    return split_pattern(&sp, &(struct pattern){.literal = st->content});
}

static bool run_fixed(struct encode *e, size_t k, struct piece p)
{
    size_t length = e->t->pre[k].fixed_length;
    for (size_t at = 0, from = 0; at < p.s.len; from = at) {
        for (size_t n = 0; n < length && at < p.s.len; n++)
            at = char_end(p.s, at);
        if (!step_run(e, k + 1, part(p, from, at)))
            return false;
    }
    return true;
}

static bool step_run(struct encode *e, size_t k, struct piece p)
{
    const struct tokenizer *t = e->t;
    if (p.s.len == 0)
        return true;
    if (k == t->n_pre)
        return word_run(e, p.s);
    const struct pre_step *st = &t->pre[k];
    struct splitter sp = {.e = e, .k = k, .p = p, .behavior = st->behavior, .invert = st->invert};
    switch (st->kind) {
    case PRE_SPLIT: return split_pattern(&sp, &st->pattern);
    case PRE_BYTE_LEVEL: return run_byte_level(e, k, p);
    case PRE_METASPACE: return run_metaspace(e, k, p);
    case PRE_WHITESPACE_SPLIT: return split_chars(&sp, char_is_space);
    case PRE_DIGITS: return split_chars(&sp, char_is_numeric);
    case PRE_PUNCTUATION: return split_chars(&sp, char_is_punct);
    case PRE_FIXED: return run_fixed(e, k, p);
    }
    return err_set(e->err, ERR_INTERNAL, "unknown pre-tokenizer step %d", (int)st->kind);
}

bool pre_run(struct encode *e, struct piece p)
{
    return step_run(e, 0, p);
}

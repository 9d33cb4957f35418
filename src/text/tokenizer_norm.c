/* Normalizers: whole-text rewrites before splitting.
 *
 * Unicode normal forms use utf8proc's tables. Text that cannot change (for NFC everything below U+0300) is copied as it
 * is; the rest goes through in stretches. Canonical ordering is ours: utf8proc's is quadratic in the length of a run of
 * combining marks. */
#include "text/tokenizer_impl.h"

#include <stdlib.h>
#include <utf8proc.h>

static bool norm_memory(struct encode *e, const struct buf *b)
{
    return err_set(e->err, ERR_TOO_LARGE, "normalizing the text needs more than %zu bytes", b->max);
}

/* ---- normal forms ------------------------------------------------------------------------------------------------ */
struct form {
    utf8proc_option_t options;
    int compose;
    uint32_t safe; /* characters below never change and never join what stands before them */
};

static int ccc(int32_t c)
{
    return c < 0x300 ? 0 : utf8proc_get_property(c)->combining_class;
}

/* Stable counting sort of a run of combining marks by class. */
static void order_run(int32_t *c, int32_t *tmp, size_t n)
{
    size_t at[257] = {0};
    for (size_t i = 0; i < n; i++)
        at[ccc(c[i]) + 1]++;
    for (int k = 0; k < 256; k++)
        at[k + 1] += at[k];
    for (size_t i = 0; i < n; i++)
        tmp[at[ccc(c[i])]++] = c[i];
    memcpy(c, tmp, n * sizeof *c);
}

static void order_marks(int32_t *c, int32_t *tmp, size_t n)
{
    for (size_t i = 0; i < n;) {
        size_t from = i;
        int sorted = 1, last = 0;
        for (; i < n; i++) {
            int k = ccc(c[i]);
            if (k == 0)
                break;
            sorted &= k >= last;
            last = k;
        }
        if (!sorted && i - from == 2) {
            int32_t x = c[from];
            c[from] = c[from + 1];
            c[from + 1] = x;
        } else if (!sorted)
            order_run(c + from, tmp, i - from);
        if (i == from)
            i++;
    }
}

/* Normalizes one stretch. */
static bool form_stretch(struct encode *e, const struct form *f, struct str s, struct buf *out)
{
    size_t room = s.len * 18 + 32, n = 0; /* no character decomposes into more than 18 */
    int32_t *c = malloc(2 * room * sizeof *c);
    if (!c)
        return err_set(e->err, ERR_MEMORY, "no memory to normalize %zu bytes", s.len);
    for (size_t at = 0; at < s.len;) {
        int last = 0;
        utf8proc_ssize_t k =
            utf8proc_decompose_char((int32_t)utf8_get(s, &at), c + n, (utf8proc_ssize_t)(room - n), f->options, &last);
        n += k > 0 ? (size_t)k : 0;
    }
    order_marks(c, c + room, n);
    if (f->compose && n) {
        utf8proc_ssize_t k = utf8proc_normalize_utf32(c, (utf8proc_ssize_t)n, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        n = k > 0 ? (size_t)k : 0;
    }
    for (size_t i = 0; i < n; i++) {
        char text[4];
        buf_append(out, text, utf8_put((uint32_t)c[i], text));
    }
    free(c);
    return !out->failed || norm_memory(e, out);
}

static size_t skip_safe(struct str s, size_t at, uint32_t safe)
{
    const unsigned char *p = (const unsigned char *)s.ptr;
    while (at < s.len) {
        if (p[at] < 0x80)
            at++;
        else if (safe > 0x80 && p[at] < 0xcc) /* U+0080..U+02FF */
            at += 2;
        else
            break;
    }
    return at;
}

static bool run_form(struct encode *e, const struct form *f, struct str s, struct buf *out)
{
    for (size_t at = 0; at < s.len;) {
        size_t unsafe = skip_safe(s, at, f->safe), from = unsafe;
        if (unsafe == s.len)
            from = unsafe;
        else if (unsafe > at) /* the last safe character may take the marks that follow */
            do
                from--;
            while (((unsigned char)s.ptr[from] & 0xc0) == 0x80);
        buf_append(out, s.ptr + at, from - at);
        at = unsafe;
        while (at < s.len && skip_safe(s, at, f->safe) == at)
            utf8_get(s, &at);
        if (at > from && !form_stretch(e, f, (struct str){s.ptr + from, at - from}, out))
            return false;
    }
    return !out->failed || norm_memory(e, out);
}

static const struct form FORMS[] = {
    [NORM_NFC] = {UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, 1, 0x300},
    [NORM_NFD] = {UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, 0, 0x80},
    [NORM_NFKC] = {UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT, 1, 0x80},
    [NORM_NFKD] = {UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT, 0, 0x80},
};

/* ---- character by character -------------------------------------------------------------------------------------- */
#define MAP_CHARS_MAX 3

/* The blocks of Chinese characters that BERT knows. */
static bool char_is_cjk(uint32_t c)
{
    return (c >= 0x4e00 && c <= 0x9fff) || (c >= 0x3400 && c <= 0x4dbf) || (c >= 0x20000 && c <= 0x2a6df) ||
           (c >= 0x2a700 && c <= 0x2b73f) || (c >= 0x2b740 && c <= 0x2b81f) || (c >= 0x2b920 && c <= 0x2ceaf) ||
           (c >= 0xf900 && c <= 0xfaff) || (c >= 0x2f800 && c <= 0x2fa1f);
}

/* Replacement of one character: how many there are. */
static size_t map_char(enum norm_kind kind, uint32_t c, uint32_t out[MAP_CHARS_MAX])
{
    out[0] = c;
    if (kind == NORM_LOWERCASE) {
        if (c == 0x130)
            return out[0] = 'i', out[1] = 0x307, 2;
        out[0] = (uint32_t)utf8proc_tolower((int32_t)c);
        return 1;
    }
    utf8proc_category_t k = c < 0x80 && c >= ' ' && c != 0x7f ? UTF8PROC_CATEGORY_LL : utf8proc_category((int32_t)c);
    if (kind == NORM_STRIP_ACCENTS)
        return k != UTF8PROC_CATEGORY_MN && k != UTF8PROC_CATEGORY_MC && k != UTF8PROC_CATEGORY_ME;
    if (kind == NORM_STRIP_MARKS)
        return k != UTF8PROC_CATEGORY_MN;
    if (kind == NORM_BERT_CLEAN) {
        bool kept = c == '\t' || c == '\n' || c == '\r';
        if (!kept && (c == 0xfffd || k == UTF8PROC_CATEGORY_CC || k == UTF8PROC_CATEGORY_CF || k == UTF8PROC_CATEGORY_CO))
            return 0;
        if (char_is_space(c))
            out[0] = ' ';
        return 1;
    }
    if (kind == NORM_BERT_CJK) {
        if (!char_is_cjk(c))
            return 1;
        return out[0] = out[2] = ' ', out[1] = c, 3;
    }
    /* NMT */
    if ((c >= 1 && c <= 8) || c == 0xb || (c >= 0xe && c <= 0x1f) || c == 0x7f || c == 0x8f || c == 0x9f)
        return 0;
    if (c == 9 || c == 10 || c == 12 || c == 13 || c == 0x1680 || (c >= 0x200b && c <= 0x200f) || c == 0x2028 || c == 0x2029 ||
        c == 0x2581 || c == 0xfeff || c == 0xfffd)
        out[0] = ' ';
    return 1;
}

/* Whether the first character leaves nothing behind, so that what is left does not begin where the text does. */
static bool first_vanishes(enum norm_kind kind, struct str s)
{
    size_t at = 0;
    uint32_t c[MAP_CHARS_MAX];
    return (kind == NORM_STRIP_ACCENTS || kind == NORM_STRIP_MARKS || kind == NORM_BERT_CLEAN || kind == NORM_NMT) &&
           map_char(kind, utf8_get(s, &at), c) == 0;
}

static void run_chars(enum norm_kind kind, struct str s, struct buf *out)
{
    for (size_t at = 0; at < s.len;) {
        uint32_t c[MAP_CHARS_MAX];
        size_t n = map_char(kind, utf8_get(s, &at), c);
        for (size_t i = 0; i < n; i++) {
            char text[4];
            buf_append(out, text, utf8_put(c[i], text));
        }
    }
}

static bool run_replace(struct encode *e, size_t k, struct str s, struct buf *out)
{
    const struct norm_step *st = &e->t->norm[k];
    size_t done = 0, at = 0, start, end;
    while (at <= s.len) {
        int found = pattern_find(&st->pattern, &e->norm_scratch[k], s, at, &start, &end, e->err);
        if (found < 0)
            return false;
        if (!found)
            break;
        buf_append(out, s.ptr + done, start - done);
        buf_append_str(out, st->content);
        done = end;
        at = end;
        if (end == start) {
            if (end >= s.len)
                break;
            utf8_get(s, &at);
        }
    }
    buf_append(out, s.ptr + done, s.len - done);
    return true;
}

static struct str run_strip(struct str s, int left, int right)
{
    size_t from = 0, to = s.len;
    while (left && from < to) {
        size_t at = from;
        if (!char_is_space(utf8_get(s, &at)))
            break;
        from = at;
    }
    while (right && to > from) {
        size_t before = to;
        do
            before--;
        while (before > from && ((unsigned char)s.ptr[before] & 0xc0) == 0x80);
        size_t at = before;
        if (!char_is_space(utf8_get(s, &at)))
            break;
        to = before;
    }
    return (struct str){s.ptr + from, to - from};
}

/* ---- SentencePiece's compiled map -------------------------------------------------------------------------------- */
#define CHARSMAP_KEY_MAX 6u /* longer clusters go character by character */

/* Follows the double array along s[at..]: the shortest key (`longest` 0) or the longest. Bytes of the key, 0: none. */
static size_t charsmap_find(const struct charsmap *m, struct str s, size_t at, int longest, struct str *value)
{
    size_t node = 0, best = 0;
    uint32_t unit = m->units[0];
    node ^= (size_t)(unit >> 10) << ((unit & 0x200) >> 6);
    for (size_t i = at; i < s.len; i++) {
        unsigned char c = (unsigned char)s.ptr[i];
        if (c == 0)
            break;
        node ^= c;
        if (node >= m->n_units)
            break;
        unit = m->units[node];
        if ((unit & 0x800000ffu) != c)
            break;
        node ^= (size_t)(unit >> 10) << ((unit & 0x200) >> 6);
        if (node >= m->n_units)
            break;
        if (!(unit & 0x100))
            continue;
        size_t to = m->units[node] & 0x7fffffffu;
        if (to > m->strings.len)
            break;
        *value = (struct str){m->strings.ptr + to, strnlen(m->strings.ptr + to, m->strings.len - to)};
        best = i + 1 - at;
        if (!longest)
            break;
    }
    return best;
}

static void charsmap_cluster(const struct charsmap *m, struct str s, struct buf *out)
{
    struct str v;
    if (s.len < CHARSMAP_KEY_MAX && charsmap_find(m, s, 0, 0, &v)) {
        buf_append_str(out, v);
        return;
    }
    for (size_t at = 0; at < s.len;) {
        size_t from = at;
        utf8_get(s, &at);
        struct str c = {s.ptr + from, at - from};
        buf_append_str(out, charsmap_find(m, c, 0, 0, &v) ? v : c);
    }
}

static void run_charsmap(const struct charsmap *m, struct str s, struct buf *out)
{
    utf8proc_int32_t state = 0;
    size_t from = 0, at = 0;
    uint32_t last = 0;
    while (at < s.len) {
        size_t begin = at;
        uint32_t c = utf8_get(s, &at);
        if (begin > 0 && utf8proc_grapheme_break_stateful((int32_t)last, (int32_t)c, &state)) {
            charsmap_cluster(m, (struct str){s.ptr + from, begin - from}, out);
            from = begin;
        }
        last = c;
    }
    if (at > from)
        charsmap_cluster(m, (struct str){s.ptr + from, at - from}, out);
}

/* What the text at `at` becomes, and how much of it that was: a user-defined piece stays as it is, else the longest key of
 * the map, else one character. */
static struct str spm_prefix(const struct tokenizer *t, const struct norm_step *st, struct str s, size_t at, size_t *next)
{
    int32_t id;
    size_t n = t->user.n_edges ? trie_longest(&t->user, s, at, &id) : 0;
    struct str v;
    if (!n && st->charsmap.units && (n = charsmap_find(&st->charsmap, s, at, 1, &v))) {
        *next = at + n;
        return v;
    }
    *next = at;
    if (n)
        *next += n;
    else
        utf8_get(s, next);
    return (struct str){s.ptr + at, *next - at};
}

static void spm_append(struct buf *out, struct str s, struct str space)
{
    for (size_t i = 0; i < s.len; i++)
        if (s.ptr[i] == ' ')
            buf_append_str(out, space);
        else
            buf_append_char(out, s.ptr[i]);
}

static void run_spm(const struct tokenizer *t, const struct norm_step *st, struct piece p, struct buf *out)
{
    struct str s = p.s, space = st->spm.escape ? STR("\xe2\x96\x81") : STR(" ");
    size_t at = 0, next, begin = out->len;
    while (st->spm.remove_extra && at < s.len && str_equal(spm_prefix(t, st, s, at, &next), STR(" ")))
        at = next;
    if (at == s.len)
        return;
    bool affix = st->spm.prefix;
    if (st->spm.first_only)
        affix = affix && p.zero && s.ptr[0] != ' ' && !str_has_prefix(s, STR("\xe2\x96\x81"));
    if (affix && !st->spm.suffix)
        buf_append_str(out, space);
    bool after_space = st->spm.remove_extra;
    for (; at < s.len; at = next) {
        struct str v = spm_prefix(t, st, s, at, &next);
        while (after_space && v.len && v.ptr[0] == ' ')
            v = (struct str){v.ptr + 1, v.len - 1};
        spm_append(out, v, space);
        if (v.len)
            after_space = st->spm.remove_extra && v.ptr[v.len - 1] == ' ';
    }
    while (st->spm.remove_extra && !out->failed && out->len - begin >= space.len && str_has_suffix(buf_str(out), space))
        out->len -= space.len;
    if (affix && st->spm.suffix)
        buf_append_str(out, space);
}

bool charsmap_open(struct tokenizer *t, struct str blob, struct charsmap *out, struct err *err)
{
    uint32_t size;
    if (blob.len < 8)
        return err_set(err, ERR_MODEL_DAMAGED, "precompiled_charsmap has %zu bytes (at least 8)", blob.len);
    memcpy(&size, blob.ptr, 4);
    if (size < 4 || size % 4 || size > blob.len - 4)
        return err_set(err, ERR_MODEL_DAMAGED, "precompiled_charsmap of %zu bytes says its trie has %u", blob.len, size);
    uint32_t *units = arena_alloc(&t->arena, size);
    struct str strings = tokenizer_copy(t, (struct str){blob.ptr + 4 + size, blob.len - 4 - size});
    if (!units || !strings.ptr)
        return err_set(err, ERR_MEMORY, "no memory for precompiled_charsmap");
    memcpy(units, blob.ptr + 4, size);
    if (!utf8_is_valid(strings))
        return err_set(err, ERR_MODEL_DAMAGED, "precompiled_charsmap: its replacements are not UTF-8");
    *out = (struct charsmap){units, size / 4, strings};
    return true;
}

/* ---- the chain --------------------------------------------------------------------------------------------------- */
static bool run_one(struct encode *e, size_t k, struct piece p, struct buf *out, struct piece *result)
{
    const struct norm_step *st = &e->t->norm[k];
    size_t extra = 0;
    switch (st->kind) {
    case NORM_NFC:
    case NORM_NFD:
    case NORM_NFKC:
    case NORM_NFKD:
        if (skip_safe(p.s, 0, FORMS[st->kind].safe) == p.s.len)
            return *result = p, true;
        if (!run_form(e, &FORMS[st->kind], p.s, out))
            return false;
        break;
    case NORM_LOWERCASE:
    case NORM_STRIP_ACCENTS:
    case NORM_STRIP_MARKS:
    case NORM_BERT_CLEAN:
    case NORM_BERT_CJK:
    case NORM_NMT: run_chars(st->kind, p.s, out); break;
    case NORM_REPLACE:
        if (!run_replace(e, k, p.s, out))
            return false;
        break;
    case NORM_PREPEND:
        extra = st->content.len;
        buf_append_str(out, st->content);
        buf_append_str(out, p.s);
        break;
    case NORM_STRIP: {
        struct str s = run_strip(p.s, st->left, st->right);
        *result = (struct piece){s, s.ptr == p.s.ptr ? p.zero : 0};
        return true;
    }
    case NORM_CHARSMAP: run_charsmap(&st->charsmap, p.s, out); break;
    case NORM_SENTENCEPIECE: run_spm(e->t, st, p, out); break;
    case NORM_BYTE_LEVEL:
        for (size_t i = 0; i < p.s.len; i++) {
            char c[4];
            buf_append(out, c, utf8_put(byte_alphabet((unsigned char)p.s.ptr[i]), c));
        }
        break;
    }
    if (out->failed)
        return norm_memory(e, out);
    struct str s = buf_str(out);
    size_t zero = 0;
    if (p.zero && s.len > extra && !first_vanishes(st->kind, p.s)) {
        zero = extra;
        utf8_get(s, &zero);
    }
    *result = (struct piece){s, zero};
    return true;
}

bool norm_run(struct encode *e, struct piece p, struct piece *result)
{
    struct buf *out = &e->norm_a;
    for (size_t k = 0; k < e->t->n_norm && p.s.len; k++) {
        buf_clear(out);
        if (!run_one(e, k, p, out, &p))
            return false;
        if (out->len) /* else the step took a part of what was there */
            out = out == &e->norm_a ? &e->norm_b : &e->norm_a;
    }
    *result = p;
    return true;
}

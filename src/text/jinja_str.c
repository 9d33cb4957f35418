/* Text as Python's str sees it: code points, Unicode white space, case, classes, numbers in text. */
#include "text/jinja.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <utf8proc.h>

bool jstr_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

size_t jstr_count(struct str s)
{
    size_t n = 0;
    for (size_t i = 0; i < s.len; i++)
        n += ((unsigned char)s.ptr[i] & 0xC0) != 0x80;
    return n;
}

size_t jstr_offset(struct str s, size_t n)
{
    size_t i = 0;
    while (i < s.len && n > 0) {
        i++;
        while (i < s.len && ((unsigned char)s.ptr[i] & 0xC0) == 0x80)
            i++;
        n--;
    }
    return i;
}

struct char_set {
    const struct str *chars; /* NULL: white space */
    bool ascii[128];
};

#define STRIP_SET_BYTES_MAX 256

static void set_init(struct char_set *set, const struct str *chars)
{
    *set = (struct char_set){.chars = chars};
    for (uint32_t c = 0; !chars && c < 128; c++)
        set->ascii[c] = jstr_is_space(c);
    for (size_t i = 0; chars && i < chars->len; i++)
        if ((unsigned char)chars->ptr[i] < 128)
            set->ascii[(unsigned char)chars->ptr[i]] = true;
}

static bool in_set(uint32_t c, const struct char_set *set)
{
    if (c < 128)
        return set->ascii[c];
    if (!set->chars)
        return jstr_is_space(c);
    for (size_t i = 0; i < set->chars->len;)
        if (str_utf8_next(*set->chars, &i) == c)
            return true;
    return false;
}

struct str jstr_strip(struct str s, const struct str *chars, char side)
{
    struct char_set set;
    size_t start = 0;
    set_init(&set, chars);
    while (side != 'r' && start < s.len) {
        size_t next = start;
        if (!in_set(str_utf8_next(s, &next), &set))
            break;
        start = next;
    }
    size_t end = s.len;
    while (side != 'l' && end > start) {
        size_t prev = end - 1, at;
        while (prev > start && ((unsigned char)s.ptr[prev] & 0xC0) == 0x80)
            prev--;
        at = prev;
        if (!in_set(str_utf8_next(s, &at), &set))
            break;
        end = prev;
    }
    return (struct str){s.ptr + start, end - start};
}

bool jstr_find(struct str s, struct str what, size_t from, size_t *at)
{
    if (from > s.len)
        return false;
    *at = from;
    if (what.len == 0)
        return true;
    const char *p = s.len - from >= what.len ? memmem(s.ptr + from, s.len - from, what.ptr, what.len) : NULL;
    if (p)
        *at = (size_t)(p - s.ptr);
    return p != NULL;
}

/* Strips as a template asks: a large set of characters outside of ASCII would make it slow. */
bool jstr_strip_set(struct jrun *run, struct str s, const struct str *chars, char side, struct str *out)
{
    bool wide = chars && chars->len > STRIP_SET_BYTES_MAX && jstr_count(*chars) != chars->len;
    if (wide)
        return jrun_fail(run, "strip: more than %d bytes of characters outside of ASCII", STRIP_SET_BYTES_MAX);
    *out = jstr_strip(s, chars, side);
    return jrun_bytes(run, (s.len - out->len) * 4 + (chars ? chars->len : 0));
}

/* The last place of `what`: a search in reversed copies, so that it stays linear. */
bool jstr_rfind(struct jrun *run, struct str s, struct str what, size_t *at, bool *found)
{
    *found = what.len <= s.len;
    if (!*found)
        return true;
    struct str back = s, key = what;
    if (what.len > 1 && (!jstr_reversed(run, s, &back) || !jstr_reversed(run, what, &key)))
        return false;
    const char *p = what.len == 1 ? memrchr(s.ptr, what.ptr[0], s.len) : NULL;
    if (what.len == 1) {
        *found = p != NULL;
        *at = p ? (size_t)(p - s.ptr) : 0;
        return true;
    }
    *found = jstr_find(back, key, 0, at);
    if (*found)
        *at = s.len - what.len - *at;
    return true;
}

/* Bytes in reverse order. */
bool jstr_reversed(struct jrun *run, struct str s, struct str *out)
{
    char *copy = jrun_alloc(run, s.len, 1);
    if (!copy || !jrun_bytes(run, s.len))
        return false;
    for (size_t i = 0; i < s.len; i++)
        copy[i] = s.ptr[s.len - 1 - i];
    *out = (struct str){copy, s.len};
    return true;
}

bool jstr_replace(struct jrun *run, struct str s, struct str old, struct str new_text, int64_t count, struct str *out)
{
    struct jtext t = {.run = run};
    size_t pos = 0, at;
    if (!jrun_bytes(run, s.len))
        return false;
    if (count < 0)
        count = INT64_MAX;
    if (old.len == 0) {
        /* between all code points, before the first and behind the last */
        for (; count > 0; count--) {
            size_t next = pos;
            if (!jtext_add(&t, new_text))
                return false;
            if (pos >= s.len)
                break;
            str_utf8_next(s, &next);
            if (!jtext_add(&t, (struct str){s.ptr + pos, next - pos}))
                return false;
            pos = next;
        }
    } else {
        for (; count > 0 && jstr_find(s, old, pos, &at); count--) {
            if (!jtext_add(&t, (struct str){s.ptr + pos, at - pos}) || !jtext_add(&t, new_text))
                return false;
            pos = at + old.len;
        }
        if (pos == 0) {
            *out = s;
            return true;
        }
    }
    jtext_add(&t, (struct str){s.ptr + pos, s.len - pos});
    *out = jtext_value(&t).s;
    return !t.failed;
}

static bool ends_line(uint32_t c)
{
    return (c >= 10 && c <= 13) || (c >= 28 && c <= 30) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

bool jstr_lines(struct jrun *run, struct str s, bool keep_ends, uint8_t flags, struct jlist *out)
{
    struct jbuilder b = {0};
    if (!jrun_bytes(run, s.len))
        return false;
    for (size_t pos = 0; pos < s.len;) {
        size_t end = pos, next = pos;
        bool ended = false;
        while (end < s.len && !ended) {
            uint32_t c = str_utf8_next(s, &next);
            ended = ends_line(c);
            if (ended && c == '\r' && next < s.len && s.ptr[next] == '\n')
                next++;
            if (!ended)
                end = next;
        }
        struct jv line = JV_STR(((struct str){s.ptr + pos, (keep_ends ? next : end) - pos}));
        line.flags = flags;
        if (!jbuilder_add(run, &b, &line))
            return false;
        pos = next;
    }
    *out = jbuilder_list(&b);
    return true;
}

/* ---- case -------------------------------------------------------------------------------------------------------- */

/* Characters whose upper case, title case or lower case has more than one character, of Unicode's SpecialCasing. */
struct special_case {
    uint16_t c;
    uint16_t upper[3], title[3];
};

static const struct special_case special_cases[] = {
    {0x00DF, {0x0053, 0x0053}, {0x0053, 0x0073}},
    {0x0149, {0x02BC, 0x004E}, {0x02BC, 0x004E}},
    {0x01F0, {0x004A, 0x030C}, {0x004A, 0x030C}},
    {0x0390, {0x0399, 0x0308, 0x0301}, {0x0399, 0x0308, 0x0301}},
    {0x03B0, {0x03A5, 0x0308, 0x0301}, {0x03A5, 0x0308, 0x0301}},
    {0x0587, {0x0535, 0x0552}, {0x0535, 0x0582}},
    {0x1E96, {0x0048, 0x0331}, {0x0048, 0x0331}},
    {0x1E97, {0x0054, 0x0308}, {0x0054, 0x0308}},
    {0x1E98, {0x0057, 0x030A}, {0x0057, 0x030A}},
    {0x1E99, {0x0059, 0x030A}, {0x0059, 0x030A}},
    {0x1E9A, {0x0041, 0x02BE}, {0x0041, 0x02BE}},
    {0x1F50, {0x03A5, 0x0313}, {0x03A5, 0x0313}},
    {0x1F52, {0x03A5, 0x0313, 0x0300}, {0x03A5, 0x0313, 0x0300}},
    {0x1F54, {0x03A5, 0x0313, 0x0301}, {0x03A5, 0x0313, 0x0301}},
    {0x1F56, {0x03A5, 0x0313, 0x0342}, {0x03A5, 0x0313, 0x0342}},
    {0x1F80, {0x1F08, 0x0399}, {0x1F88}},
    {0x1F81, {0x1F09, 0x0399}, {0x1F89}},
    {0x1F82, {0x1F0A, 0x0399}, {0x1F8A}},
    {0x1F83, {0x1F0B, 0x0399}, {0x1F8B}},
    {0x1F84, {0x1F0C, 0x0399}, {0x1F8C}},
    {0x1F85, {0x1F0D, 0x0399}, {0x1F8D}},
    {0x1F86, {0x1F0E, 0x0399}, {0x1F8E}},
    {0x1F87, {0x1F0F, 0x0399}, {0x1F8F}},
    {0x1F88, {0x1F08, 0x0399}, {0x1F88}},
    {0x1F89, {0x1F09, 0x0399}, {0x1F89}},
    {0x1F8A, {0x1F0A, 0x0399}, {0x1F8A}},
    {0x1F8B, {0x1F0B, 0x0399}, {0x1F8B}},
    {0x1F8C, {0x1F0C, 0x0399}, {0x1F8C}},
    {0x1F8D, {0x1F0D, 0x0399}, {0x1F8D}},
    {0x1F8E, {0x1F0E, 0x0399}, {0x1F8E}},
    {0x1F8F, {0x1F0F, 0x0399}, {0x1F8F}},
    {0x1F90, {0x1F28, 0x0399}, {0x1F98}},
    {0x1F91, {0x1F29, 0x0399}, {0x1F99}},
    {0x1F92, {0x1F2A, 0x0399}, {0x1F9A}},
    {0x1F93, {0x1F2B, 0x0399}, {0x1F9B}},
    {0x1F94, {0x1F2C, 0x0399}, {0x1F9C}},
    {0x1F95, {0x1F2D, 0x0399}, {0x1F9D}},
    {0x1F96, {0x1F2E, 0x0399}, {0x1F9E}},
    {0x1F97, {0x1F2F, 0x0399}, {0x1F9F}},
    {0x1F98, {0x1F28, 0x0399}, {0x1F98}},
    {0x1F99, {0x1F29, 0x0399}, {0x1F99}},
    {0x1F9A, {0x1F2A, 0x0399}, {0x1F9A}},
    {0x1F9B, {0x1F2B, 0x0399}, {0x1F9B}},
    {0x1F9C, {0x1F2C, 0x0399}, {0x1F9C}},
    {0x1F9D, {0x1F2D, 0x0399}, {0x1F9D}},
    {0x1F9E, {0x1F2E, 0x0399}, {0x1F9E}},
    {0x1F9F, {0x1F2F, 0x0399}, {0x1F9F}},
    {0x1FA0, {0x1F68, 0x0399}, {0x1FA8}},
    {0x1FA1, {0x1F69, 0x0399}, {0x1FA9}},
    {0x1FA2, {0x1F6A, 0x0399}, {0x1FAA}},
    {0x1FA3, {0x1F6B, 0x0399}, {0x1FAB}},
    {0x1FA4, {0x1F6C, 0x0399}, {0x1FAC}},
    {0x1FA5, {0x1F6D, 0x0399}, {0x1FAD}},
    {0x1FA6, {0x1F6E, 0x0399}, {0x1FAE}},
    {0x1FA7, {0x1F6F, 0x0399}, {0x1FAF}},
    {0x1FA8, {0x1F68, 0x0399}, {0x1FA8}},
    {0x1FA9, {0x1F69, 0x0399}, {0x1FA9}},
    {0x1FAA, {0x1F6A, 0x0399}, {0x1FAA}},
    {0x1FAB, {0x1F6B, 0x0399}, {0x1FAB}},
    {0x1FAC, {0x1F6C, 0x0399}, {0x1FAC}},
    {0x1FAD, {0x1F6D, 0x0399}, {0x1FAD}},
    {0x1FAE, {0x1F6E, 0x0399}, {0x1FAE}},
    {0x1FAF, {0x1F6F, 0x0399}, {0x1FAF}},
    {0x1FB2, {0x1FBA, 0x0399}, {0x1FBA, 0x0345}},
    {0x1FB3, {0x0391, 0x0399}, {0x1FBC}},
    {0x1FB4, {0x0386, 0x0399}, {0x0386, 0x0345}},
    {0x1FB6, {0x0391, 0x0342}, {0x0391, 0x0342}},
    {0x1FB7, {0x0391, 0x0342, 0x0399}, {0x0391, 0x0342, 0x0345}},
    {0x1FBC, {0x0391, 0x0399}, {0x1FBC}},
    {0x1FC2, {0x1FCA, 0x0399}, {0x1FCA, 0x0345}},
    {0x1FC3, {0x0397, 0x0399}, {0x1FCC}},
    {0x1FC4, {0x0389, 0x0399}, {0x0389, 0x0345}},
    {0x1FC6, {0x0397, 0x0342}, {0x0397, 0x0342}},
    {0x1FC7, {0x0397, 0x0342, 0x0399}, {0x0397, 0x0342, 0x0345}},
    {0x1FCC, {0x0397, 0x0399}, {0x1FCC}},
    {0x1FD2, {0x0399, 0x0308, 0x0300}, {0x0399, 0x0308, 0x0300}},
    {0x1FD3, {0x0399, 0x0308, 0x0301}, {0x0399, 0x0308, 0x0301}},
    {0x1FD6, {0x0399, 0x0342}, {0x0399, 0x0342}},
    {0x1FD7, {0x0399, 0x0308, 0x0342}, {0x0399, 0x0308, 0x0342}},
    {0x1FE2, {0x03A5, 0x0308, 0x0300}, {0x03A5, 0x0308, 0x0300}},
    {0x1FE3, {0x03A5, 0x0308, 0x0301}, {0x03A5, 0x0308, 0x0301}},
    {0x1FE4, {0x03A1, 0x0313}, {0x03A1, 0x0313}},
    {0x1FE6, {0x03A5, 0x0342}, {0x03A5, 0x0342}},
    {0x1FE7, {0x03A5, 0x0308, 0x0342}, {0x03A5, 0x0308, 0x0342}},
    {0x1FF2, {0x1FFA, 0x0399}, {0x1FFA, 0x0345}},
    {0x1FF3, {0x03A9, 0x0399}, {0x1FFC}},
    {0x1FF4, {0x038F, 0x0399}, {0x038F, 0x0345}},
    {0x1FF6, {0x03A9, 0x0342}, {0x03A9, 0x0342}},
    {0x1FF7, {0x03A9, 0x0342, 0x0399}, {0x03A9, 0x0342, 0x0345}},
    {0x1FFC, {0x03A9, 0x0399}, {0x1FFC}},
    {0xFB00, {0x0046, 0x0046}, {0x0046, 0x0066}},
    {0xFB01, {0x0046, 0x0049}, {0x0046, 0x0069}},
    {0xFB02, {0x0046, 0x004C}, {0x0046, 0x006C}},
    {0xFB03, {0x0046, 0x0046, 0x0049}, {0x0046, 0x0066, 0x0069}},
    {0xFB04, {0x0046, 0x0046, 0x004C}, {0x0046, 0x0066, 0x006C}},
    {0xFB05, {0x0053, 0x0054}, {0x0053, 0x0074}},
    {0xFB06, {0x0053, 0x0054}, {0x0053, 0x0074}},
    {0xFB13, {0x0544, 0x0546}, {0x0544, 0x0576}},
    {0xFB14, {0x0544, 0x0535}, {0x0544, 0x0565}},
    {0xFB15, {0x0544, 0x053B}, {0x0544, 0x056B}},
    {0xFB16, {0x054E, 0x0546}, {0x054E, 0x0576}},
    {0xFB17, {0x0544, 0x053D}, {0x0544, 0x056D}},
};

static bool put_codes(struct jtext *t, const uint16_t codes[3])
{
    for (int i = 0; i < 3 && codes[i]; i++)
        jtext_code(t, codes[i]);
    return !t->failed;
}

static bool put_upper(struct jtext *t, uint32_t c, bool title)
{
    if (c < 0x80)
        return jtext_char(t, (char)(c >= 'a' && c <= 'z' ? c - 32 : c));
    for (size_t i = 0; i < sizeof special_cases / sizeof special_cases[0]; i++)
        if (special_cases[i].c == c)
            return put_codes(t, title ? special_cases[i].title : special_cases[i].upper);
    return jtext_code(t, (uint32_t)(title ? utf8proc_totitle((int)c) : utf8proc_toupper((int)c)));
}

static bool is_cased(uint32_t c)
{
    utf8proc_category_t k = utf8proc_category((int)c);
    return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT;
}

/* A capital sigma behind a letter and before none is a final one. */
static uint32_t lower_sigma(struct str s, size_t at, size_t next, uint32_t before)
{
    if (!is_cased(before) || at == 0)
        return 0x3C3;
    if (next < s.len && is_cased(str_utf8_next(s, &next)))
        return 0x3C3;
    return 0x3C2;
}

static bool put_lower(struct jtext *t, uint32_t c)
{
    if (c < 0x80)
        return jtext_char(t, (char)(c >= 'A' && c <= 'Z' ? c + 32 : c));
    if (c == 0x130)
        return jtext_char(t, 'i') && jtext_code(t, 0x307);
    return jtext_code(t, (uint32_t)utf8proc_tolower((int)c));
}

static bool is_ascii(struct str s)
{
    unsigned char all = 0;
    for (size_t i = 0; i < s.len; i++)
        all |= (unsigned char)s.ptr[i];
    return all < 0x80;
}

static bool ascii_case(struct jrun *run, struct str s, enum jcase how, struct str *out)
{
    char first = how == CASE_UPPER ? 'a' : 'A', *copy = jrun_alloc(run, s.len, 1);
    if (!copy || !jrun_bytes(run, s.len))
        return false;
    for (size_t i = 0; i < s.len; i++)
        copy[i] = (unsigned char)(s.ptr[i] - first) < 26 ? (char)(s.ptr[i] ^ 0x20) : s.ptr[i];
    *out = (struct str){copy, s.len};
    return true;
}

bool jstr_case(struct jrun *run, struct str s, enum jcase how, struct str *out)
{
    struct jtext t = {.run = run};
    bool in_word = false;
    uint32_t before = 0;
    if (is_ascii(s) && how <= CASE_LOWER)
        return ascii_case(run, s, how, out);
    if (!jrun_bytes(run, s.len * 16))
        return false;
    for (size_t i = 0; i < s.len && !t.failed;) {
        size_t at = i;
        uint32_t c = str_utf8_next(s, &i);
        bool upper = how == CASE_UPPER, title = how == CASE_TITLE && !in_word;
        if (how == CASE_CAPITALIZE)
            title = at == 0;
        if (how == CASE_SWAP)
            upper = utf8proc_category((int)c) == UTF8PROC_CATEGORY_LL;
        if (how == CASE_FOLD && c == 0xDF)
            jtext_add(&t, STR("ss"));
        else if (how == CASE_FOLD && (c == 0x3C2 || c == 0x3A3))
            jtext_code(&t, 0x3C3);
        else if (how == CASE_SWAP && !upper && utf8proc_category((int)c) != UTF8PROC_CATEGORY_LU)
            jtext_code(&t, c);
        else if (upper || title)
            put_upper(&t, c, title);
        else if (c == 0x3A3)
            jtext_code(&t, lower_sigma(s, at, i, before));
        else
            put_lower(&t, c);
        in_word = is_cased(c);
        before = c;
    }
    *out = jtext_value(&t).s;
    return !t.failed;
}

/* ---- classes ----------------------------------------------------------------------------------------------------- */

static bool is_alpha(utf8proc_category_t k)
{
    return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}

bool jstr_printable(uint32_t c)
{
    if (c < 0x7F)
        return c >= 0x20;
    utf8proc_category_t k = utf8proc_category((int)c);
    return k != UTF8PROC_CATEGORY_CC && k != UTF8PROC_CATEGORY_CF && k != UTF8PROC_CATEGORY_CS && k != UTF8PROC_CATEGORY_CO &&
           k != UTF8PROC_CATEGORY_CN && k != UTF8PROC_CATEGORY_ZL && k != UTF8PROC_CATEGORY_ZP && k != UTF8PROC_CATEGORY_ZS;
}

bool jstr_word(uint32_t c)
{
    if (c < 0x80)
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
    utf8proc_category_t k = utf8proc_category((int)c);
    return is_alpha(k) || k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO;
}

static bool is_superscript(uint32_t c)
{
    return c == 0xB2 || c == 0xB3 || c == 0xB9 || c == 0x2070 || (c >= 0x2074 && c <= 0x2079) || (c >= 0x2080 && c <= 0x2089);
}

static bool char_is(uint32_t c, size_t at, enum jclass class)
{
    utf8proc_category_t k = utf8proc_category((int)c);
    switch (class) {
    case CLASS_ALPHA: return is_alpha(k);
    case CLASS_DIGIT: return k == UTF8PROC_CATEGORY_ND || is_superscript(c);
    case CLASS_DECIMAL: return k == UTF8PROC_CATEGORY_ND;
    case CLASS_NUMERIC: return k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO;
    case CLASS_ALNUM: return is_alpha(k) || k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO;
    case CLASS_SPACE: return jstr_is_space(c);
    case CLASS_UPPER: return k != UTF8PROC_CATEGORY_LL && k != UTF8PROC_CATEGORY_LT;
    case CLASS_LOWER: return k != UTF8PROC_CATEGORY_LU && k != UTF8PROC_CATEGORY_LT;
    case CLASS_PRINTABLE: return jstr_printable(c);
    case CLASS_ASCII: return c < 0x80;
    case CLASS_IDENTIFIER: return jstr_word(c) && (at > 0 || k != UTF8PROC_CATEGORY_ND);
    default: return true;
    }
}

static bool is_title(struct str s)
{
    bool any = false, in_word = false;
    for (size_t i = 0; i < s.len;) {
        utf8proc_category_t k = utf8proc_category((int)str_utf8_next(s, &i));
        bool upper = k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LT, lower = k == UTF8PROC_CATEGORY_LL;
        if ((upper && in_word) || (lower && !in_word))
            return false;
        in_word = upper || lower;
        any |= in_word;
    }
    return any;
}

bool jstr_is(struct str s, enum jclass class)
{
    bool any = s.len > 0 && class != CLASS_UPPER && class != CLASS_LOWER;
    if (class == CLASS_TITLE)
        return is_title(s);
    if (s.len == 0)
        return class == CLASS_PRINTABLE || class == CLASS_ASCII;
    for (size_t i = 0; i < s.len;) {
        size_t at = i;
        uint32_t c = str_utf8_next(s, &i);
        if (!char_is(c, at, class))
            return false;
        any = any || utf8proc_category((int)c) == (class == CLASS_UPPER ? UTF8PROC_CATEGORY_LU : UTF8PROC_CATEGORY_LL);
    }
    return any;
}

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

/* Digits with single underscores between them, copied without; 0 when that is not what `s` is. */
static size_t plain_digits(struct str s, char *out, size_t room)
{
    size_t n = 0;
    for (size_t i = 0; i < s.len; i++) {
        if (s.ptr[i] == '_') {
            if (i == 0 || i + 1 == s.len || s.ptr[i - 1] == '_' || s.ptr[i + 1] == '_')
                return 0;
            continue;
        }
        if (n + 1 >= room)
            return 0;
        out[n++] = s.ptr[i];
    }
    out[n] = 0;
    return n;
}

static int prefix_base(struct str s)
{
    if (s.len < 2 || s.ptr[0] != '0')
        return 0;
    char c = (char)(s.ptr[1] | 0x20);
    return c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 0;
}

bool jstr_to_int(struct jrun *run, struct str s, int64_t base, int64_t *out, bool *valid)
{
    char digits[256], *end;
    bool negative = false;
    s = jstr_strip(s, NULL, 'b');
    *valid = false;
    if (base != 0 && (base < 2 || base > 36))
        return true;
    if (s.len && (s.ptr[0] == '-' || s.ptr[0] == '+')) {
        negative = s.ptr[0] == '-';
        s.ptr++;
        s.len--;
    }
    int prefix = prefix_base(s);
    if (prefix && (base == 0 || base == prefix)) {
        base = prefix;
        s = (struct str){s.ptr + 2, s.len - 2};
        if (s.len && s.ptr[0] == '_') {
            s.ptr++;
            s.len--;
        }
    }
    size_t n = plain_digits(s, digits, sizeof digits);
    for (size_t i = 0; i < n; i++)
        if (!((digits[i] >= '0' && digits[i] <= '9') || ((digits[i] | 0x20) >= 'a' && (digits[i] | 0x20) <= 'z')))
            return true;
    if (n == 0)
        return true;
    if (base == 0 && digits[0] == '0' && strspn(digits, "0") != n)
        return true;
    errno = 0;
    unsigned long long magnitude = strtoull(digits, &end, base ? (int)base : 10);
    if (*end)
        return true;
    if (errno == ERANGE || magnitude > (unsigned long long)INT64_MAX + negative)
        return jrun_fail(run, "integer overflow: '%.40s' does not fit into 64 bits", digits);
    *out = negative ? (int64_t)(0 - magnitude) : (int64_t)magnitude;
    *valid = true;
    return true;
}

bool jstr_to_float(struct str s, double *out)
{
    char text[512], *end;
    s = jstr_strip(s, NULL, 'b');
    size_t n = plain_digits(s, text, sizeof text);
    if (n == 0 || n != strspn(text, "0123456789+-.eEinfatyINFATY"))
        return false;
    const char *body = text + (text[0] == '-' || text[0] == '+');
    bool word = (*body | 0x20) == 'i' || (*body | 0x20) == 'n';
    if (!word && !(*body >= '0' && *body <= '9') && *body != '.')
        return false;
    *out = strtod(text, &end);
    return end != text && *end == 0;
}

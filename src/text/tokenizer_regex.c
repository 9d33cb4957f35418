/* Patterns of pre-tokenizers. Published tokenizers are written for Oniguruma; PCRE2 runs them after a few rewrites:
 *   \s        PCRE2 counts U+180E as a space, Unicode (and Oniguruma) no longer does
 *   \w \h     other sets than PCRE2's
 *   \b \B     by those words
 *   \uHHHH    unknown to PCRE2
 *   &&        class intersection: PCRE2 takes it literally, so it is refused by name
 * ^ and $ match at lines, as in Oniguruma's Ruby syntax. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/tokenizer_impl.h"

#include <pcre2.h>
#include <stdlib.h>

#define REGEX_PATTERN_BYTES_MAX 65536u
#define REGEX_MATCH_LIMIT       10000000u
#define REGEX_HEAP_KIB_MAX      65536u
#define REGEX_JIT_STACK_BYTES   ((size_t)8 << 20)
#define REGEX_SPACE \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define REGEX_WORD \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}\\x{24b6}-\\x{24e9}" \
    "\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"
#define REGEX_HEX "0-9a-fA-F"

struct regex {
    pcre2_code *code;
    pcre2_match_context *context;
    int jit;
};

struct regex_scratch {
    pcre2_match_data *data;
    pcre2_match_context *context; /* with a big JIT stack, made when the small one overflowed */
    pcre2_jit_stack *stack;
};

/* One escape, `at` behind the backslash. Returns bytes used of the pattern, 0 when it is to be copied as it is. */
static size_t rewrite_escape(struct buf *out, struct str p, size_t at, int in_class)
{
    const char *set = NULL;
    int negate = 0;
    switch (p.ptr[at]) {
    case 'b':
    case 'B':
        if (in_class)
            return 0;
        buf_append_str(out,
                       p.ptr[at] == 'b'
                           ? STR("(?:(?<=[" REGEX_WORD "])(?![" REGEX_WORD "])|(?<![" REGEX_WORD "])(?=[" REGEX_WORD "]))")
                           : STR("(?:(?<=[" REGEX_WORD "])(?=[" REGEX_WORD "])|(?<![" REGEX_WORD "])(?![" REGEX_WORD "]))"));
        return 1;
    case 's': set = REGEX_SPACE; break;
    case 'w': set = REGEX_WORD; break;
    case 'h': set = REGEX_HEX; break;
    case 'S':
        set = REGEX_SPACE;
        negate = 1;
        break;
    case 'W':
        set = REGEX_WORD;
        negate = 1;
        break;
    case 'H':
        set = REGEX_HEX;
        negate = 1;
        break;
    case 'u':
        if (at + 5 <= p.len && strspn(p.ptr + at + 1, "0123456789abcdefABCDEF") >= 4) {
            buf_printf(out, "\\x{%.4s}", p.ptr + at + 1);
            return 5;
        }
        return 0;
    default: return 0;
    }
    if (in_class && negate)
        return 0;
    buf_printf(out, in_class ? "%s%s" : "[%s%s]", negate ? "^" : "", set);
    return 1;
}

/* `p` has a NUL behind it. */
static bool rewrite(struct buf *out, struct str p, struct err *err)
{
    int in_class = 0;
    for (size_t i = 0; i < p.len; i++) {
        char c = p.ptr[i];
        if (c == '\\' && i + 1 < p.len) {
            size_t used = rewrite_escape(out, p, i + 1, in_class);
            if (used) {
                i += used;
                continue;
            }
            buf_append(out, p.ptr + i, 2);
            i++;
            continue;
        }
        if (in_class && c == '&' && i + 1 < p.len && p.ptr[i + 1] == '&')
            return err_set(err, ERR_MODEL_UNSUPPORTED, "pattern \"%.200s\": '&&' inside a character class is not supported",
                           p.ptr);
        if (c == '[' && in_class && !(i + 1 < p.len && p.ptr[i + 1] == ':'))
            return err_set(err, ERR_MODEL_UNSUPPORTED, "pattern \"%.200s\": a class inside a character class is not supported",
                           p.ptr);
        if (c == '[' && in_class) { /* [:alpha:] */
            const char *end = strstr(p.ptr + i, ":]");
            size_t n = end ? (size_t)(end - (p.ptr + i)) + 2 : 1;
            buf_append(out, p.ptr + i, n);
            i += n - 1;
            continue;
        }
        buf_append_char(out, c);
        if (c == '[') {
            in_class = 1;
            if (i + 1 < p.len && p.ptr[i + 1] == '^')
                buf_append_char(out, p.ptr[++i]);
            if (i + 1 < p.len && p.ptr[i + 1] == ']')
                buf_append(out, "\\]", 2), i++;
        } else if (c == ']')
            in_class = 0;
    }
    return out->failed ? err_set(err, ERR_MODEL_DAMAGED, "pattern is too long (%zu bytes)", p.len) : true;
}

static struct regex *regex_compile(struct str source, struct str shown, struct err *err)
{
    struct regex *re = calloc(1, sizeof *re);
    pcre2_compile_context *cc = pcre2_compile_context_create(NULL);
    if (!re || !cc)
        goto memory;
    pcre2_set_newline(cc, PCRE2_NEWLINE_LF);
    int code = 0;
    PCRE2_SIZE at = 0;
    re->code = pcre2_compile((PCRE2_SPTR)source.ptr, source.len,
                             PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code, &at, cc);
    pcre2_compile_context_free(cc);
    cc = NULL;
    if (!re->code) {
        PCRE2_UCHAR text[160];
        pcre2_get_error_message(code, text, sizeof text);
        err_set(err, ERR_MODEL_UNSUPPORTED, "pattern \"%.200s\" does not compile: %s at byte %zu", shown.ptr, (char *)text,
                (size_t)at);
        regex_free(re);
        return NULL;
    }
    re->jit = pcre2_jit_compile(re->code, PCRE2_JIT_COMPLETE) == 0;
    re->context = pcre2_match_context_create(NULL);
    if (!re->context)
        goto memory;
    pcre2_set_match_limit(re->context, REGEX_MATCH_LIMIT);
    pcre2_set_heap_limit(re->context, REGEX_HEAP_KIB_MAX);
    return re;
memory:
    if (cc)
        pcre2_compile_context_free(cc);
    regex_free(re);
    err_set(err, ERR_MEMORY, "no memory for a pattern");
    return NULL;
}

struct regex *regex_new(struct str pattern, struct err *err)
{
    if (pattern.len > REGEX_PATTERN_BYTES_MAX) {
        err_set(err, ERR_MODEL_DAMAGED, "pattern has %zu bytes (limit %u)", pattern.len, REGEX_PATTERN_BYTES_MAX);
        return NULL;
    }
    char *copy = str_dup(pattern);
    struct buf out;
    buf_init(&out, REGEX_PATTERN_BYTES_MAX * 16u);
    struct regex *re = NULL;
    if (!copy)
        err_set(err, ERR_MEMORY, "no memory for a pattern");
    else if (rewrite(&out, (struct str){copy, pattern.len}, err))
        re = regex_compile(buf_str(&out), (struct str){copy, pattern.len}, err);
    buf_release(&out);
    free(copy);
    return re;
}

void regex_free(struct regex *re)
{
    if (!re)
        return;
    pcre2_code_free(re->code);
    pcre2_match_context_free(re->context);
    free(re);
}

struct regex_scratch *regex_scratch_new(const struct regex *re)
{
    struct regex_scratch *s = calloc(1, sizeof *s);
    if (s && !(s->data = pcre2_match_data_create(1, NULL))) {
        free(s);
        return NULL;
    }
    return s;
}

void regex_scratch_free(struct regex_scratch *s)
{
    if (!s)
        return;
    pcre2_match_data_free(s->data);
    pcre2_match_context_free(s->context);
    pcre2_jit_stack_free(s->stack);
    free(s);
}

static int regex_run(const struct regex *re, struct regex_scratch *s, struct str text, size_t from)
{
    const pcre2_match_context *cx = s->context ? s->context : re->context;
    if (re->jit)
        return pcre2_jit_match(re->code, (PCRE2_SPTR)text.ptr, text.len, from, PCRE2_NO_UTF_CHECK, s->data,
                               (pcre2_match_context *)cx);
    return pcre2_match(re->code, (PCRE2_SPTR)text.ptr, text.len, from, PCRE2_NO_UTF_CHECK, s->data, (pcre2_match_context *)cx);
}

/* The machine stack was too small for the compiled pattern: a bigger one for the rest of the call. */
static bool regex_more_stack(const struct regex *re, struct regex_scratch *s)
{
    if (s->stack)
        return false;
    s->stack = pcre2_jit_stack_create(32768, REGEX_JIT_STACK_BYTES, NULL);
    s->context = pcre2_match_context_copy(re->context);
    if (!s->stack || !s->context)
        return false;
    pcre2_jit_stack_assign(s->context, NULL, s->stack);
    return true;
}

int regex_find(const struct regex *re, struct regex_scratch *s, struct str text, size_t from, size_t *start, size_t *end,
               struct err *err)
{
    int n = regex_run(re, s, text, from);
    if (n == PCRE2_ERROR_JIT_STACKLIMIT && regex_more_stack(re, s))
        n = regex_run(re, s, text, from);
    if (n == PCRE2_ERROR_NOMATCH)
        return 0;
    if (n < 0) {
        err_set(err, ERR_INVALID_REQUEST,
                "the tokenizer's pattern gave up at byte %zu of the text (regular expression error %d)", from, n);
        return -1;
    }
    const PCRE2_SIZE *o = pcre2_get_ovector_pointer(s->data);
    *start = o[0];
    *end = o[1] < o[0] ? o[0] : o[1];
    return 1;
}

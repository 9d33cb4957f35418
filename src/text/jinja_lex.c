/* Template source to tokens. Text between tags is cut as trim_blocks and lstrip_blocks and the signs of tags ask;
 * comments and raw blocks end here. One pass, no going back. */
#include "text/jinja.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <utf8proc.h>

static uint32_t column(const struct jlexer *lex)
{
    return (uint32_t)(lex->pos - lex->line_start + 1);
}

static bool lex_fail(struct jlexer *lex, const char *what)
{
    return jinja_syntax_error(lex->err, lex->line, column(lex), "%s", what);
}

static void advance(struct jlexer *lex, size_t to)
{
    for (size_t i = lex->pos; i < to; i++) {
        if (lex->src.ptr[i] == '\n') {
            lex->line++;
            lex->line_start = i + 1;
        }
    }
    if (to > lex->pos)
        lex->line_starting = lex->src.ptr[to - 1] == '\n';
    lex->pos = to;
}

static bool at(const struct jlexer *lex, size_t pos, const char *what)
{
    size_t n = strlen(what);
    return pos + n <= lex->src.len && memcmp(lex->src.ptr + pos, what, n) == 0;
}

static size_t skip_space(const struct jlexer *lex, size_t pos)
{
    while (pos < lex->src.len) {
        size_t next = pos;
        if (!jstr_is_space(str_utf8_next(lex->src, &next)))
            break;
        pos = next;
    }
    return pos;
}

/* Position behind the end of a tag at `pos` ("%}" or "#}" with its sign), or 0 when none is there. */
static size_t tag_end(const struct jlexer *lex, size_t pos, const char *end)
{
    if (at(lex, pos, "-") && at(lex, pos + 1, end))
        return skip_space(lex, pos + 3);
    if (at(lex, pos, "+") && at(lex, pos + 1, end))
        return pos + 3;
    if (!at(lex, pos, end))
        return 0;
    return pos + 2 + (at(lex, pos + 2, "\n") ? 1 : 0);
}

/* Text before a tag, cut as its sign asks. */
static struct str cut_text(const struct jlexer *lex, struct str text, char sign, bool is_variable)
{
    if (sign == '-')
        return jstr_strip(text, NULL, 'r');
    if (sign == '+' || is_variable)
        return text;
    size_t start = text.len;
    while (start > 0 && text.ptr[start - 1] != '\n')
        start--;
    if (start == 0 && !lex->line_starting)
        return text;
    struct str line = {text.ptr + start, text.len - start};
    if (jstr_strip(line, NULL, 'l').len == 0)
        text.len = start;
    return text;
}

static char sign_at(const struct jlexer *lex, size_t pos)
{
    if (at(lex, pos, "-") || at(lex, pos, "+"))
        return lex->src.ptr[pos];
    return 0;
}

/* Behind "{% raw %}" at `pos`, or 0. */
static size_t raw_begin(const struct jlexer *lex, size_t pos)
{
    pos += 2;
    if (sign_at(lex, pos))
        pos++;
    pos = skip_space(lex, pos);
    if (!at(lex, pos, "raw"))
        return 0;
    pos = skip_space(lex, pos + 3);
    if (at(lex, pos, "-%}"))
        return skip_space(lex, pos + 3);
    return at(lex, pos, "%}") ? pos + 2 : 0;
}

static size_t raw_end(const struct jlexer *lex, size_t pos)
{
    pos += 2;
    if (sign_at(lex, pos))
        pos++;
    pos = skip_space(lex, pos);
    if (!at(lex, pos, "endraw"))
        return 0;
    return tag_end(lex, skip_space(lex, pos + 6), "%}");
}

static bool lex_raw(struct jlexer *lex, struct jtoken *token)
{
    for (size_t i = lex->pos; i + 1 < lex->src.len; i++) {
        if (!at(lex, i, "{%"))
            continue;
        size_t end = raw_end(lex, i);
        if (!end)
            continue;
        struct str text = {lex->src.ptr + lex->pos, i - lex->pos};
        token->kind = T_TEXT;
        token->text = cut_text(lex, text, sign_at(lex, i + 2), false);
        advance(lex, end);
        return true;
    }
    if (lex->pos >= lex->src.len) {
        token->kind = T_TEXT;
        token->text = STR("");
        return true;
    }
    return lex_fail(lex, "missing end of raw directive: no '{% endraw %}' follows");
}

static bool skip_comment(struct jlexer *lex)
{
    size_t i = lex->pos;
    while (i < lex->src.len && !at(lex, i, "#}"))
        i++;
    if (i >= lex->src.len) {
        if (lex->pos >= lex->src.len)
            return true;
        return lex_fail(lex, "missing end of comment tag: no '#}' follows");
    }
    if (i > lex->pos && (lex->src.ptr[i - 1] == '-' || lex->src.ptr[i - 1] == '+'))
        i--;
    advance(lex, tag_end(lex, i, "#}"));
    return true;
}

static void find_tag(const struct jlexer *lex, size_t *pos)
{
    while (*pos < lex->src.len) {
        const char *p = memchr(lex->src.ptr + *pos, '{', lex->src.len - *pos);
        if (!p) {
            *pos = lex->src.len;
            return;
        }
        *pos = (size_t)(p - lex->src.ptr);
        if (*pos + 1 < lex->src.len && (p[1] == '%' || p[1] == '{' || p[1] == '#'))
            return;
        ++*pos;
    }
}

/* Text up to the next tag, then the tag's beginning; an empty text is not reported. */
static bool lex_data(struct jlexer *lex, struct jtoken *token)
{
    for (;;) {
        token->line = lex->line;
        token->col = column(lex);
        size_t tag = lex->pos;
        find_tag(lex, &tag);
        struct str text = {lex->src.ptr + lex->pos, tag - lex->pos};
        if (tag >= lex->src.len) {
            token->kind = text.len ? T_TEXT : T_EOF;
            token->text = text;
            advance(lex, tag);
            return true;
        }
        char type = lex->src.ptr[tag + 1], sign = sign_at(lex, tag + 2);
        text = cut_text(lex, text, sign, type == '{');
        if (text.len) {
            /* the tag is read again by the next call; its sign cuts nothing more from an empty text */
            token->kind = T_TEXT;
            token->text = text;
            advance(lex, tag);
            return true;
        }
        size_t raw = type == '%' ? raw_begin(lex, tag) : 0;
        if (raw) {
            advance(lex, raw);
            return lex_raw(lex, token);
        }
        advance(lex, tag);
        token->line = lex->line;
        token->col = column(lex);
        advance(lex, tag + 2 + (sign ? 1 : 0));
        if (type == '#') {
            if (!skip_comment(lex))
                return false;
            continue;
        }
        lex->state = type == '%' ? 'b' : 'v';
        token->kind = type == '%' ? T_BLOCK_BEGIN : T_VAR_BEGIN;
        return true;
    }
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* \xhh, \uhhhh, \Uhhhhhhhh at s[*i] (the letter). */
static bool unescape_hex(struct jlexer *lex, struct str s, size_t *i, char *out, size_t *n)
{
    size_t digits = s.ptr[*i] == 'x' ? 2 : s.ptr[*i] == 'u' ? 4 : 8;
    uint32_t code = 0;
    for (size_t k = 0; k < digits; k++) {
        int d = *i + 1 + k < s.len ? hex_digit(s.ptr[*i + 1 + k]) : -1;
        if (d < 0)
            return lex_fail(lex, "truncated \\x, \\u or \\U escape in a string");
        code = code << 4 | (uint32_t)d;
    }
    *i += digits + 1;
    if (code > 0x10FFFF)
        return lex_fail(lex, "illegal Unicode character in a \\U escape");
    if (code >= 0xD800 && code <= 0xDFFF)
        code = 0xFFFD;
    *n += str_utf8_put(code, out + *n);
    return true;
}

/* A backslash at s[*i - 1]; Python's escapes, unknown ones stay as they are. */
static bool unescape(struct jlexer *lex, struct str s, size_t *i, char *out, size_t *n)
{
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    char c = s.ptr[*i];
    const char *simple = c ? strchr(from, c) : NULL;
    if (c == '\n') {
        ++*i;
    } else if (simple) {
        out[(*n)++] = to[simple - from];
        ++*i;
    } else if (c == 'x' || c == 'u' || c == 'U') {
        return unescape_hex(lex, s, i, out, n);
    } else if (c >= '0' && c <= '7') {
        uint32_t code = 0;
        for (int k = 0; k < 3 && *i < s.len && s.ptr[*i] >= '0' && s.ptr[*i] <= '7'; k++)
            code = code * 8 + (uint32_t)(s.ptr[(*i)++] - '0');
        *n += str_utf8_put(code, out + *n);
    } else if (c == 'N') {
        return lex_fail(lex, "\\N{...} escapes are not supported: write the character itself");
    } else if ((unsigned char)c >= 0x80) {
        /* Python sees the character as an escape of its own here, whose backslash the first one escapes */
        uint32_t code = str_utf8_next(s, i);
        const char *format = code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x" : "\\U%08x";
        *n += (size_t)sprintf(out + *n, format, (unsigned)code);
    } else {
        out[(*n)++] = '\\';
    }
    return true;
}

static bool lex_string(struct jlexer *lex, struct jtoken *token)
{
    const char *p = lex->src.ptr;
    size_t start = lex->pos + 1, i = start;
    bool escapes = false;
    for (; i < lex->src.len && p[i] != p[lex->pos]; i++) {
        if (p[i] == '\\') {
            escapes = true;
            i++;
        }
    }
    if (i >= lex->src.len)
        return lex_fail(lex, "a string has no end");
    struct str s = {p + start, i - start};
    token->kind = T_STRING;
    token->text = s;
    if (escapes) {
        /* the longest growth is "\" and 2 bytes of UTF-8 to 4 characters, or 4 bytes to 10 */
        char *out = arena_alloc_array(lex->arena, s.len + 4, 3);
        if (!out)
            return lex_fail(lex, "the template is too large");
        size_t n = 0;
        for (size_t k = 0; k < s.len;) {
            if (s.ptr[k] != '\\') {
                out[n++] = s.ptr[k++];
                continue;
            }
            k++;
            if (!unescape(lex, s, &k, out, &n))
                return false;
        }
        token->text = (struct str){out, n};
    }
    advance(lex, i + 1);
    return true;
}

static bool is_digit(const struct jlexer *lex, size_t pos)
{
    return pos < lex->src.len && lex->src.ptr[pos] >= '0' && lex->src.ptr[pos] <= '9';
}

/* Behind digits that single underscores may separate; `pos` when there are none. */
static size_t skip_digits(const struct jlexer *lex, size_t pos)
{
    while (is_digit(lex, pos))
        pos += at(lex, pos + 1, "_") && is_digit(lex, pos + 2) ? 2 : 1;
    return pos;
}

static bool copy_number(struct jlexer *lex, size_t end, char *out, size_t room)
{
    size_t n = 0;
    for (size_t i = lex->pos; i < end; i++) {
        if (lex->src.ptr[i] == '_')
            continue;
        if (n + 1 >= room)
            return lex_fail(lex, "a number has too many digits");
        out[n++] = lex->src.ptr[i];
    }
    out[n] = 0;
    return true;
}

static bool lex_integer(struct jlexer *lex, struct jtoken *token)
{
    size_t end = lex->pos;
    int base = 10;
    char kind = end + 1 < lex->src.len ? (char)(lex->src.ptr[end + 1] | 0x20) : 0;
    if (lex->src.ptr[end] == '0' && (kind == 'x' || kind == 'o' || kind == 'b')) {
        base = kind == 'x' ? 16 : kind == 'o' ? 8 : 2;
        size_t i = end + 2;
        for (;;) {
            size_t d = i + (at(lex, i, "_") ? 1 : 0);
            int digit = d < lex->src.len ? hex_digit(lex->src.ptr[d]) : -1;
            if (digit < 0 || digit >= base)
                break;
            end = i = d + 1;
        }
    }
    char text[128];
    if (end == lex->pos) {
        base = 10;
        if (lex->src.ptr[end] == '0') {
            for (end++; at(lex, end, "0") || at(lex, end, "_0");)
                end += at(lex, end, "_") ? 2 : 1;
        } else {
            end = skip_digits(lex, end);
        }
    }
    if (!copy_number(lex, end, text, sizeof text))
        return false;
    errno = 0;
    token->kind = T_INT;
    token->i = strtoll(text + (base == 10 ? 0 : 2), NULL, base);
    if (errno == ERANGE)
        return lex_fail(lex, "an integer does not fit into 64 bits");
    advance(lex, end);
    return true;
}

static bool lex_number(struct jlexer *lex, struct jtoken *token)
{
    size_t end = skip_digits(lex, lex->pos);
    bool is_float = false;
    if (at(lex, end, ".") && is_digit(lex, end + 1)) {
        is_float = true;
        end = skip_digits(lex, end + 1);
    }
    if (at(lex, end, "e") || at(lex, end, "E")) {
        size_t digits = end + 1 + (at(lex, end + 1, "+") || at(lex, end + 1, "-") ? 1 : 0);
        if (is_digit(lex, digits)) {
            is_float = true;
            end = skip_digits(lex, digits);
        }
    }
    if (lex->pos > 0 && lex->src.ptr[lex->pos - 1] == '.')
        is_float = false;
    if (!is_float)
        return lex_integer(lex, token);
    char text[400];
    if (!copy_number(lex, end, text, sizeof text))
        return false;
    token->kind = T_FLOAT;
    token->f = strtod(text, NULL);
    advance(lex, end);
    return true;
}

static bool lex_operator(struct jlexer *lex, struct jtoken *token)
{
    static const struct {
        char text[3];
        int op;
    } two[] = {{"==", TOP_EQ}, {"!=", TOP_NE}, {"<=", TOP_LE}, {">=", TOP_GE}, {"//", TOP_FLOORDIV}, {"**", TOP_POW}};
    token->kind = T_OP;
    for (size_t i = 0; i < sizeof two / sizeof two[0]; i++) {
        if (at(lex, lex->pos, two[i].text)) {
            token->op = two[i].op;
            advance(lex, lex->pos + 2);
            return true;
        }
    }
    char c = lex->src.ptr[lex->pos];
    if (!c || !strchr("+-/*%~[](){}><=.:|,;", c)) {
        size_t next = lex->pos;
        uint32_t code = str_utf8_next(lex->src, &next);
        return jinja_syntax_error(lex->err, lex->line, column(lex), "unexpected character U+%04X", (unsigned)code);
    }
    if (c == '(' || c == '[' || c == '{') {
        if (lex->n_open == sizeof lex->open)
            return lex_fail(lex, "brackets are nested too deep");
        lex->open[lex->n_open++] = c;
    } else if (c == ')' || c == ']' || c == '}') {
        char opener = c == ')' ? '(' : c == ']' ? '[' : '{';
        if (lex->n_open == 0 || lex->open[lex->n_open - 1] != opener)
            return jinja_syntax_error(lex->err, lex->line, column(lex), "unexpected '%c'", c);
        lex->n_open--;
    }
    token->op = c;
    advance(lex, lex->pos + 1);
    return true;
}

static size_t skip_name(const struct jlexer *lex)
{
    size_t pos = lex->pos;
    while (pos < lex->src.len) {
        size_t next = pos;
        uint32_t c = str_utf8_next(lex->src, &next);
        if (!jstr_word(c))
            break;
        pos = next;
    }
    return pos;
}

bool jlex_next(struct jlexer *lex, struct jtoken *token)
{
    *token = (struct jtoken){.kind = T_EOF};
    if (lex->state == 'd')
        return lex_data(lex, token);
    advance(lex, skip_space(lex, lex->pos));
    token->line = lex->line;
    token->col = column(lex);
    if (lex->pos >= lex->src.len)
        return true;
    if (lex->n_open == 0) {
        bool block = lex->state == 'b';
        size_t end = 0;
        if (block)
            end = tag_end(lex, lex->pos, "%}");
        else if (at(lex, lex->pos, "-}}"))
            end = skip_space(lex, lex->pos + 3);
        else if (at(lex, lex->pos, "}}"))
            end = lex->pos + 2;
        if (end) {
            token->kind = block ? T_BLOCK_END : T_VAR_END;
            lex->state = 'd';
            advance(lex, end);
            return true;
        }
    }
    char c = lex->src.ptr[lex->pos];
    if (c >= '0' && c <= '9')
        return lex_number(lex, token);
    if (c == '"' || c == '\'')
        return lex_string(lex, token);
    size_t end = skip_name(lex);
    if (end > lex->pos) {
        token->kind = T_NAME;
        token->text = (struct str){lex->src.ptr + lex->pos, end - lex->pos};
        advance(lex, end);
        return true;
    }
    return lex_operator(lex, token);
}

/* JSON in place; see json_scan.h. */
#include "text/json_scan.h"

#define INTEGER_DIGITS_MAX 18 /* fit into 63 bits whatever they are */

void json_scan_init(struct json_scan *s, struct str text, size_t string_bytes_max)
{
    *s = (struct json_scan){.at = text.ptr, .end = text.ptr + text.len};
    buf_init(&s->text[0], string_bytes_max);
    buf_init(&s->text[1], string_bytes_max);
}

void json_scan_release(struct json_scan *s)
{
    buf_release(&s->text[0]);
    buf_release(&s->text[1]);
}

static void fail(struct json_scan *s)
{
    s->failed = true;
    s->at = s->end;
}

char json_scan_peek(struct json_scan *s)
{
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\n' || *s->at == '\t' || *s->at == '\r'))
        s->at++;
    return s->at < s->end ? *s->at : 0;
}

static bool take(struct json_scan *s, char c)
{
    if (json_scan_peek(s) == c && s->at < s->end)
        s->at++;
    else
        fail(s);
    return !s->failed;
}

void json_scan_enter(struct json_scan *s, char open)
{
    s->first = take(s, open);
}

bool json_scan_more(struct json_scan *s, char close)
{
    bool first = s->first;
    s->first = false;
    if (json_scan_peek(s) == close && s->at < s->end) {
        s->at++;
        return false;
    }
    return !s->failed && (first || take(s, ','));
}

/* Four hexadecimal digits; -1: they are not. */
static int32_t hex4(const char *p)
{
    int32_t v = 0;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        int d = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (d < 0)
            return -1;
        v = v << 4 | d;
    }
    return v;
}

/* "u" and four hexadecimal digits at s->at, taken; -1: it is not there. */
static int32_t code_unit(struct json_scan *s)
{
    int32_t unit = s->end - s->at >= 5 && *s->at == 'u' ? hex4(s->at + 1) : -1;
    s->at += unit < 0 ? 0 : 5;
    return unit;
}

/* The character of an escape at s->at, which is behind the backslash; -1: there is none. */
static int32_t escaped(struct json_scan *s)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *known = s->at < s->end && *s->at ? strchr(from, *s->at) : NULL;
    if (known) {
        s->at++;
        return (unsigned char)to[known - from];
    }
    int32_t high = code_unit(s), low = -1;
    if (high < 0xd800 || high > 0xdfff)
        return high;
    if (high < 0xdc00 && s->at < s->end && *s->at == '\\') {
        s->at++;
        low = code_unit(s);
    }
    return low >= 0xdc00 && low <= 0xdfff ? 0x10000 + ((high & 0x3ff) << 10 | (low & 0x3ff)) : -1;
}

static struct str unescape(struct json_scan *s, const char *from)
{
    struct buf *out = &s->text[s->turn ^= 1];
    buf_clear(out);
    for (;;) {
        const char *p = from;
        while (p < s->end && *p != '"' && *p != '\\' && (unsigned char)*p >= 0x20)
            p++;
        buf_append(out, from, (size_t)(p - from));
        s->at = p + 1;
        if (p >= s->end || (*p != '"' && *p != '\\') || out->failed) {
            fail(s);
            return STR("");
        }
        if (*p == '"')
            return buf_str(out);
        char character[4];
        int32_t c = escaped(s);
        if (c < 0) {
            fail(s);
            return STR("");
        }
        buf_append(out, character, str_utf8_put((uint32_t)c, character));
        from = s->at;
    }
}

struct str json_scan_string(struct json_scan *s)
{
    if (!take(s, '"'))
        return STR("");
    const char *from = s->at, *p = from;
    unsigned char all = 0;
    for (; p < s->end && *p != '"' && *p != '\\' && (unsigned char)*p >= 0x20; p++)
        all |= (unsigned char)*p;
    struct str out = {from, (size_t)(p - from)};
    if (p < s->end && *p == '"') {
        s->at = p + 1;
    } else {
        out = unescape(s, from);
        all = 0x80;
    }
    if (all & 0x80 && !str_utf8_valid(out))
        fail(s);
    return s->failed ? STR("") : out;
}

struct str json_scan_name(struct json_scan *s)
{
    struct str name = json_scan_string(s);
    take(s, ':');
    return name;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

int64_t json_scan_integer(struct json_scan *s)
{
    struct str text = json_scan_skip(s);
    bool negative = text.len && text.ptr[0] == '-';
    struct str digits = {text.ptr + negative, text.len - negative};
    int64_t v = 0;
    if (digits.len == 0 || (digits.ptr[0] == '0' && digits.len > 1))
        return -1;
    for (size_t i = 0; i < digits.len; i++) {
        if (!is_digit(digits.ptr[i]))
            return -1;
        v = i < INTEGER_DIGITS_MAX ? v * 10 + (digits.ptr[i] - '0') : INT64_MAX;
    }
    return negative ? -v : v;
}

struct str json_scan_skip(struct json_scan *s)
{
    json_scan_peek(s);
    const char *from = s->at, *p = from;
    size_t depth = 0;
    for (; p < s->end; p++) {
        if (*p == '"') {
            for (p++; p < s->end && *p != '"'; p++)
                p += *p == '\\';
            if (p >= s->end)
                break;
        } else if (*p == '{' || *p == '[') {
            depth++;
        } else if (depth && (*p == '}' || *p == ']')) {
            depth--;
        } else if (depth == 0 && p == from) {
            while (p < s->end && !strchr(",]} \n\t\r", *p))
                p++;
            p--;
        }
        if (depth == 0)
            break;
    }
    if (p < from || p >= s->end)
        fail(s);
    else
        s->at = p + 1;
    return s->failed ? STR("") : (struct str){from, (size_t)(p + 1 - from)};
}

struct str json_scan_skip_name(struct json_scan *s)
{
    if (json_scan_peek(s) != '"')
        fail(s);
    struct str name = json_scan_skip(s);
    take(s, ':');
    return name;
}

bool json_scan_ended(struct json_scan *s)
{
    json_scan_peek(s);
    return !s->failed && s->at == s->end;
}

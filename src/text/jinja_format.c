/* "..." % values, and str.format: the conversions of Python for text and numbers. */
#include "text/jinja.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct spec {
    struct str fill;
    char align, sign, type, grouping;
    bool alternate, zero;
    int64_t width, precision; /* precision -1: none */
};

/* `digits` (an ASCII number without sign) with a separator every three digits of its whole part. */
static bool group_digits(struct jtext *t, const char *digits, char separator)
{
    size_t whole = strspn(digits, "0123456789");
    for (size_t i = 0; i < whole; i++) {
        if (separator && i && (whole - i) % 3 == 0)
            jtext_char(t, separator);
        jtext_char(t, digits[i]);
    }
    return jtext_add(t, str_from(digits + whole));
}

/* Writes sign, prefix and body padded to the width. */
static bool padded(struct jtext *t, const struct spec *s, const char *sign, struct str body, char default_align)
{
    int64_t have = (int64_t)strlen(sign) + (int64_t)jstr_count(body);
    int64_t extra = s->width > have ? s->width - have : 0;
    char align = s->align ? s->align : s->zero ? '=' : default_align;
    struct str fill = s->fill.len ? s->fill : s->zero && !s->align ? STR("0") : STR(" ");
    int64_t left = align == '>' || align == '=' ? extra : align == '^' ? extra / 2 : 0;
    if (align == '=')
        jtext_add(t, str_from(sign));
    for (int64_t i = 0; i < left && !t->failed; i++)
        jtext_add(t, fill);
    if (align != '=')
        jtext_add(t, str_from(sign));
    jtext_add(t, body);
    for (int64_t i = left; i < extra && !t->failed; i++)
        jtext_add(t, fill);
    return !t->failed;
}

static const char *sign_of(const struct spec *s, bool negative)
{
    return negative ? "-" : s->sign == '+' ? "+" : s->sign == ' ' ? " " : "";
}

static void binary_digits(uint64_t x, char *out)
{
    char reversed[70];
    size_t n = 0;
    do {
        reversed[n++] = (char)('0' + (x & 1));
    } while (x >>= 1);
    while (n)
        *out++ = reversed[--n];
    *out = 0;
}

static bool format_int(struct jtext *t, const struct spec *s, int64_t i)
{
    char digits[80], sign[8];
    uint64_t x = i < 0 ? 0 - (uint64_t)i : (uint64_t)i;
    const char *prefix = "";
    switch (s->type) {
    case 'x':
        snprintf(digits, sizeof digits, "%" PRIx64, x);
        prefix = "0x";
        break;
    case 'X':
        snprintf(digits, sizeof digits, "%" PRIX64, x);
        prefix = "0X";
        break;
    case 'o':
        snprintf(digits, sizeof digits, "%" PRIo64, x);
        prefix = "0o";
        break;
    case 'b':
        binary_digits(x, digits);
        prefix = "0b";
        break;
    default: snprintf(digits, sizeof digits, "%" PRIu64, x); break;
    }
    snprintf(sign, sizeof sign, "%s%s", sign_of(s, i < 0), s->alternate ? prefix : "");
    struct jtext body = {.run = t->run};
    for (int64_t have = (int64_t)strlen(digits); have < s->precision && !body.failed; have++)
        jtext_char(&body, '0');
    return group_digits(&body, digits, s->grouping) && padded(t, s, sign, jtext_value(&body).s, '>');
}

#define FORMAT_PRECISION_MAX 300

static bool format_float(struct jtext *t, const struct spec *s, double f)
{
    char text[700], format[16], shown[JINJA_FLOAT_BYTES];
    char type = s->type == '%' || s->type == 'F' ? 'f' : s->type == 'n' ? 'g' : s->type;
    int precision = s->precision < 0 ? 6 : (int)s->precision;
    if (s->precision > FORMAT_PRECISION_MAX)
        return jrun_fail(t->run, "a precision of more than %d is not supported", FORMAT_PRECISION_MAX);
    double size = fabs(s->type == '%' ? f * 100 : f);
    if (!isfinite(f)) {
        snprintf(text, sizeof text, "%s", isnan(f) ? "nan" : "inf");
    } else if (!type && s->precision < 0) {
        shown[jprint_float(size, shown)] = 0;
        snprintf(text, sizeof text, "%s", shown);
    } else {
        snprintf(format, sizeof format, "%%%s.*%c", s->alternate ? "#" : "", type ? type : 'g');
        snprintf(text, sizeof text, format, type || precision > 0 ? precision : 1, size);
        if (!type && !strpbrk(text, ".e"))
            strcat(text, ".0");
    }
    if (s->type == '%')
        strcat(text, "%");
    struct jtext body = {.run = t->run};
    return group_digits(&body, text, s->grouping) &&
           padded(t, s, sign_of(s, signbit(f) && !isnan(f)), jtext_value(&body).s, '>');
}

static bool format_text(struct jtext *t, const struct spec *s, struct str text)
{
    if (s->precision >= 0)
        text.len = jstr_offset(text, (size_t)s->precision);
    return padded(t, s, "", text, '<');
}

static bool shown_as(struct jrun *run, const struct jv *v, char how, struct str *out)
{
    if (how == 's')
        return jv_to_str(run, v, out);
    struct jtext t = {.run = run};
    if (!jprint_repr(&t, v, 0) || t.failed)
        return false;
    *out = jtext_value(&t).s;
    return true;
}

/* ---- percent ----------------------------------------------------------------------------------------------------- */

struct percent {
    struct jrun *run;
    struct str format;
    size_t pos;
    const struct jv *values; /* a tuple, a dictionary, or one value */
    size_t used;
};

static bool next_value(struct percent *p, struct jv *out)
{
    if (p->values->kind == J_TUPLE) {
        if (p->used >= p->values->list.n)
            return jrun_fail(p->run, "not enough arguments for format string");
        *out = p->values->list.items[p->used++];
        return true;
    }
    if (p->used++)
        return jrun_fail(p->run, "not enough arguments for format string");
    *out = *p->values;
    return true;
}

static bool number_or_star(struct percent *p, int64_t *out)
{
    struct jv v;
    if (p->pos < p->format.len && p->format.ptr[p->pos] == '*') {
        p->pos++;
        if (!next_value(p, &v) || !jarg_int(p->run, "*", &v, 0, out))
            return false;
    } else {
        for (*out = 0; p->pos < p->format.len && p->format.ptr[p->pos] >= '0' && p->format.ptr[p->pos] <= '9'; p->pos++)
            *out = *out < JINJA_PAD_MAX ? *out * 10 + (p->format.ptr[p->pos] - '0') : *out;
    }
    if (*out > JINJA_PAD_MAX)
        return jrun_fail(p->run, "a width of more than %d is not supported", JINJA_PAD_MAX);
    return true;
}

static bool percent_value(struct percent *p, struct jtext *t, struct spec *s, const struct jv *v)
{
    struct str text;
    switch (s->type) {
    case 's':
    case 'r':
    case 'a': s->zero = false; return shown_as(p->run, v, s->type, &text) && format_text(t, s, text);
    case 'c':
        s->zero = false;
        if (v->kind == J_STR && jstr_count(v->s) == 1)
            return format_text(t, s, v->s);
        if (jv_is_int(v) && jv_int(v) >= 0 && jv_int(v) <= 0x10FFFF) {
            struct jtext one = {.run = p->run};
            return jtext_code(&one, (uint32_t)jv_int(v)) && format_text(t, s, jtext_value(&one).s);
        }
        return jrun_fail(p->run, "%%c requires int or char");
    case 'd':
    case 'i':
    case 'u':
        if (v->kind == J_FLOAT && fabs(v->f) < 9.2e18)
            return format_int(t, s, (int64_t)v->f);
        /* fall through */
    case 'x':
    case 'X':
    case 'o':
        if (!jv_is_int(v))
            return jrun_fail(p->run, "%%%c format: a real number is required, not %s", s->type, jv_type_name(v));
        return format_int(t, s, jv_int(v));
    case 'e':
    case 'E':
    case 'f':
    case 'F':
    case 'g':
    case 'G':
        if (!jv_is_number(v))
            return jrun_fail(p->run, "must be real number, not %s", jv_type_name(v));
        return format_float(t, s, jv_double(v));
    default: return jrun_fail(p->run, "unsupported format character '%c'", s->type);
    }
}

static bool percent_flags(struct percent *p, struct spec *s)
{
    for (; p->pos < p->format.len; p->pos++) {
        char c = p->format.ptr[p->pos];
        if (c == '-')
            s->align = '<';
        else if (c == '+' || (c == ' ' && s->sign != '+'))
            s->sign = c;
        else if (c == '#')
            s->alternate = true;
        else if (c == '0')
            s->zero = true;
        else if (c != ' ')
            break;
    }
    int64_t width;
    if (!number_or_star(p, &width))
        return false;
    if (width < 0) {
        s->align = '<';
        width = -width;
    }
    if (s->align)
        s->zero = false;
    else
        s->align = s->zero ? 0 : '>';
    s->width = width;
    if (p->pos < p->format.len && p->format.ptr[p->pos] == '.') {
        p->pos++;
        if (!number_or_star(p, &s->precision))
            return false;
        if (s->precision < 0)
            s->precision = 0;
    }
    while (p->pos < p->format.len && strchr("hlL", p->format.ptr[p->pos]) && p->format.ptr[p->pos])
        p->pos++;
    return true;
}

/* `pos` is behind the percent sign. */
static bool percent_directive(struct percent *p, struct jtext *t)
{
    struct spec s = {.precision = -1};
    struct jv v = JV_MISSING;
    if (p->pos < p->format.len && p->format.ptr[p->pos] == '(') {
        size_t end;
        bool found;
        if (p->values->kind != J_DICT)
            return jrun_fail(p->run, "format requires a mapping");
        if (!jstr_find(p->format, STR(")"), p->pos, &end))
            return jrun_fail(p->run, "incomplete format key");
        struct jv key = JV_STR(((struct str){p->format.ptr + p->pos + 1, end - p->pos - 1}));
        if (!jdict_get(p->run, p->values->dict, &key, &v, &found))
            return false;
        if (!found)
            return jrun_fail(p->run, "format: no key '%.*s'", (int)(key.s.len < 80 ? key.s.len : 80), key.s.ptr);
        p->pos = end + 1;
        p->used = 1;
    }
    if (!percent_flags(p, &s))
        return false;
    if (p->pos >= p->format.len)
        return jrun_fail(p->run, "incomplete format");
    s.type = p->format.ptr[p->pos++];
    if (s.type == '%')
        return jtext_char(t, '%');
    if (v.kind == J_MISSING && !next_value(p, &v))
        return false;
    return percent_value(p, t, &s, &v);
}

bool jinja_percent(struct jrun *run, const struct jv *format, const struct jv *values, struct jv *out)
{
    struct percent p = {.run = run, .format = format->s, .values = values};
    struct jtext t = {.run = run};
    if (format->flags & J_MARKUP)
        return jrun_fail(run, "%% on text marked safe is not supported");
    while (p.pos < p.format.len && !t.failed) {
        size_t at;
        if (!jstr_find(p.format, STR("%"), p.pos, &at)) {
            jtext_add(&t, (struct str){p.format.ptr + p.pos, p.format.len - p.pos});
            break;
        }
        jtext_add(&t, (struct str){p.format.ptr + p.pos, at - p.pos});
        p.pos = at + 1;
        if (!percent_directive(&p, &t))
            return false;
    }
    bool mapping = values->kind == J_DICT || values->kind == J_LIST || values->kind == J_NAMESPACE;
    bool rest = values->kind == J_TUPLE ? p.used < values->list.n : !p.used && !mapping;
    if (rest)
        return jrun_fail(run, "not all arguments converted during string formatting");
    *out = jtext_value(&t);
    return !t.failed;
}

/* ---- str.format -------------------------------------------------------------------------------------------------- */

struct fields {
    struct jrun *run;
    const struct jargs *args;
    int64_t next; /* number of the next {} */
    bool automatic, manual;
};

static bool take_number(struct str s, size_t *i, int64_t *out)
{
    size_t start = *i;
    for (*out = 0; *i < s.len && s.ptr[*i] >= '0' && s.ptr[*i] <= '9'; ++*i)
        *out = *out <= JINJA_PAD_MAX ? *out * 10 + (s.ptr[*i] - '0') : *out;
    return *i > start;
}

static bool parse_spec(struct jrun *run, struct str s, struct spec *out)
{
    size_t i = 0, next = 0;
    *out = (struct spec){.precision = -1};
    if (s.len)
        str_utf8_next(s, &next);
    if (next < s.len && s.ptr[next] && strchr("<>=^", s.ptr[next])) {
        out->fill = (struct str){s.ptr, next};
        out->align = s.ptr[next];
        i = next + 1;
    } else if (s.len && s.ptr[0] && strchr("<>=^", s.ptr[0])) {
        out->align = s.ptr[i++];
    }
    if (i < s.len && (s.ptr[i] == '+' || s.ptr[i] == '-' || s.ptr[i] == ' '))
        out->sign = s.ptr[i++];
    if (i < s.len && s.ptr[i] == '#')
        out->alternate = s.ptr[i++];
    if (i < s.len && s.ptr[i] == '0')
        out->zero = s.ptr[i++];
    take_number(s, &i, &out->width);
    if (i < s.len && (s.ptr[i] == ',' || s.ptr[i] == '_'))
        out->grouping = s.ptr[i++];
    if (i < s.len && s.ptr[i] == '.') {
        i++;
        if (!take_number(s, &i, &out->precision))
            return jrun_fail(run, "format specifier missing precision");
    }
    if (i < s.len)
        out->type = s.ptr[i++];
    if (i < s.len)
        return jrun_fail(run, "invalid format specifier '%.*s'", (int)(s.len < 80 ? s.len : 80), s.ptr);
    if (out->width > JINJA_PAD_MAX || out->precision > JINJA_PAD_MAX)
        return jrun_fail(run, "a width of more than %d is not supported", JINJA_PAD_MAX);
    return true;
}

static bool unknown_code(struct jrun *run, char type, const struct jv *v)
{
    return jrun_fail(run, "unknown format code '%c' for object of type '%s'", type, jv_type_name(v));
}

static bool format_value(struct jrun *run, struct jtext *t, const struct jv *v, struct str text)
{
    struct spec s;
    struct str shown;
    if (!parse_spec(run, text, &s))
        return false;
    if (v->kind == J_BOOL && text.len == 0)
        return shown_as(run, v, 's', &shown) && jtext_add(t, shown);
    if (jv_is_int(v)) {
        if (!s.type || strchr("dxXobn", s.type))
            return s.precision < 0 ? format_int(t, &s, jv_int(v))
                                   : jrun_fail(run, "precision not allowed in integer format specifier");
        if (strchr("eEfFgG%", s.type))
            return format_float(t, &s, jv_double(v));
        return unknown_code(run, s.type, v);
    }
    if (v->kind == J_FLOAT)
        return !s.type || strchr("eEfFgGn%", s.type) ? format_float(t, &s, v->f) : unknown_code(run, s.type, v);
    if (v->kind != J_STR && text.len)
        return jrun_fail(run, "unsupported format string passed to %s.__format__", jv_type_name(v));
    if (s.type && s.type != 's')
        return unknown_code(run, s.type, v);
    if (s.align == '=' || s.sign || s.alternate)
        return jrun_fail(run, "this alignment or sign is not allowed in a string format specifier");
    if (s.zero) {
        s.fill = s.fill.len ? s.fill : STR("0");
        s.align = s.align ? s.align : '<';
        s.zero = false;
    }
    return shown_as(run, v, 's', &shown) && format_text(t, &s, shown);
}

/* The first part of a field's name: a number, nothing, or a keyword. */
static bool field_root(struct fields *f, struct str name, struct jv *out)
{
    int64_t number = 0;
    size_t i = 0;
    bool numeric = take_number(name, &i, &number) && i == name.len;
    if (name.len == 0) {
        numeric = f->automatic = true;
        number = f->next++;
    } else if (numeric) {
        f->manual = true;
    }
    if (f->automatic && f->manual)
        return jrun_fail(f->run, "format: cannot mix automatic and manual field numbering");
    if (numeric) {
        if ((size_t)number >= f->args->n_pos)
            return jrun_fail(f->run, "format: replacement index %" PRId64 " out of range", number);
        *out = f->args->pos[number];
        return true;
    }
    for (size_t k = 0; k < f->args->n_kw; k++) {
        if (str_equal(f->args->names[k], name)) {
            *out = f->args->kw[k];
            return true;
        }
    }
    return jrun_fail(f->run, "format: no argument '%.*s'", (int)(name.len < 80 ? name.len : 80), name.ptr);
}

static bool field_value(struct fields *f, struct str name, struct jv *v)
{
    size_t i = 0;
    while (i < name.len && name.ptr[i] != '.' && name.ptr[i] != '[')
        i++;
    if (!field_root(f, (struct str){name.ptr, i}, v))
        return false;
    while (i < name.len) {
        struct jv obj = *v, key;
        size_t start = i + 1, end = start;
        int64_t number;
        if (name.ptr[i] == '.') {
            while (end < name.len && name.ptr[end] != '.' && name.ptr[end] != '[')
                end++;
            if (end == start)
                return jrun_fail(f->run, "format: empty attribute in format string");
            if (!jinja_getattr(f->run, &obj, (struct str){name.ptr + start, end - start}, v))
                return false;
            i = end;
            continue;
        }
        while (end < name.len && name.ptr[end] != ']')
            end++;
        if (name.ptr[i] != '[' || end >= name.len || end == start)
            return jrun_fail(f->run, "format: malformed field name");
        struct str part = {name.ptr + start, end - start};
        size_t at = 0;
        key = take_number(part, &at, &number) && at == part.len ? JV_INT(number) : JV_STR(part);
        if (!jinja_getitem(f->run, &obj, &key, v))
            return false;
        i = end + 1;
    }
    return true;
}

static bool format_fields(struct fields *f, struct str s, struct jtext *t, unsigned depth);

/* `body` is what stands between the braces. */
static bool format_field(struct fields *f, struct str body, struct jtext *t, unsigned depth)
{
    struct jv v;
    struct str spec = STR(""), name = body;
    char conversion = 0;
    size_t i = 0;
    for (bool inside = false; i < body.len && (inside || (body.ptr[i] != ':' && body.ptr[i] != '!')); i++)
        inside = body.ptr[i] == '[' || (inside && body.ptr[i] != ']');
    name.len = i;
    if (i < body.len && body.ptr[i] == '!') {
        conversion = i + 1 < body.len ? body.ptr[i + 1] : 0;
        if (!conversion || !strchr("sra", conversion))
            return jrun_fail(f->run, "format: unknown conversion specifier");
        i += 2;
        if (i < body.len && body.ptr[i] != ':')
            return jrun_fail(f->run, "format: expected ':' after conversion specifier");
    }
    if (i < body.len)
        spec = (struct str){body.ptr + i + 1, body.len - i - 1};
    if (!field_value(f, name, &v))
        return false;
    if (conversion) {
        struct str shown;
        if (!shown_as(f->run, &v, conversion, &shown))
            return false;
        v = JV_STR(shown);
    }
    if (memchr(spec.ptr, '{', spec.len)) {
        struct jtext inner = {.run = f->run};
        if (depth >= 1)
            return jrun_fail(f->run, "format: max string recursion exceeded");
        if (!format_fields(f, spec, &inner, depth + 1))
            return false;
        spec = jtext_value(&inner).s;
    }
    return format_value(f->run, t, &v, spec);
}

static bool format_fields(struct fields *f, struct str s, struct jtext *t, unsigned depth)
{
    for (size_t i = 0; i < s.len && !t->failed;) {
        char c = s.ptr[i];
        if ((c == '{' || c == '}') && i + 1 < s.len && s.ptr[i + 1] == c) {
            jtext_char(t, c);
            i += 2;
            continue;
        }
        if (c == '}')
            return jrun_fail(f->run, "format: single '}' encountered in format string");
        if (c != '{') {
            size_t start = i;
            while (i < s.len && s.ptr[i] != '{' && s.ptr[i] != '}')
                i++;
            jtext_add(t, (struct str){s.ptr + start, i - start});
            continue;
        }
        size_t start = ++i, open = 1;
        for (; i < s.len; i++) {
            if (s.ptr[i] == '{')
                open++;
            else if (s.ptr[i] == '}' && --open == 0)
                break;
        }
        if (i >= s.len)
            return jrun_fail(f->run, "format: expected '}' before end of string");
        if (!format_field(f, (struct str){s.ptr + start, i - start}, t, depth))
            return false;
        i++;
    }
    return !t->failed;
}

bool jinja_str_format(struct jrun *run, const struct jv *self, const struct jargs *args, struct jv *out)
{
    struct fields f = {.run = run, .args = args};
    struct jtext t = {.run = run};
    if (self->flags & J_MARKUP)
        return jrun_fail(run, "format on text marked safe is not supported");
    if (!format_fields(&f, self->s, &t, 0))
        return false;
    *out = jtext_value(&t);
    return true;
}

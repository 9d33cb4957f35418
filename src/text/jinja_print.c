/* Values as text, as Python shows them: str(), repr(), json.dumps. */
#include "text/jinja.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Shortest digits that read back as the same number, laid out as Python's repr. */
size_t jprint_float(double f, char out[JINJA_FLOAT_BYTES])
{
    char digits[40];
    if (isnan(f) || isinf(f))
        return (size_t)sprintf(out, "%s", isnan(f) ? "nan" : f > 0 ? "inf" : "-inf");
    for (int precision = 0; precision <= 16; precision++) {
        snprintf(digits, sizeof digits, "%.*e", precision, f);
        if (strtod(digits, NULL) == f)
            break;
    }
    char *e = strchr(digits, 'e');
    int exponent = atoi(e + 1);
    char mantissa[24];
    size_t n = 0;
    for (char *p = digits; p < e; p++)
        if (*p >= '0' && *p <= '9')
            mantissa[n++] = *p;
    size_t at = 0;
    if (signbit(f))
        out[at++] = '-';
    if (exponent < -4 || exponent >= 16) {
        out[at++] = mantissa[0];
        if (n > 1) {
            out[at++] = '.';
            memcpy(out + at, mantissa + 1, n - 1);
            at += n - 1;
        }
        return at + (size_t)sprintf(out + at, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
    }
    if (exponent < 0) {
        at += (size_t)sprintf(out + at, "0.");
        for (int i = -1; i > exponent; i--)
            out[at++] = '0';
        memcpy(out + at, mantissa, n);
        at += n;
    } else {
        size_t whole = (size_t)exponent + 1;
        for (size_t i = 0; i < whole; i++)
            out[at++] = i < n ? mantissa[i] : '0';
        out[at++] = '.';
        if (n <= whole)
            out[at++] = '0';
        for (size_t i = whole; i < n; i++)
            out[at++] = mantissa[i];
    }
    out[at] = 0;
    return at;
}

static bool repr_str(struct jtext *t, struct str s)
{
    bool single = s.len && memchr(s.ptr, '\'', s.len), twice = s.len && memchr(s.ptr, '"', s.len);
    char quote = single && !twice ? '"' : '\'';
    jtext_char(t, quote);
    for (size_t i = 0; i < s.len && !t->failed;) {
        size_t start = i;
        uint32_t c = str_utf8_next(s, &i);
        if (c == (uint32_t)quote || c == '\\')
            jtext_printf(t, "\\%c", (int)c);
        else if (c == '\n' || c == '\r' || c == '\t')
            jtext_printf(t, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
        else if (jstr_printable(c))
            jtext_add(t, (struct str){s.ptr + start, i - start});
        else
            jtext_printf(t, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)c);
    }
    return jtext_char(t, quote);
}

static bool repr_items(struct jtext *t, const struct jlist *list, const char *open, const char *close, unsigned depth)
{
    jtext_add(t, str_from(open));
    for (size_t i = 0; i < list->n; i++) {
        if (i)
            jtext_add(t, STR(", "));
        if (!jprint_repr(t, &list->items[i], depth + 1))
            return false;
    }
    return jtext_add(t, str_from(close));
}

static bool repr_dict(struct jtext *t, const struct jdict *d, unsigned depth)
{
    jtext_char(t, '{');
    for (size_t i = 0; i < d->n; i++) {
        if (i)
            jtext_add(t, STR(", "));
        if (!jprint_repr(t, &d->pairs[i].key, depth + 1) || !jtext_add(t, STR(": ")) ||
            !jprint_repr(t, &d->pairs[i].value, depth + 1))
            return false;
    }
    return jtext_char(t, '}');
}

static bool repr_view(struct jtext *t, const struct jv *v, unsigned depth)
{
    struct jlist list;
    const char *name = v->view->what == 'k' ? "dict_keys([" : v->view->what == 'v' ? "dict_values([" : "dict_items([";
    return jiter_list(t->run, v, &list) && repr_items(t, &list, name, "])", depth);
}

static bool repr_range(struct jtext *t, const struct jrange *r)
{
    if (r->step == 1)
        return jtext_printf(t, "range(%" PRId64 ", %" PRId64 ")", r->start, r->stop);
    return jtext_printf(t, "range(%" PRId64 ", %" PRId64 ", %" PRId64 ")", r->start, r->stop, r->step);
}

bool jprint_repr(struct jtext *t, const struct jv *v, unsigned depth)
{
    char number[JINJA_FLOAT_BYTES];
    if (depth > JINJA_VALUE_DEPTH_MAX)
        return jrun_fail(t->run, "a printed value is nested deeper than %u levels", JINJA_VALUE_DEPTH_MAX);
    if (!jrun_steps(t->run, 1))
        return false;
    switch ((enum jkind)v->kind) {
    case J_MISSING:
    case J_UNDEFINED: return jtext_add(t, STR("Undefined"));
    case J_NONE: return jtext_add(t, STR("None"));
    case J_BOOL: return jtext_add(t, v->b ? STR("True") : STR("False"));
    case J_INT: return jtext_printf(t, "%" PRId64, v->i);
    case J_FLOAT: return jtext_add(t, (struct str){number, jprint_float(v->f, number)});
    case J_STR:
        if (!(v->flags & J_MARKUP))
            return repr_str(t, v->s);
        return jtext_add(t, STR("Markup(")) && repr_str(t, v->s) && jtext_char(t, ')');
    case J_LIST: return repr_items(t, &v->list, "[", "]", depth);
    case J_TUPLE: return repr_items(t, &v->list, "(", v->list.n == 1 ? ",)" : ")", depth);
    case J_DICT: return repr_dict(t, v->dict, depth);
    case J_NAMESPACE: return jtext_add(t, STR("<Namespace ")) && repr_dict(t, v->dict, depth + 1) && jtext_char(t, '>');
    case J_RANGE: return repr_range(t, v->range);
    case J_VIEW: return repr_view(t, v, depth);
    case J_MACRO:
        if (!v->macro->name.ptr)
            return jtext_add(t, STR("<Macro anonymous>"));
        return jtext_add(t, STR("<Macro ")) && repr_str(t, v->macro->name) && jtext_char(t, '>');
    case J_FUNC: return jtext_add(t, str_from(v->func->shown));
    case J_METHOD:
        return jtext_printf(t, "<built-in method %s of %s object>", v->method->def->name, jv_type_name(&v->method->self));
    default: return jtext_printf(t, "<%s object>", jv_type_name(v));
    }
}

bool jprint_str(struct jtext *t, const struct jv *v)
{
    if (v->kind == J_STR)
        return jtext_add(t, v->s);
    if (v->kind == J_UNDEFINED)
        return true;
    return jprint_repr(t, v, 0);
}

bool jv_to_str(struct jrun *run, const struct jv *v, struct str *out)
{
    *out = STR("");
    if (v->kind == J_STR)
        *out = v->s;
    if (v->kind == J_STR || v->kind == J_UNDEFINED)
        return true;
    struct jtext t = {.run = run};
    if (!jprint_repr(&t, v, 0) || t.failed)
        return false;
    *out = jtext_value(&t).s;
    return true;
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static bool quoted_string(struct jtext *t, struct str s, bool ascii)
{
    static const char named[] = "\"\\\n\r\t\f\b", letters[] = "\"\\nrtfb";
    size_t plain = 0, i = 0;
    jtext_char(t, '"');
    while (i < s.len && !t->failed) {
        unsigned char c = (unsigned char)s.ptr[i];
        if (c >= 0x20 && c != '"' && c != '\\' && (!ascii || c < 0x7f)) {
            i++;
            continue;
        }
        jtext_add(t, (struct str){s.ptr + plain, i - plain});
        const char *name = c ? strchr(named, c) : NULL;
        if (name) {
            jtext_printf(t, "\\%c", letters[name - named]);
            i++;
        } else {
            uint32_t code = str_utf8_next(s, &i);
            if (code > 0xFFFF)
                jtext_printf(t, "\\u%04x\\u%04x", 0xD800 + ((code - 0x10000) >> 10), 0xDC00 + (code & 0x3FF));
            else
                jtext_printf(t, "\\u%04x", (unsigned)code);
        }
        plain = i;
    }
    jtext_add(t, (struct str){s.ptr + plain, s.len - plain});
    return jtext_char(t, '"');
}

static bool json_number(struct jtext *t, const struct jv *v)
{
    char number[JINJA_FLOAT_BYTES];
    if (v->kind == J_FLOAT && isnan(v->f))
        return jtext_add(t, STR("NaN"));
    if (v->kind == J_FLOAT && isinf(v->f))
        return jtext_add(t, v->f > 0 ? STR("Infinity") : STR("-Infinity"));
    if (v->kind == J_FLOAT)
        return jtext_add(t, (struct str){number, jprint_float(v->f, number)});
    if (v->kind == J_BOOL)
        return jtext_add(t, v->b ? STR("true") : STR("false"));
    return jtext_printf(t, "%" PRId64, v->i);
}

static bool json_newline(struct jtext *t, const struct jjson_style *style, unsigned depth)
{
    if (!style->indented)
        return true;
    jtext_char(t, '\n');
    for (unsigned i = 0; i < depth; i++)
        jtext_add(t, style->indent);
    return !t->failed;
}

static bool json_key(struct jtext *t, const struct jv *key, const struct jjson_style *style)
{
    if (key->kind == J_STR)
        return quoted_string(t, key->s, style->ascii);
    if (key->kind != J_NONE && !jv_is_number(key))
        return jrun_fail(t->run, "keys must be str, int, float, bool or None, not %s", jv_type_name(key));
    jtext_char(t, '"');
    if (key->kind == J_NONE ? !jtext_add(t, STR("null")) : !json_number(t, key))
        return false;
    return jtext_char(t, '"');
}

/* Stable merge sort of indices by key. */
static bool sort_keys(struct jrun *run, const struct jdict *d, size_t *order, size_t *spare, size_t n)
{
    if (n < 2)
        return true;
    size_t half = n / 2, a = 0, b = half, k = 0;
    if (!sort_keys(run, d, order, spare, half) || !sort_keys(run, d, order + half, spare + half, n - half))
        return false;
    while (a < half || b < n) {
        bool less = false;
        if (a < half && b < n && !jv_less(run, &d->pairs[order[b]].key, &d->pairs[order[a]].key, 0, "<", &less))
            return false;
        spare[k++] = a < half && (b == n || !less) ? order[a++] : order[b++];
    }
    memcpy(order, spare, n * sizeof *order);
    return true;
}

static bool json_object_text(struct jtext *t, const struct jdict *d, const struct jjson_style *style, unsigned depth)
{
    size_t *order = NULL;
    if (d->n == 0)
        return jtext_add(t, STR("{}"));
    if (style->sort_keys) {
        order = jrun_alloc(t->run, d->n * 2, sizeof *order);
        if (!order)
            return false;
        for (size_t i = 0; i < d->n; i++)
            order[i] = i;
        if (!sort_keys(t->run, d, order, order + d->n, d->n))
            return false;
    }
    jtext_char(t, '{');
    for (size_t i = 0; i < d->n; i++) {
        const struct jpair *pair = &d->pairs[order ? order[i] : i];
        if (i)
            jtext_add(t, style->item_separator);
        if (!json_newline(t, style, depth + 1) || !json_key(t, &pair->key, style) || !jtext_add(t, style->key_separator) ||
            !jprint_json(t, &pair->value, style, depth + 1))
            return false;
    }
    return json_newline(t, style, depth) && jtext_char(t, '}');
}

static bool json_array_text(struct jtext *t, const struct jlist *list, const struct jjson_style *style, unsigned depth)
{
    if (list->n == 0)
        return jtext_add(t, STR("[]"));
    jtext_char(t, '[');
    for (size_t i = 0; i < list->n; i++) {
        if (i)
            jtext_add(t, style->item_separator);
        if (!json_newline(t, style, depth + 1) || !jprint_json(t, &list->items[i], style, depth + 1))
            return false;
    }
    return json_newline(t, style, depth) && jtext_char(t, ']');
}

bool jprint_json(struct jtext *t, const struct jv *v, const struct jjson_style *style, unsigned depth)
{
    if (depth > JINJA_VALUE_DEPTH_MAX)
        return jrun_fail(t->run, "tojson: a value is nested deeper than %u levels", JINJA_VALUE_DEPTH_MAX);
    if (!jrun_steps(t->run, 1))
        return false;
    switch ((enum jkind)v->kind) {
    case J_NONE: return jtext_add(t, STR("null"));
    case J_BOOL:
    case J_INT:
    case J_FLOAT: return json_number(t, v);
    case J_STR: return quoted_string(t, v->s, style->ascii);
    case J_LIST:
    case J_TUPLE: return json_array_text(t, &v->list, style, depth);
    case J_DICT: return json_object_text(t, v->dict, style, depth);
    default: return jrun_fail(t->run, "tojson: object of type %s is not JSON serializable", jv_type_name(v));
    }
}

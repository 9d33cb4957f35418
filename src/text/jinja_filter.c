/* Filters of single values: text, numbers, JSON, defaults. Those of sequences are in jinja_seq.c. */
#include "text/jinja.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#define FILTER(name) static bool name(struct jrun *run, const struct jv *v, const struct jargs *args, struct jv *out)

static bool no_args(struct jrun *run, const char *fn, const struct jargs *args)
{
    return jargs_bind(run, args, fn, NULL, 0, 0, NULL);
}

/* soft_str: Markup stays Markup. */
static bool soft_str(struct jrun *run, const struct jv *v, struct jv *out)
{
    *out = JV_STR(STR(""));
    out->flags = v->kind == J_STR ? v->flags & J_MARKUP : 0;
    return jv_to_str(run, v, &out->s);
}

static bool to_case(struct jrun *run, const struct jv *v, const struct jargs *args, const char *fn, enum jcase how,
                    struct jv *out)
{
    return no_args(run, fn, args) && soft_str(run, v, out) && jstr_case(run, out->s, how, &out->s);
}

FILTER(filter_upper)
{
    return to_case(run, v, args, "upper", CASE_UPPER, out);
}

FILTER(filter_lower)
{
    return to_case(run, v, args, "lower", CASE_LOWER, out);
}

FILTER(filter_capitalize)
{
    return to_case(run, v, args, "capitalize", CASE_CAPITALIZE, out);
}

/* Words begin behind white space and - ( { [ <; only their first character is raised. */
FILTER(filter_title)
{
    struct jtext t = {.run = run};
    if (!no_args(run, "title", args) || !soft_str(run, v, out))
        return false;
    struct str s = out->s;
    for (size_t i = 0; i < s.len && !t.failed;) {
        size_t start = i, end = i;
        struct str first, rest;
        while (i < s.len) {
            uint32_t c = str_utf8_next(s, &i);
            if (jstr_is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<')
                break;
            end = i;
        }
        if (end > start) {
            size_t one = start;
            str_utf8_next(s, &one);
            if (!jstr_case(run, (struct str){s.ptr + start, one - start}, CASE_UPPER, &first) ||
                !jstr_case(run, (struct str){s.ptr + one, end - one}, CASE_LOWER, &rest))
                return false;
            jtext_add(&t, first);
            jtext_add(&t, rest);
        }
        jtext_add(&t, (struct str){s.ptr + end, i - end});
    }
    out->s = jtext_value(&t).s;
    return !t.failed;
}

FILTER(filter_trim)
{
    static const char *const names[] = {"chars"};
    struct jv chars;
    struct str set;
    if (!jargs_bind(run, args, "trim", names, 1, 0, &chars) || !soft_str(run, v, out))
        return false;
    bool given = chars.kind != J_MISSING && chars.kind != J_NONE;
    if (given && !jarg_str(run, "trim", &chars, &set))
        return false;
    return jstr_strip_set(run, out->s, given ? &set : NULL, 'b', &out->s);
}

FILTER(filter_string)
{
    return no_args(run, "string", args) && soft_str(run, v, out);
}

FILTER(filter_safe)
{
    if (!no_args(run, "safe", args) || !soft_str(run, v, out))
        return false;
    out->flags = J_MARKUP;
    return true;
}

bool jinja_escape(struct jrun *run, struct str s, struct str *out)
{
    struct jtext t = {.run = run};
    static const char *const names[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    static const char chars[] = "&<>'\"";
    size_t plain = 0;
    for (size_t i = 0; i < s.len && !t.failed; i++) {
        const char *p = s.ptr[i] ? strchr(chars, s.ptr[i]) : NULL;
        if (!p)
            continue;
        jtext_add(&t, (struct str){s.ptr + plain, i - plain});
        jtext_add(&t, str_from(names[p - chars]));
        plain = i + 1;
    }
    jtext_add(&t, (struct str){s.ptr + plain, s.len - plain});
    *out = jtext_value(&t).s;
    return !t.failed;
}

FILTER(filter_escape)
{
    if (!no_args(run, "escape", args) || !soft_str(run, v, out))
        return false;
    bool done = out->flags & J_MARKUP;
    out->flags = J_MARKUP;
    return done || jinja_escape(run, out->s, &out->s);
}

FILTER(filter_forceescape)
{
    if (!no_args(run, "forceescape", args) || !soft_str(run, v, out))
        return false;
    out->flags = J_MARKUP;
    return jinja_escape(run, out->s, &out->s);
}

FILTER(filter_replace)
{
    static const char *const names[] = {"old", "new", "count"};
    struct jv a[3];
    struct str s, old, new_text;
    int64_t count = -1;
    if (!jargs_bind(run, args, "replace", names, 3, 2, a) || !jv_to_str(run, v, &s) || !jv_to_str(run, &a[0], &old) ||
        !jv_to_str(run, &a[1], &new_text))
        return false;
    if (a[2].kind != J_NONE && !jarg_int(run, "replace", &a[2], -1, &count))
        return false;
    *out = JV_STR(STR(""));
    return jstr_replace(run, s, old, new_text, count, &out->s);
}

FILTER(filter_indent)
{
    static const char *const names[] = {"width", "first", "blank"};
    struct jv a[3];
    struct jlist lines;
    struct jtext t = {.run = run};
    int64_t width;
    struct str pad = STR("");
    if (!jargs_bind(run, args, "indent", names, 3, 0, a))
        return false;
    if (v->kind != J_STR)
        return v->kind == J_UNDEFINED ? jv_undefined_fail(run, v)
                                      : jrun_fail(run, "indent needs a string, not '%s'", jv_type_name(v));
    if (a[0].kind == J_STR) {
        pad = a[0].s;
    } else {
        if (!jarg_int(run, "indent", &a[0], 4, &width))
            return false;
        if (width > JINJA_PAD_MAX)
            return jrun_fail(run, "indent: more than %d columns are not supported", JINJA_PAD_MAX);
        char *spaces = jrun_alloc(run, width > 0 ? (size_t)width : 0, 1);
        if (!spaces)
            return false;
        memset(spaces, ' ', width > 0 ? (size_t)width : 0);
        pad = (struct str){spaces, width > 0 ? (size_t)width : 0};
    }
    struct str ended;
    if (!jinja_concat2(run, v->s, STR("\n"), &ended) || !jstr_lines(run, ended, false, 0, &lines))
        return false;
    bool blank = jv_truth(&a[2]);
    if (jv_truth(&a[1]))
        jtext_add(&t, pad);
    for (size_t i = 0; i < lines.n && !t.failed; i++) {
        if (i) {
            jtext_char(&t, '\n');
            if (blank || lines.items[i].s.len)
                jtext_add(&t, pad);
        }
        jtext_add(&t, lines.items[i].s);
    }
    *out = jtext_value(&t);
    out->flags = v->flags & J_MARKUP;
    return !t.failed;
}

FILTER(filter_center)
{
    static const char *const names[] = {"width"};
    struct jv a, method, width;
    bool unsafe;
    int64_t columns;
    if (!jargs_bind(run, args, "center", names, 1, 0, &a) || !jarg_int(run, "center", &a, 80, &columns) ||
        !soft_str(run, v, out))
        return false;
    struct jv self = *out;
    width = JV_INT(columns);
    struct jargs inner = {.pos = &width, .n_pos = 1};
    return jinja_method(run, &self, STR("center"), &method, &unsafe) && jinja_call(run, &method, &inner, out);
}

FILTER(filter_truncate)
{
    static const char *const names[] = {"length", "killwords", "end", "leeway"};
    struct jv a[4];
    int64_t length, leeway = 5, n;
    struct str end = STR("...");
    if (!jargs_bind(run, args, "truncate", names, 4, 0, a) || !jarg_int(run, "truncate", &a[0], 255, &length) ||
        (a[2].kind != J_MISSING && !jarg_str(run, "truncate", &a[2], &end)) ||
        (a[3].kind != J_NONE && !jarg_int(run, "truncate", &a[3], 5, &leeway)))
        return false;
    int64_t end_n = (int64_t)jstr_count(end);
    if (length < end_n || leeway < 0)
        return jrun_fail(run, "truncate: expected a length of at least %" PRId64 " and no negative leeway", end_n);
    if ((n = jv_length(run, v)) < 0)
        return v->kind != J_STR && jrun_fail(run, "truncate needs a string, not '%s'", jv_type_name(v));
    *out = *v;
    if (n <= length || n - length <= leeway)
        return true;
    if (v->kind != J_STR)
        return jrun_fail(run, "truncate needs a string, not '%s'", jv_type_name(v));
    struct str cut = {v->s.ptr, jstr_offset(v->s, (size_t)(length - end_n))};
    if (!jv_truth(&a[1])) {
        const char *space = cut.len ? memrchr(cut.ptr, ' ', cut.len) : NULL;
        if (space)
            cut.len = (size_t)(space - cut.ptr);
    }
    return jinja_concat2(run, cut, end, &out->s);
}

FILTER(filter_wordcount)
{
    if (!no_args(run, "wordcount", args) || !soft_str(run, v, out) || !jrun_bytes(run, out->s.len))
        return false;
    struct str s = out->s;
    bool in_word = false;
    *out = JV_INT(0);
    for (size_t i = 0; i < s.len;) {
        bool word = jstr_word(str_utf8_next(s, &i));
        out->i += word && !in_word;
        in_word = word;
    }
    return true;
}

FILTER(filter_striptags)
{
    struct jtext t = {.run = run};
    size_t start, end, pos = 0;
    if (!no_args(run, "striptags", args) || !soft_str(run, v, out))
        return false;
    struct str s = out->s;
    while (jstr_find(s, STR("<"), pos, &start)) {
        bool comment = start + 4 <= s.len && memcmp(s.ptr + start, "<!--", 4) == 0;
        if (!jstr_find(s, comment ? STR("-->") : STR(">"), comment ? start + 4 : start, &end))
            break;
        jtext_add(&t, (struct str){s.ptr + pos, start - pos});
        pos = end + (comment ? 3 : 1);
    }
    jtext_add(&t, (struct str){s.ptr + pos, s.len - pos});
    if (t.failed)
        return false;
    if (memchr(s.ptr, '&', s.len))
        return jrun_fail(run, "striptags: character references (&...;) are not supported");
    struct jv self = jtext_value(&t), method, words, space = JV_STR(STR(" "));
    bool unsafe;
    struct jargs none = {0}, one = {.pos = &words, .n_pos = 1};
    return jinja_method(run, &self, STR("split"), &method, &unsafe) && jinja_call(run, &method, &none, &words) &&
           jinja_method(run, &space, STR("join"), &method, &unsafe) && jinja_call(run, &method, &one, out);
}

FILTER(filter_urlencode)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~/";
    struct jtext t = {.run = run};
    struct str s;
    if (!no_args(run, "urlencode", args))
        return false;
    if (v->kind != J_STR && jiter_possible(v) && v->kind != J_UNDEFINED) {
        struct jlist pairs, pair;
        struct jview items = {v->dict, 'i'};
        struct jv source = v->kind == J_DICT ? (struct jv){.kind = J_VIEW, .view = &items} : *v;
        if (!jiter_list(run, &source, &pairs))
            return false;
        for (size_t i = 0; i < pairs.n; i++) {
            if (!jiter_list(run, &pairs.items[i], &pair))
                return false;
            if (pair.n != 2)
                return jrun_fail(run, "urlencode needs pairs");
            for (size_t k = 0; k < 2; k++) {
                if (i || k)
                    jtext_char(&t, k ? '=' : '&');
                if (!jv_to_str(run, &pair.items[k], &s))
                    return false;
                for (size_t c = 0; c < s.len && !t.failed; c++) {
                    if (s.ptr[c] == ' ')
                        jtext_char(&t, '+');
                    else if (s.ptr[c] && s.ptr[c] != '/' && strchr(plain, s.ptr[c]))
                        jtext_char(&t, s.ptr[c]);
                    else
                        jtext_printf(&t, "%%%02X", (unsigned char)s.ptr[c]);
                }
            }
        }
        *out = jtext_value(&t);
        return !t.failed;
    }
    if (!jv_to_str(run, v, &s))
        return false;
    for (size_t i = 0; i < s.len && !t.failed; i++) {
        if (s.ptr[i] && strchr(plain, s.ptr[i]))
            jtext_char(&t, s.ptr[i]);
        else
            jtext_printf(&t, "%%%02X", (unsigned char)s.ptr[i]);
    }
    *out = jtext_value(&t);
    return !t.failed;
}

FILTER(filter_format)
{
    struct jv text, values = {.kind = J_TUPLE, .list = {(struct jv *)args->pos, args->n_pos}};
    if (args->n_pos && args->n_kw)
        return jrun_fail(run, "format can't handle positional and keyword arguments at the same time");
    if (args->n_kw) {
        struct jdict *d = jdict_new(run, args->n_kw);
        if (!d)
            return false;
        for (size_t i = 0; i < args->n_kw; i++)
            if (!jdict_set_str(run, d, args->names[i], &args->kw[i]))
                return false;
        values = JV_DICT(d);
    }
    return soft_str(run, v, &text) && jinja_percent(run, &text, &values, out);
}

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

static bool float_to_int(struct jrun *run, double f, int64_t *out, bool *valid)
{
    *valid = isfinite(f);
    if (*valid && (f >= 9223372036854775808.0 || f < -9223372036854775808.0))
        return jrun_fail(run, "integer overflow: the number does not fit into 64 bits");
    if (*valid)
        *out = (int64_t)f;
    return true;
}

FILTER(filter_int)
{
    static const char *const names[] = {"default", "base"};
    struct jv a[2];
    int64_t base, result = 0;
    bool valid = false;
    double f;
    if (!jargs_bind(run, args, "int", names, 2, 0, a) || !jarg_int(run, "int", &a[1], 10, &base))
        return false;
    if (v->kind == J_UNDEFINED)
        return jv_undefined_fail(run, v);
    if (jv_is_int(v)) {
        *out = JV_INT(jv_int(v));
        return true;
    }
    if (v->kind == J_FLOAT && isinf(v->f))
        return jrun_fail(run, "cannot convert float infinity to integer");
    if (v->kind == J_STR && !jstr_to_int(run, v->s, base, &result, &valid))
        return false;
    if (!valid && v->kind == J_STR && jstr_to_float(v->s, &f) && !float_to_int(run, f, &result, &valid))
        return false;
    if (v->kind == J_FLOAT && !float_to_int(run, v->f, &result, &valid))
        return false;
    *out = valid ? JV_INT(result) : a[0].kind == J_MISSING ? JV_INT(0) : a[0];
    return true;
}

FILTER(filter_float)
{
    static const char *const names[] = {"default"};
    struct jv fallback;
    double f;
    if (!jargs_bind(run, args, "float", names, 1, 0, &fallback))
        return false;
    if (v->kind == J_UNDEFINED)
        return jv_undefined_fail(run, v);
    if (jv_is_number(v))
        *out = JV_FLOAT(jv_double(v));
    else if (v->kind == J_STR && jstr_to_float(v->s, &f))
        *out = JV_FLOAT(f);
    else
        *out = fallback.kind == J_MISSING ? JV_FLOAT(0.0) : fallback;
    return true;
}

FILTER(filter_abs)
{
    if (!no_args(run, "abs", args))
        return false;
    if (!jv_is_number(v))
        return jrun_fail(run, "bad operand type for abs(): '%s'", jv_type_name(v));
    if (v->kind == J_FLOAT) {
        *out = JV_FLOAT(fabs(v->f));
        return true;
    }
    if (jv_int(v) < 0)
        return jinja_negate(run, v, N_NEG, out);
    *out = JV_INT(jv_int(v));
    return true;
}

/* Half to even on the exact decimal value, as Python's round(float, digits). */
static double round_float(double f, int64_t digits)
{
    char text[400];
    if (!isfinite(f) || digits > 300)
        return f;
    if (digits >= 0) {
        snprintf(text, sizeof text, "%.*f", (int)digits, f);
        double result;
        return jstr_to_float(str_from(text), &result) ? result : f;
    }
    if (digits < -308)
        return copysign(0.0, f);
    double unit = pow(10.0, (double)-digits);
    return nearbyint(f / unit) * unit;
}

static bool round_int(struct jrun *run, int64_t i, int64_t digits, struct jv *out)
{
    __int128 unit = 1;
    if (digits < -18)
        digits = -19;
    for (; digits < 0; digits++)
        unit *= 10;
    __int128 rest = i % unit, half = unit / 2, whole = i - rest;
    __int128 size = rest < 0 ? -rest : rest;
    bool odd = (whole / unit) % 2 != 0;
    if (unit > 1 && (size > half || (size == half && odd)))
        whole += rest < 0 ? -unit : unit;
    if (whole > INT64_MAX || whole < INT64_MIN)
        return jrun_fail(run, "integer overflow: the result does not fit into 64 bits");
    *out = JV_INT((int64_t)whole);
    return true;
}

FILTER(filter_round)
{
    static const char *const names[] = {"precision", "method"};
    struct jv a[2];
    int64_t digits;
    struct str method = STR("common");
    if (!jargs_bind(run, args, "round", names, 2, 0, a) || !jarg_int(run, "round", &a[0], 0, &digits) ||
        (a[1].kind != J_MISSING && !jarg_str(run, "round", &a[1], &method)))
        return false;
    bool ceiling = str_equal(method, STR("ceil")), down = str_equal(method, STR("floor"));
    if (!ceiling && !down && !str_equal(method, STR("common")))
        return jrun_fail(run, "round: method must be common, ceil or floor");
    if (v->kind == J_UNDEFINED)
        return jv_undefined_fail(run, v);
    if (!jv_is_number(v))
        return jrun_fail(run, "type %s doesn't define __round__ method", jv_type_name(v));
    if (!ceiling && !down) {
        if (v->kind != J_FLOAT)
            return round_int(run, jv_int(v), digits, out);
        *out = JV_FLOAT(round_float(v->f, digits));
        return true;
    }
    double unit = pow(10.0, (double)digits), x = jv_double(v) * unit;
    if (!isfinite(x))
        return jrun_fail(run, "cannot round a number that is not finite");
    *out = JV_FLOAT((ceiling ? ceil(x) : floor(x)) / unit);
    if (out->f == 0)
        out->f = 0.0;
    return true;
}

FILTER(filter_filesizeformat)
{
    static const char *const names[] = {"binary"};
    static const char letters[] = "kMGTPEZY";
    struct jv a;
    double f, unit;
    struct jtext t = {.run = run};
    if (!jargs_bind(run, args, "filesizeformat", names, 1, 0, &a))
        return false;
    if (jv_is_number(v))
        f = jv_double(v);
    else if (v->kind != J_STR || !jstr_to_float(v->s, &f))
        return jrun_fail(run, "filesizeformat needs a number, not '%s'", jv_type_name(v));
    bool binary = jv_truth(&a);
    double base = binary ? 1024 : 1000;
    if (f == 1) {
        jtext_add(&t, STR("1 Byte"));
    } else if (f < base) {
        jtext_printf(&t, "%" PRId64 " Bytes", (int64_t)(f > -9e18 ? f : 0));
    } else {
        int i = 0;
        for (unit = base * base; i < 7 && f >= unit; i++)
            unit *= base;
        char letter = letters[i] == 'k' && binary ? 'K' : letters[i];
        jtext_printf(&t, "%.1f %c%sB", base * f / unit, letter, binary ? "i" : "");
    }
    *out = jtext_value(&t);
    return !t.failed;
}

/* ---- others ------------------------------------------------------------------------------------------------------ */

FILTER(filter_default)
{
    static const char *const names[] = {"default_value", "boolean"};
    struct jv a[2];
    if (!jargs_bind(run, args, "default", names, 2, 0, a))
        return false;
    *out = *v;
    if (v->kind == J_UNDEFINED || (jv_truth(&a[1]) && !jv_truth(v)))
        *out = a[0].kind == J_MISSING ? JV_STR(STR("")) : a[0];
    return true;
}

static bool separator(struct jrun *run, const struct jv *list, size_t i, struct str *out)
{
    if (list->list.items[i].kind != J_STR)
        return jrun_fail(run, "tojson: separators must be strings");
    *out = list->list.items[i].s;
    return true;
}

FILTER(filter_tojson)
{
    static const char *const names[] = {"ensure_ascii", "indent", "separators", "sort_keys"};
    struct jv a[4];
    struct jtext t = {.run = run};
    struct jjson_style style = {.item_separator = STR(", "), .key_separator = STR(": ")};
    if (!jargs_bind(run, args, "tojson", names, 4, 0, a))
        return false;
    style.ascii = jv_truth(&a[0]);
    style.sort_keys = jv_truth(&a[3]);
    style.indented = a[1].kind != J_MISSING && a[1].kind != J_NONE;
    if (style.indented) {
        int64_t width = 0;
        style.item_separator = STR(",");
        if (a[1].kind == J_STR) {
            style.indent = a[1].s;
        } else {
            if (!jarg_int(run, "tojson", &a[1], 0, &width))
                return false;
            if (width > JINJA_PAD_MAX)
                return jrun_fail(run, "tojson: an indent of more than %d is not supported", JINJA_PAD_MAX);
            width = width > 0 ? width : 0;
            char *spaces = jrun_alloc(run, (size_t)width, 1);
            if (!spaces)
                return false;
            memset(spaces, ' ', (size_t)width);
            style.indent = (struct str){spaces, (size_t)width};
        }
    }
    if (a[2].kind != J_MISSING && a[2].kind != J_NONE) {
        if ((a[2].kind != J_LIST && a[2].kind != J_TUPLE) || a[2].list.n != 2)
            return jrun_fail(run, "tojson: separators must be a pair of strings");
        if (!separator(run, &a[2], 0, &style.item_separator) || !separator(run, &a[2], 1, &style.key_separator))
            return false;
    }
    if (!jprint_json(&t, v, &style, 0) || t.failed)
        return false;
    *out = jtext_value(&t);
    return true;
}

FILTER(filter_attr)
{
    static const char *const names[] = {"name"};
    struct jv name, member;
    struct str s;
    bool found = false;
    if (!jargs_bind(run, args, "attr", names, 1, 1, &name) || !jarg_str(run, "attr", &name, &s))
        return false;
    if (v->kind == J_UNDEFINED)
        return jv_undefined_fail(run, v);
    if (v->kind == J_DICT) {
        /* attributes only: members are hidden by looking at an empty dictionary */
        struct jdict *empty = jdict_new(run, 0);
        if (!empty)
            return false;
        struct jv bare = JV_DICT(empty);
        if (!jinja_getattr(run, &bare, s, &member))
            return false;
        found = member.kind == J_METHOD;
    } else {
        found = true;
    }
    if (!found) {
        *out = (struct jv){.kind = J_UNDEFINED, .flags = J_OF_OBJECT, .aux = v->kind, .s = s};
        return true;
    }
    return jinja_getattr(run, v, s, out);
}

FILTER(filter_pprint)
{
    struct jtext t = {.run = run};
    if (!no_args(run, "pprint", args) || !jprint_repr(&t, v, 0))
        return false;
    *out = jtext_value(&t);
    if (t.len > 80)
        return jrun_fail(run, "pprint: values of more than 80 characters are not supported");
    return !t.failed;
}

FILTER(filter_refused)
{
    return jrun_fail(run, "this filter is not supported in chat templates");
}

const struct jfilter jinja_text_filters[] = {
    {"tojson", filter_tojson},
    {"trim", filter_trim},
    {"default", filter_default},
    {"d", filter_default},
    {"string", filter_string},
    {"upper", filter_upper},
    {"lower", filter_lower},
    {"title", filter_title},
    {"capitalize", filter_capitalize},
    {"replace", filter_replace},
    {"indent", filter_indent},
    {"safe", filter_safe},
    {"escape", filter_escape},
    {"e", filter_escape},
    {"forceescape", filter_forceescape},
    {"int", filter_int},
    {"float", filter_float},
    {"round", filter_round},
    {"abs", filter_abs},
    {"format", filter_format},
    {"center", filter_center},
    {"truncate", filter_truncate},
    {"wordcount", filter_wordcount},
    {"striptags", filter_striptags},
    {"urlencode", filter_urlencode},
    {"filesizeformat", filter_filesizeformat},
    {"attr", filter_attr},
    {"pprint", filter_pprint},
    {"random", filter_refused},
    {"urlize", filter_refused},
    {"wordwrap", filter_refused},
    {"xmlattr", filter_refused},
    {NULL, NULL},
};

const struct jfilter *jinja_find_filter(struct str name)
{
    const struct jfilter *const tables[] = {jinja_text_filters, jinja_seq_filters};
    for (int i = 0; i < 2; i++)
        for (const struct jfilter *f = tables[i]; f->name; f++)
            if (str_equal(name, str_from(f->name)))
                return f;
    return NULL;
}

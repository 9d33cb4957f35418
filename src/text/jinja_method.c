/* Methods of text, dictionaries, sequences and numbers. */
#include "text/jinja.h"

#include <math.h>

#define METHOD(name) static bool name(struct jrun *run, const struct jv *self, const struct jargs *args, struct jv *out)

static bool arity(struct jrun *run, const char *fn, const struct jargs *args, size_t least, size_t most)
{
    if (args->n_kw == 0 && args->n_pos >= least && args->n_pos <= most)
        return true;
    if (args->n_kw)
        return jrun_fail(run, "%s() takes no keyword arguments", fn);
    return jrun_fail(run, "%s() takes %zu to %zu arguments, not %zu", fn, least, most, args->n_pos);
}

static struct jv text_like(const struct jv *self, struct str s)
{
    struct jv v = JV_STR(s);
    v.flags = self->flags & J_MARKUP;
    return v;
}

/* ---- cutting ----------------------------------------------------------------------------------------------------- */

static bool strip(struct jrun *run, const struct jv *self, const struct jargs *args, const char *fn, char side, struct jv *out)
{
    struct str chars;
    bool given = args->n_pos && args->pos[0].kind != J_NONE;
    if (!arity(run, fn, args, 0, 1) || (given && !jarg_str(run, fn, &args->pos[0], &chars)))
        return false;
    *out = text_like(self, STR(""));
    return jstr_strip_set(run, self->s, given ? &chars : NULL, side, &out->s);
}

METHOD(str_strip)
{
    return strip(run, self, args, "strip", 'b', out);
}

METHOD(str_lstrip)
{
    return strip(run, self, args, "lstrip", 'l', out);
}

METHOD(str_rstrip)
{
    return strip(run, self, args, "rstrip", 'r', out);
}

static bool add_part(struct jrun *run, struct jbuilder *b, const struct jv *self, size_t from, size_t to)
{
    struct jv part = text_like(self, (struct str){self->s.ptr + from, to - from});
    return jbuilder_add(run, b, &part);
}

static bool split_space(struct jrun *run, const struct jv *self, int64_t most, struct jbuilder *b)
{
    struct str rest = jstr_strip(self->s, NULL, 'l');
    while (rest.len) {
        size_t end = 0, next = 0, at = (size_t)(rest.ptr - self->s.ptr);
        if (most-- == 0)
            return add_part(run, b, self, at, self->s.len);
        while (next < rest.len && !jstr_is_space(str_utf8_next(rest, &next)))
            end = next;
        if (!add_part(run, b, self, at, at + end))
            return false;
        rest = jstr_strip((struct str){rest.ptr + end, rest.len - end}, NULL, 'l');
    }
    return true;
}

/* From the right; parts come in reverse. */
static bool rsplit_space(struct jrun *run, const struct jv *self, int64_t most, struct jbuilder *b)
{
    struct str rest = jstr_strip(self->s, NULL, 'r');
    while (rest.len) {
        size_t start = rest.len, from = (size_t)(rest.ptr - self->s.ptr);
        if (most-- == 0)
            return add_part(run, b, self, 0, rest.len);
        while (start > 0) {
            size_t prev = start - 1, at;
            while (prev > 0 && ((unsigned char)rest.ptr[prev] & 0xC0) == 0x80)
                prev--;
            at = prev;
            if (jstr_is_space(str_utf8_next(rest, &at)))
                break;
            start = prev;
        }
        if (!add_part(run, b, self, from + start, from + rest.len))
            return false;
        rest = jstr_strip((struct str){rest.ptr, start}, NULL, 'r');
    }
    return true;
}

static bool split_at(struct jrun *run, const struct jv *self, struct str sep, int64_t most, struct jbuilder *b)
{
    size_t pos = 0, at;
    while (most-- != 0 && jstr_find(self->s, sep, pos, &at)) {
        if (!add_part(run, b, self, pos, at))
            return false;
        pos = at + sep.len;
    }
    return add_part(run, b, self, pos, self->s.len);
}

static bool rsplit_at(struct jrun *run, const struct jv *self, struct str sep, int64_t most, struct jbuilder *b)
{
    struct str back, key;
    size_t len = self->s.len, pos = 0, at;
    if (!jstr_reversed(run, self->s, &back) || !jstr_reversed(run, sep, &key))
        return false;
    while (most-- != 0 && jstr_find(back, key, pos, &at)) {
        if (!add_part(run, b, self, len - at, len - pos))
            return false;
        pos = at + sep.len;
    }
    return add_part(run, b, self, 0, len - pos);
}

static bool split(struct jrun *run, const struct jv *self, const struct jargs *args, bool right, struct jv *out)
{
    static const char *const names[] = {"sep", "maxsplit"};
    struct jv v[2];
    struct str sep = STR("");
    int64_t most;
    struct jbuilder b = {0};
    if (!jargs_bind(run, args, "split()", names, 2, 0, v) || !jarg_int(run, "split()", &v[1], -1, &most) ||
        !jrun_bytes(run, self->s.len))
        return false;
    if (most < 0)
        most = -1;
    bool spaces = v[0].kind == J_MISSING || v[0].kind == J_NONE;
    if (!spaces && !jarg_str(run, "split()", &v[0], &sep))
        return false;
    if (!spaces && sep.len == 0)
        return jrun_fail(run, "split(): empty separator");
    bool ok = spaces ? (right ? rsplit_space(run, self, most, &b) : split_space(run, self, most, &b))
                     : (right ? rsplit_at(run, self, sep, most, &b) : split_at(run, self, sep, most, &b));
    for (size_t i = 0; right && i < b.n / 2; i++) {
        struct jv swap = b.items[i];
        b.items[i] = b.items[b.n - 1 - i];
        b.items[b.n - 1 - i] = swap;
    }
    *out = JV_LIST(jbuilder_list(&b));
    return ok;
}

METHOD(str_split)
{
    return split(run, self, args, false, out);
}

METHOD(str_rsplit)
{
    return split(run, self, args, true, out);
}

METHOD(str_splitlines)
{
    static const char *const names[] = {"keepends"};
    struct jv keep;
    *out = JV_LIST(((struct jlist){NULL, 0}));
    return jargs_bind(run, args, "splitlines()", names, 1, 0, &keep) &&
           jstr_lines(run, self->s, jv_truth(&keep), self->flags & J_MARKUP, &out->list);
}

static bool partition(struct jrun *run, const struct jv *self, const struct jargs *args, bool right, struct jv *out)
{
    struct str sep;
    size_t at;
    if (!arity(run, "partition", args, 1, 1) || !jarg_str(run, "partition()", &args->pos[0], &sep))
        return false;
    if (sep.len == 0)
        return jrun_fail(run, "partition(): empty separator");
    bool found;
    if (!jrun_bytes(run, self->s.len) || (right && !jstr_rfind(run, self->s, sep, &at, &found)))
        return false;
    if (!right)
        found = jstr_find(self->s, sep, 0, &at);
    struct jbuilder b = {0};
    size_t len = self->s.len, cut = found ? at : right ? 0 : len, end = found ? at + sep.len : cut;
    if (!add_part(run, &b, self, 0, cut) || !add_part(run, &b, self, cut, end) || !add_part(run, &b, self, end, len))
        return false;
    *out = (struct jv){.kind = J_TUPLE, .list = jbuilder_list(&b)};
    return true;
}

METHOD(str_partition)
{
    return partition(run, self, args, false, out);
}

METHOD(str_rpartition)
{
    return partition(run, self, args, true, out);
}

METHOD(str_removeprefix)
{
    struct str s = self->s, what;
    if (!arity(run, "removeprefix", args, 1, 1) || !jarg_str(run, "removeprefix()", &args->pos[0], &what))
        return false;
    if (str_has_prefix(s, what))
        s = (struct str){s.ptr + what.len, s.len - what.len};
    *out = text_like(self, s);
    return true;
}

METHOD(str_removesuffix)
{
    struct str s = self->s, what;
    if (!arity(run, "removesuffix", args, 1, 1) || !jarg_str(run, "removesuffix()", &args->pos[0], &what))
        return false;
    if (str_has_suffix(s, what))
        s.len -= what.len;
    *out = text_like(self, s);
    return true;
}

/* ---- searching --------------------------------------------------------------------------------------------------- */

/* The part of self from args[1] to args[2], and where it begins (code points). *beyond: it begins behind the end. */
static bool window(struct jrun *run, const char *fn, const struct jv *self, const struct jargs *args, struct str *part,
                   int64_t *first, bool *beyond)
{
    int64_t start = 0, stop, n;
    *part = self->s;
    *first = 0;
    *beyond = false;
    if (!arity(run, fn, args, 1, 3))
        return false;
    if (args->n_pos == 1)
        return jrun_bytes(run, self->s.len);
    n = jv_length(run, self);
    stop = n;
    if (n < 0 || (args->pos[1].kind != J_NONE && !jarg_int(run, fn, &args->pos[1], 0, &start)))
        return false;
    if (args->n_pos == 3 && args->pos[2].kind != J_NONE && !jarg_int(run, fn, &args->pos[2], n, &stop))
        return false;
    start = start < 0 ? (start + n < 0 ? 0 : start + n) : start;
    stop = stop < 0 ? (stop + n < 0 ? 0 : stop + n) : stop > n ? n : stop;
    *beyond = start > n || start > stop;
    if (*beyond)
        start = stop = n;
    size_t from = jstr_offset(self->s, (size_t)start), to = jstr_offset(self->s, (size_t)stop);
    *part = (struct str){self->s.ptr + from, to - from};
    *first = start;
    return true;
}

static bool find(struct jrun *run, const struct jv *self, const struct jargs *args, const char *fn, bool right, int64_t *at)
{
    struct str part, what;
    int64_t first;
    size_t byte;
    bool beyond;
    if (!window(run, fn, self, args, &part, &first, &beyond) || !jarg_str(run, fn, &args->pos[0], &what))
        return false;
    *at = -1;
    bool found = !beyond && !right && jstr_find(part, what, 0, &byte);
    if (!beyond && right && !jstr_rfind(run, part, what, &byte, &found))
        return false;
    if (found)
        *at = first + (int64_t)jstr_count((struct str){part.ptr, byte});
    return true;
}

METHOD(str_find)
{
    *out = JV_INT(0);
    return find(run, self, args, "find", false, &out->i);
}

METHOD(str_rfind)
{
    *out = JV_INT(0);
    return find(run, self, args, "rfind", true, &out->i);
}

METHOD(str_index)
{
    *out = JV_INT(0);
    return find(run, self, args, "index", false, &out->i) && (out->i >= 0 || jrun_fail(run, "substring not found"));
}

METHOD(str_rindex)
{
    *out = JV_INT(0);
    return find(run, self, args, "rindex", true, &out->i) && (out->i >= 0 || jrun_fail(run, "substring not found"));
}

METHOD(str_count)
{
    struct str part, what;
    int64_t first;
    size_t at, pos = 0;
    bool beyond;
    if (!window(run, "count", self, args, &part, &first, &beyond) || !jarg_str(run, "count", &args->pos[0], &what))
        return false;
    *out = JV_INT(0);
    if (what.len == 0)
        out->i = beyond ? 0 : (int64_t)jstr_count(part) + 1;
    for (; what.len && !beyond && jstr_find(part, what, pos, &at); pos = at + what.len)
        out->i++;
    return true;
}

static bool affix(struct jrun *run, const struct jv *self, const struct jargs *args, const char *fn,
                  bool (*has)(struct str, struct str), struct jv *out)
{
    struct str part;
    int64_t first;
    bool beyond;
    if (!window(run, fn, self, args, &part, &first, &beyond))
        return false;
    *out = JV_BOOL(false);
    const struct jv *what = &args->pos[0];
    if (what->kind == J_STR) {
        out->b = !beyond && has(part, what->s);
        return true;
    }
    if (what->kind != J_TUPLE)
        return jrun_fail(run, "%s first arg must be str or a tuple of str, not %s", fn, jv_type_name(what));
    for (size_t i = 0; i < what->list.n && !out->b; i++) {
        if (what->list.items[i].kind != J_STR)
            return jrun_fail(run, "tuple for %s must only contain str, not %s", fn, jv_type_name(&what->list.items[i]));
        out->b = !beyond && has(part, what->list.items[i].s);
    }
    return true;
}

METHOD(str_startswith)
{
    return affix(run, self, args, "startswith", str_has_prefix, out);
}

METHOD(str_endswith)
{
    return affix(run, self, args, "endswith", str_has_suffix, out);
}

/* ---- making ------------------------------------------------------------------------------------------------------ */

METHOD(str_replace)
{
    struct str old, new_text;
    int64_t count = -1;
    if (!arity(run, "replace", args, 2, 3) || !jarg_str(run, "replace()", &args->pos[0], &old) ||
        !jarg_str(run, "replace()", &args->pos[1], &new_text) ||
        (args->n_pos == 3 && !jarg_int(run, "replace()", &args->pos[2], -1, &count)))
        return false;
    if ((self->flags & J_MARKUP) && !(args->pos[1].flags & J_MARKUP) && !jinja_escape(run, new_text, &new_text))
        return false;
    *out = text_like(self, STR(""));
    return jstr_replace(run, self->s, old, new_text, count, &out->s);
}

static bool change_case(struct jrun *run, const struct jv *self, const struct jargs *args, const char *fn, enum jcase how,
                        struct jv *out)
{
    *out = text_like(self, STR(""));
    return arity(run, fn, args, 0, 0) && jstr_case(run, self->s, how, &out->s);
}

METHOD(str_upper)
{
    return change_case(run, self, args, "upper", CASE_UPPER, out);
}

METHOD(str_lower)
{
    return change_case(run, self, args, "lower", CASE_LOWER, out);
}

METHOD(str_title)
{
    return change_case(run, self, args, "title", CASE_TITLE, out);
}

METHOD(str_capitalize)
{
    return change_case(run, self, args, "capitalize", CASE_CAPITALIZE, out);
}

METHOD(str_swapcase)
{
    return change_case(run, self, args, "swapcase", CASE_SWAP, out);
}

METHOD(str_casefold)
{
    return change_case(run, self, args, "casefold", CASE_FOLD, out);
}

METHOD(str_join)
{
    struct jtext t = {.run = run};
    struct jlist list;
    if (!arity(run, "join", args, 1, 1))
        return false;
    if (!jiter_possible(&args->pos[0]))
        return jrun_fail(run, "join(): can only join an iterable");
    if (!jiter_list(run, &args->pos[0], &list))
        return false;
    for (size_t i = 0; i < list.n; i++) {
        struct str s = list.items[i].s;
        if (list.items[i].kind != J_STR)
            return jrun_fail(run, "join(): sequence item %zu: expected str instance, %s found", i,
                             jv_type_name(&list.items[i]));
        if ((self->flags & J_MARKUP) && !(list.items[i].flags & J_MARKUP) && !jinja_escape(run, s, &s))
            return false;
        if (i)
            jtext_add(&t, self->s);
        jtext_add(&t, s);
    }
    *out = text_like(self, jtext_value(&t).s);
    return !t.failed;
}

static bool pad(struct jtext *t, struct str fill, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (!jtext_add(t, fill))
            return false;
    return true;
}

static bool justify(struct jrun *run, const struct jv *self, const struct jargs *args, const char *fn, char side,
                    struct jv *out)
{
    struct str fill = STR(" ");
    struct jtext t = {.run = run};
    int64_t width, n;
    if (!arity(run, fn, args, 1, 2) || !jarg_int(run, fn, &args->pos[0], 0, &width) ||
        (args->n_pos == 2 && !jarg_str(run, fn, &args->pos[1], &fill)))
        return false;
    if (jstr_count(fill) != 1)
        return jrun_fail(run, "%s(): the fill character must be exactly one character long", fn);
    if ((n = jv_length(run, self)) < 0)
        return false;
    if (width > JINJA_PAD_MAX)
        return jrun_fail(run, "%s(): a width of more than %d is not supported", fn, JINJA_PAD_MAX);
    int64_t extra = width > n ? width - n : 0, left = side == 'r' ? extra : 0;
    if (side == 'c')
        left = extra / 2 + (extra & width & 1);
    *out = text_like(self, STR(""));
    if (!pad(&t, fill, left) || !jtext_add(&t, self->s) || !pad(&t, fill, extra - left))
        return false;
    out->s = jtext_value(&t).s;
    return true;
}

METHOD(str_ljust)
{
    return justify(run, self, args, "ljust", 'l', out);
}

METHOD(str_rjust)
{
    return justify(run, self, args, "rjust", 'r', out);
}

METHOD(str_center)
{
    return justify(run, self, args, "center", 'c', out);
}

METHOD(str_zfill)
{
    struct jtext t = {.run = run};
    int64_t width, n;
    if (!arity(run, "zfill", args, 1, 1) || !jarg_int(run, "zfill", &args->pos[0], 0, &width) || (n = jv_length(run, self)) < 0)
        return false;
    if (width > JINJA_PAD_MAX)
        return jrun_fail(run, "zfill(): a width of more than %d is not supported", JINJA_PAD_MAX);
    size_t sign = self->s.len && (self->s.ptr[0] == '+' || self->s.ptr[0] == '-');
    if (!jtext_add(&t, (struct str){self->s.ptr, sign}) || !pad(&t, STR("0"), width - n) ||
        !jtext_add(&t, (struct str){self->s.ptr + sign, self->s.len - sign}))
        return false;
    *out = text_like(self, jtext_value(&t).s);
    return true;
}

METHOD(str_expandtabs)
{
    static const char *const names[] = {"tabsize"};
    struct jtext t = {.run = run};
    struct jv v;
    int64_t size, col = 0;
    if (!jargs_bind(run, args, "expandtabs()", names, 1, 0, &v) || !jarg_int(run, "expandtabs()", &v, 8, &size))
        return false;
    if (size > JINJA_PAD_MAX)
        return jrun_fail(run, "expandtabs(): more than %d columns are not supported", JINJA_PAD_MAX);
    for (size_t i = 0; i < self->s.len && !t.failed;) {
        size_t at = i;
        uint32_t c = str_utf8_next(self->s, &i);
        if (c == '\t') {
            int64_t n = size > 0 ? size - col % size : 0;
            pad(&t, STR(" "), n);
            col += n;
            continue;
        }
        col = c == '\n' || c == '\r' ? 0 : col + 1;
        jtext_add(&t, (struct str){self->s.ptr + at, i - at});
    }
    *out = text_like(self, jtext_value(&t).s);
    return !t.failed;
}

static bool is_class(struct jrun *run, const struct jv *self, const struct jargs *args, enum jclass class, struct jv *out)
{
    if (!arity(run, "is...", args, 0, 0) || !jrun_bytes(run, self->s.len))
        return false;
    *out = JV_BOOL(jstr_is(self->s, class));
    return true;
}

#define CLASS_METHOD(name, class) \
    METHOD(name) \
    { \
        return is_class(run, self, args, class, out); \
    }

CLASS_METHOD(str_isalpha, CLASS_ALPHA)
CLASS_METHOD(str_isdigit, CLASS_DIGIT)
CLASS_METHOD(str_isdecimal, CLASS_DECIMAL)
CLASS_METHOD(str_isnumeric, CLASS_NUMERIC)
CLASS_METHOD(str_isalnum, CLASS_ALNUM)
CLASS_METHOD(str_isspace, CLASS_SPACE)
CLASS_METHOD(str_isupper, CLASS_UPPER)
CLASS_METHOD(str_islower, CLASS_LOWER)
CLASS_METHOD(str_istitle, CLASS_TITLE)
CLASS_METHOD(str_isprintable, CLASS_PRINTABLE)
CLASS_METHOD(str_isascii, CLASS_ASCII)
CLASS_METHOD(str_isidentifier, CLASS_IDENTIFIER)

METHOD(str_format_map)
{
    struct jargs inner = {0};
    if (!arity(run, "format_map", args, 1, 1))
        return false;
    if (args->pos[0].kind != J_DICT)
        return jrun_fail(run, "format_map() needs a mapping, not %s", jv_type_name(&args->pos[0]));
    const struct jdict *d = args->pos[0].dict;
    struct str *names = jrun_alloc(run, d->n, sizeof *names);
    struct jv *kw = jrun_alloc(run, d->n, sizeof *kw);
    if (!names || !kw)
        return false;
    for (size_t i = 0; i < d->n; i++) {
        if (d->pairs[i].key.kind != J_STR)
            continue;
        names[inner.n_kw] = d->pairs[i].key.s;
        kw[inner.n_kw++] = d->pairs[i].value;
    }
    inner.names = names;
    inner.kw = kw;
    return jinja_str_format(run, self, &inner, out);
}

const struct jmethod_def jinja_str_methods[] = {
    {"strip", str_strip},
    {"lstrip", str_lstrip},
    {"rstrip", str_rstrip},
    {"split", str_split},
    {"rsplit", str_rsplit},
    {"splitlines", str_splitlines},
    {"startswith", str_startswith},
    {"endswith", str_endswith},
    {"replace", str_replace},
    {"upper", str_upper},
    {"lower", str_lower},
    {"title", str_title},
    {"capitalize", str_capitalize},
    {"swapcase", str_swapcase},
    {"casefold", str_casefold},
    {"join", str_join},
    {"find", str_find},
    {"rfind", str_rfind},
    {"index", str_index},
    {"rindex", str_rindex},
    {"count", str_count},
    {"format", jinja_str_format},
    {"format_map", str_format_map},
    {"partition", str_partition},
    {"rpartition", str_rpartition},
    {"removeprefix", str_removeprefix},
    {"removesuffix", str_removesuffix},
    {"ljust", str_ljust},
    {"rjust", str_rjust},
    {"center", str_center},
    {"zfill", str_zfill},
    {"expandtabs", str_expandtabs},
    {"isalpha", str_isalpha},
    {"isdigit", str_isdigit},
    {"isdecimal", str_isdecimal},
    {"isnumeric", str_isnumeric},
    {"isalnum", str_isalnum},
    {"isspace", str_isspace},
    {"isupper", str_isupper},
    {"islower", str_islower},
    {"istitle", str_istitle},
    {"isprintable", str_isprintable},
    {"isascii", str_isascii},
    {"isidentifier", str_isidentifier},
    {NULL, NULL},
};

/* ---- dictionaries ------------------------------------------------------------------------------------------------ */

static bool view(struct jrun *run, const struct jv *self, const struct jargs *args, char what, struct jv *out)
{
    struct jview *v = jrun_alloc(run, 1, sizeof *v);
    if (!v || !arity(run, "keys, values, items", args, 0, 0))
        return false;
    *v = (struct jview){self->dict, what};
    *out = (struct jv){.kind = J_VIEW, .view = v};
    return true;
}

METHOD(dict_keys)
{
    return view(run, self, args, 'k', out);
}

METHOD(dict_values)
{
    return view(run, self, args, 'v', out);
}

METHOD(dict_items)
{
    return view(run, self, args, 'i', out);
}

METHOD(dict_get)
{
    bool found;
    if (!arity(run, "get", args, 1, 2) || !jdict_get(run, self->dict, &args->pos[0], out, &found))
        return false;
    if (!found)
        *out = args->n_pos == 2 ? args->pos[1] : JV_NONE;
    return true;
}

METHOD(dict_copy)
{
    *out = *self;
    return arity(run, "copy", args, 0, 0);
}

const struct jmethod_def jinja_dict_methods[] = {
    {"get", dict_get}, {"keys", dict_keys}, {"values", dict_values}, {"items", dict_items}, {"copy", dict_copy}, {NULL, NULL},
};

/* ---- sequences and numbers --------------------------------------------------------------------------------------- */

METHOD(seq_index)
{
    struct jlist list;
    int64_t start = 0, stop, n;
    if (!arity(run, "index", args, 1, 3) || !jiter_list(run, self, &list))
        return false;
    n = stop = (int64_t)list.n;
    if ((args->n_pos > 1 && !jarg_int(run, "index()", &args->pos[1], 0, &start)) ||
        (args->n_pos > 2 && !jarg_int(run, "index()", &args->pos[2], n, &stop)))
        return false;
    start = start < 0 ? (start + n < 0 ? 0 : start + n) : start;
    stop = stop < 0 ? stop + n : stop > n ? n : stop;
    for (int64_t i = start; i < stop; i++) {
        bool equal;
        if (!jv_equal(run, &list.items[i], &args->pos[0], 0, &equal))
            return false;
        if (equal) {
            *out = JV_INT(i);
            return true;
        }
    }
    return jrun_fail(run, "index(): the value is not in the list");
}

METHOD(seq_count)
{
    struct jlist list;
    if (!arity(run, "count", args, 1, 1) || !jiter_list(run, self, &list))
        return false;
    *out = JV_INT(0);
    for (size_t i = 0; i < list.n; i++) {
        bool equal;
        if (!jv_equal(run, &list.items[i], &args->pos[0], 0, &equal))
            return false;
        out->i += equal;
    }
    return true;
}

METHOD(seq_copy)
{
    *out = *self;
    return arity(run, "copy", args, 0, 0);
}

const struct jmethod_def jinja_seq_methods[] = {{"index", seq_index}, {"count", seq_count}, {"copy", seq_copy}, {NULL, NULL}};

METHOD(number_is_integer)
{
    if (!arity(run, "is_integer", args, 0, 0))
        return false;
    if (self->kind != J_FLOAT)
        return jrun_fail(run, "'int object' has no attribute 'is_integer'");
    *out = JV_BOOL(isfinite(self->f) && self->f == floor(self->f));
    return true;
}

METHOD(number_bit_length)
{
    if (!arity(run, "bit_length", args, 0, 0))
        return false;
    if (self->kind == J_FLOAT)
        return jrun_fail(run, "'float object' has no attribute 'bit_length'");
    uint64_t x = jv_int(self) < 0 ? 0 - (uint64_t)jv_int(self) : (uint64_t)jv_int(self);
    *out = JV_INT(0);
    for (; x; x >>= 1)
        out->i++;
    return true;
}

const struct jmethod_def jinja_number_methods[] = {
    {"is_integer", number_is_integer}, {"bit_length", number_bit_length}, {NULL, NULL}};

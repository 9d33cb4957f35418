/* Values: building, truth, length, equality, order, hashing, dictionaries, text under construction. */
#include "text/jinja.h"

#include <math.h>
#include <stdio.h>

struct jv jv_undefined_hint(const char *hint)
{
    return (struct jv){.kind = J_UNDEFINED, .flags = J_HINT, .s = str_from(hint)};
}

struct jv jv_undefined_name(struct str name)
{
    return (struct jv){.kind = J_UNDEFINED, .s = name};
}

static const char *kind_name(enum jkind kind)
{
    static const char *const names[] = {
        [J_MISSING] = "missing", [J_UNDEFINED] = "Undefined", [J_NONE] = "NoneType", [J_BOOL] = "bool",
        [J_INT] = "int",         [J_FLOAT] = "float",         [J_STR] = "str",       [J_LIST] = "list",
        [J_TUPLE] = "tuple",     [J_DICT] = "dict",           [J_RANGE] = "range",   [J_VIEW] = "dict view",
        [J_ITER] = "generator",  [J_NAMESPACE] = "Namespace", [J_MACRO] = "Macro",   [J_FUNC] = "function",
        [J_METHOD] = "method",   [J_LOOP] = "LoopContext",    [J_CYCLER] = "Cycler", [J_JOINER] = "Joiner",
        [J_SLICE] = "slice",
    };
    return names[kind];
}

const char *jv_type_name(const struct jv *v)
{
    return v->kind == J_STR && (v->flags & J_MARKUP) ? "Markup" : kind_name(v->kind);
}

bool jv_undefined_fail(struct jrun *run, const struct jv *v)
{
    int n = v->s.len < 200 ? (int)v->s.len : 200;
    const char *of = v->aux == J_NONE ? "None" : kind_name(v->aux), *object = v->aux == J_NONE ? "" : " object";
    if (v->flags & J_HINT)
        return jrun_fail(run, "%.*s", n, v->s.ptr);
    if (v->flags & J_OF_OBJECT)
        return jrun_fail(run, "'%s%s' has no attribute '%.*s'", of, object, n, v->s.ptr);
    if (v->flags & J_OF_ELEMENT)
        return jrun_fail(run, "%s%s has no element %.*s", of, object, n, v->s.ptr);
    return jrun_fail(run, "'%.*s' is undefined", n, v->s.ptr);
}

bool jv_truth(const struct jv *v)
{
    switch ((enum jkind)v->kind) {
    case J_MISSING:
    case J_UNDEFINED:
    case J_NONE: return false;
    case J_BOOL: return v->b;
    case J_INT: return v->i != 0;
    case J_FLOAT: return v->f != 0;
    case J_STR: return v->s.len > 0;
    case J_LIST:
    case J_TUPLE: return v->list.n > 0;
    case J_DICT: return v->dict->n > 0;
    case J_RANGE: return v->range->n > 0;
    case J_VIEW: return v->view->dict->n > 0;
    default: return true;
    }
}

int64_t jv_length(struct jrun *run, const struct jv *v)
{
    switch ((enum jkind)v->kind) {
    case J_UNDEFINED: return 0;
    case J_STR: return jrun_bytes(run, v->s.len) ? (int64_t)jstr_count(v->s) : -1;
    case J_LIST:
    case J_TUPLE: return (int64_t)v->list.n;
    case J_DICT: return (int64_t)v->dict->n;
    case J_RANGE: return v->range->n;
    case J_VIEW: return (int64_t)v->view->dict->n;
    default: return -1;
    }
}

/* ---- dictionaries ------------------------------------------------------------------------------------------------ */

#define SMALL_DICT 8

struct jdict *jdict_new(struct jrun *run, size_t n_expected)
{
    struct jdict *d = jrun_alloc(run, 1, sizeof *d);
    if (!d)
        return NULL;
    d->cap = n_expected ? n_expected : 4;
    d->pairs = jrun_alloc(run, d->cap, sizeof *d->pairs);
    return d->pairs ? d : NULL;
}

static bool rebuild_table(struct jrun *run, struct jdict *d, size_t n_table)
{
    d->table = jrun_alloc(run, n_table, sizeof *d->table);
    d->n_table = n_table;
    if (!d->table)
        return false;
    for (size_t i = 0; i < d->n; i++) {
        size_t at = d->pairs[i].hash & (n_table - 1);
        while (d->table[at])
            at = (at + 1) & (n_table - 1);
        d->table[at] = (uint32_t)i + 1;
    }
    return true;
}

static bool same_key(struct jrun *run, const struct jpair *pair, const struct jv *key, uint64_t hash, bool *same)
{
    *same = false;
    if (pair->hash != hash)
        return true;
    if (key->kind == J_STR && pair->key.kind == J_STR) {
        *same = str_equal(key->s, pair->key.s);
        return true;
    }
    return jv_equal(run, &pair->key, key, 0, same);
}

/* Index of the pair with that key, or d->n. */
static bool find_pair(struct jrun *run, const struct jdict *d, const struct jv *key, uint64_t hash, size_t *index)
{
    bool same;
    if (!d->table) {
        for (*index = 0; *index < d->n; ++*index) {
            if (!same_key(run, &d->pairs[*index], key, hash, &same))
                return false;
            if (same)
                return true;
        }
        return true;
    }
    size_t probes = 0;
    for (size_t at = hash & (d->n_table - 1); d->table[at]; at = (at + 1) & (d->n_table - 1)) {
        if ((++probes & 7) == 0 && !jrun_steps(run, 1))
            return false;
        *index = d->table[at] - 1;
        if (!same_key(run, &d->pairs[*index], key, hash, &same))
            return false;
        if (same)
            return true;
    }
    *index = d->n;
    return true;
}

static bool key_hash(struct jrun *run, const struct jv *key, uint64_t *hash)
{
    if (key->kind != J_STR)
        return jv_hash(run, key, 0, hash);
    *hash = str_hash(key->s);
    *hash ^= *hash >> 29;
    return jrun_bytes(run, key->s.len);
}

bool jdict_set(struct jrun *run, struct jdict *d, const struct jv *key, const struct jv *value)
{
    uint64_t hash;
    size_t i;
    if (!key_hash(run, key, &hash) || !find_pair(run, d, key, hash, &i))
        return false;
    if (i < d->n) {
        d->pairs[i].value = *value;
        return true;
    }
    if (d->n >= UINT32_MAX - 1)
        return jrun_fail(run, "a dictionary has too many members");
    if (d->n == d->cap) {
        struct jpair *pairs = jrun_alloc(run, d->cap * 2, sizeof *pairs);
        if (!pairs)
            return false;
        memcpy(pairs, d->pairs, d->n * sizeof *pairs);
        d->pairs = pairs;
        d->cap *= 2;
    }
    d->pairs[d->n++] = (struct jpair){*key, *value, hash};
    if (d->n <= SMALL_DICT)
        return true;
    if (!d->table || d->n * 2 > d->n_table) {
        size_t n_table = 32;
        while (n_table < d->n * 4)
            n_table *= 2;
        return rebuild_table(run, d, n_table);
    }
    size_t at = hash & (d->n_table - 1);
    while (d->table[at])
        at = (at + 1) & (d->n_table - 1);
    d->table[at] = (uint32_t)d->n;
    return true;
}

bool jdict_set_str(struct jrun *run, struct jdict *d, struct str key, const struct jv *value)
{
    return jdict_set(run, d, &JV_STR(key), value);
}

bool jdict_get(struct jrun *run, const struct jdict *d, const struct jv *key, struct jv *out, bool *found)
{
    uint64_t hash;
    size_t i;
    if (!key_hash(run, key, &hash) || !find_pair(run, d, key, hash, &i))
        return false;
    *found = i < d->n;
    if (*found)
        *out = d->pairs[i].value;
    return true;
}

/* False: absent (or failed, which comparing text cannot). */
bool jdict_get_str(struct jrun *run, const struct jdict *d, struct str key, struct jv *out)
{
    bool found;
    return jdict_get(run, d, &JV_STR(key), out, &found) && found;
}

/* ---- lists, text ------------------------------------------------------------------------------------------------- */

bool jbuilder_add(struct jrun *run, struct jbuilder *b, const struct jv *v)
{
    if (b->n == b->cap) {
        size_t cap = b->cap ? b->cap * 2 : 8;
        struct jv *items = jrun_alloc(run, cap, sizeof *items);
        if (!items)
            return false;
        if (b->n)
            memcpy(items, b->items, b->n * sizeof *items);
        b->items = items;
        b->cap = cap;
    }
    b->items[b->n++] = *v;
    return true;
}

bool jv_tuple2(struct jrun *run, const struct jv *a, const struct jv *b, struct jv *out)
{
    struct jv *items = jrun_alloc(run, 2, sizeof *items);
    if (!items)
        return false;
    items[0] = *a;
    items[1] = *b;
    *out = (struct jv){.kind = J_TUPLE, .list = {items, 2}};
    return true;
}

bool jtext_add(struct jtext *t, struct str s)
{
    if (t->failed || s.len == 0)
        return !t->failed;
    if (s.len > t->cap - t->len) {
        size_t cap = (t->len + s.len) * 2 + 32;
        char *ptr = jrun_alloc(t->run, cap, 1);
        if (!ptr) {
            t->failed = true;
            return false;
        }
        if (t->len)
            memcpy(ptr, t->ptr, t->len);
        t->failed = !jmarks_copied(t->run, ptr, (struct str){t->ptr, t->len});
        t->ptr = ptr;
        t->cap = cap;
    }
    memcpy(t->ptr + t->len, s.ptr, s.len);
    if (!jmarks_copied(t->run, t->ptr + t->len, s))
        t->failed = true;
    t->len += s.len;
    if (!jrun_bytes(t->run, s.len))
        t->failed = true;
    return !t->failed;
}

bool jtext_char(struct jtext *t, char c)
{
    return jtext_add(t, (struct str){&c, 1});
}

bool jtext_code(struct jtext *t, uint32_t code_point)
{
    char bytes[4];
    return jtext_add(t, (struct str){bytes, str_utf8_put(code_point, bytes)});
}

bool jtext_printf(struct jtext *t, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof text)
        return jrun_fail(t->run, "a formatted value is too long");
    return jtext_add(t, (struct str){text, (size_t)n});
}

/* ---- from JSON --------------------------------------------------------------------------------------------------- */

static bool array_from(struct jrun *run, const json_t *json, unsigned depth, struct jv *out)
{
    size_t n = json_array_size(json);
    struct jv *items = jrun_alloc(run, n, sizeof *items);
    if (!items)
        return false;
    for (size_t i = 0; i < n; i++)
        if (!jv_from_json(run, json_array_get(json, i), depth + 1, &items[i]))
            return false;
    *out = JV_LIST(((struct jlist){items, n}));
    return true;
}

static bool members_from(struct jrun *run, const json_t *json, unsigned depth, struct jv *out)
{
    struct jdict *d = jdict_new(run, json_object_size(json));
    if (!d)
        return false;
    for (void *it = json_object_iter((json_t *)json); it; it = json_object_iter_next((json_t *)json, it)) {
        struct jv value;
        struct str key = str_from(json_object_iter_key(it));
        if (!jv_from_json(run, json_object_iter_value(it), depth + 1, &value) || !jdict_set_str(run, d, key, &value))
            return false;
    }
    *out = JV_DICT(d);
    return true;
}

bool jv_from_json(struct jrun *run, const json_t *json, unsigned depth, struct jv *out)
{
    if (depth > JINJA_JSON_DEPTH_MAX)
        return jrun_fail(run, "the messages or tools are nested deeper than %u levels", JINJA_JSON_DEPTH_MAX);
    switch (json_typeof(json)) {
    case JSON_OBJECT: return members_from(run, json, depth, out);
    case JSON_ARRAY: return array_from(run, json, depth, out);
    case JSON_STRING: *out = JV_STR(((struct str){json_string_value(json), json_string_length(json)})); return true;
    case JSON_INTEGER: *out = JV_INT(json_integer_value(json)); return true;
    case JSON_REAL: *out = JV_FLOAT(json_real_value(json)); return true;
    case JSON_TRUE:
    case JSON_FALSE: *out = JV_BOOL(json_is_true(json)); return true;
    default: *out = JV_NONE; return true;
    }
}

/* ---- equality, order, hash --------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x)
{
    x ^= x >> 32;
    x *= 0x9E3779B97F4A7C15u;
    return x ^ x >> 29;
}

bool jv_hashable(const struct jv *v)
{
    if (v->kind == J_TUPLE) {
        for (size_t i = 0; i < v->list.n; i++)
            if (v->list.items[i].kind != J_TUPLE && !jv_hashable(&v->list.items[i]))
                return false;
        return true;
    }
    return v->kind != J_LIST && v->kind != J_DICT && v->kind != J_VIEW && v->kind != J_SLICE;
}

bool jv_hash(struct jrun *run, const struct jv *v, unsigned depth, uint64_t *hash)
{
    uint64_t h = 7;
    switch ((enum jkind)v->kind) {
    case J_STR: return key_hash(run, v, hash);
    case J_BOOL:
    case J_INT: *hash = mix((uint64_t)jv_int(v)); return true;
    case J_FLOAT:
        if (v->f >= -9.2e18 && v->f <= 9.2e18 && v->f == (double)(int64_t)v->f) {
            *hash = mix((uint64_t)(int64_t)v->f);
        } else {
            memcpy(&h, &v->f, sizeof h);
            *hash = mix(h);
        }
        return true;
    case J_TUPLE:
        if (depth > JINJA_VALUE_DEPTH_MAX)
            return jrun_fail(run, "a value is nested deeper than %u levels", JINJA_VALUE_DEPTH_MAX);
        for (size_t i = 0; i < v->list.n; i++) {
            uint64_t item;
            if (!jrun_steps(run, 1) || !jv_hash(run, &v->list.items[i], depth + 1, &item))
                return false;
            h = mix(h * 31 + item);
        }
        *hash = h;
        return true;
    case J_LIST:
    case J_DICT:
    case J_VIEW:
    case J_SLICE: return jrun_fail(run, "unhashable type: '%s'", jv_type_name(v));
    case J_NONE:
    case J_UNDEFINED: *hash = mix(v->kind); return true;
    default: *hash = mix((uint64_t)(uintptr_t)v->iter); return true;
    }
}

static bool lists_equal(struct jrun *run, const struct jlist *a, const struct jlist *b, unsigned depth, bool *equal)
{
    *equal = a->n == b->n;
    for (size_t i = 0; *equal && i < a->n; i++)
        if (!jv_equal(run, &a->items[i], &b->items[i], depth + 1, equal))
            return false;
    return true;
}

static bool dicts_equal(struct jrun *run, const struct jdict *a, const struct jdict *b, unsigned depth, bool *equal)
{
    *equal = a->n == b->n;
    for (size_t i = 0; *equal && i < a->n; i++) {
        struct jv other;
        bool found;
        if (!jdict_get(run, b, &a->pairs[i].key, &other, &found))
            return false;
        *equal = found;
        if (found && !jv_equal(run, &a->pairs[i].value, &other, depth + 1, equal))
            return false;
    }
    return true;
}

/* Exact, unlike a conversion of the integer to double. */
static int compare_int_double(int64_t i, double f)
{
    if (f >= 9223372036854775808.0)
        return -1;
    if (f < -9223372036854775808.0)
        return 1;
    int64_t whole = (int64_t)f;
    if (i != whole)
        return i < whole ? -1 : 1;
    double rest = f - (double)whole;
    return rest > 0 ? -1 : rest < 0 ? 1 : 0;
}

/* Three-way; *unordered when a NaN takes part. */
static int compare_numbers(const struct jv *a, const struct jv *b, bool *unordered)
{
    *unordered = (a->kind == J_FLOAT && isnan(a->f)) || (b->kind == J_FLOAT && isnan(b->f));
    if (*unordered)
        return 1;
    if (a->kind != J_FLOAT && b->kind != J_FLOAT)
        return jv_int(a) < jv_int(b) ? -1 : jv_int(a) > jv_int(b);
    if (a->kind == J_FLOAT && b->kind == J_FLOAT)
        return a->f < b->f ? -1 : a->f > b->f;
    return a->kind == J_FLOAT ? -compare_int_double(jv_int(b), a->f) : compare_int_double(jv_int(a), b->f);
}

static bool ranges_equal(const struct jrange *a, const struct jrange *b)
{
    return a->n == b->n && (a->n == 0 || (a->start == b->start && (a->n == 1 || a->step == b->step)));
}

bool jv_equal(struct jrun *run, const struct jv *a, const struct jv *b, unsigned depth, bool *equal)
{
    bool unordered;
    *equal = false;
    if (!jrun_steps(run, 1))
        return false;
    if (jv_is_number(a) && jv_is_number(b)) {
        *equal = compare_numbers(a, b, &unordered) == 0;
        return true;
    }
    if (a->kind != b->kind)
        return true;
    if (depth > JINJA_VALUE_DEPTH_MAX)
        return jrun_fail(run, "a value is nested deeper than %u levels", JINJA_VALUE_DEPTH_MAX);
    switch ((enum jkind)a->kind) {
    case J_STR: *equal = str_equal(a->s, b->s); return !*equal || jrun_bytes(run, a->s.len);
    case J_LIST:
    case J_TUPLE: return lists_equal(run, &a->list, &b->list, depth, equal);
    case J_DICT: return dicts_equal(run, a->dict, b->dict, depth, equal);
    case J_RANGE: *equal = ranges_equal(a->range, b->range); return true;
    default: *equal = jv_same(a, b); return true;
    }
}

bool jv_same(const struct jv *a, const struct jv *b)
{
    if (a->kind != b->kind)
        return false;
    switch ((enum jkind)a->kind) {
    case J_MISSING:
    case J_UNDEFINED:
    case J_NONE: return true;
    case J_BOOL: return a->b == b->b;
    case J_INT: return a->i == b->i;
    case J_FLOAT: return a->f == b->f;
    case J_STR: return str_equal(a->s, b->s);
    case J_LIST:
    case J_TUPLE: return a->list.items == b->list.items && a->list.n == b->list.n;
    default: return a->iter == b->iter; /* every other member of the union is one pointer */
    }
}

static bool lists_less(struct jrun *run, const struct jlist *a, const struct jlist *b, unsigned depth, const char *op,
                       bool *less)
{
    size_t n = a->n < b->n ? a->n : b->n;
    for (size_t i = 0; i < n; i++) {
        bool equal;
        if (!jv_equal(run, &a->items[i], &b->items[i], depth + 1, &equal))
            return false;
        if (!equal)
            return jv_less(run, &a->items[i], &b->items[i], depth + 1, op, less);
    }
    *less = a->n < b->n;
    return true;
}

bool jv_less(struct jrun *run, const struct jv *a, const struct jv *b, unsigned depth, const char *op, bool *less)
{
    bool unordered;
    if (!jrun_steps(run, 1))
        return false;
    if (jv_is_number(a) && jv_is_number(b)) {
        *less = compare_numbers(a, b, &unordered) < 0;
        return true;
    }
    if (a->kind == J_UNDEFINED || b->kind == J_UNDEFINED)
        return jv_undefined_fail(run, a->kind == J_UNDEFINED ? a : b);
    if (a->kind == J_STR && b->kind == J_STR) {
        size_t n = a->s.len < b->s.len ? a->s.len : b->s.len;
        int order = n ? memcmp(a->s.ptr, b->s.ptr, n) : 0;
        *less = order ? order < 0 : a->s.len < b->s.len;
        return jrun_bytes(run, n);
    }
    if ((a->kind == J_LIST && b->kind == J_LIST) || (a->kind == J_TUPLE && b->kind == J_TUPLE)) {
        if (depth > JINJA_VALUE_DEPTH_MAX)
            return jrun_fail(run, "a value is nested deeper than %u levels", JINJA_VALUE_DEPTH_MAX);
        return lists_less(run, &a->list, &b->list, depth, op, less);
    }
    return jrun_fail(run, "'%s' not supported between instances of '%s' and '%s'", op, jv_type_name(a), jv_type_name(b));
}

static bool range_contains(const struct jrange *r, const struct jv *item)
{
    int64_t x;
    if (item->kind == J_FLOAT && item->f == floor(item->f) && fabs(item->f) < 9e18)
        x = (int64_t)item->f;
    else if (jv_is_int(item))
        x = jv_int(item);
    else
        return false;
    __int128 offset = (__int128)x - r->start;
    return offset % r->step == 0 && offset / r->step >= 0 && offset / r->step < r->n;
}

bool jv_contains(struct jrun *run, const struct jv *seq, const struct jv *item, bool *found)
{
    struct jv value;
    *found = false;
    if (seq->kind == J_STR) {
        size_t at;
        if (item->kind != J_STR)
            return jrun_fail(run, "'in <string>' requires string as left operand, not %s", jv_type_name(item));
        *found = jstr_find(seq->s, item->s, 0, &at);
        return jrun_bytes(run, seq->s.len);
    }
    if (seq->kind == J_DICT || (seq->kind == J_VIEW && seq->view->what == 'k'))
        return jdict_get(run, seq->kind == J_DICT ? seq->dict : seq->view->dict, item, &value, found);
    if (seq->kind == J_RANGE) {
        *found = range_contains(seq->range, item);
        return true;
    }
    struct jiter *it;
    if (!jiter_possible(seq))
        return jrun_fail(run, "argument of type '%s' is not iterable", jv_type_name(seq));
    if (!jiter_open(run, seq, &it))
        return false;
    for (;;) {
        int got = jiter_next(run, it, &value);
        if (got <= 0)
            return got == 0;
        if (!jv_equal(run, &value, item, 0, found))
            return false;
        if (*found)
            return true;
    }
}

/* ---- arguments --------------------------------------------------------------------------------------------------- */

bool jargs_bind(struct jrun *run, const struct jargs *args, const char *fn, const char *const *names, size_t n_names,
                size_t n_required, struct jv *out)
{
    if (args->n_pos > n_names)
        return jrun_fail(run, "%s takes at most %zu arguments, not %zu", fn, n_names, args->n_pos);
    for (size_t i = 0; i < n_names; i++)
        out[i] = i < args->n_pos ? args->pos[i] : JV_MISSING;
    for (size_t k = 0; k < args->n_kw; k++) {
        size_t i = 0;
        while (i < n_names && !(names[i][0] && str_equal(args->names[k], str_from(names[i]))))
            i++;
        int len = args->names[k].len < 80 ? (int)args->names[k].len : 80;
        if (i == n_names)
            return jrun_fail(run, "%s takes no argument '%.*s'", fn, len, args->names[k].ptr);
        if (out[i].kind != J_MISSING)
            return jrun_fail(run, "%s got two values for argument '%.*s'", fn, len, args->names[k].ptr);
        out[i] = args->kw[k];
    }
    for (size_t i = 0; i < n_required; i++)
        if (out[i].kind == J_MISSING)
            return jrun_fail(run, "%s lacks its argument '%s'", fn, names[i][0] ? names[i] : "value");
    return true;
}

bool jarg_int(struct jrun *run, const char *fn, const struct jv *v, int64_t fallback, int64_t *out)
{
    if (v->kind == J_UNDEFINED)
        return jv_undefined_fail(run, v);
    if (v->kind != J_MISSING && !jv_is_int(v))
        return jrun_fail(run, "%s needs an integer, not '%s'", fn, jv_type_name(v));
    *out = v->kind == J_MISSING ? fallback : jv_int(v);
    return true;
}

bool jarg_str(struct jrun *run, const char *fn, const struct jv *v, struct str *out)
{
    if (v->kind != J_STR)
        return jrun_fail(run, "%s needs a string, not '%s'", fn, jv_type_name(v));
    *out = v->s;
    return true;
}

/* Filters of sequences and dictionaries. */
#include "text/jinja.h"

#include <math.h>

#define FILTER(name) static bool name(struct jrun *run, const struct jv *v, const struct jargs *args, struct jv *out)

static bool no_args(struct jrun *run, const char *fn, const struct jargs *args)
{
    return jargs_bind(run, args, fn, NULL, 0, 0, NULL);
}

bool jinja_ignore_case(struct jrun *run, struct jv *v)
{
    return v->kind != J_STR || jstr_case(run, v->s, CASE_LOWER, &v->s);
}

FILTER(filter_length)
{
    if (!no_args(run, "length", args))
        return false;
    if (v->kind == J_LOOP)
        return jinja_getattr(run, v, STR("length"), out);
    *out = JV_INT(jv_length(run, v));
    return out->i >= 0 || jrun_fail(run, "object of type '%s' has no len()", jv_type_name(v));
}

FILTER(filter_list)
{
    *out = JV_LIST(((struct jlist){NULL, 0}));
    return no_args(run, "list", args) && jiter_list(run, v, &out->list);
}

FILTER(filter_first)
{
    struct jiter *it;
    if (!no_args(run, "first", args) || !jiter_open(run, v, &it))
        return false;
    int got = jiter_next(run, it, out);
    if (got == 0)
        *out = jv_undefined_hint("No first item, sequence was empty.");
    return got >= 0;
}

static bool reversible(const struct jv *v)
{
    return v->kind == J_LIST || v->kind == J_TUPLE || v->kind == J_DICT || v->kind == J_RANGE || v->kind == J_VIEW;
}

static bool reverse_str(struct jrun *run, const struct jv *v, struct jv *out)
{
    struct jv parts[3] = {JV_NONE, JV_NONE, JV_INT(-1)};
    struct jv slice = {.kind = J_SLICE, .slice = parts};
    return jinja_getitem(run, v, &slice, out);
}

FILTER(filter_last)
{
    struct jiter *it;
    if (!no_args(run, "last", args))
        return false;
    *out = jv_undefined_hint("No last item, sequence was empty.");
    if (v->kind == J_UNDEFINED)
        return true;
    if (v->kind == J_STR) {
        struct jv index = JV_INT(-1);
        return v->s.len == 0 || jinja_getitem(run, v, &index, out);
    }
    if (!reversible(v))
        return jrun_fail(run, "'%s' object is not reversible", jv_type_name(v));
    if (!(it = jiter_new(run, IT_REVERSED, v)))
        return false;
    struct jv item;
    int got = jiter_next(run, it, &item);
    if (got > 0)
        *out = item;
    return got >= 0;
}

FILTER(filter_reverse)
{
    if (!no_args(run, "reverse", args))
        return false;
    if (v->kind == J_STR)
        return reverse_str(run, v, out);
    struct jv source = *v;
    if (!reversible(v)) {
        if (!jiter_possible(v))
            return jrun_fail(run, "reverse: the argument must be iterable");
        source = JV_LIST(((struct jlist){NULL, 0}));
        if (!jiter_list(run, v, &source.list))
            return false;
    }
    struct jiter *it = jiter_new(run, IT_REVERSED, &source);
    *out = JV_ITER(it);
    return it != NULL;
}

FILTER(filter_join)
{
    static const char *const names[] = {"d", "attribute"};
    struct jv a[2], item;
    struct str sep = STR(""), s;
    struct jattr_path path;
    struct jiter *it;
    struct jtext t = {.run = run};
    if (!jargs_bind(run, args, "join", names, 2, 0, a) || !jattr_parse(run, &a[1], &path) ||
        (a[0].kind != J_MISSING && !jv_to_str(run, &a[0], &sep)) || !jiter_open(run, v, &it))
        return false;
    for (bool first = true;; first = false) {
        int got = jiter_next(run, it, &item);
        if (got < 0)
            return false;
        if (got == 0)
            break;
        if (!jattr_get(run, &path, NULL, &item) || !jv_to_str(run, &item, &s))
            return false;
        if (!first)
            jtext_add(&t, sep);
        if (!jtext_add(&t, s))
            return false;
    }
    *out = jtext_value(&t);
    return !t.failed;
}

/* ---- map and select ---------------------------------------------------------------------------------------------- */

static struct jiter *lazy(struct jrun *run, enum jiter_kind kind, const struct jv *v)
{
    struct jiter *it = jiter_new(run, kind, v);
    if (it && !jiter_open(run, v, &it->inner))
        return NULL;
    return it;
}

/* The arguments that are left behind the first `skip`, copied as they outlive the call. */
static bool keep_args(struct jrun *run, const struct jargs *args, size_t skip, struct jargs *out)
{
    struct jv *pos = jrun_alloc(run, args->n_pos - skip, sizeof *pos);
    if (!pos)
        return false;
    if (args->n_pos > skip)
        memcpy(pos, args->pos + skip, (args->n_pos - skip) * sizeof *pos);
    *out = (struct jargs){pos, args->n_pos - skip, args->names, args->kw, args->n_kw};
    return true;
}

FILTER(filter_map)
{
    static const char *const names[] = {"attribute", "default"};
    struct jv nothing = JV_LIST(((struct jlist){NULL, 0}));
    struct jiter *it = lazy(run, IT_MAP, jv_truth(v) ? v : &nothing);
    if (!it)
        return false;
    *out = JV_ITER(it);
    if (!jv_truth(v))
        return true;
    bool attribute = false;
    for (size_t i = 0; i < args->n_kw; i++)
        attribute |= str_equal(args->names[i], STR("attribute"));
    if (args->n_pos == 0 && attribute) {
        struct jv a[2];
        if (!jargs_bind(run, args, "map", names, 2, 1, a) || !jattr_parse(run, &a[0], &it->path))
            return false;
        it->use_path = true;
        it->fallback = a[1];
        return true;
    }
    if (args->n_pos == 0)
        return jrun_fail(run, "map requires a filter argument");
    if (!jarg_str(run, "map", &args->pos[0], &it->def_name) || !keep_args(run, args, 1, &it->args))
        return false;
    it->def = jinja_find_filter(it->def_name);
    return true;
}

static bool select_items(struct jrun *run, const struct jv *v, const struct jargs *args, bool use_path, bool negate,
                         struct jv *out)
{
    struct jv nothing = JV_LIST(((struct jlist){NULL, 0}));
    struct jiter *it = lazy(run, IT_SELECT, jv_truth(v) ? v : &nothing);
    size_t skip = use_path ? 1 : 0;
    if (!it)
        return false;
    *out = JV_ITER(it);
    if (!jv_truth(v))
        return true;
    it->negate = negate;
    it->use_path = use_path;
    if (use_path && args->n_pos == 0)
        return jrun_fail(run, "missing parameter for attribute name");
    if (use_path && !jattr_parse(run, &args->pos[0], &it->path))
        return false;
    if (args->n_pos == skip)
        return true;
    if (!jarg_str(run, "select", &args->pos[skip], &it->def_name) || !keep_args(run, args, skip + 1, &it->args))
        return false;
    it->def = jinja_find_test(it->def_name);
    return true;
}

FILTER(filter_select)
{
    return select_items(run, v, args, false, false, out);
}

FILTER(filter_reject)
{
    return select_items(run, v, args, false, true, out);
}

FILTER(filter_selectattr)
{
    return select_items(run, v, args, true, false, out);
}

FILTER(filter_rejectattr)
{
    return select_items(run, v, args, true, true, out);
}

FILTER(filter_unique)
{
    static const char *const names[] = {"case_sensitive", "attribute"};
    struct jv a[2];
    struct jiter *it;
    if (!jargs_bind(run, args, "unique", names, 2, 0, a) || !(it = lazy(run, IT_UNIQUE, v)) ||
        !jattr_parse(run, &a[1], &it->path) || !(it->seen = jdict_new(run, 0)))
        return false;
    it->fold_case = !jv_truth(&a[0]);
    *out = JV_ITER(it);
    return true;
}

FILTER(filter_batch)
{
    static const char *const names[] = {"linecount", "fill_with"};
    struct jv a[2];
    struct jiter *it;
    if (!jargs_bind(run, args, "batch", names, 2, 1, a) || !(it = lazy(run, IT_BATCH, v)) ||
        !jarg_int(run, "batch", &a[0], 0, &it->count))
        return false;
    it->fallback = a[1].kind == J_MISSING ? JV_NONE : a[1];
    *out = JV_ITER(it);
    return true;
}

FILTER(filter_slice)
{
    static const char *const names[] = {"slices", "fill_with"};
    struct jv a[2], list = JV_LIST(((struct jlist){NULL, 0}));
    if (!jargs_bind(run, args, "slice", names, 2, 1, a) || !jiter_list(run, v, &list.list))
        return false;
    struct jiter *it = jiter_new(run, IT_SLICES, &list);
    if (!it || !jarg_int(run, "slice", &a[0], 0, &it->count))
        return false;
    if (it->count == 0)
        return jrun_fail(run, "integer division or modulo by zero");
    if (it->count < 0) {
        it->count = 0;
        it->source.list.n = 0;
    }
    it->fallback = a[1].kind == J_MISSING ? JV_NONE : a[1];
    if (it->count == 0)
        it->kind = IT_VALUE;
    *out = JV_ITER(it);
    return true;
}

FILTER(filter_items)
{
    if (!no_args(run, "items", args))
        return false;
    struct jiter *it = jiter_new(run, IT_ITEMS, v);
    *out = JV_ITER(it);
    return it != NULL;
}

/* ---- order ------------------------------------------------------------------------------------------------------- */

/* Stable merge sort of indices by keys; descending keeps equal items in their order. */
static bool merge_sort(struct jrun *run, const struct jv *keys, bool descending, size_t *order, size_t *spare, size_t n)
{
    if (n < 2)
        return true;
    size_t half = n / 2, a = 0, b = half, k = 0;
    if (!merge_sort(run, keys, descending, order, spare, half) ||
        !merge_sort(run, keys, descending, order + half, spare + half, n - half))
        return false;
    while (a < half || b < n) {
        bool swap = false;
        if (a < half && b < n) {
            const struct jv *left = &keys[order[a]], *right = &keys[order[b]];
            if (!jv_less(run, descending ? left : right, descending ? right : left, 0, "<", &swap))
                return false;
        }
        spare[k++] = a < half && (b == n || !swap) ? order[a++] : order[b++];
    }
    memcpy(order, spare, n * sizeof *order);
    return true;
}

static bool sort_by(struct jrun *run, const struct jlist *list, const struct jv *keys, bool descending, struct jlist *out)
{
    size_t *order = jrun_alloc(run, list->n * 2, sizeof *order);
    struct jv *items = jrun_alloc(run, list->n, sizeof *items);
    if (!order || !items)
        return false;
    for (size_t i = 0; i < list->n; i++)
        order[i] = i;
    if (!merge_sort(run, keys, descending, order, order + list->n, list->n))
        return false;
    for (size_t i = 0; i < list->n; i++)
        items[i] = list->items[order[i]];
    *out = (struct jlist){items, list->n};
    return true;
}

#define SORT_PATHS_MAX 16

/* Keys of a sort: a list of the values of each attribute in a comma-separated list. */
static bool sort_keys(struct jrun *run, const struct jlist *list, const struct jv *attribute, bool fold, struct jv *keys)
{
    struct jattr_path paths[SORT_PATHS_MAX];
    size_t n_paths = 0;
    if (attribute->kind == J_STR) {
        for (size_t start = 0; start <= attribute->s.len;) {
            size_t comma = attribute->s.len;
            if (!jstr_find(attribute->s, STR(","), start, &comma))
                comma = attribute->s.len;
            struct jv part = JV_STR(((struct str){attribute->s.ptr + start, comma - start}));
            if (n_paths == SORT_PATHS_MAX)
                return jrun_fail(run, "sort by more than %d attributes", SORT_PATHS_MAX);
            if (!jattr_parse(run, &part, &paths[n_paths++]))
                return false;
            start = comma + 1;
        }
    } else if (!jattr_parse(run, attribute, &paths[n_paths++])) {
        return false;
    }
    for (size_t i = 0; i < list->n; i++) {
        struct jv *parts = jrun_alloc(run, n_paths, sizeof *parts);
        if (!parts)
            return false;
        for (size_t k = 0; k < n_paths; k++) {
            parts[k] = list->items[i];
            if (!jattr_get(run, &paths[k], NULL, &parts[k]) || (fold && !jinja_ignore_case(run, &parts[k])))
                return false;
        }
        keys[i] = JV_LIST(((struct jlist){parts, n_paths}));
    }
    return true;
}

FILTER(filter_sort)
{
    static const char *const names[] = {"reverse", "case_sensitive", "attribute"};
    struct jv a[3];
    struct jlist list;
    if (!jargs_bind(run, args, "sort", names, 3, 0, a) || !jiter_list(run, v, &list))
        return false;
    struct jv *keys = jrun_alloc(run, list.n, sizeof *keys);
    *out = JV_LIST(list);
    return keys && sort_keys(run, &list, &a[2], !jv_truth(&a[1]), keys) &&
           sort_by(run, &list, keys, jv_truth(&a[0]), &out->list);
}

FILTER(filter_dictsort)
{
    static const char *const names[] = {"case_sensitive", "by", "reverse"};
    struct jv a[3];
    struct str by = STR("key");
    struct jbuilder b = {0};
    if (!jargs_bind(run, args, "dictsort", names, 3, 0, a) ||
        (a[1].kind != J_MISSING && !jarg_str(run, "dictsort", &a[1], &by)))
        return false;
    if (!str_equal(by, STR("key")) && !str_equal(by, STR("value")))
        return jrun_fail(run, "dictsort: you can only sort by either \"key\" or \"value\"");
    if (v->kind == J_UNDEFINED)
        return jv_undefined_fail(run, v);
    if (v->kind != J_DICT)
        return jrun_fail(run, "dictsort needs a mapping, not '%s'", jv_type_name(v));
    struct jv *keys = jrun_alloc(run, v->dict->n, sizeof *keys), pair;
    if (!keys)
        return false;
    for (size_t i = 0; i < v->dict->n; i++) {
        const struct jpair *p = &v->dict->pairs[i];
        keys[i] = by.len == 3 ? p->key : p->value;
        if ((!jv_truth(&a[0]) && !jinja_ignore_case(run, &keys[i])) || !jv_tuple2(run, &p->key, &p->value, &pair) ||
            !jbuilder_add(run, &b, &pair))
            return false;
    }
    struct jlist list = jbuilder_list(&b);
    *out = JV_LIST(list);
    return sort_by(run, &list, keys, jv_truth(&a[2]), &out->list);
}

static bool extreme(struct jrun *run, const struct jv *v, const struct jargs *args, const char *fn, bool largest,
                    struct jv *out)
{
    static const char *const names[] = {"case_sensitive", "attribute"};
    struct jv a[2], best_key = JV_MISSING, item;
    struct jattr_path path;
    struct jiter *it;
    if (!jargs_bind(run, args, fn, names, 2, 0, a) || !jattr_parse(run, &a[1], &path) || !jiter_open(run, v, &it))
        return false;
    *out = jv_undefined_hint("No aggregated item, sequence was empty.");
    for (;;) {
        int got = jiter_next(run, it, &item);
        if (got <= 0)
            return got == 0;
        struct jv key = item;
        bool better = true;
        if (!jattr_get(run, &path, NULL, &key) || (!jv_truth(&a[0]) && !jinja_ignore_case(run, &key)))
            return false;
        if (best_key.kind != J_MISSING &&
            !jv_less(run, largest ? &best_key : &key, largest ? &key : &best_key, 0, largest ? ">" : "<", &better))
            return false;
        if (better) {
            best_key = key;
            *out = item;
        }
    }
}

FILTER(filter_min)
{
    return extreme(run, v, args, "min", false, out);
}

FILTER(filter_max)
{
    return extreme(run, v, args, "max", true, out);
}

FILTER(filter_sum)
{
    static const char *const names[] = {"attribute", "start"};
    struct jv a[2], item, sum;
    struct jattr_path path;
    struct jiter *it;
    if (!jargs_bind(run, args, "sum", names, 2, 0, a) || !jattr_parse(run, &a[0], &path) || !jiter_open(run, v, &it))
        return false;
    *out = a[1].kind == J_MISSING ? JV_INT(0) : a[1];
    if (out->kind == J_STR)
        return jrun_fail(run, "sum() can't sum strings");
    for (;;) {
        int got = jiter_next(run, it, &item);
        if (got <= 0)
            return got == 0;
        if (!jattr_get(run, &path, NULL, &item) || !jinja_binary(run, OP_ADD, out, &item, &sum))
            return false;
        *out = sum;
    }
}

FILTER(filter_groupby)
{
    static const char *const names[] = {"attribute", "default", "case_sensitive"};
    struct jv a[3];
    struct jlist list, sorted;
    struct jattr_path path;
    struct jbuilder groups = {0};
    if (!jargs_bind(run, args, "groupby", names, 3, 1, a) || !jattr_parse(run, &a[0], &path) || !jiter_list(run, v, &list))
        return false;
    bool fold = !jv_truth(&a[2]);
    struct jv *keys = jrun_alloc(run, list.n * 2, sizeof *keys), *plain = keys + list.n;
    if (!keys)
        return false;
    struct jbuilder both = {0};
    for (size_t i = 0; i < list.n; i++) {
        plain[i] = list.items[i];
        if (!jattr_get(run, &path, &a[1], &plain[i]))
            return false;
        keys[i] = plain[i];
        struct jv *triple = jrun_alloc(run, 3, sizeof *triple);
        if (!triple || (fold && !jinja_ignore_case(run, &keys[i])))
            return false;
        triple[0] = keys[i];
        triple[1] = plain[i];
        triple[2] = list.items[i];
        if (!jbuilder_add(run, &both, &JV_LIST(((struct jlist){triple, 3}))))
            return false;
    }
    list = jbuilder_list(&both);
    if (!sort_by(run, &list, keys, false, &sorted))
        return false;
    for (size_t i = 0; i < sorted.n;) {
        struct jbuilder items = {0};
        struct jv *pair = jrun_alloc(run, 2, sizeof *pair);
        const struct jv *first = sorted.items[i].list.items;
        bool equal = true;
        if (!pair)
            return false;
        for (; i < sorted.n; i++) {
            const struct jv *triple = sorted.items[i].list.items;
            if (!jv_equal(run, &triple[0], &first[0], 0, &equal))
                return false;
            if (!equal)
                break;
            if (!jbuilder_add(run, &items, &triple[2]))
                return false;
        }
        pair[0] = first[fold ? 1 : 0];
        pair[1] = JV_LIST(jbuilder_list(&items));
        if (!jbuilder_add(run, &groups, &(struct jv){.kind = J_TUPLE, .flags = J_GROUP, .list = {pair, 2}}))
            return false;
    }
    *out = JV_LIST(jbuilder_list(&groups));
    return true;
}

const struct jfilter jinja_seq_filters[] = {
    {"length", filter_length},
    {"count", filter_length},
    {"list", filter_list},
    {"first", filter_first},
    {"last", filter_last},
    {"join", filter_join},
    {"map", filter_map},
    {"select", filter_select},
    {"reject", filter_reject},
    {"selectattr", filter_selectattr},
    {"rejectattr", filter_rejectattr},
    {"items", filter_items},
    {"dictsort", filter_dictsort},
    {"sort", filter_sort},
    {"reverse", filter_reverse},
    {"unique", filter_unique},
    {"batch", filter_batch},
    {"slice", filter_slice},
    {"min", filter_min},
    {"max", filter_max},
    {"sum", filter_sum},
    {"groupby", filter_groupby},
    {NULL, NULL},
};

/* Iteration. Generators (map, select, batch, for ... if) are lazy, as what they call may depend on what the loop that
 * drives them has changed meanwhile; an iterator that is a value is consumed once. */
#include "text/jinja.h"

bool jiter_possible(const struct jv *v)
{
    switch ((enum jkind)v->kind) {
    case J_UNDEFINED:
    case J_STR:
    case J_LIST:
    case J_TUPLE:
    case J_DICT:
    case J_RANGE:
    case J_VIEW:
    case J_ITER:
    case J_LOOP: return true;
    default: return false;
    }
}

struct jiter *jiter_new(struct jrun *run, enum jiter_kind kind, const struct jv *source)
{
    struct jiter *it = jrun_alloc(run, 1, sizeof *it);
    if (!it)
        return NULL;
    it->kind = kind;
    it->source = *source;
    return it;
}

bool jiter_open(struct jrun *run, const struct jv *v, struct jiter **it)
{
    if (v->kind == J_ITER) {
        *it = v->iter;
        return true;
    }
    if (!jiter_possible(v))
        return jrun_fail(run, "'%s' object is not iterable", jv_type_name(v));
    *it = jiter_new(run, IT_VALUE, v);
    return *it != NULL;
}

static int next_of_dict(struct jrun *run, const struct jdict *d, char what, size_t i, struct jv *out)
{
    if (i >= d->n)
        return 0;
    if (what == 'i')
        return jv_tuple2(run, &d->pairs[i].key, &d->pairs[i].value, out) ? 1 : -1;
    *out = what == 'k' ? d->pairs[i].key : d->pairs[i].value;
    return 1;
}

static int next_of_value(struct jrun *run, struct jiter *it, struct jv *out)
{
    const struct jv *v = &it->source;
    size_t i = it->pos, start = it->pos;
    int got = 0;
    switch ((enum jkind)v->kind) {
    case J_STR:
        if (i >= v->s.len)
            return 0;
        str_utf8_next(v->s, &it->pos);
        *out = JV_STR(((struct str){v->s.ptr + start, it->pos - start}));
        out->flags = 0;
        return 1;
    case J_LIST:
    case J_TUPLE:
        if ((got = i < v->list.n))
            *out = v->list.items[i];
        break;
    case J_DICT: got = next_of_dict(run, v->dict, 'k', i, out); break;
    case J_VIEW: got = next_of_dict(run, v->view->dict, v->view->what, i, out); break;
    case J_RANGE:
        if ((got = (int64_t)i < v->range->n))
            *out = JV_INT(v->range->start + v->range->step * (int64_t)i);
        break;
    case J_LOOP: jrun_fail(run, "a loop object cannot be iterated"); return -1;
    default: break;
    }
    it->pos += got > 0;
    return got;
}

/* Pairs of a dictionary; that it is one is asked as late as a generator does. */
static int next_item(struct jrun *run, struct jiter *it, struct jv *out)
{
    if (it->source.kind == J_UNDEFINED)
        return 0;
    if (it->source.kind == J_DICT)
        return next_of_dict(run, it->source.dict, 'i', it->pos++, out);
    jrun_fail(run, "can only get item pairs from a mapping, not '%s'", jv_type_name(&it->source));
    return -1;
}

/* From the end; `pos` counts the items given out (bytes for text). */
static int next_reversed(struct jrun *run, struct jiter *it, struct jv *out)
{
    const struct jv *v = &it->source;
    size_t i = it->pos++;
    switch ((enum jkind)v->kind) {
    case J_LIST:
    case J_TUPLE:
        if (i >= v->list.n)
            return 0;
        *out = v->list.items[v->list.n - 1 - i];
        return 1;
    case J_DICT: return i < v->dict->n ? next_of_dict(run, v->dict, 'k', v->dict->n - 1 - i, out) : 0;
    case J_VIEW:
        return i < v->view->dict->n ? next_of_dict(run, v->view->dict, v->view->what, v->view->dict->n - 1 - i, out) : 0;
    case J_RANGE:
        if ((int64_t)i >= v->range->n)
            return 0;
        *out = JV_INT(v->range->start + v->range->step * (v->range->n - 1 - (int64_t)i));
        return 1;
    default: return 0;
    }
}

static bool selected(struct jrun *run, struct jiter *it, const struct jv *item, bool *keep)
{
    struct jv tested = *item;
    if (it->use_path && !jattr_get(run, &it->path, NULL, &tested))
        return false;
    if (it->def) {
        const struct jtest *test = it->def;
        if (!test->call(run, &tested, &it->args, keep))
            return false;
    } else if (it->def_name.ptr) {
        return jrun_fail(run, "no test named '%.*s'", (int)it->def_name.len, it->def_name.ptr);
    } else {
        *keep = jv_truth(&tested);
    }
    *keep ^= it->negate;
    return true;
}

static bool mapped(struct jrun *run, struct jiter *it, struct jv *item)
{
    if (it->use_path)
        return jattr_get(run, &it->path, &it->fallback, item);
    if (!it->def)
        return jrun_fail(run, "no filter named '%.*s'", (int)it->def_name.len, it->def_name.ptr);
    const struct jfilter *filter = it->def;
    struct jv in = *item;
    return filter->call(run, &in, &it->args, item);
}

static bool unique(struct jrun *run, struct jiter *it, const struct jv *item, bool *keep)
{
    struct jv key = *item;
    bool found;
    if (!jattr_get(run, &it->path, NULL, &key) || (it->fold_case && !jinja_ignore_case(run, &key)) ||
        !jdict_get(run, it->seen, &key, &(struct jv){0}, &found))
        return false;
    *keep = !found;
    return found || jdict_set(run, it->seen, &key, &JV_NONE);
}

/* The filter of a loop sees the loop's target in a scope of its own. */
static bool passes_loop_filter(struct jrun *run, struct jiter *it, const struct jv *item, bool *keep)
{
    struct jv result;
    struct jscope *back = run->scope;
    struct jscope *scope = jscope_push(run, it->scope, &jinja_no_ids);
    const struct jnode *at = run->at;
    if (!scope)
        return false;
    bool ok = jinja_assign(run, it->loop->a, item) && jinja_eval(run, it->loop->c, &result);
    jscope_pop(run, scope, back);
    run->at = at;
    *keep = ok && jv_truth(&result);
    return ok;
}

static int next_batch(struct jrun *run, struct jiter *it, struct jv *out)
{
    struct jbuilder b = {0};
    struct jv item;
    while ((int64_t)b.n < it->count || it->count <= 0) {
        int got = jiter_next(run, it->inner, &item);
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        if (!jbuilder_add(run, &b, &item))
            return -1;
    }
    if (b.n == 0)
        return 0;
    if (it->fallback.kind != J_NONE && it->count > JINJA_RANGE_ITEMS_MAX) {
        jrun_fail(run, "batch cannot fill up to more than %d items", JINJA_RANGE_ITEMS_MAX);
        return -1;
    }
    while (it->fallback.kind != J_NONE && (int64_t)b.n < it->count)
        if (!jbuilder_add(run, &b, &it->fallback))
            return -1;
    *out = JV_LIST(jbuilder_list(&b));
    return 1;
}

/* Slice number `pos` of `count` of the list in `source`. */
static int next_slice(struct jrun *run, struct jiter *it, struct jv *out)
{
    size_t n = it->source.list.n, slices = (size_t)it->count, i = it->pos++;
    if (i >= slices)
        return 0;
    size_t per = n / slices, extra = n % slices;
    size_t start = i * per + (i < extra ? i : extra), len = per + (i < extra ? 1 : 0);
    struct jbuilder b = {0};
    for (size_t k = 0; k < len; k++)
        if (!jbuilder_add(run, &b, &it->source.list.items[start + k]))
            return -1;
    if (it->fallback.kind != J_NONE && i >= extra && !jbuilder_add(run, &b, &it->fallback))
        return -1;
    *out = JV_LIST(jbuilder_list(&b));
    return 1;
}

int jiter_next(struct jrun *run, struct jiter *it, struct jv *out)
{
    if (!jrun_steps(run, 1))
        return -1;
    if (it->kind == IT_VALUE)
        return next_of_value(run, it, out);
    if (it->kind == IT_ITEMS)
        return next_item(run, it, out);
    if (it->kind == IT_REVERSED)
        return next_reversed(run, it, out);
    if (it->kind == IT_SLICES)
        return next_slice(run, it, out);
    if (!jrun_enter(run))
        return -1;
    int got = -1;
    if (it->kind == IT_BATCH) {
        got = next_batch(run, it, out);
        jrun_leave(run);
        return got;
    }
    for (;;) {
        bool keep = true, ok = true;
        got = jiter_next(run, it->inner, out);
        if (got <= 0)
            break;
        if (it->kind == IT_MAP)
            ok = mapped(run, it, out);
        else if (it->kind == IT_SELECT)
            ok = selected(run, it, out, &keep);
        else if (it->kind == IT_UNIQUE)
            ok = unique(run, it, out, &keep);
        else
            ok = passes_loop_filter(run, it, out, &keep);
        if (!ok)
            got = -1;
        if (!ok || keep)
            break;
    }
    jrun_leave(run);
    return got;
}

bool jiter_list(struct jrun *run, const struct jv *v, struct jlist *out)
{
    if (v->kind == J_LIST || v->kind == J_TUPLE) {
        *out = v->list;
        return true;
    }
    struct jiter *it;
    struct jbuilder b = {0};
    struct jv item;
    if (!jiter_open(run, v, &it))
        return false;
    for (;;) {
        int got = jiter_next(run, it, &item);
        if (got < 0)
            return false;
        if (got == 0)
            break;
        if (!jbuilder_add(run, &b, &item))
            return false;
    }
    *out = jbuilder_list(&b);
    return true;
}

bool jattr_parse(struct jrun *run, const struct jv *attr, struct jattr_path *path)
{
    struct jbuilder b = {0};
    *path = (struct jattr_path){0};
    if (attr->kind == J_NONE || attr->kind == J_MISSING)
        return true;
    if (attr->kind != J_STR) {
        if (!jbuilder_add(run, &b, attr))
            return false;
    } else {
        for (size_t start = 0; start <= attr->s.len;) {
            const char *dot = attr->s.len > start ? memchr(attr->s.ptr + start, '.', attr->s.len - start) : NULL;
            size_t end = dot ? (size_t)(dot - attr->s.ptr) : attr->s.len;
            struct str part = {attr->s.ptr + start, end - start};
            struct jv value = JV_STR(part);
            int64_t number;
            bool valid = false;
            if (jstr_is(part, CLASS_DIGIT) && !jstr_to_int(run, part, 10, &number, &valid))
                return false;
            if (valid)
                value = JV_INT(number);
            if (!jbuilder_add(run, &b, &value))
                return false;
            start = end + 1;
        }
    }
    path->parts = b.items;
    path->n = b.n;
    return true;
}

bool jattr_get(struct jrun *run, const struct jattr_path *path, const struct jv *fallback, struct jv *v)
{
    for (size_t i = 0; i < path->n; i++) {
        struct jv item;
        if (!jinja_getitem(run, v, &path->parts[i], &item))
            return false;
        *v = item;
        if (fallback && fallback->kind != J_NONE && fallback->kind != J_MISSING && v->kind == J_UNDEFINED)
            *v = *fallback;
    }
    return true;
}

/* Evaluates expressions; applies filters and tests; calls. */
#include "text/jinja.h"

static bool eval_items(struct jrun *run, const struct jnodes *nodes, struct jlist *out)
{
    struct jv *items = jrun_alloc(run, nodes->n, sizeof *items);
    if (!items)
        return false;
    for (size_t i = 0; i < nodes->n; i++)
        if (!jinja_eval(run, nodes->items[i], &items[i]))
            return false;
    *out = (struct jlist){items, nodes->n};
    return true;
}

static bool eval_dict(struct jrun *run, const struct jnode *n, struct jv *out)
{
    struct jdict *d = jdict_new(run, n->items.n / 2);
    if (!d)
        return false;
    for (size_t i = 0; i + 1 < n->items.n; i += 2) {
        struct jv key, value;
        if (!jinja_eval(run, n->items.items[i], &key) || !jinja_eval(run, n->items.items[i + 1], &value) ||
            !jdict_set(run, d, &key, &value))
            return false;
    }
    *out = JV_DICT(d);
    return true;
}

static bool eval_compare(struct jrun *run, const struct jnode *n, struct jv *out)
{
    struct jv left, right;
    bool result = true;
    if (!jinja_eval(run, n->a, &left))
        return false;
    for (size_t i = 0; result && i < n->items.n; i++) {
        if (!jinja_eval(run, n->items.items[i]->a, &right))
            return false;
        run->at = n;
        if (!jinja_compare(run, n->items.items[i]->op, &left, &right, &result))
            return false;
        left = right;
    }
    *out = JV_BOOL(result);
    return true;
}

static bool eval_concat(struct jrun *run, const struct jnode *n, struct jv *out)
{
    struct jtext t = {.run = run};
    struct jv item;
    if (n->items.n == 2) {
        /* the usual case keeps the spare room that growing text needs */
        struct jv more;
        struct str a, b;
        *out = JV_STR(STR(""));
        return jinja_eval(run, n->items.items[0], &item) && jinja_eval(run, n->items.items[1], &more) &&
               jv_to_str(run, &item, &a) && jv_to_str(run, &more, &b) && jinja_concat2(run, a, b, &out->s);
    }
    for (size_t i = 0; i < n->items.n; i++)
        if (!jinja_eval(run, n->items.items[i], &item) || !jprint_str(&t, &item))
            return false;
    *out = jtext_value(&t);
    return !t.failed;
}

static bool eval_cond(struct jrun *run, const struct jnode *n, struct jv *out)
{
    struct jv test;
    if (!jinja_eval(run, n->b, &test))
        return false;
    if (jv_truth(&test))
        return jinja_eval(run, n->a, out);
    if (n->c)
        return jinja_eval(run, n->c, out);
    *out = jv_undefined_hint("the inline if-expression evaluated to false and no else section was defined");
    return true;
}

static bool eval_slice(struct jrun *run, const struct jnode *n, struct jv *out)
{
    struct jv *parts = jrun_alloc(run, 3, sizeof *parts);
    const struct jnode *nodes[3] = {n->a, n->b, n->c};
    if (!parts)
        return false;
    for (int i = 0; i < 3; i++) {
        parts[i] = JV_NONE;
        if (nodes[i] && !jinja_eval(run, nodes[i], &parts[i]))
            return false;
    }
    *out = (struct jv){.kind = J_SLICE, .slice = parts};
    return true;
}

/* ---- calls ------------------------------------------------------------------------------------------------------- */

static bool add_dynamic_keywords(struct jrun *run, const struct jv *v, struct jargs *args)
{
    if (v->kind != J_DICT)
        return jrun_fail(run, "argument after ** must be a mapping, not %s", jv_type_name(v));
    size_t n = args->n_kw + v->dict->n;
    if (n > JINJA_ARGS_MAX * 2)
        return jrun_fail(run, "more than %u keyword arguments", JINJA_ARGS_MAX * 2);
    struct str *names = jrun_alloc(run, n + 1, sizeof *names);
    struct jv *kw = jrun_alloc(run, n + 1, sizeof *kw);
    if (!names || !kw)
        return false;
    for (size_t i = 0; i < args->n_kw; i++) {
        names[i] = args->names[i];
        kw[i] = args->kw[i];
    }
    for (size_t i = 0; i < v->dict->n; i++) {
        const struct jpair *pair = &v->dict->pairs[i];
        if (pair->key.kind != J_STR)
            return jrun_fail(run, "keywords must be strings");
        for (size_t k = 0; k < args->n_kw; k++)
            if (str_equal(names[k], pair->key.s))
                return jrun_fail(run, "got multiple values for keyword argument '%.*s'", (int)pair->key.s.len, pair->key.s.ptr);
        names[args->n_kw + i] = pair->key.s;
        kw[args->n_kw + i] = pair->value;
    }
    args->names = names;
    args->kw = kw;
    args->n_kw = n;
    return true;
}

static bool add_dynamic_positions(struct jrun *run, const struct jv *v, struct jargs *args)
{
    struct jlist list;
    if (!jiter_possible(v))
        return jrun_fail(run, "argument after * must be an iterable, not %s", jv_type_name(v));
    if (!jiter_list(run, v, &list))
        return false;
    struct jv *pos = jrun_alloc(run, args->n_pos + list.n, sizeof *pos);
    if (!pos)
        return false;
    if (args->n_pos)
        memcpy(pos, args->pos, args->n_pos * sizeof *pos);
    if (list.n)
        memcpy(pos + args->n_pos, list.items, list.n * sizeof *pos);
    args->pos = pos;
    args->n_pos += list.n;
    return true;
}

bool jinja_eval_args(struct jrun *run, const struct jcall *call, const struct jv *caller, struct jargs *args)
{
    struct jlist pos;
    struct jv dynamic;
    size_t n_kw = call->kw.n + (caller ? 1 : 0);
    *args = (struct jargs){0};
    if (call->pos.n) {
        if (!eval_items(run, &call->pos, &pos))
            return false;
        args->pos = pos.items;
        args->n_pos = pos.n;
    }
    if (n_kw) {
        struct jv *kw = jrun_alloc(run, n_kw, sizeof *kw);
        struct str *names = jrun_alloc(run, n_kw, sizeof *names);
        if (!kw || !names)
            return false;
        for (size_t i = 0; i < call->kw.n; i++) {
            names[i] = call->names[i];
            if (!jinja_eval(run, call->kw.items[i], &kw[i]))
                return false;
        }
        if (caller) {
            for (size_t i = 0; i < call->kw.n; i++)
                if (str_equal(names[i], STR("caller")))
                    return jrun_fail(run, "got two values for the special 'caller' argument");
            names[call->kw.n] = STR("caller");
            kw[call->kw.n] = *caller;
        }
        args->names = names;
        args->kw = kw;
        args->n_kw = n_kw;
    }
    if (call->dyn_pos && (!jinja_eval(run, call->dyn_pos, &dynamic) || !add_dynamic_positions(run, &dynamic, args)))
        return false;
    if (!call->dyn_kw)
        return true;
    return jinja_eval(run, call->dyn_kw, &dynamic) && add_dynamic_keywords(run, &dynamic, args);
}

bool jinja_call(struct jrun *run, const struct jv *callee, const struct jargs *args, struct jv *out)
{
    switch ((enum jkind)callee->kind) {
    case J_MACRO: return jinja_call_macro(run, callee->macro, args, out);
    case J_FUNC: return callee->func->call(run, args, out);
    case J_METHOD: return callee->method->def->call(run, &callee->method->self, args, out);
    case J_LOOP: return jinja_loop_recurse(run, callee->loop, args, out);
    case J_JOINER:
        *out = callee->joiner->used ? JV_STR(callee->joiner->sep) : JV_STR(STR(""));
        callee->joiner->used = true;
        return true;
    case J_UNDEFINED: return jv_undefined_fail(run, callee);
    default: return jrun_fail(run, "'%s' object is not callable", jv_type_name(callee));
    }
}

static bool eval_call(struct jrun *run, const struct jnode *n, struct jv *out)
{
    struct jv callee;
    struct jargs args;
    if (!jinja_eval(run, n->a, &callee) || !jinja_eval_args(run, n->call, NULL, &args))
        return false;
    run->at = n;
    return jinja_call(run, &callee, &args, out);
}

/* ---- filters and tests ------------------------------------------------------------------------------------------- */

static bool apply_filter(struct jrun *run, const struct jnode *n, const struct jv *value, struct jv *out)
{
    const struct jfilter *filter = n->def;
    struct jargs args;
    if (!filter) {
        run->at = n;
        return jrun_fail(run, "no filter named '%.*s'", (int)n->name.len, n->name.ptr);
    }
    if (!jinja_eval_args(run, n->call, NULL, &args))
        return false;
    run->at = n;
    return filter->call(run, value, &args, out);
}

bool jinja_apply_filters(struct jrun *run, const struct jnode *chain, struct jv *value)
{
    struct jv in = *value;
    if (!jrun_enter(run))
        return false;
    bool ok = (!chain->a || jinja_apply_filters(run, chain->a, &in)) && apply_filter(run, chain, &in, value);
    jrun_leave(run);
    return ok;
}

static bool eval_filter(struct jrun *run, const struct jnode *n, struct jv *out)
{
    struct jv value;
    return jinja_eval(run, n->a, &value) && apply_filter(run, n, &value, out);
}

static bool eval_test(struct jrun *run, const struct jnode *n, struct jv *out)
{
    const struct jtest *test = n->def;
    struct jv value;
    struct jargs args;
    bool result;
    if (!jinja_eval(run, n->a, &value))
        return false;
    run->at = n;
    if (!test)
        return jrun_fail(run, "no test named '%.*s'", (int)n->name.len, n->name.ptr);
    if (!jinja_eval_args(run, n->call, NULL, &args))
        return false;
    run->at = n;
    if (!test->call(run, &value, &args, &result))
        return false;
    *out = JV_BOOL(result);
    return true;
}

/* ---- dispatch ---------------------------------------------------------------------------------------------------- */

static bool eval_operator(struct jrun *run, const struct jnode *n, struct jv *out)
{
    struct jv a, b;
    if (!jinja_eval(run, n->a, &a))
        return false;
    switch ((enum jnode_kind)n->kind) {
    case N_NOT: *out = JV_BOOL(!jv_truth(&a)); return true;
    case N_AND:
        if (jv_truth(&a))
            return jinja_eval(run, n->b, out);
        *out = a;
        return true;
    case N_OR:
        if (!jv_truth(&a))
            return jinja_eval(run, n->b, out);
        *out = a;
        return true;
    case N_NEG:
    case N_POS: run->at = n; return jinja_negate(run, &a, n->kind, out);
    case N_GETATTR: run->at = n; return jinja_getattr(run, &a, n->name, out);
    case N_GETITEM:
        if (!jinja_eval(run, n->b, &b))
            return false;
        run->at = n;
        return jinja_getitem(run, &a, &b, out);
    default:
        if (!jinja_eval(run, n->b, &b))
            return false;
        run->at = n;
        return jinja_binary(run, n->op, &a, &b, out);
    }
}

static bool eval_node(struct jrun *run, const struct jnode *n, struct jv *out)
{
    switch ((enum jnode_kind)n->kind) {
    case N_CONST: *out = n->value; return true;
    case N_NAME:
    case N_NSREF: return jinja_lookup(run, n->id, out);
    case N_TUPLE:
    case N_LIST:
        *out = (struct jv){.kind = n->kind == N_LIST ? J_LIST : J_TUPLE};
        return eval_items(run, &n->items, &out->list);
    case N_DICT: return eval_dict(run, n, out);
    case N_COND: return eval_cond(run, n, out);
    case N_COMPARE: return eval_compare(run, n, out);
    case N_CONCAT: return eval_concat(run, n, out);
    case N_SLICE: return eval_slice(run, n, out);
    case N_CALL: return eval_call(run, n, out);
    case N_FILTER: return eval_filter(run, n, out);
    case N_TEST: return eval_test(run, n, out);
    default: return eval_operator(run, n, out);
    }
}

bool jinja_eval(struct jrun *run, const struct jnode *n, struct jv *out)
{
    if (!jrun_steps(run, 1) || !jrun_enter(run))
        return false;
    run->at = n;
    bool ok = eval_node(run, n, out);
    jrun_leave(run);
    return ok;
}

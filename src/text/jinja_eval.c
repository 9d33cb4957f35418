/* Runs statements: scopes, loops, macros, captures, and the limits of a render.
 *
 * Scopes follow Jinja: a loop's body, a macro, a call, with, set or filter block each have one, an if has none. A macro
 * sees the scope in which it was defined, by reference. A name that a scope stores before anything reads it hides the
 * context's value from the beginning of that scope (`hidden`). */
#include "text/jinja.h"

#include <stdio.h>
#include <stdlib.h>

const struct jids jinja_no_ids = {NULL, 0};

/* ---- limits ------------------------------------------------------------------------------------------------------ */

bool jrun_fail(struct jrun *run, const char *format, ...)
{
    char text[ERR_TEXT_BYTES_MAX - 64];
    va_list args;
    if (run->err->code != ERR_NONE)
        return false;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!run->at)
        return err_set(run->err, ERR_TEMPLATE, "chat template: %s", text);
    return err_set(run->err, ERR_TEMPLATE, "chat template, line %u, column %u: %s", (unsigned)run->at->line,
                   (unsigned)run->at->col, text);
}

bool jrun_steps(struct jrun *run, uint64_t n)
{
    run->steps += n;
    if (run->steps <= TEMPLATE_STEPS_MAX)
        return true;
    return jrun_fail(run, "took more than %u steps", TEMPLATE_STEPS_MAX);
}

bool jrun_bytes(struct jrun *run, size_t bytes)
{
    return jrun_steps(run, bytes / JINJA_BYTES_PER_STEP);
}

bool jrun_enter(struct jrun *run)
{
    if (run->frames >= JINJA_FRAMES_MAX)
        return jrun_fail(run, "evaluation is nested deeper than %u levels", JINJA_FRAMES_MAX);
    run->frames++;
    return true;
}

static bool memory_over(struct jrun *run)
{
    return jrun_fail(run, "needs more than %u MiB of memory", TEMPLATE_MEMORY_BYTES_MAX >> 20);
}

void *jrun_alloc(struct jrun *run, size_t n, size_t size)
{
    void *out = arena_alloc_array(&run->arena, n, size);
    if (!out)
        memory_over(run);
    return out;
}

bool jrun_emit(struct jrun *run, struct str s)
{
    if (s.len == 0)
        return true;
    if (run->n_captures) {
        run->capture_bytes += s.len;
        if (run->capture_bytes > TEMPLATE_MEMORY_BYTES_MAX)
            return memory_over(run);
    }
    if (!jmarks_emitted(run, s))
        return false;
    if (!buf_append(run->out, s.ptr, s.len))
        return run->n_captures ? memory_over(run) : jrun_fail(run, "the rendered text is longer than %zu bytes", run->out->max);
    return jrun_bytes(run, s.len);
}

bool jrun_capture_begin(struct jrun *run, struct buf **saved)
{
    if (run->n_captures == run->cap_captures) {
        size_t cap = run->cap_captures ? run->cap_captures * 2 : 8;
        struct buf **captures = realloc(run->captures, cap * sizeof *captures);
        if (!captures)
            return memory_over(run);
        run->captures = captures;
        for (size_t i = run->cap_captures; i < cap; i++)
            captures[i] = NULL;
        run->cap_captures = cap;
    }
    struct buf *b = run->captures[run->n_captures];
    if (!b) {
        b = malloc(sizeof *b);
        if (!b)
            return memory_over(run);
        buf_init(b, TEMPLATE_MEMORY_BYTES_MAX);
        run->captures[run->n_captures] = b;
    }
    run->n_captures++;
    *saved = run->out;
    run->out = b;
    return jmarks_capture_begin(run);
}

#define CAPTURE_KEEP_BYTES (64u << 10)

bool jrun_capture_end(struct jrun *run, struct buf *saved, struct jv *out)
{
    struct buf *b = run->out;
    struct str s = buf_str(b);
    bool ok = true;
    if (out) {
        char *copy = jrun_alloc(run, s.len, 1);
        ok = copy != NULL;
        if (ok && s.len)
            memcpy(copy, s.ptr, s.len);
        ok = ok && jmarks_captured(run, copy);
        *out = JV_STR(((struct str){copy, ok ? s.len : 0}));
    }
    run->capture_bytes -= s.len;
    run->n_captures--;
    run->out = saved;
    if (b->cap > CAPTURE_KEEP_BYTES) {
        buf_release(b);
        buf_init(b, TEMPLATE_MEMORY_BYTES_MAX);
    } else {
        buf_clear(b);
    }
    return ok;
}

/* ---- scopes ------------------------------------------------------------------------------------------------------ */

struct jscope *jscope_push(struct jrun *run, struct jscope *parent, const struct jids *hidden)
{
    struct jscope *s = run->spare;
    if (s)
        run->spare = s->parent;
    else
        s = jrun_alloc(run, 1, sizeof *s);
    if (!s)
        return NULL;
    s->parent = parent;
    s->n = 0;
    s->captured = false;
    run->scope = s;
    for (size_t i = 0; i < hidden->n; i++)
        if (!jinja_bind(run, hidden->ids[i], JV_MISSING))
            return NULL;
    return s;
}

void jscope_pop(struct jrun *run, struct jscope *scope, struct jscope *back)
{
    run->scope = back;
    if (scope->captured)
        return;
    scope->parent = run->spare;
    run->spare = scope;
}

void jscope_capture(struct jscope *scope)
{
    for (; scope && !scope->captured; scope = scope->parent)
        scope->captured = true;
}

bool jinja_lookup(struct jrun *run, uint32_t id, struct jv *out)
{
    size_t seen = 0;
    for (const struct jscope *s = run->scope; s; s = s->parent) {
        for (uint32_t i = s->n; i-- > 0; seen++) {
            if (s->vars[i].id == id) {
                *out = s->vars[i].value;
                goto found;
            }
        }
    }
    *out = run->globals[id];
found:
    if (out->kind == J_MISSING)
        *out = jv_undefined_name(run->t->names[id]);
    return jrun_steps(run, seen / 8);
}

bool jinja_bind(struct jrun *run, uint32_t id, struct jv value)
{
    struct jscope *s = run->scope;
    for (uint32_t i = 0; i < s->n; i++) {
        if (s->vars[i].id == id) {
            s->vars[i].value = value;
            return jrun_steps(run, i / 8);
        }
    }
    if (s->n == s->cap) {
        uint32_t cap = s->cap ? s->cap * 2 : 4;
        struct jbinding *vars = jrun_alloc(run, cap, sizeof *vars);
        if (!vars)
            return false;
        if (s->n)
            memcpy(vars, s->vars, s->n * sizeof *vars);
        s->vars = vars;
        s->cap = cap;
    }
    s->vars[s->n++] = (struct jbinding){id, value};
    return jrun_steps(run, s->n / 8);
}

static bool assign_member(struct jrun *run, const struct jnode *target, const struct jv *value)
{
    struct jv ns;
    if (!jinja_lookup(run, target->id, &ns))
        return false;
    if (ns.kind != J_NAMESPACE)
        return jrun_fail(run, "cannot assign attribute on non-namespace object '%.*s'", (int)target->name.len,
                         target->name.ptr);
    if (target->attr.len && target->attr.ptr[0] == '_')
        return jrun_fail(run, "a namespace cannot have the underscore-prefixed member '%.*s'", (int)target->attr.len,
                         target->attr.ptr);
    return jdict_set_str(run, ns.dict, target->attr, value);
}

bool jinja_assign(struct jrun *run, const struct jnode *target, const struct jv *value)
{
    struct jlist list;
    if (target->kind == N_NAME)
        return jinja_bind(run, target->id, *value);
    if (target->kind == N_NSREF)
        return assign_member(run, target, value);
    if (!jiter_possible(value))
        return jrun_fail(run, "cannot unpack non-iterable %s object", jv_type_name(value));
    if (!jiter_list(run, value, &list))
        return false;
    if (list.n != target->items.n)
        return jrun_fail(run, "expected %zu values to unpack, got %zu", target->items.n, list.n);
    for (size_t i = 0; i < list.n; i++)
        if (!jinja_assign(run, target->items.items[i], &list.items[i]))
            return false;
    return true;
}

/* ---- loops ------------------------------------------------------------------------------------------------------- */

struct jloop {
    struct jiter *it;
    int64_t index0;
    int64_t length; /* -1: not known yet */
    int64_t depth0;
    struct jv iterable, before, current, after, changed;
    const struct jnode *node; /* of a recursive loop */
    struct jscope *scope;     /* around the loop */
};

static int loop_peek(struct jrun *run, struct jloop *l)
{
    if (l->after.kind != J_MISSING)
        return 1;
    int got = jiter_next(run, l->it, &l->after);
    if (got <= 0)
        l->after = JV_MISSING;
    return got;
}

static bool loop_length(struct jrun *run, struct jloop *l)
{
    if (l->length >= 0)
        return true;
    l->length = jv_length(run, &l->iterable);
    if (l->length >= 0)
        return true;
    /* a generator: read the rest of it */
    struct jlist rest;
    if (!jiter_list(run, &JV_ITER(l->it), &rest) || !(l->it = jiter_new(run, IT_VALUE, &JV_LIST(rest))))
        return false;
    l->length = (int64_t)rest.n + l->index0 + 1 + (l->after.kind != J_MISSING);
    return true;
}

bool jinja_loop_attr(struct jrun *run, struct jloop *l, struct str name, struct jv *out)
{
    int got;
    *out = JV_MISSING;
    if (str_equal(name, STR("index"))) {
        *out = JV_INT(l->index0 + 1);
    } else if (str_equal(name, STR("index0"))) {
        *out = JV_INT(l->index0);
    } else if (str_equal(name, STR("first"))) {
        *out = JV_BOOL(l->index0 == 0);
    } else if (str_equal(name, STR("last"))) {
        if ((got = loop_peek(run, l)) < 0)
            return false;
        *out = JV_BOOL(got == 0);
    } else if (str_equal(name, STR("length")) || str_equal(name, STR("revindex")) || str_equal(name, STR("revindex0"))) {
        if (!loop_length(run, l))
            return false;
        bool rev = name.ptr[0] == 'r';
        *out = JV_INT(!rev ? l->length : l->length - l->index0 - (name.len == 9));
    } else if (str_equal(name, STR("previtem"))) {
        *out = l->index0 == 0 ? jv_undefined_hint("there is no previous item") : l->before;
    } else if (str_equal(name, STR("nextitem"))) {
        if ((got = loop_peek(run, l)) < 0)
            return false;
        *out = got ? l->after : jv_undefined_hint("there is no next item");
    } else if (str_equal(name, STR("depth")) || str_equal(name, STR("depth0"))) {
        *out = JV_INT(l->depth0 + (name.len == 5));
    }
    return true;
}

static bool loop_cycle(struct jrun *run, const struct jv *self, const struct jargs *args, struct jv *out)
{
    if (args->n_pos == 0 || args->n_kw)
        return jrun_fail(run, "loop.cycle: no items for cycling given");
    *out = args->pos[self->loop->index0 % (int64_t)args->n_pos];
    return true;
}

static bool loop_changed(struct jrun *run, const struct jv *self, const struct jargs *args, struct jv *out)
{
    struct jbuilder b = {0};
    bool equal = false;
    for (size_t i = 0; i < args->n_pos; i++)
        if (!jbuilder_add(run, &b, &args->pos[i]))
            return false;
    struct jv now = {.kind = J_TUPLE, .list = jbuilder_list(&b)};
    if (self->loop->changed.kind != J_MISSING && !jv_equal(run, &self->loop->changed, &now, 0, &equal))
        return false;
    self->loop->changed = now;
    *out = JV_BOOL(!equal);
    return true;
}

const struct jmethod_def jinja_loop_methods[] = {{"cycle", loop_cycle}, {"changed", loop_changed}, {NULL, NULL}};

/* One item: a fresh scope with the target and `loop`. */
static enum jflow loop_body(struct jrun *run, const struct jnode *n, struct jloop *l, uint32_t loop_id)
{
    struct jscope *back = run->scope;
    struct jscope *scope = jscope_push(run, l->scope, &n->hidden);
    enum jflow flow = FLOW_FAIL;
    if (scope && jinja_assign(run, n->a, &l->current) &&
        (loop_id == UINT32_MAX || jinja_bind(run, loop_id, (struct jv){.kind = J_LOOP, .loop = l})))
        flow = jinja_exec(run, &n->body);
    if (scope)
        jscope_pop(run, scope, back);
    return flow;
}

static enum jflow loop_else(struct jrun *run, const struct jnode *n, struct jscope *parent)
{
    struct jscope *back = run->scope;
    struct jscope *scope = jscope_push(run, parent, &n->else_hidden);
    if (!scope)
        return FLOW_FAIL;
    enum jflow flow = jinja_exec(run, &n->else_body);
    jscope_pop(run, scope, back);
    return flow;
}

static bool loop_open(struct jrun *run, const struct jnode *n, const struct jv *iterable, struct jloop *l)
{
    l->iterable = *iterable;
    l->index0 = l->length = -1;
    l->scope = run->scope;
    if (!jiter_open(run, iterable, &l->it))
        return false;
    if (!n->c)
        return true;
    struct jiter *filter = jiter_new(run, IT_FOR_FILTER, iterable);
    if (!filter)
        return false;
    filter->inner = l->it;
    filter->loop = n;
    filter->scope = run->scope;
    l->it = filter;
    l->iterable = JV_ITER(filter);
    return true;
}

static enum jflow run_loop(struct jrun *run, const struct jnode *n, const struct jv *iterable, int64_t depth0)
{
    struct jloop *l = jrun_alloc(run, 1, sizeof *l);
    uint32_t loop_id = jinja_find_name(run->t, STR("loop"));
    enum jflow flow = FLOW_NEXT;
    bool any = false;
    if (!l || !loop_open(run, n, iterable, l))
        return FLOW_FAIL;
    l->depth0 = depth0;
    l->node = n->op ? n : NULL;
    while (flow != FLOW_BREAK) {
        int got = loop_peek(run, l);
        if (got < 0)
            return FLOW_FAIL;
        if (got == 0)
            break;
        l->before = l->current;
        l->current = l->after;
        l->after = JV_MISSING;
        l->index0++;
        flow = loop_body(run, n, l, loop_id);
        if (flow == FLOW_FAIL)
            return flow;
        any |= flow == FLOW_NEXT;
    }
    if (any || n->else_body.n == 0)
        return FLOW_NEXT;
    return loop_else(run, n, l->scope);
}

bool jinja_loop_recurse(struct jrun *run, struct jloop *l, const struct jargs *args, struct jv *out)
{
    if (!l->node)
        return jrun_fail(run, "the loop must have the 'recursive' marker to be called recursively");
    if (args->n_pos != 1 || args->n_kw)
        return jrun_fail(run, "loop() takes one argument");
    struct buf *saved;
    if (run->calls >= TEMPLATE_DEPTH_MAX)
        return jrun_fail(run, "loops are nested deeper than %u calls", TEMPLATE_DEPTH_MAX);
    if (!jrun_enter(run) || !jrun_capture_begin(run, &saved))
        return false;
    struct jscope *back = run->scope;
    run->calls++;
    run->scope = l->scope;
    bool ok = run_loop(run, l->node, &args->pos[0], l->depth0 + 1) != FLOW_FAIL;
    run->scope = back;
    run->calls--;
    jrun_leave(run);
    return jrun_capture_end(run, saved, ok ? out : NULL) && ok;
}

static enum jflow exec_for(struct jrun *run, const struct jnode *n)
{
    struct jv iterable;
    if (!jinja_eval(run, n->b, &iterable))
        return FLOW_FAIL;
    run->at = n;
    return run_loop(run, n, &iterable, 0);
}

/* ---- macros ------------------------------------------------------------------------------------------------------ */

/* What the keyword arguments hold for `name`; marks it used. */
static bool take_keyword(const struct jargs *args, bool *used, struct str name, struct jv *out)
{
    for (size_t k = 0; k < args->n_kw; k++) {
        if (!used[k] && str_equal(args->names[k], name)) {
            used[k] = true;
            *out = args->kw[k];
            return true;
        }
    }
    return false;
}

static bool bind_special(struct jrun *run, const char *name, struct jv value)
{
    uint32_t id = jinja_find_name(run->t, str_from(name));
    return id == UINT32_MAX || jinja_bind(run, id, value);
}

static bool bind_rest(struct jrun *run, const struct jmacro *m, const struct jargs *args, bool *used)
{
    const struct jsignature *sig = m->sig;
    struct str shown = m->name.ptr ? m->name : STR("caller");
    if (sig->caller && !sig->own_caller) {
        struct jv caller = JV_NONE;
        if (!take_keyword(args, used, STR("caller"), &caller) || caller.kind == J_NONE)
            caller = jv_undefined_hint("no caller defined");
        if (!bind_special(run, "caller", caller))
            return false;
    }
    struct jdict *rest = sig->kwargs ? jdict_new(run, 4) : NULL;
    if (sig->kwargs && !rest)
        return false;
    for (size_t k = 0; k < args->n_kw; k++) {
        if (used[k])
            continue;
        if (!rest)
            return jrun_fail(run, "macro '%.*s' takes no keyword argument '%.*s'", (int)shown.len, shown.ptr,
                             (int)args->names[k].len, args->names[k].ptr);
        if (!jdict_set_str(run, rest, args->names[k], &args->kw[k]))
            return false;
    }
    if (rest && !bind_special(run, "kwargs", JV_DICT(rest)))
        return false;
    size_t extra = args->n_pos > sig->n ? args->n_pos - sig->n : 0;
    if (!sig->varargs) {
        if (extra)
            return jrun_fail(run, "macro '%.*s' takes not more than %zu argument(s)", (int)shown.len, shown.ptr, sig->n);
        return true;
    }
    struct jbuilder b = {0};
    for (size_t i = 0; i < extra; i++)
        if (!jbuilder_add(run, &b, &args->pos[sig->n + i]))
            return false;
    return bind_special(run, "varargs", (struct jv){.kind = J_TUPLE, .list = jbuilder_list(&b)});
}

static bool bind_parameters(struct jrun *run, const struct jmacro *m, const struct jargs *args)
{
    const struct jsignature *sig = m->sig;
    bool used[JINJA_ARGS_MAX * 2 + 2] = {false};
    bool given[JINJA_ARGS_MAX];
    for (size_t i = 0; i < sig->n; i++) {
        struct jv value;
        given[i] = i < args->n_pos;
        if (given[i])
            value = args->pos[i];
        else
            given[i] = take_keyword(args, used, sig->names[i], &value);
        if (given[i] && !jinja_bind(run, sig->ids[i], value))
            return false;
    }
    if (!bind_rest(run, m, args, used))
        return false;
    for (size_t i = 0; i < sig->n; i++) {
        size_t first_default = sig->n - sig->defaults.n;
        struct jv value;
        if (given[i])
            continue;
        if (i < first_default) {
            struct jtext t = {.run = run};
            jtext_add(&t, STR("parameter '"));
            jtext_add(&t, sig->names[i]);
            jtext_add(&t, STR("' was not provided"));
            if (t.failed)
                return false;
            value = (struct jv){.kind = J_UNDEFINED, .flags = J_HINT, .s = jtext_value(&t).s};
        } else if (!jinja_eval(run, sig->defaults.items[i - first_default], &value)) {
            return false;
        }
        if (!jinja_bind(run, sig->ids[i], value))
            return false;
    }
    return true;
}

bool jinja_call_macro(struct jrun *run, const struct jmacro *m, const struct jargs *args, struct jv *out)
{
    struct buf *saved;
    const struct jnode *at = run->at;
    if (run->calls >= TEMPLATE_DEPTH_MAX)
        return jrun_fail(run, "macros are nested deeper than %u calls", TEMPLATE_DEPTH_MAX);
    if (args->n_kw > JINJA_ARGS_MAX * 2)
        return jrun_fail(run, "more than %u arguments", JINJA_ARGS_MAX * 2);
    if (!jrun_enter(run) || !jrun_capture_begin(run, &saved))
        return false;
    struct jscope *back = run->scope;
    struct jscope *scope = jscope_push(run, m->scope, m->hidden);
    run->calls++;
    bool ok = scope && bind_parameters(run, m, args) && jinja_exec(run, m->body) != FLOW_FAIL;
    run->calls--;
    if (scope)
        jscope_pop(run, scope, back);
    jrun_leave(run);
    if (ok)
        run->at = at;
    return jrun_capture_end(run, saved, ok ? out : NULL) && ok;
}

static struct jmacro *macro_new(struct jrun *run, const struct jnode *n, struct str name)
{
    static const struct jsignature no_parameters;
    struct jmacro *m = jrun_alloc(run, 1, sizeof *m);
    if (!m)
        return NULL;
    *m = (struct jmacro){name, n->sig ? n->sig : &no_parameters, &n->body, &n->hidden, run->scope};
    jscope_capture(run->scope);
    return m;
}

static bool emit_value(struct jrun *run, const struct jv *v)
{
    struct str s;
    return jv_to_str(run, v, &s) && jrun_emit(run, s);
}

static enum jflow exec_macro(struct jrun *run, const struct jnode *n)
{
    struct jmacro *m = macro_new(run, n, n->name);
    return m && jinja_bind(run, n->id, (struct jv){.kind = J_MACRO, .macro = m}) ? FLOW_NEXT : FLOW_FAIL;
}

static enum jflow exec_call_block(struct jrun *run, const struct jnode *n)
{
    struct jv callee, result, caller = {.kind = J_MACRO};
    struct jargs args;
    if (!(caller.macro = macro_new(run, n, (struct str){NULL, 0})) || !jinja_eval(run, n->a->a, &callee) ||
        !jinja_eval_args(run, n->a->call, &caller, &args))
        return FLOW_FAIL;
    run->at = n;
    return jinja_call(run, &callee, &args, &result) && emit_value(run, &result) ? FLOW_NEXT : FLOW_FAIL;
}

/* ---- other statements -------------------------------------------------------------------------------------------- */

static enum jflow exec_scoped(struct jrun *run, const struct jnode *n, struct jscope *parent)
{
    struct jscope *back = run->scope;
    struct jscope *scope = jscope_push(run, parent, &n->hidden);
    if (!scope)
        return FLOW_FAIL;
    enum jflow flow = jinja_exec(run, &n->body);
    jscope_pop(run, scope, back);
    return flow;
}

/* The body's text through the filters, then stored (set) or printed (filter). */
static enum jflow exec_captured(struct jrun *run, const struct jnode *n)
{
    struct buf *saved;
    struct jv text;
    if (!jrun_capture_begin(run, &saved))
        return FLOW_FAIL;
    enum jflow flow = exec_scoped(run, n, run->scope);
    if (!jrun_capture_end(run, saved, flow == FLOW_NEXT ? &text : NULL))
        return FLOW_FAIL;
    if (flow != FLOW_NEXT)
        return flow;
    if (n->b && !jinja_apply_filters(run, n->b, &text))
        return FLOW_FAIL;
    run->at = n;
    if (n->kind == N_SET_BLOCK)
        return jinja_assign(run, n->a, &text) ? FLOW_NEXT : FLOW_FAIL;
    return emit_value(run, &text) ? FLOW_NEXT : FLOW_FAIL;
}

static enum jflow exec_with(struct jrun *run, const struct jnode *n)
{
    struct jscope *back = run->scope;
    size_t n_targets = n->items.n / 2;
    struct jv *values = jrun_alloc(run, n_targets, sizeof *values);
    if (!values)
        return FLOW_FAIL;
    for (size_t i = 0; i < n_targets; i++)
        if (!jinja_eval(run, n->items.items[2 * i + 1], &values[i]))
            return FLOW_FAIL;
    struct jscope *scope = jscope_push(run, back, &n->hidden);
    if (!scope)
        return FLOW_FAIL;
    for (size_t i = 0; i < n_targets; i++)
        if (!jinja_assign(run, n->items.items[2 * i], &values[i]))
            return FLOW_FAIL;
    enum jflow flow = jinja_exec(run, &n->body);
    jscope_pop(run, scope, back);
    return flow;
}

static enum jflow exec_if(struct jrun *run, const struct jnode *n)
{
    for (;; n = n->b) {
        struct jv test;
        if (!jrun_steps(run, 1) || !jinja_eval(run, n->a, &test))
            return FLOW_FAIL;
        if (jv_truth(&test))
            return jinja_exec(run, &n->body);
        if (!n->b)
            return jinja_exec(run, &n->else_body);
    }
}

static bool check_members(struct jrun *run, const struct jnode *target)
{
    struct jv ns;
    for (size_t i = 0; target->kind == N_TUPLE && i < target->items.n; i++)
        if (!check_members(run, target->items.items[i]))
            return false;
    if (target->kind != N_NSREF)
        return true;
    if (!jinja_lookup(run, target->id, &ns))
        return false;
    return ns.kind == J_NAMESPACE ||
           jrun_fail(run, "cannot assign attribute on non-namespace object '%.*s'", (int)target->name.len, target->name.ptr);
}

static enum jflow exec_set(struct jrun *run, const struct jnode *n)
{
    struct jv value;
    if (!check_members(run, n->a) || !jinja_eval(run, n->b, &value))
        return FLOW_FAIL;
    run->at = n;
    return jinja_assign(run, n->a, &value) ? FLOW_NEXT : FLOW_FAIL;
}

static enum jflow exec_output(struct jrun *run, const struct jnode *n)
{
    struct jv value;
    return jinja_eval(run, n->a, &value) && emit_value(run, &value) ? FLOW_NEXT : FLOW_FAIL;
}

static enum jflow exec_print(struct jrun *run, const struct jnode *n)
{
    for (size_t i = 0; i < n->items.n; i++) {
        struct jv value;
        if (!jinja_eval(run, n->items.items[i], &value) || !emit_value(run, &value))
            return FLOW_FAIL;
    }
    return FLOW_NEXT;
}

static enum jflow exec_statement(struct jrun *run, const struct jnode *n)
{
    switch ((enum jnode_kind)n->kind) {
    case N_TEXT: return jrun_emit(run, n->value.s) ? FLOW_NEXT : FLOW_FAIL;
    case N_OUTPUT: return exec_output(run, n);
    case N_PRINT: return exec_print(run, n);
    case N_IF: return exec_if(run, n);
    case N_FOR: return exec_for(run, n);
    case N_SET: return exec_set(run, n);
    case N_SET_BLOCK:
    case N_FILTER_BLOCK: return exec_captured(run, n);
    case N_WITH: return exec_with(run, n);
    case N_MACRO: return exec_macro(run, n);
    case N_CALL_BLOCK: return exec_call_block(run, n);
    case N_GENERATION:
    case N_SCOPE: return exec_scoped(run, n, run->scope);
    case N_BLOCK: return exec_scoped(run, n, n->op ? run->scope : run->top);
    case N_BREAK: return FLOW_BREAK;
    case N_CONTINUE: return FLOW_CONTINUE;
    default:
        jrun_fail(run, "'%.*s' needs other templates, which a chat template cannot load", (int)n->name.len, n->name.ptr);
        return FLOW_FAIL;
    }
}

enum jflow jinja_exec(struct jrun *run, const struct jnodes *body)
{
    enum jflow flow = FLOW_NEXT;
    if (!jrun_enter(run))
        return FLOW_FAIL;
    for (size_t i = 0; flow == FLOW_NEXT && i < body->n; i++) {
        run->at = body->items[i];
        flow = jrun_steps(run, 1) ? exec_statement(run, body->items[i]) : FLOW_FAIL;
    }
    jrun_leave(run);
    return flow;
}

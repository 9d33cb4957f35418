/* What the tree says before any render.
 *
 * Unknown filters and tests are errors unless a condition may keep them from being reached; a block may be defined
 * once.
 *
 * Names: where the first thing in a scope's own statements that touches a name is an assignment which no condition
 * guards, and no scope around it mentions the name, the name is hidden in that scope from the beginning: a loop or
 * macro that reads it earlier finds nothing, even where the context has a value. (Jinja decides so when it compiles.)
 *
 * A scope's own statements are walked first, then the scopes inside it; linear in the size of the tree. */
#include "text/jinja.h"

#include <stdlib.h>

struct check {
    struct template *t;
    struct err *err;
    uint32_t *seen;   /* by name: number of the scope that touched it last */
    uint32_t *around; /* by name: enclosing scopes that mention it */
    bool *blocks;     /* by name: such a block exists */
    uint32_t serial;
    bool soft;  /* a condition is around, in this scope */
    bool names; /* note names, not only unknown filters */
};

struct id_list {
    uint32_t *ids;
    size_t n, cap;
};

struct frame {
    struct id_list mentioned, hidden;
    uint32_t serial;
};

static bool no_memory(struct check *c)
{
    return err_set(c->err, ERR_TEMPLATE, "chat template: the compiled template is larger than %u MiB",
                   JINJA_COMPILE_BYTES_MAX >> 20);
}

static bool add_id(struct check *c, struct id_list *list, uint32_t id)
{
    if (list->n == list->cap) {
        size_t cap = list->cap ? list->cap * 2 : 8;
        uint32_t *ids = arena_alloc_array(&c->t->arena, cap, sizeof *ids);
        if (!ids)
            return no_memory(c);
        if (list->n)
            memcpy(ids, list->ids, list->n * sizeof *ids);
        list->ids = ids;
        list->cap = cap;
    }
    list->ids[list->n++] = id;
    return true;
}

static bool touch(struct check *c, struct frame *f, uint32_t id, bool stores)
{
    if (c->seen[id] == f->serial)
        return true;
    c->seen[id] = f->serial;
    if (stores && !c->soft && c->around[id] == 0 && !add_id(c, &f->hidden, id))
        return false;
    return add_id(c, &f->mentioned, id);
}

static bool walk_expr(struct check *c, struct frame *f, const struct jnode *n);

static bool walk_all(struct check *c, struct frame *f, const struct jnodes *nodes)
{
    for (size_t i = 0; i < nodes->n; i++)
        if (!walk_expr(c, f, nodes->items[i]))
            return false;
    return true;
}

static bool walk_expr(struct check *c, struct frame *f, const struct jnode *n)
{
    bool soft = c->soft;
    if (!n)
        return true;
    if (n->kind == N_NAME || n->kind == N_NSREF)
        return !c->names || touch(c, f, n->id, false);
    if ((n->kind == N_FILTER || n->kind == N_TEST) && !n->def && !soft)
        return jinja_syntax_error(c->err, n->line, n->col, "no %s named '%.*s'", n->kind == N_FILTER ? "filter" : "test",
                                  (int)(n->name.len < 80 ? n->name.len : 80), n->name.ptr);
    c->soft |= n->kind == N_COND;
    bool ok = walk_expr(c, f, n->a) && walk_expr(c, f, n->b) && walk_expr(c, f, n->c) && walk_all(c, f, &n->items);
    if (ok && n->call)
        ok = walk_all(c, f, &n->call->pos) && walk_all(c, f, &n->call->kw) && walk_expr(c, f, n->call->dyn_pos) &&
             walk_expr(c, f, n->call->dyn_kw);
    c->soft = soft;
    return ok;
}

static bool walk_target(struct check *c, struct frame *f, const struct jnode *n, bool stores)
{
    if (n->kind != N_TUPLE)
        return touch(c, f, n->id, stores && n->kind == N_NAME);
    for (size_t i = 0; i < n->items.n; i++)
        if (!walk_target(c, f, n->items.items[i], stores))
            return false;
    return true;
}

/* ---- the statements of one scope --------------------------------------------------------------------------------- */

static bool walk_own(struct check *c, struct frame *f, const struct jnodes *body);

static bool walk_if(struct check *c, struct frame *f, const struct jnode *n)
{
    bool soft = c->soft;
    bool ok = true;
    c->soft = true;
    for (; ok && n; n = n->b)
        ok = walk_expr(c, f, n->a) && walk_own(c, f, &n->body) && walk_own(c, f, &n->else_body);
    c->soft = soft;
    return ok;
}

static bool walk_statement(struct check *c, struct frame *f, const struct jnode *n)
{
    bool soft = c->soft, ok = true;
    switch ((enum jnode_kind)n->kind) {
    case N_OUTPUT: return walk_expr(c, f, n->a);
    case N_PRINT: return walk_all(c, f, &n->items);
    case N_IF: return walk_if(c, f, n);
    case N_FOR: return walk_expr(c, f, n->b);
    case N_SET: return walk_expr(c, f, n->b) && walk_target(c, f, n->a, true);
    case N_SET_BLOCK: return walk_target(c, f, n->a, true);
    case N_WITH:
        for (size_t i = 1; ok && i < n->items.n; i += 2)
            ok = walk_expr(c, f, n->items.items[i]);
        return ok;
    case N_MACRO: return touch(c, f, n->id, true);
    case N_CALL_BLOCK: return walk_expr(c, f, n->a);
    case N_FILTER_BLOCK:
        c->soft = true; /* whether its filters exist is asked in the inner scope */
        ok = walk_expr(c, f, n->b);
        c->soft = soft;
        return ok;
    case N_BLOCK:
        if (c->blocks[n->id])
            return jinja_syntax_error(c->err, n->line, n->col, "block '%.*s' defined twice", (int)n->name.len, n->name.ptr);
        c->blocks[n->id] = true;
        return true;
    default: return true;
    }
}

static bool walk_own(struct check *c, struct frame *f, const struct jnodes *body)
{
    for (size_t i = 0; i < body->n; i++)
        if (!walk_statement(c, f, body->items[i]))
            return false;
    return true;
}

/* ---- scopes inside ----------------------------------------------------------------------------------------------- */

static bool walk_inner(struct check *c, const struct jnodes *body);

static void frame_begin(struct check *c, struct frame *f)
{
    *f = (struct frame){.serial = ++c->serial};
    c->soft = false;
    c->names = true;
}

/* The scope's own statements and the scopes inside them; its hidden names. */
static bool frame_body(struct check *c, struct frame *f, const struct jnodes *body, struct jids *hidden)
{
    if (!walk_own(c, f, body))
        return false;
    *hidden = (struct jids){f->hidden.ids, f->hidden.n};
    for (size_t i = 0; i < f->mentioned.n; i++)
        c->around[f->mentioned.ids[i]]++;
    bool ok = walk_inner(c, body);
    for (size_t i = 0; i < f->mentioned.n; i++)
        c->around[f->mentioned.ids[i]]--;
    return ok;
}

static bool special_parameter(struct check *c, struct frame *f, const char *name)
{
    uint32_t id = jinja_find_name(c->t, str_from(name));
    return id == UINT32_MAX || touch(c, f, id, false);
}

static bool walk_callable(struct check *c, struct jnode *n)
{
    struct frame f;
    frame_begin(c, &f);
    const struct jsignature *sig = n->sig;
    for (size_t i = 0; sig && i < sig->n; i++)
        if (!touch(c, &f, sig->ids[i], false))
            return false;
    if (sig && ((sig->caller && !special_parameter(c, &f, "caller")) || (sig->kwargs && !special_parameter(c, &f, "kwargs")) ||
                (sig->varargs && !special_parameter(c, &f, "varargs")) || !walk_all(c, &f, &sig->defaults)))
        return false;
    return frame_body(c, &f, &n->body, &n->hidden);
}

static bool walk_loop(struct check *c, struct jnode *n)
{
    struct frame f;
    if (n->c) {
        frame_begin(c, &f);
        if (!walk_expr(c, &f, n->c))
            return false;
    }
    frame_begin(c, &f);
    if (!walk_target(c, &f, n->a, false) || !special_parameter(c, &f, "loop") || !frame_body(c, &f, &n->body, &n->hidden))
        return false;
    frame_begin(c, &f);
    return frame_body(c, &f, &n->else_body, &n->else_hidden);
}

static bool walk_scope(struct check *c, struct jnode *n)
{
    struct frame f;
    frame_begin(c, &f);
    if (n->kind == N_FILTER_BLOCK || n->kind == N_SET_BLOCK) {
        c->names = false;
        if (!walk_expr(c, &f, n->b))
            return false;
        c->names = true;
    }
    for (size_t i = 0; n->kind == N_WITH && i < n->items.n; i += 2)
        if (!walk_target(c, &f, n->items.items[i], false))
            return false;
    struct jids hidden;
    if (!frame_body(c, &f, &n->body, &hidden))
        return false;
    n->hidden = n->kind == N_BLOCK ? jinja_no_ids : hidden;
    return true;
}

static bool walk_inner(struct check *c, const struct jnodes *body)
{
    for (size_t i = 0; i < body->n; i++) {
        struct jnode *n = body->items[i];
        bool ok = true;
        switch ((enum jnode_kind)n->kind) {
        case N_IF:
            for (const struct jnode *k = n; ok && k; k = k->b)
                ok = walk_inner(c, &k->body) && walk_inner(c, &k->else_body);
            break;
        case N_FOR: ok = walk_loop(c, n); break;
        case N_MACRO:
        case N_CALL_BLOCK:
        case N_GENERATION: ok = walk_callable(c, n); break;
        case N_SET_BLOCK:
        case N_FILTER_BLOCK:
        case N_WITH:
        case N_SCOPE:
        case N_BLOCK: ok = walk_scope(c, n); break;
        default: break;
        }
        if (!ok)
            return false;
    }
    return true;
}

bool jinja_check(struct template *t, struct err *err)
{
    struct check c = {.t = t, .err = err};
    struct frame f;
    size_t n = t->n_names + 1;
    c.seen = calloc(n, sizeof *c.seen);
    c.around = calloc(n, sizeof *c.around);
    c.blocks = calloc(n, sizeof *c.blocks);
    bool ok = c.seen && c.around && c.blocks;
    if (!ok)
        err_set(err, ERR_MEMORY, "no memory to compile a chat template");
    frame_begin(&c, &f);
    ok = ok && frame_body(&c, &f, &t->body, &t->hidden);
    free(c.seen);
    free(c.around);
    free(c.blocks);
    return ok;
}

/* Tokens to tree: statements here, expressions in jinja_parse_expr.c. Recursive descent; every nested construct counts
 * against TEMPLATE_DEPTH_MAX and every node knows the height of its tree, so that later walks may recurse. */
#include "text/jinja_parse.h"

#include <stdio.h>
#include <stdlib.h>

bool jparse_fail(struct jparser *p, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return jinja_syntax_error(p->err, p->now.line, p->now.col, "%s", text);
}

bool jparse_advance(struct jparser *p)
{
    if (p->has_next) {
        p->now = p->next;
        p->has_next = false;
        return true;
    }
    return jlex_next(&p->lex, &p->now);
}

bool jparse_look(struct jparser *p)
{
    if (p->has_next)
        return true;
    p->has_next = jlex_next(&p->lex, &p->next);
    return p->has_next;
}

void jparse_describe(const struct jtoken *t, char *out, size_t room)
{
    static const char *const names[] = {"end of template",
                                        "template text",
                                        "begin of print statement",
                                        "end of print statement",
                                        "begin of statement block",
                                        "end of statement block",
                                        "name",
                                        "string",
                                        "integer",
                                        "float"};
    static const char *const two[] = {"==", "!=", "<=", ">=", "//", "**"};
    if (t->kind == T_NAME)
        snprintf(out, room, "%.*s", (int)(t->text.len < 80 ? t->text.len : 80), t->text.ptr);
    else if (t->kind != T_OP)
        snprintf(out, room, "%s", names[t->kind]);
    else if (t->op >= 256)
        snprintf(out, room, "%s", two[t->op - 256]);
    else
        snprintf(out, room, "%c", t->op);
}

bool jparse_is_op(const struct jparser *p, int op)
{
    return p->now.kind == T_OP && p->now.op == op;
}

bool jparse_is_name(const struct jparser *p, const char *name)
{
    return p->now.kind == T_NAME && str_equal(p->now.text, str_from(name));
}

/* Advances over `op` when it is there. */
bool jparse_skip_op(struct jparser *p, int op, bool *skipped)
{
    *skipped = jparse_is_op(p, op);
    return !*skipped || jparse_advance(p);
}

bool jparse_skip_name(struct jparser *p, const char *name, bool *skipped)
{
    *skipped = jparse_is_name(p, name);
    return !*skipped || jparse_advance(p);
}

static bool unexpected(struct jparser *p, const char *wanted)
{
    char got[96];
    jparse_describe(&p->now, got, sizeof got);
    return jparse_fail(p, "expected '%s', got '%s'", wanted, got);
}

bool jparse_expect_op(struct jparser *p, int op)
{
    char wanted[2] = {(char)op, 0};
    return jparse_is_op(p, op) ? jparse_advance(p) : unexpected(p, wanted);
}

bool jparse_expect_name(struct jparser *p, const char *name)
{
    return jparse_is_name(p, name) ? jparse_advance(p) : unexpected(p, name);
}

static bool expect_kind(struct jparser *p, enum jtoken_kind kind, const char *wanted)
{
    return p->now.kind == kind ? jparse_advance(p) : unexpected(p, wanted);
}

bool jparse_any_name(struct jparser *p, struct str *name)
{
    *name = p->now.text;
    return expect_kind(p, T_NAME, "name");
}

bool jparse_enter(struct jparser *p)
{
    if (++p->depth <= TEMPLATE_DEPTH_MAX)
        return true;
    return jparse_fail(p, "nested deeper than %u levels", TEMPLATE_DEPTH_MAX);
}

void *jparse_alloc(struct jparser *p, size_t n, size_t size)
{
    void *out = arena_alloc_array(&p->t->arena, n, size);
    if (!out)
        jparse_fail(p, "the compiled template is larger than %u MiB", JINJA_COMPILE_BYTES_MAX >> 20);
    return out;
}

struct jnode *jparse_node_at(struct jparser *p, enum jnode_kind kind, uint32_t line, uint32_t col)
{
    struct jnode *n = jparse_alloc(p, 1, sizeof *n);
    if (n) {
        n->kind = (uint8_t)kind;
        n->line = line;
        n->col = col;
        n->height = 1;
    }
    return n;
}

struct jnode *jparse_node(struct jparser *p, enum jnode_kind kind)
{
    return jparse_node_at(p, kind, p->now.line, p->now.col);
}

bool jparse_child(struct jparser *p, struct jnode *parent, const struct jnode *child)
{
    if (child && child->height >= parent->height)
        parent->height = child->height + 1;
    if (parent->height <= JINJA_HEIGHT_MAX)
        return true;
    return jparse_fail(p, "an expression or block is nested deeper than %u levels", JINJA_HEIGHT_MAX);
}

bool jparse_push(struct jparser *p, struct jgrow *g, struct jnode *n)
{
    if (g->nodes.n == g->cap) {
        size_t cap = g->cap ? g->cap * 2 : 4;
        struct jnode **items = jparse_alloc(p, cap, sizeof(struct jnode *));
        if (!items)
            return false;
        if (g->nodes.n)
            memcpy(items, g->nodes.items, g->nodes.n * sizeof *items);
        g->nodes.items = items;
        g->cap = cap;
    }
    g->nodes.items[g->nodes.n++] = n;
    if (n && n->height > g->height)
        g->height = n->height;
    return true;
}

/* Takes over the nodes of `g` as children of `parent`. */
bool jparse_take(struct jparser *p, struct jnode *parent, const struct jgrow *g, struct jnodes *out)
{
    *out = g->nodes;
    return jparse_child(p, parent, &(struct jnode){.height = g->height});
}

/* ---- statements -------------------------------------------------------------------------------------------------- */

static bool parse_body(struct jparser *p, const char *const ends[], struct jgrow *body);

/* The rest of an opening tag, the body, and the end tag up to its name, whose index in `ends` it returns. */
static int parse_block(struct jparser *p, struct jnode *n, struct jnodes *out, const char *const ends[])
{
    bool colon;
    struct jgrow body = {0};
    if (!jparse_skip_op(p, ':', &colon) || !expect_kind(p, T_BLOCK_END, "end of statement block") ||
        !parse_body(p, ends, &body) || !jparse_take(p, n, &body, out))
        return -1;
    if (p->now.kind == T_EOF) {
        jinja_syntax_error(p->err, n->line, n->col, "this block has no '%s': the template ends at line %u", ends[0],
                           (unsigned)p->now.line);
        return -1;
    }
    for (int i = 0; ends[i]; i++)
        if (jparse_is_name(p, ends[i]))
            return jparse_advance(p) ? i : -1;
    return -1;
}

static bool parse_simple_block(struct jparser *p, struct jnode *n, const char *end)
{
    const char *const ends[] = {end, NULL};
    return parse_block(p, n, &n->body, ends) == 0;
}

static bool parse_if(struct jparser *p, struct jnode *n)
{
    static const char *const ends[] = {"endif", "elif", "else", NULL};
    struct jnode *now = n;
    for (;;) {
        if (!jparse_tuple(p, TUPLE_NO_COND, NULL, &now->a) || !jparse_child(p, now, now->a))
            return false;
        int end = parse_block(p, now, &now->body, ends);
        if (end < 0)
            return false;
        if (end == 1) {
            /* a chain of elif is a list of ifs at one level: kept flat, since it may be long */
            struct jnode *next = jparse_node(p, N_IF);
            if (!next)
                return false;
            now->b = next;
            now = next;
            continue;
        }
        static const char *const last[] = {"endif", NULL};
        if (end == 2 && parse_block(p, now, &now->else_body, last) != 0)
            return false;
        break;
    }
    for (struct jnode *k = n->b; k; k = k->b)
        if (k->height > n->height)
            n->height = k->height;
    return true;
}

static bool parse_for(struct jparser *p, struct jnode *n)
{
    static const char *const ends[] = {"endfor", "else", NULL}, *const last[] = {"endfor", NULL};
    bool has_filter, recursive;
    if (!jparse_target(p, TUPLE_SIMPLE, "in", &n->a) || !jparse_child(p, n, n->a) || !jparse_expect_name(p, "in") ||
        !jparse_tuple(p, TUPLE_NO_COND, "recursive", &n->b) || !jparse_child(p, n, n->b) ||
        !jparse_skip_name(p, "if", &has_filter))
        return false;
    if (has_filter && (!jparse_expression(p, true, &n->c) || !jparse_child(p, n, n->c)))
        return false;
    if (!jparse_skip_name(p, "recursive", &recursive))
        return false;
    n->op = recursive;
    p->loops++;
    p->named_loops++;
    if (jparse_stores(n->a, STR("loop")))
        return jparse_fail(p, "can't assign to the special name 'loop' in a for loop");
    int end = parse_block(p, n, &n->body, ends);
    p->loops--;
    if (end == 1)
        end = parse_block(p, n, &n->else_body, last);
    p->named_loops--;
    return end == 0;
}

static bool parse_set(struct jparser *p, struct jnode *n)
{
    bool assign;
    if (!jparse_target(p, TUPLE_NAMESPACE, NULL, &n->a) || !jparse_child(p, n, n->a) || !jparse_skip_op(p, '=', &assign))
        return false;
    if (p->named_loops && jparse_stores(n->a, STR("loop")))
        return jparse_fail(p, "can't assign to the special name 'loop' in a for loop");
    if (assign)
        return jparse_tuple(p, 0, NULL, &n->b) && jparse_child(p, n, n->b);
    n->kind = N_SET_BLOCK;
    return jparse_filters(p, NULL, false, &n->b) && jparse_child(p, n, n->b) && parse_simple_block(p, n, "endset");
}

static bool parse_with(struct jparser *p, struct jnode *n)
{
    struct jgrow g = {0};
    while (p->now.kind != T_BLOCK_END) {
        struct jnode *target, *value;
        if (g.nodes.n && !jparse_expect_op(p, ','))
            return false;
        if (!jparse_target(p, TUPLE_SIMPLE, NULL, &target) || !jparse_expect_op(p, '=') ||
            !jparse_expression(p, true, &value) || !jparse_push(p, &g, target) || !jparse_push(p, &g, value))
            return false;
    }
    return jparse_take(p, n, &g, &n->items) && parse_simple_block(p, n, "endwith");
}

static bool parse_signature(struct jparser *p, struct jnode *n)
{
    struct jsignature *sig = n->sig;
    struct jgrow defaults = {0};
    size_t cap = 0;
    if (!jparse_expect_op(p, '('))
        return false;
    while (!jparse_is_op(p, ')')) {
        bool has_default;
        struct str name;
        if (sig->n && !jparse_expect_op(p, ','))
            return false;
        if (sig->n == JINJA_ARGS_MAX)
            return jparse_fail(p, "more than %u parameters", JINJA_ARGS_MAX);
        if (sig->n == cap) {
            cap = JINJA_ARGS_MAX;
            sig->ids = jparse_alloc(p, cap, sizeof *sig->ids);
            sig->names = jparse_alloc(p, cap, sizeof *sig->names);
            if (!sig->ids || !sig->names)
                return false;
        }
        if (!jparse_any_name(p, &name) || !jparse_skip_op(p, '=', &has_default))
            return false;
        sig->own_caller |= str_equal(name, STR("caller"));
        sig->names[sig->n] = name;
        sig->ids[sig->n] = jinja_intern(p->t, name);
        if (sig->ids[sig->n++] == UINT32_MAX)
            return jparse_fail(p, "the template has too many names");
        struct jnode *value = NULL;
        if (has_default) {
            if (!jparse_expression(p, true, &value) || !jparse_push(p, &defaults, value))
                return false;
        } else if (defaults.nodes.n) {
            return jparse_fail(p, "non-default argument follows default argument");
        }
    }
    return jparse_take(p, n, &defaults, &sig->defaults) && jparse_advance(p);
}

/* The body of a macro or call block, with the special names that it reads. */
static bool parse_macro_body(struct jparser *p, struct jnode *n, const char *end)
{
    unsigned outer = p->special, loops = p->loops;
    p->special = 0;
    p->loops = 0;
    if (!parse_simple_block(p, n, end))
        return false;
    n->sig->caller = p->special & SPECIAL_CALLER;
    n->sig->kwargs = p->special & SPECIAL_KWARGS;
    n->sig->varargs = p->special & SPECIAL_VARARGS;
    for (size_t i = 0; i < n->sig->n; i++) {
        if (str_equal(n->sig->names[i], STR("kwargs")))
            n->sig->kwargs = false;
        if (str_equal(n->sig->names[i], STR("varargs")))
            n->sig->varargs = false;
        if (n->sig->caller && n->sig->own_caller && i + n->sig->defaults.n < n->sig->n &&
            str_equal(n->sig->names[i], STR("caller")))
            return jparse_fail(p, "the special 'caller' argument must be omitted or be given a default");
    }
    p->special |= outer;
    p->loops = loops;
    return true;
}

static bool parse_macro(struct jparser *p, struct jnode *n)
{
    n->sig = jparse_alloc(p, 1, sizeof *n->sig);
    if (!n->sig || !jparse_any_name(p, &n->name))
        return false;
    n->id = jinja_intern(p->t, n->name);
    if (n->id == UINT32_MAX)
        return jparse_fail(p, "the template has too many names");
    return parse_signature(p, n) && parse_macro_body(p, n, "endmacro");
}

static bool parse_call_block(struct jparser *p, struct jnode *n)
{
    n->sig = jparse_alloc(p, 1, sizeof *n->sig);
    if (!n->sig)
        return false;
    if (jparse_is_op(p, '(') && !parse_signature(p, n))
        return false;
    if (!jparse_expression(p, true, &n->a) || !jparse_child(p, n, n->a))
        return false;
    if (n->a->kind != N_CALL)
        return jparse_fail(p, "expected a call in a call block");
    return parse_macro_body(p, n, "endcall");
}

static bool parse_generation(struct jparser *p, struct jnode *n)
{
    unsigned loops = p->loops;
    p->loops = 0;
    if (!parse_simple_block(p, n, "endgeneration"))
        return false;
    p->loops = loops;
    return true;
}

static bool parse_filter_block(struct jparser *p, struct jnode *n)
{
    return jparse_filters(p, NULL, true, &n->b) && jparse_child(p, n, n->b) && parse_simple_block(p, n, "endfilter");
}

static bool parse_print(struct jparser *p, struct jnode *n)
{
    struct jgrow g = {0};
    while (p->now.kind != T_BLOCK_END) {
        struct jnode *item;
        if ((g.nodes.n && !jparse_expect_op(p, ',')) || !jparse_expression(p, true, &item) || !jparse_push(p, &g, item))
            return false;
    }
    return jparse_take(p, n, &g, &n->items);
}

static bool parse_block_tag(struct jparser *p, struct jnode *n)
{
    bool scoped, required, named;
    unsigned loops = p->loops;
    p->loops = 0;
    if (!jparse_any_name(p, &n->name) || !jparse_skip_name(p, "scoped", &scoped) || !jparse_skip_name(p, "required", &required))
        return false;
    if (required)
        return jparse_fail(p, "required blocks need other templates, which chat templates cannot load");
    n->op = scoped;
    n->id = jinja_intern(p->t, n->name);
    if (n->id == UINT32_MAX)
        return jparse_fail(p, "the template has too many names");
    if (!parse_simple_block(p, n, "endblock"))
        return false;
    p->loops = loops;
    named = p->now.kind == T_NAME && str_equal(p->now.text, n->name);
    return !named || jparse_advance(p);
}

static bool parse_autoescape(struct jparser *p, struct jnode *n)
{
    struct jnode *value;
    if (!jparse_expression(p, true, &value))
        return false;
    if (value->kind != N_CONST || jv_truth(&value->value))
        return jparse_fail(p, "autoescape is not supported: chat templates render plain text");
    return parse_simple_block(p, n, "endautoescape");
}

/* include, import, from, extends: they parse, and fail when they are reached, as no loader exists. */
static bool parse_refused(struct jparser *p, struct jnode *n)
{
    n->name = p->tag;
    while (p->now.kind != T_BLOCK_END) {
        if (p->now.kind == T_EOF)
            return jparse_fail(p, "unexpected end of template");
        if (!jparse_advance(p))
            return false;
    }
    return true;
}

static bool parse_jump(struct jparser *p, struct jnode *n)
{
    if (p->loops == 0)
        return jparse_fail(p, "'%s' outside of a loop", n->kind == N_BREAK ? "break" : "continue");
    return true;
}

static const struct statement {
    const char *tag;
    enum jnode_kind kind;
    bool (*parse)(struct jparser *p, struct jnode *n);
} statements[] = {
    {"if", N_IF, parse_if},
    {"for", N_FOR, parse_for},
    {"set", N_SET, parse_set},
    {"macro", N_MACRO, parse_macro},
    {"break", N_BREAK, parse_jump},
    {"continue", N_CONTINUE, parse_jump},
    {"generation", N_GENERATION, parse_generation},
    {"call", N_CALL_BLOCK, parse_call_block},
    {"filter", N_FILTER_BLOCK, parse_filter_block},
    {"with", N_WITH, parse_with},
    {"print", N_PRINT, parse_print},
    {"block", N_BLOCK, parse_block_tag},
    {"autoescape", N_SCOPE, parse_autoescape},
    {"include", N_REFUSED, parse_refused},
    {"import", N_REFUSED, parse_refused},
    {"from", N_REFUSED, parse_refused},
    {"extends", N_REFUSED, parse_refused},
};

static bool unknown_tag(struct jparser *p, const char *const ends[])
{
    char got[96];
    jparse_describe(&p->now, got, sizeof got);
    if (p->now.kind != T_NAME)
        return jparse_fail(p, "expected the name of a tag, got '%s'", got);
    if (!ends)
        return jparse_fail(p, "unknown tag '%s'", got);
    return jparse_fail(p, "unknown or misplaced tag '%s': expected '%s'%s%s", got, ends[0], ends[1] ? " or " : "",
                       ends[1] ? ends[1] : "");
}

static bool parse_statement(struct jparser *p, const char *const ends[], struct jgrow *body)
{
    for (size_t i = 0; i < sizeof statements / sizeof statements[0]; i++) {
        if (!jparse_is_name(p, statements[i].tag))
            continue;
        struct jnode *n = jparse_node(p, statements[i].kind);
        if (!n || !jparse_enter(p))
            return false;
        p->tag = p->now.text;
        if (!jparse_advance(p) || !statements[i].parse(p, n))
            return false;
        p->depth--;
        return jparse_push(p, body, n) && expect_kind(p, T_BLOCK_END, "end of statement block");
    }
    return unknown_tag(p, ends);
}

/* Up to the name of one of the end tags, or the end of the template. */
static bool parse_body(struct jparser *p, const char *const ends[], struct jgrow *body)
{
    for (;;) {
        struct jnode *n;
        switch (p->now.kind) {
        case T_EOF: return true;
        case T_TEXT:
            if (p->now.text.len) {
                if (!(n = jparse_node(p, N_TEXT)))
                    return false;
                n->value = JV_STR(p->now.text);
                if (!jparse_push(p, body, n))
                    return false;
            }
            if (!jparse_advance(p))
                return false;
            break;
        case T_VAR_BEGIN:
            n = jparse_node(p, N_OUTPUT);
            if (!n || !jparse_advance(p) || !jparse_tuple(p, 0, NULL, &n->a) || !jparse_child(p, n, n->a) ||
                !expect_kind(p, T_VAR_END, "end of print statement") || !jparse_push(p, body, n))
                return false;
            break;
        case T_BLOCK_BEGIN:
            if (!jparse_advance(p))
                return false;
            for (size_t i = 0; ends && ends[i]; i++)
                if (jparse_is_name(p, ends[i]))
                    return true;
            if (!parse_statement(p, ends, body))
                return false;
            break;
        default: return jparse_fail(p, "unexpected token in template text");
        }
    }
}

bool jinja_parse(struct template *t, struct err *err)
{
    struct jparser *p = calloc(1, sizeof *p);
    if (!p)
        return err_set(err, ERR_MEMORY, "no memory to compile a chat template");
    p->t = t;
    p->err = err;
    p->lex = (struct jlexer){.arena = &t->arena, .src = t->source, .line = 1, .state = 'd', .line_starting = true};
    p->lex.err = err;
    struct jgrow body = {0};
    bool ok = jparse_advance(p) && parse_body(p, NULL, &body);
    t->body = body.nodes;
    free(p);
    return ok;
}

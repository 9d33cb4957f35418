/* Expressions, in the order of their precedence: if, or, and, not, comparison, + -, ~, * / // %, **, sign, postfix and
 * filters, literals. */
#include "text/jinja_parse.h"

static bool parse_unary(struct jparser *p, bool with_filter, struct jnode **out);
static bool parse_postfix(struct jparser *p, struct jnode **node);
static bool parse_primary(struct jparser *p, unsigned how, struct jnode **out);

static struct jnode *node_like(struct jparser *p, enum jnode_kind kind, const struct jnode *where)
{
    return jparse_node_at(p, kind, where->line, where->col);
}

static bool binary(struct jparser *p, enum jnode_kind kind, enum jop op, struct jnode **left, struct jnode *right)
{
    struct jnode *n = node_like(p, kind, *left);
    if (!n)
        return false;
    n->op = (uint8_t)op;
    n->a = *left;
    n->b = right;
    *left = n;
    return jparse_child(p, n, n->a) && jparse_child(p, n, n->b);
}

/* ---- calls, filters, tests --------------------------------------------------------------------------------------- */

static bool parse_keyword(struct jparser *p, struct jcall *call, struct jgrow *kw)
{
    struct jnode *value;
    struct str name = p->now.text;
    if (kw->nodes.n == JINJA_ARGS_MAX)
        return jparse_fail(p, "more than %u arguments", JINJA_ARGS_MAX);
    if (!call->names && !(call->names = jparse_alloc(p, JINJA_ARGS_MAX, sizeof *call->names)))
        return false;
    for (size_t i = 0; i < kw->nodes.n; i++)
        if (str_equal(call->names[i], name))
            return jparse_fail(p, "keyword argument repeated: %.*s", (int)name.len, name.ptr);
    call->names[kw->nodes.n] = name;
    return jparse_advance(p) && jparse_advance(p) && jparse_expression(p, true, &value) && jparse_push(p, kw, value);
}

static bool parse_argument(struct jparser *p, struct jcall *call, struct jgrow *pos, struct jgrow *kw)
{
    bool valid = true;
    if (jparse_is_op(p, '*')) {
        valid = !call->dyn_pos && !call->dyn_kw;
        if (valid)
            return jparse_advance(p) && jparse_expression(p, true, &call->dyn_pos);
    } else if (jparse_is_op(p, TOP_POW)) {
        valid = !call->dyn_kw;
        if (valid)
            return jparse_advance(p) && jparse_expression(p, true, &call->dyn_kw);
    } else {
        bool keyword = p->now.kind == T_NAME;
        if (keyword) {
            if (!jparse_look(p))
                return false;
            keyword = p->next.kind == T_OP && p->next.op == '=';
        }
        struct jnode *value;
        valid = !call->dyn_kw && (keyword || (!call->dyn_pos && kw->nodes.n == 0));
        if (valid && keyword)
            return parse_keyword(p, call, kw);
        if (valid && pos->nodes.n == JINJA_ARGS_MAX)
            return jparse_fail(p, "more than %u arguments", JINJA_ARGS_MAX);
        if (valid)
            return jparse_expression(p, true, &value) && jparse_push(p, pos, value);
    }
    return jparse_fail(p, "invalid syntax for function call expression");
}

static bool parse_call_args(struct jparser *p, struct jnode *n)
{
    struct jgrow pos = {0}, kw = {0};
    bool comma = false;
    n->call = jparse_alloc(p, 1, sizeof *n->call);
    if (!n->call || !jparse_expect_op(p, '('))
        return false;
    while (!jparse_is_op(p, ')')) {
        if (comma) {
            if (!jparse_expect_op(p, ','))
                return false;
            if (jparse_is_op(p, ')'))
                break;
        }
        if (!parse_argument(p, n->call, &pos, &kw))
            return false;
        comma = true;
    }
    return jparse_take(p, n, &pos, &n->call->pos) && jparse_take(p, n, &kw, &n->call->kw) &&
           jparse_child(p, n, n->call->dyn_pos) && jparse_child(p, n, n->call->dyn_kw) && jparse_advance(p);
}

static bool dotted_name(struct jparser *p, struct str *name)
{
    if (!jparse_any_name(p, name))
        return false;
    while (jparse_is_op(p, '.')) {
        struct str more, both;
        if (!jparse_advance(p) || !jparse_any_name(p, &more))
            return false;
        char *text = jparse_alloc(p, name->len + more.len + 1, 1);
        if (!text)
            return false;
        memcpy(text, name->ptr, name->len);
        text[name->len] = '.';
        memcpy(text + name->len + 1, more.ptr, more.len);
        both = (struct str){text, name->len + 1 + more.len};
        *name = both;
    }
    return true;
}

static bool parse_one_filter(struct jparser *p, struct jnode **node)
{
    struct jnode *n = jparse_node(p, N_FILTER);
    if (!n || !dotted_name(p, &n->name))
        return false;
    n->a = *node;
    n->def = jinja_find_filter(n->name);
    *node = n;
    if (!jparse_child(p, n, n->a))
        return false;
    if (jparse_is_op(p, '('))
        return parse_call_args(p, n);
    n->call = jparse_alloc(p, 1, sizeof *n->call);
    return n->call != NULL;
}

bool jparse_filters(struct jparser *p, struct jnode *node, bool inline_start, struct jnode **out)
{
    while (jparse_is_op(p, '|') || inline_start) {
        if (!inline_start && !jparse_advance(p))
            return false;
        if (!parse_one_filter(p, &node))
            return false;
        inline_start = false;
    }
    *out = node;
    return true;
}

/* "is" is the current token. */
static bool parse_test(struct jparser *p, struct jnode **node)
{
    bool negated;
    struct jnode *n = jparse_node(p, N_TEST);
    if (!n || !jparse_advance(p) || !jparse_skip_name(p, "not", &negated) || !dotted_name(p, &n->name))
        return false;
    n->a = *node;
    n->def = jinja_find_test(n->name);
    bool argument = p->now.kind == T_NAME || p->now.kind == T_STRING || p->now.kind == T_INT || p->now.kind == T_FLOAT ||
                    jparse_is_op(p, '[') || jparse_is_op(p, '{');
    if (jparse_is_name(p, "else") || jparse_is_name(p, "or") || jparse_is_name(p, "and"))
        argument = false;
    if (jparse_is_op(p, '(')) {
        if (!parse_call_args(p, n))
            return false;
    } else {
        struct jgrow pos = {0};
        if (!(n->call = jparse_alloc(p, 1, sizeof *n->call)))
            return false;
        if (argument) {
            struct jnode *value;
            if (jparse_is_name(p, "is"))
                return jparse_fail(p, "you cannot chain multiple tests with is");
            if (!parse_primary(p, 0, &value) || !parse_postfix(p, &value) || !jparse_push(p, &pos, value))
                return false;
        }
        if (!jparse_take(p, n, &pos, &n->call->pos))
            return false;
    }
    *node = n;
    if (!jparse_child(p, n, n->a))
        return false;
    return !negated || binary(p, N_NOT, 0, node, NULL);
}

/* ---- subscripts -------------------------------------------------------------------------------------------------- */

static bool parse_slice_part(struct jparser *p, struct jnode *n, struct jnode **part)
{
    if (jparse_is_op(p, ']') || jparse_is_op(p, ',') || jparse_is_op(p, ':'))
        return true;
    return jparse_expression(p, true, part) && jparse_child(p, n, *part);
}

static bool parse_subscribed(struct jparser *p, struct jnode **out)
{
    struct jnode *first = NULL;
    bool colon;
    if (!jparse_is_op(p, ':')) {
        if (!jparse_expression(p, true, &first))
            return false;
        if (!jparse_is_op(p, ':')) {
            *out = first;
            return true;
        }
    }
    struct jnode *n = jparse_node(p, N_SLICE);
    if (!n || !jparse_advance(p))
        return false;
    n->a = first;
    *out = n;
    if (!jparse_child(p, n, first) || !parse_slice_part(p, n, &n->b) || !jparse_skip_op(p, ':', &colon))
        return false;
    return !colon || jparse_is_op(p, ':') || parse_slice_part(p, n, &n->c);
}

static bool parse_dot(struct jparser *p, struct jnode **node)
{
    struct jnode *n = jparse_node(p, N_GETATTR);
    if (!n || !jparse_advance(p))
        return false;
    n->a = *node;
    if (p->now.kind == T_NAME) {
        n->name = p->now.text;
    } else if (p->now.kind == T_INT) {
        n->kind = N_GETITEM;
        if (!(n->b = jparse_node(p, N_CONST)))
            return false;
        n->b->value = JV_INT(p->now.i);
    } else {
        return jparse_fail(p, "expected a name or number after '.'");
    }
    *node = n;
    return jparse_child(p, n, n->a) && jparse_advance(p);
}

static bool parse_brackets(struct jparser *p, struct jnode **node)
{
    struct jgrow g = {0};
    struct jnode *n = jparse_node(p, N_GETITEM);
    if (!n || !jparse_advance(p))
        return false;
    while (!jparse_is_op(p, ']')) {
        struct jnode *item;
        if ((g.nodes.n && !jparse_expect_op(p, ',')) || !parse_subscribed(p, &item) || !jparse_push(p, &g, item))
            return false;
    }
    n->a = *node;
    if (g.nodes.n == 1) {
        n->b = g.nodes.items[0];
    } else {
        if (!(n->b = jparse_node(p, N_TUPLE)) || !jparse_take(p, n->b, &g, &n->b->items))
            return false;
    }
    *node = n;
    return jparse_child(p, n, n->a) && jparse_child(p, n, n->b) && jparse_advance(p);
}

static bool parse_call(struct jparser *p, struct jnode **node)
{
    struct jnode *n = jparse_node(p, N_CALL);
    if (!n)
        return false;
    n->a = *node;
    *node = n;
    return jparse_child(p, n, n->a) && parse_call_args(p, n);
}

static bool parse_postfix(struct jparser *p, struct jnode **node)
{
    for (;;) {
        bool ok;
        if (jparse_is_op(p, '.'))
            ok = parse_dot(p, node);
        else if (jparse_is_op(p, '['))
            ok = parse_brackets(p, node);
        else if (jparse_is_op(p, '('))
            ok = parse_call(p, node);
        else
            return true;
        if (!ok)
            return false;
    }
}

static bool parse_filter_expr(struct jparser *p, struct jnode **node)
{
    for (;;) {
        bool ok;
        if (jparse_is_op(p, '|'))
            ok = jparse_filters(p, *node, false, node);
        else if (jparse_is_name(p, "is"))
            ok = parse_test(p, node);
        else if (jparse_is_op(p, '('))
            ok = parse_call(p, node);
        else
            return true;
        if (!ok)
            return false;
    }
}

/* ---- literals ---------------------------------------------------------------------------------------------------- */

static bool parse_name(struct jparser *p, unsigned how, struct jnode *n)
{
    static const struct {
        const char *name;
        struct jv value;
    } constants[] = {{"true", {.kind = J_BOOL, .b = true}},
                     {"True", {.kind = J_BOOL, .b = true}},
                     {"false", {.kind = J_BOOL, .b = false}},
                     {"False", {.kind = J_BOOL, .b = false}},
                     {"none", {.kind = J_NONE}},
                     {"None", {.kind = J_NONE}}};
    n->name = p->now.text;
    for (size_t i = 0; i < sizeof constants / sizeof constants[0]; i++) {
        if (str_equal(n->name, str_from(constants[i].name))) {
            n->value = constants[i].value;
            return jparse_advance(p);
        }
    }
    n->kind = N_NAME;
    n->id = jinja_intern(p->t, n->name);
    if (n->id == UINT32_MAX)
        return jparse_fail(p, "the template has too many names");
    if (!jparse_advance(p))
        return false;
    if ((how & TUPLE_NAMESPACE) && jparse_is_op(p, '.')) {
        n->kind = N_NSREF;
        return jparse_advance(p) && jparse_any_name(p, &n->attr);
    }
    if (str_equal(n->name, STR("caller")))
        p->special |= SPECIAL_CALLER;
    else if (str_equal(n->name, STR("kwargs")))
        p->special |= SPECIAL_KWARGS;
    else if (str_equal(n->name, STR("varargs")))
        p->special |= SPECIAL_VARARGS;
    return true;
}

/* Neighbouring string literals are one. */
static bool parse_strings(struct jparser *p, struct jnode *n)
{
    struct str s = p->now.text;
    size_t cap = 0;
    char *joined = NULL;
    if (!jparse_advance(p))
        return false;
    while (p->now.kind == T_STRING) {
        struct str more = p->now.text;
        if (!joined || s.len + more.len > cap) {
            cap = (s.len + more.len) * 2;
            char *room = jparse_alloc(p, cap + 1, 1);
            if (!room)
                return false;
            memcpy(room, s.ptr, s.len);
            joined = room;
        }
        memcpy(joined + s.len, more.ptr, more.len);
        s = (struct str){joined, s.len + more.len};
        if (!jparse_advance(p))
            return false;
    }
    n->value = JV_STR(s);
    return true;
}

static bool parse_list(struct jparser *p, struct jnode *n)
{
    struct jgrow g = {0};
    n->kind = N_LIST;
    if (!jparse_advance(p))
        return false;
    while (!jparse_is_op(p, ']')) {
        struct jnode *item;
        if (g.nodes.n && !jparse_expect_op(p, ','))
            return false;
        if (jparse_is_op(p, ']'))
            break;
        if (!jparse_expression(p, true, &item) || !jparse_push(p, &g, item))
            return false;
    }
    return jparse_take(p, n, &g, &n->items) && jparse_advance(p);
}

static bool parse_dict(struct jparser *p, struct jnode *n)
{
    struct jgrow g = {0};
    n->kind = N_DICT;
    if (!jparse_advance(p))
        return false;
    while (!jparse_is_op(p, '}')) {
        struct jnode *key, *value;
        if (g.nodes.n && !jparse_expect_op(p, ','))
            return false;
        if (jparse_is_op(p, '}'))
            break;
        if (!jparse_expression(p, true, &key) || !jparse_expect_op(p, ':') || !jparse_expression(p, true, &value) ||
            !jparse_push(p, &g, key) || !jparse_push(p, &g, value))
            return false;
    }
    return jparse_take(p, n, &g, &n->items) && jparse_advance(p);
}

static bool parse_primary(struct jparser *p, unsigned how, struct jnode **out)
{
    struct jnode *n = *out = jparse_node(p, N_CONST);
    if (!n)
        return false;
    switch (p->now.kind) {
    case T_NAME: return parse_name(p, how, n);
    case T_STRING: return parse_strings(p, n);
    case T_INT: n->value = JV_INT(p->now.i); return jparse_advance(p);
    case T_FLOAT: n->value = JV_FLOAT(p->now.f); return jparse_advance(p);
    default: break;
    }
    if (jparse_is_op(p, '[') || jparse_is_op(p, '{') || jparse_is_op(p, '(')) {
        if (jparse_is_op(p, '['))
            return parse_list(p, n);
        if (jparse_is_op(p, '{'))
            return parse_dict(p, n);
        return jparse_advance(p) && jparse_tuple(p, TUPLE_EXPLICIT, NULL, out) && jparse_expect_op(p, ')');
    }
    char got[96];
    jparse_describe(&p->now, got, sizeof got);
    return jparse_fail(p, "unexpected '%s'", got);
}

static bool tuple_ends(const struct jparser *p, const char *end)
{
    return p->now.kind == T_VAR_END || p->now.kind == T_BLOCK_END || jparse_is_op(p, ')') || (end && jparse_is_name(p, end));
}

bool jparse_tuple(struct jparser *p, unsigned how, const char *end, struct jnode **out)
{
    struct jgrow g = {0};
    uint32_t line = p->now.line, col = p->now.col;
    bool is_tuple = false;
    for (;;) {
        struct jnode *item;
        if (g.nodes.n && !jparse_expect_op(p, ','))
            return false;
        if (tuple_ends(p, end))
            break;
        bool ok = how & (TUPLE_SIMPLE | TUPLE_NAMESPACE) ? parse_primary(p, how, &item)
                                                         : jparse_expression(p, !(how & TUPLE_NO_COND), &item);
        if (!ok || !jparse_push(p, &g, item))
            return false;
        if (!jparse_is_op(p, ','))
            break;
        is_tuple = true;
    }
    if (!is_tuple && g.nodes.n) {
        *out = g.nodes.items[0];
        return true;
    }
    if (!is_tuple && !(how & TUPLE_EXPLICIT)) {
        char got[96];
        jparse_describe(&p->now, got, sizeof got);
        return jparse_fail(p, "expected an expression, got '%s'", got);
    }
    *out = jparse_node_at(p, N_TUPLE, line, col);
    return *out && jparse_take(p, *out, &g, &(*out)->items);
}

static bool can_assign(const struct jnode *n)
{
    if (n->kind == N_TUPLE) {
        for (size_t i = 0; i < n->items.n; i++)
            if (!can_assign(n->items.items[i]))
                return false;
        return true;
    }
    return n->kind == N_NAME || n->kind == N_NSREF;
}

bool jparse_target(struct jparser *p, unsigned how, const char *end, struct jnode **out)
{
    unsigned special = p->special;
    if (!jparse_tuple(p, how, end, out))
        return false;
    p->special = special;
    if (!can_assign(*out))
        return jparse_fail(p, "can't assign to this expression");
    return true;
}

bool jparse_stores(const struct jnode *target, struct str name)
{
    for (size_t i = 0; target->kind == N_TUPLE && i < target->items.n; i++)
        if (jparse_stores(target->items.items[i], name))
            return true;
    return target->kind == N_NAME && str_equal(target->name, name);
}

/* ---- operators --------------------------------------------------------------------------------------------------- */

static bool parse_unary(struct jparser *p, bool with_filter, struct jnode **out)
{
    bool minus = jparse_is_op(p, '-');
    if (minus || jparse_is_op(p, '+')) {
        struct jnode *n = jparse_node(p, minus ? N_NEG : N_POS);
        if (!n || !jparse_enter(p) || !jparse_advance(p) || !parse_unary(p, false, &n->a) || !jparse_child(p, n, n->a))
            return false;
        p->depth--;
        *out = n;
    } else if (!parse_primary(p, 0, out)) {
        return false;
    }
    return parse_postfix(p, out) && (!with_filter || parse_filter_expr(p, out));
}

static bool parse_pow(struct jparser *p, struct jnode **out)
{
    if (!parse_unary(p, true, out))
        return false;
    while (jparse_is_op(p, TOP_POW)) {
        struct jnode *right;
        if (!jparse_advance(p) || !parse_unary(p, true, &right) || !binary(p, N_BINARY, OP_POW, out, right))
            return false;
    }
    return true;
}

static bool parse_math2(struct jparser *p, struct jnode **out)
{
    if (!parse_pow(p, out))
        return false;
    while (jparse_is_op(p, '*') || jparse_is_op(p, '/') || jparse_is_op(p, TOP_FLOORDIV) || jparse_is_op(p, '%')) {
        enum jop op = p->now.op == '*' ? OP_MUL : p->now.op == '/' ? OP_DIV : p->now.op == '%' ? OP_MOD : OP_FLOORDIV;
        struct jnode *right;
        if (!jparse_advance(p) || !parse_pow(p, &right) || !binary(p, N_BINARY, op, out, right))
            return false;
    }
    return true;
}

static bool parse_concat(struct jparser *p, struct jnode **out)
{
    if (!parse_math2(p, out))
        return false;
    if (!jparse_is_op(p, '~'))
        return true;
    struct jgrow g = {0};
    struct jnode *n = node_like(p, N_CONCAT, *out);
    if (!n || !jparse_push(p, &g, *out))
        return false;
    while (jparse_is_op(p, '~')) {
        struct jnode *more;
        if (!jparse_advance(p) || !parse_math2(p, &more) || !jparse_push(p, &g, more))
            return false;
    }
    *out = n;
    return jparse_take(p, n, &g, &n->items);
}

static bool parse_math1(struct jparser *p, struct jnode **out)
{
    if (!parse_concat(p, out))
        return false;
    while (jparse_is_op(p, '+') || jparse_is_op(p, '-')) {
        enum jop op = p->now.op == '+' ? OP_ADD : OP_SUB;
        struct jnode *right;
        if (!jparse_advance(p) || !parse_concat(p, &right) || !binary(p, N_BINARY, op, out, right))
            return false;
    }
    return true;
}

/* The comparison that begins at the current token, passed over; *found false when there is none. */
static bool comparison(struct jparser *p, enum jop *op, bool *found)
{
    static const struct {
        int token;
        enum jop op;
    } ops[] = {{TOP_EQ, OP_EQ}, {TOP_NE, OP_NE}, {'<', OP_LT}, {TOP_LE, OP_LE}, {'>', OP_GT}, {TOP_GE, OP_GE}};
    *found = true;
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        if (jparse_is_op(p, ops[i].token)) {
            *op = ops[i].op;
            return jparse_advance(p);
        }
    }
    if (jparse_is_name(p, "in")) {
        *op = OP_IN;
        return jparse_advance(p);
    }
    *found = false;
    if (!jparse_is_name(p, "not"))
        return true;
    if (!jparse_look(p))
        return false;
    if (p->next.kind != T_NAME || !str_equal(p->next.text, STR("in")))
        return true;
    *found = true;
    *op = OP_NOTIN;
    return jparse_advance(p) && jparse_advance(p);
}

static bool parse_compare(struct jparser *p, struct jnode **out)
{
    struct jnode *n = NULL;
    struct jgrow g = {0};
    if (!parse_math1(p, out))
        return false;
    for (;;) {
        enum jop op;
        bool found;
        struct jnode *operand, *right;
        if (!comparison(p, &op, &found))
            return false;
        if (!found)
            break;
        if (!n && !(n = node_like(p, N_COMPARE, *out)))
            return false;
        if (!parse_math1(p, &right) || !(operand = node_like(p, N_COMPARE, right)))
            return false;
        operand->op = (uint8_t)op;
        operand->a = right;
        if (!jparse_child(p, operand, right) || !jparse_push(p, &g, operand))
            return false;
    }
    if (!n)
        return true;
    n->a = *out;
    *out = n;
    return jparse_child(p, n, n->a) && jparse_take(p, n, &g, &n->items);
}

static bool parse_not(struct jparser *p, struct jnode **out)
{
    if (!jparse_is_name(p, "not"))
        return parse_compare(p, out);
    struct jnode *n = jparse_node(p, N_NOT);
    if (!n || !jparse_enter(p) || !jparse_advance(p) || !parse_not(p, &n->a) || !jparse_child(p, n, n->a))
        return false;
    p->depth--;
    *out = n;
    return true;
}

static bool parse_and(struct jparser *p, struct jnode **out)
{
    bool more;
    if (!parse_not(p, out) || !jparse_skip_name(p, "and", &more))
        return false;
    while (more) {
        struct jnode *right;
        if (!parse_not(p, &right) || !binary(p, N_AND, 0, out, right) || !jparse_skip_name(p, "and", &more))
            return false;
    }
    return true;
}

static bool parse_or(struct jparser *p, struct jnode **out)
{
    bool more;
    if (!parse_and(p, out) || !jparse_skip_name(p, "or", &more))
        return false;
    while (more) {
        struct jnode *right;
        if (!parse_and(p, &right) || !binary(p, N_OR, 0, out, right) || !jparse_skip_name(p, "or", &more))
            return false;
    }
    return true;
}

bool jparse_expression(struct jparser *p, bool with_cond, struct jnode **out)
{
    bool more = false;
    if (!jparse_enter(p) || !parse_or(p, out) || (with_cond && !jparse_skip_name(p, "if", &more)))
        return false;
    while (more) {
        struct jnode *n = node_like(p, N_COND, *out);
        bool has_else;
        if (!n || !parse_or(p, &n->b) || !jparse_skip_name(p, "else", &has_else))
            return false;
        n->a = *out;
        if (has_else && !jparse_expression(p, true, &n->c))
            return false;
        *out = n;
        if (!jparse_child(p, n, n->a) || !jparse_child(p, n, n->b) || !jparse_child(p, n, n->c) ||
            !jparse_skip_name(p, "if", &more))
            return false;
    }
    p->depth--;
    return true;
}

/* The parser's state and the pieces that jinja_parse.c (statements) and jinja_parse_expr.c (expressions) share. */
#ifndef INFERD_TEXT_JINJA_PARSE_H
#define INFERD_TEXT_JINJA_PARSE_H

#include "text/jinja.h"

enum { SPECIAL_CALLER = 1, SPECIAL_KWARGS = 2, SPECIAL_VARARGS = 4 };
enum tuple_how {
    TUPLE_NO_COND = 1,   /* a trailing "if" belongs to somebody else */
    TUPLE_SIMPLE = 2,    /* names and literals only */
    TUPLE_NAMESPACE = 4, /* as SIMPLE, and ns.member */
    TUPLE_EXPLICIT = 8   /* in parentheses: may be empty */
};

struct jparser {
    struct template *t;
    struct jlexer lex;
    struct jtoken now, next;
    bool has_next;
    unsigned depth;
    unsigned loops;       /* around here, for break and continue */
    unsigned named_loops; /* around here, macros not counting as borders */
    unsigned special;     /* special names read since the innermost macro began */
    struct str tag;
    struct err *err;
};

struct jgrow { /* a list of nodes that grows */
    struct jnodes nodes;
    size_t cap;
    uint32_t height;
};

bool jparse_fail(struct jparser *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool jparse_advance(struct jparser *p);
bool jparse_look(struct jparser *p);
void jparse_describe(const struct jtoken *t, char *out, size_t room);
bool jparse_is_op(const struct jparser *p, int op);
bool jparse_is_name(const struct jparser *p, const char *name);
bool jparse_skip_op(struct jparser *p, int op, bool *skipped);
bool jparse_skip_name(struct jparser *p, const char *name, bool *skipped);
bool jparse_expect_op(struct jparser *p, int op);
bool jparse_expect_name(struct jparser *p, const char *name);
bool jparse_any_name(struct jparser *p, struct str *name);
bool jparse_enter(struct jparser *p);
void *jparse_alloc(struct jparser *p, size_t n, size_t size);
struct jnode *jparse_node(struct jparser *p, enum jnode_kind kind);
struct jnode *jparse_node_at(struct jparser *p, enum jnode_kind kind, uint32_t line, uint32_t col);
/* Notes the child's height in its parent. */
bool jparse_child(struct jparser *p, struct jnode *parent, const struct jnode *child);
bool jparse_push(struct jparser *p, struct jgrow *g, struct jnode *n);
bool jparse_take(struct jparser *p, struct jnode *parent, const struct jgrow *g, struct jnodes *out);

bool jparse_expression(struct jparser *p, bool with_cond, struct jnode **out);
/* `how`: flags of enum tuple_how. `end`: a name that ends the tuple, or NULL. */
bool jparse_tuple(struct jparser *p, unsigned how, const char *end, struct jnode **out);
bool jparse_target(struct jparser *p, unsigned how, const char *end, struct jnode **out);
/* `inline_start`: the first filter has no "|" before it. *out is NULL when there is none. */
bool jparse_filters(struct jparser *p, struct jnode *node, bool inline_start, struct jnode **out);
bool jparse_stores(const struct jnode *target, struct str name);

#endif

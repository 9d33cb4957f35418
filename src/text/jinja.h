/* The template language behind template.h: syntax tree, values and one render. Private to text/jinja_*.c and
 * template.c.
 *
 * jinja_lex.c   source -> tokens, whitespace control
 * jinja_parse.c tokens -> tree (arena of the template)
 * jinja_check.c tree -> errors known before any render; names that a scope must hide
 * jinja_eval.c  tree + scopes -> text: statements, macros, loops; jinja_expr.c: expressions and calls
 * jinja_value.c values: building, comparing, dictionaries; jinja_iter.c: lazy iteration
 * jinja_ops.c   operators, attributes, subscripts, slices
 * jinja_print.c str(), repr(), JSON; jinja_format.c: "%" and str.format
 * jinja_str.c, jinja_method.c, jinja_filter.c, jinja_seq.c, jinja_test.c, jinja_global.c: the library that templates
 * call
 *
 * Semantics are those of Python values: a boolean is an integer, text is counted in code points, dictionaries keep the
 * order of insertion, generators are consumed once. Integers are 64 bits wide and an overflow is an error.
 *
 * Everything that a render makes lives in the arena of `struct jrun`; values are immutable except namespaces, cyclers,
 * joiners, loops and iterators. Every function that can fail returns false (or -1) after `jrun_fail`.
 */
#ifndef INFERD_TEXT_JINJA_H
#define INFERD_TEXT_JINJA_H

#include "base/arena.h"
#include "base/buf.h"
#include "base/err.h"
#include "base/str.h"
#include "text/template.h"

#define JINJA_COMPILE_BYTES_MAX (192u << 20) /* tree of one template */
#define JINJA_HEIGHT_MAX        1000u        /* nodes on a path of the tree: bounds every recursion over it */
#define JINJA_FRAMES_MAX        4000u        /* nested evaluator calls of a render: bounds the C stack */
#define JINJA_VALUE_DEPTH_MAX   300u         /* nested containers that are printed, compared or hashed */
#define JINJA_JSON_DEPTH_MAX    2048u        /* nested containers of the context */
#define JINJA_RANGE_ITEMS_MAX   100000       /* as the sandbox's MAX_RANGE */
#define JINJA_ARGS_MAX          255u         /* arguments of one call */
#define JINJA_PAD_MAX           (1 << 20)    /* width of a padded field */
#define JINJA_BYTES_PER_STEP    32u          /* bytes handled that cost as much as one evaluated node */

/* ---- values ------------------------------------------------------------------------------------------------------ */

enum jkind {
    J_MISSING, /* no value: an argument not given, a name not bound */
    J_UNDEFINED,
    J_NONE,
    J_BOOL,
    J_INT,
    J_FLOAT,
    J_STR,
    J_LIST,
    J_TUPLE,
    J_DICT,
    J_RANGE,
    J_VIEW, /* keys(), values(), items() of a dictionary */
    J_ITER,
    J_NAMESPACE,
    J_MACRO,
    J_FUNC,   /* global function or class */
    J_METHOD, /* method bound to its object */
    J_LOOP,
    J_CYCLER,
    J_JOINER,
    J_SLICE, /* the inside of [a:b:c]; never reaches a variable */
};

enum jflag {
    J_MARKUP = 1,     /* str that `safe` or `escape` made: joining escapes what joins it */
    J_GROUP = 2,      /* tuple of groupby: has .grouper and .list */
    J_HINT = 4,       /* undefined: `s` is the whole message */
    J_OF_OBJECT = 8,  /* undefined: `s` is a member that an object of kind `aux` lacks */
    J_OF_ELEMENT = 16 /* undefined: `s` shows the element that an object of kind `aux` lacks */
};

struct jlist {
    struct jv *items;
    size_t n;
};

struct jv {
    uint8_t kind;
    uint8_t flags;
    uint8_t aux;
    union {
        bool b;
        int64_t i;
        double f;
        struct str s; /* valid UTF-8 */
        struct jlist list;
        struct jdict *dict; /* also a namespace's members */
        struct jrange *range;
        struct jview *view;
        struct jiter *iter;
        struct jmacro *macro;
        const struct jfunc *func;
        struct jmethod *method;
        struct jloop *loop;
        struct jcycler *cycler;
        struct jjoiner *joiner;
        struct jv *slice; /* [3]: start, stop, step; J_NONE when absent */
    };
};

struct jpair {
    struct jv key, value;
    uint64_t hash;
};

struct jdict {
    struct jpair *pairs; /* in order of insertion */
    size_t n, cap;
    uint32_t *table; /* index + 1 into pairs, 0 = free; NULL while small */
    size_t n_table;  /* power of two */
};

struct jrange {
    int64_t start, stop, step, n;
};

struct jview {
    struct jdict *dict;
    char what; /* 'k', 'v', 'i' */
};

struct jcycler {
    struct jlist items;
    size_t pos;
};

struct jjoiner {
    struct str sep;
    bool used;
};

struct jargs {
    const struct jv *pos;
    size_t n_pos;
    const struct str *names; /* of the keyword arguments */
    const struct jv *kw;
    size_t n_kw;
};

struct jrun;

struct jfunc {
    const char *name;
    const char *shown; /* what str() gives */
    bool (*call)(struct jrun *run, const struct jargs *args, struct jv *out);
};

struct jmethod {
    struct jv self;
    const struct jmethod_def *def;
};

struct jmethod_def {
    const char *name;
    bool (*call)(struct jrun *run, const struct jv *self, const struct jargs *args, struct jv *out);
};

/* ---- tree -------------------------------------------------------------------------------------------------------- */

enum jnode_kind {
    /* expressions */
    N_CONST,   /* value */
    N_NAME,    /* name, id */
    N_NSREF,   /* name, id, attr: target of a set */
    N_TUPLE,   /* items */
    N_LIST,    /* items */
    N_DICT,    /* items: key, value, key, value ... */
    N_NOT,     /* a */
    N_NEG,     /* a */
    N_POS,     /* a */
    N_AND,     /* a, b */
    N_OR,      /* a, b */
    N_COND,    /* a if b else c; c may be NULL */
    N_BINARY,  /* a op b */
    N_COMPARE, /* a, items with their op: chained */
    N_CONCAT,  /* items */
    N_GETATTR, /* a . name */
    N_GETITEM, /* a [ b ] */
    N_SLICE,   /* a : b : c, each may be NULL */
    N_CALL,    /* a ( call ) */
    N_FILTER,  /* a | name ( call ); a is NULL in filter blocks */
    N_TEST,    /* a is name ( call ) */
    /* statements */
    N_TEXT,         /* value */
    N_OUTPUT,       /* a */
    N_PRINT,        /* items */
    N_IF,           /* a: test, body, b: the next elif (an N_IF) or NULL, else_body of the last */
    N_FOR,          /* a: target, b: iterable, c: filter or NULL, body, else_body, op: recursive */
    N_SET,          /* a: target, b: value */
    N_SET_BLOCK,    /* a: target, b: chain of filters or NULL, body */
    N_WITH,         /* items: target, value, target, value ...; body */
    N_FILTER_BLOCK, /* b: chain of filters, body */
    N_MACRO,        /* name, id, sig, body */
    N_CALL_BLOCK,   /* a: call, sig, body */
    N_GENERATION,   /* body */
    N_SCOPE,        /* body: autoescape false */
    N_BLOCK,        /* name, body */
    N_BREAK,
    N_CONTINUE,
    N_REFUSED, /* name: a tag that needs other templates; fails when reached */
};

enum jop {
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_FLOORDIV,
    OP_MOD,
    OP_POW,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_LE,
    OP_GT,
    OP_GE,
    OP_IN,
    OP_NOTIN
};

struct jnodes {
    struct jnode **items;
    size_t n;
};

struct jcall {
    struct jnodes pos;
    struct str *names;
    struct jnodes kw;
    struct jnode *dyn_pos, *dyn_kw; /* *x, **x */
};

struct jsignature {
    uint32_t *ids;
    struct str *names;
    size_t n;
    struct jnodes defaults;       /* of the last parameters */
    bool caller, kwargs, varargs; /* the body reads that special name */
    bool own_caller;              /* `caller` is one of the parameters */
};

struct jids {
    uint32_t *ids;
    size_t n;
};

struct jnode {
    uint8_t kind;
    uint8_t op;
    uint32_t line, col;
    uint32_t height;
    uint32_t id; /* of name */
    struct str name, attr;
    struct jnode *a, *b, *c;
    struct jnodes items, body, else_body;
    struct jids hidden;      /* of body's scope: names that are stored there before anything reads them */
    struct jids else_hidden; /* the same of a loop's else part */
    struct jcall *call;
    struct jsignature *sig;
    const void *def; /* filter or test, resolved at compile time; NULL: unknown */
    struct jv value;
};

struct template
{
    struct arena arena;
    struct str source; /* newlines made \n, the last one dropped */
    struct jnodes body;
    struct jids hidden;
    struct str *names; /* by id */
    size_t n_names, cap_names;
    uint32_t *name_table; /* hash of names: id + 1 */
    size_t n_name_table;
};

/* ---- compiling --------------------------------------------------------------------------------------------------- */

enum jtoken_kind { T_EOF, T_TEXT, T_VAR_BEGIN, T_VAR_END, T_BLOCK_BEGIN, T_BLOCK_END, T_NAME, T_STRING, T_INT, T_FLOAT, T_OP };

/* Operators of two characters; the others are their own character. */
enum { TOP_EQ = 256, TOP_NE, TOP_LE, TOP_GE, TOP_FLOORDIV, TOP_POW };

struct jtoken {
    enum jtoken_kind kind;
    int op;
    uint32_t line, col;
    struct str text; /* name, text, unescaped string */
    int64_t i;
    double f;
};

struct jlexer {
    struct arena *arena;
    struct str src;
    size_t pos;
    size_t line_start;
    uint32_t line;
    char state;         /* 'd' data, 'b' block, 'v' variable */
    bool line_starting; /* the last thing read ended a line */
    char open[JINJA_HEIGHT_MAX];
    size_t n_open;
    struct err *err;
};

bool jlex_next(struct jlexer *lex, struct jtoken *token);

/* Fills t->body from t->source. */
bool jinja_parse(struct template *t, struct err *err);
/* Unknown filters and tests outside of conditions are errors; fills every `hidden`. */
bool jinja_check(struct template *t, struct err *err);
/* Id of a name of this template; UINT32_MAX when it was never mentioned and `t` is complete. */
uint32_t jinja_intern(struct template *t, struct str name);
uint32_t jinja_find_name(const struct template *t, struct str name);
bool jinja_syntax_error(struct err *err, uint32_t line, uint32_t col, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* ---- a render ---------------------------------------------------------------------------------------------------- */

struct jbinding {
    uint32_t id;
    struct jv value;
};

struct jscope {
    struct jscope *parent;
    struct jbinding *vars;
    uint32_t n, cap;
    bool captured; /* a macro or a lazy iterator refers to it: not to be used again */
};

struct jmacro {
    struct str name; /* ptr NULL: a call block's body */
    const struct jsignature *sig;
    const struct jnodes *body;
    const struct jids *hidden;
    struct jscope *scope; /* where it was defined */
};

#define JINJA_TAILS 4

/* Spare room behind a string that a concatenation made, so that growing one string piece by piece stays linear. */
struct jtail {
    char *end;
    size_t spare;
};

/* Whose text is it: jinja_marks.c. */
struct jmarks {
    struct text_spans own;     /* of addresses, beside the template's arena */
    struct text_spans *levels; /* own parts of what was emitted: to the text, to the captures */
    size_t n_levels;
};

struct jrun {
    const struct template *t;
    struct jmarks *marks; /* NULL: nobody asks */
    struct arena arena;
    struct err *err;        /* never NULL */
    const struct jnode *at; /* what is evaluated: for messages */
    struct jv *globals;     /* by name id: context and built-ins */
    struct jscope *scope;
    struct jscope *top;
    struct jscope *spare; /* scopes to use again */
    struct buf *out;      /* where text goes */
    struct buf **captures;
    size_t n_captures, cap_captures;
    size_t capture_bytes;
    size_t out_start;
    uint64_t steps;
    uint32_t frames; /* nested evaluator calls */
    uint32_t calls;  /* nested macro calls */
    struct jtail tails[JINJA_TAILS];
    uint32_t next_tail;
    long long wall_s;
};

bool jrun_fail(struct jrun *run, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool jrun_steps(struct jrun *run, uint64_t n);
/* Steps for handling that many bytes. */
bool jrun_bytes(struct jrun *run, size_t bytes);
/* One more nested evaluator call; pair with jrun_leave. */
bool jrun_enter(struct jrun *run);
static inline void jrun_leave(struct jrun *run)
{
    run->frames--;
}
void *jrun_alloc(struct jrun *run, size_t n, size_t size);
bool jrun_emit(struct jrun *run, struct str s);
/* From here to jrun_capture_end text is collected. */
bool jrun_capture_begin(struct jrun *run, struct buf **saved);
/* `out` may be NULL: what was collected is dropped. */
bool jrun_capture_end(struct jrun *run, struct buf *saved, struct jv *out);

enum jflow { FLOW_NEXT, FLOW_BREAK, FLOW_CONTINUE, FLOW_FAIL };

enum jflow jinja_exec(struct jrun *run, const struct jnodes *body);
bool jinja_eval(struct jrun *run, const struct jnode *n, struct jv *out);
bool jinja_assign(struct jrun *run, const struct jnode *target, const struct jv *value);
bool jinja_lookup(struct jrun *run, uint32_t id, struct jv *out);
bool jinja_bind(struct jrun *run, uint32_t id, struct jv value);
struct jscope *jscope_push(struct jrun *run, struct jscope *parent, const struct jids *hidden);
void jscope_pop(struct jrun *run, struct jscope *scope, struct jscope *back);
void jscope_capture(struct jscope *scope);
bool jinja_call(struct jrun *run, const struct jv *callee, const struct jargs *args, struct jv *out);
bool jinja_call_macro(struct jrun *run, const struct jmacro *m, const struct jargs *args, struct jv *out);
bool jinja_eval_args(struct jrun *run, const struct jcall *call, const struct jv *caller, struct jargs *args);
bool jinja_apply_filters(struct jrun *run, const struct jnode *chain, struct jv *value);
bool jinja_loop_attr(struct jrun *run, struct jloop *loop, struct str name, struct jv *out);
bool jinja_loop_recurse(struct jrun *run, struct jloop *loop, const struct jargs *args, struct jv *out);
extern const struct jmethod_def jinja_loop_methods[];
extern const struct jids jinja_no_ids;

/* ---- own text: jinja_marks.c; each is nothing without run->marks, but for the first ---- */

bool jmarks_own(struct jrun *run, struct str s);
/* The bytes of `from` were copied to memory that was not used before. */
bool jmarks_copied(struct jrun *run, const char *to, struct str from);
/* `s` is about to be emitted. */
bool jmarks_emitted(struct jrun *run, struct str s);
/* n_captures counts the new one. */
bool jmarks_capture_begin(struct jrun *run);
/* All of the newest capture was copied. */
bool jmarks_captured(struct jrun *run, const char *copy);
void jmarks_release(struct jmarks *m);

/* ---- values: jinja_value.c --------------------------------------------------------------------------------------- */

#define JV_NONE     ((struct jv){.kind = J_NONE})
#define JV_MISSING  ((struct jv){.kind = J_MISSING})
#define JV_INT(x)   ((struct jv){.kind = J_INT, .i = (x)})
#define JV_FLOAT(x) ((struct jv){.kind = J_FLOAT, .f = (x)})
#define JV_BOOL(x)  ((struct jv){.kind = J_BOOL, .b = (x)})
#define JV_STR(x)   ((struct jv){.kind = J_STR, .s = (x)})
#define JV_LIST(x)  ((struct jv){.kind = J_LIST, .list = (x)})
#define JV_DICT(x)  ((struct jv){.kind = J_DICT, .dict = (x)})
#define JV_ITER(x)  ((struct jv){.kind = J_ITER, .iter = (x)})

static inline bool jv_is_int(const struct jv *v)
{
    return v->kind == J_INT || v->kind == J_BOOL;
}

static inline int64_t jv_int(const struct jv *v)
{
    return v->kind == J_BOOL ? (int64_t)v->b : v->i;
}

static inline bool jv_is_number(const struct jv *v)
{
    return jv_is_int(v) || v->kind == J_FLOAT;
}

static inline double jv_double(const struct jv *v)
{
    return v->kind == J_FLOAT ? v->f : (double)jv_int(v);
}

struct jv jv_undefined_hint(const char *hint);
struct jv jv_undefined_name(struct str name);
const char *jv_type_name(const struct jv *v);
bool jv_undefined_fail(struct jrun *run, const struct jv *v);
bool jv_truth(const struct jv *v);
/* -1 and no error when it has no length. */
int64_t jv_length(struct jrun *run, const struct jv *v);
bool jv_from_json(struct jrun *run, const json_t *json, unsigned depth, struct jv *out);
bool jv_hash(struct jrun *run, const struct jv *v, unsigned depth, uint64_t *hash);
bool jv_hashable(const struct jv *v);
bool jv_equal(struct jrun *run, const struct jv *a, const struct jv *b, unsigned depth, bool *equal);
/* Order as Python's <; fails where Python does. */
bool jv_less(struct jrun *run, const struct jv *a, const struct jv *b, unsigned depth, const char *op, bool *less);
bool jv_contains(struct jrun *run, const struct jv *seq, const struct jv *item, bool *found);
bool jv_same(const struct jv *a, const struct jv *b);

struct jdict *jdict_new(struct jrun *run, size_t n_expected);
bool jdict_set(struct jrun *run, struct jdict *d, const struct jv *key, const struct jv *value);
bool jdict_set_str(struct jrun *run, struct jdict *d, struct str key, const struct jv *value);
bool jdict_get(struct jrun *run, const struct jdict *d, const struct jv *key, struct jv *out, bool *found);
bool jdict_get_str(struct jrun *run, const struct jdict *d, struct str key, struct jv *out);

struct jbuilder { /* of lists */
    struct jv *items;
    size_t n, cap;
};
bool jbuilder_add(struct jrun *run, struct jbuilder *b, const struct jv *v);
static inline struct jlist jbuilder_list(const struct jbuilder *b)
{
    return (struct jlist){b->items, b->n};
}
bool jv_tuple2(struct jrun *run, const struct jv *a, const struct jv *b, struct jv *out);

/* Text being put together in the arena. */
struct jtext {
    struct jrun *run;
    char *ptr;
    size_t len, cap;
    bool failed;
};
bool jtext_add(struct jtext *t, struct str s);
bool jtext_char(struct jtext *t, char c);
bool jtext_code(struct jtext *t, uint32_t code_point);
bool jtext_printf(struct jtext *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static inline struct jv jtext_value(const struct jtext *t)
{
    return JV_STR(((struct str){t->ptr ? t->ptr : "", t->len}));
}

/* Matches positional and keyword arguments with `names`; absent ones become J_MISSING. */
bool jargs_bind(struct jrun *run, const struct jargs *args, const char *fn, const char *const *names, size_t n_names,
                size_t n_required, struct jv *out);
/* An integer argument with a default. */
bool jarg_int(struct jrun *run, const char *fn, const struct jv *v, int64_t fallback, int64_t *out);
bool jarg_str(struct jrun *run, const char *fn, const struct jv *v, struct str *out);

/* ---- iteration: jinja_iter.c ------------------------------------------------------------------------------------- */

enum jiter_kind { IT_VALUE, IT_ITEMS, IT_REVERSED, IT_MAP, IT_SELECT, IT_BATCH, IT_SLICES, IT_UNIQUE, IT_FOR_FILTER };

struct jattr_path { /* attribute argument of map, sort, ...: parts are strings and integers */
    struct jv *parts;
    size_t n;
};

struct jiter {
    enum jiter_kind kind;
    struct jv source;
    size_t pos;
    struct jiter *inner;
    /* map, select: the filter or test and its arguments */
    const void *def;
    struct str def_name;
    struct jargs args;
    struct jattr_path path;
    struct jv fallback;
    bool use_path, negate, fold_case;
    /* batch, slice */
    int64_t count;
    struct jdict *seen;
    /* for ... if */
    const struct jnode *loop;
    struct jscope *scope;
};

bool jiter_open(struct jrun *run, const struct jv *v, struct jiter **it);
bool jiter_possible(const struct jv *v);
/* 1: `out` is the next item, 0: no more, -1: failed */
int jiter_next(struct jrun *run, struct jiter *it, struct jv *out);
/* All that is left. */
bool jiter_list(struct jrun *run, const struct jv *v, struct jlist *out);
struct jiter *jiter_new(struct jrun *run, enum jiter_kind kind, const struct jv *source);
bool jattr_parse(struct jrun *run, const struct jv *attr, struct jattr_path *path);
/* `fallback` of kind J_NONE or J_MISSING: none */
bool jattr_get(struct jrun *run, const struct jattr_path *path, const struct jv *fallback, struct jv *v);

/* ---- operators: jinja_ops.c -------------------------------------------------------------------------------------- */

bool jinja_binary(struct jrun *run, enum jop op, const struct jv *a, const struct jv *b, struct jv *out);
bool jinja_compare(struct jrun *run, enum jop op, const struct jv *a, const struct jv *b, bool *result);
bool jinja_negate(struct jrun *run, const struct jv *a, enum jnode_kind sign, struct jv *out);
bool jinja_getattr(struct jrun *run, const struct jv *obj, struct str name, struct jv *out);
bool jinja_getitem(struct jrun *run, const struct jv *obj, const struct jv *key, struct jv *out);
bool jinja_concat2(struct jrun *run, struct str a, struct str b, struct str *out);
/* Python's method of that name; false: none (no error is set). `unsafe`: one that the sandbox refuses. */
bool jinja_method(struct jrun *run, const struct jv *obj, struct str name, struct jv *out, bool *unsafe);

/* ---- text: jinja_print.c, jinja_format.c, jinja_str.c ------------------------------------------------------------ */

bool jprint_str(struct jtext *t, const struct jv *v);
bool jprint_repr(struct jtext *t, const struct jv *v, unsigned depth);
/* str(v) without copying text. */
bool jv_to_str(struct jrun *run, const struct jv *v, struct str *out);
#define JINJA_FLOAT_BYTES 40
size_t jprint_float(double f, char out[JINJA_FLOAT_BYTES]);
struct jjson_style {
    bool ascii, sort_keys, indented;
    struct str indent, item_separator, key_separator;
};
bool jprint_json(struct jtext *t, const struct jv *v, const struct jjson_style *style, unsigned depth);
bool jinja_percent(struct jrun *run, const struct jv *format, const struct jv *values, struct jv *out);
bool jinja_str_format(struct jrun *run, const struct jv *self, const struct jargs *args, struct jv *out);
bool jinja_escape(struct jrun *run, struct str s, struct str *out);

bool jstr_is_space(uint32_t c);
size_t jstr_count(struct str s);
/* Byte offset of the n-th code point, s.len when there are fewer. */
size_t jstr_offset(struct str s, size_t n);
struct str jstr_strip(struct str s, const struct str *chars, char side); /* side 'l', 'r', 'b' */
bool jstr_strip_set(struct jrun *run, struct str s, const struct str *chars, char side, struct str *out);
bool jstr_reversed(struct jrun *run, struct str s, struct str *out);
bool jstr_rfind(struct jrun *run, struct str s, struct str what, size_t *at, bool *found);
bool jstr_find(struct str s, struct str what, size_t from, size_t *at);
bool jstr_replace(struct jrun *run, struct str s, struct str old, struct str new_text, int64_t count, struct str *out);
bool jstr_lines(struct jrun *run, struct str s, bool keep_ends, uint8_t flags, struct jlist *out);
enum jcase { CASE_UPPER, CASE_LOWER, CASE_TITLE, CASE_CAPITALIZE, CASE_SWAP, CASE_FOLD };
bool jstr_case(struct jrun *run, struct str s, enum jcase how, struct str *out);
bool jstr_printable(uint32_t c);
enum jclass {
    CLASS_ALPHA,
    CLASS_DIGIT,
    CLASS_DECIMAL,
    CLASS_NUMERIC,
    CLASS_ALNUM,
    CLASS_SPACE,
    CLASS_UPPER,
    CLASS_LOWER,
    CLASS_PRINTABLE,
    CLASS_ASCII,
    CLASS_IDENTIFIER,
    CLASS_TITLE
};
bool jstr_is(struct str s, enum jclass class);
bool jstr_word(uint32_t c); /* \w of a regular expression */
bool jstr_to_int(struct jrun *run, struct str s, int64_t base, int64_t *out, bool *valid);
bool jstr_to_float(struct str s, double *out);

/* ---- library ----------------------------------------------------------------------------------------------------- */

struct jfilter {
    const char *name;
    bool (*call)(struct jrun *run, const struct jv *value, const struct jargs *args, struct jv *out);
};

struct jtest {
    const char *name;
    bool (*call)(struct jrun *run, const struct jv *value, const struct jargs *args, bool *out);
};

extern const struct jfilter jinja_text_filters[], jinja_seq_filters[];
extern const struct jtest jinja_tests[];
extern const struct jfunc jinja_globals[];
extern const struct jmethod_def jinja_str_methods[], jinja_dict_methods[], jinja_seq_methods[], jinja_number_methods[],
    jinja_cycler_methods[];

const struct jfilter *jinja_find_filter(struct str name);
const struct jtest *jinja_find_test(struct str name);
bool jinja_ignore_case(struct jrun *run, struct jv *v);

#endif

/* The tests that follow "is". */
#include "text/jinja.h"

#include <math.h>

static bool no_args(struct jrun *run, const struct jargs *args)
{
    if (args->n_pos == 0 && args->n_kw == 0)
        return true;
    return jrun_fail(run, "this test takes no argument");
}

static bool one_arg(struct jrun *run, const struct jargs *args, struct jv *out)
{
    static const char *const names[] = {"other"};
    return jargs_bind(run, args, "this test", names, 1, 1, out);
}

static bool test_kind(struct jrun *run, const struct jargs *args, bool value, bool *out)
{
    *out = value;
    return no_args(run, args);
}

#define KIND_TEST(name, condition) \
    static bool test_##name(struct jrun *run, const struct jv *v, const struct jargs *args, bool *out) \
    { \
        return test_kind(run, args, condition, out); \
    }

KIND_TEST(defined, v->kind != J_UNDEFINED)
KIND_TEST(undefined, v->kind == J_UNDEFINED)
KIND_TEST(none, v->kind == J_NONE)
KIND_TEST(boolean, v->kind == J_BOOL)
KIND_TEST(true, v->kind == J_BOOL && v->b)
KIND_TEST(false, v->kind == J_BOOL && !v->b)
KIND_TEST(integer, v->kind == J_INT)
KIND_TEST(float, v->kind == J_FLOAT)
KIND_TEST(number, jv_is_number(v))
KIND_TEST(string, v->kind == J_STR)
KIND_TEST(mapping, v->kind == J_DICT)
KIND_TEST(escaped, v->kind == J_STR && (v->flags & J_MARKUP))
KIND_TEST(iterable, jiter_possible(v))
KIND_TEST(sequence, v->kind == J_UNDEFINED || v->kind == J_STR || v->kind == J_LIST || v->kind == J_TUPLE ||
                        v->kind == J_DICT || v->kind == J_RANGE)
KIND_TEST(callable, v->kind == J_MACRO || v->kind == J_FUNC || v->kind == J_METHOD || v->kind == J_UNDEFINED ||
                        v->kind == J_LOOP || v->kind == J_JOINER)

static bool test_remainder(struct jrun *run, const struct jv *v, int64_t by, int64_t wanted, bool *out)
{
    struct jv rest, by_value = JV_INT(by), wanted_value = JV_INT(wanted);
    return jinja_binary(run, OP_MOD, v, &by_value, &rest) && jv_equal(run, &rest, &wanted_value, 0, out);
}

static bool test_odd(struct jrun *run, const struct jv *v, const struct jargs *args, bool *out)
{
    return no_args(run, args) && test_remainder(run, v, 2, 1, out);
}

static bool test_even(struct jrun *run, const struct jv *v, const struct jargs *args, bool *out)
{
    return no_args(run, args) && test_remainder(run, v, 2, 0, out);
}

static bool test_divisible(struct jrun *run, const struct jv *v, const struct jargs *args, bool *out)
{
    static const char *const names[] = {"num"};
    struct jv by, rest, zero = JV_INT(0);
    return jargs_bind(run, args, "divisibleby", names, 1, 1, &by) && jinja_binary(run, OP_MOD, v, &by, &rest) &&
           jv_equal(run, &rest, &zero, 0, out);
}

static bool test_case(struct jrun *run, const struct jv *v, const struct jargs *args, enum jclass class, bool *out)
{
    struct str s;
    if (!no_args(run, args) || !jv_to_str(run, v, &s) || !jrun_bytes(run, s.len))
        return false;
    *out = jstr_is(s, class);
    return true;
}

static bool test_lower(struct jrun *run, const struct jv *v, const struct jargs *args, bool *out)
{
    return test_case(run, v, args, CLASS_LOWER, out);
}

static bool test_upper(struct jrun *run, const struct jv *v, const struct jargs *args, bool *out)
{
    return test_case(run, v, args, CLASS_UPPER, out);
}

static bool test_sameas(struct jrun *run, const struct jv *v, const struct jargs *args, bool *out)
{
    struct jv other;
    if (!one_arg(run, args, &other))
        return false;
    *out = jv_same(v, &other);
    return true;
}

static bool test_in(struct jrun *run, const struct jv *v, const struct jargs *args, bool *out)
{
    static const char *const names[] = {"seq"};
    struct jv seq;
    return jargs_bind(run, args, "in", names, 1, 1, &seq) && jv_contains(run, &seq, v, out);
}

static bool test_filter(struct jrun *run, const struct jv *v, const struct jargs *args, bool *out)
{
    *out = v->kind == J_STR && jinja_find_filter(v->s);
    return no_args(run, args);
}

static bool test_test(struct jrun *run, const struct jv *v, const struct jargs *args, bool *out)
{
    *out = v->kind == J_STR && jinja_find_test(v->s);
    return no_args(run, args);
}

#define COMPARE_TEST(name, op) \
    static bool test_##name(struct jrun *run, const struct jv *v, const struct jargs *args, bool *out) \
    { \
        struct jv other; \
        return one_arg(run, args, &other) && jinja_compare(run, op, v, &other, out); \
    }

COMPARE_TEST(eq, OP_EQ)
COMPARE_TEST(ne, OP_NE)
COMPARE_TEST(lt, OP_LT)
COMPARE_TEST(le, OP_LE)
COMPARE_TEST(gt, OP_GT)
COMPARE_TEST(ge, OP_GE)

const struct jtest jinja_tests[] = {
    {"defined", test_defined},
    {"undefined", test_undefined},
    {"none", test_none},
    {"string", test_string},
    {"mapping", test_mapping},
    {"sequence", test_sequence},
    {"iterable", test_iterable},
    {"boolean", test_boolean},
    {"true", test_true},
    {"false", test_false},
    {"integer", test_integer},
    {"float", test_float},
    {"number", test_number},
    {"odd", test_odd},
    {"even", test_even},
    {"divisibleby", test_divisible},
    {"lower", test_lower},
    {"upper", test_upper},
    {"callable", test_callable},
    {"sameas", test_sameas},
    {"escaped", test_escaped},
    {"in", test_in},
    {"filter", test_filter},
    {"test", test_test},
    {"==", test_eq},
    {"eq", test_eq},
    {"equalto", test_eq},
    {"!=", test_ne},
    {"ne", test_ne},
    {">", test_gt},
    {"gt", test_gt},
    {"greaterthan", test_gt},
    {">=", test_ge},
    {"ge", test_ge},
    {"<", test_lt},
    {"lt", test_lt},
    {"lessthan", test_lt},
    {"<=", test_le},
    {"le", test_le},
    {NULL, NULL},
};

const struct jtest *jinja_find_test(struct str name)
{
    for (const struct jtest *t = jinja_tests; t->name; t++)
        if (str_equal(name, str_from(t->name)))
            return t;
    return NULL;
}

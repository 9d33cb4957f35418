/* Operators, attributes and subscripts, with Python's rules and the sandbox's refusals. */
#include "text/jinja.h"

#include <math.h>
#include <stdio.h>

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

static bool overflow(struct jrun *run)
{
    return jrun_fail(run, "integer overflow: the result does not fit into 64 bits");
}

static bool int_power(struct jrun *run, int64_t base, int64_t exponent, struct jv *out)
{
    if (exponent < 0) {
        if (base == 0)
            return jrun_fail(run, "0.0 cannot be raised to a negative power");
        *out = JV_FLOAT(pow((double)base, (double)exponent));
        return true;
    }
    int64_t result = 1;
    if (base == 0 || base == 1)
        exponent = exponent ? 1 : 0;
    if (base == -1)
        exponent &= 1;
    for (; exponent > 0; exponent--)
        if (__builtin_mul_overflow(result, base, &result))
            return overflow(run);
    *out = JV_INT(result);
    return true;
}

/* Rounds toward minus infinity; the remainder has the divisor's sign. */
static bool int_divide(struct jrun *run, int64_t a, int64_t b, enum jop op, struct jv *out)
{
    if (b == 0)
        return jrun_fail(run, "integer division or modulo by zero");
    if (b == -1) {
        if (op == OP_FLOORDIV && a == INT64_MIN)
            return overflow(run);
        *out = JV_INT(op == OP_FLOORDIV ? -a : 0);
        return true;
    }
    int64_t q = a / b, r = a % b;
    if (r != 0 && (r < 0) != (b < 0)) {
        q--;
        r += b;
    }
    *out = JV_INT(op == OP_FLOORDIV ? q : r);
    return true;
}

static bool int_arithmetic(struct jrun *run, enum jop op, int64_t a, int64_t b, struct jv *out)
{
    int64_t result = 0;
    bool over = false;
    switch (op) {
    case OP_ADD: over = __builtin_add_overflow(a, b, &result); break;
    case OP_SUB: over = __builtin_sub_overflow(a, b, &result); break;
    case OP_MUL: over = __builtin_mul_overflow(a, b, &result); break;
    case OP_DIV:
        if (b == 0)
            return jrun_fail(run, "division by zero");
        *out = JV_FLOAT((double)a / (double)b);
        return true;
    case OP_POW: return int_power(run, a, b, out);
    default: return int_divide(run, a, b, op, out);
    }
    *out = JV_INT(result);
    return !over || overflow(run);
}

static double float_mod(double a, double b)
{
    double r = fmod(a, b);
    if (r != 0)
        return (r < 0) != (b < 0) ? r + b : r;
    return copysign(0.0, b);
}

static double float_floordiv(double a, double b)
{
    double r = fmod(a, b), q = (a - r) / b;
    if (r != 0 && (r < 0) != (b < 0))
        q -= 1;
    if (q == 0)
        return copysign(0.0, a / b);
    double whole = floor(q);
    return q - whole > 0.5 ? whole + 1 : whole;
}

static bool float_arithmetic(struct jrun *run, enum jop op, double a, double b, struct jv *out)
{
    double result;
    if ((op == OP_DIV || op == OP_FLOORDIV || op == OP_MOD) && b == 0)
        return jrun_fail(run, "float division by zero");
    switch (op) {
    case OP_ADD: result = a + b; break;
    case OP_SUB: result = a - b; break;
    case OP_MUL: result = a * b; break;
    case OP_DIV: result = a / b; break;
    case OP_FLOORDIV: result = float_floordiv(a, b); break;
    case OP_MOD: result = float_mod(a, b); break;
    default:
        if (a == 0 && b < 0)
            return jrun_fail(run, "0.0 cannot be raised to a negative power");
        if (a < 0 && isfinite(a) && isfinite(b) && b != floor(b))
            return jrun_fail(run, "complex numbers are not supported");
        result = pow(a, b);
        if (isinf(result) && isfinite(a) && isfinite(b))
            return jrun_fail(run, "numerical result out of range");
        break;
    }
    *out = JV_FLOAT(result);
    return true;
}

bool jinja_negate(struct jrun *run, const struct jv *a, enum jnode_kind sign, struct jv *out)
{
    if (a->kind == J_UNDEFINED)
        return jv_undefined_fail(run, a);
    if (!jv_is_number(a))
        return jrun_fail(run, "bad operand type for unary %c: '%s'", sign == N_NEG ? '-' : '+', jv_type_name(a));
    if (a->kind == J_FLOAT) {
        *out = JV_FLOAT(sign == N_NEG ? -a->f : a->f);
        return true;
    }
    if (sign == N_NEG && jv_int(a) == INT64_MIN)
        return overflow(run);
    *out = JV_INT(sign == N_NEG ? -jv_int(a) : jv_int(a));
    return true;
}

/* ---- sequences --------------------------------------------------------------------------------------------------- */

#define TAIL_BYTES_MIN 256

bool jinja_concat2(struct jrun *run, struct str a, struct str b, struct str *out)
{
    size_t len = a.len + b.len;
    if (!jrun_bytes(run, b.len))
        return false;
    if (b.len == 0 || a.len == 0) {
        *out = b.len == 0 ? a : b;
        return true;
    }
    for (int i = 0; i < JINJA_TAILS; i++) {
        struct jtail *tail = &run->tails[i];
        if (tail->end == a.ptr + a.len && tail->spare >= b.len) {
            memmove(tail->end, b.ptr, b.len);
            if (!jmarks_copied(run, tail->end, b))
                return false;
            tail->end += b.len;
            tail->spare -= b.len;
            *out = (struct str){a.ptr, len};
            return true;
        }
    }
    size_t spare = len >= TAIL_BYTES_MIN ? len : 0;
    char *text = jrun_alloc(run, len + spare, 1);
    if (!text || !jrun_bytes(run, a.len))
        return false;
    memcpy(text, a.ptr, a.len);
    memcpy(text + a.len, b.ptr, b.len);
    if (!jmarks_copied(run, text, a) || !jmarks_copied(run, text + a.len, b))
        return false;
    if (spare) {
        run->tails[run->next_tail] = (struct jtail){text + len, spare};
        run->next_tail = (run->next_tail + 1) % JINJA_TAILS;
    }
    *out = (struct str){text, len};
    return true;
}

static bool add_strings(struct jrun *run, const struct jv *a, const struct jv *b, struct jv *out)
{
    struct str left = a->s, right = b->s;
    uint8_t markup = (a->flags | b->flags) & J_MARKUP;
    if (markup && !(a->flags & J_MARKUP) && !jinja_escape(run, left, &left))
        return false;
    if (markup && !(b->flags & J_MARKUP) && !jinja_escape(run, right, &right))
        return false;
    *out = JV_STR(STR(""));
    out->flags = markup;
    return jinja_concat2(run, left, right, &out->s);
}

static bool add_lists(struct jrun *run, const struct jv *a, const struct jv *b, struct jv *out)
{
    size_t n = a->list.n + b->list.n;
    struct jv *items = jrun_alloc(run, n, sizeof *items);
    if (!items || !jrun_steps(run, n))
        return false;
    if (a->list.n)
        memcpy(items, a->list.items, a->list.n * sizeof *items);
    if (b->list.n)
        memcpy(items + a->list.n, b->list.items, b->list.n * sizeof *items);
    *out = (struct jv){.kind = a->kind, .list = {items, n}};
    return true;
}

static bool repeat(struct jrun *run, const struct jv *a, int64_t times, struct jv *out)
{
    size_t count = times > 0 ? (size_t)times : 0, unit = a->kind == J_STR ? a->s.len : a->list.n, total;
    size_t size = a->kind == J_STR ? 1 : sizeof(struct jv);
    if (__builtin_mul_overflow(count, unit, &total))
        total = SIZE_MAX;
    char *p = jrun_alloc(run, total, size);
    if (!p || !jrun_bytes(run, total * size))
        return false;
    const void *from = a->kind == J_STR ? (const void *)a->s.ptr : a->list.items;
    for (size_t i = 0; unit && i < count; i++)
        memcpy(p + i * unit * size, from, unit * size);
    *out = *a;
    if (a->kind == J_STR)
        out->s = (struct str){p, total};
    else
        out->list = (struct jlist){(struct jv *)p, total};
    return true;
}

static bool is_list(const struct jv *v)
{
    return v->kind == J_LIST || v->kind == J_TUPLE;
}

bool jinja_binary(struct jrun *run, enum jop op, const struct jv *a, const struct jv *b, struct jv *out)
{
    static const char *const signs[] = {"+", "-", "*", "/", "//", "%", "** or pow()"};
    if (op == OP_MOD && a->kind == J_STR)
        return jinja_percent(run, a, b, out);
    if (a->kind == J_UNDEFINED || b->kind == J_UNDEFINED)
        return jv_undefined_fail(run, a->kind == J_UNDEFINED ? a : b);
    if (jv_is_int(a) && jv_is_int(b))
        return int_arithmetic(run, op, jv_int(a), jv_int(b), out);
    if (jv_is_number(a) && jv_is_number(b))
        return float_arithmetic(run, op, jv_double(a), jv_double(b), out);
    if (op == OP_ADD && a->kind == J_STR && b->kind == J_STR)
        return add_strings(run, a, b, out);
    if (op == OP_ADD && is_list(a) && a->kind == b->kind)
        return add_lists(run, a, b, out);
    if (op == OP_MUL && (a->kind == J_STR || is_list(a)) && jv_is_int(b))
        return repeat(run, a, jv_int(b), out);
    if (op == OP_MUL && (b->kind == J_STR || is_list(b)) && jv_is_int(a))
        return repeat(run, b, jv_int(a), out);
    if (op == OP_ADD && (a->kind == J_STR || is_list(a)))
        return jrun_fail(run, "can only concatenate %s (not \"%s\") to %s", jv_type_name(a), jv_type_name(b), jv_type_name(a));
    return jrun_fail(run, "unsupported operand type(s) for %s: '%s' and '%s'", signs[op], jv_type_name(a), jv_type_name(b));
}

bool jinja_compare(struct jrun *run, enum jop op, const struct jv *a, const struct jv *b, bool *result)
{
    bool nan = (a->kind == J_FLOAT && isnan(a->f)) || (b->kind == J_FLOAT && isnan(b->f));
    switch (op) {
    case OP_EQ:
    case OP_NE:
        if (!jv_equal(run, a, b, 0, result))
            return false;
        *result ^= op == OP_NE;
        return true;
    case OP_IN:
    case OP_NOTIN:
        if (!jv_contains(run, b, a, result))
            return false;
        *result ^= op == OP_NOTIN;
        return true;
    case OP_LT: return jv_less(run, a, b, 0, "<", result);
    case OP_GT:
        if (!jv_less(run, b, a, 0, ">", result))
            return false;
        return true;
    case OP_LE:
        if (!jv_less(run, b, a, 0, "<=", result))
            return false;
        *result = !*result && !nan;
        return true;
    default:
        if (!jv_less(run, a, b, 0, ">=", result))
            return false;
        *result = !*result && !nan;
        return true;
    }
}

/* ---- attributes and subscripts ----------------------------------------------------------------------------------- */

static bool method_value(struct jrun *run, const struct jv *obj, const struct jmethod_def *def, struct jv *out)
{
    struct jmethod *m = jrun_alloc(run, 1, sizeof *m);
    if (!m)
        return false;
    *m = (struct jmethod){*obj, def};
    *out = (struct jv){.kind = J_METHOD, .method = m};
    return true;
}

static bool in_words(const char *words, struct str name)
{
    for (const char *p = words; *p;) {
        size_t n = strcspn(p, " ");
        if (n == name.len && memcmp(p, name.ptr, n) == 0)
            return true;
        p += n + (p[n] == ' ');
    }
    return false;
}

static bool in_table(struct jrun *run, const struct jv *obj, const struct jmethod_def *table, struct str name, struct jv *out)
{
    for (; table->name; table++)
        if (str_equal(name, str_from(table->name)))
            return method_value(run, obj, table, out);
    return false;
}

bool jinja_method(struct jrun *run, const struct jv *obj, struct str name, struct jv *out, bool *unsafe)
{
    *unsafe = name.len > 4 && name.ptr[0] == '_' && name.ptr[1] == '_' && str_has_suffix(name, STR("__"));
    if (*unsafe)
        return false;
    switch ((enum jkind)obj->kind) {
    case J_STR: return in_table(run, obj, jinja_str_methods, name, out);
    case J_DICT:
        *unsafe = in_words("clear pop popitem setdefault update", name);
        return !*unsafe && in_table(run, obj, jinja_dict_methods, name, out);
    case J_LIST:
        *unsafe = in_words("append clear pop reverse insert sort extend remove", name);
        return !*unsafe && in_table(run, obj, jinja_seq_methods, name, out);
    case J_TUPLE:
    case J_RANGE:
        if (str_equal(name, STR("copy")))
            return false;
        return in_table(run, obj, jinja_seq_methods, name, out);
    case J_INT:
    case J_BOOL:
    case J_FLOAT: return in_table(run, obj, jinja_number_methods, name, out);
    case J_LOOP: return in_table(run, obj, jinja_loop_methods, name, out);
    case J_CYCLER: return in_table(run, obj, jinja_cycler_methods, name, out);
    default: return false;
    }
}

static bool number_attr(const struct jv *v, struct str name, struct jv *out)
{
    if (!jv_is_number(v))
        return false;
    *out = v->kind == J_FLOAT ? *v : JV_INT(jv_int(v));
    if (str_equal(name, STR("real")))
        return true;
    if (str_equal(name, STR("imag"))) {
        *out = v->kind == J_FLOAT ? JV_FLOAT(0.0) : JV_INT(0);
        return true;
    }
    if (v->kind == J_FLOAT)
        return false;
    if (str_equal(name, STR("denominator")))
        *out = JV_INT(1);
    return str_equal(name, STR("numerator")) || str_equal(name, STR("denominator"));
}

static bool macro_attr(struct jrun *run, const struct jmacro *m, struct str name, struct jv *out)
{
    *out = JV_MISSING;
    if (str_equal(name, STR("name")))
        *out = m->name.ptr ? JV_STR(m->name) : JV_NONE;
    else if (str_equal(name, STR("caller")))
        *out = JV_BOOL(m->sig->caller);
    else if (str_equal(name, STR("catch_kwargs")))
        *out = JV_BOOL(m->sig->kwargs);
    else if (str_equal(name, STR("catch_varargs")))
        *out = JV_BOOL(m->sig->varargs);
    else if (str_equal(name, STR("arguments"))) {
        struct jbuilder b = {0};
        for (size_t i = 0; i < m->sig->n; i++)
            if (!jbuilder_add(run, &b, &JV_STR(m->sig->names[i])))
                return false;
        *out = (struct jv){.kind = J_TUPLE, .list = jbuilder_list(&b)};
    }
    return true;
}

/* What getattr(obj, name) gives; J_MISSING when there is no such attribute. */
static bool attribute(struct jrun *run, const struct jv *obj, struct str name, struct jv *out)
{
    bool unsafe;
    *out = JV_MISSING;
    if (obj->kind == J_NAMESPACE) {
        if (!jdict_get_str(run, obj->dict, name, out))
            *out = JV_MISSING;
        return true;
    }
    if (obj->kind == J_LOOP) {
        if (!jinja_loop_attr(run, obj->loop, name, out))
            return false;
        if (out->kind != J_MISSING)
            return true;
    }
    if (obj->kind == J_MACRO)
        return macro_attr(run, obj->macro, name, out);
    if (obj->kind == J_CYCLER && str_equal(name, STR("current"))) {
        *out = obj->cycler->items.items[obj->cycler->pos];
        return true;
    }
    if (obj->kind == J_TUPLE && (obj->flags & J_GROUP) && (str_equal(name, STR("grouper")) || str_equal(name, STR("list")))) {
        *out = obj->list.items[name.ptr[0] == 'l'];
        return true;
    }
    if (number_attr(obj, name, out))
        return true;
    *out = JV_MISSING;
    if (jinja_method(run, obj, name, out, &unsafe))
        return true;
    if (unsafe) {
        struct jtext t = {.run = run};
        jtext_add(&t, STR("access to attribute '"));
        jtext_add(&t, name);
        jtext_printf(&t, "' of '%s' object is unsafe", jv_type_name(obj));
        *out = (struct jv){.kind = J_UNDEFINED, .flags = J_HINT, .s = jtext_value(&t).s};
        return !t.failed;
    }
    return run->err->code == ERR_NONE;
}

static struct jv no_attribute(const struct jv *obj, struct str name)
{
    return (struct jv){.kind = J_UNDEFINED, .flags = J_OF_OBJECT, .aux = obj->kind, .s = name};
}

bool jinja_getattr(struct jrun *run, const struct jv *obj, struct str name, struct jv *out)
{
    if (obj->kind == J_UNDEFINED)
        return jv_undefined_fail(run, obj);
    if (!attribute(run, obj, name, out))
        return false;
    if (out->kind != J_MISSING)
        return true;
    if (obj->kind == J_DICT && jdict_get_str(run, obj->dict, name, out))
        return true;
    *out = no_attribute(obj, name);
    return true;
}

/* One bound of a slice over `n` items. False: not an integer. */
static bool slice_bound(const struct jv *v, int64_t n, bool backwards, bool is_stop, int64_t *out)
{
    int64_t low = backwards ? -1 : 0, high = backwards ? n - 1 : n;
    if (v->kind == J_NONE) {
        *out = is_stop != backwards ? high : low;
        return true;
    }
    if (!jv_is_int(v))
        return false;
    int64_t i = jv_int(v);
    if (i < 0)
        i = i < -n ? low : i + n;
    if (i < low)
        i = low;
    *out = i > high ? high : i;
    return true;
}

static bool slice_str(struct jrun *run, const struct jv *obj, int64_t start, int64_t step, int64_t count, struct jv *out)
{
    *out = *obj;
    if (step == 1) {
        size_t from = jstr_offset(obj->s, (size_t)start);
        struct str rest = {obj->s.ptr + from, obj->s.len - from};
        out->s = (struct str){rest.ptr, jstr_offset(rest, (size_t)count)};
        return true;
    }
    struct jtext t = {.run = run};
    size_t *offsets = jrun_alloc(run, obj->s.len + 1, sizeof *offsets), n = 0;
    if (!offsets)
        return false;
    for (size_t i = 0; i < obj->s.len; str_utf8_next(obj->s, &i))
        offsets[n++] = i;
    offsets[n] = obj->s.len;
    for (int64_t k = 0; k < count; k++) {
        size_t i = (size_t)(start + k * step);
        if (!jtext_add(&t, (struct str){obj->s.ptr + offsets[i], offsets[i + 1] - offsets[i]}))
            return false;
    }
    out->s = jtext_value(&t).s;
    return true;
}

/* *out is J_MISSING when the slice does not apply to that type. */
static bool slice_value(struct jrun *run, const struct jv *obj, const struct jv *parts, struct jv *out)
{
    int64_t n = jv_length(run, obj), step = 1, start, stop;
    *out = JV_MISSING;
    if (n < 0 || (obj->kind != J_STR && !is_list(obj) && obj->kind != J_RANGE))
        return run->err->code == ERR_NONE;
    if (parts[2].kind != J_NONE) {
        if (!jv_is_int(&parts[2]))
            return true;
        step = jv_int(&parts[2]);
    }
    if (step == 0)
        return jrun_fail(run, "slice step cannot be zero");
    if (step < -n - 1)
        step = -n - 1;
    if (step > n + 1)
        step = n + 1;
    if (!slice_bound(&parts[0], n, step < 0, false, &start) || !slice_bound(&parts[1], n, step < 0, true, &stop))
        return true;
    int64_t count = 0;
    if (step > 0 && start < stop)
        count = (stop - start - 1) / step + 1;
    if (step < 0 && stop < start)
        count = (start - stop - 1) / -step + 1;
    if (obj->kind == J_STR)
        return slice_str(run, obj, start, step, count, out);
    if (obj->kind == J_RANGE) {
        const struct jrange *r = obj->range;
        struct jrange *part = jrun_alloc(run, 1, sizeof *part);
        if (!part)
            return false;
        *part = (struct jrange){r->start + r->step * start, r->start + r->step * stop, r->step * step, count};
        *out = (struct jv){.kind = J_RANGE, .range = part};
        return true;
    }
    struct jv *items = jrun_alloc(run, (size_t)count, sizeof *items);
    if (!items || !jrun_steps(run, (uint64_t)count))
        return false;
    for (int64_t k = 0; k < count; k++)
        items[k] = obj->list.items[start + k * step];
    *out = (struct jv){.kind = obj->kind, .list = {items, (size_t)count}};
    return true;
}

static bool index_str(struct jrun *run, const struct jv *obj, int64_t i, struct jv *out)
{
    int64_t n = i < 0 ? jv_length(run, obj) : 0;
    if (n < 0)
        return false;
    if (i < 0)
        i += n;
    size_t from = i < 0 ? obj->s.len : jstr_offset(obj->s, (size_t)i), to = from;
    if (!jrun_bytes(run, from))
        return false;
    if (from >= obj->s.len)
        return true;
    str_utf8_next(obj->s, &to);
    *out = *obj;
    out->s = (struct str){obj->s.ptr + from, to - from};
    return true;
}

/* obj[key]; J_MISSING when Python would raise TypeError or LookupError. */
static bool subscript(struct jrun *run, const struct jv *obj, const struct jv *key, struct jv *out)
{
    bool found;
    *out = JV_MISSING;
    if (obj->kind == J_DICT) {
        if (!jv_hashable(key))
            return true;
        if (!jdict_get(run, obj->dict, key, out, &found))
            return false;
        if (!found)
            *out = JV_MISSING;
        return true;
    }
    if (key->kind == J_SLICE)
        return slice_value(run, obj, key->slice, out);
    if (!jv_is_int(key))
        return true;
    int64_t i = jv_int(key);
    if (obj->kind == J_STR)
        return index_str(run, obj, i, out);
    int64_t n = is_list(obj) ? (int64_t)obj->list.n : obj->kind == J_RANGE ? obj->range->n : 0;
    if (i < 0)
        i += n;
    if (i < 0 || i >= n)
        return true;
    *out = obj->kind == J_RANGE ? JV_INT(obj->range->start + obj->range->step * i) : obj->list.items[i];
    return true;
}

bool jinja_getitem(struct jrun *run, const struct jv *obj, const struct jv *key, struct jv *out)
{
    if (obj->kind == J_UNDEFINED)
        return jv_undefined_fail(run, obj);
    if (!subscript(run, obj, key, out))
        return false;
    if (out->kind != J_MISSING)
        return true;
    if (key->kind == J_SLICE)
        return jrun_fail(run, "'%s' object cannot be sliced with these bounds", jv_type_name(obj));
    if (key->kind == J_STR) {
        if (!attribute(run, obj, key->s, out))
            return false;
        if (out->kind == J_MISSING)
            *out = no_attribute(obj, key->s);
        return true;
    }
    struct jtext t = {.run = run};
    if (!jprint_repr(&t, key, 0) || t.failed)
        return false;
    *out = (struct jv){.kind = J_UNDEFINED, .flags = J_OF_ELEMENT, .aux = obj->kind, .s = jtext_value(&t).s};
    return true;
}

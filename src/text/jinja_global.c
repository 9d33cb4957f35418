/* Functions that every template sees: range, dict, namespace, cycler, joiner, raise_exception, strftime_now. */
#include "text/jinja.h"

#include <time.h>

static bool call_range(struct jrun *run, const struct jargs *args, struct jv *out)
{
    int64_t v[3] = {0, 0, 1};
    if (args->n_kw || args->n_pos < 1 || args->n_pos > 3)
        return jrun_fail(run, "range expects 1 to 3 arguments, got %zu", args->n_pos + args->n_kw);
    for (size_t i = 0; i < args->n_pos; i++)
        if (!jarg_int(run, "range", &args->pos[i], 0, &v[args->n_pos == 1 ? 1 : i]))
            return false;
    if (v[2] == 0)
        return jrun_fail(run, "range() arg 3 must not be zero");
    __int128 span = v[2] > 0 ? (__int128)v[1] - v[0] : (__int128)v[0] - v[1];
    __int128 step = v[2] > 0 ? v[2] : -(__int128)v[2], n = span > 0 ? (span + step - 1) / step : 0;
    if (n > JINJA_RANGE_ITEMS_MAX)
        return jrun_fail(run, "range too big: more than %d items", JINJA_RANGE_ITEMS_MAX);
    struct jrange *r = jrun_alloc(run, 1, sizeof *r);
    if (!r)
        return false;
    *r = (struct jrange){v[0], v[1], v[2], (int64_t)n};
    *out = (struct jv){.kind = J_RANGE, .range = r};
    return true;
}

static bool add_pairs(struct jrun *run, const struct jv *source, struct jdict *d)
{
    struct jlist list, pair;
    if (source->kind == J_DICT) {
        for (size_t i = 0; i < source->dict->n; i++)
            if (!jdict_set(run, d, &source->dict->pairs[i].key, &source->dict->pairs[i].value))
                return false;
        return true;
    }
    if (!jiter_list(run, source, &list))
        return false;
    for (size_t i = 0; i < list.n; i++) {
        if (!jiter_list(run, &list.items[i], &pair))
            return false;
        if (pair.n != 2)
            return jrun_fail(run, "dict: item %zu has %zu parts, not a key and a value", i, pair.n);
        if (!jdict_set(run, d, &pair.items[0], &pair.items[1]))
            return false;
    }
    return true;
}

static bool build_dict(struct jrun *run, const struct jargs *args, struct jv *out)
{
    struct jdict *d = jdict_new(run, args->n_kw);
    if (args->n_pos > 1)
        return jrun_fail(run, "dict expected at most 1 argument, got %zu", args->n_pos);
    if (!d || (args->n_pos && !add_pairs(run, &args->pos[0], d)))
        return false;
    for (size_t i = 0; i < args->n_kw; i++)
        if (!jdict_set_str(run, d, args->names[i], &args->kw[i]))
            return false;
    *out = JV_DICT(d);
    return true;
}

static bool call_namespace(struct jrun *run, const struct jargs *args, struct jv *out)
{
    if (!build_dict(run, args, out))
        return false;
    for (size_t i = 0; i < out->dict->n; i++) {
        const struct jv *key = &out->dict->pairs[i].key;
        if (key->kind == J_STR && str_has_prefix(key->s, STR("_")))
            return jrun_fail(run, "a namespace cannot have the underscore-prefixed member '%.*s'", (int)key->s.len, key->s.ptr);
    }
    out->kind = J_NAMESPACE;
    return true;
}

static bool call_cycler(struct jrun *run, const struct jargs *args, struct jv *out)
{
    struct jbuilder b = {0};
    struct jcycler *c = jrun_alloc(run, 1, sizeof *c);
    if (!c)
        return false;
    if (args->n_pos == 0 || args->n_kw)
        return jrun_fail(run, "cycler: at least one item has to be provided");
    for (size_t i = 0; i < args->n_pos; i++)
        if (!jbuilder_add(run, &b, &args->pos[i]))
            return false;
    c->items = jbuilder_list(&b);
    *out = (struct jv){.kind = J_CYCLER, .cycler = c};
    return true;
}

static bool cycler_next(struct jrun *run, const struct jv *self, const struct jargs *args, struct jv *out)
{
    struct jcycler *c = self->cycler;
    if (args->n_pos || args->n_kw)
        return jrun_fail(run, "cycler.next takes no arguments");
    *out = c->items.items[c->pos];
    c->pos = (c->pos + 1) % c->items.n;
    return true;
}

static bool cycler_reset(struct jrun *run, const struct jv *self, const struct jargs *args, struct jv *out)
{
    if (args->n_pos || args->n_kw)
        return jrun_fail(run, "cycler.reset takes no arguments");
    self->cycler->pos = 0;
    *out = JV_NONE;
    return true;
}

const struct jmethod_def jinja_cycler_methods[] = {{"next", cycler_next}, {"reset", cycler_reset}, {NULL, NULL}};

static bool call_joiner(struct jrun *run, const struct jargs *args, struct jv *out)
{
    static const char *const names[] = {"sep"};
    struct jv sep;
    struct jjoiner *j = jrun_alloc(run, 1, sizeof *j);
    if (!j || !jargs_bind(run, args, "joiner", names, 1, 0, &sep))
        return false;
    j->sep = STR(", ");
    if (sep.kind != J_MISSING && !jarg_str(run, "joiner", &sep, &j->sep))
        return false;
    *out = (struct jv){.kind = J_JOINER, .joiner = j};
    return true;
}

static bool call_raise(struct jrun *run, const struct jargs *args, struct jv *out)
{
    static const char *const names[] = {"message"};
    struct jv message;
    struct str text;
    if (!jargs_bind(run, args, "raise_exception", names, 1, 1, &message) || !jv_to_str(run, &message, &text))
        return false;
    return jrun_fail(run, "the template refuses: %.*s", (int)(text.len < 700 ? text.len : 700), text.ptr);
}

/* The format without the directives that only a time with a zone or with microseconds fills. */
static bool plain_format(struct jrun *run, struct str format, struct jtext *t)
{
    for (size_t i = 0; i < format.len; i++) {
        char c = format.ptr[i], next = i + 1 < format.len ? format.ptr[i + 1] : 0;
        if (c == 0)
            return jrun_fail(run, "strftime_now: embedded null character");
        if (c != '%' || !next) {
            jtext_char(t, c);
            continue;
        }
        i++;
        if (next == 'f')
            jtext_add(t, STR("000000"));
        else if (next != 'z' && next != 'Z') {
            jtext_char(t, '%');
            jtext_char(t, next);
        }
    }
    return jtext_char(t, 0);
}

#define STRFTIME_BYTES_MAX 65536

static bool call_strftime(struct jrun *run, const struct jargs *args, struct jv *out)
{
    static const char *const names[] = {"format"};
    struct jv format;
    struct str s;
    struct tm tm;
    struct jtext t = {.run = run};
    time_t now = (time_t)run->wall_s;
    if (!jargs_bind(run, args, "strftime_now", names, 1, 1, &format) || !jarg_str(run, "strftime_now", &format, &s) ||
        !plain_format(run, s, &t))
        return false;
    *out = JV_STR(STR(""));
    if (t.len == 1)
        return true;
    if (!localtime_r(&now, &tm))
        return jrun_fail(run, "strftime_now: the clock is out of range");
    for (size_t room = 256; room <= STRFTIME_BYTES_MAX; room *= 16) {
        char *text = jrun_alloc(run, room, 1);
        if (!text)
            return false;
        size_t n = strftime(text, room, t.ptr, &tm);
        if (n > 0 && !str_utf8_valid((struct str){text, n}))
            return jrun_fail(run, "strftime_now: the format cuts a character");
        if (n > 0) {
            out->s = (struct str){text, n};
            return true;
        }
    }
    return true;
}

const struct jfunc jinja_globals[] = {
    {"range", "<function safe_range>", call_range},
    {"dict", "<TemplateDict>", build_dict},
    {"namespace", "<class 'TemplateNamespace'>", call_namespace},
    {"cycler", "<class 'jinja2.utils.Cycler'>", call_cycler},
    {"joiner", "<class 'jinja2.utils.Joiner'>", call_joiner},
    {"raise_exception", "<function raise_exception>", call_raise},
    {"strftime_now", "<function strftime_now>", call_strftime},
    {NULL, NULL, NULL},
};

#include "api/fields.h"

#include "base/nearest.h"

#include <math.h>
#include <stdlib.h>

const char *field_text(const json_t *value, char *out)
{
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(15));
    if (!text) {
        memcpy(out, "?", 2);
        return out;
    }
    size_t len = strlen(text);
    if (len < FIELD_TEXT_BYTES) {
        memcpy(out, text, len + 1);
    } else {
        size_t keep = FIELD_TEXT_BYTES - 4;
        while (keep > 0 && ((unsigned char)text[keep] & 0xC0) == 0x80)
            keep--;
        memcpy(out, text, keep);
        memcpy(out + keep, "...", 4);
    }
    free(text);
    return out;
}

static const struct field *find(const struct field *table, const char *name)
{
    for (; table && table->name; table++)
        if (strcmp(table->name, name) == 0)
            return table;
    return NULL;
}

static void try_nearest(struct nearest *near, const struct field *table)
{
    for (; table && table->name; table++)
        if (table->kind != FIELD_REFUSE)
            nearest_try(near, table->name);
}

static bool refuse_type(const struct field *f, const json_t *value, const char *wanted, struct err *err)
{
    char text[FIELD_TEXT_BYTES];
    return err_set_param(err, ERR_INVALID_REQUEST, f->name, "'%s' must be %s; got %s.", f->name, wanted,
                         field_text(value, text));
}

static bool refuse_range(const struct field *f, const json_t *value, struct err *err)
{
    char text[FIELD_TEXT_BYTES];
    return err_set_param(err, ERR_INVALID_REQUEST, f->name, "'%s' must be between %.15g and %.15g; got %s.", f->name, f->min,
                         f->max, field_text(value, text));
}

static bool parse_number(const struct field *f, const json_t *value, void *target, struct err *err)
{
    char wanted[96];
    const char *kind = f->kind == FIELD_INT ? "an integer" : "a number";
    snprintf(wanted, sizeof wanted, "%s between %.15g and %.15g", kind, f->min, f->max);
    if (!json_is_number(value))
        return refuse_type(f, value, wanted, err);
    double v = json_number_value(value);
    /* 16.0 is an integer in JSON Schema and in what many clients send. */
    if (f->kind == FIELD_INT && json_is_real(value) && v != floor(v))
        return refuse_type(f, value, wanted, err);
    if (!(v >= f->min && v <= f->max))
        return refuse_range(f, value, err);
    if (f->kind == FIELD_INT) {
        int64_t i = json_is_integer(value) ? (int64_t)json_integer_value(value) : (int64_t)v;
        memcpy(target, &i, sizeof i);
    } else {
        memcpy(target, &v, sizeof v);
    }
    return true;
}

static bool parse_field(const struct field *f, json_t *value, void *base, struct err *err)
{
    void *target = (char *)base + f->offset;
    switch (f->kind) {
    case FIELD_STRING:
        if (!json_is_string(value))
            return refuse_type(f, value, "a string", err);
        *(struct str *)target = (struct str){json_string_value(value), json_string_length(value)};
        return true;
    case FIELD_BOOL:
        if (!json_is_boolean(value))
            return refuse_type(f, value, "true or false", err);
        *(int *)target = json_is_true(value);
        return true;
    case FIELD_INT:
    case FIELD_NUMBER: return parse_number(f, value, target, err);
    case FIELD_ARRAY:
        if (!json_is_array(value))
            return refuse_type(f, value, "an array", err);
        *(json_t **)target = value;
        return true;
    case FIELD_OBJECT:
        if (!json_is_object(value))
            return refuse_type(f, value, "an object", err);
        *(json_t **)target = value;
        return true;
    case FIELD_ANY: *(json_t **)target = value; return true;
    case FIELD_CUSTOM: return f->parse(base, value, err);
    case FIELD_IGNORE: return true;
    case FIELD_REFUSE: {
        json_t *neutral = f->neutral ? json_loads(f->neutral, JSON_DECODE_ANY, NULL) : NULL;
        bool same = neutral && json_equal(neutral, value);
        json_decref(neutral);
        if (same)
            return true;
        char text[FIELD_TEXT_BYTES];
        return err_set_param(err, ERR_UNSUPPORTED, f->name,
                             "'%s' is not supported by this server; got %s. Leave the field out%s%s.", f->name,
                             field_text(value, text), f->neutral ? " or send " : "", f->neutral ? f->neutral : "");
    }
    }
    return true;
}

bool fields_parse(const json_t *object, const char *what, const struct field *table, const struct field *more, void *target,
                  struct err *err)
{
    if (!json_is_object(object)) {
        char text[FIELD_TEXT_BYTES];
        return err_set(err, ERR_INVALID_REQUEST, "The %s must be a JSON object; got %s.", what, field_text(object, text));
    }
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)object, name, value)
    {
        const struct field *f = find(table, name);
        if (!f)
            f = find(more, name);
        if (!f) {
            struct nearest near = nearest_begin(str_from(name), NEAREST_CHANGES_MAX);
            try_nearest(&near, table);
            try_nearest(&near, more);
            return err_set_param(err, ERR_INVALID_REQUEST, name, "Unknown field '%.80s' in the %s%s%s%s", name, what,
                                 near.name ? "; did you mean '" : ".", near.name ? near.name : "", near.name ? "'?" : "");
        }
        if (!json_is_null(value) && !parse_field(f, value, target, err))
            return false;
    }
    return true;
}

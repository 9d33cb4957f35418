/* Conversations; see history.h. */
#include "serve/history.h"

#include <stdbool.h>
#include <string.h>

static bool has_role(const json_t *message, const char *role)
{
    const char *is = json_string_value(json_object_get(message, "role"));
    return is && strcmp(is, role) == 0;
}

static bool is_system(const json_t *message)
{
    return has_role(message, "system") || has_role(message, "developer");
}

static bool append(json_t *to, json_t *message)
{
    return json_array_append(to, message) == 0;
}

json_t *history_join(const json_t *kept, const json_t *added)
{
    json_t *out = json_array(), *m;
    size_t i;
    bool ok = out != NULL, replaced = false, begun = false;
    json_array_foreach((json_t *)added, i, m) replaced |= is_system(m);
    json_array_foreach((json_t *)(replaced ? added : kept), i, m) if (is_system(m)) ok = ok && append(out, m);
    json_array_foreach((json_t *)kept, i, m)
    {
        begun |= has_role(m, "user");
        if (begun && !is_system(m))
            ok = ok && append(out, m);
    }
    json_array_foreach((json_t *)added, i, m) if (!is_system(m)) ok = ok && append(out, m);
    if (ok)
        return out;
    json_decref(out);
    return NULL;
}

size_t history_trim(json_t *messages, int64_t max)
{
    size_t n = 0, i;
    json_t *m;
    json_array_foreach(messages, i, m) n += !is_system(m);
    for (i = 0; max >= 0 && n > (size_t)max && i < json_array_size(messages);) {
        if (is_system(json_array_get(messages, i))) {
            i++;
            continue;
        }
        json_array_remove(messages, i);
        n--;
    }
    return n;
}

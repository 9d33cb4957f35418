/* Messages of all dialects brought into the shape that chat templates expect. */
#include "api/request.h"

#include <stdlib.h>

static bool bad(struct err *err, size_t at, const char *format, const char *value)
{
    char text[200], param[ERR_PARAM_BYTES_MAX];
    snprintf(text, sizeof text, format, value);
    snprintf(param, sizeof param, "messages[%zu]", at);
    return err_set_param(err, ERR_INVALID_REQUEST, param, "messages[%zu]: %s", at, text);
}

/* Of a content part {"type":"text","text":"..."}. */
static const json_t *text_of(const json_t *part, size_t at, struct err *err)
{
    char shown[FIELD_TEXT_BYTES];
    const char *type = json_string_value(json_object_get(part, "type"));
    const json_t *text = json_object_get(part, "text");
    if (!type)
        bad(err, at, "a content part must be an object such as {\"type\":\"text\",\"text\":\"...\"}; got %s.",
            field_text(part, shown));
    else if (strcmp(type, "text") != 0)
        bad(err, at, "a content part of type '%.60s' is not supported by this model: only {\"type\":\"text\"} is.", type);
    else if (!json_is_string(text))
        bad(err, at, "the 'text' of a content part must be a string; got %s.", text ? field_text(text, shown) : "nothing");
    return type && strcmp(type, "text") == 0 && json_is_string(text) ? text : NULL;
}

/* String, null, or a list of text parts. New reference, NULL on failure. */
static json_t *content_of(const json_t *message, size_t at, struct err *err)
{
    const json_t *content = json_object_get(message, "content");
    if (!content || json_is_null(content)) {
        if (json_object_get(message, "tool_calls"))
            return json_string("");
        bad(err, at, "'content' is missing%s.", "");
        return NULL;
    }
    if (json_is_string(content))
        return json_copy((json_t *)content);
    if (!json_is_array(content)) {
        char text[FIELD_TEXT_BYTES];
        bad(err, at, "'content' must be a string or an array of text parts; got %s.", field_text(content, text));
        return NULL;
    }
    struct buf joined;
    buf_init(&joined, SIZE_MAX / 2);
    size_t i;
    json_t *part;
    json_array_foreach((json_t *)content, i, part)
    {
        const json_t *text = text_of(part, at, err);
        if (!text) {
            buf_release(&joined);
            return NULL;
        }
        buf_append(&joined, json_string_value(text), json_string_length(text));
    }
    json_t *out = joined.failed ? NULL : json_stringn(buf_str(&joined).ptr, joined.len);
    buf_release(&joined);
    if (!out)
        err_set(err, ERR_MEMORY, "Out of memory.");
    return out;
}

/* OpenAI carries arguments as JSON text; templates want the object. */
static json_t *tool_calls_of(const json_t *calls, size_t at, struct err *err)
{
    if (!json_is_array(calls)) {
        bad(err, at, "'tool_calls' must be an array%s.", "");
        return NULL;
    }
    json_t *out = json_deep_copy(calls);
    size_t i;
    json_t *call;
    json_array_foreach(out, i, call)
    {
        json_t *function = json_object_get(call, "function");
        json_t *arguments = json_object_get(function, "arguments");
        if (!json_is_object(function) || !json_is_string(json_object_get(function, "name"))) {
            bad(err, at, "a tool call must have {\"function\":{\"name\":...}}%s.", "");
            json_decref(out);
            return NULL;
        }
        if (!json_is_string(arguments))
            continue;
        json_t *parsed =
            json_loadb(json_string_value(arguments), json_string_length(arguments), JSON_ALLOW_NUL | JSON_DECODE_ANY, NULL);
        if (parsed)
            json_object_set_new(function, "arguments", parsed);
    }
    return out;
}

/* *out: the text under `name`, NULL where there is none. */
static bool text_member(const json_t *message, const char *name, size_t at, json_t **out, struct err *err)
{
    char text[FIELD_TEXT_BYTES], what[FIELD_TEXT_BYTES + 64];
    json_t *v = json_object_get(message, name);
    *out = json_is_string(v) ? v : NULL;
    if (!v || json_is_null(v) || *out)
        return true;
    snprintf(what, sizeof what, "'%s' must be a string; got %s.", name, field_text(v, text));
    return bad(err, at, "%s", what);
}

/* What an assistant thought before: clients and templates have three names for it (DeepSeek's and Qwen's templates read
 * reasoning_content, gpt-oss's thinking), so that it is given under each. */
static bool carry_reasoning(const json_t *message, size_t at, json_t *out, struct err *err)
{
    static const char *const names[] = {"reasoning_content", "reasoning", "thinking"};
    const json_t *found = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        json_t *v;
        if (!text_member(message, names[i], at, &v, err))
            return false;
        if (v && found && !json_equal(found, v))
            return bad(err, at,
                       "'%s' differs from what another field tells of the same reasoning; send one of "
                       "'reasoning_content', 'reasoning' and 'thinking'.",
                       names[i]);
        found = v ? v : found;
    }
    for (size_t i = 0; found && i < sizeof names / sizeof *names; i++)
        if (json_object_set(out, names[i], (json_t *)found) != 0)
            return err_set(err, ERR_MEMORY, "Out of memory.");
    return true;
}

static json_t *normalize(const json_t *message, size_t at, struct err *err)
{
    static const char *const known[] = {"role",      "content",           "name",          "tool_calls", "tool_call_id",
                                        "tool_name", "reasoning_content", "reasoning",     "thinking",   "refusal",
                                        "audio",     "annotations",       "function_call", "images"};
    if (!json_is_object(message)) {
        char text[FIELD_TEXT_BYTES];
        bad(err, at, "must be an object with 'role' and 'content'; got %s.", field_text(message, text));
        return NULL;
    }
    const char *role = json_string_value(json_object_get(message, "role"));
    if (!role || !*role) {
        bad(err, at, "'role' must be a string such as \"user\"%s.", "");
        return NULL;
    }
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)message, key, value)
    {
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            found |= strcmp(key, known[i]) == 0;
        bool media = strcmp(key, "images") == 0 || strcmp(key, "audio") == 0 || strcmp(key, "function_call") == 0;
        bool empty = json_is_null(value) ||
                     ((json_is_array(value) || json_is_object(value)) && json_array_size(value) + json_object_size(value) == 0);
        if (!found || (media && !empty)) {
            bad(err, at, found ? "'%.60s' is not supported." : "unknown field '%.60s'.", key);
            return NULL;
        }
    }
    json_t *content = content_of(message, at, err);
    if (!content)
        return NULL;
    json_t *out = json_object();
    json_object_set_new(out, "role", json_string(role));
    json_object_set_new(out, "content", content);
    json_t *calls = json_object_get(message, "tool_calls");
    if (calls && !json_is_null(calls) && json_array_size(calls) > 0) {
        json_t *copy = tool_calls_of(calls, at, err);
        if (!copy) {
            json_decref(out);
            return NULL;
        }
        json_object_set_new(out, "tool_calls", copy);
    }
    static const char *const carried[] = {"name", "tool_call_id", "tool_name"};
    bool ok = true;
    for (size_t i = 0; ok && i < sizeof carried / sizeof *carried; i++) {
        json_t *v;
        ok = text_member(message, carried[i], at, &v, err);
        if (v)
            json_object_set(out, carried[i], v);
    }
    if (!ok || !carry_reasoning(message, at, out, err)) {
        json_decref(out);
        return NULL;
    }
    return out;
}

json_t *api_messages_normalize(const json_t *messages, struct err *err)
{
    json_t *out = json_array();
    size_t i;
    json_t *message;
    json_array_foreach((json_t *)messages, i, message)
    {
        json_t *one = normalize(message, i, err);
        if (!one || json_array_append_new(out, one) != 0) {
            json_decref(out);
            return NULL;
        }
    }
    return out;
}

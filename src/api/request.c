#include "api/request.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>

#define TEXT_COPIES      5    /* of a request's text while it is prepared: parsed, normalised, rendered */
#define VALUE_BYTES      112  /* of a parsed JSON number or string, with its place in its container */
#define CONTAINER_BYTES  384  /* of an empty object or array */
#define KEEP_ALIVE_S_MAX 1e9  /* about 30 years */
#define DEPTH_MAX        2048 /* where the parser gives up */

#define AT(member) offsetof(struct api_request, member)

static bool parse_stop(void *target, const json_t *value, struct err *err)
{
    struct api_request *r = target;
    size_t n = json_is_array(value) ? json_array_size(value) : 1;
    if (n > API_STOPS_MAX)
        return err_set_param(err, ERR_INVALID_REQUEST, "stop", "'stop' has %zu strings; at most %d are allowed.", n,
                             API_STOPS_MAX);
    r->n_stops = 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *s = json_is_array(value) ? json_array_get(value, i) : value;
        char text[FIELD_TEXT_BYTES];
        if (!json_is_string(s))
            return err_set_param(err, ERR_INVALID_REQUEST, "stop",
                                 "'stop' must be a string or an array of up to %d strings; got %s.", API_STOPS_MAX,
                                 field_text(s, text));
        size_t len = json_string_length(s);
        if (len == 0 || len > API_STOP_BYTES_MAX)
            return err_set_param(err, ERR_INVALID_REQUEST, "stop",
                                 "A string in 'stop' must have between 1 and %d bytes; "
                                 "got %zu.",
                                 API_STOP_BYTES_MAX, len);
        r->stops[r->n_stops++] = (struct str){json_string_value(s), len};
    }
    return true;
}

static bool parse_stop_ids(void *target, const json_t *value, struct err *err)
{
    struct api_request *r = target;
    char text[FIELD_TEXT_BYTES];
    if (!json_is_array(value))
        return err_set_param(err, ERR_INVALID_REQUEST, "stop_token_ids",
                             "'stop_token_ids' must be an array of at most %d token ids; got %s.", API_STOP_IDS_MAX,
                             field_text(value, text));
    if (json_array_size(value) > API_STOP_IDS_MAX)
        return err_set_param(err, ERR_INVALID_REQUEST, "stop_token_ids",
                             "'stop_token_ids' has %zu ids; at most %d are allowed.", json_array_size(value), API_STOP_IDS_MAX);
    r->n_stop_ids = 0;
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *v = json_array_get(value, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX)
            return err_set_param(err, ERR_INVALID_REQUEST, "stop_token_ids",
                                 "'stop_token_ids' must hold integers between 0 and %d; got %s.", INT32_MAX,
                                 field_text(v, text));
        r->stop_ids[r->n_stop_ids++] = (int32_t)json_integer_value(v);
    }
    return true;
}

static bool parse_bias(void *target, const json_t *value, struct err *err)
{
    struct api_request *r = target;
    if (!json_is_object(value) || json_object_size(value) > API_BIAS_MAX)
        return err_set_param(err, ERR_INVALID_REQUEST, "logit_bias",
                             "'logit_bias' must be an object of at most %d entries {\"<token id>\": -100..100}.", API_BIAS_MAX);
    free(r->bias);
    r->n_bias = 0;
    r->bias = calloc(json_object_size(value) + 1, sizeof *r->bias);
    if (!r->bias)
        return err_set(err, ERR_MEMORY, "Out of memory.");
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)value, key, v)
    {
        char *end;
        long id = strtol(key, &end, 10);
        if (key[0] < '0' || key[0] > '9' || *end || id > INT32_MAX)
            return err_set_param(err, ERR_INVALID_REQUEST, "logit_bias",
                                 "'logit_bias' has the key '%.40s'; keys must be token ids such as \"50256\".", key);
        double b = json_number_value(v);
        if (!json_is_number(v) || !(b >= -100 && b <= 100)) {
            char text[FIELD_TEXT_BYTES];
            return err_set_param(err, ERR_INVALID_REQUEST, "logit_bias",
                                 "'logit_bias' for token %ld must be a number between -100 and 100; got %s.", id,
                                 field_text(v, text));
        }
        r->bias[r->n_bias++] = (struct api_bias){(int32_t)id, (float)b};
    }
    return true;
}

/* Chat: boolean (OpenAI) with top_logprobs beside it. */
static bool parse_logprobs_flag(void *target, const json_t *value, struct err *err)
{
    struct api_request *r = target;
    char text[FIELD_TEXT_BYTES];
    if (!json_is_boolean(value))
        return err_set_param(err, ERR_INVALID_REQUEST, "logprobs", "'logprobs' must be true or false; got %s.",
                             field_text(value, text));
    r->want_logprobs = json_is_true(value);
    return true;
}

/* "5m", "1h30m", "-1", 300 */
static bool parse_keep_alive(void *target, const json_t *value, struct err *err)
{
    struct api_request *r = target;
    char text[FIELD_TEXT_BYTES];
    if (json_is_number(value)) {
        double v = json_number_value(value);
        r->keep_alive_s = v < 0 ? -1 : v < KEEP_ALIVE_S_MAX ? v : KEEP_ALIVE_S_MAX;
        return true;
    }
    const char *s = json_string_value(value);
    bool negative = s && *s == '-';
    double total = 0;
    bool any = false, ok = s != NULL;
    for (s = ok && negative ? s + 1 : s; ok && *s;) {
        char *end;
        double v = strtod(s, &end);
        double unit = *end == 0 ? 1 : *end == 's' ? 1 : *end == 'h' ? 3600 : *end == 'm' ? 60 : 0;
        if (*end == 'm' && end[1] == 's') {
            unit = 0.001;
            end++;
        }
        ok = end != s && unit > 0 && v >= 0 && v < 1e12;
        any = true;
        total += v * unit;
        s = *end ? end + 1 : end;
    }
    if (!ok || !any)
        return err_set_param(err, ERR_INVALID_REQUEST, "keep_alive",
                             "'keep_alive' must be seconds or a duration such as "
                             "\"5m\" (negative: for ever); got %s.",
                             field_text(value, text));
    r->keep_alive_s = negative ? -1 : total < KEEP_ALIVE_S_MAX ? total : KEEP_ALIVE_S_MAX;
    return true;
}

static bool parse_timeout(void *target, const json_t *value, struct err *err)
{
    struct api_request *r = target;
    char text[FIELD_TEXT_BYTES];
    double v = json_number_value(value);
    if (!json_is_number(value) || !(v > 0 && v <= API_TIMEOUT_S_MAX))
        return err_set_param(err, ERR_INVALID_REQUEST, "timeout",
                             "'timeout' must be a number of seconds greater than 0 "
                             "and at most %.15g; got %s.",
                             API_TIMEOUT_S_MAX, field_text(value, text));
    r->timeout_s = v;
    return true;
}

struct stream_options {
    int include_usage, continuous_usage_stats, include_obfuscation;
};

static bool parse_stream_options(void *target, const json_t *value, struct err *err)
{
    static const struct field table[] = {
        {.name = "include_usage", .kind = FIELD_BOOL, .offset = offsetof(struct stream_options, include_usage)},
        {.name = "continuous_usage_stats",
         .kind = FIELD_BOOL,
         .offset = offsetof(struct stream_options, continuous_usage_stats)},
        {.name = "include_obfuscation", .kind = FIELD_REFUSE, .neutral = "false"},
        {0}};
    struct stream_options o = {0};
    if (!fields_parse(value, "stream_options", table, NULL, &o, err))
        return false;
    struct api_request *r = target;
    r->include_usage = o.include_usage;
    r->continuous_usage = o.continuous_usage_stats;
    return true;
}

static bool parse_response_format(void *target, const json_t *value, struct err *err)
{
    (void)target;
    const char *type = json_string_value(json_object_get(value, "type"));
    char text[FIELD_TEXT_BYTES];
    if (type && strcmp(type, "text") == 0)
        return true;
    return err_set_param(err, ERR_UNSUPPORTED, "response_format",
                         "'response_format' %s is not supported by this server: only {\"type\":\"text\"} is.",
                         field_text(value, text));
}

static bool parse_max_completion(void *target, const json_t *value, struct err *err)
{
    static const struct field table[] = {
        {.name = "max_completion_tokens", .kind = FIELD_INT, .offset = AT(max_tokens), .min = 1, .max = API_MAX_TOKENS_MAX},
        {0}};
    json_t *one = json_pack("{s:O}", "max_completion_tokens", (json_t *)value);
    bool ok = one && fields_parse(one, "request", table, NULL, target, err);
    json_decref(one);
    return ok;
}

static bool parse_seed(void *target, const json_t *value, struct err *err)
{
    struct api_request *r = target;
    char text[FIELD_TEXT_BYTES];
    if (!json_is_integer(value))
        return err_set_param(err, ERR_INVALID_REQUEST, "seed", "'seed' must be an integer between %lld and %lld; got %s.",
                             LLONG_MIN, LLONG_MAX, field_text(value, text));
    r->seed = json_integer_value(value);
    r->seed_given = 1;
    return true;
}

static bool parse_best_of(void *target, const json_t *value, struct err *err)
{
    (void)target;
    if (json_is_integer(value) && json_integer_value(value) == 1)
        return true;
    return err_set_param(err, ERR_UNSUPPORTED, "best_of",
                         "'best_of' other than 1 is not supported by this server; ask for n choices instead.");
}

/* Sampling: the same names, types and ranges in every dialect. */
static const struct field sampling[] = {
    {.name = "temperature", .kind = FIELD_NUMBER, .offset = AT(temperature), .min = 0, .max = 2},
    {.name = "top_p", .kind = FIELD_NUMBER, .offset = AT(top_p), .min = 0, .max = 1},
    {.name = "min_p", .kind = FIELD_NUMBER, .offset = AT(min_p), .min = 0, .max = 1},
    {.name = "top_k", .kind = FIELD_INT, .offset = AT(top_k), .min = -1, .max = INT_MAX},
    {.name = "repetition_penalty", .kind = FIELD_NUMBER, .offset = AT(repetition_penalty), .min = 0.01, .max = 10},
    {.name = "presence_penalty", .kind = FIELD_NUMBER, .offset = AT(presence_penalty), .min = -2, .max = 2},
    {.name = "frequency_penalty", .kind = FIELD_NUMBER, .offset = AT(frequency_penalty), .min = -2, .max = 2},
    {.name = "seed", .kind = FIELD_CUSTOM, .parse = parse_seed},
    {.name = "stop", .kind = FIELD_CUSTOM, .parse = parse_stop},
    {.name = "stop_token_ids", .kind = FIELD_CUSTOM, .parse = parse_stop_ids},
    {.name = "max_tokens", .kind = FIELD_INT, .offset = AT(max_tokens), .min = 0, .max = API_MAX_TOKENS_MAX},
    {.name = "logit_bias", .kind = FIELD_CUSTOM, .parse = parse_bias},
    {.name = "n", .kind = FIELD_INT, .offset = AT(n), .min = 1, .max = API_CHOICES_MAX},
    {.name = "ignore_eos", .kind = FIELD_BOOL, .offset = AT(ignore_eos)},
    {.name = "prompt_logprobs", .kind = FIELD_INT, .offset = AT(prompt_logprobs), .min = 0, .max = 20},
    {.name = "return_token_ids", .kind = FIELD_BOOL, .offset = AT(return_token_ids)},
    {.name = "return_tokens_as_token_ids", .kind = FIELD_BOOL, .offset = AT(tokens_as_ids)},
    {.name = "timeout", .kind = FIELD_CUSTOM, .parse = parse_timeout},
    {.name = "keep_alive", .kind = FIELD_CUSTOM, .parse = parse_keep_alive},
    {.name = "model", .kind = FIELD_STRING, .offset = AT(model)},
    {.name = "stream", .kind = FIELD_BOOL, .offset = AT(stream)},
    /* vLLM's, which its clients send with the value that changes nothing */
    {.name = "skip_special_tokens", .kind = FIELD_REFUSE, .neutral = "true"},
    {.name = "spaces_between_special_tokens", .kind = FIELD_REFUSE, .neutral = "true"},
    {.name = "include_stop_str_in_output", .kind = FIELD_REFUSE, .neutral = "false"},
    {.name = "use_beam_search", .kind = FIELD_REFUSE, .neutral = "false"},
    {.name = "min_tokens", .kind = FIELD_REFUSE, .neutral = "0"},
    {.name = "priority", .kind = FIELD_REFUSE, .neutral = "0"},
    {0}};

static const struct field chat_native[] = {
    {.name = "messages", .kind = FIELD_ARRAY, .offset = AT(messages)},
    {.name = "max_tokens", .kind = FIELD_INT, .offset = AT(max_tokens), .min = 1, .max = API_MAX_TOKENS_MAX},
    {.name = "logprobs", .kind = FIELD_CUSTOM, .parse = parse_logprobs_flag},
    {.name = "top_logprobs", .kind = FIELD_INT, .offset = AT(top_logprobs), .min = 0, .max = 20},
    {.name = "chat_template_kwargs", .kind = FIELD_OBJECT, .offset = AT(template_kwargs)},
    {.name = "split_special_tokens", .kind = FIELD_BOOL, .offset = AT(split_special_tokens)},
    {.name = "session_id", .kind = FIELD_STRING, .offset = AT(session_id)},
    {.name = "max_history", .kind = FIELD_INT, .offset = AT(max_history), .min = 0, .max = API_HISTORY_MAX},
    {.name = "tools", .kind = FIELD_REFUSE, .neutral = "[]"},
    {.name = "tool_choice", .kind = FIELD_REFUSE, .neutral = "\"none\""},
    {.name = "format", .kind = FIELD_REFUSE, .neutral = "\"\""},
    {.name = "response_format", .kind = FIELD_CUSTOM, .parse = parse_response_format},
    {.name = "structured_outputs", .kind = FIELD_REFUSE},
    {.name = "continue_final_message", .kind = FIELD_REFUSE, .neutral = "false"},
    {.name = "draft", .kind = FIELD_REFUSE},
    {.name = "profile", .kind = FIELD_REFUSE},
    {0}};

static const struct field chat_openai[] = {
    {.name = "messages", .kind = FIELD_ARRAY, .offset = AT(messages)},
    {.name = "max_tokens", .kind = FIELD_INT, .offset = AT(max_tokens), .min = 1, .max = API_MAX_TOKENS_MAX},
    {.name = "logprobs", .kind = FIELD_CUSTOM, .parse = parse_logprobs_flag},
    {.name = "top_logprobs", .kind = FIELD_INT, .offset = AT(top_logprobs), .min = 0, .max = 20},
    {.name = "max_completion_tokens", .kind = FIELD_CUSTOM, .parse = parse_max_completion},
    {.name = "stream_options", .kind = FIELD_CUSTOM, .parse = parse_stream_options},
    {.name = "response_format", .kind = FIELD_CUSTOM, .parse = parse_response_format},
    {.name = "chat_template_kwargs", .kind = FIELD_OBJECT, .offset = AT(template_kwargs)},
    {.name = "split_special_tokens", .kind = FIELD_BOOL, .offset = AT(split_special_tokens)},
    {.name = "documents", .kind = FIELD_ARRAY, .offset = AT(documents)},
    {.name = "add_generation_prompt", .kind = FIELD_BOOL, .offset = AT(add_generation_prompt)},
    {.name = "user", .kind = FIELD_IGNORE},
    {.name = "metadata", .kind = FIELD_IGNORE},
    {.name = "safety_identifier", .kind = FIELD_IGNORE},
    {.name = "prompt_cache_key", .kind = FIELD_IGNORE},
    {.name = "prompt_cache_retention", .kind = FIELD_IGNORE},
    {.name = "parallel_tool_calls", .kind = FIELD_IGNORE},
    {.name = "store", .kind = FIELD_REFUSE, .neutral = "false"},
    {.name = "service_tier", .kind = FIELD_REFUSE, .neutral = "\"auto\""},
    {.name = "modalities", .kind = FIELD_REFUSE, .neutral = "[\"text\"]"},
    {.name = "tools", .kind = FIELD_REFUSE, .neutral = "[]"},
    {.name = "tool_choice", .kind = FIELD_REFUSE, .neutral = "\"none\""},
    {.name = "functions", .kind = FIELD_REFUSE, .neutral = "[]"},
    {.name = "function_call", .kind = FIELD_REFUSE, .neutral = "\"none\""},
    {.name = "structured_outputs", .kind = FIELD_REFUSE},
    {.name = "reasoning_effort", .kind = FIELD_REFUSE},
    {.name = "verbosity", .kind = FIELD_REFUSE, .neutral = "\"medium\""},
    {.name = "continue_final_message", .kind = FIELD_REFUSE, .neutral = "false"},
    {.name = "echo", .kind = FIELD_REFUSE, .neutral = "false"},
    {.name = "audio", .kind = FIELD_REFUSE},
    {.name = "prediction", .kind = FIELD_REFUSE},
    {.name = "web_search_options", .kind = FIELD_REFUSE},
    {0}};

static const struct field complete_openai[] = {
    {.name = "prompt", .kind = FIELD_ANY, .offset = AT(prompt)},
    {.name = "echo", .kind = FIELD_BOOL, .offset = AT(echo)},
    {.name = "logprobs", .kind = FIELD_INT, .offset = AT(top_logprobs), .min = 0, .max = 20},
    {.name = "stream_options", .kind = FIELD_CUSTOM, .parse = parse_stream_options},
    {.name = "response_format", .kind = FIELD_CUSTOM, .parse = parse_response_format},
    {.name = "best_of", .kind = FIELD_CUSTOM, .parse = parse_best_of},
    {.name = "split_special_tokens", .kind = FIELD_BOOL, .offset = AT(split_special_tokens)},
    {.name = "add_special_tokens", .kind = FIELD_BOOL, .offset = AT(add_special_tokens)},
    {.name = "suffix", .kind = FIELD_REFUSE, .neutral = "\"\""},
    {.name = "structured_outputs", .kind = FIELD_REFUSE},
    {.name = "user", .kind = FIELD_IGNORE},
    {.name = "metadata", .kind = FIELD_IGNORE},
    {0}};

static const struct field tokenize[] = {
    {.name = "model", .kind = FIELD_STRING, .offset = AT(model)},
    {.name = "prompt", .kind = FIELD_ANY, .offset = AT(prompt)},
    {.name = "messages", .kind = FIELD_ARRAY, .offset = AT(messages)},
    {.name = "tools", .kind = FIELD_ARRAY, .offset = AT(tools)},
    {.name = "add_special_tokens", .kind = FIELD_BOOL, .offset = AT(add_special_tokens)},
    {.name = "add_generation_prompt", .kind = FIELD_BOOL, .offset = AT(add_generation_prompt)},
    {.name = "continue_final_message", .kind = FIELD_REFUSE, .neutral = "false"},
    {.name = "chat_template_kwargs", .kind = FIELD_OBJECT, .offset = AT(template_kwargs)},
    {.name = "split_special_tokens", .kind = FIELD_BOOL, .offset = AT(split_special_tokens)},
    {.name = "return_token_strs", .kind = FIELD_BOOL, .offset = AT(return_token_strs)},
    {0}};

static const struct field detokenize[] = {
    {.name = "model", .kind = FIELD_STRING, .offset = AT(model)},
    {.name = "tokens", .kind = FIELD_ARRAY, .offset = AT(tokens)},
    {.name = "skip_special_tokens", .kind = FIELD_BOOL, .offset = AT(skip_special_tokens)},
    {0}};

static const struct field apply_template[] = {
    {.name = "model", .kind = FIELD_STRING, .offset = AT(model)},
    {.name = "messages", .kind = FIELD_ARRAY, .offset = AT(messages)},
    {.name = "tools", .kind = FIELD_ARRAY, .offset = AT(tools)},
    {.name = "documents", .kind = FIELD_ARRAY, .offset = AT(documents)},
    {.name = "add_generation_prompt", .kind = FIELD_BOOL, .offset = AT(add_generation_prompt)},
    {.name = "continue_final_message", .kind = FIELD_REFUSE, .neutral = "false"},
    {.name = "chat_template_kwargs", .kind = FIELD_OBJECT, .offset = AT(template_kwargs)},
    {.name = "split_special_tokens", .kind = FIELD_BOOL, .offset = AT(split_special_tokens)},
    {.name = "chat_template", .kind = FIELD_STRING, .offset = AT(chat_template)},
    {0}};

static const struct dialect {
    const struct field *table, *more;
} dialects[] = {
    [API_CHAT] = {chat_native, sampling},
    [API_OPENAI_CHAT] = {chat_openai, sampling},
    [API_OPENAI_COMPLETE] = {complete_openai, sampling},
    [API_TOKENIZE] = {tokenize, NULL},
    [API_DETOKENIZE] = {detokenize, NULL},
    [API_APPLY_TEMPLATE] = {apply_template, NULL},
};

static void set_defaults(struct api_request *r, enum api_kind kind)
{
    memset(r, 0, sizeof *r);
    r->kind = kind;
    r->add_generation_prompt = 1;
    r->add_special_tokens = r->split_special_tokens = -1;
    r->timeout_s = r->keep_alive_s = API_NOT_GIVEN;
    r->n = 1;
    r->max_history = -1;
    r->max_tokens = r->top_logprobs = r->prompt_logprobs = -1;
    r->logprobs = -1;
    r->top_k = INT64_MIN;
    r->temperature = r->top_p = r->min_p = API_NOT_GIVEN;
    r->repetition_penalty = r->presence_penalty = r->frequency_penalty = API_NOT_GIVEN;
}

static bool require(bool given, const char *name, struct err *err)
{
    return given || err_set_param(err, ERR_INVALID_REQUEST, name, "The field '%s' is missing.", name);
}

/* Of tokenize: fields that shape a chat would be ignored beside a plain text. */
static bool check_plain(const struct api_request *r, struct err *err)
{
    static const char *const of_chats[] = {"tools", "add_generation_prompt", "chat_template_kwargs"};
    for (size_t i = 0; i < sizeof of_chats / sizeof *of_chats; i++) {
        const json_t *v = json_object_get(r->root, of_chats[i]);
        if (v && !json_is_null(v))
            return err_set_param(err, ERR_INVALID_REQUEST, of_chats[i],
                                 "'%s' shapes a chat and has no meaning with "
                                 "'prompt'; send 'messages', or leave it out.",
                                 of_chats[i]);
    }
    return true;
}

/* OpenAI's newer name for the same; which of two would count depended on their order. */
static bool check_bounds(const struct api_request *r, struct err *err)
{
    const json_t *old = json_object_get(r->root, "max_tokens"), *new = json_object_get(r->root, "max_completion_tokens");
    return !json_is_integer(old) || !json_is_integer(new) || json_equal(old, new) ||
           err_set_param(
               err, ERR_INVALID_REQUEST, "max_tokens",
               "'max_tokens' is %lld and 'max_completion_tokens' is %lld, and both bound the answer; send one of them.",
               (long long)json_integer_value(old), (long long)json_integer_value(new));
}

/* What no single field can tell. */
static bool check_whole(struct api_request *r, struct err *err)
{
    if (!require(r->model.ptr != NULL, "model", err))
        return false;
    if (!r->model.len)
        return err_set_param(err, ERR_INVALID_REQUEST, "model", "'model' is empty; name one of those that GET /models lists.");
    bool chat = r->kind == API_CHAT || r->kind == API_OPENAI_CHAT || r->kind == API_APPLY_TEMPLATE;
    if (chat && !require(r->messages != NULL, "messages", err))
        return false;
    if (chat && json_array_size(r->messages) == 0)
        return err_set_param(err, ERR_INVALID_REQUEST, "messages", "'messages' must not be empty.");
    if (r->kind == API_OPENAI_COMPLETE && !require(r->prompt != NULL, "prompt", err))
        return false;
    if (r->kind == API_DETOKENIZE && !require(r->tokens != NULL, "tokens", err))
        return false;
    if (r->kind == API_TOKENIZE && !r->prompt == !r->messages)
        return err_set_param(err, ERR_INVALID_REQUEST, "prompt", "Give either 'prompt' (a string) or 'messages'.");
    if (r->kind == API_TOKENIZE && r->prompt && !check_plain(r, err))
        return false;
    if (r->kind == API_OPENAI_COMPLETE) {
        r->logprobs = (int)r->top_logprobs;
    } else {
        if (r->top_logprobs > 0 && !r->want_logprobs && r->kind == API_OPENAI_CHAT)
            return err_set_param(err, ERR_INVALID_REQUEST, "top_logprobs",
                                 "'top_logprobs' is %d but 'logprobs' is not true; send \"logprobs\": true with it.",
                                 (int)r->top_logprobs);
        if (r->want_logprobs || r->top_logprobs > 0)
            r->logprobs = r->top_logprobs > 0 ? (int)r->top_logprobs : 0;
    }
    if (r->include_usage && !r->stream)
        return err_set_param(err, ERR_INVALID_REQUEST, "stream_options",
                             "'stream_options' is only allowed when 'stream' is true.");
    if (!check_bounds(r, err))
        return false;
    if (r->max_tokens == 0 && !r->echo)
        return err_set_param(err, ERR_INVALID_REQUEST, "max_tokens", "'max_tokens' must be between 1 and %.15g; got 0.",
                             API_MAX_TOKENS_MAX);
    if (r->stream && r->prompt_logprobs >= 0)
        return err_set_param(err, ERR_UNSUPPORTED, "prompt_logprobs",
                             "'prompt_logprobs' is not given in streams; send \"stream\": false.");
    return true;
}

size_t api_request_bytes(struct str body)
{
    size_t bytes = TEXT_COPIES * body.len;
    size_t depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < body.len && depth <= DEPTH_MAX; i++) {
        char c = body.ptr[i];
        if (in_string && c == '\\') {
            i++;
        } else if (c == '"') {
            in_string = !in_string;
        } else if (!in_string) {
            bytes += c == ',' || c == ':' ? VALUE_BYTES : c == '[' || c == '{' ? CONTAINER_BYTES : 0;
            depth += c == '[' || c == '{';
            depth -= (c == ']' || c == '}') && depth > 0;
        }
    }
    return bytes;
}

/* The name before the value that ends before `end`; len 0 where there is none, as in an array. */
static struct str name_before(struct str body, size_t end)
{
    const char *p = body.ptr + (end < body.len ? end : body.len);
    while (p > body.ptr && strchr("+-.0123456789eE \t\r\n", p[-1]))
        p--;
    if (p == body.ptr || p[-1] != ':')
        return (struct str){0};
    for (p--; p > body.ptr && strchr(" \t\r\n", p[-1]);)
        p--;
    const char *close = p > body.ptr && p[-1] == '"' ? p - 1 : NULL;
    for (p = close; p && p > body.ptr && p[-1] != '"';)
        p--;
    return p && p > body.ptr ? (struct str){p, (size_t)(close - p)} : (struct str){0};
}

static void param_before(struct str body, size_t end, char param[static ERR_PARAM_BYTES_MAX])
{
    struct str name = name_before(body, end);
    bool fits = name.len && name.len < ERR_PARAM_BYTES_MAX;
    memcpy(param, fits ? name.ptr : "", fits ? name.len : 0);
    param[fits ? name.len : 0] = 0;
}

/* What Python's json writes for numbers that JSON does not have. */
static bool refuse_not_finite(struct str body, const json_error_t *at, struct err *err)
{
    static const char *const words[] = {"NaN", "Infinity"};
    char param[ERR_PARAM_BYTES_MAX];
    size_t end = (size_t)at->position < body.len ? (size_t)at->position : body.len;
    bool minus = end && body.ptr[end - 1] == '-'; /* the parser stops behind it */
    for (size_t i = 0; i < 2; i++) {
        struct str word = str_from(words[i]);
        size_t begin = minus ? end : end - (end < word.len ? end : word.len);
        if (!str_has_prefix((struct str){body.ptr + begin, body.len - begin}, word))
            continue;
        param_before(body, begin, param);
        return err_set_param(err, ERR_INVALID_REQUEST, param,
                             "'%s' has %s%s (line %d, column %d), which is no number of JSON: send a finite one, or leave the "
                             "field out.",
                             param, minus ? "-" : "", word.ptr, at->line, at->column);
    }
    return true;
}

/* JSON allows every number; that one cannot be held is no fault of the syntax. */
static bool refuse_body(struct str body, const json_error_t *at, struct err *err)
{
    char param[ERR_PARAM_BYTES_MAX];
    if (body.len == 0)
        return err_set(err, ERR_INVALID_REQUEST,
                       "The request has no body; send a JSON object, such as {\"model\":\"NAME\", ...}.");
    if (json_error_code(at) == json_error_invalid_syntax && !refuse_not_finite(body, at, err))
        return false;
    if (json_error_code(at) != json_error_numeric_overflow)
        return err_set(err, ERR_INVALID_REQUEST, "The body is not valid JSON: %s (line %d, column %d).", at->text, at->line,
                       at->column);
    param_before(body, (size_t)at->position, param);
    return err_set_param(err, ERR_INVALID_REQUEST, param,
                         "The number of '%s' is out of every range: %s (line %d, column %d); integers are taken from "
                         "-9223372036854775808 to 9223372036854775807.",
                         param, at->text, at->line, at->column);
}

bool api_request_parse(struct api_request *r, enum api_kind kind, struct str body, struct err *err)
{
    set_defaults(r, kind);
    json_error_t at;
    r->root = json_loadb(body.len ? body.ptr : "", body.len, JSON_ALLOW_NUL, &at);
    if (!r->root)
        return refuse_body(body, &at, err);
    bool ok = fields_parse(r->root, "request", dialects[kind].table, dialects[kind].more, r, err) && check_whole(r, err);
    if (!ok)
        api_request_release(r);
    return ok;
}

void api_request_release(struct api_request *r)
{
    free(r->bias);
    r->bias = NULL;
    json_decref(r->root);
    r->root = NULL;
}

/* Replies of the native and the OpenAI dialects; see reply.h. */
#include "api/reply.h"

#include "base/clock.h"

#include <math.h>

#define NS_PER_S 1000000000u

/* JSON has no infinities: a token of probability zero gets the value that OpenAI documents for "very unlikely". */
#define LOGPROB_FLOOR (-9999.0)

static void write_logprob(struct buf *out, float logprob)
{
    buf_printf(out, "%.7g", isfinite(logprob) ? (double)logprob : LOGPROB_FLOOR);
}

void api_write_ids(struct buf *out, const int32_t *ids, size_t n)
{
    buf_append_char(out, '[');
    for (size_t i = 0; i < n; i++)
        buf_printf(out, "%s%d", i ? "," : "", ids[i]);
    buf_append_char(out, ']');
}

/* The token as a JSON string: its text (invalid UTF-8 as U+FFFD) or "token_id:N". */
static void write_token_text(struct buf *out, const struct api_reply *r, int32_t id)
{
    if (r->tokens_as_ids) {
        buf_printf(out, "\"token_id:%d\"", id);
        return;
    }
    struct buf bytes;
    buf_init(&bytes, 1 << 20);
    tokenizer_token_bytes(r->tokenizer, id, &bytes);
    buf_append_json(out, buf_str(&bytes));
    buf_release(&bytes);
}

static void write_token_bytes(struct buf *out, const struct api_reply *r, int32_t id)
{
    struct buf bytes;
    buf_init(&bytes, 1 << 20);
    tokenizer_token_bytes(r->tokenizer, id, &bytes);
    buf_append_char(out, '[');
    for (size_t i = 0; i < bytes.len; i++)
        buf_printf(out, "%s%u", i ? "," : "", (unsigned char)bytes.data[i]);
    buf_append_char(out, ']');
    buf_release(&bytes);
}

static void write_one(struct buf *out, const struct api_reply *r, int32_t id, float logprob)
{
    buf_append_str(out, STR("{\"token\":"));
    write_token_text(out, r, id);
    buf_append_str(out, STR(",\"logprob\":"));
    write_logprob(out, logprob);
    buf_append_str(out, STR(",\"bytes\":"));
    write_token_bytes(out, r, id);
}

/* Chat's list of tokens, also the native one. */
static void write_chat_tokens(struct buf *out, const struct api_reply *r, const struct api_token *tokens, size_t n)
{
    buf_append_char(out, '[');
    for (size_t i = 0; i < n; i++) {
        if (i)
            buf_append_char(out, ',');
        write_one(out, r, tokens[i].id, tokens[i].logprob);
        buf_append_str(out, STR(",\"top_logprobs\":["));
        for (size_t k = 0; k < tokens[i].n_top; k++) {
            if (k)
                buf_append_char(out, ',');
            write_one(out, r, tokens[i].top_ids[k], tokens[i].top_logprobs[k]);
            buf_append_char(out, '}');
        }
        buf_append_str(out, STR("]}"));
    }
    buf_append_char(out, ']');
}

/* Characters of a token's text, as the client will count them. */
static size_t token_chars(const struct api_reply *r, int32_t id)
{
    struct buf bytes;
    buf_init(&bytes, 1 << 20);
    tokenizer_token_bytes(r->tokenizer, id, &bytes);
    size_t n = 0;
    for (size_t i = 0; i < bytes.len; i++)
        n += ((unsigned char)bytes.data[i] & 0xc0) != 0x80;
    buf_release(&bytes);
    return n;
}

/* Completions' four parallel arrays. */
static void write_completion_logprobs(struct buf *out, const struct api_reply *r, const struct api_choice *c)
{
    size_t start = 0, *offset = c->text_offset ? c->text_offset : &start;
    buf_append_str(out, STR("{\"tokens\":["));
    for (size_t i = 0; i < c->n_tokens; i++) {
        if (i)
            buf_append_char(out, ',');
        write_token_text(out, r, c->tokens[i].id);
    }
    buf_append_str(out, STR("],\"token_logprobs\":["));
    for (size_t i = 0; i < c->n_tokens; i++) {
        if (i)
            buf_append_char(out, ',');
        if (c->tokens[i].void_logprob)
            buf_append_str(out, STR("null"));
        else
            write_logprob(out, c->tokens[i].logprob);
    }
    buf_append_str(out, STR("],\"top_logprobs\":["));
    for (size_t i = 0; i < c->n_tokens; i++) {
        const struct api_token *t = &c->tokens[i];
        if (i)
            buf_append_char(out, ',');
        if (t->void_logprob) {
            buf_append_str(out, STR("null"));
            continue;
        }
        buf_append_char(out, '{');
        bool own = false;
        for (size_t k = 0; k < t->n_top; k++) {
            if (k)
                buf_append_char(out, ',');
            own |= t->top_ids[k] == t->id;
            write_token_text(out, r, t->top_ids[k]);
            buf_append_char(out, ':');
            write_logprob(out, t->top_logprobs[k]);
        }
        if (!own) {
            if (t->n_top)
                buf_append_char(out, ',');
            write_token_text(out, r, t->id);
            buf_append_char(out, ':');
            write_logprob(out, t->logprob);
        }
        buf_append_char(out, '}');
    }
    buf_append_str(out, STR("],\"text_offset\":["));
    for (size_t i = 0; i < c->n_tokens; i++) {
        buf_printf(out, "%s%zu", i ? "," : "", *offset);
        *offset += token_chars(r, c->tokens[i].id);
    }
    buf_append_str(out, STR("]}"));
}

/* vLLM's prompt_logprobs: null for the first, then {"<id>":{"logprob","rank"?,"decoded_token"}} a token. */
static void write_prompt_logprobs(struct buf *out, const struct api_reply *r, const struct api_token *tokens, size_t n)
{
    buf_append_char(out, '[');
    for (size_t i = 0; i < n; i++) {
        const struct api_token *t = &tokens[i];
        if (i)
            buf_append_char(out, ',');
        if (t->void_logprob) {
            buf_append_str(out, STR("null"));
            continue;
        }
        buf_printf(out, "{\"%d\":{\"logprob\":", t->id);
        write_logprob(out, t->logprob);
        buf_append_str(out, STR(",\"decoded_token\":"));
        write_token_text(out, r, t->id);
        buf_append_char(out, '}');
        for (size_t k = 0; k < t->n_top; k++) {
            if (t->top_ids[k] == t->id)
                continue;
            buf_printf(out, ",\"%d\":{\"logprob\":", t->top_ids[k]);
            write_logprob(out, t->top_logprobs[k]);
            buf_printf(out, ",\"rank\":%zu,\"decoded_token\":", k + 1);
            write_token_text(out, r, t->top_ids[k]);
            buf_append_char(out, '}');
        }
        buf_append_char(out, '}');
    }
    buf_append_char(out, ']');
}

static void write_string_field(struct buf *out, const char *name, struct str value)
{
    buf_printf(out, "\"%s\":", name);
    buf_append_json(out, value);
}

static void write_time(struct buf *out, const char *name, uint64_t wall_ns)
{
    char text[CLOCK_TEXT_BYTES];
    clock_format_rfc3339(wall_ns, text);
    buf_printf(out, "\"%s\":\"%s\"", name, text);
}

static void write_openai_usage(struct buf *out, const struct api_usage *u)
{
    buf_printf(out,
               "{\"prompt_tokens\":%zu,\"completion_tokens\":%zu,\"total_tokens\":%zu,"
               "\"prompt_tokens_details\":{\"cached_tokens\":%zu}}",
               u->prompt_tokens, u->completion_tokens, u->prompt_tokens + u->completion_tokens, u->cached_tokens);
}

static void write_native_counts(struct buf *out, const struct api_usage *u)
{
    buf_printf(out,
               "\"total_duration\":%llu,\"load_duration\":%llu,\"prompt_eval_count\":%zu,"
               "\"prompt_eval_duration\":%llu,\"eval_count\":%zu,\"eval_duration\":%llu,\"cached_tokens\":%zu",
               (unsigned long long)u->total_ns, (unsigned long long)u->load_ns, u->prompt_tokens,
               (unsigned long long)u->prompt_ns, u->completion_tokens, (unsigned long long)u->eval_ns, u->cached_tokens);
}

/* Optional parts that a choice carries in every dialect. Each begins with a comma. */
static void write_choice_extras(struct buf *out, const struct api_reply *r, const struct api_choice *c)
{
    if (c->prompt_tokens) {
        buf_append_str(out, STR(",\"prompt_logprobs\":"));
        write_prompt_logprobs(out, r, c->prompt_tokens, c->n_prompt_tokens);
    }
    if (c->ids) {
        buf_append_str(out, STR(",\"token_ids\":"));
        api_write_ids(out, c->ids, c->n_ids);
    }
    if (c->prompt_ids) {
        buf_append_str(out, STR(",\"prompt_token_ids\":"));
        api_write_ids(out, c->prompt_ids, c->n_prompt_ids);
    }
}

static void write_finish(struct buf *out, const char *finish)
{
    if (finish)
        buf_printf(out, "\"%s\"", finish);
    else
        buf_append_str(out, STR("null"));
}

/* ---- OpenAI --------------------------------------------------------------------------------------------------------- */

static void write_openai_head(struct buf *out, const struct api_reply *r, const char *object)
{
    buf_append_char(out, '{');
    write_string_field(out, "id", r->id);
    buf_printf(out, ",\"object\":\"%s\",\"created\":%llu,", object, (unsigned long long)(r->created_ns / NS_PER_S));
    write_string_field(out, "model", r->model);
    buf_append_char(out, ',');
    write_string_field(out, "system_fingerprint", r->fingerprint);
}

static void write_openai_logprobs(struct buf *out, const struct api_reply *r, const struct api_choice *c)
{
    buf_append_str(out, STR("\"logprobs\":"));
    if (!c->tokens) {
        buf_append_str(out, STR("null"));
    } else if (r->kind == API_OPENAI_COMPLETE) {
        write_completion_logprobs(out, r, c);
    } else {
        buf_append_str(out, STR("{\"content\":"));
        write_chat_tokens(out, r, c->tokens, c->n_tokens);
        buf_append_str(out, STR(",\"refusal\":null}"));
    }
}

static void openai_whole(struct buf *out, const struct api_reply *r, const struct api_choice *choices,
                         const struct api_usage *usage)
{
    bool chat = r->kind == API_OPENAI_CHAT;
    write_openai_head(out, r, chat ? "chat.completion" : "text_completion");
    buf_append_str(out, STR(",\"choices\":["));
    for (size_t i = 0; i < r->n_choices; i++) {
        const struct api_choice *c = &choices[i];
        buf_printf(out, "%s{\"index\":%zu,", i ? "," : "", c->index);
        if (chat) {
            buf_append_str(out, STR("\"message\":{\"role\":\"assistant\",\"content\":"));
            buf_append_json(out, c->text);
            buf_append_str(out, STR(",\"refusal\":null},"));
        } else {
            write_string_field(out, "text", c->text);
            buf_append_char(out, ',');
        }
        write_openai_logprobs(out, r, c);
        buf_append_str(out, STR(",\"finish_reason\":"));
        write_finish(out, c->finish);
        write_choice_extras(out, r, c);
        buf_append_char(out, '}');
    }
    buf_append_str(out, STR("],\"usage\":"));
    write_openai_usage(out, usage);
    buf_append_char(out, '}');
}

static const char *chunk_object(const struct api_reply *r)
{
    return r->kind == API_OPENAI_CHAT ? "chat.completion.chunk" : "text_completion";
}

static void write_chunk_usage(struct buf *out, const struct api_usage *usage, int usage_null)
{
    if (usage) {
        buf_append_str(out, STR(",\"usage\":"));
        write_openai_usage(out, usage);
    } else if (usage_null) {
        buf_append_str(out, STR(",\"usage\":null"));
    }
}

void api_stream_first(struct buf *out, const struct api_reply *r, size_t choice, const int32_t *prompt_ids, size_t n_prompt_ids,
                      int usage_null)
{
    if (r->kind != API_OPENAI_CHAT)
        return;
    buf_append_str(out, STR("data: "));
    write_openai_head(out, r, chunk_object(r));
    buf_printf(out,
               ",\"choices\":[{\"index\":%zu,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
               "\"finish_reason\":null",
               choice);
    if (prompt_ids) {
        buf_append_str(out, STR(",\"prompt_token_ids\":"));
        api_write_ids(out, prompt_ids, n_prompt_ids);
    }
    buf_append_str(out, STR("}]"));
    write_chunk_usage(out, NULL, usage_null);
    buf_append_str(out, STR("}\n\n"));
}

static void openai_delta(struct buf *out, const struct api_reply *r, const struct api_choice *c, const struct api_usage *usage,
                         int usage_null)
{
    write_openai_head(out, r, chunk_object(r));
    buf_printf(out, ",\"choices\":[{\"index\":%zu,", c->index);
    if (r->kind == API_OPENAI_CHAT) {
        buf_append_str(out, STR("\"delta\":{"));
        if (c->text.len || !c->finish)
            write_string_field(out, "content", c->text);
        buf_append_str(out, STR("},"));
    } else {
        write_string_field(out, "text", c->text);
        buf_append_char(out, ',');
    }
    write_openai_logprobs(out, r, c);
    buf_append_str(out, STR(",\"finish_reason\":"));
    write_finish(out, c->finish);
    write_choice_extras(out, r, c);
    buf_append_str(out, STR("}]"));
    write_chunk_usage(out, usage, usage_null);
    buf_append_char(out, '}');
}

/* ---- native --------------------------------------------------------------------------------------------------------- */

static void write_native_choice_list(struct buf *out, const struct api_reply *r, const struct api_choice *choices,
                                     bool with_text)
{
    if (r->n_choices < 2)
        return;
    buf_append_str(out, STR(",\"choices\":["));
    for (size_t i = 0; i < r->n_choices; i++) {
        const struct api_choice *c = &choices[i];
        buf_printf(out, "%s{\"index\":%zu,", i ? "," : "", c->index);
        if (with_text) {
            buf_append_str(out, STR("\"message\":{\"role\":\"assistant\",\"content\":"));
            buf_append_json(out, c->text);
            buf_append_str(out, STR("},"));
            if (c->tokens) {
                buf_append_str(out, STR("\"logprobs\":"));
                write_chat_tokens(out, r, c->tokens, c->n_tokens);
                buf_append_char(out, ',');
            }
        }
        buf_append_str(out, STR("\"done_reason\":"));
        write_finish(out, c->finish);
        if (with_text)
            write_choice_extras(out, r, c);
        buf_append_char(out, '}');
    }
    buf_append_char(out, ']');
}

static void write_native_tail(struct buf *out, const struct api_reply *r, const struct api_choice *first,
                              const struct api_usage *usage)
{
    buf_append_str(out, STR("\"done\":true,\"done_reason\":"));
    write_finish(out, first->finish);
    buf_append_char(out, ',');
    write_native_counts(out, usage);
    buf_append_char(out, ',');
    write_string_field(out, "system_fingerprint", r->fingerprint);
}

static void native_whole(struct buf *out, const struct api_reply *r, const struct api_choice *choices,
                         const struct api_usage *usage)
{
    buf_append_char(out, '{');
    write_string_field(out, "model", r->model);
    buf_append_char(out, ',');
    write_time(out, "created_at", r->created_ns);
    buf_append_str(out, STR(",\"message\":{\"role\":\"assistant\",\"content\":"));
    buf_append_json(out, choices[0].text);
    buf_append_str(out, STR("},"));
    if (choices[0].tokens) {
        buf_append_str(out, STR("\"logprobs\":"));
        write_chat_tokens(out, r, choices[0].tokens, choices[0].n_tokens);
        buf_append_char(out, ',');
    }
    write_native_tail(out, r, &choices[0], usage);
    write_choice_extras(out, r, &choices[0]);
    write_native_choice_list(out, r, choices, true);
    buf_append_char(out, '}');
}

static void native_delta(struct buf *out, const struct api_reply *r, const struct api_choice *c)
{
    buf_append_str(out, STR("{\"delta\":{\"content\":"));
    buf_append_json(out, c->text);
    buf_append_str(out, STR("},\"done\":false"));
    if (r->n_choices > 1)
        buf_printf(out, ",\"index\":%zu", c->index);
    if (c->tokens) {
        buf_append_str(out, STR(",\"logprobs\":"));
        write_chat_tokens(out, r, c->tokens, c->n_tokens);
    }
    write_choice_extras(out, r, c);
    buf_append_char(out, '}');
}

/* ---- public ----------------------------------------------------------------------------------------------------------- */

void api_reply_whole(struct buf *out, const struct api_reply *r, const struct api_choice *choices,
                     const struct api_usage *usage)
{
    if (r->kind == API_CHAT)
        native_whole(out, r, choices, usage);
    else
        openai_whole(out, r, choices, usage);
}

void api_stream_delta(struct buf *out, const struct api_reply *r, const struct api_choice *c, const struct api_usage *usage,
                      int usage_null)
{
    if (r->kind == API_CHAT && c->finish && c->text.len == 0 && c->n_tokens == 0 && c->n_ids == 0)
        return; /* native: the done event carries the reason */
    buf_append_str(out, STR("data: "));
    if (r->kind == API_CHAT)
        native_delta(out, r, c);
    else
        openai_delta(out, r, c, usage, usage_null);
    buf_append_str(out, STR("\n\n"));
}

void api_stream_last(struct buf *out, const struct api_reply *r, const struct api_choice *choices,
                     const struct api_usage *usage, int include_usage)
{
    if (r->kind == API_CHAT) {
        buf_append_str(out, STR("data: {"));
        write_string_field(out, "model", r->model);
        buf_append_char(out, ',');
        write_time(out, "created_at", r->created_ns);
        buf_append_str(out, STR(",\"delta\":{\"content\":\"\"},"));
        write_native_tail(out, r, &choices[0], usage);
        write_native_choice_list(out, r, choices, false);
        buf_append_str(out, STR("}\n\n"));
        return;
    }
    if (include_usage) {
        buf_append_str(out, STR("data: "));
        write_openai_head(out, r, chunk_object(r));
        buf_append_str(out, STR(",\"choices\":[],\"usage\":"));
        write_openai_usage(out, usage);
        buf_append_str(out, STR("}\n\n"));
    }
    buf_append_str(out, STR("data: [DONE]\n\n"));
}

static void write_error_object(struct buf *out, const struct err *err)
{
    const struct err_info *info = err_info(err->code);
    buf_append_str(out, STR("{"));
    write_string_field(out, "message", str_from(err->text));
    buf_printf(out, ",\"type\":\"%s\",\"param\":", info->type);
    if (err->param[0])
        buf_append_json(out, str_from(err->param));
    else
        buf_append_str(out, STR("null"));
    buf_printf(out, ",\"code\":\"%s\",\"doc_url\":\"docs/errors.md#%s\"}", info->code, info->code);
}

static const char *anthropic_type(int status)
{
    switch (status) {
    case 400: return "invalid_request_error";
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 404: return "not_found_error";
    case 413: return "request_too_large";
    case 429: return "rate_limit_error";
    case 503: return "overloaded_error";
    default: return "api_error";
    }
}

void api_error_body(struct buf *out, struct str path, const struct err *err)
{
    if (str_has_prefix(path, STR("/v1/messages"))) {
        buf_printf(out, "{\"type\":\"error\",\"error\":{\"type\":\"%s\",\"message\":",
                   anthropic_type(err_info(err->code)->http_status));
        buf_append_json(out, str_from(err->text));
        buf_append_str(out, STR("}}\n"));
        return;
    }
    if (str_has_prefix(path, STR("/api/"))) {
        buf_append_str(out, STR("{\"error\":"));
        buf_append_json(out, str_from(err->text));
        buf_append_str(out, STR("}\n"));
        return;
    }
    buf_append_str(out, STR("{\"error\":"));
    write_error_object(out, err);
    buf_append_str(out, STR("}\n"));
}

void api_stream_error(struct buf *out, enum api_kind kind, const struct err *err)
{
    buf_append_str(out, STR("data: {\"error\":"));
    write_error_object(out, err);
    if (kind == API_CHAT)
        buf_printf(out, ",\"done\":true,\"done_reason\":\"%s\"",
                   err->code == ERR_CANCELLED ? "cancelled"
                   : err->code == ERR_TIMEOUT ? "timeout"
                                              : "error");
    buf_append_str(out, STR("}\n\n"));
    if (kind != API_CHAT)
        buf_append_str(out, STR("data: [DONE]\n\n"));
}

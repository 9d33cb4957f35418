/* What every dialect is parsed into. Pure functions over JSON; views and json_t pointers are borrowed from `root`.
 *
 * A dialect is a table of fields (request.c). Nothing is silently ignored: a field is honoured, taken because it has no
 * meaning here, or refused by name. Numbers outside their range: 400 with the value and both ends.
 */
#ifndef INFERD_API_REQUEST_H
#define INFERD_API_REQUEST_H

#include "api/fields.h"

enum api_kind {
    API_CHAT,            /* POST /chat */
    API_OPENAI_CHAT,     /* POST /v1/chat/completions */
    API_OPENAI_COMPLETE, /* POST /v1/completions */
    API_TOKENIZE,
    API_DETOKENIZE,
    API_APPLY_TEMPLATE,
};

#define API_STOPS_MAX      16
#define API_STOP_BYTES_MAX 1024
#define API_STOP_IDS_MAX   32
#define API_BIAS_MAX       1024
#define API_CHOICES_MAX    64
#define API_PROMPTS_MAX    128
#define API_TIMEOUT_S_MAX  86400.0
#define API_MAX_TOKENS_MAX 16777216.0
#define API_HISTORY_MAX    10000.0
#define API_NOT_GIVEN      (-1000.0) /* a number field that the request did not set */

struct api_bias {
    int32_t id;
    float bias;
};

struct api_request {
    json_t *root; /* owned: api_request_release */
    enum api_kind kind;
    struct str model; /* ptr NULL: not given */

    json_t *messages, *tools, *documents, *template_kwargs;
    struct str chat_template;
    int add_generation_prompt;
    int add_special_tokens;   /* -1: the route's default */
    int split_special_tokens; /* -1: the server's; 1: those in messages (in a prompt) are text */
    json_t *prompt;           /* completions: string, [string], [int] or [[int]]; tokenize: string */
    json_t *tokens;           /* detokenize */
    int skip_special_tokens, return_token_strs;
    int echo;

    int stream, include_usage, continuous_usage;
    double timeout_s;    /* API_NOT_GIVEN: the server's default */
    double keep_alive_s; /* API_NOT_GIVEN: the server's; < 0: for ever */
    int64_t n;
    int64_t max_tokens;                                                                        /* -1: not given */
    double temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty; /* or API_NOT_GIVEN */
    int64_t top_k;                                                                             /* INT64_MIN: not given */
    int64_t seed;
    int seed_given;
    struct str stops[API_STOPS_MAX];
    size_t n_stops;
    int32_t stop_ids[API_STOP_IDS_MAX];
    size_t n_stop_ids;
    struct api_bias *bias; /* owned */
    size_t n_bias;
    int ignore_eos;
    int logprobs;            /* -1: none; 0..20 best */
    int want_logprobs;       /* chat's boolean */
    int64_t top_logprobs;    /* -1: not given */
    int64_t prompt_logprobs; /* -1: none */
    int return_token_ids, tokens_as_ids;
    struct str session_id; /* ptr NULL: none */
    int64_t max_history;   /* -1: all */
};

/* About what the JSON values of `body` and their text take when parsed, told without parsing: a few bytes of JSON can
 * stand for a hundred of memory. An upper bound. */
size_t api_request_bytes(struct str body);
/* Parses the body of a request of this kind. On failure nothing is held. */
bool api_request_parse(struct api_request *r, enum api_kind kind, struct str body, struct err *err);
void api_request_release(struct api_request *r);

/* Messages checked and brought into the shape that templates expect: a new array (caller decrefs) of objects with
 * role and content (string; OpenAI's list of {"type":"text"} parts is joined), tool_calls with arguments as objects, and
 * the reasoning of the turn, if any, as reasoning_content, reasoning and thinking.
 * Images and audio are refused by name. */
json_t *api_messages_normalize(const json_t *messages, struct err *err);

#endif

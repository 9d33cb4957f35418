/* Replies of the native and the OpenAI dialects, as bytes. Pure functions that append to a buffer; the buffer's
 * `failed` tells whether memory ran out. Source of the shapes: OpenAI's API reference, Ollama's and vLLM's API. */
#ifndef INFERD_API_REPLY_H
#define INFERD_API_REPLY_H

#include "api/request.h"
#include "base/buf.h"
#include "text/tokenizer.h"

/* One token with its log-probabilities; `void_logprob` = 1: nothing came before it (the first of a prompt). */
struct api_token {
    int32_t id;
    float logprob;
    int void_logprob;
    size_t n_top;
    const int32_t *top_ids;
    const float *top_logprobs;
};

struct api_choice {
    size_t index;
    struct str text;
    const char *finish;             /* "stop", "length", ...; NULL while it runs */
    const struct api_token *tokens; /* with log-probabilities: NULL when not asked for */
    size_t n_tokens;
    const struct api_token *prompt_tokens; /* prompt_logprobs; NULL when not asked for */
    size_t n_prompt_tokens;
    const int32_t *ids; /* return_token_ids: NULL when not asked for */
    size_t n_ids;
    const int32_t *prompt_ids;
    size_t n_prompt_ids;
    size_t *text_offset; /* completions' logprobs: characters before these tokens, moved on; may be NULL */
};

struct api_usage {
    size_t prompt_tokens, cached_tokens, completion_tokens;
    uint64_t total_ns, load_ns, prompt_ns, eval_ns;
};

/* What all parts of one answer share. Borrowed. */
struct api_reply {
    enum api_kind kind;
    struct str id; /* "chatcmpl-..." */
    struct str model;
    struct str fingerprint;
    uint64_t created_ns; /* wall */
    const struct tokenizer *tokenizer;
    int tokens_as_ids; /* return_tokens_as_token_ids */
    size_t n_choices;
};

/* The whole answer. */
void api_reply_whole(struct buf *out, const struct api_reply *r, const struct api_choice *choices,
                     const struct api_usage *usage);

/* The parts of a stream, each a complete "data: ...\n\n" event. `usage` may be NULL (OpenAI: included when the request
 * asked for it on every chunk). */
void api_stream_first(struct buf *out, const struct api_reply *r, size_t choice, const int32_t *prompt_ids, size_t n_prompt_ids,
                      int usage_null); /* OpenAI chat's role chunk */
void api_stream_delta(struct buf *out, const struct api_reply *r, const struct api_choice *c, const struct api_usage *usage,
                      int usage_null);
/* Native: the done event; finish reasons of all choices. OpenAI: the usage chunk if usage != NULL, then [DONE]. */
void api_stream_last(struct buf *out, const struct api_reply *r, const struct api_choice *choices,
                     const struct api_usage *usage, int include_usage);
/* An error after the first byte was sent. */
void api_stream_error(struct buf *out, enum api_kind kind, const struct err *err);

/* {"error":{"message","type","param","code","doc_url"}}; below /api/ and at /v1/messages as clients of Ollama and Anthropic read
 * errors: {"error":text}, {"type":"error","error":{"type","message"}}. */
void api_error_body(struct buf *out, struct str path, const struct err *err);

/* [1,2,3] */
void api_write_ids(struct buf *out, const int32_t *ids, size_t n);

#endif

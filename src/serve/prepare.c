/* From a body to token ids and gens, on a worker thread. */
#include "serve/call.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/rand.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define PROMPT_TOKENS_MAX  ((size_t)16 << 20)
#define ENCODE_BYTES       28u                 /* that tokenizing takes for a byte of text, at worst: one long word */
#define CHOICE_BYTES       ((uint64_t)8 << 10) /* detokenizer, stop strings, tables of one choice */
#define LOGPROB_TEXT_BYTES ((uint64_t)384)     /* of one log-probability in a whole reply: its text, while that grows */
#define PROMPT_BYTES_MAX   ((size_t)256 << 20)
/* What Ollama samples with when neither the request nor the model says; the OpenAI routes use its 1.0. */
#define NATIVE_TEMPERATURE 0.8
#define NATIVE_TOP_P       0.9
#define NATIVE_TOP_K       40

/* No token stands for more bytes than the longest one has, so a long text has many tokens, whichever they are. */
static bool check_length(const struct call *c, struct str text, struct err *err)
{
    size_t longest = c->model->text.token_bytes_max, context = c->model->context_max;
    if (text.len / longest <= context)
        return true;
    return err_set_param(err, ERR_CONTEXT_LENGTH, c->kind == API_OPENAI_COMPLETE ? "prompt" : "messages",
                         "The prompt has at least %zu tokens (it has %zu bytes, and no token has more than %zu) and the "
                         "context of '%s' is %zu. Shorten the prompt.",
                         text.len / longest, text.len, longest, c->model->id, context);
}

bool prepare_encode(struct call *c, struct str text, enum text_source source, const struct text_spans *own,
                    struct token_list *out, struct err *err)
{
    uint64_t bytes = ENCODE_BYTES * (uint64_t)text.len;
    if ((source != TEXT_RAW_UNBOUNDED && !check_length(c, text, err)) || !call_hold(c, bytes, "Tokenizing the prompt", err))
        return false;
    if (c->server->config->log_prompts)
        log_event(LOG_INFO, "request_prompt", "id=%s text=\"%.*s\"", c->id, (int)(text.len < INT_MAX ? text.len : INT_MAX),
                  text.ptr);
    int add = c->parsed.add_special_tokens; /* -1: a template's text has what it needs, other text has not */
    bool with = add >= 0 ? add : source != TEXT_RENDERED || c->model->text.template_is_default;
    bool parse = source == TEXT_RENDERED || c->parsed.split_special_tokens != 1;
    unsigned flags = (with ? TOKENIZER_ADD_SPECIAL : 0) | (parse ? TOKENIZER_PARSE_SPECIAL : 0);
    bool ok = own ? tokenizer_encode_own(c->model->text.tokenizer, text, flags, own, out, err)
                  : tokenizer_encode(c->model->text.tokenizer, text, flags, out, err);
    call_unhold(c, bytes);
    return ok;
}

bool prepare_chat_prompt(struct call *c, struct buf *text, struct token_list *ids, struct err *err)
{
    const struct api_request *r = &c->parsed;
    json_t *messages = api_messages_normalize(r->messages, err);
    if (!messages)
        return false;
    struct template *own = NULL;
    if (r->chat_template.ptr && !(own = template_compile(r->chat_template, err))) {
        json_decref(messages);
        return false;
    }
    struct text_chat chat = {.messages = messages,
                             .tools = r->tools,
                             .documents = r->documents,
                             .kwargs = r->template_kwargs,
                             .add_generation_prompt = r->add_generation_prompt,
                             .template = own};
    bool split = r->split_special_tokens >= 0 ? r->split_special_tokens : c->server->config->split_special_tokens;
    struct text_spans spans = {0};
    bool ok =
        (split ? text_render_own(&c->model->text, &chat, text, &spans, err) : text_render(&c->model->text, &chat, text, err)) &&
        prepare_encode(c, buf_str(text), TEXT_RENDERED, split ? &spans : NULL, ids, err);
    text_spans_release(&spans);
    template_free(own);
    json_decref(messages);
    return ok;
}

static bool check_ids(const struct call *c, const struct token_list *ids, struct err *err)
{
    size_t n_vocab = c->model->plan.info.n_vocab;
    for (size_t i = 0; i < ids->len; i++)
        if (ids->ids[i] < 0 || (size_t)ids->ids[i] >= n_vocab)
            return err_set_param(err, ERR_INVALID_REQUEST, "prompt",
                                 "Token %d at position %zu is outside of the model's vocabulary of %zu.", ids->ids[i], i,
                                 n_vocab);
    return ids->len > 0 ||
           err_set_param(err, ERR_INVALID_REQUEST, "prompt", "The prompt is empty: it has no token to go on from.");
}

static bool refuse_prompt(const json_t *part, struct err *err)
{
    char text[FIELD_TEXT_BYTES];
    return err_set_param(err, ERR_INVALID_REQUEST, "prompt",
                         "'prompt' must be a string, a list of strings, a list of token ids or a list of those; got %s.",
                         field_text(part, text));
}

/* One of completions' prompts: a string or a list of ids. */
static bool encode_prompt(struct call *c, const json_t *prompt, struct token_list *out, struct err *err)
{
    if (json_is_string(prompt))
        return prepare_encode(c, (struct str){json_string_value(prompt), json_string_length(prompt)}, TEXT_RAW, NULL, out, err);
    if (!json_is_array(prompt))
        return refuse_prompt(prompt, err);
    size_t i;
    json_t *id;
    json_array_foreach((json_t *)prompt, i, id)
    {
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX)
            return refuse_prompt(id, err);
        if (!token_list_push(out, (int32_t)json_integer_value(id)))
            return err_set(err, ERR_MEMORY, "Out of memory for a prompt of %zu tokens.", json_array_size(prompt));
    }
    return true;
}

static bool prepare_prompts(struct call *c, struct err *err)
{
    const json_t *prompt = c->parsed.prompt;
    bool chat = c->kind != API_OPENAI_COMPLETE;
    bool several = !chat && json_is_array(prompt) && !json_is_integer(json_array_get(prompt, 0));
    size_t n = several ? json_array_size(prompt) : 1;
    if (n == 0 || n > API_PROMPTS_MAX || n * (size_t)c->parsed.n > CALL_CHOICES_MAX)
        return err_set_param(err, ERR_INVALID_REQUEST, "prompt",
                             "%zu prompts with n = %lld were asked for; between 1 and %d prompts and at most %d choices are "
                             "possible.",
                             n, (long long)c->parsed.n, API_PROMPTS_MAX, CALL_CHOICES_MAX);
    c->prompts = calloc(n, sizeof *c->prompts);
    if (!c->prompts)
        return err_set(err, ERR_MEMORY, "Out of memory.");
    for (size_t i = 0; i < n; i++)
        token_list_init(&c->prompts[i], PROMPT_TOKENS_MAX);
    c->n_prompts = n;
    if (chat) {
        struct buf text;
        buf_init(&text, PROMPT_BYTES_MAX);
        bool ok = prepare_chat_prompt(c, &text, &c->prompts[0], err);
        buf_release(&text);
        return ok && check_ids(c, &c->prompts[0], err);
    }
    for (size_t i = 0; i < n; i++)
        if (!encode_prompt(c, several ? json_array_get(prompt, i) : prompt, &c->prompts[i], err) ||
            !check_ids(c, &c->prompts[i], err))
            return several ? err_prefix(err, "prompt[%zu]", i) : false;
    return true;
}

static double choose(double given, double model, double otherwise)
{
    return given != API_NOT_GIVEN ? given : isfinite(model) ? model : otherwise;
}

static void fill_params(struct call *c, struct gen_params *p)
{
    const struct api_request *r = &c->parsed;
    const struct text_defaults *d = &c->model->text.defaults;
    bool native = c->kind == API_CHAT;
    bool quiet = !isfinite(d->temperature) && !isfinite(d->top_p) && d->top_k == INT64_MIN; /* the model says nothing */
    p->temperature = choose(r->temperature, d->temperature, native ? NATIVE_TEMPERATURE : 1.0);
    p->top_p = choose(r->top_p, d->top_p, native && quiet ? NATIVE_TOP_P : 1.0);
    p->min_p = choose(r->min_p, d->min_p, 0);
    p->top_k = r->top_k != INT64_MIN ? r->top_k : d->top_k != INT64_MIN ? d->top_k : native && quiet ? NATIVE_TOP_K : 0;
    p->repetition_penalty = choose(r->repetition_penalty, d->repetition_penalty, 1);
    p->presence_penalty = choose(r->presence_penalty, NAN, 0);
    p->frequency_penalty = choose(r->frequency_penalty, NAN, 0);
    p->seed = r->seed_given ? (uint64_t)r->seed : rand_system_u64();
    p->top_logprobs = r->logprobs;
    p->prompt_logprobs = (int)r->prompt_logprobs;
    if (r->echo && r->logprobs >= 0)
        p->prompt_logprobs = r->logprobs;
}

/* max_tokens against the context, for one prompt. */
static bool fit_context(const struct call *c, size_t n_prompt, size_t *max_tokens, struct err *err)
{
    size_t context = c->model->context_max;
    long long asked = c->parsed.max_tokens;
    size_t room = n_prompt < context ? context - n_prompt : 0;
    const char *shorten =
        c->session ? "Send 'max_history' to keep less of the session, or DELETE /sessions/{id}" : "Shorten the prompt";
    if (room == 0 && asked != 0)
        return err_set_param(err, ERR_CONTEXT_LENGTH, c->kind == API_OPENAI_COMPLETE ? "prompt" : "messages",
                             "The prompt has %zu tokens and the context of '%s' is %zu: nothing can be generated. %s.",
                             n_prompt, c->model->id, context, shorten);
    if (asked > 0 && (size_t)asked > room)
        return err_set_param(err, ERR_CONTEXT_LENGTH, "max_tokens",
                             "The prompt has %zu tokens and max_tokens is %lld, together %zu, but the context of '%s' is %zu. "
                             "%s, or ask for at most %zu tokens.",
                             n_prompt, asked, n_prompt + (size_t)asked, c->model->id, context, shorten, room);
    *max_tokens = asked >= 0 ? (size_t)asked : c->kind == API_OPENAI_COMPLETE ? (room < 16 ? room : 16) : room;
    return true;
}

/* What one choice will take beside the model's pages; a token's text is nothing beside its keys and values. */
static uint64_t choice_bytes(const struct call *c, size_t n_prompt, const struct gen_params *p)
{
    bool whole = !c->parsed.stream;
    uint64_t bytes = CHOICE_BYTES + 2 * sizeof(int32_t) * (uint64_t)n_prompt;
    const struct {
        int top;
        size_t rows;
    } parts[] = {{p->top_logprobs, p->max_tokens}, {p->prompt_logprobs, n_prompt}};
    for (size_t i = 0; i < 2; i++)
        if (parts[i].top >= 0)
            bytes +=
                parts[i].rows * (sizeof(struct gen_logprob) +
                                 (whole ? sizeof(struct api_token) + LOGPROB_TEXT_BYTES * (1 + (uint64_t)parts[i].top) : 0));
    return bytes;
}

static bool make_choice(struct call *c, struct choice *h, const struct token_list *prompt, struct gen_params *p,
                        struct err *err)
{
    const struct api_request *r = &c->parsed;
    h->prompt = prompt->ids;
    h->n_prompt = prompt->len;
    buf_init(&h->text, CALL_BODY_BYTES_MAX);
    stops_init(&h->stops, r->stops, r->n_stops);
    h->detok = detok_new(c->model->text.tokenizer, true);
    if (!h->detok)
        return err_set(err, ERR_MEMORY, "Out of memory.");
    if (!fit_context(c, prompt->len, &p->max_tokens, err))
        return false;
    c->max_tokens = p->max_tokens;
    if (!call_hold(c, choice_bytes(c, prompt->len, p), "The answer", err))
        return false;
    if (r->echo && !tokenizer_decode(c->model->text.tokenizer, prompt->ids, prompt->len, false, &h->text, err))
        return false;
    h->gen = gen_new(prompt->ids, prompt->len, p, err);
    return h->gen != NULL;
}

bool prepare_generate(struct call *c, struct err *err)
{
    const struct api_request *r = &c->parsed;
    if (!prepare_prompts(c, err))
        return false;
    struct gen_params p = {0};
    fill_params(c, &p);
    struct gen_bias bias[API_BIAS_MAX];
    for (size_t i = 0; i < r->n_bias; i++) {
        if ((size_t)r->bias[i].id >= c->model->plan.info.n_vocab)
            return err_set_param(err, ERR_INVALID_REQUEST, "logit_bias",
                                 "'logit_bias' names token %d; the vocabulary of '%s' has the ids 0 to %zu.", r->bias[i].id,
                                 c->model->id, c->model->plan.info.n_vocab - 1);
        bias[i] = (struct gen_bias){r->bias[i].id, r->bias[i].bias};
    }
    p.bias = bias;
    p.n_bias = r->n_bias;
    int32_t stop_ids[GEN_STOP_IDS_MAX];
    for (size_t i = 0; i < r->n_stop_ids; i++)
        stop_ids[p.n_stop_ids++] = r->stop_ids[i];
    for (size_t i = 0; i < c->model->text.n_stop_ids && !r->ignore_eos && p.n_stop_ids < GEN_STOP_IDS_MAX; i++)
        stop_ids[p.n_stop_ids++] = c->model->text.stop_ids[i];
    p.stop_ids = stop_ids;
    p.deadline_ns = c->deadline_ns;
    size_t n = c->n_prompts * (size_t)r->n;
    c->choices = calloc(n, sizeof *c->choices);
    if (!c->choices)
        return err_set(err, ERR_MEMORY, "Out of memory.");
    c->wanted_logprobs = r->logprobs >= 0;
    c->n_choices = n;
    for (size_t i = 0; i < n; i++) {
        p.choice = (uint32_t)(i % (size_t)r->n);
        if (!make_choice(c, &c->choices[i], &c->prompts[i / (size_t)r->n], &p, err))
            return false;
    }
    snprintf(c->reply_id, sizeof c->reply_id, "%s-%s", c->kind == API_OPENAI_COMPLETE ? "cmpl" : "chatcmpl", c->id);
    return true;
}

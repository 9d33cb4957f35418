/* From tokens to bytes on the wire, on the http thread. */
#include "serve/call.h"

#include "base/clock.h"
#include "base/log.h"
#include "serve/sessions.h"

#include <stdlib.h>

#define RETRY_AFTER_MAX_S 60
#define MEAN_WEIGHT       0.1 /* of the newest call in the mean duration */
#define ROUND_TOKENS \
    64 /* that a stream takes before it looks whether its client keeps up; one with k others in its
                               * log-probabilities counts as k + 1 */

size_t serve_retry_after_s(const struct server *s)
{
    double waves = 1 + (double)s->n_active / (double)(s->config->streams_max ? s->config->streams_max : 1);
    double seconds = s->mean_seconds * waves;
    return seconds < 1 ? 1 : seconds > RETRY_AFTER_MAX_S ? RETRY_AFTER_MAX_S : (size_t)(seconds + 0.5);
}

static void make_reply(const struct call *c, struct api_reply *r)
{
    *r = (struct api_reply){.kind = c->kind,
                            .id = str_from(c->reply_id),
                            .model = c->model_name,
                            .fingerprint = str_from(c->model->fingerprint),
                            .created_ns = c->created_ns,
                            .tokenizer = c->model->text.tokenizer,
                            .tokens_as_ids = c->parsed.tokens_as_ids,
                            .n_choices = c->n_choices};
}

static void sum_usage(const struct call *c, struct api_usage *u)
{
    *u = (struct api_usage){.load_ns = c->load_waited_ns};
    uint64_t first = 0, last = 0, started = 0;
    for (size_t i = 0; i < c->n_choices; i++) {
        const struct choice *h = &c->choices[i];
        struct gen_stats s = gen_stats(h->gen);
        if (c->parsed.n < 1 || i % (size_t)c->parsed.n == 0) {
            u->prompt_tokens += s.n_prompt;
            u->cached_tokens += s.n_cached;
        }
        u->completion_tokens += h->n_counted;
        started = started && started < s.started_ns ? started : s.started_ns;
        first = first && first < s.first_token_ns ? first : s.first_token_ns;
        last = last > s.finished_ns ? last : s.finished_ns;
    }
    u->total_ns = clock_mono_ns() - c->received_ns;
    u->prompt_ns = first > started && started ? first - started : 0;
    u->eval_ns = last > first && first ? last - first : 0;
}

void stream_submit(struct call *c)
{
    struct err err = {0};
    size_t prompt = 0;
    c->server->n_active++;
    c->counted = c->active = true;
    for (size_t i = 0; i < c->n_choices; i++) {
        prompt += c->choices[i].n_prompt;
        if (!engine_submit(c->model->engine, c->choices[i].gen, &err)) {
            call_fail(c, &err);
            for (size_t k = 0; k < i; k++)
                engine_cancel(c->model->engine, c->choices[k].gen);
            return;
        }
        c->choices[i].submitted = true;
    }
    log_event(LOG_INFO, "request_admitted",
              "id=%s model=\"%s\" prompt_tokens=%zu max_tokens=%zu choices=%zu stream=%d load_ms=%.1f", c->id, c->model->id,
              prompt, c->max_tokens, c->n_choices, c->parsed.stream, (double)c->load_waited_ns / 1e6);
}

static const char *finish_name(enum gen_finish f)
{
    return f == GEN_STOP        ? "stop"
           : f == GEN_LENGTH    ? "length"
           : f == GEN_CANCELLED ? "cancelled"
           : f == GEN_TIMEOUT   ? "timeout"
                                : "error";
}

/* Moves up to `most` new tokens of one choice into text. True when something changed. */
static bool take_tokens(struct call *c, struct choice *h, size_t most)
{
    struct gen_view v = gen_poll(h->gen);
    bool changed = false;
    struct buf piece;
    buf_init(&piece, CALL_BODY_BYTES_MAX);
    for (; h->n_seen < v.n && !h->finish && most; h->n_seen++, most--) {
        bool last = v.finish == GEN_STOP && h->n_seen + 1 == v.n;
        h->n_counted = h->n_seen + 1;
        changed = true;
        if (last)
            continue; /* the stop token is counted and never shown */
        buf_clear(&piece);
        c->lost |= !detok_push(h->detok, v.ids[h->n_seen], &piece);
        if (stops_push(&h->stops, buf_str(&piece), &h->text)) {
            h->finish = "stop";
            h->gen_finish = GEN_STOP;
            engine_cancel(c->model->engine, h->gen);
        }
    }
    if (v.finish != GEN_RUNNING && h->n_seen == v.n && !h->finish) {
        buf_clear(&piece);
        c->lost |= !detok_finish(h->detok, &piece);
        bool stopped = stops_push(&h->stops, buf_str(&piece), &h->text);
        if (!stopped)
            stops_finish(&h->stops, &h->text);
        h->gen_finish = stopped ? GEN_STOP : v.finish;
        h->finish = stopped ? "stop" : finish_name(v.finish);
    }
    c->lost |= piece.failed || h->text.failed || h->stops.held.failed;
    buf_release(&piece);
    if (h->finish && !h->done) {
        h->done = true;
        c->n_done++;
        changed = true;
    }
    return changed;
}

static struct api_token token_of(int32_t id, const struct gen_logprob *l)
{
    return (struct api_token){.id = id,
                              .logprob = l->logprob,
                              .n_top = (size_t)(l->n_top > 0 ? l->n_top : 0),
                              .top_ids = l->top_ids,
                              .top_logprobs = l->top_logprobs};
}

/* The prompt's tokens with log-probabilities; the first has none. Caller frees. */
static struct api_token *prompt_tokens(struct call *c, const struct choice *h)
{
    const struct gen_logprob *l = gen_prompt_logprobs(h->gen);
    struct api_token *t = l ? calloc(h->n_prompt + 1, sizeof *t) : NULL;
    c->lost |= l && !t;
    for (size_t i = 0; t && i < h->n_prompt; i++) {
        t[i] = token_of(h->prompt[i], &l[i]);
        t[i].void_logprob = i == 0;
    }
    return t;
}

/* What of one choice was not sent yet, as the reply writer wants it. Caller frees tokens. */
static void fill_choice(struct call *c, struct choice *h, size_t index, struct api_choice *out, struct api_token **tokens,
                        struct api_token **prompt)
{
    struct gen_view v = gen_poll(h->gen);
    size_t end = h->n_counted;
    bool ended_by_id = h->gen_finish == GEN_STOP && !h->stops.matched && end > 0;
    size_t shown = ended_by_id ? end - 1 : end;
    bool echo = c->parsed.echo && h->n_sent == 0;
    *out = (struct api_choice){.index = index, .text = buf_str(&h->text), .finish = h->finish, .text_offset = &h->text_offset};
    *tokens = *prompt = NULL;
    if (c->wanted_logprobs && v.logprobs) {
        size_t lead = echo ? h->n_prompt : 0, n = shown > h->n_sent ? shown - h->n_sent : 0;
        struct api_token *t = calloc(lead + n + 1, sizeof *t), *p = lead ? prompt_tokens(c, h) : NULL;
        c->lost |= !t;
        if (t && p)
            memcpy(t, p, lead * sizeof *t);
        for (size_t i = 0; t && i < n; i++)
            t[(p ? lead : 0) + i] = token_of(v.ids[h->n_sent + i], &v.logprobs[h->n_sent + i]);
        free(p);
        out->tokens = *tokens = t;
        out->n_tokens = (p ? lead : 0) + n;
    }
    if (c->parsed.prompt_logprobs >= 0) {
        out->prompt_tokens = *prompt = prompt_tokens(c, h);
        out->n_prompt_tokens = h->n_prompt;
    }
    if (c->parsed.return_token_ids) {
        out->ids = v.ids + h->n_sent;
        out->n_ids = end - h->n_sent;
        out->prompt_ids = c->streaming ? NULL : h->prompt;
        out->n_prompt_ids = h->n_prompt;
    }
    h->n_sent = end;
}

static void lose(struct call *c)
{
    call_abort(c, ERR_MEMORY,
               "There is not enough memory to write the answer of this request; it was stopped. Try again later, "
               "or ask for less (fewer choices, tokens or log-probabilities).");
}

static const struct err *first_error(const struct call *c)
{
    for (size_t i = 0; i < c->n_choices; i++)
        if (c->choices[i].gen_finish == GEN_ERROR)
            return gen_error(c->choices[i].gen);
    return NULL;
}

static void on_drain(void *user)
{
    stream_advance(user);
}

static void begin_stream(struct call *c, const struct api_reply *r)
{
    c->streaming = c->answered = true;
    c->status = 200;
    http_stream_begin(c->request, 200, "text/event-stream");
    http_stream_on_drain(c->request, on_drain);
    for (size_t i = 0; i < c->n_choices; i++)
        api_stream_first(&c->out, r, i, c->parsed.return_token_ids ? c->choices[i].prompt : NULL, c->choices[i].n_prompt,
                         c->parsed.include_usage);
}

static void write_deltas(struct call *c, const struct api_reply *r)
{
    for (size_t i = 0; i < c->n_choices; i++) {
        struct choice *h = &c->choices[i];
        bool end = h->finish && !h->started;
        if (h->text.len == 0 && !end)
            continue;
        h->started = h->started || end; /* the finish reason goes out once */
        struct api_choice part;
        struct api_token *tokens, *prompt;
        fill_choice(c, h, i, &part, &tokens, &prompt);
        struct api_usage usage;
        if (c->parsed.continuous_usage)
            sum_usage(c, &usage);
        api_stream_delta(&c->out, r, &part, c->parsed.continuous_usage ? &usage : NULL, c->parsed.include_usage);
        free(tokens);
        free(prompt);
        sessions_hear(c, buf_str(&h->text));
        buf_clear(&h->text);
    }
}

static void write_whole(struct call *c, const struct api_reply *r, const struct api_usage *usage)
{
    struct api_choice *list = calloc(c->n_choices, sizeof *list);
    struct api_token **held = calloc(c->n_choices * 2, sizeof *held);
    for (size_t i = 0; list && held && i < c->n_choices; i++)
        fill_choice(c, &c->choices[i], i, &list[i], &held[i * 2], &held[i * 2 + 1]);
    if (list && held)
        api_reply_whole(&c->out, r, list, usage);
    for (size_t i = 0; held && i < c->n_choices * 2; i++)
        free(held[i]);
    c->lost |= !list || !held || c->out.failed;
    free(list);
    free(held);
    if (c->lost)
        lose(c);
    else
        call_reply(c, 200, buf_str(&c->out));
}

void stream_count(struct call *c)
{
    size_t longest = 0;
    c->measured = true;
    for (size_t i = 0; i < c->n_choices; i++) {
        struct choice *h = &c->choices[i];
        if (!h->submitted)
            continue;
        struct served_outcome o = {gen_stats(h->gen), h->finish ? h->gen_finish : GEN_CANCELLED};
        if (!o.stats.finished_ns) /* ended by a stop string: the engine learns of it */
            o.stats.finished_ns = clock_mono_ns();
        served_metrics_outcome(c->model->metrics, &o);
        if (!c->n_gaps && o.stats.n_output > 1 && o.stats.first_token_ns) /* delivered at once: the mean stands for them */
            served_metrics_gap(c->model->metrics,
                               (double)(o.stats.finished_ns - o.stats.first_token_ns) / 1e9 / (double)(o.stats.n_output - 1));
        longest = o.stats.n_output > longest ? o.stats.n_output : longest;
    }
    served_metrics_request(c->model->metrics, (size_t)c->parsed.n, c->max_tokens, longest);
}

/* For Retry-After. */
static void learn_duration(const struct call *c)
{
    struct server *s = c->server;
    double seconds = (double)(clock_mono_ns() - c->received_ns) / 1e9;
    s->mean_seconds += (seconds - s->mean_seconds) * (s->mean_seconds > 0 ? MEAN_WEIGHT : 1);
}

static void finish(struct call *c, const struct api_reply *r)
{
    struct api_usage usage;
    sum_usage(c, &usage);
    c->why = c->why ? c->why : c->choices[0].finish;
    if (!c->streaming) {
        write_whole(c, r, &usage);
        return;
    }
    struct api_choice *list = calloc(c->n_choices, sizeof *list);
    for (size_t i = 0; list && i < c->n_choices; i++)
        list[i] = (struct api_choice){.index = i, .finish = c->choices[i].finish};
    if (list)
        api_stream_last(&c->out, r, list, &usage, c->parsed.include_usage);
    c->lost |= !list;
    free(list);
}

void stream_cancelled(struct call *c)
{
    struct api_reply r;
    make_reply(c, &r);
    for (size_t i = 0; i < c->n_choices; i++)
        if (!c->choices[i].finish)
            c->choices[i].finish = "cancelled";
    finish(c, &r);
}

static void time_out(struct call *c)
{
    call_abort(c, ERR_TIMEOUT,
               "The request was not done within its timeout of %g seconds and was stopped. Give a longer "
               "'timeout', or ask for fewer tokens.",
               (double)(c->deadline_ns - c->received_ns) / 1e9);
}

static bool any_token(const struct call *c)
{
    for (size_t i = 0; i < c->n_choices; i++)
        if (gen_poll(c->choices[i].gen).n > 0)
            return true;
    return false;
}

/* True when something changed. */
static bool take_round(struct call *c)
{
    bool changed = false;
    size_t most = ROUND_TOKENS / (c->n_choices * (size_t)(c->wanted_logprobs ? c->parsed.logprobs + 1 : 1));
    most = !c->parsed.stream ? SIZE_MAX : most ? most : 1;
    for (size_t i = 0; i < c->n_choices; i++)
        if (c->choices[i].submitted && !c->choices[i].done)
            changed |= take_tokens(c, &c->choices[i], most);
    return changed;
}

/* All choices are done, and one of them by an error or a timeout: tells so. */
static bool ended_badly(struct call *c)
{
    const struct err *error = first_error(c);
    if (error) {
        call_abort(c, error->code, "%s", error->text);
        return true;
    }
    for (size_t i = 0; i < c->n_choices; i++)
        if (c->choices[i].gen_finish == GEN_TIMEOUT) {
            time_out(c);
            return true;
        }
    return false;
}

static void count_delivery(struct call *c)
{
    uint64_t now = clock_mono_ns();
    if (c->streaming) {
        served_metrics_gap(c->model->metrics, (double)(now - c->last_delivery_ns) / 1e9);
        c->n_gaps++;
    }
    c->last_delivery_ns = now;
}

/* Writes what a round brought, and the end when `all` are done. False: the call has ended otherwise. */
static bool write_round(struct call *c, bool all)
{
    struct api_reply r;
    make_reply(c, &r);
    buf_clear(&c->out);
    bool any = all;
    for (size_t i = 0; i < c->n_choices; i++)
        any |= c->choices[i].text.len > 0;
    if (c->parsed.stream && any && !c->streaming)
        begin_stream(c, &r);
    if (c->streaming)
        write_deltas(c, &r);
    if (all) {
        finish(c, &r);
        stream_count(c);
        learn_duration(c);
    }
    if (!c->streaming || !c->request)
        return c->request != NULL;
    if (c->lost || c->out.failed) {
        lose(c);
        return false;
    }
    c->reply_bytes += c->out.len;
    http_stream_write(c->request, buf_str(&c->out));
    if (all && c->request)
        http_stream_end(c->request);
    return c->request != NULL;
}

/* Text is made as fast as the client takes it: what it has not read stays tokens, which are small and were paid for when it
 * was admitted. */
void stream_advance(struct call *c)
{
    if (!c->generates || c->in_worker || !c->n_choices || !c->choices[0].submitted)
        return;
    bool over = atomic_load(&c->closed);
    bool changed = c->resumed;
    c->resumed = false;
    if (!over && !c->first_token_logged && any_token(c)) {
        c->first_token_logged = true;
        log_event(LOG_INFO, "request_first_token", "id=%s ms=%.1f", c->id, (double)(clock_mono_ns() - c->received_ns) / 1e6);
    }
    if (over || !c->request) {
        call_release_if_done(c);
        return;
    }
    if (c->failed || (c->answered && !c->streaming))
        return;
    bool all = false, counted = false;
    while (!all && (!c->streaming || http_stream_unsent(c->request) <= c->server->stream_ahead_bytes)) {
        changed |= take_round(c);
        all = c->n_done == c->n_choices;
        if (!changed || (all && ended_badly(c)))
            return;
        if (all && c->session && !sessions_saved(c))
            return; /* stream_resume when it is */
        if (c->parsed.stream && !counted)
            count_delivery(c);
        counted = true;
        if (!write_round(c, all) || !c->parsed.stream)
            return;
        changed = false;
    }
}

void stream_resume(struct call *c)
{
    c->resumed = true;
    stream_advance(c);
}

void stream_model_progress(void *arg)
{
    struct progress *p = arg;
    struct served *m = p->model;
    struct server *s = p->server;
    free(p);
    atomic_store(&m->progress_posted, 0);
    for (struct call *c = s->calls, *next; c; c = next) {
        next = c->next;
        if (!c->in_worker && c->model == m)
            stream_advance(c);
    }
}

/* Nothing is computed for it any more: a client that takes its time to read is no timeout. */
static bool computed(const struct call *c)
{
    size_t n = 0;
    while (n < c->n_choices && (c->choices[n].done || (c->choices[n].submitted && gen_done(c->choices[n].gen))))
        n++;
    return n && n == c->n_choices;
}

void stream_tick(struct server *s)
{
    uint64_t now = clock_mono_ns();
    for (struct call *c = s->calls, *next; c; c = next) {
        next = c->next;
        if (c->active && !c->in_worker && computed(c)) { /* a slow reader takes no place from those who wait to be computed */
            c->active = false;
            s->n_active--;
        }
        if (c->deadline_ns && now > c->deadline_ns && !atomic_load(&c->closed) && (!c->answered || c->streaming) &&
            (c->in_worker || !computed(c))) {
            time_out(c);
        } else if (c->generates && !c->in_worker) {
            stream_advance(c);
        }
    }
}

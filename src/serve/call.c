/* Calls: their life and their answers; see call.h. */
#include "serve/call.h"

#include "serve/once.h"
#include "serve/sessions.h"

#include "base/clock.h"
#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>

#define STATUS_CLIENT_LEFT 499 /* for the log and the metrics; as nginx */

/* As a label: whatever clients send, there are few. */
static const char *known_method(const char *method)
{
    static const char *const known[] = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(method, known[i]) == 0)
            return known[i];
    return "other";
}

#define MODEL_BYTES_SHOWN 200

static void log_done(struct call *c)
{
    size_t prompt = 0, cached = 0, output = 0;
    uint64_t first = 0;
    for (size_t i = 0; i < c->n_choices; i++) {
        if (!c->choices[i].gen)
            continue;
        struct gen_stats s = gen_stats(c->choices[i].gen);
        prompt += s.n_prompt;
        cached += s.n_cached;
        output += c->choices[i].n_counted;
        if (s.first_token_ns && (!first || s.first_token_ns < first))
            first = s.first_token_ns;
    }
    double total_ms = (double)(clock_mono_ns() - c->received_ns) / 1e6;
    struct http_outcome outcome = {c->handler,     known_method(c->method), c->status,
                                   total_ms / 1e3, c->body_bytes,           c->reply_bytes};
    http_metrics_outcome(&outcome);
    if (!c->generates) {
        enum log_level level = c->status >= 500 ? LOG_WARN : c->quiet && c->status < 400 ? LOG_DEBUG : LOG_INFO;
        log_event(level, "request_done", "id=%s method=%s path=\"%s\" status=%d reason=%s total_ms=%.1f", c->id, c->method,
                  c->path, c->status, c->why ? c->why : "done", total_ms);
        return;
    }
    struct str model = c->model ? str_from(c->model->id) : c->model_name.ptr ? c->model_name : STR("");
    log_event(c->status >= 500 ? LOG_WARN : LOG_INFO, "request_done",
              "id=%s method=%s path=\"%s\" model=\"%.*s\" status=%d reason=%s param=\"%s\" prompt_tokens=%zu "
              "cached_tokens=%zu output_tokens=%zu ttft_ms=%.1f total_ms=%.1f",
              c->id, c->method, c->path, (int)(model.len < MODEL_BYTES_SHOWN ? model.len : MODEL_BYTES_SHOWN), model.ptr,
              c->status, c->why ? c->why : "none", c->param, prompt, cached, output,
              first ? (double)(first - c->received_ns) / 1e6 : 0.0, total_ms);
}

bool call_hold(struct call *c, uint64_t bytes, const char *what, struct err *err)
{
    struct server *s = c->server;
    uint64_t before = atomic_fetch_add(&s->request_bytes, bytes);
    if (before + bytes <= s->request_bytes_max) {
        c->held_bytes += bytes;
        return true;
    }
    atomic_fetch_sub(&s->request_bytes, bytes);
    return err_set(err, ERR_MEMORY,
                   "%s of this request takes about %llu bytes; of the %llu bytes that --memory %llu leaves for requests, %llu "
                   "are in use. %s",
                   what, (unsigned long long)bytes, (unsigned long long)s->request_bytes_max,
                   (unsigned long long)s->memory.total, (unsigned long long)before,
                   bytes > s->request_bytes_max ? "Ask for less, or give the server more --memory." : "Try again later.");
}

void call_unhold(struct call *c, uint64_t bytes)
{
    c->held_bytes -= bytes;
    atomic_fetch_sub(&c->server->request_bytes, bytes);
}

static void free_call(struct call *c)
{
    struct server *s = c->server;
    atomic_fetch_sub(&s->request_bytes, c->held_bytes);
    if (!c->answered)
        c->status = STATUS_CLIENT_LEFT;
    log_done(c);
    if (c->previous)
        c->previous->next = c->next;
    else
        s->calls = c->next;
    if (c->next)
        c->next->previous = c->previous;
    for (size_t i = 0; i < c->n_choices; i++) {
        struct choice *h = &c->choices[i];
        if (h->gen)
            gen_free(h->gen);
        detok_free(h->detok);
        stops_release(&h->stops);
        buf_release(&h->text);
    }
    for (size_t i = 0; i < c->n_prompts; i++)
        token_list_release(&c->prompts[i]);
    if (c->model)
        registry_release(s->registry, c->model, c->keep_alive_s);
    if (c->has_parsed)
        api_request_release(&c->parsed);
    if (c->session)
        sessions_release(c);
    if (c->once)
        once_release(c);
    if (c->release_owned)
        c->release_owned(c);
    free(c->prompts);
    free(c->choices);
    free(c->path_model);
    buf_release(&c->body);
    buf_release(&c->out);
    free(c);
}

void call_release_if_done(struct call *c)
{
    if (c->in_worker || c->request)
        return;
    for (size_t i = 0; i < c->n_choices; i++)
        if (c->choices[i].submitted && !gen_done(c->choices[i].gen))
            return;
    if (c->active)
        c->server->n_active--;
    if (c->counted && !c->measured)
        stream_count(c);
    free_call(c);
}

static void cancel_gens(struct call *c)
{
    for (size_t i = 0; i < c->n_choices; i++)
        if (c->choices[i].submitted && !gen_done(c->choices[i].gen))
            engine_cancel(c->model->engine, c->choices[i].gen);
}

static void on_close(void *user, enum http_close why)
{
    struct call *c = user;
    c->request = NULL;
    atomic_store(&c->closed, 1);
    if (!c->answered || (c->streaming && why != HTTP_CLOSE_DONE)) {
        if (!c->failed)
            c->why = why == HTTP_CLOSE_STALLED ? "stalled" : "disconnected";
        if (!c->in_worker)
            cancel_gens(c);
    }
    call_release_if_done(c);
}

struct call *call_new(struct server *s, struct http_request *r)
{
    struct call *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->server = s;
    c->request = r;
    struct str id = http_request_id(r), method = http_method(r), path = http_path(r);
    snprintf(c->id, sizeof c->id, "%.*s", (int)id.len, id.ptr);
    snprintf(c->method, sizeof c->method, "%.*s", (int)method.len, method.ptr);
    snprintf(c->path, sizeof c->path, "%.*s", (int)path.len, path.ptr);
    c->received_ns = http_received_ns(r);
    c->created_ns = clock_wall_ns();
    c->keep_alive_s = s->config->keep_alive_s;
    http_take_body(r, &c->body);
    c->body_bytes = c->body.len;
    c->handler = "none";
    buf_init(&c->out, CALL_BODY_BYTES_MAX);
    c->next = s->calls;
    if (c->next)
        c->next->previous = c;
    s->calls = c;
    http_set_user(r, c, on_close);
    return c;
}

bool call_hand_over(struct call *c)
{
    c->in_worker = true;
    if (queue_put(c->server->work, c))
        return true;
    c->in_worker = false;
    return false;
}

void call_set_busy(struct err *err)
{
    err_set(err, ERR_QUEUE_FULL, "The server already prepares as many requests as it has connections for; try again.");
}

void call_start(struct call *c)
{
    struct err err = {0};
    if (call_hand_over(c))
        return;
    call_set_busy(&err);
    call_fail(c, &err);
}

void call_reply(struct call *c, int status, struct str body)
{
    call_reply_as(c, status, "application/json", body);
}

void call_reply_as(struct call *c, int status, const char *type, struct str body)
{
    if (c->answered || !c->request)
        return;
    c->answered = true;
    c->status = status;
    c->reply_bytes += body.len;
    once_answer(c, status, body);
    http_reply(c->request, status, type, body);
}

void call_reply_whole(struct call *c, int status, const char *type, const struct buf *body)
{
    struct err err = {0};
    if (!body->failed) {
        call_reply_as(c, status, type, buf_str(body));
        return;
    }
    err_set(&err, ERR_MEMORY, "The answer is there, but not the memory to write it; try again later, or ask for less.");
    call_fail(c, &err);
}

void call_fail(struct call *c, const struct err *err)
{
    if (c->answered || !c->request)
        return;
    struct buf body;
    char seconds[24];
    buf_init(&body, 1 << 16);
    api_error_body(&body, str_from(c->path), err);
    int status = err_info(err->code)->http_status;
    if (err->code == ERR_QUEUE_FULL || err->code == ERR_DRAINING || err->code == ERR_RATE_LIMIT || status == 503) {
        snprintf(seconds, sizeof seconds, "%zu", serve_retry_after_s(c->server));
        http_add_header(c->request, "Retry-After", seconds);
    }
    if (err->code == ERR_UNAUTHORIZED)
        http_add_header(c->request, "WWW-Authenticate", "Bearer");
    c->why = err_info(err->code)->code;
    snprintf(c->param, sizeof c->param, "%s", err->param);
    call_reply(c, status, buf_str(&body));
    buf_release(&body);
}

void call_abort(struct call *c, enum err_code code, const char *format, ...)
{
    struct err err = {0};
    va_list args;
    va_start(args, format);
    char text[ERR_TEXT_BYTES_MAX];
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    err_set(&err, code, "%s", text);
    atomic_store(&c->closed, 1);
    if (!c->in_worker)
        cancel_gens(c);
    if (!c->answered) {
        call_fail(c, &err);
    } else if (c->streaming && !c->failed && c->request) {
        c->failed = true;
        c->why = err_info(code)->code;
        buf_clear(&c->out);
        if (code == ERR_CANCELLED && c->kind == API_CHAT)
            stream_cancelled(c);
        else
            api_stream_error(&c->out, c->kind, &err);
        if (c->out.failed) { /* not even for this: the client sees that the end is missing */
            http_stream_abort(c->request);
            return;
        }
        c->reply_bytes += c->out.len;
        http_stream_write(c->request, buf_str(&c->out));
        http_stream_end(c->request);
    }
}

void call_worked(void *arg)
{
    struct call *c = arg;
    c->in_worker = false;
    buf_release(&c->body);
    if (atomic_load(&c->closed) || !c->request) {
        call_release_if_done(c);
        return;
    }
    if (c->then && !c->load_error.code) {
        call_work then = c->then;
        c->then = NULL;
        if (then(c, &c->load_error))
            return;
    }
    if (c->load_error.code)
        call_fail(c, &c->load_error);
    else if (c->generates)
        stream_submit(c);
    else
        call_reply_whole(c, c->status ? c->status : 200, "application/json", &c->out);
}

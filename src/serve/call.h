/* A request on its way through the server, and the server that all of serve/ shares.
 *
 *   http thread: routes.c makes the call -> worker: prepare.c (parse, template, tokens, gens)
 *     -> http thread: stream.c (submit, poll, text, reply) -> freed when its gens are done and its connection is closed
 *
 * A call belongs to the http thread, except between workers_put and the worker's post back. `closed` is set by the http
 * thread at any time and read by whoever has the call next.
 */
#ifndef INFERD_SERVE_CALL_H
#define INFERD_SERVE_CALL_H

#include "api/reply.h"
#include "api/request.h"
#include "base/queue.h"
#include "http/http.h"
#include "serve/metrics.h"
#include "serve/registry.h"
#include "text/stops.h"

#include <pthread.h>
#include <stdatomic.h>

#define CALL_CHOICES_MAX    256
#define CALL_BODY_BYTES_MAX ((size_t)1 << 30)

struct choice {
    struct gen *gen;
    struct detok *detok;
    struct stops stops;
    struct buf text;  /* not yet sent (stream), or all of it */
    size_t n_seen;    /* tokens taken from the gen */
    size_t n_sent;    /* tokens whose log-probabilities and ids were sent */
    size_t n_counted; /* tokens up to the end of the text */
    size_t text_offset;
    const int32_t *prompt; /* into the call's prompts */
    size_t n_prompt;
    const char *finish;
    enum gen_finish gen_finish;
    bool submitted, started, done, cancelled;
};

struct call;
struct lasting;
struct once;
struct session_use;
typedef bool (*call_work)(struct call *c, struct err *err);

struct server;
struct call {
    struct registry_waiter waiter; /* first: registry.c hands it back */
    struct server *server;
    struct call *previous, *next; /* of the server's list: every call that is not freed */
    struct http_request *request; /* NULL once closed */
    char id[136];
    char method[12], path[160];
    const char *handler; /* the route's pattern, for metrics */
    size_t body_bytes, reply_bytes;
    enum api_kind kind;
    call_work work; /* on a worker */
    bool needs_model, generates;
    struct buf body;
    struct str model_name; /* into parsed or path_model */
    char *path_model;
    struct registry_load load;
    struct api_request parsed;
    bool has_parsed;
    struct served *model; /* held */
    struct err load_error;
    struct token_list *prompts;
    size_t n_prompts;
    struct choice *choices;
    size_t n_choices, n_done;
    struct buf out; /* whole reply, or the part of a stream under way */
    int status;
    bool answered, streaming, failed, wanted_logprobs, in_worker;
    bool counted;  /* it was submitted: the metrics are to know of it */
    bool active;   /* in n_active */
    bool measured; /* its choices are in the metrics */
    bool first_token_logged;
    size_t n_gaps; /* times between deliveries that the metrics know of */
    bool quiet;    /* asked for every few seconds by somebody's monitoring: not logged when all is well */
    double keep_alive_s;
    uint64_t received_ns, created_ns, last_delivery_ns, load_waited_ns;
    _Atomic uint64_t deadline_ns; /* set by a worker while the http thread's timer looks */
    size_t max_tokens;
    char reply_id[160];
    _Atomic int closed;                    /* the client left, or it was answered early */
    const char *why;                       /* of the end, for the log */
    char param[ERR_PARAM_BYTES_MAX];       /* the same: the field that was refused */
    uint64_t held_bytes;                   /* of the server's request_bytes */
    call_work then;                        /* on the http thread, when `work` has succeeded: starts what answers later */
    void *owned;                           /* of whoever answers it */
    void (*release_owned)(struct call *c); /* when the call is freed; NULL: nothing is owned */
    struct session_use *session;           /* sessions.h */
    struct once *once;                     /* once.h; NULL: no Idempotency-Key */
    bool saving;                           /* on its way to a worker: the turn is to be kept */
    bool resumed;                          /* stream_advance has something to do without a new token */
    bool lost;                             /* there was no memory for a part of the answer */
};

struct server {
    const struct serve_config *config;
    struct http_server *http;
    pthread_rwlock_t http_gate; /* held by threads that outlive http while they post to it */
    bool http_ended;            /* with the gate: its thread goes, or is gone */
    struct registry *registry;
    struct names *names;
    struct backend *backend;
    struct queue *work;
    struct lasting *lasting; /* store, jobs, sessions */
    struct call *calls;
    size_t n_active; /* calls for which something is computed, or waits to be */
    _Atomic int draining;
    uint64_t started_ns;
    struct memory_plan memory;
    uint64_t request_bytes_max; /* parsed requests, prompts, log-probabilities, whole replies */
    _Atomic uint64_t request_bytes;
    double mean_seconds;       /* of a generating call, moving; for Retry-After */
    size_t stream_ahead_bytes; /* unsent output of a stream beyond which its tokens stay tokens */
};

/* ---- call.c: any of the below on the http thread ---- */
void call_reply(struct call *c, int status, struct str body); /* JSON */
void call_reply_as(struct call *c, int status, const char *type, struct str body);
/* Of a body that was put together here; ERR_MEMORY instead of one that is not whole. */
void call_reply_whole(struct call *c, int status, const char *type, const struct buf *body);
void call_fail(struct call *c, const struct err *err);
/* The worker is done with it (posted): answers, or starts its gens. */
void call_worked(void *arg);
/* Ends it early, with this answer if none was given. */
void call_abort(struct call *c, enum err_code code, const char *format, ...) __attribute__((format(printf, 3, 4)));
void call_release_if_done(struct call *c);
/* Counts memory that the call is about to take; given back with the call. Whoever has the call. ERR_MEMORY with the
 * numbers where there is no more. */
bool call_hold(struct call *c, uint64_t bytes, const char *what, struct err *err);
void call_unhold(struct call *c, uint64_t bytes);
struct call *call_new(struct server *s, struct http_request *r);
/* Hands it to the workers. False: it is still the http thread's, for more wait than there is room for. */
bool call_hand_over(struct call *c);
/* The same for a call that was not answered yet: it is then, that the server is busy. */
void call_start(struct call *c);
/* ERR_QUEUE_FULL: the workers had no room for it. */
void call_set_busy(struct err *err);

/* ---- serve.c ---- */
/* What the call waited for has come, or failed (load_error): back to the workers, or answered where they have no room. From
 * the thread that has the call. */
void call_go_on(struct call *c);

/* ---- stream.c ---- */
void stream_submit(struct call *c);
/* Tells the metrics of its choices: when they are done, or when the call ends without that. */
void stream_count(struct call *c);
/* Ends a stream that was cancelled as one that ends by itself does: what there is, the reason, the counts. */
void stream_cancelled(struct call *c);
/* Takes what its gens produced; writes, ends. */
void stream_advance(struct call *c);
/* The turn of its session is kept: the end may be sent. */
void stream_resume(struct call *c);
void stream_model_progress(void *arg); /* posted: a struct progress (freed here) */
struct progress {
    struct server *server;
    struct served *model;
};
void stream_tick(struct server *s);
size_t serve_retry_after_s(const struct server *s);

/* ---- prepare.c, tools.c, admin.c: on a worker ---- */
bool prepare_generate(struct call *c, struct err *err);
bool tools_tokenize(struct call *c, struct err *err);
bool tools_detokenize(struct call *c, struct err *err);
bool tools_apply_template(struct call *c, struct err *err);
bool admin_models(struct call *c, struct err *err);
bool admin_model(struct call *c, struct err *err);
bool admin_openai_models(struct call *c, struct err *err);
bool admin_openai_model(struct call *c, struct err *err);
bool admin_load(struct call *c, struct err *err);
bool admin_unload(struct call *c, struct err *err);
bool admin_reload(struct call *c, struct err *err);
bool admin_reload_all(struct call *c, struct err *err);
/* Before admin_reload_all, again and again: takes note of the last one's result and asks for the next. True: the registry has
 * the call now, and its waiter is told. */
bool admin_reload_next(struct call *c);
bool admin_delete(struct call *c, struct err *err);
/* Ids of a text, within limits: a text that cannot fit the context is refused before the work is done. `rendered`: what
 * a chat template wrote. `flags` of the tokenizer else. */
enum text_source { TEXT_RENDERED, TEXT_RAW, TEXT_RAW_UNBOUNDED };
/* `own`: the parts in which special tokens are parsed; NULL: as the request says of its whole text. */
bool prepare_encode(struct call *c, struct str text, enum text_source source, const struct text_spans *own,
                    struct token_list *out, struct err *err);
/* The prompt of a chat as text and ids. */
bool prepare_chat_prompt(struct call *c, struct buf *text, struct token_list *ids, struct err *err);

/* ---- health.c: on the http thread, at once ---- */
void health_write(struct server *s, struct buf *out);
bool health_ready(struct server *s);
void metrics_scrape(struct server *s, struct buf *out);

/* ---- routes.c ---- */
void routes_handle(void *ctx, struct http_request *r);
void routes_error_body(void *ctx, int status, struct str path, struct str request_id, const char *text, struct buf *body);

#endif

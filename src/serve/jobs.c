/* The routes of jobs: POST /pull, GET and DELETE /jobs[/{id}], GET /jobs/{id}/events. Everything asks the store and answers
 * when it has: no thread waits. */
#include "serve/lasting.h"

#include "base/clock.h"
#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define LIST_DEFAULT    100
#define LIST_MAX        1000
#define PULL_BYTES_MAX  ((size_t)64 << 10)
#define JOB_BYTES_MAX   ((size_t)8 << 20)
#define JOB_AHEAD_BYTES ((size_t)64 << 10) /* unsent, beyond which an event is left out */
#define QUIET_MS        10000              /* without an event: a comment is sent, so that proxies keep the connection */

/* ---- POST /pull ---- */

struct pull_body {
    struct str model, revision, profile;
    int preload;
};

static bool copy(char *out, size_t size, struct str text, const char *param, struct err *err)
{
    if (text.len >= size)
        return err_set_param(err, ERR_INVALID_REQUEST, param, "'%s' has %zu bytes; at most %zu are possible.", param, text.len,
                             size - 1);
    if (text.len)
        memcpy(out, text.ptr, text.len);
    out[text.len] = 0;
    return true;
}

/* A model's name as people write it, aliases too, as a reference. */
static bool read_model(struct server *s, struct str name, struct hub_ref *out, struct err *err)
{
    char text[ALIAS_BYTES_MAX];
    if (aliases_resolve(names_aliases(s->names), name, text) == ALIAS_NONE && !copy(text, sizeof text, name, "model", err))
        return false;
    if (hub_ref_parse(text, out, err))
        return true;
    if (err)
        snprintf(err->param, sizeof err->param, "model");
    return false;
}

static bool read_pull(struct call *c, const struct pull_body *body, struct job_request *job, struct err *err)
{
    if (!body->model.len)
        return err_set_param(err, ERR_INVALID_REQUEST, "model",
                             "'model' is %s: say what to pull, as in {\"model\":\"org/name\"}.",
                             body->model.ptr ? "empty" : "missing");
    if (!read_model(c->server, body->model, &job->ref, err))
        return false;
    if (body->revision.len) {
        struct hub_ref check;
        char text[HUB_REF_TEXT_BYTES];
        if (memchr(body->model.ptr, '@', body->model.len) && !str_equal(body->revision, str_from(job->ref.revision)))
            return err_set_param(err, ERR_INVALID_REQUEST, "revision",
                                 "'model' names the revision '%s' and 'revision' the "
                                 "revision '%.*s'; give one.",
                                 job->ref.revision, (int)body->revision.len, body->revision.ptr);
        if (!copy(job->ref.revision, sizeof job->ref.revision, body->revision, "revision", err))
            return false;
        hub_ref_format(&job->ref, text);
        if (!hub_ref_parse(text, &check, err)) { /* the rules of a revision are the reference's */
            snprintf(err->param, sizeof err->param, "revision");
            return false;
        }
    }
    bool is_auto = !body->profile.len || str_equal(body->profile, STR("auto"));
    if (!is_auto && profile_from_name(body->profile.ptr, body->profile.len) == PROFILE_AUTO)
        return err_set_param(err, ERR_UNSUPPORTED, "profile",
                             "'profile' is \"%.*s\"; \"auto\", \"fp16\", \"int8\", \"int4\" and "
                             "\"native\" are possible.",
                             (int)(body->profile.len < 64 ? body->profile.len : 64), body->profile.ptr);
    job->preload = body->preload != 0;
    return is_auto || copy(job->profile, sizeof job->profile, body->profile, "profile", err);
}

static void finish_pull(struct store_task *t)
{
    struct call *c = t->call;
    const struct store_job *job = &t->request.jobs[0];
    job_write(&c->out, job);
    c->status = 202;
    log_event(LOG_INFO, t->request.created ? "job_created" : "job_shared", "id=%s model=\"%.*s\" request=%s", job->id,
              (int)job->model.len, job->model.ptr, c->id);
    jobs_wake(c->server->lasting->jobs);
}

static void free_task(struct call *c)
{
    free(c->owned);
}

bool route_pull(struct call *c, struct err *err)
{
    static const struct field table[] = {
        {.name = "model", .kind = FIELD_STRING, .offset = offsetof(struct pull_body, model)},
        {.name = "revision", .kind = FIELD_STRING, .offset = offsetof(struct pull_body, revision)},
        {.name = "profile", .kind = FIELD_STRING, .offset = offsetof(struct pull_body, profile)},
        {.name = "preload", .kind = FIELD_BOOL, .offset = offsetof(struct pull_body, preload)},
        {0}};
    if (atomic_load(&c->server->draining))
        return err_set(err, ERR_DRAINING, "The server is shutting down and takes no new work; ask another instance.");
    if (c->body.len > PULL_BYTES_MAX)
        return err_set(err, ERR_TOO_LARGE, "The body has %zu bytes; a pull's may have %zu.", c->body.len, PULL_BYTES_MAX);
    struct pull_body body = {0};
    struct job_request job = {0};
    json_t *root = json_loadb(c->body.len ? c->body.data : "", c->body.len, 0, NULL);
    bool ok = json_is_object(root) ||
              err_set(err, ERR_INVALID_REQUEST, "The body must be a JSON object such as {\"model\":\"org/name\"}.");
    ok = ok && fields_parse(root, "request", table, NULL, &body, err) && read_pull(c, &body, &job, err);
    struct store_task *t = ok ? store_task_new(c, STORE_JOB_CREATE, finish_pull, err) : NULL;
    json_decref(root);
    if (!t)
        return false;
    job_create_request(&job, &t->texts, &t->request);
    struct hub_snapshot found;
    if (!hub_cache_find(c->server->config->hub->cache_dir, &job.ref, &found, NULL))
        t->request.ttl_ms = 0; /* what completed a moment ago was removed since */
    c->owned = t;
    c->release_owned = free_task;
    c->then = route_pull_start;
    return true;
}

bool route_pull_start(struct call *c, struct err *err)
{
    struct store_task *t = c->owned;
    c->release_owned = NULL;
    return store_task_start(t, err);
}

/* ---- GET /jobs ---- */

bool route_read_limit(struct str text, size_t otherwise, size_t max, size_t *out, struct err *err)
{
    *out = otherwise;
    if (!text.ptr)
        return true;
    size_t value = 0, i = 0;
    for (; i < text.len && i < 7 && text.ptr[i] >= '0' && text.ptr[i] <= '9'; i++)
        value = value * 10 + (size_t)(text.ptr[i] - '0');
    *out = value;
    return (text.len && i == text.len && value >= 1 && value <= max) ||
           err_set_param(err, ERR_INVALID_REQUEST, "limit", "'limit' is '%.*s'; it must be an integer from 1 to %zu.",
                         (int)(text.len < 64 ? text.len : 64), text.ptr, max);
}

/* "2026-01-31T12:00:00[.123][Z|+01:00]" */
static bool read_rfc3339(const char *text, int64_t *ms)
{
    struct tm t = {0};
    const char *rest = strptime(text, "%Y-%m-%dT%H:%M:%S", &t);
    if (!rest)
        rest = strptime(text, "%Y-%m-%d %H:%M:%S", &t);
    if (!rest)
        return false;
    int64_t fraction_ms = 0;
    if (*rest == '.')
        for (int unit_ms = 100; *++rest >= '0' && *rest <= '9'; unit_ms /= 10)
            fraction_ms += (*rest - '0') * unit_ms;
    unsigned hours, minutes;
    int offset_s = 0;
    if (*rest == '+' || *rest == '-') {
        if (strlen(rest) != 6 || strspn(rest + 1, "0123456789:") != 5 || sscanf(rest + 1, "%2u:%2u", &hours, &minutes) != 2)
            return false;
        offset_s = (int)(hours * 60 + minutes) * (*rest == '-' ? -60 : 60);
    } else if (strcmp(rest, "Z") != 0 && strcmp(rest, "z") != 0 && *rest) {
        return false;
    }
    *ms = ((int64_t)timegm(&t) - offset_s) * 1000 + fraction_ms;
    return true;
}

bool route_read_since(struct str text, int64_t *ms, struct err *err)
{
    char copied[64], *end;
    *ms = 0;
    if (!text.ptr)
        return true;
    snprintf(copied, sizeof copied, "%.*s", (int)(text.len < sizeof copied ? text.len : sizeof copied - 1), text.ptr);
    double s = strtod(copied, &end);
    if (end != copied && !*end && s >= 0 && s < 1e12) {
        *ms = (int64_t)(s * 1000);
        return true;
    }
    return read_rfc3339(copied, ms) || err_set_param(err, ERR_INVALID_REQUEST, "since",
                                                     "'since' is '%s'; it must be Unix seconds or a time such as "
                                                     "2026-01-31T12:00:00Z.",
                                                     copied);
}

static bool read_status(struct str text, enum store_status *out, struct err *err)
{
    *out = text.ptr ? store_status_parse(text) : STORE_STATUS_COUNT;
    return !text.ptr || *out != STORE_STATUS_COUNT ||
           err_set_param(err, ERR_INVALID_REQUEST, "status",
                         "'status' is '%.*s'; possible are queued, running, completed, "
                         "failed and cancelled.",
                         (int)(text.len < 64 ? text.len : 64), text.ptr);
}

static void finish_list(struct store_task *t)
{
    struct buf *out = &t->call->out;
    buf_append_str(out, STR("{\"jobs\":["));
    for (size_t i = 0; i < t->request.n_jobs; i++) {
        if (i)
            buf_append_char(out, ',');
        t->request.jobs[i].files = (struct str){0};
        job_write(out, &t->request.jobs[i]);
    }
    buf_append_str(out, STR("]}"));
}

bool route_jobs(struct call *c, struct err *err)
{
    enum store_status status;
    int64_t since_ms;
    size_t limit;
    if (!read_status(http_query(c->request, "status"), &status, err) ||
        !route_read_since(http_query(c->request, "since"), &since_ms, err) ||
        !route_read_limit(http_query(c->request, "limit"), LIST_DEFAULT, LIST_MAX, &limit, err))
        return false;
    struct store_task *t = store_task_new(c, STORE_JOB_LIST, finish_list, err);
    if (!t)
        return false;
    t->request.status = status;
    t->request.since_ms = since_ms;
    t->request.limit = limit;
    struct str model = http_query(c->request, "model");
    if (model.len) {
        struct job_request job = {0};
        struct store_request unused;
        if (read_model(c->server, model, &job.ref, NULL)) {
            job_create_request(&job, &t->texts, &unused);
            t->request.model = str_from(t->texts.model);
        } else {
            t->request.model = STR("\n"); /* nothing can have been pulled under such a name */
        }
    }
    return store_task_start(t, err);
}

/* ---- GET and DELETE /jobs/{id} ---- */

static struct store_task *task_of_id(struct call *c, enum store_op op, void (*finish)(struct store_task *t), struct err *err)
{
    struct store_task *t = store_task_new(c, op, finish, err);
    if (t)
        t->request.id = str_from(c->path_model); /* lives as long as the call, which is the operation's now */
    return t;
}

static void finish_get(struct store_task *t)
{
    job_write(&t->call->out, &t->request.jobs[0]);
}

bool route_job(struct call *c, struct err *err)
{
    struct store_task *t = task_of_id(c, STORE_JOB_GET, finish_get, err);
    return t && store_task_start(t, err);
}

static void finish_cancel(struct store_task *t)
{
    finish_get(t);
    if (!store_status_final(t->request.jobs[0].status))
        t->call->status = 202; /* its owner will see it */
    jobs_wake(t->call->server->lasting->jobs);
}

bool route_job_cancel(struct call *c, struct err *err)
{
    struct store_task *t = task_of_id(c, STORE_JOB_CANCEL, finish_cancel, err);
    return t && store_task_start(t, err);
}

/* ---- GET /jobs/{id}/events ---- */

/* Belongs to its call: freed with it. While `asking`, the call is the store's (in_worker). */
struct job_stream {
    struct job_stream *next;
    struct call *call;
    struct store_request request;
    const char *id; /* the call's */
    bool asking, again, begun, over;
    struct buf text; /* written by the store's thread while asking */
    struct buf last; /* what was sent last */
    uint64_t sent_ns;
    bool final;
};

static void stream_free(struct call *c)
{
    struct job_stream *e = c->owned;
    struct lasting *l = c->server->lasting;
    for (struct job_stream **at = &l->streams; *at; at = &(*at)->next)
        if (*at == e) {
            *at = e->next;
            atomic_fetch_sub(&l->n_streams, 1);
            break;
        }
    buf_release(&e->text);
    buf_release(&e->last);
    free(e);
}

static void stream_ask(struct job_stream *e);

static void stream_send(struct job_stream *e)
{
    struct call *c = e->call;
    uint64_t now = clock_mono_ns();
    if (!e->begun) {
        e->begun = true;
        c->answered = c->streaming = true;
        c->status = 200;
        http_stream_begin(c->request, 200, "text/event-stream");
    }
    if (!e->final && (e->text.failed || http_stream_unsent(c->request) > JOB_AHEAD_BYTES))
        return; /* the next event tells all that this one would: who reads slowly gets fewer */
    if (e->text.failed) {
        http_stream_abort(c->request);
    } else if (!str_equal(buf_str(&e->text), buf_str(&e->last))) {
        http_stream_write(c->request, STR("data: "));
        http_stream_write(c->request, buf_str(&e->text));
        http_stream_write(c->request, STR("\n\n"));
        buf_clear(&e->last);
        buf_append_str(&e->last, buf_str(&e->text));
        e->sent_ns = now;
    } else if (now - e->sent_ns > (uint64_t)QUIET_MS * 1000000) {
        http_stream_write(c->request, STR(": waiting\n\n"));
        e->sent_ns = now;
    }
}

/* On the http thread: the store has answered. */
static void stream_got(void *arg)
{
    struct job_stream *e = arg;
    struct call *c = e->call;
    e->asking = false;
    c->in_worker = false;
    if (!c->request || e->over) {
        call_release_if_done(c);
        return;
    }
    bool gone = !e->request.ok && e->request.err.code == ERR_NOT_FOUND;
    if (!e->request.ok && !e->begun) {
        e->over = true;
        call_fail(c, &e->request.err);
        return;
    }
    if (e->request.ok)
        stream_send(e);
    if (e->final || gone) {
        e->over = true;
        c->why = "done";
        http_stream_end(c->request);
    } else if (e->again) {
        stream_ask(e);
    }
}

/* On the store's thread. */
static void stream_done(struct store_request *r)
{
    struct job_stream *e = r->user;
    if (r->ok) {
        buf_clear(&e->text);
        job_write(&e->text, &r->jobs[0]);
        e->final = store_status_final(r->jobs[0].status);
    }
    store_request_release(r);
    http_post(e->call->server->http, stream_got, e);
}

static void stream_ask(struct job_stream *e)
{
    if (e->over || !e->call->request)
        return;
    e->again = e->asking;
    if (e->asking)
        return;
    e->request = (struct store_request){.op = STORE_JOB_GET, .id = str_from(e->id), .done = stream_done, .user = e};
    e->asking = store_submit(e->call->server->lasting->store, &e->request, NULL);
    e->call->in_worker = e->asking; /* where the store is too busy, the next tick asks */
}

bool route_job_events(struct call *c, struct err *err)
{
    struct lasting *l = c->server->lasting;
    struct job_stream *e = calloc(1, sizeof *e);
    if (!e)
        return err_set(err, ERR_MEMORY, "Out of memory.");
    e->call = c;
    e->id = c->path_model;
    buf_init(&e->text, JOB_BYTES_MAX);
    buf_init(&e->last, JOB_BYTES_MAX);
    e->next = l->streams;
    l->streams = e;
    atomic_fetch_add(&l->n_streams, 1);
    c->owned = e;
    c->release_owned = stream_free;
    stream_ask(e);
    return true;
}

void jobs_events_tick(struct server *s)
{
    for (struct job_stream *e = s->lasting->streams, *next; e; e = next) {
        next = e->next;
        if (atomic_load(&s->draining) && e->begun && !e->over && e->call->request) {
            e->over = true; /* another instance, or this one when it is back, has the rest */
            http_stream_end(e->call->request);
        } else {
            stream_ask(e);
        }
    }
}

void jobs_events_notice(void *arg)
{
    struct job_notice *n = arg;
    for (struct job_stream *e = n->server->lasting->streams, *next; e; e = next) {
        next = e->next;
        if (strcmp(e->id, n->id) == 0)
            stream_ask(e);
    }
    free(n);
}

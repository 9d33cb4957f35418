/* Opening and closing what lasts; see lasting.h. */
#include "serve/lasting.h"

#include "base/log.h"
#include "serve/once.h"
#include "serve/sessions.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- jobs ---- */

/* On the jobs' thread. */
static void on_job_end(void *user, const struct job_end *end)
{
    (void)user;
    const char *status = store_status_name(end->status);
    if (end->status == STORE_FAILED)
        log_event(LOG_WARN, "job_ended", "id=%s model=\"%s\" status=%s seconds=%.1f error=\"%s\"", end->id, end->model, status,
                  end->seconds, end->err->text);
    else
        log_event(LOG_INFO, "job_ended", "id=%s model=\"%s\" status=%s seconds=%.1f fetched_bytes=%llu", end->id, end->model,
                  status, end->seconds, (unsigned long long)end->bytes_fetched);
}

/* The model of a job with preload, on its way into memory. */
struct preload {
    struct registry_waiter waiter;
    struct server *server;
    struct registry_load load;
    bool again; /* a load that nobody gave a profile had another one: asked once more */
    char name[HUB_REF_TEXT_BYTES], id[STORE_JOB_ID_BYTES];
    uint64_t token;
};

static void preload_end(struct preload *p, const struct err *err)
{
    struct lasting *l = p->server->lasting;
    if (err)
        log_event(LOG_ERROR, "preload_failed", "id=%s error=\"%s\"", p->id, err->text);
    pthread_mutex_lock(&l->jobs_lock);
    if (l->jobs)
        jobs_loaded(l->jobs, p->id, p->token, err);
    pthread_mutex_unlock(&l->jobs_lock);
    free(p);
}

static void preload_ask(struct preload *p)
{
    struct registry *r = p->server->registry;
    struct err err = {0};
    int waiting;
    struct served *m = registry_acquire(r, str_from(p->name), &p->load, &p->waiter, &waiting, &err);
    if (m)
        registry_release(r, m, p->server->config->keep_alive_s);
    if (!waiting)
        preload_end(p, m ? NULL : &err);
}

/* On the loader's thread. */
static void on_preloaded(struct registry_waiter *w, struct served *m, const struct err *err)
{
    struct preload *p = (struct preload *)w;
    bool other = m && p->load.profile_given && m->plan.profile != p->load.profile;
    struct err why = {0};
    if (other)
        err_set(&why, ERR_CONFLICT, "Model '%s' was loaded with profile '%s' meanwhile; the pull asked for '%s'.", p->name,
                profile_name(m->plan.profile), profile_name(p->load.profile));
    if (m)
        registry_release(p->server->registry, m, p->server->config->keep_alive_s);
    if (!other || p->again) {
        preload_end(p, other ? &why : m ? NULL : err);
        return;
    }
    p->again = true;
    preload_ask(p);
}

/* On the jobs' thread. */
static void on_job_load(void *user, const struct job_end *end)
{
    struct server *s = user;
    const char *profile = end->request->profile;
    struct preload *p = calloc(1, sizeof *p);
    if (!p) {
        struct err err = {0};
        err_set(&err, ERR_MEMORY, "Out of memory.");
        jobs_loaded(s->lasting->jobs, end->id, end->token, &err);
        return;
    }
    p->waiter.ready = on_preloaded;
    p->server = s;
    p->load.profile = profile_from_name(profile, strlen(profile));
    p->load.profile_given = p->load.profile != PROFILE_AUTO;
    hub_ref_format(&end->request->ref, p->name);
    snprintf(p->id, sizeof p->id, "%s", end->id);
    p->token = end->token;
    preload_ask(p);
}

/* On the store's thread. */
static void on_job_changed(void *user, const char *id)
{
    struct server *s = user;
    if (!atomic_load(&s->lasting->n_streams))
        return;
    struct job_notice *n = malloc(sizeof *n);
    if (!n)
        return; /* the next tick looks anyway */
    n->server = s;
    strcpy(n->id, id);
    http_post(s->http, jobs_events_notice, n);
}

/* ---- life ---- */

bool lasting_open(struct server *s, struct err *err)
{
    struct lasting *l = s->lasting = calloc(1, sizeof *l);
    if (!l)
        return err_set(err, ERR_MEMORY, "Out of memory.");
    l->instance.fd = -1;
    pthread_mutex_init(&l->jobs_lock, NULL);
    l->store = store_open(s->config->store, s->config->data_dir, err);
    if (!l->store || !store_instance_open(&l->instance, s->config->data_dir, err))
        return false;
    l->sessions = sessions_open(s, err);
    return l->sessions != NULL;
}

/* On the jobs' thread. Nothing is made in the hub's cache before something is pulled. */
static struct hub *get_hub(void *user, struct err *err)
{
    struct server *s = user;
    if (!s->lasting->hub)
        s->lasting->hub = hub_open(s->config->hub, err);
    return s->lasting->hub;
}

bool lasting_start(struct server *s, struct err *err)
{
    struct lasting *l = s->lasting;
    struct jobs_config jobs = {.store = l->store,
                               .hub = get_hub,
                               .instance = l->instance.name,
                               .running_max = s->config->downloads_max,
                               .ended = on_job_end,
                               .load = on_job_load,
                               .user = s};
    store_watch(l->store, on_job_changed, s);
    l->jobs = jobs_open(&jobs, err);
    return l->jobs != NULL;
}

void lasting_stop(struct server *s, enum lasting_part part)
{
    struct lasting *l = s->lasting;
    jobs_stop(l->jobs);
    if (part == LASTING_ALL)
        store_stop(l->store);
}

void lasting_close(struct server *s)
{
    struct lasting *l = s->lasting;
    pthread_mutex_lock(&l->jobs_lock);
    jobs_close(l->jobs);
    l->jobs = NULL;
    pthread_mutex_unlock(&l->jobs_lock);
    store_close(l->store);
    hub_close(l->hub);
    store_instance_close(&l->instance);
}

/* Once when it goes, once when it is back. */
static void tell_store(struct lasting *l)
{
    struct store_state state;
    store_state(l->store, &state);
    if (l->store_missed == !state.available || (!state.available && !state.why[0])) /* not asked yet */
        return;
    l->store_missed = !state.available;
    if (state.available)
        log_event(LOG_INFO, "store_available", "kind=%s", state.kind);
    else
        log_event(LOG_WARN, "store_unavailable", "kind=%s error=\"%s\" note=\"jobs and sessions wait for it\"", state.kind,
                  state.why);
}

void lasting_tick(struct server *s)
{
    tell_store(s->lasting);
    jobs_events_tick(s);
    once_tick(s);
    sessions_tick(s->lasting->sessions);
}

size_t lasting_reasons(struct server *s, struct buf *reasons, size_t n)
{
    struct store_state state;
    char text[512];
    store_state(s->lasting->store, &state);
    if (state.available)
        return n;
    snprintf(text, sizeof text, "store %s: %s", state.kind, state.why);
    buf_append_str(reasons, n ? STR(",") : STR(""));
    buf_append_json(reasons, str_from(text));
    return n + 1;
}

void lasting_health(struct server *s, struct buf *out)
{
    struct lasting *l = s->lasting;
    struct store_state state;
    size_t n_running = 0, n_queued = 0;
    store_state(l->store, &state);
    jobs_count(l->jobs, &n_running, &n_queued);
    buf_printf(out,
               "\"downloads_active\":%zu,\"downloads_queued\":%zu,\"store\":{\"kind\":\"%s\",\"available\":%s,"
               "\"waiting\":%llu,\"reconnects\":%llu},\"instance\":\"%s\"",
               n_running, n_queued, state.kind, state.available ? "true" : "false", (unsigned long long)state.n_waiting,
               (unsigned long long)state.n_reconnects, l->instance.name);
}

/* ---- an operation of the store for a call ---- */

static void on_task_done(struct store_request *r)
{
    struct store_task *t = r->user;
    struct call *c = t->call;
    if (r->ok)
        t->finish(t);
    else
        c->load_error = r->err;
    store_request_release(r);
    free(t);
    http_post(c->server->http, call_worked, c);
}

struct store_task *store_task_new(struct call *c, enum store_op op, void (*finish)(struct store_task *t), struct err *err)
{
    struct store_task *t = calloc(1, sizeof *t);
    if (!t) {
        err_set(err, ERR_MEMORY, "Out of memory.");
        return NULL;
    }
    t->call = c;
    t->finish = finish;
    t->request.op = op;
    return t;
}

bool store_task_start(struct store_task *t, struct err *err)
{
    struct call *c = t->call;
    t->request.done = on_task_done;
    t->request.user = t;
    c->in_worker = true;
    if (store_submit(c->server->lasting->store, &t->request, err))
        return true;
    c->in_worker = false;
    free(t);
    return false;
}

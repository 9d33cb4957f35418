/* Starting, running and ending the server; see serve.h. */
#include "serve/serve.h"

#include "base/clock.h"
#include "base/log.h"
#include "serve/lasting.h"
#include "serve/sessions.h"
#include "serve/call.h"

#include <malloc.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define WORKERS          4
#define TICK_MS          20
#define TICKS_A_SECOND   (1000 / TICK_MS)
#define DRAIN_POLL_MS    20
#define HAND_OVER_MS     1000 /* who was accepted has so long to ask */
#define CUT_POLLS        25   /* half a second for last words */
#define HOUSEKEEPING_S   1
#define HEADER_BYTES_MAX ((size_t)32 << 10)
#define STREAM_BYTES_MAX ((size_t)16 << 20) /* unsent; streams stop making text long before: see stream_ahead */
#define STREAM_AHEAD_MAX ((size_t)64 << 10)
#define STREAM_AHEAD_MIN ((size_t)1 << 10)
#define IDLE_TIMEOUT_S   75
#define STALL_S          30
#define FULL_TOLD_NS     60000000000u /* between two warnings that clients wait to connect */

static uint64_t read_u64(const char *path)
{
    FILE *f = fopen(path, "re");
    unsigned long long v = 0;
    if (f) {
        if (fscanf(f, "%llu", &v) != 1)
            v = 0; /* "max" */
        fclose(f);
    }
    return v;
}

uint64_t serve_memory_auto(void)
{
    uint64_t machine = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t limits[] = {read_u64("/sys/fs/cgroup/memory.max"), read_u64("/sys/fs/cgroup/memory/memory.limit_in_bytes")};
    for (size_t i = 0; i < 2; i++)
        if (limits[i] && limits[i] < machine)
            machine = limits[i];
    return machine / 10 * 9;
}

/* ---- the gate to the http thread ---- */

/* Engines and the loader go on while the http server is closed. */
static bool enter_http(struct server *s)
{
    pthread_rwlock_rdlock(&s->http_gate);
    if (!s->http_ended)
        return true;
    pthread_rwlock_unlock(&s->http_gate);
    return false;
}

static void leave_http(struct server *s)
{
    pthread_rwlock_unlock(&s->http_gate);
}

/* ---- workers ---- */

void call_go_on(struct call *c)
{
    struct server *s = c->server;
    if (queue_put(s->work, c))
        return;
    if (!c->load_error.code)
        call_set_busy(&c->load_error);
    if (!enter_http(s))
        return;
    http_post(s->http, call_worked, c);
    leave_http(s);
}

static void work_ready(struct registry_waiter *w, struct served *m, const struct err *err)
{
    struct call *c = (struct call *)w;
    if (m)
        c->model = m;
    else
        c->load_error = *err;
    c->load_waited_ns = clock_mono_ns() - c->received_ns;
    call_go_on(c);
}

/* {"profile":"fp16"} of a load. */
static bool parse_load(struct call *c, struct err *err)
{
    struct load_body {
        struct str profile;
    } body = {0};
    static const struct field table[] = {
        {.name = "profile", .kind = FIELD_STRING, .offset = offsetof(struct load_body, profile)}, {0}};
    if (c->body.len == 0)
        return true;
    json_t *root = json_loadb(c->body.data, c->body.len, 0, NULL);
    bool ok = root && json_is_object(root);
    if (!ok)
        err_set(err, ERR_INVALID_REQUEST, "The body must be a JSON object such as {\"profile\":\"fp16\"}.");
    ok = ok && fields_parse(root, "request", table, NULL, &body, err);
    if (ok && body.profile.ptr) {
        c->load.profile_given = 1;
        c->load.profile = profile_from_name(body.profile.ptr, body.profile.len);
        if (c->load.profile == PROFILE_AUTO && str_equal(body.profile, STR("auto")))
            c->load.profile_given = 0;
        else if (c->load.profile == PROFILE_AUTO)
            ok = err_set_param(err, ERR_UNSUPPORTED, "profile",
                               "'profile' is \"%.*s\"; \"auto\", \"fp16\", \"int8\", \"int4\" and \"native\" are possible.",
                               (int)body.profile.len, body.profile.ptr);
    }
    json_decref(root);
    return ok;
}

/* Nothing, or {}. */
static bool parse_nothing(const struct call *c, struct err *err)
{
    static const struct field table[] = {{0}};
    if (c->body.len == 0)
        return true;
    json_t *root = json_loadb(c->body.data, c->body.len, 0, NULL);
    bool ok = root && json_is_object(root) ? fields_parse(root, "request", table, NULL, NULL, err)
                                           : err_set(err, ERR_INVALID_REQUEST, "The body must be empty, or the object {}.");
    json_decref(root);
    return ok;
}

static bool parse_call(struct call *c, struct err *err)
{
    if (!call_hold(c, c->body.cap + api_request_bytes(buf_str(&c->body)), "The body", err))
        return false;
    if ((c->work == admin_reload || c->work == admin_reload_all || c->work == admin_unload) && !parse_nothing(c, err))
        return false;
    if (c->path_model) {
        c->model_name = str_from(c->path_model);
        return c->work != admin_load || parse_load(c, err);
    }
    if (!c->needs_model)
        return true;
    if (!api_request_parse(&c->parsed, c->kind, buf_str(&c->body), err))
        return false;
    c->has_parsed = true;
    c->model_name = c->parsed.model;
    if (c->parsed.keep_alive_s != API_NOT_GIVEN)
        c->keep_alive_s = c->parsed.keep_alive_s;
    double timeout = c->parsed.timeout_s != API_NOT_GIVEN ? c->parsed.timeout_s : c->server->config->timeout_s;
    if (timeout > 0)
        c->deadline_ns = c->received_ns + (uint64_t)(timeout * 1e9);
    return true;
}

/* One pass over a call: parse, get the model (perhaps come back later), do its work. */
static void work_on(struct call *c)
{
    struct err err = {0};
    int waiting;
    if (c->saving) {
        sessions_save(c);
        return; /* the store's thread has it now */
    }
    c->waiter.ready = work_ready;
    if (c->work == admin_reload_all && (c->owned || parse_nothing(c, &c->load_error)) && admin_reload_next(c))
        return; /* the loader thread has it now, or another worker already: not a byte of it may be touched */
    bool ok = c->load_error.code == ERR_NONE && !atomic_load(&c->closed);
    if (ok && !c->model && !c->has_parsed)
        ok = parse_call(c, &err);
    if (ok && c->parsed.session_id.ptr && !c->session) {
        ok = sessions_take(c, &waiting, &err);
        if (waiting)
            return; /* it comes back when it is its turn */
    }
    if (ok && c->needs_model && !c->model) {
        struct registry *r = c->server->registry;
        struct served *m = NULL;
        if (c->work == admin_reload)
            waiting = registry_reload(r, c->model_name, &c->waiter, &err);
        else
            m = registry_acquire(r, c->model_name, &c->load, &c->waiter, &waiting, &err);
        if (waiting)
            return; /* as above */
        c->model = m;
        ok = m != NULL;
    }
    if (ok && c->session)
        ok = sessions_join(c, &err);
    if (ok)
        ok = c->work(c, &err);
    if (!ok && err.code)
        c->load_error = err;
    http_post(c->server->http, call_worked, c);
}

static void *worker_main(void *arg)
{
    struct server *s = arg;
    struct call *c;
    while ((c = queue_wait(s->work, -1)))
        work_on(c);
    return NULL;
}

/* ---- http thread's timer, engine's wake ---- */

struct ticker {
    struct server *server;
    unsigned n;
    uint64_t full_told_ns; /* 0: never */
};

/* Who waits in the backlog is not heard of otherwise. */
static void tell_full(struct ticker *t)
{
    unsigned n = http_full(t->server->http), asked = t->server->config->connections_max;
    uint64_t now_ns = clock_mono_ns();
    if (!n || (t->full_told_ns && now_ns - t->full_told_ns < FULL_TOLD_NS))
        return;
    t->full_told_ns = now_ns;
    log_event(LOG_WARN, "connections_full", "connections=%u max_connections=%u note=\"%s\"", n, asked,
              n < asked ? "clients wait until a connection ends; memory (--memory) or open files (ulimit -n) leave room for no "
                          "more, though --max-connections does"
                        : "clients wait until a connection ends; --max-connections may be raised");
}

static void tick(void *arg)
{
    struct ticker *t = arg;
    stream_tick(t->server);
    if (++t->n % TICKS_A_SECOND == 0) {
        tell_full(t);
        registry_tick(t->server->registry);
        lasting_tick(t->server);
    }
    http_timer(t->server->http, TICK_MS, tick, t);
}

static void on_progress(void *arg, struct served *m)
{
    struct server *s = arg;
    if (atomic_exchange(&m->progress_posted, 1) || !enter_http(s))
        return;
    struct progress *p = malloc(sizeof *p);
    CHECK(p);
    *p = (struct progress){s, m};
    http_post(s->http, stream_model_progress, p);
    leave_http(s);
}

struct errand {
    void (*fn)(struct server *s, void *arg);
    struct server *server;
    void *arg;
    sem_t done;
};

static void run_errand(void *arg)
{
    struct errand *e = arg;
    e->fn(e->server, e->arg);
    sem_post(&e->done);
}

/* Runs fn on the http thread, which must not have ended; when this returns, it and everything posted before have run. */
static void on_http(struct server *s, void (*fn)(struct server *s, void *arg), void *arg)
{
    struct errand e = {.fn = fn, .server = s, .arg = arg};
    sem_init(&e.done, 0, 0);
    http_post(s->http, run_errand, &e);
    while (sem_wait(&e.done) != 0) {
    }
    sem_destroy(&e.done);
}

static void nothing(struct server *s, void *arg)
{
    (void)s;
    (void)arg;
}

/* Everything posted before has run when this returns. */
static void settle(void *arg)
{
    struct server *s = arg;
    if (!enter_http(s))
        return; /* what was posted has run, or never will */
    on_http(s, nothing, NULL);
    leave_http(s);
}

static void close_http(struct server *s)
{
    pthread_rwlock_wrlock(&s->http_gate); /* whoever waits for the http thread has its answer first */
    s->http_ended = true;
    pthread_rwlock_unlock(&s->http_gate);
    http_close(s->http);
    s->http = NULL;
}

/* ---- life ---- */

static void block_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static void count_calls(struct server *s, void *arg)
{
    size_t *n = arg;
    for (struct call *c = s->calls; c; c = c->next)
        *n += c->generates || c->in_worker;
}

static size_t calls_under_way(struct server *s)
{
    size_t n = 0;
    on_http(s, count_calls, &n);
    return n;
}

/* Sleeps until a signal that ends the server; looks after what may change meanwhile. */
static void wait_for_signal(struct server *s, const sigset_t *set)
{
    for (;;) {
        struct timespec wait = {HOUSEKEEPING_S, 0};
        int number = sigtimedwait(set, NULL, &wait);
        if (number == SIGTERM || number == SIGINT)
            return;
        if (number == SIGHUP)
            log_event(LOG_INFO, "hangup", "action=\"read aliases\"");
        aliases_refresh(names_aliases(s->names), number == SIGHUP ? ALIASES_NOW : ALIASES_IF_CHANGED);
    }
}

static void cut_calls(struct server *s, void *arg)
{
    (void)arg;
    struct call *next;
    for (struct call *c = s->calls; c; c = next) {
        next = c->next;
        if (c->generates && c->request && !atomic_load(&c->closed))
            call_abort(c, ERR_DRAINING,
                       "The server was told to end, and did before this answer was done. Ask another instance, "
                       "or again when it is back.");
    }
}

/* Whoever still waits for an answer is told why there is none, as far as that goes at once. */
static void cut_off(struct server *s)
{
    on_http(s, cut_calls, NULL);
    struct timespec poll = {0, DRAIN_POLL_MS * 1000000};
    for (int i = 0; i < CUT_POLLS && calls_under_way(s); i++)
        nanosleep(&poll, NULL);
}

enum drain { DRAIN_WHOLE, DRAIN_CUT };

/* Where somebody else listens on in this server's place, nothing that was sent to this one is refused: not what comes on a
 * connection that it accepted a moment ago, either. */
static bool may_ask_yet(const struct server *s, uint64_t begin_ns)
{
    return http_shares_listener(s->http) && http_connections(s->http) &&
           clock_mono_ns() - begin_ns < (uint64_t)HAND_OVER_MS * 1000000;
}

/* Until what runs has ended, the drain's time is over, or a second signal comes. */
static enum drain drain(struct server *s, const sigset_t *set)
{
    atomic_store(&s->draining, 1);
    log_event(LOG_INFO, "draining", "limit_s=%u", s->config->drain_s);
    uint64_t begin = clock_mono_ns(), end = begin + (uint64_t)s->config->drain_s * 1000000000u;
    size_t left;
    if (http_shares_listener(s->http))
        http_hand_over(s->http);
    while (((left = calls_under_way(s)) || may_ask_yet(s, begin)) && clock_mono_ns() < end) {
        struct timespec wait = {0, DRAIN_POLL_MS * 1000000};
        int number = sigtimedwait(set, NULL, &wait);
        if (number == SIGTERM || number == SIGINT)
            break;
    }
    if (left) {
        log_event(LOG_WARN, "drain_cut", "requests=%zu", left);
        cut_off(s);
    }
    return left ? DRAIN_CUT : DRAIN_WHOLE;
}

/* So that all connections together, each a stream whose client reads nothing, keep within half of the http server's memory:
 * a buffer is up to twice as large as what is in it, and one round more than the bound. */
static size_t stream_ahead(const struct server *s)
{
    uint64_t bytes = (s->memory.requests - s->request_bytes_max) / 2 / (4 * (uint64_t)s->memory.n_connections);
    return bytes > STREAM_AHEAD_MAX ? STREAM_AHEAD_MAX : bytes < STREAM_AHEAD_MIN ? STREAM_AHEAD_MIN : (size_t)bytes;
}

static bool open_all(struct server *s, struct err *err)
{
    const struct serve_config *c = s->config;
    struct backend_options backend = {.n_threads = c->threads, .isa = c->isa};
    memory_plan_make(c, &s->memory);
    if (s->memory.total < s->memory.process)
        return err_set(err, ERR_USAGE,
                       "--memory is %llu bytes, and the process itself takes %llu before any model. With a unit: --memory 12G.",
                       (unsigned long long)s->memory.total, (unsigned long long)s->memory.process);
    s->request_bytes_max = s->memory.requests / 2; /* the other half is the http server's */
    s->stream_ahead_bytes = stream_ahead(s);
    s->backend = backend_open_cpu(&backend, err);
    s->names = s->backend ? names_open(c->models_dir, c->data_dir, err) : NULL;
    if (!s->names)
        return false;
    struct registry_options registry = {.config = c,
                                        .backend = s->backend,
                                        .names = s->names,
                                        .memory = &s->memory,
                                        .progress = on_progress,
                                        .settle = settle,
                                        .arg = s};
    s->registry = registry_open(&registry, err);
    s->work = queue_new(s->memory.n_connections + 1, err);
    if (!s->registry || !s->work || !lasting_open(s, err))
        return false;
    struct http_options http = {.host = c->host,
                                .port = c->port,
                                .connections_max = s->memory.n_connections,
                                .body_bytes_max = c->body_bytes_max,
                                .header_bytes_max = HEADER_BYTES_MAX,
                                .stream_bytes_max = STREAM_BYTES_MAX,
                                .buffered_bytes_max = s->memory.requests - s->request_bytes_max,
                                .header_timeout_s = c->request_timeout_s,
                                .request_timeout_s = c->request_timeout_s,
                                .idle_timeout_s = IDLE_TIMEOUT_S,
                                .stall_s = STALL_S};
    s->http = http_open(&http, routes_handle, routes_error_body, s, err);
    return s->http && lasting_start(s, err) && http_start(s->http, err);
}

static void preload(struct server *s)
{
    const char *p = s->config->preload ? s->config->preload : "";
    while (*p) {
        size_t n = strcspn(p, ",");
        struct str name = {p, n};
        while (name.len && name.ptr[0] == ' ') {
            name.ptr++;
            name.len--;
        }
        if (name.len)
            registry_preload(s->registry, name);
        p += n + (p[n] == ',');
    }
}

/* It may come later; but a slip in its name is the likelier reason. */
static bool is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* For a person at a terminal: where it is and a line to paste. */
static void welcome(struct server *s)
{
    struct catalog all = {0};
    names_list(s->names, &all, NULL);
    const char *host = s->config->host, *model = all.n ? all.entries[0].id : NULL;
    if (catalog_get(&all, STR("smollm2")))
        model = "smollm2";
    if (strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0)
        host = "127.0.0.1";
    printf(strchr(host, ':') ? "inferd is ready: http://[%s]:%u\n" : "inferd is ready: http://%s:%u\n", host,
           http_port(s->http));
    if (model)
        printf(
            strchr(host, ':')
                ? "Try:  curl -N 'http://[%s]:%u/chat' %s-d '{\"model\":\"%s\",\"stream\":true,\"temperature\":0,\"messages\":"
                  "[{\"role\":\"user\",\"content\":\"What is the capital of France?\"}]}'\n"
                : "Try:  curl -N http://%s:%u/chat %s-d '{\"model\":\"%s\",\"stream\":true,\"temperature\":0,\"messages\":"
                  "[{\"role\":\"user\",\"content\":\"What is the capital of France?\"}]}'\n",
            host, http_port(s->http), s->config->n_api_keys ? "-H 'Authorization: Bearer KEY' " : "", model);
    else
        printf("There is no model yet%s. Fetch one (inferd pull smollm2), or put a folder with config.json and *.safetensors, "
               "or a .gguf file, into %s.\n",
               is_folder(s->config->models_dir) ? "" : ", and no such models folder", s->config->models_dir);
    fflush(stdout);
    catalog_release(&all);
}

static void start_tick(void *arg)
{
    struct ticker *t = arg;
    http_timer(t->server->http, TICK_MS, tick, t);
}

int serve_run(const struct serve_config *config)
{
    mallopt(M_ARENA_MAX, 2); /* many arenas keep freed memory apart from each other: the ceiling would be all slack */
    sigset_t signals;
    block_signals(&signals);
    static struct server s; /* threads that are cut off at the end still see it */
    s = (struct server){.config = config, .started_ns = clock_mono_ns(), .http_gate = PTHREAD_RWLOCK_INITIALIZER};
    struct err err = {0};
    if (!open_all(&s, &err)) {
        log_event(LOG_ERROR, "start_failed", "error=\"%s\"", err.text);
        return err_info(err.code)->exit_code;
    }
    pthread_t workers[WORKERS];
    for (size_t i = 0; i < WORKERS; i++)
        CHECK(pthread_create(&workers[i], NULL, worker_main, &s) == 0);
    static struct ticker ticker;
    ticker.server = &s;
    http_post(s.http, start_tick, &ticker);
    log_event(LOG_INFO, "listening", "address=http://%s%s%s:%u mode=%s threads=%u memory_mib=%.0f models_dir=\"%s\"",
              strchr(config->host, ':') ? "[" : "", config->host, strchr(config->host, ':') ? "]" : "", http_port(s.http),
              backend_mode(s.backend), backend_threads(s.backend), (double)s.memory.total / (1 << 20), config->models_dir);
    if (!http_on_loopback(s.http) && config->n_api_keys == 0)
        log_event(LOG_WARN, "open_to_network",
                  "note=\"no key is asked for: whoever reaches this address may use, load and remove models; ask for one "
                  "(--api-key), or listen on 127.0.0.1\"");
    if (!is_folder(config->models_dir))
        log_event(LOG_WARN, "no_models_dir", "models_dir=\"%s\" note=\"there is no such folder (--models-dir)\"",
                  config->models_dir);
    welcome(&s);
    preload(&s);
    wait_for_signal(&s, &signals);
    if (drain(&s, &signals) == DRAIN_WHOLE) {
        queue_close(s.work);
        for (size_t i = 0; i < WORKERS; i++)
            pthread_join(workers[i], NULL);
        lasting_stop(&s, LASTING_ALL);
        close_http(&s);
        lasting_close(&s);
    } else {
        lasting_stop(&s, LASTING_JOBS);
    }
    log_event(LOG_INFO, "stopped", "uptime_s=%.1f", (double)(clock_mono_ns() - s.started_ns) / 1e9);
    /* What is left (calls that were cut off, models) goes with the process: nothing is written at the end. */
    return 0;
}

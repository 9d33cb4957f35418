/* The store's thread, its queue, and what the places share; see store.h. */
#include "store/store.h"

#include "base/clock.h"
#include "base/metrics.h"
#include "base/queue.h"
#include "base/rand.h"
#include "store/impl.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#define WHERE_BYTES_MAX 4096

struct store {
    const struct place *place;
    void *self;
    struct queue *queue;
    pthread_t thread;
    bool started;
    atomic_bool closing;
    struct metric *update_seconds;
    pthread_mutex_t lock; /* of what follows */
    void (*watch)(void *user, const char *job_id);
    void *watch_user;
    struct store_state state;
};

static const char *const status_names[] = {"queued", "running", "completed", "failed", "cancelled"};

const char *store_status_name(enum store_status status)
{
    return (unsigned)status < STORE_STATUS_COUNT ? status_names[status] : "unknown";
}

enum store_status store_status_parse(struct str name)
{
    unsigned i = 0;
    while (i < STORE_STATUS_COUNT && !str_equal(name, str_from(status_names[i])))
        i++;
    return (enum store_status)i;
}

/* ---- what places share ---- */

bool place_text(struct store_request *r, struct str *out, const void *bytes, size_t len)
{
    char *copy = arena_alloc(&r->arena, len + 1);
    if (!copy) {
        r->ok = err_set(&r->err, ERR_MEMORY, "The store's answer is over %zu bytes; ask for fewer with 'limit'.",
                        STORE_RESULT_BYTES_MAX);
        return false;
    }
    if (len)
        memcpy(copy, bytes, len);
    *out = (struct str){copy, len};
    return true;
}

static void *more(struct store_request *r, void *list, size_t n, size_t n_max, size_t size)
{
    if (!list && !(list = arena_alloc_array(&r->arena, n_max, size)))
        r->ok = err_set(&r->err, ERR_MEMORY, "Out of memory for a list of %zu.", n_max);
    return n < n_max ? list : NULL;
}

struct store_job *place_add_job(struct store_request *r, size_t n_max)
{
    void *list = more(r, r->jobs, r->n_jobs, n_max, sizeof *r->jobs);
    if (!list)
        return NULL;
    r->jobs = list;
    return &r->jobs[r->n_jobs++];
}

struct store_session *place_add_session(struct store_request *r, size_t n_max)
{
    void *list = more(r, r->sessions, r->n_sessions, n_max, sizeof *r->sessions);
    if (!list)
        return NULL;
    r->sessions = list;
    return &r->sessions[r->n_sessions++];
}

int64_t place_now_ms(void)
{
    return (int64_t)(clock_wall_ns() / 1000000u);
}

int64_t place_mono_ms(void)
{
    return (int64_t)(clock_mono_ns() / 1000000u);
}

void place_job_id(char out[STORE_JOB_ID_BYTES], int64_t now_ms)
{
    static _Atomic int64_t last;
    int64_t seen = atomic_load(&last), mine;
    do
        mine = now_ms > seen ? now_ms : seen + 1;
    while (!atomic_compare_exchange_weak(&last, &seen, mine));
    snprintf(out, STORE_JOB_ID_BYTES, "job-%012llx-%08x", (unsigned long long)mine & 0xffffffffffffu,
             (unsigned)(rand_system_u64() & 0xffffffffu));
}

bool place_no_job(struct err *err, struct str id)
{
    return err_set(err, ERR_NOT_FOUND, "There is no job '%.*s'. GET /jobs lists those that are kept.",
                   (int)(id.len < 128 ? id.len : 128), id.ptr);
}

bool place_no_session(struct err *err, struct str id)
{
    return err_set(err, ERR_NOT_FOUND,
                   "There is no session '%.*s': it was never used, was deleted, or its time of inactivity "
                   "(--session-ttl) is over.",
                   (int)id.len, id.ptr);
}

bool place_fenced(struct err *err, struct str id, uint64_t token)
{
    return err_set(err, ERR_CONFLICT,
                   "Job %.*s is no longer held under token %llu: it is over, or another instance has taken "
                   "it.",
                   (int)id.len, id.ptr, (unsigned long long)token);
}

bool place_jobs_full(struct err *err)
{
    return err_set(err, ERR_QUEUE_FULL,
                   "%d jobs are queued or running, which is the most that is kept; wait until one is done, "
                   "or cancel one with DELETE /jobs/{id}.",
                   STORE_JOBS_ACTIVE_MAX);
}

bool place_sessions_full(struct err *err)
{
    return err_set(err, ERR_RATE_LIMIT,
                   "%d sessions are kept, which is the most; delete some with DELETE /sessions/{id}, or "
                   "wait until some are over (--session-ttl).",
                   STORE_SESSIONS_MAX);
}

bool place_session_changed(struct err *err, struct str id)
{
    return err_set(err, ERR_CONFLICT, "Session '%.*s' was changed or deleted by another request meanwhile; ask again.",
                   (int)id.len, id.ptr);
}

bool place_lease_held(struct err *err, struct str key, int64_t ms)
{
    return err_set(err, ERR_CONFLICT, "'%.*s' is held by another instance for %lld ms more.",
                   (int)(key.len < 256 ? key.len : 256), key.ptr, (long long)ms);
}

bool place_value_taken(struct err *err, struct str key)
{
    return err_set(err, ERR_CONFLICT, "'%.*s' was claimed by another one meanwhile.", (int)(key.len < 256 ? key.len : 256),
                   key.ptr);
}

/* ---- news from the place ---- */

static void on_job_changed(void *store, const char *id)
{
    struct store *s = store;
    pthread_mutex_lock(&s->lock);
    void (*watch)(void *user, const char *job_id) = s->watch;
    void *user = s->watch_user;
    pthread_mutex_unlock(&s->lock);
    if (watch)
        watch(user, id);
}

static void on_available(void *store, const char *why)
{
    struct store *s = store;
    pthread_mutex_lock(&s->lock);
    s->state.available = !*why;
    snprintf(s->state.why, sizeof s->state.why, "%s", why);
    pthread_mutex_unlock(&s->lock);
}

static void on_reconnected(void *store)
{
    struct store *s = store;
    pthread_mutex_lock(&s->lock);
    s->state.n_reconnects++;
    pthread_mutex_unlock(&s->lock);
}

/* ---- the thread ---- */

static bool too_long(struct store_request *r)
{
    const struct str *texts[] = {&r->text, &r->detail, &r->files}, *names[] = {&r->key, &r->model, &r->owner};
    for (size_t i = 0; i < 3; i++) {
        if (texts[i]->len > STORE_TEXT_BYTES_MAX)
            return !err_set(&r->err, ERR_TOO_LARGE, "A text of %zu bytes is to be kept; at most %zu are possible.",
                            texts[i]->len, STORE_TEXT_BYTES_MAX);
        if (names[i]->len > STORE_KEY_BYTES_MAX)
            return !err_set(&r->err, ERR_INVALID_REQUEST, "A name has %zu bytes; at most %d are possible.", names[i]->len,
                            STORE_KEY_BYTES_MAX);
    }
    if (r->id.len > STORE_SESSION_ID_BYTES_MAX)
        return !err_set(&r->err, ERR_INVALID_REQUEST, "An id has %zu bytes; at most %d are possible.", r->id.len,
                        STORE_SESSION_ID_BYTES_MAX);
    return false;
}

static void carry_out(struct store *s, struct store_request *r)
{
    arena_init(&r->arena, STORE_RESULT_BYTES_MAX);
    r->err = (struct err){0};
    r->jobs = NULL;
    r->sessions = NULL;
    r->n_jobs = r->n_sessions = r->n_queued = r->n_running = 0;
    r->found = (struct str){0};
    r->created = 0;
    r->limit = r->limit > STORE_LIST_MAX ? STORE_LIST_MAX : r->limit;
    r->ok = true;
    uint64_t began = clock_mono_ns();
    if (too_long(r))
        r->ok = false;
    else
        s->place->run(s->self, r);
    if (r->op == STORE_JOB_UPDATE && r->ok)
        metric_observe(s->update_seconds, (double)(clock_mono_ns() - began) / 1e9);
    r->done(r);
}

static void *thread_main(void *arg)
{
    struct store *s = arg;
    int timeout = 0;
    sigset_t all; /* a broken connection is an error here, not SIGPIPE; other signals are other threads' */
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    for (;;) {
        struct pollfd fds[2] = {{queue_event_fd(s->queue), POLLIN, 0}, {s->place->fd(s->self), POLLIN, 0}};
        poll(fds, fds[1].fd >= 0 ? 2 : 1, timeout);
        queue_event_clear(s->queue);
        bool closing = atomic_load(&s->closing); /* before the queue is emptied: nothing is put in afterwards */
        struct store_request *r;
        while ((r = queue_take(s->queue)))
            carry_out(s, r);
        if (closing)
            return NULL;
        timeout = s->place->idle(s->self);
    }
}

static bool make_dir(const char *path, struct err *err)
{
    char part[WHERE_BYTES_MAX];
    snprintf(part, sizeof part, "%s", path);
    for (char *p = part + 1;; p++) {
        if (*p && *p != '/')
            continue;
        char was = *p;
        *p = 0;
        if (mkdir(part, 0777) != 0 && errno != EEXIST)
            return err_set(err, ERR_IO, "Cannot make the folder '%s' (--data-dir): %m.", part);
        if (!was)
            return true;
        *p = was;
    }
}

/* Which place a URL means, and where that is. */
static const struct place *choose(const char *url, const char *data_dir, char where[WHERE_BYTES_MAX], struct err *err)
{
    if (strcmp(url, "memory") == 0) {
        snprintf(where, WHERE_BYTES_MAX, ":memory:");
        return &place_sqlite;
    }
    if (strcmp(url, "sqlite") == 0 || strcmp(url, "") == 0) {
        if (!make_dir(data_dir, err))
            return NULL;
        snprintf(where, WHERE_BYTES_MAX, "%s/store.sqlite", data_dir);
        return &place_sqlite;
    }
    if (strncmp(url, "sqlite:", 7) == 0 && url[7]) {
        snprintf(where, WHERE_BYTES_MAX, "%s", url + 7);
        return &place_sqlite;
    }
    if (strncmp(url, "redis", 5) == 0 && strstr(url, "://")) {
        snprintf(where, WHERE_BYTES_MAX, "%s", url);
        return &place_redis;
    }
    err_set(err, ERR_USAGE,
            "--store: '%.32s' is no store; possible are 'sqlite', 'sqlite:PATH', 'memory' and "
            "'redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]'.",
            url);
    return NULL;
}

struct store *store_open(const char *url, const char *data_dir, struct err *err)
{
    static const double bounds[] = {0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1};
    char where[WHERE_BYTES_MAX];
    const struct place *place = choose(url, data_dir, where, err);
    if (!place)
        return NULL;
    struct store *s = calloc(1, sizeof *s);
    if (!s) {
        err_set(err, ERR_MEMORY, "Out of memory.");
        return NULL;
    }
    s->place = place;
    pthread_mutex_init(&s->lock, NULL);
    s->state.kind = strcmp(where, ":memory:") == 0 ? "memory" : place->kind;
    s->state.shared = place->shared;
    s->state.available = 1;
    s->update_seconds = metric_get(METRIC_HISTOGRAM, "inferd:job_update_seconds", "What keeping an update of a job takes.", "",
                                   bounds, sizeof bounds / sizeof *bounds);
    struct place_news news = {s, on_job_changed, on_available, on_reconnected};
    if (!(s->queue = queue_new(STORE_QUEUE_MAX, err)) || !(s->self = place->open(where, &news, err))) {
        store_close(s);
        return NULL;
    }
    s->started = pthread_create(&s->thread, NULL, thread_main, s) == 0;
    if (!s->started) {
        err_set(err, ERR_IO, "Cannot start the store's thread.");
        store_close(s);
        return NULL;
    }
    return s;
}

void store_stop(struct store *s)
{
    if (!s->started)
        return;
    s->started = false;
    queue_close(s->queue);
    atomic_store(&s->closing, true);
    queue_close(s->queue); /* wakes the thread once more: now it knows that nothing comes any more */
    pthread_join(s->thread, NULL);
}

void store_close(struct store *s)
{
    if (!s)
        return;
    store_stop(s);
    if (s->self)
        s->place->close(s->self);
    queue_free(s->queue);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

bool store_submit(struct store *s, struct store_request *r, struct err *err)
{
    if (queue_put(s->queue, r))
        return true;
    if (atomic_load(&s->closing))
        return err_set(err, ERR_DRAINING, "The server is shutting down and its store is closed; ask another instance.");
    return err_set(err, ERR_UNAVAILABLE, "%d operations of the store are waiting already; try again.", STORE_QUEUE_MAX);
}

static void on_called(struct store_request *r)
{
    sem_post(r->user);
}

bool store_call(struct store *s, struct store_request *r, struct err *err)
{
    sem_t sem;
    sem_init(&sem, 0, 0);
    r->done = on_called;
    r->user = &sem;
    bool ok = store_submit(s, r, err);
    if (ok) {
        while (sem_wait(&sem) != 0) {
        }
        ok = r->ok;
        if (!ok && err)
            *err = r->err;
    }
    sem_destroy(&sem);
    return ok;
}

void store_request_release(struct store_request *r)
{
    arena_release(&r->arena);
    r->jobs = NULL;
    r->sessions = NULL;
    r->n_jobs = r->n_sessions = 0;
    r->found = (struct str){0};
}

void store_watch(struct store *s, void (*fn)(void *user, const char *job_id), void *user)
{
    pthread_mutex_lock(&s->lock);
    s->watch = fn;
    s->watch_user = user;
    pthread_mutex_unlock(&s->lock);
}

void store_state(struct store *s, struct store_state *out)
{
    pthread_mutex_lock(&s->lock);
    *out = s->state;
    pthread_mutex_unlock(&s->lock);
    out->n_waiting = queue_len(s->queue);
}

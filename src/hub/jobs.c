/* The jobs' thread: claims, pulls, writes down; see jobs.h. */
#include "hub/jobs.h"

#include "base/clock.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define DETAIL_BYTES_MAX ((size_t)8 << 10)
#define FILES_BYTES_MAX  ((size_t)4 << 20)
#define MS               ((uint64_t)1000000)

/* A job that runs here. */
struct slot {
    struct slot *next;
    struct jobs *jobs;
    char id[STORE_JOB_ID_BYTES];
    struct job_request request;
    struct job_texts texts;
    struct hub_pull *pull;
    uint64_t token, started_ns;
    uint64_t written_ns;             /* when the record was last written or tried */
    uint64_t bytes_seen, total_seen; /* never shown to fall */
    bool stopping, lost, cancelled;  /* asked to stop; no longer ours; somebody cancelled it */
    bool unkept;                     /* the store could not take the last write */
    bool load_begun;
    /* Under jobs->lock: what the pull's thread told, and the jobs' thread has not written yet. */
    bool dirty;
    bool loading;             /* the pull has ended, its model is to be loaded */
    enum store_status status; /* RUNNING until the end of the pull and the load; then the end */
    const char *phase;
    double progress;
    struct buf detail, files;
    struct err err;
    char snapshot_dir[HUB_DIR_BYTES_MAX], entry[HUB_PATH_BYTES_MAX];
    uint64_t bytes_fetched;
};

struct jobs {
    struct jobs_config config;
    char instance[STORE_INSTANCE_BYTES];
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool closing, woken, stopped;
    size_t n_queued, n_running;
    struct slot *slots; /* the jobs' thread's, which changes the list under the lock */
};

/* ---- texts of a record ---- */

void job_create_request(const struct job_request *job, struct job_texts *texts, struct store_request *r)
{
    char ref[HUB_REF_TEXT_BYTES];
    hub_ref_format(&job->ref, ref);
    snprintf(texts->request, sizeof texts->request, "%s\t%s\t%u", ref, job->profile, job->preload ? 1u : 0u);
    snprintf(texts->key, sizeof texts->key, "pull %s", texts->request);
    snprintf(texts->model, sizeof texts->model, "%s%s%s", job->ref.repo, job->ref.quant[0] ? ":" : "", job->ref.quant);
    *r = (struct store_request){.op = STORE_JOB_CREATE,
                                .key = str_from(texts->key),
                                .model = str_from(texts->model),
                                .text = str_from(texts->request),
                                .ttl_ms = JOBS_SAME_MS};
}

bool job_read_request(const struct store_job *record, struct job_request *out, struct err *err)
{
    char text[sizeof(struct job_texts)];
    snprintf(text, sizeof text, "%.*s", (int)record->request.len, record->request.ptr);
    char *profile = strchr(text, '\t'), *preload = profile ? strchr(profile + 1, '\t') : NULL;
    if (!preload)
        return err_set(err, ERR_INTERNAL, "The record of job %s does not say what to pull: '%.200s'.", record->id, text);
    *profile = *preload = 0;
    *out = (struct job_request){.preload = preload[1] == '1'};
    snprintf(out->profile, sizeof out->profile, "%s", profile + 1);
    return hub_ref_parse(text, &out->ref, err);
}

static void write_time(struct buf *out, const char *name, int64_t ms)
{
    char text[CLOCK_TEXT_BYTES];
    if (ms)
        clock_format_rfc3339((uint64_t)ms * MS, text);
    buf_printf(out, ms ? ",\"%s\":\"%s\"" : ",\"%s\":null", name, text);
}

static void write_text(struct buf *out, const char *name, struct str text)
{
    buf_printf(out, ",\"%s\":", name);
    if (text.len)
        buf_append_json(out, text);
    else
        buf_append_str(out, STR("null"));
}

void job_write(struct buf *out, const struct store_job *j)
{
    struct job_request request = {0};
    bool known = job_read_request(j, &request, NULL);
    buf_printf(out, "{\"job_id\":\"%s\",\"kind\":\"pull\",\"status\":\"%s\",\"model\":", j->id, store_status_name(j->status));
    buf_append_json(out, j->model);
    write_text(out, "revision", str_from(known ? request.ref.revision : ""));
    write_text(out, "profile", str_from(request.profile));
    buf_printf(out, ",\"preload\":%s,\"progress\":%.6g,", request.preload ? "true" : "false", j->progress);
    buf_append_str(out, j->detail.len ? j->detail
                                      : STR("\"downloaded_bytes\":0,\"total_bytes\":0,\"bytes_per_second\":0,"
                                            "\"eta_seconds\":null,\"fetched_bytes\":0,\"retries\":0,\"commit\":null,"
                                            "\"waiting_for\":null,\"phase\":null,\"error_code\":null,\"preload_error\":null"));
    write_text(out, "error", j->error);
    buf_printf(out, ",\"cancel_requested\":%s,\"attempts\":%llu", j->cancel ? "true" : "false", (unsigned long long)j->claims);
    write_text(out, "instance", j->owner);
    write_time(out, "created_at", j->created_ms);
    write_time(out, "updated_at", j->changed_ms);
    write_time(out, "finished_at", j->finished_ms);
    if (j->files.ptr) {
        buf_append_str(out, STR(",\"files\":"));
        buf_append_str(out, j->files.len ? j->files : STR("[]"));
    }
    buf_append_char(out, '}');
}

/* "name":123 of an earlier detail; 0 when it is not there. */
static uint64_t detail_number(struct str detail, const char *name)
{
    char text[DETAIL_BYTES_MAX], key[64];
    snprintf(text, sizeof text, "%.*s", (int)(detail.len < sizeof text ? detail.len : sizeof text - 1), detail.ptr);
    snprintf(key, sizeof key, "\"%s\":", name);
    const char *at = strstr(text, key);
    return at ? strtoull(at + strlen(key), NULL, 10) : 0;
}

static void write_detail(struct slot *s, const struct hub_progress *p)
{
    struct buf *out = &s->detail;
    if (p->bytes_done > s->bytes_seen)
        s->bytes_seen = p->bytes_done;
    if (p->bytes_total)
        s->total_seen = p->bytes_total;
    if (s->total_seen && s->bytes_seen > s->total_seen)
        s->bytes_seen = s->total_seen;
    buf_clear(out);
    buf_printf(out, "\"downloaded_bytes\":%llu,\"total_bytes\":%llu,\"bytes_per_second\":%.0f,\"eta_seconds\":",
               (unsigned long long)s->bytes_seen, (unsigned long long)s->total_seen, p->bytes_per_s);
    buf_printf(out, p->eta_s >= 0 ? "%.1f" : "null", p->eta_s);
    buf_printf(out, ",\"fetched_bytes\":%llu,\"retries\":%llu", (unsigned long long)p->bytes_fetched,
               (unsigned long long)p->n_retries);
    write_text(out, "commit", str_from(p->commit));
    write_text(out, "waiting_for", str_from(p->waiting_for));
}

static void write_files(struct slot *s, const struct hub_progress *p)
{
    struct buf *out = &s->files;
    buf_clear(out);
    buf_append_char(out, '[');
    for (size_t i = 0; i < p->n_files; i++) {
        const struct hub_file_progress *f = &p->files[i];
        buf_append_str(out, i ? STR(",{\"name\":") : STR("{\"name\":"));
        buf_append_json(out, str_from(f->path));
        buf_printf(out, ",\"status\":\"%s\",\"downloaded_bytes\":%llu,\"total_bytes\":%llu", hub_file_state_name(f->state),
                   (unsigned long long)f->bytes_done, (unsigned long long)f->bytes_total);
        write_text(out, "sha256", str_from(f->sha256));
        buf_append_char(out, '}');
    }
    buf_append_char(out, ']');
}

/* ---- the pull's thread ---- */

static void on_progress(void *user, const struct hub_progress *p)
{
    struct slot *s = user;
    struct jobs *j = s->jobs;
    pthread_mutex_lock(&j->lock);
    write_detail(s, p);
    write_files(s, p);
    s->phase = hub_pull_state_name(p->state);
    s->bytes_fetched = p->bytes_fetched;
    if (p->state == HUB_PULL_COMPLETED) {
        s->loading = s->request.preload && j->config.load;
        s->status = !s->loading ? STORE_COMPLETED : s->stopping ? STORE_CANCELLED : STORE_RUNNING;
        s->phase = s->loading ? "loading" : s->phase;
        snprintf(s->snapshot_dir, sizeof s->snapshot_dir, "%s", p->snapshot_dir);
        snprintf(s->entry, sizeof s->entry, "%s", p->entry);
    } else if (p->state == HUB_PULL_FAILED || p->state == HUB_PULL_CANCELLED) {
        s->status = p->state == HUB_PULL_FAILED ? STORE_FAILED : STORE_CANCELLED;
        s->err = p->err;
    }
    if (!s->loading) /* only what is over has a progress of 1 */
        s->progress = p->fraction > s->progress ? p->fraction : s->progress;
    s->dirty = true;
    pthread_cond_signal(&j->wake);
    pthread_mutex_unlock(&j->lock);
}

/* ---- the jobs' thread ---- */

/* A load goes on, but nobody waits for it. */
static void stop_pull(struct slot *s)
{
    struct jobs *j = s->jobs;
    if (!s->stopping)
        hub_pull_cancel(s->pull);
    pthread_mutex_lock(&j->lock);
    s->stopping = true;
    if (s->loading && s->status == STORE_RUNNING)
        s->status = STORE_CANCELLED;
    pthread_mutex_unlock(&j->lock);
}

static void slot_free(struct slot *s)
{
    if (s->pull) {
        hub_pull_wait(s->pull, -1); /* its last call is over, or about to be */
        hub_pull_unref(s->pull);
    }
    buf_release(&s->detail);
    buf_release(&s->files);
    free(s);
}

static struct job_end end_of(const struct slot *s, enum store_status status)
{
    return (struct job_end){.id = s->id,
                            .model = s->texts.model,
                            .request = &s->request,
                            .status = status,
                            .snapshot_dir = s->snapshot_dir,
                            .entry = s->entry,
                            .err = &s->err,
                            .token = s->token,
                            .seconds = (double)(clock_mono_ns() - s->started_ns) / 1e9,
                            .bytes_fetched = s->bytes_fetched};
}

static void tell_end(struct jobs *j, const struct slot *s, enum store_status status)
{
    struct job_end end = end_of(s, status);
    if (j->config.ended)
        j->config.ended(j->config.user, &end);
}

static void begin_load(struct jobs *j, struct slot *s)
{
    struct job_end end = end_of(s, STORE_COMPLETED);
    s->load_begun = true;
    j->config.load(j->config.user, &end);
}

void jobs_loaded(struct jobs *j, const char *id, uint64_t token, const struct err *err)
{
    pthread_mutex_lock(&j->lock);
    for (struct slot *s = j->slots; s; s = s->next) {
        if (!s->loading || s->status != STORE_RUNNING || s->token != token || strcmp(s->id, id) != 0)
            continue;
        s->status = STORE_COMPLETED;
        s->phase = hub_pull_state_name(HUB_PULL_COMPLETED);
        s->progress = 1;
        if (err)
            s->err = *err;
        s->dirty = true;
        pthread_cond_signal(&j->wake);
    }
    pthread_mutex_unlock(&j->lock);
}

/* A pull that ended because it was told to: by whom decides what becomes of the job. */
static enum store_status status_to_write(const struct slot *s, enum store_status status)
{
    return status == STORE_CANCELLED && !s->cancelled ? STORE_QUEUED : status;
}

/* Writes the record. True when the job is no longer this slot's business. */
static bool write_slot(struct jobs *j, struct slot *s)
{
    pthread_mutex_lock(&j->lock);
    struct buf detail, files;
    buf_init(&detail, DETAIL_BYTES_MAX);
    buf_init(&files, FILES_BYTES_MAX);
    enum store_status status = s->status;
    struct store_request r = {.op = STORE_JOB_UPDATE,
                              .id = str_from(s->id),
                              .token = s->token,
                              .progress = s->progress,
                              .ttl_ms = j->config.lease_ms};
    if (s->dirty) {
        buf_append_str(&detail, buf_str(&s->detail));
        write_text(&detail, "phase", str_from(s->phase));
        write_text(&detail, "error_code", str_from(status == STORE_FAILED ? err_info(s->err.code)->code : ""));
        write_text(&detail, "preload_error", str_from(status == STORE_COMPLETED ? s->err.text : ""));
        buf_append_str(&files, buf_str(&s->files));
    }
    s->dirty = false;
    pthread_mutex_unlock(&j->lock);
    s->written_ns = clock_mono_ns();
    bool over = status != STORE_RUNNING, done = over && s->lost;
    if (!s->lost) {
        struct err err = {0};
        r.status = status_to_write(s, status);
        r.detail = detail.failed ? (struct str){0} : buf_str(&detail);
        r.files = files.failed ? (struct str){0} : buf_str(&files);
        r.text = str_from(status == STORE_FAILED ? s->err.text : "");
        if (store_call(j->config.store, &r, &err)) {
            s->cancelled |= r.jobs[0].cancel;
            if (s->cancelled && !over)
                stop_pull(s);
            if (over)
                tell_end(j, s, r.jobs[0].status);
            done = over;
            s->unkept = false;
        } else if (err.code == ERR_CONFLICT || err.code == ERR_NOT_FOUND) {
            s->lost = true;
            stop_pull(s);
            done = over;
        } else {
            pthread_mutex_lock(&j->lock);
            s->dirty = true;
            pthread_mutex_unlock(&j->lock);
            s->unkept = true;
        }
        store_request_release(&r);
    }
    buf_release(&detail);
    buf_release(&files);
    return done;
}

/* A job that cannot even begin. */
static void fail_job(struct jobs *j, const struct store_job *record, const struct err *err)
{
    struct store_request r = {.op = STORE_JOB_UPDATE,
                              .id = str_from(record->id),
                              .token = record->token,
                              .status = STORE_FAILED,
                              .text = str_from(err->text),
                              .ttl_ms = j->config.lease_ms};
    store_call(j->config.store, &r, NULL);
    store_request_release(&r);
}

static void begin_slot(struct jobs *j, const struct store_job *record)
{
    struct err err = {0};
    struct slot *s = calloc(1, sizeof *s);
    if (!s || !job_read_request(record, &s->request, &err)) {
        if (!s)
            err_set(&err, ERR_MEMORY, "Out of memory.");
        fail_job(j, record, &err);
        free(s);
        return;
    }
    struct store_request unused;
    job_create_request(&s->request, &s->texts, &unused);
    s->jobs = j;
    s->token = record->token;
    s->started_ns = s->written_ns = clock_mono_ns();
    s->status = STORE_RUNNING;
    s->progress = record->progress;
    s->bytes_seen = detail_number(record->detail, "downloaded_bytes");
    s->total_seen = detail_number(record->detail, "total_bytes");
    snprintf(s->id, sizeof s->id, "%s", record->id);
    buf_init(&s->detail, DETAIL_BYTES_MAX);
    buf_init(&s->files, FILES_BYTES_MAX);
    struct hub *hub = j->config.hub(j->config.user, &err);
    s->pull = hub ? hub_pull_start(hub, &s->request.ref, on_progress, s, &err) : NULL;
    if (!s->pull) {
        fail_job(j, record, &err);
        slot_free(s);
        return;
    }
    pthread_mutex_lock(&j->lock);
    s->next = j->slots;
    j->slots = s;
    pthread_mutex_unlock(&j->lock);
}

/* Those that fetch. */
static size_t count_pulls(const struct jobs *j)
{
    size_t n = 0;
    for (const struct slot *s = j->slots; s; s = s->next)
        n += !s->load_begun;
    return n;
}

/* Claims while there is room; at the least counts what waits. */
static void claim(struct jobs *j)
{
    for (;;) {
        size_t n = count_pulls(j), n_queued = 0;
        struct store_request r = {.op = STORE_JOB_CLAIM,
                                  .owner = str_from(j->instance),
                                  .ttl_ms = j->config.lease_ms,
                                  .limit = n < j->config.running_max};
        bool ok = store_call(j->config.store, &r, NULL), got = ok && r.n_jobs;
        n_queued = r.n_queued;
        if (got)
            begin_slot(j, &r.jobs[0]);
        store_request_release(&r);
        pthread_mutex_lock(&j->lock);
        j->n_queued = ok ? n_queued : j->n_queued;
        j->n_running = count_pulls(j);
        pthread_mutex_unlock(&j->lock);
        if (!got)
            return;
    }
}

/* When the slot is to be written: at once at its end, soon when it has something new, else to renew its lease. Holds the
 * lock. */
static uint64_t due_ns(const struct slot *s)
{
    bool over = s->status != STORE_RUNNING;
    uint64_t wait_ms = s->unkept || !s->dirty ? JOBS_RENEW_MS : over ? 0 : HUB_PROGRESS_MS / 2;
    return s->written_ns + wait_ms * MS;
}

static void remove_slot(struct jobs *j, struct slot **at)
{
    struct slot *s = *at;
    pthread_mutex_lock(&j->lock);
    *at = s->next;
    pthread_mutex_unlock(&j->lock);
    slot_free(s);
}

/* Every slot that is due. True when a pull ended. */
static bool write_slots(struct jobs *j)
{
    bool ended = false;
    uint64_t now = clock_mono_ns();
    for (struct slot **at = &j->slots; *at;) {
        struct slot *s = *at;
        pthread_mutex_lock(&j->lock);
        bool due = now >= due_ns(s), load = s->loading && s->status == STORE_RUNNING && !s->load_begun;
        pthread_mutex_unlock(&j->lock);
        if (load) {
            begin_load(j, s);
            ended = true; /* as a pull: another one may begin */
        }
        if (!due || !write_slot(j, s)) {
            at = &s->next;
            continue;
        }
        remove_slot(j, at);
        ended = true;
    }
    return ended;
}

/* When nothing wakes the thread, it looks again then. Holds the lock. */
static uint64_t next_look_ns(struct jobs *j, uint64_t claim_ns)
{
    uint64_t next = claim_ns;
    for (struct slot *s = j->slots; s; s = s->next) {
        uint64_t due = due_ns(s);
        next = due < next ? due : next;
    }
    return next;
}

/* Holds the lock. */
static void wait_until(struct jobs *j, uint64_t mono_ns)
{
    struct timespec until = {(time_t)(mono_ns / 1000000000u), (long)(mono_ns % 1000000000u)};
    pthread_cond_timedwait(&j->wake, &j->lock, &until);
}

static void requeue_own(struct jobs *j)
{
    struct store_request r = {.op = STORE_JOB_REQUEUE, .owner = str_from(j->instance)};
    store_call(j->config.store, &r, NULL);
    store_request_release(&r);
}

static void give_back(struct jobs *j)
{
    for (struct slot *s = j->slots; s; s = s->next)
        stop_pull(s);
    while (j->slots) {
        hub_pull_wait(j->slots->pull, -1);
        write_slot(j, j->slots); /* where the store is away, the lease runs out */
        remove_slot(j, &j->slots);
    }
}

static void *jobs_main(void *arg)
{
    struct jobs *j = arg;
    uint64_t claim_ns = 0;
    requeue_own(j);
    pthread_mutex_lock(&j->lock);
    while (!j->closing) {
        bool look = j->woken || clock_mono_ns() >= claim_ns;
        if (j->woken)
            for (struct slot *s = j->slots; s; s = s->next)
                s->written_ns = 0; /* somebody may have cancelled one: writing tells */
        j->woken = false;
        pthread_mutex_unlock(&j->lock);
        look |= write_slots(j);
        if (look) {
            claim(j);
            claim_ns = clock_mono_ns() + JOBS_CLAIM_MS * MS;
        }
        pthread_mutex_lock(&j->lock);
        if (!j->closing && !j->woken)
            wait_until(j, next_look_ns(j, claim_ns));
    }
    pthread_mutex_unlock(&j->lock);
    give_back(j);
    return NULL;
}

struct jobs *jobs_open(const struct jobs_config *config, struct err *err)
{
    struct jobs *j = calloc(1, sizeof *j);
    if (!j) {
        err_set(err, ERR_MEMORY, "Out of memory.");
        return NULL;
    }
    j->config = *config;
    j->config.lease_ms = config->lease_ms ? config->lease_ms : JOBS_LEASE_MS;
    j->config.running_max = config->running_max < JOBS_RUNNING_MAX ? config->running_max : JOBS_RUNNING_MAX;
    snprintf(j->instance, sizeof j->instance, "%s", config->instance);
    pthread_mutex_init(&j->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&j->wake, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&j->thread, NULL, jobs_main, j) != 0) {
        err_set(err, ERR_IO, "Cannot start the jobs' thread.");
        pthread_cond_destroy(&j->wake);
        pthread_mutex_destroy(&j->lock);
        free(j);
        return NULL;
    }
    return j;
}

void jobs_stop(struct jobs *j)
{
    if (j->stopped)
        return;
    j->stopped = true;
    pthread_mutex_lock(&j->lock);
    j->closing = true;
    pthread_cond_signal(&j->wake);
    pthread_mutex_unlock(&j->lock);
    pthread_join(j->thread, NULL);
}

void jobs_close(struct jobs *j)
{
    if (!j)
        return;
    jobs_stop(j);
    pthread_cond_destroy(&j->wake);
    pthread_mutex_destroy(&j->lock);
    free(j);
}

void jobs_wake(struct jobs *j)
{
    pthread_mutex_lock(&j->lock);
    j->woken = true;
    pthread_cond_signal(&j->wake);
    pthread_mutex_unlock(&j->lock);
}

void jobs_count(struct jobs *j, size_t *n_running, size_t *n_queued)
{
    pthread_mutex_lock(&j->lock);
    *n_running = j->n_running;
    *n_queued = j->n_queued;
    pthread_mutex_unlock(&j->lock);
}

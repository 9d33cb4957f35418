/* Bytes: several files at once, each in parts that run on connections of their own.
 *
 *   job    a file that is open: its partial, its failures, when it may be tried again
 *   part   a connection that fills [at, end) of a job
 *
 * A turn of the loop: open files, start parts in the holes, move bytes, end what stalls, tell the hasher what joins up, finish
 * what is whole, journal every HUB_LATE_MS and, synced, every HUB_JOURNAL_MS. A part that fails gives back what it did not bring. Failures in a row without a byte
 * between them are counted per job, once per wait; over attempts_max the pull fails. A whole file with the wrong hash starts
 * anew, the last time over one connection without ranges. */
#include "hub/hasher.h"
#include "hub/pull.h"

#include "base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define PART_BYTES_MAX     ((uint64_t)64 << 20)
#define PARTS_PER_FILE     32 /* at least, of a large one */
#define PART_WAITS         20 /* a part should take so many times the shortest wait for an answer */
#define STEP_MS            50
#define LOCK_POLL_MS       200
#define CUT_WAIT_MS        50                   /* after a failure that brought bytes */
#define FAILURES_TOTAL_MAX 2000                 /* of a file, however many bytes each brought */
#define DISK_RESERVE_BYTES ((uint64_t)64 << 20) /* left free when a transfer starts */
#define THROTTLE_MS_MAX    100
#define FILES_AT_ONCE_MAX  HASHER_FILES_MAX

enum job_state { JOB_FREE, JOB_LOCKED, JOB_OPEN };

struct job {
    enum job_state state;
    size_t file;
    struct partial data;
    unsigned n_active, n_failures, n_failures_total, n_mismatches;
    unsigned no_ranges;   /* the server sends whole files only */
    unsigned hash_behind; /* too far: no new parts */
    enum fetch_line line;
    uint64_t due_ns, journal_ns, late_ns; /* next try; last journal, last late one */
};

enum part_fault { FAULT_NONE, FAULT_RANGES, FAULT_REPLY, FAULT_DISK };

struct part {
    struct fetch_call call;
    struct transfer *transfer;
    struct job *job;
    unsigned active, ended;
    enum part_fault fault;
    uint64_t begin, at, end, idle_ns;
    uint64_t asked_ns, answered_ns;
};

struct transfer {
    struct hub_pull *pull;
    struct hasher *hasher;
    struct part *parts;
    size_t n_parts;
    struct job *jobs;
    size_t n_jobs;
    uint64_t fresh_bytes;              /* since the last look at the cap */
    uint64_t part_wish, wait_least_ns; /* bytes of a part, by the lines' speed and the server's delay so far; 0: not known */
    uint64_t disk_ns, turn_ns;         /* last look at the disk; start of the last turn */
    struct err fatal;                  /* of a callback */
};

static bool plan_waiting(struct transfer *t, size_t *file);

/* ---- what callbacks see ---------------------------------------------------------------------------------------------------- */

static bool reject(struct part *part, enum part_fault fault, const char *format, uint64_t a, uint64_t b)
{
    part->fault = fault;
    snprintf(part->call.why, sizeof part->call.why, format, (unsigned long long)a, (unsigned long long)b);
    return false;
}

/* Is this the range that was asked for, of a file of the size that the hub told? */
static bool on_head(struct fetch_call *call)
{
    struct part *part = call->user;
    const struct fetch_reply *r = &call->reply;
    struct job *job = part->job;
    part->idle_ns = 0;
    part->answered_ns = clock_mono_ns();
    if (r->encoded)
        return reject(part, FAULT_REPLY, "the answer is compressed, which was not asked for (status %llu)", (uint64_t)r->status,
                      0);
    if (r->status == 206) {
        if (r->range_begin != part->begin || r->range_end > part->end)
            return reject(part, FAULT_REPLY, "the server sends another range than the one from %llu to %llu", part->begin,
                          part->end);
        if (r->range_total != HUB_SIZE_UNKNOWN && r->range_total != job->data.size)
            return reject(part, FAULT_REPLY, "the server has %llu bytes where the hub told %llu", r->range_total,
                          job->data.size);
        return true;
    }
    if (r->length != HUB_SIZE_UNKNOWN && r->length != job->data.size)
        return reject(part, FAULT_REPLY, "the server sends %llu bytes where the hub told %llu", r->length, job->data.size);
    if (part->begin == 0 && part->end == job->data.size)
        return true;
    job->no_ranges = 1;
    return reject(part, FAULT_RANGES, "the server sends no ranges (asked for %llu to %llu)", part->begin, part->end);
}

static bool on_bytes(struct fetch_call *call, const char *bytes, size_t len)
{
    struct part *part = call->user;
    struct transfer *t = part->transfer;
    part->idle_ns = 0;
    if (len > part->end - part->at)
        return reject(part, FAULT_REPLY, "the server sends more than the bytes from %llu to %llu", part->begin, part->end);
    if (!partial_write(&part->job->data, part->at, bytes, len, &t->fatal)) {
        part->fault = FAULT_DISK;
        return false;
    }
    part->at += len;
    t->fresh_bytes += len;
    t->pull->now.bytes_fetched += len;
    return true;
}

static void on_done(struct fetch_call *call)
{
    ((struct part *)call->user)->ended = 1;
}

/* ---- disk ------------------------------------------------------------------------------------------------------------------ */

static bool check_disk(struct transfer *t, uint64_t reserve, struct err *err)
{
    struct hub_pull *p = t->pull;
    uint64_t need = 0, free_bytes = cache_bytes_free(p->repo.cache_dir);
    for (size_t i = 0; i < p->n_files; i++) {
        if (p->files[i].state != HUB_FILE_DONE)
            need += partial_bytes_missing(&p->repo, p->files[i].etag, p->files[i].bytes_total);
    }
    if (need == 0 || free_bytes == HUB_SIZE_UNKNOWN || (free_bytes >= need && free_bytes - need >= reserve))
        return true;
    return err_set(err, ERR_IO,
                   "not enough disk space for '%s': %llu bytes are still to come (and %llu stay reserved), but "
                   "%.200s has %llu free: make room, or set HF_HUB_CACHE to a larger disk, then pull again",
                   p->ref.repo, (unsigned long long)need, (unsigned long long)reserve, p->repo.cache_dir,
                   (unsigned long long)free_bytes);
}

/* ---- jobs ------------------------------------------------------------------------------------------------------------------ */

static bool job_open(struct transfer *t, struct job *job, struct err *err)
{
    struct hub_pull *p = t->pull;
    struct hub_file_progress *f = &p->files[job->file];
    char text[256];
    switch (partial_open(&job->data, &p->repo, f->etag, p->sources[job->file].hash, f->bytes_total, err)) {
    case PARTIAL_OPEN:
        job->state = JOB_OPEN;
        f->state = HUB_FILE_RUNNING;
        job->journal_ns = job->late_ns = clock_mono_ns();
        return true;
    case PARTIAL_BUSY:
        job->state = JOB_LOCKED;
        job->due_ns = clock_mono_ns() + LOCK_POLL_MS * (uint64_t)1000000;
        snprintf(text, sizeof text, "another transfer fetches '%.200s'", f->path);
        pull_set_waiting(p, text);
        return true;
    case PARTIAL_WHOLE:
        job->state = JOB_FREE;
        f->state = HUB_FILE_DONE;
        f->bytes_done = f->bytes_total;
        return true;
    default: return false;
    }
}

static bool open_jobs(struct transfer *t, uint64_t now_ns, struct err *err)
{
    for (size_t i = 0; i < t->n_jobs; i++) {
        struct job *job = &t->jobs[i];
        size_t file;
        if (job->state == JOB_LOCKED && now_ns >= job->due_ns && !job_open(t, job, err))
            return false;
        if (job->state != JOB_FREE || !plan_waiting(t, &file))
            continue;
        *job = (struct job){.file = file, .data = {.fd = -1, .lock_fd = -1}};
        if (!job_open(t, job, err))
            return false;
    }
    return true;
}

/* The next file that nobody works at. */
static bool plan_waiting(struct transfer *t, size_t *file)
{
    struct hub_pull *p = t->pull;
    for (size_t i = 0; i < p->n_files; i++) {
        bool taken = p->files[i].state != HUB_FILE_WAITING;
        for (size_t k = 0; k < t->n_jobs && !taken; k++)
            taken = t->jobs[k].state != JOB_FREE && t->jobs[k].file == i;
        if (!taken) {
            *file = i;
            return true;
        }
    }
    return false;
}

/* What runs and what is done, together. False when there is no memory. */
static bool claimed(const struct transfer *t, const struct job *job, struct ranges *out)
{
    *out = (struct ranges){0};
    bool ok = true;
    for (size_t i = 0; ok && i < job->data.done.n; i++)
        ok = ranges_add(out, job->data.done.items[i].begin, job->data.done.items[i].end);
    for (size_t i = 0; ok && i < t->n_parts; i++) {
        if (t->parts[i].active && t->parts[i].job == job)
            ok = ranges_add(out, t->parts[i].begin, t->parts[i].end);
    }
    return ok;
}

static uint64_t part_bytes(const struct transfer *t, const struct job *job)
{
    uint64_t most = job->data.size / PARTS_PER_FILE, least = t->pull->config.part_bytes, n = t->part_wish;
    most = most < PART_BYTES_MAX ? most : PART_BYTES_MAX;
    n = n < most ? n : most;
    return n > least ? n : least;
}

/* Small parts keep the file together, so that its hash keeps up and all parts end together; large ones wait less for
 * answers. */
static void learn_from(struct transfer *t, const struct part *part)
{
    uint64_t wait_ns = part->answered_ns - part->asked_ns, took_ns = clock_mono_ns() - part->answered_ns;
    if (t->wait_least_ns == 0 || wait_ns < t->wait_least_ns)
        t->wait_least_ns = wait_ns;
    double wish = PART_WAITS * (double)t->wait_least_ns * (double)(part->end - part->begin) / (double)(took_ns + 1);
    t->part_wish = (3 * t->part_wish + (uint64_t)(wish < (double)PART_BYTES_MAX ? wish : (double)PART_BYTES_MAX)) / 4;
}

/* The next range to fetch of a job; false when all of it is claimed. */
static bool next_range(struct transfer *t, struct job *job, struct range *out, struct err *err)
{
    struct ranges all;
    if (job->no_ranges) {
        if (job->n_active)
            return false;
        if (job->data.done.n && ranges_total(&job->data.done) < job->data.size) {
            hasher_drop(t->hasher, &job->data);
            if (!partial_reset(&job->data, err))
                return false;
        }
        *out = (struct range){0, job->data.size};
        return job->data.done.n == 0 && job->data.size > 0;
    }
    bool found = claimed(t, job, &all) && ranges_hole(&all, 0, job->data.size, out);
    ranges_release(&all);
    uint64_t len = part_bytes(t, job);
    if (found && out->end - out->begin > len + len / 2)
        out->end = out->begin + len;
    return found;
}

static bool job_ready(const struct transfer *t, const struct job *job, uint64_t now_ns)
{
    const struct hub_pull *p = t->pull;
    bool asks_hub = !p->sources[job->file].location[0];
    return job->state == JOB_OPEN && !job->hash_behind && now_ns >= job->due_ns && (!asks_hub || now_ns >= p->hold_ns) &&
           (job->n_failures < 2 || job->n_active == 0);
}

static bool part_start(struct transfer *t, struct part *part, struct job *job, struct range range, struct err *err)
{
    struct hub_pull *p = t->pull;
    const struct pull_source *s = &p->sources[job->file];
    struct fetch_call *call = &part->call;
    if (s->location[0])
        memcpy(call->url, s->location, sizeof call->url);
    else if (!pull_file_url(p, p->files[job->file].path, call->url, err))
        return false;
    bool whole = range.begin == 0 && range.end == job->data.size;
    call->method = FETCH_GET;
    call->follow = FETCH_FOLLOW_ALL;
    call->line = job->line;
    call->range_begin = whole ? 0 : range.begin;
    call->range_end = whole ? 0 : range.end;
    call->on_head = on_head;
    call->on_bytes = on_bytes;
    call->on_done = on_done;
    call->user = part;
    part->transfer = t;
    part->job = job;
    part->begin = part->at = range.begin;
    part->end = range.end;
    part->idle_ns = 0;
    part->asked_ns = part->answered_ns = clock_mono_ns();
    part->fault = FAULT_NONE;
    part->ended = 0;
    if (!fetch_start(p->fetch, call, err))
        return false;
    part->active = 1;
    job->n_active++;
    return true;
}

/* Gives each free connection to the ready job with the fewest. */
static bool start_parts(struct transfer *t, uint64_t now_ns, struct err *err)
{
    for (size_t i = 0; i < t->n_parts; i++) {
        struct job *best = NULL;
        struct range range, best_range = {0};
        if (t->parts[i].active)
            continue;
        for (size_t k = 0; k < t->n_jobs; k++) {
            struct job *job = &t->jobs[k];
            if (!job_ready(t, job, now_ns) || (best && best->n_active <= job->n_active))
                continue;
            err->code = ERR_NONE;
            if (next_range(t, job, &range, err)) {
                best = job;
                best_range = range;
            } else if (err->code != ERR_NONE) {
                return false;
            }
        }
        if (!best)
            return true;
        if (!part_start(t, &t->parts[i], best, best_range, err))
            return false;
    }
    return true;
}

/* ---- ends of parts --------------------------------------------------------------------------------------------------------- */

/* A failure that may pass. `brought` bytes since the part began make it the first of a row. */
static bool count_failure(struct transfer *t, struct part *part, uint64_t brought, struct err *err)
{
    struct hub_pull *p = t->pull;
    struct job *job = part->job;
    const struct fetch_reply *r = part->call.end == FETCH_WHOLE ? &part->call.reply : NULL;
    uint64_t now_ns = clock_mono_ns();
    char text[256];
    job->line = FETCH_NEW_LINE;
    p->now.n_retries++;
    if (brought)
        job->n_failures = 0;
    else if (now_ns < job->due_ns)
        return true; /* of the same cut as the one before */
    job->n_failures++;
    if (job->n_failures >= p->config.attempts_max || ++job->n_failures_total >= FAILURES_TOTAL_MAX)
        return retry_explain(p, &part->call, p->files[job->file].path, job->n_failures, err);
    uint64_t wait_ms = brought ? CUT_WAIT_MS : retry_wait_ms(&p->config, job->n_failures, r);
    job->due_ns = now_ns + wait_ms * 1000000;
    if (r && r->status == 429 && !r->crossed)
        p->hold_ns = job->due_ns > p->hold_ns ? job->due_ns : p->hold_ns;
    if (r && r->status >= 300)
        snprintf(text, sizeof text, "'%.120s': status %ld; attempt %u follows", p->files[job->file].path, r->status,
                 job->n_failures + 1);
    else
        snprintf(text, sizeof text, "'%.120s': %.80s; attempt %u follows", p->files[job->file].path, part->call.why,
                 job->n_failures + 1);
    if (wait_ms >= 1000)
        pull_set_waiting(p, text);
    return true;
}

static bool judge_part(struct transfer *t, struct part *part, uint64_t brought, struct err *err)
{
    struct hub_pull *p = t->pull;
    struct pull_source *s = &p->sources[part->job->file];
    struct fetch_call *call = &part->call;
    const struct fetch_reply *r = &call->reply;
    bool answered = call->end == FETCH_WHOLE, good = answered && r->status >= 200 && r->status <= 299;
    if (good && part->at == part->end) {
        part->job->n_failures = 0;
        part->job->line = FETCH_ANY_LINE;
        learn_from(t, part);
        if (r->crossed && strlen(r->url) < sizeof s->location)
            memcpy(s->location, r->url, sizeof s->location);
        pull_set_waiting(p, "");
        return true;
    }
    if (part->fault == FAULT_RANGES)
        return true; /* known now: the next request asks for all */
    if (part->fault == FAULT_DISK) {
        *err = t->fatal;
        return false;
    }
    if (good) { /* the length was wrong, or not told */
        call->end = FETCH_CUT;
        snprintf(call->why, sizeof call->why, "the answer ended %llu bytes early", (unsigned long long)(part->end - part->at));
    }
    bool of_cdn = answered && r->crossed && r->status >= 400 && r->status <= 499 && r->status != 429;
    if (of_cdn || call->end != FETCH_WHOLE)
        s->location[0] = 0; /* signed addresses expire: the hub tells a new one */
    if (answered && r->status == 416)
        part->job->no_ranges = 1;
    if (!of_cdn && !(answered && r->status == 416) && retry_judge(&p->config, call) == RETRY_NEVER)
        return retry_explain(p, call, p->files[part->job->file].path, part->job->n_failures + 1, err);
    return count_failure(t, part, brought, err);
}

static bool part_end(struct transfer *t, struct part *part, struct err *err)
{
    struct job *job = part->job;
    uint64_t brought = part->at - part->begin;
    bool kept = ranges_add(&job->data.done, part->begin, part->at); /* else its bytes come again: no harm */
    part->active = 0;
    job->n_active--;
    return judge_part(t, part, kept ? brought : 0, err);
}

static bool end_parts(struct transfer *t, struct err *err)
{
    uint64_t stall_ms = t->pull->config.stall_ms;
    for (size_t i = 0; i < t->n_parts; i++) {
        struct part *part = &t->parts[i];
        if (!part->active)
            continue;
        if (!part->ended && part->idle_ns > stall_ms * 1000000) {
            fetch_stop(t->pull->fetch, &part->call);
            part->call.end = FETCH_CUT;
            snprintf(part->call.why, sizeof part->call.why, "no byte came for %.1f s", (double)stall_ms / 1000);
            part->ended = 1;
        }
        if (part->ended && !part_end(t, part, err))
            return false;
    }
    return true;
}

/* ---- whole files ------------------------------------------------------------------------------------------------------------- */

/* How far the file is there from its start, running parts included. */
static uint64_t joined_up(const struct transfer *t, const struct job *job)
{
    uint64_t at = ranges_covered_to(&job->data.done, 0), before;
    do {
        before = at;
        for (size_t i = 0; i < t->n_parts; i++) {
            const struct part *part = &t->parts[i];
            if (part->active && part->job == job && part->begin <= at && part->at > at)
                at = part->at;
        }
        at = ranges_covered_to(&job->data.done, at);
    } while (at != before);
    return at;
}

static bool mismatch(struct transfer *t, struct job *job, const char *got, struct err *err)
{
    struct hub_pull *p = t->pull;
    struct hub_file_progress *f = &p->files[job->file];
    if (++job->n_mismatches >= HUB_MISMATCHES_MAX) {
        f->state = HUB_FILE_FAILED;
        partial_discard(&job->data);
        return err_set(err, ERR_MODEL_DAMAGED,
                       "'%s': '%.200s' came %u times with the wrong %s (%s; the hub says %s): a proxy, "
                       "a mirror or the hub's storage alters it; nothing of it was kept",
                       p->ref.repo, f->path, job->n_mismatches, strlen(got) == 64 ? "sha256" : "sha1", got,
                       p->sources[job->file].hash);
    }
    p->now.n_retries++;
    p->sources[job->file].location[0] = 0;
    job->no_ranges = job->n_mismatches + 1 >= HUB_MISMATCHES_MAX;
    job->line = FETCH_NEW_LINE;
    job->due_ns = clock_mono_ns() + retry_wait_ms(&p->config, job->n_mismatches, NULL) * 1000000;
    f->state = HUB_FILE_RUNNING;
    return partial_reset(&job->data, err);
}

static bool job_finish(struct transfer *t, struct job *job, struct err *err)
{
    struct hub_file_progress *f = &t->pull->files[job->file];
    char got[65];
    bool same;
    hasher_drop(t->hasher, &job->data);
    if (!partial_finish(&job->data, &same, got, err))
        return false;
    if (!same)
        return mismatch(t, job, got, err);
    partial_close(&job->data);
    f->state = HUB_FILE_DONE;
    f->bytes_done = f->bytes_total;
    job->state = JOB_FREE;
    for (size_t i = 0; i < t->n_jobs; i++) /* another name of the same bytes may have waited for this very transfer */
        t->jobs[i].due_ns = t->jobs[i].state == JOB_LOCKED ? 0 : t->jobs[i].due_ns;
    pull_tell(t->pull, PULL_NOW);
    return true;
}

/* Has what joins up hashed, finishes and counts. */
static bool tend_jobs(struct transfer *t, struct err *err)
{
    for (size_t i = 0; i < t->n_jobs; i++) {
        struct job *job = &t->jobs[i];
        if (job->state != JOB_OPEN)
            continue;
        struct hub_file_progress *f = &t->pull->files[job->file];
        uint64_t joined = joined_up(t, job), hashed;
        if (!hasher_want(t->hasher, &job->data, joined, &hashed, err))
            return false;
        job->hash_behind = joined > hashed + HASHER_BEHIND_MAX;
        f->bytes_done = ranges_total(&job->data.done);
        for (size_t k = 0; k < t->n_parts; k++) {
            if (t->parts[k].active && t->parts[k].job == job)
                f->bytes_done += t->parts[k].at - t->parts[k].begin;
        }
        bool whole = joined == job->data.size && job->n_active == 0;
        f->state = whole ? HUB_FILE_CHECKING : HUB_FILE_RUNNING;
        if (whole && hashed == joined && !job_finish(t, job, err))
            return false;
    }
    return true;
}

static bool save_job(struct transfer *t, struct job *job, enum partial_sync sync, struct err *err)
{
    struct ranges running = {0};
    for (size_t i = 0; i < t->n_parts; i++) {
        if (t->parts[i].active && t->parts[i].job == job)
            ranges_add(&running, t->parts[i].begin, t->parts[i].at);
    }
    bool ok = partial_save(&job->data, &running, sync, err);
    ranges_release(&running);
    job->late_ns = clock_mono_ns();
    job->journal_ns = sync == PARTIAL_SYNC ? job->late_ns : job->journal_ns;
    return ok;
}

/* Journals, and once a HUB_JOURNAL_MS a look at the disk. */
static bool keep_books(struct transfer *t, uint64_t now_ns, struct err *err)
{
    const uint64_t every_ns = HUB_JOURNAL_MS * (uint64_t)1000000, late_ns = HUB_LATE_MS * (uint64_t)1000000;
    for (size_t i = 0; i < t->n_jobs; i++) {
        struct job *job = &t->jobs[i];
        if (job->state != JOB_OPEN || !job->data.dirty)
            continue;
        if (now_ns >= job->journal_ns + every_ns ? !save_job(t, job, PARTIAL_SYNC, err)
                                                 : now_ns >= job->late_ns + late_ns && !save_job(t, job, PARTIAL_LATE, err))
            return false;
    }
    if (now_ns < t->disk_ns + every_ns)
        return true;
    t->disk_ns = now_ns;
    return check_disk(t, 0, err);
}

/* ---- the loop ------------------------------------------------------------------------------------------------------------------ */

static bool all_done(const struct hub_pull *p)
{
    for (size_t i = 0; i < p->n_files; i++) {
        if (p->files[i].state != HUB_FILE_DONE)
            return false;
    }
    return true;
}

/* Sleeps off what the bandwidth cap asks for; bytes wait in the sockets meanwhile. */
static void obey_cap(struct transfer *t)
{
    int ms = hub_throttle_ms(t->pull->hub, t->fresh_bytes);
    uint64_t begin_ns = clock_mono_ns();
    t->fresh_bytes = 0;
    while (ms > 0 && !pull_is_cancelled(t->pull)) {
        struct timespec pause = {.tv_nsec = (ms < THROTTLE_MS_MAX ? ms : THROTTLE_MS_MAX) * 1000000L};
        nanosleep(&pause, NULL);
        pull_tell(t->pull, PULL_WHEN_DUE);
        ms -= THROTTLE_MS_MAX;
    }
    t->turn_ns += clock_mono_ns() - begin_ns;
}

/* Time since the last turn counts as silence before bytes move: those that came meanwhile (during a sync, say) take it back.
 * Time that the cap took is not counted. */
static void count_silence(struct transfer *t, uint64_t now_ns)
{
    for (size_t i = 0; i < t->n_parts; i++)
        t->parts[i].idle_ns += now_ns - t->turn_ns;
    t->turn_ns = now_ns;
}

static bool run(struct transfer *t, struct err *err)
{
    t->turn_ns = clock_mono_ns();
    while (!all_done(t->pull)) {
        if (pull_is_cancelled(t->pull))
            return pull_set_cancelled(t->pull, err);
        uint64_t now_ns = clock_mono_ns();
        count_silence(t, now_ns);
        if (!open_jobs(t, now_ns, err) || !start_parts(t, now_ns, err))
            return false;
        fetch_step(t->pull->fetch, STEP_MS);
        if (!end_parts(t, err) || !tend_jobs(t, err) || !keep_books(t, clock_mono_ns(), err))
            return false;
        obey_cap(t);
        pull_tell(t->pull, PULL_WHEN_DUE);
    }
    return true;
}

/* Stops what runs; what came is journalled for the next pull. */
static void close_all(struct transfer *t)
{
    for (size_t i = 0; t->parts && i < t->n_parts; i++) {
        struct part *part = &t->parts[i];
        if (!part->active)
            continue;
        fetch_stop(t->pull->fetch, &part->call);
        ranges_add(&part->job->data.done, part->begin, part->at);
        part->active = 0;
    }
    for (size_t i = 0; t->jobs && i < t->n_jobs; i++) {
        struct job *job = &t->jobs[i];
        if (job->state != JOB_OPEN)
            continue;
        hasher_drop(t->hasher, &job->data);
        if (job->data.dirty && t->pull->files[job->file].state != HUB_FILE_FAILED)
            save_job(t, job, PARTIAL_SYNC, NULL);
        partial_close(&job->data);
    }
    hasher_close(t->hasher);
    free(t->parts);
    free(t->jobs);
}

static void on_caught_up(void *user)
{
    fetch_wake(user);
}

bool pull_transfer(struct hub_pull *p, struct err *err)
{
    struct transfer t = {.pull = p, .n_parts = p->config.connections_max, .n_jobs = p->config.files_max};
    t.n_jobs = t.n_jobs < FILES_AT_ONCE_MAX ? t.n_jobs : FILES_AT_ONCE_MAX;
    if (all_done(p))
        return true;
    if (!check_disk(&t, DISK_RESERVE_BYTES, err))
        return false;
    t.parts = calloc(t.n_parts, sizeof *t.parts);
    t.jobs = calloc(t.n_jobs, sizeof *t.jobs);
    bool ok = (t.parts && t.jobs) || err_set(err, ERR_MEMORY, "no memory for %zu connections", t.n_parts);
    ok = ok && (t.hasher = hasher_open(on_caught_up, p->fetch, err)) && run(&t, err);
    close_all(&t);
    return ok;
}

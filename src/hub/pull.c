/* A pull as a whole: its thread, what callers see of it, its end; and the hub that all pulls share. See hub.h, pull.h.
 *
 * The pull's thread works on `now`; pull_tell copies it under the lock to `shown`, after the callback had it, so that
 * whoever waited for a final state knows that no callback runs any more. */
#include "hub/partial.h"
#include "hub/pull.h"

#include "base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define LOCK_POLL_MS    20
#define NS_PER_MS       ((uint64_t)1000000)
#define NS_PER_S        ((uint64_t)1000000000)
#define BURST_NS        (100 * NS_PER_MS) /* what a line under the cap may catch up after a pause */
#define FRACTION_MAX    0.9999            /* until COMPLETED */
#define THROTTLE_MS_MAX 60000

/* ---- progress -------------------------------------------------------------------------------------------------------------- */

static bool is_final(enum hub_pull_state state)
{
    return state == HUB_PULL_COMPLETED || state == HUB_PULL_FAILED || state == HUB_PULL_CANCELLED;
}

/* Bytes per second between the oldest sample and now. */
static void measure_rate(struct hub_pull *p, uint64_t now_ns)
{
    struct hub_progress *now = &p->now;
    if (p->n_samples == RATE_SAMPLES) {
        memmove(p->samples, p->samples + 1, (RATE_SAMPLES - 1) * sizeof *p->samples);
        p->n_samples--;
    }
    p->samples[p->n_samples++] = (struct rate_sample){now_ns, now->bytes_fetched};
    const struct rate_sample *first = &p->samples[0];
    double s = (double)(now_ns - first->at_ns) / (double)NS_PER_S;
    now->bytes_per_s = s > 0 ? (double)(now->bytes_fetched - first->bytes) / s : 0;
    now->eta_s = now->bytes_per_s >= 1 && now->state == HUB_PULL_RUNNING
                     ? (double)(now->bytes_total - now->bytes_done) / now->bytes_per_s
                     : -1;
}

/* Sums the files up. A file that starts anew takes its bytes back, the sum waits for it. */
static void sum_up(struct hub_progress *now)
{
    uint64_t done = 0, total = 0;
    for (size_t i = 0; i < now->n_files; i++) {
        done += now->files[i].bytes_done;
        total += now->files[i].bytes_total;
    }
    now->bytes_total = total;
    now->bytes_done = done > now->bytes_done ? done : now->bytes_done;
    double fraction = total ? (double)now->bytes_done / (double)total : 0;
    fraction = fraction < FRACTION_MAX ? fraction : FRACTION_MAX;
    now->fraction = now->state == HUB_PULL_COMPLETED ? 1 : fraction > now->fraction ? fraction : now->fraction;
}

/* Copies `from`; without its files when there is no memory for them. */
static bool copy_progress(struct hub_progress *to, const struct hub_progress *from)
{
    size_t bytes = from->n_files * sizeof *from->files;
    struct hub_file_progress *files = bytes ? malloc(bytes) : NULL;
    if (files)
        memcpy(files, from->files, bytes);
    *to = *from;
    to->files = files;
    to->n_files = files ? from->n_files : 0;
    return files || !bytes;
}

void hub_progress_release(struct hub_progress *progress)
{
    free((void *)progress->files);
    progress->files = NULL;
    progress->n_files = 0;
}

void pull_tell(struct hub_pull *p, enum pull_when when)
{
    uint64_t now_ns = clock_mono_ns();
    if (when == PULL_WHEN_DUE && now_ns < p->told_ns + HUB_PROGRESS_MS * NS_PER_MS)
        return;
    p->told_ns = now_ns;
    struct hub_progress *now = &p->now, copy;
    sum_up(now);
    measure_rate(p, now_ns);
    if (p->progress)
        p->progress(p->user, now);
    copy_progress(&copy, now);
    pthread_mutex_lock(&p->lock);
    struct hub_progress old = p->shown;
    p->shown = copy;
    if (is_final(copy.state))
        pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    hub_progress_release(&old);
}

void pull_set_waiting(struct hub_pull *p, const char *text)
{
    snprintf(p->now.waiting_for, sizeof p->now.waiting_for, "%s", text);
}

bool pull_is_cancelled(struct hub_pull *p)
{
    return atomic_load(&p->cancelled);
}

bool pull_set_cancelled(const struct hub_pull *p, struct err *err)
{
    return err_set(err, ERR_CANCELLED, "the pull of '%s' was cancelled; what came is kept, pull again to go on", p->ref.repo);
}

/* ---- the bandwidth cap ------------------------------------------------------------------------------------------------------ */

int hub_throttle_ms(struct hub *hub, uint64_t bytes)
{
    pthread_mutex_lock(&hub->lock);
    uint64_t now_ns = clock_mono_ns(), ms = 0;
    if (hub->config.rate_max) {
        uint64_t earliest = now_ns > BURST_NS ? now_ns - BURST_NS : 0;
        hub->rate_free_ns = hub->rate_free_ns > earliest ? hub->rate_free_ns : earliest;
        hub->rate_free_ns += (uint64_t)((double)bytes / (double)hub->config.rate_max * (double)NS_PER_S);
        ms = hub->rate_free_ns > now_ns ? (hub->rate_free_ns - now_ns) / NS_PER_MS : 0;
    }
    pthread_mutex_unlock(&hub->lock);
    return ms < THROTTLE_MS_MAX ? (int)ms : THROTTLE_MS_MAX;
}

/* ---- the pull's thread -------------------------------------------------------------------------------------------------------- */

/* Links for what the snapshot does not show yet, then the revision's ref; then what killed transfers left is swept. */
static bool publish(struct hub_pull *p, struct err *err)
{
    struct cache_link *links = calloc(p->n_files ? p->n_files : 1, sizeof *links);
    size_t n = 0;
    if (!links)
        return err_set(err, ERR_MEMORY, "no memory for %zu links", p->n_files);
    for (size_t i = 0; i < p->n_files; i++) {
        if (!p->sources[i].shown)
            links[n++] = (struct cache_link){p->files[i].path, p->files[i].etag};
    }
    bool ok = (n == 0 || cache_publish(&p->repo, p->now.commit, links, n, err)) &&
              cache_ref_write(&p->repo, p->ref.revision, p->now.commit, err);
    free(links);
    for (size_t i = 0; ok && i < p->n_files; i++)
        partial_sweep(&p->repo, p->files[i].etag);
    return ok;
}

/* What was fetched must be all that a load needs: an index may name shards that the repository lacks. */
static bool check_whole(struct hub_pull *p, struct err *err)
{
    struct hub_snapshot s;
    struct hub_ref ref = p->ref;
    snprintf(ref.revision, sizeof ref.revision, "%s", p->now.commit);
    if (!cache_find(&p->repo, &ref, &s, NULL, NULL, err))
        return err_prefix(err, "everything that '%s' has was fetched, but", p->ref.repo);
    memcpy(p->now.snapshot_dir, s.dir, sizeof p->now.snapshot_dir);
    memcpy(p->now.entry, s.entry, sizeof p->now.entry);
    return true;
}

/* Waits for the end of a removal. Where the cache cannot be written, nobody removes either: it goes on without the lock. */
static bool lock_repo(struct hub_pull *p, int *lock, struct err *err)
{
    while ((*lock = cache_lock_repo(&p->repo, CACHE_PULLS, NULL)) == -1) {
        if (pull_is_cancelled(p))
            return pull_set_cancelled(p, err);
        pull_set_waiting(p, "the model is being removed");
        pull_tell(p, PULL_WHEN_DUE);
        nanosleep(&(struct timespec){.tv_nsec = LOCK_POLL_MS * 1000000L}, NULL);
    }
    return true;
}

static bool work(struct hub_pull *p, int *lock, struct err *err)
{
    if (pull_is_cancelled(p))
        return pull_set_cancelled(p, err);
    if (!lock_repo(p, lock, err) || !pull_resolve(p, err))
        return false;
    p->now.state = HUB_PULL_RUNNING;
    p->now.files = p->files;
    p->now.n_files = p->n_files;
    pull_tell(p, PULL_NOW);
    return pull_transfer(p, err) && publish(p, err) && check_whole(p, err);
}

static void *pull_main(void *arg)
{
    struct hub_pull *p = arg;
    struct err err = {0};
    pull_tell(p, PULL_NOW);
    int lock = -1;
    bool ok = work(p, &lock, &err);
    if (lock >= 0)
        close(lock);
    pthread_mutex_lock(&p->lock);
    struct fetch *fetch = p->fetch;
    p->fetch = NULL;
    pthread_mutex_unlock(&p->lock);
    fetch_close(fetch);
    pull_set_waiting(p, "");
    p->now.state = ok ? HUB_PULL_COMPLETED : err.code == ERR_CANCELLED ? HUB_PULL_CANCELLED : HUB_PULL_FAILED;
    p->now.err = ok ? (struct err){0} : err;
    pull_tell(p, PULL_NOW);
    atomic_store(&p->ended, true);
    return NULL;
}

/* ---- pulls -------------------------------------------------------------------------------------------------------------------- */

static void unref(struct hub_pull *p)
{
    if (atomic_fetch_sub(&p->n_refs, 1) != 1)
        return;
    hub_progress_release(&p->shown);
    fetch_close(p->fetch);
    free(p->files);
    free(p->sources);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

static struct hub_pull *pull_new(struct hub *hub, const struct hub_ref *ref, struct err *err)
{
    struct hub_pull *p = calloc(1, sizeof *p);
    if (!p) {
        err_set(err, ERR_MEMORY, "no memory for a pull");
        return NULL;
    }
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, &attr);
    pthread_condattr_destroy(&attr);
    atomic_init(&p->n_refs, 1);
    p->hub = hub;
    p->config = hub->config;
    p->ref = *ref;
    p->now.eta_s = p->shown.eta_s = -1;
    if (cache_repo_init(&p->repo, p->config.cache_dir, ref->repo, err) && (p->fetch = fetch_open(&p->config, err)))
        return p;
    unref(p);
    return NULL;
}

/* With the hub's lock: takes those whose thread is over out of the list, or all; the result is joined by join_all. */
static struct hub_pull *take_pulls(struct hub *hub, bool only_ended)
{
    struct hub_pull *taken = NULL, **at = &hub->pulls;
    while (*at) {
        struct hub_pull *p = *at;
        if (only_ended && !atomic_load(&p->ended)) {
            at = &p->next;
            continue;
        }
        *at = p->next;
        p->next = taken;
        taken = p;
    }
    return taken;
}

static void join_all(struct hub_pull *pulls)
{
    while (pulls) {
        struct hub_pull *p = pulls;
        pulls = p->next;
        pthread_join(p->thread, NULL);
        unref(p);
    }
}

struct hub_pull *hub_pull_start(struct hub *hub, const struct hub_ref *ref, hub_progress_fn *progress, void *user,
                                struct err *err)
{
    struct hub_pull *p = pull_new(hub, ref, err);
    if (!p)
        return NULL;
    p->progress = progress;
    p->user = user;
    atomic_store(&p->n_refs, 2); /* the caller's and the list's */
    pthread_mutex_lock(&hub->lock);
    struct hub_pull *ended = take_pulls(hub, true);
    int error = pthread_create(&p->thread, NULL, pull_main, p);
    if (error == 0) {
        p->next = hub->pulls;
        hub->pulls = p;
    }
    pthread_mutex_unlock(&hub->lock);
    join_all(ended);
    if (error == 0)
        return p;
    atomic_store(&p->n_refs, 1);
    unref(p);
    err_set(err, ERR_MEMORY, "cannot start a thread for the pull of '%s': %s", ref->repo, strerror(error));
    return NULL;
}

void hub_pull_cancel(struct hub_pull *p)
{
    atomic_store(&p->cancelled, true);
    pthread_mutex_lock(&p->lock);
    if (p->fetch)
        fetch_wake(p->fetch);
    pthread_mutex_unlock(&p->lock);
}

bool hub_pull_wait(struct hub_pull *p, int wait_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t ns = (uint64_t)until.tv_nsec + (uint64_t)(wait_ms > 0 ? wait_ms : 0) * NS_PER_MS;
    until.tv_sec += (time_t)(ns / NS_PER_S);
    until.tv_nsec = (long)(ns % NS_PER_S);
    pthread_mutex_lock(&p->lock);
    int error = 0;
    while (!is_final(p->shown.state) && error != ETIMEDOUT)
        error = wait_ms < 0 ? pthread_cond_wait(&p->changed, &p->lock) : pthread_cond_timedwait(&p->changed, &p->lock, &until);
    bool ended = is_final(p->shown.state);
    pthread_mutex_unlock(&p->lock);
    return ended;
}

bool hub_pull_progress(struct hub_pull *p, struct hub_progress *out, struct err *err)
{
    pthread_mutex_lock(&p->lock);
    bool ok = copy_progress(out, &p->shown);
    pthread_mutex_unlock(&p->lock);
    return ok || err_set(err, ERR_MEMORY, "no memory for the progress of %zu files", p->n_files);
}

void hub_pull_unref(struct hub_pull *p)
{
    if (p)
        unref(p);
}

/* ---- the hub ---------------------------------------------------------------------------------------------------------------- */

struct hub *hub_open(const struct hub_config *config, struct err *err)
{
    if (config->connections_max < 1 || config->connections_max > HUB_CONNECTIONS_MAX || config->files_max < 1 ||
        config->attempts_max < 1 || config->part_bytes < 1) {
        err_set(err, ERR_USAGE,
                "a hub needs 1 to %d connections (%u are asked for), at least 1 file at once (%u), 1 attempt "
                "(%u) and parts of a byte (%llu)",
                HUB_CONNECTIONS_MAX, config->connections_max, config->files_max, config->attempts_max,
                (unsigned long long)config->part_bytes);
        return NULL;
    }
    if (!cache_make_dirs(config->cache_dir, err))
        return NULL;
    struct hub *hub = calloc(1, sizeof *hub);
    if (!hub) {
        err_set(err, ERR_MEMORY, "no memory for the hub");
        return NULL;
    }
    hub->config = *config;
    pthread_mutex_init(&hub->lock, NULL);
    return hub;
}

void hub_close(struct hub *hub)
{
    if (!hub)
        return;
    pthread_mutex_lock(&hub->lock);
    struct hub_pull *all = take_pulls(hub, false);
    pthread_mutex_unlock(&hub->lock);
    for (struct hub_pull *p = all; p; p = p->next)
        hub_pull_cancel(p);
    join_all(all);
    pthread_mutex_destroy(&hub->lock);
    free(hub);
}

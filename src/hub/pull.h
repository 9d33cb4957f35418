/* A pull from inside: what resolve.c (what is needed), transfer.c (bytes) and pull.c (thread, progress, end) share.
 * `now`, `files` and all that is not under `lock` belong to the pull's thread. */
#ifndef INFERD_HUB_PULL_H
#define INFERD_HUB_PULL_H

#include "hub/fetch.h"
#include "hub/impl.h"

#include <pthread.h>
#include <stdatomic.h>

#define RATE_SAMPLES 20 /* of HUB_PROGRESS_MS: the rate is that of the last 5 s */

struct hub {
    struct hub_config config;
    pthread_mutex_t lock;
    struct hub_pull *pulls; /* started and not yet joined */
    uint64_t rate_free_ns;  /* when the cap allows the next byte */
};

struct rate_sample {
    uint64_t at_ns, bytes;
};

struct hub_pull {
    struct hub *hub;
    struct hub_pull *next; /* in hub->pulls, under hub->lock */
    struct hub_config config;
    struct hub_ref ref;
    struct cache_repo repo;
    hub_progress_fn *progress;
    void *user;
    pthread_t thread;
    atomic_uint n_refs;
    atomic_bool cancelled, ended; /* ended: the thread does nothing more */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct hub_progress shown; /* under lock: what callers get */
    struct fetch *fetch;       /* set and cleared under lock; NULL when the thread is done with it */

    struct hub_progress now;         /* its files are set once the plan is settled */
    struct hub_file_progress *files; /* one a planned file */
    size_t n_files;
    struct pull_source *sources; /* beside files: where each comes from */
    uint64_t told_ns, hold_ns;   /* hold: no request to the hub before it (429) */
    struct rate_sample samples[RATE_SAMPLES];
    size_t n_samples;
};

struct pull_source {
    char hash[65];                    /* that its bytes must have (sha256, or git's sha1); "" = none is told */
    char location[HUB_URL_BYTES_MAX]; /* of another origin, where the hub last sent us; "" = ask the hub */
    unsigned shown;                   /* 1 = the snapshot shows it already: nothing to fetch nor to link */
};

/* ---- pull.c */

bool pull_is_cancelled(struct hub_pull *p);
/* ERR_CANCELLED. Returns false. */
bool pull_set_cancelled(const struct hub_pull *p, struct err *err);
enum pull_when { PULL_WHEN_DUE, PULL_NOW };
/* Calls the callback and renews what callers see, when HUB_PROGRESS_MS are over or at once. */
void pull_tell(struct hub_pull *p, enum pull_when when);
/* Why nothing moves, for people; "" = it moves. */
void pull_set_waiting(struct hub_pull *p, const char *text);
/* Milliseconds to sleep so that all pulls together stay below the cap, after `bytes` more came. */
int hub_throttle_ms(struct hub *hub, uint64_t bytes);

/* ---- resolve.c: fills now.commit, now.entry, files, n_files, sources. The names of blobs and all sizes are known after it. */
bool pull_resolve(struct hub_pull *p, struct err *err);
/* Address of a file: <endpoint>/<repo>/resolve/<commit>/<path>. */
bool pull_file_url(const struct hub_pull *p, const char *path, char out[HUB_URL_BYTES_MAX], struct err *err);

/* ---- transfer.c: every file's blob is in the cache after it. */
bool pull_transfer(struct hub_pull *p, struct err *err);

/* ---- retry.c: which failures pass, how long to wait, what to say */
enum retry_verdict { RETRY_GOOD, RETRY_LATER, RETRY_NEVER };
enum retry_verdict retry_judge(const struct hub_config *c, const struct fetch_call *call);
/* Before attempt n_failures + 1: what the server asks for, else doubling with jitter. */
uint64_t retry_wait_ms(const struct hub_config *c, unsigned n_failures, const struct fetch_reply *reply);
/* What went wrong with `what` ("its list of files", a path) of the pull's repository, and what to do. Returns false. */
bool retry_explain(const struct hub_pull *p, const struct fetch_call *call, const char *what, unsigned n_attempts,
                   struct err *err);

#endif

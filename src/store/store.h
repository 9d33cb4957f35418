/* The store: what outlives a process, or is shared by several. Jobs, sessions, values under a key (idempotency), leases.
 *
 *   any thread: store_submit(request) -> bounded queue -> the store's thread: sqlite.c or redis.c -> request->done()
 *
 * A request is the caller's memory; the store has it from store_submit until done() is called, once, on the store's
 * thread. done() must not block and must not call store_call; it hands the request back to its owner (queue_put,
 * http_post). Requests of one process are carried out in the order of submission.
 *
 * What done() reports as ok is kept: it survives the death of the process at any instant. A job's creation, a cancel and a
 * session's deletion also survive a power cut; other changes may lose their last moments to one (SQLite: a job then goes on
 * from an earlier point), or what Redis is configured for.
 *
 * A job's record (who runs it is hub/jobs.h's matter):
 *
 *   CREATE -> queued --CLAIM--> running --UPDATE--> completed | failed | cancelled
 *               ^  \               |  \
 *               |   \--CANCEL------|---+--CANCEL--> cancelled at the owner's next UPDATE, or at once if its lease is over
 *               +------UPDATE(queued), REQUEUE, or a lease that ran out: CLAIM gives the job to another instance
 *
 * Fencing: a CLAIM (and LEASE_TAKE) gives a token, larger than every earlier one. UPDATE carries it and is refused with
 * ERR_CONFLICT once another claim was made: an instance that slept through its lease cannot write over its successor.
 *
 * Limits have names below; hitting one is an error that says so. Errors: ERR_UNAVAILABLE when the store cannot be reached
 * or is locked (try again), ERR_IO when its file is damaged or the disk is full (the text says what to do). */
#ifndef INFERD_STORE_STORE_H
#define INFERD_STORE_STORE_H

#include "base/arena.h"
#include "base/buf.h"
#include "base/err.h"

#define STORE_QUEUE_MAX            4096 /* operations that wait; more are refused */
#define STORE_JOB_ID_BYTES         32
#define STORE_JOBS_ACTIVE_MAX      1000  /* queued and running */
#define STORE_JOBS_KEPT_MAX        20000 /* finished jobs; older ones go */
#define STORE_JOBS_KEPT_MS         ((int64_t)30 * 86400 * 1000)
#define STORE_LIST_MAX             10000
#define STORE_KEY_BYTES_MAX        1024 /* names of jobs' keys, leases, values */
#define STORE_SESSION_ID_BYTES_MAX 256
#define STORE_SESSIONS_MAX         100000
#define STORE_TEXT_BYTES_MAX       ((size_t)16 << 20)  /* of one text */
#define STORE_RESULT_BYTES_MAX     ((size_t)256 << 20) /* of one answer */

enum store_status { STORE_QUEUED, STORE_RUNNING, STORE_COMPLETED, STORE_FAILED, STORE_CANCELLED, STORE_STATUS_COUNT };

/* "queued", ...; never NULL. */
const char *store_status_name(enum store_status status);
/* STORE_STATUS_COUNT when it is none. */
enum store_status store_status_parse(struct str name);
static inline bool store_status_final(enum store_status s)
{
    return s >= STORE_COMPLETED;
}

struct store_job {
    char id[STORE_JOB_ID_BYTES]; /* sorts by the time of creation */
    enum store_status status;
    struct str model;                            /* what it is about, as people wrote it: LIST's filter */
    struct str request;                          /* the creator's */
    struct str detail;                           /* JSON members ("a":1,"b":2), the owner's; small, given in lists too */
    struct str files;                            /* JSON array, the owner's; not given in lists */
    struct str error;                            /* "" = none */
    struct str owner;                            /* the instance that has it */
    double progress;                             /* never falls */
    int64_t created_ms, changed_ms, finished_ms; /* Unix time; finished 0 = not yet */
    uint64_t token;
    uint64_t claims; /* how often it was claimed */
    int cancel;      /* 1: somebody asked */
};

struct store_session {
    struct str id;
    struct str text; /* the caller's; not given in lists */
    int64_t created_ms, changed_ms, expires_ms;
    uint64_t version; /* 1 at the first PUT */
    uint64_t n_messages;
};

enum store_op {
    /* key, model, text (request), ttl_ms (of a job with this key that completed: taken when it is not older; 0 = never)
     * -> jobs[0]: the one active job with this key; `created` tells whether it is new */
    STORE_JOB_CREATE,
    /* id -> jobs[0]; ERR_NOT_FOUND */
    STORE_JOB_GET,
    /* status (STORE_STATUS_COUNT = any), model ("" = any), since_ms (last change), limit -> jobs, newest first */
    STORE_JOB_LIST,
    /* owner, ttl_ms (of the lease) -> the oldest queued job, or one whose lease is over: jobs[0] with its token; n_jobs 0
     * when there is none. n_queued, n_running: of all instances, after it. limit 0: only counts. */
    STORE_JOB_CLAIM,
    /* id, token, status, progress, detail, files, text (error), ttl_ms -> jobs[0] without texts: `cancel` and the status
     * that was written (a final one becomes cancelled when somebody asked for it). STORE_QUEUED gives the job back.
     * An empty detail or files leaves what is there. ERR_CONFLICT: the job is no longer this token's. */
    STORE_JOB_UPDATE,
    /* id -> jobs[0] as it is then; a final one is left alone. ERR_NOT_FOUND */
    STORE_JOB_CANCEL,
    /* owner -> its running jobs are queued again (cancelled where somebody asked): an instance at its start */
    STORE_JOB_REQUEUE,
    /* owner, id, ttl_ms (lives at least as long from now on; 0 = as long as it would) -> sessions[0]; ERR_NOT_FOUND */
    STORE_SESSION_GET,
    /* owner, id, text, n_messages, token (version that it had, 0 = none), ttl_ms -> sessions[0] without text.
     * ERR_CONFLICT: it changed meanwhile. ERR_RATE_LIMIT: STORE_SESSIONS_MAX. */
    STORE_SESSION_PUT,
    STORE_SESSION_DELETE, /* owner, id; ERR_NOT_FOUND */
    STORE_SESSION_LIST,   /* owner, limit -> sessions, last changed first */
    /* key, owner, ttl_ms -> token. Taken again by the same owner it is renewed under the same token. ERR_CONFLICT: somebody
     * else has it, for ttl_ms more. */
    STORE_LEASE_TAKE,
    STORE_LEASE_GIVE, /* key, owner; nothing happens when it is not this owner's */
    /* key, text, ttl_ms -> created 1; or created 0 and what is there in `found` */
    STORE_VALUE_CLAIM,
    /* key, text, ttl_ms (0 = remove), was ("" = whatever it is). ERR_CONFLICT: neither `was` is there nor nothing, so somebody
     * has claimed it since it ran out. */
    STORE_VALUE_SET,
    STORE_PRUNE, /* what is over its time or its number goes */
    STORE_OP_COUNT
};

struct store_request {
    enum store_op op;
    void (*done)(struct store_request *r); /* on the store's thread */
    void *user;
    /* in: borrowed until done() */
    struct str id, key, owner, model, text, was, detail, files;
    uint64_t token, n_messages;
    enum store_status status;
    double progress;
    int64_t ttl_ms, since_ms;
    size_t limit;
    /* out: valid until store_request_release */
    bool ok;
    struct err err;
    struct store_job *jobs;
    size_t n_jobs;
    struct store_session *sessions;
    size_t n_sessions;
    size_t n_queued, n_running;
    struct str found;
    int created;
    struct arena arena; /* of the above */
};

/* Frees the answer; what the caller put in stays. */
void store_request_release(struct store_request *r);

struct store;

/* `url`: "sqlite" (data_dir/store.sqlite), "sqlite:PATH", "memory" (nothing is kept), or
 * "redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]" ("redis+unix:///PATH"). A file that is damaged, locked or of a newer
 * program is an error; a Redis that does not answer is not: the store opens, is unavailable, and connects when it can.
 * data_dir is made when it is not there. */
struct store *store_open(const char *url, const char *data_dir, struct err *err);
/* Carries out what waits, then ends the thread: store_submit refuses from then on, store_state still answers. */
void store_stop(struct store *s);
/* Stops it where that was not done, and frees it: nobody uses it any more. */
void store_close(struct store *s);

/* False when the queue is full, or the store has stopped (`err` says so): done() is not called. Any thread. */
bool store_submit(struct store *s, struct store_request *r, struct err *err);
/* Submits and waits: for threads that may wait. False: err is the operation's. */
bool store_call(struct store *s, struct store_request *r, struct err *err);

/* `fn` is told the id of every job that changed, by this process or (Redis) by another; on the store's thread. With
 * several processes on one SQLite file, others' changes are not told: look again about once a second. One watcher, set
 * before the first request. */
void store_watch(struct store *s, void (*fn)(void *user, const char *job_id), void *user);

struct store_state {
    const char *kind; /* "sqlite", "memory", "redis" */
    int shared;       /* 1: with other instances */
    int available;    /* 0: operations fail; `why` says why */
    char why[256];
    uint64_t n_waiting; /* operations in the queue */
    uint64_t n_reconnects;
};
void store_state(struct store *s, struct store_state *out);

/* The owner that this process claims and leases as. One data directory keeps its name over restarts, so that a process which
 * starts again has its own leases at once; while one process has it, another one on the same directory gets a name of its
 * own. The host is part of it: copies of a directory on two hosts are two. */
#define STORE_INSTANCE_BYTES 96
struct store_instance {
    char name[STORE_INSTANCE_BYTES];
    int fd; /* locked as long as the process lives */
};
bool store_instance_open(struct store_instance *out, const char *data_dir, struct err *err);
void store_instance_close(struct store_instance *i);

#endif

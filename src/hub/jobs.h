/* Jobs: pulls that outlive their request, their process and their machine.
 *
 *                claim                    the pull's end
 *    +--------+ ------> +---------+ -----------------------> +-----------+
 *    | queued |         | running |                          | completed |
 *    +--------+ <------ +---------+ -----------------------> | failed    |
 *         |    process ends,   |                             | cancelled |
 *         |    lease is over   |   cancel                    +-----------+
 *         +--------------------+---------------------------------> ^
 *
 * The record lies in the store (store.h), which several instances may share. A job is claimed under a lease and a fencing
 * token. While it runs, its record is written at every change, and at least every JOBS_RENEW_MS to renew the lease. An
 * instance that dies stops renewing: after JOBS_LEASE_MS another one claims the job, and the pull goes on from what the
 * cache's journals hold. One that only slept finds its token refused, and stops its pull. One that ends in order gives its
 * jobs back; one that starts takes back at once what it held when it died.
 *
 * A job with preload runs until its model is loaded too (phase "loading"); that this failed makes it no failed pull: it
 * completes, and its preload_error says why. One whose loading was cut off is pulled and loaded again, for nothing is fetched.
 *
 * Invariants: one active job a key (reference, profile, preload); progress never falls, over restarts too; a job that
 * somebody cancelled never completes; what is final stays so.
 * While the store cannot be reached, pulls go on, nothing is claimed, and the end is written as soon as it can be.
 *
 * Threads: one of its own, which waits for the store; any thread may call. The folder never logs: config.ended tells. */
#ifndef INFERD_HUB_JOBS_H
#define INFERD_HUB_JOBS_H

#include "hub/hub.h"
#include "store/store.h"

#define JOBS_LEASE_MS      6000
#define JOBS_RENEW_MS      1000
#define JOBS_CLAIM_MS      1000 /* between two looks for jobs that nobody runs */
#define JOBS_RUNNING_MAX   64
#define JOBS_SAME_MS       1000 /* a pull asked again so soon after it completed is the same job */
#define JOBS_PROFILE_BYTES 16

/* What is asked of a job. */
struct job_request {
    struct hub_ref ref;
    char profile[JOBS_PROFILE_BYTES]; /* "" = the server's choice */
    unsigned preload;                 /* 1 = load the model when it is there */
};

/* The texts of a STORE_JOB_CREATE; `r` borrows them. */
struct job_texts {
    char key[HUB_REF_TEXT_BYTES + JOBS_PROFILE_BYTES + 16];
    char model[HUB_REPO_BYTES_MAX + HUB_QUANT_BYTES_MAX]; /* the reference without its revision: LIST's filter */
    char request[HUB_REF_TEXT_BYTES + JOBS_PROFILE_BYTES + 8];
};
void job_create_request(const struct job_request *job, struct job_texts *texts, struct store_request *r);
/* What a record asks for. ERR_INTERNAL where no job_create_request made it. */
bool job_read_request(const struct store_job *record, struct job_request *out, struct err *err);
/* The record as the JSON object that people get. */
void job_write(struct buf *out, const struct store_job *record);

struct job_end {
    const char *id, *model;
    const struct job_request *request;
    enum store_status status;         /* final, or QUEUED: given back at the end of the process */
    const char *snapshot_dir, *entry; /* when COMPLETED, as in hub.h */
    const struct err *err;            /* when FAILED; when COMPLETED, why the model was not loaded, if its code is set */
    uint64_t token;                   /* for jobs_loaded */
    double seconds;                   /* that it ran here */
    uint64_t bytes_fetched;
};

struct jobs_config {
    struct store *store;
    struct hub *(*hub)(void *user, struct err *err);      /* when the first pull begins; on the jobs' thread */
    const char *instance;                                 /* STORE_JOB_CLAIM's owner; nobody else's */
    size_t running_max;                                   /* pulls at once; at most JOBS_RUNNING_MAX */
    int64_t lease_ms;                                     /* 0 = JOBS_LEASE_MS */
    void (*ended)(void *user, const struct job_end *end); /* on the jobs' thread; may be NULL */
    /* Loads what a completed pull with preload brought, and calls jobs_loaded, once, when that is over: from any thread, also
     * before it returns. On the jobs' thread. NULL: nothing is loaded. */
    void (*load)(void *user, const struct job_end *end);
    void *user;
};

struct jobs;
/* Takes back what this instance held, and starts. `config` is copied; store and hub outlive the jobs. */
struct jobs *jobs_open(const struct jobs_config *config, struct err *err);
/* Stops the pulls and gives their jobs back; nothing begins any more. */
void jobs_stop(struct jobs *j);
/* Stops them where that was not done, and frees: nobody uses them any more. */
void jobs_close(struct jobs *j);
/* Something was created or cancelled: look now, not at the next second. */
void jobs_wake(struct jobs *j);
/* What came of config.load: `err` NULL = the model is loaded. Nothing happens where the job ended meanwhile. Any thread. */
void jobs_loaded(struct jobs *j, const char *id, uint64_t token, const struct err *err);
/* Pulls that run here, and jobs of all instances that wait, as of the last look. */
void jobs_count(struct jobs *j, size_t *n_running, size_t *n_queued);

#endif

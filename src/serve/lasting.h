/* What outlasts a request, and the process: the store, the jobs that pull models, the sessions. Opened before the http
 * server, stopped before it, closed after it. A store that cannot be reached makes the server degraded and no more: what needs the store
 * is refused with 503, everything else goes on.
 *
 * Thread: http, unless said otherwise. */
#ifndef INFERD_SERVE_LASTING_H
#define INFERD_SERVE_LASTING_H

#include "hub/jobs.h"
#include "serve/call.h"

#include <pthread.h>

struct sessions;
struct job_stream;

struct lasting {
    struct store_instance instance;
    struct store *store;
    struct hub *hub;
    struct jobs *jobs;
    pthread_mutex_t jobs_lock; /* for the loader thread, which outlives the jobs: they are not closed while it tells them */
    struct sessions *sessions;
    struct job_stream *streams; /* of GET /jobs/{id}/events */
    _Atomic int n_streams;
    int store_missed; /* the log tells that it cannot be reached */
};

/* Main thread: the first before the http server is opened, the second before it starts. */
bool lasting_open(struct server *s, struct err *err);
bool lasting_start(struct server *s, struct err *err);
/* Gives jobs back; with LASTING_ALL ends the store, answers what waits for it. Clients may still ask, and are refused.
 * Workers have ended. Main thread. */
enum lasting_part { LASTING_JOBS, LASTING_ALL };
void lasting_stop(struct server *s, enum lasting_part part);
/* The http server is closed. Main thread. */
void lasting_close(struct server *s);
/* About once a second. */
void lasting_tick(struct server *s);
/* Appends why the server is degraded, as JSON strings behind `n` others; the new count. */
size_t lasting_reasons(struct server *s, struct buf *reasons, size_t n);
/* Members of /health: "downloads_active":... */
void lasting_health(struct server *s, struct buf *out);

/* ---- an operation of the store for a call ---- */

/* The call belongs to the operation until `finish` has run, on the store's thread, which writes c->out and c->status; an
 * error is answered as such. */
struct store_task {
    struct store_request request;
    struct call *call;
    void (*finish)(struct store_task *t);
    struct job_texts texts;
};
struct store_task *store_task_new(struct call *c, enum store_op op, void (*finish)(struct store_task *t), struct err *err);
/* Takes the task over. */
bool store_task_start(struct store_task *t, struct err *err);

/* ---- jobs.c: routes ---- */
bool route_pull(struct call *c, struct err *err);       /* POST /pull; on a worker */
bool route_pull_start(struct call *c, struct err *err); /* what follows it */
bool route_jobs(struct call *c, struct err *err);
bool route_job(struct call *c, struct err *err);
bool route_job_cancel(struct call *c, struct err *err);
bool route_job_events(struct call *c, struct err *err);
/* A list's `limit`: 1..max; `otherwise` where it is not given. */
bool route_read_limit(struct str text, size_t otherwise, size_t max, size_t *out, struct err *err);
/* Milliseconds since 1970 of "since"; 0 where it is not given. */
bool route_read_since(struct str text, int64_t *ms, struct err *err);
/* Streams of events look at their jobs: all, or those of one job (posted: heap text, freed here). */
void jobs_events_tick(struct server *s);
struct job_notice {
    struct server *server;
    char id[STORE_JOB_ID_BYTES];
};
void jobs_events_notice(void *arg);

#endif

/* Inside the store folder only: what a place to keep things in must do, and what the places share. All of it runs on the
 * store's thread, except open and close (before and after it). */
#ifndef INFERD_STORE_IMPL_H
#define INFERD_STORE_IMPL_H

#include "store/store.h"

#define STORE_BUSY_MS 2000 /* that a locked file or a silent server may hold the thread up */

/* What the thread tells the rest of the process about the place; under a lock of store.c. */
struct place_news {
    void *store;
    void (*job_changed)(void *store, const char *id);
    /* why "" = available */
    void (*available)(void *store, const char *why);
    void (*reconnected)(void *store);
};

struct place {
    const char *kind;
    int shared;
    void *(*open)(const char *where, const struct place_news *news, struct err *err);
    void (*close)(void *self);
    /* Fills r's answer: ok and err, and what the operation gives. */
    void (*run)(void *self, struct store_request *r);
    /* Called when nothing waits: chores. Returns the milliseconds after which it wants to be called again. */
    int (*idle)(void *self);
    int (*fd)(void *self); /* to be watched for reading (then idle is called); -1 = none */
};

extern const struct place place_sqlite, place_redis;

/* ---- of both places ---- */

/* Copies into the request's arena. Fails r (ERR_MEMORY) and returns false where the answer gets too large. */
bool place_text(struct store_request *r, struct str *out, const void *bytes, size_t len);
/* One more job or session of the answer; NULL and r failed where there is no room. */
struct store_job *place_add_job(struct store_request *r, size_t n_max);
struct store_session *place_add_session(struct store_request *r, size_t n_max);
/* Ids of jobs: "job-" + 12 hexadecimal digits of Unix milliseconds (made to rise within a process) + '-' + 8 random ones. */
void place_job_id(char out[STORE_JOB_ID_BYTES], int64_t now_ms);
/* Unix time, for what is kept and read by others. */
int64_t place_now_ms(void);
/* Of a clock that nobody sets, for the waits of this process. */
int64_t place_mono_ms(void);
/* The same words, whatever the place. All return false. */
bool place_no_job(struct err *err, struct str id);
bool place_no_session(struct err *err, struct str id);
bool place_fenced(struct err *err, struct str id, uint64_t token);
bool place_jobs_full(struct err *err);
bool place_sessions_full(struct err *err);
bool place_session_changed(struct err *err, struct str id);
bool place_value_taken(struct err *err, struct str key);
bool place_lease_held(struct err *err, struct str key, int64_t ms);

/* ---- sqlite.c: for tests of migrations ---- */
extern const char *const sqlite_steps[]; /* step i brings a file from version i to i + 1 */
extern const size_t sqlite_n_steps;

#endif

/* The store in an SQLite file; see store.h. The only file that knows sqlite3.h.
 *
 * WAL, one connection, on the store's thread. A commit is written to the log file before it is acknowledged, so it survives
 * the process. The log is synced (power cuts) with what people were promised: a job's creation, a cancel, a deleted session.
 * The rest is synced with the next of those or at a checkpoint, and losing it is harmless: a job whose last updates are lost
 * goes on from an earlier moment. Checkpoints are made when nothing waits, so that no operation pays for one.
 *
 * Several processes may use one file: every change is one transaction, and jobs are told apart by leases.
 *
 * The schema's version is PRAGMA user_version; sqlite_steps[i] brings a file from version i to i + 1. A step is never
 * changed once it was published. A file of a newer program is refused. */
#include "store/impl.h"

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>

#define CACHE_KIB            2048
#define CHECKPOINT_PAGES     512   /* of the log, when nothing waits */
#define CHECKPOINT_PAGES_MAX 16384 /* whatever waits */
#define IDLE_MS              1000
#define TRY_EVERY_MS         1000 /* whether writing is possible again */
#define PRUNE_EVERY_MS       60000
#define COUNT_EVERY_MS       10000

#define TEXT_OF_NUMBER(x)  TEXT_OF_NUMBER_(x)
#define TEXT_OF_NUMBER_(x) #x

const char *const sqlite_steps[] = {
    /* 1: jobs. status as enum store_status: 0 and 1 are active */
    "CREATE TABLE jobs(id TEXT PRIMARY KEY, key TEXT NOT NULL, model TEXT NOT NULL, status INTEGER NOT NULL,"
    " progress REAL NOT NULL DEFAULT 0, created_ms INTEGER NOT NULL, changed_ms INTEGER NOT NULL,"
    " finished_ms INTEGER NOT NULL DEFAULT 0, token INTEGER NOT NULL DEFAULT 0, claims INTEGER NOT NULL DEFAULT 0,"
    " lease_ms INTEGER NOT NULL DEFAULT 0, cancel INTEGER NOT NULL DEFAULT 0, owner TEXT NOT NULL DEFAULT '',"
    " error TEXT NOT NULL DEFAULT '', request TEXT NOT NULL, detail TEXT NOT NULL DEFAULT '',"
    " files TEXT NOT NULL DEFAULT '');"
    "CREATE UNIQUE INDEX jobs_key ON jobs(key) WHERE status < 2;"
    "CREATE INDEX jobs_status ON jobs(status, id);"
    "CREATE INDEX jobs_model ON jobs(model, id);"
    "CREATE INDEX jobs_changed ON jobs(changed_ms);"
    "CREATE TABLE tokens(last INTEGER NOT NULL);"
    "INSERT INTO tokens VALUES(0);",
    /* 2: sessions */
    "CREATE TABLE sessions(owner TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL, created_ms INTEGER NOT NULL,"
    " changed_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL, n_messages INTEGER NOT NULL, text TEXT NOT NULL,"
    " PRIMARY KEY(owner, id));"
    "CREATE INDEX sessions_changed ON sessions(owner, changed_ms);"
    "CREATE INDEX sessions_expires ON sessions(expires_ms);",
    /* 3: leases and values */
    "CREATE TABLE leases(key TEXT PRIMARY KEY, owner TEXT NOT NULL, token INTEGER NOT NULL, until_ms INTEGER NOT NULL)"
    " WITHOUT ROWID;"
    "CREATE TABLE entries(key TEXT PRIMARY KEY, text TEXT NOT NULL, expires_ms INTEGER NOT NULL);"
    "CREATE INDEX entries_expires ON entries(expires_ms);",
};
const size_t sqlite_n_steps = sizeof sqlite_steps / sizeof *sqlite_steps;

enum statement {
    BEGIN,
    COMMIT,
    ROLLBACK,
    JOB_ACTIVE,
    JOB_COUNT,
    JOB_INSERT,
    JOB_GET,
    JOB_NEXT,
    JOB_CLAIM,
    JOB_UPDATE,
    JOB_CANCEL,
    JOB_REQUEUE,
    TOKEN,
    SESSION_GET,
    SESSION_EXTEND,
    SESSION_COUNT,
    SESSION_INSERT,
    SESSION_UPDATE,
    SESSION_DELETE,
    SESSION_LIST,
    LEASE_GET,
    LEASE_SET,
    LEASE_GIVE,
    VALUE_GET,
    VALUE_SET,
    VALUE_REMOVE,
    PRUNE_JOBS_OLD,
    PRUNE_JOBS_MANY,
    PRUNE_SESSIONS,
    PRUNE_LEASES,
    PRUNE_VALUES,
    N_STATEMENTS
};

/* The first columns are those of read_job. */
#define JOB_COLUMNS "id,status,progress,created_ms,changed_ms,finished_ms,token,claims,cancel,owner,model,error,request,detail"

static const char *const sql[N_STATEMENTS] = {
    [BEGIN] = "BEGIN IMMEDIATE",
    [COMMIT] = "COMMIT",
    [ROLLBACK] = "ROLLBACK",
    [JOB_ACTIVE] = "SELECT " JOB_COLUMNS " FROM jobs WHERE key = ?1 AND (status < 2 OR (status = 2 AND finished_ms > ?2))"
                   " ORDER BY status, id DESC LIMIT 1",
    [JOB_COUNT] = "SELECT (SELECT count(*) FROM jobs WHERE status = 0), (SELECT count(*) FROM jobs WHERE status = 1)",
    [JOB_INSERT] = "INSERT INTO jobs(id, key, model, status, created_ms, changed_ms, request) VALUES(?1, ?2, ?3, 0, ?4, ?4, ?5)"
                   " RETURNING " JOB_COLUMNS,
    [JOB_GET] = "SELECT " JOB_COLUMNS ",files FROM jobs WHERE id = ?1",
    /* a queued one, or a running one whose lease is over */
    [JOB_NEXT] = "SELECT id, cancel FROM jobs WHERE status = 0 OR (status = 1 AND lease_ms < ?1) ORDER BY id LIMIT 1",
    [JOB_CLAIM] = "UPDATE jobs SET status = ?2, owner = ?3, token = ?4, lease_ms = ?5, changed_ms = ?6, claims = claims + 1,"
                  " finished_ms = CASE WHEN ?2 > 1 THEN ?6 ELSE 0 END WHERE id = ?1 RETURNING " JOB_COLUMNS,
    [JOB_UPDATE] = "UPDATE jobs SET status = CASE WHEN cancel AND ?3 <> 1 THEN 4 ELSE ?3 END, progress = max(progress, ?4),"
                   " detail = CASE WHEN ?5 = '' THEN detail ELSE ?5 END, files = CASE WHEN ?6 = '' THEN files ELSE ?6 END,"
                   " error = ?7, changed_ms = max(changed_ms, ?8), lease_ms = ?9,"
                   " owner = CASE WHEN ?3 = 1 THEN owner ELSE '' END,"
                   " finished_ms = CASE WHEN ?3 > 1 OR (cancel AND ?3 <> 1) THEN ?8 ELSE 0 END"
                   " WHERE id = ?1 AND token = ?2 AND status = 1 RETURNING status, cancel, progress",
    [JOB_CANCEL] = "UPDATE jobs SET cancel = 1, changed_ms = max(changed_ms, ?2),"
                   " status = CASE WHEN status = 0 OR lease_ms < ?2 THEN 4 ELSE status END,"
                   " finished_ms = CASE WHEN status = 0 OR lease_ms < ?2 THEN ?2 ELSE 0 END WHERE id = ?1 AND status < 2",
    [JOB_REQUEUE] = "UPDATE jobs SET status = CASE WHEN cancel THEN 4 ELSE 0 END, owner = '', changed_ms = max(changed_ms, ?2),"
                    " finished_ms = CASE WHEN cancel THEN ?2 ELSE 0 END WHERE status = 1 AND owner = ?1 RETURNING id",
    [TOKEN] = "UPDATE tokens SET last = last + 1 RETURNING last",
    [SESSION_GET] = "SELECT id, created_ms, changed_ms, expires_ms, version, n_messages, text FROM sessions"
                    " WHERE owner = ?1 AND id = ?2 AND expires_ms > ?3",
    [SESSION_EXTEND] = "UPDATE sessions SET expires_ms = max(expires_ms, ?4) WHERE owner = ?1 AND id = ?2 AND expires_ms > ?3",
    [SESSION_COUNT] = "SELECT count(*) FROM sessions WHERE expires_ms > ?1",
    [SESSION_INSERT] =
        "INSERT OR REPLACE INTO sessions(owner, id, version, created_ms, changed_ms, expires_ms, n_messages, text)"
        " VALUES(?1, ?2, 1, ?3, ?3, ?4, ?5, ?6)",
    [SESSION_UPDATE] = "UPDATE sessions SET version = version + 1, changed_ms = ?3, expires_ms = ?4, n_messages = ?5, text = ?6"
                       " WHERE owner = ?1 AND id = ?2",
    [SESSION_DELETE] = "DELETE FROM sessions WHERE owner = ?1 AND id = ?2 AND expires_ms > ?3",
    [SESSION_LIST] = "SELECT id, created_ms, changed_ms, expires_ms, version, n_messages FROM sessions WHERE owner = ?1"
                     " AND expires_ms > ?2 ORDER BY changed_ms DESC LIMIT ?3",
    [LEASE_GET] = "SELECT owner, token, until_ms FROM leases WHERE key = ?1",
    [LEASE_SET] = "INSERT OR REPLACE INTO leases(key, owner, token, until_ms) VALUES(?1, ?2, ?3, ?4)",
    [LEASE_GIVE] = "DELETE FROM leases WHERE key = ?1 AND owner = ?2",
    [VALUE_GET] = "SELECT text FROM entries WHERE key = ?1 AND expires_ms > ?2",
    [VALUE_SET] = "INSERT OR REPLACE INTO entries(key, text, expires_ms) VALUES(?1, ?2, ?3)",
    [VALUE_REMOVE] = "DELETE FROM entries WHERE key = ?1",
    [PRUNE_JOBS_OLD] = "DELETE FROM jobs WHERE status > 1 AND changed_ms < ?1",
    [PRUNE_JOBS_MANY] = "DELETE FROM jobs WHERE status > 1 AND id < (SELECT id FROM jobs WHERE status > 1 ORDER BY id DESC"
                        " LIMIT 1 OFFSET " TEXT_OF_NUMBER(STORE_JOBS_KEPT_MAX) " - 1)",
    [PRUNE_SESSIONS] = "DELETE FROM sessions WHERE expires_ms <= ?1",
    [PRUNE_LEASES] = "DELETE FROM leases WHERE until_ms < ?1",
    [PRUNE_VALUES] = "DELETE FROM entries WHERE expires_ms <= ?1",
};

struct sqlite {
    sqlite3 *db;
    sqlite3_stmt *statements[N_STATEMENTS];
    char path[1024];
    struct place_news news;
    int synced;                     /* PRAGMA synchronous is FULL now */
    int log_pages;                  /* since the last checkpoint */
    bool unwritable;                /* the last write failed; reading may go on */
    int64_t pruned_ms, tried_ms;    /* place_mono_ms, as counted_ms */
    int64_t n_sessions, counted_ms; /* as of the last count (0: there was none), and those that were new since */
};

/* ---- errors and statements ---- */

static bool fail(struct sqlite *s, struct err *err)
{
    int code = s->db ? sqlite3_errcode(s->db) & 0xff : SQLITE_CANTOPEN;
    const char *text = s->db ? sqlite3_errmsg(s->db) : "out of memory";
    switch (code) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return err_set(err, ERR_UNAVAILABLE,
                       "The store's file '%s' has been locked by another program for over %d ms. End that "
                       "program (`fuser '%s'` names it), or give this server another --data-dir.",
                       s->path, STORE_BUSY_MS, s->path);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return err_set(err, ERR_IO,
                       "The store's file '%s' is damaged (%s). Stop the server, then put a backup in its place, or "
                       "save what is readable (docs/operations.md, \"Damage\"), or move the file away: jobs and sessions are "
                       "then forgotten, models stay.",
                       s->path, text);
    case SQLITE_FULL:
        return err_set(err, ERR_IO,
                       "The disk under the store's file '%s' is full: make room there and try again. To delete "
                       "from the store needs some room, too.",
                       s->path);
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
        return err_set(err, ERR_IO,
                       "The store's file '%s' cannot be opened for writing (%s): check its rights and those of its "
                       "folder, or give another --data-dir or --store.",
                       s->path, text);
    default: return err_set(err, ERR_IO, "The store's file '%s': %s.", s->path, text);
    }
}

static sqlite3_stmt *use(struct sqlite *s, enum statement which)
{
    return s->statements[which];
}

static void bind_str(sqlite3_stmt *st, int at, struct str text)
{
    sqlite3_bind_text64(st, at, text.ptr ? text.ptr : "", text.len, SQLITE_STATIC, SQLITE_UTF8);
}

static void bind_int(sqlite3_stmt *st, int at, int64_t value)
{
    sqlite3_bind_int64(st, at, value);
}

static void done_with(sqlite3_stmt *st)
{
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
}

/* 1: a row. 0: none. -1: failed (err). */
static int step(struct sqlite *s, sqlite3_stmt *st, struct err *err)
{
    int rc = sqlite3_step(st);
    if (rc == SQLITE_ROW)
        return 1;
    if (rc == SQLITE_DONE)
        return 0;
    fail(s, err);
    return -1;
}

/* For statements whose rows do not matter. */
static bool run_statement(struct sqlite *s, sqlite3_stmt *st, struct err *err)
{
    int row;
    while ((row = step(s, st, err)) == 1) {
    }
    done_with(st);
    return row == 0;
}

enum promise { LAZY, SYNCED };

static bool begin(struct sqlite *s, enum promise promise, struct err *err)
{
    int synced = promise == SYNCED;
    if (s->synced != synced) {
        if (sqlite3_exec(s->db, synced ? "PRAGMA synchronous=FULL" : "PRAGMA synchronous=NORMAL", NULL, NULL, NULL) !=
            SQLITE_OK)
            return fail(s, err);
        s->synced = synced;
    }
    return run_statement(s, use(s, BEGIN), err);
}

/* Ends what begin began: keeps it, or, where `ok` is false, forgets it. */
static bool end(struct sqlite *s, bool ok, struct err *err)
{
    if (ok && run_statement(s, use(s, COMMIT), err))
        return true;
    if (!sqlite3_get_autocommit(s->db))
        run_statement(s, use(s, ROLLBACK), NULL);
    return false;
}

static int64_t next_token(struct sqlite *s, struct err *err)
{
    sqlite3_stmt *st = use(s, TOKEN);
    int64_t token = step(s, st, err) == 1 ? sqlite3_column_int64(st, 0) : 0;
    done_with(st);
    return token;
}

/* ---- jobs ---- */

static bool column_text(struct store_request *r, sqlite3_stmt *st, int column, struct str *out)
{
    const void *bytes = sqlite3_column_text(st, column);
    return place_text(r, out, bytes, (size_t)sqlite3_column_bytes(st, column));
}

/* Adds the row that `st` is at (JOB_COLUMNS, and files where it has that column). */
static bool read_job(struct store_request *r, sqlite3_stmt *st, size_t n_max)
{
    struct store_job *j = place_add_job(r, n_max);
    if (!j)
        return r->ok;
    snprintf(j->id, sizeof j->id, "%s", (const char *)sqlite3_column_text(st, 0));
    j->status = (enum store_status)sqlite3_column_int(st, 1);
    j->progress = sqlite3_column_double(st, 2);
    j->created_ms = sqlite3_column_int64(st, 3);
    j->changed_ms = sqlite3_column_int64(st, 4);
    j->finished_ms = sqlite3_column_int64(st, 5);
    j->token = (uint64_t)sqlite3_column_int64(st, 6);
    j->claims = (uint64_t)sqlite3_column_int64(st, 7);
    j->cancel = sqlite3_column_int(st, 8);
    return column_text(r, st, 9, &j->owner) && column_text(r, st, 10, &j->model) && column_text(r, st, 11, &j->error) &&
           column_text(r, st, 12, &j->request) && column_text(r, st, 13, &j->detail) &&
           (sqlite3_column_count(st) < 15 || column_text(r, st, 14, &j->files));
}

/* At most one row, as jobs[0]. 1: there was one. 0: none. -1: failed. */
static int one_job(struct sqlite *s, struct store_request *r, sqlite3_stmt *st)
{
    int row = step(s, st, &r->err);
    if (row == 1 && !read_job(r, st, 1))
        row = -1;
    if (row == 1 && step(s, st, &r->err) < 0) /* RETURNING gives its row before the statement is over */
        row = -1;
    done_with(st);
    return row;
}

static bool count_jobs(struct sqlite *s, struct store_request *r)
{
    sqlite3_stmt *st = use(s, JOB_COUNT);
    bool ok = step(s, st, &r->err) == 1;
    if (ok) {
        r->n_queued = (size_t)sqlite3_column_int64(st, 0);
        r->n_running = (size_t)sqlite3_column_int64(st, 1);
    }
    done_with(st);
    return ok;
}

static bool job_create(struct sqlite *s, struct store_request *r)
{
    int64_t now = place_now_ms();
    sqlite3_stmt *st = use(s, JOB_ACTIVE);
    bind_str(st, 1, r->key);
    bind_int(st, 2, r->ttl_ms > 0 ? now - r->ttl_ms : INT64_MAX);
    int there = one_job(s, r, st);
    if (there != 0)
        return there == 1;
    if (!count_jobs(s, r))
        return false;
    if (r->n_queued + r->n_running >= STORE_JOBS_ACTIVE_MAX)
        return place_jobs_full(&r->err);
    char id[STORE_JOB_ID_BYTES];
    place_job_id(id, now);
    st = use(s, JOB_INSERT);
    bind_str(st, 1, str_from(id));
    bind_str(st, 2, r->key);
    bind_str(st, 3, r->model);
    bind_int(st, 4, now);
    bind_str(st, 5, r->text);
    r->created = 1;
    return one_job(s, r, st) == 1;
}

static bool job_get(struct sqlite *s, struct store_request *r)
{
    sqlite3_stmt *st = use(s, JOB_GET);
    bind_str(st, 1, r->id);
    int row = one_job(s, r, st);
    return row == 1 || (row == 0 && place_no_job(&r->err, r->id));
}

/* Ids by the best index first, then their rows. */
static bool job_list(struct sqlite *s, struct store_request *r)
{
    struct buf text;
    buf_init(&text, 2048);
    buf_printf(&text,
               "SELECT " JOB_COLUMNS " FROM jobs WHERE id IN (SELECT id FROM jobs WHERE changed_ms >= ?1%s%s"
               " ORDER BY id DESC LIMIT ?4) ORDER BY id DESC",
               r->status < STORE_STATUS_COUNT ? " AND status = ?2" : "", r->model.len ? " AND model = ?3" : "");
    sqlite3_stmt *st = NULL;
    bool ok = sqlite3_prepare_v2(s->db, buf_str(&text).ptr, -1, &st, NULL) == SQLITE_OK || fail(s, &r->err);
    buf_release(&text);
    if (!ok)
        return false;
    bind_int(st, 1, r->since_ms);
    if (r->status < STORE_STATUS_COUNT)
        bind_int(st, 2, r->status);
    if (r->model.len)
        bind_str(st, 3, r->model);
    bind_int(st, 4, (int64_t)r->limit);
    int row;
    while ((row = step(s, st, &r->err)) == 1 && ok)
        ok = read_job(r, st, r->limit);
    sqlite3_finalize(st);
    return ok && row == 0;
}

/* Claims of jobs that somebody cancelled while nobody had them end those; then the next one is tried. */
static bool job_claim(struct sqlite *s, struct store_request *r)
{
    int64_t now = place_now_ms();
    while (r->limit > 0) {
        sqlite3_stmt *st = use(s, JOB_NEXT);
        char id[STORE_JOB_ID_BYTES] = "";
        bind_int(st, 1, now);
        int row = step(s, st, &r->err), cancel = 0;
        if (row == 1) {
            snprintf(id, sizeof id, "%s", (const char *)sqlite3_column_text(st, 0));
            cancel = sqlite3_column_int(st, 1);
        }
        done_with(st);
        if (row < 0)
            return false;
        if (row == 0)
            break;
        int64_t token = next_token(s, &r->err);
        if (!token)
            return false;
        st = use(s, JOB_CLAIM);
        bind_str(st, 1, str_from(id));
        bind_int(st, 2, cancel ? STORE_CANCELLED : STORE_RUNNING);
        bind_str(st, 3, cancel ? STR("") : r->owner);
        bind_int(st, 4, token);
        bind_int(st, 5, now + r->ttl_ms);
        bind_int(st, 6, now);
        r->n_jobs = 0;
        if (one_job(s, r, st) != 1)
            return false;
        if (!cancel)
            break;
        r->n_jobs = 0;
    }
    return count_jobs(s, r);
}

static bool job_update(struct sqlite *s, struct store_request *r)
{
    int64_t now = place_now_ms();
    sqlite3_stmt *st = use(s, JOB_UPDATE);
    bind_str(st, 1, r->id);
    bind_int(st, 2, (int64_t)r->token);
    bind_int(st, 3, r->status);
    sqlite3_bind_double(st, 4, r->progress);
    bind_str(st, 5, r->detail);
    bind_str(st, 6, r->files);
    bind_str(st, 7, r->text);
    bind_int(st, 8, now);
    bind_int(st, 9, now + r->ttl_ms);
    int row = step(s, st, &r->err);
    struct store_job *j = row == 1 ? place_add_job(r, 1) : NULL;
    if (j) {
        snprintf(j->id, sizeof j->id, "%.*s", (int)r->id.len, r->id.ptr);
        j->status = (enum store_status)sqlite3_column_int(st, 0);
        j->cancel = sqlite3_column_int(st, 1);
        j->progress = sqlite3_column_double(st, 2);
        j->token = r->token;
        j->changed_ms = now;
        row = step(s, st, &r->err) < 0 ? -1 : 1;
    }
    done_with(st);
    return row == 1 ? j != NULL : row == 0 && place_fenced(&r->err, r->id, r->token);
}

static bool job_cancel(struct sqlite *s, struct store_request *r)
{
    sqlite3_stmt *st = use(s, JOB_CANCEL);
    bind_str(st, 1, r->id);
    bind_int(st, 2, place_now_ms());
    return run_statement(s, st, &r->err) && job_get(s, r);
}

static bool job_requeue(struct sqlite *s, struct store_request *r)
{
    sqlite3_stmt *st = use(s, JOB_REQUEUE);
    bind_str(st, 1, r->owner);
    bind_int(st, 2, place_now_ms());
    return run_statement(s, st, &r->err);
}

/* ---- sessions ---- */

static bool read_session(struct store_request *r, sqlite3_stmt *st, size_t n_max)
{
    struct store_session *e = place_add_session(r, n_max);
    if (!e)
        return r->ok;
    e->created_ms = sqlite3_column_int64(st, 1);
    e->changed_ms = sqlite3_column_int64(st, 2);
    e->expires_ms = sqlite3_column_int64(st, 3);
    e->version = (uint64_t)sqlite3_column_int64(st, 4);
    e->n_messages = (uint64_t)sqlite3_column_int64(st, 5);
    return column_text(r, st, 0, &e->id) && (sqlite3_column_count(st) < 7 || column_text(r, st, 6, &e->text));
}

/* 1: sessions[0] is it. 0: there is none. -1: failed. */
static int find_session(struct sqlite *s, struct store_request *r, int64_t now)
{
    sqlite3_stmt *st = use(s, SESSION_GET);
    bind_str(st, 1, r->owner);
    bind_str(st, 2, r->id);
    bind_int(st, 3, now);
    int row = step(s, st, &r->err);
    if (row == 1 && !read_session(r, st, 1))
        row = -1;
    done_with(st);
    return row;
}

static bool session_get(struct sqlite *s, struct store_request *r)
{
    int64_t now = place_now_ms();
    if (r->ttl_ms > 0) {
        sqlite3_stmt *st = use(s, SESSION_EXTEND);
        bind_str(st, 1, r->owner);
        bind_str(st, 2, r->id);
        bind_int(st, 3, now);
        bind_int(st, 4, now + r->ttl_ms);
        if (!run_statement(s, st, &r->err))
            return false;
    }
    int row = find_session(s, r, now);
    return row == 1 || (row == 0 && place_no_session(&r->err, r->id));
}

/* Counting takes longer than all else that a new session does: not for each. */
static bool session_room(struct sqlite *s, struct store_request *r, int64_t now)
{
    bool ok = true;
    int64_t mono_ms = place_mono_ms();
    if (s->n_sessions >= STORE_SESSIONS_MAX || !s->counted_ms || mono_ms - s->counted_ms > COUNT_EVERY_MS) {
        sqlite3_stmt *st = use(s, SESSION_COUNT);
        bind_int(st, 1, now);
        ok = step(s, st, &r->err) == 1;
        s->n_sessions = ok ? sqlite3_column_int64(st, 0) : 0;
        s->counted_ms = ok ? mono_ms : 0;
        done_with(st);
    }
    if (ok && s->n_sessions >= STORE_SESSIONS_MAX)
        ok = place_sessions_full(&r->err);
    s->n_sessions += ok;
    return ok;
}

static bool session_put(struct sqlite *s, struct store_request *r)
{
    int64_t now = place_now_ms();
    int there = find_session(s, r, now);
    if (there < 0)
        return false;
    if ((there ? r->sessions[0].version : 0) != r->token)
        return place_session_changed(&r->err, r->id);
    if (!there && !session_room(s, r, now))
        return false;
    sqlite3_stmt *st = use(s, there ? SESSION_UPDATE : SESSION_INSERT);
    bind_str(st, 1, r->owner);
    bind_str(st, 2, r->id);
    bind_int(st, 3, now);
    bind_int(st, 4, now + r->ttl_ms);
    bind_int(st, 5, (int64_t)r->n_messages);
    bind_str(st, 6, r->text);
    if (!run_statement(s, st, &r->err))
        return false;
    struct store_session *e = there ? &r->sessions[0] : place_add_session(r, 1);
    if (!e || !place_text(r, &e->id, r->id.ptr, r->id.len))
        return false;
    e->text = (struct str){0};
    e->version = r->token + 1;
    e->changed_ms = now;
    e->created_ms = there ? e->created_ms : now;
    e->expires_ms = now + r->ttl_ms;
    e->n_messages = r->n_messages;
    return true;
}

static bool session_delete(struct sqlite *s, struct store_request *r)
{
    sqlite3_stmt *st = use(s, SESSION_DELETE);
    bind_str(st, 1, r->owner);
    bind_str(st, 2, r->id);
    bind_int(st, 3, place_now_ms());
    return run_statement(s, st, &r->err) && (sqlite3_changes(s->db) > 0 || place_no_session(&r->err, r->id));
}

static bool session_list(struct sqlite *s, struct store_request *r)
{
    sqlite3_stmt *st = use(s, SESSION_LIST);
    bind_str(st, 1, r->owner);
    bind_int(st, 2, place_now_ms());
    bind_int(st, 3, (int64_t)r->limit);
    int row;
    bool ok = true;
    while ((row = step(s, st, &r->err)) == 1 && ok)
        ok = read_session(r, st, r->limit);
    done_with(st);
    return ok && row == 0;
}

/* ---- leases and values ---- */

static bool lease_take(struct sqlite *s, struct store_request *r)
{
    int64_t now = place_now_ms(), token = 0;
    sqlite3_stmt *st = use(s, LEASE_GET);
    bind_str(st, 1, r->key);
    int row = step(s, st, &r->err);
    bool ok = row >= 0;
    if (row == 1) {
        struct str owner = {(const char *)sqlite3_column_text(st, 0), (size_t)sqlite3_column_bytes(st, 0)};
        int64_t left = sqlite3_column_int64(st, 2) - now;
        if (left > 0 && str_equal(owner, r->owner))
            token = sqlite3_column_int64(st, 1);
        else if (left > 0)
            ok = place_lease_held(&r->err, r->key, left);
    }
    done_with(st);
    if (!ok || (!token && !(token = next_token(s, &r->err))))
        return false;
    st = use(s, LEASE_SET);
    bind_str(st, 1, r->key);
    bind_str(st, 2, r->owner);
    bind_int(st, 3, token);
    bind_int(st, 4, now + r->ttl_ms);
    r->token = (uint64_t)token;
    return run_statement(s, st, &r->err);
}

static bool lease_give(struct sqlite *s, struct store_request *r)
{
    sqlite3_stmt *st = use(s, LEASE_GIVE);
    bind_str(st, 1, r->key);
    bind_str(st, 2, r->owner);
    return run_statement(s, st, &r->err);
}

static bool value_put(struct sqlite *s, struct store_request *r)
{
    sqlite3_stmt *st = use(s, r->ttl_ms > 0 ? VALUE_SET : VALUE_REMOVE);
    bind_str(st, 1, r->key);
    if (r->ttl_ms > 0) {
        bind_str(st, 2, r->text);
        bind_int(st, 3, place_now_ms() + r->ttl_ms);
    }
    return run_statement(s, st, &r->err);
}

/* *there: whether there is one, which is then in r->found. */
static bool value_get(struct sqlite *s, struct store_request *r, bool *there)
{
    sqlite3_stmt *st = use(s, VALUE_GET);
    bind_str(st, 1, r->key);
    bind_int(st, 2, place_now_ms());
    int row = step(s, st, &r->err);
    bool ok = row >= 0;
    *there = row == 1;
    if (*there)
        ok = column_text(r, st, 0, &r->found);
    done_with(st);
    return ok;
}

static bool value_set(struct sqlite *s, struct store_request *r)
{
    bool there;
    if (r->was.len) {
        if (!value_get(s, r, &there))
            return false;
        if (there && !str_equal(r->found, r->was))
            return place_value_taken(&r->err, r->key);
    }
    return value_put(s, r);
}

static bool value_claim(struct sqlite *s, struct store_request *r)
{
    bool there;
    if (!value_get(s, r, &there))
        return false;
    if (there)
        return true;
    r->created = 1;
    return value_put(s, r);
}

static bool prune(struct sqlite *s, struct store_request *r)
{
    int64_t now = place_now_ms();
    const struct {
        enum statement which;
        int64_t before;
    } all[] = {{PRUNE_JOBS_OLD, now - STORE_JOBS_KEPT_MS},
               {PRUNE_JOBS_MANY, 0},
               {PRUNE_SESSIONS, now},
               {PRUNE_LEASES, now},
               {PRUNE_VALUES, now}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        sqlite3_stmt *st = use(s, all[i].which);
        if (sqlite3_bind_parameter_count(st))
            bind_int(st, 1, all[i].before);
        if (!run_statement(s, st, &r->err))
            return false;
    }
    return true;
}

/* ---- the place ---- */

static const struct operation {
    bool (*run)(struct sqlite *s, struct store_request *r);
    enum { READS, WRITES } kind;
    enum promise promise;
    int tells; /* 1: a job changed */
} operations[STORE_OP_COUNT] = {
    [STORE_JOB_CREATE] = {job_create, WRITES, SYNCED, 1},  [STORE_JOB_GET] = {job_get, READS, LAZY, 0},
    [STORE_JOB_LIST] = {job_list, READS, LAZY, 0},         [STORE_JOB_CLAIM] = {job_claim, WRITES, LAZY, 1},
    [STORE_JOB_UPDATE] = {job_update, WRITES, LAZY, 1},    [STORE_JOB_CANCEL] = {job_cancel, WRITES, SYNCED, 1},
    [STORE_JOB_REQUEUE] = {job_requeue, WRITES, LAZY, 0},  [STORE_SESSION_GET] = {session_get, WRITES, LAZY, 0},
    [STORE_SESSION_PUT] = {session_put, WRITES, LAZY, 0},  [STORE_SESSION_DELETE] = {session_delete, WRITES, SYNCED, 0},
    [STORE_SESSION_LIST] = {session_list, READS, LAZY, 0}, [STORE_LEASE_TAKE] = {lease_take, WRITES, LAZY, 0},
    [STORE_LEASE_GIVE] = {lease_give, WRITES, LAZY, 0},    [STORE_VALUE_CLAIM] = {value_claim, WRITES, LAZY, 0},
    [STORE_VALUE_SET] = {value_set, WRITES, LAZY, 0},      [STORE_PRUNE] = {prune, WRITES, LAZY, 0},
};

/* Damage and a full disk are told to /health; what a request did wrong is not. Where writing failed, only a write that
 * changed something shows that it is over. */
static void tell_state(struct sqlite *s, const struct store_request *r, bool writes, bool wrote)
{
    bool broken = !r->ok && (r->err.code == ERR_IO || r->err.code == ERR_UNAVAILABLE);
    if (broken)
        s->unwritable |= writes;
    else if (!r->ok || (s->unwritable && !wrote))
        return;
    else
        s->unwritable = false;
    s->news.available(s->news.store, broken ? r->err.text : "");
}

/* Something is written, so that it shows whether that is possible again. */
static void try_write(struct sqlite *s)
{
    struct store_request r = {.op = STORE_PRUNE};
    s->tried_ms = place_mono_ms();
    r.ok = begin(s, LAZY, &r.err) && end(s, next_token(s, &r.err) != 0, &r.err);
    tell_state(s, &r, true, r.ok);
}

static void run(void *self, struct store_request *r)
{
    struct sqlite *s = self;
    const struct operation *o = &operations[r->op];
    int64_t changes = sqlite3_total_changes64(s->db);
    if (o->kind == READS) {
        r->ok = o->run(s, r);
    } else {
        r->ok = begin(s, o->promise, &r->err);
        if (r->ok) {
            bool ok = o->run(s, r);
            r->ok = end(s, ok, &r->err);
        }
    }
    if (!r->ok && r->err.code == ERR_NONE)
        err_set(&r->err, ERR_INTERNAL, "The store's operation %d failed without a reason.", (int)r->op);
    if (o->tells && r->ok && r->n_jobs)
        s->news.job_changed(s->news.store, r->jobs[0].id);
    tell_state(s, r, o->kind != READS, sqlite3_total_changes64(s->db) != changes);
}

static int on_log(void *user, sqlite3 *db, const char *name, int n_pages)
{
    (void)db;
    (void)name;
    struct sqlite *s = user;
    s->log_pages = n_pages;
    if (n_pages >= CHECKPOINT_PAGES_MAX)
        sqlite3_wal_checkpoint_v2(db, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
    return SQLITE_OK;
}

static int idle(void *self)
{
    struct sqlite *s = self;
    if (s->log_pages >= CHECKPOINT_PAGES &&
        sqlite3_wal_checkpoint_v2(s->db, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL) == SQLITE_OK)
        s->log_pages = 0;
    if (place_mono_ms() - s->pruned_ms > PRUNE_EVERY_MS) {
        struct store_request r = {.op = STORE_PRUNE};
        s->pruned_ms = place_mono_ms();
        run(s, &r);
    }
    if (s->unwritable && place_mono_ms() - s->tried_ms > TRY_EVERY_MS)
        try_write(s);
    return s->unwritable ? TRY_EVERY_MS : IDLE_MS;
}

static int no_fd(void *self)
{
    (void)self;
    return -1;
}

static void close_file(void *self)
{
    struct sqlite *s = self;
    for (size_t i = 0; i < N_STATEMENTS; i++)
        sqlite3_finalize(s->statements[i]);
    sqlite3_close(s->db);
    free(s);
}

static bool exec(struct sqlite *s, const char *text, struct err *err)
{
    return sqlite3_exec(s->db, text, NULL, NULL, NULL) == SQLITE_OK || fail(s, err);
}

static bool read_version(struct sqlite *s, int64_t *version, struct err *err)
{
    sqlite3_stmt *st = NULL;
    bool ok = sqlite3_prepare_v2(s->db, "PRAGMA user_version", -1, &st, NULL) == SQLITE_OK && sqlite3_step(st) == SQLITE_ROW;
    if (ok)
        *version = sqlite3_column_int64(st, 0);
    else
        fail(s, err);
    sqlite3_finalize(st);
    return ok;
}

/* All steps that are missing, in one transaction: a file is of one version or the other, never between. */
static bool migrate(struct sqlite *s, struct err *err)
{
    int64_t version;
    if (!exec(s, "BEGIN IMMEDIATE", err))
        return false;
    bool ok = read_version(s, &version, err);
    if (ok && (version < 0 || (uint64_t)version > sqlite_n_steps))
        ok = err_set(err, ERR_IO,
                     "The store's file '%s' has the schema %lld, written by a newer inferd; this one knows schemas "
                     "up to %zu. Start the newer program, or give another --data-dir.",
                     s->path, (long long)version, sqlite_n_steps);
    bool changed = ok && (uint64_t)version < sqlite_n_steps;
    for (size_t i = (size_t)(ok ? version : 0); ok && i < sqlite_n_steps; i++)
        ok = exec(s, sqlite_steps[i], err) || err_prefix(err, "Bringing the schema from %zu to %zu", i, i + 1);
    char text[64];
    snprintf(text, sizeof text, "PRAGMA user_version=%zu", sqlite_n_steps);
    ok = ok && (!changed || exec(s, text, err)) && exec(s, "COMMIT", err);
    if (!ok && !sqlite3_get_autocommit(s->db))
        exec(s, "ROLLBACK", NULL);
    return ok;
}

static void *open_file(const char *where, const struct place_news *news, struct err *err)
{
    struct sqlite *s = calloc(1, sizeof *s);
    if (!s) {
        err_set(err, ERR_MEMORY, "Out of memory.");
        return NULL;
    }
    s->news = *news;
    s->pruned_ms = place_mono_ms();
    snprintf(s->path, sizeof s->path, "%s", where);
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    bool ok = sqlite3_open_v2(where, &s->db, flags, NULL) == SQLITE_OK || fail(s, err);
    char pragmas[256];
    snprintf(pragmas, sizeof pragmas,
             "PRAGMA journal_mode=WAL;PRAGMA synchronous=NORMAL;PRAGMA cache_size=-%d;"
             "PRAGMA wal_autocheckpoint=0;PRAGMA secure_delete=FAST",
             CACHE_KIB);
    ok = ok && (sqlite3_busy_timeout(s->db, STORE_BUSY_MS) == SQLITE_OK || fail(s, err)) && exec(s, pragmas, err) &&
         migrate(s, err);
    for (size_t i = 0; ok && i < N_STATEMENTS; i++)
        ok = sqlite3_prepare_v3(s->db, sql[i], -1, SQLITE_PREPARE_PERSISTENT, &s->statements[i], NULL) == SQLITE_OK ||
             fail(s, err);
    if (ok) {
        sqlite3_wal_hook(s->db, on_log, s);
        return s;
    }
    close_file(s);
    return NULL;
}

const struct place place_sqlite = {
    .kind = "sqlite", .shared = 0, .open = open_file, .close = close_file, .run = run, .idle = idle, .fd = no_fd};

/* The store in Redis (6.2 or newer), shared by several instances; see store.h. The only file that knows hiredis.h; the
 * scripts are in redis_scripts.c.
 *
 * Every operation is one script, so it happens wholly or not at all, and by Redis' clock: the instances' own clocks do not
 * matter. A second connection listens for changes of jobs.
 *
 *   DOWN --connect--> UP --an error of the connection--> DOWN, for RETRY_MS_MIN, doubling to RETRY_MS_MAX
 *
 * While DOWN, operations fail at once (ERR_UNAVAILABLE). An operation whose connection broke before its answer came is not
 * sent again: it may have happened. What that means is the caller's to know; all of hub/jobs is made for it. */
#include "base/rand.h"
#include "store/impl.h"
#include "store/redis_scripts.h"

#include <hiredis/hiredis.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

#define RETRY_MS_MIN   100
#define RETRY_MS_MAX   5000
#define CONNECT_MS     1000
#define PING_MS        3000
#define PRUNE_EVERY_MS 60000
#define ARGS_MAX       12
#define HOST_BYTES_MAX 256

struct redis {
    struct place_news news;
    char host[HOST_BYTES_MAX], user[128], password[512];
    int port, database, is_path;
    redisContext *main, *listener; /* both, or neither */
    int retry_ms;
    int64_t retry_at_ms, ping_at_ms, prune_at_ms;
    int connected_before;
    char why[256];
};

/* ---- where ---- */

static int hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Percent-decoded; false when it does not fit. */
static bool take_part(char *out, size_t out_bytes, const char *from, const char *to)
{
    size_t n = 0;
    for (; from < to && n + 1 < out_bytes; from++) {
        bool escaped = *from == '%' && to - from > 2 && hex(from[1]) >= 0 && hex(from[2]) >= 0;
        out[n++] = escaped ? (char)(hex(from[1]) << 4 | hex(from[2])) : *from;
        from += escaped ? 2 : 0;
    }
    out[n] = 0;
    return from == to;
}

static bool number(const char *text, int max, int *out)
{
    char *end;
    long v = strtol(text, &end, 10);
    *out = (int)v;
    return *text >= '0' && *text <= '9' && !*end && v <= max;
}

/* redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE], redis+unix:///PATH */
static bool parse_url(struct redis *d, const char *url, struct err *err)
{
    static const char form[] = "--store: a Redis is named redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE] or "
                               "redis+unix:///PATH";
    d->port = 6379;
    if (strncmp(url, "redis+unix://", 13) == 0) {
        d->is_path = 1;
        return (url[13] == '/' && take_part(d->host, sizeof d->host, url + 13, url + strlen(url))) ||
               err_set(err, ERR_USAGE, "%s; the path is missing or too long.", form);
    }
    if (strncmp(url, "redis://", 8) != 0)
        return err_set(err, ERR_USAGE, "%s; '%.16s' is not done (for TLS put stunnel in between).", form, url);
    const char *p = url + 8, *at = strrchr(p, '@');
    if (at) {
        const char *colon = memchr(p, ':', (size_t)(at - p));
        if (!take_part(d->user, sizeof d->user, p, colon ? colon : p) ||
            !take_part(d->password, sizeof d->password, colon ? colon + 1 : p, at))
            return err_set(err, ERR_USAGE, "%s; the user or the password is too long.", form);
        p = at + 1;
    }
    const char *slash = strchr(p, '/'), *end = slash ? slash : p + strlen(p);
    const char *bracket = *p == '[' ? memchr(p, ']', (size_t)(end - p)) : NULL; /* [::1]:6379 */
    const char *colon = memchr(bracket ? bracket : p, ':', (size_t)(end - (bracket ? bracket : p)));
    char digits[16] = "";
    const char *host_end = bracket ? bracket : colon ? colon : end;
    bool ok = take_part(d->host, sizeof d->host, bracket ? p + 1 : p, host_end) && d->host[0];
    if (ok && colon)
        ok = take_part(digits, sizeof digits, colon + 1, end) && number(digits, 65535, &d->port);
    if (ok && slash && slash[1])
        ok = number(slash + 1, 1 << 20, &d->database);
    return ok || err_set(err, ERR_USAGE, "%s; the host, the port or the database cannot be read.", form);
}

/* ---- the connections ---- */

static void hang_up(struct redis *d, const char *why)
{
    if (d->is_path)
        snprintf(d->why, sizeof d->why, "Redis at %.150s: %.80s", d->host, why);
    else
        snprintf(d->why, sizeof d->why, "Redis at %.120s:%d: %.100s", d->host, d->port, why);
    redisFree(d->main); /* `why` may lie in it */
    redisFree(d->listener);
    d->main = d->listener = NULL;
    int jitter = (int)(rand_system_u64() % (unsigned)(d->retry_ms / 2 + 1));
    d->retry_at_ms = place_mono_ms() + d->retry_ms / 2 + jitter;
    d->retry_ms = d->retry_ms * 2 > RETRY_MS_MAX ? RETRY_MS_MAX : d->retry_ms * 2;
    d->news.available(d->news.store, d->why);
}

/* A command whose answer is only good or bad. */
static bool simple(redisContext *c, int argc, const char **argv, char *why, size_t why_bytes)
{
    redisReply *reply = redisCommandArgv(c, argc, argv, NULL);
    bool ok = reply && reply->type != REDIS_REPLY_ERROR;
    if (!ok)
        snprintf(why, why_bytes, "%s", reply ? reply->str : c->errstr);
    freeReplyObject(reply);
    return ok;
}

static redisContext *dial(struct redis *d, char *why, size_t why_bytes)
{
    struct timeval connect = {CONNECT_MS / 1000, CONNECT_MS % 1000 * 1000};
    struct timeval command = {STORE_BUSY_MS / 1000, STORE_BUSY_MS % 1000 * 1000};
    redisContext *c =
        d->is_path ? redisConnectUnixWithTimeout(d->host, connect) : redisConnectWithTimeout(d->host, d->port, connect);
    if (!c || c->err || redisSetTimeout(c, command) != REDIS_OK) {
        snprintf(why, why_bytes, "%s", c ? c->errstr : "out of memory");
        redisFree(c);
        return NULL;
    }
    bool ok = true;
    const char *auth[] = {"AUTH", d->user[0] ? d->user : "default", d->password};
    char database[16];
    snprintf(database, sizeof database, "%d", d->database);
    const char *choose[] = {"SELECT", database};
    if (d->password[0])
        ok = simple(c, 3, auth, why, why_bytes);
    if (ok && d->database)
        ok = simple(c, 2, choose, why, why_bytes);
    if (ok)
        return c;
    redisFree(c);
    return NULL;
}

static bool connect_both(struct redis *d)
{
    char why[128] = "";
    const char *subscribe[] = {"SUBSCRIBE", REDIS_CHANNEL};
    if (!(d->main = dial(d, why, sizeof why)) || !(d->listener = dial(d, why, sizeof why)) ||
        !simple(d->listener, 2, subscribe, why, sizeof why)) {
        hang_up(d, why);
        return false;
    }
    d->retry_ms = RETRY_MS_MIN;
    d->ping_at_ms = place_mono_ms() + PING_MS;
    if (d->connected_before)
        d->news.reconnected(d->news.store);
    d->connected_before = 1;
    d->news.available(d->news.store, "");
    return true;
}

static bool is_up(struct redis *d)
{
    return d->main || (place_mono_ms() >= d->retry_at_ms && connect_both(d));
}

/* What the listener has received: ids of jobs. */
static void listen_in(struct redis *d)
{
    struct pollfd fd = {d->listener->fd, POLLIN, 0};
    while (d->listener && poll(&fd, 1, 0) > 0) {
        if (redisBufferRead(d->listener) != REDIS_OK) {
            hang_up(d, d->listener->errstr);
            return;
        }
        void *reply = NULL;
        while (redisReaderGetReply(d->listener->reader, &reply) == REDIS_OK && reply) {
            const redisReply *r = reply;
            if (r->type == REDIS_REPLY_ARRAY && r->elements == 3 && r->element[2]->type == REDIS_REPLY_STRING)
                d->news.job_changed(d->news.store, r->element[2]->str);
            freeReplyObject(reply);
            reply = NULL;
        }
        if (d->listener->reader->err) {
            hang_up(d, d->listener->reader->errstr);
            return;
        }
    }
}

/* ---- running scripts ---- */

struct args {
    const char *text[ARGS_MAX];
    size_t len[ARGS_MAX];
    char numbers[ARGS_MAX][40];
    int n;
};

static void add_str(struct args *a, struct str s)
{
    a->text[a->n] = s.ptr ? s.ptr : "";
    a->len[a->n++] = s.len;
}

static void add_int(struct args *a, int64_t v)
{
    char *out = a->numbers[a->n];
    int len = snprintf(out, sizeof a->numbers[0], "%lld", (long long)v);
    add_str(a, (struct str){out, (size_t)len});
}

static void add_double(struct args *a, double v)
{
    char *out = a->numbers[a->n];
    int len = snprintf(out, sizeof a->numbers[0], "%.17g", v);
    add_str(a, (struct str){out, (size_t)len});
}

/* The script's answer, the caller's to free; NULL: r failed. A word (status reply) is an answer too. */
static redisReply *call(struct redis *d, struct store_request *r, const char *script, const struct args *a)
{
    const char *argv[ARGS_MAX + 3] = {"EVAL", script, "0"};
    size_t lens[ARGS_MAX + 3] = {4, strlen(script), 1};
    for (int i = 0; i < a->n; i++) {
        argv[i + 3] = a->text[i];
        lens[i + 3] = a->len[i];
    }
    redisReply *reply = redisCommandArgv(d->main, a->n + 3, argv, lens);
    if (!reply) {
        hang_up(d, d->main->errstr);
    } else if (reply->type == REDIS_REPLY_ERROR) {
        snprintf(d->why, sizeof d->why, "Redis at %.120s refuses: %.100s", d->host, reply->str);
        d->news.available(d->news.store, d->why);
        freeReplyObject(reply);
        reply = NULL;
    } else {
        d->news.available(d->news.store, "");
        return reply;
    }
    r->ok = err_set(&r->err, ERR_UNAVAILABLE,
                    "The store cannot be used: %s. Jobs and sessions wait for it; chat without "
                    "'session_id' goes on.",
                    d->why);
    return NULL;
}

static bool is_word(const redisReply *reply, const char *word)
{
    return reply->type == REDIS_REPLY_STATUS && strcmp(reply->str, word) == 0;
}

static const redisReply *item(const redisReply *list, size_t i)
{
    static const redisReply none = {.type = REDIS_REPLY_NIL};
    return list->type == REDIS_REPLY_ARRAY && i < list->elements ? list->element[i] : &none;
}

static int64_t int_of(const redisReply *v)
{
    return v->type == REDIS_REPLY_INTEGER ? v->integer : v->type == REDIS_REPLY_STRING ? strtoll(v->str, NULL, 10) : 0;
}

static bool text_of(struct store_request *r, const redisReply *v, struct str *out)
{
    bool is = v->type == REDIS_REPLY_STRING;
    return place_text(r, out, is ? v->str : "", is ? v->len : 0);
}

/* A job as the scripts' show() gives it. */
static bool read_job(struct store_request *r, const redisReply *v, size_t n_max)
{
    struct store_job *j = item(v, 0)->type == REDIS_REPLY_STRING ? place_add_job(r, n_max) : NULL;
    if (!j)
        return r->ok;
    snprintf(j->id, sizeof j->id, "%s", item(v, 0)->str);
    j->status = (enum store_status)int_of(item(v, 1));
    j->progress = item(v, 2)->type == REDIS_REPLY_STRING ? strtod(item(v, 2)->str, NULL) : 0;
    j->created_ms = int_of(item(v, 3));
    j->changed_ms = int_of(item(v, 4));
    j->finished_ms = int_of(item(v, 5));
    j->token = (uint64_t)int_of(item(v, 6));
    j->claims = (uint64_t)int_of(item(v, 7));
    j->cancel = (int)int_of(item(v, 8));
    return text_of(r, item(v, 9), &j->owner) && text_of(r, item(v, 10), &j->model) && text_of(r, item(v, 11), &j->error) &&
           text_of(r, item(v, 12), &j->request) && text_of(r, item(v, 13), &j->detail) && text_of(r, item(v, 14), &j->files);
}

static bool read_session(struct store_request *r, const redisReply *v, size_t n_max)
{
    struct store_session *e = item(v, 0)->type == REDIS_REPLY_STRING ? place_add_session(r, n_max) : NULL;
    if (!e)
        return r->ok;
    e->created_ms = int_of(item(v, 1));
    e->changed_ms = int_of(item(v, 2));
    e->expires_ms = int_of(item(v, 3));
    e->version = (uint64_t)int_of(item(v, 4));
    e->n_messages = (uint64_t)int_of(item(v, 5));
    return text_of(r, item(v, 0), &e->id) && text_of(r, item(v, 6), &e->text);
}

/* ---- operations: what each sends, and what it makes of the answer ---- */

static void send_job_create(struct store_request *r, struct args *a)
{
    char id[STORE_JOB_ID_BYTES];
    place_job_id(id, place_now_ms());
    add_str(a, r->key);
    add_str(a, r->model);
    add_str(a, r->text);
    snprintf(a->numbers[a->n], sizeof a->numbers[0], "%s", id);
    add_str(a, str_from(a->numbers[a->n]));
    add_int(a, r->ttl_ms);
    add_int(a, STORE_JOBS_ACTIVE_MAX);
}

static bool got_job_create(struct store_request *r, const redisReply *v)
{
    if (is_word(v, "FULL"))
        return place_jobs_full(&r->err);
    r->created = (int)int_of(item(v, 0));
    return read_job(r, item(v, 1), 1);
}

static void send_id(struct store_request *r, struct args *a)
{
    add_str(a, r->id);
}

static bool got_job(struct store_request *r, const redisReply *v)
{
    return is_word(v, "NONE") ? place_no_job(&r->err, r->id) : read_job(r, v, 1);
}

static void send_job_list(struct store_request *r, struct args *a)
{
    add_int(a, r->status < STORE_STATUS_COUNT ? (int)r->status : -1);
    add_str(a, r->model);
    add_int(a, r->since_ms);
    add_int(a, (int64_t)r->limit);
}

static bool got_job_list(struct store_request *r, const redisReply *v)
{
    bool ok = true;
    for (size_t i = 0; ok && i < v->elements; i++)
        ok = read_job(r, v->element[i], r->limit);
    return ok;
}

static void send_job_claim(struct store_request *r, struct args *a)
{
    add_str(a, r->owner);
    add_int(a, r->ttl_ms);
    add_int(a, (int64_t)r->limit);
}

static bool got_job_claim(struct store_request *r, const redisReply *v)
{
    r->n_queued = (size_t)int_of(item(v, 0));
    r->n_running = (size_t)int_of(item(v, 1));
    return read_job(r, item(v, 2), 1);
}

static void send_job_update(struct store_request *r, struct args *a)
{
    add_str(a, r->id);
    add_int(a, (int64_t)r->token);
    add_int(a, r->status);
    add_double(a, r->progress);
    add_str(a, r->detail);
    add_str(a, r->files);
    add_str(a, r->text);
    add_int(a, r->ttl_ms);
}

static bool got_job_update(struct store_request *r, const redisReply *v)
{
    if (is_word(v, "FENCED"))
        return place_fenced(&r->err, r->id, r->token);
    struct store_job *j = place_add_job(r, 1);
    if (!j)
        return false;
    snprintf(j->id, sizeof j->id, "%.*s", (int)r->id.len, r->id.ptr);
    j->status = (enum store_status)int_of(item(v, 0));
    j->cancel = (int)int_of(item(v, 1));
    j->progress = item(v, 2)->type == REDIS_REPLY_STRING ? strtod(item(v, 2)->str, NULL) : 0;
    j->changed_ms = int_of(item(v, 3));
    j->token = r->token;
    return true;
}

static void send_owner(struct store_request *r, struct args *a)
{
    add_str(a, r->owner);
}

static bool got_nothing(struct store_request *r, const redisReply *v)
{
    (void)r;
    (void)v;
    return true;
}

static void send_owner_id(struct store_request *r, struct args *a)
{
    add_str(a, r->owner);
    add_str(a, r->id);
}

static bool got_session(struct store_request *r, const redisReply *v)
{
    return is_word(v, "NONE")      ? place_no_session(&r->err, r->id)
           : is_word(v, "CHANGED") ? place_session_changed(&r->err, r->id)
           : is_word(v, "FULL")    ? place_sessions_full(&r->err)
                                   : read_session(r, v, 1);
}

static void send_session_get(struct store_request *r, struct args *a)
{
    send_owner_id(r, a);
    add_int(a, r->ttl_ms);
}

static void send_session_put(struct store_request *r, struct args *a)
{
    send_owner_id(r, a);
    add_str(a, r->text);
    add_int(a, (int64_t)r->n_messages);
    add_int(a, (int64_t)r->token);
    add_int(a, r->ttl_ms);
    add_int(a, STORE_SESSIONS_MAX);
}

static bool got_session_delete(struct store_request *r, const redisReply *v)
{
    return int_of(v) > 0 || place_no_session(&r->err, r->id);
}

static void send_session_list(struct store_request *r, struct args *a)
{
    add_str(a, r->owner);
    add_int(a, (int64_t)r->limit);
}

static bool got_session_list(struct store_request *r, const redisReply *v)
{
    bool ok = true;
    for (size_t i = 0; ok && i < v->elements; i++)
        ok = read_session(r, v->element[i], r->limit);
    return ok;
}

static void send_lease(struct store_request *r, struct args *a)
{
    add_str(a, r->key);
    add_str(a, r->owner);
    add_int(a, r->ttl_ms);
}

static bool got_lease(struct store_request *r, const redisReply *v)
{
    if (int_of(item(v, 0)) == 0)
        return place_lease_held(&r->err, r->key, int_of(item(v, 1)));
    r->token = (uint64_t)int_of(item(v, 1));
    return true;
}

static void send_value(struct store_request *r, struct args *a)
{
    add_str(a, r->key);
    add_str(a, r->text);
    add_int(a, r->ttl_ms);
    add_str(a, r->was);
}

static bool got_value_claim(struct store_request *r, const redisReply *v)
{
    r->created = (int)int_of(item(v, 0));
    return r->created || text_of(r, item(v, 1), &r->found);
}

static bool got_value_set(struct store_request *r, const redisReply *v)
{
    return !is_word(v, "TAKEN") || place_value_taken(&r->err, r->key);
}

static void send_prune(struct store_request *r, struct args *a)
{
    (void)r;
    add_int(a, STORE_JOBS_KEPT_MS);
    add_int(a, STORE_JOBS_KEPT_MAX);
}

static const struct operation {
    const char *const *script;
    void (*send)(struct store_request *r, struct args *a);
    bool (*got)(struct store_request *r, const redisReply *v);
} operations[STORE_OP_COUNT] = {
    [STORE_JOB_CREATE] = {&redis_job_create, send_job_create, got_job_create},
    [STORE_JOB_GET] = {&redis_job_get, send_id, got_job},
    [STORE_JOB_LIST] = {&redis_job_list, send_job_list, got_job_list},
    [STORE_JOB_CLAIM] = {&redis_job_claim, send_job_claim, got_job_claim},
    [STORE_JOB_UPDATE] = {&redis_job_update, send_job_update, got_job_update},
    [STORE_JOB_CANCEL] = {&redis_job_cancel, send_id, got_job},
    [STORE_JOB_REQUEUE] = {&redis_job_requeue, send_owner, got_nothing},
    [STORE_SESSION_GET] = {&redis_session_get, send_session_get, got_session},
    [STORE_SESSION_PUT] = {&redis_session_put, send_session_put, got_session},
    [STORE_SESSION_DELETE] = {&redis_session_delete, send_owner_id, got_session_delete},
    [STORE_SESSION_LIST] = {&redis_session_list, send_session_list, got_session_list},
    [STORE_LEASE_TAKE] = {&redis_lease_take, send_lease, got_lease},
    [STORE_LEASE_GIVE] = {&redis_lease_give, send_lease, got_nothing},
    [STORE_VALUE_CLAIM] = {&redis_value_claim, send_value, got_value_claim},
    [STORE_VALUE_SET] = {&redis_value_set, send_value, got_value_set},
    [STORE_PRUNE] = {&redis_prune, send_prune, got_nothing},
};

static void run(void *self, struct store_request *r)
{
    struct redis *d = self;
    if (!is_up(d)) {
        r->ok = err_set(&r->err, ERR_UNAVAILABLE,
                        "The store cannot be reached: %s. It is tried again every %d s at least; "
                        "jobs and sessions wait for it; chat without 'session_id' goes on.",
                        d->why, RETRY_MS_MAX / 1000);
        return;
    }
    const struct operation *o = &operations[r->op];
    struct args args = {0};
    o->send(r, &args);
    redisReply *reply = call(d, r, *o->script, &args);
    if (!reply)
        return;
    r->ok = o->got(r, reply);
    if (!r->ok && r->err.code == ERR_NONE)
        err_set(&r->err, ERR_INTERNAL, "Redis gave an answer to operation %d that was not understood.", (int)r->op);
    freeReplyObject(reply);
}

static int idle(void *self)
{
    struct redis *d = self;
    if (!is_up(d)) {
        int64_t left = d->retry_at_ms - place_mono_ms();
        return left < 1 ? 1 : (int)left;
    }
    listen_in(d);
    int64_t now = place_mono_ms();
    if (d->main && now >= d->ping_at_ms) {
        char why[128];
        const char *ping[] = {"PING"};
        d->ping_at_ms = now + PING_MS;
        if (!simple(d->main, 1, ping, why, sizeof why))
            hang_up(d, why);
    }
    if (d->main && now >= d->prune_at_ms) {
        struct store_request r = {.op = STORE_PRUNE, .ok = true};
        d->prune_at_ms = now + PRUNE_EVERY_MS;
        run(d, &r);
    }
    return d->main ? PING_MS : 1;
}

static int listener_fd(void *self)
{
    struct redis *d = self;
    return d->listener ? d->listener->fd : -1;
}

static void close_both(void *self)
{
    struct redis *d = self;
    redisFree(d->main);
    redisFree(d->listener);
    free(d);
}

static void *open_redis(const char *where, const struct place_news *news, struct err *err)
{
    struct redis *d = calloc(1, sizeof *d);
    if (!d) {
        err_set(err, ERR_MEMORY, "Out of memory.");
        return NULL;
    }
    d->news = *news;
    d->retry_ms = RETRY_MS_MIN;
    d->prune_at_ms = place_mono_ms() + PRUNE_EVERY_MS;
    if (!parse_url(d, where, err)) {
        free(d);
        return NULL;
    }
    snprintf(d->why, sizeof d->why, "Redis at %.120s has not been asked yet", d->host);
    d->news.available(d->news.store, d->why);
    return d;
}

const struct place place_redis = {
    .kind = "redis", .shared = 1, .open = open_redis, .close = close_both, .run = run, .idle = idle, .fd = listener_fd};

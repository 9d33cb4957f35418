/* Idempotency-Key; see once.h. What the store keeps under a key: "under way HASH CLAIM", or
 * "STATUS HASH BODY"; CLAIM is another one for each claim, so that a holder knows its own. */
#include "serve/once.h"

#include "base/clock.h"
#include "base/rand.h"
#include "serve/lasting.h"

#include <stdio.h>
#include <stdlib.h>

#define NAME_BYTES (ONCE_KEY_BYTES_MAX + 64)
#define HEAD_BYTES 64
#define UNDER_WAY  "under way"

#define RETRY_AFTER_S "1" /* of what is under way */

struct once {
    char name[NAME_BYTES]; /* of the value: who asks, and the key */
    char hash[17];         /* of what is asked */
    char head[HEAD_BYTES];
    uint64_t renewed_ns; /* 0 = the claim is not held */
    struct store_request request;
    struct buf answer; /* that was kept, for one that asks again */
    int status;
    enum { CLAIMING, FIRST, AGAIN, SETTLED } state;
    struct err err;
};

static uint64_t hash_more(uint64_t hash, struct str s)
{
    return (hash ^ str_hash(s)) * 0x9e3779b97f4a7c15u + s.len;
}

/* ---- keeping, without waiting ---- */

struct keep {
    struct store_request request;
    char name[NAME_BYTES], head[HEAD_BYTES];
    struct buf text;
};

static void on_kept(struct store_request *r)
{
    struct keep *k = r->user;
    store_request_release(r);
    buf_release(&k->text);
    free(k);
}

/* NULL: no memory. */
static struct keep *keep_new(const struct once *o)
{
    struct keep *k = calloc(1, sizeof *k);
    if (!k)
        return NULL;
    snprintf(k->name, sizeof k->name, "%s", o->name);
    snprintf(k->head, sizeof k->head, "%s", o->head);
    buf_init(&k->text, ONCE_ANSWER_BYTES_MAX + HEAD_BYTES);
    return k;
}

/* In place of the claim, where that is still there; ttl_ms 0: forgets. Where the store is away, the claim runs out by itself. */
static void keep_start(struct server *s, struct keep *k, int64_t ttl_ms)
{
    k->request = (struct store_request){.op = STORE_VALUE_SET,
                                        .key = str_from(k->name),
                                        .text = buf_str(&k->text),
                                        .was = str_from(k->head),
                                        .ttl_ms = ttl_ms,
                                        .done = on_kept,
                                        .user = k};
    if (!store_submit(s->lasting->store, &k->request, NULL))
        on_kept(&k->request);
}

static void keep(struct call *c, int status, struct str body, int64_t ttl_ms)
{
    struct keep *k = keep_new(c->once);
    c->once->state = SETTLED;
    c->once->renewed_ns = 0;
    if (!k)
        return;
    if (ttl_ms) {
        buf_printf(&k->text, "%d %s ", status, c->once->hash);
        buf_append_str(&k->text, body);
    }
    if (k->text.failed) { /* a part of an answer must not be given for the whole: forgotten */
        buf_clear(&k->text);
        ttl_ms = 0;
    }
    keep_start(c->server, k, ttl_ms);
}

void once_tick(struct server *s)
{
    uint64_t now = clock_mono_ns();
    for (struct call *c = s->calls; c; c = c->next) {
        struct once *o = c->once;
        if (!o || !o->renewed_ns || now - o->renewed_ns < (uint64_t)ONCE_RENEW_MS * 1000000)
            continue;
        struct keep *k = keep_new(o);
        if (!k)
            continue;
        o->renewed_ns = now;
        buf_append_str(&k->text, str_from(o->head));
        keep_start(s, k, ONCE_LEASE_MS);
    }
}

void once_answer(struct call *c, int status, struct str body)
{
    struct once *o = c->once;
    if (!o || o->state != FIRST)
        return;
    bool lasts = status < 500 && status != 408 && status != 409 && status != 429 && status != 499;
    keep(c, status, body, lasts && body.len <= ONCE_ANSWER_BYTES_MAX ? ONCE_KEPT_MS : 0);
}

void once_release(struct call *c)
{
    struct once *o = c->once;
    if (o->state == FIRST)
        keep(c, 0, STR(""), 0); /* its client left, nothing was answered */
    buf_release(&o->answer);
    free(o);
    c->once = NULL;
}

/* ---- claiming ---- */

/* On the http thread: the store has answered. */
static void on_claimed(void *arg)
{
    struct call *c = arg;
    struct once *o = c->once;
    c->in_worker = false;
    if (!c->request) {
        call_release_if_done(c);
    } else if (o->err.code) {
        if (o->err.code == ERR_CONFLICT)
            http_add_header(c->request, "Retry-After", RETRY_AFTER_S);
        call_fail(c, &o->err);
    } else if (o->state == AGAIN) {
        http_add_header(c->request, "Idempotency-Replayed", "true");
        call_reply_whole(c, o->status, "application/json", &o->answer);
    } else {
        o->renewed_ns = clock_mono_ns();
        call_start(c);
    }
}

/* What the first one left. On the store's thread. */
static void read_found(struct once *o, struct str found)
{
    char hash[17] = "";
    int n = 0;
    struct buf text; /* with a NUL behind it */
    buf_init(&text, ONCE_ANSWER_BYTES_MAX + HEAD_BYTES);
    buf_append_str(&text, found);
    o->state = AGAIN;
    if (sscanf(buf_str(&text).ptr, UNDER_WAY " %16s", hash) == 1)
        err_set_param(&o->err, ERR_CONFLICT, "Idempotency-Key",
                      "A request with this Idempotency-Key is under way; ask again when "
                      "it is done, for its answer.");
    else if (sscanf(buf_str(&text).ptr, "%d %16s %n", &o->status, hash, &n) != 2 || !n)
        err_set(&o->err, ERR_INTERNAL, "What is kept under this Idempotency-Key cannot be read; use another key.");
    if (o->err.code != ERR_INTERNAL && strcmp(hash, o->hash) != 0)
        err_set_param(&o->err, ERR_INVALID_REQUEST, "Idempotency-Key",
                      "This Idempotency-Key was used for another request (its "
                      "route or its body differs); use a new key for a new request.");
    if (!o->err.code)
        buf_append_str(&o->answer, (struct str){found.ptr + n, found.len - (size_t)n});
    buf_release(&text);
}

/* On the store's thread. */
static void on_claim(struct store_request *r)
{
    struct call *c = r->user;
    struct once *o = c->once;
    if (!r->ok)
        o->err = r->err;
    else if (r->created)
        o->state = FIRST;
    else
        read_found(o, r->found);
    store_request_release(r);
    http_post(c->server->http, on_claimed, c);
}

bool once_begin(struct call *c, struct str key, struct err *err)
{
    bool ok = key.len >= 1 && key.len <= ONCE_KEY_BYTES_MAX;
    for (size_t i = 0; ok && i < key.len; i++)
        ok = key.ptr[i] > 0x20 && key.ptr[i] < 0x7f;
    if (!ok)
        return err_set_param(err, ERR_INVALID_REQUEST, "Idempotency-Key",
                             "The header Idempotency-Key has %zu bytes; it must have "
                             "from 1 to %d visible ASCII characters.",
                             key.len, ONCE_KEY_BYTES_MAX);
    struct once *o = calloc(1, sizeof *o);
    if (!o)
        return err_set(err, ERR_MEMORY, "Out of memory.");
    buf_init(&o->answer, ONCE_ANSWER_BYTES_MAX);
    uint64_t who = hash_more(1, http_header(c->request, "Authorization"));
    snprintf(o->name, sizeof o->name, "once %016llx %.*s", (unsigned long long)who, (int)key.len, key.ptr);
    snprintf(o->hash, sizeof o->hash, "%016llx",
             (unsigned long long)hash_more(hash_more(2, str_from(c->path)), buf_str(&c->body)));
    snprintf(o->head, sizeof o->head, UNDER_WAY " %s %016llx", o->hash, (unsigned long long)rand_system_u64());
    c->once = o;
    c->in_worker = true;
    o->request = (struct store_request){.op = STORE_VALUE_CLAIM,
                                        .key = str_from(o->name),
                                        .text = str_from(o->head),
                                        .ttl_ms = ONCE_LEASE_MS,
                                        .done = on_claim,
                                        .user = c};
    if (store_submit(c->server->lasting->store, &o->request, err))
        return true;
    c->in_worker = false;
    return false;
}

/* Sessions; see sessions.h. */
#include "serve/sessions.h"

#include "base/clock.h"
#include "serve/history.h"
#include "serve/lasting.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define RETRY_MS        50 /* a lease that another instance holds */
#define LIST_DEFAULT    1000
#define LEASE_KEY_BYTES (STORE_SESSION_ID_BYTES_MAX + 16)
#define MS              ((uint64_t)1000000)

/* A session that calls use or wait for. The first of them has it. */
struct session {
    struct session *next;
    struct sessions *all;
    char id[STORE_SESSION_ID_BYTES_MAX + 1];
    char lease_key[LEASE_KEY_BYTES];
    struct call *first, *last;
    struct store_request request; /* under way for the first call */
    uint64_t version;             /* that was read; 0 = new */
    uint64_t renewed_ns;          /* of the lease; 0 = there is none */
};

struct sessions {
    struct server *server;
    struct store *store;
    const char *instance;
    int shared;
    pthread_mutex_t lock;
    struct session *used;
};

enum turn { TURN_NONE, TURN_SAVING, TURN_SAVED };

/* What a call keeps of its session. */
struct session_use {
    struct session *session;
    struct call *next; /* that waits behind it */
    struct buf heard;  /* of the answer, when it is streamed */
    enum turn turn;
    struct buf text; /* what is to be kept */
    struct store_request put;
    size_t n_messages;
};

struct sessions *sessions_open(struct server *s, struct err *err)
{
    struct sessions *all = calloc(1, sizeof *all);
    if (!all) {
        err_set(err, ERR_MEMORY, "Out of memory.");
        return NULL;
    }
    struct store_state state;
    store_state(s->lasting->store, &state);
    all->server = s;
    all->store = s->lasting->store;
    all->instance = s->lasting->instance.name;
    all->shared = state.shared;
    pthread_mutex_init(&all->lock, NULL);
    return all;
}

static int64_t ttl_ms(const struct sessions *s)
{
    return (int64_t)(s->server->config->session_ttl_s * 1000);
}

/* ---- taking ---- */

/* The first call's turn has come, or failed: to the workers. */
static void call_first(struct session *e, const struct err *err)
{
    struct call *c = e->first;
    if (err)
        c->load_error = *err;
    call_go_on(c);
}

static void ask(struct session *e);

static void ask_again(void *arg)
{
    ask(arg);
}

/* On the store's thread. */
static void on_answer(struct store_request *r)
{
    struct session *e = r->user;
    struct sessions *all = e->all;
    if (r->op == STORE_LEASE_TAKE) {
        bool busy = !r->ok && r->err.code == ERR_CONFLICT;
        struct err err = r->err;
        bool ok = r->ok;
        store_request_release(r);
        if (ok) {
            pthread_mutex_lock(&all->lock);
            e->renewed_ns = clock_mono_ns();
            pthread_mutex_unlock(&all->lock);
            ask(e);
        } else if (busy && !atomic_load(&e->first->closed)) {
            http_timer(all->server->http, RETRY_MS, ask_again, e);
        } else {
            call_first(e, &err);
        }
        return;
    }
    bool is_new = !r->ok && r->err.code == ERR_NOT_FOUND;
    e->version = r->ok ? r->sessions[0].version : 0;
    call_first(e, r->ok || is_new ? NULL : &r->err); /* the answer stays: sessions_join reads it */
}

/* Asks the store for what is next: the lease, then the messages. */
static void ask(struct session *e)
{
    struct sessions *all = e->all;
    pthread_mutex_lock(&all->lock);
    bool lease = all->shared && !e->renewed_ns;
    pthread_mutex_unlock(&all->lock);
    uint64_t now = clock_mono_ns();
    const struct call *c = e->first;
    /* While a request has it a session does not run out. */
    int64_t in_use_ms = c->deadline_ns > now ? (int64_t)((c->deadline_ns - now) / MS) : 0;
    e->request = (struct store_request){.op = lease ? STORE_LEASE_TAKE : STORE_SESSION_GET,
                                        .id = str_from(e->id),
                                        .key = str_from(e->lease_key),
                                        .owner = lease ? str_from(all->instance) : STR(""),
                                        .ttl_ms = lease ? SESSION_LEASE_MS : ttl_ms(all) + in_use_ms,
                                        .done = on_answer,
                                        .user = e};
    struct err err = {0};
    if (!store_submit(all->store, &e->request, &err))
        call_first(e, &err);
}

static bool check_id(struct str id, struct err *err)
{
    if (id.len < 1 || id.len > STORE_SESSION_ID_BYTES_MAX)
        return err_set_param(err, ERR_INVALID_REQUEST, "session_id", "'session_id' has %zu bytes; it must have from 1 to %d.",
                             id.len, STORE_SESSION_ID_BYTES_MAX);
    for (size_t i = 0; i < id.len; i++)
        if ((unsigned char)id.ptr[i] < 0x20 || id.ptr[i] == 0x7f)
            return err_set_param(err, ERR_INVALID_REQUEST, "session_id",
                                 "'session_id' has the control character 0x%02x at byte "
                                 "%zu; letters, digits and signs are possible.",
                                 (unsigned char)id.ptr[i], i);
    return true;
}

/* With the lock: the session's entry, made where it is not there. */
static struct session *find(struct sessions *all, struct str id)
{
    for (struct session *e = all->used; e; e = e->next)
        if (str_equal(str_from(e->id), id))
            return e;
    struct session *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    e->all = all;
    memcpy(e->id, id.ptr, id.len);
    snprintf(e->lease_key, sizeof e->lease_key, "session %s", e->id);
    e->next = all->used;
    all->used = e;
    return e;
}

bool sessions_take(struct call *c, int *waiting, struct err *err)
{
    struct sessions *all = c->server->lasting->sessions;
    *waiting = 0;
    if (!check_id(c->parsed.session_id, err))
        return false;
    if (c->parsed.n > 1)
        return err_set_param(err, ERR_INVALID_REQUEST, "n",
                             "'n' is %lld; with 'session_id' it must be 1: a conversation goes on "
                             "from one answer.",
                             (long long)c->parsed.n);
    struct session_use *u = calloc(1, sizeof *u);
    if (!u)
        return err_set(err, ERR_MEMORY, "Out of memory.");
    buf_init(&u->heard, SESSION_BYTES_MAX + 1);
    buf_init(&u->text, SESSION_BYTES_MAX + 1);
    pthread_mutex_lock(&all->lock);
    struct session *e = u->session = find(all, c->parsed.session_id);
    bool is_first = e && !e->first;
    if (e) {
        c->session = u;
        if (is_first)
            e->first = c;
        else
            e->last->session->next = c;
        e->last = c;
        *waiting = 1;
    }
    pthread_mutex_unlock(&all->lock);
    if (!e) {
        free(u);
        return err_set(err, ERR_MEMORY, "Out of memory.");
    }
    if (is_first)
        ask(e);
    return false;
}

bool sessions_join(struct call *c, struct err *err)
{
    struct session *e = c->session->session;
    json_t *kept = NULL;
    if (e->request.n_sessions) {
        struct str text = e->request.sessions[0].text;
        bool ok = call_hold(c, text.len + api_request_bytes(text), "The session", err);
        kept = ok ? json_loadb(text.ptr, text.len, JSON_ALLOW_NUL, NULL) : NULL; /* models write what they like */
        if (ok && !json_is_array(kept))
            ok = err_set(err, ERR_IO, "What the store keeps of session '%s' cannot be read. Delete it: DELETE /sessions/{id}.",
                         e->id);
        if (!ok) {
            json_decref(kept);
            store_request_release(&e->request);
            return false;
        }
    }
    store_request_release(&e->request);
    if (kept)
        history_trim(kept, c->parsed.max_history); /* so that a conversation that outgrew the context can go on */
    json_t *all = history_join(kept, c->parsed.messages);
    json_decref(kept);
    if (!all || json_object_set_new(c->parsed.root, "messages", all) != 0)
        return err_set(err, ERR_MEMORY, "Out of memory for the messages of session '%s'.", e->id);
    c->parsed.messages = all;
    return true;
}

/* ---- keeping the turn ---- */

void sessions_hear(struct call *c, struct str text)
{
    if (c->session)
        buf_append_str(&c->session->heard, text);
}

/* On the http thread: the store has answered. */
static void on_saved(void *arg)
{
    struct call *c = arg;
    struct session_use *u = c->session;
    c->in_worker = false;
    u->turn = TURN_SAVED;
    if (!c->request) {
        call_release_if_done(c);
        return;
    }
    if (c->load_error.code)
        call_abort(c, c->load_error.code, "%s", c->load_error.text);
    else
        stream_resume(c);
}

/* On the store's thread. */
static void on_put(struct store_request *r)
{
    struct call *c = r->user;
    if (!r->ok) {
        c->load_error = r->err;
        err_prefix(&c->load_error, "The answer was made, but the session could not be kept");
    }
    store_request_release(r);
    http_post(c->server->http, on_saved, c);
}

static json_t *answer_message(const struct call *c)
{
    struct str text = buf_str(&c->session->heard);
    return json_pack("{s:s, s:s%}", "role", "assistant", "content", text.ptr, text.len);
}

/* The messages, the answer behind them, cut to max_history; to u->text. */
static bool write_turn(struct call *c, struct err *err)
{
    struct session_use *u = c->session;
    json_t *messages = c->parsed.messages, *answer = u->heard.failed ? NULL : answer_message(c);
    if (u->heard.failed)
        return err_set_param(err, ERR_TOO_LARGE, "session_id",
                             "The answer was made, but alone has more than the %zu bytes that "
                             "are kept of session '%s', or there was no memory for it.",
                             SESSION_BYTES_MAX, u->session->id);
    if (!answer || json_array_append_new(messages, answer) != 0)
        return err_set(err, ERR_MEMORY, "Out of memory for the messages of a session.");
    u->n_messages = history_trim(messages, c->parsed.max_history);
    char *text = json_dumps(messages, JSON_COMPACT);
    bool ok = text != NULL || err_set(err, ERR_MEMORY, "Out of memory for the text of a session.");
    if (ok && strlen(text) > SESSION_BYTES_MAX)
        ok = err_set_param(err, ERR_TOO_LARGE, "session_id",
                           "The answer was made, but session '%s' would have %zu bytes with it; "
                           "at most %zu are kept. Give a smaller 'max_history', or begin a new session.",
                           u->session->id, strlen(text), SESSION_BYTES_MAX);
    if (ok && !buf_append_str(&u->text, str_from(text)))
        ok = err_set(err, ERR_MEMORY, "Out of memory for the text of a session.");
    free(text);
    return ok;
}

void sessions_save(struct call *c)
{
    struct session_use *u = c->session;
    struct session *e = u->session;
    u->put = (struct store_request){.op = STORE_SESSION_PUT,
                                    .id = str_from(e->id),
                                    .token = e->version,
                                    .ttl_ms = ttl_ms(e->all),
                                    .done = on_put,
                                    .user = c};
    if (write_turn(c, &c->load_error)) {
        u->put.text = buf_str(&u->text);
        u->put.n_messages = u->n_messages;
        if (store_submit(e->all->store, &u->put, &c->load_error))
            return;
    }
    http_post(c->server->http, on_saved, c);
}

bool sessions_saved(struct call *c)
{
    struct session_use *u = c->session;
    if (u->turn != TURN_NONE)
        return u->turn == TURN_SAVED;
    if (!c->saving)
        buf_append_str(&u->heard, buf_str(&c->choices[0].text)); /* what was not sent yet */
    c->saving = true;
    u->turn = TURN_SAVING;
    if (!call_hand_over(c)) {
        u->turn = TURN_NONE;
        c->resumed = true; /* the next tick tries again */
    }
    return false;
}

/* ---- giving back ---- */

struct gift {
    struct store_request request;
    char key[LEASE_KEY_BYTES];
};

static void on_gift(struct store_request *r)
{
    store_request_release(r);
    free(r);
}

/* Gives the lease back, or renews it; nobody waits for the answer: a version that another instance changed is noticed when
 * the turn is kept. */
static void send_lease(struct sessions *all, const char *key, enum store_op op)
{
    struct gift *g = calloc(1, sizeof *g);
    if (!g)
        return; /* it runs out by itself */
    snprintf(g->key, sizeof g->key, "%s", key);
    g->request = (struct store_request){
        .op = op, .key = str_from(g->key), .owner = str_from(all->instance), .ttl_ms = SESSION_LEASE_MS, .done = on_gift};
    if (!store_submit(all->store, &g->request, NULL))
        free(g);
}

void sessions_release(struct call *c)
{
    struct session_use *u = c->session;
    struct session *e = u->session;
    struct sessions *all = e->all;
    store_request_release(&e->request); /* of a call that ended before it was read */
    pthread_mutex_lock(&all->lock);
    e->first = u->next;
    bool more = e->first != NULL, leased = e->renewed_ns != 0;
    if (!more)
        for (struct session **at = &all->used; *at; at = &(*at)->next)
            if (*at == e) {
                *at = e->next;
                break;
            }
    pthread_mutex_unlock(&all->lock);
    if (more)
        ask(e);
    else if (leased)
        send_lease(all, e->lease_key, STORE_LEASE_GIVE);
    if (!more)
        free(e);
    buf_release(&u->heard);
    buf_release(&u->text);
    free(u);
    c->session = NULL;
}

void sessions_tick(struct sessions *all)
{
    uint64_t now = clock_mono_ns();
    pthread_mutex_lock(&all->lock);
    for (struct session *e = all->used; e; e = e->next)
        if (e->renewed_ns && now - e->renewed_ns > SESSION_RENEW_MS * MS) {
            e->renewed_ns = now;
            send_lease(all, e->lease_key, STORE_LEASE_TAKE);
        }
    pthread_mutex_unlock(&all->lock);
}

/* ---- routes ---- */

static void write_session(struct buf *out, const struct store_session *e)
{
    char text[CLOCK_TEXT_BYTES];
    const struct {
        const char *name;
        int64_t ms;
    } times[] = {{"created_at", e->created_ms}, {"updated_at", e->changed_ms}, {"expires_at", e->expires_ms}};
    buf_append_str(out, STR("{\"session_id\":"));
    buf_append_json(out, e->id);
    buf_printf(out, ",\"message_count\":%llu", (unsigned long long)e->n_messages);
    for (size_t i = 0; i < 3; i++) {
        clock_format_rfc3339((uint64_t)times[i].ms * MS, text);
        buf_printf(out, ",\"%s\":\"%s\"", times[i].name, text);
    }
}

static void finish_list(struct store_task *t)
{
    struct buf *out = &t->call->out;
    buf_append_str(out, STR("{\"sessions\":["));
    for (size_t i = 0; i < t->request.n_sessions; i++) {
        buf_append_str(out, i ? STR(",") : STR(""));
        write_session(out, &t->request.sessions[i]);
        buf_append_char(out, '}');
    }
    buf_append_str(out, STR("]}"));
}

bool route_sessions(struct call *c, struct err *err)
{
    size_t limit;
    if (!route_read_limit(http_query(c->request, "limit"), LIST_DEFAULT, STORE_LIST_MAX, &limit, err))
        return false;
    struct store_task *t = store_task_new(c, STORE_SESSION_LIST, finish_list, err);
    if (!t)
        return false;
    t->request.limit = limit;
    return store_task_start(t, err);
}

static struct store_task *task_of_id(struct call *c, enum store_op op, void (*finish)(struct store_task *t), struct err *err)
{
    struct store_task *t = store_task_new(c, op, finish, err);
    if (t)
        t->request.id = str_from(c->path_model); /* lives as long as the call, which is the operation's now */
    return t;
}

static void finish_get(struct store_task *t)
{
    struct buf *out = &t->call->out;
    write_session(out, &t->request.sessions[0]);
    buf_append_str(out, STR(",\"messages\":"));
    buf_append_str(out, t->request.sessions[0].text);
    buf_append_char(out, '}');
}

bool route_session(struct call *c, struct err *err)
{
    struct store_task *t = task_of_id(c, STORE_SESSION_GET, finish_get, err);
    return t && store_task_start(t, err);
}

static void finish_delete(struct store_task *t)
{
    struct buf *out = &t->call->out;
    buf_append_str(out, STR("{\"session_id\":"));
    buf_append_json(out, t->request.id);
    buf_append_str(out, STR(",\"deleted\":true}"));
}

bool route_session_delete(struct call *c, struct err *err)
{
    struct store_task *t = task_of_id(c, STORE_SESSION_DELETE, finish_delete, err);
    return t && store_task_start(t, err);
}

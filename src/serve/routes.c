/* Every route, in one table; keys; what is answered at once. On the http thread. */
#include "serve/call.h"
#include "serve/lasting.h"
#include "serve/once.h"
#include "serve/sessions.h"

#include "base/log.h"
#include "base/nearest.h"

#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#define CORS_HEADERS_MAX 1024

enum answer {
    ANSWER_WORK,     /* on a worker */
    ANSWER_GENERATE, /* on a worker, then the engine */
    ANSWER_STORE,    /* `work` runs on the http thread and starts what answers */
    ANSWER_HEALTH,
    ANSWER_LIVE,
    ANSWER_READY,
    ANSWER_METRICS,
    ANSWER_GPU,
    ANSWER_GPU_HISTORY,
    ANSWER_ROOT,
    ANSWER_CANCEL,
};

enum needs { NEEDS_NOTHING, NEEDS_MODEL, NEEDS_PATH, NEEDS_PATH_MODEL };

enum access { OPEN /* never needs a key, and takes any query: those who look after health add theirs */, KEYED };

/* Names that a route takes in its query. */
struct query {
    const char *names[5], *shown;
};
static const struct query jobs_query = {{"status", "model", "since", "limit"}, "status, model, since and limit"};
static const struct query sessions_query = {{"limit"}, "limit"};
static const struct query history_query = {{"since"}, "since"};

/* path: "{}" stands for a name, with slashes raw or as %2F. The first path that fits is the one that is meant, whatever the
 * method: GET /models/x/load asks for a verb in a wrong way, not for a model called x/load. But a model may be called
 * reload. */
static const struct route {
    const char *method, *path;
    enum answer answer;
    enum needs needs;
    enum api_kind kind;
    call_work work;
    enum access access;
    const struct query *query; /* NULL: no names */
} routes[] = {
    {"GET", "/", ANSWER_ROOT, NEEDS_NOTHING, 0, NULL, OPEN, NULL},
    {"GET", "/health", ANSWER_HEALTH, NEEDS_NOTHING, 0, NULL, OPEN, NULL},
    {"GET", "/health/live", ANSWER_LIVE, NEEDS_NOTHING, 0, NULL, OPEN, NULL},
    {"GET", "/health/ready", ANSWER_READY, NEEDS_NOTHING, 0, NULL, OPEN, NULL},
    {"GET", "/metrics", ANSWER_METRICS, NEEDS_NOTHING, 0, NULL, KEYED, NULL},
    {"GET", "/metrics/gpu", ANSWER_GPU, NEEDS_NOTHING, 0, NULL, KEYED, NULL},
    {"GET", "/metrics/gpu/history", ANSWER_GPU_HISTORY, NEEDS_NOTHING, 0, NULL, KEYED, &history_query},
    {"POST", "/chat", ANSWER_GENERATE, NEEDS_MODEL, API_CHAT, prepare_generate, KEYED, NULL},
    {"POST", "/v1/chat/completions", ANSWER_GENERATE, NEEDS_MODEL, API_OPENAI_CHAT, prepare_generate, KEYED, NULL},
    {"POST", "/v1/completions", ANSWER_GENERATE, NEEDS_MODEL, API_OPENAI_COMPLETE, prepare_generate, KEYED, NULL},
    {"POST", "/tokenize", ANSWER_WORK, NEEDS_MODEL, API_TOKENIZE, tools_tokenize, KEYED, NULL},
    {"POST", "/detokenize", ANSWER_WORK, NEEDS_MODEL, API_DETOKENIZE, tools_detokenize, KEYED, NULL},
    {"POST", "/apply-template", ANSWER_WORK, NEEDS_MODEL, API_APPLY_TEMPLATE, tools_apply_template, KEYED, NULL},
    {"GET", "/models", ANSWER_WORK, NEEDS_NOTHING, 0, admin_models, KEYED, NULL},
    {"GET", "/v1/models", ANSWER_WORK, NEEDS_NOTHING, 0, admin_openai_models, KEYED, NULL},
    {"POST", "/models/{}/load", ANSWER_WORK, NEEDS_PATH_MODEL, 0, admin_load, KEYED, NULL},
    {"POST", "/models/{}/unload", ANSWER_WORK, NEEDS_PATH, 0, admin_unload, KEYED, NULL},
    {"POST", "/models/reload", ANSWER_WORK, NEEDS_NOTHING, 0, admin_reload_all, KEYED, NULL},
    {"POST", "/models/{}/reload", ANSWER_WORK, NEEDS_PATH_MODEL, 0, admin_reload, KEYED, NULL},
    {"DELETE", "/models/{}", ANSWER_WORK, NEEDS_PATH, 0, admin_delete, KEYED, NULL},
    {"GET", "/models/{}", ANSWER_WORK, NEEDS_PATH, 0, admin_model, KEYED, NULL},
    {"GET", "/v1/models/{}", ANSWER_WORK, NEEDS_PATH, 0, admin_openai_model, KEYED, NULL},
    {"POST", "/pull", ANSWER_WORK, NEEDS_NOTHING, 0, route_pull, KEYED, NULL},
    {"GET", "/jobs", ANSWER_STORE, NEEDS_NOTHING, 0, route_jobs, KEYED, &jobs_query},
    {"GET", "/jobs/{}/events", ANSWER_STORE, NEEDS_PATH, 0, route_job_events, KEYED, NULL},
    {"GET", "/jobs/{}", ANSWER_STORE, NEEDS_PATH, 0, route_job, KEYED, NULL},
    {"DELETE", "/jobs/{}", ANSWER_STORE, NEEDS_PATH, 0, route_job_cancel, KEYED, NULL},
    {"GET", "/sessions", ANSWER_STORE, NEEDS_NOTHING, 0, route_sessions, KEYED, &sessions_query},
    {"GET", "/sessions/{}", ANSWER_STORE, NEEDS_PATH, 0, route_session, KEYED, NULL},
    {"DELETE", "/sessions/{}", ANSWER_STORE, NEEDS_PATH, 0, route_session_delete, KEYED, NULL},
    {"DELETE", "/requests/{}", ANSWER_CANCEL, NEEDS_PATH, 0, NULL, KEYED, NULL},
};

#define N_ROUTES (sizeof routes / sizeof *routes)

/* Whether `path` is this route's; the name in it, as sent, to *name. */
static bool matches(const char *pattern, struct str path, struct str *name)
{
    const char *hole = strstr(pattern, "{}");
    if (!hole)
        return str_equal(path, str_from(pattern));
    struct str head = {pattern, (size_t)(hole - pattern)}, tail = str_from(hole + 2);
    if (!str_has_prefix(path, head) || !str_has_suffix(path, tail) || path.len <= head.len + tail.len)
        return false;
    *name = (struct str){path.ptr + head.len, path.len - head.len - tail.len};
    return true;
}

static bool takes(const struct route *route, struct str method)
{
    return str_equal(method, str_from(route->method)) || (str_equal(method, STR("HEAD")) && strcmp(route->method, "GET") == 0);
}

/* The route's path that `path` means; the name in it to *name. NULL: there is none. */
static const char *find_path(struct str path, struct str method, struct str *name)
{
    const char *other = NULL; /* fits, with another method */
    for (size_t i = 0; i < N_ROUTES; i++) {
        if (!matches(routes[i].path, path, name))
            continue;
        if (strstr(routes[i].path, "{}") || takes(&routes[i], method))
            return routes[i].path;
        other = other ? other : routes[i].path;
    }
    return other;
}

/* The path of a route without its {}, of which the start is missing or too much in `path`: the one of them that is
 * nearest to it in length; NULL: none. */
static const char *path_with_part(struct str path)
{
    const char *best = NULL;
    size_t least = SIZE_MAX;
    for (size_t i = 0; i < N_ROUTES && path.len > 1; i++) {
        struct str known = str_from(routes[i].path);
        if (known.len == 1 || strstr(known.ptr, "{}") || (!str_has_suffix(known, path) && !str_has_suffix(path, known)))
            continue;
        size_t d = known.len > path.len ? known.len - path.len : path.len - known.len;
        if (d < least) {
            least = d;
            best = routes[i].path;
        }
    }
    return best;
}

/* For a path with a slip, or of which a part is missing or too much ("/chat/completions", "/v1/v1/models", "/models/"). */
static const char *nearest_path(struct str path)
{
    while (path.len > 1 && path.ptr[path.len - 1] == '/')
        path.len--;
    struct nearest n = nearest_begin(path, NEAREST_CHANGES_MAX);
    for (size_t i = 0; i < N_ROUTES; i++)
        if (routes[i].path[1] && !strstr(routes[i].path, "{}"))
            nearest_try(&n, routes[i].path);
    return n.name ? n.name : path_with_part(path);
}

static int hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The name in the path, without its escapes, to c->path_model. */
static bool take_name(struct call *c, struct str s, struct err *err)
{
    char *p = c->path_model = malloc(s.len + 1);
    if (!p)
        return err_set(err, ERR_MEMORY, "Out of memory.");
    for (size_t i = 0; i < s.len; i++) {
        bool escaped = s.ptr[i] == '%' && i + 2 < s.len && hex(s.ptr[i + 1]) >= 0 && hex(s.ptr[i + 2]) >= 0;
        *p = escaped ? (char)(hex(s.ptr[i + 1]) << 4 | hex(s.ptr[i + 2])) : s.ptr[i];
        i += escaped ? 2 : 0;
        if (!*p++)
            return err_set(err, ERR_NOT_FOUND, "The name in the path has a NUL (%%00), and nothing is called so.");
    }
    *p = 0;
    return true;
}

/* Every key is compared in full, whatever differs. */
static bool key_ok(const struct serve_config *config, struct str given)
{
    unsigned any = config->n_api_keys == 0;
    for (size_t k = 0; k < config->n_api_keys; k++) {
        struct str key = str_from(config->api_keys[k]);
        unsigned differs = key.len != given.len;
        for (size_t i = 0; i < given.len; i++)
            differs |= (unsigned char)given.ptr[i] ^ (unsigned char)key.ptr[key.len ? i % key.len : 0];
        any |= differs == 0;
    }
    return any;
}

static bool authorized(const struct server *s, struct http_request *r)
{
    struct str header = http_header(r, "Authorization");
    struct str bearer = STR("Bearer ");
    if (header.len >= bearer.len && strncasecmp(header.ptr, bearer.ptr, bearer.len) == 0)
        header = (struct str){header.ptr + bearer.len, header.len - bearer.len};
    else
        header = (struct str){"", 0};
    return key_ok(s->config, header);
}

void routes_error_body(void *ctx, int status, struct str path, struct str request_id, const char *text, struct buf *body)
{
    (void)ctx;
    (void)request_id;
    struct err err = {0};
    err_set(&err,
            status == 413   ? ERR_TOO_LARGE
            : status == 408 ? ERR_TIMEOUT
            : status == 503 ? ERR_MEMORY
                            : ERR_INVALID_REQUEST,
            "%s", text);
    api_error_body(body, path, &err);
}

static void cancel_request(struct call *c, struct str id)
{
    struct err err = {0};
    size_t n = 0;
    for (struct call *other = c->server->calls, *next; other; other = next) {
        next = other->next;
        if (other == c || !other->generates || !str_equal(str_from(other->id), id) || atomic_load(&other->closed) ||
            (other->answered && !other->streaming))
            continue;
        call_abort(other, ERR_CANCELLED, "The request was cancelled by DELETE /requests/%.*s.", (int)id.len, id.ptr);
        n++;
    }
    if (n) {
        call_reply(c, 200, STR("{\"status\":\"cancelled\"}\n"));
        return;
    }
    err_set(&err, ERR_NOT_FOUND, "No request '%.*s' is being answered.", (int)id.len, id.ptr);
    call_fail(c, &err);
}

static void answer_now(struct call *c, enum answer answer)
{
    c->quiet = answer != ANSWER_CANCEL;
    struct server *s = c->server;
    struct err err = {0};
    int64_t since_ms;
    struct buf out;
    buf_init(&out, (size_t)16 << 20);
    switch (answer) {
    case ANSWER_HEALTH:
        health_write(s, &out);
        call_reply_whole(c, 200, "application/json", &out);
        break;
    case ANSWER_READY:
        health_write(s, &out);
        call_reply_whole(c, health_ready(s) ? 200 : 503, "application/json", &out);
        break;
    case ANSWER_METRICS:
        metrics_scrape(s, &out);
        call_reply_whole(c, 200, "text/plain; version=0.0.4; charset=utf-8", &out);
        break;
    case ANSWER_GPU:
        call_reply(c, 200, STR("{\"gpus\":[],\"message\":\"No GPU is used: this build computes on the CPU.\"}\n"));
        break;
    case ANSWER_GPU_HISTORY:
        if (!route_read_since(http_query(c->request, "since"), &since_ms, &err)) {
            call_fail(c, &err);
            break;
        }
        call_reply(c, 200, STR("{\"samples\":[],\"message\":\"No GPU is used: this build computes on the CPU.\"}\n"));
        break;
    case ANSWER_CANCEL: cancel_request(c, str_from(c->path_model)); break;
    case ANSWER_ROOT:
        call_reply_as(c, 200, "text/plain; charset=utf-8", STR("inferd is running. POST /chat, or see docs/api.md.\n"));
        break;
    default: call_reply(c, 200, STR("{\"status\":\"alive\"}\n"));
    }
    buf_release(&out);
}

/* Nothing is ignored: a filter with a slip would list what nobody asked for. */
static bool check_query(const struct call *c, const struct route *route, struct err *err)
{
    static const struct query none = {{NULL}, "nothing"};
    const struct query *takes = route->query ? route->query : &none;
    const char *other = route->access == OPEN ? NULL : http_query_other(c->request, takes->names);
    return !other || err_set_param(err, ERR_INVALID_REQUEST, other, "'%.64s' in the query of %.200s is not known; it takes %s.",
                                   other, c->path, takes->shown);
}

static void dispatch(struct call *c, const struct route *route, struct str name)
{
    struct server *s = c->server;
    struct err err = {0};
    if ((route->needs == NEEDS_PATH || route->needs == NEEDS_PATH_MODEL) && !take_name(c, name, &err)) {
        call_fail(c, &err);
        return;
    }
    if (route->answer == ANSWER_STORE) {
        if (!route->work(c, &err))
            call_fail(c, &err);
        return;
    }
    if (route->answer != ANSWER_WORK && route->answer != ANSWER_GENERATE) {
        answer_now(c, route->answer);
        return;
    }
    c->kind = route->kind;
    c->work = route->work;
    c->generates = route->answer == ANSWER_GENERATE;
    if (c->generates)
        log_event(LOG_INFO, "request_received", "id=%s method=%s path=\"%s\" peer=%.*s body_bytes=%zu", c->id, c->method,
                  c->path, (int)http_peer(c->request).len, http_peer(c->request).ptr, c->body_bytes);
    c->needs_model = route->needs == NEEDS_MODEL || route->needs == NEEDS_PATH_MODEL;
    if (atomic_load(&s->draining) && !http_shares_listener(s->http) && (c->needs_model || c->work == admin_reload_all)) {
        err_set(&err, ERR_DRAINING, "The server is shutting down and takes no new work; ask another instance.");
        call_fail(c, &err);
        return;
    }
    if (c->generates && s->n_active >= s->config->streams_max + s->config->queue_max) {
        err_set(&err, ERR_QUEUE_FULL,
                "%zu requests are being answered or waiting; --max-streams is %zu and --max-queue is %zu. "
                "Try again later.",
                s->n_active, s->config->streams_max, s->config->queue_max);
        call_fail(c, &err);
        return;
    }
    struct str key = http_header(c->request, "Idempotency-Key");
    if (!key.ptr || strcmp(route->method, "POST") != 0)
        call_start(c);
    else if (!once_begin(c, key, &err))
        call_fail(c, &err);
}

/* "GET, HEAD, OPTIONS": what the routes of a path of the table take. */
static void allowed(const char *path, char *out, size_t size)
{
    size_t n = 0;
    for (size_t i = 0; i < N_ROUTES; i++)
        if (strcmp(routes[i].path, path) == 0)
            n += (size_t)snprintf(out + n, size - n, "%s, %s", routes[i].method, routes[i].method[0] == 'G' ? "HEAD, " : "");
    snprintf(out + n, size - n, "OPTIONS");
}

/* Pages of other origins may call only where --cors-origin says so; refusals are for them to read, too. */
static bool add_cors(const struct serve_config *config, struct http_request *r)
{
    if (!config->cors_origin || !*config->cors_origin)
        return false;
    http_add_header(r, "Access-Control-Allow-Origin", config->cors_origin);
    http_add_header(r, "Access-Control-Expose-Headers", "x-request-id, Retry-After");
    return true;
}

/* What a page may send, which its browser asks before it does. */
static void add_preflight(struct http_request *r, const char *methods)
{
    http_add_header(r, "Access-Control-Allow-Methods", methods);
    /* Which headers is for the page to know: client libraries have some of their own. */
    struct str wanted = http_header(r, "Access-Control-Request-Headers");
    char headers[CORS_HEADERS_MAX];
    snprintf(headers, sizeof headers, "%.*s", (int)wanted.len, wanted.len ? wanted.ptr : "");
    bool whole = wanted.len && wanted.len < sizeof headers;
    http_add_header(r, "Access-Control-Allow-Headers", whole ? headers : "Authorization, Content-Type, x-request-id");
    http_add_header(r, "Access-Control-Max-Age", "600");
}

/* What clients of other servers ask for and this one does not have; NULL: none of these. */
static const char *not_built(struct str path)
{
    static const struct {
        const char *path, *what;
    } absent[] = {
        {"/api/", "Ollama's API is not built; POST /chat and POST /v1/chat/completions are."},
        {"/v1/messages", "Anthropic's API is not built; POST /chat and POST /v1/chat/completions are."},
        {"/v1/embeddings", "Embeddings are not built."},
        {"/v1/responses", "OpenAI's responses are not built; POST /v1/chat/completions is."},
        {"/v1/files", "Files and batches are not built; send requests one by one, as many at once as you like."},
        {"/v1/batches", "Files and batches are not built; send requests one by one, as many at once as you like."},
        {"/openapi.json", "A description of the API for programs is not built."},
    };
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++)
        if (str_has_prefix(path, str_from(absent[i].path)))
            return absent[i].what;
    return NULL;
}

/* No route takes this method. `known`: the path of the table, or NULL. */
static void refuse_method(struct call *c, struct str method, struct str path, const char *known, bool cors)
{
    struct err err = {0};
    char methods[96] = "OPTIONS";
    bool options = str_equal(method, STR("OPTIONS"));
    if (!known && !(options && str_equal(path, STR("*")))) {
        const char *absent = not_built(path), *near = absent ? NULL : nearest_path(path);
        err_set(&err, ERR_NOT_FOUND, "There is nothing at %.200s.%s%s%s%s%s See docs/api.md for the routes.", c->path,
                absent ? " " : "", absent ? absent : "", near ? " Did you mean " : "", near ? near : "", near ? "?" : "");
        call_fail(c, &err);
        return;
    }
    if (known) {
        allowed(known, methods, sizeof methods);
        http_add_header(c->request, "Allow", methods);
    }
    if (options) {
        if (cors)
            add_preflight(c->request, methods);
        c->quiet = true;
        call_reply_as(c, 204, NULL, STR(""));
        return;
    }
    err_set(&err, ERR_METHOD, "%s is not possible on %.200s; possible are %s.", c->method, c->path, methods);
    call_fail(c, &err);
}

void routes_handle(void *ctx, struct http_request *r)
{
    struct server *s = ctx;
    struct call *c = call_new(s, r);
    if (!c) {
        http_reply(r, 503, "application/json",
                   STR("{\"error\":{\"message\":\"Out of memory.\",\"type\":\"server_error\","
                       "\"param\":null,\"code\":\"insufficient_memory\"}}\n"));
        return;
    }
    struct str path = http_path(r), method = http_method(r), name = {0};
    struct err err = {0};
    bool cors = add_cors(s->config, r);
    const char *known = find_path(path, method, &name);
    if (known)
        c->handler = known;
    for (size_t i = 0; known && i < N_ROUTES; i++) {
        if (strcmp(routes[i].path, known) != 0 || !takes(&routes[i], method))
            continue;
        if (routes[i].access == KEYED && !authorized(s, r)) {
            err_set(&err, ERR_UNAUTHORIZED,
                    "This server needs a key: send 'Authorization: Bearer KEY' with a key given to it "
                    "by --api-key.");
            call_fail(c, &err);
            return;
        }
        if (!check_query(c, &routes[i], &err)) {
            call_fail(c, &err);
            return;
        }
        struct str coding = http_header(r, "Content-Encoding");
        if (coding.len && !str_equal(coding, STR("identity"))) {
            err_set(&err, ERR_UNSUPPORTED,
                    "The body has the Content-Encoding '%.*s', which is not undone here: send it as it is.",
                    (int)(coding.len < 60 ? coding.len : 60), coding.ptr);
            call_fail(c, &err);
            return;
        }
        dispatch(c, &routes[i], name);
        return;
    }
    refuse_method(c, method, path, known, cors);
}

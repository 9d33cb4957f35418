/* HTTP/1.1 over libmicrohttpd; see http.h.
 *
 * One thread runs an epoll loop over: the library's own epoll descriptor, an eventfd for posted work, the descriptors
 * of http_watch, and the socket of every request that was handed to the handler, watched for EPOLLRDHUP (the library
 * does not look at suspended connections). A client that shuts down its sending side counts as gone.
 *
 * A request:  RECEIVING --whole--> HANDLED --(suspended)--> ANSWERED --queued--> SENDING --completed--> freed
 */
#include "http/http.h"

#include "base/clock.h"
#include "base/rand.h"

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS_MAX          64
#define TICK_MS             1000
#define REPLY_HEADERS_MAX   16
#define REQUEST_ID_BYTES    129
#define DISCARD_BYTES_MAX   ((size_t)64 << 20) /* of a body that was refused while it came in */
#define LISTEN_BACKLOG      1024
#define NS_PER_MS           1000000u

struct posted {
    void (*fn)(void *arg);
    void *arg;
    struct posted *next;
};

struct timer {
    uint64_t id, at_ns;
    void (*fn)(void *arg);
    void *arg;
    struct timer *next;
};

struct watch {
    int fd;
    void (*fn)(void *arg);
    void *arg;
    struct watch *next;
};

enum request_state { RECEIVING, HANDLED, ANSWERED, SENDING };

struct http_request {
    struct http_server *server;
    struct MHD_Connection *connection;
    struct http_request *previous, *next; /* of the server's list */
    enum request_state state;
    char *method, *path;
    char id[REQUEST_ID_BYTES], peer[64];
    uint64_t received_ns;
    int fd;
    bool watched, suspended, gone, stalled, closed;
    struct buf body;
    int refused; /* status of an error found while receiving; 0: none */
    char refused_text[160];
    size_t discarded;
    void *user;
    void (*on_close)(void *user, enum http_close why);
    struct {
        char *name, *value;
    } headers[REPLY_HEADERS_MAX];
    size_t n_headers;
    struct MHD_Response *response;
    int status;
    bool streaming, ended;
    struct buf out;
    uint64_t progress_ns; /* when output last moved, or when there was none to move */
    struct buf query;     /* decoded value of the last http_query */
};

struct http_server {
    struct http_options o;
    http_handler handler;
    http_error_body error_body;
    void *ctx;
    struct MHD_Daemon *daemon;
    int epoll_fd, event_fd, mhd_fd, listen_fd;
    unsigned port;
    pthread_t thread;
    pthread_mutex_t lock; /* posted, closing */
    struct posted *first, **last;
    bool closing, stop_accepting, quiesced;
    struct timer *timers; /* by time */
    uint64_t next_timer;
    struct watch *watches;
    struct http_request *requests;
};

/* ---- requests ---------------------------------------------------------------------------------------------------------- */

static void close_request(struct http_request *r, enum http_close why)
{
    if (r->closed)
        return;
    r->closed = true;
    if (r->on_close)
        r->on_close(r->user, why);
}

static void unwatch(struct http_request *r)
{
    if (r->watched)
        epoll_ctl(r->server->epoll_fd, EPOLL_CTL_DEL, r->fd, NULL);
    r->watched = false;
}

static void resume(struct http_request *r)
{
    if (!r->suspended)
        return;
    r->suspended = false;
    MHD_resume_connection(r->connection);
}

/* The client is gone or does not read: tell, and let the library find a dead socket. */
static void abandon(struct http_request *r, enum http_close why)
{
    if (r->gone)
        return;
    r->gone = true;
    r->stalled = why == HTTP_CLOSE_STALLED;
    unwatch(r);
    shutdown(r->fd, SHUT_RDWR);
    close_request(r, why);
    resume(r);
}

static void free_request(struct http_request *r)
{
    unwatch(r);
    if (r->previous)
        r->previous->next = r->next;
    else
        r->server->requests = r->next;
    if (r->next)
        r->next->previous = r->previous;
    for (size_t i = 0; i < r->n_headers; i++) {
        free(r->headers[i].name);
        free(r->headers[i].value);
    }
    if (r->response)
        MHD_destroy_response(r->response);
    buf_release(&r->body);
    buf_release(&r->out);
    buf_release(&r->query);
    free(r->method);
    free(r->path);
    free(r);
}

static void completed(void *ctx, struct MHD_Connection *connection, void **slot, enum MHD_RequestTerminationCode code)
{
    (void)ctx;
    (void)connection;
    struct http_request *r = *slot;
    if (!r)
        return;
    *slot = NULL;
    close_request(r, code == MHD_REQUEST_TERMINATED_COMPLETED_OK && !r->gone ? HTTP_CLOSE_DONE : HTTP_CLOSE_GONE);
    free_request(r);
}

static void take_request_id(struct http_request *r)
{
    const char *given = MHD_lookup_connection_value(r->connection, MHD_HEADER_KIND, "x-request-id");
    size_t n = given ? strlen(given) : 0;
    bool ok = n > 0 && n < sizeof r->id;
    for (size_t i = 0; i < n && ok; i++)
        ok = given[i] > 0x20 && given[i] < 0x7f;
    if (ok)
        memcpy(r->id, given, n + 1);
    else
        snprintf(r->id, sizeof r->id, "req-%016llx%08x", (unsigned long long)rand_system_u64(),
                 (unsigned)rand_system_u64());
}

static void take_peer(struct http_request *r, const struct sockaddr *address)
{
    socklen_t len = address->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
    if (getnameinfo(address, len, r->peer, sizeof r->peer, NULL, 0, NI_NUMERICHOST) != 0)
        snprintf(r->peer, sizeof r->peer, "unknown");
}

static struct http_request *new_request(struct http_server *s, struct MHD_Connection *c, const char *url,
                                        const char *method)
{
    struct http_request *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->server = s;
    r->connection = c;
    r->received_ns = r->progress_ns = clock_mono_ns();
    r->method = strdup(method);
    r->path = strdup(url);
    buf_init(&r->body, s->o.body_bytes_max);
    buf_init(&r->out, s->o.stream_bytes_max);
    buf_init(&r->query, 1 << 16);
    r->fd = MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    int one = 1;
    setsockopt(r->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    take_peer(r, MHD_get_connection_info(c, MHD_CONNECTION_INFO_CLIENT_ADDRESS)->client_addr);
    take_request_id(r);
    r->next = s->requests;
    if (r->next)
        r->next->previous = r;
    s->requests = r;
    return r;
}

static void refuse(struct http_request *r, int status, const char *text)
{
    if (!r->refused) {
        r->refused = status;
        snprintf(r->refused_text, sizeof r->refused_text, "%s", text);
    }
}

struct framing {
    unsigned lengths, encodings;
    char length[32];
    bool different;
};

static enum MHD_Result look_at_header(void *ctx, enum MHD_ValueKind kind, const char *name, const char *value)
{
    (void)kind;
    struct framing *f = ctx;
    if (strcasecmp(name, "content-length") == 0) {
        if (f->lengths++ && strcmp(f->length, value ? value : "") != 0)
            f->different = true;
        snprintf(f->length, sizeof f->length, "%s", value ? value : "");
    }
    if (strcasecmp(name, "transfer-encoding") == 0)
        f->encodings++;
    return MHD_YES;
}

/* What makes two servers see two different bodies is refused: request smuggling. */
static void check_framing(struct http_request *r)
{
    struct framing f = {0};
    MHD_get_connection_values(r->connection, MHD_HEADER_KIND, look_at_header, &f);
    if (f.different || (f.lengths && f.encodings) || f.encodings > 1) {
        refuse(r, 400, "The request has contradictory Content-Length or Transfer-Encoding headers.");
        return;
    }
    if (f.lengths && strtoull(f.length, NULL, 10) > r->server->o.body_bytes_max) {
        char text[160];
        snprintf(text, sizeof text, "The body has %s bytes; at most %zu are allowed (--max-body).", f.length,
                 r->server->o.body_bytes_max);
        refuse(r, 413, text);
    }
}

/* ---- answering ----------------------------------------------------------------------------------------------------------- */

void http_add_header(struct http_request *r, const char *name, const char *value)
{
    if (r->n_headers == REPLY_HEADERS_MAX)
        return;
    r->headers[r->n_headers].name = strdup(name);
    r->headers[r->n_headers].value = strdup(value);
    r->n_headers++;
}

static void set_response(struct http_request *r, int status, const char *type, struct MHD_Response *response)
{
    r->response = response;
    r->status = status;
    r->state = ANSWERED;
    MHD_add_response_header(response, "Content-Type", type);
    MHD_add_response_header(response, "x-request-id", r->id);
    for (size_t i = 0; i < r->n_headers; i++)
        if (r->headers[i].name && r->headers[i].value)
            MHD_add_response_header(response, r->headers[i].name, r->headers[i].value);
}

void http_reply(struct http_request *r, int status, const char *content_type, struct str body)
{
    if (r->state >= ANSWERED)
        return;
    struct MHD_Response *response =
        MHD_create_response_from_buffer(body.len, (void *)(body.len ? body.ptr : ""), MHD_RESPMEM_MUST_COPY);
    if (!response) {
        abandon(r, HTTP_CLOSE_GONE);
        return;
    }
    set_response(r, status, content_type, response);
    resume(r);
}

static void reply_error(struct http_request *r, int status, const char *text)
{
    struct buf body;
    buf_init(&body, 1 << 16);
    struct http_server *s = r->server;
    s->error_body(s->ctx, status, str_from(r->path), str_from(r->id), text, &body);
    http_add_header(r, "Connection", "close");
    http_reply(r, status, "application/json", buf_str(&body));
    buf_release(&body);
}

static ssize_t read_stream(void *ctx, uint64_t pos, char *to, size_t room)
{
    (void)pos;
    struct http_request *r = ctx;
    if (r->gone)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    if (r->out.len == 0) {
        if (r->ended)
            return MHD_CONTENT_READER_END_OF_STREAM;
        if (!r->suspended) {
            r->suspended = true;
            MHD_suspend_connection(r->connection);
        }
        return 0;
    }
    size_t n = r->out.len < room ? r->out.len : room;
    memcpy(to, r->out.data, n);
    buf_consume(&r->out, n);
    r->progress_ns = clock_mono_ns();
    return (ssize_t)n;
}

void http_stream_begin(struct http_request *r, int status, const char *content_type)
{
    if (r->state >= ANSWERED)
        return;
    struct MHD_Response *response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16384, read_stream, r, NULL);
    if (!response) {
        abandon(r, HTTP_CLOSE_GONE);
        return;
    }
    r->streaming = true;
    MHD_add_response_header(response, "Cache-Control", "no-cache");
    MHD_add_response_header(response, "X-Accel-Buffering", "no");
    set_response(r, status, content_type, response);
    resume(r);
}

void http_stream_write(struct http_request *r, struct str bytes)
{
    if (r->gone || r->ended || bytes.len == 0)
        return;
    if (r->out.len == 0)
        r->progress_ns = clock_mono_ns();
    if (!buf_append_str(&r->out, bytes)) {
        abandon(r, HTTP_CLOSE_STALLED);
        return;
    }
    resume(r);
}

void http_stream_end(struct http_request *r)
{
    r->ended = true;
    resume(r);
}

/* ---- the library's callbacks ------------------------------------------------------------------------------------------------ */

static enum MHD_Result queue_response(struct http_request *r)
{
    r->state = SENDING;
    enum MHD_Result result = MHD_queue_response(r->connection, (unsigned)r->status, r->response);
    MHD_destroy_response(r->response);
    r->response = NULL;
    return result;
}

static void handle(struct http_request *r)
{
    struct http_server *s = r->server;
    struct epoll_event e = {.events = EPOLLRDHUP, .data.ptr = r};
    r->watched = epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, r->fd, &e) == 0;
    r->state = HANDLED;
    s->handler(s->ctx, r);
}

static enum MHD_Result on_request(void *ctx, struct MHD_Connection *c, const char *url, const char *method,
                                  const char *version, const char *data, size_t *size, void **slot)
{
    (void)version;
    struct http_request *r = *slot;
    if (!r) {
        r = new_request(ctx, c, url, method);
        if (!r)
            return MHD_NO;
        *slot = r;
        check_framing(r);
        if (r->refused) {
            reply_error(r, r->refused, r->refused_text);
            return queue_response(r);
        }
        return MHD_YES;
    }
    if (r->gone)
        return MHD_NO;
    if (*size) {
        if (!r->refused && !buf_append(&r->body, data, *size))
            refuse(r, 413, "The body is over the limit (--max-body).");
        if (r->refused && (r->discarded += *size) > DISCARD_BYTES_MAX)
            return MHD_NO;
        *size = 0;
        return MHD_YES;
    }
    if (r->state == RECEIVING) {
        if (r->refused)
            reply_error(r, r->refused, r->refused_text);
        else
            handle(r);
    }
    if (r->gone)
        return MHD_NO;
    if (r->state == ANSWERED)
        return queue_response(r);
    if (r->state == HANDLED && !r->suspended) {
        r->suspended = true;
        MHD_suspend_connection(c);
    }
    return MHD_YES;
}

/* Paths and query values stay as they were sent; http_query decodes. */
static size_t keep_escapes(void *ctx, struct MHD_Connection *c, char *s)
{
    (void)ctx;
    (void)c;
    return strlen(s);
}

static void no_log(void *ctx, const char *format, va_list args)
{
    (void)ctx;
    (void)format;
    (void)args;
}

/* ---- the loop -------------------------------------------------------------------------------------------------------------- */

static void run_posted(struct http_server *s)
{
    eventfd_t value;
    eventfd_read(s->event_fd, &value);
    pthread_mutex_lock(&s->lock);
    struct posted *p = s->first;
    s->first = NULL;
    s->last = &s->first;
    pthread_mutex_unlock(&s->lock);
    while (p) {
        struct posted *next = p->next;
        p->fn(p->arg);
        free(p);
        p = next;
    }
}

static void run_timers(struct http_server *s)
{
    uint64_t now = clock_mono_ns();
    while (s->timers && s->timers->at_ns <= now) {
        struct timer *t = s->timers;
        s->timers = t->next;
        t->fn(t->arg);
        free(t);
    }
}

static void check_stalls(struct http_server *s)
{
    uint64_t now = clock_mono_ns(), limit = (uint64_t)s->o.stall_s * 1000 * NS_PER_MS;
    for (struct http_request *r = s->requests, *next; r; r = next) {
        next = r->next;
        if (r->state == SENDING && r->out.len && now - r->progress_ns > limit)
            abandon(r, HTTP_CLOSE_STALLED);
        else if (r->state == RECEIVING && now - r->received_ns > (uint64_t)s->o.request_timeout_s * 1000 * NS_PER_MS)
            shutdown(r->fd, SHUT_RDWR);
    }
}

static int wait_ms(struct http_server *s)
{
    MHD_UNSIGNED_LONG_LONG mhd_ms;
    uint64_t ms = TICK_MS;
    if (MHD_get_timeout(s->daemon, &mhd_ms) == MHD_YES && mhd_ms < ms)
        ms = mhd_ms;
    if (s->timers) {
        uint64_t now = clock_mono_ns(), left = s->timers->at_ns > now ? s->timers->at_ns - now : 0;
        uint64_t left_ms = (left + NS_PER_MS - 1) / NS_PER_MS;
        ms = left_ms < ms ? left_ms : ms;
    }
    return (int)ms;
}

static bool must_close(struct http_server *s)
{
    pthread_mutex_lock(&s->lock);
    bool closing = s->closing, stop = s->stop_accepting;
    pthread_mutex_unlock(&s->lock);
    if (stop && !s->quiesced) {
        s->quiesced = true;
        MHD_quiesce_daemon(s->daemon);
        close(s->listen_fd);
    }
    return closing;
}

static void *loop(void *arg)
{
    struct http_server *s = arg;
    uint64_t tick_ns = 0;
    while (!must_close(s)) {
        struct epoll_event events[EVENTS_MAX];
        int n = epoll_wait(s->epoll_fd, events, EVENTS_MAX, wait_ms(s));
        for (int i = 0; i < n; i++) {
            void *p = events[i].data.ptr;
            if (p == &s->event_fd || p == &s->mhd_fd)
                continue;
            bool ours = false;
            for (struct watch *w = s->watches; w; w = w->next)
                if (p == w) {
                    w->fn(w->arg);
                    ours = true;
                }
            for (struct http_request *r = ours ? NULL : s->requests; r; r = r->next)
                if (p == r) {
                    abandon(r, HTTP_CLOSE_GONE);
                    break;
                }
        }
        run_posted(s);
        run_timers(s);
        MHD_run(s->daemon);
        if (clock_mono_ns() - tick_ns > (uint64_t)TICK_MS * NS_PER_MS) {
            tick_ns = clock_mono_ns();
            check_stalls(s);
        }
    }
    for (struct http_request *r = s->requests, *next; r; r = next) {
        next = r->next;
        abandon(r, HTTP_CLOSE_GONE);
    }
    run_posted(s);
    MHD_run(s->daemon);
    MHD_stop_daemon(s->daemon);
    run_posted(s);
    return NULL;
}

/* ---- opening and closing ----------------------------------------------------------------------------------------------------- */

static int open_listener(const struct http_options *o, unsigned *port, struct err *err)
{
    char service[16];
    snprintf(service, sizeof service, "%u", o->port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found = NULL;
    int rc = getaddrinfo(o->host, service, &hints, &found);
    if (rc != 0) {
        err_set(err, ERR_USAGE, "--host '%s' is not an address of this machine: %s.", o->host, gai_strerror(rc));
        return -1;
    }
    int fd = -1;
    for (struct addrinfo *a = found; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        int one = 1;
        if (fd >= 0)
            setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (fd >= 0 && (bind(fd, a->ai_addr, a->ai_addrlen) != 0 || listen(fd, LISTEN_BACKLOG) != 0)) {
            int saved = errno;
            close(fd);
            fd = -1;
            errno = saved;
        }
    }
    freeaddrinfo(found);
    if (fd < 0) {
        err_set(err, ERR_IO, "Cannot listen on %s port %u: %m. Is another server running there? Try another --port.", o->host,
                o->port);
        return -1;
    }
    struct sockaddr_storage at;
    socklen_t len = sizeof at;
    getsockname(fd, (struct sockaddr *)&at, &len);
    *port = ntohs(at.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&at)->sin6_port : ((struct sockaddr_in *)&at)->sin_port);
    return fd;
}

static bool watch_fd(struct http_server *s, int fd, void *what)
{
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = what};
    return epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, fd, &e) == 0;
}

struct http_server *http_open(const struct http_options *options, http_handler handler, http_error_body error_body,
                              void *ctx, struct err *err)
{
    struct http_server *s = calloc(1, sizeof *s);
    if (!s) {
        err_set(err, ERR_MEMORY, "Out of memory.");
        return NULL;
    }
    s->o = *options;
    s->handler = handler;
    s->error_body = error_body;
    s->ctx = ctx;
    s->last = &s->first;
    pthread_mutex_init(&s->lock, NULL);
    s->listen_fd = open_listener(options, &s->port, err);
    if (s->listen_fd < 0) {
        free(s);
        return NULL;
    }
    s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    s->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    s->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL, on_request, s,
        MHD_OPTION_EXTERNAL_LOGGER, no_log, NULL, MHD_OPTION_LISTEN_SOCKET, s->listen_fd,
        MHD_OPTION_CONNECTION_LIMIT, options->connections_max, MHD_OPTION_CONNECTION_TIMEOUT, options->idle_timeout_s,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, options->header_bytes_max, MHD_OPTION_NOTIFY_COMPLETED, completed, s,
        MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, NULL, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_END);
    const union MHD_DaemonInfo *info = s->daemon ? MHD_get_daemon_info(s->daemon, MHD_DAEMON_INFO_EPOLL_FD) : NULL;
    s->mhd_fd = info ? info->epoll_fd : -1;
    bool ok = s->mhd_fd >= 0 && s->event_fd >= 0 && watch_fd(s, s->mhd_fd, &s->mhd_fd) &&
              watch_fd(s, s->event_fd, &s->event_fd) && pthread_create(&s->thread, NULL, loop, s) == 0;
    if (!ok) {
        err_set(err, ERR_IO, "Cannot start the HTTP server: %m.");
        if (s->daemon)
            MHD_stop_daemon(s->daemon);
        close(s->epoll_fd);
        close(s->event_fd);
        free(s);
        return NULL;
    }
    return s;
}

static void wake(struct http_server *s)
{
    eventfd_write(s->event_fd, 1);
}

void http_stop_accepting(struct http_server *s)
{
    pthread_mutex_lock(&s->lock);
    s->stop_accepting = true;
    pthread_mutex_unlock(&s->lock);
    wake(s);
}

void http_close(struct http_server *s)
{
    pthread_mutex_lock(&s->lock);
    s->closing = true;
    pthread_mutex_unlock(&s->lock);
    wake(s);
    pthread_join(s->thread, NULL);
    while (s->timers) {
        struct timer *t = s->timers;
        s->timers = t->next;
        free(t);
    }
    while (s->watches) {
        struct watch *w = s->watches;
        s->watches = w->next;
        free(w);
    }
    close(s->epoll_fd);
    close(s->event_fd);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

unsigned http_port(const struct http_server *s)
{
    return s->port;
}

unsigned http_connections(const struct http_server *s)
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(s->daemon, MHD_DAEMON_INFO_CURRENT_CONNECTIONS);
    return info ? info->num_connections : 0;
}

void http_post(struct http_server *s, void (*fn)(void *arg), void *arg)
{
    struct posted *p = malloc(sizeof *p);
    CHECK(p);
    *p = (struct posted){fn, arg, NULL};
    pthread_mutex_lock(&s->lock);
    bool was_empty = s->first == NULL;
    *s->last = p;
    s->last = &p->next;
    pthread_mutex_unlock(&s->lock);
    if (was_empty)
        wake(s);
}

uint64_t http_timer(struct http_server *s, unsigned delay_ms, void (*fn)(void *arg), void *arg)
{
    struct timer *t = malloc(sizeof *t);
    CHECK(t);
    *t = (struct timer){++s->next_timer, clock_mono_ns() + (uint64_t)delay_ms * NS_PER_MS, fn, arg, NULL};
    struct timer **at = &s->timers;
    while (*at && (*at)->at_ns <= t->at_ns)
        at = &(*at)->next;
    t->next = *at;
    *at = t;
    return t->id;
}

void http_timer_cancel(struct http_server *s, uint64_t id)
{
    for (struct timer **at = &s->timers; *at; at = &(*at)->next)
        if ((*at)->id == id) {
            struct timer *t = *at;
            *at = t->next;
            free(t);
            return;
        }
}

bool http_watch(struct http_server *s, int fd, void (*fn)(void *arg), void *arg, struct err *err)
{
    struct watch *w = malloc(sizeof *w);
    if (!w)
        return err_set(err, ERR_MEMORY, "Out of memory.");
    *w = (struct watch){fd, fn, arg, s->watches};
    s->watches = w;
    return watch_fd(s, fd, w) || err_set(err, ERR_IO, "epoll_ctl failed: %m.");
}

/* ---- reading a request ------------------------------------------------------------------------------------------------------- */

struct str http_method(const struct http_request *r)
{
    return str_from(r->method);
}

struct str http_path(const struct http_request *r)
{
    return str_from(r->path);
}

static int hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

struct str http_query(const struct http_request *r, const char *name)
{
    const char *raw = MHD_lookup_connection_value(r->connection, MHD_GET_ARGUMENT_KIND, name);
    if (!raw)
        return (struct str){0};
    struct buf *out = &((struct http_request *)r)->query;
    buf_clear(out);
    for (; *raw; raw++) {
        bool escaped = *raw == '%' && hex(raw[1]) >= 0 && hex(raw[2]) >= 0;
        buf_append_char(out, escaped ? (char)(hex(raw[1]) << 4 | hex(raw[2])) : *raw == '+' ? ' ' : *raw);
        raw += escaped ? 2 : 0;
    }
    return buf_str(out);
}

struct str http_header(const struct http_request *r, const char *name)
{
    const char *value = MHD_lookup_connection_value(r->connection, MHD_HEADER_KIND, name);
    return value ? str_from(value) : (struct str){0};
}

struct str http_body(const struct http_request *r)
{
    return buf_str(&r->body);
}

struct str http_peer(const struct http_request *r)
{
    return str_from(r->peer);
}

struct str http_request_id(const struct http_request *r)
{
    return str_from(r->id);
}

uint64_t http_received_ns(const struct http_request *r)
{
    return r->received_ns;
}

void http_set_user(struct http_request *r, void *user, void (*on_close)(void *user, enum http_close why))
{
    r->user = user;
    r->on_close = on_close;
}

void *http_user(const struct http_request *r)
{
    return r->user;
}

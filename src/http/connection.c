/* One connection: the library's callbacks, refusals, the end; see impl.h.
 *
 * Who has left? A reset, or both directions closed: always. A client that has only shut its sending side (EPOLLRDHUP)
 * cannot be told from one that closed its socket, so while somebody works on its request it counts as gone, as with
 * nginx and uvicorn; but not while bytes of further (pipelined) requests are unread, and not once the answer is whole:
 * that is sent to its end.
 */
#include "http/impl.h"

#include "base/clock.h"
#include "base/rand.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define RUNS_MAX             16                 /* of the library for one connection in one turn of the loop */
#define SEND_BUFFER_BYTES    (128 << 10)        /* the kernel's; beyond it a client's not reading shows as a stall */
#define POOL_EXTRA_BYTES     ((size_t)16 << 10) /* of the library's memory: parsed headers, the reply's head and chunks */
#define LINGER_MS            2000               /* for a client to read a refusal while it still sends */
#define DISCARD_BYTES        16384
#define DISCARDS_MAX         64 /* in one turn of the loop */
#define KEEPALIVE_IDLE_S     30 /* a peer that vanished without a word is found after 60 s */
#define KEEPALIVE_INTERVAL_S 10
#define KEEPALIVE_PROBES     3
#define NS_PER_MS            1000000u
#define NS_PER_S             1000000000u

size_t conn_unread(const struct conn *c)
{
    int n = 0;
    return ioctl(c->fd, FIONREAD, &n) == 0 && n > 0 ? (size_t)n : 0;
}

static void begin_receiving(struct conn *c)
{
    if (c->phase == CONN_IDLE) {
        c->phase = CONN_RECEIVING;
        c->started_ns = clock_mono_ns();
    }
}

/* ---- refusals ---------------------------------------------------------------------------------------------------------- */

void conn_make_id(char id[static HTTP_REQUEST_ID_MAX + 1])
{
    snprintf(id, HTTP_REQUEST_ID_MAX + 1, "req-%016llx%08x", (unsigned long long)rand_system_u64(),
             (unsigned)rand_system_u64());
}

static void http_date(char out[static 32])
{
    static const char days[7][4] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    static const char months[12][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    time_t now = (time_t)clock_wall_s();
    struct tm t;
    gmtime_r(&now, &t);
    snprintf(out, 32, "%s, %02u %s %04u %02u:%02u:%02u GMT", days[t.tm_wday], (unsigned)t.tm_mday % 100, months[t.tm_mon],
             (unsigned)(t.tm_year + 1900) % 10000, (unsigned)t.tm_hour % 100, (unsigned)t.tm_min % 100,
             (unsigned)t.tm_sec % 100);
}

/* Nothing else is on its way to the client: the library parses a request only when the reply before it was sent. */
void conn_refuse(struct conn *c, int status, const char *text)
{
    if (c->refused)
        return;
    c->refused = true;
    struct http_request *r = c->request;
    char made[HTTP_REQUEST_ID_MAX + 1], date[32];
    if (!r)
        conn_make_id(made);
    struct str id = str_from(r ? r->id : made);
    struct buf body, all;
    buf_init(&body, HTTP_ERROR_BODY_MAX);
    buf_init(&all, 2 * HTTP_ERROR_BODY_MAX);
    c->server->error_body(c->server->ctx, status, str_from(r ? r->path : ""), id, text, &body);
    http_date(date);
    buf_printf(&all,
               "HTTP/1.1 %d %s\r\nDate: %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
               "x-request-id: %.*s\r\n%sConnection: close\r\n\r\n",
               status, MHD_get_reason_phrase_for((unsigned)status), date, body.len, (int)id.len, id.ptr,
               status == 503 ? "Retry-After: 1\r\n" : "");
    if (!r || !r->method || strcmp(r->method, "HEAD") != 0)
        buf_append_str(&all, buf_str(&body));
    if (!all.failed)
        (void)!send(c->fd, all.data, all.len, MSG_NOSIGNAL | MSG_DONTWAIT);
    shutdown(c->fd, SHUT_WR);
    buf_release(&body);
    buf_release(&all);
}

static const char *text_of(unsigned status)
{
    switch (status) {
    case 413: return "The body's length, or that of a chunk, is beyond every limit.";
    case 414: return "The request line is too long.";
    case 431: return "The request's headers are too large or too many.";
    case 505: return "Only HTTP/1.1 and HTTP/1.0 are spoken here.";
    default: return "The request is not well-formed HTTP/1.1: its request line, a header, its length or a chunk.";
    }
}

/* ---- the library's callbacks --------------------------------------------------------------------------------------------- */

/* The library says so before it sends an (HTML) error page of its own; ours goes out instead. */
static void on_log(void *ctx, const char *format, va_list args)
{
    static const char own_page[] = "Error processing request (HTTP response code is %u";
    struct conn *c = ctx;
    if (strncmp(format, own_page, sizeof own_page - 1) != 0 || (c->request && c->request->state == REQUEST_SENDING))
        return;
    unsigned status = va_arg(args, unsigned);
    conn_refuse(c, (int)status, text_of(status));
}

static void on_connection(void *ctx, struct MHD_Connection *mhd, void **slot, enum MHD_ConnectionNotificationCode what)
{
    struct conn *c = ctx;
    c->mhd = mhd;
    if (what == MHD_CONNECTION_NOTIFY_CLOSED)
        c->ended = true;
}

/* A request line was read. */
static void *on_target(void *ctx, const char *target, struct MHD_Connection *mhd)
{
    struct conn *c = ctx;
    begin_receiving(c);
    c->request = request_new(c, target);
    return c->request;
}

static void on_completed(void *ctx, struct MHD_Connection *mhd, void **slot, enum MHD_RequestTerminationCode code)
{
    struct conn *c = ctx;
    struct http_request *r = c->request;
    if (!r)
        return;
    bool whole = code == MHD_REQUEST_TERMINATED_COMPLETED_OK && r->state == REQUEST_SENDING;
    request_close(r, whole ? HTTP_CLOSE_DONE : HTTP_CLOSE_GONE);
    request_free(r);
    c->request = NULL;
    c->phase = CONN_IDLE;
    c->in_ns = clock_mono_ns();
}

static void take_id(struct http_request *r)
{
    const char *given = MHD_lookup_connection_value(r->conn->mhd, MHD_HEADER_KIND, "x-request-id");
    size_t n = given ? strlen(given) : 0;
    bool ok = n > 0 && n <= HTTP_REQUEST_ID_MAX;
    for (size_t i = 0; i < n && ok; i++)
        ok = given[i] > 0x20 && given[i] < 0x7f;
    if (ok)
        memcpy(r->id, given, n + 1);
}

static enum MHD_Result take_head(struct http_request *r, const char *method, const char *version)
{
    r->head_checked = true;
    r->method = strdup(method);
    if (!r->method)
        return MHD_NO;
    take_id(r);
    char text[256];
    int status = framing_check(r, method, version, text, sizeof text);
    if (!status)
        return MHD_YES;
    conn_refuse(r->conn, status, text);
    return MHD_NO;
}

/* The request that holds most of what is counted, of those that can be ended for it. */
static struct conn *largest(const struct http_server *s)
{
    struct conn *found = NULL;
    for (struct conn *c = s->conns; c; c = c->next) {
        const struct http_request *r = c->request;
        bool can_end = r && !c->refused && !r->failing && (r->state == REQUEST_RECEIVING || r->streaming);
        if (can_end && (!found || r->counted_bytes > found->request->counted_bytes))
            found = c;
    }
    return found;
}

void conn_make_room(struct http_request *for_this)
{
    while (!request_count(for_this)) {
        struct conn *c = largest(for_this->conn->server);
        if (!c)
            return;
        struct http_request *r = c->request;
        if (r->streaming) {
            request_fail(r, HTTP_CLOSE_STALLED);
            buf_release(&r->out);
        } else {
            conn_refuse(c, 503,
                        "The bodies of requests under way take all the memory that there is for them (--memory), and "
                        "this is the largest; try again in a moment.");
            buf_release(&r->body);
        }
        request_count(r);
        server_queue(c);
    }
}

static enum MHD_Result take_body(struct http_request *r, const char *data, size_t *size)
{
    if (!buf_append(&r->body, data, *size)) {
        char text[128];
        snprintf(text, sizeof text, "The body has more than the %zu bytes that are allowed (--max-body).", r->body.max);
        conn_refuse(r->conn, 413, text);
        return MHD_NO;
    }
    conn_make_room(r);
    if (r->conn->refused)
        return MHD_NO;
    *size = 0;
    return MHD_YES;
}

static enum MHD_Result on_request(void *ctx, struct MHD_Connection *mhd, const char *url, const char *method,
                                  const char *version, const char *data, size_t *size, void **slot)
{
    struct conn *c = ctx;
    struct http_request *r = c->request;
    if (!r || c->refused)
        return MHD_NO;
    if (!r->head_checked)
        return take_head(r, method, version);
    if (*size)
        return take_body(r, data, size);
    if (r->state == REQUEST_RECEIVING) {
        c->phase = CONN_REPLYING;
        r->state = REQUEST_HANDLED;
        c->server->handler(c->server->ctx, r);
    }
    if (r->state == REQUEST_ANSWERED)
        return request_send(r);
    if (r->state == REQUEST_HANDLED && !r->suspended) {
        r->suspended = true;
        MHD_suspend_connection(mhd);
    }
    return MHD_YES;
}

/* Paths stay as they were sent. */
static size_t keep_escapes(void *ctx, struct MHD_Connection *mhd, char *s)
{
    return strlen(s);
}

/* ---- opening --------------------------------------------------------------------------------------------------------------- */

static void on_events(struct loop_source *source, uint32_t events)
{
    struct conn *c = (struct conn *)source;
    if (events & EPOLLIN)
        c->in_ns = clock_mono_ns();
    if (events & EPOLLOUT)
        c->out_ns = clock_mono_ns();
    c->half_closed |= (events & EPOLLRDHUP) != 0;
    c->broken |= (events & (EPOLLHUP | EPOLLERR)) != 0;
    server_queue(c);
}

static socklen_t address_len(const struct sockaddr *a)
{
    return a->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
}

static void take_peer(struct conn *c, const struct sockaddr *address)
{
    if (getnameinfo(address, address_len(address), c->peer, sizeof c->peer, NULL, 0, NI_NUMERICHOST) != 0)
        snprintf(c->peer, sizeof c->peer, "unknown");
    if (strncasecmp(c->peer, "::ffff:", 7) == 0 && strchr(c->peer, '.'))
        memmove(c->peer, c->peer + 7, strlen(c->peer + 7) + 1);
}

static void set_option(int fd, int level, int name, int value)
{
    setsockopt(fd, level, name, &value, sizeof value);
}

static void set_options(int fd)
{
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(fd, SOL_SOCKET, SO_SNDBUF, SEND_BUFFER_BYTES);
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
}

static struct MHD_Daemon *start_daemon(struct conn *c)
{
    return MHD_start_daemon(
        MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG | MHD_USE_TURBO, 0, NULL, NULL,
        on_request, c, MHD_OPTION_EXTERNAL_LOGGER, on_log, c, MHD_OPTION_CONNECTION_LIMIT, 1u, MHD_OPTION_CONNECTION_TIMEOUT,
        0u, MHD_OPTION_CONNECTION_MEMORY_LIMIT, c->server->o.header_bytes_max + POOL_EXTRA_BYTES, MHD_OPTION_NOTIFY_COMPLETED,
        on_completed, c, MHD_OPTION_NOTIFY_CONNECTION, on_connection, c, MHD_OPTION_URI_LOG_CALLBACK, on_target, c,
        MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, c, MHD_OPTION_END);
}

bool conn_open(struct http_server *s, int fd, const struct sockaddr *address)
{
    struct conn *c = calloc(1, sizeof *c);
    int duplicate = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (!c || duplicate < 0)
        goto failed;
    c->source.fn = on_events;
    c->server = s;
    c->fd = duplicate;
    c->in_ns = c->out_ns = clock_mono_ns();
    take_peer(c, address);
    set_options(fd);
    c->daemon = start_daemon(c);
    if (!c->daemon)
        goto failed;
    if (MHD_add_connection(c->daemon, fd, address, address_len(address)) != MHD_YES) {
        fd = -1; /* it was closed */
        goto failed;
    }
    fd = -1;
    if (!loop_watch(&s->loop, c->fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, &c->source))
        goto failed;
    c->next = s->conns;
    if (c->next)
        c->next->previous = c;
    s->conns = c;
    s->n_conns++;
    server_queue(c);
    return true;

failed:
    if (c && c->daemon)
        MHD_stop_daemon(c->daemon);
    if (fd >= 0)
        close(fd);
    if (duplicate >= 0)
        close(duplicate);
    free(c);
    return false;
}

/* ---- the end ---------------------------------------------------------------------------------------------------------------- */

static void stop_daemon(struct conn *c)
{
    if (!c->daemon)
        return;
    if (c->request && c->request->suspended) {
        c->request->suspended = false;
        MHD_resume_connection(c->mhd);
    }
    MHD_stop_daemon(c->daemon); /* frees the request, if there is one: on_completed */
    c->daemon = NULL;
}

static void conn_free(struct conn *c)
{
    stop_daemon(c);
    loop_unwatch(&c->server->loop, c->fd);
    close(c->fd);
    server_forget(c);
    free(c);
}

void conn_drop(struct conn *c, enum http_close why)
{
    if (c->request)
        request_close(c->request, why);
    if (why == HTTP_CLOSE_STALLED) { /* and the kernel need not keep what nobody reads */
        struct linger reset = {.l_onoff = 1, .l_linger = 0};
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    }
    conn_free(c);
}

/* Closing with bytes unread would reset the connection and take the reply back from the client's kernel: read on until
 * the client closes, for a while. */
static void discard(struct conn *c)
{
    char bytes[DISCARD_BYTES];
    for (unsigned i = 0; i < DISCARDS_MAX; i++) {
        ssize_t n = recv(c->fd, bytes, sizeof bytes, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            conn_free(c);
            return;
        }
    }
    server_queue(c);
}

/* The library is done with the connection, or we are done with the library. */
static void conn_end(struct conn *c)
{
    if (c->phase == CONN_RECEIVING && !c->half_closed && !c->broken)
        conn_refuse(c, 400, text_of(400)); /* the library closes without a word when a request line makes no sense */
    stop_daemon(c);
    if (c->broken || (!c->refused && conn_unread(c) == 0)) {
        conn_free(c);
        return;
    }
    shutdown(c->fd, SHUT_WR);
    c->phase = CONN_LINGERING;
    c->linger_until_ns = clock_mono_ns() + (uint64_t)LINGER_MS * NS_PER_MS;
    discard(c);
}

/* ---- running ------------------------------------------------------------------------------------------------------------------ */

static bool must_drop(const struct conn *c, enum http_close *why)
{
    const struct http_request *r = c->request;
    *why = r && r->failing ? r->why : HTTP_CLOSE_GONE;
    if (c->broken || (r && r->failing))
        return true;
    bool worked_on = r && (r->state == REQUEST_HANDLED || (r->streaming && !r->ended));
    return c->half_closed && worked_on && conn_unread(c) == 0;
}

/* The rest of a request will never come. The library does not learn of an end that arrived together with bytes. */
static bool ended_early(const struct conn *c)
{
    return c->half_closed && (c->phase == CONN_RECEIVING || c->phase == CONN_IDLE) && conn_unread(c) == 0;
}

void conn_run(struct conn *c)
{
    if (c->phase == CONN_LINGERING) {
        discard(c);
        return;
    }
    enum http_close why;
    bool more = true;
    if (c->phase == CONN_IDLE && !c->half_closed && !c->broken) {
        if (conn_unread(c) == 0)
            return;
        begin_receiving(c);
    }
    c->queued = true; /* what callbacks ask for is seen below */
    for (unsigned i = 0; i < RUNS_MAX && more; i++) {
        if (must_drop(c, &why)) {
            conn_drop(c, why);
            return;
        }
        if (c->request && c->request->suspended) {
            more = false;
            break;
        }
        MHD_run(c->daemon);
        if (c->refused || c->ended) {
            c->queued = false; /* what comes while it lingers is to be seen */
            conn_end(c);
            return;
        }
        MHD_UNSIGNED_LONG_LONG wait_ms;
        more = MHD_get_timeout(c->daemon, &wait_ms) == MHD_YES && wait_ms == 0;
    }
    c->queued = false;
    if (must_drop(c, &why) || (!more && ended_early(c))) {
        conn_drop(c, why);
        return;
    }
    if (more)
        server_queue(c);
    if (c->request && c->request->drained) {
        c->request->drained = false;
        if (c->request->on_drain)
            c->request->on_drain(c->request->user);
    }
}

static bool older(uint64_t at_ns, uint64_t now_ns, unsigned limit_s)
{
    return now_ns > at_ns && now_ns - at_ns > (uint64_t)limit_s * NS_PER_S;
}

void conn_check_time(struct conn *c, uint64_t now_ns)
{
    const struct http_options *o = &c->server->o;
    const struct http_request *r = c->request;
    char text[128];
    if (c->phase == CONN_LINGERING) {
        if (now_ns > c->linger_until_ns)
            conn_free(c);
    } else if (c->phase == CONN_IDLE) {
        if (older(c->in_ns, now_ns, o->idle_timeout_s))
            conn_drop(c, HTTP_CLOSE_GONE);
    } else if (c->phase == CONN_REPLYING) {
        if (r && r->state == REQUEST_SENDING && !r->suspended && older(c->out_ns, now_ns, o->stall_s))
            conn_drop(c, HTTP_CLOSE_STALLED);
    } else if (older(c->in_ns, now_ns, o->header_timeout_s) || older(c->started_ns, now_ns, o->request_timeout_s)) {
        snprintf(text, sizeof text, "The request did not arrive whole: no byte for %u s, or not all of it in %u s.",
                 o->header_timeout_s, o->request_timeout_s);
        conn_refuse(c, 408, text);
        conn_end(c);
    }
}

/* Listener, thread, limits; see http.h and impl.h. */
#include "http/impl.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#define LISTEN_BACKLOG  1024
#define ACCEPTS_MAX     64  /* in one turn of the loop */
#define TICK_MS         250 /* how often limits on time are looked at */
#define IDLE_KEPT_MS    200 /* an idle connection's place, whoever waits: a request may be on its way */
#define RETRY_ACCEPT_MS 100 /* after the system had no descriptor or memory left */
#define FDS_RESERVED    64  /* for everybody else in the process: files, databases, downloads */
#define HANDED_FD       3   /* where systemd's protocol has the first socket */
#define NS_PER_MS       1000000u

/* ---- connections ------------------------------------------------------------------------------------------------------- */

void server_queue(struct conn *c)
{
    if (c->queued)
        return;
    c->queued = true;
    c->next_queued = NULL;
    *c->server->queue_last = c;
    c->server->queue_last = &c->next_queued;
}

static void unqueue(struct http_server *s, struct conn *c)
{
    for (struct conn **at = &s->queue; *at; at = &(*at)->next_queued)
        if (*at == c) {
            *at = c->next_queued;
            if (s->queue_last == &c->next_queued)
                s->queue_last = at;
            return;
        }
}

/* Each once, those queued meanwhile in the next turn. */
static void run_queue(struct http_server *s)
{
    struct conn *last =
        s->queue_last == &s->queue ? NULL : (struct conn *)((char *)s->queue_last - offsetof(struct conn, next_queued));
    for (bool more = last != NULL; more;) {
        struct conn *c = s->queue;
        more = c != last;
        unqueue(s, c);
        c->queued = false;
        conn_run(c);
    }
}

static void pause_listener(struct http_server *s)
{
    if (!s->paused && s->listen_fd >= 0)
        loop_change(&s->loop, s->listen_fd, 0, &s->listener);
    s->paused = true;
}

static void unpause_listener(void *arg)
{
    struct http_server *s = arg;
    if (s->paused && s->listen_fd >= 0)
        loop_change(&s->loop, s->listen_fd, EPOLLIN, &s->listener);
    s->paused = s->crowded = false;
}

void server_forget(struct conn *c)
{
    struct http_server *s = c->server;
    if (c->previous)
        c->previous->next = c->next;
    else
        s->conns = c->next;
    if (c->next)
        c->next->previous = c->previous;
    unqueue(s, c);
    s->n_conns--;
    if (s->n_conns + 1 == s->connections_max)
        unpause_listener(s);
}

static bool somebody_waits(const struct http_server *s)
{
    struct pollfd backlog = {.fd = s->listen_fd, .events = POLLIN};
    return s->n_conns >= s->connections_max && s->listen_fd >= 0 && poll(&backlog, 1, 0) == 1;
}

/* NULL: none has been for IDLE_KEPT_MS. */
static struct conn *longest_idle(const struct http_server *s)
{
    uint64_t since_ns = clock_mono_ns() - (uint64_t)IDLE_KEPT_MS * NS_PER_MS;
    struct conn *found = NULL;
    for (struct conn *c = s->conns; c; c = c->next)
        if (c->phase == CONN_IDLE && c->in_ns <= since_ns) {
            since_ns = c->in_ns;
            found = c;
        }
    return found && conn_unread(found) == 0 ? found : NULL;
}

/* Who waits gets the place of the connection that has been idle longest. Not below an event: others of the same turn may be
 * of that connection. */
static void make_place(void *arg)
{
    struct http_server *s = arg;
    s->crowded = false;
    if (!somebody_waits(s))
        return;
    struct conn *c = longest_idle(s);
    if (c)
        conn_drop(c, HTTP_CLOSE_GONE);
    else
        s->crowded = true;
}

static void on_listener(struct loop_source *source, uint32_t events)
{
    struct http_server *s = (struct http_server *)((char *)source - offsetof(struct http_server, listener));
    for (unsigned i = 0; i < ACCEPTS_MAX && s->listen_fd >= 0; i++) {
        if (s->n_conns >= s->connections_max) {
            if (i == 0) { /* else it is not known yet that somebody waits */
                pause_listener(s);
                loop_post(&s->loop, make_place, s);
            }
            return;
        }
        struct sockaddr_storage from;
        socklen_t len = sizeof from;
        int fd = accept4(s->listen_fd, (struct sockaddr *)&from, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)) {
            pause_listener(s);
            loop_timer(&s->loop, RETRY_ACCEPT_MS, unpause_listener, s);
        }
        if (fd < 0)
            return;
        conn_open(s, fd, (struct sockaddr *)&from);
    }
}

/* ---- the thread ---------------------------------------------------------------------------------------------------------- */

static void close_listener(struct http_server *s)
{
    if (s->listen_fd < 0)
        return;
    loop_unwatch(&s->loop, s->listen_fd);
    close(s->listen_fd);
    s->listen_fd = -1;
}

static void check_times(struct http_server *s)
{
    uint64_t now_ns = clock_mono_ns();
    for (struct conn *c = s->conns, *next; c; c = next) {
        next = c->next;
        conn_check_time(c, now_ns);
    }
    if (s->paused)
        make_place(s);
}

static void *run(void *arg)
{
    struct http_server *s = arg;
    uint64_t next_tick_ns = 0;
    while (!s->closing) {
        loop_turn(&s->loop, s->queue ? 0 : s->conns ? TICK_MS : -1);
        run_queue(s);
        if (clock_mono_ns() >= next_tick_ns) {
            next_tick_ns = clock_mono_ns() + (uint64_t)TICK_MS * NS_PER_MS;
            check_times(s);
        }
    }
    close_listener(s);
    loop_run_posted(&s->loop); /* answers that were on their way */
    for (int i = 0; i < 2; i++)
        run_queue(s);
    while (s->conns)
        conn_drop(s->conns, HTTP_CLOSE_GONE);
    return NULL;
}

/* ---- opening and closing --------------------------------------------------------------------------------------------------- */

static int bind_one(const struct addrinfo *a)
{
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1;
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, LISTEN_BACKLOG) == 0)
        return fd;
    int saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

/* False: what was handed over is no listening socket. */
static bool take_listener(struct http_server *s, struct err *err)
{
    const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
    if (!pid || !count || strtol(pid, NULL, 10) != (long)getpid())
        return true;
    int listens = 0;
    socklen_t len = sizeof listens;
    if (strcmp(count, "1") != 0 || getsockopt(HANDED_FD, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) != 0 || !listens)
        return err_set(
            err, ERR_USAGE,
            "LISTEN_FDS is '%s', and descriptor %d is %s listening socket: hand over exactly one, or unset LISTEN_FDS.", count,
            HANDED_FD, listens ? "a" : "no");
    fcntl(HANDED_FD, F_SETFD, FD_CLOEXEC);
    fcntl(HANDED_FD, F_SETFL, fcntl(HANDED_FD, F_GETFL) | O_NONBLOCK);
    s->listen_fd = HANDED_FD;
    s->shared = true;
    return true;
}

static bool bind_listener(struct http_server *s, struct err *err)
{
    char service[16];
    snprintf(service, sizeof service, "%u", s->o.port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found = NULL;
    int rc = getaddrinfo(s->o.host, service, &hints, &found);
    if (rc != 0)
        return err_set(err, ERR_USAGE, "--host '%s' is not an address of this machine: %s.", s->o.host, gai_strerror(rc));
    for (struct addrinfo *a = found; a && s->listen_fd < 0; a = a->ai_next)
        s->listen_fd = bind_one(a);
    freeaddrinfo(found);
    if (s->listen_fd < 0)
        return err_set(err, ERR_IO, "Cannot listen on %s port %u: %m. Is another server running there? Try another --port.",
                       s->o.host, s->o.port);
    return true;
}

static bool open_listener(struct http_server *s, struct err *err)
{
    if (!take_listener(s, err) || (!s->shared && !bind_listener(s, err)))
        return false;
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } at = {0};
    socklen_t len = sizeof at;
    getsockname(s->listen_fd, &at.any, &len);
    const bool v6 = at.any.sa_family == AF_INET6;
    s->port = ntohs(v6 ? at.v6.sin6_port : at.v4.sin_port);
    const uint8_t *a6 = at.v6.sin6_addr.s6_addr;
    const bool mapped = v6 && IN6_IS_ADDR_V4MAPPED(&at.v6.sin6_addr) && a6[12] == IN_LOOPBACKNET;
    s->loopback = v6 ? mapped || IN6_IS_ADDR_LOOPBACK(&at.v6.sin6_addr) : ntohl(at.v4.sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
    return true;
}

/* Raises the process's soft limit of descriptors as far as it may and as needed; takes fewer connections where that is
 * not enough (the others wait in the backlog, as beyond connections_max). */
static bool plan_descriptors(struct http_server *s, struct err *err)
{
    struct rlimit limit;
    s->connections_max = s->o.connections_max;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return true;
    rlim_t need = (rlim_t)s->connections_max * HTTP_FDS_PER_CONNECTION + FDS_RESERVED;
    if (limit.rlim_cur < need) {
        limit.rlim_cur = need < limit.rlim_max ? need : limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
        getrlimit(RLIMIT_NOFILE, &limit);
    }
    if (limit.rlim_cur < need && limit.rlim_cur > FDS_RESERVED)
        s->connections_max = (unsigned)((limit.rlim_cur - FDS_RESERVED) / HTTP_FDS_PER_CONNECTION);
    if (s->connections_max > 0 && limit.rlim_cur > FDS_RESERVED)
        return true;
    return err_set(err, ERR_USAGE,
                   "The limit of %llu open files leaves no room for a connection; %llu are needed for --max-connections "
                   "%u. Raise it: ulimit -n %llu.",
                   (unsigned long long)limit.rlim_cur, (unsigned long long)need, s->o.connections_max,
                   (unsigned long long)need);
}

struct http_server *http_open(const struct http_options *options, http_handler handler, http_error_body error_body, void *ctx,
                              struct err *err)
{
    struct http_server *s = calloc(1, sizeof *s);
    if (!s) {
        err_set(err, ERR_MEMORY, "Out of memory.");
        return NULL;
    }
    *s = (struct http_server){
        .o = *options, .handler = handler, .error_body = error_body, .ctx = ctx, .listen_fd = -1, .listener = {on_listener}};
    s->queue_last = &s->queue;
    if (!loop_init(&s->loop, err)) {
        free(s);
        return NULL;
    }
    bool ok = plan_descriptors(s, err) && open_listener(s, err);
    if (ok && !loop_watch(&s->loop, s->listen_fd, EPOLLIN, &s->listener))
        ok = err_set(err, ERR_IO, "Cannot watch the HTTP server's socket: %m.");
    if (ok)
        return s;
    http_close(s);
    return NULL;
}

bool http_start(struct http_server *s, struct err *err)
{
    errno = pthread_create(&s->thread, NULL, run, s);
    s->started = errno == 0;
    return s->started || err_set(err, ERR_IO, "Cannot start the HTTP server's thread: %m.");
}

void http_close(struct http_server *s)
{
    s->closing = true;
    loop_wake(&s->loop);
    if (s->started)
        pthread_join(s->thread, NULL);
    close_listener(s);
    loop_release(&s->loop);
    free(s);
}

bool http_shares_listener(const struct http_server *s)
{
    return s->shared;
}

static void leave(void *arg)
{
    struct http_server *s = arg;
    close_listener(s);
    s->leaving = true;
}

void http_hand_over(struct http_server *s)
{
    http_post(s, leave, s);
}

bool http_on_loopback(const struct http_server *s)
{
    return s->loopback;
}

unsigned http_port(const struct http_server *s)
{
    return s->port;
}

unsigned http_connections(const struct http_server *s)
{
    return s->n_conns;
}

unsigned http_full(const struct http_server *s)
{
    return s->crowded && somebody_waits(s) ? s->connections_max : 0;
}

void http_post(struct http_server *s, void (*fn)(void *arg), void *arg)
{
    loop_post(&s->loop, fn, arg);
}

void http_timer(struct http_server *s, unsigned delay_ms, void (*fn)(void *arg), void *arg)
{
    loop_timer(&s->loop, delay_ms, fn, arg);
}

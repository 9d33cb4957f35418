/* A server with a handler for tests, and raw sockets to try it with. */
#ifndef INFERD_TESTS_HTTP_CLIENT_H
#define INFERD_TESTS_HTTP_CLIENT_H

#include "base/buf.h"
#include "base/clock.h"
#include "http/http.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MS          1000000u
#define READ_MS     8000
#define REPLY_BYTES ((size_t)64 << 20)

/* One request that the handler took, as seen by on_close. */
struct held {
    struct http_request *request; /* NULL once closed */
    struct held *next;
    unsigned blocks; /* of pour: written so far */
};

struct fixture {
    struct http_server *server;
    atomic_uint handled, closed[3], posted, double_closed;
    atomic_ullong closed_ns;
    struct held *held; /* http thread */
    atomic_uint n_held;
};

static void on_close(void *user, enum http_close why);

/* ---- the handler: what it does is the path ---- */

static struct fixture *the; /* of the running test */

static void finish(void *arg)
{
    struct held *h = arg;
    if (h->request)
        http_reply(h->request, 200, "text/plain", STR("later"));
}

static void write_token(void *arg)
{
    struct held *h = arg;
    if (!h->request)
        return;
    char text[64];
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    snprintf(text, sizeof text, "%lld.%09ld\n", (long long)now.tv_sec, now.tv_nsec);
    http_stream_write(h->request, str_from(text));
    http_timer(the->server, 5, write_token, h);
}

static void flood(void *arg)
{
    struct held *h = arg;
    static char block[8192];
    if (!h->request)
        return;
    http_stream_write(h->request, (struct str){block, sizeof block});
    http_timer(the->server, 1, flood, h);
}

#define POUR_BLOCKS 400u
#define POUR_BYTES  8192u

/* As much as the client reads, and no more. */
static void pour(void *arg)
{
    struct held *h = arg;
    static char block[POUR_BYTES];
    while (h->blocks < POUR_BLOCKS && http_stream_unsent(h->request) < 2 * POUR_BYTES) {
        http_stream_write(h->request, (struct str){block, sizeof block});
        h->blocks++;
    }
    assert_true(http_stream_unsent(h->request) <= 3 * POUR_BYTES);
    if (h->blocks == POUR_BLOCKS)
        http_stream_end(h->request);
}

static void abort_stream(void *arg)
{
    struct held *h = arg;
    http_stream_write(h->request, STR("never seen"));
    http_stream_abort(h->request);
    http_stream_end(h->request);
}

static void echo(struct http_request *r)
{
    struct buf b;
    buf_init(&b, REPLY_BYTES);
    struct str m = http_method(r), p = http_path(r), q = http_query(r, "q"), h = http_header(r, "X-Test");
    struct buf body;
    http_take_body(r, &body);
    buf_printf(&b, "%.*s %.*s q=%.*s%s h=%.*s peer=%.*s body=", (int)m.len, m.ptr, (int)p.len, p.ptr, (int)q.len, q.ptr,
               q.ptr ? "" : "(none)", (int)h.len, h.ptr, (int)http_peer(r).len, http_peer(r).ptr);
    buf_append_str(&b, buf_str(&body));
    buf_release(&body);
    http_add_header(r, "X-Extra", "yes");
    http_add_header(r, "X-Split", "a\r\nX-Evil: b");
    http_reply(r, 200, "text/plain", buf_str(&b));
    buf_release(&b);
}

static void reply_large(struct http_request *r)
{
    size_t n = strtoull(http_query(r, "n").ptr, NULL, 10);
    char *bytes = malloc(n);
    memset(bytes, 'x', n);
    http_reply(r, 200, "text/plain", (struct str){bytes, n});
    free(bytes);
}

static void handler(void *ctx, struct http_request *r)
{
    struct fixture *f = ctx;
    f->handled++;
    struct held *h = malloc(sizeof *h);
    *h = (struct held){r, f->held, 0};
    f->held = h;
    f->n_held++;
    http_set_user(r, h, on_close);
    struct str path = http_path(r);
    if (str_equal(path, STR("/hold")))
        return;
    if (str_equal(path, STR("/later"))) {
        http_timer(f->server, 20, finish, h);
    } else if (str_equal(path, STR("/stream"))) {
        http_stream_begin(r, 200, "text/event-stream");
        for (int i = 0; i < 3; i++)
            http_stream_write(r, STR("token\n"));
        http_stream_end(r);
        http_stream_write(r, STR("ignored"));
        http_stream_end(r);
    } else if (str_equal(path, STR("/tokens"))) {
        http_stream_begin(r, 200, "text/event-stream");
        write_token(h);
    } else if (str_equal(path, STR("/flood"))) {
        http_stream_begin(r, 200, "text/event-stream");
        flood(h);
    } else if (str_equal(path, STR("/pour"))) {
        http_stream_begin(r, 200, "text/event-stream");
        http_stream_on_drain(r, pour);
        pour(h);
    } else if (str_equal(path, STR("/abort"))) {
        http_stream_begin(r, 200, "text/event-stream");
        http_stream_on_drain(r, abort_stream);
        http_stream_write(r, STR("a part"));
    } else if (str_equal(path, STR("/large"))) {
        reply_large(r);
    } else {
        echo(r);
        http_reply(r, 500, "text/plain", STR("the second answer is ignored"));
    }
}

static void on_close(void *user, enum http_close why)
{
    struct held *h = user;
    if (!h->request)
        the->double_closed++;
    h->request = NULL;
    the->closed_ns = clock_mono_ns();
    the->closed[why]++;
    the->n_held--;
}

static void error_body(void *ctx, int status, struct str path, struct str id, const char *text, struct buf *body)
{
    buf_printf(body, "{\"status\":%d,\"path\":", status);
    buf_append_json(body, path);
    buf_printf(body, ",\"id\":\"%.*s\",\"text\":", (int)id.len, id.ptr);
    buf_append_json(body, str_from(text));
    buf_append_char(body, '}');
}

static struct http_options default_options(void)
{
    return (struct http_options){.host = "127.0.0.1",
                                 .connections_max = 300,
                                 .body_bytes_max = 1 << 20,
                                 .header_bytes_max = 8192,
                                 .stream_bytes_max = 1 << 18,
                                 .buffered_bytes_max = (size_t)256 << 20,
                                 .header_timeout_s = 1,
                                 .request_timeout_s = 3,
                                 .idle_timeout_s = 2,
                                 .stall_s = 1};
}

static void fixture_open(struct fixture *f, struct http_options o)
{
    struct err err = {0};
    *f = (struct fixture){0};
    the = f;
    f->server = http_open(&o, handler, error_body, f, &err);
    if (!f->server || !http_start(f->server, &err))
        fail_msg("%s", err.text);
}

/* Every handled request was closed, once. */
static void fixture_close(struct fixture *f)
{
    http_close(f->server);
    assert_int_equal(f->closed[0] + f->closed[1] + f->closed[2], f->handled);
    assert_int_equal(f->double_closed, 0);
    assert_int_equal(f->n_held, 0);
    while (f->held) {
        struct held *h = f->held;
        f->held = h->next;
        free(h);
    }
}

/* ---- sockets ---- */

static int dial_with(struct fixture *f, int receive_bytes)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)http_port(f->server)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (receive_bytes)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    assert_int_equal(connect(fd, (struct sockaddr *)&at, sizeof at), 0);
    return fd;
}

static int dial(struct fixture *f)
{
    return dial_with(f, 0);
}

static void put_bytes(int fd, const char *bytes, size_t n)
{
    while (n) {
        ssize_t k = send(fd, bytes, n, MSG_NOSIGNAL);
        if (k <= 0)
            return;
        bytes += k;
        n -= (size_t)k;
    }
}

static void put(int fd, const char *text)
{
    put_bytes(fd, text, strlen(text));
}

/* More bytes within READ_MS; 0 at the end, -1 on a reset or when nothing came. */
static ssize_t get_some(int fd, struct buf *b)
{
    struct pollfd p = {fd, POLLIN, 0};
    if (poll(&p, 1, READ_MS) != 1)
        return -1;
    char *to = buf_reserve(b, 65536);
    ssize_t n = recv(fd, to, 65536, 0);
    b->len += n > 0 ? (size_t)n : 0;
    if (b->data)
        b->data[b->len] = '\0';
    return n;
}

static size_t count(const struct buf *b, const char *text)
{
    size_t n = 0;
    for (const char *p = b->data; p && (p = strstr(p, text)); p++)
        n++;
    return n;
}

/* Reads until `text` has come n times. */
static void get_until(int fd, struct buf *b, const char *text, size_t n)
{
    while (count(b, text) < n)
        if (get_some(fd, b) <= 0)
            fail_msg("waited for %zu x '%s', got: %.2000s", n, text, b->data ? b->data : "");
}

/* Reads until the server closes. False: it did not, or with a reset. */
static bool get_all(int fd, struct buf *b)
{
    ssize_t n;
    while ((n = get_some(fd, b)) > 0) {
    }
    return n == 0;
}

static bool wait_for(atomic_uint *value, unsigned at_least)
{
    for (int i = 0; i < 8000 && *value < at_least; i++)
        usleep(1000);
    return *value >= at_least;
}

/* Sends `text`, expects `status` in JSON, an x-request-id, and the connection's clean end. */
static inline void expect_refusal_of(struct fixture *f, const char *text, size_t n, const char *status)
{
    int fd = dial(f);
    struct buf b;
    buf_init(&b, REPLY_BYTES);
    put_bytes(fd, text, n);
    if (!get_all(fd, &b))
        fail_msg("no clean end after: %.300s\ngot: %.500s", text, b.data ? b.data : "");
    char want[64];
    snprintf(want, sizeof want, "HTTP/1.1 %s ", status);
    bool ok = b.len && strncmp(b.data, want, strlen(want)) == 0 && count(&b, "\r\n\r\n") == 1 &&
              count(&b, "x-request-id: ") == 1 && count(&b, "Content-Type: application/json") == 1 &&
              count(&b, "{\"status\":") == 1 && count(&b, "Connection: close") == 1 && count(&b, "Date: ") == 1;
    if (!ok)
        fail_msg("wanted %s for: %.300s\ngot: %.1000s", status, text, b.data ? b.data : "(nothing)");
    buf_release(&b);
    close(fd);
}

static inline void expect_refusal(struct fixture *f, const char *text, const char *status)
{
    expect_refusal_of(f, text, strlen(text), status);
}

#endif

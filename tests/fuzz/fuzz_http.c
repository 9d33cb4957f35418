/* Any bytes at the HTTP server, over a real loopback connection: one connection an input, its sending side shut at the end.
 * Checked: the server answers nothing but HTTP with an x-request-id in every head, closes every connection in time, and
 * closes each request that it handed out exactly once. */
#include "base/clock.h"
#include "http/http.h"

#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define PIECES_MAX  8
#define ANSWER_MS   10000
#define REPLY_BYTES ((size_t)16 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct http_server *server;
static atomic_ulong handled, closed;

static void on_close(void *user, enum http_close why)
{
    CHECK(*(int *)user == 0);
    free(user);
    closed++;
}

static void finish(void *arg)
{
    http_stream_end(arg);
}

/* Reads everything there is to read; answers whole, as a stream, or by a stream that ends later. */
static void handler(void *ctx, struct http_request *r)
{
    struct str method = http_method(r), path = http_path(r), q = http_query(r, "q");
    struct buf taken;
    http_take_body(r, &taken);
    struct str body = buf_str(&taken);
    size_t sum = 0;
    for (size_t i = 0; i < body.len; i++)
        sum += (unsigned char)body.ptr[i];
    handled++;
    http_set_user(r, calloc(1, sizeof(int)), on_close);
    if (q.len)
        http_add_header(r, "X-Query", q.ptr);
    if (str_equal(method, STR("PUT"))) {
        http_stream_begin(r, 200, "text/plain");
        http_stream_write(r, path);
        http_stream_write(r, body);
        finish(r);
    } else {
        http_reply(r, sum % 7 ? 200 : 204, "text/plain", sum % 7 ? path : STR(""));
    }
    buf_release(&taken);
}

static void error_body(void *ctx, int status, struct str path, struct str id, const char *text, struct buf *body)
{
    buf_append_json(body, str_from(text));
    buf_append_json(body, path);
}

static int dial(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)http_port(server)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct linger reset = {.l_onoff = 1}; /* no TIME_WAIT: the ports would run out */
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    CHECK(connect(fd, (struct sockaddr *)&at, sizeof at) == 0);
    return fd;
}

/* Every reply that the server began has a status line and an id; what it echoes of the input has no "HTTP/1.1". */
static void check_reply(const struct buf *b)
{
    if (!b->len)
        return;
    CHECK(b->len >= 9 && memcmp(b->data, "HTTP/1.1 ", 9) == 0);
    if (!strstr(b->data, "HTTP/1.1 100"))
        CHECK(strstr(b->data, "x-request-id: "));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!server) {
        struct http_options o = {.host = "127.0.0.1",
                                 .connections_max = 8,
                                 .body_bytes_max = 4096,
                                 .header_bytes_max = 2048,
                                 .stream_bytes_max = 16384,
                                 .buffered_bytes_max = (size_t)256 << 20,
                                 .header_timeout_s = 5,
                                 .request_timeout_s = 5,
                                 .idle_timeout_s = 5,
                                 .stall_s = 5};
        struct err err = {0};
        server = http_open(&o, handler, error_body, NULL, &err);
        CHECK(server && http_start(server, &err));
    }
    int fd = dial();
    size_t pieces = size ? 1 + data[0] % PIECES_MAX : 1;
    for (size_t i = 0, at = 0; i < pieces && size; i++) {
        size_t end = i + 1 == pieces ? size : at + (size - at) / (pieces - i);
        (void)!send(fd, data + at, end - at, MSG_NOSIGNAL);
        at = end;
    }
    shutdown(fd, SHUT_WR);
    struct buf b;
    buf_init(&b, REPLY_BYTES);
    for (ssize_t n = 1; n > 0;) {
        struct pollfd p = {fd, POLLIN, 0};
        CHECK(poll(&p, 1, ANSWER_MS) == 1);
        char bytes[8192];
        n = recv(fd, bytes, sizeof bytes, 0);
        CHECK(n <= 0 || buf_append(&b, bytes, (size_t)n));
    }
    check_reply(&b);
    buf_release(&b);
    close(fd);
    for (uint64_t from_ns = clock_mono_ns(); http_connections(server) > 4;)
        CHECK(clock_mono_ns() - from_ns < (uint64_t)ANSWER_MS * 1000000u);
    if (http_connections(server) == 0)
        CHECK(handled == closed);
    return 0;
}

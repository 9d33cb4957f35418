/* http.h's functions on a request; see impl.h. */
#include "http/impl.h"

#include "base/clock.h"

#include <stdlib.h>

#define STREAM_KEEP_BYTES  16384 /* of an empty stream's buffer; a larger one is given back */
#define STREAM_BLOCK_BYTES 4096  /* of replies to HTTP/1.0; chunks are as large as what there is to send */

/* ---- making ------------------------------------------------------------------------------------------------------------ */

static int hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static size_t decode(struct buf *out, struct str s)
{
    size_t at = out->len;
    for (size_t i = 0; i < s.len; i++) {
        bool escaped = s.ptr[i] == '%' && s.len - i > 2 && hex(s.ptr[i + 1]) >= 0 && hex(s.ptr[i + 2]) >= 0;
        buf_append_char(out, escaped ? (char)(hex(s.ptr[i + 1]) << 4 | hex(s.ptr[i + 2])) : s.ptr[i] == '+' ? ' ' : s.ptr[i]);
        i += escaped ? 2 : 0;
    }
    size_t len = out->len - at;
    buf_append_char(out, '\0');
    return len;
}

static bool parse_query(struct http_request *r, const char *query)
{
    size_t n = 1, len = strlen(query);
    for (const char *p = query; *p; p++)
        n += *p == '&';
    buf_init(&r->query, len + 2 * n + 1);
    r->pairs = calloc(n, sizeof *r->pairs);
    if (!r->pairs)
        return false;
    for (const char *p = query, *end = query + len; p <= end;) {
        const char *stop = strchrnul(p, '&'), *equals = memchr(p, '=', (size_t)(stop - p));
        struct query_pair *pair = &r->pairs[r->n_pairs];
        pair->name = r->query.len;
        decode(&r->query, (struct str){p, (size_t)((equals ? equals : stop) - p)});
        pair->value = r->query.len;
        pair->value_len = decode(&r->query, equals ? (struct str){equals + 1, (size_t)(stop - equals - 1)} : STR(""));
        r->n_pairs += stop > p;
        p = stop + 1;
    }
    return !r->query.failed;
}

/* The path of "/path?query", of "http://host/path?query" and of "*". */
static bool take_target(struct http_request *r, const char *target)
{
    r->target = r->target_end = target;
    r->target_visible = true;
    for (; *r->target_end; r->target_end++)
        r->target_visible &= (unsigned char)*r->target_end > 0x20 && *r->target_end != 0x7f;
    const char *path = target, *question = strchrnul(target, '?');
    const char *scheme = *target == '/' ? NULL : strstr(target, "://");
    if (scheme && scheme < question) {
        path = scheme + 3;
        while (path < question && *path != '/')
            path++;
    }
    r->path = path == question && scheme ? strdup("/") : strndup(path, (size_t)(question - path));
    return r->path && (*question == '\0' || parse_query(r, question + 1));
}

struct http_request *request_new(struct conn *c, const char *target)
{
    struct http_request *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->conn = c;
    r->received_ns = clock_mono_ns();
    buf_init(&r->query, 0);
    buf_init(&r->body, c->server->o.body_bytes_max);
    buf_init(&r->out, c->server->o.stream_bytes_max);
    conn_make_id(r->id);
    if (take_target(r, target))
        return r;
    request_free(r);
    return NULL;
}

bool request_count(struct http_request *r)
{
    struct http_server *s = r->conn->server;
    s->buffered_bytes -= r->counted_bytes;
    r->counted_bytes = r->body.cap + r->out.cap;
    s->buffered_bytes += r->counted_bytes;
    return s->buffered_bytes <= s->o.buffered_bytes_max;
}

void request_free(struct http_request *r)
{
    r->conn->server->buffered_bytes -= r->counted_bytes;
    for (size_t i = 0; i < r->n_headers; i++) {
        free(r->headers[i].name);
        free(r->headers[i].value);
    }
    if (r->response)
        MHD_destroy_response(r->response);
    buf_release(&r->body);
    buf_release(&r->out);
    buf_release(&r->query);
    free(r->pairs);
    free(r->method);
    free(r->path);
    free(r);
}

void request_close(struct http_request *r, enum http_close why)
{
    if (r->closed)
        return;
    r->closed = true;
    if (r->on_close)
        r->on_close(r->user, why);
}

/* ---- reading ------------------------------------------------------------------------------------------------------------ */

struct str http_method(const struct http_request *r)
{
    return str_from(r->method);
}

struct str http_path(const struct http_request *r)
{
    return str_from(r->path);
}

struct str http_query(const struct http_request *r, const char *name)
{
    for (size_t i = 0; i < r->n_pairs; i++)
        if (strcmp(r->query.data + r->pairs[i].name, name) == 0)
            return (struct str){r->query.data + r->pairs[i].value, r->pairs[i].value_len};
    return (struct str){0};
}

const char *http_query_other(const struct http_request *r, const char *const *names)
{
    for (size_t i = 0; i < r->n_pairs; i++) {
        const char *name = r->query.data + r->pairs[i].name;
        size_t known = 0;
        while (names[known] && strcmp(names[known], name) != 0)
            known++;
        if (!names[known])
            return name;
    }
    return NULL;
}

struct str http_header(const struct http_request *r, const char *name)
{
    return str_from(MHD_lookup_connection_value(r->conn->mhd, MHD_HEADER_KIND, name));
}

void http_take_body(struct http_request *r, struct buf *out)
{
    *out = r->body;
    buf_init(&r->body, 0);
    request_count(r);
}

struct str http_peer(const struct http_request *r)
{
    return str_from(r->conn->peer);
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

/* ---- answering ----------------------------------------------------------------------------------------------------------- */

void request_fail(struct http_request *r, enum http_close why)
{
    r->failing = true;
    r->why = why;
    server_queue(r->conn);
}

/* The library goes on with the connection at the end of this turn of the loop. */
static void go_on(struct http_request *r)
{
    if (r->suspended) {
        r->suspended = false;
        MHD_resume_connection(r->conn->mhd);
    }
    server_queue(r->conn);
}

void http_add_header(struct http_request *r, const char *name, const char *value)
{
    if (r->state >= REQUEST_ANSWERED || r->n_headers == HTTP_REPLY_HEADERS_MAX)
        return;
    r->headers[r->n_headers].name = strdup(name);
    r->headers[r->n_headers].value = strdup(value);
    r->n_headers++;
}

/* Takes `response`; NULL: there was no memory for one. */
static void answer(struct http_request *r, int status, const char *type, struct MHD_Response *response)
{
    if (!response) {
        conn_refuse(r->conn, 503, "There is no memory for the answer; try again in a moment.");
        request_fail(r, HTTP_CLOSE_GONE);
        return;
    }
    r->response = response;
    r->status = status;
    r->state = REQUEST_ANSWERED;
    if (type)
        MHD_add_response_header(response, "Content-Type", type);
    MHD_add_response_header(response, "x-request-id", r->id);
    for (size_t i = 0; i < r->n_headers; i++)
        if (r->headers[i].name && r->headers[i].value)
            MHD_add_response_header(response, r->headers[i].name, r->headers[i].value);
    /* The library is lenient with chunks; where another server might see their end elsewhere, no second request is read
     * from the same connection. */
    const struct http_server *s = r->conn->server;
    if (r->chunked_body || s->leaving || s->crowded)
        MHD_add_response_header(response, "Connection", "close");
    go_on(r);
}

void http_reply(struct http_request *r, int status, const char *content_type, struct str body)
{
    if (r->state >= REQUEST_ANSWERED || r->failing)
        return;
    answer(r, status, content_type,
           MHD_create_response_from_buffer(body.len, (void *)(body.len ? body.ptr : ""), MHD_RESPMEM_MUST_COPY));
}

static ssize_t read_stream(void *ctx, uint64_t pos, char *to, size_t room)
{
    struct http_request *r = ctx;
    if (r->out.len == 0 && r->ended)
        return MHD_CONTENT_READER_END_OF_STREAM;
    if (r->out.len == 0) {
        r->drained = true;
        if (!r->suspended) {
            r->suspended = true;
            MHD_suspend_connection(r->conn->mhd);
        }
        return 0;
    }
    size_t n = r->out.len < room ? r->out.len : room;
    memcpy(to, r->out.data, n);
    buf_consume(&r->out, n);
    if (r->out.len == 0 && r->out.cap > STREAM_KEEP_BYTES) {
        buf_release(&r->out);
        buf_init(&r->out, r->conn->server->o.stream_bytes_max);
        request_count(r);
    }
    return (ssize_t)n;
}

void http_stream_begin(struct http_request *r, int status, const char *content_type)
{
    if (r->state >= REQUEST_ANSWERED || r->failing)
        return;
    struct MHD_Response *response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK_BYTES, read_stream, r, NULL);
    if (response) {
        MHD_add_response_header(response, "Cache-Control", "no-cache");
        MHD_add_response_header(response, "X-Accel-Buffering", "no");
    }
    r->streaming = true;
    answer(r, status, content_type, response);
}

void http_stream_write(struct http_request *r, struct str bytes)
{
    if (!r->streaming || r->failing || r->ended || bytes.len == 0)
        return;
    if (!buf_append_str(&r->out, bytes))
        request_fail(r, HTTP_CLOSE_STALLED);
    conn_make_room(r);
    if (!r->failing)
        go_on(r);
}

void http_stream_end(struct http_request *r)
{
    if (!r->streaming || r->failing || r->ended)
        return;
    r->ended = true;
    go_on(r);
}

size_t http_stream_unsent(const struct http_request *r)
{
    return r->out.len;
}

void http_stream_on_drain(struct http_request *r, void (*fn)(void *user))
{
    r->on_drain = fn;
}

void http_stream_abort(struct http_request *r)
{
    if (r->streaming && !r->failing)
        request_fail(r, HTTP_CLOSE_GONE);
}

enum MHD_Result request_send(struct http_request *r)
{
    r->state = REQUEST_SENDING;
    r->conn->out_ns = clock_mono_ns();
    enum MHD_Result result = MHD_queue_response(r->conn->mhd, (unsigned)r->status, r->response);
    MHD_destroy_response(r->response);
    r->response = NULL;
    return result;
}

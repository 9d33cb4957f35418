/* HTTP/1.1 server: bytes <-> requests. Narrow enough to swap the library (libmicrohttpd is seen by this folder only; impl.h tells how).
 *
 * Thread: one http thread owns every socket and every struct http_request. All callbacks run there, and every function
 * that takes a struct http_request may be called only there. Other threads hand work over with http_post.
 *
 * A request's life:   headers + body in -> handler called once -> ... -> http_reply or stream_begin/write/end -> on_close
 * The handler may answer at once, or keep the request and answer later; the connection is suspended meanwhile, and its
 * socket is watched so that a client that leaves is noticed within milliseconds (EPOLLRDHUP), whatever state it is in.
 * on_close (if set) is called exactly once, on every path; after it the request is gone.
 */
#ifndef INFERD_HTTP_HTTP_H
#define INFERD_HTTP_HTTP_H

#include "base/buf.h"
#include "base/err.h"

struct http_server;
struct http_request;

enum http_close {
    HTTP_CLOSE_DONE,    /* the whole reply was handed to the kernel */
    HTTP_CLOSE_GONE,    /* the client left before that */
    HTTP_CLOSE_STALLED, /* the client did not read: its output passed stream_bytes_max or stall_s */
};

struct http_options {
    const char *host;           /* "127.0.0.1", "::1", "0.0.0.0", a name */
    unsigned port;              /* 0: any, see http_port */
    unsigned connections_max;   /* beyond: who is idle longest goes, or more wait; fewer if ulimit -n is too low */
    size_t body_bytes_max;      /* larger: 413 before the body is read */
    size_t header_bytes_max;    /* larger: 431 */
    size_t stream_bytes_max;    /* unsent output of one stream; beyond: HTTP_CLOSE_STALLED */
    size_t buffered_bytes_max;  /* bodies and unsent streams of all requests together; beyond: 503, or HTTP_CLOSE_STALLED */
    unsigned header_timeout_s;  /* a request's headers and body must keep arriving: a byte at least this often */
    unsigned request_timeout_s; /* and be whole after this long */
    unsigned idle_timeout_s;    /* keep-alive connections */
    unsigned stall_s;           /* a reply of which no byte could be sent for this long */
};

/* Called on the http thread when a request is whole. */
typedef void (*http_handler)(void *ctx, struct http_request *req);
/* Called for an error that the server itself answers (413, 431, 503, 400 of a bad request line, 408 of a slow one): fills
 * `body` (JSON). `path` may be empty. Runs on the http thread. */
typedef void (*http_error_body)(void *ctx, int status, struct str path, struct str request_id, const char *text,
                                struct buf *body);

/* Binds and listens, or takes the listening socket that whoever started the process hands over (as systemd does: descriptor
 * 3, LISTEN_FDS=1, LISTEN_PID). Who connects waits until http_start, which starts the thread. */
struct http_server *http_open(const struct http_options *options, http_handler handler, http_error_body error_body, void *ctx,
                              struct err *err);
bool http_start(struct http_server *s, struct err *err);
/* The listening socket was handed over: it is not this process's alone. Any thread. */
bool http_shares_listener(const struct http_server *s);
/* Accepts nobody any more; who connects is for the others that have the listening socket. Each connection ends with the answer
 * that comes next on it. Any thread. */
void http_hand_over(struct http_server *s);
/* The port that was bound. */
unsigned http_port(const struct http_server *s);
/* Only processes of this machine reach it. */
bool http_on_loopback(const struct http_server *s);
/* Closes what is left (on_close: HTTP_CLOSE_GONE), runs what is still posted, and joins the thread. */
void http_close(struct http_server *s);

/* Runs fn(arg) on the http thread, in order of posting; wakes it once however many are posted. Any thread; never blocks
 * and never fails (the queue grows with its posters' own bounded work). */
void http_post(struct http_server *s, void (*fn)(void *arg), void *arg);
/* Runs fn(arg) on the http thread once after `delay_ms`. Any thread. What is not due when the server closes is dropped. */
void http_timer(struct http_server *s, unsigned delay_ms, void (*fn)(void *arg), void *arg);
/* How many there are. Any thread. */
unsigned http_connections(const struct http_server *s);
/* How many there can be, while somebody waits in the backlog because all of them are busy; else 0. http thread. */
unsigned http_full(const struct http_server *s);

/* ---- reading a request (views live until on_close) ---- */
struct str http_method(const struct http_request *r);
struct str http_path(const struct http_request *r);                    /* raw, not percent-decoded, without the query */
struct str http_query(const struct http_request *r, const char *name); /* decoded; ptr NULL when absent */
/* The first name of the query that is none of `names` (ends with NULL), decoded; NULL: none. */
const char *http_query_other(const struct http_request *r, const char *const *names);
struct str http_header(const struct http_request *r, const char *name); /* case-insensitive; ptr NULL when absent */
/* Moves the body to `out` (released by the caller, also when it lives longer than the request). */
void http_take_body(struct http_request *r, struct buf *out);
struct str http_peer(const struct http_request *r); /* "127.0.0.1" */
/* The client's x-request-id (if it is 1-128 visible ASCII characters), else one made here. Sent back on every reply. */
struct str http_request_id(const struct http_request *r);
uint64_t http_received_ns(const struct http_request *r); /* clock_mono_ns when the first byte's headers were parsed */
void http_set_user(struct http_request *r, void *user, void (*on_close)(void *user, enum http_close why));

/* ---- answering (once) ---- */
/* Adds a header to the reply; before http_reply / http_stream_begin. */
void http_add_header(struct http_request *r, const char *name, const char *value);
/* on_close is never called from inside one of these, nor is anything sent: that happens when the caller has returned to
 * the loop, at once. Several writes in one call-back may share a chunk. */
/* Whole reply; `body` is copied. Where there is no memory for that, the client gets a small 503 instead. */
void http_reply(struct http_request *r, int status, const char *content_type, struct str body);
/* Streamed reply (chunked): begin, then any number of writes (copied), then end. A write after the client has left is
 * harmless; on_close tells. */
void http_stream_begin(struct http_request *r, int status, const char *content_type);
void http_stream_write(struct http_request *r, struct str bytes);
void http_stream_end(struct http_request *r);
/* Bytes written that the client's socket has not taken. A writer that keeps this small is never ended for a slow reader. */
size_t http_stream_unsent(const struct http_request *r);
/* fn(user of http_set_user) is called when the socket has taken all that was written and the stream has not ended; not from
 * inside one of these. */
void http_stream_on_drain(struct http_request *r, void (*fn)(void *user));
/* Drops what is unsent and closes the connection before the stream's end, so that the client sees that it is not whole;
 * on_close: HTTP_CLOSE_GONE. */
void http_stream_abort(struct http_request *r);

#endif

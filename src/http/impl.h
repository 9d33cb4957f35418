/* What the files of this folder share; nobody else includes it.
 *
 *   server.c      listener, thread, limits on time; the list of connections and the queue of those that have work
 *   connection.c  one connection: libmicrohttpd's callbacks, refusals, the end
 *   request.c     http.h's functions on a request
 *   framing.c     what in a request's head two servers could read differently
 *   loop.c        epoll, posted work, timers
 *
 * Every connection has a libmicrohttpd daemon of its own (no listener, no thread; about a microsecond to make), which we
 * run when the connection's socket or its request has something to do. So the library's one log callback tells which
 * connection it is about to answer by itself, and the answer can be ours (JSON, x-request-id); accepting, limits, and
 * the end of a connection are ours as well. We keep a duplicate of the socket: to watch it whatever the library does, to
 * send a refusal, and to close in a way that lets the client read it.
 *
 *   connection:  IDLE --bytes--> RECEIVING --whole request--> REPLYING --reply sent--> IDLE ... --> LINGERING --> freed
 *   request:     RECEIVING --whole--> HANDLED --answer--> ANSWERED --given to the library--> SENDING --> freed
 *
 * Nothing frees a request or calls on_close below a function of http.h: http_* only mark and queue the connection, and
 * the loop does the rest. Everything here but the counters is of the http thread.
 */
#ifndef INFERD_HTTP_IMPL_H
#define INFERD_HTTP_IMPL_H

#include "http/http.h"
#include "http/loop.h"

#include <microhttpd.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <sys/socket.h>

#define HTTP_REPLY_HEADERS_MAX  32
#define HTTP_REQUEST_ID_MAX     128
#define HTTP_PEER_BYTES         64
#define HTTP_ERROR_BODY_MAX     ((size_t)1 << 16)
#define HTTP_FDS_PER_CONNECTION 4 /* the library's socket, epoll and eventfd; our duplicate */

enum request_state { REQUEST_RECEIVING, REQUEST_HANDLED, REQUEST_ANSWERED, REQUEST_SENDING };

struct query_pair {
    size_t name, value; /* offsets in request.query, each NUL-terminated */
    size_t value_len;
};

struct http_request {
    struct conn *conn;
    enum request_state state;
    char *method; /* NULL until the head is whole */
    char *path;
    const char *target, *target_end; /* places in the library's buffer; its bytes have changed since on_target */
    bool target_visible;             /* it had neither blanks nor control characters */
    struct buf query;
    struct query_pair *pairs;
    size_t n_pairs;
    char id[HTTP_REQUEST_ID_MAX + 1];
    uint64_t received_ns;
    bool head_checked, chunked_body, suspended, closed;
    bool failing; /* to be dropped, why: below */
    enum http_close why;
    struct buf body;
    void *user;
    void (*on_close)(void *user, enum http_close why);
    void (*on_drain)(void *user);
    bool drained; /* on_drain is due */
    struct {
        char *name, *value;
    } headers[HTTP_REPLY_HEADERS_MAX];
    size_t n_headers;
    struct MHD_Response *response; /* between the answer and its hand-over to the library */
    int status;
    bool streaming, ended;
    struct buf out;       /* of a stream: not yet taken by the library */
    size_t counted_bytes; /* of both buffers, in the server's buffered_bytes */
};

enum conn_phase { CONN_IDLE, CONN_RECEIVING, CONN_REPLYING, CONN_LINGERING };

struct conn {
    struct loop_source source; /* first: events of fd */
    struct http_server *server;
    struct conn *previous, *next; /* of the server's list */
    struct conn *next_queued;
    bool queued;
    enum conn_phase phase;
    struct MHD_Daemon *daemon; /* NULL when lingering */
    struct MHD_Connection *mhd;
    struct http_request *request; /* of the request line that was read last, until its reply is sent */
    int fd;                       /* our duplicate */
    char peer[HTTP_PEER_BYTES];
    bool half_closed;                   /* the client will send no more */
    bool broken;                        /* reset, or closed on both sides */
    bool ended;                         /* the library is done with it */
    bool refused;                       /* we answered beside the library */
    uint64_t started_ns, in_ns, out_ns; /* first byte of the request; last byte in; last time there was room to send */
    uint64_t linger_until_ns;
};

struct http_server {
    struct http_options o;
    http_handler handler;
    http_error_body error_body;
    void *ctx;
    struct loop loop;
    struct loop_source listener;
    int listen_fd; /* -1 once closed */
    bool paused;   /* the listener is not watched: no room */
    bool crowded;  /* and no connection is idle: who waits is let in by the next answer, which ends its connection */
    bool shared;   /* the listener is not of this process alone */
    bool leaving;  /* http_hand_over: connections end with their next answer; http thread */
    unsigned port;
    bool loopback;
    unsigned connections_max;
    atomic_uint n_conns;
    size_t buffered_bytes; /* http thread */
    atomic_bool closing;
    pthread_t thread;
    bool started; /* main thread */
    struct conn *conns;
    struct conn *queue, **queue_last;
};

/* ---- server.c ---- */
void server_queue(struct conn *c);
void server_forget(struct conn *c);

/* ---- connection.c ---- */
/* Takes `fd` (accepted, non-blocking) in any case. False when there is no memory or descriptor for it. */
bool conn_open(struct http_server *s, int fd, const struct sockaddr *address);
void conn_run(struct conn *c);
/* Bytes that have come and that the library has not taken. */
size_t conn_unread(const struct conn *c);
void conn_check_time(struct conn *c, uint64_t now_ns);
/* Ends it now, whatever it does; on_close(why). Not below a callback of the library. */
void conn_drop(struct conn *c, enum http_close why);
/* Answers beside the library, once, and lets the connection end: its sending side is shut. */
void conn_refuse(struct conn *c, int status, const char *text);
/* Counts `for_this`; while all together hold too much, ends who holds most (perhaps `for_this`), so that slow and large
 * requests cost small ones nothing. */
void conn_make_room(struct http_request *for_this);
void conn_make_id(char id[static HTTP_REQUEST_ID_MAX + 1]);

/* ---- request.c ---- */
struct http_request *request_new(struct conn *c, const char *target);
void request_free(struct http_request *r);
void request_close(struct http_request *r, enum http_close why);
/* Brings the server's count up to date. False: there is more than buffered_bytes_max. */
bool request_count(struct http_request *r);
/* It ends with on_close(why) when the caller has returned to the loop. */
void request_fail(struct http_request *r, enum http_close why);
/* Hands the answer to the library. */
enum MHD_Result request_send(struct http_request *r);

/* ---- framing.c ---- */
/* Looks at a request's whole head. Returns 0, or the status of a refusal and its text. */
int framing_check(struct http_request *r, const char *method, const char *version, char *text, size_t text_bytes);

#endif

/* HTTP requests, several at once, over libcurl's multi interface; the only file that knows libcurl is fetch.c.
 *
 * A token goes to the origin (scheme, host, port) of fetch_open's endpoint and to no other: each hop of a redirect is a
 * request of its own here, and a hop to another origin is sent without it. So are all behind that one, also back at the
 * endpoint: no other origin chooses what is asked for with the token. A redirect from https to http is refused.
 * Thread: all but fetch_wake belong to one thread; callbacks run inside fetch_step. Memory: the caller owns calls; a call
 * must live, unmoved, from fetch_start until on_done ran or fetch_stop returned. */
#ifndef INFERD_HUB_FETCH_H
#define INFERD_HUB_FETCH_H

#include "base/buf.h"
#include "hub/hub.h"

struct fetch;
struct fetch_call;

enum fetch_method { FETCH_GET, FETCH_HEAD };
/* Which redirects are followed: STAY stops at one that leaves the origin, unless it says nothing about the file. */
enum fetch_follow { FETCH_FOLLOW_ALL, FETCH_FOLLOW_STAY };
enum fetch_line { FETCH_ANY_LINE, FETCH_NEW_LINE }; /* NEW: no connection that is already there */

enum fetch_end {
    FETCH_WHOLE,   /* a response came, all of it */
    FETCH_CUT,     /* no connection, or it ended early: another try may do */
    FETCH_REFUSED, /* not to be tried again: certificate, address, redirect */
    FETCH_ABORTED  /* a callback said so */
};

struct fetch_reply {
    long status;
    char url[HUB_URL_BYTES_MAX];                  /* that answered */
    char location[HUB_URL_BYTES_MAX];             /* of the redirect that was not followed, absolute; else "" */
    char etag[HUB_ETAG_BYTES_MAX];                /* x-linked-etag, else etag, normalised; "" = none or unusable */
    char commit[HUB_COMMIT_BYTES];                /* x-repo-commit */
    uint64_t linked_size, length;                 /* x-linked-size, content-length; HUB_SIZE_UNKNOWN */
    uint64_t range_begin, range_end, range_total; /* of content-range; begin HUB_SIZE_UNKNOWN = no such header */
    int64_t retry_after_s;                        /* -1 = none */
    char error_code[48];                          /* x-error-code: GatedRepo, RepoNotFound, ... */
    char error_text[256];                         /* x-error-message, else the "error" of a JSON body */
    char next_url[HUB_URL_BYTES_MAX];             /* link: rel="next" */
    unsigned has_linked;                          /* the reply spoke of the file itself, not only of where it lies */
    unsigned encoded;                             /* content-encoding other than identity */
    unsigned crossed;                             /* url is of another origin than the endpoint */
};

struct fetch_call {
    /* by the caller */
    char url[HUB_URL_BYTES_MAX];
    enum fetch_method method;
    enum fetch_follow follow;
    enum fetch_line line;
    uint64_t range_begin, range_end; /* both 0: no Range header */
    /* Before the first byte of a 2xx body (and for one without a body before on_done); false aborts. May be NULL. */
    bool (*on_head)(struct fetch_call *call);
    /* Bytes of a 2xx body; false aborts. */
    bool (*on_bytes)(struct fetch_call *call, const char *bytes, size_t len);
    void (*on_done)(struct fetch_call *call);
    void *user;
    /* the result, for on_done */
    enum fetch_end end;
    char why[256]; /* when not WHOLE */
    struct fetch_reply reply;
    /* fetch.c's own */
    void *easy, *headers;
    char error[256]; /* libcurl's message */
    struct fetch *fetch;
    struct buf error_body;
    unsigned n_hops, strayed; /* strayed: a hop was of another origin than the endpoint */
    size_t header_bytes;
    unsigned head_seen;
    struct fetch_call *next_paused;
};

struct fetch *fetch_open(const struct hub_config *config, struct err *err);
/* Every call must have ended or been stopped. */
void fetch_close(struct fetch *f);
bool fetch_start(struct fetch *f, struct fetch_call *call, struct err *err);
/* Ends a running call; on_done is not called. Nothing when it does not run. */
void fetch_stop(struct fetch *f, struct fetch_call *call);
/* Moves bytes, runs callbacks, then, when no call ended, waits up to wait_ms for more. Under a bandwidth cap it moves what the
 * cap allows in a twentieth of a second at most, and does not wait when more is there. Returns the nanoseconds waited. */
uint64_t fetch_step(struct fetch *f, int wait_ms);
/* Ends the wait of a fetch_step; any thread. */
void fetch_wake(struct fetch *f);

#endif

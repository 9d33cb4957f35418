/* Sessions: conversations that the server keeps, by session_id, for requests of POST /chat.
 *
 *   take (worker) -> [waits for its turn] -> [lease, where the store is shared] -> read -> join (worker) -> generate
 *     -> save (worker) -> the end of the answer -> release (when the call is freed) -> the next one's turn
 *
 * Requests of one session are answered one after another, in the order in which they came. The turn is kept before the
 * end of the answer is sent: who has seen "done":true finds it in the next request, on any instance. A request that fails,
 * is cancelled or whose client leaves adds nothing.
 * A session that is in use does not run out; after it, it lives for --session-ttl seconds.
 *
 * Threads: as said at each function; the list of sessions in use is under a lock. */
#ifndef INFERD_SERVE_SESSIONS_H
#define INFERD_SERVE_SESSIONS_H

#include "serve/call.h"

#define SESSION_BYTES_MAX ((size_t)2 << 20) /* JSON text of one session's messages */
#define SESSION_LEASE_MS  6000
#define SESSION_RENEW_MS  1500

struct sessions;

struct sessions *sessions_open(struct server *s, struct err *err);
/* The session that the call names. False with *waiting set: the call comes back to the workers when it is its turn; c is
 * the sessions' until then. False else: err. Worker. */
bool sessions_take(struct call *c, int *waiting, struct err *err);
/* Puts the kept messages before the request's. Worker. */
bool sessions_join(struct call *c, struct err *err);
/* Text of the answer that is about to be sent and forgotten. Http thread. */
void sessions_hear(struct call *c, struct str text);
/* True when the turn is kept. Else starts keeping it, on a worker; stream_advance is called when that is done, and
 * call_abort when it failed. Http thread. */
bool sessions_saved(struct call *c);
void sessions_save(struct call *c); /* on a worker */
/* The call is being freed. Http thread. */
void sessions_release(struct call *c);
/* Renews leases. Http thread. */
void sessions_tick(struct sessions *s);

/* Routes. Http thread. */
bool route_sessions(struct call *c, struct err *err);
bool route_session(struct call *c, struct err *err);
bool route_session_delete(struct call *c, struct err *err);

#endif

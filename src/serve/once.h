/* Idempotency-Key: a request that is sent again, because its answer got lost, is done once.
 *
 *   first ----claim----> done as usual ----answer below 500----> kept for ONCE_KEPT_MS
 *                                     \---anything else--------> forgotten: it may be tried again
 *   again --what is kept--> the same answer, with Idempotency-Replayed: true
 *          --under way----> 409     --another request under this key--> 400
 *          --the claim has run out--> the first
 *
 * The key is the client's (1 to 255 visible characters), for one route; the store keeps it, so all instances of one store
 * know it. A claim is held by a lease of ONCE_LEASE_MS that is renewed while the request is under way: an instance that dies
 * frees it, and 409 ends. What a late holder, which only slept, would keep is refused: the successor's answer stays. Streams
 * are not kept: two are not answered at the same time, but one that has ended may be asked for again. Http thread, unless
 * said otherwise. */
#ifndef INFERD_SERVE_ONCE_H
#define INFERD_SERVE_ONCE_H

#include "serve/call.h"

#define ONCE_KEY_BYTES_MAX    255
#define ONCE_ANSWER_BYTES_MAX ((size_t)1 << 20)
#define ONCE_KEPT_MS          ((int64_t)24 * 3600 * 1000)
#define ONCE_LEASE_MS         6000
#define ONCE_RENEW_MS         1500

/* Claims the call's key. True: the call goes on to the workers when it is the first, or is answered. False: err. */
bool once_begin(struct call *c, struct str key, struct err *err);
/* What the call is answered with. */
void once_answer(struct call *c, int status, struct str body);
/* The call is being freed. */
void once_release(struct call *c);
/* Renews the claims of all calls that are under way; about once a second. */
void once_tick(struct server *s);

#endif

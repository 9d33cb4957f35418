/* The thread that hashes files on their way (partial.h) while the pull's thread receives: a processor's other core.
 *
 * It reads what has joined up back from the file, a little later than it was written, so that the system's memory still has
 * it. What waits is one number a file, not bytes; how far it may fall behind is for the pull to bound (it begins no new part
 * of a file that is HASHER_BEHIND_MAX ahead of its hash).
 *
 * Between hasher_want and hasher_drop a partial's hash is the thread's: the pull neither resets, finishes nor closes it.
 * Thread: all calls from one, the pull's. Memory: open/close. */
#ifndef INFERD_HUB_HASHER_H
#define INFERD_HUB_HASHER_H

#include "hub/partial.h"

#define HASHER_FILES_MAX  64
#define HASHER_BEHIND_MAX ((uint64_t)512 << 20)

struct hasher;

/* `caught_up` is called on the hasher's thread when a file is hashed as far as was asked for, or cannot be. */
struct hasher *hasher_open(void (*caught_up)(void *user), void *user, struct err *err);
void hasher_close(struct hasher *h);
/* Hash `p` to `upto` at least, which never falls. Returns at once; *hashed: how far it is. False: reading or hashing failed. */
bool hasher_want(struct hasher *h, struct partial *p, uint64_t upto, uint64_t *hashed, struct err *err);
/* Returns when the thread has let go of `p`. Nothing where it never had it. */
void hasher_drop(struct hasher *h, const struct partial *p);

#endif

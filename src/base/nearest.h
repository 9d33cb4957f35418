/* "Did you mean": the known name nearest to one that somebody wrote. Pure, any thread. */
#ifndef INFERD_BASE_NEAREST_H
#define INFERD_BASE_NEAREST_H

#include "base/str.h"

#define NEAREST_CHANGES_MAX 3 /* of a slip: bytes put in, left out or replaced */

struct nearest {
    struct str written;
    const char *name; /* the nearest so far; NULL: none is near enough */
    size_t changes;   /* from `written` to it; 0: it is the name */
};

/* Near enough is what takes at most `changes_max` changes, and at most half of the bytes of `written`, rounded up: what shares
 * little with it is no slip. More than 64 bytes are near nothing. */
struct nearest nearest_begin(struct str written, size_t changes_max);
/* Takes `known`, which must live as long as `n`, if it is nearer than those before: of several the first stays. True: taken. */
bool nearest_try(struct nearest *n, const char *known);

#endif

/* Bump allocator: memory of one lifetime (a request, a loaded template), freed at once. Born with a maximum.
 * One thread at a time. Pointers stay valid until arena_release. */
#ifndef INFERD_BASE_ARENA_H
#define INFERD_BASE_ARENA_H

#include "base/str.h"

struct arena_block;
struct arena {
    struct arena_block *head;
    size_t used; /* bytes handed out, with padding */
    size_t max;  /* bytes that may be handed out */
};

void arena_init(struct arena *a, size_t bytes_max);
void arena_release(struct arena *a);
/* Zeroed, aligned to 16. NULL when over the maximum or out of memory. size 0 gives a valid pointer. */
void *arena_alloc(struct arena *a, size_t size);
/* n * size with overflow check. */
void *arena_alloc_array(struct arena *a, size_t n, size_t size);
/* Whether `p` points into memory that it has handed out. */
bool arena_holds(const struct arena *a, const void *p);
/* Copy with a NUL behind it. */
char *arena_dup(struct arena *a, struct str s);

#endif

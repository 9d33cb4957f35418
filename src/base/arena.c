/* Bump allocator; see arena.h. */
#include "base/arena.h"

#include <stdlib.h>

#define ARENA_ALIGN       16u
#define ARENA_BLOCK_BYTES ((size_t)16 << 10)

struct arena_block {
    struct arena_block *next;
    size_t used, size;
    _Alignas(ARENA_ALIGN) char data[];
};

void arena_init(struct arena *a, size_t bytes_max)
{
    *a = (struct arena){.max = bytes_max};
}

void arena_release(struct arena *a)
{
    while (a->head) {
        struct arena_block *next = a->head->next;
        free(a->head);
        a->head = next;
    }
    a->used = 0;
}

void *arena_alloc(struct arena *a, size_t size)
{
    if (size > a->max || size > SIZE_MAX - ARENA_BLOCK_BYTES)
        return NULL;
    size_t padded = (size + ARENA_ALIGN - 1) & ~(size_t)(ARENA_ALIGN - 1);
    padded = padded ? padded : ARENA_ALIGN;
    if (a->used > a->max || padded > a->max - a->used)
        return NULL;
    struct arena_block *b = a->head;
    if (!b || b->size - b->used < padded) {
        size_t bytes = padded > ARENA_BLOCK_BYTES / 4 ? padded : ARENA_BLOCK_BYTES;
        b = malloc(sizeof *b + bytes);
        if (!b)
            return NULL;
        b->used = 0;
        b->size = bytes;
        b->next = a->head;
        a->head = b;
    }
    void *out = b->data + b->used;
    b->used += padded;
    a->used += padded;
    return memset(out, 0, padded);
}

void *arena_alloc_array(struct arena *a, size_t n, size_t size)
{
    size_t bytes;
    return __builtin_mul_overflow(n, size, &bytes) ? NULL : arena_alloc(a, bytes);
}

bool arena_holds(const struct arena *a, const void *p)
{
    for (const struct arena_block *b = a->head; b; b = b->next)
        if ((uintptr_t)p >= (uintptr_t)b->data && (uintptr_t)p < (uintptr_t)b->data + b->used)
            return true;
    return false;
}

char *arena_dup(struct arena *a, struct str s)
{
    char *out = s.len < SIZE_MAX ? arena_alloc(a, s.len + 1) : NULL;
    if (out && s.len)
        memcpy(out, s.ptr, s.len);
    return out;
}

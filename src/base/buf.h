/* A growing byte buffer, born with a maximum. After a failed append `failed` stays set and further appends do nothing,
 * so a writer may check once at the end. Owner: whoever called buf_init; one thread at a time. */
#ifndef INFERD_BASE_BUF_H
#define INFERD_BASE_BUF_H

#include "base/str.h"

struct buf {
    char *data; /* NUL behind the last byte once anything was written; NULL before */
    size_t len;
    size_t cap;
    size_t max; /* bytes that len may reach */
    bool failed;
};

void buf_init(struct buf *b, size_t bytes_max);
void buf_release(struct buf *b);
void buf_clear(struct buf *b); /* len = 0, failed = false, memory kept */
bool buf_append(struct buf *b, const void *bytes, size_t len);
bool buf_append_str(struct buf *b, struct str s);
bool buf_append_char(struct buf *b, char c);
bool buf_printf(struct buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Room for `len` more bytes; returns where they go (caller then adds to b->len) or NULL. */
char *buf_reserve(struct buf *b, size_t len);
/* Appends `s` as a JSON string literal with its quotes; invalid UTF-8 becomes U+FFFD. */
bool buf_append_json(struct buf *b, struct str s);
/* Drops the first n bytes. */
void buf_consume(struct buf *b, size_t n);

static inline struct str buf_str(const struct buf *b)
{
    return (struct str){b->data ? b->data : "", b->len};
}

#endif

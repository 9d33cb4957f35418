/* Views of bytes that somebody else owns. Not NUL-terminated; may hold NUL and invalid UTF-8. Plain data, any thread. */
#ifndef INFERD_BASE_STR_H
#define INFERD_BASE_STR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>

struct str {
    const char *ptr;
    size_t len;
};

#define STR(literal) ((struct str){(literal), sizeof(literal) - 1})

static inline struct str str_from(const char *c_string)
{
    return (struct str){c_string, c_string ? strlen(c_string) : 0};
}

static inline bool str_equal(struct str a, struct str b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

static inline bool str_has_prefix(struct str s, struct str prefix)
{
    return s.len >= prefix.len && (prefix.len == 0 || memcmp(s.ptr, prefix.ptr, prefix.len) == 0);
}

static inline bool str_has_suffix(struct str s, struct str suffix)
{
    return s.len >= suffix.len && (suffix.len == 0 || memcmp(s.ptr + s.len - suffix.len, suffix.ptr, suffix.len) == 0);
}

/* As str_has_suffix, with ASCII letters of either case: file names' endings. */
static inline bool str_has_ending(struct str s, struct str ending)
{
    return s.len >= ending.len && strncasecmp(s.ptr + s.len - ending.len, ending.ptr, ending.len) == 0;
}

/* FNV-1a, 64 bits. Not for hostile keys that must not collide: see map.h, which seeds it. */
static inline uint64_t str_hash(struct str s)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < s.len; i++)
        h = (h ^ (unsigned char)s.ptr[i]) * 0x100000001b3u;
    return h;
}

/* Heap copy with a NUL behind it; NULL when memory is short. Caller frees. */
char *str_dup(struct str s);

/* UTF-8: decodes one code point at s[*at], advances *at. Returns U+FFFD and advances by the length of the maximal
 * invalid part (Unicode's "maximal subpart" practice, as Python's errors='replace') for invalid input. */
uint32_t str_utf8_next(struct str s, size_t *at);

/* Writes code point `c` as UTF-8 (1-4 bytes); returns the count. `out` has room for 4. */
size_t str_utf8_put(uint32_t c, char *out);

/* True when `s` is wholly valid UTF-8 (no surrogates, no overlong forms, at most U+10FFFF). */
bool str_utf8_valid(struct str s);

#endif

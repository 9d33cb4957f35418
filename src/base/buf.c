/* A growing byte buffer; see buf.h. */
#include "base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define BUF_FIRST_BYTES 256

void buf_init(struct buf *b, size_t bytes_max)
{
    *b = (struct buf){.max = bytes_max};
}

void buf_release(struct buf *b)
{
    free(b->data);
    *b = (struct buf){.max = b->max};
}

void buf_clear(struct buf *b)
{
    b->len = 0;
    b->failed = false;
    if (b->data)
        b->data[0] = 0;
}

char *buf_reserve(struct buf *b, size_t len)
{
    if (b->failed || len > b->max || b->len > b->max - len) {
        b->failed = true;
        return NULL;
    }
    size_t need = b->len + len + 1;
    if (need > b->cap) {
        size_t cap = b->cap ? b->cap : BUF_FIRST_BYTES;
        while (cap < need)
            cap = cap > SIZE_MAX / 2 ? need : cap * 2;
        char *data = realloc(b->data, cap);
        if (!data) {
            b->failed = true;
            return NULL;
        }
        b->data = data;
        b->cap = cap;
    }
    return b->data + b->len;
}

bool buf_append(struct buf *b, const void *bytes, size_t len)
{
    char *to = buf_reserve(b, len);
    if (!to)
        return false;
    if (len)
        memcpy(to, bytes, len);
    b->len += len;
    b->data[b->len] = 0;
    return true;
}

bool buf_append_str(struct buf *b, struct str s)
{
    return buf_append(b, s.ptr, s.len);
}

bool buf_append_char(struct buf *b, char c)
{
    return buf_append(b, &c, 1);
}

static bool append_formatted(struct buf *b, const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, again);
    va_end(again);
    char *to = n < 0 ? NULL : buf_reserve(b, (size_t)n);
    if (!to) {
        b->failed = true;
        return false;
    }
    vsnprintf(to, (size_t)n + 1, format, args);
    b->len += (size_t)n;
    return true;
}

bool buf_printf(struct buf *b, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    bool ok = append_formatted(b, format, args);
    va_end(args);
    return ok;
}

bool buf_append_json(struct buf *b, struct str s)
{
    buf_append_char(b, '"');
    while (s.len) {
        size_t plain = 0;
        while (plain < s.len && (unsigned char)s.ptr[plain] >= 0x20 && (unsigned char)s.ptr[plain] < 0x80 &&
               s.ptr[plain] != '"' && s.ptr[plain] != '\\')
            plain++;
        if (plain) {
            buf_append(b, s.ptr, plain);
            s.ptr += plain;
            s.len -= plain;
            continue;
        }
        size_t n = 0;
        uint32_t c = str_utf8_next(s, &n);
        char utf8[4];
        if (c == '"' || c == '\\')
            buf_printf(b, "\\%c", (char)c);
        else if (c == '\n')
            buf_append_str(b, STR("\\n"));
        else if (c == '\t')
            buf_append_str(b, STR("\\t"));
        else if (c == '\r')
            buf_append_str(b, STR("\\r"));
        else if (c < 0x20)
            buf_printf(b, "\\u%04x", c);
        else
            buf_append(b, utf8, str_utf8_put(c, utf8));
        s.ptr += n;
        s.len -= n;
    }
    buf_append_char(b, '"');
    return !b->failed;
}

void buf_consume(struct buf *b, size_t n)
{
    if (n == 0)
        return;
    memmove(b->data, b->data + n, b->len - n);
    b->len -= n;
    b->data[b->len] = 0;
}

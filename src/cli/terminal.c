/* See terminal.h. */
#include "cli/terminal.h"

#include "base/str.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <utf8proc.h>

#define WIDTH_FALLBACK 80
#define WIDTH_MIN      40

/* Columns of the character at text[*at], which is moved behind it. */
static size_t next_columns(struct str text, size_t *at)
{
    utf8proc_int32_t code;
    utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)text.ptr + *at, (utf8proc_ssize_t)(text.len - *at), &code);
    *at += n > 0 ? (size_t)n : 1;
    return n > 0 ? (size_t)utf8proc_charwidth(code) : 1;
}

bool terminal_redraws(int fd)
{
    const char *kind = getenv("TERM");
    return isatty(fd) && kind && *kind && strcmp(kind, "dumb") != 0;
}

size_t terminal_columns_of(const char *text)
{
    struct str s = str_from(text);
    size_t columns = 0;
    for (size_t at = 0; at < s.len;)
        columns += next_columns(s, &at);
    return columns;
}

size_t terminal_bytes_within(const char *text, size_t columns)
{
    struct str s = str_from(text);
    size_t taken = 0, bytes = 0;
    for (size_t at = 0; at < s.len; bytes = at)
        if ((taken += next_columns(s, &at)) > columns)
            break;
    return bytes;
}

size_t terminal_width(int fd)
{
    struct winsize w;
    return ioctl(fd, TIOCGWINSZ, &w) == 0 && w.ws_col >= WIDTH_MIN ? w.ws_col : WIDTH_FALLBACK;
}

/* How text stands on a terminal. */
#ifndef INFERD_CLI_TERMINAL_H
#define INFERD_CLI_TERMINAL_H

#include <stdbool.h>
#include <stddef.h>

/* Whether `fd` is a terminal on which a line can be wiped and written anew. */
bool terminal_redraws(int fd);

/* Columns that UTF-8 text takes: wide characters two, combining and control characters none. What is no UTF-8 takes one a
 * byte. */
size_t terminal_columns_of(const char *text);
/* Bytes of the longest beginning that takes at most `columns`. */
size_t terminal_bytes_within(const char *text, size_t columns);
/* The width of the terminal that `fd` is; that of a usual one where it is none, or a very narrow one. */
size_t terminal_width(int fd);

#endif

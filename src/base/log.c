/* The log; see log.h. */
#include "base/log.h"

#include "base/clock.h"

#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LOG_LINE_BYTES_MAX 4096 /* PIPE_BUF: written as one */

static const char *const names[] = {"error", "warn", "info", "debug"};
static _Atomic int threshold = LOG_INFO;

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&threshold, (int)level, memory_order_relaxed);
}

static bool log_enabled(enum log_level level)
{
    return (int)level <= atomic_load_explicit(&threshold, memory_order_relaxed);
}

bool log_level_parse(const char *name, enum log_level *level)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) {
            *level = (enum log_level)i;
            return true;
        }
    return false;
}

/* A pipe that nobody reads must not stop the server: the line is lost then, and the next one that gets through says how
 * many were. */
static void write_line(const char *line, size_t n)
{
    static _Atomic unsigned lost;
    struct pollfd err = {.fd = STDERR_FILENO, .events = POLLOUT};
    if (poll(&err, 1, 0) == 0) {
        atomic_fetch_add(&lost, 1);
        return;
    }
    unsigned before = atomic_exchange(&lost, 0);
    if (before)
        dprintf(STDERR_FILENO, "(%u lines of the log were lost: nobody read them)\n", before);
    ssize_t written = write(STDERR_FILENO, line, n);
    (void)written; /* nowhere to report it */
}

void log_event(enum log_level level, const char *event, const char *format, ...)
{
    if (!log_enabled(level))
        return;
    char when[CLOCK_TEXT_BYTES], text[LOG_LINE_BYTES_MAX], line[LOG_LINE_BYTES_MAX * 2];
    clock_format_rfc3339(clock_wall_ns(), when);
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    int head = snprintf(line, sizeof line, "%s %s %s ", when, names[level], event);
    size_t n = (size_t)head;
    for (const char *p = text; *p && n < LOG_LINE_BYTES_MAX - 6; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            n += (size_t)snprintf(line + n, sizeof line - n, "\\x%02x", (unsigned char)*p);
        else
            line[n++] = *p;
    }
    line[n++] = '\n';
    write_line(line, n);
}

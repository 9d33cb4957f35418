/* The log; see log.h. */
#include "base/log.h"

#include "base/clock.h"
#include "base/rand.h"

#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LOG_LINE_BYTES_MAX   4096 /* PIPE_BUF: written as one */
#define LOG_FORMAT_BYTES_MAX 1024
#define QUOTE_MARK_BYTES     17 /* a byte that is no part of UTF-8, and 64 random bits */

static const char *const names[] = {"error", "warn", "info", "debug"};
static _Atomic int threshold = LOG_INFO;

/* Stands for a quote of the format until its values are in. Any bytes may come as a value, a file's name among them: nobody
 * can know these. */
static char quote_mark[QUOTE_MARK_BYTES + 1];
static pthread_once_t quote_mark_once = PTHREAD_ONCE_INIT;

static void make_quote_mark(void)
{
    snprintf(quote_mark, sizeof quote_mark, "\xfe%016llx", (unsigned long long)rand_system_u64());
}

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

static void mark_quotes(const char *format, char *out, size_t size)
{
    size_t n = 0;
    for (; *format && n + sizeof quote_mark < size; format++)
        if (*format == '"') {
            memcpy(out + n, quote_mark, QUOTE_MARK_BYTES);
            n += QUOTE_MARK_BYTES;
        } else {
            out[n++] = *format;
        }
    out[n] = 0;
}

/* What a value brings of quotes, backslashes and control characters is escaped: it ends where its own quote is. */
static size_t write_text(const char *text, char *line, size_t n, size_t max)
{
    for (const char *p = text; *p && n < max; p++) {
        if (*p == quote_mark[0] && strncmp(p, quote_mark, QUOTE_MARK_BYTES) == 0) {
            line[n++] = '"';
            p += QUOTE_MARK_BYTES - 1;
        } else if (*p == quote_mark[0] && strncmp(p, quote_mark, strlen(p)) == 0) {
            break; /* cut: the text was too long */
        } else if ((unsigned char)*p < 0x20 || *p == 0x7f) {
            n += (size_t)sprintf(line + n, "\\x%02x", (unsigned char)*p);
        } else {
            if (*p == '"' || *p == '\\')
                line[n++] = '\\';
            line[n++] = *p;
        }
    }
    return n;
}

void log_event(enum log_level level, const char *event, const char *format, ...)
{
    if (!log_enabled(level))
        return;
    char when[CLOCK_TEXT_BYTES], marked[LOG_FORMAT_BYTES_MAX], text[LOG_LINE_BYTES_MAX + LOG_FORMAT_BYTES_MAX];
    char line[LOG_LINE_BYTES_MAX * 2];
    pthread_once(&quote_mark_once, make_quote_mark);
    clock_format_rfc3339(clock_wall_ns(), when);
    mark_quotes(format, marked, sizeof marked);
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, marked, args);
    va_end(args);
    int head = snprintf(line, sizeof line, "%s %s %s ", when, names[level], event);
    size_t n = write_text(text, line, (size_t)head, LOG_LINE_BYTES_MAX - 6);
    line[n++] = '\n';
    write_line(line, n);
}

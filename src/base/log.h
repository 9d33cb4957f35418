/* The log: one line an event on stderr, `time level event key=value ...`. Only serve/, cli/ and main call it.
 * Lines are written whole with one write(2). No prompt text unless the option asks for it. Any thread. */
#ifndef INFERD_BASE_LOG_H
#define INFERD_BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

void log_set_level(enum log_level level);
/* False when `name` is no level ("error", "warn", "info", "debug"). */
bool log_level_parse(const char *name, enum log_level *level);
/* `event` is a word ("request_done"); format gives "key=value" pairs; values with spaces are the caller's to quote.
 * Newlines, control characters, quotes and backslashes of values are escaped, so a hostile value forges no line and no pair. */
void log_event(enum log_level level, const char *event, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif

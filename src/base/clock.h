/* Time. Monotonic nanoseconds for durations, wall time for people. Any thread. */
#ifndef INFERD_BASE_CLOCK_H
#define INFERD_BASE_CLOCK_H

#include <stddef.h>
#include <stdint.h>

uint64_t clock_mono_ns(void);
int64_t clock_wall_s(void);
uint64_t clock_wall_ns(void);
/* RFC 3339 in UTC with microseconds ("2025-07-10T12:00:00.123456Z"); out has room for CLOCK_TEXT_BYTES. */
#define CLOCK_TEXT_BYTES 32
void clock_format_rfc3339(uint64_t wall_ns, char *out);

#endif

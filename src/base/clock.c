/* Time; see clock.h. */
#include "base/clock.h"

#include <stdio.h>
#include <time.h>

#define NS_PER_S 1000000000u

static uint64_t read_clock(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

uint64_t clock_mono_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

uint64_t clock_wall_ns(void)
{
    return read_clock(CLOCK_REALTIME);
}

int64_t clock_wall_s(void)
{
    return (int64_t)(clock_wall_ns() / NS_PER_S);
}

void clock_format_rfc3339(uint64_t wall_ns, char *out)
{
    time_t s = (time_t)(wall_ns / NS_PER_S);
    struct tm t;
    gmtime_r(&s, &t);
    size_t n = strftime(out, CLOCK_TEXT_BYTES, "%Y-%m-%dT%H:%M:%S", &t);
    snprintf(out + n, CLOCK_TEXT_BYTES - n, ".%06uZ", (unsigned)(wall_ns % NS_PER_S / 1000));
}

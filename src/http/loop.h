/* The event loop of the http thread: descriptors (epoll), work posted by other threads (eventfd), timers. Knows no HTTP.
 *
 * A turn waits once, then calls, in this order: the sources whose descriptors are ready, what was posted, what is due.
 * Thread: loop_post, loop_timer and loop_wake from any; the rest by the owner of the loop.
 */
#ifndef INFERD_HTTP_LOOP_H
#define INFERD_HTTP_LOOP_H

#include "base/err.h"

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

/* Embedded in whatever owns a descriptor. `fn` may not free any source: mark, and free after the turn. */
struct loop_source {
    void (*fn)(struct loop_source *source, uint32_t events);
};

struct loop_posted;
struct loop_timer;

struct loop {
    int epoll_fd, event_fd;
    struct loop_source wakeup;
    pthread_mutex_t lock; /* of all below */
    struct loop_posted *first, **last;
    struct loop_timer **heap; /* earliest first */
    size_t n_timers, cap_timers;
    uint64_t last_timer;
};

bool loop_init(struct loop *l, struct err *err);
/* What is still posted is run here; timers are dropped. */
void loop_release(struct loop *l);
/* `events` as of epoll_ctl. */
bool loop_watch(struct loop *l, int fd, uint32_t events, struct loop_source *source);
void loop_change(struct loop *l, int fd, uint32_t events, struct loop_source *source);
void loop_unwatch(struct loop *l, int fd);
/* One turn; waits at most `wait_ms` (-1: until something happens). */
void loop_turn(struct loop *l, int wait_ms);
void loop_run_posted(struct loop *l);
void loop_wake(struct loop *l);
void loop_post(struct loop *l, void (*fn)(void *arg), void *arg);
void loop_timer(struct loop *l, unsigned delay_ms, void (*fn)(void *arg), void *arg);

#endif

/* See loop.h. */
#include "http/loop.h"

#include "base/clock.h"

#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define EVENTS_MAX 128
#define NS_PER_MS  1000000u

struct loop_posted {
    void (*fn)(void *arg);
    void *arg;
    struct loop_posted *next;
};

struct loop_timer {
    uint64_t id, at_ns;
    void (*fn)(void *arg);
    void *arg;
};

static void clear_wakeup(struct loop_source *source, uint32_t events)
{
    struct loop *l = (struct loop *)((char *)source - offsetof(struct loop, wakeup));
    eventfd_t count;
    eventfd_read(l->event_fd, &count);
}

bool loop_init(struct loop *l, struct err *err)
{
    *l = (struct loop){.wakeup = {clear_wakeup}};
    l->last = &l->first;
    l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    l->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    pthread_mutex_init(&l->lock, NULL);
    if (l->epoll_fd >= 0 && l->event_fd >= 0 && loop_watch(l, l->event_fd, EPOLLIN, &l->wakeup))
        return true;
    err_set(err, ERR_IO, "Cannot make the HTTP server's event loop: %m.");
    loop_release(l);
    return false;
}

void loop_release(struct loop *l)
{
    loop_run_posted(l);
    for (size_t i = 0; i < l->n_timers; i++)
        free(l->heap[i]);
    free(l->heap);
    if (l->epoll_fd >= 0)
        close(l->epoll_fd);
    if (l->event_fd >= 0)
        close(l->event_fd);
    pthread_mutex_destroy(&l->lock);
}

bool loop_watch(struct loop *l, int fd, uint32_t events, struct loop_source *source)
{
    struct epoll_event e = {.events = events, .data.ptr = source};
    return epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, fd, &e) == 0;
}

void loop_change(struct loop *l, int fd, uint32_t events, struct loop_source *source)
{
    struct epoll_event e = {.events = events, .data.ptr = source};
    epoll_ctl(l->epoll_fd, EPOLL_CTL_MOD, fd, &e);
}

void loop_unwatch(struct loop *l, int fd)
{
    epoll_ctl(l->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

void loop_wake(struct loop *l)
{
    eventfd_write(l->event_fd, 1);
}

/* ---- posted work ------------------------------------------------------------------------------------------------------- */

void loop_post(struct loop *l, void (*fn)(void *arg), void *arg)
{
    struct loop_posted *p = malloc(sizeof *p);
    CHECK(p);
    *p = (struct loop_posted){fn, arg, NULL};
    pthread_mutex_lock(&l->lock);
    bool was_empty = l->first == NULL;
    *l->last = p;
    l->last = &p->next;
    pthread_mutex_unlock(&l->lock);
    if (was_empty)
        loop_wake(l);
}

/* Only what is there now: work that posts more work does not keep the loop from its descriptors. */
void loop_run_posted(struct loop *l)
{
    pthread_mutex_lock(&l->lock);
    struct loop_posted *p = l->first;
    l->first = NULL;
    l->last = &l->first;
    pthread_mutex_unlock(&l->lock);
    while (p) {
        struct loop_posted *next = p->next;
        p->fn(p->arg);
        free(p);
        p = next;
    }
}

/* ---- timers: a binary heap, by time and then by age --------------------------------------------------------------------- */

static bool earlier(const struct loop_timer *a, const struct loop_timer *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->id < b->id;
}

static void sift_up(struct loop *l, size_t i)
{
    for (; i > 0 && earlier(l->heap[i], l->heap[(i - 1) / 2]); i = (i - 1) / 2) {
        struct loop_timer *t = l->heap[i];
        l->heap[i] = l->heap[(i - 1) / 2];
        l->heap[(i - 1) / 2] = t;
    }
}

static void sift_down(struct loop *l, size_t i)
{
    for (;;) {
        size_t least = i;
        for (size_t child = 2 * i + 1; child <= 2 * i + 2 && child < l->n_timers; child++)
            if (earlier(l->heap[child], l->heap[least]))
                least = child;
        if (least == i)
            return;
        struct loop_timer *t = l->heap[i];
        l->heap[i] = l->heap[least];
        l->heap[least] = t;
        i = least;
    }
}

static struct loop_timer *take_first(struct loop *l)
{
    struct loop_timer *t = l->heap[0];
    l->heap[0] = l->heap[--l->n_timers];
    sift_down(l, 0);
    return t;
}

void loop_timer(struct loop *l, unsigned delay_ms, void (*fn)(void *arg), void *arg)
{
    struct loop_timer *t = malloc(sizeof *t);
    CHECK(t);
    pthread_mutex_lock(&l->lock);
    if (l->n_timers == l->cap_timers) {
        l->cap_timers = l->cap_timers ? 2 * l->cap_timers : 16;
        l->heap = realloc(l->heap, l->cap_timers * sizeof *l->heap);
        CHECK(l->heap);
    }
    *t = (struct loop_timer){++l->last_timer, clock_mono_ns() + (uint64_t)delay_ms * NS_PER_MS, fn, arg};
    l->heap[l->n_timers] = t;
    sift_up(l, l->n_timers++);
    bool first = l->heap[0] == t;
    pthread_mutex_unlock(&l->lock);
    if (first)
        loop_wake(l);
}

/* The next timer that was due at `now_ns`; the caller frees it. */
static struct loop_timer *due(struct loop *l, uint64_t now_ns)
{
    pthread_mutex_lock(&l->lock);
    struct loop_timer *t = l->n_timers && l->heap[0]->at_ns <= now_ns ? take_first(l) : NULL;
    pthread_mutex_unlock(&l->lock);
    return t;
}

static void run_timers(struct loop *l)
{
    uint64_t now_ns = clock_mono_ns();
    for (struct loop_timer *t; (t = due(l, now_ns)); free(t))
        t->fn(t->arg);
}

/* ---- a turn ---------------------------------------------------------------------------------------------------------------- */

static int until_timer_ms(struct loop *l, int wait_ms)
{
    pthread_mutex_lock(&l->lock);
    if (l->n_timers) {
        uint64_t now_ns = clock_mono_ns(), at_ns = l->heap[0]->at_ns;
        uint64_t left_ms = at_ns > now_ns ? (at_ns - now_ns + NS_PER_MS - 1) / NS_PER_MS : 0;
        if (wait_ms < 0 || left_ms < (uint64_t)wait_ms)
            wait_ms = (int)(left_ms < INT32_MAX ? left_ms : INT32_MAX);
    }
    pthread_mutex_unlock(&l->lock);
    return wait_ms;
}

void loop_turn(struct loop *l, int wait_ms)
{
    struct epoll_event events[EVENTS_MAX];
    int n = epoll_wait(l->epoll_fd, events, EVENTS_MAX, until_timer_ms(l, wait_ms));
    for (int i = 0; i < n; i++) {
        struct loop_source *source = events[i].data.ptr;
        source->fn(source, events[i].events);
    }
    loop_run_posted(l);
    run_timers(l);
}

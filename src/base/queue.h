/* Bounded queue of pointers between threads (many producers, many consumers), with an eventfd that becomes readable
 * when something is put in, for epoll loops. Ownership of what the pointer points to moves with it. */
#ifndef INFERD_BASE_QUEUE_H
#define INFERD_BASE_QUEUE_H

#include "base/err.h"

#include <stddef.h>

struct queue;

struct queue *queue_new(size_t capacity, struct err *err);
void queue_free(struct queue *q); /* what is still inside is the caller's to drain first */
/* False when full or closed: a normal condition; the caller keeps ownership. */
bool queue_put(struct queue *q, void *item);
/* NULL when empty. Never blocks. */
void *queue_take(struct queue *q);
/* Waits up to wait_ms (-1: for ever). NULL at timeout or when closed and empty. */
void *queue_wait(struct queue *q, int wait_ms);
/* Wakes all waiters; queue_put fails from now on, queue_take drains. */
void queue_close(struct queue *q);
size_t queue_len(struct queue *q);
/* Readable (level) while items may be inside; queue_event_clear before draining. */
int queue_event_fd(const struct queue *q);
void queue_event_clear(struct queue *q);

#endif

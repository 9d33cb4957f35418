/* Hashing beside receiving; see hasher.h. */
#include "hub/hasher.h"

#include <pthread.h>
#include <stdlib.h>

#define BYTES_A_TURN ((uint64_t)4 << 20) /* of one file, then the next has its turn */

struct work {
    struct partial *p; /* NULL: free */
    uint64_t upto, hashed;
    bool busy, failed;
    struct err err;
};

struct hasher {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* there is work, or a turn is over */
    struct work works[HASHER_FILES_MAX];
    size_t next;
    bool closing;
    void (*caught_up)(void *user);
    void *user;
};

/* With the lock: in turn, one that is behind. */
static struct work *find_work(struct hasher *h)
{
    for (size_t i = 0; i < HASHER_FILES_MAX; i++) {
        struct work *w = &h->works[(h->next + i) % HASHER_FILES_MAX];
        if (w->p && !w->failed && w->hashed < w->upto) {
            h->next = (size_t)(w - h->works) + 1;
            return w;
        }
    }
    return NULL;
}

static void *hasher_main(void *arg)
{
    struct hasher *h = arg;
    pthread_mutex_lock(&h->lock);
    while (!h->closing) {
        struct work *w = find_work(h);
        if (!w) {
            pthread_cond_wait(&h->changed, &h->lock);
            continue;
        }
        uint64_t upto = w->upto;
        w->busy = true;
        pthread_mutex_unlock(&h->lock);
        struct err err = {0};
        bool ok = partial_hash(w->p, upto, BYTES_A_TURN, &err);
        pthread_mutex_lock(&h->lock);
        w->busy = false;
        w->hashed = w->p->hashed;
        w->failed = !ok;
        w->err = err;
        bool over = !ok || w->hashed >= w->upto;
        pthread_cond_broadcast(&h->changed);
        if (over) {
            pthread_mutex_unlock(&h->lock);
            h->caught_up(h->user);
            pthread_mutex_lock(&h->lock);
        }
    }
    pthread_mutex_unlock(&h->lock);
    return NULL;
}

struct hasher *hasher_open(void (*caught_up)(void *user), void *user, struct err *err)
{
    struct hasher *h = calloc(1, sizeof *h);
    if (!h) {
        err_set(err, ERR_MEMORY, "no memory for hashing");
        return NULL;
    }
    h->caught_up = caught_up;
    h->user = user;
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->changed, NULL);
    if (pthread_create(&h->thread, NULL, hasher_main, h) == 0)
        return h;
    pthread_cond_destroy(&h->changed);
    pthread_mutex_destroy(&h->lock);
    free(h);
    err_set(err, ERR_MEMORY, "cannot start a thread that hashes");
    return NULL;
}

void hasher_close(struct hasher *h)
{
    if (!h)
        return;
    pthread_mutex_lock(&h->lock);
    h->closing = true;
    pthread_cond_broadcast(&h->changed);
    pthread_mutex_unlock(&h->lock);
    pthread_join(h->thread, NULL);
    pthread_cond_destroy(&h->changed);
    pthread_mutex_destroy(&h->lock);
    free(h);
}

/* With the lock. */
static struct work *work_of(struct hasher *h, const struct partial *p)
{
    for (size_t i = 0; i < HASHER_FILES_MAX; i++)
        if (h->works[i].p == p)
            return &h->works[i];
    return NULL;
}

bool hasher_want(struct hasher *h, struct partial *p, uint64_t upto, uint64_t *hashed, struct err *err)
{
    pthread_mutex_lock(&h->lock);
    struct work *w = work_of(h, p);
    if (!w && (w = work_of(h, NULL)))
        *w = (struct work){.p = p, .hashed = p->hashed};
    bool ok = w && !w->failed;
    if (!w)
        err_set(err, ERR_INTERNAL, "more than %d files are hashed at once", HASHER_FILES_MAX);
    else if (w->failed)
        *err = w->err;
    if (ok && upto > w->upto) {
        w->upto = upto;
        pthread_cond_broadcast(&h->changed);
    }
    *hashed = w ? w->hashed : 0;
    pthread_mutex_unlock(&h->lock);
    return ok;
}

void hasher_drop(struct hasher *h, const struct partial *p)
{
    pthread_mutex_lock(&h->lock);
    struct work *w = work_of(h, p);
    if (w) {
        w->upto = 0; /* the turn under way is the last */
        while (w->busy)
            pthread_cond_wait(&h->changed, &h->lock);
        w->p = NULL;
    }
    pthread_mutex_unlock(&h->lock);
}

/* The handler finds a mapping in a list of slots that only grows, so that it needs no lock: the thread that faults reads from a
 * mapping that is open, hence its slot does not change meanwhile. */
#include "base/mapping.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SLOTS_A_BLOCK 64

struct slot {
    atomic_uintptr_t begin; /* 0: free */
    atomic_uintptr_t end;   /* of the last page */
    atomic_bool torn;
};

struct slots {
    struct slot slot[SLOTS_A_BLOCK];
    _Atomic(struct slots *) next;
};

static struct slots first_slots;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of taking a slot */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct sigaction before;
static uintptr_t page_bytes;

/* The slot of the mapping around `at`; NULL when there is none. */
static struct slot *slot_around(uintptr_t at)
{
    for (struct slots *s = &first_slots; s; s = s->next) {
        for (size_t i = 0; i < SLOTS_A_BLOCK; i++) {
            uintptr_t begin = s->slot[i].begin, end = s->slot[i].end;
            if (begin && begin <= at && at < end && s->slot[i].begin == begin)
                return &s->slot[i];
        }
    }
    return NULL;
}

/* Zeros from `at` on. The system call itself: what a sanitizer puts around mmap takes it for a write that races with readers,
 * while pages change as one under a reader that gets zeros now or at its own fault. */
static bool map_zeros(uintptr_t at, uintptr_t end)
{
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
    return syscall(SYS_mmap, at, end - at, PROT_READ, flags, -1, 0L) != -1;
}

/* Async-signal-safe: atomics and system calls only. */
static void on_sigbus(int signal_number, siginfo_t *info, void *context)
{
    int kept = errno;
    uintptr_t at = (uintptr_t)info->si_addr & ~(page_bytes - 1);
    struct slot *s = info->si_code == BUS_ADRERR ? slot_around(at) : NULL;
    if (s)
        s->torn = true;
    if (!s || !map_zeros(at, s->end))
        sigaction(SIGBUS, &before, NULL); /* which gets the same fault at once */
    errno = kept;
}

static void install(void)
{
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_RESTART};
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &before);
}

/* With the lock. NULL when memory is short. */
static struct slot *free_slot(void)
{
    for (struct slots *s = &first_slots;; s = s->next) {
        for (size_t i = 0; i < SLOTS_A_BLOCK; i++)
            if (!s->slot[i].begin)
                return &s->slot[i];
        if (s->next == NULL)
            s->next = calloc(1, sizeof *s);
        if (s->next == NULL)
            return NULL;
    }
}

const void *mapping_open(int fd, size_t len)
{
    pthread_once(&once, install);
    void *p = mmap(NULL, len, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED)
        return NULL;
    pthread_mutex_lock(&lock);
    struct slot *s = free_slot();
    if (s) {
        s->torn = false;
        s->end = ((uintptr_t)p + len + page_bytes - 1) & ~(page_bytes - 1);
        s->begin = (uintptr_t)p;
    }
    pthread_mutex_unlock(&lock);
    if (!s) {
        munmap(p, len);
        errno = ENOMEM;
        return NULL;
    }
    return p;
}

void mapping_close(const void *begin, size_t len)
{
    struct slot *s = slot_around((uintptr_t)begin);
    if (s)
        s->begin = 0;
    munmap((void *)begin, len);
}

bool mapping_is_whole(const void *begin)
{
    struct slot *s = slot_around((uintptr_t)begin);
    return !s || !s->torn;
}

/* Memory: a step allocates nothing, and an allocation that fails leaves an error and nothing else. The linker sends the
 * library's calls of the allocator through the wrappers below (--wrap, see the Makefile). */
#include "rig.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>

static _Thread_local int64_t fail_at; /* 1: the next one of this thread fails; 0: none */
static _Thread_local int is_test;     /* this is cmocka's thread */
static atomic_int guarded;            /* count what other threads do */
static atomic_size_t by_others;
static _Atomic int64_t live; /* blocks, and bytes of maps: these may be given back in parts */

static bool refuse(void)
{
    if (atomic_load(&guarded) && !is_test)
        atomic_fetch_add(&by_others, 1);
    if (fail_at && --fail_at == 0) {
        errno = ENOMEM;
        return true;
    }
    return false;
}

static void *counted(void *p)
{
    atomic_fetch_add(&live, p != NULL);
    return p;
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t align, size_t n);
void __real_free(void *p);
void *__real_mmap64(void *at, size_t n, int prot, int flags, int fd, off_t offset);
int __real_munmap(void *at, size_t n);
int __real_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n);
void __wrap_free(void *p);
void *__wrap_mmap64(void *at, size_t n, int prot, int flags, int fd, off_t offset);
int __wrap_munmap(void *at, size_t n);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg);

void *__wrap_malloc(size_t n)
{
    return refuse() ? NULL : counted(__real_malloc(n));
}

void *__wrap_calloc(size_t n, size_t size)
{
    return refuse() ? NULL : counted(__real_calloc(n, size));
}

void *__wrap_realloc(void *p, size_t n)
{
    if (refuse())
        return NULL;
    void *q = __real_realloc(p, n);
    return p ? q : counted(q);
}

void *__wrap_aligned_alloc(size_t align, size_t n)
{
    return refuse() ? NULL : counted(__real_aligned_alloc(align, n));
}

void __wrap_free(void *p)
{
    atomic_fetch_sub(&live, p != NULL);
    __real_free(p);
}

void *__wrap_mmap64(void *at, size_t n, int prot, int flags, int fd, off_t offset)
{
    void *p = refuse() ? MAP_FAILED : __real_mmap64(at, n, prot, flags, fd, offset);
    atomic_fetch_add(&live, p == MAP_FAILED ? 0 : (int64_t)n);
    return p;
}

int __wrap_munmap(void *at, size_t n)
{
    atomic_fetch_sub(&live, (int64_t)n);
    return __real_munmap(at, n);
}

int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg)
{
    return refuse() ? EAGAIN : __real_pthread_create(t, a, fn, arg);
}

static struct rig rig;

static int setup(void **state)
{
    (void)state;
    is_test = 1;
    rig_load(&rig, RIG_MODEL, 2);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    rig_unload(&rig);
    return 0;
}

/* Prompts in chunks, streams, sampling of every kind, log-probabilities, put back for want of pages, cancelled. */
static void test_steps_allocate_nothing(void **state)
{
    (void)state;
    static const struct gen_bias bias[] = {{7, 3}};
    struct gen *g[20];
    struct engine_options o = rig_options();
    o.pages = 16;
    o.rows_max = 64;
    rig_engine(&rig, o, RIG_GATED);
    for (size_t i = 0; i < 20; i++) {
        struct gen_params p = rig_params();
        p.max_tokens = 120;
        p.temperature = i % 2;
        p.top_k = i % 3 ? 0 : 30;
        p.top_p = i % 4 ? 1 : 0.8;
        p.repetition_penalty = i % 5 ? 1 : 1.2;
        p.top_logprobs = i % 4 - 1;
        p.prompt_logprobs = i % 7 ? -1 : 2;
        p.bias = bias;
        p.n_bias = i % 2;
        g[i] = rig_gen(i % 5, 60 + i * 5, &p);
    }
    atomic_store(&by_others, 0);
    atomic_store(&guarded, 1);
    for (size_t i = 0; i < 20; i++)
        rig_submit(&rig, g[i]);
    for (size_t i = 0; i < 10; i++)
        rig_step(&rig);
    engine_cancel(rig.e, g[3]);
    rig_open_gate(&rig);
    for (size_t i = 0; i < 20; i++)
        rig_wait(g[i]);
    atomic_store(&guarded, 0);
    struct engine_counters c = rig_settled(&rig);
    assert_true(c.preemptions > 0 && c.prefix_hits > 0 && c.steps > 50);
    assert_int_equal(atomic_load(&by_others), 0);
    for (size_t i = 0; i < 20; i++)
        gen_free(g[i]);
    rig_close_engine(&rig);
}

/* The guard itself: it does see what another thread allocates. */
static void *allocates(void *arg)
{
    void *volatile p = malloc(1);
    free(p);
    return arg;
}

static void test_the_guard_sees_allocations(void **state)
{
    (void)state;
    pthread_t t;
    atomic_store(&by_others, 0);
    atomic_store(&guarded, 1);
    assert_int_equal(pthread_create(&t, NULL, allocates, NULL), 0);
    pthread_join(t, NULL);
    atomic_store(&guarded, 0);
    assert_int_equal(atomic_load(&by_others), 1);
}

static void test_open_without_memory(void **state)
{
    (void)state;
    struct engine_options o = rig_options();
    int64_t before = atomic_load(&live), n = 1;
    for (;; n++) {
        struct err err = {0};
        fail_at = n;
        struct engine *e = engine_open(rig.m, &o, &err);
        bool failed = fail_at == 0;
        fail_at = 0;
        if (!failed) {
            assert_non_null(e);
            engine_close(e);
            assert_true(atomic_load(&live) == before);
            break;
        }
        assert_null(e);
        assert_true(err.code == ERR_MEMORY || err.code == ERR_IO);
        assert_true(strlen(err.text) > 10);
        assert_true(atomic_load(&live) == before);
    }
    assert_true(n > 15); /* else the wrappers are not there */
}

static void test_new_and_submit_without_memory(void **state)
{
    (void)state;
    static const struct gen_bias bias[] = {{7, 3}};
    struct gen_params p = rig_params();
    int32_t ids[40] = {1, 2, 3}, stop = 5;
    p.top_logprobs = 3;
    p.prompt_logprobs = 3;
    p.bias = bias;
    p.stop_ids = &stop;
    p.n_bias = p.n_stop_ids = 1;
    int64_t before = atomic_load(&live), n = 1;
    struct gen *g = NULL;
    for (; !g; n++) {
        struct err err = {0};
        fail_at = n;
        g = gen_new(ids, 40, &p, &err);
        assert_true((g == NULL) == (fail_at == 0));
        fail_at = 0;
        assert_true(g || (err.code == ERR_MEMORY && strstr(err.text, "40 + 8 tokens")));
        assert_true(g || atomic_load(&live) == before);
    }
    assert_true(n > 7);
    rig_engine(&rig, rig_options(), RIG_RUNS);
    fail_at = 1;
    rig_submit(&rig, g); /* takes no memory at all */
    fail_at = 0;
    rig_wait(g);
    assert_int_equal(gen_poll(g).finish, GEN_LENGTH);
    gen_free(g);
    rig_close_engine(&rig);
    assert_true(atomic_load(&live) == before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps_allocate_nothing),
        cmocka_unit_test(test_the_guard_sees_allocations),
        cmocka_unit_test(test_open_without_memory),
        cmocka_unit_test(test_new_and_submit_without_memory),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

/* The compute pool: every item once, whatever the threads do. */
#include "base/clock.h"
#include "base/pool.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define ITEMS 10000

struct counts {
    atomic_uint seen[ITEMS];
    unsigned threads;
    size_t grain;
    bool slow_helpers;
};

static void count_items(void *arg, size_t begin, size_t end, unsigned thread)
{
    struct counts *c = arg;
    assert_true(begin < end && end <= ITEMS && thread < c->threads);
    assert_true(end - begin <= c->grain);
    if (c->slow_helpers && thread)
        usleep(3000); /* as one that is not run by the system */
    for (size_t i = begin; i < end; i++)
        atomic_fetch_add(&c->seen[i], 1);
}

static struct pool *open_pool(unsigned threads)
{
    struct err err = {0};
    struct pool *p = pool_open(threads, &err);
    if (!p)
        fail_msg("%s", err.text);
    assert_int_equal(pool_threads(p), threads);
    return p;
}

static void run(struct pool *p, struct counts *c, size_t n, size_t grain)
{
    memset(c->seen, 0, sizeof c->seen);
    c->threads = pool_threads(p);
    c->grain = c->threads == 1 || grain >= n ? n : grain ? grain : 1;
    pool_acquire(p);
    pool_range(p, n, grain, count_items, c);
    pool_release(p);
    for (size_t i = 0; i < ITEMS; i++)
        assert_int_equal(atomic_load(&c->seen[i]), i < n);
}

static void test_every_item_once(void **state)
{
    (void)state;
    static struct counts c;
    static const size_t sizes[] = {0, 1, 2, 3, 7, 64, 1000, ITEMS}, grains[] = {0, 1, 2, 5, 64, ITEMS * 2};
    for (unsigned threads = 1; threads <= 5; threads++) {
        struct pool *p = open_pool(threads);
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            for (size_t k = 0; k < sizeof grains / sizeof *grains; k++)
                run(p, &c, sizes[i], grains[k]);
        pool_close(p);
    }
}

static void test_many_small_jobs(void **state)
{
    (void)state;
    static struct counts c;
    struct pool *p = open_pool(4);
    for (size_t i = 0; i < 2000; i++)
        run(p, &c, 2 + i % 9, 1);
    pool_close(p);
}

/* Helpers that do not come back for a while: the caller does the rest, waits for what they took, and asleep. */
static void test_slow_helpers(void **state)
{
    (void)state;
    static struct counts c;
    struct pool *p = open_pool(3);
    c.slow_helpers = true;
    for (size_t i = 0; i < 20; i++)
        run(p, &c, 500, 1);
    pool_close(p);
}

static void test_helpers_sleep_and_wake(void **state)
{
    (void)state;
    static struct counts c;
    struct pool *p = open_pool(3);
    for (size_t i = 0; i < 5; i++) {
        run(p, &c, 100, 1);
        usleep(20000);
    }
    struct timespec before, after;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    usleep(200000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    int64_t used_ns = (after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec;
    assert_true(used_ns < 20000000); /* an idle pool does not burn the processor */
    pool_close(p);
}

static void chunk_bounds(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    atomic_fetch_add((atomic_size_t *)arg, end - begin);
}

static void test_more_chunks_than_the_word_holds(void **state)
{
    (void)state;
    atomic_size_t total = 0;
    struct pool *p = open_pool(2);
    pool_acquire(p);
    pool_range(p, (size_t)1 << 33, 1, chunk_bounds, &total);
    pool_release(p);
    assert_true(atomic_load(&total) == (size_t)1 << 33);
    pool_close(p);
}

struct user {
    struct pool *pool;
    struct counts *c;
};

static void *uses(void *arg)
{
    struct user *u = arg;
    for (size_t i = 0; i < 200; i++)
        run(u->pool, u->c, 300, 3);
    return NULL;
}

static void test_holders_take_turns(void **state)
{
    (void)state;
    static struct counts c[3];
    struct pool *p = open_pool(2);
    pthread_t t[3];
    struct user u[3];
    for (size_t i = 0; i < 3; i++) {
        u[i] = (struct user){p, &c[i]};
        assert_int_equal(pthread_create(&t[i], NULL, uses, &u[i]), 0);
    }
    for (size_t i = 0; i < 3; i++)
        pthread_join(t[i], NULL);
    pool_close(p);
}

static void test_bad_numbers(void **state)
{
    (void)state;
    struct err err = {0};
    assert_null(pool_open(100000, &err));
    assert_int_equal(err.code, ERR_USAGE);
    assert_true(pool_cpus_usable() >= 1);
    struct pool *p = pool_open(0, &err);
    assert_int_equal(pool_threads(p), pool_cpus_usable());
    pool_close(p);
    pool_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_item_once),
        cmocka_unit_test(test_many_small_jobs),
        cmocka_unit_test(test_slow_helpers),
        cmocka_unit_test(test_helpers_sleep_and_wake),
        cmocka_unit_test(test_more_chunks_than_the_word_holds),
        cmocka_unit_test(test_holders_take_turns),
        cmocka_unit_test(test_bad_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The bounded queue between threads. */
#include "base/clock.h"
#include "base/queue.h"

#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

static struct queue *open_queue(size_t capacity)
{
    struct err err = {0};
    struct queue *q = queue_new(capacity, &err);
    assert_non_null(q);
    return q;
}

static bool readable(const struct queue *q)
{
    struct pollfd p = {.fd = queue_event_fd(q), .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static void test_order_and_capacity(void **state)
{
    (void)state;
    int items[5];
    struct queue *q = open_queue(3);
    assert_null(queue_take(q));
    for (int round = 0; round < 4; round++) {
        assert_true(queue_put(q, &items[0]) && queue_put(q, &items[1]) && queue_put(q, &items[2]));
        assert_false(queue_put(q, &items[3]));
        assert_int_equal(queue_len(q), 3);
        assert_ptr_equal(queue_take(q), &items[0]);
        assert_true(queue_put(q, &items[4]));
        assert_ptr_equal(queue_take(q), &items[1]);
        assert_ptr_equal(queue_take(q), &items[2]);
        assert_ptr_equal(queue_wait(q, 0), &items[4]);
        assert_null(queue_take(q));
    }
    queue_free(q);
}

static void test_event(void **state)
{
    (void)state;
    int item;
    struct queue *q = open_queue(3);
    assert_false(readable(q));
    assert_true(queue_put(q, &item));
    assert_true(readable(q));
    queue_event_clear(q);
    assert_false(readable(q));
    assert_ptr_equal(queue_take(q), &item);
    queue_close(q);
    assert_true(readable(q));
    queue_free(q);
    queue_free(NULL);
}

static void test_waits_and_times_out(void **state)
{
    (void)state;
    struct queue *q = open_queue(1);
    uint64_t start = clock_mono_ns();
    assert_null(queue_wait(q, 30));
    assert_true(clock_mono_ns() - start >= 29000000);
    queue_free(q);
}

static void test_close_drains(void **state)
{
    (void)state;
    int item;
    struct queue *q = open_queue(2);
    assert_true(queue_put(q, &item));
    queue_close(q);
    assert_false(queue_put(q, &item));
    assert_ptr_equal(queue_wait(q, -1), &item);
    assert_null(queue_wait(q, -1));
    queue_free(q);
}

#define PRODUCERS 3
#define CONSUMERS 3
#define EACH      2000

struct traffic {
    struct queue *q;
    atomic_size_t taken, sum;
};

static void *produce(void *arg)
{
    struct traffic *t = arg;
    for (uintptr_t i = 1; i <= EACH; i++)
        while (!queue_put(t->q, (void *)i))
            usleep(10);
    return NULL;
}

static void *consume(void *arg)
{
    struct traffic *t = arg;
    for (void *item; (item = queue_wait(t->q, -1));) {
        atomic_fetch_add(&t->taken, 1);
        atomic_fetch_add(&t->sum, (uintptr_t)item);
    }
    return NULL;
}

static void test_many_threads(void **state)
{
    (void)state;
    pthread_t p[PRODUCERS], c[CONSUMERS];
    struct traffic t = {.q = open_queue(8)};
    for (int i = 0; i < CONSUMERS; i++)
        assert_int_equal(pthread_create(&c[i], NULL, consume, &t), 0);
    for (int i = 0; i < PRODUCERS; i++)
        assert_int_equal(pthread_create(&p[i], NULL, produce, &t), 0);
    for (int i = 0; i < PRODUCERS; i++)
        pthread_join(p[i], NULL);
    queue_close(t.q);
    for (int i = 0; i < CONSUMERS; i++)
        pthread_join(c[i], NULL);
    assert_int_equal(atomic_load(&t.taken), PRODUCERS * EACH);
    assert_int_equal(atomic_load(&t.sum), PRODUCERS * (EACH * (EACH + 1) / 2));
    queue_free(t.q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_and_capacity),  cmocka_unit_test(test_event),
        cmocka_unit_test(test_waits_and_times_out), cmocka_unit_test(test_close_drains),
        cmocka_unit_test(test_many_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

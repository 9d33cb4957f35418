/* What only Redis has: it goes away and comes back, and others use it. */
#include "stores.h"

#include <pthread.h>

static struct redis_server redis;
static char url[64], folder[64];

/* The library's wall clock, which the Makefile turns to here. */
static _Atomic uint64_t set_back_ns;
uint64_t __real_clock_wall_ns(void);
uint64_t __wrap_clock_wall_ns(void);

uint64_t __wrap_clock_wall_ns(void)
{
    return __real_clock_wall_ns() - set_back_ns;
}

static int set_up(void **state)
{
    (void)state;
    make_folder(folder);
    if (redis_start(&redis))
        redis_url(&redis, url);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    if (redis.port)
        redis_stop(&redis);
    remove_folder(folder);
    return 0;
}

static void need_redis(void)
{
    if (!redis.port)
        skip();
}

static void wait_available(struct store *s, int available)
{
    struct store_state now;
    store_state(s, &now);
    for (int i = 0; i < 3000 && now.available != available; i++) {
        sleep_ms(10);
        store_state(s, &now);
    }
    assert_int_equal(now.available, available);
}

static void goes_away_and_comes_back(void **state)
{
    (void)state;
    need_redis();
    struct store *s = open_store(url, folder);
    char id[STORE_JOB_ID_BYTES];
    create_job(s, "k", "m", id);
    uint64_t token = claim_job(s, "one", LEASE_MS, NULL);
    redis_kill(&redis);
    wait_available(s, 0); /* noticed without an operation */
    struct store_state now;
    store_state(s, &now);
    char port[16];
    snprintf(port, sizeof port, "%d", redis.port);
    assert_non_null(strstr(now.why, port));
    struct store_request r = update_request(id, token, STORE_RUNNING, 0.5);
    uint64_t began = clock_mono_ns();
    for (int i = 0; i < 20; i++)
        must_fail(s, &r, ERR_UNAVAILABLE);
    assert_true(clock_mono_ns() - began < (uint64_t)2000 * 1000000); /* fails at once, does not wait for a connection */
    redis_begin(&redis);
    wait_available(s, 1);
    store_state(s, &now);
    assert_true(now.n_reconnects >= 1);
    assert_true(update_job(s, id, token, STORE_RUNNING, 0.5).status == STORE_RUNNING);
    store_close(s);
}

/* By somebody, or by NTP: what waits for a time of this process waits no longer for that. */
static void the_clock_is_set_back(void **state)
{
    (void)state;
    need_redis();
    struct store *s = open_store(url, folder);
    redis_kill(&redis);
    wait_available(s, 0);
    set_back_ns = (uint64_t)3600 * 1000000000;
    redis_begin(&redis);
    wait_available(s, 1);
    set_back_ns = 0;
    store_close(s);
}

static void opens_without_a_redis(void **state)
{
    (void)state;
    need_redis();
    redis_kill(&redis);
    struct err err = {0};
    struct store *s = store_open(url, folder, &err);
    assert_non_null(s);
    struct store_request r = create_request("k", "m");
    must_fail(s, &r, ERR_UNAVAILABLE);
    redis_begin(&redis);
    wait_available(s, 1);
    must(s, &r);
    store_request_release(&r);
    store_close(s);
}

/* Stopped, not dead: connections stay, nothing answers. */
static void hangs(void **state)
{
    (void)state;
    need_redis();
    struct store *s = open_store(url, folder);
    kill(redis.pid, SIGSTOP);
    struct store_request r = create_request("k", "m");
    must_fail(s, &r, ERR_UNAVAILABLE);
    kill(redis.pid, SIGCONT);
    wait_available(s, 1);
    must(s, &r);
    store_request_release(&r);
    store_close(s);
}

static void scripts_are_forgotten(void **state)
{
    (void)state;
    need_redis();
    struct store *s = open_store(url, folder);
    char id[STORE_JOB_ID_BYTES], command[128];
    create_job(s, "k", "m", id);
    snprintf(command, sizeof command, "redis-cli -p %d script flush >/dev/null", redis.port);
    assert_int_equal(system(command), 0);
    assert_int_equal(get_job(s, id).status, STORE_QUEUED);
    store_close(s);
}

static void a_password(void **state)
{
    (void)state;
    need_redis();
    char command[160], with[96];
    snprintf(command, sizeof command, "redis-cli -p %d config set requirepass 'p@ss/w:rd' >/dev/null", redis.port);
    assert_int_equal(system(command), 0);
    snprintf(with, sizeof with, "redis://127.0.0.1:%d", redis.port);
    struct err err = {0};
    struct store *s = store_open(with, folder, &err);
    struct store_request r = create_request("k", "m");
    assert_false(store_call(s, &r, &err));
    assert_non_null(strstr(err.text, "NOAUTH"));
    store_request_release(&r);
    store_close(s);
    snprintf(with, sizeof with, "redis://:p%%40ss%%2Fw:rd@127.0.0.1:%d/1", redis.port);
    s = open_store(with, folder);
    must(s, &r);
    store_request_release(&r);
    store_close(s);
}

struct seen {
    pthread_mutex_t lock;
    char last[STORE_JOB_ID_BYTES];
    int n;
};

static void on_change(void *user, const char *id)
{
    struct seen *seen = user;
    pthread_mutex_lock(&seen->lock);
    strcpy(seen->last, id);
    seen->n++;
    pthread_mutex_unlock(&seen->lock);
}

static int count_seen(struct seen *seen)
{
    pthread_mutex_lock(&seen->lock);
    int n = seen->n;
    pthread_mutex_unlock(&seen->lock);
    return n;
}

static void two_instances(void **state)
{
    (void)state;
    need_redis();
    struct store *a = open_store(url, folder), *b = open_store(url, folder);
    struct seen seen = {.lock = PTHREAD_MUTEX_INITIALIZER};
    char first[STORE_JOB_ID_BYTES], second[STORE_JOB_ID_BYTES];
    store_watch(b, on_change, &seen);
    create_job(a, "k", "m", first);
    for (int i = 0; i < 3000 && count_seen(&seen) < 1; i++)
        sleep_ms(10);
    assert_int_equal(count_seen(&seen), 1);
    assert_string_equal(seen.last, first);
    create_job(b, "k", "m", second);
    assert_string_equal(first, second);
    uint64_t token = claim_job(b, "b", LEASE_MS, NULL);
    assert_true(token > 0);
    assert_int_equal(claim_job(a, "a", LEASE_MS, NULL), 0);
    struct store_request r = update_request(first, token + 1, STORE_RUNNING, 0.5);
    must_fail(a, &r, ERR_CONFLICT);
    store_watch(b, NULL, NULL);
    store_close(a);
    store_close(b);
}

/* Four instances, short leases, some that forget their jobs: every job is completed once, by the holder of its token. */
#define N_INSTANCES 4
#define N_JOBS      60

struct instance {
    pthread_t thread;
    char name[16];
    unsigned seed;
    int completed, fenced;
};

static void *instance_main(void *arg)
{
    struct instance *me = arg;
    struct store *s = open_store(url, folder);
    for (int idle = 0; idle < 40;) {
        char id[STORE_JOB_ID_BYTES];
        uint64_t token = claim_job(s, me->name, 30, id);
        if (!token) {
            idle++;
            sleep_ms(5);
            continue;
        }
        idle = 0;
        int fate = rand_r(&me->seed) % 10;
        if (fate < 2)
            continue; /* it dies: the lease runs out */
        if (fate < 4)
            sleep_ms(50); /* it sleeps through its lease */
        struct store_request r = update_request(id, token, STORE_COMPLETED, 1);
        struct err err = {0};
        if (store_call(s, &r, &err)) {
            me->completed++;
        } else {
            assert_int_equal(err.code, ERR_CONFLICT);
            me->fenced++;
        }
        store_request_release(&r);
    }
    store_close(s);
    return NULL;
}

static void one_run(unsigned seed, int run)
{
    struct store *s = open_store(url, folder);
    char key[32], id[STORE_JOB_ID_BYTES];
    for (int i = 0; i < N_JOBS; i++) {
        snprintf(key, sizeof key, "k%d-%d", run, i);
        create_job(s, key, "m", id);
    }
    struct instance all[N_INSTANCES];
    for (int i = 0; i < N_INSTANCES; i++) {
        all[i] = (struct instance){.seed = seed + (unsigned)i};
        snprintf(all[i].name, sizeof all[i].name, "i%d", i);
        assert_int_equal(pthread_create(&all[i].thread, NULL, instance_main, &all[i]), 0);
    }
    int completed = 0;
    for (int i = 0; i < N_INSTANCES; i++) {
        pthread_join(all[i].thread, NULL);
        completed += all[i].completed;
    }
    assert_int_equal(completed, N_JOBS); /* each update that ended a job was acknowledged to one instance only */
    struct store_request r = {.op = STORE_JOB_LIST, .status = STORE_COMPLETED, .limit = 10000};
    must(s, &r);
    assert_int_equal(r.n_jobs, N_JOBS * (run + 1));
    store_request_release(&r);
    store_close(s);
}

/* INFERD_TEST_RUNS: 100 for the whole. */
static void nothing_lost_nothing_twice(void **state)
{
    (void)state;
    need_redis();
    const char *asked = getenv("INFERD_TEST_RUNS");
    unsigned seed = (unsigned)clock_wall_ns();
    for (int run = 0; run < (asked ? atoi(asked) : 2); run++) {
        print_message("run %d, seed %u\n", run, seed);
        one_run(seed + (unsigned)run * N_INSTANCES, run);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(goes_away_and_comes_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_clock_is_set_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(opens_without_a_redis, set_up, tear_down),
        cmocka_unit_test_setup_teardown(hangs, set_up, tear_down),
        cmocka_unit_test_setup_teardown(scripts_are_forgotten, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_password, set_up, tear_down),
        cmocka_unit_test_setup_teardown(two_instances, set_up, tear_down),
        cmocka_unit_test_setup_teardown(nothing_lost_nothing_twice, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The engine with a real small model: states and ways to end, and that nothing but a request decides its result. */
#include "rig.h"

static struct rig rig;

static int setup(void **state)
{
    (void)state;
    rig_load(&rig, RIG_MODEL, 2);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    rig_unload(&rig);
    return 0;
}

static void expect_balance(void)
{
    struct engine_counters c = rig_settled(&rig);
    assert_int_equal(c.running + c.waiting + c.pages_held, 0);
}

static void test_runs_to_length_and_stop(void **state)
{
    (void)state;
    struct rig_result a, b;
    struct gen_params p = rig_params();
    rig_engine(&rig, rig_options(), RIG_RUNS);
    struct gen *g = rig_gen(1, 40, &p);
    rig_submit(&rig, g);
    rig_take(g, &a);
    assert_int_equal(a.finish, GEN_LENGTH);
    assert_int_equal(a.n, 8);
    p.stop_ids = &a.ids[3];
    p.n_stop_ids = 1;
    g = rig_gen(1, 40, &p);
    rig_submit(&rig, g);
    rig_take(g, &b);
    assert_int_equal(b.finish, GEN_STOP);
    assert_true(b.n <= 4 && b.ids[b.n - 1] == a.ids[3]);
    assert_memory_equal(a.ids, b.ids, b.n * sizeof *b.ids);
    expect_balance();
    rig_close_engine(&rig);
}

/* A reader that looks all the time never takes a stop id for text. */
static void test_stop_id_comes_with_the_end(void **state)
{
    (void)state;
    struct rig_result a;
    struct gen_params p = rig_params();
    rig_engine(&rig, rig_options(), RIG_RUNS);
    struct gen *g = rig_gen(1, 40, &p);
    rig_submit(&rig, g);
    rig_take(g, &a);
    p.stop_ids = &a.ids[3];
    p.n_stop_ids = 1;
    for (int i = 0; i < 100; i++) {
        g = rig_gen(1, 40, &p);
        rig_submit(&rig, g);
        struct gen_view v;
        do {
            v = gen_poll(g);
            assert_false(v.finish == GEN_RUNNING && v.n && v.ids[v.n - 1] == a.ids[3]);
        } while (v.finish == GEN_RUNNING);
        gen_free(g);
    }
    rig_close_engine(&rig);
}

static void test_ends_at_the_context(void **state)
{
    (void)state;
    struct rig_result a;
    struct err err = {0};
    struct gen_params p = rig_params();
    struct engine_options o = rig_options();
    o.context_max = 100;
    p.max_tokens = 64;
    rig_engine(&rig, o, RIG_RUNS);
    struct gen *g = rig_gen(2, 90, &p);
    rig_submit(&rig, g);
    rig_take(g, &a);
    assert_int_equal(a.n, 10);
    assert_int_equal(a.finish, GEN_LENGTH);
    g = rig_gen(2, 101, &p);
    assert_false(engine_submit(rig.e, g, &err));
    assert_int_equal(err.code, ERR_CONTEXT_LENGTH);
    assert_non_null(strstr(err.text, "101"));
    gen_free(g);
    expect_balance();
    rig_close_engine(&rig);
}

static void test_prompt_only(void **state)
{
    (void)state;
    struct rig_result a;
    struct gen_params p = rig_params();
    p.max_tokens = 0;
    p.prompt_logprobs = 2;
    rig_engine(&rig, rig_options(), RIG_RUNS);
    struct gen *g = rig_gen(3, 50, &p);
    rig_submit(&rig, g);
    rig_take(g, &a);
    assert_int_equal(a.n, 0);
    for (size_t i = 1; i < 50; i++) {
        assert_int_equal(a.prompt[i].n_top, 2);
        assert_true(a.prompt[i].logprob < 0 && a.prompt[i].top_logprobs[0] >= a.prompt[i].logprob);
    }
    expect_balance();
    rig_close_engine(&rig);
}

static void test_what_never_fits_is_refused(void **state)
{
    (void)state;
    struct err err = {0};
    struct gen_params p = rig_params();
    struct engine_options o = rig_options();
    o.pages = 3;
    rig_engine(&rig, o, RIG_RUNS);
    struct gen *g = rig_gen(4, 90, &p);
    assert_false(engine_submit(rig.e, g, &err));
    assert_int_equal(err.code, ERR_MEMORY);
    assert_non_null(strstr(err.text, "4 KV pages"));
    gen_free(g);
    assert_null(gen_new(NULL, 0, &p, &err));
    assert_int_equal(err.code, ERR_INVALID_REQUEST);
    p.max_tokens = SIZE_MAX - 1;
    int32_t one = 1;
    assert_null(gen_new(&one, 1, &p, &err));
    assert_int_equal(err.code, ERR_MEMORY);
    rig_close_engine(&rig);
}

static void test_queue_full(void **state)
{
    (void)state;
    struct gen *g[5];
    struct err err = {0};
    struct gen_params p = rig_params();
    struct engine_options o = rig_options();
    o.streams_max = 2;
    o.queue_max = 2;
    rig_engine(&rig, o, RIG_GATED);
    for (size_t i = 0; i < 4; i++)
        rig_submit(&rig, g[i] = rig_gen(10 + i, 20, &p));
    g[4] = rig_gen(14, 20, &p);
    assert_false(engine_submit(rig.e, g[4], &err));
    assert_int_equal(err.code, ERR_QUEUE_FULL);
    assert_non_null(strstr(err.text, "--max-queue"));
    rig_open_gate(&rig);
    for (size_t i = 0; i < 4; i++) {
        rig_wait(g[i]);
        gen_free(g[i]);
    }
    rig_submit(&rig, g[4]); /* there is room again */
    rig_wait(g[4]);
    gen_free(g[4]);
    expect_balance();
    rig_close_engine(&rig);
}

/* Cancels after `steps` steps, of which each computes 16 rows of a prompt of 60. */
static void cancel_after(size_t steps, size_t n_output, uint64_t running, uint64_t waiting)
{
    struct gen_params p = rig_params();
    struct engine_options o = rig_options();
    struct engine_counters c;
    struct rig_result a;
    p.max_tokens = 50;
    o.rows_max = 17;
    o.streams_max = 1;
    rig_engine(&rig, o, RIG_GATED);
    struct gen *first = rig_gen(20, 60, &p), *second = rig_gen(21, 60, &p);
    rig_submit(&rig, first);
    sem_wait(&rig.stepped);
    rig_submit(&rig, second);
    for (size_t i = 0; i < steps; i++) {
        sem_post(&rig.go);
        sem_wait(&rig.stepped);
    }
    engine_counters(rig.e, &c);
    assert_int_equal(c.running, running);
    assert_int_equal(c.waiting, waiting);
    assert_int_equal(gen_poll(first).n, n_output);
    engine_cancel(rig.e, second); /* queued: there is room for one */
    engine_cancel(rig.e, first);
    engine_cancel(rig.e, first);
    sem_post(&rig.go);
    sem_wait(&rig.stepped); /* one step */
    assert_true(gen_done(first) && gen_done(second));
    engine_counters(rig.e, &c);
    assert_int_equal(c.running + c.waiting + c.pages_held, 0);
    assert_int_equal(c.cancelled_tokens, n_output);
    rig_take(first, &a);
    assert_int_equal(a.finish, GEN_CANCELLED);
    assert_int_equal(a.n, n_output);
    rig_take(second, &a);
    assert_int_equal(a.finish, GEN_CANCELLED);
    assert_int_equal(a.n, 0);
    rig_close_engine(&rig);
}

static void test_cancel_in_prefill(void **state)
{
    (void)state;
    cancel_after(1, 0, 1, 1);
}

static void test_cancel_in_decode(void **state)
{
    (void)state;
    cancel_after(5, 3, 1, 1);
}

static void test_cancel_before_the_first_step(void **state)
{
    (void)state;
    struct gen_params p = rig_params();
    struct rig_result a;
    rig_engine(&rig, rig_options(), RIG_RUNS);
    struct gen *g = rig_gen(22, 60, &p);
    engine_cancel(rig.e, g);
    rig_submit(&rig, g);
    rig_take(g, &a);
    assert_int_equal(a.finish, GEN_CANCELLED);
    assert_int_equal(a.n, 0);
    expect_balance();
    rig_close_engine(&rig);
}

static void test_deadline(void **state)
{
    (void)state;
    struct gen_params p = rig_params();
    struct rig_result a;
    rig_engine(&rig, rig_options(), RIG_GATED);
    p.max_tokens = 400;
    p.deadline_ns = clock_mono_ns() + 500000000; /* the first step is done before, on any machine */
    struct gen *g = rig_gen(23, 30, &p);
    rig_submit(&rig, g);
    rig_step(&rig);
    while (clock_mono_ns() <= p.deadline_ns)
        usleep(1000);
    rig_open_gate(&rig);
    rig_take(g, &a);
    assert_int_equal(a.finish, GEN_TIMEOUT);
    assert_true(a.n > 0 && a.n < 400);
    p.deadline_ns = 1; /* passed while it was queued */
    g = rig_gen(23, 30, &p);
    rig_submit(&rig, g);
    rig_take(g, &a);
    assert_int_equal(a.finish, GEN_TIMEOUT);
    assert_int_equal(a.n, 0);
    expect_balance();
    rig_close_engine(&rig);
}

static void test_close_ends_all(void **state)
{
    (void)state;
    struct gen *g[6];
    struct gen_params p = rig_params();
    struct engine_options o = rig_options();
    o.streams_max = 3;
    p.max_tokens = 400;
    rig_engine(&rig, o, RIG_GATED);
    for (size_t i = 0; i < 6; i++)
        rig_submit(&rig, g[i] = rig_gen(30 + i, 50, &p));
    rig_step(&rig);
    rig_close_engine(&rig);
    for (size_t i = 0; i < 6; i++) {
        assert_int_equal(gen_poll(g[i]).finish, GEN_CANCELLED);
        gen_free(g[i]);
    }
}

/* ---- the same result, whatever else ---- */

#define STORM 16

static struct gen *storm_gen(size_t i)
{
    static const struct gen_bias bias[] = {{7, 3}, {9, -100}};
    struct gen_params p = rig_params();
    p.max_tokens = 4 + i % 5 * 25;
    p.temperature = i % 3 ? 0.9 : 0;
    p.seed = 1000 + i / 2;
    p.choice = i % 2;
    p.top_p = i % 4 == 1 ? 0.9 : 1;
    p.top_k = i % 5 == 2 ? 20 : 0;
    p.repetition_penalty = i % 6 == 5 ? 1.3 : 1;
    p.presence_penalty = i % 7 == 3 ? 0.5 : 0;
    p.top_logprobs = i % 2 ? 5 : -1;
    p.prompt_logprobs = i % 8 == 6 ? 3 : -1;
    p.bias = bias;
    p.n_bias = i % 4 == 2 ? 2 : 0;
    return rig_gen(100 + i % 6, 20 + i * 37 % 180, &p); /* six prefixes among them */
}

static struct rig_result alone[STORM], among[STORM];

static void run_alone(void)
{
    struct engine_options o = rig_options();
    o.prefix_cache = 0;
    rig_engine(&rig, o, RIG_RUNS);
    for (size_t i = 0; i < STORM; i++) {
        struct gen *g = storm_gen(i);
        rig_submit(&rig, g);
        rig_take(g, &alone[i]);
        assert_int_equal(alone[i].n_cached, 0);
    }
    rig_close_engine(&rig);
}

/* All at once, twice: the second time with what the first left in the prefix cache. Returns the counters. */
static struct engine_counters run_storm(struct engine_options o)
{
    struct gen *g[STORM];
    rig_engine(&rig, o, RIG_RUNS);
    for (size_t round = 0; round < 2; round++) {
        for (size_t i = 0; i < STORM; i++)
            rig_submit(&rig, g[i] = storm_gen(i));
        for (size_t i = 0; i < STORM; i++) {
            rig_take(g[i], &among[i]);
            rig_expect_same(&alone[i], &among[i]);
        }
    }
    struct engine_counters c = rig_settled(&rig);
    rig_close_engine(&rig);
    return c;
}

static void test_same_among_others(void **state)
{
    (void)state;
    run_alone();
    struct engine_options o = rig_options();
    struct engine_counters c = run_storm(o);
    assert_true(c.prefix_hits > 0);
    o.prefix_cache = 0;
    assert_int_equal(run_storm(o).prefix_hits, 0);
}

static void test_same_in_any_chunks(void **state)
{
    (void)state;
    run_alone();
    static const size_t rows[] = {1, 7, 33};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct engine_options o = rig_options();
        o.rows_max = rows[i];
        o.prefix_cache = i % 2;
        run_storm(o);
    }
}

static void test_same_when_put_back(void **state)
{
    (void)state;
    run_alone();
    uint64_t preemptions = 0;
    for (size_t pages = 10; pages < 17; pages += 3) {
        struct engine_options o = rig_options();
        o.pages = pages;
        o.rows_max = 64;
        o.prefix_cache = pages % 2 == 0;
        preemptions += run_storm(o).preemptions;
    }
    assert_true(preemptions > 0); /* else nothing was tried */
}

static void test_prompt_logprobs_with_the_prefix_cache(void **state)
{
    (void)state;
    struct rig_result cold, warm, plain;
    struct gen_params p = rig_params(), with = rig_params();
    with.prompt_logprobs = 5;
    rig_engine(&rig, rig_options(), RIG_RUNS);
    struct gen *g = rig_gen(50, 150, &with);
    rig_submit(&rig, g);
    rig_take(g, &cold);
    g = rig_gen(50, 150, &with); /* asks for all rows: reads nothing from the cache */
    rig_submit(&rig, g);
    rig_take(g, &warm);
    rig_expect_same(&cold, &warm);
    assert_int_equal(warm.n_cached, 0);
    g = rig_gen(50, 150, &p); /* but leaves its pages there */
    rig_submit(&rig, g);
    rig_take(g, &plain);
    assert_int_equal(plain.n_cached, 150 / KV_PAGE_TOKENS * KV_PAGE_TOKENS);
    assert_memory_equal(plain.ids, cold.ids, sizeof plain.ids);
    rig_close_engine(&rig);
}

static void test_salts_do_not_share(void **state)
{
    (void)state;
    struct gen_params p = rig_params();
    struct rig_result a;
    rig_engine(&rig, rig_options(), RIG_RUNS);
    for (uint64_t i = 0; i < 4; i++) {
        p.cache_salt = i < 2 ? i : i - 2;
        struct gen *g = rig_gen(60, 100, &p);
        rig_submit(&rig, g);
        rig_take(g, &a);
        assert_int_equal(a.n_cached, i < 2 ? 0 : 96);
    }
    rig_close_engine(&rig);
}

/* A prefix that is being computed is shared by those that wait for it. */
static void test_prefix_under_way_is_shared(void **state)
{
    (void)state;
    struct gen_params p = rig_params();
    struct gen *g[8];
    struct rig_result a;
    struct engine_options o = rig_options();
    o.rows_max = 64;
    rig_engine(&rig, o, RIG_GATED);
    for (size_t i = 0; i < 8; i++)
        rig_submit(&rig, g[i] = rig_gen(70, 200, &p));
    rig_open_gate(&rig);
    for (size_t i = 0; i < 8; i++) {
        rig_take(g[i], &a);
        assert_int_equal(a.n_cached, i ? 192 : 0);
    }
    struct engine_counters c = rig_settled(&rig);
    assert_int_equal(c.prefix_hits, 7 * 192);
    rig_close_engine(&rig);
}

static void test_choices(void **state)
{
    (void)state;
    struct gen_params p = rig_params();
    struct gen *g[4];
    struct rig_result a[4], one;
    p.temperature = 1;
    p.seed = 99;
    p.max_tokens = 20;
    rig_engine(&rig, rig_options(), RIG_RUNS);
    for (uint32_t i = 0; i < 4; i++) {
        p.choice = i;
        rig_submit(&rig, g[i] = rig_gen(80, 30, &p));
    }
    for (size_t i = 0; i < 4; i++)
        rig_take(g[i], &a[i]);
    for (size_t i = 0; i < 4; i++)
        for (size_t k = 0; k < i; k++)
            assert_memory_not_equal(a[i].ids, a[k].ids, sizeof a[i].ids);
    p.choice = 0;
    struct gen *alone_gen = rig_gen(80, 30, &p);
    rig_submit(&rig, alone_gen);
    rig_take(alone_gen, &one);
    assert_memory_equal(one.ids, a[0].ids, sizeof one.ids);
    rig_close_engine(&rig);
}

/* Keys depend on the prompt's length with dynamic rotary scaling: prefixes of other classes must not be taken. */
static void test_rotary_classes(void **state)
{
    (void)state;
    struct rig r;
    struct gen_params p = rig_params();
    struct rig_result cold[12], warm;
    rig_load(&r, "tests/golden/models/llama-rope-dynamic", 2);
    for (size_t round = 0; round < 2; round++) {
        struct engine_options o = rig_options();
        o.prefix_cache = (int)round;
        o.context_max = 400;
        rig_engine(&r, o, RIG_RUNS);
        for (size_t i = 0; i < 12; i++) {
            struct gen *g = rig_gen(90, 66 + i * 20, &p);
            rig_submit(&r, g);
            rig_take(g, round ? &warm : &cold[i]);
            if (round)
                rig_expect_same(&cold[i], &warm);
        }
        rig_close_engine(&r);
    }
    rig_unload(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs_to_length_and_stop),
        cmocka_unit_test(test_stop_id_comes_with_the_end),
        cmocka_unit_test(test_ends_at_the_context),
        cmocka_unit_test(test_prompt_only),
        cmocka_unit_test(test_what_never_fits_is_refused),
        cmocka_unit_test(test_queue_full),
        cmocka_unit_test(test_cancel_in_prefill),
        cmocka_unit_test(test_cancel_in_decode),
        cmocka_unit_test(test_cancel_before_the_first_step),
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_close_ends_all),
        cmocka_unit_test(test_same_among_others),
        cmocka_unit_test(test_same_in_any_chunks),
        cmocka_unit_test(test_same_when_put_back),
        cmocka_unit_test(test_prompt_logprobs_with_the_prefix_cache),
        cmocka_unit_test(test_salts_do_not_share),
        cmocka_unit_test(test_prefix_under_way_is_shared),
        cmocka_unit_test(test_choices),
        cmocka_unit_test(test_rotary_classes),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

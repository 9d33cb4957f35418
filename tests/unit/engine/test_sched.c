/* The scheduler's rules, one by one (tests/sim drives them at random). */
#include "engine/sched.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SEQS_MAX 8
#define T        KV_PAGE_TOKENS

struct rig {
    struct kv kv;
    struct sched_cost cost;
    struct sched_input in;
    struct sched_plan plan;
    struct seq seqs[SEQS_MAX], *running[SEQS_MAX], *waiting[SEQS_MAX];
    size_t n_seqs, rows[SEQS_MAX], admit[SEQS_MAX], admit_rows[SEQS_MAX];
};

static void rig_open(struct rig *r, size_t n_pages)
{
    struct err err = {0};
    memset(r, 0, sizeof *r);
    assert_true(kv_open(&r->kv, n_pages, &err));
    r->cost = (struct sched_cost){.base_ns = 1e6, .stream_ns = 1e6, .work_ns = 1e6, .work_tried = 1e9};
    r->in = (struct sched_input){
        .kv = &r->kv, .cost = &r->cost, .limits = {1024, SEQS_MAX, 200}, .running = r->running, .waiting = r->waiting};
    r->plan = (struct sched_plan){.rows = r->rows, .admit = r->admit, .admit_rows = r->admit_rows};
}

static void rig_close(struct rig *r)
{
    for (size_t i = 0; i < r->n_seqs; i++)
        seq_release(&r->seqs[i]);
    kv_close(&r->kv);
}

/* n_prompt tokens that start with `first`; n_max of prompt and output. Waits. */
static struct seq *arrive(struct rig *r, int32_t first, size_t n_prompt, size_t n_max)
{
    struct seq *s = &r->seqs[r->n_seqs];
    int32_t *ids = malloc(n_prompt * sizeof *ids);
    assert_non_null(ids);
    for (size_t i = 0; i < n_prompt; i++)
        ids[i] = first + (int32_t)i;
    assert_true(seq_init(s, ids, n_prompt, n_max));
    free(ids);
    s->cache = SEQ_CACHE_USE;
    s->arrival = r->n_seqs++;
    r->waiting[r->in.n_waiting++] = s;
    return s;
}

/* The last that arrived runs, with n_computed tokens done. */
static struct seq *start(struct rig *r, size_t n_computed)
{
    struct seq *s = r->waiting[--r->in.n_waiting];
    r->running[r->in.n_running++] = s;
    seq_take_prefix(&r->kv, s);
    assert_true(seq_take_pages(&r->kv, s, n_computed));
    seq_computed(&r->kv, s, n_computed - s->n_computed);
    return s;
}

static struct seq *stream(struct rig *r, int32_t first, size_t n_prompt, size_t n_max)
{
    arrive(r, first, n_prompt, n_max);
    return start(r, n_prompt - 1);
}

static void test_streams_go_every_step(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, 64);
    for (int32_t i = 0; i < 4; i++)
        stream(&r, 1000 * i, 40, 80);
    sched_plan(&r.in, &r.plan);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(r.rows[i], 1);
    assert_int_equal(r.plan.n_single, 4);
    assert_int_equal(r.plan.n_prompt, 0);
    rig_close(&r);
}

/* 200 ms of stall: 100 ms, of which 1 + 2 go to the streams, 97 rows of 1 ms. Without streams: the whole prompt. */
static void test_prompt_rows_within_the_stall(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, 64);
    stream(&r, 0, 40, 80);
    stream(&r, 1000, 40, 80);
    arrive(&r, 5000, 240, 250);
    sched_plan(&r.in, &r.plan);
    assert_int_equal(r.plan.n_admit, 1);
    assert_int_equal(r.admit_rows[0], 97);
    r.cost.depth = 100; /* 97 = n + n^2 / 200 */
    sched_plan(&r.in, &r.plan);
    assert_int_equal(r.admit_rows[0], 71);
    r.cost.work_ns = 1e9;
    sched_plan(&r.in, &r.plan);
    assert_int_equal(r.admit_rows[0], SCHED_PREFILL_ROWS_MIN);
    r.in.n_running = 0;
    r.cost.work_ns = 1e6;
    sched_plan(&r.in, &r.plan);
    assert_int_equal(r.admit_rows[0], 240);
    rig_close(&r);
}

static void test_long_prompt_leaves_half(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, 128);
    stream(&r, 0, 40, 80);
    struct seq *book = arrive(&r, 5000, 1000, 1010);
    start(&r, 64);
    arrive(&r, 9000, 20, 30);
    sched_plan(&r.in, &r.plan);
    assert_int_equal(r.plan.n_admit, 1);
    assert_int_equal(r.admit_rows[0], 20); /* a short question goes at once */
    assert_int_equal(r.rows[1], 98 - 20);  /* and what it leaves is the book's */
    assert_ptr_equal(r.running[1], book);
    arrive(&r, 20000, 1000, 1010);
    sched_plan(&r.in, &r.plan);
    assert_int_equal(r.rows[1], 49);
    assert_int_equal(r.plan.n_prompt, 98);
    rig_close(&r);
}

static void test_nobody_overtakes_for_being_small(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, 12);
    stream(&r, 0, 4 * T, 5 * T);
    arrive(&r, 1000, 8 * T, 9 * T);
    arrive(&r, 5000, 4, 8);
    sched_plan(&r.in, &r.plan);
    assert_int_equal(r.plan.n_admit, 0);
    seq_drop(&r.kv, r.running[0]);
    r.in.n_running = 0;
    sched_plan(&r.in, &r.plan);
    assert_int_equal(r.plan.n_admit, 2);
    rig_close(&r);
}

static void test_streams_max(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, 64);
    r.in.limits.streams_max = 3;
    stream(&r, 0, 40, 80);
    for (int32_t i = 1; i < 5; i++)
        arrive(&r, 1000 * i, 4, 8);
    sched_plan(&r.in, &r.plan);
    assert_int_equal(r.plan.n_admit, 2);
    rig_close(&r);
}

static void test_youngest_is_put_back(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, 6);
    stream(&r, 0, 2 * T + 1, 4 * T); /* needs a page in this step */
    stream(&r, 1000, 2 * T, 4 * T);
    stream(&r, 2000, T, 4 * T);
    assert_true(seq_take_pages(&r.kv, r.running[2], 2 * T));
    arrive(&r, 3000, 1, 2);
    sched_plan(&r.in, &r.plan);
    assert_int_equal(r.plan.n_put_back, 1);
    assert_int_equal(r.plan.n_admit, 0); /* not with the pages of those put back */
    assert_int_equal(r.rows[0], 1);
    assert_int_equal(r.rows[1], 1);
    assert_int_equal(r.plan.n_single, 2);
    rig_close(&r);
}

static void test_prefix_under_way_lets_others_go_first(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, 64);
    arrive(&r, 0, 300, 310);
    struct seq *first = start(&r, T);
    arrive(&r, 0, 5 * T, 6 * T);
    arrive(&r, 7000, 20, 30);
    sched_plan(&r.in, &r.plan);
    assert_int_equal(r.plan.n_admit, 1);
    assert_int_equal(r.admit[0], 1);
    first->cache = SEQ_CACHE_OFF; /* shares nothing: nothing to wait for */
    sched_plan(&r.in, &r.plan);
    assert_int_equal(r.plan.n_admit, 2);
    first->cache = SEQ_CACHE_USE;
    assert_true(seq_take_pages(&r.kv, first, 4 * T));
    seq_computed(&r.kv, first, 3 * T);
    sched_plan(&r.in, &r.plan); /* all that can be shared is there */
    assert_int_equal(r.plan.n_admit, 2);
    assert_int_equal(r.admit_rows[0], T);
    rig_close(&r);
}

/* Two that arrive together: the second waits for what the first is about to compute. */
static void test_prefix_of_one_admitted_in_the_same_plan(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, 64);
    arrive(&r, 0, 3 * T, 4 * T);
    arrive(&r, 0, 3 * T, 4 * T);
    sched_plan(&r.in, &r.plan);
    assert_int_equal(r.plan.n_admit, 1);
    assert_int_equal(r.admit[0], 0);
    rig_close(&r);
}

static void test_costs_are_learnt(void **state)
{
    (void)state;
    struct sched_cost c = {0};
    for (size_t i = 0; i < 400; i++) {
        struct sched_plan p = {.n_single = i % 7, .n_prompt = i % 3 ? 0 : 50 + i % 40};
        p.work = (double)p.n_prompt;
        sched_learn(&c, &p, (uint64_t)(5e6 + 1e6 * (double)p.n_single + 2e5 * p.work));
    }
    struct sched_plan ask = {.n_single = 4, .n_prompt = 60, .work = 60};
    assert_true(sched_predict_ns(&c, &ask) > 0.9 * 21e6 && sched_predict_ns(&c, &ask) < 1.15 * 21e6);
    sched_learn(&c, &ask, 60000000); /* slower is believed at once, and forgotten when it has passed */
    assert_true(sched_predict_ns(&c, &ask) > 0.95 * 60e6);
    sched_learn(&c, &ask, 21000000);
    assert_true(sched_predict_ns(&c, &ask) > 1.5 * 21e6);
    for (size_t i = 0; i < 5; i++)
        sched_learn(&c, &ask, 21000000);
    assert_true(sched_predict_ns(&c, &ask) < 1.15 * 21e6);
}

/* Neither neighbours that take time at random nor hours without a prompt spoil what is known of prompts. */
static void test_costs_outlast_disturbance(void **state)
{
    (void)state;
    struct sched_cost c = {0};
    struct sched_plan streams = {.n_single = 5}, prompt = {.n_single = 5, .n_prompt = 60, .work = 60};
    for (size_t i = 0; i < 1000; i++) {
        double slower = i % 5 == 3 ? 4 : 1 + 0.1 * (double)(i * 7919 % 7);
        sched_learn(&c, &prompt, (uint64_t)(22e6 * slower));
        sched_learn(&c, &streams, (uint64_t)(10e6 * slower));
    }
    for (size_t i = 0; i < 100000; i++)
        sched_learn(&c, &streams, 10000000 + i % 2 * 300000);
    assert_true(sched_predict_ns(&c, &streams) > 9.5e6 && sched_predict_ns(&c, &streams) < 11e6);
    assert_true(sched_predict_ns(&c, &prompt) > 0.9 * 22e6 && sched_predict_ns(&c, &prompt) < 1.7 * 22e6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streams_go_every_step),
        cmocka_unit_test(test_prompt_rows_within_the_stall),
        cmocka_unit_test(test_long_prompt_leaves_half),
        cmocka_unit_test(test_nobody_overtakes_for_being_small),
        cmocka_unit_test(test_streams_max),
        cmocka_unit_test(test_youngest_is_put_back),
        cmocka_unit_test(test_prefix_under_way_lets_others_go_first),
        cmocka_unit_test(test_prefix_of_one_admitted_in_the_same_plan),
        cmocka_unit_test(test_costs_are_learnt),
        cmocka_unit_test(test_costs_outlast_disturbance),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

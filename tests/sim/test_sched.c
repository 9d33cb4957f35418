/* A seeded simulator: the engine's own scheduler, sequences and page ledger with a made-up model whose tokens are random
 * and whose clock is a cost model. Thousands of requests of random lengths, some with common prefixes, arrive in bursts,
 * get cancelled, run short of pages; after every step the promises of sched.h are checked.
 *
 * SIM_SEED=n runs the scenarios from that seed on, SIM_RUNS=n so many of them (default 40). A failure prints the seed. */
#include "base/rand.h"
#include "engine/sched.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define RUNS_DEFAULT   40
#define REQUESTS       120
#define PREFIXES       5
#define PREFIX_TOKENS  400
#define LIVE_MAX       256
#define STEPS_MAX      200000
#define STEPS_TO_LEARN 20 /* before these the costs are not known */

struct request {
    struct seq seq;       /* first */
    size_t id, n_outputs; /* wanted */
    uint64_t cancel_ns, arrive_ns, last_token_ns;
    size_t ends, arrived_step;
    size_t tokens_before; /* of all that were inside when it arrived, and its own, outputs too */
    bool inside, running;
};

struct sim {
    uint64_t seed, draws, now_ns;
    struct kv kv;
    struct sched_cost cost;
    struct sched_limits limits;
    struct sched_plan plan;
    struct seq *waiting[LIVE_MAX], *running[LIVE_MAX];
    size_t n_waiting, n_running;
    struct request requests[REQUESTS];
    size_t n_arrived, n_ended, steps, put_backs, hits;
    double true_base, true_stream, true_row, true_depth, noise;
    bool shares;
};

static struct sim sim; /* large */

#define expect(cond) \
    do { \
        if (!(cond)) \
            fail_msg("SIM_SEED=%llu SIM_RUNS=1, step %zu: %s", (unsigned long long)sim.seed, sim.steps, #cond); \
    } while (0)

static uint64_t draw(uint64_t below)
{
    return (uint64_t)(rand_uniform(sim.seed, 77, sim.draws++) * (double)below);
}

static struct request *request_of(struct seq *s)
{
    return (struct request *)s;
}

/* ---- scenario ---- */

static void make_request(struct request *r, size_t id, uint64_t arrive_ns)
{
    static int32_t ids[8192];
    size_t n_prompt = 1 + draw(draw(4) ? 120 : 1500), n_shared = 0;
    if (draw(2)) {
        uint64_t prefix = draw(PREFIXES);
        n_shared = draw(PREFIX_TOKENS);
        for (size_t i = 0; i < n_shared; i++)
            ids[i] = (int32_t)(prefix * 1000 + i % 700);
    }
    if (draw(8) == 0)
        n_prompt = 0; /* nothing of its own: whole prompts are equal */
    for (size_t i = 0; i < n_prompt; i++)
        ids[n_shared + i] = (int32_t)draw(30000);
    n_prompt += n_shared;
    if (n_prompt == 0)
        ids[n_prompt++] = 7;
    memset(r, 0, sizeof *r);
    size_t room = (sim.kv.n_pages) * KV_PAGE_TOKENS;
    n_prompt = n_prompt < room - 1 ? n_prompt : room - 1;
    r->n_outputs = draw(draw(3) ? 60 : 500);
    r->n_outputs = n_prompt + r->n_outputs < room ? r->n_outputs : room - n_prompt;
    assert_true(seq_init(&r->seq, ids, n_prompt, n_prompt + r->n_outputs));
    r->id = id;
    r->seq.root.salt = draw(5) == 0;
    r->seq.cache = sim.shares ? (draw(10) ? SEQ_CACHE_USE : SEQ_CACHE_WRITE) : SEQ_CACHE_OFF;
    r->arrive_ns = arrive_ns;
    if (draw(6) == 0)
        r->cancel_ns = arrive_ns + draw(3000000000u);
}

static void make_scenario(uint64_t seed)
{
    memset(&sim, 0, sizeof sim);
    sim.seed = seed;
    size_t streams = 1 + draw(draw(2) ? 8 : 64), rows = streams + draw(512);
    sim.limits = (struct sched_limits){rows, streams, 20 + (unsigned)draw(300)};
    size_t pages = 8 + draw(draw(2) ? 60 : 1500);
    assert_true(kv_open(&sim.kv, pages, NULL));
    sim.shares = draw(4) != 0;
    /* half of the stall limit holds the streams' rows and the least of prompt rows: the promise can be kept */
    double half_ns = sim.limits.stall_ms_max * 5e5;
    sim.true_base = half_ns * (0.05 + 0.2 * rand_uniform(seed, 1, 0));
    sim.true_stream = half_ns * 0.2 * rand_uniform(seed, 1, 1) / (double)streams;
    sim.true_row = half_ns / 4 / SCHED_PREFILL_ROWS_MIN * rand_uniform(seed, 1, 2);
    sim.true_depth = 500 + 5000 * rand_uniform(seed, 1, 3);
    sim.noise = 0.2 * rand_uniform(seed, 1, 4);
    sim.cost.depth = sim.true_depth * (0.5 + 1.5 * rand_uniform(seed, 1, 5)); /* known roughly */
    sim.plan.rows = calloc(streams, sizeof(size_t));
    sim.plan.admit = calloc(streams, sizeof(size_t));
    sim.plan.admit_rows = calloc(streams, sizeof(size_t));
    uint64_t at = 0;
    for (size_t i = 0; i < REQUESTS; i++) {
        if (draw(3) == 0) /* else in a burst */
            at += draw(2000000000u);
        make_request(&sim.requests[i], i, at);
    }
}

static void end_scenario(void)
{
    for (size_t i = 0; i < REQUESTS; i++)
        seq_release(&sim.requests[i].seq);
    free(sim.plan.rows);
    free(sim.plan.admit);
    free(sim.plan.admit_rows);
    kv_close(&sim.kv);
}

/* ---- lists ---- */

static void insert(struct seq **list, size_t *n, struct seq *s)
{
    size_t at = (*n)++;
    for (; at > 0 && list[at - 1]->arrival > s->arrival; at--)
        list[at] = list[at - 1];
    list[at] = s;
}

static void take_out(struct seq **list, size_t *n, struct seq *s)
{
    size_t at = 0;
    while (list[at] != s)
        at++;
    for (--*n; at < *n; at++)
        list[at] = list[at + 1];
}

static void end_request(struct request *r)
{
    /* The oldest computes at least a row a step, and whoever overtakes computes what the overtaken waits for. */
    expect(sim.steps - r->arrived_step <= 2 * r->tokens_before);
    take_out(r->running ? sim.running : sim.waiting, r->running ? &sim.n_running : &sim.n_waiting, &r->seq);
    seq_drop(&sim.kv, &r->seq);
    r->inside = r->running = false;
    r->ends++;
    sim.n_ended++;
}

static void arrive_and_cancel(void)
{
    while (sim.n_arrived < REQUESTS && sim.n_waiting + sim.n_running < LIVE_MAX &&
           sim.requests[sim.n_arrived].arrive_ns <= sim.now_ns) {
        struct request *r = &sim.requests[sim.n_arrived];
        r->seq.arrival = sim.n_arrived++;
        r->inside = true;
        r->arrived_step = sim.steps;
        for (size_t i = 0; i < sim.n_arrived; i++)
            r->tokens_before += sim.requests[i].inside ? sim.requests[i].seq.n_prompt + sim.requests[i].n_outputs : 0;
        insert(sim.waiting, &sim.n_waiting, &r->seq);
    }
    for (size_t i = 0; i < sim.n_arrived; i++) {
        struct request *r = &sim.requests[i];
        if (r->inside && r->cancel_ns && r->cancel_ns <= sim.now_ns)
            end_request(r);
    }
}

/* ---- checks ---- */

/* References counted from the sequences, against the ledger's. */
static void check_ledger(void)
{
    static uint32_t refs[4096];
    size_t held = 0;
    memset(refs, 0, sizeof refs);
    for (size_t i = 0; i < sim.n_running; i++) {
        const struct seq *s = sim.running[i];
        for (size_t p = 0; p < s->n_pages; p++)
            held += refs[s->pages[p]]++ == 0;
        expect(s->n_computed <= s->n_pages * KV_PAGE_TOKENS);
        expect(s->n_computed < s->n_total && s->n_pages <= s->pages_max);
    }
    for (size_t i = 0; i < sim.n_waiting; i++)
        expect(sim.waiting[i]->n_pages == 0);
    for (size_t p = 0; p < sim.kv.n_pages; p++)
        expect(sim.kv.pages[p].refs == refs[p]);
    expect(sim.kv.n_held == held && sim.kv.n_free + sim.kv.n_held + sim.kv.n_cached == sim.kv.n_pages);
}

/* A page that two sequences share holds the same prefix for both, under the same root. */
static void check_sharing(void)
{
    static const struct seq *owner[4096];
    memset(owner, 0, sizeof owner);
    for (size_t i = 0; i < sim.n_running; i++) {
        const struct seq *s = sim.running[i];
        for (size_t p = 0; p < s->n_pages; p++) {
            const struct seq *o = owner[s->pages[p]];
            owner[s->pages[p]] = s;
            if (!o)
                continue;
            expect(o->root.salt == s->root.salt && o->pages[p] == s->pages[p]);
            expect(memcmp(o->tokens, s->tokens, (p + 1) * KV_PAGE_TOKENS * sizeof *s->tokens) == 0);
        }
    }
}

/* A plan depends on what goes in alone. */
static void check_pure(const struct sched_input *in)
{
    static size_t rows[LIVE_MAX], admit[LIVE_MAX], admit_rows[LIVE_MAX];
    struct sched_plan again = {.rows = rows, .admit = admit, .admit_rows = admit_rows};
    const struct sched_plan *p = &sim.plan;
    sched_plan(in, &again);
    expect(again.n_put_back == p->n_put_back && again.n_admit == p->n_admit && again.work == p->work);
    expect(memcmp(again.rows, p->rows, (in->n_running - p->n_put_back) * sizeof *rows) == 0);
    expect(memcmp(again.admit, p->admit, p->n_admit * sizeof *admit) == 0);
    expect(memcmp(again.admit_rows, p->admit_rows, p->n_admit * sizeof *admit) == 0);
}

static void check_plan(const struct sched_input *in)
{
    const struct sched_plan *p = &sim.plan;
    size_t rows = 0, stay = in->n_running - p->n_put_back;
    expect(p->n_put_back < in->n_running || in->n_running == 0);
    expect(p->n_put_back == 0 || p->n_admit == 0);
    expect(stay + p->n_admit <= in->limits.streams_max);
    for (size_t i = 0; i < stay; i++) {
        rows += p->rows[i];
        expect(in->running[i]->n_computed + p->rows[i] <= in->running[i]->n_total);
    }
    for (size_t k = 0; k < p->n_admit; k++) {
        rows += p->admit_rows[k];
        expect(p->admit_rows[k] > 0 && p->admit[k] < in->n_waiting && (k == 0 || p->admit[k] > p->admit[k - 1]));
    }
    expect(rows == p->n_single + p->n_prompt && rows <= in->limits.rows_max);
    /* the oldest moves on, except after a put-back whose shared pages were not counted */
    expect(rows > 0 || p->n_put_back > 0 || in->n_running + in->n_waiting == 0);
    expect(in->n_running == 0 || p->rows[0] > 0 || p->n_put_back > 0);
    /* only those whose prefix is under way are overtaken */
    for (size_t k = 0; k < p->n_admit; k++) {
        for (size_t w = k ? p->admit[k - 1] + 1 : 0; w < p->admit[k]; w++) {
            const struct seq *s = in->waiting[w];
            bool related = false;
            for (size_t i = 0; i < stay && !related; i++)
                related = in->running[i]->tokens[0] == s->tokens[0];
            for (size_t a = 0; a < k && !related; a++)
                related = in->waiting[p->admit[a]]->tokens[0] == s->tokens[0];
            expect(related);
        }
    }
}

/* ---- a step ---- */

static uint64_t step_cost(size_t singles, double work)
{
    double ns = sim.true_base + sim.true_stream * (double)singles + sim.true_row * work;
    return (uint64_t)(ns * (1 + sim.noise * rand_uniform(sim.seed, 2, sim.steps)));
}

static void execute(void)
{
    struct sched_plan *p = &sim.plan;
    struct seq *joined[LIVE_MAX];
    size_t rows[REQUESTS] = {0};
    for (size_t k = 0; k < p->n_put_back; k++) {
        struct request *r = request_of(sim.running[sim.n_running - 1]);
        take_out(sim.running, &sim.n_running, &r->seq);
        seq_drop(&sim.kv, &r->seq);
        r->running = false;
        r->last_token_ns = 0;
        sim.put_backs++;
        insert(sim.waiting, &sim.n_waiting, &r->seq);
    }
    for (size_t i = 0; i < sim.n_running; i++)
        rows[request_of(sim.running[i])->id] = p->rows[i];
    for (size_t k = 0; k < p->n_admit; k++)
        joined[k] = sim.waiting[p->admit[k]];
    for (size_t k = 0; k < p->n_admit; k++) {
        struct request *r = request_of(joined[k]);
        take_out(sim.waiting, &sim.n_waiting, &r->seq);
        seq_take_prefix(&sim.kv, &r->seq);
        sim.hits += r->seq.n_computed;
        r->running = true;
        rows[r->id] = p->admit_rows[k];
        insert(sim.running, &sim.n_running, &r->seq);
    }
    double work = 0;
    for (size_t i = 0; i < sim.n_running; i++) {
        struct seq *s = sim.running[i];
        size_t n = rows[request_of(s)->id];
        expect(seq_take_pages(&sim.kv, s, s->n_computed + n)); /* the plan promised that they are there */
        if (s->n_total - s->n_computed > 1)
            work += (double)n * (1 + ((double)s->n_computed + (double)n / 2) / sim.true_depth);
    }
    uint64_t took = step_cost(p->n_single, work);
    sim.now_ns += took;
    sched_learn(&sim.cost, p, took);
    for (size_t i = 0; i < sim.n_running;) {
        struct request *r = request_of(sim.running[i]);
        struct seq *s = &r->seq;
        seq_computed(&sim.kv, s, rows[r->id]);
        if (rows[r->id] == 0)
            r->last_token_ns = 0; /* no page for it: only when they are short */
        if (s->n_computed < s->n_total || s->n_total - s->n_prompt == r->n_outputs) {
            if (s->n_computed == s->n_total)
                end_request(r);
            else
                i++;
            continue;
        }
        if (r->last_token_ns && sim.steps > STEPS_TO_LEARN)
            expect(sim.now_ns - r->last_token_ns <= sim.limits.stall_ms_max * 1000000ull);
        r->last_token_ns = sim.now_ns;
        s->tokens[s->n_total++] = (int32_t)draw(30000);
        if (s->n_total - s->n_prompt == r->n_outputs)
            end_request(r);
        else
            i++;
    }
}

static void run(uint64_t seed)
{
    make_scenario(seed);
    while (sim.n_ended < REQUESTS) {
        arrive_and_cancel();
        if (sim.n_running + sim.n_waiting == 0) {
            if (sim.n_arrived < REQUESTS)
                sim.now_ns = sim.requests[sim.n_arrived].arrive_ns;
            continue;
        }
        struct sched_input in = {.kv = &sim.kv,
                                 .cost = &sim.cost,
                                 .limits = sim.limits,
                                 .running = sim.running,
                                 .n_running = sim.n_running,
                                 .waiting = sim.waiting,
                                 .n_waiting = sim.n_waiting};
        sched_plan(&in, &sim.plan);
        check_plan(&in);
        check_pure(&in);
        execute();
        check_ledger();
        check_sharing();
        expect(++sim.steps < STEPS_MAX);
    }
    for (size_t i = 0; i < REQUESTS; i++)
        expect(sim.requests[i].ends == 1);
    expect(sim.kv.n_held == 0);
    end_scenario();
}

static uint64_t number_from(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static void test_random_scenarios(void **state)
{
    (void)state;
    uint64_t seed = number_from("SIM_SEED", rand_system_u64() % 1000000), runs = number_from("SIM_RUNS", RUNS_DEFAULT);
    size_t steps = 0, put_backs = 0, hits = 0;
    print_message("SIM_SEED=%llu SIM_RUNS=%llu\n", (unsigned long long)seed, (unsigned long long)runs);
    for (uint64_t i = 0; i < runs; i++) {
        run(seed + i);
        steps += sim.steps;
        put_backs += sim.put_backs;
        hits += sim.hits;
    }
    print_message("%zu steps, %zu put back, %zu tokens from the prefix cache\n", steps, put_backs, hits);
    assert_true(put_backs > 0 && hits > 0); /* else the scenarios do not try what they should */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_scenarios)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

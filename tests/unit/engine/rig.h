/* A real small model and an engine around it, for the tests of src/engine. With a gate, the engine stops after each step
 * until the test lets it go on, so that every state can be met on purpose. */
#ifndef INFERD_TESTS_ENGINE_RIG_H
#define INFERD_TESTS_ENGINE_RIG_H

#include "base/clock.h"
#include "base/rand.h"
#include "engine/engine.h"

#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define RIG_MODEL   "tests/golden/models/llama-tied-f32"
#define RIG_CONTEXT 512
#define RIG_ROWS    256
#define RIG_OUTPUTS 128

enum rig_gate { RIG_RUNS, RIG_GATED };

struct rig {
    struct checkpoint *c;
    struct backend *b;
    struct model *m;
    struct engine *e;
    enum rig_gate gate;
    sem_t go, stepped;
    atomic_int open; /* the gate stays open */
};

static void rig_notified(void *arg)
{
    struct rig *r = arg;
    if (r->gate == RIG_RUNS || atomic_load(&r->open))
        return;
    sem_post(&r->stepped);
    sem_wait(&r->go);
}

static inline void rig_load(struct rig *r, const char *path, unsigned threads)
{
    struct err err = {0};
    struct backend_options bo = {.n_threads = threads, .isa = "auto"};
    struct model_options mo = {.profile = PROFILE_FP16, .kv_type = KV_F32, .rows_max = RIG_ROWS, .logit_rows_max = RIG_ROWS};
    memset(r, 0, sizeof *r);
    sem_init(&r->go, 0, 0);
    sem_init(&r->stepped, 0, 0);
    r->c = checkpoint_open(path, &err);
    r->b = backend_open_cpu(&bo, &err);
    r->m = r->c && r->b ? model_load(r->c, r->b, &mo, NULL, NULL, &err) : NULL;
    if (!r->m)
        fail_msg("%s: %s", path, err.text);
}

static inline struct engine_options rig_options(void)
{
    return (struct engine_options){.pages = 400,
                                   .streams_max = 64,
                                   .queue_max = 64,
                                   .rows_max = RIG_ROWS,
                                   .stall_ms_max = 1000,
                                   .context_max = RIG_CONTEXT,
                                   .prefix_cache = 1};
}

static inline void rig_engine(struct rig *r, struct engine_options o, enum rig_gate gate)
{
    struct err err = {0};
    r->gate = gate;
    atomic_store(&r->open, 0);
    o.notify = rig_notified;
    o.notify_arg = r;
    r->e = engine_open(r->m, &o, &err);
    if (!r->e)
        fail_msg("%s", err.text);
}

/* Lets the engine run its next loop and waits for its end. The first one starts when something is submitted. */
static inline void rig_step(struct rig *r)
{
    sem_wait(&r->stepped);
    sem_post(&r->go);
}

static inline void rig_open_gate(struct rig *r)
{
    atomic_store(&r->open, 1);
    sem_post(&r->go);
}

static inline void rig_close_engine(struct rig *r)
{
    struct engine_counters c;
    rig_open_gate(r);
    engine_counters(r->e, &c);
    engine_close(r->e);
    r->e = NULL;
    while (sem_trywait(&r->go) == 0 || sem_trywait(&r->stepped) == 0)
        ;
}

static inline void rig_unload(struct rig *r)
{
    model_free(r->m);
    backend_close(r->b);
    checkpoint_close(r->c);
    sem_destroy(&r->go);
    sem_destroy(&r->stepped);
}

static inline struct gen_params rig_params(void)
{
    return (struct gen_params){.max_tokens = 8, .top_p = 1, .repetition_penalty = 1, .top_logprobs = -1, .prompt_logprobs = -1};
}

/* n_prompt ids that depend on `family`; equal families start with equal ids. */
static inline struct gen *rig_gen(uint64_t family, size_t n_prompt, const struct gen_params *p)
{
    struct err err = {0};
    int32_t ids[RIG_CONTEXT];
    assert_true(n_prompt <= RIG_CONTEXT);
    for (size_t i = 0; i < n_prompt; i++)
        ids[i] = (int32_t)(rand_uniform(family, 3, i) * 250);
    struct gen *g = gen_new(ids, n_prompt, p, &err);
    if (!g)
        fail_msg("%s", err.text);
    return g;
}

static inline void rig_submit(struct rig *r, struct gen *g)
{
    struct err err = {0};
    if (!engine_submit(r->e, g, &err))
        fail_msg("%s", err.text);
}

static inline void rig_wait(const struct gen *g)
{
    uint64_t end = clock_mono_ns() + 60000000000u;
    while (!gen_done(g)) {
        assert_true(clock_mono_ns() < end);
        usleep(200);
    }
}

/* Counters once nothing runs. */
static inline struct engine_counters rig_settled(struct rig *r)
{
    struct engine_counters c;
    uint64_t end = clock_mono_ns() + 10000000000u;
    do {
        assert_true(clock_mono_ns() < end);
        engine_counters(r->e, &c);
    } while (c.running || c.waiting || c.pages_held);
    return c;
}

/* What a gen produced, kept after it. */
struct rig_result {
    int32_t ids[RIG_CONTEXT];
    struct gen_logprob logprobs[RIG_OUTPUTS], prompt[RIG_CONTEXT];
    size_t n, n_prompt, n_cached, n_preempted;
    enum gen_finish finish;
};

static inline void rig_take(struct gen *g, struct rig_result *out)
{
    rig_wait(g);
    struct gen_view v = gen_poll(g);
    struct gen_stats s = gen_stats(g);
    memset(out, 0, sizeof *out);
    out->n = v.n;
    out->finish = v.finish;
    out->n_prompt = s.n_prompt;
    out->n_cached = s.n_cached;
    out->n_preempted = s.n_preempted;
    memcpy(out->ids, v.ids, v.n * sizeof *v.ids);
    if (v.logprobs)
        memcpy(out->logprobs, v.logprobs, (v.n < RIG_OUTPUTS ? v.n : RIG_OUTPUTS) * sizeof *v.logprobs);
    if (gen_prompt_logprobs(g))
        memcpy(out->prompt, gen_prompt_logprobs(g), s.n_prompt * sizeof *out->prompt);
    gen_free(g);
}

static inline void rig_expect_same(const struct rig_result *a, const struct rig_result *b)
{
    assert_int_equal(a->n, b->n);
    assert_int_equal(a->finish, b->finish);
    assert_memory_equal(a->ids, b->ids, sizeof a->ids);
    assert_memory_equal(a->logprobs, b->logprobs, sizeof a->logprobs);
    assert_memory_equal(a->prompt, b->prompt, sizeof a->prompt);
}

#endif

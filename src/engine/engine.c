/* The engine's thread: one step after the other; see engine.h.
 *
 *   inbox -> waiting -> running -> done
 *              ^-- put back ---'      cancelled and timed-out gens leave from anywhere, before the next step
 *
 * sched.h decides, this file does: both lists are in order of arrival, and a plan names who leaves, joins and computes
 * how many rows. Who is put back drops its pages and computes its tokens again later: the same bytes, because nothing
 * that is computed depends on when. */
#include "base/clock.h"
#include "engine/gen.h"
#include "engine/sampler.h"
#include "engine/sched.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* A multiplication of attention takes so much longer than one with weights: 2.4 times with 16-bit activations and VNNI, 9 times
 * with int8 on tiles (SPEED.md: shares of a prefill of 512). Off by that much, steps deep in a prompt drift from what is
 * foreseen by less than their pace follows. */
#define ATTENTION_COST    2
#define TOUCH_AFTER_NS    50000000u          /* without work: who asks again at once is not to wait for it */
#define TOUCH_AHEAD_BYTES ((size_t)64 << 20) /* of pages, ready before they are taken */
#define TOUCH_BYTES       ((size_t)2 << 20)  /* at a time: what a request that comes meanwhile waits for */

struct engine {
    struct model *model;
    struct engine_options o;
    struct kv_cache cache;
    struct backend *backend;
    size_t page_bytes, cache_bytes, touched_bytes; /* of the cache; up to where touch_pages came */
    struct kv kv;
    struct sampler *samplers; /* one a compute thread */
    size_t n_samplers;
    struct sched_cost cost;
    pthread_t thread;
    pthread_mutex_t lock; /* inbox, closing */
    pthread_cond_t wake;
    struct gen *inbox, **inbox_last;
    int closing;
    _Atomic size_t n_inside; /* submitted and not done */
    struct seq **waiting;    /* [queue_max + streams_max] */
    struct seq **running;    /* [streams_max] */
    size_t n_waiting, n_running;
    uint64_t arrivals;
    size_t n_vocab;
    /* the step */
    struct sched_plan plan;
    int32_t *ids, *positions, *logit_rows;
    struct batch_seq *seqs;
    struct gen **in_step; /* [streams_max] of seqs */
    struct gen **row_gen; /* [rows_max] of logit rows */
    const float *logits;  /* [logit rows][n_vocab] */
    _Atomic uint64_t running_now, pages_held, pages_cached, steps, rows, prompt_tokens, output_tokens, preemptions,
        prefix_queries, prefix_hits, last_step_ns, cancelled_tokens;
};

static void add(_Atomic uint64_t *to, uint64_t n)
{
    atomic_fetch_add_explicit(to, n, memory_order_relaxed);
}

static void count(_Atomic uint64_t *to, struct metric *told, uint64_t n)
{
    add(to, n);
    metric_add(told, (double)n);
}

static void set(_Atomic uint64_t *to, uint64_t n)
{
    atomic_store_explicit(to, n, memory_order_relaxed);
}

static struct gen *gen_of(struct seq *s)
{
    return (struct gen *)s;
}

/* ---- lists in order of arrival ---- */

static void list_insert(struct seq **list, size_t *n, struct seq *s)
{
    size_t at = *n;
    for (; at > 0 && list[at - 1]->arrival > s->arrival; at--)
        list[at] = list[at - 1];
    list[at] = s;
    ++*n;
}

static void list_remove(struct seq **list, size_t *n, size_t at)
{
    memmove(list + at, list + at + 1, (*n - at - 1) * sizeof *list);
    --*n;
}

/* ---- leaving ---- */

static void end_gen(struct engine *e, struct gen *g, enum gen_finish finish)
{
    seq_drop(&e->kv, &g->seq);
    g->stats.n_output = g->n_output;
    g->stats.finished_ns = clock_mono_ns();
    if (finish == GEN_CANCELLED || finish == GEN_TIMEOUT)
        count(&e->cancelled_tokens, e->o.metrics.cancelled_tokens, g->n_output);
    atomic_fetch_sub_explicit(&e->n_inside, 1, memory_order_relaxed);
    atomic_store_explicit(&g->finish, finish, memory_order_relaxed);
    atomic_store_explicit(&g->done, 1, memory_order_release);
}

/* Why a gen must stop before its next step; GEN_RUNNING: it need not. */
static enum gen_finish interrupted(const struct gen *g, uint64_t now)
{
    if (atomic_load_explicit(&g->cancel, memory_order_relaxed))
        return GEN_CANCELLED;
    return g->params.deadline_ns && now > g->params.deadline_ns ? GEN_TIMEOUT : GEN_RUNNING;
}

static void drop_interrupted(struct engine *e, struct seq **list, size_t *n)
{
    uint64_t now = clock_mono_ns();
    size_t kept = 0;
    for (size_t i = 0; i < *n; i++) {
        struct gen *g = gen_of(list[i]);
        enum gen_finish f = interrupted(g, now);
        if (f == GEN_RUNNING)
            list[kept++] = &g->seq;
        else
            end_gen(e, g, f);
    }
    *n = kept;
}

/* ---- joining ---- */

static void take_inbox(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    struct gen *g = e->inbox;
    e->inbox = NULL;
    e->inbox_last = &e->inbox;
    pthread_mutex_unlock(&e->lock);
    for (; g; g = g->next) {
        struct seq *s = &g->seq;
        s->arrival = e->arrivals++;
        s->root.rope_class = model_rope_class(e->model, s->n_prompt);
        if (e->o.prefix_cache)
            s->cache = g->prompt_logprobs ? SEQ_CACHE_WRITE : SEQ_CACHE_USE;
        list_insert(e->waiting, &e->n_waiting, s);
    }
}

static void join(struct engine *e, struct seq *s, size_t rows)
{
    struct gen *g = gen_of(s);
    seq_take_prefix(&e->kv, s);
    g->rows = rows;
    if (!g->stats.started_ns) {
        g->stats.started_ns = clock_mono_ns();
        g->stats.n_cached = s->n_computed;
        count(&e->prefix_queries, e->o.metrics.prefix_queries, s->n_prompt);
        count(&e->prefix_hits, e->o.metrics.prefix_hits, s->n_computed);
    }
    list_insert(e->running, &e->n_running, s);
}

/* ---- one step ---- */

static void plan_step(struct engine *e)
{
    struct sched_input in = {.kv = &e->kv,
                             .cost = &e->cost,
                             .running = e->running,
                             .n_running = e->n_running,
                             .waiting = e->waiting,
                             .n_waiting = e->n_waiting,
                             .limits = {e->o.rows_max, e->o.streams_max, e->o.stall_ms_max}};
    struct sched_plan *p = &e->plan;
    sched_plan(&in, p);
    for (size_t k = 0; k < p->n_put_back; k++) {
        struct seq *s = e->running[--e->n_running];
        seq_drop(&e->kv, s);
        gen_of(s)->stats.n_preempted++;
        count(&e->preemptions, e->o.metrics.preemptions, 1);
        list_insert(e->waiting, &e->n_waiting, s);
    }
    for (size_t i = 0; i < e->n_running; i++)
        gen_of(e->running[i])->rows = p->rows[i];
    for (size_t k = 0; k < p->n_admit; k++)
        join(e, e->waiting[p->admit[k]], p->admit_rows[k]);
    for (size_t k = p->n_admit; k-- > 0;)
        list_remove(e->waiting, &e->n_waiting, p->admit[k]);
    for (size_t i = 0; i < e->n_running; i++) {
        struct seq *s = e->running[i];
        CHECK(seq_take_pages(&e->kv, s, s->n_computed + gen_of(s)->rows));
    }
}

/* True when this step computes the row from which the next token is sampled. */
static bool reaches_end(const struct gen *g)
{
    return g->seq.n_computed + g->rows == g->seq.n_total;
}

static bool wants_prompt_logprob(const struct gen *g, size_t pos)
{
    return g->prompt_logprobs && pos + 1 < g->seq.n_prompt;
}

static void build_batch(struct engine *e, struct batch *b)
{
    *b = (struct batch){.ids = e->ids, .positions = e->positions, .seqs = e->seqs, .logit_rows = e->logit_rows};
    for (size_t i = 0; i < e->n_running; i++) {
        struct gen *g = gen_of(e->running[i]);
        const struct seq *s = &g->seq;
        if (!g->rows)
            continue;
        e->in_step[b->n_seqs] = g;
        e->seqs[b->n_seqs++] = (struct batch_seq){.pages = s->pages,
                                                  .n_pages = s->n_pages,
                                                  .row = b->n_rows,
                                                  .n_rows = g->rows,
                                                  .pos = s->n_computed,
                                                  .n_prompt = s->n_prompt};
        for (size_t r = 0; r < g->rows; r++) {
            size_t pos = s->n_computed + r;
            e->ids[b->n_rows] = s->tokens[pos];
            e->positions[b->n_rows] = (int32_t)pos;
            if ((reaches_end(g) && r + 1 == g->rows) || wants_prompt_logprob(g, pos)) {
                e->row_gen[b->n_logit_rows] = g;
                e->logit_rows[b->n_logit_rows++] = (int32_t)b->n_rows;
            }
            b->n_rows++;
        }
    }
}

static void sample_rows(void *arg, size_t begin, size_t end, unsigned thread)
{
    struct engine *e = arg;
    struct sampler *sampler = &e->samplers[thread];
    for (size_t i = begin; i < end; i++) {
        struct gen *g = e->row_gen[i];
        const float *logits = e->logits + i * e->n_vocab;
        size_t pos = (size_t)e->positions[e->logit_rows[i]];
        if (wants_prompt_logprob(g, pos)) {
            sampler_logprob(sampler, logits, g->seq.tokens[pos + 1], g->params.prompt_logprobs, &g->prompt_logprobs[pos + 1]);
        } else if (g->n_output < g->params.max_tokens) {
            g->sampled = sampler_sample(sampler, g, logits);
            if (g->logprobs && g->sampled >= 0)
                sampler_logprob(sampler, logits, g->sampled, g->params.top_logprobs, &g->logprobs[g->n_output]);
        }
    }
}

/* Appends the sampled token; returns how the gen ends, or GEN_RUNNING. */
static enum gen_finish take_token(struct engine *e, struct gen *g)
{
    if (g->n_output >= g->params.max_tokens)
        return GEN_LENGTH; /* only the prompt was asked for */
    if (g->sampled < 0) {
        err_set(&g->error, ERR_INTERNAL,
                "The model computed no finite logit after %zu tokens: its weights are damaged, or "
                "its numbers overflow.",
                g->seq.n_total);
        return GEN_ERROR;
    }
    g->seq.tokens[g->seq.n_total++] = g->sampled;
    g->n_output++;
    if (!g->stats.first_token_ns)
        g->stats.first_token_ns = clock_mono_ns();
    add(&e->output_tokens, 1);
    for (size_t i = 0; i < g->params.n_stop_ids; i++)
        if (g->params.stop_ids[i] == g->sampled)
            return GEN_STOP;
    return g->n_output >= g->params.max_tokens || g->seq.n_total >= e->o.context_max ? GEN_LENGTH : GEN_RUNNING;
}

/* After the forward: each sequence of the batch takes what it got; those that end leave. */
static void deliver(struct engine *e, const struct batch *b)
{
    for (size_t k = 0; k < b->n_seqs; k++) {
        struct gen *g = e->in_step[k];
        bool samples = reaches_end(g);
        seq_computed(&e->kv, &g->seq, g->rows);
        enum gen_finish finish = samples ? take_token(e, g) : GEN_RUNNING;
        if (finish == GEN_RUNNING) {
            atomic_store_explicit(&g->n_published, g->n_output, memory_order_release);
            continue;
        }
        size_t at = 0;
        while (e->running[at] != &g->seq)
            at++;
        list_remove(e->running, &e->n_running, at);
        end_gen(e, g, finish);
    }
}

static void publish_counters(struct engine *e)
{
    set(&e->running_now, e->n_running);
    set(&e->pages_held, e->kv.n_held);
    set(&e->pages_cached, e->kv.n_cached);
    kv_check(&e->kv);
}

static void step(struct engine *e)
{
    struct batch b;
    plan_step(e);
    build_batch(e, &b);
    publish_counters(e);
    if (b.n_rows == 0)
        return;
    uint64_t start = clock_mono_ns();
    e->logits = model_forward(e->model, &e->cache, &b);
    backend_split(e->backend, b.n_logit_rows, 1, sample_rows, e);
    uint64_t end = clock_mono_ns();
    deliver(e, &b);
    sched_learn(&e->cost, &e->plan, end - start);
    count(&e->steps, e->o.metrics.steps, 1);
    add(&e->rows, b.n_rows);
    add(&e->prompt_tokens, e->plan.n_prompt);
    set(&e->last_step_ns, end);
    metric_observe(e->o.metrics.step_rows, (double)b.n_rows);
}

static void end_all(struct engine *e)
{
    take_inbox(e);
    while (e->n_waiting)
        end_gen(e, gen_of(e->waiting[--e->n_waiting]), GEN_CANCELLED);
    while (e->n_running)
        end_gen(e, gen_of(e->running[--e->n_running]), GEN_CANCELLED);
}

static void notify(struct engine *e)
{
    publish_counters(e);
    if (e->o.notify)
        e->o.notify(e->o.notify_arg);
}

/* Where what the system has given ends, and where it should: pages that were used, and TOUCH_AHEAD_BYTES more. */
static size_t touched(const struct engine *e, size_t *wanted)
{
    size_t used = e->kv.n_used * e->page_bytes, end = used + TOUCH_AHEAD_BYTES;
    *wanted = end < e->cache_bytes ? end : e->cache_bytes;
    return e->touched_bytes > used ? e->touched_bytes : used;
}

static void touch_pages(struct engine *e)
{
    size_t end, from = touched(e, &end), bytes = end - from < TOUCH_BYTES ? end - from : TOUCH_BYTES;
    backend_touch(e->backend, (char *)e->cache.data + from, bytes);
    e->touched_bytes = from + bytes;
}

/* Has e->lock. When nothing has come for a while, has the system give memory for pages while nobody waits for it. */
static void wait_for_work(struct engine *e)
{
    bool calm = false;
    while (!e->closing && !e->inbox && !e->n_waiting && !e->n_running) {
        size_t wanted;
        if (touched(e, &wanted) >= wanted) {
            pthread_cond_wait(&e->wake, &e->lock);
        } else if (!calm) {
            uint64_t ns = clock_mono_ns() + TOUCH_AFTER_NS;
            struct timespec until = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
            calm = pthread_cond_clockwait(&e->wake, &e->lock, CLOCK_MONOTONIC, &until) == ETIMEDOUT;
        } else {
            pthread_mutex_unlock(&e->lock);
            touch_pages(e);
            pthread_mutex_lock(&e->lock);
        }
    }
}

static void *engine_main(void *arg)
{
    struct engine *e = arg;
    for (;;) {
        pthread_mutex_lock(&e->lock);
        wait_for_work(e);
        int closing = e->closing;
        pthread_mutex_unlock(&e->lock);
        if (closing)
            break;
        take_inbox(e);
        drop_interrupted(e, e->waiting, &e->n_waiting);
        drop_interrupted(e, e->running, &e->n_running);
        step(e);
        notify(e);
    }
    end_all(e);
    notify(e);
    return NULL;
}

/* ---- public ---- */

bool engine_submit(struct engine *e, struct gen *g, struct err *err)
{
    size_t n_prompt = g->seq.n_prompt, n_max = e->o.queue_max + e->o.streams_max;
    if (g->seq.pages_max > e->o.pages)
        return err_set(err, ERR_MEMORY,
                       "The request needs %zu KV pages (%zu prompt and %zu output tokens) and the model has "
                       "%zu. Ask for fewer tokens, or give the server more --memory.",
                       g->seq.pages_max, n_prompt, g->params.max_tokens, e->o.pages);
    if (n_prompt > e->o.context_max)
        return err_set(err, ERR_CONTEXT_LENGTH, "The prompt has %zu tokens and the context %zu.", n_prompt, e->o.context_max);
    size_t inside = atomic_fetch_add_explicit(&e->n_inside, 1, memory_order_relaxed);
    if (inside >= n_max) {
        atomic_fetch_sub_explicit(&e->n_inside, 1, memory_order_relaxed);
        return err_set(err, ERR_QUEUE_FULL,
                       "%zu requests run or wait already; at most %zu may run (--max-streams) and %zu "
                       "wait (--max-queue). Try again later.",
                       inside, e->o.streams_max, e->o.queue_max);
    }
    g->stats.submitted_ns = clock_mono_ns();
    g->next = NULL;
    pthread_mutex_lock(&e->lock);
    *e->inbox_last = g;
    e->inbox_last = &g->next;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
    return true;
}

void engine_cancel(struct engine *e, struct gen *g)
{
    (void)e; /* it never sleeps while it has a gen */
    atomic_store_explicit(&g->cancel, 1, memory_order_relaxed);
}

/* ---- opening and closing ---- */

size_t engine_overhead_bytes(const struct model_info *info, const struct engine_options *o, unsigned n_threads)
{
    size_t a_row = 3 * sizeof(int32_t) + sizeof(struct gen *);
    size_t a_stream = sizeof(struct batch_seq) + 3 * sizeof(struct gen *) + 3 * sizeof(size_t);
    return kv_bytes(o->pages) + n_threads * (sampler_bytes(info->n_vocab) + sizeof(struct sampler)) + o->rows_max * a_row +
           o->streams_max * a_stream + o->queue_max * sizeof(struct gen *) + sizeof(struct engine);
}

static bool open_samplers(struct engine *e, struct err *err)
{
    for (; e->n_samplers < backend_threads(e->backend); e->n_samplers++)
        if (!sampler_open(&e->samplers[e->n_samplers], e->n_vocab, err))
            return false;
    return true;
}

static bool take_tables(struct engine *e, struct err *err)
{
    size_t rows = e->o.rows_max, streams = e->o.streams_max;
    e->ids = calloc(rows, sizeof *e->ids);
    e->positions = calloc(rows, sizeof *e->positions);
    e->logit_rows = calloc(rows, sizeof *e->logit_rows);
    e->row_gen = calloc(rows, sizeof *e->row_gen);
    e->seqs = calloc(streams, sizeof *e->seqs);
    e->in_step = calloc(streams, sizeof *e->in_step);
    e->running = calloc(streams, sizeof *e->running);
    e->waiting = calloc(e->o.queue_max + streams, sizeof *e->waiting);
    e->plan.rows = calloc(streams, sizeof *e->plan.rows);
    e->plan.admit = calloc(streams, sizeof *e->plan.admit);
    e->plan.admit_rows = calloc(streams, sizeof *e->plan.admit_rows);
    e->samplers = calloc(backend_threads(e->backend), sizeof *e->samplers);
    if (!e->ids || !e->positions || !e->logit_rows || !e->row_gen || !e->seqs || !e->in_step || !e->running || !e->waiting ||
        !e->plan.rows || !e->plan.admit || !e->plan.admit_rows || !e->samplers)
        return err_set(err, ERR_MEMORY, "Out of memory for the engine's tables.");
    e->cache = model_kv_shape(e->model);
    e->cache.n_pages = e->o.pages;
    e->page_bytes = e->cache.n_layers * e->cache.layer_bytes;
    e->cache_bytes = e->o.pages * e->page_bytes;
    e->cache.data = backend_alloc(e->backend, e->cache_bytes, err);
    return e->cache.data && kv_open(&e->kv, e->o.pages, err) && open_samplers(e, err);
}

static void free_engine(struct engine *e)
{
    backend_free(e->backend, e->cache.data, e->cache_bytes);
    kv_close(&e->kv);
    while (e->n_samplers)
        sampler_close(&e->samplers[--e->n_samplers]);
    free(e->samplers);
    free(e->ids);
    free(e->positions);
    free(e->logit_rows);
    free(e->row_gen);
    free(e->seqs);
    free(e->in_step);
    free(e->running);
    free(e->waiting);
    free(e->plan.rows);
    free(e->plan.admit);
    free(e->plan.admit_rows);
    pthread_cond_destroy(&e->wake);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

/* Positions whose attention costs as much as all products with a row: the ratio of their multiplications. */
static double attention_depth(const struct model_info *i)
{
    double heads = (double)((i->n_heads + i->n_kv_heads) * i->head_dim);
    double row = (double)i->width * (2 * heads + 3 * (double)i->n_inner), position = 2.0 * (double)(i->n_heads * i->head_dim);
    return position > 0 ? row / position / ATTENTION_COST : 0;
}

struct engine *engine_open(struct model *m, const struct engine_options *options, struct err *err)
{
    struct engine *e = calloc(1, sizeof *e);
    if (!e) {
        err_set(err, ERR_MEMORY, "Out of memory.");
        return NULL;
    }
    e->model = m;
    e->backend = model_backend(m);
    e->o = *options;
    if (e->o.streams_max > e->o.rows_max)
        e->o.streams_max = e->o.rows_max;
    e->n_vocab = model_info(m)->n_vocab;
    e->cost.depth = attention_depth(model_info(m));
    e->inbox_last = &e->inbox;
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->wake, NULL);
    if (!take_tables(e, err)) {
        free_engine(e);
        return NULL;
    }
    if (pthread_create(&e->thread, NULL, engine_main, e) != 0) {
        free_engine(e);
        err_set(err, ERR_IO, "Cannot start the engine's thread.");
        return NULL;
    }
    return e;
}

void engine_close(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->closing = 1;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
    free_engine(e);
}

void engine_counters(const struct engine *e, struct engine_counters *out)
{
    uint64_t inside = e->n_inside, running = e->running_now;
    *out = (struct engine_counters){.running = running,
                                    .waiting = inside > running ? inside - running : 0,
                                    .pages_total = e->o.pages,
                                    .pages_held = e->pages_held,
                                    .pages_cached = e->pages_cached,
                                    .steps = e->steps,
                                    .rows = e->rows,
                                    .prompt_tokens = e->prompt_tokens,
                                    .output_tokens = e->output_tokens,
                                    .preemptions = e->preemptions,
                                    .prefix_queries = e->prefix_queries,
                                    .prefix_hits = e->prefix_hits,
                                    .last_step_ns = e->last_step_ns,
                                    .cancelled_tokens = e->cancelled_tokens};
}

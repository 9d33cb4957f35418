/* The engine's thread: one step after the other; see engine.h.
 *
 *   inbox -> waiting -> running -> done
 *              ^-- preempted --'      cancelled and timed-out gens leave from anywhere, before the next step
 *
 * running[] is in order of admission: decode rows of all come first, then prompt rows of the oldest. When pages run
 * out the youngest is put back, its pages are dropped, and it computes its tokens again later: the same bytes, because
 * nothing that is computed depends on when. */
#include "base/clock.h"
#include "engine/gen.h"
#include "engine/kv.h"
#include "engine/sampler.h"
#include "engine/sched.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct engine {
    struct model *model;
    struct engine_options o;
    struct kv_cache cache;
    struct backend *backend;
    size_t cache_bytes;
    struct kv kv;
    struct sampler sampler;
    struct sched_cost cost;
    pthread_t thread;
    pthread_mutex_t lock; /* inbox, n_queued, closing */
    pthread_cond_t wake;
    struct gen *inbox, **inbox_last;
    size_t n_queued; /* submitted and not running */
    int closing;
    struct gen *waiting;
    struct gen **running;
    size_t n_running;
    uint64_t arrivals;
    size_t n_vocab;
    /* the step */
    int32_t *ids, *positions, *logit_rows;
    struct batch_seq *seqs;
    struct gen **in_step;
    _Atomic uint64_t running_now, waiting_now, pages_held, pages_cached, steps, rows, prompt_tokens, output_tokens,
        preemptions, prefix_queries, prefix_hits, last_step_ns, cancelled_tokens;
};

static void add(_Atomic uint64_t *to, uint64_t n)
{
    atomic_fetch_add_explicit(to, n, memory_order_relaxed);
}

static size_t total_tokens(const struct gen *g)
{
    return g->n_prompt + g->n_output;
}

/* ---- pages ---- */

static uint64_t root_serial(const struct gen *g)
{
    return (g->params.cache_salt * 31 + g->rope_class) & 0xffffffffu;
}

static void drop_pages(struct engine *e, struct gen *g)
{
    while (g->n_pages)
        kv_drop(&e->kv, g->pages[--g->n_pages]);
    g->n_computed = g->n_shared = 0;
    g->chain = root_serial(g);
}

/* Takes what the prefix cache knows of the tokens, leaving at least one to compute. */
static void take_prefix(struct engine *e, struct gen *g)
{
    size_t total = total_tokens(g);
    while (e->o.prefix_cache && !g->prompt_logprobs && g->n_computed + KV_PAGE_TOKENS < total) {
        int32_t page = kv_find(&e->kv, g->chain, g->tokens + g->n_computed);
        if (page < 0)
            break;
        kv_hold(&e->kv, page);
        g->pages[g->n_pages++] = page;
        g->chain = e->kv.pages[page].serial;
        g->n_shared++;
        g->n_computed += KV_PAGE_TOKENS;
    }
}

/* Makes the pages that are full now known to others. */
static void share_pages(struct engine *e, struct gen *g)
{
    while (e->o.prefix_cache && (g->n_shared + 1) * KV_PAGE_TOKENS <= g->n_computed) {
        g->chain = kv_remember(&e->kv, g->pages[g->n_shared], g->chain, g->tokens + g->n_shared * KV_PAGE_TOKENS);
        g->n_shared++;
    }
}

/* ---- leaving ---- */

static void end_gen(struct engine *e, struct gen *g, enum gen_finish finish)
{
    drop_pages(e, g);
    g->stats.n_output = g->n_output;
    g->stats.finished_ns = clock_mono_ns();
    if (finish == GEN_CANCELLED || finish == GEN_TIMEOUT)
        add(&e->cancelled_tokens, g->n_output);
    atomic_store_explicit(&g->finish, finish, memory_order_relaxed);
    atomic_store_explicit(&g->n_published, g->n_output, memory_order_release);
    atomic_store_explicit(&g->done, 1, memory_order_release);
}

/* Why a gen must stop before its next step; GEN_RUNNING: it need not. */
static enum gen_finish interrupted(const struct gen *g, uint64_t now)
{
    if (atomic_load_explicit(&g->cancel, memory_order_relaxed))
        return GEN_CANCELLED;
    return g->params.deadline_ns && now > g->params.deadline_ns ? GEN_TIMEOUT : GEN_RUNNING;
}

static void dequeued(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->n_queued--;
    pthread_mutex_unlock(&e->lock);
}

static bool drop_interrupted(struct engine *e)
{
    uint64_t now = clock_mono_ns();
    bool any = false;
    for (struct gen **at = &e->waiting; *at;) {
        struct gen *g = *at;
        enum gen_finish f = interrupted(g, now);
        if (f == GEN_RUNNING) {
            at = &g->next;
            continue;
        }
        *at = g->next;
        dequeued(e);
        end_gen(e, g, f);
        any = true;
    }
    size_t kept = 0;
    for (size_t i = 0; i < e->n_running; i++) {
        enum gen_finish f = interrupted(e->running[i], now);
        if (f == GEN_RUNNING) {
            e->running[kept++] = e->running[i];
        } else {
            end_gen(e, e->running[i], f);
            any = true;
        }
    }
    e->n_running = kept;
    return any;
}

/* ---- joining ---- */

static void take_inbox(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    struct gen *g = e->inbox;
    e->inbox = NULL;
    e->inbox_last = &e->inbox;
    pthread_mutex_unlock(&e->lock);
    struct gen **end = &e->waiting;
    while (*end)
        end = &(*end)->next;
    *end = g;
    for (; g; g = g->next) {
        g->arrival = e->arrivals++;
        g->rope_class = model_rope_class(e->model, g->n_prompt);
        g->chain = root_serial(g);
    }
}

/* True when somebody is computing a page right now that `g` could share: then waiting is sooner than computing twice. */
static bool prefix_under_way(const struct engine *e, const struct gen *g)
{
    if (!e->o.prefix_cache || g->prompt_logprobs)
        return false;
    for (size_t i = 0; i < e->n_running; i++) {
        const struct gen *r = e->running[i];
        if (r->n_computed >= r->n_prompt || r->rope_class != g->rope_class ||
            r->params.cache_salt != g->params.cache_salt)
            continue;
        size_t most = r->n_prompt < g->n_prompt - 1 ? r->n_prompt : g->n_prompt - 1, n = 0;
        while (n < most && r->tokens[n] == g->tokens[n])
            n++;
        size_t common = n / KV_PAGE_TOKENS * KV_PAGE_TOKENS;
        if (common > g->n_computed && common > r->n_computed / KV_PAGE_TOKENS * KV_PAGE_TOKENS)
            return true;
    }
    return false;
}

static void admit(struct engine *e)
{
    for (struct gen **at = &e->waiting; *at && e->n_running < e->o.streams_max;) {
        struct gen *g = *at;
        take_prefix(e, g);
        if (prefix_under_way(e, g)) {
            drop_pages(e, g);
            at = &g->next; /* others need not wait for it */
            continue;
        }
        size_t need = (total_tokens(g) + KV_PAGE_TOKENS) / KV_PAGE_TOKENS - g->n_pages;
        if (need > kv_available(&e->kv) && e->n_running) {
            drop_pages(e, g);
            return; /* first come, first served: nobody overtakes for being small */
        }
        *at = g->next;
        g->next = NULL;
        dequeued(e);
        if (!g->stats.started_ns) {
            g->stats.started_ns = clock_mono_ns();
            g->stats.n_cached = g->n_computed;
            add(&e->prefix_queries, g->n_prompt);
            add(&e->prefix_hits, g->n_computed);
        }
        e->running[e->n_running++] = g;
    }
}

/* ---- one step ---- */

static void preempt(struct engine *e, size_t index)
{
    struct gen *g = e->running[index];
    drop_pages(e, g);
    g->rows = 0;
    g->stats.n_preempted++;
    add(&e->preemptions, 1);
    memmove(e->running + index, e->running + index + 1, (e->n_running - index - 1) * sizeof *e->running);
    e->n_running--;
    struct gen **at = &e->waiting; /* back in the order of arrival */
    while (*at && (*at)->arrival < g->arrival)
        at = &(*at)->next;
    g->next = *at;
    *at = g;
    pthread_mutex_lock(&e->lock);
    e->n_queued++;
    pthread_mutex_unlock(&e->lock);
}

/* Pages for `rows` more rows of running[i]; puts back the youngest until there are enough. False: i itself was put back. */
static bool take_pages(struct engine *e, size_t i, size_t rows)
{
    struct gen *g = e->running[i];
    while (g->n_pages * KV_PAGE_TOKENS < g->n_computed + rows) {
        int32_t page = kv_take(&e->kv);
        if (page >= 0) {
            g->pages[g->n_pages++] = page;
            continue;
        }
        size_t youngest = 0;
        for (size_t k = 1; k < e->n_running; k++)
            if (e->running[k]->arrival > e->running[youngest]->arrival)
                youngest = k;
        bool self = youngest == i;
        preempt(e, youngest);
        if (self)
            return false;
        i -= youngest < i;
    }
    return true;
}

/* Decides the rows of every running gen. Returns rows of decode and of prompts. */
static void plan_step(struct engine *e, size_t *n_decode, size_t *n_prefill)
{
    *n_decode = *n_prefill = 0;
    for (size_t i = 0; i < e->n_running; i++)
        e->running[i]->rows = 0;
    for (size_t i = 0; i < e->n_running;) {
        struct gen *g = e->running[i];
        if (total_tokens(g) - g->n_computed == 1 && !take_pages(e, i, 1))
            continue; /* running[] has moved up */
        while (e->running[i] != g)
            i--; /* others before it were put back */
        g->rows = total_tokens(g) - g->n_computed == 1;
        i++;
    }
    for (size_t i = 0; i < e->n_running; i++)
        *n_decode += e->running[i]->rows;
    size_t budget = sched_prefill_rows(&e->cost, *n_decode, e->o.rows_max, e->o.stall_ms_max);
    for (size_t i = 0; i < e->n_running && budget;) {
        struct gen *g = e->running[i];
        size_t left = total_tokens(g) - g->n_computed, rows = left < budget ? left : budget;
        if (g->rows || left == 0) {
            i++;
            continue;
        }
        if (!take_pages(e, i, rows))
            continue;
        while (e->running[i] != g)
            i--;
        g->rows = rows;
        budget -= rows;
        i++;
    }
    *n_decode = 0;
    for (size_t i = 0; i < e->n_running; i++) {
        bool decode = e->running[i]->rows == 1 && total_tokens(e->running[i]) - e->running[i]->n_computed == 1;
        *n_decode += decode;
        *n_prefill += decode ? 0 : e->running[i]->rows;
    }
}

static void build_batch(struct engine *e, struct batch *b)
{
    *b = (struct batch){.ids = e->ids, .positions = e->positions, .seqs = e->seqs, .logit_rows = e->logit_rows};
    for (size_t i = 0; i < e->n_running; i++) {
        struct gen *g = e->running[i];
        if (!g->rows)
            continue;
        e->in_step[b->n_seqs] = g;
        e->seqs[b->n_seqs++] = (struct batch_seq){.pages = g->pages, .n_pages = g->n_pages, .row = b->n_rows,
                                                  .n_rows = g->rows, .pos = g->n_computed, .n_prompt = g->n_prompt};
        bool whole = g->n_computed + g->rows == total_tokens(g);
        for (size_t r = 0; r < g->rows; r++) {
            size_t pos = g->n_computed + r;
            e->ids[b->n_rows] = g->tokens[pos];
            e->positions[b->n_rows] = (int32_t)pos;
            bool wanted = (whole && r + 1 == g->rows) || (g->prompt_logprobs && pos + 1 < g->n_prompt);
            if (wanted)
                e->logit_rows[b->n_logit_rows++] = (int32_t)b->n_rows;
            b->n_rows++;
        }
    }
}

/* Takes the token that follows; returns how the gen ends, or GEN_RUNNING. */
static enum gen_finish take_token(struct engine *e, struct gen *g, const float *logits)
{
    if (g->n_output >= g->params.max_tokens)
        return GEN_LENGTH; /* only the prompt was asked for */
    int32_t id = sampler_sample(&e->sampler, g, logits);
    if (g->logprobs)
        sampler_logprob(&e->sampler, logits, id, g->params.top_logprobs, &g->logprobs[g->n_output]);
    g->tokens[g->n_prompt + g->n_output++] = id;
    if (!g->stats.first_token_ns)
        g->stats.first_token_ns = clock_mono_ns();
    add(&e->output_tokens, 1);
    for (size_t i = 0; i < g->params.n_stop_ids; i++)
        if (g->params.stop_ids[i] == id)
            return GEN_STOP;
    return g->n_output >= g->params.max_tokens || total_tokens(g) >= e->o.context_max ? GEN_LENGTH : GEN_RUNNING;
}

/* After the forward: what each sequence of the batch got. */
static void deliver(struct engine *e, const struct batch *b, const float *logits)
{
    size_t at = 0;
    for (size_t s = 0; s < b->n_seqs; s++) {
        struct gen *g = e->in_step[s];
        size_t end = b->seqs[s].row + b->seqs[s].n_rows;
        bool whole = g->n_computed + g->rows == total_tokens(g);
        enum gen_finish finish = GEN_RUNNING;
        g->n_computed += g->rows;
        share_pages(e, g);
        for (; at < b->n_logit_rows && (size_t)b->logit_rows[at] < end; at++) {
            const float *row = logits + at * e->n_vocab;
            size_t pos = (size_t)b->positions[b->logit_rows[at]];
            if (g->prompt_logprobs && pos + 1 < g->n_prompt)
                sampler_logprob(&e->sampler, row, g->tokens[pos + 1], g->params.prompt_logprobs,
                                &g->prompt_logprobs[pos + 1]);
            else if (whole)
                finish = take_token(e, g, row);
        }
        atomic_store_explicit(&g->n_published, g->n_output, memory_order_release);
        if (finish == GEN_RUNNING)
            continue;
        for (size_t i = 0; i < e->n_running; i++)
            if (e->running[i] == g) {
                memmove(e->running + i, e->running + i + 1, (e->n_running - i - 1) * sizeof *e->running);
                e->n_running--;
                break;
            }
        end_gen(e, g, finish);
    }
}

static void publish_counters(struct engine *e)
{
    size_t waiting = 0;
    for (const struct gen *g = e->waiting; g; g = g->next)
        waiting++;
    atomic_store_explicit(&e->running_now, e->n_running, memory_order_relaxed);
    atomic_store_explicit(&e->waiting_now, waiting, memory_order_relaxed);
    atomic_store_explicit(&e->pages_held, e->kv.n_held, memory_order_relaxed);
    atomic_store_explicit(&e->pages_cached, e->kv.n_cached, memory_order_relaxed);
    kv_check(&e->kv);
}

static void step(struct engine *e)
{
    size_t n_decode, n_prefill;
    struct batch b;
    plan_step(e, &n_decode, &n_prefill);
    build_batch(e, &b);
    if (b.n_rows == 0)
        return;
    publish_counters(e);
    uint64_t start = clock_mono_ns();
    const float *logits = model_forward(e->model, &e->cache, &b);
    deliver(e, &b, logits);
    uint64_t end = clock_mono_ns();
    sched_learn(&e->cost, n_decode, n_prefill, end - start);
    add(&e->steps, 1);
    add(&e->rows, b.n_rows);
    add(&e->prompt_tokens, n_prefill);
    atomic_store_explicit(&e->last_step_ns, end, memory_order_relaxed);
}

static void end_all(struct engine *e)
{
    take_inbox(e);
    while (e->waiting) {
        struct gen *g = e->waiting;
        e->waiting = g->next;
        dequeued(e);
        end_gen(e, g, GEN_CANCELLED);
    }
    while (e->n_running)
        end_gen(e, e->running[--e->n_running], GEN_CANCELLED);
}

static void *engine_main(void *arg)
{
    struct engine *e = arg;
    for (;;) {
        pthread_mutex_lock(&e->lock);
        while (!e->closing && !e->inbox && !e->waiting && !e->n_running)
            pthread_cond_wait(&e->wake, &e->lock);
        int closing = e->closing;
        pthread_mutex_unlock(&e->lock);
        if (closing)
            break;
        take_inbox(e);
        drop_interrupted(e);
        admit(e);
        if (e->n_running)
            step(e);
        publish_counters(e);
        if (e->o.notify)
            e->o.notify(e->o.notify_arg);
    }
    end_all(e);
    publish_counters(e);
    if (e->o.notify)
        e->o.notify(e->o.notify_arg);
    return NULL;
}

/* ---- public ---- */

bool engine_submit(struct engine *e, struct gen *g, struct err *err)
{
    size_t need = (g->n_prompt + g->params.max_tokens + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    if (need > e->o.pages)
        return err_set(err, ERR_MEMORY, "The request needs %zu KV pages (%zu prompt and %zu output tokens) and the model has "
                       "%zu. Ask for fewer tokens, or give the server more --memory.", need, g->n_prompt,
                       g->params.max_tokens, e->o.pages);
    bool ok = true;
    pthread_mutex_lock(&e->lock);
    if (e->n_queued >= e->o.queue_max + e->o.streams_max) {
        ok = err_set(err, ERR_QUEUE_FULL, "%zu requests are waiting already and --max-queue is %zu. Try again later.",
                     e->n_queued, e->o.queue_max);
    } else {
        g->stats.submitted_ns = clock_mono_ns();
        g->next = NULL;
        *e->inbox_last = g;
        e->inbox_last = &g->next;
        e->n_queued++;
        pthread_cond_signal(&e->wake);
    }
    pthread_mutex_unlock(&e->lock);
    return ok;
}

void engine_cancel(struct engine *e, struct gen *g)
{
    atomic_store_explicit(&g->cancel, 1, memory_order_relaxed);
    pthread_mutex_lock(&e->lock);
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
}

size_t engine_overhead_bytes(const struct model_info *info, const struct engine_options *o)
{
    return kv_bytes(o->pages) + sampler_bytes(info->n_vocab) + o->rows_max * 3 * sizeof(int32_t) +
           o->streams_max * (sizeof(struct batch_seq) + 2 * sizeof(struct gen *)) + sizeof(struct engine);
}

static bool take_tables(struct engine *e, struct err *err)
{
    size_t rows = e->o.rows_max, streams = e->o.streams_max;
    e->ids = calloc(rows, sizeof *e->ids);
    e->positions = calloc(rows, sizeof *e->positions);
    e->logit_rows = calloc(rows, sizeof *e->logit_rows);
    e->seqs = calloc(streams, sizeof *e->seqs);
    e->in_step = calloc(streams, sizeof *e->in_step);
    e->running = calloc(streams, sizeof *e->running);
    if (!e->ids || !e->positions || !e->logit_rows || !e->seqs || !e->in_step || !e->running)
        return err_set(err, ERR_MEMORY, "Out of memory for the engine's tables.");
    e->cache = model_kv_shape(e->model);
    e->cache.n_pages = e->o.pages;
    e->cache_bytes = e->o.pages * e->cache.n_layers * e->cache.layer_bytes;
    e->cache.data = backend_alloc(e->backend, e->cache_bytes, err);
    return e->cache.data && kv_open(&e->kv, e->o.pages, err) && sampler_open(&e->sampler, e->n_vocab, err);
}

static void free_engine(struct engine *e)
{
    backend_free(e->backend, e->cache.data, e->cache_bytes);
    kv_close(&e->kv);
    sampler_close(&e->sampler);
    free(e->ids);
    free(e->positions);
    free(e->logit_rows);
    free(e->seqs);
    free(e->in_step);
    free(e->running);
    pthread_cond_destroy(&e->wake);
    pthread_mutex_destroy(&e->lock);
    free(e);
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
    pthread_mutex_lock((pthread_mutex_t *)&e->lock);
    size_t queued = e->n_queued;
    pthread_mutex_unlock((pthread_mutex_t *)&e->lock);
    *out = (struct engine_counters){
        .running = e->running_now, .waiting = queued, .pages_total = e->o.pages, .pages_held = e->pages_held,
        .pages_cached = e->pages_cached, .steps = e->steps, .rows = e->rows, .prompt_tokens = e->prompt_tokens,
        .output_tokens = e->output_tokens, .preemptions = e->preemptions, .prefix_queries = e->prefix_queries,
        .prefix_hits = e->prefix_hits, .last_step_ns = e->last_step_ns, .cancelled_tokens = e->cancelled_tokens};
}

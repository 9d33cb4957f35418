/* What the next step does; see sched.h. */
#include "engine/sched.h"

#include <math.h>
#include <string.h>

#define STALL_SHARE 0.5
#define WORK_FIRST  16   /* of a step before any was measured; then at most twice the most that was */
#define KEEP        0.98 /* weight of all steps before, in the next one: some 50 count */
#define SWEEPS      8    /* of the least squares, a step; each goes on where the last one stopped */
#define PACE_KEEP   0.5  /* of a disturbance, from a step to the next */

/* ---- cost ---- */

static double undisturbed_ns(const struct sched_cost *c, const struct sched_plan *plan)
{
    return c->base_ns + c->stream_ns * (double)plan->n_single + c->work_ns * plan->work;
}

static double pace_of(const struct sched_cost *c)
{
    return c->pace > 0 ? c->pace : 1; /* before the first step */
}

double sched_predict_ns(const struct sched_cost *c, const struct sched_plan *plan)
{
    return pace_of(c) * undisturbed_ns(c, plan);
}

static double not_negative(double x)
{
    return x > 0 ? x : 0;
}

/* The costs, none of them negative, that leave the least sum of squared relative errors; by coordinates, the work of prompts
 * first: what nothing tells apart yet is put down to it, so that the first prompts come in small steps. */
static void fit_costs(struct sched_cost *c)
{
    double *const cost[3] = {&c->base_ns, &c->stream_ns, &c->work_ns};
    const struct sched_fit *a = &c->fit[0], *b = &c->fit[1];
    for (int sweep = 0; sweep < SWEEPS; sweep++)
        for (int j = 2; j >= 0; j--) {
            double left = a->sums[j] + b->sums[j], own = a->products[j][j] + b->products[j][j];
            for (int k = 0; k < 3; k++)
                left -= k == j ? 0 : (a->products[j][k] + b->products[j][k]) * *cost[k];
            if (own > 0)
                *cost[j] = not_negative(left / own);
        }
}

/* What a machine takes when nobody disturbs it changes slowly: many steps count, by relative errors, in which a step that
 * took five times as long weighs little. How it is disturbed changes at once and passes: that is the pace. A slow step is
 * believed whole, for the stall limit is a promise, and forgotten in a few steps, for the next ones would be short without
 * need. */
void sched_learn(struct sched_cost *c, const struct sched_plan *plan, uint64_t step_ns)
{
    double took = step_ns ? (double)step_ns : 1;
    const double of[3] = {1 / took, (double)plan->n_single / took, plan->work / took};
    c->work_tried = plan->work > c->work_tried ? plan->work : c->work_tried;
    struct sched_fit *fit = &c->fit[plan->n_prompt > 0];
    for (int j = 0; j < 3; j++) {
        for (int k = 0; k < 3; k++)
            fit->products[j][k] = KEEP * fit->products[j][k] + of[j] * of[k];
        fit->sums[j] = KEEP * fit->sums[j] + of[j];
    }
    fit_costs(c);
    double ratio = took / undisturbed_ns(c, plan), calmer = ratio + PACE_KEEP * (pace_of(c) - ratio);
    c->pace = ratio > calmer ? ratio : calmer;
}

/* Prompt rows that a step still takes. */
struct budget {
    size_t rows;
    double work;
    double depth;
    bool fresh; /* nothing taken yet: the least is due */
};

static struct budget budget_of(const struct sched_input *in, const struct sched_plan *plan)
{
    const struct sched_cost *c = in->cost;
    double limit_ns = 1e6 * (plan->n_single ? STALL_SHARE * in->limits.stall_ms_max : SCHED_STEP_MS_MAX);
    double left_ns = not_negative(limit_ns - sched_predict_ns(c, plan));
    double work = c->work_ns > 0 ? left_ns / (pace_of(c) * c->work_ns) : INFINITY;
    double most = 2 * c->work_tried > WORK_FIRST ? 2 * c->work_tried : WORK_FIRST;
    return (struct budget){.rows = in->limits.rows_max - plan->n_single,
                           .work = work < most ? work : most,
                           .depth = c->depth > 0 ? c->depth : INFINITY,
                           .fresh = true};
}

/* Work of n rows from position `pos` on: their sum of 1 + position / depth. */
static double work_of(const struct budget *b, size_t pos, size_t n)
{
    return (double)n * (1 + ((double)pos + (double)n / 2) / b->depth);
}

/* How many of `left` rows from `pos` on the budget takes. */
static size_t rows_within(const struct budget *b, size_t pos, size_t left)
{
    size_t most = left < b->rows ? left : b->rows;
    if (work_of(b, pos, most) <= b->work)
        return most;
    double first = 1 + (double)pos / b->depth, n;
    n = isinf(b->depth) ? b->work : (sqrt(first * first + 2 * b->work / b->depth) - first) * b->depth;
    size_t least = b->fresh ? SCHED_PREFILL_ROWS_MIN : 0, rows = n > 0 ? (size_t)n : 0;
    rows = rows > least ? rows : least;
    return rows < most ? rows : most;
}

/* The same, and half of it when that does not end the prompt and others are behind it. */
static size_t rows_shared(const struct budget *b, size_t pos, size_t left, bool others)
{
    size_t rows = rows_within(b, pos, left);
    struct budget half = {.rows = b->rows - b->rows / 2, .work = b->work / 2, .depth = b->depth, .fresh = b->fresh};
    return rows < left && others ? rows_within(&half, pos, left) : rows;
}

static void spend(struct budget *b, struct sched_plan *plan, size_t pos, size_t rows)
{
    double work = work_of(b, pos, rows);
    b->rows -= rows;
    b->work -= work;
    b->fresh = false;
    plan->n_prompt += rows;
    plan->work += work;
}

/* ---- pages ---- */

static size_t missing(const struct seq *s, size_t n_tokens)
{
    size_t need = seq_pages_for(n_tokens);
    return need > s->n_pages ? need - s->n_pages : 0;
}

/* Pages with which it surely reaches the end of its prompt, and a page's worth of outputs. */
static size_t foreseen(const struct seq *s)
{
    size_t need = seq_pages_for(s->n_total + KV_PAGE_TOKENS);
    return need < s->pages_max ? need : s->pages_max;
}

static bool single(const struct seq *s)
{
    return s->n_total - s->n_computed == 1;
}

/* The draft: the first n of running[] stay, `free` pages are left. */
struct draft {
    const struct sched_input *in;
    struct sched_plan *plan;
    size_t n, free;
};

static void put_back_youngest(struct draft *d)
{
    const struct seq *s = d->in->running[--d->n];
    d->free += seq_own_pages(d->in->kv, s);
    d->free += missing(s, s->n_computed + d->plan->rows[d->n]);
    d->plan->n_single -= single(s) && d->plan->rows[d->n];
    d->plan->rows[d->n] = 0;
    d->plan->n_put_back++;
}

static void plan_singles(struct draft *d)
{
    for (size_t i = 0; i < d->n; i++) {
        const struct seq *s = d->in->running[i];
        size_t need = missing(s, s->n_total);
        if (!single(s))
            continue;
        while (need > d->free && d->n > i + 1)
            put_back_youngest(d);
        if (need > d->free)
            continue; /* the youngest of all: it keeps what it has until an older one wants it, or ends */
        d->free -= need;
        d->plan->rows[i] = 1;
        d->plan->n_single++;
    }
}

/* Gives `rows` more rows to running[i], as far as there are pages for them. */
static void give_rows(struct draft *d, struct budget *b, size_t i, size_t rows)
{
    const struct seq *s = d->in->running[i];
    size_t end = s->n_computed + d->plan->rows[i], had = missing(s, end);
    size_t room = (s->n_pages + had + d->free) * KV_PAGE_TOKENS - end;
    rows = rows < room ? rows : room;
    d->free -= missing(s, end + rows) - had;
    d->plan->rows[i] += rows;
    if (rows)
        spend(b, d->plan, end, rows);
}

static void plan_prompts(struct draft *d, struct budget *b)
{
    for (size_t i = 0; i < d->n && b->rows; i++) {
        const struct seq *s = d->in->running[i];
        if (single(s))
            continue;
        bool others = d->in->n_waiting > 0;
        for (size_t k = i + 1; k < d->n && !others; k++)
            others = !single(d->in->running[k]);
        size_t rows = rows_shared(b, s->n_computed, s->n_total - s->n_computed, others);
        while (missing(s, s->n_computed + rows) > d->free && d->n > i + 1)
            put_back_youngest(d);
        give_rows(d, b, i, rows);
    }
}

/* What those behind a long prompt did not take. */
static void plan_rest(struct draft *d, struct budget *b)
{
    for (size_t i = 0; i < d->n && b->rows; i++) {
        const struct seq *s = d->in->running[i];
        size_t given = d->plan->rows[i];
        size_t rows = single(s) ? 0 : rows_within(b, s->n_computed + given, s->n_total - s->n_computed - given);
        give_rows(d, b, i, rows);
    }
}

/* ---- joining ---- */

/* Whether `r`, with n_computed tokens, is about to compute a page that `s`, with n_cached, could take. */
static bool computes_for(const struct seq *r, size_t n_computed, const struct seq *s, size_t n_cached)
{
    size_t page = (n_computed > n_cached ? n_computed : n_cached) / KV_PAGE_TOKENS;
    return r->cache != SEQ_CACHE_OFF && s->cache == SEQ_CACHE_USE && r->root.salt == s->root.salt &&
           r->root.rope_class == s->root.rope_class && page < r->n_prompt / KV_PAGE_TOKENS &&
           (page + 1) * KV_PAGE_TOKENS < s->n_prompt && r->prefix[page] == s->prefix[page];
}

static bool prefix_under_way(const struct draft *d, const struct seq *s, size_t n_cached)
{
    for (size_t i = 0; i < d->n; i++)
        if (computes_for(d->in->running[i], d->in->running[i]->n_computed, s, n_cached))
            return true;
    for (size_t k = 0; k < d->plan->n_admit; k++)
        if (computes_for(d->in->waiting[d->plan->admit[k]], 0, s, n_cached))
            return true;
    return false;
}

/* What a sequence costs is counted as if each one admitted took its idle prefix pages alone: never too little. */
static void plan_admissions(struct draft *d, struct budget *b)
{
    size_t spare = kv_available(d->in->kv), n = d->n;
    for (size_t i = 0; i < d->n; i++) {
        size_t need = foreseen(d->in->running[i]), held = d->in->running[i]->n_pages;
        need = need > held ? need - held : 0;
        spare = spare > need ? spare - need : 0;
    }
    for (size_t k = 0; k < d->in->n_waiting && n < d->in->limits.streams_max && b->rows; k++) {
        const struct seq *s = d->in->waiting[k];
        struct seq_cached c = seq_cached(d->in->kv, s);
        if (prefix_under_way(d, s, c.n_tokens))
            continue;
        size_t rows = rows_shared(b, c.n_tokens, s->n_total - c.n_tokens, k + 1 < d->in->n_waiting);
        size_t cost = foreseen(s) - c.n_tokens / KV_PAGE_TOKENS + c.n_idle;
        if (cost > spare || rows == 0)
            return;
        spare -= cost;
        d->free -= cost;
        d->plan->admit[d->plan->n_admit] = k;
        d->plan->admit_rows[d->plan->n_admit++] = rows;
        spend(b, d->plan, c.n_tokens, rows);
        n++;
    }
}

void sched_plan(const struct sched_input *in, struct sched_plan *plan)
{
    struct draft d = {.in = in, .plan = plan, .n = in->n_running, .free = kv_available(in->kv)};
    plan->n_put_back = plan->n_admit = plan->n_single = plan->n_prompt = 0;
    plan->work = 0;
    memset(plan->rows, 0, in->n_running * sizeof *plan->rows);
    plan_singles(&d);
    struct budget b = budget_of(in, plan);
    plan_prompts(&d, &b);
    if (plan->n_put_back == 0)
        plan_admissions(&d, &b);
    plan_rest(&d, &b);
}

/* What the next step does, as a pure function: sequences that run and wait, the page ledger, limits and measured costs in,
 * a plan out. Nothing that goes in is changed; equal inputs give equal plans.
 *
 * The rules:
 * - First come, first served, by order of submission: pages and prompt rows go to the oldest first, and when pages run
 *   out the youngest that runs is put back. So the oldest always moves on, and nobody starves.
 * - Every running stream gets its row in every step (rows_max >= streams_max).
 * - Prompt rows fill up the step as far as its time, by what steps have cost, stays within half of the stall limit:
 *   the other half is for what the estimate does not know. Without a stream that waits, within SCHED_STEP_MS_MAX.
 * - A prompt that does not end in this step leaves half of the prompt rows to those behind it, as far as they have use
 *   for them: a short question does not wait for the end of a book.
 * - One is admitted when its whole prompt fits beside what the running ones will need for theirs and a page of growth
 *   each; the first that does not fit holds up those behind it: nobody overtakes for being small.
 * - Only this overtakes: one whose prefix is being computed by another right now lets others go first; taking those pages
 *   a few steps later is sooner than computing them twice. */
#ifndef INFERD_ENGINE_SCHED_H
#define INFERD_ENGINE_SCHED_H

#include "engine/seq.h"

#define SCHED_PREFILL_ROWS_MIN 8    /* a prompt always moves on, however slow the machine */
#define SCHED_STEP_MS_MAX      1000 /* of a step without streams: somebody may cancel, or arrive */

/* What a step costs: pace * (base + stream * (single rows) + work * (work of prompt rows)), learnt from each step.
 * A prompt row's work is 1 + position / depth: the deeper, the more keys it reads. */
struct sched_cost {
    double base_ns, stream_ns, work_ns;
    double pace;       /* how much longer steps take at the moment than these say */
    double work_tried; /* the most that a step had */
    double depth;      /* positions whose attention costs as much as the rest of a row */
    /* Of the least squares for the three costs: sums over steps, later ones count more, of (1, single rows, work) / step_ns
     * times itself, and times 1. Steps with prompt rows, [1], and without keep theirs apart: an hour without a prompt takes
     * nothing from what is known of prompts. */
    struct sched_fit {
        double products[3][3], sums[3];
    } fit[2];
};

struct sched_limits {
    size_t rows_max, streams_max; /* streams_max <= rows_max */
    unsigned stall_ms_max;
};

struct sched_input {
    const struct kv *kv;
    const struct sched_cost *cost;
    struct sched_limits limits;
    struct seq *const *running; /* in order of arrival, at most streams_max */
    size_t n_running;
    struct seq *const *waiting; /* in order of arrival, holding no pages */
    size_t n_waiting;
};

/* To be done in this order: the last n_put_back of running[] drop their pages and go back to waiting; waiting[admit[k]]
 * take their prefix and join; all take the pages for their rows: they are there. */
struct sched_plan {
    size_t n_put_back;
    size_t *rows; /* [streams_max]: of running[i] that stay; 0: none in this step */
    size_t n_admit;
    size_t *admit;      /* [streams_max], ascending */
    size_t *admit_rows; /* [streams_max] */
    size_t n_single;    /* rows of sequences that have one row to compute: streams */
    size_t n_prompt;    /* other rows */
    double work;        /* of them */
};

void sched_plan(const struct sched_input *in, struct sched_plan *plan);
/* The step of `plan` took step_ns. */
void sched_learn(struct sched_cost *c, const struct sched_plan *plan, uint64_t step_ns);
double sched_predict_ns(const struct sched_cost *c, const struct sched_plan *plan);

#endif

/* The engine: many sequences, one model, token ids only. One thread per loaded model runs steps: take new requests, plan
 * (sched.h, pure), forward, sample, deliver. See docs/architecture.md.
 *
 * Ownership: a `struct gen` is made by its caller (gen_new), handed to the engine (engine_submit) and comes back when
 * `gen_done` turns true: that store is the engine's last touch. While it runs, its outputs may be read by ONE reader
 * thread through gen_poll (the engine appends, then publishes a count with release order). Cancelling is a flag that
 * anyone may set at any time before gen_free.
 *
 * Promises: the result of a gen depends on its prompt, parameters and the model only (row-invariant backend, random
 * numbers keyed by seed, choice and position); a cancelled gen stops within one step and its pages are free; a step
 * allocates nothing; the page ledger balances.
 */
#ifndef INFERD_ENGINE_ENGINE_H
#define INFERD_ENGINE_ENGINE_H

#include "base/err.h"
#include "base/metrics.h"
#include "model/model.h"

struct engine;
struct gen;

struct engine_options {
    size_t pages;          /* KV pages taken at open: the memory plan decided the number */
    size_t streams_max;    /* sequences in the running batch */
    size_t queue_max;      /* waiting gens; engine_submit fails beyond */
    size_t rows_max;       /* rows of a step (must be <= the model's) */
    unsigned stall_ms_max; /* a running stream waits no longer than this for somebody's prompt */
    size_t context_max;    /* tokens of prompt + output */
    int prefix_cache;      /* 1: on */
    /* What the engine counts; each may be NULL. They outlive it, and are those of the engine that takes its place, too. */
    struct engine_metrics {
        struct metric *step_rows; /* histogram */
        struct metric *steps, *preemptions, *prefix_queries, *prefix_hits, *cancelled_tokens;
    } metrics;
    /* Called on the engine thread once after each step that produced or finished something; wakes the reader. */
    void (*notify)(void *arg);
    void *notify_arg;
};

#define GEN_TOP_LOGPROBS_MAX 20
#define GEN_STOP_IDS_MAX     64
#define GEN_BIAS_MAX         1024

struct gen_bias {
    int32_t id;
    float bias;
};

/* Sampling as line C60 of the wire contract: bias, repetition, frequency/presence, temperature, min_p, top_k, top_p. */
struct gen_params {
    size_t max_tokens;                                              /* outputs at most (>= 0; 0: only the prompt is computed) */
    double temperature;                                             /* 0: arg-max, ties to the lowest id */
    double top_p, min_p;                                            /* 1, 0: off */
    int64_t top_k;                                                  /* 0 or -1: off */
    double repetition_penalty, presence_penalty, frequency_penalty; /* 1, 0, 0: off */
    uint64_t seed;
    uint32_t choice;             /* i-th of n: another random stream under the same seed */
    int top_logprobs;            /* -1: none; 0..20: the token's own and that many of the best */
    int prompt_logprobs;         /* -1: none; 0..20 for each prompt token (computes the whole prompt: no prefix cache reads) */
    const struct gen_bias *bias; /* copied */
    size_t n_bias;
    const int32_t *stop_ids; /* copied; end tokens of the model included by the caller unless ignore_eos */
    size_t n_stop_ids;
    uint64_t deadline_ns; /* clock_mono_ns at which it ends with GEN_TIMEOUT; 0: none */
    uint64_t cache_salt;  /* prefixes are shared between equal salts only */
    int embed;            /* 1: pool hidden states instead of generating: not yet, must be 0 */
};

enum gen_finish {
    GEN_RUNNING,
    GEN_STOP,   /* a stop id was sampled (it is counted in n_output and is the last id) */
    GEN_LENGTH, /* max_tokens or the end of the context */
    GEN_CANCELLED,
    GEN_TIMEOUT,
    GEN_ERROR, /* gen_error tells */
};

/* One token with its log-probabilities under the model's own distribution (before temperature, penalties, masks). */
struct gen_logprob {
    float logprob;
    int32_t n_top;
    int32_t top_ids[GEN_TOP_LOGPROBS_MAX];
    float top_logprobs[GEN_TOP_LOGPROBS_MAX];
};

/* Copies prompt ids and parameters; allocates all output memory at once (bounded by max_tokens, logprobs only when
 * asked for). NULL with ERR_MEMORY / ERR_INVALID_REQUEST. */
struct gen *gen_new(const int32_t *prompt, size_t n_prompt, const struct gen_params *params, struct err *err);
/* Only when never submitted or done. */
void gen_free(struct gen *g);

struct gen_view {
    const int32_t *ids;                 /* [n] outputs so far */
    const struct gen_logprob *logprobs; /* [n] or NULL */
    size_t n;
    enum gen_finish finish; /* GEN_RUNNING until done */
};
/* What has been produced so far; the pointers stay valid until gen_free. One reader thread. */
struct gen_view gen_poll(const struct gen *g);
bool gen_done(const struct gen *g);
/* After done. [n_prompt], the first entry is void (nothing before it). NULL when not asked for. */
const struct gen_logprob *gen_prompt_logprobs(const struct gen *g);
const struct err *gen_error(const struct gen *g);

struct gen_stats {
    size_t n_prompt, n_cached, n_output; /* n_cached: prompt tokens whose KV came from the prefix cache */
    size_t n_preempted;
    uint64_t submitted_ns, started_ns, first_token_ns, finished_ns; /* clock_mono_ns; 0: did not happen */
};
/* Any thread, any time: what is known so far; n_output and finished_ns once it is done. */
struct gen_stats gen_stats(const struct gen *g);
/* Any thread, any time before gen_free, also more than once: it ends before its next step, unless it ends otherwise. */
void engine_cancel(struct engine *e, struct gen *g);

/* Starts the thread. The model and backend stay the caller's and outlive the engine. */
struct engine *engine_open(struct model *m, const struct engine_options *options, struct err *err);
/* Ends all gens with GEN_CANCELLED, joins the thread, frees the pages. */
void engine_close(struct engine *e);
/* Bytes that engine_open takes beside the pages (tables, sampler scratch), with a backend of n_threads. */
size_t engine_overhead_bytes(const struct model_info *info, const struct engine_options *options, unsigned n_threads);

/* Hands `g` over. ERR_QUEUE_FULL, ERR_MEMORY (prompt and outputs can never fit the pages), ERR_CONTEXT_LENGTH (the
 * prompt alone: prompt + max_tokens is the caller's to check, the engine ends at context_max with GEN_LENGTH). On failure the caller keeps g. Any thread. */
bool engine_submit(struct engine *e, struct gen *g, struct err *err);

struct engine_counters { /* a snapshot; any thread */
    uint64_t running, waiting;
    uint64_t pages_total, pages_held, pages_cached; /* held: by running gens; cached: reusable, not held */
    uint64_t steps, rows, prompt_tokens, output_tokens, preemptions;
    uint64_t prefix_queries, prefix_hits; /* tokens */
    uint64_t last_step_ns;                /* when the last step ended (watchdog) */
    uint64_t cancelled_tokens;            /* produced for gens that ended cancelled */
};
void engine_counters(const struct engine *e, struct engine_counters *out);

#endif

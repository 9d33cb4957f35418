/* Inside a gen: what engine.c, gen.c and sampler.c share. The engine thread owns everything but the atomics once the
 * gen was submitted. */
#ifndef INFERD_ENGINE_GEN_H
#define INFERD_ENGINE_GEN_H

#include "engine/engine.h"
#include "engine/seq.h"

#include <stdatomic.h>

struct gen {
    struct seq seq;                      /* first: a gen is found from its sequence */
    struct gen_params params;            /* bias and stop_ids are our copies */
    size_t n_output;                     /* seq.n_total - seq.n_prompt */
    struct gen_logprob *logprobs;        /* [max_tokens] or NULL */
    struct gen_logprob *prompt_logprobs; /* [n_prompt] or NULL */
    struct err error;
    struct { /* struct gen_stats, written by the engine while others read */
        _Atomic size_t n_prompt, n_cached, n_output, n_preempted;
        _Atomic uint64_t submitted_ns, started_ns, first_token_ns, finished_ns;
    } stats;
    _Atomic size_t n_published; /* while it runs; the last token comes with `done`: a reader must know that it is a stop id */
    _Atomic int finish;         /* enum gen_finish, stored before done */
    _Atomic int done, cancel;
    struct gen *next; /* in the inbox */
    size_t rows;      /* in the step under way */
    int32_t sampled;  /* in the step under way */
};

#endif

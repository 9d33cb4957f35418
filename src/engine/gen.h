/* Inside a gen: what engine.c, gen.c and sampler.c share. The engine thread owns everything but the atomics once the
 * gen was submitted. */
#ifndef INFERD_ENGINE_GEN_H
#define INFERD_ENGINE_GEN_H

#include "engine/engine.h"

#include <stdatomic.h>

struct gen {
    struct gen_params params; /* bias and stop_ids are our copies */
    int32_t *tokens;          /* [n_prompt + max_tokens]: prompt, then outputs */
    size_t n_prompt, n_output;
    struct gen_logprob *logprobs;        /* [max_tokens] or NULL */
    struct gen_logprob *prompt_logprobs; /* [n_prompt] or NULL */
    struct err error;
    struct gen_stats stats;
    _Atomic size_t n_published;
    _Atomic int finish;    /* enum gen_finish, stored before done */
    _Atomic int done, cancel;
    /* engine thread */
    struct gen *next;      /* in the inbox or the waiting list */
    size_t n_computed;     /* positions whose keys and values are in pages */
    size_t n_shared;       /* pages known to the prefix cache, from the front */
    uint64_t chain;        /* serial of the last of them: the parent of the next page */
    int32_t *pages;        /* [pages_max] */
    size_t n_pages, pages_max;
    uint64_t rope_class;
    size_t rows;           /* in the step under way */
    uint64_t arrival;      /* order of submission */
};

#endif

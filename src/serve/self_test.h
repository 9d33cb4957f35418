/* What a loaded model answers to a few fixed ids, so that it can be held against itself and against what is known of it.
 *
 *   finite   no logit is infinite or no number
 *   same     the ids one by one over the cache, and all at once, give equal logits, to the bit
 *   bits     a hash of all of them: two answers of one model by one program on one kind of processor are equal in it
 *
 * Thread: one that no other step of the model runs beside; before an engine has it. Memory: the caller's; keys and values
 * are taken for the call, SELF_TEST_TOKENS_MAX tokens at most. */
#ifndef INFERD_SERVE_SELF_TEST_H
#define INFERD_SERVE_SELF_TEST_H

#include "model/model.h"

#define SELF_TEST_TOKENS_MAX 1024 /* prompt and answer together */
#define SELF_TEST_PROMPT     8    /* fixed ids of self_test_answer ... */
#define SELF_TEST_IDS_MAX    32   /* ... and at most so many greedy ones behind them */

struct self_test_answer {
    size_t n_prompt, n; /* ids[0, n_prompt) are the prompt, ids[n_prompt, n) the answer */
    int32_t ids[SELF_TEST_PROMPT + SELF_TEST_IDS_MAX];
    uint64_t bits;
};

/* A greedy answer of n_ids to the fixed prompt (shorter where the context is). ERR_MODEL_DAMAGED: a logit is not finite,
 * or depends on what was computed together. */
bool self_test_answer(struct model *m, const struct model_options *o, size_t n_ids, struct self_test_answer *out,
                      struct err *err);

/* One step over one fixed id. ERR_MODEL_DAMAGED: a logit is not finite. */
bool self_test_token(struct model *m, const struct model_options *o, struct err *err);

/* What somebody else computed: log-probabilities of ids[1, n) after those before them, and greedy ids behind all n with the
 * margins of their logits (behind a margin under SELF_TEST_MARGIN two programs may go different ways: what follows is not
 * compared). */
#define SELF_TEST_MARGIN 1e-3
struct self_test_golden {
    const int32_t *ids, *greedy;
    const double *logprobs, *margins; /* [n - 1], [n_greedy] */
    size_t n, n_greedy;
};
/* *worst: the largest difference of a log-probability. *n_same: greedy ids that are equal; *n_compared of n_greedy.
 * ERR_MODEL_DAMAGED: a logit is not finite. ERR_INVALID_REQUEST: the ids are none of this model. */
bool self_test_compare(struct model *m, const struct model_options *o, const struct self_test_golden *g, double *worst,
                       size_t *n_same, size_t *n_compared, struct err *err);

#endif

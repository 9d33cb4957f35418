/* What a model's answer to fixed ids is held against, by `inferd verify` and by a reload:
 *
 *   the kept answer   DATA_DIR/golden/HASH.json, which `inferd verify` wrote: of the same files, profile, type of keys and
 *                     values, program and kind of processor it must be equal to the bit
 *   golden.json       in the model's folder, what another program computed from these weights (docs/formats.md): of the
 *                     exact profile the log-probabilities must be within its bound
 *
 * Thread: as self_test.h. Memory: the caller's. */
#ifndef INFERD_SERVE_GOLDEN_H
#define INFERD_SERVE_GOLDEN_H

#include "base/clock.h"
#include "serve/self_test.h"

#define GOLDEN_PATH_BYTES 4096
#define GOLDEN_IDS        24 /* of the kept answer */

/* A loaded model, and where it is from; all borrowed. */
struct golden_subject {
    const char *data_dir, *id;
    const char *path; /* of its folder or file */
    uint64_t bytes;   /* of all its files, and the time of the newest, as the catalog has them */
    int64_t mtime;
    struct model *m;
    const struct model_options *o; /* how it was loaded; rows_max bounds a step of the test */
    enum profile profile;          /* which it is held in */
    size_t tokens_max;             /* that there is memory for */
};

/* made_at: when the answer was kept that `a`, a self_test_answer of GOLDEN_IDS, is equal to; "" where none is kept of these
 * files. ERR_MODEL_DAMAGED: it differs. */
bool golden_compare_kept(const struct golden_subject *s, const struct self_test_answer *a, char made_at[CLOCK_TEXT_BYTES],
                         struct err *err);
/* An answer of these files is kept, so that it is worth the time to compute one. */
bool golden_is_kept(const struct golden_subject *s);
/* Keeps the answer for the next time, whole or not at all; `path` tells where. */
bool golden_keep(const struct golden_subject *s, const struct self_test_answer *a, char path[GOLDEN_PATH_BYTES],
                 struct err *err);

/* golden.json: whether there is one, and how far the model is from it. */
struct golden_distance {
    char path[GOLDEN_PATH_BYTES];
    size_t n_logprobs, n_same; /* log-probabilities; greedy ids that are equal */
    double worst, most;        /* the largest difference of a log-probability, and what is allowed */
};
bool golden_is_there(const struct golden_subject *s);
/* Whether weights, keys and values are held as exactly as golden.json asks. */
bool golden_is_exact(const struct golden_subject *s);
/* golden_is_exact. ERR_MODEL_DAMAGED: it is not what golden.json was made from. ERR_INVALID_REQUEST:
 * golden.json is not of its form, or has more than tokens_max tokens. */
bool golden_compare_file(const struct golden_subject *s, struct golden_distance *out, struct err *err);

#endif

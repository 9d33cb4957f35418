/* One engine step: a flattened batch of token rows from many sequences (prompt chunks and single decode tokens mixed).
 * Plain data, built by the engine, read by model and backend during the step. */
#ifndef INFERD_BACKEND_BATCH_H
#define INFERD_BACKEND_BATCH_H

#include <stddef.h>
#include <stdint.h>

#define KV_PAGE_TOKENS 32 /* positions in a KV page; attention sums over blocks of this many absolute positions */

/* The rows [row, row + n_rows) of the batch belong to one sequence and are its positions [pos, pos + n_rows). */
struct batch_seq {
    const int32_t *pages; /* page numbers, pages[p / KV_PAGE_TOKENS] holds position p; covers pos + n_rows positions */
    size_t n_pages;
    size_t row, n_rows;
    size_t pos;
    size_t n_prompt; /* length of the sequence's prompt, the same in all its steps; 0: not told. See model_rope_class */
};

struct batch {
    const int32_t *ids;       /* [n_rows] token ids */
    const int32_t *positions; /* [n_rows] absolute */
    size_t n_rows;
    const struct batch_seq *seqs;
    size_t n_seqs;
    const int32_t *logit_rows; /* [n_logit_rows] rows whose logits are wanted, ascending */
    size_t n_logit_rows;
};

#endif

/* From logits to a token: bias, penalties, temperature, min_p, top_k, top_p, draw. The rule is the wire contract's, in
 * docs/numerics.md. Pure: the same logits, history and seed give the same token. Scratch is taken once; one thread a
 * sampler. Nothing is sorted: a few passes over the vocabulary, sixteen logits at a time. */
#ifndef INFERD_ENGINE_SAMPLER_H
#define INFERD_ENGINE_SAMPLER_H

#include "engine/gen.h"

struct sampler {
    size_t n_vocab;
    float *work;      /* [n_vocab]: penalised logits, then probabilities of those left */
    float *aux;       /* [n_vocab] */
    int32_t *ids;     /* [n_vocab]: those left */
    uint32_t *counts; /* [n_vocab], all zero between calls */
};

bool sampler_open(struct sampler *s, size_t n_vocab, struct err *err);
void sampler_close(struct sampler *s);
size_t sampler_bytes(size_t n_vocab);
/* The next token of `g` (position = number of outputs so far); -1 when no logit is a finite number. */
int32_t sampler_sample(struct sampler *s, const struct gen *g, const float *logits);
/* Log-probability of `id` and of the n_top best (ties: lowest id first) under softmax(logits). */
void sampler_logprob(struct sampler *s, const float *logits, int32_t id, int n_top, struct gen_logprob *out);

#endif

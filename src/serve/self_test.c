/* A model's answer to fixed ids; see self_test.h. */
#include "serve/self_test.h"

#include "base/str.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define STRIDE    31u /* between the fixed ids */
#define ROWS      64  /* of a step, at most */
#define PAGES_MAX ((SELF_TEST_TOKENS_MAX + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS)

struct run {
    struct model *m;
    struct kv_cache kv;
    int32_t pages[PAGES_MAX];
    size_t n_pages, rows_max, n_vocab, n_prompt;
};

static bool open_run(struct run *r, struct model *m, const struct model_options *o, size_t n_tokens, size_t n_prompt,
                     struct err *err)
{
    *r = (struct run){.m = m, .kv = model_kv_shape(m), .n_vocab = model_info(m)->n_vocab, .n_prompt = n_prompt};
    r->rows_max = o->rows_max < o->logit_rows_max ? o->rows_max : o->logit_rows_max;
    r->rows_max = r->rows_max < ROWS ? r->rows_max : ROWS;
    r->kv.n_pages = r->n_pages = (n_tokens + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    for (size_t i = 0; i < r->n_pages; i++)
        r->pages[i] = (int32_t)i;
    r->kv.data = backend_alloc(model_backend(m), r->n_pages * r->kv.n_layers * r->kv.layer_bytes, err);
    return r->kv.data != NULL;
}

static void close_run(struct run *r)
{
    backend_free(model_backend(r->m), r->kv.data, r->n_pages * r->kv.n_layers * r->kv.layer_bytes);
}

/* A step over ids[0, n) at `pos`, n at most rows_max: [n][n_vocab] logits. NULL where one is not finite. */
static const float *step(struct run *r, const int32_t *ids, size_t n, size_t pos, struct err *err)
{
    int32_t positions[ROWS], rows[ROWS];
    for (size_t i = 0; i < n; i++) {
        positions[i] = (int32_t)(pos + i);
        rows[i] = (int32_t)i;
    }
    struct batch_seq seq = {.pages = r->pages, .n_pages = r->n_pages, .n_rows = n, .pos = pos, .n_prompt = r->n_prompt};
    struct batch batch = {
        .ids = ids, .positions = positions, .n_rows = n, .seqs = &seq, .n_seqs = 1, .logit_rows = rows, .n_logit_rows = n};
    const float *logits = model_forward(r->m, &r->kv, &batch);
    for (size_t i = 0; i < n * r->n_vocab; i++) {
        if (isfinite(logits[i]))
            continue;
        err_set(err, ERR_MODEL_DAMAGED,
                "Its answer to %zu fixed token%s has a logit that is not finite: its weights are damaged. "
                "inferd verify tells which file of a pulled model, inferd pull fetches it again.",
                r->n_prompt, r->n_prompt == 1 ? "" : "s");
        return NULL;
    }
    return logits;
}

static int32_t best_of(const float *logits, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    return (int32_t)best;
}

static uint64_t row_bits(const struct run *r, const float *logits)
{
    return str_hash((struct str){(const char *)logits, r->n_vocab * sizeof *logits});
}

/* ids[from, to) in steps of `rows` at most; bits[i]: of the logits behind ids[i]. *last: their arg-max behind the last. */
static bool feed(struct run *r, const int32_t *ids, size_t from, size_t to, uint64_t *bits, int32_t *last, struct err *err)
{
    for (size_t at = from; at < to;) {
        size_t n = to - at < r->rows_max ? to - at : r->rows_max;
        const float *logits = step(r, ids + at, n, at, err);
        if (!logits)
            return false;
        for (size_t i = 0; i < n; i++)
            bits[at + i] = row_bits(r, logits + i * r->n_vocab);
        *last = best_of(logits + (n - 1) * r->n_vocab, r->n_vocab);
        at += n;
    }
    return true;
}

bool self_test_answer(struct model *m, const struct model_options *o, size_t n_ids, struct self_test_answer *out,
                      struct err *err)
{
    const struct model_info *info = model_info(m);
    uint64_t one_by_one[SELF_TEST_PROMPT + SELF_TEST_IDS_MAX], at_once[SELF_TEST_PROMPT + SELF_TEST_IDS_MAX];
    int32_t next = 0;
    struct run r;
    *out = (struct self_test_answer){.n_prompt = SELF_TEST_PROMPT, .n = SELF_TEST_PROMPT + n_ids};
    if (out->n > info->context_max)
        out->n = info->context_max;
    if (out->n_prompt >= out->n)
        out->n_prompt = 1;
    for (size_t i = 0; i < out->n_prompt; i++)
        out->ids[i] = (int32_t)((i + 1) * STRIDE % info->n_vocab);
    if (!open_run(&r, m, o, out->n, out->n_prompt, err))
        return false;
    bool ok = feed(&r, out->ids, 0, out->n_prompt, one_by_one, &next, err);
    for (size_t i = out->n_prompt; ok && i < out->n; i++) {
        out->ids[i] = next;
        ok = feed(&r, out->ids, i, i + 1, one_by_one, &next, err);
    }
    ok = ok && feed(&r, out->ids, 0, out->n, at_once, &next, err);
    close_run(&r);
    if (!ok)
        return false;
    out->bits = str_hash((struct str){(const char *)one_by_one, out->n * sizeof *one_by_one});
    size_t bad = 0;
    while (bad < out->n && one_by_one[bad] == at_once[bad])
        bad++;
    return bad == out->n || err_set(err, ERR_MODEL_DAMAGED,
                                    "Its logits behind token %zu of %zu fixed ones differ between tokens "
                                    "one by one and all at once: the memory or the processor is at fault, or this program.",
                                    bad + 1, out->n);
}

bool self_test_token(struct model *m, const struct model_options *o, struct err *err)
{
    struct run r;
    int32_t id = (int32_t)(STRIDE % model_info(m)->n_vocab);
    if (!open_run(&r, m, o, 1, 1, err))
        return false;
    bool ok = step(&r, &id, 1, 0, err) != NULL;
    close_run(&r);
    return ok;
}

static double logprob(const float *logits, size_t n, int32_t id)
{
    double most = logits[best_of(logits, n)], sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - most);
    return (double)logits[id] - most - log(sum);
}

static bool ids_fit(const struct run *r, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || (size_t)ids[i] >= r->n_vocab)
            return false;
    return true;
}

bool self_test_compare(struct model *m, const struct model_options *o, const struct self_test_golden *g, double *worst,
                       size_t *n_same, size_t *n_compared, struct err *err)
{
    struct run r;
    size_t n_all = g->n + g->n_greedy;
    *worst = 0;
    *n_same = *n_compared = 0;
    if (g->n < 1 || n_all > SELF_TEST_TOKENS_MAX || n_all > model_info(m)->context_max)
        return err_set(err, ERR_INVALID_REQUEST, "It has %zu tokens; from 1 to %d are possible, within the context of %zu.",
                       n_all, SELF_TEST_TOKENS_MAX, model_info(m)->context_max);
    if (!open_run(&r, m, o, n_all, g->n, err))
        return false;
    bool ok = (ids_fit(&r, g->ids, g->n) && ids_fit(&r, g->greedy, g->n_greedy)) ||
              err_set(err, ERR_INVALID_REQUEST, "An id of it is not in the vocabulary of %zu.", r.n_vocab);
    int32_t next = 0;
    for (size_t at = 0; ok && at < g->n;) {
        size_t n = g->n - at < r.rows_max ? g->n - at : r.rows_max;
        const float *logits = step(&r, g->ids + at, n, at, err);
        ok = logits != NULL;
        for (size_t i = 0; ok && i < n; i++) {
            next = best_of(logits + i * r.n_vocab, r.n_vocab);
            if (at + i + 1 >= g->n)
                continue;
            double apart = fabs(logprob(logits + i * r.n_vocab, r.n_vocab, g->ids[at + i + 1]) - g->logprobs[at + i]);
            *worst = apart > *worst ? apart : *worst;
        }
        at += n;
    }
    for (size_t i = 0; ok && i < g->n_greedy && (next == g->greedy[i] || g->margins[i] >= SELF_TEST_MARGIN); i++) {
        ++*n_compared;
        if (next != g->greedy[i])
            break;
        ++*n_same;
        const float *logits = step(&r, &next, 1, g->n + i, err);
        ok = logits != NULL;
        next = ok ? best_of(logits, r.n_vocab) : 0;
    }
    close_run(&r);
    return ok;
}

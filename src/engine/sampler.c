/* From logits to a token; see sampler.h. */
#include "engine/sampler.h"

#include "base/rand.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

bool sampler_open(struct sampler *s, size_t n_vocab, struct err *err)
{
    *s = (struct sampler){n_vocab, malloc(n_vocab * sizeof(float)), malloc(n_vocab * sizeof(float)),
                          malloc(n_vocab * sizeof(int32_t)), calloc(n_vocab, sizeof(uint32_t))};
    if (s->work && s->order && s->ids && s->counts)
        return true;
    sampler_close(s);
    return err_set(err, ERR_MEMORY, "Out of memory for sampling over %zu tokens.", n_vocab);
}

void sampler_close(struct sampler *s)
{
    free(s->work);
    free(s->order);
    free(s->ids);
    free(s->counts);
    memset(s, 0, sizeof *s);
}

size_t sampler_bytes(size_t n_vocab)
{
    return n_vocab * 16;
}

static int32_t arg_max(const float *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return (int32_t)best;
}

static bool plain(const struct gen_params *p)
{
    return p->n_bias == 0 && p->repetition_penalty == 1 && p->presence_penalty == 0 && p->frequency_penalty == 0;
}

static void repeat_penalty(struct sampler *s, const struct gen *g, float r)
{
    for (size_t i = 0; i < g->seq.n_prompt + g->n_output; i++) {
        int32_t id = g->seq.tokens[i];
        if (s->counts[id])
            continue;
        s->counts[id] = 1;
        s->work[id] = s->work[id] > 0 ? s->work[id] / r : s->work[id] * r;
    }
    for (size_t i = 0; i < g->seq.n_prompt + g->n_output; i++)
        s->counts[g->seq.tokens[i]] = 0;
}

static void output_penalties(struct sampler *s, const struct gen *g, float presence, float frequency)
{
    const int32_t *out = g->seq.tokens + g->seq.n_prompt;
    for (size_t i = 0; i < g->n_output; i++)
        s->counts[out[i]]++;
    for (size_t i = 0; i < g->n_output; i++) {
        uint32_t n = s->counts[out[i]];
        if (n)
            s->work[out[i]] -= frequency * (float)n + presence;
        s->counts[out[i]] = 0;
    }
}

static void apply_penalties(struct sampler *s, const struct gen *g)
{
    const struct gen_params *p = &g->params;
    for (size_t i = 0; i < p->n_bias; i++)
        s->work[p->bias[i].id] += p->bias[i].bias;
    if (p->repetition_penalty != 1)
        repeat_penalty(s, g, (float)p->repetition_penalty);
    if (p->presence_penalty != 0 || p->frequency_penalty != 0)
        output_penalties(s, g, (float)p->presence_penalty, (float)p->frequency_penalty);
}

/* The k-th largest of x[0..n), 1 <= k <= n: the front of x becomes a heap of the k largest seen so far. */
static float kth_largest(float *x, size_t n, size_t k)
{
    for (size_t i = 0; i < n; i++) {
        if (i >= k && !(x[i] > x[0]))
            continue;
        size_t at;
        float v = x[i];
        if (i < k) { /* sift up */
            for (at = i; at > 0 && x[(at - 1) / 2] > v; at = (at - 1) / 2)
                x[at] = x[(at - 1) / 2];
        } else { /* replace the least */
            for (at = 0; at * 2 + 1 < k;) {
                size_t child = at * 2 + 1;
                child += child + 1 < k && x[child + 1] < x[child];
                if (x[child] >= v)
                    break;
                x[at] = x[child];
                at = child;
            }
        }
        x[at] = v;
    }
    return x[0];
}

static int compare(const void *a, const void *b, void *ctx)
{
    const float *x = ctx;
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    return x[i] > x[j] ? -1 : x[i] < x[j] ? 1 : i < j ? -1 : 1;
}

/* Candidates in s->ids whose probability mass reaches top_p, best first; the one that crosses stays. */
static size_t keep_top_p(struct sampler *s, size_t n, float best, double top_p)
{
    double total = 0;
    for (size_t i = 0; i < n; i++)
        total += exp((double)(s->work[s->ids[i]] - best));
    for (float depth = 8; depth < 1e6f; depth *= 8) {
        /* those near the best first: usually they hold the mass, and sorting all would cost more than the step */
        size_t m = 0;
        double mass = 0;
        for (size_t i = 0; i < n; i++)
            if (s->work[s->ids[i]] >= best - depth) {
                int32_t id = s->ids[i];
                s->ids[i] = s->ids[m];
                s->ids[m++] = id;
                mass += exp((double)(s->work[id] - best));
            }
        if (mass < top_p * total && m < n)
            continue;
        qsort_r(s->ids, m, sizeof *s->ids, compare, s->work);
        double sum = 0;
        for (size_t i = 0; i < m; i++) {
            sum += exp((double)(s->work[s->ids[i]] - best));
            if (sum >= top_p * total)
                return i + 1;
        }
        return m;
    }
    return n;
}

int32_t sampler_sample(struct sampler *s, const struct gen *g, const float *logits)
{
    const struct gen_params *p = &g->params;
    const float *from = logits;
    if (!plain(p)) {
        memcpy(s->work, logits, s->n_vocab * sizeof *logits);
        apply_penalties(s, g);
        from = s->work;
    }
    int32_t top = arg_max(from, s->n_vocab);
    if (!isfinite(from[top]))
        return -1;
    if (p->temperature == 0)
        return top;
    float scale = (float)(1 / p->temperature), best = from[top] * scale, floor_ = -INFINITY;
    for (size_t i = 0; i < s->n_vocab; i++)
        s->work[i] = from[i] * scale;
    if (p->min_p > 0)
        floor_ = best + (float)log(p->min_p);
    if (p->top_k > 0 && (size_t)p->top_k < s->n_vocab) {
        size_t n = 0;
        for (size_t i = 0; i < s->n_vocab; i++)
            if (s->work[i] >= floor_)
                s->order[n++] = s->work[i];
        if ((size_t)p->top_k < n) {
            float kth = kth_largest(s->order, n, (size_t)p->top_k);
            floor_ = kth > floor_ ? kth : floor_;
        }
    }
    size_t n = 0;
    for (size_t i = 0; i < s->n_vocab; i++)
        if (s->work[i] >= floor_)
            s->ids[n++] = (int32_t)i;
    if (n == 0)
        return top; /* only NaN logits end here */
    if (p->top_p < 1)
        n = keep_top_p(s, n, best, p->top_p);
    double total = 0, sum = 0;
    for (size_t i = 0; i < n; i++)
        total += s->order[i] = expf(s->work[s->ids[i]] - best);
    double draw = rand_uniform(p->seed, p->choice, g->n_output) * total;
    for (size_t i = 0; i < n; i++) {
        sum += s->order[i];
        if (sum > draw)
            return s->ids[i];
    }
    return s->ids[n - 1];
}

void sampler_logprob(struct sampler *s, const float *logits, int32_t id, int n_top, struct gen_logprob *out)
{
    float best = logits[arg_max(logits, s->n_vocab)];
    double total = 0;
    for (size_t i = 0; i < s->n_vocab; i++)
        total += exp((double)(logits[i] - best));
    double norm = (double)best + log(total);
    out->logprob = (float)((double)logits[id] - norm);
    out->n_top = 0;
    for (size_t i = 0; i < s->n_vocab && n_top > 0; i++) {
        int at = out->n_top;
        if (at == n_top && logits[i] <= out->top_logprobs[at - 1])
            continue;
        at = at < n_top ? at : n_top - 1;
        while (at > 0 && out->top_logprobs[at - 1] < logits[i])
            at--;
        int last = out->n_top < n_top ? out->n_top : n_top - 1;
        memmove(out->top_ids + at + 1, out->top_ids + at, (size_t)(last - at) * sizeof *out->top_ids);
        memmove(out->top_logprobs + at + 1, out->top_logprobs + at, (size_t)(last - at) * sizeof *out->top_logprobs);
        out->top_ids[at] = (int32_t)i;
        out->top_logprobs[at] = logits[i];
        out->n_top += out->n_top < n_top;
    }
    for (int k = 0; k < out->n_top; k++)
        out->top_logprobs[k] = (float)((double)out->top_logprobs[k] - norm);
}

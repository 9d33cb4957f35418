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
    if (s->work && s->aux && s->ids && s->counts)
        return true;
    sampler_close(s);
    return err_set(err, ERR_MEMORY, "Out of memory for sampling over %zu tokens.", n_vocab);
}

void sampler_close(struct sampler *s)
{
    free(s->work);
    free(s->aux);
    free(s->ids);
    free(s->counts);
    memset(s, 0, sizeof *s);
}

size_t sampler_bytes(size_t n_vocab)
{
    return n_vocab * 16;
}

#define TOP_P_CUT 0x1p-6f /* of the best, and again of that, until those above hold the mass */

/* ---- four at a time: what every processor of the kind has; memory sets the pace ---- */

#define LANES  4
#define STRIPE 16  /* looked at as one */
#define BLOCK  256 /* terms that are summed in single precision, a quarter of them in a row */

typedef float vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t veci __attribute__((vector_size(LANES * sizeof(int32_t))));

static vec load(const float *x)
{
    vec v;
    memcpy(&v, x, sizeof v);
    return v;
}

static vec choose(veci mask, vec a, vec b)
{
    return (vec)(((veci)a & mask) | ((veci)b & ~mask));
}

static vec all(float x)
{
    return x - (vec){0};
}

static bool any(veci mask)
{
    uint64_t half[2];
    memcpy(half, &mask, sizeof half);
    return half[0] | half[1];
}

/* The first i' >= i with x[i'] >= least; n when there is none. NaN is never. */
static size_t next_at_least(const float *x, size_t i, size_t n, float least)
{
    vec floor_ = all(least);
    for (;;) {
        for (; i < n && (i % STRIPE || i + STRIPE > n); i++)
            if (x[i] >= least)
                return i;
        if (i >= n)
            return n;
        for (; i + STRIPE <= n; i += STRIPE)
            if (any((load(x + i) >= floor_) | (load(x + i + LANES) >= floor_) | (load(x + i + 2 * LANES) >= floor_) |
                    (load(x + i + 3 * LANES) >= floor_)))
                break;
        for (size_t end = i + STRIPE < n ? i + STRIPE : n; i < end; i++)
            if (x[i] >= least)
                return i;
    }
}

/* The largest; NaN is passed over; -inf when there is no other. */
static float largest(const float *x, size_t n)
{
    vec most[4] = {all(-INFINITY), all(-INFINITY), all(-INFINITY), all(-INFINITY)};
    size_t i = 0;
    for (; i + STRIPE <= n; i += STRIPE)
        for (size_t k = 0; k < 4; k++) {
            vec v = load(x + i + k * LANES);
            most[k] = choose(v > most[k], v, most[k]);
        }
    float best = -INFINITY;
    for (size_t k = 0; k < STRIPE; k++)
        best = most[k / LANES][k % LANES] > best ? most[k / LANES][k % LANES] : best;
    for (; i < n; i++)
        best = x[i] > best ? x[i] : best;
    return best;
}

/* exp(x) for x <= 0, to 2 units in the last place; 0 below -87 and for NaN. exp(x) = 2^n exp(r), |r| <= log(2) / 2. */
static inline __attribute__((always_inline)) vec exp_negative(vec x)
{
    const float round = 12582912.0f; /* 1.5 * 2^23 */
    veci valid = x >= all(-87);
    x = choose(valid, x, all(-87));
    vec n = (x * 1.44269504f + round) - round;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec y = ((((((1.0f / 5040) * r + 1.0f / 720) * r + 1.0f / 120) * r + 1.0f / 24) * r + 1.0f / 6) * r + 0.5f) * r * r + r + 1;
    veci power = (__builtin_convertvector(n, veci) + 127) << 23;
    return (vec)((veci)(y * (vec)power) & valid);
}

static float sum_lanes(vec v)
{
    float sum = 0;
    for (int k = 0; k < LANES; k++)
        sum += v[k];
    return sum;
}

/* out[i] = exp((x[i] - best) / temperature), out may be x; returns the sum. */
static double exp_all(const float *x, size_t n, float best, float temperature, float *out)
{
    double total = 0;
    vec scale = all(temperature), top = all(best);
    size_t i = 0;
    while (i + LANES <= n) {
        vec sum = {0};
        for (size_t end = n - i < BLOCK ? n : i + BLOCK; i + LANES <= end; i += LANES) {
            vec v = exp_negative((load(x + i) - top) / scale);
            memcpy(out + i, &v, sizeof v);
            sum += v;
        }
        total += (double)sum_lanes(sum);
    }
    if (i < n) {
        vec v = all(-INFINITY);
        memcpy(&v, x + i, (n - i) * sizeof *x);
        v = exp_negative((v - top) / scale);
        memcpy(out + i, &v, (n - i) * sizeof *x);
        total += (double)sum_lanes(v);
    }
    return total;
}

/* ---- bias and penalties ---- */

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

/* ---- who is left, and the draw ---- */

static float above(float x)
{
    return nextafterf(x, INFINITY);
}

/* The k-th largest of x[0..n), 1 <= k <= n: heap[0..k) becomes a heap of the k largest seen so far. */
static float kth_largest(const float *x, size_t n, size_t k, float *heap)
{
    size_t len = 0;
    for (size_t i = 0; i < n; i++) {
        i = next_at_least(x, i, n, len < k ? -INFINITY : above(heap[0]));
        if (i == n)
            break;
        size_t at;
        float v = x[i];
        if (len < k) { /* sift up */
            for (at = len++; at > 0 && heap[(at - 1) / 2] > v; at = (at - 1) / 2)
                heap[at] = heap[(at - 1) / 2];
        } else { /* replace the least */
            for (at = 0; at * 2 + 1 < k;) {
                size_t child = at * 2 + 1;
                child += child + 1 < k && heap[child + 1] < heap[child];
                if (heap[child] >= v)
                    break;
                heap[at] = heap[child];
                at = child;
            }
        }
        heap[at] = v;
    }
    return len < k ? -INFINITY : heap[0];
}

/* Those of x that are at least `least`: ids in ascending order, values in out (may be x). */
static size_t keep(const float *x, size_t n, float least, int32_t *ids, float *out)
{
    size_t m = 0;
    for (size_t i = next_at_least(x, 0, n, least); i < n; i = next_at_least(x, i + 1, n, least)) {
        ids[m] = (int32_t)i;
        out[m++] = x[i];
    }
    return m;
}

#define RADIX_BITS 10
#define RADIX      (1 << RADIX_BITS)

static uint32_t bits_of(float p)
{
    uint32_t b;
    memcpy(&b, &p, sizeof b);
    return b;
}

/* Where the mass of the largest of p[0..n) reaches `target`: all that are larger than the result are kept, and *ties of
 * those equal to it. Probabilities order as their bits do, so three rounds of RADIX_BITS find it. */
static float find_crossing(const float *p, size_t n, double target, size_t *ties)
{
    double mass[RADIX], larger = 0;
    uint32_t prefix = 0;
    for (int shift = 2 * RADIX_BITS; shift >= 0; shift -= RADIX_BITS) {
        int k = RADIX - 1;
        memset(mass, 0, sizeof mass);
        for (size_t i = 0; i < n; i++) {
            uint32_t b = bits_of(p[i]);
            if (b >> shift >> RADIX_BITS == prefix)
                mass[b >> shift & (RADIX - 1)] += (double)p[i];
        }
        for (; k > 0 && larger + mass[k] < target; k--)
            larger += mass[k];
        prefix = prefix << RADIX_BITS | (uint32_t)k;
    }
    float least;
    memcpy(&least, &prefix, sizeof least);
    *ties = least > 0 ? (size_t)ceil((target - larger) / (double)least) : n;
    return least;
}

/* The largest of s->work[0..n), which add up to `total`, whose mass reaches top_p, with the one that crosses it; among
 * equals the lowest ids. Mostly a few hold the mass: look among those near the best first. */
static size_t keep_top_p(struct sampler *s, size_t n, double total, double top_p)
{
    size_t ties, m = 0, kept = 0;
    double mass = 0;
    for (float cut = TOP_P_CUT; mass < top_p * total && m<n; cut = cut> 1e-30f ? cut * TOP_P_CUT : 0) {
        m = 0;
        mass = 0;
        for (size_t i = next_at_least(s->work, 0, n, cut); i < n; i = next_at_least(s->work, i + 1, n, cut)) {
            s->aux[m++] = s->work[i];
            mass += (double)s->work[i];
        }
    }
    float least = find_crossing(s->aux, m, top_p * total, &ties);
    for (size_t i = next_at_least(s->work, 0, n, least); i < n; i = next_at_least(s->work, i + 1, n, least)) {
        if (s->work[i] == least && ties-- == 0) {
            ties = 0;
            continue;
        }
        s->ids[kept] = s->ids[i];
        s->work[kept++] = s->work[i];
    }
    return kept;
}

static double sum_block(const float *p, size_t n)
{
    double sum = 0;
    vec lanes = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        lanes += load(p + i);
    for (; i < n; i++)
        sum += (double)p[i];
    return sum + (double)sum_lanes(lanes);
}

/* The index at which the running sum of p[0..n) passes `uniform` of the whole. */
static size_t draw(const float *p, size_t n, double uniform)
{
    double total = 0, sum = 0;
    for (size_t i = 0; i < n; i += BLOCK)
        total += sum_block(p + i, n - i < BLOCK ? n - i : BLOCK);
    size_t last = 0;
    for (size_t begin = 0; begin < n; begin += BLOCK) {
        size_t end = n - begin < BLOCK ? n : begin + BLOCK;
        double block = sum_block(p + begin, end - begin);
        if (sum + block <= uniform * total) {
            sum += block;
            continue;
        }
        for (size_t i = begin; i < end; i++) {
            sum += (double)p[i];
            last = p[i] > 0 ? i : last;
            if (sum > uniform * total)
                return i;
        }
        return last; /* the two sums of a block differ in their last place */
    }
    return last;
}

int32_t sampler_sample(struct sampler *s, const struct gen *g, const float *logits)
{
    const struct gen_params *p = &g->params;
    const float *from = logits;
    size_t n = s->n_vocab;
    if (!plain(p)) {
        memcpy(s->work, logits, n * sizeof *logits);
        apply_penalties(s, g);
        from = s->work;
    }
    float best = largest(from, n), temperature = (float)p->temperature, least = -INFINITY;
    if (!isfinite(best))
        return -1;
    if (temperature == 0 || p->top_p == 0) /* of no mass, the one that crosses it is left */
        return (int32_t)next_at_least(from, 0, n, best);
    if (p->top_k > 0 && (size_t)p->top_k < n)
        least = kth_largest(from, n, (size_t)p->top_k, s->aux);
    if (p->min_p > 0) {
        float floor_ = best + temperature * logf((float)p->min_p);
        least = floor_ > least ? floor_ : least;
    }
    double uniform = rand_uniform(p->seed, p->choice, g->n_output);
    if (least == -INFINITY && p->top_p >= 1) {
        exp_all(from, n, best, temperature, s->aux);
        return (int32_t)draw(s->aux, n, uniform);
    }
    if (least > -INFINITY) {
        n = keep(from, n, least, s->ids, s->work);
        from = s->work;
    } else {
        for (size_t i = 0; i < n; i++)
            s->ids[i] = (int32_t)i;
    }
    double total = exp_all(from, n, best, temperature, s->work);
    if (p->top_p < 1)
        n = keep_top_p(s, n, total, p->top_p);
    return s->ids[draw(s->work, n, uniform)];
}

void sampler_logprob(struct sampler *s, const float *logits, int32_t id, int n_top, struct gen_logprob *out)
{
    size_t n = s->n_vocab;
    float best = largest(logits, n), least = -INFINITY;
    double norm = (double)best + log(exp_all(logits, n, best, 1, s->aux));
    out->logprob = (float)((double)logits[id] - norm);
    out->n_top = 0;
    for (size_t i = 0; i < n && n_top > 0; i++) {
        i = next_at_least(logits, i, n, least);
        if (i == n)
            break;
        int at = out->n_top < n_top ? out->n_top++ : n_top - 1;
        for (; at > 0 && out->top_logprobs[at - 1] < logits[i]; at--) {
            out->top_ids[at] = out->top_ids[at - 1];
            out->top_logprobs[at] = out->top_logprobs[at - 1];
        }
        out->top_ids[at] = (int32_t)i;
        out->top_logprobs[at] = logits[i];
        if (out->n_top == n_top)
            least = above(out->top_logprobs[n_top - 1]);
    }
    for (int k = 0; k < out->n_top; k++)
        out->top_logprobs[k] = (float)((double)out->top_logprobs[k] - norm);
}

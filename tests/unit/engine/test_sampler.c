/* The sampler against a slow twin that follows the wire contract's rule word by word, and against statistics. */
#include "base/rand.h"
#include "engine/sampler.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define VOCAB_MAX 3000
#define NEAR      1e-6 /* single precision decides otherwise only so close to an edge */

static uint64_t draws, seed = 20240607;

static double uniform(void)
{
    return rand_uniform(seed, 5, draws++);
}

static size_t below(size_t n)
{
    return (size_t)(uniform() * (double)n);
}

/* ---- the twin ---- */

static const float *order_by;

static int better(const void *a, const void *b)
{
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    return order_by[i] > order_by[j] ? -1 : order_by[i] < order_by[j] ? 1 : i < j ? -1 : i > j;
}

static void twin_penalties(const struct gen *g, float *l, size_t n)
{
    const struct gen_params *p = &g->params;
    for (size_t i = 0; i < p->n_bias; i++)
        l[p->bias[i].id] += p->bias[i].bias;
    for (size_t id = 0; id < n; id++) {
        size_t in_prompt = 0, in_output = 0;
        for (size_t i = 0; i < g->seq.n_prompt; i++)
            in_prompt += g->seq.tokens[i] == (int32_t)id;
        for (size_t i = 0; i < g->n_output; i++)
            in_output += g->seq.tokens[g->seq.n_prompt + i] == (int32_t)id;
        if (in_prompt + in_output)
            l[id] = l[id] > 0 ? l[id] / (float)p->repetition_penalty : l[id] * (float)p->repetition_penalty;
        if (in_output)
            l[id] -= (float)p->frequency_penalty * (float)in_output + (float)p->presence_penalty;
    }
}

/* `u` of the mass of those left; edges moved by `shift`. */
static int32_t twin(const struct gen *g, const float *logits, size_t n, double u, double shift)
{
    static float l[VOCAB_MAX];
    static int32_t sorted[VOCAB_MAX];
    static double prob[VOCAB_MAX];
    const struct gen_params *p = &g->params;
    double total = 0, sum = 0;
    size_t left = n;
    memcpy(l, logits, n * sizeof *l);
    twin_penalties(g, l, n);
    for (size_t i = 0; i < n; i++)
        sorted[i] = (int32_t)i;
    order_by = l;
    qsort(sorted, n, sizeof *sorted, better);
    if (p->temperature == 0)
        return sorted[0];
    for (size_t i = 0; i < n; i++)
        prob[i] = exp(((double)l[sorted[i]] - (double)l[sorted[0]]) / p->temperature);
    while (p->min_p > 0 && left > 1 && prob[left - 1] < p->min_p * (1 + shift))
        left--;
    if (p->top_k > 0 && (size_t)p->top_k < left) {
        size_t k = (size_t)p->top_k;
        while (k < left && l[sorted[k]] == l[sorted[p->top_k - 1]])
            k++;
        left = k;
    }
    for (size_t i = 0; i < left; i++)
        total += prob[i];
    for (size_t i = 0; p->top_p < 1 && i < left; i++) {
        sum += prob[i];
        if (sum >= (p->top_p + shift) * total)
            left = i + 1;
    }
    total = 0;
    static double by_id[VOCAB_MAX];
    memset(by_id, 0, sizeof by_id);
    for (size_t i = 0; i < left; i++) {
        by_id[sorted[i]] = prob[i];
        total += prob[i];
    }
    sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += by_id[i];
        if (sum > (u + shift) * total && by_id[i] > 0)
            return (int32_t)i;
    }
    return sorted[0];
}

/* ---- random cases ---- */

static struct gen *random_gen(size_t n_vocab)
{
    int32_t ids[60];
    struct gen_bias bias[3];
    struct err err = {0};
    size_t n_prompt = 1 + below(30), n_output = below(30);
    for (size_t i = 0; i < 60; i++)
        ids[i] = (int32_t)below(below(2) ? n_vocab : n_vocab / 8 + 1);
    for (size_t i = 0; i < 3; i++)
        bias[i] = (struct gen_bias){(int32_t)below(n_vocab), (float)(uniform() * 20 - 10)};
    static const double temperatures[] = {0, 0.01, 0.5, 1, 1, 2};
    struct gen_params p = {.max_tokens = 40,
                           .top_p = below(2) ? uniform() : 1,
                           .min_p = below(3) ? 0 : uniform() * 0.3,
                           .top_k = below(2) ? 0 : 1 + (int64_t)below(below(2) ? 10 : n_vocab),
                           .temperature = temperatures[below(6)],
                           .seed = below(1u << 30),
                           .choice = (uint32_t)below(3),
                           .repetition_penalty = below(2) ? 1 : 0.7 + uniform(),
                           .top_logprobs = -1,
                           .prompt_logprobs = -1,
                           .presence_penalty = below(3) ? 0 : uniform() * 4 - 2,
                           .frequency_penalty = below(3) ? 0 : uniform() * 4 - 2,
                           .bias = bias,
                           .n_bias = below(3)};
    struct gen *g = gen_new(ids, n_prompt, &p, &err);
    assert_non_null(g);
    for (size_t i = 0; i < n_output; i++)
        g->seq.tokens[n_prompt + i] = ids[30 + i];
    g->n_output = n_output;
    g->seq.n_total += n_output;
    return g;
}

static void random_logits(float *l, size_t n)
{
    double scale = below(2) ? 10 : 1;
    size_t steps = below(2) ? 0 : 1 + below(20); /* ties */
    for (size_t i = 0; i < n; i++) {
        double x = (uniform() + uniform() + uniform() - 1.5) * scale;
        l[i] = (float)(steps ? floor(x * (double)steps) / (double)steps : x);
    }
    if (below(4) == 0)
        l[below(n)] += 30;
    if (below(4) == 0)
        l[below(n)] = -INFINITY;
}

static void test_equals_the_twin(void **state)
{
    (void)state;
    static float logits[VOCAB_MAX];
    size_t near = 0, cases = 4000;
    struct sampler s;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (size_t c = 0; c < cases; c++) {
        size_t n = 1 + below(c % 8 ? 300 : VOCAB_MAX);
        assert_true(sampler_open(&s, n, NULL));
        struct gen *g = random_gen(n);
        random_logits(logits, n);
        logits[below(n)] = 1; /* one is finite */
        double u = rand_uniform(g->params.seed, g->params.choice, g->n_output);
        int32_t got = sampler_sample(&s, g, logits), want = twin(g, logits, n, u, 0);
        if (got != want) {
            near++;
            if (got != twin(g, logits, n, u, NEAR) && got != twin(g, logits, n, u, -NEAR))
                fail_msg("case %zu: token %d, the twin takes %d", c, got, want);
        }
        assert_int_equal(sampler_sample(&s, g, logits), got); /* nothing is left behind from the first time */
        for (size_t i = 0; i < n; i++)
            assert_int_equal(s.counts[i], 0);
        gen_free(g);
        sampler_close(&s);
    }
    assert_true(near < cases / 100);
}

static struct gen *plain_gen(struct gen_params *p)
{
    int32_t one = 0;
    struct gen *g = gen_new(&one, 1, p, NULL);
    assert_non_null(g);
    return g;
}

static struct gen_params plain_params(void)
{
    return (struct gen_params){
        .max_tokens = 4, .temperature = 1, .top_p = 1, .repetition_penalty = 1, .top_logprobs = -1, .prompt_logprobs = -1};
}

static void test_edges(void **state)
{
    (void)state;
    struct sampler s;
    struct gen_params p = plain_params();
    float ties[6] = {1, 5, 5, 2, 5, 1}, none[6];
    assert_true(sampler_open(&s, 6, NULL));
    p.temperature = 0;
    struct gen *g = plain_gen(&p);
    assert_int_equal(sampler_sample(&s, g, ties), 1); /* the lowest id */
    for (int i = 0; i < 6; i++)
        none[i] = i % 2 ? NAN : -INFINITY;
    assert_int_equal(sampler_sample(&s, g, none), -1);
    none[4] = -3;
    assert_int_equal(sampler_sample(&s, g, none), 4);
    g->params.temperature = 1;
    assert_int_equal(sampler_sample(&s, g, none), 4);
    none[4] = INFINITY;
    assert_int_equal(sampler_sample(&s, g, none), -1);
    g->params.temperature = 1e-30;
    for (uint64_t i = 0; i < 50; i++) {
        g->params.seed = i;
        int32_t id = sampler_sample(&s, g, ties);
        assert_true(id == 1 || id == 2 || id == 4);
    }
    g->params.temperature = 1;
    g->params.top_k = 1; /* ties are kept */
    bool seen[6] = {false};
    for (uint64_t i = 0; i < 200; i++) {
        g->params.seed = i;
        seen[sampler_sample(&s, g, ties)] = true;
    }
    assert_true(seen[1] && seen[2] && seen[4] && !seen[0] && !seen[3] && !seen[5]);
    g->params.top_k = 0;
    g->params.top_p = 0.5; /* 5 5 5 share 95 %: two of them cross a half, the lowest ids */
    memset(seen, 0, sizeof seen);
    for (uint64_t i = 0; i < 200; i++) {
        g->params.seed = i;
        seen[sampler_sample(&s, g, ties)] = true;
    }
    assert_true(seen[1] && seen[2] && !seen[4] && !seen[0] && !seen[3] && !seen[5]);
    const double none_of_the_mass[] = {0, 1e-320, 1e-300, 1e-9};
    for (size_t k = 0; k < sizeof none_of_the_mass / sizeof *none_of_the_mass; k++) {
        g->params.top_p = none_of_the_mass[k];
        assert_int_equal(sampler_sample(&s, g, ties), 1);
        g->params.top_k = 5;
        assert_int_equal(sampler_sample(&s, g, ties), 1);
        g->params.top_k = 0;
    }
    gen_free(g);
    sampler_close(&s);
}

/* Pearson's statistic of n draws against the probabilities. */
static double chi_square(const size_t *seen, const double *prob, size_t n_bins, size_t n)
{
    double chi = 0;
    for (size_t i = 0; i < n_bins; i++) {
        double expected = prob[i] * (double)n, off = (double)seen[i] - expected;
        chi += off * off / expected;
    }
    return chi;
}

enum vary { VARY_SEED, VARY_CHOICE, VARY_POSITION };

static void test_draws_are_fair(void **state)
{
    (void)state;
    enum { BINS = 10, N = 20000 };
    struct sampler s;
    float logits[BINS];
    double prob[BINS], total = 0;
    struct gen_params p = plain_params();
    p.temperature = 0.7;
    p.max_tokens = N + 1;
    for (int i = 0; i < BINS; i++) {
        logits[i] = (float)(i * 3 % BINS) * 0.3f;
        prob[i] = exp((double)logits[i] / p.temperature);
        total += prob[i];
    }
    for (int i = 0; i < BINS; i++)
        prob[i] /= total;
    assert_true(sampler_open(&s, BINS, NULL));
    struct gen *g = plain_gen(&p);
    for (enum vary v = VARY_SEED; v <= VARY_POSITION; v++) {
        size_t seen[BINS] = {0}, pairs[4] = {0};
        double even[4] = {0.25, 0.25, 0.25, 0.25};
        int before = 0;
        for (size_t i = 0; i < N; i++) {
            g->params.seed = v == VARY_SEED ? i : 11;
            g->params.choice = v == VARY_CHOICE ? (uint32_t)i : 0;
            g->n_output = v == VARY_POSITION ? i : 0;
            seen[sampler_sample(&s, g, logits)]++;
            int now = rand_uniform(g->params.seed, g->params.choice, g->n_output) < 0.5; /* neighbours are independent */
            if (i % 2)
                pairs[before * 2 + now]++;
            before = now;
        }
        assert_true(chi_square(seen, prob, BINS, N) < 33.7);   /* 9 degrees of freedom: once in 10,000 */
        assert_true(chi_square(pairs, even, 4, N / 2) < 21.1); /* 3 degrees */
    }
    g->n_output = 0;
    gen_free(g);
    sampler_close(&s);
}

static void test_logprobs(void **state)
{
    (void)state;
    static float logits[VOCAB_MAX];
    static int32_t sorted[VOCAB_MAX];
    for (size_t c = 0; c < 400; c++) {
        size_t n = 1 + below(VOCAB_MAX);
        struct sampler s;
        struct gen_logprob out;
        assert_true(sampler_open(&s, n, NULL));
        random_logits(logits, n);
        logits[below(n)] = 1;
        double best = -INFINITY, total = 0;
        for (size_t i = 0; i < n; i++) {
            best = fmax(best, (double)logits[i]);
            sorted[i] = (int32_t)i;
        }
        for (size_t i = 0; i < n; i++)
            total += exp((double)logits[i] - best);
        order_by = logits;
        qsort(sorted, n, sizeof *sorted, better);
        int32_t id = (int32_t)below(n);
        int n_top = (int)below(GEN_TOP_LOGPROBS_MAX + 1);
        sampler_logprob(&s, logits, id, n_top, &out);
        double want = (double)logits[id] - best - log(total);
        assert_true(isinf(want) ? isinf(out.logprob) : fabs((double)out.logprob - want) < 2e-6 * fmax(1, fabs(want)));
        assert_int_equal(out.n_top, (size_t)n_top < n ? n_top : (int)n);
        for (int k = 0; k < out.n_top; k++) {
            want = (double)logits[sorted[k]] - best - log(total);
            assert_int_equal(out.top_ids[k], sorted[k]);
            assert_true(isinf(want) || fabs((double)out.top_logprobs[k] - want) < 2e-6 * fmax(1, fabs(want)));
        }
        sampler_close(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equals_the_twin),
        cmocka_unit_test(test_edges),
        cmocka_unit_test(test_draws_are_fair),
        cmocka_unit_test(test_logprobs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

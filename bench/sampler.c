/* Microseconds a token of the sampler, over a large vocabulary, against one read of the logits.
 * Usage: bench/sampler [VOCAB]   Logits are made up: a few stand out, the rest is noise, as in a model. */
#include "base/rand.h"
#include "engine/sampler.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define REPEATS 200
#define COPIES  8 /* sets of logits in turn: as cold as they come from the forward */

static float *logits;
static size_t n_vocab;

/* Of this thread: others on the machine do not count. */
static uint64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void report(const char *name, double *us)
{
    qsort(us, REPEATS, sizeof *us, by_value);
    printf("%-32s %8.1f us median, %8.1f us p95\n", name, us[REPEATS / 2], us[REPEATS * 95 / 100]);
}

static void measure(const char *name, struct sampler *s, struct gen_params p)
{
    int32_t one = 1;
    double us[REPEATS];
    p.max_tokens = 1;
    p.prompt_logprobs = -1;
    struct gen *g = gen_new(&one, 1, &p, NULL);
    if (!g)
        exit(1);
    for (size_t i = 0; i < REPEATS; i++) {
        uint64_t start = cpu_ns();
        struct gen_logprob out;
        const float *row = logits + i % COPIES * n_vocab;
        g->params.seed = i;
        int32_t id = sampler_sample(s, g, row);
        if (p.top_logprobs >= 0)
            sampler_logprob(s, row, id, p.top_logprobs, &out);
        us[i] = (double)(cpu_ns() - start) / 1e3;
    }
    gen_free(g);
    report(name, us);
}

static void measure_read(void)
{
    double us[REPEATS];
    volatile float sink = 0;
    for (size_t i = 0; i < REPEATS; i++) {
        const float *row = logits + i % COPIES * n_vocab;
        uint64_t start = cpu_ns();
        float sum[16] = {0};
        for (size_t k = 0; k + 16 <= n_vocab; k += 16)
            for (int j = 0; j < 16; j++)
                sum[j] += row[k + (size_t)j];
        sink = sink + sum[0];
        us[i] = (double)(cpu_ns() - start) / 1e3;
    }
    report("one read of the logits", us);
}

int main(int argc, char **argv)
{
    struct sampler s;
    n_vocab = argc > 1 ? strtoul(argv[1], NULL, 10) : 151936;
    logits = malloc(COPIES * n_vocab * sizeof *logits);
    if (!logits || !sampler_open(&s, n_vocab, NULL))
        return 1;
    for (size_t i = 0; i < COPIES * n_vocab; i++) {
        double u = rand_uniform(1, 2, i) + rand_uniform(1, 3, i) + rand_uniform(1, 4, i) - 1.5;
        logits[i] = (float)(u * 8 + (i % 997 == 0 ? 8 * rand_uniform(1, 5, i) : 0));
    }
    struct gen_params p = {.top_p = 1, .repetition_penalty = 1, .top_logprobs = -1};
    printf("%zu logits\n", n_vocab);
    measure_read();
    measure("temperature 0", &s, p);
    p.temperature = 1;
    measure("temperature 1", &s, p);
    p.top_k = 40;
    measure("top_k 40", &s, p);
    p.top_p = 0.95;
    measure("top_k 40, top_p 0.95", &s, p);
    p.top_k = 0;
    measure("top_p 0.95", &s, p);
    p.top_p = 1;
    p.min_p = 0.05;
    measure("min_p 0.05", &s, p);
    p.min_p = 0;
    p.repetition_penalty = 1.1;
    measure("repetition_penalty", &s, p);
    p.repetition_penalty = 1;
    p.temperature = 0;
    p.top_logprobs = 20;
    measure("temperature 0, 20 logprobs", &s, p);
    sampler_close(&s);
    free(logits);
    return 0;
}

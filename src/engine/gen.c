/* Gens: made and read by callers; see engine.h. */
#include "engine/gen.h"

#include <stdlib.h>
#include <string.h>

static void *copy(const void *from, size_t n, size_t size)
{
    void *out = calloc(n + 1, size);
    if (out && n)
        memcpy(out, from, n * size);
    return out;
}

struct gen *gen_new(const int32_t *prompt, size_t n_prompt, const struct gen_params *params, struct err *err)
{
    if (n_prompt == 0 || params->n_stop_ids > GEN_STOP_IDS_MAX || params->n_bias > GEN_BIAS_MAX || params->embed) {
        err_set(err, ERR_INVALID_REQUEST,
                "A generation needs a prompt of at least one token, at most %d stop ids and %d "
                "biases.",
                GEN_STOP_IDS_MAX, GEN_BIAS_MAX);
        return NULL;
    }
    struct gen *g = calloc(1, sizeof *g);
    size_t total;
    if (!g || __builtin_add_overflow(n_prompt, params->max_tokens, &total) || total > SIZE_MAX / sizeof(struct gen_logprob)) {
        free(g);
        err_set(err, ERR_MEMORY, "Out of memory for a generation of %zu + %zu tokens.", n_prompt, params->max_tokens);
        return NULL;
    }
    g->params = *params;
    g->stats.n_prompt = n_prompt;
    g->params.bias = copy(params->bias, params->n_bias, sizeof *params->bias);
    g->params.stop_ids = copy(params->stop_ids, params->n_stop_ids, sizeof *params->stop_ids);
    if (params->top_logprobs >= 0)
        g->logprobs = calloc(params->max_tokens + 1, sizeof *g->logprobs);
    if (params->prompt_logprobs >= 0)
        g->prompt_logprobs = calloc(n_prompt, sizeof *g->prompt_logprobs);
    if (!seq_init(&g->seq, prompt, n_prompt, total) || !g->params.bias || !g->params.stop_ids ||
        (params->top_logprobs >= 0 && !g->logprobs) || (params->prompt_logprobs >= 0 && !g->prompt_logprobs)) {
        gen_free(g);
        err_set(err, ERR_MEMORY, "Out of memory for a generation of %zu + %zu tokens.", n_prompt, params->max_tokens);
        return NULL;
    }
    g->seq.root.salt = params->cache_salt;
    return g;
}

void gen_free(struct gen *g)
{
    if (!g)
        return;
    seq_release(&g->seq);
    free((void *)g->params.bias);
    free((void *)g->params.stop_ids);
    free(g->logprobs);
    free(g->prompt_logprobs);
    free(g);
}

struct gen_view gen_poll(const struct gen *g)
{
    bool done = atomic_load_explicit(&g->done, memory_order_acquire);
    enum gen_finish finish = done ? (enum gen_finish)atomic_load_explicit(&g->finish, memory_order_relaxed) : GEN_RUNNING;
    size_t n = done ? g->n_output : atomic_load_explicit(&g->n_published, memory_order_acquire);
    return (struct gen_view){g->seq.tokens + g->seq.n_prompt, g->logprobs, n, finish};
}

bool gen_done(const struct gen *g)
{
    return atomic_load_explicit(&g->done, memory_order_acquire);
}

const struct gen_logprob *gen_prompt_logprobs(const struct gen *g)
{
    return g->prompt_logprobs;
}

const struct err *gen_error(const struct gen *g)
{
    return &g->error;
}

struct gen_stats gen_stats(const struct gen *g)
{
    return (struct gen_stats){g->stats.n_prompt,     g->stats.n_cached,   g->stats.n_output,       g->stats.n_preempted,
                              g->stats.submitted_ns, g->stats.started_ns, g->stats.first_token_ns, g->stats.finished_ns};
}

/* The served metrics; see metrics.h. Names: vLLM's documentation of its production metrics. */
#include "serve/metrics.h"

#include <stdio.h>
#include <stdlib.h>

static const double seconds_fine[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                                      1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
static const double seconds_gap[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
                                     0.4,   0.5,    0.75,  1,    2.5,   5,    7.5,   10,  20,   40,  80};
static const double seconds_long[] = {0.05, 0.1, 0.3, 0.5, 0.8, 1,   1.5, 2,   2.5, 5,    10,  15,
                                      20,   30,  40,  50,  60,  120, 240, 480, 960, 1920, 7680};
static const double tokens[] = {1,    2,    5,     10,    20,    50,     100,    200,    500,    1000,
                                2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000, 1000000};
static const double rows_bounds[] = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
static const double bytes_bounds[] = {256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216};
static const double choices[] = {1, 2, 5, 10, 20};

#define COUNT(x) (sizeof(x) / sizeof *(x))

struct served_metrics *served_metrics_new(const char *model)
{
    struct served_metrics *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    struct buf label, reason;
    buf_init(&label, 4096);
    buf_init(&reason, 4096);
    metrics_label(&label, "model_name", str_from(model));
    const char *l = buf_str(&label).ptr;
    struct {
        struct metric **to;
        enum metric_kind kind;
        const char *name, *help;
        const double *bounds;
        size_t n;
    } const rows[] = {
        {&m->prompt_tokens_total, METRIC_COUNTER, "vllm:prompt_tokens_total", "Prompt tokens taken.", NULL, 0},
        {&m->generation_tokens_total, METRIC_COUNTER, "vllm:generation_tokens_total", "Tokens generated.", NULL, 0},
        {&m->ttft, METRIC_HISTOGRAM, "vllm:time_to_first_token_seconds", "Arrival to first token.", seconds_fine,
         COUNT(seconds_fine)},
        {&m->itl, METRIC_HISTOGRAM, "vllm:inter_token_latency_seconds",
         "Time between tokens as they are delivered; their mean where they come at once.", seconds_gap, COUNT(seconds_gap)},
        {&m->e2e, METRIC_HISTOGRAM, "vllm:e2e_request_latency_seconds", "Arrival to end.", seconds_long, COUNT(seconds_long)},
        {&m->queue, METRIC_HISTOGRAM, "vllm:request_queue_time_seconds", "Time waiting.", seconds_long, COUNT(seconds_long)},
        {&m->inference, METRIC_HISTOGRAM, "vllm:request_inference_time_seconds", "Time running.", seconds_long,
         COUNT(seconds_long)},
        {&m->prefill, METRIC_HISTOGRAM, "vllm:request_prefill_time_seconds", "Time until the first token, once running.",
         seconds_long, COUNT(seconds_long)},
        {&m->decode, METRIC_HISTOGRAM, "vllm:request_decode_time_seconds", "First token to last.", seconds_long,
         COUNT(seconds_long)},
        {&m->request_prompt, METRIC_HISTOGRAM, "vllm:request_prompt_tokens", "Prompt tokens of a request.", tokens,
         COUNT(tokens)},
        {&m->request_generation, METRIC_HISTOGRAM, "vllm:request_generation_tokens", "Tokens generated for a request.", tokens,
         COUNT(tokens)},
        {&m->request_max_tokens, METRIC_HISTOGRAM, "vllm:request_params_max_tokens", "max_tokens of a request.", tokens,
         COUNT(tokens)},
        {&m->request_max_generation, METRIC_HISTOGRAM, "vllm:request_max_num_generation_tokens",
         "Tokens of a request's longest choice.", tokens, COUNT(tokens)},
        {&m->engine.step_rows, METRIC_HISTOGRAM, "vllm:iteration_tokens_total", "Rows of an engine step.", rows_bounds,
         COUNT(rows_bounds)},
        {&m->mm_queries, METRIC_COUNTER, "vllm:mm_cache_queries_total", "Multi-modal items looked up: none are taken.", NULL,
         0},
        {&m->mm_hits, METRIC_COUNTER, "vllm:mm_cache_hits_total", "Multi-modal items found.", NULL, 0},
        {&m->request_n, METRIC_HISTOGRAM, "vllm:request_params_n", "Choices asked for.", choices, COUNT(choices)},
        {&m->running, METRIC_GAUGE, "vllm:num_requests_running", "Sequences in the running batch.", NULL, 0},
        {&m->waiting, METRIC_GAUGE, "vllm:num_requests_waiting", "Sequences waiting.", NULL, 0},
        {&m->kv_usage, METRIC_GAUGE, "vllm:kv_cache_usage_perc", "Share of KV pages held by requests, 0 to 1.", NULL, 0},
        {&m->engine.prefix_queries, METRIC_COUNTER, "vllm:prefix_cache_queries_total", "Prompt tokens looked up.", NULL, 0},
        {&m->engine.prefix_hits, METRIC_COUNTER, "vllm:prefix_cache_hits_total", "Prompt tokens found in the cache.", NULL, 0},
        {&m->engine.preemptions, METRIC_COUNTER, "vllm:num_preemptions_total", "Sequences put back for lack of pages.", NULL,
         0},
        {&m->engine.steps, METRIC_COUNTER, "inferd:steps_total", "Engine steps.", NULL, 0},
        {&m->pages_cached, METRIC_GAUGE, "inferd:kv_pages_cached", "Reusable KV pages that nobody holds.", NULL, 0},
        {&m->pages_total, METRIC_GAUGE, "inferd:kv_pages", "KV pages.", NULL, 0},
        {&m->engine.cancelled_tokens, METRIC_COUNTER, "inferd:cancelled_tokens_total", "Tokens made for cancelled requests.",
         NULL, 0},
    };
    for (size_t i = 0; i < COUNT(rows); i++)
        *rows[i].to = metric_get(rows[i].kind, rows[i].name, rows[i].help, l, rows[i].bounds, rows[i].n);
    struct {
        struct metric **to;
        const char *reason;
    } const reasons[] = {{&m->success_stop, "stop"}, {&m->success_length, "length"}, {&m->success_abort, "abort"}};
    for (size_t i = 0; i < COUNT(reasons); i++) {
        buf_clear(&reason);
        buf_printf(&reason, "%s,finished_reason=\"%s\"", l, reasons[i].reason);
        *reasons[i].to = metric_get(METRIC_COUNTER, "vllm:request_success_total", "Requests ended, by reason.",
                                    buf_str(&reason).ptr, NULL, 0);
    }
    buf_release(&label);
    buf_release(&reason);
    return m;
}

static void observe_ns(struct metric *m, uint64_t from, uint64_t to)
{
    if (from && to >= from)
        metric_observe(m, (double)(to - from) / 1e9);
}

void served_metrics_outcome(struct served_metrics *m, const struct served_outcome *o)
{
    if (!m)
        return;
    const struct gen_stats *s = &o->stats;
    metric_add(m->prompt_tokens_total, (double)s->n_prompt);
    metric_add(m->generation_tokens_total, (double)s->n_output);
    metric_add(o->finish == GEN_STOP ? m->success_stop : o->finish == GEN_LENGTH ? m->success_length : m->success_abort, 1);
    observe_ns(m->ttft, s->submitted_ns, s->first_token_ns);
    observe_ns(m->e2e, s->submitted_ns, s->finished_ns);
    observe_ns(m->queue, s->submitted_ns, s->started_ns);
    observe_ns(m->inference, s->started_ns, s->finished_ns);
    observe_ns(m->prefill, s->started_ns, s->first_token_ns);
    observe_ns(m->decode, s->first_token_ns, s->finished_ns);
    metric_observe(m->request_prompt, (double)s->n_prompt);
    metric_observe(m->request_generation, (double)s->n_output);
}

void served_metrics_request(struct served_metrics *m, size_t n_choices, size_t max_tokens, size_t longest)
{
    if (!m)
        return;
    metric_observe(m->request_max_tokens, (double)max_tokens);
    metric_observe(m->request_n, (double)n_choices);
    metric_observe(m->request_max_generation, (double)longest);
}

void served_metrics_cache(struct buf *out, const char *model, size_t pages, const char *type, int prefix_cache)
{
    buf_append_str(out, STR("vllm:cache_config_info{"));
    metrics_label(out, "model_name", str_from(model));
    buf_printf(out, ",block_size=\"%d\",num_gpu_blocks=\"%zu\",cache_dtype=\"%s\",enable_prefix_caching=\"%s\"} 1\n",
               KV_PAGE_TOKENS, pages, type, prefix_cache ? "True" : "False");
}

void http_metrics_outcome(const struct http_outcome *o)
{
    char by_handler[256], by_status[320];
    snprintf(by_handler, sizeof by_handler, "handler=\"%s\",method=\"%s\"", o->handler, o->method);
    snprintf(by_status, sizeof by_status, "%s,status=\"%dxx\"", by_handler, o->status / 100);
    metric_add(metric_get(METRIC_COUNTER, "http_requests_total", "Requests answered.", by_status, NULL, 0), 1);
    metric_observe(metric_get(METRIC_HISTOGRAM, "http_request_duration_seconds",
                              "Head of the request to the end of the "
                              "reply.",
                              by_handler, seconds_fine, COUNT(seconds_fine)),
                   o->seconds);
    metric_observe(metric_get(METRIC_HISTOGRAM, "http_request_size_bytes", "Bytes of bodies received.", by_handler,
                              bytes_bounds, COUNT(bytes_bounds)),
                   (double)o->bytes_in);
    metric_observe(metric_get(METRIC_HISTOGRAM, "http_response_size_bytes", "Bytes of bodies sent.", by_handler, bytes_bounds,
                              COUNT(bytes_bounds)),
                   (double)o->bytes_out);
}

void served_metrics_gap(struct served_metrics *m, double seconds)
{
    if (m)
        metric_observe(m->itl, seconds);
}

void served_metrics_idle(struct served_metrics *m)
{
    if (!m)
        return;
    metric_set(m->running, 0);
    metric_set(m->waiting, 0);
    metric_set(m->kv_usage, 0);
}

void served_metrics_engine(struct served_metrics *m, const struct engine_counters *c)
{
    if (!m)
        return;
    metric_set(m->running, (double)c->running);
    metric_set(m->waiting, (double)c->waiting);
    metric_set(m->kv_usage, c->pages_total ? (double)c->pages_held / (double)c->pages_total : 0);
    metric_set(m->pages_cached, (double)c->pages_cached);
    metric_set(m->pages_total, (double)c->pages_total);
}

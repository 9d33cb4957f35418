/* The served metrics under vLLM's names, and ours. One struct a loaded model; series outlive it (counters never fall). */
#ifndef INFERD_SERVE_METRICS_H
#define INFERD_SERVE_METRICS_H

#include "base/metrics.h"
#include "engine/engine.h"

struct served_metrics {
    struct metric *success_stop, *success_length, *success_abort;
    struct metric *prompt_tokens_total, *generation_tokens_total;
    struct metric *ttft, *itl, *e2e, *queue, *inference, *prefill, *decode;
    struct metric *request_prompt, *request_generation, *request_n, *request_max_tokens, *request_max_generation;
    struct metric *mm_queries, *mm_hits;
    struct metric *running, *waiting, *kv_usage, *pages_cached, *pages_total;
    struct engine_metrics engine;
};

/* Finds or creates the series of `model`. NULL when memory is short (updates of NULL do nothing). Caller frees. */
struct served_metrics *served_metrics_new(const char *model);
/* What a loaded model's KV cache is: the labels of a gauge that is 1. Its head goes before the first of them; a model that is
 * loaded no longer, or otherwise, leaves no series behind. */
#define SERVED_METRICS_CACHE_HEAD "# HELP vllm:cache_config_info What the KV cache is.\n# TYPE vllm:cache_config_info gauge\n"
void served_metrics_cache(struct buf *out, const char *model, size_t pages, const char *type, int prefix_cache);
/* One choice's end. */
struct served_outcome {
    struct gen_stats stats;
    enum gen_finish finish;
};
void served_metrics_outcome(struct served_metrics *m, const struct served_outcome *o);
/* One request's end: of its choices, the tokens of the longest. */
void served_metrics_request(struct served_metrics *m, size_t n_choices, size_t max_tokens, size_t longest);
void served_metrics_gap(struct served_metrics *m, double seconds); /* between two deliveries of one stream */
/* Any request's end, by the route's pattern ("/models/{}/load", "none"). */
struct http_outcome {
    const char *handler, *method;
    int status;
    double seconds;
    size_t bytes_in, bytes_out;
};
void http_metrics_outcome(const struct http_outcome *o);
/* The model is no longer loaded: its gauges would keep what the last scrape saw. */
void served_metrics_idle(struct served_metrics *m);
/* Gauges, read at scrape time. */
void served_metrics_engine(struct served_metrics *m, const struct engine_counters *c);

#endif

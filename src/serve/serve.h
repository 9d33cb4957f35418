/* The server: from options to a process that answers, until a signal ends it. */
#ifndef INFERD_SERVE_SERVE_H
#define INFERD_SERVE_SERVE_H

#include "backend/backend.h"
#include "base/err.h"
#include "model/model.h"

#define INFERD_VERSION "0.2.0"

struct hub_config;

/* Plain values, borrowed for the server's life. Limits are named as their options. */
struct serve_config {
    const char *host;
    unsigned port;
    const char *models_dir, *data_dir;
    uint64_t memory_bytes; /* 0: most of what the machine or the cgroup has */
    unsigned threads;      /* 0: all usable */
    const char *isa;
    unsigned stall_ms_max;
    size_t queue_max, rows_max, streams_max;
    size_t context_max; /* 0: the model's own */
    enum kv_type kv_type;
    enum profile profile;
    int prefix_cache;
    double timeout_s, keep_alive_s; /* keep_alive_s < 0: for ever */
    unsigned drain_s;
    size_t body_bytes_max;
    unsigned connections_max;
    unsigned request_timeout_s; /* of a request to arrive */
    size_t models_max;          /* MAX_CACHE_MODELS; 0: as many as fit */
    uint64_t cache_bytes;       /* of packed weights below data_dir; 0: none are kept */
    const char *preload;        /* comma-separated ids, "" */
    int log_prompts;
    int split_special_tokens; /* of chats' messages, where a request does not say */
    const char *cors_origin;  /* "": none */
    const char *store;        /* as store_open takes it */
    double session_ttl_s;
    size_t downloads_max; /* pulls at once */
    const struct hub_config *hub;
    const char *const *api_keys;
    size_t n_api_keys;
};

/* Runs until SIGTERM or SIGINT; returns the exit status. Call on the main thread, before any other thread exists. */
int serve_run(const struct serve_config *config);

/* Memory that this process may plan with when --memory is not given: 90 % of the least of the cgroup's limit and the
 * machine's memory. */
uint64_t serve_memory_auto(void);

#endif

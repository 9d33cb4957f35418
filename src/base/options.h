/* The configuration: one table of options (options.c), each from a default, the config file, the environment or a flag;
 * the later in this list wins. Main thread, at start. */
#ifndef INFERD_BASE_OPTIONS_H
#define INFERD_BASE_OPTIONS_H

#include "base/buf.h"
#include "base/err.h"

#define OPTIONS_KEYS_MAX 64

enum option_origin { ORIGIN_DEFAULT, ORIGIN_FILE, ORIGIN_ENV, ORIGIN_FLAG };

/* Values, in the table's units. Strings are owned by the process (never freed). */
struct options {
    const char *host, *models_dir, *data_dir, *config, *isa, *kv_type, *profile, *preload, *log_level, *cors_origin, *store;
    uint64_t port, memory, threads, max_stall_ms, max_queue, max_batch_tokens, max_streams, max_context, drain_timeout,
        max_body, max_connections, max_cache_models, request_timeout, download_rate, download_connections, download_files,
        download_attempts, download_part, download_stall_ms, cache_bytes, max_downloads;
    uint64_t prefix_cache, log_prompts, split_special_tokens, print_config; /* 0 or 1 */
    double timeout, keep_alive, session_ttl;
    const char *api_keys[OPTIONS_KEYS_MAX];
    size_t n_api_keys;
    enum option_origin origins[64]; /* by row of the table */
};

/* Reads argv[first..] (flags "--name value" and "--name=value"), the environment and the file that --config names.
 * ERR_USAGE names the option, where it was given, the value and what is allowed, or the nearest known name. */
bool options_load(struct options *o, int argc, char **argv, int first, struct err *err);
/* A line an option: name, value, origin. Keys are shown as "(set)". */
void options_print(const struct options *o, struct buf *out);
/* For --help: a line an option. */
void options_help(struct buf *out);
/* docs/config.md. */
void options_markdown(struct buf *out);
/* "512M", "2g", "1048576": bytes with binary suffixes. */
bool options_parse_size(const char *text, uint64_t *out);

#endif

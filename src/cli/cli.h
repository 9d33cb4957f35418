/* The command line: verbs that start the server, talk to a running one, or look at files. */
#ifndef INFERD_CLI_CLI_H
#define INFERD_CLI_CLI_H

#include "base/buf.h"
#include "base/err.h"

/* Returns the process's exit status, as docs/operations.md lists. */
int cli_main(int argc, char **argv);

/* An address of version 6 as addresses of pages have it, [::1], without its brackets; anything else as it is. One at a time. */
const char *cli_host(const char *given);

/* Options of the verbs that talk to a server: --host, --port, --api-key, or INFERD_HOST, INFERD_PORT, INFERD_API_KEY. */
struct cli_client {
    const char *host, *key;
    unsigned port;
    int json;               /* --json */
    const char *words[256]; /* what is no option */
    size_t n_words;
};
bool cli_client_read(struct cli_client *c, int argc, char **argv, struct err *err);
/* Whether a verb takes --json: the others have nothing to show so. */
bool cli_takes_json(const char *verb);
/* The path of a route with a name in it, whatever characters that has; longer ones than the server knows are cut. */
#define CLI_PATH_BYTES 1024
void cli_path(char out[CLI_PATH_BYTES], const char *before, const char *name, const char *after);
/* One request; the body of the answer to `out`, its status as the result (0: no server, or the answer broke off; err says
 * so). `body` NULL: none. `on_data` (may be NULL) gets the bytes of a good answer as they come, and none about once a second
 * while nothing comes; false stops the transfer. So does, with or without `on_data`, a signal that cli_interrupted() tells. It
 * may call this again. */
typedef bool (*cli_data)(void *arg, struct str bytes);
int cli_request(const struct cli_client *c, const char *method, const char *path, const char *body, cli_data on_data, void *arg,
                struct buf *out, struct err *err);
/* What a JSON object has under a key; "" and 0 where it is another type, or absent. */
struct json_t;
const char *cli_text(const struct json_t *o, const char *key);
double cli_number(const struct json_t *o, const char *key);

/* Both print an error, after what was printed before, and return its exit status: err's own; that of an answer. */
int cli_fail(const struct err *err);
int cli_failed(int status, const struct buf *answer, const struct err *err);

/* How the hub is used: Hugging Face's environment for what is fetched from where, the options for how. */
struct options;
struct hub_config;
bool cli_hub_config(const struct options *o, struct hub_config *out, struct err *err);
/* What a name stands for in the hub: an alias, or a reference. */
struct hub_ref;
bool cli_read_ref(const char *name, const struct options *o, struct hub_ref *ref, struct err *err);
/* From then on the signal is only noted. */
void cli_catch_signal(int number);
/* SIGINT and SIGTERM. */
void cli_catch_interrupt(void);
/* A caught signal came since the start, or since cli_forget_interrupt(). */
bool cli_interrupted(void);
void cli_forget_interrupt(void);

int cli_run(const struct cli_client *c);
int cli_list(const struct cli_client *c);
int cli_ps(const struct cli_client *c);
int cli_show(const struct cli_client *c);
int cli_stop(const struct cli_client *c);
int cli_pull(const struct cli_client *c);
int cli_rm(const struct cli_client *c);
int cli_jobs(const struct cli_client *c);
/* Has the server fetch words[0] where it says that it is not downloaded. Returns an exit status; 0: go on. */
int cli_pull_missing(const struct cli_client *c);

/* ---- verbs that need no server read their own arguments ---- */
struct serve_config;
void cli_serve_config(const struct options *o, struct serve_config *c);
/* For "VERB MODEL [OPTIONS of serve]": the model is argv[2]. */
bool cli_model_options(struct options *o, int argc, char **argv, struct err *err);
int cli_plan(int argc, char **argv);
int cli_bench(int argc, char **argv);
int cli_verify(int argc, char **argv);

#endif

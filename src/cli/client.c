/* The HTTP client of the command line, over libcurl; see cli.h. */
#include "cli/cli.h"

#include "base/nearest.h"

#include <ctype.h>
#include <curl/curl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#define ANSWER_BYTES_MAX ((size_t)64 << 20)
#define CONNECT_S_MAX    10
#define NAME_BYTES_MAX   300 /* CLI_PATH_BYTES holds three times as many, and a route */

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

void cli_catch_signal(int number)
{
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(number, &action, NULL);
}

void cli_catch_interrupt(void)
{
    cli_catch_signal(SIGINT);
    cli_catch_signal(SIGTERM);
}

bool cli_interrupted(void)
{
    return interrupted;
}

void cli_forget_interrupt(void)
{
    interrupted = 0;
}

/* "--name value" or "--name=value" at argv[*i]: true where it is this option and has a value. */
static bool take_option(const char *name, int argc, char **argv, int *i, const char **value)
{
    size_t n = strlen(name);
    if (strncmp(argv[*i], name, n) != 0)
        return false;
    if (argv[*i][n] == '=') {
        *value = argv[*i] + n + 1;
        return true;
    }
    if (argv[*i][n] || *i + 1 >= argc)
        return false;
    *value = argv[++*i];
    return true;
}

const char *cli_host(const char *given)
{
    static char plain[256];
    size_t n = strlen(given);
    if (n < 3 || n >= sizeof plain || given[0] != '[' || given[n - 1] != ']')
        return given;
    memcpy(plain, given + 1, n - 2);
    plain[n - 2] = 0;
    return plain;
}

bool cli_takes_json(const char *verb)
{
    static const char *const verbs[] = {"jobs", "list", "ps", "show"};
    size_t n = sizeof verbs / sizeof *verbs, i = 0;
    while (i < n && strcmp(verbs[i], verb) != 0)
        i++;
    return i < n;
}

static bool refuse_option(const char *verb, const char *word, struct err *err)
{
    static const char *const options[] = {"host", "port", "api-key", "json"};
    const size_t n = sizeof options / sizeof *options - (cli_takes_json(verb) ? 0 : 1);
    struct nearest near = nearest_begin((struct str){word + 2, strcspn(word + 2, "=")}, NEAREST_CHANGES_MAX);
    for (size_t i = 0; i < n; i++)
        nearest_try(&near, options[i]);
    if (near.name && near.changes == 0)
        return err_set(err, ERR_USAGE, strcmp(near.name, "json") == 0 ? "--%s takes no value." : "--%s needs a value.",
                       near.name);
    return err_set(err, ERR_USAGE,
                   "%s is not an option of 'inferd %s'%s%s%s possible are --host, --port%s. Words after '--' are no options.",
                   word, verb, near.name ? "; did you mean --" : ";", near.name ? near.name : "",
                   near.name ? "? Otherwise" : "", cli_takes_json(verb) ? ", --api-key and --json" : " and --api-key");
}

bool cli_client_read(struct cli_client *c, int argc, char **argv, struct err *err)
{
    const char *port = getenv("INFERD_PORT");
    bool options = true; /* until "--" */
    *c = (struct cli_client){.host = getenv("INFERD_HOST"), .key = getenv("INFERD_API_KEY")};
    for (int i = 2; i < argc; i++) {
        bool is_option = options && strncmp(argv[i], "--", 2) == 0;
        if (is_option && argv[i][2] == 0)
            options = false;
        else if (is_option && strcmp(argv[i], "--json") == 0 && cli_takes_json(argv[1]))
            c->json = 1;
        else if (is_option && !take_option("--host", argc, argv, &i, &c->host) &&
                 !take_option("--port", argc, argv, &i, &port) && !take_option("--api-key", argc, argv, &i, &c->key))
            return refuse_option(argv[1], argv[i], err);
        else if (!is_option && c->n_words == sizeof c->words / sizeof *c->words)
            return err_set(err, ERR_USAGE, "Too many words after 'inferd %s'.", argv[1]);
        else if (!is_option)
            c->words[c->n_words++] = argv[i];
    }
    c->host = cli_host(c->host && *c->host ? c->host : "127.0.0.1");
    const char *colon = strchr(c->host, ':');
    if (strchr(c->host, '/') || (colon && !strchr(colon + 1, ':')))
        return err_set(err, ERR_USAGE,
                       "--host (or INFERD_HOST) is '%s'; it must be an address or a name alone, such as 127.0.0.1. The port "
                       "goes into --port (or INFERD_PORT).",
                       c->host);
    char *end = NULL;
    unsigned long number = port && *port ? strtoul(port, &end, 10) : 8005;
    if ((end && *end) || number == 0 || number > 65535)
        return err_set(err, ERR_USAGE, "--port (or INFERD_PORT) is '%s'; it must be from 1 to 65535.", port);
    c->port = (unsigned)number;
    return true;
}

void cli_path(char out[CLI_PATH_BYTES], const char *before, const char *name, const char *after)
{
    size_t n = (size_t)snprintf(out, CLI_PATH_BYTES, "%s", before);
    for (const char *p = name; *p && p - name < NAME_BYTES_MAX; p++)
        n += (size_t)snprintf(out + n, CLI_PATH_BYTES - n, isalnum((unsigned char)*p) || strchr("-._~", *p) ? "%c" : "%%%02X",
                              (unsigned char)*p);
    snprintf(out + n, CLI_PATH_BYTES - n, "%s", after);
}

struct transfer {
    CURL *curl;
    cli_data on_data;
    void *arg;
    struct buf *out;
};

static size_t take(char *bytes, size_t size, size_t n, void *arg)
{
    struct transfer *t = arg;
    long status = 0;
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
    struct str s = {bytes, size * n};
    if (t->on_data && status == 200)
        return t->on_data(t->arg, s) ? s.len : 0;
    return buf_append_str(t->out, s) ? s.len : 0;
}

/* Called now and then, also while nothing comes. */
static int watch(void *arg, curl_off_t down_total, curl_off_t down, curl_off_t up_total, curl_off_t up)
{
    struct transfer *t = arg;
    return interrupted || (t->on_data && !t->on_data(t->arg, STR("")));
}

static void explain(const struct cli_client *c, CURLcode rc, long status, struct err *err)
{
    if (rc == CURLE_ABORTED_BY_CALLBACK)
        err_set(err, ERR_CANCELLED, "Interrupted.");
    else if (status)
        err_set(err, ERR_UNAVAILABLE, "The answer of the server at %s:%u broke off (%s). Does it still run?", c->host, c->port,
                curl_easy_strerror(rc));
    else
        err_set(err, ERR_UNAVAILABLE, "No server answers at %s:%u (%s). Start one with: inferd serve", c->host, c->port,
                curl_easy_strerror(rc));
}

int cli_request(const struct cli_client *c, const char *method, const char *path, const char *body, cli_data on_data, void *arg,
                struct buf *out, struct err *err)
{
    CURL *curl = curl_easy_init();
    buf_init(out, ANSWER_BYTES_MAX);
    if (!curl) {
        err_set(err, ERR_MEMORY, "Out of memory.");
        return 0;
    }
    char url[CLI_PATH_BYTES + 512];
    snprintf(url, sizeof url, strchr(c->host, ':') ? "http://[%s]:%u%s" : "http://%s:%u%s", c->host, c->port, path);
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    struct transfer t = {curl, on_data, arg, out};
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_PATH_AS_IS, 1L);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    if (c->key) {
        curl_easy_setopt(curl, CURLOPT_HTTPAUTH, (long)CURLAUTH_BEARER);
        curl_easy_setopt(curl, CURLOPT_XOAUTH2_BEARER, c->key);
    }
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &t);
    if (body)
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_S_MAX);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, watch);
    curl_easy_setopt(curl, CURLOPT_XFERINFODATA, &t);
    CURLcode rc = curl_easy_perform(curl);
    long status = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    if (rc != CURLE_OK && rc != CURLE_WRITE_ERROR) {
        explain(c, rc, status, err);
        status = 0;
    }
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    return (int)status;
}

int cli_fail(const struct err *err)
{
    fflush(stdout);
    fprintf(stderr, "inferd: %s\n", err->text);
    return err_info(err->code)->exit_code;
}

int cli_failed(int status, const struct buf *answer, const struct err *err)
{
    if (status == 0)
        return cli_fail(err);
    json_t *root = json_loadb(answer->len ? answer->data : "", answer->len, 0, NULL);
    const json_t *error = json_object_get(root, "error");
    const char *message = json_string_value(json_object_get(error, "message"));
    fprintf(stderr, "inferd: %s (HTTP %d)%s\n", message ? message : "the server answered without a message", status,
            status == 401 ? " Give it with --api-key or INFERD_API_KEY." : "");
    enum err_code code = err_code_named(cli_text(error, "code"), ERR_INTERNAL);
    json_decref(root);
    return err_info(code)->exit_code;
}

const char *cli_text(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

double cli_number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

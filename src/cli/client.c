/* The HTTP client of the command line, over libcurl; see cli.h. */
#include "cli/cli.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>

#define ANSWER_BYTES_MAX ((size_t)64 << 20)

bool cli_client_read(struct cli_client *c, int argc, char **argv, struct err *err)
{
    const char *port = getenv("INFERD_PORT");
    *c = (struct cli_client){.host = getenv("INFERD_HOST"), .key = getenv("INFERD_API_KEY")};
    for (int i = 2; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            c->json = 1;
            continue;
        }
        const char **to = strcmp(argv[i], "--host") == 0      ? &c->host
                          : strcmp(argv[i], "--port") == 0    ? &port
                          : strcmp(argv[i], "--api-key") == 0 ? &c->key
                                                              : NULL;
        if (to && i + 1 < argc)
            *to = argv[++i];
        else if (strncmp(argv[i], "--", 2) == 0)
            return err_set(err, ERR_USAGE,
                           "%s is not an option of 'inferd %s', or lacks its value; possible are --host, "
                           "--port, --api-key and --json.",
                           argv[i], argv[1]);
        else if (c->n_words < sizeof c->words / sizeof *c->words)
            c->words[c->n_words++] = argv[i];
        else
            return err_set(err, ERR_USAGE, "Too many words after 'inferd %s'.", argv[1]);
    }
    c->host = c->host && *c->host ? c->host : "127.0.0.1";
    char *end = NULL;
    unsigned long number = port && *port ? strtoul(port, &end, 10) : 8005;
    if ((end && *end) || number == 0 || number > 65535)
        return err_set(err, ERR_USAGE, "--port (or INFERD_PORT) is '%s'; it must be from 1 to 65535.", port);
    c->port = (unsigned)number;
    return true;
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

int cli_request(const struct cli_client *c, const char *method, const char *path, const char *body, cli_data on_data, void *arg,
                struct buf *out, struct err *err)
{
    CURL *curl = curl_easy_init();
    if (!curl) {
        err_set(err, ERR_MEMORY, "Out of memory.");
        return 0;
    }
    char url[1024], authorization[512];
    snprintf(url, sizeof url, strchr(c->host, ':') ? "http://[%s]:%u%s" : "http://%s:%u%s", c->host, c->port, path);
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    if (c->key) {
        snprintf(authorization, sizeof authorization, "Authorization: Bearer %s", c->key);
        headers = curl_slist_append(headers, authorization);
    }
    buf_init(out, ANSWER_BYTES_MAX);
    struct transfer t = {curl, on_data, arg, out};
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &t);
    if (body)
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
    CURLcode rc = curl_easy_perform(curl);
    long status = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    if (rc != CURLE_OK && rc != CURLE_WRITE_ERROR) {
        err_set(err, ERR_UNAVAILABLE, "No server answers at %s:%u (%s). Start one with: inferd serve", c->host, c->port,
                curl_easy_strerror(rc));
        status = 0;
    }
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    return (int)status;
}

/* jobs: the downloads of a running server; see cli.h. */
#include "cli/cli.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

static void print_job(const json_t *j)
{
    const json_t *eta = json_object_get(j, "eta_seconds");
    char left[32] = "";
    if (json_is_number(eta) && strcmp(cli_text(j, "status"), "running") == 0)
        snprintf(left, sizeof left, "%.0f s", json_number_value(eta));
    printf("%-28s %-10s %5.1f %% %9.1f MB %8.1f MB/s %8s  %s\n", cli_text(j, "job_id"), cli_text(j, "status"),
           cli_number(j, "progress") * 100, cli_number(j, "total_bytes") / 1e6, cli_number(j, "bytes_per_second") / 1e6, left,
           cli_text(j, "model"));
    if (*cli_text(j, "error"))
        printf("    %s\n", cli_text(j, "error"));
    if (*cli_text(j, "preload_error"))
        printf("    not loaded: %s\n", cli_text(j, "preload_error"));
}

static void print_jobs(const json_t *root)
{
    size_t i;
    json_t *j;
    printf("%-28s %-10s %7s %12s %13s %8s  %s\n", "JOB", "STATUS", "DONE", "SIZE", "RATE", "LEFT", "MODEL");
    json_array_foreach(json_object_get(root, "jobs"), i, j) print_job(j);
}

int cli_jobs(const struct cli_client *c)
{
    bool cancel = c->n_words == 2 && strcmp(c->words[0], "cancel") == 0;
    if (c->n_words && !cancel && (c->n_words > 1 || strcmp(c->words[0], "cancel") == 0)) {
        fprintf(stderr, "inferd: usage: inferd jobs, inferd jobs ID, or inferd jobs cancel ID\n");
        return 2;
    }
    char path[CLI_PATH_BYTES] = "/jobs";
    if (c->n_words)
        cli_path(path, "/jobs/", c->words[c->n_words - 1], "");
    struct buf answer;
    struct err err = {0};
    int status = cli_request(c, cancel ? "DELETE" : "GET", path, NULL, NULL, NULL, &answer, &err);
    json_t *root = status == 200 || status == 202 ? json_loadb(buf_str(&answer).ptr, answer.len, 0, NULL) : NULL;
    int exit_status = 0;
    if (root && c->json)
        printf("%s\n", buf_str(&answer).ptr);
    else if (!root)
        exit_status = cli_failed(status, &answer, &err);
    else if (c->n_words)
        print_job(root);
    else
        print_jobs(root);
    json_decref(root);
    buf_release(&answer);
    return exit_status;
}

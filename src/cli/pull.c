/* pull, rm: models of the hub on this machine's disk.
 *
 * pull and rm ask the server that runs; where none runs they do it by themselves. A pull by the server is a job: its
 * events become the same progress that a pull of our own has. ctrl-C stops either; what came is kept. */
#include "cli/cli.h"

#include "base/options.h"
#include "cli/progress.h"
#include "cli/terminal.h"
#include "serve/aliases.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define DRAW_MS         250
#define EVENT_BYTES_MAX ((size_t)16 << 20)
#define SILENT_TRIES    30 /* once a second, of a server that went away in mid-job */

static int finish(const struct hub_progress *p, const char *name)
{
    char size[CLI_SIZE_BYTES], fetched[CLI_SIZE_BYTES];
    if (p->state != HUB_PULL_COMPLETED)
        return cli_fail(&p->err);
    printf("%s: %s whole and verified, %s fetched%s%s%s%s\n", name, cli_size_text((double)p->bytes_total, size),
           cli_size_text((double)p->bytes_fetched, fetched), p->snapshot_dir[0] ? ", in " : "", p->snapshot_dir,
           p->entry[0] ? "/" : "", p->entry);
    return 0;
}

/* ---- without a server ------------------------------------------------------------------------------------------------------ */

bool cli_hub_config(const struct options *o, struct hub_config *c, struct err *err)
{
    if (!hub_config_from_env(c, err))
        return false;
    c->rate_max = o->download_rate;
    c->connections_max = (unsigned)o->download_connections;
    c->files_max = (unsigned)o->download_files;
    c->part_bytes = o->download_part;
    c->attempts_max = (unsigned)o->download_attempts;
    c->stall_ms = o->download_stall_ms;
    return true;
}

/* Without a server the options are those of the environment. */
static bool read_config(struct hub_config *c, struct options *o, struct err *err)
{
    return options_load(o, 0, NULL, 0, err) && cli_hub_config(o, c, err);
}

bool cli_read_ref(const char *name, const struct options *o, struct hub_ref *ref, struct err *err)
{
    char target[ALIAS_BYTES_MAX];
    struct aliases *a = aliases_open(o->data_dir, err);
    if (!a)
        return false;
    bool known = aliases_resolve(a, str_from(name), target) != ALIAS_NONE;
    aliases_close(a);
    return hub_ref_parse(known ? target : name, ref, err);
}

static int pull_here(const char *name)
{
    static struct options o;
    struct err err = {0};
    struct hub_config config;
    struct hub_ref ref;
    bool ok = read_config(&config, &o, &err) && cli_read_ref(name, &o, &ref, &err);
    struct hub *hub = ok ? hub_open(&config, &err) : NULL;
    struct hub_pull *pull = hub ? hub_pull_start(hub, &ref, NULL, NULL, &err) : NULL;
    struct cli_progress v = {.terminal = terminal_redraws(STDOUT_FILENO)};
    struct hub_progress p = {0};
    ok = pull != NULL;
    for (bool ended = false; ok && !ended;) {
        ended = hub_pull_wait(pull, DRAW_MS);
        if (cli_interrupted())
            hub_pull_cancel(pull);
        hub_progress_release(&p);
        ok = hub_pull_progress(pull, &p, &err);
        if (ok)
            cli_progress_show(&v, &p);
    }
    cli_progress_end(&v);
    int status = ok ? finish(&p, name) : cli_fail(&err);
    hub_progress_release(&p);
    hub_pull_unref(pull);
    hub_close(hub);
    return status;
}

/* ---- by the server: a job ------------------------------------------------------------------------------------------------------ */

struct follow {
    struct cli_progress view;
    struct hub_progress p;
    struct buf line;
};

static uint64_t bytes_of(const json_t *o, const char *key)
{
    json_int_t v = json_integer_value(json_object_get(o, key));
    return v > 0 ? (uint64_t)v : 0;
}

static enum hub_file_state file_state(const char *name)
{
    enum hub_file_state s = HUB_FILE_FAILED;
    while (s > HUB_FILE_WAITING && strcmp(hub_file_state_name(s), name) != 0)
        s--;
    return s;
}

static void take_files(struct hub_progress *p, const json_t *files)
{
    size_t n = json_array_size(files);
    struct hub_file_progress *items = n ? calloc(n, sizeof *items) : NULL;
    for (size_t i = 0; items && i < n; i++) {
        const json_t *f = json_array_get(files, i);
        snprintf(items[i].path, sizeof items[i].path, "%s", cli_text(f, "name"));
        items[i].bytes_done = bytes_of(f, "downloaded_bytes");
        items[i].bytes_total = bytes_of(f, "total_bytes");
        items[i].state = file_state(cli_text(f, "status"));
    }
    hub_progress_release(p);
    p->files = items;
    p->n_files = items ? n : 0;
}

static void take_job(struct hub_progress *p, const json_t *job)
{
    const char *status = cli_text(job, "status"), *error = cli_text(job, "error");
    const json_t *eta = json_object_get(job, "eta_seconds");
    p->fraction = json_number_value(json_object_get(job, "progress"));
    p->bytes_done = bytes_of(job, "downloaded_bytes");
    p->bytes_total = bytes_of(job, "total_bytes");
    p->bytes_fetched = bytes_of(job, "fetched_bytes");
    p->bytes_per_s = json_number_value(json_object_get(job, "bytes_per_second"));
    p->eta_s = json_is_number(eta) ? json_number_value(eta) : -1;
    snprintf(p->commit, sizeof p->commit, "%.40s", cli_text(job, "commit"));
    snprintf(p->waiting_for, sizeof p->waiting_for, "%s",
             strcmp(status, "queued") == 0 ? "(queued)" : cli_text(job, "waiting_for"));
    take_files(p, json_object_get(job, "files"));
    if (strcmp(status, "completed") == 0)
        p->state = HUB_PULL_COMPLETED;
    else if (strcmp(status, "failed") == 0 || strcmp(status, "cancelled") == 0)
        p->state = *status == 'f' ? HUB_PULL_FAILED : HUB_PULL_CANCELLED;
    else
        p->state = p->n_files ? HUB_PULL_RUNNING : HUB_PULL_RESOLVING;
    if (p->state == HUB_PULL_FAILED || p->state == HUB_PULL_CANCELLED)
        err_set(&p->err,
                p->state == HUB_PULL_CANCELLED ? ERR_CANCELLED : err_code_named(cli_text(job, "error_code"), ERR_UNAVAILABLE),
                "%s",
                error[0] ? error
                         : "the job was cancelled; what came is kept, pull again to "
                           "go on");
}

static bool on_event(void *arg, struct str bytes)
{
    struct follow *f = arg;
    buf_append_str(&f->line, bytes);
    for (char *end; f->line.len && (end = memchr(f->line.data, '\n', f->line.len));) {
        size_t n = (size_t)(end - f->line.data);
        if (str_has_prefix((struct str){f->line.data, n}, STR("data: "))) {
            json_t *job = json_loadb(f->line.data + 6, n - 6, 0, NULL);
            if (json_is_object(job)) {
                take_job(&f->p, job);
                cli_progress_show(&f->view, &f->p);
            }
            json_decref(job);
        }
        buf_consume(&f->line, n + 1);
    }
    return !cli_interrupted() && !f->line.failed;
}

static bool is_final(const struct hub_progress *p)
{
    return p->state == HUB_PULL_COMPLETED || p->state == HUB_PULL_FAILED || p->state == HUB_PULL_CANCELLED;
}

/* Follows the events to the end, through restarts of the server. Returns an exit status. */
static int follow_job(const struct cli_client *c, const char *id, const char *name)
{
    cli_catch_interrupt();
    struct follow f = {.view.terminal = terminal_redraws(STDOUT_FILENO)};
    char path[CLI_PATH_BYTES], one[CLI_PATH_BYTES];
    struct err err = {0};
    struct buf out;
    cli_path(path, "/jobs/", id, "/events");
    cli_path(one, "/jobs/", id, "");
    buf_init(&f.line, EVENT_BYTES_MAX);
    int status = 200, tries = 0;
    while (!is_final(&f.p) && !cli_interrupted() && tries++ < SILENT_TRIES) {
        buf_clear(&f.line);
        status = cli_request(c, "GET", path, NULL, on_event, &f, &out, &err);
        if (status != 0 && status != 200)
            break;
        tries = status == 200 ? 0 : tries;
        buf_release(&out);
        if (is_final(&f.p) || cli_interrupted())
            break;
        cli_progress_clear(&f.view);
        if (tries == 1)
            fprintf(stderr, "inferd: the server went away; the job goes on when it is back, which is waited for %d s\n",
                    SILENT_TRIES);
        sleep(1);
    }
    cli_progress_end(&f.view);
    int result;
    if (cli_interrupted()) {
        cli_forget_interrupt(); /* another one ends this */
        if (cli_request(c, "DELETE", one, NULL, NULL, NULL, &out, &err))
            fprintf(stderr, "inferd: the job was cancelled; what came is kept, pull again to go on\n");
        else
            fprintf(stderr, "inferd: the server does not answer, so that the job may go on; inferd jobs cancel %s ends it\n",
                    id);
        result = err_info(ERR_CANCELLED)->exit_code;
    } else if (is_final(&f.p)) {
        result = finish(&f.p, name);
    } else {
        result = cli_failed(status, &out, &err);
        if (status == 0)
            fprintf(stderr, "inferd: the job goes on when the server is back; inferd jobs %s tells how far it is\n", id);
    }
    buf_release(&out);
    buf_release(&f.line);
    hub_progress_release(&f.p);
    return result;
}

/* False where no server answers. */
static bool pull_there(const struct cli_client *c, const char *name, int *result)
{
    json_t *request = json_pack("{s:s}", "model", name), *job = NULL;
    char *body = request ? json_dumps(request, JSON_COMPACT) : NULL;
    struct buf out;
    struct err err = {0};
    if (!body) {
        fprintf(stderr, "inferd: the name is not valid UTF-8.\n");
        *result = 2;
        return true;
    }
    int status = cli_request(c, "POST", "/pull", body, NULL, NULL, &out, &err);
    if (status == 200 || status == 202)
        job = json_loadb(buf_str(&out).ptr, out.len, 0, NULL);
    bool decided = status || err.code == ERR_CANCELLED;
    if (decided)
        *result = job ? follow_job(c, cli_text(job, "job_id"), name) : cli_failed(status, &out, &err);
    json_decref(job);
    json_decref(request);
    free(body);
    buf_release(&out);
    return decided;
}

int cli_pull(const struct cli_client *c)
{
    int result;
    if (c->n_words != 1) {
        fprintf(stderr, "inferd: usage: inferd pull MODEL, as in inferd pull org/name, org/name:Q4_K_M or org/name@REVISION\n");
        return 2;
    }
    cli_catch_interrupt();
    return pull_there(c, c->words[0], &result) ? result : pull_here(c->words[0]);
}

int cli_pull_missing(const struct cli_client *c)
{
    char path[CLI_PATH_BYTES];
    struct buf out;
    struct err err = {0};
    int result = 0;
    cli_path(path, "/models/", c->words[0], "");
    int status = cli_request(c, "GET", path, NULL, NULL, NULL, &out, &err);
    bool missing = status == 404 && memmem(buf_str(&out).ptr, out.len, "is not downloaded", 17);
    if (missing)
        pull_there(c, c->words[0], &result);
    else if (status != 200)
        result = cli_failed(status, &out, &err);
    buf_release(&out);
    return result;
}

/* ---- rm ------------------------------------------------------------------------------------------------------------------ */

static bool find(const struct cli_client *c, const char *verb, struct hub_config *config, struct hub_ref *ref, struct err *err)
{
    static struct options o;
    if (c->n_words != 1)
        return err_set(err, ERR_USAGE, "usage: inferd %s MODEL, as in inferd %s org/name", verb, verb);
    return read_config(config, &o, err) && cli_read_ref(c->words[0], &o, ref, err);
}

/* A server that runs lets go of the model first and refuses while it is in use. False where none answers, or where the one
 * that does does not have it: another cache, or a pull that never ended. */
static bool rm_there(const struct cli_client *c, uint64_t *freed, int *result)
{
    char path[CLI_PATH_BYTES];
    struct buf out;
    struct err err = {0};
    cli_path(path, "/models/", c->words[0], "");
    int status = cli_request(c, "DELETE", path, NULL, NULL, NULL, &out, &err);
    json_t *root = status == 200 ? json_loadb(buf_str(&out).ptr, out.len, 0, NULL) : NULL;
    *freed = bytes_of(root, "bytes_freed");
    bool decided = status != 0 && status != 404;
    if (decided)
        *result = root ? 0 : cli_failed(status, &out, &err);
    json_decref(root);
    buf_release(&out);
    return decided;
}

int cli_rm(const struct cli_client *c)
{
    struct hub_config config;
    struct hub_ref ref;
    struct err err = {0};
    uint64_t freed = 0;
    int result = 0;
    char size[CLI_SIZE_BYTES];
    if (!find(c, "rm", &config, &ref, &err))
        return cli_fail(&err);
    if (!rm_there(c, &freed, &result) && !hub_cache_remove(config.cache_dir, &ref, &freed, &err))
        return cli_fail(&err);
    if (result == 0)
        printf("%s: removed, %s freed\n", c->words[0], cli_size_text((double)freed, size));
    return result;
}

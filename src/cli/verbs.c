/* list, ps, show, stop; see cli.h. */
#include "cli/cli.h"

#include "base/clock.h"
#include "base/options.h"
#include "cli/progress.h"
#include "cli/terminal.h"
#include "serve/names.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#define NAME_COLUMNS 40

/* With --json: prints it and is done. */
static bool print_json(const struct cli_client *c, const json_t *root)
{
    if (c->json && json_dumpf(root, stdout, JSON_INDENT(2)) == 0)
        puts("");
    return c->json;
}

static json_t *get(const struct cli_client *c, const char *method, const char *path, int *exit_status)
{
    struct buf answer;
    struct err err = {0};
    int status = cli_request(c, method, path, NULL, NULL, NULL, &answer, &err);
    json_t *root = status == 200 ? json_loadb(answer.data, answer.len, 0, NULL) : NULL;
    *exit_status = root ? 0 : cli_failed(status, &answer, &err);
    buf_release(&answer);
    return root;
}

/* The first column of a table, of which the others follow behind a blank. */
static void put_name(const char *name)
{
    size_t columns = terminal_columns_of(name);
    printf("%s%*s ", name, columns < NAME_COLUMNS ? (int)(NAME_COLUMNS - columns) : 0, "");
}

static void drop_idle(json_t *models)
{
    for (size_t i = json_array_size(models); i-- > 0;)
        if (!json_is_true(json_object_get(json_array_get(models, i), "loaded")))
            json_array_remove(models, i);
}

static int table(const struct cli_client *c, bool loaded_only)
{
    int status;
    json_t *root = get(c, "GET", "/models", &status);
    if (loaded_only)
        drop_idle(json_object_get(root, "models"));
    if (!root || print_json(c, root)) {
        json_decref(root);
        return status;
    }
    put_name("NAME");
    printf(loaded_only ? "%10s %8s %8s %8s %s\n" : "%10s %-12s %s\n", loaded_only ? "MEMORY" : "SIZE",
           loaded_only ? "CONTEXT" : "FORMAT", loaded_only ? "RUNNING" : "STATUS", "WAITING", "UNTIL");
    size_t i;
    json_t *m;
    json_array_foreach(json_object_get(root, "models"), i, m)
    {
        bool loaded = json_is_true(json_object_get(m, "loaded"));
        if (loaded_only && !loaded)
            continue;
        put_name(cli_text(m, "name"));
        if (!loaded_only) {
            printf("%8.1fMB %-12s %s\n", cli_number(m, "size") / 1e6, cli_text(m, "format"), cli_text(m, "status"));
            continue;
        }
        printf("%8.1fMB %8.0f %8.0f %8.0f ", cli_number(m, "memory_bytes") / 1e6, cli_number(m, "max_model_len"),
               cli_number(m, "running"), cli_number(m, "waiting"));
        double expires_s = cli_number(m, "expires_in");
        printf(expires_s < 0 ? "for ever\n" : "%.0f s\n", expires_s);
    }
    json_decref(root);
    return 0;
}

/* What a server that is started here would have. */
static int list_disk(const struct cli_client *c, const struct err *why)
{
    static struct options o;
    struct catalog all;
    struct err err = {0};
    if (!options_load(&o, 0, NULL, 0, &err))
        return cli_fail(&err);
    struct names *names = names_open(o.models_dir, o.data_dir, &err);
    bool ok = names && names_list(names, &all, &err);
    if (names)
        names_close(names);
    if (!ok)
        return cli_fail(&err);
    fprintf(stderr, "inferd: %s\nOn this disk (--models-dir, and the hub's cache):\n", why->text);
    json_t *list = json_array();
    if (!c->json) {
        put_name("NAME");
        printf("%10s %-12s %s\n", "SIZE", "FORMAT", "STATUS");
    }
    for (size_t i = 0; i < all.n; i++) {
        const struct catalog_entry *e = &all.entries[i];
        const char *format = e->kind == CHECKPOINT_GGUF ? "gguf" : "safetensors";
        json_array_append_new(list, json_pack("{s:s,s:I,s:s,s:b,s:s}", "name", e->id, "size", (json_int_t)e->bytes, "format",
                                              format, "loaded", 0, "status", "on disk"));
        if (!c->json) {
            put_name(e->id);
            printf("%8.1fMB %-12s on disk\n", (double)e->bytes / 1e6, format);
        }
    }
    json_t *root = json_pack("{s:o}", "models", list);
    print_json(c, root);
    json_decref(root);
    catalog_release(&all);
    return 0;
}

int cli_list(const struct cli_client *c)
{
    struct buf answer;
    struct err err = {0};
    int status = cli_request(c, "GET", "/health/live", NULL, NULL, NULL, &answer, &err);
    buf_release(&answer);
    return status ? table(c, false) : list_disk(c, &err);
}

int cli_ps(const struct cli_client *c)
{
    return table(c, true);
}

static bool need_model(const struct cli_client *c, const char *verb)
{
    if (c->n_words == 1 && *c->words[0])
        return true;
    fprintf(stderr, "inferd: usage: inferd %s MODEL\n", verb);
    return false;
}

int cli_show(const struct cli_client *c)
{
    if (!need_model(c, "show"))
        return 2;
    char path[CLI_PATH_BYTES];
    cli_path(path, "/models/", c->words[0], "");
    int status;
    json_t *root = get(c, "GET", path, &status);
    if (!root || print_json(c, root)) {
        json_decref(root);
        return status;
    }
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value)
    {
        char size[CLI_SIZE_BYTES], when[CLOCK_TEXT_BYTES];
        char *dump = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
        const char *text = json_is_string(value) ? json_string_value(value) : json_is_null(value) ? "-" : dump;
        if (strcmp(key, "modified_at") == 0) {
            clock_format_rfc3339((uint64_t)json_number_value(value) * 1000000000u, when);
            text = when;
        } else if (strcmp(key, "size") == 0 || str_has_suffix(str_from(key), STR("_bytes"))) {
            text = cli_size_text(json_number_value(value), size);
        }
        printf("%-20s %s\n", key, text ? text : "");
        free(dump);
    }
    json_decref(root);
    return 0;
}

int cli_stop(const struct cli_client *c)
{
    if (!need_model(c, "stop"))
        return 2;
    char path[CLI_PATH_BYTES];
    cli_path(path, "/models/", c->words[0], "/unload");
    int status;
    json_t *root = get(c, "POST", path, &status);
    if (root)
        printf("%s: %s\n", c->words[0], cli_text(root, "status"));
    json_decref(root);
    return status;
}

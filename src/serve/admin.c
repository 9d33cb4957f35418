/* Lists of models; load, unload, reload, delete. On a worker. */
#include "serve/call.h"

#include "base/clock.h"

#include <stdlib.h>

/* The entry's facts; loaded ones with what they hold. */
static void write_loaded(struct buf *out, struct registry *r, const struct served *m)
{
    const struct model_info *i = &m->plan.info;
    struct engine_counters n;
    engine_counters(m->engine, &n);
    buf_printf(out,
               "\"architecture\":\"%s\",\"profile\":\"%s\",\"parameters\":%llu,\"max_model_len\":%zu,"
               "\"weight_bytes\":%llu,\"kv_token_bytes\":%zu,\"n_layers\":%zu,\"n_vocab\":%zu,\"memory_bytes\":%llu,"
               "\"kv_pages\":%zu,\"running\":%llu,\"waiting\":%llu,\"system_fingerprint\":\"%s\",\"expires_in\":%.0f",
               i->architecture, profile_name(m->plan.profile), (unsigned long long)i->n_parameters, m->context_max,
               (unsigned long long)m->plan.weight_bytes, i->kv_token_bytes, i->n_layers, i->n_vocab,
               (unsigned long long)m->bytes, m->pages, (unsigned long long)n.running, (unsigned long long)n.waiting,
               m->fingerprint, registry_expires_s(r, m));
}

static struct served *find_loaded(struct served **list, size_t n, struct str id)
{
    for (size_t i = 0; i < n; i++)
        if (str_equal(str_from(list[i]->id), id))
            return list[i];
    return NULL;
}

enum shape { SHAPE_NATIVE, SHAPE_OPENAI };

/* The commit of a model in the hub's cache (.../snapshots/COMMIT[/file]); null for what people put there themselves. */
static void write_revision(struct buf *out, const char *path)
{
    const char *at = strstr(path, "/snapshots/");
    struct str commit = {at ? at + 11 : "", at ? strcspn(at + 11, "/") : 0};
    buf_append_str(out, STR(",\"revision\":"));
    if (commit.len)
        buf_append_json(out, commit);
    else
        buf_append_str(out, STR("null"));
}

/* `all`: what is there, for aliases. */
static void write_entry(struct call *c, const struct catalog *all, const struct catalog_entry *e, struct served *m,
                        enum shape shape, bool details)
{
    struct buf *out = &c->out;
    buf_append_str(out, shape == SHAPE_OPENAI ? STR("{\"id\":") : STR("{\"name\":"));
    buf_append_json(out, str_from(e->id));
    if (shape == SHAPE_OPENAI)
        buf_printf(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"inferd\"", (long long)e->mtime);
    else
        buf_printf(out, ",\"loaded\":%s,\"status\":\"%s\",\"size\":%llu,\"format\":\"%s\",\"modified_at\":%lld",
                   m ? "true" : "false",
                   !m         ? "available"
                   : *e->path ? "ready"
                              : "ready, files gone",
                   (unsigned long long)e->bytes, e->kind == CHECKPOINT_GGUF ? "gguf" : "safetensors", (long long)e->mtime);
    write_revision(out, e->path);
    if (shape == SHAPE_NATIVE) {
        buf_append_str(out, STR(",\"aliases\":"));
        names_write_aliases(c->server->names, all, e->id, out);
    }
    if (m) {
        buf_append_char(out, ',');
        write_loaded(out, c->server->registry, m);
    } else if (details) {
        struct buf more;
        struct err err = {0};
        buf_init(&more, 1 << 16);
        if (registry_describe(c->server->registry, e, &more, &err)) {
            buf_append_char(out, ',');
            buf_append_str(out, buf_str(&more));
        } else {
            buf_append_str(out, STR(",\"error\":"));
            buf_append_json(out, str_from(err.text));
        }
        buf_release(&more);
    }
    buf_append_char(out, '}');
}

/* What `name` stands for; of a loaded model whose files are gone the name alone, with path "". */
static bool find_model(struct call *c, const char *name, struct catalog_entry *out, struct err *err)
{
    char id[ALIAS_BYTES_MAX];
    if (names_find(c->server->names, str_from(name), out, err))
        return true;
    aliases_of_file(names_aliases(c->server->names), str_from(name), id);
    struct served *loaded[REGISTRY_LOADED_MAX];
    size_t n = registry_loaded(c->server->registry, loaded);
    if (find_loaded(loaded, n, str_from(id)))
        *out = (struct catalog_entry){.id = strdup(id), .path = strdup("")};
    for (size_t i = 0; i < n; i++)
        registry_drop(c->server->registry, loaded[i]);
    if (out->id && out->path)
        return true;
    catalog_entry_release(out);
    return false;
}

/* Loaded ones that no list has: pinned to a commit, or their files are gone. */
static void write_others(struct call *c, const struct catalog *all, struct served **loaded, size_t n, enum shape shape)
{
    bool first = all->n == 0;
    for (size_t i = 0; i < n; i++) {
        struct catalog_entry e;
        if (catalog_get(all, str_from(loaded[i]->id)) || !find_model(c, loaded[i]->id, &e, NULL))
            continue;
        if (!first)
            buf_append_char(&c->out, ',');
        first = false;
        write_entry(c, all, &e, loaded[i], shape, false);
        catalog_entry_release(&e);
    }
}

static bool write_list(struct call *c, enum shape shape, struct err *err)
{
    struct catalog all;
    if (!names_list(c->server->names, &all, err))
        return false;
    struct served *loaded[REGISTRY_LOADED_MAX];
    size_t n = registry_loaded(c->server->registry, loaded);
    buf_append_str(&c->out, shape == SHAPE_OPENAI ? STR("{\"object\":\"list\",\"data\":[") : STR("{\"models\":["));
    for (size_t i = 0; i < all.n; i++) {
        if (i)
            buf_append_char(&c->out, ',');
        write_entry(c, &all, &all.entries[i], find_loaded(loaded, n, str_from(all.entries[i].id)), shape, false);
    }
    write_others(c, &all, loaded, n, shape);
    buf_append_str(&c->out, STR("]}"));
    for (size_t i = 0; i < n; i++)
        registry_drop(c->server->registry, loaded[i]);
    catalog_release(&all);
    return true;
}

static bool write_one(struct call *c, enum shape shape, struct err *err)
{
    struct catalog_entry e;
    struct catalog all = {0};
    if (!find_model(c, c->path_model, &e, err))
        return false;
    if (shape == SHAPE_NATIVE)
        names_list(c->server->names, &all, NULL);
    struct served *loaded[REGISTRY_LOADED_MAX];
    size_t n = registry_loaded(c->server->registry, loaded);
    write_entry(c, &all, &e, find_loaded(loaded, n, str_from(e.id)), shape, true);
    for (size_t i = 0; i < n; i++)
        registry_drop(c->server->registry, loaded[i]);
    catalog_release(&all);
    catalog_entry_release(&e);
    return true;
}

bool admin_models(struct call *c, struct err *err)
{
    return write_list(c, SHAPE_NATIVE, err);
}

bool admin_openai_models(struct call *c, struct err *err)
{
    return write_list(c, SHAPE_OPENAI, err);
}

bool admin_model(struct call *c, struct err *err)
{
    return write_one(c, SHAPE_NATIVE, err);
}

bool admin_openai_model(struct call *c, struct err *err)
{
    return write_one(c, SHAPE_OPENAI, err);
}

static void write_ready(struct buf *out, struct registry *r, const struct served *m)
{
    buf_append_str(out, STR("{\"name\":"));
    buf_append_json(out, str_from(m->id));
    buf_printf(out, ",\"loaded\":true,\"status\":\"ready\",\"load_seconds\":%.3f,", (double)m->load_ns / 1e9);
    write_loaded(out, r, m);
    buf_append_char(out, '}');
}

/* Runs once the model is ready: holding it was the work. A load that was under way may have been of another profile. */
bool admin_load(struct call *c, struct err *err)
{
    if (c->load.profile_given && c->model->plan.profile != c->load.profile)
        return err_set_param(err, ERR_CONFLICT, "profile",
                             "Model '%s' was already being loaded, and is now loaded with profile '%s'; you asked for '%s'. "
                             "Unload it (POST /models/%s/unload) and load it again.",
                             c->model->id, profile_name(c->model->plan.profile), profile_name(c->load.profile), c->model->id);
    write_ready(&c->out, c->server->registry, c->model);
    return true;
}

bool admin_reload(struct call *c, struct err *err)
{
    (void)err;
    write_ready(&c->out, c->server->registry, c->model);
    registry_drop(c->server->registry, c->model); /* which is no use of it */
    c->model = NULL;
    return true;
}

/* ---- all, one after another ---- */

struct roll {
    size_t n, i; /* names, and which is under way */
    bool asked;
    char *names[REGISTRY_LOADED_MAX];
};

static void roll_free(struct call *c)
{
    struct roll *roll = c->owned;
    for (size_t i = 0; i < roll->n; i++)
        free(roll->names[i]);
    free(roll);
}

static bool roll_begin(struct call *c)
{
    struct roll *roll = calloc(1, sizeof *roll);
    struct served *loaded[REGISTRY_LOADED_MAX];
    if (!roll)
        return err_set(&c->load_error, ERR_MEMORY, "Out of memory.");
    c->owned = roll;
    c->release_owned = roll_free;
    size_t n = registry_loaded(c->server->registry, loaded);
    for (size_t i = 0; i < n; i++) {
        char *name = strdup(loaded[i]->id);
        if (name)
            roll->names[roll->n++] = name;
        registry_drop(c->server->registry, loaded[i]);
    }
    buf_append_str(&c->out, STR("{\"models\":["));
    return roll->n == n || err_set(&c->load_error, ERR_MEMORY, "Out of memory.");
}

/* What came of the one under way: the model, which is given back, or the error. */
static void roll_result(struct call *c, struct roll *roll, const struct err *err)
{
    if (roll->i)
        buf_append_char(&c->out, ',');
    if (c->model) {
        write_ready(&c->out, c->server->registry, c->model);
        registry_drop(c->server->registry, c->model);
        c->model = NULL;
    } else {
        buf_append_str(&c->out, STR("{\"name\":"));
        buf_append_json(&c->out, str_from(roll->names[roll->i]));
        buf_append_str(&c->out, STR(",\"status\":\"failed\",\"error\":"));
        buf_append_json(&c->out, str_from(err->text));
        buf_append_char(&c->out, '}');
    }
    roll->i++;
    roll->asked = false;
}

bool admin_reload_next(struct call *c)
{
    if (!c->owned && !roll_begin(c))
        return false;
    struct roll *roll = c->owned;
    if (roll->asked) {
        roll_result(c, roll, &c->load_error);
        c->load_error = (struct err){0};
    }
    while (roll->i < roll->n && !atomic_load(&c->closed)) {
        struct err err = {0};
        roll->asked = true;
        if (registry_reload(c->server->registry, str_from(roll->names[roll->i]), &c->waiter, &err))
            return true;
        roll_result(c, roll, &err);
    }
    return false;
}

bool admin_reload_all(struct call *c, struct err *err)
{
    (void)err;
    buf_append_str(&c->out, STR("]}"));
    return true;
}

bool admin_unload(struct call *c, struct err *err)
{
    struct catalog_entry e;
    if (!find_model(c, c->path_model, &e, err))
        return false;
    size_t busy = 0;
    bool loaded = registry_unload(c->server->registry, str_from(e.id), &busy);
    buf_append_str(&c->out, STR("{\"name\":"));
    buf_append_json(&c->out, str_from(e.id));
    catalog_entry_release(&e);
    buf_printf(&c->out, ",\"loaded\":%s,\"status\":\"%s\"}", loaded && busy ? "true" : "false",
               !loaded ? "not loaded"
               : busy  ? "unloading when idle"
                       : "unloaded");
    return true;
}

bool admin_delete(struct call *c, struct err *err)
{
    struct catalog_entry e;
    uint64_t freed = 0;
    if (!names_find(c->server->names, str_from(c->path_model), &e, err))
        return false;
    bool ok = names_removable(c->server->names, &e, err) && registry_retire(c->server->registry, str_from(e.id), err) &&
              names_remove(c->server->names, &e, &freed, err);
    if (ok) {
        buf_append_str(&c->out, STR("{\"name\":"));
        buf_append_json(&c->out, str_from(e.id));
        buf_printf(&c->out, ",\"deleted\":true,\"bytes_freed\":%llu}", (unsigned long long)freed);
    }
    catalog_entry_release(&e);
    return ok;
}

/* Model names -> files on this disk; see names.h. */
#include "serve/names.h"

#include "base/nearest.h"
#include "hub/hub.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#define PATH_BYTES 4096

struct names {
    const char *models_dir;
    struct aliases *aliases;
    char cache_dir[HUB_DIR_BYTES_MAX];
};

struct names *names_open(const char *models_dir, const char *data_dir, struct err *err)
{
    struct names *n = calloc(1, sizeof *n);
    struct hub_config *hub = calloc(1, sizeof *hub);
    bool ok = n && hub ? hub_config_from_env(hub, err) : err_set(err, ERR_MEMORY, "Out of memory.");
    if (ok) {
        n->models_dir = models_dir;
        snprintf(n->cache_dir, sizeof n->cache_dir, "%s", hub->cache_dir);
        n->aliases = aliases_open(data_dir, err);
        ok = n->aliases != NULL;
    }
    free(hub);
    if (ok)
        return n;
    free(n);
    return NULL;
}

void names_close(struct names *n)
{
    if (!n)
        return;
    aliases_close(n->aliases);
    free(n);
}

struct aliases *names_aliases(struct names *n)
{
    return n->aliases;
}

/* A models folder that is not there is an empty one: models may come from the hub. */
static bool scan_folder(const struct names *n, struct catalog *out, struct err *err)
{
    struct stat st;
    *out = (struct catalog){0};
    if (stat(n->models_dir, &st) != 0 && errno == ENOENT)
        return true;
    return catalog_scan(n->models_dir, out, err);
}

static bool in_cache(const struct names *n, const struct hub_ref *ref, struct catalog_entry *out, struct err *err)
{
    struct hub_snapshot s;
    struct stat st;
    char id[HUB_REF_TEXT_BYTES], path[sizeof s.dir + sizeof s.entry];
    if (!hub_cache_find(n->cache_dir, ref, &s, err))
        return false;
    hub_ref_format(ref, id);
    snprintf(path, sizeof path, "%s%s%s", s.dir, s.entry[0] ? "/" : "", s.entry);
    *out = (struct catalog_entry){.id = strdup(id),
                                  .path = strdup(path),
                                  .bytes = s.bytes,
                                  .kind = s.entry[0] ? CHECKPOINT_GGUF : CHECKPOINT_HF,
                                  .mtime = stat(path, &st) == 0 ? (int64_t)st.st_mtime : 0};
    if (out->id && out->path)
        return true;
    catalog_entry_release(out);
    return err_set(err, ERR_MEMORY, "Out of memory.");
}

/* Something of this name lies in the models folder, and is no model: why not. */
static bool tell_why_not(const struct names *n, const char *name, struct err *err)
{
    char path[PATH_BYTES];
    struct stat st;
    struct err why = {0};
    snprintf(path, sizeof path, "%.2000s/%s", n->models_dir, name);
    if (!*name || *name == '.' || strchr(name, '/') || stat(path, &st) != 0)
        return false;
    struct checkpoint *c = checkpoint_open(path, &why);
    checkpoint_close(c);
    if (!c)
        err_set_param(err, why.code, "model", "There is no model '%.200s': %s", name, why.text);
    return !c;
}

enum where { WHERE_HUB, WHERE_NOWHERE };

static bool not_found(const struct names *n, const char *name, const struct catalog *all, enum where where, struct err *err)
{
    if (tell_why_not(n, name, err))
        return false;
    if (where == WHERE_HUB)
        return err_set_param(err, ERR_MODEL_NOT_FOUND, "model",
                             "Model '%.200s' is not downloaded. Run: inferd pull %.200s, or POST /pull "
                             "{\"model\":\"%.200s\"}.",
                             name, name, name);
    struct nearest near = nearest_begin(str_from(name), NEAREST_CHANGES_MAX);
    for (size_t i = 0; i < all->n; i++)
        nearest_try(&near, all->entries[i].id);
    char more[80] = "", known[48] = "not the one model";
    if (all->n != 1)
        snprintf(known, sizeof known, "not one of the %zu models", all->n);
    if (all->n_left_out)
        snprintf(more, sizeof more, " (there are %zu more than are looked at)", all->n_left_out);
    return err_set_param(err, ERR_MODEL_NOT_FOUND, "model",
                         "There is no model '%.200s': it is no alias, %s in %.200s%s, and no "
                         "'organisation/name' of the hub.%s%.100s%s See: inferd list, or GET /models.",
                         name, known, n->models_dir, more, near.name ? " Did you mean '" : "", near.name ? near.name : "",
                         near.name ? "'?" : "");
}

/* As it may stand in a message: control characters and what is no UTF-8 would be somebody else's text there. */
static void show(struct str name, char out[static ALIAS_BYTES_MAX])
{
    size_t n = name.len < 200 ? name.len : 200;
    for (size_t i = 0; i < n; i++)
        out[i] = (char)((unsigned char)name.ptr[i] < 0x20 || name.ptr[i] == 0x7f ? '?' : name.ptr[i]);
    out[n] = 0;
}

/* `name` without `folder`/ in front of it; as it is where it lies elsewhere. */
static struct str below(struct str name, struct str folder)
{
    bool inside = folder.len && str_has_prefix(name, folder) && name.len > folder.len && name.ptr[folder.len] == '/';
    return inside ? (struct str){name.ptr + folder.len + 1, name.len - folder.len - 1} : name;
}

/* "m.gguf", "models/m.gguf" and "/srv/models/m.gguf" for m: what people have before their eyes. NULL: none of the folder. */
static struct catalog_entry *by_path(const struct names *n, const struct catalog *all, struct str name)
{
    char *root = realpath(n->models_dir, NULL);
    struct str plain = below(name, STR("."));
    struct str file = below(plain, below(str_from(n->models_dir), STR(".")));
    if (file.ptr == plain.ptr)
        file = below(name, str_from(root ? root : ""));
    free(root);
    return (struct catalog_entry *)catalog_get_file(all, file);
}

bool names_find(struct names *n, struct str name, struct catalog_entry *out, struct err *err)
{
    char target[ALIAS_BYTES_MAX], own[ALIAS_BYTES_MAX], shown[ALIAS_BYTES_MAX];
    struct catalog all;
    struct hub_ref ref;
    *out = (struct catalog_entry){0};
    if (str_has_suffix(name, STR(":latest")))
        name.len -= sizeof ":latest" - 1;
    show(name, shown);
    bool clean = str_utf8_valid(name) && memchr(name.ptr ? name.ptr : "", 0, name.len) == NULL;
    enum alias_origin origin = aliases_resolve(n->aliases, clean ? name : STR(""), target);
    aliases_of_file(n->aliases, clean ? name : STR(""), own);
    if (!scan_folder(n, &all, err))
        return false;
    struct catalog_entry *e = (struct catalog_entry *)catalog_get(&all, str_from(own));
    if (!e)
        e = (struct catalog_entry *)catalog_get(&all, str_from(target));
    if (!e)
        e = by_path(n, &all, str_from(own));
    bool ok = true;
    if (e) {
        *out = *e;
        *e = (struct catalog_entry){0};
    } else {
        struct err why = {0};
        bool is_ref = target[0] && hub_ref_parse(target, &ref, NULL);
        ok = is_ref && in_cache(n, &ref, out, &why);
        bool of_hub = is_ref && (origin != ALIAS_NONE || strchr(ref.repo, '/'));
        if (why.code == ERR_MEMORY)
            err_set(err, ERR_MEMORY, "%s", why.text);
        else if (!ok)
            not_found(n, shown, &all, of_hub ? WHERE_HUB : WHERE_NOWHERE, err);
    }
    catalog_release(&all);
    return ok;
}

struct alias_search {
    const struct names *names;
    const struct catalog *all;
    const char *id;
    struct buf *out;
    size_t n;
};

/* As names_find has it, of what is there. */
static bool stands_for(const struct alias_search *s, const char *own_end, const char *end)
{
    struct hub_ref ref;
    char text[HUB_REF_TEXT_BYTES];
    if (!strstr(own_end, s->id) && !strstr(end, s->id))
        return false; /* at little cost for most */
    const struct catalog_entry *e = catalog_get(s->all, str_from(own_end));
    if (!e)
        e = catalog_get(s->all, str_from(end));
    if (!e)
        e = by_path(s->names, s->all, str_from(own_end));
    if (e)
        return strcmp(e->id, s->id) == 0;
    if (!hub_ref_parse(end, &ref, NULL))
        return false;
    hub_ref_format(&ref, text);
    return strcmp(text, s->id) == 0;
}

static void take_alias(void *arg, const char *name, const char *own_end, const char *end)
{
    struct alias_search *s = arg;
    if (strcmp(name, s->id) == 0 || !stands_for(s, own_end, end))
        return;
    buf_append_str(s->out, s->n++ ? STR(",") : STR(""));
    buf_append_json(s->out, str_from(name));
}

void names_write_aliases(struct names *n, const struct catalog *all, const char *id, struct buf *out)
{
    struct alias_search s = {.names = n, .all = all, .id = id, .out = out};
    buf_append_char(out, '[');
    aliases_each(n->aliases, take_alias, &s);
    buf_append_char(out, ']');
}

bool names_removable(const struct names *n, const struct catalog_entry *e, struct err *err)
{
    struct str cache = str_from(n->cache_dir), path = str_from(e->path);
    if (str_has_prefix(path, cache) && path.ptr[cache.len] == '/')
        return true;
    return err_set_param(err, ERR_UNSUPPORTED, "model",
                         "Model '%.200s' lies in the models folder %.200s, whose files belong to whoever put them there; "
                         "only what was pulled from the hub is removed. Remove %.300s by hand.",
                         e->id, n->models_dir, e->path);
}

bool names_remove(struct names *n, const struct catalog_entry *e, uint64_t *bytes_freed, struct err *err)
{
    struct hub_ref ref;
    return hub_ref_parse(e->id, &ref, err) && hub_cache_remove(n->cache_dir, &ref, bytes_freed, err);
}

static int by_id(const void *a, const void *b)
{
    return strcmp(((const struct catalog_entry *)a)->id, ((const struct catalog_entry *)b)->id);
}

static void add_one(const struct names *n, const struct hub_ref *ref, struct catalog *out)
{
    struct catalog_entry *more = realloc(out->entries, (out->n + 1) * sizeof *more);
    if (!more)
        return;
    out->entries = more;
    if (in_cache(n, ref, &more[out->n], NULL))
        out->n++;
}

/* A snapshot is one model, or one for each of its GGUF quantizations where there are several. */
static void add_cached(const struct names *n, const struct hub_cached *item, struct catalog *out)
{
    struct hub_ref ref = {.revision = "main"};
    snprintf(ref.repo, sizeof ref.repo, "%s", item->repo);
    if (strcmp(item->revision, "main") != 0)
        snprintf(ref.revision, sizeof ref.revision, "%s", item->revision[0] ? item->revision : item->commit);
    if (!strchr(item->quants, ',')) {
        add_one(n, &ref, out);
        return;
    }
    for (const char *q = item->quants; *q; q += strcspn(q, ","), q += *q == ',') {
        snprintf(ref.quant, sizeof ref.quant, "%.*s", (int)strcspn(q, ","), q);
        add_one(n, &ref, out);
    }
}

bool names_list(struct names *n, struct catalog *out, struct err *err)
{
    struct hub_cache_list cached = {0};
    struct stat st;
    if (!scan_folder(n, out, err))
        return false;
    if (stat(n->cache_dir, &st) != 0 || !hub_cache_list(n->cache_dir, &cached, NULL))
        return true; /* nothing was ever pulled */
    for (size_t i = 0; i < cached.n_items; i++)
        if (cached.items[i].complete)
            add_cached(n, &cached.items[i], out);
    hub_cache_list_release(&cached);
    if (out->n)
        qsort(out->entries, out->n, sizeof *out->entries, by_id);
    return true;
}

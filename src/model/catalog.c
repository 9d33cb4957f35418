/* Listing models: one pass over the folder, one over each sub-folder. */
#include "model/catalog.h"

#include "base/buf.h"
#include "model/checkpoint_impl.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>

/* A model while the folder is read: what tells the other parts of a split one. */
struct found {
    struct catalog_entry e;
    size_t stem_len; /* of e.path, for split models; 0: whole */
    unsigned number, count;
};

struct finder {
    struct found *items;
    size_t n, cap, n_left_out;
    bool failed; /* memory */
};

void catalog_entry_release(struct catalog_entry *e)
{
    free(e->id);
    free(e->path);
    *e = (struct catalog_entry){0};
}

void catalog_release(struct catalog *c)
{
    for (size_t i = 0; i < c->n; i++)
        catalog_entry_release(&c->entries[i]);
    free(c->entries);
    *c = (struct catalog){0};
}

static void release_found(struct finder *f)
{
    for (size_t i = 0; i < f->n; i++)
        catalog_entry_release(&f->items[i].e);
    free(f->items);
    *f = (struct finder){0};
}

static struct found *add_found(struct finder *f, struct str id, const char *path, enum checkpoint_kind kind)
{
    if (f->n == CATALOG_ENTRIES_MAX) {
        f->n_left_out++;
        return NULL;
    }
    if (f->n == f->cap) {
        size_t cap = f->cap ? 2 * f->cap : 16;
        struct found *items = realloc(f->items, cap * sizeof *items);
        if (!items) {
            f->failed = true;
            return NULL;
        }
        f->items = items;
        f->cap = cap;
    }
    struct found *item = &f->items[f->n];
    *item = (struct found){.e = {.id = strndup(id.ptr, id.len), .path = strdup(path), .kind = kind}};
    f->n++;
    f->failed |= !item->e.id || !item->e.path;
    return f->failed ? NULL : item;
}

static void add_size(struct catalog_entry *e, const struct stat *st)
{
    e->bytes += (uint64_t)st->st_size;
    if (st->st_mtime > e->mtime)
        e->mtime = st->st_mtime;
}

/* A *.gguf file at `path` (its name is `name`): a model of its own or a part of one that is in the list already. */
static void add_gguf(struct finder *f, struct str name, const char *path, const struct stat *st)
{
    size_t stem = 0, path_stem = 0;
    unsigned number = 0, count = 0;
    bool split = checkpoint_split_name(name, STR(".gguf"), &stem, &number, &count);
    if (split)
        path_stem = strlen(path) - (name.len - stem);
    for (size_t i = 0; split && i < f->n; i++) {
        struct found *item = &f->items[i];
        if (item->stem_len != path_stem || item->count != count || memcmp(item->e.path, path, path_stem) != 0)
            continue;
        char *lower = number < item->number ? strdup(path) : NULL;
        if (lower) {
            free(item->e.path);
            item->e.path = lower;
            item->number = number;
        }
        add_size(&item->e, st);
        return;
    }
    struct str id = {name.ptr, split ? stem : name.len - (sizeof ".gguf" - 1)};
    struct found *item = add_found(f, id, path, CHECKPOINT_GGUF);
    if (!item)
        return;
    item->stem_len = path_stem;
    item->number = number;
    item->count = count;
    add_size(&item->e, st);
}

static bool is_gguf(struct str name)
{
    return name.len > sizeof ".gguf" - 1 && str_has_ending(name, STR(".gguf")) && !str_has_prefix(name, STR("mmproj"));
}

/* A model among several of a folder. */
static void add_inner(struct finder *f, const char *folder_name, const struct catalog_entry *e)
{
    char *id = checkpoint_path(folder_name, e->id);
    struct found *item = id ? add_found(f, str_from(id), e->path, e->kind) : NULL;
    if (item) {
        item->e.bytes = e->bytes;
        item->e.mtime = e->mtime;
    }
    f->failed |= !id;
    free(id);
}

static void add_folder(struct finder *f, const char *folder_name, const char *path)
{
    DIR *d = opendir(path);
    if (!d)
        return;
    struct finder inner = {0};
    struct catalog_entry total = {0};
    size_t n_safetensors = 0;
    bool config = false;
    for (struct dirent *e; (e = readdir(d));) {
        struct str name = str_from(e->d_name);
        char *file = checkpoint_plain_name(name) ? checkpoint_path(path, e->d_name) : NULL;
        struct stat st;
        if (file && stat(file, &st) == 0 && S_ISREG(st.st_mode)) {
            add_size(&total, &st);
            n_safetensors += str_has_ending(name, STR(".safetensors"));
            config |= str_equal(name, STR("config.json"));
            if (is_gguf(name))
                add_gguf(&inner, name, file, &st);
        }
        free(file);
    }
    closedir(d);
    bool hf = config && n_safetensors;
    if (hf || inner.n == 1) {
        struct found *item = add_found(f, str_from(folder_name), path, hf ? CHECKPOINT_HF : CHECKPOINT_GGUF);
        if (item) {
            item->e.bytes = total.bytes;
            item->e.mtime = total.mtime;
        }
    }
    for (size_t i = 0; !hf && inner.n > 1 && i < inner.n; i++)
        add_inner(f, folder_name, &inner.items[i].e);
    f->failed |= inner.failed;
    release_found(&inner);
}

static int by_id(const void *a, const void *b)
{
    const struct catalog_entry *x = a, *y = b;
    int order = strcmp(x->id, y->id);
    /* of one id the folder comes first: its path does not end in .gguf */
    if (order == 0)
        order = str_has_ending(str_from(x->path), STR(".gguf")) - str_has_ending(str_from(y->path), STR(".gguf"));
    return order ? order : strcmp(x->path, y->path);
}

/* A file whose id is taken by a folder (or by a split model of the same stem) gets its whole name in place of the stem. */
static bool rename_doubles(struct catalog *c)
{
    size_t first = 0; /* of those that shared an id */
    for (size_t i = 1; i < c->n; i++) {
        if (strcmp(c->entries[i].id, c->entries[first].id) != 0) {
            first = i;
            continue;
        }
        const char *file = strrchr(c->entries[i].path, '/') + 1, *slash = strrchr(c->entries[i].id, '/');
        struct buf id;
        buf_init(&id, PATH_MAX);
        buf_append(&id, c->entries[i].id, slash ? (size_t)(slash + 1 - c->entries[i].id) : 0);
        buf_append(&id, file, strlen(file) + 1);
        if (id.failed) {
            buf_release(&id);
            return false;
        }
        free(c->entries[i].id);
        c->entries[i].id = id.data;
    }
    qsort(c->entries, c->n, sizeof *c->entries, by_id);
    return true;
}

static bool finish(struct finder *f, struct catalog *out)
{
    out->entries = f->failed ? NULL : calloc(f->n ? f->n : 1, sizeof *out->entries);
    if (!out->entries)
        return false;
    out->n = f->n;
    out->n_left_out = f->n_left_out;
    for (size_t i = 0; i < f->n; i++) {
        out->entries[i] = f->items[i].e;
        f->items[i].e = (struct catalog_entry){0};
    }
    qsort(out->entries, out->n, sizeof *out->entries, by_id);
    return rename_doubles(out);
}

bool catalog_scan(const char *models_dir, struct catalog *out, struct err *err)
{
    *out = (struct catalog){0};
    DIR *d = opendir(models_dir);
    if (!d)
        return err_set(err, ERR_IO, "cannot read the folder of models %s: %s", models_dir, strerror(errno));
    struct finder f = {0};
    for (struct dirent *e; !f.failed && (e = readdir(d));) {
        struct str name = str_from(e->d_name);
        char *path = checkpoint_plain_name(name) ? checkpoint_path(models_dir, e->d_name) : NULL;
        struct stat st;
        if (path && stat(path, &st) == 0) {
            if (S_ISDIR(st.st_mode))
                add_folder(&f, e->d_name, path);
            else if (S_ISREG(st.st_mode) && is_gguf(name))
                add_gguf(&f, name, path, &st);
        }
        free(path);
    }
    closedir(d);
    bool ok = finish(&f, out);
    release_found(&f);
    if (!ok) {
        catalog_release(out);
        return err_set(err, ERR_MEMORY, "no memory left to list the models of %s", models_dir);
    }
    return true;
}

const struct catalog_entry *catalog_get(const struct catalog *c, struct str id)
{
    for (size_t i = 0; i < c->n; i++) {
        if (str_equal(str_from(c->entries[i].id), id))
            return &c->entries[i];
    }
    return NULL;
}

const struct catalog_entry *catalog_get_file(const struct catalog *c, struct str file)
{
    const struct str end = STR(".gguf");
    size_t stem;
    unsigned number, count;
    const struct catalog_entry *e = catalog_get(c, file);
    if (!e && str_has_ending(file, end))
        e = catalog_get(c, (struct str){file.ptr, file.len - end.len});
    if (!e && checkpoint_split_name(file, end, &stem, &number, &count))
        e = catalog_get(c, (struct str){file.ptr, stem});
    return e;
}

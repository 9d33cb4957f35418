/* What lies in the cache, whoever fetched it: walking snapshots, finding a reference, listing, removing, verifying.
 * Nothing here asks the network or trusts a name on disk: links are followed by stat, names are checked as the hub's. */
#include "hub/impl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define WALK_DEPTH_MAX  32
#define INDEX_BYTES_MAX ((size_t)64 << 20)

/* ---- walking ------------------------------------------------------------------------------------------------------------- */

/* Called for each thing in a folder that is no folder itself, with its path below the root of the walk. */
typedef bool walk_fn(void *user, const char *full, const char *below, struct err *err);

static bool walk(const char *root, const char *below, unsigned depth, walk_fn *each, void *user, struct err *err)
{
    char dir[HUB_DIR_BYTES_MAX], full[HUB_DIR_BYTES_MAX], next[HUB_PATH_BYTES_MAX];
    snprintf(dir, sizeof dir, "%s%s%s", root, below[0] ? "/" : "", below);
    DIR *d = depth < WALK_DEPTH_MAX ? opendir(dir) : NULL;
    struct dirent *e;
    bool ok = true;
    while (d && ok && (e = readdir(d))) {
        struct stat st;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 ||
            snprintf(next, sizeof next, "%s%s%s", below, below[0] ? "/" : "", e->d_name) >= (int)sizeof next ||
            snprintf(full, sizeof full, "%s/%s", dir, e->d_name) >= (int)sizeof full || lstat(full, &st) != 0)
            continue;
        ok = S_ISDIR(st.st_mode) ? walk(root, next, depth + 1, each, user, err) : each(user, full, next, err);
    }
    if (d)
        closedir(d);
    return ok;
}

static bool add_file(void *user, const char *full, const char *below, struct err *err)
{
    struct stat st;
    char target[HUB_DIR_BYTES_MAX];
    if (!hub_path_valid(str_from(below)) || stat(full, &st) != 0 || !S_ISREG(st.st_mode))
        return true; /* a link to nothing: as if it were not there */
    struct hub_entry *e = hub_listing_add(user, str_from(below), err);
    if (!e)
        return false;
    e->size = (uint64_t)st.st_size;
    ssize_t n = readlink(full, target, sizeof target - 1);
    if (n > 0) {
        target[n] = 0;
        const char *slash = strrchr(target, '/');
        hub_etag_normalize(str_from(slash ? slash + 1 : target), e->etag);
    }
    return true;
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct hub_entry *)a)->path, ((const struct hub_entry *)b)->path);
}

bool cache_listing(const struct cache_repo *c, const char *commit, struct hub_listing *out, struct err *err)
{
    char dir[HUB_DIR_BYTES_MAX];
    *out = (struct hub_listing){0};
    snprintf(out->commit, sizeof out->commit, "%s", commit);
    if (!cache_path(c, dir, err, "/snapshots/%s", commit) || !walk(dir, "", 0, add_file, out, err)) {
        hub_listing_release(out);
        return false;
    }
    if (out->n_items)
        qsort(out->items, out->n_items, sizeof *out->items, by_path);
    return true;
}

/* ---- finding --------------------------------------------------------------------------------------------------------------- */

/* Shards that the index names must be there, whatever their names promise. */
static bool index_whole(const struct cache_repo *c, const char *repo, const char *commit, struct err *err)
{
    char path[HUB_DIR_BYTES_MAX];
    struct buf b;
    buf_init(&b, INDEX_BYTES_MAX);
    char **names = NULL;
    size_t n = 0;
    bool ok = cache_path(c, path, err, "/snapshots/%s/model.safetensors.index.json", commit);
    if (ok && cache_read(path, INDEX_BYTES_MAX, &b))
        ok = reply_parse_index(buf_str(&b), &names, &n, err);
    for (size_t i = 0; i < n; i++) {
        if (ok && !cache_has_file(c, commit, names[i], HUB_SIZE_UNKNOWN))
            ok = err_set(err, ERR_MODEL_NOT_FOUND, "'%s' is not whole in the cache: '%.200s' is missing", repo, names[i]);
        free(names[i]);
    }
    free(names);
    buf_release(&b);
    return ok;
}

/* Of weights in one file an index that lies there too says nothing. */
static bool has_index(const struct hub_listing *l, const struct hub_plan *plan)
{
    for (size_t i = 0; i < plan->n; i++) {
        if (strcmp(l->items[plan->index[i]].path, "model.safetensors.index.json") == 0)
            return true;
    }
    return false;
}

static bool has_tokenizer(const struct hub_listing *l)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer.model",         "vocab.json",     "vocab.txt",
                                        "spiece.model",   "sentencepiece.bpe.model", "tiktoken.model", "tekken.json"};
    for (size_t i = 0; i < l->n_items; i++) {
        for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
            if (strcmp(l->items[i].path, names[k]) == 0)
                return true;
        }
        if (str_has_suffix(str_from(l->items[i].path), STR(".tiktoken")))
            return true;
    }
    return false;
}

static bool check_snapshot(const struct cache_repo *c, const struct hub_ref *ref, const char *commit, struct hub_listing *l,
                           struct hub_plan *plan, struct err *err)
{
    if (!cache_listing(c, commit, l, err))
        return false;
    if (l->n_items == 0)
        return err_set(err, ERR_MODEL_NOT_FOUND, "'%s' (commit %s) is not in the cache %s: pull it", ref->repo, commit,
                       c->cache_dir);
    if (!plan_make(l, ref->repo, ref->quant, plan, err))
        return err_prefix(err, "in the cache %.200s", c->cache_dir);
    if (plan->entry[0])
        return true;
    if (!has_tokenizer(l))
        return err_set(err, ERR_MODEL_NOT_FOUND, "'%s' is not whole in the cache: no tokenizer is there", ref->repo);
    return !has_index(l, plan) || index_whole(c, ref->repo, commit, err);
}

bool cache_find(const struct cache_repo *c, const struct hub_ref *ref, struct hub_snapshot *out, struct hub_listing *listing,
                struct hub_plan *plan, struct err *err)
{
    struct hub_listing l = {0};
    struct hub_plan p = {0};
    *out = (struct hub_snapshot){0};
    bool ok = cache_ref_read(c, ref->revision, out->commit) ||
              err_set(err, ERR_MODEL_NOT_FOUND, "'%s' (revision '%s') is not in the cache %s: pull it", ref->repo,
                      ref->revision, c->cache_dir);
    ok = ok && cache_path(c, out->dir, err, "/snapshots/%s", out->commit) && check_snapshot(c, ref, out->commit, &l, &p, err);
    if (ok) {
        snprintf(out->entry, sizeof out->entry, "%s", p.entry);
        for (size_t i = 0; i < p.n; i++)
            out->bytes += l.items[p.index[i]].size;
    }
    if (ok && listing) {
        *listing = l;
        *plan = p;
        return true;
    }
    hub_listing_release(&l);
    plan_release(&p);
    return ok;
}

bool hub_cache_find(const char *cache_dir, const struct hub_ref *ref, struct hub_snapshot *out, struct err *err)
{
    struct cache_repo c;
    return cache_repo_init(&c, cache_dir, ref->repo, err) && cache_find(&c, ref, out, NULL, NULL, err);
}

/* ---- listing ----------------------------------------------------------------------------------------------------------------- */

/* models--org--name -> org/name. */
static bool repo_of_folder(const char *folder, char repo[HUB_REPO_BYTES_MAX])
{
    struct hub_ref ref;
    char text[HUB_REPO_BYTES_MAX];
    if (strncmp(folder, "models--", 8) != 0 || strlen(folder + 8) >= sizeof text)
        return false;
    snprintf(text, sizeof text, "%s", folder + 8);
    char *dashes = strstr(text, "--");
    if (dashes) {
        *dashes = '/';
        memmove(dashes + 1, dashes + 2, strlen(dashes + 2) + 1);
    }
    if (strpbrk(text, ":@") || !hub_ref_parse(text, &ref, NULL) || strcmp(ref.repo, text) != 0)
        return false;
    memcpy(repo, text, sizeof text);
    return true;
}

struct ref_search {
    const char *commit;
    char found[HUB_REVISION_BYTES_MAX];
};

static bool match_ref(void *user, const char *full, const char *below, struct err *err)
{
    struct ref_search *s = user;
    struct buf b;
    buf_init(&b, 256);
    bool same = strlen(below) < sizeof s->found && cache_read(full, 200, &b) && b.len >= HUB_COMMIT_BYTES - 1 &&
                memcmp(b.data, s->commit, HUB_COMMIT_BYTES - 1) == 0;
    if (same && (!s->found[0] || strcmp(below, "main") == 0))
        snprintf(s->found, sizeof s->found, "%s", below);
    buf_release(&b);
    return true;
}

static bool add_partial(void *user, const char *full, const char *below, struct err *err)
{
    struct stat st;
    uint64_t *bytes = user;
    if (str_has_suffix(str_from(below), STR(".incomplete")) && stat(full, &st) == 0)
        *bytes += (uint64_t)st.st_blocks * 512;
    return true;
}

/* Sizes count a blob once, though two names may show it. */
static void add_sizes(const struct cache_repo *c, const struct hub_listing *l, struct hub_cached *item)
{
    char path[HUB_DIR_BYTES_MAX];
    struct stat st;
    for (size_t i = 0; i < l->n_items; i++) {
        bool twice = false;
        for (size_t k = 0; k < i && !twice; k++)
            twice = l->items[i].etag[0] && strcmp(l->items[i].etag, l->items[k].etag) == 0;
        item->bytes += twice ? 0 : l->items[i].size;
        if (cache_path(c, path, NULL, "/snapshots/%s/%s", l->commit, l->items[i].path) && stat(path, &st) == 0 &&
            st.st_mtime > item->changed_s)
            item->changed_s = st.st_mtime;
    }
}

static void add_quants(const struct hub_listing *l, struct hub_cached *item)
{
    size_t at = 0;
    for (size_t i = 0; i < l->n_items; i++) {
        char quant[HUB_QUANT_BYTES_MAX];
        if (!plan_gguf_quant(l->items[i].path, quant) || strcasestr(l->items[i].path, "mmproj"))
            continue;
        char *seen = strstr(item->quants, quant);
        size_t n = strlen(quant);
        if ((seen && (seen[n] == 0 || seen[n] == ',') && (seen == item->quants || seen[-1] == ',')) ||
            at + n + 2 >= sizeof item->quants)
            continue;
        at += (size_t)snprintf(item->quants + at, sizeof item->quants - at, "%s%s", at ? "," : "", quant);
    }
}

static bool list_snapshot(const struct cache_repo *c, const char *repo, const char *commit, struct hub_cache_list *out,
                          struct err *err)
{
    struct hub_cached *items = realloc(out->items, (out->n_items + 1) * sizeof *items);
    if (!items)
        return err_set(err, ERR_MEMORY, "no memory for the list of %zu cached models", out->n_items + 1);
    out->items = items;
    struct hub_cached *item = &items[out->n_items];
    struct hub_listing l = {0};
    struct hub_plan p = {0};
    struct ref_search search = {.commit = commit};
    char dir[HUB_DIR_BYTES_MAX];
    struct hub_ref ref = {0};
    *item = (struct hub_cached){0};
    snprintf(ref.repo, sizeof ref.repo, "%s", repo);
    snprintf(ref.revision, sizeof ref.revision, "%s", commit);
    snprintf(item->repo, sizeof item->repo, "%s", repo);
    snprintf(item->commit, sizeof item->commit, "%.40s", commit);
    item->complete = check_snapshot(c, &ref, commit, &l, &p, NULL);
    item->n_files = l.n_items;
    add_sizes(c, &l, item);
    add_quants(&l, item);
    if (cache_path(c, dir, NULL, "/refs") && walk(dir, "", 0, match_ref, &search, NULL))
        memcpy(item->revision, search.found, sizeof item->revision);
    if (cache_path(c, dir, NULL, "/blobs"))
        walk(dir, "", 0, add_partial, &item->bytes_partial, NULL);
    out->n_items += cache_path(c, item->snapshot_dir, NULL, "/snapshots/%s", commit);
    hub_listing_release(&l);
    plan_release(&p);
    return true;
}

static int by_repo_then_new(const void *a, const void *b)
{
    const struct hub_cached *x = a, *y = b;
    int order = strcmp(x->repo, y->repo);
    return order ? order : (x->changed_s < y->changed_s) - (x->changed_s > y->changed_s);
}

bool hub_cache_list(const char *cache_dir, struct hub_cache_list *out, struct err *err)
{
    *out = (struct hub_cache_list){0};
    DIR *top = opendir(cache_dir);
    if (!top)
        return errno == ENOENT || err_set(err, ERR_IO, "cannot read the cache '%.300s': %s", cache_dir, strerror(errno));
    bool ok = true;
    struct dirent *e, *s;
    while (ok && (e = readdir(top))) {
        char repo[HUB_REPO_BYTES_MAX], dir[HUB_DIR_BYTES_MAX];
        struct cache_repo c;
        if (!repo_of_folder(e->d_name, repo) || !cache_repo_init(&c, cache_dir, repo, NULL) ||
            !cache_path(&c, dir, NULL, "/snapshots"))
            continue;
        DIR *d = opendir(dir);
        while (d && ok && (s = readdir(d)))
            ok = !hub_is_commit(s->d_name) || list_snapshot(&c, repo, s->d_name, out, err);
        if (d)
            closedir(d);
    }
    closedir(top);
    if (!ok)
        hub_cache_list_release(out);
    else if (out->n_items)
        qsort(out->items, out->n_items, sizeof *out->items, by_repo_then_new);
    return ok;
}

void hub_cache_list_release(struct hub_cache_list *list)
{
    free(list->items);
    *list = (struct hub_cache_list){0};
}

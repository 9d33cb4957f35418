/* Removing from the cache and verifying it. A removal has the repository's lock, so that no pull of inferd runs beside it,
 * and first tries every other lock there is, so that it disturbs no transfer of any other program. What is visible goes
 * before what it needs: refs, links, then blobs that nothing shows. */
#include "hub/impl.h"

#include "base/rand.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define READ_BYTES          ((size_t)1 << 20)
#define DAMAGED_NAMES_SHOWN 3
#define TREE_DEPTH_MAX      64

/* ---- trees --------------------------------------------------------------------------------------------------------------- */

static void remove_tree(const char *path, unsigned depth, uint64_t *freed)
{
    struct stat st;
    char child[HUB_DIR_BYTES_MAX];
    if (lstat(path, &st) != 0 || depth > TREE_DEPTH_MAX)
        return;
    if (!S_ISDIR(st.st_mode)) {
        if (unlink(path) == 0 && S_ISREG(st.st_mode) && st.st_nlink == 1)
            *freed += (uint64_t)st.st_size;
        return;
    }
    DIR *d = opendir(path);
    struct dirent *e;
    while (d && (e = readdir(d))) {
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..") &&
            snprintf(child, sizeof child, "%s/%s", path, e->d_name) < (int)sizeof child)
            remove_tree(child, depth + 1, freed);
    }
    if (d)
        closedir(d);
    rmdir(path);
}

static bool in_use(const char *repo, struct err *err)
{
    return err_set(err, ERR_CONFLICT,
                   "'%s' is being fetched (or removed): cancel the pull, or wait for its end, then remove it", repo);
}

/* Takes (and gives back) each lock of a file that there is: any that is held means a transfer under way. */
static bool no_transfer(const struct cache_repo *c, const char *repo, struct err *err)
{
    char dir[HUB_DIR_BYTES_MAX], path[HUB_DIR_BYTES_MAX];
    bool held = false;
    if (snprintf(dir, sizeof dir, "%s/.locks/%s", c->cache_dir, c->name) >= (int)sizeof dir)
        return true;
    DIR *d = opendir(dir);
    struct dirent *e;
    while (d && !held && (e = readdir(d))) {
        if (!str_has_suffix(str_from(e->d_name), STR(".lock")) || strcmp(e->d_name, CACHE_REPO_LOCK ".lock") == 0 ||
            snprintf(path, sizeof path, "%s/%s", dir, e->d_name) >= (int)sizeof path)
            continue;
        int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        held = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0;
        if (fd >= 0)
            close(fd);
    }
    if (d)
        closedir(d);
    return !held || in_use(repo, err);
}

static bool remove_repo(const struct cache_repo *c, uint64_t *freed, struct err *err)
{
    char away[HUB_DIR_BYTES_MAX], locks[HUB_DIR_BYTES_MAX];
    if (snprintf(away, sizeof away, "%s/.locks/.removed-%s-%08x", c->cache_dir, c->name, (unsigned)rand_system_u64()) >=
            (int)sizeof away ||
        snprintf(locks, sizeof locks, "%s/.locks/%s", c->cache_dir, c->name) >= (int)sizeof locks)
        return err_set(err, ERR_IO, "a path below '%.200s' is too long", c->cache_dir);
    if (!cache_make_parent(away, err))
        return false;
    if (rename(c->dir, away) != 0)
        return err_set(err, ERR_IO, "cannot remove '%.300s': %s", c->dir, strerror(errno));
    uint64_t of_locks = 0;
    remove_tree(away, 0, freed);
    remove_tree(locks, 0, &of_locks);
    return true;
}

/* ---- parts of a repository ------------------------------------------------------------------------------------------------ */

/* True when any snapshot of the repository shows the blob. */
static bool is_shown(const struct cache_repo *c, const char *etag)
{
    char dir[HUB_DIR_BYTES_MAX];
    bool shown = false;
    DIR *d = cache_path(c, dir, NULL, "/snapshots") ? opendir(dir) : NULL;
    struct dirent *e;
    while (d && !shown && (e = readdir(d))) {
        struct hub_listing l;
        if (e->d_name[0] == '.' || !cache_listing(c, e->d_name, &l, NULL))
            continue;
        for (size_t i = 0; i < l.n_items && !shown; i++)
            shown = strcmp(l.items[i].etag, etag) == 0;
        hub_listing_release(&l);
    }
    if (d)
        closedir(d);
    return shown;
}

static void remove_blob(const struct cache_repo *c, const char *etag, uint64_t *freed)
{
    char path[HUB_DIR_BYTES_MAX];
    if (etag[0] && !is_shown(c, etag) && cache_path(c, path, NULL, "/blobs/%s", etag))
        remove_tree(path, 0, freed);
}

/* Refs that point to `commit` would point to nothing once its snapshot is gone. */
static void remove_refs(const char *dir, const char *commit, unsigned depth)
{
    char path[HUB_DIR_BYTES_MAX];
    DIR *d = depth < TREE_DEPTH_MAX ? opendir(dir) : NULL;
    struct dirent *e;
    while (d && (e = readdir(d))) {
        struct stat st;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 ||
            snprintf(path, sizeof path, "%s/%s", dir, e->d_name) >= (int)sizeof path || lstat(path, &st) != 0)
            continue;
        struct buf b;
        buf_init(&b, 256);
        if (S_ISDIR(st.st_mode))
            remove_refs(path, commit, depth + 1);
        else if (cache_read(path, 200, &b) && b.len >= 40 && memcmp(b.data, commit, 40) == 0)
            unlink(path);
        buf_release(&b);
    }
    if (d)
        closedir(d);
}

static bool is_taken(const struct hub_plan *p, size_t index)
{
    for (size_t i = 0; i < p->n; i++) {
        if (p->index[i] == index)
            return true;
    }
    return false;
}

/* Removes from one snapshot the files of the plan (or all of them); the snapshot itself when nothing is left. */
static bool remove_part(const struct cache_repo *c, const struct hub_ref *ref, uint64_t *freed, struct err *err)
{
    char commit[HUB_COMMIT_BYTES], dir[HUB_DIR_BYTES_MAX], path[HUB_DIR_BYTES_MAX], refs[HUB_DIR_BYTES_MAX];
    struct hub_listing l = {0};
    struct hub_plan p = {0};
    if (!cache_ref_read(c, ref->revision, commit))
        return err_set(err, ERR_MODEL_NOT_FOUND, "'%s' has no revision '%s' in the cache", ref->repo, ref->revision);
    if (!cache_path(c, dir, err, "/snapshots/%s", commit) || !cache_path(c, refs, err, "/refs") ||
        !cache_listing(c, commit, &l, err))
        return false;
    bool ok =
        l.n_items || err_set(err, ERR_MODEL_NOT_FOUND, "'%s' has no revision '%s' in the cache", ref->repo, ref->revision);
    ok = ok && (!ref->quant[0] || plan_make(&l, ref->repo, ref->quant, &p, err));
    size_t n_left = 0;
    for (size_t i = 0; ok && i < l.n_items; i++)
        n_left += ref->quant[0] && !is_taken(&p, i);
    if (ok && n_left == 0)
        remove_refs(refs, commit, 0);
    for (size_t i = 0; ok && i < l.n_items; i++) {
        if (!ref->quant[0] || is_taken(&p, i))
            ok = cache_path(c, path, err, "/snapshots/%s/%s", commit, l.items[i].path) &&
                 (unlink(path) == 0 || err_set(err, ERR_IO, "cannot remove '%.300s': %s", path, strerror(errno)));
    }
    uint64_t of_links = 0;
    if (ok && n_left == 0)
        remove_tree(dir, 0, &of_links);
    for (size_t i = 0; ok && i < l.n_items; i++) {
        if (!ref->quant[0] || is_taken(&p, i))
            remove_blob(c, l.items[i].etag, freed);
    }
    hub_listing_release(&l);
    plan_release(&p);
    return ok;
}

bool hub_cache_remove(const char *cache_dir, const struct hub_ref *ref, uint64_t *bytes_freed, struct err *err)
{
    struct cache_repo c;
    struct stat st;
    uint64_t freed = 0;
    if (!cache_repo_init(&c, cache_dir, ref->repo, err))
        return false;
    if (stat(c.dir, &st) != 0)
        return err_set(err, ERR_MODEL_NOT_FOUND, "'%s' is not in the cache %.200s. See: inferd list", ref->repo, cache_dir);
    int lock = cache_lock_repo(&c, CACHE_REMOVES, err);
    if (lock < 0)
        return lock == -1 && in_use(ref->repo, err);
    bool whole = !ref->quant[0] && strcmp(ref->revision, "main") == 0;
    bool ok = no_transfer(&c, ref->repo, err) && (whole ? remove_repo(&c, &freed, err) : remove_part(&c, ref, &freed, err));
    close(lock);
    if (bytes_freed)
        *bytes_freed = freed;
    return ok;
}

/* ---- verifying ------------------------------------------------------------------------------------------------------------ */

/* Whether the bytes at `path` have the hash `want`. */
static bool check_file(const char *path, const char *want, uint64_t size, bool *same, struct err *err)
{
    char got[65];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct digest *d = digest_new(digest_kind_of(want), size, err);
    char *block = malloc(READ_BYTES);
    bool ok = d && block;
    ssize_t n = 0;
    if (d && (!block || fd < 0))
        ok = err_set(err, ERR_IO, "cannot read '%.300s': %s", path, strerror(errno));
    while (ok && (n = read(fd, block, READ_BYTES)) > 0)
        ok = digest_add(d, block, (size_t)n, err);
    if (ok && n < 0)
        ok = err_set(err, ERR_IO, "cannot read '%.300s': %s", path, strerror(errno));
    ok = ok && digest_end(d, want, got, same, err);
    free(block);
    digest_free(d);
    if (fd >= 0)
        close(fd);
    return ok;
}

/* Files that were copied into the snapshot instead of linked have no etag to be held against; they pass. */
static bool verify_entry(const struct cache_repo *c, const char *commit, const struct hub_entry *e, bool *same, struct err *err)
{
    char path[HUB_DIR_BYTES_MAX];
    *same = true;
    return digest_kind_of(e->etag) == DIGEST_NONE ||
           (cache_path(c, path, err, "/snapshots/%s/%s", commit, e->path) && check_file(path, e->etag, e->size, same, err));
}

bool hub_cache_verify(const char *cache_dir, const struct hub_ref *ref, hub_verify_fn *each, void *user, struct err *err)
{
    struct cache_repo c;
    struct hub_listing l = {0};
    char commit[HUB_COMMIT_BYTES], names[512] = "";
    size_t n_bad = 0, at = 0;
    if (!cache_repo_init(&c, cache_dir, ref->repo, err))
        return false;
    if (!cache_ref_read(&c, ref->revision, commit) || !cache_listing(&c, commit, &l, err) || l.n_items == 0) {
        hub_listing_release(&l);
        return err_set(err, ERR_MODEL_NOT_FOUND, "'%s' (revision '%s') is not in the cache %.200s", ref->repo, ref->revision,
                       cache_dir);
    }
    bool ok = true;
    for (size_t i = 0; ok && i < l.n_items; i++) {
        const struct hub_entry *e = &l.items[i];
        bool same = true;
        if (each && !each(user, e->path, e->size))
            ok = err_set(err, ERR_CANCELLED, "verifying '%s' was stopped", ref->repo);
        ok = ok && verify_entry(&c, commit, e, &same, err);
        if (ok && !same && n_bad++ < DAMAGED_NAMES_SHOWN && at + 1 < sizeof names)
            at += (size_t)snprintf(names + at, sizeof names - at, "%s'%.150s'", at ? ", " : "", e->path);
    }
    if (ok && n_bad)
        ok = err_set(err, ERR_MODEL_DAMAGED,
                     "'%s': %zu of %zu files differ from their hash (%s%s): remove the model and "
                     "pull it again",
                     ref->repo, n_bad, l.n_items, names, n_bad > DAMAGED_NAMES_SHOWN ? ", ..." : "");
    hub_listing_release(&l);
    return ok;
}

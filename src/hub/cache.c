/* Hugging Face's cache layout: paths, locks, refs, and how a finished set of blobs becomes a snapshot.
 *
 * Order of a publication: blobs are whole and synced -> the snapshot's symlinks (a new snapshot is built beside and comes
 * into being by one rename) -> refs/<revision> by rename. Whoever reads in between sees the state before. */
#include "hub/impl.h"

#include "base/rand.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define READ_BYTES     ((size_t)64 << 10)
#define LINK_DEPTH_MAX 64 /* folders below a snapshot */
#define LOCK_TRIES_MAX 16

bool cache_repo_init(struct cache_repo *c, const char *cache_dir, const char *repo, struct err *err)
{
    const char *slash = strchr(repo, '/');
    int n = slash ? snprintf(c->name, sizeof c->name, "models--%.*s--%s", (int)(slash - repo), repo, slash + 1)
                  : snprintf(c->name, sizeof c->name, "models--%s", repo);
    if (n < 0 || (size_t)n >= sizeof c->name || strlen(cache_dir) + sizeof c->name >= sizeof c->dir)
        return err_set(err, ERR_USAGE, "the cache folder's path '%.100s...' is too long", cache_dir);
    snprintf(c->cache_dir, sizeof c->cache_dir, "%s", cache_dir);
    snprintf(c->dir, sizeof c->dir, "%.*s/%s", HUB_DIR_BYTES_MAX - HUB_REPO_BYTES_MAX - 40, cache_dir, c->name);
    return true;
}

bool cache_path(const struct cache_repo *c, char *out, struct err *err, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    size_t at = strlen(c->dir);
    memcpy(out, c->dir, at);
    int n = vsnprintf(out + at, HUB_DIR_BYTES_MAX - at, format, args);
    va_end(args);
    return (n >= 0 && (size_t)n < HUB_DIR_BYTES_MAX - at) ||
           err_set(err, ERR_IO, "a path below '%.200s' would have more than %d bytes", c->dir, HUB_DIR_BYTES_MAX - 1);
}

static bool io_error(struct err *err, const char *what, const char *path)
{
    int error = errno;
    return err_set(err, ERR_IO, "cannot %s '%.400s': %s", what, path, strerror(error));
}

bool cache_make_dirs(const char *path, struct err *err)
{
    char part[HUB_DIR_BYTES_MAX];
    size_t len = strlen(path);
    if (len >= sizeof part)
        return err_set(err, ERR_IO, "the path '%.100s...' has more than %zu bytes", path, sizeof part - 1);
    for (size_t i = 1; i <= len; i++) {
        if (path[i] != '/' && path[i] != 0)
            continue;
        memcpy(part, path, i);
        part[i] = 0;
        if (mkdir(part, 0777) != 0 && errno != EEXIST)
            return io_error(err, "make the folder", part);
    }
    return true;
}

bool cache_make_parent(const char *path, struct err *err)
{
    char dir[HUB_DIR_BYTES_MAX];
    const char *slash = strrchr(path, '/');
    if (!slash || slash == path || (size_t)(slash - path) >= sizeof dir)
        return true;
    memcpy(dir, path, (size_t)(slash - path));
    dir[slash - path] = 0;
    return cache_make_dirs(dir, err);
}

bool cache_read(const char *path, size_t bytes_max, struct buf *out)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    bool ok = fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_size <= bytes_max;
    ssize_t n = 1;
    while (ok && n > 0 && out->len < bytes_max) {
        size_t want = bytes_max - out->len < READ_BYTES ? bytes_max - out->len : READ_BYTES;
        char *to = buf_reserve(out, want);
        n = to ? read(fd, to, want) : -1;
        ok = n >= 0;
        out->len += ok ? (size_t)n : 0;
    }
    if (ok && out->data)
        out->data[out->len] = 0;
    if (fd >= 0)
        close(fd);
    return ok;
}

bool cache_sync_dir(const char *path, struct err *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return io_error(err, "open the folder", path);
    bool ok = fsync(fd) == 0 || errno == EINVAL || errno == EROFS;
    if (!ok)
        io_error(err, "sync the folder", path);
    close(fd);
    return ok;
}

uint64_t cache_bytes_free(const char *path)
{
    struct statvfs fs;
    return statvfs(path, &fs) == 0 && fs.f_blocks ? (uint64_t)fs.f_bavail * fs.f_frsize : HUB_SIZE_UNKNOWN;
}

/* ---- refs ---------------------------------------------------------------------------------------------------------------- */

bool cache_ref_read(const struct cache_repo *c, const char *revision, char commit[HUB_COMMIT_BYTES])
{
    char path[HUB_DIR_BYTES_MAX];
    if (hub_is_commit(revision)) {
        memcpy(commit, revision, HUB_COMMIT_BYTES);
        return true;
    }
    struct buf b;
    buf_init(&b, 256);
    bool ok = cache_path(c, path, NULL, "/refs/%s", revision) && cache_read(path, 200, &b) && b.len;
    while (ok && b.len && (b.data[b.len - 1] == '\n' || b.data[b.len - 1] == ' '))
        b.len--;
    ok = ok && b.len == HUB_COMMIT_BYTES - 1;
    if (ok) {
        memcpy(commit, b.data, b.len);
        commit[b.len] = 0;
        ok = hub_is_commit(commit);
    }
    buf_release(&b);
    return ok;
}

bool cache_ref_write(const struct cache_repo *c, const char *revision, const char *commit, struct err *err)
{
    char path[HUB_DIR_BYTES_MAX], next[HUB_DIR_BYTES_MAX], old[HUB_COMMIT_BYTES];
    if (strcmp(revision, commit) == 0 || (cache_ref_read(c, revision, old) && strcmp(old, commit) == 0))
        return true;
    if (!cache_path(c, path, err, "/refs/%s", revision) ||
        !cache_path(c, next, err, "/refs/%s.%08x.tmp", revision, (unsigned)rand_system_u64()) || !cache_make_parent(path, err))
        return false;
    int fd = open(next, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return io_error(err, "write", next);
    bool ok = write(fd, commit, strlen(commit)) == (ssize_t)strlen(commit) && fdatasync(fd) == 0;
    if (close(fd) != 0 || !ok || rename(next, path) != 0) {
        io_error(err, "write", path);
        unlink(next);
        return false;
    }
    return true;
}

/* ---- blobs ----------------------------------------------------------------------------------------------------------------- */

static bool has(const char *path, uint64_t size)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) && (size == HUB_SIZE_UNKNOWN || (uint64_t)st.st_size == size);
}

bool cache_has_file(const struct cache_repo *c, const char *commit, const char *path, uint64_t size)
{
    char full[HUB_DIR_BYTES_MAX];
    return cache_path(c, full, NULL, "/snapshots/%s/%s", commit, path) && has(full, size);
}

bool cache_has_blob(const struct cache_repo *c, const char *etag, uint64_t size)
{
    char full[HUB_DIR_BYTES_MAX];
    return etag[0] && cache_path(c, full, NULL, "/blobs/%s", etag) && has(full, size);
}

/* A lock that was won on a file that somebody unlinked meanwhile guards nothing: open anew. */
static bool still_linked(int fd, const char *path)
{
    struct stat mine, there;
    return fstat(fd, &mine) == 0 && stat(path, &there) == 0 && mine.st_ino == there.st_ino && mine.st_dev == there.st_dev;
}

/* As cache_lock; `operation` is flock's. */
static int lock(const struct cache_repo *c, const char *name, int operation, struct err *err)
{
    char path[HUB_DIR_BYTES_MAX];
    int n = snprintf(path, sizeof path, "%s/.locks/%s/%s.lock", c->cache_dir, c->name, name);
    if (n < 0 || (size_t)n >= sizeof path) {
        err_set(err, ERR_IO, "the path of a lock below '%.200s' is too long", c->cache_dir);
        return -2;
    }
    for (int i = 0; i < LOCK_TRIES_MAX; i++) {
        if (!cache_make_parent(path, err))
            return -2;
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0664);
        if (fd < 0 && errno == ENOENT)
            continue; /* its folder was removed meanwhile */
        if (fd < 0) {
            io_error(err, "open the lock", path);
            return -2;
        }
        if (flock(fd, operation | LOCK_NB) != 0) {
            int error = errno;
            close(fd);
            if (error == EWOULDBLOCK || error == EINTR)
                return -1;
            errno = error;
            io_error(err, "lock", path);
            return -2;
        }
        if (still_linked(fd, path))
            return fd;
        close(fd);
    }
    return -1;
}

int cache_lock(const struct cache_repo *c, const char *etag, struct err *err)
{
    return lock(c, etag, LOCK_EX, err);
}

int cache_lock_repo(const struct cache_repo *c, enum cache_use use, struct err *err)
{
    return lock(c, CACHE_REPO_LOCK, use == CACHE_PULLS ? LOCK_SH : LOCK_EX, err);
}

/* ---- snapshots ------------------------------------------------------------------------------------------------------------- */

/* "../../blobs/<etag>" with one more ".." for every folder in path. */
static bool link_target(const struct cache_link *l, char *out)
{
    size_t depth = 0, at = 0;
    for (const char *p = l->path; *p; p++)
        depth += *p == '/';
    if (depth > LINK_DEPTH_MAX)
        return false;
    for (size_t i = 0; i < depth + 2; i++)
        at += (size_t)sprintf(out + at, "../");
    return snprintf(out + at, HUB_DIR_BYTES_MAX - at, "blobs/%s", l->etag) > 0;
}

static bool make_link(const char *dir, const struct cache_link *l, struct err *err)
{
    char path[HUB_DIR_BYTES_MAX], next[HUB_DIR_BYTES_MAX], target[HUB_DIR_BYTES_MAX], now[HUB_DIR_BYTES_MAX];
    if (snprintf(path, sizeof path, "%s/%s", dir, l->path) >= (int)sizeof path ||
        snprintf(next, sizeof next, "%s.%08x.tmp", path, (unsigned)rand_system_u64()) >= (int)sizeof next ||
        !link_target(l, target))
        return err_set(err, ERR_IO, "the path of '%.300s' in the cache is too long", l->path);
    if (!cache_make_parent(path, err))
        return false;
    ssize_t n = readlink(path, now, sizeof now);
    if (n == (ssize_t)strlen(target) && memcmp(now, target, (size_t)n) == 0)
        return true;
    if (symlink(target, next) != 0)
        return io_error(err, "make the link", next);
    if (rename(next, path) == 0)
        return true;
    io_error(err, "make the link", path);
    unlink(next);
    return false;
}

/* Removes a folder that this process made and filled with folders and links. */
static void remove_tree(const char *path)
{
    DIR *d = opendir(path);
    struct dirent *e;
    char child[HUB_DIR_BYTES_MAX];
    while (d && (e = readdir(d))) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if (snprintf(child, sizeof child, "%s/%s", path, e->d_name) < (int)sizeof child && unlink(child) != 0)
            remove_tree(child);
    }
    if (d)
        closedir(d);
    rmdir(path);
}

bool cache_publish(const struct cache_repo *c, const char *commit, const struct cache_link *links, size_t n, struct err *err)
{
    char dir[HUB_DIR_BYTES_MAX], made[HUB_DIR_BYTES_MAX], blobs[HUB_DIR_BYTES_MAX];
    struct stat st;
    if (!cache_path(c, dir, err, "/snapshots/%s", commit) || !cache_path(c, blobs, err, "/blobs") ||
        !cache_path(c, made, err, "/.snapshot-%s.%08x", commit, (unsigned)rand_system_u64()) || !cache_make_parent(dir, err) ||
        !cache_sync_dir(blobs, err))
        return false;
    bool fresh = stat(dir, &st) != 0;
    const char *into = fresh ? made : dir;
    bool ok = cache_make_dirs(into, err);
    for (size_t i = 0; ok && i < n; i++)
        ok = make_link(into, &links[i], err);
    if (!ok) {
        if (fresh)
            remove_tree(made);
        return false;
    }
    if (!fresh || rename(made, dir) == 0)
        return true;
    /* Another process was first: its folder is there now, and gets what it lacks. */
    bool raced = errno == EEXIST || errno == ENOTEMPTY;
    if (!raced)
        io_error(err, "make the snapshot", dir);
    remove_tree(made);
    return raced && cache_publish(c, commit, links, n, err);
}

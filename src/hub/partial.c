/* Files on their way into the cache; see partial.h. */
#include "hub/partial.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK_BYTES ((size_t)256 << 10)

static bool failed(struct err *err, const char *what, const char *path)
{
    int error = errno;
    const char *advice = error == ENOSPC || error == EDQUOT ? "; make room, then pull again: what came is kept" : "";
    return err_set(err, ERR_IO, "cannot %s '%.400s': %s%s", what, path, strerror(error), advice);
}

static bool set_paths(struct partial *p, struct err *err)
{
    return cache_path(p->repo, p->path, err, "/blobs/%s.inferd.incomplete", p->etag) &&
           cache_path(p->repo, p->journal, err, "/blobs/%s.inferd.journal.incomplete", p->etag) &&
           cache_path(p->repo, p->late, err, "/blobs/%s.inferd.late.incomplete", p->etag);
}

static bool new_digest(struct partial *p, struct err *err)
{
    digest_free(p->digest);
    p->digest = NULL;
    p->hashed = 0;
    enum digest_kind kind = digest_kind_of(p->hash);
    return kind == DIGEST_NONE || (p->digest = digest_new(kind, p->size, err)) != NULL;
}

static void forget(struct partial *p)
{
    journal_remove(p->journal);
    journal_remove(p->late);
    ranges_release(&p->done);
}

/* What the late journal knows beside the other: the bytes of a process that was killed, in the system's memory still. */
static bool add_late(struct partial *p, struct err *err)
{
    struct ranges late;
    bool ok = true;
    journal_read(p->late, p->size, p->etag, JOURNAL_LATE, &late);
    for (size_t i = 0; ok && i < late.n; i++)
        ok = ranges_add(&p->done, late.items[i].begin, late.items[i].end);
    ranges_release(&late);
    return ok || err_set(err, ERR_MEMORY, "no memory for the journal of '%.300s'", p->path);
}

/* Journals count only beside a data file of the right size: one that was made just now has no bytes. */
static bool open_data(struct partial *p, struct err *err)
{
    struct stat st;
    p->fd = open(p->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (p->fd < 0 || fstat(p->fd, &st) != 0)
        return failed(err, "write", p->path);
    bool same = (uint64_t)st.st_size == p->size;
    if (!same && (ftruncate(p->fd, 0) != 0 || ftruncate(p->fd, (off_t)p->size) != 0))
        return failed(err, "write", p->path);
    if (!same) {
        forget(p);
        return true;
    }
    journal_read(p->journal, p->size, p->etag, JOURNAL_SYNCED, &p->done);
    return add_late(p, err);
}

enum partial_open partial_open(struct partial *p, const struct cache_repo *repo, const char *etag, const char *hash,
                               uint64_t size, struct err *err)
{
    *p = (struct partial){.repo = repo, .size = size, .fd = -1, .lock_fd = -1};
    snprintf(p->etag, sizeof p->etag, "%s", etag);
    snprintf(p->hash, sizeof p->hash, "%s", hash);
    if (!set_paths(p, err))
        return PARTIAL_FAILED;
    p->lock_fd = cache_lock(repo, etag, err);
    if (p->lock_fd < 0)
        return p->lock_fd == -1 ? PARTIAL_BUSY : PARTIAL_FAILED;
    if (cache_has_blob(repo, etag, size)) {
        partial_close(p);
        return PARTIAL_WHOLE;
    }
    p->block = malloc(BLOCK_BYTES);
    if (!p->block)
        err_set(err, ERR_MEMORY, "no memory for a block of %zu bytes", BLOCK_BYTES);
    if (p->block && cache_make_parent(p->path, err) && open_data(p, err) && new_digest(p, err))
        return PARTIAL_OPEN;
    partial_close(p);
    return PARTIAL_FAILED;
}

bool partial_write(struct partial *p, uint64_t at, const char *bytes, size_t len, struct err *err)
{
    while (len) {
        ssize_t n = pwrite(p->fd, bytes, len, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            errno = n == 0 ? ENOSPC : errno;
            return failed(err, "write", p->path);
        }
        bytes += n;
        at += (uint64_t)n;
        len -= (size_t)n;
        p->dirty = 1;
    }
    return true;
}

bool partial_hash(struct partial *p, uint64_t upto, uint64_t bytes_max, struct err *err)
{
    if (!p->digest) {
        p->hashed = upto;
        return true;
    }
    uint64_t end = upto - p->hashed < bytes_max ? upto : p->hashed + bytes_max;
    while (p->hashed < end) {
        size_t want = end - p->hashed < BLOCK_BYTES ? (size_t)(end - p->hashed) : BLOCK_BYTES;
        ssize_t n = pread(p->fd, p->block, want, (off_t)p->hashed);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            errno = n == 0 ? EIO : errno;
            return failed(err, "read", p->path);
        }
        if (!digest_add(p->digest, p->block, (size_t)n, err))
            return false;
        p->hashed += (uint64_t)n;
    }
    return true;
}

bool partial_save(struct partial *p, const struct ranges *also, enum partial_sync sync, struct err *err)
{
    struct ranges all = {0};
    bool ok = true;
    for (size_t i = 0; ok && i < p->done.n; i++)
        ok = ranges_add(&all, p->done.items[i].begin, p->done.items[i].end);
    for (size_t i = 0; ok && i < also->n; i++)
        ok = ranges_add(&all, also->items[i].begin, also->items[i].end);
    if (!ok)
        err_set(err, ERR_MEMORY, "no memory for the journal of '%.300s'", p->path);
    if (sync == PARTIAL_SYNC) {
        ok = ok && (fdatasync(p->fd) == 0 || failed(err, "sync", p->path)) &&
             journal_write(p->journal, &all, p->size, p->etag, JOURNAL_SYNCED, err);
        p->dirty = ok ? 0 : p->dirty;
    } else {
        sync_file_range(p->fd, 0, 0, SYNC_FILE_RANGE_WRITE); /* on its way to the disk, so that the next sync waits less */
        ok = ok && journal_write(p->late, &all, p->size, p->etag, JOURNAL_LATE, err);
    }
    ranges_release(&all);
    return ok;
}

bool partial_reset(struct partial *p, struct err *err)
{
    forget(p);
    return new_digest(p, err);
}

bool partial_finish(struct partial *p, bool *same, char got[65], struct err *err)
{
    char blob[HUB_DIR_BYTES_MAX];
    *same = true;
    got[0] = 0;
    if (p->digest && !digest_end(p->digest, p->hash, got, same, err))
        return false;
    if (!*same)
        return true;
    if (!cache_path(p->repo, blob, err, "/blobs/%s", p->etag))
        return false;
    if (fsync(p->fd) != 0)
        return failed(err, "sync", p->path);
    if (rename(p->path, blob) != 0)
        return failed(err, "make the blob", blob);
    forget(p);
    return true;
}

void partial_discard(struct partial *p)
{
    unlink(p->path);
    forget(p);
}

void partial_sweep(const struct cache_repo *repo, const char *etag)
{
    struct partial p = {.repo = repo, .fd = -1, .lock_fd = -1};
    struct stat st;
    snprintf(p.etag, sizeof p.etag, "%s", etag);
    if (!set_paths(&p, NULL) || (lstat(p.path, &st) != 0 && lstat(p.journal, &st) != 0 && lstat(p.late, &st) != 0))
        return;
    p.lock_fd = cache_lock(repo, etag, NULL);
    if (p.lock_fd >= 0)
        partial_discard(&p);
    partial_close(&p);
}

void partial_close(struct partial *p)
{
    if (p->fd >= 0)
        close(p->fd);
    if (p->lock_fd >= 0)
        close(p->lock_fd);
    p->fd = p->lock_fd = -1;
    digest_free(p->digest);
    p->digest = NULL;
    free(p->block);
    p->block = NULL;
    ranges_release(&p->done);
}

uint64_t partial_bytes_missing(const struct cache_repo *repo, const char *etag, uint64_t size)
{
    char path[HUB_DIR_BYTES_MAX];
    struct stat st;
    if (!cache_path(repo, path, NULL, "/blobs/%s.inferd.incomplete", etag) || stat(path, &st) != 0)
        return size;
    uint64_t taken = (uint64_t)st.st_blocks * 512;
    return taken < size ? size - taken : 0;
}

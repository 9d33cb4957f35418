/* See pack_cache.h. Numbers in the file are little-endian, as the machines that run this are. */
#include "model/pack_cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define MAGIC         "inferd-pack-002"
#define BLOCK_ALIGN   4096
#define KEY_BYTES_MAX ((uint64_t)16 << 20)
#define STALE_S       3600 /* temporary files of that age belong to nobody */
#define PATH_BYTES    4096
#define PIECES_A_TURN 16 /* that hold the compute pool at once, so that running models get their turns */

struct header {
    char magic[16];
    uint64_t key_bytes, block_bytes, block_at, n_pieces, key_sum;
    uint64_t pieces_sum; /* of the list of sums, which follows the key */
    uint64_t header_sum; /* of all of the above */
};

#define SUM_CHAINS 16

/* 64-bit mixing sum over words, in chains that run beside each other, at the speed of memory. Position counts. */
static uint64_t sum_bytes(const void *data, size_t n)
{
    static const uint64_t odd = 0x9e3779b97f4a7c15u;
    uint64_t h[SUM_CHAINS], word = 0;
    const unsigned char *p = data;
    size_t i = 0;
    for (int k = 0; k < SUM_CHAINS; k++)
        h[k] = (uint64_t)k + 1;
    for (; i + 8 * SUM_CHAINS <= n; i += 8 * SUM_CHAINS) {
        for (int k = 0; k < SUM_CHAINS; k++) {
            memcpy(&word, p + i + 8 * k, 8);
            h[k] = (h[k] ^ word) * odd;
            h[k] ^= h[k] >> 29;
        }
    }
    for (int k = 0; i < n; k++) {
        size_t rest = n - i < 8 ? n - i : 8;
        word = 0;
        memcpy(&word, p + i, rest);
        h[k] = (h[k] ^ word) * odd;
        h[k] ^= h[k] >> 29;
        i += rest;
    }
    uint64_t out = n;
    for (int k = 0; k < SUM_CHAINS; k++) {
        out = (out ^ h[k]) * odd;
        out ^= out >> 32;
    }
    return out;
}

static void file_path(char out[PATH_BYTES], const char *dir, struct str key)
{
    snprintf(out, PATH_BYTES, "%s/%016llx%016llx.pack", dir, (unsigned long long)sum_bytes(key.ptr, key.len),
             (unsigned long long)str_hash(key));
}

static uint64_t header_sum(const struct header *h)
{
    return sum_bytes(h, offsetof(struct header, header_sum));
}

static size_t n_pieces(size_t bytes)
{
    return (bytes + PACK_CACHE_PIECE - 1) / PACK_CACHE_PIECE;
}

static size_t piece_bytes(size_t bytes, size_t i)
{
    size_t at = i * PACK_CACHE_PIECE;
    return bytes - at < PACK_CACHE_PIECE ? bytes - at : PACK_CACHE_PIECE;
}

static uint64_t block_at(uint64_t key_bytes, uint64_t pieces)
{
    return (sizeof(struct header) + key_bytes + pieces * 8 + BLOCK_ALIGN - 1) / BLOCK_ALIGN * BLOCK_ALIGN;
}

static bool read_all(int fd, void *to, size_t n, uint64_t at)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(fd, (char *)to + done, n - done, (off_t)(at + done));
        if (got <= 0 && !(got < 0 && errno == EINTR))
            return false;
        done += got > 0 ? (size_t)got : 0;
    }
    return true;
}

/* ---- reading ------------------------------------------------------------------------------------------------------- */

struct reading {
    int fd;
    unsigned char *memory;
    size_t bytes;
    uint64_t at;
    size_t first; /* piece of this turn */
    const uint64_t *sums;
    _Atomic size_t bad; /* piece + 1; 0: none */
};

static void read_pieces(void *arg, size_t begin, size_t end, unsigned thread)
{
    struct reading *r = arg;
    for (size_t k = begin; k < end; k++) {
        size_t i = r->first + k, n = piece_bytes(r->bytes, i);
        unsigned char *to = r->memory + i * PACK_CACHE_PIECE;
        if (!read_all(r->fd, to, n, r->at + i * PACK_CACHE_PIECE) || sum_bytes(to, n) != r->sums[i])
            r->bad = i + 1;
    }
}

static bool read_block(struct backend *b, struct reading *r, struct err *err)
{
    size_t pieces = n_pieces(r->bytes);
    for (; r->first < pieces && !r->bad; r->first += PIECES_A_TURN) {
        size_t n = pieces - r->first < PIECES_A_TURN ? pieces - r->first : PIECES_A_TURN;
        backend_split(b, n, 1, read_pieces, r);
    }
    return !r->bad || err_set(err, ERR_IO, "the block differs from its checksum between bytes %zu and %zu",
                              (r->bad - 1) * PACK_CACHE_PIECE, (r->bad - 1) * PACK_CACHE_PIECE + PACK_CACHE_PIECE);
}

static bool check_header(const struct header *h, uint64_t file_bytes, struct err *err)
{
    if (memcmp(h->magic, MAGIC, sizeof h->magic) != 0 || h->header_sum != header_sum(h))
        return err_set(err, ERR_IO, "the header is damaged");
    if (h->key_bytes > KEY_BYTES_MAX || h->n_pieces != n_pieces(h->block_bytes) ||
        h->block_at != block_at(h->key_bytes, h->n_pieces) || file_bytes != h->block_at + h->block_bytes)
        return err_set(err, ERR_IO, "the file has %llu bytes, its header tells of %llu", (unsigned long long)file_bytes,
                       (unsigned long long)(h->block_at + h->block_bytes));
    return true;
}

/* Header, key, sums and padding of an open file. *sums is the caller's. Another key or size: absent. */
static enum pack_cache_found read_head(int fd, struct str key, size_t bytes, uint64_t **sums, uint64_t *at, struct err *err)
{
    struct header h;
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || !read_all(fd, &h, sizeof h, 0))
        return err_set(err, ERR_IO, "the header cannot be read, or it is not a file"), PACK_CACHE_BAD;
    if (!check_header(&h, (uint64_t)st.st_size, err))
        return PACK_CACHE_BAD;
    if (h.key_bytes != key.len || h.block_bytes != bytes || h.key_sum != sum_bytes(key.ptr, key.len))
        return PACK_CACHE_ABSENT;
    size_t n = (size_t)h.n_pieces * 8, len = (size_t)h.block_at - sizeof h;
    char *text = malloc(len);
    if (!text)
        return PACK_CACHE_ABSENT;
    *sums = malloc(n ? n : 1);
    *at = h.block_at;
    enum pack_cache_found found = PACK_CACHE_READ;
    if (!*sums || !read_all(fd, text, len, sizeof h) || memcmp(text, key.ptr, key.len) != 0)
        found = PACK_CACHE_ABSENT;
    else
        memcpy(*sums, text + key.len, n);
    for (size_t i = key.len + n; found == PACK_CACHE_READ && i < len; i++) {
        if (text[i]) {
            err_set(err, ERR_IO, "byte %zu of the padding is not 0", sizeof h + i);
            found = PACK_CACHE_BAD;
        }
    }
    if (found == PACK_CACHE_READ && sum_bytes(*sums, n) != h.pieces_sum) {
        err_set(err, ERR_IO, "the list of checksums is damaged");
        found = PACK_CACHE_BAD;
    }
    free(text);
    return found;
}

enum pack_cache_found pack_cache_read(const char *dir, struct str key, struct backend *b, void *memory, size_t bytes,
                                      struct err *err)
{
    char path[PATH_BYTES];
    file_path(path, dir, key);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK); /* which a pipe would wait for */
    if (fd < 0)
        return PACK_CACHE_ABSENT;
    struct reading r = {.fd = fd, .memory = memory, .bytes = bytes};
    uint64_t *sums = NULL;
    enum pack_cache_found found = read_head(fd, key, bytes, &sums, &r.at, err);
    r.sums = sums;
    if (found == PACK_CACHE_READ && !read_block(b, &r, err))
        found = PACK_CACHE_BAD;
    if (found == PACK_CACHE_READ)
        futimens(fd, NULL); /* used now */
    if (found == PACK_CACHE_BAD) {
        const char *name = strrchr(path, '/') + 1;
        if (unlink(path) == 0)
            err_prefix(err, "%s was removed", name);
        else
            err_prefix(err, "%s could not be removed (%s), remove it by hand", name, strerror(errno));
    }
    free(sums);
    close(fd);
    return found;
}

/* ---- the bound ------------------------------------------------------------------------------------------------------ */

struct aged {
    char name[64];
    uint64_t bytes;
    struct timespec used;
};

static int by_use(const void *a, const void *b)
{
    const struct timespec *x = &((const struct aged *)a)->used, *y = &((const struct aged *)b)->used;
    if (x->tv_sec != y->tv_sec)
        return x->tv_sec < y->tv_sec ? -1 : 1;
    return (x->tv_nsec > y->tv_nsec) - (x->tv_nsec < y->tv_nsec);
}

/* Files of the cache, those used longest ago first; removes temporary files that nobody writes any more. */
static struct aged *list_files(const char *dir, size_t *n, uint64_t *bytes)
{
    struct aged *list = NULL;
    DIR *d = opendir(dir);
    time_t now = time(NULL);
    *n = 0;
    *bytes = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        struct stat st;
        struct str name = str_from(e->d_name);
        if (fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode))
            continue;
        if (str_has_suffix(name, STR(".tmp")) && now - st.st_mtim.tv_sec > STALE_S)
            unlinkat(dirfd(d), e->d_name, 0);
        if (!str_has_suffix(name, STR(".pack")) || name.len >= sizeof list->name)
            continue;
        struct aged *more = realloc(list, (*n + 1) * sizeof *list);
        if (!more)
            break;
        list = more;
        list[*n] = (struct aged){.bytes = (uint64_t)st.st_size, .used = st.st_mtim};
        memcpy(list[*n].name, e->d_name, name.len + 1);
        *bytes += list[(*n)++].bytes;
    }
    if (d)
        closedir(d);
    if (list)
        qsort(list, *n, sizeof *list, by_use);
    return list;
}

/* Removes files other than `keep` until `coming` bytes more fit within bytes_max. */
static void make_room(const char *dir, const char *keep, uint64_t coming, uint64_t bytes_max)
{
    size_t n;
    uint64_t bytes;
    struct aged *list = list_files(dir, &n, &bytes);
    for (size_t i = 0; i < n && bytes + coming > bytes_max; i++) {
        char path[PATH_BYTES];
        if (strcmp(list[i].name, keep) == 0)
            continue;
        snprintf(path, sizeof path, "%s/%s", dir, list[i].name);
        if (unlink(path) == 0)
            bytes -= list[i].bytes;
    }
    free(list);
}

/* ---- writing ------------------------------------------------------------------------------------------------------- */

static bool write_all(int fd, const void *from, size_t n, uint64_t at)
{
    for (size_t done = 0; done < n;) {
        ssize_t put = pwrite(fd, (const char *)from + done, n - done, (off_t)(at + done));
        if (put < 0 && errno != EINTR)
            return false;
        done += put > 0 ? (size_t)put : 0;
    }
    return true;
}

/* Pieces are started on their way to the disk as they are written, so that the last sync, and a stop, take little time. */
static bool write_file(int fd, struct str key, const unsigned char *memory, size_t bytes, uint64_t *sums,
                       const atomic_bool *stop)
{
    struct header h = {.magic = MAGIC, .key_bytes = key.len, .block_bytes = bytes, .n_pieces = n_pieces(bytes)};
    h.block_at = block_at(h.key_bytes, h.n_pieces);
    for (size_t i = 0; i < h.n_pieces; i++) {
        size_t n = piece_bytes(bytes, i);
        uint64_t at = h.block_at + i * PACK_CACHE_PIECE;
        sums[i] = sum_bytes(memory + i * PACK_CACHE_PIECE, n);
        if (*stop || !write_all(fd, memory + i * PACK_CACHE_PIECE, n, at))
            return false;
        sync_file_range(fd, (off_t)at, (off_t)n, SYNC_FILE_RANGE_WRITE);
    }
    h.key_sum = sum_bytes(key.ptr, key.len);
    h.pieces_sum = sum_bytes(sums, (size_t)h.n_pieces * 8);
    h.header_sum = header_sum(&h);
    return write_all(fd, &h, sizeof h, 0) && write_all(fd, key.ptr, key.len, sizeof h) &&
           write_all(fd, sums, (size_t)h.n_pieces * 8, sizeof h + key.len) && !*stop && fdatasync(fd) == 0;
}

/* With the folders above it. */
static bool make_folder(const char *dir)
{
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s", dir);
    for (char *p = strchr(path + 1, '/'); p; p = strchr(p + 1, '/')) {
        *p = 0;
        if (mkdir(path, 0700) != 0 && errno != EEXIST)
            return false;
        *p = '/';
    }
    return mkdir(path, 0700) == 0 || errno == EEXIST;
}

static bool room_on_disk(const char *dir, size_t bytes, struct err *err)
{
    struct statvfs v;
    if (statvfs(dir, &v) != 0)
        return err_set(err, ERR_IO, "the packed cache's folder: %s", strerror(errno));
    uint64_t available = (uint64_t)v.f_bavail * v.f_frsize;
    return available >= bytes + PACK_CACHE_DISK_RESERVE ||
           err_set(err, ERR_IO,
                   "not kept in the packed cache: %zu bytes and a reserve of %llu are more than the %llu bytes "
                   "that are free on the disk",
                   bytes, (unsigned long long)PACK_CACHE_DISK_RESERVE, (unsigned long long)available);
}

/* A file that has no name yet, so that nothing of it is left when the process ends meanwhile. File systems that know no such
 * files get one of the name `temporary`, and *named is set: list_files removes those of the dead. */
static int open_unnamed(const char *dir, const char *temporary, bool *named)
{
    int fd = open(dir, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
    *named = fd < 0;
    return fd >= 0 ? fd : open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
}

/* A link replaces nothing: where there is a file of this name, by way of the name `temporary`. */
static bool give_name(int fd, const char *temporary, const char *path, bool named)
{
    char self[64];
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    if (!named && linkat(AT_FDCWD, self, AT_FDCWD, path, AT_SYMLINK_FOLLOW) == 0)
        return true;
    return (named || linkat(AT_FDCWD, self, AT_FDCWD, temporary, AT_SYMLINK_FOLLOW) == 0) && rename(temporary, path) == 0;
}

bool pack_cache_write(const char *dir, struct str key, const void *memory, size_t bytes, uint64_t bytes_max,
                      const atomic_bool *stop, struct err *err)
{
    static _Atomic unsigned counter;
    char path[PATH_BYTES], temporary[PATH_BYTES + 64];
    if (bytes > bytes_max)
        return err_set(err, ERR_IO, "not kept in the packed cache: %zu bytes are more than its limit of %llu", bytes,
                       (unsigned long long)bytes_max);
    if (!make_folder(dir))
        return err_set(err, ERR_IO, "the packed cache's folder cannot be made: %s", strerror(errno));
    if (!room_on_disk(dir, bytes, err))
        return false;
    file_path(path, dir, key);
    const char *name = strrchr(path, '/') + 1;
    snprintf(temporary, sizeof temporary, "%s.%ld.%u.tmp", path, (long)getpid(), ++counter);
    make_room(dir, name, bytes, bytes_max);
    bool named;
    int fd = open_unnamed(dir, temporary, &named);
    uint64_t *sums = malloc((n_pieces(bytes) + 1) * 8);
    bool ok = fd >= 0 && sums && write_file(fd, key, memory, bytes, sums, stop) && give_name(fd, temporary, path, named);
    if (ok)
        make_room(dir, name, 0, bytes_max); /* others may have written meanwhile, into the same room */
    if (!ok && !*stop)
        err_set(err, ERR_IO, "the packed cache could not be written: %s", strerror(errno));
    if (fd >= 0)
        close(fd);
    if (!ok && fd >= 0)
        unlink(temporary);
    free(sums);
    return ok;
}

/* Ranges and the journal's text; see journal.h. */
#include "hub/journal.h"

#include "hub/impl.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define BOOT_BYTES_MAX 64
#define NAME_BYTES     (HUB_ETAG_BYTES_MAX + BOOT_BYTES_MAX + 2)

void ranges_release(struct ranges *r)
{
    free(r->items);
    *r = (struct ranges){0};
}

static bool insert_at(struct ranges *r, size_t at, struct range v)
{
    if (r->n == r->cap) {
        size_t cap = r->cap ? 2 * r->cap : 16;
        struct range *items = r->n < JOURNAL_RANGES_MAX ? realloc(r->items, cap * sizeof *items) : NULL;
        if (!items)
            return false;
        r->items = items;
        r->cap = cap;
    }
    memmove(r->items + at + 1, r->items + at, (r->n - at) * sizeof *r->items);
    r->items[at] = v;
    r->n++;
    return true;
}

bool ranges_add(struct ranges *r, uint64_t begin, uint64_t end)
{
    if (begin >= end)
        return true;
    size_t first = 0;
    while (first < r->n && r->items[first].end < begin)
        first++;
    size_t last = first; /* items[first..last) touch the new range */
    while (last < r->n && r->items[last].begin <= end)
        last++;
    if (first == last)
        return insert_at(r, first, (struct range){begin, end});
    struct range *into = &r->items[first];
    into->begin = into->begin < begin ? into->begin : begin;
    into->end = r->items[last - 1].end > end ? r->items[last - 1].end : end;
    memmove(r->items + first + 1, r->items + last, (r->n - last) * sizeof *r->items);
    r->n -= last - first - 1;
    return true;
}

uint64_t ranges_total(const struct ranges *r)
{
    uint64_t total = 0;
    for (size_t i = 0; i < r->n; i++)
        total += r->items[i].end - r->items[i].begin;
    return total;
}

uint64_t ranges_covered_to(const struct ranges *r, uint64_t at)
{
    for (size_t i = 0; i < r->n && r->items[i].begin <= at; i++) {
        if (at < r->items[i].end)
            return r->items[i].end;
    }
    return at;
}

bool ranges_hole(const struct ranges *r, uint64_t from, uint64_t size, struct range *out)
{
    out->begin = ranges_covered_to(r, from);
    out->end = size;
    for (size_t i = 0; i < r->n; i++) {
        if (r->items[i].begin > out->begin) {
            out->end = r->items[i].begin;
            break;
        }
    }
    out->end = out->end < size ? out->end : size;
    return out->begin < out->end;
}

/* ---- text -------------------------------------------------------------------------------------------------------------- */

static uint32_t crc32_of(struct str s)
{
    uint32_t crc = ~0u;
    for (size_t i = 0; i < s.len; i++) {
        crc ^= (unsigned char)s.ptr[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (0xEDB88320u & -(crc & 1));
    }
    return ~crc;
}

bool journal_format(const struct ranges *r, uint64_t size, const char *etag, struct buf *out)
{
    buf_clear(out);
    buf_printf(out, "inferd-journal 1\nsize %" PRIu64 "\netag %s\n", size, etag);
    for (size_t i = 0; i < r->n; i++)
        buf_printf(out, "have %" PRIu64 " %" PRIu64 "\n", r->items[i].begin, r->items[i].end);
    return buf_printf(out, "end %08x\n", crc32_of(buf_str(out))) && !out->failed;
}

static struct str take_line(struct str *rest)
{
    const char *end = memchr(rest->ptr, '\n', rest->len);
    struct str line = {rest->ptr, end ? (size_t)(end - rest->ptr) : rest->len};
    size_t used = line.len + (end != NULL);
    *rest = (struct str){rest->ptr + used, rest->len - used};
    return line;
}

static bool parse_have(struct str line, uint64_t size, struct ranges *out)
{
    uint64_t begin, end;
    line = (struct str){line.ptr + 5, line.len - 5};
    const char *space = memchr(line.ptr, ' ', line.len);
    return space && reply_parse_u64((struct str){line.ptr, (size_t)(space - line.ptr)}, &begin) &&
           reply_parse_u64((struct str){space + 1, (size_t)(line.ptr + line.len - space - 1)}, &end) && begin < end &&
           end <= size && (out->n == 0 || out->items[out->n - 1].end < begin) && ranges_add(out, begin, end);
}

bool journal_parse(struct str text, uint64_t size, const char *etag, struct ranges *out)
{
    struct str rest = text, line;
    char want[64 + NAME_BYTES], crc[32];
    *out = (struct ranges){0};
    snprintf(want, sizeof want, "inferd-journal 1\nsize %" PRIu64 "\netag %s\n", size, etag);
    if (text.len > JOURNAL_BYTES_MAX || !str_has_prefix(text, str_from(want)))
        return false;
    rest = (struct str){text.ptr + strlen(want), text.len - strlen(want)};
    while (rest.len) {
        struct str before = {text.ptr, text.len - rest.len};
        line = take_line(&rest);
        if (str_has_prefix(line, STR("have "))) {
            if (!parse_have(line, size, out))
                break;
            continue;
        }
        snprintf(crc, sizeof crc, "end %08x", crc32_of(before));
        if (rest.len == 0 && line.ptr + line.len < text.ptr + text.len && str_equal(line, str_from(crc)))
            return true;
        break;
    }
    ranges_release(out);
    return false;
}

/* The etag as the journal names it; false when a late one cannot be named. */
static bool journal_name(const char *etag, enum journal_kind kind, char out[NAME_BYTES])
{
    struct buf boot;
    buf_init(&boot, BOOT_BYTES_MAX);
    bool ok = kind == JOURNAL_SYNCED || (cache_read("/proc/sys/kernel/random/boot_id", BOOT_BYTES_MAX, &boot) && boot.len);
    int n = snprintf(out, NAME_BYTES, "%s%s%.*s", etag, kind == JOURNAL_LATE ? " " : "", (int)strcspn(buf_str(&boot).ptr, "\n"),
                     buf_str(&boot).ptr);
    buf_release(&boot);
    return ok && n < NAME_BYTES;
}

static bool next_name(const char *path, char out[HUB_DIR_BYTES_MAX])
{
    return snprintf(out, HUB_DIR_BYTES_MAX, "%s.next", path) < HUB_DIR_BYTES_MAX;
}

void journal_remove(const char *path)
{
    char next[HUB_DIR_BYTES_MAX];
    if (next_name(path, next))
        unlink(next);
    unlink(path);
}

static bool replace_file(const char *path, struct str text, enum journal_kind kind, struct err *err)
{
    char next[HUB_DIR_BYTES_MAX];
    if (!next_name(path, next))
        return err_set(err, ERR_IO, "cannot write the journal '%.300s': its path is too long", path);
    int fd = open(next, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    bool ok = fd >= 0 && write(fd, text.ptr, text.len) == (ssize_t)text.len && (kind == JOURNAL_LATE || fdatasync(fd) == 0);
    int error = errno;
    if (fd >= 0)
        close(fd);
    if (ok && rename(next, path) == 0)
        return true;
    error = ok ? errno : error;
    unlink(next);
    const char *advice = error == ENOSPC || error == EDQUOT ? "; make room, then pull again: what came is kept" : "";
    return err_set(err, ERR_IO, "cannot write the journal '%.300s': %s%s", path, strerror(error), advice);
}

bool journal_write(const char *path, const struct ranges *r, uint64_t size, const char *etag, enum journal_kind kind,
                   struct err *err)
{
    char name[NAME_BYTES];
    struct buf b;
    if (!journal_name(etag, kind, name))
        return true;
    buf_init(&b, JOURNAL_BYTES_MAX);
    bool ok = journal_format(r, size, name, &b)
                  ? replace_file(path, buf_str(&b), kind, err)
                  : err_set(err, ERR_IO, "the journal '%.300s' would have %zu ranges: too many", path, r->n);
    buf_release(&b);
    return ok;
}

bool journal_read(const char *path, uint64_t size, const char *etag, enum journal_kind kind, struct ranges *out)
{
    char name[NAME_BYTES];
    struct buf b;
    *out = (struct ranges){0};
    buf_init(&b, JOURNAL_BYTES_MAX);
    bool ok = journal_name(etag, kind, name) && cache_read(path, JOURNAL_BYTES_MAX, &b) &&
              journal_parse(buf_str(&b), size, name, out);
    buf_release(&b);
    return ok;
}

/* Which bytes of a file are on disk, and the journal that remembers it across a crash.
 *
 * The data lies in <etag>.inferd.incomplete, the journal in <etag>.inferd.journal.incomplete (both end in ".incomplete",
 * so that huggingface_hub's tools know them for what they are):
 *
 *     inferd-journal 1\n
 *     size <bytes>\n
 *     etag <etag>\n
 *     have <begin> <end>\n          ascending, apart from each other, once per range
 *     end <crc32 of all above, 8 hexadecimal digits>\n
 *
 * It is written whole to a second name and renamed, always after the bytes that it speaks of were synced; so whatever it
 * says is on disk. A journal that is cut, altered or of another size or etag counts as none.
 *
 * The late journal, <etag>.inferd.late.incomplete, is the same text with "<etag> <boot>" for the etag, where <boot> names
 * this run of the system. It is written often and nothing is synced for it: it tells what the system's memory holds, which
 * outlives a process that is killed but not the system, so that after a reboot it counts as none.
 * Thread: one at a time. Memory: init/release. */
#ifndef INFERD_HUB_JOURNAL_H
#define INFERD_HUB_JOURNAL_H

#include "base/buf.h"
#include "base/str.h"
#include "hub/hub.h"

#define JOURNAL_RANGES_MAX 4096
#define JOURNAL_BYTES_MAX  ((size_t)256 << 10)

struct range {
    uint64_t begin, end; /* end is behind the last byte */
};

struct ranges {
    struct range *items; /* ascending, never touching */
    size_t n, cap;
};

void ranges_release(struct ranges *r);
/* Adds and merges. False when memory or JOURNAL_RANGES_MAX is spent. */
bool ranges_add(struct ranges *r, uint64_t begin, uint64_t end);
uint64_t ranges_total(const struct ranges *r);
/* End of the range that covers `at`, or `at` when none does. */
uint64_t ranges_covered_to(const struct ranges *r, uint64_t at);
/* First byte at or behind `from` that is not covered, and the end of that hole within size; false when there is none. */
bool ranges_hole(const struct ranges *r, uint64_t from, uint64_t size, struct range *out);

bool journal_format(const struct ranges *r, uint64_t size, const char *etag, struct buf *out);
/* False when it is no whole journal of that size and etag; `out` is then empty. */
bool journal_parse(struct str text, uint64_t size, const char *etag, struct ranges *out);

enum journal_kind { JOURNAL_SYNCED, JOURNAL_LATE };
/* Replaces the journal at `path` by one that tells `r`. LATE where the system does not name its run: writes nothing. */
bool journal_write(const char *path, const struct ranges *r, uint64_t size, const char *etag, enum journal_kind kind,
                   struct err *err);
/* False and `out` empty when there is none that counts. */
bool journal_read(const char *path, uint64_t size, const char *etag, enum journal_kind kind, struct ranges *out);
/* Removes it, and what a writer that was killed left beside it. */
void journal_remove(const char *path);

#endif

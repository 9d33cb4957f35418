/* The packed cache: what packing a model computed, kept on disk, so that a later load reads one block instead of
 * quantizing and repacking every tensor.
 *
 * A file DIR/<hash of the key>.pack holds
 *   header     magic, lengths, checksums of the key, of the header and of every piece of the block
 *   key        text: everything that the block depends on (files with their sizes, times and first bytes, profile, layout
 *              of the kernels, form of every weight); compared byte for byte, so that a hash that collides is a miss
 *   block      from a multiple of 4096 on (zeros in front of it), exactly as it lies in memory
 *
 * Why it is safe: a file gets its name (by a link or a rename) only once it is written and synced, so that a name is either
 * absent or whole, whoever is killed when; two processes that write one key name equal files. Every byte is checked when it is
 * read: the header, the key, the padding, and the block by pieces of PACK_CACHE_PIECE bytes while they are copied. A file that fails
 * is removed and counts as absent.
 *
 * Bounded by bytes: files that were used longest ago (their mtime is set by every use) go first.
 *
 * Thread: the functions hold no state; any thread. Errors: texts for a log; the cache never makes a load fail.
 */
#ifndef INFERD_MODEL_PACK_CACHE_H
#define INFERD_MODEL_PACK_CACHE_H

#include "backend/backend.h"
#include "base/buf.h"

#include <stdatomic.h>

#define PACK_CACHE_PIECE ((size_t)4 << 20)

enum pack_cache_found { PACK_CACHE_ABSENT, PACK_CACHE_READ, PACK_CACHE_BAD /* removed where it could be; err says why */ };

/* Reads the block of `key` into memory [bytes], on the pool. After anything but PACK_CACHE_READ its contents are
 * undefined. */
enum pack_cache_found pack_cache_read(const char *dir, struct str key, struct backend *b, void *memory, size_t bytes,
                                      struct err *err);
/* Writes it. Gives up without an error (false, err empty) when *stop becomes true; refuses, with the numbers, what is
 * over bytes_max or would leave less than PACK_CACHE_DISK_RESERVE free. Before and after, removes other files until all
 * together are within bytes_max: several that write at once are over it for a moment at most. */
#define PACK_CACHE_DISK_RESERVE ((uint64_t)1 << 30)
bool pack_cache_write(const char *dir, struct str key, const void *memory, size_t bytes, uint64_t bytes_max,
                      const atomic_bool *stop, struct err *err);

#endif

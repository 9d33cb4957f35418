/* A file on its way into blobs/: the data, which of its bytes are there, their hash as far as they join up from the start.
 *
 *     open --(lock held, journal read)--> bytes come in any order --> whole and hashed --> finish: synced, renamed
 *
 * Invariant: nothing but partial_finish makes a blob, and it does so only after every byte was read back and hashed (or,
 * where no hash is known, counted). Thread: the pull's. Memory: open/close. */
#ifndef INFERD_HUB_PARTIAL_H
#define INFERD_HUB_PARTIAL_H

#include "hub/impl.h"
#include "hub/journal.h"

struct partial {
    const struct cache_repo *repo;
    uint64_t size;
    char etag[HUB_ETAG_BYTES_MAX];
    char hash[65];
    int fd, lock_fd; /* -1 = not open */
    char path[HUB_DIR_BYTES_MAX], journal[HUB_DIR_BYTES_MAX], late[HUB_DIR_BYTES_MAX];
    struct ranges done;
    struct digest *digest; /* NULL: no hash to hold the bytes against */
    uint64_t hashed;       /* bytes from the start that went into it */
    char *block;           /* for reading back */
    unsigned dirty;        /* bytes came since the last sync */
};

enum partial_open { PARTIAL_OPEN, PARTIAL_BUSY, PARTIAL_WHOLE, PARTIAL_FAILED };

/* BUSY: another transfer holds the lock. WHOLE: the blob is there. FAILED: err tells. Only OPEN needs partial_close. */
enum partial_open partial_open(struct partial *p, const struct cache_repo *repo, const char *etag, const char *hash,
                               uint64_t size, struct err *err);
bool partial_write(struct partial *p, uint64_t at, const char *bytes, size_t len, struct err *err);
/* Hashes what joins up, to `upto` at most and bytes_max a call. */
bool partial_hash(struct partial *p, uint64_t upto, uint64_t bytes_max, struct err *err);
/* Writes the journal: `done` and what `also` has. SYNC: after the bytes reached the disk. LATE: the late one, at once. */
enum partial_sync { PARTIAL_SYNC, PARTIAL_LATE };
bool partial_save(struct partial *p, const struct ranges *also, enum partial_sync sync, struct err *err);
/* Forgets every byte. */
bool partial_reset(struct partial *p, struct err *err);
/* All bytes are there and hashed: makes the blob when the hash is right (*same), else makes nothing. */
bool partial_finish(struct partial *p, bool *same, char got[65], struct err *err);
void partial_close(struct partial *p);
/* Removes data and journal; still to be closed. */
void partial_discard(struct partial *p);
/* Removes what earlier transfers left of a file whose blob is whole. Nothing while another transfer holds its lock. */
void partial_sweep(const struct cache_repo *repo, const char *etag);
/* Bytes of disk that are still to be taken for a file of this size and name. */
uint64_t partial_bytes_missing(const struct cache_repo *repo, const char *etag, uint64_t size);

#endif

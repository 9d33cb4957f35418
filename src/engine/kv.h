/* KV pages: who holds which, and the prefix cache over them.
 *
 * A page is free, held (refs > 0), or cached (refs 0, known to the cache, in LRU order); cached pages are handed out
 * again when no free one is left. free + held + cached == total, always (kv_check).
 *
 * The prefix cache knows full pages by (root, serial of the page before, the page's 32 ids), compared in full: a hit is a
 * prefix that is equal token for token. A serial names one content for ever; 0 is that of no page. The root keeps
 * prefixes apart that must not be shared. Engine thread only; memory is taken at kv_open. */
#ifndef INFERD_ENGINE_KV_H
#define INFERD_ENGINE_KV_H

#include "backend/batch.h"
#include "base/err.h"

struct kv_root {
    uint64_t salt;       /* of the caller: other tenants do not see each other's prefixes */
    uint64_t rope_class; /* model_rope_class: equal ids have other keys in another class */
};

struct kv_page {
    uint32_t refs;
    int32_t older, newer; /* LRU, when cached */
    int32_t in_bucket;    /* next of the same hash; -1 */
    struct kv_root root;
    uint64_t serial, parent;
    int32_t ids[KV_PAGE_TOKENS];
    int known; /* in the prefix cache */
};

struct kv {
    struct kv_page *pages;
    int32_t *buckets;
    int32_t *free;
    size_t n_pages, n_buckets, n_free, n_held, n_cached;
    size_t n_used; /* pages that were ever taken: those below */
    int32_t oldest, newest;
    uint64_t next_serial;
};

bool kv_open(struct kv *kv, size_t n_pages, struct err *err);
void kv_close(struct kv *kv);
size_t kv_bytes(size_t n_pages);
/* A page with one reference; -1 when all are held. */
int32_t kv_take(struct kv *kv);
void kv_hold(struct kv *kv, int32_t page);
void kv_drop(struct kv *kv, int32_t page);
/* The known page that follows `parent` with these ids; -1. Not held yet. */
int32_t kv_find(const struct kv *kv, struct kv_root root, uint64_t parent, const int32_t *ids);
/* Makes a held, full page known. Returns the serial of its content (an equal page's when one is known already). */
uint64_t kv_remember(struct kv *kv, int32_t page, struct kv_root root, uint64_t parent, const int32_t *ids);
static inline size_t kv_available(const struct kv *kv)
{
    return kv->n_free + kv->n_cached;
}
/* The ledger: aborts when it does not balance. */
void kv_check(const struct kv *kv);

#endif

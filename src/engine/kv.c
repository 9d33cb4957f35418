/* KV pages; see kv.h. */
#include "engine/kv.h"

#include <stdlib.h>
#include <string.h>

bool kv_open(struct kv *kv, size_t n_pages, struct err *err)
{
    memset(kv, 0, sizeof *kv);
    if (n_pages > INT32_MAX)
        return err_set(err, ERR_MEMORY, "%zu KV pages are more than %d.", n_pages, INT32_MAX);
    kv->n_pages = n_pages;
    kv->n_buckets = 64;
    while (kv->n_buckets < n_pages)
        kv->n_buckets *= 2;
    kv->pages = calloc(n_pages, sizeof *kv->pages);
    kv->buckets = malloc(kv->n_buckets * sizeof *kv->buckets);
    kv->free = malloc((n_pages + 1) * sizeof *kv->free);
    if (!kv->pages || !kv->buckets || !kv->free) {
        kv_close(kv);
        return err_set(err, ERR_MEMORY, "Out of memory for the table of %zu KV pages.", n_pages);
    }
    memset(kv->buckets, -1, kv->n_buckets * sizeof *kv->buckets);
    for (size_t i = 0; i < n_pages; i++)
        kv->free[kv->n_free++] = (int32_t)(n_pages - 1 - i);
    kv->oldest = kv->newest = -1;
    kv->next_serial = 1;
    return true;
}

void kv_close(struct kv *kv)
{
    free(kv->pages);
    free(kv->buckets);
    free(kv->free);
    memset(kv, 0, sizeof *kv);
}

size_t kv_bytes(size_t n_pages)
{
    return n_pages * (sizeof(struct kv_page) + 3 * sizeof(int32_t)) + 4096;
}

static size_t bucket_of(const struct kv *kv, struct kv_root root, uint64_t parent, const int32_t *ids)
{
    uint64_t h = (parent ^ root.salt ^ root.rope_class << 32) * 0x9E3779B97F4A7C15u;
    for (int i = 0; i < KV_PAGE_TOKENS; i++) {
        h = (h ^ (uint32_t)ids[i]) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    return h & (kv->n_buckets - 1);
}

static void lru_remove(struct kv *kv, int32_t page)
{
    struct kv_page *p = &kv->pages[page];
    *(p->older >= 0 ? &kv->pages[p->older].newer : &kv->oldest) = p->newer;
    *(p->newer >= 0 ? &kv->pages[p->newer].older : &kv->newest) = p->older;
    kv->n_cached--;
}

static void lru_append(struct kv *kv, int32_t page)
{
    struct kv_page *p = &kv->pages[page];
    p->older = kv->newest;
    p->newer = -1;
    *(kv->newest >= 0 ? &kv->pages[kv->newest].newer : &kv->oldest) = page;
    kv->newest = page;
    kv->n_cached++;
}

static void forget(struct kv *kv, int32_t page)
{
    struct kv_page *p = &kv->pages[page];
    int32_t *at = &kv->buckets[bucket_of(kv, p->root, p->parent, p->ids)];
    while (*at != page)
        at = &kv->pages[*at].in_bucket;
    *at = p->in_bucket;
    p->known = 0;
}

int32_t kv_take(struct kv *kv)
{
    int32_t page = -1;
    if (kv->n_free) {
        page = kv->free[--kv->n_free];
    } else if (kv->oldest >= 0) {
        page = kv->oldest;
        lru_remove(kv, page);
        forget(kv, page);
    } else {
        return -1;
    }
    kv->pages[page].refs = 1;
    kv->n_held++;
    if ((size_t)page >= kv->n_used)
        kv->n_used = (size_t)page + 1;
    return page;
}

void kv_hold(struct kv *kv, int32_t page)
{
    struct kv_page *p = &kv->pages[page];
    if (p->refs++ == 0) {
        lru_remove(kv, page);
        kv->n_held++;
    }
}

void kv_drop(struct kv *kv, int32_t page)
{
    struct kv_page *p = &kv->pages[page];
    CHECK(p->refs > 0);
    if (--p->refs)
        return;
    kv->n_held--;
    if (p->known)
        lru_append(kv, page);
    else
        kv->free[kv->n_free++] = page;
}

int32_t kv_find(const struct kv *kv, struct kv_root root, uint64_t parent, const int32_t *ids)
{
    for (int32_t i = kv->buckets[bucket_of(kv, root, parent, ids)]; i >= 0; i = kv->pages[i].in_bucket) {
        const struct kv_page *p = &kv->pages[i];
        if (p->parent == parent && p->root.salt == root.salt && p->root.rope_class == root.rope_class &&
            memcmp(p->ids, ids, sizeof p->ids) == 0)
            return i;
    }
    return -1;
}

uint64_t kv_remember(struct kv *kv, int32_t page, struct kv_root root, uint64_t parent, const int32_t *ids)
{
    int32_t same = kv_find(kv, root, parent, ids);
    if (same >= 0)
        return kv->pages[same].serial;
    struct kv_page *p = &kv->pages[page];
    CHECK(p->refs > 0 && !p->known);
    p->root = root;
    p->parent = parent;
    p->serial = kv->next_serial++;
    memcpy(p->ids, ids, sizeof p->ids);
    int32_t *head = &kv->buckets[bucket_of(kv, root, parent, ids)];
    p->in_bucket = *head;
    *head = page;
    p->known = 1;
    return p->serial;
}

void kv_check(const struct kv *kv)
{
    CHECK(kv->n_free + kv->n_held + kv->n_cached == kv->n_pages);
}

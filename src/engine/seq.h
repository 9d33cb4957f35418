/* One sequence: its tokens, and the KV pages that hold what was computed of them. Plain data and a ledger (kv.h): no
 * clock, no thread, no model, so that the simulator runs the same code as the engine. */
#ifndef INFERD_ENGINE_SEQ_H
#define INFERD_ENGINE_SEQ_H

#include "engine/kv.h"

enum seq_cache {
    SEQ_CACHE_OFF,   /* pages are neither found nor made known */
    SEQ_CACHE_WRITE, /* made known only: every row is wanted */
    SEQ_CACHE_USE,
};

struct seq {
    int32_t *tokens; /* prompt, then outputs */
    size_t n_prompt;
    size_t n_total;    /* tokens so far: all but the last get computed before the last */
    size_t n_computed; /* positions whose keys and values are in pages; < n_total */
    int32_t *pages;    /* [pages_max], the first n_pages are held */
    size_t n_pages, pages_max;
    size_t n_known; /* pages known to the prefix cache, from the front */
    uint64_t chain; /* serial of the last of them; 0 at first */
    struct kv_root root;
    enum seq_cache cache;
    uint64_t *prefix; /* [n_prompt / KV_PAGE_TOKENS]: hash of all tokens up to the end of that page */
    uint64_t arrival; /* order of submission: smaller goes first */
};

static inline size_t seq_pages_for(size_t n_tokens)
{
    return n_tokens / KV_PAGE_TOKENS + (n_tokens % KV_PAGE_TOKENS != 0);
}

/* Allocates for n_prompt tokens, copied, and up to n_total_max in all. False when out of memory; release in any case. */
bool seq_init(struct seq *s, const int32_t *prompt, size_t n_prompt, size_t n_total_max);
void seq_release(struct seq *s);

/* What the prefix cache has of `s`: tokens (whole pages, at least one token is left to compute) and how many of their
 * pages nobody holds. */
struct seq_cached {
    size_t n_tokens, n_idle;
};
struct seq_cached seq_cached(const struct kv *kv, const struct seq *s);
/* Pages that dropping `s` makes available. */
size_t seq_own_pages(const struct kv *kv, const struct seq *s);

/* Holds what seq_cached told of. Only when nothing is held yet. */
void seq_take_prefix(struct kv *kv, struct seq *s);
/* Takes pages for n_tokens positions; false when they run out: what was taken stays with `s`. */
bool seq_take_pages(struct kv *kv, struct seq *s, size_t n_tokens);
/* n_rows more positions are computed: pages that are full now become known to others. */
void seq_computed(struct kv *kv, struct seq *s, size_t n_rows);
/* Gives all pages back: everything is to be computed again. */
void seq_drop(struct kv *kv, struct seq *s);

#endif

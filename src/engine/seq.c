/* One sequence and its pages; see seq.h. */
#include "engine/seq.h"

#include <stdlib.h>
#include <string.h>

bool seq_init(struct seq *s, const int32_t *prompt, size_t n_prompt, size_t n_total_max)
{
    size_t n_hashes = n_prompt / KV_PAGE_TOKENS;
    memset(s, 0, sizeof *s);
    s->tokens = calloc(n_total_max + 1, sizeof *s->tokens);
    s->pages_max = seq_pages_for(n_total_max);
    s->pages = calloc(s->pages_max + 1, sizeof *s->pages);
    s->prefix = calloc(n_hashes + 1, sizeof *s->prefix);
    if (!s->tokens || !s->pages || !s->prefix)
        return false;
    memcpy(s->tokens, prompt, n_prompt * sizeof *prompt);
    s->n_prompt = s->n_total = n_prompt;
    uint64_t h = 0;
    for (size_t i = 0; i < n_hashes * KV_PAGE_TOKENS; i++) {
        h = (h ^ (uint32_t)prompt[i]) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
        s->prefix[i / KV_PAGE_TOKENS] = h;
    }
    return true;
}

void seq_release(struct seq *s)
{
    free(s->tokens);
    free(s->pages);
    free(s->prefix);
    memset(s, 0, sizeof *s);
}

struct seq_cached seq_cached(const struct kv *kv, const struct seq *s)
{
    struct seq_cached c = {0, 0};
    uint64_t chain = 0;
    while (s->cache == SEQ_CACHE_USE && c.n_tokens + KV_PAGE_TOKENS < s->n_total) {
        int32_t page = kv_find(kv, s->root, chain, s->tokens + c.n_tokens);
        if (page < 0)
            break;
        chain = kv->pages[page].serial;
        c.n_tokens += KV_PAGE_TOKENS;
        c.n_idle += kv->pages[page].refs == 0;
    }
    return c;
}

size_t seq_own_pages(const struct kv *kv, const struct seq *s)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n_pages; i++)
        n += kv->pages[s->pages[i]].refs == 1;
    return n;
}

void seq_take_prefix(struct kv *kv, struct seq *s)
{
    CHECK(s->n_pages == 0);
    while (s->cache == SEQ_CACHE_USE && s->n_computed + KV_PAGE_TOKENS < s->n_total) {
        int32_t page = kv_find(kv, s->root, s->chain, s->tokens + s->n_computed);
        if (page < 0)
            break;
        kv_hold(kv, page);
        s->pages[s->n_pages++] = page;
        s->chain = kv->pages[page].serial;
        s->n_known++;
        s->n_computed += KV_PAGE_TOKENS;
    }
}

bool seq_take_pages(struct kv *kv, struct seq *s, size_t n_tokens)
{
    CHECK(seq_pages_for(n_tokens) <= s->pages_max);
    while (s->n_pages * KV_PAGE_TOKENS < n_tokens) {
        int32_t page = kv_take(kv);
        if (page < 0)
            return false;
        s->pages[s->n_pages++] = page;
    }
    return true;
}

void seq_computed(struct kv *kv, struct seq *s, size_t n_rows)
{
    s->n_computed += n_rows;
    while (s->cache != SEQ_CACHE_OFF && (s->n_known + 1) * KV_PAGE_TOKENS <= s->n_computed) {
        s->chain = kv_remember(kv, s->pages[s->n_known], s->root, s->chain, s->tokens + s->n_known * KV_PAGE_TOKENS);
        s->n_known++;
    }
}

void seq_drop(struct kv *kv, struct seq *s)
{
    while (s->n_pages)
        kv_drop(kv, s->pages[--s->n_pages]);
    s->n_computed = s->n_known = 0;
    s->chain = 0;
}

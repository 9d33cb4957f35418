/* Byte pair encoding of one word. Merges go by rank, equal ranks from left to right, as in Hugging Face `tokenizers`.
 *
 * Short words scan their pairs; long ones keep the pairs in a heap: n log n. Most words of real text are one token:
 * a word that is a token is looked up first, and whether its merges really end in that token is found out once per
 * token and remembered (`single`, relaxed atomics: every thread would write the same value). */
#include "text/tokenizer_impl.h"

#include <stdlib.h>

#define BPE_SHORT_MAX 48u

enum { SINGLE_UNKNOWN, SINGLE_YES, SINGLE_NO };

/* ---- merging ----------------------------------------------------------------------------------------------------- */
/* Merges ids[0..n) in place; returns the new count. */
static size_t merge_short(const struct tokenizer *t, int32_t *ids, size_t n)
{
    uint32_t rank[BPE_SHORT_MAX];
    int32_t merged[BPE_SHORT_MAX];
    for (size_t i = 0; i + 1 < n; i++) {
        const struct pair_slot *p = pair_table_find(&t->pairs, ids[i], ids[i + 1]);
        rank[i] = p ? p->rank : UINT32_MAX;
        merged[i] = p ? p->merged : -1;
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best])
                best = i;
        if (rank[best] == UINT32_MAX)
            break;
        ids[best] = merged[best];
        n--;
        memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof *ids);
        if (best + 1 < n) {
            memmove(rank + best + 1, rank + best + 2, (n - best - 2) * sizeof *rank);
            memmove(merged + best + 1, merged + best + 2, (n - best - 2) * sizeof *merged);
            const struct pair_slot *p = pair_table_find(&t->pairs, ids[best], ids[best + 1]);
            rank[best] = p ? p->rank : UINT32_MAX;
            merged[best] = p ? p->merged : -1;
        }
        if (best > 0) {
            const struct pair_slot *p = pair_table_find(&t->pairs, ids[best - 1], ids[best]);
            rank[best - 1] = p ? p->rank : UINT32_MAX;
            merged[best - 1] = p ? p->merged : -1;
        }
    }
    return n;
}

static inline bool heap_less(const struct bpe_heap_item *a, const struct bpe_heap_item *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->pos < b->pos;
}

void heap_push(struct bpe_heap_item *heap, size_t *n, struct bpe_heap_item item)
{
    size_t i = (*n)++;
    while (i > 0 && heap_less(&item, &heap[(i - 1) / 2])) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = item;
}

struct bpe_heap_item heap_pop(struct bpe_heap_item *heap, size_t *n)
{
    struct bpe_heap_item top = heap[0], last = heap[--*n];
    size_t i = 0;
    for (size_t k; (k = 2 * i + 1) < *n; i = k) {
        if (k + 1 < *n && heap_less(&heap[k + 1], &heap[k]))
            k++;
        if (!heap_less(&heap[k], &last))
            break;
        heap[i] = heap[k];
    }
    heap[i] = last;
    return top;
}

static void heap_push_pair(const struct tokenizer *t, const struct bpe_node *nodes, int32_t at, struct bpe_heap_item *heap,
                           size_t *n)
{
    int32_t next = nodes[at].next;
    const struct pair_slot *p = next < 0 ? NULL : pair_table_find(&t->pairs, nodes[at].id, nodes[next].id);
    if (p)
        heap_push(heap, n, (struct bpe_heap_item){p->rank, (uint32_t)at, p->merged});
}

/* Every merge takes one item and makes at most two, and there are at most n - 1 merges: 3 n items are enough. */
static bool merge_long(struct encode *e, size_t n)
{
    const struct tokenizer *t = e->t;
    struct bpe_node *nodes = e->nodes;
    size_t n_heap = 0;
    if (!encode_grow(e, (void **)&e->heap, &e->cap_heap, 3 * n, sizeof *e->heap))
        return false;
    for (size_t i = 0; i + 1 < n; i++)
        heap_push_pair(t, nodes, (int32_t)i, e->heap, &n_heap);
    while (n_heap > 0) {
        struct bpe_heap_item top = heap_pop(e->heap, &n_heap);
        struct bpe_node *left = &nodes[top.pos];
        if (left->id < 0 || left->next < 0)
            continue;
        struct bpe_node *right = &nodes[left->next];
        const struct pair_slot *p = pair_table_find(&t->pairs, left->id, right->id);
        if (!p || p->merged != top.merged)
            continue;
        left->id = top.merged;
        right->id = -1;
        left->next = right->next;
        if (left->next >= 0)
            nodes[left->next].prev = (int32_t)top.pos;
        heap_push_pair(t, nodes, (int32_t)top.pos, e->heap, &n_heap);
        if (left->prev >= 0)
            heap_push_pair(t, nodes, left->prev, e->heap, &n_heap);
    }
    return true;
}

/* Merges the n first ids that lie in e->nodes[].id and emits what is left. */
static bool merge_nodes(struct encode *e, size_t n)
{
    struct bpe_node *nodes = e->nodes;
    if (n <= BPE_SHORT_MAX) {
        int32_t ids[BPE_SHORT_MAX];
        for (size_t i = 0; i < n; i++)
            ids[i] = nodes[i].id;
        n = merge_short(e->t, ids, n);
        for (size_t i = 0; i < n; i++)
            if (!encode_emit(e, ids[i]))
                return false;
        return true;
    }
    for (size_t i = 0; i < n; i++) {
        nodes[i].prev = (int32_t)i - 1;
        nodes[i].next = i + 1 < n ? (int32_t)i + 1 : -1;
    }
    if (!merge_long(e, n))
        return false;
    for (int32_t i = 0; i >= 0; i = nodes[i].next)
        if (!encode_emit(e, nodes[i].id))
            return false;
    return true;
}

/* ---- first symbols ----------------------------------------------------------------------------------------------- */
/* Ids of the characters of a word into e->nodes. Room is there for word.len + 1 nodes. */
struct symbols {
    size_t n;
    int unk_waits; /* an unknown token is waiting to be joined with the next one */
};

static void symbols_unknown(struct encode *e, struct symbols *sy)
{
    const struct tokenizer *t = e->t;
    if (t->unk_id < 0)
        return;
    if (sy->unk_waits && t->fuse_unk)
        return;
    if (sy->unk_waits)
        e->nodes[sy->n++].id = t->unk_id;
    sy->unk_waits = 1;
}

static void symbols_put(struct encode *e, struct symbols *sy, int32_t id)
{
    if (sy->unk_waits)
        e->nodes[sy->n++].id = e->t->unk_id;
    sy->unk_waits = 0;
    e->nodes[sy->n++].id = id;
}

/* Id of one character with the model's prefix (not first) and suffix (last). */
static int32_t char_symbol(const struct tokenizer *t, struct str c, int first, int last)
{
    struct str prefix = first ? (struct str){0} : t->subword_prefix;
    struct str suffix = last ? t->word_suffix : (struct str){0};
    if (!prefix.len && !suffix.len)
        return c.len == 1 && !(c.ptr[0] & 0x80) ? t->char_id[(int)c.ptr[0]] : tokenizer_model_id(t, c);
    char text[256];
    size_t n = 0;
    if (prefix.len + c.len + suffix.len > sizeof text)
        return -1;
    memcpy(text, prefix.len ? prefix.ptr : "", prefix.len);
    n += prefix.len;
    memcpy(text + n, c.ptr, c.len);
    n += c.len;
    memcpy(text + n, suffix.len ? suffix.ptr : "", suffix.len);
    return tokenizer_model_id(t, (struct str){text, n + suffix.len});
}

static bool char_bytes(struct encode *e, struct symbols *sy, struct str c)
{
    const struct tokenizer *t = e->t;
    for (size_t i = 0; i < c.len; i++)
        if (t->byte_fallback_id[(unsigned char)c.ptr[i]] < 0)
            return false;
    for (size_t i = 0; i < c.len; i++)
        symbols_put(e, sy, t->byte_fallback_id[(unsigned char)c.ptr[i]]);
    return true;
}

static size_t word_symbols(struct encode *e, struct str w)
{
    const struct tokenizer *t = e->t;
    struct symbols sy = {0};
    for (size_t at = 0; at < w.len;) {
        size_t from = at;
        utf8_get(w, &at);
        struct str c = {w.ptr + from, at - from};
        int32_t id = char_symbol(t, c, from == 0, at == w.len);
        if (id >= 0)
            symbols_put(e, &sy, id);
        else if (!t->byte_fallback || !char_bytes(e, &sy, c))
            symbols_unknown(e, &sy);
    }
    if (sy.unk_waits)
        e->nodes[sy.n++].id = t->unk_id;
    return sy.n;
}

static size_t byte_symbols(struct encode *e, struct str w)
{
    const struct tokenizer *t = e->t;
    struct symbols sy = {0};
    for (size_t i = 0; i < w.len; i++) {
        int32_t id = t->byte_id[(unsigned char)w.ptr[i]];
        if (id >= 0)
            symbols_put(e, &sy, id);
        else
            symbols_unknown(e, &sy);
    }
    if (sy.unk_waits)
        e->nodes[sy.n++].id = t->unk_id;
    return sy.n;
}

/* Whether the merges of the text of token `id` give `id` alone. Found out once; words are short here. */
static int single_token(struct encode *e, struct str w, int32_t id)
{
    uint8_t *known = &e->t->single[id];
    int state = __atomic_load_n(known, __ATOMIC_RELAXED);
    if (state != SINGLE_UNKNOWN || w.len > BPE_SHORT_MAX)
        return state;
    int32_t ids[BPE_SHORT_MAX];
    for (size_t i = 0; i < w.len; i++)
        if ((ids[i] = e->t->byte_id[(unsigned char)w.ptr[i]]) < 0)
            return SINGLE_NO;
    state = merge_short(e->t, ids, w.len) == 1 && ids[0] == id ? SINGLE_YES : SINGLE_NO;
    __atomic_store_n(known, (uint8_t)state, __ATOMIC_RELAXED);
    return state;
}

bool bpe_word(struct encode *e, struct str w)
{
    const struct tokenizer *t = e->t;
    if (w.len == 0)
        return true;
    if (w.len > INT32_MAX / 4)
        return err_set(e->err, ERR_TOO_LARGE, "a word of %zu bytes is too long to tokenize", w.len);
    if (w.len <= TOKENIZER_TOKEN_BYTES_MAX && (t->bytes_direct || t->ignore_merges)) {
        int32_t id = t->bytes_direct ? token_table_find(&t->by_bytes, w) : tokenizer_model_id(t, w);
        if (id >= 0 && !(t->flags[id] & TOKEN_HIDDEN) && (t->ignore_merges || single_token(e, w, id) == SINGLE_YES))
            return encode_emit(e, id);
    }
    if (!encode_grow(e, (void **)&e->nodes, &e->cap_nodes, w.len + 1, sizeof *e->nodes))
        return false;
    size_t n = t->bytes_direct ? byte_symbols(e, w) : word_symbols(e, w);
    return n == 0 || merge_nodes(e, n);
}

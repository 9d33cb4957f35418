/* SentencePiece's byte pair encoding of one word: the neighbours whose text together is the piece of greatest score are
 * joined first, of equal scores the leftmost. Unlike a list of merges this asks the vocabulary itself, so that a join of
 * characters that are no pieces is found too. User-defined pieces are taken whole beforehand and never joined; an unused
 * piece takes part in joins and is taken apart again at the end. n log n: joins wait in a heap. */
#include "text/tokenizer_impl.h"

#include <stdlib.h>

struct spm_symbol {
    uint32_t start, len; /* len 0: joined into the one before */
    int32_t prev, next;
    int32_t id; /* -1: no piece */
    bool frozen;
};

struct spm_word {
    struct encode *e;
    struct str w;
    struct spm_symbol *symbols;
    size_t n_heap;
    uint32_t *left_len; /* [n_ids] of an unused piece: length of the left part that it was joined of; NULL: none was */
};

static int32_t piece_id(const struct tokenizer *t, struct str s)
{
    int32_t id = token_table_find(&t->by_token, s);
    return id >= 0 && (t->flags[id] & TOKEN_HIDDEN) ? -1 : id;
}

/* Greater scores give smaller ranks; scores are finite. */
static uint32_t score_rank(float score)
{
    uint32_t bits;
    score += 0.0f; /* no negative zero */
    memcpy(&bits, &score, 4);
    return bits & 0x80000000u ? bits : 0x7fffffffu - bits;
}

static bool propose(struct spm_word *sw, int32_t left, int32_t right)
{
    struct encode *e = sw->e;
    if (left < 0 || right < 0 || sw->symbols[left].frozen || sw->symbols[right].frozen)
        return true;
    struct str both = {sw->w.ptr + sw->symbols[left].start, (size_t)sw->symbols[left].len + sw->symbols[right].len};
    int32_t id = both.len > TOKENIZER_TOKEN_BYTES_MAX ? -1 : piece_id(e->t, both);
    if (id < 0)
        return true;
    heap_push(e->heap, &sw->n_heap, (struct bpe_heap_item){score_rank(e->t->scores_spm[id]), (uint32_t)left, id});
    if (!(e->t->flags[id] & TOKEN_UNUSED))
        return true;
    if (!sw->left_len && !(sw->left_len = calloc(e->t->n_ids, sizeof *sw->left_len)))
        return err_set(e->err, ERR_MEMORY, "no memory for %zu ids", e->t->n_ids);
    sw->left_len[id] = sw->symbols[left].len;
    return true;
}

static size_t split_characters(struct spm_word *sw)
{
    const struct tokenizer *t = sw->e->t;
    size_t n = 0;
    for (size_t at = 0, end; at < sw->w.len; at = end, n++) {
        int32_t id = -1;
        size_t len = t->user.n_edges ? trie_longest(&t->user, sw->w, at, &id) : 0;
        end = at;
        if (len)
            end += len;
        else
            utf8_get(sw->w, &end);
        if (!len)
            id = piece_id(t, (struct str){sw->w.ptr + at, end - at});
        sw->symbols[n] = (struct spm_symbol){(uint32_t)at, (uint32_t)(end - at), (int32_t)n - 1, (int32_t)n + 1, id, len > 0};
    }
    sw->symbols[n - 1].next = -1;
    return n;
}

static bool join_all(struct spm_word *sw, size_t n)
{
    struct spm_symbol *s = sw->symbols;
    for (size_t i = 1; i < n; i++)
        if (!propose(sw, (int32_t)i - 1, (int32_t)i))
            return false;
    while (sw->n_heap > 0) {
        struct bpe_heap_item top = heap_pop(sw->e->heap, &sw->n_heap);
        struct spm_symbol *left = &s[top.pos];
        if (!left->len || left->next < 0)
            continue;
        struct spm_symbol *right = &s[left->next];
        if ((size_t)left->len + right->len != sw->e->t->model_tokens[top.merged].len)
            continue; /* one of the two has grown since */
        left->len += right->len;
        left->id = top.merged;
        right->len = 0;
        left->next = right->next;
        if (left->next >= 0)
            s[left->next].prev = (int32_t)top.pos;
        if (!propose(sw, left->prev, (int32_t)top.pos) || !propose(sw, (int32_t)top.pos, left->next))
            return false;
    }
    return true;
}

/* An unused piece is given as its parts; recursion is bounded by the length of a piece. */
static bool emit_piece(struct spm_word *sw, struct str s, int32_t id, int *unk_waits)
{
    struct encode *e = sw->e;
    const struct tokenizer *t = e->t;
    if (id >= 0 && (t->flags[id] & TOKEN_UNUSED) && sw->left_len && sw->left_len[id]) {
        struct str left = {s.ptr, sw->left_len[id]}, right = {s.ptr + left.len, s.len - left.len};
        return emit_piece(sw, left, piece_id(t, left), unk_waits) && emit_piece(sw, right, piece_id(t, right), unk_waits);
    }
    int joined = *unk_waits;
    *unk_waits = 0;
    if (id >= 0)
        return encode_emit(e, id);
    if (!t->byte_fallback) {
        *unk_waits = 1;
        return joined || t->unk_id < 0 || encode_emit(e, t->unk_id);
    }
    for (size_t i = 0; i < s.len; i++)
        if (!encode_emit(e, t->byte_fallback_id[(unsigned char)s.ptr[i]]))
            return false;
    return true;
}

bool spm_bpe_word(struct encode *e, struct str w)
{
    const struct tokenizer *t = e->t;
    if (w.len == 0)
        return true;
    if (w.len > INT32_MAX / 4)
        return err_set(e->err, ERR_TOO_LARGE, "a word of %zu bytes is too long to tokenize", w.len);
    int32_t known = w.len <= TOKENIZER_TOKEN_BYTES_MAX ? piece_id(t, w) : -1;
    if (known >= 0 && __atomic_load_n(&t->single[known], __ATOMIC_RELAXED))
        return encode_emit(e, known);
    if (!encode_grow(e, &e->lattice, &e->cap_lattice, w.len, sizeof(struct spm_symbol)) ||
        !encode_grow(e, (void **)&e->heap, &e->cap_heap, 3 * w.len, sizeof *e->heap))
        return false;
    struct spm_word sw = {.e = e, .w = w, .symbols = e->lattice};
    bool ok = join_all(&sw, split_characters(&sw));
    if (ok && known >= 0 && sw.symbols[0].len == w.len && !(t->flags[known] & TOKEN_UNUSED))
        __atomic_store_n(&t->single[known], 1, __ATOMIC_RELAXED); /* its text alone is the piece, here and always */
    int unk_waits = 0;
    for (int32_t i = 0; i >= 0 && ok; i = sw.symbols[i].next) {
        struct str s = {w.ptr + sw.symbols[i].start, sw.symbols[i].len};
        ok = emit_piece(&sw, s, sw.symbols[i].id, &unk_waits);
    }
    free(sw.left_len);
    return ok;
}

/* Unigram language model: the segmentation of a word whose tokens have the greatest sum of scores (Viterbi over byte
 * positions; Kudo 2018). Time: length times the longest token.
 *
 * Characters that no token covers cost `unk_score`; neighbouring ones become one unknown token, or bytes. Equal sums: the
 * path found first stays, which is what both Hugging Face `tokenizers` (sums in double) and SentencePiece (sums kept in
 * float, compared in double: `float_scores`) do. */
#include "text/tokenizer_impl.h"

#include <stdlib.h>

#define STARTS_NONE UINT32_MAX

struct lattice_node {
    double score;   /* of the best path that ends here */
    uint32_t start; /* where its last token starts; forward, after the path is known: where the next one ends */
    int32_t id;     /* -1: unknown */
};

static void offer(const struct tokenizer *t, struct lattice_node *node, size_t start, int32_t id, double score)
{
    if (node->start != STARTS_NONE && !(score > node->score))
        return;
    node->score = t->float_scores ? (double)(float)score : score;
    node->start = (uint32_t)start;
    node->id = id;
}

static double token_score(const struct tokenizer *t, int32_t id, size_t len)
{
    if (t->flags[id] & TOKEN_USER)
        return (double)((float)len * (float)t->user_score) - 0.1;
    return t->scores[id];
}

static void fill(const struct tokenizer *t, struct str w, struct lattice_node *nodes)
{
    for (size_t i = 1; i <= w.len; i++)
        nodes[i].start = STARTS_NONE;
    nodes[0] = (struct lattice_node){0, 0, -1};
    for (size_t at = 0, next; at < w.len; at = next) {
        next = at;
        utf8_get(w, &next);
        double here = nodes[at].score;
        uint32_t node = 0;
        bool whole = false; /* some token is the character itself */
        for (size_t i = at; i < w.len && (node = trie_next(&t->pieces, node, (unsigned char)w.ptr[i])); i++) {
            int32_t id = t->pieces.values[node];
            if (id < 0)
                continue;
            offer(t, &nodes[i + 1], at, id, token_score(t, id, i + 1 - at) + here);
            whole |= i + 1 == next;
        }
        if (!whole)
            offer(t, &nodes[next], at, -1, t->unk_score + here);
    }
}

/* Turns the links of the best path around: nodes[at].start becomes the end of the token at `at`, nodes[at].id its id. */
static void turn(struct lattice_node *nodes, size_t len)
{
    uint32_t end = (uint32_t)len, start = nodes[len].start;
    int32_t id = nodes[len].id;
    while (end > 0) {
        struct lattice_node before = nodes[start];
        nodes[start].start = end;
        nodes[start].id = id;
        end = start;
        start = before.start;
        id = before.id;
    }
}

static bool emit_unknown(struct encode *e, struct str part)
{
    const struct tokenizer *t = e->t;
    int32_t id = t->float_scores ? -1 : tokenizer_model_id(t, part); /* Hugging Face looks the joined characters up */
    if (id >= 0 && !(t->flags[id] & TOKEN_HIDDEN))
        return encode_emit(e, id);
    if (t->byte_fallback) {
        bool all = true;
        for (size_t i = 0; i < part.len; i++)
            all &= t->byte_fallback_id[(unsigned char)part.ptr[i]] >= 0;
        for (size_t i = 0; i < part.len && all; i++)
            if (!encode_emit(e, t->byte_fallback_id[(unsigned char)part.ptr[i]]))
                return false;
        if (all)
            return true;
    }
    if (t->unk_id < 0)
        return err_set(e->err, ERR_INVALID_REQUEST, "the tokenizer has no token for \"%.*s\" and none for unknown text",
                       (int)(part.len < 60 ? part.len : 60), part.ptr);
    return encode_emit(e, t->unk_id);
}

bool unigram_word(struct encode *e, struct str w)
{
    if (w.len == 0)
        return true;
    if (w.len > INT32_MAX / 4)
        return err_set(e->err, ERR_TOO_LARGE, "a word of %zu bytes is too long to tokenize", w.len);
    if (!encode_grow(e, &e->lattice, &e->cap_lattice, w.len + 1, sizeof(struct lattice_node)))
        return false;
    struct lattice_node *nodes = e->lattice;
    fill(e->t, w, nodes);
    turn(nodes, w.len);
    for (size_t at = 0; at < w.len;) {
        size_t end = nodes[at].start;
        if (nodes[at].id >= 0) {
            if (!encode_emit(e, nodes[at].id))
                return false;
        } else {
            while (end < w.len && nodes[end].id < 0)
                end = nodes[end].start;
            if (!emit_unknown(e, (struct str){w.ptr + at, end - at}))
                return false;
        }
        at = end;
    }
    return true;
}

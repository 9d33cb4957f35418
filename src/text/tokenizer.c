/* The tokenizer's life, its accessors, and encoding: the walk from text over added tokens to words. */
#include "text/tokenizer_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* ---- lists of ids ------------------------------------------------------------------------------------------------ */
void token_list_init(struct token_list *l, size_t ids_max)
{
    *l = (struct token_list){.max = ids_max};
}

void token_list_release(struct token_list *l)
{
    free(l->ids);
    *l = (struct token_list){.max = l->max};
}

static bool token_list_grow(struct token_list *l)
{
    size_t cap = l->cap ? l->cap * 2 : 64;
    if (cap > l->max)
        cap = l->max;
    if (cap <= l->len || cap > SIZE_MAX / sizeof *l->ids)
        return false;
    int32_t *ids = realloc(l->ids, cap * sizeof *ids);
    if (!ids)
        return false;
    l->ids = ids;
    l->cap = cap;
    return true;
}

bool token_list_push(struct token_list *l, int32_t id)
{
    if (l->len >= l->max || (l->len == l->cap && !token_list_grow(l)))
        return false;
    l->ids[l->len++] = id;
    return true;
}

/* ---- making ------------------------------------------------------------------------------------------------------ */
/* Seeds differ between processes (address layout, time), so that a vocabulary cannot aim at one slot. */
static uint64_t seed_new(const void *p)
{
    struct timespec ts = {0};
    clock_gettime(CLOCK_MONOTONIC, &ts);
    uint64_t x = (uint64_t)(uintptr_t)p ^ (uint64_t)ts.tv_nsec << 20 ^ (uint64_t)ts.tv_sec;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    return (x ^ x >> 27) * 0x94d049bb133111ebu | 1;
}

struct tokenizer *tokenizer_make(size_t n_ids, struct err *err)
{
    if (n_ids > TOKENIZER_IDS_MAX) {
        err_set(err, ERR_MODEL_DAMAGED, "vocabulary has %zu ids (limit %u)", n_ids, TOKENIZER_IDS_MAX);
        return NULL;
    }
    struct tokenizer *t = calloc(1, sizeof *t);
    if (!t) {
        err_set(err, ERR_MEMORY, "no memory for a tokenizer");
        return NULL;
    }
    arena_init(&t->arena, TOKENIZER_MEMORY_MAX);
    t->seed = seed_new(t);
    t->unk_id = t->bos = t->eos = -1;
    t->n_ids = n_ids;
    size_t n = n_ids ? n_ids : 1;
    t->model_tokens = calloc(n, sizeof *t->model_tokens);
    t->tokens = calloc(n, sizeof *t->tokens);
    t->flags = calloc(n, 1);
    if (!t->model_tokens || !t->tokens || !t->flags || !trie_init(&t->raw_trie) || !trie_init(&t->normal_trie)) {
        err_set(err, ERR_MEMORY, "no memory for a vocabulary of %zu ids", n_ids);
        tokenizer_free(t);
        return NULL;
    }
    return t;
}

void tokenizer_free(struct tokenizer *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n_norm; i++)
        regex_free(t->norm[i].pattern.regex);
    for (size_t i = 0; i < t->n_pre; i++)
        regex_free(t->pre[i].pattern.regex);
    for (size_t i = 0; i < t->n_dec; i++)
        regex_free(t->dec[i].pattern.regex);
    trie_release(&t->raw_trie);
    trie_release(&t->normal_trie);
    trie_release(&t->pieces);
    trie_release(&t->user);
    token_table_release(&t->by_token);
    token_table_release(&t->by_bytes);
    pair_table_release(&t->pairs);
    free(t->model_tokens);
    free(t->tokens);
    free(t->bytes);
    free(t->flags);
    free(t->single);
    free(t->scores);
    free(t->scores_spm);
    free(t->added);
    free(t->added_keys);
    token_table_release(&t->added_index);
    arena_release(&t->arena);
    free(t);
}

struct str tokenizer_copy(struct tokenizer *t, struct str s)
{
    char *p = arena_dup(&t->arena, s);
    return p ? (struct str){p, s.len} : (struct str){NULL, 0};
}

bool tokenizer_set_token(struct tokenizer *t, int32_t id, struct str text, struct err *err)
{
    if (id < 0 || (size_t)id >= t->n_ids)
        return err_set(err, ERR_MODEL_DAMAGED, "token id %d is outside 0..%zu", (int)id, t->n_ids);
    if (t->flags[id] & TOKEN_MODEL)
        return err_set(err, ERR_MODEL_DAMAGED, "token id %d is there twice (\"%.40s\")", (int)id, t->model_tokens[id].ptr);
    if (text.len > TOKENIZER_TOKEN_BYTES_MAX)
        return err_set(err, ERR_MODEL_DAMAGED, "token %d has %zu bytes (limit %u)", (int)id, text.len,
                       TOKENIZER_TOKEN_BYTES_MAX);
    struct str copy = tokenizer_copy(t, text);
    if (!copy.ptr)
        return err_set(err, ERR_MEMORY, "no memory for the vocabulary");
    t->model_tokens[id] = t->tokens[id] = copy;
    t->flags[id] |= TOKEN_MODEL;
    return true;
}

bool tokenizer_index(struct tokenizer *t, struct err *err)
{
    if (!token_table_init(&t->by_token, t->model_tokens, t->n_ids, t->seed))
        return err_set(err, ERR_MEMORY, "no memory for a vocabulary of %zu ids", t->n_ids);
    for (size_t i = 0; i < t->n_ids; i++)
        if (t->flags[i] & TOKEN_MODEL)
            token_table_put(&t->by_token, (int32_t)i);
    return true;
}

int32_t tokenizer_model_id(const struct tokenizer *t, struct str text)
{
    return token_table_find(&t->by_token, text);
}

/* Room for ids up to n_ids - 1. */
static bool ids_grow(struct tokenizer *t, size_t n_ids, struct err *err)
{
    if (n_ids > TOKENIZER_IDS_MAX)
        return err_set(err, ERR_MODEL_DAMAGED, "vocabulary has %zu ids (limit %u)", n_ids, TOKENIZER_IDS_MAX);
    struct str *model = realloc(t->model_tokens, n_ids * sizeof *model);
    if (model) {
        t->model_tokens = model;
        t->by_token.keys = model;
    }
    struct str *tokens = realloc(t->tokens, n_ids * sizeof *tokens);
    if (tokens)
        t->tokens = tokens;
    uint8_t *flags = realloc(t->flags, n_ids);
    if (flags)
        t->flags = flags;
    if (!model || !tokens || !flags)
        return err_set(err, ERR_MEMORY, "no memory for a vocabulary of %zu ids", n_ids);
    memset(model + t->n_ids, 0, (n_ids - t->n_ids) * sizeof *model);
    memset(tokens + t->n_ids, 0, (n_ids - t->n_ids) * sizeof *tokens);
    memset(flags + t->n_ids, 0, n_ids - t->n_ids);
    t->n_ids = n_ids;
    return true;
}

static struct added_token *added_find(struct tokenizer *t, struct str content)
{
    if (t->added_index.slots) {
        int32_t at = token_table_find(&t->added_index, content);
        return at < 0 ? NULL : &t->added[at];
    }
    return NULL;
}

/* One more slot in `added`, with its index by content. */
static bool added_grow(struct tokenizer *t)
{
    if (t->n_added < t->cap_added)
        return true;
    size_t cap = t->cap_added ? t->cap_added * 2 : 32;
    struct added_token *added = realloc(t->added, cap * sizeof *added);
    if (added)
        t->added = added;
    struct str *keys = realloc(t->added_keys, cap * sizeof *keys);
    if (keys)
        t->added_keys = keys;
    token_table_release(&t->added_index);
    if (!added || !keys || !token_table_init(&t->added_index, keys, cap, t->seed))
        return false;
    for (size_t i = 0; i < t->n_added; i++)
        token_table_put(&t->added_index, (int32_t)i);
    t->cap_added = cap;
    return true;
}

bool tokenizer_add(struct tokenizer *t, const struct added_token *a, struct err *err)
{
    if (a->content.len == 0)
        return true;
    if (a->content.len > TOKENIZER_TOKEN_BYTES_MAX || a->id < 0)
        return err_set(err, ERR_MODEL_DAMAGED, "added token %d of %zu bytes is out of bounds", (int)a->id, a->content.len);
    if (!utf8_is_valid(a->content)) /* it would cut characters of a text */
        return err_set(err, ERR_MODEL_DAMAGED, "added token %d is not UTF-8", (int)a->id);
    struct added_token *known = added_find(t, a->content);
    if (known) {
        int32_t id = known->id;
        struct str content = known->content;
        *known = *a;
        known->id = id;
        known->content = content;
        return true;
    }
    int32_t id = tokenizer_model_id(t, a->content);
    if (id < 0)
        id = a->id;
    if ((size_t)id >= t->n_ids && !ids_grow(t, (size_t)id + 1, err))
        return false;
    struct str copy = tokenizer_copy(t, a->content);
    if (!copy.ptr || !added_grow(t))
        return err_set(err, ERR_MEMORY, "no memory for added tokens");
    t->added[t->n_added] = *a;
    t->added[t->n_added].id = id;
    t->added[t->n_added].content = copy;
    t->added_keys[t->n_added] = copy;
    token_table_put(&t->added_index, (int32_t)t->n_added++);
    t->tokens[id] = copy;
    t->flags[id] |= TOKEN_ADDED;
    return true;
}

bool tokenizer_set_named(struct tokenizer *t, struct str name, struct str content, struct err *err)
{
    for (size_t i = 0; i < t->n_named; i++)
        if (str_equal(t->named[i].name, name))
            return true;
    if (t->n_named == TOKENIZER_NAMED_MAX)
        return true;
    struct named_token n = {tokenizer_copy(t, name), tokenizer_copy(t, content)};
    if (!n.name.ptr || !n.content.ptr)
        return err_set(err, ERR_MEMORY, "no memory for special tokens");
    t->named[t->n_named++] = n;
    return true;
}

/* Id of the text of two tokens joined; -1: there is none. */
static int32_t joined_id(struct tokenizer *t, struct str text)
{
    size_t next = (size_t)t->merged_last + 1;
    bool is_next = t->texts_differ && next < t->n_ids && t->flags[next] & TOKEN_MODEL && str_equal(t->model_tokens[next], text);
    return t->merged_last = is_next ? (int32_t)next : tokenizer_model_id(t, text);
}

bool tokenizer_put_merge(struct tokenizer *t, struct str left, struct str right, size_t rank, struct err *err)
{
    int32_t a = tokenizer_model_id(t, left), b = tokenizer_model_id(t, right), m = -1;
    if (a < 0 || b < 0)
        return err_set(err, ERR_MODEL_DAMAGED, "merge %zu: \"%.*s\" is not a token of the vocabulary", rank,
                       (int)(a < 0 ? left : right).len, (a < 0 ? left : right).ptr);
    struct str p = t->subword_prefix;
    if (right.len < p.len)
        p = right;
    char text[2 * TOKENIZER_TOKEN_BYTES_MAX];
    memcpy(text, left.ptr, left.len);
    memcpy(text + left.len, right.ptr + p.len, right.len - p.len);
    m = joined_id(t, (struct str){text, left.len + right.len - p.len});
    if (m < 0)
        return err_set(err, ERR_MODEL_DAMAGED, "merge %zu: its result \"%.*s\" is not a token of the vocabulary", rank,
                       (int)(left.len + right.len - p.len), text);
    pair_table_put(&t->pairs, a, b, (uint32_t)rank, m);
    return true;
}

/* ---- finishing --------------------------------------------------------------------------------------------------- */
/* What token `id` stands for when it is written in the byte alphabet; false when it is not. */
static bool alphabet_bytes(struct str s, char *out, size_t *n)
{
    *n = 0;
    if (!utf8_is_valid(s))
        return false;
    for (size_t at = 0; at < s.len;) {
        int b = byte_alphabet_value(utf8_get(s, &at));
        if (b < 0)
            return false;
        out[(*n)++] = (char)b;
    }
    return true;
}

/* Byte-level tokenizers: what tokens stand for, and the ids by that. */
static bool finish_bytes(struct tokenizer *t, struct err *err)
{
    char text[TOKENIZER_TOKEN_BYTES_MAX];
    size_t n = t->n_ids ? t->n_ids : 1;
    memset(t->byte_id, 0xff, sizeof t->byte_id);
    if (!(t->bytes = calloc(n, sizeof *t->bytes)) || !token_table_init(&t->by_bytes, t->bytes, n, t->seed))
        return err_set(err, ERR_MEMORY, "no memory for a vocabulary of %zu ids", t->n_ids);
    for (size_t i = 0; i < t->n_ids; i++) {
        size_t len = 0;
        struct str s = t->tokens[i];
        if (!s.ptr)
            continue;
        if (!alphabet_bytes(s, text, &len)) {
            t->bytes[i] = s;
            continue;
        }
        t->bytes[i] = tokenizer_copy(t, (struct str){text, len});
        if (!t->bytes[i].ptr)
            return err_set(err, ERR_MEMORY, "no memory for the vocabulary");
        if (!(t->flags[i] & TOKEN_MODEL) || !str_equal(s, t->model_tokens[i]))
            continue;
        if ((t->texts_differ || tokenizer_model_id(t, s) == (int32_t)i) && len > 0) {
            token_table_put(&t->by_bytes, (int32_t)i);
            if (len == 1)
                t->byte_id[(unsigned char)text[0]] = (int32_t)i;
        }
    }
    return true;
}

/* Marks each byte that some token has in front of a "▁". */
static void finish_spaces(struct tokenizer *t)
{
    static const char mark[] = "\xe2\x96\x81";
    bool plain = t->model == MODEL_BPE && !t->bytes_direct && !t->subword_prefix.len && !t->word_suffix.len;
    t->cuts_spaces = (plain || t->model == MODEL_SPM_BPE) && tokenizer_model_id(t, str_from(mark)) >= 0;
    for (size_t i = 0; i < t->n_ids && t->cuts_spaces; i++) {
        struct str s = t->model_tokens[i];
        for (size_t at = 1; at + 3 <= s.len; at++)
            if (memcmp(s.ptr + at, mark, 3) == 0)
                t->joins_space[(unsigned char)s.ptr[at - 1]] = 1;
    }
}

static bool finish_pieces(struct tokenizer *t, struct err *err)
{
    if (t->model != MODEL_UNIGRAM)
        return true;
    if (!trie_init(&t->pieces))
        return err_set(err, ERR_MEMORY, "no memory for a vocabulary of %zu ids", t->n_ids);
    for (size_t i = 0; i < t->n_ids; i++) {
        if (!(t->flags[i] & TOKEN_MODEL) || (t->flags[i] & (TOKEN_HIDDEN | TOKEN_UNUSED)) ||
            tokenizer_model_id(t, t->model_tokens[i]) != (int32_t)i)
            continue;
        if (!utf8_is_valid(t->model_tokens[i]))
            return err_set(err, ERR_MODEL_DAMAGED, "token %zu of the unigram vocabulary is not UTF-8", i);
        if (!trie_put(&t->pieces, t->model_tokens[i], (int32_t)i))
            return err_set(err, ERR_MEMORY, "no memory for a vocabulary of %zu ids", t->n_ids);
    }
    return true;
}

static bool finish_added(struct tokenizer *t, struct err *err)
{
    struct err ignored;
    struct encode e = {.t = t, .err = err ? err : &ignored};
    buf_init(&e.norm_a, TOKENIZER_TOKEN_BYTES_MAX * TOKENIZER_EXPAND_MAX);
    buf_init(&e.norm_b, TOKENIZER_TOKEN_BYTES_MAX * TOKENIZER_EXPAND_MAX);
    bool ok = true;
    for (int special = 1; special >= 0 && ok; special--)
        for (size_t i = 0; i < t->n_added && ok; i++) {
            const struct added_token *a = &t->added[i];
            if (a->special != special)
                continue;
            if (special)
                t->flags[a->id] |= TOKEN_SPECIAL | TOKEN_HIDDEN; /* text alone never becomes one */
            struct piece p = {a->content, 0};
            if (a->normalized)
                ok = norm_run(&e, p, &p);
            if (ok && !trie_put(a->normalized ? &t->normal_trie : &t->raw_trie, p.s, (int32_t)i))
                ok = err_set(err, ERR_MEMORY, "no memory for added tokens");
        }
    for (size_t i = 0; i < t->n_norm; i++)
        regex_scratch_free(e.norm_scratch[i]);
    buf_release(&e.norm_a);
    buf_release(&e.norm_b);
    t->has_raw = t->raw_trie.n_edges > 0;
    t->has_normal = t->normal_trie.n_edges > 0;
    return ok;
}

/* "<0x1F>": its byte, -1 for other tokens. */
int token_fallback_byte(struct str s)
{
    if (s.len != 6 || memcmp(s.ptr, "<0x", 3) != 0 || s.ptr[5] != '>')
        return -1;
    int v = 0;
    for (int i = 3; i < 5; i++) {
        char c = s.ptr[i];
        int d = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (d < 0)
            return -1;
        v = v * 16 + d;
    }
    return v;
}

bool tokenizer_finish(struct tokenizer *t, struct err *err)
{
    for (size_t i = 0; i < 128; i++) {
        char c = (char)i;
        t->char_id[i] = tokenizer_model_id(t, (struct str){&c, 1});
    }
    for (int i = 0; i < 256; i++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)i);
        t->byte_fallback_id[i] = tokenizer_model_id(t, str_from(name));
    }
    if (t->model == MODEL_BPE && !t->pairs.slots && !pair_table_init(&t->pairs, 0, t->seed))
        return err_set(err, ERR_MEMORY, "no memory for merges");
    t->bytes_direct = t->model == MODEL_BPE && t->n_pre > 0 && t->pre[t->n_pre - 1].kind == PRE_BYTE_LEVEL &&
                      !t->subword_prefix.len && !t->word_suffix.len && !t->byte_fallback;
    t->single = calloc(t->n_ids ? t->n_ids : 1, 1);
    if (!t->single)
        return err_set(err, ERR_MEMORY, "no memory for a vocabulary of %zu ids", t->n_ids);
    bool byte_level = t->bytes_direct || (t->n_dec > 0 && t->dec[0].kind == DEC_BYTE_LEVEL);
    if (!finish_added(t, err) || (byte_level && !finish_bytes(t, err)) || !finish_pieces(t, err))
        return false;
    finish_spaces(t);
    struct str bos = tokenizer_named(t, "bos_token"), eos = tokenizer_named(t, "eos_token");
    if (t->bos < 0 && bos.len)
        t->bos = tokenizer_id(t, bos);
    if (t->eos < 0 && eos.len)
        t->eos = tokenizer_id(t, eos);
    return true;
}

/* ---- accessors --------------------------------------------------------------------------------------------------- */
size_t tokenizer_vocab_size(const struct tokenizer *t)
{
    return t->n_ids;
}

struct str tokenizer_token(const struct tokenizer *t, int32_t id)
{
    if (id < 0 || (size_t)id >= t->n_ids || !t->tokens[id].ptr)
        return (struct str){"", 0};
    return t->tokens[id];
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && (size_t)id < t->n_ids && (t->flags[id] & TOKEN_SPECIAL);
}

int32_t tokenizer_id(const struct tokenizer *t, struct str token)
{
    if (t->added_index.slots) {
        int32_t at = token_table_find(&t->added_index, token);
        if (at >= 0)
            return t->added[at].id;
    }
    return tokenizer_model_id(t, token);
}

int32_t tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}

bool tokenizer_adds_bos(const struct tokenizer *t)
{
    for (size_t i = 0; i < t->n_before; i++)
        if (t->before[i] == t->bos)
            return t->bos >= 0;
    return false;
}

struct str tokenizer_named(const struct tokenizer *t, const char *name)
{
    for (size_t i = 0; i < t->n_named; i++)
        if (str_equal(t->named[i].name, str_from(name)))
            return t->named[i].content;
    return (struct str){"", 0};
}

struct tokenizer *tokenizer_from_files(const struct tokenizer_files *files, struct err *err)
{
    if (files->tokenizer_json.len)
        return tokenizer_from_json(files, err);
    if (files->tokenizer_model.len)
        return tokenizer_from_spm(files, err);
    if (files->vocab_json.len && files->merges_txt.len)
        return tokenizer_from_vocab(files, err);
    err_set(err, ERR_MODEL_DAMAGED,
            "no tokenizer: the model needs tokenizer.json, tokenizer.model, or vocab.json and merges.txt");
    return NULL;
}

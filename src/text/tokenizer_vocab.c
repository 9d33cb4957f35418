/* Tables of the tokenizer: token strings to ids, merges, byte tries; UTF-8 steps and character classes. */
#include "text/tokenizer_impl.h"

#include <stdlib.h>
#include <utf8proc.h>

#define TABLE_ENTRIES_MAX ((size_t)1 << 28)

/* ---- strings to ids ---------------------------------------------------------------------------------------------- */
static inline uint64_t mix(uint64_t a, uint64_t b)
{
    __uint128_t r = (__uint128_t)a * b;
    return (uint64_t)r ^ (uint64_t)(r >> 64);
}

uint64_t token_hash(uint64_t seed, struct str s)
{
    const char *p = s.ptr;
    size_t n = s.len;
    uint64_t h = seed ^ (s.len * 0x9e3779b97f4a7c15u);
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t w;
        memcpy(&w, p, 8);
        h = mix(h ^ w, 0xa0761d6478bd642fu);
    }
    uint64_t w = 0;
    for (size_t i = 0; i < n; i++)
        w |= (uint64_t)(unsigned char)p[i] << 8 * i;
    return mix(h ^ w, 0xe7037ed1a0b428dbu);
}

/* Power of two with at most 2/3 of the slots in use; 0 when that is absurd. */
static size_t slots_for(size_t n_entries)
{
    if (n_entries > TABLE_ENTRIES_MAX)
        return 0;
    size_t n = 16;
    while (n * 2 < n_entries * 3)
        n *= 2;
    return n;
}

bool token_table_init(struct token_table *tt, const struct str *keys, size_t n_entries, uint64_t seed)
{
    size_t n = slots_for(n_entries);
    tt->slots = n ? calloc(n, sizeof *tt->slots) : NULL;
    tt->mask = n - 1;
    tt->keys = keys;
    tt->seed = seed;
    return tt->slots != NULL;
}

void token_table_release(struct token_table *tt)
{
    free(tt->slots);
    tt->slots = NULL;
}

static uint64_t *token_table_slot(const struct token_table *tt, struct str key, uint64_t h)
{
    uint64_t tag = h & 0xffffffff00000000u;
    for (size_t i = h & tt->mask;; i = (i + 1) & tt->mask) {
        uint64_t v = tt->slots[i];
        if (v == 0)
            return &tt->slots[i];
        if ((v & 0xffffffff00000000u) == tag && str_equal(tt->keys[(uint32_t)v - 1], key))
            return &tt->slots[i];
    }
}

int32_t token_table_put(struct token_table *tt, int32_t id)
{
    uint64_t h = token_hash(tt->seed, tt->keys[id]), *slot = token_table_slot(tt, tt->keys[id], h);
    int32_t before = *slot ? (int32_t)((uint32_t)*slot - 1) : -1;
    *slot = (h & 0xffffffff00000000u) | ((uint32_t)id + 1u);
    return before;
}

int32_t token_table_find(const struct token_table *tt, struct str key)
{
    if (!tt->slots)
        return -1;
    uint64_t v = *token_table_slot(tt, key, token_hash(tt->seed, key));
    return v ? (int32_t)((uint32_t)v - 1) : -1;
}

/* ---- merges ------------------------------------------------------------------------------------------------------ */
bool pair_table_init(struct pair_table *pt, size_t n_entries, uint64_t seed)
{
    size_t n = slots_for(n_entries);
    pt->slots = n ? malloc(n * sizeof *pt->slots) : NULL;
    if (!pt->slots)
        return false;
    for (size_t i = 0; i < n; i++)
        pt->slots[i].key = UINT64_MAX;
    pt->mask = n - 1;
    pt->seed = seed;
    return true;
}

void pair_table_release(struct pair_table *pt)
{
    free(pt->slots);
    pt->slots = NULL;
}

void pair_table_put(struct pair_table *pt, int32_t left, int32_t right, uint32_t rank, int32_t merged)
{
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t h = (key ^ pt->seed) * 0x9e3779b97f4a7c15u;
    size_t i = (h ^ h >> 32) & pt->mask;
    while (pt->slots[i].key != UINT64_MAX && pt->slots[i].key != key)
        i = (i + 1) & pt->mask;
    pt->slots[i] = (struct pair_slot){key, rank, merged};
}

/* ---- trie: slots hold (node << 8 | byte) + 1 ---------------------------------------------------------------------- */
#define TRIE_SLOTS_FIRST 256u
#define TRIE_NODES_FIRST 64u
#define TRIE_NODES_MAX   ((size_t)1 << 27)

bool trie_init(struct trie *tr)
{
    memset(tr, 0, sizeof *tr);
    tr->slots = calloc(TRIE_SLOTS_FIRST, sizeof *tr->slots);
    tr->targets = calloc(TRIE_SLOTS_FIRST, sizeof *tr->targets);
    tr->values = malloc(TRIE_NODES_FIRST * sizeof *tr->values);
    tr->mask = TRIE_SLOTS_FIRST - 1;
    tr->cap_nodes = TRIE_NODES_FIRST;
    if (!tr->slots || !tr->targets || !tr->values) {
        trie_release(tr);
        return false;
    }
    tr->values[0] = -1;
    tr->n_nodes = 1;
    return true;
}

void trie_release(struct trie *tr)
{
    free(tr->slots);
    free(tr->targets);
    free(tr->values);
    memset(tr, 0, sizeof *tr);
}

static inline size_t trie_slot(const struct trie *tr, uint64_t key)
{
    uint64_t h = key * 0x9e3779b97f4a7c15u;
    size_t i = (h ^ h >> 32) & tr->mask;
    while (tr->slots[i] != 0 && tr->slots[i] != key)
        i = (i + 1) & tr->mask;
    return i;
}

uint32_t trie_next(const struct trie *tr, uint32_t node, unsigned char byte)
{
    size_t i = trie_slot(tr, ((uint64_t)node << 8 | byte) + 1);
    return tr->slots[i] ? tr->targets[i] : 0;
}

static bool trie_grow(struct trie *tr)
{
    size_t n = (tr->mask + 1) * 2;
    struct trie next = *tr;
    next.slots = calloc(n, sizeof *next.slots);
    next.targets = calloc(n, sizeof *next.targets);
    next.mask = n - 1;
    if (!next.slots || !next.targets) {
        free(next.slots);
        free(next.targets);
        return false;
    }
    for (size_t i = 0; i <= tr->mask; i++) {
        if (!tr->slots[i])
            continue;
        size_t k = trie_slot(&next, tr->slots[i]);
        next.slots[k] = tr->slots[i];
        next.targets[k] = tr->targets[i];
    }
    free(tr->slots);
    free(tr->targets);
    *tr = next;
    return true;
}

static bool trie_node_new(struct trie *tr)
{
    if (tr->n_nodes >= TRIE_NODES_MAX)
        return false;
    if (tr->n_nodes == tr->cap_nodes) {
        int32_t *values = realloc(tr->values, tr->cap_nodes * 2 * sizeof *values);
        if (!values)
            return false;
        tr->values = values;
        tr->cap_nodes *= 2;
    }
    tr->values[tr->n_nodes++] = -1;
    return true;
}

bool trie_put(struct trie *tr, struct str key, int32_t value)
{
    if (key.len == 0)
        return true;
    uint32_t node = 0;
    for (size_t i = 0; i < key.len; i++) {
        uint64_t edge = ((uint64_t)node << 8 | (unsigned char)key.ptr[i]) + 1;
        size_t k = trie_slot(tr, edge);
        if (!tr->slots[k]) {
            if ((tr->n_edges + 1) * 3 > (tr->mask + 1) * 2) {
                if (!trie_grow(tr))
                    return false;
                k = trie_slot(tr, edge);
            }
            if (!trie_node_new(tr))
                return false;
            tr->slots[k] = edge;
            tr->targets[k] = (uint32_t)(tr->n_nodes - 1);
            tr->n_edges++;
        }
        node = tr->targets[k];
    }
    tr->first[(unsigned char)key.ptr[0]] = 1;
    if (tr->values[node] < 0)
        tr->values[node] = value;
    return true;
}

size_t trie_longest(const struct trie *tr, struct str s, size_t at, int32_t *value)
{
    uint32_t node = 0;
    size_t best = 0;
    for (size_t i = at; i < s.len; i++) {
        node = trie_next(tr, node, (unsigned char)s.ptr[i]);
        if (!node)
            break;
        if (tr->values[node] >= 0) {
            best = i + 1 - at;
            *value = tr->values[node];
        }
    }
    return best;
}

/* ---- byte alphabet ----------------------------------------------------------------------------------------------- */
uint32_t byte_alphabet(unsigned char b)
{
    if ((b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae)
        return b;
    if (b <= ' ')
        return 256u + b;
    if (b <= 0xa0)
        return 256u + 33u + (b - 0x7fu);
    return 256u + 67u; /* 0xad */
}

int byte_alphabet_value(uint32_t c)
{
    if ((c >= '!' && c <= '~') || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff))
        return (int)c;
    if (c >= 256 && c <= 256 + 32)
        return (int)c - 256;
    if (c >= 256 + 33 && c < 256 + 67)
        return (int)c - 256 - 33 + 0x7f;
    return c == 256 + 67 ? 0xad : -1;
}

/* ---- UTF-8 ------------------------------------------------------------------------------------------------------- */
int utf8_step(const unsigned char *s, size_t len, size_t *skip)
{
    unsigned char c = s[0], lo = 0x80, hi = 0xbf;
    size_t need;
    if (c < 0x80)
        return 1;
    if (c >= 0xc2 && c <= 0xdf)
        need = 1;
    else if (c >= 0xe0 && c <= 0xef) {
        need = 2;
        lo = c == 0xe0 ? 0xa0 : 0x80;
        hi = c == 0xed ? 0x9f : 0xbf;
    } else if (c >= 0xf0 && c <= 0xf4) {
        need = 3;
        lo = c == 0xf0 ? 0x90 : 0x80;
        hi = c == 0xf4 ? 0x8f : 0xbf;
    } else
        return *skip = 1, 0;
    for (size_t i = 1; i <= need; i++, lo = 0x80, hi = 0xbf) {
        if (i >= len)
            return *skip = len, -1;
        if (s[i] < lo || s[i] > hi)
            return *skip = i, 0;
    }
    return (int)need + 1;
}

/* Length of the longest valid prefix. */
static size_t utf8_valid_prefix(struct str s)
{
    const unsigned char *p = (const unsigned char *)s.ptr;
    size_t i = 0;
    while (i < s.len) {
        if (p[i] < 0x80) {
            uint64_t w;
            while (i + 8 <= s.len && (memcpy(&w, p + i, 8), (w & 0x8080808080808080u) == 0))
                i += 8;
            while (i < s.len && p[i] < 0x80)
                i++;
            continue;
        }
        size_t skip;
        int n = utf8_step(p + i, s.len - i, &skip);
        if (n <= 0)
            break;
        i += (size_t)n;
    }
    return i;
}

bool utf8_is_valid(struct str s)
{
    return utf8_valid_prefix(s) == s.len;
}

bool utf8_append_lossy(struct buf *out, struct str s)
{
    while (s.len > 0) {
        size_t n = utf8_valid_prefix(s);
        if (n && !buf_append(out, s.ptr, n))
            return false;
        if (n == s.len)
            break;
        size_t skip = 1;
        utf8_step((const unsigned char *)s.ptr + n, s.len - n, &skip);
        if (!buf_append(out, "\xef\xbf\xbd", 3))
            return false;
        s = (struct str){s.ptr + n + skip, s.len - n - skip};
    }
    return true;
}

size_t utf8_put(uint32_t c, char *out)
{
    if (c < 0x80)
        return out[0] = (char)c, 1;
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

/* ---- character classes -------------------------------------------------------------------------------------------- */
bool char_is_space(uint32_t c)
{
    if (c < 0x80)
        return c == ' ' || (c >= 9 && c <= 13);
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

bool char_is_numeric(uint32_t c)
{
    if (c < 0x80)
        return c >= '0' && c <= '9';
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO;
}

bool char_is_punct(uint32_t c)
{
    if (c < 0x80)
        return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k >= UTF8PROC_CATEGORY_PC && k <= UTF8PROC_CATEGORY_PO;
}

bool char_is_word(uint32_t c)
{
    if (c < 0x80)
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
    if (c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) ||
        (c >= 0x1f150 && c <= 0x1f169) || (c >= 0x1f170 && c <= 0x1f189))
        return true;
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_NL) || k == UTF8PROC_CATEGORY_PC;
}

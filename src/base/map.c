/* Hash map; see map.h. */
#include "base/map.h"

#include "base/rand.h"

#include <pthread.h>
#include <stdlib.h>

#define SLOTS_FIRST 16

enum slot_state { SLOT_FREE, SLOT_USED, SLOT_DEAD };

struct map_slot {
    uint64_t hash, value;
    size_t key_at, key_len; /* into keys */
    enum slot_state state;
};

static uint64_t process_seed;
static pthread_once_t seed_once = PTHREAD_ONCE_INIT;

static void make_seed(void)
{
    process_seed = rand_system_u64();
}

/* Eight bytes a round, multiplied into 128 bits and folded: fast, and not predictable without the seed. */
static uint64_t hash_key(struct str key)
{
    pthread_once(&seed_once, make_seed);
    uint64_t h = process_seed ^ key.len * 0x9E3779B97F4A7C15u;
    for (size_t i = 0; i < key.len; i += 8) {
        uint64_t word = 0;
        memcpy(&word, key.ptr + i, key.len - i < 8 ? key.len - i : 8);
        unsigned __int128 product = (unsigned __int128)(word ^ h) * ((0xE7037ED1A0B428DBu ^ process_seed) | 1);
        h = (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93u;
    return h ^ h >> 32;
}

void map_init(struct map *m)
{
    memset(m, 0, sizeof *m);
}

void map_release(struct map *m)
{
    free(m->slots);
    free(m->keys);
    memset(m, 0, sizeof *m);
}

static bool slot_has(const struct map *m, const struct map_slot *s, uint64_t hash, struct str key)
{
    return s->state == SLOT_USED && s->hash == hash &&
           str_equal((struct str){m->keys ? m->keys + s->key_at : "", s->key_len}, key);
}

static struct map_slot *find(const struct map *m, uint64_t hash, struct str key)
{
    if (m->n_slots == 0)
        return NULL;
    for (size_t i = hash & (m->n_slots - 1);; i = (i + 1) & (m->n_slots - 1)) {
        struct map_slot *s = &m->slots[i];
        if (s->state == SLOT_FREE)
            return NULL;
        if (slot_has(m, s, hash, key))
            return s;
    }
}

/* Moves everything into n_slots slots; drops dead keys' bytes too. */
static bool rebuild(struct map *m, size_t n_slots)
{
    struct map_slot *slots = calloc(n_slots, sizeof *slots);
    char *keys = m->keys_cap ? malloc(m->keys_cap) : NULL;
    if (!slots || (m->keys_cap && !keys)) {
        free(slots);
        free(keys);
        return false;
    }
    size_t keys_len = 0;
    for (size_t i = 0; i < m->n_slots; i++) {
        struct map_slot s = m->slots[i];
        if (s.state != SLOT_USED)
            continue;
        if (s.key_len)
            memcpy(keys + keys_len, m->keys + s.key_at, s.key_len);
        s.key_at = keys_len;
        keys_len += s.key_len;
        size_t at = s.hash & (n_slots - 1);
        while (slots[at].state != SLOT_FREE)
            at = (at + 1) & (n_slots - 1);
        slots[at] = s;
    }
    free(m->slots);
    free(m->keys);
    m->slots = slots;
    m->n_slots = n_slots;
    m->keys = keys;
    m->keys_len = keys_len;
    m->n_dead = 0;
    return true;
}

static bool reserve_keys(struct map *m, size_t bytes)
{
    if (bytes <= m->keys_cap - m->keys_len)
        return true;
    size_t cap = m->keys_cap ? m->keys_cap : 256;
    while (cap - m->keys_len < bytes)
        if (__builtin_mul_overflow(cap, (size_t)2, &cap))
            return false;
    char *keys = realloc(m->keys, cap);
    if (!keys)
        return false;
    m->keys = keys;
    m->keys_cap = cap;
    return true;
}

bool map_reserve(struct map *m, size_t n_entries, size_t key_bytes)
{
    size_t n = SLOTS_FIRST;
    while (n / 4 * 3 < n_entries)
        if (__builtin_mul_overflow(n, (size_t)2, &n))
            return false;
    return (n <= m->n_slots || rebuild(m, n)) && reserve_keys(m, key_bytes);
}

bool map_set(struct map *m, struct str key, uint64_t value)
{
    uint64_t hash = hash_key(key);
    struct map_slot *s = find(m, hash, key);
    if (s) {
        s->value = value;
        return true;
    }
    if ((m->n_used + m->n_dead + 1) * 4 > m->n_slots * 3) {
        size_t n = m->n_slots ? m->n_slots : SLOTS_FIRST;
        while ((m->n_used + 1) * 2 > n)
            n *= 2;
        if (!rebuild(m, n))
            return false;
    }
    if (!reserve_keys(m, key.len))
        return false;
    size_t i = hash & (m->n_slots - 1);
    while (m->slots[i].state == SLOT_USED)
        i = (i + 1) & (m->n_slots - 1);
    m->n_dead -= m->slots[i].state == SLOT_DEAD;
    m->slots[i] = (struct map_slot){hash, value, m->keys_len, key.len, SLOT_USED};
    if (key.len)
        memcpy(m->keys + m->keys_len, key.ptr, key.len);
    m->keys_len += key.len;
    m->n_used++;
    return true;
}

bool map_get(const struct map *m, struct str key, uint64_t *value)
{
    const struct map_slot *s = find(m, hash_key(key), key);
    if (s)
        *value = s->value;
    return s != NULL;
}

bool map_remove(struct map *m, struct str key)
{
    struct map_slot *s = find(m, hash_key(key), key);
    if (!s)
        return false;
    s->state = SLOT_DEAD;
    m->n_used--;
    m->n_dead++;
    return true;
}

bool map_next(const struct map *m, size_t *at, struct str *key, uint64_t *value)
{
    for (; *at < m->n_slots; (*at)++) {
        const struct map_slot *s = &m->slots[*at];
        if (s->state != SLOT_USED)
            continue;
        *key = (struct str){m->keys ? m->keys + s->key_at : "", s->key_len};
        *value = s->value;
        (*at)++;
        return true;
    }
    return false;
}

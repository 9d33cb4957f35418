/* Hash map; see map.h. */
#include "base/map.h"

#include "base/rand.h"

#include <pthread.h>
#include <stdlib.h>

#define SLOTS_FIRST 16

struct map_slot {
    uint64_t hash, value;
    size_t key_at, key_len; /* into keys */
    bool used;
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
    return s->used && s->hash == hash && str_equal((struct str){m->keys ? m->keys + s->key_at : "", s->key_len}, key);
}

static struct map_slot *find(const struct map *m, uint64_t hash, struct str key)
{
    if (m->n_slots == 0)
        return NULL;
    for (size_t i = hash & (m->n_slots - 1);; i = (i + 1) & (m->n_slots - 1)) {
        struct map_slot *s = &m->slots[i];
        if (!s->used)
            return NULL;
        if (slot_has(m, s, hash, key))
            return s;
    }
}

/* Moves everything into n_slots slots. */
static bool rebuild(struct map *m, size_t n_slots)
{
    struct map_slot *slots = calloc(n_slots, sizeof *slots);
    if (!slots)
        return false;
    for (size_t i = 0; i < m->n_slots; i++) {
        if (!m->slots[i].used)
            continue;
        size_t at = m->slots[i].hash & (n_slots - 1);
        while (slots[at].used)
            at = (at + 1) & (n_slots - 1);
        slots[at] = m->slots[i];
    }
    free(m->slots);
    m->slots = slots;
    m->n_slots = n_slots;
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

bool map_set(struct map *m, struct str key, uint64_t value)
{
    uint64_t hash = hash_key(key);
    struct map_slot *s = find(m, hash, key);
    if (s) {
        s->value = value;
        return true;
    }
    if ((m->n_used + 1) * 4 > m->n_slots * 3 && !rebuild(m, m->n_slots ? 2 * m->n_slots : SLOTS_FIRST))
        return false;
    if (!reserve_keys(m, key.len))
        return false;
    size_t i = hash & (m->n_slots - 1);
    while (m->slots[i].used)
        i = (i + 1) & (m->n_slots - 1);
    m->slots[i] = (struct map_slot){hash, value, m->keys_len, key.len, true};
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

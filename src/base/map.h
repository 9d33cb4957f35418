/* Hash map from byte strings to 64-bit values (indices or pointers). Keys are copied. Open addressing; the hash is
 * seeded per process, so hostile keys cannot aim at one slot. One thread at a time (readers may share when nobody writes). */
#ifndef INFERD_BASE_MAP_H
#define INFERD_BASE_MAP_H

#include "base/str.h"

struct map_slot;
struct map {
    struct map_slot *slots;
    size_t n_slots; /* power of two or 0 */
    size_t n_used;
    char *keys; /* all key bytes, packed */
    size_t keys_len, keys_cap;
};

void map_init(struct map *m);
void map_release(struct map *m);
/* Inserts or replaces. False when out of memory. */
bool map_set(struct map *m, struct str key, uint64_t value);
bool map_get(const struct map *m, struct str key, uint64_t *value);

#endif

/* See nearest.h. */
#include "base/nearest.h"

#define BYTES_MAX 64 /* names are shorter */

/* Edit distance, or limit + 1 where it is more. */
static size_t distance(struct str a, struct str b, size_t limit)
{
    if (a.len > BYTES_MAX || b.len > BYTES_MAX)
        return limit + 1;
    size_t row[BYTES_MAX + 1];
    for (size_t j = 0; j <= b.len; j++)
        row[j] = j;
    for (size_t i = 1; i <= a.len; i++) {
        size_t diagonal = row[0], least = row[0] = i;
        for (size_t j = 1; j <= b.len; j++) {
            size_t change = diagonal + (a.ptr[i - 1] != b.ptr[j - 1]);
            diagonal = row[j];
            size_t best = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            row[j] = change < best ? change : best;
            least = row[j] < least ? row[j] : least;
        }
        if (least > limit)
            return limit + 1;
    }
    return row[b.len] < limit ? row[b.len] : limit + (row[b.len] > limit);
}

struct nearest nearest_begin(struct str written, size_t changes_max)
{
    size_t half = (written.len + 1) / 2, most = half < changes_max ? half : changes_max;
    return (struct nearest){.written = written, .changes = most + 1};
}

bool nearest_try(struct nearest *n, const char *known)
{
    size_t d = n->changes ? distance(n->written, str_from(known), n->changes - 1) : 1;
    if (d >= n->changes)
        return false;
    n->changes = d;
    n->name = known;
    return true;
}

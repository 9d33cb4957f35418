/* Philox4x32-10 and system randomness; see rand.h. */
#include "base/rand.h"

#include "base/err.h"

#include <errno.h>
#include <sys/random.h>

struct rand_block rand_philox(uint64_t key, uint64_t stream, uint64_t counter)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c[4] = {(uint32_t)counter, (uint32_t)(counter >> 32), (uint32_t)stream, (uint32_t)(stream >> 32)};
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c[0], p1 = (uint64_t)0xCD9E8D57u * c[2];
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c[1] ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
        c[1] = (uint32_t)p1;
        c[3] = (uint32_t)p0;
        c[0] = n0;
        c[2] = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (struct rand_block){{c[0], c[1], c[2], c[3]}};
}

double rand_uniform(uint64_t key, uint64_t stream, uint64_t counter)
{
    struct rand_block b = rand_philox(key, stream, counter);
    uint64_t bits = (uint64_t)b.word[1] << 32 | b.word[0];
    return (double)(bits >> 11) * 0x1p-53;
}

void rand_system(void *out, size_t len)
{
    char *p = out;
    while (len) {
        ssize_t n = getrandom(p, len, 0);
        if (n < 0 && errno == EINTR)
            continue;
        CHECK(n > 0);
        p += n;
        len -= (size_t)n;
    }
}

uint64_t rand_system_u64(void)
{
    uint64_t v;
    rand_system(&v, sizeof v);
    return v;
}

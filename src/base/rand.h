/* Random numbers that are a pure function of (seed, stream, counter): Philox4x32-10 (Salmon et al., SC'11). The sampler
 * keys them by request seed and token position, so the same request draws the same numbers whatever else runs. */
#ifndef INFERD_BASE_RAND_H
#define INFERD_BASE_RAND_H

#include <stddef.h>
#include <stdint.h>

struct rand_block {
    uint32_t word[4];
};
struct rand_block rand_philox(uint64_t key, uint64_t stream, uint64_t counter);
/* Uniform in [0, 1) with 53 bits. */
double rand_uniform(uint64_t key, uint64_t stream, uint64_t counter);
/* Bytes from the operating system (ids, keys). Aborts if the system has none. */
void rand_system(void *out, size_t len);
uint64_t rand_system_u64(void);

#endif

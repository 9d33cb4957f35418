/* Read-only mappings of files that somebody else may cut: reading what is gone gives zeros and a flag, where it would otherwise
 * end the process (SIGBUS, for which a handler is installed with the first mapping; it touches nothing but these mappings, and
 * leaves every other SIGBUS to whoever handled it before). A disk that cannot be read shows in the same way.
 *
 * Thread: any. A mapping is closed when nobody reads it any more.
 */
#ifndef INFERD_BASE_MAPPING_H
#define INFERD_BASE_MAPPING_H

#include <stdbool.h>
#include <stddef.h>

/* Maps the first `len` bytes (> 0). NULL: errno says why. */
const void *mapping_open(int fd, size_t len);
void mapping_close(const void *begin, size_t len);
/* False once zeros took the place of bytes that could not be read. */
bool mapping_is_whole(const void *begin);

#endif

/* Conversations as JSON arrays of messages: what a session keeps, what a model is given. Pure functions; any thread. */
#ifndef INFERD_SERVE_HISTORY_H
#define INFERD_SERVE_HISTORY_H

#include <jansson.h>
#include <stdint.h>

/* `kept` followed by `added`, a new array. System messages (developer ones too) come first; added ones replace kept ones.
 * What remains of a conversation whose beginning was cut starts at a user's message: templates refuse an answer without a
 * question. NULL: out of memory. */
json_t *history_join(const json_t *kept, const json_t *added);
/* Drops the oldest until at most `max` are left, system messages not counted (max < 0: keeps all). Returns how many are
 * left, system messages not counted. */
size_t history_trim(json_t *messages, int64_t max);

#endif

/* Stop strings over streamed text: text goes in piece by piece, text that can no longer turn into a stop string comes
 * out. The stop string itself, and whatever follows it, never comes out.
 *
 * State belongs to one request; one thread at a time. At most the longest stop string less one byte is held back, and
 * what comes out always ends at a character boundary when what goes in does. */
#ifndef INFERD_TEXT_STOPS_H
#define INFERD_TEXT_STOPS_H

#include "base/buf.h"
#include "base/err.h"

#define STOPS_MAX      16
#define STOP_BYTES_MAX 1024

struct stops {
    struct str strings[STOPS_MAX]; /* borrowed */
    size_t n;
    struct buf held; /* not yet certain */
    bool matched;
};

/* `strings` must outlive `s`; at most STOPS_MAX of 1..STOP_BYTES_MAX bytes each. */
void stops_init(struct stops *s, const struct str *strings, size_t n);
void stops_release(struct stops *s);
/* Takes `text`, appends what has become certain to `out`. Returns true once a stop string was met: the one that is
 * complete first (of several the longest) ends the text, however it was cut into pieces. Later calls take nothing more. */
bool stops_push(struct stops *s, struct str text, struct buf *out);
/* Gives out what is still held: the text has ended without a stop string. */
void stops_finish(struct stops *s, struct buf *out);

#endif

/* A pull's progress on a terminal (a block of lines that is drawn anew) or elsewhere (a line at a time). */
#ifndef INFERD_CLI_PROGRESS_H
#define INFERD_CLI_PROGRESS_H

#include "hub/hub.h"

#define CLI_SIZE_BYTES 32

/* Zeroed but for `terminal`. */
struct cli_progress {
    int terminal;
    size_t lines; /* of the block that is on the screen */
    char *told;   /* plain: a flag a file that has had its line */
    size_t n_told;
    uint64_t line_ns; /* plain: the last line of progress */
    char asking[300]; /* plain: the last line before the files are known */
};

void cli_progress_show(struct cli_progress *v, const struct hub_progress *p);
/* Takes the block from the screen, so that something else may be written; the next show draws it again. */
void cli_progress_clear(struct cli_progress *v);
/* Clears the block; releases. */
void cli_progress_end(struct cli_progress *v);
/* "98.4 MB" into `out`; returns it. */
const char *cli_size_text(double bytes, char out[CLI_SIZE_BYTES]);

#endif

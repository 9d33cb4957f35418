/* Ranges of a text, ascending and apart: those that the server's own side wrote, when a template has mixed its own words with
 * what clients sent. Special tokens may be asked to count only there. */
#ifndef INFERD_TEXT_SPANS_H
#define INFERD_TEXT_SPANS_H

#include "base/str.h"

struct text_span {
    size_t begin, end;
};

struct text_spans {
    struct text_span *list; /* NULL: none */
    size_t n, cap;
};

void text_spans_release(struct text_spans *s);
/* [begin, end) behind all that is there; joins the last where they touch. False: out of memory. */
bool text_spans_add(struct text_spans *s, size_t begin, size_t end);
/* Whether [begin, end) is within one of them. */
bool text_spans_hold(const struct text_spans *s, size_t begin, size_t end);

#endif

/* Whose text is it? While a template runs, its own words (the literals of its source, and strings that the caller names) are
 * told from what came with the request, by address: the template's arena is its own, and where bytes are copied into the
 * arena of a render, the ranges of own bytes among them are written down. Whatever is made in another way (upper case, numbers,
 * repeated text) counts as not own: a part that is forgotten costs a special token of the template, never lets one in. */
#include "text/jinja.h"

#include <stdlib.h>

void text_spans_release(struct text_spans *s)
{
    free(s->list);
    *s = (struct text_spans){0};
}

bool text_spans_add(struct text_spans *s, size_t begin, size_t end)
{
    if (begin >= end)
        return true;
    if (s->n && s->list[s->n - 1].end == begin) {
        s->list[s->n - 1].end = end;
        return true;
    }
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 32;
        struct text_span *list = realloc(s->list, cap * sizeof *list);
        if (!list)
            return false;
        s->list = list;
        s->cap = cap;
    }
    s->list[s->n++] = (struct text_span){begin, end};
    return true;
}

/* The first that ends behind `at`; n when there is none. */
static size_t find(const struct text_spans *s, size_t at)
{
    size_t from = 0, to = s->n;
    while (from < to) {
        size_t middle = from + (to - from) / 2;
        if (s->list[middle].end > at)
            to = middle;
        else
            from = middle + 1;
    }
    return from;
}

bool text_spans_hold(const struct text_spans *s, size_t begin, size_t end)
{
    size_t i = find(s, begin);
    return i < s->n && s->list[i].begin <= begin && end <= s->list[i].end;
}

static size_t address(const char *p)
{
    return (size_t)(uintptr_t)p;
}

/* Puts a span where it belongs. No other overlaps it. */
static bool insert(struct text_spans *s, size_t begin, size_t end)
{
    size_t at = find(s, begin);
    if (at == s->n)
        return text_spans_add(s, begin, end);
    struct text_span last = s->list[s->n - 1];
    if (!text_spans_add(s, last.end + 1, last.end + 2)) /* a place at the end */
        return false;
    memmove(s->list + at + 1, s->list + at, (s->n - 1 - at) * sizeof *s->list);
    s->list[at] = (struct text_span){begin, end};
    return true;
}

bool jmarks_own(struct jrun *run, struct str s)
{
    struct text_spans *own = &run->marks->own;
    size_t begin = address(s.ptr);
    return s.len == 0 || text_spans_hold(own, begin, begin + s.len) || insert(own, begin, begin + s.len) ||
           jrun_fail(run, "no memory to tell a template's own text");
}

/* Calls fn for each own part of `s`, by its place in it. */
static bool each_own(struct jrun *run, struct str s, bool (*fn)(struct jrun *run, size_t to, size_t n), size_t to)
{
    if (arena_holds(&run->t->arena, s.ptr))
        return fn(run, to, s.len);
    size_t from = address(s.ptr), end = from + s.len;
    const struct text_spans *own = &run->marks->own;
    for (size_t i = find(own, from); i < own->n && own->list[i].begin < end; i++) {
        struct text_span part = own->list[i]; /* fn may move the list */
        size_t begin = part.begin > from ? part.begin : from;
        if (!fn(run, to + (begin - from), (part.end < end ? part.end : end) - begin))
            return false;
        i = find(own, part.begin);
    }
    return true;
}

static bool mark_copy(struct jrun *run, size_t to, size_t n)
{
    return n == 0 || insert(&run->marks->own, to, to + n);
}

bool jmarks_copied(struct jrun *run, const char *to, struct str from)
{
    if (!run->marks || from.len == 0)
        return true;
    return each_own(run, from, mark_copy, address(to)) || jrun_fail(run, "no memory to tell a template's own text");
}

static bool mark_emitted(struct jrun *run, size_t to, size_t n)
{
    return text_spans_add(&run->marks->levels[run->n_captures], to, to + n);
}

bool jmarks_emitted(struct jrun *run, struct str s)
{
    if (!run->marks)
        return true;
    return each_own(run, s, mark_emitted, run->out->len) || jrun_fail(run, "no memory to tell a template's own text");
}

bool jmarks_capture_begin(struct jrun *run)
{
    struct jmarks *m = run->marks;
    if (!m)
        return true;
    if (run->n_captures >= m->n_levels) {
        size_t n = run->n_captures + 8;
        struct text_spans *levels = realloc(m->levels, n * sizeof *levels);
        if (!levels)
            return jrun_fail(run, "no memory to tell a template's own text");
        memset(levels + m->n_levels, 0, (n - m->n_levels) * sizeof *levels);
        m->levels = levels;
        m->n_levels = n;
    }
    m->levels[run->n_captures].n = 0;
    return true;
}

bool jmarks_captured(struct jrun *run, const char *copy)
{
    if (!run->marks)
        return true;
    const struct text_spans *level = &run->marks->levels[run->n_captures];
    for (size_t i = 0; i < level->n; i++)
        if (!insert(&run->marks->own, address(copy) + level->list[i].begin, address(copy) + level->list[i].end))
            return jrun_fail(run, "no memory to tell a template's own text");
    return true;
}

void jmarks_release(struct jmarks *m)
{
    for (size_t i = 0; i < m->n_levels; i++)
        text_spans_release(&m->levels[i]);
    free(m->levels);
    text_spans_release(&m->own);
}

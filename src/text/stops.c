/* Stop strings over streamed text; see stops.h. */
#include "text/stops.h"

void stops_init(struct stops *s, const struct str *strings, size_t n)
{
    CHECK(n <= STOPS_MAX);
    memset(s, 0, sizeof *s);
    buf_init(&s->held, SIZE_MAX / 2);
    s->n = n;
    for (size_t i = 0; i < n; i++)
        s->strings[i] = strings[i];
}

void stops_release(struct stops *s)
{
    buf_release(&s->held);
}

/* Where the stop string that is complete first starts in `text`, of several that end there the longest; text.len when
 * there is none. The same however the text was cut into pieces. */
static size_t find_match(const struct stops *s, struct str text)
{
    size_t start = text.len, end = text.len + 1;
    for (size_t i = 0; i < s->n; i++) {
        const char *at = memmem(text.ptr, text.len, s->strings[i].ptr, s->strings[i].len);
        if (!at)
            continue;
        size_t from = (size_t)(at - text.ptr), to = from + s->strings[i].len;
        if (to < end || (to == end && from < start)) {
            start = from;
            end = to;
        }
    }
    return start;
}

/* Length of the longest tail of `text` that is the start of some stop string. */
static size_t open_tail(const struct stops *s, struct str text)
{
    size_t longest = 0;
    for (size_t i = 0; i < s->n; i++) {
        size_t most = s->strings[i].len - 1 < text.len ? s->strings[i].len - 1 : text.len;
        for (size_t k = most; k > longest; k--)
            if (memcmp(text.ptr + text.len - k, s->strings[i].ptr, k) == 0)
                longest = k;
    }
    return longest;
}

bool stops_push(struct stops *s, struct str text, struct buf *out)
{
    if (s->matched)
        return true;
    if (s->n == 0) {
        buf_append_str(out, text);
        return false;
    }
    buf_append_str(&s->held, text);
    struct str held = buf_str(&s->held);
    size_t at = find_match(s, held);
    if (at < held.len) {
        buf_append(out, held.ptr, at);
        buf_clear(&s->held);
        s->matched = true;
        return true;
    }
    size_t sure = held.len - open_tail(s, held);
    /* Never cut inside a character: a stop string may begin with bytes that end another character's. */
    while (sure > 0 && sure < held.len && ((unsigned char)held.ptr[sure] & 0xc0) == 0x80)
        sure--;
    buf_append(out, held.ptr, sure);
    buf_consume(&s->held, sure);
    return false;
}

void stops_finish(struct stops *s, struct buf *out)
{
    if (!s->matched)
        buf_append_str(out, buf_str(&s->held));
    buf_clear(&s->held);
}

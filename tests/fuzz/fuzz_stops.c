/* Stop strings (parted by NUL, an empty one ends them) and a text in pieces as the input says: what comes out is the text
 * before the stop string that is complete first, as a search of the whole finds it, however the text is cut. */
#include "text/stops.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str strings[STOPS_MAX], text = {(const char *)data, size};
    size_t n = 0, cut = 0;
    while (text.len) {
        const char *nul = memchr(text.ptr, 0, text.len);
        struct str s = {text.ptr, nul ? (size_t)(nul - text.ptr) : text.len};
        text = (struct str){text.ptr + s.len + (nul != NULL), text.len - s.len - (nul != NULL)};
        if (!s.len || n == STOPS_MAX)
            break;
        if (s.len <= STOP_BYTES_MAX)
            strings[n++] = s;
    }
    size_t end = text.len;
    for (size_t to = 1; to <= text.len && end == text.len; to++)
        for (size_t i = 0; i < n; i++)
            if (str_has_suffix((struct str){text.ptr, to}, strings[i]) && to - strings[i].len < end)
                end = to - strings[i].len;
    struct stops s;
    struct buf out;
    buf_init(&out, size + 1);
    stops_init(&s, strings, n);
    bool met = false;
    for (size_t at = 0; at < text.len && !met; at += cut) {
        cut = 1 + (unsigned char)text.ptr[at] % 7;
        cut = cut < text.len - at ? cut : text.len - at;
        met = stops_push(&s, (struct str){text.ptr + at, cut}, &out);
    }
    stops_finish(&s, &out);
    CHECK(met == (end < text.len));
    CHECK(str_equal(buf_str(&out), (struct str){text.ptr, end}));
    stops_release(&s);
    buf_release(&out);
    return 0;
}

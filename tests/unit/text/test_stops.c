/* Stop strings over text that comes in pieces: the same end however it is cut. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "text/stops.h"

/* Pushes `text` in pieces of `size` bytes. */
static void check(const struct str *strings, size_t n, const char *text, size_t size, const char *wanted, bool met)
{
    struct stops s;
    struct buf out;
    bool got = false;
    buf_init(&out, 4096);
    stops_init(&s, strings, n);
    for (size_t at = 0, len = strlen(text); at < len && !got; at += size)
        got = stops_push(&s, (struct str){text + at, size < len - at ? size : len - at}, &out);
    stops_finish(&s, &out);
    assert_int_equal(got, met);
    assert_string_equal(buf_str(&out).ptr, wanted);
    stops_release(&s);
    buf_release(&out);
}

static void test_every_cut(void **state)
{
    const struct str one[] = {STR("stop")}, nested[] = {STR("abcd"), STR("bc")}, same_end[] = {STR("bc"), STR("abc")},
                     letter[] = {STR("\xc3\xa9")};
    for (size_t size = 1; size < 12; size++) {
        check(one, 1, "we sto and st stop here", size, "we sto and st ", true);
        check(one, 1, "never sto", size, "never sto", false);
        check(one, 1, "stop", size, "", true);
        check(nested, 2, "x abcd", size, "x a", true);
        check(same_end, 2, "x abcd", size, "x ", true);
        check(letter, 1, "caf\xc3\xa8 caf\xc3\xa9", size, "caf\xc3\xa8 caf", true);
        check(NULL, 0, "all of it", size, "all of it", false);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_cut)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

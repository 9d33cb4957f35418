/* Counter-based random numbers: the published vectors, and that they spread; clock texts. */
#include "base/clock.h"
#include "base/rand.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* Known answers of Philox4x32-10 from the authors' Random123 distribution (kat_vectors). */
static void test_known_answers(void **state)
{
    (void)state;
    static const struct {
        uint64_t key, stream, counter;
        uint32_t out[4];
    } cases[] = {
        {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {UINT64_MAX, UINT64_MAX, UINT64_MAX, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct rand_block b = rand_philox(cases[i].key, cases[i].stream, cases[i].counter);
        assert_memory_equal(b.word, cases[i].out, sizeof b.word);
    }
}

static void test_uniform(void **state)
{
    (void)state;
    enum { N = 100000, BINS = 64 };
    size_t seen[BINS] = {0};
    double sum = 0, chi = 0;
    for (uint64_t i = 0; i < N; i++) {
        double u = rand_uniform(42, 7, i);
        assert_true(u >= 0 && u < 1);
        sum += u;
        seen[(size_t)(u * BINS)]++;
    }
    for (int i = 0; i < BINS; i++) {
        double expected = (double)N / BINS, off = (double)seen[i] - expected;
        chi += off * off / expected;
    }
    assert_true(sum / N > 0.495 && sum / N < 0.505);
    assert_true(chi < 114); /* 63 degrees of freedom: once in 10,000 */
    assert_true(rand_uniform(1, 2, 3) == rand_uniform(1, 2, 3));
    assert_true(rand_uniform(1, 2, 3) != rand_uniform(2, 2, 3) && rand_uniform(1, 2, 3) != rand_uniform(1, 3, 3));
}

static void test_system(void **state)
{
    (void)state;
    assert_true(rand_system_u64() != rand_system_u64());
    unsigned char bytes[64] = {0}, none[64] = {0};
    rand_system(bytes, sizeof bytes);
    assert_memory_not_equal(bytes, none, sizeof bytes);
}

static void test_clock_text(void **state)
{
    (void)state;
    char text[CLOCK_TEXT_BYTES];
    clock_format_rfc3339(0, text);
    assert_string_equal(text, "1970-01-01T00:00:00.000000Z");
    clock_format_rfc3339(951782399999999000u, text); /* a leap day's last microsecond */
    assert_string_equal(text, "2000-02-28T23:59:59.999999Z");
    clock_format_rfc3339(951782400000001999u, text);
    assert_string_equal(text, "2000-02-29T00:00:00.000001Z");
    uint64_t before = clock_mono_ns();
    assert_true(clock_mono_ns() >= before);
    assert_true(clock_wall_s() > 1700000000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers),
        cmocka_unit_test(test_uniform),
        cmocka_unit_test(test_system),
        cmocka_unit_test(test_clock_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

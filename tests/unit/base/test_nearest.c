/* The name that is nearest to what was written, and none where nothing is near. */
#include "base/nearest.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static const char *among(const char *written, size_t changes_max, const char *const *known, size_t *changes)
{
    struct nearest n = nearest_begin(str_from(written), changes_max);
    for (; *known; known++)
        nearest_try(&n, *known);
    if (changes)
        *changes = n.changes;
    return n.name;
}

static const char *const names[] = {"run", "pull", "list", "ps", "max_tokens", "max_history", NULL};

static void test_slips(void **state)
{
    static const struct {
        const char *written, *meant;
        size_t changes;
    } cases[] = {
        {"rnu", "run", 2},
        {"pul", "pull", 1},
        {"lists", "list", 1},
        {"max_tokens", "max_tokens", 0},
        {"s", "ps", 1},
        {"lsit", "list", 2},
        {"max_token", "max_tokens", 1},
        {"maxtokns", "max_tokens", 2},
        {"mxtokns", "max_tokens", 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t changes = 99;
        const char *got = among(cases[i].written, NEAREST_CHANGES_MAX, names, &changes);
        assert_non_null(got);
        assert_string_equal(got, cases[i].meant);
        assert_int_equal(changes, cases[i].changes);
    }
}

/* Too many changes, more than half of what was written, nothing written, and what no name can be. */
static void test_far(void **state)
{
    static const char *const far[] = {"serve",  "xyz",  "",
                                      "mxtkns", "plxx", "max_tokens_max_tokens_max_tokens_max_tokens_max_tokens_max_tokens"};
    for (size_t i = 0; i < sizeof far / sizeof *far; i++)
        assert_null(among(far[i], NEAREST_CHANGES_MAX, names, NULL));
    assert_null(among("maxtokns", 1, names, NULL));
    assert_null(among("run", 0, (const char *const[]){NULL}, NULL));
    assert_string_equal(among("run", 0, names, NULL), "run");
}

/* The first of several that are as near, whatever comes behind them; a nearer one wins wherever it stands. */
static void test_order(void **state)
{
    static const char *const same[] = {"bat", "cat", "hat", NULL}, *const nearer[] = {"bats", "rats", "rat", "rat", NULL};
    assert_ptr_equal(among("rat", 2, same, NULL), same[0]);
    assert_ptr_equal(among("rat", 2, nearer, NULL), nearer[2]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slips),
        cmocka_unit_test(test_far),
        cmocka_unit_test(test_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

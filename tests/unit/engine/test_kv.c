/* The page ledger, the prefix cache over it, and sequences that hold pages. */
#include "engine/seq.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define PAGES 6
#define T     KV_PAGE_TOKENS

static const struct kv_root plain = {0, 0};

static void open_kv(struct kv *kv)
{
    struct err err = {0};
    assert_true(kv_open(kv, PAGES, &err));
}

static void expect_counts(const struct kv *kv, size_t free_pages, size_t held, size_t cached)
{
    assert_int_equal(kv->n_free, free_pages);
    assert_int_equal(kv->n_held, held);
    assert_int_equal(kv->n_cached, cached);
    assert_int_equal(kv_available(kv), free_pages + cached);
    kv_check(kv);
}

static void test_take_and_drop(void **state)
{
    (void)state;
    struct kv kv;
    bool taken[PAGES] = {false};
    open_kv(&kv);
    expect_counts(&kv, PAGES, 0, 0);
    for (size_t i = 0; i < PAGES; i++) {
        int32_t page = kv_take(&kv);
        assert_in_range(page, 0, PAGES - 1);
        assert_false(taken[page]);
        taken[page] = true;
    }
    assert_int_equal(kv_take(&kv), -1);
    expect_counts(&kv, 0, PAGES, 0);
    kv_hold(&kv, 3);
    kv_drop(&kv, 3);
    expect_counts(&kv, 0, PAGES, 0);
    kv_drop(&kv, 3);
    expect_counts(&kv, 1, PAGES - 1, 0);
    assert_int_equal(kv_take(&kv), 3);
    kv_close(&kv);
}

static void fill(int32_t *ids, size_t n, int32_t first)
{
    for (size_t i = 0; i < n; i++)
        ids[i] = first + (int32_t)i;
}

static void test_find_compares_everything(void **state)
{
    (void)state;
    struct kv kv;
    int32_t ids[T];
    open_kv(&kv);
    fill(ids, T, 5);
    assert_int_equal(kv_find(&kv, plain, 0, ids), -1);
    int32_t page = kv_take(&kv);
    uint64_t serial = kv_remember(&kv, page, plain, 0, ids);
    assert_int_equal(kv_find(&kv, plain, 0, ids), page);
    assert_int_equal(kv_find(&kv, plain, serial, ids), -1);
    assert_int_equal(kv_find(&kv, (struct kv_root){1, 0}, 0, ids), -1);
    assert_int_equal(kv_find(&kv, (struct kv_root){0, 31}, 0, ids), -1);
    for (size_t i = 0; i < T; i++) {
        ids[i]++;
        assert_int_equal(kv_find(&kv, plain, 0, ids), -1);
        ids[i]--;
    }
    int32_t twin = kv_take(&kv); /* the same content computed twice: one is known */
    assert_true(kv_remember(&kv, twin, plain, 0, ids) == serial);
    assert_int_equal(kv_find(&kv, plain, 0, ids), page);
    kv_drop(&kv, twin);
    kv_drop(&kv, page);
    expect_counts(&kv, PAGES - 1, 0, 1);
    kv_close(&kv);
}

/* Cached pages are handed out again when no free one is left, the one unused for longest first. */
static void test_eviction_order(void **state)
{
    (void)state;
    struct kv kv;
    int32_t ids[PAGES][T], pages[PAGES];
    open_kv(&kv);
    for (int32_t i = 0; i < PAGES; i++) {
        fill(ids[i], T, i * 1000);
        pages[i] = kv_take(&kv);
        kv_remember(&kv, pages[i], plain, 0, ids[i]);
    }
    static const int order[PAGES] = {2, 0, 5, 1, 4, 3};
    for (size_t i = 0; i < PAGES; i++)
        kv_drop(&kv, pages[order[i]]);
    expect_counts(&kv, 0, 0, PAGES);
    kv_hold(&kv, pages[2]); /* used again: now the newest */
    kv_drop(&kv, pages[2]);
    for (size_t i = 1; i < PAGES; i++) {
        assert_int_equal(kv_take(&kv), pages[order[i]]);
        assert_int_equal(kv_find(&kv, plain, 0, ids[order[i]]), -1);
    }
    assert_int_equal(kv_find(&kv, plain, 0, ids[2]), pages[2]);
    assert_int_equal(kv_take(&kv), pages[2]);
    expect_counts(&kv, 0, PAGES, 0);
    kv_close(&kv);
}

static void open_seq(struct seq *s, const int32_t *prompt, size_t n, size_t n_max)
{
    assert_true(seq_init(s, prompt, n, n_max));
    s->cache = SEQ_CACHE_USE;
}

static void compute(struct kv *kv, struct seq *s, size_t n)
{
    assert_true(seq_take_pages(kv, s, s->n_computed + n));
    seq_computed(kv, s, n);
}

static void test_prefix_is_shared(void **state)
{
    (void)state;
    struct kv kv;
    struct seq a, b;
    int32_t ids[3 * T];
    open_kv(&kv);
    fill(ids, 3 * T, 1);
    open_seq(&a, ids, 2 * T + 5, 3 * T);
    open_seq(&b, ids, 2 * T, 3 * T);
    compute(&kv, &a, a.n_total - 1);
    assert_int_equal(seq_own_pages(&kv, &a), 3);
    struct seq_cached c = seq_cached(&kv, &b);
    assert_int_equal(c.n_tokens, T); /* the second page would leave nothing to compute */
    assert_int_equal(c.n_idle, 0);
    seq_take_prefix(&kv, &b);
    assert_int_equal(b.n_computed, T);
    assert_int_equal(b.pages[0], a.pages[0]);
    assert_int_equal(seq_own_pages(&kv, &a), 2);
    expect_counts(&kv, PAGES - 3, 3, 0);
    seq_drop(&kv, &a);
    expect_counts(&kv, PAGES - 2, 1, 1);
    seq_drop(&kv, &b);
    expect_counts(&kv, PAGES - 2, 0, 2);
    assert_int_equal(seq_cached(&kv, &b).n_idle, 1);
    b.cache = SEQ_CACHE_WRITE;
    assert_int_equal(seq_cached(&kv, &b).n_tokens, 0);
    b.cache = SEQ_CACHE_USE;
    b.root.salt = 9;
    assert_int_equal(seq_cached(&kv, &b).n_tokens, 0);
    seq_release(&a);
    seq_release(&b);
    kv_close(&kv);
}

static void test_pages_run_out(void **state)
{
    (void)state;
    struct kv kv;
    struct seq a, b;
    int32_t ids[PAGES * T];
    open_kv(&kv);
    fill(ids, PAGES * T, 1);
    open_seq(&a, ids, 4 * T, 4 * T);
    open_seq(&b, ids + 1, 4 * T, 4 * T);
    compute(&kv, &a, 4 * T - 1);
    assert_false(seq_take_pages(&kv, &b, 3 * T));
    assert_int_equal(b.n_pages, 2);
    expect_counts(&kv, 0, PAGES, 0);
    seq_drop(&kv, &a);
    assert_true(seq_take_pages(&kv, &b, 3 * T));
    seq_drop(&kv, &b);
    assert_int_equal(kv.n_held, 0);
    seq_release(&a);
    seq_release(&b);
    kv_close(&kv);
}

static void test_prefix_hashes(void **state)
{
    (void)state;
    struct seq a, b;
    int32_t ids[3 * T];
    fill(ids, 3 * T, 1);
    open_seq(&a, ids, 3 * T, 3 * T);
    ids[2 * T - 1]++;
    open_seq(&b, ids, 3 * T - 1, 3 * T);
    assert_true(a.prefix[0] == b.prefix[0]);
    assert_true(a.prefix[1] != b.prefix[1] && a.prefix[2] != a.prefix[1]);
    seq_release(&a);
    seq_release(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_take_and_drop),  cmocka_unit_test(test_find_compares_everything),
        cmocka_unit_test(test_eviction_order), cmocka_unit_test(test_prefix_is_shared),
        cmocka_unit_test(test_pages_run_out),  cmocka_unit_test(test_prefix_hashes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

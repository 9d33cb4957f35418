/* Ranges against a plain array of bytes; journals cut and altered at every byte. */
#include "hub/journal.h"

#include "base/rand.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define SIZE 200
#define ETAG "0123456789abcdef"

static void check_against(const struct ranges *r, const char have[SIZE])
{
    uint64_t total = 0;
    for (size_t i = 0; i < SIZE; i++) {
        uint64_t to = ranges_covered_to(r, i);
        total += have[i];
        assert_int_equal(to > i, have[i]);
        struct range hole;
        size_t first = i;
        while (first < SIZE && have[first])
            first++;
        assert_int_equal(ranges_hole(r, i, SIZE, &hole), first < SIZE);
        if (first < SIZE) {
            size_t end = first;
            while (end < SIZE && !have[end])
                end++;
            assert_true(hole.begin == first && hole.end == end);
        }
    }
    assert_int_equal(ranges_total(r), total);
    for (size_t i = 1; i < r->n; i++)
        assert_true(r->items[i - 1].end < r->items[i].begin);
}

static void ranges_are_a_set(void **state)
{
    for (uint64_t seed = 0; seed < 200; seed++) {
        struct ranges r = {0};
        char have[SIZE] = {0};
        for (uint64_t i = 0; i < 12; i++) {
            uint64_t a = (uint64_t)(rand_uniform(seed, 0, i) * SIZE), n = (uint64_t)(rand_uniform(seed, 1, i) * 30);
            uint64_t b = a + n < SIZE ? a + n : SIZE;
            assert_true(ranges_add(&r, a, b));
            memset(have + a, 1, b - a);
            check_against(&r, have);
        }
        ranges_release(&r);
    }
}

static void too_many_ranges(void **state)
{
    struct ranges r = {0};
    for (uint64_t i = 0; i < JOURNAL_RANGES_MAX; i++)
        assert_true(ranges_add(&r, 3 * i, 3 * i + 1));
    assert_false(ranges_add(&r, 1000000, 1000001));
    assert_true(ranges_add(&r, 0, 1000000)); /* merging always may */
    assert_int_equal(r.n, 1);
    ranges_release(&r);
}

static struct ranges example(void)
{
    struct ranges r = {0};
    ranges_add(&r, 0, 100);
    ranges_add(&r, 4096, 5000000000u);
    ranges_add(&r, 5000000001u, 6000000000u);
    return r;
}

static void there_and_back(void **state)
{
    struct ranges r = example(), back;
    struct buf b;
    buf_init(&b, JOURNAL_BYTES_MAX);
    assert_true(journal_format(&r, 6000000000u, ETAG, &b));
    assert_true(journal_parse(buf_str(&b), 6000000000u, ETAG, &back));
    assert_int_equal(back.n, r.n);
    assert_memory_equal(back.items, r.items, r.n * sizeof *r.items);
    ranges_release(&back);
    assert_false(journal_parse(buf_str(&b), 6000000001u, ETAG, &back));
    assert_false(journal_parse(buf_str(&b), 6000000000u, ETAG "0", &back));
    for (size_t n = 0; n < b.len; n++)
        assert_false(journal_parse((struct str){b.data, n}, 6000000000u, ETAG, &back));
    for (size_t i = 0; i < b.len; i++) {
        for (int bit = 0; bit < 8; bit++) {
            b.data[i] ^= (char)(1 << bit);
            assert_false(journal_parse(buf_str(&b), 6000000000u, ETAG, &back));
            assert_true(back.n == 0 && back.items == NULL);
            b.data[i] ^= (char)(1 << bit);
        }
    }
    assert_true(buf_append_str(&b, STR("x")));
    assert_false(journal_parse(buf_str(&b), 6000000000u, ETAG, &back));
    buf_release(&b);
    ranges_release(&r);
}

/* A checksum that fits does not make up for ranges that are none. */
static void lies(void **state)
{
    static const struct range bad[][2] = {{{5, 5}}, {{6, 5}}, {{0, SIZE + 1}}, {{10, 20}, {20, 30}}, {{10, 20}, {5, 8}}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct ranges r = {(struct range *)bad[i], bad[i][1].end ? 2 : 1, 2}, back;
        struct buf b;
        buf_init(&b, JOURNAL_BYTES_MAX);
        assert_true(journal_format(&r, SIZE, ETAG, &b));
        assert_false(journal_parse(buf_str(&b), SIZE, ETAG, &back));
        buf_release(&b);
    }
}

static void on_disk(void **state)
{
    char dir[] = "/tmp/inferd-journal-XXXXXX", path[64];
    struct ranges r = example(), back;
    struct err err = {0};
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/j", dir);
    for (int kind = JOURNAL_SYNCED; kind <= JOURNAL_LATE; kind++) {
        assert_false(journal_read(path, 6000000000u, ETAG, kind, &back));
        assert_true(journal_write(path, &r, 6000000000u, ETAG, kind, &err));
        assert_true(journal_read(path, 6000000000u, ETAG, kind, &back));
        assert_int_equal(ranges_total(&back), ranges_total(&r));
        ranges_release(&back);
        assert_false(journal_read(path, 6000000000u, ETAG, JOURNAL_SYNCED + JOURNAL_LATE - kind, &back));
        journal_remove(path);
    }
    /* a late journal of another run of the system */
    struct buf b;
    buf_init(&b, JOURNAL_BYTES_MAX);
    assert_true(journal_format(&r, 6000000000u, ETAG " 00000000-0000-0000-0000-000000000000", &b));
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_int_equal(write(fd, b.data, b.len), b.len);
    close(fd);
    assert_false(journal_read(path, 6000000000u, ETAG, JOURNAL_LATE, &back));
    buf_release(&b);
    journal_remove(path);
    snprintf(path, sizeof path, "%s/none/j", dir);
    assert_false(journal_write(path, &r, 6000000000u, ETAG, JOURNAL_SYNCED, &err));
    assert_non_null(strstr(err.text, path));
    ranges_release(&r);
    assert_int_equal(rmdir(dir), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(ranges_are_a_set), cmocka_unit_test(too_many_ranges),
                                       cmocka_unit_test(there_and_back), cmocka_unit_test(lies), cmocka_unit_test(on_disk)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

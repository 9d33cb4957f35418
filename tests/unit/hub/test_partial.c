/* Files on their way: bytes in any order, resumed, locked, swept; never a blob with the wrong bytes. */
#include "hub/partial.h"

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

#define SIZE 100000

static char data[SIZE], dir[64], sha256[65], git[65];
static struct cache_repo repo;

static void hash(enum digest_kind kind, char out[65])
{
    bool same;
    struct digest *d = digest_new(kind, SIZE, NULL);
    assert_true(digest_add(d, data, SIZE, NULL) && digest_end(d, "", out, &same, NULL));
    digest_free(d);
}

static int setup(void **state)
{
    snprintf(dir, sizeof dir, "/tmp/inferd-partial-XXXXXX");
    for (size_t i = 0; i < SIZE; i++)
        data[i] = (char)(rand_uniform(7, 0, i) * 256);
    hash(DIGEST_SHA256, sha256);
    hash(DIGEST_GIT_SHA1, git);
    return mkdtemp(dir) && cache_repo_init(&repo, dir, "org/name", NULL) ? 0 : -1;
}

static int teardown(void **state)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}

static void put(struct partial *p, uint64_t begin, uint64_t end)
{
    assert_true(partial_write(p, begin, data + begin, end - begin, NULL));
    assert_true(ranges_add(&p->done, begin, end));
}

static bool exists(const char *name)
{
    char path[HUB_DIR_BYTES_MAX + 256];
    struct stat st;
    snprintf(path, sizeof path, "%s/blobs/%s", repo.dir, name);
    return lstat(path, &st) == 0;
}

static bool blob_is_whole(const char *etag)
{
    char path[HUB_DIR_BYTES_MAX + 256];
    struct buf b;
    snprintf(path, sizeof path, "%s/blobs/%s", repo.dir, etag);
    buf_init(&b, 2 * SIZE);
    bool same = cache_read(path, SIZE + 1, &b) && b.len == SIZE && memcmp(b.data, data, SIZE) == 0;
    buf_release(&b);
    return same;
}

static void finish(struct partial *p, bool want_same)
{
    char got[65];
    bool same;
    while (p->hashed < SIZE)
        assert_true(partial_hash(p, SIZE, 12345, NULL));
    assert_true(partial_finish(p, &same, got, NULL));
    assert_int_equal(same, want_same);
}

static void any_order(void **state)
{
    const char *const hashes[] = {sha256, git};
    for (size_t i = 0; i < 2; i++) {
        struct partial p;
        assert_int_equal(partial_open(&p, &repo, hashes[i], hashes[i], SIZE, NULL), PARTIAL_OPEN);
        put(&p, 50000, SIZE);
        put(&p, 0, 10000);
        assert_true(partial_hash(&p, ranges_covered_to(&p.done, 0), 1 << 20, NULL));
        assert_int_equal(p.hashed, 10000);
        put(&p, 10000, 50000);
        assert_false(exists(hashes[i]));
        finish(&p, true);
        partial_close(&p);
        assert_true(blob_is_whole(hashes[i]));
        assert_int_equal(partial_open(&p, &repo, hashes[i], hashes[i], SIZE, NULL), PARTIAL_WHOLE);
    }
}

/* What a process that ended left is taken up: what was synced, what the late journal knows, nothing else. */
static void resumed(void **state)
{
    struct partial p;
    struct ranges also = {0};
    assert_int_equal(partial_open(&p, &repo, sha256, sha256, SIZE, NULL), PARTIAL_OPEN);
    put(&p, 0, 1000);
    assert_true(partial_save(&p, &also, PARTIAL_SYNC, NULL));
    put(&p, 5000, 6000);
    ranges_add(&also, 7000, 8000);
    assert_true(partial_write(&p, 7000, data + 7000, 1000, NULL));
    assert_true(partial_save(&p, &also, PARTIAL_LATE, NULL));
    put(&p, 9000, 9999);
    partial_close(&p);
    assert_int_equal(partial_open(&p, &repo, sha256, sha256, SIZE, NULL), PARTIAL_OPEN);
    assert_int_equal(ranges_total(&p.done), 3000);
    put(&p, 1000, SIZE);
    finish(&p, true);
    partial_close(&p);
    ranges_release(&also);
    assert_true(blob_is_whole(sha256));
    assert_false(exists("x"));
    char name[128];
    snprintf(name, sizeof name, "%s.inferd.journal.incomplete", sha256);
    assert_false(exists(name));
}

/* Journals of another size of the data file, damaged ones: nothing is believed. */
static void not_believed(void **state)
{
    struct partial p;
    struct ranges none = {0};
    char path[HUB_DIR_BYTES_MAX + 256];
    for (int i = 0; i < 3; i++) {
        assert_int_equal(partial_open(&p, &repo, sha256, sha256, SIZE, NULL), PARTIAL_OPEN);
        put(&p, 0, 1000);
        assert_true(partial_save(&p, &none, PARTIAL_SYNC, NULL));
        snprintf(path, sizeof path, "%s", i == 0 ? p.path : p.journal);
        partial_close(&p);
        if (i == 2)
            unlink(path);
        else
            assert_int_equal(truncate(path, 30), 0);
        assert_int_equal(partial_open(&p, &repo, sha256, sha256, SIZE, NULL), PARTIAL_OPEN);
        assert_int_equal(ranges_total(&p.done), 0);
        partial_discard(&p);
        partial_close(&p);
    }
}

static void wrong_bytes_make_no_blob(void **state)
{
    struct partial p;
    assert_int_equal(partial_open(&p, &repo, sha256, sha256, SIZE, NULL), PARTIAL_OPEN);
    put(&p, 0, SIZE);
    data[777] ^= 1;
    assert_true(partial_write(&p, 777, data + 777, 1, NULL));
    data[777] ^= 1;
    finish(&p, false);
    assert_false(exists(sha256));
    assert_true(partial_reset(&p, NULL));
    assert_int_equal(ranges_total(&p.done), 0);
    put(&p, 0, SIZE);
    finish(&p, true);
    partial_close(&p);
    assert_true(blob_is_whole(sha256));
}

static void one_at_a_time(void **state)
{
    struct partial a, b;
    assert_int_equal(partial_open(&a, &repo, sha256, sha256, SIZE, NULL), PARTIAL_OPEN);
    assert_int_equal(partial_open(&b, &repo, sha256, sha256, SIZE, NULL), PARTIAL_BUSY);
    assert_int_equal(partial_bytes_missing(&repo, sha256, SIZE), SIZE);
    put(&a, 0, SIZE);
    assert_int_equal(partial_bytes_missing(&repo, sha256, SIZE), 0);
    partial_sweep(&repo, sha256); /* not while it is held */
    finish(&a, true);
    partial_close(&a);
    assert_int_equal(partial_open(&b, &repo, sha256, sha256, SIZE, NULL), PARTIAL_WHOLE);
    char name[128], path[HUB_DIR_BYTES_MAX + 256];
    snprintf(name, sizeof name, "%s.inferd.incomplete", sha256);
    snprintf(path, sizeof path, "%s/blobs/%s", repo.dir, name);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    partial_sweep(&repo, sha256);
    assert_false(exists(name));
    assert_true(blob_is_whole(sha256));
}

static void unusable_places(void **state)
{
    struct partial p;
    struct err err = {0};
    char path[HUB_DIR_BYTES_MAX + 256];
    snprintf(path, sizeof path, "%s/blobs", repo.dir);
    assert_true(cache_make_parent(path, NULL));
    close(open(path, O_CREAT | O_WRONLY, 0600)); /* a file where a folder should be */
    assert_int_equal(partial_open(&p, &repo, sha256, sha256, SIZE, &err), PARTIAL_FAILED);
    assert_int_equal(err.code, ERR_IO);
    assert_non_null(strstr(err.text, "blobs"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(any_order, setup, teardown),
        cmocka_unit_test_setup_teardown(resumed, setup, teardown),
        cmocka_unit_test_setup_teardown(not_believed, setup, teardown),
        cmocka_unit_test_setup_teardown(wrong_bytes_make_no_blob, setup, teardown),
        cmocka_unit_test_setup_teardown(one_at_a_time, setup, teardown),
        cmocka_unit_test_setup_teardown(unusable_places, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

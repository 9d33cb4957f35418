/* Hashing on a thread of its own: files that grow at random, are dropped and taken up again, or cannot be read. */
#include "hub/hasher.h"
#include "base/rand.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>
#include <openssl/sha.h>
#include <pthread.h>

#define N_FILES 5
#define SIZE    ((size_t)9 << 20)

static char folder[64];
static struct cache_repo repo;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t told = PTHREAD_COND_INITIALIZER;
static unsigned n_told;

static void on_caught_up(void *user)
{
    (void)user;
    pthread_mutex_lock(&lock);
    n_told++;
    pthread_cond_signal(&told);
    pthread_mutex_unlock(&lock);
}

static int set_up(void **state)
{
    (void)state;
    struct err err;
    snprintf(folder, sizeof folder, "/tmp/inferd-hasher-XXXXXX");
    assert_non_null(mkdtemp(folder));
    assert_true(cache_repo_init(&repo, folder, "acme/hashed", &err));
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static char *make_bytes(uint64_t seed, char hex[65])
{
    char *bytes = malloc(SIZE);
    unsigned char raw[32];
    assert_non_null(bytes);
    for (size_t i = 0; i < SIZE; i += 8) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        memcpy(bytes + i, &seed, 8);
    }
    SHA256((const unsigned char *)bytes, SIZE, raw);
    for (size_t i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", raw[i]);
    return bytes;
}

/* Until it is hashed to `upto`; false where it failed. */
static bool hash_to(struct hasher *h, struct partial *p, uint64_t upto, struct err *err)
{
    for (;;) {
        uint64_t hashed;
        pthread_mutex_lock(&lock);
        unsigned seen = n_told;
        pthread_mutex_unlock(&lock);
        if (!hasher_want(h, p, upto, &hashed, err))
            return false;
        assert_true(hashed <= upto);
        if (hashed == upto)
            return true;
        pthread_mutex_lock(&lock);
        while (seen == n_told)
            pthread_cond_wait(&told, &lock);
        pthread_mutex_unlock(&lock);
    }
}

static void several_at_once(void **state)
{
    (void)state;
    struct err err = {0};
    struct partial p[N_FILES];
    char *bytes[N_FILES], hash[N_FILES][65], got[65];
    uint64_t at[N_FILES] = {0}, seed = 7, hashed;
    struct hasher *h = hasher_open(on_caught_up, NULL, &err);
    assert_non_null(h);
    for (size_t i = 0; i < N_FILES; i++) {
        bytes[i] = make_bytes(i + 1, hash[i]);
        assert_int_equal(partial_open(&p[i], &repo, hash[i], hash[i], SIZE, &err), PARTIAL_OPEN);
    }
    for (size_t n_open = N_FILES; n_open > 0;) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        size_t i = (size_t)(seed >> 40) % N_FILES, len = (size_t)(seed >> 20) % (SIZE / 16);
        len = len < SIZE - at[i] ? len : SIZE - at[i];
        if (at[i] == SIZE)
            continue;
        assert_true(partial_write(&p[i], at[i], bytes[i] + at[i], len, &err));
        at[i] += len;
        assert_true(hasher_want(h, &p[i], at[i], &hashed, &err));
        if (seed >> 60 == 0) { /* dropped in the middle: what is hashed stays hashed */
            hasher_drop(h, &p[i]);
            assert_true(p[i].hashed <= at[i] && p[i].hashed >= hashed);
        }
        if (seed >> 60 == 1) { /* back to its start */
            hasher_drop(h, &p[i]);
            assert_true(partial_reset(&p[i], &err));
            at[i] = 0;
        }
        n_open -= at[i] == SIZE;
    }
    for (size_t i = 0; i < N_FILES; i++) {
        bool same = false;
        assert_true(hash_to(h, &p[i], SIZE, &err));
        hasher_drop(h, &p[i]);
        assert_true(partial_finish(&p[i], &same, got, &err));
        assert_true(same);
        partial_close(&p[i]);
        free(bytes[i]);
    }
    hasher_close(h);
}

static void cannot_be_read(void **state)
{
    (void)state;
    struct err err = {0};
    struct partial p;
    uint64_t hashed;
    char hash[65];
    free(make_bytes(99, hash));
    struct hasher *h = hasher_open(on_caught_up, NULL, &err);
    assert_int_equal(partial_open(&p, &repo, hash, hash, SIZE, &err), PARTIAL_OPEN);
    assert_int_equal(ftruncate(p.fd, 1000), 0);
    assert_false(hash_to(h, &p, SIZE, &err));
    assert_int_equal(err.code, ERR_IO);
    assert_non_null(strstr(err.text, p.path));
    assert_false(hasher_want(h, &p, SIZE, &hashed, &err)); /* and it stays so */
    hasher_drop(h, &p);
    assert_true(partial_reset(&p, &err));
    assert_true(hasher_want(h, &p, 0, &hashed, &err));
    assert_int_equal(hashed, 0);
    hasher_close(h); /* with a file that it still has */
    partial_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(several_at_once), cmocka_unit_test(cannot_be_read)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

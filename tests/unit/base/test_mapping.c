/* Files that are cut while they are mapped: zeros and a flag; a SIGBUS of others still ends the process. */
#include "base/mapping.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGE  ((size_t)4096)
#define PAGES ((size_t)64)

static int open_file(size_t bytes)
{
    char page[PAGE];
    FILE *f = tmpfile();
    assert_non_null(f);
    memset(page, 7, sizeof page);
    for (size_t i = 0; i < bytes; i += PAGE)
        assert_int_equal(fwrite(page, 1, bytes - i < PAGE ? bytes - i : PAGE, f), bytes - i < PAGE ? bytes - i : PAGE);
    fflush(f);
    int fd = dup(fileno(f));
    fclose(f);
    return fd;
}

static void reads_zeros_where_a_file_was_cut(void)
{
    int fd = open_file(PAGES * PAGE - 100), other_fd = open_file(PAGE);
    const unsigned char *p = mapping_open(fd, PAGES * PAGE - 100), *other = mapping_open(other_fd, PAGE);
    assert_true(p && other && mapping_is_whole(p));
    assert_int_equal(p[PAGES * PAGE - 101], 7);
    assert_int_equal(ftruncate(fd, PAGE + 1), 0);
    assert_true(mapping_is_whole(p)); /* nothing was missed yet */
    assert_int_equal(p[3 * PAGE + 5], 0);
    assert_int_equal(p[2 * PAGE], 0);
    assert_int_equal(p[PAGES * PAGE - 101], 0);
    assert_int_equal(p[PAGE - 1], 7);
    assert_true(!mapping_is_whole(p) && mapping_is_whole(other));
    mapping_close(p, PAGES * PAGE - 100);
    mapping_close(other, PAGE);
    p = mapping_open(other_fd, PAGE); /* a slot that is used again */
    assert_true(p && mapping_is_whole(p) && p[0] == 7);
    mapping_close(p, PAGE);
    close(fd);
    close(other_fd);
}

static void *read_all(void *arg)
{
    const unsigned char *p = arg;
    uintptr_t sum = 0;
    for (size_t i = 0; i < PAGES; i++)
        sum += p[i * PAGE];
    return (void *)sum;
}

static void serves_many_mappings_and_threads(void)
{
    enum { FILES = 200, THREADS = 4 };
    const unsigned char *p[FILES];
    int fd = open_file(PAGES * PAGE);
    for (size_t i = 0; i < FILES; i++)
        assert_non_null(p[i] = mapping_open(fd, PAGES * PAGE));
    assert_int_equal(ftruncate(fd, PAGE), 0);
    for (size_t i = 0; i < FILES; i++) {
        pthread_t threads[THREADS];
        void *sum;
        for (size_t k = 0; k < THREADS; k++)
            assert_int_equal(pthread_create(&threads[k], NULL, read_all, (void *)p[i]), 0);
        for (size_t k = 0; k < THREADS; k++) {
            pthread_join(threads[k], &sum);
            assert_int_equal((uintptr_t)sum, 7);
        }
        assert_false(mapping_is_whole(p[i]));
        mapping_close(p[i], PAGES * PAGE);
    }
    close(fd);
}

/* How a process ends that meets a fault beside our mappings. */
static int end_of_a_foreign_fault(void)
{
    pid_t child = fork();
    if (child == 0) {
        setrlimit(RLIMIT_CORE, &(struct rlimit){0});
        char name[] = "/tmp/inferd-mapping-XXXXXX";
        int fd = mkstemp(name);
        unlink(name);
        if (fd < 0 || ftruncate(fd, 2 * (off_t)PAGE) != 0 || !mapping_open(fd, 2 * PAGE))
            _exit(0);
        const volatile unsigned char *foreign = mmap(NULL, 2 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
        if ((void *)foreign == MAP_FAILED || ftruncate(fd, 0) != 0)
            _exit(0);
        _exit(foreign[PAGE]);
    }
    int status = 0;
    return waitpid(child, &status, 0) == child ? status : 0;
}

static int foreign_end; /* taken before cmocka sets its handlers */

static void leaves_other_mappings_alone(void)
{
    assert_false(WIFEXITED(foreign_end) && WEXITSTATUS(foreign_end) == 0); /* the sanitizers exit with a report */
}

/* One test: cmocka sets a handler of its own in front of each. */
static void test_mappings(void **state)
{
    reads_zeros_where_a_file_was_cut();
    serves_many_mappings_and_threads();
    leaves_other_mappings_alone();
}

int main(void)
{
    foreign_end = end_of_a_foreign_fault();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mappings)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

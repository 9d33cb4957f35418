/* Names of models where memory is short: nothing is left half made. strdup goes through the wrapper below (--wrap, see the
 * Makefile). */
#include "serve/names.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define COMMIT "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

static unsigned fail_at, n_calls; /* the call that fails, counted from 1; 0: none */

char *__real_strdup(const char *s);
char *__wrap_strdup(const char *s);

char *__wrap_strdup(const char *s)
{
    return ++n_calls == fail_at ? NULL : __real_strdup(s);
}

static char dir[64];

static void write_file(const char *below, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, below);
    for (char *p = path + strlen(dir) + 1; (p = strchr(p, '/')); *p++ = '/') {
        *p = 0;
        mkdir(path, 0755);
    }
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static int setup(void **state)
{
    snprintf(dir, sizeof dir, "/tmp/inferd-names-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    write_file("hub/models--org--name/refs/main", COMMIT);
    write_file("hub/models--org--name/snapshots/" COMMIT "/config.json", "{}");
    write_file("hub/models--org--name/snapshots/" COMMIT "/tokenizer.json", "{}");
    write_file("hub/models--org--name/snapshots/" COMMIT "/model.safetensors", "x");
    return 0;
}

static int teardown(void **state)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}

static void a_model_of_the_hub(void **state)
{
    char hub[80];
    struct err err = {0};
    struct catalog_entry e;
    struct catalog all;
    snprintf(hub, sizeof hub, "%s/hub", dir);
    setenv("HF_HUB_CACHE", hub, 1);
    struct names *n = names_open(dir, dir, &err);
    assert_non_null(n);
    n_calls = fail_at = 0;
    if (!names_find(n, STR("org/name"), &e, &err))
        fail_msg("%s", err.text);
    assert_string_equal(e.id, "org/name");
    catalog_entry_release(&e);
    unsigned most = n_calls;
    assert_true(most >= 2); /* else the wrapper is not there */
    for (unsigned at = most - 1; at <= most; at++) {
        n_calls = 0, fail_at = at;
        assert_false(names_find(n, STR("org/name"), &e, &err));
        assert_int_equal(err.code, ERR_MEMORY);
        assert_null(e.id);
        assert_null(e.path);
        n_calls = 0;
        assert_true(names_list(n, &all, &err)); /* what there is memory for */
        assert_true(all.n <= 1);
        catalog_release(&all);
    }
    names_close(n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_model_of_the_hub)};
    return cmocka_run_group_tests(tests, setup, teardown);
}

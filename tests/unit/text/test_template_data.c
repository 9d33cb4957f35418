/* Small Jinja programs of another implementation's tests (jinja_unit.json), where ../shared/data is there. Where that one
 * answers otherwise than Jinja itself, programs.json has what Jinja as transformers sets it up gives (null: an error). Whole
 * published templates are in test_template.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "text/template.h"

#define GOLDEN    "tests/golden/templates/programs.json"
#define DATA_DIR  "../shared/data/chat_templates/"
#define OUT_BYTES (1u << 20)
#define CLOCK_S   1752148800 /* 2025-07-10 12:00 UTC */

/* NUL as an object's key, which jansson does not take, becomes U+0001 in the program and in its result alike. */
static json_t *load(const char *path)
{
    json_error_t at;
    char part[65536];
    struct buf text;
    FILE *f = fopen(path, "rb");
    if (!f)
        skip();
    buf_init(&text, OUT_BYTES);
    for (size_t n; (n = fread(part, 1, sizeof part, f)) > 0;)
        buf_append(&text, part, n);
    fclose(f);
    for (char *nul = text.data; nul && (nul = strstr(nul, "\\u0000")); nul += 6)
        nul[5] = '1';
    json_t *root = json_loadb(text.data, text.len, 0, &at);
    if (!root)
        print_error("%s: %s, line %d\n", path, at.text, at.line);
    assert_non_null(root);
    buf_release(&text);
    return root;
}

static struct str text_of(const json_t *v)
{
    return (struct str){json_string_value(v), json_string_length(v)};
}

static bool renders(const char *name, const json_t *source, const json_t *context, const json_t *wanted)
{
    struct err err = {0};
    struct buf out;
    struct template_clock clock = {CLOCK_S};
    buf_init(&out, OUT_BYTES);
    struct template *t = template_compile(text_of(source), &err);
    bool ok = t && template_render(t, context, &clock, &out, &err);
    bool same = json_is_null(wanted) ? !ok : ok && str_equal(buf_str(&out), text_of(wanted));
    if (!same)
        print_error("%s:\n  wanted '%.300s'\n  got    '%.300s'\n", name, json_string_value(wanted),
                    ok ? buf_str(&out).ptr : err.text);
    buf_release(&out);
    template_free(t);
    return same;
}

static void test_programs(void **state)
{
    json_t *root = load(DATA_DIR "jinja_unit.json"), *other = load(GOLDEN), *one;
    const char *name;
    size_t n_bad = 0;
    json_object_foreach(root, name, one)
    {
        const json_t *wanted = json_object_get(other, name);
        n_bad += !renders(name, json_object_get(one, "template"), json_object_get(one, "context"),
                          wanted ? wanted : json_object_get(one, "expected"));
    }
    assert_true(json_object_size(root) > 70);
    json_decref(root);
    json_decref(other);
    assert_int_equal(n_bad, 0);
}

int main(void)
{
    setenv("TZ", "UTC", 1);
    tzset();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_programs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

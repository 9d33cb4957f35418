/* Conversations: joining what is kept with what comes, and cutting. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "serve/history.h"

#include <string.h>

/* "s:x u:a" -> messages; and back. s system, d developer, u user, a assistant, t tool. */
static json_t *read(const char *text)
{
    static const char *const roles[128] = {
        ['s'] = "system", ['d'] = "developer", ['u'] = "user", ['a'] = "assistant", ['t'] = "tool"};
    json_t *out = json_array();
    char content[2] = "";
    for (const char *p = text; *p; p += p[3] ? 4 : 3) {
        content[0] = p[2];
        json_array_append_new(out, json_pack("{s:s, s:s}", "role", roles[(unsigned char)p[0]], "content", content));
    }
    return out;
}

static void write(const json_t *messages, char out[128])
{
    size_t i;
    json_t *m;
    out[0] = 0;
    json_array_foreach((json_t *)messages, i, m)
    {
        char part[5] = {json_string_value(json_object_get(m, "role"))[0], ':',
                        json_string_value(json_object_get(m, "content"))[0], 0, 0};
        strcat(out, i ? " " : "");
        strcat(out, part);
    }
}

static void joins(void **state)
{
    (void)state;
    static const struct {
        const char *kept, *added, *want;
    } cases[] = {
        {"", "u:1", "u:1"},
        {"u:1 a:2", "u:3", "u:1 a:2 u:3"},
        {"s:x u:1 a:2", "u:3", "s:x u:1 a:2 u:3"},
        {"s:x u:1 a:2", "s:y u:3", "s:y u:1 a:2 u:3"},
        {"s:x u:1 a:2", "d:y u:3", "d:y u:1 a:2 u:3"},
        {"a:2 u:3 a:4", "u:5", "u:3 a:4 u:5"}, /* its question was cut */
        {"t:1 a:2", "u:5", "u:5"},
        {"s:x a:2", "u:5", "s:x u:5"},
        {"u:1 a:2 t:3 a:4", "t:5", "u:1 a:2 t:3 a:4 t:5"},
        {"u:1", "u:3 s:y", "s:y u:1 u:3"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *kept = read(cases[i].kept), *added = read(cases[i].added), *all = history_join(kept, added);
        char text[128];
        write(all, text);
        assert_string_equal(text, cases[i].want);
        json_decref(kept);
        json_decref(added);
        json_decref(all);
    }
    json_t *added = read("u:1"), *all = history_join(NULL, added);
    assert_int_equal(json_array_size(all), 1);
    json_decref(added);
    json_decref(all);
}

static void trims(void **state)
{
    (void)state;
    static const struct {
        const char *all;
        int64_t max;
        const char *want;
        size_t left;
    } cases[] = {
        {"s:x u:1 a:2 u:3 a:4", -1, "s:x u:1 a:2 u:3 a:4", 4},
        {"s:x u:1 a:2 u:3 a:4", 4, "s:x u:1 a:2 u:3 a:4", 4},
        {"s:x u:1 a:2 u:3 a:4", 3, "s:x a:2 u:3 a:4", 3},
        {"s:x u:1 a:2 u:3 a:4", 0, "s:x", 0},
        {"u:1 a:2", 1, "a:2", 1},
        {"", 3, "", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *all = read(cases[i].all);
        char text[128];
        assert_int_equal(history_trim(all, cases[i].max), cases[i].left);
        write(all, text);
        assert_string_equal(text, cases[i].want);
        json_decref(all);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(joins), cmocka_unit_test(trims)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* JSON read in place against jansson: both take the same texts and find the same in them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "text/json_scan.h"

#include <jansson.h>

#define ROUNDS 200000

/* {"text": integer, ...} as a tree; NULL: it is not that. *passed: a value was passed by without a look inside. */
static json_t *scan_object(struct str text, bool *passed)
{
    struct json_scan s;
    json_t *root = json_object();
    *passed = false;
    json_scan_init(&s, text, 64);
    for (json_scan_enter(&s, '{'); json_scan_more(&s, '}');) {
        struct str name = json_scan_name(&s);
        int64_t v = json_scan_integer(&s);
        *passed |= v < 0;
        json_object_setn_new(root, name.ptr, name.len, json_integer(v));
    }
    if (json_scan_ended(&s) && !*passed) {
        json_scan_release(&s);
        return root;
    }
    json_scan_release(&s);
    json_decref(root);
    return NULL;
}

/* The same by jansson. */
static json_t *tree_object(struct str text)
{
    json_t *root = json_loadb(text.ptr, text.len, JSON_ALLOW_NUL, NULL), *v;
    const char *key;
    bool ok = json_is_object(root);
    json_object_foreach(root, key, v) ok &= json_is_integer(v) && json_integer_value(v) >= 0;
    if (ok)
        return root;
    json_decref(root);
    return NULL;
}

static void expect_same(struct str text)
{
    bool passed;
    json_t *a = scan_object(text, &passed), *b = tree_object(text);
    if ((!a != !b && !passed) || (a && !json_equal(a, b))) {
        print_error("'%.*s': %s in place, %s as a tree\n", (int)text.len, text.ptr, a ? "read" : "refused",
                    b ? "read" : "refused");
        fail();
    }
    json_decref(a);
    json_decref(b);
}

static const char *const TEXTS[] = {
    "{}",
    " { } ",
    "{\"a\":1,\"b\":22,\"\":0}",
    "\n{ \"\\u0120the\" : 5 ,\t\"\\ud83d\\ude00\":6, \"\\\"\\\\\\/\\b\\f\\n\\r\\t\":7 }\r\n",
    "{\"\xc4\xa0x\":123456,\"\xf0\x9f\x98\x80\":999999999999999999,\"a\":1,\"a\":2}",
    "{\"a\":[1,{\"b\":\"]\"}],\"c\":3}",
    "{\"a\":-1,\"b\":1.5,\"c\":true}",
    "{\"a\":01}",
    "{\"a\":1,}",
    "{,\"a\":1}",
    "{\"a\" 1}",
    "{\"a\":1 \"b\":2}",
    "{\"a\":1}}",
    "{\"\\ud83d\":1}",
    "{\"\\ude00\":1}",
    "{\"\\ud83dx\":1}",
    "{\"\\u12g4\":1}",
    "{\"\\x\":1}",
    "{\"a\n\":1}",
    "{\"\xff\":1}",
    "{\"\xed\xa0\x80\":1}",
    "{\"\xc0\x80\":1}",
    "{\"a\":}",
    "{\"a\":1",
    "{\"a",
    "",
    "[]",
};

static void test_texts(void **state)
{
    for (size_t i = 0; i < sizeof TEXTS / sizeof *TEXTS; i++) {
        struct str text = str_from(TEXTS[i]);
        for (size_t n = 0; n <= text.len; n++)
            expect_same((struct str){text.ptr, n});
    }
}

/* Splitmix. */
static uint64_t next(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* One to three bytes are changed to what means something, or to anything. */
static void test_changed(void **state)
{
    static const char special[] = "{}[],:\"\\ud8e0019-. \n\xc4\xa0\xf0";
    uint64_t r = 1;
    for (size_t i = 0; i < ROUNDS; i++) {
        const char *from = TEXTS[next(&r) % 7];
        char text[128];
        size_t n = strlen(from);
        memcpy(text, from, n);
        for (size_t k = 0; k < 1 + i % 3; k++) {
            uint64_t x = next(&r);
            text[x % n] = x >> 60 ? special[(x >> 32) % (sizeof special - 1)] : (char)(1 + (x >> 32) % 255);
        }
        expect_same((struct str){text, n});
    }
}

/* Lists, and values that are passed by. */
static void test_lists(void **state)
{
    struct json_scan s;
    json_scan_init(&s, STR("[\"a b\", [\"c\", \"\\u00e9\"], [], {\"x\":[\"]\"]}]"), 64);
    json_scan_enter(&s, '[');
    assert_true(json_scan_more(&s, ']'));
    assert_true(str_equal(json_scan_string(&s), STR("a b")));
    assert_true(json_scan_more(&s, ']'));
    json_scan_enter(&s, '[');
    assert_true(json_scan_more(&s, ']'));
    struct str first = json_scan_string(&s);
    assert_true(json_scan_more(&s, ']'));
    struct str second = json_scan_string(&s);
    assert_true(str_equal(first, STR("c")) && str_equal(second, STR("\xc3\xa9")));
    assert_false(json_scan_more(&s, ']'));
    assert_true(json_scan_more(&s, ']'));
    json_scan_enter(&s, '[');
    assert_false(json_scan_more(&s, ']'));
    assert_true(json_scan_more(&s, ']'));
    assert_int_equal(json_scan_peek(&s), '{');
    assert_true(str_equal(json_scan_skip(&s), STR("{\"x\":[\"]\"]}")));
    assert_false(json_scan_more(&s, ']'));
    assert_true(json_scan_ended(&s));
    json_scan_release(&s);
    json_scan_init(&s, STR("\"\\u0061bcdefgh\""), 4); /* longer than is allowed */
    json_scan_string(&s);
    assert_true(s.failed);
    json_scan_release(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_changed),
        cmocka_unit_test(test_lists),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

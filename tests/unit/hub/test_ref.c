/* Names from outside: references, revisions, paths, etags, what becomes part of an address. */
#include "hub/impl.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

static void expect(const char *text, const char *repo, const char *quant, const char *revision, const char *back)
{
    struct hub_ref ref;
    struct err err = {0};
    char again[HUB_REF_TEXT_BYTES];
    if (!hub_ref_parse(text, &ref, &err))
        fail_msg("%s: %s", text, err.text);
    assert_string_equal(ref.repo, repo);
    assert_string_equal(ref.quant, quant);
    assert_string_equal(ref.revision, revision);
    hub_ref_format(&ref, again);
    assert_string_equal(again, back);
}

static void good_references(void **state)
{
    expect("org/name", "org/name", "", "main", "org/name");
    expect("gpt2", "gpt2", "", "main", "gpt2");
    expect("org/name@v1.0", "org/name", "", "v1.0", "org/name@v1.0");
    expect("org/name@refs/pr/1", "org/name", "", "refs/pr/1", "org/name@refs/pr/1");
    expect("org/name:Q4_K_M", "org/name", "Q4_K_M", "main", "org/name:Q4_K_M");
    expect("org/name:Q4_K_M@dev", "org/name", "Q4_K_M", "dev", "org/name:Q4_K_M@dev");
    expect("org/name:latest", "org/name", "", "main", "org/name");
    expect("hf.co/org/name:q8_0", "org/name", "q8_0", "main", "org/name:q8_0");
    expect("https://huggingface.co/org/name", "org/name", "", "main", "org/name");
    expect("https://huggingface.co/org/name/tree/dev", "org/name", "", "dev", "org/name@dev");
    expect("https://huggingface.co/org/name/tree/a/tree/b", "org/name", "", "a/tree/b", "org/name@a/tree/b");
    expect("org/name@a/tree/b", "org/name", "", "a/tree/b", "org/name@a/tree/b");
    expect("hf.co/hf.co/name", "name", "", "main", "name");
    expect("hf://models/org/name", "org/name", "", "main", "org/name");
    expect("org/name@main", "org/name", "", "main", "org/name");
    expect("org/a.b-c_d", "org/a.b-c_d", "", "main", "org/a.b-c_d");
}

static void bad_references(void **state)
{
    static const char *const texts[] = {
        "",
        "/",
        "org/",
        "/name",
        "a/b/c",
        "..",
        "org/..",
        "../name",
        "org/na me",
        "org/name@",
        "org/name@../x",
        "org/name@a/../b",
        "org/name@/etc",
        "org/name@a b",
        "org/name@a\\b",
        "org/name@x.tmp",
        "org/name:a/b",
        "org/-name",
        "org/name-",
        "org/.name",
        "org/name.",
        "org/na--me",
        "org/na..me",
        "org/name.git",
        "org/n\xc3\xa4me",
        "org/na\nme",
        "org/name:Q4\x01",
        "org/name@\x7f",
        "-",
        ".",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct hub_ref ref;
        struct err err = {0};
        if (hub_ref_parse(texts[i], &ref, &err))
            fail_msg("'%s' was taken", texts[i]);
        assert_int_equal(err.code, ERR_INVALID_REQUEST);
        assert_true(err.param[0] && strlen(err.text) > 20);
    }
    char text[600];
    for (size_t n = 90; n < sizeof text; n += 97) {
        memset(text, 'a', n);
        text[n] = 0;
        assert_int_equal(hub_ref_parse(text, &(struct hub_ref){0}, NULL), n <= 96);
        memcpy(text, "o/n:", 4);
        assert_false(hub_ref_parse(text, &(struct hub_ref){0}, NULL));
        text[3] = '@';
        assert_int_equal(hub_ref_parse(text, &(struct hub_ref){0}, NULL), n - 4 < HUB_REVISION_BYTES_MAX && n - 4 <= 255);
    }
}

static void paths(void **state)
{
    static const char *const good[] = {"a", "a/b", ".gitattributes", "...", "a b", "x/.hidden/\xe6\x97\xa5.json"};
    static const char *const bad[] = {"",     "/",      "/a",    "a/",   "a//b", ".",    "..",   "a/..",
                                      "../a", "a/../b", "a/./b", "a\\b", "a\nb", "\x7f", "..\\a"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(hub_path_valid(str_from(good[i])));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(hub_path_valid(str_from(bad[i])));
    assert_false(hub_path_valid((struct str){"a\0b", 3}));
    char text[2 * HUB_PATH_BYTES_MAX];
    memset(text, 'a', sizeof text);
    assert_true(hub_path_valid((struct str){text, 255}));
    assert_false(hub_path_valid((struct str){text, 256})); /* no file system takes such a name */
    for (size_t i = 200; i < sizeof text; i += 200)
        text[i] = '/';
    assert_true(hub_path_valid((struct str){text, HUB_PATH_BYTES_MAX - 1}));
    assert_false(hub_path_valid((struct str){text, HUB_PATH_BYTES_MAX}));
}

static void etags(void **state)
{
    char out[HUB_ETAG_BYTES_MAX], text[2 * HUB_ETAG_BYTES_MAX];
    assert_true(hub_etag_normalize(STR("W/\"abc\""), out));
    assert_string_equal(out, "abc");
    assert_true(hub_etag_normalize(STR("0123456789abcdef-17"), out));
    static const char *const bad[] = {"", "\"\"", "W/\"\"", "\"..\"", "../x", "a/b", "\".x\"", "a b", "a\nb", "abc.incomplete"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(hub_etag_normalize(str_from(bad[i]), out));
    assert_false(hub_etag_normalize((struct str){"W/\0", 3}, out));
    assert_false(hub_etag_normalize((struct str){"a\0b", 3}, out));
    memset(text, 'a', sizeof text);
    assert_true(hub_etag_normalize((struct str){text, HUB_ETAG_BYTES_MAX - 1}, out));
    assert_false(hub_etag_normalize((struct str){text, HUB_ETAG_BYTES_MAX}, out));
}

static void addresses(void **state)
{
    struct buf b;
    buf_init(&b, 1000);
    hub_url_escape(&b, STR("a b/c?d#e%f&\xc3\xa4~.-_"), HUB_KEEP_SLASH);
    assert_string_equal(b.data, "a%20b/c%3Fd%23e%25f%26%C3%A4~.-_");
    buf_clear(&b);
    hub_url_escape(&b, STR("refs/pr/1"), HUB_ESCAPE_SLASH);
    assert_string_equal(b.data, "refs%2Fpr%2F1");
    buf_release(&b);
}

static void hashes(void **state)
{
    assert_true(hub_is_commit("0123456789abcdefABCDEF0123456789abcdef01"));
    assert_false(hub_is_commit("0123456789abcdefABCDEF0123456789abcdef0"));
    assert_false(hub_is_commit("g123456789abcdefABCDEF0123456789abcdef01"));
    assert_true(hub_is_sha256("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"));
    assert_int_equal(digest_kind_of("abc"), DIGEST_NONE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_references), cmocka_unit_test(bad_references), cmocka_unit_test(paths),
        cmocka_unit_test(etags),           cmocka_unit_test(addresses),      cmocka_unit_test(hashes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

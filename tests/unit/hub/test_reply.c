/* What a hub answers: JSON and headers, well-formed, hostile, and cut at every byte. */
#include "hub/impl.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define SHA    "0123456789abcdef0123456789abcdef01234567"
#define SHA256 "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static const char info_json[] =
    "{\"sha\":\"" SHA "\",\"gated\":\"manual\",\"siblings\":["
    "{\"rfilename\":\"config.json\",\"size\":12,\"blobId\":\"" SHA "\"},"
    "{\"rfilename\":\"model.safetensors\",\"size\":134,\"blobId\":\"" SHA "\",\"lfs\":{\"sha256\":\"" SHA256
    "\",\"size\":5000000000,\"pointerSize\":134}},{\"rfilename\":\"plain\"}]}";

static const char tree_json[] = "[{\"type\":\"directory\",\"path\":\"onnx\",\"size\":0,\"oid\":\"" SHA "\"},"
                                "{\"type\":\"file\",\"path\":\"a/b.json\",\"size\":7,\"oid\":\"" SHA "\"},"
                                "{\"type\":\"file\",\"path\":\"m.gguf\",\"size\":130,\"oid\":\"" SHA
                                "\",\"lfs\":{\"oid\":\"sha256:" SHA256 "\",\"size\":99}}]";

static void info(void **state)
{
    struct hub_listing l = {0};
    struct err err = {0};
    assert_true(reply_parse_info(STR(info_json), &l, &err));
    assert_string_equal(l.commit, SHA);
    assert_int_equal(l.gated, 1);
    assert_int_equal(l.n_items, 3);
    assert_int_equal(l.items[0].size, 12);
    assert_string_equal(l.items[0].etag, SHA);
    assert_string_equal(l.items[1].etag, SHA256);
    assert_int_equal(l.items[1].size, 5000000000u);
    assert_true(l.items[2].size == HUB_SIZE_UNKNOWN && !l.items[2].etag[0]);
    hub_listing_release(&l);
}

static void tree(void **state)
{
    struct hub_listing l = {0};
    struct err err = {0};
    assert_true(reply_parse_tree(STR(tree_json), &l, &err));
    assert_int_equal(l.n_items, 2);
    assert_string_equal(l.items[0].path, "a/b.json");
    assert_string_equal(l.items[1].sha256, SHA256);
    assert_int_equal(l.items[1].size, 99);
    hub_listing_release(&l);
}

static void cut_anywhere(void **state)
{
    for (size_t n = 0; n < sizeof info_json - 1; n++) {
        struct hub_listing l = {0};
        struct err err = {0};
        assert_false(reply_parse_info((struct str){info_json, n}, &l, &err));
        assert_int_equal(err.code, ERR_UNAVAILABLE);
        hub_listing_release(&l);
    }
    for (size_t n = 0; n < sizeof tree_json - 1; n++) {
        struct hub_listing l = {0};
        assert_false(reply_parse_tree((struct str){tree_json, n}, &l, NULL));
        hub_listing_release(&l);
    }
}

static void hostile(void **state)
{
    static const char *const infos[] = {
        "null",
        "[]",
        "{}",
        "{\"sha\":1}",
        "{\"sha\":\"main\"}",
        "{\"sha\":\"../../../../x\"}",
        "{\"sha\":\"" SHA "\",\"siblings\":[{\"rfilename\":\"../x\"}]}",
        "{\"sha\":\"" SHA "\",\"siblings\":[{\"rfilename\":\"/etc/passwd\"}]}",
        "{\"sha\":\"" SHA "\",\"siblings\":[{\"rfilename\":\"a\",\"size\":-1}]}",
        "{\"sha\":\"" SHA "\",\"siblings\":[{\"rfilename\":\"a\",\"size\":9223372036854775807}]}",
        "{\"sha\":\"" SHA "\",\"siblings\":[{\"size\":1}]}",
        "{\"sha\":\"" SHA "\",\"sha\":\"" SHA "\"}",
    };
    for (size_t i = 0; i < sizeof infos / sizeof *infos; i++) {
        struct hub_listing l = {0};
        struct err err = {0};
        if (reply_parse_info(str_from(infos[i]), &l, &err))
            fail_msg("%s was taken", infos[i]);
        assert_int_equal(err.code, ERR_UNAVAILABLE);
        hub_listing_release(&l);
    }
}

static void index_names(void **state)
{
    char **names;
    size_t n;
    assert_true(reply_parse_index(STR("{\"weight_map\":{\"a\":\"m1\",\"b\":\"m2\",\"c\":\"m1\",\"d\":3}}"), &names, &n, NULL));
    assert_int_equal(n, 2);
    for (size_t i = 0; i < n; i++)
        free(names[i]);
    free(names);
    struct err err = {0};
    assert_false(reply_parse_index(STR("{\"weight_map\":{\"a\":\"../m1\"}}"), &names, &n, &err));
    assert_int_equal(err.code, ERR_MODEL_DAMAGED);
    assert_false(reply_parse_index(STR("{\"weight_map\":[]}"), &names, &n, &err));
    assert_false(reply_parse_index(STR("{"), &names, &n, &err));
}

static void errors(void **state)
{
    char out[16];
    reply_parse_error(STR("{\"error\":\"a\\nlong text of the hub\"}"), out, sizeof out);
    assert_string_equal(out, "a long text of ");
    reply_parse_error(STR("<html>"), out, sizeof out);
    assert_string_equal(out, "");
    reply_parse_error(STR("{\"error\":{}}"), out, sizeof out);
    assert_string_equal(out, "");
}

static void links(void **state)
{
    char out[64];
    assert_true(reply_parse_link_next(STR("<http://h/x?cursor=1>; rel=\"next\""), out, sizeof out));
    assert_string_equal(out, "http://h/x?cursor=1");
    assert_true(reply_parse_link_next(STR("<http://h/z>; rel=\"last\", <http://h/y>; rel=next"), out, sizeof out));
    assert_string_equal(out, "http://h/y");
    static const char *const none[] = {"",
                                       "<",
                                       "<a",
                                       "a>; rel=next",
                                       "<>; rel=\"next\"",
                                       "<a>; rel=\"prev\"",
                                       "<aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa>; rel=next"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        assert_false(reply_parse_link_next(str_from(none[i]), out, sizeof out));
}

static void waits(void **state)
{
    assert_int_equal(reply_parse_retry_after(STR("12"), 0), 12);
    assert_int_equal(reply_parse_retry_after(STR("0"), 0), 0);
    assert_int_equal(reply_parse_retry_after(STR("Thu, 01 Jan 1970 00:01:40 GMT"), 40), 60);
    assert_int_equal(reply_parse_retry_after(STR("Thu, 01 Jan 1970 00:00:10 GMT"), 40), 0);
    assert_int_equal(reply_parse_retry_after(STR("999999999999999999"), 0), INT32_MAX);
    assert_int_equal(reply_parse_retry_after(STR("-1"), 0), -1);
    assert_int_equal(reply_parse_retry_after(STR("soon"), 0), -1);
    assert_int_equal(reply_parse_retry_after(STR(""), 0), -1);
    assert_int_equal(reply_parse_ratelimit(STR("\"api\";r=0;t=55")), 55);
    assert_int_equal(reply_parse_ratelimit(STR("\"api\";r=3;t=55")), -1);
    assert_int_equal(reply_parse_ratelimit(STR("x")), -1);
    assert_int_equal(reply_parse_ratelimit(STR("x;r=0;t=-5")), -1);
}

static void ranges_header(void **state)
{
    uint64_t begin, end, total;
    assert_true(reply_parse_content_range(STR("bytes 0-99/1234"), &begin, &end, &total));
    assert_true(begin == 0 && end == 100 && total == 1234);
    assert_true(reply_parse_content_range(STR("Bytes 5-5/*"), &begin, &end, &total));
    assert_true(begin == 5 && end == 6 && total == HUB_SIZE_UNKNOWN);
    static const char *const bad[] = {"",
                                      "bytes",
                                      "bytes ",
                                      "bytes */5",
                                      "bytes 5-4/9",
                                      "bytes 0-9/5",
                                      "bytes 1/2-3",
                                      "bytes a-b/c",
                                      "bytes -1-2/3",
                                      "bytes 0-99999999999999999999/*",
                                      "pages 0-1/2"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(reply_parse_content_range(str_from(bad[i]), &begin, &end, &total));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(info),    cmocka_unit_test(tree),        cmocka_unit_test(cut_anywhere),
        cmocka_unit_test(hostile), cmocka_unit_test(index_names), cmocka_unit_test(errors),
        cmocka_unit_test(links),   cmocka_unit_test(waits),       cmocka_unit_test(ranges_header),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

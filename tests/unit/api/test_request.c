/* Requests: what is taken, what is refused and with which words, what parsing takes. */
#include "api/request.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static bool parse(enum api_kind kind, const char *body, struct api_request *r, struct err *err)
{
    *err = (struct err){0};
    return api_request_parse(r, kind, str_from(body), err);
}

static void fields_have_their_values(void **state)
{
    struct api_request r;
    struct err err;
    assert_true(parse(API_CHAT,
                      "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"temperature\":0.5,\"top_k\":40,"
                      "\"stop\":[\"a\",\"b\"],\"stop_token_ids\":[7],\"logit_bias\":{\"5\":-100},\"seed\":-3,\"n\":2,"
                      "\"timeout\":1.5,\"keep_alive\":\"1h30m\",\"stream\":true,\"max_tokens\":16.0,\"top_p\":null}",
                      &r, &err));
    assert_true(str_equal(r.model, STR("m")) && r.stream && r.n == 2 && r.top_k == 40 && r.max_tokens == 16);
    assert_true(r.temperature == 0.5 && r.top_p == API_NOT_GIVEN && r.timeout_s == 1.5 && r.keep_alive_s == 5400);
    assert_true(r.n_stops == 2 && r.n_stop_ids == 1 && r.stop_ids[0] == 7 && r.seed == -3 && r.seed_given);
    assert_true(r.n_bias == 1 && r.bias[0].id == 5 && r.bias[0].bias == -100);
    api_request_release(&r);
}

static void keep_alive_in_all_its_forms(void **state)
{
    static const struct {
        const char *json;
        double seconds;
    } cases[] = {{"0", 0},       {"-1", -1},         {"-5", -1},        {"300", 300},        {"0.5", 0.5},    {"1e300", 1e9},
                 {"\"10\"", 10}, {"\"1.5h\"", 5400}, {"\"2m3s\"", 123}, {"\"250ms\"", 0.25}, {"\"-1m\"", -1}, {"\"0\"", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char body[200];
        struct api_request r;
        struct err err;
        snprintf(body, sizeof body, "{\"model\":\"m\",\"prompt\":\"x\",\"keep_alive\":%s}", cases[i].json);
        assert_true(parse(API_OPENAI_COMPLETE, body, &r, &err));
        assert_true(r.keep_alive_s == cases[i].seconds);
        api_request_release(&r);
    }
}

static void refusals_name_field_value_and_range(void **state)
{
    static const struct {
        enum api_kind kind;
        const char *body, *param, *words[3];
    } cases[] = {
        {API_CHAT, "{\"model\":\"m\"}", "messages", {"missing"}},
        {API_CHAT, "{\"model\":\"m\",\"messages\":[1],\"top_p\":1.01}", "top_p", {"1.01", "between 0 and 1"}},
        {API_CHAT, "{\"model\":\"m\",\"messages\":[1],\"top_k\":1.5}", "top_k", {"1.5", "integer"}},
        {API_CHAT, "{\"model\":\"m\",\"messages\":[1],\"n\":true}", "n", {"true", "1", "64"}},
        {API_CHAT, "{\"model\":\"m\",\"messages\":[1],\"keep_alive\":\"5x\"}", "keep_alive", {"5x"}},
        {API_CHAT, "{\"model\":\"m\",\"messages\":[1],\"keep_alive\":\"\"}", "keep_alive", {"\"\""}},
        {API_OPENAI_CHAT, "{\"model\":\"m\",\"messages\":[1],\"max_token\":1}", "max_token", {"max_tokens"}},
        {API_OPENAI_CHAT, "{\"model\":\"m\",\"messages\":[1],\"store\":true}", "store", {"true", "false"}},
        {API_OPENAI_COMPLETE, "{\"model\":\"m\",\"prompt\":\"x\",\"max_tokens\":0}", "max_tokens", {"0", "1"}},
        {API_DETOKENIZE, "{\"model\":\"m\"}", "tokens", {"missing"}},
        {API_TOKENIZE, "{\"model\":\"m\"}", "prompt", {"messages"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct api_request r;
        struct err err;
        assert_false(parse(cases[i].kind, cases[i].body, &r, &err));
        assert_string_equal(err.param, cases[i].param);
        for (size_t k = 0; k < 3 && cases[i].words[k]; k++)
            assert_non_null(strstr(err.text, cases[i].words[k]));
    }
}

static size_t taken, most;

static void *count_alloc(size_t n)
{
    size_t *p = malloc(n + 16);
    *p = n + 32; /* and what the allocator itself keeps */
    taken += *p;
    most = taken > most ? taken : most;
    return (char *)p + 16;
}

static void count_free(void *p)
{
    if (!p)
        return;
    size_t *from = (size_t *)((char *)p - 16);
    taken -= *from;
    free(from);
}

/* The bound that memory is counted with holds for the bodies that take most. */
static void bound_of_memory_holds(void **state)
{
    static const char *const parts[] = {
        "[],", "{},", "1,", "\"\",", "{\"a\":{}},", "[[[]]],", "\"a long enough text\",", "1.5,", "{\"k\":1},", "true,"};
    json_set_alloc_funcs(count_alloc, count_free);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        struct buf body;
        buf_init(&body, 1 << 20);
        buf_append_char(&body, '[');
        while (body.len < 100000)
            buf_append_str(&body, str_from(parts[i]));
        body.data[body.len - 1] = ']';
        most = taken = 0;
        json_t *root = json_loadb(body.data, body.len, JSON_ALLOW_NUL, NULL);
        assert_non_null(root);
        assert_true(most <= api_request_bytes(buf_str(&body)));
        json_decref(root);
        buf_release(&body);
    }
    json_set_alloc_funcs(malloc, free);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fields_have_their_values),
        cmocka_unit_test(keep_alive_in_all_its_forms),
        cmocka_unit_test(refusals_name_field_value_and_range),
        cmocka_unit_test(bound_of_memory_holds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

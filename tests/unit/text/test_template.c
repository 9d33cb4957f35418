/* Chat templates against what transformers renders: features.json holds small templates of ours with their text or
 * "error" (tools/golden_templates.py); real.json holds the SHA-256 of what published templates render, which are read
 * from ../shared/data where that is there. Then limits, errors and the default template. */
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

#include <openssl/evp.h>

#define GOLDEN_DIR "tests/golden/templates/"
#define DATA_DIR   "../shared/data/chat_templates/"
#define OUT_BYTES  (32u << 20)

static json_t *load(const char *path)
{
    json_error_t error;
    json_t *json = json_load_file(path, JSON_ALLOW_NUL, &error);
    if (!json)
        print_error("%s: %s, line %d\n", path, error.text, error.line);
    return json;
}

static struct str text_of(const json_t *json)
{
    return (struct str){json_string_value(json), json_string_length(json)};
}

struct result {
    bool ok;
    struct buf out;
    struct err err;
};

static struct result render_at(struct str source, const json_t *context, long long wall_s)
{
    struct result r = {0};
    struct template_clock clock = {wall_s};
    buf_init(&r.out, OUT_BYTES);
    struct template *t = template_compile(source, &r.err);
    r.ok = t && template_render(t, context, &clock, &r.out, &r.err);
    template_free(t);
    return r;
}

static struct result render(const char *source, const char *context)
{
    json_t *json = json_loads(context, 0, NULL);
    assert_non_null(json);
    struct result r = render_at(str_from(source), json, 0);
    json_decref(json);
    return r;
}

static void check_text(const char *source, const char *context, const char *wanted)
{
    struct result r = render(source, context);
    if (!r.ok)
        print_error("%s\n", r.err.text);
    assert_true(r.ok);
    assert_string_equal(r.out.data ? r.out.data : "", wanted);
    buf_release(&r.out);
}

/* A second; what is not bounded takes for ever. Thread sanitizer builds are ten times as slow and more. */
#if defined(__SANITIZE_THREAD__)
#define SECONDS_MAX 60
#else
#define SECONDS_MAX 10
#endif

/* The message must hold `part`, and come quickly. */
static void check_error(const char *source, const char *part)
{
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    struct result r = render(source, "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}");
    clock_gettime(CLOCK_MONOTONIC, &to);
    assert_false(r.ok);
    assert_int_equal(r.err.code, ERR_TEMPLATE);
    assert_int_equal(r.out.len, 0);
    if (!strstr(r.err.text, part))
        print_error("'%s' is not in '%s'\n", part, r.err.text);
    assert_non_null(strstr(r.err.text, part));
    assert_true(to.tv_sec - from.tv_sec < SECONDS_MAX);
    buf_release(&r.out);
}

static bool same(const struct result *r, const json_t *wanted)
{
    struct str text = text_of(wanted);
    return wanted ? r->ok && str_equal(buf_str(&r->out), text) : !r->ok && r->err.code == ERR_TEMPLATE;
}

static void test_features(void **state)
{
    json_t *golden = load(GOLDEN_DIR "features.json"), *c;
    assert_non_null(golden);
    size_t i, n_bad = 0;
    long long clock = json_integer_value(json_object_get(golden, "clock"));
    json_array_foreach(json_object_get(golden, "cases"), i, c)
    {
        json_t *context = json_copy(json_object_get(golden, "base"));
        json_object_update(context, json_object_get(c, "context"));
        struct result r = render_at(text_of(json_object_get(c, "template")), context, clock);
        if (!same(&r, json_object_get(c, "text"))) {
            n_bad++;
            print_error("%s\n  wanted %s\n  got    %s\n", json_string_value(json_object_get(c, "template")),
                        json_object_get(c, "text") ? json_string_value(json_object_get(c, "text")) : "an error",
                        r.ok ? r.out.data : r.err.text);
        }
        buf_release(&r.out);
        json_decref(context);
    }
    assert_true(i > 1000);
    json_decref(golden);
    assert_int_equal(n_bad, 0);
}

static bool hash_equal(struct str text, const char *wanted)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    char hex[2 * EVP_MAX_MD_SIZE + 1] = "";
    assert_int_equal(EVP_Digest(text.ptr, text.len, digest, &n, EVP_sha256(), NULL), 1);
    for (unsigned i = 0; i < n; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    return strcmp(hex, wanted) == 0;
}

static void read_file(const char *name, struct buf *out)
{
    char path[512], part[4096];
    snprintf(path, sizeof path, DATA_DIR "templates/%s", name);
    FILE *f = fopen(path, "rb");
    buf_init(out, TEMPLATE_SOURCE_BYTES_MAX);
    size_t n;
    while (f && (n = fread(part, 1, sizeof part, f)) > 0)
        buf_append(out, part, n);
    if (f)
        fclose(f);
}

/* ---- whose text is it? ---- */

/* What text.c calls own: the model's tokens, and roles. */
static json_t *own_strings(const json_t *context)
{
    json_t *own = json_array(), *one;
    const char *name;
    size_t i;
    json_object_foreach((json_t *)context, name, one) if (strstr(name, "_token") && json_is_string(one))
        json_array_append(own, one);
    json_array_foreach(json_object_get(context, "messages"), i, one) if (json_is_string(json_object_get(one, "role")))
        json_array_append(own, json_object_get(one, "role"));
    return own;
}

static struct result render_own(struct str source, const json_t *context, long long wall_s, struct text_spans *spans)
{
    struct result r = {0};
    struct template_clock clock = {wall_s};
    json_t *own = own_strings(context);
    buf_init(&r.out, OUT_BYTES);
    struct template *t = template_compile(source, &r.err);
    r.ok = t && template_render_own(t, context, own, &clock, &r.out, spans, &r.err);
    template_free(t);
    json_decref(own);
    return r;
}

/* The end of a special token that begins at `at`: "<|...|>", "<\xef\xbd\x9c...\xef\xbd\x9c>"; 0: none does. */
static size_t token_end(struct str s, size_t at)
{
    static const char *const open[] = {"<|", "<\xef\xbd\x9c"}, *const shut[] = {"|>", "\xef\xbd\x9c>"};
    for (size_t k = 0; k < 2; k++) {
        struct str rest = {s.ptr + at, s.len - at};
        if (!str_has_prefix(rest, str_from(open[k])))
            continue;
        const char *end = memmem(rest.ptr, rest.len, shut[k], strlen(shut[k]));
        size_t n = end ? (size_t)(end - rest.ptr) + strlen(shut[k]) : 0;
        bool plain =
            n && n < 40 && !memchr(rest.ptr, ' ', n) && !memchr(rest.ptr, '\n', n) && !memchr(rest.ptr + 1, '<', n - 1);
        return plain ? at + n : 0;
    }
    return 0;
}

/* The special tokens of a rendered text are the template's, save those that a message has: each "<|im_end|>" that stands behind
 * the smiling face in the contexts of real.json. */
static bool own_is_told(const char *name, struct str source, const json_t *context, long long wall_s,
                        const struct result *plain)
{
    struct text_spans spans;
    struct result r = render_own(source, context, wall_s, &spans);
    struct str text = buf_str(&r.out), face = STR("\xf0\x9f\x98\x80 ");
    bool ok = r.ok == plain->ok && str_equal(text, buf_str(&plain->out));
    for (size_t at = 0, end; ok && at < text.len; at++) {
        if (!(end = token_end(text, at)))
            continue;
        bool brought = at >= face.len && memcmp(text.ptr + at - face.len, face.ptr, face.len) == 0;
        ok = text_spans_hold(&spans, at, end) != brought;
        if (!ok)
            print_error("%s: %.*s at %zu is %s\n", name, (int)(end - at), text.ptr + at, at,
                        brought ? "taken for its own" : "not seen as its own");
    }
    text_spans_release(&spans);
    buf_release(&r.out);
    return ok;
}

static size_t n_own_checked;

/* One case of real.json: the template comes from a file of its own or from rendered.json. */
static bool real_case(const json_t *golden, const json_t *rendered, const json_t *c)
{
    struct buf file = {0};
    struct str source;
    const json_t *context;
    const char *name = json_string_value(json_object_get(c, "file"));
    const char *wanted = json_string_value(json_object_get(c, "sha256"));
    if (name) {
        read_file(name, &file);
        source = buf_str(&file);
        context = json_object_get(json_object_get(golden, "contexts"), json_string_value(json_object_get(c, "case")));
    } else {
        name = json_string_value(json_object_get(c, "key"));
        const json_t *group = json_object_get(rendered, json_string_value(json_object_get(c, "group")));
        source = text_of(json_object_get(json_object_get(group, name), "chat_template"));
        context = json_object_get(json_object_get(group, name), "data");
    }
    assert_true(hash_equal(source, json_string_value(json_object_get(c, "template_sha256"))));
    struct result r = render_at(source, context, json_integer_value(json_object_get(golden, "clock")));
    bool ok = wanted ? r.ok && hash_equal(buf_str(&r.out), wanted) : !r.ok;
    if (!ok)
        print_error("%s %s: %s\n", name, json_string_value(json_object_get(c, "case")), r.ok ? "another text" : r.err.text);
    if (ok && r.ok && json_object_get(c, "file")) {
        n_own_checked++;
        ok = own_is_told(name, source, context, json_integer_value(json_object_get(golden, "clock")), &r);
    }
    buf_release(&r.out);
    buf_release(&file);
    return ok;
}

/* Which bytes of the text are own: '#', the others '.'. */
static void check_own(const char *source, const char *context, const char *wanted)
{
    json_t *json = json_loads(context, 0, NULL);
    struct text_spans spans;
    assert_non_null(json);
    struct result r = render_own(str_from(source), json, 0, &spans);
    assert_true(r.ok);
    for (size_t i = 0; i < r.out.len; i++)
        r.out.data[i] = text_spans_hold(&spans, i, i + 1) ? '#' : '.';
    assert_string_equal(r.out.data, wanted);
    text_spans_release(&spans);
    buf_release(&r.out);
    json_decref(json);
}

static void test_own_text(void **state)
{
    static const char context[] = "{\"x\": \"<a> <B>\", \"eos_token\": \"</s>\", \"messages\": [{\"role\": \"user\"}]}";
    check_own("<|{{ x }}|>", context, "##.......##");
    check_own("{{ '<|' + messages[0].role + '|>' ~ x ~ eos_token }}", context,
              "########"
              "......."
              "####");
    check_own("{% set y = x|trim %}{% set z %}<{{ y }}>{% endset %}{{ z }}{{ z[1:-1] }}", context,
              "#.......#"
              ".......");
    check_own("{% macro m(a) %}[{{ a }}]{% endmacro %}{{ m(m(x)) }}", context, "##.......##");
    check_own("{{ x.split(' ')|join('--') }}{{ '|%s|' % x }}", context,
              "...##..."
              "#.......#");
    check_own("{{ x.replace('<a>', '<b>') }}{{ x|replace(' ', '__') }}", context,
              "###...."
              "...##...");
    check_own("{{ (x ~ '!')|upper }}{{ '<a>'|upper }}{{ x|tojson }}{{ x * 2 }}", context,
              "........"
              "..."
              "........."
              "..............");
    check_own("{% for c in x %}{{ c }}{% endfor %}{{ x|reverse }}{{ x|length }}", context,
              "......."
              "......."
              ".");
    check_own("{% set n = namespace(s='') %}{% for i in range(3) %}{% set n.s = n.s + 'ab' + x %}{% endfor %}{{ n.s }}",
              context, "##.......##.......##.......");
}

static void test_real_templates(void **state)
{
    FILE *there = fopen(DATA_DIR "rendered.json", "rb");
    if (!there) {
        print_message("no ../shared/data: published templates not compared\n");
        skip();
    }
    fclose(there);
    json_t *golden = load(GOLDEN_DIR "real.json"), *rendered = load(DATA_DIR "rendered.json"), *c;
    assert_non_null(golden);
    assert_non_null(rendered);
    size_t i, n_bad = 0;
    json_array_foreach(json_object_get(golden, "cases"), i, c)
    {
        n_bad += !real_case(golden, rendered, c);
    }
    assert_true(i > 1000 && n_own_checked > 500);
    json_decref(golden);
    json_decref(rendered);
    assert_int_equal(n_bad, 0);
}

static void test_limits(void **state)
{
    check_error("{{ range(10**9) }}", "range too big: more than 100000");
    check_error("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
                "took more than 20000000 steps");
    check_error("{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
                "needs more than 256 MiB");
    check_error("{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s * 2 %}{% endfor %}",
                "needs more than 256 MiB");
    check_error("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "macros are nested deeper than 200");
    check_error("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "loops are nested deeper than 200");
    check_error("{% set n = namespace() %}{% set n.n = n %}{{ n }}", "nested deeper than 300");
    check_error("{% set n = namespace(l=[]) %}{% for i in range(999) %}{% set n.l = [n.l] %}{% endfor %}"
                "{{ n.l|tojson }}",
                "nested deeper than 300");
    check_error("{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}", "longer than 33554432 bytes");
    check_error("{{ 'a'.ljust(10**9) }}", "a width of more than 1048576");
    check_error("{{ '%99999999d' % 1 }}", "a width of more than 1048576");
    check_error("{{ 9223372036854775807 + 1 }}", "does not fit into 64 bits");
    check_error("{{ 99999999999999999999 }}", "does not fit into 64 bits");
    check_error("{{ 2 ** 64 }}", "does not fit into 64 bits");
}

static void repeated(struct buf *b, const char *before, const char *part, size_t times, const char *after)
{
    buf_init(b, 8u << 20);
    buf_append_str(b, str_from(before));
    for (size_t i = 0; i < times; i++)
        buf_append_str(b, str_from(part));
    buf_append_str(b, str_from(after));
    assert_false(b->failed);
}

static void test_nesting(void **state)
{
    static const char *const cases[][4] = {
        {"{{ ", "(", "", "nested deeper than 200"},
        {"{{ ", "[", "", "nested deeper than 200"},
        {"{{ ", "not ", "1 }}", "nested deeper than 200"},
        {"{{ ", "-", "1 }}", "nested deeper than 200"},
        {"{{ 1", " + 1", " }}", "nested deeper than 1000"},
        {"{{ 1", "|abs", " }}", "nested deeper than 1000"},
        {"{{ x", ".a", " }}", "nested deeper than 1000"},
        {"{{ x", "()", " }}", "nested deeper than 1000"},
        {"", "{% if 1 %}", "", "nested deeper than 200"},
        {"{{ 1", " if 1 else 2", " }}", "nested deeper than 200"},
        {"", "{% for a in b %}", "", "nested deeper than 200"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct buf b;
        repeated(&b, cases[i][0], cases[i][1], 20000, cases[i][2]);
        check_error(b.data, cases[i][3]);
        buf_release(&b);
    }
    /* frames of a macro that nests expressions are bounded too */
    struct buf b;
    repeated(&b, "{% macro m() %}{{ ", "[", 150, "m()");
    for (int i = 0; i < 150; i++)
        buf_append_char(&b, ']');
    buf_append_str(&b, STR(" }}{% endmacro %}{{ m() }}"));
    check_error(b.data, "nested deeper than 4000");
    buf_release(&b);
    struct buf wide;
    repeated(&wide, "{% if 0 %}", "{% elif 0 %}", 5000, "{% else %}ok{% endif %}");
    check_text(wide.data, "{}", "ok");
    buf_release(&wide);
}

static void test_errors_name_the_place(void **state)
{
    check_error("a\n{{ x.y }}", "line 2, column 5: 'x' is undefined");
    check_error("a\n\n  {% if x %}", "line 3, column 6: this block has no 'endif'");
    check_error("{{ messages[0].nope.x }}", "'dict object' has no attribute 'nope'");
    check_error("{% if 1 %}{% endfor %}", "unknown or misplaced tag 'endfor': expected 'endif'");
    check_error("{{ raise_exception('only users') }}", "the template refuses: only users");
    check_error("{{ 'a }}", "a string has no end");
    check_error("{{ 1|nope }}", "no filter named 'nope'");
    check_error("{{ 'a' + 1 }}", "can only concatenate str (not \"int\") to str");
    check_error("{{ (1 }}", "unexpected");
    check_error("{% include 'x' %}", "needs other templates");
    check_error("{{ messages.append(1) }}", "unsafe");
    check_error("{{ messages.__class__() }}", "unsafe");
    check_error("\xff", "not valid UTF-8");
}

static void test_output_bound(void **state)
{
    struct err err = {0};
    struct buf out;
    struct template *t = template_compile(STR("{{ 'x' * 100 }}"), &err);
    json_t *context = json_object();
    assert_non_null(t);
    buf_init(&out, 50);
    assert_false(template_render(t, context, NULL, &out, &err));
    assert_int_equal(err.code, ERR_TEMPLATE);
    assert_non_null(strstr(err.text, "longer than 50 bytes"));
    buf_release(&out);
    buf_init(&out, 1000);
    buf_append_str(&out, STR("kept "));
    assert_true(template_render(t, context, NULL, &out, &err));
    assert_int_equal(out.len, 105);
    buf_release(&out);
    template_free(t);
    json_decref(context);
}

static void test_source_bound(void **state)
{
    struct err err = {0};
    struct buf b;
    repeated(&b, "", "x", TEMPLATE_SOURCE_BYTES_MAX + 1, "");
    assert_null(template_compile(buf_str(&b), &err));
    assert_int_equal(err.code, ERR_TEMPLATE);
    b.len--;
    struct template *t = template_compile(buf_str(&b), &err);
    assert_non_null(t);
    template_free(t);
    template_free(NULL);
    buf_release(&b);
}

static void test_growing_text_is_linear(void **state)
{
    /* 2 MB in pieces of 100 bytes: copies would need 20 GB */
    check_text("{% set n = namespace(s='') %}{% for i in range(20000) %}{% set n.s = n.s + 'x' * 100 %}{% endfor %}"
               "{{ n.s|length }}",
               "{}", "2000000");
    /* texts that share a beginning stay apart */
    check_text("{% set a = 'x' * 300 %}{% set b = a + 'b' %}{% set c = b + 'c' %}{% set d = b + 'd' %}"
               "{{ b[299:] }} {{ c[299:] }} {{ d[299:] }}",
               "{}", "xb xbc xbd");
}

static void test_default_source(void **state)
{
    struct err err = {0};
    struct template *t = template_compile(template_default_source(), &err);
    assert_non_null(t);
    template_free(t);
    char *source = strndup(template_default_source().ptr, template_default_source().len);
    check_text(source,
               "{\"messages\": [{\"role\": \"system\", \"content\": \"Be brief.\"}, {\"role\": \"user\", \"content\": "
               "[{\"type\": \"text\", \"text\": \"a\"}, {\"type\": \"text\", \"text\": \"b\"}]}, {\"role\": "
               "\"assistant\", \"content\": null}], \"add_generation_prompt\": true}",
               "<|system|>\nBe brief.\n<|user|>\nab\n<|assistant|>\n\n<|assistant|>\n");
    check_text(source, "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}", "<|user|>\nx\n");
    free(source);
}

static void test_smollm2(void **state)
{
    check_text("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
               "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
               "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
               "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
               "{% endif %}",
               "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], \"add_generation_prompt\": true}",
               "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
               "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

int main(void)
{
    setenv("TZ", "UTC", 1);
    tzset();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_features),
        cmocka_unit_test(test_real_templates),
        cmocka_unit_test(test_own_text),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_nesting),
        cmocka_unit_test(test_errors_name_the_place),
        cmocka_unit_test(test_output_bound),
        cmocka_unit_test(test_source_bound),
        cmocka_unit_test(test_growing_text_is_linear),
        cmocka_unit_test(test_default_source),
        cmocka_unit_test(test_smollm2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

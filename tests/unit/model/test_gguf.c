/* GGUF files built in memory: good ones, ones cut at every byte, ones with every header bit changed, ones that lie; split
 * files with parts that are missing, mixed up or of another model. */
#include "files.h"

enum { U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 }; /* types of metadata values */
enum { GGML_F32 = 0, GGML_F16 = 1, GGML_Q4_0 = 2, GGML_Q8_0 = 8 };

static void put_string(struct bytes *b, const char *s)
{
    put_le(b, strlen(s), 8);
    put(b, s, strlen(s));
}

static void put_head(struct bytes *b, unsigned version, uint64_t n_tensors, uint64_t n_entries)
{
    put(b, "GGUF", 4);
    put_le(b, version, 4);
    put_le(b, n_tensors, 8);
    put_le(b, n_entries, 8);
}

static void put_uint(struct bytes *b, const char *key, unsigned type, uint64_t v, size_t size)
{
    put_string(b, key);
    put_le(b, type, 4);
    put_le(b, v, size);
}

static void put_tensor(struct bytes *b, const char *name, unsigned n_dims, const uint64_t *dims, unsigned type, uint64_t offset)
{
    put_string(b, name);
    put_le(b, n_dims, 4);
    for (unsigned i = 0; i < n_dims; i++)
        put_le(b, dims[i], 8);
    put_le(b, type, 4);
    put_le(b, offset, 8);
}

static void put_data(struct bytes *b, size_t alignment, size_t n)
{
    while (b->len % alignment)
        put_le(b, 0, 1);
    for (size_t i = 0; i < n; i++)
        put_le(b, i, 1);
}

#define GOOD_DATA (128 + 34)

/* Every kind of value, an alignment of its own, three tensors. Returns the length of the part before the padding. */
static size_t build_good(struct bytes *b, unsigned version)
{
    *b = (struct bytes){0};
    put_head(b, version, 3, 9);
    put_string(b, "general.architecture");
    put_le(b, STRING, 4);
    put_string(b, "llama");
    put_uint(b, "general.alignment", U32, 64, 4);
    put_uint(b, "a.i8", I8, 0xff, 1);
    put_uint(b, "a.u16", U16, 65535, 2);
    put_uint(b, "a.i64", I64, (uint64_t)-5, 8);
    put_uint(b, "a.bool", BOOL, 1, 1);
    put_uint(b, "a.f32", F32, 0x3fc00000, 4);
    put_string(b, "list.s");
    put_le(b, ARRAY, 4);
    put_le(b, STRING, 4);
    put_le(b, 2, 8);
    put_string(b, "one");
    put_string(b, "");
    put_string(b, "list.i");
    put_le(b, ARRAY, 4);
    put_le(b, I16, 4);
    put_le(b, 2, 8);
    put_le(b, 0xfffe, 2);
    put_le(b, 3, 2);
    put_tensor(b, "x", 2, (const uint64_t[]){3, 2}, GGML_F32, 0);
    put_tensor(b, "h", 1, (const uint64_t[]){4}, GGML_F16, 64);
    put_tensor(b, "q", 2, (const uint64_t[]){32, 1}, GGML_Q8_0, 128);
    size_t head = b->len;
    put_data(b, 64, GOOD_DATA);
    return head;
}

static void opens_what_is_right(void **state)
{
    for (unsigned version = 2; version <= 3; version++) {
        struct bytes b;
        build_good(&b, version);
        unsigned char *block;
        struct err err;
        struct checkpoint *c = open_bytes(CHECKPOINT_GGUF, b.data, b.len, &block, &err);
        if (!c)
            fail_msg("%s", err.text);
        const struct tensor *t = checkpoint_tensor(c, STR("x"));
        assert_int_equal(checkpoint_n_tensors(c), 3);
        assert_int_equal(t->dims[0], 2); /* outermost first */
        assert_int_equal(t->dims[1], 3);
        assert_int_equal(((const unsigned char *)checkpoint_tensor(c, STR("h"))->data)[0], 64);
        assert_int_equal(checkpoint_tensor(c, STR("q"))->bytes, 34);
        touch(c);
        struct gguf_value v;
        struct str s, list[2];
        int32_t numbers[2];
        int flag;
        assert_true(checkpoint_meta_str(c, "general.architecture", &s) && str_equal(s, STR("llama")));
        assert_true(checkpoint_meta(c, "a.i8", &v) && v.i == -1 && v.kind == GGUF_INT);
        assert_true(checkpoint_meta(c, "a.u16", &v) && v.u == 65535);
        assert_true(checkpoint_meta(c, "a.i64", &v) && v.i == -5);
        assert_true(checkpoint_meta_bool(c, "a.bool", &flag) && flag == 1);
        assert_true(checkpoint_meta(c, "a.f32", &v) && v.kind == GGUF_FLOAT && v.f == 1.5);
        assert_true(checkpoint_meta_str_array(c, "list.s", list, 2) && str_equal(list[0], STR("one")) && list[1].len == 0);
        assert_false(checkpoint_meta_str_array(c, "list.s", list, 1));
        assert_true(checkpoint_meta_i32_array(c, "list.i", numbers, 2) && numbers[0] == -2 && numbers[1] == 3);
        assert_false(checkpoint_meta_str(c, "a.i8", &s));
        assert_false(checkpoint_meta(c, "absent", &v));
        checkpoint_close(c);
        free(block);
        free(b.data);
    }
}

/* What was checked at open is not what a file that is written in place says later. */
static void stands_a_header_that_changes_after_open(void **state)
{
    struct bytes b;
    size_t head = build_good(&b, 3);
    unsigned char *block;
    struct err err;
    struct checkpoint *c = open_bytes(CHECKPOINT_GGUF, b.data, b.len, &block, &err);
    assert_non_null(c);
    struct str s, list[2];
    memset(block, 0x7f, head);
    assert_true(checkpoint_meta_str(c, "general.architecture", &s) && str_equal(s, STR("llama")));
    assert_true(checkpoint_meta_str_array(c, "list.s", list, 2) && str_equal(list[0], STR("one")) && list[1].len == 0);
    touch(c);
    checkpoint_close(c);
    free(block);
    free(b.data);
}

static void refuses_every_cut(void **state)
{
    struct bytes b;
    build_good(&b, 3);
    for (size_t len = 0; len < b.len; len++)
        assert_false(open_and_close(CHECKPOINT_GGUF, b.data, len));
    free(b.data);
}

static void stands_every_changed_byte(void **state)
{
    struct bytes b;
    size_t head = build_good(&b, 3);
    for (size_t i = 0; i < head; i++) {
        unsigned char was = b.data[i];
        for (unsigned bit = 0; bit < 8; bit++) {
            b.data[i] = (unsigned char)(was ^ (1u << bit));
            open_and_close(CHECKPOINT_GGUF, b.data, b.len);
        }
        b.data[i] = was ^ 0xff;
        open_and_close(CHECKPOINT_GGUF, b.data, b.len);
        b.data[i] = was;
    }
    free(b.data);
}

/* Two tensors, 64 bytes of data: what is wrong with them is in the parameters. */
struct lie {
    uint64_t dims[4], second_dims[4];
    unsigned n_dims, type;
    uint64_t offset;
    size_t data;
    const char *second_name;
    enum err_code code;
    const char *text, *text2;
};

static const struct lie lies[] = {
    {{4}, {4}, 1, GGML_F32, 0, 16, "b", ERR_MODEL_DAMAGED, "tensor 'b' (16 bytes at offset 32)", "(16 bytes)"},
    {{4}, {4}, 1, GGML_F32, 16, 64, "b", ERR_MODEL_DAMAGED, "offset of tensor 'a' is 16", "alignment 32"},
    {{16}, {4}, 1, GGML_F32, 0, 64, "b", ERR_MODEL_DAMAGED, "'a' and 'b' overlap by 32 bytes", ""},
    {{4}, {4}, 1, GGML_F32, 32, 64, "b", ERR_MODEL_DAMAGED, "overlap by 16 bytes", "'b'"},
    {{4}, {4}, 1, GGML_F32, 0, 64, "a", ERR_MODEL_DAMAGED, "'a' is there twice", ""},
    {{4}, {4}, 1, 31, 0, 64, "b", ERR_MODEL_UNSUPPORTED, "'a' is of ggml type 31", "supported: F32"},
    {{4}, {4}, 1, 4000000000u, 0, 64, "b", ERR_MODEL_UNSUPPORTED, "type 4000000000", ""},
    {{4}, {4}, 5, GGML_F32, 0, 64, "b", ERR_MODEL_DAMAGED, "'a' has 5 dimensions", "at most 4"},
    {{(uint64_t)1 << 33, (uint64_t)1 << 33}, {4}, 2, GGML_F32, 0, 64, "b", ERR_MODEL_DAMAGED, "'a' overflow", ""},
    {{(uint64_t)1 << 62}, {4}, 1, GGML_F32, 0, 64, "b", ERR_MODEL_DAMAGED, "'a' overflow", ""},
    {{UINT64_MAX}, {4}, 1, GGML_F32, 0, 64, "b", ERR_MODEL_DAMAGED, "dimension 0 of tensor 'a'", "18446744073709551615"},
    {{33}, {4}, 1, GGML_Q4_0, 0, 64, "b", ERR_MODEL_DAMAGED, "'a' have 33 elements", "multiple of 32"},
    {{4}, {4}, 1, GGML_F32, UINT64_MAX - 31, 64, "b", ERR_MODEL_DAMAGED, "tensor 'a' (16 bytes at offset", "64 bytes"},
    {{4}, {4}, 1, GGML_F32, 0, 64, "", ERR_MODEL_DAMAGED, "has 0 bytes", ""},
};

static void names_the_lie(void **state)
{
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        const struct lie *l = &lies[i];
        struct bytes b = {0};
        put_head(&b, 3, 2, 0);
        put_string(&b, "a");
        put_le(&b, l->n_dims, 4);
        for (unsigned k = 0; k < l->n_dims && k < 4; k++)
            put_le(&b, l->dims[k], 8);
        put_le(&b, l->type, 4);
        put_le(&b, l->offset, 8);
        put_tensor(&b, l->second_name, 1, l->second_dims, GGML_F32, 32);
        put_data(&b, 32, l->data);
        unsigned char *block;
        struct err err;
        struct checkpoint *c = open_bytes(CHECKPOINT_GGUF, b.data, b.len, &block, &err);
        if (c)
            fail_msg("lie %zu was believed", i);
        if (err.code != l->code)
            fail_msg("lie %zu: code %d: %s", i, err.code, err.text);
        expect_text(&err, l->text);
        expect_text(&err, l->text2);
        free(block);
        free(b.data);
    }
}

static void expect_head(struct bytes *b, enum err_code code, const char *text)
{
    unsigned char *block;
    struct err err;
    put_data(b, 32, 64);
    if (open_bytes(CHECKPOINT_GGUF, b->data, b->len, &block, &err))
        fail_msg("opened; expected '%s'", text);
    if (err.code != code)
        fail_msg("code %d: %s", err.code, err.text);
    expect_text(&err, text);
    free(block);
    free(b->data);
    *b = (struct bytes){0};
}

static void bounds_the_header(void **state)
{
    struct bytes b = {0};
    put(&b, "GGML", 4);
    expect_head(&b, ERR_MODEL_DAMAGED, "not 'GGUF'");
    put_head(&b, 1, 0, 0);
    expect_head(&b, ERR_MODEL_UNSUPPORTED, "version 1");
    put_head(&b, 4, 0, 0);
    expect_head(&b, ERR_MODEL_UNSUPPORTED, "version 4");
    put_head(&b, 0x03000000, 0, 0);
    expect_head(&b, ERR_MODEL_UNSUPPORTED, "big-endian");
    put_head(&b, 3, UINT64_MAX, 0);
    expect_head(&b, ERR_MODEL_DAMAGED, "18446744073709551615 tensors");
    put_head(&b, 3, 0, (uint64_t)1 << 60);
    expect_head(&b, ERR_MODEL_DAMAGED, "1152921504606846976 metadata entries");
    put_head(&b, 3, 0, 1);
    put_le(&b, UINT64_MAX, 8);
    expect_head(&b, ERR_MODEL_DAMAGED, "should have 18446744073709551615 bytes");
    put_head(&b, 3, 0, 1);
    put_uint(&b, "key", 13, 0, 8);
    expect_head(&b, ERR_MODEL_DAMAGED, "'key' is of the unknown type 13");
    const struct {
        uint64_t element, n;
        const char *text;
    } arrays[] = {{U8, (uint64_t)1 << 62, "'list' should have 4611686018427387904 values"},
                  {STRING, 100000, "'list' should have 100000 values"},
                  {ARRAY, 1, "array of arrays"},
                  {77, 1, "unknown type 77"}};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        put_head(&b, 3, 0, 1);
        put_string(&b, "list");
        put_le(&b, ARRAY, 4);
        put_le(&b, arrays[i].element, 4);
        put_le(&b, arrays[i].n, 8);
        expect_head(&b, arrays[i].element == ARRAY ? ERR_MODEL_UNSUPPORTED : ERR_MODEL_DAMAGED, arrays[i].text);
    }
    const uint64_t alignments[] = {0, 3, 33, (uint64_t)1 << 31};
    for (size_t i = 0; i < sizeof alignments / sizeof alignments[0]; i++) {
        put_head(&b, 3, 0, 1);
        put_uint(&b, "general.alignment", U32, alignments[i], 4);
        expect_head(&b, ERR_MODEL_DAMAGED, "general.alignment is");
    }
    put_head(&b, 3, 0, 2);
    put_uint(&b, "twice", U32, 1, 4);
    put_uint(&b, "twice", U32, 1, 4);
    expect_head(&b, ERR_MODEL_DAMAGED, "'twice' is there twice");
}

/* ---- split files ---------------------------------------------------------------------------------------------------- */

#define PART "tests/golden/models/gguf-llama-q8_0-split/model-0000%d-of-00003.gguf"

static void copy_part(const char *dir, int from, const char *name, size_t cut)
{
    char path[256];
    snprintf(path, sizeof path, PART, from);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    static unsigned char data[1 << 20];
    size_t len = fread(data, 1, sizeof data, f);
    fclose(f);
    assert_true(len > cut && len < sizeof data);
    write_file(dir, name, data, len - cut);
}

static void expect_split(const char *dir, const char *first, const char *text, const char *text2)
{
    struct err err = {0};
    char *path = join(dir, first);
    struct checkpoint *c = checkpoint_open(path, &err);
    if (c)
        fail_msg("opened; expected '%s'", text);
    assert_int_equal(err.code, ERR_MODEL_DAMAGED);
    expect_text(&err, text);
    expect_text(&err, text2);
    free(path);
}

static void refuses_incomplete_splits(void **state)
{
    static const char one[] = "m-00001-of-00003.gguf", two[] = "m-00002-of-00003.gguf", three[] = "m-00003-of-00003.gguf";
    char *dir = temporary_folder();
    copy_part(dir, 1, one, 0);
    copy_part(dir, 3, three, 0);
    expect_split(dir, one, two, "missing");
    expect_split(dir, three, two, "missing");
    copy_part(dir, 3, two, 0); /* the third part under the second's name */
    expect_split(dir, one, two, "part 3 of 3, but its name puts it at part 2");
    copy_part(dir, 2, two, 1);
    expect_split(dir, one, two, "cut or damaged");
    copy_part(dir, 2, two, 0);
    struct err err = {0};
    char *path = join(dir, two);
    struct checkpoint *c = checkpoint_open(path, &err); /* of a split model any part names it */
    if (!c)
        fail_msg("%s", err.text);
    touch(c);
    checkpoint_close(c);
    free(path);
    c = checkpoint_open(dir, &err);
    if (!c)
        fail_msg("%s", err.text);
    checkpoint_close(c);
    remove_folder(dir);

    dir = temporary_folder(); /* a part on its own, renamed so that it looks whole */
    copy_part(dir, 1, "whole.gguf", 0);
    expect_split(dir, "whole.gguf", "whole.gguf", "3");
    remove_folder(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opens_what_is_right),
        cmocka_unit_test(stands_a_header_that_changes_after_open),
        cmocka_unit_test(refuses_every_cut),
        cmocka_unit_test(stands_every_changed_byte),
        cmocka_unit_test(names_the_lie),
        cmocka_unit_test(bounds_the_header),
        cmocka_unit_test(refuses_incomplete_splits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* safetensors files built in memory: good ones, ones cut at every byte, ones with every header byte changed, ones that
 * lie; and folders: sharded, incomplete, with pickles only. */
#include "files.h"

#define GOOD \
    "{\"__metadata__\":{\"format\":\"pt\"}," \
    "\"a.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}," \
    "\"b\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[24,32]}," \
    "\"s\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[32,40]}," \
    "\"q\":{\"dtype\":\"F8_E4M3\",\"shape\":[5],\"data_offsets\":[40,45]}," \
    "\"n\":{\"dtype\":\"I64\",\"shape\":[0,7],\"data_offsets\":[45,45]}}"
#define GOOD_DATA 45

static struct bytes build(const char *header, size_t data_bytes)
{
    struct bytes b = {0};
    put_le(&b, strlen(header), 8);
    put(&b, header, strlen(header));
    for (size_t i = 0; i < data_bytes; i++)
        put_le(&b, i, 1);
    return b;
}

static void opens_what_is_right(void **state)
{
    struct bytes b = build(GOOD, GOOD_DATA);
    unsigned char *block;
    struct err err;
    struct checkpoint *c = open_bytes(CHECKPOINT_HF, b.data, b.len, &block, &err);
    if (!c)
        fail_msg("%s", err.text);
    assert_int_equal(checkpoint_n_tensors(c), 5);
    assert_int_equal(checkpoint_n_parameters(c), 6 + 4 + 1 + 5);
    const struct tensor *t = checkpoint_tensor(c, STR("a.weight"));
    assert_int_equal(t->type, DTYPE_F32);
    assert_int_equal(t->n_dims, 2);
    assert_int_equal(t->dims[0], 2);
    assert_int_equal(t->dims[1], 3);
    t = checkpoint_tensor(c, STR("q"));
    assert_int_equal(t->type, DTYPE_F8_E4M3);
    assert_int_equal(((const unsigned char *)t->data)[0], 40);
    assert_int_equal(checkpoint_tensor(c, STR("s"))->n_dims, 0);
    assert_null(checkpoint_tensor(c, STR("a.weigh")));
    assert_null(checkpoint_tensor(c, STR("__metadata__")));
    assert_null(checkpoint_tensor_at(c, 5));
    touch(c);
    checkpoint_close(c);
    free(block);
    free(b.data);
}

static void refuses_every_cut(void **state)
{
    struct bytes b = build(GOOD, GOOD_DATA);
    for (size_t len = 0; len < b.len; len++)
        assert_false(open_and_close(CHECKPOINT_HF, b.data, len));
    put_le(&b, 0, 1);
    assert_false(open_and_close(CHECKPOINT_HF, b.data, b.len));
    free(b.data);
}

static void stands_every_changed_byte(void **state)
{
    struct bytes b = build(GOOD, GOOD_DATA);
    for (size_t i = 0; i < b.len - GOOD_DATA; i++) {
        unsigned char was = b.data[i];
        for (unsigned bit = 0; bit < 8; bit++) {
            b.data[i] = (unsigned char)(was ^ (1u << bit));
            open_and_close(CHECKPOINT_HF, b.data, b.len);
        }
        b.data[i] = was ^ 0xff;
        open_and_close(CHECKPOINT_HF, b.data, b.len);
        b.data[i] = was;
    }
    free(b.data);
}

static const struct {
    const char *header;
    size_t data_bytes;
    enum err_code code;
    const char *text, *text2;
} lies[] = {
    {"{\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 7, ERR_MODEL_DAMAGED, "'x'", "7 bytes"},
    {"{\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 9, ERR_MODEL_DAMAGED, "1 bytes behind", ""},
    {"{\"x\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, ERR_MODEL_DAMAGED, "12 bytes", "'x'"},
    {"{\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, ERR_MODEL_DAMAGED, "'x'", "8 to 0"},
    {"{\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", 8, ERR_MODEL_DAMAGED, "'x'", "-8"},
    {"{\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}", 12, ERR_MODEL_DAMAGED, "4 bytes before", "'x'"},
    {"{\"x\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"y\":{\"dtype\":\"U8\",\"shape\":[4],"
     "\"data_offsets\":[2,6]}}",
     6, ERR_MODEL_DAMAGED, "overlap by 2 bytes", "'y'"},
    {"{\"x\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"y\":{\"dtype\":\"U8\",\"shape\":[4],"
     "\"data_offsets\":[0,4]}}",
     4, ERR_MODEL_DAMAGED, "overlap by 4 bytes", "'x'"},
    {"{\"x\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"x\":{\"dtype\":\"U8\",\"shape\":[4],"
     "\"data_offsets\":[4,8]}}",
     8, ERR_MODEL_DAMAGED, "duplicate", "x"},
    {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0, ERR_MODEL_DAMAGED, "overflow",
     "'x'"},
    {"{\"x\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0, ERR_MODEL_DAMAGED, "overflow",
     "'x'"},
    {"{\"x\":{\"dtype\":\"F32\",\"shape\":[99999999999999999999],\"data_offsets\":[0,0]}}", 0, ERR_MODEL_DAMAGED, "integer",
     ""},
    {"{\"x\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,0]}}", 0, ERR_MODEL_DAMAGED, "dimension 0", "'x'"},
    {"{\"x\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,0]}}", 0, ERR_MODEL_DAMAGED, "dimension 0", "'x'"},
    {"{\"x\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, ERR_MODEL_DAMAGED, "9 dimensions",
     "'x'"},
    {"{\"x\":{\"dtype\":\"F4\",\"shape\":[2],\"data_offsets\":[0,1]}}", 1, ERR_MODEL_UNSUPPORTED, "'F4'", "'x'"},
    {"{\"x\":{\"shape\":[2],\"data_offsets\":[0,1]}}", 1, ERR_MODEL_DAMAGED, "no dtype", "'x'"},
    {"{\"x\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, ERR_MODEL_DAMAGED, "no shape", "'x'"},
    {"{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1, ERR_MODEL_DAMAGED, "two integers", "'x'"},
    {"{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}}", 1, ERR_MODEL_DAMAGED, "two integers", "'x'"},
    {"{\"x\":7}", 0, ERR_MODEL_DAMAGED, "no dtype", "'x'"},
    {"{\"x\\u0000y\":7}", 0, ERR_MODEL_DAMAGED, "JSON", ""},
    {"[1]", 0, ERR_MODEL_DAMAGED, "not an object", ""},
    {"{\"x\\u0001\\n\":{}}", 0, ERR_MODEL_DAMAGED,
     "'x?"
     "?'",
     ""},
    {"", 4, ERR_MODEL_DAMAGED, "JSON", ""},
};

static void names_the_lie(void **state)
{
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        struct bytes b = build(lies[i].header, lies[i].data_bytes);
        unsigned char *block;
        struct err err;
        struct checkpoint *c = open_bytes(CHECKPOINT_HF, b.data, b.len, &block, &err);
        if (c)
            fail_msg("opened: %s", lies[i].header);
        if (err.code != lies[i].code)
            fail_msg("code %d for %s: %s", err.code, lies[i].header, err.text);
        expect_text(&err, lies[i].text);
        expect_text(&err, lies[i].text2);
        free(block);
        free(b.data);
    }
}

static void bounds_the_header(void **state)
{
    struct bytes b = {0};
    const uint64_t lengths[] = {UINT64_MAX, UINT64_MAX - 7, (uint64_t)1 << 63, (uint64_t)33 << 20, 100};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        b.len = 0;
        put_le(&b, lengths[i], 8);
        put(&b, "{}", 2);
        assert_false(open_and_close(CHECKPOINT_HF, b.data, b.len));
    }
    free(b.data);

    const size_t n = 100000; /* nested far deeper than the parser's bound, and far wider than the values' bound */
    char *deep = calloc(n + 1, 1);
    memset(deep, '[', n);
    b = build(deep, 0);
    assert_false(open_and_close(CHECKPOINT_HF, b.data, b.len));
    free(b.data);
    free(deep);
    const size_t wide_bytes = 9 << 20;
    char *wide = malloc(wide_bytes + 1);
    for (size_t i = 0; i < wide_bytes; i++)
        wide[i] = i % 2 ? ',' : '1';
    wide[wide_bytes] = 0;
    b = build(wide, 0);
    unsigned char *block;
    struct err err;
    assert_null(open_bytes(CHECKPOINT_HF, b.data, b.len, &block, &err));
    expect_text(&err, "more than");
    free(block);
    free(b.data);
    free(wide);
}

/* ---- folders ------------------------------------------------------------------------------------------------------- */

#define ONE(name) "{\"" name "\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}"

static void write_shard(const char *dir, const char *name, const char *header, size_t data_bytes)
{
    struct bytes b = build(header, data_bytes);
    write_file(dir, name, b.data, b.len);
    free(b.data);
}

static void expect_refusal(const char *dir, enum err_code code, const char *text, const char *text2)
{
    struct err err = {0};
    struct checkpoint *c = checkpoint_open(dir, &err);
    if (c)
        fail_msg("opened; expected '%s'", text);
    if (err.code != code)
        fail_msg("code %d, expected %d: %s", err.code, code, err.text);
    expect_text(&err, text);
    expect_text(&err, text2);
}

static void opens_a_folder(void **state)
{
    char *dir = temporary_folder();
    struct err err = {0};
    struct str text;
    expect_refusal(dir, ERR_MODEL_NOT_FOUND, "holds no model", "");
    write_file(dir, "pytorch_model.bin", "PK", 2);
    write_file(dir, "config.json", "{\"a\":1}", 7);
    expect_refusal(dir, ERR_MODEL_UNSUPPORTED, "pytorch_model.bin", "safe_serialization=True");
    write_file(dir, "model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", 55);
    expect_refusal(dir, ERR_MODEL_DAMAGED, "Git LFS pointer", "model.safetensors");
    write_file(dir, "model.safetensors", "", 0);
    expect_refusal(dir, ERR_MODEL_DAMAGED, "is empty", "model.safetensors");
    write_shard(dir, "model.safetensors", GOOD, GOOD_DATA);
    struct checkpoint *c = checkpoint_open(dir, &err);
    if (!c)
        fail_msg("%s", err.text);
    assert_int_equal(checkpoint_kind(c), CHECKPOINT_HF);
    uint64_t sum = touch(c);
    for (size_t i = 0; i < checkpoint_n_tensors(c); i++)
        checkpoint_forget(c, checkpoint_tensor_at(c, i));
    assert_true(touch(c) == sum);
    assert_true(checkpoint_file(c, "config.json", &text, &err));
    assert_true(str_equal(text, STR("{\"a\":1}")));
    const char *same = text.ptr;
    assert_true(checkpoint_file(c, "config.json", &text, &err) && text.ptr == same);
    assert_true(checkpoint_file(c, "tokenizer.json", &text, &err) && text.len == 0);
    assert_false(checkpoint_file(c, "../secret", &text, &err));
    assert_false(checkpoint_meta_str(c, "general.architecture", &text));
    checkpoint_close(c);
    remove_folder(dir);
    expect_refusal("/nonexistent/model", ERR_MODEL_NOT_FOUND, "nonexistent/model", "No such file");
}

static void opens_shards(void **state)
{
    static const char index_name[] = "model.safetensors.index.json";
    char *dir = temporary_folder();
    struct err err = {0};
    write_file(dir, "config.json", "{}", 2);
    write_shard(dir, "model-00001-of-00002.safetensors", ONE("a"), 4);
    expect_refusal(dir, ERR_MODEL_DAMAGED, "one of 2 shards", "only 1");
    static const char map[] = "{\"metadata\":{},\"weight_map\":{\"a\":\"model-00001-of-00002.safetensors\","
                              "\"b\":\"model-00002-of-00002.safetensors\"}}";
    write_file(dir, index_name, map, sizeof map - 1);
    expect_refusal(dir, ERR_MODEL_DAMAGED, "model-00002-of-00002.safetensors is missing", "");
    write_shard(dir, "model-00002-of-00002.safetensors", ONE("c"), 4);
    expect_refusal(dir, ERR_MODEL_DAMAGED, "tensor 'b' should lie in model-00002", "");
    write_shard(dir, "model-00002-of-00002.safetensors", ONE("b"), 3);
    expect_refusal(dir, ERR_MODEL_DAMAGED, "model-00002-of-00002.safetensors", "'b'");
    /* a second copy of a, which the index puts into the other shard, is passed over */
    write_shard(dir, "model-00002-of-00002.safetensors",
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[1,5]}}",
                5);
    struct checkpoint *c = checkpoint_open(dir, &err);
    if (!c)
        fail_msg("%s", err.text);
    assert_int_equal(checkpoint_n_tensors(c), 2);
    assert_int_equal(checkpoint_tensor(c, STR("a"))->bytes, 4);
    assert_non_null(strstr(checkpoint_tensor(c, STR("b"))->file, "model-00002-of-00002.safetensors"));
    checkpoint_close(c);
    static const char *const bad[][2] = {
        {"{\"weight_map\":{\"a\":\"../model-00001-of-00002.safetensors\"}}", "not a plain"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "not a plain"},
        {"{\"weight_map\":{\"a\":\"config.json\"}}", "not a plain"},
        {"{\"weight_map\":{\"a\":7}}", "not a plain"},
        {"{\"weight_map\":{}}", "no weight_map"},
        {"{}", "no weight_map"},
        {"{", "JSON"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        write_file(dir, index_name, bad[i][0], strlen(bad[i][0]));
        expect_refusal(dir, ERR_MODEL_DAMAGED, index_name, bad[i][1]);
    }
    for (size_t len = 1; len < sizeof map - 1; len++) { /* the index, cut anywhere */
        write_file(dir, index_name, map, len);
        expect_refusal(dir, ERR_MODEL_DAMAGED, index_name, "JSON");
    }
    char *path = join(dir, index_name);
    assert_int_equal(unlink(path), 0);
    free(path);
    expect_refusal(dir, ERR_MODEL_DAMAGED, "'a' is there twice", "model-00001-of-00002");
    write_shard(dir, "model-00002-of-00002.safetensors", ONE("b"), 4);
    c = checkpoint_open(dir, &err);
    assert_non_null(c);
    assert_int_equal(checkpoint_n_tensors(c), 2);
    checkpoint_close(c);
    remove_folder(dir);
}

static void opens_the_golden_models(void **state)
{
    static const struct {
        const char *name;
        const char *tensor;
        enum dtype type;
    } models[] = {
        {"gpt2-f32", "transformer.wte.weight", DTYPE_F32},
        {"llama-bf16", "lm_head.weight", DTYPE_BF16},
        {"qwen3-sharded-f16", "model.layers.1.mlp.down_proj.weight", DTYPE_F16},
    };
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
        char *path = join("tests/golden/models", models[i].name);
        struct err err = {0};
        struct str text;
        struct checkpoint *c = checkpoint_open(path, &err);
        if (!c)
            fail_msg("%s", err.text);
        touch(c);
        assert_int_equal(checkpoint_tensor(c, str_from(models[i].tensor))->type, models[i].type);
        assert_true(checkpoint_file(c, "tokenizer.json", &text, &err) && text.len > 1000);
        checkpoint_close(c);
        free(path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opens_what_is_right),
        cmocka_unit_test(refuses_every_cut),
        cmocka_unit_test(stands_every_changed_byte),
        cmocka_unit_test(names_the_lie),
        cmocka_unit_test(bounds_the_header),
        cmocka_unit_test(opens_a_folder),
        cmocka_unit_test(opens_shards),
        cmocka_unit_test(opens_the_golden_models),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

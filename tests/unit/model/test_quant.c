/* Checkpoints that came quantized: what the plan says of them, configurations that are refused, and damaged files. That
 * their values are right is tested with all golden models (test_forward.c). */
#include "files.h"

#include "model/model_impl.h"

#include <fcntl.h>
#include <jansson.h>
#include <math.h>

#define GOLDEN "tests/golden/models/"

static const struct model_options OPTIONS = {.profile = PROFILE_AUTO, .rows_max = 16, .logit_rows_max = 16};

/* A copy of golden model `name` whose quantization_config has `key` set to `value` (JSON; NULL: left as it is). */
static char *variant(const char *name, const char *key, const char *value)
{
    char path[256];
    static unsigned char data[1 << 20];
    char *dir = temporary_folder();
    snprintf(path, sizeof path, GOLDEN "%s/config.json", name);
    json_t *config = json_load_file(path, 0, NULL);
    assert_non_null(config);
    if (key)
        json_object_set_new(json_object_get(config, "quantization_config"), key, json_loads(value, JSON_DECODE_ANY, NULL));
    char *text = json_dumps(config, 0);
    write_file(dir, "config.json", text, strlen(text));
    free(text);
    json_decref(config);
    snprintf(path, sizeof path, GOLDEN "%s/model.safetensors", name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    size_t len = fread(data, 1, sizeof data, f);
    assert_true(len < sizeof data);
    fclose(f);
    write_file(dir, "model.safetensors", data, len);
    return dir;
}

/* Writes `n` bytes into the data of tensor `name`, from byte `at`. */
static void damage(const char *dir, const char *name, size_t at, const void *bytes, size_t n)
{
    struct err err = {0};
    struct checkpoint *c = checkpoint_open(dir, &err);
    assert_non_null(c);
    const struct tensor *t = checkpoint_tensor(c, str_from(name));
    assert_non_null(t);
    assert_true(at + n <= t->bytes);
    long offset = (long)((const unsigned char *)t->data - c->files[0].bytes) + (long)at;
    checkpoint_close(c);
    char *path = join(dir, "model.safetensors");
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, offset, SEEK_SET), 0);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
    free(path);
}

/* Adds a tensor of `n` bytes, all 1, behind the others. */
static void add_tensor(const char *dir, const char *name, const char *dtype, const char *shape, size_t n)
{
    static unsigned char data[1 << 20];
    char *path = join(dir, "model.safetensors");
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    size_t len = fread(data, 1, sizeof data, f);
    fclose(f);
    free(path);
    uint64_t head;
    memcpy(&head, data, 8);
    size_t begin = 8 + (size_t)head, end = len - begin;
    json_t *all = json_loadb((const char *)data + 8, (size_t)head, 0, NULL);
    json_t *dims = json_loads(shape, 0, NULL);
    assert_non_null(all);
    assert_non_null(dims);
    json_object_set_new(
        all, name,
        json_pack("{s:s,s:o,s:[I,I]}", "dtype", dtype, "shape", dims, "data_offsets", (json_int_t)end, (json_int_t)(end + n)));
    char *text = json_dumps(all, JSON_COMPACT);
    struct bytes out = {0};
    put_le(&out, strlen(text), 8);
    put(&out, text, strlen(text));
    put(&out, data + begin, end);
    for (size_t i = 0; i < n; i++)
        put_le(&out, 1, 1);
    write_file(dir, "model.safetensors", out.data, out.len);
    free(out.data);
    free(text);
    json_decref(all);
}

/* Loads; on failure `plan` is untouched. */
static bool load(const char *dir, enum profile profile, struct model_plan *plan, struct err *err)
{
    *err = (struct err){0};
    struct model_options mo = OPTIONS;
    mo.profile = profile;
    struct checkpoint *c = checkpoint_open(dir, err);
    if (!c)
        fail_msg("%s", err->text);
    struct backend *b = backend_open_cpu(&(struct backend_options){.n_threads = 1, .isa = "auto"}, err);
    struct model *m = model_load(c, b, &mo, NULL, NULL, err);
    bool ok = m != NULL;
    if (ok)
        *plan = *model_planned(m);
    model_free(m);
    backend_close(b);
    checkpoint_close(c);
    return ok;
}

static void expect_refusal(const char *dir, enum err_code code, const char *text, const char *text2)
{
    struct model_plan plan;
    struct err err;
    if (load(dir, PROFILE_AUTO, &plan, &err))
        fail_msg("loaded; expected '%s'", text);
    if (err.code != code)
        fail_msg("code %d: %s", err.code, err.text);
    expect_text(&err, text);
    expect_text(&err, text2);
}

static void tells_how_it_is_held(void **state)
{
    static const struct {
        const char *name, *native, *exact;
    } models[] = {
        {"quant-gptq4", "gptq, 4 bits, groups of 32: kept as stored", "gptq, 4 bits, groups of 32: dequantized to F32"},
        {"quant-gptq4-order", "gptq, 4 bits, groups of 32, inputs reordered: kept as stored", "dequantized to F32"},
        {"quant-gptq8-rows", "gptq, 8 bits: kept as stored", "gptq, 8 bits: dequantized to F32"},
        {"quant-awq", "awq, 4 bits, groups of 32: kept as stored", "dequantized to F32"},
        {"quant-ct-int8", "compressed-tensors, 8 bits: kept as stored", "dequantized to F32"},
        {"quant-ct-fp8", "fp8, 8 bits: dequantized to F32", "fp8, 8 bits: dequantized to F32"},
        {"quant-bnb-nf4", "bitsandbytes, 4 bits, groups of 64: dequantized to BF16", "dequantized to BF16"},
        {"quant-bnb-int8", "bitsandbytes, 8 bits: kept as stored", "dequantized to F32"},
    };
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
        struct model_plan native, exact, small;
        struct err err;
        char *dir = variant(models[i].name, NULL, NULL);
        assert_true(load(dir, PROFILE_AUTO, &native, &err));
        assert_true(load(dir, PROFILE_FP16, &exact, &err));
        assert_true(load(dir, PROFILE_INT4, &small, &err));
        if (!strstr(native.stored, models[i].native) || !strstr(exact.stored, models[i].exact))
            fail_msg("%s: '%s', '%s'", models[i].name, native.stored, exact.stored);
        assert_int_equal(native.profile, PROFILE_NATIVE);
        assert_true(native.weight_bytes <= exact.weight_bytes && small.weight_bytes < exact.weight_bytes);
        remove_folder(dir);
    }
}

static void refuses_what_it_cannot_read(void **state)
{
    static const struct {
        const char *name, *key, *value;
        enum err_code code;
        const char *text, *text2;
    } cases[] = {
        {"quant-gptq4", "quant_method", "\"aqlm\"", ERR_MODEL_UNSUPPORTED, "aqlm", "gptq, awq, auto-round, compressed-tensors"},
        {"quant-gptq4", "bits", "3", ERR_MODEL_UNSUPPORTED, "bits 3", "4, 8"},
        {"quant-gptq4", "bits", "8", ERR_MODEL_DAMAGED, "q_proj.qweight' has 2 dimensions (8, 64)", "(16, 64)"},
        {"quant-gptq4", "checkpoint_format", "\"marlin\"", ERR_MODEL_UNSUPPORTED, "marlin", "gptq_v2"},
        {"quant-gptq4", "group_size", "64", ERR_MODEL_DAMAGED, "q_proj.scales' has 2 dimensions (2, 64)", "(1, 64)"},
        {"quant-gptq4", "checkpoint_format", "\"gptq_v2\"", ERR_MODEL_DAMAGED, "q_proj.qzeros' has the zero point 7",
         "symmetric (zero point 8)"},
        {"quant-gptq4-v1-asym", "sym", "true", ERR_MODEL_DAMAGED, "the zero point", "symmetric"},
        {"quant-gptq4", "quant_method", "\"auto-round\"", ERR_MODEL_UNSUPPORTED, "packing_format (absent)",
         "auto_round:auto_gptq"},
        {"quant-awq", "version", "\"gemv\"", ERR_MODEL_UNSUPPORTED, "gemv", "gemm"},
        {"quant-awq", "group_size", "16", ERR_MODEL_DAMAGED, "q_proj.scales'", "expected 2 (4, 64)"},
        {"quant-ct-int8", "format", "\"marlin-24\"", ERR_MODEL_UNSUPPORTED, "marlin-24", "pack-quantized"},
        {"quant-ct-int8", "sparsity_config", "{\"format\":\"sparse-bitmask\"}", ERR_MODEL_UNSUPPORTED, "sparse-bitmask", ""},
        {"quant-ct-int8", "transform_config", "{\"config_groups\":{\"R3\":{\"type\":\"hadamard\"}}}", ERR_MODEL_UNSUPPORTED,
         "transform_config", "hadamard"},
        {"quant-fp8-blocks", "weight_block_size", "[96,128]", ERR_MODEL_DAMAGED, "no scales of a matrix of", "96 x 128"},
        {"quant-fp8-blocks", "weight_block_size", "[128]", ERR_MODEL_UNSUPPORTED, "weight_block_size [128]",
         "two whole numbers"},
        {"quant-fp8-blocks", "quant_method", "\"gptq\"", ERR_MODEL_UNSUPPORTED, "bits (absent)", ""},
        {"quant-ct-fp8", "quant_method", "\"bitsandbytes\"", ERR_MODEL_UNSUPPORTED, "weight_scale' of shape", "no place"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *dir = variant(cases[i].name, cases[i].key, cases[i].value);
        expect_refusal(dir, cases[i].code, cases[i].text, cases[i].text2);
        remove_folder(dir);
    }
}

/* Zero points of 8-bit codes: of every group, or one; of any other type or shape they would be read past their end. */
static void checks_zero_points(void **state)
{
    static const struct {
        const char *dtype, *shape;
        size_t n;
        const char *text; /* NULL: right */
    } cases[] = {
        {"I8", "[64,1]", 64, NULL},
        {"I8", "[1]", 1, NULL},
        {"I8", "[]", 1, NULL},
        {"I8", "[0]", 0, "has 1 dimensions (0, 1)"},
        {"I8", "[64]", 64, "has 1 dimensions (64, 1)"},
        {"I8", "[1,1,1]", 1, "has 3 dimensions"},
        {"F32", "[1]", 4, "is of type F32, expected I8"},
        {"I64", "[]", 8, "is of type I64, expected I8"},
        {"I32", "[64,1]", 256, "is of type I32, expected I8"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct model_plan plan;
        struct err err;
        char *dir = variant("quant-ct-int8", NULL, NULL);
        add_tensor(dir, "model.layers.0.mlp.down_proj.weight_zero_point", cases[i].dtype, cases[i].shape, cases[i].n);
        if (cases[i].text)
            expect_refusal(dir, ERR_MODEL_DAMAGED, "down_proj.weight_zero_point'", cases[i].text);
        else if (!load(dir, PROFILE_AUTO, &plan, &err))
            fail_msg("%s %s: %s", cases[i].dtype, cases[i].shape, err.text);
        remove_folder(dir);
    }
}

static void refuses_damage(void **state)
{
    const int32_t out_of_range = 99, same_group = 1;
    char *dir = variant("quant-gptq4-order", NULL, NULL);
    damage(dir, "model.layers.1.mlp.up_proj.g_idx", 4 * 7, &out_of_range, 4);
    expect_refusal(dir, ERR_MODEL_DAMAGED, "up_proj.g_idx' puts input 7 into group 99", "2 groups");
    remove_folder(dir);
    dir = variant("quant-ct-int4-order", NULL, NULL);
    for (size_t i = 0; i < 64; i++)
        damage(dir, "model.layers.0.self_attn.o_proj.weight_g_idx", 4 * i, &same_group, 4);
    expect_refusal(dir, ERR_MODEL_DAMAGED, "o_proj.weight_g_idx' puts input 32 into group 1", "at most 32 inputs");
    remove_folder(dir);
    const float inf = INFINITY;
    dir = variant("quant-bnb-int8", NULL, NULL);
    damage(dir, "model.layers.0.mlp.up_proj.SCB", 8, &inf, 4);
    expect_refusal(dir, ERR_MODEL_DAMAGED, "up_proj.weight'", "");
    remove_folder(dir);
    dir = variant("quant-bnb-nf4", NULL, NULL);
    damage(dir, "model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4", 0, "[", 1);
    expect_refusal(dir, ERR_MODEL_DAMAGED, "up_proj.weight.quant_state.bitsandbytes__nf4' is no JSON", "dtype");
    remove_folder(dir);
}

/* What was read may be half old, half new; a file that took the place of the one that is open changes nothing of it. */
static void refuses_files_that_change_under_it(void **state)
{
    struct model_options mo = OPTIONS;
    struct err err = {0};
    struct backend *b = backend_open_cpu(&(struct backend_options){.n_threads = 1, .isa = "auto"}, &err);
    for (int in_place = 0; in_place < 2; in_place++) {
        char *dir = variant("quant-gptq4", NULL, NULL);
        struct checkpoint *c = checkpoint_open(dir, &err);
        assert_non_null(c);
        char *path = join(dir, "model.safetensors"), *other = join(dir, "other");
        if (!in_place) {
            write_file(dir, "other", "x", 1);
            assert_int_equal(rename(other, path), 0);
        }
        assert_int_equal(utimensat(AT_FDCWD, path, (struct timespec[2]){{.tv_sec = 1}, {.tv_sec = 1}}, 0), 0);
        struct model *m = model_load(c, b, &mo, NULL, NULL, &err);
        assert_true((m == NULL) == in_place);
        if (in_place)
            expect_text(&err, "model.safetensors was changed while it was read: load the model again");
        model_free(m);
        checkpoint_close(c);
        free(path);
        free(other);
        remove_folder(dir);
    }
    backend_close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tells_how_it_is_held),
        cmocka_unit_test(refuses_what_it_cannot_read),
        cmocka_unit_test(checks_zero_points),
        cmocka_unit_test(refuses_damage),
        cmocka_unit_test(refuses_files_that_change_under_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Files that do not fit their configuration: every text names file, tensor and both shapes; and plans of large models. */
#include "files.h"

#include "model/model_impl.h"

#include <jansson.h>

#define GOLDEN "tests/golden/models/"

static const struct model_options OPTIONS = {.rows_max = 16, .logit_rows_max = 16};

/* A folder with the weights of golden model `name` and its config.json with `key` set to `value` (JSON; NULL: as it is). */
static char *variant(const char *name, const char *key, const char *value)
{
    char path[256], target[1024], cwd[512];
    char *dir = temporary_folder();
    snprintf(path, sizeof path, GOLDEN "%s/config.json", name);
    json_t *config = json_load_file(path, 0, NULL);
    assert_non_null(config);
    if (key)
        json_object_set_new(config, key, json_loads(value, JSON_DECODE_ANY, NULL));
    char *text = json_dumps(config, 0);
    write_file(dir, "config.json", text, strlen(text));
    free(text);
    json_decref(config);
    assert_non_null(getcwd(cwd, sizeof cwd));
    snprintf(target, sizeof target, "%s/" GOLDEN "%s/model.safetensors", cwd, name);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    assert_int_equal(symlink(target, path), 0);
    return dir;
}

static bool plan(const char *dir, struct model_plan *out, struct err *err)
{
    *err = (struct err){0};
    struct checkpoint *c = checkpoint_open(dir, err);
    if (!c)
        fail_msg("%s", err->text);
    bool ok = model_plan(c, &OPTIONS, out, err);
    checkpoint_close(c);
    return ok;
}

static void expect_refusal(const char *name, const char *key, const char *value, enum err_code code, const char *part,
                           const char *second_part)
{
    struct model_plan p;
    struct err err;
    char *dir = variant(name, key, value);
    if (plan(dir, &p, &err))
        fail_msg("%s with %s = %s was accepted", name, key, value);
    if (err.code != code)
        fail_msg("code %d: %s", err.code, err.text);
    expect_text(&err, part);
    expect_text(&err, second_part);
    remove_folder(dir);
}

static void test_as_published(void **state)
{
    struct model_plan p;
    struct err err;
    char *dir = variant("llama-bias-f16", NULL, NULL);
    if (!plan(dir, &p, &err))
        fail_msg("%s", err.text);
    assert_true(p.weight_bytes > 0 && p.scratch_bytes > 0 && p.kv_page_bytes > 0 && p.tensor_bytes_max > 0);
    assert_string_equal(p.lossy, "");
    assert_int_equal(p.info.n_inner, 84);
    assert_int_equal(p.profile, PROFILE_FP16);
    remove_folder(dir);
}

static void test_wrong_shapes(void **state)
{
    expect_refusal("llama-tied-f32", "intermediate_size", "53", ERR_MODEL_DAMAGED,
                   "tensor 'model.layers.0.mlp.gate_proj.weight' has shape [52, 36]", "asks for [53, 36]");
    expect_refusal("llama-tied-f32", "num_key_value_heads", "1", ERR_MODEL_DAMAGED, "k_proj.weight' has shape [36, 36]",
                   "[12, 36]");
    expect_refusal("llama-tied-f32", "vocab_size", "289", ERR_MODEL_DAMAGED, "embed_tokens.weight' has shape [288, 36]",
                   "model.safetensors");
    expect_refusal("gpt2-f32", "n_positions", "255", ERR_MODEL_DAMAGED, "wpe.weight' has shape [256, 32]", "[255, 32]");
    expect_refusal("gpt2-f32", "n_inner", "100", ERR_MODEL_DAMAGED, "c_fc.weight' has shape [32, 128]", "[32, 100]");
    expect_refusal("opt-f32", "word_embed_proj_dim", "16", ERR_MODEL_DAMAGED, "embed_tokens.weight' has shape [288, 32]",
                   "[288, 16]");
    expect_refusal("qwen3-tied-f32", "head_dim", "12", ERR_MODEL_DAMAGED, "q_proj.weight", "[36, 36]");
}

static void test_missing_tensors(void **state)
{
    expect_refusal("llama-tied-f32", "num_hidden_layers", "3", ERR_MODEL_DAMAGED,
                   "'model.layers.2.input_layernorm.weight' of shape [36] is missing", "llama");
    expect_refusal("llama-tied-f32", "tie_word_embeddings", "false", ERR_MODEL_DAMAGED, "'lm_head.weight'", "missing");
    expect_refusal("llama-tied-f32", "attention_bias", "true", ERR_MODEL_DAMAGED, "q_proj.bias", "missing");
    expect_refusal("llama-tied-f32", "model_type", "\"qwen3\"", ERR_MODEL_DAMAGED, "q_norm.weight", "missing");
}

static void test_tensors_left_over(void **state)
{
    expect_refusal("llama-tied-f32", "num_hidden_layers", "1", ERR_MODEL_UNSUPPORTED, "'model.layers.1.", "9 such in all");
    expect_refusal("llama-bias-f16", "mlp_bias", "false", ERR_MODEL_UNSUPPORTED, "mlp.", "6 such in all");
    expect_refusal("qwen2-f32", "model_type", "\"llama\"", ERR_MODEL_UNSUPPORTED, "_proj.bias",
                   "no place in the llama architecture");
    expect_refusal("opt-f32", "enable_bias", "false", ERR_MODEL_UNSUPPORTED, ".bias", "no place in the opt architecture");
}

/* Stored twice with different values: not tied, whatever the configuration says. */
static void test_tied_by_values(void **state)
{
    struct model_plan untied, said_tied;
    struct err err;
    char *dir = variant("llama-bias-f16", NULL, NULL);
    assert_true(plan(dir, &untied, &err));
    remove_folder(dir);
    dir = variant("llama-bias-f16", "tie_word_embeddings", "true");
    assert_true(plan(dir, &said_tied, &err));
    remove_folder(dir);
    assert_int_equal(untied.weight_bytes, said_tied.weight_bytes);
}

static void test_options(void **state)
{
    struct model_plan p;
    struct err err = {0};
    struct checkpoint *c = checkpoint_open(GOLDEN "llama-tied-f32", &err);
    assert_non_null(c);
    struct model_options wrong[] = {{.rows_max = 0, .logit_rows_max = 1},
                                    {.rows_max = 4, .logit_rows_max = 5},
                                    {.rows_max = 4, .logit_rows_max = 0},
                                    {.rows_max = SIZE_MAX, .logit_rows_max = 1}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        assert_false(model_plan(c, &wrong[i], &p, &err));
    struct model_options small = OPTIONS, large = OPTIONS;
    large.rows_max = 32;
    assert_true(model_plan(c, &small, &p, &err));
    uint64_t scratch = p.scratch_bytes, weights = p.weight_bytes;
    assert_true(model_plan(c, &large, &p, &err));
    assert_true(p.scratch_bytes > scratch && p.weight_bytes == weights);
    large.context_max = 1 << 20;
    assert_true(model_plan(c, &large, &p, &err));
    assert_int_equal(p.info.context_max, 512);
    checkpoint_close(c);
}

static void test_no_config(void **state)
{
    struct model_plan p;
    struct err err;
    char *dir = variant("llama-tied-f32", NULL, NULL), *path = join(dir, "config.json");
    unlink(path);
    free(path);
    struct checkpoint *c = checkpoint_open(dir, &err);
    if (c) { /* else the folder was refused already */
        assert_false(model_plan(c, &OPTIONS, &p, &err));
        expect_text(&err, "config.json");
    }
    checkpoint_close(c);
    remove_folder(dir);
}

/* Keys and values are as exact as the products beside them need, unless another type is asked for. */
static void test_kv_type_of_a_profile(void **state)
{
    static const struct {
        const char *model;
        enum profile profile;
        enum kv_type asked, got;
    } cases[] = {{"llama-bf16", PROFILE_AUTO, KV_AUTO, KV_I24},
                 {"llama-bf16", PROFILE_FP16, KV_AUTO, KV_I24},
                 {"llama-bf16", PROFILE_INT8, KV_AUTO, KV_I16},
                 {"llama-bf16", PROFILE_INT4, KV_AUTO, KV_I16},
                 {"gguf-qwen2-q4_0/model.gguf", PROFILE_AUTO, KV_AUTO, KV_I24},
                 {"gguf-qwen2-q4_0/model.gguf", PROFILE_INT8, KV_AUTO, KV_I16},
                 {"llama-bf16", PROFILE_INT8, KV_F32, KV_F32},
                 {"llama-bf16", PROFILE_FP16, KV_I8, KV_I8}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct model_options options = {
            .profile = cases[i].profile, .kv_type = cases[i].asked, .rows_max = 4, .logit_rows_max = 4};
        struct model_plan p;
        struct err err = {0};
        char path[256];
        snprintf(path, sizeof path, GOLDEN "%s", cases[i].model);
        struct checkpoint *c = checkpoint_open(path, &err);
        assert_non_null(c);
        assert_true(model_plan(c, &options, &p, &err));
        assert_int_equal(p.kv_type, cases[i].got);
        checkpoint_close(c);
    }
}

/* ---- shapes that this machine cannot hold: config.json alone ---- */

static bool plan_shape(const char *config, enum profile profile, struct model_plan *p, struct err *err)
{
    *err = (struct err){0};
    char *dir = temporary_folder();
    write_file(dir, "config.json", config, strlen(config));
    struct model_options options = {.profile = profile, .kv_type = KV_F32, .rows_max = 512, .logit_rows_max = 512};
    struct checkpoint *c = checkpoint_open_shape(dir, err);
    bool ok = c && model_plan(c, &options, p, err);
    checkpoint_close(c);
    remove_folder(dir);
    return ok;
}

#define LLAMA3_70B \
    "\"model_type\":\"llama\",\"hidden_size\":8192,\"intermediate_size\":28672,\"num_hidden_layers\":80," \
    "\"num_attention_heads\":64,\"num_key_value_heads\":8,\"vocab_size\":128256,\"max_position_embeddings\":8192," \
    "\"rope_theta\":500000.0,\"torch_dtype\":\"bfloat16\",\"tie_word_embeddings\":false"
#define QWEN2_72B \
    "\"model_type\":\"qwen2\",\"hidden_size\":8192,\"intermediate_size\":29568,\"num_hidden_layers\":80," \
    "\"num_attention_heads\":64,\"num_key_value_heads\":8,\"vocab_size\":152064,\"max_position_embeddings\":32768," \
    "\"rope_theta\":1000000.0,\"torch_dtype\":\"bfloat16\",\"tie_word_embeddings\":false"
#define MISTRAL_120B \
    "\"model_type\":\"mistral\",\"hidden_size\":12288,\"intermediate_size\":28672,\"num_hidden_layers\":88," \
    "\"num_attention_heads\":96,\"num_key_value_heads\":8,\"head_dim\":128,\"vocab_size\":32768," \
    "\"max_position_embeddings\":131072,\"sliding_window\":null,\"torch_dtype\":\"bfloat16\",\"tie_word_embeddings\":false"

static void test_plans_of_large_shapes(void **state)
{
    static const struct {
        const char *config;
        uint64_t parameters;
        size_t kv_token_bytes; /* of 16 bits a number: layers * 2 * heads * head_dim * 2; fp32 takes twice that */
    } shapes[] = {
        {"{" LLAMA3_70B "}", 70553706496, 80 * 2 * 8 * 128 * 2},
        {"{" QWEN2_72B "}", 72706203648, 80 * 2 * 8 * 128 * 2},
        {"{" MISTRAL_120B "}", 122610069504, 88 * 2 * 8 * 128 * 2},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct model_plan fp16, int8, int4;
        struct err err;
        if (!plan_shape(shapes[i].config, PROFILE_AUTO, &fp16, &err) ||
            !plan_shape(shapes[i].config, PROFILE_INT8, &int8, &err) ||
            !plan_shape(shapes[i].config, PROFILE_INT4, &int4, &err))
            fail_msg("%s", err.text);
        assert_int_equal(fp16.profile, PROFILE_FP16);
        if (fp16.info.n_parameters != shapes[i].parameters)
            fail_msg("shape %zu: %llu parameters", i, (unsigned long long)fp16.info.n_parameters);
        assert_int_equal(fp16.info.kv_token_bytes, 2 * shapes[i].kv_token_bytes);
        /* 16 bits a parameter; vectors are held as fp32. 8 bits and a 16-bit scale for at most 256 inputs; 4 bits and a
         * scale for 64, with embedding and head in 8 bits. */
        double n = (double)shapes[i].parameters;
        assert_true((double)fp16.weight_bytes >= 2 * n && (double)fp16.weight_bytes < 2.001 * n);
        assert_true((double)int8.weight_bytes > n && (double)int8.weight_bytes < 1.04 * n);
        assert_true((double)int4.weight_bytes > 0.5 * n && (double)int4.weight_bytes < 0.58 * n);
        uint64_t sum = 0;
        for (enum weight_kind k = 0; k < WEIGHT_KINDS; k++)
            sum += int4.kind_bytes[k];
        assert_int_equal(sum, int4.weight_bytes);
        assert_true(int4.kind_bytes[KIND_MLP] > int4.kind_bytes[KIND_ATTENTION]);
    }
}

static void test_plan_of_a_quantized_shape(void **state)
{
    struct model_plan p, exact;
    struct err err;
    static const char gptq[] = "{" LLAMA3_70B ",\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4,"
                               "\"group_size\":128,\"sym\":true}}";
    if (!plan_shape(gptq, PROFILE_AUTO, &p, &err) || !plan_shape("{" LLAMA3_70B "}", PROFILE_AUTO, &exact, &err))
        fail_msg("%s", err.text);
    assert_int_equal(p.profile, PROFILE_NATIVE);
    assert_int_equal(p.info.n_parameters, exact.info.n_parameters);
    assert_true((double)p.weight_bytes < 0.58 * 70553706496.0 + 2 * 2.0 * 128256 * 8192);
    assert_string_equal(p.stored, "gptq, 4 bits, groups of 128: kept as stored");
    assert_false(plan_shape("{" LLAMA3_70B ",\"quantization_config\":{\"quant_method\":\"fp8\"}}", PROFILE_AUTO, &p, &err));
    expect_text(&err, "fetch the safetensors");
}

/* What the configuration alone tells is what the files then take. */
static void test_shape_is_the_checkpoint(void **state)
{
    static const char *const names[] = {"llama-bf16", "gpt2-f32", "opt-f32", "qwen2-bf16", "qwen3-bf16", "mistral-f16"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[128];
        struct model_plan shape, files;
        struct err err = {0};
        snprintf(path, sizeof path, GOLDEN "%s", names[i]);
        struct checkpoint *a = checkpoint_open_shape(path, &err), *b = checkpoint_open(path, &err);
        if (!a || !b || !model_plan(a, &OPTIONS, &shape, &err) || !model_plan(b, &OPTIONS, &files, &err))
            fail_msg("%s: %s", names[i], err.text);
        assert_int_equal(shape.weight_bytes, files.weight_bytes);
        assert_int_equal(shape.scratch_bytes, files.scratch_bytes);
        assert_int_equal(shape.kv_page_bytes, files.kv_page_bytes);
        struct backend *backend = backend_open_cpu(&(struct backend_options){.n_threads = 1, .isa = "ref"}, &err);
        assert_null(model_load(a, backend, &OPTIONS, NULL, NULL, &err));
        expect_text(&err, "no weights");
        backend_close(backend);
        checkpoint_close(a);
        checkpoint_close(b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_published),
        cmocka_unit_test(test_wrong_shapes),
        cmocka_unit_test(test_missing_tensors),
        cmocka_unit_test(test_tensors_left_over),
        cmocka_unit_test(test_tied_by_values),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_kv_type_of_a_profile),
        cmocka_unit_test(test_no_config),
        cmocka_unit_test(test_plans_of_large_shapes),
        cmocka_unit_test(test_plan_of_a_quantized_shape),
        cmocka_unit_test(test_shape_is_the_checkpoint),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* config.json and GGUF metadata: defaults, both spellings of rotary scaling, hostile values, and texts that name the key. */
#include "files.h"

#include "model/model_impl.h"

#include <math.h>

#define LLAMA_SIZES \
    "\"model_type\":\"llama\",\"vocab_size\":288,\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":2," \
    "\"num_attention_heads\":4"

static bool parse(const char *json, struct model_config *m, struct err *err)
{
    *err = (struct err){0};
    return model_config_parse(str_from(json), (struct str){0}, m, err);
}

static void must_parse(const char *json, struct model_config *m)
{
    struct err err;
    if (!parse(json, m, &err))
        fail_msg("%s: %s", json, err.text);
}

static void test_llama_defaults(void **state)
{
    struct model_config m;
    must_parse("{" LLAMA_SIZES "}", &m);
    assert_int_equal(m.n_kv_heads, 4);
    assert_int_equal(m.head_dim, 16);
    assert_int_equal(m.context_max, 2048);
    assert_true(m.norm_eps == 1e-6 && m.rope.theta == 10000 && m.rope.kind == ROPE_DEFAULT && m.rope.n_pairs == 8);
    assert_true(!m.tied && !m.qkv_bias && !m.out_bias && !m.mlp_bias && m.n_eos == 0 && m.bos == -1);
}

static void test_defaults_differ_by_type(void **state)
{
    struct model_config m;
    must_parse("{\"model_type\":\"mistral\",\"vocab_size\":9,\"hidden_size\":64,\"intermediate_size\":9,"
               "\"num_hidden_layers\":3,\"num_attention_heads\":16}",
               &m);
    assert_int_equal(m.n_kv_heads, 8);
    assert_int_equal(m.window, 4096);
    assert_true(m.windowed[0] && m.windowed[2]);
    must_parse("{\"model_type\":\"qwen2\",\"vocab_size\":9,\"hidden_size\":64,\"intermediate_size\":9,"
               "\"num_hidden_layers\":3,\"num_attention_heads\":2,\"num_key_value_heads\":null,\"tie_word_embeddings\":true}",
               &m);
    assert_true(m.n_kv_heads == 2 && m.qkv_bias && !m.out_bias && m.tied && m.window == 0);
    must_parse("{\"model_type\":\"qwen3\",\"vocab_size\":9,\"hidden_size\":64,\"intermediate_size\":9,"
               "\"num_hidden_layers\":3,\"num_attention_heads\":32}",
               &m);
    assert_true(m.head_dim == 128 && m.head_norm && !m.qkv_bias);
    must_parse("{\"model_type\":\"gpt2\",\"vocab_size\":9,\"n_embd\":32,\"n_layer\":1,\"n_head\":2}", &m);
    assert_true(m.tied && m.n_inner == 128 && m.context_max == 1024 && m.activation == ACT_GELU_TANH && m.scale_by_head_dim);
    must_parse("{\"model_type\":\"opt\",\"vocab_size\":9,\"hidden_size\":32,\"ffn_dim\":8,\"num_hidden_layers\":1,"
               "\"num_attention_heads\":2,\"word_embed_proj_dim\":16,\"do_layer_norm_before\":false}",
               &m);
    assert_true(m.n_embed == 16 && m.norm_place == NORM_AFTER && !m.final_norm && m.activation == ACT_RELU && m.tied);
}

static void test_windows_by_layer(void **state)
{
    static const char *const QWEN = "{\"model_type\":\"qwen2\",\"vocab_size\":9,\"hidden_size\":64,\"intermediate_size\":9,"
                                    "\"num_hidden_layers\":3,\"num_attention_heads\":2,\"num_key_value_heads\":1,%s}";
    struct model_config m;
    char json[600];
    snprintf(json, sizeof json, QWEN, "\"use_sliding_window\":true,\"sliding_window\":7,\"max_window_layers\":2");
    must_parse(json, &m);
    assert_true(m.window == 7 && !m.windowed[0] && !m.windowed[1] && m.windowed[2]);
    snprintf(json, sizeof json, QWEN,
             "\"use_sliding_window\":true,\"sliding_window\":7,"
             "\"layer_types\":[\"sliding_attention\",\"full_attention\",\"sliding_attention\"]");
    must_parse(json, &m);
    assert_true(m.windowed[0] && !m.windowed[1] && m.windowed[2]);
    snprintf(json, sizeof json, QWEN, "\"use_sliding_window\":false,\"sliding_window\":7,\"max_window_layers\":0");
    must_parse(json, &m);
    assert_true(m.window == 0 && !m.windowed[2]);
    must_parse("{\"model_type\":\"smollm3\",\"vocab_size\":9,\"hidden_size\":64,\"intermediate_size\":9,"
               "\"num_hidden_layers\":4,\"num_attention_heads\":2,\"num_key_value_heads\":1,\"use_sliding_window\":true,"
               "\"sliding_window\":7,\"no_rope_layers\":[0,1,1,0]}",
               &m); /* layers that are not rotated have the window */
    assert_true(m.window == 7 && m.windowed[0] && !m.windowed[1] && !m.windowed[2] && m.windowed[3]);
}

static void test_end_tokens(void **state)
{
    struct model_config m;
    struct err err;
    struct str config = str_from("{" LLAMA_SIZES ",\"bos_token_id\":5,\"eos_token_id\":6}");
    assert_true(model_config_parse(config, str_from("{\"eos_token_id\":[7,8,7]}"), &m, &err));
    assert_true(m.bos == 5 && m.n_eos == 2 && m.eos[0] == 7 && m.eos[1] == 8);
    assert_true(model_config_parse(config, str_from("{}"), &m, &err));
    assert_true(m.n_eos == 1 && m.eos[0] == 6);
    assert_true(model_config_parse(config, str_from("{\"eos_token_id\":[0,1,2,3,4,5,6,7,8,9,10,-1,\"x\",1e9]}"), &m, &err));
    assert_int_equal(m.n_eos, CONFIG_EOS_MAX);
    assert_false(model_config_parse(config, str_from("[]"), &m, &err));
    expect_text(&err, "generation_config.json");
}

/* The old and the new spelling, and parameters nested by layer type, mean the same. */
static void test_rope_spellings(void **state)
{
    static const char *const SAME[] = {
        "\"rope_theta\":5e5,\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4,\"original_max_position_embeddings\":512}",
        "\"rope_theta\":500000,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0},\"original_max_position_embeddings\":512",
        "\"rope_parameters\":{\"rope_theta\":5e5,\"rope_type\":\"yarn\",\"factor\":4,"
        "\"original_max_position_embeddings\":512}",
        "\"rope_parameters\":{\"full_attention\":{\"rope_theta\":5e5,\"rope_type\":\"yarn\",\"factor\":4,"
        "\"original_max_position_embeddings\":512}}",
        "\"rope_theta\":5e5,\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":null,"
        "\"original_max_position_embeddings\":512}",
    };
    struct model_config first, m;
    struct err err;
    struct rope a, b;
    char json[800];
    for (size_t i = 0; i < sizeof SAME / sizeof SAME[0]; i++) {
        snprintf(json, sizeof json, "{" LLAMA_SIZES ",\"max_position_embeddings\":2048,%s}", SAME[i]);
        must_parse(json, &m);
        if (i == 0)
            first = m;
        assert_true(rope_init(&a, &first.rope, &err) && rope_init(&b, &m.rope, &err));
        assert_memory_equal(a.inv_freq, b.inv_freq, 8 * sizeof(double));
        assert_true(a.scale == b.scale && fabs(a.scale - (0.1 * log(4) + 1)) < 1e-12);
    }
}

static void test_length_classes(void **state)
{
    struct model_config m;
    struct err err;
    struct rope r;
    must_parse("{" LLAMA_SIZES ",\"max_position_embeddings\":100,\"rope_parameters\":{\"rope_type\":\"dynamic\","
               "\"factor\":2}}",
               &m);
    assert_true(rope_init(&r, &m.rope, &err));
    assert_true(rope_class(&r, 0) == 0 && rope_class(&r, 100) == 0 && rope_class(&r, 101) != rope_class(&r, 102));
    must_parse("{" LLAMA_SIZES "}", &m);
    assert_true(rope_init(&r, &m.rope, &err) && rope_class(&r, 1 << 30) == 0);
}

struct refusal {
    const char *json, *part;
    enum err_code code;
};

static void check_refusals(const struct refusal *list, size_t n)
{
    struct model_config m;
    struct err err;
    struct rope r;
    for (size_t i = 0; i < n; i++) {
        if (parse(list[i].json, &m, &err) && rope_init(&r, &m.rope, &err))
            fail_msg("accepted: %s", list[i].json);
        if (err.code != list[i].code)
            fail_msg("%s: code %d, text %s", list[i].json, err.code, err.text);
        expect_text(&err, list[i].part);
    }
}

#define L(more) "{" LLAMA_SIZES "," more "}"
#define SIZES(v, h, i, l, a) \
    "{\"model_type\":\"llama\",\"vocab_size\":" v ",\"hidden_size\":" h ",\"intermediate_size\":" i \
    ",\"num_hidden_layers\":" l ",\"num_attention_heads\":" a "}"

static void test_hostile_sizes(void **state)
{
    static const struct refusal LIST[] = {
        {"", "not a JSON object", ERR_MODEL_DAMAGED},
        {"[1]", "not a JSON object", ERR_MODEL_DAMAGED},
        {"{\"model_type\":", "not a JSON object", ERR_MODEL_DAMAGED},
        {"{}", "model_type", ERR_MODEL_DAMAGED},
        {"{\"model_type\":7}", "model_type", ERR_MODEL_DAMAGED},
        {"{\"model_type\":\"llama\"}", "\"vocab_size\" is missing", ERR_MODEL_DAMAGED},
        {SIZES("-1", "64", "96", "2", "4"), "\"vocab_size\" is -1", ERR_MODEL_DAMAGED},
        {SIZES("0", "64", "96", "2", "4"), "\"vocab_size\" is 0", ERR_MODEL_DAMAGED},
        {SIZES("288", "0", "96", "2", "4"), "hidden_size", ERR_MODEL_DAMAGED},
        {SIZES("288", "64.5", "96", "2", "4"), "hidden_size", ERR_MODEL_DAMAGED},
        {SIZES("288", "\"64\"", "96", "2", "4"), "hidden_size", ERR_MODEL_DAMAGED},
        {SIZES("288", "64", "9223372036854775807", "2", "4"), "intermediate_size", ERR_MODEL_DAMAGED},
        {SIZES("288", "64", "1e300", "2", "4"), "intermediate_size", ERR_MODEL_DAMAGED},
        {SIZES("288", "64", "96", "4294967296", "4"), "num_hidden_layers", ERR_MODEL_DAMAGED},
        {SIZES("288", "64", "96", "2", "0"), "num_attention_heads", ERR_MODEL_DAMAGED},
        {SIZES("288", "64", "96", "2", "[]"), "num_attention_heads", ERR_MODEL_DAMAGED},
        {SIZES("288", "4", "96", "2", "8"), "head_dim", ERR_MODEL_DAMAGED},
        {SIZES("288", "64", "96", "2", "99999999999999999999"), "config.json", ERR_MODEL_DAMAGED},
        {L("\"num_key_value_heads\":3"), "3 key heads", ERR_MODEL_DAMAGED},
        {L("\"num_key_value_heads\":0"), "num_key_value_heads", ERR_MODEL_DAMAGED},
        {L("\"head_dim\":15"), "15", ERR_MODEL_DAMAGED},
        {L("\"head_dim\":1026"), "head_dim", ERR_MODEL_DAMAGED},
        {L("\"max_position_embeddings\":0"), "max_position_embeddings", ERR_MODEL_DAMAGED},
        {L("\"rms_norm_eps\":NaN"), "config.json", ERR_MODEL_DAMAGED},
        {L("\"rms_norm_eps\":-1e-6"), "rms_norm_eps", ERR_MODEL_DAMAGED},
        {L("\"rms_norm_eps\":1e308"), "rms_norm_eps", ERR_MODEL_DAMAGED},
        {L("\"rms_norm_eps\":\"1e-6\""), "rms_norm_eps", ERR_MODEL_DAMAGED},
        {L("\"tie_word_embeddings\":1"), "tie_word_embeddings", ERR_MODEL_DAMAGED},
        {"{\"model_type\":\"llama\",\"vocab_size\":1,\"hidden_size\":262144,\"intermediate_size\":1,"
         "\"num_hidden_layers\":1,\"num_attention_heads\":4096,\"head_dim\":1024}",
         "wide", ERR_MODEL_DAMAGED},
        {"{\"model_type\":\"gpt2\",\"vocab_size\":9,\"n_embd\":33,\"n_layer\":1,\"n_head\":2}", "n_embd", ERR_MODEL_DAMAGED},
        {"{\"model_type\":\"gpt2\",\"vocab_size\":9,\"n_embd\":2,\"n_layer\":1,\"n_head\":4}", "n_embd", ERR_MODEL_DAMAGED},
    };
    check_refusals(LIST, sizeof LIST / sizeof LIST[0]);
}

static void test_hostile_rope(void **state)
{
    static const struct refusal LIST[] = {
        {L("\"rope_theta\":0"), "rope_theta", ERR_MODEL_DAMAGED},
        {L("\"rope_theta\":-10000"), "rope_theta", ERR_MODEL_DAMAGED},
        {L("\"rope_scaling\":[1]"), "expected an object", ERR_MODEL_DAMAGED},
        {L("\"rope_scaling\":{\"type\":\"linear\"}"), "factor", ERR_MODEL_DAMAGED},
        {L("\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}"), "factor", ERR_MODEL_DAMAGED},
        {L("\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":0.5}"), "dynamic", ERR_MODEL_DAMAGED},
        {L("\"rope_scaling\":{\"type\":\"mrope\",\"factor\":2}"), "mrope", ERR_MODEL_UNSUPPORTED},
        {L("\"rope_scaling\":{\"type\":7}"), "rope type 7", ERR_MODEL_UNSUPPORTED},
        {L("\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2,\"alpha\":3}"), "alpha", ERR_MODEL_UNSUPPORTED},
        {L("\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8}"), "high_freq_factor", ERR_MODEL_DAMAGED},
        {L("\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":4}"),
         "high_freq_factor", ERR_MODEL_DAMAGED},
        {L("\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1]}"), "short_factor", ERR_MODEL_DAMAGED},
        {L("\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,1,1,1,1,1,1,0]}"), "short_factor", ERR_MODEL_DAMAGED},
        {L("\"rope_scaling\":{\"type\":\"longrope\",\"original_max_position_embeddings\":1,"
           "\"short_factor\":[1,1,1,1,1,1,1,1],\"long_factor\":[1,1,1,1,1,1,1,1]}"),
         "longrope", ERR_MODEL_DAMAGED},
        {L("\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2,\"original_max_position_embeddings\":0}"),
         "original_max_position_embeddings", ERR_MODEL_DAMAGED},
        {L("\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1e4},\"sliding_attention\":{\"rope_theta\":1e6}}"),
         "layer types", ERR_MODEL_UNSUPPORTED},
    };
    check_refusals(LIST, sizeof LIST / sizeof LIST[0]);
}

static void test_what_is_not_computed_is_named(void **state)
{
    static const struct refusal LIST[] = {
        {"{\"model_type\":\"mamba\"}", "llama, mistral, qwen2, qwen3, gpt2, opt", ERR_MODEL_UNSUPPORTED},
        {"{\"model_type\":\"a\\u0000b\\n\"}", "", ERR_MODEL_DAMAGED},
        {L("\"hidden_act\":\"mish\""), "mish", ERR_MODEL_UNSUPPORTED},
        {L("\"quantization_config\":{\"quant_method\":\"gptq\"}"), "quantization_config", ERR_MODEL_UNSUPPORTED},
        {L("\"num_local_experts\":8"), "num_local_experts", ERR_MODEL_UNSUPPORTED},
        {L("\"embedding_multiplier\":12.0"), "embedding_multiplier", ERR_MODEL_UNSUPPORTED},
        {L("\"final_logit_softcapping\":30.0"), "final_logit_softcapping", ERR_MODEL_UNSUPPORTED},
        {L("\"partial_rotary_factor\":0.5"), "partial_rotary_factor", ERR_MODEL_UNSUPPORTED},
        {L("\"rope_interleaved\":true"), "rope_interleaved", ERR_MODEL_UNSUPPORTED},
        {L("\"no_rope_layers\":[1,0]"), "no_rope_layers", ERR_MODEL_UNSUPPORTED},
    };
    check_refusals(LIST, sizeof LIST / sizeof LIST[0]);
    struct model_config m;
    must_parse(L("\"rope_interleaved\":false,\"embedding_multiplier\":1.0,\"num_experts\":0,\"pruned_heads\":{},"
                 "\"partial_rotary_factor\":1,\"attention_dropout\":0.1,\"is_llama_config\":true,\"pretraining_tp\":1,"
                 "\"transformers.js_config\":{\"dtype\":\"q4\"}"),
               &m);
}

static void parse_any(const char *text, size_t len)
{
    struct model_config m;
    struct err err = {0};
    char *exact = malloc(len ? len : 1); /* so that the address sanitizer sees a read past the end */
    memcpy(exact, text, len);
    if (!model_config_parse((struct str){exact, len}, (struct str){0}, &m, &err))
        assert_true(err.text[0] && (err.code == ERR_MODEL_DAMAGED || err.code == ERR_MODEL_UNSUPPORTED));
    free(exact);
}

/* Every configuration of the golden models, cut at every byte and with every byte changed: refused with a text, or read. */
static void test_damaged_configurations(void **state)
{
    static const char *const names[] = {"llama-rope-longrope", "quant-ct-int4-asym", "gemma3-bf16",
                                        "smollm3-bf16",        "gpt2-f32",           "opt-postnorm-f16",
                                        "quant-gptq4-order",   "phi3-longrope-f16"};
    static char text[1 << 16];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[256];
        snprintf(path, sizeof path, "tests/golden/models/%s/config.json", names[i]);
        FILE *f = fopen(path, "rb");
        assert_non_null(f);
        size_t len = fread(text, 1, sizeof text, f);
        fclose(f);
        for (size_t cut = 0; cut < len; cut++)
            parse_any(text, cut);
        for (size_t at = 0; at < len; at++) {
            char was = text[at];
            static const char others[] = {0, '"', '9', '-', '}', '\xff'};
            for (size_t k = 0; k < sizeof others; k++) {
                text[at] = others[k];
                parse_any(text, len);
            }
            text[at] = was;
        }
    }
}

static void test_deep_and_long_json(void **state)
{
    struct model_config m;
    struct err err;
    size_t n = 200000;
    char *deep = malloc(n + 1);
    memset(deep, '[', n);
    deep[n] = 0;
    assert_false(parse(deep, &m, &err));
    free(deep);
    struct str big = {"{", CONFIG_JSON_BYTES_MAX + 1};
    assert_false(model_config_parse(big, (struct str){0}, &m, &err));
    expect_text(&err, "limit");
}

/* ---- GGUF ---- */

enum { U32 = 4, I32 = 5, F32 = 6, STRING = 8 };

struct gguf_file {
    struct bytes meta;
    uint64_t n;
};

static void put_string(struct bytes *b, const char *s)
{
    put_le(b, strlen(s), 8);
    put(b, s, strlen(s));
}

static void add_u32(struct gguf_file *f, const char *key, uint32_t type, uint32_t v)
{
    put_string(&f->meta, key);
    put_le(&f->meta, type, 4);
    put_le(&f->meta, v, 4);
    f->n++;
}

static void add_f32(struct gguf_file *f, const char *key, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, 4);
    add_u32(f, key, F32, bits);
}

static void add_string(struct gguf_file *f, const char *key, const char *v)
{
    put_string(&f->meta, key);
    put_le(&f->meta, STRING, 4);
    put_string(&f->meta, v);
    f->n++;
}

/* A file with what a small llama needs, one key changed by the caller before; the first of equal keys would be refused. */
static bool read_gguf(struct gguf_file *f, const char *left_out, struct model_config *m, struct err *err)
{
    static const struct {
        const char *key;
        uint32_t v;
    } SIZES_OF[] = {{"llama.block_count", 2},
                    {"llama.embedding_length", 64},
                    {"llama.feed_forward_length", 96},
                    {"llama.attention.head_count", 4},
                    {"llama.context_length", 512}};
    struct bytes b = {0};
    unsigned char *block;
    for (size_t i = 0; i < 5; i++) {
        if (strcmp(SIZES_OF[i].key, left_out) != 0)
            add_u32(f, SIZES_OF[i].key, U32, SIZES_OF[i].v);
    }
    if (strcmp(left_out, "llama.attention.layer_norm_rms_epsilon") != 0)
        add_f32(f, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    if (strcmp(left_out, "general.architecture") != 0)
        add_string(f, "general.architecture", "llama");
    put(&b, "GGUF", 4);
    put_le(&b, 3, 4);
    put_le(&b, 1, 8);
    put_le(&b, f->n, 8);
    put(&b, f->meta.data, f->meta.len);
    put_string(&b, "token_embd.weight");
    put_le(&b, 2, 4);
    put_le(&b, 4, 8);
    put_le(&b, 5, 8);
    put_le(&b, 0, 4);
    put_le(&b, 0, 8);
    while (b.len % 32)
        put_le(&b, 0, 1);
    for (int i = 0; i < 20; i++)
        put_le(&b, 0, 4);
    while (b.len % 32)
        put_le(&b, 0, 1);
    struct checkpoint *c = open_bytes(CHECKPOINT_GGUF, b.data, b.len, &block, err);
    if (!c)
        fail_msg("the test's own GGUF file: %s", err->text);
    bool ok = model_config_read(c, m, err);
    checkpoint_close(c);
    free(block);
    free(b.data);
    free(f->meta.data);
    *f = (struct gguf_file){0};
    return ok;
}

static void test_gguf_defaults(void **state)
{
    struct gguf_file f = {0};
    struct model_config m;
    struct err err;
    if (!read_gguf(&f, "", &m, &err))
        fail_msg("%s", err.text);
    assert_true(m.n_vocab == 5 && m.n_kv_heads == 4 && m.head_dim == 16 && m.rope.n_pairs == 8 && m.tied);
    assert_true(m.rope.order == ROPE_INTERLEAVED && m.rope.theta == 10000 && m.bos == -1 && m.n_eos == 0);
    add_string(&f, "llama.rope.scaling.type", "yarn");
    add_f32(&f, "llama.rope.scaling.factor", 4);
    add_u32(&f, "llama.rope.scaling.original_context_length", U32, 128);
    add_u32(&f, "tokenizer.ggml.eos_token_id", U32, 3);
    add_u32(&f, "tokenizer.ggml.eot_token_id", U32, 4);
    if (!read_gguf(&f, "", &m, &err))
        fail_msg("%s", err.text);
    assert_true(m.rope.kind == ROPE_YARN && m.rope.factor == 4 && m.rope.original_context == 128 && m.n_eos == 2);
    assert_true(fabs(m.rope.attention_factor - (0.1 * log(4) + 1)) < 1e-12);
}

static void test_gguf_hostile(void **state)
{
    static const struct {
        const char *key;
        uint32_t type, v;
        enum err_code code;
    } LIST[] = {
        {"llama.block_count", U32, 0, ERR_MODEL_DAMAGED},
        {"llama.block_count", I32, 0xffffffff, ERR_MODEL_DAMAGED},
        {"llama.block_count", U32, 0xffffffff, ERR_MODEL_DAMAGED},
        {"llama.embedding_length", U32, 1, ERR_MODEL_DAMAGED},
        {"llama.embedding_length", F32, 0x42800000, ERR_MODEL_DAMAGED},
        {"llama.attention.head_count", U32, 0, ERR_MODEL_DAMAGED},
        {"llama.attention.head_count_kv", U32, 3, ERR_MODEL_DAMAGED},
        {"llama.context_length", U32, 0xffffffff, ERR_MODEL_DAMAGED},
        {"llama.attention.layer_norm_rms_epsilon", F32, 0x7fc00000, ERR_MODEL_DAMAGED},
        {"llama.attention.layer_norm_rms_epsilon", F32, 0x7f800000, ERR_MODEL_DAMAGED},
        {"llama.rope.dimension_count", U32, 7, ERR_MODEL_DAMAGED},
        {"llama.rope.dimension_count", U32, 18, ERR_MODEL_DAMAGED},
        {"llama.rope.freq_base", F32, 0, ERR_MODEL_DAMAGED},
        {"llama.attention.value_length", U32, 8, ERR_MODEL_UNSUPPORTED},
        {"llama.expert_count", U32, 8, ERR_MODEL_UNSUPPORTED},
        {"llama.attention.sliding_window", U32, 128, ERR_MODEL_UNSUPPORTED},
        {"llama.logit_scale", F32, 0x42800000, ERR_MODEL_UNSUPPORTED},
    };
    for (size_t i = 0; i < sizeof LIST / sizeof LIST[0]; i++) {
        struct gguf_file f = {0};
        struct model_config m;
        struct err err = {0};
        add_u32(&f, LIST[i].key, LIST[i].type, LIST[i].v);
        if (read_gguf(&f, LIST[i].key, &m, &err))
            fail_msg("accepted %s = %x", LIST[i].key, LIST[i].v);
        if (err.code != LIST[i].code)
            fail_msg("%s: code %d, text %s", LIST[i].key, err.code, err.text);
    }
    struct gguf_file f = {0};
    struct model_config m;
    struct err err = {0};
    add_string(&f, "general.architecture", "mamba");
    assert_false(read_gguf(&f, "general.architecture", &m, &err));
    expect_text(&err, "\"mamba\" is not supported; supported are: llama, qwen2, qwen3");
    assert_false(read_gguf(&f, "llama.block_count", &m, &err));
    expect_text(&err, "\"llama.block_count\" is missing");
    add_string(&f, "llama.rope.scaling.type", "su");
    assert_false(read_gguf(&f, "", &m, &err));
    expect_text(&err, "longrope");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama_defaults),
        cmocka_unit_test(test_defaults_differ_by_type),
        cmocka_unit_test(test_windows_by_layer),
        cmocka_unit_test(test_end_tokens),
        cmocka_unit_test(test_rope_spellings),
        cmocka_unit_test(test_length_classes),
        cmocka_unit_test(test_hostile_sizes),
        cmocka_unit_test(test_hostile_rope),
        cmocka_unit_test(test_what_is_not_computed_is_named),
        cmocka_unit_test(test_damaged_configurations),
        cmocka_unit_test(test_deep_and_long_json),
        cmocka_unit_test(test_gguf_defaults),
        cmocka_unit_test(test_gguf_hostile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

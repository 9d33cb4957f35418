/* Which files of a repository a pull takes. */
#include "hub/impl.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#define CONFIG "config.json tokenizer.json "

/* `files`: names separated by blanks. */
static struct hub_listing listing(const char *files)
{
    struct hub_listing l = {0};
    while (*files) {
        size_t n = strcspn(files, " ");
        if (n)
            assert_non_null(hub_listing_add(&l, (struct str){files, n}, NULL));
        files += n + (files[n] == ' ');
    }
    return l;
}

/* The plan's files, separated by blanks; or "!" and the error's text. */
static void plan_text(const char *files, const char *quant, char *out, size_t out_bytes, char entry[HUB_PATH_BYTES_MAX])
{
    struct hub_listing l = listing(files);
    struct hub_plan p;
    struct err err = {0};
    size_t at = 0;
    out[0] = 0;
    if (plan_make(&l, "org/name", quant, &p, &err)) {
        for (size_t i = 0; i < p.n; i++)
            at += (size_t)snprintf(out + at, out_bytes - at, "%s%s", i ? " " : "", l.items[p.index[i]].path);
        snprintf(entry, HUB_PATH_BYTES_MAX, "%s", p.entry);
        plan_release(&p);
    } else {
        assert_non_null(strstr(err.text, "org/name"));
        snprintf(out, out_bytes, "!%s", err.text);
    }
    hub_listing_release(&l);
}

static void expect(const char *files, const char *quant, const char *want, const char *want_entry)
{
    char got[4096], entry[HUB_PATH_BYTES_MAX] = "";
    plan_text(files, quant, got, sizeof got, entry);
    assert_string_equal(got, want);
    assert_string_equal(entry, want_entry);
}

static void expect_refused(const char *files, const char *quant, const char *word)
{
    char got[4096], entry[HUB_PATH_BYTES_MAX];
    plan_text(files, quant, got, sizeof got, entry);
    if (got[0] != '!' || !strstr(got, word))
        fail_msg("%s: %s, without '%s'", files, got, word);
}

static void safetensors(void **state)
{
    expect(CONFIG "README.md model.safetensors pytorch_model.bin x.gguf onnx/model.onnx onnx/model.safetensors", "",
           CONFIG "model.safetensors", "");
    expect("model.safetensors config.json vocab.json merges.txt special_tokens_map.json train.py logo.png", "",
           "config.json merges.txt special_tokens_map.json vocab.json model.safetensors", "");
    expect(CONFIG "model-00002-of-00002.safetensors model-00001-of-00002.safetensors model.safetensors.index.json "
                  "consolidated.safetensors adapter_model.safetensors",
           "",
           "config.json model.safetensors.index.json tokenizer.json model-00001-of-00002.safetensors "
           "model-00002-of-00002.safetensors",
           "");
    expect(CONFIG "model.safetensors model-00001-of-00001.safetensors", "", CONFIG "model.safetensors", "");
    expect(CONFIG "weights.safetensors", "", CONFIG "weights.safetensors", "");
    expect(CONFIG "additional_chat_templates/a.jinja additional_chat_templates/x/b.jinja qwen.tiktoken model.safetensors", "",
           "additional_chat_templates/a.jinja config.json qwen.tiktoken tokenizer.json model.safetensors", "");
    expect_refused(CONFIG "model-00001-of-00003.safetensors model-00003-of-00003.safetensors", "", "2 of the 3");
    expect_refused("model.safetensors tokenizer.json", "", "config.json");
}

static void gguf(void **state)
{
    expect("a-Q8_0.gguf a-Q4_K_M.gguf a-F16.gguf README.md config.json", "", "a-Q4_K_M.gguf", "a-Q4_K_M.gguf");
    expect("a-Q8_0.gguf a-Q4_K_M.gguf", "q8_0", "a-Q8_0.gguf", "a-Q8_0.gguf");
    expect("a.fp16.gguf mmproj-a-Q4_K_M.gguf a-imatrix.gguf", "", "a.fp16.gguf", "a.fp16.gguf");
    expect("model.gguf", "", "model.gguf", "model.gguf");
    expect("a-IQ2_XXS.gguf a-UD-Q4_K_XL.gguf", "IQ2_XXS", "a-IQ2_XXS.gguf", "a-IQ2_XXS.gguf");
    expect("a-strange.gguf b-Q2_K.gguf", "strange", "a-strange.gguf", "a-strange.gguf");
    expect("q/a-Q6_K-00002-of-00002.gguf q/a-Q6_K-00001-of-00002.gguf b-Q8_0.gguf", "Q6_K",
           "q/a-Q6_K-00001-of-00002.gguf q/a-Q6_K-00002-of-00002.gguf", "q/a-Q6_K-00001-of-00002.gguf");
    expect("x/a-Q4_K_M.gguf b-Q4_K_M.gguf", "", "b-Q4_K_M.gguf", "b-Q4_K_M.gguf"); /* what lies higher */
    expect(CONFIG "model.safetensors a-Q4_0.gguf", "Q4_0", "a-Q4_0.gguf", "a-Q4_0.gguf");
    expect_refused("a-Q8_0.gguf a-Q4_K_M.gguf", "Q5_K_M", "Q4_K_M");
    expect_refused("a-Q8_0-00001-of-00003.gguf a-Q8_0-00003-of-00003.gguf", "", "3 parts");
    expect_refused("a-Q8_0-00002-of-00002.gguf", "", "org/name");
    expect_refused(CONFIG "model.safetensors", "Q4_0", "leave");
}

static void refusals(void **state)
{
    expect_refused(CONFIG "pytorch_model.bin", "", "pickle");
    expect_refused(CONFIG "pytorch_model-00001-of-00002.bin", "", "pytorch_model-00001-of-00002.bin");
    expect_refused("consolidated.00.pth params.json", "", "consolidated.00.pth");
    expect_refused("adapter_config.json adapter_model.safetensors", "", "adapter");
    expect_refused("README.md", "", "no weights");
    expect_refused("", "", "no weights");
    expect_refused(CONFIG "tf_model.h5 flax_model.msgpack", "", "no weights");
}

static void names(void **state)
{
    static const char *const rows[][2] = {
        {"a-Q4_K_M.gguf", "Q4_K_M"},         {"a.q8_0.gguf", "Q8_0"},   {"Q6_K/a-Q6_K-00001-of-00002.gguf", "Q6_K"},
        {"a-IQ4_XS.gguf", "IQ4_XS"},         {"a-bf16.gguf", "BF16"},   {"gpt-oss-20b-MXFP4.gguf", "MXFP4"},
        {"a-UD-Q2_K_XL.gguf", "UD-Q2_K_XL"}, {"a-TQ1_0.gguf", "TQ1_0"}, {"qwen2-7b-Q4_0_4_8.gguf", "Q4_0_4_8"},
    };
    char quant[HUB_QUANT_BYTES_MAX];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_true(plan_gguf_quant(rows[i][0], quant));
        assert_string_equal(quant, rows[i][1]);
    }
    assert_false(plan_gguf_quant("model.gguf", quant));
    assert_false(plan_gguf_quant("aQ4_K_Mb.gguf", quant));
    assert_false(plan_gguf_quant("Q4_K_M.bin", quant));
    unsigned part, n;
    size_t stem;
    assert_true(plan_split_name("m-00002-of-00005.gguf", ".gguf", &part, &n, &stem));
    assert_true(part == 2 && n == 5 && stem == 1);
    static const char *const whole[] = {"m-2-of-5.gguf",         "m-00006-of-00005.gguf", "m-00000-of-00005.gguf", ".gguf",
                                        "m-00002_of-00005.gguf", "-00002-of-00005.gguf",  "m-00002-of-00005.bin"};
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        assert_false(plan_split_name(whole[i], ".gguf", &part, &n, &stem));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(safetensors), cmocka_unit_test(gguf), cmocka_unit_test(refusals),
                                       cmocka_unit_test(names)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

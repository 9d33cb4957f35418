/* The text side of a model out of its files: a GGUF vocabulary gives the same ids as the tokenizer.model that it was made
 * of. */
#include "unit/text/tokenizers.h"

#include "serve/text.h"

static void check_equal(const struct tokenizer *a, const struct tokenizer *b, unsigned flags)
{
    static const char text[] =
        "  The quick  brown\tf\xc3\xb6x \xe6\xbc\xa2\xf0\x9f\x98\x80 <user> na\xc3\xafve \xef\xac\x81 12345 <s> ";
    struct token_list x, y;
    struct err err = {0};
    token_list_init(&x, IDS_MAX);
    token_list_init(&y, IDS_MAX);
    assert_true(tokenizer_encode(a, STR(text), flags, &x, &err));
    assert_true(tokenizer_encode(b, STR(text), flags, &y, &err));
    assert_true(x.len > 15);
    assert_int_equal(x.len, y.len);
    assert_memory_equal(x.ids, y.ids, x.len * sizeof *x.ids);
    token_list_release(&x);
    token_list_release(&y);
}

static void test_gguf(void **state)
{
    static const char *const folders[] = {"spm-bpe", "spm-unigram", "spm-bpe-unused"};
    for (size_t f = 0; f < 3; f++) {
        char folder[256], path[256];
        struct err err = {0};
        snprintf(folder, sizeof folder, GOLDEN "%s", folders[f]);
        snprintf(path, sizeof path, GOLDEN "%s/vocab.gguf", folders[f]);
        struct tokenizer *model = tokenizer_open(folder, NULL, "", &err);
        assert_non_null(model);
        struct checkpoint *c = checkpoint_open(path, &err);
        struct served_text text;
        struct model_info info = {0};
        if (!c || !text_open(&text, c, &info, &err)) {
            print_error("%s: %s\n", path, err.text);
            fail();
        }
        for (unsigned flags = 0; flags < 4; flags++)
            check_equal(model, text.tokenizer, flags);
        assert_int_equal(tokenizer_adds_bos(text.tokenizer), f != 1);
        assert_int_equal(tokenizer_eos(text.tokenizer), 2);
        assert_true(str_equal(tokenizer_named(text.tokenizer, "unk_token"), STR("<unk>")));
        text_close(&text);
        checkpoint_close(c);
        tokenizer_free(model);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gguf)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Tokenizers at their limits: long runs in linear time, damaged and hostile files, what is refused, text that would forge
 * special tokens. */
#include "tokenizers.h"

/* A megabyte takes well under a second; time in proportion for less. What is quadratic in it takes hours. */
#define MEGABYTE ((size_t)1 << 20)
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOWER 10.0 /* every access is checked, and kept in mind */
#else
#define SLOWER 1.0
#endif
#define SECONDS_MAX (6.0 * SLOWER)

static const char *const FOLDERS[] = {
    "byte-level",   "vocab-merges-qwen2", "spm-bpe", "spm-bpe-nfkc",  "spm-bpe-crossing", "spm-unigram", "spm-unigram-bytes",
    "llama-legacy", "llama-metaspace",    "t5",      "unigram-bytes", "bert-uncased",     "word-level",  "bpe-suffix"};

static struct tokenizer *golden(const char *name)
{
    char folder[256];
    struct err err = {0};
    snprintf(folder, sizeof folder, GOLDEN "%s", name);
    struct tokenizer *t = tokenizer_open(folder, NULL, "", &err);
    if (!t)
        print_error("%s: %s\n", name, err.text);
    assert_non_null(t);
    return t;
}

static void encode_text(const struct tokenizer *t, struct str text, unsigned flags, struct token_list *l)
{
    struct err err = {0};
    token_list_init(l, IDS_MAX);
    bool ok = tokenizer_encode(t, text, flags, l, &err);
    if (!ok)
        print_error("%s\n", err.text);
    assert_true(ok);
}

static void test_long_runs(void **state)
{
    static const char *const units[] = {"a",
                                        " ",
                                        "\n",
                                        "\xe2\x98\x83",
                                        "\xcc\x81",
                                        "\xe2\x96\x81",
                                        "1",
                                        "'",
                                        "ab ",
                                        "\xff",
                                        "\xe6\xbc\xa2",
                                        "<s",
                                        "<s>",
                                        "A",
                                        "\xf0\x9f\x91\xa9\xe2\x80\x8d",
                                        "a\xcc\x81\xcc\xa3",
                                        "\xea\xb0\x80\xe1\x86\xa8",
                                        " a",
                                        "the"};
    for (size_t f = 0; f < sizeof FOLDERS / sizeof *FOLDERS; f++) {
        struct tokenizer *t = golden(FOLDERS[f]);
        for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
            struct buf text, out;
            struct token_list l;
            size_t bytes = u < 4 ? MEGABYTE : MEGABYTE / 8;
            double most = u < 4 ? SECONDS_MAX : SECONDS_MAX / 4;
            buf_init(&text, 2 * MEGABYTE);
            while (text.len < bytes)
                buf_append_str(&text, str_from(units[u]));
            double from = seconds();
            encode_text(t, buf_str(&text), TOKENIZER_PARSE_SPECIAL, &l);
            double encoded = seconds();
            buf_init(&out, 16 * MEGABYTE);
            assert_true(tokenizer_decode(t, l.ids, l.len, false, &out, NULL));
            double decoded = seconds();
            if (encoded - from > most || decoded - encoded > most)
                print_error("%s: %zu bytes of '%s': %.2f s, back %.2f s\n", FOLDERS[f], bytes, units[u], encoded - from,
                            decoded - encoded);
            assert_true(encoded - from < most && decoded - encoded < most);
            buf_release(&out);
            buf_release(&text);
            token_list_release(&l);
        }
        tokenizer_free(t);
    }
}

/* Without TOKENIZER_PARSE_SPECIAL no text gives a special token, for no kind of tokenizer. */
static void test_no_forging(void **state)
{
    static const char text[] = "<s></s> <unk> <pad> a</s>b <|im_start|><|im_end|>\n<|endoftext|> [CLS] [SEP] [MASK] x <s> <s>";
    for (size_t f = 0; f < sizeof FOLDERS / sizeof *FOLDERS; f++) {
        struct tokenizer *t = golden(FOLDERS[f]);
        int32_t unknown = tokenizer_id(t, STR("<unk>"));
        struct token_list l;
        encode_text(t, STR(text), 0, &l);
        for (size_t i = 0; i < l.len; i++)
            if (tokenizer_is_special(t, l.ids[i]) && l.ids[i] != unknown &&
                !str_equal(tokenizer_token(t, l.ids[i]), STR("[UNK]"))) {
                print_error("%s: special id %d\n", FOLDERS[f], (int)l.ids[i]);
                fail();
            }
        token_list_release(&l);
        tokenizer_free(t);
    }
}

/* Bytes of the tokens of a text, one behind the other, are the text. */
static void test_token_bytes(void **state)
{
    static const char text[] = "Gr\xc3\xbc\xc3\x9f"
                               "e, \xe6\xbc\xa2\xf0\x9f\x98\x80 \xe0\xa6\x95\xe0\xa7\x8d x\ty";
    static const char *const folders[] = {"byte-level", "spm-bpe", "llama-legacy"};
    for (size_t f = 0; f < 3; f++) {
        struct tokenizer *t = golden(folders[f]);
        struct token_list l;
        struct buf out;
        buf_init(&out, 4096);
        encode_text(t, STR(text), 0, &l);
        for (size_t i = 0; i < l.len; i++)
            assert_true(tokenizer_token_bytes(t, l.ids[i], &out));
        struct str got = buf_str(&out);
        if (f > 0) { /* SentencePiece puts a space in front */
            assert_int_equal(got.ptr[0], ' ');
            got = (struct str){got.ptr + 1, got.len - 1};
        }
        assert_true(str_equal(got, STR(text)));
        buf_release(&out);
        token_list_release(&l);
        tokenizer_free(t);
    }
}

static void test_bounds(void **state)
{
    struct tokenizer *t = golden("byte-level");
    struct token_list l;
    struct err err = {0};
    struct buf out;
    int32_t bad[] = {0, 1 << 20}, negative[] = {-1};
    buf_init(&out, 4096);
    assert_false(tokenizer_decode(t, bad, 2, false, &out, &err));
    assert_int_equal(err.code, ERR_INVALID_REQUEST);
    assert_non_null(strstr(err.text, "1048576"));
    assert_false(tokenizer_decode(t, negative, 1, false, &out, &err));
    token_list_init(&l, 3);
    assert_false(tokenizer_encode(t, STR("one two three four five six"), 0, &l, &err));
    assert_int_equal(err.code, ERR_TOO_LARGE);
    assert_non_null(strstr(err.text, "limit of 3"));
    token_list_release(&l);
    buf_release(&out);
    tokenizer_free(t);
}

/* ---- files ------------------------------------------------------------------------------------------------------- */
static struct tokenizer *from_json(const char *text, struct err *err)
{
    struct tokenizer_files files = {.tokenizer_json = str_from(text)};
    *err = (struct err){0};
    return tokenizer_from_files(&files, err);
}

static void test_refused(void **state)
{
    static const char *const cases[][2] = {
        {"{", "not valid JSON"},
        {"{}", "model"},
        {"{\"model\":{\"type\":\"Magic\",\"vocab\":{}}}", "Magic"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}", "empty"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", "-1"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":99999999},\"merges\":[]}}", "99999999"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", "twice"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a\"]}}", "merge 0"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}", "merge 0"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\",\"a\"]]}}", "aa"},
        {"{\"model\":{\"type\":\"BPE\",\"dropout\":0.5,\"vocab\":{\"a\":0},\"merges\":[]}}", "dropout"},
        {"{\"model\":{\"type\":\"Unigram\",\"unk_id\":5,\"vocab\":[[\"a\",0]]}}", "unk_id is 5"},
        {"{\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"vocab\":[[\"a\"]]}}", "entry 0"},
        {"{\"model\":{\"type\":\"WordPiece\",\"max_input_chars_per_word\":100000,\"vocab\":{\"a\":0}}}", "100000"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"normalizer\":{\"type\":\"Shout\"}}", "Shout"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"}}",
         "UnicodeScripts"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"decoder\":{\"type\":\"CTC\"}}", "CTC"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"decoder\":{\"type\":\"Sequence\",\"decoders\":"
         "[{\"type\":\"ByteLevel\"},{\"type\":\"Fuse\"}]}}",
         "ByteLevel"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"decoder\":{\"type\":\"Sequence\",\"decoders\":"
         "[{\"type\":\"Fuse\"},{\"type\":\"ByteFallback\"}]}}",
         "ByteFallback"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"post_processor\":{\"type\":\"Odd\"}}", "Odd"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"normalizer\":{\"type\":\"Replace\",\"pattern\":"
         "{\"String\":\"\"},\"content\":\"x\"}}",
         "empty"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"decoder\":{\"type\":\"Replace\",\"pattern\":"
         "{\"String\":\"\"},\"content\":\"\"}}",
         "empty"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"normalizer\":{\"type\":\"Precompiled\","
         "\"precompiled_charsmap\":\"AAAA\"}}",
         "charsmap"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":"
         "{\"Regex\":\"(a\"},\"behavior\":\"Isolated\"}}",
         "does not compile"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":"
         "{\"String\":\"a\"},\"behavior\":\"Explode\"}}",
         "Explode"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"added_tokens\":[{\"id\":-5,\"content\":\"x\"}]}",
         "-5"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err err;
        struct tokenizer *t = from_json(cases[i][0], &err);
        if (t || !strstr(err.text, cases[i][1]))
            print_error("%s: '%s' lacks '%s'\n", cases[i][0], err.text, cases[i][1]);
        assert_null(t);
        assert_non_null(strstr(err.text, cases[i][1]));
        assert_true(err.code == ERR_MODEL_DAMAGED || err.code == ERR_MODEL_UNSUPPORTED);
    }
    struct tokenizer_files none = {0}, odd = {.vocab_json = STR("{\"a\":0}"),
                                              .merges_txt = STR("#version\n"),
                                              .model_type = STR("mystery")};
    struct err err = {0};
    assert_null(tokenizer_from_files(&none, &err));
    assert_non_null(strstr(err.text, "tokenizer.json"));
    assert_null(tokenizer_from_files(&odd, &err));
    assert_non_null(strstr(err.text, "mystery"));
    odd.tokenizer_config =
        STR("{\"tokenizer_class\": \"GPT2Tokenizer\", \"model_max_length\": 1000000000000000019884624838656}");
    struct tokenizer *t = tokenizer_from_files(&odd, &err);
    assert_non_null(t);
    tokenizer_free(t);
}

/* Nested sequences end at a limit. */
static void test_nesting(void **state)
{
    struct buf b;
    struct err err;
    buf_init(&b, 1 << 20);
    buf_append_str(&b, STR("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"normalizer\":"));
    for (int i = 0; i < 100; i++)
        buf_append_str(&b, STR("{\"type\":\"Sequence\",\"normalizers\":["));
    buf_append_str(&b, STR("{\"type\":\"NFC\"}"));
    for (int i = 0; i < 100; i++)
        buf_append_str(&b, STR("]}"));
    buf_append_char(&b, '}');
    assert_null(from_json(b.data, &err));
    assert_non_null(strstr(err.text, "nested"));
    buf_clear(&b);
    for (int i = 0; i < 100000; i++)
        buf_append_char(&b, '[');
    assert_null(from_json(b.data, &err));
    buf_release(&b);
}

/* Cut at every byte and flipped here and there: an error with a text, or a tokenizer that works. */
static void try_model(struct str model)
{
    struct tokenizer_files files = {.tokenizer_model = model};
    struct err err = {0};
    struct tokenizer *t = tokenizer_from_files(&files, &err);
    if (!t) {
        assert_true(err.code != ERR_NONE && err.text[0]);
        return;
    }
    struct token_list l;
    token_list_init(&l, IDS_MAX);
    if (tokenizer_encode(t,
                         STR(" Gr\xc3\xbc\xc3\x9f"
                             "e \xe6\xbc\xa2 <user> a"),
                         TOKENIZER_ADD_SPECIAL, &l, &err)) {
        struct buf out;
        for (size_t i = 0; i < l.len; i++)
            assert_true(l.ids[i] >= 0 && (size_t)l.ids[i] < tokenizer_vocab_size(t));
        decode_both(t, l.ids, l.len, false, &out);
        buf_release(&out);
    }
    token_list_release(&l);
    tokenizer_free(t);
}

static void test_damaged_model(void **state)
{
    static const char *const folders[] = {"spm-bpe", "spm-unigram"};
    for (size_t f = 0; f < 2; f++) {
        struct buf b = file_read(GOLDEN "%s/tokenizer.model", folders[f]);
        assert_true(b.len > 10000);
        for (size_t n = 1; n < b.len; n += n < 600 || n + 600 > b.len ? 1 : 997)
            try_model((struct str){b.data, n});
        uint32_t random = 12345;
        for (size_t k = 0; k < 300; k++) {
            random = random * 1664525u + 1013904223u;
            size_t at = random % b.len;
            char was = b.data[at];
            b.data[at] ^= (char)(1u << (random >> 20 & 7));
            try_model(buf_str(&b));
            b.data[at] = was;
        }
        buf_release(&b);
    }
}

/* "legacy": false puts the space in front of the first part only. */
static void test_config(void **state)
{
    struct buf model = file_read(GOLDEN "spm-bpe/tokenizer.model");
    struct tokenizer_files files = {
        .tokenizer_model = buf_str(&model),
        .tokenizer_config = STR("{\"legacy\": false, \"add_bos_token\": false, \"add_eos_token\": true, \"bos_token\": \"<s>\","
                                "\"added_tokens_decoder\": {\"5000\": {\"content\": \"<|new|>\", \"special\": true}}}")};
    struct err err = {0};
    struct tokenizer *t = tokenizer_from_files(&files, &err);
    assert_non_null(t);
    struct token_list l;
    encode_text(t, STR("a<|new|>a"), TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL, &l);
    assert_int_equal(l.len, 4);
    assert_true(str_equal(tokenizer_token(t, l.ids[0]), STR("\xe2\x96\x81"
                                                            "a")));
    assert_int_equal(l.ids[1], 5000);
    assert_true(str_equal(tokenizer_token(t, l.ids[2]), STR("a")));
    assert_int_equal(l.ids[3], tokenizer_eos(t));
    assert_int_equal(tokenizer_vocab_size(t), 5001);
    token_list_release(&l);
    tokenizer_free(t);
    files.tokenizer_config = STR("{\"tokenizer_class\": \"XLMRobertaTokenizer\"}");
    assert_null(tokenizer_from_files(&files, &err));
    assert_non_null(strstr(err.text, "XLMRobertaTokenizer"));
    buf_release(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_long_runs),     cmocka_unit_test(test_no_forging), cmocka_unit_test(test_token_bytes),
        cmocka_unit_test(test_bounds),        cmocka_unit_test(test_refused),    cmocka_unit_test(test_nesting),
        cmocka_unit_test(test_damaged_model), cmocka_unit_test(test_config),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

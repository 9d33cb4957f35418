/* Tokenizers against the reference libraries: ids and decoded text of several hundred hard strings for small tokenizers of
 * every kind (tests/golden/tokenizers, made by tools/golden_tokenizers.py), and against recorded vectors of real tokenizers
 * where ../shared/data is there. */
#include "tokenizers.h"

/* ---- memory ------------------------------------------------------------------------------------------------------ */
/* The linker sends the library's realloc and free here (--wrap, see the Makefile). With `touch` a block begins where the
 * one before it ends, as allocators without headers do it. */
#define BLOCKS_BYTES ((size_t)64 << 20)

static struct {
    bool touch;
    size_t n_live, n_touching;
    char *at, *memory;
} blocks;

void *__real_realloc(void *p, size_t n);
void __real_free(void *p);
void *__wrap_realloc(void *p, size_t n);
void __wrap_free(void *p);

static bool is_block(const char *p)
{
    return blocks.memory && p >= blocks.memory && p < blocks.memory + BLOCKS_BYTES;
}

void *__wrap_realloc(void *p, size_t n)
{
    bool moves = is_block(p);
    if (!moves && (p || !blocks.touch))
        return __real_realloc(p, n);
    if (!blocks.memory)
        blocks.memory = malloc(BLOCKS_BYTES);
    if (!blocks.memory)
        return NULL;
    if (!blocks.n_live)
        blocks.at = blocks.memory;
    size_t room = (size_t)(blocks.memory + BLOCKS_BYTES - blocks.at);
    if (n > room)
        return NULL;
    char *to = blocks.at;
    if (moves) /* blocks only grow, and what follows the old one is memory too */
        memcpy(to, p, (size_t)(to - (char *)p) < n ? (size_t)(to - (char *)p) : n);
    blocks.at += n;
    blocks.n_touching += to > blocks.memory;
    blocks.n_live += !moves;
    return to;
}

void __wrap_free(void *p)
{
    if (is_block(p))
        blocks.n_live--;
    else
        __real_free(p);
}

/* ---- the strings ------------------------------------------------------------------------------------------------- */
struct strings {
    size_t n;
    struct buf *bytes; /* as they are encoded */
    struct buf *text;  /* invalid UTF-8 replaced: what decoding is compared with */
};

static struct strings strings;

static void base64(struct str s, struct buf *out)
{
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t bits = 0;
    for (size_t i = 0; i < s.len && s.ptr[i] != '='; i++) {
        bits = bits << 6 | (uint32_t)(strchr(alphabet, s.ptr[i]) - alphabet);
        if (i % 4)
            buf_append_char(out, (char)(bits >> (6 - 2 * (i % 4))));
    }
}

static void replace_invalid(struct str s, struct buf *out)
{
    for (size_t at = 0; at < s.len;) {
        char c[4];
        uint32_t code = str_utf8_next(s, &at);
        buf_append(out, c, str_utf8_put(code, c));
    }
}

static int read_strings(void **state)
{
    json_t *root = json_read(GOLDEN "strings.json"), *v;
    strings.n = json_array_size(root);
    strings.bytes = calloc(strings.n, sizeof *strings.bytes);
    strings.text = calloc(strings.n, sizeof *strings.text);
    size_t i;
    json_array_foreach(root, i, v)
    {
        buf_init(&strings.bytes[i], FILE_BYTES);
        buf_init(&strings.text[i], FILE_BYTES);
        json_int_t times = json_is_array(v) ? json_integer_value(json_array_get(v, 1)) : 1;
        struct str code = text_of(json_is_array(v) ? json_array_get(v, 0) : v);
        for (json_int_t k = 0; k < times; k++)
            base64(code, &strings.bytes[i]);
        replace_invalid(buf_str(&strings.bytes[i]), &strings.text[i]);
    }
    json_decref(root);
    return strings.n > 400 ? 0 : -1;
}

static int release_strings(void **state)
{
    for (size_t i = 0; i < strings.n; i++) {
        buf_release(&strings.bytes[i]);
        buf_release(&strings.text[i]);
    }
    free(strings.bytes);
    free(strings.text);
    __real_free(blocks.memory);
    return 0;
}

/* ---- one tokenizer ----------------------------------------------------------------------------------------------- */
static size_t check_text(const char *name, const struct tokenizer *t, const json_t *golden, const char *index,
                         const struct token_list *l, struct str text)
{
    size_t n_bad = 0;
    for (int skip = 0; skip < 2; skip++) {
        const json_t *texts = json_object_get(golden, skip ? "plain" : "text"), *other = json_object_get(texts, index);
        struct buf out;
        bool same = decode_both(t, l->ids, l->len, skip, &out);
        struct str wanted = json_is_string(other) ? text_of(other) : text;
        if (!same || (!json_is_null(other) && !str_equal(buf_str(&out), wanted))) {
            print_error("%s: text of string %s%s\n  wanted '%.*s'\n  got    '%.*s'%s\n", name, index, skip ? ", plain" : "",
                        (int)(wanted.len < 200 ? wanted.len : 200), wanted.ptr, (int)(out.len < 200 ? out.len : 200),
                        buf_str(&out).ptr, same ? "" : " (streamed differently)");
            n_bad++;
        }
        buf_release(&out);
    }
    return n_bad;
}

static size_t check_random(const char *name, const struct tokenizer *t, const json_t *random)
{
    size_t i, n_bad = 0;
    json_t *one;
    json_array_foreach((json_t *)random, i, one)
    {
        int32_t ids[64];
        const json_t *list = json_array_get(one, 0), *wanted = json_array_get(one, 1);
        size_t n = json_array_size(list);
        assert_true(n <= 64);
        for (size_t k = 0; k < n; k++)
            ids[k] = (int32_t)json_integer_value(json_array_get(list, k));
        struct buf out;
        bool same = decode_both(t, ids, n, false, &out);
        if (!same || (json_is_string(wanted) && !str_equal(buf_str(&out), text_of(wanted)))) {
            print_error("%s: random ids %zu\n  wanted '%s'\n  got    '%s'%s\n", name, i, json_string_value(wanted),
                        buf_str(&out).ptr, same ? "" : " (streamed differently)");
            n_bad++;
        }
        buf_release(&out);
    }
    return n_bad;
}

/* Every string of golden's "ids"; returns how many differ. */
static size_t check_tokenizer(const char *name, const struct tokenizer *t, const json_t *golden, unsigned flags)
{
    size_t n_bad = 0;
    const char *index;
    json_t *wanted;
    json_object_foreach(json_object_get(golden, "ids"), index, wanted)
    {
        size_t i = (size_t)atoi(index);
        struct token_list l;
        struct err err = {0};
        assert_true(i < strings.n);
        token_list_init(&l, IDS_MAX);
        if (!tokenizer_encode(t, buf_str(&strings.bytes[i]), flags, &l, &err)) {
            print_error("%s: string %s: %s\n", name, index, err.text);
            n_bad++;
        } else if (!ids_equal(&l, wanted)) {
            print_error("%s: string %s: '%.*s'", name, index, (int)(strings.text[i].len < 200 ? strings.text[i].len : 200),
                        buf_str(&strings.text[i]).ptr);
            print_ids("", &l, wanted);
            n_bad++;
        } else if (json_object_get(golden, "text")) {
            n_bad += check_text(name, t, golden, index, &l, buf_str(&strings.text[i]));
        }
        token_list_release(&l);
    }
    return n_bad + check_random(name, t, json_object_get(golden, "random"));
}

static void check_folder(const char *name)
{
    char path[256], folder[256];
    snprintf(path, sizeof path, GOLDEN "%s.json", name);
    snprintf(folder, sizeof folder, GOLDEN "%s", name);
    json_t *golden = json_read(path);
    struct err err = {0};
    struct tokenizer *t = tokenizer_open(folder, NULL, "", &err);
    if (!t)
        print_error("%s: %s\n", name, err.text);
    assert_non_null(t);
    bool spm = strcmp(json_string_value(json_object_get(golden, "kind")), "spm") == 0;
    assert_true(json_object_size(json_object_get(golden, "ids")) > 200);
    size_t n_bad = check_tokenizer(name, t, golden, spm ? 0 : TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL);
    tokenizer_free(t);
    json_decref(golden);
    assert_int_equal(n_bad, 0);
}

static void test_byte_level(void **state)
{
    check_folder("byte-level");
}

static void test_vocab_merges(void **state)
{
    check_folder("vocab-merges");
    check_folder("vocab-merges-qwen2");
}

static void test_sentencepiece_bpe(void **state)
{
    check_folder("spm-bpe");
    check_folder("spm-bpe-nfkc");
    check_folder("spm-bpe-crossing");
    check_folder("spm-bpe-unused");
}

static void test_sentencepiece_unigram(void **state)
{
    check_folder("spm-unigram");
    check_folder("spm-unigram-bytes");
    check_folder("spm-unigram-suffix");
    check_folder("spm-unigram-unused");
}

static void test_converted(void **state)
{
    check_folder("llama-legacy");
    check_folder("llama-metaspace");
    check_folder("t5");
    check_folder("unigram-bytes");
}

static void test_words(void **state)
{
    check_folder("bert-uncased");
    check_folder("bert-cased");
    check_folder("word-level");
    check_folder("bpe-suffix");
}

/* One model under many pipelines: the parts of tokenizer.json one by one. */
static void check_pipelines(void)
{
    json_t *root = json_read(GOLDEN "pipelines.json"), *one;
    size_t i, n_bad = 0;
    json_array_foreach(json_object_get(root, "cases"), i, one)
    {
        struct err err = {0};
        json_t *whole = json_copy(json_object_get(root, "base"));
        json_object_update(whole, json_object_get(one, "override"));
        char *text = json_dumps(whole, JSON_COMPACT), name[32];
        snprintf(name, sizeof name, "case %zu", i);
        struct tokenizer_files files = {.tokenizer_json = str_from(text)};
        struct tokenizer *t = tokenizer_from_files(&files, &err);
        if (!t)
            print_error("%s: %s\n", name, err.text);
        n_bad += t ? check_tokenizer(name, t, one, TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL) : 1;
        tokenizer_free(t);
        free(text);
        json_decref(whole);
    }
    assert_true(i > 80);
    json_decref(root);
    assert_int_equal(n_bad, 0);
}

static void test_pipelines(void **state)
{
    check_pipelines();
}

/* An address one past a buffer's end may be where the next buffer begins: nothing is concluded from it. */
static void test_blocks_that_touch(void **state)
{
    blocks.touch = true;
    check_folder("unigram-bytes");
    check_pipelines();
    blocks.touch = false;
    assert_int_equal(blocks.n_live, 0);
    assert_true(blocks.n_touching > 1000); /* else the wrappers are not there */
}

/* A run of bytes leaves when the next token arrives: what earlier steps made of that token stays. The same from
 * transformers' tokenizers with these three decoders. */
static void test_decoders_behind_bytes(void **state)
{
    static const char json[] =
        "{\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"merges\":[],\"vocab\":{\"<0xE6>\":0,\"<0xBC>\":1,\"<0xA2>\":2,"
        "\"\xe2\x96\x81"
        "ax\":3,\"x\":4}},\"decoder\":{\"type\":\"Sequence\",\"decoders\":["
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\xe2\x96\x81\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},"
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\"x\"},\"content\":\"yy\"}]}}";
    static const int32_t ids[] = {3, 0, 1, 2, 3, 4, 0, 3, 2};
    struct tokenizer_files files = {.tokenizer_json = STR(json)};
    struct err err = {0};
    struct tokenizer *t = tokenizer_from_files(&files, &err);
    assert_non_null(t);
    struct buf out;
    assert_true(decode_both(t, ids, sizeof ids / sizeof *ids, false, &out));
    assert_string_equal(out.data, " ayy\xe6\xbc\xa2 ayyyy\xef\xbf\xbd ayy\xef\xbf\xbd");
    buf_release(&out);
    tokenizer_free(t);
}

/* ---- GGUF -------------------------------------------------------------------------------------------------------- */
struct gguf_arrays {
    struct str *tokens, *merges;
    int32_t *types;
    size_t n_tokens, n_merges;
};

static struct gguf_arrays arrays_of(const json_t *root)
{
    const json_t *tokens = json_object_get(root, "tokens"), *merges = json_object_get(root, "merges"),
                 *types = json_object_get(root, "types");
    struct gguf_arrays a = {.n_tokens = json_array_size(tokens), .n_merges = json_array_size(merges)};
    a.tokens = calloc(a.n_tokens, sizeof *a.tokens);
    a.merges = calloc(a.n_merges, sizeof *a.merges);
    a.types = calloc(a.n_tokens, sizeof *a.types);
    for (size_t i = 0; i < a.n_tokens; i++) {
        a.tokens[i] = text_of(json_array_get(tokens, i));
        a.types[i] = (int32_t)json_integer_value(json_array_get(types, i));
    }
    for (size_t i = 0; i < a.n_merges; i++)
        a.merges[i] = text_of(json_array_get(merges, i));
    return a;
}

static void arrays_release(struct gguf_arrays *a)
{
    free(a->tokens);
    free(a->merges);
    free(a->types);
}

static void test_gguf_byte_level(void **state)
{
    json_t *root = json_read(GOLDEN "gguf.json"), *ids;
    struct gguf_arrays a = arrays_of(root);
    const char *pre;
    size_t n_bad = 0, n = 0;
    json_object_foreach(json_object_get(root, "pre"), pre, ids)
    {
        struct err err = {0};
        struct tokenizer_gguf g = {.model = STR("gpt2"),
                                   .pre = str_from(pre),
                                   .n_tokens = a.n_tokens,
                                   .tokens = a.tokens,
                                   .token_types = a.types,
                                   .n_merges = a.n_merges,
                                   .merges = a.merges,
                                   .bos = -1,
                                   .eos = 0,
                                   .unk = -1,
                                   .pad = -1,
                                   .add_bos = -1,
                                   .add_eos = -1};
        struct tokenizer *t = tokenizer_from_gguf(&g, &err);
        if (!t)
            print_error("%s: %s\n", pre, err.text);
        assert_non_null(t);
        json_t *golden = json_pack("{s:O}", "ids", ids);
        n_bad += check_tokenizer(pre, t, golden, TOKENIZER_PARSE_SPECIAL);
        json_decref(golden);
        tokenizer_free(t);
        n++;
    }
    struct err err = {0};
    struct tokenizer_gguf unknown = {
        .model = STR("gpt2"), .pre = STR("nobody-knows"), .n_tokens = a.n_tokens, .tokens = a.tokens};
    assert_null(tokenizer_from_gguf(&unknown, &err));
    assert_int_equal(err.code, ERR_MODEL_UNSUPPORTED);
    assert_non_null(strstr(err.text, "nobody-knows"));
    assert_non_null(strstr(err.text, "llama-bpe"));
    arrays_release(&a);
    json_decref(root);
    assert_true(n >= 14);
    assert_int_equal(n_bad, 0);
}

/* ---- real tokenizers --------------------------------------------------------------------------------------------- */
/* Texts parted by a line, and a line of ids each. */
static size_t check_ggml(const struct tokenizer *t, const char *vocab)
{
    static const char part[] = "\n__ggml_vocab_test__\n";
    struct buf in = file_read(DATA "tokenizer_vectors/ggml/ggml-vocab-%s.gguf.inp", vocab);
    struct buf out = file_read(DATA "tokenizer_vectors/ggml/ggml-vocab-%s.gguf.out", vocab);
    size_t n = 0, n_bad = 0;
    const char *text = in.data, *line = out.data;
    for (const char *end; text && (end = strstr(text, part)); text = end + sizeof part - 1, n++) {
        struct token_list l;
        struct err err;
        token_list_init(&l, IDS_MAX);
        assert_true(tokenizer_encode(t, (struct str){text, (size_t)(end - text)}, 0, &l, &err));
        bool same = true;
        size_t k = 0;
        for (char *after; *line && *line != '\n'; line = after, k++) {
            long id = strtol(line, &after, 10);
            if (after == line)
                break;
            same &= k < l.len && l.ids[k] == id;
        }
        while (*line && *line++ != '\n')
            ;
        if (!same || k != l.len) {
            print_error("%s: text %zu '%.*s'\n", vocab, n, (int)(end - text), text);
            n_bad++;
        }
        token_list_release(&l);
    }
    buf_release(&in);
    buf_release(&out);
    assert_true(n > 40);
    return n_bad;
}

/* {model: {case: {text, ids, decoded}}}: every model of the file shares the tokenizer. */
static size_t check_recorded(const struct tokenizer *t, const char *name, const char *model, bool decodes)
{
    char path[256];
    snprintf(path, sizeof path, DATA "tokenizer_vectors/transformersjs/%s.json", name);
    json_t *root = json_read(path), *one;
    size_t n_bad = 0, n = 0;
    const char *label;
    json_object_foreach(json_object_get(root, model), label, one)
    {
        struct token_list l;
        struct err err;
        struct buf out;
        const json_t *text = json_object_get(one, "text"), *decoded = json_object_get(one, "decoded");
        if (!json_is_string(text))
            continue;
        token_list_init(&l, IDS_MAX);
        buf_init(&out, FILE_BYTES);
        assert_true(tokenizer_encode(t, text_of(text), TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL, &l, &err));
        if (!ids_equal(&l, json_object_get(one, "ids"))) {
            print_error("%s %s", name, label);
            print_ids("", &l, json_object_get(one, "ids"));
            n_bad++;
        }
        assert_true(tokenizer_decode(t, l.ids, l.len, false, &out, &err));
        if (decodes && json_is_string(decoded) && !str_equal(buf_str(&out), text_of(decoded))) {
            print_error("%s %s: wanted '%s' got '%s'\n", name, label, json_string_value(decoded), buf_str(&out).ptr);
            n_bad++;
        }
        buf_release(&out);
        token_list_release(&l);
        n++;
    }
    json_decref(root);
    assert_true(n > 5);
    return n_bad;
}

static const struct real {
    const char *folder, *only, *ggml, *recorded, *model;
    bool cleaned; /* recorded when spaces were cleaned up by default: only the ids are compared */
} REALS[] = {
    {"gpt2", "tokenizer.json", "gpt-2", "gpt2", "Xenova/gpt2", true},
    {"gpt2", "vocab.json merges.txt", "gpt-2", NULL, NULL, false},
    {"llama2", "tokenizer.json", "llama-spm", "llama", "Xenova/llama-tokenizer", false},
    {"llama2", "tokenizer.model", "llama-spm", NULL, NULL, false},
    {"phi-3-mini", NULL, "phi-3", NULL, NULL, false},
    {"qwen2", "tokenizer.json", "qwen2", "qwen2", "Xenova/Qwen1.5-0.5B-Chat", false},
    {"qwen2", "vocab.json merges.txt", "qwen2", NULL, NULL, false},
    {"falcon", NULL, "falcon", "falcon", "tiiuae/falcon-7b", true},
    {"t5-small", NULL, NULL, "t5", "Xenova/t5-small", false},
};

static void test_real(void **state)
{
    struct buf probe = file_read(DATA "tokenizers/gpt2/vocab.json");
    bool there = probe.len > 0;
    buf_release(&probe);
    if (!there)
        skip();
    size_t n_bad = 0;
    for (size_t i = 0; i < sizeof REALS / sizeof *REALS; i++) {
        char folder[256];
        struct err err = {0};
        snprintf(folder, sizeof folder, DATA "tokenizers/%s", REALS[i].folder);
        struct tokenizer *t = tokenizer_open(folder, REALS[i].only, REALS[i].folder, &err);
        if (!t)
            print_error("%s: %s\n", folder, err.text);
        assert_non_null(t);
        n_bad += REALS[i].ggml ? check_ggml(t, REALS[i].ggml) : 0;
        n_bad += REALS[i].recorded ? check_recorded(t, REALS[i].recorded, REALS[i].model, !REALS[i].cleaned) : 0;
        tokenizer_free(t);
    }
    assert_int_equal(n_bad, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_byte_level),
        cmocka_unit_test(test_vocab_merges),
        cmocka_unit_test(test_sentencepiece_bpe),
        cmocka_unit_test(test_sentencepiece_unigram),
        cmocka_unit_test(test_converted),
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_pipelines),
        cmocka_unit_test(test_gguf_byte_level),
        cmocka_unit_test(test_real),
        cmocka_unit_test(test_blocks_that_touch),
        cmocka_unit_test(test_decoders_behind_bytes),
    };
    return cmocka_run_group_tests(tests, read_strings, release_strings);
}

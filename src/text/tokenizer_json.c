/* Tokenizers out of tokenizer.json: the models (BPE, unigram, WordPiece, WordLevel) and the added tokens; the parts around
 * them are read by tokenizer_parts.c. What is not known is refused by name. */
#include "text/tokenizer_impl.h"

#include <math.h>
#include <stdlib.h>

struct str json_view(const json_t *object, const char *key, struct str fallback)
{
    const json_t *v = json_object_get(object, key);
    return json_is_string(v) ? (struct str){json_string_value(v), json_string_length(v)} : fallback;
}

int json_flag(const json_t *object, const char *key, int fallback)
{
    const json_t *v = json_object_get(object, key);
    return json_is_boolean(v) ? json_is_true(v) : fallback;
}

json_t *json_parse_text(struct str text, const char *file, struct err *err)
{
    json_error_t at;
    json_t *root = json_loadb(text.ptr, text.len, JSON_ALLOW_NUL, &at);
    if (!root)
        err_set(err, ERR_MODEL_DAMAGED, "%s is not valid JSON: %s (line %d, column %d)", file, at.text, at.line, at.column);
    return root;
}

static bool unsupported(struct err *err, const char *part, const char *type)
{
    return err_set(err, ERR_MODEL_UNSUPPORTED, "tokenizer.json: %s '%.60s' is not supported", part, type);
}

bool vocab_read(struct tokenizer *t, const json_t *vocab, struct err *err)
{
    const char *text;
    size_t len;
    json_t *id;
    json_object_keylen_foreach((json_t *)vocab, text, len, id)
    {
        if (!json_is_integer(id) || !tokenizer_set_token(t, (int32_t)json_integer_value(id), (struct str){text, len}, err))
            return false;
    }
    return tokenizer_index(t, err);
}

size_t vocab_ids(const json_t *vocab, const char *file, struct err *err)
{
    const char *key;
    json_t *id;
    size_t n = 0;
    json_object_foreach((json_t *)vocab, key, id)
    {
        json_int_t v = json_is_integer(id) ? json_integer_value(id) : -1;
        if (v < 0 || v >= TOKENIZER_IDS_MAX) {
            err_set(err, ERR_MODEL_DAMAGED, "%s: token '%.60s' has the id %lld; 0 to %u are possible", file, key, (long long)v,
                    TOKENIZER_IDS_MAX - 1);
            return 0;
        }
        n = (size_t)v + 1 > n ? (size_t)v + 1 : n;
    }
    if (n == 0)
        err_set(err, ERR_MODEL_DAMAGED, "%s: the vocabulary is empty", file);
    return n;
}

static bool read_merges(struct tokenizer *t, const json_t *merges, struct err *err)
{
    if (!pair_table_init(&t->pairs, json_array_size(merges), t->seed))
        return err_set(err, ERR_MEMORY, "no memory for %zu merges", json_array_size(merges));
    size_t i;
    json_t *m;
    json_array_foreach((json_t *)merges, i, m)
    {
        struct str left = {0}, right = {0};
        if (json_is_array(m) && json_array_size(m) == 2) {
            const json_t *a = json_array_get(m, 0), *b = json_array_get(m, 1);
            left = (struct str){json_string_value(a), json_string_length(a)};
            right = (struct str){json_string_value(b), json_string_length(b)};
        } else if (json_is_string(m)) {
            merge_parts((struct str){json_string_value(m), json_string_length(m)}, &left, &right);
        }
        if (!left.ptr || !right.ptr)
            return err_set(err, ERR_MODEL_DAMAGED, "tokenizer.json: merge %zu is not two tokens", i);
        if (!tokenizer_put_merge(t, left, right, i, err))
            return false;
    }
    return true;
}

bool merge_parts(struct str line, struct str *left, struct str *right)
{
    const char *space = line.len > 1 ? memchr(line.ptr + 1, ' ', line.len - 1) : NULL;
    if (!space)
        return false;
    *left = (struct str){line.ptr, (size_t)(space - line.ptr)};
    *right = (struct str){space + 1, line.len - left->len - 1};
    return true;
}

static bool read_added(struct tokenizer *t, const json_t *list, struct err *err)
{
    size_t i;
    json_t *one;
    json_array_foreach((json_t *)list, i, one)
    {
        json_int_t id = json_integer_value(json_object_get(one, "id"));
        struct str content = json_view(one, "content", STR(""));
        if (id < 0 || id >= TOKENIZER_IDS_MAX)
            return err_set(err, ERR_MODEL_DAMAGED, "tokenizer.json: added token '%.60s' has the id %lld; 0 to %u are possible",
                           content.ptr, (long long)id, TOKENIZER_IDS_MAX - 1);
        struct added_token a = {.id = (int32_t)id,
                                .content = content,
                                .single_word = json_flag(one, "single_word", 0),
                                .lstrip = json_flag(one, "lstrip", 0),
                                .rstrip = json_flag(one, "rstrip", 0),
                                .normalized = json_flag(one, "normalized", 1),
                                .special = json_flag(one, "special", 0)};
        if (a.content.len && !tokenizer_add(t, &a, err))
            return false;
    }
    return true;
}

/* ---- models ------------------------------------------------------------------------------------------------------ */
static struct tokenizer *read_bpe(const json_t *model, struct err *err)
{
    const json_t *vocab = json_object_get(model, "vocab"), *dropout = json_object_get(model, "dropout");
    if (json_is_number(dropout) && json_number_value(dropout) > 0) {
        unsupported(err, "option", "dropout");
        return NULL;
    }
    size_t n = vocab_ids(vocab, "tokenizer.json", err);
    struct tokenizer *t = n ? tokenizer_make(n, err) : NULL;
    if (!t)
        return NULL;
    t->model = MODEL_BPE;
    t->fuse_unk = json_flag(model, "fuse_unk", 0);
    t->byte_fallback = json_flag(model, "byte_fallback", 0);
    t->ignore_merges = json_flag(model, "ignore_merges", 0);
    t->subword_prefix = tokenizer_copy(t, json_view(model, "continuing_subword_prefix", STR("")));
    t->word_suffix = tokenizer_copy(t, json_view(model, "end_of_word_suffix", STR("")));
    if (vocab_read(t, vocab, err) && read_merges(t, json_object_get(model, "merges"), err))
        return t;
    tokenizer_free(t);
    return NULL;
}

/* "vocab": [[piece, score], ...]; of equal pieces the last one counts. */
static bool unigram_vocab(struct tokenizer *t, const json_t *vocab, struct err *err)
{
    double least = INFINITY;
    size_t i;
    json_t *one;
    if (!(t->scores = calloc(t->n_ids, sizeof *t->scores)))
        return err_set(err, ERR_MEMORY, "no memory for a vocabulary of %zu ids", t->n_ids);
    json_array_foreach((json_t *)vocab, i, one)
    {
        const json_t *piece = json_array_get(one, 0), *score = json_array_get(one, 1);
        if (!json_is_string(piece) || !json_is_number(score))
            return err_set(err, ERR_MODEL_DAMAGED, "tokenizer.json: entry %zu of the vocabulary is not [piece, score]", i);
        if (!tokenizer_set_token(t, (int32_t)i, (struct str){json_string_value(piece), json_string_length(piece)}, err))
            return false;
        t->scores[i] = json_number_value(score);
        least = t->scores[i] < least ? t->scores[i] : least;
    }
    t->unk_score = least - UNIGRAM_UNKNOWN_PENALTY;
    return tokenizer_index(t, err);
}

static struct tokenizer *read_unigram(const json_t *model, struct err *err)
{
    const json_t *vocab = json_object_get(model, "vocab"), *unk = json_object_get(model, "unk_id");
    size_t n = json_array_size(vocab);
    if (n == 0 || (json_is_integer(unk) && (json_integer_value(unk) < 0 || (size_t)json_integer_value(unk) >= n))) {
        err_set(err, ERR_MODEL_DAMAGED, "tokenizer.json: the unigram vocabulary has %zu pieces and unk_id is %lld", n,
                (long long)json_integer_value(unk));
        return NULL;
    }
    struct tokenizer *t = tokenizer_make(n, err);
    if (!t)
        return NULL;
    t->model = MODEL_UNIGRAM;
    t->byte_fallback = json_flag(model, "byte_fallback", 0);
    t->unk_id = json_is_integer(unk) ? (int32_t)json_integer_value(unk) : -1;
    if (unigram_vocab(t, vocab, err))
        return t;
    tokenizer_free(t);
    return NULL;
}

static struct tokenizer *read_words(const json_t *model, enum model_kind kind, struct err *err)
{
    const json_t *vocab = json_object_get(model, "vocab"), *chars = json_object_get(model, "max_input_chars_per_word");
    json_int_t chars_max = json_is_integer(chars) ? json_integer_value(chars) : 100;
    struct str prefix = json_view(model, "continuing_subword_prefix", STR("##"));
    if (kind == MODEL_WORDPIECE && (chars_max < 1 || chars_max > WORDPIECE_CHARS_MAX || prefix.len > WORDPIECE_PREFIX_MAX)) {
        err_set(err, ERR_MODEL_UNSUPPORTED,
                "tokenizer.json: max_input_chars_per_word %lld (1 to %u) or a prefix of %zu bytes "
                "(at most %u) is not supported",
                (long long)chars_max, WORDPIECE_CHARS_MAX, prefix.len, WORDPIECE_PREFIX_MAX);
        return NULL;
    }
    size_t n = vocab_ids(vocab, "tokenizer.json", err);
    struct tokenizer *t = n ? tokenizer_make(n, err) : NULL;
    if (!t)
        return NULL;
    t->model = kind;
    t->word_chars_max = (size_t)chars_max;
    t->subword_prefix = tokenizer_copy(t, prefix);
    if (vocab_read(t, vocab, err))
        return t;
    tokenizer_free(t);
    return NULL;
}

/* The model without a "type" (old files) is told by what it holds. */
static struct tokenizer *read_model(const json_t *model, struct err *err)
{
    const json_t *vocab = json_object_get(model, "vocab");
    const char *type = json_string_value(json_object_get(model, "type"));
    if (!type && json_is_object(vocab))
        type = json_object_get(model, "merges") ? "BPE" : json_object_get(model, "max_input_chars_per_word") ? "WordPiece" : "";
    if (!type)
        type = json_is_array(vocab) ? "Unigram" : "(none)";
    if (strcmp(type, "Unigram") == 0 && json_is_array(vocab))
        return read_unigram(model, err);
    if (json_is_object(vocab)) {
        if (strcmp(type, "BPE") == 0)
            return read_bpe(model, err);
        if (strcmp(type, "WordPiece") == 0)
            return read_words(model, MODEL_WORDPIECE, err);
        if (strcmp(type, "WordLevel") == 0)
            return read_words(model, MODEL_WORDLEVEL, err);
    }
    unsupported(err, "model", type);
    return NULL;
}

static struct tokenizer *build(const json_t *root, const struct tokenizer_files *files, const json_t *config, struct err *err)
{
    const json_t *model = json_object_get(root, "model");
    struct tokenizer *t = read_model(model, err);
    if (!t)
        return NULL;
    struct str unk = json_view(model, "unk_token", STR(""));
    if (unk.len && t->model != MODEL_UNIGRAM)
        t->unk_id = tokenizer_model_id(t, unk);
    bool ok = parts_normalizer(t, json_object_get(root, "normalizer"), 0, err) &&
              parts_pre_tokenizer(t, json_object_get(root, "pre_tokenizer"), 0, err) &&
              parts_decoder(t, json_object_get(root, "decoder"), 0, err) &&
              parts_post_processor(t, json_object_get(root, "post_processor"), 0, err) &&
              read_added(t, json_object_get(root, "added_tokens"), err) && config_apply(t, files, config, err) &&
              tokenizer_finish(t, err);
    if (!ok) {
        tokenizer_free(t);
        return NULL;
    }
    return t;
}

struct tokenizer *tokenizer_from_json(const struct tokenizer_files *files, struct err *err)
{
    json_t *config = NULL,
           *root = config_parse(files, &config, err) ? json_parse_text(files->tokenizer_json, "tokenizer.json", err) : NULL;
    struct tokenizer *t = root ? build(root, files, config, err) : NULL;
    json_decref(root);
    json_decref(config);
    return t;
}

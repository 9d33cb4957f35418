/* Tokenizers out of tokenizer.json: the models (BPE, unigram, WordPiece, WordLevel) and the added tokens; the parts around
 * them are read by tokenizer_parts.c. What is not known is refused by name. */
#include "text/json_scan.h"
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

/* Says what is wrong with a text that could not be read in place. */
static bool refuse_text(struct str text, const char *file, struct err *err)
{
    json_t *root = json_parse_text(text, file, err);
    if (!root)
        return false;
    json_decref(root);
    return err_set(err, ERR_MODEL_DAMAGED, "%s: the vocabulary or the merges are not what they have to be", file);
}

bool vocab_read(struct tokenizer *t, struct str vocab, const char *file, struct err *err)
{
    struct json_scan s;
    bool ok = token_table_init(&t->by_token, t->model_tokens, t->n_ids, t->seed) ||
              err_set(err, ERR_MEMORY, "no memory for a vocabulary of %zu ids", t->n_ids);
    json_scan_init(&s, vocab, TOKENIZER_TOKEN_BYTES_MAX);
    for (json_scan_enter(&s, '{'); ok && json_scan_more(&s, '}');) {
        struct str text = json_scan_name(&s);
        int64_t id = json_scan_integer(&s);
        if (s.failed || !(ok = tokenizer_set_token(t, (int32_t)id, text, err)))
            break;
        int32_t before = token_table_put(&t->by_token, (int32_t)id);
        if (before >= 0) { /* of equal texts the last one counts */
            t->model_tokens[before] = t->tokens[before] = (struct str){0};
            t->flags[before] = 0;
        }
    }
    if (ok && s.failed)
        ok = refuse_text(vocab, file, err);
    t->texts_differ = 1;
    json_scan_release(&s);
    return ok;
}

size_t vocab_ids(struct str vocab, const char *file, struct err *err)
{
    struct json_scan s;
    size_t n = 0;
    bool ok = true;
    json_scan_init(&s, vocab, TOKENIZER_TOKEN_BYTES_MAX);
    for (json_scan_enter(&s, '{'); ok && json_scan_more(&s, '}');) {
        struct str name = json_scan_skip_name(&s);
        int64_t id = json_scan_integer(&s);
        if (s.failed)
            break;
        ok = (id >= 0 && id < TOKENIZER_IDS_MAX) ||
             err_set(err, ERR_MODEL_DAMAGED, "%s: token %.*s has the id %lld; 0 to %u are possible", file,
                     (int)(name.len < 60 ? name.len : 60), name.ptr, (long long)id, TOKENIZER_IDS_MAX - 1);
        n = (size_t)id + 1 > n ? (size_t)id + 1 : n;
    }
    if (ok && !json_scan_ended(&s))
        ok = refuse_text(vocab, file, err);
    else if (ok && n == 0)
        ok = err_set(err, ERR_MODEL_DAMAGED, "%s: the vocabulary is empty", file);
    json_scan_release(&s);
    return ok ? n : 0;
}

static size_t count_members(struct str list)
{
    struct json_scan s;
    size_t n = 0;
    json_scan_init(&s, list, 0);
    for (json_scan_enter(&s, '['); json_scan_more(&s, ']'); n++)
        json_scan_skip(&s);
    json_scan_release(&s);
    return n;
}

/* "a b", or ["a", "b"]. */
static bool read_merge(struct json_scan *s, struct str *left, struct str *right)
{
    if (json_scan_peek(s) == '"')
        return merge_parts(json_scan_string(s), left, right);
    if (json_scan_peek(s) != '[')
        return false;
    json_scan_enter(s, '[');
    bool two = json_scan_more(s, ']');
    *left = json_scan_string(s);
    two = two && json_scan_more(s, ']');
    *right = json_scan_string(s);
    return two && !json_scan_more(s, ']');
}

static bool read_merges(struct tokenizer *t, struct str merges, struct err *err)
{
    struct json_scan s;
    size_t n = count_members(merges);
    if (!pair_table_init(&t->pairs, n, t->seed))
        return err_set(err, ERR_MEMORY, "no memory for %zu merges", n);
    bool ok = true;
    json_scan_init(&s, merges, 2 * TOKENIZER_TOKEN_BYTES_MAX);
    json_scan_enter(&s, '[');
    for (size_t i = 0; ok && json_scan_more(&s, ']'); i++) {
        struct str left, right;
        ok = read_merge(&s, &left, &right) && !s.failed;
        ok = ok ? tokenizer_put_merge(t, left, right, i, err)
                : err_set(err, ERR_MODEL_DAMAGED, "tokenizer.json: merge %zu is not two tokens", i);
    }
    json_scan_release(&s);
    return ok;
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

/* ---- the parts that are large ------------------------------------------------------------------------------------- */
/* A vocabulary by text and the merges are read in place; the rest of the file, with an empty object and list where they
 * were, is parsed into a tree. */
struct parts {
    struct str vocab, merges; /* empty: not there, or of another form */
    struct buf rest;
    const char *copied; /* the text up to here is in `rest` */
};

/* A part that is there twice is a failure. */
static void take_part(struct json_scan *s, struct parts *p, struct str *part, const char *instead)
{
    struct str value = json_scan_skip(s);
    if (s->failed || value.ptr[0] != instead[0])
        return;
    s->failed = part->len > 0;
    *part = value;
    buf_append(&p->rest, p->copied, (size_t)(value.ptr - p->copied));
    buf_append_str(&p->rest, str_from(instead));
    p->copied = value.ptr + value.len;
}

static void find_in_model(struct json_scan *s, struct parts *p)
{
    for (json_scan_enter(s, '{'); json_scan_more(s, '}');) {
        struct str name = json_scan_name(s);
        if (str_equal(name, STR("vocab")))
            take_part(s, p, &p->vocab, "{}");
        else if (str_equal(name, STR("merges")))
            take_part(s, p, &p->merges, "[]");
        else
            json_scan_skip(s);
    }
}

/* The tree of the rest; NULL: the text is no JSON, or has a part twice. The caller releases p->rest. */
static json_t *take_parts(struct str text, struct parts *p, struct err *err)
{
    struct json_scan s;
    *p = (struct parts){.copied = text.ptr};
    buf_init(&p->rest, text.len + 4);
    json_scan_init(&s, text, TOKENIZER_TOKEN_BYTES_MAX);
    for (json_scan_enter(&s, '{'); json_scan_more(&s, '}');) {
        if (str_equal(json_scan_name(&s), STR("model")) && json_scan_peek(&s) == '{')
            find_in_model(&s, p);
        else
            json_scan_skip(&s);
    }
    buf_append(&p->rest, p->copied, (size_t)(text.ptr + text.len - p->copied));
    json_t *root = json_scan_ended(&s) && !p->rest.failed ? json_loadb(p->rest.data, p->rest.len, JSON_ALLOW_NUL, NULL) : NULL;
    if (!root)
        refuse_text(text, "tokenizer.json", err);
    json_scan_release(&s);
    return root;
}

/* ---- models ------------------------------------------------------------------------------------------------------ */
static struct tokenizer *read_bpe(const json_t *model, const struct parts *p, struct err *err)
{
    const json_t *dropout = json_object_get(model, "dropout");
    if (json_is_number(dropout) && json_number_value(dropout) > 0) {
        unsupported(err, "option", "dropout");
        return NULL;
    }
    size_t n = vocab_ids(p->vocab, "tokenizer.json", err);
    struct tokenizer *t = n ? tokenizer_make(n, err) : NULL;
    if (!t)
        return NULL;
    t->model = MODEL_BPE;
    t->fuse_unk = json_flag(model, "fuse_unk", 0);
    t->byte_fallback = json_flag(model, "byte_fallback", 0);
    t->ignore_merges = json_flag(model, "ignore_merges", 0);
    t->subword_prefix = tokenizer_copy(t, json_view(model, "continuing_subword_prefix", STR("")));
    t->word_suffix = tokenizer_copy(t, json_view(model, "end_of_word_suffix", STR("")));
    if (vocab_read(t, p->vocab, "tokenizer.json", err) && (!p->merges.len || read_merges(t, p->merges, err)))
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

static struct tokenizer *read_words(const json_t *model, const struct parts *p, enum model_kind kind, struct err *err)
{
    const json_t *chars = json_object_get(model, "max_input_chars_per_word");
    json_int_t chars_max = json_is_integer(chars) ? json_integer_value(chars) : 100;
    struct str prefix = json_view(model, "continuing_subword_prefix", STR("##"));
    if (kind == MODEL_WORDPIECE && (chars_max < 1 || chars_max > WORDPIECE_CHARS_MAX || prefix.len > WORDPIECE_PREFIX_MAX)) {
        err_set(err, ERR_MODEL_UNSUPPORTED,
                "tokenizer.json: max_input_chars_per_word %lld (1 to %u) or a prefix of %zu bytes "
                "(at most %u) is not supported",
                (long long)chars_max, WORDPIECE_CHARS_MAX, prefix.len, WORDPIECE_PREFIX_MAX);
        return NULL;
    }
    size_t n = vocab_ids(p->vocab, "tokenizer.json", err);
    struct tokenizer *t = n ? tokenizer_make(n, err) : NULL;
    if (!t)
        return NULL;
    t->model = kind;
    t->word_chars_max = (size_t)chars_max;
    t->subword_prefix = tokenizer_copy(t, prefix);
    if (vocab_read(t, p->vocab, "tokenizer.json", err))
        return t;
    tokenizer_free(t);
    return NULL;
}

/* The model without a "type" (old files) is told by what it holds. */
static struct tokenizer *read_model(const json_t *model, const struct parts *p, struct err *err)
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
            return read_bpe(model, p, err);
        if (strcmp(type, "WordPiece") == 0)
            return read_words(model, p, MODEL_WORDPIECE, err);
        if (strcmp(type, "WordLevel") == 0)
            return read_words(model, p, MODEL_WORDLEVEL, err);
    }
    unsupported(err, "model", type);
    return NULL;
}

static struct tokenizer *build(const json_t *root, const struct parts *p, const struct tokenizer_files *files,
                               const json_t *config, struct err *err)
{
    const json_t *model = json_object_get(root, "model");
    struct tokenizer *t = read_model(model, p, err);
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
    struct parts parts = {0};
    json_t *config = NULL, *root = config_parse(files, &config, err) ? take_parts(files->tokenizer_json, &parts, err) : NULL;
    struct tokenizer *t = root ? build(root, &parts, files, config, err) : NULL;
    buf_release(&parts.rest);
    json_decref(root);
    json_decref(config);
    return t;
}

/* Tokenizers out of tokenizer.json: BPE with the normalizers, pre-tokenizers, decoders and post-processors below. What
 * is not known is refused by name. */
#include "text/tokenizer_impl.h"

static const char *type_of(const json_t *node)
{
    const char *s = json_string_value(json_object_get(node, "type"));
    return s ? s : "(none)";
}

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

static bool full(size_t n, const char *part, struct err *err)
{
    return n < TOKENIZER_STEPS_MAX ||
           err_set(err, ERR_MODEL_UNSUPPORTED, "tokenizer.json: more than %u %ss", TOKENIZER_STEPS_MAX, part);
}

/* {"String": "x"} or {"Regex": "..."} */
static bool read_pattern(struct tokenizer *t, const json_t *node, struct pattern *out, struct err *err)
{
    struct str none = {0}, literal = json_view(node, "String", none), regex = json_view(node, "Regex", none);
    if (literal.ptr)
        out->literal = tokenizer_copy(t, literal);
    else if (regex.ptr)
        out->regex = regex_new(tokenizer_copy(t, regex), err);
    else
        return err_set(err, ERR_MODEL_DAMAGED, "tokenizer.json: a pattern is neither String nor Regex");
    return out->literal.ptr || out->regex;
}

bool tokenizer_pre_byte_level(struct tokenizer *t, int prefix_space, int use_regex, struct err *err)
{
    if (!full(t->n_pre, "pre-tokenizer", err))
        return false;
    struct pre_step st = {.kind = PRE_BYTE_LEVEL, .prefix_space = prefix_space, .use_regex = use_regex,
                          .behavior = SPLIT_ISOLATED};
    if (use_regex && !(st.pattern.regex = regex_new(PATTERN_GPT2, err)))
        return false;
    t->pre[t->n_pre++] = st;
    return true;
}

bool tokenizer_pre_split(struct tokenizer *t, struct str pattern, struct err *err)
{
    if (!full(t->n_pre, "pre-tokenizer", err))
        return false;
    struct pre_step st = {.kind = PRE_SPLIT, .behavior = SPLIT_ISOLATED, .pattern.regex = regex_new(pattern, err)};
    if (!st.pattern.regex)
        return false;
    t->pre[t->n_pre++] = st;
    return true;
}

typedef bool (*part_reader)(struct tokenizer *t, const json_t *node, unsigned depth, struct err *err);

static bool each(struct tokenizer *t, const json_t *list, unsigned depth, part_reader read, struct err *err)
{
    size_t i;
    json_t *one;
    if (depth >= TOKENIZER_NEST_MAX)
        return err_set(err, ERR_MODEL_UNSUPPORTED, "tokenizer.json: Sequence nested deeper than %u", TOKENIZER_NEST_MAX);
    json_array_foreach((json_t *)list, i, one)
    {
        if (!read(t, one, depth + 1, err))
            return false;
    }
    return true;
}

bool parts_normalizer(struct tokenizer *t, const json_t *node, unsigned depth, struct err *err)
{
    static const struct {
        const char *type;
        enum norm_kind kind;
    } plain[] = {{"NFC", NORM_NFC}, {"NFD", NORM_NFD}, {"NFKC", NORM_NFKC}, {"NFKD", NORM_NFKD},
                 {"Lowercase", NORM_LOWERCASE}, {"StripAccents", NORM_STRIP_ACCENTS}, {"Nmt", NORM_NMT}};
    if (!node || json_is_null(node))
        return true;
    const char *type = type_of(node);
    if (strcmp(type, "Sequence") == 0)
        return each(t, json_object_get(node, "normalizers"), depth, parts_normalizer, err);
    if (!full(t->n_norm, "normalizer", err))
        return false;
    struct norm_step st = {0};
    bool known = false;
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (strcmp(type, plain[i].type) == 0) {
            st.kind = plain[i].kind;
            known = true;
        }
    if (strcmp(type, "Replace") == 0) {
        st.kind = NORM_REPLACE;
        st.content = tokenizer_copy(t, json_view(node, "content", STR("")));
        known = true;
        if (!read_pattern(t, json_object_get(node, "pattern"), &st.pattern, err))
            return false;
    } else if (strcmp(type, "Prepend") == 0) {
        st.kind = NORM_PREPEND;
        st.content = tokenizer_copy(t, json_view(node, "prepend", STR("")));
        known = true;
    } else if (strcmp(type, "Strip") == 0) {
        st = (struct norm_step){.kind = NORM_STRIP, .left = json_flag(node, "strip_left", 1),
                                .right = json_flag(node, "strip_right", 1)};
        known = true;
    }
    if (!known)
        return unsupported(err, "normalizer", type);
    t->norm[t->n_norm++] = st;
    return true;
}

static bool read_behavior(const json_t *node, enum split_behavior *out)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    struct str name = json_view(node, "behavior", STR("Isolated"));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (str_equal(name, str_from(names[i]))) {
            *out = (enum split_behavior)i;
            return true;
        }
    return false;
}

bool parts_pre_tokenizer(struct tokenizer *t, const json_t *node, unsigned depth, struct err *err)
{
    if (!node || json_is_null(node))
        return true;
    const char *type = type_of(node);
    if (strcmp(type, "Sequence") == 0)
        return each(t, json_object_get(node, "pretokenizers"), depth, parts_pre_tokenizer, err);
    if (strcmp(type, "ByteLevel") == 0)
        return tokenizer_pre_byte_level(t, json_flag(node, "add_prefix_space", 1), json_flag(node, "use_regex", 1), err);
    if (!full(t->n_pre, "pre-tokenizer", err))
        return false;
    struct pre_step st = {.behavior = SPLIT_ISOLATED};
    if (strcmp(type, "Split") == 0) {
        st.kind = PRE_SPLIT;
        st.invert = json_flag(node, "invert", 0);
        if (!read_behavior(node, &st.behavior))
            return unsupported(err, "split behavior", json_view(node, "behavior", STR("?")).ptr);
        if (!read_pattern(t, json_object_get(node, "pattern"), &st.pattern, err))
            return false;
    } else if (strcmp(type, "Digits") == 0) {
        st.kind = PRE_DIGITS;
        st.individual = json_flag(node, "individual_digits", 0);
        st.behavior = st.individual ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
    } else if (strcmp(type, "WhitespaceSplit") == 0) {
        st.kind = PRE_WHITESPACE_SPLIT;
        st.behavior = SPLIT_REMOVED;
    } else if (strcmp(type, "Punctuation") == 0) {
        st.kind = PRE_PUNCTUATION;
        read_behavior(node, &st.behavior);
    } else if (strcmp(type, "Metaspace") == 0) {
        struct str scheme = json_view(node, "prepend_scheme", STR("always"));
        st.kind = PRE_METASPACE;
        st.content = tokenizer_copy(t, json_view(node, "replacement", STR("\xe2\x96\x81")));
        st.scheme = str_equal(scheme, STR("first")) ? PREPEND_FIRST : str_equal(scheme, STR("never")) ? PREPEND_NEVER
                                                                                                     : PREPEND_ALWAYS;
        st.split = json_flag(node, "split", 1);
        st.behavior = SPLIT_MERGED_NEXT;
    } else {
        return unsupported(err, "pre-tokenizer", type);
    }
    t->pre[t->n_pre++] = st;
    return true;
}

bool parts_decoder(struct tokenizer *t, const json_t *node, unsigned depth, struct err *err)
{
    if (!node || json_is_null(node))
        return true;
    const char *type = type_of(node);
    if (strcmp(type, "Sequence") == 0)
        return each(t, json_object_get(node, "decoders"), depth, parts_decoder, err);
    if (!full(t->n_dec, "decoder", err))
        return false;
    struct dec_step st = {0};
    if (strcmp(type, "ByteLevel") == 0) {
        st.kind = DEC_BYTE_LEVEL;
    } else if (strcmp(type, "ByteFallback") == 0) {
        st.kind = DEC_BYTE_FALLBACK;
    } else if (strcmp(type, "Fuse") == 0) {
        st.kind = DEC_FUSE;
    } else if (strcmp(type, "Replace") == 0) {
        st.kind = DEC_REPLACE;
        st.content = tokenizer_copy(t, json_view(node, "content", STR("")));
        if (!read_pattern(t, json_object_get(node, "pattern"), &st.pattern, err))
            return false;
    } else if (strcmp(type, "Strip") == 0) {
        st.kind = DEC_STRIP;
        st.content = tokenizer_copy(t, json_view(node, "content", STR(" ")));
        st.start = (size_t)json_integer_value(json_object_get(node, "start"));
        st.stop = (size_t)json_integer_value(json_object_get(node, "stop"));
    } else if (strcmp(type, "Metaspace") == 0) {
        st.kind = DEC_METASPACE;
        st.content = tokenizer_copy(t, json_view(node, "replacement", STR("\xe2\x96\x81")));
        st.first_dropped = !str_equal(json_view(node, "prepend_scheme", STR("always")), STR("never"));
    } else {
        return unsupported(err, "decoder", type);
    }
    t->dec[t->n_dec++] = st;
    return true;
}

/* TemplateProcessing's "single": special tokens before and after the sequence. */
static bool read_template(struct tokenizer *t, const json_t *node, struct err *err)
{
    size_t i;
    json_t *one;
    bool after = false;
    const json_t *specials = json_object_get(node, "special_tokens");
    json_array_foreach(json_object_get(node, "single"), i, one)
    {
        const json_t *special = json_object_get(one, "SpecialToken");
        if (!special) {
            after = true;
            continue;
        }
        const char *name = json_string_value(json_object_get(special, "id"));
        const json_t *ids = name ? json_object_get(json_object_get(specials, name), "ids") : NULL;
        size_t *n = after ? &t->n_after : &t->n_before;
        for (size_t k = 0; k < json_array_size(ids); k++) {
            json_int_t id = json_integer_value(json_array_get(ids, k));
            if (*n == TOKENIZER_AFFIX_MAX || id < 0 || id >= TOKENIZER_IDS_MAX)
                return err_set(err, ERR_MODEL_DAMAGED, "tokenizer.json: the post-processor puts id %lld, or more than %u",
                               (long long)id, TOKENIZER_AFFIX_MAX);
            (after ? t->after : t->before)[(*n)++] = (int32_t)id;
        }
    }
    return true;
}

bool parts_post_processor(struct tokenizer *t, const json_t *node, unsigned depth, struct err *err)
{
    if (!node || json_is_null(node))
        return true;
    const char *type = type_of(node);
    if (strcmp(type, "Sequence") == 0)
        return each(t, json_object_get(node, "processors"), depth, parts_post_processor, err);
    if (strcmp(type, "ByteLevel") == 0)
        return true; /* trims offsets only */
    if (strcmp(type, "TemplateProcessing") == 0)
        return read_template(t, node, err);
    return unsupported(err, "post-processor", type);
}

static bool read_vocab(struct tokenizer *t, const json_t *vocab, struct err *err)
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

static bool read_merges(struct tokenizer *t, const json_t *merges, struct err *err)
{
    if (!pair_table_init(&t->pairs, json_array_size(merges), t->seed))
        return err_set(err, ERR_MEMORY, "no memory for %zu merges", json_array_size(merges));
    size_t i;
    json_t *m;
    json_array_foreach((json_t *)merges, i, m)
    {
        struct str left, right;
        if (json_is_array(m) && json_array_size(m) == 2) {
            const json_t *a = json_array_get(m, 0), *b = json_array_get(m, 1);
            left = (struct str){json_string_value(a), json_string_length(a)};
            right = (struct str){json_string_value(b), json_string_length(b)};
        } else {
            struct str s = {json_string_value(m), json_string_length(m)};
            const char *space = s.len > 1 ? memchr(s.ptr + 1, ' ', s.len - 1) : NULL;
            left = (struct str){space ? s.ptr : NULL, space ? (size_t)(space - s.ptr) : 0};
            right = (struct str){space ? space + 1 : NULL, space ? s.len - left.len - 1 : 0};
        }
        if (!left.ptr || !right.ptr)
            return err_set(err, ERR_MODEL_DAMAGED, "tokenizer.json: merge %zu is not two tokens", i);
        if (!tokenizer_put_merge(t, left, right, i, err))
            return false;
    }
    return true;
}

static bool read_added(struct tokenizer *t, const json_t *list, struct err *err)
{
    size_t i;
    json_t *one;
    json_array_foreach((json_t *)list, i, one)
    {
        struct added_token a = {.id = (int32_t)json_integer_value(json_object_get(one, "id")),
                                .content = json_view(one, "content", STR("")),
                                .single_word = json_flag(one, "single_word", 0), .lstrip = json_flag(one, "lstrip", 0),
                                .rstrip = json_flag(one, "rstrip", 0), .normalized = json_flag(one, "normalized", 1),
                                .special = json_flag(one, "special", 0)};
        if (a.content.len && !tokenizer_add(t, &a, err))
            return false;
    }
    return true;
}

/* tokenizer_config.json: bos_token and its like, strings or {"content": ...}. */
bool config_apply(struct tokenizer *t, const struct tokenizer_files *files, struct err *err)
{
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token",
                                        "mask_token"};
    if (!files->tokenizer_config.len)
        return true;
    json_t *root = json_parse_text(files->tokenizer_config, "tokenizer_config.json", err);
    bool ok = root != NULL;
    for (size_t i = 0; ok && i < sizeof names / sizeof *names; i++) {
        const json_t *v = json_object_get(root, names[i]);
        struct str content = json_is_object(v) ? json_view(v, "content", STR("")) : json_view(root, names[i], STR(""));
        ok = content.len == 0 || tokenizer_set_named(t, str_from(names[i]), content, err);
    }
    t->clean_up = ok ? json_flag(root, "clean_up_tokenization_spaces", 0) : 0;
    json_decref(root);
    return ok;
}

static size_t largest_id(const json_t *vocab, struct err *err)
{
    const char *key;
    json_t *id;
    size_t n = 0;
    json_object_foreach((json_t *)vocab, key, id)
    {
        json_int_t v = json_integer_value(id);
        if (v < 0 || v >= TOKENIZER_IDS_MAX) {
            err_set(err, ERR_MODEL_DAMAGED, "tokenizer.json: token '%.60s' has the id %lld; 0 to %u are possible", key,
                    (long long)v, TOKENIZER_IDS_MAX - 1);
            return 0;
        }
        n = (size_t)v + 1 > n ? (size_t)v + 1 : n;
    }
    if (n == 0)
        err_set(err, ERR_MODEL_DAMAGED, "tokenizer.json: the vocabulary is empty");
    return n;
}

static struct tokenizer *build(const json_t *root, const struct tokenizer_files *files, struct err *err)
{
    const json_t *model = json_object_get(root, "model"), *vocab = json_object_get(model, "vocab");
    bool bpe = strcmp(type_of(model), "BPE") == 0 || (!json_object_get(model, "type") && json_object_get(model, "merges"));
    if (!bpe || !json_is_object(vocab)) {
        unsupported(err, "model", type_of(model));
        return NULL;
    }
    const json_t *dropout = json_object_get(model, "dropout");
    if (json_is_number(dropout) && json_number_value(dropout) > 0) {
        unsupported(err, "option", "dropout");
        return NULL;
    }
    size_t n = largest_id(vocab, err);
    struct tokenizer *t = n ? tokenizer_make(n, err) : NULL;
    if (!t)
        return NULL;
    t->model = MODEL_BPE;
    t->fuse_unk = json_flag(model, "fuse_unk", 0);
    t->byte_fallback = json_flag(model, "byte_fallback", 0);
    t->ignore_merges = json_flag(model, "ignore_merges", 0);
    t->subword_prefix = tokenizer_copy(t, json_view(model, "continuing_subword_prefix", STR("")));
    t->word_suffix = tokenizer_copy(t, json_view(model, "end_of_word_suffix", STR("")));
    bool ok = read_vocab(t, vocab, err) && read_merges(t, json_object_get(model, "merges"), err);
    struct str unk = json_view(model, "unk_token", STR(""));
    t->unk_id = ok && unk.len ? tokenizer_model_id(t, unk) : -1;
    ok = ok && parts_normalizer(t, json_object_get(root, "normalizer"), 0, err) &&
         parts_pre_tokenizer(t, json_object_get(root, "pre_tokenizer"), 0, err) &&
         parts_decoder(t, json_object_get(root, "decoder"), 0, err) &&
         parts_post_processor(t, json_object_get(root, "post_processor"), 0, err) &&
         read_added(t, json_object_get(root, "added_tokens"), err) && config_apply(t, files, err) && tokenizer_finish(t, err);
    if (!ok) {
        tokenizer_free(t);
        return NULL;
    }
    return t;
}

struct tokenizer *tokenizer_from_json(const struct tokenizer_files *files, struct err *err)
{
    json_t *root = json_parse_text(files->tokenizer_json, "tokenizer.json", err);
    struct tokenizer *t = root ? build(root, files, err) : NULL;
    json_decref(root);
    return t;
}

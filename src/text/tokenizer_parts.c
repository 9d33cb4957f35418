/* The parts of tokenizer.json around the model: normalizers, pre-tokenizers, decoders, post-processors. What is not known
 * is refused by name. */
#include "text/tokenizer_impl.h"

#define STRIP_MAX 1000 /* characters that a Strip decoder may take off an end */

static const char *type_of(const json_t *node)
{
    const char *s = json_string_value(json_object_get(node, "type"));
    return s ? s : "(none)";
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
    if (literal.ptr && !literal.len)
        return err_set(err, ERR_MODEL_UNSUPPORTED, "tokenizer.json: an empty String as a pattern is not supported");
    return out->literal.ptr || out->regex || (literal.ptr && err_set(err, ERR_MEMORY, "no memory for a pattern"));
}

bool tokenizer_pre_byte_level(struct tokenizer *t, int prefix_space, int use_regex, struct err *err)
{
    if (!full(t->n_pre, "pre-tokenizer", err))
        return false;
    struct pre_step st = {
        .kind = PRE_BYTE_LEVEL, .prefix_space = prefix_space, .use_regex = use_regex, .behavior = SPLIT_ISOLATED};
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

static bool add_norm(struct tokenizer *t, enum norm_kind kind, struct err *err)
{
    if (!full(t->n_norm, "normalizer", err))
        return false;
    t->norm[t->n_norm++] = (struct norm_step){.kind = kind};
    return true;
}

static bool bert_normalizer(struct tokenizer *t, const json_t *node, struct err *err)
{
    int lower = json_flag(node, "lowercase", 1), strip = json_flag(node, "strip_accents", lower);
    return (!json_flag(node, "clean_text", 1) || add_norm(t, NORM_BERT_CLEAN, err)) &&
           (!json_flag(node, "handle_chinese_chars", 1) || add_norm(t, NORM_BERT_CJK, err)) &&
           (!strip || (add_norm(t, NORM_NFD, err) && add_norm(t, NORM_STRIP_MARKS, err))) &&
           (!lower || add_norm(t, NORM_LOWERCASE, err));
}

static int base64_value(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

static bool precompiled(struct tokenizer *t, const json_t *node, struct norm_step *st, struct err *err)
{
    struct str text = json_view(node, "precompiled_charsmap", STR(""));
    while (text.len && text.ptr[text.len - 1] == '=')
        text.len--;
    char *blob = arena_alloc(&t->arena, text.len * 3 / 4 + 1);
    if (!blob)
        return err_set(err, ERR_MEMORY, "no memory for precompiled_charsmap");
    uint32_t bits = 0;
    size_t n = 0;
    for (size_t i = 0; i < text.len; i++) {
        int v = base64_value(text.ptr[i]);
        if (v < 0)
            return err_set(err, ERR_MODEL_DAMAGED, "tokenizer.json: precompiled_charsmap is not base64 at byte %zu", i);
        bits = bits << 6 | (uint32_t)v;
        if (i % 4)
            blob[n++] = (char)(bits >> (6 - 2 * (i % 4)));
    }
    st->kind = NORM_CHARSMAP;
    return charsmap_open(t, (struct str){blob, n}, &st->charsmap, err);
}

bool parts_normalizer(struct tokenizer *t, const json_t *node, unsigned depth, struct err *err)
{
    static const struct {
        const char *type;
        enum norm_kind kind;
    } plain[] = {{"NFC", NORM_NFC},
                 {"NFD", NORM_NFD},
                 {"NFKC", NORM_NFKC},
                 {"NFKD", NORM_NFKD},
                 {"Lowercase", NORM_LOWERCASE},
                 {"StripAccents", NORM_STRIP_ACCENTS},
                 {"Nmt", NORM_NMT},
                 {"ByteLevel", NORM_BYTE_LEVEL}};
    if (!node || json_is_null(node))
        return true;
    const char *type = type_of(node);
    if (strcmp(type, "Sequence") == 0)
        return each(t, json_object_get(node, "normalizers"), depth, parts_normalizer, err);
    if (strcmp(type, "BertNormalizer") == 0)
        return bert_normalizer(t, node, err);
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
        st = (struct norm_step){
            .kind = NORM_STRIP, .left = json_flag(node, "strip_left", 1), .right = json_flag(node, "strip_right", 1)};
        known = true;
    } else if (strcmp(type, "Precompiled") == 0) {
        if (!json_view(node, "precompiled_charsmap", STR("")).len)
            return true; /* HF takes null for a map that changes nothing */
        known = true;
        if (!precompiled(t, node, &st, err))
            return false;
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

static bool metaspace_scheme(const json_t *node, enum prepend_scheme *out, struct err *err)
{
    static const char *const names[] = {[PREPEND_NEVER] = "never", [PREPEND_FIRST] = "first", [PREPEND_ALWAYS] = "always"};
    struct str scheme =
        json_view(node, "prepend_scheme", json_flag(node, "add_prefix_space", 1) ? STR("always") : STR("never"));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (str_equal(scheme, str_from(names[i]))) {
            *out = (enum prepend_scheme)i;
            return true;
        }
    return unsupported(err, "Metaspace prepend_scheme", scheme.ptr);
}

/* Metaspace's replacement: one character, which is not a space. */
static bool metaspace_mark(struct tokenizer *t, const json_t *node, struct str *out, struct err *err)
{
    struct str mark = json_view(node, "replacement", STR("\xe2\x96\x81"));
    size_t end = 0;
    if (mark.len && utf8_is_valid(mark))
        utf8_get(mark, &end);
    if (!end || end != mark.len || mark.ptr[0] == ' ')
        return unsupported(err, "Metaspace replacement", mark.ptr);
    *out = tokenizer_copy(t, mark);
    return out->ptr || err_set(err, ERR_MEMORY, "no memory for a tokenizer");
}

#define PATTERN_WORDS \
    "[\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200c}\\x{200d}\\x{24b6}-\\x{24e9}]+|" \
    "[^\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200c}\\x{200d}\\x{24b6}-\\x{24e9}\\s]+"

/* Pre-tokenizers that others can express; *done false: not one of these. */
static bool composed_pre(struct tokenizer *t, const char *type, bool *done, struct err *err)
{
    *done = true;
    if (strcmp(type, "Whitespace") == 0) {
        if (!tokenizer_pre_split(t, STR(PATTERN_WORDS), err))
            return false;
        t->pre[t->n_pre - 1].behavior = SPLIT_REMOVED;
        t->pre[t->n_pre - 1].invert = 1;
        return true;
    }
    if (strcmp(type, "BertPreTokenizer") == 0) {
        if (!full(t->n_pre + 1, "pre-tokenizer", err))
            return false;
        t->pre[t->n_pre++] = (struct pre_step){.kind = PRE_WHITESPACE_SPLIT, .behavior = SPLIT_REMOVED};
        t->pre[t->n_pre++] = (struct pre_step){.kind = PRE_PUNCTUATION, .behavior = SPLIT_ISOLATED};
        return true;
    }
    *done = false;
    return true;
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
    bool done;
    if (!composed_pre(t, type, &done, err))
        return false;
    if (done)
        return true;
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
        if (!read_behavior(node, &st.behavior))
            return unsupported(err, "punctuation behavior", json_view(node, "behavior", STR("?")).ptr);
    } else if (strcmp(type, "Metaspace") == 0) {
        st.kind = PRE_METASPACE;
        if (!metaspace_mark(t, node, &st.content, err) || !metaspace_scheme(node, &st.scheme, err))
            return false;
        st.split = json_flag(node, "split", 1);
        st.behavior = SPLIT_MERGED_NEXT;
    } else if (strcmp(type, "CharDelimiterSplit") == 0) {
        st.kind = PRE_SPLIT;
        st.behavior = SPLIT_REMOVED;
        st.pattern.literal = tokenizer_copy(t, json_view(node, "delimiter", STR("")));
        if (!st.pattern.literal.len)
            return unsupported(err, "delimiter", "");
    } else if (strcmp(type, "FixedLength") == 0) {
        json_int_t length = json_integer_value(json_object_get(node, "length"));
        st.kind = PRE_FIXED;
        st.fixed_length = json_object_get(node, "length") ? (size_t)length : 5;
        if (length < 0 || st.fixed_length == 0)
            return unsupported(err, "fixed length", "0");
    } else {
        return unsupported(err, "pre-tokenizer", type);
    }
    t->pre[t->n_pre++] = st;
    return true;
}

static bool holds_back(const struct dec_step *st)
{
    return st->kind == DEC_BPE || (st->kind == DEC_STRIP && st->stop);
}

/* The streaming decoder has one place for what waits, and behind Fuse it sees the text in parts: what would come out
 * differently there is refused. */
static bool decoder_fits(const struct tokenizer *t, const struct dec_step *st, const char *type, struct err *err)
{
    bool one_byte = st->kind == DEC_REPLACE && st->pattern.literal.len == 1;
    for (size_t i = 0; i < t->n_dec; i++) {
        const struct dec_step *before = &t->dec[i];
        if (before->kind == DEC_BYTE_LEVEL || st->kind == DEC_BYTE_LEVEL)
            return unsupported(err, "decoder sequence with", "ByteLevel");
        if ((holds_back(before) && holds_back(st)) || (before->kind == DEC_BYTE_FALLBACK && st->kind == DEC_BYTE_FALLBACK))
            return unsupported(err, "decoder sequence with a second", type);
        if (before->kind == DEC_FUSE && st->kind != DEC_STRIP && st->kind != DEC_FUSE && !one_byte)
            return unsupported(err, "decoder behind Fuse", type);
    }
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
        if (st.pattern.regex) {
            regex_free(st.pattern.regex);
            return unsupported(err, "decoder", "Replace with a Regex");
        }
    } else if (strcmp(type, "Strip") == 0) {
        st.kind = DEC_STRIP;
        st.content = tokenizer_copy(t, json_view(node, "content", STR(" ")));
        json_int_t start = json_integer_value(json_object_get(node, "start"));
        json_int_t stop = json_integer_value(json_object_get(node, "stop"));
        if (start < 0 || stop < 0 || start > STRIP_MAX || stop > STRIP_MAX || !st.content.len)
            return err_set(err, ERR_MODEL_DAMAGED, "tokenizer.json: the decoder strips %lld and %lld characters (at most %d)",
                           (long long)start, (long long)stop, STRIP_MAX);
        st.start = (size_t)start;
        st.stop = (size_t)stop;
    } else if (strcmp(type, "Metaspace") == 0) {
        st.kind = DEC_METASPACE;
        enum prepend_scheme scheme = PREPEND_ALWAYS;
        if (!metaspace_mark(t, node, &st.pattern.literal, err) || !metaspace_scheme(node, &scheme, err))
            return false;
        st.first_dropped = scheme != PREPEND_NEVER;
    } else if (strcmp(type, "WordPiece") == 0) {
        st.kind = DEC_WORDPIECE;
        st.content = tokenizer_copy(t, json_view(node, "prefix", STR("##")));
        st.cleanup = json_flag(node, "cleanup", 1);
    } else if (strcmp(type, "BPEDecoder") == 0) {
        st.kind = DEC_BPE;
        st.content = tokenizer_copy(t, json_view(node, "suffix", STR("</w>")));
        if (!st.content.len)
            return unsupported(err, "BPEDecoder with the suffix", "");
    } else {
        return unsupported(err, "decoder", type);
    }
    if (!decoder_fits(t, &st, type, err))
        return false;
    t->dec[t->n_dec++] = st;
    return true;
}

static bool affix_id(struct tokenizer *t, json_int_t id, bool after, struct err *err)
{
    size_t *n = after ? &t->n_after : &t->n_before;
    if (*n == TOKENIZER_AFFIX_MAX || id < 0 || id >= TOKENIZER_IDS_MAX)
        return err_set(err, ERR_MODEL_DAMAGED, "tokenizer.json: the post-processor puts id %lld, or more than %u",
                       (long long)id, TOKENIZER_AFFIX_MAX);
    (after ? t->after : t->before)[(*n)++] = (int32_t)id;
    return true;
}

/* BertProcessing and RobertaProcessing: "cls" and "sep" are [text, id]. */
static bool read_bert(struct tokenizer *t, const json_t *node, struct err *err)
{
    const json_t *cls = json_array_get(json_object_get(node, "cls"), 1), *sep = json_array_get(json_object_get(node, "sep"), 1);
    if (!json_is_integer(cls) || !json_is_integer(sep))
        return err_set(err, ERR_MODEL_DAMAGED, "tokenizer.json: cls or sep of the post-processor is not [text, id]");
    return affix_id(t, json_integer_value(cls), false, err) && affix_id(t, json_integer_value(sep), true, err);
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
        if (!json_array_size(ids))
            return err_set(err, ERR_MODEL_DAMAGED, "tokenizer.json: the post-processor's token '%.60s' has no ids",
                           name ? name : "(none)");
        for (size_t k = 0; k < json_array_size(ids); k++)
            if (!affix_id(t, json_integer_value(json_array_get(ids, k)), after, err))
                return false;
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
    if (strcmp(type, "BertProcessing") == 0 || strcmp(type, "RobertaProcessing") == 0)
        return read_bert(t, node, err);
    return unsupported(err, "post-processor", type);
}

/* SentencePiece: tokenizer.model (a protobuf message, read by the few lines below) and the tokenizer that its vocabulary
 * makes, which GGUF files of the kinds "llama" and "t5" share.
 *
 * sentencepiece_model.proto, the fields that matter:
 *   ModelProto      1 pieces*   2 trainer_spec   3 normalizer_spec   5 denormalizer_spec
 *   SentencePiece   1 piece (bytes)   2 score (float)   3 type (enum spm_type; 1 when absent)
 *   TrainerSpec     3 model_type (1 unigram, 2 BPE, 3 word, 4 char; 1 when absent)   24 treat_whitespace_as_suffix
 *                   35 byte_fallback
 *   NormalizerSpec  2 precompiled_charsmap   3 add_dummy_prefix   4 remove_extra_whitespaces   5 escape_whitespaces
 *                   (the three flags are true when absent)
 * Every length is checked against the message that holds it; unknown fields are passed over.
 *
 * Ids are SentencePiece's. Text of special tokens: control and unknown pieces written in a text are found before
 * normalizing (TOKENIZER_PARSE_SPECIAL), as Hugging Face and llama.cpp do; each part between them is a text of its own and
 * gets its own space in front ("legacy": false in tokenizer_config.json: the first part only). */
#include "text/tokenizer_impl.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#define MARK "\xe2\x96\x81"

/* ---- building ---------------------------------------------------------------------------------------------------- */
static bool piece_bad(const struct spm_source *src, size_t i, const char *why, struct err *err)
{
    return err_set(err, ERR_MODEL_DAMAGED, "%s: piece %zu '%.*s' %s", src->file, i,
                   (int)(src->pieces[i].len < 60 ? src->pieces[i].len : 60), src->pieces[i].ptr, why);
}

static bool set_pieces(struct tokenizer *t, const struct spm_source *src, struct err *err)
{
    for (size_t i = 0; i < src->n; i++) {
        int32_t type = src->types[i];
        if (!src->pieces[i].len)
            return piece_bad(src, i, "is empty", err);
        if (!utf8_is_valid(src->pieces[i]))
            return piece_bad(src, i, "is not UTF-8", err);
        if (!isfinite(src->scores[i]))
            return piece_bad(src, i, "has a score that is not a number", err);
        if (type < SPM_NORMAL || type > SPM_BYTE)
            return err_set(err, ERR_MODEL_DAMAGED, "%s: piece %zu has the type %d; 1 to %d are known", src->file, i, (int)type,
                           SPM_BYTE);
        if (!tokenizer_set_token(t, (int32_t)i, src->pieces[i], err))
            return err_prefix(err, "%s", src->file);
        if (type == SPM_UNKNOWN || type == SPM_CONTROL || type == SPM_BYTE)
            t->flags[i] |= TOKEN_HIDDEN;
        if (type == SPM_UNUSED)
            t->flags[i] |= TOKEN_UNUSED;
        t->has_unused |= type == SPM_UNUSED;
        if (type == SPM_USER)
            t->flags[i] |= TOKEN_USER;
        if (type == SPM_UNKNOWN && t->unk_id < 0)
            t->unk_id = (int32_t)i;
    }
    return tokenizer_index(t, err);
}

/* Pieces that text can become win over hidden ones of the same text, whichever comes first. */
static bool index_pieces(struct tokenizer *t, const struct spm_source *src, struct err *err)
{
    float least = FLT_MAX, most = FLT_MIN;
    if (!trie_init(&t->user) || !(t->scores_spm = calloc(src->n, sizeof *t->scores_spm)) ||
        (src->unigram && !(t->scores = calloc(src->n, sizeof *t->scores))))
        return err_set(err, ERR_MEMORY, "no memory for a vocabulary of %zu pieces", src->n);
    for (size_t i = 0; i < src->n; i++) {
        t->scores_spm[i] = src->scores[i];
        if (src->unigram)
            t->scores[i] = src->scores[i];
        if (src->types[i] == SPM_NORMAL) {
            least = src->scores[i] < least ? src->scores[i] : least;
            most = src->scores[i] > most ? src->scores[i] : most;
        }
        if (!(t->flags[i] & TOKEN_HIDDEN))
            token_table_put(&t->by_token, (int32_t)i);
        if ((t->flags[i] & TOKEN_USER) && !trie_put(&t->user, src->pieces[i], (int32_t)i))
            return err_set(err, ERR_MEMORY, "no memory for a vocabulary of %zu pieces", src->n);
    }
    t->unk_score = least - (float)UNIGRAM_UNKNOWN_PENALTY;
    t->user_score = most;
    return true;
}

static bool add_specials(struct tokenizer *t, const struct spm_source *src, struct err *err)
{
    for (size_t i = 0; i < src->n; i++) {
        struct added_token a = {.id = (int32_t)i, .content = src->pieces[i], .special = 1};
        if ((src->types[i] == SPM_CONTROL || src->types[i] == SPM_UNKNOWN) && !tokenizer_add(t, &a, err))
            return false;
    }
    return true;
}

static bool check_bytes(struct tokenizer *t, const struct spm_source *src, struct err *err)
{
    bool seen[256] = {0};
    size_t n = 0;
    for (size_t i = 0; i < src->n; i++) {
        int byte = src->types[i] == SPM_BYTE ? token_fallback_byte(src->pieces[i]) : -1;
        if (byte >= 0 && !seen[byte]) {
            seen[byte] = true;
            n++;
        }
    }
    t->byte_fallback = src->byte_fallback;
    if (src->byte_fallback && n < 256)
        return err_set(err, ERR_MODEL_DAMAGED, "%s: %zu byte pieces (<0x00> to <0xFF>); byte fallback needs 256", src->file, n);
    return true;
}

/* Tokens become text: "▁" is a space, bytes are put together, the space that encoding put in front goes. */
static void set_decoder(struct tokenizer *t, const struct spm_norm *norm)
{
    t->dec[t->n_dec++] = (struct dec_step){.kind = DEC_REPLACE, .pattern.literal = STR(MARK), .content = STR(" ")};
    t->dec[t->n_dec++] = (struct dec_step){.kind = DEC_BYTE_FALLBACK, .by_character = 1};
    t->dec[t->n_dec++] = (struct dec_step){.kind = DEC_FUSE};
    size_t start = norm->remove_extra ? SIZE_MAX : norm->prefix ? 1 : 0;
    if (start)
        t->dec[t->n_dec++] = (struct dec_step){.kind = DEC_STRIP, .content = STR(" "), .start = start};
}

struct tokenizer *spm_build(const struct spm_source *src, struct err *err)
{
    struct tokenizer *t = src->n ? tokenizer_make(src->n, err) : NULL;
    if (!t) {
        if (!src->n)
            err_set(err, ERR_MODEL_DAMAGED, "%s: the vocabulary is empty", src->file);
        return NULL;
    }
    t->model = src->unigram ? MODEL_UNIGRAM : MODEL_SPM_BPE;
    t->float_scores = 1;
    struct norm_step st = {.kind = NORM_SENTENCEPIECE, .spm = src->norm};
    bool ok = set_pieces(t, src, err) && index_pieces(t, src, err) && check_bytes(t, src, err) &&
              (!src->charsmap.len || charsmap_open(t, src->charsmap, &st.charsmap, err)) && add_specials(t, src, err);
    t->norm[t->n_norm++] = st;
    set_decoder(t, &src->norm);
    if (!ok) {
        tokenizer_free(t);
        return NULL;
    }
    return t;
}

/* ---- protobuf ---------------------------------------------------------------------------------------------------- */
struct wire {
    const unsigned char *at, *end;
};

struct field {
    uint32_t number, type; /* wire type: 0 varint, 1 eight bytes, 2 bytes, 5 four bytes */
    uint64_t value;        /* 0, 1, 5 */
    struct str bytes;      /* 2 */
};

static bool read_varint(struct wire *w, uint64_t *out)
{
    *out = 0;
    for (unsigned shift = 0; shift < 64 && w->at < w->end; shift += 7) {
        unsigned char c = *w->at++;
        *out |= (uint64_t)(c & 0x7f) << shift;
        if (!(c & 0x80))
            return true;
    }
    return false;
}

static bool read_fixed(struct wire *w, size_t n, uint64_t *out)
{
    if ((size_t)(w->end - w->at) < n)
        return false;
    *out = 0;
    for (size_t i = 0; i < n; i++)
        *out |= (uint64_t)w->at[i] << 8 * i;
    w->at += n;
    return true;
}

/* 1 a field, 0 the end, -1 damaged. */
static int read_field(struct wire *w, struct field *f)
{
    uint64_t key, n;
    if (w->at == w->end)
        return 0;
    if (!read_varint(w, &key) || key >> 3 == 0 || key >> 3 > UINT32_MAX)
        return -1;
    *f = (struct field){.number = (uint32_t)(key >> 3), .type = (uint32_t)(key & 7)};
    switch (f->type) {
    case 0: return read_varint(w, &f->value) ? 1 : -1;
    case 1: return read_fixed(w, 8, &f->value) ? 1 : -1;
    case 5: return read_fixed(w, 4, &f->value) ? 1 : -1;
    case 2:
        if (!read_varint(w, &n) || n > (uint64_t)(w->end - w->at))
            return -1;
        f->bytes = (struct str){(const char *)w->at, (size_t)n};
        w->at += n;
        return 1;
    default: return -1;
    }
}

static struct wire wire_of(struct str s)
{
    const unsigned char *p = (const unsigned char *)s.ptr;
    return (struct wire){p, p + s.len};
}

/* ---- the message ------------------------------------------------------------------------------------------------- */
struct model_proto {
    struct spm_source source;
    struct str *pieces;
    float *scores;
    int32_t *types;
    uint64_t model_type;
};

static bool read_piece(struct model_proto *m, struct str message)
{
    struct wire w = wire_of(message);
    struct field f;
    size_t i = m->source.n++;
    int got;
    m->pieces[i] = (struct str){"", 0};
    m->types[i] = SPM_NORMAL;
    while ((got = read_field(&w, &f)) > 0) {
        if (f.number == 1 && f.type == 2)
            m->pieces[i] = f.bytes;
        if (f.number == 2 && f.type == 5) {
            uint32_t bits = (uint32_t)f.value;
            memcpy(&m->scores[i], &bits, 4);
        }
        if (f.number == 3 && f.type == 0)
            m->types[i] = f.value <= SPM_BYTE ? (int32_t)f.value : -1;
    }
    return got == 0;
}

static bool read_trainer(struct model_proto *m, struct str message)
{
    struct wire w = wire_of(message);
    struct field f;
    int got;
    while ((got = read_field(&w, &f)) > 0) {
        if (f.type != 0)
            continue;
        if (f.number == 3)
            m->model_type = f.value;
        if (f.number == 24)
            m->source.norm.suffix = f.value != 0;
        if (f.number == 35)
            m->source.byte_fallback = f.value != 0;
    }
    return got == 0;
}

static bool read_normalizer(struct str message, struct spm_norm *norm, struct str *charsmap)
{
    struct wire w = wire_of(message);
    struct field f;
    int got;
    while ((got = read_field(&w, &f)) > 0) {
        if (f.number == 2 && f.type == 2)
            *charsmap = f.bytes;
        if (f.type != 0)
            continue;
        if (f.number == 3)
            norm->prefix = f.value != 0;
        if (f.number == 4)
            norm->remove_extra = f.value != 0;
        if (f.number == 5)
            norm->escape = f.value != 0;
    }
    return got == 0;
}

static size_t count_pieces(struct str model)
{
    struct wire w = wire_of(model);
    struct field f;
    size_t n = 0;
    while (read_field(&w, &f) > 0)
        n += f.number == 1 && f.type == 2;
    return n;
}

static bool read_model(struct model_proto *m, struct str model, struct err *err)
{
    struct wire w = wire_of(model);
    struct field f;
    struct str denormalizer = {0};
    struct spm_norm ignored = {0};
    int got = 0;
    bool ok = true;
    while (ok && (got = read_field(&w, &f)) > 0) {
        if (f.type != 2)
            continue;
        if (f.number == 1)
            ok = read_piece(m, f.bytes);
        else if (f.number == 2)
            ok = read_trainer(m, f.bytes);
        else if (f.number == 3)
            ok = read_normalizer(f.bytes, &m->source.norm, &m->source.charsmap);
        else if (f.number == 5)
            ok = read_normalizer(f.bytes, &ignored, &denormalizer);
    }
    if (!ok || got < 0)
        return err_set(err, ERR_MODEL_DAMAGED,
                       "tokenizer.model is not a SentencePiece model: its message breaks off or lies at "
                       "byte %zu of %zu",
                       (size_t)(w.at - (const unsigned char *)model.ptr), model.len);
    if (m->model_type != 1 && m->model_type != 2)
        return err_set(err, ERR_MODEL_UNSUPPORTED,
                       "tokenizer.model: SentencePiece's model type %llu is not supported; 1 (unigram) "
                       "and 2 (BPE) are",
                       (unsigned long long)m->model_type);
    if (denormalizer.len)
        return err_set(err, ERR_MODEL_UNSUPPORTED,
                       "tokenizer.model: a denormalizer (%zu bytes of precompiled_charsmap) is not "
                       "supported",
                       denormalizer.len);
    m->source.unigram = m->model_type == 1;
    return true;
}

/* ---- tokenizer.model --------------------------------------------------------------------------------------------- */
/* The names that SentencePiece models use; those of the configuration go before. */
static bool usual_names(struct tokenizer *t, struct err *err)
{
    static const char *const names[][2] = {
        {"bos_token", "<s>"}, {"bos_token", "<bos>"}, {"eos_token", "</s>"}, {"eos_token", "<eos>"}, {"pad_token", "<pad>"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct str content = str_from(names[i][1]);
        int32_t id = tokenizer_id(t, content);
        if (id >= 0 && (t->flags[id] & TOKEN_HIDDEN) && !tokenizer_set_named(t, str_from(names[i][0]), content, err))
            return false;
    }
    return t->unk_id < 0 || tokenizer_set_named(t, STR("unk_token"), t->model_tokens[t->unk_id], err);
}

/* Llama and its relatives put BOS in front, T5 puts EOS behind, unless the configuration says otherwise. */
static bool set_affixes(struct tokenizer *t, const json_t *config, bool unigram, struct err *err)
{
    bool bos = json_flag(config, "add_bos_token", !unigram), eos = json_flag(config, "add_eos_token", unigram);
    return (!bos || tokenizer_affix(t, "bos_token", 0, err)) && (!eos || tokenizer_affix(t, "eos_token", 1, err));
}

/* Classes of transformers whose ids are not the pieces' numbers. */
static bool ids_differ(struct str tokenizer_class)
{
    static const char *const classes[] = {"XLMRoberta",  "Camembert", "MBart",   "MBart50",     "Nllb",
                                          "Barthez",     "XGLM",      "PLBart",  "SeamlessM4T", "M2M100",
                                          "Speech2Text", "Marian",    "Pegasus", "Reformer",    "BigBird"};
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++) {
        struct str rest = tokenizer_class, name = str_from(classes[i]);
        if (!str_has_prefix(rest, name))
            continue;
        rest = (struct str){rest.ptr + name.len, rest.len - name.len};
        if (str_equal(rest, STR("Tokenizer")) || str_equal(rest, STR("TokenizerFast")))
            return true;
    }
    return false;
}

static struct tokenizer *build(struct model_proto *m, const struct tokenizer_files *files, const json_t *config,
                               struct err *err)
{
    struct str tokenizer_class = json_view(config, "tokenizer_class", STR(""));
    if (ids_differ(tokenizer_class)) {
        err_set(err, ERR_MODEL_UNSUPPORTED,
                "tokenizer_class '%.*s' numbers the pieces of tokenizer.model in its own way, which is "
                "not supported: save the tokenizer as tokenizer.json with transformers",
                (int)tokenizer_class.len, tokenizer_class.ptr);
        return NULL;
    }
    m->source.norm.first_only = !json_flag(config, "legacy", 1);
    m->source.norm.prefix = json_flag(config, "add_prefix_space", m->source.norm.prefix);
    struct tokenizer *t = spm_build(&m->source, err);
    if (!t)
        return NULL;
    if (config_apply(t, files, config, err) && usual_names(t, err) && set_affixes(t, config, m->source.unigram, err) &&
        tokenizer_finish(t, err))
        return t;
    tokenizer_free(t);
    return NULL;
}

struct tokenizer *tokenizer_from_spm(const struct tokenizer_files *files, struct err *err)
{
    json_t *config;
    if (!config_parse(files, &config, err))
        return NULL;
    size_t n = count_pieces(files->tokenizer_model);
    struct model_proto m = {.model_type = 1,
                            .source = {.file = "tokenizer.model", .norm = {.prefix = 1, .remove_extra = 1, .escape = 1}}};
    struct tokenizer *t = NULL;
    m.pieces = calloc(n + 1, sizeof *m.pieces);
    m.scores = calloc(n + 1, sizeof *m.scores);
    m.types = calloc(n + 1, sizeof *m.types);
    m.source.pieces = m.pieces;
    m.source.scores = m.scores;
    m.source.types = m.types;
    if (!m.pieces || !m.scores || !m.types)
        err_set(err, ERR_MEMORY, "no memory for a vocabulary of %zu pieces", n);
    else if (read_model(&m, files->tokenizer_model, err))
        t = build(&m, files, config, err);
    free(m.pieces);
    free(m.scores);
    free(m.types);
    json_decref(config);
    return t;
}

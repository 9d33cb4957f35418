/* Tokenizers out of a GGUF file's vocabulary: byte-level BPE ("gpt2"), SentencePiece BPE ("llama") and unigram ("t5").
 *
 * A byte-level vocabulary names how text is cut into words (tokenizer.ggml.pre). The table below holds the original
 * tokenizer.json's steps for each name; a name that is not there is refused, since words cut otherwise give other ids
 * without anybody noticing. An absent name, "default" and "gpt-2" mean GPT-2's words. */
#include "text/tokenizer_impl.h"

#include <stdlib.h>

enum cut_kind { CUT_END, CUT_PATTERN, CUT_DIGITS, CUT_DIGIT_RUNS, CUT_PUNCTUATION_RUNS, CUT_GPT2 };

struct cut {
    enum cut_kind kind;
    const char *pattern;
};
#define CUTS_MAX 7

#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define BREAKS      "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define UPPER       "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER       "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define LEAD        "[^\\r\\n\\p{L}\\p{N}]?"
#define CASED(tail) LEAD UPPER "*" LOWER "+" tail "|" LEAD UPPER "+" LOWER "*" tail
#define SIGNS       " ?[^\\s\\p{L}\\p{N}]+"
#define CASED_LETTERS \
    "A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}\\x{1c4}-\\x{293}" \
    "\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}" \
    "\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}" \
    "\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}\\x{1d00}-\\x{1d2b}" \
    "\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}" \
    "\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}" \
    "\\x{1fb6}-\\x{1fbc}\\x{1fbe}\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}" \
    "\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}\\x{210a}-\\x{2113}\\x{2115}" \
    "\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}" \
    "\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}" \
    "\\x{2ceb}-\\x{2cee}\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}" \
    "\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}\\x{fb13}-\\x{fb17}" \
    "\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}" \
    "\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}"

static const struct cut GPT2[CUTS_MAX] = {{CUT_GPT2, NULL}};
static const struct cut STARCODER[CUTS_MAX] = {{CUT_DIGITS, NULL}, {CUT_GPT2, NULL}};
static const struct cut LLAMA3[CUTS_MAX] = {
    {CUT_PATTERN, CONTRACTION "|" LEAD "\\p{L}+|\\p{N}{1,3}|" SIGNS "[\\r\\n]*|" BREAKS}};
static const struct cut QWEN2[CUTS_MAX] = {{CUT_PATTERN, CONTRACTION "|" LEAD "\\p{L}+|\\p{N}|" SIGNS "[\\r\\n]*|" BREAKS}};
static const struct cut QWEN35[CUTS_MAX] = {
    {CUT_PATTERN, CONTRACTION "|" LEAD "[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" BREAKS}};
static const struct cut TEKKEN[CUTS_MAX] = {{CUT_PATTERN, CASED("") "|\\p{N}|" SIGNS "[\\r\\n/]*|" BREAKS}};
static const struct cut GPT4O[CUTS_MAX] = {{CUT_PATTERN, CASED(CONTRACTION "?") "|\\p{N}{1,3}|" SIGNS "[\\r\\n/]*|" BREAKS}};
static const struct cut FALCON[CUTS_MAX] = {
    {CUT_PUNCTUATION_RUNS, NULL}, {CUT_GPT2, NULL}, {CUT_DIGIT_RUNS, NULL}, {CUT_PATTERN, "[0-9][0-9][0-9]"}};
static const struct cut DEEPSEEK_LLM[CUTS_MAX] = {
    {CUT_PATTERN, "[\r\n]"}, {CUT_PATTERN, "\\s?[" CASED_LETTERS "]+"}, {CUT_PATTERN, "\\s?[!-/:-~！-／：-～‘-‟　-。]+"},
    {CUT_PATTERN, "\\s+$"},  {CUT_PATTERN, "[一-龥ࠀ-一가-퟿]+"}, {CUT_DIGITS, NULL}};
static const struct cut DEEPSEEK_CODER[CUTS_MAX] = {{CUT_PATTERN, "[\r\n]"},
                                                    {CUT_PATTERN, "\\s?\\p{L}+"},
                                                    {CUT_PATTERN, "\\s?\\p{P}+"},
                                                    {CUT_PATTERN, "[一-龥ࠀ-一가-퟿]+"},
                                                    {CUT_DIGITS, NULL}};
static const struct cut DEEPSEEK_V3[CUTS_MAX] = {
    {CUT_PATTERN, "\\p{N}{1,3}"},
    {CUT_PATTERN, "[一-龥぀-ゟ゠-ヿ]+"},
    {CUT_PATTERN, "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
                  " ?[\\p{P}\\p{S}]+[\r\n]*|" BREAKS}};
static const struct cut SEED_CODER[CUTS_MAX] = {
    {CUT_PATTERN, CONTRACTION "|" LEAD "\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|" BREAKS}};

/* Whether a converter wrote the model's own flag decides before adds_bos. */
static const struct gguf_pre {
    const char *name;
    const struct cut *cuts;
    int nfc, ignore_merges, adds_bos;
} PRES[] = {
    {"", GPT2, 0, 0, 0},
    {"default", GPT2, 0, 0, 0},
    {"gpt-2", GPT2, 0, 0, 0},
    {"phi-2", GPT2, 0, 0, 0},
    {"mpt", GPT2, 0, 0, 0},
    {"olmo", GPT2, 1, 0, 0},
    {"jais", GPT2, 0, 0, 0},
    {"exaone4", GPT2, 0, 0, 0},
    {"smollm", STARCODER, 0, 0, 0},
    {"starcoder", STARCODER, 0, 0, 0},
    {"refact", STARCODER, 0, 0, 0},
    {"command-r", STARCODER, 1, 0, 0},
    {"codeshell", STARCODER, 0, 0, 0},
    {"exaone", STARCODER, 0, 0, 0},
    {"llama-bpe", LLAMA3, 0, 1, 1},
    {"llama3", LLAMA3, 0, 1, 1},
    {"llama-v3", LLAMA3, 0, 1, 1},
    {"falcon3", LLAMA3, 0, 1, 1},
    {"lfm2", LLAMA3, 0, 1, 1},
    {"pixtral", LLAMA3, 0, 1, 1},
    {"dbrx", LLAMA3, 0, 0, 0},
    {"smaug-bpe", LLAMA3, 0, 0, 0},
    {"glm4", LLAMA3, 0, 1, 0},
    {"chatglm-bpe", LLAMA3, 0, 0, 0},
    {"qwen2", QWEN2, 1, 0, 0},
    {"deepseek-r1-qwen", QWEN2, 1, 0, 0},
    {"megrez", QWEN2, 1, 0, 0},
    {"stablelm2", QWEN2, 0, 0, 0},
    {"hunyuan", QWEN2, 0, 0, 0},
    {"qwen35", QWEN35, 1, 0, 0},
    {"tekken", TEKKEN, 0, 1, 1},
    {"gpt-4o", GPT4O, 0, 0, 0},
    {"llama4", GPT4O, 0, 0, 0},
    {"falcon", FALCON, 0, 0, 0},
    {"deepseek-llm", DEEPSEEK_LLM, 0, 0, 0},
    {"deepseek-coder", DEEPSEEK_CODER, 0, 0, 0},
    {"deepseek-v3", DEEPSEEK_V3, 0, 0, 0},
    {"seed-coder", SEED_CODER, 0, 0, 0},
};

static const struct gguf_pre *find_pre(struct str name, struct err *err)
{
    struct buf known;
    for (size_t i = 0; i < sizeof PRES / sizeof *PRES; i++)
        if (str_equal(name, str_from(PRES[i].name)))
            return &PRES[i];
    buf_init(&known, 1024);
    for (size_t i = 1; i < sizeof PRES / sizeof *PRES; i++)
        buf_printf(&known, i > 1 ? ", %s" : "%s", PRES[i].name);
    err_set(err, ERR_MODEL_UNSUPPORTED,
            "GGUF vocabulary: pre-tokenizer '%.*s' (tokenizer.ggml.pre) is not supported. Use the model's safetensors with "
            "tokenizer.json. Supported: %s.",
            (int)(name.len < 60 ? name.len : 60), name.ptr, known.data);
    buf_release(&known);
    return NULL;
}

static bool set_cut(struct tokenizer *t, const struct cut *cut, struct err *err)
{
    struct pre_step st = {.kind = PRE_DIGITS, .individual = 1, .behavior = SPLIT_ISOLATED};
    switch (cut->kind) {
    case CUT_PATTERN: return tokenizer_pre_split(t, str_from(cut->pattern), err);
    case CUT_GPT2: return tokenizer_pre_byte_level(t, 0, 1, err);
    case CUT_DIGIT_RUNS:
        st.individual = 0;
        st.behavior = SPLIT_CONTIGUOUS;
        break;
    case CUT_PUNCTUATION_RUNS:
        st.kind = PRE_PUNCTUATION;
        st.behavior = SPLIT_CONTIGUOUS;
        break;
    case CUT_DIGITS: break;
    case CUT_END: return true;
    }
    t->pre[t->n_pre++] = st;
    return true;
}

static bool set_pipeline(struct tokenizer *t, const struct gguf_pre *pre, struct err *err)
{
    bool byte_level = false;
    if (pre->nfc)
        t->norm[t->n_norm++] = (struct norm_step){.kind = NORM_NFC};
    for (const struct cut *cut = pre->cuts; cut < pre->cuts + CUTS_MAX && cut->kind != CUT_END; cut++) {
        if (!set_cut(t, cut, err))
            return false;
        byte_level |= cut->kind == CUT_GPT2;
    }
    t->ignore_merges = pre->ignore_merges;
    t->dec[t->n_dec++] = (struct dec_step){.kind = DEC_BYTE_LEVEL};
    return byte_level || tokenizer_pre_byte_level(t, 0, 0, err);
}

static bool set_tokens(struct tokenizer *t, const struct tokenizer_gguf *g, struct err *err)
{
    for (size_t i = 0; i < g->n_tokens; i++)
        if (!tokenizer_set_token(t, (int32_t)i, g->tokens[i], err))
            return false;
    if (!tokenizer_index(t, err))
        return false;
    for (size_t i = 0; i < g->n_tokens && g->token_types; i++) {
        int type = g->token_types[i];
        struct added_token a = {.id = (int32_t)i, .content = g->tokens[i], .special = type == SPM_CONTROL};
        if ((type == SPM_CONTROL || type == SPM_USER) && !tokenizer_add(t, &a, err))
            return false;
    }
    return true;
}

static bool set_merges(struct tokenizer *t, const struct tokenizer_gguf *g, struct err *err)
{
    if (!pair_table_init(&t->pairs, g->n_merges, t->seed))
        return err_set(err, ERR_MEMORY, "no memory for %zu merges", g->n_merges);
    for (size_t i = 0; i < g->n_merges; i++) {
        struct str m = g->merges[i], left, right;
        if (!merge_parts(m, &left, &right))
            return err_set(err, ERR_MODEL_DAMAGED, "GGUF vocabulary: merge %zu '%.*s' is not two tokens", i,
                           (int)(m.len < 80 ? m.len : 80), m.ptr);
        if (!tokenizer_put_merge(t, left, right, i, err))
            return err_prefix(err, "GGUF vocabulary");
    }
    return true;
}

/* Names for templates; BOS and EOS around a text as the file says, else as is usual for the kind. */
static bool set_special(struct tokenizer *t, const struct tokenizer_gguf *g, int adds_bos, int adds_eos, struct err *err)
{
    struct {
        const char *name;
        int32_t id;
    } const names[] = {{"bos_token", g->bos}, {"eos_token", g->eos}, {"unk_token", g->unk}, {"pad_token", g->pad}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].id >= 0 && (size_t)names[i].id < g->n_tokens &&
            !tokenizer_set_named(t, str_from(names[i].name), g->tokens[names[i].id], err))
            return false;
    t->bos = g->bos >= 0 && (size_t)g->bos < g->n_tokens ? g->bos : -1;
    t->eos = g->eos >= 0 && (size_t)g->eos < g->n_tokens ? g->eos : -1;
    if ((g->add_bos == 1 || (g->add_bos < 0 && adds_bos)) && t->bos >= 0)
        t->before[t->n_before++] = t->bos;
    if ((g->add_eos == 1 || (g->add_eos < 0 && adds_eos)) && t->eos >= 0)
        t->after[t->n_after++] = t->eos;
    return true;
}

static struct tokenizer *byte_level(const struct tokenizer_gguf *g, struct err *err)
{
    const struct gguf_pre *pre = find_pre(g->pre, err);
    struct tokenizer *t = pre ? tokenizer_make(g->n_tokens, err) : NULL;
    if (!t)
        return NULL;
    t->model = MODEL_BPE;
    if (set_pipeline(t, pre, err) && set_tokens(t, g, err) && set_merges(t, g, err) &&
        set_special(t, g, pre->adds_bos, 0, err) && tokenizer_finish(t, err))
        return t;
    tokenizer_free(t);
    return NULL;
}

/* Types as the file has them; without them what the texts say. */
static void sentencepiece_types(const struct tokenizer_gguf *g, int32_t *types, bool *has_bytes)
{
    for (size_t i = 0; i < g->n_tokens; i++) {
        types[i] = g->token_types ? g->token_types[i] : token_fallback_byte(g->tokens[i]) >= 0 ? SPM_BYTE : SPM_NORMAL;
        if (types[i] == 0) /* "undefined" */
            types[i] = SPM_NORMAL;
        if (!g->token_types && ((int32_t)i == g->bos || (int32_t)i == g->eos))
            types[i] = SPM_CONTROL;
        if (!g->token_types && (int32_t)i == g->unk)
            types[i] = SPM_UNKNOWN;
        *has_bytes |= types[i] == SPM_BYTE;
    }
}

static struct tokenizer *sentencepiece(const struct tokenizer_gguf *g, bool unigram, struct err *err)
{
    struct tokenizer_gguf with = *g;
    int32_t usual_bos = unigram ? -1 : 1, usual_eos = unigram ? 1 : 2, usual_unk = unigram ? 2 : 0;
    with.bos = g->bos >= 0 ? g->bos : usual_bos;
    with.eos = g->eos >= 0 ? g->eos : usual_eos;
    with.unk = g->unk >= 0 ? g->unk : usual_unk;
    if (!g->scores) {
        err_set(err, ERR_MODEL_DAMAGED,
                "GGUF vocabulary: tokenizer.ggml.scores is absent or not %zu numbers; '%.*s' needs them", g->n_tokens,
                (int)g->model.len, g->model.ptr);
        return NULL;
    }
    struct spm_source src = {.file = "GGUF vocabulary",
                             .unigram = unigram,
                             .n = g->n_tokens,
                             .pieces = g->tokens,
                             .scores = g->scores,
                             .charsmap = g->precompiled_charsmap,
                             .norm = {.prefix = g->add_space_prefix != 0,
                                      .escape = 1,
                                      .remove_extra = g->remove_extra_whitespaces < 0 ? unigram : g->remove_extra_whitespaces}};
    int32_t *types = calloc(g->n_tokens + 1, sizeof *types);
    struct tokenizer *t = NULL;
    if (types) {
        sentencepiece_types(&with, types, &src.byte_fallback);
        src.types = types;
        t = spm_build(&src, err);
    } else {
        err_set(err, ERR_MEMORY, "no memory for a vocabulary of %zu tokens", g->n_tokens);
    }
    free(types);
    if (t && t->unk_id < 0 && with.unk >= 0 && (size_t)with.unk < g->n_tokens)
        t->unk_id = with.unk;
    if (t && set_special(t, &with, !unigram, unigram, err) && tokenizer_finish(t, err))
        return t;
    tokenizer_free(t);
    return NULL;
}

struct tokenizer *tokenizer_from_gguf(const struct tokenizer_gguf *g, struct err *err)
{
    if (str_equal(g->model, STR("gpt2")))
        return byte_level(g, err);
    if (str_equal(g->model, STR("llama")) || str_equal(g->model, STR("t5")))
        return sentencepiece(g, str_equal(g->model, STR("t5")), err);
    err_set(err, ERR_MODEL_UNSUPPORTED,
            "GGUF vocabulary: tokenizer.ggml.model '%.*s' is not supported; gpt2 (byte-level BPE), "
            "llama (SentencePiece BPE) and t5 (unigram) are. Use the model's safetensors with tokenizer.json.",
            (int)(g->model.len < 60 ? g->model.len : 60), g->model.ptr);
    return NULL;
}

/* Tokenizers out of a GGUF file's vocabulary: byte-level BPE ("gpt2"). */
#include "text/tokenizer_impl.h"

#define PATTERN_QWEN2                                                                                                    \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"    \
    "\\s+(?!\\S)|\\s+"
#define PATTERN_LLAMA3                                                                                                   \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"             \
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* tokenizer.ggml.pre: how text is cut into words before merging, as the original tokenizer.json had it. */
static const struct gguf_pre {
    const char *name;
    const char *pattern; /* NULL: ByteLevel's own */
    int digits;          /* 1: every digit is a word */
    int nfc, ignore_merges, adds_bos;
} pres[] = {
    {"", NULL, 0, 0, 0, 0},           {"default", NULL, 0, 0, 0, 0},  {"gpt-2", NULL, 0, 0, 0, 0},
    {"smollm", NULL, 1, 0, 0, 0},     {"qwen2", PATTERN_QWEN2, 0, 1, 0, 0},
    {"llama-bpe", PATTERN_LLAMA3, 0, 0, 1, 1}, {"llama3", PATTERN_LLAMA3, 0, 0, 1, 1},
};

static const struct gguf_pre *find_pre(struct str name, struct err *err)
{
    for (size_t i = 0; i < sizeof pres / sizeof *pres; i++)
        if (str_equal(name, str_from(pres[i].name)))
            return &pres[i];
    err_set(err, ERR_MODEL_UNSUPPORTED,
            "GGUF vocabulary: pre-tokenizer '%.*s' (tokenizer.ggml.pre) is not supported; gpt-2, smollm, qwen2 and llama-bpe "
            "are. Use the model's safetensors with tokenizer.json.", (int)name.len, name.ptr);
    return NULL;
}

static bool set_pipeline(struct tokenizer *t, const struct gguf_pre *pre, struct err *err)
{
    if (pre->nfc)
        t->norm[t->n_norm++] = (struct norm_step){.kind = NORM_NFC};
    if (pre->digits)
        t->pre[t->n_pre++] = (struct pre_step){.kind = PRE_DIGITS, .individual = 1, .behavior = SPLIT_ISOLATED};
    if (pre->pattern && !tokenizer_pre_split(t, str_from(pre->pattern), err))
        return false;
    t->ignore_merges = pre->ignore_merges;
    t->dec[t->n_dec++] = (struct dec_step){.kind = DEC_BYTE_LEVEL};
    return tokenizer_pre_byte_level(t, 0, !pre->pattern, err);
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
        struct added_token a = {.id = (int32_t)i, .content = g->tokens[i], .special = type == 3};
        if ((type == 3 || type == 4) && !tokenizer_add(t, &a, err))
            return false;
    }
    return true;
}

static bool set_merges(struct tokenizer *t, const struct tokenizer_gguf *g, struct err *err)
{
    if (!pair_table_init(&t->pairs, g->n_merges, t->seed))
        return err_set(err, ERR_MEMORY, "no memory for %zu merges", g->n_merges);
    for (size_t i = 0; i < g->n_merges; i++) {
        struct str m = g->merges[i];
        const char *space = m.len > 1 ? memchr(m.ptr + 1, ' ', m.len - 1) : NULL;
        if (!space)
            return err_set(err, ERR_MODEL_DAMAGED, "GGUF vocabulary: merge %zu '%.*s' is not two tokens", i,
                           (int)(m.len < 80 ? m.len : 80), m.ptr);
        struct str left = {m.ptr, (size_t)(space - m.ptr)}, right = {space + 1, m.len - left.len - 1};
        if (!tokenizer_put_merge(t, left, right, i, err))
            return false;
    }
    return true;
}

static bool set_special(struct tokenizer *t, const struct tokenizer_gguf *g, int adds_bos, struct err *err)
{
    struct {
        const char *name;
        int32_t id;
    } const names[] = {{"bos_token", g->bos}, {"eos_token", g->eos}, {"unk_token", g->unk}, {"pad_token", g->pad}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].id >= 0 && (size_t)names[i].id < g->n_tokens &&
            !tokenizer_set_named(t, str_from(names[i].name), g->tokens[names[i].id], err))
            return false;
    t->bos = g->bos;
    t->eos = g->eos;
    if ((g->add_bos == 1 || (g->add_bos < 0 && adds_bos)) && g->bos >= 0)
        t->before[t->n_before++] = g->bos;
    if (g->add_eos == 1 && g->eos >= 0)
        t->after[t->n_after++] = g->eos;
    return true;
}

struct tokenizer *tokenizer_from_gguf(const struct tokenizer_gguf *g, struct err *err)
{
    if (!str_equal(g->model, STR("gpt2"))) {
        err_set(err, ERR_MODEL_UNSUPPORTED, "GGUF vocabulary: tokenizer.ggml.model '%.*s' is not supported; gpt2 (byte-level "
                "BPE) is. Use the model's safetensors with tokenizer.json.", (int)g->model.len, g->model.ptr);
        return NULL;
    }
    const struct gguf_pre *pre = find_pre(g->pre, err);
    struct tokenizer *t = pre ? tokenizer_make(g->n_tokens, err) : NULL;
    if (!t)
        return NULL;
    t->model = MODEL_BPE;
    t->unk_id = -1;
    bool ok = set_pipeline(t, pre, err) && set_tokens(t, g, err) && set_merges(t, g, err) &&
              set_special(t, g, pre->adds_bos, err) && tokenizer_finish(t, err);
    if (!ok) {
        tokenizer_free(t);
        return NULL;
    }
    return t;
}

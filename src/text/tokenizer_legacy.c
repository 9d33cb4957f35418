/* Tokenizers out of vocab.json + merges.txt: byte-level BPE as GPT-2 published it. The two files do not say how text is cut
 * into words; tokenizer_class of tokenizer_config.json does, else model_type of config.json. */
#include "text/tokenizer_impl.h"

static const struct legacy_kind {
    const char *tokenizer_class; /* with or without "Fast" behind it */
    const char *model_types[12];
    int qwen2; /* Qwen2's words and NFC; else GPT-2's */
} KINDS[] = {
    {"GPT2Tokenizer", {"gpt2", "opt", "gpt_neo", "gpt_bigcode", "starcoder2"}, 0},
    {"CodeGenTokenizer", {"codegen", "phi", "gptj"}, 0},
    {"GPTNeoXTokenizer", {"gpt_neox"}, 0},
    {"Qwen2Tokenizer", {"qwen2", "qwen2_moe", "qwen3", "qwen3_moe"}, 1},
};

static const struct legacy_kind *find_kind(struct str tokenizer_class, struct str model_type)
{
    if (str_has_suffix(tokenizer_class, STR("Fast")))
        tokenizer_class.len -= 4;
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++) {
        if (str_equal(tokenizer_class, str_from(KINDS[i].tokenizer_class)))
            return &KINDS[i];
        for (const char *const *m = KINDS[i].model_types; *m && !tokenizer_class.len; m++)
            if (str_equal(model_type, str_from(*m)))
                return &KINDS[i];
    }
    return NULL;
}

/* A line a merge, best first; "#version" in front. */
static bool read_merges(struct tokenizer *t, struct str text, struct err *err)
{
    size_t n_lines = 1, rank = 0, line_number = 0;
    for (size_t i = 0; i < text.len; i++)
        n_lines += text.ptr[i] == '\n';
    if (n_lines > TOKENIZER_IDS_MAX || !pair_table_init(&t->pairs, n_lines, t->seed))
        return err_set(err, ERR_MEMORY, "no memory for %zu merges", n_lines);
    while (text.len) {
        const char *end = memchr(text.ptr, '\n', text.len);
        struct str line = {text.ptr, end ? (size_t)(end - text.ptr) : text.len}, left, right;
        text = (struct str){text.ptr + line.len + (end != NULL), text.len - line.len - (end != NULL)};
        if (line.len && line.ptr[line.len - 1] == '\r')
            line.len--;
        if (line_number++ == 0 && str_has_prefix(line, STR("#version")))
            continue;
        if (!line.len)
            continue;
        if (!merge_parts(line, &left, &right))
            return err_set(err, ERR_MODEL_DAMAGED, "merges.txt: line %zu is not two tokens", line_number);
        if (!tokenizer_put_merge(t, left, right, rank++, err))
            return err_prefix(err, "merges.txt");
    }
    return true;
}

static bool set_pipeline(struct tokenizer *t, const struct legacy_kind *kind, const json_t *config, struct err *err)
{
    if (kind->qwen2) {
        t->norm[t->n_norm++] = (struct norm_step){.kind = NORM_NFC};
        if (!tokenizer_pre_split(t, PATTERN_QWEN2, err) || !tokenizer_pre_byte_level(t, 0, 0, err))
            return false;
    } else if (!tokenizer_pre_byte_level(t, json_flag(config, "add_prefix_space", 0), 1, err)) {
        return false;
    }
    t->dec[t->n_dec++] = (struct dec_step){.kind = DEC_BYTE_LEVEL};
    return true;
}

static struct tokenizer *build(const json_t *config, const struct legacy_kind *kind, const struct tokenizer_files *files,
                               struct err *err)
{
    size_t n = vocab_ids(files->vocab_json, "vocab.json", err);
    struct tokenizer *t = n ? tokenizer_make(n, err) : NULL;
    if (!t)
        return NULL;
    t->model = MODEL_BPE;
    bool ok = vocab_read(t, files->vocab_json, "vocab.json", err) && read_merges(t, files->merges_txt, err) &&
              set_pipeline(t, kind, config, err) && config_apply(t, files, config, err) &&
              (!json_flag(config, "add_bos_token", 0) || tokenizer_affix(t, "bos_token", 0, err)) &&
              (!json_flag(config, "add_eos_token", 0) || tokenizer_affix(t, "eos_token", 1, err)) && tokenizer_finish(t, err);
    if (!ok) {
        tokenizer_free(t);
        return NULL;
    }
    return t;
}

struct tokenizer *tokenizer_from_vocab(const struct tokenizer_files *files, struct err *err)
{
    json_t *config;
    if (!config_parse(files, &config, err))
        return NULL;
    struct str tokenizer_class = json_view(config, "tokenizer_class", STR(""));
    const struct legacy_kind *kind = find_kind(tokenizer_class, files->model_type);
    struct tokenizer *t = kind ? build(config, kind, files, err) : NULL;
    if (!kind)
        err_set(err, ERR_MODEL_UNSUPPORTED,
                "vocab.json and merges.txt do not say how text is cut into words, and it is not "
                "known for tokenizer_class '%.*s', model_type '%.*s' (known: gpt2, opt, gpt_neo, gptj, gpt_neox, codegen, phi, "
                "starcoder2, qwen2, qwen3): save the tokenizer as tokenizer.json with transformers",
                (int)tokenizer_class.len, tokenizer_class.ptr, (int)files->model_type.len,
                files->model_type.ptr ? files->model_type.ptr : "");
    json_decref(config);
    return t;
}

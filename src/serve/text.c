/* The text side of a model; see text.h. */
#include "serve/text.h"

#include "base/clock.h"

#include <math.h>
#include <stdlib.h>

#define TEXT_CHARSMAP_BYTES_MAX ((size_t)64 << 20)
#define TEMPERATURE_MAX         100 /* that a model may come with */

/* Tokens that end a turn in published chat formats; a GGUF file names one end token only. */
static const char *const end_of_turn[] = {"<|im_end|>",    "<|eot_id|>",    "<|end_of_text|>",
                                          "<|endoftext|>", "<end_of_turn>", "<|end|>",
                                          "<|eom_id|>",    "<|return|>",    "<｜end▁of▁sentence｜>"};

static void add_stop_id(struct served_text *t, int32_t id)
{
    if (id < 0 || t->n_stop_ids == TEXT_STOP_IDS_MAX)
        return;
    for (size_t i = 0; i < t->n_stop_ids; i++)
        if (t->stop_ids[i] == id)
            return;
    t->stop_ids[t->n_stop_ids++] = id;
}

static bool open_tokenizer_files(struct served_text *t, struct checkpoint *c, struct err *err)
{
    struct tokenizer_files f = {0};
    struct {
        const char *name;
        struct str *to;
    } const files[] = {{"tokenizer.json", &f.tokenizer_json},
                       {"tokenizer.model", &f.tokenizer_model},
                       {"vocab.json", &f.vocab_json},
                       {"merges.txt", &f.merges_txt},
                       {"tokenizer_config.json", &f.tokenizer_config},
                       {"special_tokens_map.json", &f.special_tokens_map},
                       {"added_tokens.json", &f.added_tokens}};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (!checkpoint_file(c, files[i].name, files[i].to, err))
            return false;
    struct str config;
    if (!checkpoint_file(c, "config.json", &config, err))
        return false;
    json_t *root = json_loadb(config.len ? config.ptr : "", config.len, 0, NULL);
    f.model_type = str_from(json_string_value(json_object_get(root, "model_type")));
    t->tokenizer = tokenizer_from_files(&f, err);
    json_decref(root);
    return t->tokenizer != NULL;
}

static int meta_flag(struct checkpoint *c, const char *key)
{
    int v;
    return checkpoint_meta_bool(c, key, &v) ? v : -1;
}

static int32_t meta_id(struct checkpoint *c, const char *key)
{
    uint64_t v;
    return checkpoint_meta_uint(c, key, &v) && v <= INT32_MAX ? (int32_t)v : -1;
}

/* tokenizer.ggml.precompiled_charsmap, an array of bytes, into memory that the caller frees; absent: left alone. */
static bool read_charsmap(struct checkpoint *c, struct str *out, char **bytes, struct err *err)
{
    static const char key[] = "tokenizer.ggml.precompiled_charsmap";
    struct gguf_value v;
    if (!checkpoint_meta(c, key, &v) || v.kind != GGUF_ARRAY || v.n == 0)
        return true;
    int32_t *wide = v.n <= TEXT_CHARSMAP_BYTES_MAX ? malloc(v.n * sizeof *wide) : NULL;
    *bytes = wide ? malloc(v.n) : NULL;
    bool ok = *bytes && checkpoint_meta_i32_array(c, key, wide, v.n);
    for (size_t i = 0; ok && i < v.n; i++)
        (*bytes)[i] = (char)wide[i];
    free(wide);
    *out = (struct str){*bytes, v.n};
    return ok || err_set(err, ERR_MODEL_DAMAGED, "%s is not an array of at most %zu bytes.", key, TEXT_CHARSMAP_BYTES_MAX);
}

static bool open_tokenizer_gguf(struct served_text *t, struct checkpoint *c, struct err *err)
{
    struct tokenizer_gguf g = {.add_bos = meta_flag(c, "tokenizer.ggml.add_bos_token"),
                               .add_eos = meta_flag(c, "tokenizer.ggml.add_eos_token"),
                               .add_space_prefix = meta_flag(c, "tokenizer.ggml.add_space_prefix"),
                               .remove_extra_whitespaces = meta_flag(c, "tokenizer.ggml.remove_extra_whitespaces"),
                               .bos = meta_id(c, "tokenizer.ggml.bos_token_id"),
                               .eos = meta_id(c, "tokenizer.ggml.eos_token_id"),
                               .unk = meta_id(c, "tokenizer.ggml.unknown_token_id"),
                               .pad = meta_id(c, "tokenizer.ggml.padding_token_id")};
    struct gguf_value tokens, merges;
    if (!checkpoint_meta_str(c, "tokenizer.ggml.model", &g.model) || !checkpoint_meta(c, "tokenizer.ggml.tokens", &tokens) ||
        tokens.kind != GGUF_ARRAY)
        return err_set(err, ERR_MODEL_UNSUPPORTED,
                       "The GGUF file has no vocabulary (tokenizer.ggml.model, tokenizer.ggml.tokens); convert it again "
                       "with its tokenizer.");
    checkpoint_meta_str(c, "tokenizer.ggml.pre", &g.pre);
    g.n_tokens = tokens.n;
    g.n_merges = checkpoint_meta(c, "tokenizer.ggml.merges", &merges) && merges.kind == GGUF_ARRAY ? merges.n : 0;
    struct str *token_text = calloc(g.n_tokens + 1, sizeof *token_text);
    struct str *merge_text = calloc(g.n_merges + 1, sizeof *merge_text);
    float *scores = calloc(g.n_tokens + 1, sizeof *scores);
    int32_t *types = calloc(g.n_tokens + 1, sizeof *types);
    char *charsmap = NULL;
    bool ok = token_text && merge_text && scores && types;
    if (!ok) {
        err_set(err, ERR_MEMORY, "Out of memory for a vocabulary of %zu tokens.", g.n_tokens);
    } else {
        ok = checkpoint_meta_str_array(c, "tokenizer.ggml.tokens", token_text, g.n_tokens) &&
             (g.n_merges == 0 || checkpoint_meta_str_array(c, "tokenizer.ggml.merges", merge_text, g.n_merges));
        if (!ok)
            err_set(err, ERR_MODEL_DAMAGED, "tokenizer.ggml.tokens or tokenizer.ggml.merges is not an array of strings.");
    }
    ok = ok && read_charsmap(c, &g.precompiled_charsmap, &charsmap, err);
    if (ok) {
        g.tokens = token_text;
        g.merges = merge_text;
        g.scores = checkpoint_meta_f32_array(c, "tokenizer.ggml.scores", scores, g.n_tokens) ? scores : NULL;
        g.token_types = checkpoint_meta_i32_array(c, "tokenizer.ggml.token_type", types, g.n_tokens) ? types : NULL;
        t->tokenizer = tokenizer_from_gguf(&g, err);
        ok = t->tokenizer != NULL;
    }
    free(token_text);
    free(merge_text);
    free(scores);
    free(types);
    free(charsmap);
    return ok;
}

/* tokenizer_config.json's chat_template: a string, or a list of named ones of which "default" is taken. */
static const json_t *config_template(const json_t *config)
{
    const json_t *v = json_object_get(config, "chat_template");
    if (json_is_string(v))
        return v;
    size_t i;
    json_t *one;
    json_array_foreach((json_t *)v, i, one)
    {
        const char *name = json_string_value(json_object_get(one, "name"));
        if (name && strcmp(name, "default") == 0)
            return json_object_get(one, "template");
    }
    return NULL;
}

static bool compile_template(struct served_text *t, struct str source, struct err *err)
{
    t->template_is_default = source.len == 0;
    t->template = template_compile(t->template_is_default ? template_default_source() : source, err);
    return t->template != NULL;
}

static bool open_template_files(struct served_text *t, struct checkpoint *c, struct err *err)
{
    struct str jinja, config;
    if (!checkpoint_file(c, "chat_template.jinja", &jinja, err))
        return false;
    if (jinja.len)
        return compile_template(t, jinja, err);
    static const char *const homes[] = {"tokenizer_config.json", "chat_template.json"};
    for (size_t i = 0; i < sizeof homes / sizeof *homes; i++) {
        if (!checkpoint_file(c, homes[i], &config, err))
            return false;
        json_error_t at;
        /* Numbers as reals: model_max_length is 10^30 in many published files. */
        json_t *root = config.len ? json_loadb(config.ptr, config.len, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &at) : NULL;
        if (config.len && !root)
            return err_set(err, ERR_MODEL_DAMAGED, "%s is not valid JSON: %s (line %d, column %d).", homes[i], at.text, at.line,
                           at.column);
        const json_t *v = config_template(root);
        if (json_is_string(v)) {
            bool ok = compile_template(t, (struct str){json_string_value(v), json_string_length(v)}, err);
            json_decref(root);
            return ok;
        }
        json_decref(root);
    }
    return compile_template(t, (struct str){0}, err);
}

/* What the file does not say stays as it is. */
static bool read_number(const json_t *root, const char *key, double min, double max, double *out, struct err *err)
{
    const json_t *v = json_object_get(root, key);
    if (!json_is_number(v))
        return true;
    *out = json_number_value(v);
    return (*out >= min && *out <= max) ||
           err_set(err, ERR_MODEL_DAMAGED,
                   "generation_config.json: '%s' is %.15g; it must be between %.15g and %.15g. Correct the file, or take the "
                   "line out.",
                   key, *out, min, max);
}

static bool open_defaults(struct served_text *t, struct checkpoint *c, struct err *err)
{
    t->defaults = (struct text_defaults){NAN, NAN, NAN, NAN, INT64_MIN};
    struct str text;
    if (!checkpoint_file(c, "generation_config.json", &text, err))
        return false;
    json_error_t at;
    json_t *root = text.len ? json_loadb(text.ptr, text.len, 0, &at) : NULL;
    if (text.len && !root)
        return err_set(err, ERR_MODEL_DAMAGED, "generation_config.json is not valid JSON: %s (line %d, column %d).", at.text,
                       at.line, at.column);
    struct text_defaults *d = &t->defaults;
    bool ok = read_number(root, "temperature", 0, TEMPERATURE_MAX, &d->temperature, err) &&
              read_number(root, "top_p", 0, 1, &d->top_p, err) && read_number(root, "min_p", 0, 1, &d->min_p, err) &&
              read_number(root, "repetition_penalty", 0.01, 10, &d->repetition_penalty, err);
    const json_t *k = json_object_get(root, "top_k");
    if (json_is_integer(k))
        d->top_k = json_integer_value(k);
    json_decref(root);
    return ok;
}

static void measure_tokens(struct served_text *t, size_t n_vocab)
{
    struct buf bytes;
    buf_init(&bytes, 1 << 20);
    t->token_bytes_max = 1;
    for (size_t i = 0; i < n_vocab; i++) {
        size_t text = tokenizer_token(t->tokenizer, (int32_t)i).len; /* a special token is matched as it is written */
        buf_clear(&bytes);
        tokenizer_token_bytes(t->tokenizer, (int32_t)i, &bytes);
        size_t longer = bytes.len > text ? bytes.len : text;
        t->token_bytes_max = longer > t->token_bytes_max ? longer : t->token_bytes_max;
    }
    buf_release(&bytes);
}

bool text_open(struct served_text *t, struct checkpoint *c, const struct model_info *info, struct err *err)
{
    memset(t, 0, sizeof *t);
    bool gguf = checkpoint_kind(c) == CHECKPOINT_GGUF;
    struct str source = {0};
    bool ok = gguf ? open_tokenizer_gguf(t, c, err) : open_tokenizer_files(t, c, err);
    if (ok && gguf)
        checkpoint_meta_str(c, "tokenizer.chat_template", &source);
    ok = ok && (gguf ? compile_template(t, source, err) : open_template_files(t, c, err)) && open_defaults(t, c, err);
    if (!ok) {
        text_close(t);
        return false;
    }
    measure_tokens(t, info->n_vocab);
    for (size_t i = 0; i < info->n_eos; i++)
        add_stop_id(t, info->eos[i]);
    if (gguf) {
        add_stop_id(t, tokenizer_eos(t->tokenizer));
        for (size_t i = 0; i < sizeof end_of_turn / sizeof *end_of_turn; i++) {
            int32_t id = tokenizer_id(t->tokenizer, str_from(end_of_turn[i]));
            if (id >= 0 && tokenizer_is_special(t->tokenizer, id))
                add_stop_id(t, id);
        }
    }
    return true;
}

void text_close(struct served_text *t)
{
    tokenizer_free(t->tokenizer);
    template_free(t->template);
    t->tokenizer = NULL;
    t->template = NULL;
}

/* Templates put a message's role between the halves of a special token ("<|" role "|>"): the usual ones are no forgery. */
static void add_roles(json_t *own, const json_t *messages)
{
    static const char *const roles[] = {"system", "developer", "user", "assistant", "tool", "function", "ipython", "model"};
    size_t i;
    json_t *message;
    json_array_foreach((json_t *)messages, i, message)
    {
        json_t *role = json_object_get(message, "role");
        const char *text = json_string_value(role);
        for (size_t k = 0; text && k < sizeof roles / sizeof *roles; k++)
            if (strcmp(text, roles[k]) == 0)
                json_array_append(own, role);
    }
}

static bool render(const struct served_text *t, const struct text_chat *chat, struct buf *out, struct text_spans *spans,
                   struct err *err)
{
    json_t *context = json_object(), *own = json_array();
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)chat->kwargs, name, value) json_object_set(context, name, value);
    static const char *const named[] = {"bos_token", "eos_token", "unk_token", "pad_token",
                                        "sep_token", "cls_token", "mask_token"};
    for (size_t i = 0; i < sizeof named / sizeof *named; i++) {
        struct str token = tokenizer_named(t->tokenizer, named[i]);
        if (token.len)
            json_object_set_new(context, named[i], json_stringn(token.ptr, token.len));
        if (token.len)
            json_array_append(own, json_object_get(context, named[i]));
    }
    add_roles(own, chat->messages);
    json_object_set(context, "messages", (json_t *)chat->messages);
    json_object_set_new(context, "tools", chat->tools ? json_incref((json_t *)chat->tools) : json_null());
    json_object_set_new(context, "documents", chat->documents ? json_incref((json_t *)chat->documents) : json_null());
    json_object_set_new(context, "add_generation_prompt", json_boolean(chat->add_generation_prompt));
    struct template_clock now = {clock_wall_s()};
    const struct template *template = chat->template ? chat->template : t->template;
    bool ok = spans ? template_render_own(template, context, own, &now, out, spans, err)
                    : template_render(template, context, &now, out, err);
    json_decref(own);
    json_decref(context);
    return ok;
}

bool text_render(const struct served_text *t, const struct text_chat *chat, struct buf *out, struct err *err)
{
    return render(t, chat, out, NULL, err);
}

bool text_render_own(const struct served_text *t, const struct text_chat *chat, struct buf *out, struct text_spans *own,
                     struct err *err)
{
    return render(t, chat, out, own, err);
}

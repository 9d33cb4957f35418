/* What stands beside a vocabulary: tokenizer_config.json, special_tokens_map.json, added_tokens.json. They name the special
 * tokens for templates and add tokens that the vocabulary file does not have; what tokenizer.json says itself stays. */
#include "text/tokenizer_impl.h"

#include <stdlib.h>

static const char *const NAMES[] = {"bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"};

bool config_parse(const struct tokenizer_files *files, json_t **config, struct err *err)
{
    json_error_t at;
    *config = NULL;
    if (!files->tokenizer_config.len)
        return true;
    /* Numbers as reals: model_max_length is 10^30 in many published files. */
    *config =
        json_loadb(files->tokenizer_config.ptr, files->tokenizer_config.len, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &at);
    return *config || err_set(err, ERR_MODEL_DAMAGED, "tokenizer_config.json is not valid JSON: %s (line %d, column %d)",
                              at.text, at.line, at.column);
}

/* A token is written as its text or as {"content": text, ...}. */
static struct str token_content(const json_t *v)
{
    if (json_is_object(v))
        return json_view(v, "content", STR(""));
    return json_is_string(v) ? (struct str){json_string_value(v), json_string_length(v)} : STR("");
}

static bool known(const struct tokenizer *t, struct str content)
{
    return t->added_index.slots && token_table_find(&t->added_index, content) >= 0;
}

/* Adds what is not an added token yet. `v` may hold its flags. */
static bool add_new(struct tokenizer *t, struct str content, json_int_t id, const json_t *v, int special, struct err *err)
{
    if (!content.len || known(t, content))
        return true;
    int32_t in_model = tokenizer_model_id(t, content);
    if (in_model >= 0)
        id = in_model;
    if (id < 0 || id >= TOKENIZER_IDS_MAX)
        return err_set(err, ERR_MODEL_DAMAGED, "added token '%.*s' has the id %lld; 0 to %u are possible",
                       (int)(content.len < 60 ? content.len : 60), content.ptr, (long long)id, TOKENIZER_IDS_MAX - 1);
    if (in_model < 0 && (size_t)id < t->n_ids && t->tokens[id].len)
        return true; /* the id belongs to another token: the vocabulary file is the truth */
    struct added_token a = {.id = (int32_t)id,
                            .content = content,
                            .single_word = json_flag(v, "single_word", 0),
                            .lstrip = json_flag(v, "lstrip", 0),
                            .rstrip = json_flag(v, "rstrip", 0),
                            .normalized = json_flag(v, "normalized", 0),
                            .special = json_flag(v, "special", special)};
    return tokenizer_add(t, &a, err);
}

/* "added_tokens_decoder": {"32000": {"content": ..., "special": ...}}. */
static bool added_decoder(struct tokenizer *t, const json_t *config, struct err *err)
{
    const char *key;
    json_t *v;
    json_object_foreach(json_object_get(config, "added_tokens_decoder"), key, v)
    {
        char *end;
        long long id = strtoll(key, &end, 10);
        if (end == key || *end)
            return err_set(err, ERR_MODEL_DAMAGED, "tokenizer_config.json: added_tokens_decoder has the id '%.40s'", key);
        if (!add_new(t, token_content(v), id, v, 0, err))
            return false;
    }
    return true;
}

static const char *const LISTS[] = {"additional_special_tokens", "extra_special_tokens"};

/* Whether a configuration names `content` as a special token. */
static bool is_listed(const json_t *root, struct str content)
{
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++)
        if (str_equal(token_content(json_object_get(root, NAMES[i])), content))
            return true;
    for (size_t i = 0; i < sizeof LISTS / sizeof *LISTS; i++) {
        size_t k;
        json_t *v;
        json_array_foreach(json_object_get(root, LISTS[i]), k, v)
        {
            if (str_equal(token_content(v), content))
                return true;
        }
    }
    return false;
}

/* added_tokens.json: {"text": id}; special are those that the configuration or the map says are. */
static bool added_file(struct tokenizer *t, struct str text, const json_t *config, const json_t *map, struct err *err)
{
    json_t *root = text.len ? json_parse_text(text, "added_tokens.json", err) : NULL;
    if (text.len && !root)
        return false;
    const char *key;
    size_t len;
    json_t *v;
    bool ok = true;
    json_object_keylen_foreach(root, key, len, v)
    {
        if (ok && json_is_integer(v))
            ok = add_new(t, (struct str){key, len}, json_integer_value(v), NULL,
                         is_listed(config, (struct str){key, len}) || is_listed(map, (struct str){key, len}), err);
    }
    json_decref(root);
    return ok;
}

/* Special tokens by name, and the unnamed ones of "additional_special_tokens" / "extra_special_tokens" (a list). A named
 * token of the vocabulary becomes an added one; one that is nowhere stays a name only. */
static bool special_tokens(struct tokenizer *t, const json_t *root, struct err *err)
{
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        const json_t *v = json_object_get(root, NAMES[i]);
        struct str content = token_content(v);
        if (content.len && (!tokenizer_set_named(t, str_from(NAMES[i]), content, err) ||
                            (tokenizer_model_id(t, content) >= 0 && !add_new(t, content, 0, v, 1, err))))
            return false;
    }
    for (size_t i = 0; i < sizeof LISTS / sizeof *LISTS; i++) {
        size_t k;
        json_t *v;
        json_array_foreach(json_object_get(root, LISTS[i]), k, v)
        {
            struct str content = token_content(v);
            if (tokenizer_model_id(t, content) >= 0 && !add_new(t, content, 0, v, 1, err))
                return false;
        }
    }
    return true;
}

bool config_apply(struct tokenizer *t, const struct tokenizer_files *files, const json_t *config, struct err *err)
{
    json_t *map = NULL;
    if (files->special_tokens_map.len && !(map = json_parse_text(files->special_tokens_map, "special_tokens_map.json", err)))
        return false;
    bool ok = added_decoder(t, config, err) && added_file(t, files->added_tokens, config, map, err) &&
              special_tokens(t, config, err) && special_tokens(t, map, err);
    t->clean_up = json_flag(config, "clean_up_tokenization_spaces", 0);
    json_decref(map);
    return ok;
}

bool tokenizer_affix(struct tokenizer *t, const char *name, int after, struct err *err)
{
    struct str content = tokenizer_named(t, name);
    int32_t id = content.len ? tokenizer_id(t, content) : -1;
    size_t *n = after ? &t->n_after : &t->n_before;
    if (id < 0)
        return true;
    if (*n == TOKENIZER_AFFIX_MAX)
        return err_set(err, ERR_INTERNAL, "more than %u tokens around a text", TOKENIZER_AFFIX_MAX);
    (after ? t->after : t->before)[(*n)++] = id;
    return true;
}

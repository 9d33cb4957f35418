/* tokenize, detokenize, apply-template: what the model sees. On a worker. */
#include "serve/call.h"

#include "api/fields.h"

#define TEXT_BYTES_MAX ((size_t)256 << 20)
#define TOKENS_MAX     ((size_t)16 << 20)

bool tools_tokenize(struct call *c, struct err *err)
{
    const struct api_request *r = &c->parsed;
    const struct tokenizer *t = c->model->text.tokenizer;
    struct token_list ids;
    token_list_init(&ids, TOKENS_MAX);
    struct buf text;
    buf_init(&text, TEXT_BYTES_MAX);
    bool ok;
    if (r->messages) {
        ok = prepare_chat_prompt(c, &text, &ids, err);
    } else if (!json_is_string(r->prompt)) {
        char shown[FIELD_TEXT_BYTES];
        ok = err_set_param(err, ERR_INVALID_REQUEST, "prompt", "'prompt' must be a string; got %s.",
                           field_text(r->prompt, shown));
    } else {
        ok = prepare_encode(c, (struct str){json_string_value(r->prompt), json_string_length(r->prompt)}, TEXT_RAW_UNBOUNDED,
                            NULL, &ids, err);
    }
    if (ok) {
        buf_append_str(&c->out, STR("{\"tokens\":"));
        api_write_ids(&c->out, ids.ids, ids.len);
        buf_printf(&c->out, ",\"count\":%zu,\"max_model_len\":%zu", ids.len, c->model->context_max);
        for (size_t i = 0; r->return_token_strs && i < ids.len; i++) {
            buf_append_str(&c->out, i ? STR(",") : STR(",\"token_strs\":["));
            buf_append_json(&c->out, tokenizer_token(t, ids.ids[i]));
        }
        if (r->return_token_strs)
            buf_append_str(&c->out, ids.len ? STR("]") : STR(",\"token_strs\":[]"));
        buf_append_char(&c->out, '}');
    }
    token_list_release(&ids);
    buf_release(&text);
    return ok;
}

bool tools_detokenize(struct call *c, struct err *err)
{
    const struct api_request *r = &c->parsed;
    struct token_list ids;
    token_list_init(&ids, TOKENS_MAX);
    bool ok = true;
    size_t i;
    json_t *id;
    json_array_foreach(r->tokens, i, id)
    {
        if (!json_is_integer(id) || json_integer_value(id) < INT32_MIN || json_integer_value(id) > INT32_MAX) {
            ok = err_set_param(err, ERR_INVALID_REQUEST, "tokens", "tokens[%zu] must be a token id (an integer).", i);
            break;
        }
        if (!token_list_push(&ids, (int32_t)json_integer_value(id))) {
            ok = err_set(err, ERR_MEMORY, "Out of memory.");
            break;
        }
    }
    struct buf text;
    buf_init(&text, TEXT_BYTES_MAX);
    if (ok && !tokenizer_decode(c->model->text.tokenizer, ids.ids, ids.len, r->skip_special_tokens, &text, err)) {
        snprintf(err->param, sizeof err->param, "tokens");
        ok = err_prefix(err, "'tokens'");
    }
    if (ok) {
        buf_append_str(&c->out, STR("{\"prompt\":"));
        buf_append_json(&c->out, buf_str(&text));
        buf_append_char(&c->out, '}');
    }
    buf_release(&text);
    token_list_release(&ids);
    return ok;
}

bool tools_apply_template(struct call *c, struct err *err)
{
    struct token_list ids;
    token_list_init(&ids, TOKENS_MAX);
    struct buf text;
    buf_init(&text, TEXT_BYTES_MAX);
    bool ok = prepare_chat_prompt(c, &text, &ids, err);
    if (ok) {
        buf_append_str(&c->out, STR("{\"prompt\":"));
        buf_append_json(&c->out, buf_str(&text));
        buf_append_str(&c->out, STR(",\"tokens\":"));
        api_write_ids(&c->out, ids.ids, ids.len);
        buf_append_char(&c->out, '}');
    }
    token_list_release(&ids);
    buf_release(&text);
    return ok;
}

/* The text side of a model: tokenizer, chat template and sampling defaults out of a checkpoint. Immutable once opened;
 * any thread reads. */
#ifndef INFERD_SERVE_TEXT_H
#define INFERD_SERVE_TEXT_H

#include "model/checkpoint.h"
#include "model/model.h"
#include "text/template.h"
#include "text/tokenizer.h"

#define TEXT_STOP_IDS_MAX 24

/* generation_config.json; NAN / negative: the file does not say. */
struct text_defaults {
    double temperature, top_p, min_p, repetition_penalty;
    int64_t top_k; /* INT64_MIN */
};

struct served_text {
    struct tokenizer *tokenizer;
    struct template *template;
    int template_is_default; /* 1: the model was published without one; a published one writes BOS itself */
    struct text_defaults defaults;
    int32_t stop_ids[TEXT_STOP_IDS_MAX]; /* end of sequence and end of turn */
    size_t n_stop_ids;
    size_t token_bytes_max; /* of the longest token's text, at least 1 */
};

bool text_open(struct served_text *t, struct checkpoint *c, const struct model_info *info, struct err *err);
void text_close(struct served_text *t);

/* The prompt text of a chat. `messages` normalised; tools, documents, kwargs may be NULL. `template` NULL: the model's. */
struct text_chat {
    const json_t *messages, *tools, *documents, *kwargs;
    int add_generation_prompt;
    const struct template *template;
};
bool text_render(const struct served_text *t, const struct text_chat *chat, struct buf *out, struct err *err);
/* The same, and which parts of it no message, tool or document brought. *own is released by the caller in any case. */
bool text_render_own(const struct served_text *t, const struct text_chat *chat, struct buf *out, struct text_spans *own,
                     struct err *err);

#endif

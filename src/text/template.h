/* Chat templates: the model's own Jinja source, rendered as transformers' apply_chat_template does.
 *
 * The language is the part of Jinja 2 that published templates use, with transformers' environment: trim_blocks and
 * lstrip_blocks on, loop controls (break, continue), `raise_exception`, `strftime_now`, `tojson` (transformers' form:
 * no HTML escaping, ensure_ascii=False, indent, separators, sort_keys), `generation` blocks (their body), macros, call
 * blocks, namespaces, filters, tests, string/list/dict methods, slices, recursion, inline if, set blocks, include none.
 *
 * Sandbox: no attribute beyond the listed ones, and limits on steps, depth and output (limits below). A failing
 * template gives ERR_TEMPLATE with line and cause.
 *
 * A compiled template is immutable; any thread may render. Rendering's memory belongs to the call (arena).
 */
#ifndef INFERD_TEXT_TEMPLATE_H
#define INFERD_TEXT_TEMPLATE_H

#include "base/buf.h"
#include "base/err.h"

#include "text/spans.h"

#include <jansson.h>

#define TEMPLATE_SOURCE_BYTES_MAX (1u << 20)
#define TEMPLATE_STEPS_MAX        20000000u
#define TEMPLATE_DEPTH_MAX        200u
#define TEMPLATE_MEMORY_BYTES_MAX (256u << 20)

struct template;

/* Compiles `source`. ERR_TEMPLATE: "line 12: expected 'endif' ..." */
struct template *template_compile(struct str source, struct err *err);
void template_free(struct template *t);

/* The current time for strftime_now and for tests that fix it. wall_s: Unix seconds, shown in local time (TZ). */
struct template_clock {
    long long wall_s;
};

/* Renders with the variables of `context` (a JSON object: messages, tools, documents, add_generation_prompt, bos_token,
 * eos_token, enable_thinking, ...; borrowed) into `out` (whose max bounds the output). Object members keep the order
 * they were inserted in. Integers and reals print as Python prints them. */
bool template_render(const struct template *t, const json_t *context, const struct template_clock *clock, struct buf *out,
                     struct err *err);

/* The same, and which parts of the text are the template's own: its literals and the strings of `own` (a list of strings that
 * are part of `context`), as far as they were only copied, cut and joined. *spans is released by the caller in any case. */
bool template_render_own(const struct template *t, const json_t *context, const json_t *own, const struct template_clock *clock,
                         struct buf *out, struct text_spans *spans, struct err *err);

/* The documented default for models without a template: each message as "<|role|>\ncontent\n", in which every message
 * appears, and "<|assistant|>\n" at the end when add_generation_prompt is true. Jinja source; static memory. */
struct str template_default_source(void);

#endif

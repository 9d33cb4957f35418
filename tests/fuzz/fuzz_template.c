/* Any bytes as a chat template over a small conversation: compiles or fails with a text, renders or fails with a text,
 * and the rendered text is valid UTF-8. */
#include "text/template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char context_json[] =
    "{\"messages\": [{\"role\": \"system\", \"content\": \"Be brief.\"}, {\"role\": \"user\", \"content\": "
    "\"Gr\\u00fc\\u00dfe \\ud83d\\ude00\\n\"}, {\"role\": \"assistant\", \"content\": null, \"tool_calls\": "
    "[{\"function\": {\"name\": "
    "\"f\", \"arguments\": {\"x\": [1, -2.5, true, null]}}}]}], \"tools\": [{\"type\": \"function\", \"function\": "
    "{\"name\": \"f\", \"parameters\": {\"properties\": {\"x\": {\"type\": \"array\"}}}}}], \"bos_token\": \"<s>\", "
    "\"n\": 7, \"f\": 2.5, \"s\": \" a,b \", \"add_generation_prompt\": true}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static json_t *context;
    struct err err = {0};
    struct template_clock clock = {1752148800};
    struct buf out;
    if (!context)
        context = json_loads(context_json, 0, NULL);
    CHECK(context);
    struct template *t = template_compile((struct str){(const char *)data, size}, &err);
    if (!t) {
        CHECK(err.code == ERR_TEMPLATE && err.text[0]);
        return 0;
    }
    buf_init(&out, 1u << 20);
    if (template_render(t, context, &clock, &out, &err))
        CHECK(str_utf8_valid(buf_str(&out)));
    else
        CHECK(err.code == ERR_TEMPLATE && err.text[0]);
    buf_release(&out);
    template_free(t);
    return 0;
}

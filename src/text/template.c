/* The public face of chat templates: compile, render, the default template. */
#include "text/template.h"
#include "text/jinja.h"

#include <stdio.h>
#include <stdlib.h>

bool jinja_syntax_error(struct err *err, uint32_t line, uint32_t col, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return err_set(err, ERR_TEMPLATE, "chat template, line %u, column %u: %s", (unsigned)line, (unsigned)col, text);
}

/* ---- names ------------------------------------------------------------------------------------------------------- */

uint32_t jinja_find_name(const struct template *t, struct str name)
{
    if (t->n_name_table == 0)
        return UINT32_MAX;
    for (size_t at = str_hash(name) & (t->n_name_table - 1); t->name_table[at]; at = (at + 1) & (t->n_name_table - 1))
        if (str_equal(t->names[t->name_table[at] - 1], name))
            return t->name_table[at] - 1;
    return UINT32_MAX;
}

static bool grow_names(struct template *t)
{
    size_t cap = t->cap_names ? t->cap_names * 2 : 64;
    struct str *names = arena_alloc_array(&t->arena, cap, sizeof *names);
    uint32_t *table = arena_alloc_array(&t->arena, cap * 2, sizeof *table);
    if (!names || !table)
        return false;
    if (t->n_names)
        memcpy(names, t->names, t->n_names * sizeof *names);
    t->names = names;
    t->cap_names = cap;
    t->name_table = table;
    t->n_name_table = cap * 2;
    for (size_t i = 0; i < t->n_names; i++) {
        size_t at = str_hash(names[i]) & (t->n_name_table - 1);
        while (table[at])
            at = (at + 1) & (t->n_name_table - 1);
        table[at] = (uint32_t)i + 1;
    }
    return true;
}

uint32_t jinja_intern(struct template *t, struct str name)
{
    uint32_t id = jinja_find_name(t, name);
    if (id != UINT32_MAX)
        return id;
    if (t->n_names == t->cap_names && !grow_names(t))
        return UINT32_MAX;
    size_t at = str_hash(name) & (t->n_name_table - 1);
    while (t->name_table[at])
        at = (at + 1) & (t->n_name_table - 1);
    t->names[t->n_names++] = name;
    t->name_table[at] = (uint32_t)t->n_names;
    return (uint32_t)t->n_names - 1;
}

/* ---- compile ----------------------------------------------------------------------------------------------------- */

/* A copy with \r\n and \r as \n, without one newline at the end. */
static bool copy_source(struct template *t, struct str source)
{
    char *out = arena_alloc(&t->arena, source.len + 1);
    size_t n = 0;
    if (!out)
        return false;
    for (size_t i = 0; i < source.len; i++) {
        if (source.ptr[i] != '\r')
            out[n++] = source.ptr[i];
        else if (i + 1 == source.len || source.ptr[i + 1] != '\n')
            out[n++] = '\n';
    }
    if (n && out[n - 1] == '\n')
        n--;
    t->source = (struct str){out, n};
    return true;
}

struct template *template_compile(struct str source, struct err *err)
{
    if (source.len > TEMPLATE_SOURCE_BYTES_MAX) {
        err_set(err, ERR_TEMPLATE, "chat template: %zu bytes are more than the limit of %u", source.len,
                TEMPLATE_SOURCE_BYTES_MAX);
        return NULL;
    }
    if (!str_utf8_valid(source)) {
        err_set(err, ERR_TEMPLATE, "chat template: the source is not valid UTF-8");
        return NULL;
    }
    struct template *t = calloc(1, sizeof *t);
    if (!t) {
        err_set(err, ERR_MEMORY, "no memory to compile a chat template");
        return NULL;
    }
    arena_init(&t->arena, JINJA_COMPILE_BYTES_MAX);
    bool ok = copy_source(t, source);
    if (!ok)
        err_set(err, ERR_MEMORY, "no memory to compile a chat template");
    if (!ok || !jinja_parse(t, err) || !jinja_check(t, err)) {
        template_free(t);
        return NULL;
    }
    return t;
}

void template_free(struct template *t)
{
    if (!t)
        return;
    arena_release(&t->arena);
    free(t);
}

/* ---- render ------------------------------------------------------------------------------------------------------ */

static bool set_globals(struct jrun *run, const json_t *context)
{
    const struct template *t = run->t;
    run->globals = jrun_alloc(run, t->n_names, sizeof *run->globals);
    if (!run->globals)
        return false;
    for (const struct jfunc *f = jinja_globals; f->name; f++) {
        uint32_t id = jinja_find_name(t, str_from(f->name));
        if (id != UINT32_MAX)
            run->globals[id] = (struct jv){.kind = J_FUNC, .func = f};
    }
    for (void *it = json_object_iter((json_t *)context); it; it = json_object_iter_next((json_t *)context, it)) {
        uint32_t id = jinja_find_name(t, str_from(json_object_iter_key(it)));
        if (id != UINT32_MAX && !jv_from_json(run, json_object_iter_value(it), 0, &run->globals[id]))
            return false;
    }
    return true;
}

static void run_release(struct jrun *run)
{
    for (size_t i = 0; i < run->cap_captures; i++) {
        if (run->captures[i])
            buf_release(run->captures[i]);
        free(run->captures[i]);
    }
    free(run->captures);
    arena_release(&run->arena);
}

static bool begin_marks(struct jrun *run, const json_t *own)
{
    size_t i;
    json_t *one;
    bool ok = !run->marks || jmarks_capture_begin(run); /* of the text itself */
    json_array_foreach((json_t *)own, i, one) ok =
        ok && jmarks_own(run, (struct str){json_string_value(one), json_string_length(one)});
    return ok;
}

static bool render(const struct template *t, const json_t *context, const json_t *own_strings, struct jmarks *marks,
                   const struct template_clock *clock, struct buf *out, struct err *err)
{
    struct err own = {0};
    size_t out_start = out->len;
    struct jrun run = {.t = t, .marks = marks, .err = &own, .out = out, .wall_s = clock ? clock->wall_s : 0};
    if (!json_is_object(context))
        return err_set(err, ERR_TEMPLATE, "chat template: the variables are not a JSON object");
    arena_init(&run.arena, TEMPLATE_MEMORY_BYTES_MAX);
    bool ok = begin_marks(&run, own_strings) && set_globals(&run, context);
    if (ok)
        ok = (run.top = jscope_push(&run, NULL, &t->hidden)) != NULL;
    if (ok)
        ok = jinja_exec(&run, &t->body) != FLOW_FAIL;
    run_release(&run);
    if (ok)
        return true;
    if (out->len > out_start) {
        out->len = out_start;
        out->data[out_start] = 0;
    }
    if (err)
        *err = own;
    return false;
}

bool template_render(const struct template *t, const json_t *context, const struct template_clock *clock, struct buf *out,
                     struct err *err)
{
    return render(t, context, NULL, NULL, clock, out, err);
}

bool template_render_own(const struct template *t, const json_t *context, const json_t *own, const struct template_clock *clock,
                         struct buf *out, struct text_spans *spans, struct err *err)
{
    struct jmarks marks = {0};
    *spans = (struct text_spans){0};
    bool ok = render(t, context, own, &marks, clock, out, err);
    if (ok) {
        *spans = marks.levels[0];
        marks.levels[0] = (struct text_spans){0};
    }
    jmarks_release(&marks);
    return ok;
}

struct str template_default_source(void)
{
    return STR("{%- for message in messages %}"
               "{{- '<|' ~ message['role'] ~ '|>\\n' }}"
               "{%- if message['content'] is string %}"
               "{{- message['content'] }}"
               "{%- elif message['content'] %}"
               "{%- for part in message['content'] %}"
               "{{- part['text'] if part is mapping and part['text'] is defined else '' }}"
               "{%- endfor %}"
               "{%- endif %}"
               "{{- '\\n' }}"
               "{%- endfor %}"
               "{%- if add_generation_prompt %}"
               "{{- '<|assistant|>\\n' }}"
               "{%- endif %}");
}

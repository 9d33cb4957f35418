/* inferd run MODEL [PROMPT]: one answer, or a conversation with line editing; ctrl-C stops the answer. */
#include "cli/cli.h"

#include <histedit.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define HISTORY_LINES   1000
#define EVENT_BYTES_MAX ((size_t)16 << 20)

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

struct answer {
    struct buf line, text;
    bool failed;
};

static void take_event(struct answer *a, struct str event)
{
    struct str data = STR("data: ");
    if (!str_has_prefix(event, data))
        return;
    json_t *root = json_loadb(event.ptr + data.len, event.len - data.len, 0, NULL);
    const json_t *content = json_object_get(json_object_get(root, "delta"), "content");
    const char *error = json_string_value(json_object_get(json_object_get(root, "error"), "message"));
    if (json_is_string(content)) {
        fwrite(json_string_value(content), 1, json_string_length(content), stdout);
        fflush(stdout);
        buf_append(&a->text, json_string_value(content), json_string_length(content));
    }
    if (error) {
        fprintf(stderr, "\ninferd: %s\n", error);
        a->failed = true;
    }
    json_decref(root);
}

static bool on_data(void *arg, struct str bytes)
{
    struct answer *a = arg;
    buf_append_str(&a->line, bytes);
    for (char *end; a->line.len && (end = memchr(a->line.data, '\n', a->line.len));) {
        take_event(a, (struct str){a->line.data, (size_t)(end - a->line.data)});
        buf_consume(&a->line, (size_t)(end - a->line.data) + 1);
    }
    return !interrupted;
}

/* Asks with the whole conversation; adds the answer to it. Returns an exit status. */
static int ask(const struct cli_client *c, json_t *messages, const char *prompt)
{
    json_array_append_new(messages, json_pack("{s:s,s:s}", "role", "user", "content", prompt));
    json_t *request = json_pack("{s:s,s:O,s:b}", "model", c->words[0], "messages", messages, "stream", 1);
    char *body = request ? json_dumps(request, JSON_COMPACT) : NULL;
    json_decref(request);
    if (!body) {
        fprintf(stderr, "inferd: the text is not valid UTF-8.\n");
        json_array_remove(messages, json_array_size(messages) - 1);
        return 1;
    }
    struct answer a = {.failed = false};
    buf_init(&a.line, EVENT_BYTES_MAX);
    buf_init(&a.text, EVENT_BYTES_MAX);
    struct buf out;
    struct err err = {0};
    interrupted = 0;
    int status = cli_request(c, "POST", "/chat", body, on_data, &a, &out, &err);
    printf("\n");
    int result = status == 200 ? a.failed : cli_failed(status, &out, &err);
    if (status == 200 && !a.failed) {
        struct str said = buf_str(&a.text);
        json_array_append_new(messages, json_pack("{s:s,s:s%}", "role", "assistant", "content", said.ptr, said.len));
    } else {
        json_array_remove(messages, json_array_size(messages) - 1);
    }
    free(body);
    buf_release(&a.line);
    buf_release(&a.text);
    buf_release(&out);
    return result;
}

static char *prompt_text(EditLine *el)
{
    (void)el;
    static char text[] = ">>> ";
    return text;
}

static void converse(const struct cli_client *c, json_t *messages)
{
    EditLine *el = el_init("inferd", stdin, stdout, stderr);
    History *lines = history_init();
    HistEvent event;
    history(lines, &event, H_SETSIZE, HISTORY_LINES);
    el_set(el, EL_PROMPT, prompt_text);
    el_set(el, EL_EDITOR, "emacs");
    el_set(el, EL_HIST, history, lines);
    printf("Talking to %s. /clear forgets, /bye (or ctrl-D) leaves, ctrl-C stops an answer.\n", c->words[0]);
    int n;
    for (;;) {
        interrupted = 0;
        const char *line = el_gets(el, &n);
        if (interrupted) { /* ctrl-C at the prompt drops the line */
            el_reset(el);
            printf("\n(ctrl-D or /bye leaves)\n");
            continue;
        }
        if (!line || n <= 0)
            break;
        char *said = strndup(line, strcspn(line, "\r\n"));
        if (!said || strcmp(said, "/bye") == 0) {
            free(said);
            break;
        }
        if (strcmp(said, "/clear") == 0) {
            json_array_clear(messages);
        } else if (*said) {
            history(lines, &event, H_ENTER, line);
            ask(c, messages, said);
        }
        free(said);
    }
    history_end(lines);
    el_end(el);
}

int cli_run(const struct cli_client *c)
{
    if (c->n_words < 1) {
        fprintf(stderr, "inferd: usage: inferd run MODEL [PROMPT]\n");
        return 2;
    }
    int result = cli_pull_missing(c);
    if (result)
        return result;
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    json_t *messages = json_array();
    struct buf prompt;
    buf_init(&prompt, EVENT_BYTES_MAX);
    for (size_t i = 1; i < c->n_words; i++)
        buf_printf(&prompt, "%s%s", i > 1 ? " " : "", c->words[i]);
    if (c->n_words == 1 && !isatty(STDIN_FILENO)) {
        char part[4096];
        for (size_t n; (n = fread(part, 1, sizeof part, stdin)) > 0;)
            buf_append(&prompt, part, n);
    }
    if (prompt.len)
        result = ask(c, messages, buf_str(&prompt).ptr);
    else
        converse(c, messages);
    buf_release(&prompt);
    json_decref(messages);
    return result;
}

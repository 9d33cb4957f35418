/* inferd run MODEL [PROMPT]: one answer, or a conversation with line editing; ctrl-C stops the answer. */
#include "cli/cli.h"

#include "base/clock.h"
#include "cli/terminal.h"

#include <histedit.h>
#include <jansson.h>
#include <langinfo.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define HISTORY_LINES   1000
#define EVENT_BYTES_MAX ((size_t)16 << 20)
#define ANSWER_S_MAX    86400 /* who waits at a terminal has ctrl-C */
#define LOOK_NS         1000000000u
#define LOOK_BYTES_MAX  ((size_t)1 << 20)
#define HELP            "\"\"\" begins and ends a text of several lines, /clear forgets, /bye (or ctrl-D) leaves, ctrl-C stops an answer."

enum loading { LOADING_UNKNOWN, LOADING_WAITED_FOR, LOADING_OVER };

struct answer {
    const struct cli_client *c;
    struct buf line, text;
    int exit_status;      /* of an error in the stream; 0: none came */
    enum loading loading; /* of its model, as far as it is shown: on a terminal */
    bool loading_shown;   /* a line on standard error, which the cursor stands in */
    uint64_t asked_ns, looked_ns;
};

/* ---- while its model loads ------------------------------------------------------------------------------------------------- */

static bool take_bytes(void *arg, struct str bytes)
{
    return buf_append_str(arg, bytes) && !cli_interrupted();
}

/* NULL where ctrl-C came before the answer, or it is none. */
static json_t *look_at(const struct cli_client *c, const char *path)
{
    struct buf body, out;
    struct err err;
    buf_init(&body, LOOK_BYTES_MAX);
    int status = cli_request(c, "GET", path, NULL, take_bytes, &body, &out, &err);
    json_t *root = status == 200 ? json_loadb(buf_str(&body).ptr, body.len, 0, NULL) : NULL;
    buf_release(&body);
    buf_release(&out);
    return root;
}

static bool is_loaded(const struct cli_client *c)
{
    char path[CLI_PATH_BYTES];
    cli_path(path, "/models/", c->words[0], "");
    json_t *model = look_at(c, path);
    bool loaded = json_is_true(json_object_get(model, "loaded"));
    json_decref(model);
    return loaded;
}

static void wipe_loading(struct answer *a)
{
    if (a->loading_shown)
        fprintf(stderr, "\r\033[K");
    a->loading_shown = false;
}

/* Another model may load before it. */
static void put_loading(struct answer *a, const json_t *health)
{
    char line[1024], percent[16] = "";
    double done = cli_number(health, "loading_progress");
    if (done > 0)
        snprintf(percent, sizeof percent, ", %.0f %%", 100 * done);
    snprintf(line, sizeof line, "loading %.900s ... %.0f s%s", cli_text(health, "loading"),
             (double)(a->looked_ns - a->asked_ns) / 1e9, percent);
    wipe_loading(a);
    fprintf(stderr, "%.*s", (int)terminal_bytes_within(line, terminal_width(STDERR_FILENO) - 1), line);
    a->loading_shown = true;
}

/* Called while no byte of the answer comes. */
static void show_loading(struct answer *a)
{
    uint64_t now_ns = clock_mono_ns();
    if (a->loading == LOADING_OVER || now_ns < a->looked_ns + LOOK_NS)
        return;
    a->looked_ns = now_ns;
    if (a->loading == LOADING_UNKNOWN)
        a->loading = is_loaded(a->c) ? LOADING_OVER : LOADING_WAITED_FOR;
    json_t *health = a->loading == LOADING_OVER ? NULL : look_at(a->c, "/health");
    if (*cli_text(health, "loading")) {
        put_loading(a, health);
    } else if (a->loading_shown) {
        wipe_loading(a);
        a->loading = LOADING_OVER;
    }
    json_decref(health);
}

/* ---- an answer --------------------------------------------------------------------------------------------------------------- */

static void take_event(struct answer *a, struct str event)
{
    struct str data = STR("data: ");
    if (!str_has_prefix(event, data))
        return;
    json_t *root = json_loadb(event.ptr + data.len, event.len - data.len, 0, NULL);
    const json_t *content = json_object_get(json_object_get(root, "delta"), "content");
    const json_t *error = json_object_get(root, "error");
    wipe_loading(a);
    if (json_is_string(content)) {
        fwrite(json_string_value(content), 1, json_string_length(content), stdout);
        fflush(stdout);
        buf_append(&a->text, json_string_value(content), json_string_length(content));
    }
    if (error) {
        fprintf(stderr, "\ninferd: %s\n", cli_text(error, "message"));
        a->exit_status = err_info(err_code_named(cli_text(error, "code"), ERR_INTERNAL))->exit_code;
    }
    json_decref(root);
}

static bool on_data(void *arg, struct str bytes)
{
    struct answer *a = arg;
    if (bytes.len)
        a->loading = LOADING_OVER;
    else
        show_loading(a);
    buf_append_str(&a->line, bytes);
    for (char *end; a->line.len && (end = memchr(a->line.data, '\n', a->line.len));) {
        take_event(a, (struct str){a->line.data, (size_t)(end - a->line.data)});
        buf_consume(&a->line, (size_t)(end - a->line.data) + 1);
    }
    return !cli_interrupted();
}

/* Asks with the whole conversation; adds the answer to it. Returns an exit status. */
static int ask(const struct cli_client *c, json_t *messages, struct str prompt)
{
    json_t *turn = json_pack("{s:s,s:s%}", "role", "user", "content", prompt.ptr, prompt.len);
    if (!turn || json_array_append_new(messages, turn) != 0) {
        fprintf(stderr, "inferd: the text is not valid UTF-8.\n");
        return 2;
    }
    json_t *request =
        json_pack("{s:s,s:O,s:b,s:i}", "model", c->words[0], "messages", messages, "stream", 1, "timeout", ANSWER_S_MAX);
    char *body = request ? json_dumps(request, JSON_COMPACT) : NULL;
    json_decref(request);
    if (!body) {
        fprintf(stderr, "inferd: the name of the model is not valid UTF-8.\n");
        return 2;
    }
    uint64_t now_ns = clock_mono_ns();
    struct answer a = {.c = c,
                       .loading = terminal_redraws(STDERR_FILENO) ? LOADING_UNKNOWN : LOADING_OVER,
                       .asked_ns = now_ns,
                       .looked_ns = now_ns};
    buf_init(&a.line, EVENT_BYTES_MAX);
    buf_init(&a.text, EVENT_BYTES_MAX);
    struct buf out;
    struct err err = {0};
    cli_forget_interrupt();
    int status = cli_request(c, "POST", "/chat", body, on_data, &a, &out, &err);
    int result = err_info(ERR_CANCELLED)->exit_code;
    wipe_loading(&a);
    if (a.text.len || cli_interrupted())
        printf("\n");
    if (!cli_interrupted())
        result = status == 200 ? a.exit_status : cli_failed(status, &out, &err);
    if (a.text.len && (result == 0 || cli_interrupted())) {
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

static bool in_block; /* between the quotes of a text of several lines */

static char *prompt_text(EditLine *el)
{
    (void)el;
    static char first[] = ">>> ", next[] = "... ";
    return in_block ? next : first;
}

/* One line, or the lines between two """. Nothing where ctrl-C dropped it. False: the end. */
static bool read_turn(EditLine *el, struct buf *turn)
{
    const struct str quotes = STR("\"\"\"");
    buf_clear(turn);
    in_block = false;
    do {
        int n;
        cli_forget_interrupt();
        const char *line = el_gets(el, &n);
        if (cli_interrupted()) {
            el_reset(el);
            buf_clear(turn);
            printf("\n(ctrl-D or /bye leaves)\n");
            return true;
        }
        if (!line || n <= 0) {
            printf("\n");
            return false;
        }
        struct str s = {line, strcspn(line, "\r\n")};
        bool begins = !in_block && str_has_prefix(s, quotes);
        if (begins)
            s = (struct str){s.ptr + quotes.len, s.len - quotes.len};
        bool ends = (in_block || begins) && str_has_suffix(s, quotes);
        if (ends)
            s.len -= quotes.len;
        if (turn->len && !(ends && s.len == 0))
            buf_append_char(turn, '\n');
        buf_append_str(turn, s);
        in_block = (in_block || begins) && !ends;
    } while (in_block);
    return true;
}

/* The line editor drops what the locale cannot hold; a prompt is UTF-8 whatever the locale says. */
static void take_utf8(void)
{
    if (!setlocale(LC_CTYPE, "") || strcmp(nl_langinfo(CODESET), "UTF-8") != 0)
        setlocale(LC_CTYPE, "C.UTF-8");
}

/* A lone word such as "/exit"; a path or a sentence is a prompt. */
static bool is_command(const char *line)
{
    return line[0] == '/' && line[1 + strspn(line + 1, "?abcdefghijklmnopqrstuvwxyz")] == 0;
}

static void converse(const struct cli_client *c, json_t *messages)
{
    take_utf8();
    EditLine *el = el_init("inferd", stdin, stdout, stderr);
    History *lines = history_init();
    HistEvent event;
    history(lines, &event, H_SETSIZE, HISTORY_LINES);
    el_set(el, EL_PROMPT, prompt_text);
    el_set(el, EL_EDITOR, "emacs");
    el_set(el, EL_HIST, history, lines);
    printf("Talking to %s. " HELP "\n", c->words[0]);
    struct buf turn;
    buf_init(&turn, EVENT_BYTES_MAX);
    while (read_turn(el, &turn)) {
        const char *said = buf_str(&turn).ptr;
        if (strcmp(said, "/bye") == 0)
            break;
        if (strcmp(said, "/clear") == 0) {
            json_array_clear(messages);
        } else if (is_command(said)) {
            printf(strcmp(said, "/help") == 0 || strcmp(said, "/?") == 0 ? HELP "\n" : "There is no command '%s'. " HELP "\n",
                   said);
        } else if (*said) {
            if (!strchr(said, '\n'))
                history(lines, &event, H_ENTER, said);
            if (ask(c, messages, buf_str(&turn)) == err_info(ERR_CONTEXT_LENGTH)->exit_code && json_array_size(messages))
                printf("(/clear forgets what was said before.)\n");
        }
    }
    buf_release(&turn);
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
    signal(SIGTERM, SIG_DFL); /* a download that went before has it noted only */
    cli_catch_signal(SIGINT);
    json_t *messages = json_array();
    struct buf prompt;
    buf_init(&prompt, EVENT_BYTES_MAX);
    for (size_t i = 1; i < c->n_words; i++)
        buf_printf(&prompt, "%s%s", i > 1 ? " " : "", c->words[i]);
    bool talk = c->n_words == 1 && isatty(STDIN_FILENO);
    if (c->n_words == 1 && !talk) {
        char part[4096];
        for (size_t n; (n = fread(part, 1, sizeof part, stdin)) > 0;)
            buf_append(&prompt, part, n);
    }
    if (talk) {
        converse(c, messages);
    } else if (prompt.failed) {
        fprintf(stderr, "inferd: the prompt has more than %zu bytes.\n", EVENT_BYTES_MAX);
        result = 2;
    } else if (prompt.len) {
        result = ask(c, messages, buf_str(&prompt));
    } else {
        fprintf(stderr, "inferd: the prompt is empty%s. Usage: inferd run MODEL [PROMPT]\n",
                c->n_words == 1 ? ": standard input, which is no terminal, had no text" : "");
        result = 2;
    }
    buf_release(&prompt);
    json_decref(messages);
    return result;
}

/* Short names for models; see aliases.h. */
#include "serve/aliases.h"

#include "base/log.h"

#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#define PROBLEM_BYTES 256

struct alias {
    const char *name, *target;
};

struct ends { /* of an alias, as aliases_each tells them */
    const char *own, *whole;
};

static const struct alias shipped[] = {
    {"gpt2", "openai-community/gpt2"},
    {"gpt2-medium", "openai-community/gpt2-medium"},
    {"gpt2-large", "openai-community/gpt2-large"},
    {"gpt2-xl", "openai-community/gpt2-xl"},
    {"llama3-8b", "meta-llama/Meta-Llama-3-8B-Instruct"},
    {"llama3-70b", "meta-llama/Meta-Llama-3-70B-Instruct"},
    {"llama3.1-8b", "meta-llama/Llama-3.1-8B-Instruct"},
    {"llama3.1-70b", "meta-llama/Llama-3.1-70B-Instruct"},
    {"llama3.2-1b", "meta-llama/Llama-3.2-1B-Instruct"},
    {"llama3.2-3b", "meta-llama/Llama-3.2-3B-Instruct"},
    {"llama3.3-70b", "meta-llama/Llama-3.3-70B-Instruct"},
    {"mistral-7b", "mistralai/Mistral-7B-Instruct-v0.3"},
    {"opt-125m", "facebook/opt-125m"},
    {"qwen2-0.5b", "Qwen/Qwen2-0.5B-Instruct"},
    {"qwen2-7b", "Qwen/Qwen2-7B-Instruct"},
    {"qwen2-72b", "Qwen/Qwen2-72B-Instruct"},
    {"qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct"},
    {"qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct"},
    {"qwen2.5-72b", "Qwen/Qwen2.5-72B-Instruct"},
    {"qwen3-0.6b", "Qwen/Qwen3-0.6B"},
    {"qwen3-4b", "Qwen/Qwen3-4B"},
    {"qwen3-8b", "Qwen/Qwen3-8B"},
    {"qwen3-32b", "Qwen/Qwen3-32B"},
    {"smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"},
    {"smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct"},
    {"smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct"},
    {"tinyllama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"},
};

#define N_SHIPPED (sizeof shipped / sizeof *shipped)

/* What was read of the file; strings are owned. */
struct table {
    struct alias *items;
    struct ends *ends; /* [n], of strings in `items` */
    size_t n;
    const char *shipped_ends[N_SHIPPED]; /* NULL where the file has one of this name */
    char problems[ALIAS_PROBLEMS_MAX][PROBLEM_BYTES];
    size_t n_problems; /* may be more than are kept */
};

struct stamp { /* tells whether the file is another one */
    struct timespec changed;
    off_t bytes;
    ino_t inode;
};

struct aliases {
    char *path;
    pthread_mutex_t lock; /* of `table` */
    struct table *table;
    struct stamp stamp; /* of the refreshing thread */
};

static void table_free(struct table *t)
{
    for (size_t i = 0; t && i < t->n; i++) {
        free((void *)t->items[i].name);
        free((void *)t->items[i].target);
    }
    if (t) {
        free(t->items);
        free(t->ends);
    }
    free(t);
}

static void report(struct table *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void report(struct table *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (t->n_problems < ALIAS_PROBLEMS_MAX)
        vsnprintf(t->problems[t->n_problems], PROBLEM_BYTES, format, args);
    va_end(args);
    t->n_problems++;
}

static const char *look_up_own(const struct table *t, const char *name)
{
    for (size_t i = 0; i < t->n; i++)
        if (strcmp(t->items[i].name, name) == 0)
            return t->items[i].target;
    return NULL;
}

static const char *look_up(const struct table *t, const char *name)
{
    const char *own = look_up_own(t, name);
    if (own)
        return own;
    for (size_t i = 0; i < N_SHIPPED; i++)
        if (strcmp(shipped[i].name, name) == 0)
            return shipped[i].target;
    return NULL;
}

/* The end of the chain that begins at `name`; NULL where it has none within ALIAS_CHAIN_MAX aliases, as a circle has. */
static const char *follow(const struct table *t, const char *name)
{
    for (int steps = 0; steps <= ALIAS_CHAIN_MAX; steps++) {
        const char *next = look_up(t, name);
        if (!next)
            return name;
        name = next;
    }
    return NULL;
}

/* All that lead into a circle go, not the one that was met first. */
static void remove_endless(struct table *t)
{
    bool *ends = calloc(t->n + 1, sizeof *ends);
    size_t kept = 0;
    for (size_t i = 0; ends && i < t->n; i++)
        ends[i] = follow(t, t->items[i].name) != NULL;
    for (size_t i = 0; i < t->n; i++) {
        if (ends && ends[i]) {
            t->items[kept++] = t->items[i];
            continue;
        }
        report(t, "the alias '%.80s' leads into a circle, or on over more than %d aliases", t->items[i].name, ALIAS_CHAIN_MAX);
        free((void *)t->items[i].name);
        free((void *)t->items[i].target);
    }
    t->n = kept;
    free(ends);
}

static void add(struct table *t, const char *name, json_t *value)
{
    json_t *model = json_is_object(value) ? json_object_get(value, "model") : value;
    const char *target = json_string_value(model), *key;
    json_t *unused;
    if (!target || !*target || strlen(target) >= ALIAS_BYTES_MAX || !*name || strlen(name) >= ALIAS_BYTES_MAX) {
        report(t, "the alias '%.80s' is not of the form \"name\": \"model\" or \"name\": {\"model\": \"model\"}", name);
        return;
    }
    if (json_is_object(value))
        json_object_foreach(value, key, unused) if (strcmp(key, "model") != 0)
            report(t, "the alias '%.80s' has '%.40s', which this server does not use", name, key);
    t->items[t->n] = (struct alias){strdup(name), strdup(target)};
    if (t->items[t->n].name && t->items[t->n].target)
        t->n++;
}

/* Where each leads; no circle was kept. */
static void find_ends(struct table *t)
{
    for (size_t i = 0; i < t->n; i++) {
        const char *own = t->items[i].target;
        for (const char *next; (next = look_up_own(t, own));)
            own = next;
        t->ends[i] = (struct ends){own, follow(t, own)};
    }
    for (size_t i = 0; i < N_SHIPPED; i++)
        t->shipped_ends[i] = look_up_own(t, shipped[i].name) ? NULL : follow(t, shipped[i].name);
}

/* NULL: the file is not readable as aliases, `err` says why. */
static struct table *read_table(const char *path, struct err *err)
{
    struct table *t = calloc(1, sizeof *t);
    FILE *f = t ? fopen(path, "re") : NULL;
    if (!t || (!f && errno != ENOENT)) {
        err_set(err, ERR_IO, "cannot be read: %m");
        goto failed;
    }
    if (!f) {
        find_ends(t);
        return t;
    }
    char *text = malloc(ALIASES_FILE_BYTES + 1);
    size_t n = text ? fread(text, 1, ALIASES_FILE_BYTES + 1, f) : 0;
    json_error_t at = {.text = "it is larger than 4 MiB"};
    json_t *root = n <= ALIASES_FILE_BYTES && text ? json_loadb(text, n, JSON_REJECT_DUPLICATES, &at) : NULL;
    free(text);
    fclose(f);
    if (!json_is_object(root) || json_object_size(root) > ALIASES_MAX) {
        if (root)
            err_set(err, ERR_USAGE, "is not a JSON object of at most %d aliases", ALIASES_MAX);
        else
            err_set(err, ERR_USAGE, "is not JSON: %s (line %d)", at.text, at.line);
        json_decref(root);
        goto failed;
    }
    t->items = calloc(json_object_size(root) + 1, sizeof *t->items);
    t->ends = calloc(json_object_size(root) + 1, sizeof *t->ends);
    const char *name;
    json_t *value;
    if (t->items && t->ends)
        json_object_foreach(root, name, value) add(t, name, value);
    json_decref(root);
    remove_endless(t);
    find_ends(t);
    return t;

failed:
    table_free(t);
    return NULL;
}

static struct stamp stamp_of(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return (struct stamp){0};
    return (struct stamp){st.st_mtim, st.st_size, st.st_ino};
}

static bool same_stamp(struct stamp a, struct stamp b)
{
    return a.changed.tv_sec == b.changed.tv_sec && a.changed.tv_nsec == b.changed.tv_nsec && a.bytes == b.bytes &&
           a.inode == b.inode;
}

void aliases_refresh(struct aliases *a, enum aliases_when when)
{
    struct stamp stamp = stamp_of(a->path);
    if (when == ALIASES_IF_CHANGED && same_stamp(stamp, a->stamp))
        return;
    a->stamp = stamp;
    struct err err = {0};
    struct table *t = read_table(a->path, &err);
    if (!t)
        log_event(LOG_ERROR, "aliases_ignored", "file=\"%s\" error=\"%s; the aliases stay as they were\"", a->path, err.text);
    else if (t->n || a->table->n || t->n_problems)
        log_event(LOG_INFO, "aliases_read", "file=\"%s\" n=%zu problems=%zu", a->path, t->n, t->n_problems);
    for (size_t i = 0; t && i < t->n_problems && i < ALIAS_PROBLEMS_MAX; i++)
        log_event(LOG_WARN, "alias_ignored", "file=\"%s\" problem=\"%s\"", a->path, t->problems[i]);
    pthread_mutex_lock(&a->lock);
    struct table *old = t ? a->table : NULL;
    if (t) {
        a->table = t;
    } else { /* /health tells as long as the file is like this */
        a->table->n_problems = 0;
        report(a->table, "%s %s", a->path, err.text);
    }
    pthread_mutex_unlock(&a->lock);
    table_free(old);
}

struct aliases *aliases_open(const char *data_dir, struct err *err)
{
    struct aliases *a = calloc(1, sizeof *a);
    size_t bytes = strlen(data_dir) + sizeof "/aliases.json";
    if (a && (a->path = malloc(bytes)) && (a->table = calloc(1, sizeof *a->table))) {
        snprintf(a->path, bytes, "%s/aliases.json", data_dir);
        pthread_mutex_init(&a->lock, NULL);
        find_ends(a->table);
        aliases_refresh(a, ALIASES_NOW);
        return a;
    }
    err_set(err, ERR_MEMORY, "Out of memory.");
    if (a)
        free(a->path);
    free(a);
    return NULL;
}

void aliases_close(struct aliases *a)
{
    if (!a)
        return;
    table_free(a->table);
    pthread_mutex_destroy(&a->lock);
    free(a->path);
    free(a);
}

void aliases_of_file(struct aliases *a, struct str name, char out[static ALIAS_BYTES_MAX])
{
    bool possible = name.len && name.len < ALIAS_BYTES_MAX && !memchr(name.ptr, 0, name.len);
    snprintf(out, ALIAS_BYTES_MAX, "%.*s", possible ? (int)name.len : 0, name.ptr);
    pthread_mutex_lock(&a->lock);
    const char *end = out;
    for (const char *next; (next = look_up_own(a->table, end));) /* no circle was kept */
        end = next;
    if (end != out)
        snprintf(out, ALIAS_BYTES_MAX, "%s", end);
    pthread_mutex_unlock(&a->lock);
}

enum alias_origin aliases_resolve(struct aliases *a, struct str name, char out[static ALIAS_BYTES_MAX])
{
    enum alias_origin origin = ALIAS_NONE;
    snprintf(out, ALIAS_BYTES_MAX, "%.*s", name.len < ALIAS_BYTES_MAX ? (int)name.len : 0, name.ptr);
    pthread_mutex_lock(&a->lock);
    if (look_up_own(a->table, out))
        origin = ALIAS_FILE;
    const char *end = look_up(a->table, out) ? follow(a->table, out) : NULL;
    if (end) {
        origin = origin == ALIAS_FILE ? ALIAS_FILE : ALIAS_SHIPPED;
        snprintf(out, ALIAS_BYTES_MAX, "%s", end);
    }
    pthread_mutex_unlock(&a->lock);
    return origin;
}

void aliases_each(struct aliases *a, aliases_fn fn, void *arg)
{
    pthread_mutex_lock(&a->lock);
    const struct table *t = a->table;
    for (size_t i = 0; i < t->n; i++)
        fn(arg, t->items[i].name, t->ends[i].own, t->ends[i].whole);
    for (size_t i = 0; i < N_SHIPPED; i++)
        if (t->shipped_ends[i])
            fn(arg, shipped[i].name, shipped[i].name, t->shipped_ends[i]);
    pthread_mutex_unlock(&a->lock);
}

void aliases_write_problems(struct aliases *a, struct buf *out)
{
    pthread_mutex_lock(&a->lock);
    buf_append_char(out, '[');
    for (size_t i = 0; i < a->table->n_problems && i < ALIAS_PROBLEMS_MAX; i++) {
        buf_append_str(out, i ? STR(",") : STR(""));
        buf_append_json(out, str_from(a->table->problems[i]));
    }
    buf_append_char(out, ']');
    pthread_mutex_unlock(&a->lock);
}

/* The table of options; see options.h. */
#include "base/options.h"

#include "base/nearest.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define CONFIG_LINE_BYTES 4096
#define ENV_CHANGES_MAX   2  /* fewer than of other names: it may be somebody else's */
#define HELP_COLUMN       25 /* where the help of an option begins */
#define HELP_WIDTH        100

enum option_kind {
    OPTION_TEXT,
    OPTION_COUNT,
    OPTION_SIZE,
    OPTION_SECONDS,
    OPTION_SWITCH,
    OPTION_CHOICE,
    OPTION_KEY,
    OPTION_URL
};

#define AT(member) offsetof(struct options, member)

static const struct option {
    const char *name;
    enum option_kind kind;
    size_t offset;
    const char *value; /* the default */
    double min, max;
    const char *choices; /* OPTION_CHOICE: separated by '|' */
    const char *env;     /* NULL: INFERD_NAME */
    const char *help;
} table[] = {
    {"host", OPTION_TEXT, AT(host), "127.0.0.1", 0, 0, NULL, NULL, "address to listen on"},
    {"port", OPTION_COUNT, AT(port), "8005", 0, 65535, NULL, NULL, "port to listen on; 0 takes a free one"},
    {"models-dir", OPTION_TEXT, AT(models_dir), "models", 0, 0, NULL, NULL, "folder whose models are served"},
    {"data-dir", OPTION_TEXT, AT(data_dir), "data", 0, 0, NULL, NULL, "folder below which everything is written"},
    {"config", OPTION_TEXT, AT(config), "", 0, 0, NULL, NULL, "file of 'name = value' lines"},
    {"memory", OPTION_SIZE, AT(memory), "0", 0, 1e18, NULL, NULL,
     "ceiling of the process's memory, such as 12G; 0 takes 90 % of the machine's or the cgroup's"},
    {"threads", OPTION_COUNT, AT(threads), "0", 0, 1024, NULL, NULL, "compute threads; 0 takes all that are usable"},
    {"isa", OPTION_CHOICE, AT(isa), "auto", 0, 0, "auto|amx|vnni|avx512|avx2|ref", NULL,
     "best instruction set that may be used"},
    {"max-stall-ms", OPTION_COUNT, AT(max_stall_ms), "200", 1, 60000, NULL, NULL,
     "longest that a running stream waits for somebody else's prompt"},
    {"max-queue", OPTION_COUNT, AT(max_queue), "512", 0, 1000000, NULL, NULL, "requests that may wait; more get 429"},
    {"max-batch-tokens", OPTION_COUNT, AT(max_batch_tokens), "512", 16, 8192, NULL, NULL, "rows of one engine step"},
    {"max-streams", OPTION_COUNT, AT(max_streams), "128", 1, 4096, NULL, NULL, "sequences that run at once"},
    {"max-context", OPTION_COUNT, AT(max_context), "0", 0, 16777216, NULL, NULL,
     "tokens of prompt and output; 0 takes the model's own"},
    {"kv-type", OPTION_CHOICE, AT(kv_type), "auto", 0, 0, "auto|f32|int24|int16|int8", NULL,
     "type of keys and values; auto is int16 with the profiles int8 and int4, else int24, as exact as f32; docs/numerics.md has errors"},
    {"profile", OPTION_CHOICE, AT(profile), "auto", 0, 0, "auto|fp16|int8|int4|native", NULL,
     "how weights are held: fp16 exactly; native as a quantized file holds them; int8 and int4 (nf4) quantized while loading, a quantized file's codes as they are, and activations in 8 bits: faster, less exact; auto is native or fp16, or int4 where that is too large"},
    {"prefix-cache", OPTION_SWITCH, AT(prefix_cache), "1", 0, 1, NULL, NULL, "share equal prefixes of prompts"},
    {"timeout", OPTION_SECONDS, AT(timeout), "120", 0.001, 86400, NULL, NULL, "seconds that a request may take"},
    {"drain-timeout", OPTION_COUNT, AT(drain_timeout), "30", 0, 86400, NULL, NULL,
     "seconds that running streams have after SIGTERM"},
    {"max-body", OPTION_SIZE, AT(max_body), "16M", 1024, 1 << 30, NULL, NULL, "largest request body"},
    {"max-connections", OPTION_COUNT, AT(max_connections), "1024", 1, 65536, NULL, NULL, "connections at once"},
    {"cache-bytes", OPTION_SIZE, AT(cache_bytes), "64G", 0, 1e18, NULL, NULL,
     "bytes of packed weights kept below the data folder, so that models load fast again; 0 keeps none"},
    {"request-timeout", OPTION_COUNT, AT(request_timeout), "60", 1, 3600, NULL, NULL,
     "seconds that a request's head and body may take to arrive"},
    {"max-cache-models", OPTION_COUNT, AT(max_cache_models), "0", 0, 256, NULL, "MAX_CACHE_MODELS",
     "models that stay loaded; 0 as many as fit"},
    {"preload-models", OPTION_TEXT, AT(preload), "", 0, 0, NULL, "PRELOAD_MODELS",
     "models loaded in the background at start, separated by commas"},
    {"keep-alive", OPTION_SECONDS, AT(keep_alive), "300", -1, 1e9, NULL, NULL,
     "seconds that an idle model stays loaded; -1 for ever"},
    {"store", OPTION_URL, AT(store), "sqlite", 0, 0, NULL, NULL,
     "where jobs and sessions are kept: sqlite (in the data folder), sqlite:PATH, memory, or redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]"},
    {"session-ttl", OPTION_SECONDS, AT(session_ttl), "3600", 0.001, 1e9, NULL, NULL,
     "seconds without a request after which a session is forgotten"},
    {"max-downloads", OPTION_COUNT, AT(max_downloads), "2", 1, 64, NULL, NULL, "models downloaded at once; more wait"},
    {"download-rate", OPTION_SIZE, AT(download_rate), "0", 0, 1e15, NULL, NULL,
     "bytes per second of all downloads together, such as 20M; 0 no cap"},
    {"download-connections", OPTION_COUNT, AT(download_connections), "8", 1, 64, NULL, NULL, "connections of one download"},
    {"download-files", OPTION_COUNT, AT(download_files), "4", 1, 64, NULL, NULL, "files that a download fetches at once"},
    {"download-part", OPTION_SIZE, AT(download_part), "4M", 65536, 1e15, NULL, NULL,
     "smallest range of a file that gets a connection of its own"},
    {"download-attempts", OPTION_COUNT, AT(download_attempts), "6", 1, 100, NULL, NULL,
     "failures in a row, without a byte between them, that end a download"},
    {"download-stall-ms", OPTION_COUNT, AT(download_stall_ms), "20000", 50, 600000, NULL, NULL,
     "a connection without a byte for so long is made anew"},
    {"log-level", OPTION_CHOICE, AT(log_level), "info", 0, 0, "error|warn|info|debug", NULL, "what the log tells"},
    {"split-special-tokens", OPTION_SWITCH, AT(split_special_tokens), "0", 0, 1, NULL, NULL,
     "special tokens written in chat messages are text"},
    {"log-prompts", OPTION_SWITCH, AT(log_prompts), "0", 0, 1, NULL, NULL, "write the text of prompts into the log"},
    {"cors-origin", OPTION_TEXT, AT(cors_origin), "", 0, 0, NULL, NULL,
     "origin whose web pages may call the server (https://chat.example.org), or * for all; empty: none but its own"},
    {"api-key", OPTION_KEY, AT(api_keys), "", 0, 0, NULL, NULL, "key that requests must have; may be given several times"},
    {"print-config", OPTION_SWITCH, AT(print_config), "0", 0, 1, NULL, NULL,
     "print every option, its value and where it is from, and exit"},
};

#define N_OPTIONS (sizeof table / sizeof *table)

static const char *const origin_names[] = {"default", "file", "env", "flag"};

bool options_parse_size(const char *text, uint64_t *out)
{
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    if (end == text || errno || !(v >= 0) || v > 1e18)
        return false;
    const char *units = "kKmMgGtT", *u = *end ? strchr(units, *end) : NULL;
    if (*end && (!u || (end[1] && strcmp(end + 1, "B") != 0 && strcmp(end + 1, "iB") != 0)))
        return false;
    v *= u ? pow(1024, (double)((u - units) / 2 + 1)) : 1;
    *out = (uint64_t)v;
    return v <= 1e18;
}

static bool refuse(const struct option *o, const char *where, const char *value, struct err *err)
{
    if (o->kind == OPTION_CHOICE)
        return err_set(err, ERR_USAGE, "%s: %s is '%s'; possible are %s.", where, o->name, value, o->choices);
    if (o->kind == OPTION_KEY && !*value)
        return err_set(err, ERR_USAGE, "%s: %s is empty, and so would let everybody in; give a key, or leave it out.", where,
                       o->name);
    if (o->kind == OPTION_KEY)
        return err_set(err, ERR_USAGE, "%s: %s is given more than %d times.", where, o->name, OPTIONS_KEYS_MAX);
    return err_set(err, ERR_USAGE, "%s: %s is '%s'; it must be a number from %.15g to %.15g%s.", where, o->name, value, o->min,
                   o->max, o->kind == OPTION_SIZE ? " (bytes, or with K, M, G)" : "");
}

static bool is_choice(const char *choices, const char *value)
{
    size_t n = strlen(value);
    for (const char *p = choices; *p; p += strcspn(p, "|"), p += *p == '|')
        if (strcspn(p, "|") == n && strncmp(p, value, n) == 0)
            return true;
    return false;
}

/* True when the value was understood and is in range. */
static bool store(struct options *to, const struct option *o, const char *value)
{
    void *at = (char *)to + o->offset;
    char *end;
    errno = 0;
    switch (o->kind) {
    case OPTION_CHOICE:
        if (!is_choice(o->choices, value))
            return false;
        /* fall through */
    case OPTION_TEXT:
    case OPTION_URL:
        free(*(char **)at); /* of a source that this one goes before */
        *(char **)at = strdup(value);
        return true;
    case OPTION_KEY:
        if (!*value || to->n_api_keys == OPTIONS_KEYS_MAX)
            return false;
        to->api_keys[to->n_api_keys++] = strdup(value);
        return true;
    case OPTION_SIZE:
        return options_parse_size(value, at) && (double)*(uint64_t *)at >= o->min && (double)*(uint64_t *)at <= o->max;
    case OPTION_SECONDS:
        *(double *)at = strtod(value, &end);
        return *value && !*end && *(double *)at >= o->min && *(double *)at <= o->max;
    case OPTION_SWITCH:
        if (is_choice("true|on|yes|1", value) || is_choice("false|off|no|0", value)) {
            *(uint64_t *)at = (uint64_t)is_choice("true|on|yes|1", value);
            return true;
        }
        return false;
    default:
        *(uint64_t *)at = strtoull(value, &end, 10);
        return *value >= '0' && *value <= '9' && !*end && !errno && (double)*(uint64_t *)at >= o->min &&
               (double)*(uint64_t *)at <= o->max;
    }
}

static bool set(struct options *o, size_t row, const char *value, enum option_origin origin, const char *where, struct err *err)
{
    const struct option *opt = &table[row];
    if (opt->kind == OPTION_KEY && origin != ORIGIN_DEFAULT && o->origins[row] != origin)
        while (o->n_api_keys) /* a later source replaces, the same one adds */
            free((char *)o->api_keys[--o->n_api_keys]);
    if (!store(o, opt, value))
        return refuse(opt, where, value, err);
    o->origins[row] = origin;
    return true;
}

static bool find(struct str name, const char *where, size_t *row, struct err *err)
{
    struct nearest near = nearest_begin(name, NEAREST_CHANGES_MAX);
    for (size_t i = 0; i < N_OPTIONS; i++)
        if (nearest_try(&near, table[i].name))
            *row = i;
    if (near.name && near.changes == 0)
        return true;
    if (near.name)
        return err_set(err, ERR_USAGE, "%s: there is no option '%.*s'. Did you mean '%s'?", where, (int)name.len, name.ptr,
                       near.name);
    return err_set(err, ERR_USAGE, "%s: there is no option '%.*s'. See inferd serve --help.", where, (int)name.len, name.ptr);
}

static struct str trim(char *from, char *to)
{
    while (from < to && strchr(" \t\r\n", *from))
        from++;
    while (to > from && strchr(" \t\r\n", to[-1]))
        to--;
    *to = 0;
    return (struct str){from, (size_t)(to - from)};
}

/* A '#' begins a comment at the start of a line and after a blank; elsewhere it may be part of a key or a path. */
static char *end_of_text(char *line)
{
    char *p = line;
    while (*p && !(*p == '#' && (p == line || p[-1] == ' ' || p[-1] == '\t')))
        p++;
    return p;
}

/* The value behind '=', NUL-ended: up to a comment, or what two quotes hold. NULL: something else stands behind these. */
static char *read_value(char *from)
{
    while (*from == ' ' || *from == '\t')
        from++;
    char *end = from[0] == '"' ? strchr(from + 1, '"') : NULL;
    if (!end)
        return (char *)trim(from, end_of_text(from)).ptr;
    bool alone = trim(end + 1, end_of_text(end + 1)).len == 0;
    *end = 0;
    return alone ? from + 1 : NULL;
}

static bool load_file(struct options *o, const char *path, struct err *err)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return err_set(err, ERR_USAGE, "--config: cannot read '%s': %m.", path);
    char line[CONFIG_LINE_BYTES], where[CONFIG_LINE_BYTES];
    bool ok = true;
    errno = 0;
    for (size_t number = 1; ok && fgets(line, sizeof line, f); number++) {
        snprintf(where, sizeof where, "%.3000s:%zu", path, number);
        char *end = end_of_text(line), *equals = memchr(line, '=', (size_t)(end - line));
        char *value = equals ? read_value(equals + 1) : NULL;
        struct str name = trim(line, equals ? equals : end);
        size_t row;
        if (!equals && name.len == 0)
            continue;
        ok = equals || err_set(err, ERR_USAGE, "%s: '%.200s' is not of the form 'name = value'.", where, name.ptr);
        ok = ok && find(name, where, &row, err);
        if (ok && !value)
            ok = err_set(err, ERR_USAGE, "%s: something stands behind the quoted value of %s; only a comment may.", where,
                         name.ptr);
        ok = ok && set(o, row, value, ORIGIN_FILE, where, err);
    }
    if (ok && ferror(f))
        ok = err_set(err, ERR_USAGE, "--config: cannot read '%s': %m.", path);
    fclose(f);
    return ok;
}

static void env_name(const struct option *o, char *out, size_t size)
{
    if (o->env) {
        snprintf(out, size, "%s", o->env);
        return;
    }
    snprintf(out, size, "INFERD_%s", o->name);
    for (char *p = out; *p; p++)
        *p = *p == '-' ? '_' : *p >= 'a' && *p <= 'z' ? (char)(*p - 'a' + 'A') : *p;
}

/* Names that begin with INFERD_ may be somebody else's; one that is nearly an option's is a slip. */
static bool check_environment(char **environment, struct err *err)
{
    for (char **e = environment; e && *e; e++) {
        struct str name = {*e, strcspn(*e, "=")};
        if (!str_has_prefix(name, STR("INFERD_")))
            continue;
        struct nearest near = nearest_begin(name, ENV_CHANGES_MAX);
        char known[64];
        size_t best = 0;
        for (size_t i = 0; i < N_OPTIONS; i++) {
            env_name(&table[i], known, sizeof known);
            if (nearest_try(&near, known))
                best = i;
        }
        env_name(&table[best], known, sizeof known);
        if (near.name && near.changes > 0)
            return err_set(err, ERR_USAGE, "environment: there is no option '%.*s'. Did you mean '%s'?", (int)name.len,
                           name.ptr, known);
    }
    return true;
}

struct flag {
    size_t row;
    const char *value, *where;
};

/* The flag at argv[*i]; moves *i to the last word it took. */
static bool read_flag(int argc, char **argv, int *i, struct flag *out, struct err *err)
{
    const char *word = argv[*i];
    if (strncmp(word, "--", 2) != 0)
        return err_set(err, ERR_USAGE, "'%s' is not an option; options begin with '--'. See inferd serve --help.", word);
    const char *equals = strchr(word, '=');
    struct str name = {word + 2, equals ? (size_t)(equals - word - 2) : strlen(word) - 2};
    if (!find(name, "command line", &out->row, err))
        return false;
    out->where = "command line";
    if (equals) {
        out->value = equals + 1;
    } else if (table[out->row].kind == OPTION_SWITCH && (*i + 1 >= argc || strncmp(argv[*i + 1], "--", 2) == 0)) {
        out->value = "1";
    } else if (*i + 1 < argc) {
        out->value = argv[++*i];
    } else {
        return err_set(err, ERR_USAGE, "command line: %s needs a value.", word);
    }
    return true;
}

bool options_load(struct options *o, int argc, char **argv, int first, struct err *err)
{
    memset(o, 0, sizeof *o);
    for (size_t i = 0; i < N_OPTIONS; i++)
        if (table[i].kind != OPTION_KEY && !set(o, i, table[i].value, ORIGIN_DEFAULT, "default", err))
            return false;
    const char *config = getenv("INFERD_CONFIG");
    struct flag flag;
    for (int i = first; i < argc; i++) {
        if (!read_flag(argc, argv, &i, &flag, err))
            return false;
        if (strcmp(table[flag.row].name, "config") == 0)
            config = flag.value;
    }
    if ((config && *config && !load_file(o, config, err)) || !check_environment(environ, err))
        return false;
    for (size_t i = 0; i < N_OPTIONS; i++) {
        char name[64];
        env_name(&table[i], name, sizeof name);
        const char *value = getenv(name);
        if (value && *value && !set(o, i, value, ORIGIN_ENV, name, err))
            return false;
    }
    for (int i = first; i < argc; i++)
        if (!read_flag(argc, argv, &i, &flag, err) || !set(o, flag.row, flag.value, ORIGIN_FLAG, flag.where, err))
            return false;
    return true;
}

/* Without the password. */
static void write_url(const char *url, struct buf *out)
{
    const char *from = strstr(url, "://"), *at = strrchr(url, '@');
    const char *colon = from && at ? memchr(from + 3, ':', (size_t)(at - from - 3)) : NULL;
    if (colon)
        buf_printf(out, "%.*s:***%s", (int)(colon - url), url, at);
    else
        buf_printf(out, "%s", url);
}

static void write_value(const struct options *o, const struct option *opt, struct buf *out)
{
    const void *at = (const char *)o + opt->offset;
    if (opt->kind == OPTION_TEXT || opt->kind == OPTION_CHOICE)
        buf_printf(out, "%s", **(const char *const *)at ? *(const char *const *)at : "\"\"");
    else if (opt->kind == OPTION_URL)
        write_url(*(const char *const *)at, out);
    else if (opt->kind == OPTION_KEY)
        buf_printf(out, "%s", o->n_api_keys ? "(set)" : "\"\"");
    else if (opt->kind == OPTION_SECONDS)
        buf_printf(out, "%g", *(const double *)at);
    else
        buf_printf(out, "%llu", (unsigned long long)*(const uint64_t *)at);
}

void options_print(const struct options *o, struct buf *out)
{
    for (size_t i = 0; i < N_OPTIONS; i++) {
        buf_printf(out, "%s = ", table[i].name);
        write_value(o, &table[i], out);
        buf_printf(out, "  # %s\n", origin_names[o->origins[i]]);
    }
}

/* What is allowed, in words; "" for any text. */
static void write_allowed(const struct option *o, const char *between, char *out, size_t size)
{
    *out = 0;
    if (o->choices) {
        size_t n = 0;
        for (const char *p = o->choices; *p && n < size; p++)
            n += (size_t)snprintf(out + n, size - n, *p == '|' ? "%s" : "%.1s", *p == '|' ? between : p);
    } else if (o->kind == OPTION_SWITCH) {
        snprintf(out, size, "0 or 1");
    } else if (o->max > o->min) {
        snprintf(out, size, "%.15g to %.15g", o->min, o->max);
    }
}

/* Words of `text` from column HELP_COLUMN on, in lines of HELP_WIDTH; the first line is begun already. */
static void wrap(const char *text, struct buf *out)
{
    size_t column = HELP_COLUMN;
    for (size_t n; *text; text += n, text += *text == ' ') {
        n = strcspn(text, " ");
        if (column > HELP_COLUMN && column + 1 + n > HELP_WIDTH) {
            buf_printf(out, "\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
        }
        buf_printf(out, "%s%.*s", column > HELP_COLUMN ? " " : "", (int)n, text);
        column += n + (column > HELP_COLUMN);
    }
    buf_append_str(out, STR("\n"));
}

void options_help(struct buf *out)
{
    for (size_t i = 0; i < N_OPTIONS; i++) {
        char allowed[128], text[640];
        write_allowed(&table[i], ", ", allowed, sizeof allowed);
        bool given = *table[i].value != 0;
        snprintf(text, sizeof text, "%s%s%s%s%s%s%s", table[i].help, *allowed || given ? " (" : "", allowed,
                 *allowed && given ? "; " : "", given ? "default " : "", table[i].value, *allowed || given ? ")" : "");
        buf_printf(out, "  --%-*s", HELP_COLUMN - 4, table[i].name);
        wrap(text, out);
    }
    buf_printf(out, "\nAn option --some-name is also INFERD_SOME_NAME in the environment (but PRELOAD_MODELS and\n"
                    "MAX_CACHE_MODELS), and a line some-name = value in the file that --config names.\n");
}

void options_markdown(struct buf *out)
{
    buf_printf(out, "# Configuration\n\nGenerated by `inferd config-docs`. A flag wins over the environment, the environment "
                    "over the file (`--config`, lines `name = value`), the file over the default.\n\n"
                    "| option | environment | default | allowed | what for |\n|---|---|---|---|---|\n");
    for (size_t i = 0; i < N_OPTIONS; i++) {
        char env[64], allowed[128];
        env_name(&table[i], env, sizeof env);
        write_allowed(&table[i], "/", allowed, sizeof allowed);
        buf_printf(out, "| `--%s` | `%s` | `%s` | %s | %s |\n", table[i].name, env, table[i].value, *allowed ? allowed : "text",
                   table[i].help);
    }
}

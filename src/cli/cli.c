/* The verbs; see cli.h. */
#include "cli/cli.h"

#include "base/log.h"
#include "base/nearest.h"
#include "base/options.h"
#include "hub/hub.h"
#include "serve/serve.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

static const char exit_codes[] =
    "Exit status: 0 done, 1 failed, 2 wrong usage or a request that makes no sense, 3 not found, 4 no right to it, 5 not now\n"
    "(no server, busy, timed out), 6 a damaged or unsupported model, 7 not enough memory, 130 interrupted.\n";
static const char client_options[] = "  --host ADDRESS    of the server (or INFERD_HOST; 127.0.0.1)\n"
                                     "  --port N          of the server (or INFERD_PORT; 8005)\n"
                                     "  --api-key KEY     where it asks for one (or INFERD_API_KEY)\n";
static const char json_option[] = "  --json            as JSON\n";

static int serve(int argc, char **argv);
static int version(int argc, char **argv);
static int config_docs(int argc, char **argv);

static const struct verb {
    const char *name, *words, *help;
    int (*run)(const struct cli_client *c);
    int (*own)(int argc, char **argv); /* verbs that talk to no server read their words themselves */
    const char *more;
    size_t words_max; /* of run */
} verbs[] = {
    {"serve", "[OPTIONS]", "start the server", NULL, serve, NULL, 0},
    {"run", "MODEL [PROMPT]", "talk to a model of a running server", cli_run, NULL,
     "Without a prompt and on a terminal: a conversation with line editing and history; ctrl-C stops an answer, ctrl-D or\n"
     "/bye ends, /clear forgets what was said, \"\"\" begins and ends a text of several lines. Without a prompt and where\n"
     "standard input is no terminal, the prompt is read from it; beside a prompt it is not read.\n",
     SIZE_MAX},
    {"pull", "MODEL", "fetch org/name[:QUANT][@REVISION] from the hub", cli_pull, NULL,
     "A server that runs fetches it, as a job; without one the verb fetches by itself. What came is kept when it is stopped.\n",
     1},
    {"jobs", "[[cancel] ID]", "downloads of a running server", cli_jobs, NULL,
     "Without an ID all that are kept, newest first.\n", 2},
    {"list", "", "models that the server has", cli_list, NULL,
     "Without a server: those on this disk, which one that is started here would have.\n", 0},
    {"ps", "", "models that are loaded", cli_ps, NULL, NULL, 0},
    {"show", "MODEL", "what a model is", cli_show, NULL, NULL, 1},
    {"plan", "MODEL [OPTIONS]", "what loading it would take; needs no server", NULL, cli_plan,
     "Takes the options of inferd serve (--memory, --profile, --max-context, --models-dir ...) and says whether the model\n"
     "fits. MODEL may also be the path of a folder or of a .gguf file. Exit status 7: it does not fit.\n",
     0},
    {"bench", "MODEL [OPTIONS]", "how fast a model runs here; needs no server", NULL, cli_bench,
     "MODEL is a path, or a name in --models-dir (models).\n"
     "  --profile         also where the time of a step goes\n"
     "  --json            as JSON\n"
     "  --weights NAME    fp16, int8, int4 or native, as --profile of inferd serve\n"
     "  --kv-type NAME, --threads N, --isa NAME, --models-dir DIR: as for inferd serve\n",
     0},
    {"stop", "MODEL", "unload it once it is idle", cli_stop, NULL, NULL, 1},
    {"verify", "MODEL [OPTIONS]", "compare a model with its checksums, and its answers with earlier ones", NULL, cli_verify,
     "Reads every file of a fetched model, then loads the model and lets it answer fixed tokens: the logits must be finite and,\n"
     "to the bit, those that were kept in DATA_DIR/golden the first time. Takes the options of inferd serve (--data-dir,\n"
     "--models-dir, --profile ...); needs no server. MODEL may also be the path of a folder or of a .gguf file. Exit status 6\n"
     "also where the files are whole and inferd cannot load them; the message tells.\n",
     0},
    {"rm", "MODEL", "remove a fetched model from the disk", cli_rm, NULL,
     "A server that runs unloads it first, and refuses while it is in use or being fetched.\n", 1},
    {"config-docs", "", "the options of serve as Markdown", NULL, config_docs, NULL, 0},
    {"version", "", "which inferd this is", NULL, version, NULL, 0},
};

#define N_VERBS (sizeof verbs / sizeof *verbs)

static void print_usage(void)
{
    puts("inferd serves language models over HTTP.\n");
    for (size_t i = 0; i < N_VERBS; i++)
        printf("  inferd %-11s %-16s %s\n", verbs[i].name, verbs[i].words, verbs[i].help);
    printf("\nEach has --help. Verbs that talk to a server take:\n%s\n%s", client_options, exit_codes);
}

static void print_help(const struct verb *v)
{
    printf("inferd %s%s%s\n%s\n%s", v->name, *v->words ? " " : "", v->words, v->help, v->more ? "\n" : "");
    fputs(v->more ? v->more : "", stdout);
    if (v->run)
        printf("\n%s%s", client_options, cli_takes_json(v->name) ? json_option : "");
    if (v->own == serve || v->own == cli_plan || v->own == cli_verify) {
        struct buf out;
        buf_init(&out, 1 << 20);
        options_help(&out);
        printf("\n%s", buf_str(&out).ptr);
        buf_release(&out);
    }
    printf("\n%s", exit_codes);
}

static void print_buf(struct buf *out)
{
    fwrite(buf_str(out).ptr, 1, out->len, stdout);
    buf_release(out);
}

void cli_serve_config(const struct options *o, struct serve_config *c)
{
    *c = (struct serve_config){.host = cli_host(o->host),
                               .port = (unsigned)o->port,
                               .models_dir = o->models_dir,
                               .data_dir = o->data_dir,
                               .memory_bytes = o->memory,
                               .threads = (unsigned)o->threads,
                               .isa = o->isa,
                               .stall_ms_max = (unsigned)o->max_stall_ms,
                               .queue_max = o->max_queue,
                               .rows_max = o->max_batch_tokens < o->max_streams ? o->max_streams : o->max_batch_tokens,
                               .streams_max = o->max_streams,
                               .context_max = o->max_context,
                               .profile = profile_from_name(o->profile, strlen(o->profile)),
                               .prefix_cache = (int)o->prefix_cache,
                               .timeout_s = o->timeout,
                               .keep_alive_s = o->keep_alive,
                               .drain_s = (unsigned)o->drain_timeout,
                               .body_bytes_max = o->max_body,
                               .connections_max = (unsigned)o->max_connections,
                               .models_max = o->max_cache_models,
                               .request_timeout_s = (unsigned)o->request_timeout,
                               .cache_bytes = o->cache_bytes,
                               .preload = o->preload,
                               .log_prompts = (int)o->log_prompts,
                               .split_special_tokens = (int)o->split_special_tokens,
                               .cors_origin = o->cors_origin,
                               .store = o->store,
                               .session_ttl_s = o->session_ttl,
                               .downloads_max = o->max_downloads,
                               .api_keys = o->api_keys,
                               .n_api_keys = o->n_api_keys};
    kv_type_from_name(o->kv_type, &c->kv_type);
}

static int serve(int argc, char **argv)
{
    struct buf out;
    buf_init(&out, 1 << 20);
    static struct options o;
    struct err err = {0};
    if (!options_load(&o, argc, argv, 2, &err))
        return cli_fail(&err);
    if (o.print_config) {
        options_print(&o, &out);
        print_buf(&out);
        return 0;
    }
    enum log_level level = LOG_INFO;
    log_level_parse(o.log_level, &level);
    log_set_level(level);
    static struct hub_config hub;
    if (!cli_hub_config(&o, &hub, &err))
        return cli_fail(&err);
    struct serve_config c;
    cli_serve_config(&o, &c);
    c.hub = &hub;
    return serve_run(&c);
}

static int version(int argc, char **argv)
{
    puts("inferd " INFERD_VERSION);
    return 0;
}

static int config_docs(int argc, char **argv)
{
    struct buf out;
    buf_init(&out, 1 << 20);
    options_markdown(&out);
    print_buf(&out);
    return 0;
}

static const struct verb *find_verb(const char *name)
{
    for (size_t i = 0; i < N_VERBS; i++)
        if (strcmp(name, verbs[i].name) == 0)
            return &verbs[i];
    return NULL;
}

static int unknown_verb(const char *name)
{
    struct nearest near = nearest_begin(str_from(name), NEAREST_CHANGES_MAX);
    for (size_t i = 0; i < N_VERBS; i++)
        nearest_try(&near, verbs[i].name);
    fprintf(stderr, "inferd: there is no verb '%s'.%s%s%s See inferd --help.\n", name, near.name ? " Did you mean '" : "",
            near.name ? near.name : "", near.name ? "'?" : "");
    return 2;
}

static bool is_help(const char *word)
{
    return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0;
}

static int run_client(const struct verb *v, int argc, char **argv)
{
    struct cli_client c;
    struct err err = {0};
    bool ok = cli_client_read(&c, argc, argv, &err);
    if (ok && c.n_words > v->words_max)
        ok = err_set(&err, ERR_USAGE, "'%s' is too much. Usage: inferd %s%s%s", c.words[v->words_max], v->name,
                     *v->words ? " " : "", v->words);
    return ok ? v->run(&c) : cli_fail(&err);
}

static int run_verb(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "--help";
    if (is_help(name) || strcmp(name, "help") == 0) {
        const struct verb *v = argc > 2 ? find_verb(argv[2]) : NULL;
        if (v)
            print_help(v);
        else if (argc > 2)
            return unknown_verb(argv[2]);
        else
            print_usage();
        return argc > 1 ? 0 : 2;
    }
    const struct verb *v = find_verb(strcmp(name, "--version") == 0 || strcmp(name, "-v") == 0 ? "version" : name);
    if (!v)
        return unknown_verb(name);
    for (int i = 2; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (is_help(argv[i])) {
            print_help(v);
            return 0;
        }
    return v->own ? v->own(argc, argv) : run_client(v, argc, argv);
}

/* Of the three that are closed: else the next file that is opened would be one of them, and what is printed would be written
 * into it. Writing to these fails as it does to closed ones. */
static void hold_standard_files(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDONLY);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        close(fd);
}

int cli_main(int argc, char **argv)
{
    hold_standard_files();
    int status = run_verb(argc, argv);
    bool serves = argc > 1 && strcmp(argv[1], "serve") == 0; /* what it prints at start is no result */
    if (serves || (fflush(stdout) == 0 && !ferror(stdout)))
        return status;
    fprintf(stderr, "inferd: what was written to standard output did not all arrive: %m\n");
    return status ? status : 1;
}

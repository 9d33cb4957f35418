/* The verbs; see cli.h. */
#include "cli/cli.h"

#include "base/log.h"
#include "base/options.h"
#include "hub/hub.h"
#include "serve/serve.h"

#include <stdio.h>

static const char usage[] =
    "inferd serves language models over HTTP.\n\n"
    "  inferd serve [OPTIONS]        start the server (inferd serve --help lists the options)\n"
    "  inferd run MODEL [PROMPT]     talk to a model of a running server\n"
    "  inferd pull MODEL             fetch org/name[:QUANT][@REVISION] from the hub\n"
    "  inferd list                   models that the server has\n"
    "  inferd ps                     models that are loaded\n"
    "  inferd show MODEL             what a model is\n"
    "  inferd plan MODEL             what loading it would take\n"
    "  inferd stop MODEL             unload it once it is idle\n"
    "  inferd verify MODEL           compare a fetched model with its checksums\n"
    "  inferd rm MODEL               remove a fetched model from the disk\n"
    "  inferd config-docs            the options as Markdown\n"
    "  inferd version\n\n"
    "Verbs that talk to a server take --host, --port and --api-key, or INFERD_HOST, INFERD_PORT, INFERD_API_KEY.\n"
    "Exit status: 0 done, 1 failed, 2 wrong usage.\n";

static int fail_usage(const struct err *err)
{
    fprintf(stderr, "inferd: %s\n", err->text);
    return 2;
}

static void print_buf(struct buf *out)
{
    fwrite(buf_str(out).ptr, 1, out->len, stdout);
    buf_release(out);
}

static int serve(int argc, char **argv)
{
    struct buf out;
    buf_init(&out, 1 << 20);
    for (int i = 2; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            buf_printf(&out, "inferd serve [OPTIONS]\n\n");
            options_help(&out);
            print_buf(&out);
            return 0;
        }
    static struct options o;
    struct err err = {0};
    if (!options_load(&o, argc, argv, 2, &err))
        return fail_usage(&err);
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
        return fail_usage(&err);
    struct serve_config c = {
        .host = o.host, .port = (unsigned)o.port, .models_dir = o.models_dir, .data_dir = o.data_dir,
        .memory_bytes = o.memory, .threads = (unsigned)o.threads, .isa = o.isa, .stall_ms_max = (unsigned)o.max_stall_ms,
        .queue_max = o.max_queue, .rows_max = o.max_batch_tokens < o.max_streams ? o.max_streams : o.max_batch_tokens,
        .streams_max = o.max_streams, .context_max = o.max_context,
        .kv_type = strcmp(o.kv_type, "f16") == 0 ? KV_F16 : KV_F32,
        .profile = profile_from_name(o.profile, strlen(o.profile)), .prefix_cache = (int)o.prefix_cache,
        .timeout_s = o.timeout, .keep_alive_s = o.keep_alive, .drain_s = (unsigned)o.drain_timeout,
        .body_bytes_max = o.max_body, .connections_max = (unsigned)o.max_connections, .models_max = o.max_cache_models,
        .cache_bytes = o.cache_bytes, .preload = o.preload, .log_prompts = (int)o.log_prompts, .cors_origin = o.cors_origin, .store = o.store,
        .session_ttl_s = o.session_ttl, .downloads_max = o.max_downloads, .hub = &hub, .api_keys = o.api_keys, .n_api_keys = o.n_api_keys};
    return serve_run(&c);
}

static const struct verb {
    const char *name;
    int (*run)(const struct cli_client *c);
} verbs[] = {{"run", cli_run}, {"list", cli_list}, {"ps", cli_ps}, {"show", cli_show}, {"stop", cli_stop}, {"plan", cli_plan}, {"pull", cli_pull},
             {"rm", cli_rm}, {"verify", cli_verify}};

int cli_main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "--help";
    struct err err = {0};
    for (int i = 1; i < argc && strcmp(verb, "serve") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            verb = "--help";
    if (strcmp(verb, "--help") == 0 || strcmp(verb, "help") == 0) {
        fputs(usage, stdout);
        return argc > 1 ? 0 : 2;
    }
    if (strcmp(verb, "serve") == 0)
        return serve(argc, argv);
    if (strcmp(verb, "version") == 0 || strcmp(verb, "--version") == 0) {
        puts("inferd 0.1.0");
        return 0;
    }
    if (strcmp(verb, "config-docs") == 0) {
        struct buf out;
        buf_init(&out, 1 << 20);
        options_markdown(&out);
        print_buf(&out);
        return 0;
    }
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
        if (strcmp(verb, verbs[i].name) == 0) {
            struct cli_client c;
            return cli_client_read(&c, argc, argv, &err) ? verbs[i].run(&c) : fail_usage(&err);
        }
    err_set(&err, ERR_USAGE, "There is no verb '%s'. See inferd --help.", verb);
    return fail_usage(&err);
}

/* inferd plan MODEL [OPTIONS of serve]: what a load takes and whether it fits, out of the files alone. */
#include "cli/cli.h"

#include "base/options.h"
#include "serve/names.h"
#include "serve/plan.h"

#include <stdio.h>

static void line(const char *what, uint64_t bytes)
{
    printf("  %-34s %12.1f MiB\n", what, (double)bytes / (1 << 20));
}

static void print_plan(const char *id, const struct load_plan *p, const struct memory_plan *m, uint64_t pages)
{
    const struct model_info *i = &p->plan.info;
    printf("%s: %s, %.1f million parameters, profile %s, context %zu\n\n", id, i->architecture, (double)i->n_parameters / 1e6,
           profile_name(p->plan.profile), p->context_max);
    line("weights", p->plan.weight_bytes);
    line("scratch of a step", p->plan.scratch_bytes);
    line("tokenizer, tables, while loading", p->fixed_bytes - p->plan.weight_bytes - p->plan.scratch_bytes);
    line("KV pages, the fewest", p->pages_min * p->plan.kv_page_bytes);
    line("needed at least", load_plan_bytes_min(p));
    printf("\n");
    line("--memory", m->total);
    line("process", m->process);
    line("connections", m->connections);
    line("requests", m->requests);
    line("left for models", m->models);
    if (pages)
        printf("\nIt fits, with %llu KV pages: %llu tokens of all requests together.\n", (unsigned long long)pages,
               (unsigned long long)pages * KV_PAGE_TOKENS);
}

static bool find(const struct serve_config *config, const char *name, struct catalog_entry *out, struct err *err)
{
    struct names *names = names_open(config->models_dir, config->data_dir, err);
    bool ok = names && (names_find(names, str_from(name), out, err) || catalog_find(NULL, str_from(name), out, NULL));
    names_close(names);
    return ok;
}

int cli_plan(int argc, char **argv)
{
    struct err err = {0};
    static struct options o;
    if (argc < 3 || argv[2][0] == '-') {
        fprintf(stderr, "inferd: usage: inferd plan MODEL [OPTIONS of serve]\n");
        return 2;
    }
    bool ok = options_load(&o, argc, argv, 3, &err);
    struct serve_config config;
    struct memory_plan memory;
    struct catalog_entry e = {0};
    struct checkpoint *c = NULL;
    struct load_plan p;
    if (ok) {
        cli_serve_config(&o, &config);
        memory_plan_make(&config, &memory);
        ok = find(&config, argv[2], &e, &err) && (c = checkpoint_open(e.path, &err));
    }
    struct backend_options with = {.n_threads = config.threads, .isa = config.isa};
    struct backend *backend = ok ? backend_open_cpu(&with, &err) : NULL; /* its scratch counts */
    ok = backend && load_plan_make(&config, &memory, backend, &(struct registry_load){0}, c, &p, &err);
    if (ok) {
        bool fits = load_plan_bytes_min(&p) <= memory.models;
        print_plan(e.id, &p, &memory, fits ? load_plan_pages(&p, memory.models, config.models_max) : 0);
        fflush(stdout);
        ok = fits || load_plan_refuse(&p, &memory, e.id, 0, &err);
    }
    if (backend)
        backend_close(backend);
    if (c)
        checkpoint_close(c);
    catalog_entry_release(&e);
    if (!ok)
        fprintf(stderr, "inferd: %s\n", err.text);
    return ok ? 0 : err_info(err.code)->exit_code;
}

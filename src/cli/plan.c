/* inferd plan MODEL [OPTIONS of serve]: every byte that loading would take, before any is taken, without a server. MODEL is
 * a name as a server with these options knows it, or a path; a folder may hold config.json alone, so that models can be
 * planned that are not on this machine and do not fit it. */
#include "cli/cli.h"

#include "base/options.h"
#include "serve/names.h"
#include "serve/plan.h"

#include <stdio.h>
#include <sys/stat.h>

static struct checkpoint *open_path(const char *path, struct err *err)
{
    struct err why = {0};
    struct checkpoint *c = checkpoint_open(path, &why);
    struct stat st;
    if (c)
        return c;
    /* Only a folder without weights is taken as a shape: damage is told as damage. */
    if (why.code == ERR_MODEL_NOT_FOUND && stat(path, &st) == 0 && S_ISDIR(st.st_mode) &&
        (c = checkpoint_open_shape(path, err)))
        return c;
    err_set(err, why.code, "%s", why.text);
    return NULL;
}

static struct checkpoint *open_model(const struct serve_config *config, const char *name, struct err *err)
{
    struct stat st;
    struct catalog_entry found;
    if (stat(name, &st) == 0)
        return open_path(name, err);
    struct names *names = names_open(config->models_dir, config->data_dir, err);
    bool ok = names && names_find(names, str_from(name), &found, err);
    if (names)
        names_close(names);
    if (!ok)
        return NULL;
    struct checkpoint *c = open_path(found.path, err);
    catalog_entry_release(&found);
    return c;
}

static void line(const char *what, uint64_t bytes)
{
    printf("  %-36s %16llu  %10.1f MiB\n", what, (unsigned long long)bytes, (double)bytes / (1 << 20));
}

static void print_model(const char *name, const struct load_plan *p)
{
    const struct model_info *i = &p->plan.info;
    printf("model         %s\narchitecture  %s, %zu layers, width %zu, %zu heads of %zu, %zu for keys, inner width %zu\n"
           "parameters    %llu\nvocabulary    %zu\ncontext       %zu tokens\n",
           name, i->architecture, i->n_layers, i->width, i->n_heads, i->head_dim, i->n_kv_heads, i->n_inner,
           (unsigned long long)i->n_parameters, i->n_vocab, p->context_max);
    if (p->plan.stored[0])
        printf("stored as     %s\n", p->plan.stored);
    if (p->plan.lossy[0])
        printf("not exact     %s\n", p->plan.lossy);
}

/* A line for each profile, so that one can choose. */
static void print_profiles(const struct serve_config *config, const struct memory_plan *memory, const struct backend *b,
                           struct checkpoint *c, enum profile chosen)
{
    printf("\n%-10s %18s %18s  %s\n", "profile", "weights", "needed at least", "");
    for (enum profile profile = PROFILE_FP16; profile <= PROFILE_INT4; profile++) {
        struct registry_load load = {.profile_given = 1, .profile = profile};
        struct load_plan p;
        struct err err = {0};
        if (!load_plan_make(config, memory, b, &load, c, &p, &err)) {
            printf("%-10s %s\n", profile_name(profile), err.text);
            continue;
        }
        uint64_t least = load_plan_bytes_min(&p);
        printf("%-10s %18llu %18llu  %s%s\n", profile_name(profile), (unsigned long long)p.plan.weight_bytes,
               (unsigned long long)least, least <= memory->models ? "fits" : "does not fit",
               profile == chosen ? ", chosen" : "");
    }
}

static void print_bytes(const struct load_plan *p, const struct memory_plan *m, size_t pages)
{
    uint64_t kv = pages * p->plan.kv_page_bytes, scratch = p->plan.scratch_bytes;
    printf("\nprofile %s, keys and values %s\n", profile_name(p->plan.profile), kv_type_name(p->plan.kv_type));
    for (enum weight_kind i = 0; i < WEIGHT_KINDS; i++)
        line(weight_kind_name(i), p->plan.kind_bytes[i]);
    line("all weights", p->plan.weight_bytes);
    line("scratch of a step", scratch);
    line("engine, tokenizer, loading", p->fixed_bytes - p->plan.weight_bytes - scratch);
    printf("  %-36s %16zu\n", "bytes of keys and values a token", p->plan.info.kv_token_bytes);
    printf("  %-36s %16llu\n", "bytes of a page of keys and values", (unsigned long long)p->plan.kv_page_bytes);
    char text[64];
    snprintf(text, sizeof text, "%zu pages (%zu tokens)", pages, pages * KV_PAGE_TOKENS);
    line(text, kv);
    line("the model", p->fixed_bytes + kv);
    line("the process itself", m->process);
    snprintf(text, sizeof text, "%u connections", m->n_connections);
    line(text, m->connections);
    line("requests under way", m->requests);
    line("together", p->fixed_bytes + kv + m->process + m->connections + m->requests);
    line("the ceiling (--memory)", m->total);
}

/* Prints the plan; false where the model cannot be planned or does not fit, with err. */
static bool plan(const struct serve_config *config, const char *name, struct err *err)
{
    struct memory_plan memory;
    struct load_plan p;
    memory_plan_make(config, &memory);
    struct registry_load load = {0};
    struct checkpoint *c = open_model(config, name, err);
    struct backend_options with = {.n_threads = config->threads, .isa = config->isa};
    struct backend *b = c ? backend_open_cpu(&with, err) : NULL; /* its scratch counts */
    bool ok = b && load_plan_make(config, &memory, b, &load, c, &p, err);
    if (ok) {
        bool fits = load_plan_bytes_min(&p) <= memory.models;
        size_t pages = fits ? load_plan_pages(&p, memory.models, config->models_max) : p.pages_min;
        print_model(name, &p);
        print_profiles(config, &memory, b, c, p.plan.profile);
        print_bytes(&p, &memory, pages);
        ok = fits || load_plan_refuse(&p, &memory, 0, err) || err_prefix(err, "Model '%.200s'", name);
    }
    if (b)
        backend_close(b);
    checkpoint_close(c);
    return ok;
}

bool cli_model_options(struct options *o, int argc, char **argv, struct err *err)
{
    if (argc < 3 || argv[2][0] == '-' || !argv[2][0])
        return err_set(err, ERR_USAGE, "usage: inferd %s MODEL [OPTIONS of serve], the model first", argv[1]);
    return options_load(o, argc, argv, 3, err);
}

int cli_plan(int argc, char **argv)
{
    struct err err = {0};
    static struct options o;
    struct serve_config config;
    bool ok = cli_model_options(&o, argc, argv, &err);
    if (ok) {
        cli_serve_config(&o, &config);
        ok = plan(&config, argv[2], &err);
    }
    if (!ok)
        return cli_fail(&err);
    puts("It fits.");
    return 0;
}

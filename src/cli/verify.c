/* inferd verify MODEL: the files of a pulled model against the checksums that the hub gave, then the model's own self-test.
 *
 * The self-test loads the model as the server would, lets it answer fixed tokens (serve/self_test.h) and holds the answer
 * against what is known of the model (serve/golden.h); the first answer is kept. */
#include "cli/cli.h"

#include "base/options.h"
#include "cli/progress.h"
#include "serve/golden.h"
#include "serve/names.h"
#include "serve/plan.h"

#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static bool tell_file(void *user, const char *path, uint64_t bytes)
{
    char size[CLI_SIZE_BYTES];
    (void)user;
    printf("reading %s (%s)\n", path, cli_size_text((double)bytes, size));
    fflush(stdout);
    return !cli_interrupted();
}

/* ---- a loaded model ---- */

struct subject {
    const struct catalog_entry *e;
    const struct serve_config *config;
    struct checkpoint *c;
    struct backend *backend;
    struct load_plan plan;
    struct model *m;
};

static bool load(struct subject *s, const struct serve_config *config, struct err *err)
{
    struct memory_plan memory;
    struct registry_load as = {0};
    memory_plan_make(config, &memory);
    if (s->m)
        model_free(s->m);
    s->m = NULL;
    if (!load_plan_make(config, &memory, s->backend, &as, s->c, &s->plan, err))
        return false;
    if (load_plan_bytes_min(&s->plan) > memory.models)
        return load_plan_refuse(&s->plan, &memory, 0, err);
    s->m = model_load(s->c, s->backend, &s->plan.model, NULL, NULL, err);
    return s->m != NULL;
}

/* ---- what its answer is held against ---- */

static struct golden_subject golden_of(const struct subject *s)
{
    return (struct golden_subject){.data_dir = s->config->data_dir,
                                   .id = s->e->id,
                                   .path = s->e->path,
                                   .bytes = s->e->bytes,
                                   .mtime = s->e->mtime,
                                   .m = s->m,
                                   .o = &s->plan.model,
                                   .profile = s->plan.plan.profile,
                                   .tokens_max = SELF_TEST_TOKENS_MAX};
}

static bool hold_against_kept(struct subject *s, struct err *err)
{
    char made_at[CLOCK_TEXT_BYTES], path[GOLDEN_PATH_BYTES];
    struct golden_subject g = golden_of(s);
    struct self_test_answer a;
    if (!self_test_answer(s->m, &s->plan.model, GOLDEN_IDS, &a, err) || !golden_compare_kept(&g, &a, made_at, err) ||
        (!made_at[0] && !golden_keep(&g, &a, path, err)))
        return false;
    printf("self-test (%s, %s): %zu tokens, ", profile_name(g.profile), backend_mode(s->backend), a.n);
    if (made_at[0])
        printf("to the bit as on %s\n", made_at);
    else
        printf("finite, the same one by one and all at once; kept in %s for the next time\n", path);
    return true;
}

static bool hold_against_golden(struct subject *s, struct err *err)
{
    struct golden_subject g = golden_of(s);
    if (!golden_is_there(&g))
        return true;
    struct serve_config exact = *s->config;
    struct golden_distance d;
    struct err why = {0};
    exact.profile = PROFILE_FP16;
    exact.kv_type = KV_I24;
    if (!golden_is_exact(&g) && !load(s, &exact, &why)) {
        printf("golden.json: left out: %s\n", why.text);
        return true;
    }
    g = golden_of(s);
    if (!golden_compare_file(&g, &d, err))
        return false;
    printf("golden.json: %zu log-probabilities within %.2g (at most %.2g), %zu greedy ids the same\n", d.n_logprobs, d.worst,
           d.most, d.n_same);
    return true;
}

/* ---- the whole ---- */

/* *loaded: false where it could not even begin. */
static bool self_test(const struct serve_config *config, const struct catalog_entry *e, bool *loaded, struct err *err)
{
    struct subject s = {.e = e, .config = config};
    struct backend_options with = {.n_threads = config->threads, .isa = config->isa};
    s.c = checkpoint_open(e->path, err);
    s.backend = s.c ? backend_open_cpu(&with, err) : NULL;
    *loaded = s.backend && load(&s, config, err);
    bool ok = *loaded && hold_against_kept(&s, err) && hold_against_golden(&s, err);
    if (s.m)
        model_free(s.m);
    if (s.backend)
        backend_close(s.backend);
    if (s.c)
        checkpoint_close(s.c);
    return ok;
}

/* Files that the hub gave checksums for; false with err. */
static bool verify_files(const char *name, const struct options *o, struct err *err)
{
    static struct hub_config hub;
    struct hub_ref ref;
    if (!cli_hub_config(o, &hub, err) || !cli_read_ref(name, o, &ref, err) ||
        !hub_cache_verify(hub.cache_dir, &ref, tell_file, NULL, err))
        return false;
    printf("%s: every file has the checksum that the hub gave\n", name);
    fflush(stdout);
    return true;
}

/* *pulled: of the hub, or nothing that is known yet. */
static bool find(const char *models_dir, const struct serve_config *config, const char *name, struct catalog_entry *e,
                 bool *pulled, struct err *err)
{
    struct names *names = names_open(models_dir, config->data_dir, err);
    bool found = names && names_find(names, str_from(name), e, err);
    *pulled = !found || names_removable(names, e, NULL);
    names_close(names);
    return found;
}

/* The folder that it lies in is looked at as --models-dir is. */
static bool find_path(const char *path, const struct serve_config *config, struct catalog_entry *e, struct err *err)
{
    char part[PATH_MAX], folder[PATH_MAX], whole[2 * PATH_MAX];
    bool pulled;
    struct checkpoint *c = checkpoint_open(path, err);
    snprintf(part, sizeof part, "%s", path);
    bool ok = c && realpath(dirname(part), folder);
    checkpoint_close(c);
    snprintf(part, sizeof part, "%s", path);
    snprintf(whole, sizeof whole, "%s/%s", folder, basename(part));
    return ok && find(folder, config, whole, e, &pulled, err);
}

int cli_verify(int argc, char **argv)
{
    static struct options o;
    struct serve_config config;
    struct catalog_entry e = {0};
    struct err err = {0};
    if (!cli_model_options(&o, argc, argv, &err))
        return cli_fail(&err);
    const char *name = argv[2];
    cli_catch_interrupt();
    cli_serve_config(&o, &config);
    bool pulled, found = find(config.models_dir, &config, name, &e, &pulled, &err);
    bool by_path = !found && access(name, F_OK) == 0;
    if (by_path && !(found = find_path(name, &config, &e, &err)))
        return cli_fail(&err);
    bool own = by_path || !pulled;
    if (own)
        printf("%s: %s, without checksums to compare it with\n", name, e.path);
    bool ok = own || verify_files(name, &o, &err), loaded = true;
    if (!ok && !found && err.code == ERR_MODEL_NOT_FOUND)
        err_prefix(&err, "'%.200s' is no model of the folder %.200s, and none that was fetched whole (see: inferd list)", name,
                   config.models_dir);
    if (ok && found)
        ok = self_test(&config, &e, &loaded, &err) || err_prefix(&err, "Model '%.200s'", name);
    if (!ok && !loaded && !own && err.code != ERR_IO)
        err_prefix(&err, "The files are whole, so another pull would not help, but inferd cannot load them");
    if (found)
        catalog_entry_release(&e);
    return ok && found ? 0 : cli_fail(&err);
}

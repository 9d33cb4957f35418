/* inferd verify MODEL: the files of a pulled model against the checksums that the hub gave, then the model's own self-test.
 *
 * The self-test loads the model as the server would and lets it answer fixed tokens (serve/self_test.h). The first answer is
 * kept in DATA_DIR/golden, and every later one of the same files, profile, program and kind of processor must be equal to
 * the bit. Where the model's folder has a golden.json (what another program computed from the same weights; form in
 * docs/formats.md), log-probabilities of the exact profile are held against it too. */
#include "cli/cli.h"

#include "base/clock.h"
#include "base/options.h"
#include "cli/progress.h"
#include "serve/names.h"
#include "serve/plan.h"
#include "serve/self_test.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_BYTES 4096
#define ANSWER_IDS 24
#define EXACT_MAX  1e-3 /* of a log-probability, where golden.json names no other bound */

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
    const char *path; /* of the same, whole and without links */
    const struct serve_config *config;
    struct checkpoint *c;
    struct backend *backend;
    struct load_plan plan;
    struct model *m;
};

static bool load(struct subject *s, const struct registry_load *as, struct err *err)
{
    struct memory_plan memory;
    memory_plan_make(s->config, &memory);
    if (s->m)
        model_free(s->m);
    s->m = NULL;
    if (!load_plan_make(s->config, &memory, s->backend, as, s->c, &s->plan, err))
        return false;
    if (load_plan_bytes_min(&s->plan) > memory.models)
        return load_plan_refuse(&s->plan, &memory, s->e->id, 0, err);
    s->m = model_load(s->c, s->backend, &s->plan.model, NULL, NULL, err);
    return s->m != NULL;
}

/* ---- the answer that is kept ---- */

static json_t *record_of(const struct subject *s, const struct self_test_answer *a)
{
    char bits[24], made[CLOCK_TEXT_BYTES];
    snprintf(bits, sizeof bits, "%016" PRIx64, a->bits);
    clock_format_rfc3339(clock_wall_ns(), made);
    json_t *ids = json_array();
    for (size_t i = 0; i < a->n; i++)
        json_array_append_new(ids, json_integer(a->ids[i]));
    return json_pack("{s:s,s:s,s:I,s:I,s:s,s:s,s:s,s:s,s:i,s:o,s:s,s:s}", "model", s->e->id, "path", s->path, "bytes",
                     (json_int_t)s->e->bytes, "mtime", (json_int_t)s->e->mtime, "profile", profile_name(s->plan.plan.profile),
                     "kv_type", kv_type_name(s->plan.model.kv_type), "mode", backend_mode(s->backend), "program",
                     INFERD_VERSION, "n_prompt", (int)a->n_prompt, "ids", ids, "bits", bits, "made_at", made);
}

/* One for each: a model at a place, held in one way, computed in one way. */
static void record_path(const struct subject *s, char folder[PATH_BYTES], char path[PATH_BYTES])
{
    char key[2 * PATH_BYTES];
    snprintf(key, sizeof key, "%s|%s|%s|%s|%s", s->path, profile_name(s->plan.plan.profile),
             kv_type_name(s->plan.model.kv_type), backend_mode(s->backend), INFERD_VERSION);
    snprintf(folder, PATH_BYTES, "%.*s/golden", PATH_BYTES - 64, s->config->data_dir);
    snprintf(path, PATH_BYTES, "%.*s/%016" PRIx64 ".json", PATH_BYTES - 32, folder, str_hash(str_from(key)));
}

/* The folder and those above it. */
static bool make_dirs(const char *path, struct err *err)
{
    char part[PATH_BYTES];
    snprintf(part, sizeof part, "%s", path);
    for (char *p = part + 1; *p; p++) {
        if (*p != '/')
            continue;
        *p = 0;
        mkdir(part, 0777); /* what fails here fails below */
        *p = '/';
    }
    return mkdir(part, 0777) == 0 || errno == EEXIST ||
           err_set(err, ERR_IO, "Cannot make the folder '%.400s' (--data-dir): %s.", path, strerror(errno));
}

/* Whole or not at all. */
static bool keep_record(const json_t *record, const char *folder, const char *path, struct err *err)
{
    char next[PATH_BYTES + 32];
    snprintf(next, sizeof next, "%s.%ld.tmp", path, (long)getpid());
    bool ok = make_dirs(folder, err);
    if (ok && (json_dump_file(record, next, JSON_INDENT(1)) != 0 || rename(next, path) != 0)) {
        ok = err_set(err, ERR_IO, "Cannot write '%.400s': %s.", path, strerror(errno));
        unlink(next);
    }
    return ok;
}

static bool same_member(const json_t *a, const json_t *b, const char *name)
{
    return json_equal(json_object_get(a, name), json_object_get(b, name));
}

/* The kept one speaks of these files. */
static bool same_files(const json_t *kept, const json_t *now)
{
    return same_member(kept, now, "path") && same_member(kept, now, "bytes") && same_member(kept, now, "mtime");
}

static bool hold_against_kept(struct subject *s, struct err *err)
{
    char folder[PATH_BYTES], path[PATH_BYTES];
    struct self_test_answer a;
    if (!self_test_answer(s->m, &s->plan.model, ANSWER_IDS, &a, err))
        return false;
    record_path(s, folder, path);
    json_t *now = record_of(s, &a), *kept = json_load_file(path, 0, NULL);
    const char *made = json_string_value(json_object_get(kept, "made_at"));
    bool ok = true, comparable = kept && made && same_files(kept, now);
    if (comparable && same_member(kept, now, "ids") && same_member(kept, now, "bits"))
        printf("self-test (%s, %s): %zu tokens, to the bit as on %s\n", profile_name(s->plan.plan.profile),
               backend_mode(s->backend), a.n, made);
    else if (comparable)
        ok =
            err_set(err, ERR_MODEL_DAMAGED,
                    "Its answer to fixed tokens differs from the one that was kept on %s (%.400s), though size and time of its "
                    "files are the same: the disk, the memory or the processor altered something. Fetch the model again; if "
                    "you know why it differs, remove that file, and the next answer is kept.",
                    made, path);
    else if ((ok = keep_record(now, folder, path, err)))
        printf("self-test (%s, %s): %zu tokens, finite, the same one by one and all at once; kept in %s for the next time\n",
               profile_name(s->plan.plan.profile), backend_mode(s->backend), a.n, path);
    json_decref(kept);
    json_decref(now);
    return ok;
}

/* ---- golden.json ---- */

struct golden {
    int32_t ids[SELF_TEST_TOKENS_MAX], greedy[SELF_TEST_TOKENS_MAX];
    double logprobs[SELF_TEST_TOKENS_MAX], margins[SELF_TEST_TOKENS_MAX];
};

static size_t read_ids(const json_t *list, int32_t *out)
{
    size_t n = json_array_size(list);
    for (size_t i = 0; i < n && i < SELF_TEST_TOKENS_MAX; i++) {
        json_int_t id = json_integer_value(json_array_get(list, i));
        out[i] = id < 0 || id > INT32_MAX || !json_is_integer(json_array_get(list, i)) ? -1 : (int32_t)id;
    }
    return n <= SELF_TEST_TOKENS_MAX ? n : 0;
}

static size_t read_numbers(const json_t *list, double *out)
{
    size_t n = json_array_size(list);
    for (size_t i = 0; i < n && i < SELF_TEST_TOKENS_MAX; i++)
        out[i] = json_number_value(json_array_get(list, i));
    return n <= SELF_TEST_TOKENS_MAX ? n : 0;
}

static bool compare(struct subject *s, const json_t *root, struct err *err)
{
    static struct golden g;
    struct self_test_golden t = {.ids = g.ids, .greedy = g.greedy, .logprobs = g.logprobs, .margins = g.margins};
    t.n = read_ids(json_object_get(root, "prompt"), g.ids);
    t.n_greedy = read_ids(json_object_get(root, "greedy_ids"), g.greedy);
    if (t.n < 2 || read_numbers(json_object_get(root, "next_logprobs"), g.logprobs) != t.n - 1 ||
        read_numbers(json_object_get(root, "greedy_margins"), g.margins) != t.n_greedy)
        return err_set(err, ERR_INVALID_REQUEST,
                       "It must have 'prompt' (2 to %d ids), 'next_logprobs' (one fewer), 'greedy_ids' and "
                       "as many 'greedy_margins'.",
                       SELF_TEST_TOKENS_MAX);
    const json_t *own = json_object_get(root, "logprob_max");
    double most = json_is_number(own) ? json_number_value(own) : EXACT_MAX, worst;
    size_t n_same, n_compared;
    if (!self_test_compare(s->m, &s->plan.model, &t, &worst, &n_same, &n_compared, err))
        return false;
    if (!(worst < most) || n_same != n_compared)
        return err_set(err, ERR_MODEL_DAMAGED,
                       "%zu log-probabilities differ by up to %.3g (at most %.3g), and %zu of %zu greedy ids "
                       "are the same: these are not the weights that it was made from.",
                       t.n - 1, worst, most, n_same, n_compared);
    printf("golden.json: %zu log-probabilities within %.2g (at most %.2g), %zu greedy ids the same\n", t.n - 1, worst, most,
           n_same);
    return true;
}

static bool hold_against_golden(struct subject *s, struct err *err)
{
    char path[PATH_BYTES];
    struct stat st;
    bool folder = stat(s->e->path, &st) == 0 && S_ISDIR(st.st_mode);
    snprintf(path, sizeof path, "%.*s/golden.json", PATH_BYTES - 32, s->e->path);
    if (!folder || stat(path, &st) != 0)
        return true;
    json_error_t at;
    json_t *root = json_load_file(path, 0, &at);
    if (!root)
        return err_set(err, ERR_INVALID_REQUEST, "'%.400s' is no JSON: %s (line %d).", path, at.text, at.line);
    struct registry_load exact = {.profile_given = 1, .profile = PROFILE_FP16};
    struct err why = {0};
    bool ok = true;
    if (s->plan.plan.profile != PROFILE_FP16 && !load(s, &exact, &why))
        printf("golden.json: left out: %s\n", why.text);
    else
        ok = compare(s, root, err) || err_prefix(err, "'%.400s'", path);
    json_decref(root);
    return ok;
}

/* ---- the whole ---- */

/* *loaded: false where it could not even begin. */
static bool self_test(const struct serve_config *config, const struct catalog_entry *e, bool *loaded, struct err *err)
{
    char path[PATH_MAX];
    struct subject s = {.e = e, .config = config, .path = realpath(e->path, path) ? path : e->path};
    struct backend_options with = {.n_threads = config->threads, .isa = config->isa};
    struct registry_load as = {0};
    s.c = checkpoint_open(e->path, err);
    s.backend = s.c ? backend_open_cpu(&with, err) : NULL;
    *loaded = s.backend && load(&s, &as, err);
    bool ok = *loaded && hold_against_kept(&s, err) && hold_against_golden(&s, err);
    if (s.m)
        model_free(s.m);
    if (s.backend)
        backend_close(s.backend);
    if (s.c)
        checkpoint_close(s.c);
    return ok;
}

static int fail(const struct err *err)
{
    fflush(stdout);
    fprintf(stderr, "inferd: %s\n", err->text);
    return err_info(err->code)->exit_code;
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

int cli_verify(const struct cli_client *c)
{
    static struct options o;
    struct serve_config config;
    struct catalog_entry e = {0};
    struct err err = {0};
    if (c->n_words != 1) {
        fprintf(stderr, "inferd: usage: inferd verify MODEL, as in inferd verify org/name\n");
        return 2;
    }
    cli_catch_interrupt();
    if (!options_load(&o, 0, NULL, 0, &err))
        return fail(&err);
    cli_serve_config(&o, &config);
    struct names *names = names_open(config.models_dir, config.data_dir, &err);
    if (!names)
        return fail(&err);
    bool found = names_find(names, str_from(c->words[0]), &e, &err), own = found && !names_removable(names, &e, NULL);
    names_close(names);
    if (own)
        printf("%s: of %s, which nobody gave checksums for\n", c->words[0], e.path);
    bool ok = own || verify_files(c->words[0], &o, &err), loaded = true;
    if (ok && found)
        ok = self_test(&config, &e, &loaded, &err) || err_prefix(&err, "Model '%.200s'", c->words[0]);
    if (ok && !found)
        printf("self-test: left out: %s\n", err.text);
    if (!ok && !loaded && !own && err.code != ERR_IO) { /* its files are what the hub has: another pull would not help */
        printf("self-test: left out: %s\n", err.text);
        ok = true;
    }
    if (found)
        catalog_entry_release(&e);
    return ok ? 0 : fail(&err);
}

/* The kept answer and golden.json; see golden.h. */
#include "serve/golden.h"

#include "backend/backend.h"
#include "serve/serve.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXACT_MAX 1e-3 /* of a log-probability, where golden.json names no other bound */

/* ---- the kept answer ---- */

/* Whole and without links. */
static void real_path(const struct golden_subject *s, char out[GOLDEN_PATH_BYTES])
{
    char path[PATH_MAX];
    snprintf(out, GOLDEN_PATH_BYTES, "%s", realpath(s->path, path) ? path : s->path);
}

static json_t *record_of(const struct golden_subject *s, const struct self_test_answer *a)
{
    char bits[24], made[CLOCK_TEXT_BYTES], path[GOLDEN_PATH_BYTES];
    snprintf(bits, sizeof bits, "%016" PRIx64, a->bits);
    clock_format_rfc3339(clock_wall_ns(), made);
    real_path(s, path);
    json_t *ids = json_array();
    for (size_t i = 0; i < a->n; i++)
        json_array_append_new(ids, json_integer(a->ids[i]));
    return json_pack("{s:s,s:s,s:I,s:I,s:s,s:s,s:s,s:s,s:i,s:o,s:s,s:s}", "model", s->id, "path", path, "bytes",
                     (json_int_t)s->bytes, "mtime", (json_int_t)s->mtime, "profile", profile_name(s->profile), "kv_type",
                     kv_type_name(model_planned(s->m)->kv_type), "mode", backend_mode(model_backend(s->m)), "program",
                     INFERD_VERSION, "n_prompt", (int)a->n_prompt, "ids", ids, "bits", bits, "made_at", made);
}

/* One for each: a model at a place, held in one way, computed in one way. */
static void record_path(const struct golden_subject *s, char folder[GOLDEN_PATH_BYTES], char path[GOLDEN_PATH_BYTES])
{
    char key[2 * GOLDEN_PATH_BYTES], place[GOLDEN_PATH_BYTES];
    real_path(s, place);
    snprintf(key, sizeof key, "%s|%s|%s|%s|%s", place, profile_name(s->profile), kv_type_name(model_planned(s->m)->kv_type),
             backend_mode(model_backend(s->m)), INFERD_VERSION);
    snprintf(folder, GOLDEN_PATH_BYTES, "%.*s/golden", GOLDEN_PATH_BYTES - 64, s->data_dir);
    snprintf(path, GOLDEN_PATH_BYTES, "%.*s/%016" PRIx64 ".json", GOLDEN_PATH_BYTES - 32, folder, str_hash(str_from(key)));
}

/* The folder and those above it. */
static bool make_dirs(const char *path, struct err *err)
{
    char part[GOLDEN_PATH_BYTES];
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

bool golden_keep(const struct golden_subject *s, const struct self_test_answer *a, char path[GOLDEN_PATH_BYTES],
                 struct err *err)
{
    char folder[GOLDEN_PATH_BYTES], next[GOLDEN_PATH_BYTES + 32];
    record_path(s, folder, path);
    snprintf(next, sizeof next, "%s.%ld.tmp", path, (long)getpid());
    json_t *record = record_of(s, a);
    bool ok = make_dirs(folder, err);
    if (ok && (json_dump_file(record, next, JSON_INDENT(1)) != 0 || rename(next, path) != 0)) {
        ok = err_set(err, ERR_IO, "Cannot write '%.400s': %s.", path, strerror(errno));
        unlink(next);
    }
    json_decref(record);
    return ok;
}

/* NULL where none is kept, or it speaks of other files. */
static json_t *read_kept(const struct golden_subject *s, char path[GOLDEN_PATH_BYTES])
{
    char folder[GOLDEN_PATH_BYTES], place[GOLDEN_PATH_BYTES];
    record_path(s, folder, path);
    real_path(s, place);
    json_t *kept = json_load_file(path, 0, NULL);
    const char *of = json_string_value(json_object_get(kept, "path"));
    if (of && strcmp(of, place) == 0 && json_integer_value(json_object_get(kept, "bytes")) == (json_int_t)s->bytes &&
        json_integer_value(json_object_get(kept, "mtime")) == s->mtime && json_string_value(json_object_get(kept, "made_at")))
        return kept;
    json_decref(kept);
    return NULL;
}

bool golden_is_kept(const struct golden_subject *s)
{
    char path[GOLDEN_PATH_BYTES];
    json_t *kept = read_kept(s, path);
    json_decref(kept);
    return kept != NULL;
}

static bool same_member(const json_t *a, const json_t *b, const char *name)
{
    return json_equal(json_object_get(a, name), json_object_get(b, name));
}

bool golden_compare_kept(const struct golden_subject *s, const struct self_test_answer *a, char made_at[CLOCK_TEXT_BYTES],
                         struct err *err)
{
    char path[GOLDEN_PATH_BYTES];
    json_t *kept = read_kept(s, path), *now = kept ? record_of(s, a) : NULL;
    snprintf(made_at, CLOCK_TEXT_BYTES, "%s", kept ? json_string_value(json_object_get(kept, "made_at")) : "");
    bool ok = !kept || (same_member(kept, now, "ids") && same_member(kept, now, "bits")) ||
              err_set(err, ERR_MODEL_DAMAGED,
                      "Its answer to fixed tokens differs from the one that was kept on %s (%.400s), though size and time of "
                      "its files are the same: the disk, the memory or the processor altered something. Fetch the model "
                      "again; if you know why it differs, remove that file, and inferd verify keeps the next answer.",
                      made_at, path);
    json_decref(kept);
    json_decref(now);
    return ok;
}

/* ---- golden.json ---- */

struct numbers {
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

static bool compare(const struct golden_subject *s, const json_t *root, struct numbers *g, struct golden_distance *d,
                    struct err *err)
{
    struct self_test_golden t = {.ids = g->ids, .greedy = g->greedy, .logprobs = g->logprobs, .margins = g->margins};
    t.n = read_ids(json_object_get(root, "prompt"), g->ids);
    t.n_greedy = read_ids(json_object_get(root, "greedy_ids"), g->greedy);
    if (t.n < 2 || read_numbers(json_object_get(root, "next_logprobs"), g->logprobs) != t.n - 1 ||
        read_numbers(json_object_get(root, "greedy_margins"), g->margins) != t.n_greedy)
        return err_set(err, ERR_INVALID_REQUEST,
                       "It must have 'prompt' (2 to %d ids), 'next_logprobs' (one fewer), 'greedy_ids' and "
                       "as many 'greedy_margins'.",
                       SELF_TEST_TOKENS_MAX);
    if (t.n + t.n_greedy > s->tokens_max)
        return err_set(err, ERR_INVALID_REQUEST, "It has %zu tokens; there is memory for %zu.", t.n + t.n_greedy,
                       s->tokens_max);
    const json_t *own = json_object_get(root, "logprob_max");
    size_t n_compared;
    d->most = json_is_number(own) ? json_number_value(own) : EXACT_MAX;
    d->n_logprobs = t.n - 1;
    if (!self_test_compare(s->m, s->o, &t, &d->worst, &d->n_same, &n_compared, err))
        return false;
    return (d->worst < d->most && d->n_same == n_compared) ||
           err_set(err, ERR_MODEL_DAMAGED,
                   "%zu log-probabilities differ by up to %.3g (at most %.3g), and %zu of %zu greedy ids "
                   "are the same: these are not the weights that it was made from.",
                   d->n_logprobs, d->worst, d->most, d->n_same, n_compared);
}

static void file_path(const struct golden_subject *s, char out[GOLDEN_PATH_BYTES])
{
    snprintf(out, GOLDEN_PATH_BYTES, "%.*s/golden.json", GOLDEN_PATH_BYTES - 32, s->path);
}

bool golden_is_exact(const struct golden_subject *s)
{
    enum kv_type kv = model_planned(s->m)->kv_type;
    return s->profile == PROFILE_FP16 && (kv == KV_F32 || kv == KV_I24);
}

bool golden_is_there(const struct golden_subject *s)
{
    char path[GOLDEN_PATH_BYTES];
    struct stat st;
    file_path(s, path);
    return stat(path, &st) == 0;
}

bool golden_compare_file(const struct golden_subject *s, struct golden_distance *out, struct err *err)
{
    json_error_t at;
    *out = (struct golden_distance){0};
    file_path(s, out->path);
    json_t *root = json_load_file(out->path, 0, &at);
    if (!root)
        return err_set(err, ERR_INVALID_REQUEST, "'%.400s' is no JSON: %s (line %d).", out->path, at.text, at.line);
    struct numbers *g = malloc(sizeof *g);
    bool ok = (g || err_set(err, ERR_MEMORY, "Out of memory.")) && compare(s, root, g, out, err);
    if (!ok)
        err_prefix(err, "'%.400s'", out->path);
    free(g);
    json_decref(root);
    return ok;
}

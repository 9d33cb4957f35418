/* One loaded model; see served.h. */
#include "serve/served.h"

#include "base/clock.h"
#include "base/log.h"
#include "serve/golden.h"
#include "serve/metrics.h"
#include "serve/registry.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK_TOKENS 4 /* of the answer that a model loaded again must give, where nothing is known of it */
#define CHECK_ROWS   8 /* of a step of the check: streams of other models wait no longer */

void served_free(struct served *m)
{
    if (!m)
        return;
    if (m->engine) {
        engine_close(m->engine);
        m->options->settle(m->options->arg);
    }
    if (m->model)
        model_free(m->model);
    text_close(&m->text);
    served_metrics_idle(m->metrics);
    free(m->metrics);
    free(m->id);
    free(m);
}

static void notify_progress(void *arg)
{
    struct served *m = arg;
    m->options->progress(m->options->arg, m);
}

static void cache_note(void *arg, const char *text)
{
    const struct served *m = arg;
    log_event(LOG_INFO, "packed_cache", "model=\"%s\" note=\"%s\"", m->id, text);
}

/* Of the id, the shapes, the numeric mode and the first bytes of every tensor: the same after a restart. */
static void fingerprint(struct served *m, struct checkpoint *c, const char *mode, enum kv_type kv)
{
    char head[256];
    int n = snprintf(head, sizeof head, "%s|%s|%s|%d|%llu|", m->plan.info.architecture, profile_name(m->plan.profile), mode,
                     (int)kv, (unsigned long long)m->plan.info.n_parameters);
    uint64_t h = str_hash((struct str){head, (size_t)n}) ^ str_hash(str_from(m->id));
    for (size_t i = 0; i < checkpoint_n_tensors(c); i++) {
        const struct tensor *t = checkpoint_tensor_at(c, i);
        uint64_t part = str_hash((struct str){t->data, t->bytes < 64 ? t->bytes : 64});
        h = (h ^ part) * 0x100000001b3u;
    }
    snprintf(m->fingerprint, sizeof m->fingerprint, "fp_%016llx", (unsigned long long)h);
}

/* Of a model loaded again. */
static bool hold_against_known(struct served *m, const struct served_source *s, const struct model_options *loaded,
                               struct err *err)
{
    struct model_options o = *loaded;
    o.rows_max = o.rows_max < CHECK_ROWS ? o.rows_max : CHECK_ROWS;
    struct golden_subject g = {.data_dir = s->options->config->data_dir,
                               .id = s->id,
                               .path = s->path,
                               .bytes = s->bytes,
                               .mtime = s->mtime,
                               .m = m->model,
                               .o = &o,
                               .profile = m->plan.profile,
                               .tokens_max = m->pages * KV_PAGE_TOKENS}; /* the engine's, which are not taken yet */
    struct self_test_answer answer;
    struct golden_distance d;
    char made_at[CLOCK_TEXT_BYTES];
    bool kept = golden_is_kept(&g), file = golden_is_exact(&g) && golden_is_there(&g);
    if (!self_test_answer(m->model, &o, kept ? GOLDEN_IDS : CHECK_TOKENS, &answer, err) ||
        (kept && !golden_compare_kept(&g, &answer, made_at, err)) || (file && !golden_compare_file(&g, &d, err)))
        return false;
    log_event(LOG_INFO, "model_checked", "model=\"%s\" tokens=%zu kept_answer=%s golden_json=%s", s->id, answer.n,
              kept ? made_at : "none",
              !golden_is_there(&g) ? "none"
              : file               ? "same"
                                   : "of_another_profile");
    return true;
}

/* The tokenizer and the template, opened beside the weights: from the packed cache both take about as long. */
struct text_opening {
    struct served *m;
    struct checkpoint *c;
    const struct served_source *s;
    struct err err;
    atomic_bool failed;
};

static void *open_text(void *arg)
{
    struct text_opening *t = arg;
    t->failed = !text_open(&t->m->text, t->c, &t->m->plan.info, &t->err);
    return NULL;
}

/* So that a broken tokenizer is told at once, not when everything is packed. */
static bool goes_on(void *arg, double fraction)
{
    struct text_opening *t = arg;
    t->s->progress(t->s->arg, fraction);
    return !t->failed;
}

static bool load_text_and_weights(struct served *m, const struct served_source *s, struct checkpoint *c,
                                  const struct model_options *options, struct err *err)
{
    struct text_opening t = {.m = m, .c = c, .s = s};
    pthread_t thread;
    bool beside = pthread_create(&thread, NULL, open_text, &t) == 0;
    if (!beside)
        open_text(&t);
    m->model = t.failed ? NULL : model_load(c, s->options->backend, options, goes_on, &t, err);
    if (beside)
        pthread_join(thread, NULL);
    if (t.failed)
        *err = t.err;
    return m->model && !t.failed;
}

struct served *served_load(const struct served_source *s, struct checkpoint *c, struct load_plan *p, size_t pages,
                           struct err *err)
{
    const struct serve_config *config = s->options->config;
    uint64_t start = clock_mono_ns();
    struct served *m = calloc(1, sizeof *m);
    if (!m || !(m->id = strdup(s->id))) {
        free(m);
        err_set(err, ERR_MEMORY, "Out of memory.");
        return NULL;
    }
    m->options = s->options;
    m->asked = s->asked;
    m->plan = p->plan;
    m->pages = pages;
    m->context_max = load_plan_context(p, pages);
    m->bytes = load_plan_bytes(p, pages);
    fingerprint(m, c, backend_mode(s->options->backend), p->plan.kv_type);
    p->engine.pages = pages;
    p->engine.context_max = m->context_max;
    p->engine.notify = notify_progress;
    p->engine.notify_arg = m;
    if (s->cache_dir[0])
        p->model.cache =
            (struct model_cache_options){.dir = s->cache_dir, .bytes_max = config->cache_bytes, .note = cache_note, .arg = m};
    m->metrics = served_metrics_new(s->id);
    if (m->metrics)
        p->engine.metrics = m->metrics->engine;
    bool ok = load_text_and_weights(m, s, c, &p->model, err);
    ok = ok && (s->kind == LOAD_FIRST ? self_test_token(m->model, &p->model, err) : hold_against_known(m, s, &p->model, err));
    ok = ok && (m->engine = engine_open(m->model, &p->engine, err));
    if (!ok) {
        served_free(m);
        return NULL;
    }
    m->loaded_ns = clock_mono_ns();
    m->loaded_wall_ns = clock_wall_ns();
    m->load_ns = m->loaded_ns - start;
    return m;
}

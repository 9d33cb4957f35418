/* One loaded model; see served.h. */
#include "serve/served.h"

#include "base/clock.h"
#include "base/log.h"
#include "serve/metrics.h"
#include "serve/registry.h"
#include "serve/self_test.h"

#include <stdio.h>
#include <stdlib.h>

#define CHECK_TOKENS 4 /* of the answer that a model loaded again must give */

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
    fingerprint(m, c, backend_mode(s->options->backend), p->model.kv_type);
    p->engine.pages = pages;
    p->engine.context_max = m->context_max;
    p->engine.notify = notify_progress;
    p->engine.notify_arg = m;
    if (s->cache_dir[0])
        p->model.cache =
            (struct model_cache_options){.dir = s->cache_dir, .bytes_max = config->cache_bytes, .note = cache_note, .arg = m};
    m->metrics = served_metrics_new(s->id);
    served_metrics_cache(m->metrics, s->id, pages, kv_type_name(p->model.kv_type), config->prefix_cache);
    p->engine.step_rows = m->metrics ? m->metrics->iteration_tokens : NULL;
    struct self_test_answer answer;
    bool ok = text_open(&m->text, c, &m->plan.info, err);
    ok = ok && (m->model = model_load(c, s->options->backend, &p->model, s->progress, s->arg, err));
    ok = ok && (s->kind == LOAD_FIRST ? self_test_token(m->model, &p->model, err)
                                      : self_test_answer(m->model, &p->model, CHECK_TOKENS, &answer, err));
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

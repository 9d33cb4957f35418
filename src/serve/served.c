/* One loaded model; see served.h. */
#include "serve/served.h"

#include "base/clock.h"
#include "base/log.h"
#include "serve/metrics.h"
#include "serve/registry.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK_PROMPT 8u /* ids of check_logits, and how far apart */
#define CHECK_STRIDE 31u
#define CHECK_TOKENS 4u

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

/* One step over ids[0, n) at `pos`: the arg-max after the last, or -1 where a logit is not finite. n_prompt: of the whole. */
static int32_t check_step(struct model *m, struct kv_cache *kv, const int32_t *ids, size_t n, size_t pos,
                          size_t n_prompt)
{
    int32_t page = 0, positions[CHECK_PROMPT], rows[CHECK_PROMPT];
    for (size_t i = 0; i < n; i++) {
        positions[i] = (int32_t)(pos + i);
        rows[i] = (int32_t)i;
    }
    struct batch_seq seq = {.pages = &page, .n_pages = 1, .n_rows = n, .pos = pos, .n_prompt = n_prompt};
    struct batch batch = {.ids = ids, .positions = positions, .n_rows = n, .seqs = &seq, .n_seqs = 1, .logit_rows = rows,
                          .n_logit_rows = n};
    const float *logits = model_forward(m, kv, &batch);
    size_t n_vocab = model_info(m)->n_vocab, best = 0;
    for (size_t i = 0; i < n * n_vocab; i++)
        if (!isfinite(logits[i]))
            return -1;
    logits += (n - 1) * n_vocab;
    for (size_t i = 1; i < n_vocab; i++)
        best = logits[i] > logits[best] ? i : best;
    return (int32_t)best;
}

/* A short greedy answer to a few fixed ids: ERR_MODEL_DAMAGED where a logit is not finite. Before the engine has the model. */
static bool check_logits(struct model *m, const struct load_plan *p, struct err *err)
{
    struct kv_cache kv = model_kv_shape(m);
    size_t n = p->model.rows_max < CHECK_PROMPT ? p->model.rows_max : CHECK_PROMPT;
    int32_t ids[CHECK_PROMPT], id;
    kv.n_pages = 1;
    kv.data = backend_alloc(model_backend(m), kv.n_layers * kv.layer_bytes, err);
    if (!kv.data)
        return false;
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)((i + 1) * CHECK_STRIDE % model_info(m)->n_vocab);
    id = check_step(m, &kv, ids, n, 0, n);
    for (size_t pos = n; id >= 0 && pos < n + CHECK_TOKENS && pos < p->context_max; pos++)
        id = check_step(m, &kv, &id, 1, pos, n);
    backend_free(model_backend(m), kv.data, kv.n_layers * kv.layer_bytes);
    return id >= 0 || err_set(err, ERR_MODEL_DAMAGED,
                              "Its answer to %zu fixed tokens has a logit that is not finite: its weights are damaged. "
                              "inferd verify tells which file of a pulled model, inferd pull fetches it again.", n);
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
        p->model.cache = (struct model_cache_options){.dir = s->cache_dir, .bytes_max = config->cache_bytes,
                                                      .note = cache_note, .arg = m};
    m->metrics = served_metrics_new(s->id);
    served_metrics_cache(m->metrics, s->id, pages, kv_type_name(p->model.kv_type), config->prefix_cache);
    p->engine.step_rows = m->metrics ? m->metrics->iteration_tokens : NULL;
    bool ok = text_open(&m->text, c, &m->plan.info, err);
    ok = ok && (m->model = model_load(c, s->options->backend, &p->model, s->progress, s->arg, err));
    ok = ok && (s->kind == LOAD_FIRST || check_logits(m->model, p, err));
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

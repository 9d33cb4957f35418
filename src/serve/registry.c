/* Loaded models; see registry.h. */
#include "serve/registry.h"

#include "base/clock.h"
#include "base/log.h"
#include "model/catalog.h"
#include "serve/metrics.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#define KV_TOKENS_TARGET     131072u          /* KV room that a model gets when memory allows */
#define KV_TOKENS_MIN        512u             /* less room than this (or the model's context) is refused */
#define LOAD_SLACK_BYTES     ((uint64_t)24 << 20) /* source pages still mapped, stacks, small tables of a loaded model */
#define TOKENIZER_ID_BYTES   256u             /* of a tokenizer, for each id */
#define NS_PER_S             1000000000u

enum entry_state { ENTRY_LISTED, ENTRY_LOADING, ENTRY_READY, ENTRY_UNLOADING };

struct entry {
    char *id;
    enum entry_state state;
    struct served *m; /* READY, UNLOADING */
    size_t refs;
    double keep_alive_s;
    uint64_t used_ns;    /* last given back */
    uint64_t expires_ns; /* 0: never */
    int want_unload;
    struct registry_load load; /* pinned by an explicit load */
    struct registry_waiter *waiters;
    struct entry *next;
};

struct registry {
    struct registry_options o;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* work for the loader, or a model became idle */
    pthread_t loader;
    struct entry *entries;
    uint64_t bytes_used; /* by READY, UNLOADING and the one LOADING */
    size_t failed_loads;
    _Atomic double fraction;
    int closing;
};

/* ---- the plan of a load --------------------------------------------------------------------------------------------- */

struct load_plan {
    struct model_options model;
    struct model_plan plan;
    struct engine_options engine;
    uint64_t fixed_bytes; /* everything but pages */
    size_t pages_min, pages_want;
    size_t context_max;
};

static size_t pages_for(size_t tokens)
{
    return (tokens + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
}

static bool plan_load(const struct registry *r, const struct registry_load *load, struct checkpoint *c,
                      struct load_plan *p, struct err *err)
{
    const struct serve_config *config = r->o.config;
    memset(p, 0, sizeof *p);
    p->model.profile = load->profile_given ? load->profile : config->profile;
    p->model.kv_type = config->kv_type;
    p->model.rows_max = config->rows_max;
    p->model.logit_rows_max = config->rows_max;
    p->model.context_max = config->context_max;
    if (!model_plan(c, &p->model, &p->plan, err))
        return false;
    p->context_max = p->plan.info.context_max;
    if (config->context_max && config->context_max < p->context_max)
        p->context_max = config->context_max;
    size_t want = p->context_max > KV_TOKENS_TARGET ? p->context_max : KV_TOKENS_TARGET;
    size_t most = p->context_max > SIZE_MAX / config->streams_max ? SIZE_MAX : p->context_max * config->streams_max;
    p->pages_want = pages_for(want < most ? want : most) + 1;
    p->pages_min = pages_for(p->context_max < KV_TOKENS_MIN ? p->context_max : KV_TOKENS_MIN) + 1;
    p->engine = (struct engine_options){.streams_max = config->streams_max,
                                        .queue_max = config->queue_max,
                                        .rows_max = config->rows_max,
                                        .stall_ms_max = config->stall_ms_max,
                                        .context_max = p->context_max,
                                        .prefix_cache = config->prefix_cache,
                                        .pages = p->pages_want};
    p->fixed_bytes = p->plan.weight_bytes + p->plan.scratch_bytes + engine_overhead_bytes(&p->plan.info, &p->engine) +
                     (uint64_t)p->plan.info.n_vocab * TOKENIZER_ID_BYTES + p->plan.tensor_bytes_max + LOAD_SLACK_BYTES;
    return true;
}

static double mib(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

static bool refuse(const struct registry *r, const char *id, const struct load_plan *p, uint64_t others, struct err *err)
{
    uint64_t need = p->fixed_bytes + p->pages_min * p->plan.kv_page_bytes;
    uint64_t ceiling = r->o.memory_bytes, reserved = r->o.reserved_bytes;
    uint64_t have = ceiling > reserved + others ? ceiling - reserved - others : 0;
    return err_set(err, ERR_MEMORY,
                   "Model '%s' does not fit: it needs %llu bytes (weights %.1f MiB, scratch %.1f MiB, tokenizer and loading "
                   "%.1f MiB, at least %zu KV pages of %.2f MiB) and %llu bytes are available (--memory %llu less %llu for "
                   "the server and %llu for models in use). Give --memory at least %llu, or take a smaller model.",
                   id, (unsigned long long)need, mib(p->plan.weight_bytes), mib(p->plan.scratch_bytes),
                   mib(p->fixed_bytes - p->plan.weight_bytes - p->plan.scratch_bytes), p->pages_min,
                   mib(p->plan.kv_page_bytes), (unsigned long long)have, (unsigned long long)ceiling,
                   (unsigned long long)reserved, (unsigned long long)others,
                   (unsigned long long)(need + reserved + others));
}

/* ---- loading (loader thread) ------------------------------------------------------------------------------------------ */

static void served_free(struct served *m)
{
    if (!m)
        return;
    if (m->engine) {
        engine_close(m->engine);
        m->registry->o.settle(m->registry->o.arg);
    }
    if (m->model)
        model_free(m->model);
    text_close(&m->text);
    free(m->metrics);
    free(m->id);
    free(m);
}

static void notify_progress(void *arg)
{
    struct served *m = arg;
    m->registry->o.progress(m->registry->o.arg, m);
}

static void load_fraction(void *arg, double fraction)
{
    struct registry *r = arg;
    atomic_store(&r->fraction, fraction);
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

static struct served *load_model(struct registry *r, const char *id, struct checkpoint *c, struct load_plan *p,
                                 size_t pages, struct err *err)
{
    uint64_t start = clock_mono_ns();
    struct served *m = calloc(1, sizeof *m);
    if (!m || !(m->id = strdup(id))) {
        free(m);
        err_set(err, ERR_MEMORY, "Out of memory.");
        return NULL;
    }
    m->registry = r;
    m->plan = p->plan;
    m->pages = pages;
    size_t room = (pages - 1) * KV_PAGE_TOKENS;
    m->context_max = p->context_max < room ? p->context_max : room;
    m->bytes = p->fixed_bytes + pages * p->plan.kv_page_bytes;
    fingerprint(m, c, backend_mode(r->o.backend), p->model.kv_type);
    p->engine.pages = pages;
    p->engine.context_max = m->context_max;
    p->engine.notify = notify_progress;
    p->engine.notify_arg = m;
    bool ok = text_open(&m->text, c, &m->plan.info, err);
    ok = ok && (m->model = model_load(c, r->o.backend, &p->model, load_fraction, r, err));
    ok = ok && (m->engine = engine_open(m->model, &p->engine, err));
    if (!ok) {
        served_free(m);
        return NULL;
    }
    m->metrics = served_metrics_new(id);
    m->loaded_ns = clock_mono_ns();
    m->loaded_wall_ns = clock_wall_ns();
    m->load_ns = m->loaded_ns - start;
    return m;
}

/* With the lock: the idle model that was used longest ago. */
static struct entry *idle_entry(struct registry *r)
{
    struct entry *oldest = NULL;
    for (struct entry *e = r->entries; e; e = e->next)
        if (e->state == ENTRY_READY && e->refs == 0 && (!oldest || e->used_ns < oldest->used_ns))
            oldest = e;
    return oldest;
}

static size_t count_ready(const struct registry *r, bool in_use)
{
    size_t n = 0;
    for (const struct entry *e = r->entries; e; e = e->next)
        n += e->state == ENTRY_READY && (!in_use || e->refs > 0);
    return n;
}

/* With the lock, which it drops while the model is taken down. */
static void unload(struct registry *r, struct entry *e, const char *why)
{
    struct served *m = e->m;
    e->state = ENTRY_UNLOADING;
    pthread_mutex_unlock(&r->lock);
    uint64_t bytes = m->bytes;
    served_free(m);
    log_event(LOG_INFO, "model_unloaded", "model=\"%s\" why=%s bytes=%llu", e->id, why, (unsigned long long)bytes);
    pthread_mutex_lock(&r->lock);
    e->m = NULL;
    e->want_unload = 0;
    e->state = e->waiters ? ENTRY_LOADING : ENTRY_LISTED;
    r->bytes_used -= bytes;
}

/* With the lock: bytes that loads may use. */
static uint64_t budget(const struct registry *r)
{
    return r->o.memory_bytes > r->o.reserved_bytes ? r->o.memory_bytes - r->o.reserved_bytes : 0;
}

/* With the lock. Evicts and waits until `p` fits; pages to take, or 0 with err. */
static size_t make_room(struct registry *r, const char *id, const struct load_plan *p, struct err *err)
{
    uint64_t need = p->fixed_bytes + p->pages_min * p->plan.kv_page_bytes;
    if (need > budget(r)) {
        refuse(r, id, p, 0, err);
        return 0;
    }
    size_t models_max = r->o.config->models_max;
    for (;;) {
        bool crowded = models_max && count_ready(r, false) >= models_max;
        if (!crowded && r->bytes_used + need <= budget(r))
            break;
        struct entry *victim = idle_entry(r);
        if (victim) {
            unload(r, victim, crowded ? "cache_limit" : "memory");
            continue;
        }
        if (r->closing) {
            err_set(err, ERR_DRAINING, "The server is shutting down.");
            return 0;
        }
        if (count_ready(r, true) == 0) {
            refuse(r, id, p, r->bytes_used, err);
            return 0;
        }
        pthread_cond_wait(&r->changed, &r->lock); /* all are in use: until one is given back */
    }
    uint64_t left = budget(r) - r->bytes_used - p->fixed_bytes;
    /* A first model leaves half of what is left to the next ones, unless it then could not hold its own context. */
    uint64_t share = models_max == 1 ? left : left / 2;
    uint64_t pages = share / p->plan.kv_page_bytes, context = pages_for(p->context_max) + 1;
    if (pages < context)
        pages = left / p->plan.kv_page_bytes < context ? left / p->plan.kv_page_bytes : context;
    return pages < p->pages_want ? (size_t)pages : p->pages_want;
}

static struct served *load_by_id(struct registry *r, const char *id, const struct registry_load *load, struct err *err)
{
    struct catalog_entry found;
    if (!catalog_find_id(r->o.config->models_dir, str_from(id), &found, err))
        return NULL;
    struct checkpoint *c = checkpoint_open(found.path, err);
    catalog_entry_release(&found);
    struct load_plan p;
    struct served *m = NULL;
    if (c && plan_load(r, load, c, &p, err)) {
        pthread_mutex_lock(&r->lock);
        size_t pages = make_room(r, id, &p, err);
        uint64_t bytes = pages ? p.fixed_bytes + pages * p.plan.kv_page_bytes : 0;
        r->bytes_used += bytes;
        pthread_mutex_unlock(&r->lock);
        if (pages)
            m = load_model(r, id, c, &p, pages, err);
        if (!m) {
            pthread_mutex_lock(&r->lock);
            r->bytes_used -= bytes;
            pthread_mutex_unlock(&r->lock);
        }
    }
    if (c)
        checkpoint_close(c);
    if (!m)
        err_prefix(err, "Model '%s' cannot be loaded", id);
    return m;
}

/* With the lock. */
static void expire_from_now(struct entry *e)
{
    e->used_ns = clock_mono_ns();
    e->expires_ns = e->keep_alive_s < 0 ? 0 : e->used_ns + (uint64_t)(e->keep_alive_s * NS_PER_S) + 1;
}

/* With the lock, which it drops meanwhile. */
static void load_entry(struct registry *r, struct entry *e)
{
    struct registry_load load = e->load;
    pthread_mutex_unlock(&r->lock);
    atomic_store(&r->fraction, 0);
    struct err err = {0};
    log_event(LOG_INFO, "model_loading", "model=\"%s\"", e->id);
    struct served *m = load_by_id(r, e->id, &load, &err);
    if (m)
        log_event(LOG_INFO, "model_ready",
                  "model=\"%s\" architecture=%s profile=%s seconds=%.3f weights_mib=%.1f kv_pages=%zu context=%zu "
                  "total_mib=%.1f fingerprint=%s",
                  e->id, m->plan.info.architecture, profile_name(m->plan.profile), (double)m->load_ns / NS_PER_S,
                  mib(m->plan.weight_bytes), m->pages, m->context_max, mib(m->bytes), m->fingerprint);
    else
        log_event(LOG_ERROR, "model_failed", "model=\"%s\" error=\"%s\"", e->id, err.text);
    pthread_mutex_lock(&r->lock);
    struct registry_waiter *w = e->waiters;
    e->waiters = NULL;
    e->m = m;
    e->state = m ? ENTRY_READY : ENTRY_LISTED;
    r->failed_loads += m == NULL;
    e->keep_alive_s = r->o.config->keep_alive_s;
    if (m) {
        for (struct registry_waiter *i = w; i; i = i->next)
            e->refs++;
        expire_from_now(e);
    }
    pthread_mutex_unlock(&r->lock);
    while (w) {
        struct registry_waiter *next = w->next;
        w->ready(w, m, &err);
        w = next;
    }
    pthread_mutex_lock(&r->lock);
}

static struct entry *find_work(struct registry *r, bool *to_unload)
{
    uint64_t now = clock_mono_ns();
    for (struct entry *e = r->entries; e; e = e->next) {
        bool expired = e->want_unload || (e->expires_ns && e->expires_ns <= now);
        if (e->state == ENTRY_READY && e->refs == 0 && expired) {
            *to_unload = true;
            return e;
        }
    }
    *to_unload = false;
    for (struct entry *e = r->entries; e; e = e->next)
        if (e->state == ENTRY_LOADING)
            return e;
    return NULL;
}

static void *loader_main(void *arg)
{
    struct registry *r = arg;
    pthread_mutex_lock(&r->lock);
    while (!r->closing) {
        bool to_unload;
        struct entry *e = find_work(r, &to_unload);
        if (!e)
            pthread_cond_wait(&r->changed, &r->lock);
        else if (to_unload)
            unload(r, e, e->want_unload ? "asked" : "keep_alive");
        else
            load_entry(r, e);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

/* ---- public ------------------------------------------------------------------------------------------------------------ */

struct registry *registry_open(const struct registry_options *options, struct err *err)
{
    struct registry *r = calloc(1, sizeof *r);
    if (!r) {
        err_set(err, ERR_MEMORY, "Out of memory.");
        return NULL;
    }
    r->o = *options;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    if (pthread_create(&r->loader, NULL, loader_main, r) != 0) {
        err_set(err, ERR_IO, "Cannot start the loader thread.");
        free(r);
        return NULL;
    }
    return r;
}

void registry_close(struct registry *r)
{
    pthread_mutex_lock(&r->lock);
    r->closing = 1;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    pthread_join(r->loader, NULL);
    while (r->entries) {
        struct entry *e = r->entries;
        r->entries = e->next;
        served_free(e->m);
        free(e->id);
        free(e);
    }
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

static struct entry *find_entry(struct registry *r, struct str name)
{
    for (struct entry *e = r->entries; e; e = e->next)
        if (str_equal(str_from(e->id), name))
            return e;
    return NULL;
}

/* With the lock. */
static struct entry *add_entry(struct registry *r, struct str name)
{
    struct entry *e = calloc(1, sizeof *e);
    if (e && !(e->id = str_dup(name))) {
        free(e);
        e = NULL;
    }
    if (e) {
        e->next = r->entries;
        r->entries = e;
    }
    return e;
}

/* With the lock: what an explicit load asks for against what is there. */
static bool reconcile(struct entry *e, const struct registry_load *load, struct err *err)
{
    if (!load || !load->profile_given)
        return true;
    bool other = e->state == ENTRY_READY && e->m->plan.profile != load->profile && load->profile != PROFILE_AUTO;
    if (other && e->refs > 0)
        return err_set_param(err, ERR_CONFLICT, "profile",
                             "Model '%s' is loaded with profile '%s' and in use by %zu requests; unload it first (POST "
                             "/models/%s/unload).", e->id, profile_name(e->m->plan.profile), e->refs, e->id);
    e->load = *load;
    if (other)
        e->want_unload = 1;
    return true;
}

struct served *registry_acquire(struct registry *r, struct str name, const struct registry_load *load,
                                struct registry_waiter *w, int *waiting, struct err *err)
{
    *waiting = 0;
    pthread_mutex_lock(&r->lock);
    struct entry *e = find_entry(r, name);
    if (!e) {
        struct catalog_entry found;
        pthread_mutex_unlock(&r->lock);
        if (!catalog_find_id(r->o.config->models_dir, name, &found, err))
            return NULL;
        catalog_entry_release(&found);
        pthread_mutex_lock(&r->lock);
        e = find_entry(r, name);
        if (!e && !(e = add_entry(r, name))) {
            pthread_mutex_unlock(&r->lock);
            err_set(err, ERR_MEMORY, "Out of memory.");
            return NULL;
        }
    }
    struct served *m = NULL;
    if (r->closing) {
        err_set(err, ERR_DRAINING, "The server is shutting down.");
    } else if (reconcile(e, load, err)) {
        if (e->state == ENTRY_READY && !e->want_unload) {
            e->refs++;
            m = e->m;
        } else {
            w->next = e->waiters;
            e->waiters = w;
            *waiting = 1;
            if (e->state == ENTRY_LISTED)
                e->state = ENTRY_LOADING;
            pthread_cond_signal(&r->changed);
        }
    }
    pthread_mutex_unlock(&r->lock);
    return m;
}

static void give_back(struct registry *r, struct served *m, bool used, double keep_alive_s)
{
    pthread_mutex_lock(&r->lock);
    struct entry *e = find_entry(r, str_from(m->id));
    CHECK(e && e->m == m && e->refs > 0);
    e->refs--;
    if (used) {
        e->keep_alive_s = keep_alive_s;
        expire_from_now(e);
    }
    if (e->refs == 0)
        pthread_cond_signal(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

void registry_release(struct registry *r, struct served *m, double keep_alive_s)
{
    give_back(r, m, true, keep_alive_s);
}

void registry_drop(struct registry *r, struct served *m)
{
    give_back(r, m, false, 0);
}

bool registry_unload(struct registry *r, struct str name, size_t *busy)
{
    pthread_mutex_lock(&r->lock);
    struct entry *e = find_entry(r, name);
    bool loaded = e && e->state == ENTRY_READY;
    if (loaded) {
        *busy = e->refs;
        if (e->refs == 0)
            e->want_unload = 1;
        else
            e->keep_alive_s = 0;
        pthread_cond_signal(&r->changed);
    }
    pthread_mutex_unlock(&r->lock);
    return loaded;
}

void registry_tick(struct registry *r)
{
    pthread_mutex_lock(&r->lock);
    bool to_unload;
    if (find_work(r, &to_unload))
        pthread_cond_signal(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

struct preload {
    struct registry_waiter waiter;
    struct registry *registry;
};

static void preloaded(struct registry_waiter *w, struct served *m, const struct err *err)
{
    (void)err; /* the loader has logged it */
    struct preload *p = (struct preload *)w;
    if (m)
        registry_release(p->registry, m, p->registry->o.config->keep_alive_s);
    free(p);
}

void registry_preload(struct registry *r, struct str name)
{
    struct preload *p = calloc(1, sizeof *p);
    if (!p)
        return;
    p->waiter.ready = preloaded;
    p->registry = r;
    struct err err = {0};
    int waiting;
    struct served *m = registry_acquire(r, name, NULL, &p->waiter, &waiting, &err);
    if (m)
        registry_release(r, m, r->o.config->keep_alive_s);
    else if (!waiting)
        log_event(LOG_ERROR, "preload_failed", "error=\"%s\"", err.text);
    if (!waiting)
        free(p);
}

size_t registry_loaded(struct registry *r, struct served **out, size_t max)
{
    size_t n = 0;
    pthread_mutex_lock(&r->lock);
    for (struct entry *e = r->entries; e && n < max; e = e->next)
        if (e->state == ENTRY_READY) {
            e->refs++;
            out[n++] = e->m;
        }
    pthread_mutex_unlock(&r->lock);
    return n;
}

void registry_status(struct registry *r, struct registry_status *out)
{
    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&r->lock);
    out->bytes_used = r->bytes_used;
    out->bytes_max = r->o.memory_bytes;
    out->bytes_reserved = r->o.reserved_bytes;
    out->failed_loads = r->failed_loads;
    out->loading_fraction = atomic_load(&r->fraction);
    for (struct entry *e = r->entries; e; e = e->next) {
        out->loaded += e->state == ENTRY_READY;
        if (e->state == ENTRY_LOADING && out->loading++ == 0)
            snprintf(out->loading_name, sizeof out->loading_name, "%s", e->id);
    }
    pthread_mutex_unlock(&r->lock);
}

double registry_expires_s(struct registry *r, const struct served *m)
{
    pthread_mutex_lock(&r->lock);
    struct entry *e = find_entry(r, str_from(m->id));
    uint64_t now = clock_mono_ns();
    double s = !e || e->expires_ns == 0 ? -1 : e->expires_ns < now ? 0 : (double)(e->expires_ns - now) / NS_PER_S;
    pthread_mutex_unlock(&r->lock);
    return s;
}

bool registry_describe(struct registry *r, struct str name, struct buf *out, struct err *err)
{
    struct catalog_entry found;
    if (!catalog_find_id(r->o.config->models_dir, name, &found, err))
        return false;
    struct checkpoint *c = checkpoint_open(found.path, err);
    struct load_plan p;
    struct registry_load load = {0};
    bool ok = c && plan_load(r, &load, c, &p, err);
    if (ok) {
        const struct model_info *i = &p.plan.info;
        buf_printf(out, "\"architecture\":\"%s\",\"profile\":\"%s\",\"parameters\":%llu,\"max_model_len\":%zu,"
                        "\"weight_bytes\":%llu,\"kv_token_bytes\":%zu,\"n_layers\":%zu,\"n_vocab\":%zu,\"size\":%llu,"
                        "\"needs_bytes\":%llu",
                   i->architecture, profile_name(p.plan.profile), (unsigned long long)i->n_parameters, p.context_max,
                   (unsigned long long)p.plan.weight_bytes, i->kv_token_bytes, i->n_layers, i->n_vocab,
                   (unsigned long long)found.bytes,
                   (unsigned long long)(p.fixed_bytes + p.pages_min * p.plan.kv_page_bytes));
    }
    if (c)
        checkpoint_close(c);
    catalog_entry_release(&found);
    return ok;
}

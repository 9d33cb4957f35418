/* Loaded models; see registry.h. */
#include "serve/registry.h"

#include "base/clock.h"
#include "base/log.h"
#include "serve/metrics.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#define NS_PER_S 1000000000u

enum entry_state { ENTRY_LISTED, ENTRY_LOADING, ENTRY_READY, ENTRY_UNLOADING };

struct entry {
    char *id;
    char *path; /* where it was found last */
    enum entry_state state;
    struct served *m; /* READY, UNLOADING */
    size_t refs;
    double keep_alive_s;
    uint64_t used_ns;    /* last given back */
    uint64_t expires_ns; /* 0: never */
    int want_unload, unload_when_idle; /* now; when the last one has given it back */
    struct registry_load load; /* pinned by an explicit load */
    struct registry_waiter *waiters;
    struct entry *next;
};

#define CACHE_DIR_BYTES 4096

struct registry {
    struct registry_options o;
    char cache_dir[CACHE_DIR_BYTES]; /* of packed weights; "": none are kept */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* work for the loader, or a model became idle */
    pthread_t loader;
    struct entry *entries;
    uint64_t bytes_used; /* by READY, UNLOADING and the one LOADING */
    size_t failed_loads;
    _Atomic double fraction;
    int closing;
};

static double mib(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
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

static void cache_note(void *arg, const char *text)
{
    const struct served *m = arg;
    log_event(LOG_INFO, "packed_cache", "model=\"%s\" note=\"%s\"", m->id, text);
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
    if (r->cache_dir[0])
        p->model.cache = (struct model_cache_options){.dir = r->cache_dir, .bytes_max = r->o.config->cache_bytes,
                                                      .note = cache_note, .arg = m};
    m->metrics = served_metrics_new(id);
    served_metrics_cache(m->metrics, id, pages, kv_type_name(p->model.kv_type), r->o.config->prefix_cache);
    p->engine.step_rows = m->metrics ? m->metrics->iteration_tokens : NULL;
    bool ok = text_open(&m->text, c, &m->plan.info, err);
    ok = ok && (m->model = model_load(c, r->o.backend, &p->model, load_fraction, r, err));
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
    e->want_unload = e->unload_when_idle = 0;
    e->state = e->waiters ? ENTRY_LOADING : ENTRY_LISTED;
    r->bytes_used -= bytes;
}

/* With the lock. Evicts and waits until `p` fits; pages to take, or 0 with err. */
static size_t make_room(struct registry *r, const char *id, const struct load_plan *p, struct err *err)
{
    uint64_t need = load_plan_bytes_min(p), budget = r->o.memory->models;
    size_t models_max = r->o.config->models_max;
    if (need > budget) {
        load_plan_refuse(p, r->o.memory, id, 0, err);
        return 0;
    }
    for (;;) {
        bool crowded = models_max && count_ready(r, false) >= models_max;
        if (!crowded && r->bytes_used + need <= budget)
            return load_plan_pages(p, budget - r->bytes_used, models_max);
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
            load_plan_refuse(p, r->o.memory, id, r->bytes_used, err);
            return 0;
        }
        pthread_cond_wait(&r->changed, &r->lock); /* all are in use: until one is given back */
    }
}

static struct served *load_from(struct registry *r, const char *id, const char *path, const struct registry_load *load,
                                struct err *err)
{
    struct checkpoint *c = checkpoint_open(path, err);
    struct load_plan p;
    struct served *m = NULL;
    if (c && load_plan_make(r->o.config, r->o.memory, r->o.backend, load, c, &p, err)) {
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
    char *path = strdup(e->path);
    pthread_mutex_unlock(&r->lock);
    atomic_store(&r->fraction, 0);
    struct err err = {0};
    log_event(LOG_INFO, "model_loading", "model=\"%s\"", e->id);
    struct served *m = path ? load_from(r, e->id, path, &load, &err) : NULL;
    free(path);
    if (m)
        log_event(LOG_INFO, "model_ready",
                  "model=\"%s\" architecture=%s profile=%s from=%s seconds=%.3f weights_mib=%.1f kv_pages=%zu context=%zu "
                  "total_mib=%.1f fingerprint=%s stored=\"%s\" lossy=\"%s\"",
                  e->id, m->plan.info.architecture, profile_name(m->plan.profile),
                  model_from_cache(m->model) ? "cache" : "files", (double)m->load_ns / NS_PER_S,
                  mib(m->plan.weight_bytes), m->pages, m->context_max, mib(m->bytes), m->fingerprint, m->plan.stored,
                  m->plan.lossy);
    else
        log_event(LOG_ERROR, "model_failed", "model=\"%s\" error=\"%s\"", e->id, err.text);
    pthread_mutex_lock(&r->lock);
    struct registry_waiter *w = e->waiters;
    e->waiters = NULL;
    e->m = m;
    e->state = m ? ENTRY_READY : ENTRY_LISTED;
    r->failed_loads += m == NULL;
    e->keep_alive_s = r->o.config->keep_alive_s;
    e->load = (struct registry_load){0}; /* of this load alone */
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
    if (options->config->cache_bytes)
        snprintf(r->cache_dir, sizeof r->cache_dir, "%s/cache", options->config->data_dir);
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
        free(e->path);
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

/* With the lock: the loaded model that `name` stands for, told without a look at the disk; NULL: look there. */
static struct entry *find_ready(struct registry *r, struct str name, enum alias_origin origin, const char *target)
{
    struct entry *e = find_entry(r, origin == ALIAS_FILE ? str_from(target) : name);
    return e && e->state == ENTRY_READY ? e : NULL;
}

/* Takes the lock and keeps it, also when it fails. */
static struct entry *entry_for(struct registry *r, struct str name, struct err *err)
{
    char target[ALIAS_BYTES_MAX];
    enum alias_origin origin = aliases_resolve(names_aliases(r->o.names), name, target);
    pthread_mutex_lock(&r->lock);
    struct entry *e = find_ready(r, name, origin, target);
    if (e)
        return e;
    pthread_mutex_unlock(&r->lock);
    struct catalog_entry found;
    bool ok = names_find(r->o.names, name, &found, err);
    pthread_mutex_lock(&r->lock);
    if (!ok)
        return NULL;
    e = find_entry(r, str_from(found.id));
    if (!e)
        e = add_entry(r, str_from(found.id));
    if (e) {
        free(e->path);
        e->path = found.path;
        found.path = NULL;
    } else {
        err_set(err, ERR_MEMORY, "Out of memory.");
    }
    catalog_entry_release(&found);
    return e;
}

struct served *registry_acquire(struct registry *r, struct str name, const struct registry_load *load,
                                struct registry_waiter *w, int *waiting, struct err *err)
{
    *waiting = 0;
    struct entry *e = entry_for(r, name, err);
    if (!e) {
        pthread_mutex_unlock(&r->lock);
        return NULL;
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
    if (e->refs == 0) {
        e->want_unload |= e->unload_when_idle;
        pthread_cond_signal(&r->changed);
    }
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

bool registry_unload(struct registry *r, struct str id, size_t *busy)
{
    pthread_mutex_lock(&r->lock);
    struct entry *e = find_entry(r, id);
    bool loaded = e && e->state == ENTRY_READY;
    if (loaded) {
        *busy = e->refs;
        if (e->refs == 0)
            e->want_unload = 1;
        else
            e->unload_when_idle = 1;
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

void registry_preload(struct registry *r, struct str name, const struct registry_load *load)
{
    struct preload *p = calloc(1, sizeof *p);
    if (!p)
        return;
    p->waiter.ready = preloaded;
    p->registry = r;
    struct err err = {0};
    int waiting;
    struct served *m = registry_acquire(r, name, load, &p->waiter, &waiting, &err);
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

bool registry_describe(struct registry *r, const struct catalog_entry *e, struct buf *out, struct err *err)
{
    struct checkpoint *c = checkpoint_open(e->path, err);
    struct load_plan p;
    struct registry_load load = {0};
    bool ok = c && load_plan_make(r->o.config, r->o.memory, r->o.backend, &load, c, &p, err);
    if (ok)
        load_plan_write(&p, out);
    if (c)
        checkpoint_close(c);
    return ok;
}

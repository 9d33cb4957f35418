/* Loaded models; see registry.h. */
#include "serve/registry.h"

#include "base/clock.h"
#include "base/log.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#define NS_PER_S 1000000000u

enum entry_state { ENTRY_LISTED, ENTRY_LOADING, ENTRY_READY, ENTRY_RELOADING, ENTRY_UNLOADING };

struct entry {
    char *id;
    char *path;     /* where it was found last, ... */
    uint64_t bytes; /* ... of what size, and of what time */
    int64_t mtime;
    enum entry_state state;
    struct served *m; /* READY, RELOADING, UNLOADING */
    double keep_alive_s;
    uint64_t used_ns;                  /* last given back */
    uint64_t expires_ns;               /* 0: never */
    int want_unload;                   /* as soon as nobody holds it; who asks meanwhile waits for another load */
    int unload_after;                  /* RELOADING: whichever answers then is unloaded when idle */
    struct registry_load load;         /* LOADING, or want_unload: how the load under way or to come was asked for */
    uint64_t turn;                     /* order in which loads were asked for */
    int begun;                         /* its load is under way */
    int blocked;                       /* its load has found no room; until that changes */
    int drained;                       /* LOADING: for a reload that has retired the old one */
    struct registry_waiter *waiters;   /* for a model */
    struct registry_waiter *reloaders; /* for one whose load begins after they asked */
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
    struct served *retired; /* what a reload has replaced; freed when nobody holds it */
    uint64_t bytes_used;    /* by all in `entries` and `retired`, and by the one that loads */
    size_t failed_loads;
    uint64_t turns;
    int room_changed;       /* since the blocked were looked at */
    struct entry *claimant; /* the load that waits for models in use: all that becomes free is for it */
    uint64_t spare_bytes;   /* what was free when it began to wait, less what others have taken: loads that this is enough for
                                * need not wait */
    _Atomic double fraction;
};

static double mib(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

/* ---- loading (loader thread) ------------------------------------------------------------------------------------------ */

static void load_fraction(void *arg, double fraction)
{
    struct registry *r = arg;
    atomic_store(&r->fraction, fraction);
}

/* With the lock: requests get its model. */
static bool answers(const struct entry *e)
{
    return e->state == ENTRY_READY || e->state == ENTRY_RELOADING;
}

static size_t count_ready(const struct registry *r, bool in_use)
{
    size_t n = 0;
    for (const struct entry *e = r->entries; e; e = e->next)
        n += e->state == ENTRY_READY && (!in_use || e->m->refs > 0);
    return n;
}

/* With the lock: a load that nobody has asked for yet. */
static void ask(struct registry *r, struct entry *e)
{
    e->state = ENTRY_LOADING;
    e->turn = ++r->turns;
    e->keep_alive_s = r->o.config->keep_alive_s;
}

/* With the lock: it has no model now; who waits for one makes it load. */
static void rest(struct registry *r, struct entry *e)
{
    while (e->reloaders) {
        struct registry_waiter *w = e->reloaders;
        e->reloaders = w->next;
        w->next = e->waiters;
        e->waiters = w;
    }
    e->want_unload = e->unload_after = e->blocked = e->drained = 0;
    e->state = ENTRY_LISTED;
    if (e->waiters)
        ask(r, e);
    else
        e->load = (struct registry_load){0};
}

/* With the lock, which it drops while the model is taken down: nobody can find it any more. */
static void take_down(struct registry *r, struct served *m, const char *why)
{
    pthread_mutex_unlock(&r->lock);
    uint64_t bytes = m->bytes;
    log_event(LOG_INFO, "model_unloaded", "model=\"%s\" why=%s bytes=%llu", m->id, why, (unsigned long long)bytes);
    served_free(m);
    pthread_mutex_lock(&r->lock);
    r->bytes_used -= bytes;
    r->room_changed = 1;
}

/* With the lock, which it drops meanwhile. */
static void unload(struct registry *r, struct entry *e, const char *why)
{
    e->state = ENTRY_UNLOADING;
    if (e->reloaders)
        e->load = e->m->asked;
    take_down(r, e->m, why);
    e->m = NULL;
    rest(r, e);
}

/* With the lock: requests that hold it finish on it, no other gets it. */
static void retire(struct registry *r, struct entry *e)
{
    e->m->next_retired = r->retired;
    r->retired = e->m;
    e->m = NULL;
}

/* With the lock, which it drops when there is something to do: frees a retired model that nobody holds. */
static bool free_retired(struct registry *r)
{
    for (struct served **at = &r->retired; *at; at = &(*at)->next_retired)
        if ((*at)->refs == 0) {
            struct served *m = *at;
            *at = m->next_retired;
            take_down(r, m, "replaced");
            return true;
        }
    return false;
}

/* With the lock: bytes that will be free when the reload of `e` (or its load) is over. */
static uint64_t leaving_bytes(const struct registry *r, const struct entry *e)
{
    uint64_t bytes = e->m ? e->m->bytes : 0;
    for (const struct served *m = r->retired; m; m = m->next_retired)
        bytes += m->bytes;
    return bytes;
}

/* With the lock: pages that fit beside all that is there; 0: too few. What leaves soon counts as free, so that a reload gets
 * what a load would; where that does not fit yet, fewer will do if requests may still be as long. */
static size_t pages_beside(const struct registry *r, const struct entry *e, const struct load_plan *p, uint64_t budget)
{
    if (r->bytes_used + load_plan_bytes_min(p) > budget)
        return 0;
    size_t most = load_plan_pages(p, budget - r->bytes_used + leaving_bytes(r, e), r->o.config->models_max);
    uint64_t fit = (budget - r->bytes_used - p->fixed_bytes) / p->plan.kv_page_bytes;
    if (fit >= most)
        return most;
    return load_plan_context(p, (size_t)fit) == load_plan_context(p, most) ? (size_t)fit : 0;
}

/* With the lock: the idle model to evict for a load that misses room; NULL: none, for now. When idle ones suffice, that which
 * was used longest ago. Else one without whose room it cannot be in any case; the others stay until it is their turn. */
static struct entry *victim_for(struct registry *r, const struct entry *e, uint64_t need)
{
    struct entry *oldest = NULL, *in_the_way = NULL;
    uint64_t all = 0, idle = 0, budget = r->o.memory->models, used = r->bytes_used - leaving_bytes(r, e) + need;
    for (struct entry *other = r->entries; other; other = other->next)
        if (other->state == ENTRY_READY) {
            all += other->m->bytes;
            idle += other->m->refs ? 0 : other->m->bytes;
        }
    for (struct entry *other = r->entries; other; other = other->next) {
        if (other->state != ENTRY_READY || other->m->refs)
            continue;
        if (!oldest || other->used_ns < oldest->used_ns)
            oldest = other;
        if (used - (all - other->m->bytes) > budget)
            in_the_way = other;
    }
    return used - idle <= budget ? oldest : in_the_way;
}

enum room { ROOM_FOUND, ROOM_NEVER, ROOM_LATER };

/* With the lock: while another load waits for models in use, this one takes what that one cannot wait for. */
static enum room room_beside_claim(struct registry *r, struct entry *e, const struct load_plan *p, size_t *pages)
{
    uint64_t budget = r->bytes_used + r->spare_bytes;
    size_t models_max = r->o.config->models_max;
    bool crowded = models_max && count_ready(r, false) >= models_max;
    *pages = crowded ? 0 : pages_beside(r, e, p, budget < r->o.memory->models ? budget : r->o.memory->models);
    if (*pages)
        r->spare_bytes -= load_plan_bytes(p, *pages);
    return *pages ? ROOM_FOUND : ROOM_LATER;
}

/* With the lock: the first that has to wait. Others, who might still fit beside, look again. */
static void claim(struct registry *r, struct entry *e)
{
    if (r->claimant == e)
        return;
    r->claimant = e;
    r->spare_bytes = r->bytes_used < r->o.memory->models ? r->o.memory->models - r->bytes_used : 0;
    for (struct entry *other = r->entries; other; other = other->next)
        other->blocked = 0;
}

/* With the lock, which it drops meanwhile. Until `p` fits: drains the model that is loaded again, evicts idle ones. FOUND:
 * *pages are to be taken. NEVER: err says why. LATER: models in use must end first. */
static enum room make_room(struct registry *r, struct entry *e, const struct load_plan *p, size_t *pages, struct err *err)
{
    uint64_t need = load_plan_bytes_min(p), budget = r->o.memory->models;
    size_t models_max = r->o.config->models_max;
    if (need > budget) {
        load_plan_refuse(p, r->o.memory, 0, err);
        return ROOM_NEVER;
    }
    if (r->claimant && r->claimant != e)
        return room_beside_claim(r, e, p, pages);
    for (;;) {
        if (free_retired(r))
            continue;
        bool crowded = models_max && count_ready(r, false) >= models_max;
        *pages = crowded ? 0 : pages_beside(r, e, p, budget);
        if (*pages)
            return ROOM_FOUND;
        bool enough = !crowded && r->bytes_used - leaving_bytes(r, e) + need <= budget; /* as soon as what leaves is gone */
        if (enough && e->m) {
            e->load = e->m->asked;
            e->state = ENTRY_LOADING;
            e->drained = 1;
            retire(r, e);
            continue;
        }
        struct entry *victim = enough ? NULL : victim_for(r, e, need);
        if (victim) {
            unload(r, victim, crowded ? "cache_limit" : "memory");
            continue;
        }
        if (!enough && count_ready(r, true) == 0) {
            load_plan_refuse(p, r->o.memory, r->bytes_used, err);
            return ROOM_NEVER;
        }
        claim(r, e);
        return ROOM_LATER;
    }
}

/* NULL: *room tells whether it may be tried again later, else err says why. */
static struct served *load_from(struct registry *r, struct entry *e, const struct served_source *source, enum room *room,
                                struct err *err)
{
    struct checkpoint *c = checkpoint_open(source->path, err);
    struct load_plan p;
    struct served *m = NULL;
    *room = ROOM_NEVER;
    if (c && load_plan_make(r->o.config, r->o.memory, r->o.backend, &source->asked, c, &p, err)) {
        size_t pages = 0;
        pthread_mutex_lock(&r->lock);
        *room = make_room(r, e, &p, &pages, err);
        uint64_t bytes = *room == ROOM_FOUND ? load_plan_bytes(&p, pages) : 0;
        r->bytes_used += bytes;
        pthread_mutex_unlock(&r->lock);
        if (*room == ROOM_FOUND)
            m = served_load(source, c, &p, pages, err);
        if (!m && bytes) {
            pthread_mutex_lock(&r->lock);
            r->bytes_used -= bytes;
            r->room_changed = 1;
            pthread_mutex_unlock(&r->lock);
        }
    }
    if (c)
        checkpoint_close(c);
    return m;
}

/* With the lock. */
static void expire_from_now(struct entry *e)
{
    e->used_ns = clock_mono_ns();
    e->expires_ns = e->keep_alive_s < 0 ? 0 : e->used_ns + (uint64_t)(e->keep_alive_s * NS_PER_S) + 1;
}

static void log_load(const struct entry *e, const struct served *m, const struct err *err, const char *old)
{
    if (m)
        log_event(LOG_INFO, "model_ready",
                  "model=\"%s\" architecture=%s profile=%s from=%s seconds=%.3f weights_mib=%.1f kv_pages=%zu context=%zu "
                  "total_mib=%.1f fingerprint=%s old=%s stored=\"%s\" lossy=\"%s\"",
                  e->id, m->plan.info.architecture, profile_name(m->plan.profile),
                  model_from_cache(m->model) ? "cache" : "files", (double)m->load_ns / NS_PER_S, mib(m->plan.weight_bytes),
                  m->pages, m->context_max, mib(m->bytes), m->fingerprint, old, m->plan.stored, m->plan.lossy);
    else
        log_event(LOG_ERROR, "model_failed", "model=\"%s\" old=%s error=\"%s\"", e->id, old, err->text);
}

/* With the lock: the load is over, `m` is NULL where it failed. `*told` is prepended with all who learn of it, each holding
 * `m`. */
static void end_load(struct registry *r, struct entry *e, struct served *m, struct registry_waiter **told)
{
    bool beside = e->m; /* then who waits for a model waits for the old one to be unloaded, as was asked */
    while (!beside && e->waiters) {
        struct registry_waiter *w = e->waiters;
        e->waiters = w->next;
        w->next = *told;
        *told = w;
    }
    if (!beside)
        e->load = (struct registry_load){0}; /* of this load alone */
    e->begun = e->drained = 0;
    r->failed_loads += m == NULL;
    if (r->claimant == e)
        r->claimant = NULL;
    r->room_changed = 1;
    if (m) {
        if (e->m)
            retire(r, e);
        e->m = m;
        for (struct registry_waiter *w = *told; w; w = w->next)
            m->refs++;
        expire_from_now(e);
    }
    if (!e->m) {
        rest(r, e);
        return;
    }
    e->state = ENTRY_READY;
    e->m->unload_when_idle |= e->unload_after;
    e->want_unload |= e->unload_after && e->m->refs == 0;
    e->unload_after = 0;
}

/* With the lock: there is no room as long as others are in use. Who waits goes on waiting. */
static void put_off(struct entry *e, struct registry_waiter *told)
{
    while (told) {
        struct registry_waiter *w = told;
        told = w->next;
        w->next = e->reloaders;
        e->reloaders = w;
    }
    e->begun = 0;
    e->blocked = 1;
    if (e->state == ENTRY_RELOADING) {
        e->state = ENTRY_READY;
        e->m->unload_when_idle |= e->unload_after;
        e->unload_after = 0;
    }
}

/* With the lock, which it drops meanwhile. LOADING: a load. READY: loads it again, beside the old one if there is room. */
static void load_entry(struct registry *r, struct entry *e)
{
    enum load_kind kind = e->state == ENTRY_READY ? LOAD_AGAIN : LOAD_FIRST;
    char *path = strdup(e->path);
    struct served_source source = {.options = &r->o,
                                   .cache_dir = r->cache_dir,
                                   .id = e->id,
                                   .path = path,
                                   .bytes = e->bytes,
                                   .mtime = e->mtime,
                                   .kind = kind,
                                   .asked = kind == LOAD_AGAIN ? e->m->asked : e->load,
                                   .progress = load_fraction,
                                   .arg = r};
    struct registry_waiter *told = e->reloaders;
    e->reloaders = NULL;
    e->begun = 1;
    if (kind == LOAD_AGAIN)
        e->state = ENTRY_RELOADING;
    pthread_mutex_unlock(&r->lock);
    atomic_store(&r->fraction, 0);
    struct err err = {0};
    log_event(LOG_INFO, kind == LOAD_AGAIN ? "model_reloading" : "model_loading", "model=\"%s\"", e->id);
    enum room room = ROOM_NEVER;
    struct served *m = path ? load_from(r, e, &source, &room, &err) : NULL;
    if (!path)
        err_set(&err, ERR_MEMORY, "Out of memory.");
    free(path);
    if (room == ROOM_LATER) {
        log_event(LOG_INFO, "model_waits", "model=\"%s\" for=\"models in use\"", e->id);
        pthread_mutex_lock(&r->lock);
        put_off(e, told);
        return;
    }
    /* e->m and e->drained are the loader's to change */
    const char *old = e->m ? "beside" : e->drained ? "drained" : "none";
    if (!m && e->m)
        err_prefix(&err, "Model '%s' cannot be loaded again; the one loaded before goes on answering", e->id);
    else if (!m)
        err_prefix(&err, "Model '%s' cannot be loaded", e->id);
    log_load(e, m, &err, old);
    pthread_mutex_lock(&r->lock);
    end_load(r, e, m, &told);
    pthread_mutex_unlock(&r->lock);
    while (told) {
        struct registry_waiter *next = told->next;
        told->ready(told, m, &err);
        told = next;
    }
    pthread_mutex_lock(&r->lock);
}

/* With the lock: what became free is for the load that waits for it; without one, for whoever asked first. */
static void look_again(struct registry *r)
{
    struct entry *first = r->claimant;
    for (struct entry *e = r->entries; e && !r->claimant; e = e->next)
        if (e->blocked && (!first || e->turn < first->turn))
            first = e;
    if (first)
        first->blocked = 0;
    r->room_changed = 0;
}

/* With the lock: `e` goes before `other`, which may be NULL. A load before a reload, for whose model somebody answers. */
static bool goes_before(const struct entry *e, const struct entry *other)
{
    if (!other || (e->state == ENTRY_LOADING) != (other->state == ENTRY_LOADING))
        return !other || e->state == ENTRY_LOADING;
    return e->turn < other->turn;
}

static struct entry *find_work(struct registry *r, bool *to_unload)
{
    uint64_t now = clock_mono_ns();
    for (struct entry *e = r->entries; e; e = e->next) {
        bool expired = e->want_unload || (e->expires_ns && e->expires_ns <= now);
        if (e->state == ENTRY_READY && e->m->refs == 0 && expired) {
            *to_unload = true;
            return e;
        }
    }
    *to_unload = false;
    struct entry *next = NULL;
    for (struct entry *e = r->entries; e; e = e->next) {
        bool wanted = e->state == ENTRY_LOADING || (e->state == ENTRY_READY && e->reloaders);
        if (wanted && !e->begun && !e->blocked && goes_before(e, next))
            next = e;
    }
    return next;
}

static void *loader_main(void *arg)
{
    struct registry *r = arg;
    pthread_mutex_lock(&r->lock);
    for (;;) {
        bool to_unload;
        if (free_retired(r))
            continue;
        if (r->room_changed)
            look_again(r);
        struct entry *e = find_work(r, &to_unload);
        if (!e)
            pthread_cond_wait(&r->changed, &r->lock);
        else if (to_unload)
            unload(r, e, e->want_unload ? "asked" : "keep_alive");
        else
            load_entry(r, e);
    }
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

/* With the lock: what an explicit load asks for against what is there, or on its way. */
static bool reconcile(struct entry *e, const struct registry_load *load, struct err *err)
{
    if (!load || !load->profile_given)
        return true;
    if (answers(e) && !e->want_unload) {
        if (e->m->plan.profile == load->profile)
            return true;
        if (e->state == ENTRY_RELOADING)
            return err_set_param(
                err, ERR_CONFLICT, "profile",
                "Model '%s' is being loaded again with profile '%s'; you asked for '%s'. Try again when that is "
                "over.",
                e->id, profile_name(e->m->plan.profile), profile_name(load->profile));
        if (e->m->refs > 0)
            return err_set_param(err, ERR_CONFLICT, "profile",
                                 "Model '%s' is loaded with profile '%s' and in use (%zu requests); you asked for '%s'. Unload "
                                 "it first (POST /models/%s/unload).",
                                 e->id, profile_name(e->m->plan.profile), e->m->refs, profile_name(load->profile), e->id);
        e->want_unload = 1;
        e->load = *load;
        return true;
    }
    if (e->load.profile_given && e->load.profile != load->profile)
        return err_set_param(err, ERR_CONFLICT, "profile",
                             "Model '%s' is being loaded with profile '%s', as another request asked; you asked for '%s'. Wait "
                             "until it is loaded, unload it (POST /models/%s/unload), and load it again.",
                             e->id, profile_name(e->load.profile), profile_name(load->profile), e->id);
    if (!e->begun)
        e->load = *load;
    return true;
}

/* With the lock: the loaded model that `name` stands for, told without a look at the disk; NULL: look there. */
static struct entry *find_ready(struct registry *r, const char *name)
{
    struct entry *e = find_entry(r, str_from(name));
    return e && answers(e) ? e : NULL;
}

/* Takes the lock and keeps it, also when it fails. Looks at the disk. */
static struct entry *entry_on_disk(struct registry *r, struct str name, struct err *err)
{
    struct catalog_entry found;
    bool ok = names_find(r->o.names, name, &found, err);
    pthread_mutex_lock(&r->lock);
    if (!ok)
        return NULL;
    struct entry *e = find_entry(r, str_from(found.id));
    if (!e)
        e = add_entry(r, str_from(found.id));
    if (e) {
        free(e->path);
        e->path = found.path;
        e->bytes = found.bytes;
        e->mtime = found.mtime;
        found.path = NULL;
    } else {
        err_set(err, ERR_MEMORY, "Out of memory.");
    }
    catalog_entry_release(&found);
    return e;
}

/* The same, without the disk where the model is loaded. */
static struct entry *entry_for(struct registry *r, struct str name, struct err *err)
{
    char own[ALIAS_BYTES_MAX];
    aliases_of_file(names_aliases(r->o.names), name, own);
    pthread_mutex_lock(&r->lock);
    struct entry *e = find_ready(r, own);
    if (e)
        return e;
    pthread_mutex_unlock(&r->lock);
    return entry_on_disk(r, name, err);
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
    if (reconcile(e, load, err)) {
        if (answers(e) && !e->want_unload) {
            e->m->refs++;
            m = e->m;
        } else {
            w->next = e->waiters;
            e->waiters = w;
            *waiting = 1;
            if (e->state == ENTRY_LISTED)
                ask(r, e);
            pthread_cond_signal(&r->changed);
        }
    }
    pthread_mutex_unlock(&r->lock);
    return m;
}

bool registry_reload(struct registry *r, struct str name, struct registry_waiter *w, struct err *err)
{
    struct entry *e = entry_on_disk(r, name, err);
    if (e) {
        if (!e->reloaders && e->state == ENTRY_READY)
            e->turn = ++r->turns;
        w->next = e->reloaders;
        e->reloaders = w;
        if (e->state == ENTRY_LISTED)
            rest(r, e);
        pthread_cond_signal(&r->changed);
    }
    pthread_mutex_unlock(&r->lock);
    return e != NULL;
}

static void give_back(struct registry *r, struct served *m, bool used, double keep_alive_s)
{
    pthread_mutex_lock(&r->lock);
    struct entry *e = find_entry(r, str_from(m->id));
    CHECK(e && m->refs > 0);
    m->refs--;
    if (used) {
        e->keep_alive_s = keep_alive_s;
        expire_from_now(e);
    }
    if (m->refs == 0) {
        e->want_unload |= e->m == m && m->unload_when_idle;
        r->room_changed = 1;
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
    bool loaded = e && answers(e);
    if (loaded) {
        *busy = e->m->refs;
        if (e->state == ENTRY_RELOADING)
            e->unload_after = 1;
        else if (e->m->refs == 0)
            e->want_unload = 1;
        else
            e->m->unload_when_idle = 1;
        pthread_cond_signal(&r->changed);
    }
    pthread_mutex_unlock(&r->lock);
    return loaded;
}

bool registry_retire(struct registry *r, struct str id, struct err *err)
{
    pthread_mutex_lock(&r->lock);
    struct entry *e = find_entry(r, id);
    size_t held = 0;
    for (const struct served *m = r->retired; m; m = m->next_retired)
        held += str_equal(str_from(m->id), id) ? m->refs : 0;
    bool ok = true;
    if (e && e->state != ENTRY_LISTED && e->state != ENTRY_READY)
        ok = err_set_param(err, ERR_CONFLICT, "model", "Model '%s' is being loaded or unloaded; try again when that is over.",
                           e->id);
    else if (e && e->m && (held += e->m->refs) > 0)
        ok = err_set_param(err, ERR_CONFLICT, "model",
                           "Model '%s' is in use (%zu requests); try again when they have "
                           "ended.",
                           e->id, held);
    else if (e && e->m)
        e->want_unload = 1;
    pthread_cond_signal(&r->changed);
    pthread_mutex_unlock(&r->lock);
    return ok;
}

void registry_tick(struct registry *r)
{
    pthread_mutex_lock(&r->lock);
    bool to_unload;
    if (find_work(r, &to_unload) || r->retired)
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

size_t registry_loaded(struct registry *r, struct served *out[static REGISTRY_LOADED_MAX])
{
    size_t n = 0;
    pthread_mutex_lock(&r->lock);
    for (struct entry *e = r->entries; e && n < REGISTRY_LOADED_MAX; e = e->next)
        if (answers(e)) {
            e->m->refs++;
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
    const struct entry *shown = NULL;
    for (const struct entry *e = r->entries; e; e = e->next) {
        out->loaded += answers(e);
        out->loading += e->state == ENTRY_LOADING;
        if (e->state == ENTRY_LOADING && (!shown || e->begun))
            shown = e;
    }
    if (shown)
        snprintf(out->loading_name, sizeof out->loading_name, "%s", shown->id);
    if (shown && shown->begun)
        out->loading_fraction = atomic_load(&r->fraction);
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

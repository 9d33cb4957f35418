/* Loaded models: loads on first use, shares a load among all who wait, evicts idle ones when the budget or
 * MAX_CACHE_MODELS asks for it, never one in use.
 *
 *   (listed) --acquire--> LOADING --ok--> READY --idle & (expired | evicted | unload)--> UNLOADING --> (listed)
 *                          ^    \--error--> (listed), everyone who waited gets the error
 *                          |
 *           memory is short: the old is retired first
 *                          |
 *   READY --reload--> RELOADING --ok: the new one takes the place, the old is retired--> READY
 *                               \--error--> READY with the old
 *
 * A retired model is found by nobody: who holds it finishes on it, and it is freed when the last one gives it back.
 * LOADING: requests wait. RELOADING: they get the old one. A load never evicts another model for room that what is retired,
 * or the old one of the reload, will leave.
 *
 * A load that finds no room because models are in use is put off: it claims all that becomes free, in the order of asking, and
 * is tried again when something did. Other loads go on meanwhile with what was free when it began to wait, and evict nothing.
 *
 * Thread: any thread may call; one loader thread does all loading and unloading. The lock is held for moments only.
 */
#ifndef INFERD_SERVE_REGISTRY_H
#define INFERD_SERVE_REGISTRY_H

#include "serve/names.h"
#include "serve/plan.h"
#include "serve/serve.h"
#include "serve/served.h"

struct registry;

struct registry_options {
    const struct serve_config *config;
    struct backend *backend;
    struct names *names;
    const struct memory_plan *memory;
    void (*progress)(void *arg, struct served *m); /* engine thread: m has something new */
    void (*settle)(void *arg);                     /* loader thread: returns when what progress() started is over */
    void *arg;
};

/* For the process's life: a load under way at its end is not waited for. */
struct registry *registry_open(const struct registry_options *options, struct err *err);

/* Somebody who waits for a load. `ready` is called once, on the loader thread, with a held model or with an error. */
struct registry_waiter {
    void (*ready)(struct registry_waiter *w, struct served *m, const struct err *err);
    struct registry_waiter *next;
};

/* A held model when it is ready. Else NULL: with *waiting set, `w` will be told (w is the registry's until then), else
 * err says why. `load` may be NULL; ERR_CONFLICT where its profile is not that of the model in use, or of another explicit
 * load. A load that nobody gave a profile is waited for: whether its profile is the wanted one shows in the model. */
struct served *registry_acquire(struct registry *r, struct str name, const struct registry_load *load,
                                struct registry_waiter *w, int *waiting, struct err *err);
/* Loads it again from its files, which are looked up anew, as it was loaded before; one that is not loaded is loaded. `w` is
 * told when the new one answers. All who ask before the load begins share it. False: err says why, `w` is not told. */
bool registry_reload(struct registry *r, struct str name, struct registry_waiter *w, struct err *err);
/* Gives a held model back. keep_alive_s: how long it stays when idle (< 0: for ever). */
void registry_release(struct registry *r, struct served *m, double keep_alive_s);
/* Unloads as soon as it is idle. False: not loaded. *busy: how many hold it now. */
bool registry_unload(struct registry *r, struct str id, size_t *busy);
/* Its files are about to go: unloads it. ERR_CONFLICT while it is in use or being loaded. One that is not loaded is fine. */
bool registry_retire(struct registry *r, struct str id, struct err *err);
/* Looks for expired models; called about once a second. */
void registry_tick(struct registry *r);

/* Starts loading in the background; errors are logged. */
void registry_preload(struct registry *r, struct str name);

/* A snapshot of what is loaded, each held: give back with registry_drop. Returns how many. */
#define REGISTRY_LOADED_MAX 256 /* as many as --max-cache-models may say; more are left out */
size_t registry_loaded(struct registry *r, struct served *out[static REGISTRY_LOADED_MAX]);
void registry_drop(struct registry *r, struct served *m);
struct registry_status {
    size_t loaded, loading, failed_loads;
    uint64_t bytes_used;
    char loading_name[128]; /* of the load under way; where none is, of one that waits */
    double loading_fraction;
};
void registry_status(struct registry *r, struct registry_status *out);
/* When an idle model will be unloaded: seconds from now; negative: never. 0 while in use is keep_alive to come. */
double registry_expires_s(struct registry *r, const struct served *m);
/* What a load of `e` would take, as the inside of a JSON object (for show). */
bool registry_describe(struct registry *r, const struct catalog_entry *e, struct buf *out, struct err *err);

#endif

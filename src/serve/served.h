/* One loaded model: from a plan to something that answers. The loader thread makes and frees it; who holds it may use it. */
#ifndef INFERD_SERVE_SERVED_H
#define INFERD_SERVE_SERVED_H

#include "engine/engine.h"
#include "serve/plan.h"
#include "serve/text.h"

struct registry_options;

#define SERVED_FINGERPRINT_BYTES 24

/* A model that answers. Immutable, but for the last part; alive while somebody holds it. */
struct served {
    char *id;
    const struct registry_options *options;
    struct registry_load asked; /* how its load was asked for: a reload does the same */
    struct model_plan plan;
    struct model *model;
    struct engine *engine;
    struct served_text text; /* tokenizer, template, defaults */
    size_t context_max;      /* tokens a request may have: what the model and the pages allow */
    size_t pages;
    uint64_t bytes;     /* planned, all of it */
    uint64_t loaded_ns; /* clock_mono_ns */
    uint64_t load_ns;   /* how long it took */
    uint64_t loaded_wall_ns;
    char fingerprint[SERVED_FINGERPRINT_BYTES];
    struct served_metrics *metrics;
    _Atomic int progress_posted; /* stream.c: a wake of the http thread is under way */
    size_t refs;                 /* registry.c's, with its lock: who holds it */
    int unload_when_idle;        /* the same */
    struct served *next_retired; /* the same */
};

/* Before it answers anybody, its logits must be finite, else ERR_MODEL_DAMAGED. FIRST: behind one fixed id, which costs little.
 * AGAIN: those of a short self_test_answer, for an old one is there that may stay; and where there is a kept answer of these
 * files, or a golden.json for the exact profile, it must be that (golden.h). */
enum load_kind { LOAD_FIRST, LOAD_AGAIN };

/* How to load; all borrowed, options and cache_dir for the model's life. */
struct served_source {
    const struct registry_options *options;
    const char *cache_dir; /* of packed weights; "": none are kept */
    const char *id;
    const char *path; /* of its files; their bytes and time as the catalog has them */
    uint64_t bytes;
    int64_t mtime;
    enum load_kind kind;
    struct registry_load asked;
    void (*progress)(void *arg, double fraction);
    void *arg;
};

/* Takes load_plan_bytes(p, pages). */
struct served *served_load(const struct served_source *source, struct checkpoint *c, struct load_plan *p, size_t pages,
                           struct err *err);
/* NULL is fine. Nobody holds it. */
void served_free(struct served *m);

#endif

/* Memory, before any of it is taken: what the process, its connections and its requests may use, what is left for models,
 * and what a load of a model needs. Pure arithmetic over a configuration and a checkpoint. Thread: any.
 *
 *   --memory = process + connections + requests + models
 */
#ifndef INFERD_SERVE_PLAN_H
#define INFERD_SERVE_PLAN_H

#include "base/buf.h"
#include "engine/engine.h"
#include "serve/serve.h"

#define PLAN_CONNECTION_BYTES ((uint64_t)64 << 10)    /* what one connection can hold: head, parser's pool, bookkeeping */
#define PLAN_INT4_ABOVE_BYTES ((uint64_t)14000000000) /* of 16-bit weights: profile auto takes int4 */

struct memory_plan {
    uint64_t total;           /* the ceiling */
    uint64_t process;         /* binary, stacks, tables, the allocator's slack */
    uint64_t connections;     /* n_connections times what one may hold */
    uint64_t requests;        /* bodies, parsed requests, replies under way: handed out by a ledger */
    uint64_t models;          /* all the rest */
    unsigned n_connections;   /* --max-connections, or fewer where memory is small */
    unsigned connections_max; /* --max-connections */
};
void memory_plan_make(const struct serve_config *config, struct memory_plan *out);
/* The members as the inside of a JSON object. */
void memory_plan_write(const struct memory_plan *m, struct buf *out);

/* How a load is to be made; zero for the server's own choice. */
struct registry_load {
    int profile_given;
    enum profile profile;
};

struct load_plan {
    struct model_options model;
    struct model_plan plan;
    struct engine_options engine;
    uint64_t fixed_bytes; /* everything but pages */
    size_t pages_min, pages_want;
    size_t context_max;
};
/* `backend` may be NULL: its scratch is then not counted. */
bool load_plan_make(const struct serve_config *config, const struct memory_plan *memory, const struct backend *backend,
                    const struct registry_load *load, struct checkpoint *c, struct load_plan *p, struct err *err);
/* The least that the load needs: with the fewest pages. */
uint64_t load_plan_bytes_min(const struct load_plan *p);
/* What it takes with so many pages, and the tokens that a request may then have. */
uint64_t load_plan_bytes(const struct load_plan *p, size_t pages);
size_t load_plan_context(const struct load_plan *p, size_t pages);
/* Pages to take where `left` bytes (at least load_plan_bytes_min) are free. */
size_t load_plan_pages(const struct load_plan *p, uint64_t left, size_t models_max);
/* ERR_MEMORY with the arithmetic, in words behind which model it is; `others`: bytes of models that cannot go now. */
bool load_plan_refuse(const struct load_plan *p, const struct memory_plan *memory, uint64_t others, struct err *err);
/* The members as the inside of a JSON object. */
void load_plan_write(const struct load_plan *p, struct buf *out);

#endif

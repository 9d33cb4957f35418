/* Memory, before any of it is taken; see plan.h. */
#include "serve/plan.h"

#include <string.h>

#define KV_TOKENS_TARGET   131072u              /* KV room that a model gets when memory allows */
#define KV_TOKENS_MIN      512u                 /* less room than this (or the model's context) is refused */
#define LOAD_SLACK_BYTES   ((uint64_t)24 << 20) /* source pages still mapped, stacks, small tables of a loaded model */
#define TOKENIZER_ID_BYTES 256u                 /* of a tokenizer, for each id */
#define PROCESS_BYTES      ((uint64_t)28 << 20)
#define CONNECTIONS_SHARE  16 /* of the ceiling: one part in so many at most */
#define CONNECTIONS_MIN    16u
#define REQUESTS_SHARE     16
#define REQUESTS_BYTES_MIN ((uint64_t)16 << 20)
#define REQUESTS_BYTES_MAX ((uint64_t)512 << 20)

static double mib(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

static void divide(uint64_t total, unsigned connections_max, struct memory_plan *m)
{
    *m = (struct memory_plan){
        .total = total, .process = PROCESS_BYTES, .n_connections = connections_max, .connections_max = connections_max};
    uint64_t most = m->total / CONNECTIONS_SHARE / PLAN_CONNECTION_BYTES;
    if (m->n_connections > most)
        m->n_connections = most > CONNECTIONS_MIN ? (unsigned)most : CONNECTIONS_MIN;
    m->connections = m->n_connections * PLAN_CONNECTION_BYTES;
    m->requests = m->total / REQUESTS_SHARE;
    if (m->requests < REQUESTS_BYTES_MIN)
        m->requests = REQUESTS_BYTES_MIN;
    if (m->requests > REQUESTS_BYTES_MAX)
        m->requests = REQUESTS_BYTES_MAX;
    uint64_t others = m->process + m->connections + m->requests;
    m->models = m->total > others ? m->total - others : 0;
}

void memory_plan_make(const struct serve_config *config, struct memory_plan *m)
{
    divide(config->memory_bytes ? config->memory_bytes : serve_memory_auto(), config->connections_max, m);
}

/* The least --memory in MiB that leaves so much for models: what the server itself takes grows with the ceiling, by an
 * eighth at most. */
static uint64_t ceiling_mib(const struct memory_plan *now, uint64_t models)
{
    struct memory_plan m = *now;
    uint64_t all = (models >> 20) + 1;
    for (divide(all << 20, now->connections_max, &m); m.models < models; divide(all << 20, now->connections_max, &m))
        all += ((models - m.models) >> 20) + 1;
    return all;
}

void memory_plan_write(const struct memory_plan *m, struct buf *out)
{
    buf_printf(out,
               "\"total\":%llu,\"process\":%llu,\"connections\":%llu,\"requests\":%llu,\"models\":%llu,"
               "\"max_connections\":%u",
               (unsigned long long)m->total, (unsigned long long)m->process, (unsigned long long)m->connections,
               (unsigned long long)m->requests, (unsigned long long)m->models, m->n_connections);
}

static size_t pages_for(size_t tokens)
{
    return (tokens + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
}

static bool plan_with(const struct serve_config *config, struct checkpoint *c, enum profile profile,
                      const struct backend *backend, struct load_plan *p, struct err *err)
{
    memset(p, 0, sizeof *p);
    p->model = (struct model_options){.profile = profile,
                                      .kv_type = config->kv_type,
                                      .rows_max = config->rows_max,
                                      .logit_rows_max = config->rows_max,
                                      .context_max = config->context_max,
                                      .backend = backend};
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
    p->fixed_bytes = p->plan.weight_bytes + p->plan.scratch_bytes +
                     engine_overhead_bytes(&p->plan.info, &p->engine, backend ? backend_threads(backend) : 1) +
                     (uint64_t)p->plan.info.n_vocab * TOKENIZER_ID_BYTES + p->plan.tensor_bytes_max + LOAD_SLACK_BYTES;
    return true;
}

bool load_plan_make(const struct serve_config *config, const struct memory_plan *memory, const struct backend *backend,
                    const struct registry_load *load, struct checkpoint *c, struct load_plan *p, struct err *err)
{
    enum profile profile = load->profile_given ? load->profile : config->profile;
    if (!plan_with(config, c, profile, backend, p, err))
        return false;
    bool large = load_plan_bytes_min(p) > memory->models ||
                 (p->plan.profile == PROFILE_FP16 && p->plan.weight_bytes > PLAN_INT4_ABOVE_BYTES);
    struct load_plan smaller;
    if (profile == PROFILE_AUTO && large && plan_with(config, c, PROFILE_INT4, backend, &smaller, NULL) &&
        smaller.plan.weight_bytes < p->plan.weight_bytes)
        *p = smaller; /* where this does not fit either, the refusal tells the least that would do */
    return true;
}

uint64_t load_plan_bytes(const struct load_plan *p, size_t pages)
{
    return p->fixed_bytes + pages * p->plan.kv_page_bytes;
}

uint64_t load_plan_bytes_min(const struct load_plan *p)
{
    return load_plan_bytes(p, p->pages_min);
}

size_t load_plan_context(const struct load_plan *p, size_t pages)
{
    size_t room = (pages - 1) * KV_PAGE_TOKENS;
    return p->context_max < room ? p->context_max : room;
}

size_t load_plan_pages(const struct load_plan *p, uint64_t left, size_t models_max)
{
    left -= p->fixed_bytes;
    /* A first model leaves half of what is left to the next ones, unless it then could not hold its own context. */
    uint64_t share = models_max == 1 ? left : left / 2;
    uint64_t pages = share / p->plan.kv_page_bytes, context = pages_for(p->context_max) + 1;
    if (pages < context)
        pages = left / p->plan.kv_page_bytes < context ? left / p->plan.kv_page_bytes : context;
    return pages < p->pages_want ? (size_t)pages : p->pages_want;
}

bool load_plan_refuse(const struct load_plan *p, const struct memory_plan *m, uint64_t others, struct err *err)
{
    uint64_t need = load_plan_bytes_min(p), server = m->total - m->models;
    uint64_t have = m->models > others ? m->models - others : 0;
    return err_set(err, ERR_MEMORY,
                   "it does not fit: with profile %s it needs %llu bytes (weights %.1f MiB, scratch %.1f MiB, "
                   "tokenizer and loading %.1f MiB, at least %zu KV pages of %.2f MiB) and %llu bytes are available "
                   "(--memory %llu less %llu for the server and %llu for models in use). Give at least --memory %lluM, or "
                   "take a smaller model or profile.",
                   profile_name(p->plan.profile), (unsigned long long)need, mib(p->plan.weight_bytes),
                   mib(p->plan.scratch_bytes), mib(p->fixed_bytes - p->plan.weight_bytes - p->plan.scratch_bytes), p->pages_min,
                   mib(p->plan.kv_page_bytes), (unsigned long long)have, (unsigned long long)m->total,
                   (unsigned long long)server, (unsigned long long)others, (unsigned long long)ceiling_mib(m, need + others));
}

void load_plan_write(const struct load_plan *p, struct buf *out)
{
    const struct model_info *i = &p->plan.info;
    buf_printf(out,
               "\"architecture\":\"%s\",\"profile\":\"%s\",\"parameters\":%llu,\"max_model_len\":%zu,"
               "\"weight_bytes\":%llu,\"kv_token_bytes\":%zu,\"n_layers\":%zu,\"n_vocab\":%zu,"
               "\"scratch_bytes\":%llu,\"loading_bytes\":%llu,\"kv_page_bytes\":%llu,\"kv_pages_min\":%zu,"
               "\"needs_bytes\":%llu",
               i->architecture, profile_name(p->plan.profile), (unsigned long long)i->n_parameters, p->context_max,
               (unsigned long long)p->plan.weight_bytes, i->kv_token_bytes, i->n_layers, i->n_vocab,
               (unsigned long long)p->plan.scratch_bytes,
               (unsigned long long)(p->fixed_bytes - p->plan.weight_bytes - p->plan.scratch_bytes),
               (unsigned long long)p->plan.kv_page_bytes, p->pages_min, (unsigned long long)load_plan_bytes_min(p));
}

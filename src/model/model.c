/* Loading a model and running a step: the plan, the two blocks of memory, and what all architectures' forwards share. */
#include "model/model_impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS_MAX      ((size_t)1 << 16)
#define SCRATCH_ALIGN 64

const char *profile_name(enum profile p)
{
    switch (p) {
    case PROFILE_AUTO: return "auto";
    case PROFILE_FP16: return "fp16";
    case PROFILE_NATIVE: return "native";
    case PROFILE_INT8: return "int8";
    case PROFILE_INT4: return "int4";
    }
    return "?";
}

enum profile profile_from_name(const char *name, size_t len)
{
    for (enum profile p = PROFILE_FP16; p <= PROFILE_INT4; p++)
        if (strlen(profile_name(p)) == len && memcmp(profile_name(p), name, len) == 0)
            return p;
    return PROFILE_AUTO;
}

/* ---- plan ---- */

static size_t max_of(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Cuts `n` elements of `size` off a block at *at; base NULL only counts. */
static void *cut(unsigned char *base, size_t *at, size_t n, size_t size)
{
    void *p = base ? base + *at : NULL;
    *at += (n * size + SCRATCH_ALIGN - 1) / SCRATCH_ALIGN * SCRATCH_ALIGN;
    return p;
}

/* Sets the buffers of a step in `base` (NULL: only counts); returns their bytes. Sizes are limited by model_config. */
static size_t scratch_layout(struct model *m, void *base)
{
    const struct model_config *c = &m->config;
    size_t rows = m->options.rows_max, ends = m->options.logit_rows_max, at = 0, f = sizeof(float);
    size_t q = c->n_heads * c->head_dim, qkv = q + 2 * c->n_kv_heads * c->head_dim;
    struct scratch *s = &m->s;
    s->x = cut(base, &at, rows * c->width, f);
    s->normed = cut(base, &at, rows * max_of(c->width, c->n_embed), f);
    s->wide = cut(base, &at, rows * max_of(qkv, c->arch->up_parts * c->n_inner), f);
    s->narrow = cut(base, &at, rows * max_of(q, c->n_inner), f);
    s->cos_sin = cut(base, &at, rows * 2 * m->rope.n_pairs, f);
    s->local_cos_sin = cut(base, &at, c->has_local_rope ? rows * 2 * m->local_rope.n_pairs : 0, f);
    s->index = cut(base, &at, rows, sizeof(int32_t));
    s->hidden = cut(base, &at, ends * c->width, f);
    s->projected = cut(base, &at, c->n_embed == c->width ? 0 : ends * c->n_embed, f);
    s->logits = cut(base, &at, ends * c->n_vocab, f);
    return at;
}

static struct backend_sizes backend_sizes_of(const struct model *m)
{
    const struct model_config *c = &m->config;
    size_t q = c->n_heads * c->head_dim, qkv = q + 2 * c->n_kv_heads * c->head_dim;
    size_t in = max_of(max_of(c->width, c->n_embed), max_of(q, c->n_inner));
    size_t out = max_of(max_of(qkv, c->arch->up_parts * c->n_inner), max_of(max_of(c->width, c->n_embed), c->n_vocab));
    return (struct backend_sizes){
        .rows_max = m->options.rows_max, .in_max = in, .out_max = out, .heads_max = c->n_heads, .head_dim_max = c->head_dim};
}

/* Scalings that stretch a context beyond max_position_embeddings say by how much; a file may have counted that already. */
static size_t context_of(const struct model_config *c)
{
    double context = (double)c->context_max;
    if (c->rope.kind == ROPE_DYNAMIC)
        context *= c->rope.factor;
    if (c->rope.kind == ROPE_YARN)
        context = fmax(context, (double)c->rope.original_context * c->rope.factor);
    return (size_t)fmin(context, (double)CONFIG_CONTEXT_MAX);
}

static void fill_info(const struct model *m, const struct checkpoint *c, struct model_info *info)
{
    const struct model_config *config = &m->config;
    snprintf(info->architecture, sizeof info->architecture, "%s", config->architecture);
    info->n_layers = config->n_layers;
    info->width = config->width;
    info->n_heads = config->n_heads;
    info->n_kv_heads = config->n_kv_heads;
    info->head_dim = config->head_dim;
    info->n_inner = config->n_inner;
    info->n_vocab = config->n_vocab;
    info->context_max = context_of(config);
    if (m->options.context_max > 0 && m->options.context_max < info->context_max)
        info->context_max = m->options.context_max;
    info->window = config->window;
    info->n_parameters = checkpoint_n_parameters(c);
    info->bos = config->bos;
    info->n_eos = config->n_eos;
    memcpy(info->eos, config->eos, sizeof info->eos);
}

struct kv_cache model_kv_shape(const struct model *m)
{
    const struct model_config *c = &m->config;
    struct kv_cache kv = {.type = m->plan.kv_type,
                          .n_layers = c->n_layers,
                          .n_kv_heads = c->n_kv_heads,
                          .head_dim_k = c->head_dim,
                          .head_dim_v = c->head_dim};
    kv_cache_plan(&kv);
    return kv;
}

const char *weight_kind_name(enum weight_kind kind)
{
    static const char *const NAMES[WEIGHT_KINDS] = {"embedding", "attention", "MLP", "output matrix", "norms and biases"};
    return NAMES[kind];
}

static enum weight_kind kind_of(const struct model *m, const struct weight *w)
{
    uintptr_t at = (uintptr_t)w, layers = (uintptr_t)m->layers;
    if (!w)
        return KIND_VECTORS;
    if (at >= layers && at < layers + m->config.n_layers * sizeof(struct layer))
        return (at - layers) % sizeof(struct layer) < offsetof(struct layer, up) ? KIND_ATTENTION : KIND_MLP;
    return at >= (uintptr_t)&m->head && at < (uintptr_t)(&m->head + 1) ? KIND_HEAD : KIND_EMBEDDING;
}

/* "Q2_K (14 tensors), ..."; empty when every value is held exactly. */
static void describe_losses(const struct binder *b, char *out, size_t size)
{
    size_t len = 0;
    out[0] = 0;
    for (int t = 0; t < DTYPE_COUNT && len < size; t++) {
        if (b->lossy_types[t])
            len +=
                (size_t)snprintf(out + len, size - len, "%s%s (%u tensors)",
                                 len ? ", " : "rounded to a near form: ", dtype_info((enum dtype)t)->name, b->lossy_types[t]);
    }
}

static bool check_options(const struct model_options *o, struct err *err)
{
    if (o->rows_max == 0 || o->rows_max > ROWS_MAX || o->logit_rows_max == 0 || o->logit_rows_max > o->rows_max)
        return err_set(err, ERR_USAGE,
                       "a step of %zu rows with %zu rows of logits: expected 1 to %zu, and no more logits "
                       "than rows",
                       o->rows_max, o->logit_rows_max, ROWS_MAX);
    return true;
}

/* Everything about a load but the memory: config, frequencies, binding, sums. `binder` is released by the caller. */
static bool prepare(struct model *m, struct checkpoint *c, const struct model_options *options, struct binder *binder,
                    struct err *err)
{
    struct model_plan *plan = &m->plan;
    m->options = *options;
    *binder = (struct binder){0};
    if (!check_options(options, err) || !model_config_read(c, &m->config, err) || !rope_init(&m->rope, &m->config.rope, err) ||
        (m->config.has_local_rope && !rope_init(&m->local_rope, &m->config.local_rope, err)))
        return false;
    m->layers = calloc(m->config.n_layers, sizeof *m->layers);
    if (!m->layers)
        return err_set(err, ERR_MEMORY, "no memory left for the list of %zu layers", m->config.n_layers);
    plan->profile = weights_profile(c, &m->config.quant, options->profile);
    plan->kv_type = options->kv_type;
    if (plan->kv_type == KV_AUTO) /* docs/decisions/0006-* */
        plan->kv_type = plan->profile == PROFILE_INT8 || plan->profile == PROFILE_INT4 ? KV_I16 : KV_I24;
    if (!binder_run(binder, c, m, plan->profile, err))
        return false;
    fill_info(m, c, &plan->info);
    if (checkpoint_is_shape(c) || m->config.quant.method != QUANT_NONE)
        plan->info.n_parameters = binder->n_elements; /* not what the files' words are */
    struct kv_cache kv = model_kv_shape(m);
    struct backend_sizes sizes = backend_sizes_of(m);
    m->weights_bytes = binder->bytes;
    m->scratch_bytes = scratch_layout(m, NULL);
    plan->weight_bytes = plan->info.weight_bytes = binder->bytes;
    for (size_t i = 0; i < binder->n_items; i++) {
        size_t end = i + 1 < binder->n_items ? binder->items[i + 1].offset : binder->bytes;
        plan->kind_bytes[kind_of(m, binder->items[i].weight)] += end - binder->items[i].offset;
    }
    plan->scratch_bytes = m->scratch_bytes;
    if (options->backend)
        plan->scratch_bytes += backend_scratch_bytes(options->backend, &sizes);
    plan->kv_page_bytes = kv_cache_plan(&kv);
    plan->info.kv_token_bytes = plan->kv_page_bytes / KV_PAGE_TOKENS;
    plan->tensor_bytes_max = binder->tensor_bytes_max;
    describe_losses(binder, plan->lossy, sizeof plan->lossy);
    return true;
}

/* What is wrong with a file that was written meanwhile follows from that. */
static void blame_changes(const struct checkpoint *c, struct err *err)
{
    struct err changed = {0};
    if ((err->code == ERR_MODEL_DAMAGED || err->code == ERR_MODEL_UNSUPPORTED) && !checkpoint_is_unchanged(c, &changed))
        *err = changed;
}

bool model_plan(struct checkpoint *c, const struct model_options *options, struct model_plan *plan, struct err *err)
{
    struct binder binder = {0};
    struct model *m = calloc(1, sizeof *m);
    if (!m)
        return err_set(err, ERR_MEMORY, "no memory left to plan a model");
    bool ok = prepare(m, c, options, &binder, err);
    *plan = m->plan;
    binder_release(&binder);
    model_free(m);
    if (!ok)
        blame_changes(c, err);
    return ok;
}

/* ---- load ---- */

static bool take_block(struct model *m, size_t bytes, void **out, struct err *err)
{
    *out = backend_alloc(m->backend, bytes, err);
    if (*out)
        m->allocated_bytes += bytes;
    return *out != NULL;
}

struct model *model_load(struct checkpoint *c, struct backend *b, const struct model_options *options,
                         bool (*progress)(void *arg, double fraction), void *arg, struct err *err)
{
    struct binder binder = {0};
    struct model_options with_backend = *options;
    struct model *m = calloc(1, sizeof *m);
    if (!m)
        return err_set(err, ERR_MEMORY, "no memory left for a model"), NULL;
    with_backend.backend = m->backend = b;
    bool ok = !checkpoint_is_shape(c) || err_set(err, ERR_MODEL_NOT_FOUND, "the model has a configuration but no weights");
    ok = ok && prepare(m, c, &with_backend, &binder, err);
    struct backend_sizes sizes = ok ? backend_sizes_of(m) : (struct backend_sizes){0};
    ok = ok && take_block(m, m->scratch_bytes, &m->scratch_block, err) && backend_scratch_reserve(b, &sizes, err) &&
         take_block(m, m->weights_bytes, &m->weights_block, err);
    if (ok && model_cache_read(m, &binder, c)) {
        m->from_cache = true;
        ok = model_goes_on(progress, arg, 1, err);
    } else if (ok) {
        ok = binder_pack(&binder, progress, arg, err) && checkpoint_is_unchanged(c, err);
        if (ok)
            model_cache_write(m, &binder, c);
    }
    binder_release(&binder);
    if (!ok) {
        blame_changes(c, err);
        model_free(m);
        return NULL;
    }
    scratch_layout(m, m->scratch_block);
    for (size_t i = 0; i < options->rows_max; i++)
        m->s.index[i] = (int32_t)i;
    return m;
}

void model_free(struct model *m)
{
    if (!m)
        return;
    model_cache_close(m);
    if (m->weights_block)
        backend_free(m->backend, m->weights_block, m->weights_bytes);
    if (m->scratch_block)
        backend_free(m->backend, m->scratch_block, m->scratch_bytes);
    free(m->layers);
    free(m);
}

bool model_from_cache(const struct model *m)
{
    return m->from_cache;
}

const struct model_info *model_info(const struct model *m)
{
    return &m->plan.info;
}

const struct model_plan *model_planned(const struct model *m)
{
    return &m->plan;
}

struct backend *model_backend(const struct model *m)
{
    return m->backend;
}

const float *model_hidden(const struct model *m)
{
    return m->s.hidden;
}

uint64_t model_rope_class(const struct model *m, size_t n_prompt)
{
    return rope_class(&m->rope, n_prompt);
}

/* ---- a step ---- */

void linear_run(struct backend *b, const struct linear *l, const float *x, size_t x_stride, size_t n, enum linear_mode mode,
                float *y, size_t y_stride)
{
    for (size_t p = 0; p < l->n_parts; p++)
        op_linear(b, &l->part[p], l->bias ? l->bias + l->first[p] : NULL, x, x_stride, n, mode == LINEAR_ADD, y + l->first[p],
                  y_stride);
}

void forward_attention(struct model *m, struct kv_cache *kv, size_t layer, const struct batch *batch)
{
    const struct model_config *c = &m->config;
    size_t q = c->n_heads * c->head_dim, k = c->n_kv_heads * c->head_dim, stride = q + 2 * k;
    struct attention a = {.n_heads = c->n_heads,
                          .scale = 1,
                          .softcap = (float)c->attention_softcap,
                          .window = c->windowed[layer] ? c->window : 0};
    if (c->attention_scale != 0)
        a.scale = (float)c->attention_scale;
    else if (c->scale_by_head_dim)
        a.scale = (float)(1 / sqrt((double)c->head_dim));
    if (c->scale_by_layer)
        a.scale /= (float)(layer + 1);
    op_kv_write(m->backend, kv, layer, batch, m->s.wide + q, m->s.wide + q + k, stride);
    op_attention(m->backend, kv, layer, batch, &a, m->s.wide, stride, m->s.narrow);
}

void forward_logits(struct model *m, const float *hidden, size_t n)
{
    linear_run(m->backend, &m->head, hidden, m->config.n_embed, n, LINEAR_SET, m->s.logits, m->config.n_vocab);
    if (m->config.logit_softcap != 0)
        op_softcap(m->backend, m->s.logits, n, m->config.n_vocab, (float)m->config.logit_softcap);
}

const float *model_forward(struct model *m, struct kv_cache *kv, const struct batch *batch)
{
    CHECK(batch->n_rows <= m->options.rows_max && batch->n_logit_rows <= m->options.logit_rows_max);
    size_t extra = m->config.arch->position_rows_extra;
    if (m->rope.kind != ROPE_NONE)
        rope_fill(&m->rope, batch, m->s.cos_sin);
    else
        for (size_t i = 0; i < batch->n_rows; i++)
            m->s.index[i] = batch->positions[i] + (int32_t)extra;
    if (m->config.has_local_rope)
        rope_fill(&m->local_rope, batch, m->s.local_cos_sin);
    backend_step_begin(m->backend);
    m->config.arch->forward(m, kv, batch);
    backend_step_end(m->backend);
    return m->s.logits;
}

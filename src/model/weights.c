/* Binding tensors to the places that a forward reads, laying them out in one block, and packing them. */
#include "model/checkpoint_impl.h"
#include "model/model_impl.h"

#include <stdio.h>
#include <stdlib.h>

#define BLOCK_ALIGN         64
#define TRANSPOSE_BYTES_MAX ((size_t)8 << 20)  /* rows of a transposed matrix that are turned at a time */
#define PACK_BYTES_MAX      ((size_t)16 << 20) /* of a matrix in rows that are packed at a time, then forgotten */
#define DECODE_ROWS         16
#define DECODE_BYTES_MAX    ((size_t)8 << 20) /* rows of a quantized matrix that are decoded at a time */

/* "[4096, 11008]"; returns out. */
static const char *show_shape(const size_t *dims, unsigned n, char out[128])
{
    size_t len = 1;
    snprintf(out, 128, "[");
    for (unsigned i = 0; i < n && len < 100; i++)
        len += (size_t)snprintf(out + len, 128 - len, "%s%zu", i ? ", " : "", dims[i]);
    snprintf(out + len, 128 - len, "]");
    return out;
}

static const struct tensor *lookup(const struct binder *b, const char *name)
{
    return checkpoint_tensor(b->checkpoint, str_from(name));
}

static void fail(struct binder *b)
{
    b->failed = true;
}

struct assumed {
    struct tensor tensor;
    char name[TENSOR_NAME_BYTES];
    struct assumed *next;
};

/* Of a checkpoint that is only a shape every tensor that is asked for is there. */
static const struct tensor *assume(struct binder *b, const char *name, const size_t *dims, unsigned n_dims)
{
    struct assumed *a = calloc(1, sizeof *a);
    size_t elements;
    if (!a || !checkpoint_elements(dims, n_dims, &elements)) {
        free(a);
        err_set(b->err, ERR_MEMORY, "no memory left for the tensors of a plan");
        fail(b);
        return NULL;
    }
    snprintf(a->name, sizeof a->name, "%s", name);
    a->tensor =
        (struct tensor){.name = str_from(a->name), .type = b->m->config.stored, .n_dims = n_dims, .file = "config.json"};
    memcpy(a->tensor.dims, dims, n_dims * sizeof *dims);
    a->tensor.bytes = dtype_bytes(a->tensor.type, elements);
    a->next = b->assumed;
    b->assumed = a;
    return &a->tensor;
}

static void mark_used(struct binder *b, const struct tensor *t)
{
    if (checkpoint_is_shape(b->checkpoint))
        return;
    b->used[t - checkpoint_tensor_at(b->checkpoint, 0)] = 1;
}

static void count_source(struct binder *b, const struct tensor *t)
{
    mark_used(b, t);
    b->source_bytes += t->bytes;
}

/* So much of the source is in memory while an item is packed. */
static void count_packing(struct binder *b, size_t bytes)
{
    if (bytes > b->tensor_bytes_max)
        b->tensor_bytes_max = bytes;
}

/* Rows of a matrix that are packed at a time: a multiple of 16, or all. */
static size_t rows_at_once(enum dtype type, size_t n_rows, size_t n_in)
{
    size_t rows = PACK_BYTES_MAX / (dtype_bytes(type, n_in) + 1);
    rows = rows < 16 ? 16 : rows - rows % 16;
    return rows < n_rows ? rows : n_rows;
}

static const struct tensor *find(struct binder *b, const char *name, const size_t *dims, unsigned n_dims)
{
    char want[128], have[128];
    if (b->failed)
        return NULL;
    const struct tensor *t = checkpoint_is_shape(b->checkpoint) ? assume(b, name, dims, n_dims) : lookup(b, name);
    if (b->failed)
        return NULL;
    if (!t) {
        err_set_param(b->err, ERR_MODEL_DAMAGED, "tensor",
                      "%s: tensor '%s' of shape %s is missing: the files do not hold the %s model that their "
                      "configuration describes",
                      checkpoint_tensor_at(b->checkpoint, 0)->file, name, show_shape(dims, n_dims, want),
                      b->m->config.architecture);
        fail(b);
        return NULL;
    }
    int same = t->n_dims == n_dims;
    for (unsigned i = 0; same && i < n_dims; i++)
        same = t->dims[i] == dims[i];
    if (!same) {
        err_set_param(b->err, ERR_MODEL_DAMAGED, "tensor",
                      "%s: tensor '%s' has shape %s, but the configuration asks for %s: one of the two is not of this "
                      "model",
                      t->file, name, show_shape(t->dims, t->n_dims, have), show_shape(dims, n_dims, want));
        fail(b);
        return NULL;
    }
    count_source(b, t);
    if (n_dims == 2)
        count_packing(b, dtype_bytes(t->type, rows_at_once(t->type, dims[0], dims[1]) * dims[1]));
    else
        count_packing(b, t->bytes);
    size_t elements = 0;
    checkpoint_elements(t->dims, t->n_dims, &elements);
    b->n_elements += elements;
    return t;
}

bool bind_has(const struct binder *b, const char *format, ...)
{
    char name[TENSOR_NAME_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    return lookup(b, name) != NULL;
}

void bind_ignore(struct binder *b, const char *format, ...)
{
    char name[TENSOR_NAME_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    const struct tensor *t = lookup(b, name);
    if (t)
        mark_used(b, t);
}

/* A new item with its place of `bytes` in the block; NULL after a failure. */
static struct pack_item *add_item(struct binder *b, size_t bytes)
{
    if (b->failed)
        return NULL;
    if (b->n_items == b->cap_items) {
        size_t cap = b->cap_items ? 2 * b->cap_items : 64;
        struct pack_item *items = realloc(b->items, cap * sizeof *items);
        if (!items) {
            err_set(b->err, ERR_MEMORY, "no memory left for the list of %zu weights", cap);
            fail(b);
            return NULL;
        }
        b->items = items;
        b->cap_items = cap;
    }
    struct pack_item *item = &b->items[b->n_items];
    *item = (struct pack_item){.offset = b->bytes, .bytes = bytes};
    if (__builtin_add_overflow(b->bytes, bytes, &b->bytes) || __builtin_add_overflow(b->bytes, BLOCK_ALIGN - 1, &b->bytes)) {
        err_set(b->err, ERR_MEMORY, "the weights take more bytes than this machine can count");
        fail(b);
        return NULL;
    }
    b->bytes -= b->bytes % BLOCK_ALIGN;
    b->n_items++;
    return item;
}

static bool plan(struct binder *b, const struct tensor *t, enum weight_form form, size_t n_out, size_t n_in, struct weight *w)
{
    int lossy = 0;
    *w = (struct weight){0};
    if (b->failed || !weight_plan(t->type, n_out, n_in, form, w, &lossy, b->err)) {
        char shown[CHECKPOINT_SHOW_BYTES];
        if (!b->failed)
            err_prefix(b->err, "%s: tensor '%s'", t->file, checkpoint_show(t->name, shown));
        fail(b);
        return false;
    }
    b->lossy_types[t->type] += lossy != 0;
    return true;
}

static enum weight_form form_of(const struct binder *b, const struct linear *l)
{
    return l == &b->m->head ? b->table : b->matrices;
}

/* One source of a product: a tensor, or a matrix that came quantized. */
struct piece {
    const struct tensor *tensor;
    struct quant_matrix quant; /* family NULL: `tensor` it is */
    struct weight alone;       /* planned on its own */
};

/* Whether codes are kept as they are, rather than turned into floats. */
static int keeps_codes(enum weight_form form, const struct quant_matrix *q)
{
    return form != WEIGHT_EXACT && q->floats == DTYPE_NONE;
}

static enum dtype float_type(const struct quant_matrix *q)
{
    return q->floats == DTYPE_NONE ? DTYPE_F32 : q->floats;
}

static bool plan_piece(struct binder *b, const struct piece *p, enum weight_form form, size_t n_out, size_t n_in,
                       struct weight *w)
{
    if (!p->quant.family)
        return plan(b, p->tensor, form, n_out, n_in, w);
    *w = (struct weight){0};
    bool ok = keeps_codes(form, &p->quant) ? weight_plan_codes(&p->quant.held, n_out, n_in, form, w, b->err)
                                           : weight_plan(float_type(&p->quant), n_out, n_in, form, w, NULL, b->err);
    const struct tensor *t = p->quant.part[0]; /* NULL where the checkpoint is only a shape */
    char shown[CHECKPOINT_SHOW_BYTES];
    if (!ok && t)
        err_prefix(b->err, "%s: tensor '%s'", t->file, checkpoint_show(t->name, shown));
    if (!ok)
        fail(b);
    return ok;
}

static void describe_stored(struct binder *b, const struct quant_matrix *q, enum weight_form form)
{
    char text[100];
    char *stored = b->m->plan.stored;
    quant_describe(q, text, sizeof text);
    if (keeps_codes(form, q))
        snprintf(stored, sizeof b->m->plan.stored, "%s: kept as stored", text);
    else
        snprintf(stored, sizeof b->m->plan.stored, "%s: dequantized to %s%s", text, dtype_info(float_type(q))->name,
                 form == WEIGHT_INT8 || form == WEIGHT_INT4 ? ", then quantized" : "");
}

static bool find_piece(struct binder *b, const struct bind_source *src, enum bind_form form, size_t n_in, struct piece *p)
{
    char base[TENSOR_NAME_BYTES];
    size_t dims[2] = {form == BIND_ROWS ? src->n_out : n_in, form == BIND_ROWS ? n_in : src->n_out};
    *p = (struct piece){0};
    if (b->failed)
        return false;
    snprintf(base, sizeof base, "%s", src->name);
    char *tail = strrchr(base, '.');
    if (b->m->config.quant.method != QUANT_NONE && checkpoint_is_shape(b->checkpoint) && strncmp(base, "lm_head", 7) != 0) {
        if (!quant_assume(&b->m->config.quant, src->n_out, n_in, &p->quant, b->err))
            fail(b);
        b->n_elements += (uint64_t)src->n_out * n_in;
        return !b->failed;
    }
    if (b->m->config.quant.method != QUANT_NONE && tail) {
        *tail = 0;
        enum quant_found found = quant_find(&b->m->config.quant, b->checkpoint, base, src->n_out, n_in, &p->quant, b->err);
        if (found == QUANT_WRONG)
            fail(b);
        if (found == QUANT_THERE) {
            size_t before = b->source_bytes;
            for (size_t i = 0; i < QUANT_PARTS_MAX; i++)
                if (p->quant.part[i])
                    count_source(b, p->quant.part[i]);
            b->n_elements += (uint64_t)src->n_out * n_in;
            count_packing(b, b->source_bytes - before + DECODE_BYTES_MAX);
            return true;
        }
        p->quant = (struct quant_matrix){0};
    }
    p->tensor = find(b, src->name, dims, 2);
    if (p->tensor && form == BIND_TRANSPOSED)
        count_packing(b, p->tensor->bytes + TRANSPOSE_BYTES_MAX);
    return p->tensor != NULL;
}

/* Whether two pieces may fill one weight. */
static bool same_form(const struct piece *a, const struct piece *b)
{
    if (a->alone.layout != b->alone.layout || !a->quant.family != !b->quant.family)
        return false;
    if (a->quant.family)
        return quant_same_form(&a->quant, &b->quant);
    enum dtype at = a->tensor->type, bt = b->tensor->type;
    return at == bt || (dtype_info(at)->block == 1 && dtype_info(bt)->block == 1) || a->alone.layout == WEIGHT_F32;
}

/* Plans pieces [from, to) as one weight of the block. */
static void bind_part(struct binder *b, struct linear *l, enum bind_form form, const struct piece *pieces,
                      const struct bind_source *src, size_t from, size_t to)
{
    size_t rows = 0, first = 0;
    for (size_t i = 0; i < to; i++)
        *(i < from ? &first : &rows) += src[i].n_out;
    struct weight *w = &l->part[l->n_parts];
    if (!plan_piece(b, &pieces[from], form_of(b, l), rows, l->n_in, w))
        return;
    struct pack_item *item = add_item(b, w->bytes);
    if (!item)
        return;
    item->weight = w;
    item->form = form;
    item->n_src = to - from;
    for (size_t i = from; i < to; i++) {
        item->src[i - from] = pieces[i].tensor;
        item->quant[i - from] = pieces[i].quant;
        item->src_rows[i - from] = src[i].n_out;
    }
    if (pieces[from].quant.family)
        describe_stored(b, &pieces[from].quant, form_of(b, l));
    l->first[l->n_parts++] = first;
}

void bind_linear(struct binder *b, struct linear *l, enum bind_form form, size_t n_in, const struct bind_source *src,
                 size_t n_src)
{
    struct piece pieces[LINEAR_PARTS_MAX];
    unsigned counted[DTYPE_COUNT];
    *l = (struct linear){.n_in = n_in};
    memcpy(counted, b->lossy_types, sizeof counted);
    for (size_t i = 0; i < n_src; i++) {
        if (!find_piece(b, &src[i], form, n_in, &pieces[i]) ||
            !plan_piece(b, &pieces[i], form_of(b, l), src[i].n_out, n_in, &pieces[i].alone))
            return;
        l->n_out += src[i].n_out;
    }
    memcpy(b->lossy_types, counted, sizeof counted); /* counted when the parts are planned */
    for (size_t from = 0, to; from < n_src; from = to) {
        for (to = from + 1; to < n_src && same_form(&pieces[from], &pieces[to]); to++)
            ;
        bind_part(b, l, form, pieces, src, from, to);
    }
}

static void bind_numbers(struct binder *b, const float **out, const struct tensor *const *src, size_t n_src, size_t n)
{
    struct pack_item *item = add_item(b, n * sizeof(float));
    if (!item)
        return;
    item->vector = out;
    item->n_src = n_src;
    memcpy(item->src, src, n_src * sizeof *src);
}

void bind_bias(struct binder *b, struct linear *l, const struct bind_source *src, size_t n_src)
{
    const struct tensor *tensors[LINEAR_PARTS_MAX];
    for (size_t i = 0; i < n_src; i++) {
        tensors[i] = find(b, src[i].name, &src[i].n_out, 1);
        if (!tensors[i])
            return;
    }
    bind_numbers(b, &l->bias, tensors, n_src, l->n_out);
}

void bind_vector(struct binder *b, const float **out, size_t n, const char *format, ...)
{
    char name[TENSOR_NAME_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    const struct tensor *t = find(b, name, &n, 1);
    if (t)
        bind_numbers(b, out, &t, 1, n);
}

void bind_vector_plus_one(struct binder *b, const float **out, size_t n, const char *name)
{
    bind_vector(b, out, n, "%s", name);
    if (!b->failed)
        b->items[b->n_items - 1].plus_one = 1;
}

static void bind_rows(struct binder *b, struct weight *w, enum weight_form form, size_t n_rows, size_t width, const char *name)
{
    const struct tensor *t = find(b, name, (size_t[]){n_rows, width}, 2);
    if (!t || !plan(b, t, form, n_rows, width, w))
        return;
    struct pack_item *item = add_item(b, w->bytes);
    if (!item)
        return;
    item->weight = w;
    item->n_src = 1;
    item->src[0] = t;
    item->src_rows[0] = n_rows;
}

void bind_table(struct binder *b, struct weight *w, size_t n_rows, size_t width, const char *name)
{
    bind_rows(b, w, WEIGHT_EXACT, n_rows, width, name);
}

static bool same_bytes(const struct checkpoint *c, const struct tensor *x, const struct tensor *y)
{
    bool same = x->type == y->type && x->bytes == y->bytes;
    for (size_t at = 0; same && at < x->bytes; at += PACK_BYTES_MAX) {
        size_t n = x->bytes - at < PACK_BYTES_MAX ? x->bytes - at : PACK_BYTES_MAX;
        same = memcmp((const char *)x->data + at, (const char *)y->data + at, n) == 0;
        checkpoint_forget_part(c, x, at, n);
        checkpoint_forget_part(c, y, at, n);
    }
    return same;
}

/* A tied model that stores both matrices with different values is not tied after all, as transformers decides too. */
void bind_head(struct binder *b, const char *name, const char *embed_name)
{
    const struct model_config *c = &b->m->config;
    const struct tensor *head = lookup(b, name), *embed = lookup(b, embed_name);
    int tied = c->tied && (!head || !embed || same_bytes(b->checkpoint, head, embed));
    if (tied && head && embed)
        mark_used(b, head);
    bind_rows(b, &b->m->embed, b->table, c->n_vocab, c->n_embed, tied && !embed && head ? name : embed_name);
    if (tied) {
        b->m->head = (struct linear){.n_in = c->n_embed, .n_out = c->n_vocab, .n_parts = 1};
        return;
    }
    struct bind_source src = {.n_out = c->n_vocab};
    snprintf(src.name, sizeof src.name, "%s", name);
    bind_linear(b, &b->m->head, BIND_ROWS, c->n_embed, &src, 1);
}

/* Tools that quantize write biases of zeros beside every matrix, whether or not the model has biases. */
static int has_no_effect(const struct tensor *t)
{
    if (!str_has_suffix(t->name, STR(".bias")))
        return 0;
    for (size_t i = 0; i < t->bytes; i++) {
        if (((const unsigned char *)t->data)[i])
            return 0;
    }
    return 1;
}

/* Scales of queries, keys and values in 8-bit floats: they belong to a form of the KV cache that is not used here, where keys and
 * values are held by scales of their own. */
static int is_cache_scale(const struct tensor *t)
{
    static const char *const ENDINGS[] = {".self_attn.k_scale",   ".self_attn.v_scale",  ".self_attn.kv_scale",
                                          ".k_proj.k_scale",      ".v_proj.v_scale",     ".self_attn.q_scale",
                                          ".k_proj.output_scale", ".v_proj.output_scale"};
    for (size_t i = 0; i < sizeof ENDINGS / sizeof ENDINGS[0]; i++) {
        if (str_has_suffix(t->name, str_from(ENDINGS[i])))
            return 1;
    }
    return 0;
}

static bool check_left_over(const struct binder *b, struct err *err)
{
    const struct tensor *first = NULL;
    size_t n = 0;
    for (size_t i = 0; i < checkpoint_n_tensors(b->checkpoint); i++) {
        const struct tensor *t = checkpoint_tensor_at(b->checkpoint, i);
        if (b->used[i] || has_no_effect(t) || (b->m->config.quant.method != QUANT_NONE && is_cache_scale(t)))
            continue;
        n++;
        first = first ? first : t;
    }
    if (!first)
        return true;
    char name[CHECKPOINT_SHOW_BYTES], shape[128];
    return err_set_param(err, ERR_MODEL_UNSUPPORTED, "tensor",
                         "%s: tensor '%s' of shape %s (%zu such in all) has no place in the %s architecture as its "
                         "configuration describes it; leaving it out would change the results",
                         first->file, checkpoint_show(first->name, name), show_shape(first->dims, first->n_dims, shape), n,
                         b->m->config.architecture);
}

bool binder_run(struct binder *b, const struct checkpoint *c, struct model *m, enum profile profile, struct err *err)
{
    static const enum weight_form forms[] = {[PROFILE_FP16] = WEIGHT_EXACT,
                                             [PROFILE_NATIVE] = WEIGHT_NATIVE,
                                             [PROFILE_INT8] = WEIGHT_INT8,
                                             [PROFILE_INT4] = WEIGHT_INT4};
    *b = (struct binder){.checkpoint = c, .m = m, .err = err, .matrices = forms[profile]};
    b->table = profile == PROFILE_INT4 ? WEIGHT_INT8 : b->matrices;
    size_t n = checkpoint_n_tensors(c);
    if (n == 0 && !checkpoint_is_shape(c))
        return err_set(err, ERR_MODEL_DAMAGED, "the model's files hold no tensors");
    b->used = calloc(n ? n : 1, 1);
    if (!b->used)
        return err_set(err, ERR_MEMORY, "no memory left to bind %zu tensors", n);
    m->config.arch->bind(b, m);
    return !b->failed && check_left_over(b, err);
}

void binder_release(struct binder *b)
{
    for (struct assumed *a = b->assumed, *next; a; a = next) {
        next = a->next;
        free(a);
    }
    free(b->items);
    free(b->used);
    *b = (struct binder){0};
}

enum profile weights_profile(const struct checkpoint *c, const struct quant_config *q, enum profile wanted)
{
    if (wanted == PROFILE_FP16 || wanted == PROFILE_INT8 || wanted == PROFILE_INT4)
        return wanted;
    if (q->method != QUANT_NONE)
        return PROFILE_NATIVE;
    for (size_t i = 0; i < checkpoint_n_tensors(c); i++) {
        if (dtype_info(checkpoint_tensor_at(c, i)->type)->block > 1)
            return PROFILE_NATIVE;
    }
    return PROFILE_FP16;
}

/* ---- pack ---- */

static bool pack_vector(struct binder *b, const struct pack_item *item, float *out, struct err *err)
{
    *item->vector = out;
    for (size_t i = 0; i < item->n_src; i++) {
        const struct tensor *t = item->src[i];
        char shown[CHECKPOINT_SHOW_BYTES];
        if (!dtype_to_f32(t->type, t->data, t->dims[0], out))
            return err_set(err, ERR_MODEL_UNSUPPORTED, "%s: tensor '%s' has the type %s, expected numbers", t->file,
                           checkpoint_show(t->name, shown), dtype_info(t->type)->name);
        for (size_t k = 0; item->plus_one && k < t->dims[0]; k++)
            out[k] += 1;
        out += t->dims[0];
        checkpoint_forget(b->checkpoint, t);
    }
    return true;
}

/* Turns columns [first, first + n) of a [n_in][n_out] matrix into rows. Blocks of 64 columns keep both sides cached. */
static void turn(const struct tensor *t, size_t first, size_t n, unsigned char *out)
{
    size_t size = dtype_info(t->type)->bytes, n_in = t->dims[0], n_out = t->dims[1];
    const unsigned char *src = t->data;
    for (size_t c0 = 0; c0 < n; c0 += 64) {
        size_t c1 = c0 + 64 < n ? c0 + 64 : n;
        for (size_t k = 0; k < n_in; k++) {
            for (size_t c = c0; c < c1; c++)
                memcpy(out + (c * n_in + k) * size, src + (k * n_out + first + c) * size, size);
        }
    }
}

static bool pack_transposed(struct binder *b, struct weight *w, const struct tensor *t, size_t first, struct err *err)
{
    const struct dtype_info *info = dtype_info(t->type);
    size_t n_in = t->dims[0], n_out = t->dims[1], at_once = TRANSPOSE_BYTES_MAX / (n_in * info->bytes);
    if (info->block != 1)
        return err_set(err, ERR_MODEL_UNSUPPORTED, "%s: a transposed matrix of the block type %s", t->file, info->name);
    at_once = at_once < 16 ? 16 : at_once - at_once % 16;
    at_once = at_once < n_out ? at_once : n_out;
    unsigned char *rows = malloc(at_once * n_in * info->bytes);
    if (!rows)
        return err_set(err, ERR_MEMORY, "no memory left for %zu bytes while a matrix is turned", at_once * n_in * info->bytes);
    bool ok = true;
    for (size_t from = 0; ok && from < n_out; from += at_once) {
        size_t n = from + at_once < n_out ? at_once : n_out - from;
        turn(t, from, n, rows);
        ok = backend_weight_pack(b->m->backend, w, t->type, rows, first + from, n, err);
    }
    free(rows);
    return ok;
}

/* Rows of a matrix that came quantized, decoded by DECODE_ROWS on all threads. */
struct decoding {
    const struct quant_matrix *q;
    size_t first, n;
    int8_t *codes; /* or */
    float *values, *scales, *mins;
    _Atomic size_t failed; /* block + 1 */
};

static bool decode_block(const struct decoding *d, size_t block, struct err *err)
{
    const struct quant_matrix *q = d->q;
    size_t at = block * DECODE_ROWS, n = d->n - at < DECODE_ROWS ? d->n - at : DECODE_ROWS, groups = quant_groups(q);
    if (d->codes)
        return q->family->codes(q, d->first + at, n, d->codes + at * q->n_in, d->scales + at * groups, d->mins + at * groups,
                                err);
    return quant_rows(q, d->first + at, n, d->values + at * q->n_in, err);
}

static void decode_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    struct decoding *d = arg;
    struct err ignored = {0}; /* the block is decoded again for its error */
    for (size_t i = begin; i < end; i++) {
        if (!decode_block(d, i, &ignored))
            d->failed = i + 1;
    }
}

static bool decode(struct backend *b, struct decoding *d, struct err *err)
{
    backend_split(b, (d->n + DECODE_ROWS - 1) / DECODE_ROWS, 1, decode_part, d);
    return !d->failed || decode_block(d, d->failed - 1, err);
}

/* Decodes and packs rows of a matrix that came quantized, some at a time. */
static bool pack_quantized(struct binder *b, struct weight *w, const struct quant_matrix *q, size_t first, int codes,
                           struct err *err)
{
    size_t groups = quant_groups(q), row_bytes = q->n_in * (codes ? 1 : sizeof(float)) + 2 * groups * sizeof(float);
    size_t at_once = DECODE_BYTES_MAX / row_bytes;
    at_once = at_once < 16 ? 16 : at_once - at_once % 16;
    at_once = at_once < q->n_out ? at_once : q->n_out;
    float *scales = malloc(at_once * row_bytes);
    if (!scales)
        return err_set(err, ERR_MEMORY, "no memory left for %zu bytes of decoded rows", at_once * row_bytes);
    float *mins = scales + at_once * groups, *values = mins + at_once * groups;
    bool ok = true;
    for (size_t from = 0; ok && from < q->n_out; from += at_once) {
        size_t n = from + at_once < q->n_out ? at_once : q->n_out - from;
        struct decoding d = {.q = q,
                             .first = from,
                             .n = n,
                             .codes = codes ? (int8_t *)values : NULL,
                             .values = values,
                             .scales = scales,
                             .mins = mins};
        ok = decode(b->m->backend, &d, err);
        if (ok && codes)
            ok = backend_weight_pack_codes(b->m->backend, w, d.codes, scales, w->has_min ? mins : NULL, first + from, n, err);
        else if (ok)
            ok = backend_weight_pack(b->m->backend, w, DTYPE_F32, values, first + from, n, err);
    }
    free(scales);
    return ok;
}

static bool pack_order(struct weight *w, const struct quant_matrix *q, struct err *err)
{
    int32_t *order = malloc(w->n_in * sizeof *order);
    bool ok = order ? q->family->order(q, order, err) && weight_set_order(w, order, err)
                    : err_set(err, ERR_MEMORY, "no memory left to order %zu inputs", w->n_in);
    free(order);
    return ok;
}

static bool pack_quant_item(struct binder *b, const struct pack_item *item, unsigned char *at, struct err *err)
{
    struct weight *w = item->weight;
    const struct quant_matrix *q = item->quant;
    int codes = keeps_codes(b->matrices, q);
    size_t first = 0;
    weight_attach(w, at);
    if (codes && w->has_order && !pack_order(w, q, err))
        return false;
    for (size_t i = 0; i < item->n_src; first += item->src_rows[i++]) {
        char shown[CHECKPOINT_SHOW_BYTES];
        if (!pack_quantized(b, w, &q[i], first, codes, err))
            return err_prefix(err, "%s: tensor '%s'", q[i].part[0]->file, checkpoint_show(q[i].part[0]->name, shown));
        for (size_t k = 0; k < QUANT_PARTS_MAX; k++)
            if (q[i].part[k])
                checkpoint_forget(b->checkpoint, q[i].part[k]);
    }
    return true;
}

static bool pack_rows(struct binder *b, struct weight *w, const struct tensor *t, size_t first, size_t n_rows, struct err *err)
{
    size_t row_bytes = t->bytes / n_rows, at_once = rows_at_once(t->type, n_rows, w->n_in);
    for (size_t from = 0; from < n_rows; from += at_once) {
        size_t n = from + at_once < n_rows ? at_once : n_rows - from;
        const char *rows = (const char *)t->data + from * row_bytes;
        if (!backend_weight_pack(b->m->backend, w, t->type, rows, first + from, n, err))
            return false;
        checkpoint_forget_part(b->checkpoint, t, from * row_bytes, n * row_bytes);
    }
    return true;
}

static bool pack_matrix(struct binder *b, const struct pack_item *item, unsigned char *at, struct err *err)
{
    size_t first = 0;
    weight_attach(item->weight, at);
    for (size_t i = 0; i < item->n_src; i++) {
        const struct tensor *t = item->src[i];
        char shown[CHECKPOINT_SHOW_BYTES];
        bool ok = item->form == BIND_TRANSPOSED ? pack_transposed(b, item->weight, t, first, err)
                                                : pack_rows(b, item->weight, t, first, item->src_rows[i], err);
        if (!ok)
            return err_prefix(err, "%s: tensor '%s'", t->file, checkpoint_show(t->name, shown));
        first += item->src_rows[i];
        checkpoint_forget(b->checkpoint, t);
    }
    return true;
}

static bool pack_item(struct binder *b, const struct pack_item *item, unsigned char *at, struct err *err)
{
    if (!item->weight)
        return pack_vector(b, item, (float *)(void *)at, err);
    return item->quant[0].family ? pack_quant_item(b, item, at, err) : pack_matrix(b, item, at, err);
}

static size_t item_source_bytes(const struct pack_item *item)
{
    size_t n = 0;
    for (size_t i = 0; i < item->n_src; i++) {
        n += item->src[i] ? item->src[i]->bytes : 0;
        for (size_t k = 0; k < QUANT_PARTS_MAX; k++)
            n += item->quant[i].part[k] ? item->quant[i].part[k]->bytes : 0;
    }
    return n;
}

static void attach_tied_head(struct model *m)
{
    if (m->head.n_parts == 1 && !m->head.part[0].data)
        m->head.part[0] = m->embed;
}

bool model_goes_on(bool (*progress)(void *arg, double fraction), void *arg, double fraction, struct err *err)
{
    return !progress || progress(arg, fraction) || err_set(err, ERR_CANCELLED, "the load was stopped");
}

bool binder_pack(struct binder *b, bool (*progress)(void *arg, double fraction), void *arg, struct err *err)
{
    struct model *m = b->m;
    size_t done = 0;
    for (size_t i = 0; i < b->n_items; i++) {
        const struct pack_item *item = &b->items[i];
        unsigned char *at = (unsigned char *)m->weights_block + item->offset;
        if (!pack_item(b, item, at, err))
            return false;
        done += item_source_bytes(item);
        if (!model_goes_on(progress, arg, (double)done / (double)b->source_bytes, err))
            return false;
    }
    attach_tied_head(m);
    return true;
}

void binder_attach(struct binder *b)
{
    for (size_t i = 0; i < b->n_items; i++) {
        const struct pack_item *item = &b->items[i];
        unsigned char *at = (unsigned char *)b->m->weights_block + item->offset;
        if (item->weight)
            weight_attach(item->weight, at);
        else
            *item->vector = (const float *)(void *)at;
    }
    attach_tied_head(b->m);
}

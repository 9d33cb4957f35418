/* KV pages and attention. A unit is a run of rows of one sequence with one KV head; it sums blocks of ATTEND_SPLIT
 * absolute positions and merges them in ascending order. With many units each runs whole on one thread; with few (one
 * long stream) the blocks themselves are spread and merged afterwards: the same operations in the same order. */
#include "backend/cpu/cpu.h"

#include <string.h>

#define KEY_PART        1024 /* floats of a head at most */
#define CHUNKS_A_THREAD 4
#define UNITS_A_THREAD  4 /* below this many units a thread, positions are split too */

static const char *const type_names[] = {[KV_F32] = "f32", [KV_I24] = "int24", [KV_I16] = "int16", [KV_I8] = "int8"};

const char *kv_type_name(enum kv_type t)
{
    return type_names[t];
}

bool kv_type_from_name(const char *name, enum kv_type *t)
{
    for (size_t i = 0; i < sizeof type_names / sizeof *type_names; i++)
        if (strcmp(name, type_names[i]) == 0) {
            *t = (enum kv_type)i;
            return true;
        }
    return false;
}

size_t kv_cache_plan(struct kv_cache *kv)
{
    size_t scales = cpu_kv_scaled(kv->type) ? kv->n_kv_heads : 0;
    kv->layer_bytes = cpu_round_up(cpu_kv_scale_offset(kv, scales), CPU_LINE);
    return kv->layer_bytes * kv->n_layers;
}

static const struct batch_seq *seq_of_row(const struct batch *batch, size_t row)
{
    size_t low = 0, high = batch->n_seqs;
    while (high - low > 1) {
        size_t mid = (low + high) / 2;
        if (batch->seqs[mid].row <= row)
            low = mid;
        else
            high = mid;
    }
    return &batch->seqs[low];
}

struct kv_write {
    const struct cpu_kernels *k;
    struct kv_cache *kv;
    size_t layer, stride;
    const struct batch *batch;
    const float *keys, *values;
};

/* Elements of one position and head across the lanes. */
static inline __attribute__((always_inline)) void scatter(const void *from, const size_t size, size_t n, char *to)
{
    const char *at = from;
    for (size_t i = 0; i < n; i++, at += size, to += KV_PAGE_TOKENS * size)
        memcpy(to, at, size);
}

static void write_head(const struct kv_write *j, char *page, size_t slot, size_t head, const float *k, const float *v)
{
    const struct kv_cache *kv = j->kv;
    size_t size = cpu_kv_size(kv->type), dv = cpu_kv_value_dims(kv), dk = kv->head_dim_k;
    uint32_t key[KEY_PART];
    char *keys = page + cpu_kv_key_offset(kv, head) + slot * size;
    float scale_k = j->k->narrow(kv->type, k, dk, key);
    switch (size) {
    case 4: scatter(key, 4, dk, keys); break;
    case 3: scatter(key, 3, dk, keys); break;
    case 2: scatter(key, 2, dk, keys); break;
    default: scatter(key, 1, dk, keys); break;
    }
    float scale_v = j->k->narrow(kv->type, v, kv->head_dim_v, page + cpu_kv_value_offset(kv, head) + slot * dv * size);
    if (cpu_kv_scaled(kv->type)) {
        float *scales = (float *)(page + cpu_kv_scale_offset(kv, head));
        scales[slot] = scale_k;
        scales[KV_PAGE_TOKENS + slot] = scale_v;
    }
}

static void kv_write_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct kv_write *j = arg;
    const struct kv_cache *kv = j->kv;
    for (size_t row = begin; row < end; row++) {
        const struct batch_seq *seq = seq_of_row(j->batch, row);
        size_t pos = seq->pos + (row - seq->row);
        char *page = cpu_kv_page(kv, seq->pages[pos / KV_PAGE_TOKENS], j->layer);
        for (size_t h = 0; h < kv->n_kv_heads; h++)
            write_head(j, page, pos % KV_PAGE_TOKENS, h, j->keys + row * j->stride + h * kv->head_dim_k,
                       j->values + row * j->stride + h * kv->head_dim_v);
    }
}

void op_kv_write(struct backend *b, struct kv_cache *kv, size_t layer, const struct batch *batch, const float *k,
                 const float *v, size_t stride)
{
    CHECK(kv->head_dim_k <= KEY_PART);
    uint64_t begin = cpu_profile_begin(b);
    struct kv_write j = {b->kernels, kv, layer, stride, batch, k, v};
    cpu_split(b, batch->n_rows, batch->n_rows * kv->n_kv_heads * kv->head_dim_k * 4, kv_write_part, &j);
    cpu_profile_end(b, BACKEND_KV_WRITE, begin, 0, 0);
}

void op_kv_copy(struct backend *b, struct kv_cache *kv, int32_t from, int32_t to, size_t n_positions)
{
    (void)b;
    (void)n_positions; /* a whole page costs no more than its parts */
    memcpy(cpu_kv_page(kv, to, 0), cpu_kv_page(kv, from, 0), kv->layer_bytes * kv->n_layers);
}

/* ---- units: rows of one sequence, one KV head ---- */

struct job {
    struct backend *b;
    const struct kv_cache *kv;
    size_t layer;
    const struct batch *batch;
    const struct attention *a;
    const float *q;
    size_t q_stride;
    float *out;
    size_t dim;        /* padded head_dim_v */
    size_t group;      /* query heads that share a KV head */
    size_t unit_heads; /* of them in a unit */
    size_t head_parts; /* units that share a KV head */
    size_t unit_rows;  /* rows of a unit at most */
    size_t n_units;
    size_t wave, n_waved, state_floats; /* split by positions: first split, splits at a time, floats of a state */
};

struct unit {
    const struct batch_seq *seq;
    size_t row, pos, n_rows; /* first of the batch's rows, its position */
    size_t kv_head, head, n_heads;
};

static size_t row_blocks(const struct job *j, const struct batch_seq *seq)
{
    return (seq->n_rows + j->unit_rows - 1) / j->unit_rows;
}

/* Walks the sequences to the unit: [seq][row block][kv head][part of its query heads]. */
static struct unit find_unit(const struct job *j, size_t index)
{
    size_t a_block = j->kv->n_kv_heads * j->head_parts, s = 0;
    while (index >= row_blocks(j, &j->batch->seqs[s]) * a_block)
        index -= row_blocks(j, &j->batch->seqs[s++]) * a_block;
    const struct batch_seq *seq = &j->batch->seqs[s];
    size_t first = index / a_block * j->unit_rows, kv_head = index % a_block / j->head_parts;
    size_t part = index % j->head_parts * j->unit_heads;
    size_t rows = seq->n_rows - first, heads = j->group - part;
    return (struct unit){.seq = seq,
                         .row = seq->row + first,
                         .pos = seq->pos + first,
                         .n_rows = rows < j->unit_rows ? rows : j->unit_rows,
                         .kv_head = kv_head,
                         .head = kv_head * j->group + part,
                         .n_heads = heads < j->unit_heads ? heads : j->unit_heads};
}

static size_t unit_end(const struct unit *u)
{
    return u->pos + u->n_rows;
}

static size_t unit_queries(const struct unit *u)
{
    return u->n_rows * u->n_heads;
}

/* First position that the row at `pos` sees. */
static size_t first_position(const struct job *j, size_t pos)
{
    return j->a->window && pos + 1 > j->a->window ? pos + 1 - j->a->window : 0;
}

/* First split that any of the unit's rows sees. */
static size_t first_split(const struct job *j, const struct unit *u)
{
    return first_position(j, u->pos) / ATTEND_SPLIT;
}

static struct cpu_attend_row row_in_split(const struct job *j, const struct unit *u, size_t row, size_t split)
{
    size_t base = split * ATTEND_SPLIT, pos = u->pos + row, from = first_position(j, pos);
    struct cpu_attend_row r = {.q = j->q + (u->row + row) * j->q_stride + u->head * j->kv->head_dim_k,
                               .from = from > base ? from - base : 0,
                               .to = pos + 1 > base ? pos + 1 - base : 0};
    r.to = r.to < ATTEND_SPLIT ? r.to : ATTEND_SPLIT;
    if (r.from >= r.to) {
        r.from = ATTEND_SPLIT;
        r.to = 0;
    }
    return r;
}

static const char *split_keys(const struct job *j, const struct unit *u, size_t split)
{
    return cpu_kv_page(j->kv, u->seq->pages[split * ATTEND_PAGES], j->layer) + cpu_kv_key_offset(j->kv, u->kv_head);
}

/* Scratch of a thread: two states, then what attend itself needs. */
static float *thread_state(const struct job *j, unsigned thread, size_t which)
{
    return (float *)(j->b->per_thread + thread * j->b->thread_bytes) + which * cpu_attend_state(ATTEND_QUERIES, j->dim);
}

/* `next`: what this thread reads afterwards, or NULL. */
static void attend_split(const struct job *j, const struct unit *u, size_t split, const char *next, float *state,
                         unsigned thread)
{
    struct cpu_attend_row rows[ATTEND_QUERIES];
    size_t queries = cpu_round_up(unit_queries(u), CPU_PANEL);
    float *work = thread_state(j, thread, 2);
    struct cpu_attend t = {.kv = j->kv,
                           .a = j->a,
                           .layer = j->layer,
                           .kv_head = u->kv_head,
                           .pages = u->seq->pages + split * ATTEND_PAGES,
                           .next = next,
                           .rows = rows,
                           .n_rows = u->n_rows,
                           .n_heads = u->n_heads,
                           .most = state,
                           .total = state + queries,
                           .sum = state + 2 * queries,
                           .scores = work,
                           .q = work + ATTEND_QUERIES * ATTEND_SPLIT};
    t.wide = t.q + ATTEND_QUERIES * j->kv->head_dim_k;
    for (size_t r = 0; r < u->n_rows; r++)
        rows[r] = row_in_split(j, u, r, split);
    j->b->kernels->attend(&t);
}

static void clear_state(const struct job *j, float *state, size_t queries)
{
    size_t padded = cpu_round_up(queries, CPU_PANEL);
    for (size_t i = 0; i < padded; i++)
        state[i] = ATTEND_NONE;
    memset(state + padded, 0, (cpu_attend_state(queries, j->dim) - padded) * sizeof *state);
}

static void write_out(const struct job *j, const struct unit *u, const float *state)
{
    size_t dim = j->kv->head_dim_v, queries = unit_queries(u);
    for (size_t i = 0; i < queries; i++) {
        size_t head = u->head + i % u->n_heads;
        j->b->kernels->attend_end(state, queries, i, dim, j->a->sinks ? j->a->sinks + head : NULL,
                                  j->out + ((u->row + i / u->n_heads) * j->a->n_heads + head) * dim);
    }
}

static void whole_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    const struct job *j = arg;
    float *state = thread_state(j, thread, 0), *next = thread_state(j, thread, 1);
    struct unit u = find_unit(j, begin), then;
    for (size_t i = begin; i < end; i++, u = then) {
        then = i + 1 < end ? find_unit(j, i + 1) : u;
        clear_state(j, state, unit_queries(&u));
        for (size_t split = first_split(j, &u), more; split * ATTEND_SPLIT < unit_end(&u); split++) {
            more = (split + 1) * ATTEND_SPLIT < unit_end(&u);
            attend_split(j, &u, split, more ? split_keys(j, &u, split + 1) : split_keys(j, &then, first_split(j, &then)), next,
                         thread);
            j->b->kernels->attend_merge(unit_queries(&u), j->dim, state, next);
        }
        write_out(j, &u, state);
    }
}

/* Runs of neighbours for one thread, so that it can ask for the next one's pages while it is at one. */
static void spread(struct job *j, size_t n, pool_range_fn fn)
{
    size_t grain = n / (pool_threads(j->b->pool) * CHUNKS_A_THREAD);
    pool_range(j->b->pool, n, grain ? grain : 1, fn, j);
}

/* ---- few units: splits in waves; a unit's states are [0] what is merged, [1 + i] split i of the wave ---- */

static float *unit_state(const struct job *j, size_t unit, size_t slot)
{
    return j->b->partials + (unit * (j->n_waved + 1) + slot) * j->state_floats;
}

static bool sees_split(const struct job *j, const struct unit *u, size_t split)
{
    return split >= first_split(j, u) && split * ATTEND_SPLIT < unit_end(u);
}

static void wave_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    const struct job *j = arg;
    for (size_t i = begin; i < end; i++) {
        struct unit u = find_unit(j, i % j->n_units), then = find_unit(j, (i + 1) % j->n_units);
        size_t slot = i / j->n_units, split = j->wave + slot, after = j->wave + (i + 1) / j->n_units;
        const char *next = i + 1 < end && sees_split(j, &then, after) ? split_keys(j, &then, after) : NULL;
        if (sees_split(j, &u, split))
            attend_split(j, &u, split, next, unit_state(j, i % j->n_units, 1 + slot), thread);
    }
}

static void merge_units(const struct job *j)
{
    for (size_t i = 0; i < j->n_units; i++) {
        struct unit u = find_unit(j, i);
        float *state = unit_state(j, i, 0);
        if (j->wave == 0)
            clear_state(j, state, unit_queries(&u));
        for (size_t slot = 0; slot < j->n_waved; slot++)
            if (sees_split(j, &u, j->wave + slot))
                j->b->kernels->attend_merge(unit_queries(&u), j->dim, state, unit_state(j, i, 1 + slot));
        if ((j->wave + j->n_waved) * ATTEND_SPLIT >= unit_end(&u) && j->wave * ATTEND_SPLIT < unit_end(&u))
            write_out(j, &u, state);
    }
}

/* True when the splits were worth spreading, and done. */
static bool attend_by_positions(struct job *j)
{
    size_t longest = 0, rows = 0, threads = pool_threads(j->b->pool);
    for (size_t s = 0; s < j->batch->n_seqs; s++) {
        const struct batch_seq *seq = &j->batch->seqs[s];
        longest = seq->pos + seq->n_rows > longest ? seq->pos + seq->n_rows : longest;
        rows = seq->n_rows > rows ? seq->n_rows : rows;
    }
    if (threads == 1 || longest <= ATTEND_SPLIT || j->n_units >= UNITS_A_THREAD * threads)
        return false;
    rows = rows < j->unit_rows ? rows : j->unit_rows;
    j->state_floats = cpu_attend_state(rows * j->unit_heads, j->dim);
    size_t slots = j->b->partial_floats / (j->n_units * j->state_floats), splits = (longest - 1) / ATTEND_SPLIT + 1;
    if (slots < 3)
        return false;
    j->n_waved = slots - 1 < splits ? slots - 1 : splits;
    for (j->wave = 0; j->wave < splits; j->wave += j->n_waved) {
        spread(j, j->n_units * j->n_waved, wave_part);
        merge_units(j);
    }
    return true;
}

/* Bytes of K and V that the batch sees, arithmetic on them. */
static void count_work(const struct job *j, uint64_t begin)
{
    double bytes = 0, pairs = 0;
    for (size_t s = 0; s < j->batch->n_seqs; s++) {
        const struct batch_seq *seq = &j->batch->seqs[s];
        size_t end = seq->pos + seq->n_rows;
        bytes += (double)j->kv->layer_bytes * (double)(end - first_position(j, seq->pos)) / KV_PAGE_TOKENS;
        for (size_t pos = seq->pos; pos < end; pos++)
            pairs += (double)(pos + 1 - first_position(j, pos));
    }
    cpu_profile_end(j->b, BACKEND_ATTENTION, begin, bytes,
                    2 * pairs * (double)(j->a->n_heads * (j->kv->head_dim_k + j->kv->head_dim_v)));
}

void op_attention(struct backend *b, const struct kv_cache *kv, size_t layer, const struct batch *batch,
                  const struct attention *a, const float *q, size_t q_stride, float *out)
{
    uint64_t begin = cpu_profile_begin(b);
    struct job j = {.b = b,
                    .kv = kv,
                    .layer = layer,
                    .batch = batch,
                    .a = a,
                    .q = q,
                    .q_stride = q_stride,
                    .out = out,
                    .dim = cpu_kv_value_dims(kv)};
    size_t dim = j.dim > kv->head_dim_k ? j.dim : kv->head_dim_k;
    CHECK((2 * cpu_attend_state(ATTEND_QUERIES, j.dim) + cpu_attend_work(dim)) * sizeof(float) <= b->thread_bytes);
    j.group = a->n_heads / kv->n_kv_heads;
    j.unit_heads = j.group < ATTEND_QUERIES ? j.group : ATTEND_QUERIES;
    j.head_parts = (j.group + j.unit_heads - 1) / j.unit_heads;
    j.unit_rows = ATTEND_QUERIES / j.unit_heads;
    for (size_t s = 0; s < batch->n_seqs; s++)
        j.n_units += row_blocks(&j, &batch->seqs[s]) * kv->n_kv_heads * j.head_parts;
    if (!attend_by_positions(&j))
        spread(&j, j.n_units, whole_part);
    if (b->profile)
        count_work(&j, begin);
}

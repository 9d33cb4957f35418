/* KV pages and attention. A unit is a run of rows of one sequence with one KV head; it sums blocks of ATTEND_SPLIT
 * absolute positions and merges them in ascending order. With many units each runs whole on one thread; with few (one
 * long stream) the blocks themselves are spread and merged afterwards: the same operations in the same order. */
#include "backend/cpu/cpu.h"

#include <math.h>
#include <string.h>

#define UNITS_A_THREAD 4  /* below this many units a thread, positions are split too */
#define NARROW_MAX     1024 /* floats converted at a time */

size_t kv_cache_plan(struct kv_cache *kv)
{
    size_t size = kv->type == KV_F32 ? 4 : 2;
    kv->layer_bytes = cpu_round_up(kv->n_kv_heads * KV_PAGE_TOKENS * (kv->head_dim_k + kv->head_dim_v) * size, CPU_LINE);
    return kv->layer_bytes * kv->n_layers;
}

static char *kv_layer(const struct kv_cache *kv, int32_t page, size_t layer)
{
    return (char *)kv->data + ((size_t)page * kv->n_layers + layer) * kv->layer_bytes;
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

static void write_key(const struct kv_write *j, char *page, size_t slot, const float *x)
{
    size_t n = j->kv->n_kv_heads * j->kv->head_dim_k;
    uint32_t words[NARROW_MAX];
    const uint16_t *halves = (const uint16_t *)words;
    for (size_t first = 0; first < n; first += NARROW_MAX) {
        size_t part = n - first < NARROW_MAX ? n - first : NARROW_MAX;
        j->k->narrow(j->kv->type, x + first, part, words);
        if (j->kv->type == KV_F32)
            for (size_t i = 0; i < part; i++)
                ((uint32_t *)page)[(first + i) * KV_PAGE_TOKENS + slot] = words[i];
        else
            for (size_t i = 0; i < part; i++)
                ((uint16_t *)page)[(first + i) * KV_PAGE_TOKENS + slot] = halves[i];
    }
}

static void kv_write_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct kv_write *j = arg;
    const struct kv_cache *kv = j->kv;
    size_t size = kv->type == KV_F32 ? 4 : 2, dv = kv->head_dim_v;
    for (size_t row = begin; row < end; row++) {
        const struct batch_seq *seq = seq_of_row(j->batch, row);
        size_t pos = seq->pos + (row - seq->row), slot = pos % KV_PAGE_TOKENS;
        char *page = kv_layer(kv, seq->pages[pos / KV_PAGE_TOKENS], j->layer);
        write_key(j, page, slot, j->keys + row * j->stride);
        page += kv->n_kv_heads * kv->head_dim_k * KV_PAGE_TOKENS * size;
        for (size_t h = 0; h < kv->n_kv_heads; h++)
            j->k->narrow(kv->type, j->values + row * j->stride + h * dv, dv, page + (h * KV_PAGE_TOKENS + slot) * dv * size);
    }
}

void op_kv_write(struct backend *b, struct kv_cache *kv, size_t layer, const struct batch *batch, const float *k,
                 const float *v, size_t stride)
{
    struct kv_write j = {b->kernels, kv, layer, stride, batch, k, v};
    cpu_split(b, batch->n_rows, batch->n_rows * kv->n_kv_heads * kv->head_dim_k * 4, kv_write_part, &j);
}

void op_kv_copy(struct backend *b, struct kv_cache *kv, int32_t from, int32_t to, size_t n_positions)
{
    (void)b;
    (void)n_positions; /* a whole page costs no more than its parts */
    memcpy(kv_layer(kv, to, 0), kv_layer(kv, from, 0), kv->layer_bytes * kv->n_layers);
}

/* ---- units ---- */

struct job {
    struct backend *b;
    const struct kv_cache *kv;
    size_t layer;
    const struct batch *batch;
    const struct attention *a;
    const float *q;
    size_t q_stride;
    float *out;
    size_t group;         /* query heads that share a KV head */
    size_t unit_heads;    /* of them in a unit */
    size_t head_parts;    /* units that share a KV head */
    size_t unit_rows;     /* rows of a unit at most: a power of two, units begin at its multiples */
    size_t n_units;
    size_t wave, n_waved, state_floats; /* split by positions: first block, blocks at a time, floats of a state */
};

struct unit {
    struct cpu_attend t;
    size_t row, head; /* first of the batch's rows, first query head */
};

static size_t row_blocks(const struct job *j, const struct batch_seq *seq)
{
    return (seq->pos + seq->n_rows - 1) / j->unit_rows - seq->pos / j->unit_rows + 1;
}

/* Walks the sequences to the unit: [seq][row block][kv head][part of its query heads]. */
static struct unit find_unit(const struct job *j, size_t index)
{
    size_t heads = j->kv->n_kv_heads, a_block = heads * j->head_parts, s = 0;
    while (index >= row_blocks(j, &j->batch->seqs[s]) * a_block)
        index -= row_blocks(j, &j->batch->seqs[s++]) * a_block;
    const struct batch_seq *seq = &j->batch->seqs[s];
    size_t block = index / a_block + seq->pos / j->unit_rows, kv_head = index % a_block / j->head_parts;
    size_t part = index % j->head_parts, end = seq->pos + seq->n_rows;
    size_t pos = block * j->unit_rows > seq->pos ? block * j->unit_rows : seq->pos;
    size_t stop = (block + 1) * j->unit_rows < end ? (block + 1) * j->unit_rows : end;
    struct unit u = {.row = seq->row + (pos - seq->pos), .head = kv_head * j->group + part * j->unit_heads};
    size_t left = j->group - part * j->unit_heads;
    u.t = (struct cpu_attend){.kv = j->kv, .a = j->a, .layer = j->layer, .kv_head = kv_head, .pages = seq->pages,
                              .pos = pos, .n_rows = stop - pos, .n_heads = left < j->unit_heads ? left : j->unit_heads,
                              .q = j->q + u.row * j->q_stride + u.head * j->kv->head_dim_k, .q_stride = j->q_stride};
    return u;
}

static size_t unit_end(const struct unit *u)
{
    return u->t.pos + u->t.n_rows;
}

/* First block of positions that any of the unit's rows sees. */
static size_t first_split(const struct unit *u)
{
    size_t window = u->t.a->window;
    return window && u->t.pos + 1 > window ? (u->t.pos + 1 - window) / ATTEND_SPLIT : 0;
}

static void attend_split(const struct job *j, struct unit *u, size_t split, float *state, float *work)
{
    u->t.begin = split * ATTEND_SPLIT;
    u->t.end = u->t.begin + ATTEND_SPLIT < unit_end(u) ? u->t.begin + ATTEND_SPLIT : unit_end(u);
    u->t.state = state;
    u->t.work = work;
    j->b->kernels->attend(&u->t);
}

static void clear_state(float *state, size_t queries, size_t dim)
{
    for (size_t i = 0; i < queries; i++)
        state[i] = -INFINITY;
    memset(state + queries, 0, (cpu_attend_state(queries, dim) - queries) * sizeof *state);
}

static void write_out(const struct job *j, const struct unit *u, const float *state)
{
    size_t dim = j->kv->head_dim_v, queries = u->t.n_rows * u->t.n_heads;
    for (size_t i = 0; i < queries; i++) {
        size_t head = u->head + i % u->t.n_heads;
        j->b->kernels->attend_end(state, queries, i, dim, j->a->sinks ? j->a->sinks + head : NULL,
                                  j->out + ((u->row + i / u->t.n_heads) * j->a->n_heads + head) * dim);
    }
}

static float *thread_work(const struct job *j, unsigned thread)
{
    return (float *)(j->b->per_thread + thread * j->b->thread_bytes);
}

static void whole_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    const struct job *j = arg;
    size_t dim = j->kv->head_dim_v;
    float *state = thread_work(j, thread), *next = state + cpu_attend_state(ATTEND_QUERIES, dim);
    float *work = next + cpu_attend_state(ATTEND_QUERIES, dim);
    for (size_t i = begin; i < end; i++) {
        struct unit u = find_unit(j, i);
        size_t queries = u.t.n_rows * u.t.n_heads;
        clear_state(state, queries, dim);
        for (size_t split = first_split(&u); split * ATTEND_SPLIT < unit_end(&u); split++) {
            attend_split(j, &u, split, next, work);
            j->b->kernels->attend_merge(queries, dim, state, next);
        }
        write_out(j, &u, state);
    }
}

/* ---- few units: blocks of positions in waves; a unit's states are [0] what is merged, [1 + i] block i of the wave ---- */

static float *unit_state(const struct job *j, size_t unit, size_t slot)
{
    return j->b->partials + (unit * (j->n_waved + 1) + slot) * j->state_floats;
}

static void wave_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    const struct job *j = arg;
    float *work = thread_work(j, thread);
    for (size_t i = begin; i < end; i++) {
        struct unit u = find_unit(j, i % j->n_units);
        size_t slot = i / j->n_units, split = j->wave + slot;
        if (split >= first_split(&u) && split * ATTEND_SPLIT < unit_end(&u))
            attend_split(j, &u, split, unit_state(j, i % j->n_units, 1 + slot), work);
    }
}

static void merge_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const struct job *j = arg;
    size_t dim = j->kv->head_dim_v;
    for (size_t i = begin; i < end; i++) {
        struct unit u = find_unit(j, i);
        size_t queries = u.t.n_rows * u.t.n_heads;
        float *state = unit_state(j, i, 0);
        if (j->wave == 0)
            clear_state(state, queries, dim);
        for (size_t slot = 0; slot < j->n_waved; slot++) {
            size_t split = j->wave + slot;
            if (split >= first_split(&u) && split * ATTEND_SPLIT < unit_end(&u))
                j->b->kernels->attend_merge(queries, dim, state, unit_state(j, i, 1 + slot));
        }
        if ((j->wave + j->n_waved) * ATTEND_SPLIT >= unit_end(&u) && j->wave * ATTEND_SPLIT < unit_end(&u))
            write_out(j, &u, state);
    }
}

/* True when the blocks of positions were worth spreading, and done. */
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
    j->state_floats = cpu_round_up(cpu_attend_state(rows * j->unit_heads, j->kv->head_dim_v), CPU_PANEL);
    size_t slots = j->b->partial_floats / (j->n_units * j->state_floats), splits = (longest - 1) / ATTEND_SPLIT + 1;
    if (slots < 3)
        return false;
    j->n_waved = slots - 1 < splits ? slots - 1 : splits;
    for (j->wave = 0; j->wave < splits; j->wave += j->n_waved) {
        pool_range(j->b->pool, j->n_units * j->n_waved, 1, wave_part, j);
        merge_part(j, 0, j->n_units, 0);
    }
    return true;
}

void op_attention(struct backend *b, const struct kv_cache *kv, size_t layer, const struct batch *batch,
                  const struct attention *a, const float *q, size_t q_stride, float *out)
{
    struct job j = {.b = b, .kv = kv, .layer = layer, .batch = batch, .a = a, .q = q, .q_stride = q_stride, .out = out};
    j.group = a->n_heads / kv->n_kv_heads;
    j.unit_heads = j.group < ATTEND_QUERIES ? j.group : ATTEND_QUERIES;
    j.head_parts = (j.group + j.unit_heads - 1) / j.unit_heads;
    for (j.unit_rows = 1; j.unit_rows < KV_PAGE_TOKENS && 2 * j.unit_rows * j.unit_heads <= ATTEND_QUERIES;)
        j.unit_rows *= 2;
    for (size_t s = 0; s < batch->n_seqs; s++)
        j.n_units += row_blocks(&j, &batch->seqs[s]) * kv->n_kv_heads * j.head_parts;
    size_t state = cpu_attend_state(ATTEND_QUERIES, kv->head_dim_v);
    CHECK((2 * state + ATTEND_QUERIES * (kv->head_dim_k + KV_PAGE_TOKENS)) * sizeof(float) <= b->thread_bytes);
    if (!attend_by_positions(&j))
        pool_range(b->pool, j.n_units, 1, whole_part, &j);
}

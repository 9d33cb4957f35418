/* KV pages and attention. A row's sums run over splits of ATTEND_SPLIT absolute positions, which are merged in ascending
 * order; a split's sums do not depend on what is computed beside them. So splits that sequences have pages of in common are
 * computed early, for all of them at once, and so are those of a sequence that is too long for one thread, one by one; then
 * each sequence goes on alone: the same operations in the same order. */
#include "backend/cpu/cpu.h"

#include <string.h>

#define KEY_PART        1024 /* floats of a head at most */
#define CHUNKS_A_THREAD 4
#define UNITS_A_THREAD  4 /* a unit with more than this part of a thread's share is taken apart by splits */
#define BLOCK_COST      2 /* rows whose work reading a split is like */

static const char *const type_names[] = {
    [KV_F32] = "f32", [KV_I24] = "int24", [KV_I16] = "int16", [KV_I8] = "int8", [KV_AUTO] = "auto"};

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
    size_t lane = cpu_kv_lane(kv->type), dv = cpu_kv_value_dims(kv), steps = cpu_kv_steps(kv->type, kv->head_dim_k);
    uint32_t key[KEY_PART];
    char *keys = page + cpu_kv_key_offset(kv, head) + slot * lane, *values = page + cpu_kv_value_offset(kv, head);
    key[steps - 1] = 0; /* a pair may be half a pair */
    float scale_k = j->k->narrow(kv->type, k, kv->head_dim_k, key), scale_v;
    switch (lane) {
    case 4: scatter(key, 4, steps, keys); break;
    case 3: scatter(key, 3, steps, keys); break;
    default: scatter(key, 1, steps, keys); break;
    }
    if (kv->type == KV_I16) {
        int16_t codes[KEY_PART], *to = (int16_t *)values + slot / 2 * dv * 2 + slot % 2;
        scale_v = j->k->narrow(kv->type, v, kv->head_dim_v, codes);
        for (size_t d = 0; d < kv->head_dim_v; d++)
            to[2 * d] = codes[d];
    } else {
        scale_v = j->k->narrow(kv->type, v, kv->head_dim_v, values + slot * dv * lane);
    }
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
    CHECK(kv->head_dim_k <= KEY_PART && kv->head_dim_v <= KEY_PART);
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

/* ---- the plan: who shares, which splits are computed early ---- */

/* A sequence of the batch, in an order in which those that share pages are neighbours. */
struct member {
    const struct batch_seq *seq;
    size_t first, end; /* splits that its rows see */
    size_t early;      /* those below are computed early */
    size_t common;     /* leading pages that it shares with the member before it */
    size_t row;        /* its first row in the slots of early splits */
};

/* Rows from row `first` of a member on; early ones may go on to the next members, and are of one split. */
struct block {
    uint32_t member, first, n_rows, split;
};

struct job {
    struct backend *b;
    const struct kv_cache *kv;
    size_t layer;
    const struct batch *batch;
    const struct attention *a;
    const float *q;
    size_t q_stride;
    float *out;
    size_t dim;                          /* padded head_dim_v */
    size_t group;                        /* query heads that share a KV head */
    size_t unit_heads, parts, unit_rows; /* of a unit at most; units that share a KV head */
    struct member *members;
    struct block *blocks; /* at hand: early ones of a wave, or those of all members */
    size_t n_blocks, blocks_max;
    size_t *cuts, n_cuts;          /* units [cuts[i], cuts[i + 1]) are for one thread */
    size_t slot_rows, slot_floats; /* rows that have early splits; a slot holds all their states in one split */
    size_t wave, n_waved, n_early; /* first early split at hand, how many at a time, of all */
};

/* Query heads of one KV head for the rows of a block. */
struct unit {
    const struct block *block;
    size_t kv_head, head, n_heads;
};

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* First position that the row at `pos` sees. */
static size_t first_position(const struct job *j, size_t pos)
{
    return j->a->window && pos + 1 > j->a->window ? pos + 1 - j->a->window : 0;
}

static size_t pages_of(const struct batch_seq *s)
{
    return (s->pos + s->n_rows - 1) / KV_PAGE_TOKENS + 1;
}

static size_t common_pages(const struct batch_seq *a, const struct batch_seq *b)
{
    size_t n = smaller(pages_of(a), pages_of(b)), i = 0;
    while (i < n && a->pages[i] == b->pages[i])
        i++;
    return i;
}

static bool goes_after(const struct batch_seq *a, const struct batch_seq *b)
{
    size_t i = common_pages(a, b);
    return i < smaller(pages_of(a), pages_of(b)) ? a->pages[i] > b->pages[i] : pages_of(a) > pages_of(b);
}

/* By page numbers, so that common beginnings meet. */
static void sort_members(struct member *m, size_t n)
{
    for (size_t gap = n / 2; gap; gap /= 2)
        for (size_t i = gap; i < n; i++) {
            const struct batch_seq *seq = m[i].seq;
            size_t at = i;
            for (; at >= gap && goes_after(m[at - gap].seq, seq); at -= gap)
                m[at].seq = m[at - gap].seq;
            m[at].seq = seq;
        }
}

/* A sequence of which a unit is a large part of all work has all its splits early; others those that they share. */
static void plan_members(struct job *j)
{
    struct member *m = j->members;
    size_t n = j->batch->n_seqs, work = 0, threads = pool_threads(j->b->pool);
    size_t row_floats = j->a->n_heads * (j->dim + 2), rows_max = (j->b->partial_floats - 2 * CPU_LINE) / 2 / row_floats;
    for (size_t i = 0; i < n; i++)
        m[i].seq = &j->batch->seqs[i];
    sort_members(m, n);
    for (size_t i = 0; i < n; i++) {
        const struct batch_seq *s = m[i].seq;
        m[i].first = first_position(j, s->pos) / ATTEND_SPLIT;
        m[i].end = (s->pos + s->n_rows - 1) / ATTEND_SPLIT + 1;
        bool few = i && s->n_rows < j->unit_rows && m[i - 1].seq->n_rows < j->unit_rows;
        m[i].common = few ? common_pages(m[i - 1].seq, s) : 0;
        work += (m[i].end - m[i].first) * s->n_rows * j->kv->n_kv_heads * j->parts;
    }
    for (size_t i = 0; i < n; i++) {
        size_t splits = m[i].end - m[i].first, rows = m[i].seq->n_rows, after = i + 1 < n ? m[i + 1].common : 0;
        size_t common = after > m[i].common ? after : m[i].common;
        bool large = threads > 1 && splits > 1 && splits * smaller(rows, j->unit_rows) * threads * UNITS_A_THREAD > work;
        m[i].early = large ? m[i].end : (common + ATTEND_PAGES - 1) / ATTEND_PAGES;
        if (m[i].early <= m[i].first || j->slot_rows + rows > rows_max)
            m[i].early = 0;
        m[i].row = j->slot_rows;
        j->slot_rows += m[i].early ? rows : 0;
        j->n_early = m[i].early > j->n_early ? m[i].early : j->n_early;
    }
    if (j->n_early == 0)
        return;
    j->slot_floats = cpu_attend_floats(j->a->n_heads * j->slot_rows, j->dim);
    j->n_waved = smaller(j->b->partial_floats / j->slot_floats - 1, j->blocks_max / j->slot_rows);
}

static bool is_early(const struct member *m, size_t split)
{
    return split < m->early && split >= m->first;
}

static void add_block(struct job *j, size_t member, size_t first, size_t n_rows, size_t split)
{
    CHECK(j->n_blocks < j->blocks_max);
    j->blocks[j->n_blocks++] = (struct block){(uint32_t)member, (uint32_t)first, (uint32_t)n_rows, (uint32_t)split};
}

/* Blocks of one split's rows that begin with a member's and go on while members share the split's first page. */
static size_t add_sharers(struct job *j, size_t member, size_t split)
{
    const struct member *m = j->members;
    size_t end = member + 1, n = m[member].seq->n_rows, first = 0;
    for (; end < j->batch->n_seqs && m[end].common > split * ATTEND_PAGES && is_early(&m[end], split); end++)
        n += m[end].seq->n_rows;
    for (size_t rows; n; n -= rows, first += rows) {
        while (first >= m[member].seq->n_rows)
            first -= m[member++].seq->n_rows;
        rows = smaller(n, j->unit_rows);
        add_block(j, member, first, rows, split);
    }
    return end;
}

static void early_blocks(struct job *j)
{
    j->n_blocks = 0;
    for (size_t split = j->wave; split < smaller(j->wave + j->n_waved, j->n_early); split++)
        for (size_t m = 0; m < j->batch->n_seqs;)
            m = is_early(&j->members[m], split) ? add_sharers(j, m, split) : m + 1;
}

static void member_blocks(struct job *j)
{
    j->n_blocks = 0;
    for (size_t m = 0; m < j->batch->n_seqs; m++) {
        size_t rows = j->members[m].seq->n_rows, from = j->members[m].early;
        for (size_t first = 0; first < rows; first += j->unit_rows)
            add_block(j, m, first, smaller(rows - first, j->unit_rows),
                      from > j->members[m].first ? from : j->members[m].first);
    }
}

/* ---- units ---- */

static struct unit find_unit(const struct job *j, size_t index)
{
    size_t heads = j->kv->n_kv_heads * j->parts, kv_head = index % heads / j->parts;
    size_t first = index % j->parts * j->unit_heads;
    return (struct unit){.block = &j->blocks[index / heads],
                         .kv_head = kv_head,
                         .head = kv_head * j->group + first,
                         .n_heads = smaller(j->group - first, j->unit_heads)};
}

static size_t unit_count(const struct job *j)
{
    return j->n_blocks * j->kv->n_kv_heads * j->parts;
}

static size_t unit_queries(const struct unit *u)
{
    return u->block->n_rows * u->n_heads;
}

/* A block's rows one after the other. */
struct walk {
    const struct member *m;
    size_t i, row, pos; /* which of the member's rows; in the batch; its position */
};

static void walk_to(struct walk *w, const struct member *m, size_t i)
{
    *w = (struct walk){.m = m, .i = i, .row = m->seq->row + i, .pos = m->seq->pos + i};
}

static struct walk walk_begin(const struct job *j, const struct block *b)
{
    struct walk w;
    walk_to(&w, &j->members[b->member], b->first);
    return w;
}

static void walk_on(struct walk *w)
{
    bool same = w->i + 1 < w->m->seq->n_rows;
    walk_to(w, same ? w->m : w->m + 1, same ? w->i + 1 : 0);
}

static struct cpu_attend_row row_in_split(const struct job *j, const struct walk *w, size_t split)
{
    size_t base = split * ATTEND_SPLIT, from = first_position(j, w->pos);
    struct cpu_attend_row r = {.pages = w->m->seq->pages + split * ATTEND_PAGES,
                               .from = from > base ? from - base : 0,
                               .to = w->pos + 1 > base ? smaller(w->pos + 1 - base, ATTEND_SPLIT) : 0};
    if (r.from >= r.to) {
        r.from = ATTEND_SPLIT;
        r.to = 0;
    }
    return r;
}

static const char *split_keys(const struct job *j, const struct unit *u, size_t split)
{
    const struct member *m = &j->members[u->block->member];
    if (split >= m->end)
        return NULL;
    return cpu_kv_page(j->kv, m->seq->pages[split * ATTEND_PAGES], j->layer) + cpu_kv_key_offset(j->kv, u->kv_head);
}

static struct cpu_attend_state state_at(float *memory, size_t queries, size_t all, size_t dim)
{
    size_t padded = cpu_round_up(all, CPU_PANEL);
    return (struct cpu_attend_state){memory + queries, memory + padded + queries, memory + 2 * padded + queries * dim};
}

/* Scratch of a thread: two states, then what attend itself needs. */
static struct cpu_attend_state thread_state(const struct job *j, unsigned thread, size_t which)
{
    float *memory = (float *)(j->b->per_thread + thread * j->b->thread_bytes);
    return state_at(memory + which * cpu_attend_floats(ATTEND_QUERIES, j->dim), 0, ATTEND_QUERIES, j->dim);
}

static float *thread_work(const struct job *j, unsigned thread)
{
    return (float *)(j->b->per_thread + thread * j->b->thread_bytes) + 2 * cpu_attend_floats(ATTEND_QUERIES, j->dim);
}

/* The unit's states in a slot: [0] what is merged, [1 + i] split i of the wave. */
static struct cpu_attend_state slot_state(const struct job *j, const struct unit *u, size_t slot)
{
    size_t row = j->members[u->block->member].row + u->block->first;
    return state_at(j->b->partials + slot * j->slot_floats, u->head * j->slot_rows + row * u->n_heads,
                    j->a->n_heads * j->slot_rows, j->dim);
}

/* Of the thread's queries. */
static float *thread_scales(const struct job *j, unsigned thread)
{
    return thread_work(j, thread) + ATTEND_QUERIES * j->kv->head_dim_k;
}

static void gather_queries(const struct job *j, const struct unit *u, unsigned thread)
{
    size_t dk = j->kv->head_dim_k, steps = cpu_kv_steps(j->kv->type, dk);
    float *to = thread_work(j, thread), *scales = thread_scales(j, thread);
    struct walk w = walk_begin(j, u->block);
    for (size_t r = 0; r < u->block->n_rows; r++) {
        if (r)
            walk_on(&w);
        const float *q = j->q + w.row * j->q_stride + u->head * dk;
        for (size_t h = 0; h < u->n_heads; h++, q += dk, to += steps) {
            *scales = 1;
            to[steps - 1] = 0; /* a pair may be half a pair */
            if (j->kv->type == KV_I16)
                *scales = j->b->kernels->narrow_query(q, dk, (int16_t *)to);
            else
                memcpy(to, q, dk * sizeof *q);
            scales++;
        }
    }
}

/* `next`: what this thread reads afterwards, or NULL. Queries were gathered. */
static void attend_split(const struct job *j, const struct unit *u, size_t split, const char *next,
                         struct cpu_attend_state result, unsigned thread)
{
    struct cpu_attend_row rows[ATTEND_QUERIES];
    float *scales = thread_scales(j, thread), *scores = scales + 2 * ATTEND_QUERIES;
    struct walk w = walk_begin(j, u->block);
    for (size_t r = 0; r < u->block->n_rows; r++) {
        if (r)
            walk_on(&w);
        rows[r] = row_in_split(j, &w, split);
    }
    struct cpu_attend t = {.kv = j->kv,
                           .a = j->a,
                           .layer = j->layer,
                           .kv_head = u->kv_head,
                           .next = next,
                           .rows = rows,
                           .n_rows = u->block->n_rows,
                           .n_heads = u->n_heads,
                           .q = thread_work(j, thread),
                           .q_scales = scales,
                           .weight_scales = scales + ATTEND_QUERIES,
                           .result = result,
                           .scores = scores,
                           .wide = scores + ATTEND_QUERIES * ATTEND_SPLIT};
    j->b->kernels->attend(&t);
}

static void clear_state(const struct job *j, const struct cpu_attend_state *s, size_t queries)
{
    for (size_t i = 0; i < queries; i++) {
        s->most[i] = ATTEND_NONE;
        s->total[i] = 0;
    }
    memset(s->sum, 0, queries * j->dim * sizeof *s->sum);
}

static void write_out(const struct job *j, const struct unit *u, const struct cpu_attend_state *s)
{
    size_t dim = j->kv->head_dim_v, row = j->members[u->block->member].seq->row + u->block->first;
    for (size_t i = 0; i < unit_queries(u); i++) {
        size_t head = u->head + i % u->n_heads;
        j->b->kernels->attend_end(s, i, dim, j->a->sinks ? j->a->sinks + head : NULL,
                                  j->out + ((row + i / u->n_heads) * j->a->n_heads + head) * dim);
    }
}

static void early_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    const struct job *j = arg;
    size_t others = (pool_threads(j->b->pool) - 1) * (end - begin); /* units that other threads take meanwhile */
    for (size_t i = begin; i < end; i++) {
        size_t after = i + 1 < end ? i + 1 : end + others;
        struct unit u = find_unit(j, i), then = find_unit(j, after < unit_count(j) ? after : i);
        gather_queries(j, &u, thread);
        attend_split(j, &u, u.block->split, split_keys(j, &then, then.block->split),
                     slot_state(j, &u, 1 + u.block->split - j->wave), thread);
    }
}

/* Of a unit of one member: what was computed early, merged; at the end what is left. */
static void finish_unit(const struct job *j, const struct unit *u, const struct unit *then, unsigned thread)
{
    const struct member *m = &j->members[u->block->member];
    const struct cpu_kernels *k = j->b->kernels;
    const bool last = j->wave + j->n_waved >= j->n_early;
    size_t queries = unit_queries(u), end = (m->seq->pos + u->block->first + u->block->n_rows - 1) / ATTEND_SPLIT + 1;
    struct cpu_attend_state state = m->early ? slot_state(j, u, 0) : thread_state(j, thread, 0);
    struct cpu_attend_state next = thread_state(j, thread, 1);
    if (!last && !m->early)
        return;
    if (j->wave == 0 || !m->early)
        clear_state(j, &state, queries);
    for (size_t split = j->wave; split < smaller(j->wave + j->n_waved, smaller(m->early, end)); split++)
        if (split >= m->first) {
            struct cpu_attend_state early = slot_state(j, u, 1 + split - j->wave);
            k->attend_merge(queries, j->dim, &state, &early);
        }
    if (!last)
        return;
    if (u->block->split < end)
        gather_queries(j, u, thread);
    for (size_t split = u->block->split; split < end; split++) {
        const char *ahead = split + 1 < end ? split_keys(j, u, split + 1)
                            : then          ? split_keys(j, then, then->block->split)
                                            : NULL;
        attend_split(j, u, split, ahead, next, thread);
        k->attend_merge(queries, j->dim, &state, &next);
    }
    write_out(j, u, &state);
}

static void finish_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    const struct job *j = arg;
    for (; begin < end; begin++) {
        /* The last first: in a prompt they are the longest. The other threads will have taken those between. */
        size_t cut = j->n_cuts - 1 - begin, threads = pool_threads(j->b->pool), after = cut >= threads ? cut - threads : 0;
        for (size_t i = j->cuts[cut]; i < j->cuts[cut + 1]; i++) {
            struct unit u = find_unit(j, i), then = find_unit(j, i + 1 < j->cuts[cut + 1] ? i + 1 : j->cuts[after]);
            finish_unit(j, &u, &then, thread);
        }
    }
}

/* Work of a unit of the block, in rows of a split. */
static size_t block_cost(const struct job *j, const struct block *b)
{
    size_t end = (j->members[b->member].seq->pos + b->first + b->n_rows - 1) / ATTEND_SPLIT + 1;
    return 1 + (end > b->split ? end - b->split : 0) * (b->n_rows + BLOCK_COST);
}

/* Cuts the units of all members into runs of about the same work: neighbours, so that a thread that is at one can ask for
 * the next one's pages. */
static void cut_units(struct job *j)
{
    size_t heads = j->kv->n_kv_heads * j->parts, work = 0, sum = 0;
    for (size_t i = 0; i < j->n_blocks; i++)
        work += block_cost(j, &j->blocks[i]) * heads;
    work = work / (pool_threads(j->b->pool) * CHUNKS_A_THREAD) + 1;
    j->n_cuts = 0;
    j->cuts[0] = 0;
    for (size_t i = 0; i < unit_count(j); i++) {
        sum += block_cost(j, &j->blocks[i / heads]);
        if (sum >= work || i + 1 == unit_count(j)) {
            j->cuts[++j->n_cuts] = i + 1;
            sum = 0;
        }
    }
}

/* Bytes of K and V that the batch reads, arithmetic on them. */
static void count_work(const struct job *j, uint64_t begin)
{
    double pages = 0, pairs = 0;
    for (size_t i = 0; i < j->batch->n_seqs; i++) {
        const struct member *m = &j->members[i];
        size_t end = m->seq->pos + m->seq->n_rows, first = first_position(j, m->seq->pos);
        size_t shared = m->common * KV_PAGE_TOKENS;
        pages += (double)(end - (first > shared ? first : smaller(shared, end))) / KV_PAGE_TOKENS;
        for (size_t pos = m->seq->pos; pos < end; pos++)
            pairs += (double)(pos + 1 - first_position(j, pos));
    }
    cpu_profile_end(j->b, BACKEND_ATTENTION, begin, pages * (double)j->kv->layer_bytes,
                    2 * pairs * (double)(j->a->n_heads * (j->kv->head_dim_k + j->kv->head_dim_v)));
}

static size_t cuts_max(unsigned threads)
{
    return threads * CHUNKS_A_THREAD + 2;
}

size_t cpu_attend_plan_bytes(unsigned threads, size_t rows)
{
    return cuts_max(threads) * sizeof(size_t) + rows * (sizeof(struct member) + sizeof(struct block));
}

/* Where the plan lies: rows of activations are not in use meanwhile. */
static void place_plan(struct job *j)
{
    const struct backend *b = j->b;
    unsigned threads = pool_threads(b->pool);
    CHECK(cpu_attend_plan_bytes(threads, j->batch->n_rows) <= b->rows_bytes);
    j->cuts = (size_t *)b->rows;
    j->members = (struct member *)(j->cuts + cuts_max(threads));
    j->blocks = (struct block *)(j->members + j->batch->n_seqs);
    j->blocks_max = (size_t)(b->rows + b->rows_bytes - (char *)j->blocks) / sizeof *j->blocks;
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
    CHECK((2 * cpu_attend_floats(ATTEND_QUERIES, j.dim) + cpu_attend_work(dim)) * sizeof(float) <= b->thread_bytes);
    j.group = a->n_heads / kv->n_kv_heads;
    j.unit_heads = smaller(j.group, ATTEND_QUERIES);
    j.parts = (j.group + j.unit_heads - 1) / j.unit_heads;
    j.unit_rows = ATTEND_QUERIES / j.unit_heads;
    place_plan(&j);
    plan_members(&j);
    do {
        if (j.n_early) {
            early_blocks(&j);
            pool_range(b->pool, unit_count(&j), unit_count(&j) / (pool_threads(b->pool) * CHUNKS_A_THREAD), early_part, &j);
        }
        member_blocks(&j);
        cut_units(&j);
        pool_range(b->pool, j.n_cuts, 1, finish_part, &j);
        j.wave += j.n_waved;
    } while (j.wave < j.n_early);
    if (b->profile)
        count_work(&j, begin);
}

/* Attention over pages. K lies [kv_head][dim][KV_PAGE_TOKENS] (positions across the lanes), V [kv_head][KV_PAGE_TOKENS]
 * [dim]: both are the right side of attend_block, so a page is read once for all queries that share it.
 *
 * Over one split of ATTEND_SPLIT positions: all scores, then the softmax, then the values. A query's sums are chains in one
 * order, whatever else is computed beside it: scores over dims ascending, values over positions ascending, weights lane by
 * lane over blocks of 16 positions ascending. Few queries read the cache's own type; many share what was widened once:
 * the same numbers.
 *
 * A cache of 16 bits has two dims of K, two positions of V side by side in a lane ([dim / 2][KV_PAGE_TOKENS][2] and
 * [KV_PAGE_TOKENS / 2][dim][2]), and queries and a split's weights are codes of 16 bits with a scale: products are summed in
 * integers, 32 dims or a page's positions at a time, which is exact, then in fp32. Positions that a row does not see
 * have the code 0, so that rows of any length go through a page together. */
#ifndef INFERD_BACKEND_CPU_KERNELS_ATTEND_H
#define INFERD_BACKEND_CPU_KERNELS_ATTEND_H

#include "backend/cpu/cpu.h"
#include "backend/cpu/vec.h"

#define LOG2E          1.44269504f
#define EXP2_LEAST     -126.0f
#define QUERIES_DIRECT 4 /* more than these share one widened page */

#if defined(__AVX512F__)
#define ATTEND_PANELS 2 /* 12 rows x 2 panels and their operands fill the registers */
#define ATTEND_ROWS   12
#else
#define ATTEND_PANELS 1
#define ATTEND_ROWS   6
#endif

/* Scales that have no inverse count as 0. NaN stays. */
static float usable_scale(float scale)
{
    return scale < 0x1p-126f ? 0 : scale;
}

/* 16 elements at p as floats; integers without their scale. Not of 16 bits, which stay integers. */
VEC_INLINE vf kv_load(const enum kv_type type, const char *p)
{
    switch (type) {
    case KV_I24: return vf_load_i24((const uint8_t *)p);
    case KV_I8: return vf_load_i8((const int8_t *)p);
    default: return vf_load((const float *)p);
    }
}

/* attend_block in a cache of 16 bits: x, w are pairs of codes. */
VEC_INLINE void attend_pairs(const int P, const int R, const char *w, size_t step, ptrdiff_t ahead, size_t n_ask,
                             const float *x, size_t xs, size_t n_k, float *acc, size_t as, bool fresh)
{
    const int32_t *base[(ATTEND_ROWS + 2) / 3];
#pragma GCC unroll 12
    for (int r = 0; r < R; r += 3)
        base[r / 3] = (const int32_t *)x + (size_t)r * xs;
    for (size_t first = 0; first < n_k; first += ATTEND_PAIRS, fresh = false) {
        const size_t end = first + ATTEND_PAIRS < n_k ? first + ATTEND_PAIRS : n_k;
        vi sum[ATTEND_ROWS * ATTEND_PANELS];
#pragma GCC unroll 24
        for (int i = 0; i < R * P; i++)
            sum[i] = vi_set(0);
        for (size_t k = first; k < end; k++, w += step) {
            vi value[ATTEND_PANELS];
            for (int p = 0; p < P; p++)
                value[p] = vi_load((const int32_t *)w + p * VF_LANES);
            for (int line = 0; line < ATTEND_PANELS && k < n_ask; line++) /* a panel of pairs is a line */
                __builtin_prefetch(w + ahead + line * CPU_LINE, 0, 2);
#pragma GCC unroll 12
            for (int r = 0; r < R; r++) {
                vi one = vi_set((base[r / 3] + (size_t)(r % 3) * xs)[k]);
                for (int p = 0; p < P; p++)
                    sum[r * P + p] = vi_dot_pairs(sum[r * P + p], value[p], one);
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < R; r++)
            for (int p = 0; p < P; p++) {
                float *to = acc + (size_t)r * as + p * VF_LANES;
                vf v = vi_float(sum[r * P + p]);
                vf_store(to, fresh ? v : vf_add(vf_load(to), v));
            }
    }
}

/* acc [R][as] += x [R][xs] * w over n_k steps, or starts at zero where `fresh`; w: step k, panel p at w + k * step + p * 16
 * lanes. Asks memory for what lies `ahead` bytes behind. */
VEC_INLINE void attend_block(const enum kv_type type, const int P, const int R, const char *w, size_t step, ptrdiff_t ahead,
                             size_t n_ask, const float *x, size_t xs, size_t n_k, float *acc, size_t as, bool fresh)
{
    if (type == KV_I16) {
        attend_pairs(P, R, w, step, ahead, n_ask, x, xs, n_k, acc, as, fresh);
        return;
    }
    const size_t panel = VF_LANES * cpu_kv_lane(type);
    vf sum[ATTEND_ROWS * ATTEND_PANELS];
    const float *base[(ATTEND_ROWS + 2) / 3]; /* of every third row: fewer registers for addresses */
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
        if (r % 3 == 0)
            base[r / 3] = x + (size_t)r * xs;
        for (int p = 0; p < P; p++)
            sum[r * P + p] = fresh ? vf_set(0) : vf_load(acc + (size_t)r * as + p * VF_LANES);
    }
    for (size_t k = 0; k < n_k; k++, w += step) {
        vf value[ATTEND_PANELS];
        for (int p = 0; p < P; p++)
            value[p] = kv_load(type, w + p * panel);
        for (size_t line = 0; line < (ATTEND_PANELS * panel + CPU_LINE - 1) / CPU_LINE; line++)
            __builtin_prefetch(w + ahead + line * CPU_LINE, 0, 2); /* to L2: the first cache has too few requests open */
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
            vf one = vf_set((base[r / 3] + (size_t)(r % 3) * xs)[k]);
            for (int p = 0; p < P; p++)
                sum[r * P + p] = vf_fma(value[p], one, sum[r * P + p]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++)
            vf_store(acc + (size_t)r * as + p * VF_LANES, sum[r * P + p]);
}

/* A chunk of `panels` panels, as attend_block, for n rows. */
struct attend_chunk {
    const char *w;
    size_t step, panels;
    ptrdiff_t ahead;
    size_t n_ask; /* KV_I16: the steps that ask; other types ask at every step */
    const float *x;
    size_t xs, n_k;
    float *acc;
    size_t as, n;
    bool fresh;
};

#define CHUNK_STEP(R) \
    for (; n >= (R); n -= (R), x += (R)*c->xs, acc += (R)*c->as) \
    attend_block(type, P, R, w, c->step, c->ahead, c->n_ask, x, c->xs, c->n_k, acc, c->as, c->fresh)

VEC_INLINE void chunk_rows(const enum kv_type type, const int P, const struct attend_chunk *c, size_t panel)
{
    const char *w = c->w + panel * VF_LANES * cpu_kv_lane(type);
    const float *x = c->x;
    float *acc = c->acc + panel * VF_LANES;
    size_t n = c->n;
    if (type == KV_F32 || type == KV_I16) {
        CHUNK_STEP(ATTEND_ROWS);
#if defined(__AVX512F__)
        CHUNK_STEP(8);
#endif
    }
    CHUNK_STEP(4);
    CHUNK_STEP(3);
    CHUNK_STEP(2);
    CHUNK_STEP(1);
}

VEC_INLINE void chunk_all(const enum kv_type type, const struct attend_chunk *c)
{
    size_t panel = 0;
    for (; panel + ATTEND_PANELS <= c->panels; panel += ATTEND_PANELS)
        chunk_rows(type, ATTEND_PANELS, c, panel);
    if (panel < c->panels)
        chunk_rows(type, 1, c, panel);
}

static __attribute__((noinline)) void chunk_f32(const struct attend_chunk *c)
{
    chunk_all(KV_F32, c);
}
static __attribute__((noinline)) void chunk_i24(const struct attend_chunk *c)
{
    chunk_all(KV_I24, c);
}
static __attribute__((noinline)) void chunk_i16(const struct attend_chunk *c)
{
    chunk_all(KV_I16, c);
}
static __attribute__((noinline)) void chunk_i8(const struct attend_chunk *c)
{
    chunk_all(KV_I8, c);
}

typedef void (*chunk_fn)(const struct attend_chunk *c);
static const chunk_fn chunk_table[] = {[KV_F32] = chunk_f32, [KV_I24] = chunk_i24, [KV_I16] = chunk_i16, [KV_I8] = chunk_i8};

VEC_INLINE void widen(const enum kv_type type, const char *p, size_t n, float *out)
{
    for (size_t i = 0; i < n; i += VF_LANES)
        vf_store(out + i, kv_load(type, p + i * cpu_kv_size(type)));
}

/* n integers, a multiple of 16. */
static void kv_widen(enum kv_type type, const char *p, size_t n, float *out)
{
    if (type == KV_I24)
        widen(KV_I24, p, n, out);
    else
        widen(KV_I8, p, n, out);
}

/* 2^x for x <= 0, relative error below 2e-7; x below EXP2_LEAST counts as that. NaN stays. */
VEC_INLINE vf attend_exp2(vf x)
{
    x = vf_max(vf_set(EXP2_LEAST), x);
    vi n = vi_round(x);
    vf r = vf_sub(x, vi_float(n));
    vf p = vf_set(1.3333558e-3f);
    p = vf_fma(p, r, vf_set(9.6181291e-3f));
    p = vf_fma(p, r, vf_set(5.5504109e-2f));
    p = vf_fma(p, r, vf_set(2.4022651e-1f));
    p = vf_fma(p, r, vf_set(6.9314718e-1f));
    p = vf_fma(p, r, vf_set(1));
    return vf_scale2(p, n);
}

/* cap * tanh(x / cap), by_cap = 2 / cap; tanh(z) = 1 - 2 / (1 + exp(2z)), of |z| so that the exponent stays small. */
VEC_INLINE vf attend_cap(vf x, float cap)
{
    vf e = attend_exp2(vf_mul(vf_abs(x), vf_set(-2 * LOG2E / cap)));
    vf y = vf_mul(vf_set(cap), vf_div(vf_sub(vf_set(1), e), vf_add(vf_set(1), e)));
    return vf_if_less(x, vf_set(0), vf_sub(vf_set(0), y), y);
}

/* Rows [row, row + n_rows) of the call have one page of the split in common. */
struct attend_run {
    size_t page, row, n_rows, from, to; /* from, to: positions of the page that any of them sees */
    bool alike;                         /* they see the same */
    const char *k, *v;
};

/* A call's runs, page by page, and for how many parts memory was asked: K of each run, V of each, then t->next. The call
 * before has asked for the first. */
struct attend_plan {
    const struct cpu_attend *t;
    struct attend_run runs[ATTEND_PAGES * ATTEND_QUERIES];
    size_t n, n_asked;
    const char *ahead;
    size_t ahead_bytes;
};

static bool sees_page(const struct cpu_attend_row *r, size_t page)
{
    return r->from < (page + 1) * KV_PAGE_TOKENS && r->to > page * KV_PAGE_TOKENS;
}

static struct attend_run run_of(const struct cpu_attend *t, size_t page, size_t row)
{
    const size_t base = page * KV_PAGE_TOKENS;
    const int32_t id = t->rows[row].pages[page];
    const char *at = cpu_kv_page(t->kv, id, t->layer);
    struct attend_run run = {.page = page,
                             .row = row,
                             .from = KV_PAGE_TOKENS,
                             .k = at + cpu_kv_key_offset(t->kv, t->kv_head),
                             .v = at + cpu_kv_value_offset(t->kv, t->kv_head)};
    for (; row < t->n_rows && sees_page(&t->rows[row], page) && t->rows[row].pages[page] == id; row++, run.n_rows++) {
        size_t from = t->rows[row].from > base ? t->rows[row].from - base : 0, to = t->rows[row].to - base;
        to = to < KV_PAGE_TOKENS ? to : KV_PAGE_TOKENS;
        run.alike = run.n_rows == 0 || (run.alike && from == run.from && to == run.to);
        run.from = from < run.from ? from : run.from;
        run.to = to > run.to ? to : run.to;
    }
    for (size_t line = 0; cpu_kv_scaled(t->kv->type) && line < 2 * KV_PAGE_TOKENS * sizeof(float); line += CPU_LINE)
        __builtin_prefetch(at + cpu_kv_scale_offset(t->kv, t->kv_head) + line, 0, 2);
    return run;
}

static void find_runs(struct attend_plan *p)
{
    for (size_t page = 0; page < ATTEND_PAGES; page++)
        for (size_t row = 0; row < p->t->n_rows;)
            if (sees_page(&p->t->rows[row], page)) {
                p->runs[p->n] = run_of(p->t, page, row);
                row += p->runs[p->n++].n_rows;
            } else {
                row++;
            }
}

/* The first step of V that the run reads. */
static size_t values_from(enum kv_type type, const struct attend_run *run)
{
    return type == KV_I16 ? run->from / 2 : run->from;
}

/* Goes on to what is read next when all before was asked for. Nothing is left: ahead_bytes is 0. */
static void look_ahead(struct attend_plan *p)
{
    const struct kv_cache *kv = p->t->kv;
    const size_t key_bytes = cpu_kv_key_offset(kv, 1), value_bytes = cpu_kv_value_dims(kv) * cpu_kv_lane(kv->type);
    while (p->ahead_bytes == 0 && p->n_asked <= 2 * p->n) {
        size_t part = p->n_asked++;
        const struct attend_run *run = &p->runs[part < p->n ? part : part - p->n];
        if (part < p->n) {
            p->ahead = run->k;
            p->ahead_bytes = key_bytes;
        } else if (part < 2 * p->n) {
            size_t from = values_from(kv->type, run);
            p->ahead = run->v + from * value_bytes;
            p->ahead_bytes = (cpu_kv_steps(kv->type, run->to) - from) * value_bytes;
        } else if (p->t->next) {
            p->ahead = p->t->next;
            p->ahead_bytes = key_bytes;
        }
    }
}

/* Asks memory for so many lines of it. */
static void ask_ahead(struct attend_plan *p, size_t lines)
{
    for (; lines; lines--) {
        look_ahead(p);
        if (p->ahead_bytes == 0)
            return;
        __builtin_prefetch(p->ahead, 0, 2);
        p->ahead += CPU_LINE;
        p->ahead_bytes -= p->ahead_bytes < CPU_LINE ? p->ahead_bytes : CPU_LINE;
    }
}

/* A run's K or V as its queries read it: in the cache's type, or widened once in t->wide. */
struct attend_side {
    enum kv_type type;
    const char *w;
    size_t width; /* lanes of a step */
};

static struct attend_side side_begin(const struct cpu_attend *t, const struct attend_run *run, const char *w, size_t n_steps,
                                     size_t width)
{
    struct attend_side s = {.type = t->kv->type, .w = w, .width = width};
    if (s.type != KV_F32 && s.type != KV_I16 && run->n_rows * t->n_heads > QUERIES_DIRECT) {
        kv_widen(s.type, w, n_steps * width, t->wide);
        s = (struct attend_side){.type = KV_F32, .w = (const char *)t->wide, .width = width};
    }
    return s;
}

/* Steps of whole blocks that hold the first n, of n_k. */
static size_t whole_blocks(size_t n, size_t n_k)
{
    n = (n + ATTEND_PAIRS - 1) / ATTEND_PAIRS * ATTEND_PAIRS;
    return n < n_k ? n : n_k;
}

/* c's rows over its steps of the side from first_step on; beside the first of them asks for what is read next. Sums of
 * integers begin and end where they always do, so that their steps are only cut at whole blocks. */
static void side_run(struct attend_plan *p, const struct attend_side *s, struct attend_chunk *c, size_t first_step)
{
    const size_t n = c->n, n_k = c->n_k;
    struct attend_chunk rest = *c;
    c->step = s->width * cpu_kv_lane(s->type);
    c->n = n < ATTEND_ROWS ? n : ATTEND_ROWS;
    for (size_t k = 0; k < n_k; k += c->n_k, c->x += c->n_k) {
        look_ahead(p);
        c->w = s->w + (first_step + k) * c->step;
        c->n_k = n_k - k;
        c->n_ask = (p->ahead_bytes + c->step - 1) / c->step;
        c->ahead = p->ahead_bytes ? p->ahead - c->w : 0;
        if (c->n_ask && c->n_ask < c->n_k)
            c->n_k = s->type == KV_I16 ? whole_blocks(c->n_ask, c->n_k) : c->n_ask;
        c->n_ask = c->n_ask < c->n_k ? c->n_ask : c->n_k;
        chunk_table[s->type](c);
        size_t asked = c->n_ask * c->step;
        p->ahead += asked;
        p->ahead_bytes -= asked < p->ahead_bytes ? asked : p->ahead_bytes;
        ask_ahead(p, (c->n_k - c->n_ask) * c->step / CPU_LINE);
        c->fresh = false;
    }
    rest.n = n - c->n;
    rest.step = c->step;
    rest.w = s->w + first_step * c->step;
    rest.x += c->n * c->xs;
    rest.acc += c->n * c->as;
    if (rest.n)
        chunk_table[s->type](&rest);
}

static void attend_keys(struct attend_plan *p, const struct attend_run *run)
{
    const struct cpu_attend *t = p->t;
    size_t steps = cpu_kv_steps(t->kv->type, t->kv->head_dim_k), first = run->row * t->n_heads;
    struct attend_side side = side_begin(t, run, run->k, steps, KV_PAGE_TOKENS);
    struct attend_chunk c = {.panels = (run->to + VF_LANES - 1) / VF_LANES,
                             .x = t->q + first * steps,
                             .xs = steps,
                             .n_k = steps,
                             .acc = t->scores + first * ATTEND_SPLIT + run->page * KV_PAGE_TOKENS,
                             .as = ATTEND_SPLIT,
                             .n = run->n_rows * t->n_heads,
                             .fresh = true};
    side_run(p, &side, &c, 0);
}

/* Where a row's scales lie, page by page: K's [KV_PAGE_TOKENS], then V's. */
static void find_scales(const struct cpu_attend *t, size_t row, const float **scales)
{
    for (size_t page = 0; page < ATTEND_PAGES; page++)
        if (sees_page(&t->rows[row], page))
            scales[page] = (const float *)(cpu_kv_page(t->kv, t->rows[row].pages[page], t->layer) +
                                           cpu_kv_scale_offset(t->kv, t->kv_head));
}

/* Lanes of the 16 positions from i on that lie in [from, to), else `other`. */
VEC_INLINE vf attend_seen(vf v, vf other, size_t i, size_t from, size_t to)
{
    if (i >= from && i + VF_LANES <= to)
        return v;
    return vf_lanes(v, other, i < from ? from - i : 0, to - i < VF_LANES ? to - i : VF_LANES);
}

/* Scores at [from, to) of a query of this scale in base 2, of which it returns the greatest. */
VEC_INLINE float attend_scale(const struct cpu_attend *t, const float *const *scales, float q_scale, float *scores, size_t from,
                              size_t to)
{
    const vf none = vf_set(ATTEND_NONE), by = vf_set(t->a->scale * (t->a->softcap > 0 ? 1 : LOG2E) * q_scale);
    const bool scaled = cpu_kv_scaled(t->kv->type);
    vf top = none;
#pragma GCC unroll 8
    for (size_t i = from / VF_LANES * VF_LANES; i < to; i += VF_LANES) {
        vf s = vf_mul(vf_load(scores + i), by);
        if (scaled)
            s = vf_mul(s, vf_load(scales[i / KV_PAGE_TOKENS] + i % KV_PAGE_TOKENS));
        if (t->a->softcap > 0)
            s = vf_mul(attend_cap(s, t->a->softcap), vf_set(LOG2E));
        s = attend_seen(s, none, i, from, to);
        top = vf_max(top, s);
        vf_store(scores + i, s);
    }
    return vf_most(top);
}

/* These into weights of the softmax, times V's scales, which come to *scaled_sum; returns the sum of the weights. */
VEC_INLINE float attend_weigh(const struct cpu_attend *t, const float *const *scales, float *scores, size_t from, size_t to,
                              float most, float *scaled_sum)
{
    const bool scaled = cpu_kv_scaled(t->kv->type);
    vf top = vf_set(most), sum = vf_set(0), all = sum;
#pragma GCC unroll 8
    for (size_t i = from / VF_LANES * VF_LANES; i < to; i += VF_LANES) {
        vf w = attend_exp2(vf_sub(vf_load(scores + i), top));
        sum = vf_add(sum, attend_seen(w, vf_set(0), i, from, to));
        if (scaled)
            w = vf_mul(w, vf_load(scales[i / KV_PAGE_TOKENS] + KV_PAGE_TOKENS + i % KV_PAGE_TOKENS));
        w = attend_seen(w, vf_set(0), i, from, to);
        all = vf_add(all, w);
        vf_store(scores + i, w);
    }
    *scaled_sum = vf_sum(all);
    return vf_sum(sum);
}

/* Weights at [from, to) of a split, of this sum, into codes of 16 bits in their place; what else there is of the pages gets
 * the code 0. Returns the codes' scale. */
VEC_INLINE float attend_codes(float *weights, size_t from, size_t to, float sum)
{
    const size_t first = from / VF_LANES * VF_LANES;
    const float scale = usable_scale(sum / ATTEND_WEIGHTS_SUM);
    int16_t *codes = (int16_t *)weights;
    vf by = vf_set(scale > 0 ? 1 / scale : 0);
    size_t i = from / KV_PAGE_TOKENS * KV_PAGE_TOKENS;
    for (; i < first; i += VF_LANES)
        vi_store_i16(codes + i, vi_set(0));
#pragma GCC unroll 8
    for (; i < to; i += VF_LANES)
        vi_store_i16(codes + i, vi_round(vf_mul(vf_load(weights + i), by)));
    for (; i % KV_PAGE_TOKENS; i += VF_LANES)
        vi_store_i16(codes + i, vi_set(0));
    return scale;
}

/* The two in loops of their own, so that many queries are under way at a time; whole splits without masks. */
static void attend_softmax(const struct cpu_attend *t)
{
    const size_t heads = t->n_heads;
    const bool codes = t->kv->type == KV_I16;
    for (int weigh = 0; weigh < 2; weigh++)
        for (size_t row = 0; row < t->n_rows; row++) {
            const size_t from = t->rows[row].from, to = t->rows[row].to;
            const bool whole = from == 0 && to == ATTEND_SPLIT;
            const float *scales[ATTEND_PAGES];
            find_scales(t, row, scales);
            for (size_t i = row * heads; i < (row + 1) * heads; i++) {
                float *s = t->scores + i * ATTEND_SPLIT, *most = t->result.most + i, *total = t->result.total + i;
                float sum;
                if (weigh)
                    *total = whole ? attend_weigh(t, scales, s, 0, ATTEND_SPLIT, *most, &sum)
                                   : attend_weigh(t, scales, s, from, to, *most, &sum);
                else
                    *most = whole ? attend_scale(t, scales, t->q_scales[i], s, 0, ATTEND_SPLIT)
                                  : attend_scale(t, scales, t->q_scales[i], s, from, to);
                if (weigh && codes)
                    t->weight_scales[i] = whole ? attend_codes(s, 0, ATTEND_SPLIT, sum) : attend_codes(s, from, to, sum);
            }
        }
}

/* Values at positions [from, to) of the split for queries [first, first + n). */
static void attend_values(struct attend_plan *p, const struct attend_side *side, size_t page, size_t from, size_t to,
                          size_t first, size_t n)
{
    size_t base = page * KV_PAGE_TOKENS, dv = side->width;
    from = from > base ? from : base;
    to = to < base + KV_PAGE_TOKENS ? to : base + KV_PAGE_TOKENS;
    if (from >= to || n == 0)
        return;
    struct attend_chunk c = {.panels = dv / VF_LANES,
                             .x = p->t->scores + first * ATTEND_SPLIT + from,
                             .xs = ATTEND_SPLIT,
                             .n_k = to - from,
                             .acc = p->t->result.sum + first * dv,
                             .as = dv,
                             .n = n};
    side_run(p, side, &c, from - base);
}

/* One page's values for rows [r, r + n): what all of them see in one go, what only some see row by row. */
static void values_of_rows(struct attend_plan *p, const struct attend_side *side, size_t page, size_t r, size_t n)
{
    const struct cpu_attend_row *rows = p->t->rows;
    size_t low = 0, high = ATTEND_SPLIT, heads = p->t->n_heads;
    for (size_t i = r; i < r + n; i++) {
        low = rows[i].from > low ? rows[i].from : low;
        high = rows[i].to < high ? rows[i].to : high;
    }
    if (low >= high)
        low = high = ATTEND_SPLIT;
    for (size_t i = r; i < r + n; i++)
        attend_values(p, side, page, rows[i].from, rows[i].to < low ? rows[i].to : low, i * heads, heads);
    attend_values(p, side, page, low, high, r * heads, n * heads);
    for (size_t i = r; i < r + n; i++)
        attend_values(p, side, page, high, rows[i].to, i * heads, heads);
}

/* One page's values for all rows of a run at once: weights of what a row does not see are 0. */
static void values_of_pairs(struct attend_plan *p, const struct attend_side *side, const struct attend_run *run)
{
    const size_t from = values_from(KV_I16, run), first = run->row * p->t->n_heads;
    struct attend_chunk c = {.panels = side->width / VF_LANES,
                             .x = p->t->scores + first * ATTEND_SPLIT + run->page * KV_PAGE_TOKENS / 2 + from,
                             .xs = ATTEND_SPLIT,
                             .n_k = cpu_kv_steps(KV_I16, run->to) - from,
                             .acc = p->t->result.sum + first * side->width,
                             .as = side->width,
                             .n = run->n_rows * p->t->n_heads};
    side_run(p, side, &c, from);
}

static void scale_sums(const struct cpu_attend *t, size_t dv)
{
    float *sum = t->result.sum;
    for (size_t i = 0; i < t->n_rows * t->n_heads; i++, sum += dv)
        for (size_t d = 0; d < dv; d += VF_LANES)
            vf_store(sum + d, vf_mul(vf_load(sum + d), vf_set(t->weight_scales[i])));
}

static void attend(const struct cpu_attend *t)
{
    size_t dv = cpu_kv_value_dims(t->kv), heads = t->n_heads;
    struct attend_plan p;
    p.t = t;
    p.n = p.ahead_bytes = 0;
    find_runs(&p);
    p.n_asked = p.n ? 1 : 0;
    for (size_t i = 0; i < p.n; i++)
        attend_keys(&p, &p.runs[i]);
    attend_softmax(t);
    memset(t->result.sum, 0, t->n_rows * heads * dv * sizeof(float));
    size_t together = heads < ATTEND_ROWS ? ATTEND_ROWS / heads : 1;
    for (const struct attend_run *run = p.runs; run < p.runs + p.n; run++) {
        struct attend_side side = side_begin(t, run, run->v, KV_PAGE_TOKENS, dv);
        if (side.type == KV_I16) {
            values_of_pairs(&p, &side, run);
            continue;
        }
        if (run->alike) {
            size_t base = run->page * KV_PAGE_TOKENS;
            attend_values(&p, &side, run->page, base + run->from, base + run->to, run->row * heads, run->n_rows * heads);
            continue;
        }
        for (size_t r = 0; r < run->n_rows; r += together)
            values_of_rows(&p, &side, run->page, run->row + r, run->n_rows - r < together ? run->n_rows - r : together);
    }
    if (t->kv->type == KV_I16)
        scale_sums(t, dv);
}

static void attend_merge(size_t queries, size_t dim, const struct cpu_attend_state *state, const struct cpu_attend_state *next)
{
    float *sum = state->sum;
    const float *next_sum = next->sum;
    for (size_t first = 0; first < queries; first += VF_LANES) {
        const size_t n = queries - first < VF_LANES ? queries - first : VF_LANES;
        float keep[VF_LANES], part[VF_LANES];
        vf before = vf_load_part(state->most + first, n), other = vf_load_part(next->most + first, n);
        vf now = vf_max(before, other), k = attend_exp2(vf_sub(before, now)), m = attend_exp2(vf_sub(other, now));
        vf total = vf_mul(vf_load_part(state->total + first, n), k);
        vf_store_part(state->total + first, vf_fma(vf_load_part(next->total + first, n), m, total), n);
        vf_store_part(state->most + first, now, n);
        vf_store(keep, k);
        vf_store(part, m);
        for (size_t i = 0; i < n; i++, sum += dim, next_sum += dim)
            for (size_t d = 0; d < dim; d += VF_LANES)
                vf_store(sum + d, vf_fma(vf_load(next_sum + d), vf_set(part[i]), vf_mul(vf_load(sum + d), vf_set(keep[i]))));
    }
}

static void attend_end(const struct cpu_attend_state *state, size_t query, size_t dim, const float *sink, float *out)
{
    float most = state->most[query], total = state->total[query], by = 1, t[VF_LANES];
    const float *sum = state->sum + query * cpu_round_up(dim, VF_LANES);
    if (sink) {
        float logit = *sink * LOG2E, now = logit > most ? logit : most;
        vf_store(t, attend_exp2(vf_lanes(vf_set(most - now), vf_set(logit - now), 0, 1)));
        by = t[0];
        total = fmaf(total, by, t[1]);
    }
    by /= total;
    for (size_t d = 0; d < dim; d += VF_LANES) {
        vf v = vf_mul(vf_load(sum + d), vf_set(by));
        if (dim - d >= VF_LANES)
            vf_store(out + d, v);
        else
            vf_store_part(out + d, v, dim - d);
    }
}

/* ---- into the cache ---- */

/* n integers of the type, codes of x / scale. */
VEC_INLINE void narrow_by(enum kv_type type, float codes_max, float scale, const float *x, size_t n, void *out)
{
    const size_t size = cpu_kv_size(type);
    char *to = out;
    vf by = vf_set(scale > 0 ? 1 / scale : 0);
    for (size_t i = 0; i < n; i += VF_LANES) {
        size_t lanes = n - i < VF_LANES ? n - i : VF_LANES;
        vf v = lanes < VF_LANES ? vf_load_part(x + i, lanes) : vf_load(x + i);
        char part[VF_LANES * sizeof(float)], *codes = lanes < VF_LANES ? part : to + i * size;
        vi code = vi_round(vf_max(vf_set(-codes_max), vf_min(vf_set(codes_max), vf_mul(v, by))));
        if (type == KV_I24)
            vi_store_i24((uint8_t *)codes, code);
        else if (type == KV_I16)
            vi_store_i16((int16_t *)codes, code);
        else
            vi_store_bytes((int8_t *)codes, code);
        if (lanes < VF_LANES)
            memcpy(to + i * size, part, lanes * size);
    }
}

/* The greatest of the n gets the greatest code; returns the scale: NaN where one of them is not finite, since codes cannot
 * say it. */
VEC_INLINE float narrow_to(enum kv_type type, float codes_max, const float *x, size_t n, void *out)
{
    vf most = vf_set(0), odd = most;
    for (size_t i = 0; i < n; i += VF_LANES) {
        vf v = vf_abs(n - i < VF_LANES ? vf_load_part(x + i, n - i) : vf_load(x + i));
        most = vf_max(most, v);
        odd = vf_fma(v, vf_set(0), odd);
    }
    float scale = usable_scale(vf_most(most) / codes_max) + vf_sum(odd);
    narrow_by(type, codes_max, scale, x, n, out);
    return scale;
}

static float kv_narrow(enum kv_type type, const float *x, size_t n, void *out)
{
    switch (type) {
    case KV_I24: return narrow_to(KV_I24, 8388607, x, n, out) * 0x1p-8f; /* vf_load_i24 gives 256 times the code */
    case KV_I16: return narrow_to(KV_I16, 32767, x, n, out);
    case KV_I8: return narrow_to(KV_I8, 127, x, n, out);
    default: memcpy(out, x, n * sizeof *x); return 0;
    }
}

static float narrow_query(const float *x, size_t n, int16_t *out)
{
    vf top = vf_set(0), odd = top;
    float most = 0; /* of the sums of blocks */
    for (size_t first = 0; first < n; first += 2 * ATTEND_PAIRS) {
        vf sum = vf_set(0);
        for (size_t i = first; i < n && i < first + 2 * ATTEND_PAIRS; i += VF_LANES) {
            vf v = vf_abs(n - i < VF_LANES ? vf_load_part(x + i, n - i) : vf_load(x + i));
            sum = vf_add(sum, v);
            top = vf_max(top, v);
            odd = vf_fma(v, vf_set(0), odd);
        }
        most = fmaxf(most, vf_sum(sum));
    }
    float scale = usable_scale(fmaxf(most / ATTEND_QUERY_SUM, vf_most(top) / ATTEND_CODE_MAX)) + vf_sum(odd); /* as above */
    narrow_by(KV_I16, ATTEND_CODE_MAX, scale, x, n, out);
    return scale;
}

#endif

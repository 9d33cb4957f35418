/* Attention against double precision, and the promise that a row's bits depend on its own sequence alone: every KV type,
 * sizes of heads, groups, windows, caps and sinks, across the borders of pages and splits, on every instruction set. */
#include "backend/cpu/cpu.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define ROWS       300 /* of the sequence: over two splits, ends inside a page */
#define ROWS_SHORT 150
#define OTHER      40 /* rows of a sequence beside it */
#define PAGES      ((ROWS + OTHER) / KV_PAGE_TOKENS + 4)
#define SHARERS    21 /* sequences that have pages in common */
#define OWN        4  /* pages of each that are its own, at most */
#define PAGES_ALL  (PAGES + SHARERS * OWN)
#define KV_TYPES   4
#define ERROR_MAX  2e-5 /* of outputs near 1, against double over the values that the cache holds */
#define CODES_MAX  6e-4 /* the same where queries and weights are codes of 16 bits */

struct shape {
    size_t heads, kv_heads, dk, dv, window;
    float softcap;
    int sinks;
};

static const struct shape shapes[] = {
    {4, 4, 16, 16, 0, 0, 0},    {3, 1, 32, 32, 0, 0, 0},   {4, 2, 48, 48, 0, 0, 0},   {9, 3, 64, 64, 0, 0, 0},
    {4, 1, 80, 80, 0, 0, 0},    {5, 1, 96, 96, 0, 0, 0},   {4, 2, 128, 128, 0, 0, 0}, {2, 1, 256, 256, 0, 0, 0},
    {6, 1, 24, 40, 0, 0, 0},    {7, 1, 64, 32, 0, 0, 0},   {8, 1, 20, 20, 0, 0, 0},   {3, 1, 64, 64, 1, 0, 0},
    {4, 2, 32, 32, 40, 0, 0},   {2, 2, 64, 64, 128, 0, 1}, {4, 1, 64, 64, 0, 5, 0},   {9, 3, 64, 64, 0, 0, 1},
    {8, 1, 32, 32, 100, 20, 1}, {50, 1, 16, 16, 0, 0, 0},  {3, 1, 33, 17, 0, 0, 0},   {4, 2, 15, 95, 9, 0, 0},
};

static uint32_t seed = 1;

static float noise(void)
{
    seed = seed * 1664525u + 1013904223u;
    return (float)(int32_t)seed * 0x1p-31f;
}

/* What the cache holds of one head. */
static void held(enum kv_type type, const float *x, size_t n, double *out)
{
    float top = 0, codes_max = type == KV_I8 ? 127 : type == KV_I16 ? 32767 : 8388607;
    for (size_t i = 0; i < n; i++)
        top = fmaxf(top, fabsf(x[i]));
    float scale = top / codes_max;
    for (size_t i = 0; i < n; i++)
        out[i] = type == KV_F32 ? (double)x[i] : (double)lrintf(x[i] * (1 / scale)) * (double)scale;
}

struct rig {
    struct shape s;
    struct backend *b;
    struct kv_cache kv;
    size_t kv_bytes, rows, q_width, k_width, v_width, out_width;
    float *q, *k, *v, *sinks; /* of the sequence; a neighbour takes the same rows in another order */
    float *stored, *asked, *out;
};

static void rig_open(struct rig *r, const struct shape *s, enum kv_type type, const char *isa, unsigned threads, size_t rows)
{
    struct err err = {0};
    struct backend_options o = {.n_threads = threads, .isa = isa};
    size_t dim = s->dk > s->dv ? s->dk : s->dv;
    struct backend_sizes sizes = {
        .rows_max = rows + OTHER, .in_max = 64, .out_max = 64, .heads_max = s->heads, .head_dim_max = dim};
    *r = (struct rig){.s = *s, .b = backend_open_cpu(&o, &err), .rows = rows};
    assert_non_null(r->b);
    assert_true(backend_scratch_reserve(r->b, &sizes, &err));
    r->kv = (struct kv_cache){
        .type = type, .n_layers = 2, .n_kv_heads = s->kv_heads, .head_dim_k = s->dk, .head_dim_v = s->dv, .n_pages = PAGES_ALL};
    r->kv_bytes = kv_cache_plan(&r->kv) * PAGES_ALL;
    r->kv.data = backend_alloc(r->b, r->kv_bytes, &err);
    assert_non_null(r->kv.data);
    memset(r->kv.data, 0xff, r->kv_bytes); /* floats that are not numbers: whoever reads what was not written is seen */
    r->q_width = s->heads * s->dk;
    r->k_width = s->kv_heads * s->dk;
    r->v_width = s->kv_heads * s->dv;
    r->out_width = s->heads * s->dv;
    r->q = calloc(rows * r->q_width, sizeof(float));
    r->k = calloc(rows * r->k_width, sizeof(float));
    r->v = calloc(rows * r->v_width, sizeof(float));
    r->sinks = calloc(s->heads, sizeof(float));
    r->stored = calloc((rows + OTHER) * (r->k_width + r->v_width), sizeof(float));
    r->asked = calloc((rows + OTHER) * r->q_width, sizeof(float));
    r->out = calloc((rows + OTHER) * r->out_width, sizeof(float));
    seed = 1;
    for (size_t i = 0; i < rows * r->q_width; i++)
        r->q[i] = 3 * noise();
    for (size_t i = 0; i < rows * r->k_width; i++)
        r->k[i] = 2 * noise();
    for (size_t i = 0; i < rows * r->v_width; i++)
        r->v[i] = noise();
    for (size_t i = 0; i < s->heads; i++)
        r->sinks[i] = noise();
    backend_step_begin(r->b);
}

static void rig_close(struct rig *r)
{
    backend_step_end(r->b);
    backend_free(r->b, r->kv.data, r->kv_bytes);
    backend_close(r->b);
    free(r->q);
    free(r->k);
    free(r->v);
    free(r->sinks);
    free(r->stored);
    free(r->asked);
    free(r->out);
}

static void put_row(struct rig *r, size_t to, size_t from)
{
    float *kv = r->stored + to * (r->k_width + r->v_width);
    memcpy(kv, r->k + from * r->k_width, r->k_width * sizeof(float));
    memcpy(kv + r->k_width, r->v + from * r->v_width, r->v_width * sizeof(float));
    memcpy(r->asked + to * r->q_width, r->q + from * r->q_width, r->q_width * sizeof(float));
}

static void compute(struct rig *r, const struct batch *batch)
{
    struct attention a = {.n_heads = r->s.heads,
                          .scale = 1 / sqrtf((float)r->s.dk),
                          .softcap = r->s.softcap,
                          .window = r->s.window,
                          .sinks = r->s.sinks ? r->sinks : NULL};
    op_kv_write(r->b, &r->kv, 1, batch, r->stored, r->stored + r->k_width, r->k_width + r->v_width);
    op_attention(r->b, &r->kv, 1, batch, &a, r->asked, r->q_width, r->out);
}

/* Rows [pos, pos + n) of the sequence on pages in an order by `turn`, behind `before` rows of a neighbour. Returns theirs. */
static const float *step(struct rig *r, size_t pos, size_t n, size_t before, size_t turn)
{
    int32_t pages[PAGES], others[PAGES];
    size_t own = PAGES - 2;
    for (size_t i = 0; i < own; i++)
        pages[i] = (int32_t)((i * 5 + turn) % own);
    others[0] = (int32_t)own;
    others[1] = (int32_t)own + 1;
    struct batch_seq seqs[2] = {{.pages = others, .n_pages = 2, .row = 0, .n_rows = before, .pos = 0},
                                {.pages = pages, .n_pages = own, .row = before, .n_rows = n, .pos = pos}};
    struct batch batch = {.n_rows = before + n, .seqs = before ? seqs : seqs + 1, .n_seqs = before ? 2 : 1};
    for (size_t i = 0; i < before; i++)
        put_row(r, i, (i * 7) % r->rows);
    for (size_t i = 0; i < n; i++)
        put_row(r, before + i, pos + i);
    compute(r, &batch);
    return r->out + before * r->out_width;
}

/* Row `pos`, head `head` in double. */
static void expected(const struct rig *r, const double *keys, const double *values, size_t pos, size_t head, double *out)
{
    const struct shape *s = &r->s;
    size_t kv_head = head / (s->heads / s->kv_heads), first = s->window && pos + 1 > s->window ? pos + 1 - s->window : 0;
    double scale = (double)(1 / sqrtf((float)s->dk)), scores[ROWS], most = s->sinks ? (double)r->sinks[head] : -INFINITY;
    for (size_t p = first; p <= pos; p++) {
        double sum = 0;
        for (size_t d = 0; d < s->dk; d++)
            sum += (double)r->q[pos * r->q_width + head * s->dk + d] * keys[p * r->k_width + kv_head * s->dk + d];
        scores[p] = s->softcap > 0 ? (double)s->softcap * tanh(sum * scale / (double)s->softcap) : sum * scale;
        most = fmax(most, scores[p]);
    }
    double total = s->sinks ? exp((double)r->sinks[head] - most) : 0;
    memset(out, 0, s->dv * sizeof *out);
    for (size_t p = first; p <= pos; p++) {
        double w = exp(scores[p] - most);
        total += w;
        for (size_t d = 0; d < s->dv; d++)
            out[d] += w * values[p * r->v_width + kv_head * s->dv + d];
    }
    for (size_t d = 0; d < s->dv; d++)
        out[d] /= total;
}

static void check_double(const struct rig *r, const float *have, const char *isa)
{
    double *keys = malloc(r->rows * r->k_width * sizeof *keys), *values = malloc(r->rows * r->v_width * sizeof *values);
    double want[512], worst = 0;
    for (size_t p = 0; p < r->rows; p++)
        for (size_t h = 0; h < r->s.kv_heads; h++) {
            held(r->kv.type, r->k + p * r->k_width + h * r->s.dk, r->s.dk, keys + p * r->k_width + h * r->s.dk);
            held(r->kv.type, r->v + p * r->v_width + h * r->s.dv, r->s.dv, values + p * r->v_width + h * r->s.dv);
        }
    for (size_t p = 0; p < r->rows; p++)
        for (size_t h = p % 3; h < r->s.heads; h += 3) {
            expected(r, keys, values, p, h, want);
            for (size_t d = 0; d < r->s.dv; d++) {
                double off = fabs((double)have[p * r->out_width + h * r->s.dv + d] - want[d]);
                worst = off > worst || isnan(off) ? off : worst;
            }
        }
    if (!(worst < (r->kv.type == KV_I16 ? CODES_MAX : ERROR_MAX)))
        fail_msg("%s, KV %s, %zu/%zu heads of %zu and %zu, window %zu, cap %g: off by %g", isa, kv_type_name(r->kv.type),
                 r->s.heads, r->s.kv_heads, r->s.dk, r->s.dv, r->s.window, (double)r->s.softcap, worst);
    free(keys);
    free(values);
}

static void check_bits(struct rig *r, const float *whole, unsigned threads)
{
    static const size_t chunks[] = {1, 7, 33, 128, ROWS};
    for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++)
        for (size_t pos = 0; pos < r->rows; pos += chunks[c]) {
            size_t n = r->rows - pos < chunks[c] ? r->rows - pos : chunks[c];
            const float *have = step(r, pos, n, c % 2 ? 0 : 1 + pos % OTHER, c);
            if (memcmp(have, whole + pos * r->out_width, n * r->out_width * sizeof *have) != 0)
                fail_msg("%u threads, KV %s, %zu/%zu heads of %zu, window %zu: other bits at position %zu in chunks of %zu",
                         threads, kv_type_name(r->kv.type), r->s.heads, r->s.kv_heads, r->s.dk, r->s.window, pos, chunks[c]);
        }
}

static void check_isa(const char *isa, size_t rows, size_t n_types)
{
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t t = 0; t < n_types; t++) {
            struct rig r;
            enum kv_type type = (enum kv_type)((i + t) % KV_TYPES);
            rig_open(&r, &shapes[i], type, isa, 1, rows);
            check_double(&r, step(&r, 0, rows, 0, 0), isa);
            rig_close(&r);
        }
}

static void test_against_double(void **state)
{
    check_isa("auto", ROWS, KV_TYPES);
}

static void test_every_instruction_set(void **state)
{
    check_isa("ref", ROWS_SHORT, 1);
    check_isa("avx2", ROWS_SHORT, 2);
    check_isa("avx512", ROWS_SHORT, 2);
}

static void check_same(const char *isa, size_t rows, size_t n_types)
{
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t t = 0; t < n_types; t++) {
            float *whole = NULL;
            for (unsigned threads = 1; threads <= 3; threads++) {
                struct rig r;
                rig_open(&r, &shapes[i], (enum kv_type)((i + t) % KV_TYPES), isa, threads, rows);
                size_t bytes = rows * r.out_width * sizeof *whole;
                const float *have = step(&r, 0, rows, 0, 0);
                if (!whole) {
                    whole = malloc(bytes);
                    memcpy(whole, have, bytes);
                }
                assert_memory_equal(have, whole, bytes);
                if (threads < 3)
                    check_bits(&r, whole, threads);
                rig_close(&r);
            }
            free(whole);
        }
}

static void test_same_bits(void **state)
{
    check_same("auto", ROWS, 2);
}

static void test_same_bits_avx2(void **state)
{
    check_same("avx2", ROWS_SHORT, 1);
}

/* One number that is none, in a query, a key or a value, is seen in what its row or head gives: damaged weights must show. */
static void test_what_is_not_finite_stays(void **state)
{
    static const char *const units[] = {"ref", "avx2", "avx512", "auto"};
    const float wrong[] = {NAN, INFINITY, -INFINITY};
    const size_t at = 70, dim = 21;
    for (size_t n = 0; n < 4 * KV_TYPES * 3 * 3; n++) {
        struct rig r;
        rig_open(&r, &shapes[3], (enum kv_type)(n / 4 % KV_TYPES), units[n % 4], 1, ROWS_SHORT);
        size_t where = n / (4 * KV_TYPES) % 3;
        if (where == 1 && r.kv.type == KV_F32 && n / (4 * KV_TYPES * 3)) { /* a score of minus infinity is none */
            rig_close(&r);
            continue;
        }
        float *from = where == 0 ? r.q + at * r.q_width : where == 1 ? r.k + at * r.k_width : r.v + at * r.v_width;
        from[dim] = wrong[n / (4 * KV_TYPES * 3)];
        const float *have = step(&r, 0, ROWS_SHORT, 0, 0);
        for (size_t row = 0; row < ROWS_SHORT; row++) {
            bool finite = true;
            for (size_t d = 0; d < r.s.dv; d++)
                finite = finite && isfinite(have[row * r.out_width + d]);
            if (finite == (where == 0 ? row == at : row >= at))
                fail_msg("%s, KV %s, %s %g at row %zu: row %zu is %sfinite", units[n % 4], kv_type_name(r.kv.type),
                         where == 0   ? "query"
                         : where == 1 ? "key"
                                      : "value",
                         (double)from[dim], at, row, finite ? "" : "not ");
        }
        rig_close(&r);
    }
}

/* Every way to unpack the cache's integers gives the same floats, to the last bit. */
static void test_same_bits_on_every_vector_unit(void **state)
{
    static const char *const units[] = {"avx2", "avx512", "vnni", "auto"};
    for (int type = 0; type < KV_TYPES; type++) {
        float *first = NULL;
        for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
            struct rig r;
            rig_open(&r, &shapes[3], (enum kv_type)type, units[i], 1, ROWS_SHORT);
            size_t bytes = ROWS_SHORT * r.out_width * sizeof *first;
            const float *have = step(&r, 0, ROWS_SHORT, 0, 0);
            if (!first) {
                first = malloc(bytes);
                memcpy(first, have, bytes);
            }
            if (memcmp(have, first, bytes) != 0)
                fail_msg("KV %s: %s has other bits than avx2", kv_type_name(r.kv.type), units[i]);
            rig_close(&r);
        }
        free(first);
    }
}

/* Sequences that begin on the pages of one and go on with rows and pages of their own: each of their last rows is what it is
 * when the sequence is computed alone. */
static void check_shared(struct rig *r)
{
    int32_t tables[SHARERS][PAGES];
    struct batch_seq seqs[SHARERS];
    struct batch batch = {.seqs = seqs, .n_seqs = SHARERS};
    float *alone = malloc(3 * SHARERS * r->out_width * sizeof *alone);
    double bytes = 0;
    for (size_t n = 0; n < SHARERS; n++) {
        size_t i = n * 8 % SHARERS, rows = 1 + i % 3, end = r->rows - i * 5, pages = (end - 1) / KV_PAGE_TOKENS + 1;
        size_t shared = pages - OWN + i % OWN, first = shared * KV_PAGE_TOKENS;
        for (size_t p = 0; p < pages; p++)
            tables[n][p] = (int32_t)(p < shared ? p * 5 % (PAGES - 2) : PAGES + n * OWN + p - shared);
        struct batch_seq all = {.pages = tables[n], .n_pages = pages, .n_rows = end - first, .pos = first};
        for (size_t p = first; p < end; p++)
            put_row(r, p - first, (p * 7 + n) % r->rows);
        compute(r, &(struct batch){.seqs = &all, .n_seqs = 1, .n_rows = all.n_rows});
        rows = rows < all.n_rows ? rows : all.n_rows;
        memcpy(alone + batch.n_rows * r->out_width, r->out + (all.n_rows - rows) * r->out_width,
               rows * r->out_width * sizeof *alone);
        seqs[n] =
            (struct batch_seq){.pages = tables[n], .n_pages = pages, .row = batch.n_rows, .n_rows = rows, .pos = end - rows};
        batch.n_rows += rows;
        bytes += (double)(r->kv.layer_bytes * end) / KV_PAGE_TOKENS;
    }
    for (size_t n = 0; n < SHARERS; n++)
        for (size_t k = 0; k < seqs[n].n_rows; k++)
            put_row(r, seqs[n].row + k, ((seqs[n].pos + k) * 7 + n) % r->rows);
    struct backend_profile spent = {0};
    backend_profile_into(r->b, &spent);
    compute(r, &batch);
    backend_profile_into(r->b, NULL);
    if (!r->s.window && r->s.heads / r->s.kv_heads < ATTEND_QUERIES / 4)
        assert_true(spent.ops[BACKEND_ATTENTION].bytes < bytes * 3 / 4);
    for (size_t n = 0; n < SHARERS; n++)
        if (memcmp(r->out + seqs[n].row * r->out_width, alone + seqs[n].row * r->out_width,
                   seqs[n].n_rows * r->out_width * sizeof *alone) != 0)
            fail_msg("KV %s, %zu/%zu heads of %zu, window %zu: sequence %zu at %zu has other bits among others on its pages",
                     kv_type_name(r->kv.type), r->s.heads, r->s.kv_heads, r->s.dk, r->s.window, n, seqs[n].pos);
    free(alone);
}

static void test_same_bits_on_shared_pages(void **state)
{
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t t = 0; t < KV_TYPES; t++) {
            struct rig r;
            rig_open(&r, &shapes[i], (enum kv_type)t, "auto", 1 + (unsigned)(i + t) % 2, ROWS);
            step(&r, 0, ROWS, 0, 0);
            check_shared(&r);
            rig_close(&r);
        }
}

static void test_copied_page_is_the_page(void **state)
{
    struct rig r;
    for (int type = 0; type < KV_TYPES; type++) {
        rig_open(&r, &shapes[3], (enum kv_type)type, "auto", 1, ROWS_SHORT);
        step(&r, 0, ROWS_SHORT, 0, 0);
        op_kv_copy(r.b, &r.kv, 0, PAGES - 1, KV_PAGE_TOKENS);
        size_t bytes = r.kv.layer_bytes * r.kv.n_layers;
        assert_memory_equal(r.kv.data, (char *)r.kv.data + (PAGES - 1) * bytes, bytes);
        rig_close(&r);
    }
}

static void test_names_of_types(void **state)
{
    for (int i = 0; i <= KV_AUTO; i++) {
        enum kv_type t = KV_F32;
        assert_true(kv_type_from_name(kv_type_name((enum kv_type)i), &t));
        assert_int_equal(t, i);
    }
    enum kv_type t;
    assert_false(kv_type_from_name("bf16", &t));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_double),
        cmocka_unit_test(test_every_instruction_set),
        cmocka_unit_test(test_what_is_not_finite_stays),
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_same_bits_avx2),
        cmocka_unit_test(test_same_bits_on_every_vector_unit),
        cmocka_unit_test(test_same_bits_on_shared_pages),
        cmocka_unit_test(test_copied_page_is_the_page),
        cmocka_unit_test(test_names_of_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

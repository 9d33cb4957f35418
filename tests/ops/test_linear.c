/* Matrix products: one list of cases (how the weights are held x shape), each on every instruction set that this
 * processor has.
 *
 *   against double precision   within the bound that the arithmetic's own roundings allow, computed for each output
 *   against the reference      equal bits for integer layouts (exact sums, one order of the rest); within that bound for
 *                              floats, where the reference rounds product and sum apart; fused sets equal each other
 *   rows                       row r has the same bits for every number of rows and threads
 *   weights                    weight_at is the decoded value */
#define CPU_TILES
#define TILE_EMULATED
#include "backend/backend.h"
#include "backend/cpu/kernels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define ROWS_MAX 100
#define THREADS  2
#define IN_MAX   1024
#define OUT_MAX  80
#define PAD      3 /* floats between rows of x and y */
#define GUARD    12345.0f
#define EPS      0x1p-24

static const size_t rows_list[] = {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 64, 100};

/* How a weight is made. With `codes` set: random codes in groups of `group`; else source rows of type t. Form WEIGHT_INT8 of codes
 * or an integer type: activations of 8 bits. */
struct kind {
    const char *name;
    enum dtype t;
    enum weight_form form;
    int codes;
    enum weight_layout layout;
    size_t group; /* 0: a whole row */
    int has_min, scales_f16, has_order;
};

static const struct kind kinds[] = {
    {"f32", DTYPE_F32, WEIGHT_EXACT, .layout = WEIGHT_F32},
    {"f16", DTYPE_F16, WEIGHT_EXACT, .layout = WEIGHT_F16},
    {"bf16", DTYPE_BF16, WEIGHT_EXACT, .layout = WEIGHT_BF16},
    {"f8_e4m3", DTYPE_F8_E4M3, WEIGHT_EXACT, .layout = WEIGHT_F16},
    {"f8_e5m2", DTYPE_F8_E5M2, WEIGHT_EXACT, .layout = WEIGHT_F16},
    {"q4_0 exact", DTYPE_Q4_0, WEIGHT_EXACT, .layout = WEIGHT_F32},
    {"q6_k exact", DTYPE_Q6_K, WEIGHT_EXACT, .layout = WEIGHT_F32},
    {"f32 int8", DTYPE_F32, WEIGHT_INT8, .layout = WEIGHT_I8},
    {"bf16 int8", DTYPE_BF16, WEIGHT_INT8, .layout = WEIGHT_I8},
    {"f32 int4", DTYPE_F32, WEIGHT_INT4, .layout = WEIGHT_I4},
    {"f16 int4", DTYPE_F16, WEIGHT_INT4, .layout = WEIGHT_I4},
    {"q4_0", DTYPE_Q4_0, WEIGHT_NATIVE, .layout = WEIGHT_I4},
    {"q4_1", DTYPE_Q4_1, WEIGHT_NATIVE, .layout = WEIGHT_I4},
    {"q5_0", DTYPE_Q5_0, WEIGHT_NATIVE, .layout = WEIGHT_I8},
    {"q5_1", DTYPE_Q5_1, WEIGHT_NATIVE, .layout = WEIGHT_I8},
    {"q8_0", DTYPE_Q8_0, WEIGHT_NATIVE, .layout = WEIGHT_I8},
    {"q2_k", DTYPE_Q2_K, WEIGHT_NATIVE, .layout = WEIGHT_I4},
    {"q3_k", DTYPE_Q3_K, WEIGHT_NATIVE, .layout = WEIGHT_I4},
    {"q4_k", DTYPE_Q4_K, WEIGHT_NATIVE, .layout = WEIGHT_I4},
    {"q5_k", DTYPE_Q5_K, WEIGHT_NATIVE, .layout = WEIGHT_I8},
    {"q6_k", DTYPE_Q6_K, WEIGHT_NATIVE, .layout = WEIGHT_I8},
    {"q8_k", DTYPE_Q8_K, WEIGHT_NATIVE, .layout = WEIGHT_I8},
    {"iq4_nl", DTYPE_IQ4_NL, WEIGHT_NATIVE, .layout = WEIGHT_I4},
    {"iq4_xs", DTYPE_IQ4_XS, WEIGHT_NATIVE, .layout = WEIGHT_I4},
    {"mxfp4", DTYPE_MXFP4, WEIGHT_NATIVE, .layout = WEIGHT_I4},
    {"i8 codes of 16", .form = WEIGHT_NATIVE, .codes = 1, .layout = WEIGHT_I8, .group = 16},
    {"i8 codes of 48, min", .form = WEIGHT_NATIVE, .codes = 1, .layout = WEIGHT_I8, .group = 48, .has_min = 1},
    {"i8 codes of 128, fp16, order", .form = WEIGHT_NATIVE, .codes = 1, .layout = WEIGHT_I8, .group = 128, .scales_f16 = 1,
     .has_order = 1},
    {"i8 codes of a row", .form = WEIGHT_NATIVE, .codes = 1, .layout = WEIGHT_I8},
    {"i4 codes of 32, min", .form = WEIGHT_NATIVE, .codes = 1, .layout = WEIGHT_I4, .group = 32, .has_min = 1},
    {"i4 codes of 128, min, fp16, order", .form = WEIGHT_NATIVE, .codes = 1, .layout = WEIGHT_I4, .group = 128, .has_min = 1,
     .scales_f16 = 1, .has_order = 1},
    {"i4 codes of a row", .form = WEIGHT_NATIVE, .codes = 1, .layout = WEIGHT_I4},
    {"q8_0, 8 bits", DTYPE_Q8_0, WEIGHT_INT8, .layout = WEIGHT_I8},
    {"q5_k, 8 bits", DTYPE_Q5_K, WEIGHT_INT8, .layout = WEIGHT_I8},
    {"q6_k, 8 bits", DTYPE_Q6_K, WEIGHT_INT8, .layout = WEIGHT_I8},
    {"q4_0, 8 bits", DTYPE_Q4_0, WEIGHT_INT4, .layout = WEIGHT_I4},
    {"q4_1, 8 bits", DTYPE_Q4_1, WEIGHT_INT8, .layout = WEIGHT_I4},
    {"q3_k, 8 bits", DTYPE_Q3_K, WEIGHT_INT4, .layout = WEIGHT_I4},
    {"i8 codes of 48, min, 8 bits", .form = WEIGHT_INT8, .codes = 1, .layout = WEIGHT_I8, .group = 48, .has_min = 1},
    {"i8 codes of a row, 8 bits", .form = WEIGHT_INT8, .codes = 1, .layout = WEIGHT_I8},
    {"i4 codes of 128, min, fp16, order, 8 bits", .form = WEIGHT_INT4, .codes = 1, .layout = WEIGHT_I4, .group = 128,
     .has_min = 1, .scales_f16 = 1, .has_order = 1},
};

static const size_t shapes[][2] = {{1, 1},    {16, 64},  {17, 65},  {33, 100},  {5, 576},
                                   {70, 640}, {32, 256}, {48, 768}, {80, 1024}, {3, 1000}};

static uint32_t random_state;

static uint32_t random_bits(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 8;
}

/* About normal, with a rare outlier. */
static float random_float(void)
{
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (float)random_bits() * 0x1p-23f - 1;
    return random_bits() % 97 == 0 ? sum * 20 : sum;
}

static void put_half(uint8_t *p, float v)
{
    uint16_t h = dtype_f32_to_f16(v);
    memcpy(p, &h, 2);
}

/* Random rows of type t: any bits in the codes, moderate scales. */
static void random_source(enum dtype t, size_t n, uint8_t *src)
{
    const struct dtype_info *info = dtype_info(t);
    for (size_t at = 0; at < n; at += info->block, src += info->bytes) {
        for (size_t i = 0; i < info->bytes; i++)
            src[i] = (uint8_t)random_bits();
        float d = 0.01f + 0.001f * (float)(random_bits() % 64), v = random_float();
        uint16_t bf16 = dtype_f32_to_bf16(v);
        switch (t) {
        case DTYPE_F32: memcpy(src, &v, 4); break;
        case DTYPE_BF16: memcpy(src, &bf16, 2); break;
        case DTYPE_F16: put_half(src, v); break;
        case DTYPE_F8_E4M3: src[0] = src[0] % 127 | (src[0] & 128); break; /* 127 is NaN */
        case DTYPE_F8_E5M2: src[0] = src[0] % 0x70 | (src[0] & 128); break;
        case DTYPE_MXFP4: src[0] = (uint8_t)(120 + src[0] % 12); break;
        case DTYPE_Q8_K: memcpy(src, &d, 4); break;
        case DTYPE_Q6_K: put_half(src + 208, d); break;
        case DTYPE_Q3_K: put_half(src + 108, d); break;
        case DTYPE_Q2_K:
            put_half(src + 80, d);
            put_half(src + 82, d * 0.7f);
            break;
        case DTYPE_Q4_1:
        case DTYPE_Q5_1:
        case DTYPE_Q4_K:
        case DTYPE_Q5_K:
            put_half(src, d);
            put_half(src + 2, d * -0.7f);
            break;
        default: put_half(src, d);
        }
    }
}

/* A packed weight and the values that it must hold, [n_out][n_in]. */
struct made {
    struct weight w;
    float *values;
};

static void make_codes(struct backend *b, const struct kind *kind, struct made *m)
{
    struct weight *w = &m->w;
    struct err err = {0};
    size_t n_in = w->n_in, n_out = w->n_out, groups = (n_in + w->code_group - 1) / w->code_group;
    int8_t *codes = malloc(n_out * n_in);
    float *scales = malloc(n_out * groups * sizeof *scales), *mins = malloc(n_out * groups * sizeof *mins);
    int32_t *order = malloc(n_in * sizeof *order);
    for (size_t i = 0; i < n_out * groups; i++) {
        scales[i] = dtype_f16_to_f32(dtype_f32_to_f16(random_float() * 0.01f));
        mins[i] = dtype_f16_to_f32(dtype_f32_to_f16(random_float() * 0.1f));
    }
    for (size_t k = 0; k < n_in; k++) {
        size_t at = random_bits() % (k + 1);
        order[k] = order[at];
        order[at] = (int32_t)k;
    }
    for (size_t i = 0; i < n_out * n_in; i++) {
        int bits = (int)(random_bits() >> 4);
        codes[i] = (int8_t)(kind->layout == WEIGHT_I4 ? bits & 15 : bits);
        size_t out = i / n_in, k = i % n_in, g = out * groups + k / w->code_group;
        float v = scales[g] * (float)(kind->layout == WEIGHT_I4 ? w->codebook[codes[i]] : codes[i]);
        m->values[out * n_in + (kind->has_order ? (size_t)order[k] : k)] = v + (kind->has_min ? mins[g] : 0);
    }
    if (!backend_weight_pack_codes(b, w, codes, scales, kind->has_min ? mins : NULL, 0, n_out, &err) ||
        (kind->has_order && !weight_set_order(w, order, &err)))
        fail_msg("%s: %s", kind->name, err.text);
    free(codes);
    free(scales);
    free(mins);
    free(order);
}

static void make_packed(struct backend *b, const struct kind *kind, struct made *m)
{
    struct err err = {0};
    size_t n_in = m->w.n_in, n_out = m->w.n_out, bytes = dtype_bytes(kind->t, n_out * n_in);
    uint8_t *src = malloc(bytes);
    random_source(kind->t, n_out * n_in, src);
    assert_true(dtype_to_f32(kind->t, src, n_out * n_in, m->values));
    if (!backend_weight_pack(b, &m->w, kind->t, src, 0, n_out, &err))
        fail_msg("%s: %s", kind->name, err.text);
    free(src);
    if (m->w.rotated) /* values were rounded; test_quantized says how far */
        for (size_t i = 0; i < n_out * n_in; i++)
            m->values[i] = weight_at(&m->w, i / n_in, i % n_in);
}

/* False: this kind cannot have this shape. */
static bool make_weight(struct backend *b, const struct kind *kind, size_t n_out, size_t n_in, struct made *m)
{
    static const int8_t codebook[16] = {-128, -90, -61, -40, -22, -9, -1, 0, 1, 3, 11, 29, 52, 80, 101, 127};
    struct err err = {0};
    struct weight_codes codes = {.layout = kind->layout,
                                 .codebook = codebook,
                                 .group = kind->group ? kind->group : n_in,
                                 .has_min = kind->has_min,
                                 .scales_f16 = kind->scales_f16,
                                 .has_order = kind->has_order};
    if (!kind->codes && n_in % dtype_info(kind->t)->block)
        return false;
    if (!(kind->codes ? weight_plan_codes(&codes, n_out, n_in, kind->form, &m->w, &err)
                      : weight_plan(kind->t, n_out, n_in, kind->form, &m->w, NULL, &err)))
        fail_msg("%s: %s", kind->name, err.text);
    assert_int_equal(m->w.layout, kind->layout);
    void *memory = backend_alloc(b, m->w.bytes, &err);
    m->values = malloc(n_out * n_in * sizeof *m->values);
    assert_true(memory && m->values);
    weight_attach(&m->w, memory);
    (kind->codes ? make_codes : make_packed)(b, kind, m);
    return true;
}

static void drop_weight(struct backend *b, struct made *m)
{
    backend_free(b, m->w.data, m->w.bytes);
    free(m->values);
}

/* ---- instruction sets ---- */

/* The tile kernels on plain C tiles: their logic on any processor. */
static const struct cpu_kernels tile_kernels = CPU_KERNELS("tiles");

static const char *const sets[] = {"ref", "avx2", "avx512", "vnni", "amx", "tiles"};
#define N_SETS (sizeof sets / sizeof *sets)
static struct backend *backends[N_SETS]; /* NULL: this processor has not got it */

static struct backend *open_backend(const char *isa, unsigned n_threads)
{
    struct err err = {0};
    struct backend_options options = {.n_threads = n_threads, .isa = strcmp(isa, "tiles") == 0 ? "ref" : isa};
    struct backend_sizes sizes = {
        .rows_max = ROWS_MAX, .in_max = IN_MAX, .out_max = OUT_MAX, .heads_max = 1, .head_dim_max = 16};
    struct backend *b = backend_open_cpu(&options, &err);
    if (!b || !backend_scratch_reserve(b, &sizes, &err))
        fail_msg("%s", err.text);
    if (strcmp(isa, "tiles") == 0)
        b->kernels = &tile_kernels;
    if (strcmp(b->kernels->name, isa) == 0)
        return b;
    backend_close(b);
    return NULL;
}

static int open_all(void **state)
{
    for (size_t i = 0; i < N_SETS; i++)
        backends[i] = open_backend(sets[i], THREADS);
    return 0;
}

static int close_all(void **state)
{
    for (size_t i = 0; i < N_SETS; i++)
        backend_close(backends[i]);
    return 0;
}

/* ---- products ---- */

struct product {
    const struct made *m;
    float *x;          /* [ROWS_MAX][n_in + PAD] */
    const float *bias; /* NULL: none */
    int add;
};

/* y [n][n_out + PAD] of rows first, first + 1 ... */
static void compute(struct backend *b, const struct product *p, size_t first, size_t n, float *y)
{
    const struct weight *w = &p->m->w;
    size_t stride = w->n_out + PAD;
    for (size_t i = 0; i < n * stride; i++)
        y[i] = GUARD;
    for (size_t r = 0; r < n && p->add; r++)
        for (size_t o = 0; o < w->n_out; o++)
            y[r * stride + o] = (float)(first + r) - (float)o;
    backend_step_begin(b);
    op_linear(b, w, p->bias, p->x + first * (w->n_in + PAD), w->n_in + PAD, n, p->add, y, stride);
    backend_step_end(b);
    for (size_t r = 0; r < n; r++)
        for (size_t o = w->n_out; o < stride; o++)
            assert_true(y[r * stride + o] == GUARD);
}

static void rotate_row(const float *x, size_t n, float *out)
{
    memset(out, 0, cpu_round_up(n, CPU_TILE_K) * sizeof *out);
    memcpy(out, x, n * sizeof *x);
    for (size_t k = 0; k < n; k += CPU_TILE_K)
        cpu_rotate(out + k);
}

/* The product in double and how far one of ours may lie from it. */
static double exact(const struct product *p, size_t r, size_t o, double *bound)
{
    const struct weight *w = &p->m->w;
    const float *x = p->x + r * (w->n_in + PAD), *row = p->m->values + o * w->n_in;
    double sum = 0, size = 0, rounded = 0, most = 0, inside = 0, code_max = w->group ? cpu_code_max(w) : 1;
    float turned_x[IN_MAX], turned_row[IN_MAX];
    if (w->rotated) { /* roundings happen there; the product of the rotated is the same */
        rotate_row(x, w->n_in, turned_x);
        rotate_row(row, w->n_in, turned_row);
        x = turned_x;
        row = turned_row;
    }
    size_t n_in = w->rotated ? cpu_padded_in(w) : w->n_in;
    size_t group = w->has_order ? n_in : w->group; /* with an order: the greatest of all is at least a group's */
    for (size_t k = 0; k < n_in; k++) {
        sum += (double)row[k] * x[k];
        size += fabs((double)row[k] * x[k]);
        if (!group)
            continue;
        most = fmax(most, fabs(x[k]));
        inside += fabs(row[k]);
        if ((k + 1) % group == 0 || k + 1 == n_in) {
            rounded += inside * most / code_max * (w->act_bits == 16 ? 1.51 : 0.51); /* see cpu_quantized */
            most = inside = 0;
        }
    }
    double base = (p->bias ? p->bias[o] : 0) + (p->add ? (double)((float)r - (float)o) : 0);
    size_t steps = w->group ? 2 * (n_in / w->group + 4) + (w->rotated ? 24 : 0) : n_in + 2;
    double mins = w->has_min ? 16 * size : 0; /* a min and a code may cancel in the value */
    *bound = rounded + (double)steps * EPS * (size + mins + fabs(base)) + 1e-30;
    return sum + base;
}

static void compare_exact(const struct product *p, const char *name, const char *set, const float *y)
{
    const struct weight *w = &p->m->w;
    for (size_t r = 0; r < ROWS_MAX; r++)
        for (size_t o = 0; o < w->n_out; o++) {
            double bound, want = exact(p, r, o, &bound), have = y[r * (w->n_out + PAD) + o];
            if (!(fabs(have - want) <= bound))
                fail_msg("%s %zu x %zu on %s, row %zu output %zu: %.9g, not %.9g within %.3g", name, w->n_out, w->n_in, set, r,
                         o, have, want, bound);
        }
}

static void compare_rows(const struct product *p, const char *name, struct backend *b, const float *all, float *y)
{
    size_t stride = p->m->w.n_out + PAD;
    for (size_t i = 0; i < sizeof rows_list / sizeof *rows_list; i++)
        for (size_t first = 0; first + rows_list[i] <= ROWS_MAX; first += 61) {
            size_t n = rows_list[i];
            compute(b, p, first, n, y);
            if (memcmp(y, all + first * stride, n * stride * sizeof *y) != 0)
                fail_msg("%s %zu x %zu on %s: %zu rows from %zu differ from the same among %d", name, p->m->w.n_out,
                         p->m->w.n_in, b->kernels->name, n, first, ROWS_MAX);
        }
}

static void check_case(const struct kind *kind, size_t n_out, size_t n_in, int with_bias, int add)
{
    static float bias[OUT_MAX], y[N_SETS][ROWS_MAX * (OUT_MAX + PAD)], other[ROWS_MAX * (OUT_MAX + PAD)];
    struct made m;
    random_state = (uint32_t)(n_out * 31 + n_in);
    if (!make_weight(backends[0], kind, n_out, n_in, &m))
        return;
    struct product p = {
        .m = &m, .x = malloc(ROWS_MAX * (n_in + PAD) * sizeof(float)), .bias = with_bias ? bias : NULL, .add = add};
    for (size_t i = 0; i < ROWS_MAX * (n_in + PAD); i++)
        p.x[i] = random_float();
    memset(p.x + 2 * (n_in + PAD), 0, n_in * sizeof(float)); /* a row of zeros */
    for (size_t i = 0; i < n_out; i++)
        bias[i] = random_float();
    size_t bytes = ROWS_MAX * (n_out + PAD) * sizeof(float);
    int fused = -1; /* the first set with fused multiply-add and floats in ascending order */
    for (size_t s = 0; s < N_SETS; s++) {
        if (!backends[s])
            continue;
        compute(backends[s], &p, 0, ROWS_MAX, y[s]);
        compare_exact(&p, kind->name, sets[s], y[s]);
        if (m.w.group && memcmp(y[s], y[0], bytes) != 0)
            fail_msg("%s %zu x %zu: %s differs from ref", kind->name, n_out, n_in, sets[s]);
        bool chain = s && s < 4 && !m.w.group;
        if (chain && fused >= 0 && memcmp(y[s], y[fused], bytes) != 0)
            fail_msg("%s %zu x %zu: %s differs from %s", kind->name, n_out, n_in, sets[s], sets[fused]);
        fused = chain && fused < 0 ? (int)s : fused;
        if ((s && s < 5) || n_in <= 100 || n_in == 256) /* the others are slow */
            compare_rows(&p, kind->name, backends[s], y[s], other);
    }
    free(p.x);
    drop_weight(backends[0], &m);
}

static void test_products(void **state)
{
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            check_case(&kinds[k], shapes[s][0], shapes[s][1], s % 2 == 1, s % 3 == 2);
}

static void test_threads(void **state)
{
    static const char *const names[] = {"f32", "bf16", "bf16 int8", "q4_k", "i4 codes of 128, min, fp16, order"};
    static float x[ROWS_MAX * (IN_MAX + PAD)], y[2][ROWS_MAX * (OUT_MAX + PAD)];
    for (size_t i = 0; i < sizeof x / sizeof *x; i++)
        x[i] = random_float();
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        bool wanted = false;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            wanted |= strcmp(names[i], kinds[k].name) == 0;
        if (!wanted)
            continue;
        for (size_t s = 0; s < N_SETS; s++) {
            if (!backends[s])
                continue;
            struct made m;
            assert_true(make_weight(backends[s], &kinds[k], 80, 1024, &m));
            struct product p = {.m = &m, .x = x};
            for (unsigned threads = 1; threads <= 3; threads++) {
                struct backend *b = open_backend(sets[s], threads);
                compute(b, &p, 0, 17, y[threads > 1]);
                if (threads > 1 && memcmp(y[0], y[1], 17 * (80 + PAD) * sizeof(float)) != 0)
                    fail_msg("%s on %s: %u threads differ from one", kinds[k].name, sets[s], threads);
                backend_close(b);
            }
            drop_weight(backends[s], &m);
        }
    }
}

static void test_weight_at(void **state)
{
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            struct made m;
            if (!make_weight(backends[0], &kinds[k], shapes[s][0], shapes[s][1], &m))
                continue;
            for (size_t i = 0; i < m.w.n_out * m.w.n_in; i++) {
                float have = weight_at(&m.w, i / m.w.n_in, i % m.w.n_in);
                if (have != m.values[i])
                    fail_msg("%s: (%zu, %zu) is %.9g, not %.9g", kinds[k].name, i / m.w.n_in, i % m.w.n_in, (double)have,
                             (double)m.values[i]);
            }
            for (size_t set = 0; set < N_SETS; set++) { /* rows of an embedding are the same values */
                static float row[IN_MAX];
                int32_t id = (int32_t)(m.w.n_out - 1);
                if (!backends[set] || kinds[k].has_order)
                    continue;
                backend_step_begin(backends[set]);
                op_embed(backends[set], &m.w, &id, 1, 2, row);
                backend_step_end(backends[set]);
                for (size_t i = 0; i < m.w.n_in; i++)
                    assert_true(row[i] == 2 * m.values[(size_t)id * m.w.n_in + i]);
            }
            drop_weight(backends[0], &m);
        }
}

/* ---- floats into codes ---- */

/* Rounding to the nearest code of a scale that covers the group: int8 at most half a step of the greatest / 127 (a step
 * grows by at most 2^-10 when its scale is rounded to fp16); nf4 by its widest gap, 29 of 127, and what a smaller scale
 * cuts off. */
static void test_quantized(void **state)
{
    static const struct {
        enum weight_form form;
        double worst, rms; /* shares of a group's greatest; rms over normal values of all groups, share of their rms */
    } forms[] = {{WEIGHT_INT8, 0.5 / 127 * 1.002, 0.009}, {WEIGHT_INT4, 0.17, 0.1}};
    enum { OUT = 32, IN = 768 };
    static float x[OUT * IN];
    random_state = 5;
    for (size_t i = 0; i < OUT * IN; i++) {
        float sum = 0;
        for (int k = 0; k < 12; k++)
            sum += (float)random_bits() * 0x1p-24f - 0.5f;
        x[i] = sum * 0.03f;
    }
    memset(x, 0, 128 * sizeof *x); /* groups of zeros */
    for (size_t f = 0; f < sizeof forms / sizeof *forms; f++) {
        struct err err = {0};
        struct weight w;
        assert_true(weight_plan(DTYPE_F32, OUT, IN, forms[f].form, &w, NULL, &err));
        assert_int_equal(w.group, forms[f].form == WEIGHT_INT8 ? 256 : 64);
        weight_attach(&w, backend_alloc(backends[0], w.bytes, &err));
        assert_true(backend_weight_pack(backends[0], &w, DTYPE_F32, x, 0, OUT, &err));
        double errors = 0, size = 0;
        for (size_t o = 0; o < OUT; o++) {
            float row[IN];
            rotate_row(x + o * IN, IN, row);
            for (size_t g = 0; g < IN; g += w.group) {
                double most = 0;
                for (size_t i = g; i < g + w.group; i++)
                    most = fmax(most, fabs(row[i]));
                for (size_t i = g; i < g + w.group; i++)
                    assert_true(fabs((double)cpu_weight_cell(&w, o, i) - row[i]) <= most * forms[f].worst);
            }
            for (size_t i = 0; i < IN; i++) {
                double e = (double)weight_at(&w, o, i) - x[o * IN + i];
                errors += e * e;
                size += (double)x[o * IN + i] * x[o * IN + i];
            }
        }
        if (sqrt(errors / size) > forms[f].rms)
            fail_msg("form %zu: rms error %.4f", f, sqrt(errors / size));
        for (size_t s = 1; s < N_SETS; s++) { /* the same bytes whoever packs */
            struct weight other = w;
            if (!backends[s])
                continue;
            weight_attach(&other, backend_alloc(backends[s], w.bytes, &err));
            assert_true(backend_weight_pack(backends[s], &other, DTYPE_F32, x, 0, OUT, &err));
            if (memcmp(other.data, w.data, w.bytes) != 0)
                fail_msg("form %zu: other bytes on %s", f, sets[s]);
            backend_free(backends[s], other.data, w.bytes);
        }
        backend_free(backends[0], w.data, w.bytes);
    }
}

/* What is not finite, or too large for the scale that holds it, stays visible as a scale that is not finite: codes cannot
 * say it. */
static void test_quantized_not_finite(void **state)
{
    enum { IN = 704 };
    static const float wrong[] = {NAN, -NAN, INFINITY, -INFINITY, 1e30f};
    static const size_t places[] = {0, 15, 63, 64, 255, 256, 300, IN - 1};
    for (size_t s = 0; s < N_SETS; s++)
        for (size_t i = 0; backends[s] && i < 2 * sizeof wrong / sizeof *wrong * sizeof places / sizeof *places; i++) {
            size_t place = places[i / 2 / (sizeof wrong / sizeof *wrong)];
            float x[IN], bad = wrong[i / 2 % (sizeof wrong / sizeof *wrong)];
            struct err err = {0};
            struct weight w;
            for (size_t k = 0; k < IN; k++)
                x[k] = random_float();
            x[place] = bad;
            assert_true(weight_plan(DTYPE_F32, 1, IN, i % 2 ? WEIGHT_INT8 : WEIGHT_INT4, &w, NULL, &err));
            weight_attach(&w, backend_alloc(backends[s], w.bytes, &err));
            assert_true(backend_weight_pack(backends[s], &w, DTYPE_F32, x, 0, 1, &err));
            for (size_t k = 0; k < IN; k++) {
                float have = weight_at(&w, 0, k);
                if (isfinite(have) != (k / w.group != place / w.group))
                    fail_msg("%zu bits on %s: %g at %zu, and %zu is %g", i % 2 ? (size_t)8 : 4, sets[s], (double)bad, place, k,
                             (double)have);
            }
            backend_free(backends[s], w.data, w.bytes);
        }
}

/* An activation that is not finite shows in every output of its row, and in no other's. */
static void test_products_not_finite(void **state)
{
    enum { OUT = 33, ROWS = 3 };
    static const float wrong[] = {NAN, INFINITY, -INFINITY};
    static float y[ROWS * (OUT + PAD)];
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (size_t s = 0; s < N_SETS; s++)
            for (size_t in = 640; backends[s] && in <= 768; in += 128) {
                struct made m;
                if (!make_weight(backends[s], &kinds[k], OUT, in, &m))
                    continue;
                struct product p = {.m = &m, .x = malloc(ROWS * (in + PAD) * sizeof(float))};
                for (size_t at = 0; at < in; at += 97) {
                    for (size_t i = 0; i < ROWS * (in + PAD); i++)
                        p.x[i] = random_float();
                    p.x[in + PAD + at] = wrong[at % 3];
                    compute(backends[s], &p, 0, ROWS, y);
                    for (size_t o = 0; o < OUT; o++)
                        for (size_t r = 0; r < ROWS; r++)
                            if (isfinite(y[r * (OUT + PAD) + o]) != (r != 1))
                                fail_msg("%s on %s: %g at %zu of %zu, and output %zu of row %zu is %g", kinds[k].name, sets[s],
                                         (double)wrong[at % 3], at, in, o, r, (double)y[r * (OUT + PAD) + o]);
                }
                free(p.x);
                drop_weight(backends[s], &m);
            }
}

/* Activations: codes within +-127 a byte, the value within one code of 16 bits, sums as stated, padding zero. */
static void test_activations(void **state)
{
    enum { IN = 250, PADDED = 256, GROUP = 64, GROUPS = PADDED / GROUP };
    static float x[IN], scales[N_SETS][GROUPS], sums[N_SETS][GROUPS];
    static int8_t codes[N_SETS][PADDED * 2];
    static int32_t offsets[N_SETS][GROUPS];
    for (int round = 0; round < 60; round++) {
        struct weight w = {
            .layout = WEIGHT_I8, .n_in = IN, .group = GROUP, .act_bits = round / 3 % 2 ? 16 : 8, .rotated = round >= 50};
        double code_max = cpu_code_max(&w);
        size_t bytes = PADDED * cpu_terms(&w), block = CPU_TILE_K;
        float want[PADDED] = {0};
        random_state = (uint32_t)round;
        for (size_t i = 0; i < IN; i++)
            x[i] = round == 0   ? 0
                   : round == 1 ? (i % 2 ? 1 : -1)
                   : round == 2 ? 1e-44f
                                : random_float() * powf(10, (float)(round % 9 - 4));
        for (size_t s = 0; s < N_SETS; s++) {
            if (!backends[s])
                continue;
            memset(codes[s], 99, sizeof codes[s]);
            struct cpu_quantized_row to = {codes[s], CPU_TILE_K, CPU_TILE_K, 1, scales[s], sums[s], offsets[s]};
            backends[s]->kernels->quantize(&w, x, &to);
            assert_memory_equal(codes[s], codes[0], bytes);
            assert_memory_equal(scales[s], scales[0], sizeof scales[s]);
            assert_memory_equal(sums[s], sums[0], sizeof sums[s]);
            assert_memory_equal(offsets[s], offsets[0], sizeof offsets[s]);
        }
        memcpy(want, x, sizeof x);
        for (size_t k = 0; k < PADDED && w.rotated; k += CPU_TILE_K)
            cpu_rotate(want + k);
        for (size_t g = 0; g < GROUPS; g++) {
            int64_t total = 0;
            double most = 0;
            for (size_t i = g * GROUP; i < (g + 1) * GROUP; i++)
                most = fmax(most, fabs(want[i]));
            for (size_t i = g * GROUP; i < (g + 1) * GROUP; i++) {
                const int8_t *high = codes[0] + i / block * block * cpu_terms(&w) + i % block, *low = high + block;
                int code = w.act_bits == 8 ? *high : *high * 256 + *low;
                assert_true(*high >= -127 && (w.act_bits == 8 || *low >= -127));
                total += code;
                assert_true(i < IN || w.rotated || code == 0);
                if (most > 1e-30)
                    assert_true(fabs((double)scales[0][g] * code - want[i]) <=
                                most / code_max * (w.act_bits == 16 ? 1.51 : 0.51));
            }
            assert_true(offsets[0][g] == -128 * total);
            assert_true(sums[0][g] == scales[0][g] * (float)total);
        }
    }
}

/* ---- refusals ---- */

static void test_refusals(void **state)
{
    static const int8_t codebook[16] = {0};
    static int8_t codes[64 * 2];
    static float scales[2 * 2] = {1, 1, 1, 1};
    struct err err = {0};
    struct weight w;
    struct weight_codes c = {.layout = WEIGHT_I4, .codebook = codebook, .group = 24};
    assert_false(weight_plan_codes(&c, 2, 64, WEIGHT_NATIVE, &w, &err));
    assert_non_null(strstr(err.text, "24"));
    c.group = 0;
    assert_false(weight_plan_codes(&c, 2, 64, WEIGHT_NATIVE, &w, &err));
    c.group = 32;
    c.scales_f16 = c.has_order = 1;
    assert_true(weight_plan_codes(&c, 2, 64, WEIGHT_NATIVE, &w, &err));
    weight_attach(&w, backend_alloc(backends[0], w.bytes, &err));
    assert_true(backend_weight_pack_codes(backends[0], &w, codes, scales, NULL, 0, 2, &err));
    assert_false(backend_weight_pack_codes(backends[0], &w, codes, scales, NULL, 1, 2, &err));
    codes[70] = 16;
    assert_false(backend_weight_pack_codes(backends[0], &w, codes, scales, NULL, 0, 2, &err));
    assert_non_null(strstr(err.text, "Row 1"));
    codes[70] = 0;
    scales[3] = 1.0001f;
    assert_false(backend_weight_pack_codes(backends[0], &w, codes, scales, NULL, 0, 2, &err));
    scales[3] = INFINITY;
    assert_false(backend_weight_pack_codes(backends[0], &w, codes, scales, NULL, 0, 2, &err));
    int32_t order[64];
    for (int i = 0; i < 64; i++)
        order[i] = 63 - i;
    assert_true(weight_set_order(&w, order, &err));
    order[5] = 64;
    assert_false(weight_set_order(&w, order, &err));
    order[5] = order[6];
    assert_false(weight_set_order(&w, order, &err));
    assert_non_null(strstr(err.text, "entry 6"));
    backend_free(backends[0], w.data, w.bytes);
    assert_false(weight_plan(DTYPE_Q4_0, 4, 33, WEIGHT_NATIVE, &w, NULL, &err));
    assert_false(weight_plan(DTYPE_F32, 0, 33, WEIGHT_EXACT, &w, NULL, &err));
    assert_false(weight_plan(DTYPE_F32, SIZE_MAX / 100, SIZE_MAX / 100, WEIGHT_EXACT, &w, NULL, &err));
}

/* Off by one in the last row's last output. */
static void linear_wrong(const struct cpu_linear *l, size_t first, size_t end)
{
    linear_panels(l, first, end);
    l->y[(l->n - 1) * l->y_stride + l->w->n_out - 1] += 1;
}

static void test_self_test(void **state)
{
    for (size_t s = 1; s < N_SETS; s++)
        if (backends[s])
            assert_true(cpu_self_test(backends[s]->kernels));
    struct cpu_kernels broken = *backends[0]->kernels;
    broken.linear = linear_wrong;
    assert_false(cpu_self_test(&broken));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_weight_at),
        cmocka_unit_test(test_quantized),
        cmocka_unit_test(test_activations),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_quantized_not_finite),
        cmocka_unit_test(test_products_not_finite),
        cmocka_unit_test(test_self_test),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}

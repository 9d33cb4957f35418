/* The CPU backend's insides: the table of kernels that an instruction set fills, and what the operations hand to them.
 * Kernels compute a part of an operation on one thread; ops.c, linear.c and attention.c split the work over the pool.
 *
 * One order for every sum, whatever is computed together: a product's output adds its inputs in ascending order in one
 * chain (integer layouts: exact int32 within a group, groups ascending); attention runs over pages in ascending order
 * inside blocks of ATTEND_SPLIT absolute positions, which are merged in ascending order. */
#ifndef INFERD_BACKEND_CPU_H
#define INFERD_BACKEND_CPU_H

#include "backend/backend.h"
#include "base/clock.h"
#include "base/pool.h"

#define CPU_WEIGHT_LAYOUT     "cpu-3" /* another number with every change of what packing writes */
#define CPU_PANEL             16      /* outputs in a panel: the lanes of a 512-bit register */
#define CPU_TILE_K            64      /* inputs in a tile of the integer layouts */
#define CPU_QUADS_TILE        16      /* CPU_TILE_K / 4 */
#define CPU_ROWS_BLOCK        16      /* rows that a tile takes: buffers of rows have room for whole blocks */
#define CPU_GROUP_MIN         16      /* the finest group of inputs that share a scale */
#define CPU_ROTATED_GROUP_MAX 256     /* inputs that share a scale in a weight that is rotated */
#define ATTEND_PAGES          4       /* pages whose attention is summed on its own, then merged */
#define ATTEND_SPLIT          (ATTEND_PAGES * KV_PAGE_TOKENS) /* positions */
#define ATTEND_NONE           -1e38f                          /* a query's greatest score before any */
#define ATTEND_QUERIES        96                              /* query vectors that one attend call takes at most */
#define CPU_LINE              64                              /* bytes */
#define CPU_FEW_ROWS          4 /* up to here weights come from memory faster than byte dots use them */
#define CPU_BF16_TERMS        3 /* bf16 numbers that hold an fp32 activation whole, for products on tiles */
#define CPU_TERM_BITS         8 /* an activation's code of 16 bits is (high << 8) + low */

static inline size_t cpu_round_up(size_t n, size_t step)
{
    return (n + step - 1) / step * step;
}
static inline size_t cpu_panels(const struct weight *w)
{
    return (w->n_out + CPU_PANEL - 1) / CPU_PANEL;
}
/* Inputs with padding: whole tiles for bf16 and the integer layouts. */
static inline size_t cpu_padded_in(const struct weight *w)
{
    return cpu_round_up(w->n_in, w->group ? CPU_TILE_K : w->layout == WEIGHT_BF16 ? CPU_TILE_K / 2 : 1);
}
/* Bytes of one scale or min. */
static inline size_t cpu_scale_size(const struct weight *w)
{
    return w->scales_f16 ? 2 : 4;
}

/* Signed bytes of an activation. */
static inline size_t cpu_terms(const struct weight *w)
{
    return w->act_bits > 8 ? 2 : 1;
}
/* The greatest code of an activation. */
static inline float cpu_code_max(const struct weight *w)
{
    return w->act_bits == 8 ? 127 : 32639; /* (127 << 8) + 127 */
}

struct cpu_kernels;

/* Activations of integer layouts, a scale for each row and group of the weight: x = scale * code, in signed bytes, so that the
 * units that multiply bytes compute with it exactly (weight.act_bits).
 *    8   one byte; to 1/254 of the group's greatest
 *   16   256 high + low, each within +-127; to 1/65278 of the group's greatest (one code in 256 to three times that) */
struct cpu_quantized {
    size_t stride, groups; /* bytes from a row (or a block of rows) to the next; groups of a row */
    size_t block_rows;     /* 0: row by row. Else in blocks of so many rows, for tiles: see below */
    int8_t *codes;         /* [n][stride]: of each CPU_TILE_K inputs 64 bytes of (high) terms, then 64 of low ones if two */
    float *scales;         /* [n][groups] */
    float *sums;           /* [n][groups]: scale * sum of the group's codes, for mins */
    int32_t *offsets;      /* [n][groups]: -128 * sum of the group's codes: VNNI takes weights as w + 128 */
};

/* In blocks, codes are [block][tile][term][row][bytes of a tile's row]: a tile is a group, of CPU_TILE_K inputs at most; for
 * bf16 weights half as many inputs, and CPU_BF16_TERMS terms. Scales and sums are [block][group][row]. The last block's
 * missing rows hold any codes and scales of zero. Offsets are written as well, but no tile reads them. */
static inline size_t cpu_tile_width(const struct weight *w)
{
    return w->group && w->group < CPU_TILE_K ? w->group : CPU_TILE_K;
}
/* Whether products with w take activations from cpu_quantized; else as they are. */
bool cpu_prepares(const struct cpu_kernels *k, const struct weight *w);
/* Lays out n rows of activations for w from `memory` on (NULL: for the size alone); returns the bytes. */
size_t cpu_quantized_plan(const struct cpu_kernels *k, const struct weight *w, size_t n, char *memory, struct cpu_quantized *q);
/* Puts row `row` there, x [n_in] in the order of w's columns. */
void cpu_quantized_put(const struct cpu_kernels *k, const struct weight *w, const float *x, size_t row,
                       const struct cpu_quantized *q);

/* Where a row of them goes: its codes in pieces of `width` bytes, `apart` bytes from one to the next, first its high terms,
 * then its low ones; its scales, sums and offsets every cells_apart elements. */
struct cpu_quantized_row {
    int8_t *codes;
    size_t width, apart, cells_apart;
    float *scales, *sums;
    int32_t *offsets;
};

/* y [n][y_stride] = (add: +=) x [n][x_stride] w^T + bias. Integer layouts read q instead of x. */
struct cpu_linear {
    const struct weight *w;
    const float *bias, *x;
    size_t x_stride, n;
    int add;
    float *y;
    size_t y_stride;
    struct cpu_quantized q;
};

/* ---- the cache's pages: [K][V][scales of integers], see kernels_attend.h ---- */

/* Beside a cache of 16 bits queries and weights of the softmax are codes too, and products are summed in an int32, so many
 * pairs of them at a time. The codes' scales are such that the magnitudes of a query's codes in such a block come to less than
 * 2^16, of the weights' codes in a split to less than 2^15, roundings included: so no sum passes 2^31. */
#define ATTEND_PAIRS       16
#define ATTEND_QUERY_SUM   (65535 - ATTEND_PAIRS)
#define ATTEND_WEIGHTS_SUM (32767 - ATTEND_SPLIT / 2)
#define ATTEND_CODE_MAX    32767
_Static_assert(KV_PAGE_TOKENS <= 2 * ATTEND_PAIRS, "a page's values are one sum, wherever a row begins");

static inline size_t cpu_kv_size(enum kv_type type)
{
    return type == KV_F32 ? 4 : type == KV_I24 ? 3 : type == KV_I16 ? 2 : 1;
}
/* Bytes of a lane in one step: a dim of K or a position of V, or two neighbours of 16 bits. */
static inline size_t cpu_kv_lane(enum kv_type type)
{
    return type == KV_I16 ? 4 : cpu_kv_size(type);
}
/* Steps that n dims or positions take. */
static inline size_t cpu_kv_steps(enum kv_type type, size_t n)
{
    return type == KV_I16 ? (n + 1) / 2 : n;
}
/* Integers have a scale for each position and head, of K and of V. */
static inline int cpu_kv_scaled(enum kv_type type)
{
    return type != KV_F32;
}
/* A position's V with padding, which is zero. */
static inline size_t cpu_kv_value_dims(const struct kv_cache *kv)
{
    return cpu_round_up(kv->head_dim_v, CPU_PANEL);
}
static inline size_t cpu_kv_key_offset(const struct kv_cache *kv, size_t head)
{
    return head * cpu_kv_steps(kv->type, kv->head_dim_k) * KV_PAGE_TOKENS * cpu_kv_lane(kv->type);
}
static inline size_t cpu_kv_value_offset(const struct kv_cache *kv, size_t head)
{
    return cpu_kv_key_offset(kv, kv->n_kv_heads) + head * cpu_kv_value_dims(kv) * KV_PAGE_TOKENS * cpu_kv_size(kv->type);
}
/* Floats: [head][K, V][KV_PAGE_TOKENS]. */
static inline size_t cpu_kv_scale_offset(const struct kv_cache *kv, size_t head)
{
    return cpu_kv_value_offset(kv, kv->n_kv_heads) + head * 2 * KV_PAGE_TOKENS * sizeof(float);
}
static inline char *cpu_kv_page(const struct kv_cache *kv, int32_t page, size_t layer)
{
    return (char *)kv->data + ((size_t)page * kv->n_layers + layer) * kv->layer_bytes;
}

/* A row in one split: the pages there, and which positions of the split it sees: [from, to), none where from > to. */
struct cpu_attend_row {
    const int32_t *pages;
    size_t from, to;
};

/* Of each query: its greatest score (base 2), the sum of its weights, of its weighted values [padded head_dim_v]. */
struct cpu_attend_state {
    float *most, *total, *sum;
};

/* Rows in one split, n_rows * n_heads <= ATTEND_QUERIES; neighbours with the same page read it together, which changes no
 * bit of theirs. Query i is head i % n_heads of row i / n_heads. */
struct cpu_attend {
    const struct kv_cache *kv;
    const struct attention *a;
    size_t layer, kv_head;
    const char *next; /* K that is read after this, or NULL */
    const struct cpu_attend_row *rows;
    size_t n_rows, n_heads;
    const float *q;                       /* [queries][head_dim_k]; 16 bits: pairs of codes [queries][steps] */
    const float *q_scales;                /* [queries], 1 where q are no codes */
    struct cpu_attend_state result;       /* of this split */
    float *scores, *weight_scales, *wide; /* scratch: cpu_attend_work */
};

/* Floats of a state; `dim` is padded. */
static inline size_t cpu_attend_floats(size_t queries, size_t dim)
{
    return 2 * cpu_round_up(queries, CPU_PANEL) + queries * dim;
}
/* Floats of scratch of a thread: q, scores, two scales a query, a page in fp32. */
static inline size_t cpu_attend_work(size_t dim)
{
    return ATTEND_QUERIES * (dim + ATTEND_SPLIT + 2) + KV_PAGE_TOKENS * dim;
}

struct cpu_kernels {
    const char *name;
    /* Panels [first, end). */
    void (*linear)(const struct cpu_linear *l, size_t first, size_t end);
    /* One row of activations for w; codes beyond n_in are zero (before a rotation). */
    void (*quantize)(const struct weight *w, const float *x, const struct cpu_quantized_row *to);
    /* NULL, or: products with bf16 weights, and those with integers of more than CPU_FEW_ROWS rows, run on tiles, and this
     * takes a row of activations apart into bf16 terms. */
    void (*split)(const float *x, size_t n_in, size_t padded, int8_t *terms, size_t apart);
    void (*attend)(const struct cpu_attend *t);
    /* Joins the state of the next split to that of all before (`dim` padded). */
    void (*attend_merge)(size_t queries, size_t dim, const struct cpu_attend_state *state, const struct cpu_attend_state *next);
    /* out [dim] = sum / total, with one more logit where `sink`. */
    void (*attend_end)(const struct cpu_attend_state *state, size_t query, size_t dim, const float *sink, float *out);
    void (*rms_norm)(const float *x, size_t width, const float *weight, float offset, float eps, float *y);
    void (*layer_norm)(const float *x, size_t width, const float *weight, const float *bias, float eps, float *y);
    /* The heads of a row; table [n_pairs][2] of cos and sin. */
    void (*rope)(float *x, size_t n_heads, size_t head_dim, size_t n_pairs, int interleaved, const float *table);
    void (*gated)(enum activation act, const float *gate, const float *up, size_t width, float *y);
    void (*activate)(enum activation act, float *x, size_t width);
    void (*add)(const float *x, size_t n, float scale, float *y);
    /* Row `out` of w, times scale. */
    void (*embed)(const struct weight *w, size_t out, float scale, float *y);
    /* n floats in the cache's type; returns the scale of integers. */
    float (*narrow)(enum kv_type type, const float *x, size_t n, void *out);
    /* n floats of a query as codes of 16 bits, see ATTEND_PAIRS; returns their scale. */
    float (*narrow_query)(const float *x, size_t n, int16_t *out);
    /* One output's floats x [padded], zeros beyond n_in, rotated in place if w is: codes [padded] (I8: bytes; I4: indices of
     * w's codebook, which ascends) and a scale a group, as fp16 holds it. The same bytes in every set. */
    void (*quantize_weights)(const struct weight *w, float *x, int8_t *codes, float *scales);
};

extern const struct cpu_kernels cpu_kernels_ref, cpu_kernels_avx2, cpu_kernels_avx512, cpu_kernels_vnni, cpu_kernels_amx;

/* The best table that the processor runs, that `isa` ("auto" or a name) allows and that passes its self test. `failed`: the
 * best one that did not pass, NULL: none. NULL with ERR_USAGE naming the choices. */
const struct cpu_kernels *cpu_select(const char *isa, const struct cpu_kernels **failed, struct err *err);
/* Products of every layout on small matrices as the reference computes them: integers to the bit. A millisecond or two. */
bool cpu_self_test(const struct cpu_kernels *k);

struct backend {
    struct pool *pool;
    const struct cpu_kernels *kernels;
    char mode[32];
    size_t scratch_bytes, thread_bytes, partial_floats;
    char *scratch;    /* the block; below: parts of it */
    char *per_thread; /* [threads][thread_bytes] */
    float *partials;  /* [partial_floats]: attention of few rows, split by positions */
    char *rows;       /* quantized or realigned activations */
    size_t rows_bytes;
    struct backend_profile *profile; /* or NULL */
};

/* 0 where nobody asks. */
static inline uint64_t cpu_profile_begin(const struct backend *b)
{
    return b->profile ? clock_mono_ns() : 0;
}
void cpu_profile_end(struct backend *b, enum backend_op op, uint64_t begin, double bytes, double flops);

/* ---- pack.c ---- */
/* Rotates 64 floats: x H, its own inverse. Plain C; kernels do the same operations in the same order. */
void cpu_rotate(float *x);
/* scale * code (+ min) of output `out` and stored column k: before any rotation or order. */
float cpu_weight_cell(const struct weight *w, size_t out, size_t k);

/* Splits [0, n) over the pool when `work` (about: floats touched) is worth a join. */
void cpu_split(struct backend *b, size_t n, size_t work, pool_range_fn fn, void *arg);
/* Bytes of `rows` for these sizes: activations, or attention's plan of so many rows. */
size_t cpu_rows_bytes(unsigned threads, const struct backend_sizes *sizes);
size_t cpu_attend_plan_bytes(unsigned threads, size_t rows);
size_t cpu_thread_bytes(const struct backend_sizes *sizes);
size_t cpu_partial_floats(unsigned threads, const struct backend_sizes *sizes);

#endif

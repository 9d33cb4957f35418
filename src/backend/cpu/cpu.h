/* The CPU backend's insides: the table of kernels that an instruction set fills, and what the ops hand to them.
 * Kernels compute a part of an operation on one thread; ops.c splits the work and owns the order of everything. */
#ifndef INFERD_BACKEND_CPU_H
#define INFERD_BACKEND_CPU_H

#include "backend/backend.h"
#include "base/pool.h"

#define CPU_PANEL      16 /* outputs in a panel: the lanes of a 512-bit register */
#define CPU_TILE_K     64 /* inputs in a tile of the integer layouts */
#define CPU_QUADS_TILE 16 /* CPU_TILE_K / 4 */

static inline size_t cpu_panels(const struct weight *w)
{
    return (w->n_out + CPU_PANEL - 1) / CPU_PANEL;
}
/* Inputs with padding: even for the float layouts, whole tiles for the integer ones. */
static inline size_t cpu_padded_in(const struct weight *w)
{
    return w->layout == WEIGHT_I8 || w->layout == WEIGHT_I4 ? (w->n_in + CPU_TILE_K - 1) / CPU_TILE_K * CPU_TILE_K
                                                            : (w->n_in + 1) / 2 * 2;
}

/* Activations quantized to signed bytes, a scale for each row and group of the weight: x ~ scale * code. */
struct cpu_quantized {
    int8_t *codes;    /* [n][padded_in] */
    float *scales;    /* [n][groups] */
    float *sums;      /* [n][groups]: scale * sum of the group's codes, for mins */
    int32_t *offsets; /* [n][groups]: 128 * sum of the group's codes: weights are fed as unsigned bytes */
};

/* y[r][panel * 16 ..] (+)= x[r] . w for rows [0, n) and one panel; y has room for 16 outputs a row (a local buffer). */
typedef void (*cpu_panel_float)(const struct weight *w, size_t panel, const float *x, size_t x_stride, size_t n,
                                float *y);
typedef void (*cpu_panel_int)(const struct weight *w, size_t panel, const struct cpu_quantized *q, size_t first,
                              size_t n, float *y);

/* One query row and one KV head: the group's query heads at q ([n_q][head_dim_k], stride q_stride) over positions
 * [begin, end) of the pages. out [n_q][head_dim_v]. */
struct cpu_attend {
    const struct kv_cache *kv;
    size_t layer, kv_head;
    const int32_t *pages;
    size_t begin, end;
    const struct attention *a;
    size_t head; /* the first query head, for sinks */
    size_t n_q;
    const float *q;
    float *out;
};

#define CPU_ROWS_FLOAT 64 /* rows that one panel call takes at most */
#define CPU_QUERIES_A_HEAD_MAX 128 /* query heads that share one KV head */

struct cpu_kernels {
    const char *name;
    cpu_panel_float linear_f32, linear_f16, linear_bf16;
    cpu_panel_int linear_i8, linear_i4;
    void (*quantize)(const float *x, size_t n_in, size_t padded, size_t group, int8_t *codes, float *scales, float *sums,
                     int32_t *offsets);
    void (*attend)(const struct cpu_attend *t);
    void (*gated)(enum activation act, const float *gate, const float *up, size_t width, float *y);
    void (*activate)(enum activation act, float *x, size_t width);
};

extern const struct cpu_kernels cpu_kernels_ref, cpu_kernels_avx2, cpu_kernels_avx512, cpu_kernels_vnni;

/* The best table that the processor runs and `isa` ("auto" or a name) allows. NULL with ERR_USAGE naming both. */
const struct cpu_kernels *cpu_select(const char *isa, struct err *err);

struct backend {
    struct pool *pool;
    const struct cpu_kernels *kernels;
    char mode[32];
    size_t scratch_bytes;
    void *scratch;
    struct cpu_quantized quantized; /* into scratch */
    struct backend_sizes sizes;
};

/* Dequantizes row `out` of w into dst [n_in]. */
void weight_row(const struct weight *w, size_t out, float *dst);

#endif

/* Arithmetic on one device: buffers and coarse, batched operations. Knows nothing of models, prompts or files.
 *
 * Activations are fp32, row-major, one row a token. Weight matrices are [n_out][n_in] (y = x W^T), packed once into the
 * layout that the kernels stream. Row r of any result depends only on row r of the inputs (and its own sequence), never
 * on which other rows are there, nor on the number of threads: one fixed order of summation over K for every row count;
 * attention is summed over fixed blocks of KV_PAGE_TOKENS absolute positions.
 *
 * Thread: operations run on the caller's thread plus the pool; the caller holds the pool (backend_step_begin/end).
 * Operations allocate nothing: what they need for scratch is taken at backend_scratch_reserve.
 * Errors: opening and packing may fail; operations cannot.
 */
#ifndef INFERD_BACKEND_BACKEND_H
#define INFERD_BACKEND_BACKEND_H

#include "backend/batch.h"
#include "backend/dtype.h"
#include "base/err.h"

struct backend;

struct backend_options {
    unsigned n_threads; /* 0: all usable */
    const char *isa;    /* "auto", or the best set allowed: "ref" "avx2" "avx512" "vnni" "amx" */
};

struct backend *backend_open_cpu(const struct backend_options *options, struct err *err);
void backend_close(struct backend *b);
/* The numeric mode, part of system_fingerprint: "cpu-vnni", "cpu-ref", ... */
const char *backend_mode(const struct backend *b);
unsigned backend_threads(const struct backend *b);

/* Zeroed device memory, aligned to 64 bytes and huge pages where they help. NULL with ERR_MEMORY. */
void *backend_alloc(struct backend *b, size_t bytes, struct err *err);
void backend_free(struct backend *b, void *memory, size_t bytes);
/* Has the system give memory of backend_alloc now that it would give when it is first used; contents stay. A system that
 * does not know how gives it later. Any thread. */
void backend_touch(struct backend *b, void *memory, size_t bytes);

/* Exclusive use of the compute pool for a series of operations. */
void backend_step_begin(struct backend *b);
void backend_step_end(struct backend *b);
/* fn over [0, n) in pieces of at most `grain` items on the host's compute threads; takes the pool itself. thread <
 * backend_threads. For what the engine does with rows between operations; each item's result is its own. */
void backend_split(struct backend *b, size_t n, size_t grain, void (*fn)(void *arg, size_t begin, size_t end, unsigned thread),
                   void *arg);

/* Names the layout of packed weights: blocks packed under another name are not read. */
const char *backend_weight_layout(const struct backend *b);

/* ---- where a step's time goes ---- */
enum backend_op {
    BACKEND_LINEAR,
    BACKEND_ATTENTION,
    BACKEND_KV_WRITE,
    BACKEND_NORM,
    BACKEND_ROPE,
    BACKEND_GATED,
    BACKEND_OTHER,
    BACKEND_OPS
};
struct backend_profile {
    struct {
        uint64_t calls, ns;
        double bytes, flops; /* of weights, keys and values read or written; arithmetic on them. Products and attention */
    } ops[BACKEND_OPS];
};
const char *backend_op_name(enum backend_op op);
/* From now on every operation adds its time to `p`: two looks at a clock each. NULL: none, as at the start. The caller holds
 * the pool or runs no step. */
void backend_profile_into(struct backend *b, struct backend_profile *p);

/* ---- weights ---- */
enum weight_layout {
    WEIGHT_F32,  /* panels of 16 outputs: [panel][k][16] fp32 */
    WEIGHT_F16,  /* the same, fp16 */
    WEIGHT_BF16, /* [panel][k/2][16][2] bf16 pairs: FMA by shift/mask, AMX tiles as they are */
    WEIGHT_I8,   /* [panel][k/64][16 rows][16 outputs x 4] signed bytes, scales [panel][group][16] */
    WEIGHT_I4,   /* the same with two codes a byte (low nibbles = tile row v, high = row v + 8) and a codebook */
};

/* w = scale * code (+ min). Codes are signed bytes (I8), or codebook[nibble] (I4: int8 values, e.g. q-8, q, nf4, e2m1). */
struct weight {
    enum weight_layout layout;
    size_t n_out, n_in;   /* logical; padded inside to multiples of 16 and 64 */
    size_t group;         /* inputs that share a scale: 16, 32, 64, 128, 192, 256 (integer layouts) */
    size_t code_group;    /* the same in the arrays that backend_weight_pack_codes takes: a multiple of group, or n_in */
    int8_t codebook[16];  /* WEIGHT_I4 */
    int has_min;          /* 1: mins follow the scales, same shape */
    int scales_f16;       /* 1: scales and mins are fp16, else fp32 */
    int has_order;        /* 1: input_order is there */
    int act_bits;         /* of an activation's code in a product: 8 or 16 (two signed bytes); 0: activations are fp32 */
    int rotated;          /* 1: codes hold W H, H the Walsh-Hadamard matrix / 8 in blocks of 64 inputs; y = (W H)(H x) */
    void *data;           /* owned by whoever allocated it; 64-byte aligned */
    float *scales, *mins; /* into the same allocation (cast to uint16_t when scales_f16) */
    int32_t *input_order; /* the same; NULL or [n_in]: the k-th code of a row belongs to input input_order[k] */
    size_t bytes;         /* of the whole allocation */
};

/* What a matrix becomes. */
enum weight_form {
    WEIGHT_EXACT,  /* fp32 activations: F32, F16, BF16 layouts; integer types are dequantized to F32 */
    WEIGHT_NATIVE, /* integer types keep their codes and scales, activations have 16 bits; others as WEIGHT_EXACT */
    WEIGHT_INT8,   /* activations have 8 bits; integer types as WEIGHT_NATIVE, floats become rotated I8, groups of 64 to 256 */
    WEIGHT_INT4,   /* the same, floats become rotated I4, nf4 codebook, groups of 64 */
};

/* The packed form of matrices stored as `t`: sizes and `bytes` filled in, data NULL. `lossy` (may be NULL) is set to 1
 * where values change that the form does not mean to change. */
bool weight_plan(enum dtype t, size_t n_out, size_t n_in, enum weight_form form, struct weight *w, int *lossy, struct err *err);
/* Matrices that a file holds as codes with scales (and mins): what weight_plan_codes makes of them is exact, in any form but
 * WEIGHT_EXACT, which it does not take. */
struct weight_codes {
    enum weight_layout layout; /* WEIGHT_I8, WEIGHT_I4 */
    const int8_t *codebook;    /* WEIGHT_I4: [16] values of the nibbles */
    size_t group;              /* inputs that share a scale: a multiple of 16; n_in or more: one scale an output */
    int has_min, scales_f16;   /* scales_f16: every scale and min is a value that fp16 holds */
    int has_order;             /* columns are stored in another order than inputs arrive: weight_set_order */
};
bool weight_plan_codes(const struct weight_codes *codes, size_t n_out, size_t n_in, enum weight_form form, struct weight *w,
                       struct err *err);
/* Attaches `memory` (w->bytes, from backend_alloc or a mapped file) and sets the inner pointers. */
void weight_attach(struct weight *w, void *memory);
/* Packs source rows (row-major [n_rows][n_in] of type t) as outputs [first, first + n_rows) of w; first % 16 == 0 unless
 * everything is packed by rows in ascending order. Several sources may fill one weight (q, k, v side by side). `t` must
 * be a type that w's layout was planned for, or any type that dequantizes into a float layout. Runs on the pool. */
bool backend_weight_pack(struct backend *b, struct weight *w, enum dtype t, const void *src, size_t first, size_t n_rows,
                         struct err *err);
/* Packs rows given as codes into a weight of weight_plan_codes: codes [n_rows][n_in] (I8: values; I4: nibbles 0 .. 15),
 * scales and mins (NULL where it has none) [n_rows][ceil(n_in / code_group)]. Refused, with the row: nibbles out of
 * range, scales that are not finite, or that fp16 does not hold where they are to be fp16. */
bool backend_weight_pack_codes(struct backend *b, struct weight *w, const int8_t *codes, const float *scales, const float *mins,
                               size_t first, size_t n_rows, struct err *err);
/* Sets the order of w's inputs (has_order, attached): order [n_in] is a permutation of 0 .. n_in - 1, else refused. */
bool weight_set_order(struct weight *w, const int32_t *order, struct err *err);
/* fp32 value at (out, in): tests, embedding of odd rows. Slow. */
float weight_at(const struct weight *w, size_t out, size_t in);

/* ---- scratch ---- */
/* Scratch for operations of at most these sizes (quantized activations, attention partials). Counted bytes returned by
 * backend_scratch_bytes before anything is allocated. */
struct backend_sizes {
    size_t rows_max; /* rows of a batch */
    size_t in_max;   /* widest n_in */
    size_t out_max;  /* widest n_out */
    size_t heads_max, head_dim_max;
};
size_t backend_scratch_bytes(const struct backend *b, const struct backend_sizes *sizes);
bool backend_scratch_reserve(struct backend *b, const struct backend_sizes *sizes, struct err *err);

/* ---- KV cache ---- */
enum kv_type {
    KV_F32,
    KV_I24, /* integers with a scale for each position and head: nothing that fp32 sums would show is lost */
    KV_I16, /* queries and weights are codes of 16 bits too: sums of integers */
    KV_I8,
    KV_AUTO, /* in options only: whoever plans a model chooses one of the others */
};
/* "f32", "int24", "int16", "int8", "auto". */
const char *kv_type_name(enum kv_type t);
/* False: there is no type of this name. */
bool kv_type_from_name(const char *name, enum kv_type *t);
/* Pages of KV_PAGE_TOKENS positions for all layers. Page p of layer l starts at data + (p * n_layers + l) * layer_bytes;
 * inside, the backend chooses (K transposed so that positions run across lanes). */
struct kv_cache {
    enum kv_type type;
    size_t n_layers, n_kv_heads, head_dim_k, head_dim_v;
    size_t n_pages;
    size_t layer_bytes; /* of one page and layer */
    void *data;         /* n_pages * n_layers * layer_bytes */
};
/* Fills layer_bytes; returns the bytes of one page (all layers). */
size_t kv_cache_plan(struct kv_cache *kv);

/* ---- operations: x, y are [n][width] fp32 ---- */
enum activation { ACT_SILU, ACT_GELU_TANH, ACT_GELU_ERF, ACT_RELU, ACT_GELU_QUICK };

/* out[r] = row ids[r] of the packed embedding, times `scale`. */
void op_embed(struct backend *b, const struct weight *table, const int32_t *ids, size_t n, float scale, float *out);
/* y = x W^T + bias (NULL: none) ; add = 1: y += that. x and y do not overlap. x_stride, y_stride in floats. */
void op_linear(struct backend *b, const struct weight *w, const float *bias, const float *x, size_t x_stride, size_t n, int add,
               float *y, size_t y_stride);
/* y = x / rms(x) * (weight + offset) over `width`; rows n. In place allowed. */
void op_rms_norm(struct backend *b, const float *x, size_t n, size_t width, const float *weight, float offset, float eps,
                 float *y);
/* LayerNorm with weight and bias (each may be NULL). */
void op_layer_norm(struct backend *b, const float *x, size_t n, size_t width, const float *weight, const float *bias, float eps,
                   float *y);
/* RMS norm of each head inside rows of `stride` floats: n rows x n_heads heads of head_dim at x. In place. (Qwen3 q/k) */
void op_head_norm(struct backend *b, float *x, size_t stride, size_t n, size_t n_heads, size_t head_dim, const float *weight,
                  float eps);
/* Rotary embedding in place on n rows x n_heads heads (stride floats a row): rotates the first 2 * n_pairs dimensions of
 * each head. interleaved = 0: pairs (i, i + n_pairs) (NeoX, all HF llamas); 1: pairs (2i, 2i+1).
 * angles = position * inv_freq[i] computed in double by the caller's table: cos_sin is [positions][n_pairs][2] fp32,
 * row index = positions[r]. */
void op_rope(struct backend *b, float *x, size_t stride, size_t n, size_t n_heads, size_t head_dim, size_t n_pairs,
             int interleaved, const float *cos_sin, const int32_t *positions);
/* Stores k and v (rows of `stride` floats: [n_kv_heads][head_dim]) of all rows of the batch in layer's pages. */
void op_kv_write(struct backend *b, struct kv_cache *kv, size_t layer, const struct batch *batch, const float *k,
                 const float *v, size_t stride);
/* Copies the first `n_positions` positions of page `from` to page `to`, all layers (copy on write of a shared page). */
void op_kv_copy(struct backend *b, struct kv_cache *kv, int32_t from, int32_t to, size_t n_positions);
struct attention {
    size_t n_heads;     /* query heads; n_heads % n_kv_heads == 0 */
    float scale;        /* of q.k */
    float softcap;      /* 0: none */
    size_t window;      /* 0: all; else position i sees (i - window, i] */
    const float *sinks; /* [n_heads] or NULL: extra logit in the softmax's denominator (gpt-oss) */
};
/* out[r] = softmax(q[r] K^T) V over the sequence's positions 0..pos(r), causal. q rows of q_stride, out rows of
 * n_heads * head_dim_v. K and V of the batch's rows were written before. */
void op_attention(struct backend *b, const struct kv_cache *kv, size_t layer, const struct batch *batch,
                  const struct attention *a, const float *q, size_t q_stride, float *out);
/* y = act(gate) * up, rows n; gate and up are halves of rows of `stride` floats ([gate | up], each `width`). y [n][width] */
void op_gated(struct backend *b, enum activation act, const float *gate_up, size_t stride, size_t n, size_t width, float *y);
void op_activation(struct backend *b, enum activation act, float *x, size_t n, size_t width);
/* x = cap * tanh(x / cap), rows n. */
void op_softcap(struct backend *b, float *x, size_t n, size_t width, float cap);
/* y += x * scale */
void op_add(struct backend *b, const float *x, size_t n, size_t width, float scale, float *y);
/* out[i] = x[rows[i]] */
void op_gather_rows(struct backend *b, const float *x, const int32_t *rows, size_t n, size_t width, float *out);

#endif

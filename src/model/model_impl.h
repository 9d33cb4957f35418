/* What model.c, weights.c, rope.c and arch_*.c share; nobody else includes this (tests do).
 *
 * A load has three passes over one description: bind (find every tensor, check its shape, lay out one block of memory),
 * plan (add up) and pack (copy tensor by tensor). Bind needs no memory of the size of weights, so a plan is exact and
 * cheap. The binder is gone after the load; struct model keeps only what a step reads.
 */
#ifndef INFERD_MODEL_MODEL_IMPL_H
#define INFERD_MODEL_MODEL_IMPL_H

#include "model/model.h"
#include "model/model_config.h"

#define LINEAR_PARTS_MAX  3 /* q, k, v of three types */
#define TENSOR_NAME_BYTES 160

/* A matrix product whose outputs come from tensors side by side. Neighbours whose packed form is the same share a weight;
 * others (a Q6_K value matrix beside Q4_K ones) are further parts that write their own columns. */
struct linear {
    size_t n_in, n_out, n_parts;
    struct weight part[LINEAR_PARTS_MAX];
    size_t first[LINEAR_PARTS_MAX]; /* column where a part begins */
    const float *bias;              /* [n_out] or NULL */
};

struct norm {
    const float *weight, *bias; /* NULL where there is none */
};

struct layer {
    struct norm attention_norm, mlp_norm;
    struct linear qkv;                                    /* width -> [q | k | v] */
    const float *q_norm, *k_norm;                         /* [head_dim] or NULL */
    struct linear out;                                    /* heads -> width */
    struct linear up;                                     /* width -> inner, or [gate | up] */
    struct linear down;                                   /* inner -> width */
    const float *attention_branch_norm, *mlp_branch_norm; /* [width] or NULL */
};

/* Rotary embedding. Cosines are computed for the rows of a step, in double, so no table of the context's size is kept. */
struct rope {
    enum rope_kind kind;
    enum rope_order order;
    size_t n_pairs, context_max, original_context;
    double theta, factor, scale; /* scale of cos and sin */
    double inv_freq[CONFIG_ROPE_PAIRS_MAX];
    double long_inv_freq[CONFIG_ROPE_PAIRS_MAX]; /* longrope */
};

bool rope_init(struct rope *r, const struct rope_config *config, struct err *err);
/* out: [batch rows][n_pairs][2] cos, sin. */
void rope_fill(const struct rope *r, const struct batch *batch, float *out);
uint64_t rope_class(const struct rope *r, size_t n_prompt);

/* Buffers of a step, cut from one block. */
struct scratch {
    float *x;             /* [rows][width] residual stream */
    float *normed;        /* [rows][max(width, n_embed)] */
    float *wide;          /* [rows][max(q + 2 kv, inputs of the activation)] */
    float *narrow;        /* [rows][max(heads * head_dim, n_inner)] */
    float *cos_sin;       /* [rows][n_pairs][2] */
    float *local_cos_sin; /* the same for layers with a window, where they rotate differently */
    int32_t *index;       /* [rows] 0, 1, 2 ...: rows of cos_sin; or ids of learned positions */
    float *hidden;        /* [logit rows][width] */
    float *projected;     /* [logit rows][n_embed], where the embedding is narrower */
    float *logits;        /* [logit rows][n_vocab] */
};

struct model {
    struct backend *backend;
    struct model_config config;
    struct model_options options;
    struct model_plan plan;
    struct rope rope, local_rope;
    struct layer *layers;
    struct norm final_norm;
    struct weight embed;     /* [n_vocab][n_embed] */
    struct weight positions; /* [context + offset][width], learned positions only */
    struct linear head;      /* tied: its one part is a copy of `embed`'s view */
    struct linear project_in, project_out;
    void *weights_block, *scratch_block;
    size_t weights_bytes, scratch_bytes;
    bool from_cache;
    struct writer *writer;  /* of the packed cache; NULL: none */
    size_t allocated_bytes; /* asked of backend_alloc, for the test that the plan is exact */
    struct scratch s;
};

/* ---- bind ---- */
enum bind_form { BIND_ROWS /* [out][in] */, BIND_TRANSPOSED /* [in][out], as GPT-2 stores them */ };

struct pack_item {
    struct weight *weight; /* a matrix, or */
    const float **vector;  /* fp32 numbers */
    enum bind_form form;
    int plus_one; /* of a vector: 1 is added to each number */
    size_t n_src;
    const struct tensor *src[LINEAR_PARTS_MAX];  /* or, of a matrix that came quantized, */
    struct quant_matrix quant[LINEAR_PARTS_MAX]; /* family NULL: none */
    size_t src_rows[LINEAR_PARTS_MAX];
    size_t offset, bytes; /* in the block */
};

struct binder {
    const struct checkpoint *checkpoint;
    struct model *m;
    struct err *err;
    bool failed;
    enum weight_form matrices, table; /* of linear layers; of the embedding and the head */
    struct pack_item *items;
    size_t n_items, cap_items;
    size_t bytes;            /* of the block so far */
    unsigned char *used;     /* [tensors] */
    struct assumed *assumed; /* tensors of a checkpoint that is only a shape */
    uint64_t n_elements;     /* numbers that were bound */
    size_t tensor_bytes_max, source_bytes;
    unsigned lossy_types[DTYPE_COUNT];
};

/* Like config_reader: after a failure further calls do nothing. Names are printf formats. */
bool bind_has(const struct binder *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
struct bind_source {
    char name[TENSOR_NAME_BYTES];
    size_t n_out;
};
void bind_linear(struct binder *b, struct linear *l, enum bind_form form, size_t n_in, const struct bind_source *src,
                 size_t n_src);
/* Biases side by side behind a linear of the same sources. */
void bind_bias(struct binder *b, struct linear *l, const struct bind_source *src, size_t n_src);
void bind_vector(struct binder *b, const float **out, size_t n, const char *format, ...) __attribute__((format(printf, 4, 5)));
/* The same with 1 added to each number, for norms that multiply by 1 + weight. */
void bind_vector_plus_one(struct binder *b, const float **out, size_t n, const char *name);
/* A table of which rows are read: learned positions, exact. */
void bind_table(struct binder *b, struct weight *w, size_t n_rows, size_t width, const char *name);
/* Output matrix: `name`, or the embedding where the model is tied. */
void bind_head(struct binder *b, const char *name, const char *embed_name);
/* Marks a tensor that is read elsewhere or has no effect. */
void bind_ignore(struct binder *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Binds the whole model; `b` is released with binder_release. Fails on missing, misshaped and left-over tensors. */
bool binder_run(struct binder *b, const struct checkpoint *c, struct model *m, enum profile profile, struct err *err);
void binder_release(struct binder *b);
/* What `progress` (or NULL) says of going on; false with ERR_CANCELLED. */
bool model_goes_on(bool (*progress)(void *arg, double fraction), void *arg, double fraction, struct err *err);
/* Fills m->weights_block (b->bytes long) from the checkpoint, and sets every pointer into it. */
bool binder_pack(struct binder *b, bool (*progress)(void *arg, double fraction), void *arg, struct err *err);
/* The same pointers over a block that the packed cache has filled. */
void binder_attach(struct binder *b);
/* AUTO by the types of the file. */
enum profile weights_profile(const struct checkpoint *c, const struct quant_config *q, enum profile wanted);

/* ---- packed cache (model_cache.c) ---- */
/* True: m->weights_block is filled and attached. */
bool model_cache_read(struct model *m, struct binder *b, struct checkpoint *c);
/* Starts writing m->weights_block. */
void model_cache_write(struct model *m, struct binder *b, struct checkpoint *c);
/* Stops a writer that still runs. */
void model_cache_close(struct model *m);

/* ---- forward ---- */
enum linear_mode { LINEAR_SET, LINEAR_ADD };
/* y = W x + bias, or y += that; rows of x and y lie x_stride and y_stride floats apart. */
void linear_run(struct backend *b, const struct linear *l, const float *x, size_t x_stride, size_t n, enum linear_mode mode,
                float *y, size_t y_stride);
/* Attention of one layer on s.wide (q | k | v) into s.narrow, K and V stored on the way. */
void forward_attention(struct model *m, struct kv_cache *kv, size_t layer, const struct batch *batch);
/* Logits of hidden rows in `hidden` [n][n_embed]. */
void forward_logits(struct model *m, const float *hidden, size_t n);

struct arch {
    const char *const *model_types; /* of config.json, NULL-terminated */
    const char *const *gguf_names;  /* general.architecture, NULL-terminated */
    const char *const *own_keys;    /* of config.json that this forward computes and others do not, NULL-terminated; or NULL */
    size_t position_rows_extra;     /* learned positions: rows before position 0 */
    size_t up_parts;                /* 2: [gate | up] */
    void (*read)(struct config_reader *r, struct model_config *m); /* config.json */
    bool (*read_gguf)(const struct checkpoint *c, struct model_config *m, struct err *err);
    void (*bind)(struct binder *b, struct model *m);
    void (*forward)(struct model *m, struct kv_cache *kv, const struct batch *batch);
};
extern const struct arch arch_gpt2, arch_opt, arch_llama, arch_smollm3, arch_granite, arch_olmo2, arch_phi3, arch_gemma,
    arch_starcoder2;

/* The dense decoder that arch_llama.c computes; relatives set switches of struct model_config and share the rest. */
void llama_read(struct config_reader *r, struct model_config *m);
void llama_bind(struct binder *b, struct model *m);
void llama_forward(struct model *m, struct kv_cache *kv, const struct batch *batch);

#endif

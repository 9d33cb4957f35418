/* A loaded model: token ids in, logits out. Built from a checkpoint: config (model_config.h) -> weights bound and packed
 * -> arch_*.c forward, a list of backend operations that reads as the math.
 *
 * Memory: model lifetime, planned exactly before anything is allocated (model_plan). Thread: model_forward from the
 * engine thread only (one model has one engine); everything else is immutable.
 */
#ifndef INFERD_MODEL_MODEL_H
#define INFERD_MODEL_MODEL_H

#include "backend/backend.h"
#include "model/checkpoint.h"

struct model;

enum profile {
    PROFILE_AUTO,   /* native for files with integer block types, else fp16 */
    PROFILE_FP16,   /* exact weights, fp32 activations */
    PROFILE_NATIVE, /* the file's own integer types, exact, with activations in 16 bits */
    PROFILE_INT8,   /* matrices of floats as 8-bit integers; what the file holds as integers stays as it is */
    PROFILE_INT4,   /* the same with the 4-bit codebook nf4; embedding and head in 8 bits */
};
const char *profile_name(enum profile p);
/* PROFILE_AUTO for "auto" and for what is no profile. */
enum profile profile_from_name(const char *name, size_t len);

struct model_info {
    char architecture[48]; /* "llama", "qwen3", ... */
    size_t n_layers, width, n_heads, n_kv_heads, head_dim, n_inner, n_vocab;
    size_t context_max; /* max_position_embeddings / n_positions / context_length */
    size_t window;      /* sliding window, 0: none */
    uint64_t n_parameters;
    uint64_t weight_bytes; /* packed */
    size_t kv_token_bytes; /* all layers, with the chosen kv_type */
    int32_t bos, eos[8];   /* from config/generation_config/GGUF; -1 / count below */
    size_t n_eos;
};

/* Where packed weights are kept from one load to the next; see pack_cache.h. */
struct model_cache_options {
    const char *dir;                           /* NULL: no packed cache; borrowed for the model's life */
    uint64_t bytes_max;                        /* of all files in dir */
    void (*note)(void *arg, const char *text); /* a line for a log, from the loading or the writing thread; may be NULL */
    void *arg;
};

struct model_options {
    enum profile profile;
    enum kv_type kv_type; /* KV_AUTO: int16 beside the profiles int8 and int4, else int24 */
    size_t rows_max;      /* rows of a batch */
    size_t logit_rows_max;
    size_t context_max; /* 0: the model's own */
    struct model_cache_options cache;
    const struct backend *backend; /* model_plan: whose scratch is counted; NULL: the backend's scratch is left out.
                                      model_load takes its own argument */
};

enum weight_kind { KIND_EMBEDDING, KIND_ATTENTION, KIND_MLP, KIND_HEAD, KIND_VECTORS, WEIGHT_KINDS };
const char *weight_kind_name(enum weight_kind kind);

/* Every byte that a load will take, before it is taken. */
struct model_plan {
    enum profile profile; /* resolved */
    enum kv_type kv_type; /* resolved */
    struct model_info info;
    uint64_t weight_bytes;             /* packed weights, norms, rope tables */
    uint64_t kind_bytes[WEIGHT_KINDS]; /* weight_bytes by kind */
    uint64_t scratch_bytes;            /* activations + backend scratch + logits */
    uint64_t kv_page_bytes;            /* one page, all layers */
    uint64_t tensor_bytes_max;         /* most of the source that is in memory at once while packing */
    char lossy[256];                   /* what is not held exactly, in words; "" when nothing */
    char stored[160];                  /* how a checkpoint that came quantized is stored and held, in words; "" for others */
};
bool model_plan(struct checkpoint *c, const struct model_options *options, struct model_plan *plan, struct err *err);

/* Loads and packs. `progress` (may be NULL) gets 0..1 from the loading thread; where it returns false the load ends with
 * ERR_CANCELLED. */
struct model *model_load(struct checkpoint *c, struct backend *b, const struct model_options *options,
                         bool (*progress)(void *arg, double fraction), void *arg, struct err *err);
void model_free(struct model *m);
/* Whether the weights came from the packed cache. */
bool model_from_cache(const struct model *m);
/* Returns once the packed weights are in the cache, or the attempt has failed. For tests and tools. */
void model_cache_wait(struct model *m);
const struct model_info *model_info(const struct model *m);
const struct model_plan *model_planned(const struct model *m);
struct backend *model_backend(const struct model *m);
/* Shape of this model's KV cache (type, layers, heads, head_dim, layer_bytes); n_pages 0, data NULL. */
struct kv_cache model_kv_shape(const struct model *m);

/* Some rotary scalings (dynamic NTK, longrope) look at the length of a prompt, so the keys of one prefix differ between
 * prompts. Two sequences may share KV pages only where this number is equal for their prompt lengths, and a sequence
 * must give the same n_prompt in all its steps (also after preemption, when outputs are computed again). 0 for all other
 * models and for prompts within the model's original context. */
uint64_t model_rope_class(const struct model *m, size_t n_prompt);

/* Takes the pool itself (backend_step_begin/end): the caller must not hold it.
 * One step: logits [batch->n_logit_rows][n_vocab] fp32, valid until the next call. Ids are in range (the caller checks).
 * Holds no state beyond kv. Between layers `*cancelled` is not looked at: a step is short (max-batch rows). */
const float *model_forward(struct model *m, struct kv_cache *kv, const struct batch *batch);
/* The final hidden states (after the last norm) of the last forward's logit rows: [n_logit_rows][width]. */
const float *model_hidden(const struct model *m);

#endif

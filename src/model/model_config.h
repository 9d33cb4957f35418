/* What a model is, told by config.json or by GGUF metadata: sizes, switches and rotary scaling, checked and with the
 * defaults that transformers has for absent keys.
 *
 * Rules: every size has a limit, so that no product of two of them overflows; a key that would change the arithmetic and
 * that no forward here computes is ERR_MODEL_UNSUPPORTED with its name and value; keys that change nothing (dropouts,
 * initializers, notes of training tools) are passed over. Nothing here looks at tensors except vocabulary and rotary
 * factors of GGUF files, which live in tensors.
 *
 * Thread: pure functions. Memory: plain struct, no ownership.
 */
#ifndef INFERD_MODEL_MODEL_CONFIG_H
#define INFERD_MODEL_MODEL_CONFIG_H

#include "backend/backend.h"
#include "model/checkpoint.h"
#include "model/quant.h"

#define CONFIG_LAYERS_MAX     1024
#define CONFIG_WIDTH_MAX      ((size_t)1 << 18) /* hidden size, heads * head_dim, inner size * 4 */
#define CONFIG_INNER_MAX      ((size_t)1 << 20)
#define CONFIG_HEADS_MAX      4096
#define CONFIG_HEAD_DIM_MAX   1024
#define CONFIG_VOCAB_MAX      ((size_t)1 << 24)
#define CONFIG_CONTEXT_MAX    ((size_t)1 << 27)
#define CONFIG_ROPE_PAIRS_MAX (CONFIG_HEAD_DIM_MAX / 2)
#define CONFIG_JSON_BYTES_MAX ((size_t)4 << 20)
#define CONFIG_EOS_MAX        8

enum rope_kind { ROPE_NONE, ROPE_DEFAULT, ROPE_LINEAR, ROPE_DYNAMIC, ROPE_YARN, ROPE_LONGROPE, ROPE_LLAMA3 };
enum rope_order { ROPE_HALVES /* pairs (i, i + n) */, ROPE_INTERLEAVED /* pairs (2i, 2i + 1) */ };

struct rope_config {
    enum rope_kind kind;
    enum rope_order order;
    size_t n_pairs; /* rotated dimensions / 2 */
    double theta, factor;
    size_t context_max;                       /* max_position_embeddings: where dynamic NTK begins */
    size_t original_context;                  /* yarn, longrope, llama3 */
    double attention_factor;                  /* of cos and sin; 0: by the rule of the kind */
    double mscale, mscale_all_dim;            /* yarn; 0: not given */
    double beta_fast, beta_slow;              /* yarn */
    double low_freq_factor, high_freq_factor; /* llama3 */
    int truncate;                             /* yarn: whole dimensions as bounds of the ramp */
    int has_divisors;                         /* GGUF's rope_freqs.weight: in short_factor */
    double short_factor[CONFIG_ROPE_PAIRS_MAX], long_factor[CONFIG_ROPE_PAIRS_MAX];
};

enum norm_place { NORM_BEFORE, NORM_AFTER };

struct arch;

struct model_config {
    const struct arch *arch;
    char architecture[48];
    size_t n_layers, width, n_heads, n_kv_heads, head_dim, n_inner, n_vocab, context_max;
    size_t n_embed;                      /* width of the embedding table: differs from width in opt-350m */
    size_t window;                       /* 0: none */
    uint8_t windowed[CONFIG_LAYERS_MAX]; /* 1: the layer sees `window` positions only */
    double norm_eps;
    enum activation activation;
    enum norm_place norm_place;
    int final_norm;
    int tied; /* the embedding is the output matrix too */
    int qkv_bias, out_bias, mlp_bias;
    int head_norm;         /* RMS norm of each head of q and k */
    int norm_affine;       /* norms have weights */
    int scale_by_layer;    /* gpt2: attention divided by layer + 1 */
    int scale_by_head_dim; /* gpt2: attention divided by sqrt(head_dim) */
    /* Of arch_llama.c's relatives; factors of 0 mean 1. */
    double embed_scale, branch_scale; /* of the embedding; of what a layer adds to the residual stream */
    double attention_scale;           /* of q.k instead of 1 / sqrt(head_dim) */
    double logit_divisor;
    double attention_softcap, logit_softcap;
    int branch_norms;                     /* a norm of what attention and MLP return, before it is added */
    int no_input_norms;                   /* no norms before them */
    int row_norm;                         /* RMS norm of q and of k over all heads together */
    int norm_plus_one;                    /* norms multiply by 1 + weight */
    int fused;                            /* q, k, v are one matrix, gate and up another */
    uint8_t unrotated[CONFIG_LAYERS_MAX]; /* 1: the layer has no rotary embedding */
    int has_local_rope;                   /* layers with a window rotate by local_rope */
    struct rope_config local_rope;
    struct rope_config rope;
    struct quant_config quant;
    enum dtype stored;                /* dtype or torch_dtype: what weights are stored in, where that is all one knows */
    int32_t bos, eos[CONFIG_EOS_MAX]; /* -1: none */
    size_t n_eos;
};

/* Reads config.json (and generation_config.json), or the metadata of a GGUF file. */
bool model_config_read(struct checkpoint *c, struct model_config *out, struct err *err);
/* The folder's part of it on bytes in memory. `generation` may be empty. */
bool model_config_parse(struct str config, struct str generation, struct model_config *out, struct err *err);
/* Sizes, rotary embedding and special ids from the keys that GGUF files of all architectures share. */
bool model_config_read_gguf(const struct checkpoint *c, struct model_config *m, struct err *err);
/* Checks what all architectures have in common; called by model_config_read at the end. */
bool model_config_check(const struct model_config *m, struct err *err);

/* ---- for arch_*.c: fields of config.json. A reader that fails leaves `err` filled and every later call of the same
 * reader does nothing, so that a table of calls is checked once at its end. ---- */
struct config_reader {
    const json_t *json;
    struct err *err;
    bool failed;
};
#define CONFIG_REQUIRED SIZE_MAX
/* Whole number in [min, max]. Absent: `otherwise`, or an error where that is CONFIG_REQUIRED. null counts as absent. */
size_t config_size(struct config_reader *r, const char *key, size_t otherwise, size_t min, size_t max);
/* Finite number in [min, max]. */
double config_number(struct config_reader *r, const char *key, double otherwise, double min, double max);
int config_flag(struct config_reader *r, const char *key, int otherwise);
const json_t *config_object(struct config_reader *r, const char *key); /* NULL when there is none */
enum activation config_activation(struct config_reader *r, const char *key, const char *otherwise);
/* rope_parameters, or rope_theta and rope_scaling. m->head_dim and m->context_max are set before. */
void config_rope(struct config_reader *r, struct model_config *m);
/* sliding_window, use_sliding_window, max_window_layers, layer_types as Qwen2 and Qwen3 read them. */
void config_windows_by_layer(struct config_reader *r, struct model_config *m);
/* layer_types of which `sliding_attention` layers see m->window; without them `fallback` says so by layer. */
void config_layer_types(struct config_reader *r, struct model_config *m,
                        int (*fallback)(const struct model_config *m, size_t layer, size_t every), size_t every);
/* Fails with a text for `key` (ERR_MODEL_DAMAGED). */
void config_refuse(struct config_reader *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same with ERR_MODEL_UNSUPPORTED. */
void config_unsupported(struct config_reader *r, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif

/* Checkpoints that were published quantized: a matrix "X.weight" is stored as several tensors beside each other
 * (X.qweight, X.scales, X.weight_packed ...). Each family of formats (quant_*.c) finds the tensors of one matrix, checks
 * their types and shapes, says how the matrix can be held, and decodes rows of it.
 *
 * Held exactly as codes w = scale * code (+ min) where the packed layouts can; else as floats of the type that the family
 * names. What was chosen is told by quant_describe.
 *
 * Thread: pure functions; decoding from any thread. Memory: plain structs that point into the checkpoint.
 * Errors: ERR_MODEL_DAMAGED names file, tensor and numbers; ERR_MODEL_UNSUPPORTED names what is not read.
 */
#ifndef INFERD_MODEL_QUANT_H
#define INFERD_MODEL_QUANT_H

#include "backend/backend.h"
#include "model/checkpoint.h"

#include <jansson.h>

#define QUANT_PARTS_MAX  6
#define QUANT_PART_ORDER 3 /* of families that can store inputs in another order: their groups, [n_in] */
#define QUANT_NAME_BYTES 192

enum quant_method { QUANT_NONE, QUANT_GPTQ, QUANT_AWQ, QUANT_COMPRESSED, QUANT_FP8, QUANT_BITSANDBYTES };

/* quantization_config of config.json. */
struct quant_config {
    enum quant_method method;
    unsigned bits;   /* gptq, awq */
    size_t group;    /* gptq, awq: inputs that share a scale; 0: one scale an output */
    int symmetric;   /* gptq */
    int act_order;   /* gptq: the configuration says that inputs are in another order */
    int zeros_as_is; /* gptq, format v2: zero points are stored as they are, not less 1 */
    int mixed;       /* gptq: single modules may have other bits and groups, which their tensors tell */
    size_t block[2]; /* 8-bit floats: outputs and inputs that share a scale; 0: not told, the scales' shape tells */
};
/* `json` may be NULL: not quantized. */
bool quant_config_read(const json_t *json, struct quant_config *out, struct err *err);

struct quant_family;

struct quant_matrix {
    const struct quant_family *family;
    size_t n_out, n_in;
    const struct tensor *part[QUANT_PARTS_MAX]; /* the family's own order, NULL where there is none; codes first */
    unsigned bits;
    size_t group;     /* inputs that share a scale, at most n_in */
    size_t block_out; /* fp8: outputs that share a scale */
    int zeros_as_is;
    struct weight_codes held; /* how codes can be held */
    enum dtype floats;        /* DTYPE_NONE: held as codes; else dequantized into this type */
    double nested_offset;     /* bitsandbytes, double quantization */
    size_t nested_block;
};

enum quant_found { QUANT_NOT_THERE, QUANT_THERE, QUANT_WRONG /* err is filled in */ };

struct quant_family {
    const char *name;
    /* Of the matrix `base` (a name without ".weight"), [n_out][n_in]. */
    enum quant_found (*find)(const struct quant_config *q, const struct checkpoint *c, const char *base, struct quant_matrix *m,
                             struct err *err);
    /* Rows [first, first + n): codes [n][n_in] in the stored order of inputs, scales and mins [n][groups]. NULL where the
     * family is always held as floats. */
    bool (*codes)(const struct quant_matrix *m, size_t first, size_t n, int8_t *codes, float *scales, float *mins,
                  struct err *err);
    /* The order of inputs in which codes are stored, [n_in]; only where held.has_order. */
    bool (*order)(const struct quant_matrix *m, int32_t *order, struct err *err);
    /* Rows as floats; NULL where codes() is there. */
    bool (*floats)(const struct quant_matrix *m, size_t first, size_t n, float *out, struct err *err);
};
extern const struct quant_family quant_gptq, quant_awq, quant_compressed, quant_fp8, quant_bnb4, quant_bnb8;

/* How the matrix "base.weight" is stored; QUANT_NOT_THERE: as a plain tensor, or not at all. */
enum quant_found quant_find(const struct quant_config *q, const struct checkpoint *c, const char *base, size_t n_out,
                            size_t n_in, struct quant_matrix *m, struct err *err);
/* The matrix that a configuration alone lets one expect; err where it tells too little. */
bool quant_assume(const struct quant_config *q, size_t n_out, size_t n_in, struct quant_matrix *m, struct err *err);
/* Number of scales in a row of codes(). */
size_t quant_groups(const struct quant_matrix *m);
/* Rows [first, first + n) as fp32 [n][n_in], inputs in their own order. */
bool quant_rows(const struct quant_matrix *m, size_t first, size_t n, float *out, struct err *err);
/* Whether two matrices may fill one weight: held alike, with one order of inputs. */
bool quant_same_form(const struct quant_matrix *a, const struct quant_matrix *b);
/* "gptq, 4 bits, groups of 128, inputs reordered"; returns out. */
const char *quant_describe(const struct quant_matrix *m, char *out, size_t size);

/* ---- for quant_*.c ---- */
/* Tensor base + suffix; NULL when there is none. */
const struct tensor *quant_part(const struct checkpoint *c, const char *base, const char *suffix);
/* Checks type (one of two) and shape of a part. */
bool quant_check(const struct tensor *t, enum dtype type, enum dtype or_type, unsigned n_dims, size_t dim0, size_t dim1,
                 struct err *err);
/* Element `i` of a part of floats. */
float quant_float(const struct tensor *t, size_t i);
/* Words of 32 bits, any alignment. */
uint32_t quant_word(const struct tensor *t, size_t i);
/* Whether all of a part's words are `value`. */
bool quant_words_are(const struct tensor *t, uint32_t value);
/* The part of a matrix that is missing. */
enum quant_found quant_missing(const struct quant_matrix *m, const char *base, const char *suffix, struct err *err);
/* Inputs sorted by their group: order [n_in]. Refuses groups out of range or of the wrong size. */
bool quant_order_by_group(const struct tensor *g_idx, size_t n_in, size_t group, int32_t *order, struct err *err);
/* Whether g_idx puts inputs in other groups than i / group. */
int quant_is_reordered(const struct tensor *g_idx, size_t n_in, size_t group);
/* Fills m->held for codes of m->bits, or m->floats where no layout holds them. */
void quant_hold(struct quant_matrix *m, int has_min, int scales_f16, int has_order);

#endif

/* One view of a model as it was published: a folder (config.json + *.safetensors, sharded or not) or a GGUF file
 * (whole or split; a folder that holds one GGUF model too). Files are mapped read-only (base/mapping.h); every offset and
 * size is checked before use against the size that fstat told at open. What is walked again after open is a copy, and what
 * somebody cuts off meanwhile reads as zeros, so that a file which is written in place can give a wrong number, but no
 * read past an end: checkpoint_is_unchanged tells.
 *
 * Thread: immutable after open; any thread reads. Memory: checkpoint_close unmaps. Errors: ERR_MODEL_DAMAGED names
 * file, tensor and numbers; ERR_MODEL_UNSUPPORTED names the type or the architecture and the supported list.
 */
#ifndef INFERD_MODEL_CHECKPOINT_H
#define INFERD_MODEL_CHECKPOINT_H

#include "backend/dtype.h"
#include "base/err.h"
#include "base/str.h"

#include <jansson.h>

struct checkpoint;

enum checkpoint_kind { CHECKPOINT_HF, CHECKPOINT_GGUF };

#define TENSOR_DIMS_MAX           8
#define CHECKPOINT_FILE_BYTES_MAX ((size_t)128 << 20) /* config.json, tokenizer.json, ... each */
#define CHECKPOINT_TENSORS_MAX    ((size_t)1 << 20)
#define CHECKPOINT_SHARDS_MAX     ((size_t)4096) /* safetensors shards, GGUF parts */

struct tensor {
    struct str name;
    enum dtype type;
    unsigned n_dims;
    size_t dims[TENSOR_DIMS_MAX]; /* outermost first, as safetensors; GGUF's order is reversed to this */
    const void *data;             /* into the mapping; dtype_bytes(type, elements) bytes are valid; any alignment */
    size_t bytes;
    const char *file; /* for error texts */
};

/* `path`: a folder or a .gguf file (of a split one any part). */
struct checkpoint *checkpoint_open(const char *path, struct err *err);
/* A folder of which only config.json need be there. It has no tensors; model_plan takes those that the configuration
 * asks for as given. For planning what cannot be, or is not yet, on this machine; model_load refuses it. */
struct checkpoint *checkpoint_open_shape(const char *dir, struct err *err);
bool checkpoint_is_shape(const struct checkpoint *c);
void checkpoint_close(struct checkpoint *c);
enum checkpoint_kind checkpoint_kind(const struct checkpoint *c);
size_t checkpoint_n_tensors(const struct checkpoint *c);
const struct tensor *checkpoint_tensor_at(const struct checkpoint *c, size_t index);
/* NULL when there is none. */
const struct tensor *checkpoint_tensor(const struct checkpoint *c, struct str name);
uint64_t checkpoint_n_parameters(const struct checkpoint *c);
/* False where a file was written or cut in place since it was opened (ERR_IO): what was read may be half old, half new. A file
 * that was replaced by rename does not count: the old one stays mapped. */
bool checkpoint_is_unchanged(const struct checkpoint *c, struct err *err);
/* Drops the pages of what was read from memory (madvise), so that a load's peak stays near the packed size. */
void checkpoint_forget(const struct checkpoint *c, const struct tensor *t);
/* The same for `bytes` of its data from `at` on. */
void checkpoint_forget_part(const struct checkpoint *c, const struct tensor *t, size_t at, size_t bytes);

/* Folder: the bytes of a small file ("config.json", "tokenizer.json"); len 0 when absent. Mapped or read, owned by c.
 * Over CHECKPOINT_FILE_BYTES_MAX: ERR_MODEL_DAMAGED. GGUF: always absent. */
bool checkpoint_file(struct checkpoint *c, const char *name, struct str *out, struct err *err);

/* GGUF metadata. */
enum gguf_kind { GGUF_NONE, GGUF_UINT, GGUF_INT, GGUF_FLOAT, GGUF_BOOL, GGUF_STRING, GGUF_ARRAY };
struct gguf_value {
    enum gguf_kind kind; /* of the value; of the elements in `element` for arrays */
    uint64_t u;
    int64_t i;
    double f;
    struct str s;
    enum gguf_kind element;
    size_t n;
    const void *array; /* opaque: gguf_array_* */
};
bool checkpoint_meta(const struct checkpoint *c, const char *key, struct gguf_value *out);
bool checkpoint_meta_uint(const struct checkpoint *c, const char *key, uint64_t *out);
bool checkpoint_meta_bool(const struct checkpoint *c, const char *key, int *out);
bool checkpoint_meta_str(const struct checkpoint *c, const char *key, struct str *out);
/* Fill caller's arrays of n elements; false when the key is absent, of another kind, or of another length. */
bool checkpoint_meta_str_array(const struct checkpoint *c, const char *key, struct str *out, size_t n);
bool checkpoint_meta_f32_array(const struct checkpoint *c, const char *key, float *out, size_t n);
bool checkpoint_meta_i32_array(const struct checkpoint *c, const char *key, int32_t *out, size_t n);

#endif

/* What checkpoint.c, safetensors.c and gguf.c share; nobody else includes this (tests do, for checkpoint_open_memory).
 *
 * Invariant: a tensor is added only after its type, its dimensions and its byte range were checked against the length
 * of its file, so that readers need no checks. Texts of errors show names from files through checkpoint_show.
 */
#ifndef INFERD_MODEL_CHECKPOINT_IMPL_H
#define INFERD_MODEL_CHECKPOINT_IMPL_H

#include "base/map.h"
#include "model/checkpoint.h"

#include <pthread.h>

#define CHECKPOINT_SHOW_BYTES 160 /* of a name inside an error text */

struct checkpoint_mapping {
    char *path;
    const char *label; /* last two parts of the path, for texts */
    const unsigned char *bytes;
    size_t len;
    int64_t mtime_ns;
    uint64_t device, inode;
    bool mapped;           /* false: the bytes are the caller's */
    unsigned char *header; /* GGUF: a copy of what is in front of the data */
};

struct gguf_entry {
    struct str key; /* into the copy of the header */
    uint32_t type;  /* of the value, as the file numbers types */
    uint32_t element;
    uint64_t n;              /* 1 for scalars */
    const unsigned char *at; /* first value; strings: their length field */
};

struct checkpoint_text {
    char *name, *bytes;
    size_t len;
    struct checkpoint_text *next;
};

struct checkpoint {
    enum checkpoint_kind kind;
    bool is_shape; /* no tensors: only the configuration is there */
    char *dir;     /* of CHECKPOINT_HF, else NULL */
    struct checkpoint_mapping *files;
    size_t n_files, cap_files;
    struct tensor *tensors;
    size_t n_tensors, cap_tensors;
    struct map tensor_by_name;
    struct gguf_entry *entries;
    size_t n_entries;
    struct map entry_by_key;
    pthread_mutex_t texts_lock; /* of `texts`, which are read when somebody asks for them */
    struct checkpoint_text *texts;
    uint64_t n_parameters;
};

/* Maps a file whole and appends it to c->files. Not there: ERR_MODEL_NOT_FOUND. */
bool checkpoint_map(struct checkpoint *c, const char *path, struct err *err);

/* Appends `t`, taking over t->name.ptr where c->kind is CHECKPOINT_HF (freed on failure too). `t->file` is set from
 * `file`. Refuses names that are there already. */
bool checkpoint_add_tensor(struct checkpoint *c, struct tensor *t, size_t file, struct err *err);

/* Tensors [first, n_tensors) lie in one file: refuses two that share bytes. `begin` .. `end` must be covered without
 * gaps where `gaps` is CHECKPOINT_GAPS_REFUSED. */
enum checkpoint_gaps { CHECKPOINT_GAPS_ALLOWED, CHECKPOINT_GAPS_REFUSED };
bool checkpoint_check_ranges(const struct checkpoint *c, size_t first, size_t file, const unsigned char *begin,
                             enum checkpoint_gaps gaps, struct err *err);

/* Product of dims; false on overflow. */
bool checkpoint_elements(const size_t *dims, unsigned n_dims, size_t *out);

/* A copy of `s` fit for an error text: printable, cut, NUL-terminated. Returns `out`. */
const char *checkpoint_show(struct str s, char out[CHECKPOINT_SHOW_BYTES]);

/* True for a file name without a folder in it: not empty, no '/', not starting with '.'. */
bool checkpoint_plain_name(struct str name);

/* `dir`/`name` on the heap, NULL when memory is short. */
char *checkpoint_path(const char *dir, const char *name);

/* "stem-00002-of-00005.suffix": fills the stem's length, the number (from 1) and the count. */
bool checkpoint_split_name(struct str name, struct str suffix, size_t *stem_len, unsigned *number, unsigned *count);

/* Parses file `index` of c->files and adds its tensors. `weight_map` (may be NULL): of a tensor that the map puts in
 * another shard the copy here is passed over. */
bool safetensors_parse(struct checkpoint *c, size_t index, const json_t *weight_map, struct err *err);
/* c->dir: opens model.safetensors, or the shards of its index, or all *.safetensors. */
bool safetensors_open(struct checkpoint *c, struct err *err);

/* Parses file `index`; metadata is kept from file 0 only. */
bool gguf_parse(struct checkpoint *c, size_t index, struct err *err);
/* Opens a GGUF file and, where its name says so, the other parts. */
bool gguf_open(struct checkpoint *c, const char *path, struct err *err);

/* A checkpoint of one file that lies in the caller's memory until checkpoint_close. */
struct checkpoint *checkpoint_open_memory(enum checkpoint_kind kind, const void *bytes, size_t len, struct err *err);

#endif

/* Which models a folder of models holds, told by names alone: nothing is parsed, so a damaged model is listed and fails
 * when it is opened. A model is
 *   DIR/name/        with config.json and at least one *.safetensors           id "name"
 *   DIR/name/        with one GGUF model, whole or split                        id "name"
 *   DIR/name/...     with several GGUF models, each of them                     id "name/stem"
 *   DIR/stem.gguf    or the parts DIR/stem-0000K-of-0000N.gguf together         id "stem"
 * Names that start with '.' and projectors (mmproj*.gguf) are passed over. Where a folder and a file have one id, the
 * folder has it and the file is listed as "stem.gguf".
 *
 * Thread: pure functions of the file system. Memory: the caller releases what it got.
 */
#ifndef INFERD_MODEL_CATALOG_H
#define INFERD_MODEL_CATALOG_H

#include "base/err.h"
#include "base/str.h"
#include "model/checkpoint.h"

#define CATALOG_ENTRIES_MAX 4096

struct catalog_entry {
    char *id;
    char *path; /* for checkpoint_open */
    enum checkpoint_kind kind;
    uint64_t bytes; /* of all its files, links followed */
    int64_t mtime;  /* Unix seconds, of its newest file */
};

struct catalog {
    struct catalog_entry *entries; /* by id, ascending */
    size_t n;
    size_t n_left_out; /* over CATALOG_ENTRIES_MAX */
};

/* Fails only where the folder itself cannot be read or memory is short; `out` is then empty. */
bool catalog_scan(const char *models_dir, struct catalog *out, struct err *err);
void catalog_release(struct catalog *c);
/* NULL when there is none. */
const struct catalog_entry *catalog_get(const struct catalog *c, struct str id);
/* By a file's path as seen from the folder: "stem.gguf", "name/stem.gguf", any part of a split model. NULL when there is none. */
const struct catalog_entry *catalog_get_file(const struct catalog *c, struct str file);

void catalog_entry_release(struct catalog_entry *e);

#endif

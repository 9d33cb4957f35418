/* Model names -> files on this disk: aliases, the models folder, the hub's cache. In this order:
 *   1. an alias of aliases.json  2. a model of the models folder  3. a shipped alias  4. a reference into the hub's cache
 * ":latest" at the end of a name says nothing and is dropped; of the models folder the file's name and path do too. Thread: any. */
#ifndef INFERD_SERVE_NAMES_H
#define INFERD_SERVE_NAMES_H

#include "model/catalog.h"
#include "serve/aliases.h"

struct names;

/* Both strings are borrowed. A hub configuration that makes no sense fails. */
struct names *names_open(const char *models_dir, const char *data_dir, struct err *err);
void names_close(struct names *n);
struct aliases *names_aliases(struct names *n);

/* The model that `name` stands for; out->id is the name that it is known by in lists, whatever it was asked as. Release
 * with catalog_entry_release. ERR_MODEL_NOT_FOUND says how to get it. */
bool names_find(struct names *n, struct str name, struct catalog_entry *out, struct err *err);
/* Appends a JSON array of the aliases that stand for the model `id`; `all`: what names_list gave. */
void names_write_aliases(struct names *n, const struct catalog *all, const char *id, struct buf *out);
/* `e`, which names_find gave, lies in the hub's cache. What people put into the models folder themselves is refused. */
bool names_removable(const struct names *n, const struct catalog_entry *e, struct err *err);
/* Removes such a one. */
bool names_remove(struct names *n, const struct catalog_entry *e, uint64_t *bytes_freed, struct err *err);
/* All that are there, by id. Release with catalog_release. */
bool names_list(struct names *n, struct catalog *out, struct err *err);

#endif

/* Short names for models: shipped ones, and those of DATA_DIR/aliases.json, which is read again when it changes.
 *
 *   {"short": "org/name", "other": {"model": "org/name:Q4_K_M"}}
 *
 * An entry of the file goes before a shipped one of the same name. An alias may name an alias; what leads into a circle
 * or is a longer chain than ALIAS_CHAIN_MAX, and an entry that is not of the form above, is reported and ignored. A file that is no JSON object changes nothing.
 *
 * Thread: any; aliases_refresh from one thread (main, about once a second).
 */
#ifndef INFERD_SERVE_ALIASES_H
#define INFERD_SERVE_ALIASES_H

#include "base/buf.h"
#include "base/err.h"

#define ALIAS_BYTES_MAX    512 /* a name, or what it stands for, with its NUL */
#define ALIASES_MAX        4096
#define ALIAS_CHAIN_MAX    16
#define ALIASES_FILE_BYTES ((size_t)4 << 20)
#define ALIAS_PROBLEMS_MAX 16

struct aliases;

struct aliases *aliases_open(const char *data_dir, struct err *err);
void aliases_close(struct aliases *a);

enum aliases_when { ALIASES_IF_CHANGED, ALIASES_NOW };
/* Reads the file again; logs what changed and what is wrong. */
void aliases_refresh(struct aliases *a, enum aliases_when when);

enum alias_origin { ALIAS_NONE, ALIAS_SHIPPED, ALIAS_FILE };
/* What `name` stands for in the end, to `out`; ALIAS_NONE: it is no alias, `out` is the name itself ("" where that is
 * too long). */
enum alias_origin aliases_resolve(struct aliases *a, struct str name, char out[static ALIAS_BYTES_MAX]);
/* Where the aliases of the file end that begin at `name`, shipped ones left out; `name` itself where it is none of them, ""
 * where that is too long or has a NUL. */
void aliases_of_file(struct aliases *a, struct str name, char out[static ALIAS_BYTES_MAX]);
/* Calls fn for every alias: its name, where aliases_of_file has it end, where aliases_resolve does. It keeps nothing of that and
 * calls nothing of this header. */
typedef void (*aliases_fn)(void *arg, const char *name, const char *own_end, const char *end);
void aliases_each(struct aliases *a, aliases_fn fn, void *arg);
/* Appends a JSON array of what is wrong with the file: [] when nothing is. */
void aliases_write_problems(struct aliases *a, struct buf *out);

#endif

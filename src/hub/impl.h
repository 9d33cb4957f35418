/* Inside the hub folder only: what its files tell each other. No file but fetch.c knows libcurl, none but reply.c the
 * JSON library, none but digest.c the crypto library. */
#ifndef INFERD_HUB_IMPL_H
#define INFERD_HUB_IMPL_H

#include "base/buf.h"
#include "base/str.h"
#include "hub/hub.h"

#define HUB_REPLY_BYTES_MAX ((size_t)64 << 20) /* of one JSON reply */
#define HUB_TREE_PAGES_MAX  1024
#define HUB_PLAN_FILES_MAX  4096 /* files that one model needs */
#define HUB_FILE_SIZE_MAX   ((uint64_t)1 << 50)
#define HUB_SIZE_UNKNOWN    UINT64_MAX

/* ---- ref.c: names that come from outside ------------------------------------------------------------------------------- */

/* 40 lower- or upper-case hexadecimal digits. */
bool hub_is_commit(const char *text);
bool hub_is_sha256(const char *text);
/* Safe below a folder of ours: relative, no empty, "." or ".." component, no control character, within the limits. */
bool hub_path_valid(struct str path);
/* ETag header -> name of a blob: without W/ and quotes. False when it is no safe file name. */
bool hub_etag_normalize(struct str header, char out[HUB_ETAG_BYTES_MAX]);
/* Appends percent-encoded; '/' stays where keep_slash is HUB_KEEP_SLASH. */
enum hub_slash { HUB_ESCAPE_SLASH, HUB_KEEP_SLASH };
void hub_url_escape(struct buf *out, struct str text, enum hub_slash slash);

/* ---- listings: reply.c ----------------------------------------------------------------------------------------------------- */

struct hub_entry {
    char *path;                    /* heap */
    uint64_t size;                 /* or HUB_SIZE_UNKNOWN */
    char etag[HUB_ETAG_BYTES_MAX]; /* the blob's name: sha256 of LFS files, git's sha1 of others; "" = not told */
    char sha256[65];               /* "" = not told */
};

struct hub_listing {
    char commit[HUB_COMMIT_BYTES];
    unsigned gated; /* the hub says that one must ask for access */
    struct hub_entry *items;
    size_t n_items, cap;
};

void hub_listing_release(struct hub_listing *l);
/* Adds a zeroed entry; NULL when memory or HUB_FILES_MAX is spent (err says which). */
struct hub_entry *hub_listing_add(struct hub_listing *l, struct str path, struct err *err);
/* Reply to /api/models/{id}/revision/{revision}: commit, gated, siblings. Entries with unsafe paths are an error. */
bool reply_parse_info(struct str json, struct hub_listing *out, struct err *err);
/* One page of /api/models/{id}/tree/{commit}: appends its files. */
bool reply_parse_tree(struct str json, struct hub_listing *out, struct err *err);
/* The "error" of a JSON error body into `out` (NUL-ended, cut); "" when there is none. */
void reply_parse_error(struct str json, char *out, size_t out_bytes);
/* Names of the shards that an index file ("weight_map") maps to, each once, NUL-ended heap strings. */
bool reply_parse_index(struct str json, char ***names, size_t *n_names, struct err *err);
/* Header values. */
bool reply_parse_link_next(struct str value, char *out, size_t out_bytes);
/* "12" or an HTTP date, against wall_s; -1 = neither. */
int64_t reply_parse_retry_after(struct str value, int64_t wall_s);
/* `"api";r=0;t=55` -> 55 when r is 0, else -1. */
int64_t reply_parse_ratelimit(struct str value);
/* "bytes 0-99/1234"; total HUB_SIZE_UNKNOWN for "*". */
bool reply_parse_content_range(struct str value, uint64_t *begin, uint64_t *end, uint64_t *total);
bool reply_parse_u64(struct str value, uint64_t *out);

/* ---- plan.c: which files of a listing are needed; pure ------------------------------------------------------------------- */

struct hub_plan {
    size_t *index; /* into the listing: configs and tokenizer first, then weights in order */
    size_t n;
    char entry[HUB_PATH_BYTES_MAX];
    char quant[HUB_QUANT_BYTES_MAX]; /* chosen, of a GGUF plan */
};

bool plan_make(const struct hub_listing *l, const char *repo, const char *quant, struct hub_plan *out, struct err *err);
void plan_release(struct hub_plan *p);
/* The quantization that a GGUF file's name tells ("Q4_K_M"), upper case; false when none. */
bool plan_gguf_quant(const char *path, char out[HUB_QUANT_BYTES_MAX]);
/* "x-00002-of-00005.gguf" -> 2, 5 and the length of "x"; false when the name is of no split file. */
bool plan_split_name(const char *path, const char *suffix, unsigned *part, unsigned *n_parts, size_t *stem_len);

/* ---- digest.c: the hash that a blob is named by ---------------------------------------------------------------------------- */

enum digest_kind { DIGEST_NONE, DIGEST_SHA256, DIGEST_GIT_SHA1 };
struct digest;
/* By the length of a hexadecimal hash: 64 digits, 40, else NONE. */
enum digest_kind digest_kind_of(const char *hash);
struct digest *digest_new(enum digest_kind kind, uint64_t size, struct err *err);
bool digest_add(struct digest *d, const void *bytes, size_t len, struct err *err);
/* Lower-case hexadecimal into `got`; `same` tells whether it is `want` (any case). For GIT_SHA1 the plain sha1 of the
 * bytes will do too: mirrors that keep no git tell that. The digest is spent after it. */
bool digest_end(struct digest *d, const char *want, char got[65], bool *same, struct err *err);
void digest_free(struct digest *d);

/* ---- cache.c: the layout ------------------------------------------------------------------------------------------------------ */

struct cache_repo { /* folders of one repository */
    char cache_dir[HUB_DIR_BYTES_MAX];
    char dir[HUB_DIR_BYTES_MAX];
    char name[HUB_REPO_BYTES_MAX + 32]; /* models--org--name */
};

bool cache_repo_init(struct cache_repo *c, const char *cache_dir, const char *repo, struct err *err);
/* Joined paths into `out` (HUB_DIR_BYTES_MAX); false with err when too long. */
bool cache_path(const struct cache_repo *c, char *out, struct err *err, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
bool cache_make_dirs(const char *path, struct err *err); /* the folder and those above it */
bool cache_make_parent(const char *path, struct err *err);
/* Reads a small file whole (at most bytes_max). False when absent or larger, errno told. */
bool cache_read(const char *path, size_t bytes_max, struct buf *out);
/* The commit that `revision` means on this disk; false when it is not known. */
bool cache_ref_read(const struct cache_repo *c, const char *revision, char commit[HUB_COMMIT_BYTES]);
bool cache_ref_write(const struct cache_repo *c, const char *revision, const char *commit, struct err *err);
/* True when the snapshot shows `path` with that size (or of any size for HUB_SIZE_UNKNOWN). */
bool cache_has_file(const struct cache_repo *c, const char *commit, const char *path, uint64_t size);
bool cache_has_blob(const struct cache_repo *c, const char *etag, uint64_t size);
/* flock on .locks/<repo>/<etag>.lock: the descriptor, -1 when another holds it, -2 with err when it cannot be had. */
int cache_lock(const struct cache_repo *c, const char *etag, struct err *err);
/* The same for the repository as a whole: whoever pulls shares it, from the first look at what is there until the snapshot
 * shows all of it; whoever removes has it alone. So nothing that a pull found or brought goes before the pull has ended. */
#define CACHE_REPO_LOCK "inferd.repository"
enum cache_use { CACHE_PULLS, CACHE_REMOVES };
int cache_lock_repo(const struct cache_repo *c, enum cache_use use, struct err *err);
/* Makes what the snapshot shows: symlinks for n files, all at once where the snapshot is new. */
struct cache_link {
    const char *path, *etag;
};
bool cache_publish(const struct cache_repo *c, const char *commit, const struct cache_link *links, size_t n, struct err *err);
bool cache_sync_dir(const char *path, struct err *err);
/* Bytes that this process may still write at `path`; HUB_SIZE_UNKNOWN when the system does not tell. */
uint64_t cache_bytes_free(const char *path);
/* Lists the files that snapshots/<commit> shows. */
bool cache_listing(const struct cache_repo *c, const char *commit, struct hub_listing *out, struct err *err);
/* All that `ref` needs is there: fills snapshot and (when not NULL) the listing and the plan. */
bool cache_find(const struct cache_repo *c, const struct hub_ref *ref, struct hub_snapshot *out, struct hub_listing *listing,
                struct hub_plan *plan, struct err *err);

#endif

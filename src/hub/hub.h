/* The hub: model ids -> verified files on disk, in Hugging Face's own cache layout.
 *
 *   struct hub        configuration, the bandwidth cap that all pulls share, the list of running pulls
 *   struct hub_pull   one pull of one reference, on a thread of its own:
 *
 *       RESOLVING --> RUNNING --> COMPLETED        RESOLVING: commit, list of files, plan, size and etag of each
 *           |            |                         RUNNING:   bytes arrive, are journalled, hashed, renamed into blobs/
 *           +-----+------+---> FAILED, CANCELLED   COMPLETED: symlinks in snapshots/, then refs/
 *
 * Invariant: what blobs/ holds under an etag is whole and has that hash; what snapshots/ holds points to such blobs, all
 * of the plan or (where the folder is new) nothing. A process that is killed loses at most HUB_LATE_MS of bytes,
 * a system that crashes HUB_JOURNAL_MS.
 * Partial data lies in blobs/<etag>.inferd.incomplete beside its journal (journal.h) and is taken up by the next pull.
 * Threads: any thread may call; a pull's callback runs on the pull's thread. Memory: open/close, start/unref, and
 * release for what a call fills. The folder never logs; errors name the repository and say what to do.
 */
#ifndef INFERD_HUB_HUB_H
#define INFERD_HUB_HUB_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

#define HUB_REPO_BYTES_MAX     128 /* "org/name" (the hub's own limit is 96) */
#define HUB_REVISION_BYTES_MAX 256
#define HUB_QUANT_BYTES_MAX    48 /* "Q4_K_M" */
#define HUB_COMMIT_BYTES       41 /* 40 hexadecimal digits and NUL */
#define HUB_ETAG_BYTES_MAX     136
#define HUB_PATH_BYTES_MAX     1024  /* of a file inside its repository */
#define HUB_DIR_BYTES_MAX      4096  /* of a path on disk */
#define HUB_URL_BYTES_MAX      8192  /* signed CDN addresses are long */
#define HUB_FILES_MAX          65536 /* files of one repository */
#define HUB_CONNECTIONS_MAX    64

/* ---- references ------------------------------------------------------------------------------------------------------ */

struct hub_ref {
    char repo[HUB_REPO_BYTES_MAX];
    char quant[HUB_QUANT_BYTES_MAX];       /* "" = choose */
    char revision[HUB_REVISION_BYTES_MAX]; /* branch, tag, refs/pr/1 or commit; "main" when not named */
};

/* Reads "[hf.co/]org/name[:QUANT][@REVISION]" ("https://huggingface.co/..." and "hf://" too; ":latest" is no
 * quantization). ERR_INVALID_REQUEST names the text and the rule that it breaks. */
bool hub_ref_parse(const char *text, struct hub_ref *out, struct err *err);
/* Writes it back; `out` has room for HUB_REF_TEXT_BYTES. "@main" is left out. */
#define HUB_REF_TEXT_BYTES (HUB_REPO_BYTES_MAX + HUB_QUANT_BYTES_MAX + HUB_REVISION_BYTES_MAX)
void hub_ref_format(const struct hub_ref *ref, char *out);

/* ---- configuration --------------------------------------------------------------------------------------------------- */

enum hub_reach { HUB_ONLINE, HUB_OFFLINE };

struct hub_config {
    char cache_dir[HUB_DIR_BYTES_MAX];
    char endpoint[1024];        /* "https://huggingface.co", no slash at the end */
    char token[512];            /* "" = none; never sent to another origin than the endpoint's */
    enum hub_reach reach;       /* OFFLINE: nothing is asked, only the cache serves */
    uint64_t connect_ms;        /* to make a connection */
    uint64_t stall_ms;          /* without a byte: the connection is made anew */
    uint64_t rate_max;          /* bytes per second of all pulls together; 0 = no cap */
    uint64_t part_bytes;        /* smallest range that is worth a connection of its own */
    unsigned connections_max;   /* of one pull; at most HUB_CONNECTIONS_MAX */
    unsigned files_max;         /* of one pull, at once */
    unsigned attempts_max;      /* failures in a row, without a byte between them, that a file may have */
    uint64_t backoff_ms;        /* before the second attempt; doubles, with jitter */
    uint64_t retry_after_s_max; /* longer waits that a server asks for are an error */
};

#define HUB_CONNECT_MS        10000
#define HUB_STALL_MS          20000
#define HUB_PART_BYTES        ((uint64_t)4 << 20)
#define HUB_CONNECTIONS       8
#define HUB_FILES             4
#define HUB_ATTEMPTS          6
#define HUB_BACKOFF_MS        400
#define HUB_BACKOFF_MS_MAX    8000
#define HUB_RETRY_AFTER_S_MAX 300
#define HUB_JOURNAL_MS        1000 /* between two syncs of a file and its journal */
#define HUB_LATE_MS           20   /* between two late journals, which outlive the process and not the system */
#define HUB_PROGRESS_MS       250  /* between two progress calls while bytes arrive */
#define HUB_MISMATCHES_MAX    3    /* times that a whole file may have the wrong hash */

/* Defaults, then the environment as huggingface_hub reads it: HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME,
 * XDG_CACHE_HOME, HF_ENDPOINT, HF_TOKEN, HUGGING_FACE_HUB_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE.
 * (http_proxy, https_proxy, all_proxy, no_proxy are read when a connection is made.) */
bool hub_config_from_env(struct hub_config *out, struct err *err);

/* ---- pulls ------------------------------------------------------------------------------------------------------------- */

enum hub_pull_state { HUB_PULL_RESOLVING, HUB_PULL_RUNNING, HUB_PULL_COMPLETED, HUB_PULL_FAILED, HUB_PULL_CANCELLED };
enum hub_file_state { HUB_FILE_WAITING, HUB_FILE_RUNNING, HUB_FILE_CHECKING, HUB_FILE_DONE, HUB_FILE_FAILED };

/* "resolving", "running", ...; "waiting", ... Never NULL. */
const char *hub_pull_state_name(enum hub_pull_state state);
const char *hub_file_state_name(enum hub_file_state state);

struct hub_file_progress {
    char path[HUB_PATH_BYTES_MAX]; /* inside the repository */
    char etag[HUB_ETAG_BYTES_MAX];
    char sha256[65]; /* "" for files that git holds itself (their etag is git's sha1 of the blob) */
    uint64_t bytes_total;
    uint64_t bytes_done; /* on disk; falls only when a wrong hash sends the file back to its start */
    enum hub_file_state state;
};

struct hub_progress {
    enum hub_pull_state state;
    double fraction;        /* 0..1, never falls; 1 exactly when COMPLETED */
    uint64_t bytes_done;    /* never falls */
    uint64_t bytes_total;   /* 0 while RESOLVING */
    uint64_t bytes_fetched; /* over the network by this pull */
    double bytes_per_s;     /* over the last seconds */
    double eta_s;           /* -1 = not known */
    uint64_t n_retries;
    char commit[HUB_COMMIT_BYTES];
    char waiting_for[256];                 /* why nothing moves ("the hub asks to wait 12 s"), else "" */
    char snapshot_dir[HUB_DIR_BYTES_MAX];  /* when COMPLETED */
    char entry[HUB_PATH_BYTES_MAX];        /* when COMPLETED: what to load, inside snapshot_dir: a .gguf file (the first
                                             of a split model), or "" for the folder */
    struct err err;                        /* when FAILED or CANCELLED */
    const struct hub_file_progress *files; /* valid during the call; of a copy until hub_progress_release */
    size_t n_files;
};

struct hub;
struct hub_pull;

/* Called on the pull's thread at every change of state and every HUB_PROGRESS_MS at most; must not block for long. The
 * last call has a final state. */
typedef void hub_progress_fn(void *user, const struct hub_progress *progress);

/* Makes the cache folder when it is not there. `config` is copied. */
struct hub *hub_open(const struct hub_config *config, struct err *err);
/* Cancels every pull, waits for their threads. Handles that were not given back stay valid to unref. */
void hub_close(struct hub *hub);

/* Starts a pull; the caller owns one reference. `progress` may be NULL. */
struct hub_pull *hub_pull_start(struct hub *hub, const struct hub_ref *ref, hub_progress_fn *progress, void *user,
                                struct err *err);
/* Asks it to end; partial data stays for the next pull. Returns at once. */
void hub_pull_cancel(struct hub_pull *pull);
/* Waits for a final state up to wait_ms (-1: for ever). False when it is not reached. */
bool hub_pull_wait(struct hub_pull *pull, int wait_ms);
/* A copy of what the callback last got. hub_progress_release frees its files. */
bool hub_pull_progress(struct hub_pull *pull, struct hub_progress *out, struct err *err);
void hub_progress_release(struct hub_progress *progress);
/* Gives the caller's reference back; a running pull goes on until hub_close. */
void hub_pull_unref(struct hub_pull *pull);

/* ---- the cache on disk --------------------------------------------------------------------------------------------------
 * <cache_dir>/models--org--name/{blobs/<etag>, refs/<revision>, snapshots/<commit>/<path> -> ../../blobs/<etag>}
 * <cache_dir>/.locks/models--org--name/<etag>.lock (flock, as huggingface_hub) */

struct hub_cached {
    char repo[HUB_REPO_BYTES_MAX];
    char commit[HUB_COMMIT_BYTES];
    char revision[HUB_REVISION_BYTES_MAX]; /* a ref that points here ("main" where it does), else "" */
    char snapshot_dir[HUB_DIR_BYTES_MAX];
    char quants[256]; /* of the GGUF models in it, comma-separated; "" = none */
    size_t n_files;
    uint64_t bytes;         /* of the files that this snapshot shows */
    int64_t changed_s;      /* Unix time of the newest file */
    uint64_t bytes_partial; /* of unfinished transfers of the repository */
    unsigned complete;      /* 1 = all that a plan needs is there */
};

struct hub_cache_list {
    struct hub_cached *items; /* ordered by repository, then newest first */
    size_t n_items;
};

/* Every snapshot of every model repository; a folder that is not of the layout is skipped. */
bool hub_cache_list(const char *cache_dir, struct hub_cache_list *out, struct err *err);
void hub_cache_list_release(struct hub_cache_list *list);

struct hub_snapshot {
    char commit[HUB_COMMIT_BYTES];
    char dir[HUB_DIR_BYTES_MAX];
    char entry[HUB_PATH_BYTES_MAX]; /* as in hub_progress */
    uint64_t bytes;                 /* of the plan's files */
};

/* What `ref` is on this disk, whoever fetched it; asks no network. ERR_MODEL_NOT_FOUND says what is missing. */
bool hub_cache_find(const char *cache_dir, const struct hub_ref *ref, struct hub_snapshot *out, struct err *err);

/* Removes the repository; with a quantization only its files; with a revision other than "main" only that snapshot. Blobs
 * that another snapshot shows stay. `bytes_freed` may be NULL. ERR_CONFLICT while a transfer holds one of its locks. */
bool hub_cache_remove(const char *cache_dir, const struct hub_ref *ref, uint64_t *bytes_freed, struct err *err);

/* Called per file before it is read (`bytes` = its size); returns false to stop. */
typedef bool hub_verify_fn(void *user, const char *path, uint64_t bytes);
/* Reads every file of the snapshot and compares it with the hash that its blob is named by. ERR_MODEL_DAMAGED names the
 * files that differ; ERR_CANCELLED when `each` (may be NULL) stopped it. */
bool hub_cache_verify(const char *cache_dir, const struct hub_ref *ref, hub_verify_fn *each, void *user, struct err *err);

#endif

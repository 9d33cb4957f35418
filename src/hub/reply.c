/* What a hub answers, read: JSON bodies and the headers with a grammar. Input is hostile: a path that would leave its
 * folder, a size over any disk or a hash that is none makes the whole reply an error. */
#include "hub/impl.h"

#include <ctype.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <time.h>

void hub_listing_release(struct hub_listing *l)
{
    for (size_t i = 0; i < l->n_items; i++)
        free(l->items[i].path);
    free(l->items);
    *l = (struct hub_listing){0};
}

struct hub_entry *hub_listing_add(struct hub_listing *l, struct str path, struct err *err)
{
    if (l->n_items >= HUB_FILES_MAX) {
        err_set(err, ERR_UNSUPPORTED, "the repository has more than %d files", HUB_FILES_MAX);
        return NULL;
    }
    if (l->n_items == l->cap) {
        size_t cap = l->cap ? 2 * l->cap : 64;
        struct hub_entry *items = realloc(l->items, cap * sizeof *items);
        if (!items) {
            err_set(err, ERR_MEMORY, "no memory for the list of %zu files", cap);
            return NULL;
        }
        l->items = items;
        l->cap = cap;
    }
    char *copy = str_dup(path);
    if (!copy) {
        err_set(err, ERR_MEMORY, "no memory for a file's name of %zu bytes", path.len);
        return NULL;
    }
    struct hub_entry *e = &l->items[l->n_items++];
    *e = (struct hub_entry){.path = copy, .size = HUB_SIZE_UNKNOWN};
    return e;
}

static json_t *load(struct str json, enum err_code code, const char *what, struct err *err)
{
    json_error_t at;
    json_t *root = json_loadb(json.ptr, json.len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &at);
    if (!root)
        err_set(err, code, "%s is no JSON (%.200s at byte %d of %zu)", what, at.text, at.position, json.len);
    return root;
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));
    return s ? s : "";
}

static bool read_size(const json_t *value, const char *path, uint64_t *out, struct err *err)
{
    if (!json_is_integer(value))
        return true;
    json_int_t v = json_integer_value(value);
    if (v < 0 || (uint64_t)v > HUB_FILE_SIZE_MAX)
        return err_set(err, ERR_UNAVAILABLE, "the hub says that '%.200s' has %lld bytes, which no file has", path,
                       (long long)v);
    *out = (uint64_t)v;
    return true;
}

/* `lfs` holds oid (tree) or sha256 (siblings) and the size of the real file; `git_id` is git's name of the blob. */
static bool read_entry(struct hub_listing *l, const char *path, const json_t *size, const char *git_id, const json_t *lfs,
                       struct err *err)
{
    if (!hub_path_valid(str_from(path)))
        return err_set(err, ERR_UNAVAILABLE, "the hub lists a file named '%.200s', which is not safe to write", path);
    struct hub_entry *e = hub_listing_add(l, str_from(path), err);
    if (!e || !read_size(size, path, &e->size, err))
        return false;
    if (json_is_object(lfs)) {
        const char *oid = text_of(lfs, "oid")[0] ? text_of(lfs, "oid") : text_of(lfs, "sha256");
        oid += strncmp(oid, "sha256:", 7) == 0 ? 7 : 0;
        if (hub_is_sha256(oid)) {
            snprintf(e->etag, sizeof e->etag, "%s", oid);
            snprintf(e->sha256, sizeof e->sha256, "%s", oid);
        }
        return read_size(json_object_get(lfs, "size"), path, &e->size, err);
    }
    if (hub_is_commit(git_id))
        snprintf(e->etag, sizeof e->etag, "%s", git_id);
    return true;
}

static bool read_siblings(const json_t *siblings, struct hub_listing *out, struct err *err)
{
    size_t i;
    json_t *s;
    json_array_foreach(siblings, i, s)
    {
        if (!json_is_object(s))
            continue;
        if (!read_entry(out, text_of(s, "rfilename"), json_object_get(s, "size"), text_of(s, "blobId"),
                        json_object_get(s, "lfs"), err))
            return false;
    }
    return true;
}

bool reply_parse_info(struct str json, struct hub_listing *out, struct err *err)
{
    json_t *root = load(json, ERR_UNAVAILABLE, "the hub's description of the repository", err);
    if (!root)
        return false;
    const char *sha = text_of(root, "sha");
    const json_t *gated = json_object_get(root, "gated");
    bool ok = json_is_object(root) || err_set(err, ERR_UNAVAILABLE, "the hub's description of the repository is no object");
    ok = ok && (hub_is_commit(sha) || err_set(err, ERR_UNAVAILABLE,
                                              "the hub's description of the repository names no "
                                              "commit (sha is '%.60s')",
                                              sha));
    if (ok) {
        for (size_t i = 0; i <= strlen(sha); i++)
            out->commit[i] = (char)tolower((unsigned char)sha[i]);
        out->gated = json_is_true(gated) || json_is_string(gated);
        ok = read_siblings(json_object_get(root, "siblings"), out, err);
    }
    json_decref(root);
    return ok;
}

bool reply_parse_tree(struct str json, struct hub_listing *out, struct err *err)
{
    json_t *root = load(json, ERR_UNAVAILABLE, "the hub's list of files", err);
    if (!root)
        return false;
    bool ok = json_is_array(root) || err_set(err, ERR_UNAVAILABLE, "the hub's list of files is no array");
    size_t i;
    json_t *f;
    if (ok) {
        json_array_foreach(root, i, f)
        {
            if (!json_is_object(f) || strcmp(text_of(f, "type"), "file") != 0)
                continue;
            ok = read_entry(out, text_of(f, "path"), json_object_get(f, "size"), text_of(f, "oid"), json_object_get(f, "lfs"),
                            err);
            if (!ok)
                break;
        }
    }
    json_decref(root);
    return ok;
}

void reply_parse_error(struct str json, char *out, size_t out_bytes)
{
    out[0] = 0;
    json_t *root = json_loadb(json.ptr, json.len, 0, NULL);
    snprintf(out, out_bytes, "%s", text_of(root, "error"));
    for (char *c = out; *c; c++)
        *c = (unsigned char)*c < 0x20 ? ' ' : *c;
    json_decref(root);
}

bool reply_parse_index(struct str json, char ***names, size_t *n_names, struct err *err)
{
    *names = NULL;
    *n_names = 0;
    json_t *root = load(json, ERR_MODEL_DAMAGED, "model.safetensors.index.json", err);
    if (!root)
        return false;
    const json_t *map = json_object_get(root, "weight_map");
    json_t *seen = json_object(), *value;
    const char *key;
    bool ok = (json_is_object(map) && seen) || err_set(err, ERR_MODEL_DAMAGED,
                                                       "model.safetensors.index.json has no "
                                                       "object 'weight_map'");
    json_object_foreach((json_t *)map, key, value)
    {
        const char *name = json_string_value(value);
        if (!ok || !name || json_object_get(seen, name))
            continue;
        if (!hub_path_valid(str_from(name)))
            ok = err_set(err, ERR_MODEL_DAMAGED, "model.safetensors.index.json names a file '%.200s', which is not safe", name);
        else
            json_object_set_new(seen, name, json_true());
    }
    if (ok && json_object_size(seen)) {
        *names = calloc(json_object_size(seen), sizeof **names);
        ok = *names || err_set(err, ERR_MEMORY, "no memory for the names of %zu shards", json_object_size(seen));
        json_object_foreach(seen, key, value)
        {
            if (ok && ((*names)[*n_names] = str_dup(str_from(key))))
                ++*n_names;
        }
    }
    json_decref(seen);
    json_decref(root);
    return ok;
}

/* ---- headers --------------------------------------------------------------------------------------------------------- */

/* Link: <https://hub/api/...?cursor=x>; rel="next", <...>; rel="last" */
bool reply_parse_link_next(struct str v, char *out, size_t out_bytes)
{
    while (v.len) {
        const char *open = memchr(v.ptr, '<', v.len);
        const char *close = open ? memchr(open, '>', (size_t)(v.ptr + v.len - open)) : NULL;
        if (!close)
            return false;
        struct str url = {open + 1, (size_t)(close - open - 1)};
        v = (struct str){close + 1, (size_t)(v.ptr + v.len - close - 1)};
        const char *end = memchr(v.ptr, '<', v.len);
        struct str params = {v.ptr, end ? (size_t)(end - v.ptr) : v.len};
        bool next = memmem(params.ptr, params.len, "rel=\"next\"", 10) || memmem(params.ptr, params.len, "rel=next", 8);
        if (next && url.len && url.len < out_bytes) {
            memcpy(out, url.ptr, url.len);
            out[url.len] = 0;
            return true;
        }
        v = (struct str){v.ptr + params.len, v.len - params.len};
    }
    return false;
}

bool reply_parse_u64(struct str v, uint64_t *out)
{
    uint64_t n = 0;
    if (v.len == 0 || v.len > 18)
        return false;
    for (size_t i = 0; i < v.len; i++) {
        if (!isdigit((unsigned char)v.ptr[i]))
            return false;
        n = 10 * n + (uint64_t)(v.ptr[i] - '0');
    }
    *out = n;
    return true;
}

int64_t reply_parse_retry_after(struct str v, int64_t wall_s)
{
    char text[64];
    uint64_t n;
    struct tm tm = {0};
    if (reply_parse_u64(v, &n))
        return n < (uint64_t)INT32_MAX ? (int64_t)n : INT32_MAX;
    if (v.len == 0 || v.len >= sizeof text)
        return -1;
    memcpy(text, v.ptr, v.len);
    text[v.len] = 0;
    const char *end = strptime(text, "%a, %d %b %Y %H:%M:%S", &tm);
    if (!end)
        return -1;
    int64_t at = (int64_t)timegm(&tm);
    return at > wall_s ? at - wall_s : 0;
}

int64_t reply_parse_ratelimit(struct str v)
{
    char text[128];
    unsigned long left, reset;
    if (v.len >= sizeof text)
        return -1;
    memcpy(text, v.ptr, v.len);
    text[v.len] = 0;
    const char *r = strstr(text, ";r="), *t = strstr(text, ";t=");
    if (!r || !t || !isdigit((unsigned char)r[3]) || !isdigit((unsigned char)t[3]) || sscanf(r, ";r=%9lu", &left) != 1 ||
        sscanf(t, ";t=%9lu", &reset) != 1 || left > 0)
        return -1;
    return (int64_t)reset;
}

bool reply_parse_content_range(struct str v, uint64_t *begin, uint64_t *end, uint64_t *total)
{
    if (v.len < 6 || strncasecmp(v.ptr, "bytes ", 6) != 0)
        return false;
    v = (struct str){v.ptr + 6, v.len - 6};
    const char *dash = memchr(v.ptr, '-', v.len), *slash = memchr(v.ptr, '/', v.len);
    if (!dash || !slash || dash > slash)
        return false;
    uint64_t last;
    struct str all = {slash + 1, (size_t)(v.ptr + v.len - slash - 1)};
    *total = HUB_SIZE_UNKNOWN;
    if (!reply_parse_u64((struct str){v.ptr, (size_t)(dash - v.ptr)}, begin) ||
        !reply_parse_u64((struct str){dash + 1, (size_t)(slash - dash - 1)}, &last) || last < *begin)
        return false;
    *end = last + 1;
    return str_equal(all, STR("*")) || (reply_parse_u64(all, total) && *end <= *total);
}

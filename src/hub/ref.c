/* References and other names from outside: what may become part of a path on disk or of an address is decided here. */
#include "hub/impl.h"

#include <ctype.h>
#include <stdio.h>
#include <strings.h>

#define REPO_CHARS_MAX      96 /* the hub's own limit */
#define COMPONENT_BYTES_MAX 255

static bool is_hex(const char *text, size_t len)
{
    if (strlen(text) != len)
        return false;
    for (size_t i = 0; i < len; i++) {
        if (!isxdigit((unsigned char)text[i]))
            return false;
    }
    return true;
}

bool hub_is_commit(const char *text)
{
    return is_hex(text, HUB_COMMIT_BYTES - 1);
}

bool hub_is_sha256(const char *text)
{
    return is_hex(text, 64);
}

static bool component_valid(struct str c)
{
    if (c.len == 0 || c.len > COMPONENT_BYTES_MAX || str_equal(c, STR(".")) || str_equal(c, STR("..")))
        return false;
    for (size_t i = 0; i < c.len; i++) {
        if ((unsigned char)c.ptr[i] < 0x20 || c.ptr[i] == 0x7f || c.ptr[i] == '\\')
            return false;
    }
    return true;
}

bool hub_path_valid(struct str path)
{
    if (path.len == 0 || path.len >= HUB_PATH_BYTES_MAX)
        return false;
    while (true) {
        const char *slash = memchr(path.ptr, '/', path.len);
        struct str head = {path.ptr, slash ? (size_t)(slash - path.ptr) : path.len};
        if (!component_valid(head))
            return false;
        if (!slash)
            return true;
        path = (struct str){slash + 1, path.len - head.len - 1};
    }
}

bool hub_etag_normalize(struct str e, char out[HUB_ETAG_BYTES_MAX])
{
    if (str_has_prefix(e, STR("W/")))
        e = (struct str){e.ptr + 2, e.len - 2};
    while (e.len && e.ptr[0] == '"')
        e = (struct str){e.ptr + 1, e.len - 1};
    while (e.len && e.ptr[e.len - 1] == '"')
        e.len--;
    if (e.len == 0 || e.len >= HUB_ETAG_BYTES_MAX || e.ptr[0] == '.')
        return false;
    for (size_t i = 0; i < e.len; i++) {
        if (!isalnum((unsigned char)e.ptr[i]) && (!e.ptr[i] || !strchr("-_.", e.ptr[i])))
            return false;
    }
    if (str_has_suffix(e, STR(".incomplete"))) /* names of what is on its way */
        return false;
    memcpy(out, e.ptr, e.len);
    out[e.len] = 0;
    return true;
}

void hub_url_escape(struct buf *out, struct str text, enum hub_slash slash)
{
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.ptr[i];
        if (isalnum(c) || (c && strchr("-_.~", c)) || (c == '/' && slash == HUB_KEEP_SLASH))
            buf_append_char(out, (char)c);
        else
            buf_printf(out, "%%%02X", c);
    }
}

/* The rules of huggingface_hub's validate_repo_id; NULL when they hold, else the one that does not. */
static const char *repo_fault(struct str r)
{
    if (r.len == 0)
        return "it is empty";
    if (r.len > REPO_CHARS_MAX)
        return "it has more than 96 characters";
    size_t n_slashes = 0;
    for (size_t i = 0; i < r.len; i++) {
        char c = r.ptr[i], next = i + 1 < r.len ? r.ptr[i + 1] : '/', before = i ? r.ptr[i - 1] : '/';
        if (c == '/') {
            n_slashes++;
            if (next == '/' || before == '/')
                return "a part of it is empty";
        } else if (!isalnum((unsigned char)c) && !strchr("-_.", c)) {
            return "only letters, digits, '-', '_', '.' and one '/' may be in it";
        } else if ((c == '-' || c == '.') && (c == next || next == '/' || before == '/')) {
            return "no part may begin or end with '-' or '.', nor have '--' or '..' in it";
        }
    }
    if (n_slashes > 1)
        return "more than one '/' is in it";
    return str_has_suffix(r, STR(".git")) ? "it ends with '.git'" : NULL;
}

static bool revision_valid(struct str r)
{
    return r.len < HUB_REVISION_BYTES_MAX && hub_path_valid(r) && !memchr(r.ptr, ' ', r.len) && !str_has_suffix(r, STR(".tmp"));
}

static bool quant_valid(struct str q)
{
    if (q.len >= HUB_QUANT_BYTES_MAX)
        return false;
    for (size_t i = 0; i < q.len; i++) {
        if (!isalnum((unsigned char)q.ptr[i]) && !strchr("-_.", q.ptr[i]))
            return false;
    }
    return true;
}

static struct str without_prefix(struct str s)
{
    static const char *const prefixes[] = {
        "https://huggingface.co/", "http://huggingface.co/", "https://hf.co/", "hf://", "huggingface.co/", "hf.co/", "models/"};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes;) {
        size_t n = strlen(prefixes[i]);
        bool has = str_has_prefix(s, str_from(prefixes[i]));
        s = has ? (struct str){s.ptr + n, s.len - n} : s;
        i = has ? 0 : i + 1; /* until none is left: what comes out means itself */
    }
    return s;
}

static void set(char *out, struct str s)
{
    memcpy(out, s.ptr, s.len);
    out[s.len] = 0;
}

bool hub_ref_parse(const char *text, struct hub_ref *out, struct err *err)
{
    struct str rest = without_prefix(str_from(text)), revision = STR("main"), quant = STR("");
    memset(out, 0, sizeof *out);
    const char *tree = memmem(rest.ptr, rest.len, "/tree/", 6);
    const char *at = memchr(rest.ptr, '@', rest.len);
    if (tree && at && at < tree)
        tree = NULL; /* of the revision's own name */
    if (tree || at) {
        const char *from = tree ? tree + 6 : at + 1;
        revision = (struct str){from, (size_t)(rest.ptr + rest.len - from)};
        rest.len = (size_t)((tree ? tree : at) - rest.ptr);
    }
    const char *colon = memchr(rest.ptr, ':', rest.len);
    if (colon) {
        quant = (struct str){colon + 1, (size_t)(rest.ptr + rest.len - colon - 1)};
        rest.len = (size_t)(colon - rest.ptr);
        if (quant.len == 6 && strncasecmp(quant.ptr, "latest", 6) == 0)
            quant.len = 0;
    }
    const char *fault = repo_fault(rest);
    if (fault)
        return err_set_param(err, ERR_INVALID_REQUEST, "model",
                             "'%.128s' is no repository of the hub (%s): write "
                             "org/name, org/name:QUANT or org/name@REVISION",
                             text, fault);
    if (!revision_valid(revision))
        return err_set_param(err, ERR_INVALID_REQUEST, "revision",
                             "'%.128s': the revision '%.*s' is no name of a branch, "
                             "tag or commit",
                             text, (int)(revision.len < 100 ? revision.len : 100), revision.ptr);
    if (!quant_valid(quant))
        return err_set_param(err, ERR_INVALID_REQUEST, "model",
                             "'%.128s': '%.*s' is no name of a quantization (as in "
                             "'Q4_K_M')",
                             text, (int)(quant.len < 100 ? quant.len : 100), quant.ptr);
    set(out->repo, rest);
    set(out->revision, revision);
    set(out->quant, quant);
    return true;
}

void hub_ref_format(const struct hub_ref *ref, char *out)
{
    const char *revision = strcmp(ref->revision, "main") ? ref->revision : "";
    snprintf(out, HUB_REF_TEXT_BYTES, "%s%s%s%s%s", ref->repo, ref->quant[0] ? ":" : "", ref->quant, revision[0] ? "@" : "",
             revision);
}

/* What a pull needs: the commit that the revision means, the repository's files, the plan, and for each planned file the
 * name of its blob, its size and its hash.
 *
 *   GET  /api/models/{repo}/revision/{revision}        commit, gated, siblings
 *   GET  /api/models/{repo}/tree/{commit}  (pages)     sizes, git and LFS ids; a hub without it: the siblings do
 *   HEAD /{repo}/resolve/{commit}/{path}               per file that is not here yet: x-linked-etag and -size, and
 *                                                      whether this token may read it (gated repositories list freely)
 *
 * When the hub cannot be reached, or with HF_HUB_OFFLINE, a whole snapshot in the cache serves instead. */
#include "hub/pull.h"

#include "base/clock.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#define STEP_MS 50

enum ask_state { ASK_DUE, ASK_RUNNING, ASK_DONE };

/* A request that is repeated until it has an answer that counts. */
struct ask {
    struct fetch_call call;
    char url[HUB_URL_BYTES_MAX]; /* before redirects */
    struct buf body;
    enum ask_state state;
    enum retry_verdict verdict;
    unsigned n_failures;
    uint64_t due_ns, idle_ns;
    size_t file; /* of a HEAD */
};

static bool on_head(struct fetch_call *call)
{
    struct ask *a = call->user;
    a->idle_ns = 0;
    buf_clear(&a->body);
    return true;
}

static bool on_bytes(struct fetch_call *call, const char *bytes, size_t len)
{
    struct ask *a = call->user;
    a->idle_ns = 0;
    return buf_append(&a->body, bytes, len);
}

static void on_done(struct fetch_call *call)
{
    ((struct ask *)call->user)->state = ASK_DONE;
}

static struct ask *asks_new(size_t n, struct err *err)
{
    struct ask *asks = calloc(n, sizeof *asks);
    for (size_t i = 0; asks && i < n; i++)
        buf_init(&asks[i].body, HUB_REPLY_BYTES_MAX);
    if (!asks)
        err_set(err, ERR_MEMORY, "no memory for %zu requests", n);
    return asks;
}

static void asks_free(struct hub_pull *p, struct ask *asks, size_t n)
{
    for (size_t i = 0; asks && i < n; i++) {
        fetch_stop(p->fetch, &asks[i].call);
        buf_release(&asks[i].body);
    }
    free(asks);
}

static void ask_set(struct ask *a, enum fetch_method method)
{
    a->call.method = method;
    a->call.follow = method == FETCH_HEAD ? FETCH_FOLLOW_STAY : FETCH_FOLLOW_ALL;
    a->call.on_head = on_head;
    a->call.on_bytes = on_bytes;
    a->call.on_done = on_done;
    a->call.user = a;
    a->call.line = FETCH_ANY_LINE;
    a->state = ASK_DUE;
    a->verdict = RETRY_LATER;
    a->n_failures = 0;
    a->due_ns = 0;
}

static void ask_failed(struct hub_pull *p, struct ask *a, const struct fetch_reply *reply)
{
    char text[256];
    uint64_t wait_ms = retry_wait_ms(&p->config, ++a->n_failures, reply);
    p->now.n_retries++;
    a->call.line = FETCH_NEW_LINE;
    a->verdict = a->n_failures < p->config.attempts_max ? RETRY_LATER : RETRY_NEVER;
    if (a->verdict == RETRY_NEVER)
        return;
    a->state = ASK_DUE;
    a->due_ns = clock_mono_ns() + wait_ms * 1000000;
    if (reply && reply->status == 429) {
        p->hold_ns = a->due_ns > p->hold_ns ? a->due_ns : p->hold_ns;
        snprintf(text, sizeof text, "the hub limits requests: waiting %llu s", (unsigned long long)(wait_ms + 999) / 1000);
    } else if (reply && reply->status) {
        snprintf(text, sizeof text, "the hub answers %ld: attempt %u follows", reply->status, a->n_failures + 1);
    } else {
        snprintf(text, sizeof text, "no answer (%.150s): attempt %u follows", a->call.why, a->n_failures + 1);
    }
    pull_set_waiting(p, text);
}

static bool ask_move(struct hub_pull *p, struct ask *a, uint64_t now_ns, struct err *err)
{
    if (a->state == ASK_DUE && now_ns >= a->due_ns && now_ns >= p->hold_ns) {
        memcpy(a->call.url, a->url, sizeof a->url);
        a->idle_ns = 0;
        a->state = ASK_RUNNING;
        return fetch_start(p->fetch, &a->call, err);
    }
    if (a->state == ASK_RUNNING && a->idle_ns > p->config.stall_ms * 1000000) {
        fetch_stop(p->fetch, &a->call);
        a->call.end = FETCH_CUT;
        a->state = ASK_DONE;
        snprintf(a->call.why, sizeof a->call.why, "no byte came for %llu ms", (unsigned long long)p->config.stall_ms);
        ask_failed(p, a, NULL);
    }
    return true;
}

/* Runs all to a verdict: GOOD, or NEVER with the last reply. False: cancelled, or no memory. */
static bool ask_all(struct hub_pull *p, struct ask *asks, size_t n, struct err *err)
{
    for (size_t n_done = 0; n_done < n;) {
        n_done = 0;
        if (pull_is_cancelled(p))
            return pull_set_cancelled(p, err);
        uint64_t now_ns = clock_mono_ns();
        for (size_t i = 0; i < n; i++) {
            if (!ask_move(p, &asks[i], now_ns, err))
                return false;
        }
        uint64_t waited_ns = fetch_step(p->fetch, STEP_MS);
        for (size_t i = 0; i < n; i++) {
            struct ask *a = &asks[i];
            a->idle_ns += a->state == ASK_RUNNING ? waited_ns : 0;
            if (a->state == ASK_DONE && a->verdict == RETRY_LATER) {
                a->verdict = retry_judge(&p->config, &a->call);
                if (a->verdict == RETRY_LATER)
                    ask_failed(p, a, a->call.end == FETCH_WHOLE ? &a->call.reply : NULL);
            }
            n_done += a->state == ASK_DONE && a->verdict != RETRY_LATER;
        }
        pull_tell(p, PULL_WHEN_DUE);
    }
    pull_set_waiting(p, "");
    return true;
}

/* ---- the list ------------------------------------------------------------------------------------------------------------ */

static bool ask_json(struct hub_pull *p, struct ask *a, struct err *err)
{
    ask_set(a, FETCH_GET);
    return ask_all(p, a, 1, err);
}

static bool is_good(const struct ask *a)
{
    return a->verdict == RETRY_GOOD && a->call.reply.status >= 200 && a->call.reply.status <= 299;
}

static bool api_url(const struct hub_pull *p, char *out, const char *kind, const char *revision, const char *query,
                    struct err *err)
{
    struct buf b;
    buf_init(&b, HUB_URL_BYTES_MAX - 1);
    buf_printf(&b, "%s/api/models/%s", p->config.endpoint, p->ref.repo);
    if (kind[0]) {
        buf_printf(&b, "/%s/", kind);
        hub_url_escape(&b, str_from(revision), HUB_ESCAPE_SLASH);
    }
    bool ok = buf_append_str(&b, str_from(query)) && !b.failed;
    if (ok)
        memcpy(out, b.data, b.len + 1);
    buf_release(&b);
    return ok || err_set(err, ERR_USAGE, "the address of '%s' on the hub is too long", p->ref.repo);
}

bool pull_file_url(const struct hub_pull *p, const char *path, char out[HUB_URL_BYTES_MAX], struct err *err)
{
    struct buf b;
    buf_init(&b, HUB_URL_BYTES_MAX - 1);
    buf_printf(&b, "%s/%s/resolve/%s/", p->config.endpoint, p->ref.repo, p->now.commit);
    hub_url_escape(&b, str_from(path), HUB_KEEP_SLASH);
    bool ok = !b.failed;
    if (ok)
        memcpy(out, b.data, b.len + 1);
    buf_release(&b);
    return ok || err_set(err, ERR_UNSUPPORTED, "the address of '%.200s' is too long", path);
}

/* False with *reached = false when the hub gave no answer at all (or 5xx): the cache may serve. */
static bool ask_info(struct hub_pull *p, struct ask *a, struct hub_listing *out, bool *reached, struct err *err)
{
    *reached = true;
    if (!api_url(p, a->url, "revision", p->ref.revision, "?blobs=true", err) || !ask_json(p, a, err))
        return false;
    if (!is_good(a) && a->call.reply.status == 404 && !a->call.reply.error_code[0] && !strcmp(p->ref.revision, "main")) {
        /* A mirror that knows only the default branch. */
        if (!api_url(p, a->url, "", "", "?blobs=true", err) || !ask_json(p, a, err))
            return false;
    }
    if (!is_good(a)) {
        *reached = a->call.end == FETCH_WHOLE && a->call.reply.status < 500;
        return retry_explain(p, &a->call, "its description", a->n_failures, err);
    }
    return reply_parse_info(buf_str(&a->body), out, err) || err_prefix(err, "'%s'", p->ref.repo);
}

/* Replaces the siblings by the tree's files, which come with sizes and ids; keeps them when the hub has no tree. */
static bool ask_tree(struct hub_pull *p, struct ask *a, struct hub_listing *l, struct err *err)
{
    struct hub_listing tree = {0};
    memcpy(tree.commit, l->commit, sizeof tree.commit);
    tree.gated = l->gated;
    bool ok = api_url(p, a->url, "tree", l->commit, "?recursive=true&expand=false", err);
    for (size_t page = 0; ok; page++) {
        ok = ask_json(p, a, err);
        if (!ok)
            break;
        long status = a->call.reply.status;
        if (!is_good(a)) {
            bool unknown = a->call.end == FETCH_WHOLE && (status == 400 || status == 404 || status == 405 || status == 501);
            ok = (unknown && page == 0) || retry_explain(p, &a->call, "its list of files", a->n_failures, err);
            break;
        }
        ok = reply_parse_tree(buf_str(&a->body), &tree, err) || err_prefix(err, "'%s'", p->ref.repo);
        if (!ok || !a->call.reply.next_url[0])
            break;
        ok = page + 1 < HUB_TREE_PAGES_MAX || err_set(err, ERR_UNSUPPORTED,
                                                      "'%s': its list of files has more than %d "
                                                      "pages",
                                                      p->ref.repo, HUB_TREE_PAGES_MAX);
        memcpy(a->url, a->call.reply.next_url, sizeof a->url);
    }
    if (ok && tree.n_items) {
        hub_listing_release(l);
        *l = tree;
        return true;
    }
    hub_listing_release(&tree);
    return ok;
}

/* ---- the files ------------------------------------------------------------------------------------------------------------ */

static bool adopt_plan(struct hub_pull *p, const struct hub_listing *l, const struct hub_plan *plan, struct err *err)
{
    p->files = calloc(plan->n ? plan->n : 1, sizeof *p->files);
    p->sources = calloc(plan->n ? plan->n : 1, sizeof *p->sources);
    if (!p->files || !p->sources)
        return err_set(err, ERR_MEMORY, "no memory for a pull of %zu files", plan->n);
    p->n_files = plan->n;
    snprintf(p->now.commit, sizeof p->now.commit, "%s", l->commit);
    snprintf(p->now.entry, sizeof p->now.entry, "%s", plan->entry);
    for (size_t i = 0; i < plan->n; i++) {
        const struct hub_entry *e = &l->items[plan->index[i]];
        struct hub_file_progress *f = &p->files[i];
        snprintf(f->path, sizeof f->path, "%s", e->path);
        memcpy(f->etag, e->etag, sizeof f->etag);
        memcpy(f->sha256, e->sha256, sizeof f->sha256);
        f->bytes_total = e->size;
        snprintf(p->sources[i].hash, sizeof p->sources[i].hash, "%s", e->sha256);
        if (!e->sha256[0] && hub_is_commit(e->etag))
            snprintf(p->sources[i].hash, sizeof p->sources[i].hash, "%.40s", e->etag);
    }
    return true;
}

static void set_done(struct hub_pull *p, size_t i)
{
    p->files[i].state = HUB_FILE_DONE;
    p->files[i].bytes_done = p->files[i].bytes_total;
}

/* What the snapshot or the blobs have already needs no answer from the hub. */
static bool is_here(struct hub_pull *p, size_t i)
{
    struct hub_file_progress *f = &p->files[i];
    char path[HUB_DIR_BYTES_MAX];
    struct stat st;
    if (cache_has_file(&p->repo, p->now.commit, f->path, f->bytes_total)) {
        p->sources[i].shown = 1;
        if (f->bytes_total == HUB_SIZE_UNKNOWN &&
            cache_path(&p->repo, path, NULL, "/snapshots/%s/%s", p->now.commit, f->path) && stat(path, &st) == 0)
            f->bytes_total = (uint64_t)st.st_size;
    } else if (f->bytes_total == HUB_SIZE_UNKNOWN || !cache_has_blob(&p->repo, f->etag, f->bytes_total)) {
        return false;
    }
    set_done(p, i);
    return true;
}

/* Takes what the answer to HEAD says of a file. */
static bool take_head(struct hub_pull *p, const struct ask *a, struct err *err)
{
    struct hub_file_progress *f = &p->files[a->file];
    struct pull_source *s = &p->sources[a->file];
    const struct fetch_reply *r = &a->call.reply;
    if (r->etag[0]) {
        memcpy(f->etag, r->etag, sizeof f->etag);
        if (hub_is_sha256(r->etag)) {
            snprintf(f->sha256, sizeof f->sha256, "%.64s", r->etag);
            snprintf(s->hash, sizeof s->hash, "%.64s", r->etag);
        }
    }
    if (r->linked_size != HUB_SIZE_UNKNOWN)
        f->bytes_total = r->linked_size;
    else if (f->bytes_total == HUB_SIZE_UNKNOWN && r->status == 200 && !r->encoded)
        f->bytes_total = r->length;
    if (r->location[0])
        memcpy(s->location, r->location, sizeof s->location);
    if (!f->etag[0])
        return err_set(err, ERR_UNAVAILABLE,
                       "'%s': the hub tells no usable ETag for '%.200s', so that its bytes could not be "
                       "named; check HF_ENDPOINT and the proxy",
                       p->ref.repo, f->path);
    if (f->bytes_total > HUB_FILE_SIZE_MAX)
        return err_set(err, ERR_UNAVAILABLE,
                       "'%s': the hub tells no usable size for '%.200s'; check HF_ENDPOINT and the "
                       "proxy",
                       p->ref.repo, f->path);
    if (cache_has_blob(&p->repo, f->etag, f->bytes_total))
        set_done(p, a->file);
    return true;
}

static bool head_batch(struct hub_pull *p, struct ask *asks, size_t n, struct err *err)
{
    if (!ask_all(p, asks, n, err))
        return false;
    for (size_t i = 0; i < n; i++) {
        if (asks[i].verdict != RETRY_GOOD)
            return retry_explain(p, &asks[i].call, p->files[asks[i].file].path, asks[i].n_failures, err);
        if (!take_head(p, &asks[i], err))
            return false;
    }
    return true;
}

static bool ask_heads(struct hub_pull *p, struct err *err)
{
    size_t n_max = p->config.connections_max, n = 0;
    struct ask *asks = asks_new(n_max, err);
    bool ok = asks != NULL;
    for (size_t i = 0; ok && i < p->n_files; i++) {
        if (!is_here(p, i)) {
            ask_set(&asks[n], FETCH_HEAD);
            asks[n].file = i;
            ok = pull_file_url(p, p->files[i].path, asks[n++].url, err);
        }
        if (ok && n && (n == n_max || i + 1 == p->n_files)) {
            ok = head_batch(p, asks, n, err);
            n = 0;
        }
    }
    asks_free(p, asks, n_max);
    return ok;
}

/* ---- all of it --------------------------------------------------------------------------------------------------------- */

static bool from_cache(struct hub_pull *p, struct err *err)
{
    struct hub_snapshot snapshot;
    struct hub_listing l = {0};
    struct hub_plan plan = {0};
    bool ok = cache_find(&p->repo, &p->ref, &snapshot, &l, &plan, err) && adopt_plan(p, &l, &plan, err);
    for (size_t i = 0; ok && i < p->n_files; i++) {
        p->sources[i].shown = 1;
        set_done(p, i);
    }
    hub_listing_release(&l);
    plan_release(&plan);
    return ok;
}

static bool from_hub(struct hub_pull *p, bool *reached, struct err *err)
{
    struct hub_listing l = {0};
    struct hub_plan plan = {0};
    struct ask *a = asks_new(1, err);
    bool ok = a && ask_info(p, a, &l, reached, err) && ask_tree(p, a, &l, err) &&
              plan_make(&l, p->ref.repo, p->ref.quant, &plan, err) && adopt_plan(p, &l, &plan, err);
    asks_free(p, a, 1);
    hub_listing_release(&l);
    plan_release(&plan);
    return ok && ask_heads(p, err);
}

bool pull_resolve(struct hub_pull *p, struct err *err)
{
    bool reached = true;
    if (p->config.reach == HUB_OFFLINE)
        return from_cache(p, err) || err_prefix(err, "HF_HUB_OFFLINE forbids to ask the hub");
    if (from_hub(p, &reached, err))
        return true;
    if (reached || pull_is_cancelled(p))
        return false;
    pull_set_waiting(p, "");
    return from_cache(p, NULL);
}

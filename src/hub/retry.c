/* Failures: which pass by themselves, how long to wait, and what to tell a person about those that do not. */
#include "hub/pull.h"

#include "base/rand.h"

#include <stdio.h>
#include <strings.h>

#define SHOWN_BYTES 256

static bool asks_to_wait(const struct fetch_reply *r)
{
    return (r->status == 429 || r->status == 503) && r->retry_after_s >= 0;
}

enum retry_verdict retry_judge(const struct hub_config *c, const struct fetch_call *call)
{
    const struct fetch_reply *r = &call->reply;
    if (call->end == FETCH_REFUSED)
        return RETRY_NEVER;
    if (call->end != FETCH_WHOLE)
        return RETRY_LATER;
    if ((r->status >= 200 && r->status <= 299) || (r->status >= 301 && r->status <= 308 && r->location[0]))
        return RETRY_GOOD;
    if (asks_to_wait(r) && r->retry_after_s > (int64_t)c->retry_after_s_max)
        return RETRY_NEVER;
    return r->status == 408 || r->status == 425 || r->status == 429 || r->status >= 500 ? RETRY_LATER : RETRY_NEVER;
}

uint64_t retry_wait_ms(const struct hub_config *c, unsigned n_failures, const struct fetch_reply *reply)
{
    uint64_t ms = c->backoff_ms;
    for (unsigned i = 1; i < n_failures && ms < HUB_BACKOFF_MS_MAX; i++)
        ms *= 2;
    ms = ms < HUB_BACKOFF_MS_MAX ? ms : HUB_BACKOFF_MS_MAX;
    ms -= (uint64_t)((double)ms * 0.5 * rand_uniform(rand_system_u64(), 0, 0));
    if (reply && asks_to_wait(reply)) {
        uint64_t asked_ms = (uint64_t)reply->retry_after_s * 1000;
        return asked_ms + ms / 4; /* a little behind, so that not all clients come back at once */
    }
    return ms;
}

static bool mentions(const struct fetch_reply *r, const char *word)
{
    return strcasestr(r->error_text, word) || strcasestr(r->error_code, word);
}

/* An address for people: without a name and password before its host, nor its query, where CDNs have their signature. */
static const char *shown(const char *url, char out[SHOWN_BYTES])
{
    const char *host = strstr(url, "://");
    host = host ? host + 3 : url;
    for (size_t i = strcspn(host, "/?#"); i > 0; i--) {
        if (host[i - 1] != '@')
            continue;
        snprintf(out, SHOWN_BYTES, "%.*s%.*s", (int)(host - url), url, (int)strcspn(host + i, "?"), host + i);
        return out;
    }
    snprintf(out, SHOWN_BYTES, "%.*s", (int)strcspn(url, "?"), url);
    return out;
}

static const char *token_advice(const struct hub_pull *p)
{
    return p->config.token[0] ? "the token that was sent (HF_TOKEN or the token file) does not open it"
                              : "no token was sent: set HF_TOKEN, or write it to the token file ('hf auth login' does)";
}

/* 401, 403 and 404: who may see what. */
static bool explain_access(const struct hub_pull *p, const struct fetch_reply *r, const char *what, struct err *err)
{
    const char *repo = p->ref.repo;
    char endpoint[SHOWN_BYTES];
    shown(p->config.endpoint, endpoint);
    if (mentions(r, "gated") || mentions(r, "restricted") || mentions(r, "authorized list"))
        return err_set(err, ERR_FORBIDDEN,
                       "'%s' is a gated repository: ask for access on %.300s/%s with your account, and "
                       "use a token of that account; %s",
                       repo, endpoint, repo, token_advice(p));
    if (strcasecmp(r->error_code, "RevisionNotFound") == 0)
        return err_set(err, ERR_MODEL_NOT_FOUND,
                       "'%s' has no revision '%s' on the hub: name a branch, a tag or a commit "
                       "of it",
                       repo, p->ref.revision);
    if (strcasecmp(r->error_code, "EntryNotFound") == 0)
        return err_set(err, ERR_MODEL_NOT_FOUND, "'%s' (revision '%s') has no file '%.300s' on the hub", repo, p->ref.revision,
                       what);
    if (mentions(r, "disabled"))
        return err_set(err, ERR_FORBIDDEN, "access to '%s' is disabled by the hub: it cannot be had", repo);
    if (r->status == 404 && strcasecmp(r->error_code, "RepoNotFound") != 0)
        return err_set(err, ERR_MODEL_NOT_FOUND,
                       "the hub (%.200s) has no '%s' with the revision '%s', or it is private "
                       "(404 for %.200s): check both names; %s",
                       endpoint, repo, p->ref.revision, what, token_advice(p));
    if (r->status == 403)
        return err_set(err, ERR_FORBIDDEN, "the hub forbids '%s' (403%s%s): it is gated or private, and %s", repo,
                       r->error_text[0] ? ": " : "", r->error_text, token_advice(p));
    return err_set(err, r->status == 401 && p->config.token[0] ? ERR_FORBIDDEN : ERR_MODEL_NOT_FOUND,
                   "the hub (%.200s) shows no repository '%s' (%ld%s%s): the name is wrong, or it is private or gated, "
                   "and %s",
                   endpoint, repo, r->status, r->error_text[0] ? ": " : "", r->error_text, token_advice(p));
}

bool retry_explain(const struct hub_pull *p, const struct fetch_call *call, const char *what, unsigned n_attempts,
                   struct err *err)
{
    const struct fetch_reply *r = &call->reply;
    const char *repo = p->ref.repo;
    char said[300] = "", address[SHOWN_BYTES], endpoint[SHOWN_BYTES];
    const char *url = shown(call->url, address);
    if (call->end == FETCH_REFUSED)
        return err_set(err, ERR_UNAVAILABLE,
                       "'%s': %.200s cannot be had from %s: %s; check HF_ENDPOINT, the proxy and "
                       "the system's certificates",
                       repo, what, url, call->why);
    if (call->end != FETCH_WHOLE)
        return err_set(err, ERR_UNAVAILABLE,
                       "'%s': %.200s did not come from %s after %u attempts: %s; check the network, "
                       "HF_ENDPOINT and the proxy settings; what came is kept, pull again to go on",
                       repo, what, url, n_attempts, call->why);
    if (r->error_text[0])
        snprintf(said, sizeof said, " (\"%s\")", r->error_text);
    if (r->status == 429)
        return err_set(err, ERR_RATE_LIMIT,
                       "'%s': the hub limits requests (429 for %.200s)%s; it asks to wait %lld s: pull "
                       "again later, or set HF_TOKEN for a higher limit",
                       repo, what, said, (long long)(r->retry_after_s < 0 ? 0 : r->retry_after_s));
    if (r->status >= 500)
        return err_set(err, ERR_UNAVAILABLE,
                       "'%s': the hub answers %ld for %.200s%s, %u times in a row: its fault; pull "
                       "again later",
                       repo, r->status, what, said, n_attempts);
    if (r->crossed)
        return err_set(err, ERR_UNAVAILABLE,
                       "'%s': the storage that the hub names for %.200s answers %ld%s at %s, %u times in "
                       "a row: pull again later, and check the clock and the proxy",
                       repo, what, r->status, said, url, n_attempts);
    if (r->status == 401 || r->status == 403 || r->status == 404)
        return explain_access(p, r, what, err);
    return err_set(err, ERR_UNAVAILABLE,
                   "'%s': the hub answers %ld for %.200s%s, which inferd does not understand; check "
                   "HF_ENDPOINT (%.200s)",
                   repo, r->status, what, said, shown(p->config.endpoint, endpoint));
}

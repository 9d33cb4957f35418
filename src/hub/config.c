/* The environment as huggingface_hub reads it, and the names of states. */
#include "hub/impl.h"

#include <ctype.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <unistd.h>

#define TOKEN_FILE_BYTES_MAX 4096

static const char *env(const char *name)
{
    const char *v = getenv(name);
    return v && v[0] ? v : NULL;
}

/* As Python finds it: services that a system starts may have no HOME. NULL: there is none. */
static const char *home_dir(void)
{
    const struct passwd *user = env("HOME") ? NULL : getpwuid(getuid());
    return user ? user->pw_dir : env("HOME");
}

/* "~" and "~/x" become the home folder. */
static bool set_path(char *out, size_t out_bytes, const char *name, const char *value, const char *below, struct err *err)
{
    const char *home = home_dir();
    bool tilde = value[0] == '~' && (!value[1] || value[1] == '/');
    if (tilde && !home)
        return err_set(err, ERR_USAGE,
                       "%s is '%s', but HOME is not set, and user %u is in no list: set it, or write the whole path", name,
                       value, (unsigned)getuid());
    int n = snprintf(out, out_bytes, "%s%s%s", tilde ? home : "", tilde ? value + 1 : value, below);
    if (n < 0 || (size_t)n >= out_bytes)
        return err_set(err, ERR_USAGE, "%s: the path '%.64s...' has more than %zu bytes", name, value, out_bytes - 1);
    return true;
}

static bool find_home(char *home, struct err *err)
{
    if (env("HF_HOME"))
        return set_path(home, HUB_DIR_BYTES_MAX, "HF_HOME", env("HF_HOME"), "", err);
    if (env("XDG_CACHE_HOME"))
        return set_path(home, HUB_DIR_BYTES_MAX, "XDG_CACHE_HOME", env("XDG_CACHE_HOME"), "/huggingface", err);
    return set_path(home, HUB_DIR_BYTES_MAX, "the hub's cache", "~/.cache/huggingface", "", err);
}

static bool find_cache(struct hub_config *c, const char *home, struct err *err)
{
    static const char *const names[] = {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"};
    for (size_t i = 0; i < 2; i++) {
        if (env(names[i]))
            return set_path(c->cache_dir, sizeof c->cache_dir, names[i], env(names[i]), "", err);
    }
    return set_path(c->cache_dir, sizeof c->cache_dir, "HF_HOME", home, "/hub", err);
}

/* Bytes between white space; a token with anything but visible ASCII would break the header it goes into. */
static bool set_token(struct hub_config *c, const char *from, struct str t, struct err *err)
{
    while (t.len && isspace((unsigned char)t.ptr[0]))
        t = (struct str){t.ptr + 1, t.len - 1};
    while (t.len && isspace((unsigned char)t.ptr[t.len - 1]))
        t.len--;
    if (t.len >= sizeof c->token)
        return err_set(err, ERR_USAGE, "the token in %s has %zu bytes; at most %zu are taken", from, t.len,
                       sizeof c->token - 1);
    for (size_t i = 0; i < t.len; i++) {
        if (!isgraph((unsigned char)t.ptr[i]))
            return err_set(err, ERR_USAGE, "the token in %s has a character that is no visible ASCII at byte %zu", from, i);
    }
    memcpy(c->token, t.ptr, t.len);
    c->token[t.len] = 0;
    return true;
}

static bool find_token(struct hub_config *c, const char *home, struct err *err)
{
    static const char *const names[] = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"};
    for (size_t i = 0; i < 2; i++) {
        if (env(names[i]))
            return set_token(c, names[i], str_from(env(names[i])), err);
    }
    char path[HUB_DIR_BYTES_MAX];
    if (env("HF_TOKEN_PATH") ? !set_path(path, sizeof path, "HF_TOKEN_PATH", env("HF_TOKEN_PATH"), "", err)
                             : !set_path(path, sizeof path, "HF_HOME", home, "/token", err))
        return false;
    struct buf b;
    buf_init(&b, TOKEN_FILE_BYTES_MAX);
    bool ok = !cache_read(path, TOKEN_FILE_BYTES_MAX, &b) || set_token(c, path, buf_str(&b), err);
    buf_release(&b);
    return ok;
}

static bool is_true(const char *name)
{
    static const char *const words[] = {"1", "ON", "YES", "TRUE"};
    for (size_t i = 0; env(name) && i < sizeof words / sizeof *words; i++) {
        if (strcasecmp(env(name), words[i]) == 0)
            return true;
    }
    return false;
}

static bool find_endpoint(struct hub_config *c, struct err *err)
{
    const char *e = env("HF_ENDPOINT") ? env("HF_ENDPOINT") : "https://huggingface.co";
    size_t len = strlen(e);
    while (len && e[len - 1] == '/')
        len--;
    if (strncmp(e, "http://", 7) != 0 && strncmp(e, "https://", 8) != 0)
        return err_set(err, ERR_USAGE, "HF_ENDPOINT is '%.200s'; it must begin with https:// or http://", e);
    if (len >= sizeof c->endpoint)
        return err_set(err, ERR_USAGE, "HF_ENDPOINT has %zu bytes; at most %zu are taken", len, sizeof c->endpoint - 1);
    memcpy(c->endpoint, e, len);
    c->endpoint[len] = 0;
    return true;
}

bool hub_config_from_env(struct hub_config *out, struct err *err)
{
    char home[HUB_DIR_BYTES_MAX];
    *out = (struct hub_config){.connect_ms = HUB_CONNECT_MS,
                               .stall_ms = HUB_STALL_MS,
                               .part_bytes = HUB_PART_BYTES,
                               .connections_max = HUB_CONNECTIONS,
                               .files_max = HUB_FILES,
                               .attempts_max = HUB_ATTEMPTS,
                               .backoff_ms = HUB_BACKOFF_MS,
                               .retry_after_s_max = HUB_RETRY_AFTER_S_MAX};
    out->reach = is_true("HF_HUB_OFFLINE") || is_true("TRANSFORMERS_OFFLINE") ? HUB_OFFLINE : HUB_ONLINE;
    if (!find_endpoint(out, err))
        return false;
    if (!home_dir() && env("HF_HUB_CACHE") && !env("HF_HOME") && !env("HF_TOKEN_PATH")) {
        snprintf(home, sizeof home, "%s", env("HF_HUB_CACHE")); /* a service without a home: no token file to look for */
        return find_cache(out, home, err) && (!env("HF_TOKEN") || find_token(out, home, err));
    }
    return find_home(home, err) && find_cache(out, home, err) && find_token(out, home, err);
}

const char *hub_pull_state_name(enum hub_pull_state state)
{
    static const char *const names[] = {"resolving", "running", "completed", "failed", "cancelled"};
    return (unsigned)state < sizeof names / sizeof *names ? names[state] : "unknown";
}

const char *hub_file_state_name(enum hub_file_state state)
{
    static const char *const names[] = {"waiting", "running", "checking", "done", "failed"};
    return (unsigned)state < sizeof names / sizeof *names ? names[state] : "unknown";
}

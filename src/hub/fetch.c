/* HTTP over libcurl; see fetch.h. Redirects are followed here and not in libcurl, so that what goes where is in sight. */
#include "hub/fetch.h"

#include "base/clock.h"
#include "hub/impl.h"

#include <ctype.h>
#include <curl/curl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#define HOPS_MAX             8
#define ERROR_BODY_BYTES_MAX ((size_t)8192)
#define BUFFER_BYTES         (256L << 10)
/* Under a bandwidth cap: libcurl reads up to a hundred buffers from each connection in one go, which is seconds' worth. */
#define STEPS_A_SECOND   20
#define SIP_BYTES_MIN    1024
#define SIP_BYTES_MAX    (16u << 10)
#define IDLE_LINES_MAX   16L
#define HEADER_BYTES_MAX ((size_t)1 << 20) /* of one answer and its redirects: more is no hub */

struct origin {
    char text[1100]; /* scheme://host:port, lower case */
};

struct fetch {
    CURLM *multi;
    struct hub_config config;
    struct origin origin;
    uint64_t step_bytes, step_bytes_max;            /* of bodies in this step; 0: no bound */
    struct fetch_call *first_paused, **last_paused; /* whose bytes wait for the next step */
};

_Static_assert(sizeof((struct fetch_call){0}.error) >= CURL_ERROR_SIZE, "libcurl writes its message there");

static pthread_once_t once = PTHREAD_ONCE_INIT;
static CURLcode global_state;

static void init_library(void)
{
    global_state = curl_global_init(CURL_GLOBAL_DEFAULT);
}

/* ---- addresses --------------------------------------------------------------------------------------------------------- */

static bool origin_of(const char *url, struct origin *out)
{
    CURLU *u = curl_url();
    char *scheme = NULL, *host = NULL, *port = NULL;
    bool ok = u && curl_url_set(u, CURLUPART_URL, url, 0) == CURLUE_OK &&
              curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK &&
              curl_url_get(u, CURLUPART_HOST, &host, 0) == CURLUE_OK &&
              curl_url_get(u, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT) == CURLUE_OK &&
              snprintf(out->text, sizeof out->text, "%s://%s:%s", scheme, host, port) < (int)sizeof out->text;
    for (char *c = out->text; ok && *c; c++)
        *c = (char)tolower((unsigned char)*c);
    curl_free(scheme);
    curl_free(host);
    curl_free(port);
    curl_url_cleanup(u);
    return ok;
}

/* `location` as seen from `base`, absolute. */
static bool resolve_url(const char *base, const char *location, char *out)
{
    CURLU *u = curl_url();
    char *whole = NULL;
    bool ok = u && curl_url_set(u, CURLUPART_URL, base, 0) == CURLUE_OK &&
              curl_url_set(u, CURLUPART_URL, location, CURLU_URLENCODE) == CURLUE_OK &&
              curl_url_get(u, CURLUPART_URL, &whole, 0) == CURLUE_OK && strlen(whole) < HUB_URL_BYTES_MAX;
    if (ok)
        memcpy(out, whole, strlen(whole) + 1);
    curl_free(whole);
    curl_url_cleanup(u);
    return ok;
}

static bool is_home(const struct fetch *f, const char *url)
{
    struct origin o;
    return origin_of(url, &o) && strcmp(o.text, f->origin.text) == 0;
}

/* ---- headers ------------------------------------------------------------------------------------------------------------- */

static bool named(struct str name, const char *want)
{
    return name.len == strlen(want) && strncasecmp(name.ptr, want, name.len) == 0;
}

static void copy_text(char *out, size_t out_bytes, struct str v)
{
    size_t n = v.len < out_bytes - 1 ? v.len : out_bytes - 1;
    for (size_t i = 0; i < n; i++)
        out[i] = (char)((unsigned char)v.ptr[i] < 0x20 ? ' ' : v.ptr[i]);
    out[n] = 0;
}

/* What is new with every response; what the hub told of the file stays through its redirects. */
static void begin_response(struct fetch_call *call)
{
    struct fetch_reply *r = &call->reply;
    r->location[0] = r->next_url[0] = r->error_code[0] = r->error_text[0] = 0;
    r->length = r->range_begin = r->range_end = r->range_total = HUB_SIZE_UNKNOWN;
    r->retry_after_s = -1;
    r->encoded = 0;
    if (!r->has_linked)
        r->etag[0] = 0;
    buf_clear(&call->error_body);
    call->head_seen = 0;
}

static void take_file_header(struct fetch_reply *r, struct str name, struct str v)
{
    if (named(name, "etag") && !r->has_linked) {
        if (!hub_etag_normalize(v, r->etag))
            r->etag[0] = 0;
    } else if (named(name, "x-linked-etag")) {
        r->has_linked = hub_etag_normalize(v, r->etag) || r->has_linked;
    } else if (named(name, "x-linked-size")) {
        if (!reply_parse_u64(v, &r->linked_size))
            r->linked_size = HUB_SIZE_UNKNOWN;
    } else if (named(name, "x-repo-commit") && v.len < sizeof r->commit) {
        copy_text(r->commit, sizeof r->commit, v);
        if (!hub_is_commit(r->commit))
            r->commit[0] = 0;
    }
}

static void take_header(struct fetch_call *call, struct str name, struct str v)
{
    struct fetch_reply *r = &call->reply;
    int64_t wait_s;
    if (named(name, "location") && v.len < sizeof r->location)
        copy_text(r->location, sizeof r->location, v);
    else if (named(name, "content-length") && !reply_parse_u64(v, &r->length))
        r->length = HUB_SIZE_UNKNOWN;
    else if (named(name, "content-range"))
        reply_parse_content_range(v, &r->range_begin, &r->range_end, &r->range_total);
    else if (named(name, "content-encoding"))
        r->encoded = !named(v, "identity");
    else if (named(name, "link"))
        reply_parse_link_next(v, r->next_url, sizeof r->next_url);
    else if (named(name, "x-error-code"))
        copy_text(r->error_code, sizeof r->error_code, v);
    else if (named(name, "x-error-message"))
        copy_text(r->error_text, sizeof r->error_text, v);
    else if (named(name, "retry-after") && (wait_s = reply_parse_retry_after(v, clock_wall_s())) >= 0)
        r->retry_after_s = wait_s;
    else if (named(name, "ratelimit") && r->retry_after_s < 0)
        r->retry_after_s = reply_parse_ratelimit(v);
    else
        take_file_header(r, name, v);
}

static size_t on_header(char *line, size_t size, size_t n, void *user)
{
    struct fetch_call *call = user;
    struct str s = {line, size * n};
    call->header_bytes += s.len;
    if (call->header_bytes > HEADER_BYTES_MAX) {
        call->end = FETCH_ABORTED;
        snprintf(call->why, sizeof call->why, "the answer has more than %zu bytes of headers", HEADER_BYTES_MAX);
        return 0;
    }
    if (str_has_prefix(s, STR("HTTP/"))) {
        begin_response(call);
        return s.len;
    }
    const char *colon = memchr(s.ptr, ':', s.len);
    if (!colon)
        return s.len;
    struct str v = {colon + 1, (size_t)(s.ptr + s.len - colon - 1)};
    while (v.len && isspace((unsigned char)v.ptr[0]))
        v = (struct str){v.ptr + 1, v.len - 1};
    while (v.len && isspace((unsigned char)v.ptr[v.len - 1]))
        v.len--;
    take_header(call, (struct str){s.ptr, (size_t)(colon - s.ptr)}, v);
    return s.len;
}

/* ---- bodies -------------------------------------------------------------------------------------------------------------- */

static bool see_head(struct fetch_call *call)
{
    if (call->head_seen)
        return true;
    call->head_seen = 1;
    return !call->on_head || call->on_head(call);
}

/* True where the call's bytes wait for another step. */
static bool pause_over_cap(struct fetch *f, struct fetch_call *call, size_t len)
{
    if (!f->step_bytes_max)
        return false;
    if (f->step_bytes < f->step_bytes_max) {
        f->step_bytes += len;
        return false;
    }
    call->next_paused = NULL;
    *f->last_paused = call;
    f->last_paused = &call->next_paused;
    return true;
}

static size_t on_body(char *bytes, size_t size, size_t n, void *user)
{
    struct fetch_call *call = user;
    size_t len = size * n;
    curl_easy_getinfo(call->easy, CURLINFO_RESPONSE_CODE, &call->reply.status);
    if (call->reply.status < 200 || call->reply.status > 299) {
        size_t room = ERROR_BODY_BYTES_MAX - call->error_body.len;
        buf_append(&call->error_body, bytes, len < room ? len : room);
        return len;
    }
    if (pause_over_cap(call->fetch, call, len))
        return CURL_WRITEFUNC_PAUSE;
    if (!see_head(call) || (call->on_bytes && !call->on_bytes(call, bytes, len))) {
        call->end = FETCH_ABORTED;
        return 0;
    }
    return len;
}

/* ---- calls ----------------------------------------------------------------------------------------------------------------- */

static void forget_paused(struct fetch *f, const struct fetch_call *call)
{
    struct fetch_call **at = &f->first_paused;
    while (*at && *at != call)
        at = &(*at)->next_paused;
    if (!*at)
        return;
    *at = call->next_paused;
    if (!*at)
        f->last_paused = at;
}

static void drop_easy(struct fetch *f, struct fetch_call *call)
{
    if (!call->easy)
        return;
    forget_paused(f, call);
    curl_multi_remove_handle(f->multi, call->easy);
    curl_easy_cleanup(call->easy);
    curl_slist_free_all(call->headers);
    call->easy = call->headers = NULL;
}

static bool set_headers(struct fetch *f, struct fetch_call *call)
{
    struct curl_slist *list = curl_slist_append(NULL, "Accept-Encoding: identity"), *next = NULL;
    char line[600];
    call->reply.crossed = !is_home(f, call->url);
    call->strayed |= call->reply.crossed;
    if (list && f->config.token[0] && !call->strayed) {
        snprintf(line, sizeof line, "Authorization: Bearer %s", f->config.token);
        if (!(next = curl_slist_append(list, line)))
            curl_slist_free_all(list);
        list = next;
    }
    call->headers = list;
    return list && curl_easy_setopt(call->easy, CURLOPT_HTTPHEADER, list) == CURLE_OK;
}

static long sip_bytes(const struct fetch *f)
{
    uint64_t n = f->step_bytes_max < SIP_BYTES_MAX ? f->step_bytes_max : SIP_BYTES_MAX;
    return n > SIP_BYTES_MIN ? (long)n : SIP_BYTES_MIN;
}

static void set_options(struct fetch *f, struct fetch_call *call)
{
    CURL *e = call->easy;
    const char *schemes = strncmp(f->origin.text, "https:", 6) == 0 ? "https" : "http,https";
    char range[64];
    curl_easy_setopt(e, CURLOPT_URL, call->url);
    curl_easy_setopt(e, CURLOPT_PRIVATE, call);
    curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, schemes);
    curl_easy_setopt(e, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    /* Ranges at once are worth it on connections of their own: no multiplexing over one. */
    curl_easy_setopt(e, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(e, CURLOPT_USERAGENT, "inferd");
    curl_easy_setopt(e, CURLOPT_CONNECTTIMEOUT_MS, (long)f->config.connect_ms);
    curl_easy_setopt(e, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(e, CURLOPT_BUFFERSIZE, f->step_bytes_max ? sip_bytes(f) : BUFFER_BYTES);
    curl_easy_setopt(e, CURLOPT_FRESH_CONNECT, call->line == FETCH_NEW_LINE ? 1L : 0L);
    curl_easy_setopt(e, CURLOPT_NOBODY, call->method == FETCH_HEAD ? 1L : 0L);
    curl_easy_setopt(e, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(e, CURLOPT_HEADERDATA, call);
    curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(e, CURLOPT_WRITEDATA, call);
    call->error[0] = 0;
    curl_easy_setopt(e, CURLOPT_ERRORBUFFER, call->error);
    if (call->range_end) {
        snprintf(range, sizeof range, "%llu-%llu", (unsigned long long)call->range_begin,
                 (unsigned long long)call->range_end - 1);
        curl_easy_setopt(e, CURLOPT_RANGE, range);
    }
}

static bool start_hop(struct fetch *f, struct fetch_call *call, struct err *err)
{
    call->easy = curl_easy_init();
    if (!call->easy)
        return err_set(err, ERR_MEMORY, "no memory for a request");
    set_options(f, call);
    if (!set_headers(f, call) || curl_multi_add_handle(f->multi, call->easy) != CURLM_OK) {
        curl_easy_cleanup(call->easy);
        curl_slist_free_all(call->headers);
        call->easy = call->headers = NULL;
        return err_set(err, ERR_MEMORY, "no memory for a request");
    }
    memcpy(call->reply.url, call->url, sizeof call->reply.url);
    return true;
}

bool fetch_start(struct fetch *f, struct fetch_call *call, struct err *err)
{
    memset(&call->reply, 0, sizeof call->reply);
    call->reply.linked_size = HUB_SIZE_UNKNOWN;
    call->end = FETCH_WHOLE;
    call->why[0] = 0;
    call->n_hops = 0;
    call->strayed = 0;
    call->header_bytes = 0;
    call->fetch = f;
    buf_init(&call->error_body, ERROR_BODY_BYTES_MAX + 1);
    begin_response(call);
    if (start_hop(f, call, err))
        return true;
    buf_release(&call->error_body);
    return false;
}

void fetch_stop(struct fetch *f, struct fetch_call *call)
{
    if (!call->easy)
        return;
    drop_easy(f, call);
    buf_release(&call->error_body);
}

/* Not worth a second try: what another connection cannot change. */
static enum fetch_end end_of(CURLcode code)
{
    switch (code) {
    case CURLE_OK: return FETCH_WHOLE;
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_OUT_OF_MEMORY: return FETCH_REFUSED;
    default: return FETCH_CUT;
    }
}

/* True when another hop was started. */
static bool follow(struct fetch *f, struct fetch_call *call)
{
    struct fetch_reply *r = &call->reply;
    char next[HUB_URL_BYTES_MAX];
    bool redirect = r->status >= 301 && r->status <= 308 && r->status != 304 && r->status != 305 && r->status != 306;
    if (call->end != FETCH_WHOLE || !redirect)
        return false;
    if (!r->location[0] || !resolve_url(call->url, r->location, next)) {
        call->end = FETCH_REFUSED;
        snprintf(call->why, sizeof call->why, "status %ld without a usable Location", r->status);
        return false;
    }
    memcpy(r->location, next, sizeof next);
    bool tells = r->has_linked || r->commit[0];
    if (call->follow == FETCH_FOLLOW_STAY && tells && !is_home(f, next))
        return false;
    if (++call->n_hops > HOPS_MAX) {
        call->end = FETCH_REFUSED;
        snprintf(call->why, sizeof call->why, "more than %d redirects", HOPS_MAX);
        return false;
    }
    memcpy(call->url, next, sizeof next);
    if (start_hop(f, call, NULL))
        return true;
    call->end = FETCH_REFUSED;
    snprintf(call->why, sizeof call->why, "no memory for a request");
    return false;
}

static void finish(struct fetch *f, struct fetch_call *call, CURLcode code)
{
    long connect_code = 0;
    curl_easy_getinfo(call->easy, CURLINFO_RESPONSE_CODE, &call->reply.status);
    curl_easy_getinfo(call->easy, CURLINFO_HTTP_CONNECTCODE, &connect_code);
    if (call->end != FETCH_ABORTED) {
        call->end = end_of(code);
        if (code != CURLE_OK)
            snprintf(call->why, sizeof call->why, "%s", call->error[0] ? call->error : curl_easy_strerror(code));
        if (code != CURLE_OK && connect_code >= 400)
            snprintf(call->why, sizeof call->why, "the proxy answers %ld", connect_code);
    }
    drop_easy(f, call);
    if (follow(f, call))
        return;
    bool good = call->reply.status >= 200 && call->reply.status <= 299;
    if (call->end == FETCH_WHOLE && good && !see_head(call))
        call->end = FETCH_ABORTED;
    if (!good && !call->reply.error_text[0])
        reply_parse_error(buf_str(&call->error_body), call->reply.error_text, sizeof call->reply.error_text);
    buf_release(&call->error_body);
    call->on_done(call);
}

/* Those that waited longest first. */
static void resume_paused(struct fetch *f)
{
    size_t n = 0;
    for (const struct fetch_call *c = f->first_paused; c; c = c->next_paused)
        n++;
    for (; n && f->first_paused; n--) {
        struct fetch_call *call = f->first_paused;
        forget_paused(f, call);
        CURLcode code = curl_easy_pause(call->easy, CURLPAUSE_CONT);
        if (code != CURLE_OK)
            finish(f, call, code);
    }
}

uint64_t fetch_step(struct fetch *f, int wait_ms)
{
    int n_running = 0, n_left = 0;
    bool ended = false;
    CURLMsg *m;
    f->step_bytes = 0;
    resume_paused(f);
    curl_multi_perform(f->multi, &n_running);
    while ((m = curl_multi_info_read(f->multi, &n_left))) {
        struct fetch_call *call = NULL;
        CURLcode code = m->data.result;
        if (m->msg == CURLMSG_DONE && curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &call) == CURLE_OK)
            finish(f, call, code);
        ended = true;
    }
    uint64_t before = clock_mono_ns();
    if (wait_ms > 0 && !ended && !f->first_paused)
        curl_multi_poll(f->multi, NULL, 0, wait_ms, NULL);
    return clock_mono_ns() - before;
}

void fetch_wake(struct fetch *f)
{
    curl_multi_wakeup(f->multi);
}

struct fetch *fetch_open(const struct hub_config *config, struct err *err)
{
    pthread_once(&once, init_library);
    struct fetch *f = calloc(1, sizeof *f);
    if (!f || global_state != CURLE_OK || !(f->multi = curl_multi_init())) {
        free(f);
        err_set(err, ERR_MEMORY, "the HTTP library cannot start: %s", curl_easy_strerror(global_state));
        return NULL;
    }
    f->config = *config;
    f->last_paused = &f->first_paused;
    if (config->rate_max)
        f->step_bytes_max = config->rate_max / STEPS_A_SECOND + 1;
    curl_multi_setopt(f->multi, CURLMOPT_MAXCONNECTS, IDLE_LINES_MAX);
    if (!origin_of(config->endpoint, &f->origin)) {
        err_set(err, ERR_USAGE, "HF_ENDPOINT '%.200s' is no address", config->endpoint);
        fetch_close(f);
        return NULL;
    }
    return f;
}

void fetch_close(struct fetch *f)
{
    if (!f)
        return;
    curl_multi_cleanup(f->multi);
    free(f);
}

/* What in a request's head two servers could read differently (request smuggling): refused, see RFC 9112 2.2, 5, 6.3.
 *
 * libmicrohttpd 0.9.75 takes more than it should: a bare LF, a folded header (which it glues to the *name*), blanks
 * around names, NULs that cut a value, both framing headers, several lengths. It parses in place: ends of names and
 * values are overwritten by NUL and everything else stays where it was received. So walking its list of headers and the
 * received bytes at once shows whether each line is exactly "name:OWS value CRLF" and whether any byte is left over.
 * Later versions move bytes, and are strict by themselves; for them only the meaning is checked.
 */
#include "http/impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#define PARSED_IN_PLACE (MHD_VERSION < 0x00097600)

struct head {
    const char *at; /* next byte that the walk expects a line at */
    const char *fault;
    unsigned hosts, lengths, encodings;
    const char *length, *encoding;
};

static bool is_token(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        bool alpha = (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
        if (!alpha && (c == 0 || !strchr("!#$%&'*+-.^_`|~", c)))
            return false;
    }
    return n > 0;
}

static bool is_field_value(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (((unsigned char)s[i] < 0x20 && s[i] != '\t') || s[i] == 0x7f)
            return false;
    return true;
}

/* "name:OWS value CRLF" with the colon and the line's end overwritten. */
static bool walk_line(struct head *h, const char *name, size_t name_len, const char *value, size_t value_len)
{
    if (!PARSED_IN_PLACE)
        return true;
    if (name != h->at || name[name_len] != '\0')
        return false;
    const char *p = name + name_len + 1;
    while (p < value && (*p == ' ' || *p == '\t'))
        p++;
    if (p != value || value[value_len] != '\0' || value[value_len + 1] != '\0')
        return false;
    h->at = value + value_len + 2;
    return true;
}

static enum MHD_Result look_at_header(void *ctx, enum MHD_ValueKind kind, const char *name, size_t name_len, const char *value,
                                      size_t value_len)
{
    struct head *h = ctx;
    if (!value)
        value = "", value_len = 0;
    if (!is_token(name, name_len))
        h->fault = "A header name has a character that is not allowed there, or a blank before its colon.";
    else if (!is_field_value(value, value_len))
        h->fault = "A header value has a control character.";
    else if (!walk_line(h, name, name_len, value, value_len))
        h->fault = "A header line is folded, has a NUL, or does not end with CR LF.";
    if (h->fault)
        return MHD_NO;
    if (strcasecmp(name, "host") == 0)
        h->hosts++;
    if (strcasecmp(name, "content-length") == 0) {
        h->lengths++;
        h->length = value;
    }
    if (strcasecmp(name, "transfer-encoding") == 0) {
        h->encodings++;
        h->encoding = value;
    }
    return MHD_YES;
}

/* "METHOD target HTTP/1.x CRLF": one blank between the parts, nothing but visible bytes in the target. */
static const char *look_at_request_line(const struct http_request *r, const char *method, const char *version)
{
    if (!is_token(method, strlen(method)))
        return "The method has a character that is not allowed there.";
    if (!r->target_visible)
        return "The request target has a blank or a control character; percent-encode it.";
    if (r->target == r->target_end)
        return "The request line has no target.";
    if (PARSED_IN_PLACE &&
        (method + strlen(method) + 1 != r->target || version != r->target_end + 1 || version[8] != '\0' || version[9] != '\0'))
        return "The request line is not METHOD, target and version, one blank between them, ended by CR LF.";
    return NULL;
}

static const char *look_at_framing(const struct head *h, bool http_1_0)
{
    if (h->hosts > 1 || (h->hosts == 0 && !http_1_0))
        return "An HTTP/1.1 request has exactly one Host header.";
    if (h->lengths > 1)
        return "The request has more than one Content-Length.";
    if (h->lengths && h->encodings)
        return "The request has both Content-Length and Transfer-Encoding; send one of them.";
    if (h->encodings > 1 || (h->encodings && strcasecmp(h->encoding, "chunked") != 0))
        return "The only Transfer-Encoding that is understood is 'chunked', alone.";
    if (h->encodings && http_1_0)
        return "HTTP/1.0 has no Transfer-Encoding.";
    return NULL;
}

static int refuse(char *text, size_t text_bytes, int status, const char *why)
{
    snprintf(text, text_bytes, "%s", why);
    return status;
}

int framing_check(struct http_request *r, const char *method, const char *version, char *text, size_t text_bytes)
{
    const struct http_options *o = &r->conn->server->o;
    struct head h = {.at = version + 10};
    const char *fault = look_at_request_line(r, method, version);
    if (!fault) {
        MHD_get_connection_values_n(r->conn->mhd, MHD_HEADER_KIND, look_at_header, &h);
        fault = h.fault;
    }
    if (fault)
        return refuse(text, text_bytes, 400, fault);

    const union MHD_ConnectionInfo *info = MHD_get_connection_info(r->conn->mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    size_t size = info ? info->header_size : 0;
    if (size > o->header_bytes_max) {
        snprintf(text, text_bytes, "The request's headers have %zu bytes; at most %zu are allowed.", size, o->header_bytes_max);
        return 431;
    }
    if (PARSED_IN_PLACE && h.at + 2 != method + size)
        return refuse(text, text_bytes, 400, "A header line is folded, has a NUL, or does not end with CR LF.");
    fault = look_at_framing(&h, strcmp(version, "HTTP/1.0") == 0);
    if (fault)
        return refuse(text, text_bytes, 400, fault);
    r->chunked_body = h.encodings > 0;
    if (h.lengths && strtoull(h.length, NULL, 10) > o->body_bytes_max) {
        snprintf(text, text_bytes, "The body has %.20s bytes; at most %zu are allowed (--max-body).", h.length,
                 o->body_bytes_max);
        return 413;
    }
    return 0;
}

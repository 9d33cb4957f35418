/* Errors.
 *
 * Every fallible function takes `struct err *err` as its last parameter and returns bool (false = failed) or a
 * pointer (NULL = failed). The code says what a program may do about it, the text tells a person what failed (with
 * the value), why, and what to do. Library folders never log and never exit: they fill an err and return.
 *
 * One table (err.c) maps a code to its HTTP status, API error type, stable API code and process exit code.
 * Thread: plain data, no locks. Memory: fixed size, no ownership. `err` may be NULL where the caller does not care.
 */
#ifndef INFERD_BASE_ERR_H
#define INFERD_BASE_ERR_H

#include <stdarg.h>
#include <stdbool.h>

#define ERR_TEXT_BYTES_MAX  1024
#define ERR_PARAM_BYTES_MAX 96

enum err_code {
    ERR_NONE = 0,
    ERR_INVALID_REQUEST,   /* 400: a field, a type, a range, malformed JSON */
    ERR_UNSUPPORTED,       /* 400: understood, but not something we do: named */
    ERR_CONTEXT_LENGTH,    /* 400: prompt + max_tokens over the context */
    ERR_TEMPLATE,          /* 400: the chat template refused or failed */
    ERR_UNAUTHORIZED,      /* 401 */
    ERR_FORBIDDEN,         /* 403 */
    ERR_NOT_FOUND,         /* 404: route, request id, session, job */
    ERR_MODEL_NOT_FOUND,   /* 404 */
    ERR_METHOD,            /* 405 */
    ERR_TIMEOUT,           /* 408 */
    ERR_CONFLICT,          /* 409 */
    ERR_TOO_LARGE,         /* 413: body over the limit */
    ERR_RATE_LIMIT,        /* 429 */
    ERR_QUEUE_FULL,        /* 429: bounded queue is full */
    ERR_CANCELLED,         /* 499 */
    ERR_MODEL_DAMAGED,     /* 500: file is cut, overlaps, lies about sizes */
    ERR_MODEL_UNSUPPORTED, /* 400: architecture or type that we do not know */
    ERR_MEMORY,            /* 503: does not fit in the memory plan */
    ERR_DRAINING,          /* 503 */
    ERR_UNAVAILABLE,       /* 503: a backend is missing */
    ERR_IO,                /* 500: the operating system refused */
    ERR_INTERNAL,          /* 500: a bug of ours */
    ERR_USAGE,             /* command line or configuration */
    ERR_CODE_COUNT
};

struct err {
    enum err_code code;
    char param[ERR_PARAM_BYTES_MAX]; /* request field or tensor concerned; "" when none */
    char text[ERR_TEXT_BYTES_MAX];
};

struct err_info {
    int http_status;
    int exit_code;
    const char *type; /* OpenAI's `type`: "invalid_request_error", ... */
    const char *code; /* stable `code`: "model_not_found", "context_length_exceeded", ... */
};

/* Row of the table for `code`; never NULL. */
const struct err_info *err_info(enum err_code code);

/* The code whose stable API code is `code`; `otherwise` where there is none. */
enum err_code err_code_named(const char *code, enum err_code otherwise);

/* Fills `err` (may be NULL) and returns false, so that `return err_set(...)` reads well. Text is cut at its bound. */
bool err_set(struct err *err, enum err_code code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Same, and names the request field (`param`) that is at fault. */
bool err_set_param(struct err *err, enum err_code code, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Puts "prefix: " before the text that is already there. Returns false. */
bool err_prefix(struct err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* For our own bugs only: prints and aborts. */
#define CHECK(cond) ((cond) ? (void)0 : err_check_failed(#cond, __FILE__, __LINE__))
_Noreturn void err_check_failed(const char *cond, const char *file, int line);

#endif

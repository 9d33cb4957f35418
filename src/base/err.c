#include "base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct err_info table[ERR_CODE_COUNT] = {
    [ERR_NONE] = {200, 0, "", ""},
    [ERR_INVALID_REQUEST] = {400, 2, "invalid_request_error", "invalid_request"},
    [ERR_UNSUPPORTED] = {400, 2, "invalid_request_error", "unsupported"},
    [ERR_CONTEXT_LENGTH] = {400, 2, "invalid_request_error", "context_length_exceeded"},
    [ERR_TEMPLATE] = {400, 2, "invalid_request_error", "template_error"},
    [ERR_UNAUTHORIZED] = {401, 4, "authentication_error", "invalid_api_key"},
    [ERR_FORBIDDEN] = {403, 4, "permission_error", "insufficient_scope"},
    [ERR_NOT_FOUND] = {404, 3, "invalid_request_error", "not_found"},
    [ERR_MODEL_NOT_FOUND] = {404, 3, "invalid_request_error", "model_not_found"},
    [ERR_METHOD] = {405, 2, "invalid_request_error", "method_not_allowed"},
    [ERR_TIMEOUT] = {408, 5, "timeout_error", "timeout"},
    [ERR_CONFLICT] = {409, 1, "invalid_request_error", "conflict"},
    [ERR_TOO_LARGE] = {413, 2, "invalid_request_error", "body_too_large"},
    [ERR_RATE_LIMIT] = {429, 5, "rate_limit_error", "rate_limit_exceeded"},
    [ERR_QUEUE_FULL] = {429, 5, "rate_limit_error", "queue_full"},
    [ERR_CANCELLED] = {499, 130, "cancelled_error", "cancelled"},
    [ERR_MODEL_DAMAGED] = {500, 6, "server_error", "model_damaged"},
    [ERR_MODEL_UNSUPPORTED] = {400, 6, "invalid_request_error", "model_unsupported"},
    [ERR_MEMORY] = {503, 7, "server_error", "insufficient_memory"},
    [ERR_DRAINING] = {503, 5, "server_error", "draining"},
    [ERR_UNAVAILABLE] = {503, 5, "server_error", "unavailable"},
    [ERR_IO] = {500, 1, "server_error", "io_error"},
    [ERR_INTERNAL] = {500, 1, "server_error", "internal_error"},
    [ERR_USAGE] = {400, 2, "invalid_request_error", "usage"},
};

const struct err_info *err_info(enum err_code code)
{
    if (code < 0 || code >= ERR_CODE_COUNT)
        code = ERR_INTERNAL;
    return &table[code];
}

enum err_code err_code_named(const char *code, enum err_code otherwise)
{
    for (int i = ERR_NONE + 1; i < ERR_CODE_COUNT; i++)
        if (strcmp(table[i].code, code) == 0)
            return (enum err_code)i;
    return otherwise;
}

static void set_text(struct err *err, enum err_code code, const char *param, const char *format, va_list args)
{
    if (!err)
        return;
    err->code = code;
    snprintf(err->param, sizeof err->param, "%s", param);
    vsnprintf(err->text, sizeof err->text, format, args);
}

bool err_set(struct err *err, enum err_code code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    set_text(err, code, "", format, args);
    va_end(args);
    return false;
}

bool err_set_param(struct err *err, enum err_code code, const char *param, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    set_text(err, code, param, format, args);
    va_end(args);
    return false;
}

bool err_prefix(struct err *err, const char *format, ...)
{
    if (!err)
        return false;
    char old[ERR_TEXT_BYTES_MAX];
    char prefix[ERR_TEXT_BYTES_MAX / 2];
    memcpy(old, err->text, sizeof old);
    va_list args;
    va_start(args, format);
    vsnprintf(prefix, sizeof prefix, format, args);
    va_end(args);
    /* A cut text is what the bound promises. */
    int n = snprintf(err->text, sizeof err->text, "%s: ", prefix);
    if (n > 0 && (size_t)n < sizeof err->text)
        snprintf(err->text + n, sizeof err->text - (size_t)n, "%.*s", (int)(sizeof err->text - (size_t)n - 1), old);
    return false;
}

_Noreturn void err_check_failed(const char *cond, const char *file, int line)
{
    fprintf(stderr, "inferd: bug: check failed: %s (%s:%d)\n", cond, file, line);
    abort();
}

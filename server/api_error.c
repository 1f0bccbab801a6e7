/* SPDX-License-Identifier: Apache-2.0
 *
 * Typed errors of the API. Types and codes are those that OpenAI's service uses where it has one for the case. */
#include "server/api_error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

#include "server/json.h"

/* One line of valid UTF-8 in place; also ends a character that the buffer's end cut in two. */
static void sanitize(char *text)
{
    size_t count = strlen(text);
    for (size_t at = 0; at < count;) {
        int32_t code;
        utf8proc_ssize_t length =
            utf8proc_iterate((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)(count - at), &code);
        if (length < 1 || code < 0x20 || (code >= 0x7f && code < 0xa0) || code == 0x2028 || code == 0x2029) {
            size_t broken = length < 1 ? 1 : (size_t)length;
            memset(text + at, '?', broken);
            at += broken;
        } else {
            at += (size_t)length;
        }
    }
}

static void set(kn_api_error *error, int status, const char *type, const char *code, const char *param)
{
    *error = (kn_api_error){.status = status, .type = type, .code = code};
    snprintf(error->param, sizeof error->param, "%s", param ? param : "");
    sanitize(error->param);
}

static void say(kn_api_error *error, const char *format, va_list arguments)
{
    vsnprintf(error->message, sizeof error->message, format, arguments);
    sanitize(error->message);
}

static int32_t bounded_retry(int32_t seconds)
{
    if (seconds < 1) return 0;
    return seconds < KN_RETRY_AFTER_MAX ? seconds : KN_RETRY_AFTER_MAX;
}

/* va_start needs the last named parameter, so each constructor does this itself. */
#define SAY(error)                                                                                                     \
    do {                                                                                                               \
        va_list arguments;                                                                                             \
        va_start(arguments, format);                                                                                   \
        say(error, format, arguments);                                                                                 \
        va_end(arguments);                                                                                             \
    } while (0)

static const char *const invalid_request = "invalid_request_error";

kn_status kn_api_invalid_value(kn_api_error *error, const char *param, const char *format, ...)
{
    set(error, 400, invalid_request, "invalid_value", param);
    SAY(error);
    return kn_fail(KN_INVALID, "%s", error->message);
}

kn_status kn_api_invalid_type(kn_api_error *error, const char *param, const char *format, ...)
{
    set(error, 400, invalid_request, "invalid_type", param);
    SAY(error);
    return kn_fail(KN_INVALID, "%s", error->message);
}

kn_status kn_api_invalid_body(kn_api_error *error, const char *format, ...)
{
    set(error, 400, invalid_request, "invalid_body", NULL);
    SAY(error);
    return kn_fail(KN_INVALID, "%s", error->message);
}

static kn_status tell(kn_api_error *error, kn_status status, const char *format, ...) KN_PRINTF(3, 4);

static kn_status tell(kn_api_error *error, kn_status status, const char *format, ...)
{
    SAY(error);
    return kn_fail(status, "%s", error->message);
}

kn_status kn_api_missing_parameter(kn_api_error *error, const char *param)
{
    set(error, 400, invalid_request, "missing_required_parameter", param);
    return tell(error, KN_INVALID, "Missing required parameter: '%s'.", error->param);
}

kn_status kn_api_unknown_parameter(kn_api_error *error, const char *param)
{
    set(error, 400, invalid_request, "unknown_parameter", param);
    return tell(error, KN_INVALID, "Unknown parameter: '%s'.", error->param);
}

kn_status kn_api_unsupported(kn_api_error *error, const char *param, const char *code, const char *format, ...)
{
    set(error, 400, invalid_request, code, param);
    SAY(error);
    return kn_fail(KN_UNSUPPORTED, "%s", error->message);
}

kn_status kn_api_unauthorized(kn_api_error *error, const char *message)
{
    set(error, 401, invalid_request, "invalid_api_key", NULL);
    return tell(error, KN_INVALID, "%s", message);
}

kn_status kn_api_forbidden(kn_api_error *error, const char *message)
{
    set(error, 403, "permission_error", "forbidden", NULL);
    return tell(error, KN_INVALID, "%s", message);
}

kn_status kn_api_not_found(kn_api_error *error, const char *what, const char *id)
{
    set(error, 404, invalid_request, "not_found", NULL);
    return tell(error, KN_NOT_FOUND, "No %s with id '%.100s'.", what, id);
}

kn_status kn_api_method_not_allowed(kn_api_error *error, const char *method)
{
    set(error, 405, invalid_request, "method_not_allowed", NULL);
    return tell(error, KN_INVALID, "Method %.32s is not allowed here.", method);
}

kn_status kn_api_conflict(kn_api_error *error, const char *code, int32_t retry_after_s, const char *format, ...)
{
    set(error, 409, invalid_request, code, NULL);
    error->retry_after_s = bounded_retry(retry_after_s);
    error->no_retry = error->retry_after_s == 0;
    SAY(error);
    return kn_fail(KN_INVALID, "%s", error->message);
}

kn_status kn_api_gone(kn_api_error *error, const char *format, ...)
{
    set(error, 410, invalid_request, "expired", NULL);
    SAY(error);
    return kn_fail(KN_NOT_FOUND, "%s", error->message);
}

kn_status kn_api_too_large(kn_api_error *error, const char *what, uint64_t limit)
{
    set(error, 413, invalid_request, "payload_too_large", NULL);
    return tell(error, KN_INVALID, "%s is larger than %llu bytes.", what, (unsigned long long)limit);
}

kn_status kn_api_unsupported_media_type(kn_api_error *error, const char *format, ...)
{
    set(error, 415, invalid_request, "unsupported_media_type", NULL);
    SAY(error);
    return kn_fail(KN_UNSUPPORTED, "%s", error->message);
}

kn_status kn_api_key_reused(kn_api_error *error)
{
    set(error, 409, invalid_request, "idempotency_key_reused", "Idempotency-Key");
    error->no_retry = true; /* clients repeat 409 unasked */
    return tell(error, KN_INVALID,
                "This Idempotency-Key was used before with a different request; use a new key for a new request.");
}

kn_status kn_api_rate_limited(kn_api_error *error, const char *code, int32_t retry_after_s, const char *format, ...)
{
    set(error, 429, "rate_limit_error", code, NULL);
    error->retry_after_s = bounded_retry(retry_after_s);
    error->no_retry = error->retry_after_s == 0;
    SAY(error);
    return kn_fail(KN_UNAVAILABLE, "%s", error->message);
}

kn_status kn_api_overloaded(kn_api_error *error, int32_t retry_after_s, const char *format, ...)
{
    set(error, 503, "service_unavailable_error", "server_is_overloaded", NULL);
    error->retry_after_s = bounded_retry(retry_after_s);
    SAY(error);
    return kn_fail(KN_UNAVAILABLE, "%s", error->message);
}

static void set_internal(kn_api_error *error)
{
    set(error, 500, "server_error", "internal_error", NULL);
    snprintf(error->message, sizeof error->message, "The server had an error while processing the request.");
}

kn_status kn_api_internal(kn_api_error *error)
{
    set_internal(error);
    return KN_BUG;
}

kn_status kn_api_from_status(kn_api_error *error, kn_status status)
{
    if (status == KN_NOMEM) {
        set(error, 503, "service_unavailable_error", "server_is_overloaded", NULL);
        error->retry_after_s = 1;
        snprintf(error->message, sizeof error->message, "The server is out of memory; try again shortly.");
    } else {
        set_internal(error);
    }
    return status;
}

void kn_api_error_write(kn_text *out, const kn_api_error *error)
{
    kn_json_writer w = kn_json_writer_on(out);
    kn_json_write_object(&w);
    kn_json_write_key(&w, "error");
    kn_json_write_object(&w);
    kn_json_write_key(&w, "message");
    kn_json_write_string(&w, error->message);
    kn_json_write_key(&w, "type");
    kn_json_write_string(&w, error->type);
    kn_json_write_key(&w, "param");
    kn_json_write_string(&w, error->param[0] ? error->param : NULL);
    kn_json_write_key(&w, "code");
    kn_json_write_string(&w, error->code);
    kn_json_write_object_end(&w);
    kn_json_write_object_end(&w);
}

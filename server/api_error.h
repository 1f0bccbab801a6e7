/* SPDX-License-Identifier: Apache-2.0
 *
 * What a client is told when a request cannot be served, in the shape OpenAI's clients unwrap:
 *
 *   {"error": {"message": string, "type": string, "param": string|null, "code": string|null}}
 *
 * An error is a value without memory of its own. Every function of the room that takes a `kn_api_error *error` fills it
 * whenever it does not return KN_OK, and leaves it alone otherwise. */
#ifndef KN_SERVER_API_ERROR_H
#define KN_SERVER_API_ERROR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "server/text.h"

enum {
    KN_API_PARAM_BYTES = 80,
    KN_API_MESSAGE_BYTES = 400,
    KN_RETRY_AFTER_MAX = 120, /* seconds; above it OpenAI's clients do not retry at all */
};

typedef struct kn_api_error {
    int status;                         /* of HTTP, 400..599 */
    const char *type;                   /* "invalid_request_error", ...; a literal */
    const char *code;                   /* "invalid_value", ...; a literal, or NULL */
    char param[KN_API_PARAM_BYTES];     /* the API's name of the field at fault; "": null */
    char message[KN_API_MESSAGE_BYTES]; /* one line: what is wrong and what is allowed; long texts are cut */
    int32_t retry_after_s;              /* for a Retry-After header, 1..KN_RETRY_AFTER_MAX; 0: no header */
    bool no_retry;                      /* send "x-should-retry: false": clients retry 409 and 5xx unasked */
} kn_api_error;

/* Each fills *error and returns the status that fits, so that `return kn_api_...(error, ...)` reads as one statement.
 * Control characters and broken UTF-8 in what is formatted are replaced; a message stays one line. */

/* 400 invalid_request_error. KN_INVALID. */
kn_status kn_api_invalid_value(kn_api_error *error, const char *param, const char *format, ...) KN_PRINTF(3, 4);
kn_status kn_api_invalid_type(kn_api_error *error, const char *param, const char *format, ...) KN_PRINTF(3, 4);
kn_status kn_api_invalid_body(kn_api_error *error, const char *format, ...) KN_PRINTF(2, 3); /* code "invalid_body" */
kn_status kn_api_missing_parameter(kn_api_error *error, const char *param); /* "missing_required_parameter" */
kn_status kn_api_unknown_parameter(kn_api_error *error, const char *param); /* "unknown_parameter" */
/* 400, understood but not something this model or server does. KN_UNSUPPORTED. */
kn_status kn_api_unsupported(kn_api_error *error, const char *param, const char *code, const char *format, ...)
    KN_PRINTF(4, 5);

kn_status kn_api_unauthorized(kn_api_error *error, const char *message); /* 401 invalid_api_key. KN_INVALID */
kn_status kn_api_forbidden(kn_api_error *error, const char *message);    /* 403 permission_error. KN_INVALID */
/* 404 "not_found": "No video with id 'video_...'". `what` is a word such as "video". KN_NOT_FOUND */
kn_status kn_api_not_found(kn_api_error *error, const char *what, const char *id);
kn_status kn_api_method_not_allowed(kn_api_error *error, const char *method); /* 405. KN_INVALID */
/* 409 with `code` (a literal). retry_after_s 0: the client must not repeat it. KN_INVALID */
kn_status kn_api_conflict(kn_api_error *error, const char *code, int32_t retry_after_s, const char *format, ...)
    KN_PRINTF(4, 5);
/* 410, code "expired". KN_NOT_FOUND */
kn_status kn_api_gone(kn_api_error *error, const char *format, ...) KN_PRINTF(2, 3);
/* 413, code "payload_too_large", message "<what> is larger than <limit> bytes". KN_INVALID */
kn_status kn_api_too_large(kn_api_error *error, const char *what, uint64_t limit);
/* 415, code "unsupported_media_type". KN_UNSUPPORTED */
kn_status kn_api_unsupported_media_type(kn_api_error *error, const char *format, ...) KN_PRINTF(2, 3);
/* 409, code "idempotency_key_reused": the key came before with another body; no_retry. KN_INVALID */
kn_status kn_api_key_reused(kn_api_error *error);
/* 429 rate_limit_error; `code` "rate_limit_exceeded", "slow_down", "insufficient_quota" (the last: no_retry).
 * KN_UNAVAILABLE */
kn_status kn_api_rate_limited(kn_api_error *error, const char *code, int32_t retry_after_s, const char *format, ...)
    KN_PRINTF(4, 5);
/* 503 service_unavailable_error, code "server_is_overloaded". KN_UNAVAILABLE */
kn_status kn_api_overloaded(kn_api_error *error, int32_t retry_after_s, const char *format, ...) KN_PRINTF(3, 4);
/* 500 server_error without detail: what went wrong is for the log, not the client. KN_BUG */
kn_status kn_api_internal(kn_api_error *error);

/* For a status from below that has no typed error yet: KN_NOMEM is 503, anything else 500. Returns `status`. */
kn_status kn_api_from_status(kn_api_error *error, kn_status status);

/* The body above. */
void kn_api_error_write(kn_text *out, const kn_api_error *error);

#endif

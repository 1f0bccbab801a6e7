/* SPDX-License-Identifier: Apache-2.0
 *
 * Which bytes of a representation a request asks for: preconditions and ranges (RFC 9110 13 and 14), as a function of
 * header values. */
#ifndef KN_SERVER_HTTP_RANGE_H
#define KN_SERVER_HTTP_RANGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* Header values are NULL where the request has none. */
typedef struct kn_http_conditions {
    const char *if_match, *if_none_match, *if_range, *range;
    const char *etag; /* of the representation, strong, with its quotes; NULL: none */
    uint64_t bytes;   /* of the representation */
    bool ranges;      /* a GET of something that offers ranges */
} kn_http_conditions;

typedef struct kn_http_selection {
    int status;            /* 200, 206, 304, 412, 416 */
    uint64_t first, bytes; /* what to send: all of it for 200; 0 bytes for 304, 412, 416 */
} kn_http_selection;

kn_http_selection kn_http_select(const kn_http_conditions *conditions);

/* Is `etag` in the list of an If-Match (`weak` false) or If-None-Match (true)? "*" lists every one. What is not a
 * list of entity tags matches nothing. */
bool kn_http_etag_listed(const char *list, const char *etag, bool weak);

/* A Range value against a representation of `bytes` bytes. KN_OK: *first and *count, at least one byte. KN_NOT_FOUND:
 * it lies outside (416). KN_UNSUPPORTED: malformed, another unit, or several ranges: to be ignored. */
kn_status kn_http_parse_range(const char *value, uint64_t bytes, uint64_t *first, uint64_t *count);

#endif

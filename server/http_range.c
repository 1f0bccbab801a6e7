/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "server/http_range.h"

#include <string.h>
#include <strings.h>

static const char *skip_space(const char *at)
{
    return at + strspn(at, " \t");
}

/* Digits at *at. False without a digit; a number too large to hold is UINT64_MAX, beyond any file. */
static bool read_number(const char **at, uint64_t *out)
{
    const char *start = *at;
    *out = 0;
    for (; **at >= '0' && **at <= '9'; (*at)++)
        *out = *out > (UINT64_MAX - 9) / 10 ? UINT64_MAX : *out * 10 + (uint64_t)(**at - '0');
    return *at > start;
}

kn_status kn_http_parse_range(const char *value, uint64_t bytes, uint64_t *first, uint64_t *count)
{
    uint64_t from = 0, to = UINT64_MAX;
    if (strncasecmp(value, "bytes=", 6) != 0) return KN_UNSUPPORTED;
    const char *at = skip_space(value + 6);
    const bool has_from = read_number(&at, &from);
    if (*at++ != '-') return KN_UNSUPPORTED;
    const bool has_to = read_number(&at, &to);
    if (!has_to) to = UINT64_MAX;
    if (*skip_space(at) != '\0' || (!has_from && !has_to) || (has_from && to < from)) return KN_UNSUPPORTED;
    if (!has_from) { /* the last `to` bytes */
        if (to == 0 || bytes == 0) return KN_NOT_FOUND;
        *count = to < bytes ? to : bytes;
        *first = bytes - *count;
        return KN_OK;
    }
    if (from >= bytes) return KN_NOT_FOUND;
    *first = from;
    *count = (to < bytes ? to : bytes - 1) - from + 1;
    return KN_OK;
}

bool kn_http_etag_listed(const char *list, const char *etag, bool weak)
{
    const char *at = skip_space(list);
    if (!etag) return false;
    if (at[0] == '*') return *skip_space(at + 1) == '\0';
    while (*at) {
        const bool is_weak = strncmp(at, "W/", 2) == 0;
        const char *tag = is_weak ? at + 2 : at;
        const char *end = *tag == '"' ? strchr(tag + 1, '"') : NULL;
        if (!end) return false;
        const size_t tag_bytes = (size_t)(end - tag) + 1;
        if ((weak || !is_weak) && strlen(etag) == tag_bytes && memcmp(tag, etag, tag_bytes) == 0) return true;
        at = skip_space(end + 1);
        if (*at && *at != ',') return false;
        at += strspn(at, ", \t");
    }
    return false;
}

kn_http_selection kn_http_select(const kn_http_conditions *c)
{
    kn_http_selection selection = {.status = 200, .bytes = c->bytes};
    uint64_t first, count;
    if (c->if_match && !kn_http_etag_listed(c->if_match, c->etag, false)) return (kn_http_selection){.status = 412};
    if (c->if_none_match && kn_http_etag_listed(c->if_none_match, c->etag, true))
        return (kn_http_selection){.status = 304};
    if (!c->ranges || !c->range) return selection;
    /* If-Range is one strong tag; a date cannot match, as nothing here has Last-Modified. */
    if (c->if_range && (!c->etag || strcmp(c->if_range, c->etag) != 0)) return selection;
    switch (kn_http_parse_range(c->range, c->bytes, &first, &count)) {
    case KN_OK: return (kn_http_selection){.status = 206, .first = first, .bytes = count};
    case KN_NOT_FOUND: return (kn_http_selection){.status = 416};
    default: return selection;
    }
}

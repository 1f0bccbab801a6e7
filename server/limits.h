/* SPDX-License-Identifier: Apache-2.0
 *
 * Request rates.
 *
 * A limit of n requests a minute is a bucket of n tokens (or of `burst`) that refills evenly, n in a minute. It is kept
 * as the one number of the generic cell rate algorithm (ITU-T I.371, "virtual scheduling"): the time at which the
 * bucket will be full again. The arithmetic is exact; a bucket whose time has passed is as good as none, so forgetting
 * it changes nothing, and the table is bounded by forgetting those.
 *
 * Pure: the caller gives the monotonic clock. Quotas over a day of device time are transactions of the store; here they
 * only get their words. One thread at a time. */
#ifndef KN_SERVER_LIMITS_H
#define KN_SERVER_LIMITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct kn_limits kn_limits;

typedef struct kn_limit_result {
    bool allowed;
    int32_t limit;          /* requests a minute; 0: unlimited, no headers */
    int32_t remaining;      /* requests that would be allowed right now */
    int64_t reset_ns;       /* until the bucket is full again */
    int64_t retry_after_ns; /* until the next request is allowed; 0 when this one was */
} kn_limit_result;

/* Room for `entries_max` names that are not idle. */
kn_status kn_limits_create(kn_limits **out, size_t entries_max);
void kn_limits_destroy(kn_limits **limits);

typedef struct kn_limit {
    int32_t requests_per_minute; /* 0: no limit */
    int32_t burst;               /* requests at once; 0: requests_per_minute */
} kn_limit;

/* Takes one token of `name` (a key id or "tenant:" and a tenant), shorter than KN_NAME_BYTES. Without a limit always
 * allows and keeps nothing. A clock that goes back is harmless. When the table is full of names that are not idle a new
 * one is refused. */
kn_limit_result kn_limits_take(kn_limits *limits, const char *name, kn_limit limit, int64_t now_ns);

/* Gives the token of an allowed take back. */
void kn_limits_return(kn_limits *limits, const char *name, kn_limit limit, int64_t now_ns);

/* Forgets names whose buckets are full. Called from time to time to give memory back; _take does it when it must. */
void kn_limits_sweep(kn_limits *limits, int64_t now_ns);
size_t kn_limits_count(const kn_limits *limits);

/* ---- words ---- */

/* Values of response headers; a value of "" is not sent. */
typedef struct kn_limit_headers {
    char limit[16];     /* x-ratelimit-limit-requests */
    char remaining[16]; /* x-ratelimit-remaining-requests */
    char reset[24];     /* x-ratelimit-reset-requests: "250ms", "1s", "6m0s", "1h0m0s" */
} kn_limit_headers;

void kn_limits_headers(kn_limit_headers *out, const kn_limit_result *result);

/* Rounded up: below a second in milliseconds, from a second on in whole seconds. A client of this API reads it so. */
void kn_limits_duration(char out[24], int64_t ns);

/* For Retry-After: whole seconds, rounded up, 1..120 (above 120 the customary client does not retry at all). */
int32_t kn_limits_retry_after_s(int64_t ns);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#include "server/limits.h"

#include <inttypes.h>
#include <stdio.h>

#include "base/mem.h"
#include "server/api_error.h"
#include "server/names.h"

#define SECOND_NS INT64_C(1000000000)
#define MINUTE_NS (60 * SECOND_NS)

struct kn_limits {
    kn_names *names;
    int64_t *full_at; /* [span of names] when the bucket is full again, monotonic ns */
    size_t room;
};

kn_status kn_limits_create(kn_limits **out, size_t entries_max)
{
    kn_status st = KN_OK;
    kn_limits *limits = kn_alloc(sizeof *limits);
    if (!limits) return KN_NOMEM;
    KN_TRY(kn_names_create(&limits->names, entries_max));
    *out = limits;
    return KN_OK;

fail:
    kn_limits_destroy(&limits);
    return st;
}

void kn_limits_destroy(kn_limits **limits)
{
    if (!limits || !*limits) return;
    kn_names_destroy(&(*limits)->names);
    kn_free((*limits)->full_at);
    kn_free(*limits);
    *limits = NULL;
}

void kn_limits_sweep(kn_limits *limits, int64_t now_ns)
{
    for (size_t i = 0; i < kn_names_span(limits->names); i++) {
        const char *name = kn_names_at(limits->names, (uint32_t)i);
        if (name && limits->full_at[i] <= now_ns) kn_names_remove(limits->names, name);
    }
}

size_t kn_limits_count(const kn_limits *limits)
{
    return kn_names_count(limits->names);
}

/* The bucket of a name, made when there is room or somebody idle to forget; NULL otherwise. */
static int64_t *bucket_of(kn_limits *limits, const char *name, int64_t now_ns)
{
    uint32_t number;
    if (kn_names_find(limits->names, name, &number)) return &limits->full_at[number];
    kn_status st = kn_names_add(limits->names, name, &number);
    if (st == KN_UNAVAILABLE) {
        kn_limits_sweep(limits, now_ns);
        st = kn_names_add(limits->names, name, &number);
    }
    if (st != KN_OK) return NULL;
    if (number >= limits->room) {
        size_t room = limits->room ? 2 * limits->room : 16;
        int64_t *grown = kn_realloc(limits->full_at, room * sizeof *grown);
        if (!grown) {
            kn_names_remove(limits->names, name);
            return NULL;
        }
        limits->full_at = grown;
        limits->room = room;
    }
    limits->full_at[number] = now_ns;
    return &limits->full_at[number];
}

/* Time one token takes to come back, and the time an empty bucket takes to fill. */
typedef struct pace {
    int64_t token_ns, whole_ns;
} pace;

static pace pace_of(kn_limit limit)
{
    int64_t burst = limit.burst > 0 ? limit.burst : limit.requests_per_minute;
    int64_t token_ns = MINUTE_NS / limit.requests_per_minute;
    if (token_ns < 1) token_ns = 1;
    return (pace){.token_ns = token_ns, .whole_ns = token_ns * burst};
}

kn_limit_result kn_limits_take(kn_limits *limits, const char *name, kn_limit limit, int64_t now_ns)
{
    if (limit.requests_per_minute <= 0) return (kn_limit_result){.allowed = true};
    pace p = pace_of(limit);
    kn_limit_result result = {.limit = limit.requests_per_minute};
    int64_t *full_at = bucket_of(limits, name, now_ns);
    if (!full_at) {
        result.reset_ns = result.retry_after_ns = SECOND_NS;
        return result;
    }
    int64_t debt = *full_at > now_ns ? *full_at - now_ns : 0;
    if (debt > p.whole_ns) debt = p.whole_ns; /* the limit was lowered, or the clock went back */
    result.allowed = debt + p.token_ns <= p.whole_ns;
    if (result.allowed)
        debt += p.token_ns;
    else
        result.retry_after_ns = debt + p.token_ns - p.whole_ns;
    *full_at = now_ns + debt;
    result.remaining = (int32_t)((p.whole_ns - debt) / p.token_ns);
    result.reset_ns = debt;
    return result;
}

void kn_limits_return(kn_limits *limits, const char *name, kn_limit limit, int64_t now_ns)
{
    uint32_t number;
    if (limit.requests_per_minute <= 0 || !kn_names_find(limits->names, name, &number)) return;
    int64_t full_at = limits->full_at[number] - pace_of(limit).token_ns;
    limits->full_at[number] = full_at > now_ns ? full_at : now_ns;
}

void kn_limits_duration(char out[24], int64_t ns)
{
    if (ns < 0) ns = 0;
    int64_t ms = ns / 1000000 + (ns % 1000000 != 0);
    if (ms < 1000) {
        snprintf(out, 24, ms ? "%" PRId64 "ms" : "%" PRId64 "s", ms);
        return;
    }
    int64_t s = ns / SECOND_NS + (ns % SECOND_NS != 0);
    if (s < 60)
        snprintf(out, 24, "%" PRId64 "s", s);
    else if (s < 3600)
        snprintf(out, 24, "%" PRId64 "m%" PRId64 "s", s / 60, s % 60);
    else
        snprintf(out, 24, "%" PRId64 "h%" PRId64 "m%" PRId64 "s", s / 3600, s / 60 % 60, s % 60);
}

void kn_limits_headers(kn_limit_headers *out, const kn_limit_result *result)
{
    *out = (kn_limit_headers){0};
    if (!result->limit) return;
    snprintf(out->limit, sizeof out->limit, "%" PRId32, result->limit);
    snprintf(out->remaining, sizeof out->remaining, "%" PRId32, result->remaining);
    kn_limits_duration(out->reset, result->reset_ns);
}

int32_t kn_limits_retry_after_s(int64_t ns)
{
    if (ns <= SECOND_NS) return 1;
    if (ns > KN_RETRY_AFTER_MAX * SECOND_NS) return KN_RETRY_AFTER_MAX;
    return (int32_t)(ns / SECOND_NS + (ns % SECOND_NS != 0));
}

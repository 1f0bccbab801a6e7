/* SPDX-License-Identifier: Apache-2.0 */
#include "server/policy.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/mem.h"
#include "server/http.h"
#include "server/moderation.h"

struct kn_policy {
    const kn_keys *keys;
    bool open;
    kn_policy_rates rates;
    kn_store_limits defaults;
    kn_limits *limits; /* by key id, and by "tenant:" and the tenant */
};

kn_status kn_policy_create(kn_policy **out, const kn_policy_options *options)
{
    KN_REQUIRE(options->open || options->keys);
    kn_status st = KN_OK;
    kn_policy *policy = kn_alloc(sizeof *policy);
    if (!policy) return KN_NOMEM;
    policy->keys = options->keys;
    policy->open = options->open;
    kn_policy_set(policy, &options->rates, &options->limits);
    KN_TRY(kn_limits_create(&policy->limits, 2 * (size_t)KN_KEYS_MAX)); /* every key, each of its own tenant */
    *out = policy;
    return KN_OK;

fail:
    kn_policy_destroy(&policy);
    return st;
}

void kn_policy_destroy(kn_policy **policy)
{
    if (!policy || !*policy) return;
    kn_limits_destroy(&(*policy)->limits);
    kn_free(*policy);
    *policy = NULL;
}

void kn_policy_set(kn_policy *policy, const kn_policy_rates *rates, const kn_store_limits *limits)
{
    policy->rates = *rates;
    policy->defaults = *limits;
}

/* The token of "Bearer TOKEN" (RFC 6750; the scheme in any case, RFC 9110 section 11.1), NULL for anything else. */
static const char *bearer(const char *value, size_t bytes, size_t *token_bytes)
{
    static const char scheme[] = "Bearer ";
    size_t start = sizeof scheme - 1;
    if (!value || bytes < start || strncasecmp(value, scheme, start) != 0) return NULL;
    while (start < bytes && value[start] == ' ') start++;
    while (bytes > start && (value[bytes - 1] == ' ' || value[bytes - 1] == '\t')) bytes--;
    *token_bytes = bytes - start;
    return value + start;
}

static kn_store_limits merged(const kn_store_limits *own, const kn_store_limits *defaults)
{
    kn_store_limits limits = *own;
    if (!limits.max_active) limits.max_active = defaults->max_active;
    if (!limits.device_us) {
        limits.device_us = defaults->device_us;
        limits.window_us = defaults->window_us;
    }
    return limits;
}

static void principal_of(kn_principal *out, const kn_key *key, const kn_store_limits *defaults)
{
    memcpy(out->tenant, key->tenant, sizeof out->tenant);
    memcpy(out->key_id, key->id, sizeof out->key_id);
    memcpy(out->region, key->region, sizeof out->region);
    snprintf(out->models, sizeof out->models, "%s", key->models);
    out->scopes = key->scopes;
    out->priorities = key->priorities;
    out->limits = merged(&key->limits, defaults);
}

static void everybody(kn_principal *out, const kn_policy *policy)
{
    memcpy(out->tenant, "default", sizeof "default");
    out->scopes = KN_SCOPES_ALL;
    out->priorities = (1u << KN_PRIORITIES) - 1;
    out->limits = policy->defaults;
}

/* The key's own rate, then that of its tenant; what the client hears of is the one it is closer to. */
static bool within_rate(kn_policy *policy, const kn_principal *principal, kn_limit own, int64_t now_ns,
                        kn_access *access)
{
    char tenant[KN_TENANT_BYTES + sizeof "tenant:"];
    snprintf(tenant, sizeof tenant, "tenant:%s", principal->tenant);
    kn_limit_result key = {.allowed = true}, all;
    if (principal->key_id[0]) key = kn_limits_take(policy->limits, principal->key_id, own, now_ns);
    kn_limit_result told = key;
    if (key.allowed) {
        all = kn_limits_take(policy->limits, tenant, policy->rates.tenant, now_ns);
        /* What the tenant's limit refuses was not a request of this key. */
        if (!all.allowed && key.limit) kn_limits_return(policy->limits, principal->key_id, own, now_ns);
        if (!all.allowed || !key.limit || (all.limit && all.remaining < key.remaining)) told = all;
    }
    kn_limits_headers(&access->headers, &told);
    if (told.allowed) return true;
    kn_api_rate_limited(&access->error, "rate_limit_exceeded", kn_limits_retry_after_s(told.retry_after_ns),
                        "Rate limit of %" PRId32 " requests per minute reached; the next request is allowed in %" PRId32
                        " s",
                        told.limit, kn_limits_retry_after_s(told.retry_after_ns));
    return false;
}

static const char *unauthorized(kn_key_verdict verdict)
{
    switch (verdict) {
    case KN_KEY_EXPIRED: return "This API key has expired; ask for a new one";
    case KN_KEY_REVOKED: return "This API key was revoked; ask for a new one";
    default: return "Incorrect API key provided";
    }
}

void kn_policy_authorize(kn_policy *policy, const kn_policy_request *request, kn_access *access)
{
    *access = (kn_access){0};
    kn_limit rate = policy->rates.key;
    if (policy->keys && kn_keys_count(policy->keys) > 0) policy->open = false; /* for good: see policy.h */
    if (policy->open) {
        everybody(&access->principal, policy);
    } else {
        size_t bytes = 0;
        const char *token = bearer(request->authorization, request->authorization_bytes, &bytes);
        if (!token) {
            kn_api_unauthorized(&access->error, "You didn't provide an API key; send it in the header "
                                                "\"Authorization: Bearer YOUR_KEY\"");
            return;
        }
        const kn_key *key;
        kn_key_verdict verdict = kn_keys_check(policy->keys, token, bytes, request->now_us, &key);
        if (verdict != KN_KEY_GOOD) {
            kn_api_unauthorized(&access->error, unauthorized(verdict));
            return;
        }
        principal_of(&access->principal, key, &policy->defaults);
        if (key->requests_per_minute) rate = (kn_limit){key->requests_per_minute, key->burst};
    }
    if (!within_rate(policy, &access->principal, rate, request->now_ns, access)) return;
    if (!kn_principal_has(&access->principal, request->scope)) {
        char message[128];
        snprintf(message, sizeof message, "This API key may not do this: it lacks the scope \"%s\"",
                 kn_scope_name(request->scope));
        kn_api_forbidden(&access->error, message);
        return;
    }
    access->allowed = true;
}

bool kn_principal_has(const kn_principal *principal, kn_scope scope)
{
    return scope && ((uint32_t)scope & ~principal->scopes) == 0;
}

kn_status kn_policy_check_job(const kn_principal *principal, const char *model, kn_priority priority,
                              const char *region, kn_api_error *error)
{
    char message[256];
    if (!kn_models_allow(principal->models, model))
        snprintf(message, sizeof message, "This API key may not use the model '%.64s'", model);
    else if ((unsigned)priority >= KN_PRIORITIES || !(principal->priorities & 1u << priority))
        snprintf(message, sizeof message, "This API key may not use the service tier '%s'", kn_priority_name(priority));
    else if (principal->region[0] && strcmp(principal->region, region) != 0)
        snprintf(message, sizeof message,
                 "Jobs of this API key must stay in the region '%s', which this server is not in", principal->region);
    else
        return KN_OK;
    return kn_api_forbidden(error, message);
}

kn_status kn_policy_over_quota(kn_api_error *error, const kn_store_quota *quota, int64_t now_us)
{
    if (quota->which == KN_QUOTA_ACTIVE_JOBS)
        return kn_api_rate_limited(error, "rate_limit_exceeded", KN_JOBS_RETRY_S,
                                   "You have %" PRIu64 " videos queued or in progress and your limit is %" PRIu64
                                   "; wait for one to finish or cancel one",
                                   quota->used, quota->limit);
    const double second = 1e6;
    char renewed[24] = "";
    if (quota->frees_at > now_us) kn_limits_duration(renewed, (quota->frees_at - now_us) * 1000);
    return kn_api_rate_limited(error, "insufficient_quota", 0,
                               "Your device time of %.1f s is used up: %.1f s used or held by queued videos, %.1f s "
                               "needed for this one%s%s",
                               (double)quota->limit / second, (double)quota->used / second,
                               (double)quota->asked / second, renewed[0] ? "; it is renewed in " : "", renewed);
}

kn_status kn_policy_moderated(kn_api_error *error)
{
    return kn_api_unsupported(error, "prompt", KN_MODERATION_CODE, "%s", KN_MODERATION_MESSAGE);
}

kn_status kn_policy_check_bind(const char *address, bool keys_set, bool tls_set)
{
    if (kn_http_address_is_loopback(address) || (keys_set && tls_set)) return KN_OK;
    return kn_fail(
        KN_INVALID,
        "--listen %s can be reached from other machines, which needs%s%s%s; without, listen on 127.0.0.1:PORT "
        "or [::1]:PORT",
        address, keys_set ? "" : " API keys (make one: kinora key create --data DIR --tenant NAME)",
        !keys_set && !tls_set ? " and" : "", tls_set ? "" : " TLS (--tls-cert FILE --tls-key FILE)");
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The one place where a caller is let in. Every protocol comes here with what the client presented and the scope its
 * route requires, before anything else is looked at, and leaves with a principal or a refusal that is ready to send.
 *
 *   presented                        answer
 *   nothing, not "Bearer TEXT"       401 invalid_api_key
 *   malformed, unknown, wrong        401 invalid_api_key, one message for all three
 *   expired, revoked (right secret)  401 invalid_api_key, the message says which
 *   a key over its rate              429 rate_limit_exceeded, with retry-after and x-ratelimit-* headers
 *   a key without the scope          403 permission_error
 *   a good key with the scope        the principal
 *
 * The rate is counted before the scope, so that probing costs tokens too. Without keys (open mode, for a server that
 * listens on this machine only) everybody is the tenant "default" with every scope; what a client presents is ignored.
 * Open mode ends for good when the first key enters the table; a server whose last key is gone refuses everybody. Loop
 * thread only. */
#ifndef KN_SERVER_POLICY_H
#define KN_SERVER_POLICY_H

#include "server/api_error.h"
#include "server/keys.h"
#include "server/limits.h"

/* Who is asking. Copied, so that it outlives changes of the key table. */
typedef struct kn_principal {
    char tenant[KN_TENANT_BYTES];
    char key_id[KN_KEY_ID_BYTES];     /* "" in open mode */
    uint32_t scopes;                  /* bits of kn_scope */
    uint32_t priorities;              /* bits 1 << kn_priority */
    char models[KN_KEY_MODELS_BYTES]; /* separated by commas; "": all */
    char region[KN_REGION_BYTES];     /* "": anywhere */
    kn_store_limits limits;           /* for KN_STORE_SUBMIT */
} kn_principal;

typedef struct kn_access {
    bool allowed;
    kn_principal principal;   /* when allowed; with 403 and 429 it says whom to log; otherwise it is empty */
    kn_api_error error;       /* when not; with 401 also send "www-authenticate: Bearer" */
    kn_limit_headers headers; /* either way */
} kn_access;

enum { KN_JOBS_RETRY_S = 10 }; /* retry-after for a tenant that has all the jobs it may */

typedef struct kn_policy_request {
    const char *authorization; /* value of the Authorization header, need not end in NUL; NULL: there was none */
    size_t authorization_bytes;
    kn_scope scope; /* what the route requires */
    int64_t now_us; /* wall clock, for expiry */
    int64_t now_ns; /* monotonic, for rates */
} kn_policy_request;

typedef struct kn_policy_rates {
    kn_limit key;    /* of a key that has no rate of its own */
    kn_limit tenant; /* of all keys of a tenant together */
} kn_policy_rates;

typedef struct kn_policy_options {
    const kn_keys *keys; /* borrowed for the policy's life; NULL only in open mode */
    bool open;           /* no keys required, as long as there are none */
    kn_policy_rates rates;
    kn_store_limits limits; /* of the tenant in open mode, and of a key for each limit that it does not set */
} kn_policy_options;

typedef struct kn_policy kn_policy;

kn_status kn_policy_create(kn_policy **out, const kn_policy_options *options);
void kn_policy_destroy(kn_policy **policy);

/* From the next request on (reload). */
void kn_policy_set(kn_policy *policy, const kn_policy_rates *rates, const kn_store_limits *limits);

/* Never fails: a doubt is a refusal. */
void kn_policy_authorize(kn_policy *policy, const kn_policy_request *request, kn_access *access);

bool kn_principal_has(const kn_principal *principal, kn_scope scope);

/* May this principal submit such a job? KN_OK, or 403 in *error: the model is not on its list, the priority is not its
 * own, or its jobs must stay in another region than `region`, this server's ("" has none, and takes no such jobs). */
kn_status kn_policy_check_job(const kn_principal *principal, const char *model, kn_priority priority,
                              const char *region, kn_api_error *error);

/* Refusals that are decided elsewhere but must read the same everywhere. Each fills *error and returns its status. */
kn_status kn_policy_over_quota(kn_api_error *error, const kn_store_quota *quota, int64_t now_us); /* 429 */
kn_status kn_policy_moderated(kn_api_error *error);                                               /* 400 */

/* An address that other machines can reach ("0.0.0.0:8000"; anything that is not a numeric loopback address) needs keys
 * and TLS; otherwise KN_INVALID, and the message tells which flags and commands would do. */
kn_status kn_policy_check_bind(const char *address, bool keys_set, bool tls_set);

#endif

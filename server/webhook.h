/* SPDX-License-Identifier: Apache-2.0
 *
 * What a webhook is, without sockets and clocks: its signature, its secrets, when it is tried again, what an answer
 * means, and where it may be sent. Signatures follow Standard Webhooks 1.0 (symmetric scheme "v1"): the base64 of
 * HMAC-SHA256 over "<id>.<timestamp>.<body>" with exactly the bytes of the body. Everything here is a function of
 * its arguments (kn_webhook_new_secret alone asks the system for random bytes) and is thread-safe. */
#ifndef KN_SERVER_WEBHOOK_H
#define KN_SERVER_WEBHOOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct sockaddr;

enum {
    KN_WEBHOOK_ID_MAX = 64,      /* characters of an event id: [A-Za-z0-9_-], no "." (it separates what is signed) */
    KN_WEBHOOK_BODY_MAX = 20000, /* bytes; Standard Webhooks asks for less than 20 kB */
    KN_WEBHOOK_URL_MAX = 2048,   /* characters */
    KN_WEBHOOK_HOST_MAX = 253,   /* characters of a host name, RFC 1035 */
    KN_WEBHOOK_SECRET_BYTES_MIN = 24, /* of the key itself, after base64 */
    KN_WEBHOOK_SECRET_BYTES_MAX = 64,
    KN_WEBHOOK_SECRET_TEXT_MAX = 96, /* characters of a secret as it is written down, "whsec_" included */
    KN_WEBHOOK_SECRETS_MAX = 4,      /* secrets valid at one time, while they are rotated */
    KN_WEBHOOK_SIGNATURE_BYTES = KN_WEBHOOK_SECRETS_MAX * 48, /* "v1,<44 characters> ..." with the NUL */
    KN_WEBHOOK_TOLERANCE_S = 300,                             /* how far a receiver lets the timestamp be off */
    KN_WEBHOOK_ALLOW_MAX = 64,                                /* entries of a policy's allow list */
};

/* ---- secrets and signatures ---- */

/* "whsec_" and the base64 of 32 random bytes. KN_IO: the system gave none. */
kn_status kn_webhook_new_secret(char secret[KN_WEBHOOK_SECRET_TEXT_MAX + 1]);

/* Is this a secret one can sign with: "whsec_" and strict base64 of 24..64 bytes, or 24..64 bytes of text without the
 * prefix. KN_INVALID says what is wrong and never repeats the secret. */
kn_status kn_webhook_check_secret(const char *secret);

/* Takes "secret secret ..." apart, as an endpoint keeps them: 1..KN_WEBHOOK_SECRETS_MAX, single spaces between. `text`
 * is changed, and the secrets point into it. KN_INVALID: none, too many, or one that kn_webhook_check_secret refuses.
 */
kn_status kn_webhook_split_secrets(char *text, const char *secrets[KN_WEBHOOK_SECRETS_MAX], size_t *secret_count);

/* The value of the header "webhook-signature": one "v1,<base64>" for each of the 1..KN_WEBHOOK_SECRETS_MAX secrets,
 * separated by spaces. timestamp: seconds since 1970 >= 0, the value of "webhook-timestamp". KN_INVALID: an id, body or
 * secret outside its limits. */
kn_status kn_webhook_sign(char signature[KN_WEBHOOK_SIGNATURE_BYTES], const char *const *secrets, size_t secret_count,
                          const char *id, int64_t timestamp, const void *body, size_t body_bytes);

/* The receiver's side. KN_OK when one of the header's "v1" signatures fits one of the secrets and `timestamp` is within
 * KN_WEBHOOK_TOLERANCE_S of `now` (both in seconds); KN_INVALID otherwise. Compares in constant time. */
kn_status kn_webhook_verify(const char *const *secrets, size_t secret_count, const char *id, int64_t timestamp,
                            const void *body, size_t body_bytes, const char *signature, int64_t now);

/* ---- answers and retries ---- */

typedef enum kn_webhook_outcome {
    KN_WEBHOOK_DELIVERED, /* 2xx */
    KN_WEBHOOK_FAILED,    /* any other answer, or none: try again later */
    KN_WEBHOOK_THROTTLED, /* 429, 502, 504: try again later, the receiver asks for less */
    KN_WEBHOOK_GONE,      /* 410: give up and disable the endpoint */
    KN_WEBHOOK_REFUSED,   /* never sent: the URL or the address it resolves to is against the policy; give up */
} kn_webhook_outcome;

/* "delivered", "failed", ...: as in the store, in logs and metrics. */
const char *kn_webhook_outcome_name(kn_webhook_outcome outcome);

/* Is another attempt worth it after this outcome (FAILED, THROTTLED)? */
bool kn_webhook_outcome_retries(kn_webhook_outcome outcome);

/* What a complete answer with this status means. A redirect (3xx) is a failure: it is never followed. */
kn_webhook_outcome kn_webhook_classify(int http_status);

#define KN_WEBHOOK_RETRY_SPAN_US (INT64_C(72) * 3600 * 1000000) /* no attempt later than this after the first */

typedef struct kn_webhook_retry {
    int32_t attempt;       /* attempts made so far; >= 0, 0: the event is new */
    int64_t age_us;        /* time since the first attempt, >= 0 */
    int64_t retry_after_s; /* what the receiver asked for, 0: nothing; counts up to 24 h */
    uint64_t random;       /* jitter: any random number */
} kn_webhook_retry;

/* Microseconds until the next attempt, or -1: none is left. After attempt 0: 0; after 1, 2, ...: 5 s, 5 m, 30 m, 2 h,
 * 5 h, 10 h, 14 h, 20 h, then 24 h, each times 0.9 to 1.1, not before Retry-After, and the last one exactly
 * KN_WEBHOOK_RETRY_SPAN_US after the first attempt. */
int64_t kn_webhook_retry_delay_us(const kn_webhook_retry *retry);

/* ---- where a webhook may be sent ---- */

typedef struct kn_webhook_policy {
    bool development;         /* http:// is allowed too (port 80); never on a server others can reach */
    const char *const *allow; /* "host:port" or "[v6]:port", compared with the URL's text: any port, any address */
    size_t allow_count;       /* <= KN_WEBHOOK_ALLOW_MAX */
} kn_webhook_policy;

/* An accepted URL, taken apart. kn_webhook_url_text puts it together again, so that whoever connects reads the same
 * host as whoever checked. */
typedef struct kn_webhook_url {
    bool tls;
    bool listed;                        /* on the allow list: the address is not checked */
    bool literal6;                      /* the host is an IPv6 address, kept without its brackets */
    uint16_t port;                      /* explicit or the scheme's */
    char host[KN_WEBHOOK_HOST_MAX + 1]; /* lower case */
    char path[KN_WEBHOOK_URL_MAX + 1];  /* path and query, begins with "/" */
} kn_webhook_url;

/* Printable ASCII without a user, a fragment, a backslash or a second meaning: host names of letters, digits, "-", "_",
 * dotted IPv4 in full, IPv6 in brackets. An address literal must pass the address policy here already. KN_INVALID names
 * the rule that was broken. policy NULL: the strict one. */
kn_status kn_webhook_url_parse(kn_webhook_url *out, const char *url, const kn_webhook_policy *policy);

/* The URL to connect to. `bytes` >= KN_WEBHOOK_URL_MAX + 16 is always enough; KN_INVALID when it is not. */
kn_status kn_webhook_url_text(const kn_webhook_url *url, char *out, size_t bytes);

/* NULL when a server on the internet may have this address, else the name of the range that forbids it: loopback,
 * private, link-local (with the metadata services), carrier NAT, unique local, multicast, unspecified, documentation,
 * benchmarking, reserved, and every IPv6 form that embeds an IPv4 address (mapped, 6to4, NAT64, Teredo). Asked about
 * the resolved address right before connecting, so that a name cannot change its meaning in between. */
const char *kn_webhook_address_forbidden(const struct sockaddr *address);

/* Is `entry` a "host:port" as an allow list takes it? KN_INVALID says what is wrong. */
kn_status kn_webhook_check_allow(const char *entry);

#endif

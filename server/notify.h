/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends webhooks through a child process, the only one that opens connections to the outside. The child knows URLs,
 * secrets and bodies for as long as a delivery takes and keeps nothing; what is due, and when again, is the caller's
 * (the store keeps endpoints and deliveries, webhook.h the schedule). Deliveries are sent at least once: a receiver
 * tells repetitions by the event id.
 *
 * In the child, for each delivery: HTTPS with the system's authorities, no redirect, proxy, netrc or cookie, a fresh
 * connection whose resolved address has passed kn_webhook_address_forbidden, signed at the moment it is sent.
 *
 * The child ends with the server. When it ends by itself or says something it may not, it is started again, and every
 * delivery it had is reported as KN_WEBHOOK_FAILED.
 *
 * One notifier belongs to the thread that runs its event base. The program ignores SIGPIPE. */
#ifndef KN_SERVER_NOTIFY_H
#define KN_SERVER_NOTIFY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "server/webhook.h"

struct event_base;

typedef struct kn_notifier kn_notifier;

enum {
    KN_NOTIFIER_QUEUE_MAX = 1024,        /* deliveries accepted and not completed */
    KN_NOTIFIER_HOST_QUEUE_MAX = 64,     /* of these, for one host and port: a receiver that hangs delays only itself */
    KN_NOTIFIER_CONCURRENT_MAX = 32,     /* connections */
    KN_NOTIFIER_HOST_CONCURRENT_MAX = 4, /* connections to one host and port */
    KN_NOTIFIER_TIMEOUT_MS = 15000,      /* of one delivery, from connecting to the last byte read */
    KN_NOTIFIER_CONNECT_TIMEOUT_MS = 5000, /* name, TCP and TLS */
    KN_NOTIFIER_RESPONSE_MAX = 64 * 1024,  /* bytes of an answer that are read: of its headers, and of its body */
    KN_NOTIFIER_ERROR_BYTES = 256,         /* of an error text, with the NUL */
    KN_NOTIFIER_SILENCE_S = 60,            /* a child with deliveries that completes none for this long is replaced */
};

/* One attempt at one delivery. Strings are borrowed for the call. */
typedef struct kn_delivery {
    int64_t id;                 /* the caller's, handed back */
    int32_t attempt;            /* the caller's, handed back; 1: the first */
    const char *url;            /* checked against the policy */
    const char *const *secrets; /* 1..KN_WEBHOOK_SECRETS_MAX */
    size_t secret_count;
    const char *event_id; /* webhook-id: the same for every attempt */
    const char *body;     /* application/json, UTF-8; the very bytes are signed and sent */
    size_t body_bytes;    /* 1..KN_WEBHOOK_BODY_MAX */
} kn_delivery;

typedef struct kn_delivery_result {
    int64_t id;
    int32_t attempt;
    kn_webhook_outcome outcome;
    int32_t http_status;   /* 0: there was no complete answer */
    int64_t retry_after_s; /* the answer's Retry-After, 0 without one; for kn_webhook_retry */
    int64_t elapsed_us;    /* from acceptance to completion */
    const char *error;     /* one line for a person, "" after success; no secret, no body; valid for the call */
} kn_delivery_result;

/* Called from the event loop, never from inside kn_notifier_send; it may send again, and must not destroy. */
typedef void kn_delivery_fn(void *context, const kn_delivery_result *result);

typedef struct kn_notifier_params {
    struct event_base *base;  /* outlives the notifier */
    const char *executable;   /* started as `executable notifier --fd 3`; NULL: this program */
    kn_webhook_policy policy; /* copied */
    int32_t silence_s;        /* see KN_NOTIFIER_SILENCE_S; 0: that */
    const char *ca_file;      /* PEM file of the authorities to trust instead of the system's; NULL: the system's */
    kn_delivery_fn *completed;
    void *context;
} kn_notifier_params;

/* Starts the child. KN_INVALID: an allow list entry that is none. KN_IO: no child could be started. */
kn_status kn_notifier_create(kn_notifier **out, const kn_notifier_params *params);

/* Ends the child at once; deliveries in it are not reported and may or may not have arrived. Accepts NULL. */
void kn_notifier_destroy(kn_notifier **notifier);

/* Takes the delivery over; `completed` will be called for it exactly once. KN_AGAIN: the queue or this host's share of
 * it is full, or the child is being replaced; offer it again later and go on with other hosts' (kn_notifier_room tells
 * whether that is worth it). KN_INVALID: the URL (also under the policy), a secret, the id or the body is outside its
 * limits; it will never be accepted: treat it as KN_WEBHOOK_REFUSED. KN_NOMEM. */
kn_status kn_notifier_send(kn_notifier *notifier, const kn_delivery *delivery);

/* Deliveries that could be accepted now. */
size_t kn_notifier_room(const kn_notifier *notifier);

/* Children started again since the beginning, and the present one's process id (0 while there is none). */
uint64_t kn_notifier_restarts(const kn_notifier *notifier);
int32_t kn_notifier_process(const kn_notifier *notifier);

/* The child's program: argv[0] is "notifier", then "--fd" and the number of its socket. Returns the exit code. */
int kn_notifier_main(int argc, char **argv);

#endif

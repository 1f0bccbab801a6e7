/* SPDX-License-Identifier: Apache-2.0
 *
 * The messages between the server and its notifier: a length (32 bits), then a payload of at most
 * KN_NOTIFY_FRAME_MAX bytes that begins with its type. Integers are little-endian; a text is a length, its bytes and a
 * NUL. Functions of bytes; thread-safe. Neither side trusts the other: what does not decode to the last byte, or
 * exceeds a limit of webhook.h, ends the connection. */
#ifndef KN_SERVER_NOTIFY_WIRE_H
#define KN_SERVER_NOTIFY_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "server/webhook.h"

enum {
    KN_NOTIFY_HEAD_BYTES = 4,       /* the length in front of a payload */
    KN_NOTIFY_FRAME_MAX = 32 << 10, /* bytes of a payload: above every delivery and every policy within its limits */
    KN_NOTIFY_PATH_MAX = 4096,      /* bytes of a file name, with the NUL */
};

typedef enum kn_notify_type {
    KN_NOTIFY_CONFIGURE = 1, /* server to child, once, first */
    KN_NOTIFY_DELIVER = 2,   /* server to child */
    KN_NOTIFY_RESULT = 3,    /* child to server, one for each DELIVER */
} kn_notify_type;

typedef struct kn_notify_configure {
    bool development;
    const char *ca_file; /* "": the system's authorities */
    size_t allow_count;
    const char *allow[KN_WEBHOOK_ALLOW_MAX];
} kn_notify_configure;

typedef struct kn_notify_deliver {
    uint64_t ticket;
    const char *url, *event_id;
    size_t secret_count;
    const char *secrets[KN_WEBHOOK_SECRETS_MAX];
    const char *body;
    size_t body_bytes;
} kn_notify_deliver;

typedef struct kn_notify_result {
    uint64_t ticket;
    kn_webhook_outcome outcome;
    int32_t http_status;
    int64_t retry_after_s;
    const char *error;
} kn_notify_result;

typedef struct kn_notify_message {
    kn_notify_type type;
    union {
        kn_notify_configure configure;
        kn_notify_deliver deliver;
        kn_notify_result result;
    };
} kn_notify_message;

/* Length and payload into `frame`, their number of bytes together into *bytes. KN_INVALID: a text or count beyond its
 * limit. */
kn_status kn_notify_encode(char frame[KN_NOTIFY_HEAD_BYTES + KN_NOTIFY_FRAME_MAX], size_t *bytes,
                           const kn_notify_message *message);

/* The payload's length in the first KN_NOTIFY_HEAD_BYTES; KN_CORRUPT when it is 0 or beyond the limit. */
kn_status kn_notify_length(size_t *bytes, const void *head);

/* A payload; the texts are views of it. KN_CORRUPT. */
kn_status kn_notify_decode(kn_notify_message *out, const void *payload, size_t bytes);

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * The audit log's hash chain: each record carries SHA-256(hash of the record before it || its own canonical bytes), so
 * that a record cannot be edited, moved or taken out without every later hash being wrong. What a chain cannot show is
 * that its end was cut off; for that the head (sequence and hash of the last record) is kept elsewhere.
 *
 * Canonical bytes: sequence and time as 8 bytes each, most significant first; actor, action and subject as a 2-byte
 * length and the text; 32 bytes of detail. Functions of bytes; thread-safe. */
#ifndef KN_SERVER_AUDIT_H
#define KN_SERVER_AUDIT_H

#include <stdint.h>

#include "base/status.h"
#include "server/job.h"

enum {
    KN_AUDIT_ACTION_BYTES = 48,  /* "job.submit", ... with the NUL */
    KN_AUDIT_SUBJECT_BYTES = 64, /* the id of a job, key or endpoint; with the NUL */
};

typedef struct kn_audit_record {
    int64_t sequence; /* 1, 2, ... without gaps */
    int64_t at;       /* wall-clock microseconds; never decreases */
    char actor[KN_TENANT_BYTES];
    char action[KN_AUDIT_ACTION_BYTES];
    char subject[KN_AUDIT_SUBJECT_BYTES];
    uint8_t detail[KN_SHA256_BYTES]; /* hash of what the action was about; zeros: nothing more to say */
    uint8_t hash[KN_SHA256_BYTES];   /* of this record and all before it */
} kn_audit_record;

typedef struct kn_audit_head {
    int64_t sequence; /* 0: no record yet */
    uint8_t hash[KN_SHA256_BYTES];
} kn_audit_head;

/* Fills record->sequence and record->hash as the successor of `head`, and moves `head` on to it. */
void kn_audit_append(kn_audit_head *head, kn_audit_record *record);

/* Is `record` the successor of `head`? Moves `head` on when it is; else KN_CORRUPT, and the message says what differs.
 */
kn_status kn_audit_follow(kn_audit_head *head, const kn_audit_record *record);

#endif

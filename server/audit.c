/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "server/audit.h"

#include <assert.h>
#include <inttypes.h>
#include <openssl/sha.h>
#include <string.h>

enum { CANONICAL_BYTES = 8 + 8 + 3 * 2 + KN_TENANT_BYTES + KN_AUDIT_ACTION_BYTES + KN_AUDIT_SUBJECT_BYTES + 32 };

static size_t put_number(uint8_t *out, uint64_t value, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) out[i] = (uint8_t)(value >> (8 * (bytes - 1 - i)));
    return bytes;
}

/* The length in front keeps two texts from being read as one another's parts. */
static size_t put_text(uint8_t *out, const char *text, size_t room)
{
    const size_t bytes = strnlen(text, room);
    put_number(out, bytes, 2);
    memcpy(out + 2, text, bytes);
    return 2 + bytes;
}

static void chain(uint8_t hash[KN_SHA256_BYTES], const kn_audit_head *head, const kn_audit_record *record)
{
    uint8_t bytes[KN_SHA256_BYTES + CANONICAL_BYTES];
    size_t n = KN_SHA256_BYTES;
    memcpy(bytes, head->hash, KN_SHA256_BYTES);
    n += put_number(bytes + n, (uint64_t)record->sequence, 8);
    n += put_number(bytes + n, (uint64_t)record->at, 8);
    n += put_text(bytes + n, record->actor, sizeof record->actor);
    n += put_text(bytes + n, record->action, sizeof record->action);
    n += put_text(bytes + n, record->subject, sizeof record->subject);
    memcpy(bytes + n, record->detail, KN_SHA256_BYTES);
    n += KN_SHA256_BYTES;
    assert(n <= sizeof bytes);
    SHA256(bytes, n, hash);
}

void kn_audit_append(kn_audit_head *head, kn_audit_record *record)
{
    record->sequence = head->sequence + 1;
    chain(record->hash, head, record);
    head->sequence = record->sequence;
    memcpy(head->hash, record->hash, KN_SHA256_BYTES);
}

kn_status kn_audit_follow(kn_audit_head *head, const kn_audit_record *record)
{
    uint8_t hash[KN_SHA256_BYTES];
    if (record->sequence != head->sequence + 1)
        return kn_fail(KN_CORRUPT, "audit log: record %" PRId64 " follows record %" PRId64, record->sequence,
                       head->sequence);
    chain(hash, head, record);
    if (memcmp(hash, record->hash, KN_SHA256_BYTES) != 0)
        return kn_fail(KN_CORRUPT, "audit log: record %" PRId64 " does not have the hash its contents give",
                       record->sequence);
    head->sequence = record->sequence;
    memcpy(head->hash, hash, KN_SHA256_BYTES);
    return KN_OK;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * API keys.
 *
 *   kinora_1b8n0q4zt7aw_<43 base62 characters of secret><6 of checksum>
 *
 * The key id (12 characters of [0-9a-z]) says which row to look at and may be shown and logged. The secret is 43 random
 * base62 characters, 256 bits, made once and shown once. The checksum is the CRC-32 of the text before it in base62, so
 * that a scanner for leaked secrets recognises a key without asking us and a mistyped key is told from a wrong one.
 * What is kept is HMAC-SHA-256(pepper, "<keyid>_<secret>"): a slow hash buys nothing against 256 random bits. The
 * pepper is a file beside the database, so that a copy of the database alone is not enough to test keys against.
 *
 * A check costs one HMAC and one comparison in constant time whether or not the id is known, and says "expired" or
 * "revoked" only to who holds the secret.
 *
 * The table is filled from the store's rows at start and changed as keys are made and revoked; it belongs to the loop
 * thread. Making a key (kn_key_mint) touches no table and is thread-safe. */
#ifndef KN_SERVER_KEYS_H
#define KN_SERVER_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/log.h"
#include "server/store.h"

enum {
    KN_KEYS_MAX = 100000,
    KN_KEY_ID_BYTES = 13,   /* with the NUL */
    KN_KEY_TEXT_BYTES = 70, /* with the NUL */
    KN_PEPPER_BYTES = 32,
    KN_KEY_RATE_MAX = 1000000, /* highest requests_per_minute and burst */
};

/* What a key may do. No scope implies another. */
typedef enum kn_scope {
    KN_SCOPE_SUBMIT = 1 << 0,  /* create jobs */
    KN_SCOPE_READ = 1 << 1,    /* see and download own jobs, list models */
    KN_SCOPE_CANCEL = 1 << 2,  /* cancel and delete own jobs */
    KN_SCOPE_ADMIN = 1 << 3,   /* keys, drain, every tenant's jobs */
    KN_SCOPE_METRICS = 1 << 4, /* /metrics and queue figures */
    KN_SCOPES_ALL = (1 << 5) - 1,
} kn_scope;

/* "submit", ...; "unknown" for anything that is not exactly one scope. */
const char *kn_scope_name(kn_scope scope);

/* "submit,read,metrics" to bits. KN_INVALID names the word that is not a scope; an empty list is refused too. */
kn_status kn_scopes_parse(uint32_t *scopes, const char *text);
/* The inverse, in the order above; `out` holds every list in 64 bytes. */
void kn_scopes_format(char out[64], uint32_t scopes);

/* "flex,default,priority" to bits 1 << kn_priority, and back. */
kn_status kn_priorities_parse(uint32_t *priorities, const char *text);
void kn_priorities_format(char out[64], uint32_t priorities);

/* One key, as the table holds it: the store's row with the list of models beside it. */
typedef struct kn_key {
    char id[KN_KEY_ID_BYTES];
    char tenant[KN_TENANT_BYTES];
    uint8_t hash[KN_SHA256_BYTES];
    uint32_t scopes;              /* bits of kn_scope */
    uint32_t priorities;          /* bits 1 << kn_priority */
    const char *models;           /* names it may use, separated by commas; "": all */
    char region[KN_REGION_BYTES]; /* where its jobs must stay; "": anywhere */
    kn_store_limits limits;       /* of its tenant's jobs, as every submit with this key applies them */
    int32_t requests_per_minute;  /* 0: the server's default */
    int32_t burst;                /* requests at once; 0: as many as a minute has */
    int64_t expires_at;           /* wall-clock microseconds since 1970; 0: never */
    int64_t revoked_at;           /* 0: not revoked */
} kn_key;

/* Every field of a row in its range, id and hash included; the message names the field. */
kn_status kn_key_row_check(const kn_key_row *row);

/* Is `model` on a list of names separated by commas? Always, when the list is empty. */
bool kn_models_allow(const char *models, const char *model);

/* ---- pepper ---- */

typedef struct kn_pepper {
    uint8_t bytes[KN_PEPPER_BYTES];
} kn_pepper;

#define KN_PEPPER_FILE "key.pepper"

/* Reads <data>/key.pepper, or makes it (32 random bytes, mode 0600, durable before this returns). Two processes that
 * make it at once end with the same one. A file that others may read, is no regular file or has another size is
 * refused: KN_INVALID, KN_CORRUPT. */
kn_status kn_pepper_open(kn_pepper *out, const char *data);
void kn_pepper_wipe(kn_pepper *pepper);

/* ---- making a key ---- */

/* Fills row->id and row->secret_hash of a row whose other fields are set, and gives the one text that opens it. For
 * KN_STORE_KEY_ADD; wipe the text when it has been shown. KN_INVALID: kn_key_row_check. */
kn_status kn_key_mint(kn_key_row *row, kn_secret *text, const kn_pepper *pepper);

/* Well-formed, with the right checksum? Says nothing about whether it exists. `text` need not end in NUL. */
bool kn_key_text_valid(const char *text, size_t bytes);

/* ---- the table ---- */

typedef struct kn_keys kn_keys;

typedef enum kn_key_verdict {
    KN_KEY_GOOD,
    KN_KEY_MALFORMED, /* not the text of any key */
    KN_KEY_UNKNOWN,   /* no such id, or another secret */
    KN_KEY_EXPIRED,
    KN_KEY_REVOKED,
} kn_key_verdict;

kn_status kn_keys_create(kn_keys **out, const kn_pepper *pepper);
void kn_keys_destroy(kn_keys **keys);

/* Adds a key or replaces the one of that id; the row is copied. KN_INVALID: kn_key_row_check. KN_UNAVAILABLE:
 * KN_KEYS_MAX are held. */
kn_status kn_keys_put(kn_keys *keys, const kn_key_row *row);

/* For kn_store_keys(): `context` is the kn_keys. Rows that are expired or revoked are put too; a row this version
 * cannot read is logged and left out, so that one bad row does not lock everybody out. */
kn_status kn_keys_load(void *context, const kn_key_row *row);

/* Effective for the next check. KN_NOT_FOUND. The earlier of two revocations stays. */
kn_status kn_keys_revoke(kn_keys *keys, const char *id, int64_t now_us);

/* Drops the record. */
void kn_keys_remove(kn_keys *keys, const char *id);

size_t kn_keys_count(const kn_keys *keys);

/* Borrowed until the next change of the table; NULL when there is none. */
const kn_key *kn_keys_find(const kn_keys *keys, const char *id);

/* The text of a key against the table. *key is set for KN_KEY_GOOD, EXPIRED and REVOKED, and otherwise NULL. */
kn_key_verdict kn_keys_check(const kn_keys *keys, const char *text, size_t bytes, int64_t now_us, const kn_key **key);

#endif

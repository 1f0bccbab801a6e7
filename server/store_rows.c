/* SPDX-License-Identifier: Apache-2.0
 *
 * Queries of webhooks, API keys and the audit log. */
#include <inttypes.h>
#include <string.h>

#include "server/store_internal.h"

enum { VERIFY_ROWS = 4096 }; /* of the audit log behind one snapshot: the write-ahead log can shrink in between */

/* ---- webhooks ---- */

static kn_status read_delivery(sqlite3_stmt *s, kn_delivery_row *out)
{
    kn_status st = KN_OK;
    out->id = sqlite3_column_int64(s, 0);
    KN_TRY(kn_column_text(s, 1, out->event_id, sizeof out->event_id));
    out->event = (kn_webhook_event)sqlite3_column_int(s, 2);
    out->event_at = sqlite3_column_int64(s, 3);
    KN_TRY(kn_column_text(s, 4, out->job_id, sizeof out->job_id));
    KN_TRY(kn_column_text(s, 5, out->tenant, sizeof out->tenant));
    KN_TRY(kn_column_text(s, 6, out->endpoint_id, sizeof out->endpoint_id));
    KN_TRY(kn_column_text(s, 7, out->url, sizeof out->url));
    KN_TRY(kn_column_text(s, 8, out->secret, sizeof out->secret));
    out->attempts = sqlite3_column_int(s, 9);
    out->next_at = sqlite3_column_int64(s, 10);
fail:
    return st;
}

kn_status kn_store_deliveries_due(kn_store *store, int64_t now, int32_t limit, kn_store_delivery_fn *fn, void *context)
{
    kn_status st = KN_OK;
    bool row;
    kn_delivery_row delivery;
    kn_query query = {0};
    if (limit < 1 || limit > KN_STORE_LIST_MAX)
        KN_TRY(kn_fail(KN_INVALID, "store: limit is %d; 1..%d", limit, KN_STORE_LIST_MAX));
    KN_TRY(kn_query_begin(&query, store,
                          "SELECT d.id, d.event_id, d.event, d.event_at, d.job, d.tenant, d.endpoint, e.url,"
                          " iif(e.old_until BETWEEN 1 AND ?1, substr(e.secret, 1, instr(e.secret || ' ', ' ') - 1),"
                          " e.secret), d.attempts, d.next_at FROM deliveries AS d INDEXED BY deliveries_due"
                          " CROSS JOIN endpoints AS e ON e.id = d.endpoint"
                          " WHERE d.state = 0 AND d.next_at <= ?1 ORDER BY d.next_at LIMIT ?2"));
    kn_bind_int(&query.binder, now);
    kn_bind_int(&query.binder, limit);
    KN_TRY(kn_sql_step(&query.binder, &row));
    while (row) {
        KN_TRY(read_delivery(query.binder.statement, &delivery));
        KN_TRY(fn(context, &delivery));
        KN_TRY(kn_sql_step(&query.binder, &row));
    }
fail:
    kn_query_end(&query);
    return st;
}

kn_status kn_store_next_delivery(kn_store *store, int64_t *at)
{
    kn_status st = KN_OK;
    bool row;
    kn_query query;
    *at = 0;
    KN_TRY(kn_query_begin(&query, store,
                          "SELECT next_at FROM deliveries INDEXED BY deliveries_due WHERE state = 0"
                          " ORDER BY next_at LIMIT 1"));
    KN_TRY(kn_sql_step(&query.binder, &row));
    if (row) *at = sqlite3_column_int64(query.binder.statement, 0);
fail:
    kn_query_end(&query);
    return st;
}

static kn_status read_endpoint(sqlite3_stmt *s, kn_endpoint_row *out)
{
    kn_status st = KN_OK;
    KN_TRY(kn_column_text(s, 0, out->id, sizeof out->id));
    KN_TRY(kn_column_text(s, 1, out->tenant, sizeof out->tenant));
    KN_TRY(kn_column_text(s, 2, out->url, sizeof out->url));
    KN_TRY(kn_column_text(s, 3, out->name, sizeof out->name));
    KN_TRY(kn_column_text(s, 4, out->secret, sizeof out->secret));
    out->events = (uint32_t)sqlite3_column_int64(s, 5);
    out->enabled = sqlite3_column_int(s, 6) != 0;
    out->created_at = sqlite3_column_int64(s, 7);
    out->old_until = sqlite3_column_int64(s, 8);
fail:
    return st;
}

kn_status kn_store_endpoints(kn_store *store, const char *tenant, kn_store_endpoint_fn *fn, void *context)
{
    kn_status st = KN_OK;
    bool row;
    kn_endpoint_row endpoint;
    kn_query query;
    KN_TRY(kn_query_begin(&query, store,
                          "SELECT id, tenant, url, name, secret, events, enabled, created_at, old_until FROM endpoints"
                          " WHERE tenant = ifnull(?, tenant) ORDER BY created_at, id"));
    kn_bind_text(&query.binder, tenant);
    KN_TRY(kn_sql_step(&query.binder, &row));
    while (row) {
        KN_TRY(read_endpoint(query.binder.statement, &endpoint));
        KN_TRY(fn(context, &endpoint));
        KN_TRY(kn_sql_step(&query.binder, &row));
    }
fail:
    kn_query_end(&query);
    return st;
}

/* ---- API keys ---- */

#define KEY_COLUMNS                                                                                                    \
    "SELECT id, tenant, secret_hash, scopes, priorities, models, max_active, device_us, window_us,"                    \
    " requests_per_minute, burst, region, expires_at, created_at, revoked_at FROM keys"

static kn_status read_key(sqlite3_stmt *s, kn_key_row *out)
{
    kn_status st = KN_OK;
    KN_TRY(kn_column_text(s, 0, out->id, sizeof out->id));
    KN_TRY(kn_column_text(s, 1, out->tenant, sizeof out->tenant));
    KN_TRY(kn_column_blob(s, 2, out->secret_hash, KN_SHA256_BYTES));
    out->scopes = (uint32_t)sqlite3_column_int64(s, 3);
    out->priorities = (uint32_t)sqlite3_column_int64(s, 4);
    KN_TRY(kn_column_text(s, 5, out->models, sizeof out->models));
    out->limits.max_active = sqlite3_column_int64(s, 6);
    out->limits.device_us = (uint64_t)sqlite3_column_int64(s, 7);
    out->limits.window_us = sqlite3_column_int64(s, 8);
    out->requests_per_minute = sqlite3_column_int64(s, 9);
    out->burst = sqlite3_column_int64(s, 10);
    KN_TRY(kn_column_text(s, 11, out->region, sizeof out->region));
    out->expires_at = sqlite3_column_int64(s, 12);
    out->created_at = sqlite3_column_int64(s, 13);
    out->revoked_at = sqlite3_column_int64(s, 14);
fail:
    return st;
}

kn_status kn_store_keys(kn_store *store, const char *tenant, kn_store_key_fn *fn, void *context)
{
    kn_status st = KN_OK;
    bool row;
    kn_key_row key;
    kn_query query;
    KN_TRY(kn_query_begin(&query, store, KEY_COLUMNS " WHERE tenant = ifnull(?, tenant) ORDER BY created_at, id"));
    kn_bind_text(&query.binder, tenant);
    KN_TRY(kn_sql_step(&query.binder, &row));
    while (row) {
        KN_TRY(read_key(query.binder.statement, &key));
        KN_TRY(fn(context, &key));
        KN_TRY(kn_sql_step(&query.binder, &row));
    }
fail:
    kn_query_end(&query);
    return st;
}

kn_status kn_store_key_get(kn_store *store, const char *id, kn_key_row *out)
{
    kn_status st = KN_OK;
    bool row;
    kn_query query;
    KN_TRY(kn_query_begin(&query, store, KEY_COLUMNS " WHERE id = ?"));
    kn_bind_text(&query.binder, id);
    KN_TRY(kn_sql_step(&query.binder, &row));
    st = row ? read_key(query.binder.statement, out) : kn_fail(KN_NOT_FOUND, "there is no such key");
fail:
    kn_query_end(&query);
    return st;
}

/* ---- the audit log ---- */

static kn_status read_record(sqlite3_stmt *s, kn_audit_record *out)
{
    kn_status st = KN_OK;
    *out = (kn_audit_record){.sequence = sqlite3_column_int64(s, 0), .at = sqlite3_column_int64(s, 1)};
    KN_TRY(kn_column_text(s, 2, out->actor, sizeof out->actor));
    KN_TRY(kn_column_text(s, 3, out->action, sizeof out->action));
    KN_TRY(kn_column_text(s, 4, out->subject, sizeof out->subject));
    KN_TRY(kn_column_blob(s, 5, out->detail, KN_SHA256_BYTES));
    KN_TRY(kn_column_blob(s, 6, out->hash, KN_SHA256_BYTES));
fail:
    return st;
}

/* Rows after `sequence`; *last: of the last one that was read, also of one that did not fit. */
static kn_status walk_audit(kn_store *store, int64_t sequence, int32_t limit, kn_store_audit_fn *fn, void *context,
                            int32_t *count, int64_t *last)
{
    kn_status st = KN_OK;
    bool row;
    kn_audit_record record;
    kn_query query;
    *count = 0;
    *last = sequence;
    KN_TRY(kn_query_begin(&query, store,
                          "SELECT sequence, at, actor, action, subject, detail, hash FROM audit WHERE sequence > ?"
                          " ORDER BY sequence LIMIT ?"));
    kn_bind_int(&query.binder, sequence);
    kn_bind_int(&query.binder, limit);
    KN_TRY(kn_sql_step(&query.binder, &row));
    while (row) {
        *last = sqlite3_column_int64(query.binder.statement, 0);
        ++*count;
        KN_TRY(read_record(query.binder.statement, &record));
        KN_TRY(fn(context, &record));
        KN_TRY(kn_sql_step(&query.binder, &row));
    }
fail:
    kn_query_end(&query);
    return st;
}

kn_status kn_store_audit_list(kn_store *store, int64_t sequence, int32_t limit, kn_store_audit_fn *fn, void *context)
{
    int32_t count;
    int64_t last;
    if (limit < 1 || limit > KN_STORE_LIST_MAX)
        return kn_fail(KN_INVALID, "store: limit is %d; 1..%d", limit, KN_STORE_LIST_MAX);
    return walk_audit(store, sequence, limit, fn, context, &count, &last);
}

kn_status kn_store_audit_head(kn_store *store, kn_audit_head *out)
{
    kn_status st = KN_OK;
    bool row;
    kn_query query;
    *out = (kn_audit_head){0};
    KN_TRY(kn_query_begin(&query, store, "SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1"));
    KN_TRY(kn_sql_step(&query.binder, &row));
    if (row) {
        out->sequence = sqlite3_column_int64(query.binder.statement, 0);
        KN_TRY(kn_column_blob(query.binder.statement, 1, out->hash, KN_SHA256_BYTES));
    }
fail:
    kn_query_end(&query);
    return st;
}

typedef struct audit_walk {
    kn_audit_head head;
    const kn_audit_head *kept;
} audit_walk;

static kn_status follow_record(void *context, const kn_audit_record *record)
{
    audit_walk *walk = context;
    kn_status st = KN_OK;
    KN_TRY(kn_audit_follow(&walk->head, record));
    if (walk->kept && walk->kept->sequence == record->sequence &&
        memcmp(walk->kept->hash, record->hash, KN_SHA256_BYTES) != 0)
        st = kn_fail(KN_CORRUPT, "audit log: record %" PRId64 " is not the one whose hash was kept", record->sequence);
fail:
    return st;
}

kn_status kn_store_audit_verify(kn_store *store, const kn_audit_head *kept, int64_t *first_bad)
{
    kn_status st = KN_OK;
    audit_walk walk = {.kept = kept};
    int32_t count;
    int64_t last = -1; /* a record numbered 0 is a forgery and must be seen */
    do {
        const int64_t after = last;
        st = walk_audit(store, after, VERIFY_ROWS, follow_record, &walk, &count, &last);
    } while (st == KN_OK && count == VERIFY_ROWS);
    if (st == KN_OK && kept && walk.head.sequence < kept->sequence) {
        last = walk.head.sequence + 1;
        st = kn_fail(KN_CORRUPT, "audit log: it ends at record %" PRId64 ", and there was a record %" PRId64,
                     walk.head.sequence, kept->sequence);
    }
    if (st != KN_OK && first_bad) *first_bad = last;
    return st;
}

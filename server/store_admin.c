/* SPDX-License-Identifier: Apache-2.0
 *
 * Operations on what surrounds the jobs: webhook endpoints and deliveries, API keys, audit records, and the purge. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "base/mem.h"
#include "server/store_internal.h"

const char *kn_webhook_event_name(kn_webhook_event event)
{
    static const char *const names[KN_WEBHOOK_EVENTS] = {"video.completed", "video.failed"};
    return (unsigned)event < KN_WEBHOOK_EVENTS ? names[event] : "unknown";
}

/* ---- audit ---- */

static void fill(char *out, size_t bytes, const char *text)
{
    const size_t length = strnlen(text, bytes - 1);
    memset(out, 0, bytes);
    memcpy(out, text, length);
}

kn_status kn_store_audit(kn_store *store, const char *actor, const char *action, const char *subject,
                         const uint8_t *detail)
{
    kn_status st = KN_OK;
    kn_store_marks *m = &store->marks;
    const int64_t now = kn_store_now(store);
    kn_audit_record record = {.at = now > m->audited_at ? now : m->audited_at};
    fill(record.actor, sizeof record.actor, actor ? actor : "server");
    fill(record.action, sizeof record.action, action);
    fill(record.subject, sizeof record.subject, subject);
    if (detail) memcpy(record.detail, detail, KN_SHA256_BYTES);
    kn_audit_append(&m->head, &record);
    m->audited_at = record.at;
    kn_binder b = kn_sql_bind(store, KN_SQL_AUDIT_ADD);
    kn_bind_int(&b, record.sequence);
    kn_bind_int(&b, record.at);
    kn_bind_text(&b, record.actor);
    kn_bind_text(&b, record.action);
    kn_bind_text(&b, record.subject);
    kn_bind_blob(&b, record.detail, KN_SHA256_BYTES);
    kn_bind_blob(&b, record.hash, KN_SHA256_BYTES);
    KN_TRY(kn_sql_change_one(&b));
fail:
    return st;
}

kn_status kn_store_run_audit(kn_store *store, const kn_store_op *op, kn_store_result *r)
{
    (void)r;
    return kn_store_audit(store, op->actor, op->audit.action, op->id, op->audit.detail);
}

/* ---- webhooks ---- */

static kn_status new_event_id(char id[KN_EVENT_ID_BYTES])
{
    uint8_t random[16];
    ssize_t got;
    do got = getrandom(random, sizeof random, 0);
    while (got < 0 && errno == EINTR);
    if (got != sizeof random) return kn_fail(KN_IO, "no random numbers for an event id: %s", strerror(errno));
    memcpy(id, "evt_", 4);
    for (size_t i = 0; i < sizeof random; i++) {
        id[4 + 2 * i] = "0123456789abcdef"[random[i] >> 4];
        id[5 + 2 * i] = "0123456789abcdef"[random[i] & 15];
    }
    id[4 + 2 * sizeof random] = '\0';
    return KN_OK;
}

kn_status kn_store_queue_event(kn_store *store, kn_webhook_event event, const char *tenant, const char *job, int64_t at,
                               int32_t *deliveries)
{
    kn_status st = KN_OK;
    char id[KN_EVENT_ID_BYTES];
    KN_TRY(new_event_id(id));
    kn_binder b = kn_sql_bind(store, KN_SQL_DELIVERY_QUEUE);
    kn_bind_text(&b, id);
    kn_bind_int(&b, event);
    kn_bind_int(&b, at);
    kn_bind_text(&b, job);
    kn_bind_text(&b, tenant);
    KN_TRY(kn_sql_step(&b, NULL));
    *deliveries = sqlite3_changes(store->writer);
fail:
    return st;
}

/* *owner "": there is no such endpoint. */
static kn_status read_owner(kn_store *store, const char *id, char owner[KN_TENANT_BYTES])
{
    kn_status st = KN_OK;
    bool row;
    kn_binder b = kn_sql_bind(store, KN_SQL_ENDPOINT_OWNER);
    owner[0] = '\0';
    kn_bind_text(&b, id);
    KN_TRY(kn_sql_step(&b, &row));
    if (row) KN_TRY(kn_column_text(b.statement, 0, owner, KN_TENANT_BYTES));
fail:
    kn_sql_done(&b);
    return st;
}

static kn_status check_room(kn_store *store, const char *tenant)
{
    kn_status st = KN_OK;
    bool row;
    kn_binder b = kn_sql_bind(store, KN_SQL_ENDPOINT_COUNT);
    kn_bind_text(&b, tenant);
    KN_TRY(kn_sql_step(&b, &row));
    if (row && sqlite3_column_int64(b.statement, 0) >= KN_ENDPOINTS_PER_TENANT)
        st = kn_fail(KN_INVALID, "store: a tenant has at most %d webhook endpoints", KN_ENDPOINTS_PER_TENANT);
fail:
    kn_sql_done(&b);
    return st;
}

static kn_status give_up_deliveries(kn_store *store, const char *endpoint)
{
    kn_binder b = kn_sql_bind(store, KN_SQL_DELIVERY_GIVE_UP);
    kn_bind_text(&b, endpoint);
    kn_bind_int(&b, kn_store_now(store));
    return kn_sql_step(&b, NULL);
}

kn_status kn_store_run_endpoint_put(kn_store *store, const kn_store_op *op, kn_store_result *r)
{
    kn_status st = KN_OK;
    const kn_endpoint_row *row = op->endpoint;
    char owner[KN_TENANT_BYTES];
    KN_TRY(read_owner(store, row->id, owner));
    if (*owner && strcmp(owner, row->tenant) != 0) {
        r->outcome = KN_STORE_CONFLICT;
        return KN_OK;
    }
    if (!*owner) KN_TRY(check_room(store, row->tenant));
    r->at = kn_store_now(store);
    kn_binder b = kn_sql_bind(store, KN_SQL_ENDPOINT_PUT);
    kn_bind_text(&b, row->id);
    kn_bind_text(&b, row->tenant);
    kn_bind_text(&b, row->url);
    kn_bind_text(&b, row->name);
    kn_bind_text(&b, row->secret);
    kn_bind_int(&b, row->old_until);
    kn_bind_int(&b, row->events);
    kn_bind_int(&b, row->enabled);
    kn_bind_int(&b, r->at);
    KN_TRY(kn_sql_change_one(&b));
    if (!row->enabled) KN_TRY(give_up_deliveries(store, row->id));
    KN_TRY(kn_store_audit(store, op->actor, "endpoint.put", row->id, NULL));
fail:
    return st;
}

kn_status kn_store_run_endpoint_remove(kn_store *store, const kn_store_op *op, kn_store_result *r)
{
    kn_status st = KN_OK;
    kn_binder b = kn_sql_bind(store, KN_SQL_ENDPOINT_REMOVE);
    kn_bind_text(&b, op->id);
    kn_bind_text(&b, op->tenant);
    KN_TRY(kn_sql_step(&b, NULL));
    if (sqlite3_changes(store->writer) == 0) {
        r->outcome = KN_STORE_NOT_FOUND;
        return KN_OK;
    }
    KN_TRY(kn_store_audit(store, op->actor, "endpoint.remove", op->id, NULL));
fail:
    return st;
}

kn_status kn_store_run_endpoint_disable(kn_store *store, const kn_store_op *op, kn_store_result *r)
{
    kn_status st = KN_OK;
    kn_binder b = kn_sql_bind(store, KN_SQL_ENDPOINT_DISABLE);
    kn_bind_text(&b, op->id);
    KN_TRY(kn_sql_step(&b, NULL));
    if (sqlite3_changes(store->writer) == 0) {
        r->outcome = KN_STORE_NOT_FOUND;
        return KN_OK;
    }
    KN_TRY(give_up_deliveries(store, op->id));
    KN_TRY(kn_store_audit(store, op->actor, "endpoint.disable", op->id, NULL));
fail:
    return st;
}

kn_status kn_store_run_delivery(kn_store *store, const kn_store_op *op, kn_store_result *r)
{
    kn_status st = KN_OK;
    const bool again = op->delivery.outcome == KN_DELIVERY_RETRY;
    r->at = kn_store_now(store);
    kn_binder b = kn_sql_bind(store, KN_SQL_DELIVERY_RESULT);
    kn_bind_int(&b, op->delivery.id);
    kn_bind_int(&b, again ? 0 : op->delivery.outcome == KN_DELIVERY_DONE ? 1 : 2);
    kn_bind_int(&b, again ? op->delivery.next_at : r->at);
    kn_bind_int(&b, again ? 0 : r->at);
    kn_bind_int(&b, op->delivery.http_status);
    kn_bind_text(&b, op->delivery.error);
    KN_TRY(kn_sql_step(&b, NULL));
    if (sqlite3_changes(store->writer) == 0) r->outcome = KN_STORE_NOT_FOUND;
fail:
    return st;
}

/* ---- API keys ---- */

kn_status kn_store_run_key_add(kn_store *store, const kn_store_op *op, kn_store_result *r)
{
    kn_status st = KN_OK;
    const kn_key_row *row = op->key;
    r->at = kn_store_now(store);
    kn_binder b = kn_sql_bind(store, KN_SQL_API_KEY_ADD);
    kn_bind_text(&b, row->id);
    kn_bind_text(&b, row->tenant);
    kn_bind_blob(&b, row->secret_hash, KN_SHA256_BYTES);
    kn_bind_int(&b, row->scopes);
    kn_bind_int(&b, row->priorities);
    kn_bind_text(&b, row->models);
    kn_bind_int(&b, row->limits.max_active);
    kn_bind_int(&b, (int64_t)row->limits.device_us);
    kn_bind_int(&b, row->limits.window_us);
    kn_bind_int(&b, row->requests_per_minute);
    kn_bind_int(&b, row->burst);
    kn_bind_text(&b, row->region);
    kn_bind_int(&b, row->expires_at);
    kn_bind_int(&b, r->at);
    st = kn_sql_change_one(&b);
    if (st == KN_BUG && sqlite3_extended_errcode(store->writer) == SQLITE_CONSTRAINT_PRIMARYKEY) {
        r->outcome = KN_STORE_CONFLICT;
        return KN_OK;
    }
    if (st == KN_OK) st = kn_store_audit(store, op->actor, "key.add", row->id, NULL);
    return st;
}

kn_status kn_store_run_key_revoke(kn_store *store, const kn_store_op *op, kn_store_result *r)
{
    kn_status st = KN_OK;
    r->at = kn_store_now(store);
    kn_binder b = kn_sql_bind(store, KN_SQL_API_KEY_REVOKE);
    kn_bind_text(&b, op->id);
    kn_bind_text(&b, op->tenant);
    kn_bind_int(&b, r->at);
    KN_TRY(kn_sql_step(&b, NULL));
    if (sqlite3_changes(store->writer) == 0) {
        r->outcome = KN_STORE_NOT_FOUND;
        return KN_OK;
    }
    KN_TRY(kn_store_audit(store, op->actor, "key.revoke", op->id, NULL));
fail:
    return st;
}

/* ---- purge ---- */

/* Of one kind, at most a batch; how many it were. */
static kn_status purge_kind(kn_store *store, kn_sql which, int64_t before, int32_t batch, int32_t *count)
{
    kn_status st = KN_OK;
    kn_binder b = kn_sql_bind(store, which);
    kn_bind_int(&b, before);
    kn_bind_int(&b, batch);
    KN_TRY(kn_sql_step(&b, NULL));
    *count = sqlite3_changes(store->writer);
fail:
    return st;
}

typedef struct ended_row {
    int64_t seq;
    char id[KN_JOB_ID_BYTES];
} ended_row;

static kn_status read_ended(kn_store *store, int64_t before, int32_t batch, ended_row *rows, int32_t *count)
{
    kn_status st = KN_OK;
    bool row;
    kn_binder b = kn_sql_bind(store, KN_SQL_JOB_ENDED);
    kn_bind_int(&b, before);
    kn_bind_int(&b, batch);
    KN_TRY(kn_sql_step(&b, &row));
    while (row) {
        rows[*count].seq = sqlite3_column_int64(b.statement, 0);
        KN_TRY(kn_column_text(b.statement, 1, rows[(*count)++].id, KN_JOB_ID_BYTES));
        KN_TRY(kn_sql_step(&b, &row));
    }
fail:
    kn_sql_done(&b);
    return st;
}

/* Their files went when they ended or expired; what stays of them is the audit log. */
static kn_status purge_ended(kn_store *store, const kn_store_op *op, int64_t before, int32_t *count)
{
    kn_status st = KN_OK;
    ended_row *rows = kn_alloc_array((size_t)op->batch, sizeof *rows); /* read first: changes move rows */
    if (!rows) return KN_NOMEM;
    KN_TRY(read_ended(store, before, op->batch, rows, count));
    for (int32_t i = 0; i < *count; i++) {
        kn_binder b = kn_sql_bind(store, KN_SQL_JOB_FORGET);
        kn_bind_int(&b, rows[i].seq);
        KN_TRY(kn_sql_change_one(&b));
        KN_TRY(kn_store_audit(store, op->actor, "job.purge", rows[i].id, NULL));
    }
fail:
    kn_free(rows);
    return st;
}

kn_status kn_store_run_purge(kn_store *store, const kn_store_op *op, kn_store_result *r)
{
    kn_status st = KN_OK;
    int32_t keys = 0, ended = 0, tombstones = 0, deliveries = 0;
    r->at = kn_store_now(store);
    if (op->ended_us > 0 && op->ended_us < store->params.idempotency_us)
        return kn_fail(KN_INVALID, "store: a job must be kept as long as an idempotency key that may name it");
    KN_TRY(purge_kind(store, KN_SQL_KEY_PURGE, r->at, op->batch, &keys));
    /* A key never outlives the job it names: no job goes while old keys are left. */
    if (op->ended_us > 0 && keys < op->batch) KN_TRY(purge_ended(store, op, r->at - op->ended_us, &ended));
    KN_TRY(purge_kind(store, KN_SQL_JOB_PURGE, r->at - store->params.tombstone_us, op->batch, &tombstones));
    KN_TRY(purge_kind(store, KN_SQL_DELIVERY_PURGE, r->at - store->params.delivery_us, op->batch, &deliveries));
    r->count = keys + ended + tombstones + deliveries;
fail:
    return st;
}

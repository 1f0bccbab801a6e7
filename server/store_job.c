/* SPDX-License-Identifier: Apache-2.0
 *
 * What happens to a job after its submit. Each operation reads the row, judges it in C (is it there, is the lease the
 * row's, may it become that), and changes it with a statement that names the epoch and the state it was judged in. */
#define _POSIX_C_SOURCE 200809L
#include <string.h>

#include "base/mem.h"
#include "server/store_internal.h"

/* A row, as far as operations judge it. */
typedef struct job_row {
    int64_t seq, epoch, created_at, started_at;
    kn_job_state state;
    int32_t attempts;
    uint64_t cost_us, used_us;
    char tenant[KN_TENANT_BYTES];
    char checkpoint[KN_STORE_FILE_BYTES], blob[KN_STORE_FILE_BYTES]; /* "": none */
} job_row;

static kn_status read_file(sqlite3_stmt *s, int column, char out[KN_STORE_FILE_BYTES])
{
    out[0] = '\0';
    return sqlite3_column_type(s, column) == SQLITE_NULL ? KN_OK : kn_column_text(s, column, out, KN_STORE_FILE_BYTES);
}

static kn_status read_row(kn_store *store, const char *id, job_row *out, kn_store_result *r, bool *found)
{
    kn_status st = KN_OK;
    kn_binder b = kn_sql_bind(store, KN_SQL_JOB_HEAD);
    sqlite3_stmt *s = b.statement;
    *out = (job_row){0};
    kn_bind_text(&b, id);
    KN_TRY(kn_sql_step(&b, found));
    if (!*found) {
        r->outcome = KN_STORE_NOT_FOUND;
        return KN_OK;
    }
    out->seq = sqlite3_column_int64(s, 0);
    KN_TRY(kn_column_text(s, 1, out->tenant, sizeof out->tenant));
    out->state = (kn_job_state)sqlite3_column_int(s, 2);
    out->epoch = sqlite3_column_int64(s, 3);
    out->attempts = sqlite3_column_int(s, 4);
    out->created_at = sqlite3_column_int64(s, 5);
    out->started_at = sqlite3_column_int64(s, 6);
    out->cost_us = (uint64_t)sqlite3_column_int64(s, 7);
    out->used_us = (uint64_t)sqlite3_column_int64(s, 8);
    KN_TRY(read_file(s, 9, out->checkpoint));
    KN_TRY(read_file(s, 10, out->blob));
    r->state = out->state;
    r->epoch = out->epoch;
    r->attempts = out->attempts;
fail:
    kn_sql_done(&b);
    return st;
}

/* The row of a running job under this lease; *found false when it is not, with the outcome. */
static kn_status read_lease(kn_store *store, const kn_store_op *op, job_row *out, kn_store_result *r, bool *found)
{
    kn_status st = KN_OK;
    KN_TRY(read_row(store, op->id, out, r, found));
    if (*found && (out->state != KN_JOB_RUNNING || out->epoch != op->epoch)) {
        r->outcome = KN_STORE_FENCED;
        *found = false;
    }
fail:
    return st;
}

/* Binds what every change names: ?1 seq, ?2 epoch, ?3 state. */
static kn_binder change(kn_store *store, kn_sql which, const job_row *row)
{
    kn_binder b = kn_sql_bind(store, which);
    kn_bind_int(&b, row->seq);
    kn_bind_int(&b, row->epoch);
    kn_bind_int(&b, row->state);
    return b;
}

static kn_status add_file(kn_store_result *r, bool blob, const char *id, const char *name)
{
    if (*name == '\0') return KN_OK;
    kn_store_file *files = kn_realloc(r->files, (size_t)(r->file_count + 1) * sizeof *files);
    if (!files) return KN_NOMEM;
    r->files = files;
    kn_store_file *file = &files[r->file_count++];
    *file = (kn_store_file){.blob = blob};
    memcpy(file->id, id, strnlen(id, sizeof file->id - 1));
    memcpy(file->name, name, strnlen(name, sizeof file->name - 1));
    return KN_OK;
}

static int64_t later(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t most(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* ---- leases ---- */

kn_status kn_store_run_claim(kn_store *store, const kn_store_op *op, kn_store_result *r)
{
    kn_status st = KN_OK;
    bool found;
    job_row row;
    KN_TRY(read_row(store, op->id, &row, r, &found));
    if (!found) return KN_OK;
    if (!kn_job_transition_allowed(row.state, KN_JOB_RUNNING) || row.epoch != op->epoch) {
        r->outcome = KN_STORE_FENCED;
        return KN_OK;
    }
    r->at = row.started_at ? row.started_at : later(kn_store_now(store), row.created_at);
    kn_binder b = change(store, KN_SQL_JOB_CLAIM, &row);
    kn_bind_int(&b, r->at);
    KN_TRY(kn_sql_change_one(&b));
    r->state = KN_JOB_RUNNING;
    r->epoch = row.epoch + 1;
fail:
    return st;
}

kn_status kn_store_run_release(kn_store *store, const kn_store_op *op, kn_store_result *r)
{
    kn_status st = KN_OK;
    bool found;
    job_row row;
    KN_TRY(read_lease(store, op, &row, r, &found));
    if (!found) return KN_OK;
    kn_binder b = change(store, KN_SQL_JOB_RELEASE, &row);
    KN_TRY(kn_sql_change_one(&b));
    r->state = KN_JOB_QUEUED;
fail:
    return st;
}

kn_status kn_store_run_checkpoint(kn_store *store, const kn_store_op *op, kn_store_result *r)
{
    kn_status st = KN_OK;
    bool found;
    job_row row;
    const char *name = op->checkpoint.name;
    KN_TRY(read_lease(store, op, &row, r, &found));
    if (!found) return KN_OK;
    kn_binder b = change(store, KN_SQL_JOB_CHECKPOINT, &row);
    kn_bind_text(&b, name);
    kn_bind_blob(&b, name ? op->checkpoint.sha256 : NULL, KN_SHA256_BYTES);
    kn_bind_int(&b, name ? op->checkpoint.step : 0);
    kn_bind_int(&b, (int64_t)op->checkpoint.used_us);
    KN_TRY(kn_sql_change_one(&b));
    if (!name || strcmp(name, row.checkpoint) != 0) KN_TRY(add_file(r, false, op->id, row.checkpoint));
fail:
    return st;
}

kn_status kn_store_run_count_attempt(kn_store *store, const kn_store_op *op, kn_store_result *r)
{
    kn_status st = KN_OK;
    bool found;
    job_row row;
    KN_TRY(read_lease(store, op, &row, r, &found));
    if (!found) return KN_OK;
    kn_binder b = change(store, KN_SQL_JOB_COUNT_ATTEMPT, &row);
    KN_TRY(kn_sql_change_one(&b));
    r->attempts = row.attempts + 1;
fail:
    return st;
}

/* ---- ends ---- */

kn_status kn_store_run_publish(kn_store *store, const kn_store_op *op, kn_store_result *r)
{
    kn_status st = KN_OK;
    bool found;
    job_row row;
    KN_TRY(read_lease(store, op, &row, r, &found));
    if (!found) return KN_OK;
    r->at = later(kn_store_now(store), row.created_at);
    kn_binder b = change(store, KN_SQL_JOB_PUBLISH, &row);
    kn_bind_int(&b, r->at);
    kn_bind_text(&b, op->publish.blob);
    kn_bind_int(&b, (int64_t)op->publish.bytes);
    kn_bind_blob(&b, op->publish.sha256, KN_SHA256_BYTES);
    kn_bind_int(&b, op->publish.expires_at);
    kn_bind_int(&b, (int64_t)most(op->publish.used_us, row.used_us));
    kn_bind_int(&b, (int64_t)row.cost_us);
    KN_TRY(kn_sql_change_one(&b));
    KN_TRY(kn_store_settle(store, row.tenant, row.cost_us, row.cost_us));
    KN_TRY(kn_store_queue_event(store, KN_EVENT_VIDEO_COMPLETED, row.tenant, op->id, r->at, &r->deliveries));
    KN_TRY(kn_store_audit(store, op->actor, "job.publish", op->id, op->publish.sha256));
    KN_TRY(add_file(r, false, op->id, row.checkpoint));
    r->state = KN_JOB_COMPLETED;
fail:
    return st;
}

kn_status kn_store_run_finish(kn_store *store, const kn_store_op *op, kn_store_result *r)
{
    kn_status st = KN_OK;
    bool found;
    job_row row;
    const bool cancelled = op->finish.state == KN_JOB_CANCELLED;
    KN_TRY(op->epoch > 0 ? read_lease(store, op, &row, r, &found) : read_row(store, op->id, &row, r, &found));
    if (!found) return KN_OK;
    if (!kn_job_transition_allowed(row.state, op->finish.state)) {
        r->outcome = KN_STORE_CONFLICT;
        return KN_OK;
    }
    r->at = later(kn_store_now(store), row.created_at);
    const uint64_t used_us = most(op->finish.used_us, row.used_us);
    const uint64_t charged_us = cancelled ? least(used_us, row.cost_us) : 0;
    kn_binder b = change(store, KN_SQL_JOB_FINISH, &row);
    kn_bind_int(&b, op->finish.state);
    kn_bind_int(&b, r->at);
    kn_bind_text(&b, op->finish.code);
    kn_bind_text(&b, op->finish.message);
    kn_bind_int(&b, (int64_t)used_us);
    kn_bind_int(&b, (int64_t)charged_us);
    KN_TRY(kn_sql_change_one(&b));
    KN_TRY(kn_store_settle(store, row.tenant, row.cost_us, charged_us));
    KN_TRY(kn_store_queue_event(store, KN_EVENT_VIDEO_FAILED, row.tenant, op->id, r->at, &r->deliveries));
    KN_TRY(kn_store_audit(store, op->actor, cancelled ? "job.cancel" : "job.fail", op->id, NULL));
    KN_TRY(add_file(r, false, op->id, row.checkpoint));
    r->state = op->finish.state;
fail:
    return st;
}

kn_status kn_store_run_retry(kn_store *store, const kn_store_op *op, kn_store_result *r)
{
    kn_status st = KN_OK;
    bool found;
    job_row row;
    KN_TRY(read_row(store, op->id, &row, r, &found));
    if (!found) return KN_OK;
    if (row.state == KN_JOB_RUNNING || !kn_job_transition_allowed(row.state, KN_JOB_QUEUED)) {
        r->outcome = KN_STORE_CONFLICT; /* a running job becomes queued by its release */
        return KN_OK;
    }
    kn_binder b = change(store, KN_SQL_JOB_RETRY, &row);
    KN_TRY(kn_sql_change_one(&b));
    KN_TRY(kn_store_hold(store, row.tenant, row.cost_us));
    KN_TRY(kn_store_audit(store, op->actor, "job.retry", op->id, NULL));
    r->state = KN_JOB_QUEUED;
    r->attempts = 0;
fail:
    return st;
}

kn_status kn_store_run_remove(kn_store *store, const kn_store_op *op, kn_store_result *r)
{
    kn_status st = KN_OK;
    bool found;
    job_row row;
    KN_TRY(read_row(store, op->id, &row, r, &found));
    if (!found) return KN_OK;
    if (row.state == KN_JOB_DELETED || strcmp(row.tenant, op->tenant) != 0) {
        *r = (kn_store_result){.kind = op->kind, .outcome = KN_STORE_NOT_FOUND}; /* and nothing about whose it is */
        return KN_OK;
    }
    const bool active = !kn_job_state_final(row.state);
    const uint64_t charged_us = least(row.used_us, row.cost_us);
    r->at = later(kn_store_now(store), row.created_at);
    kn_binder b = change(store, KN_SQL_JOB_REMOVE, &row);
    kn_bind_int(&b, r->at);
    kn_bind_int(&b, active ? (int64_t)charged_us : -1);
    KN_TRY(kn_sql_change_one(&b));
    if (active) KN_TRY(kn_store_settle(store, row.tenant, row.cost_us, charged_us));
    KN_TRY(kn_store_audit(store, op->actor, "job.remove", op->id, NULL));
    KN_TRY(add_file(r, true, op->id, row.blob));
    KN_TRY(add_file(r, false, op->id, row.checkpoint));
    r->state = KN_JOB_DELETED;
fail:
    return st;
}

/* ---- expiry ---- */

static kn_status expire_one(kn_store *store, const kn_store_op *op, const char *id, kn_store_result *r)
{
    kn_status st = KN_OK;
    bool found;
    job_row row;
    KN_TRY(read_row(store, id, &row, r, &found));
    if (!found || row.state != KN_JOB_COMPLETED) return kn_fail(KN_BUG, "store: a job to expire is not completed");
    kn_binder b = change(store, KN_SQL_JOB_EXPIRE, &row);
    KN_TRY(kn_sql_change_one(&b));
    KN_TRY(kn_store_audit(store, op->actor, "job.expire", id, NULL));
    KN_TRY(add_file(r, true, id, row.blob));
    r->count++;
fail:
    return st;
}

kn_status kn_store_run_expire(kn_store *store, const kn_store_op *op, kn_store_result *r)
{
    kn_status st = KN_OK;
    bool row;
    int32_t count = 0;
    char(*ids)[KN_JOB_ID_BYTES] = kn_alloc_array((size_t)op->batch, sizeof *ids); /* read first: changes move rows */
    if (!ids) return KN_NOMEM;
    r->at = kn_store_now(store);
    kn_binder b = kn_sql_bind(store, KN_SQL_JOB_EXPIRED);
    kn_bind_int(&b, r->at);
    kn_bind_int(&b, op->batch);
    KN_TRY(kn_sql_step(&b, &row));
    while (row) {
        KN_TRY(kn_column_text(b.statement, 0, ids[count++], KN_JOB_ID_BYTES));
        KN_TRY(kn_sql_step(&b, &row));
    }
    for (int32_t i = 0; i < count; i++) KN_TRY(expire_one(store, op, ids[i], r));
    r->state = KN_JOB_EXPIRED;
    r->epoch = r->attempts = 0;
fail:
    kn_sql_done(&b);
    kn_free(ids);
    return st;
}

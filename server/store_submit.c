/* SPDX-License-Identifier: Apache-2.0
 *
 * Submit: the idempotency key decides first (a replay costs nothing, whatever the quota), then the quota, then job,
 * key, hold and audit record are written together.
 *
 * Quota: an unfinished job holds its estimated device time, cost_us, which is its price, frozen at submit. When the job
 * ends the hold goes and a charge may come: a completed job is charged its price, a cancelled or removed one the device
 * time it took, at most its price, a failed one nothing. held + spent never exceeds the limit at a submit, and both are
 * never negative (the table checks that too). A window's charges are forgotten when the next window begins; when the
 * clock steps back they are not. */
#include <string.h>

#include "server/store_internal.h"

/* ---- quotas ---- */

kn_status kn_store_read_usage(sqlite3_stmt *statement, kn_store_usage *out)
{
    out->active = sqlite3_column_int64(statement, 0);
    out->held_us = (uint64_t)sqlite3_column_int64(statement, 1);
    out->spent_us = (uint64_t)sqlite3_column_int64(statement, 2);
    out->window_start = sqlite3_column_int64(statement, 3);
    out->window_us = sqlite3_column_int64(statement, 4);
    return KN_OK;
}

static kn_status get_usage(kn_store *store, const char *tenant, kn_store_usage *out)
{
    kn_status st = KN_OK;
    bool row;
    kn_binder b = kn_sql_bind(store, KN_SQL_TENANT_GET);
    *out = (kn_store_usage){0};
    kn_bind_text(&b, tenant);
    KN_TRY(kn_sql_step(&b, &row));
    if (row) KN_TRY(kn_store_read_usage(b.statement, out));
fail:
    kn_sql_done(&b);
    return st;
}

static kn_status put_usage(kn_store *store, const char *tenant, const kn_store_usage *u)
{
    kn_binder b = kn_sql_bind(store, KN_SQL_TENANT_PUT);
    kn_bind_text(&b, tenant);
    kn_bind_int(&b, u->active);
    kn_bind_int(&b, (int64_t)u->held_us);
    kn_bind_int(&b, (int64_t)u->spent_us);
    kn_bind_int(&b, u->window_start);
    kn_bind_int(&b, u->window_us);
    return kn_sql_change_one(&b);
}

/* Moves to the window `now` lies in. `window_us` 0: as long as the one before. */
static void turn_window(kn_store_usage *u, int64_t now, int64_t window_us)
{
    if (window_us == 0) window_us = u->window_us;
    if (window_us == 0) return;
    const bool over = u->window_us == 0 || now >= u->window_start + u->window_us;
    /* The clock stepped back. By less than a window, the window just lasts longer; by more it is laid anew, and what
     * was spent stays spent. */
    const bool ahead = u->window_start - now > window_us;
    if (over) u->spent_us = 0;
    if (over || ahead || window_us != u->window_us) u->window_start = now - now % window_us;
    u->window_us = window_us;
}

static bool over_quota(const kn_store_limits *limits, const kn_store_usage *u, uint64_t cost_us, kn_store_quota *out)
{
    if (limits->max_active > 0 && u->active >= limits->max_active) {
        *out = (kn_store_quota){.which = KN_QUOTA_ACTIVE_JOBS,
                                .limit = (uint64_t)limits->max_active,
                                .used = (uint64_t)u->active,
                                .asked = 1};
        return true;
    }
    const uint64_t used = u->held_us + u->spent_us;
    if (limits->device_us == 0 || used + cost_us <= limits->device_us) return false;
    const bool window_helps = u->spent_us > 0 && u->held_us + cost_us <= limits->device_us;
    *out = (kn_store_quota){.which = KN_QUOTA_DEVICE_TIME,
                            .limit = limits->device_us,
                            .used = used,
                            .asked = cost_us,
                            .frees_at = window_helps ? u->window_start + u->window_us : 0};
    return true;
}

kn_status kn_store_hold(kn_store *store, const char *tenant, uint64_t cost_us)
{
    kn_status st = KN_OK;
    kn_store_usage u;
    KN_TRY(get_usage(store, tenant, &u));
    turn_window(&u, kn_store_now(store), 0);
    u.active++;
    u.held_us += cost_us;
    KN_TRY(put_usage(store, tenant, &u));
fail:
    return st;
}

kn_status kn_store_settle(kn_store *store, const char *tenant, uint64_t cost_us, uint64_t charged_us)
{
    kn_status st = KN_OK;
    kn_store_usage u;
    KN_TRY(get_usage(store, tenant, &u));
    if (u.active < 1 || u.held_us < cost_us) return kn_fail(KN_BUG, "store: a job ends that holds nothing");
    turn_window(&u, kn_store_now(store), 0);
    u.active--;
    u.held_us -= cost_us;
    u.spent_us += charged_us;
    KN_TRY(put_usage(store, tenant, &u));
fail:
    return st;
}

/* ---- idempotency ---- */

static kn_status read_job(kn_store *store, const char *id, kn_job *out, bool *found)
{
    kn_status st = KN_OK;
    kn_binder b = kn_sql_bind(store, KN_SQL_JOB_BY_ID);
    kn_bind_text(&b, id);
    KN_TRY(kn_sql_step(&b, found));
    if (*found) KN_TRY(kn_column_job(b.statement, out));
fail:
    kn_sql_done(&b);
    return st;
}

/* *known: the tenant used the key of `op` and it is not forgotten; outcome and job are filled in. */
static kn_status look_up_key(kn_store *store, const char *tenant, const kn_store_op *op, kn_store_result *r,
                             bool *known)
{
    kn_status st = KN_OK;
    bool row, found;
    uint8_t fingerprint[KN_SHA256_BYTES];
    char id[KN_JOB_ID_BYTES];
    kn_binder b = kn_sql_bind(store, KN_SQL_KEY_USED);
    *known = false;
    kn_bind_text(&b, tenant);
    kn_bind_text(&b, op->submit.idempotency_key);
    KN_TRY(kn_sql_step(&b, &row));
    if (!row || sqlite3_column_int64(b.statement, 2) <= kn_store_now(store)) goto fail;
    KN_TRY(kn_column_blob(b.statement, 0, fingerprint, KN_SHA256_BYTES));
    KN_TRY(kn_column_text(b.statement, 1, id, sizeof id));
    KN_TRY(read_job(store, id, &r->job, &found));
    if (!found) goto fail; /* purged; the key goes with it */
    *known = true;
    r->outcome = KN_STORE_REPLAYED;
    r->state = r->job.state;
    if (memcmp(fingerprint, op->submit.fingerprint, KN_SHA256_BYTES) != 0) {
        kn_job_release(&r->job);
        r->job = (kn_job){0};
        memcpy(r->job.id, id, sizeof id);
        r->outcome = KN_STORE_KEY_REUSED;
    }
fail:
    kn_sql_done(&b);
    return st;
}

static kn_status remember_key(kn_store *store, const kn_store_op *op)
{
    kn_binder b = kn_sql_bind(store, KN_SQL_KEY_USE);
    kn_bind_text(&b, op->submit.job->tenant);
    kn_bind_text(&b, op->submit.idempotency_key);
    kn_bind_blob(&b, op->submit.fingerprint, KN_SHA256_BYTES);
    kn_bind_text(&b, op->submit.job->id);
    kn_bind_int(&b, kn_store_now(store) + store->params.idempotency_us);
    return kn_sql_change_one(&b);
}

/* ---- the job ---- */

/* *taken: there is a job of this id. */
static kn_status insert_job(kn_store *store, const kn_job *job, int64_t created_at, bool *taken)
{
    kn_binder b = kn_sql_bind(store, KN_SQL_JOB_INSERT);
    kn_bind_text(&b, job->id);
    kn_bind_text(&b, job->tenant);
    kn_bind_text(&b, job->key_id);
    kn_bind_text(&b, job->model);
    kn_bind_text(&b, job->asked_model);
    kn_bind_int(&b, job->priority);
    kn_bind_text(&b, job->prompt);
    kn_bind_text(&b, job->request);
    kn_bind_text(&b, job->extra);
    kn_bind_int(&b, created_at);
    kn_bind_int(&b, job->deadline_at);
    kn_bind_int(&b, (int64_t)job->cost_us);
    kn_status st = kn_sql_change_one(&b);
    *taken = st == KN_BUG && sqlite3_extended_errcode(store->writer) == SQLITE_CONSTRAINT_UNIQUE;
    return *taken ? KN_OK : st;
}

kn_status kn_store_run_submit(kn_store *store, const kn_store_op *op, kn_store_result *r)
{
    kn_status st = KN_OK;
    const kn_job *job = op->submit.job;
    const kn_store_limits *limits = &op->submit.limits;
    const int64_t now = kn_store_now(store);
    const int64_t created_at = now > store->marks.created_at ? now : store->marks.created_at + 1;
    kn_store_usage u;
    bool known = false, taken;

    if (op->submit.idempotency_key) KN_TRY(look_up_key(store, job->tenant, op, r, &known));
    if (known) return KN_OK;
    KN_TRY(get_usage(store, job->tenant, &u));
    turn_window(&u, now, limits->window_us);
    if (over_quota(limits, &u, job->cost_us, &r->quota)) {
        r->outcome = KN_STORE_OVER_QUOTA;
        return KN_OK;
    }
    KN_TRY(insert_job(store, job, created_at, &taken));
    if (taken) {
        r->outcome = KN_STORE_CONFLICT;
        return KN_OK;
    }
    u.active++;
    u.held_us += job->cost_us;
    KN_TRY(put_usage(store, job->tenant, &u));
    if (op->submit.idempotency_key) KN_TRY(remember_key(store, op));
    KN_TRY(kn_store_audit(store,
                          op->actor      ? op->actor
                          : *job->key_id ? job->key_id
                                         : NULL,
                          "job.submit", job->id, op->submit.fingerprint));
    KN_TRY(kn_job_copy(&r->job, job));
    store->marks.created_at = created_at;
    r->job.created_at = r->at = created_at;
    r->job.state = r->state = KN_JOB_QUEUED;
    r->job.epoch = r->job.attempts = 0;
    r->job.started_at = r->job.completed_at = r->job.expires_at = 0;
    r->job.used_us = r->job.blob_bytes = 0;
    r->job.checkpoint_step = 0;
    r->job.error_code[0] = '\0';
fail:
    return st;
}

kn_status kn_store_run_replay(kn_store *store, const kn_store_op *op, kn_store_result *r)
{
    bool known;
    r->outcome = KN_STORE_NOT_FOUND;
    return look_up_key(store, op->tenant, op, r, &known);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Tables, and how an older database becomes a newer one: versions[i] brings version i to i + 1, each in a transaction
 * with the number it arrives at. A version that was released is never edited; what changes is appended.
 *
 * Finished jobs outnumber all others by far, so nothing the server does at its start or in its loop may walk them: the
 * indexes over states are partial, and jobs are counted by triggers. `seq` grows with created_at. */
#include <stdio.h>

#include "server/store_internal.h"

static const char *const version_1[] = {
    "CREATE TABLE jobs("
    " seq INTEGER PRIMARY KEY,"
    " id TEXT NOT NULL,"
    " tenant TEXT NOT NULL,"
    " key_id TEXT NOT NULL,"
    " model TEXT NOT NULL,"
    " asked_model TEXT NOT NULL,"
    " state INTEGER NOT NULL CHECK(state BETWEEN 0 AND 6)," /* kn_job_state */
    " priority INTEGER NOT NULL,"
    " epoch INTEGER NOT NULL DEFAULT 0 CHECK(epoch >= 0),"
    " attempts INTEGER NOT NULL DEFAULT 0 CHECK(attempts >= 0),"
    " prompt TEXT, request TEXT, extra TEXT," /* null in a tombstone */
    " created_at INTEGER NOT NULL,"           /* all times: microseconds since 1970, 0: not yet */
    " started_at INTEGER NOT NULL DEFAULT 0,"
    " completed_at INTEGER NOT NULL DEFAULT 0,"
    " expires_at INTEGER NOT NULL DEFAULT 0,"
    " deadline_at INTEGER NOT NULL DEFAULT 0,"
    " removed_at INTEGER NOT NULL DEFAULT 0,"
    " cost_us INTEGER NOT NULL CHECK(cost_us >= 0),"
    " used_us INTEGER NOT NULL DEFAULT 0 CHECK(used_us >= 0),"
    " charged_us INTEGER NOT NULL DEFAULT 0 CHECK(charged_us BETWEEN 0 AND cost_us),"
    " error_code TEXT NOT NULL DEFAULT '', error_message TEXT,"
    " checkpoint TEXT, checkpoint_sha256 BLOB, checkpoint_step INTEGER NOT NULL DEFAULT 0,"
    " blob TEXT, blob_bytes INTEGER NOT NULL DEFAULT 0, blob_sha256 BLOB,"
    " CHECK(state <> 2 OR (blob IS NOT NULL AND length(blob_sha256) = 32))) STRICT;"
    "CREATE UNIQUE INDEX jobs_id ON jobs(id);"
    "CREATE INDEX jobs_tenant ON jobs(tenant) WHERE state <> 6;"
    "CREATE INDEX jobs_unfinished ON jobs(seq) WHERE state < 2;"
    "CREATE INDEX jobs_expiry ON jobs(expires_at) WHERE state = 2 AND expires_at > 0;"
    "CREATE INDEX jobs_failed ON jobs(completed_at) WHERE state = 3;"
    "CREATE INDEX jobs_removed ON jobs(removed_at) WHERE state = 6;"
    "CREATE TABLE counts(state INTEGER PRIMARY KEY, jobs INTEGER NOT NULL CHECK(jobs >= 0)) STRICT;"
    "INSERT INTO counts VALUES(0,0),(1,0),(2,0),(3,0),(4,0),(5,0),(6,0);"
    "CREATE TRIGGER jobs_inserted AFTER INSERT ON jobs BEGIN"
    " UPDATE counts SET jobs = jobs + 1 WHERE state = NEW.state; END;"
    "CREATE TRIGGER jobs_moved AFTER UPDATE OF state ON jobs WHEN OLD.state <> NEW.state BEGIN"
    " UPDATE counts SET jobs = jobs - 1 WHERE state = OLD.state;"
    " UPDATE counts SET jobs = jobs + 1 WHERE state = NEW.state; END;"
    "CREATE TRIGGER jobs_deleted AFTER DELETE ON jobs BEGIN"
    " UPDATE counts SET jobs = jobs - 1 WHERE state = OLD.state; END;",

    "CREATE TABLE idempotency("
    " tenant TEXT NOT NULL, key TEXT NOT NULL,"
    " fingerprint BLOB NOT NULL CHECK(length(fingerprint) = 32),"
    " job TEXT NOT NULL,"
    " expires_at INTEGER NOT NULL,"
    " PRIMARY KEY(tenant, key)) STRICT, WITHOUT ROWID;"
    "CREATE INDEX idempotency_expiry ON idempotency(expires_at);"
    /* Of a tenant's unfinished jobs: how many, and the sum of their cost_us. spent_us: charged in the window. */
    "CREATE TABLE tenants("
    " tenant TEXT NOT NULL PRIMARY KEY,"
    " active INTEGER NOT NULL CHECK(active >= 0),"
    " held_us INTEGER NOT NULL CHECK(held_us >= 0),"
    " spent_us INTEGER NOT NULL CHECK(spent_us >= 0),"
    " window_start INTEGER NOT NULL, window_us INTEGER NOT NULL) STRICT, WITHOUT ROWID;",

    "CREATE TABLE endpoints("
    " id TEXT NOT NULL PRIMARY KEY, tenant TEXT NOT NULL, url TEXT NOT NULL, name TEXT NOT NULL,"
    " secret TEXT NOT NULL,"
    " events INTEGER NOT NULL, enabled INTEGER NOT NULL CHECK(enabled IN (0, 1)),"
    " created_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;"
    "CREATE INDEX endpoints_tenant ON endpoints(tenant);"
    "CREATE TABLE deliveries("
    " id INTEGER PRIMARY KEY AUTOINCREMENT,"
    " event_id TEXT NOT NULL, event INTEGER NOT NULL, event_at INTEGER NOT NULL,"
    " job TEXT NOT NULL, tenant TEXT NOT NULL,"
    " endpoint TEXT NOT NULL REFERENCES endpoints(id) ON DELETE CASCADE,"
    " state INTEGER NOT NULL DEFAULT 0 CHECK(state BETWEEN 0 AND 2)," /* due, delivered, given up */
    " attempts INTEGER NOT NULL DEFAULT 0,"
    " next_at INTEGER NOT NULL, ended_at INTEGER NOT NULL DEFAULT 0,"
    " http_status INTEGER NOT NULL DEFAULT 0, error TEXT) STRICT;"
    "CREATE INDEX deliveries_due ON deliveries(next_at) WHERE state = 0;"
    "CREATE INDEX deliveries_ended ON deliveries(ended_at) WHERE state <> 0;"
    "CREATE INDEX deliveries_endpoint ON deliveries(endpoint);",

    "CREATE TABLE keys("
    " id TEXT NOT NULL PRIMARY KEY, tenant TEXT NOT NULL,"
    " secret_hash BLOB NOT NULL CHECK(length(secret_hash) = 32),"
    " scopes INTEGER NOT NULL, priorities INTEGER NOT NULL, models TEXT NOT NULL,"
    " max_active INTEGER NOT NULL, device_us INTEGER NOT NULL, window_us INTEGER NOT NULL,"
    " requests_per_minute INTEGER NOT NULL, burst INTEGER NOT NULL, region TEXT NOT NULL,"
    " expires_at INTEGER NOT NULL, created_at INTEGER NOT NULL,"
    " revoked_at INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID;",

    "CREATE TABLE audit("
    " sequence INTEGER PRIMARY KEY, at INTEGER NOT NULL,"
    " actor TEXT NOT NULL, action TEXT NOT NULL, subject TEXT NOT NULL,"
    " detail BLOB NOT NULL, hash BLOB NOT NULL) STRICT;",
    NULL};

/* Jobs without a result, for the purge. */
static const char *const version_2[] = {"CREATE INDEX jobs_ended ON jobs(completed_at) WHERE state IN (3, 4, 5);",
                                        NULL};

/* Secrets that sign for a while after they were replaced. */
static const char *const version_3[] = {"ALTER TABLE endpoints ADD COLUMN old_until INTEGER NOT NULL DEFAULT 0;", NULL};

static const char *const *const versions[] = {version_1, version_2, version_3};

int64_t kn_store_schema_version(void)
{
    return (int64_t)(sizeof versions / sizeof *versions);
}

kn_status kn_store_migrate(sqlite3 *db, int64_t version)
{
    kn_status st = KN_OK;
    char numbers[96];
    for (; version < kn_store_schema_version(); version++) {
        KN_TRY(kn_sqlite_run(db, "BEGIN IMMEDIATE"));
        for (const char *const *text = versions[version]; *text; text++) KN_TRY(kn_sqlite_run(db, *text));
        snprintf(numbers, sizeof numbers, "PRAGMA application_id = %d; PRAGMA user_version = %d", KN_STORE_APPLICATION,
                 (int)version + 1);
        KN_TRY(kn_sqlite_run(db, numbers));
        KN_TRY(kn_sqlite_run(db, "COMMIT"));
    }
fail:
    if (st != KN_OK && !sqlite3_get_autocommit(db)) sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
    return st;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the store share.
 *
 *   store_sqlite.c   open and close, connections, checkpoints, what SQLite's errors mean
 *   store_schema.c   tables, versions
 *   store_thread.c   the queue, the transaction around a batch, completions
 *   store_copy.c     an operation's limits, and its copy
 *   store_submit.c   submit: idempotency keys and quotas
 *   store_job.c      the other operations on jobs
 *   store_admin.c    webhooks, API keys, audit records, purge
 *   store_query.c    read connections; jobs and quotas
 *   store_rows.c     queries of webhooks, API keys and the audit log
 *
 * Statements of the writer are in store_sql.inc. The writing connection and `marks` belong to the store thread; what
 * lies below `mutex` is shared. */
#ifndef KN_SERVER_STORE_INTERNAL_H
#define KN_SERVER_STORE_INTERNAL_H

#include <pthread.h>
#include <sqlite3.h>
#include <stdatomic.h>

#include "server/store.h"

#define KN_JOB_COLUMNS                                                                                                 \
    "id, tenant, key_id, model, asked_model, state, priority, epoch, attempts, prompt, request, extra, created_at,"    \
    " started_at, completed_at, expires_at, deadline_at, cost_us, used_us, error_code, error_message, checkpoint,"     \
    " checkpoint_sha256, checkpoint_step, blob, blob_bytes, blob_sha256, seq"
#define KN_SQL_TENANT_USAGE "SELECT active, held_us, spent_us, window_start, window_us FROM tenants WHERE tenant = ?"

typedef enum kn_sql {
#define KN_SQL(name, text) KN_SQL_##name,
#include "server/store_sql.inc"
#undef KN_SQL
    KN_SQL_COUNT,
} kn_sql;

/* An operation on its way. One allocation: node, copied structs, copied texts. */
typedef struct kn_store_node {
    struct kn_store_node *next;
    kn_store_op op;
    kn_store_done *done;
    void *context;
    kn_store_result result;
    size_t bytes; /* of the allocation */
} kn_store_node;

typedef struct kn_store_list_of_nodes {
    kn_store_node *first, *last;
} kn_store_nodes;

/* What the store thread remembers about committed rows; put back when they are rolled back. */
typedef struct kn_store_marks {
    int64_t created_at; /* of the newest job */
    int64_t audited_at; /* of the last audit record */
    kn_audit_head head;
} kn_store_marks;

struct kn_store {
    kn_store_params params; /* strings are ours */
    char *directory, *path, *vfs;
    int lock; /* descriptor, -1: none */

    sqlite3 *writer;
    sqlite3_stmt *statements[KN_SQL_COUNT];
    kn_store_marks marks;
    int64_t wal_bytes;     /* after the last commit */
    int64_t checkpoint_at; /* wal_bytes that ask for the next checkpoint */
    bool spread;           /* checkpoints are as seldom as syncs are slow */
    int64_t commit_ns;     /* what a commit takes lately */

    pthread_t thread;
    bool started;
    atomic_int health; /* kn_status */

    pthread_mutex_t mutex;
    pthread_cond_t queued, finished, reader_free;
    kn_store_nodes queue, done;
    bool closing;
    size_t pending_bytes;
    kn_store_stats stats;
    kn_store_commit
        commits[KN_STORE_COMMITS_KEPT]; /* a ring: the next one is written at commit_count modulo its size */
    uint64_t commit_count, commits_taken;
    sqlite3 *readers[KN_STORE_READERS];
    bool reader_busy[KN_STORE_READERS];
};

/* ---- store_sqlite.c ---- */

/* The status an SQLite error stands for, described as "what: ...". */
kn_status kn_sqlite_fail(sqlite3 *db, int code, const char *what);
kn_store_error kn_sqlite_error_kind(sqlite3 *db);
kn_status kn_sqlite_run(sqlite3 *db, const char *sql);
/* The first column of the first row. */
kn_status kn_sqlite_number(sqlite3 *db, const char *sql, int64_t *out);
int64_t kn_store_now(const kn_store *store);
/* After a commit: copies the write-ahead log into the database when it is long enough, and KN_FATAL when that failed in
 * a way that leaves the database in doubt. */
kn_status kn_store_checkpoint(kn_store *store);

/* Values of a statement in order, from ?1; the first error stays until kn_sql_step. Texts and blobs must outlive it. */
typedef struct kn_binder {
    sqlite3_stmt *statement;
    int next, code;
} kn_binder;

kn_binder kn_sql_bind(kn_store *store, kn_sql which);
kn_binder kn_sql_bind_to(sqlite3_stmt *statement);
void kn_bind_int(kn_binder *binder, int64_t value);
void kn_bind_text(kn_binder *binder, const char *text); /* NULL: null */
void kn_bind_blob(kn_binder *binder, const uint8_t *bytes, int count);

/* One step. `row` NULL: the statement returns none. A statement that returned a row is reset by its next use or by
 * kn_sql_done. */
kn_status kn_sql_step(kn_binder *binder, bool *row);
void kn_sql_done(kn_binder *binder);
/* One step of a statement without rows that must change exactly one, or KN_BUG. */
kn_status kn_sql_change_one(kn_binder *binder);

/* Columns. Texts that do not fit, blobs of another size and values of another type: KN_CORRUPT. */
kn_status kn_column_text(sqlite3_stmt *statement, int column, char *out, size_t bytes);
kn_status kn_column_copy(sqlite3_stmt *statement, int column, char **out);              /* NULL for null */
kn_status kn_column_blob(sqlite3_stmt *statement, int column, uint8_t *out, int bytes); /* zeros for null */
kn_status kn_column_job(sqlite3_stmt *statement, kn_job *out);                          /* KN_JOB_COLUMNS */

/* ---- store_schema.c ---- */

enum { KN_STORE_APPLICATION = 0x4b4e5241 }; /* "KNRA" */

int64_t kn_store_schema_version(void);
/* Brings a database from `version` to the newest. */
kn_status kn_store_migrate(sqlite3 *db, int64_t version);

/* ---- store_thread.c ---- */

kn_status kn_store_start(kn_store *store);
void kn_store_stop(kn_store *store); /* runs what is queued */
void kn_store_free_nodes(kn_store_nodes *nodes);

/* ---- store_copy.c ---- */

kn_status kn_store_check_op(const kn_store_op *op);
kn_status kn_store_copy_op(kn_store_node **out, const kn_store_op *op);

/* ---- operations: inside a transaction, on the store thread ---- */

typedef kn_status kn_store_run(kn_store *store, const kn_store_op *op, kn_store_result *result);

kn_store_run kn_store_run_submit;
kn_store_run kn_store_run_replay;
kn_store_run kn_store_run_claim, kn_store_run_release, kn_store_run_checkpoint, kn_store_run_count_attempt;
kn_store_run kn_store_run_publish, kn_store_run_finish, kn_store_run_retry, kn_store_run_expire, kn_store_run_remove;
kn_store_run kn_store_run_purge, kn_store_run_endpoint_put, kn_store_run_endpoint_remove;
kn_store_run kn_store_run_endpoint_disable, kn_store_run_delivery, kn_store_run_key_add, kn_store_run_key_revoke;
kn_store_run kn_store_run_audit;

/* Appends to the audit log; `actor` NULL: "server", `detail` NULL: zeros. */
kn_status kn_store_audit(kn_store *store, const char *actor, const char *action, const char *subject,
                         const uint8_t *detail);
/* Queues a delivery of this event for each of the tenant's endpoints that wants it. */
kn_status kn_store_queue_event(kn_store *store, kn_webhook_event event, const char *tenant, const char *job, int64_t at,
                               int32_t *deliveries);
/* Changes what a tenant holds when a job becomes active (+1), or ends (-1) and is charged. */
kn_status kn_store_hold(kn_store *store, const char *tenant, uint64_t cost_us);
kn_status kn_store_settle(kn_store *store, const char *tenant, uint64_t cost_us, uint64_t charged_us);
kn_status kn_store_read_usage(sqlite3_stmt *statement, kn_store_usage *out);

/* ---- store_query.c ---- */

/* A read connection for a while; waits when all are busy. */
sqlite3 *kn_store_take_reader(kn_store *store);
void kn_store_give_reader(kn_store *store, sqlite3 *reader);

/* A query of one statement: prepared on a read connection, given back by kn_query_end, which keeps the first error. */
typedef struct kn_query {
    kn_store *store;
    sqlite3 *reader;
    kn_binder binder;
} kn_query;

kn_status kn_query_begin(kn_query *query, kn_store *store, const char *sql);
void kn_query_end(kn_query *query);

#endif

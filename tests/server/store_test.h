/* SPDX-License-Identifier: Apache-2.0
 *
 * What the tests of the store share: a directory of their own, jobs to submit, the operations as calls, and the
 * invariants that must hold after anything. Include after cmocka.h. */
#ifndef KN_TESTS_SERVER_STORE_TEST_H
#define KN_TESTS_SERVER_STORE_TEST_H

#include <dirent.h>
#include <inttypes.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "server/store.h"

enum { PATH_BYTES = 256 };

#define SECOND INT64_C(1000000)
#define HOUR (3600 * SECOND)
#define START (INT64_C(1700000000) * SECOND)

/* Not all tests use all of it. */
#define HELPER __attribute__((unused)) static

HELPER void make_directory(char path[PATH_BYTES])
{
    const char *base = getenv("TMPDIR");
    snprintf(path, PATH_BYTES, "%s/kinora-store-XXXXXX", base ? base : "/tmp");
    assert_non_null(mkdtemp(path));
}

/* In memory where that can be had: for tests that never ask whether a sync is real. */
HELPER void make_fast_directory(char path[PATH_BYTES])
{
    snprintf(path, PATH_BYTES, "/dev/shm/kinora-store-XXXXXX");
    if (!mkdtemp(path)) make_directory(path);
}

HELPER void remove_directory(const char *path)
{
    char name[PATH_BYTES + 300];
    DIR *folder = opendir(path);
    if (!folder) return;
    for (struct dirent *entry = readdir(folder); entry; entry = readdir(folder)) {
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        unlink(name);
    }
    closedir(folder);
    rmdir(path);
}

HELPER void database_path(char out[PATH_BYTES + 16], const char *directory)
{
    snprintf(out, PATH_BYTES + 16, "%s/kinora.db", directory);
}

HELPER void fill_job(kn_job *job, const char *tenant)
{
    *job = (kn_job){.priority = KN_PRIORITY_DEFAULT, .cost_us = 1000};
    assert_int_equal(kn_job_new_id(job->id), KN_OK);
    snprintf(job->tenant, sizeof job->tenant, "%s", tenant);
    snprintf(job->model, sizeof job->model, "demo");
    snprintf(job->asked_model, sizeof job->asked_model, "sora-2");
    job->prompt = (char *)(uintptr_t) "a red ball";
    job->request = (char *)(uintptr_t) "{\"seed\":1}";
}

HELPER kn_store_op submit_of(const kn_job *job)
{
    return (kn_store_op){.kind = KN_STORE_SUBMIT, .submit = {.job = job}};
}

/* Performs and releases; what stays of the result are its numbers. */
HELPER kn_store_result perform(kn_store *store, const kn_store_op *op)
{
    kn_store_result result;
    kn_store_perform(store, op, &result);
    kn_store_result_release(&result);
    return result;
}

#define assert_outcome(result, expected)                                                                               \
    do {                                                                                                               \
        const kn_store_result checked_ = (result);                                                                     \
        if (checked_.status != KN_OK) print_error("%s\n", checked_.message);                                           \
        assert_int_equal(checked_.status, KN_OK);                                                                      \
        assert_int_equal(checked_.outcome, expected);                                                                  \
    } while (0)

HELPER void submit_job(kn_store *store, kn_job *job, const char *tenant)
{
    fill_job(job, tenant);
    const kn_store_op op = submit_of(job);
    const kn_store_result result = perform(store, &op);
    assert_outcome(result, KN_STORE_DONE);
    job->created_at = result.job.created_at;
}

HELPER kn_store_result claim(kn_store *store, const char *id, int64_t epoch)
{
    const kn_store_op op = {.kind = KN_STORE_CLAIM, .id = id, .epoch = epoch};
    return perform(store, &op);
}

HELPER kn_store_op publish_of(const char *id, int64_t epoch)
{
    return (kn_store_op){.kind = KN_STORE_PUBLISH,
                         .id = id,
                         .epoch = epoch,
                         .publish = {.blob = "video.mp4", .bytes = 1234, .sha256 = {1, 2, 3}, .used_us = 700}};
}

HELPER kn_store_op finish_of(const char *id, int64_t epoch, kn_job_state state)
{
    return (kn_store_op){.kind = KN_STORE_FINISH,
                         .id = id,
                         .epoch = epoch,
                         .finish = {.state = state, .code = "worker_lost", .message = "it went away", .used_us = 300}};
}

HELPER int64_t query_number(sqlite3 *db, const char *sql)
{
    sqlite3_stmt *statement = NULL;
    int64_t value = -1;
    if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) == SQLITE_OK && sqlite3_step(statement) == SQLITE_ROW)
        value = sqlite3_column_int64(statement, 0);
    else
        print_error("%s: %s\n", sql, sqlite3_errmsg(db));
    sqlite3_finalize(statement);
    return value;
}

/* What must be true of every database, whatever happened to it. NULL, or what is not. */
HELPER const char *broken_invariant(sqlite3 *db)
{
    static const struct {
        const char *name, *count; /* of rows that should not be */
    } rules[] = {
        {"integrity", "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check <> 'ok'"},
        {"foreign keys", "SELECT count(*) FROM pragma_foreign_key_check"},
        {"counts", "SELECT count(*) FROM counts AS c WHERE jobs <> (SELECT count(*) FROM jobs WHERE state = c.state)"},
        {"held by nobody", "SELECT count(*) FROM tenants AS t WHERE"
                           " active <> (SELECT count(*) FROM jobs WHERE tenant = t.tenant AND state < 2) OR held_us <>"
                           " (SELECT ifnull(sum(cost_us), 0) FROM jobs WHERE tenant = t.tenant AND state < 2)"},
        {"jobs without a tenant row", "SELECT count(*) FROM jobs WHERE tenant NOT IN (SELECT tenant FROM tenants)"},
        {"charges", "SELECT count(*) FROM jobs WHERE charged_us <> iif(state IN (2, 5), cost_us, charged_us) OR"
                    " (state IN (0, 1, 3) AND charged_us <> 0)"},
        {"completed without a blob", "SELECT count(*) FROM jobs WHERE (state = 2) <> (blob IS NOT NULL)"},
        {"running without an epoch", "SELECT count(*) FROM jobs WHERE state = 1 AND epoch = 0"},
        {"order of creation", "SELECT count(*) FROM (SELECT created_at, lag(created_at) OVER (ORDER BY seq) AS before"
                              " FROM jobs) WHERE created_at <= before"},
        {"keys without a job", "SELECT count(*) FROM idempotency WHERE job NOT IN (SELECT id FROM jobs)"},
        {"terminal states not audited",
         "SELECT count(*) FROM jobs WHERE state = 2 AND id NOT IN (SELECT subject FROM audit WHERE action ="
         " 'job.publish')"},
        {"published twice", "SELECT count(*) FROM (SELECT subject FROM audit WHERE action = 'job.publish' GROUP BY"
                            " subject HAVING count(*) > 1)"},
        {"submitted twice", "SELECT count(*) FROM (SELECT subject FROM audit WHERE action = 'job.submit' GROUP BY"
                            " subject HAVING count(*) > 1)"},
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (query_number(db, rules[i].count) != 0) return rules[i].name;
    return NULL;
}

/* Opens the database of a closed store beside it. */
HELPER sqlite3 *open_database(const char *directory)
{
    char path[PATH_BYTES + 16];
    sqlite3 *db = NULL;
    database_path(path, directory);
    assert_int_equal(sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
    return db;
}

HELPER void check_invariants(const char *directory)
{
    sqlite3 *db = open_database(directory);
    const char *broken = broken_invariant(db);
    if (broken) print_error("invariant: %s\n", broken);
    assert_null(broken);
    sqlite3_close(db);
}

/* ---- a test of its own store ---- */

typedef struct fixture {
    char directory[PATH_BYTES];
    kn_store *store;
    _Atomic int64_t now;
    _Atomic int asked;    /* for the time */
    pthread_mutex_t gate; /* held by a test: the store thread waits when it asks for the time */
} fixture;

HELPER int64_t fixture_now(void *context)
{
    fixture *f = context;
    atomic_fetch_add(&f->asked, 1);
    pthread_mutex_lock(&f->gate);
    pthread_mutex_unlock(&f->gate);
    return atomic_load(&f->now);
}

HELPER kn_store_params fixture_params(fixture *f)
{
    return (kn_store_params){.directory = f->directory, .now = fixture_now, .now_context = f};
}

HELPER void open_store(fixture *f)
{
    const kn_store_params params = fixture_params(f);
    if (kn_store_open(&f->store, &params) != KN_OK) fail_msg("%s", kn_fail_message());
}

HELPER void reopen_store(fixture *f)
{
    kn_store_close(&f->store);
    check_invariants(f->directory);
    open_store(f);
}

HELPER int set_up(void **state)
{
    fixture *f = kn_alloc(sizeof *f);
    assert_non_null(f);
    make_directory(f->directory);
    pthread_mutex_init(&f->gate, NULL);
    atomic_store(&f->now, START);
    open_store(f);
    *state = f;
    return 0;
}

HELPER int tear_down(void **state)
{
    fixture *f = *state;
    kn_store_close(&f->store);
    check_invariants(f->directory);
    remove_directory(f->directory);
    pthread_mutex_destroy(&f->gate);
    kn_free(f);
    return 0;
}

HELPER kn_job get(const fixture *f, const char *id)
{
    kn_job job;
    if (kn_store_job_get(f->store, NULL, id, &job) != KN_OK) fail_msg("%s", kn_fail_message());
    return job;
}

HELPER void put_in_state(fixture *f, kn_job *job, kn_job_state state)
{
    kn_store_op op;
    submit_job(f->store, job, "acme");
    if (state == KN_JOB_QUEUED) return;
    assert_outcome(claim(f->store, job->id, 0), KN_STORE_DONE);
    if (state == KN_JOB_RUNNING) return;
    if (state == KN_JOB_FAILED || state == KN_JOB_CANCELLED)
        op = finish_of(job->id, 1, state);
    else if (state == KN_JOB_DELETED)
        op = (kn_store_op){.kind = KN_STORE_REMOVE, .id = job->id, .tenant = "acme"};
    else
        op = publish_of(job->id, 1);
    if (state == KN_JOB_EXPIRED) op.publish.expires_at = 1;
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    op = (kn_store_op){.kind = KN_STORE_EXPIRE, .batch = 1};
    if (state == KN_JOB_EXPIRED) assert_int_equal(perform(f->store, &op).count, 1);
}

HELPER void refuse(fixture *f, const kn_store_op *op, const char *word)
{
    const kn_status st = kn_store_submit_op(f->store, op, NULL, NULL);
    if (st != KN_INVALID) fail_msg("%s: not refused", word);
    if (!strstr(kn_fail_message(), word)) fail_msg("\"%s\" does not name %s", kn_fail_message(), word);
}

HELPER kn_endpoint_row endpoint_of(const char *id, const char *tenant, uint32_t events)
{
    kn_endpoint_row row = {.events = events, .enabled = true};
    snprintf(row.id, sizeof row.id, "%s", id);
    snprintf(row.tenant, sizeof row.tenant, "%s", tenant);
    snprintf(row.url, sizeof row.url, "https://example.com/%s", id);
    snprintf(row.secret, sizeof row.secret, "whsec_%s", id);
    return row;
}

HELPER kn_store_result put_endpoint(fixture *f, const kn_endpoint_row *row)
{
    const kn_store_op op = {.kind = KN_STORE_ENDPOINT_PUT, .endpoint = row};
    return perform(f->store, &op);
}

#define STORE_TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

#endif

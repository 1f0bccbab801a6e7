/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening: one owner, no silent repair, no way back to an older version. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/server/store_test.h"

static void refuse_to_open(fixture *f, kn_status expected, const char *word)
{
    kn_store *store = NULL;
    const kn_store_params params = fixture_params(f);
    const kn_status st = kn_store_open(&store, &params);
    if (st != expected) fail_msg("status %s instead of %s", kn_status_name(st), kn_status_name(expected));
    assert_null(store);
    if (!strstr(kn_fail_message(), word)) fail_msg("\"%s\" does not say %s", kn_fail_message(), word);
}

static void write_file(const char *directory, const char *name, const void *bytes, size_t count)
{
    char path[PATH_BYTES + 32];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, count, file), count);
    assert_int_equal(fclose(file), 0);
}

static void test_second_server(void **state)
{
    fixture *f = *state;
    char pid[32];
    snprintf(pid, sizeof pid, "process %ld", (long)getpid());
    refuse_to_open(f, KN_UNAVAILABLE, pid);
    kn_store_close(&f->store);
    open_store(f);
}

static void test_refuses_what_is_not_a_store(void **state)
{
    fixture *f = *state;
    char path[PATH_BYTES + 16], kept[PATH_BYTES + 32], log[PATH_BYTES + 32], text[8192];
    database_path(path, f->directory);
    snprintf(kept, sizeof kept, "%s.kept", path);
    snprintf(log, sizeof log, "%s-wal", path);
    kn_job job;
    submit_job(f->store, &job, "acme");
    kn_store_close(&f->store);
    assert_int_equal(rename(path, kept), 0);

    write_file(f->directory, "kinora.db", "", 0);
    refuse_to_open(f, KN_CORRUPT, "empty");
    memset(text, 'x', sizeof text);
    write_file(f->directory, "kinora.db", text, sizeof text);
    refuse_to_open(f, KN_CORRUPT, "restore it from a backup");
    unlink(path);
    write_file(f->directory, "kinora.db-wal", text, sizeof text);
    refuse_to_open(f, KN_CORRUPT, "missing");
    struct stat info;
    assert_int_not_equal(stat(path, &info), 0); /* nothing was made in its place */
    unlink(log);

    sqlite3 *db = NULL;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "CREATE TABLE t(x); PRAGMA user_version = 1", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    refuse_to_open(f, KN_CORRUPT, "another program");
    unlink(path);
    assert_int_equal(rename(kept, path), 0);
    open_store(f);
    kn_job back = get(f, job.id);
    kn_job_release(&back);
}

static void test_refuses_a_newer_version(void **state)
{
    fixture *f = *state;
    kn_store_close(&f->store);
    sqlite3 *db = open_database(f->directory);
    const int64_t version = query_number(db, "PRAGMA user_version");
    char sql[64];
    snprintf(sql, sizeof sql, "PRAGMA user_version = %d", (int)version + 1);
    assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    refuse_to_open(f, KN_UNSUPPORTED, "newer program");
    db = open_database(f->directory);
    snprintf(sql, sizeof sql, "PRAGMA user_version = %d", (int)version);
    assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    open_store(f);
}

/* A database of version 1 is brought forward, with what it holds. */
static void test_brings_version_1_forward(void **state)
{
    fixture *f = *state;
    kn_job job, ended;
    submit_job(f->store, &job, "acme");
    put_in_state(f, &ended, KN_JOB_FAILED);
    kn_store_close(&f->store);
    sqlite3 *db = open_database(f->directory);
    assert_int_equal(
        sqlite3_exec(db, "DROP INDEX jobs_ended; ALTER TABLE endpoints DROP COLUMN old_until; PRAGMA user_version = 1",
                     NULL, NULL, NULL),
        SQLITE_OK);
    sqlite3_close(db);
    open_store(f);
    kn_job back = get(f, job.id);
    kn_job_release(&back);
    const kn_store_op op = {.kind = KN_STORE_PURGE, .batch = 10, .ended_us = 24 * HOUR};
    atomic_store(&f->now, START + 48 * HOUR);
    assert_int_equal(perform(f->store, &op).count, 1);
    kn_store_close(&f->store);
    db = open_database(f->directory);
    assert_true(query_number(db, "PRAGMA user_version") >= 2);
    assert_int_equal(query_number(db, "SELECT count(*) FROM sqlite_schema WHERE name = 'jobs_ended'"), 1);
    sqlite3_stmt *plan = NULL; /* the purge walks the index, not the jobs */
    assert_int_equal(sqlite3_prepare_v2(db,
                                        "EXPLAIN QUERY PLAN SELECT seq, id FROM jobs WHERE state IN (3, 4, 5) AND"
                                        " completed_at <= 7 ORDER BY completed_at LIMIT 3",
                                        -1, &plan, NULL),
                     SQLITE_OK);
    assert_int_equal(sqlite3_step(plan), SQLITE_ROW);
    assert_non_null(strstr((const char *)sqlite3_column_text(plan, 3), "USING INDEX jobs_ended"));
    sqlite3_finalize(plan);
    sqlite3_close(db);
    open_store(f);
}

static void test_check_finds_damage(void **state)
{
    fixture *f = *state;
    char path[PATH_BYTES + 16];
    kn_job job;
    for (int i = 0; i < 50; i++) submit_job(f->store, &job, "acme");
    kn_store_close(&f->store);
    database_path(path, f->directory);
    sqlite3 *db = open_database(f->directory);
    const int64_t page = query_number(db, "SELECT rootpage FROM sqlite_schema WHERE name = 'jobs_id'");
    sqlite3_close(db);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, (page - 1) * 4096 + 4, SEEK_SET), 0);
    fwrite("\xff\xff\xff", 1, 3, file);
    fclose(file);
    kn_store_params params = fixture_params(f);
    params.quick_check = true;
    assert_int_equal(kn_store_open(&f->store, &params), KN_CORRUPT);
    assert_non_null(strstr(kn_fail_message(), "restore it from a backup"));
    char command[PATH_BYTES + 32];
    snprintf(command, sizeof command, "%s/kinora.db", f->directory);
    unlink(command);
    open_store(f);
}

static void test_no_directory(void **state)
{
    (void)state;
    kn_store *store;
    const kn_store_params params = {.directory = "/nonexistent/kinora"};
    assert_int_equal(kn_store_open(&store, &params), KN_NOT_FOUND);
    kn_store_close(&store);
    const kn_store_params lifetimes = {.directory = "/tmp", .idempotency_us = 2, .tombstone_us = 1};
    assert_int_equal(kn_store_open(&store, &lifetimes), KN_INVALID);
}

static void test_files_are_private(void **state)
{
    fixture *f = *state;
    kn_job job;
    submit_job(f->store, &job, "acme");
    const char *const names[] = {"kinora.db", "kinora.db-wal", "lock"};
    for (size_t i = 0; i < 3; i++) {
        char path[PATH_BYTES + 32];
        struct stat info;
        snprintf(path, sizeof path, "%s/%s", f->directory, names[i]);
        assert_int_equal(stat(path, &info), 0);
        assert_int_equal(info.st_mode & 077, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_TEST(test_second_server),
        STORE_TEST(test_refuses_what_is_not_a_store),
        STORE_TEST(test_refuses_a_newer_version),
        STORE_TEST(test_check_finds_damage),
        STORE_TEST(test_brings_version_1_forward),
        cmocka_unit_test(test_no_directory),
        STORE_TEST(test_files_are_private),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

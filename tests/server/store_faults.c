/* SPDX-License-Identifier: Apache-2.0
 *
 * A disk that fails: the n-th write, fsync, read, truncation or opening, n swept from the first to past the last of a
 * sequence of operations, and of opening the store. Whatever fails, what was acknowledged is there afterwards, what was
 * not acknowledged is there as a whole or not at all, and the store says what happened. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/log.h"
#include "tests/server/fault_vfs.h"
#include "tests/server/store_test.h"

enum { SWEEP_MAX = 400, STEPS = 12 };

static const char *const fault_names[FAULT_KINDS] = {
    "write error", "write on a full disk", "short write", "fsync error", "read error", "truncate error", "open error"};

typedef struct disk {
    fault_vfs vfs;
    char directory[PATH_BYTES];
    kn_job jobs[3];
    kn_store *store;
} disk;

static kn_status open_on(disk *d, bool faulty)
{
    const kn_store_params params = {
        .directory = d->directory, .vfs = faulty ? "fault" : NULL, .checkpoint_bytes = 48 << 10};
    return kn_store_open(&d->store, &params);
}

static void start_over(disk *d)
{
    remove_directory(d->directory);
    make_fast_directory(d->directory);
    assert_int_equal(open_on(d, false), KN_OK);
    submit_job(d->store, &d->jobs[0], "acme");
    assert_outcome(claim(d->store, d->jobs[0].id, 0), KN_STORE_DONE);
    kn_store_close(&d->store);
    fill_job(&d->jobs[1], "acme");
    fill_job(&d->jobs[2], "acme");
}

/* Step i of the sequence; it is long enough for a checkpoint of the log to fall into it. */
static kn_store_op step(const disk *d, int i)
{
    const char *first = d->jobs[0].id, *second = d->jobs[1].id;
    kn_store_op op = submit_of(&d->jobs[1]);
    switch (i) {
    case 0: op.submit.idempotency_key = "k1"; return op;
    case 1: return (kn_store_op){.kind = KN_STORE_CHECKPOINT, .id = first, .epoch = 1, .checkpoint = {.name = "c"}};
    case 2: return (kn_store_op){.kind = KN_STORE_CLAIM, .id = second, .epoch = 0};
    case 3: return publish_of(first, 1);
    case 4: op = submit_of(&d->jobs[2]); return op;
    case 5: return finish_of(second, 1, KN_JOB_FAILED);
    default: return (kn_store_op){.kind = KN_STORE_AUDIT, .id = "x", .audit = {.action = "test"}};
    }
}

typedef struct sweep {
    bool acknowledged[STEPS];
    kn_status status[STEPS]; /* of those that were not */
    kn_status health;
} sweep;

static void run_steps(disk *d, sweep *s)
{
    for (int i = 0; i < STEPS; i++) {
        const kn_store_op op = step(d, i);
        const kn_store_result r = perform(d->store, &op);
        s->status[i] = r.status;
        s->acknowledged[i] = r.status == KN_OK && r.outcome == KN_STORE_DONE;
        if (r.status == KN_OK) continue;
        assert_int_not_equal(r.message[0], '\0');
        if (r.status == KN_UNAVAILABLE) assert_non_null(strstr(r.message, "the disk is full"));
    }
    s->health = kn_store_health(d->store);
}

/* Every acknowledged step is in the database. */
static void check_steps(disk *d, const sweep *s, fault_kind kind, int64_t nth)
{
    sqlite3 *db = open_database(d->directory);
    const char *broken = broken_invariant(db);
    if (broken) fail_msg("%s, number %d: %s", fault_names[kind], (int)nth, broken);
    sqlite3_close(db);
    assert_int_equal(open_on(d, false), KN_OK);
    assert_int_equal(kn_store_audit_verify(d->store, NULL, NULL), KN_OK);
    kn_job first, job;
    assert_int_equal(kn_store_job_get(d->store, NULL, d->jobs[0].id, &first), KN_OK);
    if (s->acknowledged[3]) assert_int_equal(first.state, KN_JOB_COMPLETED);
    if (s->acknowledged[1] && first.state == KN_JOB_RUNNING) assert_string_equal(first.checkpoint, "c");
    kn_job_release(&first);
    for (int i = 1; i <= 2; i++) {
        const kn_status st = kn_store_job_get(d->store, NULL, d->jobs[i].id, &job);
        if (s->acknowledged[i == 1 ? 0 : 4]) assert_int_equal(st, KN_OK);
        if (st != KN_OK) continue;
        if (i == 1 && s->acknowledged[5]) assert_int_equal(job.state, KN_JOB_FAILED);
        if (i == 1 && s->acknowledged[2]) assert_true(job.state == KN_JOB_RUNNING || job.state == KN_JOB_FAILED);
        kn_job_release(&job);
    }
    kn_store_close(&d->store);
}

/* Returns false when the fault did not happen any more: the sweep is over. */
static bool sweep_once(disk *d, fault_kind kind, int64_t nth, bool forever)
{
    sweep s = {.health = KN_OK};
    start_over(d);
    assert_int_equal(open_on(d, true), KN_OK);
    fault_arm(&d->vfs, kind, nth, forever);
    run_steps(d, &s);
    const int64_t fired = fault_disarm(&d->vfs);
    if (kind == FAULT_SYNC_ERROR && fired > 0) {
        assert_int_equal(s.health, KN_FATAL);
        assert_true(kn_store_read_stats(d->store).errors[KN_STORE_ERROR_IO] > 0);
        const kn_store_op op = step(d, 6);
        assert_int_equal(kn_store_submit_op(d->store, &op, NULL, NULL), KN_FATAL);
        kn_store_close(&d->store);
        assert_int_equal(d->vfs.syncs_after_error, 0); /* nobody asked twice */
    } else {
        assert_int_not_equal(s.health, KN_FATAL);
        const kn_store_op op = step(d, 6); /* the disk is well again: so is the store */
        assert_outcome(perform(d->store, &op), KN_STORE_DONE);
        assert_int_equal(kn_store_health(d->store), KN_OK);
        kn_store_close(&d->store);
    }
    check_steps(d, &s, kind, nth);
    return fired > 0;
}

static void sweep_kind(disk *d, fault_kind kind, bool forever)
{
    int64_t nth = 1;
    while (nth < SWEEP_MAX && sweep_once(d, kind, nth, forever)) nth++;
    assert_true(nth < SWEEP_MAX);
    print_message("%s%s: %d places\n", fault_names[kind], forever ? " from then on" : "", (int)nth - 1);
    if (kind == FAULT_WRITE_ERROR || kind == FAULT_WRITE_FULL || kind == FAULT_SYNC_ERROR) assert_true(nth > STEPS);
}

static void test_one_fault(void **state)
{
    for (fault_kind kind = 0; kind < FAULT_KINDS; kind++) sweep_kind(*state, kind, false);
}

static void test_faults_from_then_on(void **state)
{
    sweep_kind(*state, FAULT_WRITE_ERROR, true);
    sweep_kind(*state, FAULT_WRITE_FULL, true);
    sweep_kind(*state, FAULT_SYNC_ERROR, true);
}

/* Opening, with a log that has to be recovered: it works or says why, and nothing is lost. */
static void test_faults_while_opening(void **state)
{
    disk *d = *state;
    for (fault_kind kind = 0; kind < FAULT_KINDS; kind++) {
        int64_t nth = 1, fired = 1;
        for (; fired > 0 && nth < SWEEP_MAX; nth++) {
            sweep s = {.health = KN_OK};
            start_over(d);
            assert_int_equal(open_on(d, true), KN_OK);
            run_steps(d, &s);
            fault_arm(&d->vfs, FAULT_SYNC_ERROR, 1, false); /* leaves the log behind */
            const kn_store_op op = step(d, 6);
            assert_int_equal(perform(d->store, &op).status, KN_FATAL);
            kn_store_close(&d->store);
            fault_arm(&d->vfs, kind, nth, false);
            const kn_status st = open_on(d, true);
            fired = fault_disarm(&d->vfs);
            if (st != KN_OK) {
                assert_null(d->store);
                assert_true(fired > 0);
                assert_true(st == KN_IO || st == KN_UNAVAILABLE);
                assert_non_null(strstr(kn_fail_message(), d->directory));
            }
            kn_store_close(&d->store);
            check_steps(d, &s, kind, nth);
        }
        assert_true(nth < SWEEP_MAX);
    }
}

/* Making a new store: after a failure there is none, or a whole one; never half of one. */
static void test_faults_while_creating(void **state)
{
    disk *d = *state;
    for (fault_kind kind = 0; kind < FAULT_KINDS; kind++) {
        int64_t nth = 1, fired = 1;
        for (; fired > 0 && nth < SWEEP_MAX; nth++) {
            remove_directory(d->directory);
            make_fast_directory(d->directory);
            fault_arm(&d->vfs, kind, nth, false);
            const kn_status st = open_on(d, true);
            fired = fault_disarm(&d->vfs);
            assert_true(st == KN_OK || fired > 0);
            kn_store_close(&d->store);
            if (open_on(d, false) != KN_OK) fail_msg("%s %d: %s", fault_names[kind], (int)nth, kn_fail_message());
            submit_job(d->store, &d->jobs[0], "acme");
            kn_store_close(&d->store);
            check_invariants(d->directory);
        }
        assert_true(nth < SWEEP_MAX);
    }
}

/* A full disk that stays full for a while: refused with a reason, queries work, and then it goes on by itself. */
static void test_full_for_a_while(void **state)
{
    disk *d = *state;
    kn_job job;
    int64_t counts[KN_JOB_STATES];
    start_over(d);
    assert_int_equal(open_on(d, true), KN_OK);
    fault_arm(&d->vfs, FAULT_WRITE_FULL, 1, true);
    for (int i = 0; i < 20; i++) {
        fill_job(&job, "acme");
        const kn_store_op op = submit_of(&job);
        assert_int_equal(perform(d->store, &op).status, KN_UNAVAILABLE);
        assert_int_equal(kn_store_health(d->store), KN_UNAVAILABLE);
        assert_int_equal(kn_store_counts(d->store, counts), KN_OK);
        assert_int_equal(counts[KN_JOB_RUNNING], 1);
        const kn_store_op nothing = {.kind = KN_STORE_EXPIRE, .batch = 1}; /* a commit of nothing proves nothing */
        assert_int_equal(perform(d->store, &nothing).status, KN_OK);
        assert_int_equal(kn_store_health(d->store), KN_UNAVAILABLE);
    }
    assert_true(kn_store_read_stats(d->store).errors[KN_STORE_ERROR_FULL] >= 20);
    assert_int_equal(kn_store_read_stats(d->store).errors[KN_STORE_ERROR_IO], 0);
    fault_disarm(&d->vfs);
    submit_job(d->store, &job, "acme");
    assert_int_equal(kn_store_health(d->store), KN_OK);
    assert_int_equal(kn_store_audit_verify(d->store, NULL, NULL), KN_OK);
    kn_store_close(&d->store);
    check_invariants(d->directory);
}

static int make_disk(void **state)
{
    disk *d = kn_alloc(sizeof *d);
    assert_non_null(d);
    vfs_install(&d->vfs);
    make_fast_directory(d->directory);
    *state = d;
    return 0;
}

static int remove_disk(void **state)
{
    disk *d = *state;
    vfs_remove(&d->vfs);
    remove_directory(d->directory);
    kn_free(d);
    return 0;
}

int main(void)
{
    kn_log_configure(KN_LOG_ERROR + 1, 0); /* it would say the same a thousand times */
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_disk, remove_disk)
    const struct CMUnitTest tests[] = {
        TEST(test_one_fault),
        TEST(test_faults_from_then_on),
        TEST(test_faults_while_opening),
        TEST(test_faults_while_creating),
        TEST(test_full_for_a_while),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The queue: its bound, its batches, its end. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/server/store_test.h"

static void count_done(void *context, kn_store_result *r)
{
    *(int *)context += r->status == KN_OK ? 1 : 100;
}

static void test_queue_is_bounded(void **state)
{
    fixture *f = *state;
    kn_job job;
    int done = 0;
    enum { MOST = 50 };
    kn_store_close(&f->store);
    kn_store_params params = fixture_params(f);
    params.max_pending = KN_STORE_PENDING_MAX + 1;
    assert_int_equal(kn_store_open(&f->store, &params), KN_INVALID);
    params.max_pending = MOST;
    assert_int_equal(kn_store_open(&f->store, &params), KN_OK);
    pthread_mutex_lock(&f->gate);
    for (int i = 0; i <= MOST; i++) {
        fill_job(&job, "acme");
        const kn_store_op op = submit_of(&job);
        assert_int_equal(kn_store_submit_op(f->store, &op, count_done, &done), i < MOST ? KN_OK : KN_AGAIN);
    }
    pthread_mutex_unlock(&f->gate);
    while (kn_store_read_stats(f->store).operations < MOST) kn_store_wait(f->store, 10);
    const kn_store_op op = submit_of(&job); /* committed, but nobody took the completions yet */
    assert_int_equal(kn_store_submit_op(f->store, &op, count_done, &done), KN_AGAIN);
    assert_int_equal(kn_store_drain(f->store), MOST);
    assert_int_equal(done, MOST);
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    kn_store_stats stats = kn_store_read_stats(f->store);
    assert_int_equal(stats.pending, 0);
    assert_int_equal(stats.operations, MOST + 1);
    assert_true(stats.transactions < MOST); /* they shared commits */

    done = 0; /* closing runs what is queued, and its completions */
    for (int i = 0; i < MOST; i++) {
        fill_job(&job, "acme");
        assert_int_equal(kn_store_submit_op(f->store, &op, count_done, &done), KN_OK);
    }
    kn_store_close(&f->store);
    assert_int_equal(done, MOST);
    open_store(f);
    int64_t counts[KN_JOB_STATES];
    kn_store_counts(f->store, counts);
    assert_int_equal(counts[KN_JOB_QUEUED], 2 * MOST + 1);
}

static void test_one_failure_is_its_own(void **state)
{
    fixture *f = *state;
    kn_job a, b;
    int before = 0, after = 0, wrong = 0;
    char id[KN_ENDPOINT_ID_BYTES];
    for (int i = 0; i < KN_ENDPOINTS_PER_TENANT; i++) {
        snprintf(id, sizeof id, "we_%d", i);
        const kn_endpoint_row row = endpoint_of(id, "acme", 1);
        put_endpoint(f, &row);
    }
    const uint64_t transactions = kn_store_read_stats(f->store).transactions;
    fill_job(&a, "acme");
    fill_job(&b, "acme");
    const kn_endpoint_row row = endpoint_of("we_more", "acme", 1);
    const kn_store_op first = submit_of(&a), second = {.kind = KN_STORE_ENDPOINT_PUT, .endpoint = &row},
                      third = submit_of(&b);
    pthread_mutex_lock(&f->gate);
    const kn_store_op hold = {.kind = KN_STORE_PURGE, .batch = 1}; /* the thread waits inside this one */
    kn_store_submit_op(f->store, &hold, NULL, NULL);
    kn_store_submit_op(f->store, &first, count_done, &before);
    kn_store_submit_op(f->store, &second, count_done, &wrong);
    kn_store_submit_op(f->store, &third, count_done, &after);
    pthread_mutex_unlock(&f->gate);
    for (int32_t seen = 0; seen < 4; seen += kn_store_drain(f->store)) kn_store_wait(f->store, -1);
    assert_int_equal(before, 1);
    assert_int_equal(wrong, 100);
    assert_int_equal(after, 1);
    assert_true(kn_store_read_stats(f->store).transactions - transactions <= 2);
    assert_int_equal(kn_store_audit_verify(f->store, NULL, NULL), KN_OK); /* the failed one left no gap */
}

/* Holds the store's thread inside a transaction of its own; the gate is locked when it returns. */
static void hold_thread(fixture *f)
{
    const kn_store_op op = {.kind = KN_STORE_PURGE, .batch = 1};
    pthread_mutex_lock(&f->gate);
    atomic_store(&f->asked, 0);
    assert_int_equal(kn_store_submit_op(f->store, &op, NULL, NULL), KN_OK);
    while (atomic_load(&f->asked) == 0) usleep(100);
}

static void finish_all(fixture *f)
{
    while (kn_store_read_stats(f->store).pending > 0) {
        kn_store_wait(f->store, -1);
        kn_store_drain(f->store);
    }
}

static void test_commits_are_measured(void **state)
{
    fixture *f = *state;
    kn_store_commit commits[KN_STORE_COMMITS_KEPT + 1];
    const kn_store_op op = {.kind = KN_STORE_AUDIT, .id = "x", .audit = {.action = "test"}};
    assert_int_equal(kn_store_take_commits(f->store, commits, 8), 0);
    hold_thread(f);
    for (int i = 0; i < 5; i++) assert_int_equal(kn_store_submit_op(f->store, &op, NULL, NULL), KN_OK);
    pthread_mutex_unlock(&f->gate);
    finish_all(f);
    assert_int_equal(kn_store_take_commits(f->store, commits, 1), 1);
    assert_int_equal(commits[0].operations, 1); /* the one that held */
    assert_int_equal(kn_store_take_commits(f->store, commits, 8), 1);
    assert_int_equal(commits[0].operations, 5);
    assert_true(commits[0].ns > 0 && commits[0].ns < UINT64_C(60000000000));
    assert_int_equal(kn_store_take_commits(f->store, commits, 8), 0);
    for (int i = 0; i < KN_STORE_COMMITS_KEPT + 10; i++) assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    assert_int_equal(kn_store_take_commits(f->store, commits, KN_STORE_COMMITS_KEPT + 1), KN_STORE_COMMITS_KEPT);
    assert_int_equal(kn_store_take_commits(f->store, commits, 8), 0);
}

static void test_batch_is_bounded(void **state)
{
    fixture *f = *state;
    const kn_store_op op = {.kind = KN_STORE_AUDIT, .id = "x", .audit = {.action = "test"}};
    for (int more = 0; more < 2; more++) {
        const uint64_t before = kn_store_read_stats(f->store).transactions;
        hold_thread(f);
        for (int i = 0; i < KN_STORE_BATCH_MAX + more; i++)
            assert_int_equal(kn_store_submit_op(f->store, &op, NULL, NULL), KN_OK);
        pthread_mutex_unlock(&f->gate);
        finish_all(f);
        assert_int_equal(kn_store_read_stats(f->store).transactions - before, 2 + more); /* the one that held, too */
    }
}

static char *megabyte(void)
{
    char *text = kn_alloc(KN_STORE_TEXT_BYTES + 1);
    assert_non_null(text);
    memset(text, 'a', KN_STORE_TEXT_BYTES);
    return text;
}

static kn_status submit_large(fixture *f, char *text, int *done)
{
    kn_job job;
    fill_job(&job, "acme");
    job.prompt = job.request = job.extra = text;
    const kn_store_op op = submit_of(&job);
    return kn_store_submit_op(f->store, &op, count_done, done);
}

static void test_queue_is_bounded_in_bytes(void **state)
{
    fixture *f = *state;
    int done = 0, fit = 0;
    char *text = megabyte(), message[KN_STORE_MESSAGE_BYTES];
    const kn_store_op small = {.kind = KN_STORE_AUDIT, .id = "x", .audit = {.action = "test"}};
    kn_status st = KN_OK;
    const uint64_t transactions = kn_store_read_stats(f->store).transactions;
    hold_thread(f);
    while (fit < 1000 && (st = submit_large(f, text, &done)) == KN_OK) fit++;
    snprintf(message, sizeof message, "%s", kn_fail_message());
    const kn_status after = kn_store_submit_op(f->store, &small, count_done, &done); /* what fits still goes in */
    pthread_mutex_unlock(&f->gate);
    assert_int_equal(st, KN_AGAIN);
    assert_non_null(strstr(message, "bytes"));
    assert_int_equal(fit, KN_STORE_PENDING_BYTES_MAX / (3 * KN_STORE_TEXT_BYTES + 4096));
    assert_int_equal(after, KN_OK);
    finish_all(f);
    assert_int_equal(done, fit + 1);
    const int each = KN_STORE_BATCH_BYTES / (3 * KN_STORE_TEXT_BYTES) + 1; /* the one that passes the limit is in it */
    assert_int_equal(kn_store_read_stats(f->store).transactions - transactions, 1 + (fit + each) / each);
    assert_int_equal(submit_large(f, text, &done), KN_OK);
    finish_all(f);
    kn_free(text);
}

/* ---- readers ---- */

typedef struct reader {
    fixture *fixture;
    pthread_t thread;
    _Atomic int *inside;
    pthread_mutex_t *leave;
} reader;

static kn_status stay(void *context, const kn_job *job)
{
    reader *r = context;
    (void)job;
    atomic_fetch_add(r->inside, 1);
    pthread_mutex_lock(r->leave);
    pthread_mutex_unlock(r->leave);
    return KN_CANCELLED; /* one row is enough */
}

static void *read_slowly(void *opaque)
{
    reader *r = opaque;
    return kn_store_load_unfinished(r->fixture->store, stay, r) == KN_CANCELLED ? r : NULL;
}

static void start_reader(reader *r, fixture *f, _Atomic int *inside, pthread_mutex_t *leave)
{
    *r = (reader){.fixture = f, .inside = inside, .leave = leave};
    assert_int_equal(pthread_create(&r->thread, NULL, read_slowly, r), 0);
}

static void test_readers_are_bounded(void **state)
{
    fixture *f = *state;
    enum { MORE = KN_STORE_READERS + 1 };
    reader readers[MORE];
    _Atomic int inside = 0;
    pthread_mutex_t leave = PTHREAD_MUTEX_INITIALIZER;
    kn_job job;
    void *ended;
    submit_job(f->store, &job, "acme");
    pthread_mutex_lock(&leave);
    for (int i = 0; i < MORE; i++) start_reader(&readers[i], f, &inside, &leave);
    while (atomic_load(&inside) < KN_STORE_READERS) usleep(100);
    usleep(20000); /* time in which a fifth could come in */
    assert_int_equal(atomic_load(&inside), KN_STORE_READERS);
    submit_job(f->store, &job, "acme"); /* readers keep nobody from writing */
    pthread_mutex_unlock(&leave);
    for (int i = 0; i < MORE; i++) {
        pthread_join(readers[i].thread, &ended);
        assert_non_null(ended);
    }
    assert_int_equal(atomic_load(&inside), MORE);
}

/* A reader that stays keeps the log from being begun again; when it has gone the log goes too. */
static void test_log_behind_a_reader(void **state)
{
    fixture *f = *state;
    reader r;
    _Atomic int inside = 0;
    pthread_mutex_t leave = PTHREAD_MUTEX_INITIALIZER;
    kn_job job;
    int done = 0, sent = 0;
    char *text = megabyte();
    submit_job(f->store, &job, "acme");
    pthread_mutex_lock(&leave);
    start_reader(&r, f, &inside, &leave);
    while (atomic_load(&inside) == 0) usleep(100);
    while (kn_store_read_stats(f->store).wal_bytes <= KN_STORE_WAL_MAX) {
        assert_int_equal(submit_large(f, text, &done), KN_OK);
        finish_all(f);
        sent++;
    }
    assert_int_equal(done, sent); /* acknowledged all the same */
    pthread_mutex_unlock(&leave);
    pthread_join(r.thread, NULL);
    const uint64_t before = kn_store_read_stats(f->store).checkpoints;
    while (kn_store_read_stats(f->store).checkpoints == before) {
        assert_int_equal(submit_large(f, text, &done), KN_OK);
        finish_all(f);
        assert_true(++sent < 100);
    }
    submit_job(f->store, &job, "acme");
    assert_true(kn_store_read_stats(f->store).wal_bytes < KN_STORE_WAL_CHECKPOINT);
    kn_free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_TEST(test_queue_is_bounded),          STORE_TEST(test_one_failure_is_its_own),
        STORE_TEST(test_commits_are_measured),      STORE_TEST(test_batch_is_bounded),
        STORE_TEST(test_queue_is_bounded_in_bytes), STORE_TEST(test_readers_are_bounded),
        STORE_TEST(test_log_behind_a_reader),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

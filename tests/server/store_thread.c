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

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_TEST(test_queue_is_bounded),
        STORE_TEST(test_one_failure_is_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Idempotency keys and quotas, alone and in parallel. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/server/store_test.h"

/* ---- idempotency ---- */

static void test_idempotency_key(void **state)
{
    fixture *f = *state;
    kn_job first, second;
    kn_store_result r;
    fill_job(&first, "acme");
    fill_job(&second, "acme");
    kn_store_op op = submit_of(&first);
    op.submit.idempotency_key = "k";
    memset(op.submit.fingerprint, 1, KN_SHA256_BYTES);
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    op.submit.job = &second;
    assert_int_equal(kn_store_perform(f->store, &op, &r), KN_OK);
    assert_int_equal(r.outcome, KN_STORE_REPLAYED);
    assert_string_equal(r.job.id, first.id);
    assert_string_equal(r.job.prompt, "a red ball");
    kn_store_result_release(&r);
    op.submit.fingerprint[31] = 2;
    assert_int_equal(kn_store_perform(f->store, &op, &r), KN_OK);
    assert_int_equal(r.outcome, KN_STORE_KEY_REUSED);
    assert_string_equal(r.job.id, first.id);
    assert_null(r.job.prompt);
    kn_store_result_release(&r);
    assert_int_equal(kn_store_job_get(f->store, NULL, second.id, &r.job), KN_NOT_FOUND);

    op.kind = KN_STORE_REPLAY; /* where there is no room: the same, and nothing new */
    op.tenant = "acme";
    assert_outcome(perform(f->store, &op), KN_STORE_KEY_REUSED);
    op.submit.fingerprint[31] = 1;
    assert_int_equal(kn_store_perform(f->store, &op, &r), KN_OK);
    assert_int_equal(r.outcome, KN_STORE_REPLAYED);
    assert_string_equal(r.job.id, first.id);
    assert_int_equal(r.state, KN_JOB_QUEUED);
    kn_store_result_release(&r);
    op.submit.idempotency_key = "l";
    assert_outcome(perform(f->store, &op), KN_STORE_NOT_FOUND);
    op.submit.idempotency_key = "k";
    op.tenant = "other";
    assert_outcome(perform(f->store, &op), KN_STORE_NOT_FOUND);
    op.kind = KN_STORE_SUBMIT;
    op.tenant = NULL;
    op.submit.fingerprint[31] = 2;

    kn_job other; /* keys are a tenant's own */
    fill_job(&other, "other");
    op.submit.job = &other;
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);

    op.submit.job = &second; /* forgotten after its time, also without a purge */
    atomic_store(&f->now, START + 24 * HOUR - 1);
    assert_outcome(perform(f->store, &op), KN_STORE_KEY_REUSED);
    atomic_store(&f->now, START + 24 * HOUR);
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    reopen_store(f);
    assert_outcome(perform(f->store, &op), KN_STORE_REPLAYED);
    op = (kn_store_op){.kind = KN_STORE_PURGE, .batch = 1000};
    assert_int_equal(perform(f->store, &op).count, 1); /* the other tenant's */
}

typedef struct submitter {
    kn_store *store;
    pthread_t thread;
    int count;
    const char *key; /* or NULL */
    kn_store_limits limits;
    _Atomic int *created, *replayed, *refused;
} submitter;

static void count_outcome(void *context, kn_store_result *r)
{
    const submitter *s = context;
    if (r->status == KN_OK && r->outcome == KN_STORE_DONE) atomic_fetch_add(s->created, 1);
    if (r->status == KN_OK && r->outcome == KN_STORE_REPLAYED) atomic_fetch_add(s->replayed, 1);
    if (r->status == KN_OK && r->outcome == KN_STORE_OVER_QUOTA) atomic_fetch_add(s->refused, 1);
}

static void *submit_many(void *opaque)
{
    submitter *s = opaque;
    for (int i = 0; i < s->count; i++) {
        kn_job job;
        fill_job(&job, "acme");
        kn_store_op op = submit_of(&job);
        op.submit.idempotency_key = s->key;
        op.submit.limits = s->limits;
        if (kn_store_submit_op(s->store, &op, count_outcome, s) != KN_OK) return NULL;
    }
    return s;
}

static void submit_in_parallel(kn_store *store, int threads, int each, const char *key, kn_store_limits limits,
                               _Atomic int counts[3])
{
    submitter all[8];
    assert_true(threads <= 8);
    for (int i = 0; i < threads; i++) {
        all[i] = (submitter){store, 0, each, key, limits, &counts[0], &counts[1], &counts[2]};
        assert_int_equal(pthread_create(&all[i].thread, NULL, submit_many, &all[i]), 0);
    }
    void *done;
    for (int i = 0; i < threads; i++) {
        pthread_join(all[i].thread, &done);
        assert_non_null(done);
    }
    for (int32_t seen = 0; seen < threads * each; seen += kn_store_drain(store)) kn_store_wait(store, -1);
}

static void test_one_key_a_hundred_times(void **state)
{
    fixture *f = *state;
    _Atomic int counts[3] = {0};
    submit_in_parallel(f->store, 4, 25, "same", (kn_store_limits){0}, counts);
    assert_int_equal(counts[0], 1);
    assert_int_equal(counts[1], 99);
    int64_t jobs[KN_JOB_STATES];
    assert_int_equal(kn_store_counts(f->store, jobs), KN_OK);
    assert_int_equal(jobs[KN_JOB_QUEUED], 1);
}

/* ---- quotas ---- */

static void test_room_for_ten(void **state)
{
    fixture *f = *state;
    kn_store_usage usage;
    _Atomic int counts[3] = {0};
    const kn_store_limits time = {.device_us = 10999, .window_us = 24 * HOUR}; /* a job holds 1000 */
    submit_in_parallel(f->store, 8, 125, NULL, time, counts);
    assert_int_equal(counts[0], 10);
    assert_int_equal(counts[2], 990);
    assert_int_equal(kn_store_tenant_usage(f->store, "acme", &usage), KN_OK);
    assert_int_equal(usage.active, 10);
    assert_int_equal(usage.held_us, 10000);

    atomic_store(&counts[0], 0);
    const kn_store_limits number = {.max_active = 20};
    submit_in_parallel(f->store, 8, 125, NULL, number, counts);
    assert_int_equal(counts[0], 10);
}

static kn_store_result submit_under(fixture *f, kn_job *job, uint64_t cost_us, kn_store_limits limits)
{
    fill_job(job, "acme");
    job->cost_us = cost_us;
    kn_store_op op = submit_of(job);
    op.submit.limits = limits;
    return perform(f->store, &op);
}

static void test_what_is_charged(void **state)
{
    fixture *f = *state;
    const kn_store_limits limits = {.device_us = 3000, .window_us = 24 * HOUR};
    const int64_t window_end = START - START % (24 * HOUR) + 24 * HOUR;
    kn_store_usage u;
    kn_store_result r;
    kn_job a, b, c, d;
    assert_outcome(submit_under(f, &a, 1000, limits), KN_STORE_DONE);
    assert_outcome(submit_under(f, &b, 1000, limits), KN_STORE_DONE);
    assert_outcome(submit_under(f, &c, 1000, limits), KN_STORE_DONE);
    r = submit_under(f, &d, 1, limits);
    assert_outcome(r, KN_STORE_OVER_QUOTA);
    assert_int_equal(r.quota.which, KN_QUOTA_DEVICE_TIME);
    assert_int_equal(r.quota.limit, 3000);
    assert_int_equal(r.quota.used, 3000);
    assert_int_equal(r.quota.asked, 1);
    assert_int_equal(r.quota.frees_at, 0); /* all of it is held: when a job ends */

    claim(f->store, a.id, 0); /* completed: its price, whatever it used */
    kn_store_op op = publish_of(a.id, 1);
    op.publish.used_us = 5;
    perform(f->store, &op);
    claim(f->store, b.id, 0); /* failed: nothing */
    op = finish_of(b.id, 1, KN_JOB_FAILED);
    perform(f->store, &op);
    claim(f->store, c.id, 0); /* cancelled: what it used */
    op = finish_of(c.id, 1, KN_JOB_CANCELLED);
    perform(f->store, &op);
    kn_store_tenant_usage(f->store, "acme", &u);
    assert_int_equal(u.active, 0);
    assert_int_equal(u.held_us, 0);
    assert_int_equal(u.spent_us, 1000 + 300);

    submit_under(f, &d, 1000, limits);
    claim(f->store, d.id, 0);
    op = finish_of(d.id, 1, KN_JOB_CANCELLED);
    op.finish.used_us = 99999; /* at most its price */
    perform(f->store, &op);
    kn_store_tenant_usage(f->store, "acme", &u);
    assert_int_equal(u.spent_us, 2300);
    r = submit_under(f, &d, 701, limits);
    assert_outcome(r, KN_STORE_OVER_QUOTA);
    assert_int_equal(r.quota.frees_at, window_end);
    assert_outcome(submit_under(f, &d, 700, limits), KN_STORE_DONE);
    r = submit_under(f, &d, 3001, limits); /* never */
    assert_outcome(r, KN_STORE_OVER_QUOTA);
    assert_int_equal(r.quota.frees_at, 0);

    op = (kn_store_op){.kind = KN_STORE_RETRY, .id = b.id}; /* held again, whatever the quota */
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    kn_store_tenant_usage(f->store, "acme", &u);
    assert_int_equal(u.active, 2);
    assert_int_equal(u.held_us, 1700);
    assert_outcome(submit_under(f, &d, 1, (kn_store_limits){.max_active = 2}), KN_STORE_OVER_QUOTA);
    op = (kn_store_op){.kind = KN_STORE_REMOVE, .id = b.id, .tenant = "acme"}; /* 300 used in its first life */
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    kn_store_tenant_usage(f->store, "acme", &u);
    assert_int_equal(u.active, 1);
    assert_int_equal(u.spent_us, 2600);
}

static void test_windows(void **state)
{
    fixture *f = *state;
    const kn_store_limits limits = {.device_us = 1000, .window_us = HOUR};
    const int64_t edge = START - START % HOUR + HOUR;
    kn_store_usage u;
    kn_job a, b;
    submit_under(f, &a, 1000, limits);
    claim(f->store, a.id, 0);
    kn_store_op op = publish_of(a.id, 1);
    perform(f->store, &op);
    atomic_store(&f->now, edge - 1);
    assert_outcome(submit_under(f, &b, 1, limits), KN_STORE_OVER_QUOTA);
    atomic_store(&f->now, edge);
    assert_outcome(submit_under(f, &b, 1000, limits), KN_STORE_DONE);
    claim(f->store, b.id, 0);
    op = publish_of(b.id, 1);
    perform(f->store, &op);
    atomic_store(&f->now, edge - SECOND); /* back over the edge and over it again: no second allowance */
    assert_outcome(submit_under(f, &b, 1, limits), KN_STORE_OVER_QUOTA);
    atomic_store(&f->now, edge + SECOND);
    assert_outcome(submit_under(f, &b, 1, limits), KN_STORE_OVER_QUOTA);

    atomic_store(&f->now, edge + 100000 * HOUR); /* years ahead, and back: it frees in the window after */
    submit_under(f, &a, 1000, limits);
    claim(f->store, a.id, 0);
    op = publish_of(a.id, 1);
    perform(f->store, &op);
    atomic_store(&f->now, edge + SECOND);
    assert_outcome(submit_under(f, &b, 1, limits), KN_STORE_OVER_QUOTA);
    kn_job other; /* what is written when a submit gets through is the window as it is now */
    submit_under(f, &other, 0, (kn_store_limits){.window_us = HOUR});
    kn_store_tenant_usage(f->store, "acme", &u);
    assert_int_equal(u.window_start, edge);
    assert_int_equal(u.spent_us, 1000);
    atomic_store(&f->now, edge + HOUR);
    assert_outcome(submit_under(f, &b, 1000, limits), KN_STORE_DONE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_TEST(test_idempotency_key), STORE_TEST(test_one_key_a_hundred_times),
        STORE_TEST(test_room_for_ten),    STORE_TEST(test_what_is_charged),
        STORE_TEST(test_windows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

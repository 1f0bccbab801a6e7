/* SPDX-License-Identifier: Apache-2.0
 *
 * A job's life in the store, its leases, and every transition. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/server/store_test.h"

/* ---- a job's life ---- */

static void test_submit_keeps_every_field(void **state)
{
    fixture *f = *state;
    kn_job job, back;
    fill_job(&job, "acme");
    snprintf(job.key_id, sizeof job.key_id, "key1");
    job.extra = (char *)(uintptr_t) "{\"seconds\":\"4\"}";
    job.priority = KN_PRIORITY_URGENT;
    job.deadline_at = START + HOUR;
    job.cost_us = 123456;
    char prompt[] = "a text that changes after the call";
    job.prompt = prompt;
    const kn_store_op op = submit_of(&job);
    kn_store_result result;
    pthread_mutex_lock(&f->gate);
    assert_int_equal(kn_store_submit_op(f->store, &op, NULL, NULL), KN_OK);
    memset(prompt, 'x', 4);
    pthread_mutex_unlock(&f->gate);
    while (kn_store_drain(f->store) == 0) kn_store_wait(f->store, -1);

    assert_int_equal(kn_store_job_get(f->store, "acme", job.id, &back), KN_OK);
    assert_string_equal(back.id, job.id);
    assert_string_equal(back.tenant, "acme");
    assert_string_equal(back.key_id, "key1");
    assert_string_equal(back.model, "demo");
    assert_string_equal(back.asked_model, "sora-2");
    assert_int_equal(back.state, KN_JOB_QUEUED);
    assert_int_equal(back.priority, KN_PRIORITY_URGENT);
    assert_string_equal(back.prompt, "a text that changes after the call");
    assert_string_equal(back.request, job.request);
    assert_string_equal(back.extra, job.extra);
    assert_int_equal(back.created_at, START);
    assert_int_equal(back.deadline_at, START + HOUR);
    assert_int_equal(back.cost_us, 123456);
    assert_int_equal(back.epoch, 0);
    assert_null(back.checkpoint);
    assert_null(back.blob);
    kn_job_release(&back);

    assert_outcome(perform(f->store, &op), KN_STORE_CONFLICT); /* the id again */
    fill_job(&job, "acme");
    assert_int_equal(kn_store_perform(f->store, &op, &result), KN_OK); /* the record comes back */
    assert_string_equal(result.job.prompt, job.prompt);
    assert_true(result.job.prompt != job.prompt);
    assert_int_equal(result.job.created_at, START + 1); /* later than the one before, in a clock that stands */
    kn_store_result_release(&result);
}

static void test_life_to_completion(void **state)
{
    fixture *f = *state;
    kn_job job, back;
    kn_store_result r;
    submit_job(f->store, &job, "acme");
    atomic_store(&f->now, START + 2 * SECOND);
    r = claim(f->store, job.id, 0);
    assert_outcome(r, KN_STORE_DONE);
    assert_int_equal(r.epoch, 1);
    assert_int_equal(r.at, START + 2 * SECOND);
    assert_int_equal(r.state, KN_JOB_RUNNING);

    kn_store_op op = {.kind = KN_STORE_CHECKPOINT, .id = job.id, .epoch = 1};
    op.checkpoint.name = "one";
    op.checkpoint.step = 4;
    op.checkpoint.used_us = 400;
    memset(op.checkpoint.sha256, 7, KN_SHA256_BYTES);
    r = perform(f->store, &op);
    assert_outcome(r, KN_STORE_DONE);
    assert_int_equal(r.file_count, 0);
    back = get(f, job.id);
    assert_string_equal(back.checkpoint, "one");
    assert_int_equal(back.checkpoint_step, 4);
    assert_int_equal(back.checkpoint_sha256[31], 7);
    assert_int_equal(back.used_us, 400);
    kn_job_release(&back);

    kn_store_result full;
    op.checkpoint.name = "two";
    op.checkpoint.used_us = 300; /* never lowered */
    assert_int_equal(kn_store_perform(f->store, &op, &full), KN_OK);
    assert_int_equal(full.file_count, 1);
    assert_string_equal(full.files[0].name, "one");
    assert_false(full.files[0].blob);
    kn_store_result_release(&full);
    assert_int_equal(perform(f->store, &op).file_count, 0); /* the same name again */

    op = publish_of(job.id, 1);
    op.publish.expires_at = START + HOUR;
    assert_int_equal(kn_store_perform(f->store, &op, &full), KN_OK);
    assert_int_equal(full.state, KN_JOB_COMPLETED);
    assert_int_equal(full.file_count, 1);
    assert_string_equal(full.files[0].name, "two");
    kn_store_result_release(&full);
    back = get(f, job.id);
    assert_int_equal(back.state, KN_JOB_COMPLETED);
    assert_string_equal(back.blob, "video.mp4");
    assert_int_equal(back.blob_bytes, 1234);
    assert_int_equal(back.blob_sha256[2], 3);
    assert_int_equal(back.used_us, 700);
    assert_int_equal(back.completed_at, START + 2 * SECOND);
    assert_int_equal(back.expires_at, START + HOUR);
    assert_null(back.checkpoint);
    kn_job_release(&back);
}

static void test_expiry_and_tombstone(void **state)
{
    fixture *f = *state;
    kn_job job, back;
    kn_store_result full;
    submit_job(f->store, &job, "acme");
    claim(f->store, job.id, 0);
    kn_store_op op = publish_of(job.id, 1);
    op.publish.expires_at = START + HOUR;
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    op = (kn_store_op){.kind = KN_STORE_EXPIRE, .batch = 10};
    atomic_store(&f->now, START + HOUR - 1);
    assert_int_equal(perform(f->store, &op).count, 0);
    atomic_store(&f->now, START + HOUR);
    assert_int_equal(kn_store_perform(f->store, &op, &full), KN_OK);
    assert_int_equal(full.count, 1);
    assert_string_equal(full.files[0].name, "video.mp4");
    assert_string_equal(full.files[0].id, job.id);
    assert_true(full.files[0].blob);
    kn_store_result_release(&full);
    assert_int_equal(perform(f->store, &op).count, 0);

    op = (kn_store_op){.kind = KN_STORE_REMOVE, .id = job.id, .tenant = "other"};
    assert_outcome(perform(f->store, &op), KN_STORE_NOT_FOUND);
    op.tenant = "acme";
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    assert_outcome(perform(f->store, &op), KN_STORE_NOT_FOUND);
    back = get(f, job.id);
    assert_int_equal(back.state, KN_JOB_DELETED);
    assert_null(back.prompt);
    assert_null(back.request);
    assert_null(back.extra);
    assert_null(back.blob);
    kn_job_release(&back);

    op = (kn_store_op){.kind = KN_STORE_PURGE, .batch = 10};
    atomic_store(&f->now, START + 25 * HOUR - 1);
    assert_int_equal(perform(f->store, &op).count, 0);
    atomic_store(&f->now, START + 25 * HOUR);
    assert_int_equal(perform(f->store, &op).count, 1);
    assert_int_equal(kn_store_job_get(f->store, NULL, job.id, &back), KN_NOT_FOUND);
}

static void test_removal_names_the_files(void **state)
{
    fixture *f = *state;
    kn_job job;
    kn_store_result full;
    submit_job(f->store, &job, "acme");
    claim(f->store, job.id, 0);
    kn_store_op op = {.kind = KN_STORE_CHECKPOINT, .id = job.id, .epoch = 1, .checkpoint = {.name = "c"}};
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    op = (kn_store_op){.kind = KN_STORE_REMOVE, .id = job.id, .tenant = "acme"};
    assert_int_equal(kn_store_perform(f->store, &op, &full), KN_OK);
    assert_int_equal(full.file_count, 1);
    assert_string_equal(full.files[0].name, "c");
    kn_store_result_release(&full);
    op = publish_of(job.id, 1); /* the worker did not know */
    assert_outcome(perform(f->store, &op), KN_STORE_FENCED);

    submit_job(f->store, &job, "acme");
    claim(f->store, job.id, 0);
    op = publish_of(job.id, 1);
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    op = (kn_store_op){.kind = KN_STORE_REMOVE, .id = job.id, .tenant = "acme"};
    assert_int_equal(kn_store_perform(f->store, &op, &full), KN_OK);
    assert_int_equal(full.file_count, 1);
    assert_true(full.files[0].blob);
    kn_store_result_release(&full);

    submit_job(f->store, &job, "acme"); /* a checkpoint that turned out bad */
    claim(f->store, job.id, 0);
    op = (kn_store_op){.kind = KN_STORE_CHECKPOINT, .id = job.id, .epoch = 1, .checkpoint = {.name = "c", .step = 3}};
    perform(f->store, &op);
    op.checkpoint.name = NULL;
    assert_int_equal(perform(f->store, &op).file_count, 0); /* released: the count is gone with it */
    kn_job back = get(f, job.id);
    assert_null(back.checkpoint);
    assert_int_equal(back.checkpoint_step, 0);
    kn_job_release(&back);
}

/* ---- leases ---- */

static void test_a_stale_lease_changes_nothing(void **state)
{
    fixture *f = *state;
    kn_job job, back;
    submit_job(f->store, &job, "acme");
    assert_outcome(claim(f->store, job.id, 5), KN_STORE_FENCED);
    assert_outcome(claim(f->store, job.id, 0), KN_STORE_DONE);
    assert_outcome(claim(f->store, job.id, 0), KN_STORE_FENCED);
    kn_store_result r = claim(f->store, job.id, 1); /* after a crash of the server: running, under the next epoch */
    assert_outcome(r, KN_STORE_DONE);
    assert_int_equal(r.epoch, 2);

    const kn_store_op stale[] = {
        {.kind = KN_STORE_RELEASE, .id = job.id, .epoch = 1},
        {.kind = KN_STORE_CHECKPOINT, .id = job.id, .epoch = 1, .checkpoint = {.name = "x"}},
        {.kind = KN_STORE_COUNT_ATTEMPT, .id = job.id, .epoch = 1},
        publish_of(job.id, 1),
        finish_of(job.id, 1, KN_JOB_FAILED),
        publish_of(job.id, 3),
    };
    for (size_t i = 0; i < sizeof stale / sizeof *stale; i++) {
        r = perform(f->store, &stale[i]);
        assert_outcome(r, KN_STORE_FENCED);
        assert_int_equal(r.epoch, 2);
        assert_int_equal(r.state, KN_JOB_RUNNING);
    }
    back = get(f, job.id);
    assert_int_equal(back.state, KN_JOB_RUNNING);
    assert_int_equal(back.attempts, 0);
    assert_null(back.checkpoint);
    kn_job_release(&back);

    kn_store_op op = {.kind = KN_STORE_COUNT_ATTEMPT, .id = job.id, .epoch = 2};
    assert_int_equal(perform(f->store, &op).attempts, 1);
    assert_int_equal(perform(f->store, &op).attempts, 2);
    op.kind = KN_STORE_RELEASE;
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    assert_outcome(perform(f->store, &op), KN_STORE_FENCED); /* queued: nobody's */
    op = publish_of(job.id, 2);
    assert_outcome(perform(f->store, &op), KN_STORE_FENCED);
    r = claim(f->store, job.id, 2);
    assert_int_equal(r.epoch, 3);
    assert_int_equal(r.at, START); /* it started once */
}

/* Every state, every operation: it happens exactly when the table of transitions has it. */
static void test_transitions(void **state)
{
    fixture *f = *state;
    kn_job job;
    for (kn_job_state from = 0; from < KN_JOB_STATES; from++)
        for (int way = 0; way < 7; way++) {
            put_in_state(f, &job, from);
            const int64_t epoch = from == KN_JOB_QUEUED ? 0 : 1;
            const struct {
                kn_store_op op;
                kn_job_state to;
                bool also; /* what the operation asks for beyond the table */
            } ways[] = {
                {{.kind = KN_STORE_CLAIM, .id = job.id, .epoch = epoch}, KN_JOB_RUNNING, true},
                {{.kind = KN_STORE_RELEASE, .id = job.id, .epoch = 1}, KN_JOB_QUEUED, from == KN_JOB_RUNNING},
                {publish_of(job.id, 1), KN_JOB_COMPLETED, true},
                {finish_of(job.id, 0, KN_JOB_FAILED), KN_JOB_FAILED, true},
                {finish_of(job.id, 0, KN_JOB_CANCELLED), KN_JOB_CANCELLED, true},
                {{.kind = KN_STORE_RETRY, .id = job.id}, KN_JOB_QUEUED, from != KN_JOB_RUNNING},
                {{.kind = KN_STORE_REMOVE, .id = job.id, .tenant = "acme"}, KN_JOB_DELETED, true},
            };
            const bool allowed = kn_job_transition_allowed(from, ways[way].to) && ways[way].also;
            const kn_store_result r = perform(f->store, &ways[way].op);
            assert_int_equal(r.status, KN_OK);
            if ((r.outcome == KN_STORE_DONE) != allowed)
                fail_msg("from %s, operation %d: outcome %d", kn_job_state_name(from), ways[way].op.kind, r.outcome);
            kn_job back = get(f, job.id);
            assert_int_equal(back.state, allowed ? ways[way].to : from);
            kn_job_release(&back);
        }
}

static void test_finish_and_retry(void **state)
{
    fixture *f = *state;
    kn_job job, back;
    submit_job(f->store, &job, "acme");
    claim(f->store, job.id, 0);
    kn_store_op op = {.kind = KN_STORE_COUNT_ATTEMPT, .id = job.id, .epoch = 1};
    perform(f->store, &op);
    op = finish_of(job.id, 1, KN_JOB_FAILED);
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    back = get(f, job.id);
    assert_int_equal(back.state, KN_JOB_FAILED);
    assert_string_equal(back.error_code, "worker_lost");
    assert_string_equal(back.error_message, "it went away");
    assert_int_equal(back.completed_at, START);
    assert_int_equal(back.attempts, 1);
    kn_job_release(&back);

    op = (kn_store_op){.kind = KN_STORE_RETRY, .id = job.id, .actor = "operator"};
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    assert_outcome(perform(f->store, &op), KN_STORE_CONFLICT);
    back = get(f, job.id);
    assert_int_equal(back.state, KN_JOB_QUEUED);
    assert_string_equal(back.error_code, "");
    assert_null(back.error_message);
    assert_int_equal(back.attempts, 0);
    assert_int_equal(back.epoch, 1); /* the old lease stays dead */
    kn_job_release(&back);
    assert_outcome(claim(f->store, job.id, 1), KN_STORE_DONE);
}

static void test_unknown_job(void **state)
{
    fixture *f = *state;
    kn_job job;
    fill_job(&job, "acme");
    const kn_store_op ops[] = {
        {.kind = KN_STORE_CLAIM, .id = job.id},
        {.kind = KN_STORE_RELEASE, .id = job.id, .epoch = 1},
        {.kind = KN_STORE_CHECKPOINT, .id = job.id, .epoch = 1},
        {.kind = KN_STORE_COUNT_ATTEMPT, .id = job.id, .epoch = 1},
        publish_of(job.id, 1),
        finish_of(job.id, 0, KN_JOB_CANCELLED),
        {.kind = KN_STORE_RETRY, .id = job.id},
        {.kind = KN_STORE_REMOVE, .id = job.id, .tenant = "acme"},
        {.kind = KN_STORE_ENDPOINT_REMOVE, .id = "we_1", .tenant = "acme"},
        {.kind = KN_STORE_ENDPOINT_DISABLE, .id = "we_1"},
        {.kind = KN_STORE_DELIVERY, .delivery = {.id = 9}},
        {.kind = KN_STORE_KEY_REVOKE, .id = "key"},
    };
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        assert_outcome(perform(f->store, &ops[i]), KN_STORE_NOT_FOUND);
    kn_audit_head head;
    assert_int_equal(kn_store_audit_head(f->store, &head), KN_OK);
    assert_int_equal(head.sequence, 0); /* what did not happen is not recorded */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_TEST(test_submit_keeps_every_field),
        STORE_TEST(test_life_to_completion),
        STORE_TEST(test_expiry_and_tombstone),
        STORE_TEST(test_removal_names_the_files),
        STORE_TEST(test_a_stale_lease_changes_nothing),
        STORE_TEST(test_transitions),
        STORE_TEST(test_finish_and_retry),
        STORE_TEST(test_unknown_job),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

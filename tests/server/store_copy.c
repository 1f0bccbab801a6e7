/* SPDX-License-Identifier: Apache-2.0
 *
 * Limits of an operation's fields, each at its last value and one beyond. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/server/store_test.h"

static char *letters(size_t count)
{
    char *text = kn_alloc(count + 1);
    assert_non_null(text);
    memset(text, 'a', count);
    return text;
}

static void test_limits_of_a_submit(void **state)
{
    fixture *f = *state;
    kn_job job;
    char *most = letters(KN_STORE_TEXT_BYTES), *more = letters(KN_STORE_TEXT_BYTES + 1);
    kn_store_op op = submit_of(&job);
    fill_job(&job, "acme");
    job.prompt = more;
    refuse(f, &op, "job.prompt");
    job.prompt = most;
    job.request = more;
    refuse(f, &op, "job.request");
    job.request = most;
    job.extra = more;
    refuse(f, &op, "job.extra");
    job.extra = most;
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    kn_job back = get(f, job.id);
    assert_int_equal(strlen(back.prompt), KN_STORE_TEXT_BYTES);
    kn_job_release(&back);

    fill_job(&job, "acme");
    op.submit.idempotency_key = "";
    refuse(f, &op, "idempotency key");
    char *key = letters(KN_IDEMPOTENCY_KEY_BYTES);
    op.submit.idempotency_key = key;
    refuse(f, &op, "idempotency key");
    key[KN_IDEMPOTENCY_KEY_BYTES - 1] = '\0';
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    op.submit.idempotency_key = NULL;

    fill_job(&job, "");
    refuse(f, &op, "job.tenant");
    fill_job(&job, "acme");
    job.id[3] = 'x';
    refuse(f, &op, "job.id");
    fill_job(&job, "acme");
    job.cost_us = UINT64_MAX;
    refuse(f, &op, "job.cost_us");
    fill_job(&job, "acme");
    job.priority = KN_PRIORITIES;
    refuse(f, &op, "job.priority");
    fill_job(&job, "acme");
    job.deadline_at = -1;
    refuse(f, &op, "job.deadline_at");
    fill_job(&job, "acme");
    memset(job.model, 'm', sizeof job.model);
    refuse(f, &op, "job.model");
    fill_job(&job, "acme");
    op.submit.limits.max_active = -1;
    refuse(f, &op, "limit");
    op.submit.limits = (kn_store_limits){.device_us = 5};
    refuse(f, &op, "window");
    op = (kn_store_op){.kind = KN_STORE_SUBMIT};
    refuse(f, &op, "job");
    op = (kn_store_op){.kind = KN_STORE_REPLAY, .tenant = "acme"};
    refuse(f, &op, "idempotency key");
    key[KN_IDEMPOTENCY_KEY_BYTES - 1] = 'a';
    op.submit.idempotency_key = key;
    refuse(f, &op, "idempotency key");
    op = (kn_store_op){.kind = KN_STORE_REPLAY, .submit = {.idempotency_key = "k"}};
    refuse(f, &op, "tenant");
    kn_free(most);
    kn_free(more);
    kn_free(key);
}

static void test_limits_of_the_others(void **state)
{
    fixture *f = *state;
    kn_job job;
    submit_job(f->store, &job, "acme");
    claim(f->store, job.id, 0);
    char *name = letters(KN_STORE_FILE_BYTES), *message = letters(KN_STORE_ERROR_BYTES + 1);
    kn_store_op op = {.kind = KN_STORE_CHECKPOINT, .id = job.id, .epoch = 1, .checkpoint = {.name = name}};
    refuse(f, &op, "checkpoint.name");
    name[KN_STORE_FILE_BYTES - 1] = '\0';
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    const char *const bad_names[] = {"", "..", ".x", "a/b", "a b", "a\n"};
    for (size_t i = 0; i < sizeof bad_names / sizeof *bad_names; i++) {
        op.checkpoint.name = bad_names[i];
        refuse(f, &op, "checkpoint.name");
        kn_store_op publish = publish_of(job.id, 1);
        publish.publish.blob = bad_names[i];
        refuse(f, &publish, "publish.blob");
    }
    op.checkpoint.name = "x";
    op.checkpoint.step = -1;
    refuse(f, &op, "checkpoint.step");
    op = (kn_store_op){.kind = KN_STORE_RELEASE, .id = job.id};
    refuse(f, &op, "epoch");
    op = (kn_store_op){.kind = KN_STORE_CLAIM, .id = "video_1"};
    refuse(f, &op, "id");
    op = (kn_store_op){.kind = KN_STORE_REMOVE, .id = job.id};
    refuse(f, &op, "tenant");
    op = finish_of(job.id, 1, KN_JOB_COMPLETED);
    refuse(f, &op, "finish.state");
    op = finish_of(job.id, 1, KN_JOB_FAILED);
    op.finish.message = message;
    refuse(f, &op, "finish.message");
    message[KN_STORE_ERROR_BYTES] = '\0';
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    op = (kn_store_op){.kind = KN_STORE_EXPIRE, .batch = 0};
    refuse(f, &op, "batch");
    op.batch = KN_STORE_LIST_MAX + 1;
    refuse(f, &op, "batch");
    op.batch = KN_STORE_LIST_MAX;
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    op = (kn_store_op){.kind = KN_STORE_KINDS};
    refuse(f, &op, "operation");
    op = (kn_store_op){.kind = KN_STORE_ENDPOINT_PUT};
    refuse(f, &op, "endpoint");
    op = (kn_store_op){.kind = KN_STORE_KEY_ADD};
    refuse(f, &op, "key");
    op = (kn_store_op){.kind = KN_STORE_DELIVERY, .delivery = {.outcome = KN_DELIVERY_OUTCOMES}};
    refuse(f, &op, "delivery");
    op = (kn_store_op){.kind = KN_STORE_AUDIT, .id = "x"};
    refuse(f, &op, "action");
    kn_free(name);
    kn_free(message);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_TEST(test_limits_of_a_submit),
        STORE_TEST(test_limits_of_the_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

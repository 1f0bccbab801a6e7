/* SPDX-License-Identifier: Apache-2.0
 *
 * Webhook endpoints and deliveries, and API keys. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/server/store_test.h"

/* ---- webhooks ---- */

typedef struct delivery_list {
    kn_delivery_row rows[8];
    int count;
} delivery_list;

static kn_status keep_delivery(void *context, const kn_delivery_row *row)
{
    delivery_list *list = context;
    assert_true(list->count < 8);
    list->rows[list->count++] = *row;
    return KN_OK;
}

static delivery_list due(fixture *f, int64_t now)
{
    delivery_list list = {.count = 0};
    assert_int_equal(kn_store_deliveries_due(f->store, now, 8, keep_delivery, &list), KN_OK);
    return list;
}

static void end_job(fixture *f, kn_job *job, const char *tenant, bool good, int32_t deliveries)
{
    submit_job(f->store, job, tenant);
    claim(f->store, job->id, 0);
    const kn_store_op op = good ? publish_of(job->id, 1) : finish_of(job->id, 1, KN_JOB_FAILED);
    assert_int_equal(perform(f->store, &op).deliveries, deliveries);
}

static void test_deliveries(void **state)
{
    fixture *f = *state;
    kn_job job;
    int64_t next;
    const kn_endpoint_row both = endpoint_of("we_1", "acme", 3), good = endpoint_of("we_2", "acme", 1),
                          other = endpoint_of("we_3", "other", 3);
    assert_outcome(put_endpoint(f, &both), KN_STORE_DONE);
    assert_outcome(put_endpoint(f, &good), KN_STORE_DONE);
    assert_outcome(put_endpoint(f, &other), KN_STORE_DONE);
    kn_endpoint_row thief = both;
    snprintf(thief.tenant, sizeof thief.tenant, "other");
    assert_outcome(put_endpoint(f, &thief), KN_STORE_CONFLICT);
    assert_int_equal(kn_store_next_delivery(f->store, &next), KN_OK);
    assert_int_equal(next, 0);

    end_job(f, &job, "acme", true, 2);
    delivery_list list = due(f, START + SECOND);
    assert_int_equal(list.count, 2);
    assert_int_equal(strlen(list.rows[0].event_id), 36);
    assert_memory_equal(list.rows[0].event_id, "evt_", 4);
    assert_string_equal(list.rows[0].event_id, list.rows[1].event_id);
    assert_string_equal(list.rows[0].job_id, job.id);
    assert_int_equal(list.rows[0].event, KN_EVENT_VIDEO_COMPLETED);
    assert_int_equal(list.rows[0].attempts, 0);
    assert_string_equal(list.rows[0].url, "https://example.com/we_1");
    assert_string_equal(list.rows[0].secret, "whsec_we_1");
    assert_int_equal(kn_store_next_delivery(f->store, &next), KN_OK);
    assert_int_equal(next, list.rows[0].next_at);

    kn_store_op op = {.kind = KN_STORE_DELIVERY,
                      .delivery = {.id = list.rows[0].id, .outcome = KN_DELIVERY_RETRY, .next_at = START + HOUR}};
    op.delivery.http_status = 500;
    op.delivery.error = "answered 500";
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    const char *event_id = list.rows[0].event_id;
    delivery_list later = due(f, START + HOUR);
    assert_int_equal(later.count, 2);
    assert_int_equal(later.rows[1].id, list.rows[0].id); /* the longest overdue first */
    assert_int_equal(later.rows[1].attempts, 1);
    assert_string_equal(later.rows[1].event_id, event_id); /* the same in every attempt */
    assert_int_equal(due(f, START + HOUR - 1).count, 1);

    reopen_store(f);
    assert_int_equal(due(f, START + HOUR).count, 2);
    op.delivery.outcome = KN_DELIVERY_DONE;
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    assert_outcome(perform(f->store, &op), KN_STORE_NOT_FOUND); /* ended once */
    op.delivery.id = list.rows[1].id;
    op.delivery.outcome = KN_DELIVERY_DEAD;
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    assert_int_equal(due(f, START + HOUR).count, 0);
}

static void test_endpoints_that_go(void **state)
{
    fixture *f = *state;
    kn_job job;
    const kn_endpoint_row both = endpoint_of("we_1", "acme", 3), good = endpoint_of("we_2", "acme", 1);
    assert_outcome(put_endpoint(f, &both), KN_STORE_DONE);
    assert_outcome(put_endpoint(f, &good), KN_STORE_DONE);
    end_job(f, &job, "acme", false, 1); /* a failure: only the endpoint that wants it */
    delivery_list list = due(f, START + HOUR);
    assert_int_equal(list.count, 1);
    assert_int_equal(list.rows[0].event, KN_EVENT_VIDEO_FAILED);
    assert_string_equal(kn_webhook_event_name(list.rows[0].event), "video.failed");
    kn_store_op op = {.kind = KN_STORE_ENDPOINT_DISABLE, .id = "we_1"}; /* 410 Gone */
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    assert_int_equal(due(f, START + HOUR).count, 0);
    end_job(f, &job, "acme", false, 0);

    end_job(f, &job, "acme", true, 1);
    op = (kn_store_op){.kind = KN_STORE_ENDPOINT_REMOVE, .id = "we_2", .tenant = "other"};
    assert_outcome(perform(f->store, &op), KN_STORE_NOT_FOUND);
    op.tenant = "acme";
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    assert_int_equal(due(f, START + HOUR).count, 0);
    op = (kn_store_op){.kind = KN_STORE_PURGE, .batch = 100};
    atomic_store(&f->now, START + 72 * HOUR);
    assert_int_equal(perform(f->store, &op).count, 1); /* given up; the others went with their endpoint */
}

static kn_status count_endpoint(void *context, const kn_endpoint_row *row)
{
    assert_string_equal(row->tenant, "acme");
    assert_int_equal(row->created_at, START);
    ++*(int *)context;
    return KN_OK;
}

/* A secret that was replaced signs until its time is over. */
static void test_secrets_that_end(void **state)
{
    fixture *f = *state;
    kn_job job;
    kn_endpoint_row row = endpoint_of("we_1", "acme", 3);
    snprintf(row.secret, sizeof row.secret, "whsec_new whsec_old");
    row.old_until = START + 24 * HOUR;
    assert_outcome(put_endpoint(f, &row), KN_STORE_DONE);
    end_job(f, &job, "acme", true, 1);
    delivery_list list = due(f, START + 24 * HOUR - 1);
    assert_int_equal(list.count, 1);
    assert_string_equal(list.rows[0].secret, "whsec_new whsec_old");
    list = due(f, START + 24 * HOUR);
    assert_string_equal(list.rows[0].secret, "whsec_new");
    row.old_until = 0;
    assert_outcome(put_endpoint(f, &row), KN_STORE_DONE);
    assert_string_equal(due(f, START + 48 * HOUR).rows[0].secret, "whsec_new whsec_old");
}

static void test_endpoints_of_a_tenant(void **state)
{
    fixture *f = *state;
    char id[KN_ENDPOINT_ID_BYTES];
    int count = 0;
    for (int i = 0; i <= KN_ENDPOINTS_PER_TENANT; i++) {
        snprintf(id, sizeof id, "we_%d", i);
        const kn_endpoint_row row = endpoint_of(id, "acme", 1);
        assert_int_equal(put_endpoint(f, &row).status, i < KN_ENDPOINTS_PER_TENANT ? KN_OK : KN_INVALID);
    }
    kn_endpoint_row row = endpoint_of("we_0", "acme", 1); /* a change needs no room */
    row.enabled = false;
    assert_outcome(put_endpoint(f, &row), KN_STORE_DONE);
    assert_int_equal(kn_store_endpoints(f->store, "acme", count_endpoint, &count), KN_OK);
    assert_int_equal(count, KN_ENDPOINTS_PER_TENANT);
    row = endpoint_of("we_x", "acme", 1u << KN_WEBHOOK_EVENTS);
    const kn_store_op op = {.kind = KN_STORE_ENDPOINT_PUT, .endpoint = &row};
    refuse(f, &op, "endpoint.events");
}

/* ---- API keys ---- */

static kn_status count_key(void *context, const kn_key_row *row)
{
    (void)row;
    ++*(int *)context;
    return KN_OK;
}

static void test_keys(void **state)
{
    fixture *f = *state;
    int count = 0;
    kn_key_row key = {.id = "k1",
                      .tenant = "acme",
                      .secret_hash = {9, 8, 7},
                      .scopes = 0x80000001,
                      .priorities = 6,
                      .models = "demo,wan",
                      .limits = {.max_active = 5, .device_us = 77, .window_us = HOUR},
                      .requests_per_minute = 60,
                      .burst = 10,
                      .region = "eu",
                      .expires_at = START + HOUR};
    kn_key_row back;
    kn_store_op op = {.kind = KN_STORE_KEY_ADD, .key = &key, .actor = "operator"};
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    assert_outcome(perform(f->store, &op), KN_STORE_CONFLICT);
    assert_int_equal(kn_store_key_get(f->store, "k1", &back), KN_OK);
    key.created_at = START;
    assert_memory_equal(&back, &key, sizeof key);
    assert_int_equal(kn_store_key_get(f->store, "k2", &back), KN_NOT_FOUND);

    op = (kn_store_op){.kind = KN_STORE_KEY_REVOKE, .id = "k1", .tenant = "other"};
    assert_outcome(perform(f->store, &op), KN_STORE_NOT_FOUND);
    op.tenant = NULL;
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    atomic_store(&f->now, START + SECOND);
    assert_outcome(perform(f->store, &op), KN_STORE_DONE); /* the first time counts */
    reopen_store(f);
    assert_int_equal(kn_store_key_get(f->store, "k1", &back), KN_OK);
    assert_int_equal(back.revoked_at, START);
    assert_int_equal(kn_store_keys(f->store, "other", count_key, &count), KN_OK);
    assert_int_equal(count, 0);
    assert_int_equal(kn_store_keys(f->store, NULL, count_key, &count), KN_OK);
    assert_int_equal(count, 1);
}

/* ---- purge ---- */

static kn_store_op purge_of(int32_t batch, int64_t ended_us)
{
    return (kn_store_op){.kind = KN_STORE_PURGE, .batch = batch, .ended_us = ended_us};
}

static int64_t count_state(const fixture *f, kn_job_state state)
{
    int64_t counts[KN_JOB_STATES];
    assert_int_equal(kn_store_counts(f->store, counts), KN_OK);
    return counts[state];
}

static void test_ended_jobs_are_purged(void **state)
{
    fixture *f = *state;
    kn_job jobs[KN_JOB_STATES], back;
    kn_audit_head before, after;
    for (int i = 0; i < KN_JOB_STATES; i++) put_in_state(f, &jobs[i], (kn_job_state)i);
    kn_store_op op = purge_of(100, 30 * 24 * HOUR);
    atomic_store(&f->now, START + 30 * 24 * HOUR - SECOND);
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    assert_int_equal(count_state(f, KN_JOB_FAILED), 1); /* not yet */
    assert_int_equal(kn_store_audit_head(f->store, &before), KN_OK);

    atomic_store(&f->now, START + 31 * 24 * HOUR);
    assert_int_equal(perform(f->store, &op).count, 3);
    for (int i = 0; i < KN_JOB_STATES; i++) {
        const bool ended = i == KN_JOB_FAILED || i == KN_JOB_CANCELLED || i == KN_JOB_EXPIRED;
        const bool gone = ended || i == KN_JOB_DELETED; /* the tombstone's time is over, too */
        assert_int_equal(kn_store_job_get(f->store, NULL, jobs[i].id, &back), gone ? KN_NOT_FOUND : KN_OK);
        if (!gone) kn_job_release(&back);
    }
    assert_int_equal(kn_store_audit_head(f->store, &after), KN_OK);
    assert_int_equal(after.sequence - before.sequence, 3); /* each says so, and what they were stays */
    assert_int_equal(kn_store_audit_verify(f->store, &before, NULL), KN_OK);
    assert_int_equal(perform(f->store, &op).count, 0);
    reopen_store(f);
    assert_int_equal(kn_store_audit_verify(f->store, &after, NULL), KN_OK);
}

static void test_purge_is_bounded(void **state)
{
    fixture *f = *state;
    kn_job job;
    for (int i = 0; i < 25; i++) put_in_state(f, &job, KN_JOB_FAILED);
    kn_store_op op = purge_of(10, 24 * HOUR);
    atomic_store(&f->now, START + 48 * HOUR);
    assert_int_equal(perform(f->store, &op).count, 10); /* as many as the batch: there are more */
    assert_int_equal(perform(f->store, &op).count, 10);
    assert_int_equal(perform(f->store, &op).count, 5);
    assert_int_equal(count_state(f, KN_JOB_FAILED), 0);
    op = purge_of(10, 1); /* a key may still name it */
    assert_int_equal(perform(f->store, &op).status, KN_INVALID);
    op = purge_of(10, -1);
    refuse(f, &op, "ended_us");
}

/* However the clock jumps, a key never outlives its job, and nothing that is not ended goes. */
static void test_purge_when_the_clock_jumps(void **state)
{
    fixture *f = *state;
    kn_job jobs[20], running;
    char key[16];
    for (int i = 0; i < 20; i++) {
        fill_job(&jobs[i], "acme");
        kn_store_op op = submit_of(&jobs[i]);
        snprintf(key, sizeof key, "key-%d", i);
        op.submit.idempotency_key = key;
        assert_outcome(perform(f->store, &op), KN_STORE_DONE);
        op = finish_of(jobs[i].id, 0, KN_JOB_CANCELLED);
        assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    }
    put_in_state(f, &running, KN_JOB_RUNNING);
    const kn_store_op op = purge_of(7, 24 * HOUR);
    atomic_store(&f->now, START - 1000 * HOUR); /* back: nothing is old */
    assert_int_equal(perform(f->store, &op).count, 0);
    atomic_store(&f->now, START + 100000 * HOUR);
    for (int left = 100; left > 0; left--) {
        const int32_t count = perform(f->store, &op).count;
        sqlite3 *db = open_database(f->directory);
        assert_int_equal(query_number(db, "SELECT count(*) FROM idempotency WHERE job NOT IN (SELECT id FROM jobs)"),
                         0);
        sqlite3_close(db);
        if (count == 0) break;
    }
    assert_int_equal(count_state(f, KN_JOB_CANCELLED), 0);
    assert_int_equal(count_state(f, KN_JOB_RUNNING), 1);
    atomic_store(&f->now, START + HOUR); /* and back again: the store goes on */
    kn_job job;
    submit_job(f->store, &job, "acme");
    assert_true(job.created_at > running.created_at);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_TEST(test_deliveries),
        STORE_TEST(test_endpoints_that_go),
        STORE_TEST(test_secrets_that_end),
        STORE_TEST(test_endpoints_of_a_tenant),
        STORE_TEST(test_keys),
        STORE_TEST(test_ended_jobs_are_purged),
        STORE_TEST(test_purge_is_bounded),
        STORE_TEST(test_purge_when_the_clock_jumps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

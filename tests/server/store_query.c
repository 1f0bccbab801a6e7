/* SPDX-License-Identifier: Apache-2.0
 *
 * Queries: pages, counts, what a start loads, and the order of creation. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/server/store_test.h"

typedef struct id_list {
    char ids[32][KN_JOB_ID_BYTES];
    int count;
} id_list;

static kn_status keep_id(void *context, const kn_job *job)
{
    id_list *list = context;
    assert_true(list->count < 32);
    memcpy(list->ids[list->count++], job->id, KN_JOB_ID_BYTES);
    return KN_OK;
}

static void test_pages(void **state)
{
    fixture *f = *state;
    kn_job jobs[10], other, gone;
    bool more;
    for (int i = 0; i < 10; i++) {
        submit_job(f->store, &jobs[i], "acme");
        submit_job(f->store, i % 2 ? &other : &gone, i % 2 ? "other" : "acme");
        const kn_store_op op = {.kind = KN_STORE_REMOVE, .id = gone.id, .tenant = "acme"};
        if (i % 2 == 0) assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    }
    for (int ascending = 0; ascending < 2; ascending++) {
        id_list list = {.count = 0};
        kn_store_list query = {.tenant = "acme", .limit = 4, .ascending = ascending != 0};
        int pages = 0;
        do {
            assert_int_equal(kn_store_job_list(f->store, &query, keep_id, &list, &more), KN_OK);
            query.after = list.ids[list.count - 1];
            pages++;
        } while (more);
        assert_int_equal(pages, 3);
        assert_int_equal(list.count, 10);
        for (int i = 0; i < 10; i++) assert_string_equal(list.ids[i], jobs[ascending ? i : 9 - i].id);
    }
    id_list list = {.count = 0};
    kn_store_list query = {.limit = 15};
    assert_int_equal(kn_store_job_list(f->store, &query, keep_id, &list, &more), KN_OK); /* the operator's */
    assert_int_equal(list.count, 15);
    assert_false(more);
    query = (kn_store_list){.tenant = "acme", .after = other.id, .limit = 1};
    assert_int_equal(kn_store_job_list(f->store, &query, keep_id, &list, NULL), KN_NOT_FOUND);
    query = (kn_store_list){.limit = KN_STORE_LIST_MAX + 1};
    assert_int_equal(kn_store_job_list(f->store, &query, keep_id, &list, NULL), KN_INVALID);
    query.limit = 0;
    assert_int_equal(kn_store_job_list(f->store, &query, keep_id, &list, NULL), KN_INVALID);
    assert_int_equal(kn_store_job_get(f->store, "other", jobs[0].id, &other), KN_NOT_FOUND);
}

static void test_counts_and_errors(void **state)
{
    fixture *f = *state;
    kn_job job;
    int64_t counts[KN_JOB_STATES];
    id_list list = {.count = 0};
    char last[KN_JOB_ID_BYTES];
    for (kn_job_state s = 0; s < KN_JOB_STATES; s++)
        for (kn_job_state n = 0; n <= s; n++) {
            atomic_fetch_add(&f->now, SECOND);
            put_in_state(f, &job, s);
            if (s == KN_JOB_FAILED) memcpy(last, job.id, sizeof last);
        }
    assert_int_equal(kn_store_counts(f->store, counts), KN_OK);
    for (kn_job_state s = 0; s < KN_JOB_STATES; s++) assert_int_equal(counts[s], (int64_t)s + 1);
    assert_int_equal(kn_store_recent_errors(f->store, 3, keep_id, &list), KN_OK);
    assert_int_equal(list.count, 3);
    assert_string_equal(list.ids[0], last);
    assert_int_equal(kn_store_recent_errors(f->store, 0, keep_id, &list), KN_INVALID);
}

static kn_status stop_walk(void *context, const kn_job *job)
{
    (void)context;
    (void)job;
    return kn_fail(KN_CANCELLED, "enough");
}

static void test_what_is_loaded_at_the_start(void **state)
{
    fixture *f = *state;
    kn_job job;
    char first[KN_JOB_ID_BYTES];
    id_list list = {.count = 0};
    put_in_state(f, &job, KN_JOB_RUNNING);
    memcpy(first, job.id, sizeof first);
    for (kn_job_state s = 0; s < KN_JOB_STATES; s++) put_in_state(f, &job, s);
    reopen_store(f);
    assert_int_equal(kn_store_load_unfinished(f->store, keep_id, &list), KN_OK);
    assert_int_equal(list.count, 3);
    assert_string_equal(list.ids[0], first); /* oldest first */
    assert_int_equal(kn_store_load_unfinished(f->store, stop_walk, NULL), KN_CANCELLED);
    assert_outcome(claim(f->store, first, 1), KN_STORE_DONE);
}

static void test_clock_steps_back(void **state)
{
    fixture *f = *state;
    kn_job a, b, c, back;
    submit_job(f->store, &a, "acme");
    atomic_store(&f->now, START - 1000 * HOUR);
    submit_job(f->store, &b, "acme");
    assert_int_equal(b.created_at, a.created_at + 1);
    reopen_store(f);
    submit_job(f->store, &c, "acme");
    assert_int_equal(c.created_at, b.created_at + 1);
    assert_int_equal(claim(f->store, c.id, 0).at, c.created_at); /* not before it was created */
    const kn_store_op op = publish_of(c.id, 1);
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    back = get(f, c.id);
    assert_true(back.completed_at >= back.created_at);
    kn_job_release(&back);
    assert_int_equal(kn_store_audit_verify(f->store, NULL, NULL), KN_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_TEST(test_pages),
        STORE_TEST(test_counts_and_errors),
        STORE_TEST(test_what_is_loaded_at_the_start),
        STORE_TEST(test_clock_steps_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

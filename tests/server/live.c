/* SPDX-License-Identifier: Apache-2.0
 *
 * Jobs in memory: found by id and key, forgotten only when they may be. */
#include "server/live.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "server/watch.h"

static const char request[] =
    "{\"prompt\":\"a ball\",\"negative_prompt\":\"\",\"width\":64,\"height\":64,\"frames\":9,\"fps_numerator\":16,"
    "\"fps_denominator\":1,\"steps\":4,\"guidance\":5.0,\"seed\":\"1\",\"sampler\":\"unipc\",\"shift\":3.0,\"sigmas\":["
    "]}";

static kn_live *add(kn_live_table *table, int number, kn_job_state state)
{
    kn_live *live = NULL;
    kn_job job = {.state = state, .prompt = kn_strdup("a ball"), .request = kn_strdup(request)};
    snprintf(job.id, sizeof job.id, "video_%032x", (unsigned)number);
    const kn_status st = kn_live_add(table, &job, &live);
    if (st != KN_OK) fail_msg("%s", kn_fail_message());
    assert_null(job.prompt); /* taken */
    return live;
}

static const char *id_of(int number)
{
    static char id[KN_JOB_ID_BYTES];
    snprintf(id, sizeof id, "video_%032x", (unsigned)number);
    return id;
}

static void end(kn_live_table *table, kn_live *live)
{
    live->job.state = KN_JOB_COMPLETED;
    kn_live_ended(table, live);
}

static void jobs_are_found_by_id_and_key(void **state)
{
    (void)state;
    kn_live_table *table = NULL;
    const uint64_t held = kn_mem_read().bytes;
    assert_int_equal(kn_live_create(&table), KN_OK);
    for (int i = 0; i < 3000; i++) add(table, i, i % 3 ? KN_JOB_QUEUED : KN_JOB_FAILED); /* the hash grows */
    assert_int_equal(kn_live_count(table).unfinished, 2000);
    assert_int_equal(kn_live_count(table).finished, 1000);
    for (int i = 0; i < 3000; i++) {
        kn_live *live = kn_live_find(table, id_of(i));
        assert_non_null(live);
        assert_string_equal(live->job.id, id_of(i));
        assert_ptr_equal(kn_live_by_key(table, live->key), i % 3 ? live : NULL);
        assert_int_equal(live->summary.steps, 4);
    }
    assert_null(kn_live_find(table, id_of(3000)));
    assert_null(kn_live_by_key(table, 0));
    assert_null(kn_live_by_key(table, UINT64_MAX));
    kn_live_destroy(&table);
    assert_int_equal(kn_mem_read().bytes, held);
}

static void a_key_never_means_another_job(void **state)
{
    (void)state;
    kn_live_table *table = NULL;
    assert_int_equal(kn_live_create(&table), KN_OK);
    kn_live *live = add(table, 1, KN_JOB_RUNNING);
    const uint64_t key = live->key;
    end(table, live);
    assert_int_equal(live->key, 0);
    assert_null(kn_live_by_key(table, key));
    assert_int_not_equal(add(table, 2, KN_JOB_QUEUED)->key, key); /* the same slot */
    assert_int_equal(kn_live_revived(table, live), KN_OK);
    assert_int_equal(live->job.state, KN_JOB_QUEUED);
    assert_int_equal(live->phase, KN_LIVE_WAITING);
    assert_ptr_equal(kn_live_by_key(table, live->key), live);
    assert_int_equal(kn_live_count(table).unfinished, 2);
    kn_live_destroy(&table);
}

static kn_status ignore(void *context, const kn_watch_event *event)
{
    (void)context, (void)event;
    return KN_OK;
}

static void old_ends_are_forgotten(void **state)
{
    (void)state;
    kn_live_table *table = NULL;
    assert_int_equal(kn_live_create(&table), KN_OK);
    for (int i = 0; i < 10; i++) add(table, i, i % 2 ? KN_JOB_FAILED : KN_JOB_COMPLETED)->job.completed_at = 100 + i;
    add(table, 10, KN_JOB_QUEUED);
    kn_live_forget_ended(table, 105);
    assert_int_equal(kn_live_count(table).finished, 7);
    assert_null(kn_live_find(table, id_of(5)));
    assert_non_null(kn_live_find(table, id_of(4))); /* has a result: it expires first */
    assert_non_null(kn_live_find(table, id_of(7)));
    assert_non_null(kn_live_find(table, id_of(10)));
    kn_live_destroy(&table);
}

static void only_what_nobody_needs_is_forgotten(void **state)
{
    (void)state;
    kn_live_table *table = NULL;
    kn_watcher *watcher;
    bool replayed;
    assert_int_equal(kn_live_create(&table), KN_OK);
    kn_live *pinned = add(table, 1, KN_JOB_FAILED), *watched = add(table, 2, KN_JOB_FAILED);
    kn_live *running = add(table, 3, KN_JOB_RUNNING), *idle = add(table, 4, KN_JOB_FAILED);
    pinned->pins = 1;
    assert_int_equal(kn_watch_create(&watched->watch, 1), KN_OK);
    assert_int_equal(kn_watch_add(watched->watch, &watcher, ignore, NULL, NULL, &replayed), KN_OK);
    kn_live *const kept[] = {pinned, watched, running};
    for (size_t i = 0; i < 3; i++) {
        kn_live *live = kept[i];
        kn_live_forget(table, &live);
        assert_non_null(live);
    }
    kn_live_forget(table, &idle);
    assert_null(idle);
    assert_null(kn_live_find(table, id_of(4)));
    kn_live_destroy(&table);
}

static void the_longest_unused_go_first(void **state)
{
    (void)state;
    kn_live_table *table = NULL;
    assert_int_equal(kn_live_create(&table), KN_OK);
    for (int i = 0; i < KN_LIVE_FINISHED_MAX + 2; i++) add(table, i, KN_JOB_COMPLETED);
    assert_non_null(kn_live_find(table, id_of(0))); /* used just now */
    kn_live_trim(table);
    assert_int_equal(kn_live_count(table).finished, KN_LIVE_FINISHED_MAX);
    assert_non_null(kn_live_find(table, id_of(0)));
    assert_null(kn_live_find(table, id_of(1)));
    assert_null(kn_live_find(table, id_of(2)));
    assert_non_null(kn_live_find(table, id_of(3)));
    kn_live_destroy(&table);
}

static void the_limit_can_be_changed(void **state)
{
    (void)state;
    kn_live_table *table = NULL;
    assert_int_equal(kn_live_create(&table), KN_OK);
    for (int i = 0; i < 5; i++) add(table, i, KN_JOB_COMPLETED);
    kn_live_set_finished_max(table, 5);
    kn_live_trim(table);
    assert_int_equal(kn_live_count(table).finished, 5);
    kn_live_set_finished_max(table, 4);
    kn_live_trim(table);
    assert_int_equal(kn_live_count(table).finished, 4);
    assert_null(kn_live_find(table, id_of(0)));
    kn_live_destroy(&table);
}

static void a_finished_jobs_body_is_kept(void **state)
{
    (void)state;
    kn_live_table *table = NULL;
    const uint64_t held = kn_mem_read().bytes;
    char *body = kn_alloc(KN_LIVE_BODY_BYTES + 1);
    assert_non_null(body);
    memset(body, 'x', KN_LIVE_BODY_BYTES + 1);
    assert_int_equal(kn_live_create(&table), KN_OK);
    kn_live *waiting = add(table, 0, KN_JOB_QUEUED), *done = add(table, 1, KN_JOB_FAILED);
    const size_t before = kn_live_count(table).finished_bytes;
    kn_live_keep_body(table, waiting, body, 3); /* it still changes */
    assert_null(waiting->body);
    kn_live_keep_body(table, done, body, KN_LIVE_BODY_BYTES + 1); /* too long */
    assert_null(done->body);
    kn_live_keep_body(table, done, body, KN_LIVE_BODY_BYTES);
    assert_int_equal(done->body_bytes, KN_LIVE_BODY_BYTES);
    assert_memory_equal(done->body, body, KN_LIVE_BODY_BYTES);
    assert_int_equal(kn_live_count(table).finished_bytes, before + KN_LIVE_BODY_BYTES + 1);
    kn_live_keep_body(table, done, "another", 7); /* the first one stays */
    assert_int_equal(done->body_bytes, KN_LIVE_BODY_BYTES);
    assert_int_equal(kn_live_revived(table, done), KN_OK);
    assert_null(done->body);
    assert_int_equal(kn_live_count(table).finished_bytes, 0);
    end(table, done);
    assert_int_equal(kn_live_count(table).finished_bytes, before);
    kn_live_destroy(&table);
    kn_free(body);
    assert_int_equal(kn_mem_read().bytes, held);
}

static void count(void *context, kn_live *live)
{
    assert_false(kn_job_state_final(live->job.state));
    ++*(int *)context;
}

static void unfinished_ones_are_walked(void **state)
{
    (void)state;
    kn_live_table *table = NULL;
    int seen = 0;
    assert_int_equal(kn_live_create(&table), KN_OK);
    for (int i = 0; i < 10; i++) add(table, i, i < 4 ? KN_JOB_QUEUED : KN_JOB_CANCELLED);
    kn_live_each_unfinished(table, count, &seen);
    assert_int_equal(seen, 4);
    kn_live_destroy(&table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(jobs_are_found_by_id_and_key), cmocka_unit_test(a_key_never_means_another_job),
        cmocka_unit_test(old_ends_are_forgotten),       cmocka_unit_test(only_what_nobody_needs_is_forgotten),
        cmocka_unit_test(the_longest_unused_go_first),  cmocka_unit_test(the_limit_can_be_changed),
        cmocka_unit_test(a_finished_jobs_body_is_kept), cmocka_unit_test(unfinished_ones_are_walked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

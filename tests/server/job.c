/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "server/job.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/mem.h"

static void ids_are_valid_and_differ(void **state)
{
    (void)state;
    char a[KN_JOB_ID_BYTES], b[KN_JOB_ID_BYTES];
    assert_int_equal(kn_job_new_id(a), KN_OK);
    assert_int_equal(kn_job_new_id(b), KN_OK);
    assert_true(kn_job_id_valid(a));
    assert_string_not_equal(a, b);
    static const char *const bad[] = {"",
                                      "video_",
                                      "video_0123456789abcdef0123456789abcde",
                                      "video_0123456789abcdef0123456789abcdef0",
                                      "video_0123456789ABCDEF0123456789abcdef",
                                      "video_../../../../../../../../etc/pass",
                                      "image_0123456789abcdef0123456789abcdef"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_false(kn_job_id_valid(bad[i]));
}

/* So that an index over them grows at its end. */
static void ids_begin_with_the_time(void **state)
{
    (void)state;
    char before[KN_JOB_ID_BYTES], after[KN_JOB_ID_BYTES];
    const struct timespec pause = {.tv_nsec = 5000000};
    assert_int_equal(kn_job_new_id(before), KN_OK);
    nanosleep(&pause, NULL);
    assert_int_equal(kn_job_new_id(after), KN_OK);
    char digits[13] = {0};
    memcpy(digits, after + 6, 12);
    const long long ms = strtoll(digits, NULL, 16), now = (long long)time(NULL) * 1000;
    assert_in_range(ms, now - 60000, now + 60000);
    assert_true(strcmp(before, after) < 0 || ms + 1000 < now); /* or the clock was set back meanwhile */
    assert_int_not_equal(memcmp(before + 18, after + 18, 20), 0);
}

static void a_final_state_never_runs_again_by_itself(void **state)
{
    (void)state;
    assert_true(kn_job_transition_allowed(KN_JOB_QUEUED, KN_JOB_RUNNING));
    assert_true(kn_job_transition_allowed(KN_JOB_RUNNING, KN_JOB_RUNNING));
    assert_true(kn_job_transition_allowed(KN_JOB_RUNNING, KN_JOB_COMPLETED));
    assert_false(kn_job_transition_allowed(KN_JOB_QUEUED, KN_JOB_COMPLETED));
    for (int from = KN_JOB_COMPLETED; from < KN_JOB_STATES; from++) {
        assert_true(kn_job_state_final((kn_job_state)from));
        assert_false(kn_job_transition_allowed((kn_job_state)from, KN_JOB_RUNNING));
        assert_false(kn_job_transition_allowed((kn_job_state)from, KN_JOB_COMPLETED));
        assert_int_equal(kn_job_transition_allowed((kn_job_state)from, KN_JOB_DELETED), from != KN_JOB_DELETED);
    }
    assert_false(kn_job_state_final(KN_JOB_QUEUED));
    assert_false(kn_job_state_final(KN_JOB_RUNNING));
    assert_false(kn_job_transition_allowed(KN_JOB_STATES, KN_JOB_QUEUED));
    assert_string_equal(kn_job_state_name(KN_JOB_CANCELLED), "cancelled");
    assert_string_equal(kn_job_state_name(KN_JOB_STATES), "unknown");
}

static void a_copy_owns_its_strings(void **state)
{
    (void)state;
    kn_job job = {.prompt = kn_strdup("a ball"), .request = kn_strdup("{}"), .epoch = 3};
    const uint64_t held = kn_mem_read().bytes;
    for (uint64_t n = 1; n <= 2; n++) { /* either string's memory may be refused */
        kn_job copy;
        kn_mem_fail_at(n);
        assert_int_equal(kn_job_copy(&copy, &job), KN_NOMEM);
        assert_int_equal(kn_mem_read().bytes, held);
    }
    kn_mem_fail_at(0);
    kn_job copy;
    assert_int_equal(kn_job_copy(&copy, &job), KN_OK);
    assert_ptr_not_equal(copy.prompt, job.prompt);
    assert_string_equal(copy.prompt, "a ball");
    assert_null(copy.blob);
    assert_int_equal(copy.epoch, 3);
    kn_job_release(&copy);
    assert_null(copy.prompt);
    kn_job_release(&job);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_are_valid_and_differ),
        cmocka_unit_test(ids_begin_with_the_time),
        cmocka_unit_test(a_final_state_never_runs_again_by_itself),
        cmocka_unit_test(a_copy_owns_its_strings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Promises: what is refused and why, what is accepted and then kept, and how good the times are. */
#include "tests/scheduler/harness.h"

#include <math.h>

#include "scheduler/trace.h"

static kn_admission ask(const harness *h, const kn_job_shape *shape, kn_job_terms terms)
{
    kn_admission answer;
    terms.submitted_ns = h->now_ns;
    terms.tenant_weight = 1;
    assert_int_equal(kn_scheduler_admission(h->s, shape, &terms, h->now_ns, &answer), KN_OK);
    return answer;
}

static void assert_reason(const kn_admission *answer, kn_verdict verdict, const char *text)
{
    assert_string_equal(kn_verdict_name(answer->verdict), kn_verdict_name(verdict));
    if (!strstr(answer->reason, text)) fail_msg("\"%s\" is not in \"%s\"", text, answer->reason);
}

static void refuses_what_cannot_run(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){.jobs = 3});
    kn_job_shape shape = plain_shape(4);
    kn_admission answer = ask(&h, &shape, (kn_job_terms){0});
    assert_reason(&answer, KN_VERDICT_NO_DEVICE, "no device");

    harness_up(&h, 0, 150 * MIB, 10);
    harness_up(&h, 1, 200 * MIB, 10);
    shape.decoder_bytes = 90 * MIB; /* with model and state exactly the larger device */
    answer = ask(&h, &shape, (kn_job_terms){0});
    assert_int_equal(answer.verdict, KN_VERDICT_FITS);
    assert_int_equal(answer.reason[0], '\0');
    shape.decoder_bytes++;
    answer = ask(&h, &shape, (kn_job_terms){0});
    assert_reason(&answer, KN_VERDICT_TOO_LARGE, "the largest has 0.21 GB");
    assert_int_equal(answer.retry_after_ns, 0);

    shape = plain_shape(4);
    for (uint64_t key = 0; key < 3; key++) assert_int_equal(harness_admit(&h, key, &shape, (kn_job_terms){0}), KN_OK);
    answer = ask(&h, &shape, (kn_job_terms){0});
    assert_reason(&answer, KN_VERDICT_QUEUE_FULL, "3 jobs are queued");
    assert_true(answer.retry_after_ns >= SECOND);
    kn_scheduler_destroy(&h.s);
}

static void refuses_impossible_deadlines(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){0});
    harness_up(&h, 0, 4000 * MIB, 1);
    const kn_job_shape shape = heavy_shape(10, 100); /* a second */
    kn_admission answer = ask(&h, &shape, (kn_job_terms){.deadline_ns = h.now_ns + 900 * MS});
    assert_reason(&answer, KN_VERDICT_DEADLINE, "on an idle device");
    assert_int_equal(answer.retry_after_ns, 0); /* never */
    answer = ask(&h, &shape, (kn_job_terms){.deadline_ns = h.now_ns + 1200 * MS});
    assert_int_equal(answer.verdict, KN_VERDICT_FITS);
    assert_in_range(answer.device_ns, 1000 * MS, 1050 * MS);
    assert_in_range(answer.completion_ns, h.now_ns + 1000 * MS, h.now_ns + 1200 * MS);
    kn_scheduler_destroy(&h.s);
}

/* A promised job stands in the way: the same request is refused now, and fits when asked again as told. */
static void says_when_to_ask_again(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){0});
    harness_up(&h, 0, 4000 * MIB, 1);
    const kn_job_shape shape = heavy_shape(10, 100);
    const kn_job_terms first = {.deadline_ns = h.now_ns + 1200 * MS, .promised = true};
    assert_int_equal(harness_admit(&h, 1, &shape, first), KN_OK);
    harness_decide(&h);
    kn_admission answer = ask(&h, &shape, (kn_job_terms){.deadline_ns = h.now_ns + 1300 * MS});
    assert_reason(&answer, KN_VERDICT_DEADLINE, "with what was promised before");
    assert_true(answer.completion_ns > h.now_ns + 1900 * MS);
    assert_in_range(answer.retry_after_ns, 700 * MS, 1100 * MS);
    harness_run(&h, h.now_ns + answer.retry_after_ns);
    answer = ask(&h, &shape, (kn_job_terms){.deadline_ns = h.now_ns + 1300 * MS});
    assert_int_equal(answer.verdict, KN_VERDICT_FITS);
    kn_scheduler_destroy(&h.s);
}

/* Random requests with deadlines against three devices: every one that was promised is met, and some were refused. */
static void keeps_its_promises(void **state)
{
    (void)state;
    enum { COUNT = 600 };
    static harness h;
    static int64_t deadlines[COUNT];
    kn_random random = {5};
    int32_t promised = 0, refused = 0;
    harness_open(&h, &(kn_scheduler_params){0});
    for (int32_t i = 0; i < 3; i++) harness_up(&h, i, 4000 * MIB, 1);
    for (uint64_t i = 0; i < COUNT; i++) {
        const int32_t steps = 1 + kn_random_below(&random, 30);
        const kn_job_shape shape = heavy_shape(steps, 100);
        kn_job_terms terms = {.priority = (kn_priority)kn_random_below(&random, KN_PRIORITIES), .promised = true};
        terms.deadline_ns = h.now_ns + (int64_t)((1.1 + 3 * kn_random_unit(&random)) * steps * 100 * (double)MS);
        if (kn_random_below(&random, 4) == 0) { /* others have no deadline */
            terms.deadline_ns = KN_SCHEDULER_NO_DEADLINE;
            terms.promised = false;
        } else if (ask(&h, &shape, terms).verdict != KN_VERDICT_FITS) {
            refused++;
            continue;
        }
        assert_int_equal(harness_admit(&h, i, &shape, terms), KN_OK);
        deadlines[i] = terms.deadline_ns;
        promised += terms.promised;
        harness_run(&h, h.now_ns + (int64_t)(kn_random_exponential(&random, 0.3) * (double)SECOND));
    }
    harness_run(&h, INT64_MAX);
    for (uint64_t i = 0; i < COUNT; i++)
        if (deadlines[i] > 0 && h.done_ns[i] > deadlines[i]) fail_msg("job %d is late", (int)i);
    if (promised < COUNT / 4 || refused < COUNT / 20) fail_msg("%d promised, %d refused", promised, refused);
    kn_scheduler_destroy(&h.s);
}

/* Jobs of several tenants and classes, some with deadlines; the estimate at submission against what happened. */
static void estimates_completion(void **state)
{
    (void)state;
    enum { COUNT = 120 };
    static harness h;
    static kn_estimate estimates[COUNT];
    kn_random random = {9};
    double error = 0, total = 0;
    harness_open(&h, &(kn_scheduler_params){.fair_quantum_ns = SECOND});
    for (int32_t i = 0; i < 2; i++) harness_up(&h, i, 4000 * MIB, 1);
    for (uint64_t i = 0; i < COUNT; i++) {
        const kn_job_shape shape = heavy_shape(5 + kn_random_below(&random, 20), 100);
        const int32_t tenant = kn_random_below(&random, 4);
        assert_int_equal(
            harness_admit(&h, i, &shape,
                          (kn_job_terms){.priority = KN_PRIORITY_DEFAULT, .tenant = tenant, .tenant_weight = 1}),
            KN_OK);
    }
    harness_decide(&h);
    for (uint64_t i = 0; i < COUNT; i++) {
        assert_int_equal(kn_scheduler_estimate(h.s, i, h.now_ns, &estimates[i]), KN_OK);
        assert_true(estimates[i].start_ns <= estimates[i].completion_ns);
        assert_false(estimates[i].late);
    }
    harness_run(&h, INT64_MAX);
    for (uint64_t i = 0; i < COUNT; i++) {
        error += fabs((double)(estimates[i].completion_ns - h.done_ns[i]));
        total += (double)h.done_ns[i];
    }
    if (error > 0.1 * total) fail_msg("estimates are off by %.0f %%", 100 * error / total);
    kn_scheduler_destroy(&h.s);
}

/* Position counts down to 0, never up, while nobody else comes. */
static void counts_down(void **state)
{
    (void)state;
    harness h;
    kn_estimate estimate;
    harness_open(&h, &(kn_scheduler_params){0});
    harness_up(&h, 0, 4000 * MIB, 1);
    const kn_job_shape shape = heavy_shape(3, 100);
    for (uint64_t i = 0; i < 10; i++) assert_int_equal(harness_admit(&h, i, &shape, (kn_job_terms){0}), KN_OK);
    int32_t last = 10;
    while (h.done_ns[9] == 0) {
        harness_decide(&h);
        assert_int_equal(kn_scheduler_estimate(h.s, 9, h.now_ns, &estimate), KN_OK);
        assert_true(estimate.position <= last);
        assert_true(estimate.remaining_ns > 0);
        last = estimate.position;
        assert_true(harness_end(&h));
    }
    assert_int_equal(last, 0);
    assert_int_equal(kn_scheduler_estimate(h.s, 9, h.now_ns, &estimate), KN_NOT_FOUND);
    kn_scheduler_destroy(&h.s);
}

static void says_that_it_will_be_late(void **state)
{
    (void)state;
    harness h;
    kn_estimate estimate;
    harness_open(&h, &(kn_scheduler_params){0});
    harness_up(&h, 0, 4000 * MIB, 1);
    const kn_job_shape shape = heavy_shape(10, 100);
    assert_int_equal(harness_admit(&h, 1, &shape, (kn_job_terms){.deadline_ns = h.now_ns + 500 * MS}), KN_OK);
    assert_int_equal(harness_admit(&h, 2, &shape, (kn_job_terms){.deadline_ns = h.now_ns + 1500 * MS}), KN_OK);
    assert_int_equal(kn_scheduler_estimate(h.s, 1, h.now_ns, &estimate), KN_OK);
    assert_true(estimate.late);
    assert_int_equal(kn_scheduler_estimate(h.s, 2, h.now_ns, &estimate), KN_OK);
    assert_false(estimate.late);
    assert_int_equal(estimate.position, 1);
    kn_scheduler_stats stats;
    kn_scheduler_read_stats(h.s, &stats);
    assert_int_equal(stats.late, 1);
    assert_int_equal(stats.planned, 1);
    kn_scheduler_destroy(&h.s);
}

/* A job's times are those of the device it is on, and a slow device counts for little in what waits. */
static void unlike_devices(void **state)
{
    (void)state;
    harness h;
    kn_estimate fast, slow, waiting;
    harness_open(&h, &(kn_scheduler_params){0});
    harness_up(&h, 0, 151 * MIB, 10);   /* room for one job */
    harness_up(&h, 1, 151 * MIB, 1000); /* a hundredth of the other's speed */
    const kn_job_shape shape = plain_shape(20);
    for (uint64_t key = 1; key <= 2; key++) { /* one after the other, or they would be one pack */
        assert_int_equal(harness_admit(&h, key, &shape, (kn_job_terms){0}), KN_OK);
        assert_int_equal(harness_decide(&h), 1);
    }
    assert_int_equal(kn_scheduler_estimate(h.s, h.slices[0].jobs[0], h.now_ns, &fast), KN_OK);
    assert_int_equal(kn_scheduler_estimate(h.s, h.slices[1].jobs[0], h.now_ns, &slow), KN_OK);
    assert_in_range(fast.total_ns, 200 * MS, 300 * MS);
    assert_in_range(slow.total_ns, 20 * SECOND, 30 * SECOND);
    assert_true(slow.completion_ns > h.now_ns + 20 * SECOND);
    assert_true(fast.completion_ns < h.now_ns + SECOND);
    assert_true(slow.remaining_ns <= slow.total_ns + 1000 * MS && slow.remaining_ns > 15 * SECOND);
    const uint64_t slow_job = h.slices[1].jobs[0];
    harness_run(&h, h.now_ns + 5 * SECOND); /* its text and four steps or so */
    assert_int_equal(kn_scheduler_estimate(h.s, slow_job, h.now_ns, &slow), KN_OK);
    const double done = 1 - (double)slow.remaining_ns / (double)slow.total_ns;
    assert_true(done > 0.1 && done < 0.4);

    for (uint64_t key = 3; key <= 12; key++) assert_int_equal(harness_admit(&h, key, &shape, (kn_job_terms){0}), KN_OK);
    harness_decide(&h);
    assert_int_equal(kn_scheduler_estimate(h.s, 12, h.now_ns, &waiting), KN_OK);
    /* What is before it is served by the fast device almost alone: not in half of the time. */
    const int64_t before = waiting.start_ns - h.now_ns;
    assert_in_range(before, fast.total_ns * 8, fast.total_ns * 12);
    kn_scheduler_destroy(&h.s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_what_cannot_run),   cmocka_unit_test(refuses_impossible_deadlines),
        cmocka_unit_test(says_when_to_ask_again),    cmocka_unit_test(keeps_its_promises),
        cmocka_unit_test(estimates_completion),      cmocka_unit_test(counts_down),
        cmocka_unit_test(says_that_it_will_be_late), cmocka_unit_test(unlike_devices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

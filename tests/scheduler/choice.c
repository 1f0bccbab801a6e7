/* SPDX-License-Identifier: Apache-2.0
 *
 * Who comes first: deadlines, hopeless deadlines, classes, tenants, age. */
#include "tests/scheduler/harness.h"

static kn_job_terms until(const harness *h, int64_t ms)
{
    return (kn_job_terms){.priority = KN_PRIORITY_DEFAULT, .deadline_ns = h->now_ns + ms * MS};
}

static void open_one(harness *h, const kn_scheduler_params *params)
{
    harness_open(h, params);
    harness_up(h, 0, 4000 * MIB, 1);
}

/* `steps` steps of 100 ms; text, decode and mux take a few milliseconds more. */
static void admit(harness *h, uint64_t key, int32_t steps, kn_job_terms terms)
{
    const kn_job_shape shape = heavy_shape(steps, 100);
    assert_int_equal(harness_admit(h, key, &shape, terms), KN_OK);
}

static bool on_time(const harness *h, uint64_t key, const kn_job_terms *terms)
{
    return h->done_ns[key] > 0 && h->done_ns[key] <= terms->deadline_ns;
}

static void meets_deadlines_in_their_order(void **state)
{
    (void)state;
    harness h;
    kn_job_terms terms[3];
    open_one(&h, &(kn_scheduler_params){0});
    static const int64_t ms[3] = {3500, 1200, 2300};
    for (uint64_t i = 0; i < 3; i++) {
        terms[i] = until(&h, ms[i]);
        admit(&h, i, 10, terms[i]);
    }
    harness_run(&h, INT64_MAX);
    for (uint64_t i = 0; i < 3; i++) assert_true(on_time(&h, i, &terms[i]));
    kn_scheduler_destroy(&h.s);
}

/* A tight deadline comes while a loose one is served: it gets the next slice, and both are met. */
static void preempts_for_a_deadline(void **state)
{
    (void)state;
    harness h;
    open_one(&h, &(kn_scheduler_params){0});
    const kn_job_terms loose = until(&h, 10000);
    admit(&h, 1, 30, loose);
    harness_run(&h, 1000 * MS);
    const kn_job_terms tight = until(&h, 1300);
    admit(&h, 2, 10, tight);
    assert_true(harness_end(&h));
    harness_decide(&h);
    assert_true(harness_runs(&h, 0, 2));
    harness_run(&h, INT64_MAX);
    assert_true(on_time(&h, 1, &loose) && on_time(&h, 2, &tight));
    kn_scheduler_destroy(&h.s);
}

/* The newcomer could only be met by breaking a promise of equal worth: the first stays. */
static void breaks_no_deadline_for_another(void **state)
{
    (void)state;
    harness h;
    open_one(&h, &(kn_scheduler_params){0});
    const kn_job_terms first = until(&h, 1200);
    admit(&h, 1, 10, first);
    harness_run(&h, 100 * MS);
    const kn_job_terms second = until(&h, 1100);
    admit(&h, 2, 10, second);
    harness_run(&h, INT64_MAX);
    assert_true(on_time(&h, 1, &first));
    assert_false(on_time(&h, 2, &second));
    assert_true(h.done_ns[2] > 0); /* late, but not lost */
    kn_scheduler_stats stats;
    kn_scheduler_read_stats(h.s, &stats);
    assert_int_equal(stats.demotions, 1);
    kn_scheduler_destroy(&h.s);
}

/* Runs a late large job and five small ones; how many small ones are on time? */
static int32_t small_on_time(kn_policy_kind policy)
{
    harness h;
    kn_job_terms small[5];
    int32_t count = 0;
    open_one(&h, &(kn_scheduler_params){.policy = policy, .pack = 1});
    admit(&h, 10, 30, until(&h, 2000)); /* hopeless from the start, and the earliest deadline */
    for (uint64_t i = 0; i < 5; i++) {
        small[i] = until(&h, 2100 + (int64_t)i);
        admit(&h, i, 4, small[i]);
    }
    harness_run(&h, INT64_MAX);
    for (uint64_t i = 0; i < 5; i++) count += on_time(&h, i, &small[i]);
    assert_true(h.done_ns[10] > 0);
    kn_scheduler_destroy(&h.s);
    return count;
}

/* This is how earliest-deadline-first loses. */
static void is_not_dragged_down_by_a_hopeless_job(void **state)
{
    (void)state;
    assert_int_equal(small_on_time(KN_POLICY_KINORA), 5);
    assert_int_equal(small_on_time(KN_POLICY_EDF), 0);
    assert_int_equal(small_on_time(KN_POLICY_EDF_STEP), 0);
    assert_int_equal(small_on_time(KN_POLICY_FIFO), 0);
}

/* One large and five small jobs, of which either the large or all the small ones can be met. */
static void gives_up_the_heaviest(void **state)
{
    (void)state;
    for (int32_t promised = 0; promised < 2; promised++) {
        harness h;
        open_one(&h, &(kn_scheduler_params){0});
        kn_job_terms large = until(&h, 2200), small[5];
        large.promised = promised;
        admit(&h, 10, 20, large);
        harness_run(&h, 100 * MS);
        for (uint64_t i = 0; i < 5; i++) {
            small[i] = until(&h, 2150);
            admit(&h, i, 4, small[i]);
        }
        harness_run(&h, INT64_MAX);
        assert_int_equal(on_time(&h, 10, &large), promised);
        int32_t count = 0;
        for (uint64_t i = 0; i < 5; i++) count += on_time(&h, i, &small[i]);
        assert_true(promised ? count == 0 : count >= 4);
        kn_scheduler_destroy(&h.s);
    }
}

static void serves_classes_in_order(void **state)
{
    (void)state;
    harness h;
    open_one(&h, &(kn_scheduler_params){0});
    for (uint64_t i = 0; i < 6; i++) admit(&h, i, 3, (kn_job_terms){.priority = (kn_priority)(i % 3)});
    harness_run(&h, INT64_MAX);
    for (uint64_t i = 0; i < 6; i += 3) /* flex, default, urgent */
        for (uint64_t j = 0; j < 6; j += 3)
            assert_true(h.done_ns[i + 2] < h.done_ns[j + 1] && h.done_ns[j + 1] < h.done_ns[i]);
    kn_scheduler_destroy(&h.s);
}

/* An urgent job without a deadline comes before a distant deadline of a lower class, which is still met. */
static void spends_slack_on_higher_classes(void **state)
{
    (void)state;
    harness h;
    open_one(&h, &(kn_scheduler_params){0});
    const kn_job_terms distant = until(&h, 20000);
    admit(&h, 1, 20, distant);
    harness_run(&h, 300 * MS);
    admit(&h, 2, 20, (kn_job_terms){.priority = KN_PRIORITY_URGENT});
    harness_run(&h, INT64_MAX);
    assert_true(h.done_ns[2] < h.done_ns[1]);
    assert_true(on_time(&h, 1, &distant));
    kn_scheduler_destroy(&h.s);
}

/* Two tenants with more work than there is time for: service follows weight. */
static void shares_by_weight(void **state)
{
    (void)state;
    static harness h;
    open_one(&h, &(kn_scheduler_params){.fair_quantum_ns = SECOND});
    for (uint64_t i = 0; i < 400; i++)
        admit(&h, i, 5,
              (kn_job_terms){.priority = KN_PRIORITY_DEFAULT,
                             .tenant = (int32_t)(i / 200), /* all of the first tenant's come first */
                             .tenant_weight = i < 200 ? 1 : 3});
    harness_run(&h, 100 * SECOND);
    const double first = (double)kn_scheduler_tenant_service(h.s, 0);
    const double second = (double)kn_scheduler_tenant_service(h.s, 1);
    if (second < 2.7 * first || second > 3.3 * first) fail_msg("service %g s and %g s", first * 1e-9, second * 1e-9);
    kn_scheduler_destroy(&h.s);
}

/* One job against another tenant's hundred that were there before, or against one that takes an hour. */
static void is_not_shut_out_by_a_flood(void **state)
{
    (void)state;
    static harness h;
    open_one(&h, &(kn_scheduler_params){.fair_quantum_ns = SECOND});
    for (uint64_t i = 0; i < 100; i++) admit(&h, i, 10, (kn_job_terms){.priority = KN_PRIORITY_DEFAULT, .tenant = 0});
    harness_run(&h, 20 * SECOND);
    const int64_t came = h.now_ns;
    admit(&h, 100, 10, (kn_job_terms){.priority = KN_PRIORITY_DEFAULT, .tenant = 1});
    while (h.done_ns[100] == 0) {
        harness_decide(&h);
        assert_true(harness_end(&h));
    }
    assert_true(h.now_ns - came < 5 * SECOND);
    kn_scheduler_destroy(&h.s);

    open_one(&h, &(kn_scheduler_params){.fair_quantum_ns = SECOND});
    admit(&h, 1, 10000, (kn_job_terms){.priority = KN_PRIORITY_DEFAULT, .tenant = 0});
    harness_run(&h, 20 * SECOND);
    const int64_t then = h.now_ns;
    admit(&h, 2, 20, (kn_job_terms){.priority = KN_PRIORITY_DEFAULT, .tenant = 1});
    while (h.done_ns[2] == 0) {
        harness_decide(&h);
        assert_true(harness_end(&h));
    }
    assert_true(h.now_ns - then < 6 * SECOND); /* two seconds of work, half of the device, one quantum */
    kn_scheduler_destroy(&h.s);
}

/* A tenant that was away has no claim on the past. */
static void grants_no_credit_for_absence(void **state)
{
    (void)state;
    static harness h;
    open_one(&h, &(kn_scheduler_params){.fair_quantum_ns = SECOND});
    for (uint64_t i = 0; i < 300; i++) admit(&h, i, 5, (kn_job_terms){.priority = KN_PRIORITY_DEFAULT, .tenant = 0});
    harness_run(&h, 60 * SECOND);
    const int64_t before = kn_scheduler_tenant_service(h.s, 0), came = h.now_ns;
    for (uint64_t i = 300; i < 600; i++) admit(&h, i, 5, (kn_job_terms){.priority = KN_PRIORITY_DEFAULT, .tenant = 1});
    harness_run(&h, came + 40 * SECOND);
    const double share = (double)(kn_scheduler_tenant_service(h.s, 0) - before) / (double)(h.now_ns - came);
    if (share < 0.4 || share > 0.6) fail_msg("the first tenant has %.2f of the device", share);
    kn_scheduler_destroy(&h.s);
}

/* Urgent work without end; when is the flex job done? 0: never. */
static int64_t flex_done(int64_t ageing_ns)
{
    static harness h;
    open_one(&h, &(kn_scheduler_params){.ageing_ns = ageing_ns});
    admit(&h, 0, 10, (kn_job_terms){.priority = KN_PRIORITY_FLEX});
    for (uint64_t i = 1; i < 400; i++) admit(&h, i, 10, (kn_job_terms){.priority = KN_PRIORITY_URGENT, .tenant = 1});
    while (h.done_ns[0] == 0 && h.done < 390) {
        harness_decide(&h);
        assert_true(harness_end(&h));
    }
    const int64_t done = h.done_ns[0];
    kn_scheduler_destroy(&h.s);
    return done;
}

/* The bound of the header: ageing_ns, then one part in KN_SCHEDULER_AGED_SHARE of the device for the job's second. */
static void lets_nothing_starve(void **state)
{
    (void)state;
    const int64_t done = flex_done(30 * SECOND);
    assert_true(done > 30 * SECOND);
    assert_true(done < 30 * SECOND + KN_SCHEDULER_AGED_SHARE * 2 * SECOND);
    assert_int_equal(flex_done(KN_SCHEDULER_TIME_MAX / 2), 0);
}

/* Deadlines without end do not starve the others either. */
static void ages_against_deadlines(void **state)
{
    (void)state;
    static harness h;
    open_one(&h, &(kn_scheduler_params){.ageing_ns = 20 * SECOND});
    admit(&h, 0, 10, (kn_job_terms){.priority = KN_PRIORITY_FLEX});
    for (uint64_t i = 1; h.done_ns[0] == 0 && i < 400; i++) {
        admit(&h, i, 10, until(&h, 1500));
        harness_run(&h, h.now_ns + SECOND);
    }
    assert_true(h.done_ns[0] > 0 && h.done_ns[0] < 60 * SECOND);
    kn_scheduler_destroy(&h.s);
}

/* A second device takes over planned work, and a job that is paused on the first. */
static void spreads_to_idle_devices(void **state)
{
    (void)state;
    harness h;
    open_one(&h, &(kn_scheduler_params){0});
    for (uint64_t i = 0; i < 3; i++) admit(&h, i, 20, until(&h, 7000));
    harness_run(&h, 100 * MS);
    harness_up(&h, 1, 4000 * MIB, 1);
    assert_int_equal(harness_decide(&h), 1);
    assert_int_not_equal(h.ends_ns[1], 0);
    harness_run(&h, INT64_MAX);
    assert_true(h.now_ns < 4500 * MS); /* six seconds of work */
    kn_scheduler_destroy(&h.s);

    open_one(&h, &(kn_scheduler_params){0});
    admit(&h, 1, 100, (kn_job_terms){.priority = KN_PRIORITY_FLEX});
    harness_run(&h, SECOND);
    admit(&h, 2, 100, (kn_job_terms){.priority = KN_PRIORITY_URGENT});
    harness_run(&h, 2 * SECOND);
    harness_up(&h, 1, 4000 * MIB, 1);
    harness_run(&h, 3 * SECOND);
    assert_true(harness_runs(&h, 1, 1));
    harness_run(&h, INT64_MAX);
    assert_int_equal(h.done, 2);
    assert_true(h.now_ns < 13 * SECOND);
    kn_scheduler_destroy(&h.s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(meets_deadlines_in_their_order),
        cmocka_unit_test(preempts_for_a_deadline),
        cmocka_unit_test(breaks_no_deadline_for_another),
        cmocka_unit_test(is_not_dragged_down_by_a_hopeless_job),
        cmocka_unit_test(gives_up_the_heaviest),
        cmocka_unit_test(serves_classes_in_order),
        cmocka_unit_test(spends_slack_on_higher_classes),
        cmocka_unit_test(shares_by_weight),
        cmocka_unit_test(is_not_shut_out_by_a_flood),
        cmocka_unit_test(grants_no_credit_for_absence),
        cmocka_unit_test(lets_nothing_starve),
        cmocka_unit_test(ages_against_deadlines),
        cmocka_unit_test(spreads_to_idle_devices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

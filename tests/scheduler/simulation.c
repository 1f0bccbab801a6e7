/* SPDX-License-Identifier: Apache-2.0
 *
 * Simulated days: the properties hold on random traces with dying devices, planted bugs are caught, a seed is a seed,
 * and deadlines are met more often than under the simple policies. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "scheduler/simulation.h"
#include "scheduler/trace.h"

enum { TRACES = 240 };

static kn_simulate_result simulate(const kn_simulate_params *params)
{
    kn_simulate_result result;
    const kn_status st = kn_simulate_run(params, &result);
    if (st != KN_OK) fail_msg("%s: %s", kn_status_name(st), kn_fail_message());
    return result;
}

/* A world drawn from a seed: any mix, few to many devices, failures, cancellations, little or much memory. */
static kn_simulate_params random_world(uint64_t seed)
{
    kn_random random = {seed * 7919};
    kn_simulate_params world = {.seed = seed,
                                .mix = (kn_mix)kn_random_below(&random, KN_MIXES),
                                .policy = seed % 8 < 6 ? KN_POLICY_KINORA : (kn_policy_kind)(1 + seed / 8 % 5),
                                .devices = 1 + kn_random_below(&random, 12),
                                .domain = kn_random_below(&random, 2) ? 2 + kn_random_below(&random, 7) : 0,
                                .degree_max = kn_random_below(&random, 2) ? 1 + kn_random_below(&random, 8) : 0,
                                .jobs = 20 + kn_random_below(&random, 100),
                                .load = 0.3 + 1.2 * kn_random_unit(&random),
                                .slo_scale = 0.8 + kn_random_unit(&random),
                                .pack = 1 + kn_random_below(&random, KN_SCHEDULER_PACK_MAX),
                                .ageing_ns = INT64_C(1000000000) * (10 + kn_random_below(&random, 300)),
                                .failure_mean = kn_random_below(&random, 3) ? 200 + 400 * kn_random_unit(&random) : 0,
                                .cancelled = kn_random_below(&random, 2) ? 0.2 : 0,
                                .tight_memory = kn_random_below(&random, 2),
                                .admission = kn_random_below(&random, 4) == 0};
    if (seed % 5 == 0) { /* fixed groups */
        world.domain = 2 + 2 * kn_random_below(&random, 3);
        world.devices = world.domain * (1 + kn_random_below(&random, 3));
        world.degree_max = 0;
        world.degree_fixed = 2;
    }
    return world;
}

static void holds_its_properties(void **state)
{
    (void)state;
    uint64_t failures = 0, releases = 0, moves = 0, grouped = 0;
    const uint64_t held = kn_mem_read().bytes;
    for (uint64_t seed = 1; seed <= TRACES; seed++) {
        const kn_simulate_params world = random_world(seed);
        const kn_simulate_result r = simulate(&world);
        if (r.violations > 0)
            fail_msg("seed %d, %s, %s: %lld violations, the first at %s", (int)seed, kn_mix_name(world.mix),
                     kn_policy_name(world.policy), (long long)r.violations, r.violation);
        assert_int_equal(r.finished + r.cancelled + r.refused, r.jobs);
        failures += r.failures;
        releases += r.releases;
        moves += r.moves;
        grouped += r.degree > 1.5;
    }
    /* The traces were not all harmless. */
    assert_true(failures > 200 && releases > 200 && moves > 200 && grouped > TRACES / 8);
    assert_int_equal(kn_mem_read().bytes, held);
}

static void catches_planted_bugs(void **state)
{
    (void)state;
    for (int plant = KN_PLANT_NONE + 1; plant < KN_PLANTS; plant++) {
        int32_t caught = 0;
        for (uint64_t seed = 1; seed <= 5; seed++) {
            const bool crowded = plant == KN_PLANT_OVERFILL || plant == KN_PLANT_STARVATION;
            const kn_simulate_params world = {.seed = seed,
                                              .mix = crowded ? KN_MIX_UNIFORM : KN_MIX_TETRISERVE,
                                              .devices = 4,
                                              .domain = plant == KN_PLANT_STRANGER ? 4 : 0,
                                              .jobs = plant == KN_PLANT_OVERFILL ? 1000 : 300,
                                              .load = crowded ? 1.5 : 0.9,
                                              .slo_scale = 1.2,
                                              .tight_memory = true,
                                              .ageing_ns = INT64_C(60000000000),
                                              .wait_max_ns = plant == KN_PLANT_STARVATION ? INT64_C(1400000000000) : 0,
                                              .plant = (kn_plant)plant};
            kn_simulate_result r;
            /* A scheduler that notices the contradiction itself has caught it too. */
            caught += kn_simulate_run(&world, &r) != KN_OK || r.violations > 0;
            kn_simulate_params healthy = world;
            healthy.plant = KN_PLANT_NONE;
            r = simulate(&healthy);
            if (r.violations > 0) fail_msg("%s without the bug: %s", kn_plant_name((kn_plant)plant), r.violation);
        }
        if (caught < 4) fail_msg("%s was caught in %d of 5 traces", kn_plant_name((kn_plant)plant), caught);
    }
}

static void repeats_from_a_seed(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 16; seed++) {
        kn_simulate_params world = random_world(seed);
        const kn_simulate_result a = simulate(&world), b = simulate(&world);
        assert_true(a.fingerprint == b.fingerprint);
        assert_memory_equal(&a, &b, sizeof a);
        world.seed += 1000;
        assert_true(simulate(&world).fingerprint != a.fingerprint);
    }
}

static void meets_more_deadlines(void **state)
{
    (void)state;
    static const double scales[] = {1.0, 1.1, 1.2, 1.5}, published[] = {0.76, 0.83, 0.91, 0.95};
    static const double loads[] = {0.7, 0.9, 1.1};
    for (int k = 0; k < 4; k++) {
        for (int l = 0; l < 3; l++) {
            kn_simulate_params world = {.seed = 1,
                                        .mix = KN_MIX_TETRISERVE,
                                        .devices = 8,
                                        .jobs = 600,
                                        .load = loads[l],
                                        .slo_scale = scales[k]};
            double bound;
            const double own = simulate(&world).attainment;
            assert_int_equal(kn_simulate_bound(&world, &bound), KN_OK);
            assert_true(own <= bound);
            if (loads[l] < 1) assert_true(own > published[k]);
            for (int p = KN_POLICY_KINORA + 1; p < KN_POLICIES; p++) {
                world.policy = (kn_policy_kind)p;
                const double other = simulate(&world).attainment;
                assert_true(other <= bound);
                if (own <= other)
                    fail_msg("load %.1f, scale %.1f: %.3f, %s has %.3f", loads[l], scales[k], own,
                             kn_policy_name((kn_policy_kind)p), other);
            }
        }
    }
}

static void meets_targets_of_videos(void **state)
{
    (void)state;
    const kn_simulate_params world = {
        .seed = 1, .mix = KN_MIX_GENSERVE, .devices = 8, .jobs = 600, .load = 0.9, .slo_scale = 1};
    const kn_simulate_result r = simulate(&world);
    assert_true(r.attainment > 0.63);
    assert_string_equal(r.kinds[1].name, "video");
    assert_true(r.kinds[1].on_time > 0.32 * r.kinds[1].timed);
}

/* The gaps between arrivals have the coefficient of variation they should. */
/* Groups that change at every slice against the best that fixed ones do, on the same trace. */
static void beats_fixed_groups(void **state)
{
    (void)state;
    static const double scales[] = {1.0, 1.1, 1.2, 1.5}, published[] = {0.76, 0.83, 0.91, 0.95};
    for (int k = 0; k < 4; k++) {
        kn_simulate_params world = {.seed = 1,
                                    .mix = KN_MIX_TARGETS,
                                    .devices = 8,
                                    .domain = 8,
                                    .jobs = 1000,
                                    .load = 0.3,
                                    .slo_scale = scales[k]};
        double bound;
        const kn_simulate_result own = simulate(&world);
        assert_int_equal(own.violations, 0);
        assert_int_equal(kn_simulate_bound(&world, &bound), KN_OK);
        assert_true(own.attainment > published[k] && own.attainment <= bound);
        for (world.degree_fixed = 1; world.degree_fixed <= 8; world.degree_fixed *= 2) {
            for (int p = KN_POLICY_KINORA; p < KN_POLICIES; p++) {
                world.policy = (kn_policy_kind)p;
                const kn_simulate_result other = simulate(&world);
                assert_int_equal(other.violations, 0);
                assert_true(other.attainment <= bound);
                if (own.attainment <= other.attainment)
                    fail_msg("scale %.1f: %.3f, %s on %d devices has %.3f", scales[k], own.attainment,
                             kn_policy_name(world.policy), world.degree_fixed, other.attainment);
            }
        }
    }
}

static void draws_bursts(void **state)
{
    (void)state;
    const kn_simulate_params params = {
        .seed = 3, .mix = KN_MIX_BURSTY, .devices = 8, .jobs = 100000, .load = 0.9, .slo_scale = 1};
    kn_trace trace;
    assert_int_equal(kn_trace_create(&trace, &params), KN_OK);
    double sum = 0, squares = 0;
    int32_t below = 0;
    for (int32_t i = 1; i < trace.count; i++) {
        const double gap = (double)(trace.jobs[i].terms.submitted_ns - trace.jobs[i - 1].terms.submitted_ns);
        sum += gap;
        squares += gap * gap;
        below += trace.jobs[i].alone_ns < INT64_C(23000000000);
    }
    const double n = trace.count - 1, mean = sum / n, square_cv = squares / n / (mean * mean) - 1;
    if (square_cv < 10 * 10 || square_cv > 14 * 14) fail_msg("squared coefficient of variation %g", square_cv);
    assert_in_range(below, trace.count * 48 / 100, trace.count * 52 / 100); /* median 23 s */
    kn_trace_release(&trace);
}

static void loses_nothing_in_bursts(void **state)
{
    (void)state;
    const kn_simulate_params world = {
        .seed = 2, .mix = KN_MIX_BURSTY, .devices = 8, .jobs = 2000, .load = 0.9, .slo_scale = 1, .failure_mean = 3000};
    const kn_simulate_result r = simulate(&world);
    assert_int_equal(r.violations, 0);
    assert_int_equal(r.finished, r.jobs);
    assert_true(r.failures > 0);
}

/* With two jobs the bound can be told by hand: of two jobs of one size, released together on one device, with time for
 * one and a half, no schedule finishes two; the relaxation counts 1.5. */
static void bounds_from_above(void **state)
{
    (void)state;
    kn_trace_job jobs[2] = {{.alone_ns = 1000000000, .group_ns = 1000000000, .least_ns = 1000000000}};
    jobs[0].terms.submitted_ns = INT64_C(1000000000);
    jobs[0].terms.deadline_ns = INT64_C(2500000000);
    jobs[1] = jobs[0];
    const kn_trace trace = {.jobs = jobs, .count = 2};
    double bound;
    assert_int_equal(kn_trace_bound(&trace, 1, &bound), KN_OK);
    assert_true(bound >= 0.75 && bound < 0.7501);
    assert_int_equal(kn_trace_bound(&trace, 2, &bound), KN_OK);
    assert_true(bound == 1);
    jobs[1].terms.deadline_ns = INT64_C(1900000000); /* impossible alone */
    assert_int_equal(kn_trace_bound(&trace, 1, &bound), KN_OK);
    assert_true(bound == 0.5);
    jobs[1].group_ns = 400000000; /* but not in a group; its device time is what it was */
    assert_int_equal(kn_trace_bound(&trace, 1, &bound), KN_OK);
    assert_true(bound > 0.74 && bound < 0.76);
}

static void refuse(const kn_simulate_params *params, const char *field)
{
    kn_simulate_result r;
    assert_int_equal(kn_simulate_run(params, &r), KN_INVALID);
    if (!strstr(kn_fail_message(), field)) fail_msg("\"%s\" does not name %s", kn_fail_message(), field);
}

static void checks_params(void **state)
{
    (void)state;
    const kn_simulate_params good = {.devices = KN_SCHEDULER_DEVICES_MAX, .jobs = 70, .load = 0.5, .slo_scale = 1};
    kn_simulate_params bad = good;
    double bound;
    assert_int_equal(simulate(&good).finished, 70);
    bad.devices++;
    refuse(&bad, "devices");
    bad = good;
    bad.jobs = KN_SIMULATE_JOBS_MAX + 1;
    refuse(&bad, "jobs");
    bad = good;
    bad.load = 0;
    refuse(&bad, "load");
    bad = good;
    bad.slo_scale = 0;
    refuse(&bad, "slo_scale");
    bad = good;
    bad.cancelled = 1.5;
    refuse(&bad, "cancelled");
    bad = good;
    bad.failure_mean = 0.5;
    refuse(&bad, "failure_mean");
    bad = good;
    bad.jobs = KN_SIMULATE_BOUND_MAX + 1;
    assert_int_equal(kn_simulate_bound(&bad, &bound), KN_INVALID);
}

static void survives_lack_of_memory(void **state)
{
    (void)state;
    const kn_simulate_params world = {.devices = 2, .jobs = 30, .load = 0.9, .slo_scale = 1};
    const uint64_t held = kn_mem_read().bytes;
    kn_simulate_result r;
    kn_status st;
    uint64_t n = 0;
    do {
        kn_mem_fail_at(++n);
        st = kn_simulate_run(&world, &r);
        kn_mem_fail_at(0);
        assert_true(st == KN_OK || st == KN_NOMEM);
        assert_int_equal(kn_mem_read().bytes, held);
    } while (st != KN_OK);
    assert_true(n > 10);
}

static void measures_decisions(void **state)
{
    (void)state;
    kn_simulate_bench bench;
    assert_int_equal(kn_simulate_measure(4, 500, 20000, kn_clock_ns, &bench), KN_OK);
    assert_int_equal(bench.decisions, 20000);
    assert_true(bench.slices_done >= 19000);
    assert_true(bench.total_ns > 0);
    assert_int_equal(kn_simulate_measure(4, 7, 10, kn_clock_ns, &bench), KN_INVALID);
    assert_int_equal(kn_simulate_measure(4, KN_SIMULATE_QUEUE_MAX + 1, 10, kn_clock_ns, &bench), KN_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(holds_its_properties),
        cmocka_unit_test(catches_planted_bugs),
        cmocka_unit_test(repeats_from_a_seed),
        cmocka_unit_test(meets_more_deadlines),
        cmocka_unit_test(meets_targets_of_videos),
        cmocka_unit_test(beats_fixed_groups),
        cmocka_unit_test(draws_bursts),
        cmocka_unit_test(loses_nothing_in_bursts),
        cmocka_unit_test(bounds_from_above),
        cmocka_unit_test(checks_params),
        cmocka_unit_test(survives_lack_of_memory),
        cmocka_unit_test(measures_decisions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

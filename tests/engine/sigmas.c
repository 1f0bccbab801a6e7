/* SPDX-License-Identifier: Apache-2.0
 *
 * Schedules against diffusers: every sigma and timestep equal to the last bit, and what is refused. */
#include "tests/engine/golden.h"

#include <math.h>
#include <string.h>

#include "base/half.h"
#include "engine/sampling.h"

enum { GIVEN_MAX = 16 };

static kn_sampler_config config_of(const char *sampler)
{
    bool unipc = strcmp(sampler, "unipc") == 0;
    return (kn_sampler_config){.kind = unipc ? KN_SAMPLER_UNIPC : KN_SAMPLER_EULER,
                               .num_train_timesteps = 1000,
                               .solver_order = 2,
                               .lower_order_final = true,
                               .shift = 3.0f};
}

static void check_values(const char *what, const float *actual, int32_t count, const json_t *expected, int32_t stride)
{
    assert_int_equal(json_array_size(expected), (count + stride - 1) / stride);
    for (size_t i = 0; i < json_array_size(expected); i++) {
        float value = actual[i * (size_t)stride];
        float wanted = (float)json_number_value(json_array_get(expected, i));
        if (kn_float_bits(value) != kn_float_bits(wanted))
            fail_msg("%s[%zu] is %.9g, diffusers has %.9g", what, i * (size_t)stride, (double)value, (double)wanted);
    }
}

static void check_case(const json_t *item)
{
    const char *sampler = golden_string(item, "sampler");
    kn_sampler_config config = config_of(sampler);
    double shift = golden_number(item, "shift");
    int32_t steps = (int32_t)golden_number(item, "steps");
    int32_t stride = (int32_t)golden_number(item, "stride");
    double given[GIVEN_MAX];
    const json_t *list = json_object_get(item, "given");
    int32_t given_count = (int32_t)json_array_size(list);
    assert_true(given_count <= GIVEN_MAX);
    for (int32_t i = 0; i < given_count; i++) given[i] = json_number_value(json_array_get(list, (size_t)i));

    kn_schedule schedule;
    kn_status st = kn_schedule_build(&schedule, &config, list ? 0 : steps, shift, list ? given : NULL, given_count);
    if (st != KN_OK) fail_msg("%s", kn_fail_message());
    assert_int_equal(schedule.steps, steps);
    assert_int_equal(schedule.kind, config.kind);
    char label[128];
    snprintf(label, sizeof label, "%s shift %g steps %d %s sigmas", sampler, shift, steps, list ? "given" : "own");
    check_values(label, schedule.sigmas, steps + 1, golden_get(item, "sigmas"), stride);
    snprintf(label, sizeof label, "%s shift %g steps %d %s timesteps", sampler, shift, steps, list ? "given" : "own");
    check_values(label, schedule.timesteps, steps, golden_get(item, "timesteps"), stride);
}

static void test_cases(void **state)
{
    (void)state;
    json_t *root = golden_json("sampling_cases.json");
    json_t *cases = golden_get(root, "schedules"), *item;
    assert_true(json_array_size(cases) > 100);
    size_t index;
    json_array_foreach(cases, index, item) check_case(item);
    json_decref(root);
}

static void check_fixture(const char *fixture)
{
    char name[128];
    snprintf(name, sizeof name, "%s/case.json", fixture);
    json_t *root = golden_json(name);
    kn_weights *expected = golden_expected(fixture);
    json_t *requests = golden_get(root, "requests"), *request;
    size_t index;
    json_array_foreach(requests, index, request)
    {
        json_t *scheduler = golden_get(request, "scheduler"), *list = json_object_get(request, "sigmas");
        kn_sampler_config config = config_of(golden_string(scheduler, "kind"));
        config.shift = (float)golden_number(scheduler, "shift");
        double given[GIVEN_MAX];
        int32_t given_count = (int32_t)json_array_size(list);
        assert_true(given_count <= GIVEN_MAX);
        for (int32_t i = 0; i < given_count; i++) given[i] = json_number_value(json_array_get(list, (size_t)i));
        kn_schedule schedule;
        int32_t steps = (int32_t)golden_number(request, "steps");
        assert_int_equal(kn_schedule_build(&schedule, &config, steps, 0, given_count ? given : NULL, given_count),
                         KN_OK);
        int64_t count;
        const float *sigmas = golden_request(expected, index, "sigmas", &count, NULL);
        assert_int_equal(count, schedule.steps + 1);
        assert_memory_equal(sigmas, schedule.sigmas, (size_t)count * sizeof *sigmas);
        const float *timesteps = golden_request(expected, index, "timesteps", &count, NULL);
        assert_int_equal(count, schedule.steps);
        assert_memory_equal(timesteps, schedule.timesteps, (size_t)count * sizeof *timesteps);
    }
    kn_weights_close(&expected);
    json_decref(root);
}

static void test_fixtures(void **state)
{
    (void)state;
    check_fixture("wan21-small");
    check_fixture("wan21-head128");
    check_fixture("wan21-wide");
}

static void test_config_shift(void **state)
{
    (void)state;
    kn_sampler_config config = config_of("unipc");
    kn_schedule given, taken;
    assert_int_equal(kn_schedule_build(&given, &config, 4, 5.0, NULL, 0), KN_OK);
    config.shift = 5.0f;
    assert_int_equal(kn_schedule_build(&taken, &config, 4, -1, NULL, 0), KN_OK);
    assert_memory_equal(given.sigmas, taken.sigmas, sizeof given.sigmas);
    assert_int_equal(kn_schedule_build(&taken, &config, 4, 3.0, NULL, 0), KN_OK);
    assert_memory_not_equal(given.sigmas, taken.sigmas, sizeof given.sigmas);
}

static void expect_refusal(kn_status status, const kn_sampler_config *config, int32_t steps, double shift,
                           const double *given, int32_t count, const char *first, const char *second)
{
    kn_schedule schedule;
    assert_int_equal(kn_schedule_build(&schedule, config, steps, shift, given, count), status);
    if (!strstr(kn_fail_message(), first) || !strstr(kn_fail_message(), second))
        fail_msg("\"%s\" does not say \"%s\" and \"%s\"", kn_fail_message(), first, second);
}

static void test_refusals(void **state)
{
    (void)state;
    kn_sampler_config unipc = config_of("unipc"), euler = config_of("euler"), config;
    expect_refusal(KN_INVALID, &unipc, 0, 3, NULL, 0, "steps is 0", "1 to 1000");
    expect_refusal(KN_INVALID, &euler, 1001, 3, NULL, 0, "steps is 1001", "1 to 1000");
    expect_refusal(KN_INVALID, &euler, -5, 3, NULL, 0, "steps is -5", "1 to 1000");
    expect_refusal(KN_INVALID, &unipc, 4, NAN, NULL, 0, "shift is nan", "finite and above 0");
    expect_refusal(KN_INVALID, &unipc, 4, INFINITY, NULL, 0, "shift is inf", "finite and above 0");
    expect_refusal(KN_INVALID, &unipc, 4, -INFINITY, NULL, 0, "shift is -inf", "finite and above 0");
    config = unipc;
    config.shift = -2;
    expect_refusal(KN_INVALID, &config, 4, 0, NULL, 0, "shift is -2", "finite and above 0");
    config = unipc;
    config.num_train_timesteps = 0;
    expect_refusal(KN_INVALID, &config, 4, 3, NULL, 0, "num_train_timesteps is 0", "at least 1");
    config = unipc;
    config.solver_order = 3;
    expect_refusal(KN_UNSUPPORTED, &config, 4, 3, NULL, 0, "solver_order is 3", "1 and 2");
    config = euler;
    config.use_dynamic_shifting = true;
    expect_refusal(KN_UNSUPPORTED, &config, 4, 3, NULL, 0, "use_dynamic_shifting", "fixed shift");
    /* Shifts so strong that neighbouring sigmas become one float. */
    expect_refusal(KN_INVALID, &unipc, 50, 1e7, NULL, 0, "shift 1e+07 with 50 steps", "strictly decreasing");
    expect_refusal(KN_INVALID, &euler, 50, 1e9, NULL, 0, "shift 1e+09 with 50 steps", "strictly decreasing");
    expect_refusal(KN_INVALID, &unipc, 50, 1e-60, NULL, 0, "shift 1e-60 with 50 steps", "strictly decreasing");
}

static void test_given_refusals(void **state)
{
    (void)state;
    kn_sampler_config config = config_of("euler");
    const double above[] = {1.5, 0.5}, zero[] = {1.0, 0.5, 0.0}, nan_in[] = {NAN}, level[] = {1.0, 0.5, 0.5},
                 rising[] = {0.25, 0.5}, close[] = {0.5, 0.5 - 1e-12};
    expect_refusal(KN_INVALID, &config, 0, 1, above, 2, "sigmas[0] is 1.5", "at most 1");
    expect_refusal(KN_INVALID, &config, 0, 1, zero, 3, "sigmas[2] is 0", "above 0");
    expect_refusal(KN_INVALID, &config, 0, 1, nan_in, 1, "sigmas[0] is nan", "above 0");
    expect_refusal(KN_INVALID, &config, 0, 1, level, 3, "sigmas[2] is 0.5 after 0.5", "strictly decreasing");
    expect_refusal(KN_INVALID, &config, 0, 1, rising, 2, "sigmas[1] is 0.5 after 0.25", "strictly decreasing");
    expect_refusal(KN_INVALID, &config, 0, 1, close, 2, "sigmas 0 and 1", "strictly decreasing");
    expect_refusal(KN_INVALID, &config, 3, 1, above, 0, "number of sigmas is 0", "1 to 1000");
    expect_refusal(KN_INVALID, &config, 3, 1, above, 1001, "number of sigmas is 1001", "1 to 1000");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),    cmocka_unit_test(test_fixtures),       cmocka_unit_test(test_config_shift),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_given_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

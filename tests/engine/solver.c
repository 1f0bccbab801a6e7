/* SPDX-License-Identifier: Apache-2.0
 *
 * Solver coefficients against diffusers: recorded trajectories, and the latents of whole fixture runs replayed from
 * their recorded velocities. */
#include "tests/engine/golden.h"

#include <math.h>
#include <string.h>

#include "engine/sampling.h"

enum { WIDTH = 2, GIVEN_MAX = 16 };

/* Against diffusers run in double: only the rounding of the coefficients to float is left. */
static const double EXACT_BOUND = 2.5e-7; /* measured: 1.8e-7 */
/* Against diffusers in float, which loses this much by itself (solver.c says where). */
static const double FLOAT_BOUND = 2e-6; /* measured: 1.4e-6 */

static kn_schedule build(kn_sampler_kind kind, int32_t steps, double shift, int32_t order, bool lower_order_final)
{
    kn_sampler_config config = {.kind = kind,
                                .num_train_timesteps = 1000,
                                .solver_order = order,
                                .lower_order_final = lower_order_final,
                                .shift = (float)shift};
    kn_schedule schedule;
    if (kn_schedule_build(&schedule, &config, steps, shift, NULL, 0) != KN_OK) fail_msg("%s", kn_fail_message());
    return schedule;
}

/* State of a run in double; what is not there yet is NaN, so that reading it shows. */
typedef struct history {
    double x_prev[WIDTH], m_prev[WIDTH], m_prev2[WIDTH];
} history;

static double term(float coefficient, double value)
{
    return coefficient == 0 ? 0 : (double)coefficient * value;
}

static void advance(double *x, history *past, const kn_solver_step *step, const double *velocity)
{
    for (int k = 0; k < WIDTH; k++) {
        double m = x[k] - (double)step->sigma * velocity[k];
        double corrected = x[k];
        if (step->corrected)
            corrected = term(step->corrector[0], past->x_prev[k]) + term(step->corrector[1], past->m_prev2[k]) +
                        term(step->corrector[2], past->m_prev[k]) + term(step->corrector[3], m);
        x[k] = term(step->predictor[0], corrected) + term(step->predictor[1], past->m_prev[k]) +
               term(step->predictor[2], m);
        past->x_prev[k] = corrected;
        past->m_prev2[k] = past->m_prev[k];
        past->m_prev[k] = m;
    }
}

static void check_state(const json_t *wanted, const double *x, double bound, const char *label, int32_t i)
{
    for (size_t k = 0; k < WIDTH; k++) {
        const json_t *value = json_array_get(wanted, k);
        if (json_is_null(value)) continue; /* diffusers has an infinity here */
        double difference = fabs(x[k] - json_number_value(value));
        if (!(difference <= bound * fmax(1, fabs(json_number_value(value)))))
            fail_msg("%s: after step %d component %zu is %.12g, diffusers has %.12g", label, i, k, x[k],
                     json_number_value(value));
    }
}

static void check_trajectory(const json_t *item, const json_t *start)
{
    int32_t steps = (int32_t)golden_number(item, "steps"), order = (int32_t)golden_number(item, "order");
    double shift = golden_number(item, "shift");
    bool lower_order_final = json_is_true(golden_get(item, "lower_order_final"));
    char label[96];
    snprintf(label, sizeof label, "steps %d shift %g order %d%s", steps, shift, order,
             lower_order_final ? "" : " without lower_order_final");
    kn_schedule schedule = build(KN_SAMPLER_UNIPC, steps, shift, order, lower_order_final);
    double x[WIDTH], velocity[WIDTH];
    history past;
    for (int k = 0; k < WIDTH; k++) {
        x[k] = json_number_value(json_array_get(start, (size_t)k));
        past.x_prev[k] = past.m_prev[k] = past.m_prev2[k] = NAN;
    }
    json_t *exact = golden_get(item, "exact"), *in_float = golden_get(item, "float32");
    assert_int_equal(json_array_size(exact), steps);
    for (int32_t i = 0; i < steps; i++) {
        for (int k = 0; k < WIDTH; k++) velocity[k] = (double)((7 * i + 13 * k) % 17 - 8) / 8;
        kn_solver_step step = kn_solver_at(&schedule, i);
        assert_int_equal(step.corrected, i > 0);
        advance(x, &past, &step, velocity);
        check_state(json_array_get(exact, (size_t)i), x, EXACT_BOUND, label, i);
        check_state(json_array_get(in_float, (size_t)i), x, FLOAT_BOUND, label, i);
    }
}

static void test_trajectories(void **state)
{
    (void)state;
    json_t *root = golden_json("sampling_cases.json");
    json_t *cases = golden_get(root, "trajectories"), *start = golden_get(root, "start"), *item;
    assert_int_equal(json_array_size(start), WIDTH);
    assert_true(json_array_size(cases) >= 60);
    size_t index;
    json_array_foreach(cases, index, item) check_trajectory(item, start);
    json_decref(root);
}

/* The last step lands on the data prediction itself, with every setting. */
static void test_last_step(void **state)
{
    (void)state;
    for (int32_t order = 1; order <= 2; order++) {
        for (int32_t steps = 1; steps <= 5; steps++) {
            kn_schedule schedule = build(KN_SAMPLER_UNIPC, steps, 5, order, steps % 2);
            kn_solver_step step = kn_solver_at(&schedule, steps - 1);
            assert_true(step.predictor[0] == 0 && step.predictor[1] == 0 && step.predictor[2] == 1);
            assert_true(step.euler_delta == -step.sigma);
        }
    }
}

/* A model that always predicts the same x0 moves along a straight line, which every order follows exactly: the weights
 * on predictions sum to 1 - sigma_t/sigma_s, and with the weight on the sample to 1. */
static void test_consistency(void **state)
{
    (void)state;
    kn_schedule schedule = build(KN_SAMPLER_UNIPC, KN_STEPS_MAX, 16, 2, true);
    for (int32_t i = 0; i < KN_STEPS_MAX; i++) {
        kn_solver_step step = kn_solver_at(&schedule, i);
        double ratio = (double)schedule.sigmas[i + 1] / (double)schedule.sigmas[i];
        assert_true(fabs((double)step.predictor[0] - ratio) < 1e-7);
        assert_true(fabs((double)step.predictor[1] + (double)step.predictor[2] - (1 - ratio)) < 2e-7);
        double sum = 0;
        for (int k = 0; k < 4; k++) sum += (double)step.corrector[k];
        assert_true(i == 0 ? sum == 0 : fabs(sum - 1) < 2e-7);
    }
}

static void test_euler(void **state)
{
    (void)state;
    kn_schedule schedule = build(KN_SAMPLER_EULER, 7, 3, 2, true);
    for (int32_t i = 0; i < 7; i++) {
        kn_solver_step step = kn_solver_at(&schedule, i);
        assert_int_equal(step.kind, KN_SAMPLER_EULER);
        assert_true(step.euler_delta == schedule.sigmas[i + 1] - schedule.sigmas[i] && step.euler_delta < 0);
        assert_true(step.sigma == schedule.sigmas[i]);
        assert_false(step.corrected);
        assert_true(step.predictor[0] == 0 && step.predictor[1] == 0 && step.predictor[2] == 0);
    }
}

/* Latents of one component through a whole request, in float as a device would. */
typedef struct lane {
    float x, x_prev, m_prev, m_prev2;
} lane;

static void advance_lane(lane *at, const kn_solver_step *step, float velocity)
{
    if (step->kind == KN_SAMPLER_EULER) {
        at->x += step->euler_delta * velocity;
        return;
    }
    float m = at->x - step->sigma * velocity;
    float corrected = at->x;
    if (step->corrected)
        corrected = step->corrector[0] * at->x_prev + step->corrector[1] * at->m_prev2 +
                    step->corrector[2] * at->m_prev + step->corrector[3] * m;
    at->x = step->predictor[0] * corrected + step->predictor[1] * at->m_prev + step->predictor[2] * m;
    at->x_prev = corrected;
    at->m_prev2 = at->m_prev;
    at->m_prev = m;
}

static void check_request(const kn_weights *expected, size_t index, const json_t *request)
{
    json_t *scheduler = golden_get(request, "scheduler"), *list = json_object_get(request, "sigmas");
    bool unipc = strcmp(golden_string(scheduler, "kind"), "unipc") == 0;
    kn_sampler_config config = {.kind = unipc ? KN_SAMPLER_UNIPC : KN_SAMPLER_EULER,
                                .num_train_timesteps = 1000,
                                .solver_order = 2,
                                .lower_order_final = true,
                                .shift = (float)golden_number(scheduler, "shift")};
    double given[GIVEN_MAX];
    int32_t given_count = (int32_t)json_array_size(list);
    assert_true(given_count <= GIVEN_MAX);
    for (int32_t i = 0; i < given_count; i++) given[i] = json_number_value(json_array_get(list, (size_t)i));
    kn_schedule schedule;
    assert_int_equal(kn_schedule_build(&schedule, &config, (int32_t)golden_number(request, "steps"), 0,
                                       given_count ? given : NULL, given_count),
                     KN_OK);

    int64_t count, calls, steps;
    const float *noise = golden_request(expected, index, "noise", &count, NULL);
    const float *velocities = golden_request(expected, index, "velocity", NULL, &calls);
    const float *latents = golden_request(expected, index, "latents", NULL, &steps);
    float guidance = (float)golden_number(request, "guidance");
    bool guided = guidance > 1;
    assert_int_equal(steps, schedule.steps);
    assert_int_equal(calls, guided ? 2 * steps : steps);
    for (int64_t k = 0; k < count; k++) {
        lane at = {.x = noise[k]};
        for (int32_t i = 0; i < schedule.steps; i++) {
            const float *first = velocities + (guided ? 2 * i : i) * count + k;
            float velocity = guided ? first[count] + guidance * (first[0] - first[count]) : first[0];
            kn_solver_step step = kn_solver_at(&schedule, i);
            advance_lane(&at, &step, velocity);
            float wanted = latents[i * count + k];
            float bound = unipc ? 1e-6f * fmaxf(1, fabsf(wanted)) : 0; /* Euler: the same three operations */
            if (!(fabsf(at.x - wanted) <= bound))
                fail_msg("request %zu step %d [%lld] is %.9g, diffusers has %.9g", index, i, (long long)k, (double)at.x,
                         (double)wanted);
        }
    }
}

static void check_fixture(const char *fixture)
{
    char name[128];
    snprintf(name, sizeof name, "%s/case.json", fixture);
    json_t *root = golden_json(name);
    kn_weights *expected = golden_expected(fixture);
    json_t *requests = golden_get(root, "requests"), *request;
    size_t index;
    json_array_foreach(requests, index, request) check_request(expected, index, request);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trajectories), cmocka_unit_test(test_last_step), cmocka_unit_test(test_consistency),
        cmocka_unit_test(test_euler),        cmocka_unit_test(test_fixtures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

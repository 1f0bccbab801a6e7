/* SPDX-License-Identifier: Apache-2.0
 *
 * The cost model: FLOP counts against the published sizes, and the fit against devices that are not what they were
 * said to be. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>

#include "scheduler/cost.h"
#include "scheduler/trace.h"

static const kn_cost_model wan = {.layers = 30,
                                  .width = 1536,
                                  .ffn = 8960,
                                  .heads_width = 1536,
                                  .transformer_bytes = 2800000000,
                                  .text_flop_per_token = 9.4e9,
                                  .text_bytes = 9260000000,
                                  .decode_flop = 8.5e6,
                                  .frames_per_latent = 4,
                                  .resident_bytes = 15000000000};

static const kn_device_seed seed = {
    .flop_per_second = 600e12, .decode_efficiency = 0.25, .bytes_per_second = 3e12, .slice_ns = 500000};

static kn_job_shape shape_480p(void)
{
    return (kn_job_shape){
        .tokens = 32760, .sequences = 2, .text_tokens = 1024, .steps = 50, .latent_frames = 21, .pixels = 832 * 480};
}

static void near(double value, double expected, double relative)
{
    if (!(fabs(value / expected - 1) <= relative)) fail_msg("%g is not within %g of %g", value, relative, expected);
}

/* Wan 2.1 1.3B, 832x480x81: 283 TFLOP a forward; VAE decode 275 TFLOP. */
static void counts_flop(void **state)
{
    (void)state;
    kn_cost_work work;
    const kn_job_shape shape = shape_480p();
    kn_cost_count(&work, &wan, &shape);
    near(work.denoise, 2 * 283e12, 0.01);
    near(work.decode_first + 20 * work.decode, 275e12, 0.01);
    near(work.text, 1024 * 9.4e9, 1e-9);
}

static void adds_up_what_remains(void **state)
{
    (void)state;
    kn_cost_work work;
    kn_cost_fit fits[KN_STAGES];
    kn_job_shape shape = shape_480p();
    shape.steps = 3;
    shape.latent_frames = 2;
    kn_cost_count(&work, &wan, &shape);
    for (int k = 0; k < KN_STAGES; k++) kn_cost_seed(&fits[k], &wan, &seed, (kn_stage)k, 1);
    kn_job_progress p = {0};
    double sum = 0;
    const double step = kn_cost_predict(&fits[KN_STAGE_DENOISE], work.denoise);
    const kn_cost_fit *frame = &fits[KN_STAGE_DECODE];
    const double whole =
        kn_cost_remaining(fits, step, kn_cost_decoding(frame, &work, &shape, &p, &seed, 1), &work, &shape, &p);
    static const kn_stage expected[] = {KN_STAGE_TEXT,   KN_STAGE_DENOISE, KN_STAGE_DENOISE, KN_STAGE_DENOISE,
                                        KN_STAGE_DECODE, KN_STAGE_DECODE,  KN_STAGE_MUX,     KN_STAGE_DONE};
    for (int i = 0; i < 8; i++) {
        const kn_stage stage = kn_job_next_stage(&shape, &p);
        assert_int_equal(stage, expected[i]);
        const double decoding = kn_cost_decoding(frame, &work, &shape, &p, &seed, 1);
        near(kn_cost_remaining(fits, step, decoding, &work, &shape, &p) + 1, whole - sum + 1, 1e-9);
        if (stage == KN_STAGE_DONE) break;
        sum += kn_cost_predict(&fits[stage], kn_cost_next(&work, &shape, &p));
        p.text = true;
        p.step += stage == KN_STAGE_DENOISE;
        p.decoded += stage == KN_STAGE_DECODE;
        p.done = stage == KN_STAGE_MUX;
    }
    near(sum, whole, 1e-9);
}

/* A device 1.6 times as slow as said, with three times the fixed cost, and 5 % noise. */
static void fits_what_is_measured(void **state)
{
    (void)state;
    kn_cost_fit fit;
    kn_random random = {3};
    kn_cost_seed(&fit, &wan, &seed, KN_STAGE_DENOISE, 1);
    const double fixed = 3 * fit.seed_fixed, rate = 1.6 * fit.seed_rate;
    for (int i = 0; i < 400; i++) {
        const double work = 1e12 * (1 + kn_random_below(&random, 40));
        kn_cost_learn(&fit, work, (int64_t)((fixed + rate * work) * (0.975 + 0.05 * kn_random_unit(&random))));
    }
    near(kn_cost_predict(&fit, 2e12), fixed + rate * 2e12, 0.03);
    near(kn_cost_predict(&fit, 40e12), fixed + rate * 40e12, 0.03);
    near(fit.fixed, fixed, 0.15);
    assert_true(fit.error < 0.04);
}

/* One size only: both numbers are scaled together, so that another size is not nonsense. */
static void scales_as_a_whole(void **state)
{
    (void)state;
    kn_cost_fit fit;
    kn_cost_seed(&fit, &wan, &seed, KN_STAGE_DENOISE, 1);
    for (int i = 0; i < 50; i++) kn_cost_learn(&fit, 5e12, (int64_t)(2.5 * (fit.seed_fixed + fit.seed_rate * 5e12)));
    near(fit.fixed, 2.5 * fit.seed_fixed, 0.02);
    near(fit.rate, 2.5 * fit.seed_rate, 0.02);
    near(kn_cost_predict(&fit, 100e12), 2.5 * (fit.seed_fixed + fit.seed_rate * 100e12), 0.02);
}

static void survives_hiccups(void **state)
{
    (void)state;
    kn_cost_fit fit;
    kn_cost_seed(&fit, &wan, &seed, KN_STAGE_DENOISE, 1);
    const double truth = fit.seed_fixed + fit.seed_rate * 5e12;
    kn_cost_learn(&fit, 5e12, (int64_t)(40 * truth)); /* the very first: kernels are being loaded */
    for (int i = 0; i < 4; i++) kn_cost_learn(&fit, 5e12, (int64_t)truth);
    near(kn_cost_predict(&fit, 5e12), truth, 0.01);
    for (int i = 0; i < 100; i++) kn_cost_learn(&fit, 5e12, (int64_t)truth);
    kn_cost_learn(&fit, 5e12, (int64_t)(1000 * truth)); /* another process took the device for a while */
    near(kn_cost_predict(&fit, 5e12), truth, 0.03);
}

static void follows_a_lasting_change(void **state)
{
    (void)state;
    kn_cost_fit fit;
    kn_cost_seed(&fit, &wan, &seed, KN_STAGE_DENOISE, 1);
    const double truth = fit.seed_fixed + fit.seed_rate * 5e12;
    for (int i = 0; i < 200; i++) kn_cost_learn(&fit, 5e12, (int64_t)truth);
    assert_true(fit.error < 0.01);
    for (int i = 0; i < 30; i++) kn_cost_learn(&fit, 5e12, (int64_t)(3 * truth));
    assert_true(fit.error > 0.2); /* it says that it was wrong */
    for (int i = 0; i < 200; i++) kn_cost_learn(&fit, 5e12, (int64_t)(3 * truth));
    near(kn_cost_predict(&fit, 5e12), 3 * truth, 0.05);
    for (int i = 0; i < 400; i++) kn_cost_learn(&fit, 5e12, (int64_t)(0.2 * truth));
    near(kn_cost_predict(&fit, 5e12), 0.2 * truth, 0.1);
}

/* Whatever is measured, a prediction stays a positive time. */
static void never_predicts_nonsense(void **state)
{
    (void)state;
    kn_cost_fit fit;
    kn_random random = {11};
    kn_cost_seed(&fit, &wan, &seed, KN_STAGE_DENOISE, 1);
    for (int i = 0; i < 5000; i++) {
        const double work = exp(10 + 25 * kn_random_unit(&random));
        kn_cost_learn(&fit, work, 1 + (int64_t)exp(35 * kn_random_unit(&random)));
        const double predicted = kn_cost_predict(&fit, work);
        assert_true(isfinite(predicted) && predicted > 0);
        assert_true(fit.fixed > 0 && fit.rate > 0 && fit.error >= 0 && fit.error <= 1);
    }
}

/* Wan 2.1 1.3B, 480p, two branches: work, whole heads and bytes of one member. */
static void counts_groups(void **state)
{
    (void)state;
    const kn_job_shape shape = {.tokens = 32760, .sequences = 2, .text_tokens = 512, .steps = 50, .latent_frames = 21};
    const double n = 32760, d = 1536, attention = 2.0 * 30 * 4 * n * n * d;
    kn_cost_work work;
    kn_cost_count(&work, &wan, &shape);
    near(work.part[0], work.denoise, 1e-12);
    assert_true(work.sent[0] == 0);
    near(work.part[1], work.denoise / 2, 1e-12); /* a branch each: nothing crosses but state and velocity */
    near(work.sent[1], n * 768 + 2 * 512 * d, 1e-12);
    near(work.part[2], (work.denoise - attention) / 3 + attention / 3, 1e-12);     /* four heads each */
    near(work.part[7], (work.denoise - attention) / 8 + attention / 2 / 4, 1e-12); /* three of twelve, of a branch */
    near(work.sent[7], 4.0 * 30 * n / 4 * d * 2 * 3 / 4 + n * 768 + 2 * 512 * d, 1e-12);
    near(work.part[4], (work.denoise - attention) / 5 + attention * 3 / 12, 1e-12); /* three of twelve: not 12 / 5 */
    kn_device_seed slow = seed;
    slow.link_bytes_per_second = seed.flop_per_second / 2;
    near(kn_cost_shared_step(&work, &slow, 8), work.part[7] + 2 * work.sent[7], 1e-12);
    kn_cost_fit one, eight;
    kn_cost_seed(&one, &wan, &seed, KN_STAGE_DENOISE, 1);
    kn_cost_seed(&eight, &wan, &seed, KN_STAGE_DENOISE, 8);
    near(eight.fixed - one.fixed, 12000.0 * (4 * 30 + 3), 1e-9);
    assert_true(eight.rate == one.rate);
    kn_cost_fit measured = one;
    measured.fixed *= 3;
    measured.rate *= 2;
    kn_cost_follow(&eight, &measured);
    near(eight.fixed, 3 * eight.seed_fixed, 1e-12);
    near(eight.rate, 2 * eight.seed_rate, 1e-12);
}

/* A decode slice in a group: its part of the pixels, and what the decoder remembers, out and back but for the first and
 * the last frame. */
static void counts_shared_decoding(void **state)
{
    (void)state;
    const kn_job_shape shape = {.tokens = 100,
                                .sequences = 1,
                                .text_tokens = 1,
                                .steps = 1,
                                .latent_frames = 4,
                                .pixels = 1000,
                                .decoder_bytes = 800};
    kn_device_seed link = seed;
    link.decode_efficiency = 0.5;
    link.link_bytes_per_second = seed.flop_per_second / 4; /* a byte takes as long as four FLOP, two of them decoding */
    kn_cost_work work;
    kn_cost_count(&work, &wan, &shape);
    assert_true(work.remembered == 800);
    kn_job_progress p = {.step = 1, .text = true};
    static const int trips[] = {1, 2, 2, 1};
    double sum = 0, whole = kn_cost_shared_frames(&work, &shape, &p, &link, 8);
    for (; p.decoded < 4; p.decoded++) {
        const double flop = p.decoded == 0 ? work.decode_first : work.decode, one = kn_cost_next(&work, &shape, &p);
        assert_true(one == flop);
        near(kn_cost_shared(&work, &shape, &p, &link, 8), flop / 8 + trips[p.decoded] * 800 * 0.875 * 2, 1e-12);
        near(kn_cost_shared_frames(&work, &shape, &p, &link, 8) + 1, whole - sum + 1, 1e-9);
        sum += kn_cost_shared(&work, &shape, &p, &link, 8);
    }
    near(sum, whole, 1e-12);
    assert_true(kn_cost_shared_frames(&work, &shape, &p, &link, 8) == 0);
    p.decoded = 0;
    near(kn_cost_shared_frames(&work, &shape, &p, &link, 1), work.decode_first + 3 * work.decode, 1e-12);
    kn_cost_fit one, eight;
    kn_cost_seed(&one, &wan, &seed, KN_STAGE_DECODE, 1);
    kn_cost_seed(&eight, &wan, &seed, KN_STAGE_DECODE, 8);
    near(eight.fixed - one.fixed, 12000.0 * 216, 1e-9);
    assert_true(eight.rate == one.rate);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts_groups),
        cmocka_unit_test(counts_shared_decoding),
        cmocka_unit_test(counts_flop),
        cmocka_unit_test(adds_up_what_remains),
        cmocka_unit_test(fits_what_is_measured),
        cmocka_unit_test(scales_as_a_whole),
        cmocka_unit_test(survives_hiccups),
        cmocka_unit_test(follows_a_lasting_change),
        cmocka_unit_test(never_predicts_nonsense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

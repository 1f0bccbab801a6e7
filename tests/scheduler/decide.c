/* SPDX-License-Identifier: Apache-2.0
 *
 * Packs, memory, models, residents: what an assignment holds. */
#include "tests/scheduler/harness.h"

static const kn_job_terms plain = {.priority = KN_PRIORITY_DEFAULT};

static void admit_many(harness *h, uint64_t first, int32_t count, int32_t steps)
{
    for (int32_t i = 0; i < count; i++) {
        const kn_job_shape shape = plain_shape(steps + i % 3); /* of different lengths */
        assert_int_equal(harness_admit(h, first + (uint64_t)i, &shape, plain), KN_OK);
    }
}

/* Where the fixed cost is all there is, everything runs in one pack: texts, then steps. */
static void packs_small_jobs(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){0});
    harness_up(&h, 0, 4000 * MIB, 10);
    admit_many(&h, 0, 6, 4);
    assert_int_equal(harness_decide(&h), 1);
    assert_int_equal(h.slices[0].stage, KN_STAGE_TEXT);
    assert_int_equal(h.slices[0].count, 6);
    assert_int_equal(h.slices[0].start_mask, 0x3f);
    assert_true(harness_end(&h));
    assert_int_equal(harness_decide(&h), 1);
    assert_int_equal(h.slices[0].stage, KN_STAGE_DENOISE);
    assert_int_equal(h.slices[0].count, 6);
    assert_int_equal(h.slices[0].start_mask, 0);
    harness_run(&h, INT64_MAX);
    assert_int_equal(h.done, 6);
    kn_device_stats stats;
    assert_int_equal(kn_scheduler_read_device(h.s, 0, &stats), KN_OK);
    assert_int_equal(stats.memory_used, 100 * MIB); /* the model */
    assert_true(stats.slices < 6 * 3);              /* alone they would take 6 x 8 */
    kn_scheduler_destroy(&h.s);
}

/* A job that comes while others denoise gets its text between two of their steps and joins. */
static void batches_continuously(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){0});
    harness_up(&h, 0, 4000 * MIB, 10);
    admit_many(&h, 0, 1, 50);
    harness_run(&h, 200 * MS);
    assert_int_equal(h.slices[0].stage, KN_STAGE_DENOISE);
    admit_many(&h, 1, 1, 20);
    assert_true(harness_end(&h));
    assert_int_equal(harness_decide(&h), 1);
    assert_int_equal(h.slices[0].stage, KN_STAGE_TEXT);
    assert_true(harness_runs(&h, 0, 1));
    assert_true(harness_end(&h));
    assert_int_equal(harness_decide(&h), 1);
    assert_int_equal(h.slices[0].count, 2); /* at different timesteps */
    harness_run(&h, INT64_MAX);
    assert_int_equal(h.done, 2);
    kn_scheduler_destroy(&h.s);
}

static void bounds_packs(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){.pack = 4});
    harness_up(&h, 0, 4000 * MIB, 10);
    admit_many(&h, 0, 9, 6);
    int32_t most = 0;
    do {
        harness_decide(&h);
        if (h.slices[0].count > most) most = h.slices[0].count;
    } while (harness_end(&h));
    assert_int_equal(most, 4);
    assert_int_equal(h.done, 9);
    kn_scheduler_destroy(&h.s);
}

/* Where a step's own work is far above the fixed cost, a pack would only make both wait. */
static void leaves_large_jobs_alone(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){0});
    harness_up(&h, 0, 4000 * MIB, 10);
    const kn_job_shape shape = heavy_shape(5, 1000);
    for (uint64_t key = 0; key < 4; key++) assert_int_equal(harness_admit(&h, key, &shape, plain), KN_OK);
    do {
        harness_decide(&h);
        if (h.slices[0].stage == KN_STAGE_DENOISE) assert_int_equal(h.slices[0].count, 1);
    } while (harness_end(&h));
    assert_int_equal(h.done, 4);
    assert_true(h.done_ns[0] < h.done_ns[1] && h.done_ns[1] < h.done_ns[2]); /* one after the other */
    kn_scheduler_destroy(&h.s);
}

/* 100 of model, then 30 for each job in the pack: three fit into 195, two into 189. */
static void packs_within_memory(void **state)
{
    (void)state;
    for (int32_t three = 0; three < 2; three++) {
        harness h;
        harness_open(&h, &(kn_scheduler_params){0});
        harness_up(&h, 0, three ? 190 * MIB : 189 * MIB, 10);
        admit_many(&h, 0, 3, 4);
        assert_int_equal(harness_decide(&h), 1);
        assert_int_equal(h.slices[0].count, three ? 3 : 2);
        harness_run(&h, INT64_MAX);
        assert_int_equal(h.done, 3);
        kn_scheduler_destroy(&h.s);
    }
}

/* Room for one: the urgent job makes the other leave, which later continues where it was, text first. */
static void releases_and_resumes(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){0});
    harness_up(&h, 0, 155 * MIB, 10);
    const kn_job_shape shape = heavy_shape(20, 100);
    assert_int_equal(harness_admit(&h, 1, &shape, plain), KN_OK);
    harness_run(&h, 500 * MS);
    const int32_t step = h.progress[1].step;
    assert_true(step >= 3);
    assert_int_equal(harness_admit(&h, 2, &shape, (kn_job_terms){.priority = KN_PRIORITY_URGENT}), KN_OK);
    assert_true(harness_end(&h));
    assert_int_equal(harness_decide(&h), 1);
    assert_true(harness_runs(&h, 0, 2));
    harness_run(&h, INT64_MAX);
    assert_int_equal(h.done, 2);
    assert_true(h.done_ns[2] < h.done_ns[1]);
    kn_scheduler_stats stats;
    kn_scheduler_read_stats(h.s, &stats);
    assert_in_range(stats.releases, 1, 2);
    assert_int_equal(stats.backlog_ns, 0);
    kn_scheduler_destroy(&h.s);
}

/* With room for both, the first only pauses: no release, no second text. */
static void preempts_with_latents_kept(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){0});
    harness_up(&h, 0, 1000 * MIB, 10);
    const kn_job_shape shape = heavy_shape(20, 100);
    assert_int_equal(harness_admit(&h, 1, &shape, plain), KN_OK);
    harness_run(&h, 500 * MS);
    assert_int_equal(harness_admit(&h, 2, &shape, (kn_job_terms){.priority = KN_PRIORITY_URGENT}), KN_OK);
    int32_t texts = 0;
    do {
        harness_decide(&h);
        texts += h.ends_ns[0] > 0 && h.slices[0].stage == KN_STAGE_TEXT;
        assert_int_equal(h.slices[0].release_count, 0);
    } while (harness_end(&h));
    assert_int_equal(texts, 1); /* of the second job; the first had its own before */
    assert_true(h.done_ns[2] < h.done_ns[1]);
    kn_scheduler_stats stats;
    kn_scheduler_read_stats(h.s, &stats);
    assert_true(stats.preemptions >= 1);
    kn_scheduler_destroy(&h.s);
}

/* Decoding of one goes on between and after the denoise steps of another; its decoder stays. */
static void decode_overlaps_denoise(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){0});
    harness_up(&h, 0, 1000 * MIB, 10);
    kn_job_shape shape = heavy_shape(2, 100);
    shape.latent_frames = 30;
    assert_int_equal(harness_admit(&h, 1, &shape, plain), KN_OK);
    while (h.progress[1].decoded < 3) {
        harness_decide(&h);
        assert_true(harness_end(&h));
    }
    shape = heavy_shape(3, 100);
    const kn_job_terms soon = {.priority = KN_PRIORITY_DEFAULT, .deadline_ns = h.now_ns + 500 * MS};
    assert_int_equal(harness_admit(&h, 2, &shape, soon), KN_OK);
    assert_int_equal(harness_decide(&h), 1);
    assert_true(harness_runs(&h, 0, 2));
    kn_device_stats stats;
    assert_int_equal(kn_scheduler_read_device(h.s, 0, &stats), KN_OK);
    assert_int_equal(stats.memory_used, (100 + 10 + 40 + 10) * MIB); /* model, first with decoder, second */
    harness_run(&h, INT64_MAX);
    assert_int_equal(h.done, 2);
    assert_true(h.done_ns[2] < h.done_ns[1] && h.done_ns[2] <= soon.deadline_ns);
    kn_scheduler_destroy(&h.s);
}

/* Two models of 100, memory for one and a job. */
static void loads_and_unloads_models(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){0});
    harness_up(&h, 0, 180 * MIB, 10);
    kn_job_shape shape = plain_shape(3);
    assert_int_equal(harness_admit(&h, 1, &shape, plain), KN_OK);
    shape.model = 1;
    assert_int_equal(harness_admit(&h, 2, &shape, plain), KN_OK);
    harness_run(&h, 20 * MS);
    assert_false(h.slices[0].load_model);
    while (!harness_runs(&h, 0, 2)) {
        assert_true(harness_end(&h));
        harness_decide(&h);
    }
    assert_true(h.slices[0].load_model);
    assert_int_equal(h.slices[0].unload_models, 1);
    const kn_change loaded = {.kind = KN_CHANGE_MODEL_LOADED, .device = {.index = 0, .models = 2, .load_ns = SECOND}};
    assert_int_equal(harness_tell(&h, &loaded), KN_OK);
    harness_run(&h, INT64_MAX);
    assert_int_equal(h.done, 2);
    kn_scheduler_destroy(&h.s);
}

/* More jobs than may reside: started in the order of arrival, never more than the limit at a time. */
static void bounds_residents(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){0});
    harness_up(&h, 0, 100000 * MIB, 10);
    admit_many(&h, 0, 3 * KN_SCHEDULER_RESIDENTS_MAX, 4);
    kn_device_stats stats;
    do {
        harness_decide(&h);
        assert_int_equal(kn_scheduler_read_device(h.s, 0, &stats), KN_OK);
        assert_true(stats.residents <= KN_SCHEDULER_RESIDENTS_MAX);
    } while (harness_end(&h));
    assert_int_equal(h.done, 3 * KN_SCHEDULER_RESIDENTS_MAX);
    kn_scheduler_destroy(&h.s);
}

/* Cancelled in a slice, between slices, and on a device that then has nothing to do. */
static void forgets_removed_jobs(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){0});
    harness_up(&h, 0, 1000 * MIB, 10);
    admit_many(&h, 1, 3, 50);
    harness_run(&h, 100 * MS);
    kn_change gone = {.kind = KN_CHANGE_JOB_REMOVED, .job = {.key = 1}};
    assert_int_equal(harness_tell(&h, &gone), KN_OK); /* its slice runs */
    int32_t device;
    uint64_t keys[4];
    assert_int_equal(kn_scheduler_orphans(h.s, &device, keys, 4), 0);
    assert_true(harness_end(&h));
    gone.job.key = 2;
    assert_int_equal(harness_tell(&h, &gone), KN_OK); /* between slices */
    assert_int_equal(harness_decide(&h), 1);
    assert_int_equal(h.slices[0].count, 1);
    assert_int_equal(h.slices[0].release_count, 2);
    assert_int_equal(h.slices[0].release[0] + h.slices[0].release[1], 3);
    assert_true(harness_end(&h));
    gone.job.key = 3;
    assert_int_equal(harness_tell(&h, &gone), KN_OK);
    assert_int_equal(harness_decide(&h), 0);
    assert_int_equal(kn_scheduler_orphans(h.s, &device, keys, 4), 1);
    assert_int_equal(device, 0);
    assert_int_equal(keys[0], 3);
    assert_int_equal(kn_scheduler_orphans(h.s, &device, keys, 4), 0);
    kn_device_stats stats;
    assert_int_equal(kn_scheduler_read_device(h.s, 0, &stats), KN_OK);
    assert_int_equal(stats.memory_used, 100 * MIB);
    kn_scheduler_destroy(&h.s);
}

/* A dead device's job goes on elsewhere, from its checkpoint and with its text again. */
static void survives_a_device(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){0});
    harness_up(&h, 0, 1000 * MIB, 10);
    admit_many(&h, 1, 1, 30);
    harness_run(&h, 105 * MS);
    const int32_t saved = h.progress[1].step;
    assert_true(saved > 5);
    const kn_change down = {.kind = KN_CHANGE_DEVICE_DOWN, .device = {.index = 0}};
    assert_int_equal(harness_tell(&h, &down), KN_OK);
    h.ends_ns[0] = 0;
    assert_int_equal(harness_decide(&h), 0);
    kn_estimate estimate;
    assert_int_equal(kn_scheduler_estimate(h.s, 1, h.now_ns, &estimate), KN_UNAVAILABLE);
    harness_up(&h, 1, 1000 * MIB, 10);
    assert_int_equal(harness_decide(&h), 1);
    assert_int_equal(h.slices[1].stage, KN_STAGE_TEXT);
    assert_int_equal(h.slices[1].start_mask, 1);
    h.progress[1] = (kn_job_progress){.step = saved};
    harness_run(&h, INT64_MAX);
    assert_int_equal(h.done, 1);
    kn_scheduler_stats stats;
    kn_scheduler_read_stats(h.s, &stats);
    assert_int_equal(stats.moves, 1);
    kn_scheduler_destroy(&h.s);
}

static void repeats_a_failed_slice(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){0});
    harness_up(&h, 0, 1000 * MIB, 10);
    admit_many(&h, 1, 1, 10);
    harness_run(&h, 55 * MS);
    const kn_slice_job end = {1, {.step = 2}, 2}; /* its checkpoint was at step 2 */
    const kn_change failed = {.kind = KN_CHANGE_SLICE_FAILED, .slice = {0, 0, 1, &end}};
    assert_int_equal(harness_tell(&h, &failed), KN_OK);
    h.ends_ns[0] = 0;
    h.progress[1] = end.progress;
    assert_int_equal(harness_decide(&h), 1);
    assert_int_equal(h.slices[0].stage, KN_STAGE_TEXT);
    assert_int_equal(h.slices[0].start_mask, 1);
    harness_run(&h, INT64_MAX);
    assert_int_equal(h.done, 1);
    kn_scheduler_destroy(&h.s);
}

/* A resumed job whose steps are all done decodes at once: that needs no text. */
static void resumes_behind_the_last_step(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){0});
    harness_up(&h, 0, 1000 * MIB, 10);
    h.shapes[1] = plain_shape(10);
    h.progress[1] = (kn_job_progress){.step = 10};
    const kn_change change = {
        .kind = KN_CHANGE_JOB_ADMITTED,
        .job = {.key = 1, .shape = h.shapes[1], .terms = {.tenant_weight = 1}, .progress = h.progress[1]}};
    assert_int_equal(harness_tell(&h, &change), KN_OK);
    assert_int_equal(harness_decide(&h), 1);
    assert_int_equal(h.slices[0].stage, KN_STAGE_DECODE);
    harness_run(&h, INT64_MAX);
    assert_int_equal(h.done, 1);
    kn_scheduler_destroy(&h.s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packs_small_jobs),
        cmocka_unit_test(batches_continuously),
        cmocka_unit_test(bounds_packs),
        cmocka_unit_test(leaves_large_jobs_alone),
        cmocka_unit_test(packs_within_memory),
        cmocka_unit_test(releases_and_resumes),
        cmocka_unit_test(preempts_with_latents_kept),
        cmocka_unit_test(decode_overlaps_denoise),
        cmocka_unit_test(loads_and_unloads_models),
        cmocka_unit_test(bounds_residents),
        cmocka_unit_test(forgets_removed_jobs),
        cmocka_unit_test(survives_a_device),
        cmocka_unit_test(repeats_a_failed_slice),
        cmocka_unit_test(resumes_behind_the_last_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The contract's edges: limits at n and n + 1, changes that contradict it, names, memory that runs out, many keys. */
#include "tests/scheduler/harness.h"

static void has_names(void **state)
{
    (void)state;
    assert_string_equal(kn_priority_name(KN_PRIORITY_URGENT), "priority");
    assert_string_equal(kn_priority_name((kn_priority)99), "unknown");
    assert_string_equal(kn_policy_name(KN_POLICY_EDF_STEP), "edf-step");
    assert_string_equal(kn_policy_name(KN_POLICIES), "unknown");
    assert_string_equal(kn_stage_name(KN_STAGE_TEXT), "text");
    assert_string_equal(kn_stage_name(KN_STAGE_DONE), "done");
    assert_string_equal(kn_verdict_name(KN_VERDICT_DEADLINE), "deadline");
    assert_string_equal(kn_verdict_name(KN_VERDICT_DRAINING), "draining");
}

static void refuse_params(const kn_scheduler_params *params, const char *field)
{
    kn_scheduler *s = NULL;
    assert_int_equal(kn_scheduler_create(&s, params), KN_INVALID);
    assert_null(s);
    if (!strstr(kn_fail_message(), field)) fail_msg("\"%s\" does not name %s", kn_fail_message(), field);
}

static void checks_params(void **state)
{
    (void)state;
    kn_scheduler *s = NULL;
    refuse_params(&(kn_scheduler_params){.jobs = KN_SCHEDULER_JOBS_MAX + 1}, "jobs");
    refuse_params(&(kn_scheduler_params){.jobs = -1}, "jobs");
    refuse_params(&(kn_scheduler_params){.tenants = KN_SCHEDULER_TENANTS_MAX + 1}, "tenants");
    refuse_params(&(kn_scheduler_params){.pack = KN_SCHEDULER_PACK_MAX + 1}, "pack");
    refuse_params(&(kn_scheduler_params){.ageing_ns = -1}, "ageing_ns");
    refuse_params(&(kn_scheduler_params){.fair_quantum_ns = -1}, "fair_quantum_ns");
    refuse_params(&(kn_scheduler_params){.admission_margin = 101}, "admission_margin");
    refuse_params(&(kn_scheduler_params){.policy = KN_POLICIES}, "policy");
    const kn_scheduler_params largest = {
        .jobs = KN_SCHEDULER_JOBS_MAX, .tenants = KN_SCHEDULER_TENANTS_MAX, .pack = KN_SCHEDULER_PACK_MAX};
    assert_int_equal(kn_scheduler_create(&s, &largest), KN_OK);
    kn_scheduler_destroy(&s);
    assert_null(s);
    kn_scheduler_destroy(&s);
}

static void survives_lack_of_memory(void **state)
{
    (void)state;
    const uint64_t held = kn_mem_read().bytes;
    uint64_t n = 0;
    kn_scheduler *s = NULL;
    kn_status st;
    do {
        kn_mem_fail_at(++n);
        st = kn_scheduler_create(&s, &(kn_scheduler_params){.jobs = 10, .tenants = 2});
        kn_mem_fail_at(0);
        assert_true(st == KN_OK || st == KN_NOMEM);
    } while (st != KN_OK);
    assert_int_equal(n, 8); /* seven allocations, each refused once */
    kn_scheduler_destroy(&s);
    assert_int_equal(kn_mem_read().bytes, held);
}

/* One refused change for each field; none may leave a trace. */
static void refuses_bad_jobs(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){.jobs = 10, .tenants = 2});
    const kn_change good = {.kind = KN_CHANGE_JOB_ADMITTED,
                            .job = {.key = 1, .shape = plain_shape(4), .terms = {.tenant_weight = 1}}};
    kn_change bad[19];
    for (size_t i = 0; i < 19; i++) bad[i] = good;
    bad[0].job.shape.model = 2; /* not declared */
    bad[1].job.shape.model = KN_SCHEDULER_MODELS_MAX;
    bad[2].job.shape.tokens = 0;
    bad[3].job.shape.sequences = 3;
    bad[4].job.shape.text_tokens = -1;
    bad[5].job.shape.steps = KN_SCHEDULER_STEPS_MAX + 1;
    bad[6].job.shape.steps = 0;
    bad[7].job.shape.latent_frames = 0;
    bad[8].job.shape.pixels = 0;
    bad[9].job.shape.state_bytes = (uint64_t)KN_SCHEDULER_BYTES_MAX + 1;
    bad[10].job.shape.decoder_bytes = UINT64_MAX;
    bad[11].job.terms.priority = KN_PRIORITIES;
    bad[12].job.terms.tenant = 2;
    bad[13].job.terms.tenant_weight = 1001;
    bad[14].job.terms.tenant_weight = 0;
    bad[15].job.terms.deadline_ns = KN_SCHEDULER_TIME_MAX + 1;
    bad[16].job.progress.step = 5;
    bad[17].job.progress.done = true;
    bad[18].job.progress.decoded = 1; /* before its last step */
    for (size_t i = 0; i < 19; i++) {
        if (harness_tell(&h, &bad[i]) != KN_INVALID) fail_msg("bad change %d was taken", (int)i);
        assert_int_not_equal(kn_fail_message()[0], '\0');
    }
    kn_scheduler_stats stats;
    kn_scheduler_read_stats(h.s, &stats);
    assert_int_equal(stats.queued[0] + stats.queued[1] + stats.queued[2], 0);
    assert_int_equal(stats.backlog_ns, 0);
    assert_int_equal(harness_tell(&h, &good), KN_OK);
    assert_int_equal(harness_tell(&h, &good), KN_INVALID); /* twice */
    kn_scheduler_destroy(&h.s);
}

static void bounds_the_queue(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){.jobs = 3});
    const kn_job_shape shape = plain_shape(2);
    for (uint64_t key = 0; key < 3; key++) assert_int_equal(harness_admit(&h, key, &shape, (kn_job_terms){0}), KN_OK);
    assert_int_equal(harness_admit(&h, 3, &shape, (kn_job_terms){0}), KN_UNAVAILABLE);
    const kn_change gone = {.kind = KN_CHANGE_JOB_REMOVED, .job = {.key = 1}};
    assert_int_equal(harness_tell(&h, &gone), KN_OK);
    assert_int_equal(harness_tell(&h, &gone), KN_NOT_FOUND);
    assert_int_equal(harness_admit(&h, 3, &shape, (kn_job_terms){0}), KN_OK);
    kn_scheduler_destroy(&h.s);
}

static void refuses_bad_devices_and_slices(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){0});
    kn_change up = device_change(KN_SCHEDULER_DEVICES_MAX, 1000 * MIB, 1, 10);
    assert_int_equal(harness_tell(&h, &up), KN_INVALID);
    up = device_change(0, 50 * MIB, 1, 10); /* the model alone is larger */
    assert_int_equal(harness_tell(&h, &up), KN_INVALID);
    up = device_change(0, 1000 * MIB, 1, 10);
    up.device.seed.flop_per_second = 0;
    assert_int_equal(harness_tell(&h, &up), KN_INVALID);
    up = device_change(KN_SCHEDULER_DEVICES_MAX - 1, 1000 * MIB, 1, 10);
    assert_int_equal(harness_tell(&h, &up), KN_OK);
    const kn_change down = {.kind = KN_CHANGE_DEVICE_DOWN, .device = {.index = KN_SCHEDULER_DEVICES_MAX - 1}};
    assert_int_equal(harness_tell(&h, &down), KN_OK);
    assert_int_equal(harness_tell(&h, &down), KN_NOT_FOUND);

    harness_up(&h, 0, 1000 * MIB, 10);
    const kn_job_shape shape = plain_shape(2);
    assert_int_equal(harness_admit(&h, 5, &shape, (kn_job_terms){0}), KN_OK);
    kn_slice_job end = {5, {.text = true}, 0};
    kn_change done = {.kind = KN_CHANGE_SLICE_DONE, .slice = {0, MS, 1, &end}};
    assert_int_equal(harness_tell(&h, &done), KN_NOT_FOUND); /* nothing runs */
    assert_int_equal(harness_decide(&h), 1);
    assert_int_equal(harness_decide(&h), 0);
    done.slice.count = 2;
    assert_int_equal(harness_tell(&h, &done), KN_INVALID);
    done.slice.count = 1;
    end.key = 6;
    assert_int_equal(harness_tell(&h, &done), KN_INVALID);
    end.key = 5;
    end.progress.step = 3;
    assert_int_equal(harness_tell(&h, &done), KN_INVALID);
    end.progress.step = 0;
    h.now_ns += SECOND;
    assert_int_equal(harness_tell(&h, &done), KN_OK);
    h.now_ns -= 1;
    assert_int_equal(harness_tell(&h, &up), KN_INVALID); /* time went back */
    kn_device_stats stats;
    assert_int_equal(kn_scheduler_read_device(h.s, 1, &stats), KN_INVALID);
    assert_int_equal(kn_scheduler_read_device(h.s, 0, &stats), KN_OK);
    assert_int_equal(stats.busy_ns, MS);
    assert_int_equal(stats.residents, 1);
    kn_scheduler_destroy(&h.s);
}

/* Jobs that could not be started, or were cancelled before their slice began: the others go on, the device is free
 * again, and nobody is lost. */
static void jobs_drop_out_of_a_slice(void **state)
{
    (void)state;
    harness h;
    kn_device_stats device;
    kn_scheduler_stats stats;
    harness_open(&h, &(kn_scheduler_params){0});
    harness_up(&h, 0, 1000 * MIB, 10);
    const kn_job_shape shape = plain_shape(2);
    for (uint64_t key = 1; key <= 4; key++) assert_int_equal(harness_admit(&h, key, &shape, (kn_job_terms){0}), KN_OK);
    assert_int_equal(harness_decide(&h), 1);
    assert_int_equal(h.slices[0].count, 4);
    const kn_change released = {.kind = KN_CHANGE_JOB_RELEASED, .job = {.key = 1}};
    assert_int_equal(harness_tell(&h, &released), KN_OK);
    const kn_change removed = {.kind = KN_CHANGE_JOB_REMOVED, .job = {.key = 2}};
    assert_int_equal(harness_tell(&h, &removed), KN_OK);
    const kn_slice_job ran = {3, {.text = true}, 0};
    const kn_change done = {.kind = KN_CHANGE_SLICE_DONE, .slice = {0, MS, 1, &ran}};
    assert_int_equal(harness_tell(&h, &done), KN_OK); /* 4 is not named */
    assert_int_equal(kn_scheduler_read_device(h.s, 0, &device), KN_OK);
    assert_int_equal(device.residents, 1);
    kn_scheduler_read_stats(h.s, &stats);
    assert_int_equal(stats.queued[0] + stats.queued[1] + stats.queued[2], 2);

    h.ends_ns[0] = 0;
    assert_int_equal(harness_decide(&h), 1);
    bool third = false; /* may be in it; else it stays where it is */
    for (int32_t i = 0; i < h.slices[0].count; i++) third |= h.slices[0].jobs[i] == 3;
    const kn_change nobody = {.kind = KN_CHANGE_SLICE_FAILED, .slice = {.device = 0}};
    assert_int_equal(harness_tell(&h, &nobody), KN_OK);
    assert_int_equal(kn_scheduler_read_device(h.s, 0, &device), KN_OK);
    assert_int_equal(device.residents, third ? 0 : 1);
    h.ends_ns[0] = 0;
    assert_int_equal(harness_decide(&h), 1);
    kn_scheduler_destroy(&h.s);
}

static void checks_models(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){0});
    kn_cost_model model = plain_model(MIB);
    assert_int_equal(kn_scheduler_set_model(h.s, KN_SCHEDULER_MODELS_MAX, &model), KN_INVALID);
    assert_int_equal(kn_scheduler_set_model(h.s, KN_SCHEDULER_MODELS_MAX - 1, &model), KN_OK);
    model.layers = 0;
    assert_int_equal(kn_scheduler_set_model(h.s, 0, &model), KN_INVALID);
    model = plain_model((uint64_t)KN_SCHEDULER_BYTES_MAX + 1);
    assert_int_equal(kn_scheduler_set_model(h.s, 0, &model), KN_INVALID);
    const kn_job_shape shape = plain_shape(1);
    assert_int_equal(harness_admit(&h, 1, &shape, (kn_job_terms){0}), KN_OK);
    model = plain_model(MIB);
    assert_int_equal(kn_scheduler_set_model(h.s, 0, &model), KN_INVALID); /* it has a job */
    kn_scheduler_destroy(&h.s);
}

/* Draining: what runs finishes, nothing starts; then it goes on as if nothing had been. */
static void drains(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(kn_scheduler_params){0});
    harness_up(&h, 0, 1000 * MIB, 10);
    const kn_job_shape shape = plain_shape(3);
    assert_int_equal(harness_admit(&h, 1, &shape, (kn_job_terms){0}), KN_OK);
    assert_int_equal(harness_decide(&h), 1);
    kn_change drain = {.kind = KN_CHANGE_DRAIN, .drain = true};
    assert_int_equal(harness_tell(&h, &drain), KN_OK);
    assert_true(harness_end(&h));
    assert_int_equal(harness_decide(&h), 0);
    kn_admission admission;
    const kn_job_terms terms = {.tenant_weight = 1};
    assert_int_equal(kn_scheduler_admission(h.s, &shape, &terms, h.now_ns, &admission), KN_OK);
    assert_int_equal(admission.verdict, KN_VERDICT_DRAINING);
    drain.drain = false;
    assert_int_equal(harness_tell(&h, &drain), KN_OK);
    harness_run(&h, INT64_MAX);
    assert_int_equal(h.done, 1);
    kn_scheduler_destroy(&h.s);
}

/* Keys that come and go in a full table, with equal low and equal high bits. */
static void finds_every_key(void **state)
{
    (void)state;
    enum { COUNT = 500, CHANGES = 20000 };
    harness h;
    bool there[2 * COUNT] = {false};
    int32_t count = 0;
    uint64_t random = 1;
    kn_estimate estimate;
    harness_open(&h, &(kn_scheduler_params){.jobs = COUNT});
    kn_change change = {.job = {.shape = plain_shape(1), .terms = {.tenant_weight = 1}}};
    for (int32_t n = 0; n < CHANGES; n++) {
        random = random * UINT64_C(6364136223846793005) + 1442695040888963407;
        const uint64_t i = (random >> 33) % (2 * COUNT);
        change.job.key = i % 2 ? i << 40 : i;
        change.kind = there[i] ? KN_CHANGE_JOB_REMOVED : KN_CHANGE_JOB_ADMITTED;
        const kn_status expected = !there[i] && count == COUNT ? KN_UNAVAILABLE : KN_OK;
        assert_int_equal(harness_tell(&h, &change), expected);
        if (expected != KN_OK) continue;
        there[i] = !there[i];
        count += there[i] ? 1 : -1;
        if (n % 100) continue;
        for (uint64_t k = 0; k < 2 * COUNT; k++)
            assert_int_equal(kn_scheduler_estimate(h.s, k % 2 ? k << 40 : k, h.now_ns, &estimate),
                             there[k] ? KN_UNAVAILABLE : KN_NOT_FOUND); /* unavailable: no device is up */
    }
    kn_scheduler_destroy(&h.s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(has_names),
        cmocka_unit_test(checks_params),
        cmocka_unit_test(survives_lack_of_memory),
        cmocka_unit_test(refuses_bad_jobs),
        cmocka_unit_test(bounds_the_queue),
        cmocka_unit_test(refuses_bad_devices_and_slices),
        cmocka_unit_test(jobs_drop_out_of_a_slice),
        cmocka_unit_test(checks_models),
        cmocka_unit_test(drains),
        cmocka_unit_test(finds_every_key),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

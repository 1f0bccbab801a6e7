/* SPDX-License-Identifier: Apache-2.0
 *
 * Groups: who gets how many devices, who can help, what a death in a group means, and what groups cost. */
#include "tests/scheduler/harness.h"

enum { MODEL = 2, DEVICES = 8, TOKENS = 1024, STEPS = 10 };

/* 8 heads; a denoise slice of TOKENS rows is a third of a second of work on one device. */
static const kn_cost_model wide = {.layers = 10,
                                   .width = 1024,
                                   .ffn = 4096,
                                   .heads_width = 1024,
                                   .frames_per_latent = 1,
                                   .text_flop_per_token = 1,
                                   .decode_flop = 1,
                                   .resident_bytes = 100 * MIB};

static kn_change group_device(int32_t index, int32_t domain)
{
    kn_change up = device_change(index, 1000 * MIB, 1u << MODEL, 1);
    up.device.domain = domain;
    return up;
}

static void open_group(harness *h, const kn_scheduler_params *params, int32_t devices, int32_t domain)
{
    harness_open(h, params);
    assert_int_equal(kn_scheduler_set_model(h->s, MODEL, &wide), KN_OK);
    for (int32_t i = 0; i < devices; i++) {
        const kn_change up = group_device(i, domain);
        assert_int_equal(harness_tell(h, &up), KN_OK);
    }
}

static kn_job_shape wide_shape(void)
{
    kn_job_shape shape = plain_shape(STEPS);
    shape.model = MODEL;
    shape.tokens = TOKENS;
    return shape;
}

static void admit_wide(harness *h, uint64_t key, int64_t within_ns)
{
    const kn_job_shape shape = wide_shape();
    const kn_job_terms terms = {.deadline_ns = within_ns > 0 ? h->now_ns + within_ns : KN_SCHEDULER_NO_DEADLINE,
                                .priority = KN_PRIORITY_DEFAULT};
    assert_int_equal(harness_admit(h, key, &shape, terms), KN_OK);
}

/* Runs slices until one of this kind has been started for the job; returns it. */
static const kn_assignment *run_to(harness *h, uint64_t key, kn_stage stage)
{
    for (int32_t n = 0; n < 1000; n++) {
        harness_decide(h);
        for (int32_t d = 0; d < HARNESS_DEVICES; d++)
            if (harness_runs(h, d, key) && h->slices[d].stage == stage) return &h->slices[d];
        if (!harness_end(h)) break;
    }
    fail_msg("job %d never ran %s", (int)key, kn_stage_name(stage));
    return NULL;
}

static void lone_job_gets_all_devices(void **state)
{
    (void)state;
    harness h;
    open_group(&h, &(kn_scheduler_params){0}, DEVICES, 1);
    admit_wide(&h, 1, 0);
    assert_int_equal(run_to(&h, 1, KN_STAGE_TEXT)->degree, 1);
    const kn_assignment *a = run_to(&h, 1, KN_STAGE_DENOISE);
    assert_int_equal(a->degree, DEVICES);
    assert_int_equal(a->members[0], a->device);
    uint32_t seen = 0;
    for (int32_t i = 0; i < a->degree; i++) seen |= 1u << a->members[i];
    assert_int_equal(seen, 0xff);
    assert_true(a->expected_ns > 30 * MS && a->expected_ns < 60 * MS); /* of 345 ms alone */
    kn_scheduler_stats stats;
    kn_scheduler_read_stats(h.s, &stats);
    assert_int_equal(stats.by_degree[0], 1);
    assert_int_equal(stats.by_degree[7], 1);
    assert_int_equal(run_to(&h, 1, KN_STAGE_DECODE)->degree, 1);
    harness_run(&h, 100 * SECOND);
    assert_int_equal(h.done, 1);
    kn_scheduler_destroy(&h.s);
}

static void no_groups_without_a_domain(void **state)
{
    (void)state;
    static const struct {
        kn_scheduler_params params;
        int32_t domain;
    } cases[] = {{{0}, 0}, {{.degree_max = 1}, 1}, {{.policy = KN_POLICY_FIFO}, 1}, {{.degree_fixed = 1}, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        harness h;
        open_group(&h, &cases[i].params, DEVICES, cases[i].domain);
        admit_wide(&h, 1, 0);
        assert_int_equal(run_to(&h, 1, KN_STAGE_DENOISE)->degree, 1);
        kn_scheduler_destroy(&h.s);
    }
}

static void domains_and_limits_bound_a_group(void **state)
{
    (void)state;
    harness h;
    open_group(&h, &(kn_scheduler_params){0}, 3, 1);
    for (int32_t i = 3; i < DEVICES; i++) {
        const kn_change up = group_device(i, 2);
        assert_int_equal(harness_tell(&h, &up), KN_OK);
    }
    admit_wide(&h, 1, 0);
    const kn_assignment *a = run_to(&h, 1, KN_STAGE_DENOISE);
    assert_int_equal(a->degree, a->device < 3 ? 3 : 5);
    for (int32_t i = 0; i < a->degree; i++) assert_int_equal(a->members[i] < 3, a->device < 3);
    kn_scheduler_destroy(&h.s);

    open_group(&h, &(kn_scheduler_params){.degree_max = 4}, DEVICES, 1);
    admit_wide(&h, 1, 0);
    assert_int_equal(run_to(&h, 1, KN_STAGE_DENOISE)->degree, 4);
    kn_scheduler_destroy(&h.s);
}

/* Two fast devices and six slow ones in one domain are two pools: groups are of one kind, and nobody counts on others.
 */
static void kinds_are_counted_apart(void **state)
{
    (void)state;
    enum { FAST = 2 };
    harness h;
    for (int32_t fixed = 0; fixed <= 4; fixed += 4) {
        open_group(&h, &(kn_scheduler_params){.degree_fixed = fixed}, FAST, 1);
        for (int32_t i = FAST; i < DEVICES; i++) {
            kn_change up = group_device(i, 1);
            up.device.seed.flop_per_second /= 100;
            assert_int_equal(harness_tell(&h, &up), KN_OK);
        }
        const kn_job_shape shape = wide_shape();
        const kn_job_terms terms = {.tenant_weight = 1, .deadline_ns = h.now_ns + 1200 * MS, .promised = true};
        kn_admission answer; /* 3.5 s on one fast device, 1.8 on two */
        assert_int_equal(kn_scheduler_admission(h.s, &shape, &terms, h.now_ns, &answer), KN_OK);
        assert_int_equal(answer.verdict, KN_VERDICT_DEADLINE);
        admit_wide(&h, 1, 0);
        admit_wide(&h, 2, 0);
        for (uint64_t key = 1; key <= 2; key++) {
            const kn_assignment *a = run_to(&h, key, KN_STAGE_DENOISE);
            if (fixed > 0) assert_int_equal(a->device, 4); /* 0 .. 3 are of two kinds, and no group */
            for (int32_t i = 0; i < a->degree; i++) assert_int_equal(a->members[i] < FAST, a->device < FAST);
            assert_true(a->degree <= (a->device < FAST ? FAST : DEVICES - FAST));
        }
        kn_scheduler_destroy(&h.s);
    }
}

/* Two devices each and all are in time; one each and none is, four each and two are. */
static void deadlines_choose_the_degree(void **state)
{
    (void)state;
    harness h;
    open_group(&h, &(kn_scheduler_params){0}, DEVICES, 1);
    for (uint64_t key = 1; key <= 4; key++) admit_wide(&h, key, 2300 * MS);
    harness_run(&h, 100 * SECOND);
    for (uint64_t key = 1; key <= 4; key++) assert_true(h.done_ns[key] > 0 && h.done_ns[key] <= 2300 * MS);
    kn_scheduler_destroy(&h.s);

    open_group(&h, &(kn_scheduler_params){.degree_max = 1}, DEVICES, 1);
    for (uint64_t key = 1; key <= 4; key++) admit_wide(&h, key, 2300 * MS);
    harness_run(&h, 100 * SECOND);
    for (uint64_t key = 1; key <= 4; key++) assert_true(h.done_ns[key] > 2300 * MS);
    kn_scheduler_destroy(&h.s);
}

/* One urgent job among patient ones: it is in time, and they go on beside it. */
static void urgent_and_patient(void **state)
{
    (void)state;
    harness h;
    open_group(&h, &(kn_scheduler_params){0}, DEVICES, 1);
    for (uint64_t key = 1; key <= 7; key++) admit_wide(&h, key, 60 * SECOND);
    admit_wide(&h, 8, 1200 * MS);
    harness_run(&h, 100 * SECOND);
    assert_true(h.done_ns[8] <= 1200 * MS);
    for (uint64_t key = 1; key <= 7; key++) assert_true(h.done_ns[key] <= 60 * SECOND);
    assert_true(h.now_ns < 6 * SECOND); /* 28 s of work on 8 devices */
    kn_scheduler_destroy(&h.s);
}

static void nobody_waits_for_a_group(void **state)
{
    (void)state;
    harness h;
    open_group(&h, &(kn_scheduler_params){0}, DEVICES, 1);
    for (uint64_t key = 1; key <= DEVICES; key++) admit_wide(&h, key, 0);
    harness_run(&h, 1);
    kn_scheduler_stats stats;
    kn_scheduler_read_stats(h.s, &stats);
    assert_int_equal(stats.running[KN_PRIORITY_DEFAULT], DEVICES); /* text of each, on a device of its own */
    for (int32_t i = 0; i < DEVICES; i++) harness_end(&h);
    harness_decide(&h);
    for (int32_t d = 0; d < DEVICES; d++) assert_int_equal(h.slices[d].degree, 1);
    harness_run(&h, 100 * SECOND);
    assert_int_equal(h.done, DEVICES);
    kn_scheduler_destroy(&h.s);
}

static void helpers_need_memory_and_the_model(void **state)
{
    (void)state;
    harness h;
    open_group(&h, &(kn_scheduler_params){0}, 1, 1);
    kn_change small = group_device(1, 1), empty = group_device(2, 1), other = group_device(3, 1);
    small.device.memory_bytes = 110 * MIB; /* the model, not the workspace of 20 MiB */
    empty.device.models = 0;
    other.device.models = 0;
    other.device.loadable = 1;
    assert_int_equal(harness_tell(&h, &small), KN_OK);
    assert_int_equal(harness_tell(&h, &empty), KN_OK);
    assert_int_equal(harness_tell(&h, &other), KN_OK);
    admit_wide(&h, 1, 0);
    const kn_assignment *a = run_to(&h, 1, KN_STAGE_DENOISE);
    assert_int_equal(a->device, 0);
    assert_int_equal(a->degree, 2);
    assert_int_equal(a->members[1], 2);
    assert_false(a->load_model);
    assert_int_equal(a->load_members, 1u << 1);
    const kn_change loaded = {.kind = KN_CHANGE_MODEL_LOADED,
                              .device = {.index = 2, .models = 1u << MODEL, .load_ns = SECOND}};
    assert_int_equal(harness_tell(&h, &loaded), KN_OK);
    harness_end(&h);
    harness_decide(&h);
    assert_int_equal(h.slices[0].degree, 2);
    assert_int_equal(h.slices[0].load_members, 0);
    kn_scheduler_destroy(&h.s);
}

static void end_slice(harness *h, int32_t device, kn_status expected)
{
    const kn_change change = {.kind = KN_CHANGE_SLICE_DONE, .slice = {.device = device}};
    assert_int_equal(harness_tell(h, &change), expected);
    h->ends_ns[device] = 0;
}

/* The slice has failed, its job waits at its checkpoint, and the others are idle at once. */
static void death_of_a_helper(void **state)
{
    (void)state;
    harness h;
    open_group(&h, &(kn_scheduler_params){0}, 4, 1);
    admit_wide(&h, 1, 0);
    for (int32_t step = 0; step < 3; step++) {
        run_to(&h, 1, KN_STAGE_DENOISE);
        harness_end(&h); /* saved: the harness has a checkpoint after every step */
    }
    const kn_assignment was = *run_to(&h, 1, KN_STAGE_DENOISE);
    assert_int_equal(was.degree, 4);
    const kn_change down = {.kind = KN_CHANGE_DEVICE_DOWN, .device = {.index = was.members[2]}};
    assert_int_equal(harness_tell(&h, &down), KN_OK);
    kn_device_stats stats;
    for (int32_t i = 0; i < 4; i++) {
        assert_int_equal(kn_scheduler_read_device(h.s, was.members[i], &stats), KN_OK);
        assert_false(stats.busy);
        assert_int_equal(stats.residents, 0);
        assert_int_equal(stats.up, i != 2);
    }
    end_slice(&h, was.device, KN_NOT_FOUND); /* nothing more is said of it */
    h.progress[1] = (kn_job_progress){.step = 3};
    const kn_assignment *a = run_to(&h, 1, KN_STAGE_TEXT);
    assert_int_equal(a->start_mask, 1);
    a = run_to(&h, 1, KN_STAGE_DENOISE);
    assert_int_equal(a->degree, 3);
    for (int32_t i = 0; i < 3; i++) assert_int_not_equal(a->members[i], was.members[2]);
    harness_run(&h, 100 * SECOND);
    assert_int_equal(h.done, 1);
    kn_scheduler_destroy(&h.s);
}

static void death_of_a_leader(void **state)
{
    (void)state;
    harness h;
    open_group(&h, &(kn_scheduler_params){0}, 4, 1);
    admit_wide(&h, 1, 0);
    const kn_assignment was = *run_to(&h, 1, KN_STAGE_DENOISE);
    const kn_change down = {.kind = KN_CHANGE_DEVICE_DOWN, .device = {.index = was.device}};
    assert_int_equal(harness_tell(&h, &down), KN_OK);
    h.ends_ns[was.device] = 0;
    h.progress[1] = (kn_job_progress){0};
    assert_int_equal(run_to(&h, 1, KN_STAGE_TEXT)->start_mask, 1);
    assert_int_equal(run_to(&h, 1, KN_STAGE_DENOISE)->degree, 3);
    kn_scheduler_destroy(&h.s);
}

/* Devices 0 .. 3 and 4 .. 7 are one device each. */
static void fixed_groups(void **state)
{
    (void)state;
    harness h;
    open_group(&h, &(kn_scheduler_params){.degree_fixed = 4}, DEVICES - 1, 1);
    for (uint64_t key = 1; key <= 3; key++) admit_wide(&h, key, 0);
    const kn_assignment *a = run_to(&h, 1, KN_STAGE_DENOISE);
    assert_int_equal(a->device, 0);
    assert_int_equal(a->degree, 4);
    for (int32_t i = 0; i < 4; i++) assert_int_equal(a->members[i], i);
    assert_true(h.ends_ns[4] == 0); /* one of its devices is missing */
    const kn_change up = group_device(DEVICES - 1, 1);
    assert_int_equal(harness_tell(&h, &up), KN_OK);
    a = run_to(&h, 2, KN_STAGE_DENOISE);
    assert_int_equal(a->degree, 4);
    harness_run(&h, 100 * SECOND);
    assert_int_equal(h.done, 3);
    kn_scheduler_destroy(&h.s);
}

/* Ends job 1's slice, whose progress has been told, after so long. */
static void end_measured(harness *h, int32_t device, int64_t measured_ns)
{
    const kn_slice_job end = {1, h->progress[1], h->progress[1].step};
    const kn_change change = {.kind = KN_CHANGE_SLICE_DONE,
                              .slice = {.device = device, .measured_ns = measured_ns, .count = 1, .jobs = &end}};
    h->now_ns += measured_ns;
    h->ends_ns[device] = 0;
    assert_int_equal(harness_tell(h, &change), KN_OK);
}

/* What a group takes is learnt for its degree; degrees that were not measured follow. */
static void learns_what_groups_take(void **state)
{
    (void)state;
    harness h;
    open_group(&h, &(kn_scheduler_params){0}, DEVICES, 1);
    admit_wide(&h, 1, 0);
    int64_t seeded = 0, last = 0;
    for (int32_t step = 0; step < STEPS; step++) {
        const kn_assignment *a = run_to(&h, 1, KN_STAGE_DENOISE);
        assert_int_equal(a->degree, DEVICES);
        last = a->expected_ns;
        if (step == 0) seeded = last;
        h.progress[1].step++;
        end_measured(&h, a->device, 2 * seeded);
    }
    assert_true(last > 19 * seeded / 10 && last < 21 * seeded / 10);
    const kn_change down = {.kind = KN_CHANGE_DEVICE_DOWN, .device = {.index = DEVICES - 1}};
    assert_int_equal(harness_tell(&h, &down), KN_OK);
    harness_run(&h, h.now_ns + SECOND);
    admit_wide(&h, 2, 0);
    const kn_assignment *a = run_to(&h, 2, KN_STAGE_DENOISE);
    assert_int_equal(a->degree, DEVICES - 1);
    assert_true(a->expected_ns > 2 * seeded && a->expected_ns < 3 * seeded);
    kn_scheduler_destroy(&h.s);
}

/* A slice that ran on fewer devices than it was given teaches nothing. */
static void learns_nothing_from_another_degree(void **state)
{
    (void)state;
    harness h;
    open_group(&h, &(kn_scheduler_params){0}, DEVICES, 1);
    admit_wide(&h, 1, 0);
    const kn_assignment was = *run_to(&h, 1, KN_STAGE_DENOISE);
    h.progress[1].step++;
    const kn_slice_job end = {1, h.progress[1], h.progress[1].step};
    kn_change change = {.kind = KN_CHANGE_SLICE_DONE,
                        .slice = {was.device, 8 * was.expected_ns, 1, &end, KN_SCHEDULER_DEGREE_MAX + 1}};
    assert_int_equal(harness_tell(&h, &change), KN_INVALID);
    change.slice.degree = 1;
    assert_int_equal(harness_tell(&h, &change), KN_OK);
    h.ends_ns[was.device] = 0;
    assert_true(run_to(&h, 1, KN_STAGE_DENOISE)->expected_ns == was.expected_ns);
    kn_scheduler_destroy(&h.s);
}

/* ---- decoding ---- */

enum { FRAMES = 3, FRAME_MS = 300 };

/* A decode slice is FRAME_MS of work on one device. */
static void open_decoding(harness *h, int32_t devices, uint64_t memory_bytes, double link)
{
    kn_cost_model model = wide;
    model.decode_flop = FRAME_MS * 1e9;
    harness_open(h, &(kn_scheduler_params){0});
    assert_int_equal(kn_scheduler_set_model(h->s, MODEL, &model), KN_OK);
    for (int32_t i = 0; i < devices; i++) {
        kn_change up = group_device(i, 1);
        up.device.memory_bytes = memory_bytes;
        up.device.seed.link_bytes_per_second = link;
        assert_int_equal(harness_tell(h, &up), KN_OK);
    }
}

static void admit_decoding(harness *h, uint64_t key, int32_t frames, int64_t within_ns)
{
    kn_job_shape shape = wide_shape();
    shape.latent_frames = frames;
    const kn_job_terms terms = {.deadline_ns = within_ns > 0 ? h->now_ns + within_ns : KN_SCHEDULER_NO_DEADLINE,
                                .priority = KN_PRIORITY_DEFAULT};
    assert_int_equal(harness_admit(h, key, &shape, terms), KN_OK);
}

static void decoding_is_shared(void **state)
{
    (void)state;
    harness h;
    open_decoding(&h, DEVICES, 1000 * MIB, 0);
    admit_decoding(&h, 1, FRAMES, 0);
    for (int32_t i = 0; i < FRAMES; i++) {
        const kn_assignment *a = run_to(&h, 1, KN_STAGE_DECODE);
        assert_int_equal(a->degree, DEVICES);
        assert_true(a->expected_ns > FRAME_MS * MS / DEVICES && a->expected_ns < FRAME_MS * MS / 4);
        harness_end(&h);
    }
    assert_int_equal(run_to(&h, 1, KN_STAGE_MUX)->degree, 1);
    harness_run(&h, 100 * SECOND);
    assert_int_equal(h.done, 1);
    kn_scheduler_destroy(&h.s);
}

/* Everybody is busy with a job of its own, or one is urgent and gets what it needs while it decodes too. */
static void deadlines_count_on_shared_decoding(void **state)
{
    (void)state;
    harness h;
    kn_admission answer;
    open_decoding(&h, DEVICES, 1000 * MIB, 0);
    kn_job_shape shape = wide_shape();
    shape.steps = 1;
    shape.latent_frames = 20; /* six seconds alone */
    kn_job_terms terms = {.tenant_weight = 1, .deadline_ns = h.now_ns + 1500 * MS, .promised = true};
    assert_int_equal(kn_scheduler_admission(h.s, &shape, &terms, h.now_ns, &answer), KN_OK);
    assert_int_equal(answer.verdict, KN_VERDICT_FITS);
    assert_int_equal(harness_admit(&h, 1, &shape, terms), KN_OK);
    for (uint64_t key = 2; key <= 5; key++) admit_decoding(&h, key, FRAMES, 0);
    harness_run(&h, 100 * SECOND);
    assert_true(h.done_ns[1] > 0 && h.done_ns[1] <= 1500 * MS + 1);
    assert_int_equal(h.done, 5);
    kn_scheduler_destroy(&h.s);
}

/* The leader needs a share's decoder beside the whole one, a helper the share's. */
static void shared_decoding_needs_memory(void **state)
{
    (void)state;
    static const struct {
        uint64_t mib;
        int32_t degree;
    } cases[] = {{100 + 10 + 40 + 40, 2}, {100 + 10 + 40 + 39, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        harness h;
        open_decoding(&h, 2, cases[i].mib * MIB, 0);
        admit_decoding(&h, 1, FRAMES, 0);
        assert_int_equal(run_to(&h, 1, KN_STAGE_DENOISE)->degree, 2);
        for (int32_t k = 0; k < FRAMES; k++) {
            assert_int_equal(run_to(&h, 1, KN_STAGE_DECODE)->degree, cases[i].degree);
            harness_end(&h);
        }
        kn_scheduler_destroy(&h.s);
    }
}

/* What a decoder remembers is too much for a slow link; a single frame leaves nothing to remember. */
static void a_slow_link_decodes_alone(void **state)
{
    (void)state;
    harness h;
    open_decoding(&h, DEVICES, 1000 * MIB, 1e8);
    admit_decoding(&h, 1, FRAMES, 0);
    assert_true(run_to(&h, 1, KN_STAGE_DENOISE)->degree > 1);
    assert_int_equal(run_to(&h, 1, KN_STAGE_DECODE)->degree, 1);
    harness_run(&h, 100 * SECOND);
    admit_decoding(&h, 2, 1, 0);
    assert_int_equal(run_to(&h, 2, KN_STAGE_DECODE)->degree, DEVICES);
    kn_scheduler_destroy(&h.s);
}

/* Denoise and decode slices of one degree are measured apart. */
static void learns_decoding_apart(void **state)
{
    (void)state;
    harness h;
    open_decoding(&h, DEVICES, 1000 * MIB, 0);
    admit_decoding(&h, 1, 8, 0);
    const int64_t step_ns = run_to(&h, 1, KN_STAGE_DENOISE)->expected_ns;
    run_to(&h, 1, KN_STAGE_DECODE);
    harness_end(&h);
    int64_t seeded = 0, last = 0;
    for (int32_t k = 0; k < 5; k++) {
        const kn_assignment *a = run_to(&h, 1, KN_STAGE_DECODE);
        assert_int_equal(a->degree, DEVICES);
        last = a->expected_ns;
        if (k == 0) seeded = last;
        h.progress[1].decoded++;
        end_measured(&h, a->device, 2 * seeded);
    }
    assert_true(last > 19 * seeded / 10 && last < 21 * seeded / 10);
    harness_run(&h, 100 * SECOND);
    admit_decoding(&h, 2, 1, 0);
    const kn_assignment *a = run_to(&h, 2, KN_STAGE_DENOISE);
    assert_int_equal(a->degree, DEVICES);
    assert_true(a->expected_ns > step_ns - MS && a->expected_ns < step_ns + MS);
    kn_scheduler_destroy(&h.s);
}

/* Its job goes back to its last step, and decodes from the first frame on. */
static void death_while_decoding(void **state)
{
    (void)state;
    harness h;
    for (int32_t member = 0; member < 2; member++) {
        open_decoding(&h, 4, 1000 * MIB, 0);
        admit_decoding(&h, 1, FRAMES, 0);
        run_to(&h, 1, KN_STAGE_DECODE);
        harness_end(&h);
        const kn_assignment was = *run_to(&h, 1, KN_STAGE_DECODE);
        assert_int_equal(was.degree, 4);
        const kn_change down = {.kind = KN_CHANGE_DEVICE_DOWN, .device = {.index = was.members[member]}};
        assert_int_equal(harness_tell(&h, &down), KN_OK);
        h.ends_ns[was.device] = 0;
        h.progress[1] = (kn_job_progress){.step = STEPS};
        const kn_assignment *a = run_to(&h, 1, KN_STAGE_DECODE);
        assert_int_equal(a->start_mask, 1);
        for (int32_t i = 0; i < a->degree; i++) assert_int_not_equal(a->members[i], was.members[member]);
        harness_run(&h, 100 * SECOND);
        assert_int_equal(h.done, 1);
        kn_scheduler_destroy(&h.s);
    }
}

/* Every member's time is charged, to the tenant and to the device. */
static void charges_all_members(void **state)
{
    (void)state;
    harness h;
    open_group(&h, &(kn_scheduler_params){0}, 2, 1);
    admit_wide(&h, 1, 0);
    harness_run(&h, 100 * SECOND);
    kn_device_stats first, second;
    assert_int_equal(kn_scheduler_read_device(h.s, 0, &first), KN_OK);
    assert_int_equal(kn_scheduler_read_device(h.s, 1, &second), KN_OK);
    const int64_t both = first.busy_ns + second.busy_ns, charged = kn_scheduler_tenant_service(h.s, 0);
    assert_true(second.busy_ns > SECOND);
    assert_true(charged > both - MS && charged < both + MS);
    kn_scheduler_destroy(&h.s);
}

static void promises_count_on_groups(void **state)
{
    (void)state;
    harness h;
    open_group(&h, &(kn_scheduler_params){0}, DEVICES, 1);
    const kn_job_shape shape = wide_shape();
    kn_job_terms terms = {.tenant_weight = 1, .deadline_ns = h.now_ns + 600 * MS, .promised = true};
    kn_admission answer;
    assert_int_equal(kn_scheduler_admission(h.s, &shape, &terms, h.now_ns, &answer), KN_OK);
    assert_int_equal(answer.verdict, KN_VERDICT_FITS); /* 3.5 s on one device */
    assert_true(answer.completion_ns <= terms.deadline_ns);
    assert_int_equal(harness_admit(&h, 1, &shape, terms), KN_OK);
    terms.deadline_ns = h.now_ns + 550 * MS; /* fits, but not beside the first */
    assert_int_equal(kn_scheduler_admission(h.s, &shape, &terms, h.now_ns, &answer), KN_OK);
    assert_int_equal(answer.verdict, KN_VERDICT_DEADLINE);
    assert_true(answer.retry_after_ns > 0);
    terms.deadline_ns = h.now_ns + 100 * MS;
    assert_int_equal(kn_scheduler_admission(h.s, &shape, &terms, h.now_ns, &answer), KN_OK);
    assert_int_equal(answer.verdict, KN_VERDICT_DEADLINE);
    assert_int_equal(answer.retry_after_ns, 0);
    kn_estimate estimate;
    harness_decide(&h);
    assert_int_equal(kn_scheduler_estimate(h.s, 1, h.now_ns, &estimate), KN_OK);
    assert_false(estimate.late);
    assert_true(estimate.completion_ns <= 600 * MS + 1);
    harness_run(&h, 100 * SECOND);
    assert_true(h.done_ns[1] <= 600 * MS + 1);
    kn_scheduler_destroy(&h.s);
}

static void refuses_what_contradicts(void **state)
{
    (void)state;
    harness h;
    kn_scheduler *none = NULL;
    assert_int_equal(kn_scheduler_create(&none, &(kn_scheduler_params){.degree_max = 9}), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "degree_max is 9"));
    assert_int_equal(kn_scheduler_create(&none, &(kn_scheduler_params){.degree_fixed = 3}), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "degree_fixed is 3"));
    open_group(&h, &(kn_scheduler_params){0}, 2, 1);
    kn_change up = group_device(1, 2);
    assert_int_equal(harness_tell(&h, &up), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "domain of device 1 is 2; it was 1"));
    up = group_device(2, -1);
    assert_int_equal(harness_tell(&h, &up), KN_INVALID);
    up = group_device(2, 1);
    up.device.degree_max = 9;
    assert_int_equal(harness_tell(&h, &up), KN_INVALID);
    up = group_device(2, 1);
    up.device.seed.link_bytes_per_second = -1;
    assert_int_equal(harness_tell(&h, &up), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "link_bytes_per_second"));
    admit_wide(&h, 1, 0);
    const kn_assignment *a = run_to(&h, 1, KN_STAGE_DENOISE);
    end_slice(&h, a->members[1], KN_NOT_FOUND); /* a helper's slice is its leader's */
    kn_scheduler_destroy(&h.s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lone_job_gets_all_devices),
        cmocka_unit_test(no_groups_without_a_domain),
        cmocka_unit_test(domains_and_limits_bound_a_group),
        cmocka_unit_test(kinds_are_counted_apart),
        cmocka_unit_test(deadlines_choose_the_degree),
        cmocka_unit_test(urgent_and_patient),
        cmocka_unit_test(nobody_waits_for_a_group),
        cmocka_unit_test(helpers_need_memory_and_the_model),
        cmocka_unit_test(death_of_a_helper),
        cmocka_unit_test(death_of_a_leader),
        cmocka_unit_test(fixed_groups),
        cmocka_unit_test(learns_what_groups_take),
        cmocka_unit_test(learns_nothing_from_another_degree),
        cmocka_unit_test(decoding_is_shared),
        cmocka_unit_test(deadlines_count_on_shared_decoding),
        cmocka_unit_test(shared_decoding_needs_memory),
        cmocka_unit_test(a_slow_link_decodes_alone),
        cmocka_unit_test(learns_decoding_apart),
        cmocka_unit_test(death_while_decoding),
        cmocka_unit_test(charges_all_members),
        cmocka_unit_test(promises_count_on_groups),
        cmocka_unit_test(refuses_what_contradicts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * A small world for the scheduler: devices whose slices take exactly what the scheduler expects, driven by hand. */
#ifndef KN_TESTS_SCHEDULER_HARNESS_H
#define KN_TESTS_SCHEDULER_HARNESS_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "scheduler/scheduler.h"

enum { HARNESS_JOBS = 4096, HARNESS_DEVICES = 8 };

#define MS INT64_C(1000000)
#define SECOND INT64_C(1000000000)
#define MIB (UINT64_C(1) << 20)

typedef struct harness {
    kn_scheduler *s;
    int64_t now_ns;
    kn_job_shape shapes[HARNESS_JOBS];
    kn_job_progress progress[HARNESS_JOBS];
    int64_t done_ns[HARNESS_JOBS]; /* 0: not done */
    kn_assignment slices[HARNESS_DEVICES];
    int64_t ends_ns[HARNESS_DEVICES]; /* 0: idle */
    int32_t done;
} harness;

/* A model whose denoise slices cost what plain_shape asks for: the rest is free. */
static inline kn_cost_model plain_model(uint64_t resident_bytes)
{
    return (kn_cost_model){.layers = 1,
                           .width = 1,
                           .ffn = 1,
                           .heads_width = 1,
                           .frames_per_latent = 1,
                           .text_flop_per_token = 1,
                           .decode_flop = 1,
                           .resident_bytes = resident_bytes};
}

/* Nothing but the slices' number matters: each takes `slice_ms` whatever its work. */
static inline kn_change device_change(int32_t index, uint64_t memory_bytes, uint32_t models, int64_t slice_ms)
{
    return (kn_change){.kind = KN_CHANGE_DEVICE_UP,
                       .device = {.index = index,
                                  .memory_bytes = memory_bytes,
                                  .models = models,
                                  .loadable = UINT32_C(0xffff),
                                  .load_ns = SECOND,
                                  .seed = {.flop_per_second = 1e12,
                                           .decode_efficiency = 1,
                                           .bytes_per_second = 1e12,
                                           .slice_ns = slice_ms * MS}}};
}

static inline kn_job_shape plain_shape(int32_t steps)
{
    return (kn_job_shape){.tokens = 1,
                          .sequences = 1,
                          .text_tokens = 1,
                          .steps = steps,
                          .latent_frames = 1,
                          .pixels = 1,
                          .state_bytes = 10 * MIB,
                          .workspace_bytes = 20 * MIB,
                          .decoder_bytes = 40 * MIB};
}

/* A shape whose denoise slice is `ms` of work on such a device, so that packing gains nothing. */
static inline kn_job_shape heavy_shape(int32_t steps, int32_t ms)
{
    kn_job_shape shape = plain_shape(steps);
    int64_t tokens = 1;
    while (4 * tokens * tokens < (int64_t)ms * 1000000000) tokens += tokens / 1000 + 1;
    shape.tokens = (int32_t)tokens;
    return shape;
}

static inline void harness_open(harness *h, const kn_scheduler_params *params)
{
    memset(h, 0, sizeof *h);
    h->now_ns = 1;
    assert_int_equal(kn_scheduler_create(&h->s, params), KN_OK);
    const kn_cost_model model = plain_model(100 * MIB);
    for (int32_t m = 0; m < 2; m++) assert_int_equal(kn_scheduler_set_model(h->s, m, &model), KN_OK);
}

static inline kn_status harness_tell(harness *h, const kn_change *change)
{
    return kn_scheduler_event(h->s, change, h->now_ns);
}

static inline void harness_up(harness *h, int32_t device, uint64_t memory_bytes, int64_t slice_ms)
{
    const kn_change up = device_change(device, memory_bytes, 1, slice_ms);
    assert_int_equal(harness_tell(h, &up), KN_OK);
}

static inline kn_status harness_admit(harness *h, uint64_t key, const kn_job_shape *shape, kn_job_terms terms)
{
    terms.submitted_ns = h->now_ns;
    if (terms.tenant_weight == 0) terms.tenant_weight = 1;
    h->shapes[key] = *shape;
    h->progress[key] = (kn_job_progress){0};
    const kn_change change = {.kind = KN_CHANGE_JOB_ADMITTED, .job = {.key = key, .shape = *shape, .terms = terms}};
    return harness_tell(h, &change);
}

/* Starts whatever the scheduler wants started; answers releases at once. Returns the number of slices. */
static inline int32_t harness_decide(harness *h)
{
    kn_assignment out[HARNESS_DEVICES];
    const int32_t count = kn_scheduler_decide(h->s, h->now_ns, out, HARNESS_DEVICES);
    for (int32_t i = 0; i < count; i++) {
        assert_int_equal(h->ends_ns[out[i].device], 0);
        h->slices[out[i].device] = out[i];
        h->ends_ns[out[i].device] = h->now_ns + out[i].expected_ns + (out[i].load_model ? SECOND : 0);
        for (int32_t j = 0; j < out[i].release_count; j++) {
            kn_job_progress *progress = &h->progress[out[i].release[j]];
            *progress = (kn_job_progress){.step = progress->step};
            const kn_change answer = {.kind = KN_CHANGE_JOB_RELEASED,
                                      .job = {.key = out[i].release[j], .progress = *progress}};
            const kn_status st = harness_tell(h, &answer);
            assert_true(st == KN_OK || st == KN_NOT_FOUND); /* not found: it was removed */
        }
    }
    return count;
}

/* Ends the slice that ends first; false when none runs. */
static inline bool harness_end(harness *h)
{
    kn_slice_job ends[KN_SCHEDULER_PACK_MAX];
    int32_t device = -1;
    for (int32_t i = 0; i < HARNESS_DEVICES; i++)
        if (h->ends_ns[i] > 0 && (device < 0 || h->ends_ns[i] < h->ends_ns[device])) device = i;
    if (device < 0) return false;
    const kn_assignment *a = &h->slices[device];
    h->now_ns = h->ends_ns[device];
    h->ends_ns[device] = 0;
    for (int32_t i = 0; i < a->count; i++) {
        kn_job_progress *p = &h->progress[a->jobs[i]];
        assert_int_equal(kn_job_next_stage(&h->shapes[a->jobs[i]], p), a->stage);
        p->text = p->text || a->stage == KN_STAGE_TEXT;
        p->step += a->stage == KN_STAGE_DENOISE;
        p->decoded += a->stage == KN_STAGE_DECODE;
        p->done = a->stage == KN_STAGE_MUX;
        if (p->done) {
            h->done_ns[a->jobs[i]] = h->now_ns;
            h->done++;
        }
        ends[i] = (kn_slice_job){a->jobs[i], *p, p->step};
    }
    const kn_change change = {
        .kind = KN_CHANGE_SLICE_DONE,
        .slice = {.device = device, .measured_ns = a->expected_ns, .count = a->count, .jobs = ends}};
    assert_int_equal(harness_tell(h, &change), KN_OK);
    return true;
}

/* Runs until nothing runs any more, or until `until_ns`. */
static inline void harness_run(harness *h, int64_t until_ns)
{
    do harness_decide(h);
    while (h->now_ns < until_ns && harness_end(h));
}

/* Is this job in the slice that runs on a device? */
static inline bool harness_runs(const harness *h, int32_t device, uint64_t key)
{
    for (int32_t i = 0; h->ends_ns[device] > 0 && i < h->slices[device].count; i++)
        if (h->slices[device].jobs[i] == key) return true;
    return false;
}

#endif

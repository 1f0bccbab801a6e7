/* SPDX-License-Identifier: Apache-2.0
 *
 * A whole generation, slice by slice, without a video file: where the time goes,
 * that a denoise step allocates nothing, and whether the memory plan is kept. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "benchmarks/bench.h"
#include "engine/generation.h"

enum { SIDE = 128, FRAMES = 17, STEPS = 4 };

static const char prompt[] = "a red ball bounces off the backboard";

typedef struct generate_bench {
    kn_bench *bench;
    kn_device *device; /* of its own, so that its scratch is counted too */
    kn_model *model;
    kn_request request;
    kn_memory_plan plan;
    kn_generation *generation;
    double seconds[KN_SLICE_DONE]; /* of all slices of a kind */
    int32_t slices[KN_SLICE_DONE];
    double first_step;                  /* seconds */
    uint64_t step_allocations;          /* in all denoise steps but the first */
    uint64_t held_before;               /* bytes allocated before the device was opened */
    uint64_t resident_before, resident; /* then, and the most since */
    int64_t frames;
} generate_bench;

static kn_status take_frame(void *context, int64_t index, const float *planes)
{
    generate_bench *g = context;
    (void)planes;
    g->frames = index + 1;
    const uint64_t resident = kn_bench_resident();
    if (resident > g->resident) g->resident = resident;
    return KN_OK;
}

static kn_status take_end(void *context)
{
    (void)context;
    return KN_OK;
}

static kn_status open_generation(generate_bench *g)
{
    kn_status st = KN_OK;
    const kn_bench_settings *s = g->bench->settings;
    kn_request *q = &g->request;
    KN_TRY(kn_device_open(&g->device, &(kn_device_params){.name = s->device, .threads = s->threads, .isa = s->isa}));
    KN_TRY(kn_model_open(&g->model, &(kn_model_params){.directory = s->model,
                                                       .preset = s->model ? NULL : s->preset,
                                                       .preset_layers = s->model ? 0 : s->layers,
                                                       .device = g->device,
                                                       .precision = s->precision,
                                                       .vae_precision = s->vae_precision}));
    q->prompt = kn_strdup(prompt);
    if (!q->prompt) KN_TRY(KN_NOMEM);
    q->width = s->width ? s->width : SIDE;
    q->height = s->height ? s->height : SIDE;
    q->frames = s->frames ? s->frames : FRAMES;
    q->steps = s->steps ? s->steps : STEPS;
    q->seed = 1;
    KN_TRY(kn_request_resolve(q, kn_model_repository(g->model), NULL));
    KN_TRY(kn_model_plan(g->model, q, &g->plan));
    const kn_frame_sink sink = {.context = g, .frame = take_frame, .finish = take_end};
    KN_TRY(kn_generation_create(&g->generation, g->model, q, &sink, NULL));
fail:
    return st;
}

static kn_status run_slices(generate_bench *g)
{
    kn_status st = KN_OK;
    for (kn_slice slice; (slice = kn_generation_next(g->generation)).kind != KN_SLICE_DONE;) {
        const uint64_t allocations = kn_mem_read().allocations;
        const int64_t start = kn_clock_ns();
        KN_TRY(kn_generation_step(&g->generation, 1));
        const double seconds = kn_clock_seconds(kn_clock_ns() - start);
        const uint64_t made = kn_mem_read().allocations - allocations, resident = kn_bench_resident();
        if (slice.kind == KN_SLICE_DENOISE && slice.index == 0) g->first_step = seconds;
        if (slice.kind == KN_SLICE_DENOISE && slice.index > 0) g->step_allocations += made;
        g->seconds[slice.kind] += seconds;
        g->slices[slice.kind]++;
        if (resident > g->resident) g->resident = resident;
    }
fail:
    return st;
}

/* ---- rows ---- */

static kn_status put_stages(generate_bench *g)
{
    kn_status st = KN_OK;
    kn_bench *b = g->bench;
    const kn_request *q = &g->request;
    const char *type = kn_bench_type_name(kn_model_compute(g->model, KN_TRANSFORMER));
    const int32_t layers = kn_model_repository(g->model)->dit.num_layers;
    kn_bench_row text = {.type = type, .seconds = g->seconds[KN_SLICE_TEXT], .test = "text, and preparing weights"};
    snprintf(text.note, sizeof text.note, "%dx%d, %d frames, %d layers, guidance %g", q->width, q->height, q->frames,
             layers, q->guidance);
    text.extra =
        json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:f}", "kind", "text", "width", q->width, "height", q->height,
                  "frames", q->frames, "steps", q->steps, "layers", layers, "guidance", q->guidance);
    KN_TRY(kn_bench_put(b, &text));

    const int32_t later = g->slices[KN_SLICE_DENOISE] - 1; /* the first one allocates the workspace */
    kn_bench_row step = {.type = type, .test = "denoise, a step"};
    step.seconds = later > 0 ? (g->seconds[KN_SLICE_DENOISE] - g->first_step) / later : g->first_step;
    snprintf(step.note, sizeof step.note, "first %.4f s; %d more with %d allocations", g->first_step, later,
             (int)g->step_allocations);
    step.extra = json_pack("{s:s, s:f, s:I, s:i}", "kind", "denoise", "first_seconds", g->first_step,
                           "allocations_after_first", (json_int_t)g->step_allocations, "steps_after_first", later);
    KN_TRY(kn_bench_put(b, &step));

    kn_bench_row decode = {.type = kn_bench_type_name(kn_model_compute(g->model, KN_VAE)),
                           .test = "decode, a frame",
                           .seconds = g->seconds[KN_SLICE_DECODE] / (double)g->frames};
    snprintf(decode.note, sizeof decode.note, "%d frames, %.4f s in all", (int)g->frames, g->seconds[KN_SLICE_DECODE]);
    decode.extra = json_pack("{s:s, s:I, s:f}", "kind", "decode", "frames", (json_int_t)g->frames, "all_seconds",
                             g->seconds[KN_SLICE_DECODE]);
    KN_TRY(kn_bench_put(b, &decode));
fail:
    return st;
}

/* What this part allocated, not what was held before it; without the video encoder, which is not opened. */
static kn_status put_memory(generate_bench *g, uint64_t peak)
{
    const uint64_t planned = g->plan.peak - g->held_before, allocated = peak - g->held_before;
    const uint64_t resident = g->resident - g->resident_before;
    kn_bench_row row = {.test = "memory"};
    snprintf(row.note, sizeof row.note, "planned %.2f MB, allocated %.2f (%+.2f %%), resident %.2f (%+.2f %%)",
             (double)planned * 1e-6, (double)allocated * 1e-6, 100.0 * ((double)allocated / (double)planned - 1.0),
             (double)resident * 1e-6, 100.0 * ((double)resident / (double)planned - 1.0));
    row.extra = json_pack("{s:s, s:I, s:I, s:I}", "kind", "memory", "planned_bytes", (json_int_t)planned,
                          "allocated_peak_bytes", (json_int_t)allocated, "resident_peak_bytes", (json_int_t)resident);
    return kn_bench_put(g->bench, &row);
}

static kn_status bench_slices(kn_bench *b)
{
    kn_status st = KN_OK;
    generate_bench g = {.bench = b, .request = kn_request_empty()};
    kn_mem_reset_peak();
    g.held_before = kn_mem_read().bytes;
    g.resident_before = g.resident = kn_bench_resident();
    KN_TRY(open_generation(&g));
    KN_TRY(run_slices(&g));
    const uint64_t peak = kn_mem_read().peak_bytes;
    KN_TRY(put_stages(&g));
    KN_TRY(put_memory(&g, peak));
fail:
    kn_generation_destroy(&g.generation);
    kn_request_release(&g.request);
    kn_model_close(&g.model);
    kn_device_close(&g.device);
    return st;
}

kn_status kn_bench_generate(kn_bench *b)
{
    kn_status st = KN_OK;
    KN_TRY(bench_slices(b));
    if (b->settings->model) KN_TRY(kn_bench_startup(b));
fail:
    return st;
}

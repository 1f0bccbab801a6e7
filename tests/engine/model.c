/* SPDX-License-Identifier: Apache-2.0
 *
 * A model's memory: what is planned is what is used, every refused allocation is survived, and nothing leaks. And its
 * fingerprint, which keeps a checkpoint from the wrong model. */
#define _XOPEN_SOURCE 700
#include "tests/engine/generating.h"

#include "tests/engine/folder.h"

/* ---- planned bytes ---- */

static kn_status skip_frame(void *context, int64_t index, const float *planes)
{
    (void)context;
    (void)index;
    (void)planes;
    return KN_OK;
}

static kn_status skip_finish(void *context)
{
    (void)context;
    return KN_OK;
}

static const kn_frame_sink no_sink = {.frame = skip_frame, .finish = skip_finish};

#define PLAN_TOLERANCE 0.02
enum { OBJECT_BYTES = 1 << 16 }; /* structs, which the plan leaves out; a fixture is small enough for them to show */

static void expect_planned(uint64_t measured, uint64_t planned, uint64_t slack, const char *what)
{
    const double off = (double)measured - (double)planned;
    printf("  %s: planned %.0f, measured %.0f bytes, %+.2f %%\n", what, (double)planned, (double)measured,
           100.0 * off / (double)planned);
    if (off > PLAN_TOLERANCE * (double)planned + (double)slack || off < -PLAN_TOLERANCE * (double)planned)
        fail_msg("%s: planned %.0f bytes, measured %.0f", what, (double)planned, (double)measured);
}

/* Within 2 % of the whole, and of what the run adds to what the process held before it, up to the last denoise step
 * and to the end. Closes the subject. */
static void plan_of(subject s, const char *name, int32_t width, int32_t height, int32_t frames, double guidance,
                    kn_sampler_kind sampler)
{
    char what[96];
    kn_request request = kn_request_empty();
    request.prompt = kn_strdup("two basketball players at dawn, seen from the river bank");
    request.negative_prompt = kn_strdup("slow motion");
    request.width = width;
    request.height = height;
    request.frames = frames;
    request.steps = 2;
    request.guidance = guidance;
    request.has_sampler = true;
    request.sampler = sampler;
    ok(kn_request_resolve(&request, kn_model_repository(s.model), NULL));

    kn_memory_plan plan;
    kn_mem_reset_peak();
    const uint64_t held = kn_mem_read().bytes;
    ok(kn_model_plan(s.model, &request, &plan));
    assert_int_equal(plan.process, held);
    assert_int_equal(kn_mem_read().bytes, held);
    kn_generation *g = NULL;
    ok(kn_generation_create(&g, s.model, &request, &no_sink, NULL));
    while (kn_generation_next(g).kind != KN_SLICE_DECODE) ok(kn_generation_step(&g, 1));
    const uint64_t early = kn_mem_read().peak_bytes;
    run_to_end(g);
    const uint64_t peak = kn_mem_read().peak_bytes;
    snprintf(what, sizeof what, "%s %dx%dx%d", name, (int)width, (int)height, (int)frames);
    const uint64_t workspace =
        plan.text_workspace > plan.denoise_workspace ? plan.text_workspace : plan.denoise_workspace;
    expect_planned(early - held, plan.transformer + plan.state + workspace, OBJECT_BYTES, "before decoding");
    expect_planned(peak, plan.peak, 0, what);
    expect_planned(peak - held, plan.peak - held, OBJECT_BYTES, what);
    kn_generation_destroy(&g);
    kn_request_release(&request);
    subject_close(&s);
}

static subject subject_open_bf16(int fixture, int32_t threads)
{
    subject s;
    ok(subject_try(&s, fixture, threads, NULL, KN_PRECISION_BFLOAT16, KN_PRECISION_BFLOAT16));
    return s;
}

static void planned_bytes_are_used(void **state)
{
    (void)state;
    for (int f = 0; f < (SANITIZED ? 1 : FIXTURES); f++) {
        plan_of(subject_open(f, 2), fixture_names[f], 48, 32, 9, 5.0, KN_SAMPLER_UNIPC);
        plan_of(subject_open(f, 1), fixture_names[f], 16, 16, 1, 1.0, KN_SAMPLER_EULER);
        plan_of(subject_open(f, 2), fixture_names[f], 160, 96, 5, 1.0, KN_SAMPLER_UNIPC);
        plan_of(subject_open(f, 3), fixture_names[f], 64, 64, 33, 4.0, KN_SAMPLER_EULER);
        plan_of(subject_open_bf16(f, 2), fixture_names[f], 80, 48, 17, 5.0, KN_SAMPLER_UNIPC);
    }
}

/* The published widths, one layer deep; random weights. */
static void planned_bytes_of_published_widths(void **state)
{
    (void)state;
    subject s = {0};
    ok(kn_device_open(&s.device, &(kn_device_params){.name = "cpu", .threads = 2}));
    ok(kn_model_open(&s.model, &(kn_model_params){.preset = "wan2.1-1.3b",
                                                  .preset_layers = 1,
                                                  .device = s.device,
                                                  .precision = KN_PRECISION_FLOAT32}));
    plan_of(s, "wan2.1-1.3b", 32, 32, 1, 5.0, KN_SAMPLER_UNIPC);
}

/* Decoding holds the same bytes whatever the number of frames. */
static void decoding_does_not_grow_with_frames(void **state)
{
    (void)state;
    subject s = subject_open(WAN_SMALL, 2);
    uint64_t added[2];
    for (int i = 0; i < 2; i++) {
        kn_request request = fixture_request(WAN_SMALL, 0, &s);
        request.frames = i == 0 ? 9 : 161;
        request.steps = 1;
        kn_generation *g = NULL;
        ok(kn_generation_create(&g, s.model, &request, &no_sink, NULL));
        while (kn_generation_next(g).kind != KN_SLICE_DECODE) ok(kn_generation_step(&g, 1));
        ok(kn_model_prepare(s.model, KN_VAE));
        kn_model_workspace_release(s.model);
        kn_mem_reset_peak();
        const uint64_t held = kn_mem_read().bytes;
        run_to_end(g);
        added[i] = kn_mem_read().peak_bytes - held;
        kn_generation_destroy(&g);
        kn_request_release(&request);
    }
    printf("  %d bytes\n", (int)added[0]);
    assert_true(added[0] > 0);
    assert_int_equal(added[0], added[1]);
    subject_close(&s);
}

/* ---- refused allocations ---- */

/* Everything a generation allocates for: text, the first denoise step, a checkpoint, a preview, a latent frame. The
 * n-th allocation fails; 0: none. */
static kn_status run_with_failure(subject *s, const kn_request *request, const char *path, uint64_t n)
{
    kn_status st = KN_OK;
    kn_generation *g = NULL;
    kn_memory_plan plan;
    float *planes = calloc((size_t)(3 * request->width * request->height), sizeof *planes);
    assert_non_null(planes);
    kn_mem_fail_at(n);
    KN_TRY(kn_model_plan(s->model, request, &plan));
    KN_TRY(kn_generation_create(&g, s->model, request, &no_sink, NULL));
    KN_TRY(kn_generation_step(&g, 1));
    KN_TRY(kn_generation_step(&g, 1));
    KN_TRY(kn_generation_save(g, path));
    KN_TRY(kn_generation_preview(g, planes));
    kn_generation_destroy(&g);
    KN_TRY(kn_generation_resume(&g, s->model, path, &no_sink, NULL));
    while (kn_generation_next(g).kind != KN_SLICE_DECODE) KN_TRY(kn_generation_step(&g, 1));
    KN_TRY(kn_generation_step(&g, 1));
fail:
    kn_mem_fail_at(0);
    kn_generation_destroy(&g);
    free(planes);
    return st;
}

/* Breaks every allocation in turn, each time in a model nothing was generated with. */
static void every_allocation_of_a_run(int fixture, size_t index)
{
    folder at = folder_create();
    const char *path = folder_file(&at, "state");
    const uint64_t before = kn_mem_read().bytes;
    subject s = subject_open(fixture, 1);
    kn_request request = fixture_request(fixture, index, &s);
    request.steps = 2;
    if (request.sigma_count > 0) request.sigma_count = 2;
    recording wanted = run_alone(&s, &request);
    kn_status st = KN_NOMEM;
    uint64_t n = 0;
    while (st != KN_OK) {
        n++;
        assert_true(n < 5000);
        kn_model_close(&s.model);
        kn_device_close(&s.device);
        s = subject_open(fixture, 1);
        st = run_with_failure(&s, &request, path, n);
        if (st != KN_OK) expect_failure(st, KN_NOMEM, "");
        /* The model survives: the same request runs in it, with the same result. */
        if (st == KN_OK || n % 8 != 0) continue;
        recording got = run_alone(&s, &request);
        expect_same_bits(&got, &wanted, NULL, "after a refused allocation");
        recording_free(&got);
    }
    printf("  %s request %zu: %d allocations\n", fixture_names[fixture], index, (int)n - 1);
    assert_true(n > 20);
    recording_free(&wanted);
    kn_request_release(&request);
    subject_close(&s);
    assert_int_equal(kn_mem_read().bytes, before);
    assert_int_equal(folder_count(&at), 1);
    folder_remove(&at);
}

static void refused_allocations_in_a_run(void **state)
{
    (void)state;
    every_allocation_of_a_run(WAN_SMALL, 0);
    every_allocation_of_a_run(WAN_WIDE, 1); /* stored in half precision; Euler */
}

static void refused_allocations_while_opening(void **state)
{
    (void)state;
    const uint64_t before = kn_mem_read().bytes;
    kn_status st = KN_NOMEM;
    uint64_t n = 0;
    while (st != KN_OK) {
        subject s;
        kn_mem_fail_at(++n);
        st = subject_try(&s, WAN_SMALL, 2, NULL, KN_PRECISION_AUTO, KN_PRECISION_AUTO);
        kn_mem_fail_at(0);
        if (st != KN_OK) {
            expect_failure(st, KN_NOMEM, "");
            assert_null(s.model);
        }
        subject_close(&s);
        if (kn_mem_read().bytes != before)
            fail_msg("allocation %d refused: %d bytes leaked", (int)n, (int)(kn_mem_read().bytes - before));
        assert_true(n < 100000);
        if (n > 300) n += n / 16; /* the tokenizer's pieces are all alike */
    }
    printf("  %d allocations\n", (int)n);
    assert_true(n > 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(planned_bytes_are_used),
        cmocka_unit_test(planned_bytes_of_published_widths),
        cmocka_unit_test(decoding_does_not_grow_with_frames),
        cmocka_unit_test(refused_allocations_in_a_run),
        cmocka_unit_test(refused_allocations_while_opening),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

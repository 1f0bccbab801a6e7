/* SPDX-License-Identifier: Apache-2.0
 *
 * Whole generations against diffusers (tests/golden): every request of every fixture, from the prompt to the frames.
 *
 * Bounds, in float32 on every tier. A tensor of the transformer or of the text encoder: 1e-4 of its own standard
 * deviation, per forward; each forward starts from our own latents, so the error of the steps before is in it. The
 * latents after each step: the same. Frames: 2e-3 is the promise; 1e-4 is what is held to, a fortieth of one level of
 * 8-bit video. About 1e-5 is reached. Sigmas and timesteps are equal; noise differs where log and cos round. */
#include "tests/engine/generating.h"

#include <math.h>

#define TENSOR_BOUND 1e-4  /* of the standard deviation */
#define FRAME_BOUND 1e-4   /* absolute, pixels are 0..1 */
#define NOISE_BOUND 3.5e-7 /* relative above one, absolute below */

/* ---- float32 ---- */

static double deviation(const float *x, int64_t count)
{
    double sum = 0.0, squares = 0.0;
    for (int64_t i = 0; i < count; i++) {
        sum += x[i];
        squares += (double)x[i] * x[i];
    }
    const double mean = sum / (double)count;
    return sqrt(squares / (double)count - mean * mean);
}

/* All records `name` against requestI.name; where the fixture stacks them, record i is its i-th part. Returns the
 * largest error: absolute, or over the deviation of the part. */
static double expect_close(const recording *got, const kn_weights *expected, size_t request, const char *name,
                           bool stacked, bool absolute, double bound)
{
    int64_t elements, first;
    const float *wanted = golden_request(expected, request, name, &elements, &first);
    const int64_t parts = stacked ? first : 1, each = elements / parts;
    double worst = 0.0;
    for (int64_t i = 0; i < parts; i++) {
        const record *r = recording_find(got, name, i);
        if (!r) fail_msg("request %zu: no %s[%d]", request, name, (int)i);
        assert_int_equal(r->count, each);
        const double unit = absolute ? 1.0 : deviation(wanted + i * each, each);
        const double error = largest_difference(r->data, wanted + i * each, each) / unit;
        if (!(error <= bound)) fail_msg("request %zu: %s[%d]: %.3e, bound %.1e", request, name, (int)i, error, bound);
        if (error > worst) worst = error;
    }
    assert_null(recording_find(got, name, parts));
    return worst;
}

static void expect_noise(const recording *got, const kn_weights *expected, size_t request)
{
    int64_t count;
    const float *wanted = golden_request(expected, request, "noise", &count, NULL);
    const record *noise = recording_find(got, "noise", 0);
    assert_non_null(noise);
    assert_int_equal(noise->count, count);
    for (int64_t i = 0; i < count; i++)
        if (!(fabsf(noise->data[i] - wanted[i]) <= NOISE_BOUND * fmax(1.0, fabs(wanted[i]))))
            fail_msg("request %zu: noise[%d] is %.9g, expected %.9g", request, (int)i, noise->data[i], wanted[i]);
}

static void expect_schedule(const subject *s, const kn_request *request, const kn_weights *expected, size_t index)
{
    int64_t steps, sigmas;
    kn_generation *g = NULL;
    recording unused = {0};
    const kn_frame_sink sink = recording_sink(&unused, request);
    const float *timesteps = golden_request(expected, index, "timesteps", &steps, NULL);
    const float *levels = golden_request(expected, index, "sigmas", &sigmas, NULL);
    ok(kn_generation_create(&g, s->model, request, &sink, NULL));
    const kn_schedule *schedule = kn_generation_schedule(g);
    assert_int_equal(schedule->steps, steps);
    assert_int_equal(schedule->steps + 1, sigmas);
    assert_memory_equal(schedule->timesteps, timesteps, (size_t)steps * sizeof *timesteps);
    assert_memory_equal(schedule->sigmas, levels, (size_t)sigmas * sizeof *levels);
    assert_string_equal(kn_generation_request(g)->prompt, request->prompt);
    kn_generation_destroy(&g);
    recording_free(&unused);
}

#if defined(KN_SIMT_DEVICE)
enum { BFLOAT16_FRAMES = 0 }; /* the autoencoder computes in float32 there as well */

/* A thread's step costs the executor what a thousand cost a GPU: the longest request is left out, and of the longest
 * of the others the frames, which are the autoencoder's alone. */
static bool left_out(int fixture, size_t request)
{
    return fixture == WAN_SMALL && request == 1;
}

static bool without_frames(int fixture, size_t request)
{
    return fixture == WAN_SMALL && request == 0;
}
#else
enum { BFLOAT16_FRAMES = 1 };

static bool left_out(int fixture, size_t request)
{
    (void)fixture;
    (void)request;
    return false;
}

static bool without_frames(int fixture, size_t request)
{
    return left_out(fixture, request);
}
#endif

/* run_alone, but only to the last latents. */
static recording run_to_latents(const subject *s, const kn_request *request)
{
    recording r = {0};
    kn_generation *g = NULL;
    const kn_frame_sink sink = recording_sink(&r, request);
    const kn_tensor_tap tap = recording_tap(&r);
    ok(kn_generation_create(&g, s->model, request, &sink, &tap));
    while (kn_generation_next(g).kind < KN_SLICE_DECODE) ok(kn_generation_step(&g, 1));
    kn_generation_destroy(&g);
    return r;
}

static void requests_match(int fixture, const char *isa)
{
    subject s;
    kn_status st = subject_try(&s, fixture, 2, isa, KN_PRECISION_FLOAT32, KN_PRECISION_AUTO);
    if (st == KN_UNAVAILABLE) {
        printf("  %s: %s\n", isa, kn_fail_message());
        return;
    }
    ok(st);
    kn_weights *expected = golden_expected(fixture_names[fixture]);
    for (size_t i = 0; i < fixture_requests(fixture); i++) {
        if (left_out(fixture, i)) continue;
        const bool frames_too = !without_frames(fixture, i);
        kn_request request = fixture_request(fixture, i, &s);
        expect_schedule(&s, &request, expected, i);
        recording r = frames_too ? run_alone(&s, &request) : run_to_latents(&s, &request);
        expect_noise(&r, expected, i);
        double text = expect_close(&r, expected, i, "text_positive", false, false, TENSOR_BOUND);
        if (request.guidance > 1.0)
            text = fmax(text, expect_close(&r, expected, i, "text_negative", false, false, TENSOR_BOUND));
        else
            assert_null(recording_find(&r, "text_negative", 0));
        const double velocity = expect_close(&r, expected, i, "velocity", true, false, TENSOR_BOUND);
        const double latents = expect_close(&r, expected, i, "latents", true, false, TENSOR_BOUND);
        printf("  %s %s request %zu: text %.1e, velocity %.1e, latents %.1e of the deviation", isa,
               fixture_names[fixture], i, text, velocity, latents);
        if (frames_too) printf("; frames %.1e", expect_close(&r, expected, i, "frames", true, true, FRAME_BOUND));
        printf("\n");
        recording_free(&r);
        kn_request_release(&request);
    }
    kn_weights_close(&expected);
    subject_close(&s);
}

#if !defined(KN_SIMT_DEVICE)
static const char *const tiers[] = {"ref", "avx2", "avx512", "avx512bf16"};
enum { TIERS = sizeof tiers / sizeof *tiers };
#endif

static void every_request_matches(void **state)
{
    (void)state;
#if defined(KN_SIMT_DEVICE)
    requests_match(WAN_SMALL, "cuda");
#else
    for (int tier = 0; tier < TIERS; tier++)
        for (int fixture = 0; fixture < FIXTURES; fixture++)
            if (fixture_meets(fixture, tier)) requests_match(fixture, tiers[tier]);
#endif
}

/* ---- bfloat16 ---- */

static double rms_difference(const float *got, const float *wanted, int64_t count)
{
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++) sum += ((double)got[i] - wanted[i]) * ((double)got[i] - wanted[i]);
    return sqrt(sum / (double)count);
}

/* How much further from the oracle than diffusers' own bfloat16 our record `name` is: the last one where the oracle
 * has one for each step, all of them end to end for frames. */
static double expect_as_close(const recording *got, const kn_weights *expected, const kn_weights *peer, size_t request,
                              const char *name, double bound)
{
    char key[64];
    int64_t elements, first;
    const float *exact = golden_request(expected, request, name, &elements, &first);
    const bool steps = strcmp(name, "latents") == 0, frames = strcmp(name, "frames") == 0;
    const int64_t each = steps || frames ? elements / first : elements, count = frames ? elements : each;
    if (steps) exact += elements - each;
    kn_tensor theirs;
    snprintf(key, sizeof key, "request%zu.%s", request, name);
    ok(kn_weights_find(peer, key, &theirs));
    assert_int_equal(kn_tensor_count(&theirs), count);
    float *mine = calloc((size_t)count, sizeof *mine), *other = calloc((size_t)count, sizeof *other);
    assert_true(mine && other);
    for (int64_t i = 0; i < count; i++) other[i] = kn_tensor_value(&theirs, i);
    for (int64_t i = 0; i * each < count; i++) {
        const record *r = recording_find(got, name, steps ? first - 1 : i);
        assert_non_null(r);
        assert_int_equal(r->count, each);
        memcpy(mine + i * each, r->data, (size_t)each * sizeof *mine);
    }
    const double ours = rms_difference(mine, exact, count), allowed = bound * rms_difference(other, exact, count);
    free(mine);
    free(other);
    if (!(ours <= allowed))
        fail_msg("request %zu: %s is %.3e from float32, allowed %.3e", request, name, ours, allowed);
    return ours * bound / allowed;
}

/* Whole runs with transformer and text encoder in bfloat16 are no further from the float32 oracle than 1.25 times what
 * diffusers' own bfloat16 is (tests/golden/generate_bfloat16.py), root mean square. Not everything diffusers rounds is
 * rounded here (NUMERICS.md, "Precision"). */
static void bfloat16_requests_match(int fixture, const char *isa)
{
    static const char *const names[] = {"text_positive", "latents", "frames"};
    enum { NAMES = sizeof names / sizeof *names, FRAMES = NAMES - 1 };
    subject s;
    char path[1024];
    kn_weights *peer;
    kn_status st = subject_try(&s, fixture, 2, isa, KN_PRECISION_BFLOAT16, KN_PRECISION_FLOAT32);
    if (st == KN_UNAVAILABLE) {
        printf("  %s: %s\n", isa, kn_fail_message());
        return;
    }
    ok(st);
    kn_weights *expected = golden_expected(fixture_names[fixture]);
    snprintf(path, sizeof path, "%s/tests/golden/%s/bfloat16.safetensors", KN_SOURCE_DIR, fixture_names[fixture]);
    ok(kn_weights_open_file(&peer, path));
    for (size_t i = 0; i < fixture_requests(fixture); i++) {
        if (left_out(fixture, i)) continue;
        const bool frames_too = BFLOAT16_FRAMES && !without_frames(fixture, i);
        kn_request request = fixture_request(fixture, i, &s);
        recording r = frames_too ? run_alone(&s, &request) : run_to_latents(&s, &request);
        double ratio[NAMES];
        for (int n = 0; n < (frames_too ? NAMES : FRAMES); n++)
            ratio[n] = expect_as_close(&r, expected, peer, i, names[n], 1.25);
        printf("  %s %s request %zu in bfloat16: text %.2f, latents %.2f", isa, fixture_names[fixture], i, ratio[0],
               ratio[1]);
        if (frames_too) printf(", frames %.2f", ratio[FRAMES]);
        printf(" of diffusers' distance\n");
        recording_free(&r);
        kn_request_release(&request);
    }
    kn_weights_close(&peer);
    kn_weights_close(&expected);
    subject_close(&s);
}

static void bfloat16_is_as_close_as_diffusers(void **state)
{
    (void)state;
#if defined(KN_SIMT_DEVICE)
    bfloat16_requests_match(WAN_SMALL, "sm90");
#else
    for (int tier = 0; tier < TIERS; tier++)
        for (int fixture = 0; fixture < FIXTURES; fixture++)
            if (fixture_meets(fixture, tier + 1)) bfloat16_requests_match(fixture, tiers[tier]);
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_request_matches),
        cmocka_unit_test(bfloat16_is_as_close_as_diffusers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

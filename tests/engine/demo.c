/* SPDX-License-Identifier: Apache-2.0
 *
 * The demo model (models/demo) against diffusers: a trained model, whose numbers random weights do not have. The
 * fixture is tests/golden/demo-model: a landscape and a square clip of whole length, the last latents as float32 and
 * some frames as 8-bit pixels.
 *
 * Bounds: latents to 1e-4 of their standard deviation, as in generation.c. Frames: 50 dB over all kept pixels is what
 * is promised, and no pixel more than one level off is what float32 gives. Also what the folder's own defaults are,
 * since the demo's command line gives none. */
#include "tests/engine/generating.h"

#include <math.h>

#define DEMO_FOLDER "models/demo"
#define DEMO_FIXTURE "demo-model"
#define LATENT_BOUND 1e-4 /* of the standard deviation */
#define PSNR_BOUND 50.0   /* dB, of 8-bit pixels */

/* Largest difference over the deviation of what is expected. */
static double latents_off(const recording *got, const kn_weights *expected, size_t request, int32_t steps)
{
    int64_t count;
    const float *wanted = golden_request(expected, request, "latents", &count, NULL);
    const record *last = recording_find(got, "latents", steps - 1);
    double sum = 0.0, squares = 0.0, largest = 0.0;
    assert_non_null(last);
    assert_int_equal(last->count, count);
    for (int64_t i = 0; i < count; i++) {
        const double off = fabs((double)last->data[i] - (double)wanted[i]);
        if (!(off <= largest)) largest = off; /* NaN sticks */
        sum += wanted[i];
        squares += (double)wanted[i] * wanted[i];
    }
    const double mean = sum / (double)count;
    return largest / sqrt(squares / (double)count - mean * mean);
}

static FILE *open_frames(size_t request)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/golden/%s/request%zu.frames.rgb", KN_SOURCE_DIR, DEMO_FIXTURE, request);
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("%s: cannot be opened", path);
    return file;
}

static int level_of(float value)
{
    return value >= 1.0f ? 255 : value > 0.0f ? (int)(value * 255.0f + 0.5f) : 0;
}

/* Peak signal to noise ratio over the kept frames, in dB; *levels is the largest difference of a pixel. */
static double frames_psnr(const recording *got, const json_t *kept, size_t request, int *levels)
{
    FILE *file = open_frames(request);
    const int64_t plane = got->height * got->width;
    const size_t frames = json_array_size(kept);
    double squares = 0.0;
    *levels = 0;
    for (size_t f = 0; f < frames; f++) {
        const record *frame = recording_find(got, "frames", json_integer_value(json_array_get(kept, f)));
        assert_non_null(frame);
        for (int64_t i = 0; i < 3 * plane; i++) { /* the file's pixels are interleaved, ours are planes */
            const int wanted = fgetc(file);
            assert_true(wanted != EOF);
            const int off = abs(level_of(frame->data[i % 3 * plane + i / 3]) - wanted);
            if (off > *levels) *levels = off;
            squares += (double)off * off;
        }
    }
    assert_int_equal(fgetc(file), EOF);
    fclose(file);
    const double mean = squares / ((double)frames * 3.0 * (double)plane);
    return 10.0 * log10(255.0 * 255.0 / fmax(mean, 1e-9));
}

enum { REQUESTS = 2 };

static void requests_match(const char *isa)
{
    subject s;
    kn_status st = subject_at(&s, DEMO_FOLDER, 2, isa, KN_PRECISION_FLOAT32, KN_PRECISION_FLOAT32);
    if (st == KN_UNAVAILABLE) {
        printf("  %s: %s\n", isa, kn_fail_message());
        return;
    }
    ok(st);
    json_t *root = golden_json(DEMO_FIXTURE "/case.json");
    kn_weights *expected = golden_expected(DEMO_FIXTURE);
    assert_int_equal(case_requests(DEMO_FIXTURE), REQUESTS);
    for (size_t i = 0; i < (SANITIZED ? 1 : REQUESTS); i++) {
        kn_request request = case_request(DEMO_FIXTURE, i, &s);
        recording r = run_alone(&s, &request);
        int levels;
        const double latents = latents_off(&r, expected, i, request.steps);
        const double psnr = frames_psnr(&r, golden_get(root, "kept"), i, &levels);
        printf("  %s request %zu: latents %.1e of the deviation, frames %.1f dB, %d levels\n", isa, i, latents, psnr,
               levels);
        if (!(latents <= LATENT_BOUND && psnr >= PSNR_BOUND && levels <= 1))
            fail_msg("%s request %zu: latents %.3e (bound %.0e), frames %.1f dB (bound %.0f), %d levels (bound 1); "
                     "after new weights, run tests/golden/generate_demo.py",
                     isa, i, latents, LATENT_BOUND, psnr, PSNR_BOUND, levels);
        recording_free(&r);
        kn_request_release(&request);
    }
    kn_weights_close(&expected);
    json_decref(root);
    subject_close(&s);
}

static void fixture_matches(void **state)
{
    (void)state;
    static const char *const tiers[] = {"avx2", "avx512"};
    for (size_t tier = 0; tier < (SANITIZED ? 1 : sizeof tiers / sizeof *tiers); tier++) requests_match(tiers[tier]);
}

/* A prompt alone is a whole request: kinora.json says the rest, not Wan's 832x480, 81 frames and 50 steps. */
static void a_prompt_is_enough(void **state)
{
    (void)state;
    kn_repository *repository = NULL;
    ok(kn_repository_open(&repository, KN_SOURCE_DIR "/" DEMO_FOLDER));
    kn_request r = kn_request_empty();
    kn_request_notes notes;
    r.prompt = kn_strdup("a red ball");
    ok(kn_request_resolve(&r, repository, &notes));
    assert_int_equal(notes.count, 0);
    assert_int_equal(r.width, 96);
    assert_int_equal(r.height, 64);
    assert_int_equal(r.frames, 33);
    assert_int_equal(r.fps_numerator, 16);
    assert_int_equal(r.fps_denominator, 1);
    assert_in_range(r.steps, 1, 20);
    assert_true(r.guidance >= 1.0 && r.guidance < 5.0);
    assert_true(r.shift == 3.0);
    kn_request_release(&r);
    kn_repository_close(&repository);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fixture_matches),
        cmocka_unit_test(a_prompt_is_enough),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

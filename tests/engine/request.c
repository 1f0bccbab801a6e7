/* SPDX-License-Identifier: Apache-2.0
 *
 * Requests: defaults come from the model, rounding is said, every limit has a message of its own, and JSON gives
 * back what it was given. */
#include "tests/engine/golden.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "engine/request.h"

static kn_repository *small, *published;

static void ok(kn_status st)
{
    if (st != KN_OK) fail_msg("%s: %s", kn_status_name(st), kn_fail_message());
}

static int open_repositories(void **state)
{
    (void)state;
    return kn_repository_open(&small, KN_SOURCE_DIR "/tests/golden/wan21-small/model") != KN_OK ||
           kn_repository_preset(&published, "wan2.1-1.3b", 0) != KN_OK;
}

static int close_repositories(void **state)
{
    (void)state;
    kn_repository_close(&small);
    kn_repository_close(&published);
    return kn_mem_read().bytes != 0; /* nothing of what the tests allocated is left */
}

static kn_request with_prompt(const char *prompt)
{
    kn_request r = kn_request_empty();
    r.prompt = kn_strdup(prompt);
    return r;
}

static void expect_refused(kn_request *r, const char *text)
{
    kn_request_notes notes;
    kn_status st = kn_request_resolve(r, published, &notes);
    if (st != KN_INVALID) fail_msg("%s instead of invalid, expected \"%s\"", kn_status_name(st), text);
    if (!strstr(kn_fail_message(), text)) fail_msg("\"%s\" does not say \"%s\"", kn_fail_message(), text);
    kn_request_release(r);
}

/* ---- defaults ---- */

static void published_defaults(void **state)
{
    (void)state;
    kn_request r = with_prompt("a red ball");
    kn_request_notes notes = {.count = 3};
    ok(kn_request_resolve(&r, published, &notes));
    assert_int_equal(notes.count, 0);
    assert_string_equal(r.prompt, "a red ball");
    assert_string_equal(r.negative_prompt, "");
    assert_int_equal(r.width, 832);
    assert_int_equal(r.height, 480);
    assert_int_equal(r.frames, 81);
    assert_int_equal(r.fps_numerator, 16);
    assert_int_equal(r.fps_denominator, 1);
    assert_int_equal(r.steps, 50);
    assert_true(r.guidance == 5.0);
    assert_true(r.has_sampler);
    assert_int_equal(r.sampler, KN_SAMPLER_UNIPC);
    assert_true(r.shift == published->sampler.shift);
    assert_int_equal(r.sigma_count, 0);
    assert_int_equal(r.seed, 0);
    const kn_latent_shape shape = kn_request_latent(&r, published);
    assert_int_equal(shape.channels, 16);
    assert_int_equal(shape.t, 21);
    assert_int_equal(shape.h, 60);
    assert_int_equal(shape.w, 104);
    ok(kn_request_resolve(&r, published, &notes)); /* resolving what is resolved changes nothing */
    assert_int_equal(notes.count, 0);
    assert_int_equal(r.frames, 81);
    kn_request_release(&r);
    assert_null(r.prompt);
    assert_true(isnan(r.guidance) && isnan(r.shift));
}

/* The folder's own word, where it has one, goes before the published default. */
static void defaults_of_the_folder(void **state)
{
    (void)state;
    kn_repository own = *small;
    own.default_width = 64;
    own.default_height = 48;
    own.default_frames = 5;
    own.default_steps = 7;
    own.default_guidance = 1.5;
    own.sampler.kind = KN_SAMPLER_EULER;
    own.sampler.shift = 2.5;
    const struct {
        double rate;
        int32_t numerator, denominator;
    } rates[] = {{24.0, 24, 1}, {23.976, 23976, 1000}, {12.5, 125, 10}, {0.1, 1, 10}};
    for (size_t i = 0; i < sizeof rates / sizeof *rates; i++) {
        own.default_fps = rates[i].rate;
        kn_request r = with_prompt("x");
        ok(kn_request_resolve(&r, &own, NULL));
        assert_int_equal(r.width, 64);
        assert_int_equal(r.height, 48);
        assert_int_equal(r.frames, 5);
        assert_int_equal(r.steps, 7);
        assert_true(r.guidance == 1.5);
        assert_int_equal(r.sampler, KN_SAMPLER_EULER);
        assert_true(r.shift == 2.5);
        assert_true((int64_t)r.fps_numerator * rates[i].denominator == (int64_t)r.fps_denominator * rates[i].numerator);
        kn_request_release(&r);
    }
}

static void given_values_stay(void **state)
{
    (void)state;
    kn_request r = with_prompt("x");
    r.negative_prompt = kn_strdup("y");
    r.width = 416;
    r.height = 240;
    r.frames = 17;
    r.fps_numerator = 24000;
    r.fps_denominator = 1001;
    r.guidance = 0.0; /* not "default" */
    r.shift = 8.0;
    r.seed = UINT64_MAX;
    r.has_sampler = true;
    r.sampler = KN_SAMPLER_EULER;
    r.sigma_count = 3;
    r.sigmas[0] = 1.0;
    r.sigmas[1] = 0.5;
    r.sigmas[2] = 0.25;
    kn_request_notes notes;
    ok(kn_request_resolve(&r, published, &notes));
    assert_int_equal(notes.count, 0);
    assert_string_equal(r.negative_prompt, "y");
    assert_int_equal(r.width, 416);
    assert_int_equal(r.height, 240);
    assert_int_equal(r.frames, 17);
    assert_int_equal(r.fps_numerator, 24000);
    assert_int_equal(r.fps_denominator, 1001);
    assert_true(r.guidance == 0.0 && r.shift == 8.0);
    assert_true(r.seed == UINT64_MAX);
    assert_int_equal(r.sampler, KN_SAMPLER_EULER);
    assert_int_equal(r.steps, 3); /* follows from the sigmas */
    kn_schedule schedule;
    ok(kn_request_schedule(&schedule, &r, published));
    assert_int_equal(schedule.kind, KN_SAMPLER_EULER);
    assert_int_equal(schedule.steps, 3);
    assert_true(schedule.sigmas[0] == 1.0f && schedule.sigmas[3] == 0.0f);
    kn_request_release(&r);
}

/* A model whose folder names Euler can be run with UniPC: second order, on its own shift. */
static void another_sampler_than_the_folders(void **state)
{
    (void)state;
    kn_repository own = *small;
    own.sampler =
        (kn_sampler_config){.kind = KN_SAMPLER_EULER, .num_train_timesteps = 1000, .solver_order = 1, .shift = 4.0};
    kn_request r = with_prompt("x");
    r.has_sampler = true;
    r.sampler = KN_SAMPLER_UNIPC;
    ok(kn_request_resolve(&r, &own, NULL));
    kn_schedule schedule;
    ok(kn_request_schedule(&schedule, &r, &own));
    assert_int_equal(schedule.kind, KN_SAMPLER_UNIPC);
    assert_int_equal(schedule.solver_order, 2);
    assert_true(r.shift == 4.0);
    kn_request_release(&r);
}

/* ---- rounding ---- */

static void rounding_is_said(void **state)
{
    (void)state;
    kn_request r = with_prompt("x");
    kn_request_notes notes;
    r.width = 847;
    r.height = 481;
    r.frames = 80;
    ok(kn_request_resolve(&r, published, &notes));
    assert_int_equal(r.width, 832);
    assert_int_equal(r.height, 480);
    assert_int_equal(r.frames, 81);
    assert_int_equal(notes.count, 3);
    assert_string_equal(notes.text[0], "width 847 rounded to 832 (a multiple of 16)");
    assert_string_equal(notes.text[1], "height 481 rounded to 480 (a multiple of 16)");
    assert_string_equal(notes.text[2], "frames 80 rounded to 81 (4n + 1)");
    kn_request_release(&r);
}

/* As diffusers: frames // 4 * 4 + 1. */
static void frames_round_as_in_diffusers(void **state)
{
    (void)state;
    for (int32_t frames = 1; frames < 30; frames++) {
        kn_request r = with_prompt("x");
        kn_request_notes notes;
        r.frames = frames;
        ok(kn_request_resolve(&r, published, &notes));
        assert_int_equal(r.frames, frames % 4 == 1 ? frames : frames / 4 * 4 + 1);
        assert_int_equal(notes.count, frames % 4 != 1);
        assert_int_equal(kn_request_latent(&r, published).t, (r.frames - 1) / 4 + 1);
        kn_request_release(&r);
    }
}

/* ---- limits ---- */

static void prompt_limits(void **state)
{
    (void)state;
    kn_request r = kn_request_empty();
    expect_refused(&r, "prompt is missing");
    char *text = kn_alloc(KN_PROMPT_BYTES_MAX + 2);
    assert_non_null(text);
    memset(text, 'x', KN_PROMPT_BYTES_MAX);
    r = with_prompt(text);
    ok(kn_request_resolve(&r, published, NULL));
    kn_request_release(&r);
    text[KN_PROMPT_BYTES_MAX] = 'x';
    r = with_prompt(text);
    expect_refused(&r, "prompt has 131073 bytes; at most 131072");
    r = with_prompt("x");
    r.negative_prompt = kn_strdup(text);
    expect_refused(&r, "negative_prompt has 131073 bytes; at most 131072");
    kn_free(text);
}

typedef enum field { WIDTH, HEIGHT, FRAMES, STEPS } field;

static kn_request with_integer(field which, int32_t value)
{
    kn_request r = with_prompt("x");
    int32_t *const fields[] = {&r.width, &r.height, &r.frames, &r.steps};
    *fields[which] = value;
    return r;
}

/* First and last value taken, and the neighbours refused by name and limit. */
static void integer_limits(void **state)
{
    (void)state;
    static const struct {
        field which;
        int32_t low, high;
        const char *below, *above;
    } rows[] = {
        {WIDTH, 16, 8192, "width is 15; it must be 16 to 8192", "width is 8193; it must be 16 to 8192"},
        {HEIGHT, 16, 8192, "height is 15; it must be 16 to 8192", "height is 8193; it must be 16 to 8192"},
        {FRAMES, 1, 4093, "frames is -1; it must be 1 to 4093", "frames is 4094; it must be 1 to 4093"},
        {STEPS, 1, 1000, "steps is -1; it must be 1 to 1000", "steps is 1001; it must be 1 to 1000"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (int end = 0; end < 2; end++) {
            kn_request r = with_integer(rows[i].which, end ? rows[i].high : rows[i].low);
            if (rows[i].which == STEPS && end) r.shift = 1.0; /* a larger shift crowds a thousand sigmas */
            ok(kn_request_resolve(&r, published, NULL));
            kn_request_release(&r);
        }
        kn_request r = with_integer(rows[i].which, rows[i].low > 1 ? rows[i].low - 1 : -1);
        expect_refused(&r, rows[i].below);
        r = with_integer(rows[i].which, rows[i].high + 1);
        expect_refused(&r, rows[i].above);
        r = with_integer(rows[i].which, INT32_MAX);
        expect_refused(&r, "is 2147483647; it must be");
        r = with_integer(rows[i].which, INT32_MIN);
        expect_refused(&r, "is -2147483648; it must be");
    }
}

/* The positions the transformer knows bound the size before the general limit does. */
static void positions_limit_the_size(void **state)
{
    (void)state;
    kn_repository own = *small;
    own.dit.rope_max_seq_len = 8;
    kn_request r = with_integer(WIDTH, 129);
    assert_int_equal(kn_request_resolve(&r, &own, NULL), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "width is 129; it must be 16 to 128"));
    r.width = 128;
    r.height = 128;
    r.frames = 30;
    assert_int_equal(kn_request_resolve(&r, &own, NULL), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "frames is 30; it must be 1 to 29"));
    r.frames = 29;
    ok(kn_request_resolve(&r, &own, NULL));
    kn_request_release(&r);
}

static void rate_limits(void **state)
{
    (void)state;
    static const struct {
        int32_t numerator, denominator;
        bool taken;
    } rates[] = {{240, 1, true},  {1, 10, true},    {30000, 1001, true}, {241, 1, false},
                 {1, 11, false},  {0, 1, false},    {16, 0, false},      {-16, 1, false},
                 {16, -1, false}, {-16, -1, false}, {481, 2, false},     {19, 199, false}};
    for (size_t i = 0; i < sizeof rates / sizeof *rates; i++) {
        char text[64];
        kn_request r = with_prompt("x");
        r.fps_numerator = rates[i].numerator;
        r.fps_denominator = rates[i].denominator;
        snprintf(text, sizeof text, "fps is %d/%d; it must be 0.1 to 240", (int)r.fps_numerator,
                 (int)r.fps_denominator);
        if (!rates[i].taken) {
            expect_refused(&r, text);
            continue;
        }
        ok(kn_request_resolve(&r, published, NULL));
        assert_int_equal(r.fps_numerator, rates[i].numerator);
        kn_request_release(&r);
    }
}

static void scale_limits(void **state)
{
    (void)state;
    static const struct {
        double value;
        const char *text; /* NULL: taken */
    } guidances[] = {{0.0, NULL},
                     {100.0, NULL},
                     {-0.5, "guidance is -0.5; it must be 0 to 100"},
                     {100.5, "guidance is 100.5; it must be 0 to 100"},
                     {INFINITY, "guidance is inf; it must be 0 to 100"}},
      shifts[] = {{1.0, NULL},
                  {0.0, "shift is 0; it must be above 0 and at most 1000"},
                  {-3.0, "shift is -3; it must be above 0 and at most 1000"},
                  {1001.0, "shift is 1001; it must be above 0 and at most 1000"},
                  {INFINITY, "shift is inf; it must be above 0 and at most 1000"}};
    for (int i = 0; i < 10; i++) {
        kn_request r = with_prompt("x");
        *(i < 5 ? &r.guidance : &r.shift) = i < 5 ? guidances[i].value : shifts[i - 5].value;
        const char *text = i < 5 ? guidances[i].text : shifts[i - 5].text;
        if (text) {
            expect_refused(&r, text);
            continue;
        }
        ok(kn_request_resolve(&r, published, NULL));
        kn_request_release(&r);
    }
}

static void sigma_limits(void **state)
{
    (void)state;
    static const struct {
        double sigmas[3];
        int32_t count, steps;
        const char *text;
    } rows[] = {
        {{1.0, 0.5}, 2, 3, "steps is 3 but 2 sigmas were given"},
        {{1.5, 0.5}, 2, 0, "sigmas[0] is 1.5"},
        {{1.0, 0.0}, 2, 0, "sigmas[1] is 0"},
        {{1.0, 0.5, 0.5}, 3, 0, "sigmas[2] is 0.5 after 0.5"},
        {{1.0, NAN}, 2, 0, "sigmas[1] is nan"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        kn_request r = with_prompt("x");
        memcpy(r.sigmas, rows[i].sigmas, sizeof rows[i].sigmas);
        r.sigma_count = rows[i].count;
        r.steps = rows[i].steps;
        expect_refused(&r, rows[i].text);
    }
    kn_request r = with_prompt("x"); /* the right number of steps may be given beside */
    r.sigmas[0] = 0.75;
    r.sigma_count = r.steps = 1;
    ok(kn_request_resolve(&r, published, NULL));
    kn_request_release(&r);
}

/* ---- JSON ---- */

static void expect_equal(const kn_request *a, const kn_request *b)
{
    assert_string_equal(a->prompt, b->prompt);
    assert_string_equal(a->negative_prompt, b->negative_prompt);
    assert_int_equal(a->width, b->width);
    assert_int_equal(a->height, b->height);
    assert_int_equal(a->frames, b->frames);
    assert_int_equal(a->fps_numerator, b->fps_numerator);
    assert_int_equal(a->fps_denominator, b->fps_denominator);
    assert_int_equal(a->steps, b->steps);
    assert_true(a->guidance == b->guidance);
    assert_true(a->seed == b->seed);
    assert_true(a->has_sampler && b->has_sampler);
    assert_int_equal(a->sampler, b->sampler);
    assert_true(a->shift == b->shift);
    assert_int_equal(a->sigma_count, b->sigma_count);
    for (int32_t i = 0; i < a->sigma_count; i++) assert_true(a->sigmas[i] == b->sigmas[i]);
}

static void json_round_trip(void **state)
{
    (void)state;
    for (int variant = 0; variant < 2; variant++) {
        kn_request r = with_prompt("caf\xc3\xa9 \"dusk\"\n\t\\ \xf0\x9f\x8f\x80"), read;
        char *text = NULL, *again = NULL;
        r.negative_prompt = kn_strdup("\x01");
        r.seed = UINT64_MAX - (uint64_t)variant;
        r.guidance = 1.0 / 3.0;
        r.shift = nextafter(3.0, 4.0);
        r.fps_numerator = 24000;
        r.fps_denominator = 1001;
        r.has_sampler = variant == 1;
        r.sampler = KN_SAMPLER_EULER;
        if (variant == 1) {
            r.sigma_count = KN_STEPS_MAX;
            for (int i = 0; i < KN_STEPS_MAX; i++) r.sigmas[i] = 1.0 - i * (1.0 / 1024.0 / 3.0 * 2.9);
        }
        ok(kn_request_resolve(&r, published, NULL));
        ok(kn_request_to_json(&text, &r));
        assert_null(strchr(text, '\n'));
        ok(kn_request_from_json(&read, text, "here"));
        expect_equal(&read, &r);
        ok(kn_request_resolve(&read, published, NULL));
        ok(kn_request_to_json(&again, &read));
        assert_string_equal(again, text);
        kn_free(text);
        kn_free(again);
        kn_request_release(&r);
        kn_request_release(&read);
    }
}

static void text_that_json_cannot_hold(void **state)
{
    (void)state;
    kn_request r = with_prompt("\xff");
    char *text = NULL;
    kn_status st = kn_request_resolve(&r, published, NULL);
    if (st == KN_OK) st = kn_request_to_json(&text, &r);
    assert_int_equal(st, KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "not valid UTF-8"));
    assert_null(text);
    kn_request_release(&r);
}

/* One line with a member replaced by `value`, or left out when that is NULL. */
static char *json_with(const char *key, const char *value)
{
    kn_request r = with_prompt("x");
    char *text;
    r.sigma_count = 2;
    r.sigmas[0] = 1.0;
    r.sigmas[1] = 0.5;
    ok(kn_request_resolve(&r, published, NULL));
    ok(kn_request_to_json(&text, &r));
    kn_request_release(&r);
    json_t *root = json_loads(text, 0, NULL);
    assert_non_null(root);
    kn_free(text);
    if (value)
        assert_int_equal(json_object_set_new(root, key, json_loads(value, JSON_DECODE_ANY, NULL)), 0);
    else
        assert_int_equal(json_object_del(root, key), 0);
    text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    return text;
}

static void expect_corrupt(const char *json, const char *what)
{
    kn_request r = kn_request_empty();
    kn_status st = kn_request_from_json(&r, json, "state.ckpt");
    if (st != KN_CORRUPT) fail_msg("%s instead of corrupt: %s", kn_status_name(st), json);
    if (!strstr(kn_fail_message(), what) || !strstr(kn_fail_message(), "state.ckpt"))
        fail_msg("\"%s\" does not name the file and \"%s\"", kn_fail_message(), what);
    assert_null(r.prompt);
}

static void bad_json(void **state)
{
    (void)state;
    static const char *const keys[] = {"prompt",  "negative_prompt", "width", "height", "frames",
                                       "steps",   "fps_numerator",   "seed",  "shift",  "fps_denominator",
                                       "sampler", "guidance",        "sigmas"};
    static const char *const wrong[][2] = {
        {"prompt", "7"},
        {"negative_prompt", "null"},
        {"width", "0"},
        {"width", "\"48\""},
        {"height", "-16"},
        {"frames", "1.5"},
        {"steps", "99999999999"},
        {"fps_numerator", "0"},
        {"fps_denominator", "0"},
        {"guidance", "\"5\""},
        {"shift", "null"},
        {"seed", "7"},
        {"seed", "\"\""},
        {"seed", "\"12x\""},
        {"sampler", "\"ddim\""},
        {"sampler", "1"},
        {"sigmas", "{}"},
        {"sigmas", "[1.0,\"0.5\"]"},
        {"seed", "\"18446744073709551616\""},
        {"seed", "\"-1\""},
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        char *text = json_with(keys[i], NULL);
        expect_corrupt(text, keys[i]);
        free(text);
    }
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char *text = json_with(wrong[i][0], wrong[i][1]);
        expect_corrupt(text, wrong[i][0]);
        free(text);
    }
    static const char *const broken[] = {"", "{", "[]", "null", "{} {}", "{\"prompt\":\"a\",\"prompt\":\"b\"}"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) expect_corrupt(broken[i], "state.ckpt");
    char many[2 * KN_STEPS_MAX + 4] = "[1"; /* one more than there may be */
    for (int i = 0; i < KN_STEPS_MAX; i++) memcpy(many + 2 + 2 * i, ",1", 2);
    many[2 + 2 * KN_STEPS_MAX] = ']';
    char *text = json_with("sigmas", many);
    expect_corrupt(text, "sigmas must be an array of at most 1000 numbers");
    free(text);
}

/* Every allocation refused in turn: no memory, and nothing leaks (close_repositories looks). */
static void refused_allocations(void **state)
{
    (void)state;
    kn_status st = KN_NOMEM;
    for (uint64_t n = 1; st != KN_OK; n++) {
        kn_request r = with_prompt("x"), read = kn_request_empty();
        char *text = NULL;
        kn_mem_fail_at(n);
        st = kn_request_resolve(&r, published, NULL);
        if (st == KN_OK) st = kn_request_to_json(&text, &r);
        if (st == KN_OK) st = kn_request_from_json(&read, text, "here");
        kn_mem_fail_at(0);
        assert_true(st == KN_OK || st == KN_NOMEM);
        assert_true(n < 100);
        kn_free(text);
        kn_request_release(&read);
        kn_request_release(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_defaults),
        cmocka_unit_test(defaults_of_the_folder),
        cmocka_unit_test(given_values_stay),
        cmocka_unit_test(another_sampler_than_the_folders),
        cmocka_unit_test(rounding_is_said),
        cmocka_unit_test(frames_round_as_in_diffusers),
        cmocka_unit_test(prompt_limits),
        cmocka_unit_test(integer_limits),
        cmocka_unit_test(positions_limit_the_size),
        cmocka_unit_test(rate_limits),
        cmocka_unit_test(scale_limits),
        cmocka_unit_test(sigma_limits),
        cmocka_unit_test(json_round_trip),
        cmocka_unit_test(text_that_json_cannot_hold),
        cmocka_unit_test(bad_json),
        cmocka_unit_test(refused_allocations),
    };
    return cmocka_run_group_tests(tests, open_repositories, close_repositories);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * What follows from a request: the engine's request and the API's names for its refusals, deadlines, the record's extra
 * JSON, fingerprints, idempotency keys. */
#include "tests/server/protocol.h"

#include <math.h>

#include "server/video_request.h"

static kn_api_error error;
static kn_repository *repository;
static kn_video_model model;

static int open_model(void **state)
{
    count_allocations(state);
    if (kn_repository_preset(&repository, "wan2.1-1.3b", 0) != KN_OK) return 1;
    model = (kn_video_model){.name = "wan", .repository = repository};
    return 0;
}

static int close_model(void **state)
{
    kn_repository_close(&repository);
    return nothing_left(state);
}

static kn_video_params params_of(const char *members)
{
    kn_video_params p;
    char *json = kn_format("{\"prompt\":\"a red ball\"%s%s}", members[0] ? "," : "", members);
    ok(kn_video_request_parse(&p, KN_VIDEO_CREATE, json, strlen(json), "application/json", &error));
    kn_free(json);
    return p;
}

static kn_status resolve(kn_request *out, const char *members, kn_request_notes *notes)
{
    kn_video_params p = params_of(members);
    kn_status st = kn_video_params_to_request(out, &p, &model, 99, notes, &error);
    kn_video_params_release(&p);
    return st;
}

static void defaults(void **state)
{
    (void)state;
    kn_request r;
    ok(resolve(&r, "", NULL));
    assert_string_equal(r.prompt, "a red ball");
    assert_string_equal(r.negative_prompt, "");
    assert_int_equal(r.width, repository->default_width);
    assert_int_equal(r.height, repository->default_height);
    assert_int_equal(r.frames, repository->default_frames);
    assert_int_equal(r.steps, repository->default_steps);
    assert_true(r.guidance == repository->default_guidance && r.shift == repository->sampler.shift);
    assert_true(r.seed == 99); /* the random one */
    assert_int_equal(r.sampler, repository->sampler.kind);
    kn_request_release(&r);
}

static void everything_asked_for(void **state)
{
    (void)state;
    kn_request r;
    kn_request_notes notes;
    ok(resolve(&r,
               "\"negative_prompt\":\"blur\",\"size\":\"640x368\",\"num_frames\":33,\"fps\":23.976,\"seed\":7,"
               "\"num_inference_steps\":20,\"guidance_scale\":1.5,\"flow_shift\":4,\"sampler\":\"euler\"",
               &notes));
    assert_string_equal(r.negative_prompt, "blur");
    assert_int_equal(r.width, 640);
    assert_int_equal(r.height, 368);
    assert_int_equal(r.frames, 33);
    assert_int_equal(r.fps_numerator, 2997);
    assert_int_equal(r.fps_denominator, 125);
    assert_int_equal(r.steps, 20);
    assert_true(r.guidance == 1.5 && r.shift == 4 && r.seed == 7);
    assert_int_equal(r.sampler, KN_SAMPLER_EULER);
    assert_int_equal(notes.count, 0);
    kn_request_release(&r);
}

static void seconds_to_frames(void **state)
{
    (void)state;
    const struct {
        const char *members;
        int32_t frames;
    } cases[] = {
        {"\"seconds\":4,\"fps\":16", 65}, /* 64 frames, rounded to 4n + 1 */
        {"\"seconds\":\"5\",\"fps\":16", 81},
        {"\"seconds\":2.5,\"fps\":24", 61},
        {"\"seconds\":4", 65}, /* the model's 16 frames per second */
        {"\"seconds\":4,\"num_frames\":81", 81},
        {"\"num_frames\":80", 81},
        {"\"seconds\":0.03125,\"fps\":16", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kn_request r;
        ok(resolve(&r, cases[i].members, NULL));
        assert_int_equal(r.frames, cases[i].frames);
        kn_request_release(&r);
    }
}

static void refusals_name_the_api_field(void **state)
{
    (void)state;
    const struct {
        const char *members, *param, *says;
    } cases[] = {
        {"\"size\":\"8x480\"", "size", "width is 8; it must be 16 to"},
        {"\"width\":480,\"height\":16384", "size", "height is 16384; it must be"},
        {"\"num_frames\":5000", "num_frames", "frames is 5000; it must be 1 to"},
        {"\"seconds\":3600", "seconds", "frames is 57600; it must be 1 to"},
        {"\"seconds\":0.001", "seconds", "0.001 at 16 frames per second"},
        {"\"num_inference_steps\":200,\"flow_shift\":1000", NULL, ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kn_request r;
        kn_status st = resolve(&r, cases[i].members, NULL);
        if (!cases[i].param) { /* whichever of the two is to blame, it is one of them */
            if (st == KN_OK) {
                kn_request_release(&r);
                continue;
            }
            assert_int_equal(error.status, 400);
            assert_true(error.param[0] != '\0');
            continue;
        }
        expect_error(st, &error, 400, "invalid_value", cases[i].param);
        if (!strstr(error.message, cases[i].says)) fail_msg("\"%s\" does not say \"%s\"", error.message, cases[i].says);
        assert_null(r.prompt);
    }
}

static void inputs_a_model_does_not_take(void **state)
{
    (void)state;
    kn_request r;
    kn_status st = resolve(&r, "\"input_reference\":{\"image_url\":\"http://x\"}", NULL);
    expect_error(st, &error, 400, "unsupported_parameter", "input_reference");
    st = resolve(&r, "\"characters\":[{\"id\":\"1\"}]", NULL);
    expect_error(st, &error, 400, "unsupported_parameter", "characters");
    model.image_input = model.characters = true;
    ok(resolve(&r, "\"input_reference\":{\"file_id\":\"f\"},\"characters\":[{\"id\":\"1\"}]", NULL));
    kn_request_release(&r);
    kn_video_params p = params_of("");
    p.reference = (kn_video_reference){.kind = KN_REFERENCE_FILE, .media = KN_MEDIA_GIF, .bytes = 1};
    st = kn_video_params_to_request(&r, &p, &model, 0, NULL, &error);
    expect_error(st, &error, 400, "invalid_value", "input_reference");
    p.reference.media = KN_MEDIA_WEBP;
    ok(kn_video_params_to_request(&r, &p, &model, 0, NULL, &error));
    kn_request_release(&r);
    kn_video_params_release(&p);
    model.image_input = model.characters = false;
}

static void deadlines(void **state)
{
    (void)state;
    const int64_t now = 1800000000000000, second = 1000000, most = (int64_t)KN_API_DEADLINE_MAX * second;
    const struct {
        kn_deadline_kind kind;
        int64_t us, expected; /* 0: refused */
    } cases[] = {
        {KN_DEADLINE_FROM_NOW, 60 * second, now + 60 * second},
        {KN_DEADLINE_AT, now + 1, now + 1},
        {KN_DEADLINE_AT, now, 0},
        {KN_DEADLINE_AT, now + most, now + most},
        {KN_DEADLINE_AT, now + most + 1, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const kn_video_params p = {.deadline = cases[i].kind, .deadline_us = cases[i].us};
        int64_t at = -1;
        kn_status st = kn_video_params_deadline(&at, &p, now, &error);
        if (cases[i].expected == 0) {
            expect_error(st, &error, 400, "invalid_value", "deadline");
        } else {
            ok(st);
            assert_int_equal(at, cases[i].expected);
        }
    }
    int64_t none = -1;
    ok(kn_video_params_deadline(&none, &(kn_video_params){0}, now, &error));
    assert_int_equal(none, 0);
}

static void expect_extra(const char *members, const kn_request_notes *notes, const char *expected)
{
    kn_video_params p = params_of(members);
    char *extra = NULL;
    ok(kn_video_params_extra(&extra, &p, notes));
    if (!expected)
        assert_null(extra);
    else
        assert_string_equal(extra, expected);
    kn_free(extra);
    kn_video_params_release(&p);
}

static void extra_json(void **state)
{
    (void)state;
    const kn_request_notes notes = {.count = 2, .text = {"frames 64 rounded to 65 (4n + 1)", "\"two\""}};
    expect_extra("", NULL, NULL);
    expect_extra("\"seconds\":4.50", NULL, "{\"seconds\":\"4.5\"}");
    expect_extra("\"seconds\":4,\"num_frames\":81", NULL, NULL); /* the frames decide how long it is */
    expect_extra("\"user\":\"\\\"u\\\"\",\"metadata\":{\"b\":\"2\",\"a\":\"1\"},\"n\":1,\"quality\":\"standard\"",
                 &notes,
                 "{\"metadata\":{\"a\":\"1\",\"b\":\"2\"},\"user\":\"\\\"u\\\"\",\"ignored\":[\"n\",\"quality\"],"
                 "\"notes\":[\"frames 64 rounded to 65 (4n + 1)\",\"\\\"two\\\"\"]}");
}

static void fingerprint(uint8_t out[KN_SHA256_BYTES], const char *members)
{
    kn_video_params p = params_of(members);
    ok(kn_video_params_fingerprint(out, &p));
    kn_video_params_release(&p);
}

static void fingerprints(void **state)
{
    (void)state;
    static const char *const different[] = {
        "",
        "\"negative_prompt\":\"x\"",
        "\"model\":\"x\"",
        "\"size\":\"832x480\"",
        "\"size\":\"480x832\"",
        "\"seconds\":4",
        "\"num_frames\":4",
        "\"fps\":4",
        "\"num_inference_steps\":4",
        "\"guidance_scale\":4",
        "\"flow_shift\":4",
        "\"seed\":0",
        "\"seed\":4",
        "\"sampler\":\"euler\"",
        "\"sampler\":\"unipc\"",
        "\"input_reference\":{\"image_url\":\"x\"}",
        "\"input_reference\":{\"file_id\":\"x\"}",
        "\"characters\":[{\"id\":\"x\"}]",
        "\"service_tier\":\"flex\"",
        "\"service_tier\":\"default\"",
        "\"deadline\":4",
        "\"deadline\":2000000000",
        "\"metadata\":{\"a\":\"b\"}",
        "\"user\":\"x\"",
    };
    enum { COUNT = sizeof different / sizeof *different };
    uint8_t seen[COUNT][KN_SHA256_BYTES], again[KN_SHA256_BYTES];
    for (size_t i = 0; i < COUNT; i++) {
        fingerprint(seen[i], different[i]);
        fingerprint(again, different[i]);
        assert_memory_equal(seen[i], again, sizeof again);
        for (size_t j = 0; j < i; j++) {
            if (memcmp(seen[i], seen[j], sizeof again) == 0) fail_msg("%s is like %s", different[i], different[j]);
        }
    }
    fingerprint(again, "\"seed\":-1,\"n\":1,\"quality\":\"standard\",\"service_tier\":\"auto\",\"metadata\":{}");
    assert_memory_equal(seen[0], again, sizeof again); /* what changes nothing is not part of it */
    kn_video_params p = params_of("");
    p.reference = (kn_video_reference){.kind = KN_REFERENCE_FILE, .sha256 = {1}, .offset = 5};
    ok(kn_video_params_fingerprint(seen[0], &p));
    p.reference.offset = 6; /* where the file stood in the body */
    ok(kn_video_params_fingerprint(again, &p));
    assert_memory_equal(seen[0], again, sizeof again);
    p.reference.sha256[31] = 1;
    ok(kn_video_params_fingerprint(again, &p));
    assert_memory_not_equal(seen[0], again, sizeof again);
    kn_video_params_release(&p);
}

static void idempotency_keys(void **state)
{
    (void)state;
    char key[KN_IDEMPOTENCY_KEY_BYTES];
    static const char *const good[][2] = {
        {"8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"},
        {"\"8e03978e\"", "8e03978e"},
        {" \tkey ", "key"},
        {"\"a\\\"b\\\\c\"", "a\"b\\c"},
        {"a\"b\\c", "a\"b\\c"},
        {"\"", "\""},
        {"!~", "!~"}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        ok(kn_idempotency_key_parse(key, good[i][0], &error));
        assert_string_equal(key, good[i][1]);
    }
    ok(kn_idempotency_key_parse(key, NULL, &error));
    assert_string_equal(key, "");
    static const char *const bad[] = {"",         "  ",       "\"\"",     "a b",     "a\tb", "a\x7f",
                                      "\xc3\xa9", "\"a\"b\"", "\"a\\b\"", "\"a\\\"", "a\nb"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        kn_status st = kn_idempotency_key_parse(key, bad[i], &error);
        if (st == KN_OK) fail_msg("accepted: %s", bad[i]);
        expect_error(st, &error, 400, "invalid_value", "Idempotency-Key");
        assert_string_equal(key, "");
    }
    for (size_t count = KN_IDEMPOTENCY_KEY_BYTES - 1; count <= KN_IDEMPOTENCY_KEY_BYTES; count++) {
        char *bare = repeated("k", count), *quoted = kn_format("\"%s\"", bare);
        kn_status st = count < KN_IDEMPOTENCY_KEY_BYTES ? KN_OK : KN_INVALID;
        assert_int_equal(kn_idempotency_key_parse(key, bare, &error), st);
        assert_int_equal(kn_idempotency_key_parse(key, quoted, &error), st);
        kn_free(bare);
        kn_free(quoted);
    }
}

static void without_memory(void **state)
{
    (void)state;
    kn_video_params p = params_of("\"negative_prompt\":\"x\",\"metadata\":{\"a\":\"b\"},\"seconds\":4");
    for (int what = 0; what < 3; what++) {
        kn_status st = KN_NOMEM;
        int refused = 0;
        for (uint64_t n = 1; st != KN_OK; n++) {
            kn_request r = kn_request_empty();
            char *extra = NULL;
            uint8_t digest[KN_SHA256_BYTES];
            kn_mem_fail_at(n);
            if (what == 0) st = kn_video_params_to_request(&r, &p, &model, 0, NULL, &error);
            if (what == 1) st = kn_video_params_extra(&extra, &p, NULL);
            if (what == 2) st = kn_video_params_fingerprint(digest, &p);
            kn_mem_fail_at(0);
            kn_request_release(&r);
            kn_free(extra);
            if (st == KN_OK) break;
            assert_int_equal(st, KN_NOMEM);
            if (what == 0) assert_int_equal(error.status, 503);
            refused++;
        }
        assert_true(refused >= 1);
    }
    kn_video_params_release(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),
        cmocka_unit_test(everything_asked_for),
        cmocka_unit_test(seconds_to_frames),
        cmocka_unit_test(refusals_name_the_api_field),
        cmocka_unit_test(inputs_a_model_does_not_take),
        cmocka_unit_test(deadlines),
        cmocka_unit_test(extra_json),
        cmocka_unit_test(fingerprints),
        cmocka_unit_test(idempotency_keys),
        cmocka_unit_test(without_memory),
    };
    return cmocka_run_group_tests_name("video_params", tests, open_model, close_model);
}

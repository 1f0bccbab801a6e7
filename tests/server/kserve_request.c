/* SPDX-License-Identifier: Apache-2.0
 *
 * Tensors to values, values to the body of a request for a video; every refusal names its tensor. */
#include "server/kserve.h"
#include "server/video_request.h"

#include <math.h>

#include "tests/server/protocol.h"

static kn_api_error error;

static kn_kserve_value text_value(const char *text)
{
    return (kn_kserve_value){.kind = KN_KSERVE_IS_TEXT, .text = text, .bytes = strlen(text)};
}

static kn_kserve_value whole(int64_t number)
{
    return (kn_kserve_value){.kind = KN_KSERVE_IS_INT, .integer = number};
}

static kn_kserve_request empty(void)
{
    return (kn_kserve_request){.model = "m", .version = "", .id = ""};
}

static void shapes_of_one_element_pass(void **state)
{
    (void)state;
    const int64_t ones[KN_KSERVE_RANK_MAX + 1] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
    for (size_t rank = 0; rank <= KN_KSERVE_RANK_MAX; rank++) ok(kn_kserve_check_shape("seed", ones, rank, &error));
    expect_error(kn_kserve_check_shape("seed", ones, KN_KSERVE_RANK_MAX + 1, &error), &error, 400, "invalid_value",
                 "seed");
    const int64_t wrong[][2] = {{2, 1}, {0, 1}, {-1, 1}, {1, 2}, {INT64_MAX, INT64_MAX}, {-1, -1}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        expect_error(kn_kserve_check_shape("seed", wrong[i], 2, &error), &error, 400, "invalid_value", "seed");
}

static void raw_numbers_are_little_endian(void **state)
{
    (void)state;
    kn_kserve_value v;
    ok(kn_kserve_value_raw(&v, "a", KN_KSERVE_INT8, "\xff", 1, &error));
    assert_true(v.kind == KN_KSERVE_IS_INT && v.integer == -1);
    ok(kn_kserve_value_raw(&v, "a", KN_KSERVE_INT16, "\x00\x80", 2, &error));
    assert_true(v.integer == INT16_MIN);
    ok(kn_kserve_value_raw(&v, "a", KN_KSERVE_INT32, "\x01\x02\x00\x00", 4, &error));
    assert_true(v.integer == 0x201);
    ok(kn_kserve_value_raw(&v, "a", KN_KSERVE_INT64, "\x00\x00\x00\x00\x00\x00\x00\x80", 8, &error));
    assert_true(v.integer == INT64_MIN);
    ok(kn_kserve_value_raw(&v, "a", KN_KSERVE_UINT64, "\xff\xff\xff\xff\xff\xff\xff\xff", 8, &error));
    assert_true(v.kind == KN_KSERVE_IS_UINT && v.natural == UINT64_MAX);
    ok(kn_kserve_value_raw(&v, "a", KN_KSERVE_FP32, "\x00\x00\x20\x40", 4, &error));
    assert_true(v.kind == KN_KSERVE_IS_FLOAT && v.real == 2.5);
    ok(kn_kserve_value_raw(&v, "a", KN_KSERVE_FP64, "\x00\x00\x00\x00\x00\x00\x04\x40", 8, &error));
    assert_true(v.kind == KN_KSERVE_IS_DOUBLE && v.real == 2.5);
    ok(kn_kserve_value_raw(&v, "a", KN_KSERVE_BOOL, "\x01", 1, &error));
    assert_true(v.kind == KN_KSERVE_IS_BOOL && v.boolean);
    ok(kn_kserve_value_raw(&v, "a", KN_KSERVE_BYTES, "\x02\x00\x00\x00hi", 6, &error));
    assert_true(v.kind == KN_KSERVE_IS_TEXT && v.bytes == 2 && memcmp(v.text, "hi", 2) == 0);
    ok(kn_kserve_value_raw(&v, "a", KN_KSERVE_BYTES, "\x00\x00\x00\x00", 4, &error));
    assert_true(v.bytes == 0);
}

static void raw_bytes_of_another_length_are_refused(void **state)
{
    (void)state;
    kn_kserve_value v;
    const char bytes[16] = {2, 0, 0, 0, 'a', 'b'};
    static const struct {
        kn_kserve_type type;
        size_t count;
    } cases[] = {
        {KN_KSERVE_INT32, 3}, {KN_KSERVE_INT32, 5}, {KN_KSERVE_INT32, 0}, {KN_KSERVE_FP64, 4}, {KN_KSERVE_BYTES, 3},
        {KN_KSERVE_BYTES, 0}, {KN_KSERVE_BYTES, 5}, {KN_KSERVE_BYTES, 7}, {KN_KSERVE_FP16, 2}, {KN_KSERVE_BF16, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_error(kn_kserve_value_raw(&v, "fps", cases[i].type, bytes, cases[i].count, &error), &error, 400,
                     "invalid_value", "fps");
}

static void inputs_are_known_and_of_their_kind(void **state)
{
    (void)state;
    kn_kserve_request r = empty();
    kn_kserve_value v = text_value("a ball");
    ok(kn_kserve_add_input(&r, "prompt", &v, &error));
    expect_error(kn_kserve_add_input(&r, "prompt", &v, &error), &error, 400, "invalid_value", "prompt");
    expect_error(kn_kserve_add_input(&r, "prompts", &v, &error), &error, 400, "invalid_value", "prompts");
    expect_error(kn_kserve_add_input(&r, "seed", &v, &error), &error, 400, "invalid_type", "seed");
    v = whole(7);
    expect_error(kn_kserve_add_input(&r, "sampler", &v, &error), &error, 400, "invalid_type", "sampler");
    ok(kn_kserve_add_input(&r, "fps", &v, &error)); /* a whole number where any number is asked for */
    v = (kn_kserve_value){.kind = KN_KSERVE_IS_DOUBLE, .real = 7.0};
    expect_error(kn_kserve_add_input(&r, "seed", &v, &error), &error, 400, "invalid_type", "seed");
    v.real = NAN;
    expect_error(kn_kserve_add_input(&r, "guidance_scale", &v, &error), &error, 400, "invalid_value", "guidance_scale");
    v = text_value("\xff");
    expect_error(kn_kserve_add_input(&r, "size", &v, &error), &error, 400, "invalid_value", "size");
    char *longest = repeated("a", KN_KSERVE_TEXT_BYTES_MAX + 1);
    v = text_value(longest);
    expect_error(kn_kserve_add_input(&r, "negative_prompt", &v, &error), &error, 400, "invalid_value",
                 "negative_prompt");
    v.bytes--;
    ok(kn_kserve_add_input(&r, "negative_prompt", &v, &error));
    kn_free(longest);
}

static void parameters_are_bounded_and_checked(void **state)
{
    (void)state;
    kn_kserve_request r = empty();
    kn_kserve_value v = whole(1), none = whole(0);
    char names[KN_KSERVE_PARAMETERS_MAX + 1][8];
    ok(kn_kserve_add_parameter(&r, "binary_data_output", &v, &error));
    ok(kn_kserve_add_parameter(&r, "sequence_id", &none, &error));
    assert_int_equal(r.parameter_count, 0);
    expect_error(kn_kserve_add_parameter(&r, "sequence_id", &v, &error), &error, 400, "unsupported_parameter",
                 "sequence_id");
    expect_error(kn_kserve_add_parameter(&r, "model", &v, &error), &error, 400, "invalid_value", "model");
    expect_error(kn_kserve_add_parameter(&r, "prompt", &v, &error), &error, 400, "invalid_value", "prompt");
    const kn_kserve_value endless = {.kind = KN_KSERVE_IS_DOUBLE, .real = INFINITY};
    expect_error(kn_kserve_add_parameter(&r, "flow_shift", &endless, &error), &error, 400, "invalid_value",
                 "flow_shift");
    for (int i = 0; i < KN_KSERVE_PARAMETERS_MAX; i++) {
        snprintf(names[i], sizeof names[i], "p%d", i);
        ok(kn_kserve_add_parameter(&r, names[i], &v, &error));
    }
    expect_error(kn_kserve_add_parameter(&r, "p0", &v, &error), &error, 400, "invalid_value", "p0");
    expect_error(kn_kserve_add_parameter(&r, "more", &v, &error), &error, 400, "invalid_value", "parameters");
}

static void an_answer_has_one_file(void **state)
{
    (void)state;
    kn_kserve_request r = empty();
    const unsigned all = (1u << KN_KSERVE_OUTPUTS) - 1;
    assert_int_equal(kn_kserve_answered(&r), all);
    assert_int_equal(kn_kserve_file_of(kn_kserve_answered(&r)), KN_KSERVE_VIDEO);
    ok(kn_kserve_add_output(&r, "video_id", false, &error));
    assert_int_equal(kn_kserve_answered(&r), 1u << KN_KSERVE_VIDEO_ID);
    assert_int_equal(kn_kserve_file_of(kn_kserve_answered(&r)), KN_KSERVE_OUTPUTS);
    expect_error(kn_kserve_add_output(&r, "video_id", false, &error), &error, 400, "invalid_value", "outputs");
    expect_error(kn_kserve_add_output(&r, "latents", false, &error), &error, 400, "invalid_value", "outputs");
    ok(kn_kserve_add_output(&r, "video", true, &error));
    assert_int_equal(kn_kserve_file_of(kn_kserve_answered(&r)), KN_KSERVE_VIDEO);
    assert_int_equal(r.binary, 1u << KN_KSERVE_VIDEO);
    expect_error(kn_kserve_add_output(&r, "frames", true, &error), &error, 400, "invalid_value", "outputs");
}

/* The body, and that the Videos API's own reader takes it. */
static kn_status body_of(const kn_kserve_request *r, const char *expected)
{
    kn_text text = kn_text_growing(1 << 20);
    kn_status st = kn_kserve_body(&text, r, "m", &error);
    if (st == KN_OK && expected) assert_string_equal(text.bytes, expected);
    if (st == KN_OK) {
        kn_video_params params;
        st = kn_video_request_parse(&params, KN_VIDEO_CREATE, text.bytes, text.count, "application/json", &error);
        if (st == KN_OK) kn_video_params_release(&params);
    }
    kn_text_release(&text);
    return st;
}

static void a_request_becomes_a_body(void **state)
{
    (void)state;
    kn_kserve_request r = empty();
    expect_error(body_of(&r, NULL), &error, 400, "missing_required_parameter", "prompt");
    kn_kserve_value v = text_value("a \"ball\"");
    ok(kn_kserve_add_input(&r, "prompt", &v, &error));
    v = (kn_kserve_value){.kind = KN_KSERVE_IS_FLOAT, .real = (double)7.1f};
    ok(kn_kserve_add_input(&r, "guidance_scale", &v, &error));
    v = whole(7);
    ok(kn_kserve_add_input(&r, "seed", &v, &error));
    ok(body_of(&r, "{\"model\":\"m\",\"prompt\":\"a \\\"ball\\\"\",\"guidance_scale\":7.1,\"seed\":7}"));
    v = whole(3);
    ok(kn_kserve_add_parameter(&r, "priority", &v, &error));
    v = (kn_kserve_value){.kind = KN_KSERVE_IS_UINT, .natural = 2500000};
    ok(kn_kserve_add_parameter(&r, "timeout", &v, &error));
    v = whole(9);
    ok(kn_kserve_add_parameter(&r, "num_frames", &v, &error));
    ok(body_of(&r, "{\"model\":\"m\",\"prompt\":\"a \\\"ball\\\"\",\"guidance_scale\":7.1,\"seed\":7,"
                   "\"service_tier\":\"flex\",\"deadline\":2.5,\"num_frames\":9}"));
    ok(kn_kserve_add_parameter(&r, "seed", &v, &error));
    expect_error(body_of(&r, NULL), &error, 400, "invalid_value", "seed");
}

static void schedule_policy_has_bounds(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t value;
        bool good;
    } cases[] = {{"priority", 0, true},   {"priority", 1, true}, {"priority", 3, true},  {"priority", 4, false},
                 {"priority", -1, false}, {"timeout", 0, true},  {"timeout", -1, false}, {"timeout", INT64_MAX, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kn_kserve_request r = empty();
        kn_kserve_value v = text_value("a ball");
        ok(kn_kserve_add_input(&r, "prompt", &v, &error));
        v = whole(cases[i].value);
        ok(kn_kserve_add_parameter(&r, cases[i].name, &v, &error));
        const kn_status st = body_of(&r, NULL);
        if (cases[i].good)
            ok(st);
        else
            expect_error(st, &error, 400, "invalid_value", cases[i].name);
    }
    kn_kserve_request r = empty();
    kn_kserve_value v = text_value("a ball");
    ok(kn_kserve_add_input(&r, "prompt", &v, &error));
    v = text_value("high");
    ok(kn_kserve_add_parameter(&r, "priority", &v, &error));
    expect_error(body_of(&r, NULL), &error, 400, "invalid_value", "priority");
}

static void what_the_videos_api_does_not_know_is_refused_by_name(void **state)
{
    (void)state;
    kn_kserve_request r = empty();
    kn_kserve_value v = text_value("a ball");
    ok(kn_kserve_add_input(&r, "prompt", &v, &error));
    ok(kn_kserve_add_parameter(&r, "temperature", &v, &error));
    expect_error(body_of(&r, NULL), &error, 400, "unknown_parameter", "temperature");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes_of_one_element_pass),
        cmocka_unit_test(raw_numbers_are_little_endian),
        cmocka_unit_test(raw_bytes_of_another_length_are_refused),
        cmocka_unit_test(inputs_are_known_and_of_their_kind),
        cmocka_unit_test(parameters_are_bounded_and_checked),
        cmocka_unit_test(an_answer_has_one_file),
        cmocka_unit_test(a_request_becomes_a_body),
        cmocka_unit_test(schedule_policy_has_bounds),
        cmocka_unit_test(what_the_videos_api_does_not_know_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, count_allocations, nothing_left);
}

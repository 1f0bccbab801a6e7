/* SPDX-License-Identifier: Apache-2.0
 *
 * The lists of the inference protocol, and what a model's statistics count. */
#include "server/kserve.h"

#include "tests/server/protocol.h"

static kn_api_error error;

static void names_and_numbers_of_types_agree(void **state)
{
    (void)state;
    for (int i = KN_KSERVE_BOOL; i < KN_KSERVE_TYPES; i++) {
        kn_kserve_type found;
        assert_true(kn_kserve_type_find(&found, kn_kserve_type_name((kn_kserve_type)i)));
        assert_int_equal(found, i);
        const char *config = kn_kserve_type_config_name((kn_kserve_type)i) + strlen("TYPE_");
        assert_string_equal(config, i == KN_KSERVE_BYTES ? "STRING" : kn_kserve_type_name((kn_kserve_type)i));
    }
    kn_kserve_type none;
    assert_false(kn_kserve_type_find(&none, "fp32"));
    assert_false(kn_kserve_type_find(&none, ""));
}

static void tensors_have_names_of_their_own(void **state)
{
    (void)state;
    size_t count;
    const kn_kserve_spec *in = kn_kserve_inputs(&count), *out = kn_kserve_outputs();
    assert_true(count <= KN_KSERVE_INPUTS_MAX);
    int required = 0;
    for (size_t i = 0; i < count; i++) {
        required += !in[i].optional;
        for (size_t j = i + 1; j < count; j++) assert_string_not_equal(in[i].name, in[j].name);
    }
    assert_int_equal(required, 1);
    assert_string_equal(in[0].name, "prompt");
    for (int i = 0; i < KN_KSERVE_OUTPUTS; i++) assert_non_null(out[i].name);
}

static void one_version_is_known(void **state)
{
    (void)state;
    ok(kn_kserve_check_version("m", "", &error));
    ok(kn_kserve_check_version("m", "1", &error));
    expect_error(kn_kserve_check_version("m", "2", &error), &error, 404, "not_found", "model_version");
    expect_error(kn_kserve_check_version("m", "01", &error), &error, 404, "not_found", "model_version");
}

static void a_description_says_defaults_or_nothing(void **state)
{
    (void)state;
    kn_kserve_setting settings[KN_KSERVE_SETTINGS_MAX];
    kn_kserve_model m = kn_kserve_describe("m", false, "no folder", NULL);
    assert_string_equal(m.reason, "no folder");
    assert_int_equal(kn_kserve_settings(settings, &m), 0);
    const kn_repository r = {.default_width = 832, .default_height = 480, .default_fps = 16.0, .default_frames = 81};
    m = kn_kserve_describe("m", true, "no folder", &r);
    assert_string_equal(m.reason, "");
    assert_int_equal(kn_kserve_settings(settings, &m), 5);
    assert_string_equal(settings[0].key, "default_size");
    assert_string_equal(settings[0].value, "832x480");
}

static void failures_count_apart(void **state)
{
    (void)state;
    kn_kserve_counts c = {0};
    kn_kserve_count(&c, &(kn_kserve_ended){.good = true,
                                           .created_us = 1000000,
                                           .started_us = 1500000,
                                           .ended_us = 3000000,
                                           .text_s = 0.25,
                                           .denoise_s = 1.0,
                                           .decode_s = 0.125});
    kn_kserve_count(&c, &(kn_kserve_ended){.good = false, .created_us = 2000000, .ended_us = 4000000});
    assert_int_equal(c.last_ms, 4000);
    assert_int_equal(c.success.count, 1);
    assert_int_equal(c.success.ns, 2000000000);
    assert_int_equal(c.fail.count, 1);
    assert_int_equal(c.fail.ns, 2000000000);
    assert_int_equal(c.queue.count, 1);
    assert_int_equal(c.queue.ns, 500000000);
    assert_int_equal(c.text.ns, 250000000);
    assert_int_equal(c.denoise.ns, 1000000000);
    assert_int_equal(c.decode.ns, 125000000);
}

static void a_clock_set_back_counts_nothing(void **state)
{
    (void)state;
    kn_kserve_counts c = {0};
    kn_kserve_count(
        &c, &(kn_kserve_ended){.good = true, .created_us = 5000000, .started_us = 4000000, .ended_us = 3000000});
    assert_int_equal(c.success.count, 1);
    assert_int_equal(c.success.ns, 0);
    assert_int_equal(c.queue.ns, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_numbers_of_types_agree),
        cmocka_unit_test(tensors_have_names_of_their_own),
        cmocka_unit_test(one_version_is_known),
        cmocka_unit_test(a_description_says_defaults_or_nothing),
        cmocka_unit_test(failures_count_apart),
        cmocka_unit_test(a_clock_set_back_counts_nothing),
    };
    return cmocka_run_group_tests(tests, count_allocations, nothing_left);
}

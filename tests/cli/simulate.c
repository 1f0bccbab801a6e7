/* SPDX-License-Identifier: Apache-2.0
 *
 * kinora simulate: options, table, JSON, exit codes. */
#define _XOPEN_SOURCE 700
#include "tests/cli/command.h"

#include <jansson.h>

#include "base/status.h"

static void prints_a_table(void **state)
{
    (void)state;
    assert_int_equal(command("simulate --jobs 100 --slo-scale 1.0,1.5"), 0);
    assert_printed("mix tetriserve, 100 requests, 8 devices, load 0.90, seed 1");
    assert_printed("| on time |");
    assert_printed("edf-step");
    assert_printed(" 1.50 | kinora");
}

static void prints_json(void **state)
{
    (void)state;
    json_error_t error;
    assert_int_equal(command("simulate --jobs 60 --mix bursty --policy kinora --slo-scale 1 --failures 500 --json"), 0);
    json_t *root = json_loads(command_output, 0, &error);
    if (!root) fail_msg("%s in:\n%s", error.text, command_output);
    const json_t *runs = json_object_get(root, "runs");
    assert_int_equal(json_array_size(runs), 1);
    const json_t *run = json_array_get(runs, 0);
    assert_string_equal(json_string_value(json_object_get(run, "policy")), "kinora");
    assert_int_equal(json_integer_value(json_object_get(run, "finished")), 60);
    assert_int_equal(json_integer_value(json_object_get(run, "violations")), 0);
    assert_true(json_is_real(json_object_get(run, "jain")));
    assert_true(json_is_object(json_object_get(json_object_get(run, "kinds"), "request")));
    json_decref(root);
}

/* The same seed, the same figures, but for the wall clock's. */
static void repeats(void **state)
{
    (void)state;
    static char first[COMMAND_OUTPUT_BYTES];
    const char *arguments = "simulate --jobs 80 --mix uniform --policy kinora --slo-scale 1 --json"
                            " | grep -v 'decisions_per_second\\|decide_'";
    assert_int_equal(command("%s", arguments), 0);
    memcpy(first, command_output, sizeof first);
    assert_int_equal(command("%s", arguments), 0);
    assert_string_equal(first, command_output);
}

/* Where devices can form groups: chosen ones and every fixed size of them. */
static void compares_groups(void **state)
{
    (void)state;
    json_error_t error;
    assert_int_equal(command("simulate --mix targets --jobs 40 --load 0.3 --slo-scale 1"), 0);
    assert_printed("groups among 8 devices each");
    assert_printed("8 fixed");
    assert_int_equal(command("simulate --mix targets --jobs 40 --load 0.3 --slo-scale 1 --policy kinora --json"), 0);
    json_t *root = json_loads(command_output, 0, &error);
    if (!root) fail_msg("%s in:\n%s", error.text, command_output);
    const json_t *runs = json_object_get(root, "runs");
    static const int degrees[] = {0, 1, 2, 4, 8};
    assert_int_equal(json_array_size(runs), 5);
    for (size_t i = 0; i < 5; i++) {
        const json_t *run = json_array_get(runs, i);
        const double mean = json_real_value(json_object_get(run, "degree_mean"));
        assert_int_equal(json_integer_value(json_object_get(run, "degree_fixed")), degrees[i]);
        assert_true(i == 0 ? mean > 1 && mean < 8 : mean == degrees[i]);
        assert_true(json_integer_value(json_object_get(run, "decide_p99_ns")) > 0);
    }
    json_decref(root);
    assert_int_equal(command("simulate --mix uniform --domain 4 --degree chosen --jobs 40 --policy kinora --json"), 0);
    assert_printed("\"domain\": 4");
}

static void reports_violations(void **state)
{
    (void)state;
    assert_int_not_equal(command("simulate --jobs 200 --policy kinora --slo-scale 1 --plant lost-job"), 0);
    assert_printed("violations of the scheduler's properties; the first at ");
}

static void benches(void **state)
{
    (void)state;
    assert_int_equal(command("simulate --bench --queued 200 --decisions 5000"), 0);
    assert_printed("8 devices, 200 jobs queued, 5000 decisions: ");
    assert_int_equal(command("simulate --bench --queued 200 --decisions 5000 --json"), 0);
    assert_printed("\"decisions_per_second\":");
}

static void refuses_bad_options(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"--mix nothing", "--mix is \"nothing\""},
        {"--policy lifo", "--policy is \"lifo\""},
        {"--degree 3", "--degree is \"3\""},
        {"--domain 65", "domain is 65"},
        {"--plant daisies", "--plant is \"daisies\""},
        {"--slo-scale 1,x", "--slo-scale"},
        {"--slo-scale 1,1,1,1,1,1,1,1,1", "more than 8 values"},
        {"--slo-scale 0", "slo_scale is 0"},
        {"--devices 65", "devices is 65"},
        {"--load 0", "load is 0"},
        {"--jobs 1048577", "jobs is 1048577"},
        {"--ageing -1", "--ageing is -1"},
        {"--cancelled 2", "cancelled is 2"},
        {"--bench --queued 3", "queued is 3"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(command("simulate %s", bad[i][0]), kn_status_exit_code(KN_INVALID));
        assert_printed(bad[i][1]);
    }
    assert_int_equal(command("simulate --help"), 0);
    assert_printed("--slo-scale");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prints_a_table),      cmocka_unit_test(prints_json),        cmocka_unit_test(repeats),
        cmocka_unit_test(compares_groups),     cmocka_unit_test(reports_violations), cmocka_unit_test(benches),
        cmocka_unit_test(refuses_bad_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

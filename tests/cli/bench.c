/* SPDX-License-Identifier: Apache-2.0
 *
 * kinora bench on a fixture, small: that every part runs and reports what it
 * promises. Nothing here looks at a time. */
#define _XOPEN_SOURCE 700
#include "tests/cli/command.h"

#include <jansson.h>

#include "tests/engine/folder.h"

#define MODEL KN_SOURCE_DIR "/tests/golden/wan21-small/model"

static json_t *bench_json(const char *arguments)
{
    json_error_t error;
    assert_int_equal(command("bench --json --repeat 1 --threads 2 %s", arguments), 0);
    json_t *root = json_loads(command_output, 0, &error);
    if (!root) fail_msg("%s in:\n%s", error.text, command_output);
    return root;
}

/* The first row of a part and kind; fails without one. */
static const json_t *row_of(const json_t *root, const char *part, const char *kind)
{
    size_t i;
    const json_t *row;
    json_array_foreach(json_object_get(root, "results"), i, row)
    {
        const char *has = json_string_value(json_object_get(row, "kind"));
        if (strcmp(json_string_value(json_object_get(row, "part")), part) == 0 && has && strcmp(has, kind) == 0)
            return row;
    }
    fail_msg("no row %s %s", part, kind);
    return NULL;
}

static double number(const json_t *row, const char *key)
{
    const json_t *value = json_object_get(row, key);
    if (!json_is_number(value)) fail_msg("%s is not a number", key);
    return json_number_value(value);
}

static void describes_the_machine(void **state)
{
    (void)state;
    json_t *root = bench_json("--only machine --isa ref");
    const json_t *machine = json_object_get(root, "machine");
    assert_string_equal(json_string_value(json_object_get(machine, "tier")), "ref");
    assert_true(number(machine, "threads") == 2);
    assert_true(number(machine, "f32_flop_per_second") > 1e6);
    assert_true(number(machine, "bandwidth_bytes_per_second") > 1e6);
    assert_int_equal(json_array_size(json_object_get(root, "results")), 2);
    json_decref(root);
}

static void measures_networks_of_a_folder(void **state)
{
    (void)state;
    json_t *root = bench_json("--only dit,vae,text --model '" MODEL "' --size 64x32 --frames 5 --precision float32 "
                              "--vae-precision float32");
    const json_t *dit = row_of(root, "dit", "forward");
    assert_true(number(dit, "tokens") == 16 && number(dit, "layers") == 2 && number(dit, "frames") == 5);
    assert_true(number(dit, "flop") > 0 && number(dit, "of_bound") > 0);
    row_of(root, "dit", "context");
    const json_t *vae = row_of(root, "vae", "decode");
    assert_true(number(vae, "frames") == 5 && number(vae, "width") == 64 && number(vae, "height") == 32);
    assert_true(number(vae, "resident_peak_bytes") >= number(vae, "resident_before_bytes"));
    const json_t *text = row_of(root, "text", "encode");
    assert_true(number(text, "layers") == 2 && number(text, "all_layers") == 2);
    assert_true(number(text, "layer_bytes") == 4.0 * (4 * 32 * 32 + 3 * 32 * 64));
    json_decref(root);
}

/* Clips of three lengths, and one decoder size. */
static void decoder_memory_does_not_grow_with_length(void **state)
{
    (void)state;
    json_t *root = bench_json("--only vae --model '" MODEL "' --vae-precision float32 --size 32x32");
    size_t i, rows = 0;
    const json_t *row;
    json_array_foreach(json_object_get(root, "results"), i, row)
    {
        if (strcmp(json_string_value(json_object_get(row, "part")), "vae") != 0) continue;
        assert_true(number(row, "decoder_bytes") == number(row_of(root, "vae", "decode"), "decoder_bytes"));
        rows++;
    }
    assert_int_equal(rows, 4);
    json_decref(root);
}

static void a_step_allocates_nothing_and_the_plan_holds(void **state)
{
    (void)state;
    folder in = folder_create();
    char arguments[1024];
    snprintf(arguments, sizeof arguments,
             "--only generate --model '" MODEL "' --size 64x64 --frames 9 --steps 3 --out '%s'",
             folder_file(&in, "bench.json"));
    json_t *root = bench_json(arguments);
    assert_true(number(row_of(root, "generate", "denoise"), "allocations_after_first") == 0);
    assert_true(number(row_of(root, "generate", "denoise"), "steps_after_first") == 2);
    assert_true(number(row_of(root, "generate", "decode"), "frames") == 9);
    const json_t *memory = row_of(root, "generate", "memory");
    const double planned = number(memory, "planned_bytes"), allocated = number(memory, "allocated_peak_bytes");
    assert_true(allocated <= 1.02 * planned && allocated >= 0.98 * planned);
    row_of(root, "generate", "startup");
    json_t *file = json_load_file(folder_file(&in, "bench.json"), 0, NULL);
    assert_true(json_equal(file, root));
    json_decref(file);
    json_decref(root);
    folder_remove(&in);
}

static void prints_a_table(void **state)
{
    (void)state;
    assert_int_equal(command("bench --only machine --isa ref --threads 1"), 0);
    assert_printed("| part     | test ");
    assert_printed("| machine  | fused multiply-add ");
    assert_printed(" 1 thread,");
}

static void refuses_wrong_usage(void **state)
{
    (void)state;
    const struct {
        const char *arguments;
        int code;
        const char *says;
    } cases[] = {
        {"bench --only dit,nothing", 64, "machine, ops, dit, vae, text, generate, store and http"},
        {"bench --only ''", 64, "its parts are"},
        {"bench --repeat 101", 64, "--repeat is 101; at most 100"},
        {"bench --model '" MODEL "' --layers 2", 64, "--model"},
        {"bench --preset wan9", 66, "there are wan2.1-1.3b and wan2.1-14b"},
        {"bench --model /nowhere/at/all", 66, "/nowhere/at/all: no such folder"},
        {"bench --device cuda:0", 69, "cuda:0"},
        {"bench extra", 64, "\"extra\" is not an option"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(command("%s", cases[i].arguments), cases[i].code);
        assert_one_line();
        assert_printed(cases[i].says);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(describes_the_machine),
        cmocka_unit_test(measures_networks_of_a_folder),
        cmocka_unit_test(decoder_memory_does_not_grow_with_length),
        cmocka_unit_test(a_step_allocates_nothing_and_the_plan_holds),
        cmocka_unit_test(prints_a_table),
        cmocka_unit_test(refuses_wrong_usage),
    };
    return cmocka_run_group_tests_name("bench", tests, NULL, NULL);
}

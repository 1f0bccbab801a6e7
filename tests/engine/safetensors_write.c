/* SPDX-License-Identifier: Apache-2.0
 *
 * Safetensors writing: what is written is what is read, the final name appears
 * only complete, and misuse and allocation failures leave nothing behind. */
#define _XOPEN_SOURCE 700
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/mem.h"
#include "engine/weights.h"
#include "tests/engine/folder.h"

static void assert_message(const char *part)
{
    const char *message = kn_fail_message();
    if (!strstr(message, part)) fail_msg("message \"%s\" lacks \"%s\"", message, part);
}

static const kn_safetensors_spec specs[] = {
    {.name = "odd", .dtype = KN_BF16, .rank = 1, .shape = {3}},
    {.name = "quote\"d \xc3\xa9", .dtype = KN_F32, .rank = 2, .shape = {2, 2}},
    {.name = "half", .dtype = KN_F16, .rank = 1, .shape = {1}},
    {.name = "empty", .dtype = KN_F32, .rank = 2, .shape = {0, 4}},
    {.name = "scalar", .dtype = KN_F32, .rank = 0},
};
enum { SPECS = sizeof specs / sizeof specs[0] };

static const char *const keys[] = {"format", "note"};
static const char *const values[] = {"pt", "two\nlines \"quoted\""};

static const uint16_t odd[3] = {1, 2, 3};
static const float square[4] = {1.0f, -2.0f, 3.5f, 0.0f};
static const uint16_t half[1] = {0x3c00};
static const float scalar[1] = {42.0f};

/* In pieces and out of order. */
static void write_data(kn_safetensors_writer *writer)
{
    assert_int_equal(kn_safetensors_write(writer, 4, 0, scalar, 4), KN_OK);
    assert_int_equal(kn_safetensors_write(writer, 1, 8, square + 2, 8), KN_OK);
    assert_int_equal(kn_safetensors_write(writer, 0, 0, odd, 6), KN_OK);
    assert_int_equal(kn_safetensors_write(writer, 1, 0, square, 8), KN_OK);
    assert_int_equal(kn_safetensors_write(writer, 2, 0, half, 2), KN_OK);
}

static void test_round_trip(void **state)
{
    (void)state;
    folder in = folder_create();
    const char *path = folder_file(&in, "out.safetensors");
    kn_safetensors_writer *writer = NULL;
    assert_int_equal(kn_safetensors_create(&writer, path, specs, SPECS, keys, values, 2), KN_OK);
    write_data(writer);
    assert_int_equal(kn_safetensors_finish(&writer), KN_OK);
    assert_null(writer);
    assert_int_equal(folder_count(&in), 1);

    kn_weights *weights = NULL;
    kn_tensor tensor;
    assert_int_equal(kn_weights_open(&weights, in.path, "out"), KN_OK);
    assert_int_equal(kn_weights_count(weights), SPECS);
    for (size_t i = 0; i < SPECS; i++) {
        assert_int_equal(kn_weights_expect(weights, specs[i].name, specs[i].rank, specs[i].shape, &tensor), KN_OK);
        assert_int_equal(tensor.dtype, specs[i].dtype);
        assert_int_equal((uintptr_t)tensor.data % kn_dtype_bytes(tensor.dtype), 0);
    }
    assert_int_equal(kn_weights_find(weights, specs[1].name, &tensor), KN_OK);
    assert_memory_equal(tensor.data, square, sizeof square);
    assert_int_equal(kn_weights_find(weights, "odd", &tensor), KN_OK);
    assert_memory_equal(tensor.data, odd, sizeof odd);
    assert_int_equal(kn_weights_find(weights, "half", &tensor), KN_OK);
    assert_memory_equal(tensor.data, half, sizeof half);
    assert_int_equal(kn_weights_find(weights, "scalar", &tensor), KN_OK);
    assert_memory_equal(tensor.data, scalar, sizeof scalar);
    assert_string_equal(kn_weights_metadata(weights, "note"), values[1]);
    kn_weights_close(&weights);
    folder_remove(&in);
}

static void test_empty_file_round_trip(void **state)
{
    (void)state;
    folder in = folder_create();
    kn_safetensors_writer *writer = NULL;
    kn_weights *weights = NULL;
    assert_int_equal(kn_safetensors_create(&writer, folder_file(&in, "e.safetensors"), NULL, 0, NULL, NULL, 0), KN_OK);
    assert_int_equal(kn_safetensors_finish(&writer), KN_OK);
    assert_int_equal(kn_weights_open(&weights, in.path, "e"), KN_OK);
    assert_int_equal(kn_weights_count(weights), 0);
    kn_weights_close(&weights);
    folder_remove(&in);
}

static void test_name_appears_only_complete(void **state)
{
    (void)state;
    folder in = folder_create();
    char path[512];
    snprintf(path, sizeof path, "%s", folder_file(&in, "out.safetensors"));
    kn_safetensors_writer *writer = NULL;
    struct stat info;

    assert_int_equal(kn_safetensors_create(&writer, path, specs, SPECS, keys, values, 2), KN_OK);
    write_data(writer);
    assert_int_not_equal(stat(path, &info), 0);
    kn_safetensors_abandon(&writer);
    assert_null(writer);
    assert_int_equal(folder_count(&in), 0);
    kn_safetensors_abandon(&writer);

    /* An unfinished file does not replace what was there. */
    folder_text(&in, "out.safetensors", "old");
    assert_int_equal(kn_safetensors_create(&writer, path, specs, SPECS, NULL, NULL, 0), KN_OK);
    assert_int_equal(kn_safetensors_write(writer, 0, 0, odd, 4), KN_OK);
    assert_int_equal(kn_safetensors_finish(&writer), KN_INVALID);
    assert_message("tensor odd: 4 of 6 bytes were written");
    assert_null(writer);
    assert_int_equal(folder_count(&in), 1);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_size, 3);

    /* A leftover of a crash is overwritten. */
    folder_text(&in, "out.safetensors.tmp",
                "leftover that is longer than the file will be ................. "
                "................................................................ "
                "................................................................ "
                "................................................................ "
                "................................................................ "
                "................................................................ "
                "................................................................ ");
    assert_int_equal(kn_safetensors_create(&writer, path, specs, SPECS, NULL, NULL, 0), KN_OK);
    write_data(writer);
    assert_int_equal(kn_safetensors_finish(&writer), KN_OK);
    kn_weights *weights = NULL;
    assert_int_equal(kn_weights_open_file(&weights, path), KN_OK);
    kn_weights_close(&weights);
    assert_int_equal(folder_count(&in), 1);

    /* The temporary name is not followed to another file. */
    folder_text(&in, "victim", "precious");
    assert_int_equal(symlink("victim", folder_file(&in, "out.safetensors.tmp")), 0);
    assert_int_equal(kn_safetensors_create(&writer, path, specs, SPECS, NULL, NULL, 0), KN_IO);
    assert_message("out.safetensors.tmp: cannot create");
    assert_int_equal(stat(folder_file(&in, "victim"), &info), 0);
    assert_int_equal(info.st_size, 8);
    folder_remove(&in);
}

static void assert_refused(const folder *in, const kn_safetensors_spec *list, size_t count, const char *part)
{
    kn_safetensors_writer *writer = NULL;
    assert_int_equal(kn_safetensors_create(&writer, folder_file(in, "r.safetensors"), list, count, NULL, NULL, 0),
                     KN_INVALID);
    assert_null(writer);
    assert_message(part);
    assert_message("r.safetensors");
    assert_int_equal(folder_count(in), 0);
}

static void test_refuses_misuse(void **state)
{
    (void)state;
    folder in = folder_create();
    const kn_safetensors_spec twice[] = {{.name = "a"}, {.name = "b"}, {.name = "a"}};
    assert_refused(&in, twice, 3, "tensor a is declared twice");
    assert_refused(&in, &(kn_safetensors_spec){.name = ""}, 1, "empty, reserved");
    assert_refused(&in, &(kn_safetensors_spec){.name = "__metadata__"}, 1, "empty, reserved");
    assert_refused(&in, &(kn_safetensors_spec){.name = "a\nb"}, 1, "control character");
    assert_refused(&in, &(kn_safetensors_spec){.name = "\xff"}, 1, "not UTF-8");
    assert_refused(&in, &(kn_safetensors_spec){.name = "a", .rank = 9}, 1, "rank outside 0..8");
    assert_refused(&in, &(kn_safetensors_spec){.name = "a", .rank = 1, .shape = {-1}}, 1, "shape [-1] is negative");
    assert_refused(&in, &(kn_safetensors_spec){.name = "a", .rank = 2, .shape = {INT64_MAX, 2}}, 1, "too large");
    const kn_safetensors_spec large[] = {
        {.name = "a", .rank = 1, .shape = {INT64_MAX / 64}}, {.name = "b", .rank = 1, .shape = {INT64_MAX / 64}},
        {.name = "c", .rank = 1, .shape = {INT64_MAX / 64}}, {.name = "d", .rank = 1, .shape = {INT64_MAX / 64}},
        {.name = "e", .rank = 1, .shape = {INT64_MAX / 64}}, {.name = "f", .rank = 1, .shape = {INT64_MAX / 64}},
        {.name = "g", .rank = 1, .shape = {INT64_MAX / 64}}, {.name = "h", .rank = 1, .shape = {INT64_MAX / 64}},
        {.name = "i", .rank = 1, .shape = {INT64_MAX / 64}},
    };
    assert_refused(&in, large, 9, "the tensors up to i exceed");

    kn_safetensors_writer *writer = NULL;
    assert_int_equal(kn_safetensors_create(&writer, folder_file(&in, "no/where"), specs, SPECS, NULL, NULL, 0), KN_IO);
    assert_message("no/where.tmp: cannot create");
    assert_int_equal(kn_safetensors_create(&writer, folder_file(&in, "w"), specs, SPECS, NULL, NULL, 0), KN_OK);
    assert_int_equal(kn_safetensors_write(writer, SPECS, 0, odd, 1), KN_INVALID);
    assert_int_equal(kn_safetensors_write(writer, 0, 4, odd, 3), KN_INVALID);
    assert_message("tensor odd: 3 bytes at 4 leave the tensor, which has 6 bytes");
    assert_int_equal(kn_safetensors_write(writer, 0, UINT64_MAX, odd, 3), KN_INVALID);
    kn_safetensors_abandon(&writer);
    folder_remove(&in);
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    folder in = folder_create();
    uint64_t before = kn_mem_read().bytes;
    uint64_t n = 0;
    kn_status st;
    do {
        kn_safetensors_writer *writer = NULL;
        kn_mem_fail_at(++n);
        st = kn_safetensors_create(&writer, folder_file(&in, "a"), specs, SPECS, keys, values, 2);
        if (st == KN_OK) {
            write_data(writer);
            st = kn_safetensors_finish(&writer);
        }
        kn_mem_fail_at(0);
        assert_null(writer);
        assert_int_equal(kn_mem_read().bytes, before);
        if (st != KN_OK) {
            assert_int_equal(st, KN_NOMEM);
            assert_int_equal(folder_count(&in), 0);
        }
    } while (st != KN_OK && n < 1000);
    assert_int_equal(st, KN_OK);
    assert_true(n > 8);
    folder_remove(&in);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_empty_file_round_trip),
        cmocka_unit_test(test_name_appears_only_complete),
        cmocka_unit_test(test_refuses_misuse),
        cmocka_unit_test(test_every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

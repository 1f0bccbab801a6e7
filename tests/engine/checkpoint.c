/* SPDX-License-Identifier: Apache-2.0
 *
 * Checkpoints: what goes in comes out, an interrupted save leaves the old file, and a file that is cut, scrambled or
 * inconsistent is refused with its reason. */
#define _POSIX_C_SOURCE 200809L
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "engine/checkpoint.h"
#include "engine/weights.h"

enum { ELEMENTS = 2 * 3 * 4 * 5, PATH_BYTES = 512, FILE_BYTES_MAX = 1 << 16 };

static const char REQUEST[] = "{\"prompt\":\"caf\xc3\xa9 \\\"dusk\\\"\\n\",\"seed\":18446744073709551615}";

typedef struct fixture {
    char folder[PATH_BYTES];
    char path[PATH_BYTES + 32];
    float values[4][ELEMENTS];
    kn_checkpoint checkpoint; /* full history at step 7 */
} fixture;

static int set_up(void **state)
{
    fixture *f = calloc(1, sizeof *f);
    const char *base = getenv("TMPDIR");
    snprintf(f->folder, sizeof f->folder, "%s/kinora-checkpoint-XXXXXX", base && base[0] ? base : "/tmp");
    if (!mkdtemp(f->folder)) return -1;
    snprintf(f->path, sizeof f->path, "%s/state.safetensors", f->folder);
    for (int t = 0; t < 4; t++)
        for (int i = 0; i < ELEMENTS; i++) f->values[t][i] = (float)(t + 1) * 0.37f - (float)i / 3;
    f->checkpoint = (kn_checkpoint){.request = REQUEST,
                                    .model = "wan2.1-1.3b/0123abcd",
                                    .next_step = 7,
                                    .shape = {2, 3, 4, 5},
                                    .latents = f->values[0],
                                    .x_prev = f->values[1],
                                    .m_prev = f->values[2],
                                    .m_prev2 = f->values[3]};
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    unlink(f->path);
    int left = rmdir(f->folder); /* fails when a save left a temporary file behind */
    free(f);
    return left;
}

static void expect_message(const char *first, const char *second)
{
    if (!strstr(kn_fail_message(), first) || !strstr(kn_fail_message(), second))
        fail_msg("\"%s\" does not say \"%s\" and \"%s\"", kn_fail_message(), first, second);
}

static void expect_load(const fixture *f, kn_status status, const char *text)
{
    kn_checkpoint read = {.next_step = 99};
    kn_status st = kn_checkpoint_load(&read, f->path);
    if (st != status) fail_msg("%s instead of %s: %s", kn_status_name(st), kn_status_name(status), kn_fail_message());
    expect_message(f->path, text);
    assert_null(read.storage);
    assert_null(read.latents);
    assert_int_equal(read.next_step, 0);
}

static void expect_equal(const kn_checkpoint *actual, const kn_checkpoint *wanted)
{
    assert_string_equal(actual->request, wanted->request);
    assert_string_equal(actual->model, wanted->model);
    assert_int_equal(actual->next_step, wanted->next_step);
    assert_memory_equal(actual->shape, wanted->shape, sizeof wanted->shape);
    const float *a[] = {actual->latents, actual->x_prev, actual->m_prev, actual->m_prev2};
    const float *w[] = {wanted->latents, wanted->x_prev, wanted->m_prev, wanted->m_prev2};
    for (int t = 0; t < 4; t++) {
        assert_int_equal(a[t] == NULL, w[t] == NULL);
        if (w[t]) assert_memory_equal(a[t], w[t], ELEMENTS * sizeof(float));
    }
}

static void save(const fixture *f)
{
    if (kn_checkpoint_save(&f->checkpoint, f->path) != KN_OK) fail_msg("%s", kn_fail_message());
}

static void expect_saved(const fixture *f)
{
    kn_checkpoint read;
    if (kn_checkpoint_load(&read, f->path) != KN_OK) fail_msg("%s", kn_fail_message());
    expect_equal(&read, &f->checkpoint);
    kn_checkpoint_release(&read);
    assert_null(read.storage);
    assert_null(read.latents);
}

/* ---- round trips ---- */

static void test_round_trip(void **state)
{
    fixture *f = *state;
    save(f);
    expect_saved(f);
    f->checkpoint.m_prev2 = NULL;
    f->checkpoint.next_step = 1;
    save(f); /* over the one before */
    expect_saved(f);
    f->checkpoint.m_prev = f->checkpoint.x_prev = NULL;
    f->checkpoint.next_step = 0;
    save(f);
    expect_saved(f);
    f->checkpoint.next_step = 1000;
    f->values[0][0] = -0.0f;
    f->values[0][1] = 1e-45f;
    f->values[0][2] = 3.4e38f;
    save(f);
    expect_saved(f);
    kn_checkpoint_release(NULL);
}

/* What was loaded belongs to the caller even after the file is replaced. */
static void test_independent_of_file(void **state)
{
    fixture *f = *state;
    save(f);
    kn_checkpoint read;
    assert_int_equal(kn_checkpoint_load(&read, f->path), KN_OK);
    assert_int_equal(truncate(f->path, 0), 0);
    expect_equal(&read, &f->checkpoint);
    kn_checkpoint_release(&read);
}

/* ---- what save refuses, and that it then leaves the old file alone ---- */

static void expect_save(fixture *f, kn_status status, const char *text)
{
    kn_status st = kn_checkpoint_save(&f->checkpoint, f->path);
    if (st != status) fail_msg("%s instead of %s", kn_status_name(st), kn_status_name(status));
    expect_message(f->path, text);
}

static void test_save_refusals(void **state)
{
    fixture *f = *state;
    const kn_checkpoint good = f->checkpoint;
    save(f);
    f->checkpoint.next_step = -1;
    expect_save(f, KN_INVALID, "next_step is -1: must be 0 to 1000");
    f->checkpoint.next_step = 1001;
    expect_save(f, KN_INVALID, "next_step is 1001: must be 0 to 1000");
    f->checkpoint.next_step = 1;
    expect_save(f, KN_INVALID, "m_prev2 at next_step 1: there is none before step 2");
    f->checkpoint = good;
    f->checkpoint.m_prev = NULL;
    expect_save(f, KN_INVALID, "x_prev without m_prev");
    f->checkpoint.x_prev = NULL;
    expect_save(f, KN_INVALID, "m_prev2 without m_prev");
    f->checkpoint = good;
    f->checkpoint.shape[2] = 0;
    expect_save(f, KN_INVALID, "shape [2, 3, 0, 5]: sizes must be at least 1");
    f->checkpoint.shape[2] = INT64_MAX;
    expect_save(f, KN_INVALID, "at most 268435456 elements");
    f->checkpoint = good;
    f->checkpoint.request = "";
    expect_save(f, KN_INVALID, "the request has 0 bytes");
    f->checkpoint.request = "\xff\xfe";
    expect_save(f, KN_INVALID, "UTF-8");
    f->checkpoint = good;
    f->checkpoint.model = "";
    expect_save(f, KN_INVALID, "the model fingerprint has 0 bytes: must be 1 to 1024");
    f->checkpoint = good;
    f->values[2][17] = NAN;
    expect_save(f, KN_INVALID, "m_prev[17] is ");
    f->values[2][17] = 0;
    f->values[0][ELEMENTS - 1] = INFINITY;
    expect_save(f, KN_INVALID, "latents[119] is inf: must be finite");

    /* After all of that: the first save, untouched. */
    kn_checkpoint read;
    assert_int_equal(kn_checkpoint_load(&read, f->path), KN_OK);
    assert_int_equal(read.next_step, 7);
    assert_true(isfinite(read.latents[ELEMENTS - 1]));
    kn_checkpoint_release(&read);
}

static void test_no_folder(void **state)
{
    fixture *f = *state;
    char path[PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/absent/state.safetensors", f->folder);
    assert_int_equal(kn_checkpoint_save(&f->checkpoint, path), KN_IO);
    expect_message(path, "No such file");
    kn_checkpoint read;
    assert_int_equal(kn_checkpoint_load(&read, path), KN_NOT_FOUND);
    expect_message(path, "not found");
}

/* Every allocation refused in turn: an error each time, nothing lost, nothing leaked. */
static void test_memory_runs_out(void **state)
{
    fixture *f = *state;
    save(f);
    uint64_t before = kn_mem_read().bytes;
    bool saved = false, loaded = false;
    for (uint64_t n = 1; !saved; n++) {
        kn_mem_fail_at(n);
        kn_status st = kn_checkpoint_save(&f->checkpoint, f->path);
        kn_mem_fail_at(0);
        saved = st == KN_OK;
        if (!saved) assert_int_equal(st, KN_NOMEM);
        assert_int_equal(kn_mem_read().bytes, before);
        expect_saved(f);
        assert_true(n < 200);
    }
    for (uint64_t n = 1; !loaded; n++) {
        kn_checkpoint read;
        kn_mem_fail_at(n);
        kn_status st = kn_checkpoint_load(&read, f->path);
        kn_mem_fail_at(0);
        loaded = st == KN_OK;
        if (!loaded) assert_int_equal(st, KN_NOMEM);
        kn_checkpoint_release(&read);
        assert_int_equal(kn_mem_read().bytes, before);
        assert_true(n < 200);
    }
}

/* ---- damaged files ---- */

static size_t read_file(const char *path, char *bytes)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    size_t count = fread(bytes, 1, FILE_BYTES_MAX, file);
    fclose(file);
    assert_true(count > 0 && count < FILE_BYTES_MAX);
    return count;
}

static void write_file(const char *path, const char *bytes, size_t count)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, count, file), count);
    assert_int_equal(fclose(file), 0);
}

static void test_truncated(void **state)
{
    fixture *f = *state;
    static char bytes[FILE_BYTES_MAX];
    save(f);
    size_t count = read_file(f->path, bytes);
    for (size_t cut = 0; cut < count; cut++) {
        write_file(f->path, bytes, cut);
        expect_load(f, KN_CORRUPT, "");
    }
    bytes[count] = 0;
    write_file(f->path, bytes, count + 1);
    expect_load(f, KN_CORRUPT, "belong to no tensor");
    write_file(f->path, bytes, count);
    expect_saved(f);
}

/* One byte of length or header changed: refused, or still a checkpoint by every rule (a letter of the prompt). */
static void test_scrambled(void **state)
{
    fixture *f = *state;
    static char bytes[FILE_BYTES_MAX];
    save(f);
    size_t count = read_file(f->path, bytes), header = count - 4 * ELEMENTS * sizeof(float), refused = 0;
    for (size_t i = 0; i < header; i++) {
        char kept = bytes[i];
        bytes[i] = (char)(kept ^ 0x15);
        write_file(f->path, bytes, count);
        bytes[i] = kept;
        kn_checkpoint read;
        kn_status st = kn_checkpoint_load(&read, f->path);
        if (st == KN_OK) {
            assert_memory_equal(read.shape, f->checkpoint.shape, sizeof read.shape);
        } else {
            assert_true(st == KN_CORRUPT || st == KN_UNSUPPORTED);
            expect_message(f->path, "");
            refused++;
        }
        kn_checkpoint_release(&read);
    }
    assert_true(refused > header / 2);
    memset(bytes, 0xa5, 4096);
    write_file(f->path, bytes, 4096);
    expect_load(f, KN_CORRUPT, "");
}

/* ---- well-formed files that are not good checkpoints ---- */

typedef struct parts {
    const char *format, *version, *request, *model, *next_step; /* NULL: left out */
    const char *names[5];                                       /* up to the first NULL */
    kn_dtype dtypes[5];
    int32_t ranks[5];      /* 0: 4 */
    int64_t last_sizes[5]; /* 0: 5 */
    float first_value;     /* of the last tensor */
} parts;

static const parts GOOD_PARTS = {
    .format = "kinora.checkpoint",
    .version = "1",
    .request = "{}",
    .model = "m",
    .next_step = "2",
    .names = {"latents", "x_prev", "m_prev", "m_prev2"},
};

static void write_parts(const fixture *f, const parts *p)
{
    const char *keys[5], *values[5];
    const char *const all[][2] = {{"format", p->format},
                                  {"version", p->version},
                                  {"request", p->request},
                                  {"model", p->model},
                                  {"next_step", p->next_step}};
    size_t pairs = 0, count = 0;
    for (size_t i = 0; i < 5; i++) {
        if (!all[i][1]) continue;
        keys[pairs] = all[i][0];
        values[pairs++] = all[i][1];
    }
    kn_safetensors_spec specs[5] = {{0}};
    for (; count < 5 && p->names[count]; count++) {
        int64_t last = p->last_sizes[count] ? p->last_sizes[count] : 5;
        specs[count] = (kn_safetensors_spec){.name = p->names[count],
                                             .dtype = p->dtypes[count],
                                             .rank = p->ranks[count] ? p->ranks[count] : 4,
                                             .shape = {2, 3, 4, last}};
    }
    kn_safetensors_writer *writer = NULL;
    if (kn_safetensors_create(&writer, f->path, specs, count, keys, values, pairs) != KN_OK)
        fail_msg("%s", kn_fail_message());
    for (size_t i = 0; i < count; i++) {
        static const float zeros[2 * 3 * 4 * 8];
        size_t bytes = kn_dtype_bytes(specs[i].dtype);
        for (int32_t k = 0; k < specs[i].rank; k++) bytes *= (size_t)specs[i].shape[k];
        assert_int_equal(kn_safetensors_write(writer, i, 0, zeros, bytes), KN_OK);
        if (i == count - 1) {
            size_t first = kn_dtype_bytes(specs[i].dtype);
            assert_int_equal(kn_safetensors_write(writer, i, 0, &p->first_value, first), KN_OK);
        }
    }
    if (kn_safetensors_finish(&writer) != KN_OK) fail_msg("%s", kn_fail_message());
}

static void expect_parts(const fixture *f, parts p, kn_status status, const char *text)
{
    write_parts(f, &p);
    expect_load(f, status, text);
}

static void test_bad_metadata(void **state)
{
    fixture *f = *state;
    parts p = GOOD_PARTS;
    kn_checkpoint read;
    write_parts(f, &p);
    assert_int_equal(kn_checkpoint_load(&read, f->path), KN_OK);
    assert_int_equal(read.next_step, 2);
    kn_checkpoint_release(&read);

    p.format = "other";
    expect_parts(f, p, KN_CORRUPT, "not a checkpoint");
    p.format = NULL;
    expect_parts(f, p, KN_CORRUPT, "not a checkpoint");
    p = GOOD_PARTS;
    p.version = "2";
    expect_parts(f, p, KN_UNSUPPORTED, "checkpoint version 2; this build reads version 1");
    p.names[0] = "renamed_in_version_2"; /* the version is what to report */
    expect_parts(f, p, KN_UNSUPPORTED, "checkpoint version 2");
    p = GOOD_PARTS;
    p.version = "one";
    expect_parts(f, p, KN_CORRUPT, "\"version\" is \"one\": must be a number");
    p.version = NULL;
    expect_parts(f, p, KN_CORRUPT, "no \"version\"");
    p = GOOD_PARTS;
    p.request = NULL;
    expect_parts(f, p, KN_CORRUPT, "no \"request\"");
    p.request = "";
    expect_parts(f, p, KN_CORRUPT, "the request has 0 bytes");
    p = GOOD_PARTS;
    p.model = NULL;
    expect_parts(f, p, KN_CORRUPT, "no \"model\"");
    p = GOOD_PARTS;
    const char *const steps[] = {"", "-1", "1.5", " 3", "3x", "99999999999999999999"};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        p.next_step = steps[i];
        expect_parts(f, p, KN_CORRUPT, "\"next_step\" is \"");
    }
    p.next_step = "1001";
    expect_parts(f, p, KN_CORRUPT, "next_step is 1001: must be 0 to 1000");
    p.next_step = "1";
    expect_parts(f, p, KN_CORRUPT, "m_prev2 at next_step 1");
}

static void test_bad_tensors(void **state)
{
    fixture *f = *state;
    parts p = GOOD_PARTS;
    p.names[0] = "latent";
    expect_parts(f, p, KN_CORRUPT, "has no tensor latents");
    p = GOOD_PARTS;
    p.names[4] = "extra";
    expect_parts(f, p, KN_CORRUPT, "has 5 tensors, of which a checkpoint knows 4");
    p = GOOD_PARTS;
    p.names[1] = "m_prev";
    p.names[2] = NULL;
    expect_parts(f, p, KN_CORRUPT, "m_prev without x_prev");
    p.names[1] = "m_prev2";
    expect_parts(f, p, KN_CORRUPT, "m_prev2 without m_prev");
    p = GOOD_PARTS;
    p.ranks[0] = 3;
    expect_parts(f, p, KN_CORRUPT, "tensor latents has rank 3: must be 4");
    p = GOOD_PARTS;
    p.last_sizes[2] = 6;
    expect_parts(f, p, KN_CORRUPT, "tensor m_prev does not have the shape of latents");
    p = GOOD_PARTS;
    p.dtypes[1] = KN_BF16;
    expect_parts(f, p, KN_CORRUPT, "tensor x_prev is not of type F32");
    p = GOOD_PARTS;
    p.first_value = NAN;
    expect_parts(f, p, KN_CORRUPT, "m_prev2[0] is ");
}

int main(void)
{
#define WITH_FOLDER(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_FOLDER(test_round_trip), WITH_FOLDER(test_independent_of_file), WITH_FOLDER(test_save_refusals),
        WITH_FOLDER(test_no_folder),  WITH_FOLDER(test_memory_runs_out),     WITH_FOLDER(test_truncated),
        WITH_FOLDER(test_scrambled),  WITH_FOLDER(test_bad_metadata),        WITH_FOLDER(test_bad_tensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

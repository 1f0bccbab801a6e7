/* SPDX-License-Identifier: Apache-2.0
 *
 * Runners in this process, scripted and real: which files a job leaves and when, what becomes of failures, and the
 * limits. Crashes, hangs and restarts are in fleet.c and worker.c. */
#define _XOPEN_SOURCE 700
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <dirent.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/runner.h"
#include "tests/engine/folder.h"

typedef struct scene {
    folder data;
    kn_runner *runner;
    char *request;
} scene;

static void ok(kn_status st)
{
    if (st != KN_OK) fail_msg("%s: %s", kn_status_name(st), kn_fail_message());
}

static char *make_request(const char *prompt, int32_t steps)
{
    char *text = NULL;
    kn_repository *repository = NULL;
    kn_request r = kn_request_empty();
    ok(kn_repository_open(&repository, KN_SOURCE_DIR "/tests/golden/wan21-small/model"));
    r.prompt = kn_strdup(prompt);
    r.width = 48;
    r.height = 32;
    r.frames = 9;
    r.steps = steps;
    r.guidance = 5.0;
    r.seed = 42;
    ok(kn_request_resolve(&r, repository, NULL));
    ok(kn_request_to_json(&text, &r));
    kn_request_release(&r);
    kn_repository_close(&repository);
    return text;
}

static kn_runner_params params_of(const scene *s, const char *device, int64_t interval_ns)
{
    return (kn_runner_params){.device = device,
                              .models = KN_SOURCE_DIR "/tests/golden/wan21-small",
                              .data = s->data.path,
                              .threads = 1,
                              .precision = KN_PRECISION_FLOAT32,
                              .vae_precision = KN_PRECISION_FLOAT32,
                              .checkpoint_interval_ns = interval_ns,
                              .corrupt_fd = -1};
}

static scene open_scene(const char *device, int64_t interval_ns)
{
    scene s = {.data = folder_create(), .request = make_request("a ball", 6)};
    const kn_runner_params params = params_of(&s, device, interval_ns);
    uint64_t bytes = 0;
    ok(kn_runner_open(&s.runner, &params));
    ok(kn_runner_load(s.runner, "model", &bytes));
    assert_true(bytes > 0);
    return s;
}

static void close_scene(scene *s)
{
    kn_runner_close(&s->runner);
    kn_free(s->request);
    folder_remove(&s->data);
}

static kn_lease lease_of(unsigned number, int64_t epoch)
{
    kn_lease lease = {.epoch = epoch};
    snprintf(lease.job, sizeof lease.job, "video_%032x", number);
    return lease;
}

static kn_outcome start(scene *s, kn_lease lease)
{
    kn_outcome out;
    const kn_runner_job job = {.lease = lease, .model = "model", .request = s->request};
    ok(kn_runner_start(s->runner, &job, &out));
    return out;
}

static kn_outcome run_one(scene *s, const kn_outcome *before)
{
    kn_outcome out;
    ok(kn_runner_run(s->runner, before->next.kind, &before->lease, 1, &out));
    return out;
}

/* Until the given slice is next, or the job has ended. */
static kn_outcome run_to(scene *s, kn_outcome at, kn_slice_kind kind, int32_t index)
{
    while (at.status == KN_OK && at.next.kind != KN_SLICE_DONE && !(at.next.kind == kind && at.next.index == index))
        at = run_one(s, &at);
    return at;
}

static int files(const scene *s, const char *name)
{
    int count = 0;
    DIR *listing = opendir(folder_file(&s->data, name));
    assert_non_null(listing);
    for (const struct dirent *entry; (entry = readdir(listing));) count += entry->d_name[0] != '.';
    closedir(listing);
    return count;
}

/* ---- files ---- */

static void run_whole(const char *device)
{
    scene s = open_scene(device, 0);
    const uint64_t held = kn_mem_read().bytes;
    kn_outcome at = start(&s, lease_of(1, 3)), out;
    assert_int_equal(at.next.kind, KN_SLICE_TEXT);
    at = run_one(&s, &at);
    assert_false(at.has_checkpoint); /* nothing is denoised yet */
    for (int step = 1; step <= 6; step++) {
        at = run_one(&s, &at);
        assert_true(at.has_checkpoint);
        assert_int_equal(at.checkpoint.step, step);
        assert_int_equal(files(&s, "checkpoints"),
                         step < KN_ARTIFACT_CHECKPOINTS_KEPT ? step : KN_ARTIFACT_CHECKPOINTS_KEPT);
    }
    at = run_to(&s, at, KN_SLICE_MUX, 0);
    assert_false(at.has_checkpoint);
    assert_int_equal(files(&s, "blobs"), 1); /* unfinished, under another name */
    at = run_one(&s, &at);
    assert_int_equal(at.next.kind, KN_SLICE_DONE);
    assert_true(at.has_output && at.output.bytes > 0);
    assert_int_equal(files(&s, "blobs"), 1 + at.output.thumbnail + at.output.spritesheet);
    ok(kn_runner_release(s.runner, &at.lease, KN_RELEASE_SAVE, &out));
    assert_false(out.has_checkpoint);                                       /* it is done */
    ok(kn_runner_release(s.runner, &at.lease, KN_RELEASE_PUBLISHED, &out)); /* as good as gone already */
    assert_int_equal(files(&s, "checkpoints"), 0);
    assert_true(files(&s, "blobs") > 0);
    ok(kn_runner_release(s.runner, &at.lease, KN_RELEASE_DISCARD, &out));
    assert_int_equal(files(&s, "blobs"), 0);
    assert_in_range(kn_mem_read().bytes, 0, held + (1 << 20)); /* a workspace may stay with the model */
    close_scene(&s);
}

static void test_whole_job(void **state)
{
    (void)state;
    run_whole("fake");
    run_whole("cpu");
}

static void test_interval(void **state)
{
    (void)state;
    scene s = open_scene("fake:step_ms=30", 100 * INT64_C(1000000));
    kn_outcome at = start(&s, lease_of(1, 1));
    int saved = 0, slices = 0;
    for (; at.next.kind != KN_SLICE_DONE; slices++) {
        at = run_one(&s, &at);
        saved += at.has_checkpoint;
    }
    assert_in_range(saved, 1, 2); /* six steps of 30 ms and more */
    close_scene(&s);
    s = open_scene("fake", INT64_C(3600000000000));
    at = run_to(&s, start(&s, lease_of(1, 1)), KN_SLICE_DONE, 0);
    assert_int_equal(files(&s, "checkpoints"), 0);
    close_scene(&s);
}

static void test_release_saves(void **state)
{
    (void)state;
    scene s = open_scene("fake", INT64_C(3600000000000));
    kn_outcome at = start(&s, lease_of(1, 1)), out;
    ok(kn_runner_release(s.runner, &at.lease, KN_RELEASE_SAVE, &out));
    assert_false(out.has_checkpoint); /* nothing done, nothing kept */
    at = run_to(&s, start(&s, lease_of(1, 2)), KN_SLICE_DECODE, 1);
    assert_int_equal(files(&s, "blobs"), 1);
    ok(kn_runner_release(s.runner, &at.lease, KN_RELEASE_SAVE, &out));
    assert_int_equal(files(&s, "blobs"), 0); /* what was begun is gone */
    assert_true(out.has_checkpoint);
    assert_int_equal(out.checkpoint.step, 6);
    const kn_runner_job job = {.lease = lease_of(1, 3),
                               .model = "model",
                               .request = s.request,
                               .has_checkpoint = true,
                               .checkpoint = out.checkpoint};
    ok(kn_runner_start(s.runner, &job, &at));
    assert_int_equal(at.next.kind, KN_SLICE_DECODE);
    assert_int_equal(at.next.index, 0);
    ok(kn_runner_release(s.runner, &at.lease, KN_RELEASE_SAVE, &out));
    assert_false(out.has_checkpoint); /* where it came in: that one is known */
    assert_int_equal(files(&s, "checkpoints"), 1);
    ok(kn_runner_release(s.runner, &at.lease, KN_RELEASE_DISCARD, &out));
    assert_int_equal(files(&s, "checkpoints"), 0);
    close_scene(&s);
}

/* ---- failures ---- */

static kn_fault start_with(scene *s, const char *request, const kn_saved *saved, kn_lease lease)
{
    kn_outcome out;
    kn_runner_job job = {.lease = lease, .model = "model", .request = request, .has_checkpoint = saved != NULL};
    if (saved) job.checkpoint = *saved;
    const kn_status st = kn_runner_start(s->runner, &job, &out);
    assert_int_equal(st, out.status);
    assert_true((st == KN_OK) == (out.fault == KN_FAULT_NONE) && (st == KN_OK) == (out.message[0] == '\0'));
    if (st == KN_OK) ok(kn_runner_release(s->runner, &lease, KN_RELEASE_KEEP, &out));
    return out.fault;
}

static void test_requests(void **state)
{
    (void)state;
    const char *const devices[] = {"fake", "cpu"};
    for (int i = 0; i < 2; i++) {
        scene s = open_scene(devices[i], 0);
        assert_int_equal(start_with(&s, "{", NULL, lease_of(1, 1)), KN_FAULT_REQUEST);
        assert_int_equal(start_with(&s, "{}", NULL, lease_of(1, 1)), KN_FAULT_REQUEST);
        assert_int_equal(start_with(&s, "", NULL, lease_of(1, 1)), KN_FAULT_REQUEST);
        assert_int_equal(start_with(&s, s.request, NULL, lease_of(1, 0)), KN_FAULT_INTERNAL);
        assert_int_equal(start_with(&s, s.request, NULL, lease_of(1, 1)), KN_FAULT_NONE);
        close_scene(&s);
    }
}

/* What is wrong with a checkpoint is never the end of the job. */
static void test_checkpoints(void **state)
{
    (void)state;
    const char *const devices[] = {"fake", "cpu"};
    for (int i = 0; i < 2; i++) {
        scene s = open_scene(devices[i], 0);
        kn_outcome at = run_to(&s, start(&s, lease_of(1, 1)), KN_SLICE_DENOISE, 3), out;
        const kn_saved good = at.checkpoint;
        char *other = make_request("a cube", 6), *shorter = make_request("a ball", 2);
        kn_saved bad = good;
        ok(kn_runner_release(s.runner, &at.lease, KN_RELEASE_KEEP, &out));
        assert_int_equal(start_with(&s, s.request, &good, lease_of(1, 2)), KN_FAULT_NONE);
        assert_int_equal(start_with(&s, other, &good, lease_of(1, 2)), KN_FAULT_CHECKPOINT);
        assert_int_equal(start_with(&s, shorter, &good, lease_of(1, 2)), KN_FAULT_CHECKPOINT);
        assert_int_equal(start_with(&s, "{", &good, lease_of(1, 2)), KN_FAULT_REQUEST);
        assert_int_equal(start_with(&s, s.request, &good, lease_of(2, 2)), KN_FAULT_CHECKPOINT);
        bad.sha256[0] ^= 1;
        assert_int_equal(start_with(&s, s.request, &bad, lease_of(1, 2)), KN_FAULT_CHECKPOINT);
        bad = good;
        bad.step = 2;
        assert_int_equal(start_with(&s, s.request, &bad, lease_of(1, 2)), KN_FAULT_CHECKPOINT);
        snprintf(bad.name, sizeof bad.name, "../../etc/passwd");
        assert_int_equal(start_with(&s, s.request, &bad, lease_of(1, 2)), KN_FAULT_CHECKPOINT);
        kn_artifact_name(bad.name, &(kn_artifact){KN_ARTIFACT_CHECKPOINT, lease_of(1, 9), 3, false});
        bad.step = 3; /* of an epoch that is still to come */
        assert_int_equal(start_with(&s, s.request, &bad, lease_of(1, 2)), KN_FAULT_CHECKPOINT);
        kn_artifact_name(bad.name, &(kn_artifact){KN_ARTIFACT_CHECKPOINT, lease_of(1, 1), 5, false});
        bad.step = 5; /* not there */
        assert_int_equal(start_with(&s, s.request, &bad, lease_of(1, 2)), KN_FAULT_CHECKPOINT);
        kn_free(other);
        kn_free(shorter);
        close_scene(&s);
    }
}

/* A file in the place of a folder: nothing can be written, whoever asks. */
static void test_storage(void **state)
{
    (void)state;
    scene s = open_scene("fake", 0);
    assert_int_equal(rmdir(folder_file(&s.data, "blobs")), 0);
    assert_int_equal(rmdir(folder_file(&s.data, "checkpoints")), 0);
    folder_text(&s.data, "blobs", "");
    folder_text(&s.data, "checkpoints", "");
    kn_outcome at = run_to(&s, start(&s, lease_of(1, 1)), KN_SLICE_DECODE, 0);
    assert_int_equal(at.status, KN_OK); /* without checkpoints it goes on */
    assert_false(at.has_checkpoint);
    at = run_one(&s, &at);
    assert_int_equal(at.status, KN_IO);
    assert_int_equal(at.fault, KN_FAULT_STORAGE);
    at = run_to(&s, start(&s, lease_of(2, 1)), KN_SLICE_DENOISE, 2);
    kn_outcome out;
    assert_int_equal(kn_runner_release(s.runner, &at.lease, KN_RELEASE_SAVE, &out), KN_IO);
    assert_int_equal(out.fault, KN_FAULT_STORAGE); /* said so, and let go all the same */
    const kn_runner_params params = params_of(&s, "fake", 0);
    kn_runner *again = NULL;
    assert_int_equal(kn_runner_open(&again, &params), KN_OK); /* the names are taken; writing will tell */
    kn_runner_close(&again);
    close_scene(&s);
}

static void test_fatal(void **state)
{
    (void)state;
    scene s = open_scene("fake:lost_at=3", 0);
    kn_outcome at = run_to(&s, start(&s, lease_of(1, 1)), KN_SLICE_DENOISE, 1), out;
    assert_int_equal(kn_runner_run(s.runner, KN_SLICE_DENOISE, &at.lease, 1, &out), KN_DEVICE_LOST);
    close_scene(&s);
}

/* One of a pack fails for a reason of its own; the others have their slice. */
static void test_failure_in_a_pack(void **state)
{
    (void)state;
    scene s = open_scene("fake", 0);
    kn_lease leases[3];
    kn_outcome at[3];
    for (unsigned i = 0; i < 3; i++) {
        leases[i] = lease_of(i, 1);
        at[i] = run_to(&s, start(&s, leases[i]), KN_SLICE_DENOISE, i == 1 ? 0 : 2);
    }
    at[1] = run_to(&s, at[1], KN_SLICE_DECODE, 0);
    ok(kn_runner_run(s.runner, KN_SLICE_DENOISE, leases, 3, at));
    assert_true(at[0].status == KN_OK && at[2].status == KN_OK);
    assert_int_equal(at[0].next.index, 3);
    assert_int_equal(at[1].fault, KN_FAULT_INTERNAL);
    leases[0] = lease_of(77, 1);
    ok(kn_runner_run(s.runner, KN_SLICE_DENOISE, leases, 1, at));
    assert_int_equal(at[0].status, KN_NOT_FOUND);
    close_scene(&s);
}

/* ---- limits ---- */

static void test_job_limit(void **state)
{
    (void)state;
    scene s = open_scene("fake", 0);
    kn_lease leases[KN_RUNNER_JOBS_MAX];
    static kn_outcome out[KN_RUNNER_PACK_MAX];
    for (unsigned i = 0; i < KN_RUNNER_JOBS_MAX; i++) start(&s, leases[i] = lease_of(i, 1));
    assert_int_equal(start_with(&s, s.request, NULL, lease_of(99, 1)), KN_FAULT_MEMORY);
    assert_int_equal(start_with(&s, s.request, NULL, lease_of(5, 1)), KN_FAULT_INTERNAL); /* held already */
    ok(kn_runner_run(s.runner, KN_SLICE_TEXT, leases, KN_RUNNER_PACK_MAX, out));
    for (int i = 0; i < KN_RUNNER_PACK_MAX; i++) assert_int_equal(out[i].next.kind, KN_SLICE_DENOISE);
    assert_int_equal(kn_runner_run(s.runner, KN_SLICE_TEXT, leases, KN_RUNNER_PACK_MAX + 1, out), KN_INVALID);
    assert_int_equal(kn_runner_run(s.runner, KN_SLICE_TEXT, leases, 0, out), KN_INVALID);
    ok(kn_runner_release(s.runner, &leases[9], KN_RELEASE_KEEP, out));
    assert_int_equal(start_with(&s, s.request, NULL, lease_of(99, 1)), KN_FAULT_NONE);
    close_scene(&s);
}

static void test_models(void **state)
{
    (void)state;
    scene s = {.data = folder_create(), .request = make_request("a ball", 6)};
    kn_runner_params params = params_of(&s, "fake", 0);
    char name[16];
    uint64_t bytes;
    folder_make(&s.data, "models");
    for (int i = 0; i <= KN_RUNNER_MODELS_MAX; i++) {
        snprintf(name, sizeof name, "models/m%d", i);
        assert_int_equal(symlink(KN_SOURCE_DIR "/tests/golden/wan21-small/model", folder_file(&s.data, name)), 0);
    }
    params.models = folder_file(&s.data, "models");
    ok(kn_runner_open(&s.runner, &params));
    for (int i = 0; i < KN_RUNNER_MODELS_MAX; i++) {
        snprintf(name, sizeof name, "m%d", i);
        ok(kn_runner_load(s.runner, name, &bytes));
        ok(kn_runner_load(s.runner, name, &bytes)); /* the same again is nothing */
    }
    assert_int_equal(kn_runner_load(s.runner, "m8", &bytes), KN_INVALID);
    kn_outcome out;
    const kn_runner_job job = {.lease = lease_of(1, 1), .model = "m3", .request = s.request};
    ok(kn_runner_start(s.runner, &job, &out));
    assert_int_equal(kn_runner_unload(s.runner, "m3"), KN_INVALID); /* in use */
    ok(kn_runner_unload(s.runner, "m4"));
    assert_int_equal(kn_runner_unload(s.runner, "m4"), KN_NOT_FOUND);
    ok(kn_runner_load(s.runner, "m8", &bytes));
    assert_int_equal(kn_runner_load(s.runner, "none", &bytes), KN_INVALID);
    ok(kn_runner_unload(s.runner, "m8"));
    assert_int_equal(kn_runner_load(s.runner, "none", &bytes), KN_NOT_FOUND);
    assert_int_equal(kn_runner_load(s.runner, "..", &bytes), KN_INVALID);
    close_scene(&s);
}

/* The models folder may be a model itself. */
static void test_single_model(void **state)
{
    (void)state;
    scene s = {.data = folder_create()};
    kn_runner_params params = params_of(&s, "cpu:3", 0);
    uint64_t bytes;
    params.models = KN_SOURCE_DIR "/tests/golden/wan21-small/model";
    ok(kn_runner_open(&s.runner, &params));
    ok(kn_runner_load(s.runner, "model", &bytes));
    close_scene(&s);
}

static void test_names(void **state)
{
    (void)state;
    static const char *const good[] = {"demo", "wan2.1-1.3b", "0", "a_b"};
    static const char *const bad[] = {"", ".", "..", "a/b", "A", "-a", "_a", ".a", "a b", "a\n", "\xc3\xa9"};
    char longest[KN_MODEL_NAME_BYTES + 1];
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) assert_true(kn_model_name_valid(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_false(kn_model_name_valid(bad[i]));
    memset(longest, 'a', sizeof longest);
    longest[KN_MODEL_NAME_BYTES] = '\0';
    assert_false(kn_model_name_valid(longest));
    longest[KN_MODEL_NAME_BYTES - 1] = '\0';
    assert_true(kn_model_name_valid(longest));

    static const char *const devices[] = {"cpu",  "cpu:0", "cpu:9999",    "cuda:0",
                                          "fake", "fake:", "fake:seed=1", "fake:step_ms=5,poison=a b,slow=x10"};
    static const char *const strange[] = {
        "",      "cp",     "cpu:",       "cpu:a",         "cpu:10000",    "cuda",         "cuda:",
        "fakes", "fake:x", "fake:seed=", "fake:seed=1,,", "fake:seed=-1", "fake:poison=", "fake:slow=x"};
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) ok(kn_runner_device_check(devices[i]));
    for (size_t i = 0; i < sizeof strange / sizeof *strange; i++)
        if (kn_runner_device_check(strange[i]) != KN_INVALID) fail_msg("\"%s\" is taken for a device", strange[i]);
    for (int i = 0; i < KN_FAULTS; i++) assert_true(kn_fault_name((kn_fault)i)[0] != '\0');
}

/* ---- previews, memory ---- */

static void test_preview(void **state)
{
    (void)state;
    const char *const devices[] = {"fake", "cpu"};
    for (int i = 0; i < 2; i++) {
        scene s = open_scene(devices[i], INT64_C(3600000000000));
        void *bytes = NULL;
        size_t count = 0;
        const char *mime = NULL;
        kn_outcome at = run_to(&s, start(&s, lease_of(1, 1)), KN_SLICE_DENOISE, 0);
        assert_int_equal(kn_runner_preview(s.runner, &at.lease, &bytes, &count, &mime), KN_INVALID);
        at = run_to(&s, at, KN_SLICE_DENOISE, 1);
        ok(kn_runner_preview(s.runner, &at.lease, &bytes, &count, &mime));
        assert_true(count > 20 && (strcmp(mime, "image/webp") == 0 ? memcmp((char *)bytes + 8, "WEBP", 4) == 0
                                                                   : memcmp(bytes, "\xff\xd8", 2) == 0));
        kn_free(bytes);
        at = run_to(&s, at, KN_SLICE_DONE, 0); /* and the job is none the worse for it */
        assert_true(at.has_output);
        assert_int_equal(kn_runner_preview(s.runner, &at.lease, &bytes, &count, &mime), KN_INVALID);
        close_scene(&s);
    }
}

static void test_no_memory(void **state)
{
    (void)state;
    scene s = open_scene("fake", 0);
    const uint64_t held = kn_mem_read().bytes;
    int failed = 0;
    kn_log_configure(KN_LOG_ERROR, 0);
    for (uint64_t n = 1; n < 400; n += n < 60 ? 1 : 7) {
        kn_outcome at, out;
        const kn_lease lease = lease_of(1, (int64_t)n);
        const kn_runner_job job = {.lease = lease, .model = "model", .request = s.request};
        kn_mem_fail_at(n);
        if (kn_runner_start(s.runner, &job, &at) == KN_OK) {
            at = run_to(&s, at, KN_SLICE_DONE, 0);
            failed += at.status != KN_OK;
            if (at.status != KN_OK) assert_int_equal(at.fault, KN_FAULT_MEMORY);
        } else {
            assert_true(at.fault == KN_FAULT_MEMORY || at.fault == KN_FAULT_REQUEST); /* jansson says it its own way */
            failed++;
        }
        kn_mem_fail_at(0);
        kn_runner_release(s.runner, &lease, KN_RELEASE_DISCARD, &out);
        assert_int_equal(kn_mem_read().bytes, held);
        assert_int_equal(files(&s, "blobs"), 0);
    }
    assert_true(failed > 5); /* pictures and checkpoints are done without */
    close_scene(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_job),     cmocka_unit_test(test_interval),
        cmocka_unit_test(test_release_saves), cmocka_unit_test(test_requests),
        cmocka_unit_test(test_checkpoints),   cmocka_unit_test(test_storage),
        cmocka_unit_test(test_fatal),         cmocka_unit_test(test_failure_in_a_pack),
        cmocka_unit_test(test_job_limit),     cmocka_unit_test(test_models),
        cmocka_unit_test(test_single_model),  cmocka_unit_test(test_names),
        cmocka_unit_test(test_preview),       cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

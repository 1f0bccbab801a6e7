/* SPDX-License-Identifier: Apache-2.0 */
#define _XOPEN_SOURCE 700
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "server/sweep.h"
#include "tests/engine/folder.h"

#define KEPT "video_0123456789abcdef0123456789abcdef"
#define LOST "video_ffffffffffffffffffffffffffffffff"

static void make(const folder *in, const char *job, kn_artifact_kind kind, int32_t step, size_t bytes)
{
    static const char content[4096];
    kn_artifact a = {.kind = kind, .lease = {.epoch = 1}, .step = step};
    snprintf(a.lease.job, sizeof a.lease.job, "%s", job);
    char *path = kn_artifact_path(in->path, &a);
    assert_int_equal(kn_artifact_write(path, content, bytes), KN_OK);
    kn_free(path);
}

static bool wanted(void *context, const kn_artifact *artifact)
{
    ++*(int *)context;
    return strcmp(artifact->lease.job, KEPT) == 0;
}

static int count_in(const folder *in, const char *name)
{
    folder below;
    snprintf(below.path, sizeof below.path, "%s", folder_file(in, name));
    return folder_count(&below);
}

static void test_what_nobody_needs_goes_and_the_rest_is_counted(void **state)
{
    (void)state;
    kn_sweep *sweep = NULL;
    int asked = 0;
    const folder in = folder_create();
    assert_int_equal(kn_artifact_prepare(in.path), KN_OK);
    for (int32_t i = 0; i < 20; i++) make(&in, i % 2 ? KEPT : LOST, KN_ARTIFACT_CHECKPOINT, i, 10);
    make(&in, KEPT, KN_ARTIFACT_VIDEO, 0, 1000);
    make(&in, KEPT, KN_ARTIFACT_THUMBNAIL, 0, 500);
    make(&in, LOST, KN_ARTIFACT_VIDEO, 0, 4000);
    folder_text(&in, "blobs/notes", "not ours");
    assert_int_equal(kn_sweep_create(&sweep, in.path, wanted, &asked), KN_OK);
    assert_int_equal(kn_sweep_bytes(sweep, KN_ARTIFACT_VIDEO), 0);
    int32_t calls = 0;
    while (kn_sweep_walks(sweep) == 0 && calls++ < 100) kn_sweep_go(sweep, 3);
    assert_true(calls > 7 && calls < 100); /* a few at a time */
    assert_int_equal(asked, 23);
    assert_int_equal(count_in(&in, "checkpoints"), 10);
    assert_int_equal(count_in(&in, "blobs"), 3);
    assert_int_equal(kn_sweep_bytes(sweep, KN_ARTIFACT_VIDEO), 1500);
    assert_int_equal(kn_sweep_bytes(sweep, KN_ARTIFACT_CHECKPOINT), 100);

    make(&in, LOST, KN_ARTIFACT_VIDEO, 0, 4000); /* from now on every video has an owner who removes it */
    folder_text(&in, "blobs/" LOST ".1.webp.tmp", "nobody writes it any more");
    make(&in, LOST, KN_ARTIFACT_CHECKPOINT, 7, 10);
    kn_sweep_go(sweep, 1000);
    assert_int_equal(kn_sweep_walks(sweep), 2);
    assert_int_equal(asked, 23 + 10 + 2);
    assert_int_equal(count_in(&in, "checkpoints"), 10);
    assert_int_equal(count_in(&in, "blobs"), 4);
    assert_int_equal(kn_sweep_bytes(sweep, KN_ARTIFACT_VIDEO), 5500);
    folder_remove(&in);
    kn_sweep_go(sweep, 1000); /* folders that are gone are empty */
    kn_sweep_go(sweep, 1000);
    assert_int_equal(kn_sweep_bytes(sweep, KN_ARTIFACT_VIDEO), 0);
    kn_sweep_destroy(&sweep);
    kn_sweep_destroy(&sweep);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_what_nobody_needs_goes_and_the_rest_is_counted)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
#define _XOPEN_SOURCE 700
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "base/mem.h"
#include "server/artifact.h"
#include "tests/engine/folder.h"

#define ID "video_0123456789abcdef0123456789abcdef"
#define OTHER_ID "video_ffffffffffffffffffffffffffffffff"

static void expect_name(const kn_artifact *a, const char *wanted)
{
    char name[KN_ARTIFACT_NAME_BYTES];
    kn_artifact back;
    kn_artifact_name(name, a);
    assert_string_equal(name, wanted);
    assert_true(kn_artifact_parse(&back, name));
    assert_int_equal(back.kind, a->kind);
    assert_int_equal(back.step, a->step);
    assert_int_equal(back.temporary, a->temporary);
    assert_true(kn_lease_equal(&back.lease, &a->lease));
}

static void test_names(void **state)
{
    (void)state;
    const kn_lease lease = {ID, 7}, last = {ID, INT64_MAX};
    expect_name(&(kn_artifact){KN_ARTIFACT_CHECKPOINT, lease, 0, false}, ID ".7.0");
    expect_name(&(kn_artifact){KN_ARTIFACT_CHECKPOINT, lease, 12, true}, ID ".7.12.tmp");
    expect_name(&(kn_artifact){KN_ARTIFACT_VIDEO, lease, 0, false}, ID ".7.mp4");
    expect_name(&(kn_artifact){KN_ARTIFACT_THUMBNAIL, lease, 0, false}, ID ".7.webp");
    expect_name(&(kn_artifact){KN_ARTIFACT_SPRITESHEET, lease, 0, true}, ID ".7.jpg.tmp");
    expect_name(&(kn_artifact){KN_ARTIFACT_CHECKPOINT, last, INT32_MAX, true}, /* the longest there is */
                ID ".9223372036854775807.2147483647.tmp");
}

static void test_other_names(void **state)
{
    (void)state;
    static const char *const wrong[] = {"",
                                        "video_",
                                        ID,
                                        ID ".",
                                        ID ".7",
                                        ID ".7.",
                                        ID ".0.mp4",
                                        ID ".-1.mp4",
                                        ID ".+7.mp4",
                                        ID ". 7.mp4",
                                        ID ".07.mp4",
                                        ID ".7.MP4",
                                        ID ".7.mp4.tmp.tmp",
                                        ID ".7.tmp",
                                        ID ".7.01",
                                        ID ".7.-1",
                                        ID ".7.2147483648",
                                        ID ".9223372036854775808.mp4",
                                        ID ".7.3.mp4",
                                        ID ".7/../x.mp4",
                                        "VIDEO_0123456789abcdef0123456789abcdef.7.mp4",
                                        "video_0123456789ABCDEF0123456789abcdef.7.mp4",
                                        "video_0123456789abcdef0123456789abcde.7.mp4",
                                        "../" ID ".7.mp4",
                                        ".",
                                        "..",
                                        "kinora.db"};
    kn_artifact a;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        if (kn_artifact_parse(&a, wrong[i])) fail_msg("\"%s\" is taken for a file of a job", wrong[i]);
    assert_false(kn_lease_valid(&(kn_lease){ID, 0}));
    assert_false(kn_lease_valid(&(kn_lease){"video_1", 1}));
    assert_true(kn_lease_valid(&(kn_lease){ID, 1}));
    kn_lease unended;
    memset(&unended, 'a', sizeof unended);
    assert_false(kn_lease_valid(&unended));
}

static void test_write_and_digest(void **state)
{
    (void)state;
    /* FIPS 180-2, appendix B.1: "abc" */
    static const uint8_t wanted[KN_SHA256_BYTES] = {0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40,
                                                    0xde, 0x5d, 0xae, 0x22, 0x23, 0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17,
                                                    0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad};
    uint8_t sha256[KN_SHA256_BYTES];
    uint64_t bytes;
    const folder in = folder_create();
    folder_text(&in, "file", "older and longer");
    assert_int_equal(kn_artifact_write(folder_file(&in, "file"), "abc", 3), KN_OK);
    assert_int_equal(folder_count(&in), 1);
    assert_int_equal(kn_artifact_digest(folder_file(&in, "file"), sha256, &bytes), KN_OK);
    assert_int_equal(bytes, 3);
    assert_memory_equal(sha256, wanted, sizeof wanted);
    assert_int_equal(kn_artifact_digest(folder_file(&in, "none"), sha256, &bytes), KN_NOT_FOUND);
    assert_int_equal(kn_artifact_digest(in.path, sha256, &bytes), KN_IO);
    assert_int_equal(symlink("file", folder_file(&in, "link")), 0);
    assert_int_equal(kn_artifact_digest(folder_file(&in, "link"), sha256, &bytes), KN_IO);
    assert_int_equal(kn_artifact_write(folder_file(&in, "none/file"), "abc", 3), KN_IO);
    folder_make(&in, "taken");
    assert_int_equal(kn_artifact_write(folder_file(&in, "taken"), "abc", 3), KN_IO); /* a folder is not replaced */
    assert_int_equal(folder_count(&in), 3);                                          /* and nothing is left */
    folder_remove(&in);
}

static void make(const folder *in, kn_artifact a)
{
    char *path = kn_artifact_path(in->path, &a);
    assert_non_null(path);
    assert_int_equal(kn_artifact_write(path, "x", 1), KN_OK);
    kn_free(path);
}

static int count_in(const folder *in, const char *name)
{
    folder below;
    snprintf(below.path, sizeof below.path, "%s", folder_file(in, name));
    return folder_count(&below);
}

static void test_remove(void **state)
{
    (void)state;
    const folder in = folder_create();
    assert_int_equal(kn_artifact_prepare(in.path), KN_OK);
    assert_int_equal(kn_artifact_prepare(in.path), KN_OK); /* twice is fine */
    for (int64_t epoch = 1; epoch <= 3; epoch++) {
        for (int32_t step = 0; step < 2; step++) {
            make(&in, (kn_artifact){KN_ARTIFACT_CHECKPOINT, {ID, epoch}, step, step == 1});
            make(&in, (kn_artifact){KN_ARTIFACT_CHECKPOINT, {OTHER_ID, epoch}, step, false});
        }
        for (int kind = KN_ARTIFACT_VIDEO; kind < KN_ARTIFACT_KINDS; kind++)
            make(&in, (kn_artifact){(kn_artifact_kind)kind, {ID, epoch}, 0, false});
    }
    folder_text(&in, "checkpoints/notes", "not ours");
    const kn_lease lease = {ID, 2};
    kn_artifact_remove(in.path, &lease, 1u << KN_ARTIFACT_CHECKPOINT);
    assert_int_equal(count_in(&in, "checkpoints"), 12 - 4 + 1);
    assert_int_equal(count_in(&in, "blobs"), 9);
    kn_artifact_remove(in.path, &lease, 1u << KN_ARTIFACT_VIDEO | 1u << KN_ARTIFACT_THUMBNAIL);
    assert_int_equal(count_in(&in, "blobs"), 9 - 4);
    kn_artifact_remove(in.path, &(kn_lease){ID, INT64_MAX}, (1u << KN_ARTIFACT_KINDS) - 1);
    assert_int_equal(count_in(&in, "blobs"), 0);
    assert_int_equal(count_in(&in, "checkpoints"), 6 + 1);
    folder_remove(&in);
    kn_artifact_remove(in.path, &lease, 1); /* a folder that is not there is only logged */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_other_names),
        cmocka_unit_test(test_write_and_digest),
        cmocka_unit_test(test_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

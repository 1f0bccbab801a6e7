/* SPDX-License-Identifier: Apache-2.0
 *
 * What is taken out, what stays, and that a file without anything beside its picture stays as it is. */
#define _GNU_SOURCE
#include "server/image_strip.h"

#include <stdio.h>

#include "tests/server/upload.h"

static void strip(upload *u, kn_image_kind kind)
{
    /* A copy of exactly this size, so that a byte too far is seen by the sanitizer. */
    uint8_t *copy = malloc(u->count);
    assert_non_null(copy);
    memcpy(copy, u->bytes, u->count);
    const size_t count = kn_image_strip(kind, copy, u->count);
    assert_true(count <= u->count);
    free(u->bytes);
    u->bytes = copy;
    u->count = count;
}

static bool holds(const upload *u, const char *text)
{
    return memmem(u->bytes, u->count, text, strlen(text)) != NULL;
}

static upload copy_of(const upload *u)
{
    upload c = {.bytes = malloc(u->count), .count = u->count};
    assert_non_null(c.bytes);
    memcpy(c.bytes, u->bytes, u->count);
    return c;
}

static void test_png(void **state)
{
    (void)state;
    upload plain = upload_png(20, 10);
    strip(&plain, KN_IMAGE_PNG); /* without what the encoder says about itself */
    upload u = copy_of(&plain);
    upload_insert(&u, 33, "\0\0\0\5eXIfplaceSUM!", 17);
    upload_insert(&u, 33, "\0\0\0\4tRNS\1\2\3\4SUM!", 16);
    upload_insert(&u, 33, "\0\0\0\0iCCPSUM!", 12);
    upload_insert(&u, u.count, "behind", 6);
    strip(&u, KN_IMAGE_PNG);
    assert_false(holds(&u, "eXIf") || holds(&u, "place") || holds(&u, "iCCP") || holds(&u, "behind"));
    assert_true(holds(&u, "tRNS\1\2\3\4SUM!"));
    assert_int_equal(u.count, plain.count + 16);
    upload_free(&u);

    u = copy_of(&plain);
    upload_insert(&u, 33, "\377\377\377\377tEXt", 8); /* longer than the file: left to the decoder */
    const size_t before = u.count;
    strip(&u, KN_IMAGE_PNG);
    assert_int_equal(u.count, before);
    upload_free(&u);
    upload_free(&plain);
}

static void test_jpeg(void **state)
{
    (void)state;
    upload plain = upload_jpeg(40, 30);
    strip(&plain, KN_IMAGE_JPEG);
    upload u = copy_of(&plain);
    upload_insert(&u, 2, "\xff\xff\xff\xe1\0\7place", 11); /* with filling before */
    upload_insert(&u, 2, "\xff\xfe\0\7words", 9);
    upload_insert(&u, 2, "\xff\xee\0\7Adobe", 9);
    upload_insert(&u, 2, "\xff\xe2\0\2", 4);
    strip(&u, KN_IMAGE_JPEG);
    assert_false(holds(&u, "place") || holds(&u, "words"));
    assert_true(holds(&u, "Adobe"));
    assert_int_equal(u.count, plain.count + 9);
    upload_free(&u);

    /* Between two scans, too; stuffed bytes and restarts belong to the data. */
    static const char scans[] = "\xff\xd8\xff\xda\0\3x"
                                "ab\xff\0c\xff\xd0"
                                "d\xff\xe1\0\7place\xff\xda\0\3ye\xff\xd9";
    u = (upload){.bytes = NULL};
    upload_insert(&u, 0, scans, sizeof scans - 1);
    strip(&u, KN_IMAGE_JPEG);
    assert_int_equal(u.count, sizeof scans - 1 - 9);
    assert_memory_equal(u.bytes + u.count - 9, "d\xff\xda\0\3ye\xff\xd9", 9);
    upload_free(&u);
    upload_free(&plain);
}

static void put_chunk(upload *u, const char *type, const char *data, size_t count)
{
    const uint8_t head[8] = {(uint8_t)type[0], (uint8_t)type[1], (uint8_t)type[2], (uint8_t)type[3], (uint8_t)count};
    upload_insert(u, u->count, head, 8);
    upload_insert(u, u->count, data, count);
    if (count % 2) upload_insert(u, u->count, "", 1);
}

static void test_webp(void **state)
{
    (void)state;
    upload u = {.bytes = NULL};
    upload_insert(&u, 0, "RIFF\0\0\0\0WEBP", 12);
    put_chunk(&u, "VP8X", "\x3c\0\0\0\1\0\0\1\0\0", 10);
    put_chunk(&u, "ICCP", "profile", 7);
    put_chunk(&u, "ALPH", "a", 1);
    put_chunk(&u, "VP8 ", "picture", 7);
    put_chunk(&u, "EXIF", "place", 5);
    put_chunk(&u, "XMP ", "words!", 6);
    strip(&u, KN_IMAGE_WEBP);
    upload expected = {.bytes = NULL};
    upload_insert(&expected, 0, "RIFF\0\0\0\0WEBP", 12);
    put_chunk(&expected, "VP8X", "\x10\0\0\0\1\0\0\1\0\0", 10); /* transparency stays */
    put_chunk(&expected, "ALPH", "a", 1);
    put_chunk(&expected, "VP8 ", "picture", 7);
    expected.bytes[4] = (uint8_t)(expected.count - 8);
    assert_int_equal(u.count, expected.count);
    assert_memory_equal(u.bytes, expected.bytes, u.count);
    upload_free(&u);
    upload_free(&expected);
}

/* Cut and flipped anywhere it stays within its bytes. */
static void test_damaged(void **state)
{
    (void)state;
    for (int kind = 0; kind < KN_IMAGE_KINDS; kind++) {
        upload u = kind == KN_IMAGE_PNG    ? upload_png(9, 7)
                   : kind == KN_IMAGE_JPEG ? upload_jpeg(9, 7)
                                           : upload_webp(9, 7, false);
        for (size_t count = 0; count < u.count; count++) {
            upload cut = copy_of(&u);
            cut.count = count;
            strip(&cut, (kn_image_kind)kind);
            upload_free(&cut);
            for (int bit = 0; bit < 8; bit++) {
                upload flipped = copy_of(&u);
                flipped.bytes[count] ^= (uint8_t)(1u << bit);
                strip(&flipped, (kn_image_kind)kind);
                upload_free(&flipped);
            }
        }
        upload_free(&u);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_png), cmocka_unit_test(test_jpeg),
                                       cmocka_unit_test(test_webp), cmocka_unit_test(test_damaged)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Headers of each kind, whole, cut at every byte, and one value at a time beyond its limit. Files come from FFmpeg's
 * encoders, and from hand where no encoder writes such a thing. */
#define _GNU_SOURCE
#include "server/image_sniff.h"

#include <stdio.h>

#include "tests/server/upload.h"

static kn_status sniff(const void *bytes, size_t count, kn_image_info *info)
{
    /* A copy of exactly this size, so that a byte too far is seen by the sanitizer. */
    uint8_t *copy = malloc(count ? count : 1);
    assert_non_null(copy);
    memcpy(copy, bytes, count);
    const kn_status st = kn_image_sniff(info, copy, count);
    free(copy);
    if (st != KN_OK) assert_int_equal(strncmp(kn_fail_message(), "image: ", 7), 0);
    return st;
}

static void check_whole(upload u, kn_image_kind kind)
{
    if (!u.bytes) skip();
    kn_image_info info;
    assert_int_equal(sniff(u.bytes, u.count, &info), KN_OK);
    assert_int_equal(info.kind, kind);
    assert_int_equal(info.width, u.width);
    assert_int_equal(info.height, u.height);
    /* From the front, it becomes valid once and stays so; or, for WebP, only the whole file is. */
    bool before = false;
    for (size_t count = 0; count < u.count; count++) {
        const kn_status st = sniff(u.bytes, count, &info);
        assert_true(st == KN_OK || st == KN_CORRUPT || st == KN_UNSUPPORTED);
        if (before) assert_int_equal(st, KN_OK);
        before = st == KN_OK;
        assert_false(before && kind == KN_IMAGE_WEBP);
    }
    upload_free(&u);
}

static void test_whole_and_cut(void **state)
{
    (void)state;
    check_whole(upload_png(31, 17), KN_IMAGE_PNG);
    check_whole(upload_jpeg(31, 17), KN_IMAGE_JPEG);
    check_whole(upload_webp(31, 17, false), KN_IMAGE_WEBP);
    check_whole(upload_webp(31, 17, true), KN_IMAGE_WEBP);
}

static void test_other_kinds(void **state)
{
    (void)state;
    static const char *const others[] = {"",
                                         "GIF89a\1\0\1\0",
                                         "BM\0\0\0\0\0\0\0\0\0\0\0\0",
                                         "RIFF\4\0\0\0WAVEfmt ",
                                         "<svg xmlns='http://www.w3.org/2000/svg'/>",
                                         "\x89PNG\r\n\x1a",
                                         "\xff\xd8",
                                         "\xff\xd8 ",
                                         "RIFF",
                                         "II*\0\0\0\0\0\0\0\0\0\0\0"};
    kn_image_info info;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_int_equal(sniff(others[i], strlen(others[i]), &info), KN_UNSUPPORTED);
    assert_int_equal(kn_image_sniff(&info, "", KN_IMAGE_BYTES_MAX + (size_t)1), KN_INVALID); /* by its size alone */
    assert_string_equal(kn_image_kind_name(KN_IMAGE_WEBP), "webp");
    assert_string_equal(kn_image_media_type(KN_IMAGE_JPEG), "image/jpeg");
}

/* ---- PNG by hand ---- */

typedef struct file {
    uint8_t bytes[40000];
    size_t count;
} file;

static void put(file *f, const void *bytes, size_t count)
{
    assert_true(count <= sizeof f->bytes - f->count);
    memcpy(f->bytes + f->count, bytes, count);
    f->count += count;
}

static void put_big(file *f, uint32_t value, int bytes)
{
    for (int i = bytes - 1; i >= 0; i--) put(f, &(uint8_t){(uint8_t)(value >> 8 * i)}, 1);
}

static void put_little(file *f, uint32_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) put(f, &(uint8_t){(uint8_t)(value >> 8 * i)}, 1);
}

static void put_chunk(file *f, const char *type, const void *data, uint32_t count)
{
    put_big(f, count, 4);
    put(f, type, 4);
    put(f, data, count);
    put_big(f, 0, 4); /* the sum is the decoder's to check */
}

static file png(uint32_t width, uint32_t height, uint8_t depth, uint8_t colour)
{
    file f = {.count = 0};
    file header = {.count = 0};
    put(&f, "\x89PNG\r\n\x1a\n", 8);
    put_big(&header, width, 4);
    put_big(&header, height, 4);
    const uint8_t rest[5] = {depth, colour, 0, 0, 0};
    put(&header, rest, sizeof rest);
    put_chunk(&f, "IHDR", header.bytes, 13);
    return f;
}

static kn_status sniff_png_size(uint32_t width, uint32_t height)
{
    file f = png(width, height, 8, 2);
    put_chunk(&f, "IDAT", "", 0);
    kn_image_info info;
    return sniff(f.bytes, f.count, &info);
}

static void test_size_limits(void **state)
{
    (void)state;
    assert_int_equal(sniff_png_size(KN_IMAGE_SIDE_MAX, 1), KN_OK);
    assert_int_equal(sniff_png_size(KN_IMAGE_SIDE_MAX + 1, 1), KN_INVALID);
    assert_int_equal(sniff_png_size(1, KN_IMAGE_SIDE_MAX), KN_OK);
    assert_int_equal(sniff_png_size(1, KN_IMAGE_SIDE_MAX + 1), KN_INVALID);
    assert_int_equal(sniff_png_size(4096, 4096), KN_OK);
    assert_int_equal(sniff_png_size(4096, 4097), KN_INVALID);
    assert_int_equal(sniff_png_size(KN_IMAGE_SIDE_MAX, KN_IMAGE_SIDE_MAX), KN_INVALID);
    assert_int_equal(sniff_png_size(65535, 65535), KN_INVALID);
    assert_int_equal(sniff_png_size(1, 0x80000000u), KN_INVALID);
    assert_int_equal(sniff_png_size(0x80000000u, 1), KN_INVALID);
    assert_int_equal(sniff_png_size(0xffffffffu, 0xffffffffu), KN_INVALID);
    assert_int_equal(sniff_png_size(0, 1), KN_CORRUPT);
    assert_int_equal(sniff_png_size(1, 0), KN_CORRUPT);
}

static void test_png_formats(void **state)
{
    (void)state;
    static const char *const depths[7] = {"\1\2\4\x8\x10", "", "\x8\x10", "\1\2\4\x8", "\x8\x10", "", "\x8\x10"};
    for (int colour = 0; colour < 256; colour++)
        for (int depth = 1; depth < 256; depth++) {
            file f = png(4, 4, (uint8_t)depth, (uint8_t)colour);
            put_chunk(&f, "IDAT", "", 0);
            kn_image_info info;
            const bool good = colour < 7 && strchr(depths[colour], depth);
            assert_int_equal(sniff(f.bytes, f.count, &info), good ? KN_OK : KN_CORRUPT);
        }
}

static void test_png_chunks(void **state)
{
    (void)state;
    kn_image_info info;
    uint8_t control[8] = {0, 0, 0, 2};
    file f = png(4, 4, 8, 2);
    put_chunk(&f, "acTL", control, 8);
    put_chunk(&f, "IDAT", "", 0);
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_UNSUPPORTED);
    control[3] = 1;
    f = png(4, 4, 8, 2);
    put_chunk(&f, "acTL", control, 8);
    put_chunk(&f, "IDAT", "", 0);
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_OK); /* an animation of one frame is a picture */
    f = png(4, 4, 8, 2);
    put_chunk(&f, "acTL", control, 7);
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_UNSUPPORTED);
    f = png(4, 4, 8, 2);
    put_chunk(&f, "IEND", "", 0);
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_CORRUPT);
    f = png(4, 4, 8, 2);
    put_chunk(&f, "IHDR", f.bytes + 16, 13); /* twice */
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_CORRUPT);
    f = (file){.count = 0};
    put(&f, "\x89PNG\r\n\x1a\n", 8);
    put_chunk(&f, "IDAT", "", 0);
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_CORRUPT);
    f = png(4, 4, 8, 2);
    put_big(&f, 0xfffffff0u, 4); /* longer than everything */
    put(&f, "tEXt", 4);
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_CORRUPT);
}

static void test_chunk_count(void **state)
{
    (void)state;
    kn_image_info info;
    for (int extra = 0; extra < 2; extra++) {
        file f = png(4, 4, 8, 2);
        for (int i = 0; i < KN_IMAGE_CHUNKS_MAX - 2 + extra; i++) put_chunk(&f, "tEXt", "", 0);
        put_chunk(&f, "IDAT", "", 0);
        assert_int_equal(sniff(f.bytes, f.count, &info), extra ? KN_INVALID : KN_OK);
    }
}

/* ---- JPEG by hand ---- */

static file jpeg(uint8_t marker, uint8_t precision, uint32_t width, uint32_t height, uint8_t components)
{
    file f = {.count = 0};
    put(&f, "\xff\xd8\xff\xe0\0\4xy\xff", 9); /* a segment, and a fill byte before the next marker */
    put(&f, (uint8_t[]){0xff, marker}, 2);
    put_big(&f, 8 + 3u * components, 2);
    put(&f, &precision, 1);
    put_big(&f, height, 2);
    put_big(&f, width, 2);
    put(&f, &components, 1);
    for (int i = 0; i < components; i++) put(&f, "\1\x11\0", 3);
    return f;
}

static kn_status sniff_jpeg(uint8_t marker, uint8_t precision, uint32_t width, uint32_t height, uint8_t components)
{
    const file f = jpeg(marker, precision, width, height, components);
    kn_image_info info;
    const kn_status st = sniff(f.bytes, f.count, &info);
    if (st == KN_OK) {
        assert_int_equal(info.width, width);
        assert_int_equal(info.height, height);
    }
    return st;
}

static void test_jpeg_varieties(void **state)
{
    (void)state;
    for (uint8_t marker = 0xc0; marker <= 0xc2; marker++) assert_int_equal(sniff_jpeg(marker, 8, 320, 240, 3), KN_OK);
    for (int marker = 0xc3; marker <= 0xcf; marker++) {
        if (marker == 0xc4 || marker == 0xc8 || marker == 0xcc) continue; /* tables, not frames */
        assert_int_equal(sniff_jpeg((uint8_t)marker, 8, 320, 240, 3), KN_UNSUPPORTED);
    }
    assert_int_equal(sniff_jpeg(0xc4, 8, 320, 240, 3), KN_CORRUPT); /* a table, and then the end */
    assert_int_equal(sniff_jpeg(0xc0, 8, 320, 240, 1), KN_OK);
    assert_int_equal(sniff_jpeg(0xc0, 8, 320, 240, 2), KN_CORRUPT);
    assert_int_equal(sniff_jpeg(0xc0, 8, 320, 240, 4), KN_UNSUPPORTED);
    assert_int_equal(sniff_jpeg(0xc0, 8, 320, 240, 0), KN_CORRUPT);
    assert_int_equal(sniff_jpeg(0xc0, 8, 320, 240, 200), KN_CORRUPT);
    assert_int_equal(sniff_jpeg(0xc1, 12, 320, 240, 3), KN_UNSUPPORTED);
    assert_int_equal(sniff_jpeg(0xc0, 8, 65535, 65535, 3), KN_INVALID);
    assert_int_equal(sniff_jpeg(0xc0, 8, KN_IMAGE_SIDE_MAX + 1, 1, 3), KN_INVALID);
    assert_int_equal(sniff_jpeg(0xc0, 8, 320, 0, 3), KN_CORRUPT);
}

static void test_jpeg_segments(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t count;
    } bad[] = {
        {"\xff\xd8\xff\xda\0\4xy", 8},              /* data without a header */
        {"\xff\xd8\xff\xd9", 4},                    /* ends */
        {"\xff\xd8\xff\xd8\xff\xd8", 6},            /* begins again and again */
        {"\xff\xd8\xff\xe0\0\1x", 7},               /* a length below its own two bytes */
        {"\xff\xd8\xff\xe0\xff\xff", 6},            /* a length beyond the end */
        {"\xff\xd8\xff\xe0\0\4xyz\xff", 10},        /* no marker after the segment */
        {"\xff\xd8\xff\0\0\0\0", 7},                /* no marker */
        {"\xff\xd8\xff\xff\xff\xff\xff", 7},        /* fill bytes to the end */
        {"\xff\xd8\xff\xc0\0\5\x8\1\1", 9},         /* a frame header that is too short */
        {"\xff\xd8\xff\xc0\0\x8\x8\0\1\0\1\3", 12}, /* three components announced, none described */
    };
    kn_image_info info;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (sniff(bad[i].bytes, bad[i].count, &info) != KN_CORRUPT) fail_msg("%zu: %s", i, kn_fail_message());
    for (int extra = 0; extra < 2; extra++) {
        file f = {.count = 0};
        put(&f, "\xff\xd8", 2);
        for (int i = 0; i < KN_IMAGE_CHUNKS_MAX - 1 + extra; i++) put(&f, "\xff\xfe\0\2", 4);
        const file frame = jpeg(0xc0, 8, 3, 3, 1);
        put(&f, frame.bytes + 8, frame.count - 8);
        assert_int_equal(sniff(f.bytes, f.count, &info), extra ? KN_INVALID : KN_OK);
    }
}

/* ---- WebP by hand ---- */

static file webp(void)
{
    file f = {.count = 0};
    put(&f, "RIFF\0\0\0\0WEBP", 12);
    return f;
}

static void put_riff(file *f, const char *type, const void *data, uint32_t count)
{
    put(f, type, 4);
    put_little(f, count, 4);
    put(f, data, count);
    if (count % 2) put(f, "", 1);
    const uint32_t whole = (uint32_t)f->count - 8;
    for (int i = 0; i < 4; i++) f->bytes[4 + i] = (uint8_t)(whole >> 8 * i);
}

static file extended(uint8_t flags, uint32_t width, uint32_t height)
{
    file f = webp(), header = {.count = 0};
    put(&header, (uint8_t[]){flags, 0, 0, 0}, 4);
    put_little(&header, width - 1, 3);
    put_little(&header, height - 1, 3);
    put_riff(&f, "VP8X", header.bytes, 10);
    return f;
}

static void put_lossy(file *f, uint32_t width, uint32_t height)
{
    file data = {.count = 0};
    put(&data, "\x10\0\0\x9d\1\x2a", 6);
    put_little(&data, width, 2);
    put_little(&data, height, 2);
    put_riff(f, "VP8 ", data.bytes, 10);
}

static void put_lossless(file *f, uint32_t width, uint32_t height)
{
    file data = {.count = 0};
    put(&data, "\x2f", 1);
    put_little(&data, (width - 1) | (height - 1) << 14, 4);
    put_riff(f, "VP8L", data.bytes, 5);
}

static void test_webp_forms(void **state)
{
    (void)state;
    kn_image_info info;
    file f = webp();
    put_lossy(&f, 100, 50);
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_OK);
    assert_int_equal(info.width * 1000 + info.height, 100050);
    f = webp();
    put_lossless(&f, 8191, 3);
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_OK);
    assert_int_equal(info.width * 1000 + info.height, 8191003);
    f = extended(0x10, 64, 32);
    put_riff(&f, "ICCP", "abc", 3); /* an odd length, padded */
    put_riff(&f, "ALPH", "a", 1);
    put_lossy(&f, 64, 32);
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_OK);
    assert_int_equal(info.width * 1000 + info.height, 64032);
    f = webp();
    put_lossy(&f, 0x4000 | 100, 0x8000 | 50); /* the scaling hints are not part of the size */
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_OK);
    assert_int_equal(info.width * 1000 + info.height, 100050);
}

static void test_webp_refusals(void **state)
{
    (void)state;
    kn_image_info info;
    file f = extended(0x02, 64, 32);
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_UNSUPPORTED); /* says that it is animated */
    f = extended(0, 64, 32);
    put_riff(&f, "ANMF", "", 0);
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_UNSUPPORTED); /* does not say it, and is */
    f = extended(0, 64, 32);
    put_lossy(&f, 64, 33);
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_CORRUPT); /* two sizes */
    f = extended(0, 1 << 24, 1 << 24);
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_INVALID);
    f = webp();
    put_lossy(&f, 0, 5);
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_CORRUPT);
    f = webp();
    put_lossless(&f, 16384, 16384);
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_INVALID);
    f = webp();
    put_riff(&f, "VP8L", "\x2f\0\0\0\x20", 5); /* a version that does not exist */
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_CORRUPT);
    f = webp();
    put_riff(&f, "VP8 ", "\x11\0\0\x9d\1\x2a\1\0\1\0", 10); /* not a key frame */
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_CORRUPT);
    f = webp();
    put_riff(&f, "VP8 ", "\x10\0\0\x9d\1\x2a", 6);
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_CORRUPT);
    f = webp();
    put_riff(&f, "EXIF", "", 0);
    put_riff(&f, "VP8X", "\0\0\0\0\0\0\0\0\0\0", 10); /* not the first */
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_CORRUPT);
    f = webp();
    put_riff(&f, "EXIF", "", 0);
    assert_int_equal(sniff(f.bytes, f.count, &info), KN_CORRUPT);
    for (int extra = 0; extra < 2; extra++) {
        f = webp();
        for (int i = 0; i < KN_IMAGE_CHUNKS_MAX - 1 + extra; i++) put_riff(&f, "junk", "", 0);
        put_lossy(&f, 1, 1);
        assert_int_equal(sniff(f.bytes, f.count, &info), extra ? KN_INVALID : KN_OK);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_and_cut),  cmocka_unit_test(test_other_kinds),   cmocka_unit_test(test_size_limits),
        cmocka_unit_test(test_png_formats),    cmocka_unit_test(test_png_chunks),    cmocka_unit_test(test_chunk_count),
        cmocka_unit_test(test_jpeg_varieties), cmocka_unit_test(test_jpeg_segments), cmocka_unit_test(test_webp_forms),
        cmocka_unit_test(test_webp_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "server/image_sniff.h"

#include <stdbool.h>
#include <string.h>

/* What is left of the file, front to back. */
typedef struct cursor {
    const uint8_t *at;
    size_t left;
} cursor;

static bool take(cursor *c, size_t count, const uint8_t **bytes)
{
    if (count > c->left) return false;
    *bytes = c->at;
    c->at += count;
    c->left -= count;
    return true;
}

static uint32_t big_endian(const uint8_t *at, int bytes)
{
    uint32_t value = 0;
    for (int i = 0; i < bytes; i++) value = value << 8 | at[i];
    return value;
}

static uint32_t little_endian(const uint8_t *at, int bytes)
{
    uint32_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint32_t)at[i] << 8 * i;
    return value;
}

static kn_status ends_early(kn_image_kind kind)
{
    return kn_fail(KN_CORRUPT, "image: the %s file ends before the picture begins", kn_image_kind_name(kind));
}

static kn_status too_many(kn_image_kind kind)
{
    return kn_fail(KN_INVALID, "image: more than %d chunks before the picture of the %s file", KN_IMAGE_CHUNKS_MAX,
                   kn_image_kind_name(kind));
}

static kn_status animated(kn_image_kind kind)
{
    return kn_fail(KN_UNSUPPORTED, "image: the %s file is animated; send a single picture", kn_image_kind_name(kind));
}

static kn_status found(kn_image_info *out, kn_image_kind kind, uint32_t width, uint32_t height)
{
    if (width == 0 || height == 0) return kn_fail(KN_CORRUPT, "image: %u x %u pixels", width, height);
    if (width > KN_IMAGE_SIDE_MAX || height > KN_IMAGE_SIDE_MAX)
        return kn_fail(KN_INVALID, "image: %u x %u pixels, a side may have %d", width, height, KN_IMAGE_SIDE_MAX);
    if ((uint64_t)width * height > KN_IMAGE_PIXELS_MAX)
        return kn_fail(KN_INVALID, "image: %u x %u pixels, more than %d in all", width, height, KN_IMAGE_PIXELS_MAX);
    *out = (kn_image_info){.kind = kind, .width = (int32_t)width, .height = (int32_t)height};
    return KN_OK;
}

/* ---- PNG ---- */

static const uint8_t png_signature[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};

/* W3C PNG, table 12: the bit depths of each colour type. */
static bool png_depth_allowed(uint8_t colour, uint8_t depth)
{
    const bool whole = depth == 8 || depth == 16, small = depth == 1 || depth == 2 || depth == 4;
    switch (colour) {
    case 0: return whole || small;
    case 2:
    case 4:
    case 6: return whole;
    case 3: return small || depth == 8;
    default: return false;
    }
}

static kn_status read_png_header(kn_image_info *out, const uint8_t *header)
{
    if (!png_depth_allowed(header[9], header[8]) || header[10] != 0 || header[11] != 0 || header[12] > 1)
        return kn_fail(KN_CORRUPT, "image: the png header names a format that does not exist");
    return found(out, KN_IMAGE_PNG, big_endian(header, 4), big_endian(header + 4, 4));
}

/* Up to the first IDAT: an animation's acTL must stand before it. */
static kn_status sniff_png(kn_image_info *out, cursor c)
{
    const uint8_t *bytes;
    kn_image_info info = {.kind = KN_IMAGE_PNG};
    take(&c, sizeof png_signature, &bytes);
    for (int i = 0; i < KN_IMAGE_CHUNKS_MAX; i++) {
        if (!take(&c, 8, &bytes)) return ends_early(KN_IMAGE_PNG);
        const uint32_t length = big_endian(bytes, 4);
        const uint8_t *type = bytes + 4;
        if ((i == 0) != (memcmp(type, "IHDR", 4) == 0) || (i == 0 && length != 13))
            return kn_fail(KN_CORRUPT, "image: the png file does not begin with one header");
        if (memcmp(type, "IDAT", 4) == 0) {
            *out = info;
            return KN_OK;
        }
        const uint8_t *data;
        if (!take(&c, length, &data) || !take(&c, 4, &bytes)) return ends_early(KN_IMAGE_PNG);
        if (memcmp(type, "IEND", 4) == 0) return ends_early(KN_IMAGE_PNG);
        if (memcmp(type, "acTL", 4) == 0 && (length != 8 || big_endian(data, 4) != 1)) return animated(KN_IMAGE_PNG);
        const kn_status st = i == 0 ? read_png_header(&info, data) : KN_OK;
        if (st != KN_OK) return st;
    }
    return too_many(KN_IMAGE_PNG);
}

/* ---- JPEG ---- */

enum {
    JPEG_SOI = 0xd8,
    JPEG_EOI = 0xd9,
    JPEG_SOS = 0xda,
    JPEG_DHT = 0xc4,
    JPEG_JPG = 0xc8,
    JPEG_DAC = 0xcc,
    JPEG_TEM = 0x01,
};

static bool jpeg_is_frame(uint8_t marker)
{
    return marker >= 0xc0 && marker <= 0xcf && marker != JPEG_DHT && marker != JPEG_JPG && marker != JPEG_DAC;
}

static bool jpeg_stands_alone(uint8_t marker)
{
    return marker == JPEG_TEM || (marker >= 0xd0 && marker <= JPEG_SOI);
}

static kn_status read_jpeg_frame(kn_image_info *out, uint8_t marker, const uint8_t *data, size_t length)
{
    if (marker > 0xc2)
        return kn_fail(KN_UNSUPPORTED, "image: only baseline and progressive jpeg files with Huffman codes are taken");
    if (length < 6) return kn_fail(KN_CORRUPT, "image: the frame header of the jpeg file is too short");
    const uint32_t components = data[5];
    if (data[0] != 8) return kn_fail(KN_UNSUPPORTED, "image: %d-bit jpeg files are not taken, only 8-bit", data[0]);
    if (components == 4)
        return kn_fail(KN_UNSUPPORTED, "image: the jpeg file has four colours (CMYK); convert it to RGB");
    if (components != 1 && components != 3)
        return kn_fail(KN_CORRUPT, "image: the jpeg file has %u colour components", components);
    if (length != 6 + 3 * (size_t)components)
        return kn_fail(KN_CORRUPT, "image: the frame header of the jpeg file has a wrong length");
    return found(out, KN_IMAGE_JPEG, big_endian(data + 3, 2), big_endian(data + 1, 2));
}

/* From SOI to the frame header; the picture's data follows it. Height 0 with a later DNL is not taken. */
static kn_status sniff_jpeg(kn_image_info *out, cursor c)
{
    const uint8_t *bytes;
    take(&c, 2, &bytes);
    for (int i = 0; i < KN_IMAGE_CHUNKS_MAX; i++) {
        if (!take(&c, 2, &bytes)) return ends_early(KN_IMAGE_JPEG);
        if (bytes[0] != 0xff) return kn_fail(KN_CORRUPT, "image: a marker of the jpeg file is missing");
        uint8_t marker = bytes[1];
        while (marker == 0xff) { /* fill bytes */
            if (!take(&c, 1, &bytes)) return ends_early(KN_IMAGE_JPEG);
            marker = bytes[0];
        }
        if (marker == 0 || marker == JPEG_SOS || marker == JPEG_EOI || jpeg_stands_alone(marker))
            return kn_fail(KN_CORRUPT, "image: the jpeg file has no frame header before its data");
        if (!take(&c, 2, &bytes)) return ends_early(KN_IMAGE_JPEG);
        const uint32_t length = big_endian(bytes, 2);
        if (length < 2) return kn_fail(KN_CORRUPT, "image: a segment of the jpeg file is too short");
        if (!take(&c, length - 2, &bytes)) return ends_early(KN_IMAGE_JPEG);
        if (jpeg_is_frame(marker)) return read_jpeg_frame(out, marker, bytes, length - 2);
    }
    return too_many(KN_IMAGE_JPEG);
}

/* ---- WebP ---- */

/* RFC 6386, 9.1: a key frame's tag, start code and sizes; the upper two bits of a size are a scaling hint. */
static kn_status read_vp8(kn_image_info *out, const uint8_t *data, size_t length)
{
    static const uint8_t start_code[3] = {0x9d, 0x01, 0x2a};
    if (length < 10) return ends_early(KN_IMAGE_WEBP);
    if ((data[0] & 1) != 0 || memcmp(data + 3, start_code, sizeof start_code) != 0)
        return kn_fail(KN_CORRUPT, "image: the webp file has no key frame");
    return found(out, KN_IMAGE_WEBP, little_endian(data + 6, 2) & 0x3fff, little_endian(data + 8, 2) & 0x3fff);
}

/* RFC 9649, 3.4: signature, then 14 bits of width - 1 and 14 of height - 1. */
static kn_status read_vp8l(kn_image_info *out, const uint8_t *data, size_t length)
{
    if (length < 5) return ends_early(KN_IMAGE_WEBP);
    const uint32_t bits = little_endian(data + 1, 4);
    if (data[0] != 0x2f || bits >> 29 != 0)
        return kn_fail(KN_CORRUPT, "image: the lossless data of the webp file has a wrong signature");
    return found(out, KN_IMAGE_WEBP, (bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1);
}

/* RFC 9649, 2.7: flags, then 24 bits of width - 1 and of height - 1. */
static kn_status read_vp8x(kn_image_info *out, const uint8_t *data, size_t length)
{
    if (length != 10) return kn_fail(KN_CORRUPT, "image: the extended header of the webp file has a wrong length");
    if (data[0] & 0x02) return animated(KN_IMAGE_WEBP);
    return found(out, KN_IMAGE_WEBP, little_endian(data + 4, 3) + 1, little_endian(data + 7, 3) + 1);
}

/* The picture's own size counts; where there is an extended header too, both must agree. */
static kn_status sniff_webp(kn_image_info *out, cursor c)
{
    const uint8_t *bytes = c.at;
    kn_image_info canvas = {.width = 0}, picture;
    take(&c, 12, &bytes);
    const uint32_t riff = little_endian(bytes + 4, 4);
    if (riff < 4 || riff - 4 > c.left) return ends_early(KN_IMAGE_WEBP);
    c.left = riff - 4;
    for (int i = 0; i < KN_IMAGE_CHUNKS_MAX; i++) {
        if (!take(&c, 8, &bytes)) return ends_early(KN_IMAGE_WEBP);
        const uint32_t length = little_endian(bytes + 4, 4);
        const uint8_t *type = bytes, *data;
        if (!take(&c, length, &data)) return ends_early(KN_IMAGE_WEBP);
        if (length % 2 != 0 && c.left > 0) take(&c, 1, &bytes); /* chunks are padded to an even length */
        const bool lossy = memcmp(type, "VP8 ", 4) == 0, lossless = memcmp(type, "VP8L", 4) == 0;
        if (memcmp(type, "ANIM", 4) == 0 || memcmp(type, "ANMF", 4) == 0) return animated(KN_IMAGE_WEBP);
        kn_status st = KN_OK;
        if (memcmp(type, "VP8X", 4) == 0) {
            if (i != 0) return kn_fail(KN_CORRUPT, "image: the extended header of the webp file is not the first");
            st = read_vp8x(&canvas, data, length);
        } else if (lossy || lossless) {
            st = lossy ? read_vp8(&picture, data, length) : read_vp8l(&picture, data, length);
            if (st == KN_OK && canvas.width != 0 && (canvas.width != picture.width || canvas.height != picture.height))
                st = kn_fail(KN_CORRUPT, "image: the webp file names two different sizes");
            if (st == KN_OK) *out = picture;
            return st;
        }
        if (st != KN_OK) return st;
    }
    return too_many(KN_IMAGE_WEBP);
}

/* ---- public ---- */

kn_status kn_image_sniff(kn_image_info *out, const void *bytes, size_t count)
{
    KN_REQUIRE(bytes || count == 0);
    *out = (kn_image_info){.width = 0};
    if (count > KN_IMAGE_BYTES_MAX)
        return kn_fail(KN_INVALID, "image: %zu bytes, the limit is %d", count, KN_IMAGE_BYTES_MAX);
    const cursor c = {.at = bytes, .left = count};
    if (count >= sizeof png_signature && memcmp(bytes, png_signature, sizeof png_signature) == 0)
        return sniff_png(out, c);
    if (count >= 3 && c.at[0] == 0xff && c.at[1] == JPEG_SOI && c.at[2] == 0xff) return sniff_jpeg(out, c);
    if (count >= 12 && memcmp(c.at, "RIFF", 4) == 0 && memcmp(c.at + 8, "WEBP", 4) == 0) return sniff_webp(out, c);
    return kn_fail(KN_UNSUPPORTED, "image: not a png, jpeg or webp file");
}

const char *kn_image_kind_name(kn_image_kind kind)
{
    static const char *const names[KN_IMAGE_KINDS] = {"png", "jpeg", "webp"};
    return (unsigned)kind < KN_IMAGE_KINDS ? names[kind] : "unknown";
}

const char *kn_image_media_type(kn_image_kind kind)
{
    static const char *const types[KN_IMAGE_KINDS] = {"image/png", "image/jpeg", "image/webp"};
    return (unsigned)kind < KN_IMAGE_KINDS ? types[kind] : "application/octet-stream";
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "server/image_strip.h"

#include <stdbool.h>
#include <string.h>

/* Reads ahead of where it writes. */
typedef struct mover {
    uint8_t *bytes;
    size_t from, to, count;
} mover;

static size_t left(const mover *m)
{
    return m->count - m->from;
}

/* The next `count` bytes, which are there: kept, or not. */
static void pass(mover *m, size_t count, bool keep)
{
    if (keep) {
        memmove(m->bytes + m->to, m->bytes + m->from, count);
        m->to += count;
    }
    m->from += count;
}

static size_t pass_rest(mover *m)
{
    pass(m, left(m), true);
    return m->to;
}

static bool is_any(const uint8_t *type, const char *const *types, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (memcmp(type, types[i], 4) == 0) return true;
    return false;
}

static size_t strip_png(mover *m)
{
    static const char *const kept[] = {"IHDR", "PLTE", "tRNS", "IDAT", "IEND"};
    enum { SIGNATURE = 8, AROUND = 12 }; /* length, type, data, sum */
    if (left(m) < SIGNATURE) return pass_rest(m);
    pass(m, SIGNATURE, true);
    while (left(m) >= AROUND) {
        const uint8_t *at = m->bytes + m->from;
        const size_t length = (size_t)at[0] << 24 | (size_t)at[1] << 16 | (size_t)at[2] << 8 | at[3];
        if (length > left(m) - AROUND) break;
        const bool end = memcmp(at + 4, "IEND", 4) == 0;
        pass(m, AROUND + length, is_any(at + 4, kept, sizeof kept / sizeof *kept));
        if (end) return m->to; /* what comes after is not PNG */
    }
    return pass_rest(m);
}

/* Compressed data ends at the first marker that is not a stuffed byte, a restart or filling. */
static void pass_jpeg_data(mover *m)
{
    size_t length = 0;
    for (const uint8_t *at = m->bytes + m->from; length + 1 < left(m); length++) {
        const uint8_t next = at[length + 1];
        if (at[length] == 0xff && next != 0 && next != 0xff && !(next >= 0xd0 && next <= 0xd7)) break;
    }
    pass(m, length, true);
}

/* APP0 (JFIF) and APP14 (Adobe) say how to read the colours; the other APPn and COM say things about the picture. */
static size_t strip_jpeg(mover *m)
{
    enum { SOI = 0xd8, EOI = 0xd9, SOS = 0xda, APP0 = 0xe0, APP14 = 0xee, APP15 = 0xef, COM = 0xfe };
    if (left(m) < 2) return pass_rest(m);
    pass(m, 2, true);
    while (left(m) >= 4) {
        const uint8_t *at = m->bytes + m->from;
        const uint8_t marker = at[1];
        if (at[0] != 0xff || marker == 0 || marker == SOI || marker == EOI) break;
        if (marker == 0xff) {
            pass(m, 1, false);
            continue;
        }
        const size_t length = (size_t)at[2] << 8 | at[3];
        if (length < 2 || length > left(m) - 2) break;
        const bool about = (marker > APP0 && marker <= APP15 && marker != APP14) || marker == COM;
        pass(m, 2 + length, !about);
        if (marker == SOS) pass_jpeg_data(m);
    }
    return pass_rest(m);
}

static size_t strip_webp(mover *m)
{
    static const char *const kept[] = {"VP8X", "ALPH", "VP8 ", "VP8L"};
    enum { HEAD = 12, CHUNK_HEAD = 8, ABOUT_FLAGS = 0x20 | 0x08 | 0x04 }; /* a profile, EXIF, XMP */
    if (left(m) < HEAD) return pass_rest(m);
    pass(m, HEAD, true);
    while (left(m) >= CHUNK_HEAD) {
        uint8_t *at = m->bytes + m->from;
        const size_t length = (size_t)at[7] << 24 | (size_t)at[6] << 16 | (size_t)at[5] << 8 | at[4];
        if (length > left(m) - CHUNK_HEAD) break;
        const size_t padded = length + (length % 2 != 0 && length < left(m) - CHUNK_HEAD);
        if (memcmp(at, "VP8X", 4) == 0 && length > 0) at[CHUNK_HEAD] &= (uint8_t)~ABOUT_FLAGS;
        pass(m, CHUNK_HEAD + padded, is_any(at, kept, sizeof kept / sizeof *kept));
    }
    const size_t count = pass_rest(m);
    for (int i = 0; i < 4; i++) m->bytes[4 + i] = (uint8_t)((count - 8) >> 8 * i);
    return count;
}

size_t kn_image_strip(kn_image_kind kind, uint8_t *bytes, size_t count)
{
    mover m = {.bytes = bytes, .count = count};
    switch (kind) {
    case KN_IMAGE_PNG: return strip_png(&m);
    case KN_IMAGE_JPEG: return strip_jpeg(&m);
    case KN_IMAGE_WEBP: return strip_webp(&m);
    default: return count;
    }
}

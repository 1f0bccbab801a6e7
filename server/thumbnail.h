/* SPDX-License-Identifier: Apache-2.0
 *
 * Small pictures of a video, made while its frames pass by: a thumbnail (the frame in the middle, WebP) and a
 * spritesheet (up to 16 frames evenly spread, four to a row, JPEG). The same frames give the same bytes. One thread. */
#ifndef KN_SERVER_THUMBNAIL_H
#define KN_SERVER_THUMBNAIL_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum {
    KN_THUMBNAIL_SIDE = 512, /* pixels, longest side */
    KN_SPRITE_SIDE = 160,    /* of one picture of the sheet */
    KN_SPRITE_COLUMNS = 4,
    KN_SPRITES_MAX = 16,
    KN_PICTURE_SIDE_MAX = 16384,
};

typedef enum kn_picture_format { KN_PICTURE_WEBP, KN_PICTURE_JPEG } kn_picture_format;

/* Pixels in host memory, 8 bit, red first. */
typedef struct kn_picture {
    int32_t width, height;
    uint8_t *pixels; /* [height, width, 3] */
} kn_picture;

/* A copy of planes [3, height, width] f32 in 0..1 whose longest side is at most `side`: every pixel is the mean of
 * those it covers. Sides are at least 2. Free with kn_picture_release. */
kn_status kn_picture_shrink(kn_picture *out, const float *planes, int32_t width, int32_t height, int32_t side);
void kn_picture_release(kn_picture *picture);

/* A file in memory, kn_alloc'ed. KN_UNAVAILABLE: this FFmpeg has no such encoder. */
kn_status kn_picture_encode(void **bytes, size_t *count, const kn_picture *picture, kn_picture_format format);
const char *kn_picture_mime(kn_picture_format format);

typedef struct kn_thumbnail kn_thumbnail;

/* For a video of `frames` frames of this size. */
kn_status kn_thumbnail_create(kn_thumbnail **out, int32_t width, int32_t height, int64_t frames);
void kn_thumbnail_destroy(kn_thumbnail **thumbnail);

/* Every frame once, in order from 0; planes [3, height, width] f32 in 0..1. */
kn_status kn_thumbnail_frame(kn_thumbnail *thumbnail, int64_t index, const float *planes);

/* After the last frame. kn_alloc'ed files. KN_INVALID: frames are missing. */
kn_status kn_thumbnail_picture(const kn_thumbnail *thumbnail, void **webp, size_t *count);
kn_status kn_thumbnail_sheet(const kn_thumbnail *thumbnail, void **jpeg, size_t *count);

#endif

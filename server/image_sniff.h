/* SPDX-License-Identifier: Apache-2.0
 *
 * What an uploaded image says about itself, read from its first bytes without decoding anything: enough to refuse it,
 * or to know how large its pixels are before a decoder sees it. Walks the chunks of PNG (W3C PNG, third edition, 5 and
 * 11.2.1), the markers of JPEG (ITU-T T.81, B.2) and the chunks of WebP (RFC 9649, 2.5 to 2.7) up to the picture's
 * header. A function of bytes: no allocation, no recursion, linear in the number of chunks, which is bounded.
 * Thread-safe. */
#ifndef KN_SERVER_IMAGE_SNIFF_H
#define KN_SERVER_IMAGE_SNIFF_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum {
    KN_IMAGE_BYTES_MAX = 32 * 1024 * 1024, /* of a file */
    KN_IMAGE_SIDE_MAX = 8192,              /* pixels */
    KN_IMAGE_PIXELS_MAX = 1 << 24,         /* 4096 x 4096: beyond every video size, and its 16-bit RGBA is 128 MiB,
                                              which the sandbox's 512 MiB hold together with everything else */
    KN_IMAGE_CHUNKS_MAX = 1024,            /* chunks or markers before the picture's data */
};

typedef enum kn_image_kind { KN_IMAGE_PNG, KN_IMAGE_JPEG, KN_IMAGE_WEBP, KN_IMAGE_KINDS } kn_image_kind;

typedef struct kn_image_info {
    kn_image_kind kind;
    int32_t width, height; /* pixels, as stored: an EXIF orientation is not applied */
} kn_image_info;

/* KN_UNSUPPORTED: none of the three kinds, or a variety that is not taken (animated, more than one frame; JPEG that is
 * lossless, arithmetic-coded, hierarchical, 12-bit or CMYK). KN_INVALID: larger than a limit, which the message names.
 * KN_CORRUPT: contradicts its own format, or ends before its header does. */
kn_status kn_image_sniff(kn_image_info *out, const void *bytes, size_t count);

const char *kn_image_kind_name(kn_image_kind kind);  /* "png", "jpeg", "webp" */
const char *kn_image_media_type(kn_image_kind kind); /* "image/png", ... */

#endif

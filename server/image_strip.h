/* SPDX-License-Identifier: Apache-2.0
 *
 * Takes out of an image file everything that is not the picture: profiles, EXIF, XMP, texts, comments, unknown chunks.
 * A decoder then never reads them, and what it would do with them (inflate a profile to gigabytes, follow offsets in a
 * TIFF) cannot go wrong. A function of bytes, linear, in place; thread-safe. Runs in the sandbox, on whole files. */
#ifndef KN_SERVER_IMAGE_STRIP_H
#define KN_SERVER_IMAGE_STRIP_H

#include <stddef.h>
#include <stdint.h>

#include "server/image_sniff.h"

/* The new number of bytes, at most `count`. What follows the first contradiction of the format is kept as it is: to
 * refuse it is the decoder's business. */
size_t kn_image_strip(kn_image_kind kind, uint8_t *bytes, size_t count);

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * Any bytes are either refused with one line, or named as a picture within the limits; and taking everything else out
 * of the file leaves a picture of the same kind and size, a second time nothing. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "server/image_sniff.h"
#include "server/image_strip.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    kn_image_info info, stripped;
    const kn_status st = kn_image_sniff(&info, bytes, count);
    uint8_t *copy = kn_alloc(count ? count : 1);
    if (!copy) abort();
    if (st != KN_OK) {
        if (strncmp(kn_fail_message(), "image: ", 7) != 0 || strchr(kn_fail_message(), '\n')) abort();
        /* The sandbox never strips what was refused, but it must hold for anything. */
        for (int kind = 0; kind < KN_IMAGE_KINDS; kind++) {
            memcpy(copy, bytes, count);
            if (kn_image_strip((kn_image_kind)kind, copy, count) > count) abort();
        }
        kn_free(copy);
        return 0;
    }
    if (info.width < 1 || info.height < 1 || info.width > KN_IMAGE_SIDE_MAX || info.height > KN_IMAGE_SIDE_MAX ||
        (int64_t)info.width * info.height > KN_IMAGE_PIXELS_MAX)
        abort();
    memcpy(copy, bytes, count);
    const size_t left = kn_image_strip(info.kind, copy, count);
    if (left > count) abort();
    if (kn_image_sniff(&stripped, copy, left) != KN_OK || stripped.kind != info.kind || stripped.width != info.width ||
        stripped.height != info.height)
        abort();
    kn_free(copy);
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Frame buffers of a streaming convolutional network.
 *
 * A causal convolution keeps its last two input frames. When the third arrives the
 * oldest is free again, for whichever layer of the same geometry comes next; so a
 * pool per geometry needs two frames per convolution and a few in flight, not
 * three per convolution. A frame's border is zero when it is allocated and no
 * operator writes it, so it stays zero while the frame is reused.
 *
 * Sizing is a dry run: with `dry` set, the network walks its layers, takes and
 * gives frames and launches nothing; the peak counts are what a real run takes. */
#ifndef KN_ENGINE_VAE_FRAMES_H
#define KN_ENGINE_VAE_FRAMES_H

#include <stdbool.h>

#include "base/arena.h"
#include "kernels/device.h"

enum { KN_FRAME_CLASSES_MAX = 48, KN_FRAMES_PER_CLASS_MAX = 96 };

typedef struct kn_frame_class {
    int32_t height, width, channels;
    kn_dtype dtype;
    int32_t border;
    int32_t made;                          /* frames that exist */
    int32_t idle;                          /* of them not taken */
    void *frames[KN_FRAMES_PER_CLASS_MAX]; /* idle ones, a stack; pixel (0, 0) */
} kn_frame_class;

typedef struct kn_frame_pool {
    kn_arena arena; /* frames are cut from it when a class has none idle */
    bool dry;
    int32_t classes;
    kn_frame_class class_of[KN_FRAME_CLASSES_MAX];
} kn_frame_pool;

/* Takes an idle frame or makes one. KN_BUG when a table is full or the arena is short. */
kn_status kn_frame_take(kn_frame_pool *pool, kn_frame *out, int32_t height, int32_t width, int32_t channels,
                        kn_dtype dtype, int32_t border);

/* Gives a frame back; one without data (never taken) is ignored. The frame is cleared. */
void kn_frame_give(kn_frame_pool *pool, kn_frame *frame);

/* Bytes of one frame of this geometry with its border. */
size_t kn_frame_bytes(int32_t height, int32_t width, int32_t channels, kn_dtype dtype, int32_t border);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/vae_frames.h"

size_t kn_frame_bytes(int32_t height, int32_t width, int32_t channels, kn_dtype dtype, int32_t border)
{
    return (size_t)(height + 2 * border) * (size_t)(width + 2 * border) * (size_t)channels * kn_dtype_bytes(dtype);
}

static kn_frame_class *find_class(kn_frame_pool *pool, int32_t height, int32_t width, int32_t channels, kn_dtype dtype,
                                  int32_t border)
{
    for (int i = 0; i < pool->classes; i++) {
        kn_frame_class *c = &pool->class_of[i];
        if (c->height == height && c->width == width && c->channels == channels && c->dtype == dtype &&
            c->border == border)
            return c;
    }
    if (pool->classes == KN_FRAME_CLASSES_MAX) return NULL;
    kn_frame_class *c = &pool->class_of[pool->classes++];
    *c = (kn_frame_class){.height = height, .width = width, .channels = channels, .dtype = dtype, .border = border};
    return c;
}

kn_status kn_frame_take(kn_frame_pool *pool, kn_frame *out, int32_t height, int32_t width, int32_t channels,
                        kn_dtype dtype, int32_t border)
{
    kn_frame_class *c = find_class(pool, height, width, channels, dtype, border);
    if (!c) return kn_fail(KN_BUG, "more than %d frame geometries", KN_FRAME_CLASSES_MAX);
    const int32_t row_stride = width + 2 * border;
    *out = (kn_frame){.height = height,
                      .width = width,
                      .channels = channels,
                      .row_stride = row_stride,
                      .border = border,
                      .dtype = dtype};
    if (c->idle > 0) {
        out->data = c->frames[--c->idle];
        return KN_OK;
    }
    if (c->made == KN_FRAMES_PER_CLASS_MAX)
        return kn_fail(KN_BUG, "more than %d frames of %d x %d x %d", KN_FRAMES_PER_CLASS_MAX, height, width, channels);
    char *memory = kn_arena_take(&pool->arena, kn_frame_bytes(height, width, channels, dtype, border));
    c->made++;
    if (pool->dry) {
        out->data = pool; /* any address but NULL: a dry frame is never read */
        return KN_OK;
    }
    if (!memory)
        return kn_fail(KN_BUG, "the frame pool was sized for %zu bytes and needs %zu", pool->arena.capacity,
                       pool->arena.peak);
    out->data = memory + (size_t)(border * (row_stride + 1)) * (size_t)channels * kn_dtype_bytes(dtype);
    return KN_OK;
}

void kn_frame_give(kn_frame_pool *pool, kn_frame *frame)
{
    if (!frame->data) return;
    kn_frame_class *c = find_class(pool, frame->height, frame->width, frame->channels, frame->dtype, frame->border);
    c->frames[c->idle++] = frame->data;
    *frame = (kn_frame){0};
}

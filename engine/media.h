/* SPDX-License-Identifier: Apache-2.0
 *
 * Frames into files, through FFmpeg's libraries. The container follows the
 * output's name: .mp4 (H.264, yuv420p, faststart), .webm (VP9), .gif, or a
 * printf pattern ending in .png (frame-%04d.png, counted from 0; a plain .png
 * takes one frame). Nothing has its final name before kn_media_finish. The same
 * frames give the same bytes: encoder threads are pinned to one and no clock enters the file.
 *
 * One writer is used by one thread. */
#ifndef KN_ENGINE_MEDIA_H
#define KN_ENGINE_MEDIA_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct kn_media_writer kn_media_writer;

typedef struct kn_media_params {
    const char *path;      /* final name; video is written to path.tmp and renamed on finish */
    const char *encoder;   /* FFmpeg encoder name, e.g. "libx264", "libopenh264", "mpeg4"; NULL: the first available */
    int32_t width, height; /* pixels; yuv420p needs both even */
    int32_t fps_numerator, fps_denominator; /* frames per second, > 0 */
    int32_t crf;                            /* quality on the encoder's own scale, 1 best; 0: its default (x264 18) */
    const char *title;                      /* metadata; NULL: left out */
    const char *comment;                    /* one line: model, seed, version */
} kn_media_params;

/* KN_INVALID: unknown extension, odd size for a format that needs even, a bad pattern. KN_UNAVAILABLE: the encoder is
 * not in this FFmpeg; the message lists those that are. */
kn_status kn_media_open(kn_media_writer **out, const kn_media_params *params);

/* One frame: planar float [3, height, width], red first, 0..1; rounded to 8 bit as floor(255 v + 0.5).
 * plane_stride: elements between planes. BT.709 limited range for video. */
kn_status kn_media_write(kn_media_writer *writer, const float *planes, int64_t plane_stride);

/* The same frame as bytes [height, width, 3], red first. */
kn_status kn_media_write_rgb(kn_media_writer *writer, const uint8_t *rgb);

/* Flushes, writes the index in front, syncs, renames. Takes the writer, also on failure. */
kn_status kn_media_finish(kn_media_writer **writer);

/* Removes what was written so far. Accepts NULL. */
void kn_media_abandon(kn_media_writer **writer);

/* One PNG, 8-bit RGB. */
kn_status kn_media_write_png(const char *path, const float *planes, int64_t plane_stride, int32_t width,
                             int32_t height);

/* Comma-separated names of the encoders this build can use for the container of `path`. */
void kn_media_encoders(const char *path, char *out, size_t bytes);

/* Bytes the encoder is expected to hold for this size (reference and lookahead frames); for the memory plan. 0 for
 * what cannot be opened. */
uint64_t kn_media_bytes(const kn_media_params *params);

#endif

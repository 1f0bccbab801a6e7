/* SPDX-License-Identifier: Apache-2.0
 *
 * Pictures for tests of uploads: made by the encoders of FFmpeg, so that what reads them is checked by somebody else's
 * writer. Needs _GNU_SOURCE. */
#ifndef KN_TESTS_SERVER_UPLOAD_H
#define KN_TESTS_SERVER_UPLOAD_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <libavcodec/avcodec.h>
#include <libavutil/imgutils.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef struct upload {
    uint8_t *bytes;
    size_t count;
    int width, height;
    uint8_t *rgb; /* [height, width, 3]: what was encoded */
} upload;

/* Smooth in both directions, so that lossy formats come close to it. */
static inline uint8_t upload_value(int x, int y, int channel, int width, int height)
{
    const int of[3] = {255 * x / width, 255 * y / height, 255 * (x + y) / (width + height)};
    return (uint8_t)of[channel];
}

static inline AVFrame *upload_frame(upload *u, enum AVPixelFormat format)
{
    u->rgb = malloc((size_t)u->width * (size_t)u->height * 3);
    assert_non_null(u->rgb);
    for (int y = 0; y < u->height; y++)
        for (int x = 0; x < u->width; x++)
            for (int c = 0; c < 3; c++) u->rgb[(y * u->width + x) * 3 + c] = upload_value(x, y, c, u->width, u->height);
    AVFrame *frame = av_frame_alloc();
    frame->format = format;
    frame->width = u->width;
    frame->height = u->height;
    assert_int_equal(av_frame_get_buffer(frame, 0), 0);
    struct SwsContext *scaler = sws_getContext(u->width, u->height, AV_PIX_FMT_RGB24, u->width, u->height, format,
                                               SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT, NULL, NULL, NULL);
    assert_non_null(scaler);
    const uint8_t *const from[4] = {u->rgb};
    const int stride[4] = {u->width * 3};
    sws_scale(scaler, from, stride, 0, u->height, frame->data, frame->linesize);
    sws_freeContext(scaler);
    return frame;
}

/* A file by the encoder of that name; `bytes` NULL when this FFmpeg has no such encoder. */
static inline upload upload_encode(const char *encoder, enum AVPixelFormat format, int width, int height, bool lossless)
{
    upload u = {.width = width, .height = height};
    const AVCodec *codec = avcodec_find_encoder_by_name(encoder);
    if (!codec) return u;
    AVFrame *frame = upload_frame(&u, format);
    AVCodecContext *context = avcodec_alloc_context3(codec);
    context->width = width;
    context->height = height;
    context->pix_fmt = format;
    context->time_base = (AVRational){1, 25};
    context->global_quality = 2 * FF_QP2LAMBDA;
    context->flags |= AV_CODEC_FLAG_QSCALE;
    if (lossless) av_opt_set_int(context->priv_data, "lossless", 1, 0);
    if (strncmp(encoder, "libwebp", 7) == 0) context->global_quality = 95 * FF_QP2LAMBDA;
    if (strcmp(encoder, "mjpeg") == 0) frame->quality = context->global_quality;
    assert_int_equal(avcodec_open2(context, codec, NULL), 0);
    assert_int_equal(avcodec_send_frame(context, frame), 0);
    assert_true(avcodec_send_frame(context, NULL) == 0);
    AVPacket *packet = av_packet_alloc();
    assert_int_equal(avcodec_receive_packet(context, packet), 0);
    u.count = (size_t)packet->size;
    u.bytes = malloc(u.count);
    assert_non_null(u.bytes);
    memcpy(u.bytes, packet->data, u.count);
    av_packet_free(&packet);
    avcodec_free_context(&context);
    av_frame_free(&frame);
    return u;
}

static inline upload upload_png(int width, int height)
{
    return upload_encode("png", AV_PIX_FMT_RGB24, width, height, false);
}

static inline upload upload_jpeg(int width, int height)
{
    return upload_encode("mjpeg", AV_PIX_FMT_YUVJ444P, width, height, false);
}

static inline upload upload_webp(int width, int height, bool lossless)
{
    return upload_encode("libwebp", lossless ? AV_PIX_FMT_BGRA : AV_PIX_FMT_YUV420P, width, height, lossless);
}

static inline void upload_free(upload *u)
{
    free(u->bytes);
    free(u->rgb);
    *u = (upload){.bytes = NULL};
}

/* Puts `count` bytes into the file at `at`. */
static inline void upload_insert(upload *u, size_t at, const void *bytes, size_t count)
{
    u->bytes = realloc(u->bytes, u->count + count);
    assert_non_null(u->bytes);
    memmove(u->bytes + at + count, u->bytes + at, u->count - at);
    memcpy(u->bytes + at, bytes, count);
    u->count += count;
}

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * Shrinking is a box filter on the float planes; encoders are FFmpeg's libwebp and mjpeg, which take ITU-R BT.601
 * Y'CbCr, of narrow range in a WebP (RFC 6386 section 9.2, WebP container specification) and of full range in a JPEG
 * (ITU-T T.871 section 7). One thread, bit-exact modes, no metadata. */
#include "server/thumbnail.h"

#include <libavcodec/avcodec.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/mem.h"

enum { WEBP_QUALITY = 80, JPEG_SCALE = 4 /* mjpeg's quantiser scale, 2 best to 31 */ };

typedef struct coder {
    const char *encoder, *mime;
    enum AVPixelFormat pixels;
    int full_range;
} coder;

static const coder coders[] = {
    [KN_PICTURE_WEBP] = {"libwebp", "image/webp", AV_PIX_FMT_YUV420P, 0},
    [KN_PICTURE_JPEG] = {"mjpeg", "image/jpeg", AV_PIX_FMT_YUVJ420P, 1},
};

const char *kn_picture_mime(kn_picture_format format)
{
    return coders[format].mime;
}

/* ---- shrinking ---- */

static int32_t scaled(int32_t length, int32_t longest, int32_t side)
{
    const int64_t out = longest > side ? ((int64_t)length * side + longest / 2) / longest : length;
    return out < 2 ? 2 : (int32_t)out;
}

/* First source pixel under output pixel `at` of `out`; at least one lies under each. */
static int32_t edge(int32_t at, int32_t out, int32_t in)
{
    return (int32_t)((int64_t)at * in / out);
}

static uint8_t mean(const float *plane, int32_t stride, int32_t x0, int32_t x1, int32_t y0, int32_t y1)
{
    double sum = 0.0;
    for (int32_t y = y0; y < y1; y++)
        for (int32_t x = x0; x < x1; x++) sum += (double)plane[(int64_t)y * stride + x];
    const double value = floor(sum / ((double)(x1 - x0) * (y1 - y0)) * 255.0 + 0.5);
    return value >= 255.0 ? 255 : value > 0.0 ? (uint8_t)value : 0; /* a NaN is black */
}

/* Into a rectangle of a larger picture. */
static void shrink_into(uint8_t *out, int32_t out_stride, int32_t out_width, int32_t out_height, const float *planes,
                        int32_t width, int32_t height)
{
    const int64_t plane = (int64_t)width * height;
    for (int32_t y = 0; y < out_height; y++) {
        const int32_t y0 = edge(y, out_height, height), y1 = edge(y + 1, out_height, height);
        for (int32_t x = 0; x < out_width; x++) {
            const int32_t x0 = edge(x, out_width, width), x1 = edge(x + 1, out_width, width);
            for (int c = 0; c < 3; c++)
                out[(int64_t)y * out_stride + 3 * x + c] =
                    mean(planes + c * plane, width, x0, x1 > x0 ? x1 : x0 + 1, y0, y1 > y0 ? y1 : y0 + 1);
        }
    }
}

static kn_status allocate(kn_picture *out, int32_t width, int32_t height)
{
    *out = (kn_picture){.width = width, .height = height};
    out->pixels = kn_alloc_array((size_t)width * (size_t)height, 3);
    return out->pixels ? KN_OK : KN_NOMEM;
}

void kn_picture_release(kn_picture *picture)
{
    kn_free(picture->pixels);
    *picture = (kn_picture){0};
}

static kn_status check_size(int32_t width, int32_t height)
{
    KN_REQUIRE(width >= 1 && height >= 1 && width <= KN_PICTURE_SIDE_MAX && height <= KN_PICTURE_SIDE_MAX);
    return KN_OK;
}

kn_status kn_picture_shrink(kn_picture *out, const float *planes, int32_t width, int32_t height, int32_t side)
{
    kn_status st = check_size(width, height);
    if (st != KN_OK) return st;
    const int32_t longest = width > height ? width : height;
    st = allocate(out, scaled(width, longest, side), scaled(height, longest, side));
    if (st == KN_OK) shrink_into(out->pixels, 3 * out->width, out->width, out->height, planes, width, height);
    return st;
}

/* ---- encoding ---- */

typedef struct encoding {
    AVCodecContext *codec;
    AVFrame *frame;
    AVPacket *packet;
    struct SwsContext *scaler;
} encoding;

static kn_status open_codec(encoding *e, const coder *with, const kn_picture *picture)
{
    const AVCodec *found = avcodec_find_encoder_by_name(with->encoder);
    if (!found) return kn_fail(KN_UNAVAILABLE, "this FFmpeg has no encoder %s", with->encoder);
    AVCodecContext *codec = e->codec = avcodec_alloc_context3(found);
    e->frame = av_frame_alloc();
    e->packet = av_packet_alloc();
    if (!codec || !e->frame || !e->packet) return KN_NOMEM;
    codec->width = picture->width;
    codec->height = picture->height;
    codec->pix_fmt = with->pixels;
    codec->color_range = with->full_range ? AVCOL_RANGE_JPEG : AVCOL_RANGE_MPEG;
    codec->colorspace = AVCOL_SPC_SMPTE170M;
    codec->time_base = (AVRational){1, 1};
    codec->thread_count = 1;
    codec->flags |= AV_CODEC_FLAG_BITEXACT;
    if (with->full_range) {
        codec->flags |= AV_CODEC_FLAG_QSCALE;
        codec->global_quality = JPEG_SCALE * FF_QP2LAMBDA;
    } else if (av_opt_set_double(codec->priv_data, "quality", WEBP_QUALITY, 0) < 0) {
        return kn_fail(KN_UNAVAILABLE, "%s here does not know its option quality", with->encoder);
    }
    return avcodec_open2(codec, found, NULL) < 0 ? kn_fail(KN_UNAVAILABLE, "%s cannot be opened", with->encoder)
                                                 : KN_OK;
}

static kn_status convert(encoding *e, const coder *with, const kn_picture *picture)
{
    AVFrame *frame = e->frame;
    frame->width = picture->width;
    frame->height = picture->height;
    frame->format = with->pixels;
    frame->color_range = e->codec->color_range;
    frame->quality = e->codec->global_quality;
    if (av_frame_get_buffer(frame, 0) < 0) return KN_NOMEM;
    const int flags = SWS_BILINEAR | SWS_FULL_CHR_H_INP | SWS_ACCURATE_RND | SWS_BITEXACT;
    /* The scaler is told the range below, and not by the format's name, which it warns of. */
    e->scaler = sws_getContext(frame->width, frame->height, AV_PIX_FMT_RGB24, frame->width, frame->height,
                               AV_PIX_FMT_YUV420P, flags, NULL, NULL, NULL);
    if (!e->scaler) return KN_NOMEM;
    const int *bt601 = sws_getCoefficients(SWS_CS_ITU601);
    sws_setColorspaceDetails(e->scaler, bt601, 1, bt601, with->full_range, 0, 1 << 16, 1 << 16);
    const uint8_t *const source[] = {picture->pixels};
    const int stride[] = {3 * picture->width};
    if (sws_scale(e->scaler, source, stride, 0, frame->height, frame->data, frame->linesize) != frame->height)
        return kn_fail(KN_BUG, "%s: the pixel conversion failed", with->encoder);
    return KN_OK;
}

static kn_status encode(encoding *e, const coder *with, void **bytes, size_t *count)
{
    if (avcodec_send_frame(e->codec, e->frame) < 0 || avcodec_send_frame(e->codec, NULL) < 0 ||
        avcodec_receive_packet(e->codec, e->packet) < 0)
        return kn_fail(KN_UNAVAILABLE, "%s cannot encode %dx%d", with->encoder, e->codec->width, e->codec->height);
    char *copy = kn_alloc((size_t)e->packet->size);
    if (!copy) return KN_NOMEM;
    *bytes = memcpy(copy, e->packet->data, (size_t)e->packet->size);
    *count = (size_t)e->packet->size;
    return KN_OK;
}

kn_status kn_picture_encode(void **bytes, size_t *count, const kn_picture *picture, kn_picture_format format)
{
    kn_status st = check_size(picture->width, picture->height);
    encoding e = {0};
    if (st != KN_OK) return st;
    KN_TRY(open_codec(&e, &coders[format], picture));
    KN_TRY(convert(&e, &coders[format], picture));
    KN_TRY(encode(&e, &coders[format], bytes, count));
fail:
    sws_freeContext(e.scaler);
    av_packet_free(&e.packet);
    av_frame_free(&e.frame);
    avcodec_free_context(&e.codec);
    return st;
}

/* ---- a video's pictures ---- */

struct kn_thumbnail {
    int32_t width, height;
    int64_t frames, seen;
    kn_picture picture;
    kn_picture sheet;
    int32_t sprites, sprite_width, sprite_height;
};

kn_status kn_thumbnail_create(kn_thumbnail **out, int32_t width, int32_t height, int64_t frames)
{
    KN_REQUIRE(frames >= 1);
    kn_status st = check_size(width, height);
    if (st != KN_OK) return st;
    kn_thumbnail *t = kn_alloc(sizeof *t);
    if (!t) return KN_NOMEM;
    const int32_t longest = width > height ? width : height;
    t->width = width;
    t->height = height;
    t->frames = frames;
    t->sprites = frames < KN_SPRITES_MAX ? (int32_t)frames : KN_SPRITES_MAX;
    t->sprite_width = scaled(width, longest, KN_SPRITE_SIDE);
    t->sprite_height = scaled(height, longest, KN_SPRITE_SIDE);
    const int32_t columns = t->sprites < KN_SPRITE_COLUMNS ? t->sprites : KN_SPRITE_COLUMNS;
    KN_TRY(allocate(&t->sheet, columns * t->sprite_width, (t->sprites + columns - 1) / columns * t->sprite_height));
    *out = t;
    return KN_OK;
fail:
    kn_thumbnail_destroy(&t);
    return st;
}

void kn_thumbnail_destroy(kn_thumbnail **thumbnail)
{
    kn_thumbnail *t = *thumbnail;
    if (!t) return;
    kn_picture_release(&t->picture);
    kn_picture_release(&t->sheet);
    kn_free(t);
    *thumbnail = NULL;
}

kn_status kn_thumbnail_frame(kn_thumbnail *t, int64_t index, const float *planes)
{
    KN_REQUIRE(index == t->seen && index < t->frames);
    t->seen++;
    if (index == t->frames / 2) {
        const kn_status st = kn_picture_shrink(&t->picture, planes, t->width, t->height, KN_THUMBNAIL_SIDE);
        if (st != KN_OK) return st;
    }
    for (int32_t i = 0; i < t->sprites; i++) { /* one at most: there are no more of them than frames */
        if (i * t->frames / t->sprites != index) continue;
        const int64_t row = i / KN_SPRITE_COLUMNS, column = i % KN_SPRITE_COLUMNS;
        uint8_t *corner = t->sheet.pixels + 3 * (row * t->sprite_height * t->sheet.width + column * t->sprite_width);
        shrink_into(corner, 3 * t->sheet.width, t->sprite_width, t->sprite_height, planes, t->width, t->height);
    }
    return KN_OK;
}

kn_status kn_thumbnail_picture(const kn_thumbnail *t, void **webp, size_t *count)
{
    KN_REQUIRE(t->seen == t->frames);
    return kn_picture_encode(webp, count, &t->picture, KN_PICTURE_WEBP);
}

kn_status kn_thumbnail_sheet(const kn_thumbnail *t, void **jpeg, size_t *count)
{
    KN_REQUIRE(t->seen == t->frames);
    return kn_picture_encode(jpeg, count, &t->sheet, KN_PICTURE_JPEG);
}

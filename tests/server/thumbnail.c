/* SPDX-License-Identifier: Apache-2.0 */
#define _XOPEN_SOURCE 700
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <libavcodec/avcodec.h>
#include <libavutil/pixdesc.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "server/thumbnail.h"

enum { W = 64, H = 32 };

/* A grey frame of this brightness. */
static float *grey(int32_t width, int32_t height, float value)
{
    const size_t count = (size_t)3 * (size_t)width * (size_t)height;
    float *planes = malloc(count * sizeof *planes);
    assert_non_null(planes);
    for (size_t i = 0; i < count; i++) planes[i] = value;
    return planes;
}

/* The file decoded by FFmpeg; brightness of the pixel at x, y as 0..255 of full range. */
static int brightness(const void *bytes, size_t count, enum AVCodecID id, int x, int y, int *width, int *height)
{
    AVCodecContext *codec = avcodec_alloc_context3(avcodec_find_decoder(id));
    AVPacket *packet = av_packet_alloc();
    AVFrame *frame = av_frame_alloc();
    assert_int_equal(avcodec_open2(codec, NULL, NULL), 0);
    assert_int_equal(av_new_packet(packet, (int)count), 0);
    memcpy(packet->data, bytes, count);
    assert_int_equal(avcodec_send_packet(codec, packet), 0);
    assert_int_equal(avcodec_receive_frame(codec, frame), 0);
    *width = frame->width;
    *height = frame->height;
    int value = frame->data[0][y * frame->linesize[0] + x];
    if (id == AV_CODEC_ID_WEBP) value = (value - 16) * 255 / 219;
    av_frame_free(&frame);
    av_packet_free(&packet);
    avcodec_free_context(&codec);
    return value;
}

static void test_shrink(void **state)
{
    (void)state;
    static const struct {
        int32_t width, height, side, out_width, out_height;
    } cases[] = {{64, 32, 64, 64, 32},   {64, 32, 32, 32, 16},      {65, 32, 32, 32, 16},
                 {1000, 3, 512, 512, 2}, {832, 480, 512, 512, 295}, {7, 1000, 100, 2, 100}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kn_picture p;
        float *planes = grey(cases[i].width, cases[i].height, 0.5f);
        assert_int_equal(kn_picture_shrink(&p, planes, cases[i].width, cases[i].height, cases[i].side), KN_OK);
        assert_int_equal(p.width, cases[i].out_width);
        assert_int_equal(p.height, cases[i].out_height);
        for (int32_t k = 0; k < 3 * p.width * p.height; k++) assert_int_equal(p.pixels[k], 128);
        kn_picture_release(&p);
        free(planes);
    }
    kn_picture p;
    assert_int_equal(kn_picture_shrink(&p, NULL, 0, 5, 5), KN_INVALID);
    assert_int_equal(kn_picture_shrink(&p, NULL, KN_PICTURE_SIDE_MAX + 1, 5, 5), KN_INVALID);
}

/* Each pixel is the mean of four, each channel its own; what is not a colour becomes the nearest one. */
static void test_shrink_values(void **state)
{
    (void)state;
    float *planes = grey(4, 4, 0.0f);
    for (int i = 0; i < 16; i++) {
        planes[i] = (float)(i % 4) / 4.0f;
        planes[16 + i] = i < 8 ? 9.0f : -9.0f;
        planes[32 + i] = NAN;
    }
    kn_picture p;
    assert_int_equal(kn_picture_shrink(&p, planes, 4, 4, 2), KN_OK);
    const uint8_t wanted[12] = {32, 255, 0, 159, 255, 0, 32, 0, 0, 159, 0, 0};
    assert_memory_equal(p.pixels, wanted, sizeof wanted);
    kn_picture_release(&p);
    free(planes);
}

static void test_video(void **state)
{
    (void)state;
    static const int64_t lengths[] = {1, 2, 5, 16, 17, 81};
    for (size_t n = 0; n < sizeof lengths / sizeof *lengths; n++) {
        const int64_t frames = lengths[n], sprites = frames < 16 ? frames : 16;
        kn_thumbnail *t = NULL;
        void *webp = NULL, *jpeg = NULL;
        size_t webp_bytes = 0, jpeg_bytes = 0;
        int width, height;
        assert_int_equal(kn_thumbnail_create(&t, W, H, frames), KN_OK);
        for (int64_t i = 0; i < frames; i++) {
            float *planes = grey(W, H, (float)i / (float)frames);
            assert_int_equal(kn_thumbnail_picture(t, &webp, &webp_bytes), KN_INVALID);
            assert_int_equal(kn_thumbnail_frame(t, i, planes), KN_OK);
            assert_int_equal(kn_thumbnail_frame(t, i, planes), KN_INVALID); /* once each, in order */
            free(planes);
        }
        const kn_status st = kn_thumbnail_picture(t, &webp, &webp_bytes);
        if (st != KN_UNAVAILABLE) {
            assert_int_equal(st, KN_OK);
            const int middle = brightness(webp, webp_bytes, AV_CODEC_ID_WEBP, W / 2, H / 2, &width, &height);
            assert_in_range(middle + 10, (frames / 2) * 255 / frames + 6, (frames / 2) * 255 / frames + 14);
            assert_int_equal(width, W);
            assert_int_equal(height, H);
        }
        assert_int_equal(kn_thumbnail_sheet(t, &jpeg, &jpeg_bytes), KN_OK);
        for (int64_t s = 0; s < sprites; s++) {
            const int x = (int)(s % 4) * W + W / 2, y = (int)(s / 4) * H + H / 2;
            const int got = brightness(jpeg, jpeg_bytes, AV_CODEC_ID_MJPEG, x, y, &width, &height);
            const int64_t wanted = (s * frames / sprites) * 255 / frames;
            assert_in_range(got + 10, wanted + 6, wanted + 14);
        }
        assert_int_equal(width, W * (sprites < 4 ? sprites : 4));
        assert_int_equal(height, H * ((sprites + 3) / 4));
        kn_free(webp);
        kn_free(jpeg);
        kn_thumbnail_destroy(&t);
    }
    assert_int_equal(kn_mem_read().bytes, 0);
}

static void test_same_bytes(void **state)
{
    (void)state;
    float *planes = grey(W, H, 0.0f);
    for (int i = 0; i < 3 * W * H; i++) planes[i] = (float)(i * 37 % 101) / 100.0f;
    kn_picture p;
    assert_int_equal(kn_picture_shrink(&p, planes, W, H, 40), KN_OK);
    for (int format = KN_PICTURE_WEBP; format <= KN_PICTURE_JPEG; format++) {
        void *a = NULL, *b = NULL;
        size_t a_bytes = 0, b_bytes = 0;
        const kn_status st = kn_picture_encode(&a, &a_bytes, &p, (kn_picture_format)format);
        if (st == KN_UNAVAILABLE) continue;
        assert_int_equal(st, KN_OK);
        assert_int_equal(kn_picture_encode(&b, &b_bytes, &p, (kn_picture_format)format), KN_OK);
        assert_int_equal(a_bytes, b_bytes);
        assert_memory_equal(a, b, a_bytes);
        assert_non_null(strstr(kn_picture_mime((kn_picture_format)format), "image/"));
        kn_free(a);
        kn_free(b);
    }
    kn_picture_release(&p);
    free(planes);
}

static void test_no_memory(void **state)
{
    (void)state;
    float *planes = grey(W, H, 0.3f);
    for (uint64_t n = 1; n < 20; n++) {
        kn_thumbnail *t = NULL;
        void *bytes = NULL;
        size_t count = 0;
        kn_mem_fail_at(n);
        kn_status st = kn_thumbnail_create(&t, W, H, 1);
        if (st == KN_OK) st = kn_thumbnail_frame(t, 0, planes);
        if (st == KN_OK) st = kn_thumbnail_sheet(t, &bytes, &count);
        kn_mem_fail_at(0);
        assert_true(st == KN_OK || st == KN_NOMEM);
        assert_true(n > 4 || st == KN_NOMEM);
        kn_free(bytes);
        kn_thumbnail_destroy(&t);
    }
    free(planes);
    assert_int_equal(kn_mem_read().bytes, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shrink),     cmocka_unit_test(test_shrink_values), cmocka_unit_test(test_video),
        cmocka_unit_test(test_same_bytes), cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

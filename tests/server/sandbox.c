/* SPDX-License-Identifier: Apache-2.0
 *
 * Files in, pixels out: every kind and variety of picture, and the life of the queue. What a hostile file can do is
 * tests/server/sandbox_child.c. */
#define _GNU_SOURCE
#include "server/sandbox.h"

#include <stdio.h>

#include "base/mem.h"
#include "tests/server/decoding.h"

static int largest_difference(const upload *u, const decoded *d)
{
    assert_int_equal(d->status, KN_OK);
    assert_int_equal(d->info.width, u->width);
    assert_int_equal(d->info.height, u->height);
    int largest = 0;
    for (int i = 0; i < u->width * u->height * 3; i++) {
        const int difference = abs(u->rgb[i] - d->rgb[i]);
        if (difference > largest) largest = difference;
    }
    return largest;
}

static void check(upload u, kn_image_kind kind, int tolerance)
{
    if (!u.bytes) skip();
    studio s = studio_open(NULL);
    decoded d = studio_decode(&s, u.bytes, u.count);
    assert_int_equal(d.info.kind, kind);
    const int largest = largest_difference(&u, &d);
    if (largest > tolerance) fail_msg("a value differs by %d, %d allowed", largest, tolerance);
    decoded_free(&d);
    studio_close(&s);
    upload_free(&u);
}

static void test_png_is_exact(void **state)
{
    (void)state;
    check(upload_png(61, 47), KN_IMAGE_PNG, 0);
    check(upload_encode("png", AV_PIX_FMT_RGBA, 61, 47, false), KN_IMAGE_PNG, 0);
    check(upload_encode("png", AV_PIX_FMT_RGB48BE, 61, 47, false), KN_IMAGE_PNG, 1); /* 16 bits to 8 */
    check(upload_encode("png", AV_PIX_FMT_RGBA64BE, 61, 47, false), KN_IMAGE_PNG, 1);
}

static void test_grey_png_has_three_equal_channels(void **state)
{
    (void)state;
    const enum AVPixelFormat formats[] = {AV_PIX_FMT_GRAY8, AV_PIX_FMT_YA8, AV_PIX_FMT_GRAY16BE, AV_PIX_FMT_MONOBLACK};
    studio s = studio_open(NULL);
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        upload u = upload_encode("png", formats[i], 33, 20, false);
        decoded d = studio_decode(&s, u.bytes, u.count);
        assert_int_equal(d.status, KN_OK);
        int brightest = 0;
        for (int p = 0; p < 33 * 20; p++) {
            assert_int_equal(d.rgb[3 * p], d.rgb[3 * p + 1]);
            assert_int_equal(d.rgb[3 * p], d.rgb[3 * p + 2]);
            if (d.rgb[3 * p] > brightest) brightest = d.rgb[3 * p];
        }
        assert_true(brightest > 128);
        decoded_free(&d);
        upload_free(&u);
    }
    studio_close(&s);
}

static void test_jpeg_is_close(void **state)
{
    (void)state;
    check(upload_jpeg(61, 47), KN_IMAGE_JPEG, 12);
    check(upload_encode("mjpeg", AV_PIX_FMT_YUVJ420P, 64, 48, false), KN_IMAGE_JPEG, 24);
}

static void test_webp(void **state)
{
    (void)state;
    check(upload_webp(61, 47, true), KN_IMAGE_WEBP, 0);
    check(upload_webp(64, 48, false), KN_IMAGE_WEBP, 24);
}

static void test_one_pixel_and_the_largest(void **state)
{
    (void)state;
    check(upload_png(1, 1), KN_IMAGE_PNG, 0);
    check(upload_png(1, KN_IMAGE_SIDE_MAX), KN_IMAGE_PNG, 0);
    check(upload_png(KN_IMAGE_SIDE_MAX, 1), KN_IMAGE_PNG, 0);
    /* The largest picture in its largest form fits the memory a child has. */
    check(upload_encode("png", AV_PIX_FMT_RGBA64BE, 4096, 4096, false), KN_IMAGE_PNG, 1);
    check(upload_webp(4096, 4096, true), KN_IMAGE_WEBP, 0);
    check(upload_jpeg(4096, 4096), KN_IMAGE_JPEG, 12);
}

static void test_header_errors_come_at_once(void **state)
{
    (void)state;
    studio s = studio_open(NULL);
    upload u = upload_png(8, 8);
    decoded d = studio_decode(&s, "GIF89a", 6);
    assert_int_equal(d.status, KN_UNSUPPORTED);
    assert_int_equal(d.calls, 0);
    d = studio_decode(&s, u.bytes, 20);
    assert_int_equal(d.status, KN_CORRUPT);
    assert_int_equal(d.calls, 0);
    assert_int_equal(kn_sandbox_pending(s.sandbox), 0);
    upload_free(&u);
    studio_close(&s);
}

static void test_queue_is_bounded_and_drains(void **state)
{
    (void)state;
    studio s = studio_open(NULL);
    upload u = upload_png(16, 9);
    decoded d[KN_SANDBOX_QUEUE_MAX] = {{.calls = 0}};
    uint64_t ticket = 0, last = 0;
    for (int i = 0; i < KN_SANDBOX_QUEUE_MAX; i++) {
        assert_int_equal(kn_sandbox_decode(s.sandbox, u.bytes, u.count, on_decoded, &d[i], &ticket), KN_OK);
        assert_true(ticket > last);
        last = ticket;
    }
    assert_int_equal(kn_sandbox_pending(s.sandbox), KN_SANDBOX_QUEUE_MAX);
    assert_int_equal(kn_sandbox_decode(s.sandbox, u.bytes, u.count, on_decoded, &d[0], NULL), KN_AGAIN);
    studio_run(&s);
    for (int i = 0; i < KN_SANDBOX_QUEUE_MAX; i++) {
        assert_int_equal(d[i].calls, 1);
        assert_int_equal(largest_difference(&u, &d[i]), 0);
        decoded_free(&d[i]);
    }
    decoded again = studio_decode(&s, u.bytes, u.count);
    assert_int_equal(again.status, KN_OK);
    decoded_free(&again);
    upload_free(&u);
    studio_close(&s);
}

static void test_cancelled_files_are_not_called_back(void **state)
{
    (void)state;
    studio s = studio_open("sleep");
    upload u = upload_png(16, 9);
    decoded d = {.calls = 0};
    uint64_t tickets[KN_SANDBOX_CHILDREN_MAX + 2];
    for (int i = 0; i < KN_SANDBOX_CHILDREN_MAX + 2; i++)
        assert_int_equal(kn_sandbox_decode(s.sandbox, u.bytes, u.count, on_decoded, &d, &tickets[i]), KN_OK);
    event_base_loop(s.base, EVLOOP_NONBLOCK); /* some run, some wait */
    event_base_loop(s.base, EVLOOP_NONBLOCK);
    kn_sandbox_cancel(s.sandbox, tickets[0]);
    kn_sandbox_cancel(s.sandbox, tickets[KN_SANDBOX_CHILDREN_MAX + 1]);
    kn_sandbox_cancel(s.sandbox, tickets[0]); /* unknown by now */
    kn_sandbox_cancel(s.sandbox, 12345);
    assert_int_equal(kn_sandbox_pending(s.sandbox), KN_SANDBOX_CHILDREN_MAX);
    for (int i = 1; i <= KN_SANDBOX_CHILDREN_MAX; i++) kn_sandbox_cancel(s.sandbox, tickets[i]);
    studio_run(&s);
    assert_int_equal(d.calls, 0);
    upload_free(&u);
    studio_close(&s);
}

static void test_destroying_kills_what_runs(void **state)
{
    (void)state;
    const uint64_t held = kn_mem_read().bytes;
    studio s = studio_open("sleep");
    upload u = upload_png(16, 9);
    decoded d = {.calls = 0};
    for (int i = 0; i < KN_SANDBOX_QUEUE_MAX; i++)
        assert_int_equal(kn_sandbox_decode(s.sandbox, u.bytes, u.count, on_decoded, &d, NULL), KN_OK);
    event_base_loop(s.base, EVLOOP_NONBLOCK);
    studio_close(&s);
    assert_int_equal(d.calls, 0);
    assert_int_equal(kn_mem_read().bytes, held);
    upload_free(&u);
}

static void test_program_that_cannot_be_started(void **state)
{
    (void)state;
    struct event_base *base = event_base_new();
    studio s = {.base = base};
    assert_int_equal(
        kn_sandbox_create(&s.sandbox, &(kn_sandbox_params){.base = base, .executable = "/nonexistent/kinora"}), KN_OK);
    upload u = upload_png(16, 9);
    decoded d = studio_decode(&s, u.bytes, u.count);
    assert_int_equal(d.status, KN_UNAVAILABLE);
    assert_non_null(strstr(d.error, "no decoder"));
    upload_free(&u);
    studio_close(&s);
}

typedef struct chain {
    studio *s;
    const upload *u;
    int left, done;
} chain;

static void on_link(void *context, const kn_sandbox_result *result)
{
    chain *c = context;
    assert_int_equal(result->status, KN_OK);
    c->done++;
    if (c->left-- > 0)
        assert_int_equal(kn_sandbox_decode(c->s->sandbox, c->u->bytes, c->u->count, on_link, c, NULL), KN_OK);
}

static void test_callback_may_decode_again(void **state)
{
    (void)state;
    studio s = studio_open(NULL);
    upload u = upload_png(5, 4);
    chain c = {.s = &s, .u = &u, .left = 3};
    assert_int_equal(kn_sandbox_decode(s.sandbox, u.bytes, u.count, on_link, &c, NULL), KN_OK);
    studio_run(&s);
    assert_int_equal(c.done, 4);
    upload_free(&u);
    studio_close(&s);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "sandbox") == 0) return kn_sandbox_main(argc - 1, argv + 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_png_is_exact),
        cmocka_unit_test(test_grey_png_has_three_equal_channels),
        cmocka_unit_test(test_jpeg_is_close),
        cmocka_unit_test(test_webp),
        cmocka_unit_test(test_one_pixel_and_the_largest),
        cmocka_unit_test(test_header_errors_come_at_once),
        cmocka_unit_test(test_queue_is_bounded_and_drains),
        cmocka_unit_test(test_cancelled_files_are_not_called_back),
        cmocka_unit_test(test_destroying_kills_what_runs),
        cmocka_unit_test(test_program_that_cannot_be_started),
        cmocka_unit_test(test_callback_may_decode_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

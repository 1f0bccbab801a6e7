/* SPDX-License-Identifier: Apache-2.0
 *
 * What a hostile file can do to the server: nothing. Damaged files of each kind, files that ask for too much, and, by
 * probes, the things a decoder that was taken over would try. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>

#include "tests/server/decoding.h"

enum { KINDS = 3, WIDTH = 24, HEIGHT = 18, FLIPS = 200, BATCH = KN_SANDBOX_QUEUE_MAX };

static upload picture(int kind)
{
    if (kind == 0) return upload_png(WIDTH, HEIGHT);
    if (kind == 1) return upload_jpeg(WIDTH, HEIGHT);
    return upload_webp(WIDTH, HEIGHT, false);
}

/* The outcomes a damaged file may have: a refusal, or a picture of exactly the stated size. Nothing forbidden was tried
 * and no time ran out; a decoder that crashed would also be contained, but is worth knowing. */
static void assert_contained(const decoded *d)
{
    if (d->status != KN_OK && d->status != KN_CORRUPT) fail_msg("status %d: %s", d->status, d->error);
    assert_int_equal(d->calls, 1);
    assert_int_equal(d->signal, 0);
    assert_false(d->timed_out);
    if (d->status != KN_OK) assert_non_null(strstr(d->error, "image: "));
}

/* Queues a file as far as its header allows; false: refused at once. */
static bool submit(studio *s, const uint8_t *bytes, size_t count, decoded *d)
{
    const kn_status st = kn_sandbox_decode(s->sandbox, bytes, count, on_decoded, d, NULL);
    if (st == KN_OK) return true;
    if (st != KN_CORRUPT && st != KN_UNSUPPORTED && st != KN_INVALID) fail_msg("status %d", st);
    return false;
}

static void finish(studio *s, decoded *batch, int count, int *pictures)
{
    studio_run(s);
    for (int i = 0; i < count; i++) {
        assert_contained(&batch[i]);
        *pictures += batch[i].status == KN_OK;
        decoded_free(&batch[i]);
    }
}

static void test_truncated_at_every_64th_byte(void **state)
{
    (void)state;
    studio s = studio_open(NULL);
    for (int kind = 0; kind < KINDS; kind++) {
        upload u = picture(kind);
        decoded batch[BATCH] = {{.calls = 0}};
        int queued = 0, pictures = 0;
        for (size_t count = 0; count < u.count; count += 64) {
            if (!submit(&s, u.bytes, count, &batch[queued])) continue;
            if (++queued < BATCH) continue;
            finish(&s, batch, queued, &pictures);
            queued = 0;
        }
        finish(&s, batch, queued, &pictures);
        /* Half a picture is no picture, except where only the end mark is missing. */
        if (pictures > 1) fail_msg("%d of the truncated %s files were taken", pictures, kn_image_kind_name(kind));
        upload_free(&u);
    }
    studio_close(&s);
}

/* xorshift: the same flips in every run. */
static uint32_t next_random(uint32_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 17;
    *x ^= *x << 5;
    return *x;
}

static void test_flipped_bits(void **state)
{
    (void)state;
    studio s = studio_open(NULL);
    uint32_t random = 20231;
    for (int kind = 0; kind < KINDS; kind++) {
        upload u = picture(kind);
        decoded batch[BATCH] = {{.calls = 0}};
        int queued = 0, pictures = 0;
        for (int i = 0; i < FLIPS && u.bytes; i++) {
            const uint32_t bit = next_random(&random) % (uint32_t)(u.count * 8);
            u.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
            queued += submit(&s, u.bytes, u.count, &batch[queued]);
            u.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
            if (queued == BATCH || i == FLIPS - 1) {
                finish(&s, batch, queued, &pictures);
                queued = 0;
            }
        }
        upload_free(&u);
    }
    studio_close(&s);
}

static void put32(uint8_t *at, uint32_t value)
{
    for (int i = 0; i < 4; i++) at[i] = (uint8_t)(value >> 8 * (3 - i));
}

/* W3C PNG, annex D. */
static uint32_t crc(const uint8_t *bytes, size_t count)
{
    uint32_t c = 0xffffffffu;
    for (size_t i = 0; i < count; i++) {
        c ^= bytes[i];
        for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
    }
    return ~c;
}

/* A chunk of that type, put behind the header; 33 is where a PNG's first chunk after IHDR begins. */
static void insert_png_chunk(upload *u, const char *type, const uint8_t *data, size_t count)
{
    uint8_t *chunk = malloc(count + 12);
    assert_non_null(chunk);
    put32(chunk, (uint32_t)count);
    memcpy(chunk + 4, type, 4);
    memcpy(chunk + 8, data, count);
    put32(chunk + 8 + count, crc(chunk + 4, count + 4));
    upload_insert(u, 33, chunk, count + 12);
    free(chunk);
}

typedef struct bits {
    uint8_t *bytes;
    size_t count; /* bits */
} bits;

/* Huffman codes go in from their highest bit (RFC 1951, 3.1.1). */
static void put_code(bits *to, uint32_t code, int length)
{
    for (int i = length - 1; i >= 0; i--, to->count++)
        to->bytes[to->count / 8] |= (uint8_t)((code >> i & 1) << to->count % 8);
}

/* 1 + 258 `runs` zero bytes, deflated by hand with fixed codes, behind a name and a method as iCCP and zTXt have them.
 */
static uint8_t *make_bomb(size_t runs, size_t *count)
{
    uint8_t *bomb = calloc(1, runs * 2 + 64);
    assert_non_null(bomb);
    bomb[0] = 'x';
    bomb[3] = 0x78; /* zlib: deflate, 32 KiB */
    bomb[4] = 0x01;
    bits to = {.bytes = bomb + 5};
    put_code(&to, 1, 1);    /* the last block */
    put_code(&to, 2, 2);    /* with fixed codes: 01, from the lowest bit */
    put_code(&to, 0x30, 8); /* a literal 0 */
    for (size_t i = 0; i < runs; i++) {
        put_code(&to, 0xc5, 8); /* 258 bytes */
        put_code(&to, 0, 5);    /* from one byte before */
    }
    put_code(&to, 0, 7); /* the end */
    *count = 5 + (to.count + 7) / 8 + 4;
    put32(bomb + *count - 4, (uint32_t)((1 + 258 * runs) % 65521) << 16 | 1); /* Adler-32 */
    return bomb;
}

/* Chunks beside the picture are not even inflated. */
static void test_profile_and_text_bombs(void **state)
{
    (void)state;
    studio s = studio_open(NULL);
    size_t count;
    uint8_t *bomb = make_bomb((KN_SANDBOX_ALLOCATION + (64 << 20)) / 258, &count);
    assert_true(count < 2 << 20);
    const char *const types[] = {"iCCP", "zTXt"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        upload u = picture(0);
        for (int n = 0; n < 8; n++) insert_png_chunk(&u, types[i], bomb, count);
        decoded d = studio_decode(&s, u.bytes, u.count);
        if (d.status != KN_OK) fail_msg("%s: status %d: %s", types[i], d.status, d.error);
        assert_memory_equal(d.rgb, u.rgb, (size_t)WIDTH * HEIGHT * 3);
        decoded_free(&d);
        upload_free(&u);
    }
    free(bomb);
    studio_close(&s);
}

/* The picture's own data may inflate to anything: only the rows of the header are taken from it. */
static void test_picture_bomb(void **state)
{
    (void)state;
    studio s = studio_open(NULL);
    size_t count;
    uint8_t *bomb = make_bomb((KN_SANDBOX_ALLOCATION + (64 << 20)) / 258, &count);
    upload u = picture(0);
    u.count = 33; /* signature and header */
    upload end = picture(0);
    upload_insert(&u, 33, end.bytes + end.count - 12, 12);
    insert_png_chunk(&u, "IDAT", bomb + 3, count - 3);
    decoded d = studio_decode(&s, u.bytes, u.count);
    assert_contained(&d);
    decoded_free(&d);
    upload_free(&u);
    upload_free(&end);
    free(bomb);
    studio_close(&s);
}

/* The header says one size and a second header another: larger it would be allocated, smaller it would be overread. */
static void test_second_header_cannot_change_the_picture(void **state)
{
    (void)state;
    studio s = studio_open(NULL);
    for (int larger = 0; larger < 2; larger++) {
        upload u = picture(1);
        size_t frame = 2;
        while (!(u.bytes[frame] == 0xff && u.bytes[frame + 1] >= 0xc0 && u.bytes[frame + 1] <= 0xc2)) frame++;
        const size_t length = 2 + ((size_t)u.bytes[frame + 2] << 8 | u.bytes[frame + 3]);
        uint8_t second[64];
        assert_true(length < sizeof second);
        memcpy(second, u.bytes + frame, length);
        second[5] = second[7] = larger ? 0x20 : 0; /* 8,192 and more, or 8 rows and columns */
        if (!larger) second[6] = second[8] = 8;
        upload_insert(&u, frame + length, second, length);
        decoded d = studio_decode(&s, u.bytes, u.count);
        assert_int_equal(d.status, KN_CORRUPT);
        assert_int_equal(d.signal, 0);
        upload_free(&u);
    }
    studio_close(&s);
}

/* A PNG named JPEG inside: the child opens the one decoder that was sniffed. */
static void test_only_the_sniffed_decoder_runs(void **state)
{
    (void)state;
    studio s = studio_open(NULL);
    upload png = picture(0), jpeg = picture(1);
    uint8_t both[1 << 16];
    size_t count = 0;
    for (; count < 33; count++) both[count] = png.bytes[count]; /* signature and header */
    put32(both + count, (uint32_t)jpeg.count);
    memcpy(both + count + 4, "IDAT", 4);
    memcpy(both + count + 8, jpeg.bytes, jpeg.count);
    put32(both + count + 8 + jpeg.count, crc(both + count + 4, jpeg.count + 4));
    decoded d = studio_decode(&s, both, count + 12 + jpeg.count);
    assert_int_equal(d.status, KN_CORRUPT);
    assert_int_equal(d.info.kind, KN_IMAGE_PNG);
    upload_free(&png);
    upload_free(&jpeg);
    studio_close(&s);
}

static decoded run_probe(const char *probe)
{
    studio s = studio_open(probe);
    upload u = picture(0);
    decoded d = studio_decode(&s, u.bytes, u.count);
    upload_free(&u);
    studio_close(&s);
    return d;
}

static void test_forbidden_calls_end_the_child(void **state)
{
    (void)state;
    const char *const calls[] = {"open", "socket", "fork", "exec", "kill", "code", "map-file", "write"};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        decoded d = run_probe(calls[i]);
        if (d.signal != SIGSYS) fail_msg("%s: signal %d, %s", calls[i], d.signal, d.error);
        assert_int_equal(d.status, KN_CORRUPT);
    }
}

static void test_layers_below_the_filter(void **state)
{
    (void)state;
    const char *const layers[] = {"landlock", "memory", "descriptors"};
    for (size_t i = 0; i < sizeof layers / sizeof *layers; i++) {
        decoded d = run_probe(layers[i]);
        if (d.status == KN_UNSUPPORTED) continue; /* this kernel or this build has no such layer */
        if (d.status != KN_INVALID) fail_msg("%s: %s", layers[i], d.error);
        assert_non_null(strstr(d.error, "held back"));
    }
}

static void test_child_that_says_nothing_or_lies(void **state)
{
    (void)state;
    decoded d = run_probe("silent");
    assert_int_equal(d.status, KN_CORRUPT);
    d = run_probe("liar");
    assert_int_equal(d.status, KN_CORRUPT);
    d = run_probe("crash");
    assert_int_equal(d.status, KN_CORRUPT);
    assert_true(d.signal == SIGILL || d.signal == SIGTRAP || d.signal == SIGSYS); /* a sanitizer may look first */
}

/* One ends by its processor time, the other by the clock. */
static void test_endless_children(void **state)
{
    (void)state;
    decoded spin = run_probe("spin");
    assert_int_equal(spin.status, KN_CORRUPT);
    assert_true(spin.signal == SIGKILL || spin.signal == SIGXCPU);
    assert_false(spin.timed_out);
    studio s = {.base = event_base_new()};
    assert_int_equal(kn_sandbox_create(&s.sandbox, &(kn_sandbox_params){.base = s.base, .wall_s = 2, .probe = "sleep"}),
                     KN_OK);
    upload u = picture(0);
    decoded sleep = studio_decode(&s, u.bytes, u.count);
    assert_int_equal(sleep.status, KN_CORRUPT);
    assert_true(sleep.timed_out);
    assert_non_null(strstr(sleep.error, "time"));
    upload_free(&u);
    studio_close(&s);
}

static void test_the_command_refuses_other_arguments(void **state)
{
    (void)state;
    char name[] = "sandbox", gif[] = "gif", png[] = "png", one[] = "1", zero[] = "0", large[] = "8193", word[] = "1x";
    char *cases[][5] = {{name, gif, one, one, one},
                        {name, png, zero, one, one},
                        {name, png, one, large, one},
                        {name, png, one, one, zero},
                        {name, png, one, one, word}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) assert_int_not_equal(kn_sandbox_main(5, cases[i]), 0);
    assert_int_not_equal(kn_sandbox_main(1, cases[0]), 0);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "sandbox") == 0) return kn_sandbox_main(argc - 1, argv + 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_truncated_at_every_64th_byte),
        cmocka_unit_test(test_flipped_bits),
        cmocka_unit_test(test_profile_and_text_bombs),
        cmocka_unit_test(test_picture_bomb),
        cmocka_unit_test(test_second_header_cannot_change_the_picture),
        cmocka_unit_test(test_only_the_sniffed_decoder_runs),
        cmocka_unit_test(test_forbidden_calls_end_the_child),
        cmocka_unit_test(test_layers_below_the_filter),
        cmocka_unit_test(test_child_that_says_nothing_or_lies),
        cmocka_unit_test(test_endless_children),
        cmocka_unit_test(test_the_command_refuses_other_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

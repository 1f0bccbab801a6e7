/* SPDX-License-Identifier: Apache-2.0
 *
 * grpc_frame.h: messages however they are cut, their limits, compression and its bombs, timeouts, texts and details. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>
#include <zlib.h>

#include "base/mem.h"
#include "server/grpc_frame.h"

enum { LIMIT = 1000 };

static kn_grpc_memory memory = {.limit = 1 << 20};

static kn_grpc_reader reader_of(kn_grpc_encoding encoding)
{
    return (kn_grpc_reader){.memory = &memory, .limit = LIMIT, .encoding = encoding};
}

static size_t put(uint8_t *out, bool compressed, const void *bytes, size_t count)
{
    kn_grpc_write_prefix(out, compressed, (uint32_t)count);
    memcpy(out + KN_GRPC_PREFIX_BYTES, bytes, count);
    return KN_GRPC_PREFIX_BYTES + count;
}

/* Every way to cut three messages gives the same three. */
static void messages_however_they_are_cut(void **state)
{
    (void)state;
    uint8_t wire[64];
    size_t total = put(wire, false, "first", 5);
    total += put(wire + total, false, "", 0);
    total += put(wire + total, false, "third!", 6);
    for (size_t step = 1; step <= total; step++) {
        kn_grpc_reader r = reader_of(KN_GRPC_IDENTITY);
        kn_grpc_refusal refusal;
        static const char *const expected[] = {"first", "", "third!"};
        size_t found = 0;
        for (size_t at = 0; at < total; at += step) {
            const uint8_t *bytes = wire + at, *message;
            size_t left = total - at < step ? total - at : step, count;
            while (left > 0 || found == 0) {
                if (kn_grpc_read(&r, &bytes, &left, &message, &count, &refusal) != KN_OK) break;
                assert_int_equal((uintptr_t)message % 64, 0);
                assert_int_equal(count, strlen(expected[found]));
                assert_memory_equal(message, expected[found], count);
                found++;
            }
        }
        assert_int_equal(found, 3);
        assert_false(kn_grpc_reader_partial(&r));
        kn_grpc_reader_release(&r);
        assert_int_equal(memory.held, 0);
    }
}

static kn_status read_one(kn_grpc_reader *r, const uint8_t *wire, size_t total, kn_grpc_refusal *refusal, size_t *count)
{
    const uint8_t *message;
    return kn_grpc_read(r, &wire, &total, &message, count, refusal);
}

static void a_promise_costs_nothing(void **state)
{
    (void)state;
    const uint64_t held = kn_mem_read().bytes;
    static const uint8_t huge[] = {0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3}, limit[] = {0, 0, 0, 0x03, 0xe8, 1};
    static const uint8_t over[] = {0, 0, 0, 0x03, 0xe9}, flag[] = {2, 0, 0, 0, 0}, packed[] = {1, 0, 0, 0, 1, 0};
    kn_grpc_refusal refusal;
    size_t count;
    kn_grpc_reader r = reader_of(KN_GRPC_IDENTITY);
    assert_int_equal(read_one(&r, huge, sizeof huge, &refusal, &count), KN_INVALID);
    assert_int_equal(refusal.code, KN_GRPC_RESOURCE_EXHAUSTED);
    assert_string_equal(refusal.message, "Received message larger than max (4294967295 vs. 1000)");
    r = reader_of(KN_GRPC_IDENTITY);
    assert_int_equal(read_one(&r, limit, sizeof limit, &refusal, &count), KN_AGAIN);
    assert_true(kn_grpc_reader_partial(&r));
    kn_grpc_reader_release(&r);
    r = reader_of(KN_GRPC_IDENTITY);
    assert_int_equal(read_one(&r, over, sizeof over, &refusal, &count), KN_INVALID);
    assert_int_equal(refusal.code, KN_GRPC_RESOURCE_EXHAUSTED);
    r = reader_of(KN_GRPC_IDENTITY);
    assert_int_equal(read_one(&r, flag, sizeof flag, &refusal, &count), KN_INVALID);
    assert_int_equal(refusal.code, KN_GRPC_INTERNAL);
    r = reader_of(KN_GRPC_IDENTITY);
    assert_int_equal(read_one(&r, packed, sizeof packed, &refusal, &count), KN_INVALID);
    assert_int_equal(refusal.code, KN_GRPC_INTERNAL);
    assert_int_equal(kn_mem_read().bytes, held);
}

static void shared_memory_is_bounded(void **state)
{
    (void)state;
    uint8_t wire[KN_GRPC_PREFIX_BYTES + LIMIT] = {0};
    kn_grpc_memory little = {.limit = 1500};
    kn_grpc_reader a = {.memory = &little, .limit = LIMIT}, b = {.memory = &little, .limit = LIMIT};
    kn_grpc_refusal refusal;
    size_t count;
    kn_grpc_write_prefix(wire, false, LIMIT);
    assert_int_equal(read_one(&a, wire, sizeof wire, &refusal, &count), KN_OK);
    assert_int_equal(little.held, LIMIT);
    assert_int_equal(read_one(&b, wire, sizeof wire, &refusal, &count), KN_INVALID);
    assert_int_equal(refusal.code, KN_GRPC_RESOURCE_EXHAUSTED);
    kn_grpc_reader_trim(&a);
    assert_int_equal(little.held, 0);
    kn_grpc_reader_release(&a);
    kn_grpc_reader_release(&b);
}

static void compression_round_trips(void **state)
{
    (void)state;
    uint8_t text[LIMIT], packed[LIMIT], wire[LIMIT + KN_GRPC_PREFIX_BYTES];
    kn_grpc_refusal refusal;
    const uint8_t *message, *at = wire;
    size_t count;
    for (size_t i = 0; i < sizeof text; i++) text[i] = (uint8_t)(i % 7);
    const size_t made = kn_grpc_compress(packed, sizeof packed, text, sizeof text);
    assert_in_range(made, 1, LIMIT / 2);
    assert_int_equal(kn_grpc_compress(packed, 10, text, sizeof text), 0);
    size_t total = put(wire, true, packed, kn_grpc_compress(packed, sizeof packed, text, sizeof text));
    kn_grpc_reader r = reader_of(KN_GRPC_GZIP);
    assert_int_equal(kn_grpc_read(&r, &at, &total, &message, &count, &refusal), KN_OK);
    assert_int_equal(count, sizeof text);
    assert_memory_equal(message, text, count);
    kn_grpc_reader_release(&r);
    for (size_t cut = 1; cut < made; cut += 3) { /* damaged: cut short */
        total = put(wire, true, packed, made - cut);
        r = reader_of(KN_GRPC_GZIP);
        assert_int_equal(read_one(&r, wire, total, &refusal, &count), KN_INVALID);
        assert_int_equal(refusal.code, KN_GRPC_INTERNAL);
        kn_grpc_reader_release(&r);
    }
    assert_int_equal(memory.held, 0);
}

static void bombs_stop_at_the_limit(void **state)
{
    (void)state;
    static uint8_t zeros[1 << 20], packed[1 << 12];
    uint8_t wire[(1 << 12) + KN_GRPC_PREFIX_BYTES];
    kn_grpc_refusal refusal;
    size_t count;
    uLongf made = sizeof packed;
    assert_int_equal(compress(packed, &made, zeros, sizeof zeros), Z_OK);
    kn_grpc_reader r = {.memory = &memory, .limit = 1 << 12, .encoding = KN_GRPC_DEFLATE};
    assert_int_equal(read_one(&r, wire, put(wire, true, packed, made), &refusal, &count), KN_INVALID);
    assert_int_equal(refusal.code, KN_GRPC_RESOURCE_EXHAUSTED);
    assert_in_range(r.plain_room, 1, (1 << 12) + 1);
    kn_grpc_reader_release(&r);
}

static void timeouts(void **state)
{
    (void)state;
    int64_t ns = 0;
    static const struct {
        const char *text;
        int64_t ns;
    } good[] = {{"5S", 5000000000}, {"5010m", 5010000000}, {"1H", 3600000000000},       {"0n", 0},
                {"7u", 7000},       {"2M", 120000000000},  {"99999999H", INT64_MAX / 4}};
    static const char *const bad[] = {"", "S", "5", "123456789S", "5s", "-1S", "5SS", " 5S", "5 S", "1.5S", "5D"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(kn_grpc_parse_timeout(&ns, good[i].text), KN_OK);
        assert_int_equal(ns, good[i].ns);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(kn_grpc_parse_timeout(&ns, bad[i]), KN_INVALID);
}

static void texts(void **state)
{
    (void)state;
    kn_text text = kn_text_growing(1000);
    kn_grpc_percent_encode(&text, "a 100% \xc3\xbc\n~");
    assert_string_equal(text.bytes, "a 100%25 %C3%BC%0A~");
    kn_text_clear(&text);
    kn_grpc_base64(&text, "\x00\x01", 2);
    kn_text_string(&text, " ");
    kn_grpc_base64(&text, "foobar", 6);
    kn_text_string(&text, " ");
    kn_grpc_base64(&text, "foob", 4);
    assert_string_equal(text.bytes, "AAE Zm9vYmFy Zm9vYg");
    kn_text_release(&text);
    assert_true(kn_grpc_accepts_gzip("identity, deflate, gzip") && kn_grpc_accepts_gzip("identity,deflate,gzip"));
    assert_false(kn_grpc_accepts_gzip("identity") || kn_grpc_accepts_gzip("gzipped") || kn_grpc_accepts_gzip(NULL));
    assert_int_equal(kn_grpc_encoding_of(NULL), KN_GRPC_IDENTITY);
    assert_int_equal(kn_grpc_encoding_of("br"), KN_GRPC_OTHER);
}

static bool holds(const kn_text *text, const char *part)
{
    const size_t bytes = strlen(part);
    for (size_t i = 0; i + bytes <= text->count; i++)
        if (memcmp(text->bytes + i, part, bytes) == 0) return true;
    return false;
}

static void details_name_the_field(void **state)
{
    (void)state;
    kn_text text = kn_text_growing(4096);
    kn_api_error error;
    kn_api_invalid_value(&error, "size", "size must be at most 4.");
    error.retry_after_s = 3;
    kn_grpc_status_write(&text, KN_GRPC_INVALID_ARGUMENT, &error);
    assert_int_equal(kn_text_status(&text), KN_OK);
    assert_memory_equal(text.bytes, "\x08\x03\x12\x17size must be at most 4.", 27);
    assert_true(holds(&text, "type.googleapis.com/google.rpc.BadRequest"));
    assert_true(holds(&text, "\x0a\x04size\x12\x17size must be at most 4."));
    assert_true(holds(&text, "\x0a\x0dinvalid_value\x12\x06kinora"));
    assert_true(holds(&text, "google.rpc.RetryInfo\x12\x04\x0a\x02\x08\x03"));
    kn_text_release(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_however_they_are_cut),
        cmocka_unit_test(a_promise_costs_nothing),
        cmocka_unit_test(shared_memory_is_bounded),
        cmocka_unit_test(compression_round_trips),
        cmocka_unit_test(bombs_stop_at_the_limit),
        cmocka_unit_test(timeouts),
        cmocka_unit_test(texts),
        cmocka_unit_test(details_name_the_field),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

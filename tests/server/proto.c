/* SPDX-License-Identifier: Apache-2.0
 *
 * Protobuf of strangers: cut at every byte, with parts that cost far more than their length, and with text that is
 * none. */
#include "server/proto.h"

#include <inference.pb-c.h>
#include "tests/server/protocol.h"

static kn_api_error error;

static kn_status read_infer(const void *bytes, size_t count)
{
    ProtobufCMessage *message = NULL;
    const kn_status st = kn_proto_read(&message, &inference__model_infer_request__descriptor, bytes, count, &error);
    kn_proto_free(&message);
    return st;
}

static void a_cut_message_is_refused_or_shorter(void **state)
{
    (void)state;
    static const char bytes[] = "\x0a\x01m\x1a\x02id\x2a\x10\x0a\x06prompt\x12\x05"
                                "BYTES\x1a\x01\x01";
    const size_t count = sizeof bytes - 1;
    size_t good = 0;
    for (size_t n = 0; n <= count; n++) {
        char *copy = kn_alloc(n + 1); /* so that a read beyond the end is one beyond an allocation */
        memcpy(copy, bytes, n);
        const kn_status st = read_infer(copy, n);
        good += st == KN_OK;
        if (st != KN_OK) expect_error(st, &error, 400, "invalid_body", NULL);
        kn_free(copy);
    }
    assert_int_equal(good, 3); /* nothing, and behind each whole field */
}

static void parts_that_cost_more_than_their_length_are_refused(void **state)
{
    (void)state;
    enum { COUNT = 200000 };
    char *bytes = kn_alloc(2 * COUNT);
    for (size_t i = 0; i < COUNT; i++) bytes[2 * i] = 0x2a; /* an empty input tensor */
    kn_mem_reset_peak();
    expect_error(read_infer(bytes, 2 * COUNT), &error, 400, "invalid_body", NULL);
    assert_non_null(strstr(error.message, "too many parts"));
    assert_true(kn_mem_read().peak_bytes < 2 * COUNT * (KN_PROTO_MEMORY_TIMES + 2) + 4 * KN_PROTO_MEMORY_BASE);
    kn_free(bytes);
}

static void strings_are_utf8_everywhere(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t count;
    } cases[] = {
        {"\x0a\x01\xff", 3},                           /* model_name */
        {"\x2a\x03\x0a\x01\xff", 5},                   /* inputs.name */
        {"\x22\x07\x0a\x01k\x12\x02\x1a\x00", 9},      /* parameters: an empty string, which is good */
        {"\x22\x08\x0a\x01k\x12\x03\x1a\x01\xff", 10}, /* parameters.value.string_param */
        {"\x22\x03\x0a\x01\xc0", 5},                   /* parameters.key */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const kn_status st = read_infer(cases[i].bytes, cases[i].count);
        if (i == 2) {
            ok(st);
            continue;
        }
        expect_error(st, &error, 400, "invalid_body", NULL);
        assert_non_null(strstr(error.message, "UTF-8"));
    }
    ok(read_infer("\x3a\x02\xff\xfe", 4)); /* raw_input_contents are bytes */
}

static void without_memory_nothing_is_left(void **state)
{
    (void)state;
    static const char bytes[] = "\x0a\x01m\x2a\x0a\x0a\x06prompt\x1a\x00\x3a\x01x";
    for (uint64_t n = 1; n < 40; n++) {
        kn_mem_fail_at(n);
        const kn_status st = read_infer(bytes, sizeof bytes - 1);
        kn_mem_fail_at(0);
        if (st == KN_OK) return;
        assert_int_equal(kn_mem_read().bytes, 0);
    }
    fail_msg("still without memory");
}

static void lengths_are_written_as_protobuf_c_reads_them(void **state)
{
    (void)state;
    const uint64_t lengths[] = {0, 1, 127, 128, 300, 16383, 16384};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        kn_text text = kn_text_growing(1 << 16);
        char *content = repeated("a", lengths[i]);
        kn_proto_write_length(&text, 1, lengths[i]);
        kn_text_append(&text, content, lengths[i]);
        ok(kn_text_status(&text));
        ProtobufCMessage *message;
        ok(kn_proto_read(&message, &inference__model_ready_request__descriptor, text.bytes, text.count, &error));
        assert_string_equal(((Inference__ModelReadyRequest *)message)->name, content);
        kn_proto_free(&message);
        kn_free(content);
        kn_text_release(&text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cut_message_is_refused_or_shorter),
        cmocka_unit_test(parts_that_cost_more_than_their_length_are_refused),
        cmocka_unit_test(strings_are_utf8_everywhere),
        cmocka_unit_test(without_memory_nothing_is_left),
        cmocka_unit_test(lengths_are_written_as_protobuf_c_reads_them),
    };
    return cmocka_run_group_tests(tests, count_allocations, nothing_left);
}

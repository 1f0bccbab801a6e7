/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "server/notify_wire.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "server/notify.h"

typedef char frame_bytes[KN_NOTIFY_HEAD_BYTES + KN_NOTIFY_FRAME_MAX];

/* Encodes, checks the head, decodes a copy of exactly the payload's size. The copy is the caller's to free. */
static char *turn_round(const kn_notify_message *message, kn_notify_message *back, size_t *bytes)
{
    static frame_bytes frame;
    size_t whole, said;
    assert_int_equal(kn_notify_encode(frame, &whole, message), KN_OK);
    assert_int_equal(kn_notify_length(&said, frame), KN_OK);
    assert_int_equal(said + KN_NOTIFY_HEAD_BYTES, whole);
    char *copy = malloc(said);
    assert_non_null(copy);
    memcpy(copy, frame + KN_NOTIFY_HEAD_BYTES, said);
    assert_int_equal(kn_notify_decode(back, copy, said), KN_OK);
    assert_int_equal(back->type, message->type);
    *bytes = said;
    return copy;
}

static const kn_notify_message configure = {
    .type = KN_NOTIFY_CONFIGURE,
    .configure = {.development = true, .ca_file = "/etc/ca.pem", .allow_count = 2, .allow = {"a:1", "[::1]:2"}}};
static const kn_notify_message deliver = {.type = KN_NOTIFY_DELIVER,
                                          .deliver = {.ticket = UINT64_C(0x8123456789abcdef),
                                                      .url = "https://example.com/",
                                                      .event_id = "evt_1",
                                                      .secret_count = 2,
                                                      .secrets = {"one", "two"},
                                                      .body = "{\0}",
                                                      .body_bytes = 3}};
static const kn_notify_message result = {
    .type = KN_NOTIFY_RESULT,
    .result = {
        .ticket = 5, .outcome = KN_WEBHOOK_REFUSED, .http_status = 999, .retry_after_s = INT64_MAX, .error = "why"}};

static void test_each_message_comes_back(void **state)
{
    (void)state;
    kn_notify_message back;
    size_t bytes;
    char *payload = turn_round(&configure, &back, &bytes);
    assert_true(back.configure.development);
    assert_string_equal(back.configure.ca_file, "/etc/ca.pem");
    assert_int_equal(back.configure.allow_count, 2);
    assert_string_equal(back.configure.allow[1], "[::1]:2");
    free(payload);
    payload = turn_round(&deliver, &back, &bytes);
    assert_true(back.deliver.ticket == deliver.deliver.ticket);
    assert_string_equal(back.deliver.url, "https://example.com/");
    assert_string_equal(back.deliver.event_id, "evt_1");
    assert_int_equal(back.deliver.secret_count, 2);
    assert_string_equal(back.deliver.secrets[0], "one");
    assert_string_equal(back.deliver.secrets[1], "two");
    assert_int_equal(back.deliver.body_bytes, 3);
    assert_memory_equal(back.deliver.body, "{\0}", 3);
    free(payload);
    payload = turn_round(&result, &back, &bytes);
    assert_int_equal(back.result.ticket, 5);
    assert_int_equal(back.result.outcome, KN_WEBHOOK_REFUSED);
    assert_int_equal(back.result.http_status, 999);
    assert_true(back.result.retry_after_s == INT64_MAX);
    assert_string_equal(back.result.error, "why");
    free(payload);
}

static void test_cut_and_lengthened(void **state)
{
    (void)state;
    const kn_notify_message *const messages[] = {&configure, &deliver, &result};
    for (int m = 0; m < 3; m++) {
        kn_notify_message back;
        size_t bytes;
        char *payload = turn_round(messages[m], &back, &bytes);
        for (size_t count = 0; count < bytes; count++) {
            char *cut = malloc(count ? count : 1);
            assert_non_null(cut);
            memcpy(cut, payload, count);
            assert_int_equal(kn_notify_decode(&back, cut, count), KN_CORRUPT);
            free(cut);
        }
        char *longer = calloc(1, bytes + 1);
        assert_non_null(longer);
        memcpy(longer, payload, bytes);
        assert_int_equal(kn_notify_decode(&back, longer, bytes + 1), KN_CORRUPT);
        free(longer);
        free(payload);
    }
}

/* Every single byte changed in every way either decodes to texts within the payload, or does not. */
static void test_changed_bytes(void **state)
{
    (void)state;
    const kn_notify_message *const messages[] = {&configure, &deliver, &result};
    for (int m = 0; m < 3; m++) {
        kn_notify_message back;
        size_t bytes;
        char *payload = turn_round(messages[m], &back, &bytes);
        for (size_t i = 0; i < bytes * 256; i++) {
            const char kept = payload[i / 256];
            payload[i / 256] = (char)(i % 256);
            if (kn_notify_decode(&back, payload, bytes) == KN_OK && back.type == KN_NOTIFY_DELIVER) {
                assert_true(back.deliver.url >= payload && back.deliver.url < payload + bytes);
                assert_true(back.deliver.body + back.deliver.body_bytes < payload + bytes);
                assert_true(back.deliver.secret_count <= KN_WEBHOOK_SECRETS_MAX);
            }
            payload[i / 256] = kept;
        }
        free(payload);
    }
}

static void test_limits(void **state)
{
    (void)state;
    static frame_bytes frame;
    static char text[KN_NOTIFY_FRAME_MAX];
    size_t bytes;
    memset(text, 'a', sizeof text - 1);
    kn_notify_message m = deliver;
    m.deliver.body = text;
    m.deliver.body_bytes = KN_WEBHOOK_BODY_MAX;
    assert_int_equal(kn_notify_encode(frame, &bytes, &m), KN_OK);
    m.deliver.body_bytes++;
    assert_int_equal(kn_notify_encode(frame, &bytes, &m), KN_INVALID);
    m = deliver;
    m.deliver.url = text + sizeof text - 1 - KN_WEBHOOK_URL_MAX;
    assert_int_equal(kn_notify_encode(frame, &bytes, &m), KN_OK);
    m.deliver.url--;
    assert_int_equal(kn_notify_encode(frame, &bytes, &m), KN_INVALID);
    m = result;
    m.result.error = text + sizeof text - 1 - (KN_NOTIFIER_ERROR_BYTES - 1);
    assert_int_equal(kn_notify_encode(frame, &bytes, &m), KN_OK);
    m.result.error--;
    assert_int_equal(kn_notify_encode(frame, &bytes, &m), KN_INVALID);
    m = result;
    m.result.http_status = 1000;
    assert_int_equal(kn_notify_encode(frame, &bytes, &m), KN_INVALID);
    m = result;
    m.result.retry_after_s = -1;
    assert_int_equal(kn_notify_encode(frame, &bytes, &m), KN_INVALID);

    const unsigned char heads[][4] = {
        {0, 0, 0, 0}, {1, 0, 0, 0}, {0, 0x80, 0, 0}, {1, 0x80, 0, 0}, {255, 255, 255, 255}};
    const kn_status expected[] = {KN_CORRUPT, KN_OK, KN_OK, KN_CORRUPT, KN_CORRUPT};
    for (int i = 0; i < 5; i++) assert_int_equal(kn_notify_length(&bytes, heads[i]), expected[i]);
}

/* The largest policy and the largest delivery there can be. */
static void test_the_largest_fit(void **state)
{
    (void)state;
    static char text[KN_NOTIFY_FRAME_MAX];
    memset(text, 'a', sizeof text - 1);
    const char *const end = text + sizeof text - 1;
    kn_notify_message back, m = {.type = KN_NOTIFY_CONFIGURE};
    size_t bytes;
    m.configure.ca_file = end - (KN_NOTIFY_PATH_MAX - 1);
    m.configure.allow_count = KN_WEBHOOK_ALLOW_MAX;
    for (size_t i = 0; i < KN_WEBHOOK_ALLOW_MAX; i++) m.configure.allow[i] = end - (KN_WEBHOOK_HOST_MAX + 8);
    free(turn_round(&m, &back, &bytes));
    m = (kn_notify_message){.type = KN_NOTIFY_DELIVER};
    m.deliver.url = end - KN_WEBHOOK_URL_MAX;
    m.deliver.event_id = end - KN_WEBHOOK_ID_MAX;
    m.deliver.secret_count = KN_WEBHOOK_SECRETS_MAX;
    for (size_t i = 0; i < KN_WEBHOOK_SECRETS_MAX; i++) m.deliver.secrets[i] = end - KN_WEBHOOK_SECRET_TEXT_MAX;
    m.deliver.body = text;
    m.deliver.body_bytes = KN_WEBHOOK_BODY_MAX;
    free(turn_round(&m, &back, &bytes));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_message_comes_back), cmocka_unit_test(test_cut_and_lengthened),
        cmocka_unit_test(test_changed_bytes),           cmocka_unit_test(test_limits),
        cmocka_unit_test(test_the_largest_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

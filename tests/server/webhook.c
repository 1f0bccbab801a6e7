/* SPDX-License-Identifier: Apache-2.0
 *
 * Signatures against values made by the Python packages standardwebhooks 1.1.0 (the first) and hmac (the second), and
 * every limit at n and n + 1. */
#define _XOPEN_SOURCE 700
#include "server/webhook.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

static const char *const published = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
static const char *const published_id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
static const char *const published_body = "{\"test\": 2432232314}";
static const char *const published_signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
static const char *const plain = "a plain text secret of 33 letters";
enum { PUBLISHED_TIME = 1614265330 };

static kn_status sign(char *out, const char *const *secrets, size_t count, const char *id, size_t body_bytes)
{
    static char body[KN_WEBHOOK_BODY_MAX + 2];
    return kn_webhook_sign(out, secrets, count, id, 1700000000, body, body_bytes);
}

static void test_published_signature(void **state)
{
    (void)state;
    char signature[KN_WEBHOOK_SIGNATURE_BYTES];
    assert_int_equal(
        kn_webhook_sign(signature, &published, 1, published_id, PUBLISHED_TIME, published_body, strlen(published_body)),
        KN_OK);
    assert_string_equal(signature, published_signature);
}

static void test_plain_text_secret(void **state)
{
    (void)state;
    char signature[KN_WEBHOOK_SIGNATURE_BYTES];
    assert_int_equal(kn_webhook_sign(signature, &plain, 1, "evt_1", 1700000000, "{}", 2), KN_OK);
    assert_string_equal(signature, "v1,TFCaQfLKCpdAHOFafjzBUyp1q2oBPdxOIcAMypPjKU0=");
}

static void test_several_secrets_sign_side_by_side(void **state)
{
    (void)state;
    const char *const both[] = {published, plain};
    char signature[KN_WEBHOOK_SIGNATURE_BYTES], first[KN_WEBHOOK_SIGNATURE_BYTES], second[KN_WEBHOOK_SIGNATURE_BYTES];
    char joined[2 * KN_WEBHOOK_SIGNATURE_BYTES];
    assert_int_equal(sign(signature, both, 2, "evt_1", 10), KN_OK);
    assert_int_equal(sign(first, both, 1, "evt_1", 10), KN_OK);
    assert_int_equal(sign(second, both + 1, 1, "evt_1", 10), KN_OK);
    snprintf(joined, sizeof joined, "%s %s", first, second);
    assert_string_equal(signature, joined);
}

static void test_sign_limits(void **state)
{
    (void)state;
    char signature[KN_WEBHOOK_SIGNATURE_BYTES];
    const char *many[KN_WEBHOOK_SECRETS_MAX + 1];
    for (size_t i = 0; i <= KN_WEBHOOK_SECRETS_MAX; i++) many[i] = published;
    assert_int_equal(sign(signature, many, KN_WEBHOOK_SECRETS_MAX, "e", 1), KN_OK);
    assert_true(strlen(signature) < sizeof signature);
    assert_int_equal(sign(signature, many, KN_WEBHOOK_SECRETS_MAX + 1, "e", 1), KN_INVALID);
    assert_int_equal(sign(signature, many, 0, "e", 1), KN_INVALID);
    assert_int_equal(sign(signature, many, 1, "e", KN_WEBHOOK_BODY_MAX), KN_OK);
    assert_int_equal(sign(signature, many, 1, "e", KN_WEBHOOK_BODY_MAX + 1), KN_INVALID);
    assert_string_equal(signature, "");
    char id[KN_WEBHOOK_ID_MAX + 2];
    memset(id, 'a', sizeof id);
    id[KN_WEBHOOK_ID_MAX + 1] = '\0';
    assert_int_equal(sign(signature, many, 1, id, 1), KN_INVALID);
    id[KN_WEBHOOK_ID_MAX] = '\0';
    assert_int_equal(sign(signature, many, 1, id, 1), KN_OK);
    const char *const wrong[] = {"", "a.b", "a b", "a\r\nx: y", "\xc3\xa9"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(sign(signature, many, 1, wrong[i], 1), KN_INVALID);
    assert_int_equal(kn_webhook_sign(signature, many, 1, "e", -1, "", 0), KN_INVALID);
}

static void test_secrets(void **state)
{
    (void)state;
    static const char *const good[] = {
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",                                                         /* 24 bytes */
        "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",                                                     /* 26 */
        "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==",                                                     /* 25 */
        "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==", /* 64 */
        "123456789012345678901234",                                                                       /* 24 */
        "1234567890123456789012345678901234567890123456789012345678901234",                               /* 64 */
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        if (kn_webhook_check_secret(good[i]) != KN_OK) fail_msg("%zu: %s", i, kn_fail_message());
    static const char *const bad[] = {
        "",
        "whsec_",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS",      /* not a multiple of four */
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS ",     /* a space */
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2La",         /* 21 bytes */
        "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",     /* 23 */
        "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB==", /* stray bits */
        "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA===", /* three signs */
        "whsec_====",
        "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAA=AAAAAAA", /* a sign inside */
        "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", /* 65 */
        "12345678901234567890123",                                                                        /* 23 */
        "12345678901234567890123456789012345678901234567890123456789012345",                              /* 65 */
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (kn_webhook_check_secret(bad[i]) != KN_INVALID) fail_msg("%s was taken", bad[i]);
        if (strlen(bad[i]) > 6 && strstr(kn_fail_message(), bad[i])) fail_msg("the message repeats the secret");
    }
}

static void test_new_secrets_differ_and_sign(void **state)
{
    (void)state;
    char a[KN_WEBHOOK_SECRET_TEXT_MAX + 1], b[KN_WEBHOOK_SECRET_TEXT_MAX + 1];
    assert_int_equal(kn_webhook_new_secret(a), KN_OK);
    assert_int_equal(kn_webhook_new_secret(b), KN_OK);
    assert_string_not_equal(a, b);
    assert_int_equal(strlen(a), 6 + 44);
    assert_int_equal(kn_webhook_check_secret(a), KN_OK);
    assert_int_equal(strncmp(a, "whsec_", 6), 0);
}

static void test_secrets_are_split(void **state)
{
    (void)state;
    const char *secrets[KN_WEBHOOK_SECRETS_MAX];
    size_t count;
    char text[1024];
    snprintf(text, sizeof text, "%s %s", published, plain); /* the second holds spaces: five words, all too short */
    assert_int_equal(kn_webhook_split_secrets(text, secrets, &count), KN_INVALID);
    snprintf(text, sizeof text, "%s %s %s %s", published, published, published, published);
    assert_int_equal(kn_webhook_split_secrets(text, secrets, &count), KN_OK);
    assert_int_equal(count, 4);
    for (size_t i = 0; i < count; i++) assert_string_equal(secrets[i], published);
    snprintf(text, sizeof text, "%s %s %s %s %s", published, published, published, published, published);
    assert_int_equal(kn_webhook_split_secrets(text, secrets, &count), KN_INVALID);
    snprintf(text, sizeof text, "%s  %s", published, published);
    assert_int_equal(kn_webhook_split_secrets(text, secrets, &count), KN_INVALID);
    text[0] = '\0';
    assert_int_equal(kn_webhook_split_secrets(text, secrets, &count), KN_INVALID);
}

static kn_status verify(const char *secret, const char *id, const char *body, const char *signature, int64_t now)
{
    return kn_webhook_verify(&secret, 1, id, PUBLISHED_TIME, body, strlen(body), signature, now);
}

static void test_verify(void **state)
{
    (void)state;
    const char *good = published_signature, *body = published_body, *id = published_id;
    assert_int_equal(verify(published, id, body, good, PUBLISHED_TIME), KN_OK);
    assert_int_equal(verify(published, id, body, good, PUBLISHED_TIME + KN_WEBHOOK_TOLERANCE_S), KN_OK);
    assert_int_equal(verify(published, id, body, good, PUBLISHED_TIME - KN_WEBHOOK_TOLERANCE_S), KN_OK);
    assert_int_equal(verify(published, id, body, good, PUBLISHED_TIME + KN_WEBHOOK_TOLERANCE_S + 1), KN_INVALID);
    assert_int_equal(verify(published, id, body, good, PUBLISHED_TIME - KN_WEBHOOK_TOLERANCE_S - 1), KN_INVALID);
    assert_int_equal(verify(plain, id, body, good, PUBLISHED_TIME), KN_INVALID);
    assert_int_equal(verify(published, "msg_other", body, good, PUBLISHED_TIME), KN_INVALID);
    assert_int_equal(verify(published, id, "{}", good, PUBLISHED_TIME), KN_INVALID);
    assert_int_equal(verify(published, id, body, "", PUBLISHED_TIME), KN_INVALID);
    char text[2048], many[2048];
    snprintf(text, sizeof text, "v1a,xyz v1,short  %s v2,%s", good, good + 3);
    assert_int_equal(verify(published, id, body, text, PUBLISHED_TIME), KN_OK);
    snprintf(text, sizeof text, "v2,%s", good + 3); /* another scheme with the right bytes */
    assert_int_equal(verify(published, id, body, text, PUBLISHED_TIME), KN_INVALID);
    snprintf(text, sizeof text, "%s", good);
    for (size_t i = 0; i < strlen(good); i++) {
        text[i] ^= 1;
        assert_int_equal(verify(published, id, body, text, PUBLISHED_TIME), KN_INVALID);
        text[i] ^= 1;
    }
    memset(many, ' ', sizeof many);
    many[1025] = '\0';
    assert_int_equal(verify(published, id, body, many, PUBLISHED_TIME), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "longer"));
}

static void test_verify_takes_either_secret_of_a_rotation(void **state)
{
    (void)state;
    const char *const both[] = {plain, published};
    assert_int_equal(kn_webhook_verify(both, 2, published_id, PUBLISHED_TIME, published_body, strlen(published_body),
                                       published_signature, PUBLISHED_TIME),
                     KN_OK);
}

static void test_answers(void **state)
{
    (void)state;
    for (int status = 0; status < 1000; status++) {
        kn_webhook_outcome expected = KN_WEBHOOK_FAILED;
        if (status >= 200 && status <= 299) expected = KN_WEBHOOK_DELIVERED;
        if (status == 410) expected = KN_WEBHOOK_GONE;
        if (status == 429 || status == 502 || status == 504) expected = KN_WEBHOOK_THROTTLED;
        assert_int_equal(kn_webhook_classify(status), expected);
    }
    assert_true(kn_webhook_outcome_retries(KN_WEBHOOK_FAILED));
    assert_true(kn_webhook_outcome_retries(KN_WEBHOOK_THROTTLED));
    assert_false(kn_webhook_outcome_retries(KN_WEBHOOK_DELIVERED));
    assert_false(kn_webhook_outcome_retries(KN_WEBHOOK_GONE));
    assert_false(kn_webhook_outcome_retries(KN_WEBHOOK_REFUSED));
    assert_string_equal(kn_webhook_outcome_name(KN_WEBHOOK_GONE), "gone");
}

static int64_t delay(int32_t attempt, int64_t age_us, int64_t retry_after_s, uint64_t random)
{
    return kn_webhook_retry_delay_us(
        &(kn_webhook_retry){.attempt = attempt, .age_us = age_us, .retry_after_s = retry_after_s, .random = random});
}

static void test_schedule(void **state)
{
    (void)state;
    static const int64_t seconds[] = {5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400, 86400};
    assert_int_equal(delay(0, 0, 0, 7), 0);
    for (int32_t i = 0; i < 10; i++) {
        const int64_t base = seconds[i] * 1000000;
        assert_int_equal(delay(i + 1, 0, 0, 0), base - base / 10);
        assert_int_equal(delay(i + 1, 0, 0, (uint64_t)(base / 5)), base + base / 10);
        const int64_t some = delay(i + 1, 0, 0, 0x9e3779b97f4a7c15u);
        assert_true(some >= base - base / 10 && some <= base + base / 10);
    }
    assert_int_equal(delay(1000000, 0, 0, 0), INT64_C(86400000000) * 9 / 10);
}

static void test_retry_after_is_heeded_within_bounds(void **state)
{
    (void)state;
    assert_int_equal(delay(1, 0, 3600, 0), INT64_C(3600000000));
    assert_int_equal(delay(1, 0, 1, 0), 4500000); /* the schedule is later */
    assert_int_equal(delay(1, 0, 24 * 3600, 0), INT64_C(86400000000));
    assert_int_equal(delay(1, 0, INT64_MAX, 0), INT64_C(86400000000));
    assert_int_equal(delay(1, 0, -5, 0), 4500000);
}

static void test_it_ends_72_hours_after_the_first_attempt(void **state)
{
    (void)state;
    assert_int_equal(delay(3, KN_WEBHOOK_RETRY_SPAN_US - 1, 0, 0), 1);
    assert_int_equal(delay(3, KN_WEBHOOK_RETRY_SPAN_US, 0, 0), -1);
    assert_int_equal(delay(3, INT64_MAX, 0, 0), -1);
    for (uint64_t random = 1; random < 50; random++) { /* a receiver that is never there */
        int64_t age = 0, wait;
        int32_t attempt = 1;
        for (; (wait = delay(attempt, age, 0, random * 0x9e3779b97f4a7c15u)) >= 0; attempt++) age += wait;
        assert_int_equal(age, KN_WEBHOOK_RETRY_SPAN_US);
        assert_in_range(attempt, 10, 11);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_signature),
        cmocka_unit_test(test_plain_text_secret),
        cmocka_unit_test(test_several_secrets_sign_side_by_side),
        cmocka_unit_test(test_sign_limits),
        cmocka_unit_test(test_secrets),
        cmocka_unit_test(test_new_secrets_differ_and_sign),
        cmocka_unit_test(test_secrets_are_split),
        cmocka_unit_test(test_verify),
        cmocka_unit_test(test_verify_takes_either_secret_of_a_rotation),
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_schedule),
        cmocka_unit_test(test_retry_after_is_heeded_within_bounds),
        cmocka_unit_test(test_it_ends_72_hours_after_the_first_attempt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

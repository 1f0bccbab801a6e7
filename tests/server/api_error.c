/* SPDX-License-Identifier: Apache-2.0
 *
 * Typed errors: every constructor's status, type and code; messages stay one line of UTF-8; the body byte for byte. */
#include "tests/server/protocol.h"

static void check(const kn_api_error *error, int status, const char *type, const char *code, int32_t retry,
                  bool no_retry)
{
    assert_int_equal(error->status, status);
    assert_string_equal(error->type, type);
    assert_string_equal(error->code, code);
    assert_int_equal(error->retry_after_s, retry);
    assert_int_equal(error->no_retry, no_retry);
    assert_true(error->message[0] != '\0');
}

static void constructors(void **state)
{
    (void)state;
    kn_api_error e;
    const char *bad = "invalid_request_error";
    assert_int_equal(kn_api_invalid_value(&e, "size", "size is %d", 3), KN_INVALID);
    check(&e, 400, bad, "invalid_value", 0, false);
    assert_string_equal(e.param, "size");
    assert_string_equal(e.message, "size is 3");
    assert_string_equal(kn_fail_message(), "size is 3");
    kn_api_invalid_type(&e, "x", "type");
    check(&e, 400, bad, "invalid_type", 0, false);
    kn_api_invalid_body(&e, "body");
    check(&e, 400, bad, "invalid_body", 0, false);
    kn_api_missing_parameter(&e, "prompt");
    check(&e, 400, bad, "missing_required_parameter", 0, false);
    assert_string_equal(e.message, "Missing required parameter: 'prompt'.");
    kn_api_unknown_parameter(&e, "promt");
    check(&e, 400, bad, "unknown_parameter", 0, false);
    assert_int_equal(kn_api_unsupported(&e, NULL, "unsupported_operation", "no"), KN_UNSUPPORTED);
    check(&e, 400, bad, "unsupported_operation", 0, false);
    kn_api_unauthorized(&e, "Incorrect API key.");
    check(&e, 401, bad, "invalid_api_key", 0, false);
    kn_api_forbidden(&e, "no");
    check(&e, 403, "permission_error", "forbidden", 0, false);
    assert_int_equal(kn_api_not_found(&e, "video", "video_1"), KN_NOT_FOUND);
    check(&e, 404, bad, "not_found", 0, false);
    assert_string_equal(e.message, "No video with id 'video_1'.");
    kn_api_method_not_allowed(&e, "PATCH");
    check(&e, 405, bad, "method_not_allowed", 0, false);
    kn_api_conflict(&e, "video_not_ready", 0, "not yet");
    check(&e, 409, bad, "video_not_ready", 0, true);
    kn_api_conflict(&e, "in_progress", 2, "wait");
    check(&e, 409, bad, "in_progress", 2, false);
    kn_api_gone(&e, "expired");
    check(&e, 410, bad, "expired", 0, false);
    kn_api_too_large(&e, "The body", 10);
    check(&e, 413, bad, "payload_too_large", 0, false);
    assert_string_equal(e.message, "The body is larger than 10 bytes.");
    kn_api_unsupported_media_type(&e, "no");
    check(&e, 415, bad, "unsupported_media_type", 0, false);
    kn_api_key_reused(&e);
    check(&e, 409, bad, "idempotency_key_reused", 0, true);
    assert_int_equal(kn_api_rate_limited(&e, "slow_down", 3, "slower"), KN_UNAVAILABLE);
    check(&e, 429, "rate_limit_error", "slow_down", 3, false);
    kn_api_rate_limited(&e, "insufficient_quota", 0, "spent");
    check(&e, 429, "rate_limit_error", "insufficient_quota", 0, true);
    kn_api_overloaded(&e, KN_RETRY_AFTER_MAX, "full");
    check(&e, 503, "service_unavailable_error", "server_is_overloaded", KN_RETRY_AFTER_MAX, false);
    kn_api_overloaded(&e, KN_RETRY_AFTER_MAX + 1, "full"); /* above it OpenAI's clients give up */
    check(&e, 503, "service_unavailable_error", "server_is_overloaded", KN_RETRY_AFTER_MAX, false);
    kn_api_internal(&e);
    check(&e, 500, "server_error", "internal_error", 0, false);
    assert_int_equal(kn_api_from_status(&e, KN_NOMEM), KN_NOMEM);
    check(&e, 503, "service_unavailable_error", "server_is_overloaded", 1, false);
    assert_int_equal(kn_api_from_status(&e, KN_IO), KN_IO);
    check(&e, 500, "server_error", "internal_error", 0, false);
}

static void one_line_of_utf8(void **state)
{
    (void)state;
    kn_api_error e;
    kn_api_invalid_value(&e, "a\nb", "x\r\ny\x1b[31m\xff\xc2\x85\xe2\x80\xa8z");
    assert_string_equal(e.param, "a?b");
    assert_string_equal(e.message, "x??y?[31m?\?\?\?\?\?z");
    char *accents = repeated("\xc3\xa9", KN_API_MESSAGE_BYTES); /* the cut falls inside a character */
    kn_api_invalid_value(&e, accents, "x%s", accents);
    assert_true(strlen(e.message) == KN_API_MESSAGE_BYTES - 1);
    assert_true(kn_text_characters(e.message, strlen(e.message)) > 0);
    assert_true(kn_text_characters(e.param, strlen(e.param)) > 0);
    kn_free(accents);
}

static void body(void **state)
{
    (void)state;
    char storage[512];
    kn_api_error e;
    kn_text text = kn_text_fixed(storage, sizeof storage);
    kn_api_invalid_type(&e, "input_reference", "expected a \"file\"");
    kn_api_error_write(&text, &e);
    assert_string_equal(storage,
                        "{\"error\":{\"message\":\"expected a \\\"file\\\"\",\"type\":\"invalid_request_error\","
                        "\"param\":\"input_reference\",\"code\":\"invalid_type\"}}");
    kn_text_clear(&text);
    kn_api_overloaded(&e, 1, "full");
    kn_api_error_write(&text, &e);
    assert_non_null(strstr(storage, "\"param\":null"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(constructors),
        cmocka_unit_test(one_line_of_utf8),
        cmocka_unit_test(body),
    };
    return cmocka_run_group_tests_name("api_error", tests, count_allocations, nothing_left);
}

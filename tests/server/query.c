/* SPDX-License-Identifier: Apache-2.0
 *
 * Query strings and the query of a list. */
#include "tests/server/protocol.h"

#include "server/query.h"

static kn_api_error error;
static const char id[] = "video_0123456789abcdef0123456789abcdef";

static void fields(void **state)
{
    (void)state;
    kn_query query;
    const char *text = "variant=thumbnail&empty=&flag&x=a%20b+c";
    ok(kn_query_parse(&query, text, strlen(text), &error));
    assert_int_equal(query.count, 4);
    assert_string_equal(kn_query_get(&query, "variant"), "thumbnail");
    assert_string_equal(kn_query_get(&query, "empty"), "");
    assert_string_equal(kn_query_get(&query, "flag"), "");
    assert_string_equal(kn_query_get(&query, "x"), "a b c");
    assert_null(kn_query_get(&query, "y"));
    static const char *const known[] = {"variant", "empty", "flag", "x", NULL};
    ok(kn_query_only(&query, known, &error));
    expect_error(kn_query_only(&query, known + 1, &error), &error, 400, "unknown_parameter", "variant");
    ok(kn_query_parse(&query, "", 0, &error));
    assert_int_equal(query.count, 0);
}

static void refused(void **state)
{
    (void)state;
    kn_query query;
    expect_error(kn_query_parse(&query, "a=1&a=2", 7, &error), &error, 400, "invalid_value", "a");
    expect_error(kn_query_parse(&query, "a=%", 3, &error), &error, 400, "invalid_body", NULL);
    expect_error(kn_query_parse(&query, "a=%00", 5, &error), &error, 400, "invalid_body", NULL);
    expect_error(kn_query_parse(&query, "%ff=1", 5, &error), &error, 400, "invalid_body", NULL);
    kn_text text = kn_text_growing(KN_QUERY_BYTES_MAX);
    for (int i = 0; i < KN_QUERY_FIELDS_MAX; i++) kn_text_format(&text, "f%d&", i);
    ok(kn_query_parse(&query, text.bytes, text.count, &error));
    kn_text_string(&text, "g");
    expect_error(kn_query_parse(&query, text.bytes, text.count, &error), &error, 400, "invalid_body", NULL);
    kn_text_release(&text);
    char *large = repeated("x", KN_QUERY_BYTES_MAX + 1);
    ok(kn_query_parse(&query, large, KN_QUERY_BYTES_MAX, &error));
    expect_error(kn_query_parse(&query, large, KN_QUERY_BYTES_MAX + 1, &error), &error, 400, "invalid_body", NULL);
    /* The most text that fits: sixteen names and values, with the NUL of each. */
    for (size_t i = 0; i < KN_QUERY_FIELDS_MAX; i++) {
        large[i * 128] = (char)('a' + i);
        large[i * 128 + 1] = '=';
        large[i * 128 + 127] = '&';
    }
    ok(kn_query_parse(&query, large, KN_QUERY_BYTES_MAX, &error));
    assert_int_equal(strlen(kn_query_get(&query, "p")), 125);
    kn_free(large);
}

static void list(void **state)
{
    (void)state;
    kn_list_query query;
    ok(kn_list_query_parse(&query, "", 0, &error));
    assert_string_equal(query.after, "");
    assert_int_equal(query.limit, KN_LIST_LIMIT_DEFAULT);
    assert_false(query.ascending);
    char text[128];
    snprintf(text, sizeof text, "after=%s&limit=100&order=asc", id);
    ok(kn_list_query_parse(&query, text, strlen(text), &error));
    assert_string_equal(query.after, id);
    assert_int_equal(query.limit, KN_LIST_LIMIT_MAX);
    assert_true(query.ascending);
    ok(kn_list_query_parse(&query, "limit=0&order=desc", 18, &error));
    assert_int_equal(query.limit, 0);
    static const char *const bad[][2] = {
        {"limit=101", "limit"},         {"limit=-1", "limit"}, {"limit=", "limit"}, {"limit=1.5", "limit"},
        {"limit=99999999999", "limit"}, {"order=up", "order"}, {"after=", "after"}, {"after=../etc", "after"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        expect_error(kn_list_query_parse(&query, bad[i][0], strlen(bad[i][0]), &error), &error, 400, "invalid_value",
                     bad[i][1]);
    expect_error(kn_list_query_parse(&query, "before=x", 8, &error), &error, 400, "unknown_parameter", "before");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(fields), cmocka_unit_test(refused), cmocka_unit_test(list)};
    return cmocka_run_group_tests_name("query", tests, count_allocations, nothing_left);
}

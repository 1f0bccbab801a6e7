/* SPDX-License-Identifier: Apache-2.0 */
#include "server/http_range.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void ranges_are_read_as_the_rfc_says(void **state)
{
    (void)state;
    static const struct {
        const char *value;
        uint64_t bytes;
        kn_status status;
        uint64_t first, count;
    } cases[] = {
        {"bytes=0-0", 10, KN_OK, 0, 1},
        {"bytes=0-9", 10, KN_OK, 0, 10},
        {"bytes=0-10", 10, KN_OK, 0, 10}, /* cut to what is there */
        {"bytes=9-9", 10, KN_OK, 9, 1},
        {"bytes=9-", 10, KN_OK, 9, 1},
        {"bytes=10-", 10, KN_NOT_FOUND, 0, 0},
        {"bytes=10-10", 10, KN_NOT_FOUND, 0, 0},
        {"bytes=-1", 10, KN_OK, 9, 1},
        {"bytes=-10", 10, KN_OK, 0, 10},
        {"bytes=-11", 10, KN_OK, 0, 10},
        {"bytes=-0", 10, KN_NOT_FOUND, 0, 0},
        {"bytes=-1", 0, KN_NOT_FOUND, 0, 0},
        {"bytes=0-", 0, KN_NOT_FOUND, 0, 0},
        {"BYTES=1-2", 10, KN_OK, 1, 2},
        {"bytes= 1-2 ", 10, KN_OK, 1, 2},
        {"bytes=5-4", 10, KN_UNSUPPORTED, 0, 0},
        {"bytes=-", 10, KN_UNSUPPORTED, 0, 0},
        {"bytes=", 10, KN_UNSUPPORTED, 0, 0},
        {"bytes=a-b", 10, KN_UNSUPPORTED, 0, 0},
        {"bytes=1-2x", 10, KN_UNSUPPORTED, 0, 0},
        {"bytes=--1", 10, KN_UNSUPPORTED, 0, 0},
        {"bytes=+1-2", 10, KN_UNSUPPORTED, 0, 0},
        {"bytes=0-0,2-3", 10, KN_UNSUPPORTED, 0, 0},
        {"items=0-0", 10, KN_UNSUPPORTED, 0, 0},
        {"bytes", 10, KN_UNSUPPORTED, 0, 0},
        {"", 10, KN_UNSUPPORTED, 0, 0},
        {"bytes=99999999999999999999999-", 10, KN_NOT_FOUND, 0, 0},
        {"bytes=0-99999999999999999999999", 10, KN_OK, 0, 10},
        {"bytes=-99999999999999999999999", 10, KN_OK, 0, 10},
        {"bytes=18446744073709551615-", UINT64_MAX, KN_NOT_FOUND, 0, 0},
        {"bytes=0-", UINT64_MAX, KN_OK, 0, UINT64_MAX},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint64_t first = 0, count = 0;
        const kn_status st = kn_http_parse_range(cases[i].value, cases[i].bytes, &first, &count);
        if (st != cases[i].status || (st == KN_OK && (first != cases[i].first || count != cases[i].count)))
            fail_msg("%s of %llu: %s %llu+%llu", cases[i].value, (unsigned long long)cases[i].bytes, kn_status_name(st),
                     (unsigned long long)first, (unsigned long long)count);
    }
}

static void entity_tags_are_compared_strongly_or_weakly(void **state)
{
    (void)state;
    static const struct {
        const char *list;
        bool strong, weak;
    } cases[] = {
        {"*", true, true},
        {" * ", true, true},
        {"\"a\"", true, true},
        {"W/\"a\"", false, true},
        {"\"b\", \"a\"", true, true},
        {"\"b\",\"a\"", true, true},
        {"W/\"b\" ,, W/\"a\"", false, true},
        {"\"a,b\", \"c\"", false, false},
        {"\"ab\"", false, false},
        {"a", false, false},
        {"\"a", false, false},
        {"\"b\" \"a\"", false, false},
        {"w/\"a\"", false, false},
        {"*, \"a\"", false, false},
        {"", false, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (kn_http_etag_listed(cases[i].list, "\"a\"", false) != cases[i].strong ||
            kn_http_etag_listed(cases[i].list, "\"a\"", true) != cases[i].weak)
            fail_msg("%s", cases[i].list);
    }
    assert_false(kn_http_etag_listed("*", NULL, true));
}

static void preconditions_come_before_ranges(void **state)
{
    (void)state;
    static const struct {
        kn_http_conditions conditions;
        kn_http_selection selection;
    } cases[] = {
        {{.bytes = 10, .etag = "\"a\"", .ranges = true}, {200, 0, 10}},
        {{.bytes = 10, .etag = "\"a\"", .ranges = true, .range = "bytes=2-3"}, {206, 2, 2}},
        {{.bytes = 10, .etag = "\"a\"", .ranges = false, .range = "bytes=2-3"}, {200, 0, 10}},
        {{.bytes = 10, .etag = "\"a\"", .ranges = true, .range = "bytes=10-"}, {416, 0, 0}},
        {{.bytes = 10, .etag = "\"a\"", .ranges = true, .range = "bytes=0-1,4-5"}, {200, 0, 10}},
        {{.bytes = 10, .etag = "\"a\"", .ranges = true, .range = "bytes=2-3", .if_range = "\"a\""}, {206, 2, 2}},
        {{.bytes = 10, .etag = "\"a\"", .ranges = true, .range = "bytes=2-3", .if_range = "\"b\""}, {200, 0, 10}},
        {{.bytes = 10, .etag = "\"a\"", .ranges = true, .range = "bytes=2-3", .if_range = "W/\"a\""}, {200, 0, 10}},
        {{.bytes = 10,
          .etag = "\"a\"",
          .ranges = true,
          .range = "bytes=2-3",
          .if_range = "Sun, 06 Nov 1994 08:49:37 GMT"},
         {200, 0, 10}},
        {{.bytes = 10, .ranges = true, .range = "bytes=2-3", .if_range = "\"a\""}, {200, 0, 10}},
        {{.bytes = 10, .etag = "\"a\"", .if_none_match = "\"a\""}, {304, 0, 0}},
        {{.bytes = 10, .etag = "\"a\"", .if_none_match = "\"b\""}, {200, 0, 10}},
        {{.bytes = 10, .etag = "\"a\"", .if_none_match = "W/\"a\""}, {304, 0, 0}},
        {{.bytes = 10, .etag = "\"a\"", .if_match = "\"b\""}, {412, 0, 0}},
        {{.bytes = 10, .etag = "\"a\"", .if_match = "W/\"a\""}, {412, 0, 0}},
        {{.bytes = 10, .etag = "\"a\"", .if_match = "\"a\"", .if_none_match = "\"a\""}, {304, 0, 0}},
        {{.bytes = 10, .etag = "\"a\"", .if_match = "\"b\"", .range = "bytes=99-", .ranges = true}, {412, 0, 0}},
        {{.bytes = 10, .etag = "\"a\"", .if_none_match = "\"a\"", .range = "bytes=1-", .ranges = true}, {304, 0, 0}},
        {{.bytes = 0, .etag = "\"a\"", .ranges = true, .range = "bytes=0-"}, {416, 0, 0}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const kn_http_selection got = kn_http_select(&cases[i].conditions), want = cases[i].selection;
        if (got.status != want.status || got.first != want.first || got.bytes != want.bytes)
            fail_msg("case %zu: %d %llu+%llu", i, got.status, (unsigned long long)got.first,
                     (unsigned long long)got.bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges_are_read_as_the_rfc_says),
        cmocka_unit_test(entity_tags_are_compared_strongly_or_weakly),
        cmocka_unit_test(preconditions_come_before_ranges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

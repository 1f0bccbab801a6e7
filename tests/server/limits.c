/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "server/limits.h"

#define SECOND INT64_C(1000000000)

static void a_burst_then_the_rate(void **state)
{
    (void)state;
    kn_limits *limits = NULL;
    const kn_limit six = {.requests_per_minute = 6};
    assert_int_equal(kn_limits_create(&limits, 10), KN_OK);
    for (int i = 5; i >= 0; i--) {
        kn_limit_result r = kn_limits_take(limits, "a", six, 100 * SECOND);
        assert_true(r.allowed);
        assert_int_equal(r.limit, 6);
        assert_int_equal(r.remaining, i);
        assert_int_equal(r.reset_ns, (6 - i) * 10 * SECOND);
        assert_int_equal(r.retry_after_ns, 0);
    }
    kn_limit_result r = kn_limits_take(limits, "a", six, 100 * SECOND);
    assert_false(r.allowed);
    assert_int_equal(r.remaining, 0);
    assert_int_equal(r.retry_after_ns, 10 * SECOND);
    assert_int_equal(r.reset_ns, 60 * SECOND);
    assert_true(kn_limits_take(limits, "b", six, 100 * SECOND).allowed); /* another's bucket */
    assert_false(kn_limits_take(limits, "a", six, 110 * SECOND - 1).allowed);
    assert_true(kn_limits_take(limits, "a", six, 110 * SECOND).allowed);
    assert_false(kn_limits_take(limits, "a", six, 110 * SECOND).allowed);
    assert_int_equal(kn_limits_take(limits, "a", six, 1000 * SECOND).remaining, 5); /* full again, and no fuller */
    kn_limits_destroy(&limits);
    kn_limits_destroy(&limits);
}

static void a_burst_of_its_own(void **state)
{
    (void)state;
    kn_limits *limits = NULL;
    const kn_limit limit = {.requests_per_minute = 60, .burst = 2};
    assert_int_equal(kn_limits_create(&limits, 10), KN_OK);
    assert_true(kn_limits_take(limits, "a", limit, 0).allowed);
    assert_int_equal(kn_limits_take(limits, "a", limit, 0).remaining, 0);
    assert_int_equal(kn_limits_take(limits, "a", limit, 0).retry_after_ns, SECOND);
    assert_true(kn_limits_take(limits, "a", limit, SECOND).allowed);
    kn_limits_destroy(&limits);
}

/* Whatever the pattern of requests, no window of a minute lets through more than twice the limit, and a long run no
 * more than one burst above the rate. */
static void never_more_than_the_rate(void **state)
{
    (void)state;
    const kn_limit limit = {.requests_per_minute = 37};
    srand(7);
    for (int run = 0; run < 20; run++) {
        kn_limits *limits = NULL;
        int64_t now = 0, allowed = 0;
        assert_int_equal(kn_limits_create(&limits, 1), KN_OK);
        for (int i = 0; i < 5000; i++) {
            now += rand() % (run % 2 ? 100000000 : 3000000000);
            allowed += kn_limits_take(limits, "a", limit, now).allowed;
        }
        assert_true(allowed <= 37 + now * 37 / (60 * SECOND) + 1);
        if (!(run % 2)) assert_true(allowed >= 2500); /* and who stays below it is hardly refused */
        kn_limits_destroy(&limits);
    }
}

static void odd_clocks_and_changed_limits(void **state)
{
    (void)state;
    kn_limits *limits = NULL;
    const kn_limit ten = {.requests_per_minute = 10}, two = {.requests_per_minute = 2}, none = {0};
    assert_int_equal(kn_limits_create(&limits, 10), KN_OK);
    for (int i = 0; i < 10; i++) assert_true(kn_limits_take(limits, "a", ten, 1000 * SECOND).allowed);
    kn_limit_result back = kn_limits_take(limits, "a", ten, 5 * SECOND); /* the clock went back */
    assert_false(back.allowed);
    assert_int_equal(back.reset_ns, 60 * SECOND);
    assert_int_equal(back.retry_after_ns, 6 * SECOND);
    kn_limit_result lower = kn_limits_take(limits, "a", two, 1000 * SECOND);
    assert_in_range(lower.remaining, 0, 2);
    for (int i = 0; i < 100; i++) {
        kn_limit_result r = kn_limits_take(limits, "free", none, 0);
        assert_true(r.allowed);
        assert_int_equal(r.limit, 0);
    }
    assert_int_equal(kn_limits_count(limits), 1); /* nothing is kept for the unlimited */
    const kn_limit fastest = {.requests_per_minute = INT32_MAX, .burst = INT32_MAX};
    assert_true(kn_limits_take(limits, "fast", fastest, INT64_MAX / 2).allowed);
    kn_limits_destroy(&limits);
}

static void a_token_can_be_given_back(void **state)
{
    (void)state;
    kn_limits *limits = NULL;
    const kn_limit one = {.requests_per_minute = 1};
    assert_int_equal(kn_limits_create(&limits, 10), KN_OK);
    assert_true(kn_limits_take(limits, "a", one, 0).allowed);
    kn_limits_return(limits, "a", one, 0);
    assert_true(kn_limits_take(limits, "a", one, 0).allowed);
    assert_false(kn_limits_take(limits, "a", one, 0).allowed);
    kn_limits_return(limits, "stranger", one, 0);
    for (int i = 0; i < 5; i++) kn_limits_return(limits, "a", one, 0); /* never fuller than full */
    assert_true(kn_limits_take(limits, "a", one, 0).allowed);
    assert_false(kn_limits_take(limits, "a", one, 0).allowed);
    kn_limits_destroy(&limits);
}

static void the_table_is_bounded_by_forgetting_the_idle(void **state)
{
    (void)state;
    kn_limits *limits = NULL;
    const kn_limit one = {.requests_per_minute = 1};
    char name[16];
    assert_int_equal(kn_limits_create(&limits, 3), KN_OK);
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "%d", i);
        assert_true(kn_limits_take(limits, name, one, i * SECOND).allowed);
    }
    kn_limit_result full = kn_limits_take(limits, "3", one, 3 * SECOND);
    assert_false(full.allowed); /* n + 1, and nobody is idle */
    assert_true(full.retry_after_ns > 0);
    assert_true(kn_limits_take(limits, "3", one, 60 * SECOND).allowed); /* "0" is */
    assert_int_equal(kn_limits_count(limits), 3);
    assert_false(kn_limits_take(limits, "1", one, 60 * SECOND).allowed); /* and "1" is remembered */
    kn_limits_sweep(limits, 1000 * SECOND);
    assert_int_equal(kn_limits_count(limits), 0);
    kn_limits_destroy(&limits);
}

static void durations_read_as_clients_expect(void **state)
{
    (void)state;
    static const struct {
        int64_t ns;
        const char *text;
        int32_t retry_after;
    } cases[] = {{0, "0s", 1},
                 {-5, "0s", 1},
                 {1, "1ms", 1},
                 {999000000, "999ms", 1},
                 {999000001, "1s", 1},
                 {SECOND, "1s", 1},
                 {SECOND + 1, "2s", 2},
                 {59 * SECOND + 1, "1m0s", 60},
                 {120 * SECOND, "2m0s", 120},
                 {121 * SECOND, "2m1s", 120},
                 {360 * SECOND, "6m0s", 120},
                 {3600 * SECOND, "1h0m0s", 120},
                 {INT64_MAX, "2562047h47m17s", 120}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[24];
        kn_limits_duration(text, cases[i].ns);
        assert_string_equal(text, cases[i].text);
        assert_int_equal(kn_limits_retry_after_s(cases[i].ns), cases[i].retry_after);
    }
}

static void headers_of_a_result(void **state)
{
    (void)state;
    kn_limit_headers headers;
    kn_limits_headers(&headers, &(kn_limit_result){.allowed = true});
    assert_string_equal(headers.limit, "");
    assert_string_equal(headers.reset, "");
    kn_limits_headers(&headers, &(kn_limit_result){.limit = 60, .remaining = 0, .reset_ns = 360 * SECOND});
    assert_string_equal(headers.limit, "60");
    assert_string_equal(headers.remaining, "0");
    assert_string_equal(headers.reset, "6m0s");
}

static void no_memory_refuses(void **state)
{
    (void)state;
    const kn_limit one = {.requests_per_minute = 1};
    for (uint64_t n = 1;; n++) {
        kn_limits *limits = NULL;
        uint64_t bytes = kn_mem_read().bytes;
        kn_mem_fail_at(n);
        kn_status st = kn_limits_create(&limits, 10);
        bool allowed = st == KN_OK && kn_limits_take(limits, "a", one, 0).allowed;
        kn_mem_fail_at(0);
        if (st == KN_OK && !allowed) assert_true(kn_limits_take(limits, "a", one, 0).allowed); /* nothing was taken */
        kn_limits_destroy(&limits);
        assert_int_equal(kn_mem_read().bytes, bytes);
        if (allowed) break;
        assert_in_range(n, 1, 50);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_burst_then_the_rate),
        cmocka_unit_test(a_burst_of_its_own),
        cmocka_unit_test(never_more_than_the_rate),
        cmocka_unit_test(odd_clocks_and_changed_limits),
        cmocka_unit_test(a_token_can_be_given_back),
        cmocka_unit_test(the_table_is_bounded_by_forgetting_the_idle),
        cmocka_unit_test(durations_read_as_clients_expect),
        cmocka_unit_test(headers_of_a_result),
        cmocka_unit_test(no_memory_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

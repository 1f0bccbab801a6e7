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
#include "server/names.h"

static void names_keep_their_numbers(void **state)
{
    (void)state;
    kn_names *names = NULL;
    uint32_t a, b, again;
    assert_int_equal(kn_names_create(&names, 10), KN_OK);
    assert_int_equal(kn_names_add(names, "a", &a), KN_OK);
    assert_int_equal(kn_names_add(names, "b", &b), KN_OK);
    assert_int_not_equal(a, b);
    assert_int_equal(kn_names_add(names, "a", &again), KN_OK);
    assert_int_equal(again, a);
    assert_int_equal(kn_names_count(names), 2);
    kn_names_remove(names, "a");
    kn_names_remove(names, "a");
    assert_false(kn_names_find(names, "a", &again));
    assert_null(kn_names_at(names, a));
    assert_string_equal(kn_names_at(names, b), "b");
    assert_int_equal(kn_names_add(names, "c", &again), KN_OK);
    assert_int_equal(again, a); /* given back, given out again */
    assert_null(kn_names_at(names, 1000));
    kn_names_destroy(&names);
    kn_names_destroy(&names);
    kn_names_destroy(NULL);
}

static void limits_hold(void **state)
{
    (void)state;
    kn_names *names = NULL;
    uint32_t number;
    char text[KN_NAME_BYTES + 1];
    assert_int_equal(kn_names_create(&names, 0), KN_INVALID);
    assert_int_equal(kn_names_create(&names, 3), KN_OK);
    memset(text, 'x', sizeof text);
    text[KN_NAME_BYTES] = '\0';
    assert_int_equal(kn_names_add(names, text, &number), KN_INVALID);
    assert_false(kn_names_find(names, text, &number));
    text[KN_NAME_BYTES - 1] = '\0';
    assert_int_equal(kn_names_add(names, text, &number), KN_OK);
    assert_int_equal(kn_names_add(names, "", &number), KN_INVALID);
    assert_false(kn_names_find(names, "", &number));
    assert_int_equal(kn_names_add(names, "2", &number), KN_OK);
    assert_int_equal(kn_names_add(names, "3", &number), KN_OK);
    assert_int_equal(kn_names_add(names, "4", &number), KN_UNAVAILABLE);
    assert_int_equal(kn_names_add(names, "2", &number), KN_OK);
    kn_names_remove(names, "2");
    assert_int_equal(kn_names_add(names, "4", &number), KN_OK);
    kn_names_destroy(&names);
}

enum { UNIVERSE = 300 };

/* Random adds and removes beside an array that is obviously right. */
static void agrees_with_a_plain_array(void **state)
{
    (void)state;
    static int64_t numbers[UNIVERSE]; /* -1: not held */
    kn_names *names = NULL;
    size_t held = 0;
    for (int i = 0; i < UNIVERSE; i++) numbers[i] = -1;
    assert_int_equal(kn_names_create(&names, UNIVERSE), KN_OK);
    srand(1);
    for (int round = 0; round < 200000; round++) {
        int i = rand() % UNIVERSE;
        char name[16];
        uint32_t number;
        snprintf(name, sizeof name, "%d", i);
        bool grow = rand() % 100 < (round / 20000 % 2 ? 70 : 30);
        assert_int_equal(kn_names_find(names, name, &number), numbers[i] >= 0);
        if (numbers[i] >= 0) assert_int_equal(number, numbers[i]);
        if (grow && numbers[i] < 0) {
            assert_int_equal(kn_names_add(names, name, &number), KN_OK);
            numbers[i] = number;
            held++;
        } else if (!grow && numbers[i] >= 0) {
            kn_names_remove(names, name);
            numbers[i] = -1;
            held--;
        }
        assert_int_equal(kn_names_count(names), held);
        assert_in_range(kn_names_span(names), held, UNIVERSE);
    }
    for (int i = 0; i < UNIVERSE; i++)
        for (int j = 0; j < i; j++) assert_true(numbers[i] < 0 || numbers[i] != numbers[j]);
    kn_names_destroy(&names);
}

static void no_memory_changes_nothing(void **state)
{
    (void)state;
    for (uint64_t n = 1;; n++) {
        kn_names *names = NULL;
        uint64_t bytes = kn_mem_read().bytes;
        kn_mem_fail_at(n);
        kn_status st = kn_names_create(&names, 100);
        int added = 0;
        char name[16];
        uint32_t number;
        for (; st == KN_OK && added < 40; added += st == KN_OK) {
            snprintf(name, sizeof name, "%d", added);
            st = kn_names_add(names, name, &number);
        }
        kn_mem_fail_at(0);
        if (names) {
            assert_int_equal(kn_names_count(names), added);
            for (int i = 0; i < added; i++) {
                snprintf(name, sizeof name, "%d", i);
                assert_true(kn_names_find(names, name, &number));
            }
        }
        kn_names_destroy(&names);
        assert_int_equal(kn_mem_read().bytes, bytes);
        if (st == KN_OK) break;
        assert_int_equal(st, KN_NOMEM);
        assert_in_range(n, 1, 100);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_keep_their_numbers),
        cmocka_unit_test(limits_hold),
        cmocka_unit_test(agrees_with_a_plain_array),
        cmocka_unit_test(no_memory_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The trie against a linear search over the same pieces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "engine/token_internal.h"

static void check_empty(void **state)
{
    (void)state;
    kn_token_trie trie = {0};
    int32_t id = 7;
    assert_int_equal(kn_token_trie_longest(&trie, "a", 1, &id), 0); /* never built */
    assert_int_equal(kn_token_trie_find(&trie, "a", 1), -1);
    kn_token_piece nothing = {.text = "", .bytes = 0, .id = 3};
    assert_int_equal(kn_token_trie_build(&trie, &nothing, 1), KN_OK);
    assert_int_equal(kn_token_trie_find(&trie, "", 0), -1);
    assert_int_equal(kn_token_trie_longest(&trie, "a", 1, &id), 0);
    assert_int_equal(id, 7);
    kn_token_trie_free(&trie);
}

static void check_random_pieces(void **state)
{
    (void)state;
    enum { COUNT = 400, TRIES = 3000 };
    static char text[COUNT][8];
    kn_token_piece pieces[COUNT], sorted[COUNT];
    uint32_t seed = 1;
    for (int32_t i = 0; i < COUNT; i++) {
        uint32_t bytes = 1 + (uint32_t)i % 6;
        for (uint32_t k = 0; k < bytes; k++) {
            seed = seed * 1664525u + 1013904223u;
            text[i][k] = "\0ab\xff\x7f"[(seed >> 16) % 5]; /* few bytes, so that prefixes and repeats abound */
        }
        sorted[i] = pieces[i] = (kn_token_piece){.text = text[i], .bytes = bytes, .id = i};
    }
    kn_token_trie trie;
    assert_int_equal(kn_token_trie_build(&trie, sorted, COUNT), KN_OK);
    for (int n = 0; n < TRIES; n++) {
        char query[10];
        for (size_t k = 0; k < sizeof query; k++) {
            seed = seed * 1664525u + 1013904223u;
            query[k] = "\0ab\xff\x7f"[(seed >> 16) % 5];
        }
        size_t longest = 0;
        int32_t expected = -1;
        for (int32_t i = 0; i < COUNT; i++) { /* the last of equal pieces counts */
            if (memcmp(query, pieces[i].text, pieces[i].bytes) != 0 || pieces[i].bytes < longest) continue;
            longest = pieces[i].bytes;
            expected = i;
        }
        int32_t id = -1;
        assert_int_equal(kn_token_trie_longest(&trie, query, sizeof query, &id), longest);
        assert_int_equal(id, expected);
        if (longest > 0) assert_int_equal(kn_token_trie_find(&trie, query, longest), expected);
    }
    kn_token_trie_free(&trie);
}

static void check_utf8_round_trip(void **state)
{
    (void)state;
    for (int32_t code = 0; code < 0x110000; code++) {
        if (code >= 0xd800 && code < 0xe000) continue;
        char bytes[4];
        int32_t back = -1;
        size_t count = kn_token_utf8_write(code, bytes);
        assert_int_equal(kn_token_utf8_read(bytes, count, &back), count);
        assert_int_equal(back, code);
        assert_int_equal(kn_token_utf8_read_last(bytes, count, &back), count);
        assert_int_equal(back, code);
        if (count > 1) {
            assert_int_equal(kn_token_utf8_read(bytes, count - 1, &back), count - 1); /* cut short: one replacement */
            assert_int_equal(back, -1);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_empty),
        cmocka_unit_test(check_random_pieces),
        cmocka_unit_test(check_utf8_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

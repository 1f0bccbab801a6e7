/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/mem.h"

enum { PIECES = 8 };

/* One layout, run twice by the tests: counting, then for real. */
static void lay_out(kn_arena *arena, char *pieces[PIECES])
{
    static const size_t bytes[PIECES] = {1, 64, 0, 65, 1000, 3, 128, 7};
    pieces[0] = kn_arena_take(arena, bytes[0]);
    pieces[1] = kn_arena_take(arena, bytes[1]);
    size_t mark = kn_arena_mark(arena);
    kn_arena_take(arena, 5000); /* scratch that only raises the peak */
    kn_arena_reset(arena, mark);
    for (int i = 2; i < PIECES; i++) pieces[i] = kn_arena_take(arena, bytes[i]);
    for (int i = 0; i < PIECES; i++)
        if (pieces[i]) memset(pieces[i], i + 1, bytes[i]);
    for (int i = 0; i < PIECES; i++)
        for (size_t b = 0; pieces[i] && b < bytes[i]; b++) assert_int_equal(pieces[i][b], i + 1);
}

static void counting_equals_taking(void **state)
{
    (void)state;
    char *pieces[PIECES];
    kn_arena counted = kn_arena_view(NULL, 0);
    lay_out(&counted, pieces);
    for (int i = 0; i < PIECES; i++) assert_null(pieces[i]);
    assert_false(kn_arena_overflowed(&counted));
    assert_int_equal(counted.peak, 128 + 5000); /* 1 -> 64, then 64, then the scratch */

    char *memory = kn_alloc(counted.peak);
    assert_non_null(memory);
    kn_arena real = kn_arena_view(memory, counted.peak);
    lay_out(&real, pieces);
    assert_int_equal(real.used, counted.used);
    assert_int_equal(real.peak, counted.peak);
    assert_false(kn_arena_overflowed(&real));
    for (int i = 0; i < PIECES; i++) {
        assert_non_null(pieces[i]);
        assert_int_equal((uintptr_t)pieces[i] % KN_ARENA_ALIGN, 0);
        assert_in_range((uintptr_t)pieces[i], (uintptr_t)memory, (uintptr_t)memory + counted.peak);
    }
    kn_free(memory);
}

static void one_byte_too_small_is_noticed(void **state)
{
    (void)state;
    char *memory = kn_alloc(256);
    assert_non_null(memory);
    kn_arena arena = kn_arena_view(memory, 255);
    assert_ptr_equal(kn_arena_take(&arena, 128), memory);
    assert_null(kn_arena_take(&arena, 128));
    assert_true(kn_arena_overflowed(&arena));
    assert_int_equal(arena.peak, 256); /* what would have been enough */
    kn_arena_reset(&arena, 0);
    assert_true(kn_arena_overflowed(&arena)); /* a reset does not hide it */
    assert_ptr_equal(kn_arena_take(&arena, 255), memory);
    kn_free(memory);
}

static void reset_gives_the_same_bytes_again(void **state)
{
    (void)state;
    char *memory = kn_alloc(1024);
    assert_non_null(memory);
    kn_arena arena = kn_arena_view(memory, 1024);
    kn_arena_take(&arena, 10);
    size_t mark = kn_arena_mark(&arena);
    void *first = kn_arena_take(&arena, 300);
    kn_arena_reset(&arena, mark);
    assert_ptr_equal(kn_arena_take(&arena, 300), first);
    kn_free(memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counting_equals_taking),
        cmocka_unit_test(one_byte_too_small_is_noticed),
        cmocka_unit_test(reset_gives_the_same_bytes_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"

/* Both sides of the limit at which blocks come from mmap (1 MiB), and of the 64-byte granule. */
static const size_t sizes[] = {0, 1, 63, 64, 65, 1000, (1 << 20) - 64, 1 << 20, (1 << 20) + 1, 5 << 20};
enum { SIZES = sizeof sizes / sizeof *sizes };

static int all_equal(const unsigned char *bytes, size_t count, unsigned char value)
{
    for (size_t i = 0; i < count; i++)
        if (bytes[i] != value) return 0;
    return 1;
}

static void blocks_are_zero_aligned_and_apart(void **state)
{
    (void)state;
    for (int pass = 0; pass < 2; pass++) { /* the second pass meets recycled memory */
        unsigned char *blocks[SIZES];
        for (int i = 0; i < SIZES; i++) {
            blocks[i] = kn_alloc(sizes[i]);
            assert_non_null(blocks[i]);
            assert_int_equal((uintptr_t)blocks[i] % 64, 0);
            assert_true(all_equal(blocks[i], sizes[i], 0));
            for (int j = 0; j < i; j++) assert_ptr_not_equal(blocks[i], blocks[j]);
            memset(blocks[i], i + 1, sizes[i]);
        }
        for (int i = 0; i < SIZES; i++) assert_true(all_equal(blocks[i], sizes[i], (unsigned char)(i + 1)));
        for (int i = 0; i < SIZES; i++) kn_free(blocks[i]);
    }
    kn_free(NULL);
}

static void stats_follow_every_call(void **state)
{
    (void)state;
    kn_mem_stats before = kn_mem_read();
    kn_mem_reset_peak();
    void *a = kn_alloc(1000);
    void *b = kn_alloc(2 << 20);
    assert_non_null(a);
    assert_non_null(b);
    kn_mem_stats held = kn_mem_read();
    assert_int_equal(held.allocations - before.allocations, 2);
    assert_int_equal(held.bytes - before.bytes, 1000 + (2 << 20));
    assert_int_equal(held.peak_bytes, held.bytes);
    kn_free(b);
    kn_mem_stats after = kn_mem_read();
    assert_int_equal(after.bytes - before.bytes, 1000);
    assert_int_equal(after.peak_bytes, held.peak_bytes);
    kn_mem_reset_peak();
    assert_int_equal(kn_mem_read().peak_bytes, after.bytes);
    kn_free(a);
    assert_int_equal(kn_mem_read().bytes, before.bytes);
}

static void realloc_keeps_the_old_bytes(void **state)
{
    (void)state;
    uint64_t before = kn_mem_read().bytes;
    unsigned char *block = kn_realloc(NULL, 10);
    assert_non_null(block);
    memset(block, 7, 10);
    static const size_t steps[] = {100, (3 << 20) + 5, 40, 10};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        block = kn_realloc(block, steps[i]);
        assert_non_null(block);
        assert_int_equal((uintptr_t)block % 64, 0);
        assert_true(all_equal(block, 10, 7));
        assert_true(all_equal(block + 10, steps[i] - 10, 0));
        assert_int_equal(kn_mem_read().bytes - before, steps[i]);
    }
    block = kn_realloc(block, 4);
    assert_true(all_equal(block, 4, 7));

    kn_mem_fail_at(1);
    assert_null(kn_realloc(block, 4096));
    assert_true(all_equal(block, 4, 7)); /* still ours */
    kn_free(block);
    assert_int_equal(kn_mem_read().bytes, before);
}

static void impossible_sizes_are_refused_with_their_number(void **state)
{
    (void)state;
    uint64_t before = kn_mem_read().bytes;
    char expected[80];
    assert_null(kn_alloc(SIZE_MAX));
    snprintf(expected, sizeof expected, "out of memory asking for %zu bytes", SIZE_MAX);
    assert_string_equal(kn_fail_message(), expected);
    assert_null(kn_alloc(SIZE_MAX / 2 - 4096)); /* overflows nothing, but no address space has it */
    assert_null(kn_alloc_array(SIZE_MAX / 4, 5));
    assert_non_null(strstr(kn_fail_message(), "x 5 bytes"));
    assert_int_equal(kn_mem_read().bytes, before);

    int *numbers = kn_alloc_array(100, sizeof *numbers);
    assert_non_null(numbers);
    assert_int_equal(kn_mem_read().bytes - before, 100 * sizeof *numbers);
    kn_free(numbers);
    void *none = kn_alloc_array(10, 0);
    assert_non_null(none);
    kn_free(none);
}

static void the_nth_allocation_fails_once(void **state)
{
    (void)state;
    for (uint64_t n = 1; n <= 4; n++) {
        kn_mem_fail_at(n);
        for (uint64_t call = 1; call <= 6; call++) {
            void *block = kn_alloc(77);
            if (call == n) {
                assert_null(block);
                assert_string_equal(kn_fail_message(), "out of memory asking for 77 bytes");
            } else {
                assert_non_null(block);
            }
            kn_free(block);
        }
    }
    kn_mem_fail_at(2);
    kn_mem_fail_at(0);
    for (int call = 0; call < 3; call++) {
        void *block = kn_alloc(1);
        assert_non_null(block);
        kn_free(block);
    }
}

static void strings_are_copied_and_formatted(void **state)
{
    (void)state;
    uint64_t before = kn_mem_read().bytes;
    char *whole = kn_strdup("latent");
    char *part = kn_strndup("latent", 3);
    char *longer = kn_strndup("ab", 100);
    char *text = kn_format("%s/%d", "shard", 7);
    assert_string_equal(whole, "latent");
    assert_string_equal(part, "lat");
    assert_string_equal(longer, "ab");
    assert_string_equal(text, "shard/7");
    kn_free(whole);
    kn_free(part);
    kn_free(longer);
    kn_free(text);

    kn_mem_fail_at(1);
    assert_null(kn_strdup("x"));
    kn_mem_fail_at(1);
    assert_null(kn_format("%d", 1));
    assert_int_equal(kn_mem_read().bytes, before);
}

static void *churn(void *argument)
{
    (void)argument;
    for (int i = 0; i < 500; i++) {
        unsigned char *block = kn_alloc((size_t)(i % 50) * 100 + 1);
        if (!block) return (void *)1;
        block[0] = (unsigned char)i;
        kn_free(block);
    }
    return NULL;
}

static void threads_do_not_lose_counts(void **state)
{
    (void)state;
    kn_mem_stats before = kn_mem_read();
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, churn, NULL), 0);
    for (int i = 0; i < 4; i++) {
        void *failed = NULL;
        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
    kn_mem_stats after = kn_mem_read();
    assert_int_equal(after.bytes, before.bytes);
    assert_int_equal(after.allocations - before.allocations, 4 * 500);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_zero_aligned_and_apart),
        cmocka_unit_test(stats_follow_every_call),
        cmocka_unit_test(realloc_keeps_the_old_bytes),
        cmocka_unit_test(impossible_sizes_are_refused_with_their_number),
        cmocka_unit_test(the_nth_allocation_fails_once),
        cmocka_unit_test(strings_are_copied_and_formatted),
        cmocka_unit_test(threads_do_not_lose_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

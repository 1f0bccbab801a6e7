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

#include "base/status.h"

static void a_failure_keeps_its_status_and_text(void **state)
{
    (void)state;
    assert_int_equal(kn_fail(KN_CORRUPT, "%s: tensor %s ends at %d", "a.safetensors", "w", 12), KN_CORRUPT);
    assert_string_equal(kn_fail_message(), "a.safetensors: tensor w ends at 12");
    assert_int_equal(kn_fail(KN_IO, "disk full"), KN_IO);
    assert_string_equal(kn_fail_message(), "disk full");
}

static void context_goes_in_front(void **state)
{
    (void)state;
    kn_fail(KN_NOT_FOUND, "no tensor \"w\"");
    assert_int_equal(kn_fail_context(KN_NOT_FOUND, "block %d", 3), KN_NOT_FOUND);
    assert_int_equal(kn_fail_context(KN_NOT_FOUND, "transformer"), KN_NOT_FOUND);
    assert_string_equal(kn_fail_message(), "transformer: block 3: no tensor \"w\"");
}

static void long_texts_are_cut_and_end(void **state)
{
    (void)state;
    static char text[5000];
    memset(text, 'x', sizeof text - 1);
    kn_fail(KN_IO, "%s", text);
    size_t whole = strlen(kn_fail_message());
    assert_in_range(whole, 500, sizeof text - 2);
    kn_fail(KN_IO, "tail");
    kn_fail_context(KN_IO, "%s", text);
    assert_int_equal(strlen(kn_fail_message()), whole);
    kn_fail(KN_IO, "%s", text);
    kn_fail_context(KN_IO, "file");
    assert_memory_equal(kn_fail_message(), "file: xxx", 9);
    assert_int_equal(strlen(kn_fail_message()), whole);
}

static void *fail_elsewhere(void *argument)
{
    (void)argument;
    kn_fail(KN_IO, "from the other thread");
    return NULL;
}

static void each_thread_has_its_own_message(void **state)
{
    (void)state;
    kn_fail(KN_INVALID, "from this thread");
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, NULL), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_string_equal(kn_fail_message(), "from this thread");
}

static kn_status tries(kn_status inner, int *cleaned)
{
    kn_status st = KN_OK;
    KN_TRY(KN_OK);
    KN_TRY(inner);
    return KN_OK;

fail:
    *cleaned = 1;
    return st;
}

static void try_leaves_through_the_label(void **state)
{
    (void)state;
    int cleaned = 0;
    assert_int_equal(tries(KN_OK, &cleaned), KN_OK);
    assert_int_equal(cleaned, 0);
    assert_int_equal(tries(KN_NOMEM, &cleaned), KN_NOMEM);
    assert_int_equal(cleaned, 1);
}

static kn_status takes_positive(int count)
{
    KN_REQUIRE(count > 0);
    return KN_OK;
}

static void require_names_the_expression(void **state)
{
    (void)state;
    assert_int_equal(takes_positive(1), KN_OK);
    assert_int_equal(takes_positive(0), KN_INVALID);
    assert_string_equal(kn_fail_message(), "takes_positive: requires count > 0");
}

/* The published exit codes (docs/CLI.md) are part of the contract. */
static void exit_codes_are_those_of_sysexits(void **state)
{
    (void)state;
    static const struct {
        kn_status status;
        int code;
        const char *name;
    } rows[] = {
        {KN_OK, 0, "ok"},
        {KN_AGAIN, 70, "again"},
        {KN_CANCELLED, 130, "cancelled"},
        {KN_INVALID, 64, "invalid"},
        {KN_NOT_FOUND, 66, "not_found"},
        {KN_UNSUPPORTED, 65, "unsupported"},
        {KN_CORRUPT, 65, "corrupt"},
        {KN_NOMEM, 71, "no_memory"},
        {KN_IO, 74, "io"},
        {KN_UNAVAILABLE, 69, "unavailable"},
        {KN_FATAL, 70, "fatal"},
        {KN_DEVICE_LOST, 69, "device_lost"},
        {KN_BUG, 70, "bug"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_equal(kn_status_exit_code(rows[i].status), rows[i].code);
        assert_string_equal(kn_status_name(rows[i].status), rows[i].name);
    }
    assert_string_equal(kn_status_name((kn_status)-5), "unknown");
    assert_int_equal(kn_status_exit_code((kn_status)-5), 70);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_failure_keeps_its_status_and_text), cmocka_unit_test(context_goes_in_front),
        cmocka_unit_test(long_texts_are_cut_and_end),          cmocka_unit_test(each_thread_has_its_own_message),
        cmocka_unit_test(try_leaves_through_the_label),        cmocka_unit_test(require_names_the_expression),
        cmocka_unit_test(exit_codes_are_those_of_sysexits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

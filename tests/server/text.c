/* SPDX-License-Identifier: Apache-2.0
 *
 * Bounded texts: exact at the limit, whole or nothing above it, deaf after the first failure. */
#include "tests/server/protocol.h"

#include "server/text.h"

static void fixed_storage(void **state)
{
    (void)state;
    char storage[6] = "?????";
    kn_text text = kn_text_fixed(storage, sizeof storage);
    assert_string_equal(storage, "");
    kn_text_string(&text, "abc");
    kn_text_format(&text, "%d", 12);
    ok(kn_text_status(&text));
    assert_string_equal(storage, "abc12"); /* five bytes and the NUL: full */
    assert_int_equal(text.count, 5);
    kn_text_append(&text, "", 0);
    ok(kn_text_status(&text));
    kn_text_append(&text, "x", 1);
    assert_int_equal(kn_text_status(&text), KN_INVALID);
    assert_string_equal(storage, "abc12");
    kn_text_clear(&text);
    kn_text_format(&text, "%s", "123456"); /* does not fit: nothing of it is written */
    assert_int_equal(kn_text_status(&text), KN_INVALID);
    kn_text_string(&text, "a");
    assert_string_equal(storage, "");
    kn_text nothing = kn_text_fixed(NULL, 0);
    kn_text_string(&nothing, "");
    assert_int_equal(kn_text_status(&nothing), KN_INVALID);
}

static void growing_to_the_limit(void **state)
{
    (void)state;
    kn_text text = kn_text_growing(10000);
    for (int i = 0; i < 10000; i++) kn_text_append(&text, "x", 1);
    ok(kn_text_status(&text));
    assert_int_equal(text.count, 10000);
    kn_text_string(&text, "y");
    assert_int_equal(kn_text_status(&text), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "10000"));
    assert_int_equal(strlen(text.bytes), 10000);
    kn_text_release(&text);
    kn_text_string(&text, "again"); /* a released text is an empty one */
    char *taken = kn_text_take(&text);
    assert_string_equal(taken, "again");
    kn_free(taken);
    taken = kn_text_take(&text);
    assert_string_equal(taken, "");
    kn_free(taken);
    kn_text_release(&text);
    kn_text_release(NULL);
}

static void without_memory(void **state)
{
    (void)state;
    kn_text text = kn_text_growing(4096);
    kn_text_string(&text, "kept");
    kn_mem_fail_at(1);
    for (int i = 0; i < 2000; i++) kn_text_append(&text, "x", 1);
    kn_mem_fail_at(0);
    assert_int_equal(kn_text_status(&text), KN_NOMEM);
    assert_int_equal(strncmp(text.bytes, "kept", 4), 0);
    kn_text_release(&text);
}

static void characters(void **state)
{
    (void)state;
    const struct {
        const char *text;
        size_t count;
        ptrdiff_t characters;
    } cases[] = {
        {"", 0, 0},
        {"abc", 3, 3},
        {"\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80", 9, 3},
        {"a\0b", 3, -1},
        {"\xc0\x80", 2, -1},         /* overlong */
        {"\xe0\x80\xaf", 3, -1},     /* overlong */
        {"\xed\xa0\x80", 3, -1},     /* surrogate */
        {"\xf4\x90\x80\x80", 4, -1}, /* above U+10FFFF */
        {"\xc3", 1, -1},
        {"\xff", 1, -1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(kn_text_characters(cases[i].text, cases[i].count), cases[i].characters);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fixed_storage),
        cmocka_unit_test(growing_to_the_limit),
        cmocka_unit_test(without_memory),
        cmocka_unit_test(characters),
    };
    return cmocka_run_group_tests_name("text", tests, NULL, nothing_left);
}

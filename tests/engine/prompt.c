/* SPDX-License-Identifier: Apache-2.0
 *
 * Prompt cleaning against Python's html.unescape and re (tests/golden). */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/mem.h"
#include "engine/token.h"

static void expect_clean(const char *text, const char *expected)
{
    char *made = NULL;
    if (kn_prompt_clean(&made, text) != KN_OK) fail_msg("\"%s\": %s", text, kn_fail_message());
    assert_string_equal(made, expected);
    kn_free(made);
}

static void check_against_python(void **state)
{
    (void)state;
    json_error_t error;
    json_t *root = json_load_file(KN_SOURCE_DIR "/tests/golden/tokenizer_cases.json", JSON_ALLOW_NUL, &error);
    if (!root) fail_msg("%s", error.text);
    const json_t *list = json_object_get(root, "prompts");
    assert_true(json_array_size(list) > 100);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *pair = json_array_get(list, i);
        expect_clean(json_string_value(json_array_get(pair, 0)), json_string_value(json_array_get(pair, 1)));
    }
    json_decref(root);
}

static void check_by_hand(void **state)
{
    (void)state;
    expect_clean("  a &amp;amp; b \n\t c ", "a & b c");
    expect_clean("&notit;", "\xc2\xac"
                            "it;");                           /* the longest start that is a name */
    expect_clean("&amp;lt;b&gt;", "<b>");                     /* twice */
    expect_clean("&amp;amp;lt;", "&lt;");                     /* and not a third time */
    expect_clean("&#x80;&#150;", "\xe2\x82\xac\xe2\x80\x93"); /* windows-1252, as browsers read it */
    expect_clean("&#xd800;&#x110000;", "\xef\xbf\xbd\xef\xbf\xbd");
    expect_clean("a&#1;b&#127;c", "abc");
    expect_clean("&nbsp;a&emsp;&#10;b&nbsp;", "a b"); /* references may become white space */
    expect_clean("a\xff"
                 "b",
                 "a\xef\xbf\xbd"
                 "b");
}

static void check_limits(void **state)
{
    (void)state;
    size_t most = KN_TEXT_BYTES_MAX;
    char *text = kn_alloc(most + 2);
    char *made = NULL;
    memset(text, '&', most);
    assert_int_equal(kn_prompt_clean(&made, text), KN_OK);
    assert_int_equal(strlen(made), most);
    kn_free(made);
    text[most] = '&';
    assert_int_equal(kn_prompt_clean(&made, text), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "prompt of 1048577 bytes"));
    assert_null(made);
    kn_free(text);
}

static void check_allocation_failures(void **state)
{
    (void)state;
    uint64_t held = kn_mem_read().bytes;
    kn_status st = KN_NOMEM;
    for (uint64_t n = 1; st != KN_OK; n++) {
        char *made = NULL;
        kn_mem_fail_at(n);
        st = kn_prompt_clean(&made, " a &lt; b ");
        kn_mem_fail_at(0);
        assert_true(st == KN_OK || st == KN_NOMEM);
        assert_true((st == KN_OK) == (made != NULL));
        kn_free(made);
        assert_int_equal(kn_mem_read().bytes, held);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_against_python),
        cmocka_unit_test(check_by_hand),
        cmocka_unit_test(check_limits),
        cmocka_unit_test(check_allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

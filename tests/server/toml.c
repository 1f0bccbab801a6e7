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
#include "server/text.h"
#include "server/toml.h"

/* Writes what was read in one plain form. */
static kn_status note(void *context, const kn_toml_entry *e)
{
    kn_text *out = context;
    kn_text_format(out, "%d %s.%s=", e->line, e->section, e->key);
    switch (e->kind) {
    case KN_TOML_STRING: kn_text_format(out, "s<%s>", e->text); break;
    case KN_TOML_INTEGER: kn_text_format(out, "%lld", (long long)e->integer); break;
    case KN_TOML_BOOLEAN: kn_text_string(out, e->boolean ? "true" : "false"); break;
    case KN_TOML_LIST:
        for (size_t i = 0; i < e->item_count; i++) kn_text_format(out, "[%s]", e->items[i]);
        break;
    }
    kn_text_string(out, ";");
    return KN_OK;
}

static kn_status parse(const char *text, size_t bytes, char *out, size_t out_bytes)
{
    kn_text notes = kn_text_fixed(out, out_bytes);
    /* In memory of its own, so that reading past the end is seen. */
    char *copy = kn_alloc(bytes);
    memcpy(copy, text, bytes);
    kn_status st = kn_toml_parse(copy, bytes, note, &notes);
    kn_free(copy);
    return st;
}

static void expect(const char *text, const char *notes)
{
    static char out[8192];
    kn_status st = parse(text, strlen(text), out, sizeof out);
    if (st != KN_OK) fail_msg("%s: %s", text, kn_fail_message());
    assert_string_equal(out, notes);
}

static void refuse(const char *text, const char *why)
{
    static char out[8192];
    if (parse(text, strlen(text), out, sizeof out) != KN_INVALID) fail_msg("%s was understood", text);
    if (!strstr(kn_fail_message(), why)) fail_msg("%s: %s, not: %s", text, kn_fail_message(), why);
}

static void what_is_understood(void **state)
{
    (void)state;
    expect("", "");
    expect("\n\r\n  \t# c\xc3\xb6mment\t!\n#", "");
    expect("a=1", "1 .a=1;");
    expect("a = \"x\" # c\r\nb-B_9\t=\t'y\\n'\r\n", "1 .a=s<x>;2 .b-B_9=s<y\\n>;");
    expect("a = \"\\\"\\\\\\n\\t\\r\\b\\f\\u00e9\\U0001F600\"", "1 .a=s<\"\\\n\t\r\b\f\xc3\xa9\xf0\x9f\x98\x80>;");
    expect("a = \"\"\nb=''", "1 .a=s<>;2 .b=s<>;");
    expect("a = 0\nb = -0\nc = +12\nd = 1_024\ne = -9223372036854775808\nf = 9223372036854775807",
           "1 .a=0;2 .b=0;3 .c=12;4 .d=1024;5 .e=-9223372036854775808;6 .f=9223372036854775807;");
    expect("a = true\nb = false", "1 .a=true;2 .b=false;");
    expect("a = []\nb = [ 'x' ]\nc = [ # one\n 'x' , # two\n\n \"y\"\n,\n]\nd = 1",
           "1 .a=;2 .b=[x];3 .c=[x][y];9 .d=1;");
    expect("a=1\n[one] # c\na=2\n[ 'two words' ]\n\"quoted key\" = 3\n1 = 4",
           "1 .a=1;3 one.a=2;5 two words.quoted key=3;6 two words.1=4;");
}

static void what_is_refused(void **state)
{
    (void)state;
    refuse("a", "line 1: behind the key stands =");
    refuse("\n\na 1", "line 3: behind");
    refuse("= 1", "a key was expected");
    refuse("a =", "a value is");
    refuse("a = yes", "a value is");
    refuse("a = 1 2", "something stands behind");
    refuse("a = 1, b = 2", "something stands behind");
    refuse("a = 1 \r b = 2", "something stands behind");
    refuse("a = \"x\" y", "something stands behind");
    refuse("a = 1.5", "whole and decimal");
    refuse("a = 1e5", "whole and decimal");
    refuse("a = 0x10", "whole and decimal");
    refuse("a = 2026-11-22", "whole and decimal");
    refuse("a = 10:11", "whole and decimal");
    refuse("a = 1__0", "whole and decimal");
    refuse("a = 1_", "whole and decimal");
    refuse("a = _1", "a value is");
    refuse("a = 01", "a value is");
    refuse("a = -", "a value is");
    refuse("a = 9223372036854775808", "fit 64 bits");
    refuse("a = -9223372036854775809", "fit 64 bits");
    refuse("a = truex", "a value is");
    refuse("a = True", "a value is");
    refuse("a = inf", "a value is");
    refuse("a = \"x", "does not end on its line");
    refuse("a = \"x\n\"", "does not end on its line");
    refuse("a = \"\"\"x\"\"\"", "several lines");
    refuse("a = '''x'''", "several lines");
    refuse("a = \"\\x41\"", "unknown escape");
    refuse("a = \"\\", "unknown escape");
    refuse("a = \"\\u12\"", "4 hexadecimal");
    refuse("a = \"\\U0000000", "8 hexadecimal");
    refuse("a = \"\\u0000\"", "no character");
    refuse("a = \"\\ud800\"", "no character");
    refuse("a = \"\\U00110000\"", "no character");
    refuse("a = \"\x01\"", "control character in a string");
    refuse("# \x1b", "control character in a comment");
    refuse("a = [1]", "a list holds");
    refuse("a = ['x' 'y']", "a comma");
    refuse("a = ['x'", "a comma");
    refuse("a = ['x',,]", "a list holds");
    refuse("a = [['x']]", "a list holds");
    refuse("a = [\n'x'\n\n", "line 4: between");
    refuse("a = {b = 1}", "inline tables");
    refuse("a.b = 1", "dotted keys");
    refuse("[a.b]", "dotted keys");
    refuse("[[a]]", "arrays of tables");
    refuse("[]", "a key was expected");
    refuse("['']", "needs a name");
    refuse("[a", "ends with ]");
    refuse("[a] b = 1", "something stands behind");
    refuse("a = 1\na = 2", "line 2: key a is there twice");
    refuse("\"a\" = 1\na = 2", "key a is there twice");
    refuse("[a]\n[b]\n[a]", "line 3: section a is there twice");
    refuse("a = 1\n\n# \xff", "line 3: not UTF-8");
    refuse("a = '\xc0\x80'", "not UTF-8");
    refuse("a = '\xed\xa0\x80'", "not UTF-8");
    char out[64];
    assert_int_equal(parse("a\0=1", 4, out, sizeof out), KN_INVALID);
    assert_int_equal(parse("a='\xe2\x82", 5, out, sizeof out), KN_INVALID);
}

/* Every prefix and every changed byte of a good document: an answer, and nothing read out of bounds. */
static void damaged_documents_are_answered(void **state)
{
    (void)state;
    static const char good[] =
        "# c\nmodels = \"/srv/\\u00e9\"\nlisten = ['a', # x\n \"b\",\n]\nn = -1_0\nk = true\n[aliases]\n"
        "\"sora-2\" = 'demo'\n";
    static char out[8192];
    char text[sizeof good];
    for (size_t bytes = 0; bytes < sizeof good; bytes++) parse(good, bytes, out, sizeof out);
    for (size_t i = 0; i + 1 < sizeof good; i++) {
        for (int c = 0; c < 256; c++) {
            memcpy(text, good, sizeof good);
            text[i] = (char)c;
            kn_status st = parse(text, sizeof good - 1, out, sizeof out);
            assert_true(st == KN_OK || st == KN_INVALID);
            if (st == KN_INVALID) assert_memory_equal(kn_fail_message(), "line ", 5);
        }
    }
}

/* A document of one repeated piece, `count` times. */
static kn_status repeated(const char *before, const char *piece, size_t count, const char *after)
{
    static char out[1 << 16];
    size_t bytes = strlen(piece), start = strlen(before), end = strlen(after);
    char *text = kn_alloc(start + count * bytes + end);
    memcpy(text, before, start);
    for (size_t i = 0; i < count; i++) memcpy(text + start + i * bytes, piece, bytes);
    memcpy(text + start + count * bytes, after, end);
    kn_status st = parse(text, start + count * bytes + end, out, sizeof out);
    kn_free(text);
    return st;
}

static void limits_hold(void **state)
{
    (void)state;
    assert_int_equal(repeated("", "\n", KN_TOML_BYTES, ""), KN_OK);
    assert_int_equal(repeated("", "\n", KN_TOML_BYTES + 1, ""), KN_INVALID);
    assert_int_equal(repeated("", "k", KN_TOML_KEY_BYTES - 1, "=1"), KN_OK);
    assert_int_equal(repeated("", "k", KN_TOML_KEY_BYTES, "=1"), KN_INVALID);
    assert_int_equal(repeated("\"", "k", KN_TOML_KEY_BYTES - 1, "\"=1"), KN_OK);
    assert_int_equal(repeated("\"", "k", KN_TOML_KEY_BYTES, "\"=1"), KN_INVALID);
    assert_int_equal(repeated("k='", "s", KN_TOML_STRING_BYTES - 1, "'"), KN_OK);
    assert_int_equal(repeated("k='", "s", KN_TOML_STRING_BYTES, "'"), KN_INVALID);
    assert_int_equal(repeated("k=[", "'s',", KN_TOML_ITEMS, "]"), KN_OK);
    assert_int_equal(repeated("k=[", "'s',", KN_TOML_ITEMS + 1, "]"), KN_INVALID);
    for (size_t count = KN_TOML_KEYS; count <= KN_TOML_KEYS + 1; count++) {
        kn_text text = kn_text_growing(1 << 20);
        for (size_t i = 0; i < count; i++) kn_text_format(&text, "k%zu=1\n", i);
        static char out[1 << 16];
        assert_int_equal(parse(text.bytes, text.count, out, sizeof out), count == KN_TOML_KEYS ? KN_OK : KN_INVALID);
        kn_text_clear(&text);
        for (size_t i = 0; i < count; i++) kn_text_format(&text, "[s%zu]\n", i);
        assert_int_equal(parse(text.bytes, text.count, out, sizeof out), count == KN_TOML_KEYS ? KN_OK : KN_INVALID);
        kn_text_release(&text);
    }
}

static kn_status object(void *context, const kn_toml_entry *e)
{
    (void)context;
    return e->line == 3 ? kn_fail(KN_UNSUPPORTED, "no %s", e->key) : KN_OK;
}

static void a_visitors_refusal_has_the_line(void **state)
{
    (void)state;
    static const char text[] = "a=1\nb=1\nc=['x',\n'y']\nd=4";
    assert_int_equal(kn_toml_parse(text, sizeof text - 1, object, NULL), KN_UNSUPPORTED);
    assert_string_equal(kn_fail_message(), "line 3: no c");
}

static void no_memory_is_reported(void **state)
{
    (void)state;
    static const char text[] =
        "a='x'\nb=['1','2']\n[c]\nd=\"a long enough string to make the buffer grow "
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"\n";
    for (uint64_t n = 1;; n++) {
        static char out[8192];
        kn_text notes = kn_text_fixed(out, sizeof out);
        uint64_t bytes = kn_mem_read().bytes;
        kn_mem_fail_at(n);
        kn_status st = kn_toml_parse(text, sizeof text - 1, note, &notes);
        kn_mem_fail_at(0);
        assert_int_equal(kn_mem_read().bytes, bytes);
        if (st == KN_OK) break;
        assert_int_equal(st, KN_NOMEM);
        assert_in_range(n, 1, 50);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_understood),
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(damaged_documents_are_answered),
        cmocka_unit_test(limits_hold),
        cmocka_unit_test(a_visitors_refusal_has_the_line),
        cmocka_unit_test(no_memory_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

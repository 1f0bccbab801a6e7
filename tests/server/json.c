/* SPDX-License-Identifier: Apache-2.0
 *
 * Bodies of strangers: every limit at n and n + 1, everything that is not one object of finite UTF-8 JSON refused.
 * The writer: exact text, valid whatever it is given. */
#include "tests/server/protocol.h"

#include <math.h>

static kn_api_error error;

static kn_status parse(const char *text, size_t count)
{
    json_t *root = NULL;
    kn_status st = kn_json_body_parse(&root, text, count, NULL, &error);
    if (st == KN_OK) assert_true(json_is_object(root));
    json_decref(root);
    return st;
}

static void refused_texts(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        " ",
        "[]",
        "1",
        "null",
        "\"a\"",
        "{",
        "{}x",
        "{} {}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{'a':1}",
        "{a:1}",
        "{\"a\":NaN}",
        "{\"a\":Infinity}",
        "{\"a\":-Infinity}",
        "{\"a\":1e400}",
        "{\"a\":01}",
        "{\"a\":+1}",
        "{\"a\":.5}",
        "{\"a\":9223372036854775808}",
        "{\"a\":1,\"a\":2}",
        "{\"b\":{\"a\":1,\"a\":1}}",
        "{\"a\":\"\\u0000\"}",
        "{\"a\\u0000\":1}",
        "{\"a\":\"\\ud800\"}",
        "{\"a\":\"\\udc00\\ud800\"}",
        "{\"a\":\"\xc0\x80\"}",
        "{\"a\":\"\xed\xa0\x80\"}",
        "{\"a\":\"\xff\"}",
        "{\"\xff\":1}",
        "{\"a\":\"\n\"}",
        "\xef\xbb\xbf{}",
        "// c\n{}",
        "{\"a\":tru}",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        kn_status st = parse(texts[i], strlen(texts[i]));
        if (st == KN_OK) fail_msg("accepted: %s", texts[i]);
        expect_error(st, &error, 400, "invalid_body", NULL);
    }
    expect_error(parse("{}\0", 3), &error, 400, "invalid_body", NULL);
    expect_error(parse("{\"a\":true\0}", 11), &error, 400, "invalid_body", NULL);
    expect_error(parse("{\"a\":1\0}", 8), &error, 400, "invalid_body", NULL);
    json_t *root;
    expect_error(kn_json_body_parse(&root, "[", 1, "metadata", &error), &error, 400, "invalid_value", "metadata");
}

static void truncated_everywhere(void **state)
{
    (void)state;
    const char *text = "{\"prompt\":\"a \\\"red\\u00e9\\ud83d\\ude00 ball\",\"n\":[1,-2.5e3,true,null,{\"x\":{}}]}";
    ok(parse(text, strlen(text)));
    for (size_t count = 0; count < strlen(text); count++)
        expect_error(parse(text, count), &error, 400, "invalid_body", NULL);
}

static void depth(void **state)
{
    (void)state;
    for (int deep = KN_BODY_JSON_DEPTH_MAX; deep <= 100000; deep += 99968 - KN_BODY_JSON_DEPTH_MAX) {
        for (int extra = 0; extra <= 1; extra++) {
            size_t arrays = (size_t)(deep - 1 + extra);
            char *open = repeated("[", arrays), *close = repeated("]", arrays);
            char *text = kn_format("{\"a\":%s%s}", open, close);
            kn_status st = parse(text, strlen(text));
            if (deep == KN_BODY_JSON_DEPTH_MAX && !extra)
                ok(st);
            else
                expect_error(st, &error, 400, "invalid_body", NULL);
            kn_free(text);
            kn_free(open);
            kn_free(close);
        }
    }
}

/* An object of `count` keys. */
static char *with_keys(size_t count)
{
    kn_text text = kn_text_growing(1 << 20);
    kn_text_string(&text, "{");
    for (size_t i = 0; i < count; i++) kn_text_format(&text, "%s\"k%zu\":0", i ? "," : "", i);
    kn_text_string(&text, "}");
    return kn_text_take(&text);
}

static void keys_and_values(void **state)
{
    (void)state;
    char *keys = with_keys(KN_BODY_JSON_KEYS_MAX);
    ok(parse(keys, strlen(keys)));
    kn_free(keys);
    keys = with_keys(KN_BODY_JSON_KEYS_MAX + 1);
    expect_error(parse(keys, strlen(keys)), &error, 400, "invalid_body", NULL);
    kn_free(keys);
    char *inner = with_keys(KN_BODY_JSON_KEYS_MAX); /* keys of all objects count together */
    char *nested = kn_format("{\"a\":[%s]}", inner);
    expect_error(parse(nested, strlen(nested)), &error, 400, "invalid_body", NULL);
    kn_free(nested);
    kn_free(inner);
    for (int extra = 0; extra <= 1; extra++) { /* the object, the array, and the zeros with one more than the commas */
        char *zeros = repeated("0,", (size_t)KN_BODY_JSON_VALUES_MAX - 3 + (size_t)extra);
        char *text = kn_format("{\"a\":[%s0]}", zeros);
        kn_status st = parse(text, strlen(text));
        if (extra)
            expect_error(st, &error, 400, "invalid_body", NULL);
        else
            ok(st);
        kn_free(text);
        kn_free(zeros);
    }
    assert_int_equal(kn_json_count_keys(NULL), 0);
}

static void bytes(void **state)
{
    (void)state;
    char *text = repeated(" ", KN_BODY_JSON_BYTES_MAX + 1);
    text[0] = '{';
    text[1] = '}';
    ok(parse(text, KN_BODY_JSON_BYTES_MAX));
    expect_error(parse(text, KN_BODY_JSON_BYTES_MAX + 1), &error, 413, "payload_too_large", NULL);
    kn_free(text);
}

static void memory_stays_near_the_body(void **state)
{
    (void)state;
    char *ones = repeated("1,", (KN_BODY_JSON_BYTES_MAX - 16) / 2); /* half a million numbers, if they were built */
    char *text = kn_format("{\"a\":[%s1]}", ones);
    kn_mem_reset_peak();
    uint64_t before = kn_mem_read().bytes;
    expect_error(parse(text, strlen(text)), &error, 400, "invalid_body", NULL);
    assert_true(kn_mem_read().peak_bytes - before < 2 * strlen(text));
    kn_free(text);
    kn_free(ones);
}

static void parse_without_memory(void **state)
{
    (void)state;
    const char *text = "{\"a\":[1,2.5,\"text\"],\"b\":{\"c\":null}}";
    kn_status st = KN_NOMEM;
    int refused = 0;
    for (uint64_t n = 1; st != KN_OK; n++) {
        kn_mem_fail_at(n);
        st = parse(text, strlen(text));
        kn_mem_fail_at(0);
        if (st == KN_OK) break;
        assert_int_equal(st, KN_NOMEM);
        assert_int_equal(error.status, 503);
        refused++;
    }
    assert_true(refused > 5);
}

/* ---- writing ---- */

static void structure(void **state)
{
    (void)state;
    char storage[256];
    kn_text text = kn_text_fixed(storage, sizeof storage);
    kn_json_writer w = kn_json_writer_on(&text);
    kn_json_write_object(&w);
    kn_json_write_key(&w, "a");
    kn_json_write_array(&w);
    kn_json_write_int(&w, INT64_MIN);
    kn_json_write_uint(&w, UINT64_MAX);
    kn_json_write_array(&w);
    kn_json_write_array_end(&w);
    kn_json_write_object(&w);
    kn_json_write_object_end(&w);
    kn_json_write_array_end(&w);
    kn_json_write_key(&w, "b");
    kn_json_write_bool(&w, true);
    kn_json_write_key(&w, "c");
    kn_json_write_raw(&w, "{\"x\":1}");
    kn_json_write_key(&w, "d");
    kn_json_write_raw(&w, NULL);
    kn_json_write_key(&w, "e");
    kn_json_write_string(&w, NULL);
    kn_json_write_object_end(&w);
    ok(kn_text_status(&text));
    assert_string_equal(storage, "{\"a\":[-9223372036854775808,18446744073709551615,[],{}],\"b\":true,\"c\":{\"x\":1},"
                                 "\"d\":null,\"e\":null}");
}

static void strings(void **state)
{
    (void)state;
    char storage[256];
    kn_text text = kn_text_fixed(storage, sizeof storage);
    kn_json_writer w = kn_json_writer_on(&text);
    kn_json_write_array(&w);
    kn_json_write_string(&w, "\"\\/\b\n\r\t\x01\x1f\x7f");
    kn_json_write_string(&w, "\xc3\xa9\xf0\x9f\x98\x80");
    kn_json_write_bytes(&w, "a\0\xff\xed\xa0\x80z\xc3", 8);
    kn_json_write_array_end(&w);
    ok(kn_text_status(&text));
    assert_string_equal(storage, "[\"\\\"\\\\/\\u0008\\n\\r\\t\\u0001\\u001f\x7f\",\"\xc3\xa9\xf0\x9f\x98\x80\","
                                 "\"a\\u0000\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdz\xef\xbf\xbd\"]");
    json_t *back = json_loads(storage, 0, NULL);
    assert_null(back); /* jansson refuses the NUL of the third string, and nothing else: */
    back = json_loads(storage, JSON_ALLOW_NUL, NULL);
    assert_non_null(back);
    json_decref(back);
}

static void numbers(void **state)
{
    (void)state;
    char storage[256];
    kn_text text = kn_text_fixed(storage, sizeof storage);
    kn_json_writer w = kn_json_writer_on(&text);
    kn_json_write_array(&w);
    const double values[] = {0.1, 16, -0.0, 1e300, 5e-324, 1.0 / 3, 23.976, NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) kn_json_write_double(&w, values[i]);
    kn_json_write_array_end(&w);
    assert_string_equal(storage, "[0.1,16,-0,1e+300,4.94065645841247e-324,0.3333333333333333,23.976,null,null,null]");
}

/* Whole numbers and few decimals are written by hand: the same digits as printf's shortest that reads back. */
static void short_numbers(void **state)
{
    (void)state;
    uint64_t random = 1;
    for (int i = 0; i < 200000; i++) {
        char written[64], expected[64];
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        const double scales[] = {1.0, 10.0, 100.0, 1000.0, 8.0, 3.0, 1e4};
        double value = (double)((random >> 8) % UINT64_C(2000000000000000) >> random % 50) / scales[i % 7];
        if (i % 3 == 0) value = nextafter(value, 0.0);
        kn_text text = kn_text_fixed(written, sizeof written);
        kn_json_writer w = kn_json_writer_on(&text);
        kn_json_write_double(&w, value);
        for (int precision = 15; precision <= 17; precision++) {
            snprintf(expected, sizeof expected, "%.*g", precision, value);
            if (strtod(expected, NULL) == value) break;
        }
        assert_string_equal(written, expected);
    }
    char storage[128];
    kn_text text = kn_text_fixed(storage, sizeof storage);
    kn_json_writer w = kn_json_writer_on(&text);
    kn_json_write_array(&w);
    const int64_t whole[] = {0, -1, 10, INT64_MAX, INT64_MIN};
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) kn_json_write_int(&w, whole[i]);
    kn_json_write_uint(&w, UINT64_MAX);
    kn_json_write_array_end(&w);
    assert_string_equal(storage, "[0,-1,10,9223372036854775807,-9223372036854775808,18446744073709551615]");
}

static void deep_output_fails(void **state)
{
    (void)state;
    for (int extra = 0; extra <= 1; extra++) {
        char storage[256];
        kn_text text = kn_text_fixed(storage, sizeof storage);
        kn_json_writer w = kn_json_writer_on(&text);
        for (int i = 0; i < KN_BODY_JSON_DEPTH_MAX + extra; i++) kn_json_write_array(&w);
        for (int i = 0; i < KN_BODY_JSON_DEPTH_MAX + extra; i++) kn_json_write_array_end(&w);
        assert_int_equal(kn_text_status(&text), extra ? KN_INVALID : KN_OK);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refused_texts),
        cmocka_unit_test(truncated_everywhere),
        cmocka_unit_test(depth),
        cmocka_unit_test(keys_and_values),
        cmocka_unit_test(bytes),
        cmocka_unit_test(memory_stays_near_the_body),
        cmocka_unit_test(parse_without_memory),
        cmocka_unit_test(structure),
        cmocka_unit_test(strings),
        cmocka_unit_test(numbers),
        cmocka_unit_test(short_numbers),
        cmocka_unit_test(deep_output_fails),
    };
    return cmocka_run_group_tests_name("json", tests, count_allocations, nothing_left);
}

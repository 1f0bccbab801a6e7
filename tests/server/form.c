/* SPDX-License-Identifier: Apache-2.0
 *
 * Forms: each shape of name, the rule for arrays of objects, each limit at n and n + 1, each malformed name. */
#include "tests/server/protocol.h"

#include "server/form.h"

static kn_api_error error;

static void gives(const char *form, const char *json)
{
    json_t *root = NULL;
    ok(kn_form_parse(&root, form, strlen(form), &error));
    char *text = json_dumps(root, JSON_COMPACT);
    if (strcmp(text, json) != 0) fail_msg("%s gives %s instead of %s", form, text, json);
    kn_free(text);
    json_decref(root);
}

static kn_status parse(const char *form, size_t count)
{
    json_t *root = NULL;
    kn_status st = kn_form_parse(&root, form, count, &error);
    json_decref(root);
    return st;
}

static void shapes(void **state)
{
    (void)state;
    gives("", "{}");
    gives("&&", "{}");
    gives("a=1&b=two+words&c=%F0%9F%98%80%2B", "{\"a\":\"1\",\"b\":\"two words\",\"c\":\"\xf0\x9f\x98\x80+\"}");
    gives("a&b=", "{\"a\":\"\",\"b\":\"\"}");
    gives("a==b", "{\"a\":\"=b\"}");
    gives("input_reference[image_url]=http%3a%2f%2fx", "{\"input_reference\":{\"image_url\":\"http://x\"}}");
    gives("lora%5Bpath%5D=p&lora%5Bscale%5D=0.5", "{\"lora\":{\"path\":\"p\",\"scale\":\"0.5\"}}");
    gives("tags[]=a&tags[]=b&tags[]=b", "{\"tags\":[\"a\",\"b\",\"b\"]}");
    gives("characters[][id]=x&characters[][id]=y", "{\"characters\":[{\"id\":\"x\"},{\"id\":\"y\"}]}");
    gives("a[b][c][]=1&a[b][c][]=2&a[d]=3", "{\"a\":{\"b\":{\"c\":[\"1\",\"2\"]},\"d\":\"3\"}}");
    gives("a[0]=x", "{\"a\":{\"0\":\"x\"}}"); /* no client sends an index; it is a key like any other */
    gives("a[][]=1&a[][]=2", "{\"a\":[[\"1\"],[\"2\"]]}");
}

static void arrays_of_objects(void **state)
{
    (void)state;
    gives("a[][x]=1&a[][y]=2&a[][x]=3&a[][y]=4", "{\"a\":[{\"x\":\"1\",\"y\":\"2\"},{\"x\":\"3\",\"y\":\"4\"}]}");
    gives("a[][x]=1&a[][x]=2&a[][y]=3", "{\"a\":[{\"x\":\"1\"},{\"x\":\"2\",\"y\":\"3\"}]}");
    gives("a[][x][p]=1&a[][x][q]=2&a[][x][p]=3", "{\"a\":[{\"x\":{\"p\":\"1\",\"q\":\"2\"}},{\"x\":{\"p\":\"3\"}}]}");
    gives("a[][t][]=1&a[][t][]=2&a[][n]=3&a[][n]=4", "{\"a\":[{\"t\":[\"1\",\"2\"],\"n\":\"3\"},{\"n\":\"4\"}]}");
    gives("a[]=s&a[][x]=1&a[][y]=2", "{\"a\":[\"s\",{\"x\":\"1\",\"y\":\"2\"}]}");
    gives("a[][x]=1&b=0&a[][y]=2",
          "{\"a\":[{\"x\":\"1\",\"y\":\"2\"}],\"b\":\"0\"}"); /* others in between do not matter */
}

static void repeated_or_contradicting(void **state)
{
    (void)state;
    static const char *const forms[] = {"a=1&a=1",          "a=1&a[]=2",        "a[]=1&a=2",         "a=1&a[b]=2",
                                        "a[b]=1&a=2",       "a[b]=1&a[]=2",     "a[]=1&a[b]=2",      "a[b]=1&a[b]=1",
                                        "a[b][c]=1&a[b]=2", "a[b]=1&a[b][c]=2", "a[b][]=1&a[b][c]=2"};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        expect_error(parse(forms[i], strlen(forms[i])), &error, 400, "invalid_value", "a");
}

static void malformed(void **state)
{
    (void)state;
    static const char *const forms[] = {"=1",       "[a]=1",   "[]=1",    "a[=1",       "a]=1",    "a[b=1", "a[b]c=1",
                                        "a[[b]]=1", "a[b]]=1", "a[b][=1", "a[b]x[c]=1", "a%=1",    "a=%4",  "a=%zz",
                                        "a=%%20",   "%ff=1",   "a%00b=1", "a[%00]=1",   "a]b[c]=1"};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        expect_error(parse(forms[i], strlen(forms[i])), &error, 400, "invalid_body", NULL);
    expect_error(parse("a=%ff", 5), &error, 400, "invalid_value", "a");
    expect_error(parse("a=%00", 5), &error, 400, "invalid_value", "a");
    expect_error(parse("a[b]=%ed%a0%80", 14), &error, 400, "invalid_value", "a");
}

static void limits(void **state)
{
    (void)state;
    for (int extra = 0; extra <= 1; extra++) {
        kn_status st[4];
        char *name = repeated("n", (size_t)KN_FORM_NAME_BYTES_MAX + (size_t)extra);
        char *long_name = kn_format("%s=1", name);
        st[0] = parse(long_name, strlen(long_name));
        char *brackets = repeated("[b]", (size_t)KN_FORM_DEPTH_MAX + (size_t)extra);
        char *deep = kn_format("a%s=1", brackets);
        st[1] = parse(deep, strlen(deep));
        char *many = repeated("t[]=1&", (size_t)KN_FORM_FIELDS_MAX + (size_t)extra);
        st[2] = parse(many, strlen(many));
        char *large = repeated("x", (size_t)KN_FORM_BYTES_MAX + (size_t)extra);
        large[1] = '=';
        st[3] = parse(large, strlen(large));
        for (int i = 0; i < 4; i++) {
            if (!extra) ok(st[i]);
            if (extra) assert_int_equal(st[i], KN_INVALID);
        }
        if (extra) assert_int_equal(error.status, 413);
        kn_free(name);
        kn_free(long_name);
        kn_free(brackets);
        kn_free(deep);
        kn_free(many);
        kn_free(large);
    }
}

static void decoding(void **state)
{
    (void)state;
    char out[16];
    assert_int_equal(kn_percent_decode(out, "a+b%2Bc", 7, true), 5);
    assert_memory_equal(out, "a b+c", 5);
    assert_int_equal(kn_percent_decode(out, "a+b%2bc", 7, false), 5);
    assert_memory_equal(out, "a+b+c", 5);
    assert_int_equal(kn_percent_decode(out, "%", 1, true), -1);
    assert_int_equal(kn_percent_decode(out, "%4", 2, true), -1);
    assert_int_equal(kn_percent_decode(out, "%41", 2, true), -1); /* the count ends it, not the text */
    assert_int_equal(kn_percent_decode(out, "", 0, true), 0);
}

static void without_memory(void **state)
{
    (void)state;
    const char *form = "a=1&characters[][id]=x&characters[][id]=y&m[k]=v&t[]=1";
    kn_status st = KN_NOMEM;
    int refused = 0;
    for (uint64_t n = 1; st != KN_OK; n++) {
        kn_mem_fail_at(n);
        st = parse(form, strlen(form));
        kn_mem_fail_at(0);
        if (st == KN_OK) break;
        assert_int_equal(st, KN_NOMEM);
        refused++;
    }
    assert_true(refused > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes),
        cmocka_unit_test(arrays_of_objects),
        cmocka_unit_test(repeated_or_contradicting),
        cmocka_unit_test(malformed),
        cmocka_unit_test(limits),
        cmocka_unit_test(decoding),
        cmocka_unit_test(without_memory),
    };
    return cmocka_run_group_tests_name("form", tests, count_allocations, nothing_left);
}

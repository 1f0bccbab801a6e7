/* SPDX-License-Identifier: Apache-2.0
 *
 * Ids against the libraries' own (tests/golden), and the limits of an encode. */
#define _POSIX_C_SOURCE 200809L
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/log.h"
#include "base/mem.h"
#include "engine/token.h"

#define GOLDEN KN_SOURCE_DIR "/tests/golden/"

static const char *const models[] = {"wan21-small", "wan21-head128", "wan21-wide"};

static json_t *load(const char *path)
{
    json_error_t error;
    json_t *root = json_load_file(path, JSON_ALLOW_NUL, &error);
    if (!root) fail_msg("%s: %s", path, error.text);
    return root;
}

static char *read_all(const char *path, size_t *count)
{
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("%s cannot be opened", path);
    fseek(file, 0, SEEK_END);
    *count = (size_t)ftell(file);
    rewind(file);
    char *bytes = kn_alloc(*count + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *count, file), *count);
    fclose(file);
    return bytes;
}

static kn_tokenizer *open_file(const char *path)
{
    size_t count;
    char *bytes = read_all(path, &count);
    kn_tokenizer *tokenizer = NULL;
    kn_status st = strstr(path, ".model") ? kn_tokenizer_from_spiece(&tokenizer, bytes, count, path)
                                          : kn_tokenizer_from_json(&tokenizer, bytes, count, path);
    kn_free(bytes); /* may be freed afterwards, says the contract */
    if (st != KN_OK) fail_msg("%s", kn_fail_message());
    return tokenizer;
}

static kn_tokenizer *open_model(const char *model)
{
    char path[512];
    snprintf(path, sizeof path, GOLDEN "%s/model/tokenizer", model);
    kn_tokenizer *tokenizer = NULL;
    if (kn_tokenizer_open(&tokenizer, path) != KN_OK) fail_msg("%s", kn_fail_message());
    return tokenizer;
}

static void expect_ids(const kn_tokenizer *tokenizer, const char *text, size_t bytes, const json_t *expected,
                       const char *what, size_t index)
{
    int32_t *ids = NULL;
    int32_t count = 0;
    if (kn_tokenizer_encode(tokenizer, text, bytes, INT32_MAX, &ids, &count) != KN_OK)
        fail_msg("%s, case %zu: %s", what, index, kn_fail_message());
    if ((size_t)count != json_array_size(expected))
        fail_msg("%s, case %zu: %d ids, expected %zu", what, index, (int)count, json_array_size(expected));
    for (int32_t i = 0; i < count; i++) {
        json_int_t id = json_integer_value(json_array_get(expected, (size_t)i));
        if (ids[i] != id)
            fail_msg("%s, case %zu: id[%d] is %d, expected %d", what, index, (int)i, (int)ids[i], (int)id);
        assert_true(ids[i] < kn_tokenizer_vocabulary(tokenizer));
    }
    kn_free(ids);
}

static void check_pipeline_fixtures(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof models / sizeof models[0]; m++) {
        char path[512];
        snprintf(path, sizeof path, GOLDEN "%s/case.json", models[m]);
        json_t *root = load(path);
        kn_tokenizer *tokenizer = open_model(models[m]);
        assert_true(kn_tokenizer_vocabulary(tokenizer) >= 900);
        json_t *list = json_object_get(root, "tokenizer");
        assert_true(json_array_size(list) > 10);
        for (size_t i = 0; i < json_array_size(list); i++) {
            json_t *item = json_array_get(list, i);
            json_t *text = json_object_get(item, "text");
            expect_ids(tokenizer, json_string_value(text), json_string_length(text), json_object_get(item, "ids"), path,
                       i);
        }
        kn_tokenizer_close(&tokenizer);
        json_decref(root);
    }
}

static void check_texts(void **state)
{
    const json_t *texts = json_object_get(*state, "texts");
    const char *file;
    json_t *expected;
    size_t files = 0;
    json_object_foreach(json_object_get(*state, "files"), file, expected)
    {
        char path[512];
        snprintf(path, sizeof path, GOLDEN "%s", file);
        kn_tokenizer *tokenizer = open_file(path);
        assert_int_equal(json_array_size(texts), json_array_size(expected));
        for (size_t i = 0; i < json_array_size(texts); i++) {
            const json_t *text = json_array_get(texts, i);
            expect_ids(tokenizer, json_string_value(text), json_string_length(text), json_array_get(expected, i), file,
                       i);
        }
        kn_tokenizer_close(&tokenizer);
        files++;
    }
    assert_int_equal(files, 4);
}

/* Only sentencepiece takes bytes that are not UTF-8; `tokenizers` sees what Python made of them. */
static void check_broken_bytes(void **state)
{
    const json_t *list = json_object_get(*state, "bytes");
    const char *file;
    json_t *expected;
    json_object_foreach(json_object_get(*state, "byte_files"), file, expected)
    {
        char path[512];
        snprintf(path, sizeof path, GOLDEN "%s", file);
        kn_tokenizer *tokenizer = open_file(path);
        for (size_t i = 0; i < json_array_size(list); i++) {
            const char *hex = json_string_value(json_array_get(list, i));
            size_t count = strlen(hex) / 2;
            char *bytes = kn_alloc(count);
            for (size_t k = 0; k < count; k++) {
                unsigned byte;
                assert_int_equal(sscanf(hex + 2 * k, "%2x", &byte), 1);
                bytes[k] = (char)byte;
            }
            expect_ids(tokenizer, bytes, count, json_array_get(expected, i), file, i);
            kn_free(bytes);
        }
        kn_tokenizer_close(&tokenizer);
    }
    assert_true(json_array_size(list) > 50);
}

static void check_variants(void **state)
{
    const json_t *list = json_object_get(*state, "variants");
    assert_true(json_array_size(list) > 30);
    for (size_t v = 0; v < json_array_size(list); v++) {
        const json_t *variant = json_array_get(list, v);
        const char *name = json_string_value(json_object_get(variant, "name"));
        char *bytes = json_dumps(json_object_get(variant, "tokenizer"), JSON_COMPACT);
        kn_tokenizer *tokenizer = NULL;
        if (kn_tokenizer_from_json(&tokenizer, bytes, strlen(bytes), name) != KN_OK) fail_msg("%s", kn_fail_message());
        free(bytes);
        const json_t *cases = json_object_get(variant, "cases");
        for (size_t i = 0; i < json_array_size(cases); i++) {
            const json_t *text = json_array_get(json_array_get(cases, i), 0);
            expect_ids(tokenizer, json_string_value(text), json_string_length(text),
                       json_array_get(json_array_get(cases, i), 1), name, i);
        }
        kn_tokenizer_close(&tokenizer);
    }
}

static void expect_same(const kn_tokenizer *tokenizer, const char *a, size_t a_bytes, const char *b, size_t b_bytes)
{
    int32_t *x, *y, x_count, y_count;
    assert_int_equal(kn_tokenizer_encode(tokenizer, a, a_bytes, 512, &x, &x_count), KN_OK);
    assert_int_equal(kn_tokenizer_encode(tokenizer, b, b_bytes, 512, &y, &y_count), KN_OK);
    assert_int_equal(x_count, y_count);
    assert_memory_equal(x, y, (size_t)x_count * sizeof *x);
    kn_free(x);
    kn_free(y);
}

/* One U+FFFD for the longest start of a valid sequence, as Unicode recommends and Python does. */
static void check_invalid_utf8_is_replaced(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {
        {"a\x80z", "a\xef\xbf\xbdz"},
        {"a\xe2\x82", "a\xef\xbf\xbd"},
        {"a\xf0\x9f\x91z", "a\xef\xbf\xbdz"},
        {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xe2\x82\xe2\x82\xac", "\xef\xbf\xbd\xe2\x82\xac"},
    };
    /* Every byte gives an id here, so that the number of replacements shows. */
    static const char document[] = "{\"model\":{\"unk_id\":0,\"vocab\":[[\"?\",0],[\"</s>\",0],[\"\xef\xbf\xbd\",-1],"
                                   "[\"\xe2\x82\xac\",-1],[\"a\",-1],[\"z\",-1]]}}";
    kn_tokenizer *tokenizer = NULL;
    assert_int_equal(kn_tokenizer_from_json(&tokenizer, document, sizeof document - 1, "document"), KN_OK);
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
        expect_same(tokenizer, pairs[i][0], strlen(pairs[i][0]), pairs[i][1], strlen(pairs[i][1]));
    kn_tokenizer_close(&tokenizer);
}

static void check_truncation(void **state)
{
    (void)state;
    char text[4000];
    for (size_t i = 0; i < sizeof text; i++) text[i] = "ball red A\xc3\xa9 "[i % 13];
    for (size_t m = 0; m < sizeof models / sizeof models[0]; m++) {
        kn_tokenizer *tokenizer = open_model(models[m]);
        int32_t *all, *ids, total, count;
        assert_int_equal(kn_tokenizer_encode(tokenizer, text, sizeof text, INT32_MAX, &all, &total), KN_OK);
        assert_true(total > 600);
        assert_int_equal(all[total - 1], 1);
        static const int32_t limits[] = {1, 2, 3, 4, 5, 6, 7, 8, 511, 512, 513};
        for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
            int32_t limit = limits[i];
            assert_int_equal(kn_tokenizer_encode(tokenizer, text, sizeof text, limit, &ids, &count), KN_OK);
            assert_int_equal(count, limit); /* 512: 511 of the text and </s> */
            assert_memory_equal(ids, all, (size_t)(limit - 1) * sizeof *ids);
            assert_int_equal(ids[limit - 1], 1);
            kn_free(ids);
        }
        for (int32_t limit = total - 1; limit <= total + 1; limit++) {
            assert_int_equal(kn_tokenizer_encode(tokenizer, text, sizeof text, limit, &ids, &count), KN_OK);
            assert_int_equal(count, limit < total ? limit : total);
            assert_int_equal(ids[count - 1], 1);
            kn_free(ids);
        }
        kn_free(all);
        kn_tokenizer_close(&tokenizer);
    }
}

static void check_limits(void **state)
{
    (void)state;
    kn_tokenizer *tokenizer = open_model("wan21-small");
    int32_t *ids = NULL;
    int32_t count = -1;
    for (int32_t limit = -1; limit <= 0; limit++) {
        assert_int_equal(kn_tokenizer_encode(tokenizer, "a", 1, limit, &ids, &count), KN_INVALID);
        assert_non_null(strstr(kn_fail_message(), "no room for the end token"));
        assert_null(ids);
    }
    assert_int_equal(kn_tokenizer_encode(tokenizer, NULL, 0, 512, &ids, &count), KN_OK);
    assert_int_equal(count, 1);
    kn_free(ids);

    size_t most = KN_TEXT_BYTES_MAX;
    char *text = kn_alloc(most + 1);
    memset(text, 'a', most + 1);
    assert_int_equal(kn_tokenizer_encode(tokenizer, text, most, 512, &ids, &count), KN_OK);
    assert_int_equal(count, 512);
    kn_free(ids);
    assert_int_equal(kn_tokenizer_encode(tokenizer, text, most + 1, 512, &ids, &count), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "1048577"));
    assert_non_null(strstr(kn_fail_message(), "1048576"));
    /* U+FDFA becomes 33 bytes: a text that grows elevenfold still fits. */
    for (size_t i = 0; i + 3 <= most; i += 3) memcpy(text + i, "\xef\xb7\xba", 3);
    assert_int_equal(kn_tokenizer_encode(tokenizer, text, most / 3 * 3, 512, &ids, &count), KN_OK);
    assert_true(count > 1);
    kn_free(ids);
    kn_free(text);
    kn_tokenizer_close(&tokenizer);
    kn_tokenizer_close(&tokenizer);
}

static void check_growth_is_bounded(void **state)
{
    (void)state;
    static const char document[] =
        "{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":"
        "\"0123456789012345678901234567890123456789\"},\"model\":{\"unk_id\":0,\"vocab\":[[\"?\",0],[\"</s>\",0]]}}";
    kn_tokenizer *tokenizer = NULL;
    assert_int_equal(kn_tokenizer_from_json(&tokenizer, document, sizeof document - 1, "document"), KN_OK);
    char *text = kn_alloc(KN_TEXT_BYTES_MAX);
    memset(text, 'a', KN_TEXT_BYTES_MAX);
    int32_t *ids, count;
    assert_int_equal(kn_tokenizer_encode(tokenizer, text, KN_TEXT_BYTES_MAX, 512, &ids, &count), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "while it is normalized"));
    kn_free(text);
    kn_tokenizer_close(&tokenizer);
}

static void check_open(void **state)
{
    (void)state;
    kn_tokenizer *tokenizer = NULL;
    assert_int_equal(kn_tokenizer_open(&tokenizer, KN_SOURCE_DIR "/engine"), KN_NOT_FOUND);
    assert_non_null(strstr(kn_fail_message(), "/engine: neither tokenizer.json nor spiece.model"));
    assert_null(tokenizer);

    /* spiece.model serves where tokenizer.json is not there; a broken tokenizer.json is not passed over. */
    char folder[] = "/tmp/kinora-token-XXXXXX";
    char path[128];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/spiece.model", folder);
    assert_int_equal(symlink(GOLDEN "wan21-small/model/tokenizer/spiece.model", path), 0);
    assert_int_equal(kn_tokenizer_open(&tokenizer, folder), KN_OK);
    assert_int_equal(kn_tokenizer_vocabulary(tokenizer), 900);
    kn_tokenizer_close(&tokenizer);
    char json[128];
    snprintf(json, sizeof json, "%s/tokenizer.json", folder);
    FILE *file = fopen(json, "w");
    assert_non_null(file);
    fputs("{\n", file);
    fclose(file);
    assert_int_equal(kn_tokenizer_open(&tokenizer, folder), KN_CORRUPT);
    assert_non_null(strstr(kn_fail_message(), "tokenizer.json: line "));
    unlink(json);
    assert_int_equal(mkdir(json, 0700), 0);
    assert_int_equal(kn_tokenizer_open(&tokenizer, folder), KN_IO);
    assert_non_null(strstr(kn_fail_message(), "tokenizer.json"));
    rmdir(json);
    unlink(path);
    rmdir(folder);
}

/* Each allocation fails in turn: an error, nothing left behind, and no other result. */
static void check_allocation_failures(void **state)
{
    const char *names[] = {"metaspace_first_True_strip", "NFKC", "replace_spaces", "strips_normalized",
                           "token_in_front"};
    const json_t *list = json_object_get(*state, "variants");
    for (size_t v = 0; v < json_array_size(list); v++) {
        const json_t *variant = json_array_get(list, v);
        bool wanted = false;
        for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
            wanted = wanted || strcmp(json_string_value(json_object_get(variant, "name")), names[i]) == 0;
        if (!wanted) continue;
        char *bytes = json_dumps(json_object_get(variant, "tokenizer"), JSON_COMPACT);
        uint64_t held = kn_mem_read().bytes;
        kn_status st = KN_NOMEM;
        uint64_t n = 0;
        while (st != KN_OK) {
            kn_tokenizer *tokenizer = NULL;
            int32_t *ids = NULL;
            int32_t count = 0;
            kn_mem_fail_at(++n);
            st = kn_tokenizer_from_json(&tokenizer, bytes, strlen(bytes), "document");
            if (st == KN_OK) st = kn_tokenizer_encode(tokenizer, "ab <x> a\xcc\x81 b<y>", 15, 512, &ids, &count);
            kn_mem_fail_at(0);
            assert_true(st == KN_OK || st == KN_NOMEM);
            assert_true((st == KN_OK) == (ids != NULL));
            kn_free(ids);
            kn_tokenizer_close(&tokenizer);
            assert_int_equal(kn_mem_read().bytes, held);
            assert_true(n < 1000);
        }
        assert_true(n > 10);
        free(bytes);
    }
}

static int load_cases(void **state)
{
    kn_log_configure(KN_LOG_ERROR, 0); /* one variant has ids that disagree, which is worth a warning */
    *state = load(GOLDEN "tokenizer_cases.json");
    return 0;
}

static int free_cases(void **state)
{
    json_decref(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_pipeline_fixtures),
        cmocka_unit_test(check_texts),
        cmocka_unit_test(check_broken_bytes),
        cmocka_unit_test(check_variants),
        cmocka_unit_test(check_invalid_utf8_is_replaced),
        cmocka_unit_test(check_truncation),
        cmocka_unit_test(check_limits),
        cmocka_unit_test(check_growth_is_bounded),
        cmocka_unit_test(check_open),
        cmocka_unit_test(check_allocation_failures),
    };
    return cmocka_run_group_tests(tests, load_cases, free_cases);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Files that are not what they should be: one line that names file and field,
 * and never a crash. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/half.h"
#include "base/mem.h"
#include "engine/token.h"

#define MODEL "\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"vocab\":[[\"?\",0],[\"</s>\",0],[\"a\",-1.5]]}"
#define WITH(fields) "{" fields "," MODEL "}"

static void expect_json(const char *text, kn_status status, const char *message)
{
    kn_tokenizer *tokenizer = NULL;
    kn_status st = kn_tokenizer_from_json(&tokenizer, text, strlen(text), "x.json");
    if (st != status)
        fail_msg("%s\n  gave %s (%s), expected %s", text, kn_status_name(st), st == KN_OK ? "" : kn_fail_message(),
                 kn_status_name(status));
    if (st != KN_OK) {
        assert_null(tokenizer);
        if (!strstr(kn_fail_message(), message)) fail_msg("%s\n  gave \"%s\"", text, kn_fail_message());
        if (strncmp(kn_fail_message(), "x.json: ", 8) != 0)
            fail_msg("\"%s\" does not name the file", kn_fail_message());
        assert_null(strchr(kn_fail_message(), '\n'));
    }
    kn_tokenizer_close(&tokenizer);
}

static void check_json_document(void **state)
{
    (void)state;
    expect_json("", KN_CORRUPT, "line 1");
    expect_json("[]", KN_CORRUPT, "expected a JSON object");
    expect_json("{\n\"model\"", KN_CORRUPT, "line 2");
    expect_json("{\"a\":1,\"a\":2}", KN_CORRUPT, "duplicate");
    expect_json("{\"a\":\"\xff\"}", KN_CORRUPT, "line 1");
    expect_json(WITH("\"version\":\"2.0\""), KN_UNSUPPORTED, "version");
    expect_json(WITH("\"version\":\"1.0\""), KN_OK, "");
    expect_json("{" MODEL "}", KN_OK, "");
}

static void check_json_model(void **state)
{
    (void)state;
    expect_json("{}", KN_CORRUPT, "model: expected an object");
    expect_json("{\"model\":[]}", KN_CORRUPT, "model: expected an object");
    expect_json("{\"model\":{\"type\":\"BPE\"}}", KN_UNSUPPORTED, "model: type \"BPE\"");
    expect_json("{\"model\":{\"type\":\"B\\nPE\"}}", KN_UNSUPPORTED, "model: type \"B?PE\"");
    expect_json("{\"model\":{}}", KN_CORRUPT, "model.vocab");
    expect_json("{\"model\":{\"vocab\":[],\"unk_id\":0}}", KN_CORRUPT, "model.vocab: 0 pieces");
    expect_json("{\"model\":{\"vocab\":[[\"a\",0]]}}", KN_CORRUPT, "model.unk_id");
    expect_json("{\"model\":{\"vocab\":[[\"a\",0]],\"unk_id\":1}}", KN_CORRUPT,
                "model.unk_id: 1 is outside the 1 pieces");
    expect_json("{\"model\":{\"vocab\":[[\"a\",0]],\"unk_id\":-1}}", KN_CORRUPT, "model.unk_id: -1");
    expect_json("{\"model\":{\"vocab\":[[\"a\",0]],\"unk_id\":0.0}}", KN_CORRUPT, "model.unk_id");
    expect_json("{\"model\":{\"vocab\":[[\"a\",0],[\"b\"]],\"unk_id\":0}}", KN_CORRUPT, "model.vocab[1]");
    expect_json("{\"model\":{\"vocab\":[[\"a\",0],7],\"unk_id\":0}}", KN_CORRUPT, "model.vocab[1]");
    expect_json("{\"model\":{\"vocab\":[[0,\"a\"]],\"unk_id\":0}}", KN_CORRUPT, "model.vocab[0]");
    expect_json("{\"model\":{\"vocab\":[[\"a\",1e999]],\"unk_id\":0}}", KN_CORRUPT, "overflow");
    expect_json("{\"model\":{\"vocab\":[[\"a\",0]],\"unk_id\":0,\"byte_fallback\":1}}", KN_CORRUPT,
                "model.byte_fallback");
    expect_json("{\"model\":{\"vocab\":[[\"a\",0]],\"unk_id\":0}}", KN_UNSUPPORTED, "post_processor");
}

static void check_json_normalizer(void **state)
{
    (void)state;
    expect_json(WITH("\"normalizer\":[]"), KN_CORRUPT, "normalizer: expected an object");
    expect_json(WITH("\"normalizer\":{\"type\":\"Lowercase\"}"), KN_UNSUPPORTED, "normalizer: type \"Lowercase\"");
    expect_json(WITH("\"normalizer\":{\"type\":\"Sequence\"}"), KN_CORRUPT, "normalizer.normalizers");
    expect_json(
        WITH("\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"ByteLevel\"}]}"),
        KN_UNSUPPORTED, "normalizer.normalizers[1]: type \"ByteLevel\"");
    expect_json(WITH("\"normalizer\":{\"type\":\"Strip\",\"strip_left\":3}"), KN_CORRUPT, "normalizer.strip_left");
    expect_json(WITH("\"normalizer\":{\"type\":\"Replace\",\"content\":\"a\"}"), KN_CORRUPT, "normalizer.pattern");
    expect_json(WITH("\"normalizer\":{\"type\":\"Replace\",\"content\":\"a\",\"pattern\":{\"String\":\"\"}}"),
                KN_UNSUPPORTED, "normalizer.pattern.String: a string of 0 bytes");
    expect_json(WITH("\"normalizer\":{\"type\":\"Replace\",\"content\":\"a\",\"pattern\":{\"Regex\":\"(a|b)\"}}"),
                KN_UNSUPPORTED, "normalizer.pattern: regular expression \"(a|b)\"");
    expect_json(WITH("\"normalizer\":{\"type\":\"Replace\",\"content\":\"$1\",\"pattern\":{\"Regex\":\" +\"}}"),
                KN_UNSUPPORTED, "normalizer.content");
    static const char *const bad[] = {"a{0,}",  "a{,2}", "a{2}", "a{2,3}",      "a*",  "ab+",
                                      "\\\\d+", "\\\\",  "+",    "a{1234567,}", "[ab]"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char text[512];
        snprintf(text, sizeof text,
                 WITH("\"normalizer\":{\"type\":\"Replace\",\"content\":\"\",\"pattern\":{\"Regex\":\"%s\"}}"), bad[i]);
        expect_json(text, KN_UNSUPPORTED, "regular expression");
    }
}

static void check_json_charsmap(void **state)
{
    (void)state;
    static const struct {
        const char *base64, *message;
    } bad[] = {
        {"", "0 bytes"},
        {"AAA", "base64"},
        {"A*AA", "base64"},
        {"AA==AAAA", "base64"},
        {"AAAAAA==", "a trie of 0 bytes in 4"},
        {"CAAAAAAAAAA=", "a trie of 8 bytes in 8"},
        {"BQAAAAAAAAAA", "a trie of 5 bytes"},
        {"BAAAAAAAAAD/", "not UTF-8"},
    };
    char text[512];
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        snprintf(text, sizeof text, WITH("\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"%s\"}"),
                 bad[i].base64);
        expect_json(text, KN_CORRUPT, bad[i].message);
        assert_non_null(strstr(kn_fail_message(), "normalizer.precompiled_charsmap"));
    }
    /* One unit whose offset leaves the array: found out while walking, and no rule. */
    snprintf(text, sizeof text, WITH("\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"%s\"}"),
             "BAAAAAD+//9hAA==");
    kn_tokenizer *tokenizer = NULL;
    int32_t *ids, count;
    assert_int_equal(kn_tokenizer_from_json(&tokenizer, text, strlen(text), "x.json"), KN_OK);
    assert_int_equal(kn_tokenizer_encode(tokenizer, "a", 1, 512, &ids, &count), KN_OK);
    assert_int_equal(count, 2);
    assert_int_equal(ids[0], 2);
    kn_free(ids);
    kn_tokenizer_close(&tokenizer);
}

static void check_json_splitter(void **state)
{
    (void)state;
    expect_json(WITH("\"pre_tokenizer\":{\"type\":\"ByteLevel\"}"), KN_UNSUPPORTED,
                "pre_tokenizer: type \"ByteLevel\"");
    expect_json(WITH("\"pre_tokenizer\":{\"type\":\"Metaspace\"}"), KN_CORRUPT, "pre_tokenizer.replacement");
    expect_json(WITH("\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"ab\"}"), KN_CORRUPT,
                "pre_tokenizer.replacement");
    expect_json(WITH("\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"last\"}"),
                KN_CORRUPT, "pre_tokenizer.prepend_scheme");
    expect_json(WITH("\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\","
                     "\"add_prefix_space\":false}"),
                KN_CORRUPT, "pre_tokenizer.add_prefix_space");
    char text[2048];
    size_t used = 0;
    used += (size_t)snprintf(text, sizeof text, "{\"pre_tokenizer\":");
    for (int i = 0; i < 20; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "{\"type\":\"Sequence\",\"pretokenizers\":[");
    for (int i = 0; i < 20; i++) used += (size_t)snprintf(text + used, sizeof text - used, "]}");
    snprintf(text + used, sizeof text - used, "," MODEL "}");
    expect_json(text, KN_UNSUPPORTED, "nested sequences");
}

static void check_json_added_tokens(void **state)
{
    (void)state;
    expect_json(WITH("\"added_tokens\":{}"), KN_CORRUPT, "added_tokens: expected an array");
    expect_json(WITH("\"added_tokens\":[7]"), KN_CORRUPT, "added_tokens[0]: expected an object");
    expect_json(WITH("\"added_tokens\":[{\"id\":1}]"), KN_CORRUPT, "added_tokens[0].content");
    expect_json(WITH("\"added_tokens\":[{\"id\":1,\"content\":\"\"}]"), KN_UNSUPPORTED, "added_tokens[0].content");
    expect_json(WITH("\"added_tokens\":[{\"id\":-1,\"content\":\"a\"}]"), KN_CORRUPT, "added_tokens[0].id");
    expect_json(WITH("\"added_tokens\":[{\"id\":9999999999,\"content\":\"a\"}]"), KN_CORRUPT, "added_tokens[0].id");
    expect_json(WITH("\"added_tokens\":[{\"id\":2,\"content\":\"a\",\"lstrip\":\"no\"}]"), KN_CORRUPT,
                "added_tokens[0].lstrip");
    expect_json(WITH("\"normalizer\":{\"type\":\"Strip\",\"strip_left\":true},"
                     "\"added_tokens\":[{\"id\":3,\"content\":\" \"}]"),
                KN_UNSUPPORTED, "empty after normalization");
    expect_json(WITH("\"normalizer\":{\"type\":\"Strip\",\"strip_left\":true},"
                     "\"added_tokens\":[{\"id\":3,\"content\":\" b\"},{\"id\":4,\"content\":\"b\"}]"),
                KN_UNSUPPORTED, "added tokens 3 and 4 are the same");
}

static void check_json_post_processor(void **state)
{
    (void)state;
#define POST(fields) WITH("\"post_processor\":{\"type\":\"TemplateProcessing\"" fields "}")
#define SINGLE_A "{\"Sequence\":{\"id\":\"A\"}}"
#define SINGLE_END "{\"SpecialToken\":{\"id\":\"</s>\"}}"
    expect_json(WITH("\"post_processor\":{\"type\":\"BertProcessing\"}"), KN_UNSUPPORTED, "post_processor: type");
    expect_json(POST(""), KN_CORRUPT, "post_processor.single");
    expect_json(POST(",\"single\":[]"), KN_CORRUPT, "post_processor.single: expected the sequence A");
    expect_json(POST(",\"single\":[" SINGLE_A "]"), KN_UNSUPPORTED, "no end token");
    expect_json(POST(",\"single\":[" SINGLE_A "," SINGLE_A "]"), KN_UNSUPPORTED, "post_processor.single[1]");
    expect_json(POST(",\"single\":[" SINGLE_A "," SINGLE_END "]"), KN_CORRUPT,
                "post_processor.special_tokens.</s>.ids");
    expect_json(POST(",\"single\":[" SINGLE_A "," SINGLE_END "],\"special_tokens\":{\"</s>\":{\"ids\":[3]}}"),
                KN_CORRUPT, "post_processor.special_tokens.</s>.ids[0]: expected an id below 3");
    expect_json(POST(",\"single\":[" SINGLE_A "," SINGLE_END "],\"special_tokens\":{\"</s>\":{\"ids\":[1]}}"), KN_OK,
                "");
}

/* ---- spiece.model ---- */

typedef struct message {
    uint8_t bytes[4096];
    size_t count;
} message;

static void put(message *m, const void *bytes, size_t count)
{
    assert_true(m->count + count <= sizeof m->bytes);
    memcpy(m->bytes + m->count, bytes, count);
    m->count += count;
}

static void put_varint(message *m, uint64_t value)
{
    do {
        uint8_t byte = (uint8_t)((value & 0x7fu) | (value > 0x7fu ? 0x80u : 0));
        put(m, &byte, 1);
        value >>= 7;
    } while (value > 0);
}

static void put_bytes(message *m, uint32_t tag, const void *bytes, size_t count)
{
    put_varint(m, tag << 3 | 2);
    put_varint(m, count);
    put(m, bytes, count);
}

static void put_number(message *m, uint32_t tag, uint64_t value)
{
    put_varint(m, tag << 3);
    put_varint(m, value);
}

static void put_piece(message *m, const char *text, float score, uint32_t type)
{
    message piece = {.count = 0};
    uint32_t bits = kn_float_bits(score);
    put_bytes(&piece, 1, text, strlen(text));
    put_varint(&piece, 2 << 3 | 5);
    put(&piece, &bits, 4);
    put_number(&piece, 3, type);
    put_bytes(m, 1, piece.bytes, piece.count);
}

static message small_model(void)
{
    message m = {.count = 0};
    put_piece(&m, "<unk>", 0, 2);
    put_piece(&m, "</s>", 0, 3);
    put_piece(&m, "a", -1, 1);
    put_piece(&m,
              "\xe2\x96\x81"
              "a",
              -1.5f, 1);
    put_piece(&m, "XX", 0, 4);
    put_piece(&m, "b", -1, 5);
    return m;
}

static void expect_spiece(const message *m, kn_status status, const char *text)
{
    kn_tokenizer *tokenizer = NULL;
    kn_status st = kn_tokenizer_from_spiece(&tokenizer, m->bytes, m->count, "x.model");
    if (st != status)
        fail_msg("gave %s (%s), expected %s with %s", kn_status_name(st), st == KN_OK ? "" : kn_fail_message(),
                 kn_status_name(status), text);
    if (st != KN_OK) {
        if (!strstr(kn_fail_message(), text)) fail_msg("\"%s\" does not say %s", kn_fail_message(), text);
        if (strncmp(kn_fail_message(), "x.model: ", 9) != 0)
            fail_msg("\"%s\" does not name the file", kn_fail_message());
    }
    kn_tokenizer_close(&tokenizer);
}

static void check_spiece_by_hand(void **state)
{
    (void)state;
    message m = small_model();
    kn_tokenizer *tokenizer = NULL;
    int32_t *ids, count;
    assert_int_equal(kn_tokenizer_from_spiece(&tokenizer, m.bytes, m.count, "x.model"), KN_OK);
    assert_int_equal(kn_tokenizer_vocabulary(tokenizer), 6);
    assert_int_equal(kn_tokenizer_encode(tokenizer, " aaXXa  bb ", 11, 512, &ids, &count), KN_OK);
    static const int32_t expected[] = {3, 2, 4, 2, 0, 1}; /* "▁bb": unused and unknown become one unknown */
    assert_int_equal(count, 6);
    assert_memory_equal(ids, expected, sizeof expected);
    kn_free(ids);
    kn_tokenizer_close(&tokenizer);
}

static void check_spiece_fields(void **state)
{
    (void)state;
    message m = {.count = 0};
    expect_spiece(&m, KN_CORRUPT, "pieces: 0");
    m = small_model();
    put_piece(&m, "a", -2, 1);
    expect_spiece(&m, KN_CORRUPT, "pieces[6] repeats pieces[2]");
    m = small_model();
    put_piece(&m, "<unk2>", 0, 2);
    expect_spiece(&m, KN_CORRUPT, "pieces[6]: a second unknown piece");
    m = small_model();
    put_piece(&m, "q", kn_float_from_bits(0x7f800000u), 1);
    expect_spiece(&m, KN_CORRUPT, "pieces[6].score: not finite");
    m = small_model();
    put_piece(&m, "q", 0, 7);
    expect_spiece(&m, KN_CORRUPT, "pieces[6].type: 7");
    m = small_model();
    put_piece(&m, "", 0, 1);
    expect_spiece(&m, KN_CORRUPT, "pieces[6].piece: empty");
    m = small_model();
    put_piece(&m, "\xff", 0, 1);
    expect_spiece(&m, KN_CORRUPT, "pieces[6].piece: not UTF-8");
    m = small_model();
    put_piece(&m, "<0xZZ>", 0, 6);
    expect_spiece(&m, KN_CORRUPT, "pieces[6]: not the name of a byte");
    m = (message){.count = 0};
    put_piece(&m, "a", -1, 1);
    expect_spiece(&m, KN_CORRUPT, "no unknown piece");
    m = (message){.count = 0};
    put_piece(&m, "<unk>", -1, 2);
    expect_spiece(&m, KN_UNSUPPORTED, "trainer_spec.eos_piece");
}

static void expect_in(uint32_t tag, uint32_t inner_tag, uint64_t value, kn_status status, const char *text)
{
    message m = small_model();
    message inner = {.count = 0};
    put_number(&inner, inner_tag, value);
    put_bytes(&m, tag, inner.bytes, inner.count);
    expect_spiece(&m, status, text);
}

static void check_spiece_specs(void **state)
{
    (void)state;
    expect_in(2, 3, 1, KN_OK, "");
    expect_in(2, 3, 2, KN_UNSUPPORTED, "trainer_spec.model_type: 2");
    expect_in(2, 24, 1, KN_UNSUPPORTED, "treat_whitespace_as_suffix");
    expect_in(2, 35, 1, KN_CORRUPT, "byte_fallback without <0x00>");
    expect_in(2, 47, 1, KN_CORRUPT, "trainer_spec.eos_piece: wire type 0");
    expect_in(2, 99, 1, KN_OK, ""); /* unknown fields are skipped */
    expect_in(3, 2, 1, KN_CORRUPT, "normalizer_spec: wire type 0");
    expect_in(9, 1, 1, KN_OK, "");

    message m = small_model();
    message spec = {.count = 0};
    put_bytes(&spec, 2, "abcdefgh", 8);
    put_bytes(&m, 3, spec.bytes, spec.count);
    expect_spiece(&m, KN_CORRUPT, "normalizer_spec.precompiled_charsmap");
    m = small_model();
    put_number(&m, 1, 3);
    expect_spiece(&m, KN_CORRUPT, "model: wire type 0");
    m = small_model();
    put_varint(&m, 9 << 3 | 3); /* groups are long gone */
    expect_spiece(&m, KN_CORRUPT, "model: wire type 3");
    m = small_model();
    put_varint(&m, 1 << 3 | 2);
    put_varint(&m, UINT64_MAX);
    expect_spiece(&m, KN_CORRUPT, "cut short");
}

/* Every prefix, and every byte replaced: an answer, and nothing read outside the bytes given (a sanitizer looks). */
static void check_spiece_damage(void **state)
{
    (void)state;
    message m = small_model();
    size_t accepted = 0;
    for (size_t count = 0; count <= m.count; count++) {
        char *copy = kn_alloc(count);
        memcpy(copy, m.bytes, count);
        kn_tokenizer *tokenizer = NULL;
        accepted += kn_tokenizer_from_spiece(&tokenizer, copy, count, "x.model") == KN_OK;
        kn_tokenizer_close(&tokenizer);
        kn_free(copy);
    }
    assert_int_equal(accepted, 5); /* a prefix is good only at the end of a piece, from the second on */
    for (size_t at = 0; at < m.count; at++) {
        for (unsigned byte = 0; byte < 256; byte += 15) {
            message damaged = m;
            damaged.bytes[at] = (uint8_t)byte;
            kn_tokenizer *tokenizer = NULL;
            kn_status st = kn_tokenizer_from_spiece(&tokenizer, damaged.bytes, damaged.count, "x.model");
            assert_true(st == KN_OK || st == KN_CORRUPT || st == KN_UNSUPPORTED);
            kn_tokenizer_close(&tokenizer);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_json_document),       cmocka_unit_test(check_json_model),
        cmocka_unit_test(check_json_normalizer),     cmocka_unit_test(check_json_charsmap),
        cmocka_unit_test(check_json_splitter),       cmocka_unit_test(check_json_added_tokens),
        cmocka_unit_test(check_json_post_processor), cmocka_unit_test(check_spiece_by_hand),
        cmocka_unit_test(check_spiece_fields),       cmocka_unit_test(check_spiece_specs),
        cmocka_unit_test(check_spiece_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

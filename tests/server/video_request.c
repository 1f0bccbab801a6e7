/* SPDX-License-Identifier: Apache-2.0
 *
 * Whole requests: one request in every dialect and from every client means the same; files are found and measured;
 * any split of a body gives the same; every refusal of a body is typed. */
#include "tests/server/protocol.h"

#include <openssl/evp.h>

#include "server/multipart.h"
#include "server/video_request.h"
#include "tests/server/bodies.h"

static kn_api_error error;

static kn_status parse(kn_video_params *out, const char *type, const char *body)
{
    return kn_video_request_parse(out, KN_VIDEO_CREATE, body, strlen(body), type, &error);
}

static void fingerprint(uint8_t out[KN_SHA256_BYTES], const kn_video_params *params)
{
    ok(kn_video_params_fingerprint(out, params));
}

static void check_picture(const kn_video_params *p, const client_body *b)
{
    uint8_t digest[KN_SHA256_BYTES];
    assert_string_equal(p->prompt, "a red ball \xf0\x9f\x94\xb4");
    assert_string_equal(p->model, "sora-2");
    assert_string_equal(p->seconds, "4");
    assert_int_equal(p->width, 1280);
    assert_int_equal(p->height, 720);
    assert_int_equal(p->reference.kind, KN_REFERENCE_FILE);
    assert_int_equal(p->reference.media, KN_MEDIA_PNG); /* whatever the client says its type is */
    assert_int_equal(p->reference.bytes, PICTURE_BYTES);
    assert_memory_equal(b->body + p->reference.offset, PICTURE, PICTURE_BYTES);
    assert_int_equal(EVP_Digest(PICTURE, PICTURE_BYTES, digest, NULL, EVP_sha256(), NULL), 1);
    assert_memory_equal(p->reference.sha256, digest, sizeof digest);
}

static void real_clients_mean_the_same(void **state)
{
    (void)state;
    uint8_t first[KN_SHA256_BYTES], other[KN_SHA256_BYTES];
    for (size_t i = 0; i < WITH_PICTURE; i++) {
        const client_body *b = &with_picture[i];
        kn_video_params p;
        ok(kn_video_request_parse(&p, KN_VIDEO_CREATE, b->body, b->count, b->content_type, &error));
        check_picture(&p, b);
        fingerprint(i == 0 ? first : other, &p);
        if (i > 0) assert_memory_equal(first, other, sizeof first);
        kn_video_params_release(&p);
    }
}

typedef struct received {
    kn_text bytes;
    size_t refuse_at; /* 0: never */
} received;

static kn_status take(void *context, const void *bytes, size_t count, kn_api_error *e)
{
    received *r = context;
    kn_text_append(&r->bytes, bytes, count);
    if (r->refuse_at > 0 && r->bytes.count >= r->refuse_at) return kn_api_overloaded(e, 5, "The disk is full.");
    return kn_text_status(&r->bytes);
}

static kn_status stream(kn_video_params *out, received *r, const client_body *b, size_t piece)
{
    kn_video_reader *reader = NULL;
    const kn_video_file_sink sink = {.context = r, .write = take};
    kn_status st = kn_video_reader_create(&reader, KN_VIDEO_CREATE, b->content_type, sink, &error);
    for (size_t at = 0; st == KN_OK && at < b->count; at += piece)
        st = kn_video_reader_feed(reader, b->body + at, piece < b->count - at ? piece : b->count - at, &error);
    if (st == KN_OK) st = kn_video_reader_finish(reader, out, &error);
    kn_video_reader_destroy(&reader);
    return st;
}

static void a_file_streams(void **state)
{
    (void)state;
    for (size_t piece = 1; piece < 200; piece++) {
        const client_body *b = &with_picture[piece % WITH_PICTURE];
        received r = {.bytes = kn_text_growing(1 << 16)};
        kn_video_params p;
        ok(stream(&p, &r, b, piece));
        check_picture(&p, b);
        assert_int_equal(r.bytes.count, PICTURE_BYTES);
        assert_memory_equal(r.bytes.bytes, PICTURE, PICTURE_BYTES);
        kn_video_params_release(&p);
        kn_text_release(&r.bytes);
    }
    received r = {.bytes = kn_text_growing(1 << 16), .refuse_at = 10};
    kn_video_params p;
    expect_error(stream(&p, &r, &with_picture[0], 3), &error, 503, "server_is_overloaded", NULL);
    kn_text_release(&r.bytes);
}

#define FORM "multipart/form-data; boundary=0123456789abcdef0123456789abcdef"
#define URLENCODED "application/x-www-form-urlencoded"

static void every_dialect_means_the_same(void **state)
{
    (void)state;
    const struct {
        const char *type, *body;
    } same[] = {
        {"application/json",
         "{\"prompt\":\"a & b\",\"seconds\":8,\"num_inference_steps\":30,\"guidance_scale\":5.0,\"seed\":7,"
         "\"characters\":[{\"id\":\"x\"},{\"id\":\"y\"}],\"input_reference\":{\"image_url\":\"http://x/?a=b\"},"
         "\"metadata\":{\"k\":\"v\",\"a\":\"b\"}}"},
        {"Application/JSON; charset=UTF-8",
         "{\"metadata\":{\"a\":\"b\",\"k\":\"v\"},\"extra_body\":{\"num_inference_steps\":\"30\",\"seed\":7.0,"
         "\"guidance_scale\":\"5\"},\"seconds\":\"8\",\"n\":1,\"prompt\":\"a \\u0026 b\",\"model\":null,"
         "\"characters\":[{\"id\":\"x\"},{\"id\":\"y\"}],\"input_reference\":{\"image_url\":{\"url\":\"http://x/"
         "?a=b\"}}}"},
        {URLENCODED,
         "prompt=a+%26+b&seconds=8.0&num_inference_steps=30&guidance_scale=5.00&seed=7&characters[][id]=x&"
         "characters%5B%5D%5Bid%5D=y&input_reference[image_url]=http://x/?a%3Db&metadata[k]=v&metadata[a]=b"},
        {FORM, HTTPX_FIELD("prompt", "a & b") HTTPX_FIELD("seconds", "8") HTTPX_FIELD("num_inference_steps", "30")
                   HTTPX_FIELD("guidance_scale", "5.0") HTTPX_FIELD("seed", "7") HTTPX_FIELD("characters[][id]", "x")
                       HTTPX_FIELD("characters[][id]", "y") HTTPX_FIELD("input_reference[image_url]", "http://x/?a=b")
                           HTTPX_FIELD("metadata[k]", "v") HTTPX_FIELD("metadata[a]", "b") HTTPX "--\r\n"},
        {FORM, HTTPX_FIELD("extra_body", "{\"num_inference_steps\":30,\"seed\":\"7\",\"guidance_scale\":5}")
                   HTTPX_FIELD("metadata", "{\"k\":\"v\",\"a\":\"b\"}") HTTPX_FIELD("prompt", "a & b")
                       HTTPX_FIELD("characters[][id]", "x") HTTPX_FIELD("characters[][id]", "y")
                           HTTPX_FIELD("input_reference", "{\"image_url\":\"http://x/?a=b\"}")
                               HTTPX_FIELD("enable_teacache", "false") HTTPX_FIELD("seconds", "8") HTTPX "--\r\n"},
    };
    uint8_t first[KN_SHA256_BYTES], other[KN_SHA256_BYTES];
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        kn_video_params p;
        ok(parse(&p, same[i].type, same[i].body));
        assert_string_equal(p.prompt, "a & b");
        assert_string_equal(p.seconds, "8");
        assert_int_equal(p.character_count, 2);
        fingerprint(i == 0 ? first : other, &p);
        if (i > 0) assert_memory_equal(first, other, sizeof first);
        kn_video_params_release(&p);
    }
}

static void types_of_body(void **state)
{
    (void)state;
    kn_video_params p;
    static const char *const unsupported[] = {NULL,
                                              "",
                                              "text/plain",
                                              "application/jsonp",
                                              "application/octet-stream",
                                              "application/json; charset=utf-16",
                                              "application/json; charset=\"",
                                              URLENCODED "; charset=latin1",
                                              "multipart/mixed; boundary=x"};
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++)
        expect_error(parse(&p, unsupported[i], "{}"), &error, 415, "unsupported_media_type", NULL);
    expect_error(parse(&p, "multipart/form-data", "x"), &error, 400, "invalid_body", NULL);
    expect_error(parse(&p, "application/json", ""), &error, 400, "invalid_body", NULL);
    expect_error(parse(&p, "application/json", "[]"), &error, 400, "invalid_body", NULL);
    expect_error(parse(&p, URLENCODED, ""), &error, 400, "missing_required_parameter", "prompt");
    expect_error(parse(&p, URLENCODED, "prompt=a&prompt=b"), &error, 400, "invalid_value", "prompt");
    expect_error(parse(&p, FORM, HTTPX "--"), &error, 400, "missing_required_parameter", "prompt");
    assert_int_equal(kn_video_body_limit("application/json"), KN_BODY_JSON_BYTES_MAX);
    assert_int_equal(kn_video_body_limit(NULL), KN_BODY_JSON_BYTES_MAX);
    assert_int_equal(kn_video_body_limit(FORM), KN_MULTIPART_BODY_BYTES_MAX);
}

static void large_bodies(void **state)
{
    (void)state;
    static const char *const types[] = {"application/json", URLENCODED};
    char *body = repeated("{", KN_BODY_JSON_BYTES_MAX + 1);
    kn_video_params p;
    for (int i = 0; i < 2; i++) {
        kn_status st = kn_video_request_parse(&p, KN_VIDEO_CREATE, body, KN_BODY_JSON_BYTES_MAX, types[i], &error);
        expect_error(st, &error, 400, "invalid_body", NULL);
        st = kn_video_request_parse(&p, KN_VIDEO_CREATE, body, KN_BODY_JSON_BYTES_MAX + 1, types[i], &error);
        expect_error(st, &error, 413, "payload_too_large", NULL);
    }
    kn_free(body);
}

#define FILE_PART(name, filename, content)                                                                             \
    HTTPX "\r\nContent-Disposition: form-data; name=\"" name "\"; filename=\"" filename "\"\r\n\r\n" content "\r\n"

static void file_parts(void **state)
{
    (void)state;
    kn_video_params p;
    ok(parse(&p, FORM, HTTPX_FIELD("prompt", "x") FILE_PART("input_reference", "", "") HTTPX "--"));
    assert_int_equal(p.reference.kind, KN_REFERENCE_NONE); /* a browser's form with no file chosen */
    kn_video_params_release(&p);
    expect_error(parse(&p, FORM, HTTPX_FIELD("prompt", "x") FILE_PART("input_reference", "a", "") HTTPX "--"), &error,
                 400, "invalid_value", "input_reference");
    expect_error(parse(&p, FORM, HTTPX_FIELD("prompt", "x") FILE_PART("mask", "a", "x") HTTPX "--"), &error, 400,
                 "unknown_parameter", "mask");
    expect_error(parse(&p, FORM,
                       HTTPX_FIELD("prompt", "x") FILE_PART("input_reference", "a", "x")
                           FILE_PART("input_reference", "b", "x") HTTPX "--"),
                 &error, 400, "invalid_value", "input_reference");
    expect_error(parse(&p, FORM,
                       HTTPX_FIELD("prompt", "x") HTTPX_FIELD("input_reference[file_id]", "f")
                           FILE_PART("input_reference", "b", "x") HTTPX "--"),
                 &error, 400, "invalid_value", "input_reference");
    expect_error(parse(&p, FORM, HTTPX_FIELD("prompt", "x") HTTPX_FIELD("input_reference", "x.png") HTTPX "--"), &error,
                 400, "invalid_type", "input_reference");
    ok(parse(&p, FORM, HTTPX_FIELD("prompt", "x") FILE_PART("input_reference", "a.png", "GIF") HTTPX "--"));
    assert_int_equal(p.reference.media, KN_MEDIA_UNKNOWN);
    kn_video_params_release(&p);
    const char *edit = FILE_PART("video", "a.mp4", "x") HTTPX_FIELD("prompt", "x") HTTPX "--";
    expect_error(kn_video_request_parse(&p, KN_VIDEO_EDIT, edit, strlen(edit), FORM, &error), &error, 400,
                 "unsupported_operation", NULL);
    const char *by_id = HTTPX_FIELD("video[id]", "video_1") HTTPX_FIELD("prompt", "x") HTTPX "--";
    expect_error(kn_video_request_parse(&p, KN_VIDEO_EDIT, by_id, strlen(by_id), FORM, &error), &error, 400,
                 "unsupported_operation", NULL);
}

static void magic(void **state)
{
    (void)state;
    const struct {
        const char *bytes;
        size_t count;
        kn_media_kind kind;
        const char *type;
    } cases[] = {
        {"\xff\xd8\xff\xe0", 4, KN_MEDIA_JPEG, "image/jpeg"},
        {"\x89PNG\r\n\x1a\n", 8, KN_MEDIA_PNG, "image/png"},
        {"\x89PNG\r\n\x1a", 7, KN_MEDIA_UNKNOWN, "application/octet-stream"},
        {"RIFF\1\2\3\4WEBP", 12, KN_MEDIA_WEBP, "image/webp"},
        {"RIFX\1\2\3\4WEBP", 12, KN_MEDIA_UNKNOWN, "application/octet-stream"},
        {"GIF89a", 6, KN_MEDIA_GIF, "image/gif"},
        {"\0\0\0\x18"
         "ftypisom",
         12, KN_MEDIA_MP4, "video/mp4"},
        {"\x1a\x45\xdf\xa3", 4, KN_MEDIA_WEBM, "video/webm"},
        {"", 0, KN_MEDIA_UNKNOWN, "application/octet-stream"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(kn_media_sniff(cases[i].bytes, cases[i].count), cases[i].kind);
        assert_string_equal(kn_media_type(cases[i].kind), cases[i].type);
    }
}

static void without_memory(void **state)
{
    (void)state;
    const client_body bodies[] = {
        with_picture[4],
        BODY("JSON", "application/json",
             "{\"prompt\":\"x\",\"negative_prompt\":\"y\",\"user\":\"u\",\"metadata\":{\"b\":\"c\",\"a\":\"b\"},"
             "\"extra_body\":\"{\\\"seed\\\":1}\",\"input_reference\":{\"image_url\":\"http://x\"}}"),
        BODY("form", URLENCODED, "prompt=x&characters[][id]=1&metadata[a]=b&input_reference[file_id]=f"),
    };
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        kn_status st = KN_NOMEM;
        int refused = 0;
        for (uint64_t n = 1; st != KN_OK; n++) {
            kn_video_params p;
            uint64_t held = kn_mem_read().bytes;
            kn_mem_fail_at(n);
            st = kn_video_request_parse(&p, KN_VIDEO_CREATE, bodies[i].body, bodies[i].count, bodies[i].content_type,
                                        &error);
            kn_mem_fail_at(0);
            if (st == KN_OK) { /* and nothing of it was lost on the way */
                assert_string_equal(p.prompt, i == 0 ? "a red ball \xf0\x9f\x94\xb4" : "x");
            } else {
                if (st != KN_NOMEM) fail_msg("%s, refusal %d: %s", bodies[i].client, refused, error.message);
                assert_int_equal(error.status, 503);
                assert_int_equal(kn_mem_read().bytes, held);
                refused++;
            }
            kn_video_params_release(&p);
        }
        assert_true(refused > 8);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(real_clients_mean_the_same),
        cmocka_unit_test(a_file_streams),
        cmocka_unit_test(every_dialect_means_the_same),
        cmocka_unit_test(types_of_body),
        cmocka_unit_test(large_bodies),
        cmocka_unit_test(file_parts),
        cmocka_unit_test(magic),
        cmocka_unit_test(without_memory),
    };
    return cmocka_run_group_tests_name("video_request", tests, count_allocations, nothing_left);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Multipart bodies: real clients' bytes, every split of them, every limit at n and n + 1, every malformation. */
#define _GNU_SOURCE
#include "tests/server/protocol.h"

#include "server/multipart.h"
#include "tests/server/bodies.h"

static kn_api_error error;

/* Everything a parse tells its sink, as one text that does not show how the file data came in pieces. */
typedef struct transcript {
    kn_text text;
    int files;
    int refuse_after; /* bytes of file data; 0: never */
    size_t file_bytes;
} transcript;

static void describe(transcript *t, const char *what, const kn_multipart_part *part)
{
    kn_text_format(&t->text, "%s %s|%s|%s|%d|%llu:", what, part->name, part->filename, part->content_type,
                   part->is_file, (unsigned long long)part->offset);
}

static kn_status on_text(void *context, const kn_multipart_part *part, const char *value, size_t count, kn_api_error *e)
{
    (void)e;
    transcript *t = context;
    assert_false(part->is_file);
    assert_int_equal(value[count], '\0');
    describe(t, "text", part);
    kn_text_append(&t->text, value, count);
    kn_text_string(&t->text, "\n");
    return KN_OK;
}

static kn_status on_begin(void *context, const kn_multipart_part *part, kn_api_error *e)
{
    (void)e;
    transcript *t = context;
    t->files++;
    describe(t, "file", part);
    return KN_OK;
}

static kn_status on_data(void *context, const void *bytes, size_t count, kn_api_error *e)
{
    transcript *t = context;
    assert_true(count > 0);
    t->file_bytes += count;
    if (t->refuse_after > 0 && t->file_bytes >= (size_t)t->refuse_after) return kn_api_too_large(e, "The file", 1);
    kn_text_append(&t->text, bytes, count);
    return KN_OK;
}

static kn_status on_end(void *context, kn_api_error *e)
{
    (void)e;
    kn_text_string(&((transcript *)context)->text, "\nend\n");
    return KN_OK;
}

static kn_multipart_sink sink_on(transcript *t)
{
    return (kn_multipart_sink){
        .context = t, .text = on_text, .file_begin = on_begin, .file_data = on_data, .file_end = on_end};
}

/* Parses a body given in pieces: up to `first`, then `step` bytes at a time. */
static kn_status parse(transcript *t, const char *type, const char *body, size_t count, size_t first, size_t step)
{
    kn_multipart *parser = NULL;
    kn_status st = kn_multipart_create(&parser, type, sink_on(t), &error);
    for (size_t at = 0; st == KN_OK && at < count;) {
        size_t piece = at == 0 && first > 0 ? first : step;
        if (piece > count - at) piece = count - at;
        st = kn_multipart_feed(parser, body + at, piece, &error);
        at += piece;
    }
    if (st == KN_OK) st = kn_multipart_finish(parser, &error);
    kn_multipart_destroy(&parser);
    return st;
}

static kn_status parse_whole(const char *type, const char *body, size_t count)
{
    transcript t = {.text = kn_text_growing(80 << 20)};
    kn_status st = parse(&t, type, body, count, 0, count);
    kn_text_release(&t.text);
    return st;
}

static void real_clients(void **state)
{
    (void)state;
    for (size_t i = 0; i < WITH_PICTURE; i++) {
        const client_body *b = &with_picture[i];
        transcript t = {.text = kn_text_growing(1 << 16)};
        ok(parse(&t, b->content_type, b->body, b->count, 0, b->count));
        assert_int_equal(t.files, 1);
        assert_int_equal(t.file_bytes, PICTURE_BYTES);
        const char *file = strstr(t.text.bytes, "file input_reference|");
        assert_non_null(file);
        /* name|filename|type|is_file|offset: */
        const char *offset = file;
        for (int bars = 0; bars < 4; bars++) offset = strchr(offset, '|') + 1;
        assert_memory_equal(b->body + strtoul(offset, NULL, 10), PICTURE, PICTURE_BYTES);
        const char prompt[] = ":a red ball \xf0\x9f\x94\xb4\n";
        assert_non_null(memmem(t.text.bytes, t.text.count, prompt, sizeof prompt - 1)); /* the picture has a NUL */
        kn_text_release(&t.text);
    }
}

static void every_split(void **state)
{
    (void)state;
    for (size_t i = 0; i < WITH_PICTURE; i++) {
        const client_body *b = &with_picture[i];
        transcript whole = {.text = kn_text_growing(1 << 16)};
        ok(parse(&whole, b->content_type, b->body, b->count, 0, b->count));
        for (size_t first = 1; first <= b->count; first++) {
            for (int way = 0; way < 2; way++) { /* two pieces; or the rest three bytes at a time */
                if (way == 1 && first > 3) continue;
                transcript t = {.text = kn_text_growing(1 << 16)};
                ok(parse(&t, b->content_type, b->body, b->count, first, way ? first : b->count));
                assert_int_equal(t.text.count, whole.text.count);
                assert_memory_equal(t.text.bytes, whole.text.bytes, whole.text.count);
                kn_text_release(&t.text);
            }
        }
        kn_text_release(&whole.text);
    }
}

static void truncated_everywhere(void **state)
{
    (void)state;
    for (size_t i = 0; i < WITH_PICTURE; i++) {
        const client_body *b = &with_picture[i];
        const size_t closed = b->count - 2; /* after "--": the last CR LF may be missing */
        ok(parse_whole(b->content_type, b->body, closed));
        for (size_t count = 0; count < closed; count++)
            expect_error(parse_whole(b->content_type, b->body, count), &error, 400, "invalid_body", NULL);
    }
}

#define TYPE "multipart/form-data; boundary=b"
#define DISPOSITION "Content-Disposition: form-data; name=\"a\""

static void expect_transcript(const char *body, const char *expected)
{
    transcript t = {.text = kn_text_growing(1 << 16)};
    ok(parse(&t, TYPE, body, strlen(body), 0, 1));
    assert_string_equal(t.text.bytes, expected);
    kn_text_release(&t.text);
}

static void tolerated(void **state)
{
    (void)state;
    expect_transcript("--b \t\r\n" DISPOSITION "\r\n\r\n\r\n--b--", "text a|||0|51:\n");
    expect_transcript("preamble\r\n--b\r\n" DISPOSITION "\r\n\r\nx\r\n--b--\r\nepilogue\r\n--b\r\n",
                      "text a|||0|59:x\n");
    expect_transcript("--b\r\ncontent-disposition:form-data;name=a\r\nX-Other: 1\r\n\r\nx\r\n--b--",
                      "text a|||0|57:x\n");
    expect_transcript("--b\r\n" DISPOSITION "\r\nContent-Type: text/plain; charset=\"UTF-8\"\r\n\r\nx\r\n--b--",
                      "text a||text/plain; charset=\"UTF-8\"|0|92:x\n");
    expect_transcript("--b\r\n" DISPOSITION "\r\nContent-Transfer-Encoding: Binary\r\n\r\n\r\n-b\r\n--b--",
                      "text a|||0|84:\r\n-b\n");
    expect_transcript("--b\r\nContent-Disposition: form-data; name=\"a\"; filename=\"\"\r\n\r\n\r\n--b--",
                      "file a|||1|62:\nend\n");
}

static void filenames_are_never_paths(void **state)
{
    (void)state;
    static const char *const names[][2] = {
        {"../../etc/passwd", "passwd"},
        {"/abs/x.png", "x.png"},
        {"C:\\\\dir\\\\x.png", "x.png"},
        {"C:\\dir\\x.png", "x.png"},
        {"..", ".."},
        {"a/", ""},
        {"a\\\"b", "a\"b"},
        {"\xe4\xb8\xad.png", "\xe4\xb8\xad.png"},
        {"\xff.png", ""},
        {"%2e%2e%2fx", "%2e%2e%2fx"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *body = kn_format("--b\r\n" DISPOSITION "; filename=\"%s\"\r\n\r\nx\r\n--b--", names[i][0]);
        char *expected = kn_format("file a|%s||1|", names[i][1]);
        transcript t = {.text = kn_text_growing(1 << 16)};
        ok(parse(&t, TYPE, body, strlen(body), 0, 7));
        if (strncmp(t.text.bytes, expected, strlen(expected)) != 0) fail_msg("%s gives %s", names[i][0], t.text.bytes);
        kn_text_release(&t.text);
        kn_free(body);
        kn_free(expected);
    }
    char *accents = repeated("\xc3\xa9", KN_MULTIPART_FILENAME_BYTES_MAX);
    char *body = kn_format("--b\r\n" DISPOSITION "; filename=\"%s\"\r\n\r\nx\r\n--b--", accents);
    transcript t = {.text = kn_text_growing(1 << 16)};
    ok(parse(&t, TYPE, body, strlen(body), 0, 7));
    assert_int_equal(strcspn(t.text.bytes + strlen("file a|"), "|"), KN_MULTIPART_FILENAME_BYTES_MAX - 1);
    kn_text_release(&t.text);
    kn_free(body);
    kn_free(accents);
}

static void malformed(void **state)
{
    (void)state;
    static const char *const bodies[] = {
        "",
        "--b",
        "no boundary at all",
        "--b--x\r\n\r\n" DISPOSITION, /* closed; but nothing wrong: replaced below */
        "--bc\r\n" DISPOSITION "\r\n\r\nx\r\n--b--",
        "--b-x",
        "--b\n" DISPOSITION "\n\nx\n--b--",
        "--b\r\n\r\nx\r\n--b--",
        "--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b--",
        "--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--",
        "--b\r\nContent-Disposition: form-data; name=\"\"\r\n\r\nx\r\n--b--",
        "--b\r\nContent-Disposition: attachment; name=\"a\"\r\n\r\nx\r\n--b--",
        "--b\r\nContent-Disposition: form-data; name=\"a\"; name=\"b\"\r\n\r\nx\r\n--b--",
        "--b\r\nContent-Disposition: form-data; name=\"a\r\n\r\nx\r\n--b--",
        "--b\r\nContent-Disposition: form-data; name=\"\xff\"\r\n\r\nx\r\n--b--",
        "--b\r\nContent-Disposition: form-data; name=\"a\"x\r\n\r\nx\r\n--b--",
        "--b\r\nContent-Disposition: form-data; name=\"a\"; filename=\"x\r\n\r\nx\r\n--b--",
        "--b\r\n" DISPOSITION "\r\n" DISPOSITION "\r\n\r\nx\r\n--b--",
        "--b\r\n" DISPOSITION "\r\nContent-Type: a/b\r\nContent-Type: a/b\r\n\r\nx\r\n--b--",
        "--b\r\n" DISPOSITION "\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n--b--",
        "--b\r\n" DISPOSITION "\r\nContent-Type: text/plain; charset=utf-16\r\n\r\nx\r\n--b--",
        "--b\r\n" DISPOSITION "\r\nContent-Type: text/plain; charset=\"\r\n\r\nx\r\n--b--",
        "--b\r\n" DISPOSITION "\r\nContent-Type:\r\n\r\nx\r\n--b--",
        "--b\r\n" DISPOSITION "\r\nContent-Transfer-Encoding: base64\r\n\r\nx\r\n--b--",
        "--b\r\n" DISPOSITION "\r\n folded\r\n\r\nx\r\n--b--",
        "--b\r\n" DISPOSITION "\r\nNo Colon\r\n\r\nx\r\n--b--",
        "--b\r\n" DISPOSITION "\r\nName : x\r\n\r\nx\r\n--b--",
        "--b\r\n" DISPOSITION "\r\nX: a\nb\r\n\r\nx\r\n--b--",
        "--b\r\n" DISPOSITION "\r\nX: a\x01\r\n\r\nx\r\n--b--",
    };
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        kn_status st = parse_whole(TYPE, bodies[i], strlen(bodies[i]));
        if (i == 3) {
            ok(st); /* what follows the closing boundary is an epilogue */
            continue;
        }
        if (st == KN_OK) fail_msg("accepted: %s", bodies[i]);
        expect_error(st, &error, 400, "invalid_body", NULL);
    }
    const char nul[] = "--b\r\n" DISPOSITION "\r\nX: a\0b\r\n\r\nx\r\n--b--";
    expect_error(parse_whole(TYPE, nul, sizeof nul - 1), &error, 400, "invalid_body", NULL);
    const char nul_first[] = "--b\r\n\0" DISPOSITION "\r\n\r\nx\r\n--b--";
    expect_error(parse_whole(TYPE, nul_first, sizeof nul_first - 1), &error, 400, "invalid_body", NULL);
}

static void boundaries(void **state)
{
    (void)state;
    static const char *const missing[] = {
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=\"\"",
        "multipart/form-data; boundary=\"a",
        "multipart/form-data; boundary=a; boundary=a",
        "multipart/form-data; boundary=\"a \"",
        "multipart/form-data; boundary=a\x01",
        "multipart/form-data; boundary=\"a;b\"",
        "multipart/form-data boundary=a; x",
    };
    for (size_t i = 0; i < sizeof missing / sizeof *missing; i++) {
        kn_status st = parse_whole(missing[i], "", 0);
        if (st == KN_OK || (error.status != 400 && error.status != 415)) fail_msg("accepted: %s", missing[i]);
    }
    expect_error(parse_whole("multipart/mixed; boundary=a", "", 0), &error, 415, "unsupported_media_type", NULL);
    expect_error(parse_whole("application/json", "", 0), &error, 415, "unsupported_media_type", NULL);
    for (size_t count = KN_MULTIPART_BOUNDARY_MAX; count <= KN_MULTIPART_BOUNDARY_MAX + 1; count++) {
        char *boundary = repeated("=", count);
        char *type = kn_format("Multipart/Form-Data ; charset=utf-8; Boundary=\"%s\"", boundary);
        char *body = kn_format("--%s\r\n" DISPOSITION "\r\n\r\nx\r\n--%s--\r\n", boundary, boundary);
        kn_status st = parse_whole(type, body, strlen(body));
        if (count == KN_MULTIPART_BOUNDARY_MAX)
            ok(st);
        else
            expect_error(st, &error, 400, "invalid_body", NULL);
        kn_free(boundary);
        kn_free(type);
        kn_free(body);
    }
    ok(parse_whole("multipart/form-data; boundary=\"a b'()+_,-./:=?c\"",
                   "--a b'()+_,-./:=?c\r\n" DISPOSITION "\r\n\r\nx\r\n--a b'()+_,-./:=?c--",
                   strlen("--a b'()+_,-./:=?c\r\n" DISPOSITION "\r\n\r\nx\r\n--a b'()+_,-./:=?c--")));
}

static void limits_of_parts(void **state)
{
    (void)state;
    for (int extra = 0; extra <= 1; extra++) {
        char *parts = repeated("--b\r\n" DISPOSITION "\r\n\r\nx\r\n", (size_t)KN_MULTIPART_PARTS_MAX + (size_t)extra);
        char *body = kn_format("%s--b--", parts);
        kn_status st = parse_whole(TYPE, body, strlen(body));
        if (extra)
            expect_error(st, &error, 400, "invalid_body", NULL);
        else
            ok(st);
        kn_free(parts);
        kn_free(body);

        /* Header block: the disposition, "X: ", filling, and the two line ends. */
        size_t filling = KN_MULTIPART_HEADER_BYTES_MAX - strlen(DISPOSITION "\r\nX: \r\n\r\n") + (size_t)extra;
        char *x = repeated("x", filling);
        body = kn_format("--b\r\n" DISPOSITION "\r\nX: %s\r\n\r\nx\r\n--b--", x);
        st = parse_whole(TYPE, body, strlen(body));
        if (extra)
            expect_error(st, &error, 400, "invalid_body", NULL);
        else
            ok(st);
        kn_free(x);
        kn_free(body);

        x = repeated("n", KN_MULTIPART_NAME_BYTES_MAX + (size_t)extra);
        body = kn_format("--b\r\nContent-Disposition: form-data; name=\"%s\"\r\n\r\nx\r\n--b--", x);
        st = parse_whole(TYPE, body, strlen(body));
        assert_int_equal(st, extra ? KN_INVALID : KN_OK);
        kn_free(x);
        kn_free(body);

        x = repeated("t", KN_MULTIPART_TYPE_BYTES_MAX + (size_t)extra);
        body = kn_format("--b\r\n" DISPOSITION "\r\nContent-Type: %s\r\n\r\nx\r\n--b--", x);
        st = parse_whole(TYPE, body, strlen(body));
        assert_int_equal(st, extra ? KN_INVALID : KN_OK);
        kn_free(x);
        kn_free(body);
    }
}

static void limits_of_bytes(void **state)
{
    (void)state;
    for (int extra = 0; extra <= 1; extra++) { /* text of two parts counts together */
        char *x = repeated("x", KN_MULTIPART_TEXT_BYTES_MAX - 1);
        char *body = kn_format("--b\r\n" DISPOSITION "\r\n\r\n%s\r\n--b\r\n" DISPOSITION "\r\n\r\n%s\r\n--b--", x,
                               extra ? "xx" : "x");
        kn_status st = parse_whole(TYPE, body, strlen(body));
        if (extra)
            expect_error(st, &error, 413, "payload_too_large", NULL);
        else
            ok(st);
        kn_free(x);
        kn_free(body);
    }
    for (int extra = 0; extra <= 1; extra++) { /* the whole, in an epilogue that costs nothing */
        transcript t = {.text = kn_text_growing(100)};
        kn_multipart *parser = NULL;
        char piece[1 << 16] = {0};
        ok(kn_multipart_create(&parser, TYPE, sink_on(&t), &error));
        ok(kn_multipart_feed(parser, "--b--", 5, &error));
        for (size_t at = 5 + sizeof piece; at <= KN_MULTIPART_BODY_BYTES_MAX; at += sizeof piece)
            ok(kn_multipart_feed(parser, piece, sizeof piece, &error));
        kn_status st = kn_multipart_feed(parser, piece, sizeof piece - 5 + (size_t)extra, &error);
        if (extra)
            expect_error(st, &error, 413, "payload_too_large", NULL);
        else
            ok(st);
        kn_multipart_destroy(&parser);
        kn_text_release(&t.text);
    }
}

static void sink_may_refuse(void **state)
{
    (void)state;
    const client_body *b = &with_picture[0];
    transcript t = {.text = kn_text_growing(1 << 16), .refuse_after = 5};
    expect_error(parse(&t, b->content_type, b->body, b->count, 0, 3), &error, 413, "payload_too_large", NULL);
    kn_text_release(&t.text);
}

static void without_memory(void **state)
{
    (void)state;
    const client_body *b = &with_picture[4];
    kn_status st = KN_NOMEM;
    int refused = 0;
    for (uint64_t n = 1; st != KN_OK; n++) {
        transcript t = {.text = kn_text_growing(1 << 16)};
        kn_text_string(&t.text, "x"); /* the transcript's own memory is not what is tested */
        char *filling = repeated("x", 4000);
        kn_text_string(&t.text, filling);
        kn_text_clear(&t.text);
        kn_free(filling);
        kn_mem_fail_at(n);
        st = parse(&t, b->content_type, b->body, b->count, 0, 3);
        kn_mem_fail_at(0);
        kn_text_release(&t.text);
        if (st == KN_OK) break;
        assert_int_equal(st, KN_NOMEM);
        refused++;
    }
    assert_true(refused >= 2); /* the parser and the text of a part */
}

static void header_values(void **state)
{
    (void)state;
    char out[8];
    assert_true(kn_media_type_is("Application/JSON; charset=utf-8", "application/json"));
    assert_true(kn_media_type_is("application/json \t", "application/json"));
    assert_false(kn_media_type_is("application/jsonx", "application/json"));
    assert_false(kn_media_type_is("", "application/json"));
    assert_int_equal(kn_header_parameter("a/b; x=1; Y=\"2 \\\" \\\\\"", "y", out, sizeof out), KN_OK);
    assert_string_equal(out, "2 \" \\");
    assert_int_equal(kn_header_parameter("a/b;;x=1; ", "x", out, sizeof out), KN_OK);
    assert_int_equal(kn_header_parameter("a/b; x=1", "y", out, sizeof out), KN_NOT_FOUND);
    assert_int_equal(kn_header_parameter("a/b; x=1; x=2", "x", out, sizeof out), KN_INVALID);
    assert_int_equal(kn_header_parameter("a/b; x", "y", out, sizeof out), KN_INVALID);
    assert_int_equal(kn_header_parameter("a/b; x=", "y", out, sizeof out), KN_INVALID);
    assert_int_equal(kn_header_parameter("a/b; x=\"1\"2", "y", out, sizeof out), KN_INVALID);
    assert_int_equal(kn_header_parameter("a/b; x=1234567", "x", out, sizeof out), KN_OK);
    assert_int_equal(kn_header_parameter("a/b; x=12345678", "x", out, sizeof out), KN_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(real_clients),
        cmocka_unit_test(every_split),
        cmocka_unit_test(truncated_everywhere),
        cmocka_unit_test(tolerated),
        cmocka_unit_test(filenames_are_never_paths),
        cmocka_unit_test(malformed),
        cmocka_unit_test(boundaries),
        cmocka_unit_test(limits_of_parts),
        cmocka_unit_test(limits_of_bytes),
        cmocka_unit_test(sink_may_refuse),
        cmocka_unit_test(without_memory),
        cmocka_unit_test(header_values),
    };
    return cmocka_run_group_tests_name("multipart", tests, count_allocations, nothing_left);
}

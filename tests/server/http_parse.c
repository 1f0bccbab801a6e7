/* SPDX-License-Identifier: Apache-2.0
 *
 * Every request here is parsed whole, cut in two at every byte, and byte by byte, from a buffer that ends where the
 * bytes end; the results must be the same, field for field. */
#define _POSIX_C_SOURCE 200809L
#include "server/http_parse.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const kn_http_parse_limits usual = {KN_HTTP_FIELDS_MAX, KN_HTTP_HEADER_BYTES_MAX, KN_HTTP_TARGET_BYTES_MAX};

typedef struct outcome {
    kn_status status;
    kn_http_head head;
    kn_http_refusal refusal;
} outcome;

/* Feeds the first `first` bytes, then `step` more at a time, each time in a fresh block of exactly that size. */
static void feed(outcome *out, const char *bytes, size_t count, size_t first, size_t step,
                 const kn_http_parse_limits *limits)
{
    memset(out, 0, sizeof *out);
    for (size_t have = first; out->status = KN_AGAIN, true; have = have + step < count ? have + step : count) {
        char *block = malloc(have ? have : 1);
        assert_non_null(block);
        memcpy(block, bytes, have);
        out->status = kn_http_parse_head(&out->head, block, have, limits, &out->refusal);
        free(block);
        if (out->status != KN_AGAIN || have == count) return;
    }
}

static void compare(const outcome *a, const outcome *b, const char *what)
{
    if (a->status != b->status || a->refusal.status != b->refusal.status ||
        (a->refusal.message && strcmp(a->refusal.message, b->refusal.message) != 0) ||
        (a->status == KN_OK && memcmp(&a->head, &b->head, sizeof a->head) != 0))
        fail_msg("cutting changes the result of: %.200s", what);
}

static outcome parse_limited(const char *bytes, size_t count, const kn_http_parse_limits *limits)
{
    outcome whole, cut;
    feed(&whole, bytes, count, count, 1, limits);
    for (size_t at = 0; at<count; at += count> 2000 ? 97 : 1) {
        feed(&cut, bytes, count, at, count, limits);
        compare(&whole, &cut, bytes);
    }
    if (count > 2000) return whole;
    feed(&cut, bytes, count, 0, 1, limits);
    compare(&whole, &cut, bytes);
    return whole;
}

static outcome parse(const char *text)
{
    return parse_limited(text, strlen(text), &usual);
}

static void expect_span(const char *text, kn_http_span span, const char *wanted)
{
    if (span.bytes != strlen(wanted) || memcmp(text + span.start, wanted, span.bytes) != 0)
        fail_msg("%.*s is not %s", (int)span.bytes, text + span.start, wanted);
}

static void a_whole_request_is_taken_apart(void **state)
{
    (void)state;
    static const char text[] = "\r\nPOST /v1/videos?limit=3&after=%20 HTTP/1.1\r\nHost: example.com:8000\r\n"
                               "Content-Type: application/json\r\nX-Empty:\r\nX-Spaces: \t a b \t\r\n"
                               "X-High: caf\xc3\xa9\r\nContent-Length: 42\r\nExpect: 100-Continue\r\n"
                               "Connection: foo , Close\r\n\r\n{\"more\":";
    const outcome got = parse(text);
    const kn_http_head *head = &got.head;
    assert_int_equal(got.status, KN_OK);
    assert_int_equal(head->bytes, strlen(text) - strlen("{\"more\":"));
    assert_int_equal(head->method, KN_HTTP_POST);
    assert_int_equal(head->minor, 1);
    expect_span(text, head->target, "/v1/videos?limit=3&after=%20");
    expect_span(text, head->path, "/v1/videos");
    expect_span(text, head->query, "limit=3&after=%20");
    expect_span(text, head->authority, "example.com:8000");
    assert_int_equal(head->content_length, 42);
    assert_false(head->chunked || head->keep_alive || head->expect_other || head->encoded);
    assert_true(head->expect_continue);
    assert_int_equal(head->fields, 8);
    expect_span(text, head->field[2].name, "X-Empty");
    expect_span(text, head->field[2].value, "");
    expect_span(text, head->field[3].value, "a b");
    expect_span(text, head->field[4].value, "caf\xc3\xa9");
}

static void versions_and_connection_decide_on_keeping_alive(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool keep;
    } cases[] = {
        {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", true},
        {"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", false},
        {"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, CLOSE\r\n\r\n", false},
        {"GET / HTTP/1.1\r\nHost: a\r\nConnection: closed\r\n\r\n", true},
        {"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nConnection: ,close\r\n\r\n", false},
        {"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n", true},
        {"GET / HTTP/1.0\r\n\r\n", false},
        {"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true},
        {"GET / HTTP/1.0\r\nConnection: Keep-Alive, close\r\n\r\n", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const outcome got = parse(cases[i].text);
        if (got.status != KN_OK || got.head.keep_alive != cases[i].keep) fail_msg("%s", cases[i].text);
    }
}

static void targets_come_in_three_forms(void **state)
{
    (void)state;
    static const struct {
        const char *text, *path, *query, *authority;
    } cases[] = {
        {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "/", "", "a"},
        {"GET /? HTTP/1.1\r\nHost: a\r\n\r\n", "/", "", "a"},
        {"GET /a?b?c HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "/a", "b?c", "[::1]:80"},
        {"GET http://A.b:1/x?y HTTP/1.1\r\nHost: a.B:1\r\n\r\n", "/x", "y", "A.b:1"},
        {"GET HTTPS://a?y HTTP/1.1\r\nHost: a\r\n\r\n", "", "y", "a"},
        {"GET http://a HTTP/1.0\r\n\r\n", "", "", "a"},
        {"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "*", "", "a"},
        {"OPTIONS /a HTTP/1.1\r\nHost: a\r\n\r\n", "/a", "", "a"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const outcome got = parse(cases[i].text);
        if (got.status != KN_OK) fail_msg("%s: %s", cases[i].text, got.refusal.message);
        expect_span(cases[i].text, got.head.path, cases[i].path);
        expect_span(cases[i].text, got.head.query, cases[i].query);
        expect_span(cases[i].text, got.head.authority, cases[i].authority);
    }
}

static void bodies_are_announced_in_one_way(void **state)
{
    (void)state;
    outcome got = parse("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n");
    assert_int_equal(got.status, KN_OK);
    assert_true(got.head.chunked);
    assert_int_equal(got.head.content_length, -1);
    got = parse("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775799\r\n\r\n");
    assert_true(got.status == KN_OK && got.head.content_length == 9223372036854775799);
    got = parse("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775800\r\n\r\n");
    assert_int_equal(got.refusal.status, 400);
    got = parse("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 000\r\nContent-Encoding: identity\r\n\r\n");
    assert_int_equal(got.head.content_length, 0);
    assert_false(got.head.encoded);
    got = parse("POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nExpect: tea\r\n\r\n");
    assert_true(got.head.encoded && got.head.expect_other);
    got = parse("POST / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n"); /* 1.0 knows no such thing */
    assert_false(got.head.expect_continue || got.head.expect_other);
}

#define GET "GET / HTTP/1.1\r\nHost: a\r\n"
#define POST "POST / HTTP/1.1\r\nHost: a\r\n"

/* Where servers and proxies are known to disagree, and what is simply wrong. */
static const struct {
    int status;
    const char *text;
} refused[] = {
    {400, POST "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"},
    {400, POST "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"},
    {400, POST "Content-Length: 5\r\nContent-Length: 5\r\n\r\n"},
    {400, POST "Content-Length: 5\r\nContent-Length: 6\r\n\r\n"},
    {400, POST "Content-Length: 5, 5\r\n\r\n"},
    {400, POST "Content-Length: +5\r\n\r\n"},
    {400, POST "Content-Length: -5\r\n\r\n"},
    {400, POST "Content-Length: 0x5\r\n\r\n"},
    {400, POST "Content-Length: 5 5\r\n\r\n"},
    {400, POST "Content-Length: 5.0\r\n\r\n"},
    {400, POST "Content-Length:\r\n\r\n"},
    {400, POST "Content-Length: 99999999999999999999\r\n\r\n"},
    {400, POST "Content-Length : 5\r\n\r\n"},
    {400, POST "Content-Length\t: 5\r\n\r\n"},
    {400, POST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"},
    {400, POST "Transfer-Encoding: chunked, chunked\r\n\r\n"},
    {400, POST "Transfer-Encoding: gzip, chunked\r\n\r\n"},
    {400, POST "Transfer-Encoding: identity\r\n\r\n"},
    {400, POST "Transfer-Encoding: xchunked\r\n\r\n"},
    {400, POST "Transfer-Encoding: chunked;q=1\r\n\r\n"},
    {400, POST "Transfer-Encoding: \"chunked\"\r\n\r\n"},
    {400, POST "Transfer-Encoding: chunked,\r\n\r\n"},
    {400, POST "Transfer-Encoding:\r\n\r\n"},
    {400, POST "Transfer-Encoding: chunked\x0b\r\n\r\n"},
    {400, "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"},
    {400, GET "X: a\r\n b\r\n\r\n"},
    {400, GET "X: a\r\n\tb\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\n Host: a\r\n\r\n"},
    {400, GET "X: a\n\r\n"},
    {400, GET "X: a\r\n\n"},
    {400, "GET / HTTP/1.1\nHost: a\n\n"},
    {400, GET "X: a\rb\r\n\r\n"},
    {400, GET "X: a\r\r\n\r\n"},
    {400, GET "X: a\x01\r\n\r\n"},
    {400, GET "X: a\x7f\r\n\r\n"},
    {400, GET "X\r\n\r\n"},
    {400, GET ": a\r\n\r\n"},
    {400, GET "X Y: a\r\n\r\n"},
    {400, GET "X\xc3\xa9: a\r\n\r\n"},
    {400, GET "X(: a\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\n\r\n"},
    {400, GET "Host: a\r\n\r\n"},
    {400, "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\nHost:\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\nHost: a:x\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\nHost: a:123456\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\nHost: []\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\nHost: :80\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"},
    {400, "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n"},
    {400, "GET http://a/ HTTP/1.1\r\nHost: a:80\r\n\r\n"},
    {400, "GET http://a/ HTTP/1.1\r\n\r\n"},
    {400, "GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n"},
    {400, "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n"},
    {400, "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"},
    {400, "GET a HTTP/1.1\r\nHost: a\r\n\r\n"},
    {400, "GET * HTTP/1.1\r\nHost: a\r\n\r\n"},
    {400, "OPTIONS *x HTTP/1.1\r\nHost: a\r\n\r\n"},
    {400, "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"},
    {400, "GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n"},
    {400, "GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n"},
    {400, "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n"},
    {400, "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"},
    {400, "GET /  HTTP/1.1\r\nHost: a\r\n\r\n"},
    {400, "GET / HTTP/1.1 \r\nHost: a\r\n\r\n"},
    {400, " GET / HTTP/1.1\r\nHost: a\r\n\r\n"},
    {400, "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"},
    {400, "GET /\r\n\r\n"},
    {400, "GET\r\n\r\n"},
    {400, "G@T / HTTP/1.1\r\nHost: a\r\n\r\n"},
    {400, "GET / http/1.1\r\nHost: a\r\n\r\n"},
    {400, "GET / HTTP/1.10\r\nHost: a\r\n\r\n"},
    {400, "GET / HTTP/1\r\nHost: a\r\n\r\n"},
    {400, "GET / HTTP/1,1\r\nHost: a\r\n\r\n"},
    {400, "GET / XTTP/1.1\r\nHost: a\r\n\r\n"},
    {400, "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"},
    {400, "\n"},
    {400, "\x16\x03\x01\x02\n"}, /* TLS to a plain port */
    {501, "get / HTTP/1.1\r\nHost: a\r\n\r\n"},
    {501, "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"},
    {501, "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n"},
    {505, "GET / HTTP/2.0\r\nHost: a\r\n\r\n"},
    {505, "GET / HTTP/1.2\r\nHost: a\r\n\r\n"},
    {505, "GET / HTTP/0.9\r\nHost: a\r\n\r\n"},
    {505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
};

static void what_could_be_read_in_two_ways_is_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        const outcome got = parse(refused[i].text);
        if (got.status != KN_INVALID || got.refusal.status != refused[i].status || !got.refusal.message)
            fail_msg("%s: %s, %d", refused[i].text, kn_status_name(got.status), got.refusal.status);
    }
    static const char nul[] = GET "X: a\0b\r\n\r\n", nul_target[] = "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_int_equal(parse_limited(nul, sizeof nul - 1, &usual).refusal.status, 400);
    assert_int_equal(parse_limited(nul_target, sizeof nul_target - 1, &usual).refusal.status, 400);
}

static char *add(char *at, const char *text)
{
    const size_t bytes = strlen(text);
    memcpy(at, text, bytes + 1);
    return at + bytes;
}

static char *add_many(char *at, char c, size_t count)
{
    memset(at, c, count);
    return at + count;
}

/* "GET /aaa... HTTP/1.1" with a target, and header lines, of the asked sizes; free() it. */
static char *sized(size_t target, size_t header, size_t fields)
{
    char *text = malloc(target + header + 64), *at = text;
    assert_non_null(text);
    at = add_many(add(at, "GET /"), 'a', target - 1);
    char *start = at = add(at, " HTTP/1.1\r\n");
    at = add(at, "Host: a\r\n");
    for (size_t i = 1; i + 1 < fields; i++) at = add(at, "X:\r\n");
    if (fields > 1) {
        at = add(at, "Y:");
        at = add(add_many(at, 'y', header - 2 - (size_t)(at - start)), "\r\n");
    }
    add(at, "\r\n");
    return text;
}

static void every_limit_holds_at_n_and_fails_at_n_plus_1(void **state)
{
    (void)state;
    static const struct {
        size_t target, header, fields;
        kn_http_parse_limits limits;
        int status;
    } cases[] = {
        {KN_HTTP_TARGET_BYTES_MAX, 100, 2, {100, 16384, 8192}, 0},
        {KN_HTTP_TARGET_BYTES_MAX + 1, 100, 2, {100, 16384, 8192}, 414},
        {KN_HTTP_TARGET_BYTES_MAX + 100, 100, 2, {100, 16384, 8192}, 414},
        {10, 100, 2, {100, 16384, 10}, 0},
        {11, 100, 2, {100, 16384, 10}, 414},
        {1, KN_HTTP_HEADER_BYTES_MAX, 2, {100, 16384, 8192}, 0},
        {1, KN_HTTP_HEADER_BYTES_MAX + 1, 2, {100, 16384, 8192}, 431},
        {1, KN_HTTP_HEADER_BYTES_MAX + 2, 2, {100, 16384, 8192}, 431},
        {1, KN_HTTP_HEADER_BYTES_MAX + 3, 2, {100, 16384, 8192}, 431},
        {KN_HTTP_TARGET_BYTES_MAX, KN_HTTP_HEADER_BYTES_MAX, 100, {100, 16384, 8192}, 0},
        {1, 50, 2, {100, 50, 8192}, 0},
        {1, 51, 2, {100, 50, 8192}, 431},
        {1, 1000, KN_HTTP_FIELDS_MAX, {100, 16384, 8192}, 0},
        {1, 1000, KN_HTTP_FIELDS_MAX + 1, {100, 16384, 8192}, 431},
        {1, 1000, 5, {5, 16384, 8192}, 0},
        {1, 1000, 6, {5, 16384, 8192}, 431},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = sized(cases[i].target, cases[i].header, cases[i].fields);
        const outcome got = parse_limited(text, strlen(text), &cases[i].limits);
        if (got.refusal.status != cases[i].status || (got.status == KN_OK) != (cases[i].status == 0))
            fail_msg("case %zu: %d %s", i, got.refusal.status, got.refusal.message);
        free(text);
    }
    /* Without an end in sight, too. */
    char *endless = malloc(40000);
    assert_non_null(endless);
    memset(endless, 'A', 40000);
    assert_int_equal(parse_limited(endless, 40000, &usual).refusal.status, 414);
    *add(endless, GET) = 'X';
    assert_int_equal(parse_limited(endless, 40000, &usual).refusal.status, 431);
    free(endless);
}

static void an_unfinished_head_asks_for_more(void **state)
{
    (void)state;
    static const char text[] = GET "X: y\r\n\r\n";
    for (size_t count = 0; count < sizeof text - 1; count++)
        assert_int_equal(parse_limited(text, count, &usual).status, KN_AGAIN);
}

static void paths_are_decoded_or_refused(void **state)
{
    (void)state;
    static const struct {
        const char *path, *decoded;
    } cases[] = {
        {"/", "/"},
        {"/v1/videos/video_1", "/v1/videos/video_1"},
        {"/a%20b", "/a b"},
        {"/%41%7e%25", "/A~%"},
        {"/%2525", "/%25"}, /* once */
        {"/a..b/...", "/a..b/..."},
        {"//a", "//a"},
        {"*", "*"},
        {"/%2f", NULL},
        {"/%2F..", NULL},
        {"/%5c", NULL},
        {"/%00", NULL},
        {"/%0a", NULL},
        {"/%7f", NULL},
        {"/%c3%a9", NULL},
        {"/%", NULL},
        {"/%4", NULL},
        {"/%4g", NULL},
        {"/%g4", NULL},
        {"/.", NULL},
        {"/..", NULL},
        {"/../a", NULL},
        {"/a/./b", NULL},
        {"/a/../b", NULL},
        {"/a/%2e%2e/b", NULL},
        {"/a/.%2E", NULL},
        {"/%2e", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char out[64];
        const size_t bytes = strlen(cases[i].path);
        char *exact = malloc(bytes);
        assert_non_null(exact);
        memcpy(exact, cases[i].path, bytes);
        const kn_status st = kn_http_decode_path(out, exact, bytes);
        free(exact);
        if ((st == KN_OK) != (cases[i].decoded != NULL)) fail_msg("%s: %s", cases[i].path, kn_status_name(st));
        if (cases[i].decoded) assert_string_equal(out, cases[i].decoded);
    }
}

/* ---- chunked bodies ---- */

typedef struct body {
    kn_status status;
    int refusal;
    size_t read, bytes; /* of the input; of the body */
    char text[4096];
} body;

static void feed_body(body *out, kn_http_chunks *chunks, const char *bytes, size_t count)
{
    kn_http_refusal refusal = {0};
    for (size_t at = 0; at < count && out->status == KN_AGAIN;) {
        const char *data;
        size_t used, data_bytes;
        out->status = kn_http_parse_chunks(chunks, bytes + at, count - at, &used, &data, &data_bytes, &refusal);
        assert_true(used > 0 && used <= count - at && data_bytes <= used);
        if (out->bytes + data_bytes <= sizeof out->text) memcpy(out->text + out->bytes, data, data_bytes);
        out->bytes += data_bytes;
        out->read += used;
        out->refusal = refusal.status;
        at += used;
    }
}

static body decode(const char *bytes, size_t count)
{
    body whole = {.status = KN_AGAIN}, cut;
    kn_http_chunks chunks = {0};
    feed_body(&whole, &chunks, bytes, count);
    for (size_t at = 0; at <= count; at += count > 500 ? 61 : 1) { /* in two; at the end: byte by byte */
        cut = (body){.status = KN_AGAIN};
        chunks = (kn_http_chunks){0};
        if (at < count) {
            feed_body(&cut, &chunks, bytes, at);
            feed_body(&cut, &chunks, bytes + at, cut.status == KN_AGAIN ? count - at : 0);
        } else {
            for (size_t i = 0; i < count && cut.status == KN_AGAIN; i++) feed_body(&cut, &chunks, bytes + i, 1);
        }
        if (cut.status != whole.status || cut.refusal != whole.refusal || cut.bytes != whole.bytes ||
            cut.read != whole.read || memcmp(cut.text, whole.text, sizeof cut.text) != 0)
            fail_msg("cutting at %zu changes the result of: %.100s", at, bytes);
    }
    return whole;
}

static void chunks_are_joined(void **state)
{
    (void)state;
    static const struct {
        const char *text, *joined, *rest;
    } cases[] = {
        {"0\r\n\r\n", "", ""},
        {"5\r\nhello\r\n0\r\n\r\n", "hello", ""},
        {"5\r\nhello\r\n0\r\n\r\nGET /", "hello", "GET /"},
        {"005\r\nhello\r\n000\r\n\r\n", "hello", ""},
        {"1\r\na\r\n2\r\nbc\r\nA\r\n0123456789\r\n0\r\n\r\n", "abc0123456789", ""},
        {"a\r\n\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n", "\r\n\r\n\r\n\r\n\r\n", ""},
        {"5;a=b; c=\"d\"\r\nhello\r\n0;x\r\n\r\n", "hello", ""},
        {"1;\r\na\r\n0\r\nX-Sum: 1\r\nY:\r\n\r\n", "a", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const body got = decode(cases[i].text, strlen(cases[i].text));
        assert_int_equal(got.status, KN_OK);
        assert_int_equal(got.bytes, strlen(cases[i].joined));
        assert_memory_equal(got.text, cases[i].joined, got.bytes);
        assert_string_equal(cases[i].text + got.read, cases[i].rest);
    }
    for (size_t count = 0; count < strlen(cases[1].text); count++)
        assert_int_equal(decode(cases[1].text, count).status, KN_AGAIN);
}

static void malformed_chunks_are_refused(void **state)
{
    (void)state;
    static const char *const cases[] = {
        "\r\n",
        "x\r\n",
        "-1\r\n",
        "+1\r\na\r\n",
        "0x1\r\na\r\n",
        " 1\r\na\r\n",
        "1 \r\na\r\n",
        "1\na\r\n0\r\n\r\n",
        "1\r\na\n0\r\n\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "1\r\na\r0\r\n\r\n",
        "1\ra\r\n",
        "1\r\na\r\n0\n\n",
        "1\r\na\r\n0\r\n\n",
        "1;a\nb\r\na\r\n0\r\n\r\n",
        "1;a\rb\r\na\r\n0\r\n\r\n",
        "1;\x01\r\na\r\n0\r\n\r\n",
        ";a\r\n",
        "1000000000000000\r\n",
        "ffffffffffffffffffff\r\n",
        "0\r\n x\r\n\r\n",
        "0\r\nx\r\n\r\n",
        "0\r\n:x\r\n\r\n",
        "0\r\nx y: z\r\n\r\n",
        "0\r\nx: y\n\r\n",
        "0\r\nx: y\r\r\n\r\n",
        "0\r\nx: y\r\n z\r\n\r\n",
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const body got = decode(cases[i], strlen(cases[i]));
        if (got.status != KN_INVALID || got.refusal != 400)
            fail_msg("%s: %s %d", cases[i], kn_status_name(got.status), got.refusal);
    }
}

/* `count` copies of `piece` between `before` and `after`. */
static body decode_many(const char *before, const char *piece, size_t count, const char *after)
{
    const size_t bytes = strlen(before) + count * strlen(piece) + strlen(after);
    char *text = malloc(bytes + 1), *at = text;
    assert_non_null(text);
    at = add(at, before);
    for (size_t i = 0; i < count; i++) at = add(at, piece);
    add(at, after);
    body got = {.status = KN_AGAIN};
    kn_http_chunks chunks = {0};
    if (bytes < 20000)
        got = decode(text, bytes);
    else
        feed_body(&got, &chunks, text, bytes);
    free(text);
    return got;
}

static void chunk_limits_hold_at_n_and_fail_at_n_plus_1(void **state)
{
    (void)state;
    body got = decode_many("", "1\r\na\r\n", KN_HTTP_CHUNKS_MAX, "0\r\n\r\n");
    assert_int_equal(got.status, KN_OK);
    assert_int_equal(got.bytes, KN_HTTP_CHUNKS_MAX);
    got = decode_many("", "1\r\na\r\n", KN_HTTP_CHUNKS_MAX + 1, "0\r\n\r\n");
    assert_int_equal(got.refusal, 400);
    got = decode_many("1;", "x", KN_HTTP_CHUNK_EXTENSION_BYTES, "\r\na\r\n0\r\n\r\n");
    assert_int_equal(got.status, KN_OK);
    got = decode_many("1;", "x", KN_HTTP_CHUNK_EXTENSION_BYTES + 1, "\r\na\r\n0\r\n\r\n");
    assert_int_equal(got.refusal, 400);
    got = decode_many("", "1;x\r\na\r\n", KN_HTTP_CHUNK_EXTENSION_BYTES + 1, "0\r\n\r\n"); /* over the whole body */
    assert_int_equal(got.refusal, 400);
    got = decode_many("0\r\nx:", "y", KN_HTTP_TRAILER_BYTES - 3, "\r\n\r\n"); /* "x:" and the CR count */
    assert_int_equal(got.status, KN_OK);
    got = decode_many("0\r\nx:", "y", KN_HTTP_TRAILER_BYTES - 2, "\r\n\r\n");
    assert_int_equal(got.refusal, 431);
    got = decode_many("", "0", 15, "\r\n\r\n");
    assert_int_equal(got.status, KN_OK);
    got = decode_many("", "0", 16, "\r\n\r\n");
    assert_int_equal(got.refusal, 400);
}

static void tokens_and_values_are_told_apart(void **state)
{
    (void)state;
    assert_true(kn_http_is_token("x-Request_id.1!", 15));
    assert_false(kn_http_is_token("", 0));
    assert_false(kn_http_is_token("a b", 3));
    assert_false(kn_http_is_token("a\xc3", 2));
    assert_true(kn_http_is_field_value("", 0));
    assert_true(kn_http_is_field_value("a \t\xc3\xa9", 5));
    assert_false(kn_http_is_field_value("a\r\nb: c", 7));
    assert_false(kn_http_is_field_value("\0", 1));
    assert_string_equal(kn_http_method_name(KN_HTTP_DELETE), "DELETE");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_whole_request_is_taken_apart),
        cmocka_unit_test(versions_and_connection_decide_on_keeping_alive),
        cmocka_unit_test(targets_come_in_three_forms),
        cmocka_unit_test(bodies_are_announced_in_one_way),
        cmocka_unit_test(what_could_be_read_in_two_ways_is_refused),
        cmocka_unit_test(every_limit_holds_at_n_and_fails_at_n_plus_1),
        cmocka_unit_test(an_unfinished_head_asks_for_more),
        cmocka_unit_test(paths_are_decoded_or_refused),
        cmocka_unit_test(chunks_are_joined),
        cmocka_unit_test(malformed_chunks_are_refused),
        cmocka_unit_test(chunk_limits_hold_at_n_and_fail_at_n_plus_1),
        cmocka_unit_test(tokens_and_values_are_told_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

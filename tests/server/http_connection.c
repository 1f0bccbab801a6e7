/* SPDX-License-Identifier: Apache-2.0
 *
 * A running server and clients that behave badly: slow, cut off, ambiguous, impatient. */
#define _GNU_SOURCE
#include "tests/server/http_running.h"

#define HELLO "GET /hello HTTP/1.1\r\nHost: a\r\n\r\n"

static void keep_only(running *r, kn_http_exchange *exchange)
{
    r->kept = exchange;
}

static void answer_kept(running *r, void *argument)
{
    assert_non_null(r->kept);
    kn_http_exchange *exchange = r->kept;
    r->kept = NULL;
    reply_text(exchange, 200, argument);
}

static void a_connection_serves_many_requests(void **state)
{
    (void)state;
    running r = {0};
    start_server(&r);
    client c = client_open(&r);
    for (int i = 0; i < 20; i++) {
        assert_true(client_send(&c, HELLO));
        expect_reply(&c, 200, "hello\n");
    }
    const kn_http_stats stats = stats_of(&r);
    assert_int_equal(stats.accepted, 1);
    assert_int_equal(stats.requests, 20);
    client_close(&c);
    wait_for_connections(&r, 0);
    assert_int_equal(r.closed_seen, 0);
    stop_server(&r);
}

static void a_request_may_come_byte_by_byte(void **state)
{
    (void)state;
    static const char text[] = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                               "5\r\nhello\r\n1;x=y\r\n!\r\n0\r\nX: y\r\n\r\n";
    running r = {0};
    start_server(&r);
    client c = client_open(&r);
    for (size_t i = 0; i < sizeof text - 1; i++) assert_true(client_write(&c, text + i, 1));
    expect_reply(&c, 200, "hello!");
    client_close(&c);
    stop_server(&r);
}

static void pipelined_requests_are_answered_in_order(void **state)
{
    (void)state;
    enum { REQUESTS = 300 };
    running r = {.request = keep_only};
    start_server(&r);
    client c = client_open(&r);
    char text[REQUESTS * 96] = "", body[16];
    size_t used = 0;
    for (int i = 0; i < REQUESTS; i++) {
        const int digits = snprintf(body, sizeof body, "%d", i);
        used += (size_t)snprintf(text + used, sizeof text - used,
                                 "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", digits, body);
    }
    assert_true(client_write(&c, text, used));
    for (int i = 0; i < REQUESTS; i++) {
        snprintf(body, sizeof body, "%d", i);
        expect_reply(&c, 200, body);
    }
    /* One at a time: the second of these is not looked at before the first is answered. */
    assert_true(client_send(&c, "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n" HELLO));
    wait_for(&r.requests_seen, REQUESTS + 1);
    on_loop(&r, answer_kept, "first");
    expect_reply(&c, 200, "first");
    expect_reply(&c, 200, "hello\n");
    client_close(&c);
    stop_server(&r);
}

static void measure_input(running *r, void *argument)
{
    *(size_t *)argument = evbuffer_get_length(bufferevent_get_input(r->kept->connection->stream));
}

static void read_ahead_is_bounded(void **state)
{
    (void)state;
    running r = {.request = keep_only};
    start_server(&r);
    client c = client_open(&r);
    char junk[4096];
    size_t ahead = 0;
    memset(junk, 'x', sizeof junk);
    assert_true(client_send(&c, "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n"));
    wait_for(&r.requests_seen, 1);
    for (int i = 0; i < WAIT_SECONDS * 1000 && ahead < KN_HTTP_READ_AHEAD_BYTES; i++) {
        while (send(c.fd, junk, sizeof junk, MSG_NOSIGNAL | MSG_DONTWAIT) > 0) continue;
        pause_shortly();
        on_loop(&r, measure_input, &ahead);
    }
    for (int i = 0; i < 50; i++) { /* whatever else is sent lies in the sockets' buffers */
        while (send(c.fd, junk, sizeof junk, MSG_NOSIGNAL | MSG_DONTWAIT) > 0) continue;
        pause_shortly();
    }
    on_loop(&r, measure_input, &ahead);
    assert_in_range(ahead, KN_HTTP_READ_AHEAD_BYTES, KN_HTTP_READ_AHEAD_BYTES + (16 << 10));
    on_loop(&r, answer_kept, "late"); /* and goes on where it stopped */
    expect_reply(&c, 200, "late");
    expect_reply(&c, 414, NULL);
    client_close(&c);
    stop_server(&r);
}

static void every_ambiguity_is_answered_400_and_closed(void **state)
{
    (void)state;
    static const char *const requests[] = {
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4,4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a/../hello HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /%2e%2e/hello HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /%2fhello HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloo\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
    };
    running r = {0};
    start_server(&r);
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        char text[512]; /* with a second request behind it, which must never be answered */
        snprintf(text, sizeof text, "%s" HELLO, requests[i]);
        expect_exchange(&r, text, 400, true);
    }
    const int finished = sizeof requests / sizeof *requests;
    wait_for(&r.finished_seen, finished);
    assert_int_equal(stats_of(&r).malformed, finished);
    assert_int_equal(r.requests_seen, 0);
    assert_int_equal(r.headers_seen, 3); /* the malformed chunks, */
    assert_int_equal(r.closed_seen, 3);  /* which the handler is told about */
    stop_server(&r);
}

static void other_refusals_have_their_own_status(void **state)
{
    (void)state;
    static const struct {
        int status;
        const char *text;
    } cases[] = {
        {415, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"},
        {415, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Encoding: br\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
        {417, "POST /echo HTTP/1.1\r\nHost: a\r\nExpect: tea\r\nContent-Length: 3\r\n\r\nabc"},
        {501, "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"},
        {505, "GET / HTTP/3.0\r\nHost: a\r\n\r\n"},
        {505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
    };
    running r = {0};
    start_server(&r);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) expect_exchange(&r, cases[i].text, cases[i].status, true);
    assert_int_equal(r.headers_seen, 0);
    /* Not refused: an upgrade to HTTP/2 in clear text is ignored, as RFC 9110 7.8 allows. */
    expect_exchange(&r,
                    "GET /hello HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
                    "HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
                    200, false);
    expect_exchange(&r, "GET /hello HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\n\r\n", 200, false);
    expect_exchange(&r, "GET http://a/hello HTTP/1.1\r\nHost: a\r\n\r\n", 200, false);
    stop_server(&r);
}

static void header_limits_hold_on_the_wire(void **state)
{
    (void)state;
    running r = {.params.limits = {.fields = 5, .header_bytes = 200, .target_bytes = 20}};
    char text[600];
    start_server(&r);
    expect_exchange(&r, "GET /hello HTTP/1.1\r\nHost: a\r\nA: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\n\r\n", 200, false);
    expect_exchange(&r, "GET /hello HTTP/1.1\r\nHost: a\r\nA: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\nE: 5\r\n\r\n", 431, true);
    snprintf(text, sizeof text, "GET /hello HTTP/1.1\r\nHost: a\r\nX: %0*d\r\n\r\n", 186, 0);
    expect_exchange(&r, text, 200, false);
    snprintf(text, sizeof text, "GET /hello HTTP/1.1\r\nHost: a\r\nX: %0*d\r\n\r\n", 187, 0);
    expect_exchange(&r, text, 431, true);
    expect_exchange(&r, "GET /hello?0123456789012 HTTP/1.1\r\nHost: a\r\n\r\n", 200, false);
    expect_exchange(&r, "GET /hello?01234567890123 HTTP/1.1\r\nHost: a\r\n\r\n", 414, true);
    stop_server(&r);
}

/* ---- time ---- */

static void a_slow_header_section_is_refused(void **state)
{
    (void)state;
    running r = {.params.limits = {.header_ns = MILLISECONDS(1500)}};
    start_server(&r);
    client silent = client_open(&r), slow = client_open(&r), good = client_open(&r);
    assert_true(client_send(&slow, "GET /hello HTTP/1.1\r\nHost"));
    assert_true(client_send(&good, HELLO));
    expect_reply(&good, 200, "hello\n");
    expect_reply(&slow, 408, NULL);
    assert_true(client_ends(&slow));
    assert_true(client_ends(&silent));      /* without a word: it never asked */
    assert_true(client_send(&good, HELLO)); /* between requests another limit counts */
    expect_reply(&good, 200, "hello\n");
    assert_int_equal(stats_of(&r).timeouts, 1);
    client_close(&silent);
    client_close(&slow);
    client_close(&good);
    stop_server(&r);
}

/* As F4: each byte comes in time, the header section does not. */
static void bytes_that_trickle_do_not_buy_time(void **state)
{
    (void)state;
    static const char text[] = "GET /hello HTTP/1.1\r\nHost: a\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    running r = {.params.limits = {.header_ns = MILLISECONDS(300)}};
    start_server(&r);
    client c = client_open(&r);
    for (size_t i = 0; i < sizeof text - 1 && client_write(&c, text + i, 1); i++) usleep(20000);
    expect_reply(&c, 408, NULL);
    client_close(&c);
    stop_server(&r);
}

static void an_idle_connection_is_closed(void **state)
{
    (void)state;
    running r = {.params.limits = {.idle_ns = MILLISECONDS(300)}};
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, HELLO));
    expect_reply(&c, 200, "hello\n");
    assert_true(client_ends(&c));
    assert_int_equal(stats_of(&r).timeouts, 0);
    client_close(&c);
    stop_server(&r);
}

static void a_slow_body_is_refused(void **state)
{
    (void)state;
    running r = {.params.limits = {.body_grace_ns = MILLISECONDS(300), .body_bytes_per_second = 1 << 20}};
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nabc"));
    expect_reply(&c, 408, NULL);
    assert_true(client_ends(&c));
    wait_for(&r.closed_seen, 1);
    assert_int_equal(r.requests_seen, 0);
    assert_int_equal(stats_of(&r).timeouts, 1);
    assert_int_equal(stats_of(&r).memory_bytes, 0);
    client_close(&c);
    stop_server(&r);
}

/* A burst pays for no later stall: the credit is never more than the grace. */
static void a_body_that_stalls_after_a_burst_is_refused(void **state)
{
    (void)state;
    enum { BURST = 1 << 20 };
    running r = {.params.limits = {.body_grace_ns = MILLISECONDS(300), .body_bytes_per_second = 1000}};
    start_server(&r);
    client c = client_open(&r);
    char *burst = calloc(1, BURST);
    assert_non_null(burst);
    assert_true(client_send(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n"));
    assert_true(client_write(&c, burst, BURST)); /* a thousand seconds' worth */
    expect_reply(&c, 408, NULL);
    free(burst);
    client_close(&c);
    stop_server(&r);
}

/* ---- clients that leave ---- */

static void leaving_while_the_handler_works_is_noticed(void **state)
{
    (void)state;
    running r = {.request = keep_only};
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n"));
    wait_for(&r.requests_seen, 1);
    client_close(&c);
    wait_for(&r.closed_seen, 1);
    wait_for(&r.finished_seen, 1);
    wait_for_connections(&r, 0);
    assert_false(r.records[0].complete);
    assert_int_equal(r.records[0].status, 0);
    stop_server(&r);
}

static void leaving_in_the_middle_of_a_body_is_noticed(void **state)
{
    (void)state;
    running r = {0};
    start_server(&r);
    for (int i = 0; i < 2; i++) {
        client c = client_open(&r);
        assert_true(client_send(&c, i ? "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel"
                                      : "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc"));
        wait_for(&r.headers_seen, i + 1);
        client_close(&c);
        wait_for(&r.closed_seen, i + 1);
    }
    client c = client_open(&r); /* in the middle of the header section: the handler never knew */
    assert_true(client_send(&c, "POST /echo HTTP/1.1\r\nHo"));
    client_close(&c);
    wait_for(&r.finished_seen, 3);
    assert_int_equal(r.closed_seen, 2);
    assert_int_equal(r.requests_seen, 0);
    wait_for_connections(&r, 0);
    assert_int_equal(stats_of(&r).memory_bytes, 0);
    stop_server(&r);
}

static void a_reset_is_survived(void **state)
{
    (void)state;
    const struct linger at_once = {.l_onoff = 1};
    running r = {.request = keep_only};
    start_server(&r);
    for (int i = 0; i < 3; i++) {
        client c = client_open(&r);
        assert_true(client_send(&c, "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n"));
        wait_for(&r.requests_seen, i + 1);
        setsockopt(c.fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
        client_close(&c);
        wait_for(&r.closed_seen, i + 1);
    }
    expect_exchange(&r, HELLO, 200, false);
    stop_server(&r);
}

static void a_client_that_only_half_closes_gets_its_replies(void **state)
{
    (void)state;
    running r = {0};
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, HELLO HELLO HELLO));
    shutdown(c.fd, SHUT_WR);
    for (int i = 0; i < 3; i++) expect_reply(&c, 200, "hello\n");
    assert_true(client_ends(&c));
    client_close(&c);
    stop_server(&r);
}

static void a_refused_client_sees_its_refusal_before_the_end(void **state)
{
    (void)state;
    enum { UPLOAD = 8 << 20 };
    running r = {0};
    start_server(&r);
    client c = client_open(&r);
    char *upload = calloc(1, UPLOAD);
    assert_non_null(upload);
    assert_true(client_send(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n"));
    (void)client_write(&c, upload, UPLOAD); /* goes on sending, as many clients do, and must not meet a reset */
    expect_reply(&c, 413, NULL);
    free(upload);
    client_close(&c);
    stop_server(&r);
}

static void lingering_ends(void **state)
{
    (void)state;
    running r = {.params.limits = {.linger_ns = MILLISECONDS(200)}};
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, "GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
    expect_reply(&c, 200, "hello\n");
    assert_true(client_ends(&c));
    wait_for_connections(&r, 0); /* although the client keeps its side open */
    client_close(&c);
    stop_server(&r);
}

/* ---- 100 Continue ---- */

static void refuse_early(running *r, kn_http_exchange *exchange)
{
    (void)r;
    if (strcmp(kn_http_path(exchange), "/early") == 0) reply_text(exchange, 401, "no\n");
}

static void an_expected_continue_is_answered_either_way(void **state)
{
    (void)state;
    running r = {.headers = refuse_early};
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"));
    expect_reply(&c, 100, NULL);
    assert_true(client_send(&c, "hello"));
    expect_reply(&c, 200, "hello");
    /* Not asked for where the body is there already, or where there is none. */
    assert_true(
        client_send(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello"));
    expect_reply(&c, 200, "hello");
    assert_true(client_send(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n"));
    expect_reply(&c, 200, "");
    client_close(&c);
    expect_exchange(&r, "POST /early HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", 401,
                    true);
    expect_exchange(&r, "POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1048577\r\n\r\n", 413,
                    true);
    stop_server(&r);
}

static void an_early_refusal_costs_the_connection_only_where_it_must(void **state)
{
    (void)state;
    running r = {.headers = refuse_early};
    start_server(&r);
    expect_exchange(&r, "GET /early HTTP/1.1\r\nHost: a\r\n\r\n", 401, false);
    expect_exchange(&r, "POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc", 401, true);
    expect_exchange(&r, "POST /early HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 401, true);
    client c = client_open(&r); /* a body that came along is dropped */
    assert_true(client_send(&c, "POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" HELLO));
    expect_reply(&c, 401, "no\n");
    expect_reply(&c, 200, "hello\n");
    client_close(&c);
    wait_for(&r.finished_seen, 5);
    assert_int_equal(r.closed_seen, 0);
    stop_server(&r);
}

static void chunks_of_every_size_arrive_whole(void **state)
{
    (void)state;
    enum { BODY = 3000 };
    static const size_t sizes[] = {1, 2, 3, 7, 16, 100, 1000, 1499, 2999, 3000};
    running r = {0};
    char body[BODY + 1], text[BODY * 8];
    start_server(&r);
    for (size_t i = 0; i < BODY; i++) body[i] = (char)('!' + i * 7 % 90);
    body[BODY] = '\0';
    client c = client_open(&r);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        size_t used =
            (size_t)snprintf(text, sizeof text, "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        for (size_t at = 0; at < BODY; at += sizes[s]) {
            const size_t size = BODY - at < sizes[s] ? BODY - at : sizes[s];
            used += (size_t)snprintf(text + used, sizeof text - used, "%zx\r\n%.*s\r\n", size, (int)size, body + at);
        }
        used += (size_t)snprintf(text + used, sizeof text - used, "0\r\n\r\n");
        for (size_t at = 0; at < used; at += 1 + sizes[s] * 3) { /* cut elsewhere than at the chunks */
            const size_t rest = used - at, piece = 1 + sizes[s] * 3;
            assert_true(client_write(&c, text + at, rest < piece ? rest : piece));
        }
        expect_reply(&c, 200, body);
    }
    client_close(&c);
    stop_server(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_connection_serves_many_requests),
        cmocka_unit_test(a_request_may_come_byte_by_byte),
        cmocka_unit_test(pipelined_requests_are_answered_in_order),
        cmocka_unit_test(read_ahead_is_bounded),
        cmocka_unit_test(every_ambiguity_is_answered_400_and_closed),
        cmocka_unit_test(other_refusals_have_their_own_status),
        cmocka_unit_test(header_limits_hold_on_the_wire),
        cmocka_unit_test(a_slow_header_section_is_refused),
        cmocka_unit_test(bytes_that_trickle_do_not_buy_time),
        cmocka_unit_test(an_idle_connection_is_closed),
        cmocka_unit_test(a_slow_body_is_refused),
        cmocka_unit_test(a_body_that_stalls_after_a_burst_is_refused),
        cmocka_unit_test(leaving_while_the_handler_works_is_noticed),
        cmocka_unit_test(leaving_in_the_middle_of_a_body_is_noticed),
        cmocka_unit_test(a_reset_is_survived),
        cmocka_unit_test(a_client_that_only_half_closes_gets_its_replies),
        cmocka_unit_test(a_refused_client_sees_its_refusal_before_the_end),
        cmocka_unit_test(lingering_ends),
        cmocka_unit_test(an_expected_continue_is_answered_either_way),
        cmocka_unit_test(an_early_refusal_costs_the_connection_only_where_it_must),
        cmocka_unit_test(chunks_of_every_size_arrive_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

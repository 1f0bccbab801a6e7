/* SPDX-License-Identifier: Apache-2.0
 *
 * What a handler sees of a request, and how bodies are taken, bounded and counted. */
#define _GNU_SOURCE
#include "tests/server/http_running.h"

#include "base/clock.h"
#include "base/mem.h"

#define HELLO "GET /hello HTTP/1.1\r\nHost: a\r\n\r\n"

/* ---- what handlers see ---- */

static void show(running *r, kn_http_exchange *e)
{
    char text[1024];
    size_t bytes = 0;
    const char *test = kn_http_header(e, "x-TEST"), *empty = kn_http_header(e, "X-Empty");
    (void)r;
    (void)kn_http_body(e, &bytes);
    snprintf(text, sizeof text, "%s|%s|%s|%s|%s|%d|%lld|%zu|%s|%zu|%s|%s|%zu",
             kn_http_method_name(kn_http_request_method(e)), kn_http_path(e), kn_http_query(e), kn_http_host(e),
             kn_http_remote(e), kn_http_is_tls(e), (long long)kn_http_content_length(e), bytes, test ? test : "-",
             kn_http_header_count(e, "X-Test"), empty ? empty : "-", kn_http_header(e, "X-None") ? "+" : "-",
             strlen(kn_http_request_id(e)));
    reply_text(e, 200, text);
}

static void the_request_is_what_the_client_sent(void **state)
{
    (void)state;
    running r = {.request = show};
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, "DELETE /v1/a%20b?c=%2F&d HTTP/1.1\r\nHost: Example.com:80\r\nX-Test:  one \r\n"
                                "x-test: two\r\nX-Empty:\r\n\r\n"));
    expect_reply(&c, 200, "DELETE|/v1/a b|c=%2F&d|Example.com:80|127.0.0.1|0|0|0|one|2||-|36");
    assert_true(client_send(&c, "PUT http://b HTTP/1.1\r\nHost: B\r\nContent-Length: 2\r\n\r\nhi"));
    expect_reply(&c, 200, "PUT|/||b|127.0.0.1|0|2|2|-|0|-|-|36");
    assert_true(
        client_send(&c, "OPTIONS * HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"));
    expect_reply(&c, 200, "OPTIONS|*||b|127.0.0.1|0|-1|1|-|0|-|-|36");
    assert_true(client_send(&c, "GET http://h?q HTTP/1.1\r\nHost: h\r\n\r\n"));
    expect_reply(&c, 200, "GET|/|q|h|127.0.0.1|0|0|0|-|0|-|-|36");
    assert_true(client_send(&c, "GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
    expect_reply(&c, 200, "GET|/x|||127.0.0.1|0|0|0|-|0|-|-|36");
    client_close(&c);
    stop_server(&r);
}

/* Memory is reused from request to request; nothing of the last one may show. */
static void a_large_request_leaves_no_trace_in_the_next(void **state)
{
    (void)state;
    running r = {.request = show};
    char text[8000];
    start_server(&r);
    client c = client_open(&r);
    for (int i = 0; i < 3; i++) {
        snprintf(text, sizeof text, "GET /%0*d HTTP/1.1\r\nHost: a\r\nX-Test: %0*d\r\nX-Empty: no\r\n\r\n", 3000, 1,
                 3000, 2);
        reply got;
        assert_true(client_send(&c, text) && client_reply(&c, &got));
        free_reply(&got);
        assert_true(client_send(&c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
        expect_reply(&c, 200, "GET|/||a|127.0.0.1|0|0|0|-|0|-|-|36");
    }
    client_close(&c);
    stop_server(&r);
}

/* ---- bodies ---- */

static void limit_to_ten(running *r, kn_http_exchange *exchange)
{
    (void)r;
    if (strcmp(kn_http_path(exchange), "/ten") == 0) kn_http_body_limit(exchange, 10);
    if (strcmp(kn_http_path(exchange), "/none") == 0) kn_http_body_limit(exchange, 0);
}

static void body_limits_hold_at_n_and_fail_at_n_plus_1(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int status;
        bool closes;
    } cases[] = {
        {"POST /ten HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789", 200, false},
        {"POST /ten HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n01234567890", 413, true},
        {"POST /ten HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775799\r\n\r\n", 413, true},
        {"POST /ten HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n012345678\r\n1\r\n9\r\n0\r\n\r\n",
         200, false},
        {"POST /none HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 200, false},
        {"POST /none HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", 413, true},
        {"POST /none HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 200, false},
        {"POST /none HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 413, true},
    };
    running r = {.headers = limit_to_ten, .request = show, .params.limits.body_bytes = 20};
    start_server(&r);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_exchange(&r, cases[i].text, cases[i].status, cases[i].closes);
    /* The tenth byte is fine, the eleventh is not. */
    static const char chunked[] = "POST /ten HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                                  "9\r\n012345678\r\n2\r\n9";
    const int before = atomic_load(&r.headers_seen);
    client c = client_open(&r);
    assert_true(client_send(&c, chunked));
    wait_for(&r.headers_seen, before + 1);
    assert_true(client_send(&c, "a"));
    expect_reply(&c, 413, NULL);
    client_close(&c);
    /* Without a word from the handler: the server's default. */
    expect_exchange(&r, "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n01234567890123456789", 200, false);
    expect_exchange(&r, "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 21\r\n\r\n012345678901234567890", 413, true);
    stop_server(&r);
}

static void no_handler_gets_more_than_the_ceiling(void **state)
{
    (void)state;
    kn_http_exchange exchange = {0};
    kn_http_body_limit(&exchange, KN_HTTP_BODY_BYTES_MAX);
    assert_int_equal(exchange.body_limit, KN_HTTP_BODY_BYTES_MAX);
    kn_http_body_limit(&exchange, (uint64_t)KN_HTTP_BODY_BYTES_MAX + 1);
    assert_int_equal(exchange.body_limit, KN_HTTP_BODY_BYTES_MAX);
}

static void large_bodies_arrive_whole_and_leave(void **state)
{
    (void)state;
    enum { BODY = 5 << 20 };
    running r = {0};
    char *body = malloc(BODY + 1), head[128];
    assert_non_null(body);
    for (size_t i = 0; i < BODY; i++) body[i] = (char)('a' + i * i % 26);
    body[BODY] = '\0';
    start_server(&r);
    client c = client_open(&r);
    for (int i = 0; i < 2; i++) {
        snprintf(head, sizeof head, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", BODY);
        assert_true(client_send(&c, head) && client_write(&c, body, BODY));
        expect_reply(&c, 200, body);
    }
    assert_int_equal(stats_of(&r).memory_bytes, 0);
    assert_int_equal(r.records[0].request_bytes, BODY);
    client_close(&c);
    free(body);
    stop_server(&r);
}

static void keep_only(running *r, kn_http_exchange *exchange)
{
    r->kept = exchange;
}

/* Two bodies at a time fit into the budget, to the byte; the third is told to come back. */
static void bodies_share_one_budget(void **state)
{
    (void)state;
    enum { BODY = 10000, ROOM = BODY + 1 };
    char text[BODY + 200];
    running r = {.request = keep_only, .params.limits.memory_bytes = 2 * ROOM};
    start_server(&r);
    snprintf(text, sizeof text, "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%0*d", BODY, BODY, 7);
    client a = client_open(&r), b = client_open(&r);
    assert_true(client_send(&a, text));
    wait_for(&r.requests_seen, 1);
    assert_true(client_send(&b, text));
    wait_for(&r.requests_seen, 2);
    assert_int_equal(stats_of(&r).memory_bytes, 2 * ROOM);
    client c = client_open(&r);
    reply got;
    assert_true(client_send(&c, "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"));
    assert_true(client_reply(&c, &got));
    assert_int_equal(got.status, 503);
    assert_string_equal(reply_header(&got, "Retry-After"), "1");
    free_reply(&got);
    client_close(&c);
    client_close(&a);
    wait_for(&r.closed_seen, 2);
    assert_int_equal(stats_of(&r).memory_bytes, ROOM);
    c = client_open(&r);
    assert_true(client_send(&c, text));
    wait_for(&r.requests_seen, 3);
    client_close(&b);
    client_close(&c);
    wait_for(&r.closed_seen, 4);
    assert_int_equal(stats_of(&r).memory_bytes, 0);
    stop_server(&r);
}

static void a_promised_body_costs_nothing_before_it_comes(void **state)
{
    (void)state;
    running r = {0};
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 60000000\r\n\r\nabc"));
    wait_for(&r.headers_seen, 1);
    for (int i = 0; i < WAIT_SECONDS * 1000 && stats_of(&r).memory_bytes == 0; i++) pause_shortly();
    assert_in_range(stats_of(&r).memory_bytes, 3, 16 << 10);
    client_close(&c);
    stop_server(&r);
}

/* ---- streamed bodies ---- */

typedef struct sum {
    uint64_t bytes, value;
    int pieces;
    bool pause;
    kn_http_exchange *paused;
} sum;

static uint64_t add_to(uint64_t value, const char *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) value = value * 31 + (unsigned char)bytes[i];
    return value;
}

static void want_stream(running *r, kn_http_exchange *exchange)
{
    kn_http_body_limit(exchange, KN_HTTP_BODY_BYTES_MAX);
    kn_http_body_stream(exchange);
    kn_http_set_user(exchange, r->user);
    kn_http_set_route(exchange, "/sum");
}

static void add_piece(running *r, kn_http_exchange *exchange, const void *bytes, size_t count)
{
    sum *s = kn_http_user(exchange);
    (void)r;
    s->value = add_to(s->value, bytes, count);
    s->bytes += count;
    s->pieces++;
    if (s->pause && s->pieces == 1) {
        kn_http_body_pause(exchange);
        s->paused = exchange;
    }
}

static void tell_sum(running *r, kn_http_exchange *exchange)
{
    const sum *s = kn_http_user(exchange);
    char text[64];
    size_t buffered = 1;
    (void)r;
    (void)kn_http_body(exchange, &buffered);
    snprintf(text, sizeof text, "%llu %llx %zu", (unsigned long long)s->bytes, (unsigned long long)s->value, buffered);
    reply_text(exchange, 200, text);
}

static void read_pieces(running *r, void *argument)
{
    *(int *)argument = ((sum *)r->user)->pieces;
}

/* An hour later, as the clock sees it. A pause is not the client's fault. */
static void let_an_hour_pass(running *r, void *argument)
{
    const sum *s = r->user;
    (void)argument;
    kn_http_connection_check(s->paused->connection, kn_clock_ns() + MILLISECONDS(3600000));
}

static void resume(running *r, void *argument)
{
    (void)argument;
    sum *s = r->user;
    kn_http_body_resume(s->paused);
    kn_http_body_resume(s->paused); /* twice is once */
}

static void bodies_can_be_streamed_paused_and_resumed(void **state)
{
    (void)state;
    enum { BODY = 3 << 20 };
    char *body = malloc(BODY + 100), wanted[64];
    assert_non_null(body);
    for (size_t i = 0; i < BODY; i++) body[i] = (char)(i * 2654435761u >> 13);
    for (int pause = 0; pause < 2; pause++) {
        sum s = {.pause = pause};
        running r = {.headers = want_stream, .body = add_piece, .request = tell_sum, .user = &s};
        start_server(&r);
        client c = client_open(&r);
        char head[128];
        snprintf(head, sizeof head, "POST /sum HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n", BODY);
        assert_true(client_send(&c, head));
        assert_true(client_write(&c, body, pause ? 1000 : BODY));
        if (pause) {
            int pieces = 0;
            for (int i = 0; i < WAIT_SECONDS * 1000 && pieces == 0; i++) on_loop(&r, read_pieces, &pieces);
            assert_int_equal(pieces, 1);
            on_loop(&r, let_an_hour_pass, NULL);
            on_loop(&r, read_pieces, &pieces);
            assert_int_equal(pieces, 1);
            on_loop(&r, resume, NULL);
            assert_true(client_write(&c, body + 1000, BODY - 1000));
        }
        assert_true(client_send(&c, "\r\n0\r\n\r\n"));
        snprintf(wanted, sizeof wanted, "%d %llx 0", BODY, (unsigned long long)add_to(0, body, BODY));
        expect_reply(&c, 200, wanted);
        assert_int_equal(stats_of(&r).memory_bytes, 0);
        wait_for(&r.finished_seen, 1);
        assert_int_equal(r.records[0].request_bytes, BODY);
        client_close(&c);
        stop_server(&r);
    }
    free(body);
}

/* ---- allocation ---- */

static void fail_next(running *r, void *argument)
{
    (void)r;
    kn_mem_fail_at(*(uint64_t *)argument);
}

/* Each allocation a request needs fails once; the client is told or cut off, and the next one is served. */
static void running_out_of_memory_costs_one_request(void **state)
{
    (void)state;
    running r = {0};
    start_server(&r);
    int refused = 0, served = 0;
    for (uint64_t n = 1; n <= 6; n++) {
        uint64_t none = 0;
        on_loop(&r, fail_next, &n);
        client c = client_open(&r);
        reply got = {0};
        assert_true(client_send(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"));
        if (!client_reply(&c, &got) || got.status == 503)
            refused++;
        else if (got.status == 200)
            served++;
        free_reply(&got);
        client_close(&c);
        on_loop(&r, fail_next, &none);
        expect_exchange(&r, HELLO, 200, false);
        wait_for_connections(&r, 0);
    }
    assert_int_equal(refused + served, 6);
    assert_true(refused >= 2 && served >= 1);
    assert_int_equal(stats_of(&r).memory_bytes, 0);
    stop_server(&r);
}

static void read_allocations(running *r, void *argument)
{
    (void)r;
    *(uint64_t *)argument = kn_mem_read().allocations;
}

static void a_get_on_a_used_connection_allocates_nothing(void **state)
{
    (void)state;
    running r = {0};
    uint64_t before = 0, after = 0;
    start_server(&r);
    client c = client_open(&r);
    for (int i = 0; i < 11; i++) {
        assert_true(client_send(&c, HELLO));
        expect_reply(&c, 200, "hello\n");
        on_loop(&r, read_allocations, i == 0 ? &before : &after);
    }
    assert_int_equal(after, before);
    client_close(&c);
    stop_server(&r);
}

static void records_tell_what_happened(void **state)
{
    (void)state;
    sum s = {0};
    running r = {.headers = want_stream, .body = add_piece, .request = tell_sum, .user = &s};
    start_server(&r);
    expect_exchange(&r, "POST /sum HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 200, false);
    expect_exchange(&r, "HEAD /sum HTTP/1.1\r\nHost: a\r\n\r\n", 200, false);
    expect_exchange(&r, "junk\r\n\r\n", 400, true);
    wait_for(&r.finished_seen, 3);
    assert_int_equal(r.records[0].method, KN_HTTP_POST);
    assert_int_equal(r.records[0].status, 200);
    assert_int_equal(r.records[0].request_bytes, 3);
    assert_true(r.records[0].reply_bytes > 0 && r.records[0].duration_ns > 0);
    assert_true(r.records[0].parsed && r.records[0].complete);
    assert_int_equal(r.records[1].reply_bytes, 0);
    assert_int_equal(r.records[2].status, 400);
    assert_false(r.records[2].parsed);
    stop_server(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_request_is_what_the_client_sent),
        cmocka_unit_test(a_large_request_leaves_no_trace_in_the_next),
        cmocka_unit_test(body_limits_hold_at_n_and_fail_at_n_plus_1),
        cmocka_unit_test(no_handler_gets_more_than_the_ceiling),
        cmocka_unit_test(large_bodies_arrive_whole_and_leave),
        cmocka_unit_test(bodies_share_one_budget),
        cmocka_unit_test(a_promised_body_costs_nothing_before_it_comes),
        cmocka_unit_test(bodies_can_be_streamed_paused_and_resumed),
        cmocka_unit_test(running_out_of_memory_costs_one_request),
        cmocka_unit_test(a_get_on_a_used_connection_allocates_nothing),
        cmocka_unit_test(records_tell_what_happened),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

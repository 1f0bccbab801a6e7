/* SPDX-License-Identifier: Apache-2.0
 *
 * Replies whole and streamed, and readers that are too slow for them. */
#define _GNU_SOURCE
#include "tests/server/http_running.h"

#define HELLO "GET /hello HTTP/1.1\r\nHost: a\r\n\r\n"

static void keep_only(running *r, kn_http_exchange *exchange)
{
    r->kept = exchange;
}

/* The response every request gets, with the status of kn_http_reply. */
typedef struct answer {
    kn_http_response response;
    kn_status status, again;
} answer;

static void give_answer(running *r, kn_http_exchange *exchange)
{
    answer *a = r->user;
    a->status = kn_http_reply(exchange, &a->response);
    a->again = kn_http_reply(exchange, &a->response); /* still the same callback: the exchange is over, not gone */
}

static void set_answer(running *r, void *argument)
{
    r->user = argument;
}

static void replies_have_the_fields_that_belong_to_them(void **state)
{
    (void)state;
    static const kn_http_reply_header headers[] = {{"Cache-Control", "no-store"}, {"X-Empty", ""}};
    answer a = {.response = {.status = 201,
                             .content_type = "text/plain",
                             .headers = headers,
                             .header_count = 2,
                             .body = "made",
                             .body_bytes = 4}};
    running r = {.request = give_answer, .user = &a};
    reply got;
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n") && client_reply(&c, &got));
    assert_int_equal(strncmp(got.head, "HTTP/1.1 201 Created\r\n", 22), 0);
    assert_string_equal(got.body, "made");
    assert_string_equal(reply_header(&got, "Content-Type"), "text/plain");
    assert_string_equal(reply_header(&got, "Content-Length"), "4");
    assert_string_equal(reply_header(&got, "Cache-Control"), "no-store");
    assert_string_equal(reply_header(&got, "X-Empty"), "");
    assert_null(reply_header(&got, "Connection"));
    assert_null(reply_header(&got, "Transfer-Encoding"));
    free_reply(&got);
    wait_for(&r.finished_seen, 1); /* the handler has returned */
    assert_int_equal(a.status, KN_OK);
    assert_int_equal(a.again, KN_INVALID);
    /* HEAD: the same without the body. */
    assert_true(client_send(&c, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n") && client_reply_to(&c, &got, true));
    assert_int_equal(got.status, 201);
    assert_string_equal(reply_header(&got, "Content-Length"), "4");
    free_reply(&got);
    answer none = {.response = {.status = 204, .body = "x", .body_bytes = 1}};
    on_loop(&r, set_answer, &none);
    assert_true(client_send(&c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n") && client_reply(&c, &got));
    assert_int_equal(got.status, 204);
    assert_null(reply_header(&got, "Content-Length"));
    free_reply(&got);
    answer odd = {.response = {.status = 599, .close = true}};
    on_loop(&r, set_answer, &odd);
    assert_true(client_send(&c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n") && client_reply(&c, &got));
    assert_int_equal(strncmp(got.head, "HTTP/1.1 599 \r\n", 15), 0);
    assert_string_equal(reply_header(&got, "Connection"), "close");
    free_reply(&got);
    assert_true(client_ends(&c));
    client_close(&c);
    stop_server(&r);
}

static void what_a_handler_gets_wrong_becomes_a_500(void **state)
{
    (void)state;
    static char long_value[KN_HTTP_REPLY_HEAD_BYTES];
    static kn_http_reply_header many[KN_HTTP_REPLY_HEADERS_MAX + 1];
    static const kn_http_reply_header split = {"X", "a\r\nSet-Cookie: b"}, bad_name = {"X Y", "a"},
                                      no_value = {"X", NULL}, framing = {"content-length", "5"},
                                      coding = {"Transfer-Encoding", "chunked"}, id = {"X-Request-Id", "mine"},
                                      long_header = {"X", long_value};
    memset(long_value, 'x', sizeof long_value - 1);
    for (size_t i = 0; i <= KN_HTTP_REPLY_HEADERS_MAX; i++) many[i] = (kn_http_reply_header){"X", "y"};
    answer cases[] = {
        {.response = {.status = 200, .headers = many, .header_count = KN_HTTP_REPLY_HEADERS_MAX}}, /* good */
        {.response = {.status = 200, .headers = many, .header_count = KN_HTTP_REPLY_HEADERS_MAX + 1}},
        {.response = {.status = 200, .headers = &split, .header_count = 1}},
        {.response = {.status = 200, .headers = &bad_name, .header_count = 1}},
        {.response = {.status = 200, .headers = &no_value, .header_count = 1}},
        {.response = {.status = 200, .headers = &framing, .header_count = 1}},
        {.response = {.status = 200, .headers = &coding, .header_count = 1}},
        {.response = {.status = 200, .headers = &id, .header_count = 1}},
        {.response = {.status = 200, .headers = &long_header, .header_count = 1}},
        {.response = {.status = 200, .content_type = "a\nb"}},
        {.response = {.status = 199}},
        {.response = {.status = 600}},
        {.response = {.status = 0}},
    };
    running r = {.request = give_answer};
    start_server(&r);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        on_loop(&r, set_answer, &cases[i]);
        expect_exchange(&r, "GET / HTTP/1.1\r\nHost: a\r\n\r\n", i == 0 ? 200 : 500, i != 0);
        wait_for(&r.finished_seen, (int)i + 1);
        if ((cases[i].status == KN_OK) != (i == 0)) fail_msg("case %zu: %s", i, kn_status_name(cases[i].status));
    }
    assert_int_equal(r.closed_seen, 0);
    stop_server(&r);
}

static void http_1_0_closes_unless_asked_not_to(void **state)
{
    (void)state;
    running r = {0};
    reply got;
    start_server(&r);
    expect_exchange(&r, "GET /hello HTTP/1.0\r\n\r\n", 200, true);
    expect_exchange(&r, "GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 200, true);
    client c = client_open(&r);
    for (int i = 0; i < 2; i++) {
        assert_true(client_send(&c, "GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n") && client_reply(&c, &got));
        assert_string_equal(reply_header(&got, "Connection"), "keep-alive");
        free_reply(&got);
    }
    client_close(&c);
    stop_server(&r);
}

static void a_large_reply_waits_for_its_reader(void **state)
{
    (void)state;
    enum { BODY = 20 << 20 };
    char *body = malloc(BODY + 1);
    assert_non_null(body);
    for (size_t i = 0; i < BODY; i++) body[i] = (char)('a' + i * 31 % 26);
    body[BODY] = '\0';
    answer a = {.response = {.status = 200, .body = body, .body_bytes = BODY}};
    running r = {.request = give_answer, .user = &a};
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /hello HTTP/1.1\r\nHost: a\r\n\r\n"));
    wait_for(&r.requests_seen, 1);
    usleep(50000); /* nothing is read meanwhile */
    assert_int_equal(r.finished_seen, 0);
    expect_reply(&c, 200, body);
    expect_reply(&c, 200, "hello\n");
    client_close(&c);
    free(body);
    stop_server(&r);
}

/* ---- streams ---- */

static void begin_stream(running *r, kn_http_exchange *exchange)
{
    assert_int_equal(
        kn_http_stream_begin(exchange, &(kn_http_response){.status = 200, .content_type = "text/event-stream"}), KN_OK);
    r->kept = exchange;
}

typedef struct writing {
    const char *text;
    size_t bytes;
    kn_status status;
    size_t queued; /* after it */
    int writes;    /* that were taken */
} writing;

static void write_once(running *r, void *argument)
{
    writing *w = argument;
    w->status = kn_http_stream_write(r->kept, w->text, w->bytes);
    w->queued = kn_http_stream_queued(r->kept);
}

static void write_until_full(running *r, void *argument)
{
    writing *w = argument;
    while ((w->status = kn_http_stream_write(r->kept, w->text, w->bytes)) == KN_OK) w->writes++;
    w->queued = kn_http_stream_queued(r->kept);
}

static void end_stream(running *r, void *argument)
{
    kn_http_exchange *exchange = r->kept;
    (void)argument;
    r->kept = NULL;
    assert_int_equal(kn_http_stream_end(exchange), KN_OK);
}

static void abort_kept(running *r, void *argument)
{
    kn_http_exchange *exchange = r->kept;
    (void)argument;
    r->kept = NULL;
    kn_http_abort(exchange);
}

static void write_text(running *r, const char *text)
{
    writing w = {.text = text, .bytes = strlen(text)};
    on_loop(r, write_once, &w);
    assert_int_equal(w.status, KN_OK);
}

static void a_stream_arrives_write_by_write(void **state)
{
    (void)state;
    running r = {.request = begin_stream};
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, "GET /sse HTTP/1.1\r\nHost: a\r\n\r\n" HELLO));
    wait_for(&r.requests_seen, 1);
    write_text(&r, "data: 1\n\n");
    while (!c.bytes || !strstr(c.bytes, "data: 1")) assert_true(client_read(&c)); /* at once, not at the end */
    write_text(&r, "");
    write_text(&r, "data: 22\n\n");
    on_loop(&r, end_stream, NULL);
    reply got;
    assert_true(client_reply(&c, &got) && got.complete);
    assert_string_equal(reply_header(&got, "Transfer-Encoding"), "chunked");
    assert_null(reply_header(&got, "Content-Length"));
    assert_string_equal(got.body, "data: 1\n\ndata: 22\n\n");
    free_reply(&got);
    expect_reply(&c, 200, "hello\n"); /* and the connection goes on */
    client_close(&c);
    assert_int_equal(r.closed_seen, 0);
    stop_server(&r);
}

static void old_clients_get_a_stream_that_ends_with_the_connection(void **state)
{
    (void)state;
    running r = {.request = begin_stream};
    reply got;
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, "GET /sse HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
    wait_for(&r.requests_seen, 1);
    write_text(&r, "one");
    write_text(&r, "two");
    on_loop(&r, end_stream, NULL);
    assert_true(client_reply(&c, &got));
    assert_null(reply_header(&got, "Transfer-Encoding"));
    assert_string_equal(reply_header(&got, "Connection"), "close");
    assert_string_equal(got.body, "onetwo");
    free_reply(&got);
    client_close(&c);
    c = client_open(&r);
    assert_true(client_send(&c, "HEAD /sse HTTP/1.1\r\nHost: a\r\n\r\n" HELLO));
    wait_for(&r.requests_seen, 2);
    write_text(&r, "never seen");
    on_loop(&r, end_stream, NULL);
    assert_true(client_reply_to(&c, &got, true));
    free_reply(&got);
    expect_reply(&c, 200, "hello\n");
    client_close(&c);
    stop_server(&r);
}

static void a_slow_reader_meets_the_bound_and_is_dropped(void **state)
{
    (void)state;
    enum { BOUND = 100000, WRITE = 10000 };
    static char event[WRITE];
    memset(event, 'e', sizeof event);
    running r = {.request = begin_stream, .params.limits.stream_queue_bytes = BOUND};
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, "GET /sse HTTP/1.1\r\nHost: a\r\n\r\n"));
    wait_for(&r.requests_seen, 1);
    writing w = {.text = event, .bytes = sizeof event};
    on_loop(&r, write_until_full, &w);
    assert_int_equal(w.status, KN_AGAIN);
    assert_true(w.writes > 0);
    assert_in_range(w.queued, BOUND - WRITE + 1, BOUND + 64);
    writing rest = {.text = event, .bytes = BOUND - w.queued + 1}; /* one byte too many; then exactly what fits */
    if (w.queued < BOUND) {
        on_loop(&r, write_once, &rest);
        assert_int_equal(rest.status, KN_AGAIN);
        assert_int_equal(rest.queued, w.queued);
        rest.bytes--;
        on_loop(&r, write_once, &rest);
        assert_int_equal(rest.status, KN_OK);
    }
    on_loop(&r, abort_kept, NULL);
    reply got;
    assert_true(client_reply(&c, &got));
    assert_false(got.complete); /* cut, and the client can tell */
    free_reply(&got);
    client_close(&c);
    wait_for(&r.finished_seen, 1);
    assert_false(r.records[0].complete);
    assert_int_equal(r.closed_seen, 0);
    wait_for_connections(&r, 0);
    stop_server(&r);
}

static void swap_kept(running *r, void *argument)
{
    kn_http_exchange **other = argument, *kept = r->kept;
    r->kept = *other;
    *other = kept;
}

static void a_reader_that_stalls_is_dropped_by_the_server(void **state)
{
    (void)state;
    static char event[10000];
    running r = {.request = begin_stream, .params.limits.write_stall_ns = MILLISECONDS(300)};
    start_server(&r);
    client quiet = client_open(&r), slow = client_open(&r);
    assert_true(client_send(&quiet, "GET /sse HTTP/1.1\r\nHost: a\r\n\r\n"));
    wait_for(&r.requests_seen, 1);
    kn_http_exchange *first = NULL;
    on_loop(&r, swap_kept, &first);
    assert_true(client_send(&slow, "GET /sse HTTP/1.1\r\nHost: a\r\n\r\n"));
    wait_for(&r.requests_seen, 2);
    writing w = {.text = event, .bytes = sizeof event};
    on_loop(&r, write_until_full, &w);
    wait_for(&r.closed_seen, 1);
    assert_int_equal(stats_of(&r).timeouts, 1);
    /* A stream without events is not a stalled one. */
    on_loop(&r, swap_kept, &first);
    write_text(&r, "still here");
    on_loop(&r, end_stream, NULL);
    expect_reply(&quiet, 200, "still here");
    client_close(&quiet);
    client_close(&slow);
    stop_server(&r);
}

static void a_stream_whose_client_left_is_closed(void **state)
{
    (void)state;
    running r = {.request = begin_stream};
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, "GET /sse HTTP/1.1\r\nHost: a\r\n\r\n"));
    wait_for(&r.requests_seen, 1);
    write_text(&r, "x");
    client_close(&c);
    wait_for(&r.closed_seen, 1);
    wait_for(&r.finished_seen, 1);
    assert_false(r.records[0].complete);
    stop_server(&r);
}

static void misuse(running *r, kn_http_exchange *exchange)
{
    kn_status *out = r->user;
    const kn_http_response fine = {.status = 200}, with_body = {.status = 200, .body = "x", .body_bytes = 1};
    out[0] = kn_http_stream_write(exchange, "x", 1);
    out[1] = kn_http_stream_end(exchange);
    if (strcmp(kn_http_path(exchange), "/body") == 0) {
        out[2] = kn_http_stream_begin(exchange, &with_body);
        return;
    }
    out[2] = kn_http_stream_begin(exchange, &fine);
    out[3] = kn_http_stream_begin(exchange, &fine);
    out[4] = kn_http_reply(exchange, &fine);
    out[5] = kn_http_stream_end(exchange);
    out[6] = kn_http_stream_write(exchange, "x", 1);
    out[7] = kn_http_stream_end(exchange);
}

static void calls_out_of_order_are_refused_and_harmless(void **state)
{
    (void)state;
    static const kn_status wanted[8] = {KN_INVALID, KN_INVALID, KN_OK,      KN_INVALID,
                                        KN_INVALID, KN_OK,      KN_INVALID, KN_INVALID};
    kn_status got[8] = {0};
    running r = {.request = misuse, .user = got};
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n" HELLO));
    expect_reply(&c, 200, "");
    expect_reply(&c, 200, "hello\n");
    wait_for(&r.finished_seen, 2); /* the handler has returned */
    assert_memory_equal(got, wanted, sizeof got);
    client_close(&c);
    expect_exchange(&r, "GET /body HTTP/1.1\r\nHost: a\r\n\r\n", 500, true);
    wait_for(&r.finished_seen, 3);
    assert_int_equal(got[2], KN_INVALID);
    stop_server(&r);
}

static void abort_now(running *r, kn_http_exchange *exchange)
{
    (void)r;
    kn_http_abort(exchange);
    assert_int_equal(kn_http_reply(exchange, &(kn_http_response){.status = 200}), KN_INVALID);
}

static void an_aborted_exchange_cuts_the_connection(void **state)
{
    (void)state;
    running r = {.request = abort_now};
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n" HELLO));
    assert_true(client_ends(&c));
    client_close(&c);
    wait_for(&r.finished_seen, 1);
    assert_int_equal(r.closed_seen, 0);
    assert_int_equal(r.requests_seen, 1);
    client a = client_open(&r); /* also while it waits, from elsewhere */
    r.request = keep_only;
    assert_true(client_send(&a, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
    wait_for(&r.requests_seen, 2);
    on_loop(&r, abort_kept, NULL);
    assert_true(client_ends(&a));
    client_close(&a);
    stop_server(&r);
}

/* A handler that replies in closed(), or aborts another exchange there. */
static void reply_when_closed(running *r, kn_http_exchange *exchange)
{
    (void)r;
    assert_int_equal(kn_http_reply(exchange, &(kn_http_response){.status = 200}), KN_INVALID);
    kn_http_abort(exchange);
}

static void a_reply_to_nobody_is_harmless(void **state)
{
    (void)state;
    running r = {.request = keep_only, .closed = reply_when_closed};
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
    wait_for(&r.requests_seen, 1);
    client_close(&c);
    wait_for(&r.closed_seen, 1);
    wait_for_connections(&r, 0);
    expect_exchange(&r, HELLO, 200, false);
    stop_server(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replies_have_the_fields_that_belong_to_them),
        cmocka_unit_test(what_a_handler_gets_wrong_becomes_a_500),
        cmocka_unit_test(http_1_0_closes_unless_asked_not_to),
        cmocka_unit_test(a_large_reply_waits_for_its_reader),
        cmocka_unit_test(a_stream_arrives_write_by_write),
        cmocka_unit_test(old_clients_get_a_stream_that_ends_with_the_connection),
        cmocka_unit_test(a_slow_reader_meets_the_bound_and_is_dropped),
        cmocka_unit_test(a_reader_that_stalls_is_dropped_by_the_server),
        cmocka_unit_test(a_stream_whose_client_left_is_closed),
        cmocka_unit_test(calls_out_of_order_are_refused_and_harmless),
        cmocka_unit_test(an_aborted_exchange_cuts_the_connection),
        cmocka_unit_test(a_reply_to_nobody_is_harmless),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

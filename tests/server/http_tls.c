/* SPDX-License-Identifier: Apache-2.0
 *
 * The server over TLS: handshakes that finish, stall or fail, certificates that change, and the same hostile clients
 * as in clear text. */
#define _GNU_SOURCE
#include "tests/server/http_running.h"

#include <signal.h>

#include "tests/server/tls_files.h"

#define HELLO "GET /hello HTTP/1.1\r\nHost: a\r\n\r\n"

static folder files;
static SSL_CTX *clients; /* trusts everybody; what a certificate is worth is not the question here */

static int make_files(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    files = folder_create();
    make_certificate(&files, "live", 1, 3600, NULL);
    make_certificate(&files, "client", 2, 3600, NULL);
    clients = SSL_CTX_new(TLS_client_method());
    return clients ? 0 : -1;
}

static int remove_files(void **state)
{
    (void)state;
    SSL_CTX_free(clients);
    folder_remove(&files);
    return 0;
}

static void start_tls(running *r, const char *client_ca, bool http2)
{
    const kn_tls_params params = {.certificate = folder_file(&files, "live.crt"),
                                  .key = folder_file(&files, "live.key"),
                                  .client_ca = client_ca ? folder_file(&files, client_ca) : NULL,
                                  .http2 = http2};
    if (kn_tls_create(&r->params.tls, &params) != KN_OK) fail_msg("%s", kn_fail_message());
    start_server(r);
}

static void stop_tls(running *r)
{
    stop_server(r);
    kn_tls_destroy(&r->params.tls);
}

/* False: no handshake. */
static bool secure(client *c, const char *alpn)
{
    c->ssl = SSL_new(clients);
    assert_non_null(c->ssl);
    if (alpn) SSL_set_alpn_protos(c->ssl, (const unsigned char *)alpn, (unsigned)strlen(alpn));
    SSL_set_fd(c->ssl, c->fd);
    const bool agreed = SSL_connect(c->ssl) == 1;
    ERR_clear_error();
    return agreed;
}

static client open_secure(const running *r)
{
    client c = client_open(r);
    assert_true(secure(&c, "\x08http/1.1"));
    return c;
}

static void tell_tls(running *r, kn_http_exchange *exchange)
{
    (void)r;
    reply_text(exchange, 200, kn_http_is_tls(exchange) ? "tls" : "plain");
}

static void requests_go_over_tls(void **state)
{
    (void)state;
    enum { BODY = 3 << 20 };
    running r = {.request = tell_tls};
    char *body = malloc(BODY + 1), head[128];
    assert_non_null(body);
    memset(body, 'b', BODY);
    body[BODY] = '\0';
    start_tls(&r, NULL, false);
    client c = open_secure(&r);
    for (int i = 0; i < 3; i++) {
        assert_true(client_send(&c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
        expect_reply(&c, 200, "tls");
    }
    snprintf(head, sizeof head, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", BODY);
    assert_true(client_send(&c, head) && client_write(&c, body, BODY));
    expect_reply(&c, 200, body);
    assert_true(client_send(&c, HELLO HELLO HELLO));
    for (int i = 0; i < 3; i++) expect_reply(&c, 200, "hello\n");
    assert_true(client_send(&c, "GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
    expect_reply(&c, 200, "hello\n");
    assert_true(client_ends(&c));
    assert_int_equal(SSL_get_shutdown(c.ssl) & SSL_RECEIVED_SHUTDOWN, SSL_RECEIVED_SHUTDOWN); /* a clean end */
    client_close(&c);
    free(body);
    stop_tls(&r);
}

static void a_request_may_come_in_any_records(void **state)
{
    (void)state;
    static const char text[] = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" HELLO;
    running r = {0};
    start_tls(&r, NULL, false);
    client c = open_secure(&r);
    for (size_t i = 0; i < sizeof text - 1; i++) assert_true(client_write(&c, text + i, 1));
    expect_reply(&c, 200, "hello");
    expect_reply(&c, 200, "hello\n");
    client_close(&c);
    stop_tls(&r);
}

static void a_handshake_that_stalls_ends(void **state)
{
    (void)state;
    running r = {.params.limits.handshake_ns = MILLISECONDS(2000)};
    start_tls(&r, NULL, false);
    client silent = client_open(&r), half = client_open(&r), good = open_secure(&r);
    assert_true(client_write(&half, "\x16\x03\x01\x02\x00", 5));
    assert_true(client_ends(&silent));
    assert_true(client_ends(&half));
    assert_true(client_send(&good, HELLO)); /* its own is over */
    expect_reply(&good, 200, "hello\n");
    const kn_http_stats stats = stats_of(&r);
    assert_int_equal(stats.timeouts, 2);
    assert_int_equal(stats.handshakes_failed, 0);
    assert_int_equal(stats.requests, 1);
    client_close(&silent);
    client_close(&half);
    client_close(&good);
    stop_tls(&r);
}

static void what_is_no_handshake_never_reaches_the_parser(void **state)
{
    (void)state;
    running r = {0};
    start_tls(&r, NULL, false);
    client c = client_open(&r);
    assert_true(client_send(&c, HELLO)); /* clear text */
    while (client_read(&c)) continue;
    client_close(&c);
    c = client_open(&r);
    assert_false(secure(&c, "\x02h2"));
    client_close(&c);
    wait_for_connections(&r, 0);
    const kn_http_stats stats = stats_of(&r);
    assert_int_equal(stats.handshakes_failed, 2);
    assert_int_equal(stats.requests, 0);
    assert_int_equal(r.finished_seen, 0);
    stop_tls(&r);
}

static void clients_without_their_certificate_are_refused_before_any_parsing(void **state)
{
    (void)state;
    running r = {0};
    start_tls(&r, "client.crt", false);
    client c = client_open(&r);
    if (secure(&c, NULL)) { /* TLS 1.3: the client believes it for a moment */
        (void)client_send(&c, HELLO);
        assert_true(client_ends(&c));
    }
    client_close(&c);
    wait_for_connections(&r, 0);
    assert_int_equal(stats_of(&r).requests, 0);
    c = client_open(&r);
    SSL_CTX *known = SSL_CTX_new(TLS_client_method());
    assert_int_equal(SSL_CTX_use_certificate_file(known, folder_file(&files, "client.crt"), SSL_FILETYPE_PEM), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey_file(known, folder_file(&files, "client.key"), SSL_FILETYPE_PEM), 1);
    c.ssl = SSL_new(known);
    SSL_CTX_free(known);
    SSL_set_fd(c.ssl, c.fd);
    assert_int_equal(SSL_connect(c.ssl), 1);
    assert_true(client_send(&c, HELLO));
    expect_reply(&c, 200, "hello\n");
    client_close(&c);
    stop_tls(&r);
}

static void reload(running *r, void *argument)
{
    *(kn_status *)argument = kn_tls_reload(r->params.tls);
}

static void a_new_certificate_serves_new_connections(void **state)
{
    (void)state;
    running r = {0};
    kn_status st = KN_FATAL;
    start_tls(&r, NULL, false);
    client before = open_secure(&r);
    assert_int_equal(serial_of(before.ssl), 1);
    make_certificate(&files, "live", 7, 3600, NULL);
    on_loop(&r, reload, &st);
    assert_int_equal(st, KN_OK);
    client after = open_secure(&r);
    assert_int_equal(serial_of(after.ssl), 7);
    folder_text(&files, "live.crt", "torn");
    on_loop(&r, reload, &st);
    assert_int_equal(st, KN_INVALID);
    client still = open_secure(&r);
    assert_int_equal(serial_of(still.ssl), 7);
    client *const all[] = {&before, &after, &still};
    for (size_t i = 0; i < 3; i++) { /* and the old connection goes on */
        assert_true(client_send(all[i], HELLO));
        expect_reply(all[i], 200, "hello\n");
        client_close(all[i]);
    }
    stop_tls(&r);
    make_certificate(&files, "live", 1, 3600, NULL);
}

static void keep_stream(running *r, kn_http_exchange *exchange)
{
    assert_int_equal(kn_http_stream_begin(exchange, &(kn_http_response){.status = 200}), KN_OK);
    r->kept = exchange;
}

typedef struct filling {
    kn_status status;
    size_t queued;
} filling;

static void fill(running *r, void *argument)
{
    static const char event[1000] = "data";
    filling *f = argument;
    while ((f->status = kn_http_stream_write(r->kept, event, sizeof event)) == KN_OK) continue;
    f->queued = kn_http_stream_queued(r->kept);
}

static void streams_are_bounded_and_leaving_is_noticed(void **state)
{
    (void)state;
    running r = {.request = keep_stream, .params.limits.stream_queue_bytes = 50000};
    filling f = {.status = KN_OK};
    start_tls(&r, NULL, false);
    client c = open_secure(&r);
    assert_true(client_send(&c, "GET /sse HTTP/1.1\r\nHost: a\r\n\r\n"));
    wait_for(&r.requests_seen, 1);
    on_loop(&r, fill, &f);
    assert_int_equal(f.status, KN_AGAIN);
    assert_in_range(f.queued, 49000, 50100);
    client_close(&c);
    wait_for(&r.closed_seen, 1);
    wait_for_connections(&r, 0);
    stop_tls(&r);
}

static void keep_only(running *r, kn_http_exchange *exchange)
{
    r->kept = exchange;
}

static void measure_input(running *r, void *argument)
{
    *(size_t *)argument = evbuffer_get_length(bufferevent_get_input(r->kept->connection->stream));
}

static void answer_kept(running *r, void *argument)
{
    kn_http_exchange *exchange = r->kept;
    r->kept = NULL;
    reply_text(exchange, 200, argument);
}

static void read_ahead_is_bounded(void **state)
{
    (void)state;
    enum { REQUESTS = 3000 };
    running r = {.request = keep_only};
    size_t ahead = 0;
    start_tls(&r, NULL, false);
    client c = open_secure(&r);
    assert_true(client_send(&c, "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n"));
    wait_for(&r.requests_seen, 1);
    for (int i = 0; i < REQUESTS; i++) assert_true(client_send(&c, HELLO)); /* 100 KB: the sockets take the rest */
    for (int i = 0; i < WAIT_SECONDS * 1000 && ahead < KN_HTTP_READ_AHEAD_BYTES; i++) {
        pause_shortly();
        on_loop(&r, measure_input, &ahead);
    }
    assert_in_range(ahead, KN_HTTP_READ_AHEAD_BYTES, KN_HTTP_READ_AHEAD_BYTES + (32 << 10));
    on_loop(&r, answer_kept, "late");
    expect_reply(&c, 200, "late");
    for (int i = 0; i < REQUESTS; i++) expect_reply(&c, 200, "hello\n");
    client_close(&c);
    stop_tls(&r);
}

/* ---- h2 ---- */

static kn_http_taken *taken; /* the loop's, as the next */
static struct bufferevent *taken_stream;

static bool take(kn_http_taken *t, struct bufferevent *stream, void *context)
{
    (void)context;
    taken = t;
    taken_stream = stream;
    bufferevent_write(stream, "mine", 4);
    return true;
}

static void release(running *r, void *argument)
{
    (void)r, (void)argument;
    bufferevent_free(taken_stream);
    kn_http_taken_release(&taken);
}

static void h2_is_offered_and_handed_over(void **state)
{
    (void)state;
    running r = {.params.callbacks.sniff = take};
    start_tls(&r, NULL, true);
    client c = client_open(&r);
    assert_true(secure(&c, "\x02h2\x08http/1.1"));
    while (c.used < 4 && client_read(&c)) continue;
    assert_string_equal(c.bytes, "mine");
    on_loop(&r, release, NULL);
    client_close(&c);
    c = open_secure(&r);
    assert_true(client_send(&c, HELLO));
    expect_reply(&c, 200, "hello\n");
    client_close(&c);
    stop_tls(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_go_over_tls),
        cmocka_unit_test(a_request_may_come_in_any_records),
        cmocka_unit_test(a_handshake_that_stalls_ends),
        cmocka_unit_test(what_is_no_handshake_never_reaches_the_parser),
        cmocka_unit_test(clients_without_their_certificate_are_refused_before_any_parsing),
        cmocka_unit_test(a_new_certificate_serves_new_connections),
        cmocka_unit_test(streams_are_bounded_and_leaving_is_noticed),
        cmocka_unit_test(read_ahead_is_bounded),
        cmocka_unit_test(h2_is_offered_and_handed_over),
    };
    return cmocka_run_group_tests(tests, make_files, remove_files);
}

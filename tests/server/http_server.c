/* SPDX-License-Identifier: Apache-2.0
 *
 * Listening, limits on connections, draining, handing connections to another protocol. */
#define _GNU_SOURCE
#include "tests/server/http_running.h"

#include <event2/bufferevent.h>
#include <sys/resource.h>

#include "base/mem.h"

#define HELLO "GET /hello HTTP/1.1\r\nHost: a\r\n\r\n"

static void keep_only(running *r, kn_http_exchange *exchange)
{
    r->kept = exchange;
}

static void answer_kept(running *r, void *argument)
{
    kn_http_exchange *exchange = r->kept;
    assert_non_null(exchange);
    r->kept = NULL;
    reply_text(exchange, 200, argument);
}

static void never(kn_http_exchange *exchange, void *context)
{
    (void)exchange, (void)context;
    abort();
}

/* What a server stands on. */
typedef struct ground {
    struct event_base *base;
    kn_turns *turns;
} ground;

static ground open_ground(void)
{
    ground g = {.base = event_base_new()};
    assert_non_null(g.base);
    assert_int_equal(kn_turns_create(&g.turns, g.base), KN_OK);
    return g;
}

static void close_ground(ground *g)
{
    kn_turns_destroy(&g->turns);
    event_base_free(g->base);
}

static kn_status create_at(const ground *g, const char *address, const kn_http_limits *limits, kn_http_server **out)
{
    const kn_http_params params = {.base = g->base,
                                   .turns = g->turns,
                                   .listen = &address,
                                   .listen_count = 1,
                                   .limits = *limits,
                                   .callbacks = {.headers = never, .request = never}};
    *out = NULL;
    return kn_http_server_create(out, &params);
}

static void addresses_are_numeric_and_complete(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",      "8000",    ":8000",   "localhost:8000",  "127.0.0.1",    "127.0.0.1:",    "1.2.3:80",    "::1:80",
        "[::1]", "[::1]:x", "[::1:80", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:80 ", "[1.2.3.4]:80"};
    const kn_http_limits limits = {0};
    ground g = open_ground();
    kn_http_server *server, *second;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(create_at(&g, bad[i], &limits, &server), KN_INVALID);
        assert_non_null(strstr(kn_fail_message(), "address"));
        assert_null(server);
    }
    assert_int_equal(create_at(&g, "127.0.0.1:0", &limits, &server), KN_OK);
    assert_true(kn_http_server_port(server, 0) > 0);
    assert_int_equal(kn_http_server_port(server, 1), 0);
    char taken[32];
    snprintf(taken, sizeof taken, "127.0.0.1:%u", kn_http_server_port(server, 0));
    assert_int_equal(create_at(&g, taken, &limits, &second), KN_UNAVAILABLE);
    assert_non_null(strstr(kn_fail_message(), taken));
    kn_http_server_destroy(&server);
    assert_null(server);
    kn_http_server_destroy(NULL);
    close_ground(&g);
    assert_true(kn_http_address_is_loopback("127.0.0.1:1") && kn_http_address_is_loopback("127.9.9.9:1") &&
                kn_http_address_is_loopback("[::1]:1") && kn_http_address_is_loopback("[::ffff:127.0.0.1]:1"));
    assert_false(kn_http_address_is_loopback("0.0.0.0:1") || kn_http_address_is_loopback("[::]:1") ||
                 kn_http_address_is_loopback("128.0.0.1:1") || kn_http_address_is_loopback("localhost:1"));
}

static void limits_out_of_range_are_refused(void **state)
{
    (void)state;
    static const kn_http_limits bad[] = {
        {.connections = -1},
        {.connections_per_address = -1},
        {.header_ns = -1},
        {.fields = KN_HTTP_FIELDS_MAX + 1},
        {.header_bytes = KN_HTTP_HEADER_BYTES_MAX + 1},
        {.target_bytes = KN_HTTP_TARGET_BYTES_MAX + 1},
        {.body_bytes = KN_HTTP_BODY_BYTES_MAX + 1},
    };
    static const kn_http_limits good = {.fields = KN_HTTP_FIELDS_MAX,
                                        .header_bytes = KN_HTTP_HEADER_BYTES_MAX,
                                        .target_bytes = KN_HTTP_TARGET_BYTES_MAX,
                                        .body_bytes = KN_HTTP_BODY_BYTES_MAX};
    ground g = open_ground();
    kn_http_server *server;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(create_at(&g, "127.0.0.1:0", &bad[i], &server), KN_INVALID);
    assert_int_equal(create_at(&g, "127.0.0.1:0", &good, &server), KN_OK);
    kn_http_server_destroy(&server);
    close_ground(&g);
}

static void without_memory_nothing_is_left_behind(void **state)
{
    (void)state;
    const kn_http_limits limits = {0};
    ground g = open_ground();
    kn_http_server *server;
    const uint64_t held = kn_mem_read().bytes;
    kn_mem_fail_at(1);
    assert_int_equal(create_at(&g, "127.0.0.1:0", &limits, &server), KN_NOMEM);
    kn_mem_fail_at(0);
    assert_int_equal(kn_mem_read().bytes, held);
    close_ground(&g);
}

static void few_file_descriptors_mean_few_connections(void **state)
{
    (void)state;
    struct rlimit files, few;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &files), 0);
    few = (struct rlimit){.rlim_cur = 200, .rlim_max = files.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    running r = {0};
    start_server(&r);
    assert_int_equal(r.server->limits.connections, 200 - 128 - KN_HTTP_REFUSED_CONNECTIONS);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &files), 0);
    expect_exchange(&r, HELLO, 200, false);
    stop_server(&r);
}

static void both_families_are_served(void **state)
{
    (void)state;
    static const char *const listen[] = {"127.0.0.1:0", "[::1]:0"};
    running r = {.params = {.listen = listen, .listen_count = 2}};
    const struct sockaddr_in6 loopback = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
    const int probe = socket(AF_INET6, SOCK_STREAM, 0);
    const bool has_six = probe >= 0 && bind(probe, (const struct sockaddr *)&loopback, sizeof loopback) == 0;
    if (probe >= 0) close(probe);
    if (!has_six) skip(); /* a machine without IPv6 */
    start_server(&r);
    const struct sockaddr_in6 address = {
        .sin6_family = AF_INET6, .sin6_port = htons(kn_http_server_port(r.server, 1)), .sin6_addr = in6addr_loopback};
    client c = {.fd = socket(AF_INET6, SOCK_STREAM, 0)};
    assert_int_equal(connect(c.fd, (const struct sockaddr *)&address, sizeof address), 0);
    assert_true(client_send(&c, HELLO));
    expect_reply(&c, 200, "hello\n");
    client_close(&c);
    expect_exchange(&r, HELLO, 200, false);
    stop_server(&r);
}

/* ---- connections ---- */

static void connections_are_limited(void **state)
{
    (void)state;
    enum { LIMIT = 4 };
    running r = {.params.limits = {.connections = LIMIT}};
    client c[LIMIT];
    start_server(&r);
    for (int i = 0; i < LIMIT; i++) {
        c[i] = client_open(&r);
        assert_true(client_send(&c[i], HELLO));
        expect_reply(&c[i], 200, "hello\n");
    }
    expect_exchange(&r, HELLO, 503, true);
    client over[KN_HTTP_REFUSED_CONNECTIONS + 1]; /* those who are told are limited as well */
    wait_for_connections(&r, LIMIT);
    for (int i = 0; i <= KN_HTTP_REFUSED_CONNECTIONS; i++) over[i] = client_open(&r);
    for (int i = 0; i < KN_HTTP_REFUSED_CONNECTIONS; i++) expect_reply(&over[i], 503, NULL);
    assert_true(client_ends(&over[KN_HTTP_REFUSED_CONNECTIONS]));
    for (int i = 0; i <= KN_HTTP_REFUSED_CONNECTIONS; i++) client_close(&over[i]);
    assert_int_equal(stats_of(&r).refused, KN_HTTP_REFUSED_CONNECTIONS + 2);
    for (int i = 0; i < LIMIT; i++) { /* the others notice nothing */
        assert_true(client_send(&c[i], HELLO));
        expect_reply(&c[i], 200, "hello\n");
    }
    client_close(&c[0]);
    wait_for_connections(&r, LIMIT - 1);
    c[0] = client_open(&r);
    assert_true(client_send(&c[0], HELLO));
    expect_reply(&c[0], 200, "hello\n");
    for (int i = 0; i < LIMIT; i++) client_close(&c[i]);
    stop_server(&r);
}

static void connections_of_one_address_are_limited(void **state)
{
    (void)state;
    enum { LIMIT = 3 };
    running r = {.params.limits = {.connections_per_address = LIMIT, .count_loopback = true}};
    client c[LIMIT];
    start_server(&r);
    for (int i = 0; i < LIMIT; i++) {
        c[i] = client_open(&r);
        assert_true(client_send(&c[i], HELLO));
        expect_reply(&c[i], 200, "hello\n");
    }
    expect_exchange(&r, HELLO, 503, true);
    client other = {.fd = socket(AF_INET, SOCK_STREAM, 0)}; /* from 127.0.0.2 */
    const struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr = {htonl(0x7f000002)}};
    const struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(r.port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    assert_int_equal(bind(other.fd, (const struct sockaddr *)&from, sizeof from), 0);
    assert_int_equal(connect(other.fd, (const struct sockaddr *)&to, sizeof to), 0);
    assert_true(client_send(&other, HELLO));
    expect_reply(&other, 200, "hello\n");
    client_close(&other);
    client_close(&c[0]);
    wait_for_connections(&r, LIMIT - 1);
    expect_exchange(&r, HELLO, 200, false);
    for (int i = 1; i < LIMIT; i++) client_close(&c[i]);
    stop_server(&r);
}

static void this_machine_is_not_counted_unless_asked(void **state)
{
    (void)state;
    running r = {.params.limits = {.connections_per_address = 1}};
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, HELLO));
    expect_reply(&c, 200, "hello\n");
    expect_exchange(&r, HELLO, 200, false);
    client_close(&c);
    stop_server(&r);
}

/* ---- the end ---- */

static atomic_int drained_seen;

static void on_drained(void *context)
{
    (void)context;
    atomic_fetch_add(&drained_seen, 1);
}

static void start_drain(running *r, void *argument)
{
    (void)argument;
    kn_http_server_drain(r->server, on_drained, r);
}

static void draining_finishes_what_was_begun(void **state)
{
    (void)state;
    running r = {.request = keep_only};
    atomic_store(&drained_seen, 0);
    start_server(&r);
    client idle = client_open(&r), busy = client_open(&r), half = client_open(&r);
    assert_true(client_send(&idle, HELLO));
    expect_reply(&idle, 200, "hello\n");
    assert_true(client_send(&half, "GET /hello HTTP/1.1\r\nHo"));
    assert_true(client_send(&busy, "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n"));
    wait_for(&r.requests_seen, 2);
    for (int i = 0; i < WAIT_SECONDS * 1000 && stats_of(&r).requests < 3; i++) pause_shortly();
    on_loop(&r, start_drain, NULL);
    assert_true(client_ends(&idle));
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    const struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(r.port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    assert_int_equal(connect(fd, (const struct sockaddr *)&to, sizeof to), -1);
    close(fd);
    assert_int_equal(drained_seen, 0);
    on_loop(&r, answer_kept, "late");
    reply got;
    assert_true(client_reply(&busy, &got) && got.status == 200);
    assert_string_equal(reply_header(&got, "Connection"), "close");
    free_reply(&got);
    assert_true(client_ends(&busy));
    assert_true(client_send(&half, "st: a\r\n\r\n"));
    expect_reply(&half, 200, "hello\n");
    assert_true(client_ends(&half));
    client_close(&idle);
    client_close(&busy);
    client_close(&half);
    wait_for(&drained_seen, 1);
    assert_int_equal(stats_of(&r).connections, 0);
    stop_server(&r);
    assert_int_equal(drained_seen, 1);
}

static void draining_nothing_reports_too(void **state)
{
    (void)state;
    running r = {0};
    atomic_store(&drained_seen, 0);
    start_server(&r);
    on_loop(&r, start_drain, NULL);
    wait_for(&drained_seen, 1);
    stop_server(&r);
    assert_int_equal(drained_seen, 1);
}

static void destroying_tells_handlers_that_wait(void **state)
{
    (void)state;
    running r = {.request = keep_only};
    const uint64_t held = kn_mem_read().bytes;
    start_server(&r);
    client c = client_open(&r), body = client_open(&r);
    assert_true(client_send(&c, "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert_true(client_send(&body, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc"));
    wait_for(&r.headers_seen, 2);
    wait_for(&r.requests_seen, 1);
    stop_server(&r);
    assert_int_equal(r.closed_seen, 2);
    assert_int_equal(kn_mem_read().bytes, held);
    assert_true(client_ends(&c));
    client_close(&c);
    client_close(&body);
}

/* ---- another protocol ---- */

typedef struct taker {
    kn_http_taken *taken;
    struct bufferevent *stream;
    bool wants;
} taker;

static taker other; /* the loop's */

static void on_other_bytes(struct bufferevent *stream, void *context)
{
    struct evbuffer *input = bufferevent_get_input(stream);
    (void)context;
    bufferevent_write_buffer(stream, input); /* echoes */
}

static bool take(kn_http_taken *taken, struct bufferevent *stream, void *context)
{
    (void)context;
    if (!other.wants) return false;
    other.taken = taken;
    other.stream = stream;
    bufferevent_setcb(stream, on_other_bytes, NULL, NULL, NULL);
    bufferevent_enable(stream, EV_READ);
    bufferevent_trigger(stream, EV_READ, 0);
    return true;
}

static void release(running *r, void *argument)
{
    (void)r, (void)argument;
    bufferevent_free(other.stream);
    kn_http_taken_release(&other.taken);
}

static void the_http2_preface_can_be_taken_over(void **state)
{
    (void)state;
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    running r = {.params.callbacks.sniff = take};
    other = (taker){.wants = true};
    start_server(&r);
    client c = client_open(&r);
    for (size_t i = 0; i < sizeof preface - 1; i++) assert_true(client_write(&c, preface + i, 1));
    assert_true(client_send(&c, "more"));
    while (c.used < sizeof preface - 1 + 4 && client_read(&c)) continue;
    assert_string_equal(c.bytes, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nmore");
    assert_int_equal(stats_of(&r).connections, 1);
    assert_int_equal(stats_of(&r).requests, 0);
    assert_string_equal(kn_http_taken_remote(other.taken), "127.0.0.1");
    on_loop(&r, release, NULL);
    assert_null(other.taken);
    wait_for_connections(&r, 0);
    client_close(&c);
    expect_exchange(&r, HELLO, 200, false);
    assert_int_equal(r.headers_seen, 1);
    client_close(&c);
    other.wants = false;
    expect_exchange(&r, preface, 505, true);
    expect_exchange(&r, "PRI * HTTP/2.0\r\nHost: a\r\n\r\n", 505, true); /* only nearly one */
    expect_exchange(&r, "PUT /hello HTTP/1.1\r\nHost: a\r\n\r\n", 200, false);
    stop_server(&r);
}

/* ---- ids and dates ---- */

static void every_reply_has_an_id_of_its_own_and_the_date(void **state)
{
    (void)state;
    running r = {0};
    reply a, b;
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, "GET /hello HTTP/1.1\r\nHost: a\r\nX-Request-Id: req_mine\r\n\r\n" HELLO));
    assert_true(client_reply(&c, &a) && client_reply(&c, &b));
    const char *one = reply_header(&a, "x-request-id"), *two = reply_header(&b, "x-request-id");
    assert_string_not_equal(one, two);
    assert_int_equal(strlen(one), 4 + 32);
    assert_int_equal(strncmp(one, "req_", 4), 0);
    assert_int_equal(strspn(one + 4, "0123456789abcdef"), 32);
    struct tm parsed = {0};
    const char *date = reply_header(&a, "Date"), *end = strptime(date, "%a, %d %b %Y %H:%M:%S GMT", &parsed);
    assert_true(end && *end == '\0');
    const long difference = (long)(time(NULL) - timegm(&parsed));
    assert_in_range(difference, 0, 3600);
    assert_string_equal(reply_header(&a, "Server"), "kinora");
    free_reply(&a);
    free_reply(&b);
    client_close(&c);
    stop_server(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addresses_are_numeric_and_complete),
        cmocka_unit_test(limits_out_of_range_are_refused),
        cmocka_unit_test(without_memory_nothing_is_left_behind),
        cmocka_unit_test(few_file_descriptors_mean_few_connections),
        cmocka_unit_test(both_families_are_served),
        cmocka_unit_test(connections_are_limited),
        cmocka_unit_test(connections_of_one_address_are_limited),
        cmocka_unit_test(this_machine_is_not_counted_unless_asked),
        cmocka_unit_test(draining_finishes_what_was_begun),
        cmocka_unit_test(draining_nothing_reports_too),
        cmocka_unit_test(destroying_tells_handlers_that_wait),
        cmocka_unit_test(the_http2_preface_can_be_taken_over),
        cmocka_unit_test(every_reply_has_an_id_of_its_own_and_the_date),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

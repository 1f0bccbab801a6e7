/* SPDX-License-Identifier: Apache-2.0
 *
 * grpc.h over real sockets, with a service of its own: every kind of method, refusals and their details, deadlines,
 * cancellation, back-pressure both ways, drains and ends. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "server/grpc_internal.h"
#include "server/loop.h"
#include "tests/server/h2_client.h"

enum { BIG = 300 << 10 };

/* ---- a service ---- */

static struct {
    int closed, messages, ended, sent;
    kn_grpc_code why;
    char token[64];
    kn_grpc_call *kept;
} seen;

static void on_echo(kn_grpc_call *call, const void *bytes, size_t count)
{
    assert_int_equal((uintptr_t)bytes % 64, 0);
    const char *token = kn_grpc_metadata(call, "x-token");
    snprintf(seen.token, sizeof seen.token, "%s", token ? token : "");
    kn_grpc_reply(call, bytes, count);
}

static void on_fail(kn_grpc_call *call, const void *bytes, size_t count)
{
    kn_api_error error;
    (void)bytes, (void)count;
    kn_api_invalid_value(&error, "size", "size \xc3\xbc is 100%% wrong");
    error.retry_after_s = 2;
    kn_grpc_fail(call, &error);
}

/* As many large messages as there is room for, 20 in all. */
static void send_more(kn_grpc_call *call)
{
    static char block[100 << 10];
    while (seen.sent < 20) {
        if (kn_grpc_send(call, block, sizeof block) == KN_AGAIN) return;
        assert_in_range(kn_grpc_queued(call), 1, KN_GRPC_QUEUE_BYTES + sizeof block + 5);
        seen.sent++;
    }
    kn_grpc_finish(call, KN_GRPC_OK, NULL);
}

static void on_stream(kn_grpc_call *call, const void *bytes, size_t count)
{
    (void)bytes, (void)count;
    send_more(call);
}

static void on_closed(kn_grpc_call *call)
{
    seen.closed++;
    seen.why = kn_grpc_closed_code(call);
    seen.kept = NULL;
}

static void on_hang(kn_grpc_call *call, const void *bytes, size_t count)
{
    (void)bytes, (void)count;
    seen.kept = call;
}

static void on_part(kn_grpc_call *call, const void *bytes, size_t count)
{
    (void)bytes, (void)count;
    if (++seen.messages == 1) {
        kn_grpc_pause(call);
        seen.kept = call;
    }
}

static void on_parts_end(kn_grpc_call *call)
{
    char text[16];
    seen.ended++;
    snprintf(text, sizeof text, "%d", seen.messages);
    kn_grpc_reply(call, text, strlen(text));
}

static const kn_grpc_method methods[] = {
    {.name = "Echo", .message = on_echo},
    {.name = "Small", .message = on_echo, .message_bytes = 10},
    {.name = "Fail", .message = on_fail},
    {.name = "Stream", .server_streams = true, .message = on_stream, .writable = send_more, .closed = on_closed},
    {.name = "Hang", .server_streams = true, .message = on_hang, .closed = on_closed},
    {.name = "Parts", .client_streams = true, .message = on_part, .half_closed = on_parts_end, .closed = on_closed},
    {.name = "Guarded", .scope = KN_SCOPE_ADMIN, .message = on_echo},
};
static const kn_grpc_service service = {"test.Service", methods, sizeof methods / sizeof *methods};
static const kn_grpc_service *const services[] = {&service};

static bool admit(void *context, const kn_grpc_method *method, const char *authorization, const char *authority,
                  kn_principal *principal, kn_api_error *error)
{
    (void)context;
    assert_string_equal(authority, "localhost");
    memset(principal, 0, sizeof *principal);
    if (method->scope == 0 || (authorization && strcmp(authorization, "Bearer good") == 0)) return true;
    kn_api_unauthorized(error, "no");
    return false;
}

/* ---- a server ---- */

static struct {
    struct event_base *base;
    kn_turns *turns;
    kn_http_server *http;
    kn_grpc_server *grpc;
    int finished;
} here;

static void no_exchange(kn_http_exchange *exchange, void *context)
{
    (void)context;
    kn_http_abort(exchange);
}

static bool on_sniff(kn_http_taken *taken, struct bufferevent *stream, void *context)
{
    (void)context;
    return kn_grpc_server_take(here.grpc, taken, stream);
}

static void on_finished(const kn_grpc_record *record, void *context)
{
    (void)record, (void)context;
    here.finished++;
}

static int start(void **state)
{
    static const char *const listen[] = {"127.0.0.1:0"};
    (void)state;
    memset(&seen, 0, sizeof seen);
    here.base = event_base_new();
    assert_int_equal(event_base_priority_init(here.base, KN_LOOP_PRIORITIES), 0);
    assert_int_equal(kn_turns_create(&here.turns, here.base), KN_OK);
    here.finished = 0;
    assert_int_equal(kn_grpc_server_create(&here.grpc, &(kn_grpc_params){.base = here.base,
                                                                         .turns = here.turns,
                                                                         .services = services,
                                                                         .service_count = 1,
                                                                         .admit = admit,
                                                                         .finished = on_finished}),
                     KN_OK);
    assert_int_equal(kn_http_server_create(&here.http, &(kn_http_params){.base = here.base,
                                                                         .turns = here.turns,
                                                                         .listen = listen,
                                                                         .listen_count = 1,
                                                                         .callbacks = {.headers = no_exchange,
                                                                                       .request = no_exchange,
                                                                                       .sniff = on_sniff}}),
                     KN_OK);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    kn_grpc_server_destroy(&here.grpc);
    kn_http_server_destroy(&here.http);
    event_base_loop(here.base, EVLOOP_NONBLOCK);
    kn_turns_destroy(&here.turns);
    event_base_free(here.base);
    return 0;
}

static void connect_client(h2_client *c)
{
    open_client(c, here.base, kn_http_server_port(here.http, 0));
}

/* A message of `count` bytes of 'x'; static. */
static size_t frame(uint8_t *out, size_t count)
{
    const uint8_t prefix[5] = {0, (uint8_t)(count >> 24), (uint8_t)(count >> 16), (uint8_t)(count >> 8),
                               (uint8_t)count};
    memcpy(out, prefix, sizeof prefix);
    memset(out + 5, 'x', count);
    return count + 5;
}

static const client_call *ask(h2_client *c, const char *path, size_t count, const extra *extras)
{
    static uint8_t body[BIG + 5];
    const client_call *call = begin_call(c, path, body, frame(body, count), false, extras);
    finish_call(c, call);
    return call;
}

/* ---- tests ---- */

static void unary(void **state)
{
    (void)state;
    h2_client c;
    static const size_t sizes[] = {0, 1, 100, 16384, 70000, BIG};
    connect_client(&c);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const client_call *call = ask(&c, "/test.Service/Echo", sizes[i], (extra[]){{"x-token", "abc"}, {0}});
        assert_string_equal(call->status, "0");
        assert_int_equal(call->reply_bytes, sizes[i] + 5);
        assert_string_equal(seen.token, "abc");
    }
    assert_int_equal(kn_grpc_server_stats(here.grpc).memory_bytes, 0);
    close_client(&c);
    assert_int_equal(here.finished, 6);
}

static void replies_are_compressed(void **state)
{
    (void)state;
    h2_client c;
    connect_client(&c);
    const client_call *call = ask(&c, "/test.Service/Echo", BIG, (extra[]){{"grpc-accept-encoding", "gzip"}, {0}});
    assert_string_equal(call->status, "0");
    assert_string_equal(call->encoding, "gzip");
    assert_int_equal(call->reply[0], 1);
    assert_in_range(call->reply_bytes, 6, BIG / 100);
    close_client(&c);
}

static void refusals(void **state)
{
    (void)state;
    h2_client c;
    connect_client(&c);
    static const extra none[] = {{0}}, br[] = {{"grpc-encoding", "br"}, {0}}, late[] = {{"grpc-timeout", "0n"}, {0}},
                       bad[] = {{"grpc-timeout", "soon"}, {0}}, key[] = {{"authorization", "Bearer good"}, {0}};
    static const struct {
        const char *path, *status;
        size_t count;
        const extra *extras;
    } cases[] = {{"/test.Service/Nothing", "12", 1, none}, {"/test.Service/Echo", "12", 1, br},
                 {"/test.Service/Echo", "4", 1, late},     {"/test.Service/Echo", "13", 1, bad},
                 {"/test.Service/Small", "8", 11, none},   {"/test.Service/Small", "0", 10, none},
                 {"/test.Service/Guarded", "16", 1, none}, {"/test.Service/Guarded", "0", 1, key}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const client_call *call = ask(&c, cases[i].path, cases[i].count, cases[i].extras);
        assert_string_equal(call->status, cases[i].status);
        assert_string_equal(call->http_status, "200");
    }
    const client_call *call = ask(&c, "/test.Service/Fail", 0, none);
    assert_string_equal(call->status, "3");
    assert_string_equal(call->message, "size %C3%BC is 100%25 wrong");
    assert_string_equal(call->pushback, "2000");
    assert_true(strlen(call->details) > 50);
    /* No message, and two. */
    client_call *none_sent = begin_call(&c, "/test.Service/Echo", "", 0, false, none);
    finish_call(&c, none_sent);
    assert_string_equal(none_sent->status, "12");
    client_call *two = begin_call(&c, "/test.Service/Echo", "\0\0\0\0\1a\0\0\0\0\1b", 12, false, none);
    finish_call(&c, two);
    assert_string_equal(two->status, "12");
    client_call *half = begin_call(&c, "/test.Service/Echo", "\0\0\0\0\2a", 6, false, none);
    finish_call(&c, half);
    assert_string_equal(half->status, "13");
    close_client(&c);
}

static void a_slow_reader_holds_the_sender(void **state)
{
    (void)state;
    h2_client c;
    connect_client(&c);
    const client_call *call = ask(&c, "/test.Service/Stream", 0, NULL);
    assert_string_equal(call->status, "0");
    assert_int_equal(call->reply_bytes, 20 * ((100 << 10) + 5));
    assert_int_equal(seen.sent, 20);
    close_client(&c);
}

static void a_paused_reader_holds_the_client(void **state)
{
    (void)state;
    h2_client c;
    static uint8_t body[200 * 1029];
    size_t total = 0;
    for (int i = 0; i < 200; i++) total += frame(body + total, 1024);
    connect_client(&c);
    client_call *call = begin_call(&c, "/test.Service/Parts", body, total, false, NULL);
    for (int i = 0; i < 50; i++) turn(&c);
    assert_int_equal(seen.messages, 1);
    assert_true(call->body_bytes >= total - 65535 - 16384); /* the window is shut */
    kn_grpc_resume(seen.kept);
    finish_call(&c, call);
    assert_int_equal(seen.messages, 200);
    assert_int_equal(seen.ended, 1);
    assert_memory_equal(call->reply, "\0\0\0\0\003200", 8);
    close_client(&c);
}

static void deadlines_and_cancels(void **state)
{
    (void)state;
    h2_client c;
    connect_client(&c);
    const client_call *call = ask(&c, "/test.Service/Hang", 0, (extra[]){{"grpc-timeout", "50m"}, {0}});
    assert_string_equal(call->status, "4");
    assert_int_equal(seen.closed, 1);
    assert_int_equal(seen.why, KN_GRPC_DEADLINE_EXCEEDED);
    static const uint8_t empty[5];
    client_call *reset = begin_call(&c, "/test.Service/Hang", empty, sizeof empty, false, NULL);
    for (int i = 0; i < 1000 && !seen.kept; i++) turn(&c);
    nghttp2_submit_rst_stream(c.session, 0, reset->id, NGHTTP2_CANCEL);
    for (int i = 0; i < 1000 && seen.closed < 2; i++) turn(&c);
    assert_int_equal(seen.closed, 2);
    assert_int_equal(seen.why, KN_GRPC_CANCELLED);
    begin_call(&c, "/test.Service/Hang", empty, sizeof empty, false, NULL);
    for (int i = 0; i < 1000 && !seen.kept; i++) turn(&c);
    close_client(&c); /* goes away */
    for (int i = 0; i < 1000 && seen.closed < 3; i++) event_base_loop(here.base, EVLOOP_NONBLOCK);
    assert_int_equal(seen.closed, 3);
    assert_int_equal(kn_grpc_server_stats(here.grpc).calls, 0);
}

static void a_drain_lets_calls_end(void **state)
{
    (void)state;
    h2_client c;
    static const uint8_t empty[5];
    connect_client(&c);
    const client_call *call = begin_call(&c, "/test.Service/Hang", empty, sizeof empty, false, NULL);
    for (int i = 0; i < 1000 && !seen.kept; i++) turn(&c);
    kn_grpc_server_drain(here.grpc);
    for (int i = 0; i < 100000 && c.goaways < 2; i++) turn(&c);
    assert_int_equal(c.goaways, 2);
    assert_string_equal(c.goaway_debug, "draining");
    assert_false(call->closed || c.gone);
    kn_grpc_finish(seen.kept, KN_GRPC_UNAVAILABLE, "elsewhere");
    for (int i = 0; i < 100000 && !c.gone; i++) turn(&c);
    assert_string_equal(call->status, "14");
    assert_string_equal(call->message, "elsewhere");
    assert_true(c.gone);
    close_client(&c);
}

/* Every allocation that serving a call takes fails once: the call or the connection ends, and nothing is lost. */
static void no_memory_is_survived(void **state)
{
    (void)state;
    for (uint64_t n = 1; n < 40; n++) {
        h2_client c;
        static uint8_t body[105];
        connect_client(&c);
        for (int i = 0; i < 20; i++) turn(&c);
        const client_call *call = begin_call(&c, "/test.Service/Echo", body, frame(body, 100), false, NULL);
        kn_mem_fail_at(n);
        finish_call(&c, call);
        kn_mem_fail_at(0);
        close_client(&c);
        for (int i = 0; i < 20; i++) event_base_loop(here.base, EVLOOP_NONBLOCK);
        assert_int_equal(kn_grpc_server_stats(here.grpc).calls, 0);
        assert_int_equal(kn_grpc_server_stats(here.grpc).memory_bytes, 0);
    }
}

/* Somebody who has something to do in every turn of the loop: nothing of its last priority runs by itself. */
static void on_busy(evutil_socket_t fd, short what, void *context)
{
    struct event *busy = *(struct event **)context;
    (void)fd, (void)what;
    event_active(busy, EV_TIMEOUT, 0);
    event_base_loopbreak(here.base); /* the client has its turn too */
}

static void who_has_behaved_goes_first(void **state)
{
    (void)state;
    static uint8_t bodies[2][105];
    struct event *busy = event_new(here.base, -1, 0, on_busy, &busy);
    h2_client old, newcomer;
    connect_client(&old);
    for (int i = 0; i < 100000 && LIST_EMPTY(&here.grpc->connections); i++) turn(&old);
    kn_grpc_connection *first = LIST_FIRST(&here.grpc->connections);
    assert_false(kn_standing_good(&first->standing));
    assert_string_equal(ask(&old, "/test.Service/Echo", 100, NULL)->status, "0");
    assert_true(kn_standing_good(&first->standing));
    connect_client(&newcomer);
    for (int i = 0; i < 100000 && LIST_FIRST(&here.grpc->connections) == first; i++) turn(&newcomer);
    assert_ptr_not_equal(LIST_FIRST(&here.grpc->connections), first);
    event_active(busy, EV_TIMEOUT, 0);
    const client_call *late =
        begin_call(&newcomer, "/test.Service/Echo", bodies[0], frame(bodies[0], 100), false, NULL);
    for (int i = 0; i < 100; i++) turn(&newcomer);
    assert_false(late->closed);
    const client_call *early = begin_call(&old, "/test.Service/Echo", bodies[1], frame(bodies[1], 100), false, NULL);
    for (int i = 0; i < 100000 && !early->closed; i++) {
        first->standing.credit_ns = KN_STANDING_CALL_NS; /* standing is time, and this machine may be slow */
        turn(&old);
    }
    assert_string_equal(early->status, "0");
    event_free(busy);
    finish_call(&newcomer, late);
    assert_string_equal(late->status, "0");
    close_client(&old);
    close_client(&newcomer);
}

/* The same, of good standing. */
static void on_busy_and_good(evutil_socket_t fd, short what, void *context)
{
    on_busy(fd, what, context);
    kn_turns_passed(here.turns, kn_clock_ns());
}

static void a_newcomer_is_served_beside_others(void **state)
{
    (void)state;
    struct event *busy = NULL;
    h2_client c;
    busy = event_new(here.base, -1, 0, on_busy_and_good, &busy);
    event_active(busy, EV_TIMEOUT, 0);
    connect_client(&c);
    assert_string_equal(ask(&c, "/test.Service/Echo", 100, NULL)->status, "0");
    event_free(busy);
    close_client(&c);
}

/* The streams of a client that is gone end in pieces, and all of them. */
static void what_a_client_leaves_behind_ends(void **state)
{
    (void)state;
    static const uint8_t empty[5];
    h2_client c;
    connect_client(&c);
    for (int i = 0; i < CLIENT_CALLS_MAX; i++) begin_call(&c, "/test.Service/Hang", empty, sizeof empty, false, NULL);
    for (int i = 0; i < 1000 && kn_grpc_server_stats(here.grpc).calls < CLIENT_CALLS_MAX; i++) turn(&c);
    assert_int_equal(kn_grpc_server_stats(here.grpc).calls, CLIENT_CALLS_MAX);
    close_client(&c);
    for (int i = 0; i < 1000 && kn_grpc_server_stats(here.grpc).connections > 0; i++)
        event_base_loop(here.base, EVLOOP_NONBLOCK);
    assert_int_equal(seen.closed, CLIENT_CALLS_MAX);
    assert_int_equal(kn_grpc_server_stats(here.grpc).calls, 0);
    assert_int_equal(kn_grpc_server_stats(here.grpc).connections, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(unary, start, stop),
        cmocka_unit_test_setup_teardown(replies_are_compressed, start, stop),
        cmocka_unit_test_setup_teardown(refusals, start, stop),
        cmocka_unit_test_setup_teardown(a_slow_reader_holds_the_sender, start, stop),
        cmocka_unit_test_setup_teardown(a_paused_reader_holds_the_client, start, stop),
        cmocka_unit_test_setup_teardown(deadlines_and_cancels, start, stop),
        cmocka_unit_test_setup_teardown(a_drain_lets_calls_end, start, stop),
        cmocka_unit_test_setup_teardown(no_memory_is_survived, start, stop),
        cmocka_unit_test_setup_teardown(who_has_behaved_goes_first, start, stop),
        cmocka_unit_test_setup_teardown(a_newcomer_is_served_beside_others, start, stop),
        cmocka_unit_test_setup_teardown(what_a_client_leaves_behind_ends, start, stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

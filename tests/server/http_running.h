/* SPDX-License-Identifier: Apache-2.0
 *
 * A server on a thread of its own, and clients that write bytes as they like. Include after the feature macros;
 * needs _GNU_SOURCE. Waiting is bounded by WAIT_SECONDS, which no test that passes comes near. */
#ifndef KN_TESTS_SERVER_HTTP_RUNNING_H
#define KN_TESTS_SERVER_HTTP_RUNNING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <event2/event.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "server/http_internal.h"

enum { WAIT_SECONDS = 30, RECORDS = 64 };

#define MILLISECONDS(n) ((int64_t)(n)*1000000)

/* ---- the server ---- */

typedef struct running running;

struct running {
    pthread_t thread;
    struct event_base *base;
    kn_turns *turns;
    kn_http_server *server;
    kn_http_params params; /* set what the test wants before start_server() */
    uint16_t port;
    /* Answers what is not /hello or /echo; on the loop's thread. May be NULL: 404. */
    void (*headers)(running *r, kn_http_exchange *exchange);
    void (*body)(running *r, kn_http_exchange *exchange, const void *bytes, size_t count);
    void (*request)(running *r, kn_http_exchange *exchange);
    void (*closed)(running *r, kn_http_exchange *exchange);
    void *user;
    kn_http_exchange *kept; /* the loop's */
    atomic_int headers_seen, requests_seen, closed_seen, finished_seen;
    kn_http_record records[RECORDS]; /* the loop's: the first ones finished; strings are not kept */
    /* A call on the loop's thread. */
    struct event *on_asked;
    int ask[2];
    pthread_mutex_t lock;
    pthread_cond_t answered;
    void (*call)(running *r, void *argument);
    void *argument;
    bool done;
};

static inline void reply_text(kn_http_exchange *exchange, int status, const char *text)
{
    (void)kn_http_reply(
        exchange,
        &(kn_http_response){.status = status, .content_type = "text/plain", .body = text, .body_bytes = strlen(text)});
}

static inline void on_headers(kn_http_exchange *exchange, void *context)
{
    running *r = context;
    atomic_fetch_add(&r->headers_seen, 1);
    if (strcmp(kn_http_path(exchange), "/echo") == 0) kn_http_body_limit(exchange, KN_HTTP_BODY_BYTES_MAX);
    if (r->headers) r->headers(r, exchange);
}

static inline void on_body(kn_http_exchange *exchange, const void *bytes, size_t count, void *context)
{
    running *r = context;
    if (r->body) r->body(r, exchange, bytes, count);
}

static inline void on_request(kn_http_exchange *exchange, void *context)
{
    running *r = context;
    atomic_fetch_add(&r->requests_seen, 1);
    if (strcmp(kn_http_path(exchange), "/hello") == 0) {
        reply_text(exchange, 200, "hello\n");
    } else if (strcmp(kn_http_path(exchange), "/echo") == 0) {
        kn_http_response response = {.status = 200};
        response.body = kn_http_body(exchange, &response.body_bytes);
        (void)kn_http_reply(exchange, &response);
    } else if (r->request) {
        r->request(r, exchange);
    } else {
        reply_text(exchange, 404, "nothing here\n");
    }
}

static inline void on_closed(kn_http_exchange *exchange, void *context)
{
    running *r = context;
    if (r->kept == exchange) r->kept = NULL;
    if (r->closed) r->closed(r, exchange);
    atomic_fetch_add(&r->closed_seen, 1);
}

static inline void on_finished(const kn_http_record *record, void *context)
{
    running *r = context;
    const int index = atomic_load(&r->finished_seen);
    if (index < RECORDS) r->records[index] = *record;
    atomic_fetch_add(&r->finished_seen, 1);
}

/* Keeps the exchange for a later call. */
static inline void keep_exchange(running *r, kn_http_exchange *exchange)
{
    r->kept = exchange;
}

static inline void on_ask(evutil_socket_t fd, short what, void *context)
{
    running *r = context;
    char byte;
    (void)what;
    if (read(fd, &byte, 1) != 1) abort();
    r->call(r, r->argument);
    pthread_mutex_lock(&r->lock);
    r->done = true;
    pthread_cond_signal(&r->answered);
    pthread_mutex_unlock(&r->lock);
}

/* Runs call() on the loop's thread and returns when it did. */
static inline void on_loop(running *r, void (*call)(running *r, void *argument), void *argument)
{
    pthread_mutex_lock(&r->lock);
    r->call = call;
    r->argument = argument;
    r->done = false;
    pthread_mutex_unlock(&r->lock);
    assert_int_equal(write(r->ask[1], "x", 1), 1);
    pthread_mutex_lock(&r->lock);
    while (!r->done) pthread_cond_wait(&r->answered, &r->lock);
    pthread_mutex_unlock(&r->lock);
}

static inline void *run_loop(void *context)
{
    event_base_dispatch(((running *)context)->base);
    return NULL;
}

static inline void start_server(running *r)
{
    static const char *const here[] = {"127.0.0.1:0"};
    kn_log_configure(KN_LOG_ERROR, 0);
    r->base = event_base_new();
    assert_non_null(r->base);
    assert_int_equal(kn_turns_create(&r->turns, r->base), KN_OK);
    r->params.base = r->base;
    r->params.turns = r->turns;
    if (!r->params.listen) {
        r->params.listen = here;
        r->params.listen_count = 1;
    }
    r->params.context = r;
    r->params.callbacks.headers = on_headers;
    r->params.callbacks.body = on_body;
    r->params.callbacks.request = on_request;
    r->params.callbacks.closed = on_closed;
    r->params.callbacks.finished = on_finished;
    if (kn_http_server_create(&r->server, &r->params) != KN_OK) fail_msg("%s", kn_fail_message());
    r->port = kn_http_server_port(r->server, 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, r->ask), 0);
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->answered, NULL);
    r->on_asked = event_new(r->base, r->ask[0], EV_READ | EV_PERSIST, on_ask, r);
    assert_true(r->on_asked && event_add(r->on_asked, NULL) == 0);
    assert_int_equal(pthread_create(&r->thread, NULL, run_loop, r), 0);
}

static inline void destroy_on_loop(running *r, void *argument)
{
    (void)argument;
    kn_http_server_destroy(&r->server);
    event_base_loopbreak(r->base);
}

static inline void stop_server(running *r)
{
    on_loop(r, destroy_on_loop, NULL);
    pthread_join(r->thread, NULL);
    event_free(r->on_asked);
    event_base_loop(r->base, EVLOOP_NONBLOCK); /* as kn_http_server_destroy() asks for */
    kn_turns_destroy(&r->turns);
    event_base_free(r->base);
    close(r->ask[0]);
    close(r->ask[1]);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->answered);
}

static inline void read_stats(running *r, void *argument)
{
    *(kn_http_stats *)argument = kn_http_server_stats(r->server);
}

static inline kn_http_stats stats_of(running *r)
{
    kn_http_stats stats;
    on_loop(r, read_stats, &stats);
    return stats;
}

/* ---- waiting ---- */

static inline void pause_shortly(void)
{
    usleep(1000);
}

static inline void wait_for(atomic_int *counter, int wanted)
{
    for (int i = 0; atomic_load(counter) < wanted; i++) {
        if (i == WAIT_SECONDS * 1000) fail_msg("waited for %d, there are %d", wanted, atomic_load(counter));
        pause_shortly();
    }
}

static inline void wait_for_connections(running *r, int32_t wanted)
{
    for (int i = 0; stats_of(r).connections != wanted; i++) {
        if (i == WAIT_SECONDS * 1000) fail_msg("%d connections, not %d", stats_of(r).connections, wanted);
        pause_shortly();
    }
}

/* ---- clients ---- */

typedef struct client {
    int fd;
    SSL *ssl;
    char *bytes; /* read and not yet taken */
    size_t used, room;
    bool end;
} client;

typedef struct reply {
    int status;
    char head[KN_HTTP_REPLY_HEAD_BYTES + 1];
    char *body; /* free_reply() */
    size_t bytes;
    bool complete; /* as its framing says */
} reply;

static inline int connect_to(uint16_t port)
{
    const struct timeval patience = {.tv_sec = WAIT_SECONDS};
    const struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    assert_true(fd >= 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (const struct sockaddr *)&address, sizeof address) != 0)
        fail_msg("cannot connect: %s", strerror(errno));
    return fd;
}

static inline client client_open(const running *r)
{
    return (client){.fd = connect_to(r->port)};
}

static inline void client_close(client *c)
{
    if (c->ssl) SSL_free(c->ssl);
    if (c->fd >= 0) close(c->fd);
    free(c->bytes);
    *c = (client){.fd = -1};
}

static inline bool client_write(client *c, const void *bytes, size_t count)
{
    for (size_t sent = 0; sent < count;) {
        const size_t rest = count - sent, piece = rest < (1 << 20) ? rest : (1 << 20);
        const ssize_t got = c->ssl ? SSL_write(c->ssl, (const char *)bytes + sent, (int)piece)
                                   : send(c->fd, (const char *)bytes + sent, piece, MSG_NOSIGNAL);
        if (got <= 0) return false;
        sent += (size_t)got;
    }
    return true;
}

static inline bool client_send(client *c, const char *text)
{
    return client_write(c, text, strlen(text));
}

/* More bytes into the buffer; false at the end, however it came. */
static inline bool client_read(client *c)
{
    if (c->end) return false;
    if (c->room - c->used < (64 << 10)) {
        c->room = 2 * c->room + (128 << 10);
        c->bytes = realloc(c->bytes, c->room);
        assert_non_null(c->bytes);
    }
    const size_t room = c->room - c->used - 1;
    errno = 0;
    const ssize_t got =
        c->ssl ? SSL_read(c->ssl, c->bytes + c->used, (int)room) : recv(c->fd, c->bytes + c->used, room, 0);
    if (got <= 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) fail_msg("nothing came in %d s", WAIT_SECONDS);
    c->end = got <= 0;
    c->used += got > 0 ? (size_t)got : 0;
    c->bytes[c->used] = '\0';
    return !c->end;
}

static inline void client_take(client *c, size_t count)
{
    memmove(c->bytes, c->bytes + count, c->used - count + 1);
    c->used -= count;
}

/* Nothing more comes, and the server closed. */
static inline bool client_ends(client *c)
{
    while (client_read(c)) continue;
    return c->used == 0;
}

static inline void free_reply(reply *in)
{
    free(in->body);
    in->body = NULL;
}

/* A header's value, in one of four static buffers; NULL when it is not there. */
static inline const char *reply_header(const reply *in, const char *name)
{
    static char values[4][512];
    static int next;
    char *value = values[next++ % 4];
    for (const char *line = strstr(in->head, "\r\n"); line; line = strstr(line + 2, "\r\n")) {
        const size_t bytes = strlen(name);
        if (strncasecmp(line + 2, name, bytes) != 0 || strncmp(line + 2 + bytes, ": ", 2) != 0) continue;
        const char *start = line + 4 + bytes, *end = strstr(start, "\r\n");
        snprintf(value, sizeof values[0], "%.*s", (int)(end - start), start);
        return value;
    }
    return NULL;
}

static inline void keep_body(reply *out, const char *bytes, size_t count)
{
    out->body = realloc(out->body, out->bytes + count + 1);
    assert_non_null(out->body);
    memcpy(out->body + out->bytes, bytes, count);
    out->bytes += count;
    out->body[out->bytes] = '\0';
}

static inline bool read_chunked(client *c, reply *out)
{
    for (;;) {
        char *end;
        while (!c->bytes || !strstr(c->bytes, "\r\n"))
            if (!client_read(c)) return false;
        const size_t size = strtoul(c->bytes, &end, 16);
        const size_t head = (size_t)(end - c->bytes) + 2;
        assert_memory_equal(end, "\r\n", 2);
        while (c->used < head + size + 2)
            if (!client_read(c)) return false;
        assert_memory_equal(c->bytes + head + size, "\r\n", 2);
        keep_body(out, c->bytes + head, size);
        client_take(c, head + size + 2);
        if (size == 0) return true;
    }
}

/* Reads one reply, whose request was a HEAD where `bodyless`. False: the connection ended before its head. */
static inline bool client_reply_to(client *c, reply *out, bool bodyless)
{
    *out = (reply){0};
    while (!c->bytes || !strstr(c->bytes, "\r\n\r\n"))
        if (!client_read(c)) return false;
    const size_t head = (size_t)(strstr(c->bytes, "\r\n\r\n") - c->bytes) + 4;
    assert_true(head < sizeof out->head);
    memcpy(out->head, c->bytes, head);
    client_take(c, head);
    if (sscanf(out->head, "HTTP/1.1 %d ", &out->status) != 1) fail_msg("not a reply: %s", out->head);
    keep_body(out, "", 0);
    if (out->status != 100 && !reply_header(out, "x-request-id")) fail_msg("no x-request-id: %s", out->head);
    const char *length = reply_header(out, "Content-Length");
    out->complete = true;
    if (bodyless || out->status == 204 || out->status == 304 || out->status == 100) return true;
    if (reply_header(out, "Transfer-Encoding")) {
        out->complete = read_chunked(c, out);
        return true;
    }
    const size_t wanted = length ? strtoul(length, NULL, 10) : SIZE_MAX;
    while (c->used < wanted && client_read(c)) continue;
    const size_t take = c->used < wanted ? c->used : wanted;
    keep_body(out, c->bytes, take);
    client_take(c, take);
    out->complete = !length || take == wanted;
    return true;
}

static inline bool client_reply(client *c, reply *out)
{
    return client_reply_to(c, out, false);
}

/* Reads a reply and checks its status and, unless NULL, its body. */
static inline void expect_reply(client *c, int status, const char *body)
{
    reply got;
    if (!client_reply(c, &got)) fail_msg("no reply, %d was expected", status);
    if (got.status != status || !got.complete || (body && strcmp(got.body, body) != 0))
        fail_msg("expected %d %s: %s%s", status, body ? body : "", got.head, got.body);
    free_reply(&got);
}

/* Sends and reads one reply on a connection of its own, which must be closed by the server where `closes`. */
static inline void expect_exchange(const running *r, const char *request, int status, bool closes)
{
    client c = client_open(r);
    reply got;
    assert_true(client_send(&c, request));
    if (!client_reply_to(&c, &got, strncmp(request, "HEAD ", 5) == 0) || got.status != status)
        fail_msg("%.300s\nexpected %d: %s", request, status, got.head);
    const char *connection = reply_header(&got, "Connection");
    assert_int_equal(closes, connection && strcmp(connection, "close") == 0);
    if (closes && !client_ends(&c)) fail_msg("%.300s\nthe connection goes on", request);
    free_reply(&got);
    client_close(&c);
}

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * One connection: the states of http_internal.h, moved forward as long as there is something to do. Whatever happens
 * (bytes came, bytes left, a handler replied, time passed) ends in kn_http_connection_run, which looks at the state
 * and at what is there, not at what happened; so a lost or a repeated notice does no harm. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <event2/bufferevent_ssl.h>
#include <openssl/err.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "server/http_internal.h"

static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"; /* RFC 9113 3.4 */

enum {
    PREFACE_BYTES = sizeof preface - 1,
    REQUESTS_A_TURN = 16, /* of those sent without waiting for replies; the next have to wait for a turn */
};

void kn_http_connection_set(kn_http_connection *connection, kn_http_state state)
{
    connection->state = state;
    connection->since_ns = kn_clock_ns();
    connection->taken_ns = 0;
}

void kn_http_connection_schedule(kn_http_connection *connection)
{
    kn_http_server *server = connection->server;
    if (connection->running || connection->is_ready) return;
    if (TAILQ_EMPTY(&server->ready)) event_active(server->wake, EV_TIMEOUT, 0);
    TAILQ_INSERT_TAIL(&server->ready, connection, ready);
    connection->is_ready = true;
}

void kn_http_connection_end(kn_http_connection *connection)
{
    if (connection->exchange) {
        kn_http_exchange_close(connection->exchange);
        kn_http_exchange_finish(connection, false);
    }
    connection->dead = true;
}

/* ---- writing ---- */

size_t kn_http_connection_queued(const kn_http_connection *connection)
{
    return evbuffer_get_length(bufferevent_get_output(connection->stream));
}

static void break_off(kn_http_connection *connection)
{
    connection->broken = true;
    kn_http_connection_schedule(connection);
}

void kn_http_connection_send(kn_http_connection *connection, const struct iovec *pieces, int count)
{
    size_t sent = 0;
    if (connection->broken) return;
    if (!connection->ssl && kn_http_connection_queued(connection) == 0) {
        const struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)pieces, .msg_iovlen = (size_t)count};
        const ssize_t got = sendmsg(connection->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
            break_off(connection);
            return;
        }
        sent = got > 0 ? (size_t)got : 0;
    }
    for (int i = 0; i < count; i++) {
        const size_t skip = sent < pieces[i].iov_len ? sent : pieces[i].iov_len, rest = pieces[i].iov_len - skip;
        sent -= skip;
        if (rest == 0) continue;
        connection->queued += rest;
        if (bufferevent_write(connection->stream, (const char *)pieces[i].iov_base + skip, rest) != 0) {
            break_off(connection); /* out of memory */
            return;
        }
    }
}

/* ---- reading ---- */

static bool give_away(kn_http_connection *connection);

static bool begin_exchange(kn_http_connection *connection)
{
    const struct evbuffer *input = bufferevent_get_input(connection->stream);
    if (connection->requests == 0 && connection->ssl && kn_tls_agreed_http2(connection->ssl)) {
        connection->dead = !give_away(connection);
        return false;
    }
    if (evbuffer_get_length(input) == 0) {
        connection->dead = connection->eof || connection->server->draining;
        return false;
    }
    kn_http_connection_set(connection, KN_HTTP_READING_HEAD);
    if (kn_http_exchange_begin(connection) == KN_OK) return true;
    connection->dead = true; /* not even memory to refuse it */
    return false;
}

/* Hands the connection to the other protocol. False: nobody wants it. */
static bool give_away(kn_http_connection *connection)
{
    const kn_http_server *server = connection->server;
    struct bufferevent *stream = connection->stream;
    bufferevent_data_cb on_read = NULL, on_write = NULL;
    bufferevent_event_cb on_event = NULL;
    const kn_http_state state = connection->state;
    if (!server->callbacks.sniff) return false;
    bufferevent_getcb(stream, &on_read, &on_write, &on_event, NULL);
    bufferevent_setcb(stream, NULL, NULL, NULL, NULL);
    connection->state = KN_HTTP_TAKEN;
    if (server->callbacks.sniff(&connection->taken, stream, server->context)) {
        connection->stream = NULL;
        connection->ssl = NULL;
        if (connection->exchange) { /* it was never one */
            kn_http_exchange_free(connection->exchange);
            connection->exchange = NULL;
            connection->server->stats.requests--;
        }
        return true;
    }
    connection->state = state;
    bufferevent_setcb(stream, on_read, on_write, on_event, connection);
    return false;
}

/* The head is complete: what the server itself has to say about it, then the handler. */
static void accept_head(kn_http_connection *connection)
{
    const kn_http_server *server = connection->server;
    kn_http_exchange *exchange = connection->exchange;
    const int64_t length = kn_http_content_length(exchange);
    if (exchange->head.expect_other) {
        kn_http_refuse(connection, 417, "the only expectation this server meets is 100-continue");
        return;
    }
    if (exchange->head.encoded && length != 0) {
        kn_http_refuse(connection, 415, "request bodies must come without Content-Encoding");
        return;
    }
    exchange->introduced = true;
    server->callbacks.headers(exchange, server->context);
    if (exchange->begun || connection->broken) return;
    if (length > 0 && (uint64_t)length > exchange->body_limit) {
        kn_http_refuse(connection, 413, "the request body is longer than this request may have");
        return;
    }
    kn_http_connection_set(connection, KN_HTTP_READING_BODY);
    connection->credited_ns = connection->since_ns;
    connection->body_credit =
        (double)server->limits.body_bytes_per_second * kn_clock_seconds(server->limits.body_grace_ns);
    if (exchange->head.expect_continue && length != 0 &&
        evbuffer_get_length(bufferevent_get_input(connection->stream)) == 0) {
        static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";
        const struct iovec piece = {.iov_base = (void *)(uintptr_t)go_on, .iov_len = sizeof go_on - 1};
        kn_http_connection_send(connection, &piece, 1);
    }
}

/* False: more must come. */
static bool read_head(kn_http_connection *connection)
{
    kn_http_server *server = connection->server;
    kn_http_exchange *exchange = connection->exchange;
    struct evbuffer *input = bufferevent_get_input(connection->stream);
    const size_t count = evbuffer_get_length(input);
    const char *bytes = (const char *)evbuffer_pullup(input, -1);
    const kn_http_parse_limits limits = {server->limits.fields, server->limits.header_bytes,
                                         server->limits.target_bytes};
    kn_http_refusal refusal = {0};
    if (connection->requests == 1 && server->callbacks.sniff && bytes &&
        memcmp(bytes, preface, count < PREFACE_BYTES ? count : PREFACE_BYTES) == 0) {
        if (count >= PREFACE_BYTES && give_away(connection)) return false;
        if (count < PREFACE_BYTES && !connection->eof) return false;
    }
    kn_status st = bytes ? kn_http_parse_head(&exchange->head, bytes, count, &limits, &refusal) : KN_NOMEM;
    if (st == KN_AGAIN) {
        if (connection->eof) kn_http_connection_end(connection);
        return false;
    }
    if (st == KN_OK) {
        st = kn_http_exchange_fill(exchange, bytes);
        if (st == KN_INVALID) refusal = (kn_http_refusal){400, "the request target's path is malformed or ambiguous"};
    }
    if (st == KN_OK) {
        evbuffer_drain(input, exchange->head.bytes);
        accept_head(connection);
    } else if (st == KN_NOMEM) {
        kn_http_refuse(connection, 503, "the server is out of memory");
    } else {
        server->stats.malformed++;
        kn_http_refuse(connection, refusal.status, refusal.message);
    }
    return true;
}

/* A run of body bytes. False: the request was refused. */
static bool take_body(kn_http_connection *connection, const char *bytes, size_t count)
{
    const kn_http_server *server = connection->server;
    kn_http_exchange *exchange = connection->exchange;
    if (count > exchange->body_limit - exchange->body_received) {
        kn_http_refuse(connection, 413, "the request body is longer than this request may have");
        return false;
    }
    if (!exchange->body_streamed && kn_http_exchange_append(exchange, bytes, count) != KN_OK) {
        kn_http_refuse(connection, 503, "the memory for request bodies is in use; try again soon");
        return false;
    }
    exchange->body_received += count;
    connection->body_credit += (double)count;
    kn_standing_earn(&connection->standing, (int64_t)count * KN_STANDING_BYTE_NS);
    if (exchange->body_streamed && server->callbacks.body)
        server->callbacks.body(exchange, bytes, count, server->context);
    return true;
}

/* One step through the body: what lies contiguous in the input. KN_OK: it is complete; KN_AGAIN: not yet. */
static kn_status read_piece(kn_http_connection *connection, struct evbuffer *input)
{
    kn_http_exchange *exchange = connection->exchange;
    struct evbuffer_iovec piece;
    kn_http_refusal refusal;
    if (evbuffer_peek(input, -1, NULL, &piece, 1) < 1) return KN_AGAIN;
    const char *data = piece.iov_base;
    size_t used = piece.iov_len, data_bytes = piece.iov_len;
    kn_status st;
    if (exchange->head.chunked) {
        st =
            kn_http_parse_chunks(&exchange->chunks, piece.iov_base, piece.iov_len, &used, &data, &data_bytes, &refusal);
        if (st == KN_INVALID) {
            connection->server->stats.malformed++;
            kn_http_refuse(connection, refusal.status, refusal.message);
            return KN_INVALID;
        }
    } else {
        const uint64_t left = (uint64_t)exchange->head.content_length - exchange->body_received;
        if (left < used) used = data_bytes = (size_t)left;
        st = used == left ? KN_OK : KN_AGAIN;
    }
    const bool taken = data_bytes == 0 || take_body(connection, data, data_bytes);
    evbuffer_drain(input, used);
    return taken ? st : KN_INVALID;
}

static bool read_body(kn_http_connection *connection)
{
    const kn_http_server *server = connection->server;
    kn_http_exchange *exchange = connection->exchange;
    struct evbuffer *input = bufferevent_get_input(connection->stream);
    kn_status st = kn_http_content_length(exchange) == 0 ? KN_OK : KN_AGAIN;
    while (st == KN_AGAIN && !exchange->body_paused && evbuffer_get_length(input) > 0) {
        st = read_piece(connection, input);
        if (connection->state != KN_HTTP_READING_BODY || connection->broken) return true; /* the handler replied */
    }
    if (st == KN_INVALID) return true;
    if (st == KN_AGAIN) {
        if (connection->eof && !exchange->body_paused) kn_http_connection_end(connection);
        return false;
    }
    exchange->body_complete = true;
    kn_http_connection_set(connection, KN_HTTP_WAITING);
    server->callbacks.request(exchange, server->context);
    return true;
}

/* ---- the end of an exchange ---- */

static void begin_lingering(kn_http_connection *connection)
{
    kn_http_connection_set(connection, KN_HTTP_LINGERING);
    bufferevent_disable(connection->stream, EV_WRITE);
    if (connection->ssl) {
        SSL_shutdown(connection->ssl); /* best effort: it writes its alert or it does not */
        ERR_clear_error();
    }
    shutdown(connection->fd, SHUT_WR);
}

static bool finish_sending(kn_http_connection *connection)
{
    kn_http_file_refill(connection->exchange);
    if (connection->broken || kn_http_connection_queued(connection) > 0) return connection->broken;
    if (connection->exchange->status < 400) kn_standing_finish(&connection->standing, KN_STANDING_CALL_NS);
    kn_http_exchange_finish(connection, true);
    if (connection->close_after)
        begin_lingering(connection);
    else
        kn_http_connection_set(connection, KN_HTTP_IDLE);
    return true;
}

static bool linger(kn_http_connection *connection)
{
    struct evbuffer *input = bufferevent_get_input(connection->stream);
    evbuffer_drain(input, evbuffer_get_length(input));
    connection->dead = connection->eof;
    return false;
}

/* ---- the beginning ---- */

static void on_read(struct bufferevent *stream, void *context);
static void on_written(struct bufferevent *stream, void *context);
static void on_event(struct bufferevent *stream, short what, void *context);

/* From here on the bytes go through libevent's buffers. */
static kn_status open_stream(kn_http_connection *connection)
{
    struct event_base *base = connection->server->base;
    /* Deferred: reading through OpenSSL may call back from inside evbuffer_drain and bufferevent_enable. */
    connection->stream =
        connection->ssl ? bufferevent_openssl_socket_new(base, connection->fd, connection->ssl, BUFFEREVENT_SSL_OPEN,
                                                         BEV_OPT_CLOSE_ON_FREE | BEV_OPT_DEFER_CALLBACKS)
                        : bufferevent_socket_new(base, connection->fd, BEV_OPT_CLOSE_ON_FREE);
    if (!connection->stream) {
        connection->ssl = NULL; /* libevent has freed it */
        return KN_NOMEM;
    }
    /* A connection cut without TLS's goodbye is an end like any other: the framing tells what is complete. */
    if (connection->ssl) bufferevent_openssl_set_allow_dirty_shutdown(connection->stream, 1);
    bufferevent_setcb(connection->stream, on_read, on_written, on_event, connection);
    bufferevent_enable(connection->stream, EV_READ);
    return KN_OK;
}

static void on_handshake(evutil_socket_t fd, short what, void *context)
{
    kn_http_connection *connection = context;
    (void)fd, (void)what;
    kn_turns_wait(connection->server->turns, &connection->turn);
}

/* Not libevent's: signing costs more than anything else that a stranger can ask for, so it has to wait for its turn. */
static kn_status begin_handshake(kn_http_connection *connection)
{
    const kn_http_server *server = connection->server;
    const kn_status st = kn_tls_session(server->tls, &connection->ssl);
    if (st != KN_OK) return st;
    connection->handshake = event_new(server->base, connection->fd, EV_READ, on_handshake, connection);
    if (!connection->handshake || SSL_set_fd(connection->ssl, connection->fd) != 1 ||
        event_add(connection->handshake, NULL) != 0)
        return KN_NOMEM;
    return KN_OK;
}

/* True: TLS is agreed on, or will not be. */
static bool shake_hands(kn_http_connection *connection)
{
    const int done = SSL_accept(connection->ssl), error = SSL_get_error(connection->ssl, done);
    const bool wants = error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE;
    ERR_clear_error();
    event_del(connection->handshake);
    if (wants &&
        event_assign(connection->handshake, connection->server->base, connection->fd,
                     error == SSL_ERROR_WANT_READ ? EV_READ : EV_WRITE, on_handshake, connection) == 0 &&
        event_add(connection->handshake, NULL) == 0)
        return false;
    event_free(connection->handshake);
    connection->handshake = NULL;
    kn_http_connection_set(connection, KN_HTTP_IDLE);
    if (done != 1) connection->server->stats.handshakes_failed++;
    connection->broken = done != 1 || open_stream(connection) != KN_OK;
    return true;
}

/* ---- the machine ---- */

/* True: something changed, look again. */
static bool step(kn_http_connection *connection)
{
    if (connection->broken) {
        kn_http_connection_end(connection);
        return false;
    }
    switch (connection->state) {
    case KN_HTTP_HANDSHAKING: return shake_hands(connection);
    case KN_HTTP_IDLE: return begin_exchange(connection);
    case KN_HTTP_READING_HEAD: return read_head(connection);
    case KN_HTTP_READING_BODY: return read_body(connection);
    case KN_HTTP_WAITING:
    case KN_HTTP_STREAMING:
        if (connection->eof) kn_http_connection_end(connection);
        return false;
    case KN_HTTP_SENDING: return finish_sending(connection);
    case KN_HTTP_LINGERING: return linger(connection);
    case KN_HTTP_TAKEN: break;
    }
    return false;
}

/* Stops reading at the bound and goes on below it. Not libevent's high watermark: at that, 2.1.12 calls the read
 * callback over and over until somebody takes bytes. */
static void bound_reading(kn_http_connection *connection)
{
    if (connection->state == KN_HTTP_TAKEN || !connection->stream) return;
    const bool full = connection->turn.waits ||
                      evbuffer_get_length(bufferevent_get_input(connection->stream)) >= KN_HTTP_READ_AHEAD_BYTES;
    if (full == connection->full) return;
    connection->full = full;
    if (full)
        bufferevent_disable(connection->stream, EV_READ);
    else if (!connection->eof)
        bufferevent_enable(connection->stream, EV_READ);
}

/* It may send, but not be read. */
static bool must_wait(const kn_http_connection *connection)
{
    return connection->turn.waits && connection->state <= KN_HTTP_READING_BODY && !connection->broken;
}

void kn_http_connection_run(kn_http_connection *connection)
{
    if (connection->running) return; /* the frame below goes on when this one returns */
    const int64_t began_ns = kn_clock_ns();
    const uint64_t enough = connection->requests + REQUESTS_A_TURN;
    connection->running = true;
    while (!connection->dead && !must_wait(connection) && step(connection))
        if (connection->requests == enough) kn_turns_wait(connection->server->turns, &connection->turn);
    if (!connection->dead) bound_reading(connection);
    connection->running = false;
    kn_standing_spend(&connection->standing, kn_clock_ns() - began_ns);
    if (connection->dead) kn_http_connection_destroy(connection);
}

static void on_turn(void *context)
{
    kn_http_connection_run(context);
}

/* Now where its standing is good, else when its turn comes. */
static void run_in_turn(kn_http_connection *connection)
{
    kn_http_server *server = connection->server;
    if (connection->turn.waits || !kn_standing_good(&connection->standing)) {
        kn_turns_wait(server->turns, &connection->turn);
        bound_reading(connection);
        return;
    }
    kn_http_connection_run(connection);
    kn_turns_passed(server->turns, kn_clock_ns());
}

static void on_read(struct bufferevent *stream, void *context)
{
    (void)stream;
    run_in_turn(context);
}

static void on_written(struct bufferevent *stream, void *context)
{
    kn_http_connection *connection = context;
    kn_http_server *server = connection->server;
    (void)stream;
    kn_http_connection_run(connection);
    kn_turns_passed(server->turns, kn_clock_ns());
}

static void on_event(struct bufferevent *stream, short what, void *context)
{
    kn_http_connection *connection = context;
    (void)stream;
    if (what & BEV_EVENT_EOF) connection->eof = true;
    if (what & BEV_EVENT_ERROR) connection->broken = true;
    ERR_clear_error();
    run_in_turn(connection);
}

/* ---- time ---- */

static void time_out(kn_http_connection *connection)
{
    connection->server->stats.timeouts++;
    connection->broken = true;
}

static void check_body_rate(kn_http_connection *connection, int64_t now_ns)
{
    const kn_http_limits *limits = &connection->server->limits;
    const double full = (double)limits->body_bytes_per_second * kn_clock_seconds(limits->body_grace_ns);
    if (connection->exchange->body_paused) return;
    if (connection->body_credit > full) connection->body_credit = full;
    connection->body_credit -=
        (double)limits->body_bytes_per_second * kn_clock_seconds(now_ns - connection->credited_ns);
    connection->credited_ns = now_ns;
    if (connection->body_credit >= 0.0) return;
    connection->server->stats.timeouts++;
    kn_http_refuse(connection, 408, "the request body comes too slowly");
}

static void check_stall(kn_http_connection *connection, int64_t now_ns)
{
    const uint64_t waiting = kn_http_connection_queued(connection), taken = connection->queued - waiting;
    if (waiting == 0 || taken != connection->taken_mark || connection->taken_ns == 0) {
        connection->taken_mark = taken;
        connection->taken_ns = now_ns;
    } else if (now_ns - connection->taken_ns > connection->server->limits.write_stall_ns) {
        time_out(connection);
    }
}

void kn_http_connection_check(kn_http_connection *connection, int64_t now_ns)
{
    const kn_http_limits *limits = &connection->server->limits;
    const int64_t age_ns = now_ns - connection->since_ns;
    switch (connection->state) {
    case KN_HTTP_HANDSHAKING:
        if (age_ns > limits->handshake_ns) time_out(connection);
        break;
    case KN_HTTP_IDLE:
        connection->broken |= age_ns > (connection->requests > 0 ? limits->idle_ns : limits->header_ns);
        break;
    case KN_HTTP_READING_HEAD:
        if (age_ns <= limits->header_ns) break;
        connection->server->stats.timeouts++;
        kn_http_refuse(connection, 408, "the request's header section comes too slowly");
        break;
    case KN_HTTP_READING_BODY: check_body_rate(connection, now_ns); break;
    case KN_HTTP_STREAMING:
    case KN_HTTP_SENDING: check_stall(connection, now_ns); break;
    case KN_HTTP_LINGERING: connection->broken |= age_ns > limits->linger_ns; break;
    case KN_HTTP_WAITING:
    case KN_HTTP_TAKEN: return;
    }
    if (connection->broken || connection->state == KN_HTTP_SENDING) kn_http_connection_run(connection);
}

/* ---- create, destroy ---- */

kn_http_connection *kn_http_connection_create(kn_http_server *server, evutil_socket_t fd, bool tls)
{
    kn_http_connection *connection = kn_alloc(sizeof *connection);
    if (!connection) {
        close(fd);
        return NULL;
    }
    connection->server = server;
    connection->fd = fd;
    connection->taken.connection = connection;
    connection->turn = (kn_turn){.run = on_turn, .context = connection};
    kn_http_connection_set(connection, tls ? KN_HTTP_HANDSHAKING : KN_HTTP_IDLE);
    LIST_INSERT_HEAD(&server->connections, connection, all);
    server->stats.connections++;
    if ((tls ? begin_handshake(connection) : open_stream(connection)) == KN_OK) return connection;
    kn_http_connection_destroy(connection);
    return NULL;
}

void kn_http_connection_destroy(kn_http_connection *connection)
{
    kn_http_server *server = connection->server;
    if (connection->exchange) kn_http_connection_end(connection);
    if (connection->is_ready) TAILQ_REMOVE(&server->ready, connection, ready);
    kn_turns_leave(server->turns, &connection->turn);
    LIST_REMOVE(connection, all);
    kn_http_uncount(connection);
    if (connection->handshake) event_free(connection->handshake);
    if (connection->stream) {
        bufferevent_free(connection->stream);
    } else if (connection->state != KN_HTTP_TAKEN) {
        SSL_free(connection->ssl);
        close(connection->fd);
    }
    kn_free(connection);
    server->stats.connections--;
    kn_http_check_drained(server);
}

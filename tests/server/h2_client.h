/* SPDX-License-Identifier: Apache-2.0
 *
 * A gRPC client in the thread of the server's loop: nghttp2's client side on a socket that never blocks. */
#ifndef KN_TESTS_SERVER_H2_CLIENT_H
#define KN_TESTS_SERVER_H2_CLIENT_H

#include <arpa/inet.h>
#include <event2/event.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <nghttp2/nghttp2.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CLIENT_BODY_BYTES = 1 << 20, CLIENT_CALLS_MAX = 64 };

/* A call as the client sees it. */
typedef struct client_call {
    int32_t id;
    const uint8_t *body; /* to be sent */
    size_t body_bytes;
    bool keep_open; /* the body is not the end */
    uint8_t *reply;
    size_t reply_bytes;
    char http_status[8], status[8], message[512], details[2048], pushback[32], encoding[16];
    bool closed;
    uint32_t error;
} client_call;

typedef struct h2_client {
    struct event_base *base; /* the server's */
    int fd;
    nghttp2_session *session;
    client_call calls[CLIENT_CALLS_MAX];
    int32_t count;
    bool gone;
    uint32_t goaway;
    int32_t goaways;
    char goaway_debug[64];
} h2_client;

static client_call *call_of(h2_client *c, int32_t id)
{
    for (int32_t i = 0; i < c->count; i++)
        if (c->calls[i].id == id) return &c->calls[i];
    return NULL;
}

static void keep(char *out, size_t room, const uint8_t *value, size_t count)
{
    snprintf(out, room, "%.*s", (int)count, (const char *)value);
}

static int client_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_bytes,
                         const uint8_t *value, size_t count, uint8_t flags, void *context)
{
    client_call *call = call_of(context, frame->hd.stream_id);
    const char *n = (const char *)name;
    (void)session, (void)flags, (void)name_bytes;
    if (!call) return 0;
    if (strcmp(n, ":status") == 0) keep(call->http_status, sizeof call->http_status, value, count);
    if (strcmp(n, "grpc-status") == 0) keep(call->status, sizeof call->status, value, count);
    if (strcmp(n, "grpc-message") == 0) keep(call->message, sizeof call->message, value, count);
    if (strcmp(n, "grpc-encoding") == 0) keep(call->encoding, sizeof call->encoding, value, count);
    if (strcmp(n, "grpc-status-details-bin") == 0) keep(call->details, sizeof call->details, value, count);
    if (strcmp(n, "grpc-retry-pushback-ms") == 0) keep(call->pushback, sizeof call->pushback, value, count);
    return 0;
}

static int client_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *bytes, size_t count,
                       void *context)
{
    client_call *call = call_of(context, id);
    (void)session, (void)flags;
    if (!call) return 0;
    call->reply = realloc(call->reply, call->reply_bytes + count);
    memcpy(call->reply + call->reply_bytes, bytes, count);
    call->reply_bytes += count;
    return 0;
}

static int client_closed(nghttp2_session *session, int32_t id, uint32_t error, void *context)
{
    client_call *call = call_of(context, id);
    (void)session;
    if (call) call->closed = true, call->error = error;
    return 0;
}

static int client_frame(nghttp2_session *session, const nghttp2_frame *frame, void *context)
{
    h2_client *c = context;
    (void)session;
    if (frame->hd.type != NGHTTP2_GOAWAY) return 0;
    c->goaway = frame->goaway.error_code;
    c->goaways++;
    keep(c->goaway_debug, sizeof c->goaway_debug, frame->goaway.opaque_data, frame->goaway.opaque_data_len);
    return 0;
}

static ssize_t client_body(nghttp2_session *session, int32_t id, uint8_t *out, size_t room, uint32_t *flags,
                           nghttp2_data_source *source, void *context)
{
    client_call *call = source->ptr;
    (void)session, (void)id, (void)context;
    const size_t count = call->body_bytes < room ? call->body_bytes : room;
    memcpy(out, call->body, count);
    call->body += count;
    call->body_bytes -= count;
    if (call->body_bytes == 0 && !call->keep_open) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return count == 0 && call->keep_open ? NGHTTP2_ERR_DEFERRED : (ssize_t)count;
}

static void open_client(h2_client *c, struct event_base *base, uint16_t port)
{
    nghttp2_session_callbacks *callbacks;
    const struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    memset(c, 0, sizeof *c);
    c->base = base;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(c->fd, (const struct sockaddr *)&address, sizeof address), 0);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, client_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, client_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, client_closed);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, client_frame);
    nghttp2_session_client_new(&c->session, callbacks, c);
    nghttp2_session_callbacks_del(callbacks);
    nghttp2_submit_settings(c->session, 0, NULL, 0);
}

static void close_client(h2_client *c)
{
    nghttp2_session_del(c->session);
    for (int32_t i = 0; i < c->count; i++) free(c->calls[i].reply);
    close(c->fd);
    event_base_loop(c->base, EVLOOP_NONBLOCK);
}

/* Writes what there is to write. */
static void push(h2_client *c)
{
    const uint8_t *bytes;
    ssize_t count;
    while (!c->gone && (count = nghttp2_session_mem_send(c->session, &bytes)) > 0)
        for (ssize_t sent = 0, got; sent < count; sent += got) {
            got = send(c->fd, bytes + sent, (size_t)(count - sent), MSG_NOSIGNAL);
            if (got < 0) {
                got = 0;
                event_base_loop(c->base, EVLOOP_NONBLOCK);
            }
        }
}

/* One turn of the loop, and what there is to write and read. */
static void turn(h2_client *c)
{
    uint8_t buffer[16384];
    ssize_t count;
    push(c);
    event_base_loop(c->base, EVLOOP_NONBLOCK);
    while ((count = recv(c->fd, buffer, sizeof buffer, 0)) > 0)
        assert_true(nghttp2_session_mem_recv(c->session, buffer, (size_t)count) >= 0);
    c->gone |= count == 0;
    usleep(200);
}

typedef struct extra {
    const char *name, *value;
} extra;

static client_call *begin_call(h2_client *c, const char *path, const void *body, size_t body_bytes, bool keep_open,
                               const extra *extras)
{
    nghttp2_nv nv[16];
    size_t n = 0;
    client_call *call = &c->calls[c->count++];
    const extra fixed[] = {{":method", "POST"},
                           {":scheme", "http"},
                           {":path", path},
                           {":authority", "localhost"},
                           {"content-type", "application/grpc"},
                           {"te", "trailers"}};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed + 8; i++) {
        const extra *e = i < sizeof fixed / sizeof *fixed ? &fixed[i] : extras++;
        if (!e || !e->name) break;
        nv[n++] = (nghttp2_nv){(uint8_t *)(uintptr_t)e->name, (uint8_t *)(uintptr_t)e->value, strlen(e->name),
                               strlen(e->value), 0};
        if (!extras && i + 1 == sizeof fixed / sizeof *fixed) break;
    }
    *call = (client_call){.body = body, .body_bytes = body_bytes, .keep_open = keep_open};
    const nghttp2_data_provider provider = {.source.ptr = call, .read_callback = client_body};
    call->id = nghttp2_submit_request(c->session, NULL, nv, n, &provider, NULL);
    return call;
}

static void finish_call(h2_client *c, const client_call *call)
{
    for (int i = 0; i < 100000 && !call->closed && !c->gone; i++) turn(c);
    assert_true(call->closed || c->gone);
}

#endif

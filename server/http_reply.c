/* SPDX-License-Identifier: Apache-2.0
 *
 * Replies: the head is composed in the server's one buffer and leaves together with the body in one system call where
 * the socket takes it. */
#define _POSIX_C_SOURCE 200809L
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/uio.h>

#include "base/mem.h"
#include "server/http_internal.h"

static const char *reason_of(int status)
{
    switch (status) {
    case 200: return "OK";
    case 201: return "Created";
    case 202: return "Accepted";
    case 204: return "No Content";
    case 206: return "Partial Content";
    case 304: return "Not Modified";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 409: return "Conflict";
    case 410: return "Gone";
    case 412: return "Precondition Failed";
    case 413: return "Content Too Large";
    case 414: return "URI Too Long";
    case 415: return "Unsupported Media Type";
    case 416: return "Range Not Satisfiable";
    case 417: return "Expectation Failed";
    case 422: return "Unprocessable Content";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 504: return "Gateway Timeout";
    case 505: return "HTTP Version Not Supported";
    case 507: return "Insufficient Storage";
    default: return ""; /* RFC 9112 4: the reason may be empty */
    }
}

/* ---- the head ---- */

typedef struct writer {
    char *at, *end;
    bool full;
} writer;

static void put(writer *out, const char *bytes, size_t count)
{
    if (count > (size_t)(out->end - out->at)) {
        out->full = true;
        return;
    }
    memcpy(out->at, bytes, count);
    out->at += count;
}

static void put_text(writer *out, const char *text)
{
    put(out, text, strlen(text));
}

static void put_number(writer *out, uint64_t value)
{
    char digits[24];
    char *at = digits + sizeof digits;
    do *--at = (char)('0' + value % 10);
    while ((value /= 10) > 0);
    put(out, at, (size_t)(digits + sizeof digits - at));
}

static void put_field(writer *out, const char *name, const char *value)
{
    put_text(out, name);
    put(out, ": ", 2);
    put_text(out, value);
    put(out, "\r\n", 2);
}

/* A handler's field: one line, and none of those the framing hangs on. */
static bool is_allowed_field(const kn_http_reply_header *header)
{
    static const char *const ours[] = {"content-length", "transfer-encoding", "connection", "date",
                                       "server",         "x-request-id",      "trailer",    "upgrade"};
    if (!header->name || !header->value || !kn_http_is_token(header->name, strlen(header->name)) ||
        !kn_http_is_field_value(header->value, strlen(header->value)))
        return false;
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        if (strcasecmp(header->name, ours[i]) == 0) return false;
    return true;
}

static kn_status check_outgoing(const kn_http_outgoing *outgoing)
{
    if (outgoing->status < 200 || outgoing->status > 599)
        return kn_fail(KN_INVALID, "reply status %d is not in 200..599", outgoing->status);
    if (outgoing->header_count > KN_HTTP_REPLY_HEADERS_MAX)
        return kn_fail(KN_INVALID, "a reply has more than %d header fields", KN_HTTP_REPLY_HEADERS_MAX);
    for (size_t i = 0; i < outgoing->header_count; i++)
        if (!is_allowed_field(&outgoing->headers[i]))
            return kn_fail(KN_INVALID, "a reply's header field %zu is malformed or not the handler's to set", i + 1);
    const char *type = outgoing->content_type;
    if (type && !kn_http_is_field_value(type, strlen(type)))
        return kn_fail(KN_INVALID, "a reply's content type is malformed");
    return KN_OK;
}

bool kn_http_has_body(const kn_http_exchange *exchange, int status)
{
    return !(exchange->parsed && exchange->head.method == KN_HTTP_HEAD) && status != 204 && status != 304;
}

/* Is part of the request still to come? What has arrived together with its head is dropped instead, so that an early
 * refusal of a small request costs no connection. */
static bool leaves_unread(kn_http_exchange *exchange)
{
    kn_http_connection *connection = exchange->connection;
    if (!exchange->parsed) return true;
    if (exchange->body_complete || connection->state == KN_HTTP_WAITING) return false;
    if (exchange->head.chunked) return true;
    const uint64_t length = (uint64_t)kn_http_content_length(exchange);
    if (length == exchange->body_received) return false;
    if (connection->state != KN_HTTP_READING_HEAD) return true;
    struct evbuffer *input = bufferevent_get_input(connection->stream);
    return length > evbuffer_get_length(input) || evbuffer_drain(input, (size_t)length) != 0;
}

kn_status kn_http_begin_reply(kn_http_exchange *exchange, const kn_http_outgoing *outgoing, size_t *head_bytes)
{
    kn_http_connection *connection = exchange->connection;
    kn_http_server *server = connection->server;
    writer out = {.at = server->head, .end = server->head + sizeof server->head};
    if (exchange->begun) return kn_fail(KN_INVALID, "a reply was already begun");
    const kn_status st = check_outgoing(outgoing);
    if (st != KN_OK) return st;
    const bool endless = outgoing->length < 0, body = kn_http_has_body(exchange, outgoing->status);
    const bool chunked = endless && body && exchange->head.minor > 0;
    const bool close = connection->close_after || outgoing->close || !exchange->head.keep_alive || server->draining ||
                       (endless && body && !chunked) || leaves_unread(exchange);
    put_text(&out, "HTTP/1.1 ");
    put_number(&out, (uint64_t)outgoing->status);
    put(&out, " ", 1);
    put_text(&out, reason_of(outgoing->status));
    put(&out, "\r\n", 2);
    put_field(&out, "Server", "kinora");
    put_field(&out, "Date", kn_http_date(server));
    put_field(&out, "x-request-id", exchange->id);
    if (outgoing->content_type) put_field(&out, "Content-Type", outgoing->content_type);
    if (!endless && outgoing->status != 204 && outgoing->status != 304) {
        put_text(&out, "Content-Length: ");
        put_number(&out, (uint64_t)outgoing->length);
        put(&out, "\r\n", 2);
    }
    if (chunked) put_field(&out, "Transfer-Encoding", "chunked");
    if (close)
        put_field(&out, "Connection", "close");
    else if (exchange->head.minor == 0)
        put_field(&out, "Connection", "keep-alive");
    for (size_t i = 0; i < outgoing->own_count; i++) put_field(&out, outgoing->own[i].name, outgoing->own[i].value);
    for (size_t i = 0; i < outgoing->header_count; i++)
        put_field(&out, outgoing->headers[i].name, outgoing->headers[i].value);
    put(&out, "\r\n", 2);
    if (out.full)
        return kn_fail(KN_INVALID, "a reply's header section is longer than %d bytes", KN_HTTP_REPLY_HEAD_BYTES);
    connection->close_after = close;
    exchange->begun = true;
    exchange->chunked_reply = chunked;
    exchange->status = outgoing->status;
    *head_bytes = (size_t)(out.at - server->head);
    return KN_OK;
}

void kn_http_end_reply(kn_http_exchange *exchange)
{
    exchange->ended = true;
    kn_http_connection_set(exchange->connection, KN_HTTP_SENDING);
    kn_http_connection_schedule(exchange->connection);
}

/* ---- whole replies ---- */

static kn_status reply(kn_http_exchange *exchange, const kn_http_outgoing *outgoing, const void *body,
                       size_t body_bytes)
{
    size_t head_bytes = 0;
    const kn_status st = kn_http_begin_reply(exchange, outgoing, &head_bytes);
    if (st != KN_OK) return st;
    if (!kn_http_has_body(exchange, outgoing->status)) body_bytes = 0;
    const struct iovec pieces[] = {
        {.iov_base = exchange->connection->server->head, .iov_len = head_bytes},
        {.iov_base = (void *)(uintptr_t)body, .iov_len = body_bytes},
    };
    exchange->reply_bytes = body_bytes;
    kn_http_connection_send(exchange->connection, pieces, body_bytes > 0 ? 2 : 1);
    kn_http_end_reply(exchange);
    return KN_OK;
}

static const char *error_code(int status)
{
    switch (status) {
    case 413: return "payload_too_large"; /* as kn_api_too_large() */
    case 503: return "server_is_overloaded";
    default: return status >= 500 ? "server_error" : "bad_request";
    }
}

/* {"error": ...} as the API's clients unwrap it (api_error.h); `message` has no character that JSON escapes but '"',
 * which becomes "'". */
static kn_status reply_error(kn_http_exchange *exchange, int status, const char *message)
{
    char body[512], text[256];
    static const kn_http_reply_header soon[] = {{"Retry-After", "1"}};
    size_t bytes = 0;
    for (; message[bytes] && bytes < sizeof text - 1; bytes++)
        text[bytes] = (char)(message[bytes] == '"' ? '\'' : message[bytes]);
    text[bytes] = '\0';
    const int body_bytes = snprintf(
        body, sizeof body, "{\"error\":{\"message\":\"%s\",\"type\":\"%s\",\"param\":null,\"code\":\"%s\"}}", text,
        status == 503   ? "service_unavailable_error"
        : status >= 500 ? "server_error"
                        : "invalid_request_error",
        error_code(status));
    const kn_http_outgoing outgoing = {
        .status = status,
        .content_type = "application/json",
        .own = soon,
        .own_count = status == 503,
        .length = body_bytes,
        .close = true,
    };
    return reply(exchange, &outgoing, body, (size_t)body_bytes);
}

kn_status kn_http_fail_reply(kn_http_exchange *exchange)
{
    if (!exchange->begun && reply_error(exchange, 500, "the server could not form its reply") != KN_OK)
        kn_http_abort(exchange);
    return KN_INVALID;
}

void kn_http_refuse(kn_http_connection *connection, int status, const char *message)
{
    kn_http_exchange *exchange = connection->exchange;
    if (exchange->begun) { /* the client was told something else already */
        connection->broken = true;
        return;
    }
    connection->close_after = true;
    kn_http_exchange_close(exchange);
    exchange->begun = false;
    if (reply_error(exchange, status, message) != KN_OK) connection->broken = true;
}

kn_status kn_http_reply(kn_http_exchange *exchange, const kn_http_response *response)
{
    const kn_http_outgoing outgoing = {
        .status = response->status,
        .content_type = response->content_type,
        .headers = response->headers,
        .header_count = response->header_count,
        .length = (int64_t)response->body_bytes,
        .close = response->close,
    };
    const kn_status st = reply(exchange, &outgoing, response->body, response->body_bytes);
    return st == KN_OK ? KN_OK : kn_http_fail_reply(exchange);
}

/* ---- streams ---- */

kn_status kn_http_stream_begin(kn_http_exchange *exchange, const kn_http_response *response)
{
    size_t head_bytes = 0;
    const kn_http_outgoing outgoing = {
        .status = response->status,
        .content_type = response->content_type,
        .headers = response->headers,
        .header_count = response->header_count,
        .length = -1,
        .close = response->close,
    };
    if (response->body_bytes > 0 || kn_http_begin_reply(exchange, &outgoing, &head_bytes) != KN_OK)
        return kn_http_fail_reply(exchange);
    const struct iovec head = {.iov_base = exchange->connection->server->head, .iov_len = head_bytes};
    kn_http_connection_set(exchange->connection, KN_HTTP_STREAMING);
    kn_http_connection_send(exchange->connection, &head, 1);
    return KN_OK;
}

size_t kn_http_stream_queued(const kn_http_exchange *exchange)
{
    return kn_http_connection_queued(exchange->connection);
}

kn_status kn_http_stream_write(kn_http_exchange *exchange, const void *bytes, size_t count)
{
    kn_http_connection *connection = exchange->connection;
    char size[24];
    if (connection->state != KN_HTTP_STREAMING || exchange->ended) return kn_fail(KN_INVALID, "no stream was begun");
    if (connection->broken || connection->eof) return KN_CANCELLED;
    if (count == 0 || !kn_http_has_body(exchange, exchange->status)) return KN_OK;
    if (kn_http_connection_queued(connection) + count > connection->server->limits.stream_queue_bytes) return KN_AGAIN;
    const int size_bytes = snprintf(size, sizeof size, "%zx\r\n", count);
    const struct iovec pieces[] = {
        {.iov_base = size, .iov_len = (size_t)size_bytes},
        {.iov_base = (void *)(uintptr_t)bytes, .iov_len = count},
        {.iov_base = (void *)(uintptr_t) "\r\n", .iov_len = 2},
    };
    exchange->reply_bytes += count;
    kn_http_connection_send(connection, exchange->chunked_reply ? pieces : pieces + 1, exchange->chunked_reply ? 3 : 1);
    return KN_OK;
}

kn_status kn_http_stream_end(kn_http_exchange *exchange)
{
    static const char last[] = "0\r\n\r\n";
    if (exchange->connection->state != KN_HTTP_STREAMING || exchange->ended)
        return kn_fail(KN_INVALID, "no stream was begun");
    const struct iovec piece = {.iov_base = (void *)(uintptr_t)last, .iov_len = sizeof last - 1};
    if (exchange->chunked_reply) kn_http_connection_send(exchange->connection, &piece, 1);
    kn_http_end_reply(exchange);
    return KN_OK;
}

void kn_http_abort(kn_http_exchange *exchange)
{
    exchange->begun = exchange->ended = true;
    exchange->connection->broken = true;
    kn_http_connection_schedule(exchange->connection);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Exchanges are taken from a pool when a request's first byte comes and given back with the reply's last, so that idle
 * connections hold none and busy ones allocate nothing. */
#define _POSIX_C_SOURCE 200809L
#include <string.h>
#include <strings.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/http_internal.h"

enum {
    TEXT_KEPT_BYTES = 4096,      /* larger heads give their memory back */
    BODY_FIRST_BYTES = 16 << 10, /* grown on arrival, not on promise */
    LOGGED_PATH_CHARACTERS = 96,
};

kn_status kn_http_exchange_begin(kn_http_connection *connection)
{
    kn_http_server *server = connection->server;
    kn_http_exchange *exchange = SLIST_FIRST(&server->pool);
    if (exchange) {
        SLIST_REMOVE_HEAD(&server->pool, pool);
        server->pooled--;
    } else {
        exchange = kn_alloc(sizeof *exchange);
        if (!exchange) return KN_NOMEM;
    }
    char *text = exchange->text;
    const size_t text_bytes = exchange->text_bytes;
    memset(exchange, 0, offsetof(kn_http_exchange, head));
    kn_http_head_clear(&exchange->head);
    exchange->text = text;
    exchange->text_bytes = text_bytes;
    exchange->connection = connection;
    exchange->path = exchange->query = exchange->host = exchange->route = "";
    exchange->body_limit = server->limits.body_bytes;
    exchange->file = -1;
    exchange->started_ns = connection->since_ns;
    kn_http_new_id(server, exchange->id);
    connection->exchange = exchange;
    connection->requests++;
    server->stats.requests++;
    return KN_OK;
}

kn_status kn_http_exchange_fill(kn_http_exchange *exchange, const char *bytes)
{
    const kn_http_head *head = &exchange->head;
    const size_t needed = (size_t)head->bytes + head->path.bytes + 2;
    if (exchange->text_bytes < needed) {
        char *text = kn_realloc(exchange->text, needed);
        if (!text) return KN_NOMEM;
        exchange->text = text;
        exchange->text_bytes = needed;
    }
    char *text = exchange->text, *path = text + head->bytes;
    if (head->path.bytes == 0)
        memcpy(path, "/", 2); /* "http://host" without a path */
    else if (kn_http_decode_path(path, bytes + head->path.start, head->path.bytes) != KN_OK)
        return KN_INVALID;
    memcpy(text, bytes, head->bytes);
    for (uint32_t i = 0; i < head->fields; i++) {
        text[head->field[i].name.start + head->field[i].name.bytes] = '\0';
        text[head->field[i].value.start + head->field[i].value.bytes] = '\0';
    }
    exchange->path = path;
    if (head->query.bytes > 0) {
        text[head->query.start + head->query.bytes] = '\0';
        exchange->query = text + head->query.start;
    }
    if (head->authority.bytes > 0) {
        text[head->authority.start + head->authority.bytes] = '\0';
        exchange->host = text + head->authority.start;
    }
    exchange->parsed = true;
    return KN_OK;
}

/* ---- body ---- */

/* Room for `needed` bytes and a NUL. Old and new memory count together while both are there. */
static kn_status grow_body(kn_http_exchange *exchange, size_t needed)
{
    kn_http_server *server = exchange->connection->server;
    size_t room = exchange->body_room ? 2 * exchange->body_room : BODY_FIRST_BYTES;
    const int64_t promised = exchange->head.content_length;
    if (room < needed + 1) room = needed + 1;
    if (promised >= 0 && room > (size_t)promised + 1) room = (size_t)promised + 1;
    if (room > exchange->body_limit + 1) room = (size_t)exchange->body_limit + 1;
    if (server->stats.memory_bytes + room > server->limits.memory_bytes) return KN_NOMEM;
    char *body = kn_realloc(exchange->body, room);
    if (!body) return KN_NOMEM;
    server->stats.memory_bytes += room - exchange->body_room;
    exchange->body = body;
    exchange->body_room = room;
    return KN_OK;
}

kn_status kn_http_exchange_append(kn_http_exchange *exchange, const char *bytes, size_t count)
{
    const size_t have = (size_t)exchange->body_received;
    if (have + count + 1 > exchange->body_room && grow_body(exchange, have + count) != KN_OK) return KN_NOMEM;
    memcpy(exchange->body + have, bytes, count);
    exchange->body[have + count] = '\0';
    return KN_OK;
}

/* ---- end ---- */

void kn_http_exchange_close(kn_http_exchange *exchange)
{
    const kn_http_server *server = exchange->connection->server;
    const bool due = exchange->introduced && !exchange->ended;
    exchange->begun = exchange->ended = true;
    if (due && server->callbacks.closed) server->callbacks.closed(exchange, server->context);
}

static void log_exchange(const kn_http_exchange *exchange, const kn_http_record *record)
{
    /* Polls are many, and what never became a request is a stranger's choice: neither may fill a disk. */
    const bool poll = record->method == KN_HTTP_GET || record->method == KN_HTTP_HEAD;
    const bool fault = record->status >= 500 && record->status != 503; /* overload is no fault */
    kn_log_level level = KN_LOG_INFO;
    if (fault) level = KN_LOG_WARNING;
    if (!record->parsed || (poll && record->status < 400)) level = KN_LOG_DEBUG;
    kn_log(level, "%s %s %.*s %d %.1f ms%s", record->request_id,
           record->parsed ? kn_http_method_name(record->method) : "-", LOGGED_PATH_CHARACTERS,
           record->route[0] ? record->route
           : record->parsed ? exchange->path
                            : "-",
           record->status, kn_clock_seconds(record->duration_ns) * 1e3, record->complete ? "" : " cut off");
}

static void recycle(kn_http_server *server, kn_http_exchange *exchange)
{
    if (exchange->text_bytes > TEXT_KEPT_BYTES) {
        kn_free(exchange->text);
        exchange->text = NULL;
        exchange->text_bytes = 0;
    }
    if (server->pooled == KN_HTTP_POOL_MAX) {
        kn_http_exchange_free(exchange);
        return;
    }
    SLIST_INSERT_HEAD(&server->pool, exchange, pool);
    server->pooled++;
}

void kn_http_exchange_finish(kn_http_connection *connection, bool complete)
{
    kn_http_server *server = connection->server;
    kn_http_exchange *exchange = connection->exchange;
    const kn_http_record record = {
        .request_id = exchange->id,
        .route = exchange->route,
        .method = exchange->head.method,
        .status = exchange->status,
        .duration_ns = kn_clock_ns() - exchange->started_ns,
        .request_bytes = exchange->body_received,
        .reply_bytes = exchange->reply_bytes - exchange->file_left,
        .parsed = exchange->parsed,
        .complete = complete,
    };
    kn_http_file_close(exchange);
    log_exchange(exchange, &record);
    if (server->callbacks.finished) server->callbacks.finished(&record, server->context);
    connection->exchange = NULL;
    server->stats.memory_bytes -= exchange->body_room;
    kn_free(exchange->body);
    exchange->body = NULL;
    recycle(server, exchange);
}

void kn_http_exchange_free(kn_http_exchange *exchange)
{
    kn_free(exchange->text);
    kn_free(exchange);
}

/* ---- what handlers ask ---- */

kn_http_method kn_http_request_method(const kn_http_exchange *exchange)
{
    return exchange->head.method;
}

const char *kn_http_path(const kn_http_exchange *exchange)
{
    return exchange->path;
}

const char *kn_http_query(const kn_http_exchange *exchange)
{
    return exchange->query;
}

const char *kn_http_host(const kn_http_exchange *exchange)
{
    return exchange->host;
}

const char *kn_http_remote(const kn_http_exchange *exchange)
{
    return exchange->connection->remote;
}

const char *kn_http_request_id(const kn_http_exchange *exchange)
{
    return exchange->id;
}

bool kn_http_is_tls(const kn_http_exchange *exchange)
{
    return exchange->connection->ssl != NULL;
}

const char *kn_http_header(const kn_http_exchange *exchange, const char *name)
{
    const kn_http_head *head = &exchange->head;
    for (uint32_t i = 0; i < head->fields; i++)
        if (strcasecmp(exchange->text + head->field[i].name.start, name) == 0)
            return exchange->text + head->field[i].value.start;
    return NULL;
}

size_t kn_http_header_count(const kn_http_exchange *exchange, const char *name)
{
    const kn_http_head *head = &exchange->head;
    size_t count = 0;
    for (uint32_t i = 0; i < head->fields; i++)
        if (strcasecmp(exchange->text + head->field[i].name.start, name) == 0) count++;
    return count;
}

int64_t kn_http_content_length(const kn_http_exchange *exchange)
{
    if (exchange->head.chunked) return -1;
    return exchange->head.content_length > 0 ? exchange->head.content_length : 0;
}

void kn_http_body_limit(kn_http_exchange *exchange, uint64_t bytes)
{
    exchange->body_limit = bytes < KN_HTTP_BODY_BYTES_MAX ? bytes : KN_HTTP_BODY_BYTES_MAX;
}

void kn_http_body_stream(kn_http_exchange *exchange)
{
    exchange->body_streamed = true;
}

void kn_http_body_pause(kn_http_exchange *exchange)
{
    exchange->body_paused = true;
}

void kn_http_body_resume(kn_http_exchange *exchange)
{
    if (!exchange->body_paused) return;
    exchange->body_paused = false;
    exchange->connection->credited_ns = kn_clock_ns();
    kn_http_connection_schedule(exchange->connection);
}

const char *kn_http_body(const kn_http_exchange *exchange, size_t *bytes)
{
    *bytes = exchange->body ? (size_t)exchange->body_received : 0;
    return exchange->body ? exchange->body : "";
}

void kn_http_set_user(kn_http_exchange *exchange, void *user)
{
    exchange->user = user;
}

void *kn_http_user(const kn_http_exchange *exchange)
{
    return exchange->user;
}

void kn_http_set_route(kn_http_exchange *exchange, const char *route)
{
    exchange->route = route;
}

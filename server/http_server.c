/* SPDX-License-Identifier: Apache-2.0
 *
 * Listening, counting connections, and the clock: one timer walks all connections ten times a second, which costs
 * less than a timer for each and makes every deadline one comparison. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/http_internal.h"

enum {
    TICK_MICROSECONDS = 100000,
    BACKLOG = 1024,
    OTHER_FILES = 128, /* descriptors left to the rest of the process */
    KEEPALIVE_SECONDS = 60,
    ADDRESS_BYTES = 64,
};

/* ---- limits ---- */

static const kn_http_limits defaults = {
    .connections = 4096,
    .connections_per_address = 100,
    .handshake_ns = 5000000000,
    .header_ns = 10000000000,
    .idle_ns = 75000000000,
    .body_grace_ns = 10000000000,
    .body_bytes_per_second = 16 << 10,
    .write_stall_ns = 30000000000,
    .linger_ns = 2000000000,
    .fields = KN_HTTP_FIELDS_MAX,
    .header_bytes = KN_HTTP_HEADER_BYTES_MAX,
    .target_bytes = KN_HTTP_TARGET_BYTES_MAX,
    .body_bytes = 1 << 20,
    .memory_bytes = 512 << 20,
    .stream_queue_bytes = 256 << 10,
};

static void clamp_connections(kn_http_limits *limits)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0 || files.rlim_cur == RLIM_INFINITY) return;
    const int64_t room = (int64_t)files.rlim_cur - OTHER_FILES - KN_HTTP_REFUSED_CONNECTIONS;
    if (limits->connections <= room) return;
    limits->connections = room > 1 ? (int32_t)room : 1;
    kn_log(KN_LOG_WARNING, "the limit of open files (%llu) leaves room for %d connections",
           (unsigned long long)files.rlim_cur, limits->connections);
}

#define FILL(field)                                                                                                    \
    if (limits->field == 0) limits->field = defaults.field

static kn_status fill_limits(kn_http_limits *limits)
{
    FILL(connections);
    FILL(connections_per_address);
    FILL(handshake_ns);
    FILL(header_ns);
    FILL(idle_ns);
    FILL(body_grace_ns);
    FILL(body_bytes_per_second);
    FILL(write_stall_ns);
    FILL(linger_ns);
    FILL(fields);
    FILL(header_bytes);
    FILL(target_bytes);
    FILL(body_bytes);
    FILL(memory_bytes);
    FILL(stream_queue_bytes);
    KN_REQUIRE(limits->connections > 0 && limits->connections_per_address > 0);
    KN_REQUIRE(limits->handshake_ns > 0 && limits->header_ns > 0 && limits->idle_ns > 0 && limits->linger_ns > 0);
    KN_REQUIRE(limits->body_grace_ns > 0 && limits->body_bytes_per_second > 0 && limits->write_stall_ns > 0);
    KN_REQUIRE(limits->fields <= KN_HTTP_FIELDS_MAX && limits->header_bytes <= KN_HTTP_HEADER_BYTES_MAX);
    KN_REQUIRE(limits->target_bytes <= KN_HTTP_TARGET_BYTES_MAX && limits->body_bytes <= KN_HTTP_BODY_BYTES_MAX);
    clamp_connections(limits);
    return KN_OK;
}

#undef FILL

/* ---- addresses ---- */

/* Numeric "192.0.2.1:80" or "[2001:db8::1]:80". */
static kn_status parse_address(const char *text, struct sockaddr_storage *out, int *out_bytes)
{
    struct sockaddr_in *four = (void *)out;
    struct sockaddr_in6 *six = (void *)out;
    char host[ADDRESS_BYTES] = "";
    const char *colon = strrchr(text, ':');
    const size_t host_bytes = colon ? (size_t)(colon - text) : 0, digits = colon ? strspn(colon + 1, "0123456789") : 0;
    const unsigned long port =
        digits > 0 && digits <= 5 && colon[1 + digits] == '\0' ? strtoul(colon + 1, NULL, 10) : UINT16_MAX + 1ul;
    const bool bracketed = host_bytes > 2 && text[0] == '[' && text[host_bytes - 1] == ']';
    memset(out, 0, sizeof *out);
    if (host_bytes > 0 && host_bytes < sizeof host) memcpy(host, text + bracketed, host_bytes - 2u * bracketed);
    if (port <= UINT16_MAX && bracketed && inet_pton(AF_INET6, host, &six->sin6_addr) == 1) {
        six->sin6_family = AF_INET6;
        six->sin6_port = htons((uint16_t)port);
        *out_bytes = sizeof *six;
    } else if (port <= UINT16_MAX && !bracketed && inet_pton(AF_INET, host, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons((uint16_t)port);
        *out_bytes = sizeof *four;
    } else {
        return kn_fail(KN_INVALID, "\"%.64s\" is not an address to listen on, such as 127.0.0.1:8000 or [::1]:8000",
                       text);
    }
    return KN_OK;
}

static bool is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr) >> 24 == 127;
    const struct in6_addr *six = &((const struct sockaddr_in6 *)(const void *)address)->sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(six) || (IN6_IS_ADDR_V4MAPPED(six) && six->s6_addr[12] == 127);
}

bool kn_http_address_is_loopback(const char *address)
{
    struct sockaddr_storage parsed;
    int bytes;
    return parse_address(address, &parsed, &bytes) == KN_OK && is_loopback((struct sockaddr *)&parsed);
}

/* What a connection is counted by, and its text. */
static void note_address(kn_http_connection *connection, const struct sockaddr *address)
{
    const struct sockaddr_in *four = (const void *)address;
    const struct sockaddr_in6 *six = (const void *)address;
    const void *source = &four->sin_addr;
    int family = AF_INET;
    if (address->sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&six->sin6_addr)) {
        source = six->sin6_addr.s6_addr + 12;
    } else if (address->sa_family == AF_INET6) {
        source = &six->sin6_addr;
        family = AF_INET6;
    }
    memcpy(&connection->address[1], source, family == AF_INET ? 4 : 8);
    connection->address[0] = (uint64_t)family;
    if (!evutil_inet_ntop(family, source, connection->remote, sizeof connection->remote)) connection->remote[0] = '\0';
}

static size_t bucket_of(const kn_http_server *server, const uint64_t address[2])
{
    uint64_t mixed = (address[1] ^ server->bucket_seed) * 0x9e3779b97f4a7c15u + address[0];
    mixed = (mixed ^ mixed >> 32) * 0xd6e8feb86659fd93u;
    return (mixed >> 32) % KN_HTTP_BUCKETS;
}

/* False: this address has all the connections it may have. */
static bool count_connection(kn_http_connection *connection)
{
    kn_http_server *server = connection->server;
    const size_t bucket = bucket_of(server, connection->address);
    const kn_http_connection *other;
    int32_t same = 0;
    LIST_FOREACH(other, &server->buckets[bucket], bucket)
    if (memcmp(other->address, connection->address, sizeof other->address) == 0) same++;
    if (same >= server->limits.connections_per_address) return false;
    LIST_INSERT_HEAD(&server->buckets[bucket], connection, bucket);
    connection->counted = true;
    return true;
}

void kn_http_uncount(kn_http_connection *connection)
{
    if (connection->counted) LIST_REMOVE(connection, bucket);
    connection->counted = false;
}

/* ---- accepting ---- */

static void refuse_connection(kn_http_connection *connection)
{
    connection->server->stats.refused++;
    connection->broken = connection->ssl || kn_http_exchange_begin(connection) != KN_OK;
    if (!connection->broken) kn_http_refuse(connection, 503, "the server has all the connections it can serve");
    kn_http_connection_schedule(connection);
}

static void take_connection(kn_http_server *server, int fd, const struct sockaddr *address)
{
    const bool full = server->stats.connections >= server->limits.connections;
    server->stats.accepted++;
    if (full &&
        (server->tls || server->stats.connections >= server->limits.connections + KN_HTTP_REFUSED_CONNECTIONS)) {
        server->stats.refused++;
        close(fd);
        return;
    }
    kn_http_connection *connection = kn_http_connection_create(server, fd, server->tls != NULL);
    if (!connection) return;
    note_address(connection, address);
    const bool exempt = !server->limits.count_loopback && is_loopback(address);
    if (full || (!exempt && !count_connection(connection))) refuse_connection(connection);
}

/* One connection; the next one waits behind everybody who waits now. */
static void on_accept_turn(void *context)
{
    kn_http_listener *slot = context;
    struct sockaddr_storage address;
    socklen_t bytes = sizeof address;
    const int fd = accept4(evconnlistener_get_fd(slot->listener), (struct sockaddr *)&address, &bytes,
                           SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
        take_connection(slot->server, fd, (const struct sockaddr *)&address);
    } else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR && errno != ECONNABORTED) {
        /* Out of descriptors, most likely: rests until the next tick instead of spinning. */
        kn_log(KN_LOG_WARNING, "cannot accept a connection: %s", strerror(errno));
        slot->resting = true;
        return;
    }
    event_add(slot->readable, NULL);
}

static void on_connecting(evutil_socket_t fd, short what, void *context)
{
    kn_http_listener *slot = context;
    (void)fd, (void)what;
    kn_turns_wait(slot->server->turns, &slot->turn);
}

static kn_status listen_on(kn_http_server *server, const char *text)
{
    kn_status st = KN_OK;
    struct sockaddr_storage address;
    struct sockaddr_storage bound;
    socklen_t bound_bytes = sizeof bound;
    int bytes;
    kn_http_listener *slot = &server->listeners[server->listener_count];
    KN_TRY(parse_address(text, &address, &bytes));
    slot->server = server;
    slot->turn = (kn_turn){.run = on_accept_turn, .context = slot};
    slot->listener =
        evconnlistener_new_bind(server->base, NULL, NULL,
                                LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_REUSEABLE | LEV_OPT_DISABLED |
                                    (address.ss_family == AF_INET6 ? LEV_OPT_BIND_IPV6ONLY : 0u),
                                BACKLOG, (struct sockaddr *)&address, bytes);
    if (!slot->listener)
        return kn_fail(KN_UNAVAILABLE, "cannot listen on %.64s: %s", text,
                       evutil_socket_error_to_string(EVUTIL_SOCKET_ERROR()));
    server->listener_count++;
    const evutil_socket_t fd = evconnlistener_get_fd(slot->listener);
    slot->readable = event_new(server->base, fd, EV_READ, on_connecting, slot);
    if (!slot->readable || event_add(slot->readable, NULL) != 0)
        return kn_fail(KN_NOMEM, "no memory to listen on %.64s", text);
    const int on = 1, idle = KEEPALIVE_SECONDS; /* accepted sockets inherit both */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    if (getsockname(fd, (struct sockaddr *)&bound, &bound_bytes) != 0)
        return kn_fail(KN_IO, "cannot tell the port of %.64s: %s", text, strerror(errno));
    slot->port = ntohs(bound.ss_family == AF_INET ? ((struct sockaddr_in *)(void *)&bound)->sin_port
                                                  : ((struct sockaddr_in6 *)(void *)&bound)->sin6_port);
fail:
    return st;
}

uint16_t kn_http_server_port(const kn_http_server *server, size_t index)
{
    return index < server->listener_count ? server->listeners[index].port : 0;
}

void kn_http_server_stop_listening(kn_http_server *server)
{
    for (size_t i = 0; i < server->listener_count; i++) {
        kn_http_listener *slot = &server->listeners[i];
        kn_turns_leave(server->turns, &slot->turn);
        if (slot->readable) event_free(slot->readable);
        if (slot->listener) evconnlistener_free(slot->listener);
    }
    memset(server->listeners, 0, sizeof server->listeners);
    server->listener_count = 0;
}

/* ---- the loop ---- */

static void on_tick(evutil_socket_t fd, short what, void *context)
{
    kn_http_server *server = context;
    const int64_t now_ns = kn_clock_ns();
    kn_http_connection *next;
    (void)fd, (void)what;
    /* A callback may end other connections, but only their own run frees them: `next` stays. */
    for (kn_http_connection *c = LIST_FIRST(&server->connections); c; c = next) {
        next = LIST_NEXT(c, all);
        kn_http_connection_check(c, now_ns);
    }
    for (size_t i = 0; i < server->listener_count; i++) {
        if (!server->listeners[i].resting) continue;
        server->listeners[i].resting = false;
        event_add(server->listeners[i].readable, NULL);
    }
}

static void on_wake(evutil_socket_t fd, short what, void *context)
{
    kn_http_server *server = context;
    kn_http_connection *connection;
    (void)fd, (void)what;
    while ((connection = TAILQ_FIRST(&server->ready)) != NULL) {
        TAILQ_REMOVE(&server->ready, connection, ready);
        connection->is_ready = false;
        kn_http_connection_run(connection);
    }
    kn_turns_passed(server->turns, kn_clock_ns());
    if (!server->draining || server->stats.connections > 0 || !server->drained) return;
    void (*drained)(void *) = server->drained;
    server->drained = NULL;
    drained(server->drained_context);
}

void kn_http_check_drained(kn_http_server *server)
{
    if (server->draining && server->stats.connections == 0) event_active(server->wake, EV_TIMEOUT, 0);
}

void kn_http_server_drain(kn_http_server *server, void (*drained)(void *context), void *context)
{
    kn_http_connection *connection;
    kn_http_server_stop_listening(server);
    server->draining = true;
    server->drained = drained;
    server->drained_context = context;
    LIST_FOREACH(connection, &server->connections, all)
    if (connection->state == KN_HTTP_IDLE) kn_http_connection_schedule(connection);
    kn_http_check_drained(server);
}

kn_http_stats kn_http_server_stats(const kn_http_server *server)
{
    return server->stats;
}

void kn_http_taken_release(kn_http_taken **taken)
{
    if (!taken || !*taken) return;
    kn_http_connection *connection = (*taken)->connection;
    *taken = NULL;
    connection->dead = true;
    kn_http_connection_schedule(connection);
}

const char *kn_http_taken_remote(const kn_http_taken *taken)
{
    return taken->connection->remote;
}

/* ---- ids and dates ---- */

void kn_http_new_id(kn_http_server *server, char id[KN_REQUEST_ID_BYTES])
{
    static const char digits[] = "0123456789abcdef";
    enum { ID_BYTES = 16 };
    if (server->random_used + ID_BYTES > sizeof server->random) {
        /* Cannot fail once the system is up; ids name log lines and guard nothing. */
        if (getrandom(server->random, sizeof server->random, 0) < 0) server->random[0]++;
        server->random_used = 0;
    }
    const uint8_t *bytes = server->random + server->random_used;
    server->random_used += ID_BYTES;
    memcpy(id, "req_", 4);
    for (int i = 0; i < ID_BYTES; i++) {
        id[4 + 2 * i] = digits[bytes[i] >> 4];
        id[5 + 2 * i] = digits[bytes[i] & 15];
    }
    id[4 + 2 * ID_BYTES] = '\0';
}

const char *kn_http_date(kn_http_server *server)
{
    static const char days[] = "SunMonTueWedThuFriSat", months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    const time_t now = time(NULL);
    struct tm utc;
    if (now == server->date || !gmtime_r(&now, &utc)) return server->date_text;
    server->date = now; /* not strftime: a locale must not reach it */
    snprintf(server->date_text, sizeof server->date_text, "%.3s, %02d %.3s %04d %02d:%02d:%02d GMT",
             days + 3 * utc.tm_wday, utc.tm_mday, months + 3 * utc.tm_mon, (utc.tm_year + 1900) % 10000, utc.tm_hour,
             utc.tm_min, utc.tm_sec);
    return server->date_text;
}

/* ---- create, destroy ---- */

kn_status kn_http_server_create(kn_http_server **out, const kn_http_params *params)
{
    kn_status st = KN_OK;
    const struct timeval tick = {.tv_usec = TICK_MICROSECONDS};
    KN_REQUIRE(params->base && params->turns && params->callbacks.headers && params->callbacks.request);
    KN_REQUIRE(params->listen_count >= 1 && params->listen_count <= KN_HTTP_LISTEN_MAX);
    kn_http_server *server = kn_alloc(sizeof *server);
    if (!server) return KN_NOMEM;
    server->base = params->base;
    server->turns = params->turns;
    server->tls = params->tls;
    server->limits = params->limits;
    server->callbacks = params->callbacks;
    server->context = params->context;
    server->random_used = sizeof server->random;
    TAILQ_INIT(&server->ready);
    KN_TRY(fill_limits(&server->limits));
    signal(SIGPIPE, SIG_IGN);
    if (getrandom(&server->bucket_seed, sizeof server->bucket_seed, 0) < 0)
        KN_TRY(kn_fail(KN_IO, "no random numbers from the system: %s", strerror(errno)));
    server->tick = event_new(server->base, -1, EV_PERSIST, on_tick, server);
    server->wake = event_new(server->base, -1, 0, on_wake, server);
    if (!server->tick || !server->wake || event_add(server->tick, &tick) != 0)
        KN_TRY(kn_fail(KN_NOMEM, "no memory for the server's events"));
    for (size_t i = 0; i < params->listen_count; i++) KN_TRY(listen_on(server, params->listen[i]));
    *out = server;
    return KN_OK;
fail:
    kn_http_server_destroy(&server);
    return st;
}

void kn_http_server_destroy(kn_http_server **server_pointer)
{
    if (!server_pointer || !*server_pointer) return;
    kn_http_server *server = *server_pointer;
    kn_http_exchange *exchange;
    kn_http_connection *connection;
    server->draining = false;
    kn_http_server_stop_listening(server);
    while ((connection = LIST_FIRST(&server->connections)) != NULL) kn_http_connection_destroy(connection);
    while ((exchange = SLIST_FIRST(&server->pool)) != NULL) {
        SLIST_REMOVE_HEAD(&server->pool, pool);
        kn_http_exchange_free(exchange);
    }
    if (server->tick) event_free(server->tick);
    if (server->wake) event_free(server->wake);
    kn_free(server);
    *server_pointer = NULL;
}

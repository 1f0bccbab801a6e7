/* SPDX-License-Identifier: Apache-2.0
 *
 * The HTTP/1.1 server (RFC 9110, 9112) on libevent, with or without TLS.
 *
 * An *exchange* is one request and its reply. The server parses and bounds the request, hands it to three or four
 * callbacks, and writes what they reply; it knows nothing of routes. The life of an exchange:
 *
 *   headers()   the header section is complete. Authenticate, route, choose what the body may be; reply now to refuse
 *               it unread. Then the server answers "100 Continue" where the client waits for it, and reads the body.
 *   body()      only after kn_http_body_stream(): bytes of the body, in order, as they come.
 *   request()   the body is complete (at once where there is none). Reply now, or keep the exchange and reply later.
 *   reply       exactly one of kn_http_reply(), kn_http_reply_file(), kn_http_stream_begin() ... kn_http_stream_end(),
 *               or kn_http_abort(). When the call that ends the reply returns, the exchange is no longer the
 *               caller's: the bytes still to be sent are the server's business.
 *   closed()    instead of a reply: the client went away, was too slow or broke the protocol, or the server is being
 *               destroyed. Called once, only for an exchange that headers() has seen and that has no complete
 *               reply; the exchange is gone when it returns.
 *   finished()  every exchange, at its very end, also those headers() never saw: for metrics.
 *
 * Everything runs on the thread of the event loop: callbacks are called there, and all functions must be called there.
 * A callback may call any function but kn_http_server_destroy(). No callback is called from inside a function the
 * handler called, so there is no recursion.
 *
 * A client that half-closes its side (FIN) still gets a reply that was begun before the FIN was seen; otherwise the
 * FIN counts as going away, since a client that is waiting looks the same as one that left.
 *
 * SIGPIPE is ignored for the whole process from kn_http_server_create() on. */
#ifndef KN_SERVER_HTTP_H
#define KN_SERVER_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "server/http_parse.h"
#include "server/tls.h"
#include "server/turns.h"

struct bufferevent;
struct event_base;

typedef struct kn_http_server kn_http_server;
typedef struct kn_http_exchange kn_http_exchange;
typedef struct kn_http_taken kn_http_taken;

/* ---- limits ---- */

enum {
    KN_HTTP_BODY_BYTES_MAX = 64 << 20,  /* kn_http_body_limit() and kn_http_limits.body_bytes are at most this */
    KN_HTTP_LISTEN_MAX = 8,             /* addresses of one server */
    KN_HTTP_REFUSED_CONNECTIONS = 64,   /* beyond `connections`, told 503; further ones are closed without a word */
    KN_HTTP_REPLY_HEADERS_MAX = 32,     /* fields a handler adds */
    KN_HTTP_REPLY_HEAD_BYTES = 8 << 10, /* status line and all fields of a reply */
    KN_HTTP_WINDOW_BYTES = 256 << 10,   /* of a file in memory at a time, per connection */
};

/* A field that is 0 takes its default. Durations are checked ten times a second. */
typedef struct kn_http_limits {
    int32_t connections;             /* 4,096; fewer where RLIMIT_NOFILE leaves no room, with a warning */
    int32_t connections_per_address; /* 100; an IPv6 /64 is one address */
    bool count_loopback;             /* false: clients on this machine (a proxy) are not counted per address */
    int64_t handshake_ns;            /* 5 s: TLS handshake */
    int64_t header_ns;               /* 10 s: from a request's first byte to the end of its header section; also from
                                      * connecting to the first byte */
    int64_t idle_ns;                 /* 75 s: between requests of a connection */
    int64_t body_grace_ns;           /* 10 s: how far a body may fall behind ... */
    int64_t body_bytes_per_second;   /* 16 KiB/s: ... this rate. No stall is longer than the grace */
    int64_t write_stall_ns;          /* 30 s: a client that takes no byte of what waits for it */
    int64_t linger_ns;               /* 2 s: reading what a refused client still sends, so that it sees the reply */
    uint32_t fields;                 /* 100 */
    uint32_t header_bytes;           /* 16 KiB */
    uint32_t target_bytes;           /* 8 KiB */
    uint64_t body_bytes;             /* 1 MiB: a body's limit where headers() sets none */
    uint64_t memory_bytes;           /* 512 MiB: buffered bodies of all exchanges together; beyond it 503 */
    size_t stream_queue_bytes;       /* 256 KiB: written to a stream and not yet taken by the client's system */
} kn_http_limits;

/* ---- server ---- */

/* What an exchange was, for metrics; valid during the call. */
typedef struct kn_http_record {
    const char *request_id;
    const char *route; /* kn_http_set_route(); "" where none was set */
    kn_http_method method;
    int status;             /* sent; 0: closed before any */
    int64_t duration_ns;    /* from the request's first byte to the reply's last handed to the system */
    uint64_t request_bytes; /* body, decoded */
    uint64_t reply_bytes;   /* body, without chunk framing */
    bool parsed;            /* false: refused before method and path were known */
    bool complete;          /* the whole reply was handed to the system */
} kn_http_record;

/* `context` is kn_http_params.context. headers and request are required. */
typedef struct kn_http_callbacks {
    void (*headers)(kn_http_exchange *exchange, void *context);
    void (*body)(kn_http_exchange *exchange, const void *bytes, size_t count, void *context);
    void (*request)(kn_http_exchange *exchange, void *context);
    void (*closed)(kn_http_exchange *exchange, void *context);
    void (*finished)(const kn_http_record *record, void *context);
    /* A connection that opens with the HTTP/2 preface, or agreed on "h2": true takes it over. Its bytes so far are
     * in the bufferevent's input, which belongs to the callee from now on, callbacks and all; it is not counted as
     * an exchange but holds its place among the connections until kn_http_taken_release(). False or NULL: refused
     * with 505. */
    bool (*sniff)(kn_http_taken *taken, struct bufferevent *stream, void *context);
} kn_http_callbacks;

typedef struct kn_http_params {
    struct event_base *base;   /* borrowed */
    kn_turns *turns;           /* borrowed; of this base */
    const char *const *listen; /* "127.0.0.1:8000", "[::1]:0"; numeric only, port 0 takes a free one */
    size_t listen_count;       /* 1..KN_HTTP_LISTEN_MAX */
    kn_tls *tls;               /* borrowed; NULL: plain text */
    kn_http_limits limits;
    kn_http_callbacks callbacks;
    void *context;
} kn_http_params;

/* Listens when it returns. KN_INVALID: an address or limit out of range; KN_UNAVAILABLE: an address is in use. */
kn_status kn_http_server_create(kn_http_server **out, const kn_http_params *params);

/* Closes everything at once; exchanges without a reply see closed(). Connections that were taken over must have been
 * released. Not from inside a callback. libevent frees the connections' memory from its loop: before
 * event_base_free(), let it run once more (EVLOOP_NONBLOCK is enough). */
void kn_http_server_destroy(kn_http_server **server);

/* The port really listened on at params.listen[index]; 0 after kn_http_server_stop_listening(). */
uint16_t kn_http_server_port(const kn_http_server *server, size_t index);

/* New connections are refused by the system; those that exist go on. */
void kn_http_server_stop_listening(kn_http_server *server);

/* Stops listening, closes idle connections, and the others with the end of their exchange ("Connection: close").
 * Calls drained() once when the last is gone, from the loop, even when there was none. Streams end when their handler
 * ends them; taken connections count until released. */
void kn_http_server_drain(kn_http_server *server, void (*drained)(void *context), void *context);

/* Numeric "address:port" on this machine's loopback? For refusing to serve others without keys and TLS. */
bool kn_http_address_is_loopback(const char *address);

typedef struct kn_http_stats {
    int32_t connections;        /* now, taken and lingering ones included */
    uint64_t memory_bytes;      /* buffered bodies now */
    uint64_t accepted;          /* since start, as all below */
    uint64_t refused;           /* connections over a limit */
    uint64_t requests;          /* header sections read, or refused */
    uint64_t malformed;         /* requests refused by the parser */
    uint64_t timeouts;          /* handshake, header or body too slow, stalled readers; not idle connections */
    uint64_t handshakes_failed; /* TLS, timeouts not included */
} kn_http_stats;

kn_http_stats kn_http_server_stats(const kn_http_server *server);

/* Gives a taken connection's place back, after its bufferevent was freed. NULL is accepted. */
void kn_http_taken_release(kn_http_taken **taken);
const char *kn_http_taken_remote(const kn_http_taken *taken); /* as kn_http_remote() */

/* ---- request ---- */

/* Strings are valid as long as the exchange. */
kn_http_method kn_http_request_method(const kn_http_exchange *exchange);
const char *kn_http_path(const kn_http_exchange *exchange);  /* decoded, printable ASCII; "/..." or "*" */
const char *kn_http_query(const kn_http_exchange *exchange); /* as sent, without the '?'; "" when none */
/* First field of this name (any case), "" when empty, NULL when there is none. */
const char *kn_http_header(const kn_http_exchange *exchange, const char *name);
size_t kn_http_header_count(const kn_http_exchange *exchange, const char *name);
const char *kn_http_host(const kn_http_exchange *exchange); /* what the client called this server; "" in 1.0 without */
const char *kn_http_remote(const kn_http_exchange *exchange);     /* "192.0.2.1", "2001:db8::1" */
const char *kn_http_request_id(const kn_http_exchange *exchange); /* "req_...", ours, on every reply */
bool kn_http_is_tls(const kn_http_exchange *exchange);
int64_t kn_http_content_length(const kn_http_exchange *exchange); /* as promised; 0: no body; -1: chunked */

/* In headers() only: how many body bytes to take, 0..KN_HTTP_BODY_BYTES_MAX. A longer body is refused with 413,
 * before it is read where its length is known. */
void kn_http_body_limit(kn_http_exchange *exchange, uint64_t bytes);
/* In headers() only: body() gets the bytes; nothing is buffered and the memory budget is not touched. */
void kn_http_body_stream(kn_http_exchange *exchange);
/* While a streamed body comes: stop and go on reading. The minimum rate is not asked for meanwhile. */
void kn_http_body_pause(kn_http_exchange *exchange);
void kn_http_body_resume(kn_http_exchange *exchange);

/* The buffered body, from request() on; followed by a NUL that *bytes does not count. Never NULL. */
const char *kn_http_body(const kn_http_exchange *exchange, size_t *bytes);

/* The handler's own. */
void kn_http_set_user(kn_http_exchange *exchange, void *user);
void *kn_http_user(const kn_http_exchange *exchange);
/* What logs and metrics call this request: "/v1/videos/{id}". Static text, kept by pointer. */
void kn_http_set_route(kn_http_exchange *exchange, const char *route);

/* ---- reply ----
 *
 * The server adds Date, Server, x-request-id, Connection, and Content-Length or Transfer-Encoding. Bodies are left
 * out for HEAD, 204 and 304. Statuses 200..599.
 *
 * A reply given before the request's body has come is followed by closing the connection. */

typedef struct kn_http_reply_header {
    const char *name, *value;
} kn_http_reply_header;

typedef struct kn_http_response {
    int status;
    const char *content_type; /* NULL: none */
    const kn_http_reply_header *headers;
    size_t header_count; /* <= KN_HTTP_REPLY_HEADERS_MAX */
    const void *body;    /* copied as far as it cannot be sent at once; any size */
    size_t body_bytes;
    bool close; /* end the connection after this reply */
} kn_http_response;

/* All three: KN_INVALID: a header that is not one (CR, LF, ...), too many or too long, a status out of range, or a
 * reply that was already begun. In the first cases the client gets a 500 and the exchange is over all the same. */
kn_status kn_http_reply(kn_http_exchange *exchange, const kn_http_response *response);

typedef struct kn_http_file {
    int fd; /* a regular file; taken: closed by the server whatever is returned */
    uint64_t bytes;
    const char *content_type;
    const char *etag; /* with its quotes: "\"1f...\""; NULL: none. Strong: the bytes never change under it */
    const kn_http_reply_header *headers;
    size_t header_count;
    bool ranges;        /* offer and honour single ranges */
    const void *prefix; /* copied; sent in front of the file, as part of the body. Without ranges and etag */
    size_t prefix_bytes;
    /* Asked before every window; false cuts the connection: bytes that must not be served any more. May be NULL. */
    bool (*allowed)(void *context);
    void (*done)(void *context); /* once, when `context` is no longer needed, on every path. May be NULL */
    void *context;
} kn_http_file;

/* 200, 206, 304, 412 or 416, as the request's method, Range, If-Range, If-Match and If-None-Match ask (RFC 9110 13,
 * 14). Several ranges in one request get the whole file, as the RFC allows. Copies the strings. A file that ends
 * early cuts the connection. */
kn_status kn_http_reply_file(kn_http_exchange *exchange, const kn_http_file *file);

/* A reply of unknown length: begin (the response's body must be empty), any number of writes, end. Chunked in
 * HTTP/1.1, ended by closing in 1.0. Every write leaves at once. */
kn_status kn_http_stream_begin(kn_http_exchange *exchange, const kn_http_response *response);
/* KN_AGAIN: limits.stream_queue_bytes are waiting already, and nothing of this was taken: a client that reads too
 * slowly; drop it with kn_http_abort(). KN_CANCELLED: the client is gone, closed() comes from the loop. */
kn_status kn_http_stream_write(kn_http_exchange *exchange, const void *bytes, size_t count);
size_t kn_http_stream_queued(const kn_http_exchange *exchange); /* bytes waiting */
kn_status kn_http_stream_end(kn_http_exchange *exchange);

/* Ends the exchange by cutting the connection; closed() is not called. */
void kn_http_abort(kn_http_exchange *exchange);

#endif

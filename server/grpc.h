/* SPDX-License-Identifier: Apache-2.0
 *
 * A gRPC server over HTTP/2 (RFC 9113, and gRPC's PROTOCOL-HTTP2). It carries bytes: what a message means (FlatBuffers,
 * protobuf) is the service's business. Connections come from an HTTP server's sniff() hook, so one port speaks
 * HTTP/1.1 and gRPC, in clear text by prior knowledge and over TLS by ALPN.
 *
 * A *service* is a table of methods. A *call* is one request of a method; its life:
 *
 *   start()        the headers are there, the caller was let in (params.admit).
 *   message()      a whole request message, decompressed; its bytes are aligned to 64 and valid during the call. For a
 *                  method without client_streams exactly once: the server refuses less and more.
 *   half_closed()  no more messages will come. Only for methods with client_streams.
 *   send           kn_grpc_send(), any number of times with server_streams; a unary method sends one.
 *   finish         exactly one of kn_grpc_finish(), kn_grpc_reply(), kn_grpc_fail(), at any time, from any of the
 *                  callbacks or later from the loop. When it returns the call is no longer the caller's.
 *   closed()       instead of a finish: the client cancelled or went away, its deadline has passed, or the server ends.
 *                  Called once, only after start() or message(); the call is gone when it returns.
 *
 * Everything runs on the thread of the event loop: callbacks are called there, all functions must be called there. No
 * callback is called from inside a function the service called, so there is no recursion, and a callback may call any
 * function but kn_grpc_server_destroy().
 *
 * Back-pressure: kn_grpc_send() refuses with KN_AGAIN when KN_GRPC_QUEUE_BYTES wait for a slow client; writable() tells
 * when there is room again. kn_grpc_pause() stops reading a client's messages; its window closes, and so it waits. */
#ifndef KN_SERVER_GRPC_H
#define KN_SERVER_GRPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "server/api_error.h"
#include "server/http.h"
#include "server/policy.h"

enum {
    KN_GRPC_MESSAGE_BYTES_MAX = 4 << 20, /* of a request message, before and after decompression: grpcio's default */
    KN_GRPC_REPLY_BYTES_MAX = 64 << 20,  /* of one message that is sent */
    KN_GRPC_QUEUE_BYTES = 256 << 10,     /* waiting for one call's client; a message may exceed it, the next may not */
    KN_GRPC_STREAMS_MAX = 1024,          /* calls of one connection at a time */
    KN_GRPC_SERVICES_MAX = 16,
    KN_GRPC_METADATA_BYTES = 16 << 10, /* of a request's header section; each field counts 32 on top (RFC 9113) */
};

typedef enum kn_grpc_code {
    KN_GRPC_OK,
    KN_GRPC_CANCELLED,
    KN_GRPC_UNKNOWN,
    KN_GRPC_INVALID_ARGUMENT,
    KN_GRPC_DEADLINE_EXCEEDED,
    KN_GRPC_NOT_FOUND,
    KN_GRPC_ALREADY_EXISTS,
    KN_GRPC_PERMISSION_DENIED,
    KN_GRPC_RESOURCE_EXHAUSTED,
    KN_GRPC_FAILED_PRECONDITION,
    KN_GRPC_ABORTED,
    KN_GRPC_OUT_OF_RANGE,
    KN_GRPC_UNIMPLEMENTED,
    KN_GRPC_INTERNAL,
    KN_GRPC_UNAVAILABLE,
    KN_GRPC_DATA_LOSS,
    KN_GRPC_UNAUTHENTICATED,
    KN_GRPC_CODES,
} kn_grpc_code;

typedef struct kn_grpc_server kn_grpc_server;
typedef struct kn_grpc_call kn_grpc_call;

/* ---- services ---- */

/* start, half_closed and writable may be NULL; closed may be NULL for a method that always finishes in message(). */
typedef struct kn_grpc_method {
    const char *name; /* "Check": the path is /<service>/<method> */
    unsigned scope;   /* kn_scope that the caller's key must have; 0: anybody */
    bool client_streams, server_streams;
    uint32_t message_bytes; /* most of one request message; 0: KN_GRPC_MESSAGE_BYTES_MAX */
    void (*start)(kn_grpc_call *call);
    void (*message)(kn_grpc_call *call, const void *bytes, size_t count);
    void (*half_closed)(kn_grpc_call *call);
    void (*writable)(kn_grpc_call *call);
    void (*closed)(kn_grpc_call *call);
} kn_grpc_method;

typedef struct kn_grpc_service {
    const char *name; /* "grpc.health.v1.Health" */
    const kn_grpc_method *methods;
    size_t method_count;
} kn_grpc_service;

/* ---- server ---- */

/* What a call was, for metrics and logs; valid during the call. */
typedef struct kn_grpc_record {
    const char *path; /* "/grpc.health.v1.Health/Check"; "" for a method that is not known */
    kn_grpc_code code;
    int64_t duration_ns;
    uint64_t received_bytes, sent_bytes; /* of messages */
} kn_grpc_record;

/* Lets a call in: fills *principal, or fills *error and returns false. `authorization` may be NULL; `authority` is what
 * the client called this server. */
typedef bool kn_grpc_admit_fn(void *context, const kn_grpc_method *method, const char *authorization,
                              const char *authority, kn_principal *principal, kn_api_error *error);

/* A field that is 0 takes its default. */
typedef struct kn_grpc_limits {
    int32_t streams;       /* 1,024 a connection */
    int32_t streams_total; /* 16,384 on all of them */
    uint64_t memory_bytes; /* 32 MiB: request messages that are not complete, together */
    int64_t stall_ns;      /* 30 s: a client that takes nothing of what waits for it, or sends no more of its request */
    int64_t idle_ns;       /* 10 min: a connection without calls */
    int64_t age_ns;        /* a connection's life, give or take a tenth; 0: unlimited */
    int64_t ping_ns;       /* 10 s: pings without traffic that come faster are strikes (gRFC A8) */
} kn_grpc_limits;

typedef struct kn_grpc_params {
    struct event_base *base;                /* borrowed */
    kn_turns *turns;                        /* borrowed; the HTTP server's */
    const kn_grpc_service *const *services; /* borrowed, as everything they point to */
    size_t service_count;
    kn_grpc_limits limits;
    kn_grpc_admit_fn *admit;                                       /* NULL: everybody, with every scope */
    void (*finished)(const kn_grpc_record *record, void *context); /* every call, at its very end. May be NULL */
    /* GET and HEAD over HTTP/2: status 0 is 404, or the status and a static body of a probe. May be NULL */
    int (*probe)(void *context, const char *path, const char **body);
    void *context;
} kn_grpc_params;

kn_status kn_grpc_server_create(kn_grpc_server **out, const kn_grpc_params *params);
/* Cuts all connections; calls see closed(). Before kn_http_server_destroy(). Not from inside a callback. */
void kn_grpc_server_destroy(kn_grpc_server **server);

/* For kn_http_callbacks.sniff. */
bool kn_grpc_server_take(kn_grpc_server *server, kn_http_taken *taken, struct bufferevent *stream);

/* Tells every client to go elsewhere (GOAWAY, twice as gRFC A9 asks); new connections too. Calls that exist go on;
 * a connection closes with its last one. Ending streams is for the services. */
void kn_grpc_server_drain(kn_grpc_server *server);

typedef struct kn_grpc_stats {
    int32_t connections, calls; /* now */
    uint64_t memory_bytes;      /* incomplete request messages now */
    uint64_t accepted;          /* connections since start, as all below */
    uint64_t started;           /* calls */
    uint64_t abused;            /* connections ended for breaking a limit or the protocol */
    uint64_t stalled;           /* calls and connections ended for being too slow */
} kn_grpc_stats;

kn_grpc_stats kn_grpc_server_stats(const kn_grpc_server *server);

/* For reflection. */
size_t kn_grpc_service_count(const kn_grpc_server *server);
const kn_grpc_service *kn_grpc_service_at(const kn_grpc_server *server, size_t index);

/* ---- calls ---- */

kn_grpc_server *kn_grpc_call_server(const kn_grpc_call *call);
void *kn_grpc_context(const kn_grpc_call *call); /* params.context */
const kn_grpc_method *kn_grpc_call_method(const kn_grpc_call *call);
const kn_principal *kn_grpc_principal(const kn_grpc_call *call);
/* The first field of this lower-case name, as long as the call lives; NULL: there is none, or it is the transport's
 * (":path", "te", "content-type", "user-agent", "authorization", "grpc-..."). A "-bin" field comes as its base64. */
const char *kn_grpc_metadata(const kn_grpc_call *call, const char *name);
int64_t kn_grpc_deadline_ns(const kn_grpc_call *call); /* monotonic; 0: none */
/* In closed(): KN_GRPC_CANCELLED or KN_GRPC_DEADLINE_EXCEEDED or KN_GRPC_UNAVAILABLE (the server ends). */
kn_grpc_code kn_grpc_closed_code(const kn_grpc_call *call);

void kn_grpc_set_user(kn_grpc_call *call, void *user);
void *kn_grpc_user(const kn_grpc_call *call);

/* Stop and go on reading messages; one that is being handed over may be followed by no other. */
void kn_grpc_pause(kn_grpc_call *call);
void kn_grpc_resume(kn_grpc_call *call);

/* ---- replies ---- */

/* Adds to the trailers; before the finish. `value` is printable ASCII, at most 1 KiB; a few of them. */
kn_status kn_grpc_trailer(kn_grpc_call *call, const char *name, const char *value);

/* Queues a message; the bytes are copied. It is compressed where the client can and it helps. KN_AGAIN: too much waits
 * already, nothing was taken; writable() comes. KN_INVALID: too large. KN_NOMEM. */
kn_status kn_grpc_send(kn_grpc_call *call, const void *bytes, size_t count);
/* The same without a copy and never compressed: `release` is called once, on every path, when the bytes are no longer
 * needed. */
kn_status kn_grpc_send_owned(kn_grpc_call *call, const void *bytes, size_t count, void (*release)(void *context),
                             void *context);
/* Would kn_grpc_send() take a message now? If not, writable() comes. */
bool kn_grpc_has_room(kn_grpc_call *call);
size_t kn_grpc_queued(const kn_grpc_call *call); /* bytes waiting */

/* Ends the call after what was sent. `message` may be NULL with KN_GRPC_OK; any UTF-8. */
void kn_grpc_finish(kn_grpc_call *call, kn_grpc_code code, const char *message);
/* Sends one message and finishes with OK. */
void kn_grpc_reply(kn_grpc_call *call, const void *bytes, size_t count);
/* Ends with what the API would say over HTTP: its code, the message, google.rpc.Status details that name the field
 * (BadRequest) and the reason (ErrorInfo), and retry pushback where it says when to come back. */
void kn_grpc_fail(kn_grpc_call *call, const kn_api_error *error);

kn_grpc_code kn_grpc_code_of(const kn_api_error *error);
const char *kn_grpc_code_name(kn_grpc_code code); /* "INVALID_ARGUMENT" */

#endif

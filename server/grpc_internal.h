/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the gRPC server share: grpc_server.c has the server, its clock and its connections' sockets; grpc.c
 * a call's life and its replies; grpc_request.c what a request's header section says. */
#ifndef KN_SERVER_GRPC_INTERNAL_H
#define KN_SERVER_GRPC_INTERNAL_H

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <sys/queue.h>

#include "server/grpc.h"
#include "server/grpc_frame.h"
#include "server/h2.h"
#include "server/turns.h"

typedef struct kn_grpc_connection kn_grpc_connection;

enum {
    KN_GRPC_TRAILERS_MAX = 8,
    KN_GRPC_KEPT_BYTES = 128 << 10, /* metadata of a connection's calls, together */
    KN_GRPC_STUCK_MAX = 192,        /* of a connection; beyond it new streams are refused until some move */
};

/* Calls with the same key share it. */
typedef struct kn_grpc_caller {
    kn_principal principal;
    int32_t references;
} kn_grpc_caller;

struct kn_grpc_call {
    kn_grpc_connection *connection;
    kn_h2_stream *stream;
    LIST_ENTRY(kn_grpc_call) next;
    const kn_grpc_method *method; /* NULL: not a call, or none that is known */
    const char *path;             /* the server's copy; "" */
    const char *content_type;     /* static */
    kn_grpc_caller *caller;
    void *user;
    char *metadata; /* name NUL value NUL ..., ended by an empty name */
    size_t metadata_bytes;
    char *trailers; /* the same */
    size_t trailers_bytes;
    int32_t trailer_count;
    int64_t started_ns, deadline_ns;
    kn_grpc_reader reader;
    const uint8_t *request; /* of a method without client_streams, until the client's side ends; in `reader` */
    size_t request_bytes;
    bool has_request;
    uint8_t *held; /* came while paused; not consumed */
    size_t held_bytes;
    uint64_t received_bytes, sent_bytes;
    kn_grpc_code code;
    bool told;                     /* start() or message() was called: closed() is due unless `over` */
    bool over;                     /* the service has let go of it */
    bool half_closed;              /* the client's side is complete */
    bool paused, resumed, running; /* resumed: to go on from the loop; running: inside a callback of the service */
    bool responded, gzip_accepted, gzip, wants_room;
};

struct kn_grpc_connection {
    kn_grpc_server *server;
    LIST_ENTRY(kn_grpc_connection) all;
    TAILQ_ENTRY(kn_grpc_connection) ready;
    kn_http_taken *taken;
    kn_turn turn; /* while it waits nothing is read */
    kn_standing standing;
    struct bufferevent *stream;
    kn_h2 *h2;
    LIST_HEAD(, kn_grpc_call) calls;
    kn_grpc_caller *caller; /* of the latest call */
    size_t kept_bytes;
    size_t data_bytes; /* of messages, so far */
    bool uploads;      /* most of what came last was messages */
    int32_t served;    /* calls that a service has */
    int32_t stuck;     /* streams that none has: half sent or half read, after the last flush */
    evutil_socket_t fd;
    bool tls, is_ready, reading;
    bool closing; /* nothing more is read; what is in the output goes out, then the socket closes */
    bool gone;    /* the client is; what is left of it ends in its turns */
    bool dead;
    int64_t opened_ns, busy_ns; /* since when; had calls last */
    int64_t age_ns;             /* 0: unlimited */
    int64_t notice_ns;          /* the shutdown notice was given; 0: not */
    bool goaway;
    int64_t closing_ns, moved_ns;
    size_t output_seen;
};

/* A method by its whole path. */
typedef struct kn_grpc_entry {
    char *path;
    size_t path_bytes;
    const kn_grpc_method *method;
} kn_grpc_entry;

struct kn_grpc_server {
    struct event_base *base;
    kn_grpc_params params;
    kn_grpc_limits limits;
    kn_grpc_entry *entries; /* by path */
    size_t entry_count;
    kn_turns *turns;
    struct event *tick, *wake;
    struct evbuffer *scratch;
    LIST_HEAD(, kn_grpc_connection) connections;
    TAILQ_HEAD(, kn_grpc_connection) ready;
    kn_h2_shared shared;
    kn_grpc_memory memory;
    kn_grpc_stats stats;
    int64_t now_ns; /* of the loop's turn */
    bool draining;
};

/* ---- grpc_server.c ---- */
void kn_grpc_schedule(kn_grpc_connection *connection); /* flush it from the loop, soon */
const kn_grpc_entry *kn_grpc_find(const kn_grpc_server *server, const char *path, size_t bytes);

/* ---- grpc_request.c ---- */
/* What a header section says, and what is wrong with it. */
void kn_grpc_on_request(kn_h2_stream *stream, const kn_h2_head *head, void *context);

/* ---- grpc.c ---- */
kn_grpc_call *kn_grpc_call_open(kn_grpc_connection *connection, kn_h2_stream *stream);
void kn_grpc_call_begin(kn_grpc_call *call, bool end); /* the service hears of it */
void kn_grpc_on_data(kn_h2_stream *stream, const uint8_t *bytes, size_t count, void *context);
void kn_grpc_on_end(kn_h2_stream *stream, void *context);
void kn_grpc_on_drained(kn_h2_stream *stream, void *context);
void kn_grpc_on_closed(kn_h2_stream *stream, uint32_t error, void *context);
/* Goes on with what came while it was paused. */
void kn_grpc_call_run(kn_grpc_call *call);
/* The server ends it: closed(), then a status. */
void kn_grpc_call_end(kn_grpc_call *call, kn_grpc_code code, const char *message);
/* Ends a call that no service knows of. */
void kn_grpc_call_refuse(kn_grpc_call *call, kn_grpc_code code, const char *message);

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the HTTP server share. http_server.c listens, counts and keeps the clock; http_connection.c moves
 * one connection from state to state; http_exchange.c holds a request; http_reply.c and http_file.c answer it.
 *
 *   handshaking ──TLS agreed──► idle ──first byte──► reading head ──► reading body ──► waiting ──► sending
 *                                ▲                        │ no body          │ early       │        ▲   │
 *                                │                        └──────────────────┴─────────────┼────────┘   │
 *                                │                                                     streaming ──►┘   │
 *                                ├───────────────────────────── keep-alive ─────────────────────────────┤
 *                                                                 lingering ◄──── close ────────────────┘
 *
 *   idle → reading head         begin_exchange      when the first byte is there
 *   reading head → reading body, waiting            accept_head, after headers()
 *   reading body → waiting      read_body           calls request()
 *   any → sending, streaming    kn_http_begin_reply in http_reply.c and http_file.c, by the handler, or a refusal
 *   sending → idle, lingering   finish_sending      when the output is empty
 *   any → gone                  kn_http_connection_end, and freed when nothing of it is on the stack
 *
 * A connection moves only in kn_http_connection_run(). The handler's calls write bytes and set the state; when they
 * come from elsewhere than a callback, they put the connection on the server's ready list, so that callbacks always
 * start from the loop. */
#ifndef KN_SERVER_HTTP_INTERNAL_H
#define KN_SERVER_HTTP_INTERNAL_H

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <openssl/ssl.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <time.h>

#include "server/http.h"
#include "server/job.h" /* KN_REQUEST_ID_BYTES */
#include "server/turns.h"

typedef struct kn_http_connection kn_http_connection;

enum {
    KN_HTTP_READ_AHEAD_BYTES = 32 << 10, /* of one connection; a whole head fits */
    KN_HTTP_BUCKETS = 1024,              /* of addresses; a power of two */
    KN_HTTP_POOL_MAX = 256,              /* exchanges kept for reuse */
    KN_HTTP_RANDOM_BYTES = 4096,         /* fetched from the system at a time, for request ids */
    KN_HTTP_REMOTE_BYTES = 46,           /* INET6_ADDRSTRLEN */
};

typedef enum kn_http_state {
    KN_HTTP_HANDSHAKING,
    KN_HTTP_IDLE,
    KN_HTTP_READING_HEAD,
    KN_HTTP_READING_BODY,
    KN_HTTP_WAITING,   /* for the handler to reply */
    KN_HTTP_STREAMING, /* between kn_http_stream_begin and _end */
    KN_HTTP_SENDING,   /* the reply is given; bytes or a file wait to be sent */
    KN_HTTP_LINGERING, /* our side is shut; reading until the client's is */
    KN_HTTP_TAKEN,     /* another protocol's */
} kn_http_state;

struct kn_http_exchange {
    kn_http_connection *connection;
    SLIST_ENTRY(kn_http_exchange) pool;
    char id[KN_REQUEST_ID_BYTES];
    char *text; /* the head, cut into strings, then the decoded path */
    size_t text_bytes;
    const char *path, *query, *host; /* in text */
    const char *route;
    void *user;
    int64_t started_ns;
    bool parsed;     /* the head is complete and good */
    bool introduced; /* headers() was called, so closed() is due unless `ended` */
    bool begun;      /* a reply was begun */
    bool ended;      /* the exchange is no longer the handler's */
    /* The request's body. */
    bool body_streamed, body_paused, body_complete;
    uint64_t body_limit, body_received; /* bytes, decoded */
    char *body;
    size_t body_room; /* bytes at `body`, counted in the server's memory budget */
    kn_http_chunks chunks;
    /* The reply. */
    int status;
    bool chunked_reply;
    uint64_t reply_bytes;
    int file; /* -1: none */
    uint64_t file_offset, file_left;
    bool (*file_allowed)(void *context);
    void (*file_done)(void *context);
    void *file_context;
    kn_http_head head; /* last: not cleared whole */
};

struct kn_http_taken {
    kn_http_connection *connection;
};

struct kn_http_connection {
    kn_http_server *server;
    LIST_ENTRY(kn_http_connection) all, bucket;
    TAILQ_ENTRY(kn_http_connection) ready;
    struct bufferevent *stream; /* NULL while TLS is being agreed on */
    SSL *ssl;                   /* NULL: plain text */
    struct event *handshake;    /* waits for the client's next words; NULL afterwards */
    evutil_socket_t fd;
    kn_http_exchange *exchange; /* NULL between requests */
    kn_http_taken taken;
    kn_standing standing;
    kn_turn turn; /* while it waits nothing is read */
    kn_http_state state;
    bool running;     /* inside kn_http_connection_run */
    bool is_ready;    /* on the ready list */
    bool counted;     /* in its address's bucket */
    bool full;        /* KN_HTTP_READ_AHEAD_BYTES lie in the input, or it waits for its turn; not reading */
    bool eof;         /* the client shut its side */
    bool broken;      /* nothing can be read or written any more, or should be */
    bool dead;        /* to be freed */
    bool close_after; /* this exchange is the last */
    uint64_t requests;
    int64_t since_ns;    /* the state began */
    double body_credit;  /* bytes a body may still be late by */
    int64_t credited_ns; /* when that was computed */
    uint64_t queued;     /* bytes put into the output since the start */
    uint64_t taken_mark; /* of these, taken by the system */
    int64_t taken_ns;    /* when that was first seen; 0: not yet in this state */
    uint64_t address[2]; /* what connections are counted by */
    char remote[KN_HTTP_REMOTE_BYTES];
};

typedef struct kn_http_listener {
    kn_http_server *server;
    struct evconnlistener *listener; /* holds the socket; accepting is done here, one connection a turn */
    struct event *readable;
    kn_turn turn;
    uint16_t port;
    bool resting; /* out of file descriptors, until the next tick */
} kn_http_listener;

struct kn_http_server {
    struct event_base *base;
    kn_turns *turns;
    kn_tls *tls;
    kn_http_limits limits;
    kn_http_callbacks callbacks;
    void *context;
    kn_http_listener listeners[KN_HTTP_LISTEN_MAX];
    size_t listener_count;
    struct event *tick, *wake;
    kn_http_stats stats;
    LIST_HEAD(, kn_http_connection) connections;
    LIST_HEAD(, kn_http_connection) buckets[KN_HTTP_BUCKETS];
    TAILQ_HEAD(, kn_http_connection) ready;
    SLIST_HEAD(, kn_http_exchange) pool;
    int32_t pooled;
    uint64_t bucket_seed;
    bool draining;
    void (*drained)(void *context);
    void *drained_context;
    uint8_t random[KN_HTTP_RANDOM_BYTES];
    size_t random_used;
    time_t date; /* of date_text */
    char date_text[40];
    char head[KN_HTTP_REPLY_HEAD_BYTES]; /* a reply's, while it is composed */
};

/* ---- http_server.c ---- */
void kn_http_new_id(kn_http_server *server, char id[KN_REQUEST_ID_BYTES]);
const char *kn_http_date(kn_http_server *server); /* "Sun, 06 Nov 1994 08:49:37 GMT" */
void kn_http_uncount(kn_http_connection *connection);
void kn_http_check_drained(kn_http_server *server);

/* ---- http_connection.c ---- */

/* Takes the socket. NULL: out of memory, the socket is closed. */
kn_http_connection *kn_http_connection_create(kn_http_server *server, evutil_socket_t fd, bool tls);
void kn_http_connection_destroy(kn_http_connection *connection);
void kn_http_connection_run(kn_http_connection *connection);
void kn_http_connection_schedule(kn_http_connection *connection); /* run it from the loop, soon */
void kn_http_connection_check(kn_http_connection *connection, int64_t now_ns);
/* The client is gone or cut off: tells the handler, finishes the record, marks it dead. From the loop. */
void kn_http_connection_end(kn_http_connection *connection);
void kn_http_connection_set(kn_http_connection *connection, kn_http_state state);

/* Sends what the system takes at once and queues the rest. Errors surface from the loop. */
void kn_http_connection_send(kn_http_connection *connection, const struct iovec *pieces, int count);
size_t kn_http_connection_queued(const kn_http_connection *connection);

/* ---- http_exchange.c ---- */
kn_status kn_http_exchange_begin(kn_http_connection *connection);
/* Cuts the head at `bytes` into strings. KN_INVALID: the path cannot be decoded. */
kn_status kn_http_exchange_fill(kn_http_exchange *exchange, const char *bytes);
kn_status kn_http_exchange_append(kn_http_exchange *exchange, const char *bytes, size_t count);
/* Its last moment: record, log line, everything given back. */
void kn_http_exchange_finish(kn_http_connection *connection, bool complete);
/* closed(), where it is due. */
void kn_http_exchange_close(kn_http_exchange *exchange);
void kn_http_exchange_free(kn_http_exchange *exchange);

/* ---- http_reply.c ---- */

typedef struct kn_http_outgoing {
    int status;
    const char *content_type;
    const kn_http_reply_header *headers, *own; /* the handler's, checked; ours */
    size_t header_count, own_count;
    int64_t length; /* of the body; -1: not known, a stream */
    bool close;
} kn_http_outgoing;

/* Composes status line and header section in server->head, decides on closing, and marks the reply begun. */
kn_status kn_http_begin_reply(kn_http_exchange *exchange, const kn_http_outgoing *outgoing, size_t *head_bytes);
/* The handler's part is over; what was queued is being sent. */
void kn_http_end_reply(kn_http_exchange *exchange);
bool kn_http_has_body(const kn_http_exchange *exchange, int status); /* may this reply have one? */
/* Answers for the server and closes: `message` is static text without quotes. From the loop. */
void kn_http_refuse(kn_http_connection *connection, int status, const char *message);
/* Instead of a reply that cannot be made. */
kn_status kn_http_fail_reply(kn_http_exchange *exchange);

/* ---- http_file.c ---- */
/* Reads the next windows into the output. False: nothing to read now. */
void kn_http_file_refill(kn_http_exchange *exchange);
void kn_http_file_close(kn_http_exchange *exchange);

#endif

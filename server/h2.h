/* SPDX-License-Identifier: Apache-2.0
 *
 * The server's side of one HTTP/2 connection (RFC 9113), as a function of bytes: what the client sent goes in, what is
 * to be sent comes out; no socket and no clock. nghttp2 does the framing and HPACK; what it leaves to the application,
 * bounds on work, objects and memory, is done here, per connection:
 *
 *   header section     100 fields, 16 KiB (each field counts 32 on top); the rest is decoded, not kept, and told by
 *                      kn_h2_head.oversized; four times as many end the connection
 *   CONTINUATION       4 frames a header section
 *   streams            limits.streams at a time, the rest is refused by nghttp2
 *   resets             33/s, burst 200: streams younger than a second reset by the client, and stream errors (a client
 *                      that provokes the server's own resets, CVE-2025-8671)
 *   PING               10/s, burst 50; without traffic in between no faster than limits.ping_ns, three strikes
 *   SETTINGS           10/s, burst 20
 *   the other frames   1,000/s, burst 4,000, of those that carry nothing (WINDOW_UPDATE, PRIORITY, empty DATA, unknown
 *                      types); each request and each DATA frame either way pays for some
 *   windows            64 KiB a stream, 256 KiB the connection, opened again as kn_h2_consume() says
 *
 * What breaks one ends the connection with GOAWAY ENHANCE_YOUR_CALM; what breaks the protocol as nghttp2 finds. */
#ifndef KN_SERVER_H2_H
#define KN_SERVER_H2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct evbuffer;

typedef struct kn_h2 kn_h2;
typedef struct kn_h2_stream kn_h2_stream;

enum {
    KN_H2_FIELDS_MAX = 100,
    KN_H2_HEADER_BYTES = 16 << 10,
    KN_H2_STREAM_WINDOW = (64 << 10) - 1,
    KN_H2_WINDOW = 256 << 10,
    KN_H2_FRAME_BYTES_MAX = 256 << 10, /* of DATA sent, where the client takes them */
    KN_H2_REPLY_FIELDS_MAX = 24,
};

/* RFC 9113, 7. */
enum {
    KN_H2_NO_ERROR = 0,
    KN_H2_PROTOCOL_ERROR = 1,
    KN_H2_INTERNAL_ERROR = 2,
    KN_H2_REFUSED_STREAM = 7,
    KN_H2_CANCEL = 8,
    KN_H2_ENHANCE_YOUR_CALM = 11,
};

typedef struct kn_h2_field {
    const char *name, *value; /* end in NUL; no NUL inside. In replies: static, or copied with `copy` */
    size_t name_bytes, value_bytes;
    bool copy; /* of a reply: both are copied at once, and need not last */
} kn_h2_field;

/* A request's header section; valid during the call, all of it. */
typedef struct kn_h2_head {
    const kn_h2_field *fields;
    size_t count;
    bool oversized; /* over the limits: `fields` is the part that fits */
    bool end;       /* no body follows */
} kn_h2_head;

/* Called from kn_h2_receive() and kn_h2_produce(); they may call every function below but those two and
 * kn_h2_destroy(). A stream is the callee's from request() to closed(), which comes exactly once. */
typedef struct kn_h2_callbacks {
    void (*request)(kn_h2_stream *stream, const kn_h2_head *head, void *context);
    void (*data)(kn_h2_stream *stream, const uint8_t *bytes, size_t count, void *context);
    void (*end)(kn_h2_stream *stream, void *context);     /* the client's side is complete; not after head.end */
    void (*drained)(kn_h2_stream *stream, void *context); /* what was queued has been handed over */
    void (*closed)(kn_h2_stream *stream, uint32_t error, void *context);
} kn_h2_callbacks;

/* Counts over several connections. */
typedef struct kn_h2_shared {
    int32_t streams; /* now */
    int32_t streams_max;
} kn_h2_shared;

typedef struct kn_h2_params {
    kn_h2_callbacks callbacks;
    void *context;
    kn_h2_shared *shared; /* borrowed */
    int32_t streams;
    int64_t ping_ns;
    int64_t now_ns;
} kn_h2_params;

/* The server's preface is ready to be produced. */
kn_status kn_h2_create(kn_h2 **out, const kn_h2_params *params);
/* Streams that are left see closed(). */
void kn_h2_destroy(kn_h2 **h2);
/* The client is gone: closes `count` streams of those that are left, so that a thousand need not end at once. False:
 * none is left. */
bool kn_h2_shed(kn_h2 *h2, int32_t count);

/* KN_OK; KN_CORRUPT: the client broke the protocol or a limit, KN_NOMEM: produce what is left, then close. */
kn_status kn_h2_receive(kn_h2 *h2, const void *bytes, size_t count, int64_t now_ns);
/* Appends what is to be sent to `out`, stopping soon after it holds `room` bytes. */
kn_status kn_h2_produce(kn_h2 *h2, struct evbuffer *out, size_t room, int64_t now_ns);
/* Something waits to be produced that windows allow. */
bool kn_h2_wants_write(const kn_h2 *h2);
/* Nothing more will come of this connection: it said goodbye and its last stream has closed, or it failed. */
bool kn_h2_finished(const kn_h2 *h2);
bool kn_h2_abused(const kn_h2 *h2);         /* failed for breaking a limit or the protocol */
const char *kn_h2_failure(const kn_h2 *h2); /* which, for the log; "" */
int32_t kn_h2_streams(const kn_h2 *h2);     /* open now */

/* "Go elsewhere": first a notice that costs no request, then, after a while, the end (gRFC A9). `debug` is short. */
void kn_h2_shutdown_notice(kn_h2 *h2);
void kn_h2_goaway(kn_h2 *h2, uint32_t error, const char *debug);

/* ---- streams ---- */

void kn_h2_stream_set_user(kn_h2_stream *stream, void *user);
void *kn_h2_stream_user(const kn_h2_stream *stream);
int64_t kn_h2_stream_moved_ns(const kn_h2_stream *stream); /* bytes went either way last; as `now_ns` was told */

/* `count` bytes that data() brought are no longer held: the window opens again. */
void kn_h2_consume(kn_h2_stream *stream, size_t count);

/* The reply: head (with `end`: and nothing else), pieces of the body, then trailers or an end. A failure resets the
 * stream. Fields go out as they are given, ":status" first. */
kn_status kn_h2_respond(kn_h2_stream *stream, const kn_h2_field *fields, size_t count, bool end);
/* `head` (may be empty) and `bytes` are one piece; copied, or with `release` kept until that is called. */
kn_status kn_h2_write(kn_h2_stream *stream, const void *head, size_t head_bytes, const void *bytes, size_t count,
                      void (*release)(void *context), void *context);
kn_status kn_h2_trailers(kn_h2_stream *stream, const kn_h2_field *fields, size_t count); /* copied */
size_t kn_h2_queued(const kn_h2_stream *stream);
void kn_h2_reset(kn_h2_stream *stream, uint32_t error);

#endif

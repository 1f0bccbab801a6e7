/* SPDX-License-Identifier: Apache-2.0
 *
 * Frames over a stream socket: four bytes of length, little-endian, then as many bytes of payload, 1 to
 * KN_WIRE_BYTES_MAX. Two ends: one for an event loop, which never blocks and holds a bounded queue, and a plain
 * blocking one for a worker.
 *
 *   what arrives                          event-loop end          blocking end
 *   a whole frame, in whatever pieces     message()               KN_OK
 *   end of file between two frames        closed(KN_CANCELLED)    KN_CANCELLED
 *   end of file inside a frame            the same: the other end died over it, and the piece is dropped
 *   length 0 or above the limit           closed(KN_CORRUPT)      KN_CORRUPT
 *   the socket fails                      closed(KN_IO)           KN_IO
 *
 * Memory grows with what has arrived, never with what a length promises. */
#ifndef KN_SERVER_LINK_H
#define KN_SERVER_LINK_H

#include <event2/event.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum {
    KN_LINK_HEADER_BYTES = 4,
    KN_LINK_QUEUE_BYTES = 32 << 20, /* waiting to be sent; a worker that stops reading is full at this */
    KN_LINK_READ_BYTES = 64 << 10,  /* taken from the socket at a time, so that a flood leaves the loop its turn */
};

/* ---- in the event loop; one thread ---- */

typedef struct kn_link kn_link;

/* message: [count] bytes, valid during the call. closed: comes once, last, after every whole frame that had arrived;
 * `why` is in kn_fail_message. Both may destroy the link. */
typedef struct kn_link_events {
    void *context;
    void (*message)(void *context, const void *bytes, size_t count);
    void (*closed)(void *context, kn_status why);
} kn_link_events;

/* Takes the descriptor, also on failure, and makes it non-blocking. */
kn_status kn_link_create(kn_link **out, struct event_base *base, int fd, const kn_link_events *events);
/* Closes the descriptor; what was queued and not sent is lost. */
void kn_link_destroy(kn_link **link);

/* Sends one frame with a descriptor, which the caller keeps; both arrive together. Only while nothing is queued,
 * because a queue has no room for descriptors: else KN_AGAIN. Otherwise as kn_link_send. */
kn_status kn_link_send_with(kn_link *link, const void *bytes, size_t count, int fd);

/* Queues one frame. KN_AGAIN: it does not fit into KN_LINK_QUEUE_BYTES now. KN_INVALID: the size. KN_IO: closed. */
kn_status kn_link_send(kn_link *link, const void *bytes, size_t count);

/* ---- blocking ---- */

/* *bytes: kn_alloc'ed. One reader at a time. KN_NOMEM. */
kn_status kn_link_receive(int fd, void **bytes, size_t *count);

/* The same, with the descriptor that came along, the caller's to close; -1: none. On failure there is none. */
kn_status kn_link_receive_with(int fd, void **bytes, size_t *count, int *passed);

/* One writer at a time. KN_CANCELLED: the other end is closed. No SIGPIPE. */
kn_status kn_link_transmit(int fd, const void *bytes, size_t count);

#endif

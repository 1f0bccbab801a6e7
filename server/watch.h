/* SPDX-License-Identifier: Apache-2.0
 *
 * Following a job: numbered events, delivered to whoever watches and kept for a while, so that a watcher whose
 * connection broke goes on behind the last event it saw. An event's id is "<start>-<number>", where <start> differs
 * from one start of the server to the next; a watcher that comes with an unknown id begins anew.
 *
 * Belongs to the loop thread. */
#ifndef KN_SERVER_WATCH_H
#define KN_SERVER_WATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum {
    KN_WATCHERS_OF_ONE_MAX = 1024,
    KN_WATCH_EVENTS_KEPT = 32,
    KN_WATCH_EVENT_BYTES_MAX = 1 << 20,
    KN_WATCH_ID_BYTES = 40, /* with the NUL */
};

typedef struct kn_watch kn_watch;
typedef struct kn_watcher kn_watcher;

typedef struct kn_watch_event {
    const char *name; /* "video.progress"; static text */
    char id[KN_WATCH_ID_BYTES];
    const char *data; /* JSON */
    size_t bytes;
    bool last; /* nothing follows */
} kn_watch_event;

/* Hands an event on. Anything but KN_OK ends the watcher, which is gone when this returns; after the last event it is
 * gone too. Must not call functions of this header for the same job. */
typedef kn_status kn_watch_fn(void *context, const kn_watch_event *event);

/* `start` tells this start of the server from others. */
kn_status kn_watch_create(kn_watch **out, uint32_t start);
/* Watchers that are left are dropped without a word. Accepts NULL. */
void kn_watch_destroy(kn_watch **watch);

/* Sends to every watcher, and keeps the event where `keep` says so: a picture is superseded by the next one, a change
 * of state is not. `name` is static; data is copied. After `last` no watcher is left. */
kn_status kn_watch_publish(kn_watch *watch, const char *name, const char *data, size_t bytes, bool keep, bool last);

/* Adds a watcher. `seen` is the last id it saw, or NULL. *replayed: events behind that id were sent; false: the id is
 * not known, and the caller begins with the present state. The watcher may be gone already when this returns, in which
 * case *out is NULL. KN_AGAIN: too many watchers. */
kn_status kn_watch_add(kn_watch *watch, kn_watcher **out, kn_watch_fn *fn, void *context, const char *seen,
                       bool *replayed);
/* The watcher goes away by itself. */
void kn_watch_remove(kn_watch *watch, kn_watcher **watcher);

/* Sends to this watcher only, with the id of the newest event. */
kn_status kn_watch_tell(kn_watch *watch, kn_watcher **watcher, const char *name, const char *data, size_t bytes,
                        bool last);

int32_t kn_watch_count(const kn_watch *watch); /* watchers; 0 for NULL */

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#include "server/watch.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

typedef struct kept {
    uint64_t number; /* 0: empty */
    const char *name;
    char *data;
    size_t bytes;
} kept;

struct kn_watcher {
    kn_watch_fn *fn;
    void *context;
    kn_watcher *next;
};

struct kn_watch {
    uint32_t start;
    uint64_t number;                 /* of the newest event */
    uint64_t forgotten;              /* events up to and with this number are kept no more */
    uint64_t ended;                  /* the newest one's, if it was the last; else 0 */
    kept ring[KN_WATCH_EVENTS_KEPT]; /* in order of number from `first` on */
    int32_t first, count;
    kn_watcher *watchers;
    int32_t watcher_count;
};

kn_status kn_watch_create(kn_watch **out, uint32_t start)
{
    kn_watch *w = kn_alloc(sizeof *w);
    if (!w) return KN_NOMEM;
    w->start = start;
    *out = w;
    return KN_OK;
}

void kn_watch_destroy(kn_watch **watch)
{
    kn_watch *w = *watch;
    if (!w) return;
    for (int32_t i = 0; i < KN_WATCH_EVENTS_KEPT; i++) kn_free(w->ring[i].data);
    for (kn_watcher *watcher = w->watchers, *next; watcher; watcher = next) {
        next = watcher->next;
        kn_free(watcher);
    }
    kn_free(w);
    *watch = NULL;
}

static kn_watch_event event_of(const kn_watch *w, uint64_t number, const char *name, const char *data, size_t bytes,
                               bool last)
{
    kn_watch_event event = {.name = name, .data = data, .bytes = bytes, .last = last};
    snprintf(event.id, sizeof event.id, "%08" PRIx32 "-%" PRIu64, w->start, number);
    return event;
}

/* Takes `data`. */
static void keep_event(kn_watch *w, uint64_t number, const char *name, char *data, size_t bytes)
{
    int32_t at = (w->first + w->count) % KN_WATCH_EVENTS_KEPT;
    if (w->count == KN_WATCH_EVENTS_KEPT) {
        w->forgotten = w->ring[at].number;
        kn_free(w->ring[at].data);
        w->first = (w->first + 1) % KN_WATCH_EVENTS_KEPT;
    } else {
        w->count++;
    }
    w->ring[at] = (kept){.number = number, .name = name, .data = data, .bytes = bytes};
}

static void drop(kn_watch *w, kn_watcher **link)
{
    kn_watcher *gone = *link;
    *link = gone->next;
    kn_free(gone);
    w->watcher_count--;
}

kn_status kn_watch_publish(kn_watch *w, const char *name, const char *data, size_t bytes, bool keep, bool last)
{
    if (bytes > KN_WATCH_EVENT_BYTES_MAX)
        return kn_fail(KN_INVALID, "an event of %zu bytes; at most %d", bytes, KN_WATCH_EVENT_BYTES_MAX);
    char *copy = keep ? kn_strndup(data, bytes) : NULL;
    if (keep && !copy) return KN_NOMEM;
    const uint64_t number = ++w->number;
    const kn_watch_event event = event_of(w, number, name, data, bytes, last);
    for (kn_watcher **link = &w->watchers; *link;) {
        kn_watcher *watcher = *link;
        if (watcher->fn(watcher->context, &event) != KN_OK || last)
            drop(w, link);
        else
            link = &watcher->next;
    }
    if (keep) keep_event(w, number, name, copy, bytes);
    w->ended = last ? number : 0;
    return KN_OK;
}

/* Number of a seen event, 0 where the present state was told before there was any; false: an id of another start, or
 * none. */
static bool read_seen(const kn_watch *w, const char *seen, uint64_t *number)
{
    uint32_t start;
    int end = 0;
    if (!seen || strlen(seen) >= KN_WATCH_ID_BYTES) return false;
    if (sscanf(seen, "%8" SCNx32 "-%19" SCNu64 "%n", &start, number, &end) != 2 || seen[end]) return false;
    return start == w->start && *number <= w->number;
}

kn_status kn_watch_add(kn_watch *w, kn_watcher **out, kn_watch_fn *fn, void *context, const char *seen, bool *replayed)
{
    *out = NULL;
    *replayed = false;
    if (w->watcher_count == KN_WATCHERS_OF_ONE_MAX)
        return kn_fail(KN_AGAIN, "%d streams follow this job already", KN_WATCHERS_OF_ONE_MAX);
    kn_watcher *watcher = kn_alloc(sizeof *watcher);
    if (!watcher) return KN_NOMEM;
    *watcher = (kn_watcher){.fn = fn, .context = context, .next = w->watchers};
    w->watchers = watcher;
    w->watcher_count++;
    uint64_t number;
    if (read_seen(w, seen, &number) && number >= w->forgotten) {
        *replayed = true;
        for (int32_t i = 0; i < w->count; i++) {
            const kept *k = &w->ring[(w->first + i) % KN_WATCH_EVENTS_KEPT];
            if (k->number <= number) continue;
            const kn_watch_event event = event_of(w, k->number, k->name, k->data, k->bytes, k->number == w->ended);
            if (fn(context, &event) != KN_OK || event.last) {
                drop(w, &w->watchers);
                return KN_OK;
            }
        }
    }
    *out = watcher;
    return KN_OK;
}

void kn_watch_remove(kn_watch *w, kn_watcher **watcher)
{
    for (kn_watcher **link = &w->watchers; *link; link = &(*link)->next)
        if (*link == *watcher) {
            drop(w, link);
            break;
        }
    *watcher = NULL;
}

kn_status kn_watch_tell(kn_watch *w, kn_watcher **watcher, const char *name, const char *data, size_t bytes, bool last)
{
    const kn_watch_event event = event_of(w, w->number, name, data, bytes, last);
    if ((*watcher)->fn((*watcher)->context, &event) != KN_OK || last) kn_watch_remove(w, watcher);
    return KN_OK;
}

int32_t kn_watch_count(const kn_watch *w)
{
    return w ? w->watcher_count : 0;
}

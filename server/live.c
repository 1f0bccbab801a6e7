/* SPDX-License-Identifier: Apache-2.0
 *
 * One hash table by id; and a slot table by key, where a key is (generation << 32 | slot + 1): a key that has been
 * given back never means another job. */
#include "server/live.h"

#include <string.h>

#include "base/mem.h"
#include "server/watch.h"

enum { BUCKETS_START = 1024, SLOTS_START = 256 };

typedef struct slot {
    kn_live *live; /* NULL: free */
    uint32_t generation;
    uint32_t next_free; /* slot + 1; 0: none */
} slot;

struct kn_live_table {
    kn_live **buckets; /* [bucket_count], a power of two */
    size_t bucket_count, count;
    slot *slots; /* [slot_count] */
    uint32_t slot_count, free_slot;
    kn_live_counts counts;
    int64_t finished_max;
    kn_live *newest, *oldest; /* finished ones */
};

/* ---- hash ---- */

/* FNV-1a over the random digits of an id. */
static size_t hash(const char *id)
{
    uint64_t h = UINT64_C(14695981039346656037);
    for (const char *c = id; *c; c++) h = (h ^ (unsigned char)*c) * UINT64_C(1099511628211);
    return (size_t)(h ^ h >> 32);
}

static kn_live **bucket_of(kn_live_table *t, const char *id)
{
    return &t->buckets[hash(id) & (t->bucket_count - 1)];
}

static kn_status grow(kn_live_table *t)
{
    if (t->count < t->bucket_count) return KN_OK;
    const size_t old_count = t->bucket_count;
    kn_live **old = t->buckets, **fresh = kn_alloc_array(old_count * 2, sizeof *fresh);
    if (!fresh) return KN_NOMEM;
    t->buckets = fresh;
    t->bucket_count = old_count * 2;
    for (size_t i = 0; i < old_count; i++)
        for (kn_live *live = old[i], *next; live; live = next) {
            next = live->chain;
            kn_live **bucket = bucket_of(t, live->job.id);
            live->chain = *bucket;
            *bucket = live;
        }
    kn_free(old);
    return KN_OK;
}

/* ---- finished jobs by last use ---- */

static void unlink_finished(kn_live_table *t, kn_live *live)
{
    *(live->newer ? &live->newer->older : &t->newest) = live->older;
    *(live->older ? &live->older->newer : &t->oldest) = live->newer;
    live->newer = live->older = NULL;
}

static void link_newest(kn_live_table *t, kn_live *live)
{
    live->older = t->newest;
    live->newer = NULL;
    *(t->newest ? &t->newest->newer : &t->oldest) = live;
    t->newest = live;
}

static size_t text_bytes(const kn_job *job)
{
    const char *const texts[] = {job->prompt, job->request, job->extra, job->error_message, job->checkpoint, job->blob};
    size_t bytes = sizeof(kn_live);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) bytes += texts[i] ? strlen(texts[i]) + 1 : 0;
    return bytes;
}

static bool may_forget(const kn_live *live)
{
    return live->phase == KN_LIVE_ENDED && live->pins == 0 && kn_watch_count(live->watch) == 0;
}

static kn_status take_key(kn_live_table *t, kn_live *live);

/* ---- life ---- */

kn_status kn_live_create(kn_live_table **out)
{
    kn_live_table *t = kn_alloc(sizeof *t);
    if (!t) return KN_NOMEM;
    t->bucket_count = BUCKETS_START;
    t->buckets = kn_alloc_array(t->bucket_count, sizeof *t->buckets);
    if (!t->buckets) {
        kn_free(t);
        return KN_NOMEM;
    }
    t->finished_max = KN_LIVE_FINISHED_MAX;
    *out = t;
    return KN_OK;
}

static void release(kn_live *live)
{
    kn_watch_destroy(&live->watch);
    kn_video_summary_release(&live->summary);
    kn_job_release(&live->job);
    kn_free(live->preview);
    kn_free(live->body);
    kn_free(live);
}

void kn_live_destroy(kn_live_table **table)
{
    kn_live_table *t = *table;
    if (!t) return;
    for (size_t i = 0; i < t->bucket_count; i++)
        for (kn_live *live = t->buckets[i], *next; live; live = next) {
            next = live->chain;
            release(live);
        }
    kn_free(t->buckets);
    kn_free(t->slots);
    kn_free(t);
    *table = NULL;
}

kn_status kn_live_add(kn_live_table *t, kn_job *job, kn_live **out)
{
    kn_status st = KN_OK;
    kn_live *live = kn_alloc(sizeof *live);
    if (!live) return KN_NOMEM;
    KN_TRY(grow(t));
    KN_TRY(kn_video_summary_read(&live->summary, job));
    KN_TRY(take_key(t, live));
    live->job = *job;
    job->prompt = job->request = job->extra = job->error_message = job->checkpoint = job->blob = NULL;
    live->device = -1;
    live->stop.state = KN_JOB_QUEUED;
    live->bytes = text_bytes(&live->job);
    kn_live **bucket = bucket_of(t, live->job.id);
    live->chain = *bucket;
    *bucket = live;
    t->count++;
    t->counts.unfinished++;
    if (kn_job_state_final(live->job.state)) kn_live_ended(t, live);
    *out = live;
    return KN_OK;
fail:
    kn_video_summary_release(&live->summary);
    kn_free(live);
    return st;
}

kn_live *kn_live_find(kn_live_table *t, const char *id)
{
    for (kn_live *live = *bucket_of(t, id); live; live = live->chain)
        if (strcmp(live->job.id, id) == 0) {
            if (live->phase == KN_LIVE_ENDED && t->newest != live) {
                unlink_finished(t, live);
                link_newest(t, live);
            }
            return live;
        }
    return NULL;
}

kn_lease kn_live_lease(const kn_live *live)
{
    kn_lease lease = {.epoch = live->job.epoch};
    memcpy(lease.job, live->job.id, sizeof lease.job);
    return lease;
}

/* ---- keys ---- */

kn_live *kn_live_by_key(const kn_live_table *t, uint64_t key)
{
    const uint64_t index = (key & UINT32_MAX) - 1;
    if (key == 0 || index >= t->slot_count || t->slots[index].generation != key >> 32) return NULL;
    return t->slots[index].live;
}

static kn_status grow_slots(kn_live_table *t)
{
    const uint32_t old = t->slot_count, count = old ? old * 2 : SLOTS_START;
    slot *slots = kn_realloc(t->slots, (size_t)count * sizeof *slots);
    if (!slots) return KN_NOMEM;
    t->slots = slots;
    t->slot_count = count;
    for (uint32_t i = count; i > old; i--) {
        slots[i - 1] = (slot){.generation = 1, .next_free = t->free_slot};
        t->free_slot = i;
    }
    return KN_OK;
}

static kn_status take_key(kn_live_table *t, kn_live *live)
{
    kn_status st = KN_OK;
    if (t->free_slot == 0) KN_TRY(grow_slots(t));
    slot *s = &t->slots[t->free_slot - 1];
    live->key = (uint64_t)s->generation << 32 | t->free_slot;
    t->free_slot = s->next_free;
    s->live = live;
fail:
    return st;
}

static void drop_key(kn_live_table *t, kn_live *live)
{
    if (live->key == 0) return;
    const uint32_t index = (uint32_t)(live->key & UINT32_MAX) - 1;
    t->slots[index] = (slot){.generation = t->slots[index].generation + 1, .next_free = t->free_slot};
    t->free_slot = index + 1;
    live->key = 0;
}

/* ---- ends ---- */

void kn_live_ended(kn_live_table *t, kn_live *live)
{
    drop_key(t, live);
    live->phase = KN_LIVE_ENDED;
    live->device = -1;
    live->in_slice = false;
    live->size = (kn_catalog_size){0};
    kn_free(live->preview);
    live->preview = NULL;
    live->preview_bytes = 0;
    live->bytes = text_bytes(&live->job);
    link_newest(t, live);
    t->counts.unfinished--;
    t->counts.finished++;
    t->counts.finished_bytes += live->bytes;
}

kn_status kn_live_revived(kn_live_table *t, kn_live *live)
{
    const kn_status st = take_key(t, live);
    if (st != KN_OK) return st;
    unlink_finished(t, live);
    t->counts.unfinished++;
    t->counts.finished--;
    t->counts.finished_bytes -= live->bytes;
    kn_free(live->body);
    live->body = NULL;
    live->body_bytes = 0;
    live->phase = KN_LIVE_WAITING;
    live->stop = (kn_live_stop){.state = KN_JOB_QUEUED};
    live->next = (kn_slice){.kind = KN_SLICE_TEXT};
    live->progress = 0;
    live->job.state = KN_JOB_QUEUED;
    live->job.attempts = 0;
    live->job.started_at = live->job.completed_at = live->job.expires_at = 0;
    live->job.error_code[0] = '\0';
    char **const texts[] = {&live->job.error_message, &live->job.checkpoint, &live->job.blob};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        kn_free(*texts[i]);
        *texts[i] = NULL;
    }
    kn_watch_destroy(&live->watch); /* its events told of an end */
    return KN_OK;
}

void kn_live_forget(kn_live_table *t, kn_live **handle)
{
    kn_live *live = *handle;
    if (!live || !may_forget(live)) return;
    unlink_finished(t, live);
    t->counts.finished--;
    t->counts.finished_bytes -= live->bytes;
    t->count--;
    kn_live **link = bucket_of(t, live->job.id);
    while (*link != live) link = &(*link)->chain;
    *link = live->chain;
    release(live);
    *handle = NULL;
}

void kn_live_set_finished_max(kn_live_table *t, int64_t finished_max)
{
    t->finished_max = finished_max;
}

void kn_live_keep_body(kn_live_table *t, kn_live *live, const char *body, size_t bytes)
{
    if (live->phase != KN_LIVE_ENDED || live->body || bytes > KN_LIVE_BODY_BYTES) return;
    live->body = kn_strndup(body, bytes);
    if (!live->body) return;
    live->body_bytes = bytes;
    live->bytes += bytes + 1;
    t->counts.finished_bytes += bytes + 1;
}

void kn_live_trim(kn_live_table *t)
{
    for (kn_live *live = t->oldest, *newer; live; live = newer) {
        if (t->counts.finished <= t->finished_max && t->counts.finished_bytes <= KN_LIVE_FINISHED_BYTES) return;
        newer = live->newer;
        kn_live_forget(t, &live);
    }
}

void kn_live_forget_ended(kn_live_table *t, int64_t before)
{
    for (kn_live *live = t->oldest, *newer; live; live = newer) {
        newer = live->newer;
        if (live->job.state != KN_JOB_COMPLETED && live->job.completed_at <= before) kn_live_forget(t, &live);
    }
}

void kn_live_each_unfinished(kn_live_table *t, kn_live_fn *fn, void *context)
{
    for (uint32_t i = 0; i < t->slot_count; i++)
        if (t->slots[i].live) fn(context, t->slots[i].live);
}

kn_live_counts kn_live_count(const kn_live_table *t)
{
    return t->counts;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Jobs in memory: every unfinished one, and those finished ones somebody asked for lately, so that a poll is answered
 * without the disk.
 *
 * The table never lets go of an unfinished job, of one that is watched (watch.h) or one that is pinned; of the others
 * it keeps the latest used, bounded by number and bytes. Belongs to the loop thread. */
#ifndef KN_SERVER_LIVE_H
#define KN_SERVER_LIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/generation.h"
#include "server/runner.h"
#include "server/catalog.h"
#include "server/job.h"
#include "server/video_response.h"

enum {
    KN_LIVE_FINISHED_MAX = 20000, /* finished jobs kept in memory, unless kn_live_set_finished_max says otherwise */
    KN_LIVE_FINISHED_BYTES = 128 << 20, /* of finished jobs together, whatever their number */
    KN_LIVE_BODY_BYTES = 16 << 10,      /* longest body that is kept */
};

typedef struct kn_live_table kn_live_table;
typedef struct kn_watch kn_watch; /* watch.h */

/* Where an unfinished job is between the store, the scheduler and a device. */
typedef enum kn_live_phase {
    KN_LIVE_WAITING,  /* on no device */
    KN_LIVE_CLAIMING, /* the store is asked for a lease */
    KN_LIVE_STARTING, /* a worker is asked to take it */
    KN_LIVE_RESIDENT, /* on a device, in a slice or between two */
    KN_LIVE_LEAVING,  /* a worker is asked to let it go */
    KN_LIVE_ENDING,   /* the store is asked to write its end */
    KN_LIVE_ENDED,
} kn_live_phase;

/* Why a job is to be ended as soon as its device allows. */
typedef struct kn_live_stop {
    kn_job_state state; /* KN_JOB_CANCELLED or KN_JOB_FAILED; KN_JOB_QUEUED: go on */
    char code[KN_ERROR_CODE_BYTES];
    char message[256];
} kn_live_stop;

typedef struct kn_live {
    kn_job job;
    kn_video_summary summary;
    kn_catalog_model *model; /* NULL: the catalog has no such model any more */
    kn_catalog_size size;    /* zero once finished */
    uint64_t key;            /* the scheduler's name for it; 0 once finished */

    kn_live_phase phase;
    int32_t device; /* from CLAIMING to LEAVING; else -1 */
    kn_slice next;  /* the slice it would run */
    kn_live_stop stop;
    bool in_slice;          /* of the slice under way on its device */
    int64_t alone_until_ns; /* monotonic; a group it was in was lost: none until then */
    bool asked;             /* ENDING: the store has been asked and has not answered */
    kn_output output;       /* ENDING without stop: to be published */
    double stage_seconds[KN_SLICE_DONE];
    int32_t progress; /* percent; the most that was shown */

    void *preview; /* the last picture; owned */
    size_t preview_bytes;
    const char *preview_mime; /* a literal */
    int64_t preview_number;   /* counts pictures */
    int64_t preview_asked_ns; /* monotonic; 0: never */

    char *body; /* what a poll of the finished job is answered, NULL: not asked for yet; owned */
    size_t body_bytes;

    kn_watch *watch;               /* NULL: nobody has watched it yet */
    int32_t pins;                  /* requests that wait for something about it */
    struct kn_live *newer, *older; /* finished ones by last use: the table's own, as the rest */
    struct kn_live *chain;
    size_t bytes;
} kn_live;

/* The lease it has, or had last. */
kn_lease kn_live_lease(const kn_live *live);

kn_status kn_live_create(kn_live_table **out);
void kn_live_destroy(kn_live_table **table);

/* Takes the job over (its strings are cleared) with what a client sees of it. KN_CORRUPT: its request cannot be read.
 * KN_NOMEM. The job must not be in the table. */
kn_status kn_live_add(kn_live_table *table, kn_job *job, kn_live **out);

/* NULL: not in memory. Counts as a use. */
kn_live *kn_live_find(kn_live_table *table, const char *id);
kn_live *kn_live_by_key(const kn_live_table *table, uint64_t key);

/* job.state is final now: the job keeps what answers polls, and may be forgotten from now on. */
void kn_live_ended(kn_live_table *table, kn_live *live);

/* A finished job is queued again. KN_NOMEM: it is not. */
kn_status kn_live_revived(kn_live_table *table, kn_live *live);

/* Forgets a finished job that is neither watched nor pinned. */
void kn_live_forget(kn_live_table *table, kn_live **live);

/* From the next kn_live_trim on; at least 1. */
void kn_live_set_finished_max(kn_live_table *table, int64_t finished_max);

/* Keeps a copy of a finished job's video object, which stays as it is: `bytes` of JSON. Too long a text is not kept,
 * and neither is one there is no memory for. */
void kn_live_keep_body(kn_live_table *table, kn_live *live, const char *body, size_t bytes);

/* Forgets the longest unused finished jobs beyond the limits. */
void kn_live_trim(kn_live_table *table);

/* Forgets finished jobs without a result that ended at `before` (wall clock, microseconds) or earlier. */
void kn_live_forget_ended(kn_live_table *table, int64_t before);

typedef void kn_live_fn(void *context, kn_live *live);
/* Every unfinished job, in the order of their keys' slots. The callback may end jobs but not add any. */
void kn_live_each_unfinished(kn_live_table *table, kn_live_fn *fn, void *context);

typedef struct kn_live_counts {
    int32_t unfinished, finished;
    size_t finished_bytes;
} kn_live_counts;
kn_live_counts kn_live_count(const kn_live_table *table);

#endif

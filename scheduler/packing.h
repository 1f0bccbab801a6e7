/* SPDX-License-Identifier: Apache-2.0
 *
 * Deadline packing of jobs whose slices may run in groups (packing.c says how). */
#ifndef KN_SCHEDULER_PACKING_H
#define KN_SCHEDULER_PACKING_H

#include "scheduler/state.h"

enum {
    KN_PACKING_JOBS = 24
}; /* of a plan, those with the earliest deadlines; sums of the queue stand for the others */

/* Slices of one kind that groups can share. */
typedef struct kn_malleable {
    double slices;                             /* left */
    double each[1 + KN_SCHEDULER_DEGREE_MAX];  /* ns of one on so many devices */
    int32_t best[1 + KN_SCHEDULER_DEGREE_MAX]; /* devices to use of so many: more are not always faster */
} kn_malleable;

typedef struct kn_packed {
    int32_t slot;
    int64_t deadline_ns, ready_ns; /* ready: the end of the slice that runs, or now */
    int64_t head_ns, tail_ns;      /* before and after the slices that can be shared, on one device */
    kn_malleable denoise, decode;
    int32_t smallest, largest; /* group allowed, where there is room; smallest 0: 1 */
    float burden;              /* as kn_queue_node.burden */
    bool dropped;              /* goes without a place */
    /* Where it lies. */
    bool fits;       /* in time */
    bool eased;      /* with a margin */
    int32_t devices; /* now; 0: later */
    int64_t start_ns, done_ns;
} kn_packed;

typedef struct kn_packing {
    int64_t now_ns;
    uint64_t devices;                          /* bit per device */
    int64_t free_ns[KN_SCHEDULER_DEVICES_MAX]; /* when each can start something */
    int32_t largest;                           /* group there can be */
    int64_t total_ns;                          /* sum of done_ns - now_ns of the jobs that fit */
    int32_t count;
    kn_packed jobs[KN_PACKING_JOBS]; /* in order of deadline */
} kn_packing;

/* What one job needs from now on, by the fits of one device; slot and burden are not set. */
void kn_packing_job(const kn_scheduler *s, const kn_core_job *job, int32_t device, int64_t now_ns, kn_packed *out);
/* Those of its slices that come first. */
static inline kn_malleable *kn_packed_next(kn_packed *job)
{
    return job->denoise.slices > 0 ? &job->denoise : &job->decode;
}

/* Device time, ns, it takes to be just in time; as much as it can use when it will be late. */
double kn_packing_demand(const kn_packed *job, int64_t now_ns);
/* Shortest time, ns, in which it can be done. */
double kn_packing_least(const kn_packed *job);
/* The planned jobs of a pool and its devices. */
void kn_packing_collect(const kn_scheduler *s, int32_t pool, int64_t now_ns, kn_packing *out);
/* Adds a job where its deadline belongs; the last one gives way when there are too many. */
void kn_packing_add(kn_packing *packing, const kn_packed *job);
/* Lays all jobs that are not dropped; returns one point for each that fits, and one more with a margin. */
int32_t kn_packing_lay(kn_packing *packing);
/* Drops jobs until the rest fit; returns their points. */
int32_t kn_packing_resolve(kn_packing *packing);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#include "scheduler/check.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

#define IDLE_MAX_NS INT64_C(10000000000)

enum { NOWHERE = -1, HELD_MAX = 2 * KN_SCHEDULER_RESIDENTS_MAX };

typedef struct checked_job {
    kn_job_progress progress;
    int64_t served_ns;
    int32_t saved_step; /* of its checkpoint */
    int32_t device;     /* where it resides; NOWHERE */
    bool there, running, releasing, ended;
} checked_job;

typedef struct checked_device {
    bool up, busy;
    int32_t domain, leader; /* leader: of the slice it is busy with */
    kn_device_seed seed;
    int64_t idle_ns; /* since when it has idled while jobs waited; 0: it has not */
    uint32_t models;
    uint64_t memory_bytes;
    uint64_t held[HELD_MAX]; /* keys of the jobs that hold memory there */
    int32_t held_count;
} checked_device;

struct kn_check {
    const kn_trace *trace;
    checked_job *jobs; /* [trace->count] */
    checked_device devices[KN_SCHEDULER_DEVICES_MAX];
    int32_t pack, degree_max, waiting; /* waiting: jobs that reside nowhere and could be started */
    bool draining;
    int64_t wait_max_ns, longest_wait_ns, violations;
    char first[KN_SCHEDULER_REASON_BYTES];
};

static void KN_PRINTF(3, 4) violated(kn_check *c, int64_t now_ns, const char *format, ...)
{
    if (c->violations++ > 0) return;
    va_list arguments;
    const int bytes = snprintf(c->first, sizeof c->first, "%.3f s: ", (double)now_ns * 1e-9);
    va_start(arguments, format);
    vsnprintf(c->first + bytes, sizeof c->first - (size_t)bytes, format, arguments);
    va_end(arguments);
}

kn_status kn_check_create(kn_check **out, const kn_trace *trace, int32_t pack, int32_t degree_max, int64_t wait_max_ns)
{
    kn_check *c = kn_alloc(sizeof *c);
    if (!c) return KN_NOMEM;
    c->trace = trace;
    c->pack = pack;
    c->degree_max = degree_max;
    c->wait_max_ns = wait_max_ns;
    c->jobs = kn_alloc_array((size_t)trace->count, sizeof *c->jobs);
    if (!c->jobs) {
        kn_check_destroy(&c);
        return KN_NOMEM;
    }
    for (int32_t i = 0; i < trace->count; i++) c->jobs[i].device = NOWHERE;
    *out = c;
    return KN_OK;
}

void kn_check_destroy(kn_check **check)
{
    if (!*check) return;
    kn_free((*check)->jobs);
    kn_free(*check);
    *check = NULL;
}

/* ---- the account ---- */

static const kn_job_shape *shape_of(const kn_check *c, uint64_t key)
{
    return &c->trace->jobs[key].shape;
}

static bool is_waiting(const checked_job *job)
{
    return job->there && !job->ended && !job->releasing && job->device == NOWHERE;
}

static bool holds(const checked_job *job)
{
    return job->device != NOWHERE && !job->releasing;
}

static void drop_held(checked_device *d, uint64_t key)
{
    for (int32_t i = 0; i < d->held_count; i++)
        if (d->held[i] == key) d->held[i--] = d->held[--d->held_count];
}

/* Every write to a job goes through here, so that the sums stay right. */
static void set_job(kn_check *c, uint64_t key, checked_job job)
{
    const checked_job *was = &c->jobs[key];
    c->waiting += is_waiting(&job) - is_waiting(was);
    if (holds(was)) drop_held(&c->devices[was->device], key);
    c->jobs[key] = job;
    if (!holds(&job)) return;
    checked_device *d = &c->devices[job.device];
    if (d->held_count < HELD_MAX)
        d->held[d->held_count++] = key;
    else
        violated(c, job.served_ns, "%d jobs reside on device %d", HELD_MAX, job.device);
}

static void served(kn_check *c, uint64_t key, int64_t now_ns)
{
    const int64_t wait = now_ns - c->jobs[key].served_ns;
    if (wait > c->longest_wait_ns) c->longest_wait_ns = wait;
    if (wait > c->wait_max_ns)
        violated(c, now_ns, "job %d was without service for %.1f s, longer than %.1f s", (int)key, (double)wait * 1e-9,
                 (double)c->wait_max_ns * 1e-9);
}

static void leave(kn_check *c, uint64_t key, int32_t step)
{
    checked_job job = c->jobs[key];
    job.device = NOWHERE;
    job.running = job.releasing = false;
    job.progress = (kn_job_progress){.step = step};
    job.saved_step = step;
    set_job(c, key, job);
}

static void free_members(kn_check *c, int32_t leader)
{
    for (int32_t i = 0; i < KN_SCHEDULER_DEVICES_MAX; i++)
        if (c->devices[i].busy && c->devices[i].leader == leader) c->devices[i].busy = false;
}

static void end_slice(kn_check *c, const kn_change_slice *slice, bool failed, int64_t now_ns)
{
    free_members(c, slice->device);
    for (int32_t i = 0; i < slice->count; i++) {
        const kn_slice_job *end = &slice->jobs[i];
        checked_job job = c->jobs[end->key];
        job.running = false;
        job.served_ns = now_ns;
        job.progress = end->progress;
        job.saved_step = end->saved_step;
        if (end->progress.done) {
            job.ended = true;
            job.device = NOWHERE;
        }
        set_job(c, end->key, job);
        if (failed) leave(c, end->key, end->progress.step);
    }
}

static void device_down(kn_check *c, int32_t device)
{
    const bool busy = c->devices[device].busy;
    const int32_t leader = c->devices[device].leader;
    if (busy) free_members(c, leader);
    c->devices[device].up = false;
    for (int32_t i = 0; i < c->trace->count; i++) {
        const checked_job *job = &c->jobs[i];
        if (job->device == device || (busy && job->running && job->device == leader))
            leave(c, (uint64_t)i, c->jobs[i].saved_step);
    }
}

void kn_check_change(kn_check *c, const kn_change *change, int64_t now_ns)
{
    const uint64_t key = change->job.key;
    checked_job job;
    switch (change->kind) {
    case KN_CHANGE_JOB_ADMITTED:
        set_job(c, key,
                (checked_job){.there = true,
                              .served_ns = now_ns,
                              .device = NOWHERE,
                              .saved_step = change->job.progress.step,
                              .progress = {.step = change->job.progress.step}});
        break;
    case KN_CHANGE_JOB_REMOVED:
        job = c->jobs[key];
        job.ended = true;
        set_job(c, key, job);
        break;
    case KN_CHANGE_JOB_RELEASED: leave(c, key, change->job.progress.step); break;
    case KN_CHANGE_DEVICE_UP:
        c->devices[change->device.index].up = true;
        c->devices[change->device.index].domain = change->device.domain;
        c->devices[change->device.index].seed = change->device.seed;
        c->devices[change->device.index].models = change->device.models;
        c->devices[change->device.index].memory_bytes = change->device.memory_bytes;
        break;
    case KN_CHANGE_DEVICE_DOWN: device_down(c, change->device.index); break;
    case KN_CHANGE_MODEL_LOADED: c->devices[change->device.index].models = change->device.models; break;
    case KN_CHANGE_SLICE_DONE: end_slice(c, &change->slice, false, now_ns); break;
    case KN_CHANGE_SLICE_FAILED: end_slice(c, &change->slice, true, now_ns); break;
    case KN_CHANGE_DRAIN: c->draining = change->drain; break;
    case KN_CHANGES: break;
    }
}

/* ---- assignments ---- */

/* On one of its devices, while the slice runs. */
static void check_memory(kn_check *c, const kn_assignment *a, int32_t device, int64_t now_ns)
{
    const checked_device *d = &c->devices[device];
    uint64_t bytes = 0;
    /* A helper's share, and in a shared decode slice the leader's beside the whole decoder. */
    for (int32_t i = 0; a->degree > 1 && i < a->count; i++) {
        const kn_job_shape *shape = shape_of(c, a->jobs[i]);
        if (a->stage == KN_STAGE_DECODE)
            bytes += shape->decoder_bytes;
        else if (device != a->device)
            bytes += shape->workspace_bytes;
    }
    for (int m = 0; m < c->trace->model_count; m++)
        if (d->models >> m & 1) bytes += c->trace->models[m].resident_bytes;
    for (int32_t i = 0; i < d->held_count; i++) {
        const checked_job *job = &c->jobs[d->held[i]];
        const kn_job_shape *shape = shape_of(c, d->held[i]);
        bytes += shape->state_bytes;
        const bool decodes = job->progress.decoded > 0 || (job->running && a->stage == KN_STAGE_DECODE);
        if (decodes) bytes += shape->decoder_bytes;
        if (job->running && a->stage <= KN_STAGE_DENOISE) bytes += shape->workspace_bytes;
    }
    if (bytes > d->memory_bytes)
        violated(c, now_ns, "device %d needs %.2f GB of %.2f GB", device, (double)bytes * 1e-9,
                 (double)d->memory_bytes * 1e-9);
}

static void check_member(kn_check *c, const kn_assignment *a, int32_t i, int64_t now_ns)
{
    const uint64_t key = a->jobs[i];
    const bool starts = a->start_mask >> i & 1;
    if (key >= (uint64_t)c->trace->count || !c->jobs[key].there || c->jobs[key].ended) {
        violated(c, now_ns, "job %d is not there", (int)key);
        return;
    }
    checked_job job = c->jobs[key];
    if (job.running) violated(c, now_ns, "job %d is in two slices", (int)key);
    if (job.releasing) violated(c, now_ns, "job %d is started before its release is confirmed", (int)key);
    if (starts && job.device != NOWHERE) violated(c, now_ns, "job %d resides on two devices", (int)key);
    if (!starts && job.device != a->device)
        violated(c, now_ns, "job %d does not reside on device %d", (int)key, a->device);
    if (shape_of(c, key)->model != a->model) violated(c, now_ns, "a pack of two models on device %d", a->device);
    const kn_stage next = kn_job_next_stage(shape_of(c, key), &job.progress);
    if (next != a->stage)
        violated(c, now_ns, "job %d runs %s, its next slice is %s", (int)key, kn_stage_name(a->stage),
                 kn_stage_name(next));
    served(c, key, now_ns);
    job.running = true;
    job.device = a->device;
    set_job(c, key, job);
}

static void check_group(kn_check *c, const kn_assignment *a, int64_t now_ns)
{
    if (a->degree < 1 || a->degree > c->degree_max || (a->degree > 1 && !kn_cost_is_shareable(a->stage)))
        violated(c, now_ns, "a %s slice on %d devices", kn_stage_name(a->stage), a->degree);
    if (a->members[0] != a->device) violated(c, now_ns, "device %d does not lead its group", a->device);
    for (int32_t i = 0; i < a->degree && i < KN_SCHEDULER_DEGREE_MAX; i++) {
        checked_device *member = &c->devices[a->members[i]];
        if (!member->up) violated(c, now_ns, "device %d is down", a->members[i]);
        if (member->busy) violated(c, now_ns, "device %d is in two slices", a->members[i]);
        if (i > 0 && (member->domain == 0 || member->domain != c->devices[a->device].domain))
            violated(c, now_ns, "devices %d and %d are of two domains", a->device, a->members[i]);
        if (memcmp(&member->seed, &c->devices[a->device].seed, sizeof member->seed) != 0)
            violated(c, now_ns, "devices %d and %d are of two kinds", a->device, a->members[i]);
        member->busy = true;
        member->leader = a->device;
    }
}

void kn_check_assignment(kn_check *c, const kn_assignment *a, int64_t now_ns)
{
    checked_device *d = &c->devices[a->device];
    check_group(c, a, now_ns);
    if (c->draining) violated(c, now_ns, "device %d starts a slice while draining", a->device);
    if (a->count < 1 || a->count > c->pack) violated(c, now_ns, "a pack of %d jobs", a->count);
    for (int32_t i = 0; i < a->release_count; i++) {
        checked_job job = c->jobs[a->release[i]];
        if (job.device != a->device || job.running)
            violated(c, now_ns, "job %d is released where it does not rest", (int)a->release[i]);
        job.releasing = !job.ended;
        if (job.ended) job.device = NOWHERE;
        set_job(c, a->release[i], job);
    }
    d->models &= ~a->unload_models;
    if (a->load_model) d->models |= 1u << a->model;
    for (int32_t i = 0; i < a->degree && i < KN_SCHEDULER_DEGREE_MAX; i++) {
        checked_device *member = &c->devices[a->members[i]];
        if (a->load_members >> i & 1) member->models |= 1u << a->model;
        if (!(member->models >> a->model & 1)) violated(c, now_ns, "device %d has not loaded the model", a->members[i]);
    }
    for (int32_t i = 0; i < a->count && i < KN_SCHEDULER_PACK_MAX; i++) check_member(c, a, i, now_ns);
    for (int32_t i = 0; i < a->degree && i < KN_SCHEDULER_DEGREE_MAX; i++) check_memory(c, a, a->members[i], now_ns);
}

void kn_check_quiet(kn_check *c, int64_t now_ns)
{
    for (int32_t i = 0; i < KN_SCHEDULER_DEVICES_MAX; i++) {
        checked_device *d = &c->devices[i];
        if (c->draining || c->waiting == 0 || !d->up || d->busy)
            d->idle_ns = 0;
        else if (d->idle_ns == 0)
            d->idle_ns = now_ns;
        else if (now_ns - d->idle_ns > IDLE_MAX_NS)
            violated(c, now_ns, "device %d has idled for %.1f s, and %d jobs wait", i,
                     (double)(now_ns - d->idle_ns) * 1e-9, c->waiting);
    }
}

void kn_check_end(kn_check *c, int64_t now_ns)
{
    for (int32_t i = 0; i < c->trace->count; i++) {
        if (c->jobs[i].ended) continue;
        if (c->jobs[i].there) violated(c, now_ns, "job %d was lost at step %d", i, c->jobs[i].progress.step);
    }
}

int64_t kn_check_violations(const kn_check *c, const char **first)
{
    *first = c->first;
    return c->violations;
}

int64_t kn_check_longest_wait(const kn_check *c)
{
    return c->longest_wait_ns;
}

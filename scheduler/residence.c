/* SPDX-License-Identifier: Apache-2.0
 *
 * Who resides on a device, and the memory that takes. */
#include "scheduler/state.h"

#include <assert.h>
#include <string.h>

uint64_t kn_core_need(const kn_scheduler *s, const kn_job_shape *shape)
{
    const uint64_t most = shape->workspace_bytes > shape->decoder_bytes ? shape->workspace_bytes : shape->decoder_bytes;
    return s->models[shape->model].resident_bytes + shape->state_bytes + most;
}

bool kn_core_fits(const kn_scheduler *s, const kn_job_shape *shape, int32_t device)
{
    const kn_core_device *d = &s->devices[device];
    return s->up >> device & 1 && d->terms.loadable >> shape->model & 1 &&
           kn_core_need(s, shape) <= d->terms.memory_bytes;
}

uint64_t kn_core_held(const kn_core_job *job)
{
    return job->shape.state_bytes + (job->progress.decoded > 0 ? job->shape.decoder_bytes : 0);
}

uint64_t kn_core_extra(const kn_core_job *job)
{
    switch (kn_job_next_stage(&job->shape, &job->progress)) {
    case KN_STAGE_TEXT:
    case KN_STAGE_DENOISE: return job->shape.workspace_bytes;
    case KN_STAGE_DECODE: return job->progress.decoded > 0 ? 0 : job->shape.decoder_bytes;
    case KN_STAGE_MUX:
    case KN_STAGE_DONE: break;
    }
    return 0;
}

uint64_t kn_core_share_bytes(const kn_core_job *job)
{
    switch (kn_job_next_stage(&job->shape, &job->progress)) {
    case KN_STAGE_DENOISE: return job->shape.workspace_bytes;
    case KN_STAGE_DECODE: return job->shape.decoder_bytes; /* a share's decoder is smaller */
    case KN_STAGE_TEXT:
    case KN_STAGE_MUX:
    case KN_STAGE_DONE: break;
    }
    return 0;
}

/* A leader's part of a forward takes less than the whole would; a share's decoder comes on top of the whole one. */
bool kn_core_can_lead(const kn_scheduler *s, int32_t device, const int32_t *slots, int32_t count)
{
    const kn_core_device *d = &s->devices[device];
    uint64_t bytes = d->memory_used;
    for (int32_t i = 0; i < count; i++) {
        const kn_core_job *job = &s->jobs[slots[i]];
        const kn_stage stage = kn_job_next_stage(&job->shape, &job->progress);
        if (!kn_cost_is_shareable(stage)) return false;
        bytes += kn_core_extra(job) + (stage == KN_STAGE_DECODE ? kn_core_share_bytes(job) : 0);
    }
    return bytes <= d->terms.memory_bytes;
}

bool kn_core_can_help(const kn_scheduler *s, int32_t device, int32_t leader, int32_t model, uint64_t bytes)
{
    const kn_core_device *d = &s->devices[device], *l = &s->devices[leader];
    if (device == leader || !d->up || d->busy || d->terms.domain == 0 || d->terms.domain != l->terms.domain)
        return false;
    if (memcmp(&d->terms.seed, &l->terms.seed, sizeof d->terms.seed) != 0) return false;
    if (!(d->terms.models >> model & 1)) {
        if (!(d->terms.loadable >> model & 1)) return false;
        bytes += s->models[model].resident_bytes;
    }
    return d->memory_used + bytes <= d->terms.memory_bytes;
}

void kn_core_reside(kn_scheduler *s, int32_t slot, int32_t device)
{
    kn_core_job *job = &s->jobs[slot];
    kn_core_device *d = &s->devices[device];
    assert(d->resident_count < KN_SCHEDULER_RESIDENTS_MAX);
    d->residents[d->resident_count++] = slot;
    d->memory_used += kn_core_held(job);
    if (job->last_device != KN_NO_DEVICE && job->last_device != device) s->stats.moves++;
    job->device = job->last_device = device;
    if (job->place == KN_PLACE_NOWHERE) d->fair_left_ns += job->left_ns;
}

void kn_core_leave(kn_scheduler *s, int32_t slot)
{
    const kn_core_job *job = &s->jobs[slot];
    kn_core_device *d = &s->devices[job->device];
    int32_t at = 0;
    while (d->residents[at] != slot) at++;
    d->resident_count--;
    for (; at < d->resident_count; at++) d->residents[at] = d->residents[at + 1];
    d->memory_used -= kn_core_held(job);
    for (int32_t i = 0; i < d->running_count; i++)
        if (d->running[i] == slot) d->running[i] = KN_NO_SLOT;
    if (d->shed == slot) d->shed = KN_NO_SLOT;
    if (job->place == KN_PLACE_NOWHERE) d->fair_left_ns -= job->left_ns;
}

kn_job_progress kn_core_restart(const kn_core_job *job, int32_t step)
{
    return (kn_job_progress){.step = step < job->shape.steps ? step : job->shape.steps};
}

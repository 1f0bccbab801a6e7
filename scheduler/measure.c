/* SPDX-License-Identifier: Apache-2.0
 *
 * How fast it decides with a long queue: whatever a device has just finished, the scheduler learns of it and decides
 * what comes next there. Only those two calls are timed; a job that ends is replaced outside the measurement. */
#include <string.h>

#include "base/mem.h"
#include "scheduler/simulation.h"
#include "scheduler/trace.h"

enum {
    ASKED = 2000,
    BUCKETS = 100000, /* of one nanosecond; the last holds all that took longer */
};

typedef struct measured_job {
    kn_job_shape shape;
    kn_job_progress progress;
} measured_job;

typedef struct measurement {
    kn_trace trace;
    kn_scheduler *scheduler;
    measured_job *jobs; /* [trace.count]; keys are indices, and used again */
    kn_assignment slices[KN_SCHEDULER_DEVICES_MAX];
    int64_t ends_ns[KN_SCHEDULER_DEVICES_MAX];
    int64_t now_ns;
    int64_t took[BUCKETS]; /* pairs of calls by nanoseconds */
} measurement;

static kn_status admit(measurement *m, int32_t index)
{
    const kn_trace_job *request = &m->trace.jobs[index];
    kn_change change = {.kind = KN_CHANGE_JOB_ADMITTED,
                        .job = {.key = (uint64_t)index, .shape = request->shape, .terms = request->terms}};
    change.job.terms.submitted_ns = m->now_ns;
    /* Deadlines far enough for most of them to be planned: the queue must not shrink to hopeless jobs. */
    if (request->terms.deadline_ns != KN_SCHEDULER_NO_DEADLINE)
        change.job.terms.deadline_ns = m->now_ns + (int64_t)1000000 * 1000000000 / (1 + index % 7);
    m->jobs[index] = (measured_job){.shape = request->shape};
    return kn_scheduler_event(m->scheduler, &change, m->now_ns);
}

static kn_status set_up(measurement *m, int32_t devices, int32_t queued)
{
    kn_status st = KN_OK;
    const kn_simulate_params mix = {
        .seed = 1, .mix = KN_MIX_UNIFORM, .devices = devices, .jobs = queued, .load = 1, .slo_scale = 1};
    KN_TRY(kn_trace_create(&m->trace, &mix));
    m->jobs = kn_alloc_array((size_t)queued, sizeof *m->jobs);
    if (!m->jobs) return KN_NOMEM;
    /* Ageing would be the only policy left after ten simulated minutes. */
    const kn_scheduler_params params = {
        .jobs = queued, .tenants = m->trace.tenants, .ageing_ns = KN_SCHEDULER_TIME_MAX / 2};
    KN_TRY(kn_scheduler_create(&m->scheduler, &params));
    for (int32_t i = 0; i < m->trace.model_count; i++)
        KN_TRY(kn_scheduler_set_model(m->scheduler, i, &m->trace.models[i]));
    for (int32_t i = 0; i < devices; i++) {
        kn_change up = {.kind = KN_CHANGE_DEVICE_UP, .device = m->trace.device};
        up.device.index = i;
        KN_TRY(kn_scheduler_event(m->scheduler, &up, 0));
    }
    for (int32_t i = 0; i < queued; i++) KN_TRY(admit(m, i));
fail:
    return st;
}

static void started(measurement *m, const kn_assignment *slice)
{
    m->slices[slice->device] = *slice;
    m->ends_ns[slice->device] = m->now_ns + slice->expected_ns + 1;
}

static int32_t next_device(const measurement *m, int32_t devices)
{
    int32_t best = 0;
    for (int32_t i = 1; i < devices; i++)
        if (m->ends_ns[i] < m->ends_ns[best]) best = i;
    return best;
}

/* The slice of a device as done. */
static kn_change end_of(measurement *m, int32_t device, kn_slice_job ends[KN_SCHEDULER_PACK_MAX])
{
    const kn_assignment *slice = &m->slices[device];
    for (int32_t i = 0; i < slice->count; i++) {
        kn_job_progress *progress = &m->jobs[slice->jobs[i]].progress;
        if (slice->start_mask >> i & 1) *progress = (kn_job_progress){.step = progress->step};
        progress->text = progress->text || slice->stage == KN_STAGE_TEXT;
        progress->step += slice->stage == KN_STAGE_DENOISE;
        progress->decoded += slice->stage == KN_STAGE_DECODE;
        progress->done = slice->stage == KN_STAGE_MUX;
        ends[i] = (kn_slice_job){slice->jobs[i], *progress, 0};
    }
    return (kn_change){
        .kind = KN_CHANGE_SLICE_DONE,
        .slice = {.device = device, .measured_ns = slice->expected_ns, .count = slice->count, .jobs = ends}};
}

/* What the world owes after a timed pair of calls: new jobs for those that ended, answers to releases. */
static kn_status settle(measurement *m, const kn_slice_job *ends, int32_t count, const kn_assignment *slice,
                        int32_t made)
{
    kn_status st = KN_OK;
    for (int32_t i = 0; i < count; i++)
        if (ends[i].progress.done) KN_TRY(admit(m, (int32_t)ends[i].key));
    for (int32_t i = 0; made > 0 && i < slice->release_count; i++) {
        measured_job *job = &m->jobs[slice->release[i]];
        job->progress = (kn_job_progress){.step = job->progress.step};
        const kn_change change = {.kind = KN_CHANGE_JOB_RELEASED,
                                  .job = {.key = slice->release[i], .progress = job->progress}};
        KN_TRY(kn_scheduler_event(m->scheduler, &change, m->now_ns));
    }
fail:
    return st;
}

static kn_status decide_many(measurement *m, int64_t decisions, int64_t (*clock)(void), kn_simulate_bench *out)
{
    kn_status st = KN_OK;
    kn_slice_job ends[KN_SCHEDULER_PACK_MAX];
    kn_assignment slice;
    while (out->decisions < decisions) {
        const int32_t device = next_device(m, out->devices);
        m->now_ns = m->ends_ns[device];
        const kn_change change = end_of(m, device, ends);
        const int64_t start = clock();
        KN_TRY(kn_scheduler_event(m->scheduler, &change, m->now_ns));
        const int32_t made = kn_scheduler_decide(m->scheduler, m->now_ns, &slice, 1);
        const int64_t took = clock() - start;
        out->total_ns += took;
        if (took > out->longest_ns) out->longest_ns = took;
        m->took[took < BUCKETS ? took : BUCKETS - 1]++;
        out->decisions += made;
        out->slices_done += change.slice.count;
        KN_TRY(settle(m, ends, change.slice.count, &slice, made));
        if (made > 0)
            started(m, &slice);
        else
            m->ends_ns[device] = INT64_MAX;
    }
fail:
    return st;
}

/* Least time that so many of the pairs did not exceed. */
static int64_t quantile(const measurement *m, int64_t pairs, double q)
{
    int64_t seen = 0, ns = 0;
    while (ns < BUCKETS - 1 && (double)(seen += m->took[ns]) < q * (double)pairs) ns++;
    return ns;
}

static kn_status ask_many(measurement *m, int64_t (*clock)(void), kn_simulate_bench *out)
{
    kn_status st = KN_OK;
    kn_admission admission;
    kn_estimate estimate;
    int64_t start = clock();
    for (int32_t i = 0; i < ASKED; i++) {
        const kn_trace_job *request = &m->trace.jobs[(int64_t)i * 7919 % m->trace.count];
        KN_TRY(kn_scheduler_admission(m->scheduler, &request->shape, &request->terms, m->now_ns, &admission));
    }
    out->admission_ns = (double)(clock() - start) / ASKED;
    start = clock();
    for (int32_t i = 0; i < ASKED; i++)
        KN_TRY(
            kn_scheduler_estimate(m->scheduler, (uint64_t)((int64_t)i * 7919 % m->trace.count), m->now_ns, &estimate));
    out->estimate_ns = (double)(clock() - start) / ASKED;
fail:
    return st;
}

kn_status kn_simulate_measure(int32_t devices, int32_t queued, int64_t decisions, int64_t (*clock)(void),
                              kn_simulate_bench *out)
{
    kn_status st = KN_OK;
    if (devices < 1 || devices > KN_SCHEDULER_DEVICES_MAX)
        return kn_fail(KN_INVALID, "devices is %d; it must be 1 to %d", devices, KN_SCHEDULER_DEVICES_MAX);
    if (queued < 2 * devices || queued > KN_SIMULATE_QUEUE_MAX)
        return kn_fail(KN_INVALID, "queued is %d; it must be %d to %d", queued, 2 * devices, KN_SIMULATE_QUEUE_MAX);
    memset(out, 0, sizeof *out);
    out->devices = devices;
    out->queued = queued;
    measurement *m = kn_alloc(sizeof *m);
    if (!m) return KN_NOMEM;
    KN_TRY(set_up(m, devices, queued));
    kn_assignment first[KN_SCHEDULER_DEVICES_MAX];
    const int32_t made = kn_scheduler_decide(m->scheduler, 0, first, devices);
    for (int32_t i = 0; i < devices; i++) m->ends_ns[i] = INT64_MAX;
    for (int32_t i = 0; i < made; i++) started(m, &first[i]);
    KN_TRY(decide_many(m, decisions, clock, out));
    out->p50_ns = quantile(m, out->decisions, 0.5);
    out->p999_ns = quantile(m, out->decisions, 0.999);
    KN_TRY(ask_many(m, clock, out));
fail:
    kn_scheduler_destroy(&m->scheduler);
    kn_trace_release(&m->trace);
    kn_free(m->jobs);
    kn_free(m);
    return st;
}

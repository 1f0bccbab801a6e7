/* SPDX-License-Identifier: Apache-2.0
 *
 * When a job will be done, and whether one that does not exist yet could be. Sums the queues keep anyway; nothing here
 * looks at single jobs that wait.
 *
 * A planned job is done when the work before it in its plan is. For a job in a tenant's queue the work before it is:
 * what is planned and what has started, the higher classes, its own tenant's earlier jobs, and of every other tenant
 * of its class as much as fair sharing serves meanwhile: with P the work of those earlier jobs, the lesser of the
 * other's backlog and P x its weight / the own weight. All devices share it, each by how fast it would be with the job
 * in question: a device that takes four times as long serves a fourth. */
#include "scheduler/packing.h"

#include <stdio.h>
#include <string.h>

#define RETRY_LEAST_NS INT64_C(1000000000)

/* Device time, and jobs, before something. */
typedef struct ahead {
    int64_t ns;
    int64_t count;
} ahead;

static int32_t capable_devices(const kn_scheduler *s, const kn_job_shape *shape)
{
    int32_t count = 0;
    for (uint64_t up = s->up; up; up &= up - 1) count += kn_core_fits(s, shape, __builtin_ctzll(up));
    return count;
}

/* Of the whole job alone. */
static double total_on(const kn_scheduler *s, const kn_core_job *job, int32_t device)
{
    const kn_job_progress start = {0};
    return kn_core_remaining(s, job, &start, device, kn_core_fixed(s, device));
}

/* How fast a device is with this job, beside the one its times are given for: work of the one that takes `ns` there
 * takes `ns` x this here. */
static double speed(const kn_scheduler *s, const kn_core_job *job, int32_t device)
{
    const int32_t reference = kn_core_reference(s, &job->shape);
    if (reference == KN_NO_DEVICE || device == reference || !kn_core_fits(s, &job->shape, device)) return 1;
    return total_on(s, job, reference) / total_on(s, job, device);
}

/* The devices that could run the job, counted in the one its times are given for. */
static double capacity(const kn_scheduler *s, const kn_core_job *job)
{
    double sum = 0;
    for (uint64_t up = s->up; up; up &= up - 1) {
        const int32_t device = __builtin_ctzll(up);
        if (kn_core_fits(s, &job->shape, device)) sum += speed(s, job, device);
    }
    return sum > 0 ? sum : 1;
}

/* Planned work, and unplanned work that has started, in the time it would take where the job's times are given for. */
static ahead before_queues(const kn_scheduler *s, const kn_core_job *job, int64_t now_ns)
{
    ahead sum = {0, 0};
    for (uint64_t up = s->up; up; up &= up - 1) {
        const int32_t device = __builtin_ctzll(up);
        const kn_core_device *d = &s->devices[device];
        const int64_t planned = kn_queue_sum(s->nodes, &d->plan) * __builtin_popcountll(s->up & d->members);
        const int64_t ns = planned + d->fair_left_ns + kn_core_free_at(s, device, now_ns) - now_ns;
        sum.ns += (int64_t)(speed(s, job, device) * (double)ns);
        sum.count += kn_queue_count(s->nodes, &d->plan);
    }
    return sum;
}

/* What is served before a job that has `own` before it in its tenant's queue. */
static ahead before_fair(const kn_scheduler *s, const kn_core_job *job, ahead own, int64_t now_ns)
{
    const int32_t tenant = kn_core_tenant_of(s, job);
    const int c = kn_core_class(s, job);
    ahead sum = before_queues(s, job, now_ns);
    const double through = (double)own.ns / s->tenants[tenant].weight;
    sum.ns += own.ns;
    sum.count += own.count;
    for (int higher = c + 1; higher < KN_CLASSES; higher++) {
        sum.ns += s->class_ns[higher];
        sum.count += s->class_count[higher];
    }
    for (int32_t at = s->classes[c].first; at >= 0; at = kn_queue_next(s->tenant_nodes, at)) {
        const int32_t other = at / KN_CLASSES;
        if (other == tenant) continue;
        const kn_queue *waiting = &s->tenants[other].waiting[c];
        const double backlog = (double)kn_queue_sum(s->nodes, waiting);
        const double share = through * s->tenants[other].weight;
        const double part = backlog > share ? share / backlog : 1;
        sum.ns += (int64_t)(part * backlog);
        sum.count += (int64_t)(part * kn_queue_count(s->nodes, waiting));
    }
    return sum;
}

/* Where the packing has it, if it is among the first of the plan. */
static void estimate_packed(const kn_scheduler *s, int32_t slot, int64_t now_ns, kn_estimate *out)
{
    kn_packing packing;
    kn_packing_collect(s, s->jobs[slot].plan, now_ns, &packing);
    kn_packing_lay(&packing);
    for (int32_t i = 0; i < packing.count; i++) {
        if (packing.jobs[i].slot != slot || !packing.jobs[i].fits) continue;
        out->start_ns = packing.jobs[i].start_ns;
        out->completion_ns = packing.jobs[i].done_ns;
    }
}

static void estimate_planned(const kn_scheduler *s, int32_t slot, int64_t now_ns, kn_estimate *out)
{
    const kn_core_job *job = &s->jobs[slot];
    const kn_core_device *d = &s->devices[job->plan];
    const kn_queue_place place = kn_queue_find(s->nodes, &d->plan, job->terms.deadline_ns, job->seq);
    out->start_ns = kn_core_plan_start(s, job->plan, now_ns) + place.work;
    out->completion_ns = out->start_ns + job->left_ns;
    if (kn_core_chooses(s, d->terms.domain)) estimate_packed(s, slot, now_ns, out);
    out->position = 1 + place.count;
    for (int32_t i = 0; i < d->resident_count; i++) {
        const kn_core_job *other = &s->jobs[d->residents[i]];
        out->position -= other->place == KN_PLACE_PLAN && other->terms.deadline_ns <= job->terms.deadline_ns;
    }
    if (out->position < 1) out->position = 1;
}

static void estimate_resident(const kn_scheduler *s, const kn_core_job *job, int64_t now_ns, kn_estimate *out)
{
    const kn_core_device *d = &s->devices[job->device];
    out->start_ns = kn_core_free_at(s, job->device, now_ns);
    if (!job->running) out->start_ns += kn_queue_sum(s->nodes, &d->plan) + d->fair_left_ns - job->left_ns;
    out->completion_ns = out->start_ns + job->left_ns;
}

static void estimate_spare(const kn_scheduler *s, int32_t slot, double devices, int64_t now_ns, kn_estimate *out)
{
    const kn_core_job *job = &s->jobs[slot];
    const kn_queue_place place = kn_queue_find(s->nodes, &s->spare, s->nodes[slot].key, job->seq);
    const ahead before = before_queues(s, job, now_ns);
    out->position = (int32_t)(1 + before.count + place.count);
    out->start_ns = now_ns + (int64_t)((double)(before.ns + place.work) / devices);
    out->completion_ns = out->start_ns + job->left_ns;
}

static void estimate_fair(const kn_scheduler *s, int32_t slot, double devices, int64_t now_ns, kn_estimate *out)
{
    const kn_core_job *job = &s->jobs[slot];
    const int32_t tenant = kn_core_tenant_of(s, job);
    const int c = kn_core_class(s, job);
    const kn_queue_place place = kn_queue_find(s->nodes, &s->tenants[tenant].waiting[c], s->nodes[slot].key, job->seq);
    const ahead before = before_fair(s, job, (ahead){place.work, place.count}, now_ns);
    out->position = (int32_t)(1 + before.count);
    out->start_ns = now_ns + (int64_t)((double)before.ns / devices);
    out->completion_ns = out->start_ns + job->left_ns;
}

kn_status kn_scheduler_estimate(const kn_scheduler *s, uint64_t key, int64_t now_ns, kn_estimate *out)
{
    memset(out, 0, sizeof *out);
    const int32_t slot = kn_core_find(s, key);
    if (slot == KN_NO_SLOT || s->jobs[slot].removed)
        return kn_fail(KN_NOT_FOUND, "no job %llx", (unsigned long long)key);
    const kn_core_job *job = &s->jobs[slot];
    const int32_t devices = capable_devices(s, &job->shape);
    const int32_t reference = job->device != KN_NO_DEVICE ? job->device : kn_core_reference(s, &job->shape);
    out->start_ns = out->completion_ns = now_ns;
    out->remaining_ns = job->left_ns;
    if (reference != KN_NO_DEVICE) {
        out->error = s->devices[reference].fits[job->shape.model][KN_STAGE_DENOISE].error;
        out->total_ns = (int64_t)total_on(s, job, reference);
    }
    if (job->place == KN_PLACE_PLAN)
        estimate_planned(s, slot, now_ns, out);
    else if (job->place == KN_PLACE_SPARE)
        estimate_spare(s, slot, capacity(s, job), now_ns, out);
    else if (job->place == KN_PLACE_FAIR)
        estimate_fair(s, slot, capacity(s, job), now_ns, out);
    else
        estimate_resident(s, job, now_ns, out);
    if (job->device != KN_NO_DEVICE) out->position = 0;
    if (job->running) {
        out->start_ns = now_ns;
        out->remaining_ns += kn_core_free_at(s, job->device, now_ns) - now_ns;
    }
    out->late = job->late || out->completion_ns > kn_core_deadline(job);
    return devices ? KN_OK : kn_fail(KN_UNAVAILABLE, "no device is up that could run this job");
}

/* ---- admission ---- */

static void gigabytes(char text[24], uint64_t bytes)
{
    snprintf(text, 24, "%.2f GB", (double)bytes * 1e-9);
}

static void refuse_large(const kn_scheduler *s, const kn_job_shape *shape, uint64_t largest, kn_admission *out)
{
    char need[24], model[24], state[24], work[24], have[24];
    const uint64_t resident = s->models[shape->model].resident_bytes, total = kn_core_need(s, shape);
    gigabytes(need, total);
    gigabytes(model, resident);
    gigabytes(state, shape->state_bytes);
    gigabytes(work, total - resident - shape->state_bytes);
    gigabytes(have, largest);
    out->verdict = KN_VERDICT_TOO_LARGE;
    snprintf(out->reason, sizeof out->reason,
             "the job needs %s on one device (model %s, state %s, working memory %s); the largest has %s", need, model,
             state, work, have);
}

/* Earliest completion on a device that breaks none of its deadlines: behind the last one that has not enough slack. */
static int64_t earliest_on(const kn_scheduler *s, int32_t device, int64_t left_ns, int64_t now_ns)
{
    const int32_t pool = s->devices[device].pool;
    const kn_queue *plan = &s->devices[pool].plan;
    const int64_t start = kn_core_plan_start(s, pool, now_ns);
    const int32_t last = kn_queue_last_late(s->nodes, plan, start + left_ns);
    if (last < 0) return start + left_ns;
    const kn_queue_node *node = &s->nodes[last];
    return start + left_ns + kn_queue_find(s->nodes, plan, node->key, node->seq + 1).work;
}

/* The same where groups are chosen; *alone_ns: what it takes there with nothing else to do. */
static int64_t earliest_packed(const kn_scheduler *s, const kn_core_job *job, int32_t device, int64_t now_ns,
                               int64_t *alone_ns)
{
    const double longer = 1 + s->params.admission_margin / 100.0;
    kn_packing packing, with;
    kn_packed packed;
    kn_packing_job(s, job, device, now_ns, &packed);
    packed.denoise.slices *= longer;
    packed.decode.slices *= longer;
    packed.tail_ns = (int64_t)((double)packed.tail_ns * longer);
    *alone_ns = (int64_t)kn_packing_least(&packed);
    kn_packing_collect(s, s->devices[device].pool, now_ns, &packing);
    int32_t fitting = 0, kept = 0;
    kn_packing_lay(&packing);
    for (int32_t i = 0; i < packing.count; i++) fitting += packing.jobs[i].fits;
    with = packing;
    kn_packing_add(&with, &packed);
    kn_packing_lay(&with);
    for (int32_t i = 0; i < with.count; i++) kept += with.jobs[i].fits;
    for (int32_t i = 0; i < with.count && kept > fitting; i++)
        if (with.jobs[i].slot == KN_NO_SLOT && with.jobs[i].fits) return with.jobs[i].done_ns;
    packed.deadline_ns = KN_DEADLINE_FAR; /* behind all others */
    packed.smallest = packed.denoise.best[packed.largest];
    kn_packing_add(&packing, &packed);
    kn_packing_lay(&packing);
    for (int32_t i = 0; i < packing.count; i++)
        if (packing.jobs[i].slot == KN_NO_SLOT && packing.jobs[i].fits) return packing.jobs[i].done_ns;
    return now_ns + *alone_ns;
}

static void admit_timed(const kn_scheduler *s, const kn_core_job *job, int64_t now_ns, kn_admission *out)
{
    int64_t earliest = INT64_MAX, alone = INT64_MAX;
    uint64_t seen = 0; /* pools */
    for (uint64_t up = s->up; up; up &= up - 1) {
        const int32_t device = __builtin_ctzll(up);
        if (!kn_core_fits(s, &job->shape, device)) continue;
        int64_t left = kn_core_left(s, job, device);
        left += left / 100 * s->params.admission_margin;
        if (kn_core_chooses(s, s->devices[device].terms.domain)) {
            const int32_t pool = s->devices[device].pool;
            if (seen >> pool & 1) continue;
            seen |= UINT64_C(1) << pool;
            const int64_t work = kn_core_plan_work(s, job, pool, left);
            const int64_t fluid = earliest_on(s, device, work + work / 100 * s->params.admission_margin, now_ns);
            const int64_t packed = earliest_packed(s, job, device, now_ns, &left);
            if ((packed > fluid ? packed : fluid) < earliest) earliest = packed > fluid ? packed : fluid;
        } else {
            const int64_t done = earliest_on(s, device, left, now_ns);
            if (done < earliest) earliest = done;
        }
        if (now_ns + left < alone) alone = now_ns + left;
    }
    const int64_t deadline = job->terms.deadline_ns;
    out->completion_ns = earliest;
    if (earliest <= deadline) return;
    out->verdict = KN_VERDICT_DEADLINE;
    if (alone > deadline) {
        snprintf(out->reason, sizeof out->reason, "the job takes %.1f s on an idle device; its deadline is in %.1f s",
                 (double)(alone - now_ns) * 1e-9, (double)(deadline - now_ns) * 1e-9);
        return;
    }
    out->retry_after_ns = earliest - deadline > RETRY_LEAST_NS ? earliest - deadline : RETRY_LEAST_NS;
    snprintf(out->reason, sizeof out->reason,
             "the deadline is in %.1f s; with what was promised before, the job can be done in %.1f s",
             (double)(deadline - now_ns) * 1e-9, (double)(earliest - now_ns) * 1e-9);
}

static void admit_untimed(const kn_scheduler *s, const kn_core_job *job, int64_t now_ns, kn_admission *out)
{
    const int32_t tenant = kn_core_tenant_of(s, job);
    const int c = kn_core_class(s, job);
    const kn_queue *waiting = &s->tenants[tenant].waiting[c];
    const ahead own = {kn_queue_sum(s->nodes, waiting), kn_queue_count(s->nodes, waiting)};
    const ahead before = before_fair(s, job, own, now_ns);
    out->completion_ns = now_ns + (int64_t)((double)before.ns / capacity(s, job)) + job->left_ns;
}

static void refuse_device(const kn_scheduler *s, const kn_job_shape *shape, kn_admission *out)
{
    uint64_t largest = 0;
    for (uint64_t up = s->up; up; up &= up - 1) {
        const kn_change_device *terms = &s->devices[__builtin_ctzll(up)].terms;
        if (terms->loadable >> shape->model & 1 && terms->memory_bytes > largest) largest = terms->memory_bytes;
    }
    if (largest > 0) {
        refuse_large(s, shape, largest, out);
        return;
    }
    out->verdict = KN_VERDICT_NO_DEVICE;
    snprintf(out->reason, sizeof out->reason, "no device is ready that can load the model");
}

int64_t kn_scheduler_next_place_ns(const kn_scheduler *s)
{
    const int32_t devices = __builtin_popcountll(s->up), jobs = s->job_count;
    const int64_t next = s->backlog_ns / (jobs > 0 ? jobs : 1) / (devices > 0 ? devices : 1);
    return next > RETRY_LEAST_NS ? next : RETRY_LEAST_NS;
}

kn_status kn_scheduler_admission(const kn_scheduler *s, const kn_job_shape *shape, const kn_job_terms *terms,
                                 int64_t now_ns, kn_admission *out)
{
    kn_status st = KN_OK;
    memset(out, 0, sizeof *out);
    KN_TRY(kn_core_check_shape(s, shape));
    KN_TRY(kn_core_check_terms(s, terms));
    const int32_t devices = capable_devices(s, shape);
    if (s->draining) {
        out->verdict = KN_VERDICT_DRAINING;
        snprintf(out->reason, sizeof out->reason, "the server is shutting down");
        return KN_OK;
    }
    if (devices == 0) {
        refuse_device(s, shape, out);
        return KN_OK;
    }
    kn_core_job job = {.shape = *shape, .terms = *terms, .seq = s->next_seq, .device = KN_NO_DEVICE};
    kn_cost_count(&job.work, &s->models[shape->model], shape);
    job.left_ns = kn_core_left(s, &job, KN_NO_DEVICE);
    out->device_ns = kn_scheduler_job_ns(s, shape);
    if (s->job_count >= s->params.jobs) {
        out->verdict = KN_VERDICT_QUEUE_FULL;
        out->retry_after_ns = kn_scheduler_next_place_ns(s);
        snprintf(out->reason, sizeof out->reason, "%d jobs are queued, which is the limit", s->params.jobs);
        return KN_OK;
    }
    if (terms->deadline_ns != KN_SCHEDULER_NO_DEADLINE && !kn_core_plain(s))
        admit_timed(s, &job, now_ns, out);
    else
        admit_untimed(s, &job, now_ns, out);
fail:
    return st;
}

int64_t kn_scheduler_job_ns(const kn_scheduler *s, const kn_job_shape *shape)
{
    const kn_job_progress start = {0};
    kn_core_job job = {.shape = *shape};
    double best = 0;
    if (kn_core_check_shape(s, shape) != KN_OK) return 0;
    kn_cost_count(&job.work, &s->models[shape->model], shape);
    for (uint64_t up = s->up; up; up &= up - 1) {
        const int32_t device = __builtin_ctzll(up);
        if (!kn_core_fits(s, shape, device)) continue;
        const double ns = kn_core_remaining(s, &job, &start, device, kn_core_fixed(s, device));
        if (best == 0 || ns < best) best = ns;
    }
    return best < (double)KN_QUEUE_WORK_MAX ? (int64_t)best : KN_QUEUE_WORK_MAX;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a job that does not run belongs (state.h names the places), and the sums that follow from it. */
#include "scheduler/packing.h"

#include <math.h>

enum {
    REFRESH_SLOTS = 64, /* brought up to date per call */
    TENANTS_LOOKED_AT = 8,
    JOBS_LOOKED_AT = 4, /* per tenant; the others wait behind jobs this device has no memory for */
};

#define NOMINAL_FLOP_PER_SECOND 1e14 /* orders jobs while no device is known */
#define SWAP_GAIN 1.25F              /* a planned job gives way to one that is so much lighter */
#define PROMISED 1e-6F               /* burden of a promised job: given up after all others */

/* ---- time left ---- */

int32_t kn_core_reference(const kn_scheduler *s, const kn_job_shape *shape)
{
    for (uint64_t up = s->up; up; up &= up - 1) {
        const int32_t device = __builtin_ctzll(up);
        if (kn_core_fits(s, shape, device)) return device;
    }
    return KN_NO_DEVICE;
}

void kn_core_advance(const kn_job_shape *shape, kn_job_progress *progress)
{
    switch (kn_job_next_stage(shape, progress)) {
    case KN_STAGE_TEXT: progress->text = true; break;
    case KN_STAGE_DENOISE: progress->step++; break;
    case KN_STAGE_DECODE: progress->decoded++; break;
    case KN_STAGE_MUX: progress->done = true; break;
    case KN_STAGE_DONE: break;
    }
}

int32_t kn_core_largest(const kn_scheduler *s, int32_t device)
{
    const kn_core_device *d = &s->devices[device];
    const int32_t own = d->terms.degree_max > 0 ? d->terms.degree_max : KN_SCHEDULER_DEGREE_MAX;
    const int32_t there = __builtin_popcountll(s->up & s->devices[d->pool].members);
    const int32_t most = own < s->params.degree_max ? own : s->params.degree_max;
    if (!kn_core_chooses(s, d->terms.domain) || there < 1) return 1;
    return there < most ? there : most;
}

int32_t kn_core_in_pool(const kn_scheduler *s, const kn_job_shape *shape, int32_t pool)
{
    for (uint64_t up = s->up & s->devices[pool].members; up; up &= up - 1)
        if (kn_core_fits(s, shape, __builtin_ctzll(up))) return __builtin_ctzll(up);
    return KN_NO_DEVICE;
}

double kn_core_step_ns(const kn_scheduler *s, const kn_core_job *job, int32_t device, int32_t degree)
{
    const kn_core_device *d = &s->devices[device];
    const double work = degree == 1 ? job->work.denoise : kn_cost_shared_step(&job->work, &d->terms.seed, degree);
    return kn_cost_predict(kn_core_read_fit(d, job->shape.model, KN_STAGE_DENOISE, degree), work);
}

double kn_core_decoding_ns(const kn_scheduler *s, const kn_core_job *job, const kn_job_progress *progress,
                           int32_t device, int32_t degree)
{
    const kn_core_device *d = &s->devices[device];
    const kn_cost_fit *fit = kn_core_read_fit(d, job->shape.model, KN_STAGE_DECODE, degree);
    return kn_cost_decoding(fit, &job->work, &job->shape, progress, &d->terms.seed, degree);
}

double kn_core_shared_ns(const kn_scheduler *s, const kn_core_job *job, int32_t device, int32_t degree)
{
    const kn_core_device *d = &s->devices[device];
    if (degree == 1) return (double)kn_core_next_ns(s, job, device);
    const kn_stage stage = kn_job_next_stage(&job->shape, &job->progress);
    return kn_cost_predict(kn_core_read_fit(d, job->shape.model, stage, degree),
                           kn_cost_shared(&job->work, &job->shape, &job->progress, &d->terms.seed, degree));
}

double kn_core_remaining(const kn_scheduler *s, const kn_core_job *job, const kn_job_progress *progress, int32_t device,
                         int32_t degree)
{
    double decoding = kn_core_decoding_ns(s, job, progress, device, 1);
    if (degree > 1) decoding = fmin(decoding, kn_core_decoding_ns(s, job, progress, device, degree));
    return kn_cost_remaining(s->devices[device].fits[job->shape.model], kn_core_step_ns(s, job, device, degree),
                             decoding, &job->work, &job->shape, progress);
}

int64_t kn_core_left(const kn_scheduler *s, const kn_core_job *job, int32_t device)
{
    double ns;
    if (device == KN_NO_DEVICE) device = kn_core_reference(s, &job->shape);
    if (device == KN_NO_DEVICE) {
        const kn_cost_work *w = &job->work;
        ns = 1e9 / NOMINAL_FLOP_PER_SECOND *
             (w->text + w->denoise * (job->shape.steps - job->progress.step) + w->decode * job->shape.latent_frames);
    } else {
        const kn_core_device *d = &s->devices[device];
        ns = kn_core_remaining(s, job, &job->progress, device, kn_core_fixed(s, device));
        if (!(d->terms.models >> job->shape.model & 1)) ns += (double)d->terms.load_ns;
    }
    return ns < (double)KN_QUEUE_WORK_MAX ? (int64_t)ns : KN_QUEUE_WORK_MAX;
}

int64_t kn_core_free_at(const kn_scheduler *s, int32_t device, int64_t now_ns)
{
    const kn_core_device *d = &s->devices[device];
    return d->busy && d->free_ns > now_ns ? d->free_ns : now_ns;
}

int64_t kn_core_plan_start(const kn_scheduler *s, int32_t pool, int64_t now_ns)
{
    const uint64_t devices = s->up & s->devices[pool].members;
    int64_t late = 0;
    for (uint64_t left = devices; left; left &= left - 1)
        late += kn_core_free_at(s, __builtin_ctzll(left), now_ns) - now_ns;
    return devices ? now_ns + late / __builtin_popcountll(devices) : now_ns;
}

int64_t kn_core_plan_work(const kn_scheduler *s, const kn_core_job *job, int32_t pool, int64_t left_ns)
{
    const kn_core_device *p = &s->devices[pool];
    const uint64_t devices = s->up & p->members;
    if (!kn_core_chooses(s, p->terms.domain) || devices == 0) return left_ns;
    const int32_t device = job->device != KN_NO_DEVICE ? job->device : kn_core_in_pool(s, &job->shape, pool);
    kn_packed packed;
    if (device == KN_NO_DEVICE) return left_ns;
    kn_packing_job(s, job, device, s->now_ns, &packed);
    const double ns = kn_packing_demand(&packed, s->now_ns) / __builtin_popcountll(devices);
    return ns < (double)KN_QUEUE_WORK_MAX ? (int64_t)ns : KN_QUEUE_WORK_MAX;
}

int64_t kn_core_least(const kn_scheduler *s, const kn_core_job *job)
{
    const int32_t device = job->device != KN_NO_DEVICE ? job->device : kn_core_reference(s, &job->shape);
    if (device == KN_NO_DEVICE || !kn_core_chooses(s, s->devices[device].terms.domain)) return job->left_ns;
    kn_packed packed;
    kn_packing_job(s, job, device, s->now_ns, &packed);
    const double ns = kn_packing_least(&packed);
    return ns < (double)job->left_ns ? (int64_t)ns : job->left_ns;
}

/* What giving the job up frees, for what it is worth. */
static float burden_of(const kn_core_job *job, int64_t left_ns)
{
    static const float worth[KN_PRIORITIES] = {1, 2, 4};
    const float burden = (float)left_ns / worth[job->terms.priority];
    return job->terms.promised ? burden * PROMISED : burden;
}

void kn_core_set_left(kn_scheduler *s, int32_t slot, int64_t left_ns)
{
    kn_core_job *job = &s->jobs[slot];
    kn_queue_node *node = &s->nodes[slot];
    const int64_t more = left_ns - job->left_ns;
    job->left_ns = left_ns;
    s->backlog_ns += more;
    switch (job->place) {
    case KN_PLACE_PLAN:
        node->work = kn_core_plan_work(s, job, job->plan, left_ns);
        node->burden = burden_of(job, node->work);
        kn_queue_update(s->nodes, slot);
        break;
    case KN_PLACE_SPARE:
        kn_queue_remove(s->nodes, &s->spare, slot);
        node->key = node->work = left_ns;
        kn_queue_insert(s->nodes, &s->spare, slot);
        break;
    case KN_PLACE_FAIR:
        s->class_ns[kn_core_class(s, job)] += more;
        node->work = left_ns;
        kn_queue_update(s->nodes, slot);
        break;
    case KN_PLACE_NOWHERE:
        if (job->device != KN_NO_DEVICE && !job->releasing) s->devices[job->device].fair_left_ns += more;
        break;
    }
}

void kn_core_refresh(kn_scheduler *s)
{
    for (int n = 0; n < REFRESH_SLOTS && s->refresh < s->params.jobs; n++) {
        const int32_t slot = s->refresh++;
        const kn_core_job *job = &s->jobs[slot];
        if (!job->used || job->removed || job->running) continue;
        const int32_t device = job->place == KN_PLACE_PLAN && job->device == KN_NO_DEVICE
                                   ? kn_core_in_pool(s, &job->shape, job->plan)
                                   : job->device;
        kn_core_set_left(s, slot, kn_core_left(s, job, device));
    }
}

/* ---- tenants' queues ---- */

int kn_core_class(const kn_scheduler *s, const kn_core_job *job)
{
    return job->late || kn_core_plain(s) ? KN_CLASS_LATE : 1 + (int)job->terms.priority;
}

int32_t kn_core_tenant_of(const kn_scheduler *s, const kn_core_job *job)
{
    return kn_core_plain(s) ? 0 : job->terms.tenant;
}

void kn_core_charge(kn_scheduler *s, int32_t tenant, int64_t ns)
{
    s->tenants[tenant].service_ns += ns;
    s->tenants[tenant].virtual_ns += ns / s->tenants[tenant].weight;
}

static int64_t fair_key(const kn_scheduler *s, const kn_core_job *job)
{
    switch (s->params.policy) {
    case KN_POLICY_SJF:
    case KN_POLICY_SRPT: return job->left_ns;
    case KN_POLICY_EDF:
    case KN_POLICY_EDF_STEP: return kn_core_deadline(job);
    case KN_POLICY_KINORA:
    case KN_POLICY_FIFO:
    case KN_POLICIES: break;
    }
    return job->terms.submitted_ns;
}

static void fair_add(kn_scheduler *s, int32_t slot)
{
    kn_core_job *job = &s->jobs[slot];
    const int32_t tenant = kn_core_tenant_of(s, job);
    const int c = kn_core_class(s, job);
    kn_queue *waiting = &s->tenants[tenant].waiting[c];
    if (waiting->root < 0) {
        const int32_t at = tenant * KN_CLASSES + c;
        s->tenant_nodes[at] = (kn_queue_node){.key = s->tenants[tenant].virtual_ns, .seq = (uint64_t)at};
        kn_queue_insert(s->tenant_nodes, &s->classes[c], at);
    }
    s->nodes[slot] = (kn_queue_node){.key = fair_key(s, job), .seq = job->seq, .work = job->left_ns};
    kn_queue_insert(s->nodes, waiting, slot);
    s->age_nodes[slot] = (kn_queue_node){.key = job->served_ns, .seq = job->seq};
    kn_queue_insert(s->age_nodes, &s->age, slot);
    s->class_ns[c] += job->left_ns;
    s->class_count[c]++;
    job->place = KN_PLACE_FAIR;
}

static void fair_remove(kn_scheduler *s, int32_t slot)
{
    const kn_core_job *job = &s->jobs[slot];
    const int32_t tenant = kn_core_tenant_of(s, job);
    const int c = kn_core_class(s, job);
    kn_queue *waiting = &s->tenants[tenant].waiting[c];
    kn_queue_remove(s->nodes, waiting, slot);
    kn_queue_remove(s->age_nodes, &s->age, slot);
    if (waiting->root < 0) kn_queue_remove(s->tenant_nodes, &s->classes[c], tenant * KN_CLASSES + c);
    s->class_ns[c] -= job->left_ns;
    s->class_count[c]--;
}

/* First job of a tenant's queue the device can run; the looked-at ones before it do not fit there. */
static int32_t first_that_fits(const kn_scheduler *s, const kn_queue *waiting, int32_t device)
{
    int32_t slot = waiting->first;
    for (int n = 0; n < JOBS_LOOKED_AT && slot >= 0; n++) {
        if (kn_core_fits(s, &s->jobs[slot].shape, device)) return slot;
        slot = kn_queue_next(s->nodes, slot);
    }
    return KN_NO_SLOT;
}

/* Tenants are kept in order of a virtual time that may be too early: put right when one comes to the front. */
static void settle_first_tenant(kn_scheduler *s, int c)
{
    kn_queue *queue = &s->classes[c];
    while (queue->first >= 0) {
        const int32_t at = queue->first;
        const int64_t truth = s->tenants[at / KN_CLASSES].virtual_ns;
        if (s->tenant_nodes[at].key >= truth) return;
        kn_queue_remove(s->tenant_nodes, queue, at);
        s->tenant_nodes[at].key = truth;
        kn_queue_insert(s->tenant_nodes, queue, at);
    }
}

int32_t kn_core_fair_first(kn_scheduler *s, int32_t device, int *job_class)
{
    const uint32_t loaded = s->devices[device].terms.models;
    for (int c = KN_CLASSES - 1; c >= 0; c--) {
        settle_first_tenant(s, c);
        int32_t best = KN_NO_SLOT, at = s->classes[c].first;
        int64_t start = 0;
        for (int n = 0; n < TENANTS_LOOKED_AT && at >= 0; n++, at = kn_queue_next(s->tenant_nodes, at)) {
            const kn_core_tenant *tenant = &s->tenants[at / KN_CLASSES];
            const int32_t slot = first_that_fits(s, &tenant->waiting[c], device);
            if (slot < 0) continue;
            const bool is_loaded = loaded >> s->jobs[slot].shape.model & 1;
            if (best < 0) {
                best = slot;
                start = tenant->virtual_ns;
            } else if (is_loaded && (tenant->virtual_ns - start) * tenant->weight < s->params.fair_quantum_ns) {
                best = slot; /* a little out of turn, but without loading a model */
            }
            if (loaded >> s->jobs[best].shape.model & 1) break;
        }
        if (best >= 0) {
            *job_class = c;
            return best;
        }
    }
    return KN_NO_SLOT;
}

/* ---- plans ---- */

static void plan_add(kn_scheduler *s, int32_t slot, int32_t device, int64_t left_ns)
{
    kn_core_job *job = &s->jobs[slot];
    const int32_t pool = s->devices[device].pool;
    const int64_t work = kn_core_plan_work(s, job, pool, left_ns);
    kn_core_set_left(s, slot, left_ns);
    if (job->device != KN_NO_DEVICE) s->devices[job->device].fair_left_ns -= left_ns;
    s->nodes[slot] =
        (kn_queue_node){.key = job->terms.deadline_ns, .seq = job->seq, .work = work, .burden = burden_of(job, work)};
    kn_queue_insert(s->nodes, &s->devices[pool].plan, slot);
    job->place = KN_PLACE_PLAN;
    job->plan = pool;
    s->stats.planned++;
}

/* When would it be done there, and is every deadline kept? */
static bool plan_fits(const kn_scheduler *s, const kn_core_job *job, int32_t device, int64_t left_ns, int64_t now_ns,
                      int64_t *done_ns)
{
    const int32_t pool = s->devices[device].pool;
    const int64_t start = kn_core_plan_start(s, pool, now_ns);
    const kn_queue_place place = kn_queue_find(s->nodes, &s->devices[pool].plan, job->terms.deadline_ns, job->seq);
    if (kn_core_chooses(s, s->devices[device].terms.domain)) {
        if (now_ns + kn_core_least(s, job) > job->terms.deadline_ns) return false;
        left_ns = kn_core_plan_work(s, job, pool, left_ns);
    }
    *done_ns = start + place.work + left_ns;
    return *done_ns <= job->terms.deadline_ns &&
           (place.slack_after == INT64_MAX || place.slack_after - left_ns >= start);
}

bool kn_core_plan(kn_scheduler *s, int32_t slot, int32_t device, int64_t now_ns)
{
    const kn_core_job *job = &s->jobs[slot];
    int64_t done_ns;
    if (!kn_core_fits(s, &job->shape, device)) return false;
    const int64_t left = kn_core_left(s, job, device);
    if (!plan_fits(s, job, device, left, now_ns, &done_ns)) return false;
    kn_core_unplace(s, slot);
    plan_add(s, slot, device, left);
    return true;
}

/* The device where the job would be done first with all deadlines kept. */
static int32_t plan_device(const kn_scheduler *s, const kn_core_job *job, int64_t now_ns)
{
    int32_t best = KN_NO_DEVICE;
    int64_t best_ns = 0;
    uint64_t seen = 0; /* pools */
    for (uint64_t up = s->up; up; up &= up - 1) {
        const int32_t device = __builtin_ctzll(up);
        int64_t done_ns;
        if (!kn_core_fits(s, &job->shape, device) || seen >> s->devices[device].pool & 1) continue;
        seen |= UINT64_C(1) << s->devices[device].pool;
        if (!plan_fits(s, job, device, kn_core_left(s, job, device), now_ns, &done_ns)) continue;
        if (best == KN_NO_DEVICE || done_ns < best_ns) {
            best = device;
            best_ns = done_ns;
        }
    }
    return best;
}

/* The planned job that would give way to this one on a device, so that the rest can be kept; KN_NO_SLOT: none. The
 * plan is the same afterwards. */
static int32_t gives_way(kn_scheduler *s, int32_t slot, int32_t device, int64_t now_ns)
{
    kn_core_job *job = &s->jobs[slot];
    const int32_t pool = s->devices[device].pool;
    kn_queue *plan = &s->devices[pool].plan;
    const int64_t left = kn_core_plan_work(s, job, pool, kn_core_left(s, job, device)),
                  start = kn_core_plan_start(s, pool, now_ns);
    if (plan->root < 0 || start + left > job->terms.deadline_ns) return KN_NO_SLOT;
    const float burden = burden_of(job, left);
    if (s->nodes[plan->root].burden_max < burden * SWAP_GAIN) return KN_NO_SLOT;
    s->nodes[slot] = (kn_queue_node){.key = job->terms.deadline_ns, .seq = job->seq, .work = left, .burden = burden};
    kn_queue_insert(s->nodes, plan, slot);
    const int32_t late = kn_queue_first_late(s->nodes, plan, start);
    int32_t out = late >= 0 ? kn_queue_heaviest(s->nodes, plan, late) : KN_NO_SLOT;
    if (out == slot || (out >= 0 && s->nodes[out].burden < burden * SWAP_GAIN)) out = KN_NO_SLOT;
    if (out >= 0) {
        kn_queue_remove(s->nodes, plan, out);
        const bool holds = kn_queue_slack(s->nodes, plan) >= start;
        kn_queue_insert(s->nodes, plan, out);
        if (!holds) out = KN_NO_SLOT;
    }
    kn_queue_remove(s->nodes, plan, slot);
    return out;
}

void kn_core_give_up(kn_scheduler *s, int32_t slot)
{
    s->jobs[slot].late = true;
    s->stats.late++;
    s->stats.demotions++;
}

/* Spare while its deadline can be met anywhere, else its tenant's queue. */
static void place_unplanned(kn_scheduler *s, int32_t slot, int64_t now_ns)
{
    kn_core_job *job = &s->jobs[slot];
    kn_core_set_left(s, slot, kn_core_left(s, job, KN_NO_DEVICE));
    if (now_ns + kn_core_least(s, job) > job->terms.deadline_ns) {
        kn_core_give_up(s, slot);
        fair_add(s, slot);
        return;
    }
    s->nodes[slot] = (kn_queue_node){.key = job->left_ns, .seq = job->seq, .work = job->left_ns};
    kn_queue_insert(s->nodes, &s->spare, slot);
    job->place = KN_PLACE_SPARE;
}

static bool place_planned(kn_scheduler *s, int32_t slot, int64_t now_ns)
{
    const int32_t device = plan_device(s, &s->jobs[slot], now_ns);
    if (device == KN_NO_DEVICE) return false;
    plan_add(s, slot, device, kn_core_left(s, &s->jobs[slot], device));
    return true;
}

/* After a job was taken out of a plan: a resident one stays where it is. */
static void place_displaced(kn_scheduler *s, int32_t slot, int64_t now_ns)
{
    kn_core_job *job = &s->jobs[slot];
    if (job->device != KN_NO_DEVICE) {
        if (!job->late && now_ns + kn_core_least(s, job) > job->terms.deadline_ns) kn_core_give_up(s, slot);
        return;
    }
    if (!place_planned(s, slot, now_ns)) place_unplanned(s, slot, now_ns);
}

/* Plans the job in the place of a heavier one. */
static bool place_instead(kn_scheduler *s, int32_t slot, int64_t now_ns)
{
    int32_t best = KN_NO_SLOT;
    uint64_t seen = 0; /* pools */
    for (uint64_t up = s->up; up; up &= up - 1) {
        const int32_t device = __builtin_ctzll(up);
        if (!kn_core_fits(s, &s->jobs[slot].shape, device) || seen >> s->devices[device].pool & 1) continue;
        seen |= UINT64_C(1) << s->devices[device].pool;
        const int32_t out = gives_way(s, slot, device, now_ns);
        if (out >= 0 && (best < 0 || s->nodes[out].burden > s->nodes[best].burden)) best = out;
    }
    if (best < 0) return false;
    const int32_t device = kn_core_in_pool(s, &s->jobs[slot].shape, s->jobs[best].plan);
    kn_core_unplace(s, best);
    plan_add(s, slot, device, kn_core_left(s, &s->jobs[slot], device));
    place_displaced(s, best, now_ns);
    return true;
}

void kn_core_place(kn_scheduler *s, int32_t slot, int64_t now_ns)
{
    kn_core_job *job = &s->jobs[slot];
    const bool timed = job->terms.deadline_ns != KN_SCHEDULER_NO_DEADLINE && !job->late && !kn_core_plain(s);
    if (timed && (place_planned(s, slot, now_ns) || place_instead(s, slot, now_ns))) return;
    if (timed) {
        place_unplanned(s, slot, now_ns);
        return;
    }
    kn_core_set_left(s, slot, kn_core_left(s, job, KN_NO_DEVICE));
    fair_add(s, slot);
}

void kn_core_unplace(kn_scheduler *s, int32_t slot)
{
    kn_core_job *job = &s->jobs[slot];
    switch (job->place) {
    case KN_PLACE_PLAN:
        kn_queue_remove(s->nodes, &s->devices[job->plan].plan, slot);
        if (job->device != KN_NO_DEVICE) s->devices[job->device].fair_left_ns += job->left_ns;
        job->plan = KN_NO_DEVICE;
        s->stats.planned--;
        break;
    case KN_PLACE_SPARE: kn_queue_remove(s->nodes, &s->spare, slot); break;
    case KN_PLACE_FAIR: fair_remove(s, slot); break;
    case KN_PLACE_NOWHERE: break;
    }
    job->place = KN_PLACE_NOWHERE;
}

/* How far behind its plan a device may be before a deadline is given up: half the usual error of one slice. */
static int64_t tolerance(const kn_core_device *d)
{
    if (d->running_count == 0) return 0;
    const kn_cost_fit *fit = &d->fits[d->running_model][KN_STAGE_DENOISE];
    return (int64_t)(fit->fixed * fit->error);
}

void kn_core_displace(kn_scheduler *s, int32_t slot, int64_t now_ns)
{
    kn_core_unplace(s, slot);
    place_displaced(s, slot, now_ns);
}

void kn_core_relieve(kn_scheduler *s, int32_t device, int64_t now_ns)
{
    kn_core_device *d = &s->devices[s->devices[device].pool];
    const int64_t start = kn_core_plan_start(s, d->pool, now_ns) - tolerance(&s->devices[device]);
    for (;;) {
        const int32_t late = kn_queue_first_late(s->nodes, &d->plan, start);
        if (late < 0) return;
        kn_core_displace(s, kn_queue_heaviest(s->nodes, &d->plan, late), now_ns);
    }
}

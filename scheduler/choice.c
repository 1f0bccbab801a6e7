/* SPDX-License-Identifier: Apache-2.0
 *
 * Which job leads a device's next slice.
 *
 *   1. An aged job, when the device owes it time.
 *   2. The planned job with the earliest deadline, when the plan's slack runs short.
 *   3. Else the higher of two classes: the planned job's, or the best of the others'. Inside a class the tenant that is
 *      behind in weighted service; the plan wins ties.
 *   4. The best of the others: by class, then by tenant; a job that has started goes on unless its tenant is ahead of
 *      one that waits by fair_quantum_ns.
 *   5. When there is nothing else: a job of the spare queue, or one that is paused on a busy device.
 *
 * Before that the plan is brought in order: deadlines that can no longer be met are given up, and jobs that were in no
 * plan get a place when there is one now. A deadline job therefore preempts another only if both can be met, or if
 * place.c found that one must give way to lighter ones. */
#include "scheduler/state.h"

enum {
    SPARE_LOOKED_AT = 2, /* per decision; every device goes round the whole queue in turn */
    AGED_LOOKED_AT = 4,
    RESERVE_SLICES = 4, /* slack below the planned work and so many slices is short */
    MOVE_GAIN = 4,      /* a paused job moves when what it still needs is worth so many text slices */
};

/* The cost of the slice a job runs next, alone. */
int64_t kn_core_next_ns(const kn_scheduler *s, const kn_core_job *job, int32_t device)
{
    const kn_stage stage = kn_job_next_stage(&job->shape, &job->progress);
    const double work = kn_cost_next(&job->work, &job->shape, &job->progress);
    if (stage == KN_STAGE_DENOISE) return (int64_t)kn_core_step_ns(s, job, device, kn_core_fixed(s, device));
    return (int64_t)kn_cost_predict(&s->devices[device].fits[job->shape.model][stage], work);
}

/* ---- keeping the plan in order ---- */

static void reconsider_residents(kn_scheduler *s, int32_t device, int64_t now_ns)
{
    const kn_core_device *d = &s->devices[device];
    for (int32_t i = 0; i < d->resident_count; i++) {
        const int32_t slot = d->residents[i];
        const kn_core_job *job = &s->jobs[slot];
        if (job->place != KN_PLACE_NOWHERE || job->removed || job->late) continue;
        if (job->terms.deadline_ns == KN_SCHEDULER_NO_DEADLINE || kn_core_plan(s, slot, device, now_ns)) continue;
        if (now_ns + kn_core_least(s, job) > job->terms.deadline_ns) kn_core_give_up(s, slot);
    }
}

static void take_spare(kn_scheduler *s, int32_t device, int64_t now_ns)
{
    kn_core_device *d = &s->devices[device];
    for (int n = 0; n < SPARE_LOOKED_AT && s->spare.root >= 0; n++) {
        int32_t slot = kn_queue_from(s->nodes, &s->spare, d->spare_key, d->spare_seq);
        if (slot < 0) slot = s->spare.first;
        const kn_core_job *job = &s->jobs[slot];
        d->spare_key = s->nodes[slot].key;
        d->spare_seq = job->seq + 1;
        if (kn_core_plan(s, slot, device, now_ns) || now_ns + kn_core_least(s, job) <= job->terms.deadline_ns) continue;
        kn_core_unplace(s, slot);
        kn_core_place(s, slot, now_ns);
    }
}

/* First job of a plan that has not been started. */
static int32_t first_waiting(const kn_scheduler *s, const kn_queue *plan)
{
    int32_t slot = plan->first;
    while (slot >= 0 && s->jobs[slot].device != KN_NO_DEVICE) slot = kn_queue_next(s->nodes, slot);
    return slot;
}

/* A pool without a plan takes over from the busy one that has most planned. */
static void take_over(kn_scheduler *s, int32_t device, int64_t now_ns)
{
    int32_t best = KN_NO_SLOT;
    int64_t most = 0;
    if (s->devices[s->devices[device].pool].plan.root >= 0 || s->stats.planned == 0) return;
    for (uint64_t others = s->up & ~s->idle; others; others &= others - 1) {
        const kn_core_device *pool = &s->devices[s->devices[__builtin_ctzll(others)].pool];
        if ((pool->members & s->up & s->idle) != 0 || kn_queue_sum(s->nodes, &pool->plan) <= most) continue;
        const int32_t slot = first_waiting(s, &pool->plan);
        if (slot < 0 || !kn_core_fits(s, &s->jobs[slot].shape, device)) continue;
        best = slot;
        most = kn_queue_sum(s->nodes, &pool->plan);
    }
    if (best >= 0) kn_core_plan(s, best, device, now_ns);
}

/* Asks a busy device for a job that is paused there. */
static void ask_for_paused(kn_scheduler *s, int32_t device)
{
    for (uint64_t others = s->up & ~s->idle; others; others &= others - 1) {
        kn_core_device *d = &s->devices[__builtin_ctzll(others)];
        if (d->shed != KN_NO_SLOT) continue;
        for (int32_t i = d->resident_count - 1; i >= 0; i--) {
            const int32_t slot = d->residents[i];
            const kn_core_job *job = &s->jobs[slot];
            if (job->running || job->removed || job->progress.decoded > 0) continue;
            if (!kn_core_fits(s, &job->shape, device)) continue;
            const kn_cost_fit *text = &s->devices[device].fits[job->shape.model][KN_STAGE_TEXT];
            if ((double)job->left_ns < MOVE_GAIN * kn_cost_predict(text, job->work.text)) continue;
            d->shed = slot;
            return;
        }
    }
}

/* ---- everything that is not planned ---- */

static bool in_last_slice(const kn_core_device *d, int32_t slot)
{
    for (int32_t i = 0; i < d->running_count; i++)
        if (d->running[i] == slot) return true;
    return false;
}

/* Has this tenant had so much more than the other that it must wait? */
static bool is_ahead(const kn_scheduler *s, int32_t tenant, int32_t other)
{
    const kn_core_tenant *t = &s->tenants[tenant];
    return (t->virtual_ns - s->tenants[other].virtual_ns) * t->weight > s->params.fair_quantum_ns;
}

/* Does a challenger come before the job chosen so far? Both are unplanned. */
static bool comes_first(const kn_scheduler *s, int32_t slot, int slot_class, int32_t chosen, int chosen_class)
{
    if (slot_class != chosen_class) return slot_class > chosen_class;
    return is_ahead(s, s->jobs[chosen].terms.tenant, s->jobs[slot].terms.tenant);
}

/* The resident that goes on among the unplanned ones: what ran last, unless another comes first. */
static int32_t fair_resident(const kn_scheduler *s, const kn_core_device *d)
{
    int32_t best = KN_NO_SLOT;
    for (int32_t pass = 0; pass < 2; pass++) {
        for (int32_t i = 0; i < d->resident_count; i++) {
            const int32_t slot = d->residents[i];
            const kn_core_job *job = &s->jobs[slot];
            if (job->place != KN_PLACE_NOWHERE || job->removed || in_last_slice(d, slot) != (pass == 0)) continue;
            if (best < 0 || comes_first(s, slot, kn_core_class(s, job), best, kn_core_class(s, &s->jobs[best])))
                best = slot;
        }
    }
    return best;
}

int32_t kn_core_fair_lead(kn_scheduler *s, int32_t device, int *job_class)
{
    int waiting_class = KN_CLASS_LATE;
    const int32_t resident = fair_resident(s, &s->devices[device]);
    const int32_t waiting = kn_core_fair_first(s, device, &waiting_class);
    *job_class = resident >= 0 ? kn_core_class(s, &s->jobs[resident]) : waiting_class;
    if (resident < 0) return waiting;
    if (waiting < 0 || !comes_first(s, waiting, waiting_class, resident, *job_class)) return resident;
    *job_class = waiting_class;
    return waiting;
}

/* The job that has waited longest for more than ageing_ns; one that is being helped already comes first. */
static int32_t aged_lead(const kn_scheduler *s, int32_t device, int64_t now_ns)
{
    const kn_core_device *d = &s->devices[device];
    const int64_t limit = now_ns - s->params.ageing_ns;
    int32_t best = KN_NO_SLOT, waiting = s->age.first;
    for (int32_t i = 0; i < d->resident_count; i++) {
        const kn_core_job *job = &s->jobs[d->residents[i]];
        if (job->place != KN_PLACE_NOWHERE || job->removed || (!job->aged && job->served_ns > limit)) continue;
        if (best < 0 || job->seq < s->jobs[best].seq) best = d->residents[i];
    }
    for (int n = 0; best < 0 && n < AGED_LOOKED_AT && waiting >= 0; n++) {
        const kn_core_job *job = &s->jobs[waiting];
        if (job->served_ns > limit && !job->aged) break;
        if (kn_core_fits(s, &job->shape, device)) best = waiting;
        waiting = kn_queue_next(s->age_nodes, waiting);
    }
    return best;
}

/* ---- the choice ---- */

static int64_t slack_of_plan(const kn_scheduler *s, const kn_core_device *d, int64_t now_ns)
{
    return d->plan.root < 0 ? KN_DEADLINE_FAR : kn_queue_slack(s->nodes, &d->plan) - now_ns;
}

/* Deadlines are spared while the account is low; when it is full, they are not. */
static bool owes_aged(const kn_scheduler *s, int32_t device, int32_t slot, int64_t now_ns)
{
    const kn_core_device *d = &s->devices[device];
    const int64_t credit = kn_core_aged_credit(s);
    /* In stretches, not slice by slice: they run into debt before they wait again. */
    if (d->aged_ns < (d->running_aged ? -credit : 0)) return false;
    return d->running_aged || d->aged_ns >= credit ||
           slack_of_plan(s, &s->devices[d->pool], now_ns) >= kn_core_next_ns(s, &s->jobs[slot], device);
}

/* For a device with nothing to do: a spare job, though by this device's own reckoning it will be late. */
int32_t kn_core_last_resort(kn_scheduler *s, int32_t device, int64_t now_ns)
{
    for (int32_t slot = s->spare.first; slot >= 0; slot = kn_queue_next(s->nodes, slot)) {
        if (!kn_core_fits(s, &s->jobs[slot].shape, device)) continue;
        if (kn_core_chooses(s, s->devices[device].terms.domain)) return slot; /* it may yet be in time, in a group */
        if (!kn_core_plan(s, slot, device, now_ns)) {
            kn_core_unplace(s, slot);
            kn_core_give_up(s, slot);
        }
        return slot;
    }
    ask_for_paused(s, device);
    return KN_NO_SLOT;
}

void kn_core_tidy(kn_scheduler *s, int32_t device, int64_t now_ns)
{
    kn_core_relieve(s, device, now_ns);
    reconsider_residents(s, device, now_ns);
    take_spare(s, device, now_ns);
    take_over(s, device, now_ns);
}

int32_t kn_core_aged_lead(const kn_scheduler *s, int32_t device, int64_t now_ns)
{
    const int32_t old = aged_lead(s, device, now_ns);
    return old >= 0 && owes_aged(s, device, old, now_ns) ? old : KN_NO_SLOT;
}

bool kn_core_comes_first(const kn_scheduler *s, int32_t planned, int32_t fair, int fair_class, int32_t device,
                         int64_t now_ns)
{
    const kn_core_device *d = &s->devices[device], *pool = &s->devices[d->pool];
    const kn_core_job *p = &s->jobs[planned], *f = &s->jobs[fair];
    const int planned_class = 1 + (int)p->terms.priority;
    const int64_t slice = kn_core_next_ns(s, f, device);
    int64_t reserve = kn_queue_sum(s->nodes, &pool->plan) + RESERVE_SLICES * slice;
    if (d->running_planned) reserve += reserve / 2; /* or the two would take turns at every slice */
    if (fair_class < planned_class || slack_of_plan(s, pool, now_ns) < reserve) return true;
    if (fair_class > planned_class) return false;
    return s->tenants[f->terms.tenant].virtual_ns >= s->tenants[p->terms.tenant].virtual_ns;
}

static int32_t lead_kinora(kn_scheduler *s, int32_t device, int64_t now_ns, bool *aged)
{
    kn_core_tidy(s, device, now_ns);
    const int32_t old = kn_core_aged_lead(s, device, now_ns);
    if (old >= 0) {
        *aged = true;
        return old;
    }
    int fair_class;
    const int32_t planned = s->devices[device].plan.first, fair = kn_core_fair_lead(s, device, &fair_class);
    if (planned < 0 && fair < 0) return kn_core_last_resort(s, device, now_ns);
    if (planned < 0 || fair < 0) return planned < 0 ? fair : planned;
    return kn_core_comes_first(s, planned, fair, fair_class, device, now_ns) ? planned : fair;
}

/* ---- the policies for comparison ---- */

/* Smaller comes first. */
static int64_t plain_key(const kn_scheduler *s, const kn_core_job *job)
{
    return s->params.policy == KN_POLICY_SRPT ? job->left_ns : kn_core_deadline(job);
}

static int32_t lead_plain(kn_scheduler *s, int32_t device)
{
    const kn_core_device *d = &s->devices[device];
    const bool changes = s->params.policy == KN_POLICY_SRPT || s->params.policy == KN_POLICY_EDF_STEP;
    int32_t best = KN_NO_SLOT;
    int waiting_class;
    for (int32_t i = 0; i < d->resident_count; i++) {
        const int32_t slot = d->residents[i];
        if (s->jobs[slot].removed) continue;
        if (best < 0 || (changes && plain_key(s, &s->jobs[slot]) < plain_key(s, &s->jobs[best]))) best = slot;
    }
    if (best >= 0 && !changes) return best;
    const int32_t waiting = kn_core_fair_first(s, device, &waiting_class);
    if (best < 0) return waiting;
    return waiting >= 0 && plain_key(s, &s->jobs[waiting]) < plain_key(s, &s->jobs[best]) ? waiting : best;
}

int32_t kn_core_lead(kn_scheduler *s, int32_t device, int64_t now_ns, bool *aged)
{
    *aged = false;
    return kn_core_plain(s) ? lead_plain(s, device) : lead_kinora(s, device, now_ns, aged);
}

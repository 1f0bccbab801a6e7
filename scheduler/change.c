/* SPDX-License-Identifier: Apache-2.0
 *
 * What happened. Every change is checked as a whole before anything is written. */
#include "scheduler/state.h"

#include <math.h>
#include <string.h>

enum { SLACK_MEMORY = 16, WEIGHT_MAX = 1000, DIMENSION_MAX = 1 << 20, TOKENS_MAX = 1 << 26 };

#define PIXELS_MAX (1 << 28)
#define STALE 0.05 /* left_ns is brought up to date when a slice's prediction has changed by so much */

/* ---- checks ---- */

static kn_status check_range(const char *field, int64_t value, int64_t least, int64_t most)
{
    if (value >= least && value <= most) return KN_OK;
    return kn_fail(KN_INVALID, "%s is %lld; it must be %lld to %lld", field, (long long)value, (long long)least,
                   (long long)most);
}

static kn_status check_bytes(const char *field, uint64_t bytes)
{
    return check_range(field, bytes > INT64_MAX ? INT64_MAX : (int64_t)bytes, 0, KN_SCHEDULER_BYTES_MAX);
}

kn_status kn_core_check_shape(const kn_scheduler *s, const kn_job_shape *shape)
{
    kn_status st = KN_OK;
    KN_TRY(check_range("model", shape->model, 0, KN_SCHEDULER_MODELS_MAX - 1));
    if (s->models[shape->model].layers == 0) return kn_fail(KN_INVALID, "model %d was not declared", shape->model);
    KN_TRY(check_range("tokens", shape->tokens, 1, TOKENS_MAX));
    KN_TRY(check_range("sequences", shape->sequences, 1, 2));
    KN_TRY(check_range("text_tokens", shape->text_tokens, 0, DIMENSION_MAX));
    KN_TRY(check_range("steps", shape->steps, 1, KN_SCHEDULER_STEPS_MAX));
    KN_TRY(check_range("latent_frames", shape->latent_frames, 1, DIMENSION_MAX));
    KN_TRY(check_range("pixels", shape->pixels, 1, PIXELS_MAX));
    KN_TRY(check_bytes("state_bytes", shape->state_bytes));
    KN_TRY(check_bytes("workspace_bytes", shape->workspace_bytes));
    KN_TRY(check_bytes("decoder_bytes", shape->decoder_bytes));
fail:
    return st;
}

kn_status kn_core_check_terms(const kn_scheduler *s, const kn_job_terms *terms)
{
    kn_status st = KN_OK;
    KN_TRY(check_range("priority", (int64_t)terms->priority, 0, KN_PRIORITIES - 1));
    KN_TRY(check_range("tenant", terms->tenant, 0, s->params.tenants - 1));
    KN_TRY(check_range("tenant_weight", terms->tenant_weight, 1, WEIGHT_MAX));
    KN_TRY(check_range("submitted_ns", terms->submitted_ns, -KN_SCHEDULER_TIME_MAX, KN_SCHEDULER_TIME_MAX));
    KN_TRY(check_range("deadline_ns", terms->deadline_ns, 0, KN_SCHEDULER_TIME_MAX));
fail:
    return st;
}

static kn_status check_progress(const kn_job_shape *shape, const kn_job_progress *progress)
{
    kn_status st = KN_OK;
    KN_TRY(check_range("progress.step", progress->step, 0, shape->steps));
    KN_TRY(check_range("progress.decoded", progress->decoded, 0, shape->latent_frames));
    if (progress->decoded > 0) KN_TRY(check_range("progress.step", progress->step, shape->steps, shape->steps));
fail:
    return st;
}

static kn_status check_seed(const kn_device_seed *seed)
{
    if (!(seed->flop_per_second > 0) || !isfinite(seed->flop_per_second))
        return kn_fail(KN_INVALID, "seed.flop_per_second must be above 0");
    if (!(seed->bytes_per_second > 0) || !isfinite(seed->bytes_per_second))
        return kn_fail(KN_INVALID, "seed.bytes_per_second must be above 0");
    if (!(seed->decode_efficiency >= 0) || seed->decode_efficiency > 1)
        return kn_fail(KN_INVALID, "seed.decode_efficiency must be 0 to 1");
    if (!(seed->link_bytes_per_second >= 0) || !isfinite(seed->link_bytes_per_second))
        return kn_fail(KN_INVALID, "seed.link_bytes_per_second must be 0 or more");
    const kn_status st = check_range("seed.exchange_ns", seed->exchange_ns, 0, KN_QUEUE_WORK_MAX);
    if (st != KN_OK) return st;
    return check_range("seed.slice_ns", seed->slice_ns, 0, KN_QUEUE_WORK_MAX);
}

/* ---- jobs ---- */

/* How much time jobs with deadlines have to spare when they come: slices that nobody is in a hurry for should not take
 * longer where groups are chosen. */
static void note_slack(kn_scheduler *s, const kn_core_job *job, int64_t now_ns)
{
    const int32_t device = kn_core_reference(s, &job->shape);
    if (device == KN_NO_DEVICE || job->terms.deadline_ns == KN_SCHEDULER_NO_DEADLINE) return;
    const int64_t spare = job->terms.deadline_ns - now_ns - kn_core_least(s, job);
    kn_core_device *pool = &s->devices[s->devices[device].pool];
    if (spare < 0) return;
    pool->slack_ns = pool->timed_ns == 0 ? spare : pool->slack_ns + (spare - pool->slack_ns) / SLACK_MEMORY;
    pool->timed_ns = now_ns;
}

static kn_status admit(kn_scheduler *s, const kn_change_job *change, int64_t now_ns)
{
    kn_status st = KN_OK;
    KN_TRY(kn_core_check_shape(s, &change->shape));
    KN_TRY(kn_core_check_terms(s, &change->terms));
    KN_TRY(check_progress(&change->shape, &change->progress));
    if (change->progress.done) return kn_fail(KN_INVALID, "progress.done: a job that is done is not admitted");
    if (kn_core_find(s, change->key) != KN_NO_SLOT)
        return kn_fail(KN_INVALID, "job %llx is there already", (unsigned long long)change->key);
    const int32_t slot = kn_core_add(s, change->key);
    if (slot == KN_NO_SLOT) return kn_fail(KN_UNAVAILABLE, "%d jobs are there, which is the limit", s->params.jobs);
    kn_core_job *job = &s->jobs[slot];
    job->shape = change->shape;
    job->terms = change->terms;
    job->saved_step = change->progress.step;
    job->progress = kn_core_restart(job, change->progress.step); /* it resides nowhere */
    job->served_ns = change->terms.submitted_ns;
    kn_cost_count(&job->work, &s->models[job->shape.model], &job->shape);
    kn_core_tenant *tenant = &s->tenants[job->terms.tenant];
    tenant->weight = job->terms.tenant_weight;
    if (tenant->unfinished++ == 0 && tenant->virtual_ns < s->virtual_ns) tenant->virtual_ns = s->virtual_ns;
    note_slack(s, job, now_ns);
    kn_core_place(s, slot, now_ns);
fail:
    return st;
}

/* A job's account is closed; its slot stays while it resides on a device. */
static void finish(kn_scheduler *s, int32_t slot)
{
    kn_core_job *job = &s->jobs[slot];
    kn_core_set_left(s, slot, 0);
    kn_core_unplace(s, slot);
    if (job->late) s->stats.late--;
    s->tenants[job->terms.tenant].unfinished--;
    job->removed = true;
}

static kn_status remove_job(kn_scheduler *s, uint64_t key)
{
    const int32_t slot = kn_core_find(s, key);
    if (slot == KN_NO_SLOT || s->jobs[slot].removed)
        return kn_fail(KN_NOT_FOUND, "no job %llx", (unsigned long long)key);
    const bool resident = s->jobs[slot].device != KN_NO_DEVICE && !s->jobs[slot].releasing;
    finish(s, slot);
    if (!resident)
        kn_core_forget(s, slot);
    else if (!s->jobs[slot].running)
        s->orphans++;
    return KN_OK;
}

/* It resides nowhere now and waits. */
static void set_waiting(kn_scheduler *s, int32_t slot, int32_t step, int64_t now_ns)
{
    kn_core_job *job = &s->jobs[slot];
    kn_core_unplace(s, slot);
    if (job->device != KN_NO_DEVICE && !job->releasing) kn_core_leave(s, slot);
    job->releasing = job->running = false;
    job->device = KN_NO_DEVICE;
    job->progress = kn_core_restart(job, step);
    kn_core_place(s, slot, now_ns);
}

/* It drops out of the slice its device is about to run, or runs; the others go on. */
static void leave_slice(kn_scheduler *s, int32_t slot)
{
    kn_core_device *d = &s->devices[s->jobs[slot].device];
    int32_t at = 0;
    while (d->running[at] != slot) at++;
    d->running_count--;
    for (; at < d->running_count; at++) d->running[at] = d->running[at + 1];
    s->jobs[slot].running = false;
}

static kn_status release_job(kn_scheduler *s, const kn_change_job *change, int64_t now_ns)
{
    kn_status st = KN_OK;
    const int32_t slot = kn_core_find(s, change->key);
    if (slot == KN_NO_SLOT) return kn_fail(KN_NOT_FOUND, "no job %llx", (unsigned long long)change->key);
    kn_core_job *job = &s->jobs[slot];
    KN_TRY(check_progress(&job->shape, &change->progress));
    const bool in_slice = job->running;
    if (in_slice) leave_slice(s, slot);
    if (job->removed) { /* resides: only such slots are kept */
        if (!in_slice) s->orphans--;
        kn_core_leave(s, slot);
        kn_core_forget(s, slot);
        return KN_OK;
    }
    job->saved_step = change->progress.step;
    set_waiting(s, slot, change->progress.step, now_ns);
fail:
    return st;
}

/* ---- devices ---- */

void kn_core_seed(kn_core_device *d, int32_t index, const kn_cost_model *model)
{
    for (int k = 0; k < KN_STAGES; k++) {
        kn_cost_seed(&d->fits[index][k], model, &d->terms.seed, (kn_stage)k, 1);
        d->basis[index][k] = d->fits[index][k];
    }
    for (int k = 0; k < KN_STAGES; k++)
        for (int32_t degree = 2; kn_cost_is_shareable((kn_stage)k) && degree <= KN_SCHEDULER_DEGREE_MAX; degree++)
            kn_cost_seed(kn_core_fit(d, index, (kn_stage)k, degree), model, &d->terms.seed, (kn_stage)k, degree);
}

static bool same_kind(const kn_core_device *a, const kn_core_device *b)
{
    return a->terms.domain == b->terms.domain && memcmp(&a->terms.seed, &b->terms.seed, sizeof a->terms.seed) == 0;
}

/* The pool a device belongs to from its first UP on: others of its domain and kind. */
static int32_t pool_of(const kn_scheduler *s, int32_t device)
{
    const kn_core_device *d = &s->devices[device];
    if (!kn_core_chooses(s, d->terms.domain)) return device;
    for (int32_t i = 0; i < KN_SCHEDULER_DEVICES_MAX; i++)
        if (s->devices[i].known && same_kind(&s->devices[i], d)) return s->devices[i].pool;
    return device;
}

/* First device of the fixed group; the device itself where there are none. */
static int32_t first_of_group(const kn_scheduler *s, int32_t device)
{
    return device - device % kn_core_fixed(s, device);
}

/* A device takes slices when it is up; the first of a fixed group when all of the group are, the others never. */
static void open_device(kn_scheduler *s, int32_t device)
{
    const int32_t first = first_of_group(s, device);
    const kn_core_device *d = &s->devices[device];
    for (int32_t i = first; i < first + kn_core_fixed(s, device); i++)
        if (!s->devices[i].up || !same_kind(&s->devices[i], d)) return;
    s->up |= UINT64_C(1) << first;
    if (!s->devices[first].busy) s->idle |= UINT64_C(1) << first;
}

static kn_status check_device(const kn_scheduler *s, const kn_change_device *change)
{
    kn_status st = KN_OK;
    uint64_t bytes = 0;
    KN_TRY(check_range("device", change->index, 0, KN_SCHEDULER_DEVICES_MAX - 1));
    KN_TRY(check_range("load_ns", change->load_ns, 0, KN_QUEUE_WORK_MAX));
    if (change->models >> KN_SCHEDULER_MODELS_MAX)
        return kn_fail(KN_INVALID, "models: bits above model %d", KN_SCHEDULER_MODELS_MAX - 1);
    for (int m = 0; m < KN_SCHEDULER_MODELS_MAX; m++)
        if (change->models >> m & 1) bytes += s->models[m].resident_bytes;
    if (bytes > (s->devices[change->index].up && change->memory_bytes == 0
                     ? s->devices[change->index].terms.memory_bytes
                     : change->memory_bytes))
        return kn_fail(KN_INVALID, "device %d: the loaded models alone are larger than its memory", change->index);
fail:
    return st;
}

/* Residents keep their memory; the models are as told. */
static void set_models(kn_scheduler *s, kn_core_device *d, uint32_t models)
{
    d->terms.models = models;
    d->memory_used = 0;
    for (int m = 0; m < KN_SCHEDULER_MODELS_MAX; m++)
        if (models >> m & 1) d->memory_used += s->models[m].resident_bytes;
    for (int32_t i = 0; i < d->resident_count; i++) d->memory_used += kn_core_held(&s->jobs[d->residents[i]]);
    s->refresh = 0;
}

static kn_status device_up(kn_scheduler *s, const kn_change_device *change)
{
    kn_status st = KN_OK;
    KN_TRY(check_device(s, change));
    KN_TRY(check_seed(&change->seed));
    KN_TRY(check_range("domain", change->domain, 0, INT32_MAX));
    KN_TRY(check_range("degree_max", change->degree_max, 0, KN_SCHEDULER_DEGREE_MAX));
    kn_core_device *d = &s->devices[change->index];
    if (d->known && d->terms.domain != change->domain)
        return kn_fail(KN_INVALID, "domain of device %d is %d; it was %d", change->index, change->domain,
                       d->terms.domain);
    const bool same = d->known && memcmp(&d->terms.seed, &change->seed, sizeof change->seed) == 0;
    d->terms = *change;
    d->terms.loadable |= change->models;
    if (!same) {
        for (int m = 0; m < KN_SCHEDULER_MODELS_MAX; m++) kn_core_seed(d, m, &s->models[m]);
    }
    if (!d->known) {
        d->plan = kn_queue_empty();
        d->shed = KN_NO_SLOT;
        d->leader = change->index;
        d->pool = pool_of(s, change->index);
        s->devices[d->pool].members |= UINT64_C(1) << change->index;
    }
    d->known = d->up = true;
    open_device(s, change->index);
    set_models(s, d, change->models);
fail:
    return st;
}

/* The devices of a slice are idle again. */
static void free_members(kn_scheduler *s, int32_t leader)
{
    kn_core_device *d = &s->devices[leader];
    for (uint64_t members = d->helpers | UINT64_C(1) << leader; members; members &= members - 1) {
        const int32_t member = __builtin_ctzll(members);
        s->devices[member].busy = false;
        s->devices[member].leader = member;
        s->idle |= s->up & UINT64_C(1) << member;
    }
    d->helpers = 0;
}

static void end_unnamed(kn_scheduler *s, int32_t slot, int64_t now_ns);

/* A helper is gone: the slice has failed. */
static void break_slice(kn_scheduler *s, int32_t leader, int64_t now_ns)
{
    kn_core_device *d = &s->devices[leader];
    free_members(s, leader);
    for (int32_t i = 0; i < d->running_count; i++)
        if (d->running[i] != KN_NO_SLOT) end_unnamed(s, d->running[i], now_ns);
    d->running_count = 0;
}

static kn_status device_down(kn_scheduler *s, int32_t device, int64_t now_ns)
{
    if (device < 0 || device >= KN_SCHEDULER_DEVICES_MAX || !s->devices[device].up)
        return kn_fail(KN_NOT_FOUND, "device %d is not up", device);
    kn_core_device *d = &s->devices[device];
    const int32_t first = first_of_group(s, device);
    const uint64_t closed = UINT64_C(1) << device | UINT64_C(1) << first;
    d->up = false;
    s->up &= ~closed;
    s->idle &= ~closed;
    if (d->busy && d->leader != device)
        break_slice(s, d->leader, now_ns);
    else
        free_members(s, device);
    const bool is_closed = (s->up & s->devices[s->devices[first].pool].members) == 0; /* nobody can keep the plan */
    for (int32_t slot = 0; slot < s->params.jobs; slot++) {
        const kn_core_job *job = &s->jobs[slot];
        if (!job->used) continue;
        if (job->removed) {
            if (job->device != device) continue;
            s->orphans -= !job->running;
            kn_core_leave(s, slot);
            kn_core_forget(s, slot);
        } else if (job->device == device) {
            set_waiting(s, slot, job->saved_step, now_ns);
        } else if (is_closed && job->place == KN_PLACE_PLAN && job->plan == s->devices[first].pool) {
            kn_core_unplace(s, slot);
            if (job->device == KN_NO_DEVICE) kn_core_place(s, slot, now_ns);
        }
    }
    d->running_count = 0;
    d->terms.models = 0;
    d->memory_used = 0;
    s->refresh = 0;
    return KN_OK;
}

static kn_status model_loaded(kn_scheduler *s, const kn_change_device *change)
{
    kn_status st = KN_OK;
    KN_TRY(check_device(s, change));
    kn_core_device *d = &s->devices[change->index];
    if (!d->up) return kn_fail(KN_NOT_FOUND, "device %d is not up", change->index);
    if (change->load_ns > 0) d->terms.load_ns += (change->load_ns - d->terms.load_ns) / 2;
    set_models(s, d, change->models);
fail:
    return st;
}

/* ---- slices ---- */

static kn_status check_slice(const kn_scheduler *s, const kn_change_slice *slice)
{
    kn_status st = KN_OK;
    if (slice->device < 0 || slice->device >= KN_SCHEDULER_DEVICES_MAX || !s->devices[slice->device].busy ||
        s->devices[slice->device].leader != slice->device)
        return kn_fail(KN_NOT_FOUND, "no slice runs on device %d", slice->device);
    const kn_core_device *d = &s->devices[slice->device];
    KN_TRY(check_range("slice.measured_ns", slice->measured_ns, 0, KN_SCHEDULER_TIME_MAX));
    KN_TRY(check_range("slice.degree", slice->degree, 0, KN_SCHEDULER_DEGREE_MAX));
    KN_TRY(check_range("slice.count", slice->count, 0, d->running_count));
    for (int32_t i = 0; i < slice->count; i++) {
        const int32_t slot = kn_core_find(s, slice->jobs[i].key);
        if (slot == KN_NO_SLOT || !s->jobs[slot].running || s->jobs[slot].device != slice->device)
            return kn_fail(KN_INVALID, "job %llx is not in the slice of device %d",
                           (unsigned long long)slice->jobs[i].key, slice->device);
        for (int32_t j = 0; j < i; j++)
            if (slice->jobs[j].key == slice->jobs[i].key)
                return kn_fail(KN_INVALID, "job %llx is named twice", (unsigned long long)slice->jobs[i].key);
        KN_TRY(check_progress(&s->jobs[slot].shape, &slice->jobs[i].progress));
        KN_TRY(check_range("slice.saved_step", slice->jobs[i].saved_step, 0, s->jobs[slot].shape.steps));
    }
fail:
    return st;
}

/* Degrees for which little was measured follow the one that was measured most. */
static void follow(kn_core_device *d, int32_t model, kn_stage stage)
{
    const kn_cost_fit *measured = kn_core_fit(d, model, stage, 1);
    for (int32_t degree = 2; degree <= KN_SCHEDULER_DEGREE_MAX; degree++) {
        const kn_cost_fit *fit = kn_core_fit(d, model, stage, degree);
        if (fit->measured > measured->measured) measured = fit;
    }
    for (int32_t degree = 1; degree <= KN_SCHEDULER_DEGREE_MAX; degree++) {
        kn_cost_fit *fit = kn_core_fit(d, model, stage, degree);
        if (fit != measured && fit->measured < KN_COST_WARMUP) kn_cost_follow(fit, measured);
    }
}

/* What a group was measured with, into the fits of all devices of its kind in the domain. */
static void learn_group(kn_scheduler *s, const kn_core_device *leader, double work, int64_t measured_ns)
{
    for (uint64_t up = s->up & s->devices[leader->pool].members; up; up &= up - 1) {
        kn_core_device *d = &s->devices[__builtin_ctzll(up)];
        if (!same_kind(d, leader)) continue; /* its seed has changed since */
        kn_cost_learn(kn_core_fit(d, leader->running_model, leader->running_stage, leader->running_degree), work,
                      measured_ns);
        follow(d, leader->running_model, leader->running_stage);
    }
}

/* What was measured, into the cost model; left_ns follows when that changes much. */
static void learn(kn_scheduler *s, kn_core_device *d, double work, int64_t measured_ns)
{
    kn_cost_fit *fit = &d->fits[d->running_model][d->running_stage];
    kn_cost_fit *basis = &d->basis[d->running_model][d->running_stage];
    kn_cost_learn(fit, work, measured_ns);
    if (kn_cost_is_shareable(d->running_stage)) follow(d, d->running_model, d->running_stage);
    const double was = kn_cost_predict(basis, work), is = kn_cost_predict(fit, work);
    if (fabs(is - was) <= STALE * was) return;
    *basis = *fit;
    s->refresh = 0;
}

/* Of one job in the slice that a device leads. */
static double work_of(const kn_core_device *d, const kn_core_job *job)
{
    if (d->running_degree > 1)
        return kn_cost_shared(&job->work, &job->shape, &job->progress, &d->terms.seed, d->running_degree);
    return kn_cost_next(&job->work, &job->shape, &job->progress);
}

/* A pack's time on every device of its group, shared by work: the fixed cost equally, the rest in proportion. */
static void account(kn_scheduler *s, kn_core_device *d, int64_t measured_ns)
{
    const int32_t degree = d->running_degree;
    const kn_cost_fit *fit = kn_core_fit(d, d->running_model, d->running_stage, degree);
    double work = 0;
    for (int32_t i = 0; i < d->running_count; i++) work += work_of(d, &s->jobs[d->running[i]]);
    const int64_t taken = measured_ns > 0 ? measured_ns : (int64_t)kn_cost_predict(fit, work);
    const double scale = (double)taken / kn_cost_predict(fit, work);
    for (int32_t i = 0; i < d->running_count; i++) {
        const kn_core_job *job = &s->jobs[d->running[i]];
        const double own = degree * scale * (fit->fixed / d->running_count + fit->rate * work_of(d, job));
        kn_core_charge(s, job->terms.tenant, (int64_t)own);
    }
    for (uint64_t members = d->helpers | UINT64_C(1) << d->leader; members; members &= members - 1) {
        kn_core_device *member = &s->devices[__builtin_ctzll(members)];
        member->busy_ns += taken;
        member->slices++;
        member->aged_ns += taken / KN_SCHEDULER_AGED_SHARE - (d->running_aged ? taken : 0);
        if (member->aged_ns > kn_core_aged_credit(s)) member->aged_ns = kn_core_aged_credit(s);
    }
    if (measured_ns == 0) return;
    if (degree > 1)
        learn_group(s, d, work, measured_ns);
    else
        learn(s, d, work, measured_ns);
}

static void end_job(kn_scheduler *s, const kn_slice_job *end, bool failed, int64_t now_ns)
{
    const int32_t slot = kn_core_find(s, end->key);
    kn_core_job *job = &s->jobs[slot];
    kn_core_device *d = &s->devices[job->device];
    job->running = false;
    job->served_ns = now_ns;
    job->saved_step = end->saved_step;
    if (job->removed && !failed && !end->progress.done) {
        s->orphans++; /* still resident; the next release list frees it */
        return;
    }
    if (job->removed || end->progress.done) {
        if (!job->removed) finish(s, slot);
        kn_core_leave(s, slot);
        kn_core_forget(s, slot);
        return;
    }
    if (failed) {
        job->saved_step = end->progress.step;
        set_waiting(s, slot, end->progress.step, now_ns);
        return;
    }
    d->memory_used -= kn_core_held(job);
    job->progress = end->progress;
    d->memory_used += kn_core_held(job);
    kn_core_set_left(s, slot, kn_core_left(s, job, job->device));
}

/* A job of the assignment that is not among those the slice ended with: it never ran, and waits again. */
static void end_unnamed(kn_scheduler *s, int32_t slot, int64_t now_ns)
{
    kn_core_job *job = &s->jobs[slot];
    if (!job->running) return;
    if (!job->removed) {
        set_waiting(s, slot, job->saved_step, now_ns);
        return;
    }
    job->running = false;
    kn_core_leave(s, slot);
    kn_core_forget(s, slot);
}

static kn_status end_slice(kn_scheduler *s, const kn_change_slice *slice, bool failed, int64_t now_ns)
{
    kn_status st = KN_OK;
    KN_TRY(check_slice(s, slice));
    kn_core_device *d = &s->devices[slice->device];
    /* A pack that ran without some of its jobs, or of its devices, teaches nothing about its cost. */
    const bool whole = slice->count == d->running_count && (slice->degree == 0 || slice->degree == d->running_degree);
    if (!failed && slice->count > 0) account(s, d, whole ? slice->measured_ns : 0);
    free_members(s, slice->device);
    for (int32_t i = 0; i < slice->count; i++) end_job(s, &slice->jobs[i], failed, now_ns);
    for (int32_t i = 0; i < d->running_count; i++)
        if (d->running[i] != KN_NO_SLOT) end_unnamed(s, d->running[i], now_ns); /* else it has left the device */
fail:
    return st;
}

kn_status kn_scheduler_event(kn_scheduler *s, const kn_change *change, int64_t now_ns)
{
    if (now_ns < s->now_ns) return kn_fail(KN_INVALID, "time went back by %lld ns", (long long)(s->now_ns - now_ns));
    if (now_ns > KN_SCHEDULER_TIME_MAX)
        return kn_fail(KN_INVALID, "now_ns is %lld; it must be below 2^60", (long long)now_ns);
    s->now_ns = now_ns;
    switch (change->kind) {
    case KN_CHANGE_JOB_ADMITTED: return admit(s, &change->job, now_ns);
    case KN_CHANGE_JOB_REMOVED: return remove_job(s, change->job.key);
    case KN_CHANGE_JOB_RELEASED: return release_job(s, &change->job, now_ns);
    case KN_CHANGE_DEVICE_UP: return device_up(s, &change->device);
    case KN_CHANGE_DEVICE_DOWN: return device_down(s, change->device.index, now_ns);
    case KN_CHANGE_MODEL_LOADED: return model_loaded(s, &change->device);
    case KN_CHANGE_SLICE_DONE: return end_slice(s, &change->slice, false, now_ns);
    case KN_CHANGE_SLICE_FAILED: return end_slice(s, &change->slice, true, now_ns);
    case KN_CHANGE_DRAIN: s->draining = change->drain; return KN_OK;
    case KN_CHANGES: break;
    }
    return kn_fail(KN_INVALID, "no change of kind %d", (int)change->kind);
}

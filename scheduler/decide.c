/* SPDX-License-Identifier: Apache-2.0
 *
 * From the job that leads a slice to an assignment: who goes along, who must leave, what is loaded.
 *
 * A pack saves the fixed cost of every job but the first and makes the leader's slice longer. A mate is taken while the
 * fixed cost is worth PACK_GAIN of the pack's whole work, its memory is there without anybody leaving, and no planned
 * deadline is harmed by the longer slice. Where denoising in a pack pays, a waiting job is started early, with a text
 * slice between two steps of the others, and joins them at the next step: that is continuous batching. Texts are
 * encoded in one pack for as many as can then denoise together. */
#include "scheduler/state.h"

#include <stddef.h>
#include <string.h>

enum { WAITING_LOOKED_AT = 16 };

#define PACK_GAIN 0.08

typedef struct pack {
    int32_t device, model, count, degree;
    kn_stage stage;
    int32_t slots[KN_SCHEDULER_PACK_MAX];
    double work;       /* FLOP of the slice */
    double denoise;    /* FLOP of a denoise step of all that would be in one pack later */
    uint64_t bytes;    /* needed on top of what is used */
    int64_t longer_ns; /* mates' part of the slice */
    int32_t starting;  /* members that do not reside yet */
} pack;

static uint64_t next_bytes(const kn_core_job *job)
{
    return (job->device == KN_NO_DEVICE ? kn_core_held(job) : 0) + kn_core_extra(job);
}

static const kn_cost_fit *fit_of(const kn_scheduler *s, const pack *p, kn_stage stage)
{
    const kn_core_device *d = &s->devices[p->device];
    return kn_core_read_fit(d, p->model, stage, stage == KN_STAGE_DENOISE ? p->degree : 1);
}

static double denoise_work(const kn_scheduler *s, const pack *p, const kn_core_job *job)
{
    if (p->degree == 1) return job->work.denoise;
    return kn_cost_shared_step(&job->work, &s->devices[p->device].terms.seed, p->degree);
}

static double next_work(const kn_scheduler *s, const pack *p, const kn_core_job *job)
{
    if (p->stage == KN_STAGE_DENOISE) return denoise_work(s, p, job);
    return kn_cost_next(&job->work, &job->shape, &job->progress);
}

static bool pays(const kn_cost_fit *fit, double work)
{
    return fit->fixed >= PACK_GAIN * fit->rate * work;
}

static void take(const kn_scheduler *s, pack *p, int32_t slot)
{
    const kn_core_job *job = &s->jobs[slot];
    const double work = next_work(s, p, job);
    if (p->count > 0) p->longer_ns += (int64_t)(fit_of(s, p, p->stage)->rate * work);
    p->slots[p->count++] = slot;
    p->work += work;
    p->bytes += next_bytes(job);
    p->starting += job->device == KN_NO_DEVICE;
    if (job->device == KN_NO_DEVICE) p->denoise += denoise_work(s, p, job);
}

static pack start_pack(const kn_scheduler *s, int32_t device, int32_t lead)
{
    const kn_core_device *d = &s->devices[device];
    const kn_core_job *job = &s->jobs[lead];
    pack p = {.device = device,
              .model = job->shape.model,
              .degree = kn_core_fixed(s, device),
              .stage = kn_job_next_stage(&job->shape, &job->progress)};
    for (int32_t i = 0; i < d->resident_count; i++) {
        const kn_core_job *other = &s->jobs[d->residents[i]];
        if (!other->removed && other->shape.model == p.model && other->progress.step < other->shape.steps)
            p.denoise += denoise_work(s, &p, other);
    }
    take(s, &p, lead);
    return p;
}

static bool in_pack(const pack *p, int32_t slot)
{
    for (int32_t i = 0; i < p->count; i++)
        if (p->slots[i] == slot) return true;
    return false;
}

/* Would the plan hold if this slice took `longer_ns` more for the sake of one job? */
static bool plan_allows(const kn_scheduler *s, int32_t device, const kn_core_job *job, int64_t longer_ns,
                        int64_t now_ns)
{
    const int32_t pool = s->devices[device].pool;
    const kn_queue *plan = &s->devices[pool].plan;
    const int32_t sharing = __builtin_popcountll(s->up & s->devices[pool].members);
    longer_ns /= sharing > 0 ? sharing : 1;
    if (plan->root < 0 || kn_queue_slack(s->nodes, plan) - now_ns >= longer_ns) return true;
    if (job->place != KN_PLACE_PLAN || job->plan != pool) return false;
    /* Work done on a planned job now is not left for later: only those before it are put off. */
    const int64_t slack = kn_queue_find(s->nodes, plan, job->terms.deadline_ns, job->seq).slack_before;
    return slack == INT64_MAX || slack - now_ns >= longer_ns;
}

/* Where groups are chosen: is a planned job in time though it goes on in such packs, on one device? */
static bool has_time(const kn_scheduler *s, const pack *p, const kn_core_job *job, int64_t now_ns)
{
    if (!kn_core_chooses(s, s->devices[p->device].terms.domain) || job->place != KN_PLACE_PLAN) return true;
    const double longer = (double)p->longer_ns + fit_of(s, p, p->stage)->rate * next_work(s, p, job);
    const int32_t slices = 1 + job->shape.steps - job->progress.step;
    return (double)(now_ns + job->left_ns) + longer * slices <= (double)job->terms.deadline_ns;
}

/* Adds a job if it can go along. */
static bool consider(const kn_scheduler *s, pack *p, int32_t slot, uint64_t room, int64_t now_ns)
{
    const kn_core_device *d = &s->devices[p->device];
    const kn_core_job *job = &s->jobs[slot];
    const kn_cost_fit *fit = fit_of(s, p, p->stage);
    if (p->count >= s->params.pack || job->removed || job->releasing || job->shape.model != p->model) return false;
    if (kn_job_next_stage(&job->shape, &job->progress) != p->stage || in_pack(p, slot)) return false;
    const double work = next_work(s, p, job);
    if (!pays(fit, p->work + work) || p->bytes + next_bytes(job) > room) return false;
    if (job->device == KN_NO_DEVICE && d->resident_count + p->starting >= KN_SCHEDULER_RESIDENTS_MAX) return false;
    if (!has_time(s, p, job, now_ns) || !has_time(s, p, &s->jobs[p->slots[0]], now_ns)) return false;
    if (!plan_allows(s, p->device, job, p->longer_ns + (int64_t)(fit->rate * work), now_ns)) return false;
    take(s, p, slot);
    return true;
}

/* Residents in the order in which they are due. */
static void add_residents(const kn_scheduler *s, pack *p, uint64_t room, int64_t now_ns)
{
    const kn_core_device *d = &s->devices[p->device];
    int32_t order[KN_SCHEDULER_RESIDENTS_MAX];
    if (!pays(fit_of(s, p, p->stage), p->work)) return;
    for (int32_t i = 0; i < d->resident_count; i++) {
        const int32_t slot = d->residents[i];
        const int64_t key = s->jobs[slot].place == KN_PLACE_PLAN ? s->jobs[slot].terms.deadline_ns : KN_DEADLINE_FAR;
        int32_t j = i;
        for (; j > 0; j--) {
            const kn_core_job *other = &s->jobs[order[j - 1]];
            if ((other->place == KN_PLACE_PLAN ? other->terms.deadline_ns : KN_DEADLINE_FAR) <= key) break;
            order[j] = order[j - 1];
        }
        order[j] = slot;
    }
    for (int32_t i = 0; i < d->resident_count; i++) consider(s, p, order[i], room, now_ns);
}

/* Waiting jobs in the order in which they would be taken: planned here, then tenants' queues. Returns their number. */
static int32_t list_waiting(const kn_scheduler *s, int32_t device, int32_t out[WAITING_LOOKED_AT])
{
    int32_t count = 0, looked = 0;
    for (int32_t at = s->devices[s->devices[device].pool].plan.first; at >= 0 && looked < WAITING_LOOKED_AT; looked++) {
        if (s->jobs[at].device == KN_NO_DEVICE) out[count++] = at;
        at = kn_queue_next(s->nodes, at);
    }
    for (int c = KN_CLASSES - 1; c >= 0; c--) {
        for (int32_t t = s->classes[c].first; t >= 0; t = kn_queue_next(s->tenant_nodes, t)) {
            int32_t at = s->tenants[t / KN_CLASSES].waiting[c].first;
            for (; at >= 0; at = kn_queue_next(s->nodes, at)) {
                if (looked++ >= WAITING_LOOKED_AT) return count;
                if (kn_core_fits(s, &s->jobs[at].shape, device)) out[count++] = at;
            }
        }
    }
    return count;
}

/* Jobs that do not reside yet, if denoising together will pay too: a job that is started only for its text would be
 * bound to a device long before its turn, to save a few milliseconds of many seconds. */
static void add_waiting(const kn_scheduler *s, pack *p, uint64_t room, int64_t now_ns)
{
    int32_t waiting[WAITING_LOOKED_AT];
    const kn_cost_fit *denoise = fit_of(s, p, KN_STAGE_DENOISE);
    if (p->count >= s->params.pack || !pays(fit_of(s, p, p->stage), p->work) || !pays(denoise, p->denoise)) return;
    const int32_t count = list_waiting(s, p->device, waiting);
    for (int32_t i = 0; i < count; i++)
        if (pays(denoise, p->denoise + denoise_work(s, p, &s->jobs[waiting[i]])))
            consider(s, p, waiting[i], room, now_ns);
}

/* Between two denoise steps: a waiting job whose text should be encoded now so that it can join. */
static int32_t joins(const kn_scheduler *s, const pack *p, uint64_t room, int64_t now_ns)
{
    int32_t waiting[WAITING_LOOKED_AT];
    const kn_core_device *d = &s->devices[p->device];
    const kn_cost_fit *denoise = fit_of(s, p, KN_STAGE_DENOISE), *text = fit_of(s, p, KN_STAGE_TEXT);
    if (p->stage != KN_STAGE_DENOISE || p->count >= s->params.pack || !pays(denoise, p->denoise)) return KN_NO_SLOT;
    if (d->resident_count + p->starting >= s->params.pack) return KN_NO_SLOT;
    const int32_t count = list_waiting(s, p->device, waiting);
    for (int32_t i = 0; i < count; i++) {
        const kn_core_job *job = &s->jobs[waiting[i]];
        if (job->shape.model != p->model || in_pack(p, waiting[i])) continue;
        if (kn_job_next_stage(&job->shape, &job->progress) != KN_STAGE_TEXT) continue;
        if (!pays(denoise, p->denoise + denoise_work(s, p, job)) || p->bytes + next_bytes(job) > room) continue;
        const int64_t longer = (int64_t)kn_cost_predict(text, job->work.text);
        if (kn_core_plain(s) || plan_allows(s, p->device, job, longer, now_ns)) return waiting[i];
    }
    return KN_NO_SLOT;
}

/* ---- room ---- */

static void release(kn_scheduler *s, int32_t slot, kn_assignment *out)
{
    kn_core_job *job = &s->jobs[slot];
    out->release[out->release_count++] = job->key;
    kn_core_unplace(s, slot);
    kn_core_leave(s, slot);
    if (job->removed) {
        s->orphans--;
        kn_core_forget(s, slot);
    } else {
        job->releasing = true;
        s->stats.releases++;
    }
}

static void release_removed(kn_scheduler *s, int32_t device, kn_assignment *out)
{
    kn_core_device *d = &s->devices[device];
    for (int32_t i = d->resident_count - 1; s->orphans > 0 && i >= 0; i--)
        if (s->jobs[d->residents[i]].removed) release(s, d->residents[i], out);
}

/* Whose leaving costs least: unplanned before planned, lower class, later deadline, later arrival. */
static bool leaves_before(const kn_scheduler *s, const kn_core_job *a, const kn_core_job *b)
{
    const bool pa = a->place == KN_PLACE_PLAN, pb = b->place == KN_PLACE_PLAN;
    if (pa != pb) return pb;
    if (pa && a->terms.deadline_ns != b->terms.deadline_ns) return a->terms.deadline_ns > b->terms.deadline_ns;
    const int ca = kn_core_class(s, a), cb = kn_core_class(s, b);
    return ca != cb ? ca < cb : a->seq > b->seq;
}

static int32_t least_resident(const kn_scheduler *s, const kn_core_device *d, int32_t lead, uint32_t models)
{
    int32_t best = KN_NO_SLOT;
    for (int32_t i = 0; i < d->resident_count; i++) {
        const int32_t slot = d->residents[i];
        const kn_core_job *job = &s->jobs[slot];
        if (slot == lead || !(models >> job->shape.model & 1)) continue;
        if (best < 0 || leaves_before(s, job, &s->jobs[best])) best = slot;
    }
    return best;
}

static uint32_t models_in_use(const kn_scheduler *s, const kn_core_device *d)
{
    uint32_t used = 0;
    for (int32_t i = 0; i < d->resident_count; i++) used |= 1u << s->jobs[d->residents[i]].shape.model;
    return used;
}

static void unload(kn_scheduler *s, kn_core_device *d, uint32_t models, kn_assignment *out)
{
    const int32_t model = __builtin_ctz(models);
    d->terms.models &= ~(1u << model);
    d->memory_used -= s->models[model].resident_bytes;
    out->unload_models |= 1u << model;
    s->refresh = 0;
}

/* Frees what the leader needs. It fits the device, so that in the end there is room. */
static void make_room(kn_scheduler *s, int32_t device, int32_t lead, kn_assignment *out)
{
    kn_core_device *d = &s->devices[device];
    const kn_core_job *job = &s->jobs[lead];
    const uint32_t wanted = 1u << job->shape.model;
    uint64_t bytes = next_bytes(job);
    release_removed(s, device, out);
    if (d->shed != KN_NO_SLOT && d->shed != lead) release(s, d->shed, out);
    d->shed = KN_NO_SLOT;
    if (!(d->terms.models & wanted)) bytes += s->models[job->shape.model].resident_bytes;
    if (job->device == KN_NO_DEVICE && d->resident_count == KN_SCHEDULER_RESIDENTS_MAX)
        release(s, least_resident(s, d, lead, UINT32_MAX), out);
    while (d->memory_used + bytes > d->terms.memory_bytes) {
        const uint32_t unused = d->terms.models & ~(wanted | models_in_use(s, d));
        if (unused) {
            unload(s, d, unused, out);
            continue;
        }
        const int32_t slot = least_resident(s, d, lead, UINT32_MAX);
        if (slot < 0) break;
        release(s, slot, out);
    }
    if (!(d->terms.models & wanted)) {
        d->terms.models |= wanted;
        d->memory_used += s->models[job->shape.model].resident_bytes;
        out->load_model = true;
        s->refresh = 0;
    }
}

/* ---- the assignment ---- */

static void start_member(kn_scheduler *s, int32_t slot, int32_t device)
{
    kn_core_job *job = &s->jobs[slot];
    if (job->device == KN_NO_DEVICE) {
        const kn_core_tenant *tenant = &s->tenants[kn_core_tenant_of(s, job)];
        if (job->place == KN_PLACE_FAIR) {
            kn_core_unplace(s, slot);
            if (tenant->virtual_ns > s->virtual_ns) s->virtual_ns = tenant->virtual_ns;
        }
        if (job->place == KN_PLACE_SPARE) kn_core_unplace(s, slot);
        kn_core_reside(s, slot, device);
    }
    job->running = true;
    kn_job_progress next = job->progress;
    kn_core_advance(&job->shape, &next);
    const double left = kn_core_remaining(s, job, &next, device, kn_core_fixed(s, device));
    kn_core_set_left(s, slot, left < (double)KN_QUEUE_WORK_MAX ? (int64_t)left : KN_QUEUE_WORK_MAX);
}

static void count_preempted(kn_scheduler *s, const kn_core_device *d, const pack *p)
{
    for (int32_t i = 0; i < d->running_count; i++)
        if (d->running[i] != KN_NO_SLOT && !in_pack(p, d->running[i])) s->stats.preemptions++;
}

static void emit(kn_scheduler *s, const pack *p, int64_t now_ns, kn_assignment *out)
{
    kn_core_device *d = &s->devices[p->device];
    out->device = p->device;
    out->model = p->model;
    out->stage = p->stage;
    out->degree = 1;
    out->members[0] = p->device;
    out->count = p->count;
    count_preempted(s, d, p);
    double work = 0; /* on this device alone */
    for (int32_t i = 0; i < p->count; i++) {
        out->jobs[i] = s->jobs[p->slots[i]].key;
        const kn_core_job *job = &s->jobs[p->slots[i]];
        work += kn_cost_next(&job->work, &job->shape, &job->progress);
        if (job->device == KN_NO_DEVICE) out->start_mask |= 1u << i;
        start_member(s, p->slots[i], p->device);
        d->running[i] = p->slots[i];
    }
    out->expected_ns = (int64_t)kn_cost_predict(&d->fits[p->model][p->stage], work);
    d->running_count = p->count;
    d->running_model = p->model;
    d->running_degree = 1;
    d->helpers = 0;
    d->leader = p->device;
    d->running_stage = p->stage;
    d->busy = true;
    d->free_ns = now_ns + out->expected_ns + (out->load_model ? d->terms.load_ns : 0);
    s->idle &= ~(UINT64_C(1) << p->device);
    s->stats.decisions++;
    s->stats.packed += (uint64_t)p->count;
    s->stats.by_degree[0]++;
}

double kn_core_slice_ns(const kn_scheduler *s, const kn_assignment *a, int32_t degree)
{
    const kn_core_device *d = &s->devices[a->device];
    double work = 0;
    if (degree == 1) return (double)a->expected_ns; /* it starts alone */
    for (int32_t i = 0; i < a->count; i++) {
        const kn_core_job *job = &s->jobs[d->running[i]];
        work += kn_cost_shared(&job->work, &job->shape, &job->progress, &d->terms.seed, degree);
    }
    return kn_cost_predict(kn_core_read_fit(d, a->model, a->stage, degree), work);
}

void kn_core_join(kn_scheduler *s, uint64_t helpers, int64_t now_ns, kn_assignment *out)
{
    kn_core_device *d = &s->devices[out->device];
    const uint32_t bit = 1u << out->model;
    int64_t load_ns = out->load_model ? d->terms.load_ns : 0;
    s->stats.by_degree[out->degree - 1]--;
    for (uint64_t left = helpers; left; left &= left - 1) {
        const int32_t member = __builtin_ctzll(left);
        kn_core_device *helper = &s->devices[member];
        out->members[out->degree] = member;
        if (!(helper->terms.models & bit)) {
            out->load_members |= 1u << out->degree;
            helper->terms.models |= bit;
            helper->memory_used += s->models[out->model].resident_bytes;
            s->refresh = 0;
            if (helper->terms.load_ns > load_ns) load_ns = helper->terms.load_ns;
        }
        out->degree++;
        helper->busy = true;
        helper->leader = out->device;
        s->idle &= ~(UINT64_C(1) << member);
    }
    s->stats.by_degree[out->degree - 1]++;
    out->expected_ns = (int64_t)kn_core_slice_ns(s, out, out->degree);
    d->running_degree = out->degree;
    d->helpers |= helpers;
    d->free_ns = now_ns + out->expected_ns + load_ns;
    for (uint64_t left = d->helpers; left; left &= left - 1) s->devices[__builtin_ctzll(left)].free_ns = d->free_ns;
}

/* Does a fixed group share the slice? Denoising always; decoding where it is faster and the leader has room. */
static bool pays_in_group(const kn_scheduler *s, const kn_assignment *out, int32_t degree)
{
    const kn_core_device *d = &s->devices[out->device];
    if (out->stage != KN_STAGE_DECODE) return out->stage == KN_STAGE_DENOISE;
    return kn_core_can_lead(s, out->device, d->running, d->running_count) &&
           kn_core_slice_ns(s, out, degree) < (double)out->expected_ns;
}

void kn_core_start(kn_scheduler *s, int32_t device, int32_t lead, bool aged, int64_t now_ns, kn_assignment *out)
{
    kn_core_device *d = &s->devices[device];
    /* Not the arrays: they are written as far as they are counted. */
    memset(out, 0, offsetof(kn_assignment, jobs));
    out->start_mask = out->load_members = 0;
    out->release_count = 0;
    make_room(s, device, lead, out);
    const uint64_t room = d->terms.memory_bytes - d->memory_used;
    pack p = start_pack(s, device, lead);
    add_residents(s, &p, room, now_ns);
    /* Waiting jobs start on a device of their own while there is one. */
    const uint64_t others = s->up & s->idle & s->devices[s->devices[device].pool].members & ~(UINT64_C(1) << device);
    const int32_t joining = others ? KN_NO_SLOT : joins(s, &p, room, now_ns);
    if (joining >= 0) {
        p = start_pack(s, device, joining);
        add_residents(s, &p, room, now_ns);
    }
    if (!others) add_waiting(s, &p, room, now_ns);
    if (aged) s->jobs[lead].aged = true;
    d->running_aged = aged;
    d->running_planned = s->jobs[lead].place == KN_PLACE_PLAN;
    emit(s, &p, now_ns, out);
    const int32_t fixed = kn_core_fixed(s, device);
    const uint64_t group = ((UINT64_C(1) << fixed) - 1) << device; /* led by its first device */
    if (fixed > 1 && pays_in_group(s, out, fixed)) kn_core_join(s, group & ~(UINT64_C(1) << device), now_ns, out);
}

static bool decide(kn_scheduler *s, int32_t device, int64_t now_ns, kn_assignment *out)
{
    bool aged;
    const int32_t lead = kn_core_lead(s, device, now_ns, &aged);
    if (lead >= 0) kn_core_start(s, device, lead, aged, now_ns, out);
    return lead >= 0;
}

int32_t kn_scheduler_decide(kn_scheduler *s, int64_t now_ns, kn_assignment *out, int32_t max)
{
    int32_t count = 0;
    if (s->draining) return 0;
    if (now_ns < s->now_ns) now_ns = s->now_ns;
    s->now_ns = now_ns;
    kn_core_refresh(s);
    for (uint64_t idle = s->up & s->idle; idle && count < max;) {
        const int32_t device = __builtin_ctzll(idle);
        if (!kn_core_chooses(s, s->devices[device].terms.domain)) {
            count += decide(s, device, now_ns, &out[count]);
            idle &= idle - 1;
            continue;
        }
        const int32_t pool = s->devices[device].pool;
        count += kn_core_decide_pool(s, pool, now_ns, &out[count], max - count);
        idle &= ~s->devices[pool].members;
    }
    return count;
}

int32_t kn_scheduler_orphans(kn_scheduler *s, int32_t *device, uint64_t *keys, int32_t max)
{
    if (s->orphans == 0) return 0;
    for (uint64_t idle = s->up & s->idle; idle; idle &= idle - 1) {
        kn_core_device *d = &s->devices[__builtin_ctzll(idle)];
        int32_t count = 0;
        for (int32_t i = d->resident_count - 1; i >= 0 && count < max; i--) {
            const int32_t slot = d->residents[i];
            if (!s->jobs[slot].removed) continue;
            keys[count++] = s->jobs[slot].key;
            kn_core_leave(s, slot);
            kn_core_forget(s, slot);
            s->orphans--;
        }
        *device = __builtin_ctzll(idle);
        if (count > 0) return count;
    }
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The idle devices of a domain: which slices start on them, and how many devices each gets.
 *
 *   1. Aged jobs, where a device owes them time.
 *   2. Planned jobs that packing.c starts now, in order of deadline, each in the group it is given there, unless a job
 *      that is not planned comes first (choice.c). A slice cannot be interrupted, so the packing is tried with it: when
 *      it would make a planned job late, other groups are tried, and waiting for more devices. That is the only reason
 *      for which a device is left idle while there is something to do.
 *   3. Jobs that are not planned, one to a device. The packing is tried with them as well; the slice of one that would
 *      be in the way for too long runs in a group, which makes it shorter, or waits.
 *   4. Devices that are still idle help in the slices that have just been started, the most urgent first.
 *
 * A waiting job starts where fewest jobs reside. A job leads where it resides; helpers are taken from the devices that
 * no planned job needs to lead now, those without residents first. */
#include <string.h>

#include "scheduler/packing.h"

enum { SLACK_PARTS = 16 };

#define HOLD_MAX_NS INT64_C(5000000000)
#define HELPER_GAIN 0.03 /* an otherwise idle device helps when it saves so much of the slice */

typedef struct round {
    kn_scheduler *s;
    int32_t pool;
    int64_t now_ns;
    int32_t score; /* of the packing: planned jobs that are in time, those with a margin twice */
    kn_assignment *out;
    int32_t count, max;
    kn_packing packing;
} round;

static uint64_t bit(int32_t device)
{
    return UINT64_C(1) << device;
}

static uint64_t idle_of(const round *r)
{
    return r->s->up & r->s->idle & r->s->devices[r->pool].members;
}

static bool is_idle(const round *r, int32_t device)
{
    return idle_of(r) >> device & 1;
}

/* ---- trying ---- */

/* The packing's score if these devices were busy until then; with one of the jobs in the slice, or -1. */
static int32_t score_with(const round *r, uint64_t devices, int64_t until_ns, int32_t job)
{
    kn_packing tried = r->packing;
    for (uint64_t left = devices; left; left &= left - 1) tried.free_ns[__builtin_ctzll(left)] = until_ns;
    if (job >= 0) {
        kn_packed_next(&tried.jobs[job])->slices -= 1;
        tried.jobs[job].ready_ns = until_ns;
    }
    return kn_packing_lay(&tried);
}

/* Leaders of planned jobs that start now. */
static uint64_t wanted(const round *r)
{
    uint64_t devices = 0;
    for (int32_t i = 0; i < r->packing.count; i++) {
        const kn_packed *packed = &r->packing.jobs[i];
        const kn_core_job *job = &r->s->jobs[packed->slot];
        if (packed->fits && packed->devices > 0 && !job->running && job->device != KN_NO_DEVICE)
            devices |= bit(job->device);
    }
    return devices;
}

/* Up to `most` idle devices that can help in the next slice of these jobs, which their leader has or is to start. */
static uint64_t find_helpers(const round *r, int32_t leader, const int32_t *slots, int32_t count, int32_t most)
{
    const kn_scheduler *s = r->s;
    const int32_t model = s->jobs[slots[0]].shape.model;
    const uint64_t from = idle_of(r) & ~wanted(r);
    uint64_t helpers = 0, bytes = 0;
    if (!kn_core_can_lead(s, leader, slots, count)) return 0;
    for (int32_t i = 0; i < count; i++) bytes += kn_core_share_bytes(&s->jobs[slots[i]]);
    if (most > kn_core_largest(s, leader) - 1) most = kn_core_largest(s, leader) - 1;
    for (int pass = 0; pass < 2; pass++) {
        for (uint64_t left = from & ~helpers; left && most > 0; left &= left - 1) {
            const int32_t device = __builtin_ctzll(left);
            if (pass == 0 && s->devices[device].resident_count > 0) continue;
            if (kn_core_largest(s, device) < 2 || !kn_core_can_help(s, device, leader, model, bytes)) continue;
            helpers |= bit(device);
            most--;
        }
    }
    return helpers;
}

static uint64_t first_of(uint64_t devices, int32_t count)
{
    uint64_t first = 0;
    for (; devices && count > 0; devices &= devices - 1, count--) first |= devices & -devices;
    return first;
}

/* ---- starting ---- */

/* Brings the packing up to date with what has been started. */
static void lay_again(round *r)
{
    for (int32_t i = 0; i < r->packing.count; i++) {
        kn_packed *packed = &r->packing.jobs[i];
        const kn_core_job *job = &r->s->jobs[packed->slot];
        if (!job->running || packed->ready_ns > r->now_ns) continue;
        const kn_packed was = *packed;
        kn_packing_job(r->s, job, job->device, r->now_ns, packed);
        packed->slot = was.slot;
        packed->burden = was.burden;
        packed->dropped = was.dropped;
    }
    for (uint64_t left = r->packing.devices; left; left &= left - 1) {
        const int32_t device = __builtin_ctzll(left);
        r->packing.free_ns[device] = kn_core_free_at(r->s, device, r->now_ns);
    }
    r->score = kn_packing_lay(&r->packing);
}

static void start(round *r, int32_t device, int32_t lead, bool aged, uint64_t helpers)
{
    kn_assignment *out = &r->out[r->count++];
    kn_core_start(r->s, device, lead, aged, r->now_ns, out);
    if (helpers && kn_cost_is_shareable(out->stage) && out->count == 1) kn_core_join(r->s, helpers, r->now_ns, out);
    lay_again(r);
}

/* ---- planned jobs ---- */

static int32_t planned_residents(const kn_scheduler *s, const kn_core_device *d)
{
    int32_t count = 0;
    for (int32_t i = 0; i < d->resident_count; i++) count += s->jobs[d->residents[i]].place == KN_PLACE_PLAN;
    return count;
}

/* Where a waiting job starts. */
static int32_t choose_leader(const round *r, const kn_job_shape *shape)
{
    const kn_scheduler *s = r->s;
    int32_t best = KN_NO_DEVICE, least = INT32_MAX;
    for (uint64_t left = idle_of(r); left; left &= left - 1) {
        const int32_t device = __builtin_ctzll(left);
        const kn_core_device *d = &s->devices[device];
        if (!kn_core_fits(s, shape, device)) continue;
        const int32_t missing = !(d->terms.models >> shape->model & 1);
        const int32_t residents = planned_residents(s, d) * KN_SCHEDULER_RESIDENTS_MAX + d->resident_count;
        const int32_t cost = missing * KN_SCHEDULER_RESIDENTS_MAX * KN_SCHEDULER_RESIDENTS_MAX + residents;
        if (cost >= least) continue;
        best = device;
        least = cost;
    }
    return best;
}

/* Helpers for a planned job's next slice, which can be shared; false: it waits. */
static bool choose_group(round *r, int32_t index, int32_t leader, uint64_t *helpers)
{
    kn_packed *packed = &r->packing.jobs[index];
    const kn_malleable *next = kn_packed_next(packed);
    const uint64_t can = find_helpers(r, leader, &packed->slot, 1, KN_SCHEDULER_DEGREE_MAX - 1);
    const int32_t most = 1 + __builtin_popcountll(can), given = packed->devices < most ? packed->devices : most;
    int32_t best = given, best_score = -1;
    /* The group of the packing; else larger ones, then smaller ones. */
    for (int32_t n = 0; n <= most; n++) {
        const int32_t degree = n == 0 ? given : most + 1 - n;
        if (n > 0 && next->best[degree] < degree) continue;
        const uint64_t devices = first_of(can, degree - 1) | bit(leader);
        const int32_t score = score_with(r, devices, r->now_ns + (int64_t)next->each[degree], index);
        if (score > best_score) {
            best = degree;
            best_score = score;
        }
        if (score >= r->score) break;
    }
    *helpers = first_of(can, best - 1);
    const bool busy = (r->packing.devices & ~idle_of(r)) != 0; /* something will change */
    return best_score >= r->score || !busy;
}

/* With `others`, jobs that are not planned may come first. */
static void start_planned(round *r, bool others)
{
    kn_scheduler *s = r->s;
    for (int32_t i = 0; i < r->packing.count && r->count < r->max; i++) {
        const kn_packed *packed = &r->packing.jobs[i];
        const kn_core_job *job = &s->jobs[packed->slot];
        if (!packed->fits || packed->devices == 0 || job->running) continue;
        const bool resides = job->device != KN_NO_DEVICE;
        const int32_t leader = resides ? job->device : choose_leader(r, &job->shape);
        if (leader == KN_NO_DEVICE || !is_idle(r, leader)) continue;
        int fair_class;
        const int32_t fair = others ? kn_core_fair_lead(s, leader, &fair_class) : KN_NO_SLOT;
        if (fair >= 0 && !kn_core_comes_first(s, packed->slot, fair, fair_class, leader, r->now_ns)) continue;
        uint64_t helpers = 0;
        if (resides && kn_cost_is_shareable(kn_job_next_stage(&job->shape, &job->progress)) &&
            !choose_group(r, i, leader, &helpers))
            continue;
        start(r, leader, packed->slot, false, helpers);
    }
}

/* ---- the others ---- */

/* How long a slice that nobody is in a hurry for should take at most, for the sake of those that may come. */
static int64_t longest(const round *r)
{
    const kn_core_device *pool = &r->s->devices[r->pool];
    const bool lately = pool->timed_ns > 0 && r->now_ns - pool->timed_ns < r->s->params.ageing_ns;
    return lately ? pool->slack_ns / SLACK_PARTS : INT64_MAX;
}

/* May the device stay idle so that a long slice is in nobody's way? Not for longer than such jobs have to spare, and
 * not for long: what it could do is sure, and who may come is not. */
static bool may_hold(const round *r, kn_core_device *d)
{
    const int64_t slack_ns = r->s->devices[r->pool].slack_ns, most_ns = slack_ns < HOLD_MAX_NS ? slack_ns : HOLD_MAX_NS;
    if (d->held_ns == 0) d->held_ns = r->now_ns;
    return r->score > 0 && r->now_ns - d->held_ns < most_ns;
}

/* A slice of a job that is not planned, in the smallest group in which it is in nobody's way, or none. */
static void start_unplanned(round *r, int32_t device, int32_t lead)
{
    kn_scheduler *s = r->s;
    const kn_core_job *job = &s->jobs[lead];
    const bool busy = (r->packing.devices & ~idle_of(r)) != 0; /* something will change */
    uint64_t can = 0;
    if (job->device != KN_NO_DEVICE) can = find_helpers(r, device, &lead, 1, KN_SCHEDULER_DEGREE_MAX - 1);
    const int32_t most = 1 + __builtin_popcountll(can);
    int32_t degree = 1;
    for (; degree <= most; degree++) {
        const double ns = kn_core_shared_ns(s, job, device, degree);
        const uint64_t devices = first_of(can, degree - 1) | bit(device);
        if (ns > (double)longest(r) && (degree < most || (busy && may_hold(r, &s->devices[device])))) continue;
        if (r->score == 0 || score_with(r, devices, r->now_ns + (int64_t)ns, -1) >= r->score) break;
    }
    if (degree > most && busy) return;
    s->devices[device].held_ns = 0;
    start(r, device, lead, false, degree > most ? 0 : first_of(can, degree - 1));
}

static void start_others(round *r, bool late)
{
    for (uint64_t left = idle_of(r); left && r->count < r->max; left &= left - 1) {
        const int32_t device = __builtin_ctzll(left);
        int fair_class;
        if (!is_idle(r, device)) continue;
        int32_t lead = kn_core_fair_lead(r->s, device, &fair_class);
        if (late && lead < 0) lead = kn_core_last_resort(r->s, device, r->now_ns);
        if (!late && lead >= 0 && fair_class == KN_CLASS_LATE) lead = KN_NO_SLOT;
        if (lead >= 0) start_unplanned(r, device, lead);
    }
}

/* ---- devices that are left ---- */

/* Is everything planned as much in time, and sooner done all in all, when these devices help until then? */
static bool gains(const round *r, const kn_assignment *out, uint64_t helpers, int64_t until_ns)
{
    kn_packing tried = r->packing;
    const int32_t lead = kn_core_find(r->s, out->jobs[0]);
    for (uint64_t left = helpers; left; left &= left - 1) tried.free_ns[__builtin_ctzll(left)] = until_ns;
    for (int32_t i = 0; i < out->degree; i++) tried.free_ns[out->members[i]] = until_ns;
    for (int32_t i = 0; i < tried.count; i++)
        if (tried.jobs[i].slot == lead) tried.jobs[i].ready_ns = until_ns;
    return kn_packing_lay(&tried) >= r->score && tried.total_ns <= r->packing.total_ns;
}

static void help(round *r, kn_assignment *out)
{
    kn_scheduler *s = r->s;
    const kn_core_device *leader = &s->devices[out->device];
    if (!kn_cost_is_shareable(out->stage)) return;
    const uint64_t can = find_helpers(r, out->device, leader->running, leader->running_count,
                                      kn_core_largest(s, out->device) - out->degree);
    const double now = kn_core_slice_ns(s, out, out->degree);
    int32_t best = 0;
    double least = now;
    for (int32_t more = 1; more <= __builtin_popcountll(can); more++) {
        const double cost = kn_core_slice_ns(s, out, out->degree + more) * (1 + HELPER_GAIN * more);
        if (cost >= least) continue;
        if (r->score > 0) {
            const int64_t until = r->now_ns + (int64_t)kn_core_slice_ns(s, out, out->degree + more);
            if (!gains(r, out, first_of(can, more), until)) continue;
        }
        best = more;
        least = cost;
    }
    if (best == 0) return;
    kn_core_join(s, first_of(can, best), r->now_ns, out);
    lay_again(r);
}

/* ---- all of it ---- */

static void start_aged(round *r)
{
    for (uint64_t left = idle_of(r); left && r->count < r->max; left &= left - 1) {
        const int32_t device = __builtin_ctzll(left);
        if (!is_idle(r, device)) continue;
        const int32_t aged = kn_core_aged_lead(r->s, device, r->now_ns);
        if (aged >= 0) start(r, device, aged, true, 0);
    }
}

int32_t kn_core_decide_pool(kn_scheduler *s, int32_t pool, int64_t now_ns, kn_assignment *out, int32_t max)
{
    round r = {.s = s, .pool = pool, .now_ns = now_ns, .out = out, .max = max};
    for (uint64_t left = idle_of(&r); left; left &= left - 1) kn_core_tidy(s, __builtin_ctzll(left), now_ns);
    kn_packing_collect(s, pool, now_ns, &r.packing);
    r.score = kn_packing_resolve(&r.packing);
    for (int32_t i = 0; i < r.packing.count; i++) {
        const kn_packed *packed = &r.packing.jobs[i];
        if (packed->dropped && !s->jobs[packed->slot].running) kn_core_displace(s, packed->slot, now_ns);
    }
    start_aged(&r);
    start_planned(&r, true);
    start_others(&r, false);
    start_planned(&r, false);
    for (int32_t i = 0; i < r.count && idle_of(&r); i++) help(&r, &out[i]);
    const int32_t before = r.count;
    start_others(&r, true);
    for (int32_t i = before; i < r.count && idle_of(&r); i++) help(&r, &out[i]);
    return r.count;
}

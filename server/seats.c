/* SPDX-License-Identifier: Apache-2.0
 *
 * One assignment on one device, from the decision to the slice that runs:
 *
 *   release those who must make room, load the model, and for each job that is not there yet:
 *   lease (the store's commit) ──► start (the worker takes it) ──► resident
 *   then, when nothing is awaited any more: run
 *
 * A job may drop out on the way (cancelled, refused, its lease not granted); the others go on, and when nobody is left
 * the assignment ends as if its slice had been done by nobody. */
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/point.h"
#include "server/core.h"

enum {
    CLAIM_PAUSE_MS = 500,
    /* A worker is killed after ten times a slice's budget. The budget allows for a machine that others use too, and for
     * how wrong a cost can be that nobody has measured yet. */
    BUDGET_MEASURED = 3,
    BUDGET_GUESSED = 30,
};

/* What a lease was asked for; the job may have moved on when the answer comes. */
typedef struct claim {
    kn_server *server;
    uint64_t key, number;
    int32_t device;
} claim;

void kn_seat_end(kn_server *s, int32_t device)
{
    s->seats[device].busy = s->seats[device].running = false;
    kn_together_end(s, device);
}

static void end_empty(kn_server *s, int32_t device)
{
    const kn_change change = {.kind = KN_CHANGE_SLICE_FAILED, .slice = {.device = device}};
    if (kn_scheduler_event(s->scheduler, &change, kn_clock_ns()) != KN_OK)
        kn_log(KN_LOG_ERROR, "an assignment nobody was left for: %s", kn_fail_message());
    kn_seat_end(s, device);
    kn_dispatch_soon(s);
}

/* How long the slice may be expected to take on so many devices, with an allowance for what is not known. */
static int64_t budget_of(const kn_seat *seat, int32_t degree)
{
    const kn_assignment *a = &seat->assignment;
    const uint32_t known = (degree > 1 ? seat->measured_shared : seat->measured)[a->stage];
    const int64_t alone = a->expected_ns * (a->degree > 1 ? a->degree : 1);
    return alone / degree * (known >> a->model & 1 ? BUDGET_MEASURED : BUDGET_GUESSED);
}

/* Sends the slice to the worker once nothing is awaited. */
static void run_when_complete(kn_server *s, int32_t device)
{
    kn_seat *seat = &s->seats[device];
    kn_lease leases[KN_SCHEDULER_PACK_MAX];
    int32_t count = 0;
    if (!seat->busy || seat->running || seat->waiting > 0) return;
    for (int32_t i = 0; i < seat->assignment.count; i++) {
        kn_live *live = kn_live_by_key(s->live, seat->assignment.jobs[i]);
        if (!live || live->phase != KN_LIVE_RESIDENT || live->device != device) continue;
        if (live->stop.state != KN_JOB_QUEUED) {
            live->in_slice = false;
            kn_end_advance(s, live);
            continue;
        }
        leases[count++] = kn_live_lease(live);
    }
    if (count == 0) {
        end_empty(s, device);
        return;
    }
    seat->running = true;
    int32_t members[KN_SCHEDULER_DEGREE_MAX];
    const int32_t degree = kn_together_members(s, device, members);
    /* A device that is gone says so itself, and takes its assignment along. */
    const kn_status st =
        kn_fleet_run_shared(s->fleet, members, degree, seat->number, (kn_slice_kind)seat->assignment.stage, leases,
                            count, budget_of(seat, degree));
    if (st != KN_OK && st != KN_UNAVAILABLE) kn_fleet_kill(s->fleet, device, kn_fail_message());
}

static void answered(kn_server *s, int32_t device)
{
    s->seats[device].waiting--;
    run_when_complete(s, device);
}

void kn_seat_drop(kn_server *s, int32_t device, kn_live *live)
{
    kn_seat *seat = &s->seats[device];
    if (!seat->busy) return;
    for (int32_t i = 0; i < seat->assignment.count; i++) {
        if (seat->assignment.jobs[i] != live->key || live->key == 0) continue;
        seat->assignment.jobs[i] = 0;
        const bool awaited = live->phase == KN_LIVE_CLAIMING || live->phase == KN_LIVE_STARTING;
        live->phase = KN_LIVE_WAITING;
        live->device = -1;
        live->in_slice = false;
        if (awaited && !seat->running) answered(s, device);
        return;
    }
}

void kn_seat_helper_gone(kn_server *s, int32_t leader)
{
    if (s->seats[leader].busy && !s->seats[leader].running) answered(s, leader);
}

/* ---- starting a job ---- */

static void back_to_the_queue(kn_server *s, int32_t device, kn_live *live)
{
    kn_change change = {
        .kind = KN_CHANGE_JOB_RELEASED,
        .job = {.key = live->key, .progress = {.step = live->job.checkpoint ? live->job.checkpoint_step : 0}}};
    kn_seat_drop(s, device, live);
    const kn_status st = kn_scheduler_event(s->scheduler, &change, kn_clock_ns());
    if (st != KN_OK && st != KN_NOT_FOUND) kn_log(KN_LOG_ERROR, "job released: %s", kn_fail_message());
    if (live->stop.state != KN_JOB_QUEUED) kn_end_advance(s, live);
}

static void start(kn_server *s, int32_t device, kn_live *live)
{
    kn_runner_job job = {.lease = kn_live_lease(live), .request = live->job.request};
    memcpy(job.model, live->job.model, sizeof job.model);
    if (live->job.checkpoint) {
        job.has_checkpoint = true;
        strncpy(job.checkpoint.name, live->job.checkpoint, sizeof job.checkpoint.name - 1);
        memcpy(job.checkpoint.sha256, live->job.checkpoint_sha256, KN_SHA256_BYTES);
        job.checkpoint.step = live->job.checkpoint_step;
    }
    live->phase = KN_LIVE_STARTING;
    const kn_status st = kn_fleet_start(s->fleet, device, &job);
    kn_point(KN_POINT_start_sent);
    if (st == KN_OK || st == KN_UNAVAILABLE) return; /* unavailable: device_down follows */
    kn_log_event(KN_LOG_WARNING, KN_LOG_WITH(kn_log_job(live->job.id)), "not started: %s", kn_fail_message());
    back_to_the_queue(s, device, live);
}

static void on_claimed(void *context, kn_store_result *result)
{
    const claim c = *(claim *)context;
    kn_server *s = c.server;
    kn_free(context);
    kn_live *live = kn_live_by_key(s->live, c.key);
    if (!live) return;
    const bool granted = result->status == KN_OK && result->outcome == KN_STORE_DONE;
    if (granted) {
        const bool first = live->job.state == KN_JOB_QUEUED;
        kn_point(KN_POINT_claim_committed);
        live->job.epoch = result->epoch;
        live->job.state = KN_JOB_RUNNING;
        if (live->job.started_at == 0) {
            live->job.started_at = result->at;
            kn_metric_observe(s->meters->job_queue_seconds, (double)(result->at - live->job.created_at) * 1e-6,
                              KN_LABELS(kn_priority_name(live->job.priority)));
        }
        if (first) kn_tell_state(s, live);
    }
    if (live->phase != KN_LIVE_CLAIMING || live->device != c.device || s->seats[c.device].number != c.number) return;
    if (granted && live->stop.state == KN_JOB_QUEUED) {
        start(s, c.device, live);
        return;
    }
    if (!granted) {
        kn_log_event(KN_LOG_WARNING, KN_LOG_WITH(kn_log_job(live->job.id)), "no lease: %s",
                     result->status == KN_OK ? "the store has the job in another state" : result->message);
        s->claims_after_ns = kn_clock_ns() + INT64_C(1000000) * CLAIM_PAUSE_MS;
    }
    back_to_the_queue(s, c.device, live);
}

static void ask_for_lease(kn_server *s, int32_t device, kn_live *live)
{
    claim *c = kn_alloc(sizeof *c);
    live->phase = KN_LIVE_CLAIMING;
    live->device = device;
    const kn_store_op op = {.kind = KN_STORE_CLAIM, .id = live->job.id, .epoch = live->job.epoch};
    if (c) {
        *c = (claim){.server = s, .key = live->key, .number = s->seats[device].number, .device = device};
        if (kn_store_submit_op(s->store, &op, on_claimed, c) == KN_OK) return;
    }
    kn_log_event(KN_LOG_WARNING, KN_LOG_WITH(kn_log_job(live->job.id)), "no lease was asked for: %s",
                 kn_fail_message());
    kn_free(c);
    s->claims_after_ns = kn_clock_ns() + INT64_C(1000000) * CLAIM_PAUSE_MS;
    back_to_the_queue(s, device, live);
}

void kn_seat_started(kn_server *s, int32_t device, const kn_outcome *outcome)
{
    kn_live *live = kn_live_find(s->live, outcome->lease.job);
    if (!live || live->job.epoch != outcome->lease.epoch || live->phase != KN_LIVE_STARTING) return;
    live->phase = KN_LIVE_RESIDENT;
    live->next = outcome->next;
    if (live->job.checkpoint) kn_metric_add(s->meters->checkpoints, 1.0, KN_LABELS("resumed"));
    answered(s, device);
}

/* ---- the assignment ---- */

void kn_seat_loaded(kn_server *s, int32_t device, const kn_model_loaded *loaded)
{
    kn_seat *seat = &s->seats[device];
    const kn_catalog_model *found = kn_catalog_find(s->catalog, loaded->model);
    const int32_t leader = seat->helps - 1;
    if (found && kn_together_loaded(s, device, found)) answered(s, leader);
    if (!seat->busy || seat->running || !seat->assignment.load_model) return;
    const kn_catalog_model *model = kn_catalog_at(s->catalog, seat->assignment.model);
    if (strcmp(model->name, loaded->model) != 0) return;
    seat->assignment.load_model = false;
    answered(s, device);
}

static void make_room(kn_server *s, const kn_assignment *a)
{
    for (int32_t i = 0; i < a->release_count; i++) {
        kn_live *live = kn_live_by_key(s->live, a->release[i]);
        if (!live || live->phase != KN_LIVE_RESIDENT || live->device != a->device) continue;
        const kn_lease lease = kn_live_lease(live);
        if (kn_fleet_release(s->fleet, a->device, &lease, KN_RELEASE_SAVE) == KN_OK) live->phase = KN_LIVE_LEAVING;
    }
    for (int32_t i = 0; i < kn_catalog_count(s->catalog); i++)
        if (a->unload_models >> i & 1) {
            s->seats[a->device].loaded &= ~(1u << i);
            if (kn_fleet_unload(s->fleet, a->device, kn_catalog_at(s->catalog, i)->name) != KN_OK)
                kn_log(KN_LOG_WARNING, "a model was not unloaded: %s", kn_fail_message());
        }
}

void kn_seat_begin(kn_server *s, const kn_assignment *a)
{
    kn_seat *seat = &s->seats[a->device];
    seat->assignment = *a;
    seat->busy = true;
    seat->running = false;
    seat->number = ++s->assignments;
    seat->waiting = 1; /* this function itself: nothing runs before it is through */
    make_room(s, a);
    if (a->load_model) {
        seat->waiting++;
        if (kn_fleet_load(s->fleet, a->device, kn_catalog_at(s->catalog, a->model)->name) != KN_OK) seat->waiting--;
    }
    seat->waiting += kn_together_begin(s, a);
    for (int32_t i = 0; i < a->count; i++) {
        kn_live *live = kn_live_by_key(s->live, a->jobs[i]);
        if (!live) continue;
        live->in_slice = true;
        if (!(a->start_mask >> i & 1)) continue;
        seat->waiting++;
        ask_for_lease(s, a->device, live);
    }
    answered(s, a->device);
}

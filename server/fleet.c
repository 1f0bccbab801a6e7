/* SPDX-License-Identifier: Apache-2.0
 *
 * The calls: what is checked before a command is posted, and the fleet as a whole. What becomes of one device is in
 * fleet_device.c. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "server/fleet_internal.h"

enum {
    TICK_MS = 250,
    STALL_MS = 1000, /* ticks further apart than this: the server itself did not run */
    DEFAULT_CHECKPOINT_MS = 2000,
    DEFAULT_GRACE_MS = 2000,
    DEFAULT_RESTART_MIN_MS = 1000,
    DEFAULT_RESTART_MAX_MS = 300 * 1000,
};

const char *kn_device_state_name(kn_device_state state)
{
    static const char *const names[KN_DEVICE_STATES] = {"starting", "loading", "ready", "restarting", "failed"};
    return names[state];
}

const char *kn_down_reason_name(kn_down_reason reason)
{
    static const char *const names[KN_DOWN_REASONS] = {"exited", "signalled", "hang", "protocol",
                                                       "fatal",  "killed",    "spawn"};
    return names[reason];
}

/* ---- life ---- */

static void on_tick(evutil_socket_t fd, short what, void *context)
{
    (void)fd;
    (void)what;
    kn_fleet *f = context;
    const int64_t now = kn_clock_ns(), gap = now - f->ticked_ns;
    f->ticked_ns = now;
    for (int32_t i = 0; i < f->device_count; i++) {
        if (gap > STALL_MS * KN_FLEET_MS) kn_fleet_move_on(&f->devices[i], gap);
        kn_fleet_watch(&f->devices[i], now);
    }
}

static kn_status check_devices(const kn_fleet_params *p)
{
    KN_REQUIRE(p->base && p->models && p->data && p->devices);
    if (p->device_count < 1 || p->device_count > KN_FLEET_DEVICES_MAX)
        return kn_fail(KN_INVALID, "%d devices: must be 1 to %d", p->device_count, KN_FLEET_DEVICES_MAX);
    if (p->threads < 0 || p->threads > KN_RUNNER_THREADS_MAX)
        return kn_fail(KN_INVALID, "%d threads: must be 0 to %d", p->threads, KN_RUNNER_THREADS_MAX);
    for (int32_t i = 0; i < p->device_count; i++) {
        const kn_status st = kn_runner_device_check(p->devices[i]);
        if (st != KN_OK) return st;
        for (int32_t j = 0; j < i; j++)
            if (strcmp(p->devices[i], p->devices[j]) == 0 && strncmp(p->devices[i], "fake", 4) != 0)
                return kn_fail(KN_INVALID, "device %s: is named twice", p->devices[i]);
    }
    return KN_OK;
}

static void set_numbers(kn_fleet *f, const kn_fleet_params *p)
{
    f->params = *p;
    f->base = p->base;
    if (p->checkpoint_interval_ns < 0) f->params.checkpoint_interval_ns = DEFAULT_CHECKPOINT_MS * KN_FLEET_MS;
    if (p->restart_delay_min_ns <= 0) f->params.restart_delay_min_ns = DEFAULT_RESTART_MIN_MS * KN_FLEET_MS;
    if (p->restart_delay_max_ns <= 0) f->params.restart_delay_max_ns = DEFAULT_RESTART_MAX_MS * KN_FLEET_MS;
    if (p->grace_ns <= 0) f->params.grace_ns = DEFAULT_GRACE_MS * KN_FLEET_MS;
}

static kn_status copy_texts(kn_fleet *f, const kn_fleet_params *p)
{
    f->models = kn_strdup(p->models);
    f->data = kn_strdup(p->data);
    f->isa = kn_strdup(p->isa ? p->isa : "");
    f->executable = p->executable ? kn_strdup(p->executable) : NULL;
    return f->models && f->data && f->isa && !f->executable == !p->executable ? KN_OK : KN_NOMEM;
}

static kn_status add_device(kn_fleet *f, const char *name)
{
    kn_fleet_device *d = &f->devices[f->device_count];
    *d = (kn_fleet_device){.fleet = f, .index = f->device_count, .child = KN_CHILD_NONE};
    f->device_count++;
    d->health.state = KN_DEVICE_STARTING;
    d->name = kn_strdup(name);
    d->restart_event = evtimer_new(f->base, kn_fleet_on_restart, d);
    if (!d->name || !d->restart_event) return KN_NOMEM;
    d->restart_at_ns = kn_clock_ns();
    kn_fleet_arm(d);
    return KN_OK;
}

kn_status kn_fleet_create(kn_fleet **out, const kn_fleet_params *params)
{
    kn_status st = check_devices(params);
    kn_fleet *f = st == KN_OK ? kn_alloc(sizeof *f) : NULL;
    const struct timeval tick = kn_fleet_timeval(TICK_MS * KN_FLEET_MS);
    if (!f) return st == KN_OK ? KN_NOMEM : st;
    set_numbers(f, params);
    KN_TRY(copy_texts(f, params));
    f->devices = kn_alloc_array((size_t)params->device_count, sizeof *f->devices);
    f->tick_event = event_new(f->base, -1, EV_PERSIST, on_tick, f);
    if (!f->devices || !f->tick_event || event_add(f->tick_event, &tick) != 0) KN_TRY(KN_NOMEM);
    f->ticked_ns = kn_clock_ns();
    for (int32_t i = 0; i < params->device_count; i++) KN_TRY(add_device(f, params->devices[i]));
    *out = f;
    return KN_OK;
fail:
    kn_fleet_destroy(&f);
    return st;
}

/* KN_OK: reaped in time. */
static kn_status wait_for(kn_child *child, int64_t until_ns)
{
    for (;;) {
        const int64_t left = until_ns - kn_clock_ns();
        struct pollfd watched = {.fd = child->pidfd, .events = POLLIN};
        const int ready = poll(&watched, 1, left > 0 ? (int)(left / KN_FLEET_MS) + 1 : 0);
        if (ready > 0) return kn_child_reap(child, NULL);
        if (ready == 0) return KN_AGAIN;
        if (errno != EINTR) return KN_IO;
    }
}

void kn_fleet_destroy(kn_fleet **fleet)
{
    kn_fleet *f = *fleet;
    if (!f) return;
    for (int32_t i = 0; i < f->device_count; i++) { /* all at once, then each in turn */
        kn_fleet_device *d = &f->devices[i];
        kn_link_destroy(&d->link);
        if (d->exit_event) event_free(d->exit_event);
        if (d->restart_event) event_free(d->restart_event);
    }
    kn_fleet_drop_all_groups(f);
    const int64_t until = kn_clock_ns() + f->params.grace_ns;
    for (int32_t i = 0; i < f->device_count; i++) {
        kn_fleet_device *d = &f->devices[i];
        if (d->child.process != 0 && wait_for(&d->child, until) != KN_OK) kn_child_kill(&d->child);
        kn_free(d->name);
    }
    if (f->tick_event) event_free(f->tick_event);
    kn_free(f->devices);
    kn_free(f->executable);
    kn_free(f->models);
    kn_free(f->data);
    kn_free(f->isa);
    kn_free(f);
    *fleet = NULL;
}

/* ---- calls ---- */

kn_status kn_fleet_find_up(kn_fleet *f, int32_t index, kn_fleet_device **out)
{
    KN_REQUIRE(index >= 0 && index < f->device_count);
    kn_fleet_device *d = *out = &f->devices[index];
    if (!d->up || d->condemned || !d->link)
        return kn_fail(KN_UNAVAILABLE, "device %s: is %s", d->name,
                       d->up ? "going down" : kn_device_state_name(d->health.state));
    return KN_OK;
}

static kn_status post_model(kn_fleet *f, int32_t index, kn_wire_kind kind, const char *model)
{
    kn_fleet_device *d = NULL;
    kn_status st = kn_fleet_find_up(f, index, &d);
    if (st != KN_OK) return st;
    if (!kn_model_name_valid(model)) return kn_fail(KN_INVALID, "model: not a name of a model folder");
    kn_fleet_command c = {.kind = kind, .limit_ns = kn_fleet_limit(kind, 0)};
    snprintf(c.model, sizeof c.model, "%s", model);
    memcpy(kn_fleet_compose(f, kind)->model.model, c.model, sizeof c.model);
    return kn_fleet_post(d, &c);
}

kn_status kn_fleet_load(kn_fleet *fleet, int32_t index, const char *model)
{
    return post_model(fleet, index, KN_WIRE_LOAD, model);
}

kn_status kn_fleet_unload(kn_fleet *fleet, int32_t index, const char *model)
{
    kn_fleet_device *d = NULL;
    const kn_status st = kn_fleet_find_up(fleet, index, &d);
    if (st != KN_OK) return st;
    for (int32_t i = 0; i < d->job_count; i++)
        if (strcmp(d->jobs[i].model, model) == 0 && !d->jobs[i].leaving)
            return kn_fail(KN_INVALID, "model %s: jobs on device %s use it", model, d->name);
    return post_model(fleet, index, KN_WIRE_UNLOAD, model);
}

kn_status kn_fleet_start(kn_fleet *fleet, int32_t index, const kn_runner_job *job)
{
    kn_fleet_device *d = NULL;
    kn_status st = kn_fleet_find_up(fleet, index, &d);
    if (st != KN_OK) return st;
    if (!kn_lease_valid(&job->lease) || !kn_model_name_valid(job->model) || job->crf < 0 ||
        job->crf > KN_RUNNER_CRF_MAX)
        return kn_fail(KN_INVALID, "job: its id, epoch, model or crf is not valid");
    if (kn_fleet_find_job(d, &job->lease))
        return kn_fail(KN_INVALID, "job %s: is on device %s", job->lease.job, d->name);
    if (d->job_count == KN_RUNNER_JOBS_MAX) return kn_fail(KN_AGAIN, "device %s: holds %d jobs", d->name, d->job_count);
    kn_fleet_compose(fleet, KN_WIRE_START)->start = *job;
    KN_TRY(kn_fleet_post(
        d,
        &(kn_fleet_command){.kind = KN_WIRE_START, .limit_ns = kn_fleet_limit(KN_WIRE_START, 0), .lease = job->lease}));
    kn_fleet_job *p = &d->jobs[d->job_count++];
    *p = (kn_fleet_job){.lease = job->lease};
    memcpy(p->model, job->model, sizeof p->model);
fail:
    return st;
}

kn_status kn_fleet_check_run(kn_fleet_device *d, const kn_lease *leases, int32_t count)
{
    if (d->health.assignment != 0) return kn_fail(KN_INVALID, "device %s: a slice is under way", d->name);
    if (count < 1 || count > KN_RUNNER_PACK_MAX)
        return kn_fail(KN_INVALID, "a slice of %d jobs: must be 1 to %d", count, KN_RUNNER_PACK_MAX);
    for (int32_t i = 0; i < count; i++) {
        const kn_fleet_job *p = kn_fleet_find_job(d, &leases[i]), *first = kn_fleet_find_job(d, &leases[0]);
        if (!p || !p->started || p->leaving || strcmp(p->model, first->model) != 0)
            return kn_fail(KN_INVALID, "job %.38s: is not started on device %s, or of another model", leases[i].job,
                           d->name);
        for (int32_t j = 0; j < i; j++)
            if (kn_lease_equal(&leases[i], &leases[j]))
                return kn_fail(KN_INVALID, "job %.38s: is in the slice twice", leases[i].job);
    }
    return KN_OK;
}

kn_status kn_fleet_run(kn_fleet *fleet, int32_t index, uint64_t assignment, kn_slice_kind kind, const kn_lease *leases,
                       int32_t count, int64_t budget_ns)
{
    kn_fleet_device *d = NULL;
    kn_status st = kn_fleet_find_up(fleet, index, &d);
    if (st != KN_OK) return st;
    KN_REQUIRE(assignment != 0 && kind < KN_SLICE_DONE && budget_ns >= 0);
    KN_TRY(kn_fleet_check_run(d, leases, count));
    kn_wire_run run = {.assignment = assignment, .kind = kind, .count = count};
    memcpy(run.leases, leases, (size_t)count * sizeof *leases);
    KN_TRY(kn_fleet_post_run(d, &run, budget_ns));
fail:
    return st;
}

kn_status kn_fleet_post_run(kn_fleet_device *d, const kn_wire_run *run, int64_t budget_ns)
{
    kn_fleet_compose(d->fleet, KN_WIRE_RUN)->run = *run;
    const kn_status st =
        kn_fleet_post(d, &(kn_fleet_command){.kind = KN_WIRE_RUN, .limit_ns = kn_fleet_limit(KN_WIRE_RUN, budget_ns)});
    if (st != KN_OK) return st;
    d->run = *run;
    d->degree = 1;
    d->health.assignment = run->assignment;
    return KN_OK;
}

kn_status kn_fleet_release(kn_fleet *fleet, int32_t index, const kn_lease *lease, kn_release_mode mode)
{
    kn_fleet_device *d = NULL;
    kn_status st = kn_fleet_find_up(fleet, index, &d);
    if (st != KN_OK) return st;
    kn_fleet_job *p = kn_fleet_find_job(d, lease);
    if (!p || p->leaving || (unsigned)mode >= KN_RELEASE_MODES)
        return kn_fail(KN_INVALID, "job %.38s: is not on device %s, or is leaving it", lease->job, d->name);
    kn_fleet_compose(fleet, KN_WIRE_RELEASE)->lease = (kn_wire_lease){.lease = *lease, .mode = mode};
    KN_TRY(kn_fleet_post(
        d,
        &(kn_fleet_command){.kind = KN_WIRE_RELEASE, .limit_ns = kn_fleet_limit(KN_WIRE_RELEASE, 0), .lease = *lease}));
    p->leaving = true;
fail:
    return st;
}

kn_status kn_fleet_preview(kn_fleet *fleet, int32_t index, const kn_lease *lease)
{
    kn_fleet_device *d = NULL;
    const kn_status st = kn_fleet_find_up(fleet, index, &d);
    if (st != KN_OK) return st;
    const kn_fleet_job *p = kn_fleet_find_job(d, lease);
    if (!p || p->leaving)
        return kn_fail(KN_INVALID, "job %.38s: is not on device %s, or is leaving it", lease->job, d->name);
    kn_fleet_compose(fleet, KN_WIRE_PREVIEW)->lease.lease = *lease;
    return kn_fleet_post(
        d,
        &(kn_fleet_command){.kind = KN_WIRE_PREVIEW, .limit_ns = kn_fleet_limit(KN_WIRE_PREVIEW, 0), .lease = *lease});
}

kn_status kn_fleet_kill(kn_fleet *fleet, int32_t index, const char *why)
{
    KN_REQUIRE(index >= 0 && index < fleet->device_count);
    kn_fleet_device *d = &fleet->devices[index];
    if (d->child.process == 0 || d->condemned || d->abandoned)
        return kn_fail(KN_UNAVAILABLE, "device %s: has no process to kill", d->name);
    kn_fleet_condemn(d, KN_DOWN_KILLED, 0, "killed: %s", why);
    return KN_OK;
}

int32_t kn_fleet_device_count(const kn_fleet *fleet)
{
    return fleet->device_count;
}

const char *kn_fleet_device_name(const kn_fleet *fleet, int32_t index)
{
    return fleet->devices[index].name;
}

void kn_fleet_health(const kn_fleet *fleet, int32_t index, kn_device_health *out)
{
    const kn_fleet_device *d = &fleet->devices[index];
    const int64_t now = kn_clock_ns();
    const bool idle = d->health.state == KN_DEVICE_RESTARTING || d->health.state == KN_DEVICE_FAILED;
    *out = d->health;
    out->jobs = d->job_count;
    out->pid = d->child.process;
    out->beat_age_ns = d->child.process != 0 ? now - d->beat_ns : -1;
    out->restart_in_ns = idle && d->restart_at_ns > now ? d->restart_at_ns - now : 0;
    for (int32_t i = 0; i < KN_FLEET_GROUPS_TABLE; i++) {
        const kn_fleet_group *g = &fleet->groups[i];
        bool in = false;
        for (int32_t m = 0; g->epoch && m < g->degree; m++) in = in || g->members[m] == index;
        out->groups += in;
        if (!in || g->assignment == 0) continue;
        out->degree = g->degree;
        memcpy(out->members, g->members, sizeof out->members);
    }
}

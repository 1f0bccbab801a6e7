/* SPDX-License-Identifier: Apache-2.0
 *
 * Groups of devices that share a slice. One is formed when it is first needed: fresh shared memory under a fresh epoch,
 * whose descriptor goes to every member, and is kept for the next slice of the same members. All that a slice takes is
 * posted at once, join, assist and run; members meet in the group's memory, and nobody waits for the server.
 *
 * A group is given up by whoever sees first that it is no good: a member inside a call of it, or the fleet, when a
 * member's process ends or is condemned. Then every call of every member returns, they answer, and are free. It is
 * never repaired: the next slice forms another one. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "engine/comm_local.h"
#include "server/fleet_internal.h"

kn_fleet_group *kn_fleet_find_group(kn_fleet *f, uint64_t epoch)
{
    for (int32_t i = 0; epoch && i < KN_FLEET_GROUPS_TABLE; i++)
        if (f->groups[i].epoch == epoch) return &f->groups[i];
    return NULL;
}

static bool has_member(const kn_fleet_group *g, int32_t device)
{
    for (int32_t i = 0; g->epoch && i < g->degree; i++)
        if (g->members[i] == device) return true;
    return false;
}

/* ---- giving up ---- */

/* Members that are still there forget it, once what was asked before is answered. */
static void tell_members(kn_fleet *f, const kn_fleet_group *g)
{
    for (int32_t i = 0; i < g->degree; i++) {
        kn_fleet_device *d = NULL;
        if (kn_fleet_find_up(f, g->members[i], &d) != KN_OK) continue;
        kn_fleet_compose(f, KN_WIRE_LEAVE)->group.group.epoch = g->epoch;
        const kn_fleet_command leave = {
            .kind = KN_WIRE_LEAVE, .limit_ns = kn_fleet_limit(KN_WIRE_LEAVE, 0), .epoch = g->epoch};
        if (kn_fleet_post(d, &leave) != KN_OK) kn_log(KN_LOG_DEBUG, "device %s: %s", d->name, kn_fail_message());
    }
}

static void drop(kn_fleet *f, kn_fleet_group *g, const char *why)
{
    const kn_fleet_group gone = *g;
    *g = (kn_fleet_group){.epoch = 0}; /* condemning a member comes back here */
    kn_comm_local_give_up(gone.fd, why);
    close(gone.fd);
    tell_members(f, &gone);
}

/* Members that were silent or kept the others waiting are killed; they may be anywhere. */
static void drop_with_blame(kn_fleet *f, kn_fleet_group *g, const char *why)
{
    const kn_fleet_group gone = *g;
    char reason[KN_RUNNER_MESSAGE_BYTES] = "";
    bool given_up = false;
    uint32_t blamed = 0;
    if (kn_comm_local_look(g->fd, &given_up, &blamed, reason, sizeof reason) != KN_OK) blamed = 0;
    drop(f, g, why);
    kn_log(KN_LOG_WARNING, "a group of %d devices, led by %s, is lost: %s", gone.degree,
           f->devices[gone.members[0]].name, given_up ? reason : why);
    for (int32_t i = 0; i < gone.degree; i++)
        if (blamed >> i & 1)
            kn_fleet_condemn(&f->devices[gone.members[i]], KN_DOWN_HANG, 0, "held up its group: %s", reason);
}

void kn_fleet_lose_groups(kn_fleet_device *d, const char *why)
{
    char line[KN_RUNNER_MESSAGE_BYTES];
    snprintf(line, sizeof line, "device %.60s: %.*s", d->name, KN_RUNNER_MESSAGE_BYTES - 80, why);
    for (int32_t i = 0; i < KN_FLEET_GROUPS_TABLE; i++)
        if (has_member(&d->fleet->groups[i], d->index)) drop(d->fleet, &d->fleet->groups[i], line);
}

void kn_fleet_drop_all_groups(kn_fleet *f)
{
    for (int32_t i = 0; i < KN_FLEET_GROUPS_TABLE; i++)
        if (f->groups[i].epoch) close(f->groups[i].fd);
}

/* ---- forming ---- */

/* No more than so many on one device: the one used least recently goes. Busy ones are not many: each has a leader. */
static void make_room(kn_fleet *f, int32_t device)
{
    int32_t count = 0;
    kn_fleet_group *oldest = NULL;
    for (int32_t i = 0; i < KN_FLEET_GROUPS_TABLE; i++) {
        kn_fleet_group *g = &f->groups[i];
        if (!has_member(g, device)) continue;
        count++;
        if (g->assignment == 0 && (!oldest || g->used_ns < oldest->used_ns)) oldest = g;
    }
    if (count >= KN_FLEET_GROUPS_MAX && oldest) drop(f, oldest, "other groups need its place");
}

static kn_status post_join(kn_fleet *f, const kn_fleet_group *g, int32_t rank, bool nccl)
{
    kn_fleet_device *d = NULL;
    kn_status st = kn_fleet_find_up(f, g->members[rank], &d);
    if (st != KN_OK) return st;
    kn_fleet_compose(f, KN_WIRE_JOIN)->group.group =
        (kn_runner_group){.epoch = g->epoch, .ranks = g->degree, .rank = rank, .nccl = nccl};
    const kn_fleet_command join = {
        .kind = KN_WIRE_JOIN, .limit_ns = kn_fleet_limit(KN_WIRE_JOIN, 0), .epoch = g->epoch};
    return kn_fleet_post_with(d, &join, g->fd);
}

static kn_status form(kn_fleet *f, const int32_t *members, int32_t degree, kn_fleet_group **out)
{
    kn_status st = KN_OK;
    kn_fleet_group *g = NULL;
    for (int32_t i = 0; i < degree; i++) make_room(f, members[i]);
    for (int32_t i = 0; i < KN_FLEET_GROUPS_TABLE && !g; i++)
        if (f->groups[i].epoch == 0) g = &f->groups[i];
    if (!g) return kn_fail(KN_AGAIN, "%d groups are there already", KN_FLEET_GROUPS_TABLE);
    kn_fleet_group made = {.epoch = f->epochs + 1, .degree = degree};
    memcpy(made.members, members, (size_t)degree * sizeof *members);
    KN_TRY(kn_comm_local_form(&made.fd, degree, made.epoch));
    f->epochs++;
    *g = made;
    const bool nccl = !f->devices[members[0]].health.info.host_memory;
    for (int32_t i = 0; i < degree && st == KN_OK; i++) st = post_join(f, g, i, nccl);
    if (st != KN_OK) drop(f, g, kn_fail_message());
    *out = g;
fail:
    return st;
}

static kn_fleet_group *find_same(kn_fleet *f, const int32_t *members, int32_t degree)
{
    for (int32_t i = 0; i < KN_FLEET_GROUPS_TABLE; i++) {
        kn_fleet_group *g = &f->groups[i];
        if (g->epoch && g->assignment == 0 && g->degree == degree &&
            memcmp(g->members, members, (size_t)degree * sizeof *members) == 0)
            return g;
    }
    return NULL;
}

/* ---- a slice ---- */

static int64_t longest_wait(int64_t budget_ns)
{
    const int64_t least = KN_FLEET_GROUP_MS * KN_FLEET_MS;
    return budget_ns > least ? budget_ns : least;
}

static kn_status post_assist(kn_fleet *f, int32_t helper, const kn_wire_assist *assist, int64_t budget_ns)
{
    kn_fleet_device *d = NULL;
    const kn_status st = kn_fleet_find_up(f, helper, &d);
    if (st != KN_OK) return st;
    kn_fleet_compose(f, KN_WIRE_ASSIST)->assist = *assist;
    return kn_fleet_post(d, &(kn_fleet_command){.kind = KN_WIRE_ASSIST,
                                                .limit_ns = kn_fleet_limit(KN_WIRE_RUN, budget_ns),
                                                .assignment = assist->assignment,
                                                .epoch = assist->group});
}

/* Asks every helper. A group that not all of them can be told of is given up, which sends the others back. */
static kn_status gather(kn_fleet *f, const int32_t *members, int32_t degree, const kn_fleet_device *leader,
                        const kn_wire_run *run, int64_t budget_ns, kn_fleet_group **out)
{
    kn_status st = KN_OK;
    kn_fleet_device *ignored = NULL;
    for (int32_t i = 1; i < degree; i++) KN_TRY(kn_fleet_find_up(f, members[i], &ignored));
    kn_fleet_group *g = find_same(f, members, degree);
    if (!g) KN_TRY(form(f, members, degree, &g));
    kn_wire_assist assist = {.assignment = run->assignment, .group = g->epoch, .limit_ns = longest_wait(budget_ns)};
    const kn_fleet_job *job = kn_fleet_find_job((kn_fleet_device *)(uintptr_t)leader, &run->leases[0]);
    memcpy(assist.model, job->model, sizeof assist.model);
    for (int32_t i = 1; i < degree && st == KN_OK; i++) st = post_assist(f, members[i], &assist, budget_ns);
    if (st != KN_OK) drop(f, g, kn_fail_message());
    *out = g;
fail:
    return st;
}

static kn_status check_members(const kn_fleet *f, const int32_t *members, int32_t degree)
{
    if (degree < 1 || degree > KN_COMM_RANKS_MAX)
        return kn_fail(KN_INVALID, "a slice on %d devices: must be 1 to %d", degree, KN_COMM_RANKS_MAX);
    for (int32_t i = 0; i < degree; i++) {
        if (members[i] < 0 || members[i] >= f->device_count)
            return kn_fail(KN_INVALID, "device %d: there are %d", members[i], f->device_count);
        for (int32_t j = 0; j < i; j++)
            if (members[i] == members[j]) return kn_fail(KN_INVALID, "device %d: is in a group twice", members[i]);
    }
    return KN_OK;
}

kn_status kn_fleet_run_shared(kn_fleet *f, const int32_t *members, int32_t degree, uint64_t assignment,
                              kn_slice_kind kind, const kn_lease *leases, int32_t count, int64_t budget_ns)
{
    kn_status st = KN_OK;
    kn_fleet_device *leader = NULL;
    kn_fleet_group *g = NULL;
    KN_REQUIRE(assignment != 0 && budget_ns >= 0);
    KN_TRY(check_members(f, members, degree));
    if (degree == 1 || (kind != KN_SLICE_DENOISE && kind != KN_SLICE_DECODE))
        return kn_fleet_run(f, members[0], assignment, kind, leases, count, budget_ns);
    KN_TRY(kn_fleet_find_up(f, members[0], &leader));
    KN_TRY(kn_fleet_check_run(leader, leases, count));
    kn_wire_run run = {.assignment = assignment, .kind = kind, .count = count, .limit_ns = longest_wait(budget_ns)};
    memcpy(run.leases, leases, (size_t)count * sizeof *leases);
    if (gather(f, members, degree, leader, &run, budget_ns, &g) != KN_OK) {
        kn_log(KN_LOG_WARNING, "device %s: a slice for %d devices runs on one: %s", leader->name, degree,
               kn_fail_message());
        return kn_fleet_run(f, members[0], assignment, kind, leases, count, budget_ns);
    }
    run.group = g->epoch;
    st = kn_fleet_post_run(leader, &run, budget_ns);
    if (st != KN_OK) {
        drop(f, g, kn_fail_message());
        return st;
    }
    leader->degree = degree;
    g->assignment = assignment;
    g->used_ns = kn_clock_ns();
fail:
    return st;
}

/* ---- answers ---- */

void kn_fleet_answer_joined(kn_fleet_device *d, const kn_wire_group *answer)
{
    kn_fleet_group *g = kn_fleet_find_group(d->fleet, answer->group.epoch);
    if (answer->status == KN_OK || !g) return;
    kn_log(KN_LOG_WARNING, "device %s: did not join its group: %s", d->name, answer->message);
    drop_with_blame(d->fleet, g, answer->message);
}

void kn_fleet_answer_assisted(kn_fleet_device *d, uint64_t epoch, const kn_wire_assist *answer)
{
    if (answer->status == KN_OK) {
        d->health.assists++;
        d->health.assist_seconds += answer->seconds;
        return;
    }
    kn_fleet_group *g = kn_fleet_find_group(d->fleet, epoch);
    if (g) drop_with_blame(d->fleet, g, answer->message);
}

void kn_fleet_group_ran(kn_fleet_device *leader, uint64_t epoch, bool failed, const char *why)
{
    kn_fleet_group *g = kn_fleet_find_group(leader->fleet, epoch);
    if (!g) return;
    g->assignment = 0;
    g->used_ns = kn_clock_ns();
    if (failed) drop_with_blame(leader->fleet, g, why);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Assignments that several devices share: who may, who does, and what becomes of it when one of them goes down.
 *
 * A helper's end reaches the server before or after the leader's answer about the slice that was lost with it. The
 * scheduler always hears of the slice first, so that its jobs stay on their leader, where they are; and of the helper
 * when the slice has been answered, or the leader is gone too. */
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "engine/comm_nccl.h"
#include "server/core.h"

enum { ALONE_MS = 10 * 1000 }; /* a job whose group was lost has none for so long: another could be lost as well */

static bool same_kind(const kn_device_info *a, const kn_device_info *b)
{
    return a->host_memory == b->host_memory && strcmp(a->tier, b->tier) == 0 &&
           strcmp(a->description, b->description) == 0 && a->domain == b->domain;
}

/* GPUs talk through NCCL. */
static bool can_share(const kn_device_info *info)
{
    static int nccl = -1;
    if (info->domain == 0) return false;
    if (info->host_memory) return true;
    if (nccl < 0) nccl = kn_comm_nccl_available(NULL) == KN_OK;
    if (!nccl) kn_log(KN_LOG_WARNING, "GPUs work alone: %s", kn_fail_message());
    return nccl;
}

int32_t kn_together_domain(kn_server *s, int32_t device)
{
    kn_seat *seat = &s->seats[device];
    if (seat->domain != 0 || s->seat_count == 1 || s->config->degree_max == 1) return seat->domain;
    for (int32_t i = 0; i < s->seat_count; i++)
        if (s->seats[i].domain != 0 && same_kind(&s->seats[i].info, &seat->info)) seat->domain = s->seats[i].domain;
    if (seat->domain == 0 && can_share(&seat->info)) seat->domain = device + 1;
    return seat->domain;
}

int32_t kn_together_begin(kn_server *s, const kn_assignment *a)
{
    int32_t loading = 0;
    kn_seat *leader = &s->seats[a->device];
    leader->assignment.load_members = 0;
    for (int32_t i = 1; i < a->degree; i++) {
        s->seats[a->members[i]].helps = a->device + 1;
        if (!(a->load_members >> i & 1)) continue;
        if (kn_fleet_load(s->fleet, a->members[i], kn_catalog_at(s->catalog, a->model)->name) != KN_OK) continue;
        leader->assignment.load_members |= 1u << i;
        loading++;
    }
    return loading;
}

/* Clears the bit of a helper whose model is waited for; true: it was. */
static bool stop_waiting(kn_assignment *a, int32_t device)
{
    for (int32_t i = 1; i < a->degree; i++)
        if (a->members[i] == device && a->load_members >> i & 1) {
            a->load_members &= ~(1u << i);
            return true;
        }
    return false;
}

bool kn_together_loaded(kn_server *s, int32_t device, const kn_catalog_model *model)
{
    const int32_t leader = s->seats[device].helps - 1;
    if (leader < 0 || !s->seats[leader].busy || s->seats[leader].running) return false;
    kn_assignment *a = &s->seats[leader].assignment;
    return kn_catalog_index(s->catalog, model) == a->model && stop_waiting(a, device);
}

/* Is one of the jobs to be left alone for now? */
static bool wants_to_be_alone(const kn_server *s, const kn_assignment *a)
{
    const int64_t now = kn_clock_ns();
    for (int32_t i = 0; i < a->count; i++) {
        const kn_live *live = a->jobs[i] ? kn_live_by_key(s->live, a->jobs[i]) : NULL;
        if (live && live->alone_until_ns > now) return true;
    }
    return false;
}

int32_t kn_together_members(kn_server *s, int32_t device, int32_t members[KN_SCHEDULER_DEGREE_MAX])
{
    const kn_assignment *a = &s->seats[device].assignment;
    int32_t count = 0;
    members[count++] = device;
    if (a->degree < 2 || wants_to_be_alone(s, a)) return count;
    for (int32_t i = 1; i < a->degree; i++) {
        const kn_seat *helper = &s->seats[a->members[i]];
        if (helper->up && !helper->down_untold && helper->loaded >> a->model & 1) members[count++] = a->members[i];
    }
    return count;
}

void kn_together_lost(kn_live *live)
{
    live->alone_until_ns = kn_clock_ns() + INT64_C(1000000) * ALONE_MS;
}

void kn_together_end(kn_server *s, int32_t leader)
{
    for (int32_t i = 0; i < s->seat_count; i++) {
        kn_seat *helper = &s->seats[i];
        if (helper->helps != leader + 1) continue;
        helper->helps = 0;
        if (!helper->down_untold) continue;
        const bool up = helper->up_untold;
        helper->down_untold = helper->up_untold = false;
        kn_dispatch_device_gone(s, i);
        if (up) kn_dispatch_device_ready(s, i, 0);
    }
}

bool kn_together_down(kn_server *s, int32_t device)
{
    kn_seat *seat = &s->seats[device];
    const int32_t leader = seat->helps - 1;
    if (seat->down_untold) { /* for the second time: it was never said to be up in between */
        seat->up_untold = false;
        return true;
    }
    if (leader < 0 || !s->seats[leader].busy) return false;
    seat->down_untold = true;
    if (!s->seats[leader].running && stop_waiting(&s->seats[leader].assignment, device)) kn_seat_helper_gone(s, leader);
    return true;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Slots for jobs, and a hash table from key to slot: open addressing with linear probing, at most half full; a removal
 * moves later entries of the same run back (Knuth, The Art of Computer Programming 3, 6.4, algorithm R). */
#include "scheduler/state.h"

#include <string.h>

static uint32_t home(const kn_scheduler *s, uint64_t key)
{
    key = (key ^ key >> 33) * UINT64_C(0xff51afd7ed558ccd);
    return (uint32_t)(key >> 32) & s->slot_mask;
}

static uint32_t probe(const kn_scheduler *s, uint64_t key)
{
    uint32_t at = home(s, key);
    while (s->slots[at] != KN_NO_SLOT && s->jobs[s->slots[at]].key != key) at = (at + 1) & s->slot_mask;
    return at;
}

int32_t kn_core_find(const kn_scheduler *s, uint64_t key)
{
    return s->slots[probe(s, key)];
}

int32_t kn_core_add(kn_scheduler *s, uint64_t key)
{
    const int32_t slot = s->free_slot;
    if (slot == KN_NO_SLOT) return KN_NO_SLOT;
    kn_core_job *job = &s->jobs[slot];
    s->free_slot = job->next_free;
    s->job_count++;
    memset(job, 0, sizeof *job);
    job->key = key;
    job->seq = s->next_seq++;
    job->used = true;
    job->device = job->last_device = job->plan = KN_NO_DEVICE;
    s->slots[probe(s, key)] = slot;
    return slot;
}

void kn_core_forget(kn_scheduler *s, int32_t slot)
{
    uint32_t hole = probe(s, s->jobs[slot].key);
    for (uint32_t at = (hole + 1) & s->slot_mask; s->slots[at] != KN_NO_SLOT; at = (at + 1) & s->slot_mask) {
        const uint32_t wanted = home(s, s->jobs[s->slots[at]].key);
        if (((at - wanted) & s->slot_mask) >= ((at - hole) & s->slot_mask)) {
            s->slots[hole] = s->slots[at];
            hole = at;
        }
    }
    s->slots[hole] = KN_NO_SLOT;
    s->jobs[slot].used = false;
    s->jobs[slot].next_free = s->free_slot;
    s->free_slot = slot;
    s->job_count--;
}

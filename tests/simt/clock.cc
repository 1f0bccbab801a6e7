// SPDX-License-Identifier: Apache-2.0
//
// Vector clocks, shared by the threads that left one barrier together.
#include <stdlib.h>
#include <string.h>

#include <algorithm>

#include "tests/simt/machine.h"

namespace simt
{

static vclock *clock_alloc(uint32_t slots)
{
    vclock *c = (vclock *)malloc(sizeof *c + 2 * (size_t)slots * sizeof(uint32_t));
    if (!c) abort();
    c->refs = 1;
    c->slots = slots;
    c->seen = (uint32_t *)(c + 1);
    c->fenced = c->seen + slots;
    return c;
}

vclock *clock_new(uint32_t slots, uint32_t moment)
{
    vclock *c = clock_alloc(slots);
    std::fill(c->seen, c->seen + 2 * (size_t)slots, moment);
    return c;
}

vclock *clock_keep(vclock *c)
{
    c->refs++;
    return c;
}

void clock_drop(vclock *c)
{
    if (c && --c->refs == 0) free(c);
}

vclock *clock_copy(const vclock *from)
{
    vclock *c = clock_alloc(from->slots);
    memcpy(c->seen, from->seen, 2 * (size_t)from->slots * sizeof(uint32_t));
    return c;
}

static void join_into(vclock *c, const vclock *other)
{
    uint32_t *a = c->seen;
    const uint32_t *b = other->seen;
    for (size_t i = 0, n = 2 * (size_t)c->slots; i < n; i++) a[i] = std::max(a[i], b[i]);
}

vclock *clock_join(const vclock *base, std::vector<note> *notes, uint32_t slots)
{
    vclock *c = base ? clock_copy(base) : clock_new(slots, 0);
    const vclock *joined = nullptr;
    for (note &n : *notes) {
        if (n.clock && n.clock != joined) join_into(c, n.clock);
        if (n.clock) joined = n.clock;
    }
    for (note &n : *notes) {
        c->seen[n.slot] = std::max(c->seen[n.slot], n.moment);
        c->fenced[n.slot] = std::max(c->fenced[n.slot], n.fenced);
        clock_drop(n.clock);
    }
    notes->clear();
    return c;
}

note release_note(thread *t)
{
    note n = {clock_keep(t->clock), t->slot, t->moment, t->fenced};
    t->moment++;
    return n;
}

void acquire(thread *t, const vclock *c)
{
    if (!c || t->clock == c) return;
    vclock *mine = clock_copy(t->clock);
    join_into(mine, c);
    clock_drop(t->clock);
    t->clock = mine;
}

} // namespace simt

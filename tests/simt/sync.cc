// SPDX-License-Identifier: Apache-2.0
//
// Barriers, and the instructions that a warp executes as one.
#include <stdio.h>
#include <string.h>

#include <algorithm>

#include "tests/simt/device.h"
#include "tests/simt/instructions.h"
#include "tests/simt/launch.h"
#include "tests/simt/machine.h"

namespace simt
{

// ---- built-in variables ----

uint3 thread_index()
{
    return {current->x, current->y, current->z};
}

uint3 block_index()
{
    return {current->owner->x, current->owner->y, current->owner->z};
}

dim3 block_size()
{
    return dim3(running->block_dim[0], running->block_dim[1], running->block_dim[2]);
}

dim3 grid_size()
{
    return dim3(running->grid[0], running->grid[1], running->grid[2]);
}

void *dynamic_shared()
{
    return current->owner->shared;
}

// ---- barriers ----
// PTX ISA, "Parallel Synchronization and Communication Instructions: bar, barrier": the barrier completes when the
// expected number of threads has come, and then their earlier accesses are ordered before the later ones of those that
// waited.

static const char *name_of_barrier(int id)
{
    static const char *const names[NAMED_BARRIERS] = {
        "barrier 0", "barrier 1", "barrier 2",  "barrier 3",  "barrier 4",  "barrier 5",  "barrier 6",  "barrier 7",
        "barrier 8", "barrier 9", "barrier 10", "barrier 11", "barrier 12", "barrier 13", "barrier 14", "barrier 15"};
    return names[id];
}

static void complete(barrier *b)
{
    vclock *joined = clock_join(nullptr, &b->notes, running->slots);
    for (thread *w : b->waiting) {
        if (w->clock->slots == 0) continue;
        // One who waited also arrived, so what it has seen is in `joined` already.
        clock_drop(w->clock);
        w->clock = clock_keep(joined);
        if (w != current) wake(w);
    }
    clock_drop(joined);
    b->waiting.clear();
    b->arrived = b->expected = 0;
}

static void arrive(barrier *b, const char *name, int line, uint32_t expected, bool wait)
{
    thread *t = current;
    if (b->arrived > 0 && b->expected != expected)
        fail("%s with %u threads, where others came for %u", name, expected, b->expected);
    if (b->arrived > 0 && line != 0 && b->line != line)
        fail("divergent barrier: this thread is at line %d, others wait at line %d", line, b->line);
    b->line = line;
    b->expected = expected;
    b->arrived++;
    b->notes.push_back(release_note(t));
    if (wait) b->waiting.push_back(t);
    if (b->arrived == expected) {
        complete(b);
        return;
    }
    if (!wait) return;
    block_until_woken(name, {"line %lld, %lld of %lld are there", nullptr, {line, b->arrived, expected}});
}

void sync_threads(int line)
{
    block *b = current->owner;
    if (b->alive != running->threads)
        fail("divergent barrier: __syncthreads at line %d, but %u threads of the block have returned", line,
             running->threads - b->alive);
    arrive(&b->barriers[0], "__syncthreads", line, running->threads, true);
}

int sync_threads_vote(int line, int predicate, int what)
{
    block *b = current->owner;
    if (b->barriers[0].arrived == 0) b->vote_count = 0;
    b->vote_count += predicate != 0;
    sync_threads(line);
    const int count = b->vote_count; // nobody can vote again before all have passed the barrier below
    arrive(&b->barriers[0], "__syncthreads", line, running->threads, true);
    return what == 0 ? count : what == 1 ? count == (int)running->threads : count > 0;
}

void named_barrier(int id, uint32_t count, bool wait, int)
{
    if (id < 0 || id >= NAMED_BARRIERS) fail("barrier %d: there are 16", id);
    if (count == 0) count = running->threads;
    if (count % WARP != 0 || count > running->threads)
        fail("%s for %u threads: it must be whole warps of the block's %u threads", name_of_barrier(id), count,
             running->threads);
    // Different call sites may meet at a named barrier: producers and consumers do.
    arrive(&current->owner->barriers[id], name_of_barrier(id), 0, count, wait);
}

static uint32_t cluster_threads()
{
    return (uint32_t)running->blocks.size() * running->threads;
}

// PTX ISA, "barrier.cluster": arrive and wait are two steps, and every thread of the cluster takes part.
void cluster_arrive()
{
    barrier *b = &running->cluster_barrier;
    thread *t = current;
    if (std::find(b->waiting.begin(), b->waiting.end(), t) != b->waiting.end() || t->cluster_arrived)
        fail("barrier.cluster.arrive twice without a wait between");
    t->cluster_arrived = true;
    b->notes.push_back(release_note(t));
    b->arrived++;
    if (b->arrived < cluster_threads()) return;
    for (thread *w : b->waiting) {
        w->cluster_passed = true;
        wake(w);
    }
    vclock *joined = clock_join(nullptr, &b->notes, running->slots);
    for (block &one : running->blocks)
        for (thread &each : one.threads) {
            each.cluster_ready = true;
            clock_drop(each.cluster_clock);
            each.cluster_clock = clock_keep(joined);
        }
    clock_drop(joined);
    b->waiting.clear();
    b->arrived = 0;
}

void cluster_wait()
{
    thread *t = current;
    if (!t->cluster_arrived) fail("barrier.cluster.wait without barrier.cluster.arrive");
    if (!t->cluster_ready) {
        running->cluster_barrier.waiting.push_back(t);
        block_until_woken("barrier.cluster.wait", {"%lld of %lld threads of the cluster are there",
                                                   nullptr,
                                                   {running->cluster_barrier.arrived, cluster_threads(), 0}});
    }
    acquire(t, t->cluster_clock);
    t->cluster_ready = t->cluster_arrived = t->cluster_passed = false;
}

// ---- warps ----

static void check_mask(const char *name, int line, uint32_t mask)
{
    const thread *t = current;
    if (!(mask >> t->lane & 1)) fail("%s at line %d: lane %u is not in its own mask 0x%08x", name, line, t->lane, mask);
    if (mask & ~t->in->lanes)
        fail("%s at line %d: mask 0x%08x names lanes the warp does not have (0x%08x)", name, line, mask, t->in->lanes);
    if (mask & t->in->exited)
        fail("%s at line %d: mask 0x%08x names lanes that have returned (0x%08x)", name, line, mask,
             mask & t->in->exited);
}

static meeting *find_meeting(warp *w, uint32_t mask)
{
    for (meeting *m : w->meetings)
        if (m->mask == mask) return m;
    return nullptr;
}

void meet(const char *name, int line, uint32_t mask, void *payload, const std::function<void(meeting &)> &work)
{
    thread *t = current;
    check_mask(name, line, mask);
    meeting *m = find_meeting(t->in, mask);
    if (!m) {
        m = new meeting();
        m->mask = mask;
        m->name = name;
        m->line = line;
        t->in->meetings.push_back(m);
    }
    if (strcmp(m->name, name) != 0 || m->line != line)
        fail("divergent warp: lane %u is at %s (line %d), others at %s (line %d)", t->lane, name, line, m->name,
             m->line);
    m->arrived |= 1u << t->lane;
    m->payload[t->lane] = payload;
    m->lane[t->lane] = t;
    if (m->arrived != mask) {
        block_until_woken(name, {"line %lld, mask 0x%08llx, here 0x%08llx", nullptr, {line, mask, m->arrived}});
        return;
    }
    std::vector<meeting *> *all = &t->in->meetings;
    all->erase(std::find(all->begin(), all->end(), m));
    work(*m);
    for (uint32_t i = 0; i < WARP; i++)
        if ((mask >> i & 1) && m->lane[i] != t) wake(m->lane[i]);
    delete m;
}

// CUDA C++ Programming Guide, "Warp Vote/Shuffle Functions": these meet but order no memory; __syncwarp does.
void sync_warp(int line, uint32_t mask)
{
    meet("__syncwarp", line, mask, nullptr, [](meeting &m) {
        std::vector<note> notes;
        for (uint32_t i = 0; i < WARP; i++)
            if (m.mask >> i & 1) notes.push_back(release_note(m.lane[i]));
        vclock *joined = clock_join(nullptr, &notes, running->slots);
        for (uint32_t i = 0; i < WARP; i++)
            if (m.mask >> i & 1) {
                clock_drop(m.lane[i]->clock);
                m.lane[i]->clock = clock_keep(joined);
            }
        clock_drop(joined);
    });
}

namespace
{
struct exchange {
    uint64_t value;
    int operand, width, mode;
    uint64_t result;
};
} // namespace

static void do_shuffle(meeting &m)
{
    for (int i = 0; i < WARP; i++) {
        if (!(m.mask >> i & 1)) continue;
        exchange *s = (exchange *)m.payload[i];
        if (s->width <= 0 || s->width > WARP || (s->width & (s->width - 1)))
            return fail_of(m.lane[i], "%s: width %d is not a power of two up to 32", m.name, s->width);
        const int low = i & ~(s->width - 1), high = low + s->width - 1;
        int from = i;
        switch (s->mode) {
        case SHUFFLE_INDEX: from = low | (s->operand & (s->width - 1)); break;
        case SHUFFLE_UP: from = i - s->operand < low ? i : i - s->operand; break;
        case SHUFFLE_DOWN: from = i + s->operand > high ? i : i + s->operand; break;
        default: from = (i ^ s->operand) > high ? i : i ^ s->operand; break;
        }
        if (!(m.mask >> from & 1))
            return fail_of(m.lane[i], "%s at line %d: takes lane %d, which is not in mask 0x%08x", m.name, m.line, from,
                           m.mask);
        s->result = ((exchange *)m.payload[from])->value;
    }
}

uint64_t shuffle_bits(int line, uint32_t mask, uint64_t value, int operand, int width, int mode)
{
    static const char *const names[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};
    exchange s = {value, operand, width, mode, 0};
    meet(names[mode], line, mask, &s, do_shuffle);
    return s.result;
}

namespace
{
struct ballot {
    uint64_t value;
    uint32_t result;
};
} // namespace

uint32_t ballot_sync(int line, uint32_t mask, bool predicate)
{
    ballot b = {predicate, 0};
    meet("vote", line, mask, &b, [](meeting &m) {
        uint32_t bits = 0;
        for (int i = 0; i < WARP; i++)
            if ((m.mask >> i & 1) && ((ballot *)m.payload[i])->value) bits |= 1u << i;
        for (int i = 0; i < WARP; i++)
            if (m.mask >> i & 1) ((ballot *)m.payload[i])->result = bits;
    });
    return b.result;
}

uint32_t match_any(int line, uint32_t mask, uint64_t value)
{
    ballot b = {value, 0};
    meet("__match_any_sync", line, mask, &b, [](meeting &m) {
        for (int i = 0; i < WARP; i++)
            for (int j = 0; j < WARP; j++)
                if ((m.mask >> i & 1) && (m.mask >> j & 1) &&
                    ((ballot *)m.payload[i])->value == ((ballot *)m.payload[j])->value)
                    ((ballot *)m.payload[i])->result |= 1u << j;
    });
    return b.result;
}

uint32_t reduce_bits(int line, uint32_t mask, uint32_t value, int how)
{
    ballot b = {value | (uint64_t)(uint32_t)how << 32, 0};
    meet("__reduce_sync", line, mask, &b, [](meeting &m) {
        bool first = true;
        uint32_t r = 0;
        for (int i = 0; i < WARP; i++) {
            if (!(m.mask >> i & 1)) continue;
            const uint64_t both = ((ballot *)m.payload[i])->value;
            const uint32_t v = (uint32_t)both;
            const int op = (int)(both >> 32);
            if (first)
                r = v;
            else if (op == REDUCE_ADD)
                r += v;
            else if (op == REDUCE_MIN)
                r = std::min(r, v);
            else if (op == REDUCE_MAX)
                r = std::max(r, v);
            else if (op == REDUCE_SMIN)
                r = (uint32_t)std::min((int)r, (int)v);
            else if (op == REDUCE_SMAX)
                r = (uint32_t)std::max((int)r, (int)v);
            else if (op == REDUCE_AND)
                r &= v;
            else if (op == REDUCE_OR)
                r |= v;
            else
                r ^= v;
            first = false;
        }
        for (int i = 0; i < WARP; i++)
            if (m.mask >> i & 1) ((ballot *)m.payload[i])->result = r;
    });
    return b.result;
}

uint32_t active_mask()
{
    return 1u << current->lane; // no promise at all about who else is here
}

// PTX ISA, "setmaxnreg": all warps of a warpgroup say it, and what the block holds together must fit.
void set_registers(int line, int count, bool more)
{
    if (count < 24 || count > 256 || count % 8 != 0) fail("setmaxnreg %d: a multiple of 8 from 24 to 256", count);
    meet("setmaxnreg", line, 0xffffffffu, nullptr, [count, more](meeting &m) {
        warp *w = m.lane[0]->in;
        if (w->registers != 0 && (more ? count < w->registers : count > w->registers))
            return fail_of(m.lane[0], "setmaxnreg.%s %d from %d", more ? "inc" : "dec", count, w->registers);
        w->registers = count;
        uint64_t total = 0;
        bool all = true;
        for (const warp &one : w->owner->warps) {
            all = all && one.registers != 0;
            total += (uint64_t)one.registers * WARP;
        }
        if (all && total > 65536)
            return fail_of(m.lane[0], "setmaxnreg: the block's warps hold %llu registers together, there are 65536",
                           (unsigned long long)total);
    });
}

// ---- the rest of a thread's life ----

void atomic_access(void *address, size_t bytes)
{
    if ((uintptr_t)address % bytes != 0) fail("atomic on a misaligned address: %s", describe_address(address).c_str());
    touch_current(address, bytes, ACCESS_WRITE | ACCESS_ATOMIC);
}

void check_alignment(const void *address, size_t bytes)
{
    if ((uintptr_t)address % bytes != 0)
        fail("misaligned: %s is not a multiple of %zu bytes", describe_address(address).c_str(), bytes);
}

void load_check(const void *address, size_t bytes)
{
    check_alignment(address, bytes);
    touch_current(address, bytes, ACCESS_READ);
}

void store_check(void *address, size_t bytes)
{
    check_alignment(address, bytes);
    touch_current(address, bytes, ACCESS_WRITE);
}

void pause_thread()
{
    spin("__nanosleep");
}

void trap(const char *text)
{
    fail("%s", text);
    __builtin_trap();
}

uint64_t clock_ticks()
{
    static uint64_t ticks;
    return ticks += 16;
}

} // namespace simt

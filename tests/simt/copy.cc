// SPDX-License-Identifier: Apache-2.0
//
// Copies that somebody must wait for: a thread's own (cp.async), bulk copies through the asynchronous proxy (TMA), and
// the mbarriers on which those complete. Destinations hold poison, and touching them is an error, until the wait.
#include <stdio.h>
#include <string.h>

#include <algorithm>

#include "tests/simt/instructions.h"
#include "tests/simt/machine.h"
#include "tests/simt/tensor.h"

namespace simt
{

// ---- cp.async: PTX ISA, "Data Movement and Conversion Instructions: cp.async" ----
// The copy may happen at any time up to the wait for its group, and is then visible to the thread that waited.

void cp_async(void *shared, const void *global, uint32_t bytes, uint32_t source_bytes)
{
    thread *t = current;
    if (!is_shared(shared)) fail("cp.async to %s, which is not shared", describe_address(shared).c_str());
    if ((uintptr_t)shared % bytes != 0) fail("cp.async to a misaligned %s", describe_address(shared).c_str());
    if ((uintptr_t)global % bytes != 0) fail("cp.async from a misaligned %s", describe_address(global).c_str());
    if (source_bytes > bytes) fail("cp.async of %u bytes out of %u", source_bytes, bytes);
    touch_current(global, source_bytes, ACCESS_READ);
    touch_current(shared, bytes, ACCESS_WRITE);
    poison(shared, bytes);
    mark_in_flight(shared, bytes, true);
    t->copies.push_back({(char *)shared, (const char *)global, bytes, source_bytes, false});
}

void cp_async_commit()
{
    current->copy_groups.push_back(current->copies.size());
}

void cp_async_wait(uint32_t pending)
{
    thread *t = current;
    const size_t groups = t->copy_groups.size();
    if (groups <= pending) return;
    const size_t finished = groups - pending, end = t->copy_groups[finished - 1];
    for (size_t i = 0; i < end; i++) {
        thread_copy &c = t->copies[i];
        mark_in_flight(c.to, c.bytes, false);
        touch_current(c.to, c.bytes, ACCESS_WRITE);
        memset(c.to, 0, c.bytes);
        memcpy(c.to, c.from, c.source_bytes);
    }
    t->copies.erase(t->copies.begin(), t->copies.begin() + (ptrdiff_t)end);
    t->copy_groups.erase(t->copy_groups.begin(), t->copy_groups.begin() + (ptrdiff_t)finished);
    for (size_t &one : t->copy_groups) one -= end;
}

// ---- mbarriers: PTX ISA, "mbarrier" ----

static block *block_of(const void *shared)
{
    if (is_static_shared(shared)) return &running->blocks[0];
    return &running->blocks[rank_of_shared(shared)];
}

static mbarrier *find_barrier(void *address, const char *what)
{
    if ((uintptr_t)address % 8 != 0) fail("%s on a misaligned %s", what, describe_address(address).c_str());
    if (!is_shared(address)) fail("%s on %s, which is not shared", what, describe_address(address).c_str());
    block *b = block_of(address);
    auto at = b->mbarriers.find((char *)address);
    if (at == b->mbarriers.end())
        fail("%s on %s: no mbarrier was initialised there", what, describe_address(address).c_str());
    return &at->second;
}

static uint64_t magic_of(const mbarrier *m)
{
    return 0x6d62617272696572u ^ (uint64_t)(uintptr_t)m->address ^ (uint64_t)m->phase << 48;
}

static void stamp(mbarrier *m)
{
    const uint64_t magic = magic_of(m);
    memcpy(m->address, &magic, sizeof magic);
}

// An operation of the running thread on an initialised mbarrier. The initialisation must be ordered before it.
static mbarrier *use_barrier(void *address, const char *what)
{
    mbarrier *m = find_barrier(address, what);
    touch_current(address, 8, ACCESS_WRITE | ACCESS_ATOMIC);
    uint64_t found;
    memcpy(&found, address, sizeof found);
    if (found != magic_of(m)) fail("%s: the mbarrier at %s was overwritten", what, describe_address(address).c_str());
    return m;
}

void mbarrier_init(void *address, uint32_t count)
{
    if ((uintptr_t)address % 8 != 0) fail("mbarrier.init on a misaligned %s", describe_address(address).c_str());
    if (!is_shared(address)) fail("mbarrier.init on %s, which is not shared", describe_address(address).c_str());
    if (count == 0 || count > (1u << 20) - 1) fail("mbarrier.init with a count of %u", count);
    block *b = block_of(address);
    if (b != current->owner) fail("mbarrier.init in another block's shared memory");
    if (b->mbarriers.count((char *)address))
        fail("mbarrier.init on %s, where a live mbarrier is", describe_address(address).c_str());
    touch_current(address, 8, ACCESS_WRITE);
    mbarrier m = {};
    m.address = (char *)address;
    m.owner = b;
    m.count = m.pending = count;
    m.init_slot = current->slot;
    m.init_moment = current->moment;
    b->mbarriers[(char *)address] = m;
    stamp(&b->mbarriers[(char *)address]);
}

static void maybe_complete(mbarrier *m)
{
    if (m->pending != 0 || m->transactions != 0) return;
    vclock *joined = clock_join(m->completed, &m->notes, running->slots);
    clock_drop(m->completed);
    m->completed = joined;
    m->phase++;
    m->pending = m->count;
    stamp(m);
    std::vector<thread *> waiting;
    waiting.swap(m->waiting);
    for (thread *t : waiting) wake(t);
}

void mbarrier_arrive(void *address, uint32_t count)
{
    mbarrier *m = use_barrier(address, "mbarrier.arrive");
    if (count > m->pending)
        fail("mbarrier.arrive on %s: more arrivals than its count of %u in one phase",
             describe_address(address).c_str(), m->count);
    m->notes.push_back(release_note(current));
    m->pending -= count;
    maybe_complete(m);
}

void mbarrier_expect(void *address, uint32_t bytes)
{
    mbarrier *m = use_barrier(address, "mbarrier.expect_tx");
    if (bytes > (1u << 20) - 1) fail("mbarrier.expect_tx of %u bytes: more than the count can hold", bytes);
    m->transactions += bytes;
    maybe_complete(m);
}

bool mbarrier_wait_some(void *address, uint32_t parity, bool may_wait)
{
    mbarrier *m = use_barrier(address, "mbarrier wait");
    if (parity > 1) fail("mbarrier wait for parity %u", parity);
    if ((m->phase & 1) == parity) {
        if (!may_wait || random_below(running, 8) == 0) { // it may give up after a time that nobody promises
            spin("mbarrier wait");
        } else {
            m->waiting.push_back(current);
            block_until_woken("mbarrier wait", {"phase %lld, needs %lld more arrivals and %lld more bytes",
                                                address,
                                                {m->phase, m->pending, m->transactions}});
        }
        if ((m->phase & 1) == parity) return false;
    }
    current->spins = 0;
    acquire(current, m->completed);
    return true;
}

// ---- proxies ----

// PTX ISA, "membar, fence: fence.proxy.async": what this thread did, and what it has seen of others, is from now on
// ordered for the asynchronous proxy too.
void fence_proxy_async()
{
    thread *t = current;
    vclock *c = clock_copy(t->clock);
    memcpy(c->fenced, c->seen, c->slots * sizeof *c->seen);
    clock_drop(t->clock);
    t->clock = c;
    t->fenced = t->moment++;
}

// ---- clusters ----

uint32_t cluster_rank()
{
    return current->owner->rank;
}

void *map_to_rank(const void *shared, uint32_t rank)
{
    if (rank >= running->blocks.size()) fail("mapa to block %u of a cluster of %zu", rank, running->blocks.size());
    if (is_static_shared(shared)) {
        if (rank != 0) fail("mapa of a static shared variable; take dynamic shared memory");
        return (void *)shared;
    }
    const block *own = &running->blocks[rank_of_shared(shared)];
    return running->blocks[rank].shared + ((const char *)shared - own->shared);
}

// ---- bulk copies: PTX ISA, "cp.async.bulk", "cp.async.bulk.tensor" ----

struct async_copy {
    bool load, read_done, write_done;
    const thread *issuer;
    char *shared;   // of the issuing block
    uint32_t bytes; // in shared memory, in each destination
    tensor map;
    int coordinate[TENSOR_RANK_MAX];
    void *barrier;
    uint32_t ranks;
    uint32_t barrier_phase[CLUSTER_MAX];
    actor by;
    vclock *issued;
    std::vector<char> data;
};

static async_copy *new_copy(bool load, void *shared)
{
    thread *t = current;
    async_copy *c = new async_copy();
    c->load = load;
    c->issuer = t;
    c->shared = (char *)shared;
    c->issued = clock_keep(t->clock);
    c->by = actor_of(t);
    c->by.clock = c->issued;
    const uint32_t lane = running->next_async++ % ASYNC_SLOTS;
    c->by.slot = running->slots - ASYNC_SLOTS + lane;
    c->by.moment = ++running->async_moment[lane];
    if (!is_shared(shared) || (uintptr_t)shared % 16 != 0)
        fail("bulk copy with %s on the shared side", describe_address(shared).c_str());
    return c;
}

static void drop_copy(async_copy *c)
{
    clock_drop(c->issued);
    delete c;
}

static bool behind_issuer_fence(const async_copy *c, uint32_t slot, uint32_t moment)
{
    return slot == c->by.issuer ? moment <= c->by.issuer_fenced : c->issued->fenced[slot] >= moment;
}

// Each destination: the same offset in every block of `ranks`.
static void for_each_rank(const async_copy *c, void (*visit)(async_copy *, uint32_t rank, char *shared, void *barrier))
{
    async_copy *copy = const_cast<async_copy *>(c);
    if (c->ranks == 0) return visit(copy, c->issuer->owner->rank, c->shared, c->barrier);
    for (uint32_t rank = 0; rank < running->blocks.size(); rank++)
        if (c->ranks >> rank & 1) {
            const ptrdiff_t shift = running->blocks[rank].shared - c->issuer->owner->shared;
            visit(copy, rank, c->shared + shift, (char *)c->barrier + shift);
        }
}

static void begin_load(async_copy *c)
{
    if (c->ranks >> running->blocks.size()) fail("multicast to blocks the cluster does not have: 0x%x", c->ranks);
    for_each_rank(c, [](async_copy *copy, uint32_t rank, char *shared, void *barrier) {
        mbarrier *m = find_barrier(barrier, "bulk copy");
        if (!behind_issuer_fence(copy, m->init_slot, m->init_moment))
            fail("bulk copy on the mbarrier at %s, whose initialisation is not yet behind a fence for the asynchronous "
                 "proxy",
                 describe_address(barrier).c_str());
        copy->barrier_phase[rank] = m->phase;
        touch(copy->by, shared, copy->bytes, ACCESS_WRITE | ACCESS_ASYNC);
        poison(shared, copy->bytes);
        mark_in_flight(shared, copy->bytes, true);
    });
    running->pending.push_back(c);
}

static void check_map(const tensor *map, int rank, const void *where)
{
    if ((uintptr_t)where % 64 != 0) fail("the tensor map is not 64-byte aligned");
    if (map->magic != TENSOR_MAGIC) fail("the tensor map was not made by cuTensorMapEncodeTiled");
    if (map->step[0] != 1) fail("steps along the innermost dimension are not modelled");
    if (map->rank != rank) fail("a copy of rank %d with a tensor map of rank %u", rank, map->rank);
}

static uint32_t box_bytes(const tensor *map)
{
    uint32_t bytes = map->element_bytes;
    for (int i = 0; i < map->rank; i++) bytes *= map->box[i];
    return bytes;
}

static async_copy *new_tensor_copy(bool load, void *shared, const void *map, const int *coordinates, int rank)
{
    async_copy *c = new_copy(load, shared);
    memcpy(&c->map, map, sizeof c->map);
    check_map(&c->map, rank, map);
    c->bytes = box_bytes(&c->map);
    memcpy(c->coordinate, coordinates, (size_t)rank * sizeof *coordinates);
    if ((uintptr_t)shared % 128 != 0) fail("tensor copy: %s is not 128-byte aligned", describe_address(shared).c_str());
    return c;
}

void tensor_load(void *shared, const void *map, const int *coordinates, int rank, void *barrier, uint32_t ranks)
{
    async_copy *c = new_tensor_copy(true, shared, map, coordinates, rank);
    c->barrier = barrier;
    c->ranks = ranks;
    begin_load(c);
}

static void begin_store(async_copy *c)
{
    touch(c->by, c->shared, c->bytes, ACCESS_READ | ACCESS_ASYNC);
    current->stores.push_back(c);
    running->pending.push_back(c);
}

void tensor_store(const void *map, const void *shared, const int *coordinates, int rank)
{
    begin_store(new_tensor_copy(false, (void *)shared, map, coordinates, rank));
}

// A hint, but its range must exist.
void bulk_prefetch(const void *global, uint32_t bytes)
{
    if (bytes % 16 != 0 || (uintptr_t)global % 16 != 0 || !is_device_memory(global, bytes))
        fail("cp.async.bulk.prefetch of %u bytes at %s", bytes, describe_address(global).c_str());
}

// Visits the box's elements in the order of shared memory: innermost first. `inside` is the global address, or NULL.
template <typename Visit> static void for_each_row(const async_copy *c, Visit visit)
{
    const tensor *m = &c->map;
    const uint32_t rows = c->bytes / (m->box[0] * m->element_bytes);
    for (uint32_t row = 0; row < rows; row++) {
        uint32_t rest = row;
        int64_t offset = 0;
        bool inside = true;
        for (int i = 1; i < m->rank; i++) {
            const int64_t at = (int64_t)c->coordinate[i] + (int64_t)(rest % m->box[i]) * m->step[i];
            rest /= m->box[i];
            inside = inside && at >= 0 && at < (int64_t)m->side[i];
            offset += at * (int64_t)m->stride[i - 1];
        }
        visit(row, inside, m->base + offset);
    }
}

// The part of a row that lies inside the tensor: elements [*first, *end) of the box. PTX ISA, "Bounding box".
static void clip_row(const async_copy *c, bool inside, int64_t *first, int64_t *end)
{
    const int64_t x = c->coordinate[0], side = c->map.side[0], box = c->map.box[0];
    *first = std::min(std::max((int64_t)0, -x), box);
    *end = inside ? std::max(*first, std::min(box, side - x)) : *first;
}

static bool gather(async_copy *c)
{
    c->data.assign(c->bytes, 0);
    const uint32_t row_bytes = c->map.box[0] * c->map.element_bytes;
    bool good = true;
    for_each_row(c, [&](uint32_t row, bool inside, const char *base) {
        int64_t first, end;
        clip_row(c, inside, &first, &end);
        if (first == end || !good) return;
        const int64_t e = c->map.element_bytes;
        const char *from = base + (c->coordinate[0] + first) * e;
        good = touch(c->by, from, (size_t)((end - first) * e), ACCESS_READ | ACCESS_ASYNC);
        if (good) memcpy(c->data.data() + (size_t)row * row_bytes + first * e, from, (size_t)((end - first) * e));
    });
    return good;
}

// A box in shared memory is swizzled by the bits of its addresses there.
static void place(const async_copy *c, char *shared, char *plain, bool to_shared)
{
    const int mode = c->map.swizzle;
    const uint32_t window = (uint32_t)(shared - running->blocks[0].shared) + DYNAMIC_OFFSET;
    for (uint32_t at = 0; at < c->bytes; at += 16) {
        char *there = shared + ((int64_t)swizzled(window + at, mode) - window);
        if (mode == 0) there = shared + at;
        if (to_shared)
            memcpy(there, plain + at, 16);
        else
            memcpy(plain + at, there, 16);
    }
}

static void land(async_copy *c)
{
    for_each_rank(c, [](async_copy *copy, uint32_t rank, char *shared, void *barrier) {
        mark_in_flight(shared, copy->bytes, false);
        place(copy, shared, copy->data.data(), true);
        mbarrier *m = &running->blocks[rank].mbarriers[(char *)barrier];
        if (m->phase != copy->barrier_phase[rank])
            return fail_of(
                copy->issuer,
                "a bulk copy of %u bytes lands when phase %u of its mbarrier is over: the phase expected too "
                "few bytes",
                copy->bytes, copy->barrier_phase[rank]);
        m->transactions -= copy->bytes;
        m->notes.push_back({nullptr, copy->by.slot, copy->by.moment, copy->by.moment});
        maybe_complete(m);
    });
    c->write_done = true;
    drop_copy(c);
}

static void read_shared(async_copy *c)
{
    if (c->read_done) return;
    c->data.resize(c->bytes);
    place(c, c->shared, c->data.data(), false);
    c->read_done = true;
}

static bool scatter(async_copy *c)
{
    read_shared(c);
    const uint32_t row_bytes = c->map.box[0] * c->map.element_bytes;
    bool good = true;
    for_each_row(c, [&](uint32_t row, bool inside, char *base) {
        int64_t first, end;
        clip_row(c, inside, &first, &end);
        if (first == end || !good) return;
        const int64_t e = c->map.element_bytes;
        char *to = base + (c->coordinate[0] + first) * e;
        good = touch(c->by, to, (size_t)((end - first) * e), ACCESS_WRITE | ACCESS_ASYNC);
        if (good) memcpy(to, c->data.data() + (size_t)row * row_bytes + first * e, (size_t)((end - first) * e));
    });
    return good;
}

static void finish(async_copy *c)
{
    std::vector<async_copy *> *all = &running->pending;
    auto at = std::find(all->begin(), all->end(), c);
    if (at != all->end()) all->erase(at);
    if (c->load) {
        if (gather(c)) land(c);
    } else {
        scatter(c);
        c->write_done = true;
    }
}

// Between any two steps of threads: nothing, something or everything lands, in any order.
void async_step(bool must)
{
    machine *m = running;
    if (!must) {
        if (m->lateness == 2) return;
        if (m->lateness == 1 && random_below(m, 8) != 0) return;
    }
    finish(m->pending[random_below(m, (uint32_t)m->pending.size())]);
}

void async_finish()
{
    machine *m = running;
    while (!m->failed && !m->pending.empty()) {
        const async_copy *c = m->pending[0];
        if (c->load) return fail_of(c->issuer, "a bulk load of %u bytes is in flight when the block ends", c->bytes);
        async_step(true);
    }
}

void bulk_commit()
{
    current->store_groups.push_back(std::move(current->stores));
    current->stores.clear();
}

static void acquire_slot(thread *t, uint32_t slot, uint32_t moment)
{
    if (t->clock->seen[slot] >= moment) return;
    vclock *c = clock_copy(t->clock);
    c->seen[slot] = moment;
    clock_drop(t->clock);
    t->clock = c;
}

void bulk_wait_read(uint32_t pending)
{
    thread *t = current;
    std::vector<std::vector<async_copy *>> *groups = &t->store_groups;
    const size_t finished = groups->size() > pending ? groups->size() - pending : 0;
    for (size_t g = 0; g < finished; g++)
        for (async_copy *c : (*groups)[g]) {
            read_shared(c);
            acquire_slot(t, c->by.slot, c->by.moment);
        }
}

// ---- ends ----

void check_copy_exit(thread *t)
{
    if (!t->copies.empty()) fail("returns with %zu cp.async copies it has not waited for", t->copies.size());
    if (!t->stores.empty()) fail("returns with bulk stores it has not committed");
    for (const auto &group : t->store_groups)
        for (async_copy *c : group) {
            if (!c->read_done && !c->write_done) fail("returns while a bulk store still reads its shared memory");
            if (c->write_done) drop_copy(c);
        }
    t->store_groups.clear();
    check_matrix_exit(t);
}

void check_block_exit(block *b)
{
    for (auto &one : b->mbarriers) {
        const mbarrier &m = one.second;
        if (m.transactions != 0)
            return fail_of(&b->threads[0], "ends with an unbalanced mbarrier at %s: %lld bytes of phase %u are open",
                           describe_address(m.address).c_str(), (long long)m.transactions, m.phase);
        if (m.pending != m.count)
            return fail_of(&b->threads[0], "ends with an unbalanced mbarrier at %s: %u of %u arrivals in phase %u",
                           describe_address(m.address).c_str(), m.count - m.pending, m.count, m.phase);
    }
    for (int i = 0; i < NAMED_BARRIERS; i++)
        if (b->barriers[i].arrived != 0)
            return fail_of(&b->threads[0], "ends with barrier %d unbalanced: %u of %u threads have arrived", i,
                           b->barriers[i].arrived, b->barriers[i].expected);
    check_warpgroups(b);
}

} // namespace simt

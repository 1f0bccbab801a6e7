// SPDX-License-Identifier: Apache-2.0
//
// Fibers, the order in which they run, and the end of a launch.
#include "tests/simt/machine.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <mutex>

#include "tests/simt/launch.h"

namespace simt
{

machine *running;
thread *current;

static struct {
    uint64_t seed = 1;
    bool seeded = false;
    bool catching = false;
    uint32_t run = 0;
    uint32_t moment = 0; // newest of any clock; moments only grow, so shadows need no clearing between blocks
    std::string failure;
    simt_stats stats = {};
    uint64_t trace = 0;
    std::mutex one_launch;
} global;

// ---- stacks and switching ----

enum { STACKS_MAX = 1024 * CLUSTER_MAX };

static char *stacks;

bool on_any_stack(const void *address)
{
    return stacks && (uintptr_t)address - (uintptr_t)stacks < (uintptr_t)STACK_BYTES * STACKS_MAX;
}

// Saves what a call must preserve, stores the stack pointer through the first argument and continues on the second.
extern "C" void simt_switch(void **save, void *load);
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
.type simt_switch, @function
simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size simt_switch, .-simt_switch
)");

static void to_scheduler(thread *t)
{
    current = nullptr;
    simt_switch(&t->stack_pointer, running->scheduler_stack);
    current = t;
}

static void fiber_main()
{
    thread *t = current;
    running->entry(running->params);
    check_copy_exit(t);
    t->state = THREAD_DONE;
    t->in->exited |= 1u << t->lane;
    t->owner->alive--;
    running->alive--;
    to_scheduler(t);
    abort();
}

static void prepare_fiber(thread *t, uint32_t index)
{
    if (!stacks) {
        stacks = (char *)mmap(nullptr, (size_t)STACK_BYTES * STACKS_MAX, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stacks == MAP_FAILED) abort();
    }
    t->stack = stacks + (size_t)index * STACK_BYTES;
    void **top = (void **)(t->stack + STACK_BYTES - 64 - (index % 16) * 128); // tops that do not share cache sets
    *--top = nullptr;
    *--top = (void *)fiber_main;
    top -= 6;
    memset(top, 0, 6 * sizeof *top);
    t->stack_pointer = top;
}

// ---- failure ----

uint64_t random_next(machine *m)
{
    m->random += 0x9e3779b97f4a7c15u;
    uint64_t z = m->random;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void record_failure(const thread *t, const char *text)
{
    machine *m = running;
    if (m->failed) return;
    m->failed = true;
    if (t)
        snprintf(m->failure, sizeof m->failure, "%s, block (%u, %u, %u), thread (%u, %u, %u): %s", m->kernel,
                 t->owner->x, t->owner->y, t->owner->z, t->x, t->y, t->z, text);
    else
        snprintf(m->failure, sizeof m->failure, "%s: %s", m->kernel, text);
}

static void fail_text(const thread *t, const char *format, va_list list)
{
    char text[800];
    vsnprintf(text, sizeof text, format, list);
    record_failure(t, text);
    if (current) to_scheduler(current); // and never back
}

void fail(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fail_text(current, format, list);
    va_end(list);
}

void fail_of(const thread *t, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fail_text(t, format, list);
    va_end(list);
}

// ---- waiting ----

static void make_ready(thread *t)
{
    t->state = THREAD_READY;
    running->ready.push_back(t);
}

void wake(thread *t)
{
    if (t->state != THREAD_WAITING) return;
    for (thread *s : running->spinning) s->spins = 0;
    make_ready(t);
}

void block_until_woken(const char *what, const wait_detail &detail)
{
    thread *t = current;
    t->waits_for = what;
    t->detail = detail;
    t->state = THREAD_WAITING;
    to_scheduler(t);
    t->waits_for = nullptr;
}

void spin(const char *what)
{
    enum { SPINS_MAX = 200000 };
    thread *t = current;
    if (++t->spins > SPINS_MAX) fail("polls (%s) without end: nothing it waits for can happen any more", what);
    make_ready(t);
    to_scheduler(t);
}

static thread *next_ready(machine *m)
{
    size_t count = m->ready.size();
    if (count == 0) return nullptr;
    size_t at = m->order == 2 ? random_below(m, (uint32_t)count) : count - 1;
    thread *t = m->ready[at];
    m->ready[at] = m->ready.back();
    m->ready.pop_back();
    return t;
}

static std::string describe_wait(const thread *t)
{
    const wait_detail &d = t->detail;
    char numbers[120];
    snprintf(numbers, sizeof numbers, d.format, d.number[0], d.number[1], d.number[2]);
    return std::string(t->waits_for) + ": " + (d.address ? describe_address(d.address) + ", " : "") + numbers;
}

static void report_deadlock(machine *m)
{
    std::string text;
    const thread *first = nullptr, *before = nullptr;
    int told = 0, waiting = 0;
    for (block &b : m->blocks)
        for (thread &t : b.threads) {
            if (t.state != THREAD_WAITING) continue;
            waiting++;
            if (!first) first = &t;
            const bool fresh = !before || before->owner != t.owner || before->waits_for != t.waits_for ||
                               before->detail.address != t.detail.address;
            before = &t;
            if (!fresh || told >= 8) continue;
            told++;
            text += "\n    block " + std::to_string(b.rank) + " of its cluster, thread " + std::to_string(t.number) +
                    " waits in " + describe_wait(&t);
        }
    fail_of(first, "deadlock, %d threads wait and nothing can wake them:%s", waiting, text.c_str());
}

static void run_cluster(machine *m)
{
    while (m->alive > 0 && !m->failed) {
        if (!m->pending.empty()) async_step(m->ready.empty());
        if (m->failed) break;
        thread *t = next_ready(m);
        if (!t) {
            if (!m->pending.empty()) continue;
            report_deadlock(m);
            break;
        }
        t->state = THREAD_RUNNING;
        current = t;
        global.stats.switches++;
        simt_switch(&m->scheduler_stack, t->stack_pointer);
        current = nullptr;
    }
    if (!m->failed) async_finish();
}

// ---- a launch ----

static void set_up_threads(machine *m, block *b)
{
    const unsigned *d = m->block_dim;
    b->threads.assign(m->threads, thread());
    b->warps.assign((m->threads + WARP - 1) / WARP, warp());
    for (uint32_t w = 0; w < b->warps.size(); w++) {
        b->warps[w].owner = b;
        b->warps[w].number = w;
    }
    for (uint32_t i = 0; i < m->threads; i++) {
        thread *t = &b->threads[i];
        t->owner = b;
        t->number = i;
        t->slot = b->rank * m->threads + i;
        t->x = i % d[0];
        t->y = i / d[0] % d[1];
        t->z = i / d[0] / d[1];
        t->lane = i % WARP;
        t->in = &b->warps[i / WARP];
        t->in->lane[t->lane] = t;
        t->in->lanes |= 1u << t->lane;
        prepare_fiber(t, t->slot);
    }
}

static void set_up_ready(machine *m)
{
    m->ready.clear();
    for (block &b : m->blocks)
        for (thread &t : b.threads) m->ready.push_back(&t);
    if (m->order == 0) std::reverse(m->ready.begin(), m->ready.end()); // taken from the back
}

static void begin_cluster(machine *m, uint64_t cluster)
{
    const unsigned *c = m->cluster_dim;
    const uint64_t wide = m->grid[0] / c[0], high = m->grid[1] / c[1];
    const unsigned x = (unsigned)(cluster % wide) * c[0], y = (unsigned)(cluster / wide % high) * c[1],
                   z = (unsigned)(cluster / wide / high) * c[2];
    m->run++;
    m->base_moment = m->last_moment = global.moment;
    if (global.moment > 0xf0000000u) {
        shadow_reset();
        m->base_moment = m->last_moment = global.moment = 0;
    }
    m->next_async = 0;
    for (uint32_t &moment : m->async_moment) moment = m->base_moment;
    m->cluster_barrier = barrier();
    for (block &b : m->blocks) {
        uint32_t rank = (uint32_t)(&b - m->blocks.data());
        b = block();
        b.rank = rank;
        b.x = x + rank % c[0];
        b.y = y + rank / c[0] % c[1];
        b.z = z + rank / c[0] / c[1];
        b.number = (uint32_t)(cluster * m->blocks.size() + rank);
        b.alive = m->threads;
        b.shared = shared_memory_of(rank);
        set_up_threads(m, &b);
        shadow_begin_block(&b);
    }
    vclock *start = clock_new(m->slots, m->base_moment);
    for (block &b : m->blocks)
        for (thread &t : b.threads) {
            t.clock = clock_keep(start);
            t.moment = m->base_moment + 1;
            t.fenced = m->base_moment;
        }
    clock_drop(start);
    m->alive = (uint32_t)m->blocks.size() * m->threads;
    set_up_ready(m);
    global.stats.blocks += m->blocks.size();
    global.stats.threads += m->alive;
}

static void end_cluster(machine *m)
{
    for (block &b : m->blocks) {
        if (!m->failed) check_block_exit(&b);
        for (thread &t : b.threads) {
            m->last_moment = std::max(m->last_moment, t.moment);
            clock_drop(t.clock);
        }
        for (auto &one : b.mbarriers) {
            clock_drop(one.second.completed);
            for (note &n : one.second.notes) clock_drop(n.clock);
        }
        for (barrier &one : b.barriers)
            for (note &n : one.notes) clock_drop(n.clock);
    }
    for (uint32_t moment : m->async_moment) m->last_moment = std::max(m->last_moment, moment);
    global.moment = m->last_moment + 1;
}

static cudaError_t check_shape(const machine *m)
{
    const uint64_t threads = (uint64_t)m->block_dim[0] * m->block_dim[1] * m->block_dim[2];
    const unsigned *c = m->cluster_dim;
    if (threads == 0 || threads > 1024 || m->block_dim[2] > 64) return cudaErrorInvalidConfiguration;
    if (m->shared_bytes > SHARED_MAX) return cudaErrorInvalidValue;
    if (m->grid[0] == 0 || m->grid[1] == 0 || m->grid[2] == 0) return cudaErrorInvalidConfiguration;
    if (m->grid[0] > 0x7fffffffu || m->grid[1] > 65535 || m->grid[2] > 65535) return cudaErrorInvalidConfiguration;
    if (c[0] * c[1] * c[2] == 0 || c[0] * c[1] * c[2] > CLUSTER_MAX) return cudaErrorInvalidConfiguration;
    for (int i = 0; i < 3; i++)
        if (m->grid[i] % c[i] != 0) return cudaErrorInvalidConfiguration;
    return cudaSuccess;
}

static uint64_t launch_seed()
{
    if (!global.seeded) {
        const char *text = getenv("KN_SIMT_SEED");
        if (text) global.seed = strtoull(text, nullptr, 0);
        global.seeded = true;
    }
    return global.seed * 0x2545f4914f6cdd1du + global.stats.launches * 0x9e3779b97f4a7c15u;
}

static void run_clusters(machine *m)
{
    uint64_t clusters = (uint64_t)m->grid[0] * m->grid[1] * m->grid[2] / m->blocks.size();
    uint64_t first = random_next(m) % clusters, step = m->order == 1 ? clusters - 1 : 1;
    for (uint64_t i = 0; i < clusters && !m->failed; i++) {
        begin_cluster(m, clusters == 1 ? 0 : (first + i * step) % clusters);
        run_cluster(m);
        end_cluster(m);
    }
}

cudaError_t launch_raw(const char *name, const dim3 &grid, const dim3 &block_size, const dim3 &cluster, size_t shared,
                       const void *params, size_t params_bytes, void (*entry)(const void *params))
{
    std::lock_guard<std::mutex> lock(global.one_launch);
    machine *m = new machine();
    m->kernel = name;
    const unsigned dims[3][3] = {
        {grid.x, grid.y, grid.z}, {block_size.x, block_size.y, block_size.z}, {cluster.x, cluster.y, cluster.z}};
    memcpy(m->grid, dims[0], sizeof dims[0]);
    memcpy(m->block_dim, dims[1], sizeof dims[1]);
    memcpy(m->cluster_dim, dims[2], sizeof dims[2]);
    m->shared_bytes = shared;
    m->params = params;
    m->params_bytes = params_bytes;
    m->entry = entry;
    cudaError_t error = check_shape(m);
    if (error != cudaSuccess) {
        delete m;
        return error;
    }
    m->threads = m->block_dim[0] * m->block_dim[1] * m->block_dim[2];
    m->blocks.resize(cluster.x * cluster.y * cluster.z);
    m->slots = (uint32_t)m->blocks.size() * m->threads + ASYNC_SLOTS;
    m->run = global.run;
    m->first_run = global.run + 1;
    m->random = launch_seed();
    m->order = (int)random_below(m, 3);
    m->lateness = (int)random_below(m, 3);
    global.stats.launches++;
    for (const char *p = name; *p; p++) global.trace = (global.trace ^ (unsigned char)*p) * 0x100000001b3u;
    running = m;
    run_clusters(m);
    running = nullptr;
    global.run = m->run;
    bool failed = m->failed;
    if (failed) {
        shadow_reset();
        if (!global.catching) {
            fprintf(stderr, "simt: %s\n", m->failure);
            abort();
        }
        if (global.failure.empty()) global.failure = m->failure;
    }
    delete m;
    return failed ? cudaErrorLaunchFailure : cudaSuccess;
}

void count_accesses(uint64_t n)
{
    global.stats.accesses += n;
}

} // namespace simt

using namespace simt;

extern "C" {

void simt_seed(uint64_t seed)
{
    global.seed = seed;
    global.seeded = true;
}

void simt_catch(void)
{
    global.catching = true;
    global.failure.clear();
}

void simt_release(void)
{
    global.catching = false;
}

const char *simt_failure(void)
{
    return global.failure.c_str();
}

void simt_clear(void)
{
    global.failure.clear();
}

uint64_t simt_trace(void)
{
    const uint64_t trace = global.trace;
    global.trace = 0xcbf29ce484222325u;
    return trace;
}

simt_stats simt_read_stats(void)
{
    return global.stats;
}
}

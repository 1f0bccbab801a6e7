// SPDX-License-Identifier: Apache-2.0
//
// Every access of a kernel passes through here: the compiler was asked to call __tsan_readN and __tsan_writeN before
// each load and store (-fsanitize=thread, without its library), and the runtime's own instructions call touch(). An
// access must lie in memory the kernel may use, be aligned, and be ordered after every conflicting access of another
// thread, by barriers, not by luck.
#include <cxxabi.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "tests/simt/machine.h"

namespace simt
{

// ---- one access, packed: moment 32 | slot 14 | byte mask 4 | flags ----

enum { BIT_ASYNC = 1, BIT_ATOMIC = 2, BIT_IN_FLIGHT = 4 };

static inline uint64_t pack(uint32_t moment, uint32_t slot, unsigned mask, unsigned flags)
{
    return (uint64_t)moment << 32 | (uint64_t)slot << 16 | mask << 8 | flags;
}
static inline uint32_t moment_of(uint64_t cell)
{
    return (uint32_t)(cell >> 32);
}
static inline uint32_t slot_of(uint64_t cell)
{
    return (uint32_t)(cell >> 16) & 0xffff;
}
static inline unsigned mask_of(uint64_t cell)
{
    return (unsigned)(cell >> 8) & 15;
}

enum { READERS = 3, SHARED_GRAIN = 2, GLOBAL_GRAIN = 4 };

struct shared_cell { // of 2 bytes
    uint64_t write, read[READERS];
};

struct global_cell { // of 4 bytes
    uint64_t write, read[2];
    uint32_t write_run, read_run[2];
};

// ---- shared memory ----

static char *shared_base;          // [CLUSTER_MAX][SHARED_WINDOW]
static shared_cell *shared_shadow; // a cell for every 2 bytes of it

static void *reserve(size_t bytes)
{
    void *p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) abort();
    return p;
}

static size_t shadow_bytes()
{
    return (size_t)CLUSTER_MAX * SHARED_WINDOW / SHARED_GRAIN * sizeof(shared_cell);
}

char *shared_memory_of(uint32_t rank)
{
    if (!shared_base) {
        shared_base = (char *)reserve((size_t)CLUSTER_MAX * SHARED_WINDOW);
        shared_shadow = (shared_cell *)reserve(shadow_bytes());
    }
    return shared_base + (size_t)rank * SHARED_WINDOW + DYNAMIC_OFFSET;
}

void poison(void *address, size_t bytes)
{
    memset(address, 0xff, bytes);
}

// ---- static __shared__ variables: function-local statics, found in the program's own symbol table ----

struct static_variable {
    uintptr_t address;
    size_t bytes;
    std::string name;
    uint32_t offset; // in rank 0's window; 0: not used yet
    uint32_t run;    // poisoned for this block
};

static std::vector<static_variable> statics;
static uintptr_t image_begin, image_end, writable_begin;
static uint32_t statics_used = STATIC_OFFSET;

static int find_image(struct dl_phdr_info *info, size_t, void *bias)
{
    *(uintptr_t *)bias = info->dlpi_addr;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) &h = info->dlpi_phdr[i];
        if (h.p_type != PT_LOAD) continue;
        uintptr_t begin = info->dlpi_addr + h.p_vaddr;
        if (!image_begin || begin < image_begin) image_begin = begin;
        image_end = std::max(image_end, begin + h.p_memsz);
        if ((h.p_flags & PF_W) && !writable_begin) writable_begin = begin;
    }
    return 1; // the program itself comes first
}

static void read_symbols(const char *file, size_t bytes, uintptr_t bias)
{
    const Elf64_Ehdr *head = (const Elf64_Ehdr *)file;
    const Elf64_Shdr *sections = (const Elf64_Shdr *)(file + head->e_shoff);
    if (head->e_shoff + (size_t)head->e_shnum * sizeof *sections > bytes) return;
    for (int i = 0; i < head->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        const Elf64_Sym *symbols = (const Elf64_Sym *)(file + sections[i].sh_offset);
        const char *names = file + sections[sections[i].sh_link].sh_offset;
        for (size_t s = 0; s < sections[i].sh_size / sizeof *symbols; s++) {
            const char *name = names + symbols[s].st_name;
            if (ELF64_ST_TYPE(symbols[s].st_info) != STT_OBJECT || symbols[s].st_size == 0) continue;
            if (strncmp(name, "_ZZ", 3) != 0 || bias + symbols[s].st_value < writable_begin) continue;
            statics.push_back({bias + symbols[s].st_value, symbols[s].st_size, name, 0, 0});
        }
    }
}

// "kernel(float*, int)::tile" instead of the linker's name.
static std::string readable(const char *symbol)
{
    int status = 0;
    char *text = abi::__cxa_demangle(symbol, nullptr, nullptr, &status);
    std::string name = text && status == 0 ? text : symbol;
    free(text);
    const size_t arguments = name.find('('), end = name.rfind(")::");
    if (arguments != std::string::npos && end != std::string::npos) name.erase(arguments, end + 1 - arguments);
    return name;
}

static void load_statics()
{
    uintptr_t bias = 0;
    dl_iterate_phdr(find_image, &bias);
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) abort();
    char *file = (char *)mmap(nullptr, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (file == MAP_FAILED) abort();
    close(fd);
    read_symbols(file, (size_t)st.st_size, bias);
    munmap(file, (size_t)st.st_size);
    std::sort(statics.begin(), statics.end(),
              [](const static_variable &a, const static_variable &b) { return a.address < b.address; });
}

static static_variable *static_of(uintptr_t address)
{
    static static_variable *last;
    if (last && address - last->address < last->bytes) return last;
    auto after = std::upper_bound(statics.begin(), statics.end(), address,
                                  [](uintptr_t a, const static_variable &v) { return a < v.address; });
    if (after == statics.begin()) return nullptr;
    static_variable *v = &*(after - 1);
    if (address - v->address >= v->bytes) return nullptr;
    return last = v;
}

// Makes a static variable part of the running block: its place in the window, poison when the block is new.
static bool enter_static(static_variable *v)
{
    if (running->blocks.size() > 1) {
        fail("uses the static shared variable %s in a cluster; take dynamic shared memory",
             readable(v->name.c_str()).c_str());
        return false;
    }
    if (v->offset == 0) {
        v->offset = (statics_used + 127) / 128 * 128 + (uint32_t)(v->address % 128);
        statics_used = v->offset + (uint32_t)v->bytes;
        if (statics_used > SHARED_WINDOW) {
            fail("more static shared memory than the executor has room for");
            return false;
        }
    }
    if (v->run != running->run) {
        v->run = running->run;
        poison((void *)v->address, v->bytes);
    }
    return true;
}

void shadow_begin_block(block *b)
{
    poison(b->shared, running->shared_bytes);
}

// ---- allocations ----

struct allocation {
    uintptr_t begin;
    size_t bytes;
    const char *kind;
    uint32_t number;
    global_cell *cells;
};

static std::map<uintptr_t, allocation> allocations;
static allocation *recent[2];
static uint32_t allocation_count;

static size_t cells_bytes(size_t bytes)
{
    return (bytes / GLOBAL_GRAIN + 2) * sizeof(global_cell);
}

void allocation_add(void *memory, size_t bytes, const char *kind)
{
    allocations[(uintptr_t)memory] = {(uintptr_t)memory, bytes, kind, ++allocation_count, nullptr};
    recent[0] = recent[1] = nullptr;
}

bool allocation_remove(void *memory)
{
    auto at = allocations.find((uintptr_t)memory);
    if (at == allocations.end()) return false;
    if (at->second.cells) munmap(at->second.cells, cells_bytes(at->second.bytes));
    allocations.erase(at);
    recent[0] = recent[1] = nullptr;
    return true;
}

static allocation *allocation_of(uintptr_t address)
{
    if (recent[0] && address - recent[0]->begin < recent[0]->bytes) return recent[0];
    if (recent[1] && address - recent[1]->begin < recent[1]->bytes) {
        std::swap(recent[0], recent[1]);
        return recent[0];
    }
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) return nullptr;
    allocation *a = &(--after)->second;
    if (address - a->begin >= a->bytes) return nullptr;
    recent[1] = recent[0];
    return recent[0] = a;
}

size_t allocation_left(const void *address)
{
    allocation *a = allocation_of((uintptr_t)address);
    return a ? a->bytes - ((uintptr_t)address - a->begin) : 0;
}

void shadow_reset()
{
    if (shared_shadow) {
        munmap(shared_shadow, shadow_bytes());
        shared_shadow = (shared_cell *)reserve(shadow_bytes());
    }
    for (auto &one : allocations)
        if (one.second.cells) {
            munmap(one.second.cells, cells_bytes(one.second.bytes));
            one.second.cells = nullptr;
        }
}

// ---- addresses in words ----

std::string describe_address(const void *address)
{
    char text[200];
    uintptr_t at = (uintptr_t)address;
    if (shared_base && at - (uintptr_t)shared_base < (uintptr_t)CLUSTER_MAX * SHARED_WINDOW) {
        size_t offset = at - (uintptr_t)shared_base;
        snprintf(text, sizeof text, "byte %ld of the %zu bytes of dynamic shared memory of block %zu of the cluster",
                 (long)(offset % SHARED_WINDOW) - DYNAMIC_OFFSET, running ? running->shared_bytes : 0,
                 offset / SHARED_WINDOW);
        return text;
    }
    if (static_variable *v = static_of(at)) {
        snprintf(text, sizeof text, "byte %zu of shared variable %s (%zu bytes)", (size_t)(at - v->address),
                 readable(v->name.c_str()).c_str(), v->bytes);
        return text;
    }
    auto after = allocations.upper_bound(at);
    const allocation *best = nullptr;
    if (after != allocations.end()) best = &after->second;
    if (after != allocations.begin()) {
        const allocation *before = &(--after)->second;
        if (!best || at - before->begin - before->bytes < best->begin - at || at - before->begin < before->bytes)
            best = before;
    }
    if (best && (at - best->begin < best->bytes + (1 << 24) || best->begin - at < (1 << 24)))
        snprintf(text, sizeof text, "byte %ld of %s #%u of %zu bytes", (long)(at - best->begin), best->kind,
                 best->number, best->bytes);
    else
        snprintf(text, sizeof text, "address %p, not memory of the device", address);
    return text;
}

// ---- order ----

actor actor_of(const thread *t)
{
    return {t, t->clock, t->slot, t->moment, t->fenced, t->slot, t->moment};
}

static inline bool ordered(const actor &a, uint64_t cell)
{
    const uint32_t slot = slot_of(cell), moment = moment_of(cell);
    if (moment <= running->base_moment) return true; // of an earlier block, which may have had other slots
    if (slot == a.issuer) return moment <= a.issuer_moment;
    if (slot == a.slot) return moment <= a.moment;
    return a.clock->seen[slot] >= moment;
}

static inline bool behind_fence(const actor &a, uint64_t cell)
{
    const uint32_t slot = slot_of(cell), moment = moment_of(cell);
    if (moment <= running->base_moment) return true;
    return slot == a.issuer ? moment <= a.issuer_fenced : a.clock->fenced[slot] >= moment;
}

static std::string describe_slot(uint32_t slot)
{
    const uint32_t threads = running->threads * (uint32_t)running->blocks.size();
    char text[80];
    if (slot >= threads)
        snprintf(text, sizeof text, "an asynchronous operation");
    else if (running->blocks.size() > 1)
        snprintf(text, sizeof text, "thread %u of block %u of the cluster", slot % running->threads,
                 slot / running->threads);
    else
        snprintf(text, sizeof text, "thread %u", slot);
    return text;
}

static const char *verb_of(int kind)
{
    if (kind & ACCESS_ATOMIC) return "updates";
    return kind & ACCESS_WRITE ? "writes" : "reads";
}

static bool report_race(const actor &a, const void *address, int kind, uint64_t other, bool other_writes)
{
    if (other & BIT_IN_FLIGHT)
        fail_of(a.who, "%s %s, which an asynchronous copy is still going to write: its wait is missing", verb_of(kind),
                describe_address(address).c_str());
    else
        fail_of(a.who, "race: %s%s %s, which %s %s, with nothing that orders the two", verb_of(kind),
                kind & ACCESS_ASYNC ? " (asynchronously)" : "", describe_address(address).c_str(),
                describe_slot(slot_of(other)).c_str(), other_writes ? "wrote" : "read");
    return false;
}

static bool report_proxy(const actor &a, const void *address, int kind, uint64_t other)
{
    fail_of(a.who,
            "%s %s through the asynchronous proxy, which %s wrote through the generic proxy: fence.proxy.async is "
            "missing between the two",
            verb_of(kind), describe_address(address).c_str(), describe_slot(slot_of(other)).c_str());
    return false;
}

static inline bool both_atomic(int kind, uint64_t other)
{
    return (kind & ACCESS_ATOMIC) && (other & BIT_ATOMIC);
}

static inline unsigned flags_of(int kind)
{
    return (kind & ACCESS_ASYNC ? BIT_ASYNC : 0) | (kind & ACCESS_ATOMIC ? BIT_ATOMIC : 0);
}

static inline bool check_shared_cell(const actor &a, shared_cell *cell, const char *address, unsigned mask, int kind)
{
    const uint64_t w = cell->write;
    if (w && (mask_of(w) & mask) && !both_atomic(kind, w)) {
        if ((w & BIT_IN_FLIGHT) || !ordered(a, w)) return report_race(a, address, kind, w, true);
        if ((kind & ACCESS_ASYNC) && !(w & BIT_ASYNC) && !behind_fence(a, w)) return report_proxy(a, address, kind, w);
    }
    const uint64_t mine = pack(a.moment, a.slot, mask, flags_of(kind));
    if (kind & ACCESS_WRITE) {
        for (uint64_t &r : cell->read) {
            if (r && (mask_of(r) & mask) && !ordered(a, r)) return report_race(a, address, kind, r, false);
            r = 0;
        }
        cell->write = mine;
        return true;
    }
    int victim = (int)(a.moment % READERS);
    for (int i = 0; i < READERS; i++) {
        const uint64_t r = cell->read[i];
        if (r == 0 || slot_of(r) == a.slot || ordered(a, r)) {
            victim = i;
            if (r != 0 && slot_of(r) == a.slot) break;
        }
    }
    cell->read[victim] = mine;
    return true;
}

static inline shared_cell *shared_cell_at(size_t offset)
{
    return shared_shadow + offset / SHARED_GRAIN;
}

static bool touch_shared(const actor &a, const char *address, size_t offset, size_t bytes, int kind)
{
    size_t at = offset;
    const size_t end = offset + bytes;
    shared_cell before = {}, after = {}; // of the last whole grain: its neighbours mostly have the same history
    bool known = false;
    while (at < end) {
        const size_t grain_end = std::min(end, at / SHARED_GRAIN * SHARED_GRAIN + SHARED_GRAIN);
        const unsigned mask = (at % SHARED_GRAIN == 0 ? 1u : 0u) | (grain_end % SHARED_GRAIN == 0 ? 2u : 0u);
        shared_cell *cell = shared_cell_at(at);
        if (known && mask == 3 && memcmp(cell, &before, sizeof before) == 0) {
            *cell = after;
        } else {
            before = *cell;
            if (!check_shared_cell(a, cell, address + (at - offset), mask, kind)) return false;
            after = *cell;
            known = mask == 3;
        }
        at = grain_end;
    }
    return true;
}

// Blocks of a launch run in no order at all, so what one wrote no other may touch.
static inline bool check_global_cell(const actor &a, global_cell *cell, const char *address, unsigned mask, int kind)
{
    const uint32_t run = running->run, first = running->first_run;
    const uint64_t w = cell->write;
    if (w && cell->write_run >= first && (mask_of(w) & mask) && !both_atomic(kind, w)) {
        if (w & BIT_IN_FLIGHT) return report_race(a, address, kind, w, true);
        if (cell->write_run != run) {
            fail_of(a.who, "race between blocks: %s %s, which another block wrote in the same launch", verb_of(kind),
                    describe_address(address).c_str());
            return false;
        }
        if (!ordered(a, w)) return report_race(a, address, kind, w, true);
    }
    const uint64_t mine = pack(a.moment, a.slot, mask, flags_of(kind));
    if (kind & ACCESS_WRITE) {
        for (int i = 0; i < 2; i++) {
            const uint64_t r = cell->read[i];
            if (!r || cell->read_run[i] < first || !(mask_of(r) & mask)) continue;
            if (cell->read_run[i] != run) {
                fail_of(a.who, "race between blocks: %s %s, which another block read in the same launch", verb_of(kind),
                        describe_address(address).c_str());
                return false;
            }
            if (!ordered(a, r)) return report_race(a, address, kind, r, false);
        }
        cell->write = mine;
        cell->write_run = run;
        return true;
    }
    if (cell->read_run[0] != run) {
        cell->read[1] = cell->read[0];
        cell->read_run[1] = cell->read_run[0];
    } else if (slot_of(cell->read[0]) != a.slot && cell->read_run[1] < first) {
        cell->read[1] = cell->read[0];
        cell->read_run[1] = run;
    }
    cell->read[0] = mine;
    cell->read_run[0] = run;
    return true;
}

static bool touch_global(const actor &a, allocation *one, const char *address, size_t bytes, int kind)
{
    size_t at = (uintptr_t)address - one->begin;
    const size_t end = at + bytes;
    if (end > one->bytes) {
        fail_of(a.who, "%s %zu bytes at byte %zu of %s #%u of %zu bytes: past its end", verb_of(kind), bytes, at,
                one->kind, one->number, one->bytes);
        return false;
    }
    if (!one->cells) one->cells = (global_cell *)reserve(cells_bytes(one->bytes));
    const size_t skew = one->begin % GLOBAL_GRAIN; // a buffer may begin between two grains
    const char *base = (const char *)one->begin - skew;
    for (size_t g = at + skew; g < end + skew;) {
        const size_t next = std::min(end + skew, g / GLOBAL_GRAIN * GLOBAL_GRAIN + GLOBAL_GRAIN);
        const unsigned mask = ((1u << (next - g)) - 1) << (g % GLOBAL_GRAIN);
        if (!check_global_cell(a, one->cells + g / GLOBAL_GRAIN, base + g, mask, kind)) return false;
        g = next;
    }
    return true;
}

// ---- the way in ----

static bool touch_image(const actor &a, const char *address, size_t bytes, int kind)
{
    if (image_end == 0) load_statics();
    if (static_variable *v = static_of((uintptr_t)address)) {
        if (!enter_static(v)) return false;
        const size_t at = (uintptr_t)address - v->address;
        if (at + bytes > v->bytes) {
            fail_of(a.who, "%s %zu bytes at %s: past its end", verb_of(kind), bytes, describe_address(address).c_str());
            return false;
        }
        return touch_shared(a, address, v->offset + at, bytes, kind);
    }
    const uintptr_t at = (uintptr_t)address;
    const bool constant = at >= image_begin && at + bytes <= image_end;
    const bool param = at - (uintptr_t)running->params < running->params_bytes;
    if ((constant || param) && !(kind & ACCESS_WRITE)) return true;
    fail_of(a.who, "%s %zu bytes at %s", verb_of(kind), bytes, describe_address(address).c_str());
    return false;
}

static bool touch_stack(const actor &a, const void *address, size_t bytes, int kind)
{
    if (on_a_stack(address, a.who)) return true;
    fail_of(a.who, "%s %zu bytes of another thread's local memory", verb_of(kind), bytes);
    return false;
}

bool touch(const actor &a, const void *address, size_t bytes, int kind)
{
    if (bytes == 0) return true;
    if (on_any_stack(address)) return touch_stack(a, address, bytes, kind);
    const uintptr_t offset = (uintptr_t)address - (uintptr_t)shared_base;
    if (offset < (uintptr_t)CLUSTER_MAX * SHARED_WINDOW) {
        const size_t within = offset % SHARED_WINDOW;
        if (within < DYNAMIC_OFFSET || within + bytes > DYNAMIC_OFFSET + running->shared_bytes ||
            offset / SHARED_WINDOW >= running->blocks.size()) {
            fail_of(a.who, "%s %zu bytes at %s: outside", verb_of(kind), bytes, describe_address(address).c_str());
            return false;
        }
        return touch_shared(a, (const char *)address, offset, bytes, kind);
    }
    if (allocation *one = allocation_of((uintptr_t)address))
        return touch_global(a, one, (const char *)address, bytes, kind);
    return touch_image(a, (const char *)address, bytes, kind);
}

bool is_shared(const void *address)
{
    if ((uintptr_t)address - (uintptr_t)shared_base < (uintptr_t)CLUSTER_MAX * SHARED_WINDOW) return true;
    if (image_end == 0) load_statics();
    return static_of((uintptr_t)address) != nullptr;
}

bool is_static_shared(const void *address)
{
    return (uintptr_t)address - (uintptr_t)shared_base >= (uintptr_t)CLUSTER_MAX * SHARED_WINDOW;
}

uint32_t rank_of_shared(const void *dynamic)
{
    return (uint32_t)(((uintptr_t)dynamic - (uintptr_t)shared_base) / SHARED_WINDOW);
}

bool is_device_memory(const void *address, size_t bytes)
{
    return allocation_left(address) >= bytes;
}

static void set_in_flight(size_t offset, size_t bytes, bool in_flight)
{
    for (size_t at = offset / SHARED_GRAIN; at < (offset + bytes + SHARED_GRAIN - 1) / SHARED_GRAIN; at++) {
        uint64_t &w = shared_shadow[at].write;
        w = in_flight ? w | BIT_IN_FLIGHT : w & ~(uint64_t)BIT_IN_FLIGHT;
    }
}

void mark_in_flight(const void *address, size_t bytes, bool in_flight)
{
    const uintptr_t offset = (uintptr_t)address - (uintptr_t)shared_base;
    if (offset < (uintptr_t)CLUSTER_MAX * SHARED_WINDOW) return set_in_flight(offset, bytes, in_flight);
    if (static_variable *v = static_of((uintptr_t)address))
        set_in_flight(v->offset + ((uintptr_t)address - v->address), bytes, in_flight);
}

uint32_t shared_address(const void *pointer)
{
    const uintptr_t offset = (uintptr_t)pointer - (uintptr_t)shared_base;
    if (offset < (uintptr_t)CLUSTER_MAX * SHARED_WINDOW) {
        const uint32_t rank = (uint32_t)(offset / SHARED_WINDOW);
        if (rank != current->owner->rank) return (rank + 1) << 24 | (uint32_t)(offset % SHARED_WINDOW);
        return (uint32_t)(offset % SHARED_WINDOW);
    }
    if (image_end == 0) load_statics();
    static_variable *v = static_of((uintptr_t)pointer);
    if (!v || !enter_static(v)) {
        fail("takes the shared address of %s", describe_address(pointer).c_str());
        return 0;
    }
    return v->offset + (uint32_t)((uintptr_t)pointer - v->address);
}

char *shared_pointer(uint32_t address)
{
    const uint32_t rank = address >> 24 ? (address >> 24) - 1 : current->owner->rank, offset = address & 0xffffff;
    if (rank >= running->blocks.size() || offset >= SHARED_WINDOW)
        fail("0x%x is not an address of shared memory", address);
    if (offset < STATIC_OFFSET) return shared_base + (size_t)rank * SHARED_WINDOW + offset;
    for (static_variable &v : statics)
        if (v.offset && offset - v.offset < v.bytes) return (char *)v.address + (offset - v.offset);
    fail("0x%x is not an address of shared memory", address);
    return nullptr;
}

} // namespace simt

// ---- what the compiler calls ----

using namespace simt;

static inline void hook(const void *address, size_t bytes, int kind)
{
    if (!current) return;
    if (on_a_stack(address, current)) {
        if (!current->accumulators.empty() && in_flight_sums(current, address))
            fail("%s sums of a wgmma before its wait", verb_of(kind));
        return;
    }
    touch(actor_of(current), address, bytes, kind);
}

extern "C" {

#define HOOKS(n)                                                                                                       \
    void __tsan_read##n(void *p)                                                                                       \
    {                                                                                                                  \
        hook(p, n, ACCESS_READ);                                                                                       \
    }                                                                                                                  \
    void __tsan_write##n(void *p)                                                                                      \
    {                                                                                                                  \
        hook(p, n, ACCESS_WRITE);                                                                                      \
    }                                                                                                                  \
    void __tsan_unaligned_read##n(void *p)                                                                             \
    {                                                                                                                  \
        hook(p, n, ACCESS_READ);                                                                                       \
    }                                                                                                                  \
    void __tsan_unaligned_write##n(void *p)                                                                            \
    {                                                                                                                  \
        hook(p, n, ACCESS_WRITE);                                                                                      \
    }                                                                                                                  \
    void __tsan_volatile_read##n(void *p)                                                                              \
    {                                                                                                                  \
        hook(p, n, ACCESS_READ);                                                                                       \
    }                                                                                                                  \
    void __tsan_volatile_write##n(void *p)                                                                             \
    {                                                                                                                  \
        hook(p, n, ACCESS_WRITE);                                                                                      \
    }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

void __tsan_init()
{
}
void __tsan_func_entry(void *)
{
}
void __tsan_func_exit()
{
}
void __tsan_vptr_update(void **, void *)
{
}
void __tsan_read_range(void *p, size_t bytes)
{
    hook(p, bytes, ACCESS_READ);
}
void __tsan_write_range(void *p, size_t bytes)
{
    hook(p, bytes, ACCESS_WRITE);
}

// -fsanitize=alignment,bounds, also without its library.
struct ubsan_place {
    const char *file;
    uint32_t line, column;
};
struct ubsan_mismatch {
    ubsan_place place;
    const void *type;
    unsigned char log_alignment, kind;
};
struct ubsan_bounds {
    ubsan_place place;
    const void *array, *index;
};

void __ubsan_handle_type_mismatch_v1(ubsan_mismatch *data, uintptr_t pointer)
{
    if (!current) {
        fprintf(stderr, "%s:%u: misaligned or null pointer %p on the host\n", data->place.file, data->place.line,
                (void *)pointer);
        abort();
    }
    const size_t alignment = (size_t)1 << data->log_alignment;
    fail("%s:%u: misaligned: %s is not a multiple of %zu bytes", data->place.file, data->place.line,
         describe_address((void *)pointer).c_str(), alignment);
}

void __ubsan_handle_out_of_bounds(ubsan_bounds *data, uintptr_t index)
{
    if (!current) {
        fprintf(stderr, "%s:%u: index %ld out of bounds on the host\n", data->place.file, data->place.line,
                (long)index);
        abort();
    }
    fail("%s:%u: index %ld is outside its array", data->place.file, data->place.line, (long)index);
}
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The inside of the executor: what a running launch consists of. Kernels see launch.h and the headers in include/
 * instead.
 *
 * One fiber is one CUDA thread. Fibers run on one OS thread and change only inside the executor's own calls (barriers,
 * shuffles, waits), in an order that the seed decides. Blocks run one after another, those of a cluster together.
 *
 * Who has seen what is kept in vector clocks: slot i of `seen` is the newest moment of thread i that happens before
 * now, slot i of `fenced` the newest one that is also behind a fence between the generic and the asynchronous proxy. A
 * clock object is shared by all threads that came out of one barrier, so a barrier costs one copy. */
#ifndef KN_TESTS_SIMT_MACHINE_H
#define KN_TESTS_SIMT_MACHINE_H

#include <stddef.h>
#include <stdint.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tests/simt/simt.h"

namespace simt
{

enum {
    WARP = 32,
    ASYNC_SLOTS = 64,        /* slots of asynchronous operations, behind the threads' */
    NAMED_BARRIERS = 16,     /* PTX ISA, "Parallel Synchronization and Communication Instructions: bar" */
    SHARED_MAX = 227 << 10,  /* bytes of dynamic shared memory a block may ask for on sm_90 */
    SHARED_WINDOW = 1 << 20, /* of addresses per block; beyond STATIC_OFFSET lie static variables */
    DYNAMIC_OFFSET = 1024,   /* so that address 0 is nobody's */
    STATIC_OFFSET = 256 << 10,
    CLUSTER_MAX = 8,
};

/* ---- clocks ---- */

struct vclock {
    uint32_t refs;
    uint32_t slots;
    uint32_t *seen, *fenced; /* [slots] each, in one block with this */
};

/* What a thread hands over when it releases: its clock and its own slot's newest moment. */
struct note {
    vclock *clock;
    uint32_t slot, moment, fenced;
};

vclock *clock_new(uint32_t slots, uint32_t moment);
vclock *clock_keep(vclock *c);
void clock_drop(vclock *c);
vclock *clock_copy(const vclock *c);
/* The join of `base` (may be NULL) and of all notes; consumes the notes, not base. */
vclock *clock_join(const vclock *base, std::vector<note> *notes, uint32_t slots);

/* ---- threads, warps, blocks ---- */

struct block;
struct warp;
struct mbarrier;
struct thread;
struct async_copy;
struct matrix_op;

/* A meeting of the lanes of a mask at one warp-wide instruction. */
struct meeting {
    uint32_t mask, arrived;
    const char *name;
    int line;
    bool done;
    void *payload[WARP];
    thread *lane[WARP];
};

struct warp {
    block *owner;
    uint32_t number, lanes, exited; /* masks */
    thread *lane[WARP];
    std::vector<meeting *> meetings;
    /* wgmma.cc: operations in flight, ends of committed groups in them, number of all so far */
    std::vector<matrix_op *> matrix_open;
    std::vector<size_t> matrix_groups;
    uint32_t matrix_issued;
    int registers; /* as setmaxnreg left them; 0: as launched */
};

enum thread_state { THREAD_READY, THREAD_RUNNING, THREAD_WAITING, THREAD_DONE };

/* Bytes of one thread's own cp.async, not yet waited for. */
struct thread_copy {
    char *to;
    const char *from;
    uint32_t bytes, source_bytes;
    bool done;
};

struct accumulator; /* wgmma.cc */

/* For the report of a deadlock: a format of three numbers and, if it is set, an address in front of them. */
struct wait_detail {
    const char *format;
    const void *address;
    long long number[3];
};

struct thread {
    void *stack_pointer;
    char *stack;
    block *owner;
    warp *in;
    uint32_t slot, number, lane; /* slot in the cluster, number in the block */
    unsigned x, y, z;
    thread_state state;
    const char *waits_for; /* while waiting */
    wait_detail detail;
    vclock *clock;
    uint32_t moment, fenced;
    int spins; /* polls that saw nothing new */
    std::vector<thread_copy> copies;
    std::vector<size_t> copy_groups;  /* end of each committed group in `copies` */
    std::vector<async_copy *> stores; /* not committed */
    std::vector<std::vector<async_copy *>> store_groups;
    bool cluster_arrived, cluster_ready, cluster_passed;
    vclock *cluster_clock;
    /* wgmma */
    bool register_fence;
    std::vector<accumulator *> accumulators;
};

struct barrier {
    uint32_t expected, arrived;
    int line;
    std::vector<note> notes;
    std::vector<thread *> waiting;
};

struct mbarrier {
    char *address;
    block *owner;
    uint32_t count, pending, phase;
    int64_t transactions;
    uint32_t init_slot, init_moment; /* who initialised it, when */
    std::vector<note> notes;
    vclock *completed;
    std::vector<thread *> waiting;
};

struct block {
    unsigned x, y, z;
    uint32_t rank; /* in its cluster */
    uint32_t number, alive;
    char *shared; /* dynamic */
    std::vector<thread> threads;
    std::vector<warp> warps;
    barrier barriers[NAMED_BARRIERS];
    std::map<char *, mbarrier> mbarriers;
    int votes; /* __syncthreads_or and relatives */
    int vote_count;
};

struct machine {
    const char *kernel;
    unsigned grid[3], block_dim[3], cluster_dim[3];
    uint32_t threads; /* in a block */
    uint32_t slots;
    size_t shared_bytes;
    const void *params;
    size_t params_bytes;
    void (*entry)(const void *params);
    std::vector<block> blocks; /* of the running cluster */
    barrier cluster_barrier;
    std::vector<thread *> ready;
    std::vector<async_copy *> pending; /* issued, not done */
    std::vector<thread *> spinning;
    void *scheduler_stack;
    uint32_t alive; /* threads */
    uint32_t base_moment, last_moment;
    uint32_t async_moment[ASYNC_SLOTS];
    uint32_t next_async;
    uint32_t run, first_run; /* number of the cluster's run over all launches; of this launch's first */
    uint64_t random;
    int order;    /* 0 forward, 1 backward, 2 mixed */
    int lateness; /* 0 as early as possible, 1 mixed, 2 as late as possible */
    bool failed;
    char failure[1024];
};

extern machine *running; /* NULL outside a launch */
extern thread *current;  /* NULL outside fibers */

uint64_t random_next(machine *m);
static inline uint32_t random_below(machine *m, uint32_t limit)
{
    return (uint32_t)(random_next(m) >> 33) % limit;
}

/* Ends the launch with a message that names kernel, block and thread. Does not return when called in a fiber. */
void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same, said of another thread. */
void fail_of(const thread *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Gives the processor to others until wake(). `what` is printed in a deadlock report. */
void block_until_woken(const char *what, const wait_detail &detail);
void wake(thread *t);
/* Lets others run; stops the launch when nothing moves any more. */
void spin(const char *what);

note release_note(thread *t);
void acquire(thread *t, const vclock *c);

/* Meets the other lanes of `mask`; the last one to come runs `work` over all payloads. */
void meet(const char *name, int line, uint32_t mask, void *payload, const std::function<void(meeting &)> &work);

/* ---- memory (memory.cc, shadow.cc) ---- */

enum access_kind {
    ACCESS_READ = 0,
    ACCESS_WRITE = 1,
    ACCESS_ATOMIC = 2, /* with ACCESS_WRITE */
    ACCESS_ASYNC = 4,  /* through the asynchronous proxy */
};

/* Who accesses: a thread, or an asynchronous operation that carries the clock of its issue. */
struct actor {
    const thread *who; /* for messages */
    const vclock *clock;
    uint32_t issuer, issuer_moment, issuer_fenced;
    uint32_t slot, moment; /* under which the access is recorded */
};
actor actor_of(const thread *t);

/* Checks and records one access. False (after fail()) when it is wrong and not in a fiber. */
bool touch(const actor &a, const void *address, size_t bytes, int kind);
static inline bool touch_current(const void *address, size_t bytes, int kind)
{
    return touch(actor_of(current), address, bytes, kind);
}

/* In device memory that a kernel may use (shared or an allocation), all `bytes` of it. */
bool is_device_memory(const void *address, size_t bytes);
bool is_shared(const void *address);
bool is_static_shared(const void *address);
uint32_t rank_of_shared(const void *dynamic);
/* Shared-window addresses as instructions take them: rank of the owner + 1 in the top byte when it came from mapa. */
uint32_t shared_address(const void *pointer);
char *shared_pointer(uint32_t address);
enum { STACK_BYTES = 128 << 10 };
static inline bool on_a_stack(const void *address, const thread *t)
{
    return (uintptr_t)address - (uintptr_t)t->stack < STACK_BYTES;
}
bool on_any_stack(const void *address);
void allocation_add(void *memory, size_t bytes, const char *kind);
bool allocation_remove(void *memory);
/* Bytes from `address` to the end of its allocation; 0: none. */
size_t allocation_left(const void *address);
void count_accesses(uint64_t n);
/* Bytes that an asynchronous copy is going to write: nobody may touch them until it has. */
void mark_in_flight(const void *address, size_t bytes, bool in_flight);
/* 0xff: a NaN in every floating format, -1 as an index. */
void poison(void *address, size_t bytes);
void shadow_begin_block(block *b);
void shadow_reset();
char *shared_memory_of(uint32_t rank);

std::string describe_address(const void *address);

void check_copy_exit(thread *t);
void check_matrix_exit(thread *t);
void check_warpgroups(block *b);
bool in_flight_sums(const thread *t, const void *address);
/* All threads have returned: whatever still flies was not waited for, or is a store whose source has been read. */
void async_finish();
void check_block_exit(block *b);
void async_step(bool must);

} // namespace simt

#endif

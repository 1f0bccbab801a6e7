/* SPDX-License-Identifier: Apache-2.0
 *
 * Communication between the ranks of a group: processes that compute one forward together, one device each.
 *
 * Everything that crosses is a block: rows of bytes in device memory, from one rank to another. The collectives below
 * are lists of blocks; a back end moves them (between processes on one machine through shared memory: comm_local.h;
 * between GPUs through NCCL: comm_nccl.h) and no rounding or sum ever happens on the way, so results cannot depend on
 * the back end. Every member of a group makes the same calls in the same order.
 *
 * Faults. A call returns within the limits of kn_comm_params whatever the other ranks do:
 *   KN_UNAVAILABLE  a rank has died, is silent, took too long, or gave the group up (kn_comm_abort). From then on every
 *                   call of every rank returns this at once; the communicator can only be destroyed, and the group be
 *                   formed again under the next epoch. Destinations hold anything.
 *   KN_BUG          two ranks made different calls; the group is given up.
 *
 * Threading: as the device, one thread; kn_comm_abort may come from any. */
#ifndef KN_ENGINE_COMM_H
#define KN_ENGINE_COMM_H

#include "kernels/device.h"

typedef struct kn_comm kn_comm;

enum {
    KN_COMM_RANKS_MAX = 8,
    KN_COMM_BLOCKS_MAX = 2048, /* of one direction in one call, or in all calls between two kn_comm_finish */
};

typedef struct kn_comm_params {
    int64_t join_ns;    /* longest wait for all ranks to join; 0: 60 s */
    int64_t silence_ns; /* a rank without a sign of life for so long is given up; 0: 8 s */
    int64_t call_ns;    /* longest wait inside one call, however alive the others are; 0: none */
} kn_comm_params;

/* What is counted apart. */
typedef enum kn_comm_kind {
    KN_COMM_ALL_TO_ALL, /* heads against rows */
    KN_COMM_BROADCAST,
    KN_COMM_ALL_GATHER,
    KN_COMM_HALO,
    KN_COMM_GATHER,
    KN_COMM_BARRIER,
    KN_COMM_MESSAGE, /* host memory */
    KN_COMM_KINDS,
} kn_comm_kind;

const char *kn_comm_kind_name(kn_comm_kind kind); /* "all_to_all", ... */

typedef struct kn_comm_stats {
    uint64_t sent[KN_COMM_KINDS]; /* payload bytes this rank gave to others */
    uint64_t calls[KN_COMM_KINDS];
    int64_t waited_ns; /* inside calls, copying included */
    /* NCCL, by the device's clock: transfers were under way; of that, this rank's stream had nothing to do but wait for
     * them. Computation hid the rest. Over shared memory the host moves everything inside calls: 0, 0. */
    int64_t moving_ns, exposed_ns;
} kn_comm_stats;

/* `row_bytes` bytes at data, data + stride, ...; device memory. */
typedef struct kn_comm_block {
    void *data;
    int64_t rows;
    size_t row_bytes, stride;
    int32_t peer; /* to or from this rank of the communicator; the caller's own: a copy */
} kn_comm_block;

int32_t kn_comm_rank(const kn_comm *comm);
int32_t kn_comm_ranks(const kn_comm *comm);
uint64_t kn_comm_epoch(const kn_comm *comm);
/* From now on its calls are ordered by this stream of the same device. Between calls. */
void kn_comm_bind(kn_comm *comm, kn_stream *stream);
/* The longest wait inside one call from now on, as kn_comm_params.call_ns. Between calls; the same on every rank. */
void kn_comm_set_limit(kn_comm *comm, int64_t call_ns);
kn_comm_stats kn_comm_read_stats(const kn_comm *comm);

/* Every waiting and later call of every rank fails with `reason`; later calls of this do nothing. */
void kn_comm_abort(kn_comm *comm, const char *reason);
/* Leaves the group. The others notice when they next wait for this rank. */
void kn_comm_destroy(kn_comm **comm);

/* ---- groups ---- */

/* Some ranks of a communicator, in order; by value, made per slice at no cost. `comm` NULL: this process alone. */
typedef struct kn_group {
    kn_comm *comm;
    int32_t size;                      /* 1 when alone */
    int32_t index;                     /* of this rank in member; -1: not a member */
    int32_t member[KN_COMM_RANKS_MAX]; /* ranks, ascending */
} kn_group;

kn_group kn_group_alone(void);

/* The ranks whose bit is set in `mask`. */
kn_group kn_group_of(kn_comm *comm, uint32_t mask);
/* `count` members of a group from `first` on, every `step`-th. */
kn_group kn_group_part(const kn_group *group, int32_t first, int32_t count, int32_t step);

/* A contiguous share of `count` things: shares differ by one at most, the larger ones come first. */
typedef struct kn_share {
    int64_t first, count;
} kn_share;

kn_share kn_share_of(int64_t count, int32_t parts, int32_t part);

/* ---- collectives; called by every member with matching arguments ---- */

/* Moves blocks: between two ranks the n-th sent is the n-th received, of the same bytes. Ordered after what the
 * device's stream holds; the destinations are valid, and the sources may be written, after kn_comm_finish. A back end
 * may begin at once or only there. */
kn_status kn_comm_start(kn_comm *comm, kn_comm_kind kind, const kn_comm_block *send, int32_t sends,
                        const kn_comm_block *receive, int32_t receives);
/* Ends everything started. Later work of the stream sees the results. */
kn_status kn_comm_finish(kn_comm *comm);

/* Waits for the stream and says whether what arrived is worth something: a device may go on over a transfer that a lost
 * rank left undone. Before results change anything that must survive. */
kn_status kn_comm_confirm(kn_comm *comm);

/* `bytes` of the member with index `root`, to all. */
kn_status kn_group_broadcast(const kn_group *group, int32_t root, void *data, size_t bytes);

/* Every member holds rows [kn_share_of(rows, size, index)) of the matrix; afterwards all hold all. */
kn_status kn_group_all_gather(const kn_group *group, void *data, int64_t rows, size_t row_bytes);

/* Rows between neighbours: own first row to the member before, own last row to the one after, theirs into place. */
typedef struct kn_halo {
    void *first, *last;   /* own */
    void *before, *after; /* theirs; not written where there is no neighbour */
    size_t bytes;         /* of each */
} kn_halo;

kn_status kn_group_halo(const kn_group *group, const kn_halo *halo);

kn_status kn_group_barrier(const kn_group *group);

/* As broadcast, in host memory: what to do next, and small results. Never over NCCL. */
kn_status kn_group_message(const kn_group *group, int32_t root, void *host, size_t bytes);

#endif

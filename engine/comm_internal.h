/* SPDX-License-Identifier: Apache-2.0
 *
 * What a back end of comm.h provides. comm.c checks, counts and copies a rank's blocks to itself; back ends move what
 * goes between ranks. */
#ifndef KN_ENGINE_COMM_INTERNAL_H
#define KN_ENGINE_COMM_INTERNAL_H

#include "engine/comm.h"

typedef struct kn_comm_backend {
    /* Begins to move blocks; NULL: `exchange` does all of it at kn_comm_finish. */
    kn_status (*start)(kn_comm *comm, const kn_comm_block *send, int32_t sends, const kn_comm_block *receive,
                       int32_t receives);
    kn_status (*finish)(kn_comm *comm); /* with `start` only */
    /* Moves blocks of device memory, or of host memory, and returns when that is done. Without blocks to or from a
     * peer of `barrier` (a bit set) they still wait for each other. */
    kn_status (*exchange)(kn_comm *comm, const kn_comm_block *send, int32_t sends, const kn_comm_block *receive,
                          int32_t receives, uint32_t barrier, bool host);
    kn_status (*confirm)(kn_comm *comm); /* as kn_comm_confirm; from any thread, where it waits for no stream */
    void (*limit)(kn_comm *comm, int64_t call_ns); /* beside params.call_ns; may be NULL */
    void (*abort)(kn_comm *comm, const char *reason);
    void (*destroy)(kn_comm *comm);
} kn_comm_backend;

/* Back ends embed this as their first member. */
struct kn_comm {
    const kn_comm_backend *backend;
    kn_stream *stream;
    int32_t rank, ranks;
    uint64_t epoch;
    kn_comm_params params;
    kn_comm_stats stats;
    int32_t sends, receives;
    kn_comm_block send[KN_COMM_BLOCKS_MAX], receive[KN_COMM_BLOCKS_MAX]; /* started, not finished */
};

static inline size_t kn_comm_block_bytes(const kn_comm_block *b)
{
    return (size_t)b->rows * b->row_bytes;
}

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * A communicator between processes of one machine, through a segment of shared memory.
 *
 * Whoever forms the group makes the segment and hands its descriptor to every rank, by inheritance or over a socket.
 * A segment belongs to one epoch and is never used again: whatever a rank of an earlier epoch still writes goes to
 * memory nobody reads. Device memory that the host cannot touch is staged through the segment. */
#ifndef KN_ENGINE_COMM_LOCAL_H
#define KN_ENGINE_COMM_LOCAL_H

#include "engine/comm.h"

/* A segment for a group of `ranks`, as a descriptor with close-on-exec. Close it once every rank has it. */
kn_status kn_comm_local_form(int *out, int32_t ranks, uint64_t epoch);

typedef struct kn_comm_local_params {
    int fd; /* the caller keeps it */
    int32_t rank;
    uint64_t epoch;    /* KN_UNAVAILABLE when the segment is of another */
    kn_stream *stream; /* the device's; kept */
    const int
        *pidfds; /* [ranks] of processes this one has started, -1: not one; to see a death before it joins. NULL */
    kn_comm_params limits;
} kn_comm_local_params;

/* Waits until every rank has joined. KN_CORRUPT: not such a segment. KN_INVALID: a rank that is taken or too large. */
kn_status kn_comm_local_join(kn_comm **out, const kn_comm_local_params *params);

/* From outside the group (its supervisor): gives it up. */
kn_status kn_comm_local_give_up(int fd, const char *reason);

/* From outside: has the group been given up, why, and which ranks (a bit set) were to blame: those that were silent, or
 * computed on while another waited for longer than it may. Dead ranks are not among them; whoever started them knows.
 * `reason` may be NULL. */
kn_status kn_comm_local_look(int fd, bool *given_up, uint32_t *blamed, char *reason, size_t bytes);

#endif

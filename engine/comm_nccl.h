/* SPDX-License-Identifier: Apache-2.0
 *
 * A communicator between GPUs of one machine, through NVIDIA's NCCL, which is loaded at run time (libnccl.so.2).
 *
 * It sits on a comm_local communicator of the same ranks, which carries messages, tells who is alive and spreads the
 * news when the group is given up. Device memory goes through NCCL on a stream of its own, ordered by events, so that
 * it overlaps with computing. A thread watches: when a rank is lost, or NCCL reports an error, it aborts the
 * communicator, which lets a device that waits for the lost rank go on; kn_comm_confirm then says that the results are
 * worth nothing. */
#ifndef KN_ENGINE_COMM_NCCL_H
#define KN_ENGINE_COMM_NCCL_H

#include "engine/comm.h"

typedef struct kn_comm_nccl_params {
    kn_comm *control;    /* of comm_local.h, of all ranks, bound to the model's stream; owned from a success on */
    const char *library; /* NULL: libnccl.so.2, or where it was when this was built */
} kn_comm_nccl_params;

/* Called by every rank. KN_UNSUPPORTED on all of them when the library is missing, too old or refuses on one: the
 * control communicator can still be used. KN_UNAVAILABLE: a rank was lost meanwhile. */
kn_status kn_comm_nccl_create(kn_comm **out, const kn_comm_nccl_params *params);

/* Can NCCL be loaded on this machine, and is it new enough? KN_UNSUPPORTED says why not. NULL: libnccl.so.2 */
kn_status kn_comm_nccl_available(const char *library);

/* A group of some ranks, made ahead of its use. Called by every rank of `parent`; `control` is of the group's ranks
 * alone, in the same order, and NULL on the others, where *out becomes NULL. `color` tells groups made in one call
 * apart. */
kn_status kn_comm_nccl_split(kn_comm **out, kn_comm *parent, kn_comm *control, int32_t color);

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * The bugs that can be planted in the kernels of hopper.cu. */
#ifndef KN_TESTS_SIMT_PLANTED_HOPPER_H
#define KN_TESTS_SIMT_PLANTED_HOPPER_H

#include "kernels/cuda/launch.h"

KN_CUDA_BEGIN

/* bug, kernel; the first of each kernel is none at all. */
#define HOPPER_BUGS                                                                                                    \
    HOPPER_BUG(BUG_NO_PRODUCT, product)                                                                                \
    HOPPER_BUG(BUG_NO_INIT_FENCE, product)                                                                             \
    HOPPER_BUG(BUG_EMPTY_COUNT, product)                                                                               \
    HOPPER_BUG(BUG_NO_EMPTY_WAIT, product)                                                                             \
    HOPPER_BUG(BUG_FEW_BYTES, product)                                                                                 \
    HOPPER_BUG(BUG_MANY_BYTES, product)                                                                                \
    HOPPER_BUG(BUG_NO_FULL_WAIT, product)                                                                              \
    HOPPER_BUG(BUG_NO_WGMMA_FENCE, product)                                                                            \
    HOPPER_BUG(BUG_SWIZZLE, product)                                                                                   \
    HOPPER_BUG(BUG_NO_WGMMA_WAIT, product)                                                                             \
    HOPPER_BUG(BUG_EARLY_RELEASE, product)                                                                             \
    HOPPER_BUG(BUG_NO_STORE, store)                                                                                    \
    HOPPER_BUG(BUG_STORE_TAIL, store)                                                                                  \
    HOPPER_BUG(BUG_NO_COPY_WAIT, store)                                                                                \
    HOPPER_BUG(BUG_NO_COPY_BARRIER, store)                                                                             \
    HOPPER_BUG(BUG_STORE_SWIZZLE, store)                                                                               \
    HOPPER_BUG(BUG_NO_PROXY_FENCE, store)                                                                              \
    HOPPER_BUG(BUG_NO_STORE_WAIT, store)                                                                               \
    HOPPER_BUG(BUG_REUSE, store)                                                                                       \
    HOPPER_BUG(BUG_REUSE_EARLY, store)                                                                                 \
    HOPPER_BUG(BUG_NO_TURNS, turns)                                                                                    \
    HOPPER_BUG(BUG_NO_ARRIVE, turns)                                                                                   \
    HOPPER_BUG(BUG_BAR_COUNT, turns)                                                                                   \
    HOPPER_BUG(BUG_NO_CLUSTER, cluster)                                                                                \
    HOPPER_BUG(BUG_NO_CLUSTER_BARRIER, cluster)

enum hopper_bug {
#define HOPPER_BUG(bug, kernel) bug,
    HOPPER_BUGS
#undef HOPPER_BUG
};

struct hopper_call {
    int bug;
    int rows, depth;
    void *a, *b, *out; /* device memory */
    cudaStream_t stream;
};

kn_status run_hopper(const hopper_call *p);

KN_CUDA_END

#endif

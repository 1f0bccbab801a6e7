/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of the executor's own tests, and the bugs that can be planted in them. */
#ifndef KN_TESTS_SIMT_PLANTED_H
#define KN_TESTS_SIMT_PLANTED_H

#include "kernels/cuda/launch.h"

KN_CUDA_BEGIN

enum planted_kernel {
    PLANTED_BLOCK_SUM,
    PLANTED_REVERSE,
    PLANTED_MISALIGNED,
    PLANTED_BETWEEN_BLOCKS,
    PLANTED_LOCAL,
    PLANTED_SHUFFLE,
};

enum planted_bug {
    BUG_NONE,
    BUG_TAIL,          /* the last block reads past the end */
    BUG_NO_BARRIER,    /* a __syncthreads is missing */
    BUG_RACE,          /* writes what others still read */
    BUG_SHARED_BOUNDS, /* one element too far in shared memory */
    BUG_DIVERGENT,     /* one thread returns before the barrier */
    BUG_MISALIGNED,
    BUG_MASK,   /* takes a lane that is not in the mask */
    BUG_ABSENT, /* a lane of the mask has returned */
    BUG_NO_ATOMIC,
};

struct planted {
    planted_kernel kernel;
    int bug;
    int blocks, threads, count;
    float *out;
    const float *in;
    cudaStream_t stream;
};

cudaError_t run_planted(const planted *p);

static inline cudaError_t status_of(kn_status st)
{
    return st == KN_OK ? cudaSuccess : cudaErrorLaunchFailure;
}

KN_CUDA_END

#endif

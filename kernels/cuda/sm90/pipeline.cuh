/* SPDX-License-Identifier: Apache-2.0
 *
 * What the kernels with a loading warp and computing warpgroups share: buffers in rings, each with a barrier that says
 * full (its bytes have come) and one that says empty (every warp that reads it is done). */
#ifndef KN_KERNELS_CUDA_SM90_PIPELINE_CUH
#define KN_KERNELS_CUDA_SM90_PIPELINE_CUH

#include "kernels/cuda/ptx.cuh"

KN_CUDA_BEGIN

enum {
    GROUP = 128,     /* threads of a warpgroup */
    PANEL = 64,      /* bf16 columns in a swizzled row of shared memory */
    ROW_BYTES = 128, /* of that row */
    PARITY_FREE = 1, /* waiting for it on a new barrier returns at once */
};

/* Which of `count` buffers comes next, and the parity of its barriers' phase. */
template <int count> struct ring {
    int index;
    uint32_t parity;

    __device__ __forceinline__ void next()
    {
        if (++index == count) {
            index = 0;
            parity ^= 1;
        }
    }
};

/* This warp has read the buffer: one arrival at its barrier in every CTA of the cluster, as each loads a part of it. */
template <int CLUSTER> static __device__ __forceinline__ void release(uint64_t *empty)
{
    int lane = threadIdx.x % 32;
    if constexpr (CLUSTER == 1) {
        if (lane == 0) mbarrier_arrive(empty);
    } else {
        if (lane < CLUSTER) mbarrier_arrive_cluster(empty, lane);
    }
}

/* No instruction: keeps the compiler from moving registers across the products that own them. */
template <int N> static __device__ __forceinline__ void hold(float (&registers)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) wgmma_hold(registers[i]);
}

/* The same number in every thread of a warp, and known to the compiler to be. */
static __device__ __forceinline__ int uniform(int value)
{
    return __shfl_sync(0xffffffff, value, 0);
}

/* All threads of the cluster: barriers are initialised before, or shared memory no longer reached for after. */
template <int CLUSTER> static __device__ __forceinline__ void cluster_barrier()
{
    if constexpr (CLUSTER > 1) {
        __syncwarp();
        cluster_arrive();
        cluster_wait();
    }
}

KN_CUDA_END

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * Small kernels that are right, and the same kernels with one planted bug each. tests/simt/executor.cc runs them. */
#include "tests/simt/planted.h"

#include "kernels/cuda/ptx.cuh"

KN_CUDA_BEGIN

/* out[i] = sum over the block of in, by shuffles and shared memory. */
template <int BUG> __global__ void block_sum_kernel(float *out, const float *in, int count)
{
    __shared__ float partial[8];
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x), lane = (int)threadIdx.x % 32,
              warp = (int)threadIdx.x / 32;
    float value = i < count || BUG == BUG_TAIL ? in[i] : 0.0f;
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    if (lane == 0) partial[warp] = value;
    if (BUG != BUG_NO_BARRIER) __syncthreads();
    float sum = 0;
    for (int w = 0; w < 8; w++) sum += partial[w];
    if (BUG == BUG_RACE) partial[warp] = sum;
    if (i < count) out[i] = sum;
}

/* Reverses each block through dynamic shared memory. */
template <int BUG> __global__ void reverse_kernel(float *data)
{
    KN_DYNAMIC_SHARED(float, tile);
    const int n = (int)blockDim.x, i = (int)threadIdx.x;
    tile[BUG == BUG_SHARED_BOUNDS ? i + 1 : i] = data[blockIdx.x * n + i];
    if (BUG == BUG_DIVERGENT && i == 7) return;
    __syncthreads();
    data[blockIdx.x * n + i] = tile[n - 1 - i];
}

/* Reads four floats as one. */
__global__ void misaligned_kernel(float *out, const float *in, int skew)
{
    const float4 v = *(const float4 *)(in + skew);
    out[threadIdx.x] = v.x + v.y + v.z + v.w;
}

/* Each block adds into what the next one reads. */
__global__ void between_blocks_kernel(float *data, int atomic)
{
    if (atomic)
        atomicAdd(data, 1.0f);
    else
        data[0] += 1.0f;
}

__global__ void local_memory_kernel(float **slot, float *out)
{
    __shared__ float *published;
    float mine = (float)threadIdx.x;
    if (threadIdx.x == 0) published = &mine;
    __syncthreads();
    if (threadIdx.x == 1) out[0] = *published;
    __syncthreads();
    (void)slot;
    out[1 + threadIdx.x] = mine;
}

__global__ void shuffle_kernel(int *out, int bug)
{
    const int lane = (int)threadIdx.x;
    if (bug == BUG_MASK) {
        if (lane < 16) out[lane] = __shfl_sync(0x0000ffffu, lane, 20);
        return;
    }
    if (bug == BUG_ABSENT && lane == 3) return;
    out[lane] = __shfl_down_sync(0xffffffffu, lane, 1) + (int)__ballot_sync(0xffffffffu, lane % 2);
}

cudaError_t run_planted(const planted *p)
{
    const dim3 grid((unsigned)p->blocks), block((unsigned)p->threads);
    const cudaStream_t s = p->stream;
    switch (p->kernel) {
    case PLANTED_BLOCK_SUM:
        switch (p->bug) {
        case BUG_TAIL:
            return status_of(KN_LAUNCH((block_sum_kernel<BUG_TAIL>), grid, block, 0, s, p->out, p->in, p->count));
        case BUG_NO_BARRIER:
            return status_of(KN_LAUNCH((block_sum_kernel<BUG_NO_BARRIER>), grid, block, 0, s, p->out, p->in, p->count));
        case BUG_RACE:
            return status_of(KN_LAUNCH((block_sum_kernel<BUG_RACE>), grid, block, 0, s, p->out, p->in, p->count));
        default: return status_of(KN_LAUNCH((block_sum_kernel<BUG_NONE>), grid, block, 0, s, p->out, p->in, p->count));
        }
    case PLANTED_REVERSE:
        switch (p->bug) {
        case BUG_SHARED_BOUNDS:
            return status_of(KN_LAUNCH((reverse_kernel<BUG_SHARED_BOUNDS>), grid, block, p->threads * 4, s, p->out));
        case BUG_DIVERGENT:
            return status_of(KN_LAUNCH((reverse_kernel<BUG_DIVERGENT>), grid, block, p->threads * 4, s, p->out));
        default: return status_of(KN_LAUNCH((reverse_kernel<BUG_NONE>), grid, block, p->threads * 4, s, p->out));
        }
    case PLANTED_MISALIGNED: return status_of(KN_LAUNCH(misaligned_kernel, grid, block, 0, s, p->out, p->in, p->bug));
    case PLANTED_BETWEEN_BLOCKS:
        return status_of(KN_LAUNCH(between_blocks_kernel, grid, block, 0, s, p->out, p->bug == BUG_NONE));
    case PLANTED_LOCAL: return status_of(KN_LAUNCH(local_memory_kernel, grid, block, 0, s, nullptr, p->out));
    case PLANTED_SHUFFLE: return status_of(KN_LAUNCH(shuffle_kernel, grid, block, 0, s, (int *)p->out, p->bug));
    default: return cudaErrorInvalidValue;
    }
}

KN_CUDA_END

/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernels with asynchronous copies, mbarriers, tensor maps and warpgroup matrices that are right, and the same with one
 * planted bug each. tests/simt/test_hopper.cc runs them. */
#include <cuda.h>
#include <string.h>

#include "tests/simt/planted_hopper.h"

#include "kernels/cuda/ptx.cuh"

KN_CUDA_BEGIN

enum { TILE_ROWS = 64, TILE_COLUMNS = 128, DEPTH = 64, TILE_BYTES = 64 * 128, STAGES = 2 };

/* c[64, 128] = a[64, depth] b[128, depth]^T: a producer warp copies tiles of 64 along depth by TMA, one warpgroup
 * multiplies them; mbarriers say which stage is full and which is empty. */
struct product_storage {
    uint8_t a[STAGES][TILE_BYTES];
    uint8_t b[STAGES][2 * TILE_BYTES];
    uint64_t full[STAGES], empty[STAGES];
};

template <int BUG>
__global__ void product_kernel(const __grid_constant__ tensor_map a_map, const __grid_constant__ tensor_map b_map,
                               float *c, int depth)
{
    KN_DYNAMIC_SHARED(product_storage, s);
    const int warp = (int)threadIdx.x / 32, steps = depth / DEPTH;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(&s->full[i], 1);
            mbarrier_init(&s->empty[i], BUG == BUG_EMPTY_COUNT ? 64 : 128);
        }
        if (BUG != BUG_NO_INIT_FENCE) fence_mbarrier_init();
    }
    __syncthreads();
    if (warp == 4) { /* producer */
        if (threadIdx.x % 32 != 0) return;
        for (int k = 0; k < steps; k++) {
            const int stage = k % STAGES, round = k / STAGES;
            if (BUG != BUG_NO_EMPTY_WAIT) mbarrier_wait(&s->empty[stage], (round & 1) ^ 1);
            const uint32_t bytes = 3 * TILE_BYTES;
            mbarrier_arrive_expect(&s->full[stage], BUG == BUG_FEW_BYTES    ? bytes - 16
                                                    : BUG == BUG_MANY_BYTES ? bytes + 16
                                                                            : bytes);
            tma_load_3d(s->a[stage], &a_map, 0, 0, k, &s->full[stage]);
            tma_load_3d(s->b[stage], &b_map, 0, 0, k, &s->full[stage]);
        }
        return;
    }
    float sums[64];
    for (int i = 0; i < 64; i++) sums[i] = 0;
    for (int k = 0; k < steps; k++) {
        const int stage = k % STAGES, round = k / STAGES;
        if (BUG != BUG_NO_FULL_WAIT) mbarrier_wait(&s->full[stage], round & 1);
        if (BUG != BUG_NO_WGMMA_FENCE) wgmma_fence();
        uint64_t a = wgmma_descriptor(s->a[stage], 0), b = wgmma_descriptor(s->b[stage], 0);
        if (BUG == BUG_SWIZZLE) a = (a & ~((uint64_t)3 << 62)) | (uint64_t)2 << 62; /* 64 bytes, where TMA used 128 */
        for (int i = 0; i < DEPTH / 16; i++)
            wgmma_ss<128>(sums, wgmma_advance(a, 32 * i), wgmma_advance(b, 32 * i), true);
        wgmma_commit();
        if (BUG != BUG_NO_WGMMA_WAIT && BUG != BUG_EARLY_RELEASE) wgmma_wait<0>();
        mbarrier_arrive(&s->empty[stage]);
        if (BUG == BUG_EARLY_RELEASE) wgmma_wait<0>();
    }
    const int lane = (int)threadIdx.x % 32, row = warp * 16 + lane / 4;
    for (int j = 0; j < 16; j++)
        for (int i = 0; i < 4; i++)
            c[(row + i / 2 * 8) * TILE_COLUMNS + j * 8 + lane % 4 * 2 + i % 2] = sums[4 * j + i];
}

/* Doubles a [rows, 64] matrix: cp.async in, a swizzled tile out through TMA. */
struct store_storage {
    uint8_t tile[TILE_BYTES];
    uint8_t in[TILE_BYTES];
};

template <int BUG> __global__ void store_kernel(const uint16_t *in, const __grid_constant__ tensor_map out, int rows)
{
    KN_DYNAMIC_SHARED(store_storage, s);
    const int first = (int)blockIdx.x * 64;
    for (int i = (int)threadIdx.x; i < TILE_BYTES / 16; i += (int)blockDim.x) {
        const int row = first + i / 8;
        const bool there = row < rows || BUG == BUG_STORE_TAIL;
        cp_async16(s->in + 16 * i, in + (there ? row : 0) * 64 + i % 8 * 8, there ? 16 : 0);
    }
    cp_async_commit();
    if (BUG != BUG_NO_COPY_WAIT) cp_async_wait<0>();
    if (BUG != BUG_NO_COPY_BARRIER) __syncthreads();
    for (int i = (int)threadIdx.x; i < 64 * 64; i += (int)blockDim.x) {
        const int row = i / 64, column = 63 - i % 64; /* what other threads have copied */
        const float x = __bfloat162float(__ushort_as_bfloat16(((const uint16_t *)s->in)[row * 64 + column]));
        const int chunk = BUG == BUG_STORE_SWIZZLE ? column / 8 : column / 8 ^ row % 8;
        ((uint16_t *)s->tile)[row * 64 + chunk * 8 + column % 8] = __bfloat16_as_ushort(__float2bfloat16(2 * x));
    }
    if (BUG != BUG_NO_PROXY_FENCE) fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        tma_store_3d(&out, s->tile, 0, first, 0);
        bulk_commit();
        if (BUG != BUG_NO_STORE_WAIT) bulk_wait_read<0>();
    }
    if (BUG == BUG_REUSE) {
        __syncthreads();
        s->tile[threadIdx.x] = 0;
    }
    if (BUG == BUG_REUSE_EARLY) s->tile[threadIdx.x] = 0;
}

/* Two groups of warps take turns by named barriers. */
template <int BUG> __global__ void turns_kernel(int *out)
{
    __shared__ int slot[32];
    const int group = (int)threadIdx.x / 64, i = (int)threadIdx.x % 64;
    if (group == 0) {
        if (i < 32) slot[i] = i * i;
        if (BUG != BUG_NO_ARRIVE) bar_arrive(1, BUG == BUG_BAR_COUNT ? 64 : 128);
    } else {
        bar_sync(1, 128);
        out[i] = slot[i % 32];
    }
}

/* Each block of a cluster of two puts its number where the other reads it, by a multicast copy and a remote arrival. */
template <int BUG> __global__ void cluster_kernel(const __grid_constant__ tensor_map map, uint16_t *out)
{
    KN_DYNAMIC_SHARED(product_storage, s);
    const uint32_t rank = cluster_rank();
    if (threadIdx.x == 0) {
        mbarrier_init(&s->full[0], 1);
        mbarrier_init(&s->empty[0], 2);
        fence_mbarrier_init();
    }
    if (BUG != BUG_NO_CLUSTER_BARRIER) {
        cluster_arrive();
        cluster_wait();
    } else {
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(&s->full[0], 2 * TILE_BYTES);
        tma_load_3d_multicast(s->a[rank], &map, 0, 64 * (int)rank, 0, &s->full[0], 3);
    }
    mbarrier_wait(&s->full[0], 0);
    if (threadIdx.x < 64) {
        const int row = (int)threadIdx.x; /* column 0 of each row, where its swizzle has put it */
        for (int half = 0; half < 2; half++)
            out[rank * 128 + half * 64 + row] = ((const uint16_t *)s->a[half])[row * 64 + row % 8 * 8];
    }
    __syncthreads();
    if (threadIdx.x == 0)
        for (uint32_t other = 0; other < 2; other++) mbarrier_arrive_cluster(&s->empty[0], other);
    mbarrier_wait(&s->empty[0], 0);
}

/* ---- launches ---- */

tensor_map map_of(void *data, int columns, int rows, int box_rows, int swizzle)
{
    CUtensorMap map;
    const cuuint64_t sides[3] = {64, (cuuint64_t)rows, (cuuint64_t)columns / 64};
    const cuuint64_t strides[2] = {(cuuint64_t)columns * 2, 128};
    const cuuint32_t box[3] = {64, (cuuint32_t)box_rows, 1}, steps[3] = {1, 1, 1};
    memset((void *)&map, 0, sizeof map);
    cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, data, sides, strides, box, steps,
                           CU_TENSOR_MAP_INTERLEAVE_NONE, (CUtensorMapSwizzle)swizzle, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                           CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    tensor_map out;
    memcpy((void *)&out, &map, sizeof out);
    return out;
}

template <int BUG> static kn_status launch_product(const hopper_call *p)
{
    return KN_LAUNCH((product_kernel<BUG>), 1, 160, sizeof(product_storage), p->stream,
                     map_of(p->a, p->depth, p->rows, 64, CU_TENSOR_MAP_SWIZZLE_128B),
                     map_of(p->b, p->depth, 128, 128, CU_TENSOR_MAP_SWIZZLE_128B), (float *)p->out, p->depth);
}

template <int BUG> static kn_status launch_store(const hopper_call *p)
{
    return KN_LAUNCH((store_kernel<BUG>), (unsigned)(p->rows + 63) / 64, 128, sizeof(store_storage), p->stream,
                     (const uint16_t *)p->a, map_of(p->out, 64, p->rows, 64, CU_TENSOR_MAP_SWIZZLE_128B), p->rows);
}

template <int BUG> static kn_status launch_turns(const hopper_call *p)
{
    return KN_LAUNCH((turns_kernel<BUG>), 1, 128, 0, p->stream, (int *)p->out);
}

template <int BUG> static kn_status launch_cluster(const hopper_call *p)
{
    return KN_LAUNCH_CLUSTER((cluster_kernel<BUG>), 2, 2, 128, sizeof(product_storage), p->stream,
                             map_of(p->a, 64, 128, 64, CU_TENSOR_MAP_SWIZZLE_128B), (uint16_t *)p->out);
}

kn_status run_hopper(const hopper_call *p)
{
    switch (p->bug) {
#define HOPPER_BUG(bug, kernel)                                                                                        \
    case bug: return launch_##kernel<bug>(p);
        HOPPER_BUGS
#undef HOPPER_BUG
    default: return KN_INVALID;
    }
}

KN_CUDA_END

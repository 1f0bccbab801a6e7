/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernels about one instruction each: matrix fragments of a warp, a warpgroup's product with registers and rows along
 * k, boxes of tensors of every rank under every swizzle. tests/simt/test_forms.cc runs them and knows the answers. */
#include <cuda.h>
#include <string.h>

#include "tests/simt/planted_forms.h"

#include "kernels/cuda/ptx.cuh"

KN_CUDA_BEGIN

/* ---- ldmatrix, mma, stmatrix ---- */

enum { SIDE = 16 };

struct warp_storage {
    uint16_t a[SIDE * SIDE + 8], b[SIDE * SIDE + 8], c[SIDE * SIDE + 8];
};

template <int BUG, bool TURNED>
__global__ void warp_kernel(const uint16_t *a, const uint16_t *b, float *product, uint16_t *rounded)
{
    KN_DYNAMIC_SHARED(warp_storage, s);
    const int lane = (int)threadIdx.x, g = lane / 4, t = lane % 4 * 2;
    for (int i = lane; i < SIDE * SIDE; i += 32) {
        s->a[i] = a[i];
        s->b[i] = b[i];
    }
    __syncwarp();
    uint32_t fa[4], fb[4];
    const int shift = BUG == FORM_MISALIGNED ? 1 : 0;
    if (BUG == FORM_FEW_LANES && lane >= 16) return;
    ldmatrix_x4(fa, s->a + lane % 16 * SIDE + lane / 16 * 8 + shift);
    if (TURNED && BUG != FORM_NOT_TURNED)
        ldmatrix_x4_trans(fb, s->b + (lane % 8 + lane / 8 % 2 * 8) * SIDE + lane / 16 * 8);
    else
        ldmatrix_x4(fb, s->b + (lane % 8 + lane / 16 * 8) * SIDE + lane / 8 % 2 * 8);
    if (BUG == FORM_SWAPPED) {
        const uint32_t kept = fa[1];
        fa[1] = fa[2];
        fa[2] = kept;
    }
    float d[2][4] = {};
    mma_bf16(d[0], fa, fb[0], fb[1]);
    mma_bf16(d[1], fa, fb[2], fb[3]);
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < 4; i++) product[(g + i / 2 * 8) * SIDE + half * 8 + t + i % 2] = d[half][i];
    stmatrix_x4(s->c + lane % 16 * SIDE + lane / 16 * 8, pack_bf16(d[0][0], d[0][1]), pack_bf16(d[0][2], d[0][3]),
                pack_bf16(d[1][0], d[1][1]), pack_bf16(d[1][2], d[1][3]));
    if (BUG != FORM_NO_BARRIER) __syncwarp();
    for (int i = lane; i < SIDE * SIDE; i += 32) rounded[i] = s->c[i];
}

template <int BUG, bool TURNED> static kn_status launch_warp(const warp_call *p)
{
    return KN_LAUNCH((warp_kernel<BUG, TURNED>), 1, 32, sizeof(warp_storage), p->stream, p->a, p->b, p->product,
                     p->rounded);
}

kn_status run_warp(const warp_call *p)
{
    switch (p->bug) {
    case FORM_RIGHT: return p->turned ? launch_warp<FORM_RIGHT, true>(p) : launch_warp<FORM_RIGHT, false>(p);
    case FORM_SWAPPED: return launch_warp<FORM_SWAPPED, false>(p);
    case FORM_NOT_TURNED: return launch_warp<FORM_NOT_TURNED, true>(p);
    case FORM_MISALIGNED: return launch_warp<FORM_MISALIGNED, false>(p);
    case FORM_FEW_LANES: return launch_warp<FORM_FEW_LANES, false>(p);
    case FORM_NO_BARRIER: return launch_warp<FORM_NO_BARRIER, false>(p);
    default: return KN_INVALID;
    }
}

/* ---- wgmma with a in registers, b along k ---- */

enum { ROWS = 64, COLUMNS = 128, DEPTH = 16, HALF_BYTES = DEPTH * 128 /* of 64 columns */ };

template <int BUG> __global__ void warpgroup_kernel(const uint16_t *a, const uint16_t *b, float *c)
{
    KN_DYNAMIC_SHARED(uint8_t, tile);
    for (int i = (int)threadIdx.x; i < DEPTH * COLUMNS; i += (int)blockDim.x) {
        const int k = i / COLUMNS, n = i % COLUMNS, chunk = n % 64 / 8 ^ k % 8;
        ((uint16_t *)(tile + n / 64 * HALF_BYTES))[k * 64 + chunk * 8 + n % 8] = b[i];
    }
    if (BUG != FORM_NO_FENCE) fence_proxy_async();
    __syncthreads();
    const int lane = (int)threadIdx.x % 32, row = (int)threadIdx.x / 32 * 16 + lane / 4, t = lane % 4 * 2;
    uint32_t fa[4];
    for (int i = 0; i < 4; i++) {
        const uint16_t *at = a + (row + i % 2 * 8) * DEPTH + t + i / 2 * 8;
        fa[i] = at[0] | (uint32_t)at[1] << 16;
    }
    float d[COLUMNS / 2];
    for (int i = 0; i < COLUMNS / 2; i++) d[i] = 1;
    wgmma_fence();
    const uint64_t descriptor = wgmma_descriptor(tile, BUG == FORM_LEADING ? HALF_BYTES / 2 : HALF_BYTES);
    wgmma_rs_mn<COLUMNS>(d, fa, descriptor, false); /* what d held is not added */
    wgmma_commit();
    if (BUG == FORM_WRITTEN) d[0] = 0;
    wgmma_wait<0>();
    for (int j = 0; j < COLUMNS / 8; j++)
        for (int i = 0; i < 4; i++) c[(row + i / 2 * 8) * COLUMNS + j * 8 + t + i % 2] = d[4 * j + i];
}

template <int BUG> static kn_status launch_warpgroup(const warpgroup_call *p)
{
    return KN_LAUNCH((warpgroup_kernel<BUG>), 1, 128, 2 * HALF_BYTES, p->stream, p->a, p->b, p->c);
}

kn_status run_warpgroup(const warpgroup_call *p)
{
    switch (p->bug) {
    case FORM_RIGHT: return launch_warpgroup<FORM_RIGHT>(p);
    case FORM_NO_FENCE: return launch_warpgroup<FORM_NO_FENCE>(p);
    case FORM_LEADING: return launch_warpgroup<FORM_LEADING>(p);
    case FORM_WRITTEN: return launch_warpgroup<FORM_WRITTEN>(p);
    default: return KN_INVALID;
    }
}

/* ---- boxes ---- */

struct box_at {
    int at[FORM_RANKS];
};

struct box_storage {
    uint8_t box[FORM_BOX_BYTES];
    uint64_t full;
};

/* The wrappers of ptx.cuh have three dimensions, which is what kernels use; here every rank is asked for. */
template <int BUG>
__global__ void box_kernel(const __grid_constant__ tensor_map from, const __grid_constant__ tensor_map to, box_at at,
                           int rank, int bytes, uint8_t *shared)
{
    KN_DYNAMIC_SHARED(box_storage, s);
    if (threadIdx.x == 0) {
        mbarrier_init(&s->full, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect(&s->full, (uint32_t)(BUG == FORM_FEW_BYTES ? bytes - 16 : bytes));
        simt::tensor_load(s->box, &from, at.at, BUG == FORM_RANK ? rank % FORM_RANKS + 1 : rank, &s->full, 0);
    }
    __syncthreads();
    if (BUG != FORM_NO_WAIT) mbarrier_wait(&s->full, 0);
    for (int i = (int)threadIdx.x; i < bytes; i += (int)blockDim.x) shared[i] = s->box[i];
    if (threadIdx.x == 0) {
        simt::tensor_store(&to, s->box, at.at, rank);
        bulk_commit();
        bulk_wait_read<0>();
    }
}

static tensor_map box_map(const box_call *p, void *data)
{
    CUtensorMap map;
    const cuuint32_t steps[FORM_RANKS] = {1, 1, 1, 1, 1};
    cuuint64_t side[FORM_RANKS], stride[FORM_RANKS - 1];
    cuuint32_t box[FORM_RANKS];
    for (int i = 0; i < FORM_RANKS; i++) {
        side[i] = p->side[i];
        box[i] = p->box[i];
        if (i + 1 < FORM_RANKS) stride[i] = p->stride[i];
    }
    memset((void *)&map, 0, sizeof map);
    cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, (cuuint32_t)p->rank, data, side, stride, box, steps,
                           CU_TENSOR_MAP_INTERLEAVE_NONE, (CUtensorMapSwizzle)p->swizzle,
                           CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    tensor_map out;
    memcpy((void *)&out, &map, sizeof out);
    return out;
}

template <int BUG> static kn_status launch_box(const box_call *p)
{
    box_at at;
    int bytes = 2;
    memcpy(at.at, p->at, sizeof at.at);
    for (int i = 0; i < p->rank; i++) bytes *= (int)p->box[i];
    return KN_LAUNCH((box_kernel<BUG>), 1, 64, sizeof(box_storage), p->stream, box_map(p, p->from), box_map(p, p->to),
                     at, p->rank, bytes, p->shared);
}

kn_status run_box(const box_call *p)
{
    switch (p->bug) {
    case FORM_RIGHT: return launch_box<FORM_RIGHT>(p);
    case FORM_FEW_BYTES: return launch_box<FORM_FEW_BYTES>(p);
    case FORM_RANK: return launch_box<FORM_RANK>(p);
    case FORM_NO_WAIT: return launch_box<FORM_NO_WAIT>(p);
    default: return KN_INVALID;
    }
}

KN_CUDA_END

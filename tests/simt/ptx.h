/* SPDX-License-Identifier: Apache-2.0
 *
 * kernels/cuda/ptx.cuh for the executor: the same functions, carried out by instructions.h instead of hardware. */
#ifndef KN_TESTS_SIMT_PTX_H
#define KN_TESTS_SIMT_PTX_H

#include <cuda_bf16.h>

#include "kernels/cuda/launch.h"
#include "tests/simt/instructions.h"

KN_CUDA_BEGIN

#define KN_PTX static inline __attribute__((unused))
#define KN_LINE int line = __builtin_LINE()

KN_PTX uint32_t shared_address(const void *pointer)
{
    return simt::shared_address(pointer);
}

/* ---- arithmetic ---- */

KN_PTX float exp2_approx(float x)
{
    return simt::exp2_approx(x);
}

KN_PTX float reciprocal_approx(float x)
{
    return simt::reciprocal_approx(x);
}

KN_PTX uint32_t pack_bf16(float low, float high)
{
    return simt_bf16_bits(low) | (uint32_t)simt_bf16_bits(high) << 16;
}

/* ---- matrices of a warp ---- */

KN_PTX void ldmatrix_x4(uint32_t (&r)[4], const void *row, KN_LINE)
{
    simt::ldmatrix(line, r, 4, row, false);
}

KN_PTX void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row, KN_LINE)
{
    simt::ldmatrix(line, r, 4, row, true);
}

KN_PTX void stmatrix_x4(void *row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3, KN_LINE)
{
    const uint32_t r[4] = {r0, r1, r2, r3};
    simt::stmatrix(line, r, 4, row);
}

KN_PTX void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, KN_LINE)
{
    const uint32_t b[2] = {b0, b1};
    simt::mma_bf16(line, d, a, b);
}

KN_PTX void cp_async16(void *shared, const void *global, uint32_t bytes)
{
    simt::cp_async(shared, global, 16, bytes);
}

KN_PTX void cp_async_commit(void)
{
    simt::cp_async_commit();
}

template <int PENDING> KN_PTX void cp_async_wait(void)
{
    simt::cp_async_wait(PENDING);
}

/* ---- barriers ---- */

KN_PTX void bar_sync(int id, int threads, KN_LINE)
{
    simt::named_barrier(id, (uint32_t)threads, true, line);
}

KN_PTX void bar_arrive(int id, int threads, KN_LINE)
{
    simt::named_barrier(id, (uint32_t)threads, false, line);
}

KN_PTX void mbarrier_init(uint64_t *barrier, uint32_t count)
{
    simt::mbarrier_init(barrier, count);
}

KN_PTX void fence_mbarrier_init(void)
{
    simt::fence_proxy_async();
}

KN_PTX void mbarrier_arrive(uint64_t *barrier)
{
    simt::mbarrier_arrive(barrier, 1);
}

KN_PTX void mbarrier_arrive_expect(uint64_t *barrier, uint32_t bytes)
{
    simt::mbarrier_expect(barrier, bytes);
    simt::mbarrier_arrive(barrier, 1);
}

KN_PTX void mbarrier_arrive_cluster(uint64_t *barrier, uint32_t rank)
{
    simt::mbarrier_arrive(simt::map_to_rank(barrier, rank), 1);
}

KN_PTX bool mbarrier_try_wait(uint64_t *barrier, uint32_t parity)
{
    return simt::mbarrier_wait_some(barrier, parity, true);
}

/* ---- the asynchronous proxy ---- */

KN_PTX void fence_proxy_async(void)
{
    simt::fence_proxy_async();
}

KN_PTX void tma_load_3d(void *shared, const tensor_map *map, int x, int y, int z, uint64_t *barrier)
{
    const int at[] = {x, y, z};
    simt::tensor_load(shared, map, at, 3, barrier, 0);
}

KN_PTX void tma_load_3d_multicast(void *shared, const tensor_map *map, int x, int y, int z, uint64_t *barrier,
                                  uint16_t ranks)
{
    const int at[] = {x, y, z};
    simt::tensor_load(shared, map, at, 3, barrier, ranks);
}

KN_PTX void tma_store_3d(const tensor_map *map, const void *shared, int x, int y, int z)
{
    const int at[] = {x, y, z};
    simt::tensor_store(map, shared, at, 3);
}

KN_PTX void bulk_prefetch(const void *global, uint32_t bytes)
{
    simt::bulk_prefetch(global, bytes);
}

KN_PTX void bulk_commit(void)
{
    simt::bulk_commit();
}

template <int PENDING> KN_PTX void bulk_wait_read(void)
{
    simt::bulk_wait_read(PENDING);
}

/* ---- warps, registers, clusters ---- */

template <int COUNT> KN_PTX void setmaxnreg_inc(KN_LINE)
{
    simt::set_registers(line, COUNT, true);
}

template <int COUNT> KN_PTX void setmaxnreg_dec(KN_LINE)
{
    simt::set_registers(line, COUNT, false);
}

KN_PTX uint32_t cluster_rank(void)
{
    return simt::cluster_rank();
}

KN_PTX void cluster_arrive(void)
{
    simt::cluster_arrive();
}

KN_PTX void cluster_wait(void)
{
    simt::cluster_wait();
}

/* ---- matrices of a warpgroup ---- */

KN_PTX void wgmma_fence(void)
{
    simt::wgmma_fence();
}

KN_PTX void wgmma_commit(KN_LINE)
{
    simt::wgmma_commit(line);
}

template <int PENDING> KN_PTX void wgmma_wait(KN_LINE)
{
    simt::wgmma_wait(line, PENDING);
}

KN_PTX void wgmma_hold(float &)
{
}

KN_PTX void wgmma_hold(uint32_t &)
{
}

template <int N> KN_PTX void wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate, KN_LINE)
{
    simt::wgmma_operands o = {d, N, accumulate, nullptr, a, b, false, false};
    simt::wgmma(line, o);
}

template <int N>
KN_PTX void wgmma_rs_mn(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate, KN_LINE)
{
    simt::wgmma_operands o = {d, N, accumulate, a, 0, b, false, true};
    simt::wgmma(line, o);
}

#undef KN_LINE

KN_CUDA_END

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * PTX instructions, each wrapped once. A wrapper is one instruction under its own name; which of them make a
 * pipeline or a tile is for the kernels to say. Names in quotes are sections of the PTX ISA manual (9.0).
 *
 * Shared memory is named by ordinary pointers, tensor maps by their address in grid constants or global memory.
 * Everything marked "asynchronous" has no effect that may be relied on before the wait named beside it.
 *
 * tests/simt runs the same kernels on the host: with KN_SIMT its header gives every function below that holds an
 * instruction, with the meaning the manual documents (between KN_CUDA_BEGIN and KN_CUDA_END); what is built from them
 * is shared, at the end. */
#ifndef KN_KERNELS_CUDA_PTX_CUH
#define KN_KERNELS_CUDA_PTX_CUH

#include <stdint.h>

#include "kernels/cuda/launch.h"

KN_CUDA_BEGIN

/* A tensor map (CUtensorMap), made by kernels/cuda/sm90/tensor_map.cuh, opaque here. "Tensors", "Tensor-map". */
typedef struct alignas(64) tensor_map {
    uint64_t opaque[16];
} tensor_map;

KN_CUDA_END

#ifdef KN_SIMT
#include "tests/simt/ptx.h"
#else

KN_CUDA_BEGIN

#define KN_PTX static __device__ __forceinline__

/* Address of a shared variable in the shared window. "State Spaces: shared", "cvta". */
KN_PTX uint32_t shared_address(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* ---- arithmetic ---- */

/* 2^x, at most 2 units in the last place, subnormal results are zero. "ex2". */
KN_PTX float exp2_approx(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* 1 / x, at most 1 unit in the last place; subnormals are zero. "rcp". */
KN_PTX float reciprocal_approx(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Two floats to bf16, round to nearest even; low in the low half. "cvt". */
KN_PTX uint32_t pack_bf16(float low, float high)
{
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

/* ---- matrices of a warp: sm_80 ---- */

/* Four 8x8 matrices of 16-bit elements: lanes 8i .. 8i+7 give the addresses of the rows of matrix i
 * (16 bytes each, 16-byte aligned); lane l receives elements 2 (l % 4) and + 1 of row l / 4 of matrix i in r[i].
 * All lanes take part. "Warp-level matrix load instruction: ldmatrix". */
KN_PTX void ldmatrix_x4(uint32_t (&r)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* The same, each matrix transposed on the way. */
KN_PTX void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* The inverse of ldmatrix_x4; sm_90. "Warp-level matrix store instruction: stmatrix". */
KN_PTX void stmatrix_x4(void *row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)), "r"(r0),
                 "r"(r1), "r"(r2), "r"(r3)
                 : "memory");
}

/* d += a b, a 16x16 row-major, b 16x8 column-major, bf16, d f32. Lane l with g = l / 4, t = 2 (l % 4) holds
 *   a[0] (g, t..t+1)   a[1] (g+8, t..)   a[2] (g, t+8..)   a[3] (g+8, t+8..)
 *   b0 (t..t+1, g)   b1 (t+8.., g)   d[0..1] (g, t..t+1)   d[2..3] (g+8, t..t+1)
 * "Matrix fragments for mma.m16n8k16 with floating point type". */
KN_PTX void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Asynchronous: 16 bytes from global to shared memory, of which the first `bytes` are read and the rest are zero; both
 * 16-byte aligned. "Data movement and conversion instructions: cp.async". */
KN_PTX void cp_async16(void *shared, const void *global, uint32_t bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}

/* Closes the group of this thread's copies since the last one. "cp.async.commit_group". */
KN_PTX void cp_async_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until at most PENDING of this thread's newest groups are unfinished; other threads need a barrier besides.
 * "cp.async.wait_group". */
template <int PENDING> KN_PTX void cp_async_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* ---- barriers ---- */

/* Named barrier `id` (1..15; 0 is __syncthreads) of `threads` threads, a multiple of 32. "bar, barrier". */
KN_PTX void bar_sync(int id, int threads)
{
    asm volatile("barrier.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* Counts as arrived and goes on. */
KN_PTX void bar_arrive(int id, int threads)
{
    asm volatile("barrier.arrive.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* An mbarrier in shared memory, 8-byte aligned, whose phase ends after `count` arrivals and when no expected bytes are
 * outstanding. "Parallel synchronization and communication instructions: mbarrier.init". */
KN_PTX void mbarrier_init(uint64_t *barrier, uint32_t count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

/* Makes initialised mbarriers visible to the asynchronous proxy and the cluster. "fence.mbarrier_init". */
KN_PTX void fence_mbarrier_init(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* "mbarrier.arrive", release at CTA scope. */
KN_PTX void mbarrier_arrive(uint64_t *barrier)
{
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

/* Expects `bytes` more in this phase, then arrives. "mbarrier.arrive" with .expect_tx. */
KN_PTX void mbarrier_arrive_expect(uint64_t *barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}

/* Arrives at the barrier in the same place of CTA `rank`'s shared memory. It orders no more than the CTA's own accesses
 * (wider scopes cost a fence of the whole GPU): it says that a buffer was read, not that one was written. "mapa",
 * "mbarrier.arrive" on .shared::cluster. */
KN_PTX void mbarrier_arrive_cluster(uint64_t *barrier, uint32_t rank)
{
    asm volatile("{\n"
                 ".reg .b32 remote;\n"
                 "mapa.shared::cluster.u32 remote, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
                 "}" ::"r"(shared_address(barrier)),
                 "r"(rank)
                 : "memory");
}

/* True once the phase with that parity has ended; may wait a while inside. Acquire at CTA scope. "mbarrier.test_wait,
 * mbarrier.try_wait". */
KN_PTX bool mbarrier_try_wait(uint64_t *barrier, uint32_t parity)
{
    uint32_t done;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
    return done != 0;
}

/* ---- the asynchronous proxy: tensor maps, bulk copies ---- */

/* Orders this thread's earlier accesses to shared memory before later ones of the asynchronous proxy (bulk copies,
 * wgmma). "membar, fence", proxy.async. */
KN_PTX void fence_proxy_async(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* Asynchronous, by one thread: the map's box at (x, y, z), innermost first, into shared memory (128-byte aligned;
 * for 128-byte swizzles 1024); elements outside the tensor become zero. Completes box bytes on `barrier`, always those
 * of the whole box. "cp.async.bulk.tensor". */
KN_PTX void tma_load_3d(void *shared, const tensor_map *map, int x, int y, int z, uint64_t *barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(shared)),
                 "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

/* The same into the same place of every CTA of the cluster whose bit is set in `ranks`, completing the bytes on the
 * barrier in the same place of each. .multicast::cluster. */
KN_PTX void tma_load_3d_multicast(void *shared, const tensor_map *map, int x, int y, int z, uint64_t *barrier,
                                  uint16_t ranks)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(shared)),
                 "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "h"(ranks)
                 : "memory");
}

/* Asynchronous, by one thread: shared memory to the map's box; elements outside the tensor are not written. Written by
 * other threads, the shared memory needs fence_proxy_async in each of them and a barrier before. */
KN_PTX void tma_store_3d(const tensor_map *map, const void *shared, int x, int y, int z)
{
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
                 "r"(shared_address(shared)), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

/* A hint: `bytes` of global memory (both multiples of 16) into the second cache level. "cp.async.bulk.prefetch". */
KN_PTX void bulk_prefetch(const void *global, uint32_t bytes)
{
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
}

/* Closes the group of this thread's bulk stores since the last one. "cp.async.bulk.commit_group". */
KN_PTX void bulk_commit(void)
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* Until at most PENDING of this thread's newest groups have still to read shared memory.
 * "cp.async.bulk.wait_group". */
template <int PENDING> KN_PTX void bulk_wait_read(void)
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

/* ---- warps, registers, clusters ---- */

/* Registers per thread from here on, a multiple of 8, said by every warp of a warpgroup. _inc waits until they are
 * free. "Miscellaneous instructions: setmaxnreg". */
template <int COUNT> KN_PTX void setmaxnreg_inc(void)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT> KN_PTX void setmaxnreg_dec(void)
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

/* This CTA's number in its cluster. "Special registers: %cluster_ctarank". */
KN_PTX uint32_t cluster_rank(void)
{
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* All threads of all CTAs of the cluster. "barrier.cluster". */
KN_PTX void cluster_arrive(void)
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

KN_PTX void cluster_wait(void)
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* ---- matrices of a warpgroup: sm_90a ---- */

/* Before the first wgmma that reads registers (d, or a) written by other instructions. "wgmma.fence". */
KN_PTX void wgmma_fence(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/* Closes the group of the warpgroup's wgmmas since the last one. "wgmma.commit_group". */
KN_PTX void wgmma_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most PENDING of the newest groups are unfinished. "wgmma.wait_group". */
template <int PENDING> KN_PTX void wgmma_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/* Keeps the compiler from moving reads or writes of `value` across an asynchronous wgmma; no instruction. */
KN_PTX void wgmma_hold(float &value)
{
    asm volatile("" : "+f"(value)::"memory");
}

KN_PTX void wgmma_hold(uint32_t &value)
{
    asm volatile("" : "+r"(value)::"memory");
}

/* Asynchronous, by a warpgroup: d = a b + (accumulate ? d : 0), d 64xN f32, a 64x16, b 16xN bf16. Warp w of the four
 * holds rows 16w .. 16w+15 of d and a: d[4j..4j+3] is the fragment of mma_bf16 for columns 8j .. 8j+7, and a (RS)
 * that of its 16x16 block. Descriptors as of wgmma_descriptor.
 *   wgmma_ss<N>     a and b in shared memory, both K-major: rows of a, columns of b contiguous along k
 *   wgmma_rs_mn<N>  a in registers, b in shared memory, MN-major: rows k contiguous along n
 * Until wgmma_wait, d and a may be neither read nor written. "wgmma.mma_async". */
template <int N> __device__ __forceinline__ void wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate);
template <int N>
__device__ __forceinline__ void wgmma_rs_mn(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate);

#define KN_D8(i)                                                                                                       \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]),        \
        "+f"(d[i + 7])
#define KN_D32(i) KN_D8(i), KN_D8(i + 8), KN_D8(i + 16), KN_D8(i + 24)
#define KN_D64(i) KN_D32(i), KN_D32(i + 32)
#define KN_R32                                                                                                         \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "             \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define KN_R64                                                                                                         \
    KN_R32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "              \
           "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define KN_R88                                                                                                         \
    KN_R64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "              \
           "%82, %83, %84, %85, %86, %87"
#define KN_R128                                                                                                        \
    KN_R88 ", %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, "              \
           "%105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, "          \
           "%121, %122, %123, %124, %125, %126, %127"

/* n, then the registers' list and operands, then the numbers of the operands that follow them. */
#define KN_WGMMA_SS(n, names, registers, a_, b_, p_)                                                                   \
    template <> __device__ __forceinline__ void wgmma_ss<n>(float(&d)[n / 2], uint64_t a, uint64_t b, bool accumulate) \
    {                                                                                                                  \
        asm volatile("{\n"                                                                                             \
                     ".reg .pred p;\n"                                                                                 \
                     "setp.ne.b32 p, " p_ ", 0;\n"                                                                     \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" names "}, " a_ ", " b_               \
                     ", p, 1, 1, 0, 0;\n"                                                                              \
                     "}"                                                                                               \
                     : registers                                                                                       \
                     : "l"(a), "l"(b), "r"((int)accumulate));                                                          \
    }
#define KN_WGMMA_RS_MN(n, names, registers, a_, b_, p_)                                                                \
    template <>                                                                                                        \
    __device__ __forceinline__ void wgmma_rs_mn<n>(float(&d)[n / 2], const uint32_t(&a)[4], uint64_t b,                \
                                                   bool accumulate)                                                    \
    {                                                                                                                  \
        asm volatile("{\n"                                                                                             \
                     ".reg .pred p;\n"                                                                                 \
                     "setp.ne.b32 p, " p_ ", 0;\n"                                                                     \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" names "}, {" a_ "}, " b_             \
                     ", p, 1, 1, 1;\n"                                                                                 \
                     "}"                                                                                               \
                     : registers                                                                                       \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));                      \
    }
#define KN_LIST(...) __VA_ARGS__
KN_WGMMA_SS(128, KN_R64, KN_LIST(KN_D64(0)), "%64", "%65", "%66")
KN_WGMMA_SS(176, KN_R88, KN_LIST(KN_D64(0), KN_D8(64), KN_D8(72), KN_D8(80)), "%88", "%89", "%90")
KN_WGMMA_SS(256, KN_R128, KN_LIST(KN_D64(0), KN_D64(64)), "%128", "%129", "%130")
KN_WGMMA_RS_MN(64, KN_R32, KN_LIST(KN_D32(0)), "%32, %33, %34, %35", "%36", "%37")
KN_WGMMA_RS_MN(128, KN_R64, KN_LIST(KN_D64(0)), "%64, %65, %66, %67", "%68", "%69")
#undef KN_WGMMA_SS
#undef KN_WGMMA_RS_MN
#undef KN_LIST
#undef KN_D8
#undef KN_D32
#undef KN_D64
#undef KN_R32
#undef KN_R64
#undef KN_R88
#undef KN_R128

KN_CUDA_END

#endif /* KN_SIMT */

KN_CUDA_BEGIN

/* ---- built from the above ---- */

/* Until the phase with that parity has ended. A barrier starts in phase 0: waiting for parity 1 first returns at once.
 */
static __device__ __forceinline__ void mbarrier_wait(uint64_t *barrier, uint32_t parity)
{
    while (!mbarrier_try_wait(barrier, parity)) {
    }
}

/* A matrix in shared memory with 128-byte swizzle, as TMA leaves it: rows of 128 bytes (64 bf16), the 16-byte chunk c
 * of row r at chunk c ^ (r % 8), the whole 1024-byte aligned. For wgmma:
 *   K-major   (rows along m or n, 64 of k side by side): leading unused, stride 1024 = eight rows
 *   MN-major  (rows along k, 64 of n side by side): leading = bytes from 64 columns to the next 64, stride 1024
 * A step of 16 along k adds 32 bytes (K-major) or 2048 (MN-major). "Matrix descriptor format", "Strides". */
static __device__ __forceinline__ uint64_t wgmma_descriptor(const void *tile, uint32_t leading_bytes)
{
    uint64_t address = (shared_address(tile) & 0x3ffff) >> 4;
    uint64_t leading = (leading_bytes & 0x3ffff) >> 4;
    uint64_t stride = 1024 >> 4;
    uint64_t swizzle_128 = 1;
    return address | leading << 16 | stride << 32 | swizzle_128 << 62;
}

/* The descriptor `bytes` further, a multiple of 16. */
static __device__ __forceinline__ uint64_t wgmma_advance(uint64_t descriptor, uint32_t bytes)
{
    return descriptor + (bytes >> 4);
}

KN_CUDA_END

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * Device-side CUDA C++ for the executor: built-in variables, barriers, warp functions, atomics, intrinsics. Included by
 * include/cuda_runtime.h. Names and meanings are those of the CUDA C++ Programming Guide and the CUDA Math API. */
#ifndef KN_TESTS_SIMT_DEVICE_H
#define KN_TESTS_SIMT_DEVICE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "tests/simt/vector_types.h"

namespace simt
{

/* The same answer all through one thread's life, which is all that `const` needs. */
uint3 thread_index() __attribute__((const));
uint3 block_index() __attribute__((const));
dim3 block_size() __attribute__((const));
dim3 grid_size() __attribute__((const));

void sync_threads(int line);
int sync_threads_vote(int line, int predicate, int what); /* what: 0 count, 1 and, 2 or */
void named_barrier(int id, uint32_t count, bool wait, int line);
void cluster_arrive();
void cluster_wait();
void sync_warp(int line, uint32_t mask);
enum { SHUFFLE_INDEX, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR };
uint64_t shuffle_bits(int line, uint32_t mask, uint64_t value, int operand, int width, int mode);
uint32_t ballot_sync(int line, uint32_t mask, bool predicate);
uint32_t match_any(int line, uint32_t mask, uint64_t value);
enum { REDUCE_ADD, REDUCE_MIN, REDUCE_MAX, REDUCE_SMIN, REDUCE_SMAX, REDUCE_AND, REDUCE_OR, REDUCE_XOR };
uint32_t reduce_bits(int line, uint32_t mask, uint32_t value, int how);
uint32_t active_mask();
void atomic_access(void *address, size_t bytes);
void load_check(const void *address, size_t bytes);
void store_check(void *address, size_t bytes);
void pause_thread();
void trap(const char *text) __attribute__((noreturn));
uint64_t clock_ticks();

template <typename T> T shuffle(int line, uint32_t mask, T value, int operand, int width, int mode)
{
    static_assert(sizeof(T) <= 8, "shuffles move up to 8 bytes");
    uint64_t bits = 0;
    memcpy((void *)&bits, (const void *)&value, sizeof value);
    bits = shuffle_bits(line, mask, bits, operand, width, mode);
    T result;
    memcpy((void *)&result, (const void *)&bits, sizeof result);
    return result;
}

template <typename T> uint64_t bits_of(T value)
{
    uint64_t bits = 0;
    memcpy((void *)&bits, (const void *)&value, sizeof value);
    return bits;
}

template <typename T> T reduce(int line, uint32_t mask, T value, int how)
{
    static_assert(sizeof(T) == 4, "redux works on 32 bits");
    return (T)reduce_bits(line, mask, (uint32_t)value, how);
}

template <typename T> struct plain {
    typedef T type;
};
template <typename T> using same_as = typename plain<T>::type;

} // namespace simt

/* ---- words ---- */

#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __cluster_dims__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_assume(x) ((void)0)

#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_size())
#define gridDim (::simt::grid_size())
static const int warpSize = 32;

#define __syncthreads() ::simt::sync_threads(__LINE__)
#define __syncthreads_count(p) ::simt::sync_threads_vote(__LINE__, (p), 0)
#define __syncthreads_and(p) ::simt::sync_threads_vote(__LINE__, (p), 1)
#define __syncthreads_or(p) ::simt::sync_threads_vote(__LINE__, (p), 2)

/* Lines tell meetings apart, so a call inside a helper is judged by the helper's line. */
#define __syncwarp                                                                                                     \
    ::simt::warp_barrier                                                                                               \
    {                                                                                                                  \
        __LINE__                                                                                                       \
    }
#define __shfl_sync(...) ::simt::shfl(__LINE__, ::simt::SHUFFLE_INDEX, __VA_ARGS__)
#define __shfl_up_sync(...) ::simt::shfl(__LINE__, ::simt::SHUFFLE_UP, __VA_ARGS__)
#define __shfl_down_sync(...) ::simt::shfl(__LINE__, ::simt::SHUFFLE_DOWN, __VA_ARGS__)
#define __shfl_xor_sync(...) ::simt::shfl(__LINE__, ::simt::SHUFFLE_XOR, __VA_ARGS__)
#define __ballot_sync(mask, p) ::simt::ballot_sync(__LINE__, mask, (p) != 0)
#define __any_sync(mask, p) (::simt::ballot_sync(__LINE__, mask, (p) != 0) != 0)
#define __all_sync(mask, p) (::simt::ballot_sync(__LINE__, mask, !(p)) == 0)
#define __match_any_sync(mask, v) ::simt::match_any(__LINE__, mask, ::simt::bits_of(v))
#define __activemask() ::simt::active_mask()
#define __reduce_add_sync(mask, v) ::simt::reduce(__LINE__, mask, v, ::simt::REDUCE_ADD)
#define __reduce_min_sync(mask, v) ::simt::reduce_minmax(__LINE__, mask, v, false)
#define __reduce_max_sync(mask, v) ::simt::reduce_minmax(__LINE__, mask, v, true)
#define __reduce_and_sync(mask, v) ::simt::reduce(__LINE__, mask, v, ::simt::REDUCE_AND)
#define __reduce_or_sync(mask, v) ::simt::reduce(__LINE__, mask, v, ::simt::REDUCE_OR)
#define __reduce_xor_sync(mask, v) ::simt::reduce(__LINE__, mask, v, ::simt::REDUCE_XOR)

namespace simt
{

struct warp_barrier {
    int line;
    void operator()(uint32_t mask = 0xffffffffu) const
    {
        sync_warp(line, mask);
    }
};

template <typename T> T shfl(int line, int mode, uint32_t mask, T value, int operand, int width = 32)
{
    return shuffle(line, mask, value, operand, width, mode);
}

inline int reduce_minmax(int line, uint32_t mask, int value, bool max)
{
    return reduce(line, mask, value, max ? REDUCE_SMAX : REDUCE_SMIN);
}
inline unsigned reduce_minmax(int line, uint32_t mask, unsigned value, bool max)
{
    return reduce(line, mask, value, max ? REDUCE_MAX : REDUCE_MIN);
}

} // namespace simt

/* ---- memory ---- */

/* Shared memory has addresses of its own; this is what cvta.to.shared answers. */
namespace simt
{
uint32_t shared_address(const void *pointer);
}
static inline size_t __cvta_generic_to_shared(const void *pointer)
{
    return simt::shared_address(pointer);
}

template <typename T> inline T simt_load(const T *p)
{
    simt::load_check(p, sizeof *p);
    return *p;
}
template <typename T> inline void simt_store(T *p, simt::same_as<T> value)
{
    simt::store_check(p, sizeof *p);
    *p = value;
}
#define __ldg simt_load
#define __ldcs simt_load
#define __ldca simt_load
#define __ldcg simt_load
#define __ldlu simt_load
#define __ldcv simt_load
#define __stcs simt_store
#define __stcg simt_store
#define __stwb simt_store
#define __stwt simt_store

/* Fences order one thread's own accesses as others see them; alone they make nothing happen before anything. */
static inline void __threadfence()
{
}
static inline void __threadfence_block()
{
}
static inline void __threadfence_system()
{
}
static inline void __nanosleep(unsigned)
{
    simt::pause_thread();
}
static inline void __trap()
{
    simt::trap("__trap()");
}
static inline long long clock64()
{
    return (long long)simt::clock_ticks();
}

template <typename T, typename F> __attribute__((noinline, no_sanitize("thread"))) T simt_atomic(T *address, F change)
{
    simt::atomic_access(address, sizeof *address);
    T old = *address;
    *address = change(old);
    return old;
}
template <typename T> inline T atomicAdd(T *address, simt::same_as<T> value)
{
    return simt_atomic(address, [&](T old) { return (T)(old + value); });
}
template <typename T> inline T atomicSub(T *address, simt::same_as<T> value)
{
    return simt_atomic(address, [&](T old) { return (T)(old - value); });
}
template <typename T> inline T atomicMax(T *address, simt::same_as<T> value)
{
    return simt_atomic(address, [&](T old) { return old > value ? old : value; });
}
template <typename T> inline T atomicMin(T *address, simt::same_as<T> value)
{
    return simt_atomic(address, [&](T old) { return old < value ? old : value; });
}
template <typename T> inline T atomicExch(T *address, simt::same_as<T> value)
{
    return simt_atomic(address, [&](T) { return value; });
}
template <typename T> inline T atomicOr(T *address, simt::same_as<T> value)
{
    return simt_atomic(address, [&](T old) { return (T)(old | value); });
}
template <typename T> inline T atomicAnd(T *address, simt::same_as<T> value)
{
    return simt_atomic(address, [&](T old) { return (T)(old & value); });
}
template <typename T> inline T atomicXor(T *address, simt::same_as<T> value)
{
    return simt_atomic(address, [&](T old) { return (T)(old ^ value); });
}
template <typename T> inline T atomicCAS(T *address, simt::same_as<T> expected, simt::same_as<T> value)
{
    return simt_atomic(address, [&](T old) { return old == expected ? value : old; });
}

#endif

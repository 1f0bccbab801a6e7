/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading and writing elements of any type, eight side by side where memory allows, and sums over a block whose order
 * is fixed. A value's path through here does not depend on its neighbours: eight at once and one by one give the same
 * bits. */
#ifndef KN_KERNELS_CUDA_NUMBERS_CUH
#define KN_KERNELS_CUDA_NUMBERS_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ptx.cuh"

KN_CUDA_BEGIN

enum { LANES = 32, VECTOR = 8 };

__device__ static inline float from_bits(uint32_t bits)
{
    return __uint_as_float(bits);
}

__device__ static inline float widen_bf16(uint16_t value)
{
    return from_bits((uint32_t)value << 16);
}

__device__ static inline uint16_t narrow_bf16(float value)
{
    return (uint16_t)pack_bf16(value, 0.0f);
}

__device__ static inline float widen_f16(uint16_t value)
{
    const uint32_t sign = (uint32_t)(value & 0x8000u) << 16;
    const uint32_t exponent = (value >> 10) & 0x1fu, fraction = value & 0x3ffu;
    if (exponent == 0x1f) return from_bits(sign | 0x7f800000u | fraction << 13);
    if (exponent != 0) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    const float subnormal = (float)fraction * 0x1p-24f;
    return sign ? -subnormal : subnormal;
}

__device__ static inline float load(const void *data, kn_dtype dtype, int64_t index)
{
    if (dtype == KN_F32) return ((const float *)data)[index];
    const uint16_t half = ((const uint16_t *)data)[index];
    return dtype == KN_BF16 ? widen_bf16(half) : widen_f16(half);
}

/* dtype is KN_F32 or KN_BF16. */
__device__ static inline void store(void *data, kn_dtype dtype, int64_t index, float value)
{
    if (dtype == KN_F32)
        ((float *)data)[index] = value;
    else
        ((uint16_t *)data)[index] = narrow_bf16(value);
}

__device__ static inline bool aligned16(const void *pointer)
{
    return ((uintptr_t)pointer & 15) == 0;
}

/* Elements [index, index + count), count <= VECTOR; the rest of `values` is zero. */
__device__ static inline void load8(const void *data, kn_dtype dtype, int64_t index, int count, float (&values)[VECTOR])
{
    const char *at = (const char *)data + index * (dtype == KN_F32 ? 4 : 2);
    if (count >= VECTOR && aligned16(at) && dtype != KN_F16) {
        if (dtype == KN_F32) {
            const float4 low = ((const float4 *)at)[0], high = ((const float4 *)at)[1];
            values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
            values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
        } else {
            const uint4 packed = *(const uint4 *)at;
            const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                values[2 * i] = from_bits(words[i] << 16);
                values[2 * i + 1] = from_bits(words[i] & 0xffff0000u);
            }
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < VECTOR; i++) values[i] = i < count ? load(data, dtype, index + i) : 0.0f;
}

__device__ static inline void store8(void *data, kn_dtype dtype, int64_t index, int count,
                                     const float (&values)[VECTOR])
{
    char *at = (char *)data + index * (dtype == KN_F32 ? 4 : 2);
    if (count >= VECTOR && aligned16(at)) {
        if (dtype == KN_F32) {
            ((float4 *)at)[0] = make_float4(values[0], values[1], values[2], values[3]);
            ((float4 *)at)[1] = make_float4(values[4], values[5], values[6], values[7]);
        } else {
            *(uint4 *)at = make_uint4(pack_bf16(values[0], values[1]), pack_bf16(values[2], values[3]),
                                      pack_bf16(values[4], values[5]), pack_bf16(values[6], values[7]));
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < VECTOR; i++)
        if (i < count) store(data, dtype, index + i, values[i]);
}

__host__ __device__ static inline int minimum(int64_t a, int64_t b)
{
    return (int)(a < b ? a : b);
}

__device__ static inline float silu(float x)
{
    return x / (1.0f + expf(-x));
}

/* 0.5 x (1 + tanh u) = x / (1 + exp(-2 u)): the same function without the cancellation. */
__device__ static inline float gelu_tanh(float x)
{
    const float u = 0.797884560802865356f * (x + 0.044715f * x * x * x);
    return x / (1.0f + expf(-2.0f * u));
}

/* Sum over the block's threads, the same value in each. `partial` is [LANES] shared memory. Order: a butterfly in each
 * warp, then one over the warps. */
__device__ static inline float block_sum(float value, float *partial)
{
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, warps = blockDim.x / LANES;
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    __syncthreads(); /* the last sum may still be read */
    if (lane == 0) partial[warp] = value;
    __syncthreads();
    value = lane < warps ? partial[lane] : 0.0f;
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

/* The vector that belongs to a row of the call. */
__device__ static inline const float *row_vector(const kn_row_table &table, int64_t row)
{
    return table.data + (table.row_index ? table.row_index[row] * table.stride : 0);
}

__device__ static inline int64_t pixel_of(const kn_frame &frame, int64_t y, int64_t x)
{
    return (y * frame.row_stride + x) * frame.channels;
}

/* The thread's place in a one-dimensional grid. */
__device__ static inline int64_t flat_index()
{
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

KN_CUDA_END

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * Half precision as CUDA's cuda_fp16.h has it: conversions round to nearest even. The part that this project uses. */
#ifndef KN_TESTS_SIMT_INCLUDE_CUDA_FP16_H
#define KN_TESTS_SIMT_INCLUDE_CUDA_FP16_H

#include <cuda_runtime.h>

struct __half {
    unsigned short bits;
    __half() = default;
    inline __half(float value);
    inline operator float() const;
};

struct alignas(4) __half2 {
    __half x, y;
};

typedef __half half;
typedef __half2 half2;

static inline float simt_half_float(unsigned short h)
{
    const unsigned sign = (unsigned)(h & 0x8000u) << 16, exponent = h >> 10 & 31u, fraction = h & 0x3ffu;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    const float magnitude =
        exponent ? ldexpf((float)(1024 + fraction), (int)exponent - 25) : ldexpf((float)fraction, -24);
    return sign ? -magnitude : magnitude;
}
static inline unsigned short simt_half_bits(float value)
{
    const unsigned u = __float_as_uint(value), sign = u >> 16 & 0x8000u;
    const float a = fabsf(value);
    if (a != a) return 0x7fff;
    if (a == 0.0f) return (unsigned short)sign;
    if (a >= 65520.0f) return (unsigned short)(sign | 0x7c00u);
    int exponent;
    frexpf(a, &exponent);
    if (exponent < -13) exponent = -13;                                    /* subnormal: steps of 2^-24 */
    const unsigned steps = (unsigned)nearbyintf(ldexpf(a, 11 - exponent)); /* 1024..2048, or less when subnormal */
    const unsigned biased = (unsigned)(exponent + 13);
    return (unsigned short)(sign | (biased * 1024 + steps));
}

inline __half::__half(float value) : bits(simt_half_bits(value))
{
}
inline __half::operator float() const
{
    return simt_half_float(bits);
}

static inline __half __float2half(float x)
{
    return __half(x);
}
static inline __half __float2half_rn(float x)
{
    return __half(x);
}
static inline float __half2float(__half x)
{
    return (float)x;
}
static inline unsigned short __half_as_ushort(__half x)
{
    return x.bits;
}
static inline __half __ushort_as_half(unsigned short bits)
{
    __half x;
    x.bits = bits;
    return x;
}
static inline __half2 __floats2half2_rn(float x, float y)
{
    return {__half(x), __half(y)};
}
static inline float2 __half22float2(__half2 v)
{
    return {(float)v.x, (float)v.y};
}

#endif

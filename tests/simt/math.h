/* SPDX-License-Identifier: Apache-2.0
 *
 * Arithmetic intrinsics of the CUDA Math API. Those that round once are exact here. Those documented as approximations
 * are computed by the C library's float functions, which are closer to the truth than the bound beside each; a kernel
 * that needs more than the bound cannot be found out here, only by its tolerance. */
#ifndef KN_TESTS_SIMT_MATH_H
#define KN_TESTS_SIMT_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline unsigned __float_as_uint(float x)
{
    unsigned u;
    memcpy(&u, &x, sizeof u);
    return u;
}
static inline int __float_as_int(float x)
{
    return (int)__float_as_uint(x);
}
static inline float __uint_as_float(unsigned u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}
static inline float __int_as_float(int i)
{
    return __uint_as_float((unsigned)i);
}

/* ---- rounded once ---- */
static inline float __fadd_rn(float a, float b)
{
    return a + b;
}
static inline float __fsub_rn(float a, float b)
{
    return a - b;
}
static inline float __fmul_rn(float a, float b)
{
    return a * b;
}
static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
static inline float __frcp_rn(float a)
{
    return 1.0f / a;
}
static inline float __fsqrt_rn(float a)
{
    return sqrtf(a);
}
static inline double __dadd_rn(double a, double b)
{
    return a + b;
}
static inline double __dmul_rn(double a, double b)
{
    return a * b;
}
static inline float __int2float_rn(int x)
{
    return (float)x;
}
static inline float __uint2float_rn(unsigned x)
{
    return (float)x;
}
static inline int __float2int_rn(float x) /* saturates; NaN gives 0 */
{
    if (x != x) return 0;
    if (x >= 2147483648.0f) return 0x7fffffff;
    if (x < -2147483648.0f) return (int)0x80000000u;
    return (int)nearbyintf(x);
}
static inline int __float2int_rd(float x)
{
    return __float2int_rn(floorf(x));
}
static inline int __float2int_ru(float x)
{
    return __float2int_rn(ceilf(x));
}
static inline int __float2int_rz(float x)
{
    return __float2int_rn(truncf(x));
}
static inline unsigned __float2uint_rn(float x)
{
    if (!(x > 0.0f)) return 0;
    return x >= 4294967296.0f ? 0xffffffffu : (unsigned)nearbyintf(x);
}
static inline float __saturatef(float x) /* NaN gives 0 */
{
    return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f;
}

/* ---- approximations ---- */
static inline float simt_flush(float x)
{
    return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x;
}
static inline float simt_expf(float x) /* 2 + floor(|1.173 x|) ulp: ex2.approx of a rounded product */
{
    return exp2f(x * 1.442695041f);
}
static inline float simt_exp10f(float x)
{
    return exp2f(x * 3.321928095f);
}
static inline float simt_logf(float x)
{
    return log2f(x) * 0.693147181f;
}
static inline float simt_log2f(float x)
{
    return log2f(x);
}
static inline float simt_sinf(float x)
{
    return sinf(x);
}
static inline float simt_cosf(float x)
{
    return cosf(x);
}
static inline float simt_powf(float x, float y)
{
    return exp2f(y * log2f(x));
}
/* The C library has functions of these names that nobody may call; macros keep out of their way. */
#define __expf simt_expf
#define __exp10f simt_exp10f
#define __logf simt_logf
#define __log2f simt_log2f
#define __sinf simt_sinf
#define __cosf simt_cosf
#define __powf simt_powf
static inline float __fdividef(float a, float b) /* 2 ulp; 0 for 2^126 < |b| < 2^128 */
{
    return fabsf(b) > 0x1p126f && !isinf(b) ? 0.0f * a : a / b;
}
static inline float rsqrtf(float x) /* 2 ulp */
{
    return 1.0f / sqrtf(x);
}
static inline double rsqrt(double x)
{
    return 1.0 / sqrt(x);
}
static inline float __frsqrt_rn(float x)
{
    return (float)(1.0 / sqrt((double)x));
}
static inline float normcdff(float x)
{
    return 0.5f * erfcf(-x * 0.707106781f);
}
static inline void simt_sincospi(float x, float *s, float *c)
{
    *s = (float)sin((double)x * M_PI);
    *c = (float)cos((double)x * M_PI);
}
#define sincospif simt_sincospi

/* ---- bits ---- */
static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
static inline int __popcll(unsigned long long x)
{
    return __builtin_popcountll(x);
}
static inline int __clz(int x)
{
    return x ? __builtin_clz((unsigned)x) : 32;
}
static inline int __clzll(long long x)
{
    return x ? __builtin_clzll((unsigned long long)x) : 64;
}
static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
static inline unsigned __brev(unsigned x)
{
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (x >> i & 1u) << (31 - i);
    return r;
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector)
{
    const uint64_t both = (uint64_t)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned pick = selector >> (4 * i);
        unsigned byte = (unsigned)(both >> (8 * (pick & 7))) & 0xff;
        if (pick & 8) byte = byte & 0x80 ? 0xff : 0;
        r |= byte << (8 * i);
    }
    return r;
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift)
{
    return (unsigned)(((uint64_t)high << 32 | low) << (shift & 31) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift)
{
    return (unsigned)(((uint64_t)high << 32 | low) >> (shift & 31));
}
static inline int __mul24(int a, int b)
{
    return (int)((unsigned)(a << 8 >> 8) * (unsigned)(b << 8 >> 8));
}
static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return (unsigned)((uint64_t)a * b >> 32);
}
static inline int __mulhi(int a, int b)
{
    return (int)((int64_t)a * b >> 32);
}

/* ---- min and max, in every mixture that CUDA overloads ---- */
#define KN_MIN_MAX(type)                                                                                               \
    static inline type min(type a, type b)                                                                             \
    {                                                                                                                  \
        return b < a ? b : a;                                                                                          \
    }                                                                                                                  \
    static inline type max(type a, type b)                                                                             \
    {                                                                                                                  \
        return a < b ? b : a;                                                                                          \
    }
KN_MIN_MAX(int)
KN_MIN_MAX(unsigned)
KN_MIN_MAX(long)
KN_MIN_MAX(unsigned long)
KN_MIN_MAX(long long)
KN_MIN_MAX(unsigned long long)
#undef KN_MIN_MAX
static inline float min(float a, float b)
{
    return fminf(a, b);
}
static inline float max(float a, float b)
{
    return fmaxf(a, b);
}
static inline double min(double a, double b)
{
    return fmin(a, b);
}
static inline double max(double a, double b)
{
    return fmax(a, b);
}

#endif

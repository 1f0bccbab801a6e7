/* SPDX-License-Identifier: Apache-2.0
 *
 * One vector of floats, as wide as the tier: 8 lanes with AVX2, 16 with
 * AVX-512. The sources in this folder are written once against these names and
 * compiled once per tier.
 *
 * A short row end is loaded and stored under a mask, so every element of a row
 * goes through the same instructions wherever its row lies. */
#ifndef KN_KERNELS_CPU_VEC_H
#define KN_KERNELS_CPU_VEC_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "base/half.h"
#include "kernels/cpu.h"

#define KN_JOIN2(a, b) a##_##b
#define KN_JOIN(a, b) KN_JOIN2(a, b)
/* name_avx2, name_avx512, ...: external names of one tier. */
#define KN_TIERED(name) KN_JOIN(name, KN_TIER)

#define KN_INLINE static inline __attribute__((always_inline, unused))

#if defined(KN_TIER_AVX2)

enum { VL = 8 };
typedef __m256 vf;

KN_INLINE vf v_set1(float x)
{
    return _mm256_set1_ps(x);
}
KN_INLINE vf v_zero(void)
{
    return _mm256_setzero_ps();
}
KN_INLINE vf v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
KN_INLINE void v_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x);
}
KN_INLINE vf v_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
KN_INLINE vf v_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
KN_INLINE vf v_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
KN_INLINE vf v_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
KN_INLINE vf v_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
} /* a b + c */
KN_INLINE vf v_fnma(vf a, vf b, vf c)
{
    return _mm256_fnmadd_ps(a, b, c);
} /* c - a b */
KN_INLINE vf v_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
KN_INLINE vf v_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
KN_INLINE vf v_sqrt(vf a)
{
    return _mm256_sqrt_ps(a);
}
KN_INLINE vf v_round(vf a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* x 2^n for integral n in [-126, 127]. */
KN_INLINE vf v_scale_exponent(vf x, vf n)
{
    __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(x, _mm256_castsi256_ps(bits));
}

KN_INLINE float v_sum(vf a)
{
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

KN_INLINE float v_max_of(vf a)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

/* The first n lanes, 0 <= n <= VL; the others read as zero and are not touched. */
KN_INLINE __m256i v_mask(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
KN_INLINE vf v_load_n(const float *p, int64_t n)
{
    return _mm256_maskload_ps(p, v_mask(n));
}
KN_INLINE void v_store_n(float *p, vf x, int64_t n)
{
    _mm256_maskstore_ps(p, v_mask(n), x);
}

KN_INLINE vf v_load_bf16(const uint16_t *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

KN_INLINE __m128i v_to_bf16(vf x)
{
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    __m256i top = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(top, top), 0x08);
    return _mm256_castsi256_si128(packed);
}
KN_INLINE void v_store_bf16(uint16_t *p, vf x)
{
    _mm_storeu_si128((__m128i *)p, v_to_bf16(x));
}
KN_INLINE vf v_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

#else /* AVX-512 tiers */

enum { VL = 16 };
typedef __m512 vf;

KN_INLINE vf v_set1(float x)
{
    return _mm512_set1_ps(x);
}
KN_INLINE vf v_zero(void)
{
    return _mm512_setzero_ps();
}
KN_INLINE vf v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
KN_INLINE void v_store(float *p, vf x)
{
    _mm512_storeu_ps(p, x);
}
KN_INLINE vf v_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
KN_INLINE vf v_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
KN_INLINE vf v_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
KN_INLINE vf v_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
KN_INLINE vf v_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
} /* a b + c */
KN_INLINE vf v_fnma(vf a, vf b, vf c)
{
    return _mm512_fnmadd_ps(a, b, c);
} /* c - a b */
KN_INLINE vf v_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
KN_INLINE vf v_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
KN_INLINE vf v_sqrt(vf a)
{
    return _mm512_sqrt_ps(a);
}
KN_INLINE vf v_round(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
KN_INLINE vf v_scale_exponent(vf x, vf n)
{
    return _mm512_scalef_ps(x, n);
}
KN_INLINE float v_sum(vf a)
{
    return _mm512_reduce_add_ps(a);
}
KN_INLINE float v_max_of(vf a)
{
    return _mm512_reduce_max_ps(a);
}

/* The first n lanes, 0 <= n <= VL; the others read as zero and are not touched. */
KN_INLINE __mmask16 v_mask(int64_t n)
{
    return (__mmask16)((1u << n) - 1u);
}
KN_INLINE vf v_load_n(const float *p, int64_t n)
{
    return _mm512_maskz_loadu_ps(v_mask(n), p);
}
KN_INLINE void v_store_n(float *p, vf x, int64_t n)
{
    _mm512_mask_storeu_ps(p, v_mask(n), x);
}

KN_INLINE vf v_load_bf16(const uint16_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

/* Round to nearest even. The instruction of the bf16 tier reads subnormals as zero (ops.h allows it). */
KN_INLINE __m256i v_to_bf16(vf x)
{
#if defined(KN_TIER_AVX512BF16)
    return (__m256i)_mm512_cvtneps_pbh(x);
#else
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
}
KN_INLINE void v_store_bf16(uint16_t *p, vf x)
{
    _mm256_storeu_si256((__m256i *)p, v_to_bf16(x));
}
KN_INLINE vf v_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

#endif

KN_INLINE vf v_load_bf16_n(const uint16_t *p, int64_t n)
{
    uint16_t lanes[VL] = {0};
    memcpy(lanes, p, (size_t)n * sizeof *p);
    return v_load_bf16(lanes);
}

KN_INLINE void v_store_bf16_n(uint16_t *p, vf x, int64_t n)
{
    uint16_t lanes[VL];
    v_store_bf16(lanes, x);
    memcpy(p, lanes, (size_t)n * sizeof *p);
}

/* Elements [i, i + VL) of a row of either activation type; `dtype` is a constant
 * at most call sites, so the choice is made by the compiler. */
KN_INLINE vf v_read(const void *row, kn_dtype dtype, int64_t i)
{
    return dtype == KN_F32 ? v_load((const float *)row + i) : v_load_bf16((const uint16_t *)row + i);
}
KN_INLINE vf v_read_n(const void *row, kn_dtype dtype, int64_t i, int64_t n)
{
    return dtype == KN_F32 ? v_load_n((const float *)row + i, n) : v_load_bf16_n((const uint16_t *)row + i, n);
}
KN_INLINE void v_write(void *row, kn_dtype dtype, int64_t i, vf x)
{
    if (dtype == KN_F32)
        v_store((float *)row + i, x);
    else
        v_store_bf16((uint16_t *)row + i, x);
}
KN_INLINE void v_write_n(void *row, kn_dtype dtype, int64_t i, vf x, int64_t n)
{
    if (dtype == KN_F32)
        v_store_n((float *)row + i, x, n);
    else
        v_store_bf16_n((uint16_t *)row + i, x, n);
}

/* Row r of a matrix view. */
KN_INLINE void *kn_row(const kn_matrix *m, int64_t r)
{
    return (char *)m->data + (size_t)(r * m->stride) * kn_dtype_bytes(m->dtype);
}

/* 2^x. Taylor coefficients ln(2)^k / k! on [-1/2, 1/2]; the first omitted term
 * (degree 8) is below 1e-8 of the result. Arguments below -126 give 2^-126. */
KN_INLINE vf v_exp2(vf x)
{
    vf limited = v_min(v_set1(127.0f), v_max(v_set1(-126.0f), x)); /* in this order NaN stays NaN */
    vf n = v_round(limited);
    vf f = v_sub(limited, n);
    vf p = v_set1(1.5252734e-5f);
    p = v_fma(p, f, v_set1(1.5403530e-4f));
    p = v_fma(p, f, v_set1(1.3333558e-3f));
    p = v_fma(p, f, v_set1(9.6181291e-3f));
    p = v_fma(p, f, v_set1(5.5504109e-2f));
    p = v_fma(p, f, v_set1(2.4022651e-1f));
    p = v_fma(p, f, v_set1(6.9314718e-1f));
    p = v_fma(p, f, v_set1(1.0f));
    return v_scale_exponent(p, n);
}

/* 2^x to 3e-6 of the result, for values that are rounded to bf16 next (half an ulp: 2e-3). */
KN_INLINE vf v_exp2_short(vf x)
{
    vf limited = v_max(v_set1(-126.0f), x);
    vf n = v_round(limited);
    vf f = v_sub(limited, n);
    vf p = v_set1(1.3333558e-3f);
    p = v_fma(p, f, v_set1(9.6181291e-3f));
    p = v_fma(p, f, v_set1(5.5504109e-2f));
    p = v_fma(p, f, v_set1(2.4022651e-1f));
    p = v_fma(p, f, v_set1(6.9314718e-1f));
    p = v_fma(p, f, v_set1(1.0f));
    return v_scale_exponent(p, n);
}

/* Two vectors of normal numbers to 2 VL consecutive bf16. */
KN_INLINE void v_store_bf16_pair(uint16_t *p, vf a, vf b)
{
#if defined(KN_TIER_AVX512BF16)
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(b, a));
#else
    v_store_bf16(p, a);
    v_store_bf16(p + VL, b);
#endif
}

/* e^x with the argument split as n ln2 + f, so that large |x| keep their
 * relative accuracy. Clamped to the range of normal floats. */
KN_INLINE vf v_exp(vf x)
{
    vf limited = v_min(v_set1(88.37626f), v_max(v_set1(-87.33654f), x)); /* in this order NaN stays NaN */
    vf n = v_round(v_mul(limited, v_set1(1.44269504f)));
    vf f = v_fnma(n, v_set1(0.693145752f), limited); /* ln 2 in two parts, the first with */
    f = v_fnma(n, v_set1(1.42860677e-6f), f);        /* trailing zero bits: n * part is exact */
    /* 1 / k!, paired (Estrin) so that the chain is three deep, not seven. */
    vf f2 = v_mul(f, f);
    vf p01 = v_add(f, v_set1(1.0f));
    vf p23 = v_fma(f, v_set1(1.6666667e-1f), v_set1(0.5f));
    vf p45 = v_fma(f, v_set1(8.3333333e-3f), v_set1(4.1666667e-2f));
    vf p67 = v_fma(f, v_set1(1.9841270e-4f), v_set1(1.3888889e-3f));
    vf high = v_fma(p67, f2, p45);
    vf p = v_fma(v_fma(high, f2, p23), f2, p01);
    return v_scale_exponent(p, n);
}

KN_INLINE vf v_silu(vf x)
{
    return v_div(x, v_add(v_set1(1.0f), v_exp(v_sub(v_zero(), x))));
}

/* 0.5 x (1 + tanh(u)) = x / (1 + e^(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3). */
KN_INLINE vf v_gelu_tanh(vf x)
{
    vf x2 = v_mul(x, x);
    vf u = v_mul(x, v_fma(x2, v_set1(0.0713548163f), v_set1(1.59576912f))); /* 2u */
    return v_div(x, v_add(v_set1(1.0f), v_exp(v_sub(v_zero(), u))));
}

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * The one matrix kernel of the CPU tiers: a batch-reduce GEMM microkernel
 * (Georganas et al. 2020, arXiv 1906.06440).
 *
 *     c[i, j] (+)= sum over taps t, sum over k:  a_t[i, k] * panel[t, k, j]
 *
 * for MR rows and NR columns held in registers. A linear layer has one tap; a
 * 3x3x3 convolution has 27, each a pointer into a channels-last frame; attention
 * multiplies queries by packed keys and probabilities by packed values.
 *
 * Each c[i, j] is one chain of fused multiply-adds in ascending (t, k), whatever
 * the number of rows, so a row's result does not depend on its neighbours. Cutting
 * the chain into several calls (first = false continues from c) changes nothing.
 *
 * bf16 operands come in pairs along k, as vdpbf16ps consumes them; tiers without
 * that instruction widen the two halves and use two FMAs.
 *
 * panel: [taps * units][NR] 32-bit units; a unit is one float, or a pair of bf16. */
#ifndef KN_KERNELS_CPU_BRGEMM_H
#define KN_KERNELS_CPU_BRGEMM_H

#include "kernels/cpu/vec.h"

/* 24 (AVX-512) or 12 (AVX2) accumulators: enough independent chains to cover the
 * FMA latency on both ports, and they fit the register file with the operands. */
#if defined(KN_TIER_AVX2)
enum { MR = 6 };
#else
enum { MR = 12 };
#endif
enum { NV = 2, NR = NV * VL };

#if defined(__clang__)
#define KN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define KN_UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(KN_TIER_AVX2)
typedef __m256i vi;
KN_INLINE vi vi_load(const void *p)
{
    return _mm256_load_si256((const __m256i *)p);
}
KN_INLINE vi vi_loadu(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}
KN_INLINE void vi_store(void *p, vi x)
{
    _mm256_store_si256((__m256i *)p, x);
}
KN_INLINE vi vi_set1(int32_t x)
{
    return _mm256_set1_epi32(x);
}
KN_INLINE vf v_dot_bf16(vf acc, vi a, vi b)
{
    vi high = _mm256_set1_epi32((int)0xffff0000u);
    acc = v_fma(_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)), acc);
    return v_fma(_mm256_castsi256_ps(_mm256_and_si256(a, high)), _mm256_castsi256_ps(_mm256_and_si256(b, high)), acc);
}
#else
typedef __m512i vi;
KN_INLINE vi vi_load(const void *p)
{
    return _mm512_load_si512(p);
}
KN_INLINE vi vi_loadu(const void *p)
{
    return _mm512_loadu_si512(p);
}
KN_INLINE void vi_store(void *p, vi x)
{
    _mm512_store_si512(p, x);
}
KN_INLINE vi vi_set1(int32_t x)
{
    return _mm512_set1_epi32(x);
}
KN_INLINE vf v_dot_bf16(vf acc, vi a, vi b)
{
#if defined(KN_TIER_AVX512BF16)
    return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
#else
    vi high = _mm512_set1_epi32((int)0xffff0000u);
    acc = v_fma(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), acc);
    return v_fma(_mm512_castsi512_ps(_mm512_and_si512(a, high)), _mm512_castsi512_ps(_mm512_and_si512(b, high)), acc);
#endif
}
#endif

/* a: `taps` pointers to row 0 of each tap; rows are a_stride bytes apart and the
 * call starts a_offset bytes into them. units: per tap. c_stride: floats. */
typedef void brgemm_fn(const char *const *a, int taps, int64_t a_offset, int64_t a_stride, int64_t units,
                       const uint32_t *panel, float *c, int64_t c_stride, bool first);

KN_INLINE void brgemm_rows(const int mr, const bool bf16, const char *const *a, int taps, int64_t a_offset,
                           int64_t a_stride, int64_t units, const uint32_t *panel, float *c, int64_t c_stride,
                           bool first)
{
    vf acc[MR][NV];
    KN_UNROLL for (int i = 0; i < mr; i++)
    {
        KN_UNROLL for (int j = 0; j < NV; j++) acc[i][j] = first ? v_zero() : v_load(c + i * c_stride + j * VL);
    }
    for (int t = 0; t < taps; t++) {
        const char *row = a[t] + a_offset;
        for (int64_t u = 0; u < units; u++, panel += NR, row += 4) {
            if (bf16) {
                vi b[NV];
                KN_UNROLL for (int j = 0; j < NV; j++) b[j] = vi_load(panel + j * VL);
                KN_UNROLL for (int i = 0; i < mr; i++)
                {
                    int32_t pair;
                    memcpy(&pair, row + i * a_stride, sizeof pair);
                    vi x = vi_set1(pair);
                    KN_UNROLL for (int j = 0; j < NV; j++) acc[i][j] = v_dot_bf16(acc[i][j], x, b[j]);
                }
            } else {
                vf b[NV];
                KN_UNROLL for (int j = 0; j < NV; j++) b[j] = v_load((const float *)panel + j * VL);
                KN_UNROLL for (int i = 0; i < mr; i++)
                {
                    float value;
                    memcpy(&value, row + i * a_stride, sizeof value);
                    vf x = v_set1(value);
                    KN_UNROLL for (int j = 0; j < NV; j++) acc[i][j] = v_fma(x, b[j], acc[i][j]);
                }
            }
        }
    }
    KN_UNROLL for (int i = 0; i < mr; i++)
    {
        KN_UNROLL for (int j = 0; j < NV; j++) v_store(c + i * c_stride + j * VL, acc[i][j]);
    }
}

/* clang-format off: a list of instantiations. */
#define BRGEMM(kind, bf16, mr)                                                                                         \
    static void brgemm_##kind##_##mr(const char *const *a, int taps, int64_t a_offset, int64_t a_stride,               \
                                     int64_t units, const uint32_t *panel, float *c, int64_t c_stride, bool first)     \
    {                                                                                                                  \
        brgemm_rows(mr, bf16, a, taps, a_offset, a_stride, units, panel, c, c_stride, first);                          \
    }
#define BRGEMM_NARROW(kind, bf16)                                                                                      \
    BRGEMM(kind, bf16, 1)                                                                                              \
    BRGEMM(kind, bf16, 2) BRGEMM(kind, bf16, 3) BRGEMM(kind, bf16, 4) BRGEMM(kind, bf16, 5) BRGEMM(kind, bf16, 6)
#define BRGEMM_NARROW_NAMES(kind)                                                                                      \
    brgemm_##kind##_1, brgemm_##kind##_2, brgemm_##kind##_3, brgemm_##kind##_4, brgemm_##kind##_5, brgemm_##kind##_6
BRGEMM_NARROW(f32, false)
BRGEMM_NARROW(bf16, true)
#if defined(KN_TIER_AVX2)
#define BRGEMM_TABLE(kind)                                                                                             \
    {                                                                                                                  \
        NULL, BRGEMM_NARROW_NAMES(kind)                                                                                \
    }
#else
#define BRGEMM_WIDE(kind, bf16)                                                                                        \
    BRGEMM(kind, bf16, 7)                                                                                              \
    BRGEMM(kind, bf16, 8) BRGEMM(kind, bf16, 9) BRGEMM(kind, bf16, 10) BRGEMM(kind, bf16, 11) BRGEMM(kind, bf16, 12)
BRGEMM_WIDE(f32, false)
BRGEMM_WIDE(bf16, true)
#define BRGEMM_TABLE(kind)                                                                                             \
    {                                                                                                                  \
        NULL, BRGEMM_NARROW_NAMES(kind), brgemm_##kind##_7, brgemm_##kind##_8, brgemm_##kind##_9, brgemm_##kind##_10,  \
            brgemm_##kind##_11, brgemm_##kind##_12                                                                     \
    }
#endif
/* clang-format on */

/* [bf16][rows] */
static brgemm_fn *const brgemm_table[2][MR + 1] = {BRGEMM_TABLE(f32), BRGEMM_TABLE(bf16)};

/* c[rows, NR] for any number of rows. */
KN_INLINE void brgemm(bool bf16, int64_t rows, const char *const *a, int taps, int64_t a_stride, int64_t units,
                      const uint32_t *panel, float *c, int64_t c_stride, bool first)
{
    for (int64_t i = 0; i < rows; i += MR) {
        int64_t mr = rows - i < MR ? rows - i : MR;
        brgemm_table[bf16][mr](a, taps, i * a_stride, a_stride, units, panel, c + i * c_stride, c_stride, first);
    }
}

/* Transposes VL x VL units held in VL vectors. */
KN_INLINE void vi_transpose(vi r[VL])
{
    vi t[VL];
#if defined(KN_TIER_AVX2)
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm256_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm256_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) r[i] = t[i];
#else
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) /* 128-bit lanes: rows 0-3 with 4-7, rows 8-11 with 12-15 */
        for (int j = 0; j < 16; j += 8) {
            t[j + i] = _mm512_shuffle_i32x4(r[j + i], r[j + i + 4], 0x88);
            t[j + i + 4] = _mm512_shuffle_i32x4(r[j + i], r[j + i + 4], 0xdd);
        }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
#endif
}

/* Units of one panel row block: [units][NR] from `columns` (<= NR) source rows that
 * hold their units consecutively, source_stride units apart; missing columns are zero. */
KN_INLINE void pack_transposed(uint32_t *panel, const uint32_t *source, int64_t source_stride, int64_t columns,
                               int64_t units)
{
    int64_t u = 0;
    for (; columns == NR && u + VL <= units; u += VL)
        for (int64_t j = 0; j < NR; j += VL) {
            vi r[VL];
            KN_UNROLL for (int i = 0; i < VL; i++) r[i] = vi_loadu(source + (j + i) * source_stride + u);
            vi_transpose(r);
            KN_UNROLL for (int i = 0; i < VL; i++) vi_store(panel + (u + i) * NR + j, r[i]);
        }
    for (; u < units; u++) {
        for (int64_t j = 0; j < columns; j++) panel[u * NR + j] = source[j * source_stride + u];
        for (int64_t j = columns; j < NR; j++) panel[u * NR + j] = 0;
    }
}

/* 32-bit units along k: one float, or two bf16. */
KN_INLINE int64_t units_of(int64_t k, kn_dtype compute)
{
    return compute == KN_BF16 ? (k + 1) / 2 : k;
}

/* Row of k values of any dtype to compute units, zero padded to a whole unit. */
void KN_TIERED(kn_convert_row)(uint32_t *units, kn_dtype compute, const void *source, kn_dtype dtype, int64_t k);

#endif

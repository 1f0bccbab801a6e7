/* SPDX-License-Identifier: Apache-2.0
 *
 * What the row-wise operators share: how rows become tiles, how a loop is
 * compiled once per pair of element types, and the sums over one row.
 *
 * A row is one worker's from beginning to end, and its sums have one order: 64
 * partial sums whatever the tier, so that the error of a long row is near that of
 * a row a 64th as long; the last full vectors go to the first accumulators, the
 * masked end to the last one. Nothing depends on which rows share the call. */
#ifndef KN_KERNELS_CPU_ROWWISE_H
#define KN_KERNELS_CPU_ROWWISE_H

#include <assert.h>

#include "kernels/cpu/tier.h"

enum { SUMS = 64 / VL }; /* accumulators of one sum */

/* Calls function(..., x_dtype, out_dtype) with both types constant. */
#define KN_BY_DTYPES(x_dtype, out_dtype, function, ...)                                                                \
    do {                                                                                                               \
        if ((x_dtype) == KN_F32) {                                                                                     \
            if ((out_dtype) == KN_F32)                                                                                 \
                function(__VA_ARGS__, KN_F32, KN_F32);                                                                 \
            else                                                                                                       \
                function(__VA_ARGS__, KN_F32, KN_BF16);                                                                \
        } else if ((out_dtype) == KN_F32) {                                                                            \
            function(__VA_ARGS__, KN_BF16, KN_F32);                                                                    \
        } else {                                                                                                       \
            function(__VA_ARGS__, KN_BF16, KN_BF16);                                                                   \
        }                                                                                                              \
    } while (0)

/* Rows of one tile: about 24 Ki elements, a fraction of a core's second level
 * cache, and enough work to hide what handing out a tile costs. */
KN_INLINE int64_t rows_per_tile(int64_t cols)
{
    int64_t rows = 24 * 1024 / (cols > 0 ? cols : 1);
    return rows > 0 ? rows : 1;
}

KN_INLINE int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Element i of a row. */
KN_INLINE float row_element(const void *row, kn_dtype dtype, int64_t i)
{
    return dtype == KN_F32 ? ((const float *)row)[i] : kn_bf16_to_float(((const uint16_t *)row)[i]);
}

/* Entry of row r in a table of per-row vectors; NULL without a table. */
KN_INLINE const float *table_row(const kn_row_table *table, int64_t r)
{
    if (!table->data) return NULL;
    return table->data + (table->row_index ? (int64_t)table->row_index[r] * table->stride : 0);
}

/* The first n lanes of x; the others become zero. */
KN_INLINE vf v_first(vf x, int64_t n)
{
    float lanes[VL];
    v_store(lanes, x);
    return v_load_n(lanes, n);
}

/* Sum of the accumulators, halves first. */
KN_INLINE float sum_of(vf *s)
{
    for (int half = SUMS / 2; half > 0; half /= 2)
        for (int k = 0; k < half; k++) s[k] = v_add(s[k], s[k + half]);
    return v_sum(s[0]);
}

KN_INLINE float row_sum(const void *row, int64_t cols, kn_dtype dtype)
{
    vf s[SUMS];
    for (int k = 0; k < SUMS; k++) s[k] = v_zero();
    int64_t i = 0;
    for (; i + SUMS * VL <= cols; i += SUMS * VL)
        for (int k = 0; k < SUMS; k++) s[k] = v_add(s[k], v_read(row, dtype, i + k * VL));
    for (int k = 0; k < SUMS - 1 && i + VL <= cols; k++, i += VL) s[k] = v_add(s[k], v_read(row, dtype, i));
    if (i < cols) s[SUMS - 1] = v_add(s[SUMS - 1], v_read_n(row, dtype, i, cols - i));
    return sum_of(s);
}

KN_INLINE vf add_square(vf sum, vf x)
{
    return v_fma(x, x, sum);
}

/* Sum of (x - centre)^2. */
KN_INLINE float row_square_sum(const void *row, int64_t cols, float centre, kn_dtype dtype)
{
    vf c = v_set1(centre);
    vf s[SUMS];
    for (int k = 0; k < SUMS; k++) s[k] = v_zero();
    int64_t i = 0;
    for (; i + SUMS * VL <= cols; i += SUMS * VL)
        for (int k = 0; k < SUMS; k++) s[k] = add_square(s[k], v_sub(v_read(row, dtype, i + k * VL), c));
    for (int k = 0; k < SUMS - 1 && i + VL <= cols; k++, i += VL)
        s[k] = add_square(s[k], v_sub(v_read(row, dtype, i), c));
    if (i < cols) {
        vf rest = v_first(v_sub(v_read_n(row, dtype, i, cols - i), c), cols - i);
        s[SUMS - 1] = add_square(s[SUMS - 1], rest);
    }
    return sum_of(s);
}

/* Lanes (2p, 2p + 1) of x turned by the angle whose (cosine, sine) are the same
 * lanes of `turn`. */
KN_INLINE vf v_rotate_pairs(vf x, vf turn)
{
#if defined(KN_TIER_AVX2)
    vf swapped = _mm256_permute_ps(x, 0xb1);
    vf product = _mm256_mul_ps(swapped, _mm256_movehdup_ps(turn));
    return _mm256_fmaddsub_ps(x, _mm256_moveldup_ps(turn), product);
#else
    vf swapped = _mm512_permute_ps(x, 0xb1);
    vf product = _mm512_mul_ps(swapped, _mm512_movehdup_ps(turn));
    return _mm512_fmaddsub_ps(x, _mm512_moveldup_ps(turn), product);
#endif
}

#endif

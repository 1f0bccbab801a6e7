/* SPDX-License-Identifier: Apache-2.0
 *
 * AVX-512 BF16: each lane adds two products per instruction. Compiled with
 * -mavx512f -mavx512bf16. */
#include <immintrin.h>

#include "benchmarks/roofline.h"

enum { CHAINS = 16 };

double kn_roofline_bf16_avx512bf16(int64_t rounds, float *sink)
{
    const __m512i bits = _mm512_set1_epi32(0x3c003c00); /* pairs of 2^-7 */
    const __m512bh factor = (__m512bh)bits;
    __m512 chain[CHAINS], sum = _mm512_setzero_ps();
    for (int i = 0; i < CHAINS; i++) chain[i] = _mm512_set1_ps((float)i);
    for (int64_t r = 0; r < rounds; r++)
        for (int i = 0; i < CHAINS; i++) chain[i] = _mm512_dpbf16_ps(chain[i], factor, factor);
    for (int i = 0; i < CHAINS; i++) sum = _mm512_add_ps(sum, chain[i]);
    *sink = _mm512_cvtss_f32(sum);
    return 2.0 * 32 * CHAINS * (double)rounds;
}

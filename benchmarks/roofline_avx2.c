/* SPDX-License-Identifier: Apache-2.0
 *
 * AVX2: two FMA pipes of latency 4 or 5 want ten independent chains; twelve fit
 * the sixteen registers. Compiled with -mavx2 -mfma. */
#include <immintrin.h>

#include "benchmarks/roofline.h"

enum { CHAINS = 12 };

double kn_roofline_f32_avx2(int64_t rounds, float *sink)
{
    const __m256 factor = _mm256_set1_ps(0.999f), term = _mm256_set1_ps(0.5f);
    __m256 chain[CHAINS], sum = _mm256_setzero_ps();
    for (int i = 0; i < CHAINS; i++) chain[i] = _mm256_set1_ps((float)i);
    for (int64_t r = 0; r < rounds; r++)
        for (int i = 0; i < CHAINS; i++) chain[i] = _mm256_fmadd_ps(chain[i], factor, term);
    for (int i = 0; i < CHAINS; i++) sum = _mm256_add_ps(sum, chain[i]);
    *sink = _mm256_cvtss_f32(sum);
    return 2.0 * 8 * CHAINS * (double)rounds;
}

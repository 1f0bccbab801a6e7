/* SPDX-License-Identifier: Apache-2.0
 *
 * AVX-512: sixteen independent chains of FMAs. Compiled with -mavx512f. */
#include <immintrin.h>

#include "benchmarks/roofline.h"

enum { CHAINS = 16 };

double kn_roofline_f32_avx512(int64_t rounds, float *sink)
{
    const __m512 factor = _mm512_set1_ps(0.999f), term = _mm512_set1_ps(0.5f);
    __m512 chain[CHAINS], sum = _mm512_setzero_ps();
    for (int i = 0; i < CHAINS; i++) chain[i] = _mm512_set1_ps((float)i);
    for (int64_t r = 0; r < rounds; r++)
        for (int i = 0; i < CHAINS; i++) chain[i] = _mm512_fmadd_ps(chain[i], factor, term);
    for (int i = 0; i < CHAINS; i++) sum = _mm512_add_ps(sum, chain[i]);
    *sink = _mm512_cvtss_f32(sum);
    return 2.0 * 16 * CHAINS * (double)rounds;
}

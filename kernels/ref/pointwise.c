/* SPDX-License-Identifier: Apache-2.0
 *
 * Element by element: activations, sums with a table, linear combinations. */
#include <assert.h>
#include <math.h>

#include "kernels/ref/ref.h"

double kn_ref_silu(double x)
{
    return x / (1 + exp(-x));
}

/* Hendrycks and Gimpel 2016, the approximation with tanh. */
double kn_ref_gelu_tanh(double x)
{
    const double sqrt_2_over_pi = 0.79788456080286535588;
    return 0.5 * x * (1 + tanh(sqrt_2_over_pi * (x + 0.044715 * x * x * x)));
}

kn_status kn_silu_ref(kn_stream *stream, const kn_silu_args *args)
{
    (void)stream;
    for (int64_t r = 0; r < args->x.rows; r++)
        for (int64_t c = 0; c < args->x.cols; c++)
            kn_ref_set(&args->out, r, c, kn_ref_silu(kn_ref_get(&args->x, r, c)));
    return KN_OK;
}

kn_status kn_gated_gelu_ref(kn_stream *stream, const kn_gated_gelu_args *args)
{
    (void)stream;
    for (int64_t r = 0; r < args->a.rows; r++)
        for (int64_t c = 0; c < args->a.cols; c++)
            kn_ref_set(&args->out, r, c, kn_ref_gelu_tanh(kn_ref_get(&args->a, r, c)) * kn_ref_get(&args->b, r, c));
    return KN_OK;
}

kn_status kn_add_table_ref(kn_stream *stream, const kn_add_table_args *args)
{
    (void)stream;
    for (int64_t r = 0; r < args->x.rows; r++)
        for (int64_t c = 0; c < args->x.cols; c++)
            kn_ref_set(&args->out, r, c, kn_ref_get(&args->x, r, c) + args->table[c]);
    return KN_OK;
}

/* In float, as the contract fixes every rounding. */
kn_status kn_lincomb_ref(kn_stream *stream, const kn_lincomb_args *args)
{
    (void)stream;
    assert(args->terms >= 1 && args->terms <= KN_LINCOMB_MAX);
    for (int64_t i = 0; i < args->count; i++) {
        float sum = args->coefficient[0] * args->x[0][i];
        for (int32_t term = 1; term < args->terms; term++) {
            float product = args->coefficient[term] * args->x[term][i];
            sum = sum + product;
        }
        if (args->low < args->high) sum = sum < args->low ? args->low : sum > args->high ? args->high : sum;
        args->out[i] = sum;
    }
    return KN_OK;
}

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
kn_status kn_sampler_step_ref(kn_stream *stream, const kn_sampler_step_args *args)
{
    (void)stream;
    const float *a = args->velocity_weight, *c = args->corrector, *b = args->predictor;
    for (int64_t i = 0; i < args->count; i++) {
        const float x = args->x[i];
        float m = x + a[0] * args->velocity[0][i];
        if (args->velocities > 1) m = m + a[1] * args->velocity[1][i];
        if (!args->m) {
            args->x[i] = m;
            continue;
        }
        float corrected = x;
        if (args->corrected) {
            corrected = c[0] * args->x_prev[i] + c[1] * args->m_prev2[i];
            corrected = corrected + c[2] * args->m_prev[i];
            corrected = corrected + c[3] * m;
        }
        float predicted = b[0] * corrected + b[1] * args->m_prev[i];
        args->x[i] = predicted + b[2] * m;
        args->x_prev[i] = corrected;
        args->m[i] = m;
    }
    return KN_OK;
}

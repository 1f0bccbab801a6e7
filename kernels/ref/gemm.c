/* SPDX-License-Identifier: Apache-2.0
 *
 * Linear layers. A prepared weight is the checkpoint's own layout in the compute
 * dtype, so a PLAIN weight of any dtype and a prepared one go the same way: each
 * value is rounded to the compute dtype and multiplied in double. */
#include <assert.h>

#include "kernels/ref/ref.h"

double kn_ref_dot(const double *a, const kn_weight *w, int64_t row)
{
    double sum = 0;
    for (int64_t i = 0; i < w->k; i++)
        sum += a[i] * kn_ref_round(kn_ref_load(w->data, w->dtype, row * w->k + i), w->compute);
    return sum;
}

static double activate(double y, kn_activation activation)
{
    switch (activation) {
    case KN_ACT_GELU_TANH: return kn_ref_gelu_tanh(y);
    case KN_ACT_SILU: return kn_ref_silu(y);
    default: return y;
    }
}

kn_status kn_gemm_ref(kn_stream *stream, const kn_gemm_args *args)
{
    const kn_weight *w = args->w;
    assert(w->layout == KN_WEIGHT_PLAIN && args->a.cols == w->k && args->out.cols == w->n);
    assert((size_t)w->k * sizeof(double) <= KN_CPU_SCRATCH_BYTES);
    double *a = kn_cpu_scratch(kn_cpu_of(stream), 0); /* one row, rounded to the compute dtype */

    for (int64_t r = 0; r < args->out.rows; r++) {
        for (int64_t i = 0; i < w->k; i++) a[i] = kn_ref_round(kn_ref_get(&args->a, r, i), w->compute);
        const float *gate = args->gate.data ? kn_ref_row_vector(&args->gate, r) : NULL;
        for (int64_t n = 0; n < w->n; n++) {
            double y = kn_ref_dot(a, w, n);
            if (args->bias) y += args->bias[n];
            y = activate(y, args->activation);
            if (gate) y *= gate[n];
            if (args->residual.data) y += kn_ref_get(&args->residual, r, n);
            kn_ref_set(&args->out, r, n, y);
        }
    }
    return KN_OK;
}

size_t kn_weight_bytes_ref(int64_t n, int64_t k, kn_dtype compute)
{
    return (size_t)(n * k) * kn_dtype_bytes(compute);
}

kn_status kn_weight_prepare_ref(kn_stream *stream, kn_weight *out, void *destination, const kn_weight *source,
                                kn_dtype compute)
{
    (void)stream;
    assert(source->layout == KN_WEIGHT_PLAIN);
    for (int64_t i = 0; i < source->n * source->k; i++)
        kn_ref_store(destination, compute, i, kn_ref_load(source->data, source->dtype, i));
    *out = (kn_weight){.data = destination, .n = source->n, .k = source->k, .dtype = compute, .compute = compute};
    return KN_OK;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * What the reference operators share. They read every value into double, do the
 * arithmetic of the contract in kernels/ops.h in the order it is written, and
 * round once when they store. Nothing here is fast; everything here is what the
 * faster tiers are judged by. */
#ifndef KN_KERNELS_REF_H
#define KN_KERNELS_REF_H

#include "base/half.h"
#include "kernels/cpu.h"

#define KN_OP(name, summary) kn_status kn_##name##_ref(kn_stream *stream, const kn_##name##_args *args);
#include "kernels/ops.inc"
#undef KN_OP

size_t kn_attention_workspace_ref(const kn_attention_args *args);
size_t kn_weight_bytes_ref(int64_t n, int64_t k, kn_dtype compute);
kn_status kn_weight_prepare_ref(kn_stream *stream, kn_weight *out, void *destination, const kn_weight *source,
                                kn_dtype compute);
size_t kn_conv_weight_bytes_ref(const kn_conv_args *shape);
kn_status kn_conv_weight_prepare_ref(kn_stream *stream, kn_weight *out, void *destination, const kn_weight *source,
                                     const kn_conv_args *shape);

static inline double kn_ref_load(const void *data, kn_dtype dtype, int64_t index)
{
    switch (dtype) {
    case KN_BF16: return kn_bf16_to_float(((const uint16_t *)data)[index]);
    case KN_F16: return kn_f16_to_float(((const uint16_t *)data)[index]);
    default: return ((const float *)data)[index];
    }
}

/* dtype is KN_F32 or KN_BF16. */
static inline void kn_ref_store(void *data, kn_dtype dtype, int64_t index, double value)
{
    if (dtype == KN_BF16)
        ((uint16_t *)data)[index] = kn_bf16_from_float((float)value);
    else
        ((float *)data)[index] = (float)value;
}

/* A value as it enters a product that is formed in `compute`. */
static inline double kn_ref_round(double value, kn_dtype compute)
{
    return compute == KN_BF16 ? kn_bf16_round((float)value) : (float)value;
}

static inline double kn_ref_get(const kn_matrix *m, int64_t row, int64_t col)
{
    return kn_ref_load(m->data, m->dtype, row * m->stride + col);
}

static inline void kn_ref_set(const kn_matrix *m, int64_t row, int64_t col, double value)
{
    kn_ref_store(m->data, m->dtype, row * m->stride + col, value);
}

/* The vector that belongs to a row of the call. */
static inline const float *kn_ref_row_vector(const kn_row_table *table, int64_t row)
{
    return table->data + (table->row_index ? table->row_index[row] * table->stride : 0);
}

/* Index of channel 0 of a pixel; y and x may lie in the border. */
static inline int64_t kn_ref_pixel(const kn_frame *frame, int64_t y, int64_t x)
{
    return (y * frame->row_stride + x) * frame->channels;
}

double kn_ref_silu(double x);
double kn_ref_gelu_tanh(double x);

/* sum of a[i] * w[row, i], w PLAIN. */
double kn_ref_dot(const double *a, const kn_weight *w, int64_t row);

#endif

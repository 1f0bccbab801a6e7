/* SPDX-License-Identifier: Apache-2.0
 *
 * Normalisations: over a row (layer norm; RMS norm, whose result a rotary
 * embedding may turn) and over the channels of a pixel. Statistics in two
 * passes, in double. */
#include <math.h>

#include "kernels/ref/ref.h"

kn_status kn_layernorm_ref(kn_stream *stream, const kn_layernorm_args *args)
{
    (void)stream;
    const kn_matrix *x = &args->x;
    for (int64_t r = 0; r < x->rows; r++) {
        double mean = 0, variance = 0;
        for (int64_t c = 0; c < x->cols; c++) mean += kn_ref_get(x, r, c);
        mean /= (double)x->cols;
        for (int64_t c = 0; c < x->cols; c++) {
            double centred = kn_ref_get(x, r, c) - mean;
            variance += centred * centred;
        }
        double inverse = 1 / sqrt(variance / (double)x->cols + args->eps);

        const float *scale = args->scale.data ? kn_ref_row_vector(&args->scale, r) : NULL;
        const float *shift = args->shift.data ? kn_ref_row_vector(&args->shift, r) : NULL;
        for (int64_t c = 0; c < x->cols; c++) {
            double y = (kn_ref_get(x, r, c) - mean) * inverse;
            if (args->weight) y *= args->weight[c];
            if (args->bias) y += args->bias[c];
            if (scale) y *= 1 + (double)scale[c];
            if (shift) y += shift[c];
            kn_ref_set(&args->out, r, c, y);
        }
    }
    return KN_OK;
}

/* cos and sin of pair `p` of a head for one row. */
static const float *rotation(const kn_rope *rope, int64_t row, int64_t p)
{
    int axis = 0;
    while (p >= rope->pairs[axis]) p -= rope->pairs[axis++];
    return rope->table[axis] + (rope->positions[row].axis[axis] * (int64_t)rope->pairs[axis] + p) * 2;
}

kn_status kn_rmsnorm_ref(kn_stream *stream, const kn_rmsnorm_args *args)
{
    (void)stream;
    const kn_matrix *x = &args->x;
    const kn_rope *rope = &args->rope;
    for (int64_t r = 0; r < x->rows; r++) {
        double squares = 0;
        for (int64_t c = 0; c < x->cols; c++) squares += kn_ref_get(x, r, c) * kn_ref_get(x, r, c);
        double inverse = 1 / sqrt(squares / (double)x->cols + args->eps);

        if (!rope->positions) {
            for (int64_t c = 0; c < x->cols; c++)
                kn_ref_set(&args->out, r, c, kn_ref_get(x, r, c) * inverse * args->weight[c]);
            continue;
        }
        for (int64_t c = 0; c < x->cols; c += 2) {
            double a = kn_ref_get(x, r, c) * inverse * args->weight[c];
            double b = kn_ref_get(x, r, c + 1) * inverse * args->weight[c + 1];
            const float *turn = rotation(rope, r, c % rope->head_dim / 2);
            kn_ref_set(&args->out, r, c, a * turn[0] - b * turn[1]);
            kn_ref_set(&args->out, r, c + 1, a * turn[1] + b * turn[0]);
        }
    }
    return KN_OK;
}

kn_status kn_channel_norm_ref(kn_stream *stream, const kn_channel_norm_args *args)
{
    (void)stream;
    const kn_frame *x = &args->x;
    for (int64_t row = 0; row < x->height; row++) {
        for (int64_t col = 0; col < x->width; col++) {
            int64_t in = kn_ref_pixel(x, row, col), out = kn_ref_pixel(&args->out, row, col);
            double squares = 0;
            for (int32_t c = 0; c < x->channels; c++) {
                double value = kn_ref_load(x->data, x->dtype, in + c);
                squares += value * value;
            }
            double length = sqrt(squares);
            if (length < 1e-12) length = 1e-12; /* unlike fmax, keeps NaN */
            double factor = sqrt((double)x->channels) / length;
            for (int32_t c = 0; c < x->channels; c++) {
                double y = kn_ref_load(x->data, x->dtype, in + c) * factor * args->gamma[c];
                kn_ref_store(args->out.data, args->out.dtype, out + c, args->silu ? kn_ref_silu(y) : y);
            }
        }
    }
    return KN_OK;
}

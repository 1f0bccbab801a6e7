/* SPDX-License-Identifier: Apache-2.0
 *
 * Between planar images and channels-last frames. */
#include "kernels/ref/ref.h"

static double affine(double value, const float *scale, const float *shift, int32_t channel)
{
    return value * (scale ? scale[channel] : 1) + (shift ? shift[channel] : 0);
}

kn_status kn_frame_pack_ref(kn_stream *stream, const kn_frame_pack_args *args)
{
    (void)stream;
    const kn_frame *out = &args->out;
    for (int64_t y = 0; y < out->height; y++)
        for (int64_t x = 0; x < out->width; x++)
            for (int32_t c = 0; c < out->channels; c++) {
                double value = args->planes[c * args->plane_stride + y * out->width + x];
                kn_ref_store(out->data, out->dtype, kn_ref_pixel(out, y, x) + c,
                             affine(value, args->scale, args->shift, c));
            }
    return KN_OK;
}

kn_status kn_frame_unpack_ref(kn_stream *stream, const kn_frame_unpack_args *args)
{
    (void)stream;
    const kn_frame *x = &args->x;
    for (int64_t row = 0; row < x->height; row++)
        for (int64_t col = 0; col < x->width; col++)
            for (int32_t c = 0; c < x->channels; c++) {
                double value = kn_ref_load(x->data, x->dtype, kn_ref_pixel(x, row, col) + c);
                value = affine(value, args->scale, args->shift, c);
                if (args->low < args->high) { /* comparisons, not fmin and fmax: NaN stays */
                    if (value < args->low) value = args->low;
                    if (value > args->high) value = args->high;
                }
                args->planes[c * args->plane_stride + row * x->width + col] = (float)value;
            }
    return KN_OK;
}

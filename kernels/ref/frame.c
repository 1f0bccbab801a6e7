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

/* In float, as the contract fixes every rounding. */
kn_status kn_picture_ref(kn_stream *stream, const kn_picture_args *args)
{
    (void)stream;
    const int64_t height = args->x[0].height, width = args->x[0].width;
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x < width; x++)
            for (int32_t c = 0; c < KN_PICTURE_CHANNELS; c++) {
                float v = 0;
                for (int32_t i = 0; i < args->terms; i++) {
                    const float *pixel = (const float *)args->x[i].data + kn_ref_pixel(&args->x[i], y, x);
                    v = i == 0 ? pixel[args->first[i] + c] : v + pixel[args->first[i] + c];
                }
                v = v * args->scale;
                v = v + args->shift[c];
                v = v < 0 ? 0 : v > 1 ? 1 : v; /* NaN stays */
                if (args->layout == KN_PICTURE_PLANES)
                    ((float *)args->out)[(c * height + y) * width + x] = v;
                else
                    ((uint8_t *)args->out)[(y * width + x) * KN_PICTURE_CHANNELS + c] =
                        v > 0 ? (uint8_t)(255 * v + 0.5f) : 0;
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

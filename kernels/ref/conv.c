/* SPDX-License-Identifier: Apache-2.0
 *
 * One output frame of a causal convolution: gather the values under the kernel,
 * then one dot product per output channel. Pixels outside the frame count as
 * zero here; the border in memory, which must be zero, is never read. */
#include <assert.h>

#include "kernels/ref/ref.h"

/* The newest frame is always there; older ones may be missing. */
static const kn_frame *newest(const kn_conv_args *args)
{
    return &args->in[args->kt - 1];
}

/* Where tap (dy, dx) of output pixel (y, x) reads; false outside the input. */
static bool tap_position(const kn_conv_args *args, int64_t y, int64_t x, int64_t *in_y, int64_t *in_x)
{
    int64_t height = newest(args)->height, width = newest(args)->width;
    if (args->mode == KN_CONV_UP_NEAREST) {
        if (y < 0 || x < 0) return false;
        y /= 2;
        x /= 2;
    }
    *in_y = y;
    *in_x = x;
    return y >= 0 && y < height && x >= 0 && x < width;
}

/* field[((dt * kh + dy) * kw + dx) * channels + c] for one output pixel. */
static void gather(const kn_conv_args *args, int64_t y, int64_t x, double *field)
{
    const int64_t channels = newest(args)->channels;
    const int64_t stride = args->mode == KN_CONV_DOWN ? 2 : 1;
    /* DOWN pads right and bottom only, so its first tap lies on the pixel itself. */
    const int64_t first_y = args->mode == KN_CONV_DOWN ? 0 : -(args->kh / 2);
    const int64_t first_x = args->mode == KN_CONV_DOWN ? 0 : -(args->kw / 2);

    for (int64_t dt = 0; dt < args->kt; dt++) {
        const kn_frame *in = &args->in[dt];
        for (int64_t dy = 0; dy < args->kh; dy++) {
            for (int64_t dx = 0; dx < args->kw; dx++, field += channels) {
                int64_t in_y, in_x;
                bool inside = tap_position(args, y * stride + first_y + dy, x * stride + first_x + dx, &in_y, &in_x);
                for (int64_t c = 0; c < channels; c++)
                    field[c] =
                        inside && in->data ? kn_ref_load(in->data, in->dtype, kn_ref_pixel(in, in_y, in_x) + c) : 0;
            }
        }
    }
}

kn_status kn_conv_ref(kn_stream *stream, const kn_conv_args *args)
{
    const kn_weight *w = args->w;
    const kn_frame *out = &args->out, *residual = &args->residual;
    assert(w->layout == KN_WEIGHT_PLAIN && w->n == out->channels);
    assert(w->k == (int64_t)args->kt * args->kh * args->kw * newest(args)->channels);
    assert((size_t)w->k * sizeof(double) <= KN_CPU_SCRATCH_BYTES);
    double *field = kn_cpu_scratch(kn_cpu_of(stream), 0);

    for (int64_t y = 0; y < out->height; y++) {
        for (int64_t x = 0; x < out->width; x++) {
            gather(args, y, x, field);
            for (int32_t n = 0; n < out->channels; n++) {
                double value = kn_ref_dot(field, w, n);
                if (args->bias) value += args->bias[n];
                if (residual->data)
                    value += kn_ref_load(residual->data, residual->dtype, kn_ref_pixel(residual, y, x) + n);
                kn_ref_store(out->data, out->dtype, kn_ref_pixel(out, y, x) + n, value);
            }
        }
    }
    return KN_OK;
}

size_t kn_conv_weight_bytes_ref(const kn_conv_args *shape)
{
    int64_t k = (int64_t)shape->kt * shape->kh * shape->kw * newest(shape)->channels;
    return kn_weight_bytes_ref(shape->out.channels, k, newest(shape)->dtype);
}

/* Moves the channel from the slowest to the fastest place of k; all nine taps
 * stay, in every mode. */
kn_status kn_conv_weight_prepare_ref(kn_stream *stream, kn_weight *out, void *destination, const kn_weight *source,
                                     const kn_conv_args *shape)
{
    (void)stream;
    const int64_t n = shape->out.channels, channels = newest(shape)->channels;
    const int64_t taps = (int64_t)shape->kt * shape->kh * shape->kw;
    const kn_dtype compute = newest(shape)->dtype;
    assert(source->layout == KN_WEIGHT_PLAIN && source->n == n && source->k == channels * taps);
    for (int64_t row = 0; row < n; row++)
        for (int64_t tap = 0; tap < taps; tap++)
            for (int64_t c = 0; c < channels; c++)
                kn_ref_store(destination, compute, (row * taps + tap) * channels + c,
                             kn_ref_load(source->data, source->dtype, (row * channels + c) * taps + tap));
    *out = (kn_weight){.data = destination, .n = n, .k = taps * channels, .dtype = compute, .compute = compute};
    return KN_OK;
}

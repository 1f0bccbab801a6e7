/* SPDX-License-Identifier: Apache-2.0
 *
 * Frames of pixels, channels last: the norm in front of a convolution, and the
 * way in from planes and out to planes. Only a frame's pixels are written; the
 * zeros around them stay.
 *
 * The norm is the RMS_norm of the Wan autoencoder: x / max(||x||_2, 1e-12) over
 * the channels of a pixel. The clamp makes f32 squares safe: where they would
 * underflow, the norm is far below 1e-12 anyway.
 *
 * Tolerance: f32 sums of 64 partial sums, three products and, with SiLU, the
 * exponential of vec.h: a few units of f32's last place before the rounding. */
#include <math.h>

#include "kernels/cpu/rowwise.h"

enum {
    PIXELS = 8, /* normed together; at 384 channels they are 12 KiB */
    RUN = 64,   /* packed or unpacked together; at 96 channels they are 24 KiB */
};

/* Where line y of a frame begins. */
KN_INLINE void *frame_line(const kn_frame *frame, int64_t y)
{
    return (char *)frame->data + (size_t)(y * frame->row_stride * frame->channels) * kn_dtype_bytes(frame->dtype);
}

typedef struct channel_norm_job {
    const kn_channel_norm_args *args;
    int64_t block; /* lines of one tile */
} channel_norm_job;

/* What one pixel is multiplied by, before gamma. */
KN_INLINE float channel_scale(const void *pixel, int64_t channels, float root, kn_dtype dtype)
{
    float norm = sqrtf(row_square_sum(pixel, channels, 0.0f, dtype));
    return root / (norm < 1e-12f ? 1e-12f : norm); /* a NaN stays one */
}

KN_INLINE void scale_channels(void *out, const void *x, int64_t channels, const float *gamma, float factor, bool silu,
                              kn_dtype x_dtype, kn_dtype out_dtype)
{
    vf scale = v_set1(factor);
    int64_t c = 0;
    for (; c + VL <= channels; c += VL) {
        vf y = v_mul(v_mul(v_read(x, x_dtype, c), scale), v_load(gamma + c));
        v_write(out, out_dtype, c, silu ? v_silu(y) : y);
    }
    if (c < channels) {
        int64_t rest = channels - c;
        vf y = v_mul(v_mul(v_read_n(x, x_dtype, c, rest), scale), v_load_n(gamma + c, rest));
        v_write_n(out, out_dtype, c, silu ? v_silu(y) : y, rest);
    }
}

/* A pixel's sum, root and quotient are one long chain of dependent instructions,
 * so the chains of several pixels run side by side before any of them is scaled. */
KN_INLINE void norm_line(void *out, const void *x, int64_t width, int64_t channels, const float *gamma, bool silu,
                         kn_dtype x_dtype, kn_dtype out_dtype)
{
    float root = sqrtf((float)channels);
    size_t x_bytes = (size_t)channels * kn_dtype_bytes(x_dtype); /* of one pixel */
    size_t out_bytes = (size_t)channels * kn_dtype_bytes(out_dtype);
    const char *from = x;
    char *to = out;
    for (int64_t done = 0; done < width; done += PIXELS) {
        float factor[PIXELS];
        int64_t count = smaller(PIXELS, width - done);
        for (int64_t p = 0; p < count; p++)
            factor[p] = channel_scale(from + (size_t)p * x_bytes, channels, root, x_dtype);
        for (int64_t p = 0; p < count; p++, from += x_bytes, to += out_bytes)
            scale_channels(to, from, channels, gamma, factor[p], silu, x_dtype, out_dtype);
    }
}

KN_INLINE void channel_norm_lines(const kn_channel_norm_args *args, int64_t begin, int64_t end, kn_dtype x_dtype,
                                  kn_dtype out_dtype)
{
    int64_t width = args->x.width, channels = args->x.channels;
    for (int64_t y = begin; y < end; y++) {
        void *out = frame_line(&args->out, y);
        const void *x = frame_line(&args->x, y);
        if (args->silu)
            norm_line(out, x, width, channels, args->gamma, true, x_dtype, out_dtype);
        else
            norm_line(out, x, width, channels, args->gamma, false, x_dtype, out_dtype);
    }
}

static void channel_norm_tile(void *context, int64_t tile, int worker)
{
    (void)worker;
    const channel_norm_job *job = context;
    const kn_channel_norm_args *args = job->args;
    int64_t begin = tile * job->block;
    int64_t end = smaller(begin + job->block, args->x.height);
    KN_BY_DTYPES(args->x.dtype, args->out.dtype, channel_norm_lines, args, begin, end);
}

kn_status KN_TIERED(kn_channel_norm)(kn_stream *stream, const kn_channel_norm_args *args)
{
    assert(args->out.height == args->x.height && args->out.width == args->x.width);
    assert(args->out.channels == args->x.channels);
    channel_norm_job job = {.args = args, .block = rows_per_tile((int64_t)args->x.width * args->x.channels)};
    kn_cpu_run(stream, kn_tiles(args->x.height, job.block), channel_norm_tile, &job);
    return KN_OK;
}

/* Pixels are taken RUN at a time, and of those one channel after the other: a
 * plane is read in order, while the pixels being filled stay in cache. */
KN_INLINE void pack_line(const kn_frame_pack_args *args, int64_t y, int64_t channels, kn_dtype dtype)
{
    int64_t width = args->out.width;
    void *line = frame_line(&args->out, y);
    for (int64_t begin = 0; begin < width; begin += RUN) {
        int64_t end = smaller(begin + RUN, width);
        for (int64_t c = 0; c < channels; c++) {
            const float *plane = args->planes + c * args->plane_stride + y * width;
            float scale = args->scale ? args->scale[c] : 1.0f;
            float shift = args->shift ? args->shift[c] : 0.0f;
            for (int64_t x = begin; x < end; x++) {
                float value = plane[x] * scale + shift;
                if (dtype == KN_F32)
                    ((float *)line)[x * channels + c] = value;
                else
                    ((uint16_t *)line)[x * channels + c] = kn_bf16_from_float(value);
            }
        }
    }
}

typedef struct frame_pack_job {
    const kn_frame_pack_args *args;
    int64_t block; /* lines of one tile */
} frame_pack_job;

static void frame_pack_tile(void *context, int64_t tile, int worker)
{
    (void)worker;
    const frame_pack_job *job = context;
    const kn_frame_pack_args *args = job->args;
    int64_t end = smaller((tile + 1) * job->block, args->out.height);
    for (int64_t y = tile * job->block; y < end; y++)
        if (args->out.dtype == KN_F32)
            pack_line(args, y, args->out.channels, KN_F32);
        else
            pack_line(args, y, args->out.channels, KN_BF16);
}

kn_status KN_TIERED(kn_frame_pack)(kn_stream *stream, const kn_frame_pack_args *args)
{
    frame_pack_job job = {.args = args, .block = rows_per_tile((int64_t)args->out.width * args->out.channels)};
    kn_cpu_run(stream, kn_tiles(args->out.height, job.block), frame_pack_tile, &job);
    return KN_OK;
}

KN_INLINE void unpack_line(const kn_frame_unpack_args *args, int64_t y, int64_t channels, kn_dtype dtype)
{
    int64_t width = args->x.width;
    const void *line = frame_line(&args->x, y);
    float low = args->low < args->high ? args->low : -INFINITY;
    float high = args->low < args->high ? args->high : INFINITY;
    for (int64_t begin = 0; begin < width; begin += RUN) {
        int64_t end = smaller(begin + RUN, width);
        for (int64_t c = 0; c < channels; c++) {
            float *plane = args->planes + c * args->plane_stride + y * width;
            float scale = args->scale ? args->scale[c] : 1.0f;
            float shift = args->shift ? args->shift[c] : 0.0f;
            for (int64_t x = begin; x < end; x++) {
                float value = row_element(line, dtype, x * channels + c) * scale + shift;
                value = value < low ? low : value; /* a NaN stays one */
                plane[x] = value > high ? high : value;
            }
        }
    }
}

typedef struct frame_unpack_job {
    const kn_frame_unpack_args *args;
    int64_t block; /* lines of one tile */
} frame_unpack_job;

static void frame_unpack_tile(void *context, int64_t tile, int worker)
{
    (void)worker;
    const frame_unpack_job *job = context;
    const kn_frame_unpack_args *args = job->args;
    int64_t end = smaller((tile + 1) * job->block, args->x.height);
    for (int64_t y = tile * job->block; y < end; y++)
        if (args->x.dtype == KN_F32)
            unpack_line(args, y, args->x.channels, KN_F32);
        else
            unpack_line(args, y, args->x.channels, KN_BF16);
}

kn_status KN_TIERED(kn_frame_unpack)(kn_stream *stream, const kn_frame_unpack_args *args)
{
    frame_unpack_job job = {.args = args, .block = rows_per_tile((int64_t)args->x.width * args->x.channels)};
    kn_cpu_run(stream, kn_tiles(args->x.height, job.block), frame_unpack_tile, &job);
    return KN_OK;
}

/* ---- finished pictures ---- */

/* Two roundings, a clamp that lets NaN through. */
KN_INLINE float picture_value(float sum, float scale, float shift)
{
    const float product = sum * scale, v = product + shift;
    return v < 0 ? 0 : v > 1 ? 1 : v;
}

/* A line of pixels; `terms` is constant where this is inlined. */
KN_INLINE void picture_line(const kn_picture_args *args, int64_t y, int32_t terms)
{
    const int64_t width = args->x[0].width, plane = args->x[0].height * width;
    const float *line[KN_PICTURE_TERMS_MAX];
    for (int32_t i = 0; i < terms; i++) line[i] = (const float *)frame_line(&args->x[i], y) + args->first[i];
    for (int64_t x = 0; x < width; x++)
        for (int32_t c = 0; c < KN_PICTURE_CHANNELS; c++) {
            float sum = line[0][x * args->x[0].channels + c];
            for (int32_t i = 1; i < terms; i++) sum += line[i][x * args->x[i].channels + c];
            const float v = picture_value(sum, args->scale, args->shift[c]);
            if (args->layout == KN_PICTURE_PLANES)
                ((float *)args->out)[c * plane + y * width + x] = v;
            else
                ((uint8_t *)args->out)[(y * width + x) * KN_PICTURE_CHANNELS + c] =
                    v > 0 ? (uint8_t)(255 * v + 0.5f) : 0;
        }
}

typedef struct picture_job {
    const kn_picture_args *args;
    int64_t block; /* lines of one tile */
} picture_job;

static void picture_tile(void *context, int64_t tile, int worker)
{
    (void)worker;
    const picture_job *job = context;
    const int64_t end = smaller((tile + 1) * job->block, job->args->x[0].height);
    for (int64_t y = tile * job->block; y < end; y++) switch (job->args->terms) {
        case 1: picture_line(job->args, y, 1); break;
        case 2: picture_line(job->args, y, 2); break;
        default: picture_line(job->args, y, 3);
        }
}

kn_status KN_TIERED(kn_picture)(kn_stream *stream, const kn_picture_args *args)
{
    assert(args->terms >= 1 && args->terms <= KN_PICTURE_TERMS_MAX);
    picture_job job = {.args = args, .block = rows_per_tile((int64_t)args->x[0].width * args->x[0].channels)};
    kn_cpu_run(stream, kn_tiles(args->x[0].height, job.block), picture_tile, &job);
    return KN_OK;
}

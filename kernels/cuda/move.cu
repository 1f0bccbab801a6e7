/* SPDX-License-Identifier: Apache-2.0
 *
 * Operators that only move or look up values: embeddings, latents and their tokens, planes and frames. Small arrays in
 * host memory (token ids, timesteps, channel scales) travel as kernel parameters, a piece at a time, so nothing is
 * copied to the device first. */
#include "kernels/cuda/numbers.cuh"

KN_CUDA_BEGIN

enum { THREADS = 256, IDS = 512, TIMESTEPS = 64, CHANNELS = 64, SEQUENCES = 64 };

static unsigned grid_of(int64_t threads)
{
    return (unsigned)divide_up(threads, THREADS);
}

/* ---- embeddings ---- */

struct id_list {
    int32_t id[IDS];
};

/* Rows [first, first + count) of the output. */
__global__ void __launch_bounds__(THREADS) embed_kernel(kn_embed_args args, id_list ids, int64_t first, int count)
{
    const int64_t groups = (args.out.cols + VECTOR - 1) / VECTOR, index = flat_index();
    const int64_t row = index / groups, column = index % groups * VECTOR;
    if (row >= count) return;
    const int n = minimum(args.out.cols - column, VECTOR);
    float values[VECTOR];
    load8(args.table.data, args.table.dtype, ids.id[row] * args.table.stride + column, n, values);
    store8(args.out.data, args.out.dtype, (first + row) * args.out.stride + column, n, values);
}

kn_status embed_cuda(kn_stream *stream, const kn_embed_args *args)
{
    for (int64_t first = 0; first < args->out.rows; first += IDS) {
        id_list ids = {};
        const int count = minimum(args->out.rows - first, IDS);
        for (int i = 0; i < count; i++) ids.id[i] = args->ids[first + i];
        kn_status st = KN_LAUNCH(embed_kernel, grid_of(count * divide_up(args->out.cols, VECTOR)), THREADS, 0,
                                 stream_of(stream), *args, ids, first, count);
        if (st != KN_OK) return st;
    }
    return KN_OK;
}

struct timestep_list {
    float t[TIMESTEPS];
};

/* Angles in double: t up to 1000 times a float frequency would be off in the fifth digit. */
__global__ void __launch_bounds__(THREADS)
    timestep_embed_kernel(kn_timestep_embed_args args, timestep_list list, int64_t first, int count)
{
    const int64_t half = args.out.cols / 2, index = flat_index(), row = index / half, i = index % half;
    if (row >= count) return;
    const double angle = (double)list.t[row] * pow(10000.0, -(double)i / (double)half);
    store(args.out.data, args.out.dtype, (first + row) * args.out.stride + i, (float)cos(angle));
    store(args.out.data, args.out.dtype, (first + row) * args.out.stride + half + i, (float)sin(angle));
}

kn_status timestep_embed_cuda(kn_stream *stream, const kn_timestep_embed_args *args)
{
    for (int64_t first = 0; first < args->out.rows && args->out.cols > 1; first += TIMESTEPS) {
        timestep_list list = {};
        const int count = minimum(args->out.rows - first, TIMESTEPS);
        for (int i = 0; i < count; i++) list.t[i] = args->timesteps[first + i];
        kn_status st = KN_LAUNCH(timestep_embed_kernel, grid_of(count * (args->out.cols / 2)), THREADS, 0,
                                 stream_of(stream), *args, list, first, count);
        if (st != KN_OK) return st;
    }
    return KN_OK;
}

/* ---- latents and tokens ---- */

struct sequence_list {
    int first_sequence, count;
    int offset[SEQUENCES + 1], first[SEQUENCES], height[SEQUENCES], width[SEQUENCES];
};

__global__ void __launch_bounds__(THREADS) pack_rows_kernel(kn_pack_rows_args args, sequence_list list)
{
    const int64_t row = list.offset[0] + flat_index();
    if (row >= list.offset[list.count]) return;
    int s = 0;
    while (row >= list.offset[s + 1]) s++;
    const int place = list.first[s] + (int)row - list.offset[s], w = list.width[s], h = list.height[s];
    if (args.sequence) args.sequence[row] = list.first_sequence + s;
    if (!args.positions) return;
    args.positions[row].axis[0] = (uint16_t)(place / w / h);
    args.positions[row].axis[1] = (uint16_t)(place / w % h);
    args.positions[row].axis[2] = (uint16_t)(place % w);
}

kn_status pack_rows_cuda(kn_stream *stream, const kn_pack_rows_args *args)
{
    for (int first = 0; first < args->sequences; first += SEQUENCES) {
        sequence_list list = {};
        list.first_sequence = first;
        list.count = minimum(args->sequences - first, SEQUENCES);
        for (int s = 0; s < list.count; s++) {
            list.first[s] = args->first[first + s];
            list.height[s] = args->height[first + s];
            list.width[s] = args->width[first + s];
        }
        for (int s = 0; s <= list.count; s++) list.offset[s] = args->offsets[first + s];
        kn_status st = KN_LAUNCH(pack_rows_kernel, grid_of(list.offset[list.count] - list.offset[0]), THREADS, 0,
                                 stream_of(stream), *args, list);
        if (st != KN_OK) return st;
    }
    return KN_OK;
}

/* A thread per element of the rows. */
__global__ void __launch_bounds__(THREADS) patchify_kernel(kn_patchify_args args)
{
    const int64_t index = flat_index(), cols = args.out.cols, row = index / cols;
    if (row >= args.out.rows) return;
    const int e = (int)(index % cols), dx = e % 2, dy = e / 2 % 2, c = e / 4, w = args.w / 2, h = args.h / 2;
    const int64_t t = row / ((int64_t)h * w), y = row / w % h * 2 + dy, x = row % w * 2 + dx;
    const float value = args.latent[(((int64_t)c * args.t + t) * args.h + y) * args.w + x];
    store(args.out.data, args.out.dtype, row * args.out.stride + e, value);
}

kn_status patchify_cuda(kn_stream *stream, const kn_patchify_args *args)
{
    return KN_LAUNCH(patchify_kernel, grid_of(args->out.rows * args->out.cols), THREADS, 0, stream_of(stream), *args);
}

/* A thread per element of the latent. */
__global__ void __launch_bounds__(THREADS) unpatchify_kernel(kn_unpatchify_args args)
{
    const int64_t index = flat_index();
    const int x = (int)(index % args.w), y = (int)(index / args.w % args.h);
    const int64_t frame = index / ((int64_t)args.w * args.h); /* of all channels */
    const int64_t t = frame % args.t, c = frame / args.t;
    if (c >= args.channels) return;
    const int64_t row = (t * (args.h / 2) + y / 2) * (args.w / 2) + x / 2;
    const int64_t column = (int64_t)(y % 2 * 2 + x % 2) * args.channels + c;
    args.latent[index] = load(args.x.data, args.x.dtype, row * args.x.stride + column);
}

kn_status unpatchify_cuda(kn_stream *stream, const kn_unpatchify_args *args)
{
    return KN_LAUNCH(unpatchify_kernel, grid_of((int64_t)args->channels * args->t * args->h * args->w), THREADS, 0,
                     stream_of(stream), *args);
}

/* ---- planes and frames ---- */

struct channel_list {
    float scale[CHANNELS], shift[CHANNELS];
    int first, count; /* channels of this launch */
};

static channel_list channels_of(const float *scale, const float *shift, int first, int channels)
{
    channel_list list = {};
    list.first = first;
    list.count = minimum(channels - first, CHANNELS);
    for (int c = 0; c < list.count; c++) {
        list.scale[c] = scale ? scale[first + c] : 1.0f;
        list.shift[c] = shift ? shift[first + c] : 0.0f;
    }
    return list;
}

/* Channels side by side, as the frame has them. */
__global__ void __launch_bounds__(THREADS) frame_pack_kernel(kn_frame_pack_args args, channel_list list)
{
    const int64_t index = flat_index(), pixel = index / list.count;
    const int c = (int)(index % list.count);
    if (pixel >= (int64_t)args.out.height * args.out.width) return;
    const int64_t y = pixel / args.out.width, x = pixel % args.out.width;
    const float value = args.planes[(list.first + c) * args.plane_stride + pixel] * list.scale[c] + list.shift[c];
    store(args.out.data, args.out.dtype, pixel_of(args.out, y, x) + list.first + c, value);
}

kn_status frame_pack_cuda(kn_stream *stream, const kn_frame_pack_args *args)
{
    const int64_t pixels = (int64_t)args->out.height * args->out.width;
    for (int first = 0; first < args->out.channels; first += CHANNELS) {
        const channel_list list = channels_of(args->scale, args->shift, first, args->out.channels);
        kn_status st =
            KN_LAUNCH(frame_pack_kernel, grid_of(pixels * list.count), THREADS, 0, stream_of(stream), *args, list);
        if (st != KN_OK) return st;
    }
    return KN_OK;
}

/* Pixels side by side, as the plane has them. */
__global__ void __launch_bounds__(THREADS) frame_unpack_kernel(kn_frame_unpack_args args, channel_list list)
{
    const int64_t pixels = (int64_t)args.x.height * args.x.width, index = flat_index(), pixel = index % pixels;
    const int c = (int)(index / pixels);
    if (c >= list.count) return;
    const int64_t y = pixel / args.x.width, x = pixel % args.x.width;
    float value = load(args.x.data, args.x.dtype, pixel_of(args.x, y, x) + list.first + c);
    value = value * list.scale[c] + list.shift[c];
    if (args.low < args.high) { /* comparisons, not fminf and fmaxf: NaN stays */
        if (value < args.low) value = args.low;
        if (value > args.high) value = args.high;
    }
    args.planes[(list.first + c) * args.plane_stride + pixel] = value;
}

kn_status frame_unpack_cuda(kn_stream *stream, const kn_frame_unpack_args *args)
{
    const int64_t pixels = (int64_t)args->x.height * args->x.width;
    for (int first = 0; first < args->x.channels; first += CHANNELS) {
        const channel_list list = channels_of(args->scale, args->shift, first, args->x.channels);
        kn_status st =
            KN_LAUNCH(frame_unpack_kernel, grid_of(pixels * list.count), THREADS, 0, stream_of(stream), *args, list);
        if (st != KN_OK) return st;
    }
    return KN_OK;
}

/* ---- finished pictures ---- */

/* Four pixels of a line in one thread: three words of bytes where they are whole and aligned. */
enum { PIXELS = 4 };

__device__ static float picture_value(const kn_picture_args &args, int64_t y, int64_t x, int c)
{
    float sum = 0;
#pragma unroll
    for (int i = 0; i < KN_PICTURE_TERMS_MAX; i++) {
        if (i >= args.terms) break;
        const float value = ((const float *)args.x[i].data)[pixel_of(args.x[i], y, x) + args.first[i] + c];
        sum = i == 0 ? value : __fadd_rn(sum, value);
    }
    const float v = __fadd_rn(__fmul_rn(sum, args.scale), args.shift[c]);
    return v < 0 ? 0.0f : v > 1 ? 1.0f : v; /* NaN stays */
}

__device__ static uint32_t picture_byte(float v)
{
    return v > 0 ? (uint32_t)__fadd_rn(__fmul_rn(255.0f, v), 0.5f) : 0u;
}

__global__ void __launch_bounds__(THREADS) picture_kernel(kn_picture_args args)
{
    const int64_t height = args.x[0].height, width = args.x[0].width, index = flat_index();
    const int64_t groups = (width + PIXELS - 1) / PIXELS, y = index / groups, x = index % groups * PIXELS;
    if (y >= height) return;
    const int count = minimum(width - x, PIXELS);
    float v[PIXELS][KN_PICTURE_CHANNELS];
#pragma unroll
    for (int p = 0; p < PIXELS; p++)
#pragma unroll
        for (int c = 0; c < KN_PICTURE_CHANNELS; c++) v[p][c] = p < count ? picture_value(args, y, x + p, c) : 0.0f;
    if (args.layout == KN_PICTURE_PLANES) {
#pragma unroll
        for (int c = 0; c < KN_PICTURE_CHANNELS; c++)
#pragma unroll
            for (int p = 0; p < PIXELS; p++)
                if (p < count) ((float *)args.out)[(c * height + y) * width + x + p] = v[p][c];
        return;
    }
    unsigned char *to = (unsigned char *)args.out + (y * width + x) * KN_PICTURE_CHANNELS;
    if (count == PIXELS && ((uintptr_t)to & 3) == 0) {
#pragma unroll
        for (int word = 0; word < KN_PICTURE_CHANNELS; word++) {
            uint32_t bytes = 0;
#pragma unroll
            for (int b = 0; b < 4; b++)
                bytes |= picture_byte(v[(word * 4 + b) / KN_PICTURE_CHANNELS][(word * 4 + b) % KN_PICTURE_CHANNELS])
                         << (8 * b);
            ((uint32_t *)to)[word] = bytes;
        }
        return;
    }
#pragma unroll
    for (int p = 0; p < PIXELS; p++)
#pragma unroll
        for (int c = 0; c < KN_PICTURE_CHANNELS; c++)
            if (p < count) to[p * KN_PICTURE_CHANNELS + c] = (unsigned char)picture_byte(v[p][c]);
}

kn_status picture_cuda(kn_stream *stream, const kn_picture_args *args)
{
    const int64_t threads = args->x[0].height * divide_up(args->x[0].width, PIXELS);
    return KN_LAUNCH(picture_kernel, grid_of(threads), THREADS, 0, stream_of(stream), *args);
}

KN_CUDA_END

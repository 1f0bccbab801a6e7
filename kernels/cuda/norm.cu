/* SPDX-License-Identifier: Apache-2.0
 *
 * Normalisations: a block for a row (layer norm, RMS norm with rotary embedding), a warp for a pixel (channel norm). A
 * thread has groups of eight columns, and keeps the first four of them in registers, so that memory is read once; wider
 * rows are read again from cache. How a sum is cut among threads follows from the number of columns alone.
 *
 * Layer norm takes the mean first and sums squares around it: E[x^2] - E[x]^2 would lose every digit when the mean is
 * large. Tolerance: statistics are f32 sums of at most 256 partial sums. */
#include "kernels/cuda/numbers.cuh"

KN_CUDA_BEGIN

enum { ROW_THREADS = 256, KEPT = 4, PIXEL_WARPS = 8 };

/* Threads for a row: one for eight columns, as far as a block goes. */
static unsigned row_threads(int64_t cols)
{
    return (unsigned)minimum(divide_up(divide_up(cols, VECTOR), LANES) * LANES, ROW_THREADS);
}

/* Calls body(group, first column, count, values) for the thread's groups in order; those kept are in `kept`. */
template <typename Body>
__device__ static inline void each_group(const kn_matrix &x, int64_t row, float (&kept)[KEPT][VECTOR], Body body)
{
    const int cols = (int)x.cols, step = blockDim.x * VECTOR;
    int column = threadIdx.x * VECTOR;
#pragma unroll
    for (int i = 0; i < KEPT; i++, column += step)
        if (column < cols) body(column, minimum(cols - column, VECTOR), kept[i]);
    for (; column < cols; column += step) {
        float values[VECTOR];
        const int count = minimum(cols - column, VECTOR);
        load8(x.data, x.dtype, row * x.stride + column, count, values);
        body(column, count, values);
    }
}

__device__ static inline void keep_row(const kn_matrix &x, int64_t row, float (&kept)[KEPT][VECTOR])
{
    const int cols = (int)x.cols, step = blockDim.x * VECTOR;
    int column = threadIdx.x * VECTOR;
#pragma unroll
    for (int i = 0; i < KEPT; i++, column += step)
        if (column < cols) load8(x.data, x.dtype, row * x.stride + column, minimum(cols - column, VECTOR), kept[i]);
}

__global__ void __launch_bounds__(ROW_THREADS) layernorm_kernel(kn_layernorm_args args)
{
    __shared__ float partial[LANES];
    const int64_t row = blockIdx.x;
    float kept[KEPT][VECTOR];
    keep_row(args.x, row, kept);

    float sum = 0;
    each_group(args.x, row, kept, [&](int, int count, const float(&x)[VECTOR]) {
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            if (i < count) sum += x[i];
    });
    const float mean = block_sum(sum, partial) / (float)args.x.cols;
    float squares = 0;
    each_group(args.x, row, kept, [&](int, int count, const float(&x)[VECTOR]) {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            const float centred = x[i] - mean;
            if (i < count) squares = fmaf(centred, centred, squares);
        }
    });
    const float variance = block_sum(squares, partial) / (float)args.x.cols;
    const float inverse = 1.0f / sqrtf(variance + args.eps);

    const float *scale = args.scale.data ? row_vector(args.scale, row) : args.weight;
    const float *shift = args.shift.data ? row_vector(args.shift, row) : args.bias;
    const float one = args.scale.data ? 1.0f : 0.0f;
    each_group(args.x, row, kept, [&](int column, int count, const float(&x)[VECTOR]) {
        float y[VECTOR], gain[VECTOR], offset[VECTOR];
        if (scale) load8(scale, KN_F32, column, count, gain);
        if (shift) load8(shift, KN_F32, column, count, offset);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            y[i] = (x[i] - mean) * inverse;
            if (scale) y[i] *= gain[i] + one;
            if (shift) y[i] += offset[i];
        }
        store8(args.out.data, args.out.dtype, row * args.out.stride + column, count, y);
    });
}

kn_status layernorm_cuda(kn_stream *stream, const kn_layernorm_args *args)
{
    return KN_LAUNCH(layernorm_kernel, (unsigned)args->x.rows, row_threads(args->x.cols), 0, stream_of(stream), *args);
}

/* Turns the pairs of eight neighbouring columns; an odd column at the row's end has no pair. */
__device__ static inline void turn_pairs(const kn_rope &rope, const kn_position &position, int column, int count,
                                         float (&y)[VECTOR])
{
#pragma unroll
    for (int i = 0; i < VECTOR; i += 2) {
        if (i + 1 >= count) break;
        int pair = (column + i) % rope.head_dim / 2, axis = 0;
        if (pair >= rope.pairs[0]) {
            pair -= rope.pairs[0];
            axis = 1;
            if (pair >= rope.pairs[1]) {
                pair -= rope.pairs[1];
                axis = 2;
            }
        }
        const float *turn = rope.table[axis] + ((int64_t)position.axis[axis] * rope.pairs[axis] + pair) * 2;
        const float cosine = turn[0], sine = turn[1], a = y[i], b = y[i + 1];
        y[i] = a * cosine - b * sine;
        y[i + 1] = a * sine + b * cosine;
    }
}

__global__ void __launch_bounds__(ROW_THREADS) rmsnorm_kernel(kn_rmsnorm_args args)
{
    __shared__ float partial[LANES];
    const int64_t row = blockIdx.x;
    float kept[KEPT][VECTOR];
    keep_row(args.x, row, kept);

    float squares = 0;
    each_group(args.x, row, kept, [&](int, int count, const float(&x)[VECTOR]) {
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            if (i < count) squares = fmaf(x[i], x[i], squares);
    });
    const float inverse = 1.0f / sqrtf(block_sum(squares, partial) / (float)args.x.cols + args.eps);

    kn_position position = {};
    if (args.rope.positions) position = args.rope.positions[row];
    each_group(args.x, row, kept, [&](int column, int count, const float(&x)[VECTOR]) {
        float y[VECTOR], weight[VECTOR];
        load8(args.weight, KN_F32, column, count, weight);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) y[i] = x[i] * inverse * weight[i];
        if (args.rope.positions) turn_pairs(args.rope, position, column, count, y);
        store8(args.out.data, args.out.dtype, row * args.out.stride + column, count, y);
    });
}

kn_status rmsnorm_cuda(kn_stream *stream, const kn_rmsnorm_args *args)
{
    return KN_LAUNCH(rmsnorm_kernel, (unsigned)args->x.rows, row_threads(args->x.cols), 0, stream_of(stream), *args);
}

/* ---- a pixel's channels ---- */

__global__ void __launch_bounds__(PIXEL_WARPS *LANES) channel_norm_kernel(kn_channel_norm_args args)
{
    const int lane = threadIdx.x % LANES, channels = args.x.channels;
    const int64_t pixel = (int64_t)blockIdx.x * PIXEL_WARPS + threadIdx.x / LANES;
    if (pixel >= (int64_t)args.x.height * args.x.width) return; /* the whole warp */
    const int64_t y = pixel / args.x.width, x = pixel % args.x.width;
    const int64_t in = pixel_of(args.x, y, x), out = pixel_of(args.out, y, x);

    float squares = 0;
    for (int c = lane * VECTOR; c < channels; c += LANES * VECTOR) {
        float values[VECTOR];
        load8(args.x.data, args.x.dtype, in + c, minimum(channels - c, VECTOR), values);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) squares = fmaf(values[i], values[i], squares);
    }
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, offset);
    float length = sqrtf(squares);
    if (length < 1e-12f) length = 1e-12f; /* unlike fmaxf, keeps NaN */
    const float factor = sqrtf((float)channels) / length;

    for (int c = lane * VECTOR; c < channels; c += LANES * VECTOR) {
        const int count = minimum(channels - c, VECTOR);
        float values[VECTOR], gamma[VECTOR];
        load8(args.x.data, args.x.dtype, in + c, count, values);
        load8(args.gamma, KN_F32, c, count, gamma);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            const float normed = values[i] * factor * gamma[i];
            values[i] = args.silu ? silu(normed) : normed;
        }
        store8(args.out.data, args.out.dtype, out + c, count, values);
    }
}

kn_status channel_norm_cuda(kn_stream *stream, const kn_channel_norm_args *args)
{
    const int64_t pixels = (int64_t)args->x.height * args->x.width;
    return KN_LAUNCH(channel_norm_kernel, (unsigned)divide_up(pixels, PIXEL_WARPS), PIXEL_WARPS * LANES, 0,
                     stream_of(stream), *args);
}

KN_CUDA_END

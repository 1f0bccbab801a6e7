/* SPDX-License-Identifier: Apache-2.0
 *
 * Element by element: activations, sums with a table, linear combinations. A thread has eight columns of a row. */
#include "kernels/cuda/numbers.cuh"

KN_CUDA_BEGIN

enum { THREADS = 256 };

/* Row and first column of this thread's elements; false beyond the matrix. */
__device__ static bool my_columns(const kn_matrix &m, int64_t *row, int64_t *column, int *count)
{
    const int64_t groups = (m.cols + VECTOR - 1) / VECTOR, index = flat_index();
    *row = index / groups;
    *column = index % groups * VECTOR;
    *count = minimum(m.cols - *column, VECTOR);
    return *row < m.rows;
}

static unsigned grid_of(const kn_matrix &m)
{
    return (unsigned)divide_up(m.rows * divide_up(m.cols, VECTOR), THREADS);
}

__global__ void __launch_bounds__(THREADS) silu_kernel(kn_silu_args args)
{
    int64_t row, column;
    int count;
    float x[VECTOR];
    if (!my_columns(args.x, &row, &column, &count)) return;
    load8(args.x.data, args.x.dtype, row * args.x.stride + column, count, x);
#pragma unroll
    for (int i = 0; i < VECTOR; i++) x[i] = silu(x[i]);
    store8(args.out.data, args.out.dtype, row * args.out.stride + column, count, x);
}

kn_status silu_cuda(kn_stream *stream, const kn_silu_args *args)
{
    return KN_LAUNCH(silu_kernel, grid_of(args->x), THREADS, 0, stream_of(stream), *args);
}

__global__ void __launch_bounds__(THREADS) gated_gelu_kernel(kn_gated_gelu_args args)
{
    int64_t row, column;
    int count;
    float a[VECTOR], b[VECTOR];
    if (!my_columns(args.a, &row, &column, &count)) return;
    load8(args.a.data, args.a.dtype, row * args.a.stride + column, count, a);
    load8(args.b.data, args.b.dtype, row * args.b.stride + column, count, b);
#pragma unroll
    for (int i = 0; i < VECTOR; i++) a[i] = gelu_tanh(a[i]) * b[i];
    store8(args.out.data, args.out.dtype, row * args.out.stride + column, count, a);
}

kn_status gated_gelu_cuda(kn_stream *stream, const kn_gated_gelu_args *args)
{
    return KN_LAUNCH(gated_gelu_kernel, grid_of(args->a), THREADS, 0, stream_of(stream), *args);
}

__global__ void __launch_bounds__(THREADS) add_table_kernel(kn_add_table_args args)
{
    int64_t row, column;
    int count;
    float x[VECTOR], table[VECTOR];
    if (!my_columns(args.x, &row, &column, &count)) return;
    load8(args.x.data, args.x.dtype, row * args.x.stride + column, count, x);
    load8(args.table, KN_F32, column, count, table);
#pragma unroll
    for (int i = 0; i < VECTOR; i++) x[i] += table[i];
    store8(args.out.data, args.out.dtype, row * args.out.stride + column, count, x);
}

kn_status add_table_cuda(kn_stream *stream, const kn_add_table_args *args)
{
    return KN_LAUNCH(add_table_kernel, grid_of(args->x), THREADS, 0, stream_of(stream), *args);
}

/* Every product is rounded before it is added (the sources are compiled with -fmad=false; the intrinsics say so once
 * more), and NaN passes the clamp. */
__global__ void __launch_bounds__(THREADS) lincomb_kernel(kn_lincomb_args args)
{
    const int64_t first = flat_index() * VECTOR;
    const int count = minimum(args.count - first, VECTOR);
    float sum[VECTOR], x[VECTOR];
    if (count <= 0) return;
    load8(args.x[0], KN_F32, first, count, sum);
#pragma unroll
    for (int i = 0; i < VECTOR; i++) sum[i] = __fmul_rn(args.coefficient[0], sum[i]);
    for (int term = 1; term < args.terms; term++) {
        load8(args.x[term], KN_F32, first, count, x);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) sum[i] = __fadd_rn(sum[i], __fmul_rn(args.coefficient[term], x[i]));
    }
    if (args.low < args.high) {
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            sum[i] = sum[i] < args.low ? args.low : sum[i] > args.high ? args.high : sum[i];
    }
    store8(args.out, KN_F32, first, count, sum);
}

kn_status lincomb_cuda(kn_stream *stream, const kn_lincomb_args *args)
{
    const int64_t threads = divide_up(args->count, VECTOR);
    return KN_LAUNCH(lincomb_kernel, (unsigned)divide_up(threads, THREADS), THREADS, 0, stream_of(stream), *args);
}

KN_CUDA_END

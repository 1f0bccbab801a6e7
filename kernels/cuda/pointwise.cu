/* SPDX-License-Identifier: Apache-2.0
 *
 * Element by element: activations, sums with a table, steps of a sampler. A thread has eight columns of a row. */
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
 * more). */
__device__ static void add_product(float (&sum)[VECTOR], float weight, const float (&x)[VECTOR])
{
#pragma unroll
    for (int i = 0; i < VECTOR; i++) sum[i] = __fadd_rn(sum[i], __fmul_rn(weight, x[i]));
}

__device__ static void product(float (&out)[VECTOR], float weight, const float (&x)[VECTOR])
{
#pragma unroll
    for (int i = 0; i < VECTOR; i++) out[i] = __fmul_rn(weight, x[i]);
}

/* Each array is read and written once: nine passes for UniPC with guidance where single sums would take sixteen. */
__global__ void __launch_bounds__(THREADS) sampler_step_kernel(kn_sampler_step_args args)
{
    const int64_t first = flat_index() * VECTOR;
    const int count = minimum(args.count - first, VECTOR);
    float m[VECTOR], corrected[VECTOR], other[VECTOR];
    if (count <= 0) return;
    load8(args.x, KN_F32, first, count, corrected);
#pragma unroll
    for (int i = 0; i < VECTOR; i++) m[i] = corrected[i];
#pragma unroll
    for (int v = 0; v < 2; v++) { /* constant places: parameters that are indexed go through local memory */
        if (v >= args.velocities) break;
        load8(args.velocity[v], KN_F32, first, count, other);
        add_product(m, args.velocity_weight[v], other);
    }
    if (!args.m) {
        store8(args.x, KN_F32, first, count, m);
        return;
    }
    float m_prev[VECTOR], x[VECTOR];
    load8(args.m_prev, KN_F32, first, count, m_prev);
    if (args.corrected) {
        load8(args.x_prev, KN_F32, first, count, other);
        product(corrected, args.corrector[0], other);
        load8(args.m_prev2, KN_F32, first, count, other);
        add_product(corrected, args.corrector[1], other);
        add_product(corrected, args.corrector[2], m_prev);
        add_product(corrected, args.corrector[3], m);
    }
    product(x, args.predictor[0], corrected);
    add_product(x, args.predictor[1], m_prev);
    add_product(x, args.predictor[2], m);
    store8(args.m, KN_F32, first, count, m);
    store8(args.x_prev, KN_F32, first, count, corrected);
    store8(args.x, KN_F32, first, count, x);
}

kn_status sampler_step_cuda(kn_stream *stream, const kn_sampler_step_args *args)
{
    const int64_t threads = divide_up(args->count, VECTOR);
    return KN_LAUNCH(sampler_step_kernel, (unsigned)divide_up(threads, THREADS), THREADS, 0, stream_of(stream), *args);
}

KN_CUDA_END
